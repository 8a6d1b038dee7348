//! Which chunks of large values the hub is believed to hold: kept in a file, shared by the codecs of all logs.
//!
//! The file is written once a part of what it says is new, otherwise now and then, and when a session ends: what a
//! kill takes from it is sent again. An old one, or none, costs bytes or a round trip and nothing else.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shared::batch::{BatchError, CODEC_LONG, ChainCodec};
use shared::crashsafe::{self, Access};
use shared::dedup::{ChunkId, ChunkIndex, LongConfig, LongEncoder, Place};
use shared::ids::Offset;
use shared::wire::{Handle, MIN_MAX_BATCH_BYTES};
use tracing::debug;

/// The file is written when one chunk in so many is new: 18 bytes a chunk of 8 KiB for each of them make about a
/// seventh of the chunks' own bytes at the worst.
const NEW_PART: usize = 64;
/// Writing takes at most one part in so many of the thread's time, however slow the disk is.
const TIME_PART: u32 = 10;
/// What is less than that part waits so long.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// What a chunk takes in an index in memory, about.
const INDEX_ENTRY_BYTES: usize = 128;

/// The index, and where the payload stands that is about to be encoded.
#[derive(Debug)]
struct Book {
    index: ChunkIndex,
    place: Place,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Chunks {
    book: Arc<Mutex<Book>>,
    path: PathBuf,
    config: LongConfig,
    written: Duration,
    /// How long that took.
    took: Duration,
}

impl Chunks {
    /// Reads the file, if it can be read. `max_bytes`: of chunks, as many as the hub keeps for a site.
    pub(super) fn open(path: PathBuf, max_bytes: u64, level: i32) -> Self {
        let index = std::fs::read(&path)
            .ok()
            .and_then(|saved| ChunkIndex::restore(&saved, max_bytes).ok())
            .unwrap_or_else(|| ChunkIndex::new(max_bytes));
        let place = Place {
            log: 0,
            next_offset: 0,
        };
        Self {
            book: Arc::new(Mutex::new(Book { index, place })),
            path,
            config: LongConfig {
                level,
                ..LongConfig::default()
            },
            written: shared::time::now(),
            took: Duration::ZERO,
        }
    }

    /// A chain that begins.
    pub(super) fn fresh(&self) -> Result<Box<dyn ChainCodec>, BatchError> {
        Ok(self.end(LongEncoder::new(self.config)?))
    }

    /// A chain that goes on from a saved state.
    pub(super) fn load(&self, saved: &[u8]) -> Result<Box<dyn ChainCodec>, BatchError> {
        Ok(self.end(LongEncoder::restore(saved, self.config)?))
    }

    /// What a trial takes beside its encoder: an index of its own.
    pub(super) fn trial_bytes(&self) -> usize {
        index_bytes(&lock(&self.book).index)
    }

    /// A chain that is tried on payloads which are sent otherwise. It believes what is believed now, and what it
    /// adds is its own.
    pub(super) fn trial(&self, handle: Handle) -> Result<Box<dyn ChainCodec>, BatchError> {
        let book = lock(&self.book);
        Ok(Box::new(SiteEnd {
            encoder: LongEncoder::new(self.config)?,
            own_index_bytes: index_bytes(&book.index),
            book: Arc::new(Mutex::new(Book {
                index: book.index.clone(),
                place: place(handle, 0),
            })),
        }))
    }

    fn end(&self, encoder: LongEncoder) -> Box<dyn ChainCodec> {
        Box::new(SiteEnd {
            encoder,
            own_index_bytes: 0,
            book: Arc::clone(&self.book),
        })
    }

    /// Whether values are large enough for this codec; once it is in use, it takes more to leave it.
    pub(super) fn suits(&self, raw_len: usize, records: u64, is_in_use: bool) -> bool {
        let least = if is_in_use {
            self.config.min_value_bytes / 4
        } else {
            self.config.min_value_bytes
        };
        // what does not shrink grows a little, and still has to be within what every hub takes
        let is_small_enough = raw_len + raw_len / 256 <= MIN_MAX_BATCH_BYTES as usize;
        is_small_enough && raw_len as u64 >= records.saturating_mul(least as u64)
    }

    /// The next payload to be encoded is of this log and ends there.
    pub(super) fn at(&self, handle: Handle, next_offset: Offset) {
        lock(&self.book).place = place(handle, next_offset);
    }

    /// The hub holds everything of a log before this offset.
    pub(super) fn acknowledged(&mut self, handle: Handle, next_offset: Offset) {
        lock(&self.book)
            .index
            .handle_acknowledged(place(handle, next_offset));
        if self.due().is_some_and(|wait| wait.is_zero()) {
            self.write();
        }
    }

    /// How long the file may still wait; `None`: it says all that there is to say.
    pub(super) fn due(&self) -> Option<Duration> {
        let book = lock(&self.book);
        let index = &book.index;
        let wait = if index.gained() * NEW_PART >= index.len().max(1) {
            self.took * TIME_PART
        } else {
            WRITE_INTERVAL
        };
        let at = self.written.saturating_add(wait);
        let wait = at.saturating_sub(shared::time::now());
        index.is_changed().then_some(wait)
    }

    /// A log begins anew.
    pub(super) fn restarted(&self, handle: Handle) {
        lock(&self.book).index.handle_restart(handle.0);
    }

