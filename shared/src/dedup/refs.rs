//! The bytes: references inside a payload, and what the hub says of those that it does not hold.
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
use crate::wire::{Reader, WireError, put_varint};

/// Most references of one payload: that all of them are missing can be said in one control frame.
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

/// The parts of a payload, and what they add up to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) parts: Vec<Part>,
    pub(super) raw_len: usize,
    pub(super) literal_len: usize,
}

/// Takes the parts of a payload that decodes to `max_raw` bytes at most.
pub(super) fn take_parts(reader: &mut Reader<'_>, max_raw: usize) -> Result<Parts, BatchError> {
    let count = reader.count(1)?;
    if count > MAX_PARTS {
        return Err(BatchError::Malformed("too many parts"));
    }
    let mut parts = Vec::with_capacity(count);
    let (mut raw_len, mut literal_len, mut references) = (0_usize, 0, 0);
    for _ in 0..count {
        let word = reader.varint()?;
        let len = usize::try_from(word >> 2).unwrap_or(usize::MAX);
        let most = if word & 3 == PLAIN {
            max_raw
        } else {
            MAX_CHUNK_BYTES
        };
        raw_len = raw_len.saturating_add(len);
        if len == 0 || len > most || raw_len > max_raw {
            return Err(BatchError::Malformed("parts are empty or too long"));
        }
        let part = match word & 3 {
            PLAIN => Part::Plain(len),
            CHUNK => Part::Chunk(len),
            REFERENCE => Part::Reference(len, take_id(reader)?),
            _ => return Err(BatchError::Malformed("unknown kind of part")),
        };
        match part {
            Part::Plain(_) | Part::Chunk(_) => literal_len += len,
            Part::Reference(..) => references += 1,
        }
        parts.push(part);
    }
    if references > MAX_REFERENCES {
        return Err(BatchError::Malformed("too many references"));
    }
    Ok(Parts {
        parts,
        raw_len,
        literal_len,
    })
}

pub(super) fn take_id(reader: &mut Reader<'_>) -> Result<ChunkId, WireError> {
    reader.array().map(ChunkId)
}

/// Appends the ids of chunks that the hub does not hold: count varint, then 16 bytes each.
pub(crate) fn put_missing(out: &mut Vec<u8>, ids: &[ChunkId]) {
    put_varint(out, ids.len() as u64);
    for id in ids {
        out.extend_from_slice(&id.0);
    }
}

/// Reads them.
pub(crate) fn take_missing(reader: &mut Reader<'_>) -> Result<Vec<ChunkId>, WireError> {
    let count = reader.count(16)?;
    if count == 0 || count > MAX_REFERENCES {
        return Err(WireError::Malformed("no missing chunks, or too many"));
    }
    (0..count).map(|_| take_id(reader)).collect()
}
