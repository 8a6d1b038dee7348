//! One site's chunks on a disk: segments that are only appended to, and dropped whole.
//!
//! ```text
//!  00000007.chunks
//!  ├ id        ├ length  ├ chunk …  ├ id …
//!  │ 16 bytes  │ u32     │          │
//! ```
//! Which chunk lies where is kept in memory and read from the heads on start. A segment's tail that is not
//! whole is cut off; a chunk whose bytes are not those of its id is as good as absent. When the store is full the
//! oldest segment goes, and what was used since it was written is appended once more.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use shared::dedup::{ChunkId, ChunkStore};
use tracing::warn;

const HEAD_LEN: u64 = 20;
/// Longer than any chunk on the link.
const MAX_CHUNK: u32 = 64 << 10;
/// A store has about so many segments, so that little is lost with one.
const SEGMENTS: u64 = 16;
/// Below this there would be more files than sense.
const MIN_SEGMENT: u64 = 256 << 10;
/// How each segment's file ends.
const EXTENSION: &str = "chunks";

#[derive(Debug)]
struct Segment {
    file: File,
    len: u64,
}

#[derive(Debug, Clone, Copy)]
struct Spot {
    segment: u32,
    at: u64,
    len: u32,
    is_used: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct DiskChunks {
    dir: PathBuf,
    max_bytes: u64,
    segments: BTreeMap<u32, Segment>,
    spots: HashMap<ChunkId, Spot>,
    bytes: u64,
    /// A disk that fails is told about once.
    has_failed: bool,
}

impl DiskChunks {
    /// Opens or creates the store in this directory.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        // what sites send may be confidential
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let mut store = Self {
            dir: dir.to_owned(),
            max_bytes,
            segments: BTreeMap::new(),
            spots: HashMap::new(),
            bytes: 0,
            has_failed: false,
        };
        let mut numbers: Vec<u32> = std::fs::read_dir(dir)?
            .filter_map(|entry| number_of(&entry.ok()?.path()))
            .collect();
        numbers.sort_unstable();
        for number in numbers {
            store.load(number)?;
        }
        store.make_room();
        Ok(store)
    }

    fn load(&mut self, number: u32) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path_of(number))?;
        let end = file.metadata()?.len();
        let mut at = 0;
        while let Some((id, len)) = read_head(&file, at, end) {
            let spot = Spot {
                segment: number,
                at: at + HEAD_LEN,
                len,
                is_used: false,
            };
            self.spots.insert(id, spot);
            at = spot.at + u64::from(len);
        }
        if at < end {
            file.set_len(at)?;
        }
        self.bytes += at;
        self.segments.insert(number, Segment { file, len: at });
        Ok(())
    }

    fn path_of(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08}.{EXTENSION}"))
    }

    fn read(&self, id: &ChunkId) -> Option<Bytes> {
        let spot = self.spots.get(id)?;
        let mut chunk = vec![0; usize::try_from(spot.len).ok()?];
        let segment = self.segments.get(&spot.segment)?;
        segment.file.read_exact_at(&mut chunk, spot.at).ok()?;
        (ChunkId::of(&chunk) == *id).then(|| chunk.into())
    }

    fn append(&mut self, id: ChunkId, chunk: &[u8]) -> io::Result<()> {
        let len = u32::try_from(chunk.len()).map_err(io::Error::other)?;
        if len > MAX_CHUNK || u64::from(len) + HEAD_LEN > self.max_bytes {
            return Ok(());
        }
        let number = self.writable_segment()?;
        let Some(segment) = self.segments.get_mut(&number) else {
            return Ok(());
        };
        let mut bytes = Vec::with_capacity(chunk.len() + 20);
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(chunk);
        // a write that fails half-way is written over by the next one
        segment.file.write_all_at(&bytes, segment.len)?;
        let spot = Spot {
            segment: number,
            at: segment.len + HEAD_LEN,
            len,
            is_used: false,
        };
        segment.len += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        self.spots.insert(id, spot);
        Ok(())
    }

    fn writable_segment(&mut self) -> io::Result<u32> {
        let most = (self.max_bytes / SEGMENTS).max(MIN_SEGMENT);
        let last = self.segments.last_key_value();
        let next = match last {
            Some((number, segment)) if segment.len < most => return Ok(*number),
            Some((number, _)) => number.wrapping_add(1),
            None => 0,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path_of(next))?;
        self.segments.insert(next, Segment { file, len: 0 });
        Ok(next)
    }

    fn make_room(&mut self) {
        // each turn drops a segment; what is appended again is marked as not used
        for _ in 0..=self.segments.len() {
            if self.bytes <= self.max_bytes {
                return;
            }
            let Some((&oldest, _)) = self.segments.first_key_value() else {
                return;
            };
            let used: Vec<ChunkId> = self
                .spots
                .iter()
                .filter(|(_, spot)| spot.segment == oldest && spot.is_used)
                .map(|(id, _)| *id)
                .collect();
            let kept: Vec<(ChunkId, Bytes)> = used
                .into_iter()
                .filter_map(|id| Some((id, self.read(&id)?)))
                .collect();
            self.spots.retain(|_, spot| spot.segment != oldest);
            if let Some(segment) = self.segments.remove(&oldest) {
                self.bytes -= segment.len;
            }
            let removed = std::fs::remove_file(self.path_of(oldest));
            self.note(removed);
            for (id, chunk) in kept {
                let appended = self.append(id, &chunk);
                self.note(appended);
            }
        }
    }

    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome
            && !std::mem::replace(&mut self.has_failed, true)
        {
            warn!(dir = %self.dir.display(), %error, "Chunks cannot be written");
        }
    }
}

