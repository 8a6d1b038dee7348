//! Reads a lane's partition of the checkpoint topic.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Clients;
use crate::sink::{SinkError, errors};

/// Longest wait without a record; then the lane is acquired anew.
const STALL: Duration = Duration::from_secs(10);

/// Hands the committed records from the partition's start up to offset `until` to `read`.
pub(super) fn read_until(
    clients: &Clients,
    lane: u32,
    until: i64,
    read: &mut dyn FnMut(&[u8], Option<&[u8]>),
) -> Result<(), SinkError> {
    let sorted = |error| errors::sink_error(&error, None);
    let consumer = clients.consumer()?;
    // asking first opens the connection: an assignment alone waits half a second for its timers
    let topic = clients.checkpoint_topic();
    consumer
        .fetch_metadata(Some(topic), STALL)
        .map_err(sorted)?;
    let mut assignment = TopicPartitionList::new();
    let partition = i32::try_from(lane).unwrap_or(i32::MAX);
    assignment
        .add_partition_offset(topic, partition, Offset::Beginning)
        .map_err(sorted)?;
    consumer.assign(&assignment).map_err(sorted)?;
    let mut heard = Instant::now();
    while heard.elapsed() < STALL {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                read(message.key().unwrap_or_default(), message.payload());
                // the claim itself, or what a later owner wrote after it
                if message.offset() >= until {
                    return Ok(());
                }
            }
            // the consumer goes on by itself after errors of the connection
            Some(Err(error)) => tracing::debug!(%error, "Reading checkpoints"),
            None => {}
        }
    }
    Err(SinkError::Unknown(
        "reading the checkpoints stalled".to_owned(),
    ))
}
