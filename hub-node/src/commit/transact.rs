//! One transaction from begin to end: walks the records, places them, sets aside what cannot be
//! delivered, and says how it ended.
//!
//! A record that its topic refuses goes to the dead-letter topic in the same transaction. What can be
//! known beforehand is checked beforehand; what only the broker knows comes back as a refusal, and a
//! refusal loses the whole transaction: it is aborted, the culprit marked, and the transaction sent
//! again. When a refusal hits a whole batch nobody knows the culprit; then the lane is acquired anew
//! with a producer that sends each record alone, until one transaction has gone through.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shared::ids::{Offset, TopicName};
use shared::record::{RecordRef, Records};
use tracing::{debug, error, info, warn};

use super::checkpoint::{self, Claim, Entry, LogKey, Moved, Stored};
use super::counters::Counters;
use super::dead_letter::{self, Morgue};
use super::machine::{Outcome, Transaction};
use super::queue::Queued;
use super::{Block, Content};
use crate::config::TopicTemplate;
use crate::sink::mapping::{Marks, PartitionRule, Placement};
use crate::sink::{
    CommitEnd, Destination, DestinationError, LaneSink, OutRecord, ProduceError, Reason, Refusal,
    SinkError,
};

/// Attempts at one transaction before the lane is acquired anew: one for the first refusal, one for
/// librdkafka's echo of it ("skipped sequence numbers"), and as much again.
const ATTEMPTS: u32 = 4;

/// The template under which a topic's name is the site's.
const PLAIN_TEMPLATE: &str = "{topic}";

/// Records that may be marked before the marks are forgotten: then they are found again.
const MAX_MARKED: usize = 100_000;

/// How records find their place.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    pub(crate) template: TopicTemplate,
    pub(crate) rule: PartitionRule,
    pub(crate) dead_letter_topic: String,
    pub(crate) checkpoint_topic: String,
}

/// What a lane knows after it was acquired.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) logs: HashMap<Arc<LogKey>, Stored>,
    pub(crate) damaged: HashSet<LogKey>,
}

/// A lane's hands.
#[derive(Debug)]
pub(crate) struct Transactor<S> {
    sink: S,
    mapping: Mapping,
    claim: Claim,
    lanes: u32,
    has_layout: bool,
    counters: Arc<Counters>,
    /// Records that the broker refused in an attempt that was aborted.
    marked: HashMap<(Arc<LogKey>, Offset), Reason>,
    /// The producer in use sends each record alone.
    is_alone: bool,
    /// The next one will.
    wants_alone: bool,
}

/// Why an attempt did not commit.
enum Failure {
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

impl<S: LaneSink> Transactor<S> {
    pub(crate) fn new(
        sink: S,
        mapping: Mapping,
        hub: String,
        lanes: u32,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            sink,
            mapping,
            claim: Claim { at_ms: 0, hub },
            lanes,
            has_layout: false,
            counters,
            marked: HashMap::new(),
            is_alone: false,
            wants_alone: false,
        }
    }

    /// Takes the lane over and reads what is committed.
    pub(crate) fn acquire(&mut self, now_ms: i64) -> Result<Restored, SinkError> {
        self.claim.at_ms = now_ms;
        let claim = (
            checkpoint::claim_key(),
            checkpoint::claim_value(&self.claim),
        );
        let mut restored = Restored::default();
        let mut layout = None;
        let mut read = |key: &[u8], value: Option<&[u8]>| match checkpoint::read(key, value) {
            Entry::Checkpoint(log, Some(stored)) => {
                restored.damaged.remove(&log);
                restored.logs.insert(Arc::new(log), stored);
            }
            Entry::Checkpoint(log, None) => {
                restored.damaged.remove(&log);
                restored.logs.remove(&log);
            }
            Entry::Damaged(log) => {
                restored.logs.remove(&log);
                restored.damaged.insert(log);
            }
            Entry::Layout(lanes) => layout = Some(lanes),
            Entry::Claim(claim) => debug!(hub = claim.hub, at_ms = claim.at_ms, "Claim read"),
            Entry::Foreign => debug!("A record of the checkpoint topic is not one of ours"),
        };
        self.sink.acquire((&claim.0, &claim.1), &mut read)?;
        self.is_alone = self.wants_alone;
        for log in &restored.damaged {
            error!(site = %log.site, incarnation = %log.incarnation, log = %log.log,
                "The committed checkpoint of a log cannot be read; the site is refused");
        }
        // with another number of lanes the sites' checkpoints lie in other partitions
        self.has_layout = match layout {
            None => false,
            Some(Some(lanes)) if lanes == self.lanes => true,
            Some(found) => {
                let found =
                    found.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
                return Err(SinkError::Refused(format!(
                    "the checkpoint topic was written with {found} lanes and has {} partitions",
                    self.lanes
                )));
            }
        };
        Ok(restored)
    }

