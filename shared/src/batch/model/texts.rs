//! Texts that were coded: one ring of bytes, a table of those worth a number, and where each five bytes
//! were seen last.
//!
//! A text keeps its number until its place in the table or its bytes in the ring are taken; whoever still
//! has the number then gets another text, the same one at both ends. A text that is used although its
//! bytes are old is written anew.
#![expect(
    clippy::cast_possible_truncation,
    reason = "places in a ring and a table of at most 4 GiB"
)]

use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use crate::batch::BatchError;
use crate::batch::split::{hash_bytes, mix};

/// Longest text with a number.
pub(super) const MAX_LEN: usize = 1023;
const WAYS: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Entry {
    start: u32,
    /// Eight bits of hash, ten of length, then fourteen of clock, which are never 0 in a used entry.
    packed: u32,
}

impl Entry {
    fn new(hash: u32, start: u32, len: usize, clock: u16) -> Self {
        let mut entry = Self {
            start,
            packed: (hash & 0xff) << 24 | (len as u32 & 0x3ff) << 14,
        };
        entry.use_at(clock);
        entry
    }

    fn check(self) -> u32 {
        self.packed >> 24
    }

    fn len(self) -> u32 {
        self.packed >> 14 & 0x3ff
    }

    fn clock(self) -> u16 {
        (self.packed & 0x3fff) as u16
    }

    fn use_at(&mut self, clock: u16) {
        self.packed = self.packed & !0x3fff | u32::from(clock);
    }
}

/// The store.
#[derive(Debug, Clone)]
pub(super) struct Texts {
    ring: Vec<u8>,
    /// Bytes ever written, wrapping.
    head: u32,
    entries: Vec<Entry>,
    seen: Vec<u32>,
    uses: u32,
    pub(super) gates: Gates,
    /// The same by column.
    pub(super) noise: Gates,
}

/// How often one guess at the next byte is right: whether to ask for it first.
#[derive(Debug, Clone)]
pub(super) struct Gates {
    hits: [u16; 256],
}

impl Gates {
    /// Right more often than this, of 65,536.
    const MIN_HITS: u16 = 22_000;

    #[inline]
    pub(super) fn is_open(&self, gate: usize) -> bool {
        self.hits[gate & 255] > Self::MIN_HITS
    }

    #[inline]
    pub(super) fn is_below(&self, gate: usize, hits: u16) -> bool {
        self.hits[gate & 255] < hits
    }

    #[inline]
    pub(super) fn learn(&mut self, gate: usize, hit: bool) {
        let hits = &mut self.hits[gate & 255];
        if hit {
            *hits += (65_535 - *hits) >> 6;
        } else {
            *hits -= *hits >> 6;
        }
    }
}

impl Texts {
    /// The ring takes a power of two.
    pub(super) fn new(ring_bytes: usize, entry_bytes: usize, seen_bytes: usize) -> Self {
        let entries = entry_bytes / size_of::<Entry>();
        Self {
            ring: vec![0; ring_bytes.next_power_of_two().max(8192)],
            head: 0,
            entries: vec![Entry::default(); entries.next_multiple_of(WAYS).max(WAYS)],
            seen: vec![0; (seen_bytes / 4).next_power_of_two().max(1024)],
            uses: 0,
            gates: Gates {
                hits: [32_768; 256],
            },
            noise: Gates {
                hits: [32_768; 256],
            },
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.ring.len() + self.entries.len() * size_of::<Entry>() + self.seen.len() * 4
    }

    #[inline]
    fn mask(&self) -> usize {
        self.ring.len() - 1
    }

    /// The byte at a place of the ring.
    #[inline]
    pub(super) fn byte(&self, at: u32) -> u8 {
        self.ring[at as usize & self.mask()]
    }

    /// Appends a byte of the text that is being coded.
    #[inline]
    pub(super) fn push(&mut self, byte: u8) {
        let mask = self.mask();
        self.ring[self.head as usize & mask] = byte;
        self.head = self.head.wrapping_add(1);
    }

    /// Where what follows in this situation was seen last, and from now on here.
    #[inline]
    pub(super) fn follow(&mut self, situation: u64) -> Option<u32> {
        let hash = situation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let slot = hash as usize & (self.seen.len() - 1);
        let at = self.seen[slot];
        self.seen[slot] = self.head;
        (at != 0 && self.head.wrapping_sub(at) < self.ring.len() as u32).then_some(at)
    }

    /// How many of the last bytes, the last one lowest in `before`, stand before this place too; up to 8.
    #[inline]
    pub(super) fn common(&self, at: u32, before: u64) -> u32 {
        (0..8)
            .take_while(|i| self.byte(at.wrapping_sub(i + 1)) == (before >> (8 * i)) as u8)
            .count() as u32
    }

    /// The number of a text, if it has one.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        let hash = short_hash(text);
        let first = self.bucket(hash);
        (first..first + WAYS)
            .find(|at| {
                let entry = &self.entries[*at];
                entry.clock() != 0 && entry.check() == hash & 0xff && self.is(entry, text)
            })
            .and_then(|at| u32::try_from(at).ok())
    }

