//! Cuts a raw payload: large record values into chunks, at places that their content decides.

use std::ops::Range;

use fastcdc::v2020::FastCDC;

use super::ChunkId;
use crate::batch::BatchError;
use crate::record::Records;
use crate::wire::Reader;

/// Bounds of a chunk. With smaller ones more is found and a reference brings less; both ends need not
/// have the same, a site that changes them sends its chunks once more.
const MIN_CHUNK: usize = 2 << 10;
const AVERAGE_CHUNK: usize = 8 << 10;
const MAX_CHUNK: usize = 32 << 10;

/// No chunk on the link is longer: a bound for who reads, with room for other bounds above.
pub(super) const MAX_CHUNK_BYTES: usize = 64 << 10;

/// The last chunk of a value may be short; below this a reference does not pay.
const MIN_WORTH: usize = 256;

/// A part of a raw payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Sent as it is.
    Plain(Range<usize>),
    /// May be known at the other end.
    Chunk(Range<usize>, ChunkId),
}

/// Cuts every record value of at least `min_value_bytes` into chunks. The same value gives the same chunks,
/// whatever stands around it. Bytes that are not blocks of records (see [`crate::batch::Block`]) are one
/// plain piece. The pieces are contiguous and cover everything.
#[must_use]
pub fn cut(raw: &[u8], min_value_bytes: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut plain_from = 0;
    for value in large_values(raw, min_value_bytes).unwrap_or_default() {
        let bytes = raw.get(value.clone()).unwrap_or_default();
        for chunk in FastCDC::new(bytes, MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK) {
            if chunk.length < MIN_WORTH {
                continue;
            }
            let start = value.start + chunk.offset;
            let range = start..start + chunk.length;
            let id = ChunkId::of(raw.get(range.clone()).unwrap_or_default());
            if plain_from < range.start {
                pieces.push(Piece::Plain(plain_from..range.start));
            }
            plain_from = range.end;
            pieces.push(Piece::Chunk(range, id));
        }
    }
    if plain_from < raw.len() {
        pieces.push(Piece::Plain(plain_from..raw.len()));
    }
    pieces
}

/// Where the large values stand.
fn large_values(raw: &[u8], min_bytes: usize) -> Result<Vec<Range<usize>>, BatchError> {
    let mut values = Vec::new();
    let mut reader = Reader::new(raw);
    while reader.remaining() > 0 {
        let count = reader.varint_u32()?;
        reader.zigzag()?;
        reader.u8()?;
        let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        let block = reader.bytes(len)?;
        if len < min_bytes {
            continue;
        }
        for record in Records::new(block, count) {
            let Some(value) = record?.value else { continue };
            if value.len() >= min_bytes {
                // a value borrows from the payload, so this is its place in it
                let start = value.as_ptr().addr() - raw.as_ptr().addr();
                values.push(start..start + value.len());
            }
        }
    }
    Ok(values)
}