    /// Gives the lane up.
    pub(crate) fn release(&mut self) {
        self.sink.release();
    }

    /// Commits a transaction, whatever it takes short of acquiring the lane anew.
    pub(crate) fn run(&mut self, transaction: &Transaction, now_ms: i64) -> Outcome {
        for _ in 0..ATTEMPTS {
            let failure = match self.attempt(transaction, now_ms) {
                Ok((logs, end)) => return self.committed(transaction, logs, end),
                Err(failure) => failure,
            };
            let malformed = match failure {
                Failure::Sink(SinkError::Fenced) => return Outcome::Fenced,
                Failure::Sink(SinkError::Abortable(reason)) => {
                    info!(reason, "Transaction aborted");
                    None
                }
                Failure::Sink(error @ SinkError::Unknown(_)) => {
                    warn!(%error, "Transaction failed");
                    return Outcome::Unknown;
                }
                Failure::Sink(error @ SinkError::Refused(_)) => {
                    error!(%error, "Transaction failed");
                    return Outcome::Unknown;
                }
                Failure::Refused => None,
                Failure::Malformed(item) => Some(transaction.items[item].session),
            };
            self.counters.aborts.fetch_add(1, Ordering::Relaxed);
            match self.sink.abort() {
                Ok(()) => {}
                Err(SinkError::Fenced) => return Outcome::Fenced,
                Err(error) => {
                    info!(%error, "Transaction could not be aborted");
                    return Outcome::Unknown;
                }
            }
            if let Some(session) = malformed {
                return Outcome::Malformed(vec![session]);
            }
            if self.wants_alone && !self.is_alone {
                return Outcome::Unknown;
            }
        }
        Outcome::Unknown
    }

    fn committed(
        &mut self,
        transaction: &Transaction,
        logs: HashMap<Arc<LogKey>, Stored>,
        end: CommitEnd,
    ) -> Outcome {
        self.marked.clear();
        self.has_layout = true;
        if self.is_alone {
            self.wants_alone = false;
            self.sink.send_alone(false);
        }
        let reacquire = self.is_alone || end == CommitEnd::Reacquire;
        self.count(transaction, &logs);
        Outcome::Committed { logs, reacquire }
    }

