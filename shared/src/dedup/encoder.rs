//! The site's end of a chain.

use super::refs::{MAX_REFERENCES, Part, put_parts};
use super::{ChunkIndex, LongConfig, Piece, Place, cut};
use crate::batch::{BatchError, CODEC_LONG, LongWriter, SavedWindow, next_position};

/// Encodes the payloads of one log, in order.
#[derive(Debug)]
pub struct LongEncoder {
    config: LongConfig,
    literals: LongWriter,
    position: u64,
}

impl LongEncoder {
    /// The beginning of a chain.
    ///
    /// # Errors
    /// [`BatchError`] when the configuration is out of range or zstd has no memory.
    pub fn new(config: LongConfig) -> Result<Self, BatchError> {
        let config = config.checked()?;
        Ok(Self {
            config,
            literals: LongWriter::new(config.level, config.window_log, None)?,
            position: CODEC_LONG.into(),
        })
    }

    /// Goes on where [`LongEncoder::save`] was called.
    ///
    /// # Errors
    /// [`BatchError`] when it cannot be read: begin anew.
    pub fn restore(saved: &[u8], config: LongConfig) -> Result<Self, BatchError> {
        let config = config.checked()?;
        let window = SavedWindow::read(saved, config.window_log)?;
        Ok(Self {
            config,
            position: window.position,
            literals: LongWriter::new(config.level, config.window_log, Some(window))?,
        })
    }

    /// The next payload. What the index believes that the hub holds is referred to; what goes out is noted there.
    ///
    /// # Errors
    /// [`BatchError`]; the chain is over.
    pub fn encode(
        &mut self,
        raw: &[u8],
        index: &mut ChunkIndex,
        place: Place,
    ) -> Result<Vec<u8>, BatchError> {
        let mut parts = Vec::new();
        let mut literals = Vec::new();
        let mut references = 0;
        for piece in cut(raw, self.config.min_value_bytes) {
            let (range, id) = match piece {
                Piece::Plain(range) => (range, None),
                Piece::Chunk(range, id) => (range, Some(id)),
            };
            let bytes = raw.get(range).unwrap_or_default();
            let Some(id) = id else {
                parts.push(Part::Plain(bytes.len()));
                literals.extend_from_slice(bytes);
                continue;
            };
            if references < MAX_REFERENCES && index.may_refer(&id, bytes.len(), place.log) {
                references += 1;
                parts.push(Part::Reference(bytes.len(), id));
            } else {
                index.sent(id, bytes.len(), place);
                parts.push(Part::Chunk(bytes.len()));
                literals.extend_from_slice(bytes);
            }
        }
        let mut out = Vec::with_capacity(literals.len() / 2 + parts.len() * 4 + 64);
        put_parts(&mut out, &parts);
        self.literals.write(literals.into(), &mut out)?;
        self.position = next_position(self.position, raw);
        Ok(out)
    }

    /// A hash of everything so far; see [`crate::batch::ChainCodec::position`].
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