    /// Gives a number to a text whose bytes were pushed from `start` on.
    pub(super) fn insert(&mut self, text: &[u8], start: u32) -> u32 {
        if let Some(id) = self.find(text) {
            let clock = self.clock();
            let half = self.ring.len() as u32 / 2;
            let entry = &mut self.entries[id as usize];
            entry.use_at(clock);
            if start.wrapping_sub(entry.start) < half {
                // it is there already: what was pushed is not needed
                self.head = start;
            } else {
                entry.start = start;
            }
            return id;
        }
        let hash = short_hash(text);
        let first = self.bucket(hash);
        let clock = self.clock();
        let oldest = (first..first + WAYS)
            .max_by_key(|at| {
                let entry = &self.entries[*at];
                match entry.clock() {
                    0 => u16::MAX,
                    used => clock.wrapping_sub(used) & 0x3fff,
                }
            })
            .unwrap_or(first);
        self.entries[oldest] = Entry::new(hash, start, text.len(), clock);
        u32::try_from(oldest).unwrap_or(0)
    }

    /// Where the next byte goes.
    pub(super) fn head(&self) -> u32 {
        self.head
    }

    /// The text is in use: it shall not be forgotten soon.
    pub(super) fn touch(&mut self, id: u32) {
        let clock = self.clock();
        let head = self.head;
        let half = self.ring.len() as u32 / 2;
        let Some(entry) = self.entries.get_mut(id as usize).filter(|e| e.clock() != 0) else {
            return;
        };
        entry.use_at(clock);
        let age = head.wrapping_sub(entry.start);
        if age > half && age <= 2 * half {
            let (start, len) = (entry.start, entry.len());
            entry.start = head;
            for i in 0..len {
                let byte = self.byte(start.wrapping_add(i));
                self.push(byte);
            }
        }
    }

    /// Appends the text of a number; nothing when the number was never given.
    pub(super) fn copy(&self, id: u32, out: &mut Vec<u8>) {
        if let Some(entry) = self.entries.get(id as usize) {
            let start = entry.start as usize & self.mask();
            let len = entry.len() as usize;
            let first = len.min(self.ring.len() - start);
            out.extend_from_slice(&self.ring[start..start + first]);
            out.extend_from_slice(&self.ring[..len - first]);
        }
    }

    fn is(&self, entry: &Entry, text: &[u8]) -> bool {
        let start = entry.start as usize & self.mask();
        let len = entry.len() as usize;
        let first = len.min(self.ring.len() - start);
        len == text.len()
            && self.ring[start..start + first] == text[..first]
            && self.ring[..len - first] == text[first..]
    }

    fn bucket(&self, hash: u32) -> usize {
        let buckets = (self.entries.len() / WAYS) as u64;
        ((u64::from(hash) * buckets) >> 32) as usize * WAYS
    }

    fn clock(&mut self) -> u16 {
        self.uses = self.uses.wrapping_add(1);
        ((self.uses >> 6) & 0x3fff).max(1) as u16
    }
}

fn short_hash(text: &[u8]) -> u32 {
    (mix(hash_bytes(text), 0x7e) >> 32) as u32
}

impl Saved for Texts {
    fn save(&self, to: &mut Writer) {
        to.u32(self.head);
        to.u32(self.uses);
        to.bytes(&self.ring);
        for gates in [&self.gates, &self.noise] {
            gates.hits.iter().for_each(|hits| to.u16(*hits));
        }
        save_sparse(
            to,
            &self.entries,
            |entry| *entry == Entry::default(),
            |to, entry| {
                to.u32(entry.start);
                to.u32(entry.packed);
            },
        );
        save_sparse(to, &self.seen, |at| *at == 0, |to, at| to.u32(*at));
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        self.head = from.u32()?;
        self.uses = from.u32()?;
        let ring = from.bytes(self.ring.len())?;
        if ring.len() != self.ring.len() {
            return Err(BatchError::Malformed("saved state is of another size"));
        }
        self.ring.copy_from_slice(ring);
        self.gates.hits = from.u16s()?;
        self.noise.hits = from.u16s()?;
        load_sparse(from, &mut self.entries, |from| {
            Ok(Entry {
                start: from.u32()?,
                packed: from.u32()?,
            })
        })?;
        load_sparse(from, &mut self.seen, |from| from.u32())
    }
}
