//! RocksDB as the [`Disk`].
//!
//! Reads start at known positions and end at bounds, whole ranges are deleted at once, so that no reader
//! walks over tombstones.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rocksdb::properties::{
    BASE_LEVEL, CURRENT_SUPER_VERSION_NUMBER, LIVE_SST_FILES_SIZE, num_files_at_level,
};
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, CompactOptions, DB, DBRawIterator, ErrorKind,
    ReadOptions, WriteBatch, WriteOptions,
};
use shared::ids::Offset;

use super::disk::{Disk, DiskError, Op, Scan, StoredRef};
use super::ends::EndsFile;
use super::engine::Loaded;
use super::node::DB_DIR;
use super::partition::Partition;
use super::space::{self, Reserve};
use super::state::{StateChange, StateSpace};
use super::tuning::{IDX, LOG, META};
use super::value::{self, IndexEntry};
use super::{PartitionId, keys};

/// How long a write waits for RocksDB to catch up with its flushes and compactions.
const STALL: Duration = Duration::from_secs(5);
/// The same on a full disk, of what may make room: a flush that still fits takes no longer.
const STALL_FULL: Duration = Duration::from_secs(1);
const STALL_STEP: Duration = Duration::from_millis(1);
/// Files that wait in the log's first level, at which appends wait for compaction. RocksDB's own stop holds
/// deletions up too, and what compaction needs may be what they would give back.
const MOST_WAITING_FILES: u64 = 24;
/// What RocksDB needs to get out of a stall: a table file for each write buffer.
const FLUSH_BYTES: u64 = 8 << 20;
/// Less than this is not worth a compaction of all that is stored.
const LEAST_GAIN: u64 = 1 << 20;
/// No compaction of the log writes so much before it gives anything back.
const MOST_COMPACTED_BYTES: u64 = 512 << 20;
/// What a change takes in a write beside a batch's bytes: the longest are a partition's books.
const OP_BYTES: usize = 512;

/// The store's files on disk.
#[derive(Debug)]
pub(super) struct RocksDisk {
    db: DB,
    dir: PathBuf,
    ends: Mutex<EndsFile>,
    scratch: Mutex<Vec<u8>>,
    reserve: Reserve,
    min_free_bytes: u64,
    /// Of the log's tables with this version number, what their next compaction reads.
    compacted: Mutex<(u64, u64)>,
    /// What [`Self::taken_bytes`] were beyond the batches when all of it was compacted last.
    overhead: AtomicU64,
}

impl RocksDisk {
    pub(super) fn new(
        db: DB,
        dir: &Path,
        ends: EndsFile,
        reserve: Reserve,
        min_free_bytes: u64,
    ) -> Self {
        Self {
            db,
            dir: dir.to_owned(),
            ends: Mutex::new(ends),
            scratch: Mutex::default(),
            reserve,
            min_free_bytes,
            compacted: Mutex::default(),
            overhead: AtomicU64::new(0),
        }
    }

    /// Looks after the ends file. True when something is left to sync.
    pub(super) fn sync_ends(&self) -> bool {
        self.ends().sync_if_due()
    }

    /// Notes that the store was closed in order.
    pub(super) fn close(&self) {
        self.ends().close();
    }

    /// So little space that a flush may not fit.
    fn is_full(&self) -> bool {
        let floor = self.min_free_bytes.max(FLUSH_BYTES);
        space::free_bytes(&self.dir).is_ok_and(|free| free < floor)
    }

    /// Writes, however long RocksDB's own stall lasts: until there is no hope of its end.
    fn write(&self, ops: &[Op], options: &WriteOptions) -> Result<(), DiskError> {
        let is_append = ops.iter().any(|op| matches!(op, Op::PutBatch { .. }));
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        loop {
            let stalled = if is_append && self.is_behind() {
                DiskError::Full("compaction is behind".to_owned())
            } else {
                match write(&self.db, ops, options, &mut scratch) {
                    Err(error) if error.kind() == ErrorKind::Incomplete => disk_error(error),
                    written => return written.map_err(disk_error),
                }
            };
            let patience = match (self.is_full(), is_append) {
                (true, true) => Duration::ZERO,
                (true, false) => STALL_FULL,
                (false, _) => STALL,
            };
            if begun.elapsed() >= patience {
                return Err(stalled);
            }
            thread::sleep(STALL_STEP);
        }
    }

