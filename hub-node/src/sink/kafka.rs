//! Lanes on Apache Kafka, through librdkafka.
//!
//! What the code rests on:
//! - Deliveries are awaited before `commit_transaction`, and the queue of reports is empty by then: else
//!   the call flushes in steps of 100 ms.
//! - Records linger until the lane flushes: when a partition's batch is full, and at a transaction's end.
//! - librdkafka has no transaction verification by epoch (KIP-890, part 2): a delayed request to end a
//!   transaction can end the *next* one. So after any outcome that is not known, and after a commit
//!   during which a connection broke, the producer is thrown away: the next one's `InitProducerId` fences
//!   whatever is still under way.
//! - One record of a transaction that fails for good poisons it; `abort` also purges, and what was purged
//!   reports late: reports carry the number of their transaction.
//! - The checkpoints are read up to a claim that the lane commits first. Records of a partition become
//!   visible in order, so whoever sees the claim has seen every checkpoint before it, also when the
//!   partition's leader has just changed and its high watermark lags.

mod client;
mod deliveries;
mod fill;
mod native;
mod probe;
mod restore;
mod topics;
mod words;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::util::Timeout;
use tracing::debug;

use self::client::Clients;
use self::deliveries::{Deliveries, LaneProducer, STORE_TAG};
use self::fill::Fill;
pub use self::probe::{Asked, ask};
use self::topics::Topics;
use super::{
    Cluster, CommitEnd, Destination, DestinationError, LaneSink, OutRecord, ProduceError, Refusal,
    SinkError, errors,
};
use crate::commit::CommitConfig;

/// One call to `init_transactions`: it can be repeated on the same producer.
const INIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an abort may take.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// A commit that takes longer may have repeated its request inside librdkafka.
const SUSPICIOUS_COMMIT: Duration = Duration::from_secs(1);
/// How long a refusal may go unnoticed while the rest of a transaction is awaited.
const FLUSH_STEP: Duration = Duration::from_millis(20);
/// librdkafka's queue holds a transaction; should it be full all the same, wait this long at most.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(5);

/// The central cluster.
#[derive(Debug)]
pub struct KafkaCluster {
    clients: Arc<Clients>,
    topics: Arc<Topics>,
}

impl KafkaCluster {
    /// Connects lazily. The handle is that of the runtime in whose blocking threads lanes work.
    ///
    /// # Errors
    /// [`SinkError::Refused`] when librdkafka refuses a property.
    pub fn new(config: &CommitConfig, handle: tokio::runtime::Handle) -> Result<Self, SinkError> {
        let clients = Arc::new(Clients::new(config));
        let topics = Arc::new(Topics::new(&clients, config, handle)?);
        Ok(Self { clients, topics })
    }
}

impl Cluster for KafkaCluster {
    type Lane = KafkaLane;

    fn prepare(&self) -> Result<u32, SinkError> {
        self.topics.prepare_checkpoints()
    }

    fn lane(&self, lane: u32) -> KafkaLane {
        KafkaLane {
            clients: self.clients.clone(),
            topics: self.topics.clone(),
            lane,
            is_alone: false,
            batch_bytes: client::BATCH_BYTES,
            producer: None,
            is_initialised: false,
        }
    }
}

/// What librdkafka says of the configuration, without asking the cluster: the property, when it is one,
/// and what is wrong.
#[must_use]
pub fn check(config: &CommitConfig) -> Vec<(Option<String>, String)> {
    let clients = Clients::new(config);
    let refused = clients.refused_properties();
    if !refused.is_empty() {
        let tell = |(key, why): (String, &str)| (Some(key), why.to_owned());
        return refused.into_iter().map(tell).collect();
    }
    // some are looked at together, and files are read, when a client is made
    match clients.producer(0, client::BATCH_BYTES, false, Arc::default()) {
        Ok(_unconnected) => Vec::new(),
        Err(error) => vec![(None, error.to_string())],
    }
}

/// One lane's producer.
#[derive(Debug)]
pub struct KafkaLane {
    clients: Arc<Clients>,
    topics: Arc<Topics>,
    lane: u32,
    is_alone: bool,
    /// The smallest batch limit of the topics written to so far.
    batch_bytes: usize,
    producer: Option<Active>,
    is_initialised: bool,
}

/// A producer and what it is doing.
struct Active {
    producer: LaneProducer,
    deliveries: Arc<Deliveries>,
    /// Bytes that it packs into a batch.
    batch_bytes: usize,
    fill: Fill,
    /// Records of the transaction that it took.
    sent: u64,
}

