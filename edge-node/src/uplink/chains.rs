//! What codecs remember of this site's logs, and what of it is saved.
//!
//! ```text
//!  begin (session, restart) ─► empty or an anchor ─► one payload after the other ─► anchor ─► …
//! ```
//! After some payloads both ends save their state: an anchor. It counts once the hub has acknowledged what
//! it stands behind; only then is it written to disk, and only then may the next one follow, so that of the
//! two that a hub keeps one is always here. A lost state costs bytes and nothing else: every file may go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shared::batch::{
    BatchError, CODEC_LONG, ChainCodec, ChainLimits, Outgoing, Packed, load_chain, new_chain,
};
use shared::crashsafe::{self, Access};
use shared::ids::Offset;
use shared::link::Begin;
use shared::wire::Anchor;
use tracing::{debug, warn};

use super::chunks::Chunks;
use crate::store::PartitionId;

/// Raw bytes before a log's first anchor; each later one waits for twice as many as the one before.
const FIRST_ANCHOR_AFTER: u64 = 64 << 10;
/// The limit of that doubling: what a lost connection may cost to learn again.
const ANCHOR_AFTER: u64 = 4 << 20;
/// `KDGA`, codec, position; then the state, which carries its own checksum.
const MAGIC: [u8; 4] = *b"KDGA";
const HEAD_LEN: usize = MAGIC.len() + 1 + 8;

/// The anchors that a session may offer, by log, newest first. Written by the thread that encodes, read by
/// the session when it declares a log.
#[derive(Debug, Clone, Default)]
pub(super) struct AnchorBook(Arc<Mutex<HashMap<PartitionId, Vec<Anchor>>>>);

impl AnchorBook {
    pub(super) fn of(&self, partition: PartitionId) -> Vec<Anchor> {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.get(&partition).cloned().unwrap_or_default()
    }

    fn set(&self, partition: PartitionId, anchors: Vec<Anchor>) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.insert(partition, anchors);
    }
}

/// A saved state.
#[derive(Debug, Clone)]
struct Saved {
    anchor: Anchor,
    state: Bytes,
}

#[derive(Debug)]
struct Log {
    codec: Option<Box<dyn ChainCodec>>,
    bytes: usize,
    used: u64,
    /// The hub has it, if it has kept it.
    settled: Option<Saved>,
    /// Sent, and not acknowledged up to this offset.
    pending: Option<(Offset, Saved)>,
    raw_since_anchor: u64,
    next_anchor_after: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            codec: None,
            bytes: 0,
            used: 0,
            settled: None,
            pending: None,
            raw_since_anchor: 0,
            next_anchor_after: FIRST_ANCHOR_AFTER,
        }
    }
}

/// The codecs of all logs.
#[derive(Debug)]
pub(super) struct Chains {
    directory: PathBuf,
    limit: usize,
    level: i32,
    bytes: usize,
    uses: u64,
    logs: HashMap<PartitionId, Log>,
    book: AnchorBook,
    chunks: Chunks,
}

impl Chains {
    /// `limit` bytes of codecs in memory: beyond, the least recently used forget. States are kept in
    /// `directory`, which need not exist. `level` is zstd's.
    pub(super) fn open(
        directory: PathBuf,
        limit: usize,
        level: i32,
        book: AnchorBook,
        chunks: Chunks,
    ) -> Self {
        let mut chains = Self {
            directory,
            limit,
            level,
            bytes: 0,
            uses: 0,
            logs: HashMap::new(),
            book,
            chunks,
        };
        if let Err(error) = std::fs::create_dir_all(&chains.directory) {
            warn!(%error, "No directory for codec states: they do not outlive the process");
        }
        chains.read_directory();
        chains
    }

