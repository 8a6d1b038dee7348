//! The site's end: raw payloads become the payloads of data streams.

use bytes::Bytes;

use super::{BatchError, CODEC_NONE, ChainCodec, Encoder};
use crate::ids::Offset;
use crate::wire::{MAX_EXPANSION, RecordsHeader, SizeClass};

/// A payload ready for a data stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Goes into the stream's header.
    pub header: RecordsHeader,
    /// Follows the header.
    pub payload: Bytes,
}

/// What both ends compare when a payload was decoded: CRC-32C of the raw payload, the offset after it and
/// the history there, big endian. So wrong bytes are noticed, and right bytes in the wrong place as well.
#[must_use]
pub fn seal(raw: &[u8], next_offset: Offset, chain: u64) -> u32 {
    seal_crc(crc32c::crc32c(raw), next_offset, chain)
}

/// The same, given the CRC-32C of the raw payload.
#[must_use]
pub fn seal_crc(crc: u32, next_offset: Offset, chain: u64) -> u32 {
    let crc = crc32c::crc32c_append(crc, &next_offset.to_be_bytes());
    crc32c::crc32c_append(crc, &chain.to_be_bytes())
}

/// A raw payload that is about to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The bytes.
    pub raw: &'a [u8],
    /// Offset after its last record.
    pub next_offset: Offset,
    /// The history there; 0: not known.
    pub chain: u64,
}

impl Outgoing<'_> {
    /// Encodes the payload on its own, or leaves it as it is when that is no longer.
    ///
    /// # Errors
    /// [`BatchError`] of the codec.
    pub fn pack(&self, encoder: &mut dyn Encoder) -> Result<Packed, BatchError> {
        if encoder.codec() != CODEC_NONE {
            let encoded = encoder.encode(self.raw)?;
            if encoded.len() < self.raw.len() {
                let header = self.header(encoder.codec());
                return Ok(Packed {
                    header,
                    payload: encoded.into(),
                });
            }
        }
        Ok(Packed {
            header: self.header(CODEC_NONE),
            payload: Bytes::copy_from_slice(self.raw),
        })
    }

    /// Encodes the payload with what the codec remembers. `is_fresh`: it remembers nothing.
    ///
    /// # Errors
    /// [`BatchError`] of the codec, which is not to be used any more then.
    pub fn pack_chain(
        &self,
        codec: &mut dyn ChainCodec,
        is_fresh: bool,
    ) -> Result<Packed, BatchError> {
        let payload: Bytes = codec.encode(self.raw)?.into();
        let header = self.header(codec.codec());
        // what does not shrink may grow by more than the size leaves room for
        let least = SizeClass::of(payload.len().saturating_sub(MAX_EXPANSION));
        Ok(Packed {
            header: RecordsHeader {
                is_fresh,
                size: header.size.max(least),
                ..header
            },
            payload,
        })
    }

    fn header(&self, codec: u8) -> RecordsHeader {
        RecordsHeader {
            codec,
            is_fresh: false,
            is_anchor: false,
            size: SizeClass::of(self.raw.len()),
            check: seal(self.raw, self.next_offset, self.chain),
        }
    }
}
