//! What the hub holds, and what the site believes that it holds. Both forget what was not used for
//! longest when they are full.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bytes::Bytes;

use super::{ChunkId, refs::take_id};
use crate::batch::BatchError;
use crate::ids::Offset;
use crate::wire::{Reader, put_varint};

/// The chunks of one site, at the hub. May forget anything at any time.
pub trait ChunkStore: fmt::Debug + Send {
    /// The bytes whose id this is, never others: compare them when they come from outside memory.
    fn chunk(&mut self, id: &ChunkId) -> Option<Bytes>;

    /// Takes a chunk and its id, which the caller computed from it. What the store has is only marked as used.
    fn insert(&mut self, id: ChunkId, chunk: &[u8]);

    /// Takes at most so many bytes from here on: what was not used for longest goes.
    fn set_limit(&mut self, max_bytes: u64);
}

/// Keys in the order of their use, each with the bytes that it stands for.
#[derive(Debug, Clone)]
struct Lru<V> {
    entries: HashMap<ChunkId, (u64, V)>,
    order: BTreeMap<u64, ChunkId>,
    clock: u64,
    bytes: u64,
    max_bytes: u64,
    weigh: fn(&V) -> u64,
}

impl<V> Lru<V> {
    fn new(max_bytes: u64, weigh: fn(&V) -> u64) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            bytes: 0,
            max_bytes,
            weigh,
        }
    }

    fn touch(&mut self, id: &ChunkId) -> Option<&mut V> {
        let (at, value) = self.entries.get_mut(id)?;
        self.order.remove(at);
        self.clock += 1;
        *at = self.clock;
        self.order.insert(self.clock, *id);
        Some(value)
    }

    fn insert(&mut self, id: ChunkId, value: V) {
        self.remove(&id);
        self.clock += 1;
        self.bytes += (self.weigh)(&value);
        self.order.insert(self.clock, id);
        self.entries.insert(id, (self.clock, value));
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.bytes > self.max_bytes
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, id: &ChunkId) {
        if let Some((at, value)) = self.entries.remove(id) {
            self.order.remove(&at);
            self.bytes -= (self.weigh)(&value);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.bytes = 0;
    }
}

/// Chunks in memory, bounded by their bytes.
#[derive(Debug)]
pub struct MemoryChunks(Lru<Bytes>);