    /// The hub does not hold these.
    pub(super) fn missing(&self, ids: &[ChunkId]) {
        debug!(chunks = ids.len(), "Hub misses chunks");
        lock(&self.book).index.handle_missing(ids);
    }

    /// Writes the file, if it would say something else.
    pub(super) fn write(&mut self) {
        let started = shared::time::now();
        self.written = started;
        let saved = {
            let mut book = lock(&self.book);
            if !book.index.take_changed() {
                return;
            }
            book.index.save()
        };
        if let Err(error) = crashsafe::replace(&self.path, &saved, Access::Private) {
            debug!(%error, path = %self.path.display(), "Chunk index not written");
        }
        self.written = shared::time::now();
        self.took = self.written.saturating_sub(started);
    }
}

fn place(handle: Handle, next_offset: Offset) -> Place {
    Place {
        log: handle.0,
        next_offset,
    }
}

fn index_bytes(index: &ChunkIndex) -> usize {
    index.len().saturating_mul(INDEX_ENTRY_BYTES)
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One log's end. Only the uplink's thread uses the book.
#[derive(Debug)]
struct SiteEnd {
    encoder: LongEncoder,
    /// Of an index that is not shared.
    own_index_bytes: usize,
    book: Arc<Mutex<Book>>,
}

impl ChainCodec for SiteEnd {
    fn codec(&self) -> u8 {
        CODEC_LONG
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let mut book = lock(&self.book);
        let place = book.place;
        self.encoder.encode(raw, &mut book.index, place)
    }

    fn decode(&mut self, _payload: &[u8], _max_raw_len: usize) -> Result<Bytes, BatchError> {
        Err(BatchError::Malformed("this end encodes"))
    }

    fn position(&self) -> u64 {
        self.encoder.position()
    }

    fn save(&self) -> Vec<u8> {
        // a state that cannot be saved cannot be loaded: the chain begins anew then
        self.encoder.save().unwrap_or_default()
    }

    fn memory(&self) -> usize {
        self.encoder.memory() + self.own_index_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::batch::{Block, BlockWriter};
    use shared::record::put_record;

    fn payload() -> Vec<u8> {
        let mut state = 1_u32;
        let value: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(100_000)
        .collect();
        let mut records = Vec::new();
        put_record(&mut records, 0, 0, None, Some(&value), &[]);
        let mut writer = BlockWriter::default();
        writer
            .push(&Block {
                base_offset: 0,
                count: 1,
                base_timestamp_ms: 0,
                is_log_append_time: false,
                records: records.into(),
            })
            .unwrap();
        writer.finish()
    }

    #[test]
    fn what_was_acknowledged_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Chunks::open(dir.path().join("index"), 1 << 20, 3);
        let encoded = |chunks: &Chunks| {
            chunks.at(Handle(7), 5);
            chunks.fresh().unwrap().encode(&payload()).unwrap().len()
        };
        let mut chunks = open();
        assert!(encoded(&chunks) > 90_000);
        chunks.write();
        assert!(encoded(&open()) > 90_000, "not acknowledged");
        chunks.acknowledged(Handle(7), 5);
        // a kill asks nobody to write
        drop(chunks);
        assert!(encoded(&open()) < 1_000);
        std::fs::write(dir.path().join("index"), b"damaged").unwrap();
        assert!(encoded(&open()) > 90_000);
    }

    #[test]
    fn the_file_waits_for_a_part_that_is_new_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut chunks = Chunks::open(dir.path().join("index"), 1 << 20, 3);
        let handle = Handle(1);
        assert_eq!(chunks.due(), None);
        // a slow disk
        chunks.took = Duration::from_secs(2);
        chunks.at(handle, 1);
        chunks.fresh().unwrap().encode(&payload()).unwrap();
        assert_eq!(chunks.due(), None, "not acknowledged");
        chunks.acknowledged(handle, 1);
        let due = |chunks: &Chunks| chunks.due().unwrap().as_secs();
        assert!((15..=20).contains(&due(&chunks)), "{}", due(&chunks));
        chunks.write();
        assert_eq!(chunks.due(), None);
        chunks.missing(&[ChunkId([0; 16])]);
        assert!((55..=60).contains(&due(&chunks)), "{}", due(&chunks));
    }

    #[test]
    fn what_the_hub_misses_is_sent_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut chunks = Chunks::open(dir.path().join("index"), 1 << 20, 3);
        let handle = Handle(1);
        let encode = |chunks: &Chunks| {
            chunks.at(handle, 1);
            chunks.fresh().unwrap().encode(&payload()).unwrap().len()
        };
        encode(&chunks);
        chunks.acknowledged(handle, 1);
        assert!(encode(&chunks) < 1_000);
        chunks.missing(&[ChunkId([0; 16]); 64]);
        chunks.restarted(handle);
        assert!(encode(&chunks) > 90_000);
    }

    #[test]
    fn a_log_with_large_values_stays_with_the_codec_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let chunks = Chunks::open(dir.path().join("index"), 1 << 20, 3);
        assert!(chunks.suits(2_000_000, 1, false));
        assert!(!chunks.suits(4 << 20, 1, false));
        assert!(!chunks.suits(2_000_000, 1_000, false));
        assert!(!chunks.suits(10_000, 1, false));
        assert!(chunks.suits(10_000, 1, true));
        assert!(!chunks.suits(1_000, 1, true));
    }
}
