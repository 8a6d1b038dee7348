//! The hub's end of a chain.
//!
//! ```text
//!  Ready ── decode ──► Raw                         (all chunks are there)
//!    ▲         └─────► Missing ─ waits ─┐
//!    └──────────── complete ◄───────────┘          (the site's answer; or the chain is over)
//! ```

use std::collections::HashMap;

use bytes::Bytes;

use super::refs::{Part, take_parts};
use super::{CODEC_LONG, ChunkId, ChunkStore, LongConfig};
use crate::batch::{BatchError, LongReader, SavedWindow, next_position};
use crate::wire::Reader;

const OTHER_LENGTH: BatchError = BatchError::Malformed("reference of another length");

/// What became of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// The raw payload, whose checksum is still to be compared.
    Raw(Bytes),
    /// These chunks are not in the store: ask the site, then call [`LongDecoder::complete`].
    Missing(Vec<ChunkId>),
}

/// A payload with holes.
#[derive(Debug)]
struct Pending {
    raw: Vec<u8>,
    holes: Vec<Hole>,
    /// Each id once, in the order in which the site was asked, with its length.
    asked: Vec<(ChunkId, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Hole {
    start: usize,
    len: usize,
    id: ChunkId,
}

/// Decodes the payloads of one log, in order.
#[derive(Debug)]
pub struct LongDecoder {
    literals: LongReader,
    position: u64,
    pending: Option<Pending>,
}

impl LongDecoder {
    /// The beginning of a chain. Only the window of the configuration counts here.
    ///
    /// # Errors
    /// [`BatchError`] when the configuration is out of range or zstd has no memory.
    pub fn new(config: LongConfig) -> Result<Self, BatchError> {
        let config = config.checked()?;
        Ok(Self {
            literals: LongReader::new(config.window_log, None)?,
            position: CODEC_LONG.into(),
            pending: None,
        })
    }

    /// Goes on where [`LongDecoder::save`] was called.
    ///
    /// # Errors
    /// [`BatchError`] when it cannot be read: begin anew.
    pub fn restore(saved: &[u8], config: LongConfig) -> Result<Self, BatchError> {
        let config = config.checked()?;
        let window = SavedWindow::read(saved, config.window_log)?;
        Ok(Self {
            position: window.position,
            literals: LongReader::new(config.window_log, Some(window))?,
            pending: None,
        })
    }

    /// Decodes the next payload to exactly `raw_len` bytes, which the caller has held against its limit.
    ///
    /// # Errors
    /// [`BatchError`]: the chain is over. Also when the payload before is not complete.
    pub fn decode(
        &mut self,
        payload: &[u8],
        raw_len: usize,
        store: &mut dyn ChunkStore,
    ) -> Result<Decoded, BatchError> {
        if self.pending.is_some() {
            return Err(BatchError::Malformed("the payload before is not complete"));
        }
        let mut reader = Reader::new(payload);
        let parts = take_parts(&mut reader, raw_len)?;
        let of_literals = |part: &Part| match part {
            Part::Plain(len) | Part::Chunk(len) => *len,
            Part::Reference(..) => 0,
        };
        let literal_len = parts.iter().map(of_literals).sum();
        let compressed = reader.bytes(reader.remaining())?;
        let literals = self.literals.read(compressed, literal_len)?;
        let pending = assemble(&parts, &literals, raw_len, store)?;
        if pending.holes.is_empty() {
            return Ok(Decoded::Raw(self.finish(pending.raw)));
        }
        let ids = pending.asked.iter().map(|(id, _)| *id).collect();
        self.pending = Some(pending);
        Ok(Decoded::Missing(ids))
    }

    /// Takes the site's answer: the chunks that [`Decoded::Missing`] named, in that order, as one zstd frame that
    /// claims to hold `raw_len` bytes.
    ///
    /// # Errors
    /// [`BatchError`] when they are not those chunks: the chain is over.
    pub fn complete(
        &mut self,
        raw_len: usize,
        frame: &[u8],
        store: &mut dyn ChunkStore,
    ) -> Result<Bytes, BatchError> {
        let Some(mut pending) = self.pending.take() else {
            return Err(BatchError::Malformed("chunks that nobody asked for"));
        };
        let asked_len: usize = pending.asked.iter().map(|(_, len)| *len).sum();
        if raw_len != asked_len {
            return Err(BatchError::Malformed("not the chunks that were asked for"));
        }
        let chunks = crate::batch::decompress_answer(frame, raw_len)?;
        let mut rest: &[u8] = &chunks;
        let mut found = HashMap::with_capacity(pending.asked.len());
        for (id, len) in &pending.asked {
            let (chunk, tail) = rest
                .split_at_checked(*len)
                .ok_or(BatchError::Malformed("chunks are too short"))?;
            rest = tail;
            if ChunkId::of(chunk) != *id {
                return Err(BatchError::Malformed("chunk of another id"));
            }
            store.insert(*id, chunk);
            found.insert(*id, chunk);
        }
        for hole in &pending.holes {
            let filled = found
                .get(&hole.id)
                .zip(pending.raw.get_mut(hole.start..hole.start + hole.len));
            match filled {
                Some((chunk, to)) if chunk.len() == hole.len => to.copy_from_slice(chunk),
                Some(_) | None => return Err(BatchError::Malformed("a hole that nothing fills")),
            }
        }
        Ok(self.finish(pending.raw))
    }

    /// True while a payload waits for chunks.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    fn finish(&mut self, raw: Vec<u8>) -> Bytes {
        self.position = next_position(self.position, &raw);
        raw.into()
    }

    /// A hash of everything that was decoded whole; see [`crate::batch::ChainCodec::position`].
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The state, to go on from later. Not while a payload waits.
    ///
    /// # Errors
    /// [`BatchError`] while one waits, or when zstd has no memory.
    pub fn save(&self) -> Result<Vec<u8>, BatchError> {
        if self.pending.is_some() {
            return Err(BatchError::Malformed("a payload is not complete"));
        }
        self.literals.save(self.position)
    }

    /// Bytes of memory that the state takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let pending = self.pending.as_ref().map_or(0, |pending| pending.raw.len());
        self.literals.memory() + pending
    }
}

