//! The header of a data stream: one batch of records or one gap of one log.
//!
//! At one batch a second the header costs as much as what it describes, so it says only what the hub
//! cannot know: offsets follow from the checkpoint and the streams before, the log's history from the
//! records, the exact length from decoding.

use bytes::Bytes;

use super::varint::{Reader, put_varint};
use super::{Handle, STREAM_OVERHEAD, WireError};

/// No header is longer.
pub const MAX_DATA_HEADER_LEN: usize = 32;
/// A payload is longer than what it decodes to by no more than this: a codec that remembers cannot take
/// back what it encoded.
pub const MAX_EXPANSION: usize = 64;
/// Most bytes of a data stream whose payload decodes to no more than this.
#[must_use]
pub const fn max_stream_len(max_batch_bytes: usize) -> usize {
    max_batch_bytes.saturating_add(MAX_DATA_HEADER_LEN + MAX_EXPANSION)
}

/// Codec ids are below.
pub const MAX_CODEC: u8 = 8;

const FLAG_GAP: u8 = 1;
const FLAG_RESTART: u8 = 1 << 1;
const FLAG_CHAIN: u8 = 1 << 2;
const FLAG_FRESH: u8 = 1 << 3;
const FLAG_ANCHOR: u8 = 1 << 4;
const CODEC_SHIFT: u32 = 5;

/// Fewest bits of a size that are kept exactly.
const SIZE_BITS: u32 = 4;

/// Bytes, rounded up to one of 256 sizes no more than an eighth apart: `(8 + low 3 bits) << high 5 bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeClass(pub u8);

impl SizeClass {
    /// The smallest class that holds so many bytes; beyond 32 bits the largest.
    #[must_use]
    pub fn of(bytes: usize) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let shift = (u32::BITS - bytes.leading_zeros()).saturating_sub(SIZE_BITS);
        // rounded up; a carry leads to the first size of the next shift
        let mantissa = bytes.div_ceil(1 << shift).max(8);
        let class = (shift << 3) + (mantissa - 8);
        Self(u8::try_from(class).unwrap_or(u8::MAX))
    }

    /// The most bytes that it stands for.
    #[must_use]
    pub fn bytes(self) -> u32 {
        let size = u64::from(8 + (self.0 & 7)) << (self.0 >> 3);
        u32::try_from(size).unwrap_or(u32::MAX)
    }
}

/// What both ends charge against the credit for a data stream.
#[must_use]
pub fn charge(raw_len: u32) -> u64 {
    u64::from(raw_len) + STREAM_OVERHEAD
}

/// How the payload of records is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordsHeader {
    /// Codec of the payload, below [`MAX_CODEC`]: 0 none, or one of those of the welcome.
    pub codec: u8,
    /// The codec's memory is empty before this payload.
    pub is_fresh: bool,
    /// Both ends save the codec's memory after this payload.
    pub is_anchor: bool,
    /// The payload decodes to no more than this.
    pub size: SizeClass,
    /// See [`crate::batch::seal`].
    pub check: u32,
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
    /// Its place among the streams of its log in this session, from 0, without the higher bits.
    pub seq: u8,
    /// The first after the hub asked for a restart: what was sent before and is missing is void.
    pub is_restart: bool,
    /// Offsets that it covers, at least one.
    pub count: u64,
    /// The log's history after it, as the site's store computed it (0: not known); absent when it follows
    /// from the history before and the records.
    pub chain: Option<u64>,
    /// Records or a gap.
    pub content: DataContent,
}

impl DataHeader {
    /// What the stream costs in credit.
    #[must_use]
    pub fn charge(&self) -> u64 {
        match self.content {
            DataContent::Records(records) => charge(records.size.bytes()),
            DataContent::Gap { .. } => STREAM_OVERHEAD,
        }
    }

    /// The bytes that open the stream; the payload follows.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(MAX_DATA_HEADER_LEN);
        out.push(self.flags());
        put_varint(&mut out, self.handle.0.into());
        out.push(self.seq);
        put_varint(&mut out, self.count);
        if let Some(chain) = self.chain {
            out.extend_from_slice(&chain.to_be_bytes());
        }
        match self.content {
            DataContent::Records(records) => {
                out.push(records.size.0);
                out.extend_from_slice(&records.check.to_be_bytes());
            }
            DataContent::Gap { reason } => out.push(reason),
        }
        out.into()
    }

    fn flags(&self) -> u8 {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let content = match self.content {
            DataContent::Records(records) => {
                debug_assert!(records.codec < MAX_CODEC, "a codec that has no place");
                flag(records.is_fresh, FLAG_FRESH)
                    | flag(records.is_anchor, FLAG_ANCHOR)
                    | records.codec << CODEC_SHIFT
            }
            DataContent::Gap { .. } => FLAG_GAP,
        };
        content | flag(self.is_restart, FLAG_RESTART) | flag(self.chain.is_some(), FLAG_CHAIN)
    }

    /// Splits a whole data stream into its header and its payload.
    ///
    /// # Errors
    /// [`WireError`] when it is not one batch or one gap.
    pub fn decode(stream: &Bytes) -> Result<(Self, Bytes), WireError> {
        let mut reader = Reader::new(stream);
        let flags = reader.u8()?;
        let handle = Handle(reader.varint_u32()?);
        let seq = reader.u8()?;
        let count = reader.varint()?;
        if count == 0 {
            return Err(WireError::Malformed("range is empty"));
        }
        let has_chain = flags & FLAG_CHAIN != 0;
        let chain = has_chain.then(|| reader.u64()).transpose()?;
        let content = take_content(&mut reader, flags)?;
        let payload = stream.slice(stream.len() - reader.remaining()..);
        let most = match content {
            DataContent::Records(records) => usize::try_from(records.size.bytes())
                .unwrap_or(usize::MAX)
                .saturating_add(MAX_EXPANSION),
            DataContent::Gap { .. } => 0,
        };
        if payload.len() > most {
            return Err(WireError::Malformed("payload is longer than announced"));
        }
        let header = Self {
            handle,
            seq,
            is_restart: flags & FLAG_RESTART != 0,
            count,
            chain,
            content,
        };
        Ok((header, payload))
    }
}

fn take_content(reader: &mut Reader<'_>, flags: u8) -> Result<DataContent, WireError> {
    if flags & FLAG_GAP == 0 {
        return Ok(DataContent::Records(RecordsHeader {
            codec: flags >> CODEC_SHIFT,
            is_fresh: flags & FLAG_FRESH != 0,
            is_anchor: flags & FLAG_ANCHOR != 0,
            size: SizeClass(reader.u8()?),
            check: reader.u32()?,
        }));
    }
    if flags & !(FLAG_GAP | FLAG_RESTART | FLAG_CHAIN) != 0 {
        return Err(WireError::Malformed("a gap has no codec"));
    }
    if flags & FLAG_CHAIN == 0 {
        return Err(WireError::Malformed("a gap without its history"));
    }
    Ok(DataContent::Gap {
        reason: reader.u8()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_rounded_up_by_an_eighth_at_most() {
        let mut last = SizeClass(0);
        for bytes in (0..70_000).chain([4 << 20, (4 << 20) + 1, u32::MAX as usize, usize::MAX]) {
            let class = SizeClass::of(bytes);
            let most = class.bytes() as usize;
            assert!(most >= bytes.min(u32::MAX as usize), "{bytes}: {most}");
            assert!(
                most <= bytes.max(8).saturating_add(bytes / 8),
                "{bytes}: {most}"
            );
            assert!(class >= last);
            last = class;
        }
        assert_eq!(SizeClass::of(4 << 20).bytes(), 4 << 20);
    }
}
