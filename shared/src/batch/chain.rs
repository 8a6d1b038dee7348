//! The port of codecs that remember: each payload of a chain may refer to all before it.
//!
//! A chain belongs to one log of one site. Its two ends hold the same state as long as the payloads are
//! decoded in the order in which they were encoded; [`ChainCodec::position`] tells whether they do. Both
//! ends can save their state after the same payload and go on from there later: what one end then encodes,
//! the other decodes. An end that lost its state begins a chain anew, at a cost in bytes only.
//!
//! After an error the state is not that of the other end any more: drop it.

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

use super::BatchError;
use super::codec::{CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_LONG, CODEC_MODELLED};
use super::columns::ColumnarCodec;
use super::dictionary::DictionaryCodec;
use super::model::ModelChain;

/// What one chain may hold in memory and take in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainLimits {
    /// Bytes of state that one chain aims to stay within. Both ends must have the same: it decides what is
    /// forgotten. From 256 KiB.
    pub state_bytes: u32,
}

impl Default for ChainLimits {
    /// 1 MiB: a thousand chains fit a gigabyte.
    fn default() -> Self {
        Self {
            state_bytes: 1 << 20,
        }
    }
}

/// One end of a chain: the encoder or the decoder, which hold the same state.
pub trait ChainCodec: fmt::Debug + Send {
    /// The id that its payloads carry.
    fn codec(&self) -> u8;

    /// Encodes the next raw payload (see [`super::Block`]); any bytes are allowed.
    ///
    /// # Errors
    /// [`BatchError::Codec`]; the chain is over.
    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError>;

    /// Decodes the next payload. Never allocates more than about `max_raw_len` for the result, whatever
    /// the payload claims, and takes time in proportion to what is decoded.
    ///
    /// # Errors
    /// [`BatchError`]; the chain is over.
    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError>;

    /// A hash of all that went through this chain, in order: equal at both ends exactly when they stand at
    /// the same place. Never 0.
    fn position(&self) -> u64;

    /// The state, to go on from later: versioned, compressed, checksummed.
    fn save(&self) -> Vec<u8>;

    /// Bytes of memory that the state takes.
    fn memory(&self) -> usize;
}

/// The position after one more payload, for every codec: positions of two codecs are never equal by
/// accident because the first one mixes in the id.
#[must_use]
pub fn next_position(position: u64, raw: &[u8]) -> u64 {
    let word = u64::from(crc32c::crc32c(raw)) << 32 ^ raw.len() as u64;
    let mut z = (position.rotate_left(29) ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(1);
    z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (z ^ (z >> 33)).max(1)
}

/// Whether a codec remembers.
#[must_use]
pub fn remembers(codec: u8) -> bool {
    matches!(
        codec,
        CODEC_DICTIONARY | CODEC_COLUMNAR | CODEC_MODELLED | CODEC_LONG
    )
}

/// A chain of this codec that begins. `level` (1 to 19, see zstd) is what an encoder spends; a decoder need
/// not have the same.
///
/// # Errors
/// [`BatchError::UnknownCodec`] when it is no codec that remembers.
pub fn new_chain(
    codec: u8,
    limits: ChainLimits,
    level: i32,
) -> Result<Box<dyn ChainCodec>, BatchError> {
    match codec {
        CODEC_DICTIONARY => Ok(Box::new(DictionaryCodec::new(level))),
        CODEC_COLUMNAR => Ok(Box::new(ColumnarCodec::new(limits, level))),
        CODEC_MODELLED => Ok(Box::new(ModelChain::new(limits))),
        other => Err(BatchError::UnknownCodec(other)),
    }
}

/// A chain that goes on from what [`ChainCodec::save`] gave. Both ends must do so at the same position.
///
/// # Errors
/// [`BatchError`] when the state is broken or was saved under other limits: begin a chain anew then.
pub fn load_chain(
    codec: u8,
    saved: &[u8],
    limits: ChainLimits,
    level: i32,
) -> Result<Box<dyn ChainCodec>, BatchError> {
    match codec {
        CODEC_DICTIONARY => Ok(Box::new(DictionaryCodec::load(saved, level)?)),
        CODEC_COLUMNAR => Ok(Box::new(ColumnarCodec::load(saved, limits, level)?)),
        CODEC_MODELLED => Ok(Box::new(ModelChain::load(saved, limits)?)),
        other => Err(BatchError::UnknownCodec(other)),
    }
}