impl MemoryChunks {
    /// An empty store for at most so many bytes.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self(Lru::new(max_bytes, |chunk| chunk.len() as u64))
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Forgets a chunk.
    pub fn remove(&mut self, id: &ChunkId) {
        self.0.remove(id);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl ChunkStore for MemoryChunks {
    fn chunk(&mut self, id: &ChunkId) -> Option<Bytes> {
        self.0.touch(id).cloned()
    }

    fn insert(&mut self, id: ChunkId, chunk: &[u8]) {
        if self.0.touch(&id).is_none() {
            self.0.insert(id, Bytes::copy_from_slice(chunk));
        }
    }

    fn set_limit(&mut self, max_bytes: u64) {
        self.0.max_bytes = max_bytes;
        self.0.shrink();
    }
}

/// Where a payload stands: the log by a number of the caller's choice, and the offset after its last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The same for all payloads of a log, another one for another log.
    pub log: u32,
    /// The payload is acknowledged once the hub holds everything before this offset.
    pub next_offset: Offset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    len: u32,
    /// `None` once a payload with it was acknowledged. Until then only the log that carried it may refer
    /// to it, because the hub reads each log in order.
    sent_in: Option<u32>,
}

const MAGIC: [u8; 4] = *b"KCI1";
const ENTRY_LEN: usize = 17;
/// So many chunks missing at once mean that the hub lost its store, or that it is another hub.
const MANY: usize = 64;
/// So many misses, each a round trip, without a chunk acknowledged in between mean the same.
const MANY_MISSES: u32 = 3;

/// Which chunks the hub is believed to hold. As bytes, to keep it in a file:
///
/// ```text
///  0        4        8          then for each, oldest use first
///  ├ "KCI1" ├ CRC-32C├ count    ├ id        ├ length
///  │        │ u32    │ varint   │ 16 bytes  │ varint
/// ```
#[derive(Debug, Clone)]
pub struct ChunkIndex {
    known: Lru<Known>,
    unproven: BTreeMap<Place, Vec<ChunkId>>,
    misses: u32,
    is_changed: bool,
    /// Acknowledged since [`ChunkIndex::take_changed`].
    gained: usize,
}

impl ChunkIndex {
    /// An empty index for chunks of at most so many bytes. Its own memory is about a hundred bytes for
    /// each chunk of 8 KiB.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self {
            known: Lru::new(max_bytes, |known| known.len.into()),
            unproven: BTreeMap::new(),
            misses: 0,
            is_changed: false,
            gained: 0,
        }
    }

    /// True when a payload of this log may refer to the chunk; it counts as used then.
    pub(super) fn may_refer(&mut self, id: &ChunkId, len: usize, log: u32) -> bool {
        self.known.touch(id).is_some_and(|known| {
            usize::try_from(known.len) == Ok(len) && known.sent_in.is_none_or(|sent| sent == log)
        })
    }

    /// The chunk goes out as it is, in a payload of this place.
    pub(super) fn sent(&mut self, id: ChunkId, len: usize, place: Place) {
        let Ok(len) = u32::try_from(len) else { return };
        let sent_in = Some(place.log);
        self.known.insert(id, Known { len, sent_in });
        self.unproven.entry(place).or_default().push(id);
    }

    /// The hub holds everything of this log before the offset, so it had the chunks in it.
    pub fn handle_acknowledged(&mut self, place: Place) {
        let first = Place {
            next_offset: 0,
            ..place
        };
        while let Some((&at, _)) = self.unproven.range(first..=place).next() {
            for id in self.unproven.remove(&at).unwrap_or_default() {
                if let Some((_, known)) = self.known.entries.get_mut(&id)
                    && known.sent_in == Some(place.log)
                {
                    known.sent_in = None;
                    self.is_changed = true;
                    self.gained += 1;
                    self.misses = 0;
                }
            }
        }
    }

    /// The log begins anew, in this session or another: what was sent of it and not acknowledged may never
    /// have come.
    pub fn handle_restart(&mut self, log: u32) {
        let of_log = |next_offset| Place { log, next_offset };
        let places = of_log(0)..=of_log(Offset::MAX);
        let sent: Vec<Place> = self.unproven.range(places).map(|(at, _)| *at).collect();
        for id in sent
            .iter()
            .filter_map(|at| self.unproven.remove(at))
            .flatten()
        {
            let of_log = |(_, known): &(u64, Known)| known.sent_in == Some(log);
            if self.known.entries.get(&id).is_some_and(of_log) {
                self.known.remove(&id);
            }
        }
    }

    /// The hub does not have these, although it was referred to them.
    pub fn handle_missing(&mut self, ids: &[ChunkId]) {
        self.is_changed = true;
        self.misses += 1;
        if ids.len() >= MANY || self.misses >= MANY_MISSES {
            return self.clear();
        }
        for id in ids {
            self.known.remove(id);
        }
    }

    /// Nothing is known: the hub has another store.
    pub fn clear(&mut self) {
        self.is_changed = true;
        self.misses = 0;
        self.known.clear();
        self.unproven.clear();
    }

    /// Chunks that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.entries.len()
    }

    /// True when nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether what [`ChunkIndex::save`] says became another since [`ChunkIndex::take_changed`].
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Chunks that were acknowledged since then.
    #[must_use]
    pub fn gained(&self) -> usize {
        self.gained
    }

    /// True once for every time that what [`ChunkIndex::save`] says became another.
    pub fn take_changed(&mut self) -> bool {
        self.gained = 0;
        std::mem::take(&mut self.is_changed)
    }

    /// What was acknowledged, as bytes.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let entry = |id: &ChunkId| self.known.entries.get(id).map(|(_, known)| (*id, *known));
        let proven: Vec<(ChunkId, Known)> = self
            .known
            .order
            .values()
            .filter_map(entry)
            .filter(|(_, known)| known.sent_in.is_none())
            .collect();
        let mut body = Vec::with_capacity(10 + proven.len() * (ENTRY_LEN + 2));
        put_varint(&mut body, proven.len() as u64);
        for (id, known) in proven {
            body.extend_from_slice(&id.0);
            put_varint(&mut body, known.len.into());
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// Reads what [`ChunkIndex::save`] made; only the chunks used last when they are more than fit.
    ///
    /// # Errors
    /// [`BatchError`] when it is damaged or of another version: begin with an empty one.
    pub fn restore(saved: &[u8], max_bytes: u64) -> Result<Self, BatchError> {
        let mut reader = Reader::new(saved);
        if reader.array()? != MAGIC {
            return Err(BatchError::Malformed("index of another kind"));
        }
        let found = reader.u32()?;
        let computed = crc32c::crc32c(saved.get(8..).unwrap_or_default());
        if found != computed {
            return Err(BatchError::Checksum { found, computed });
        }
        let mut index = Self::new(max_bytes);
        for _ in 0..reader.count(ENTRY_LEN)? {
            let id = take_id(&mut reader)?;
            let len = reader.varint_u32()?;
            index.known.insert(id, Known { len, sent_in: None });
        }
        reader.finish()?;
        Ok(index)
    }
}
