//! The one door to the log: whatever protocol a record came by, it passes here.
//!
//! [`Ingest`] finds or creates the topic as the [`TopicsConfig`] says, checks each batch to the last
//! byte (Kafka's checksum, bounded decompression, every record), hands it to the store and returns a
//! [`Pending`] that resolves once the write-ahead log is synced.
//!
//! Always true: nothing unchecked reaches the store; batches that one task appends to a partition
//! reach the store in that order, because [`Ingest::append`] returns only when the store has its batch;
//! bytes that were received and not yet synced stay within [`IngestLimits::max_unsynced_bytes`] for the
//! whole node ([`budget`]).
//!
//! Deliberately not here: sequence numbers of idempotent producers. They are kept with the batches,
//! so the store judges them.

pub mod budget;
mod check;
mod fullness;
mod policy;
mod topics;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shared::ids::TopicName;
use shared::record::RecordError;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex, oneshot};
use tracing::{debug, info, warn};

pub use budget::{Budget, Reservation};
use check::Checker;
pub use fullness::Full;
use fullness::Fullness;
pub use topics::{MAX_PARTITIONS, SettingChange, TopicChangeError};

use crate::config::{Overrides, TopicsConfig};
use crate::quota::Creator;
use crate::store::{Append, AppendError, Appended, Space, StateChange, Store, StoreError, Topic};

/// Pauses between attempts while the store's queue is full: 2, 4, … 128 ms, a quarter of a second in
/// all. A group's sync takes less.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_millis(256);

/// What the door holds producers to.
#[derive(Debug, Clone, Copy)]
pub struct IngestLimits {
    /// Bytes received and not yet synced, over all listeners.
    pub max_unsynced_bytes: usize,
    /// Most bytes that one batch may decompress to.
    pub max_uncompressed_bytes: usize,
    /// Large compressed batches checked at a time; with the limit above it bounds their memory.
    pub max_parallel_checks: usize,
}

impl Default for IngestLimits {
    fn default() -> Self {
        Self {
            // a small box has 64 MiB for the whole process: a third of it
            max_unsynced_bytes: 24 * 1024 * 1024,
            // what every hub takes in one batch, less the link's framing
            max_uncompressed_bytes: 4 * 1024 * 1024 - 4096,
            max_parallel_checks: 2,
        }
    }
}

