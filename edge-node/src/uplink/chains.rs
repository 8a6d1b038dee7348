//! What codecs remember of this site's logs, and what of it is saved.
//!
//! ```text
//!  begin (session, restart) ─► empty or an anchor ─► one payload after the other ─► anchor ─► …
//! ```
//! After some payloads both ends save their state: an anchor. It counts once the hub has acknowledged what
//! it stands behind; only then is it written to disk, and only then may the next one follow, so that of the
//! two that a hub keeps one is always here. A lost state costs bytes and nothing else: every file may go.
//!
//! Memory is bounded, states that wait for their acknowledgement included. Where it is too little for all logs it
//! stays with those that it brings most ([`worth`](super::worth)); the others get the dictionary, which takes a
//! third, or what remembers nothing.

mod saved;
mod trial;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::batch::{
    BatchError, CODEC_DICTIONARY, CODEC_LONG, CODEC_ZSTD, ChainCodec, ChainLimits, Outgoing,
    Packed, load_chain, new_chain, remembers,
};
use shared::ids::Offset;
use shared::link::Begin;
use shared::wire::{Anchor, Handle};

use self::saved::{Saved, SavedStates};
use self::trial::Large;
use super::chunks::Chunks;
use super::worth::{Holder, Scales, Worth};

/// Raw bytes before a log's first anchor; each later one waits for twice as many as the one before.
const FIRST_ANCHOR_AFTER: u64 = 64 << 10;
/// The limit of that doubling: what a lost connection may cost to learn again.
const ANCHOR_AFTER: u64 = 4 << 20;
/// What codecs are taken to need before they begin.
const STREAM_BYTES: usize = 5 << 18;
const DICTIONARY_BYTES: usize = 3 << 17;
const LONG_BYTES: usize = 12 << 20;

/// The anchors that a session may offer, by log, newest first. Written by the thread that encodes, read by
/// the session when it declares a log.
#[derive(Debug, Clone, Default)]
pub(super) struct AnchorBook(Arc<Mutex<HashMap<Handle, Vec<Anchor>>>>);

impl AnchorBook {
    pub(super) fn of(&self, handle: Handle) -> Vec<Anchor> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&handle).cloned().unwrap_or_default()
    }

    fn set(&self, handle: Handle, anchors: Vec<Anchor>) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if anchors.is_empty() {
            book.remove(&handle);
        } else {
            book.insert(handle, anchors);
        }
    }
}

/// What codecs take, for metrics.
#[derive(Debug, Default)]
pub struct CodecBytes {
    /// In memory.
    pub live: AtomicU64,
    /// Of saved states, on disk.
    pub saved: AtomicU64,
    /// Logs whose codec remembers something.
    pub logs: AtomicU64,
}

#[derive(Debug)]
struct Log {
    codec: Option<Box<dyn ChainCodec>>,
    /// Of the codec, of what waits for its acknowledgement, and of what is tried.
    bytes: usize,
    worth: Worth,
    /// Sent, and not acknowledged up to this offset.
    pending: Option<(Offset, Saved)>,
    raw_since_anchor: u64,
    next_anchor_after: u64,
    /// Present once its values were large.
    large: Option<Large>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            codec: None,
            bytes: 0,
            worth: Worth::default(),
            pending: None,
            raw_since_anchor: 0,
            next_anchor_after: FIRST_ANCHOR_AFTER,
            large: None,
        }
    }
}

impl Log {
    fn memory(&self) -> usize {
        self.codec.as_ref().map_or(0, |codec| codec.memory())
            + self
                .pending
                .as_ref()
                .map_or(0, |(_, saved)| saved.state.len())
            + self.large.as_ref().map_or(0, Large::memory)
    }

    fn codec(&self) -> Option<u8> {
        self.codec.as_ref().map(|codec| codec.codec())
    }
}

/// What a log's next payload gets by the link and the load, and what it holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// The codec for values of any size.
    pub(super) codec: u8,
    /// Codecs of the session.
    pub(super) allowed: &'a [u8],
    /// Bytes of the payload.
    pub(super) raw_len: usize,
    /// Records in it.
    pub(super) records: u64,
}

/// The codecs of all logs.
#[derive(Debug)]
pub(super) struct Chains {
    limit: usize,
    level: i32,
    bytes: usize,
    scales: Scales,
    logs: HashMap<Handle, Log>,
    saved: SavedStates,
    book: AnchorBook,
    chunks: Chunks,
    counted: Arc<CodecBytes>,
}

impl Chains {
    /// `limit` bytes of codecs in memory, and of saved states in `directory`, which need not exist. `level` is
    /// zstd's.
    pub(super) fn open(
        directory: PathBuf,
        limit: usize,
        level: i32,
        book: AnchorBook,
        chunks: Chunks,
        counted: Arc<CodecBytes>,
    ) -> Self {
        let saved = SavedStates::open(directory, limit as u64);
        let mut logs: HashMap<Handle, Log> = HashMap::new();
        for (handle, anchor) in saved.anchors() {
            book.set(handle, vec![anchor]);
            logs.entry(handle).or_default().next_anchor_after = ANCHOR_AFTER;
        }
        let chains = Self {
            limit,
            level,
            bytes: 0,
            scales: Scales::default(),
            logs,
            saved,
            book,
            chunks,
            counted,
        };
        chains.count();
        chains
    }

