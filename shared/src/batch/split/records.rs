//! A raw payload as plain records, and back.

use super::super::BatchError;
use crate::record::{Header, Records, put_record, record_len};
use crate::wire::{Reader, put_varint, put_zigzag};

const FLAG_LOG_APPEND_TIME: u8 = 1;

/// Fewest bytes of a record in Kafka's form.
const MIN_RECORD_LEN: usize = 7;

/// What stands at the head of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockStart {
    /// Number of records, at least one.
    pub(crate) count: u32,
    /// Timestamp that the records' deltas refer to, ms since the epoch.
    pub(crate) base_timestamp_ms: i64,
    /// True when every record carries the base timestamp, whatever its own says.
    pub(crate) is_log_append_time: bool,
}

/// One record, borrowed from its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordView<'a> {
    /// Base timestamp of its block plus its delta, wrapping.
    pub(crate) timestamp_ms: i64,
    /// Absent when null.
    pub(crate) key: Option<&'a [u8]>,
    /// Absent when null.
    pub(crate) value: Option<&'a [u8]>,
    /// Where its headers stand in [`RecordList::headers`]: first, and one after the last.
    pub(crate) headers: (usize, usize),
}

/// All blocks, records and headers of a raw payload, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct RecordList<'a> {
    /// Their counts add up to the records.
    pub(crate) blocks: Vec<BlockStart>,
    /// In the order of their offsets.
    pub(crate) records: Vec<RecordView<'a>>,
    /// Of all records one after the other.
    pub(crate) headers: Vec<Header<'a>>,
}

impl<'a> RecordList<'a> {
    /// Takes a raw payload apart; `None` unless writing it back would give the same bytes.
    pub(crate) fn read(raw: &'a [u8]) -> Option<Self> {
        let mut list = Self::default();
        let mut reader = Reader::new(raw);
        let mut timestamp_ms = 0_i64;
        while reader.remaining() > 0 {
            timestamp_ms = list.read_block(&mut reader, timestamp_ms)?;
        }
        let mut writer = PayloadWriter::new(raw.len());
        writer.out.reserve(raw.len());
        list.write(&mut writer).ok()?;
        (writer.finish().ok()? == raw).then_some(list)
    }

    /// Headers of a record of this list.
    pub(crate) fn headers_of(&self, record: &RecordView<'_>) -> &[Header<'a>] {
        self.headers
            .get(record.headers.0..record.headers.1)
            .unwrap_or_default()
    }

    fn read_block(&mut self, reader: &mut Reader<'a>, last_timestamp_ms: i64) -> Option<i64> {
        let count = reader.varint_u32().ok()?;
        let base_timestamp_ms = last_timestamp_ms.wrapping_add(reader.zigzag().ok()?);
        let flags = reader.u8().ok()?;
        let len = usize::try_from(reader.varint().ok()?).ok()?;
        let bytes = reader.bytes(len).ok()?;
        let most = bytes.len() / MIN_RECORD_LEN;
        if flags & !FLAG_LOG_APPEND_TIME != 0 || count == 0 || usize::try_from(count).ok()? > most {
            return None;
        }
        self.blocks.push(BlockStart {
            count,
            base_timestamp_ms,
            is_log_append_time: flags & FLAG_LOG_APPEND_TIME != 0,
        });
        let mut records = Records::new(bytes, count);
        for record in &mut records {
            let record = record.ok()?;
            let first = self.headers.len();
            self.headers.extend(record.headers());
            self.records.push(RecordView {
                timestamp_ms: base_timestamp_ms.wrapping_add(record.timestamp_delta_ms),
                key: record.key,
                value: record.value,
                headers: (first, self.headers.len()),
            });
        }
        records.finish().ok()?;
        Some(base_timestamp_ms)
    }

    fn write(&self, writer: &mut PayloadWriter) -> Result<(), BatchError> {
        let mut records = self.records.iter();
        for block in &self.blocks {
            writer.start_block(*block)?;
            let count = usize::try_from(block.count).unwrap_or(usize::MAX);
            for record in records.by_ref().take(count) {
                writer.push(
                    record.timestamp_ms,
                    record.key,
                    record.value,
                    self.headers_of(record),
                )?;
            }
        }
        Ok(())
    }
}

/// Writes a raw payload record by record, never more than a limit.
#[derive(Debug)]
pub(crate) struct PayloadWriter {
    out: Vec<u8>,
    limit: usize,
    block: Option<(BlockStart, u32)>,
    records: Vec<u8>,
    last_timestamp_ms: i64,
}

impl PayloadWriter {
    /// An empty payload that may grow up to `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            out: Vec::new(),
            limit,
            block: None,
            records: Vec::new(),
            last_timestamp_ms: 0,
        }
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.out.len() + self.records.len()
    }

    /// Ends the block before, which must be complete, and begins one.
    ///
    /// # Errors
    /// [`BatchError`]; the payload is lost.
    pub(crate) fn start_block(&mut self, block: BlockStart) -> Result<(), BatchError> {
        self.end_block()?;
        if block.count == 0 {
            return Err(BatchError::Malformed("block without records"));
        }
        self.block = Some((block, 0));
        Ok(())
    }

    /// The next record of the block.
    ///
    /// # Errors
    /// [`BatchError`] when the block has all its records or the payload grows beyond the limit; the
    /// payload is lost.
    pub(crate) fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), BatchError> {
        let at = self.len();
        let (block, written) = self
            .block
            .as_mut()
            .filter(|(block, written)| *written < block.count)
            .ok_or(BatchError::Malformed("more records than its blocks hold"))?;
        let delta_ms = timestamp_ms.wrapping_sub(block.base_timestamp_ms);
        let len = record_len(*written, delta_ms, key, value, headers);
        if len > self.limit.saturating_sub(at) {
            return Err(BatchError::TooLarge {
                bytes: at.saturating_add(len),
                limit: self.limit,
            });
        }
        put_record(&mut self.records, *written, delta_ms, key, value, headers);
        *written += 1;
        Ok(())
    }

    /// The raw payload.
    ///
    /// # Errors
    /// [`BatchError`] when the last block lacks records or the payload is larger than the limit.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, BatchError> {
        self.end_block()?;
        Ok(self.out)
    }

    fn end_block(&mut self) -> Result<(), BatchError> {
        let Some((block, written)) = self.block.take() else {
            return Ok(());
        };
        if written != block.count {
            return Err(BatchError::Malformed("fewer records than its blocks hold"));
        }
        put_varint(&mut self.out, block.count.into());
        put_zigzag(
            &mut self.out,
            block.base_timestamp_ms.wrapping_sub(self.last_timestamp_ms),
        );
        self.out.push(if block.is_log_append_time {
            FLAG_LOG_APPEND_TIME
        } else {
            0
        });
        put_varint(&mut self.out, self.records.len() as u64);
        self.out.extend_from_slice(&self.records);
        self.records.clear();
        self.last_timestamp_ms = block.base_timestamp_ms;
        if self.out.len() > self.limit {
            return Err(BatchError::TooLarge {
                bytes: self.out.len(),
                limit: self.limit,
            });
        }
        Ok(())
    }
}
