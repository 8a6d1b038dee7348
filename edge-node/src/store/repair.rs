//! Salvage: a damaged database is set aside and everything that can be read goes into a new one.
//!
//! ```text
//! store/  db/           the database           salvage        damage was found: salvage on start
//!         ends          the books once more    damaged-<n>/   what was set aside, the latest only
//!         reserve                              db-new/        a copy under way
//!
//! mark ─► db → damaged-n ─► copy to db-new ─► db-new → db ─► unmark
//! ```
//! Each step can be cut short: the next start finds the mark and begins again from what was set aside.
//! What was set aside is deleted when the disk runs low.
//!
//! The copy needs as much free space as the log. When there is less, the database is repaired in place:
//! that costs the whole of each damaged file, and not only its damaged blocks.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rocksdb::{DB, WriteBatch, WriteOptions};
use shared::ids::{Incarnation, Offset};

use super::disk::{DiskError, Op};
use super::ends::Ends;
use super::engine::Loaded;
use super::partition::Partition;
use super::readable::{each_readable, next_readable, under};
use super::rocks;
use super::tuning::{self, IDX, LOG, META};
use super::value::{self, IndexEntry, StoreRecord};
use super::{PartitionId, keys, space};

const MARK: &str = "salvage";
const DB_DIR: &str = "db";
const NEW_DIR: &str = "db-new";
const ASIDE: &str = "damaged-";
/// Bytes copied in one write.
const COPY_BYTES: usize = 2 << 20;

/// What a salvage did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salvage {
    /// Why it was needed.
    pub reason: String,
    /// Where the damaged files are kept until the next salvage.
    pub set_aside: Option<PathBuf>,
    /// Record batches copied; none after a repair in place.
    pub batches: u64,
    /// True when nothing could be read: the store has a new incarnation.
    pub is_total_loss: bool,
}

/// Notes that the next start must salvage.
pub(super) fn mark(dir: &Path, why: &str) {
    let write = || -> io::Result<()> {
        let mut file = File::create(dir.join(MARK))?;
        file.write_all(why.as_bytes())?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    };
    if let Err(error) = write() {
        tracing::error!(%error, "Store could not be marked as damaged");
    }
}

/// Why a salvage is due, if it is.
pub(super) fn marked(dir: &Path) -> Option<String> {
    let reason = fs::read(dir.join(MARK)).ok()?;
    Some(String::from_utf8_lossy(&reason).into_owned())
}

/// Sets the database aside and makes a new one of what can be read.
pub(super) fn salvage(
    dir: &Path,
    reason: String,
    ends: Option<&Ends>,
    fresh: Incarnation,
    index_bytes: u64,
) -> Result<Salvage, DiskError> {
    let db = dir.join(DB_DIR);
    let has_room =
        |from: &Path| space::free_bytes(dir).is_ok_and(|free| free > space::size_of(from));
    if db.exists() {
        remove_older(dir).map_err(|error| io_error(&error))?;
    }
    if db.exists() && !has_room(&db) {
        return repair_in_place(dir, reason, ends, fresh);
    }
    let source = set_aside(dir).map_err(|error| io_error(&error))?;
    let has_room = source.as_deref().is_none_or(has_room);
    let old = source.as_deref().and_then(open_damaged);
    let target = dir.join(NEW_DIR);
    let db = tuning::create_db(&target).map_err(rocks::disk_error)?;
    let (mut loaded, is_total_loss) = read_books(old.as_ref(), ends, fresh);
    begin_at_cursors_if(is_total_loss, &mut loaded);
    let mut copy = Copy {
        db: &db,
        batch: WriteBatch::default(),
        batches: 0,
    };
    for (id, p) in &mut loaded.partitions {
        if !has_room {
            p.start = p.acked;
            let start = p.start.offset;
            std::sync::Arc::make_mut(&mut p.gaps).retain(|from, _| *from >= start);
        }
        if let Some(old) = &old
            && let Err(error) = copy.partition(old, *id, p.start.offset, index_bytes)
        {
            // what was not copied is found missing and declared
            tracing::error!(?error, topic = %p.topic, partition = p.index, "Salvage of a log ended early");
        }
    }
    if let Some(old) = &old {
        copy.state(old)?;
    }
    copy.flush()?;
    let batches = copy.batches;
    write_books(&db, &loaded)?;
    for name in [LOG, META, IDX] {
        db.flush_cf(rocks::family(&db, name))
            .map_err(rocks::disk_error)?;
    }
    drop(db);
    drop(old);
    fs::rename(&target, dir.join(DB_DIR)).map_err(|error| io_error(&error))?;
    unmark(dir).map_err(|error| io_error(&error))?;
    Ok(Salvage {
        reason,
        set_aside: source,
        batches,
        is_total_loss,
    })
}