    /// The codec that a log's next payload gets.
    pub(super) fn choose(&mut self, handle: Handle, wish: &Wish<'_>) -> u8 {
        let logs = self.logs.len().max(1);
        let log = self.logs.entry(handle).or_default();
        self.scales.turn(&mut log.worth, wish.raw_len, logs);
        let is_in_use = log.codec() == Some(CODEC_LONG);
        let is_large = wish.allowed.contains(&CODEC_LONG)
            && self.chunks.suits(wish.raw_len, wish.records, is_in_use);
        let mut first = wish.codec;
        if is_large {
            let in_use = log.codec();
            let large = log.large.get_or_insert_with(|| Large::new(in_use));
            // whatever the link: what repeats costs less to find than to send
            if large.is_long() {
                first = CODEC_LONG;
            }
            let other = large.wants(wish.codec);
            self.try_beside(handle, first, other);
        } else if let Some(large) = &mut log.large {
            large.put_off();
        }
        let second = Some(wish.codec).filter(|codec| *codec != first);
        let third = Some(CODEC_DICTIONARY).filter(|codec| wish.allowed.contains(codec));
        let mut wanted = std::iter::once(first).chain(second).chain(third);
        let found = wanted.find(|codec| !remembers(*codec) || self.has_room(handle, *codec));
        let codec = found.unwrap_or_else(|| {
            let is_allowed = wish.allowed.contains(&CODEC_ZSTD);
            if is_allowed { CODEC_ZSTD } else { wish.codec }
        });
        if codec != first
            && let Some(large) = self
                .logs
                .get_mut(&handle)
                .and_then(|log| log.large.as_mut())
        {
            large.put_off();
        }
        codec
    }

    /// Begins a trial, if there is room for it beside everything else.
    fn try_beside(&mut self, handle: Handle, codec: u8, other: Option<u8>) {
        let Some(other) = other else { return };
        let own = self.logs.get(&handle).map_or(0, |log| log.bytes);
        let index = if other == CODEC_LONG {
            self.chunks.trial_bytes()
        } else {
            0
        };
        let need = expected(codec).max(own) + expected(other) + index;
        if self.bytes - own + need > self.limit {
            return;
        }
        let beside = if other == CODEC_LONG {
            self.chunks.trial(handle)
        } else {
            new_chain(other, ChainLimits::default(), self.level)
        };
        let large = self
            .logs
            .get_mut(&handle)
            .and_then(|log| log.large.as_mut());
        if let (Some(large), Ok(beside)) = (large, beside) {
            large.begin(beside);
        }
    }

    /// Whether a log may have the memory that a codec needs.
    fn has_room(&self, handle: Handle, codec: u8) -> bool {
        let Some(log) = self.logs.get(&handle) else {
            return false;
        };
        let need = expected(codec);
        let free = self.limit.saturating_sub(self.bytes - log.bytes);
        log.codec() == Some(codec)
            || need <= free
            || self
                .scales
                .admits(log.worth, need, free, self.others(handle))
    }

    fn others(&self, handle: Handle) -> impl Iterator<Item = Holder<Handle>> {
        let others = self.logs.iter();
        let others = others.filter(move |(id, log)| **id != handle && log.codec.is_some());
        others.map(|(id, log)| Holder {
            key: *id,
            worth: log.worth,
            bytes: log.bytes,
        })
    }

    /// Encodes the next payload of a log with a codec that remembers.
    ///
    /// # Errors
    /// [`BatchError`] of the codec; the log's memory is empty then.
    pub(super) fn pack(
        &mut self,
        handle: Handle,
        codec: u8,
        outgoing: &Outgoing<'_>,
    ) -> Result<Packed, BatchError> {
        let log = self.logs.entry(handle).or_default();
        let known = log.codec.take().filter(|known| known.codec() == codec);
        let is_fresh = known.is_none();
        let mut memory = match known {
            Some(memory) => memory,
            None if codec == CODEC_LONG => self.chunks.fresh()?,
            None => new_chain(codec, ChainLimits::default(), self.level)?,
        };
        self.chunks.at(handle, outgoing.next_offset);
        let mut packed = outgoing.pack_chain(memory.as_mut(), is_fresh)?;
        if let Some(large) = &mut log.large {
            large.sent(outgoing.raw, packed.payload.len());
        }
        log.raw_since_anchor += outgoing.raw.len() as u64;
        let is_due = log.pending.is_none() && log.raw_since_anchor >= log.next_anchor_after;
        if is_due {
            packed.header.is_anchor = true;
            log.anchor(memory.as_ref(), outgoing.next_offset);
        }
        log.codec = Some(memory);
        self.keep(handle);
        if is_due {
            self.publish(handle);
        }
        Ok(packed)
    }

