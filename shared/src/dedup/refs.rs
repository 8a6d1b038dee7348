//! The bytes: references inside a payload, and the question and answer about a miss.
//!
//! A payload of codec 5:
//!
//! ```text
//!  count    then for each part of the raw payload, in order       literals
//!  varint   ├ length * 4 + kind  ├ id                             one flushed part of the chain's
//!           │ varint             │ 16 bytes, only of a reference  zstd stream, to the end
//! ```
//! Kinds: 0 plain, in the literals; 1 a chunk in the literals, which the hub is to keep; 2 a reference. Without
//! literals there are no bytes of the zstd stream.

use super::ChunkId;
use super::chunker::MAX_CHUNK_BYTES;
use crate::batch::BatchError;
use crate::ids::Offset;
use crate::wire::{Handle, MAX_OFFSET, Reader, WireError, put_varint};

/// Most references of one payload: a question about all of them fits a control frame.
pub const MAX_REFERENCES: usize = 3_500;

/// Most parts of one payload: those with literals are bounded as well, because each costs the hub work.
const MAX_PARTS: usize = 16 << 10;

const PLAIN: u64 = 0;
const CHUNK: u64 = 1;
const REFERENCE: u64 = 2;

/// One part of a raw payload, as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Plain(usize),
    Chunk(usize),
    Reference(usize, ChunkId),
}

impl Part {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Plain(len) | Self::Chunk(len) | Self::Reference(len, _) => *len,
        }
    }
}

pub(super) fn put_parts(out: &mut Vec<u8>, parts: &[Part]) {
    put_varint(out, parts.len() as u64);
    for part in parts {
        let (kind, id) = match part {
            Part::Plain(_) => (PLAIN, None),
            Part::Chunk(_) => (CHUNK, None),
            Part::Reference(_, id) => (REFERENCE, Some(id)),
        };
        put_varint(out, ((part.len() as u64) << 2) | kind);
        if let Some(id) = id {
            out.extend_from_slice(&id.0);
        }
    }
}

/// Takes the parts of a payload that decodes to `raw_len` bytes. Only what adds up to that is accepted.
pub(super) fn take_parts(reader: &mut Reader<'_>, raw_len: usize) -> Result<Vec<Part>, BatchError> {
    let count = reader.count(1)?;
    if count > MAX_PARTS {
        return Err(BatchError::Malformed("too many parts"));
    }
    let mut parts = Vec::with_capacity(count);
    let mut left = raw_len;
    let mut references = 0;
    for _ in 0..count {
        let word = reader.varint()?;
        let len = usize::try_from(word >> 2).unwrap_or(usize::MAX);
        left = left
            .checked_sub(len)
            .ok_or(BatchError::Malformed("parts are longer than announced"))?;
        let most = if word & 3 == PLAIN {
            raw_len
        } else {
            MAX_CHUNK_BYTES
        };
        if len == 0 || len > most {
            return Err(BatchError::Malformed("part is empty or too long"));
        }
        parts.push(match word & 3 {
            PLAIN => Part::Plain(len),
            CHUNK => Part::Chunk(len),
            REFERENCE => {
                references += 1;
                Part::Reference(len, take_id(reader)?)
            }
            _ => return Err(BatchError::Malformed("unknown kind of part")),
        });
    }
    if left > 0 || references > MAX_REFERENCES {
        return Err(BatchError::Malformed(
            "parts are shorter than announced, or too many references",
        ));
    }
    Ok(parts)
}

pub(super) fn take_id(reader: &mut Reader<'_>) -> Result<ChunkId, WireError> {
    reader.array().map(ChunkId)
}

/// Hub to site, a control frame: a payload refers to chunks that the hub does not hold.
///
/// ```text
///  handle   base offset of the payload's stream   count    ids
///  varint   varint                                varint   16 bytes each, none twice
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeedChunks {
    /// Which log.
    pub handle: Handle,
    /// Which of its streams.
    pub base_offset: Offset,
    /// What is missing, in the order of the payload; not empty.
    pub ids: Vec<ChunkId>,
}

impl NeedChunks {
    /// Appends the frame's payload.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.handle.0.into());
        put_varint(out, self.base_offset);
        put_varint(out, self.ids.len() as u64);
        for id in &self.ids {
            out.extend_from_slice(&id.0);
        }
    }

    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`WireError`] when it is not one.
    pub(crate) fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let handle = Handle(reader.varint_u32()?);
        let base_offset = take_offset(reader)?;
        let count = reader.count(16)?;
        if count == 0 || count > MAX_REFERENCES {
            return Err(WireError::Malformed("no missing chunks, or too many"));
        }
        let ids = (0..count)
            .map(|_| take_id(reader))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            handle,
            base_offset,
            ids,
        })
    }
}

/// No header of an answer is longer.
pub const MAX_ANSWER_HEADER_LEN: usize = 20;

/// Site to hub, what opens a data stream that answers [`NeedChunks`]. Behind it one zstd frame to the end of the
/// stream: the chunks that were asked for, in that order and without lengths, which the hub knows. Empty, with a
/// raw length of 0, when the site no longer has the records.
///
/// ```text
///  handle   base offset   raw length
///  varint   varint        varint (32 bits)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunksHeader {
    /// Which log.
    pub handle: Handle,
    /// Which of its streams.
    pub base_offset: Offset,
    /// Bytes of all chunks together.
    pub raw_len: u32,
}

impl ChunksHeader {
    /// Appends the header.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.handle.0.into());
        put_varint(out, self.base_offset);
        put_varint(out, self.raw_len.into());
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError`] when it is not one.
    pub(crate) fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            handle: Handle(reader.varint_u32()?),
            base_offset: take_offset(reader)?,
            raw_len: reader.varint_u32()?,
        })
    }
}

fn take_offset(reader: &mut Reader<'_>) -> Result<Offset, WireError> {
    let offset = reader.varint()?;
    if offset > MAX_OFFSET {
        return Err(WireError::Malformed("offset larger than 63 bits"));
    }
    Ok(offset)
}