/// There is no room for a copy: RocksDB pieces together what it finds, and a file with a damaged block
/// is lost as a whole (8 MiB at most).
fn repair_in_place(
    dir: &Path,
    reason: String,
    ends: Option<&Ends>,
    fresh: Incarnation,
) -> Result<Salvage, DiskError> {
    tracing::warn!("No room for a copy: the database is repaired in place");
    let path = dir.join(DB_DIR);
    // what files are lost must be known on the next start, should this one be cut short
    mark(dir, &reason);
    let (options, _) = tuning::tuned(false);
    DB::repair(&options, &path).map_err(rocks::disk_error)?;
    fs::remove_dir_all(path.join("lost"))
        .or_else(ignore_missing)
        .map_err(|error| io_error(&error))?;
    let (options, families) = tuning::tuned(true);
    let db = DB::open_cf_descriptors(&options, &path, families).map_err(rocks::disk_error)?;
    let (mut loaded, is_total_loss) = read_books(Some(&db), ends, fresh);
    begin_at_cursors_if(is_total_loss, &mut loaded);
    write_books(&db, &loaded)?;
    drop(db);
    unmark(dir).map_err(|error| io_error(&error))?;
    Ok(Salvage {
        reason,
        set_aside: None,
        batches: 0,
        is_total_loss,
    })
}

/// Under a new incarnation every log begins with what the hub was not known to have.
fn begin_at_cursors_if(is_total_loss: bool, loaded: &mut Loaded) {
    if is_total_loss {
        for (_, p) in &mut loaded.partitions {
            p.start = p.acked;
            p.origin = p.acked.offset;
        }
    }
}

fn unmark(dir: &Path) -> io::Result<()> {
    fs::remove_file(dir.join(MARK)).or_else(ignore_missing)?;
    File::open(dir)?.sync_all()
}

/// Moves the database out of the way; finds it there when an earlier salvage was cut short.
fn set_aside(dir: &Path) -> io::Result<Option<PathBuf>> {
    fs::remove_dir_all(dir.join(NEW_DIR)).or_else(ignore_missing)?;
    let older = kept_aside(dir)?;
    let db = dir.join(DB_DIR);
    if !db.exists() {
        return Ok(older.last().map(|n| dir.join(format!("{ASIDE}{n}"))));
    }
    let aside = dir.join(format!("{ASIDE}{}", older.last().map_or(1, |n| n + 1)));
    fs::rename(&db, &aside)?;
    File::open(dir)?.sync_all()?;
    Ok(Some(aside))
}

/// Of what was set aside only the latest is kept.
fn remove_older(dir: &Path) -> io::Result<()> {
    for number in kept_aside(dir)? {
        fs::remove_dir_all(dir.join(format!("{ASIDE}{number}")))?;
    }
    Ok(())
}

