//! Calls into librdkafka that the `rdkafka` crate does not offer.

#![allow(
    unsafe_code,
    reason = "librdkafka is a C library; each call says why it is sound"
)]

use std::ffi::{CStr, c_char};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::{
    RD_KAFKA_EVENT_LOG, rd_kafka_event_destroy, rd_kafka_event_log, rd_kafka_event_type,
    rd_kafka_flush, rd_kafka_queue_destroy, rd_kafka_queue_get_main, rd_kafka_queue_poll,
};
use rdkafka::client::Client;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaRespErr;

use super::deliveries::LaneProducer;
use super::words::Words;

/// Taken at once: more cannot come meanwhile than are worth it.
const MAX_EVENTS: usize = 10_000;

/// Sends what lingers and waits until every record has been answered for, `limit` at most; true when
/// that is so. The crate's own `flush` asks without waiting, so that the library may not even notice.
pub(super) fn flush(producer: &LaneProducer, limit: Duration) -> bool {
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the handle is valid as long as the producer is borrowed, and librdkafka lets any thread
    // flush. The producer's own thread serves its events meanwhile.
    let answer = unsafe { rd_kafka_flush(producer.client().native_ptr(), millis) };
    answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// Takes what the library says of an administrator's connections, which the crate leaves in its queue for ever.
pub(super) fn drain(client: &Client<Words>) {
    let words = client.context();
    // SAFETY: the handle is valid as long as the client is borrowed. The answers to an administrator's requests come to
    // another queue; of this one librdkafka lets any thread take events. The queue and each event are given back once.
    unsafe {
        let queue = rd_kafka_queue_get_main(client.native_ptr());
        if queue.is_null() {
            return;
        }
        for _ in 0..MAX_EVENTS {
            let event = rd_kafka_queue_poll(queue, 0);
            if event.is_null() {
                break;
            }
            if rd_kafka_event_type(event) == RD_KAFKA_EVENT_LOG {
                let (mut facility, mut message, mut level) = (ptr::null(), ptr::null(), 0);
                let found = rd_kafka_event_log(event, &mut facility, &mut message, &mut level);
                if found == 0 {
                    words.logged(&text(facility), &text(message));
                }
            }
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
    }
}

/// # Safety
/// `text` is null, or ends with a zero and stays until this returns.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: see above
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
