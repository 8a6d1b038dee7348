//! The books once more, apart from RocksDB: what the store had acknowledged, should RocksDB's files lose
//! it.
//!
//! ```text
//! sectors of 512 bytes, in pairs: the newer valid one of a pair counts
//! 0, 1        the store       2+2k, 3+2k  partition k
//! sector      crc32c u32 (of all after it) │ length u16 │ sequence u64 │ payload │ zeros
//! store       closed cleanly u8 │ store record        partition  partition record (value.rs)
//! ```
//! Each commit writes the sectors of the partitions that it touched, in place, after RocksDB's sync
//! and before the answers; this file itself is synced every two seconds and on close. So after a kill
//! the exact ends are known, and after a power cut those of at most two seconds before. A record that
//! is older than RocksDB's own says nothing; one that is newer says what is missing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PartitionId;
use super::partition::Partition;
use super::value::{self, StoreRecord};

const SECTOR: usize = 512;
const SECTOR_LEN: u64 = 512;
const HEAD: usize = 14;
const SYNC_EVERY: Duration = Duration::from_secs(2);

/// What the file said when the store was opened.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) is_clean: bool,
    pub(super) record: StoreRecord,
    pub(super) partitions: BTreeMap<PartitionId, Partition>,
}

impl Ends {
    /// Reads the file. `None` when there is none or the store's own sectors are unreadable.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let mut pairs = bytes.chunks(2 * SECTOR);
        let (clean, record) = newest(pairs.next()?)?.split_first()?;
        let record = value::parse_store(record)?;
        let mut partitions = BTreeMap::new();
        for (id, pair) in (0_u32..).zip(pairs) {
            if let Some(books) = newest(pair).and_then(value::parse_partition) {
                partitions.insert(PartitionId(id), books);
            }
        }
        Some(Self {
            is_clean: *clean == 1,
            record,
            partitions,
        })
    }
}

fn newest(pair: &[u8]) -> Option<&[u8]> {
    let valid = pair.chunks(SECTOR).filter_map(parse_sector);
    valid
        .max_by_key(|(sequence, _)| *sequence)
        .map(|(_, payload)| payload)
}

fn parse_sector(sector: &[u8]) -> Option<(u64, &[u8])> {
    let (crc, rest) = sector.split_first_chunk::<4>()?;
    if u32::from_be_bytes(*crc) != crc32c::crc32c(rest) {
        return None;
    }
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let payload = rest.get(..usize::from(u16::from_be_bytes(*len)))?;
    Some((u64::from_be_bytes(*sequence), payload))
}

fn sector(sequence: u64, payload: &[u8]) -> [u8; SECTOR] {
    let mut out = [0; SECTOR];
    let len = u16::try_from(payload.len()).expect("records fit a sector");
    out[4..6].copy_from_slice(&len.to_be_bytes());
    out[6..HEAD].copy_from_slice(&sequence.to_be_bytes());
    out[HEAD..HEAD + payload.len()].copy_from_slice(payload);
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_be_bytes());
    out
}

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct EndsFile {
    file: File,
    sequence: u64,
    record: StoreRecord,
    synced: Instant,
    is_dirty: bool,
    has_warned: bool,
}

impl EndsFile {
    /// Writes the file anew, as a whole, and synced.
    pub(super) fn create(
        path: &Path,
        record: StoreRecord,
        partitions: &[(PartitionId, Partition)],
    ) -> io::Result<Self> {
        let fresh = path.with_extension("new");
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&fresh)?;
        let mut ends = Self {
            file,
            sequence: 0,
            record,
            synced: Instant::now(),
            is_dirty: false,
            has_warned: false,
        };
        ends.put_store(record, false)?;
        for (id, books) in partitions {
            ends.put_partition(*id, books)?;
        }
        ends.file.sync_all()?;
        fs::rename(&fresh, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        ends.is_dirty = false;
        Ok(ends)
    }

