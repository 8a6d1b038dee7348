//! The hub's end of a chain.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::refs::{Part, Parts, take_parts};
use super::{ChunkId, ChunkStore, LongConfig};
use crate::batch::{BatchError, CODEC_LONG, LongReader, SavedWindow, next_position};
use crate::wire::Reader;

/// Decodes the payloads of one log, in order.
#[derive(Debug)]
pub struct LongDecoder {
    literals: LongReader,
    position: u64,
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
        })
    }

    /// Decodes the next payload, to `max_raw` bytes at most.
    ///
    /// # Errors
    /// [`BatchError`]: the chain is over. [`BatchError::Missing`] names every chunk that the store does not
    /// hold, each once.
    pub fn decode(
        &mut self,
        payload: &[u8],
        max_raw: usize,
        store: &mut dyn ChunkStore,
    ) -> Result<Bytes, BatchError> {
        let mut reader = Reader::new(payload);
        let parts = take_parts(&mut reader, max_raw)?;
        let compressed = reader.bytes(reader.remaining())?;
        let literals = self.literals.read(compressed, parts.literal_len)?;
        let raw = assemble(&parts, &literals, store)?;
        self.position = next_position(self.position, &raw);
        Ok(raw.into())
    }

    /// A hash of everything that was decoded; see [`crate::batch::ChainCodec::position`].
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The state, to go on from later; see [`crate::batch::ChainCodec::save`].
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory.
    pub fn save(&self) -> Result<Vec<u8>, BatchError> {
        self.literals.save(self.position)
    }

    /// Bytes of memory that the state takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.literals.memory()
    }
}

/// Puts the parts together, and keeps the chunks among the literals.
fn assemble(
    parts: &Parts,
    literals: &[u8],
    store: &mut dyn ChunkStore,
) -> Result<Vec<u8>, BatchError> {
    let mut raw = Vec::with_capacity(parts.raw_len);
    let mut rest = literals;
    let mut missing = Missing::default();
    // a payload may repeat its own chunks, and the store may have no room even for those
    let mut own = HashMap::new();
    let mut carried = Vec::new();
    for part in &parts.parts {
        match part {
            Part::Plain(len) | Part::Chunk(len) => {
                let (bytes, tail) = rest
                    .split_at_checked(*len)
                    .ok_or(BatchError::Malformed("literals are too short"))?;
                rest = tail;
                raw.extend_from_slice(bytes);
                if matches!(part, Part::Chunk(_)) {
                    let id = ChunkId::of(bytes);
                    own.insert(id, bytes);
                    carried.push((id, bytes));
                }
            }
            Part::Reference(len, id) => {
                let stored = store.chunk(id);
                match stored.as_deref().or_else(|| own.get(id).copied()) {
                    Some(chunk) if chunk.len() == *len => raw.extend_from_slice(chunk),
                    Some(_) => return Err(BatchError::Malformed("reference of another length")),
                    None => missing.add(*id),
                }
            }
        }
    }
    // last, so that they drive out nothing that this payload refers to
    for (id, bytes) in carried {
        store.insert(id, bytes);
    }
    if missing.ids.is_empty() {
        Ok(raw)
    } else {
        Err(BatchError::Missing(missing.ids))
    }
}

#[derive(Debug, Default)]
struct Missing {
    ids: Vec<ChunkId>,
    seen: HashSet<ChunkId>,
}

impl Missing {
    fn add(&mut self, id: ChunkId) {
        if self.seen.insert(id) {
            self.ids.push(id);
        }
    }
}