impl ChunkStore for DiskChunks {
    fn chunk(&mut self, id: &ChunkId) -> Option<Bytes> {
        let chunk = self.read(id);
        if chunk.is_none() {
            self.spots.remove(id);
        } else if let Some(spot) = self.spots.get_mut(id) {
            spot.is_used = true;
        }
        chunk
    }

    fn set_limit(&mut self, max_bytes: u64) {
        self.max_bytes = max_bytes;
        self.make_room();
    }

    fn insert(&mut self, id: ChunkId, chunk: &[u8]) {
        if let Some(spot) = self.spots.get_mut(&id) {
            spot.is_used = true;
            return;
        }
        let appended = self.append(id, chunk);
        self.note(appended);
        self.make_room();
    }
}

fn number_of(path: &Path) -> Option<u32> {
    if path.extension()? != EXTENSION {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

/// The head at this place, if a whole chunk follows it.
fn read_head(file: &File, at: u64, end: u64) -> Option<(ChunkId, u32)> {
    let mut id = [0; 16];
    let mut len = [0; 4];
    file.read_exact_at(&mut id, at).ok()?;
    file.read_exact_at(&mut len, at + 16).ok()?;
    let len = u32::from_be_bytes(len);
    let is_whole = len > 0 && len <= MAX_CHUNK && at + HEAD_LEN + u64::from(len) <= end;
    is_whole.then_some((ChunkId(id), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u8) -> (ChunkId, Vec<u8>) {
        let bytes: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0] ^ n).collect();
        (ChunkId::of(&bytes), bytes)
    }

    #[test]
    fn chunks_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
        for n in 0..20 {
            let (id, bytes) = chunk(n);
            store.insert(id, &bytes);
        }
        drop(store);
        let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
        for n in 0..20 {
            let (id, bytes) = chunk(n);
            assert_eq!(store.chunk(&id).unwrap(), bytes);
        }
        assert!(store.chunk(&ChunkId([0; 16])).is_none());
    }

    #[test]
    fn a_full_store_drops_the_oldest_and_keeps_what_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
        let (favourite, bytes) = chunk(0);
        store.insert(favourite, &bytes);
        for n in 1..=250 {
            let (id, bytes) = chunk(n);
            store.insert(id, &bytes);
            assert!(store.chunk(&favourite).is_some(), "{n}");
            assert!(store.bytes <= 1 << 20, "{n}");
        }
        assert!(store.chunk(&chunk(1).0).is_none());
        assert!(store.chunk(&chunk(250).0).is_some());
        let on_disk: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(on_disk, store.bytes);
    }

    #[test]
    fn a_store_with_a_smaller_bound_than_before_shrinks_when_it_opens() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskChunks::open(dir.path(), 8 << 20).unwrap();
        for n in 0..200 {
            let (id, bytes) = chunk(n);
            store.insert(id, &bytes);
        }
        let store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
        assert!(store.bytes <= 1 << 20);
    }

    #[test]
    fn damage_is_a_miss_and_never_other_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
        for n in 0..3 {
            let (id, bytes) = chunk(n);
            store.insert(id, &bytes);
        }
        let path = store.path_of(0);
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(997) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            std::fs::write(&path, &damaged).unwrap();
            let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
            for n in 0..3 {
                let (id, bytes) = chunk(n);
                let found = store.chunk(&id);
                assert!(found.is_none_or(|found| found == bytes), "{at}");
            }
        }
        for len in (0..whole.len()).step_by(1_009) {
            std::fs::write(&path, &whole[..len]).unwrap();
            let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
            let (id, bytes) = chunk(9);
            store.insert(id, &bytes);
            assert_eq!(store.chunk(&id).unwrap(), bytes);
            drop(store);
            let mut store = DiskChunks::open(dir.path(), 1 << 20).unwrap();
            assert_eq!(store.chunk(&id).unwrap(), bytes);
        }
    }
}
