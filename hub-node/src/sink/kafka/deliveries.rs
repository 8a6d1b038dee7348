//! Counts delivery reports instead of keeping a future for each record.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{ProducerContext, ThreadedProducer};
use tracing::debug;

use super::words::Words;
use crate::sink::errors::{self, Verdict};
use crate::sink::{Refusal, SinkError};

/// A lane's producer.
pub(super) type LaneProducer = ThreadedProducer<LaneContext>;

/// The tag of a record of the checkpoint topic.
pub(super) const STORE_TAG: usize = INDEX_MASK;

// A tag as librdkafka carries it: the transaction's number above, the record's index below.
const INDEX_BITS: u32 = usize::BITS / 2;
const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;

/// After the first refusal the library stops sending; what is on the way gets this long to report.
const REFUSAL_GRACE: Duration = Duration::from_millis(200);

/// What came back for the transaction under way.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Number of the transaction: late reports of an earlier one do not count.
    generation: AtomicUsize,
    has_trouble: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    reported: u64,
    /// Woken at this many reports.
    expected: u64,
    refusals: Refusals,
    failure: Option<SinkError>,
    is_poisoned: bool,
    stored_offset: i64,
}

/// Records that came back.
#[derive(Debug, Default, Clone)]
pub(super) struct Refusals {
    pub(super) records: Vec<Refusal>,
    /// Topics that are not what the cache says.
    pub(super) stale_topics: Vec<String>,
}

impl Deliveries {
    /// A transaction begins.
    pub(super) fn begin(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        *state = State {
            expected: u64::MAX,
            ..State::default()
        };
    }

    /// What librdkafka carries for a record of the transaction.
    pub(super) fn tag(&self, index: usize) -> usize {
        (self.generation.load(Ordering::Relaxed) << INDEX_BITS) | (index & INDEX_MASK)
    }

    /// The transaction can only be aborted; a report says why.
    pub(super) fn poison(&self) {
        self.lock().is_poisoned = true;
    }

    /// A record came back: waiting for the others is in vain.
    pub(super) fn has_bad_news(&self) -> bool {
        let state = self.lock();
        state.failure.is_some() || state.is_poisoned || !state.refusals.records.is_empty()
    }

    /// Waits for `sent` reports.
    pub(super) fn wait(&self, sent: u64, limit: Duration) -> Result<Refusals, SinkError> {
        let mut deadline = Instant::now() + limit;
        let mut state = self.lock();
        state.expected = sent;
        let mut is_refused = false;
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            let has_refusals = state.is_poisoned || !state.refusals.records.is_empty();
            if has_refusals && !is_refused {
                is_refused = true;
                deadline = deadline.min(Instant::now() + REFUSAL_GRACE);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.reported >= sent || left.is_zero() {
                break;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if !state.refusals.records.is_empty() {
            return Ok(std::mem::take(&mut state.refusals));
        }
        if state.is_poisoned {
            return Err(SinkError::Abortable("a delivery failed".to_owned()));
        }
        if state.reported < sent {
            return Err(SinkError::Unknown("deliveries timed out".to_owned()));
        }
        Ok(Refusals::default())
    }

    /// Where the last record of the checkpoint topic went.
    pub(super) fn stored_offset(&self) -> i64 {
        self.lock().stored_offset
    }

    /// From here on `saw_trouble` counts.
    pub(super) fn watch_connection(&self) {
        self.has_trouble.store(false, Ordering::Relaxed);
    }

    /// A connection broke or a request timed out since `watch_connection`.
    pub(super) fn saw_trouble(&self) -> bool {
        self.has_trouble.load(Ordering::Relaxed)
    }

    fn report(&self, result: &DeliveryResult<'_>, tag: usize) {
        if tag >> INDEX_BITS != self.generation.load(Ordering::Relaxed) & INDEX_MASK {
            return; // purged with a transaction that was aborted
        }
        let index = tag & INDEX_MASK;
        let mut state = self.lock();
        state.reported += 1;
        match result {
            Ok(message) if index == STORE_TAG => {
                state.stored_offset = state.stored_offset.max(message.offset());
            }
            Ok(_) => {}
            Err((error, message)) => state.refuse(index, error, message.topic()),
        }
        if state.reported >= state.expected || result.is_err() {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refuse(&mut self, index: usize, error: &KafkaError, topic: &str) {
        let mut push = |reason, is_certain| {
            self.refusals.records.push(Refusal {
                tag: index,
                reason,
                is_certain,
            });
        };
        match errors::delivery(error) {
            Verdict::Refused(reason, _) if index == STORE_TAG => {
                let text = format!("the checkpoint topic refuses records: {}", reason.code());
                self.failure = Some(SinkError::Refused(text));
            }
            Verdict::Refused(reason, is_certain) => {
                push(Some(reason), is_certain);
                self.stale(topic);
            }
            Verdict::Stale => {
                push(None, false);
                self.stale(topic);
            }
            Verdict::Collateral => self.is_poisoned = true,
            Verdict::Failed(error) => self.failure = Some(error),
        }
    }

    fn stale(&mut self, topic: &str) {
        let topics = &mut self.refusals.stale_topics;
        if !topics.iter().any(|known| known == topic) {
            topics.push(topic.to_owned());
        }
    }
}

/// Receives librdkafka's calls.
#[derive(Debug)]
pub(super) struct LaneContext(Arc<Deliveries>, Words);

impl LaneContext {
    /// Of a producer whose reports these are.
    pub(super) fn new(deliveries: Arc<Deliveries>, words: Words) -> Self {
        Self(deliveries, words)
    }
}

impl ClientContext for LaneContext {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.1.logged(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        let is_connection = code.is_some_and(|code| {
            errors::is_one_of(
                code,
                &[
                    Code::BrokerTransportFailure,
                    Code::AllBrokersDown,
                    Code::OperationTimedOut,
                    Code::RequestTimedOut,
                ],
            )
        });
        if is_connection {
            self.0.has_trouble.store(true, Ordering::Relaxed);
        }
        debug!(%error, reason, "librdkafka");
    }
}

impl ProducerContext for LaneContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        self.0.report(result, tag);
    }
}
