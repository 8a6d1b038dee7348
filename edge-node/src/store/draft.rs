//! A change under way: new states on top of the book, and the list of what to write for them.
//!
//! Nothing here touches the book; the engine publishes a draft once it is on disk, or forgets it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::ids::Track;
use shared::record::BatchHeader;

use super::book::Book;
use super::disk::{Disk, DiskError, Op};
use super::partition::{Block, MAX_GAPS, Partition, Point};
use super::producers::{Producers, Verdict};
use super::retention::{self, Scope, Step, Usage};
use super::state::StateChange;
use super::value::{BatchHead, IndexEntry};
use super::{Append, AppendError, Appended, PartitionId, Topic};

/// Entries of the time index lie at most this far apart in time.
const INDEX_AGE_MS: u64 = 60_000;

/// Limits that come from the config.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) quota_bytes: Option<u64>,
    /// Bytes between two entries of the time index.
    pub(super) index_bytes: u64,
}

/// New partition states and the list of changes that leads to them.
#[derive(Debug)]
pub(super) struct Draft<'a, D> {
    pub(super) book: &'a Book,
    pub(super) disk: &'a D,
    pub(super) limits: Limits,
    is_disk_low: bool,
    /// Something went already because the disk is low: once for all appends of a group.
    is_relieved: bool,
    touched: BTreeMap<PartitionId, Partition>,
    ops: Vec<Op>,
    pub(super) stored_bytes: u64,
    pub(super) acked_bytes: u64,
    position: u64,
}

/// A finished draft.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) partitions: BTreeMap<PartitionId, Partition>,
    pub(super) ops: Vec<Op>,
}

impl Change {
    /// True when something is deleted: readers must not look meanwhile.
    pub(super) fn deletes(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Delete { .. }))
    }
}

impl<'a, D: Disk> Draft<'a, D> {
    pub(super) fn new(book: &'a Book, disk: &'a D, limits: Limits, is_disk_low: bool) -> Self {
        Self {
            book,
            disk,
            limits,
            is_disk_low,
            is_relieved: false,
            touched: BTreeMap::new(),
            ops: Vec::new(),
            stored_bytes: book.stored_bytes,
            acked_bytes: book.acked_bytes,
            position: book.position,
        }
    }

    /// Judges a batch and puts it at the end of its log, or a gap in its place.
    pub(super) fn append(
        &mut self,
        append: &Append,
        producers: &mut Producers,
    ) -> Result<Result<Appended, AppendError>, DiskError> {
        let Some(topic) = self.book.topic_of(append.partition).map(Arc::clone) else {
            return Ok(Err(AppendError::UnknownPartition));
        };
        let header = &append.header;
        if let Some(stamp) = header.producer {
            match producers.check(append.partition, stamp, header.count) {
                Err(refusal) => return Ok(Err(refusal)),
                Ok(Verdict::Duplicate(base_offset)) => {
                    let log_start = self.start_of(append.partition);
                    return Ok(Ok(Appended {
                        base_offset,
                        is_duplicate: true,
                        log_start,
                    }));
                }
                Ok(Verdict::New) => {}
            }
        }
        let point = match self.make_room(append, &topic)? {
            Step::Append => self.put_batch(append),
            Step::DropNewest => self.drop_newest(append.partition, header),
            Step::Refuse(why) => return Ok(Err(refuse(append, producers, why))),
            Step::FreeAcked(..) | Step::DropOldest(_) => {
                return Ok(Err(refuse(append, producers, "no room could be made")));
            }
        };
        self.put_state(&append.state);
        if let Some(stamp) = header.producer {
            producers.note(append.partition, stamp, header.count, point.offset);
        }
        Ok(Ok(Appended {
            base_offset: point.offset,
            is_duplicate: false,
            log_start: self.start_of(append.partition),
        }))
    }

    pub(super) fn put_state(&mut self, changes: &[StateChange]) {
        let changes = changes.iter().cloned();
        self.ops.extend(changes.map(Op::PutState));
    }

    fn start_of(&self, id: PartitionId) -> u64 {
        self.partition(id).map_or(0, |p| p.start.offset)
    }

    fn make_room(&mut self, append: &Append, topic: &Topic) -> Result<Step, DiskError> {
        let incoming = u64::try_from(append.batch.len()).unwrap_or(u64::MAX);
        let mut is_stuck = self.is_relieved;
        loop {
            let usage = self.usage(topic);
            let step = retention::next_step(&usage, incoming, topic.rules.on_full, is_stuck);
            let before = self.stored_bytes;
            match step {
                Step::FreeAcked(Scope::Topic, bytes) => {
                    self.free_acked(&topic.partitions, bytes)?
                }
                Step::FreeAcked(Scope::Node, bytes) => self.free_acked_of_all(bytes)?,
                Step::DropOldest(bytes) => self.drop_oldest(&topic.partitions, bytes)?,
                Step::DropNewest if self.has_many_gaps(append.partition) => {
                    return Ok(Step::Refuse("the log has too many gaps"));
                }
                Step::Append | Step::DropNewest | Step::Refuse(_) => return Ok(step),
            }
            self.is_relieved = self.is_disk_low;
            is_stuck = self.is_relieved || self.stored_bytes == before;
        }
    }

    fn has_many_gaps(&self, id: PartitionId) -> bool {
        self.partition(id).is_some_and(|p| p.gaps.len() >= MAX_GAPS)
    }

