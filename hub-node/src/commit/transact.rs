//! One transaction from begin to end, as often as it takes, and how it ended.
//!
//! A record that its topic refuses goes to the dead-letter topic in the same transaction. What can be
//! known beforehand is checked beforehand; what only the broker knows comes back as a refusal, and a
//! refusal loses the whole transaction: it is aborted, the culprit marked, and the transaction sent
//! again. When a refusal hits a whole batch nobody knows the culprit; then the lane is acquired anew
//! with a producer that sends each record alone, until one transaction has gone through.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use shared::ids::Offset;
use tracing::{debug, error, info, warn};

use super::checkpoint::{self, Claim, Entry, LogKey, Moved, Stored};
use super::counters::Counters;
use super::machine::{Outcome, Transaction};
use super::sending::{Failure, Mapping, Place, Route, Sending};
use crate::sink::mapping::Placement;
use crate::sink::{CommitEnd, DestinationError, LaneSink, Reason, Refusal, SinkError};

/// Attempts at one transaction before the lane is acquired anew: one for the first refusal, one for
/// librdkafka's echo of it ("skipped sequence numbers"), and as much again.
const ATTEMPTS: u32 = 4;

/// Records that may be marked before the marks are forgotten: then they are found again.
const MAX_MARKED: usize = 100_000;

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
    /// What was said of the last transaction that failed.
    failure: Option<String>,
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
            failure: None,
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
                    return self.unknown(&error);
                }
                Failure::Sink(error @ SinkError::Refused(_)) => {
                    error!(%error, "Transaction failed");
                    return self.unknown(&error);
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
                    return self.unknown(&error);
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

    fn unknown(&mut self, error: &SinkError) -> Outcome {
        self.failure = Some(error.to_string());
        Outcome::Unknown
    }

    /// What was said of the last transaction that failed, once.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
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
            aged: HashMap::new(),
            logs: transaction.logs.clone(),
            morgue: None,
        };
        for (index, item) in transaction.items.iter().enumerate() {
            let route = routes.get(&item.key).expect("each log has its route");
            sending.send(index, item, route)?;
        }
        let (places, aged, logs) = (sending.places, sending.aged, sending.logs);
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
        for (topic, records) in aged {
            let counters = &self.counters;
            counters.past_retention(topic.as_str(), records, now_ms);
        }
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