    /// What the hub is believed to hold.
    pub(super) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// How long [`Chains::write_chunks`] may still wait; `None`: there is nothing to write.
    pub(super) fn chunks_due(&self) -> Option<Duration> {
        self.chunks.due()
    }

    /// Makes what the hub is believed to hold outlive the process.
    pub(super) fn write_chunks(&mut self) {
        self.chunks.write();
    }

    /// Counts a log's memory, and takes that of others if there is too much.
    fn keep(&mut self, handle: Handle) {
        if let Some(log) = self.logs.get_mut(&handle) {
            let before = std::mem::replace(&mut log.bytes, 0);
            log.bytes = log.memory();
            self.bytes = self.bytes + log.bytes - before;
        }
        while self.bytes > self.limit {
            let Some(least) = self.scales.least(self.others(handle)) else {
                break;
            };
            self.clear(least);
        }
        self.count();
    }

    /// A log's codec forgets. What waits for its acknowledgement can still be gone on from.
    fn clear(&mut self, handle: Handle) {
        if let Some(log) = self.logs.get_mut(&handle) {
            log.codec = None;
            if let Some(large) = &mut log.large {
                large.stop();
            }
            let before = std::mem::replace(&mut log.bytes, 0);
            log.bytes = log.memory();
            self.bytes = self.bytes + log.bytes - before;
        }
    }

    fn count(&self) {
        let counted = &self.counted;
        counted.live.store(self.bytes as u64, Ordering::Relaxed);
        counted.saved.store(self.saved.bytes(), Ordering::Relaxed);
        let remember = self.logs.values().filter(|log| log.codec.is_some());
        counted
            .logs
            .store(remember.count() as u64, Ordering::Relaxed);
    }

    /// A session begins to send a log, or begins it again.
    pub(super) fn begin(&mut self, handle: Handle, begin: Begin) {
        let log = self.logs.entry(handle).or_default();
        // what was sent with a session that is over counts if the hub says so now
        let pending = log.pending.take().map(|(_, saved)| saved);
        log.raw_since_anchor = 0;
        log.codec = None;
        if let Some(large) = &mut log.large {
            large.stop();
        }
        let state = match begin {
            Begin::Fresh => {
                self.saved.remove(handle);
                None
            }
            Begin::Anchor(anchor) => match pending.filter(|saved| saved.anchor == anchor) {
                Some(saved) => {
                    self.save(handle, &saved);
                    Some((anchor, saved.state))
                }
                None => {
                    let state = self.saved.load(handle, anchor);
                    state.map(|state| (anchor, state))
                }
            },
        };
        self.chunks.restarted(handle);
        let codec = state.and_then(|(anchor, state)| match anchor.codec {
            CODEC_LONG => self.chunks.load(&state).ok(),
            codec => load_chain(codec, &state, ChainLimits::default(), self.level).ok(),
        });
        if let Some(log) = self.logs.get_mut(&handle) {
            log.codec = codec;
            if log.codec.is_none() {
                log.next_anchor_after = FIRST_ANCHOR_AFTER;
            }
        }
        self.keep(handle);
        self.publish(handle);
    }

    /// The hub holds everything before this offset.
    pub(super) fn acknowledged(&mut self, handle: Handle, next: Offset) {
        self.chunks.acknowledged(handle, next);
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        let Some((_, saved)) = log.pending.take_if(|(offset, _)| *offset <= next) else {
            return;
        };
        self.save(handle, &saved);
        self.keep(handle);
        self.publish(handle);
    }

    fn save(&mut self, handle: Handle, saved: &Saved) {
        for gone in self.saved.save(handle, saved) {
            self.publish(gone);
        }
    }

    fn publish(&self, handle: Handle) {
        let log = self.logs.get(&handle);
        let pending = log.and_then(|log| log.pending.as_ref());
        let pending = pending.map(|(_, saved)| saved.anchor);
        let anchors = pending.into_iter().chain(self.saved.anchor(handle));
        self.book.set(handle, anchors.collect());
    }
}

impl Log {
    fn anchor(&mut self, memory: &dyn ChainCodec, next: Offset) {
        let saved = Saved {
            anchor: Anchor {
                codec: memory.codec(),
                position: memory.position(),
            },
            state: memory.save().into(),
        };
        self.pending = Some((next, saved));
        self.raw_since_anchor = 0;
        self.next_anchor_after = (self.next_anchor_after * 2).min(ANCHOR_AFTER);
    }
}

fn expected(codec: u8) -> usize {
    match codec {
        CODEC_LONG => LONG_BYTES,
        CODEC_DICTIONARY => DICTIONARY_BYTES,
        _ => STREAM_BYTES,
    }
}

#[cfg(test)]
mod tests;
