//! The log: every record that the site accepted, until retention lets it go.
//!
//! [`Store`] is the port; `RocksStore` keeps it on disk, `MemoryStore` is its in-memory twin, and one
//! contract suite runs against both.
//!
//! Always true, for every partition: `start <= acked <= end`, and each offset in `start..end` is
//! either in exactly one stored batch or in exactly one gap.

/// The part of [`Store`] that both stores leave to their engine as it is.
macro_rules! delegate_to_engine {
    () => {
        fn ensure_topic(
            &self,
            name: &TopicName,
            partitions: u32,
            rules: TopicRules,
        ) -> Result<Arc<Topic>, StoreError> {
            self.engine.ensure_topic(name, partitions, rules)
        }

        fn topics(&self) -> Vec<Arc<Topic>> {
            self.engine.book().topics.values().cloned().collect()
        }

        fn topic(&self, name: &str) -> Option<Arc<Topic>> {
            self.engine.book().topics.get(name).cloned()
        }

        fn delete_records(
            &self,
            partition: PartitionId,
            before: Offset,
        ) -> Result<LogRange, StoreError> {
            self.engine.delete_records(partition, before)
        }

        fn delete_topic(&self, name: &str) -> Result<(), DeleteError> {
            self.engine.delete_topic(name)
        }

        fn logs(&self) -> Vec<Log> {
            self.engine.book().logs()
        }

        fn next_producer_id(&self) -> Result<i64, StoreError> {
            self.engine.next_producer_id()
        }

        fn state(
            &self,
            space: StateSpace,
            prefix: &[u8],
        ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
            self.engine.state(space, prefix)
        }

        fn read(
            &self,
            partition: PartitionId,
            from: Offset,
            max_bytes: usize,
        ) -> Result<Vec<Item>, StoreError> {
            self.engine.read(partition, from, max_bytes)
        }

        fn browse(
            &self,
            partition: PartitionId,
            from: Offset,
            max_bytes: usize,
        ) -> Result<Vec<Item>, StoreError> {
            self.engine.browse(partition, from, max_bytes)
        }

        fn fetch(
            &self,
            partition: PartitionId,
            from: Offset,
            limit: FetchLimit,
            out: &mut Vec<u8>,
        ) -> Result<Fetched, StoreError> {
            self.engine.fetch(partition, from, limit, out)
        }

        fn range(&self, partition: PartitionId) -> Result<LogRange, StoreError> {
            self.engine.range(partition)
        }

        fn offset_for_time(
            &self,
            partition: PartitionId,
            timestamp_ms: i64,
        ) -> Result<Option<Moment>, StoreError> {
            self.engine.offset_for_time(partition, timestamp_ms)
        }

        fn largest_timestamp(&self, partition: PartitionId) -> Result<Option<Moment>, StoreError> {
            self.engine.largest_timestamp(partition)
        }

        fn chain_at(
            &self,
            partition: PartitionId,
            offset: Offset,
        ) -> Result<Option<u64>, StoreError> {
            self.engine.chain_at(partition, offset)
        }

        fn acknowledge(
            &self,
            partition: PartitionId,
            track: Track,
            next: Offset,
        ) -> Result<(), StoreError> {
            self.engine.acknowledge(partition, track, next)
        }

        fn split(&self, partition: PartitionId) -> Result<bool, StoreError> {
            self.engine.split(partition)
        }

        fn sweep(&self, wall_ms: i64) -> Result<(), StoreError> {
            self.engine.sweep(wall_ms)
        }

        fn incarnation(&self) -> Incarnation {
            self.engine.book().incarnation()
        }

        fn ledger(&self) -> Vec<(TopicName, Ledger)> {
            self.engine.book().ledger()
        }

        fn space(&self) -> Space {
            self.engine.space()
        }

        fn changes(&self) -> watch::Receiver<u64> {
            self.engine.changes()
        }

        fn failure(&self) -> watch::Receiver<Option<StoreError>> {
            self.engine.failure()
        }
    };
}

mod age;
mod book;
mod config;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod crash_tests;
mod deletion;
mod disk;
mod draft;
mod ends;
mod engine;
#[cfg(test)]
mod fault_tests;
mod keys;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod local_tests;
mod lock;
mod memory;
#[cfg(test)]
mod model_tests;
mod node;
mod partition;
mod producers;
mod readable;
mod reader;
mod recovery;
mod repair;
mod retention;
mod rocks;
mod space;
mod state;
mod timeline;
mod tracks;
mod trim;
mod tuning;
mod value;
mod writer;

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName, Track};
use shared::record::BatchHeader;
use tokio::sync::{oneshot, watch};

