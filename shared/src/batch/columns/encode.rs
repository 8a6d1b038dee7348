//! From records to column bytes.

use std::sync::Arc;

use super::super::split::{RecordList, Split, Template, hash_bytes, ihex, mix, tokenize};
use super::body::{
    CODE_EXPECTED, CODE_NEW, CODE_NUMBER, CODE_RAW, FLAG_BLOCK_EACH, FLAG_BLOCKS_LISTED,
    FLAG_HEADERS, FLAG_KEYS_EXPECTED, FLAG_PACKED, FLAG_TEMPLATES_EXPECTED, FLAG_TIMES_IN_ORDER,
    Groups, HEADER_COLUMN, is_plain, key_hash,
};
use super::context::put_signed;
use super::slots::{Place, Sibling};
use super::state::{NULL_KEY, State};
use crate::wire::{put_varint, put_zigzag};

/// Buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    split: Split,
    /// Slots of all records one after the other.
    slots: Vec<(u32, u32)>,
    /// By record: where its slots begin.
    first_slots: Vec<usize>,
    /// By record: number and hash of its key.
    keys: Vec<(u32, u64)>,
    siblings: Vec<Sibling>,
    codes: Vec<u8>,
    residuals: Vec<(i64, i64)>,
}

impl State {
    /// Appends the column bytes of the records.
    pub(super) fn encode(
        &mut self,
        list: &RecordList<'_>,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) {
        self.slots.tick();
        let flags_at = out.len();
        out.push(0);
        put_varint(out, list.records.len() as u64);
        let mut flags = self.put_keys(list, scratch, out);
        flags |= self.put_times(list, scratch, out);
        flags |= put_blocks(list, out);
        flags |= self.put_headers(list, scratch, out);
        let mut groups = Groups::default();
        flags |= self.put_templates(list, scratch, &mut groups, out);
        self.put_slots(list, scratch, &groups, out);
        groups.dissolve(self);
        if let Some(place) = out.get_mut(flags_at) {
            *place = flags;
        }
    }

    fn put_keys(&mut self, list: &RecordList<'_>, scratch: &mut Scratch, out: &mut Vec<u8>) -> u8 {
        scratch.keys.clear();
        scratch.codes.clear();
        let mut all_expected = true;
        for record in &list.records {
            let hash = key_hash(record.key);
            let expected = self.expected_key();
            let is_expected = match record.key {
                None => expected == NULL_KEY,
                Some(key) => expected != NULL_KEY && self.keys.is(expected - 1, key),
            };
            let number = match record.key {
                _ if is_expected => Some(expected),
                None => Some(NULL_KEY),
                Some(key) => self.keys.find(key, hash).map(|id| id + 1),
            };
            let number = match (number, record.key) {
                (Some(number), _) => {
                    put_varint(
                        &mut scratch.codes,
                        if is_expected {
                            CODE_EXPECTED
                        } else {
                            CODE_NUMBER + u64::from(number)
                        },
                    );
                    number
                }
                (None, key) => {
                    put_varint(&mut scratch.codes, CODE_NEW);
                    put_bytes(&mut scratch.codes, key.unwrap_or_default());
                    self.add_key(key.unwrap_or_default())
                }
            };
            all_expected &= is_expected;
            self.saw_key(number);
            scratch.keys.push((number, hash));
        }
        put_unless_expected(all_expected, FLAG_KEYS_EXPECTED, &scratch.codes, out)
    }

