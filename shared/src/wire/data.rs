//! The header of a data stream: one batch of records or one gap of one log.

use bytes::Bytes;

use super::varint::{Reader, put_varint};
use super::{Handle, MAX_OFFSET, STREAM_OVERHEAD, WireError};
use crate::ids::Offset;

/// No header is longer.
pub const MAX_DATA_HEADER_LEN: usize = 48;

const KIND_RECORDS: u8 = 1;
const KIND_GAP: u8 = 2;

/// What both ends charge against the credit for a data stream.
#[must_use]
pub fn charge(raw_len: u32) -> u64 {
    u64::from(raw_len) + STREAM_OVERHEAD
}

/// How the payload of records is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordsHeader {
    /// Codec of the payload: 0 none, or the one of the welcome.
    pub codec: u8,
    /// Bytes of the payload once decoded; the payload itself is never longer.
    pub raw_len: u32,
    /// CRC-32C of the decoded payload.
    pub crc: u32,
}

/// What a data stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataContent {
    /// Records, in the payload after the header.
    Records(RecordsHeader),
    /// No payload: the site has no records in this range.
    Gap { reason: u8 },
}

/// The header of one data stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// Which log.
    pub handle: Handle,
    /// First offset.
    pub base_offset: Offset,
    /// Offset after the last one; larger than the first.
    pub next_offset: Offset,
    /// The log's history up to `next_offset`, as the site's store computed it; 0: not known.
    pub chain: u64,
    /// Records or a gap.
    pub content: DataContent,
}

impl DataHeader {
    /// Decoded bytes of the payload.
    #[must_use]
    pub fn raw_len(&self) -> u32 {
        match self.content {
            DataContent::Records(records) => records.raw_len,
            DataContent::Gap { .. } => 0,
        }
    }

    /// What the stream costs in credit.
    #[must_use]
    pub fn charge(&self) -> u64 {
        charge(self.raw_len())
    }

    /// The bytes that open the stream; the payload follows.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(MAX_DATA_HEADER_LEN);
        out.push(match self.content {
            DataContent::Records(_) => KIND_RECORDS,
            DataContent::Gap { .. } => KIND_GAP,
        });
        put_varint(&mut out, self.handle.0.into());
        put_varint(&mut out, self.base_offset);
        put_varint(&mut out, self.next_offset.saturating_sub(self.base_offset));
        out.extend_from_slice(&self.chain.to_be_bytes());
        match self.content {
            DataContent::Records(records) => {
                out.push(records.codec);
                put_varint(&mut out, records.raw_len.into());
                out.extend_from_slice(&records.crc.to_be_bytes());
            }
            DataContent::Gap { reason } => out.push(reason),
        }
        out.into()
    }

    /// Splits a whole data stream into its header and its payload.
    ///
    /// # Errors
    /// [`WireError`] when it is not one batch or one gap.
    pub fn decode(stream: &Bytes) -> Result<(Self, Bytes), WireError> {
        let mut reader = Reader::new(stream);
        let kind = reader.u8()?;
        let handle = Handle(reader.varint_u32()?);
        let base_offset = reader.varint()?;
        let next_offset = base_offset
            .checked_add(reader.varint()?)
            .filter(|next| *next > base_offset && *next <= MAX_OFFSET)
            .ok_or(WireError::Malformed("range is empty or too large"))?;
        let chain = reader.u64()?;
        let content = match kind {
            KIND_RECORDS => DataContent::Records(RecordsHeader {
                codec: reader.u8()?,
                raw_len: reader.varint_u32()?,
                crc: reader.u32()?,
            }),
            KIND_GAP => DataContent::Gap {
                reason: reader.u8()?,
            },
            other => return Err(WireError::UnknownFrame(other)),
        };
        let payload = stream.slice(stream.len() - reader.remaining()..);
        let most = match content {
            DataContent::Records(records) => usize::try_from(records.raw_len).unwrap_or(usize::MAX),
            DataContent::Gap { .. } => 0,
        };
        if payload.len() > most {
            return Err(WireError::Malformed("payload is longer than announced"));
        }
        Ok((
            Self {
                handle,
                base_offset,
                next_offset,
                chain,
                content,
            },
            payload,
        ))
    }
}