    fn is_behind(&self) -> bool {
        self.of_log(num_files_at_level(0)) >= MOST_WAITING_FILES
    }

    /// What the log's next compaction reads, and may write before it gives anything back: its first level and
    /// the one that goes to.
    fn compacted_bytes(&self) -> u64 {
        let version = self.of_log(CURRENT_SUPER_VERSION_NUMBER);
        let mut known = self
            .compacted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.0 != version {
            let base = self.of_log(BASE_LEVEL);
            let files = self.db.live_files().unwrap_or_default();
            let is_read = |level| level == 0 || u64::try_from(level) == Ok(base);
            let read = files
                .iter()
                .filter(|file| file.column_family_name == LOG && is_read(file.level));
            *known = (version, read.map(|file| file.size as u64).sum());
        }
        known.1
    }

    /// The log's tables and the write-ahead log.
    fn taken_bytes(&self) -> u64 {
        let ahead = space::size_of_ending(&self.dir.join(DB_DIR), "log");
        self.of_log(LIVE_SST_FILES_SIZE) + ahead
    }

    /// A number that RocksDB tells of the log's column family; 0 where it does not.
    fn of_log(&self, property: impl rocksdb::CStrLike) -> u64 {
        let found = self
            .db
            .property_int_value_cf(family(&self.db, LOG), property);
        found.ok().flatten().unwrap_or(0)
    }

    /// Gets what is deleted out of the files, where RocksDB does not come to it by itself: below so many files it
    /// has no reason, and after a compaction that found the disk full it begins none before as much is free as
    /// the last that it began was to read, whatever that would leave. A small one lowers that.
    fn squeeze(&self, stored_bytes: u64) {
        let [log, meta, idx] = [LOG, META, IDX].map(|name| family(&self.db, name));
        // a write-ahead log is there until all that is in it is elsewhere
        for changed in [log, meta, idx] {
            if let Err(error) = self.db.flush_cf(changed) {
                tracing::debug!(%error, "Deletions could not be flushed");
                return;
            }
        }
        let mut whole = CompactOptions::default();
        whole.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        let all = None::<&[u8]>;
        self.db.compact_range_cf_opt(meta, all, all, &whole);
        self.db.compact_range_cf(log, all, all);
        if self.of_log(num_files_at_level(0)) == 0 {
            let overhead = self.taken_bytes().saturating_sub(stored_bytes);
            self.overhead.store(overhead, Ordering::Relaxed);
        }
    }

    fn ends(&self) -> MutexGuard<'_, EndsFile> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn db(&self) -> &DB {
        &self.db
    }
}

impl Disk for RocksDisk {
    fn commit(&self, ops: &[Op], is_synced: bool) -> Result<(), DiskError> {
        let mut options = WriteOptions::default();
        options.set_sync(is_synced);
        // RocksDB's own stall has no end while it waits for a full disk to recover, and whoever would
        // make room waits behind it
        options.set_no_slowdown(true);
        self.write(ops, &options)?;
        let mut ends = self.ends();
        for op in ops {
            match op {
                Op::PutPartition { partition, books } => ends.write_partition(*partition, books),
                Op::PutStore(record) => ends.write_store(*record),
                Op::PutBatch { .. }
                | Op::PutIndex { .. }
                | Op::Delete { .. }
                | Op::PutGap { .. }
                | Op::DeleteGap { .. }
                | Op::PutProducer { .. }
                | Op::DeleteProducer(_)
                | Op::PutState(_) => {}
            }
        }
        Ok(())
    }

