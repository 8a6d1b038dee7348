//! What clients delete: records from the start of a log, and topics.
//!
//! Never silent: unsent records leave a gap with a reason of its own, and a topic goes only when none of its
//! records is unsent. What stays of a deleted topic are its partitions' books: offsets are never given
//! twice, so a topic of the same name goes on where the old one ended, and gaps are still told to the hub.

use shared::ids::Offset;

use super::disk::Disk;
use super::draft::Draft;
use super::engine::Engine;
use super::partition::{Partition, Point};
use super::{DeleteError, GapReason, LogRange, PartitionId, StoreError};

/// Most partitions of deleted topics whose books are kept: a kilobyte each on disk.
const MAX_RETIRED: usize = 10_000;

impl<D: Disk> Engine<D> {
    pub(super) fn delete_records(
        &self,
        id: PartitionId,
        before: Offset,
    ) -> Result<LogRange, StoreError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let cut = self.last_boundary(id, before)?;
        let change = {
            let book = self.book();
            let mut draft = Draft::new(&book, &self.disk, self.limits, false);
            draft.trim(id, cut, GapReason::Deleted);
            draft.finish()
        };
        if !change.ops.is_empty() {
            self.commit(change, true, &mut writing.unclean)
                .map_err(|error| self.fail_lasting(error))?;
            // the gap is news to the hub
            self.changes.send_modify(|n| *n += 1);
        }
        self.range(id)
    }

    /// The last boundary at or before `offset`.
    fn last_boundary(&self, id: PartitionId, offset: Offset) -> Result<Point, StoreError> {
        let book = self.book();
        let p = book.partition(id).ok_or(StoreError::UnknownPartition)?;
        if offset <= p.start.offset {
            return Ok(p.start);
        }
        if offset >= p.end.offset {
            return Ok(p.end);
        }
        if let Some(point) = p.known_point(offset) {
            return Ok(point);
        }
        if let Some(gap) = p.gap_at(offset) {
            return Ok(gap.from);
        }
        let start = p.start;
        let mut scan = self.disk.scan(id, offset, p.end.offset);
        drop(book);
        let found = scan.step().map_err(|error| self.fail(error))?;
        Ok(found
            .filter(|stored| stored.base <= offset)
            .map_or(start, |stored| Point {
                offset: stored.base,
                chain: stored.head.chain,
                bytes: stored.head.bytes,
            }))
    }

    pub(super) fn delete_topic(&self, name: &str) -> Result<(), DeleteError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let change = {
            let book = self.book();
            let topic = book.topics.get(name).ok_or(DeleteError::UnknownTopic)?;
            let partitions = topic.partitions.iter();
            let unsent = partitions.filter_map(|id| book.partition(*id).map(Partition::queued));
            match unsent.sum() {
                0 => {}
                records => return Err(DeleteError::Unsent(records)),
            }
            let retired = book.partitions().filter(|(_, p)| p.is_retired).count();
            if retired + topic.partitions.len() > MAX_RETIRED {
                return Err(DeleteError::TooMany);
            }
            let mut draft = Draft::new(&book, &self.disk, self.limits, false);
            for id in &topic.partitions {
                if let Some(end) = book.partition(*id).map(|p| p.end) {
                    draft.trim(*id, end, GapReason::Deleted);
                    draft.edit(*id, |p| p.is_retired = true);
                }
            }
            draft.finish()
        };
        self.commit(change, true, &mut writing.unclean)
            .map_err(|error| self.fail_lasting(error))?;
        self.book_mut().topics.remove(name);
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }
}
