//! Payloads, blocks and records: everything around the slots.

mod headers;
mod keys;
mod templates;
mod values;

use self::headers::OwnedHeader;
use super::coder::{Coder, Decoder, Encoder};
use super::devices::key_hash;
use super::predictor::Contexts;
use super::state::State;
use super::symbols::Domain;
use crate::batch::BatchError;
use crate::batch::split::{BlockStart, PayloadWriter, RecordList, Split, mix};
use crate::record::Header;

const FLAG_MORE_BLOCKS: usize = 24;
const FLAG_LOG_APPEND: usize = 25;
const FLAG_KEY: usize = 26;
const FLAG_NEW_KEY: usize = 28;
const FLAG_NULL_KEY: usize = 29;
const FLAG_DEVICE: usize = 30;
const FLAG_IS_SPLIT: usize = 31;
const FLAG_IS_NULL: usize = 32;
const FLAG_TEMPLATE: usize = 33;
const FLAG_NEW_TEMPLATE: usize = 36;
const FLAG_TEMPLATE_ID: usize = 37;
const FLAG_NULL_HEADER: usize = 38;
const FLAG_IS_FOLDED: usize = 39;
const FLAG_NEW_FOLD: usize = 40;
const FLAG_FOLD_ID: usize = 41;
const FLAG_ASIDE: usize = 42;
const FLAG_PACKED: usize = 43;

const MALFORMED: BatchError = BatchError::Malformed("payload was not made by an encoder");

/// Buffers that are used again for every record.
#[derive(Debug, Default, Clone)]
pub(super) struct Scratch {
    split: Split,
    value: Vec<u8>,
    /// A decoder's slots one after the other, and where each ends.
    slots: Vec<u8>,
    ends: Vec<usize>,
    hashes: Vec<u64>,
    key: Vec<u8>,
    /// An encoder's template, folded; empty when it doesn't fold.
    folded: Vec<u8>,
    counts: Vec<u32>,
    /// Values that are not modelled, one after the other; how far a decoder has read them.
    pub(super) aside: Vec<u8>,
    aside_read: usize,
}

/// What a decoder may still make: a bound of its memory and its time.
#[derive(Debug, Clone, Copy)]
struct Budget {
    bytes: usize,
    slots: usize,
}

impl State {
    /// Codes all records of a payload; what stands aside is in the scratch then.
    pub(super) fn encode(&mut self, list: &RecordList<'_>, scratch: &mut Scratch) -> Vec<u8> {
        scratch.aside.clear();
        let mut coder = Encoder::new();
        let mut writer = PayloadWriter::new(0);
        let budget = Budget {
            bytes: usize::MAX,
            slots: usize::MAX,
        };
        // an encoder has no reason to fail: nothing it codes is refused
        let _never = self.payload(&mut coder, list, &mut writer, budget, scratch);
        coder.finish()
    }

