//! Codec 1: one zstd frame a payload, with contexts that are used again.

use std::fmt;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use super::{BatchError, CODEC_ZSTD, Decoder, Encoder};

fn failed(error: impl fmt::Display) -> BatchError {
    BatchError::Codec {
        codec: CODEC_ZSTD,
        error: error.to_string(),
    }
}

/// Encodes with one context: about 1.3 MB at level 3, 17 MB at level 9.
pub struct ZstdEncoder {
    compressor: Compressor<'static>,
    level: i32,
}

impl ZstdEncoder {
    /// A context of this level (1 to 19).
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory.
    pub fn new(level: i32) -> Result<Self, BatchError> {
        Ok(Self {
            compressor: Compressor::new(level).map_err(failed)?,
            level,
        })
    }
}

impl fmt::Debug for ZstdEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdEncoder")
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl Encoder for ZstdEncoder {
    fn codec(&self) -> u8 {
        CODEC_ZSTD
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        self.compressor.compress(raw).map_err(failed)
    }
}

/// Decodes into a buffer of the announced length: a frame that holds more fails, whatever its
/// own header claims, and no window is allocated because the output is one piece.
#[derive(Default)]
pub struct ZstdDecoder {
    decompressor: Option<Decompressor<'static>>,
}

impl fmt::Debug for ZstdDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdDecoder").finish_non_exhaustive()
    }
}

impl Decoder for ZstdDecoder {
    fn codec(&self) -> u8 {
        CODEC_ZSTD
    }

    fn decode(&mut self, payload: &Bytes, max_raw: usize) -> Result<Bytes, BatchError> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            empty @ None => empty.insert(Decompressor::new().map_err(failed)?),
        };
        let raw = decompressor.decompress(payload, max_raw).map_err(failed)?;
        Ok(raw.into())
    }
}
