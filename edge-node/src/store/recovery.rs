//! After a start: do the files still hold what was acknowledged? What is missing becomes a gap.
//!
//! Three witnesses: the batches themselves, the books in RocksDB, and the books in the ends file. The
//! later books count (a version tells); every offset below their end that no batch and no gap covers
//! is declared damaged, so no offset is ever used twice. After a close in order the batches are taken
//! on trust; after a crash those of the last [`WINDOW_BYTES`] are looked at, which is more than the
//! write-ahead log holds; after a salvage, all.

use std::collections::{BTreeMap, BTreeSet};

use shared::history;
use shared::ids::{Offset, TopicName};

use super::disk::{DiskError, Op, Stored};
use super::draft::push_gap_changes;
use super::ends::Ends;
use super::engine::Loaded;
use super::partition::{Gap, Partition, Point};
use super::{PartitionId, value};

/// Bytes looked at after a crash. RocksDB keeps about 8 MiB in its write-ahead log, and what it
/// flushes meanwhile.
const WINDOW_BYTES: u64 = 32 << 20;

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Closed in order: the books only.
    Books,
    /// What was appended last.
    Recent,
    /// Every batch.
    All,
}

/// A range of a log that the disk lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The topic.
    pub topic: TopicName,
    /// The partition's number in it.
    pub partition: u32,
    /// First offset lost.
    pub from: Offset,
    /// Offset after the last one lost.
    pub to: Offset,
}

/// What the books must become, and what was lost.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) ops: Vec<Op>,
    pub(super) damaged: Vec<DamagedRange>,
    /// Logs that lost something, by their numbers in the store.
    pub(super) holed: BTreeSet<PartitionId>,
}

/// Holds the witnesses against each other and mends `loaded`.
pub(super) fn reconcile(
    disk: &dyn Scanner,
    loaded: &mut Loaded,
    ends: Option<&Ends>,
    depth: Depth,
) -> Result<Recovered, DiskError> {
    let mut recovered = Recovered::default();
    if let Some(ends) = ends {
        let record = &mut loaded.record;
        record.next_partition = record.next_partition.max(ends.record.next_partition);
        record.next_producer = record.next_producer.max(ends.record.next_producer);
        if record.age.now_ms < ends.record.age.now_ms {
            record.age = ends.record.age;
        }
        recovered.ops.push(Op::PutStore(*record));
    }
    let mut all: BTreeMap<PartitionId, Partition> =
        std::mem::take(&mut loaded.partitions).into_iter().collect();
    let stored = all.clone();
    let behind = take_later_books(&mut all, ends);
    let appended: u64 = all.values().map(|p| p.end.bytes).sum();
    for (id, p) in &mut all {
        keep_sound_gaps(p);
        let from = match depth {
            Depth::Books if !behind.contains(id) => None,
            Depth::Books | Depth::Recent => {
                let since = appended.saturating_sub(WINDOW_BYTES);
                Some(disk.first_since(*id, since)?.unwrap_or(p.start.offset))
            }
            Depth::All => Some(p.start.offset),
        };
        if let Some(from) = from {
            let before = p.gaps.clone();
            mend(disk, *id, p, from.max(p.start.offset))?;
            let known = recovered.damaged.len();
            note_damage(p, &before, &mut recovered.damaged);
            if recovered.damaged.len() > known {
                recovered.holed.insert(*id);
            }
        }
        p.settle_recovered();
        let old = stored.get(id);
        if old != Some(p) {
            p.version += 1;
            push_gap_changes(&mut recovered.ops, *id, old, p);
            let (partition, books) = (*id, p.clone());
            recovered.ops.push(Op::PutPartition { partition, books });
        }
    }
    loaded.partitions = all.into_iter().collect();
    Ok(recovered)
}

/// What reconciling reads.
pub(super) trait Scanner {
    fn first_since(&self, id: PartitionId, position: u64) -> Result<Option<Offset>, DiskError>;

    /// Shows batches from the one that holds `from` on.
    fn each(
        &self,
        id: PartitionId,
        from: Offset,
        visit: &mut dyn FnMut(Stored),
    ) -> Result<(), DiskError>;
}

/// Puts the ends file's books in where they are the later ones; says where that was.
fn take_later_books(
    all: &mut BTreeMap<PartitionId, Partition>,
    ends: Option<&Ends>,
) -> Vec<PartitionId> {
    let mut behind = Vec::new();
    for (id, noted) in ends.into_iter().flat_map(|ends| &ends.partitions) {
        match all.get_mut(id) {
            // another store's file
            Some(p) if (&p.topic, p.index) != (&noted.topic, noted.index) => {}
            Some(p) if p.version >= noted.version => {}
            Some(p) => {
                let gaps = std::mem::take(&mut p.gaps);
                *p = Partition {
                    gaps,
                    ..noted.clone()
                };
                behind.push(*id);
            }
            None => {
                all.insert(*id, noted.clone());
                behind.push(*id);
            }
        }
    }
    behind
}

/// Gaps that do not fit the books are forgotten; what they stood for is found again as damage.
fn keep_sound_gaps(p: &mut Partition) {
    let mut at = p.start.offset;
    let sound: BTreeMap<Offset, Gap> = p
        .gaps
        .values()
        .filter(|gap| {
            let is_inside = |seam| gap.from.offset < seam && seam < gap.to.offset;
            let spans = p.seams().into_iter().any(is_inside);
            let fits = gap.from.offset >= at && gap.to.offset <= p.end.offset && !spans;
            if fits {
                at = gap.to.offset;
            }
            fits
        })
        .map(|gap| (gap.from.offset, *gap))
        .collect();
    if sound.len() != p.gaps.len() {
        p.gaps = std::sync::Arc::new(sound);
    }
}

/// Walks the batches from `from` on and declares what is not there.
fn mend(
    disk: &dyn Scanner,
    id: PartitionId,
    p: &mut Partition,
    from: Offset,
) -> Result<(), DiskError> {
    let mut at = if from == p.start.offset {
        Some(p.start)
    } else {
        None
    };
    disk.each(id, from, &mut |stored| {
        let here = Point {
            offset: stored.base,
            chain: stored.head.chain,
            bytes: stored.head.bytes,
        };
        let done = at.unwrap_or(here);
        if here.offset < done.offset {
            return; // a leftover of a write that failed
        }
        if here.offset > done.offset {
            p.add_damage(done, here);
        }
        at = Some(after(&stored));
    })?;
    let last = at.unwrap_or(p.start);
    if last.offset < p.end.offset {
        let end = p.end;
        p.add_damage(last, end);
    } else if last.offset > p.end.offset {
        p.end = last;
    }
    Ok(())
}

fn after(stored: &Stored) -> Point {
    let crc = value::crc_of(&stored.batch);
    Point {
        offset: stored.next(),
        chain: history::after_batch(stored.head.chain, crc, stored.head.count),
        bytes: stored.head.bytes + u64::try_from(stored.batch.len()).unwrap_or(0),
    }
}

fn note_damage(p: &Partition, before: &BTreeMap<Offset, Gap>, damaged: &mut Vec<DamagedRange>) {
    for (from, gap) in p.gaps.iter() {
        if before.get(from) != Some(gap) {
            damaged.push(DamagedRange {
                topic: p.topic.clone(),
                partition: p.index,
                from: gap.from.offset,
                to: gap.to.offset,
            });
        }
    }
}