    fn scan(&self, partition: PartitionId, from: Offset, to: Offset) -> Box<dyn Scan + '_> {
        scan(&self.db, partition, from, to)
    }

    fn index(
        &self,
        partition: PartitionId,
        from: Offset,
        to: Offset,
        visit: &mut dyn FnMut(&IndexEntry) -> bool,
    ) -> Result<(), DiskError> {
        let Some(first) = from.checked_add(1).filter(|first| *first < to) else {
            return Ok(());
        };
        let mut iter = bounded(
            &self.db,
            IDX,
            keys::item(partition, first),
            keys::item(partition, to),
        );
        iter.seek_to_first();
        while let Some(value) = iter.value() {
            let entry = value::parse_index_entry(value)
                .ok_or_else(|| DiskError::Corrupt("index entry does not parse".to_owned()))?;
            if !visit(&entry) {
                return Ok(());
            }
            iter.next();
        }
        iter.status().map_err(read_error)
    }

    fn state(&self, space: StateSpace, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, DiskError> {
        let from = keys::state(space, prefix);
        // no key of a space lies behind this one
        let to = [keys::STATE, (space as u8).saturating_add(1)];
        let mut iter = bounded(&self.db, META, &from[..], to);
        let mut found = Vec::new();
        iter.seek_to_first();
        while let Some((key, value)) = iter.item() {
            if !key.starts_with(&from) {
                break;
            }
            let key = key.get(keys::STATE_PREFIX..).unwrap_or_default();
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            iter.next();
        }
        iter.status().map_err(read_error)?;
        Ok(found)
    }

    fn reclaim(&self, partition: PartitionId, to: Offset) -> Result<(), DiskError> {
        // the end is part of the range
        let (from, last) = (
            keys::item(partition, 0),
            keys::item(partition, to.saturating_sub(1)),
        );
        for name in [LOG, IDX] {
            let family = family(&self.db, name);
            self.db
                .delete_file_in_range_cf(family, from, last)
                .map_err(disk_error)?;
        }
        Ok(())
    }

    fn is_low(&self) -> bool {
        let Ok(free) = space::free_bytes(&self.dir) else {
            return false;
        };
        free < self.min_free_bytes
            || free < MOST_COMPACTED_BYTES && free < self.compacted_bytes() + FLUSH_BYTES
    }

    fn free_bytes(&self) -> Option<u64> {
        space::free_bytes(&self.dir).ok()
    }

    fn open_reserve(&self) -> bool {
        self.reserve.open()
    }

    fn maintain(&self, stored_bytes: u64) {
        let Ok(free) = space::free_bytes(&self.dir) else {
            return;
        };
        if !self.is_low() {
            return self.reserve.fill(free, self.min_free_bytes);
        }
        super::repair::discard_set_aside(&self.dir);
        let overhead = self.overhead.load(Ordering::Relaxed).max(stored_bytes / 8);
        let live = stored_bytes.saturating_add(overhead);
        if free > live + FLUSH_BYTES && self.taken_bytes() > live + LEAST_GAIN {
            self.squeeze(stored_bytes);
        }
    }

    fn mark_damaged(&self, why: &str) {
        super::repair::mark(&self.dir, why);
    }
}

/// Carries out a list of changes on a start: synced, however long it takes.
pub(super) fn write_ops(db: &DB, ops: &[Op]) -> Result<(), DiskError> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    write(db, ops, &options, &mut Vec::new()).map_err(disk_error)
}

/// Carries out a list of changes as one write.
fn write(
    db: &DB,
    ops: &[Op],
    options: &WriteOptions,
    scratch: &mut Vec<u8>,
) -> Result<(), rocksdb::Error> {
    let (log, meta, idx) = (family(db, LOG), family(db, META), family(db, IDX));
    // grown step by step it would be copied as often
    let mut batch = WriteBatch::with_capacity_bytes(size_hint(ops));
    for op in ops {
        match op {
            Op::PutBatch {
                partition,
                base,
                head,
                batch: bytes,
            } => {
                value::put_batch(scratch, head, *base, bytes);
                batch.put_cf(log, keys::item(*partition, *base), &scratch[..]);
            }
            Op::PutIndex { partition, entry } => {
                let key = keys::item(*partition, entry.point.offset);
                batch.put_cf(idx, key, value::index_entry(entry));
            }
            Op::Delete {
                partition,
                from,
                to,
            } => {
                let (from, to) = (keys::item(*partition, *from), keys::item(*partition, *to));
                batch.delete_range_cf(log, from, to);
                batch.delete_range_cf(idx, from, to);
            }
            Op::PutGap { partition, gap } => {
                let key = keys::gap(*partition, gap.from.offset);
                batch.put_cf(meta, key, value::gap(gap));
            }
            Op::DeleteGap { partition, from } => {
                batch.delete_cf(meta, keys::gap(*partition, *from));
            }
            Op::PutPartition { partition, books } => {
                batch.put_cf(meta, keys::partition(*partition), value::partition(books));
            }
            Op::PutProducer { key, state } => {
                batch.put_cf(meta, keys::producer(*key), value::producer(state));
            }
            Op::DeleteProducer(key) => batch.delete_cf(meta, keys::producer(*key)),
            Op::PutStore(record) => batch.put_cf(meta, keys::STORE, value::store(record)),
            Op::PutState(StateChange { key, value }) => {
                let key = keys::state(key.space, &key.key);
                match value {
                    Some(value) => batch.put_cf(meta, key, value),
                    None => batch.delete_cf(meta, key),
                }
            }
        }
    }
    db.write_opt(batch, options)
}