    /// Decodes to a raw payload of at most `max_raw_len` bytes. What stands aside is in the scratch.
    ///
    /// # Errors
    /// [`BatchError`]; the state is of no use any more.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        max_raw_len: usize,
        scratch: &mut Scratch,
    ) -> Result<Vec<u8>, BatchError> {
        scratch.aside_read = 0;
        let mut coder = Decoder::new(bytes);
        let mut writer = PayloadWriter::new(max_raw_len);
        let budget = Budget {
            bytes: max_raw_len,
            slots: max_raw_len,
        };
        self.payload(
            &mut coder,
            &RecordList::default(),
            &mut writer,
            budget,
            scratch,
        )?;
        if coder.unread() > 0 || scratch.aside_read < scratch.aside.len() {
            return Err(MALFORMED);
        }
        writer.finish()
    }

    fn payload<C: Coder>(
        &mut self,
        coder: &mut C,
        list: &RecordList<'_>,
        writer: &mut PayloadWriter,
        mut budget: Budget,
        scratch: &mut Scratch,
    ) -> Result<(), BatchError> {
        let mut records = list.records.iter();
        let mut blocks = 0_u32;
        let limit = budget.bytes;
        loop {
            let block = list.blocks.get(blocks as usize).copied();
            blocks = blocks.saturating_add(1);
            let count = self.block_len(coder, block.map_or(1, |block| block.count), blocks)?;
            let is_log_append = self.log_append(coder, block);
            for i in 0..count {
                let record = records.next();
                let (key, device) =
                    self.key(coder, record.map(|r| r.key), scratch, budget.bytes)?;
                let device_hash = key_hash(key.as_deref());
                let at = record.map_or(0, |record| record.timestamp_ms);
                let at = self.timestamp(coder, at, device, device_hash);
                if i == 0 {
                    let base = self.base(coder, block.map_or(0, |b| b.base_timestamp_ms), at);
                    if !C::ENCODES {
                        writer.start_block(BlockStart {
                            count,
                            base_timestamp_ms: base,
                            is_log_append_time: is_log_append,
                        })?;
                    }
                }
                budget.bytes = budget.bytes.saturating_sub(7);
                let is_null = self.value(
                    coder,
                    record.map(|record| record.value),
                    device_hash,
                    at,
                    &mut budget,
                    scratch,
                )?;
                let headers = record.map_or(&[][..], |record| list.headers_of(record));
                let decoded = self.headers(coder, headers, device_hash, at, &mut budget)?;
                if !C::ENCODES {
                    let headers: Vec<Header<'_>> = decoded.iter().map(OwnedHeader::view).collect();
                    let value = (!is_null).then_some(scratch.value.as_slice());
                    writer.push(at, key.as_deref(), value, &headers)?;
                    budget.bytes = limit.saturating_sub(writer.len());
                }
            }
            let has_more = list.blocks.len() > blocks as usize;
            if !self.more_blocks(coder, has_more, blocks, count) {
                self.recent.blocks = blocks;
                return Ok(());
            }
        }
    }

    fn block_len<C: Coder>(
        &mut self,
        coder: &mut C,
        count: u32,
        blocks: u32,
    ) -> Result<u32, BatchError> {
        let last = u64::from(self.recent.block_len.min(64));
        let first = u64::from(blocks == 1);
        let contexts = Contexts::new(
            first,
            [
                mix(901, first),
                mix(902 | first << 16, last),
                mix(
                    903 | first << 16,
                    u64::from(self.recent.block_len.max(1).ilog2()),
                ),
            ],
        );
        let count = i64::from(count) - 1;
        let count = self
            .predictor
            .number(coder, count, &contexts, Domain::Count);
        let count = u32::try_from(count.saturating_add(1)).map_err(|_| MALFORMED)?;
        if count == 0 {
            return Err(MALFORMED);
        }
        self.recent.block_len = count;
        Ok(count)
    }

    fn more_blocks<C: Coder>(
        &mut self,
        coder: &mut C,
        has_more: bool,
        blocks: u32,
        block_len: u32,
    ) -> bool {
        let last = u64::from(self.recent.blocks);
        let now = u64::from(blocks);
        let elapsed = self
            .recent
            .timing
            .last_ms()
            .wrapping_sub(self.recent.payload_start_ms);
        let contexts = Contexts::new(
            0,
            [
                mix(911, u64::from(block_len == 1)),
                mix(912, now.min(64)),
                mix(mix(913, last.min(64)), now.min(64)),
                mix(914, elapsed.cast_unsigned() / 64),
            ],
        );
        self.predictor
            .flag(coder, has_more, &contexts, FLAG_MORE_BLOCKS)
    }

    fn log_append<C: Coder>(&mut self, coder: &mut C, block: Option<BlockStart>) -> bool {
        let is = block.is_some_and(|block| block.is_log_append_time);
        let contexts = Contexts::new(0, [921]);
        self.predictor.flag(coder, is, &contexts, FLAG_LOG_APPEND)
    }

    fn base<C: Coder>(&mut self, coder: &mut C, base_ms: i64, first_ms: i64) -> i64 {
        let contexts = Contexts::new(0, [931]);
        let off = base_ms.wrapping_sub(first_ms);
        let off = self.predictor.number(coder, off, &contexts, Domain::Base);
        first_ms.wrapping_add(off)
    }
}