pub use config::StoreConfig;
pub use memory::MemoryStore;
pub use node::{RocksStore, StartReport};
pub use recovery::DamagedRange;
pub use repair::Salvage;
pub use state::{StateChange, StateKey, StateSpace};
pub use tracks::{TrackView, Tracks};

/// Why an append is refused that would go past the node's quota.
pub const QUOTA_FULL: &str = "the node is at its byte quota and nothing may be deleted";
/// Why an append is refused when the file system has less left than it should.
pub const DISK_LOW: &str = "the disk is nearly full";
/// Why an append is refused that the file system had no room for.
pub const DISK_FULL: &str = "the disk is full";

/// A partition's number in the store, unique over all topics and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

/// What happens to an append when nothing may be deleted to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Refuse it: the producer retries.
    Backpressure,
    /// Drop the oldest unsent records and leave a gap.
    DropOldest,
    /// Acknowledge and drop it, and leave a gap in its place.
    DropNewest,
}

/// A topic's rules. Change with the config file, not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRules {
    /// Records older than this go, sent or not (unsent ones leave a gap). `None`: no limit.
    pub retention_ms: Option<u64>,
    /// Logical bytes of the topic, all partitions; acknowledged records go first. `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// What happens when only unsent records are left to delete.
    pub on_full: OnFull,
    /// Largest record batch accepted, bytes.
    pub max_batch_bytes: usize,
}

/// A topic and its partitions.
#[derive(Debug, Clone)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// Ids of partitions 0, 1, ….
    pub partitions: Vec<PartitionId>,
    /// The rules in force.
    pub rules: Arc<TopicRules>,
}

/// A batch to append. The ingest door has checked it to the last byte.
#[derive(Debug)]
pub struct Append {
    /// Where to.
    pub partition: PartitionId,
    /// One record batch, version 2, verbatim.
    pub batch: Bytes,
    /// Its header, parsed.
    pub header: BatchHeader,
    /// Facts that are written with it, and not when it is refused or was appended before.
    pub state: Vec<StateChange>,
}

/// Where an append went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// True when an idempotent producer had sent it before: nothing was appended.
    pub is_duplicate: bool,
    /// First offset of the log, for the Kafka response.
    pub log_start: Offset,
}

/// Why an append was refused. Variants say what the producer should do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No such partition.
    #[error("no such partition")]
    UnknownPartition,
    /// The sequence number leaves a hole (Kafka: `OUT_OF_ORDER_SEQUENCE_NUMBER`).
    #[error("sequence {found} of producer {producer}, expected {expected}")]
    OutOfOrderSequence {
        producer: i64,
        found: i32,
        expected: i32,
    },
    /// A newer epoch of this producer id is at work (Kafka: `INVALID_PRODUCER_EPOCH`).
    #[error("epoch {found} of producer {producer} is fenced by {current}")]
    ProducerFenced {
        producer: i64,
        found: i16,
        current: i16,
    },
    /// A quota, or the disk, is full: try again later.
    #[error("the store is full: {0}")]
    Full(&'static str),
    /// The disk failed, or the store is stopping: nothing is known of the batch but that it was not
    /// acknowledged.
    #[error("the store is not available: {0}")]
    Unavailable(String),
}

/// Why a range of offsets has no records. Values are stored and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum GapReason {
    /// Retention by age passed records that were not sent.
    Expired = 1,
    /// A topic's byte limit, with `on_full = "drop-oldest"`.
    DroppedOldest = 2,
    /// A topic's byte limit, with `on_full = "drop-newest"`.
    DroppedNewest = 3,
    /// The disk lost or damaged them.
    Damaged = 4,
    /// A client deleted them before they were sent. 5 is the link's own: not at the site.
    Deleted = 6,
}

/// What stands in the log at some offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A record batch with its base offset patched in.
    Batch {
        /// Verbatim record batch.
        batch: Bytes,
        /// Offset of its first record.
        base_offset: Offset,
        /// Offset after its last record.
        next_offset: Offset,
        /// History of the partition up to `next_offset`: see [`Store::chain_at`].
        chain: u64,
    },
    /// A range without records.
    Gap {
        /// First offset that is missing.
        from: Offset,
        /// Offset after the last one missing.
        to: Offset,
        /// Why.
        reason: GapReason,
        /// History of the partition up to `to`.
        chain: u64,
    },
}

/// How much [`Store::fetch`] may append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimit {
    /// Bytes of batches.
    pub bytes: usize,
    /// The first batch is taken whole even when it is larger, so that a reader always gets on.
    pub is_first_whole: bool,
}

