//! Where in a log a point in time is.
//!
//! The time index cuts a log into blocks, and each entry knows the largest timestamp of the block that it
//! ends. Producers' clocks go back and forth, so timestamps are in no order and the blocks are gone through
//! from the start; a block is read only when a record in it may be the answer. So the answer is exact, and
//! costs an index entry for each block before it.
//!
//! ```text
//! start          entry          entry          end
//!   │── block ─────│── block ─────│── block ────│
//!        max 17 ──►│     max 12 ─►│    not known: no entry ends it yet
//! ```

use bytes::Bytes;
use shared::ids::Offset;
use shared::record::{self, BatchHeader, Records};

use super::disk::{Disk, StoredRef};
use super::engine::Engine;
use super::partition::Partition;
use super::{Moment, PartitionId, StoreError};

/// Most bytes that a batch is decompressed to; the door let in none that is larger.
const MAX_BATCH_BYTES: usize = 16 << 20;

/// A stretch of a log between two entries of its time index.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    from: Offset,
    to: Offset,
}

impl<D: Disk> Engine<D> {
    pub(super) fn offset_for_time(
        &self,
        id: PartitionId,
        timestamp_ms: i64,
    ) -> Result<Option<Moment>, StoreError> {
        let p = self.books(id)?;
        let is_late = |moment: &Moment| moment.timestamp_ms >= timestamp_ms;
        let mut at = p.start.offset;
        while at < p.end.offset {
            let stretch = self.next_stretch(&p, id, at, timestamp_ms)?;
            let mut found = None;
            self.each_batch(&p, id, stretch, &mut |batch, header| {
                if header.max_timestamp_ms >= timestamp_ms {
                    let batch_bytes = Bytes::copy_from_slice(batch.batch);
                    let moments = moments(&batch_bytes, batch.base, header);
                    found = moments.into_iter().find(is_late);
                }
                found.is_none()
            })?;
            if found.is_some() {
                return Ok(found);
            }
            at = stretch.to;
        }
        Ok(None)
    }

    pub(super) fn largest_timestamp(&self, id: PartitionId) -> Result<Option<Moment>, StoreError> {
        let p = self.books(id)?;
        let mut best: Option<(BatchHeader, Bytes)> = None;
        let mut at = p.start.offset;
        while at < p.end.offset {
            let known = best.as_ref().map_or(i64::MIN, |(best, _)| {
                best.max_timestamp_ms.saturating_add(1)
            });
            let stretch = self.next_stretch(&p, id, at, known)?;
            self.each_batch(&p, id, stretch, &mut |batch, header| {
                let is_better = best
                    .as_ref()
                    .is_none_or(|(best, _)| header.max_timestamp_ms > best.max_timestamp_ms);
                if is_better {
                    best = Some((*header, Bytes::copy_from_slice(batch.batch)));
                }
                true
            })?;
            at = stretch.to;
        }
        let Some((header, batch)) = best else {
            return Ok(None);
        };
        let moments = moments(&batch, header.base_offset, &header);
        // the first of those that are equal
        Ok(moments.into_iter().rev().max_by_key(|at| at.timestamp_ms))
    }

    fn books(&self, id: PartitionId) -> Result<Partition, StoreError> {
        let book = self.book();
        let p = book.partition(id).ok_or(StoreError::UnknownPartition)?;
        Ok(p.clone())
    }

    /// The first block from `at` on that may hold a record of that time or later; the last one when none may.
    fn next_stretch(
        &self,
        p: &Partition,
        id: PartitionId,
        at: Offset,
        timestamp_ms: i64,
    ) -> Result<Stretch, StoreError> {
        let end = p.end.offset;
        let mut stretch = Stretch { from: at, to: end };
        let visited = self.disk.index(id, at, end, &mut |entry| {
            let is_passed = entry.max_timestamp_ms < timestamp_ms;
            if is_passed {
                stretch.from = entry.point.offset;
            } else {
                stretch.to = entry.point.offset;
            }
            is_passed
        });
        visited.map_err(|error| self.fail(error))?;
        Ok(stretch)
    }

    /// Shows the batches of a stretch, until `visit` says false.
    fn each_batch(
        &self,
        p: &Partition,
        id: PartitionId,
        stretch: Stretch,
        visit: &mut dyn FnMut(&StoredRef<'_>, &BatchHeader) -> bool,
    ) -> Result<(), StoreError> {
        let mut scan = self.disk.scan(id, stretch.from, stretch.to);
        while let Some(stored) = scan.step().map_err(|error| self.fail(error))? {
            // a repair may have brought back batches that lie in a gap
            if p.gap_at(stored.base).is_some() {
                continue;
            }
            // the door has let in none that does not parse
            if BatchHeader::parse(stored.batch).is_ok_and(|header| !visit(&stored, &header)) {
                break;
            }
        }
        Ok(())
    }
}

/// The time of each record of a batch. One that can't be opened counts as a whole.
fn moments(batch: &Bytes, base: Offset, header: &BatchHeader) -> Vec<Moment> {
    let opened = record::open(batch, header, MAX_BATCH_BYTES);
    let records = opened.as_deref().unwrap_or_default();
    let moments: Vec<Moment> = Records::new(records, header.count)
        .map_while(Result::ok)
        .map(|record| Moment {
            offset: base + u64::from(record.offset_delta),
            timestamp_ms: timestamp_of(header, record.timestamp_delta_ms),
        })
        .collect();
    if moments.is_empty() {
        let (offset, timestamp_ms) = (base, header.max_timestamp_ms);
        return vec![Moment {
            offset,
            timestamp_ms,
        }];
    }
    moments
}

fn timestamp_of(header: &BatchHeader, delta_ms: i64) -> i64 {
    if header.is_log_append_time {
        header.max_timestamp_ms
    } else {
        header.base_timestamp_ms.saturating_add(delta_ms)
    }
}
