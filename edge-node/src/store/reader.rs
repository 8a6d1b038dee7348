//! Reading: a partition's items from memory and disk, as one story without holes.
//!
//! Gaps are in the books, batches on the disk. A scan begins while the book is held, so that it shows
//! exactly what the books say; an offset that neither has is damage.

use shared::history;
use shared::ids::{Offset, Track};

use super::disk::{Disk, DiskError, Scan, Stored};
use super::engine::Engine;
use super::partition::{Gap, Point};
use super::{FetchLimit, Fetched, GapReason, Item, PartitionId, StoreError, value};

/// What a gap counts for in the size of a read.
const GAP_COST: usize = 64;

impl<D: Disk> Engine<D> {
    /// The last boundary at or before `next`, which a track has not come to yet.
    pub(super) fn boundary(
        &self,
        id: PartitionId,
        track: Track,
        next: Offset,
    ) -> Result<Option<Point>, StoreError> {
        let book = self.book();
        let p = book.partition(id).ok_or(StoreError::UnknownPartition)?;
        let part = p.open_part(track);
        if part.is_none_or(|(above, last)| next <= above || next > last) {
            return Ok(None);
        }
        if let Some(point) = p.known_point(next) {
            return Ok(Some(point));
        }
        if let Some(gap) = p.gap_at(next) {
            return Ok(Some(gap.from));
        }
        let mut scan = self.disk.scan(id, next, p.end.offset);
        let found = scan.next().map_err(|error| self.fail(error))?;
        Ok(found
            .filter(|stored| stored.base <= next)
            .map(|stored| Point {
                offset: stored.base,
                chain: stored.head.chain,
                bytes: stored.head.bytes,
            }))
    }

    pub(super) fn chain_at(&self, id: PartitionId, at: Offset) -> Result<Option<u64>, StoreError> {
        let book = self.book();
        let p = book.partition(id).ok_or(StoreError::UnknownPartition)?;
        if at == 0 {
            return Ok(Some(0));
        }
        if let Some(point) = p.known_point(at) {
            return Ok(Some(point.chain));
        }
        if at < p.start.offset || at > p.end.offset || p.gap_at(at).is_some() {
            return Ok(None);
        }
        let mut scan = self.disk.scan(id, at, p.end.offset);
        drop(book);
        let found = scan.next().map_err(|error| self.fail(error))?;
        Ok(found
            .filter(|stored| stored.base == at)
            .map(|stored| stored.head.chain))
    }

