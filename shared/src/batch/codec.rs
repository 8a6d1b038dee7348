//! The port behind which payloads shrink one by one, each on its own, and the ways through it.

use bytes::Bytes;

use super::BatchError;

/// The payload as it is.
pub const CODEC_NONE: u8 = 0;
/// One zstd frame a payload (RFC 8878), with its content size, without a checksum.
pub const CODEC_ZSTD: u8 = 1;
/// One zstd frame a payload, with a dictionary that went through the same chain.
pub const CODEC_DICTIONARY: u8 = 2;
/// Columns and zstd with history; a chain.
pub const CODEC_COLUMNAR: u8 = 3;
/// Columns and a model of each symbol; a chain.
pub const CODEC_MODELLED: u8 = 4;
/// References to chunks and literals with a long window, for large values; a chain that needs a store of
/// chunks beside it, see [`crate::dedup`].
pub const CODEC_LONG: u8 = 5;

/// Codec ids that this build decodes, for hello and welcome: least bytes first. Codec 0 always is.
#[must_use]
pub fn supported_codecs() -> Vec<u8> {
    vec![CODEC_MODELLED, CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_ZSTD]
}

/// A codec's name, for people.
#[must_use]
pub const fn codec_name(codec: u8) -> &'static str {
    match codec {
        CODEC_NONE => "none",
        CODEC_ZSTD => "zstd",
        CODEC_DICTIONARY => "dictionary",
        CODEC_COLUMNAR => "columnar",
        CODEC_MODELLED => "modelled",
        CODEC_LONG => "chunks",
        _ => "unknown",
    }
}

/// Shrinks raw payloads. May keep a context between calls, but each payload decodes on its own.
pub trait Encoder: std::fmt::Debug + Send {
    /// The id that the payloads carry.
    fn codec(&self) -> u8;

    /// The encoded payload.
    ///
    /// # Errors
    /// [`BatchError::Codec`].
    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError>;
}

/// The other direction.
pub trait Decoder: std::fmt::Debug + Send {
    /// The id of the payloads that it decodes.
    fn codec(&self) -> u8;

    /// Decodes to `max_raw` bytes at most, or fails; never allocates more than that for the result.
    ///
    /// # Errors
    /// [`BatchError::Codec`] or [`BatchError::Malformed`].
    fn decode(&mut self, payload: &Bytes, max_raw: usize) -> Result<Bytes, BatchError>;
}

/// Codec 0.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoneCodec;

impl Encoder for NoneCodec {
    fn codec(&self) -> u8 {
        CODEC_NONE
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        Ok(raw.to_vec())
    }
}

impl Decoder for NoneCodec {
    fn codec(&self) -> u8 {
        CODEC_NONE
    }

    fn decode(&mut self, payload: &Bytes, max_raw: usize) -> Result<Bytes, BatchError> {
        if payload.len() <= max_raw {
            Ok(payload.clone())
        } else {
            Err(BatchError::Malformed("payload is longer than announced"))
        }
    }
}