    pub(super) fn write_store(&mut self, record: StoreRecord) {
        let written = self.put_store(record, false);
        self.warn_once(written);
    }

    pub(super) fn write_partition(&mut self, id: PartitionId, books: &Partition) {
        let written = self.put_partition(id, books);
        self.warn_once(written);
    }

    /// Syncs when the last sync is long ago. True when there is something left to sync.
    pub(super) fn sync_if_due(&mut self) -> bool {
        if self.is_dirty && self.synced.elapsed() >= SYNC_EVERY {
            let synced = self.file.sync_data();
            self.warn_once(synced);
            self.synced = Instant::now();
            self.is_dirty = false;
        }
        self.is_dirty
    }

    /// Notes that the store was closed in order.
    pub(super) fn close(&mut self) {
        let closed = self
            .put_store(self.record, true)
            .and_then(|()| self.file.sync_all());
        self.warn_once(closed);
        self.is_dirty = false;
    }

    fn put_store(&mut self, record: StoreRecord, is_clean: bool) -> io::Result<()> {
        self.record = record;
        self.sequence += 1;
        let mut payload = vec![u8::from(is_clean)];
        payload.extend_from_slice(&value::store(&record));
        self.put(self.sequence % 2, self.sequence, &payload)
    }

    fn put_partition(&mut self, id: PartitionId, books: &Partition) -> io::Result<()> {
        let place = 2 + 2 * u64::from(id.0) + books.version % 2;
        self.put(place, books.version, &value::partition(books))
    }

    fn put(&mut self, place: u64, sequence: u64, payload: &[u8]) -> io::Result<()> {
        self.is_dirty = true;
        let at = place * SECTOR_LEN;
        self.file.write_all_at(&sector(sequence, payload), at)
    }

    /// This file is a second line of defence: the store goes on without it.
    fn warn_once(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome
            && !self.has_warned
        {
            self.has_warned = true;
            tracing::warn!(%error, "The ends of the logs could not be noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::ids::{Incarnation, TopicName};

    use super::super::age::AgeClock;
    use super::*;

    #[test]
    fn what_was_written_last_is_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ends");
        assert!(Ends::load(&path).is_none());
        let mut books = log();
        let mut file =
            EndsFile::create(&path, record(1), &[(PartitionId(3), books.clone())]).unwrap();
        for version in 1..6 {
            books.version = version;
            books.append(1, 1, 10, 0);
            file.write_partition(PartitionId(3), &books);
        }
        file.write_store(record(2));
        let ends = Ends::load(&path).unwrap();
        assert_eq!(ends.partitions, BTreeMap::from([(PartitionId(3), books)]));
        assert_eq!((ends.record, ends.is_clean), (record(2), false));
        file.close();
        assert!(Ends::load(&path).unwrap().is_clean);
    }

    #[test]
    fn a_torn_sector_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ends");
        let mut books = log();
        let mut file =
            EndsFile::create(&path, record(1), &[(PartitionId(0), books.clone())]).unwrap();
        let before = books.clone();
        books.version = 1;
        books.append(1, 1, 10, 0);
        file.write_partition(PartitionId(0), &books);
        let mut bytes = fs::read(&path).unwrap();
        let torn = 3 * SECTOR + 100;
        bytes[torn] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(
            Ends::load(&path).unwrap().partitions[&PartitionId(0)],
            before
        );
    }

    #[test]
    fn the_longest_topic_name_fits_a_sector() {
        let books = Partition::new(TopicName::new(&"x".repeat(249)).unwrap(), u32::MAX);
        assert!(value::partition(&books).len() + HEAD <= SECTOR);
    }

    fn log() -> Partition {
        Partition::new(TopicName::new("t").unwrap(), 0)
    }

    fn record(next_partition: u32) -> StoreRecord {
        StoreRecord {
            incarnation: Incarnation(7),
            next_partition,
            next_producer: 0,
            age: AgeClock::default(),
        }
    }
}
