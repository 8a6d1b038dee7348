//! The store's logic over any [`Disk`]: one change at a time, readers beside it.
//!
//! ```text
//! append group ┐            ┌ draft ─► disk.commit ─► publish in the book ─► answer
//! acknowledge  ├─► `writing`┤   (new states,  (one synced      (readers see
//! sweep        ┘   (mutex)  └    list of ops)   write)           it from here)
//! ```
//! Always true: the book shows only what is on disk. A change that deletes holds the book while it is
//! written, so that a reader's view and its scan belong together. After a failure that does not pass
//! nothing is acknowledged any more: after a failed sync the kernel may have dropped what it could not
//! write and report success the next time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName, Track};
use tokio::sync::watch;

use super::book::Book;
use super::disk::{Disk, DiskError, Op};
use super::draft::{Change, Draft, Limits};
use super::partition::Partition;
use super::producers::{self, ProducerKey, ProducerState, Producers};
use super::retention::{RELIEF_BYTES, RELIEF_STEP};
use super::state::{StateChange, StateSpace};
use super::value::StoreRecord;
use super::{
    Append, AppendError, Appended, LogRange, PartitionId, Space, StoreError, Topic, TopicRules,
};

/// Producer ids are taken from the disk in blocks: one sync for so many.
const PRODUCER_BLOCK: i64 = 1_000;

/// Everything that a store was when it was closed.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) record: StoreRecord,
    pub(super) partitions: Vec<(PartitionId, Partition)>,
    pub(super) producers: Vec<(ProducerKey, ProducerState)>,
}

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Write {
    Append(Append),
    State(Vec<StateChange>),
}

/// Where an append went; nothing for facts.
pub(super) type Answer = Result<Option<Appended>, AppendError>;

/// The store's logic.
#[derive(Debug)]
pub(super) struct Engine<D> {
    pub(super) disk: D,
    pub(super) limits: Limits,
    writing: Mutex<Writing>,
    book: RwLock<Book>,
    pub(super) changes: watch::Sender<u64>,
    failure: watch::Sender<Option<StoreError>>,
}

/// State that only the one who writes needs.
#[derive(Debug)]
pub(super) struct Writing {
    producers: Producers,
    /// Numbers of producer ids that are taken from the disk and not given out.
    producer_ids: std::ops::Range<i64>,
    /// Logs whose last write failed: bytes beyond their end may be left in the write-ahead log.
    pub(super) unclean: BTreeSet<PartitionId>,
}

impl<D: Disk> Engine<D> {
    pub(super) fn new(
        disk: D,
        loaded: Loaded,
        limits: Limits,
        max_producers: usize,
        rules: &Arc<TopicRules>,
    ) -> Self {
        let writing = Writing {
            producers: Producers::new(max_producers, loaded.producers),
            producer_ids: 0..0,
            unclean: BTreeSet::new(),
        };
        Self {
            disk,
            limits,
            writing: Mutex::new(writing),
            book: RwLock::new(Book::new(loaded.record, loaded.partitions, rules)),
            changes: watch::Sender::new(0),
            failure: watch::Sender::new(None),
        }
    }

    /// Writes a group with one sync. The answers are in its order; a fact's says nothing but `Ok`.
    pub(super) fn write_group(&self, group: &[Write]) -> Vec<Answer> {
        let mut writing = self.writing();
        if let Some(error) = self.failure.borrow().as_ref() {
            let refusal = AppendError::Unavailable(error.to_string());
            return group.iter().map(|_| Err(refusal.clone())).collect();
        }
        let (change, forget, answers) = match self.draft_group(group, &mut writing) {
            Ok(drafted) => drafted,
            Err(error) => return self.refuse_group(&mut writing, vec![], group.len(), error),
        };
        if change.ops.is_empty() {
            return answers; // refusals and duplicates only: nothing to write
        }
        // Invariant 1: the answers leave this function only after this write was synced.
        if let Err(error) = self.commit(change, true, &mut writing.unclean) {
            return self.refuse_group(&mut writing, answers, group.len(), error);
        }
        writing.producers.keep(&forget);
        self.changes.send_modify(|n| *n += 1);
        answers
    }