    fn count(&self, transaction: &Transaction, logs: &HashMap<Arc<LogKey>, Stored>) {
        let mut moved = Moved::default();
        for (key, after) in logs {
            moved.add(transaction.logs.get(key).unwrap_or(&Stored::NOTHING), after);
        }
        let bytes: usize = transaction.items.iter().map(|q| q.delivery.bytes).sum();
        let counters = &self.counters;
        counters.transactions.fetch_add(1, Ordering::Relaxed);
        counters.moved(&moved);
        counters
            .committed_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn attempt(
        &mut self,
        transaction: &Transaction,
        now_ms: i64,
    ) -> Result<(HashMap<Arc<LogKey>, Stored>, CommitEnd), Failure> {
        let routes = self.routes(transaction)?;
        self.sink.begin()?;
        let mut sending = Sending {
            sink: &mut self.sink,
            mapping: &self.mapping,
            marked: &self.marked,
            now_ms,
            places: Vec::new(),
            logs: transaction.logs.clone(),
            morgue: None,
        };
        for (index, item) in transaction.items.iter().enumerate() {
            let route = routes.get(&item.key).expect("each log has its route");
            sending.send(index, item, route)?;
        }
        let (places, logs) = (sending.places, sending.logs);
        for (key, stored) in &logs {
            let key = checkpoint::checkpoint_key(key);
            let value = checkpoint::checkpoint_value(&key, stored, now_ms);
            self.sink.store(&key, &value)?;
        }
        if transaction.items.is_empty() {
            let value = checkpoint::claim_value(&self.claim);
            self.sink.store(&checkpoint::claim_key(), &value)?;
        }
        if !self.has_layout {
            let (key, value) = (
                checkpoint::layout_key(),
                checkpoint::layout_value(self.lanes),
            );
            self.sink.store(&key, &value)?;
        }
        let refusals = self.sink.settle()?;
        if !refusals.is_empty() {
            self.mark(transaction, &places, &refusals);
            return Err(Failure::Refused);
        }
        // every record and its checkpoint are delivered: only this call makes them visible, together
        let end = self.sink.commit().map_err(|error| match error {
            // once asked to commit, "must be aborted" is one word against another
            SinkError::Abortable(text) => SinkError::Unknown(text),
            error @ (SinkError::Fenced | SinkError::Unknown(_) | SinkError::Refused(_)) => error,
        })?;
        Ok((logs, end))
    }

    fn mark(&mut self, transaction: &Transaction, places: &[Place], refusals: &[Refusal]) {
        if self.marked.len() + refusals.len() > MAX_MARKED {
            self.marked.clear();
        }
        let mut culprit_unknown = false;
        for refusal in refusals {
            let (Some(place), Some(reason)) = (places.get(refusal.tag), refusal.reason) else {
                continue;
            };
            if refusal.is_certain || self.is_alone {
                let key = transaction.items[place.item].key.clone();
                self.marked.insert((key, place.offset), reason);
            } else {
                culprit_unknown = true;
            }
        }
        info!(
            records = refusals.len(),
            marked = self.marked.len(),
            culprit_unknown,
            "The cluster refused records of a transaction"
        );
        if culprit_unknown {
            self.wants_alone = true;
            self.sink.send_alone(true);
        }
    }

    fn routes(
        &mut self,
        transaction: &Transaction,
    ) -> Result<HashMap<Arc<LogKey>, Route>, Failure> {
        let mut routes = HashMap::with_capacity(transaction.logs.len());
        for key in transaction.logs.keys() {
            let route = self
                .route(key)
                .map_err(|error| Failure::Sink(SinkError::Unknown(error.to_string())))?;
            routes.insert(key.clone(), route);
        }
        Ok(routes)
    }

    fn route(&mut self, key: &LogKey) -> Result<Route, DestinationError> {
        let rendered = self.mapping.template.render(&key.site, &key.log.topic);
        let (topic, destination) = match rendered {
            Err(_) => (key.log.topic.clone(), Err(Reason::InvalidTopic)),
            Ok(topic) if self.mapping.is_reserved(topic.as_str()) => {
                (topic, Err(Reason::InvalidTopic))
            }
            Ok(topic) => match self.sink.destination(topic.as_str()) {
                Ok(destination) => (topic, Ok(destination)),
                Err(DestinationError::Refused(reason)) => (topic, Err(reason)),
                Err(error @ DestinationError::Unavailable(_)) => return Err(error),
            },
        };
        let target = destination.map(|destination| {
            let partitions = destination.partitions;
            (
                destination,
                Placement::new(self.mapping.rule, key, partitions),
            )
        });
        Ok(Route { topic, target })
    }
}

impl Mapping {
    /// True when central topics are called as at the sites.
    fn is_plain(&self) -> bool {
        self.template.as_str() == PLAIN_TEMPLATE
    }

    /// Topics that no site may write to: Kafka's internal ones, and ours.
    fn is_reserved(&self, topic: &str) -> bool {
        topic.starts_with("__") || topic == self.checkpoint_topic || topic == self.dead_letter_topic
    }
}

/// Where a log's records go, or why none of them can.
struct Route {
    topic: TopicName,
    target: Result<(Arc<Destination>, Placement), Reason>,
}

/// Which record a tag stands for.
#[derive(Clone, Copy)]
struct Place {
    item: usize,
    offset: Offset,
}

/// A transaction's records on their way out.
struct Sending<'a, S> {
    sink: &'a mut S,
    mapping: &'a Mapping,
    marked: &'a HashMap<(Arc<LogKey>, Offset), Reason>,
    now_ms: i64,
    places: Vec<Place>,
    logs: HashMap<Arc<LogKey>, Stored>,
    morgue: Option<Arc<Destination>>,
}

impl<S: LaneSink> Sending<'_, S> {
    fn send(&mut self, index: usize, item: &Queued, route: &Route) -> Result<(), Failure> {
        let mut dead = 0;
        let mut lost = 0;
        match &item.delivery.content {
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
        let mut dead = 0;
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
            }
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
        let is_beyond = |limit: Option<u64>, by: i64| {
            limit.is_some_and(|limit| u64::try_from(by).is_ok_and(|by| by > limit))
        };
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
        self.morgue = Some(destination.clone());
        Ok(destination)
    }
}