impl LaneSink for KafkaLane {
    fn acquire(
        &mut self,
        claim: (&[u8], &[u8]),
        read: &mut dyn FnMut(&[u8], Option<&[u8]>),
    ) -> Result<(), SinkError> {
        if self.is_initialised {
            self.release();
        }
        self.initialise()?;
        // from here on whatever fails, the next attempt begins with another producer
        self.is_initialised = true;
        self.topics.verify_checkpoints()?;
        self.begin()?;
        self.store(claim.0, claim.1)?;
        let refusals = self.settle()?;
        if let Some(refusal) = refusals.first() {
            let text = format!("the checkpoint topic refuses a claim: {:?}", refusal.reason);
            return Err(SinkError::Refused(text));
        }
        let claimed = self.active()?.deliveries.stored_offset();
        self.commit()?;
        restore::read_until(&self.clients, self.lane, claimed, read)
    }

    fn destination(&mut self, topic: &str) -> Result<Arc<Destination>, DestinationError> {
        let destination = self.topics.destination(topic)?;
        self.batch_bytes = self.batch_bytes.min(destination.max_batch_bytes);
        Ok(destination)
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        let batch_bytes = self.batch_bytes;
        let active = self.active_mut()?;
        if active.batch_bytes > batch_bytes {
            // a full batch would be refused whole: go on with a producer that packs smaller ones
            let text = format!("a topic takes batches of at most {batch_bytes} bytes");
            return Err(SinkError::Unknown(text));
        }
        active.sent = 0;
        active.fill.clear();
        active.deliveries.begin();
        let begun = active.producer.begin_transaction();
        begun.map_err(|error| active.classify(&error))
    }

    fn produce(&mut self, tag: usize, record: &OutRecord<'_>) -> Result<(), ProduceError> {
        let limit = self.clients.settle_timeout();
        let active = self.active_mut()?;
        if !active.fill.add(record) {
            active.flush(Instant::now() + limit);
            active.fill.clear();
            active.fill.add(record);
        }
        let base = BaseRecord {
            topic: record.topic,
            partition: Some(i32::try_from(record.partition).unwrap_or(i32::MAX)),
            payload: record.value,
            key: record.key,
            // librdkafka takes 0 for "now"; the header has the truth
            timestamp: Some(match record.timestamp_ms {
                0 => 1,
                other => other,
            }),
            headers: Some(headers(record)),
            delivery_opaque: active.deliveries.tag(tag),
        };
        active.send(base)
    }

    fn store(&mut self, key: &[u8], value: &[u8]) -> Result<(), SinkError> {
        let topic = self.clients.checkpoint_topic().to_owned();
        let partition = i32::try_from(self.lane).unwrap_or(i32::MAX);
        let active = self.active_mut()?;
        let record = BaseRecord::with_opaque_to(&topic, active.deliveries.tag(STORE_TAG))
            .partition(partition)
            .key(key)
            .payload(value);
        active.send(record).map_err(|error| match error {
            ProduceError::Sink(error) => error,
            ProduceError::Refused(reason) => SinkError::Refused(format!(
                "the checkpoint topic refuses a checkpoint: {}",
                reason.code()
            )),
        })
    }

    fn settle(&mut self) -> Result<Vec<Refusal>, SinkError> {
        let limit = self.clients.settle_timeout();
        let active = self.active_mut()?;
        let deadline = Instant::now() + limit;
        active.flush(deadline);
        let left = deadline.saturating_duration_since(Instant::now());
        let refusals = active.deliveries.wait(active.sent, left);
        let refusals = refusals.map_err(|error| match error {
            SinkError::Unknown(text) => active.fatal(text),
            error @ (SinkError::Fenced | SinkError::Abortable(_) | SinkError::Refused(_)) => error,
        })?;
        for topic in &refusals.stale_topics {
            self.topics.forget(topic);
        }
        Ok(refusals.records)
    }

    fn commit(&mut self) -> Result<CommitEnd, SinkError> {
        let active = self.active_mut()?;
        active.drain_reports();
        active.deliveries.watch_connection();
        let started = Instant::now();
        // the library bounds this by what is left of the transaction's timeout
        let committed = active.producer.commit_transaction(Timeout::Never);
        committed.map_err(|error| active.classify(&error))?;
        let is_suspicious =
            active.deliveries.saw_trouble() || started.elapsed() > SUSPICIOUS_COMMIT;
        if is_suspicious {
            debug!(elapsed = ?started.elapsed(), "A commit may have been sent twice");
            return Ok(CommitEnd::Reacquire);
        }
        Ok(CommitEnd::GoOn)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        let active = self.active_mut()?;
        active.deliveries.watch_connection();
        let aborted = active.producer.abort_transaction(ABORT_TIMEOUT);
        aborted.map_err(|error| match active.classify(&error) {
            SinkError::Abortable(text) => SinkError::Unknown(text),
            error @ (SinkError::Fenced | SinkError::Unknown(_) | SinkError::Refused(_)) => error,
        })?;
        if active.deliveries.saw_trouble() {
            let text = "the connection broke during an abort".to_owned();
            return Err(SinkError::Unknown(text));
        }
        Ok(())
    }

    fn send_alone(&mut self, alone: bool) {
        self.is_alone = alone;
    }