    fn draft_group(
        &self,
        group: &[Write],
        writing: &mut Writing,
    ) -> Result<(Change, Vec<ProducerKey>, Vec<Answer>), DiskError> {
        let book = self.book();
        let mut draft = Draft::new(&book, &self.disk, self.limits, self.disk.is_low());
        for partition in &writing.unclean {
            let from = book.partition(*partition).map_or(0, |p| p.end.offset);
            let (partition, to) = (*partition, Offset::MAX);
            draft.push(Op::Delete {
                partition,
                from,
                to,
            });
        }
        let mut answers = Vec::with_capacity(group.len());
        for write in group {
            answers.push(match write {
                Write::Append(append) => draft.append(append, &mut writing.producers)?.map(Some),
                Write::State(changes) => {
                    draft.put_state(changes);
                    Ok(None)
                }
            });
        }
        let (noted, forget) = writing.producers.changes();
        for (key, state) in noted {
            draft.push(Op::PutProducer { key, state });
        }
        for key in &forget {
            draft.push(Op::DeleteProducer(*key));
        }
        Ok((draft.finish(), forget, answers))
    }

    /// The group is not on disk: whoever would have got `Ok` gets the reason.
    fn refuse_group(
        &self,
        writing: &mut Writing,
        answers: Vec<Answer>,
        len: usize,
        error: DiskError,
    ) -> Vec<Answer> {
        writing.producers.forget_noted();
        let refusal = match error {
            DiskError::Full(_) => AppendError::Full(super::DISK_FULL),
            DiskError::Corrupt(_) | DiskError::Failed(_) => {
                AppendError::Unavailable(self.fail(error).to_string())
            }
        };
        let mut answers = answers.into_iter();
        (0..len)
            .map(|_| match answers.next() {
                Some(Err(own)) => Err(own),
                Some(Ok(_)) | None => Err(refusal.clone()),
            })
            .collect()
    }

