//! The raw payload: written block by block, and read with every record checked.

use bytes::Bytes;

use super::BatchError;
use crate::ids::Offset;
use crate::record::Records;
use crate::wire::{Reader, WireError, put_varint, put_zigzag};

const FLAG_LOG_APPEND_TIME: u8 = 1;

/// Fewest bytes of a record in Kafka's form.
const MIN_RECORD_LEN: usize = 7;

/// Consecutive records of one producer batch, uncompressed (see [`Records`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Number of records.
    pub count: u32,
    /// Timestamp that the records' deltas refer to, ms since the epoch.
    pub base_timestamp_ms: i64,
    /// True when every record carries the base timestamp.
    pub is_log_append_time: bool,
    /// The records in Kafka's uncompressed form.
    pub records: Bytes,
}

impl Block {
    /// Offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.base_offset + u64::from(self.count)
    }
}

/// Gathers blocks into a raw payload.
#[derive(Debug, Default)]
pub struct BlockWriter {
    raw: Vec<u8>,
    range: Option<(Offset, Offset)>,
    last_timestamp_ms: i64,
}

impl BlockWriter {
    /// Adds a block.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when it is empty or does not follow on the one before; nothing was
    /// added then.
    pub fn push(&mut self, block: &Block) -> Result<(), BatchError> {
        if block.count == 0 {
            return Err(BatchError::Malformed("block without records"));
        }
        if self
            .range
            .is_some_and(|(_, next)| next != block.base_offset)
        {
            return Err(BatchError::Malformed("blocks are not contiguous"));
        }
        put_varint(&mut self.raw, block.count.into());
        put_zigzag(
            &mut self.raw,
            block.base_timestamp_ms.wrapping_sub(self.last_timestamp_ms),
        );
        self.raw.push(if block.is_log_append_time {
            FLAG_LOG_APPEND_TIME
        } else {
            0
        });
        put_varint(&mut self.raw, block.records.len() as u64);
        self.raw.extend_from_slice(&block.records);
        self.last_timestamp_ms = block.base_timestamp_ms;
        let base = self.range.map_or(block.base_offset, |(base, _)| base);
        self.range = Some((base, block.next_offset()));
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub fn raw_len(&self) -> usize {
        self.raw.len()
    }

    /// First offset and the one after the last; `None` before the first block.
    #[must_use]
    pub fn range(&self) -> Option<(Offset, Offset)> {
        self.range
    }

    /// The raw payload.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.raw
    }
}

/// Reads a raw payload that should hold the records from `base_offset` to `next_offset`, and walks
/// every record. The blocks share the payload's memory.
///
/// # Errors
/// [`BatchError`] when a block or a record is not whole, or the offsets do not add up.
pub fn read_blocks(
    raw: &Bytes,
    base_offset: Offset,
    next_offset: Offset,
) -> Result<Vec<Block>, BatchError> {
    let mut blocks = Vec::new();
    let mut reader = Reader::new(raw);
    let mut expected = base_offset;
    let mut timestamp_ms = 0_i64;
    while reader.remaining() > 0 {
        let block = take_block(raw, &mut reader, expected, timestamp_ms)?;
        let mut records = Records::new(&block.records, block.count);
        for record in &mut records {
            record?;
        }
        records.finish()?;
        timestamp_ms = block.base_timestamp_ms;
        expected = block.next_offset();
        blocks.push(block);
    }
    if expected != next_offset {
        return Err(BatchError::Malformed(
            "records do not add up to the range of offsets",
        ));
    }
    Ok(blocks)
}

fn take_block(
    raw: &Bytes,
    reader: &mut Reader<'_>,
    base_offset: Offset,
    timestamp_ms: i64,
) -> Result<Block, BatchError> {
    let count = reader.varint_u32()?;
    let timestamp_delta = reader.zigzag()?;
    let flags = reader.u8()?;
    let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let start = raw.len() - reader.remaining();
    let records = reader.bytes(len)?;
    if flags & !FLAG_LOG_APPEND_TIME != 0 {
        return Err(BatchError::Malformed("unknown flag"));
    }
    if count == 0 || usize::try_from(count).is_ok_and(|n| n > records.len() / MIN_RECORD_LEN) {
        return Err(BatchError::Malformed("more records than bytes, or none"));
    }
    if base_offset.checked_add(count.into()).is_none() {
        return Err(BatchError::Malformed("offset larger than 64 bits"));
    }
    Ok(Block {
        base_offset,
        count,
        base_timestamp_ms: timestamp_ms.wrapping_add(timestamp_delta),
        is_log_append_time: flags & FLAG_LOG_APPEND_TIME != 0,
        records: raw.slice(start..start + records.len()),
    })
}

impl From<WireError> for BatchError {
    fn from(_: WireError) -> Self {
        Self::Malformed("a block ends early or holds a bad number")
    }
}