    pub(super) fn usage(&self, topic: &Topic) -> Usage {
        let sum = |of: fn(&Partition) -> u64| {
            let partitions = topic.partitions.iter();
            partitions
                .filter_map(|id| self.partition(*id))
                .map(of)
                .sum()
        };
        Usage {
            topic: sum(Partition::stored_bytes),
            topic_acked: sum(Partition::acked_bytes),
            topic_limit: topic.rules.retention_bytes,
            node: self.stored_bytes,
            node_acked: self.acked_bytes,
            node_limit: self.limits.quota_bytes,
            is_disk_low: self.is_disk_low,
        }
    }

    fn put_batch(&mut self, append: &Append) -> Point {
        let (partition, header) = (append.partition, &append.header);
        let bytes = u64::try_from(append.batch.len()).unwrap_or(u64::MAX);
        let (age_ms, position) = (self.book.record.age.now_ms, self.position);
        let index_bytes = self.limits.index_bytes;
        let (before, due) = self.edit(partition, |p| {
            let last_age_ms = p.last_age_ms;
            let before = p.append(header.crc, header.count, bytes, age_ms);
            let open = p.block.filter(|block| {
                before.bytes < block.bytes + index_bytes && age_ms < block.age_ms + INDEX_AGE_MS
            });
            let due = open.is_none().then(|| IndexEntry {
                point: before,
                age_ms: last_age_ms,
                max_timestamp_ms: p.block.map_or(i64::MAX, |block| block.max_timestamp_ms),
            });
            let block = open.unwrap_or(Block {
                bytes: before.bytes,
                age_ms,
                max_timestamp_ms: i64::MIN,
            });
            p.block = Some(Block {
                max_timestamp_ms: block.max_timestamp_ms.max(header.max_timestamp_ms),
                ..block
            });
            (before, due)
        });
        self.position += bytes;
        let head = BatchHead {
            count: header.count,
            chain: before.chain,
            bytes: before.bytes,
            age_ms,
            position,
        };
        self.ops.push(Op::PutBatch {
            partition,
            base: before.offset,
            head,
            batch: append.batch.clone(),
        });
        if let Some(entry) = due {
            self.ops.push(Op::PutIndex { partition, entry });
        }
        before
    }

    fn drop_newest(&mut self, partition: PartitionId, header: &BatchHeader) -> Point {
        let age_ms = self.book.record.age.now_ms;
        self.edit(partition, |p| {
            p.drop_newest(header.crc, header.count, age_ms)
        })
    }

    /// Moves a track's cursor up. False when it is there already.
    pub(super) fn acknowledge(&mut self, partition: PartitionId, track: Track, to: Point) -> bool {
        self.edit(partition, |p| p.acknowledge(track, to))
    }

    /// Gives what comes from here on to the other track.
    pub(super) fn split(&mut self, partition: PartitionId) -> bool {
        self.edit(partition, Partition::split)
    }

    /// Unacked records become the first of a new incarnation.
    pub(super) fn set_origins(&mut self) {
        let ids: Vec<PartitionId> = self.book.partitions().map(|(id, _)| id).collect();
        for id in ids {
            self.edit(id, |p| p.origin = p.acked.offset);
        }
    }

    /// Takes a partition up that is not in the book yet.
    pub(super) fn create(&mut self, id: PartitionId, partition: Partition) {
        self.touched.insert(id, partition);
    }

    pub(super) fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    pub(super) fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.touched.get(&id).or_else(|| self.book.partition(id))
    }

    /// Changes a partition that exists, and the totals with it.
    pub(super) fn edit<R>(
        &mut self,
        id: PartitionId,
        change: impl FnOnce(&mut Partition) -> R,
    ) -> R {
        let book = self.book;
        let p = self.touched.entry(id).or_insert_with(|| {
            let known = book.partition(id);
            known.expect("callers have looked the partition up").clone()
        });
        let before = (p.stored_bytes(), p.acked_bytes());
        let result = change(p);
        self.stored_bytes = self.stored_bytes + p.stored_bytes() - before.0;
        self.acked_bytes = self.acked_bytes + p.acked_bytes() - before.1;
        result
    }

    /// The change as a whole: partitions that differ, their gaps, and everything noted.
    pub(super) fn finish(self) -> Change {
        let Self {
            book,
            touched,
            mut ops,
            ..
        } = self;
        let mut partitions = BTreeMap::new();
        for (id, mut p) in touched {
            let old = book.partition(id);
            if old == Some(&p) {
                continue;
            }
            push_gap_changes(&mut ops, id, old, &p);
            p.version += 1;
            p.invariants();
            ops.push(Op::PutPartition {
                partition: id,
                books: p.clone(),
            });
            partitions.insert(id, p);
        }
        Change { partitions, ops }
    }
}

/// The store is full; a producer's next batches must not pass this one.
fn refuse(append: &Append, producers: &mut Producers, why: &'static str) -> AppendError {
    if let Some(stamp) = append.header.producer {
        producers.refuse(append.partition, stamp);
    }
    AppendError::Full(why)
}

/// Notes the gaps that came and went between two states of a partition.
pub(super) fn push_gap_changes(
    ops: &mut Vec<Op>,
    partition: PartitionId,
    old: Option<&Partition>,
    new: &Partition,
) {
    let old_gaps = old.map(|p| &p.gaps);
    if old_gaps.is_some_and(|gaps| Arc::ptr_eq(gaps, &new.gaps)) {
        return;
    }
    for from in old_gaps.into_iter().flat_map(|gaps| gaps.keys()) {
        if !new.gaps.contains_key(from) {
            ops.push(Op::DeleteGap {
                partition,
                from: *from,
            });
        }
    }
    for (from, gap) in new.gaps.iter() {
        if old_gaps.and_then(|gaps| gaps.get(from)) != Some(gap) {
            ops.push(Op::PutGap {
                partition,
                gap: *gap,
            });
        }
    }
}