    /// Writes a change and publishes it. Everything that changes the store passes here.
    pub(super) fn commit(
        &self,
        change: Change,
        is_synced: bool,
        unclean: &mut BTreeSet<PartitionId>,
    ) -> Result<(), DiskError> {
        let deletes = change.deletes();
        let held = deletes.then(|| self.book_mut());
        let is_synced = is_synced || deletes;
        let mut written = self.disk.commit(&change.ops, is_synced);
        if matches!(written, Err(DiskError::Full(_))) && deletes && self.disk.open_reserve() {
            written = self.disk.commit(&change.ops, is_synced);
        }
        if let Err(error) = written {
            for op in &change.ops {
                if let Op::PutBatch { partition, .. } = op {
                    unclean.insert(*partition);
                }
            }
            return Err(error);
        }
        if change.ops.iter().any(is_scrub) {
            unclean.clear();
        }
        let mut book = held.unwrap_or_else(|| self.book_mut());
        for op in &change.ops {
            if let Op::PutStore(record) = op {
                book.record = *record;
            }
        }
        for (id, partition) in change.partitions {
            book.put(id, partition);
        }
        drop(book);
        for op in &change.ops {
            if let Op::Delete { partition, to, .. } = op
                && !is_scrub(op)
            {
                match self.disk.reclaim(*partition, *to) {
                    // the change holds all the same, and compaction comes to it
                    Ok(()) | Err(DiskError::Full(_)) => {}
                    Err(error @ (DiskError::Corrupt(_) | DiskError::Failed(_))) => {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn split(&self, id: PartitionId) -> Result<bool, StoreError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let (is_split, change) = {
            let book = self.book();
            book.partition(id).ok_or(StoreError::UnknownPartition)?;
            let mut draft = Draft::new(&book, &self.disk, self.limits, false);
            (draft.split(id), draft.finish())
        };
        if !is_split {
            return Ok(false);
        }
        match self.commit(change, true, &mut writing.unclean) {
            Ok(()) => {
                // a track has a part that it had not
                self.changes.send_modify(|n| *n += 1);
                Ok(true)
            }
            Err(DiskError::Full(_)) => Ok(false),
            Err(error @ (DiskError::Corrupt(_) | DiskError::Failed(_))) => Err(self.fail(error)),
        }
    }

    pub(super) fn acknowledge(
        &self,
        id: PartitionId,
        track: Track,
        next: Offset,
    ) -> Result<(), StoreError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let Some(point) = self.boundary(id, track, next)? else {
            return Ok(());
        };
        let change = {
            let book = self.book();
            let mut draft = Draft::new(&book, &self.disk, self.limits, false);
            draft.acknowledge(id, track, point);
            draft.finish()
        };
        if change.ops.is_empty() {
            return Ok(());
        }
        let partitions = change.partitions.clone();
        match self.commit(change, false, &mut writing.unclean) {
            Ok(()) => {}
            // a full disk must not stop what makes room: the cursor holds in memory, the next write
            // takes it along, and after a crash the hub tells it again
            Err(DiskError::Full(_)) => {
                let mut book = self.book_mut();
                for (id, partition) in partitions {
                    book.put(id, partition);
                }
            }
            Err(error @ (DiskError::Corrupt(_) | DiskError::Failed(_))) => {
                return Err(self.fail(error));
            }
        }
        self.relieve(&mut writing)
    }

    /// Where the disk is low an acknowledgement makes room at once: producers wait for it.
    fn relieve(&self, writing: &mut Writing) -> Result<(), StoreError> {
        if self.book().acked_bytes < RELIEF_STEP || !self.disk.is_low() {
            return Ok(());
        }
        let relieved = {
            let book = self.book();
            let mut draft = Draft::new(&book, &self.disk, self.limits, true);
            let relieved = draft.relieve(RELIEF_BYTES);
            relieved.map(|()| draft.finish())
        };
        let change = relieved.map_err(|error| self.fail(error))?;
        match self.commit(change, false, &mut writing.unclean) {
            // not even a deletion fits: the next sweep tries again
            Ok(()) | Err(DiskError::Full(_)) => Ok(()),
            Err(error @ (DiskError::Corrupt(_) | DiskError::Failed(_))) => Err(self.fail(error)),
        }
    }

    pub(super) fn ensure_topic(
        &self,
        name: &TopicName,
        partitions: u32,
        rules: TopicRules,
    ) -> Result<Arc<Topic>, StoreError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let rules = Arc::new(rules);
        let (change, topic) = {
            let book = self.book();
            let mut ids = book
                .topics
                .get(name.as_str())
                .map_or_else(Vec::new, |t| t.partitions.clone());
            let mut record = book.record;
            let retired = book.retired(name.as_str());
            let mut draft = Draft::new(&book, &self.disk, self.limits, false);
            for index in u32::try_from(ids.len()).unwrap_or(u32::MAX)..partitions {
                if let Some(id) = retired.get(&index) {
                    draft.edit(*id, |p| p.is_retired = false);
                    ids.push(*id);
                    continue;
                }
                let id = PartitionId(record.next_partition);
                record.next_partition += 1;
                draft.create(id, Partition::new(name.clone(), index));
                ids.push(id);
            }
            if record != book.record {
                draft.push(Op::PutStore(record));
            }
            let name = name.clone();
            (
                draft.finish(),
                Arc::new(Topic {
                    name,
                    partitions: ids,
                    rules,
                }),
            )
        };
        let is_new = !change.ops.is_empty();
        if is_new {
            self.commit(change, true, &mut writing.unclean)
                .map_err(|error| self.fail_lasting(error))?;
        }
        self.book_mut()
            .topics
            .insert(name.clone(), Arc::clone(&topic));
        if is_new {
            self.changes.send_modify(|n| *n += 1);
        }
        Ok(topic)
    }

    pub(super) fn next_producer_id(&self) -> Result<i64, StoreError> {
        let mut writing = self.writing();
        if writing.producer_ids.is_empty() {
            self.check_alive()?;
            let mut record = self.book().record;
            let block = record.next_producer..record.next_producer + PRODUCER_BLOCK;
            record.next_producer = block.end;
            self.commit_record(record, &mut writing.unclean)?;
            writing.producer_ids = block;
        }
        let number = writing.producer_ids.start;
        writing.producer_ids.start += 1;
        Ok(producers::id_of(self.book().incarnation(), number))
    }

    fn commit_record(
        &self,
        record: StoreRecord,
        unclean: &mut BTreeSet<PartitionId>,
    ) -> Result<(), StoreError> {
        let ops = vec![Op::PutStore(record)];
        let change = Change {
            ops,
            ..Change::default()
        };
        self.commit(change, true, unclean)
            .map_err(|error| self.fail_lasting(error))
    }

    pub(super) fn renew_incarnation(
        &self,
        incarnation: Incarnation,
    ) -> Result<Incarnation, StoreError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let change = {
            let book = self.book();
            let mut draft = Draft::new(&book, &self.disk, self.limits, false);
            draft.set_origins();
            draft.push(Op::PutStore(StoreRecord {
                incarnation,
                ..book.record
            }));
            draft.finish()
        };
        self.commit(change, true, &mut writing.unclean)
            .map_err(|error| self.fail_lasting(error))?;
        self.changes.send_modify(|n| *n += 1);
        Ok(incarnation)
    }

    pub(super) fn sweep(&self, wall_ms: i64) -> Result<(), StoreError> {
        let mut writing = self.writing();
        self.check_alive()?;
        let age = self.book().record.age.advanced(wall_ms);
        // in memory at once: a disk that is full must not stop the clock
        self.book_mut().record.age = age;
        let is_low = self.disk.is_low();
        let swept = {
            let book = self.book();
            let mut draft = Draft::new(&book, &self.disk, self.limits, is_low);
            let swept = sweep_all(&book, &mut draft, is_low);
            draft.push(Op::PutStore(book.record));
            swept.map(|()| draft.finish())
        };
        let change = swept.map_err(|error| self.fail(error))?;
        let committed = self.commit(change, false, &mut writing.unclean);
        drop(writing);
        let stored_bytes = self.book().stored_bytes;
        self.disk.maintain(stored_bytes);
        committed.map_err(|error| self.fail_lasting(error))?;
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    pub(super) fn range(&self, id: PartitionId) -> Result<LogRange, StoreError> {
        let book = self.book();
        book.partition(id)
            .map(Partition::range)
            .ok_or(StoreError::UnknownPartition)
    }

    pub(super) fn state(
        &self,
        space: StateSpace,
        prefix: &[u8],
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let found = self.disk.state(space, prefix);
        found.map_err(|error| self.fail(error))
    }

    pub(super) fn space(&self) -> Space {
        let book = self.book();
        let (stored_bytes, acked_bytes) = (book.stored_bytes, book.acked_bytes);
        drop(book);
        Space {
            stored_bytes,
            acked_bytes,
            quota_bytes: self.limits.quota_bytes,
            free_bytes: self.disk.free_bytes(),
            is_disk_low: self.disk.is_low(),
        }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<StoreError>> {
        self.failure.subscribe()
    }

    pub(super) fn check_alive(&self) -> Result<(), StoreError> {
        self.failure.borrow().clone().map_or(Ok(()), Err)
    }

    /// A full disk passes; everything else is final for the process.
    pub(super) fn fail_lasting(&self, error: DiskError) -> StoreError {
        match error {
            DiskError::Full(_) => error.into(),
            DiskError::Corrupt(_) | DiskError::Failed(_) => self.fail(error),
        }
    }

    /// Notes the first failure: nothing is acknowledged after it.
    pub(super) fn fail(&self, error: DiskError) -> StoreError {
        let error = StoreError::from(error);
        if let StoreError::Corrupt(why) = &error {
            self.disk.mark_damaged(why);
        }
        self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            if is_first {
                tracing::error!(%error, "Store failed");
                *failure = Some(error.clone());
            }
            is_first
        });
        error
    }

    /// What a restart forgets.
    #[cfg(test)]
    pub(super) fn forget_unstored(&self) {
        self.writing().producers.forget_refused();
        self.book_mut().tell_all_gaps();
    }

    pub(super) fn book(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn book_mut(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep_all<D: Disk>(
    book: &Book,
    draft: &mut Draft<'_, D>,
    is_low: bool,
) -> Result<(), DiskError> {
    for topic in book.topics.values() {
        draft.sweep_topic(topic)?;
    }
    draft.sweep_node()?;
    if is_low {
        draft.relieve(RELIEF_BYTES)?;
    }
    Ok(())
}

/// Deletes what a failed write may have left beyond the end of a log.
fn is_scrub(op: &Op) -> bool {
    matches!(
        op,
        Op::Delete {
            to: Offset::MAX,
            ..
        }
    )
}
