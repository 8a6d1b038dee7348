//! What the engine needs of a disk: [`Disk`], with RocksDB and memory behind it.

use std::fmt::Debug;

use bytes::Bytes;
use shared::ids::Offset;

use super::partition::{Gap, Partition};
use super::producers::{ProducerKey, ProducerState};
use super::state::{StateChange, StateSpace};
use super::value::{BatchHead, IndexEntry, StoreRecord};
use super::{PartitionId, StoreError};

/// Why the disk did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DiskError {
    /// No space: passes when there is some again.
    Full(String),
    /// Stored bytes are not what they were.
    Corrupt(String),
    /// Anything else: nothing is acknowledged until the store was opened again.
    Failed(String),
}

impl From<DiskError> for StoreError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Corrupt(why) => Self::Corrupt(why),
            DiskError::Full(why) | DiskError::Failed(why) => Self::Io(why),
        }
    }
}

/// One change. A commit is a list of them that holds as a whole or not at all, in order.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A batch; its base offset is patched in on the way.
    PutBatch {
        partition: PartitionId,
        base: Offset,
        head: BatchHead,
        batch: Bytes,
    },
    PutIndex {
        partition: PartitionId,
        entry: IndexEntry,
    },
    /// Deletes batches and index entries from `from` up to and without `to`.
    Delete {
        partition: PartitionId,
        from: Offset,
        to: Offset,
    },
    PutGap {
        partition: PartitionId,
        gap: Gap,
    },
    DeleteGap {
        partition: PartitionId,
        from: Offset,
    },
    PutPartition {
        partition: PartitionId,
        books: Partition,
    },
    PutProducer {
        key: ProducerKey,
        state: ProducerState,
    },
    DeleteProducer(ProducerKey),
    PutState(StateChange),
    PutStore(StoreRecord),
}

/// A stored batch as a scan shows it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) base: Offset,
    pub(super) head: BatchHead,
    pub(super) batch: Bytes,
}

impl Stored {
    pub(super) fn next(&self) -> Offset {
        self.base + u64::from(self.head.count)
    }
}

/// A stored batch where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredRef<'a> {
    pub(super) base: Offset,
    pub(super) head: BatchHead,
    pub(super) batch: &'a [u8],
}

impl StoredRef<'_> {
    pub(super) fn next(&self) -> Offset {
        self.base + u64::from(self.head.count)
    }
}

/// Batches in order, as they were when the scan began.
pub(super) trait Scan {
    /// The next batch, in the scan's own memory.
    fn step(&mut self) -> Result<Option<StoredRef<'_>>, DiskError>;

    /// The next batch in memory of its own.
    fn next(&mut self) -> Result<Option<Stored>, DiskError> {
        Ok(self.step()?.map(|found| Stored {
            base: found.base,
            head: found.head,
            batch: Bytes::copy_from_slice(found.batch),
        }))
    }
}

/// The port to what keeps the bytes.
pub(super) trait Disk: Debug + Send + Sync + 'static {
    /// Carries out all of it or nothing; with `is_synced` it returns once it survives a power cut.
    fn commit(&self, ops: &[Op], is_synced: bool) -> Result<(), DiskError>;

    /// Batches of a partition from the one that holds `from`, up to and without `to`.
    fn scan(&self, partition: PartitionId, from: Offset, to: Offset) -> Box<dyn Scan + '_>;

    /// Shows index entries with `from < offset < to` in order, until `visit` says false.
    fn index(
        &self,
        partition: PartitionId,
        from: Offset,
        to: Offset,
        visit: &mut dyn FnMut(&IndexEntry) -> bool,
    ) -> Result<(), DiskError>;

    /// Facts of a space whose keys begin with `prefix`, in the order of their keys.
    fn state(&self, space: StateSpace, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, DiskError>;

    /// Everything of the partition below `to` is deleted: gives the space back.
    fn reclaim(&self, _partition: PartitionId, _to: Offset) -> Result<(), DiskError> {
        Ok(())
    }

    /// Less free space than there should be?
    fn is_low(&self) -> bool {
        false
    }

    /// Free bytes, where there is a limit to them.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// A deletion found no space: frees some that was set aside. False when there is none.
    fn open_reserve(&self) -> bool {
        false
    }

    /// Looks after what was set aside, after files kept for inspection, and after what is deleted and takes space
    /// all the same, where there is little. So many bytes of batches are not deleted.
    fn maintain(&self, _stored_bytes: u64) {}

    /// Notes for the next start that stored bytes are damaged.
    fn mark_damaged(&self, _why: &str) {}
}