    fn read_directory(&mut self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".anchor"));
            let Some(partition) = number.and_then(|number| number.parse().ok()) else {
                continue;
            };
            let partition = PartitionId(partition);
            let saved = std::fs::read(entry.path()).ok().and_then(decode);
            let log = self.logs.entry(partition).or_default();
            log.settled = saved;
            log.next_anchor_after = ANCHOR_AFTER;
            self.publish(partition);
        }
    }

    /// Encodes the next payload of a log with a codec that remembers.
    ///
    /// # Errors
    /// [`BatchError`] of the codec; the log's memory is empty then.
    pub(super) fn pack(
        &mut self,
        partition: PartitionId,
        codec: u8,
        outgoing: &Outgoing<'_>,
    ) -> Result<Packed, BatchError> {
        self.uses += 1;
        let log = self.logs.entry(partition).or_default();
        log.used = self.uses;
        let known = log.codec.take().filter(|known| known.codec() == codec);
        let is_fresh = known.is_none();
        let mut memory = match known {
            Some(memory) => memory,
            None if codec == CODEC_LONG => self.chunks.fresh()?,
            None => new_chain(codec, ChainLimits::default(), self.level)?,
        };
        self.chunks.at(partition, outgoing.next_offset);
        let mut packed = outgoing.pack_chain(memory.as_mut(), is_fresh)?;
        log.raw_since_anchor += outgoing.raw.len() as u64;
        if log.pending.is_none() && log.raw_since_anchor >= log.next_anchor_after {
            packed.header.is_anchor = true;
            log.anchor(memory.as_ref(), outgoing.next_offset);
            self.publish(partition);
        }
        self.keep(partition, memory);
        Ok(packed)
    }

    /// Whether the values of a payload are large enough to be cut into chunks.
    pub(super) fn are_large(&self, partition: PartitionId, raw_len: usize, records: u64) -> bool {
        let codec = self.logs.get(&partition).and_then(|log| log.codec.as_ref());
        let is_in_use = codec.is_some_and(|codec| codec.codec() == CODEC_LONG);
        self.chunks.suits(raw_len, records, is_in_use)
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

    fn keep(&mut self, partition: PartitionId, memory: Box<dyn ChainCodec>) {
        if let Some(log) = self.logs.get_mut(&partition) {
            let before = std::mem::replace(&mut log.bytes, memory.memory());
            self.bytes = self.bytes + log.bytes - before;
            log.codec = Some(memory);
        }
        while self.bytes > self.limit {
            let others = self.logs.iter_mut().filter(|(id, _)| **id != partition);
            let oldest = others.filter(|(_, log)| log.codec.is_some());
            let Some((_, log)) = oldest.min_by_key(|(_, log)| log.used) else {
                return;
            };
            log.codec = None;
            self.bytes -= std::mem::take(&mut log.bytes);
        }
    }

    /// A session begins to send a log, or begins it again.
    pub(super) fn begin(&mut self, partition: PartitionId, begin: Begin) {
        let log = self.logs.entry(partition).or_default();
        let saved = match begin {
            Begin::Fresh => None,
            Begin::Anchor(anchor) => {
                let pending = log.pending.as_ref().map(|(_, saved)| saved);
                let mut known = pending.into_iter().chain(&log.settled);
                known.find(|saved| saved.anchor == anchor).cloned()
            }
        };
        // what was sent with a session that is over counts if the hub says so now
        log.pending = None;
        log.settled = saved.clone();
        log.raw_since_anchor = 0;
        self.bytes -= std::mem::take(&mut log.bytes);
        let (limits, level) = (ChainLimits::default(), self.level);
        self.chunks.restarted(partition);
        log.codec = saved.and_then(|saved| match saved.anchor.codec {
            CODEC_LONG => self.chunks.load(&saved.state).ok(),
            codec => load_chain(codec, &saved.state, limits, level).ok(),
        });
        match &log.codec {
            Some(memory) => {
                log.bytes = memory.memory();
                self.bytes += log.bytes;
            }
            None => log.next_anchor_after = FIRST_ANCHOR_AFTER,
        }
        self.publish(partition);
    }

    /// The hub holds everything before this offset.
    pub(super) fn acknowledged(&mut self, partition: PartitionId, next: Offset) {
        self.chunks.acknowledged(partition, next);
        let Some(log) = self.logs.get_mut(&partition) else {
            return;
        };
        let Some((_, saved)) = log.pending.take_if(|(offset, _)| *offset <= next) else {
            return;
        };
        let path = file(&self.directory, partition);
        if let Err(error) = crashsafe::replace(&path, &encode(&saved), Access::Private) {
            debug!(%error, path = %path.display(), "Codec state not written");
        }
        log.settled = Some(saved);
        self.publish(partition);
    }

    fn publish(&self, partition: PartitionId) {
        if let Some(log) = self.logs.get(&partition) {
            let pending = log.pending.as_ref().map(|(_, saved)| saved.anchor);
            let settled = log.settled.as_ref().map(|saved| saved.anchor);
            let anchors = pending.into_iter().chain(settled).collect();
            self.book.set(partition, anchors);
        }
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

fn file(directory: &Path, partition: PartitionId) -> PathBuf {
    directory.join(format!("{}.anchor", partition.0))
}

fn encode(saved: &Saved) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + saved.state.len());
    out.extend_from_slice(&MAGIC);
    out.push(saved.anchor.codec);
    out.extend_from_slice(&saved.anchor.position.to_be_bytes());
    out.extend_from_slice(&saved.state);
    out
}

fn decode(file: Vec<u8>) -> Option<Saved> {
    let rest = file.strip_prefix(&MAGIC)?;
    let (&codec, rest) = rest.split_first()?;
    let (position, state) = rest.split_first_chunk::<8>()?;
    Some(Saved {
        anchor: Anchor {
            codec,
            position: u64::from_be_bytes(*position),
        },
        state: Bytes::copy_from_slice(state),
    })
}