/// What [`Store::fetch`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// The ends of the log at that time.
    pub range: LogRange,
    /// The offset after the last batch that was appended and the gaps that were stepped over.
    pub next: Offset,
}

/// A record's place in a log and in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Its offset.
    pub offset: Offset,
    /// Its timestamp, ms since the epoch.
    pub timestamp_ms: i64,
}

/// The ends of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// First offset of this incarnation: what lies below was replicated, or given up, under an earlier
    /// one. At most `acked`.
    pub origin: Offset,
    /// First offset still stored, or of a gap that the hub was not told of.
    pub start: Offset,
    /// First offset for readers at the site: `start`, or the end of the gap that stands there.
    pub first: Offset,
    /// Next offset that the hub has not acknowledged.
    pub acked: Offset,
    /// Next offset to be assigned; everything below is synced.
    pub end: Offset,
    /// Bytes of all batches that were ever appended.
    pub bytes: u64,
    /// How it is spread over its tracks. `acked` is the main track's.
    pub tracks: Tracks,
}

/// The delivery ledger of one topic, in records:
/// `accepted = committed + queued + expired + dropped_oldest + dropped_newest + damaged + deleted`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Acknowledged to producers, all partitions, since the store was created.
    pub accepted: u64,
    /// Acknowledged by the hub as committed. Records that were sent before they became a gap are taken out
    /// of those below when the hub acknowledges them after all.
    pub committed: u64,
    /// Stored and not yet acknowledged by the hub.
    pub queued: u64,
    /// Logical bytes of the queued records as stored.
    pub queued_bytes: u64,
    /// Unsent records that aged out.
    pub expired: u64,
    /// Unsent records dropped by `drop-oldest`.
    pub dropped_oldest: u64,
    /// Records dropped by `drop-newest`.
    pub dropped_newest: u64,
    /// Records that the disk lost.
    pub damaged: u64,
    /// Unsent records that a client deleted.
    pub deleted: u64,
}

/// What is stored and what may be, in logical bytes of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Stored, over all topics.
    pub stored_bytes: u64,
    /// Of these, acknowledged by the hub: deleted when room is needed.
    pub acked_bytes: u64,
    /// As much as may be stored; `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// Free bytes of the file system, where there is one.
    pub free_bytes: Option<u64>,
    /// The file system has less than it should.
    pub is_disk_low: bool,
}

/// The store failed. Everything here but `Corrupt` is passing or final for the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such partition.
    #[error("no such partition")]
    UnknownPartition,
    /// Stored bytes are damaged: the node must stop and salvage on its next start, which it is
    /// marked for.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// RocksDB or the disk failed.
    #[error("the store failed: {0}")]
    Io(String),
}

/// Why a topic was not deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// No such topic.
    #[error("no such topic")]
    UnknownTopic,
    /// The hub lacks records of it.
    #[error(
        "{0} records of the topic are not at the hub yet: wait for the link, or delete these records first"
    )]
    Unsent(u64),
    /// What is remembered of deleted topics has a limit.
    #[error("as many topics were deleted as can be remembered")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One partition's log, for who sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Its id.
    pub id: PartitionId,
    /// The topic's name.
    pub topic: TopicName,
    /// The partition's number.
    pub partition: u32,
}

