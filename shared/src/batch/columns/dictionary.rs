//! Byte strings known by small numbers at both ends, bounded in number and bytes.
//!
//! Both ends insert and use the same strings in the same order, so that both forget the same ones: the
//! first from the hand on that was not used since the hand last passed. Only the encoder looks up by
//! content; its index may miss what is there, which costs bytes and nothing else.

use super::super::split::hash_bytes;
use crate::wire::{Reader, WireError, put_varint};

/// Places that the index looks at.
const PROBES: usize = 8;

/// What an entry costs beyond its bytes.
const ENTRY_BYTES: usize = 48;

#[derive(Debug, Clone, Default)]
struct Entry {
    bytes: Box<[u8]>,
    hash: u64,
    is_live: bool,
    was_used: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Dictionary {
    entries: Vec<Entry>,
    vacant: Vec<u32>,
    hand: usize,
    bytes: usize,
    max_bytes: usize,
    /// Ids plus one by hash; for the encoder.
    index: Vec<u32>,
}

impl Dictionary {
    /// Empty, for up to `max_bytes` of memory.
    pub(super) fn new(max_bytes: usize) -> Self {
        let places = (max_bytes / ENTRY_BYTES).next_power_of_two().max(PROBES);
        Self {
            entries: Vec::new(),
            vacant: Vec::new(),
            hand: 0,
            bytes: 0,
            max_bytes,
            index: vec![0; places],
        }
    }

    /// Longest string that is kept.
    pub(super) fn max_len(&self) -> usize {
        self.max_bytes / 8
    }

    /// The string of an id, if there is one. Both ends must call this for the same ids in
    /// the same order as they mean a string: what is used stays.
    pub(super) fn touch(&mut self, id: u32) -> Option<&[u8]> {
        let entry = self.entries.get_mut(usize::try_from(id).ok()?)?;
        if !entry.is_live {
            return None;
        }
        entry.was_used = true;
        Some(&entry.bytes)
    }

    /// The same for a look that does not count as use.
    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let entry = self.entries.get(usize::try_from(id).ok()?)?;
        entry.is_live.then_some(&*entry.bytes)
    }

    /// True when the id stands for these bytes.
    pub(super) fn is(&self, id: u32, bytes: &[u8]) -> bool {
        usize::try_from(id)
            .ok()
            .and_then(|id| self.entries.get(id))
            .is_some_and(|entry| entry.is_live && *entry.bytes == *bytes)
    }

    /// The id of a string, if the index finds it.
    pub(super) fn find(&self, bytes: &[u8], hash: u64) -> Option<u32> {
        self.places(hash)
            .filter_map(|place| self.index.get(place)?.checked_sub(1))
            .find(|id| {
                let entry = usize::try_from(*id)
                    .ok()
                    .and_then(|id| self.entries.get(id));
                entry.is_some_and(|e| e.is_live && e.hash == hash && *e.bytes == *bytes)
            })
    }

    /// Adds a string; `None` when it is too long to keep.
    pub(super) fn insert(&mut self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.max_len() {
            return None;
        }
        let cost = bytes.len() + ENTRY_BYTES;
        while self.bytes + cost > self.max_bytes {
            self.forget_one();
        }
        let hash = hash_bytes(bytes);
        let entry = Entry {
            bytes: bytes.into(),
            hash,
            is_live: true,
            was_used: false,
        };
        self.bytes += cost;
        let id = match self.vacant.pop() {
            Some(id) => {
                *self.entries.get_mut(usize::try_from(id).ok()?)? = entry;
                id
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).ok()?
            }
        };
        self.index_entry(id, hash);
        Some(id)
    }

    /// Bytes of memory, about.
    pub(super) fn memory(&self) -> usize {
        self.bytes + self.index.len() * size_of::<u32>()
    }

    /// Number of ids ever in use at once.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn forget_one(&mut self) {
        let Some(entry) = self.entries.get_mut(self.hand) else {
            self.hand = 0;
            return;
        };
        if entry.is_live && !std::mem::take(&mut entry.was_used) {
            self.bytes -= entry.bytes.len() + ENTRY_BYTES;
            *entry = Entry::default();
            self.vacant
                .push(u32::try_from(self.hand).unwrap_or(u32::MAX));
        }
        self.hand += 1;
    }

    fn places(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.index.len() - 1;
        let first = usize::try_from(hash >> 32).unwrap_or(0);
        (0..PROBES).map(move |step| first.wrapping_add(step) & mask)
    }

    fn index_entry(&mut self, id: u32, hash: u64) {
        let is_free = |place: &usize| {
            let id = self.index.get(*place).and_then(|id| id.checked_sub(1));
            id.and_then(|id| self.entries.get(usize::try_from(id).ok()?))
                .is_none_or(|entry| !entry.is_live)
        };
        let first = self.places(hash).next();
        let place = self.places(hash).find(is_free).or(first);
        if let Some(place) = place.and_then(|place| self.index.get_mut(place)) {
            *place = id + 1;
        }
    }

    /// Appends all of it.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        put_varint(out, self.entries.len() as u64);
        for entry in &self.entries {
            let flags = u64::from(entry.is_live) | u64::from(entry.was_used) << 1;
            put_varint(out, (entry.bytes.len() as u64) << 2 | flags);
            out.extend_from_slice(&entry.bytes);
        }
        put_varint(out, self.vacant.len() as u64);
        for id in &self.vacant {
            put_varint(out, (*id).into());
        }
        put_varint(out, self.hand as u64);
    }

    /// What [`Self::save`] wrote, into an empty one of the same size.
    pub(super) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        for id in 0..reader.count(1)? {
            let head = reader.varint()?;
            let bytes = reader.bytes(usize::try_from(head >> 2).unwrap_or(usize::MAX))?;
            let entry = Entry {
                bytes: bytes.into(),
                hash: hash_bytes(bytes),
                is_live: head & 1 != 0,
                was_used: head & 2 != 0,
            };
            let (is_live, hash) = (entry.is_live, entry.hash);
            self.entries.push(entry);
            if is_live {
                self.bytes += bytes.len() + ENTRY_BYTES;
                self.index_entry(u32::try_from(id).unwrap_or(u32::MAX - 1), hash);
            }
        }
        for _ in 0..reader.count(1)? {
            self.vacant.push(reader.varint_u32()?);
        }
        self.hand = usize::try_from(reader.varint()?).unwrap_or(0);
        if self.bytes > self.max_bytes || self.vacant.len() > self.entries.len() {
            return Err(WireError::Malformed(
                "a dictionary is larger than its bound",
            ));
        }
        Ok(())
    }
}
