//! A transaction's records on their way out: each is judged, placed and handed to the cluster, or set
//! aside for the dead-letter topic.

use std::collections::HashMap;
use std::sync::Arc;

use shared::ids::{Offset, TopicName};
use shared::record::{RecordRef, Records};
use shared::wire::GAP_OTHER_TRACK;
use tracing::warn;

use super::checkpoint::{LogKey, Stored};
use super::dead_letter::{self, Morgue};
use super::queue::Queued;
use super::{Block, Content};
use crate::config::TopicTemplate;
use crate::sink::mapping::{Marks, PartitionRule, Placement};
use crate::sink::{
    Destination, DestinationError, LaneSink, OutRecord, ProduceError, Reason, SinkError,
};

/// The template under which a topic's name is the site's.
const PLAIN_TEMPLATE: &str = "{topic}";

/// How records find their place.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    pub(crate) template: TopicTemplate,
    pub(crate) rule: PartitionRule,
    pub(crate) dead_letter_topic: String,
    pub(crate) checkpoint_topic: String,
}

impl Mapping {
    /// True when central topics are called as at the sites.
    fn is_plain(&self) -> bool {
        self.template.as_str() == PLAIN_TEMPLATE
    }

    /// Topics that no site may write to: Kafka's internal ones, and ours.
    pub(crate) fn is_reserved(&self, topic: &str) -> bool {
        topic.starts_with("__") || topic == self.checkpoint_topic || topic == self.dead_letter_topic
    }
}

/// Why an attempt did not commit.
pub(crate) enum Failure {
    Sink(SinkError),
    /// The broker refused records; the transaction is still open.
    Refused,
    /// A session's records cannot be read; the transaction is still open.
    Malformed(usize),
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

/// Where a log's records go, or why none of them can.
pub(crate) struct Route {
    pub(crate) topic: TopicName,
    pub(crate) target: Result<(Arc<Destination>, Placement), Reason>,
}

/// Which record a tag stands for.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) item: usize,
    pub(crate) offset: Offset,
}

/// A transaction's records on their way out.
pub(crate) struct Sending<'a, S> {
    pub(crate) sink: &'a mut S,
    pub(crate) mapping: &'a Mapping,
    pub(crate) marked: &'a HashMap<(Arc<LogKey>, Offset), Reason>,
    pub(crate) now_ms: i64,
    pub(crate) places: Vec<Place>,
    /// Records whose topic will not keep them, by topic.
    pub(crate) aged: HashMap<TopicName, u64>,
    pub(crate) logs: HashMap<Arc<LogKey>, Stored>,
    pub(crate) morgue: Option<Arc<Destination>>,
}