/// The port to the log. Calls read memory or disk and may block for a disk read or a sync; only
/// [`Store::append`] never blocks. Implementations are shared between tasks.
pub trait Store: Debug + Send + Sync + 'static {
    /// Creates the topic, or returns it when it exists (more partitions than before are added, fewer
    /// are ignored). Synced.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn ensure_topic(
        &self,
        name: &TopicName,
        partitions: u32,
        rules: TopicRules,
    ) -> Result<Arc<Topic>, StoreError>;

    /// All topics by name.
    fn topics(&self) -> Vec<Arc<Topic>>;

    /// A topic by name.
    fn topic(&self, name: &str) -> Option<Arc<Topic>>;

    /// Lets records before `before` go because a client says so; unsent ones leave a gap. The cut is the
    /// boundary of batches at or before `before`. Synced.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn delete_records(
        &self,
        partition: PartitionId,
        before: Offset,
    ) -> Result<LogRange, StoreError>;

    /// Takes a topic away, with all its records; the hub has them, or knows that they were deleted. Its offsets
    /// are never given again: should the topic be created anew, its logs go on where they ended. Synced.
    ///
    /// # Errors
    /// [`DeleteError`] says why it is still there.
    fn delete_topic(&self, name: &str) -> Result<(), DeleteError>;

    /// The logs that the hub is to have: those of all topics, and of deleted ones with gaps that it was not told
    /// of.
    fn logs(&self) -> Vec<Log>;

    /// Queues a batch for the group-committing writer. The answer comes after the write-ahead log was
    /// synced: whoever gets `Ok` may acknowledge. A full queue answers [`AppendError::Full`] at once.
    fn append(&self, append: Append) -> oneshot::Receiver<Result<Appended, AppendError>>;

    /// Writes facts, all or none, in their place between the appends before and after. The answer comes
    /// after the sync. Refused when the queue or the disk is full, as an append is.
    fn put_state(&self, changes: Vec<StateChange>) -> oneshot::Receiver<Result<(), AppendError>>;

    /// Facts of a space whose keys begin with `prefix`, in the order of their keys.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn state(&self, space: StateSpace, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// A producer id that this store never gave out before (KIP-98), with epoch 0.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn next_producer_id(&self) -> Result<i64, StoreError>;

    /// Items in order from the one that holds `from`, until `max_bytes` are exceeded (at least one
    /// item when there is any). `from` below the start reads from the start, and nothing of the other track's part
    /// comes behind what stands before it. Only synced records.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a block's checksum is wrong.
    fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Item>, StoreError>;

    /// As [`Store::read`], for readers at the site: what they see of a gap is not what the hub is told of
    /// it, and the ledger keeps those apart. What is gone from the log's start is a gap, deleted.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn browse(
        &self,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Item>, StoreError>;

    /// Appends batches as they are stored to `out`, for a reader at the site: from the one that holds `from`,
    /// one behind the other, as far as `limit` allows. Gaps are stepped over, and are not taken for told to
    /// the hub by it. Nothing is appended when `from` lies outside of the log. Only synced records.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn fetch(
        &self,
        partition: PartitionId,
        from: Offset,
        limit: FetchLimit,
        out: &mut Vec<u8>,
    ) -> Result<Fetched, StoreError>;

    /// The partition's ends.
    ///
    /// # Errors
    /// [`StoreError::UnknownPartition`].
    fn range(&self, partition: PartitionId) -> Result<LogRange, StoreError>;

    /// The first stored record whose timestamp is `timestamp_ms` or later, in the order of offsets. Timestamps
    /// are what producers wrote, and batches are held to what their headers say of them.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn offset_for_time(
        &self,
        partition: PartitionId,
        timestamp_ms: i64,
    ) -> Result<Option<Moment>, StoreError>;

    /// The first stored record with the largest timestamp of the log.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn largest_timestamp(&self, partition: PartitionId) -> Result<Option<Moment>, StoreError>;

    /// A value that depends on every batch and gap before `offset`: chained from each batch's checksum.
    /// Two stores with the same chain at the same offset have the same history. `None` when `offset` is
    /// not a batch boundary that is still known. The chain at the acked offset is always known, and at 0
    /// it is 0.
    ///
    /// # Errors
    /// As [`Store::read`].
    fn chain_at(&self, partition: PartitionId, offset: Offset) -> Result<Option<u64>, StoreError>;

    /// The hub holds everything that a track has before `next` (a batch boundary): its cursor moves up, never
    /// down. Written without a sync: after a crash the hub tells it again.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn acknowledge(
        &self,
        partition: PartitionId,
        track: Track,
        next: Offset,
    ) -> Result<(), StoreError>;

    /// What is appended from here on goes by the partition's other track, past the backlog. Synced. False when
    /// that track has a part already, when there is no backlog, or when the disk is full.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn split(&self, partition: PartitionId) -> Result<bool, StoreError>;

    /// Applies retention by age and bytes to all topics, with the wall clock's time.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn sweep(&self, wall_ms: i64) -> Result<(), StoreError>;

    /// The store's incarnation.
    fn incarnation(&self) -> Incarnation;

    /// Mints a new incarnation because this store's history is not the one that the hub holds. What the hub
    /// holds of histories that agree is acknowledged before. Unacked
    /// records are sent again under the new one: each partition's acked offset becomes its origin. Synced.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails.
    fn renew_incarnation(&self) -> Result<Incarnation, StoreError>;

    /// The delivery ledger of every topic.
    fn ledger(&self) -> Vec<(TopicName, Ledger)>;

    /// What is stored, what may be, and what the disk has left.
    fn space(&self) -> Space;

    /// Changes whenever something was appended or a topic was created: wake-up for readers.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The first error after which nothing more is acknowledged, if any: the node should stop.
    fn failure(&self) -> watch::Receiver<Option<StoreError>>;
}
