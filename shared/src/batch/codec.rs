//! The port behind which payloads shrink, and the two ways through it.

use bytes::Bytes;

use super::zstd::ZstdDecoder;
use super::{BatchError, Block, read_blocks};
use crate::wire::{DataContent, DataHeader, RecordsHeader};

/// The payload as it is.
pub const CODEC_NONE: u8 = 0;
/// One zstd frame a payload (RFC 8878), with its content size, without a checksum.
pub const CODEC_ZSTD: u8 = 1;
/// One zstd frame a payload with a dictionary that both ends hold.
pub const CODEC_ZSTD_DICT: u8 = 2;
/// Columns and zstd with history; a chain.
pub const CODEC_COLUMNAR: u8 = 3;
/// Columns and a model of each symbol; a chain.
pub const CODEC_MODELLED: u8 = 4;

/// Codec ids that this build decodes, best first, for hello and welcome.
#[must_use]
pub fn supported_codecs() -> Vec<u8> {
    vec![CODEC_ZSTD, CODEC_NONE]
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

    /// Decodes to exactly `raw_len` bytes, or fails; never allocates more than that for the result.
    ///
    /// # Errors
    /// [`BatchError::Codec`] or [`BatchError::Malformed`].
    fn decode(&mut self, payload: &Bytes, raw_len: usize) -> Result<Bytes, BatchError>;
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

    fn decode(&mut self, payload: &Bytes, raw_len: usize) -> Result<Bytes, BatchError> {
        if payload.len() == raw_len {
            Ok(payload.clone())
        } else {
            Err(BatchError::Malformed("payload is shorter than announced"))
        }
    }
}

/// A payload ready for a data stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedBatch {
    /// Goes into the stream's header.
    pub header: RecordsHeader,
    /// Follows the header.
    pub payload: Bytes,
}

/// Encodes a raw payload, or leaves it as it is when that is no longer.
///
/// # Errors
/// [`BatchError`] of the codec, or when the payload is larger than 4 GiB.
pub fn encode(raw: Vec<u8>, encoder: &mut dyn Encoder) -> Result<EncodedBatch, BatchError> {
    let raw_len = u32::try_from(raw.len()).map_err(|_| BatchError::TooLarge {
        bytes: raw.len(),
        limit: usize::try_from(u32::MAX).unwrap_or(usize::MAX),
    })?;
    let crc = crc32c::crc32c(&raw);
    let (codec, payload) = if encoder.codec() == CODEC_NONE {
        (CODEC_NONE, raw)
    } else {
        let encoded = encoder.encode(&raw)?;
        if encoded.len() < raw.len() {
            (encoder.codec(), encoded)
        } else {
            (CODEC_NONE, raw)
        }
    };
    Ok(EncodedBatch {
        header: RecordsHeader {
            codec,
            raw_len,
            crc,
        },
        payload: payload.into(),
    })
}

/// One decoder of each kind, with contexts that are used again.
#[derive(Debug)]
pub struct Decoders {
    decoders: Vec<Box<dyn Decoder>>,
}

impl Default for Decoders {
    fn default() -> Self {
        Self {
            decoders: vec![Box::new(NoneCodec), Box::new(ZstdDecoder::default())],
        }
    }
}

/// Decodes and checks the payload of a records stream down to every record.
///
/// # Errors
/// [`BatchError`]: the site's session must end. More than `max_raw_len` bytes are refused before
/// anything is decoded.
pub fn open(
    header: &DataHeader,
    payload: &Bytes,
    max_raw_len: usize,
    decoders: &mut Decoders,
) -> Result<Vec<Block>, BatchError> {
    let DataContent::Records(records) = header.content else {
        return Err(BatchError::Malformed("a gap has no payload"));
    };
    let raw_len = usize::try_from(records.raw_len).unwrap_or(usize::MAX);
    if raw_len > max_raw_len {
        return Err(BatchError::TooLarge {
            bytes: raw_len,
            limit: max_raw_len,
        });
    }
    let decoder = decoders
        .decoders
        .iter_mut()
        .find(|decoder| decoder.codec() == records.codec)
        .ok_or(BatchError::UnknownCodec(records.codec))?;
    let raw = decoder.decode(payload, raw_len)?;
    let computed = crc32c::crc32c(&raw);
    if computed != records.crc {
        return Err(BatchError::Checksum {
            found: records.crc,
            computed,
        });
    }
    read_blocks(&raw, header.base_offset, header.next_offset)
}