    pub(super) fn read(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Item>, StoreError> {
        let (items, untold) = self.look(id, from, max_bytes, false)?;
        if untold.is_empty() {
            return Ok(items);
        }
        // again with writers held up: a gap that is handed out must not have grown meanwhile
        let _writing = self.writing();
        let (items, untold) = self.look(id, from, max_bytes, false)?;
        self.book_mut().tell_gaps(id, &untold);
        Ok(items)
    }

    /// Items for a reader that is not the hub's.
    pub(super) fn browse(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Vec<Item>, StoreError> {
        self.look(id, from, max_bytes, true).map(|(items, _)| items)
    }

    /// The items, and offsets in gaps among them from which on no reader has seen them. With `is_local` what is
    /// gone from the log's start is the first of them; else they end where another track's part begins.
    fn look(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
        is_local: bool,
    ) -> Result<(Vec<Item>, Vec<Offset>), StoreError> {
        let book = self.book();
        let p = book
            .partition(id)
            .ok_or(StoreError::UnknownPartition)?
            .clone();
        let mut at = from.max(p.start.offset);
        let first = p.gap_at(at).map_or(at, |gap| gap.to.offset);
        let split = p.split.filter(|split| !is_local && at < split.offset);
        let end = split.unwrap_or(p.end).offset;
        // begun while the book is held: the scan shows what the books say
        let mut scan = self.disk.scan(id, first, end);
        drop(book);
        let mut items = Vec::new();
        let mut untold = Vec::new();
        let mut used = 0;
        if is_local && from < at {
            // also when nothing stands behind it: the reader moves on
            items.push(Item::Gap {
                from,
                to: at,
                reason: GapReason::Deleted,
                chain: p.start.chain,
            });
        }
        let before = items.len();
        while at < end && (items.len() == before || used < max_bytes) {
            let gap = p.gap_at(at);
            let seen_from = at;
            let (item, next, cost) = match gap {
                Some(gap) => (gap_item(&gap), gap.to.offset, GAP_COST),
                None => match batch_that_holds(&mut *scan, at) {
                    Ok(Some(stored)) => {
                        let (next, cost) = (stored.next(), stored.batch.len());
                        (batch_item(stored), next, cost)
                    }
                    Ok(None) => {
                        let why = format!("partition {} lacks offset {at}", id.0);
                        return Err(self.fail(DiskError::Corrupt(why)));
                    }
                    Err(error) => return Err(self.fail(error)),
                },
            };
            if items.len() > before && used + cost > max_bytes {
                break;
            }
            used += cost;
            at = next;
            items.push(item);
            untold.extend(
                gap.filter(|gap| !gap.is_told_from(seen_from))
                    .map(|_| seen_from),
            );
        }
        Ok((items, untold))
    }

    pub(super) fn fetch(
        &self,
        id: PartitionId,
        from: Offset,
        limit: FetchLimit,
        out: &mut Vec<u8>,
    ) -> Result<Fetched, StoreError> {
        let book = self.book();
        let p = book
            .partition(id)
            .ok_or(StoreError::UnknownPartition)?
            .clone();
        let range = p.range();
        let mut next = from;
        if from < range.start || from >= range.end {
            return Ok(Fetched { range, next });
        }
        let first = p.gap_at(from).map_or(from, |gap| gap.to.offset);
        // begun while the book is held: the scan shows what the books say
        let mut scan = self.disk.scan(id, first, range.end);
        drop(book);
        let before = out.len();
        while next < range.end {
            if let Some(gap) = p.gap_at(next) {
                next = gap.to.offset;
                continue;
            }
            let found = scan.step().map_err(|error| self.fail(error))?;
            let Some(stored) = found.filter(|stored| stored.base <= next) else {
                let why = format!("partition {} lacks offset {next}", id.0);
                return Err(self.fail(DiskError::Corrupt(why)));
            };
            // a repair may have brought back batches that lie in a gap
            if stored.next() <= next {
                continue;
            }
            let used = out.len() - before;
            let is_excused = limit.is_first_whole && used == 0;
            if used + stored.batch.len() > limit.bytes && !is_excused {
                break;
            }
            out.extend_from_slice(stored.batch);
            next = stored.next();
            // the next one is likely to be as large: where that has no room, it is not read from the disk only
            // to be left out
            if used + 2 * stored.batch.len() > limit.bytes {
                break;
            }
        }
        Ok(Fetched { range, next })
    }

    /// What a reader would get, unseen.
    #[cfg(test)]
    pub(super) fn peek(&self, id: PartitionId) -> Vec<Item> {
        let look = |from| {
            let found = self.look(id, from, usize::MAX, false);
            found.expect("tests ask for partitions that exist").0
        };
        let split = self.book().partition(id).and_then(|p| {
            let behind = |split: &Point| p.start.offset < split.offset;
            p.split.filter(behind)
        });
        let mut items = look(0);
        items.extend(split.into_iter().flat_map(|split| look(split.offset)));
        items
    }
}

/// Steps over what a repair may have brought back: batches that lie in a gap.
fn batch_that_holds(scan: &mut dyn Scan, at: Offset) -> Result<Option<Stored>, DiskError> {
    while let Some(stored) = scan.next()? {
        if stored.next() > at {
            return Ok((stored.base <= at).then_some(stored));
        }
    }
    Ok(None)
}

fn gap_item(gap: &Gap) -> Item {
    Item::Gap {
        from: gap.from.offset,
        to: gap.to.offset,
        reason: gap.reason,
        chain: gap.to.chain,
    }
}

fn batch_item(stored: Stored) -> Item {
    let crc = value::crc_of(&stored.batch);
    Item::Batch {
        base_offset: stored.base,
        next_offset: stored.next(),
        chain: history::after_batch(stored.head.chain, crc, stored.head.count),
        batch: stored.batch,
    }
}