/// What a list of changes takes as one write, or a little more.
fn size_hint(ops: &[Op]) -> usize {
    let batches = ops.iter().filter_map(|op| match op {
        Op::PutBatch { batch, .. } => Some(batch.len()),
        Op::PutState(change) => Some(change.len()),
        Op::PutIndex { .. }
        | Op::Delete { .. }
        | Op::PutGap { .. }
        | Op::DeleteGap { .. }
        | Op::PutPartition { .. }
        | Op::PutProducer { .. }
        | Op::DeleteProducer(_)
        | Op::PutStore(_) => None,
    });
    batches.sum::<usize>() + OP_BYTES * (ops.len() + 1)
}

/// Batches of a partition from the one that holds `from`, up to and without `to`.
pub(super) fn scan(
    db: &DB,
    partition: PartitionId,
    from: Offset,
    to: Offset,
) -> Box<dyn Scan + '_> {
    Box::new(LogScan::new(db, partition, from, to))
}

/// Batches of one partition, from the one that holds a given offset.
struct LogScan<'a> {
    iter: DBRawIterator<'a>,
    partition: PartitionId,
    from: Offset,
    has_begun: bool,
}

impl<'a> LogScan<'a> {
    fn new(db: &'a DB, partition: PartitionId, from: Offset, to: Offset) -> Self {
        let iter = bounded(
            db,
            LOG,
            keys::item(partition, 0),
            keys::item(partition, to.max(from)),
        );
        Self {
            iter,
            partition,
            from,
            has_begun: false,
        }
    }

    fn begin(&mut self) -> Result<(), DiskError> {
        let key = keys::item(self.partition, self.from);
        self.iter.seek(key);
        if self.iter.key() == Some(&key[..]) {
            return Ok(());
        }
        self.iter.status().map_err(read_error)?;
        // no batch begins here: the one before may hold the offset
        self.iter.seek_for_prev(key);
        let from = self.from;
        if self.current()?.is_none_or(|stored| stored.next() <= from) {
            self.iter.seek(key);
        }
        Ok(())
    }

    fn current(&self) -> Result<Option<StoredRef<'_>>, DiskError> {
        match self.iter.item() {
            Some((key, value)) => parse_stored(self.partition, key, value).map(Some),
            None => self.iter.status().map(|()| None).map_err(read_error),
        }
    }
}

impl Scan for LogScan<'_> {
    fn step(&mut self) -> Result<Option<StoredRef<'_>>, DiskError> {
        if self.has_begun {
            if self.iter.valid() {
                self.iter.next();
            }
        } else {
            self.has_begun = true;
            self.begin()?;
        }
        self.current()
    }
}

fn parse_stored<'a>(
    partition: PartitionId,
    key: &[u8],
    value: &'a [u8],
) -> Result<StoredRef<'a>, DiskError> {
    let base = keys::offset_of(partition, key);
    let parsed = base.zip(value::split_batch(value));
    let (base, (head, batch)) =
        parsed.ok_or_else(|| DiskError::Corrupt("stored batch does not parse".to_owned()))?;
    Ok(StoredRef { base, head, batch })
}

/// The first batch whose place in the whole store's history is at or after `position`; the last one
/// when all are older.
pub(super) fn first_since(
    db: &DB,
    partition: PartitionId,
    position: u64,
) -> Result<Option<Offset>, DiskError> {
    let mut iter = bounded(
        db,
        LOG,
        keys::item(partition, 0),
        keys::item(partition, Offset::MAX),
    );
    let mut first = None;
    iter.seek_to_last();
    while let Some((key, value)) = iter.item() {
        let base = keys::offset_of(partition, key);
        let head = value::split_batch(value);
        let (base, (head, _)) = base
            .zip(head)
            .ok_or_else(|| DiskError::Corrupt("stored batch does not parse".to_owned()))?;
        if head.position < position && first.is_some() {
            break;
        }
        first = Some(base);
        iter.prev();
    }
    iter.status().map_err(read_error)?;
    Ok(first)
}