    fn put_times(&mut self, list: &RecordList<'_>, scratch: &mut Scratch, out: &mut Vec<u8>) -> u8 {
        scratch.residuals.clear();
        let (mut cost_by_key, mut cost_in_order) = (0, 0);
        for (record, (key, _)) in list.records.iter().zip(&scratch.keys) {
            let (by_key, in_order) = self.expected_times(*key);
            let by_key = record.timestamp_ms.wrapping_sub(by_key);
            let in_order = record.timestamp_ms.wrapping_sub(in_order);
            cost_by_key += 64 - by_key.unsigned_abs().leading_zeros();
            cost_in_order += 64 - in_order.unsigned_abs().leading_zeros();
            scratch.residuals.push((by_key, in_order));
            self.saw_time(*key, record.timestamp_ms);
        }
        let is_in_order = cost_in_order < cost_by_key;
        for (by_key, in_order) in &scratch.residuals {
            put_signed(out, if is_in_order { *in_order } else { *by_key });
        }
        if is_in_order { FLAG_TIMES_IN_ORDER } else { 0 }
    }

    fn put_headers(&mut self, list: &RecordList<'_>, scratch: &Scratch, out: &mut Vec<u8>) -> u8 {
        if list.headers.is_empty() {
            return 0;
        }
        for (record, (_, key)) in list.records.iter().zip(&scratch.keys) {
            let headers = list.headers_of(record);
            put_varint(out, headers.len() as u64);
            let place = Place {
                about: *key,
                timestamp_ms: record.timestamp_ms,
            };
            for (column, header) in (HEADER_COLUMN..).step_by(2).zip(headers) {
                out.push(u8::from(header.value.is_some()));
                self.put_alone(column, place, header.name, out);
                if let Some(value) = header.value {
                    let column = mix(column + 1, hash_bytes(header.name));
                    self.put_alone(column, place, value, out);
                }
            }
        }
        FLAG_HEADERS
    }

    fn put_alone(&mut self, column: u64, place: Place, slot: &[u8], out: &mut Vec<u8>) {
        let mut column = self.slots.open(column);
        self.slots.put(&mut column, place, &mut None, slot, out);
        self.slots.close(&column);
    }

    fn put_templates(
        &mut self,
        list: &RecordList<'_>,
        scratch: &mut Scratch,
        groups: &mut Groups,
        out: &mut Vec<u8>,
    ) -> u8 {
        scratch.slots.clear();
        scratch.first_slots.clear();
        scratch.codes.clear();
        let mut all_expected = true;
        let values = list.records.iter().map(|record| record.value);
        let packed: Vec<Option<Vec<u8>>> = values.map(|value| value.and_then(ihex::pack)).collect();
        let has_packed = packed.iter().any(Option::is_some);
        for ((at, record), packed) in list.records.iter().enumerate().zip(&packed) {
            scratch.first_slots.push(scratch.slots.len());
            let key = scratch.keys.get(at).map_or(NULL_KEY, |(number, _)| *number);
            let split = |value| packed.is_none() && tokenize(value, &mut scratch.split);
            let is_split = record.value.is_some_and(split);
            let expected = self.expected_template(key);
            let bytes = scratch.split.template.as_slice();
            let is_expected = is_split && expected > 0 && self.templates.is(expected - 1, bytes);
            let known = if is_expected {
                Some(expected)
            } else if is_split {
                self.templates
                    .find(bytes, hash_bytes(bytes))
                    .map(|id| id + 1)
            } else {
                None
            };
            all_expected &= is_expected;
            let known = known.and_then(|number| {
                let template = self.template_state(number)?.template.clone()?;
                Some((number, template))
            });
            let (number, template) = if let Some((number, template)) = known {
                self.templates.touch(number - 1);
                put_varint(
                    &mut scratch.codes,
                    if is_expected {
                        CODE_EXPECTED
                    } else {
                        CODE_NUMBER + u64::from(number)
                    },
                );
                (number, template)
            } else if let Some(template) = Template::new(bytes).filter(|_| is_split) {
                put_varint(&mut scratch.codes, CODE_NEW);
                put_bytes(&mut scratch.codes, bytes);
                let template = Arc::new(template);
                (self.add_template(Arc::clone(&template)), template)
            } else {
                put_varint(&mut scratch.codes, CODE_RAW);
                let value = packed.as_deref().or(record.value);
                let is_packed = has_packed.then_some(packed.is_some());
                put_whole(&mut scratch.codes, value, is_packed);
                continue;
            };
            self.saw_template(key, number);
            groups.file(self, number, &template, at);
            scratch.slots.extend_from_slice(&scratch.split.slots);
        }
        let flags = if has_packed { FLAG_PACKED } else { 0 };
        flags | put_unless_expected(all_expected, FLAG_TEMPLATES_EXPECTED, &scratch.codes, out)
    }