/// Puts the parts together as far as the store has them, and keeps the chunks among the literals.
fn assemble(
    parts: &[Part],
    literals: &[u8],
    raw_len: usize,
    store: &mut dyn ChunkStore,
) -> Result<Pending, BatchError> {
    let mut raw = Vec::with_capacity(raw_len);
    let mut rest = literals;
    let mut holes = Vec::new();
    let mut asked = Vec::new();
    let mut lengths = HashMap::new();
    for part in parts {
        match part {
            Part::Plain(len) | Part::Chunk(len) => {
                let (bytes, tail) = rest
                    .split_at_checked(*len)
                    .ok_or(BatchError::Malformed("literals are too short"))?;
                rest = tail;
                raw.extend_from_slice(bytes);
                if matches!(part, Part::Chunk(_)) {
                    store.insert(ChunkId::of(bytes), bytes);
                }
            }
            Part::Reference(len, id) => {
                let (start, len, id) = (raw.len(), *len, *id);
                match store.chunk(&id) {
                    Some(chunk) if chunk.len() == len => raw.extend_from_slice(&chunk),
                    // an id stands for one length only
                    Some(_) => return Err(OTHER_LENGTH),
                    None => {
                        raw.resize(start + len, 0);
                        holes.push(Hole { start, len, id });
                        match lengths.insert(id, len) {
                            None => asked.push((id, len)),
                            Some(before) if before == len => {}
                            Some(_) => return Err(OTHER_LENGTH),
                        }
                    }
                }
            }
        }
    }
    Ok(Pending { raw, holes, asked })
}