    fn release(&mut self) {
        self.producer = None;
        self.is_initialised = false;
    }
}

impl KafkaLane {
    /// A producer that has fenced its predecessors. One that did not get that far is kept: the call
    /// may be repeated.
    fn initialise(&mut self) -> Result<(), SinkError> {
        if self.producer.is_none() {
            let deliveries = Arc::new(Deliveries::default());
            let batch_bytes = self.batch_bytes;
            let producer =
                self.clients
                    .producer(self.lane, batch_bytes, self.is_alone, deliveries.clone())?;
            self.producer = Some(Active {
                producer,
                deliveries,
                batch_bytes,
                fill: Fill::new(batch_bytes, client::BATCH_RECORDS),
                sent: 0,
            });
        }
        let active = self.active_mut()?;
        let Err(error) = active.producer.init_transactions(INIT_TIMEOUT) else {
            return Ok(());
        };
        let sorted = active.classify(&error);
        if !errors::is_retriable(&error) {
            self.release();
        }
        let words = self.clients.words();
        Err(match sorted {
            SinkError::Unknown(text) => SinkError::Unknown(words.explain(&text)),
            other @ (SinkError::Fenced | SinkError::Abortable(_) | SinkError::Refused(_)) => other,
        })
    }

    fn active(&self) -> Result<&Active, SinkError> {
        self.producer.as_ref().ok_or_else(not_acquired)
    }

    fn active_mut(&mut self) -> Result<&mut Active, SinkError> {
        self.producer.as_mut().ok_or_else(not_acquired)
    }
}

fn not_acquired() -> SinkError {
    SinkError::Unknown("the lane is not acquired".to_owned())
}

impl fmt::Debug for Active {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Active").finish_non_exhaustive()
    }
}

impl Active {
    fn send(&mut self, mut record: BaseRecord<'_, [u8], [u8], usize>) -> Result<(), ProduceError> {
        let mut waited = Duration::ZERO;
        loop {
            let Err((error, back)) = self.producer.send(record) else {
                self.sent += 1;
                return Ok(());
            };
            let code = error.rdkafka_error_code();
            if code == Some(Code::QueueFull) && waited < QUEUE_FULL_TIMEOUT {
                let pause = Duration::from_millis(2);
                std::thread::sleep(pause);
                waited += pause;
                record = back;
                continue;
            }
            if code == Some(Code::State) {
                // a delivery has failed and with it the transaction: its report says why
                self.deliveries.poison();
                return Ok(());
            }
            let reason = code.and_then(errors::record_reason);
            return Err(match reason {
                Some(reason) => ProduceError::Refused(reason),
                None => ProduceError::Sink(self.classify(&error)),
            });
        }
    }

    /// Sends what lingers and waits until the last record is answered for, or until the first refusal:
    /// what stands behind that one in the library's queue is never sent. `settle` finds out which.
    fn flush(&self, deadline: Instant) {
        while !native::flush(&self.producer, FLUSH_STEP)
            && !self.deliveries.has_bad_news()
            && Instant::now() < deadline
        {}
    }

    /// Waits until the library has forgotten the reports that were just read: a moment.
    fn drain_reports(&self) {
        let deadline = Instant::now() + Duration::from_millis(50);
        while self.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn classify(&self, error: &KafkaError) -> SinkError {
        errors::sink_error(error, self.fatal_code())
    }

    /// Behind an unclear failure there may be a clear one.
    fn fatal(&self, text: String) -> SinkError {
        match self.fatal_code() {
            Some(code) => errors::sink_error(&KafkaError::Global(code), Some(code)),
            None => SinkError::Unknown(text),
        }
    }

    fn fatal_code(&self) -> Option<Code> {
        self.producer.client().fatal_error().map(|(code, _)| code)
    }
}

fn headers(record: &OutRecord<'_>) -> OwnedHeaders {
    let mut out = OwnedHeaders::new_with_capacity(record.marks.len() + 2);
    let own = record.headers.clone().into_iter().flatten();
    for header in own.chain(record.marks.iter().copied()) {
        // names are UTF-8 by Kafka's rule; a site that breaks it sees replacement characters
        let name = match std::str::from_utf8(header.name) {
            Ok(name) => Cow::Borrowed(name),
            Err(_) => String::from_utf8_lossy(header.name),
        };
        out = out.insert(Header {
            key: &name,
            value: header.value,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: &str) -> CommitConfig {
        let mut config = CommitConfig::default();
        config.properties.insert(key.to_owned(), value.to_owned());
        config
    }

    #[test]
    fn properties_that_librdkafka_refuses_are_named_without_their_value() {
        assert!(check(&with("client.rack", "a")).is_empty());
        for (key, value) in [("no.such.key", "s3cret"), ("socket.max.fails", "s3cret")] {
            let found = check(&with(key, value));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0.as_deref(), Some(key));
            assert!(!found[0].1.contains("s3cret"), "{found:?}");
        }
    }
}