/// Everything small that a database holds. `None` when it has no store record: it is new.
pub(super) fn load(db: &DB) -> Result<Option<Loaded>, DiskError> {
    let meta = family(db, META);
    let Some(record) = db.get_cf(meta, keys::STORE).map_err(disk_error)? else {
        return Ok(None);
    };
    let record = value::parse_store(&record).ok_or_else(|| unparsed("store record"))?;
    let mut partitions: Vec<(PartitionId, Partition)> = Vec::new();
    each(db, META, &[keys::PARTITION], &mut |key, found| {
        let id = key.get(1..5).and_then(|id| id.first_chunk());
        let id = PartitionId(u32::from_be_bytes(*id?));
        partitions.push((id, value::parse_partition(found)?));
        Some(())
    })?;
    each(db, META, &[keys::GAP], &mut |key, found| {
        let (id, from) = keys::split_item(key.get(1..)?)?;
        let gap = value::parse_gap(found)?;
        let at = partitions.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let gaps = &mut partitions.get_mut(at)?.1.gaps;
        std::sync::Arc::make_mut(gaps).insert(from, gap);
        Some(())
    })?;
    let mut producers = Vec::new();
    each(db, META, &[keys::PRODUCER], &mut |key, found| {
        producers.push((keys::split_producer(key)?, value::parse_producer(found)?));
        Some(())
    })?;
    Ok(Some(Loaded {
        record,
        partitions,
        producers,
    }))
}

fn each(
    db: &DB,
    name: &str,
    prefix: &[u8; 1],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> Option<()>,
) -> Result<(), DiskError> {
    let mut iter = bounded(db, name, *prefix, [prefix[0] + 1]);
    iter.seek_to_first();
    while let Some((key, found)) = iter.item() {
        visit(key, found).ok_or_else(|| unparsed("record"))?;
        iter.next();
    }
    iter.status().map_err(read_error)
}

fn unparsed(what: &str) -> DiskError {
    DiskError::Corrupt(format!("stored {what} does not parse"))
}

/// An iterator over `from..to` that leaves the block cache to indexes.
pub(super) fn bounded<'a>(
    db: &'a DB,
    name: &str,
    from: impl Into<Vec<u8>>,
    to: impl Into<Vec<u8>>,
) -> DBRawIterator<'a> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    db.raw_iterator_cf_opt(family(db, name), options)
}

pub(super) fn family<'a>(db: &'a DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name)
        .expect("every database is opened with all column families")
}

/// A read that the device fails is damage: it fails the same way after a restart.
pub(super) fn read_error(error: rocksdb::Error) -> DiskError {
    match disk_error(error) {
        DiskError::Failed(why) if why.contains("Input/output error") => DiskError::Corrupt(why),
        other @ (DiskError::Full(_) | DiskError::Corrupt(_) | DiskError::Failed(_)) => other,
    }
}

pub(super) fn disk_error(error: rocksdb::Error) -> DiskError {
    let kind = error.kind();
    let text = error.into_string();
    if text.contains("No space left") || text.contains("NoSpace") {
        return DiskError::Full(text);
    }
    match kind {
        ErrorKind::Corruption => DiskError::Corrupt(text),
        // a write that would have had to wait
        ErrorKind::Incomplete => DiskError::Full(text),
        ErrorKind::NotFound
        | ErrorKind::NotSupported
        | ErrorKind::InvalidArgument
        | ErrorKind::IOError
        | ErrorKind::MergeInProgress
        | ErrorKind::ShutdownInProgress
        | ErrorKind::TimedOut
        | ErrorKind::Aborted
        | ErrorKind::Busy
        | ErrorKind::Expired
        | ErrorKind::TryAgain
        | ErrorKind::CompactionTooLarge
        | ErrorKind::ColumnFamilyDropped
        | ErrorKind::Unknown => DiskError::Failed(text),
    }
}
