//! Calls into librdkafka that the `rdkafka` crate does not offer.

#![allow(
    unsafe_code,
    reason = "librdkafka is a C library; each call says why it is sound"
)]

use std::time::Duration;

use rdkafka::bindings::rd_kafka_flush;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaRespErr;

use super::deliveries::LaneProducer;

/// Sends what lingers and waits until every record has been answered for, `limit` at most; true when
/// that is so. The crate's own `flush` asks without waiting, so that the library may not even notice.
pub(super) fn flush(producer: &LaneProducer, limit: Duration) -> bool {
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the handle is valid as long as the producer is borrowed, and librdkafka lets any thread
    // flush. The producer's own thread serves its events meanwhile.
    let answer = unsafe { rd_kafka_flush(producer.client().native_ptr(), millis) };
    answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}