/// Why a topic could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Not a name that Kafka accepts.
    #[error("topic name {0}")]
    InvalidName(#[from] shared::ids::NameError),
    /// It does not exist, and may not be created this way.
    #[error("topic `{0}` does not exist and may not be created: {1}")]
    Unknown(String, &'static str),
    /// Whoever asks for it has created as many topics as it may.
    #[error("topic `{0}` does not exist, and the user has created as many topics as it may")]
    TooMany(String),
    /// The disk failed while it was created.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a batch was refused before or by the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The topic has no such partition.
    #[error("no such partition")]
    UnknownPartition,
    /// The bytes are not a batch that may be stored.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The store refused it.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Counters of the door, for metrics.
#[derive(Debug, Default)]
pub struct IngestStats {
    /// Batches handed to the store.
    pub batches: AtomicU64,
    /// Records in them.
    pub records: AtomicU64,
    /// Bytes of them as received.
    pub bytes: AtomicU64,
    /// Batches refused because of what they are.
    pub refused: AtomicU64,
    /// Batches that the store refused because it is full.
    pub full: AtomicU64,
    /// Topics created on demand.
    pub topics_created: AtomicU64,
    /// Why the store refused a batch last, until the watch has taken it.
    refusal: std::sync::Mutex<Option<&'static str>>,
    fullness: std::sync::Mutex<Fullness>,
}

impl IngestStats {
    fn refusal(&self) -> std::sync::MutexGuard<'_, Option<&'static str>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when producers are refused because the site is full.
    #[must_use]
    pub fn full_since(&self) -> Option<Full> {
        let fullness = self.fullness.lock();
        fullness.unwrap_or_else(PoisonError::into_inner).full()
    }

    /// Looks whether the site became full, or has room again, and tells so. To be called every second.
    pub fn review(&self, space: &Space, now: Duration, wall_ms: i64) {
        let refusal = self.refusal().take();
        let mut fullness = self.fullness.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = refusal {
            if fullness.refused(why, space, now, wall_ms) {
                warn!(why, "Site is full: producers are refused");
            }
        } else if fullness.review(space, now).is_some() {
            info!("Site has room again");
        }
    }
}

/// Handle to the door. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    topics: TopicsConfig,
    budget: Budget,
    checker: Checker,
    /// Held while a topic is created or changed, so that the limit on their number holds.
    creating: Mutex<()>,
    /// What clients set for topics.
    given: topics::Given,
    stats: Arc<IngestStats>,
}

type Outcome = Result<Appended, AppendError>;

/// The store's answer, or what it will come by.
#[derive(Debug)]
enum Answer {
    Here(Outcome),
    Waiting(oneshot::Receiver<Outcome>),
}

/// A batch on its way to the disk.
#[derive(Debug)]
pub struct Pending {
    answer: Answer,
    stats: Arc<IngestStats>,
    /// Records in the batch.
    pub count: u32,
}

impl Pending {
    /// Waits for the sync. Whoever gets `Ok` may acknowledge.
    ///
    /// # Errors
    /// The store's refusal.
    pub async fn synced(self) -> Result<Appended, AppendError> {
        let outcome = match self.answer {
            Answer::Here(outcome) => outcome,
            Answer::Waiting(receiver) => receiver.await.unwrap_or_else(|_| Err(stopped())),
        };
        if let Err(AppendError::Full(why)) = outcome {
            self.stats.full.fetch_add(1, Ordering::Relaxed);
            *self.stats.refusal() = Some(why);
        }
        outcome
    }
}

impl Ingest {
    /// A door to `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, topics: TopicsConfig, limits: IngestLimits) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                topics,
                budget: Budget::new(limits.max_unsynced_bytes),
                checker: Checker::new(limits.max_uncompressed_bytes, limits.max_parallel_checks),
                creating: Mutex::new(()),
                given: topics::Given::default(),
                stats: Arc::default(),
            }),
        }
    }

    /// Counters, for metrics.
    #[must_use]
    pub fn stats(&self) -> &Arc<IngestStats> {
        &self.inner.stats
    }

    /// What the configuration file says of topics.
    #[must_use]
    pub fn config(&self) -> &TopicsConfig {
        &self.inner.topics
    }

    /// The node-wide budget of received bytes.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.inner.budget
    }

    /// Creates the topics that the configuration names, and gives every stored topic the rules and
    /// partitions that it and clients ask for. Blocks: call it once, on start.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    pub fn apply_topics(&self) -> Result<(), StoreError> {
        self.load_given()?;
        for topic in self.inner.store.topics() {
            self.ensure(&topic.name)?;
        }
        for (name, _) in self.inner.topics.declared() {
            self.ensure(&name)?;
        }
        Ok(())
    }

    fn ensure(&self, name: &TopicName) -> Result<Arc<Topic>, StoreError> {
        let settings = self.settings(name.as_str());
        self.inner
            .store
            .ensure_topic(name, settings.partitions, settings.rules())
    }

    /// All topics by name.
    #[must_use]
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.inner.store.topics()
    }

    /// The topic of this name, if there is one.
    #[must_use]
    pub fn known(&self, name: &str) -> Option<Arc<Topic>> {
        self.inner.store.topic(name)
    }

    /// The topic, created when it is missing, `may_create` is set and the policy allows it.
    ///
    /// # Errors
    /// [`TopicError`] says why there is none.
    pub async fn topic(&self, name: &str, may_create: bool) -> Result<Arc<Topic>, TopicError> {
        self.topic_for(name, may_create.then(Creator::default))
            .await
    }

    /// As [`Ingest::topic`], created for somebody; `None`: it is not created.
    ///
    /// # Errors
    /// [`TopicError`] says why there is none.
    pub async fn topic_for(
        &self,
        name: &str,
        creator: Option<Creator<'_>>,
    ) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = self.known(name) {
            return Ok(topic);
        }
        let name = TopicName::new(name)?;
        match creator {
            Some(creator) => self.create(name, creator).await,
            None => Err(TopicError::Unknown(name.into(), "it was not asked for")),
        }
    }

    async fn create(
        &self,
        name: TopicName,
        creator: Creator<'_>,
    ) -> Result<Arc<Topic>, TopicError> {
        let _creating = self.inner.creating.lock().await;
        if let Some(topic) = self.inner.store.topic(name.as_str()) {
            return Ok(topic);
        }
        let topics = self.inner.store.topics().len();
        if let Err(reason) = policy::may_create(&self.inner.topics, &name, topics) {
            debug!(topic = %name, reason, "Topic not created");
            return Err(TopicError::Unknown(name.into(), reason));
        }
        if creator.most.is_some() {
            if !self.inner.given.has_room(creator, &*self.inner.store) {
                debug!(topic = %name, creator.name, "Topic not created: the user has as many as it may");
                return Err(TopicError::TooMany(name.into()));
            }
            let mut given = Overrides::default();
            given.set_creator(creator.name);
            self.give(&name, given).await?;
        }
        let topic = self.ensure_aside(name).await?;
        self.inner
            .stats
            .topics_created
            .fetch_add(1, Ordering::Relaxed);
        info!(topic = %topic.name, partitions = topic.partitions.len(), "Topic created on demand");
        Ok(topic)
    }

    /// Checks a batch and queues it for the store. Returns when the store has it in its queue: await
    /// one append before the next to keep their order.
    ///
    /// # Errors
    /// [`Refusal`] when it never reached the store.
    pub async fn append(
        &self,
        topic: &Topic,
        partition: u32,
        batch: Bytes,
    ) -> Result<Pending, Refusal> {
        self.append_with(topic, partition, batch, Vec::new()).await
    }

    /// As [`Ingest::append`], with facts that are on disk if and only if the batch is.
    ///
    /// # Errors
    /// [`Refusal`] when it never reached the store.
    pub async fn append_with(
        &self,
        topic: &Topic,
        partition: u32,
        batch: Bytes,
        state: Vec<StateChange>,
    ) -> Result<Pending, Refusal> {
        let partition = usize::try_from(partition)
            .ok()
            .and_then(|index| topic.partitions.get(index))
            .ok_or(Refusal::UnknownPartition)?;
        let header = match self
            .inner
            .checker
            .check(&batch, topic.rules.max_batch_bytes)
            .await
        {
            Ok(header) => header,
            Err(refusal) => {
                self.inner.stats.refused.fetch_add(1, Ordering::Relaxed);
                debug!(topic = %topic.name, %refusal, "Batch refused");
                return Err(refusal);
            }
        };
        let stats = &self.inner.stats;
        stats.batches.fetch_add(1, Ordering::Relaxed);
        stats
            .records
            .fetch_add(u64::from(header.count), Ordering::Relaxed);
        stats.bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let append = Append {
            partition: *partition,
            batch,
            header,
            state,
        };
        Ok(Pending {
            answer: self.hand_over(append).await,
            stats: stats.clone(),
            count: header.count,
        })
    }

    /// Hands a batch to the store. When its queue is full it says so at once: that passes, and to wait
    /// here keeps the order of what comes behind.
    async fn hand_over(&self, append: Append) -> Answer {
        let mut pause = FIRST_PAUSE;
        loop {
            let copy = Append {
                batch: append.batch.clone(),
                state: append.state.clone(),
                ..append
            };
            let mut receiver = self.inner.store.append(copy);
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => return Answer::Waiting(receiver),
                Err(TryRecvError::Closed) => return Answer::Here(Err(stopped())),
                Ok(Err(AppendError::Full(_))) if pause < LAST_PAUSE => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Ok(outcome) => return Answer::Here(outcome),
            }
        }
    }

    /// A producer id that the store never gave out before.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    pub async fn next_producer_id(&self) -> Result<i64, StoreError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.store.next_producer_id())
            .await
            .unwrap_or_else(|error| Err(StoreError::Io(format!("producer id: {error}"))))
    }
}

fn stopped() -> AppendError {
    AppendError::Unavailable("the store stopped before it answered".to_owned())
}

#[cfg(test)]
pub(crate) mod tests;