impl<S: LaneSink> Sending<'_, S> {
    pub(crate) fn send(
        &mut self,
        index: usize,
        item: &Queued,
        route: &Route,
    ) -> Result<(), Failure> {
        let mut dead = 0;
        let (mut lost, mut elsewhere) = (0, 0);
        match &item.delivery.content {
            Content::Gap {
                reason: GAP_OTHER_TRACK,
            } => elsewhere = item.records(),
            Content::Gap { reason } => {
                lost = item.records();
                warn!(
                    site = %item.key.site, log = %item.key.log, reason, records = lost,
                    from = item.skip_below.max(item.delivery.base_offset),
                    "The site dropped records before they were sent"
                );
            }
            Content::Records(blocks) => {
                let mut marks = Marks::new(&item.key, !self.mapping.is_plain());
                for block in blocks {
                    dead += self.send_block(index, item, route, block, &mut marks)?;
                }
            }
        }
        let stored = self
            .logs
            .get_mut(&item.key)
            .expect("each item's log is there");
        stored.checkpoint = item.delivery.next;
        stored.lost += lost;
        stored.elsewhere += elsewhere;
        stored.dead += dead;
        Ok(())
    }

    /// Sends a block's records; how many went to the dead-letter topic.
    fn send_block(
        &mut self,
        index: usize,
        item: &Queued,
        route: &Route,
        block: &Block,
        marks: &mut Marks,
    ) -> Result<u64, Failure> {
        let end = block.base_offset + u64::from(block.count);
        if end <= item.skip_below {
            return Ok(0);
        }
        let may_be_too_large = |destination: &Destination| {
            block.records.len() + dead_letter::OVERHEAD_BYTES > destination.max_batch_bytes
        };
        let (mut dead, mut aged) = (0, 0);
        let max_age_ms = route.target.as_ref().ok().and_then(|(to, _)| to.max_age_ms);
        let mut records = Records::new(&block.records, block.count);
        for record in &mut records {
            let record = record.map_err(|_| Failure::Malformed(index))?;
            let offset = block.base_offset + u64::from(record.offset_delta);
            if offset < item.skip_below {
                continue;
            }
            let delta_ms = match block.is_log_append_time {
                true => 0,
                false => record.timestamp_delta_ms,
            };
            let timestamp_ms = block.base_timestamp_ms.saturating_add(delta_ms);
            marks.set(offset, timestamp_ms);
            let verdict = match &route.target {
                Err(reason) => Err(*reason),
                Ok((destination, placement)) => {
                    let check_size = may_be_too_large(destination);
                    self.judge(item, offset, &record, timestamp_ms, destination, check_size)
                        .map(|()| placement.partition(record.key))
                }
            };
            let verdict = match verdict {
                Err(reason) => Err(reason),
                Ok(partition) => self.produce(
                    index,
                    offset,
                    &record,
                    route,
                    partition,
                    timestamp_ms,
                    marks,
                )?,
            };
            if let Err(reason) = verdict {
                self.bury(index, offset, &record, route, reason, item, marks)?;
                dead += 1;
            } else if is_beyond(max_age_ms, self.now_ms.saturating_sub(timestamp_ms)) {
                aged += 1;
            }
        }
        if aged > 0 {
            *self.aged.entry(route.topic.clone()).or_default() += aged;
        }
        records.finish().map_err(|_| Failure::Malformed(index))?;
        Ok(dead)
    }

    /// What can be known before a record is sent.
    fn judge(
        &self,
        item: &Queued,
        offset: Offset,
        record: &RecordRef<'_>,
        timestamp_ms: i64,
        destination: &Destination,
        check_size: bool,
    ) -> Result<(), Reason> {
        if check_size && dead_letter::size_bound(record) > destination.max_batch_bytes {
            return Err(Reason::TooLarge);
        }
        if destination.is_compacted && record.key.is_none() {
            return Err(Reason::NoKey);
        }
        let ahead = timestamp_ms.saturating_sub(self.now_ms);
        if is_beyond(destination.max_timestamp_ahead_ms, ahead)
            || is_beyond(destination.max_timestamp_behind_ms, ahead.saturating_neg())
        {
            return Err(Reason::InvalidTimestamp);
        }
        if self.marked.is_empty() {
            return Ok(());
        }
        match self.marked.get(&(item.key.clone(), offset)) {
            Some(reason) => Err(*reason),
            None => Ok(()),
        }
    }

    fn produce(
        &mut self,
        index: usize,
        offset: Offset,
        record: &RecordRef<'_>,
        route: &Route,
        partition: u32,
        timestamp_ms: i64,
        marks: &Marks,
    ) -> Result<Result<(), Reason>, Failure> {
        let (headers, count) = marks.headers();
        let out = OutRecord {
            topic: route.topic.as_str(),
            partition,
            key: record.key,
            value: record.value,
            timestamp_ms,
            headers: Some(record.headers()),
            marks: &headers[..count],
        };
        let tag = self.places.len();
        match self.sink.produce(tag, &out) {
            Ok(()) => {
                self.places.push(Place {
                    item: index,
                    offset,
                });
                Ok(Ok(()))
            }
            Err(ProduceError::Refused(reason)) => Ok(Err(reason)),
            Err(ProduceError::Sink(error)) => Err(error.into()),
        }
    }

    fn bury(
        &mut self,
        index: usize,
        offset: Offset,
        record: &RecordRef<'_>,
        route: &Route,
        reason: Reason,
        item: &Queued,
        marks: &Marks,
    ) -> Result<(), Failure> {
        let destination = self.morgue()?;
        let placement = Placement::new(PartitionRule::Hash, &item.key, destination.partitions);
        let morgue = Morgue {
            topic: &self.mapping.dead_letter_topic,
            partition: placement.partition(None),
            destination: &destination,
            now_ms: self.now_ms,
        };
        let mut marks_with_topic;
        let marks = if self.mapping.is_plain() {
            let timestamp_ms = marks.timestamp_ms();
            marks_with_topic = Marks::new(&item.key, true);
            marks_with_topic.set(offset, timestamp_ms);
            &marks_with_topic
        } else {
            marks
        };
        let tag = self.places.len();
        let sink = &mut *self.sink;
        let mut produce = |out: &OutRecord<'_>| sink.produce(tag, out);
        dead_letter::produce(
            &morgue,
            route.topic.as_str(),
            reason,
            record,
            marks,
            &mut produce,
        )
        .map_err(|error| match error {
            ProduceError::Refused(reason) => Failure::Sink(SinkError::Refused(format!(
                "the dead-letter topic refuses a dead letter: {}",
                reason.code()
            ))),
            ProduceError::Sink(error) => error.into(),
        })?;
        self.places.push(Place {
            item: index,
            offset,
        });
        Ok(())
    }

    /// Without a place for dead letters the lane waits: a record is never dropped without a trace.
    fn morgue(&mut self) -> Result<Arc<Destination>, Failure> {
        if let Some(destination) = &self.morgue {
            return Ok(destination.clone());
        }
        let topic = &self.mapping.dead_letter_topic;
        let destination = self.sink.destination(topic).map_err(|error| {
            let text = format!("dead-letter topic `{topic}`: {error}");
            Failure::Sink(match error {
                DestinationError::Refused(_) => SinkError::Refused(text),
                DestinationError::Unavailable(_) => SinkError::Unknown(text),
            })
        })?;
        if destination.is_compacted {
            // it would refuse a letter without a key, and delete all but the last of those with one
            let text = format!("dead-letter topic `{topic}`: it must not be compacted");
            return Err(Failure::Sink(SinkError::Refused(text)));
        }
        self.morgue = Some(destination.clone());
        Ok(destination)
    }
}

fn is_beyond(limit: Option<u64>, by: i64) -> bool {
    limit.is_some_and(|limit| u64::try_from(by).is_ok_and(|by| by > limit))
}
