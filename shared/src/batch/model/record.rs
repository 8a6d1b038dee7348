//! Payloads, records, keys, templates and headers: everything around the slots.

use super::coder::{Coder, Decoder, Encoder};
use super::devices::{MAX_KEY_LEN, key_hash};
use super::field::{Row, Slot};
use super::fold::{self, Folds};
use super::history::size_class;
use super::predictor::Contexts;
use super::state::State;
use super::symbols::Domain;
use super::templates::Known;
use super::text::{self, Place};
use super::value::Value;
use crate::batch::BatchError;
use crate::batch::split::{
    BlockStart, PayloadWriter, RecordList, Split, SplitLimits, Template, hash_bytes, mix,
    tokenize_within,
};
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

/// Longest value that is modelled although it doesn't split.
const MAX_MODELLED_LEN: usize = 2048;

/// Marks in a template as the text coder sees them: bytes below 2 would be escaped.
const MARK: u8 = 1;
const CODED_MARK: u8 = 3;

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

    /// The key and the number of its device, if it has one.
    fn key<C: Coder>(
        &mut self,
        coder: &mut C,
        key: Option<Option<&[u8]>>,
        scratch: &mut Scratch,
        limit: usize,
    ) -> Result<(Option<Vec<u8>>, Option<u16>), BatchError> {
        let key = key.flatten();
        let want = if C::ENCODES {
            self.devices.find(key)
        } else {
            None
        };
        let [one, two] = self.recent.keys;
        let situations = [mix(mix(one, two), 41), mix(one, 42)];
        let found = match self.follower(coder, want, &situations) {
            Some(id) => Some(id),
            None => self.named(coder, want)?,
        };
        let (key, id) = match found {
            Some(id) => {
                let device = self.devices.at(id).ok_or(MALFORMED)?;
                (device.key.clone(), Some(id))
            }
            None => self.new_key(coder, key, scratch, limit)?,
        };
        let hash = key_hash(key.as_deref());
        if let Some(id) = id {
            for situation in situations {
                self.memo.put(situation, Value::text(id.into()));
            }
        }
        self.recent.keys = [hash, one];
        Ok((key, id))
    }

    /// One of the devices that followed the last two before.
    fn follower<C: Coder>(
        &mut self,
        coder: &mut C,
        want: Option<u16>,
        situations: &[u64; 2],
    ) -> Option<u16> {
        let mut asked = None;
        for (i, situation) in situations.iter().enumerate() {
            let candidate = self.memo.last(*situation).as_text();
            let candidate = candidate.and_then(|id| u16::try_from(id).ok());
            let Some(candidate) = candidate.filter(|id| self.devices.at(*id).is_some()) else {
                continue;
            };
            if asked == Some(candidate) {
                continue;
            }
            asked = Some(candidate);
            let contexts = Contexts::new(
                0,
                [
                    51 + i as u64,
                    mix(situations[1], 52),
                    mix(situations[0], 53),
                ],
            );
            let is = want == Some(candidate);
            if self.predictor.flag(coder, is, &contexts, FLAG_KEY + i) {
                return Some(candidate);
            }
        }
        None
    }

    /// A device by its rank among those due, or by its number, whichever was cheaper of late.
    fn named<C: Coder>(
        &mut self,
        coder: &mut C,
        want: Option<u16>,
    ) -> Result<Option<u16>, BatchError> {
        let len = self.devices.len();
        let contexts = Contexts::new(0, [54]);
        if len == 0
            || self
                .predictor
                .flag(coder, want.is_none(), &contexts, FLAG_NEW_KEY)
        {
            return Ok(None);
        }
        let log = len.ilog2();
        let by_number = size_class(len as u64) * 15;
        let (id, rank) = if self.recent.rank_cost < by_number {
            let rank = want.map_or(0, |id| self.devices.rank(id));
            let contexts = Contexts::new(1, [56, mix(57, log.into())]);
            let rank = rank as i64;
            let rank = self.predictor.number(coder, rank, &contexts, Domain::Rank);
            let rank = usize::try_from(rank).map_err(|_| MALFORMED)?;
            (self.devices.ranked(rank).ok_or(MALFORMED)?, rank)
        } else {
            let bits = self.devices.id_bits();
            let contexts = Contexts::new(2, [58, mix(self.recent.keys[0], 59)]);
            let id = want.map_or(0, u32::from);
            let id = self.predictor.bits(coder, id, bits, &contexts, FLAG_DEVICE);
            let id = u16::try_from(id).map_err(|_| MALFORMED)?;
            self.devices.at(id).ok_or(MALFORMED)?;
            (id, self.devices.rank(id))
        };
        let cost = (16 + 2 * size_class(rank as u64)) * 16;
        self.recent.rank_cost = (self.recent.rank_cost * 49 + cost) / 50;
        Ok(Some(id))
    }

    fn new_key<C: Coder>(
        &mut self,
        coder: &mut C,
        key: Option<&[u8]>,
        scratch: &mut Scratch,
        limit: usize,
    ) -> Result<(Option<Vec<u8>>, Option<u16>), BatchError> {
        let contexts = Contexts::new(0, [55]);
        let key = if self
            .predictor
            .flag(coder, key.is_none(), &contexts, FLAG_NULL_KEY)
        {
            None
        } else {
            let place = Place {
                column: 4343,
                element: 0,
                previous: 0,
                last: &scratch.key,
                follower: &[],
            };
            let key = key.unwrap_or_default();
            let mut out = Vec::new();
            text::code(
                coder,
                &mut self.predictor,
                &mut self.texts,
                key,
                &place,
                limit,
                &mut out,
            )?;
            Some(if C::ENCODES { key.to_vec() } else { out })
        };
        if key.as_ref().is_some_and(|key| key.len() > MAX_KEY_LEN) {
            return Ok((key, None));
        }
        let id = self.devices.insert(key.as_deref());
        Ok((key, Some(id)))
    }

    /// Codes a value; a decoder finds it in the scratch. True when it is null.
    fn value<C: Coder>(
        &mut self,
        coder: &mut C,
        value: Option<Option<&[u8]>>,
        device: u64,
        at_ms: i64,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<bool, BatchError> {
        let value = value.flatten();
        let mut split = std::mem::take(&mut scratch.split);
        let can_split = C::ENCODES
            && value.is_some_and(|value| tokenize_within(value, &mut split, SplitLimits::LARGE))
            && self.can_code(&split, scratch);
        let contexts = Contexts::new(0, [2, mix(device, 1)]);
        let is_split = self
            .predictor
            .flag(coder, can_split, &contexts, FLAG_IS_SPLIT);
        let mut is_null = false;
        if is_split {
            self.split_value(
                coder,
                value.unwrap_or_default(),
                &split,
                device,
                at_ms,
                budget,
                scratch,
            )?;
        } else {
            let contexts = Contexts::new(0, [3, mix(device, 4)]);
            is_null = self
                .predictor
                .flag(coder, value.is_none(), &contexts, FLAG_IS_NULL);
            if !is_null {
                self.whole_value(coder, value.unwrap_or_default(), budget, scratch)?;
            }
        }
        scratch.split = split;
        Ok(is_null)
    }

    /// A value that doesn't split: as text, or aside when it is long.
    fn whole_value<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<(), BatchError> {
        let is_long = value.len() > MAX_MODELLED_LEN;
        let contexts = Contexts::new(0, [951]);
        if self.predictor.flag(coder, is_long, &contexts, FLAG_ASIDE) {
            let len = i64::try_from(value.len()).unwrap_or(i64::MAX);
            let contexts = Contexts::new(2, [952]);
            let len = self.predictor.number(coder, len, &contexts, Domain::Count);
            if C::ENCODES {
                scratch.aside.extend_from_slice(value);
                return Ok(());
            }
            let len = usize::try_from(len).map_err(|_| MALFORMED)?;
            let end = scratch.aside_read.checked_add(len).ok_or(MALFORMED)?;
            let bytes = scratch
                .aside
                .get(scratch.aside_read..end)
                .ok_or(MALFORMED)?;
            scratch.value.clear();
            scratch.value.extend_from_slice(bytes);
            scratch.aside_read = end;
            return Ok(());
        }
        let place = Place {
            column: 4444,
            element: 0,
            previous: 0,
            last: &[],
            follower: &[],
        };
        scratch.value.clear();
        text::code(
            coder,
            &mut self.predictor,
            &mut self.texts,
            value,
            &place,
            budget.bytes,
            &mut scratch.value,
        )?;
        Ok(())
    }

    fn split_value<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        split: &Split,
        device: u64,
        at_ms: i64,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<(), BatchError> {
        let chosen = self.template(coder, &split.template, device, budget, scratch)?;
        let mut row = Row::new(mix(device, 77), at_ms);
        let done = self.slots(
            coder,
            value,
            split,
            &chosen.known,
            &mut row,
            budget,
            scratch,
        );
        if done.is_ok() && !C::ENCODES {
            scratch.value.clear();
            let (slots, ends) = (&scratch.slots, &scratch.ends);
            chosen.known.template.join(&mut scratch.value, |i, out| {
                let start = i.checked_sub(1).map_or(0, |before| ends[before]);
                out.extend_from_slice(&slots[start..ends[i]]);
            });
        }
        if let Some(id) = chosen.id {
            self.templates
                .put_back(id, chosen.known, row.device, &row.cells);
        }
        done
    }

    fn slots<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        split: &Split,
        known: &Known,
        row: &mut Row,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<(), BatchError> {
        let columns = known.template.columns();
        budget.slots = budget.slots.checked_sub(columns.len()).ok_or(MALFORMED)?;
        scratch.slots.clear();
        scratch.ends.clear();
        scratch.hashes.clear();
        let other = if known.template.is_json() {
            0
        } else {
            mix(known.hash(), 9)
        };
        for (i, column) in columns.iter().enumerate() {
            let named = column.element.map(usize::from);
            let element = named
                .and_then(|at| scratch.hashes.get(at))
                .map_or(other, |hash| mix(*hash, other));
            let token = split.slots.get(i).map_or(&[][..], |(start, end)| {
                value
                    .get(*start as usize..*end as usize)
                    .unwrap_or_default()
            });
            let slot = Slot {
                column: column.hash,
                element,
                known: Some((known, i)),
            };
            let limit = budget.bytes.saturating_sub(scratch.slots.len());
            let value = self.field(coder, token, slot, row, limit, &mut scratch.slots)?;
            scratch.ends.push(scratch.slots.len());
            scratch.hashes.push(value.hash());
        }
        Ok(())
    }

    /// True when the template fits the table, or folds to something that does.
    fn can_code(&self, split: &Split, scratch: &mut Scratch) -> bool {
        let is_folded = fold::fold(&split.template, &mut scratch.folded, &mut scratch.counts);
        if is_folded && scratch.folded.len() <= fold::MAX_LEN {
            return true;
        }
        scratch.folded.clear();
        self.templates
            .accepts(split.template.len(), split.slots.len())
    }

    /// The value's template, taken out of the table.
    fn template<C: Coder>(
        &mut self,
        coder: &mut C,
        template: &[u8],
        device: u64,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<Chosen, BatchError> {
        let of_device = mix(device, 0x7e);
        let last = self.memo.last(of_device).as_text().unwrap_or(0);
        let before = self.memo.last(mix(of_device, 1)).as_text().unwrap_or(0);
        let situations = [
            mix(mix(device, last.into()), mix(before.into(), 33)),
            mix(mix(device, last.into()), 34),
        ];
        let candidates = [
            self.memo.last(situations[0]).as_text(),
            self.memo.last(situations[1]).as_text(),
            Some(last),
        ];
        let want = if C::ENCODES {
            self.templates.find(template)
        } else {
            None
        };
        let contexts = [
            mix(u64::from(last), 7),
            mix(mix(last.into(), before.into()), 6),
            mix(device, 5),
        ];
        let mut found = None;
        let mut asked = [None; 3];
        for (i, candidate) in candidates.into_iter().enumerate() {
            let Some(candidate) = candidate.filter(|id| self.templates.at(*id).is_some()) else {
                continue;
            };
            if asked.contains(&Some(candidate)) {
                continue;
            }
            asked[i] = Some(candidate);
            let contexts = Contexts::new(0, contexts);
            let is = want == Some(candidate);
            if self.predictor.flag(coder, is, &contexts, FLAG_TEMPLATE + i) {
                found = Some(candidate);
                break;
            }
        }
        let id = match found {
            Some(id) => id,
            None => {
                match self.other_template(coder, template, want, device, last, budget, scratch)? {
                    Other::Known(id) => id,
                    Other::TooLarge(template) => {
                        return Ok(Chosen {
                            id: None,
                            known: Known::transient(template),
                        });
                    }
                }
            }
        };
        for situation in situations {
            self.memo.put(situation, Value::text(id));
        }
        self.memo.put(mix(of_device, 1), Value::text(last));
        self.memo.put(of_device, Value::text(id));
        let known = self.templates.take(id).ok_or(MALFORMED)?;
        Ok(Chosen {
            id: Some(id),
            known,
        })
    }

    fn other_template<C: Coder>(
        &mut self,
        coder: &mut C,
        template: &[u8],
        want: Option<u32>,
        device: u64,
        last: u32,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<Other, BatchError> {
        let contexts = Contexts::new(1, [20, mix(device, 21)]);
        let is_folded = !scratch.folded.is_empty();
        if self
            .predictor
            .flag(coder, is_folded, &contexts, FLAG_IS_FOLDED)
        {
            return self.folded_template(coder, device, last, budget, scratch);
        }
        let contexts = Contexts::new(0, [9, mix(device, 8)]);
        if self
            .predictor
            .flag(coder, want.is_none(), &contexts, FLAG_NEW_TEMPLATE)
        {
            let base = self.templates.at(last).map(|known| known.template.bytes());
            let base = base.unwrap_or_default().to_vec();
            let limit = budget.bytes.saturating_add(1);
            let bytes = self.template_text(coder, template, &base, limit)?;
            let template = Template::within(&bytes, SplitLimits::LARGE).ok_or(MALFORMED)?;
            if !self
                .templates
                .accepts(bytes.len(), template.columns().len())
            {
                return Err(MALFORMED);
            }
            return Ok(Other::Known(self.templates.insert(template)));
        }
        let len = u32::try_from(self.templates.len()).unwrap_or(u32::MAX);
        let bits = 32 - len.leading_zeros();
        let contexts = Contexts::new(0, [12, mix(device, 13), mix(last.into(), 14)]);
        let id = want.unwrap_or(0);
        let id = self
            .predictor
            .bits(coder, id, bits, &contexts, FLAG_TEMPLATE_ID);
        self.templates
            .at(id)
            .map(|_| Other::Known(id))
            .ok_or(MALFORMED)
    }

    fn folded_template<C: Coder>(
        &mut self,
        coder: &mut C,
        device: u64,
        last: u32,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<Other, BatchError> {
        let want = if C::ENCODES {
            self.folds.find(&scratch.folded)
        } else {
            None
        };
        let contexts = Contexts::new(1, [22, mix(device, 23)]);
        let is_new = want.is_none();
        let id = if self.predictor.flag(coder, is_new, &contexts, FLAG_NEW_FOLD) {
            let base = self
                .folds
                .at(self.folds.latest())
                .unwrap_or_default()
                .to_vec();
            let limit = budget.bytes.saturating_mul(2).min(fold::MAX_LEN);
            let folded = std::mem::take(&mut scratch.folded);
            let bytes = self.template_text(coder, &folded, &base, limit)?;
            self.folds.insert(&bytes)
        } else {
            let contexts = Contexts::new(1, [24, mix(device, 25), mix(last.into(), 26)]);
            let id = want.unwrap_or(0);
            self.predictor
                .bits(coder, id, Folds::ID_BITS, &contexts, FLAG_FOLD_ID)
        };
        self.folds.touch(id);
        let folded = self.folds.at(id).ok_or(MALFORMED)?.to_vec();
        let hash = hash_bytes(&folded);
        let limit = budget.bytes.saturating_add(budget.slots.min(1 << 20));
        let limit = limit.min(SplitLimits::LARGE.template_len);
        let mut counts = scratch.counts.iter();
        let bytes = fold::expand(&folded, limit, &mut |place| {
            budget.slots = budget.slots.checked_sub(1).ok_or(MALFORMED)?;
            let here = mix(hash, place as u64);
            let before = self.memo.last(here).as_text().unwrap_or(0);
            let contexts = Contexts::new(
                here,
                [
                    here,
                    mix(here, device),
                    mix(here, u64::from(before) << 8 | 1),
                ],
            );
            let count = counts.next().copied().unwrap_or(1);
            let off = i64::from(count) - 1;
            let off = self.predictor.number(coder, off, &contexts, Domain::Turns);
            let count = u32::try_from(off.saturating_add(1)).map_err(|_| MALFORMED)?;
            self.memo.put(here, Value::text(count));
            Ok(count)
        })?;
        if let Some(id) = self.templates.find(&bytes) {
            return Ok(Other::Known(id));
        }
        let template = Template::within(&bytes, SplitLimits::LARGE).ok_or(MALFORMED)?;
        if !self
            .templates
            .accepts(bytes.len(), template.columns().len())
        {
            return Ok(Other::TooLarge(template));
        }
        Ok(Other::Known(self.templates.insert(template)))
    }

    /// A template as text; `base` is one like it.
    fn template_text<C: Coder>(
        &mut self,
        coder: &mut C,
        template: &[u8],
        base: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, BatchError> {
        let swap = |bytes: &[u8], from: u8, to: u8| -> Vec<u8> {
            let swap = |byte: &u8| if *byte == from { to } else { *byte };
            bytes.iter().map(swap).collect()
        };
        let base = swap(base, MARK, CODED_MARK);
        let place = Place {
            column: 4242,
            element: 0,
            previous: 0,
            last: &base,
            follower: &[],
        };
        let input = swap(template, MARK, CODED_MARK);
        let mut out = Vec::new();
        text::code(
            coder,
            &mut self.predictor,
            &mut self.texts,
            &input,
            &place,
            limit,
            &mut out,
        )?;
        Ok(if C::ENCODES {
            template.to_vec()
        } else {
            swap(&out, CODED_MARK, MARK)
        })
    }

    fn headers<C: Coder>(
        &mut self,
        coder: &mut C,
        headers: &[Header<'_>],
        device: u64,
        at_ms: i64,
        budget: &mut Budget,
    ) -> Result<Vec<OwnedHeader>, BatchError> {
        let contexts = Contexts::new(1, [941, mix(device, 942)]);
        let count = i64::try_from(headers.len()).unwrap_or(i64::MAX);
        let count = self
            .predictor
            .number(coder, count, &contexts, Domain::Count);
        let count = usize::try_from(count).map_err(|_| MALFORMED)?;
        budget.slots = budget.slots.checked_sub(count).ok_or(MALFORMED)?;
        let mut decoded = Vec::new();
        let mut row = Row::new(mix(device, 78), at_ms);
        for i in 0..count {
            let header = headers.get(i);
            let mut name = Vec::new();
            let slot = |column| Slot {
                column,
                element: 0,
                known: None,
            };
            let token = header.map_or(&[][..], |header| header.name);
            let at = slot(mix(943, i.min(16) as u64));
            self.field(coder, token, at, &mut row, budget.bytes, &mut name)?;
            let column = mix(944, hash_bytes(if C::ENCODES { token } else { &name }));
            budget.bytes = budget.bytes.saturating_sub(name.len());
            let value = header.and_then(|header| header.value);
            let contexts = Contexts::new(0, [mix(column, 945)]);
            let is_null = self
                .predictor
                .flag(coder, value.is_none(), &contexts, FLAG_NULL_HEADER);
            let mut out = Vec::new();
            if !is_null {
                let token = value.unwrap_or_default();
                self.field(coder, token, slot(column), &mut row, budget.bytes, &mut out)?;
                budget.bytes = budget.bytes.saturating_sub(out.len());
            }
            if !C::ENCODES {
                decoded.push(OwnedHeader {
                    name,
                    value: (!is_null).then_some(out),
                });
            }
        }
        Ok(decoded)
    }
}

/// A template in use.
struct Chosen {
    /// Its number, if it has one.
    id: Option<u32>,
    known: Known,
}

/// A template that no situation suggested.
enum Other {
    Known(u32),
    /// Not worth its place in the table.
    TooLarge(Template),
}

/// A decoded header.
struct OwnedHeader {
    name: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl OwnedHeader {
    fn view(&self) -> Header<'_> {
        Header {
            name: &self.name,
            value: self.value.as_deref(),
        }
    }
}