    fn put_slots(
        &mut self,
        list: &RecordList<'_>,
        scratch: &mut Scratch,
        groups: &Groups,
        out: &mut Vec<u8>,
    ) {
        scratch.siblings.clear();
        scratch.siblings.resize(list.records.len(), None);
        let slots = Tokens {
            list,
            slots: &scratch.slots,
            first_slots: &scratch.first_slots,
        };
        for group in &groups.all {
            for (at, id) in group.template.columns().iter().enumerate() {
                let mut column = self.slots.open(id.hash);
                for record in &group.records {
                    let element = id
                        .element
                        .map(|element| hash_bytes(slots.get(*record, usize::from(element))));
                    let (Some((_, key)), Some(sibling)) =
                        (scratch.keys.get(*record), scratch.siblings.get_mut(*record))
                    else {
                        continue;
                    };
                    let timestamp_ms = list.records.get(*record).map_or(0, |r| r.timestamp_ms);
                    let place = group.place(*key, element, timestamp_ms);
                    let slot = slots.get(*record, at);
                    self.slots.put(&mut column, place, sibling, slot, out);
                }
                self.slots.close(&column);
            }
        }
    }
}

/// The slots of all records of a payload.
struct Tokens<'a> {
    list: &'a RecordList<'a>,
    slots: &'a [(u32, u32)],
    first_slots: &'a [usize],
}

impl Tokens<'_> {
    fn get(&self, record: usize, slot: usize) -> &[u8] {
        let find = || {
            let first = self.first_slots.get(record)?;
            let (start, end) = self.slots.get(first + slot)?;
            let range = usize::try_from(*start).ok()?..usize::try_from(*end).ok()?;
            self.list.records.get(record)?.value?.get(range)
        };
        find().unwrap_or_default()
    }
}

fn put_blocks(list: &RecordList<'_>, out: &mut Vec<u8>) -> u8 {
    let mut first_timestamps = Vec::with_capacity(list.blocks.len());
    let mut at = 0_usize;
    for block in &list.blocks {
        first_timestamps.push(list.records.get(at).map_or(0, |record| record.timestamp_ms));
        at += usize::try_from(block.count).unwrap_or(0);
    }
    let pairs = || list.blocks.iter().zip(&first_timestamps);
    let all_plain = pairs().all(|(block, first)| is_plain(block, *first));
    if all_plain && list.blocks.len() == 1 {
        return 0;
    }
    if all_plain && list.blocks.len() == list.records.len() && !list.blocks.is_empty() {
        return FLAG_BLOCK_EACH;
    }
    put_varint(out, list.blocks.len() as u64);
    for (block, first) in pairs() {
        put_varint(
            out,
            u64::from(block.count) << 1 | u64::from(block.is_log_append_time),
        );
        put_zigzag(out, block.base_timestamp_ms.wrapping_sub(*first));
    }
    FLAG_BLOCKS_LISTED
}

fn put_unless_expected(all_expected: bool, flag: u8, codes: &[u8], out: &mut Vec<u8>) -> u8 {
    if all_expected {
        return flag;
    }
    out.extend_from_slice(codes);
    0
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A value that was not split; whether it is packed, where some are.
fn put_whole(out: &mut Vec<u8>, bytes: Option<&[u8]>, is_packed: Option<bool>) {
    match bytes {
        None => put_varint(out, 0),
        Some(bytes) => {
            let len = bytes.len() as u64;
            let len = is_packed.map_or(len, |is_packed| len << 1 | u64::from(is_packed));
            put_varint(out, len + 1);
            out.extend_from_slice(bytes);
        }
    }
}