/// Numbers of the databases that were set aside, in order.
fn kept_aside(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_str();
        numbers.extend(name.and_then(|name| name.strip_prefix(ASIDE)?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Deletes what was set aside, for want of space. Never while a salvage still needs it.
pub(super) fn discard_set_aside(dir: &Path) {
    if marked(dir).is_some() {
        return;
    }
    for number in kept_aside(dir).unwrap_or_default() {
        let path = dir.join(format!("{ASIDE}{number}"));
        match fs::remove_dir_all(&path) {
            Ok(()) => {
                tracing::warn!(path = %path.display(), "Set-aside database deleted for space")
            }
            Err(error) => tracing::warn!(%error, "Set-aside database could not be deleted"),
        }
    }
}

/// Opens what is there for reading; has RocksDB piece the files together when that fails, or when a
/// file is so damaged that it spoils every read. That costs the whole file: damaged blocks alone are
/// left to [`each_readable`].
fn open_damaged(path: &Path) -> Option<DB> {
    let opened = open_for_reading(path);
    match &opened {
        Ok(db) if is_usable(db) => return opened.ok(),
        Ok(_) => tracing::warn!("Damaged database has a file that cannot be read at all"),
        Err(error) => tracing::warn!(%error, "Damaged database does not open"),
    }
    drop(opened);
    let (options, _) = tuning::tuned(false);
    DB::repair(&options, path)
        .and_then(|()| open_for_reading(path))
        .map_err(|error| tracing::error!(%error, "Damaged database is unreadable"))
        .ok()
}

fn open_for_reading(path: &Path) -> Result<DB, rocksdb::Error> {
    let (mut options, _) = tuning::tuned(false);
    options.set_paranoid_checks(false);
    // a column family is gone when none of its files was left
    let names = DB::list_cf(&options, path)?;
    DB::open_cf_for_read_only(&options, path, names, false)
}

/// A table file that does not open fails reads of keys that it does not even hold.
fn is_usable(db: &DB) -> bool {
    [LOG, META]
        .into_iter()
        .all(|name| under(db, name, &[0xff], 0).is_some_and(|iter| iter.status().is_ok()))
}

/// The books, as far as they can be read, and from the ends file for the rest.
///
/// Second: true when neither they nor any batch could be read.
fn read_books(old: Option<&DB>, ends: Option<&Ends>, fresh: Incarnation) -> (Loaded, bool) {
    let point = |key: &[u8]| -> Option<Vec<u8>> {
        let old = old?;
        old.get_cf(old.cf_handle(META)?, key).ok().flatten()
    };
    let stored = point(keys::STORE).and_then(|record| value::parse_store(&record));
    let is_total_loss = stored.is_none() && (ends.is_none() || !old.is_some_and(has_batches));
    let record = match (stored, ends) {
        (Some(record), _) => record,
        (None, Some(ends)) if !is_total_loss => ends.record,
        (None, Some(ends)) => StoreRecord {
            incarnation: fresh,
            ..ends.record
        },
        (None, None) => StoreRecord::new(fresh),
    };
    let known = ends.map_or(0, |ends| ends.record.next_partition);
    let mut loaded = Loaded {
        record,
        partitions: Vec::new(),
        producers: Vec::new(),
    };
    for id in (0..record.next_partition.max(known)).map(PartitionId) {
        let stored = point(&keys::partition(id)).and_then(|books| value::parse_partition(&books));
        let noted = ends.and_then(|ends| ends.partitions.get(&id));
        let Some(mut p) = stored.or_else(|| noted.cloned()) else {
            continue;
        };
        if let Some(old) = old {
            read_gaps(old, id, &mut p);
            read_producers(old, id, &mut loaded);
        }
        loaded.partitions.push((id, p));
    }
    (loaded, is_total_loss)
}

fn has_batches(db: &DB) -> bool {
    let first = next_readable(db, LOG, &[], 0);
    first.is_some() && under(db, LOG, &[], first.unwrap_or(0)).is_some_and(|iter| iter.valid())
}

fn read_gaps(old: &DB, id: PartitionId, p: &mut Partition) {
    let prefix = &keys::gap(id, 0)[..5];
    let gaps = std::sync::Arc::make_mut(&mut p.gaps);
    each_readable(old, META, prefix, 0, &mut |from, found| {
        gaps.extend(value::parse_gap(found).map(|gap| (from, gap)));
        true
    });
}

fn read_producers(old: &DB, id: PartitionId, loaded: &mut Loaded) {
    let first = super::producers::ProducerKey {
        partition: id,
        id: 0,
    };
    let prefix = &keys::producer(first)[..5];
    each_readable(old, META, prefix, 0, &mut |producer, found| {
        let key = super::producers::ProducerKey {
            partition: id,
            id: producer.cast_signed(),
        };
        loaded
            .producers
            .extend(value::parse_producer(found).map(|state| (key, state)));
        true
    });
}

fn write_books(db: &DB, loaded: &Loaded) -> Result<(), DiskError> {
    let mut ops = vec![Op::PutStore(loaded.record)];
    for (id, p) in &loaded.partitions {
        ops.push(Op::PutPartition {
            partition: *id,
            books: p.clone(),
        });
        ops.extend(p.gaps.values().map(|gap| Op::PutGap {
            partition: *id,
            gap: *gap,
        }));
    }
    for (key, state) in &loaded.producers {
        ops.push(Op::PutProducer {
            key: *key,
            state: state.clone(),
        });
    }
    rocks::write_ops(db, &ops)
}

/// A copy under way.
struct Copy<'a> {
    db: &'a DB,
    batch: WriteBatch,
    batches: u64,
}

impl Copy<'_> {
    fn partition(
        &mut self,
        old: &DB,
        id: PartitionId,
        from: Offset,
        index_bytes: u64,
    ) -> Result<(), DiskError> {
        let mut next = 0;
        // where the block of the time index begins, and its largest timestamp
        let mut block = None;
        let mut last_age_ms = None;
        let mut outcome = Ok(());
        each_readable(
            old,
            LOG,
            &keys::item(id, 0)[..4],
            from,
            &mut |base, found| {
                // RocksDB's checksum held; the producer's own is cheap to ask as well
                let Some((head, batch)) = value::split_batch(found) else {
                    return true;
                };
                let is_sound = shared::record::verify_checksum(batch, value::crc_of(batch)).is_ok();
                if !is_sound || base < next {
                    return true; // or a leftover that overlaps its neighbour
                }
                next = base + u64::from(head.count);
                self.batch
                    .put_cf(rocks::family(self.db, LOG), keys::item(id, base), found);
                self.batches += 1;
                let latest = shared::record::BatchHeader::parse(batch)
                    .map_or(i64::MAX, |header| header.max_timestamp_ms);
                let open = block.filter(|(at, _): &(u64, i64)| head.bytes < at + index_bytes);
                if open.is_none() {
                    let point = super::partition::Point {
                        offset: base,
                        chain: head.chain,
                        bytes: head.bytes,
                    };
                    let max_timestamp_ms = block.map_or(i64::MAX, |(_, latest)| latest);
                    let age_ms = last_age_ms.unwrap_or(head.age_ms);
                    let entry = IndexEntry {
                        point,
                        age_ms,
                        max_timestamp_ms,
                    };
                    let index = rocks::family(self.db, IDX);
                    self.batch
                        .put_cf(index, keys::item(id, base), value::index_entry(&entry));
                }
                let (begun, before) = open.unwrap_or((head.bytes, i64::MIN));
                block = Some((begun, latest.max(before)));
                last_age_ms = Some(head.age_ms);
                if self.batch.size_in_bytes() >= COPY_BYTES {
                    outcome = self.flush();
                }
                outcome.is_ok()
            },
        );
        outcome
    }

    /// Facts of the protocols, as far as they can be read.
    fn state(&mut self, old: &DB) -> Result<(), DiskError> {
        let Some(mut iter) = under(old, META, &[keys::STATE], 0) else {
            return Ok(());
        };
        iter.seek([keys::STATE]);
        while let Some((key, value)) = iter.item() {
            if key.first() != Some(&keys::STATE) {
                break;
            }
            self.batch.put_cf(rocks::family(self.db, META), key, value);
            if self.batch.size_in_bytes() >= COPY_BYTES {
                self.flush()?;
            }
            iter.next();
        }
        if let Err(error) = iter.status() {
            tracing::error!(%error, "Salvage of protocol state ended early");
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        let batch = std::mem::take(&mut self.batch);
        self.db
            .write_opt(batch, &options)
            .map_err(rocks::disk_error)
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

fn io_error(error: &io::Error) -> DiskError {
    if error.kind() == io::ErrorKind::StorageFull {
        DiskError::Full(error.to_string())
    } else {
        DiskError::Failed(error.to_string())
    }
}
