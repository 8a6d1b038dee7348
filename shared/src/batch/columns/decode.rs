//! From column bytes to records; nothing in them is trusted.

use std::ops::Range;
use std::sync::Arc;

use super::super::BatchError;
use super::super::split::{BlockStart, PayloadWriter, Template, hash_bytes, ihex, mix};
use super::body::{
    CODE_EXPECTED, CODE_NEW, CODE_NUMBER, CODE_RAW, FLAG_BLOCK_EACH, FLAG_BLOCKS_LISTED,
    FLAG_HEADERS, FLAG_KEYS_EXPECTED, FLAG_PACKED, FLAG_TEMPLATES_EXPECTED, FLAG_TIMES_IN_ORDER,
    Group, Groups, HEADER_COLUMN, key_hash,
};
use super::context::take_signed;
use super::slots::{Place, Sibling};
use super::state::{NULL_KEY, State};
use crate::record::Header;
use crate::wire::Reader;

/// Fewest bytes of a record in a raw payload.
const MIN_RECORD_LEN: usize = 7;

/// What came out so far.
#[derive(Default)]
struct Parts<'a> {
    records: Vec<Part<'a>>,
    /// Bytes of keys, header names and values, and slots.
    arena: Arena,
    headers: Vec<(Range<usize>, Option<Range<usize>>)>,
    blocks: Vec<BlockStart>,
}

#[derive(Default)]
struct Part<'a> {
    key: Option<Range<usize>>,
    key_number: u32,
    key_hash: u64,
    timestamp_ms: i64,
    headers: Range<usize>,
    value: Value<'a>,
    sibling: Sibling,
}

#[derive(Default)]
enum Value<'a> {
    #[default]
    Null,
    Raw(&'a [u8]),
    Unpacked(Vec<u8>),
    /// First of its slots in the ranges of slots, to be joined.
    Split(Arc<Template>, usize),
}

/// Grows up to a limit: all that is in it also stands in the raw payload.
#[derive(Default)]
struct Arena {
    bytes: Vec<u8>,
    limit: usize,
}

impl Arena {
    fn put(&mut self, bytes: &[u8]) -> Result<Range<usize>, BatchError> {
        let start = self.bytes.len();
        if bytes.len() > self.limit.saturating_sub(start) {
            return Err(BatchError::TooLarge {
                bytes: start.saturating_add(bytes.len()),
                limit: self.limit,
            });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(start..self.bytes.len())
    }

    fn get(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }
}

impl State {
    /// The raw payload of column bytes, at most `limit` bytes.
    pub(super) fn decode(&mut self, body: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
        self.slots.tick();
        let mut reader = Reader::new(body);
        let flags = reader.u8()?;
        let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        if count > limit / MIN_RECORD_LEN {
            return Err(BatchError::Malformed("more records than may be"));
        }
        let mut parts = Parts::default();
        parts.arena.limit = limit;
        parts.records.resize_with(count, Part::default);
        self.take_keys(flags, &mut reader, &mut parts)?;
        self.take_times(flags, &mut reader, &mut parts)?;
        take_blocks(flags, &mut reader, &mut parts)?;
        if flags & FLAG_HEADERS != 0 {
            self.take_headers(&mut reader, &mut parts)?;
        }
        let mut groups = Groups::default();
        let slots = self.take_templates(flags, &mut reader, &mut parts, &mut groups)?;
        if slots > reader.remaining() {
            return Err(BatchError::Malformed("more slots than bytes"));
        }
        let mut ranges = vec![0..0; slots];
        for group in &groups.all {
            self.take_slots(group, &mut reader, &mut parts, &mut ranges)?;
        }
        reader.finish()?;
        groups.dissolve(self);
        write(&parts, &ranges, limit)
    }

    fn take_keys<'a>(
        &mut self,
        flags: u8,
        reader: &mut Reader<'a>,
        parts: &mut Parts<'a>,
    ) -> Result<(), BatchError> {
        for part in &mut parts.records {
            let code = if flags & FLAG_KEYS_EXPECTED != 0 {
                CODE_EXPECTED
            } else {
                reader.varint()?
            };
            let number = match code {
                CODE_EXPECTED => self.expected_key(),
                CODE_NEW => {
                    let key = take_bytes(reader)?;
                    part.key = Some(parts.arena.put(key)?);
                    self.add_key(key)
                }
                code => u32::try_from(code - CODE_NUMBER).unwrap_or(u32::MAX),
            };
            if code != CODE_NEW && number != NULL_KEY {
                let key = self.keys.get(number - 1);
                let key = key.ok_or(BatchError::Malformed("a key nobody sent"))?;
                part.key = Some(parts.arena.put(key)?);
            }
            self.saw_key(number);
            part.key_number = number;
            part.key_hash = key_hash(part.key.as_ref().map(|key| parts.arena.get(key)));
        }
        Ok(())
    }

    fn take_times<'a>(
        &mut self,
        flags: u8,
        reader: &mut Reader<'a>,
        parts: &mut Parts<'a>,
    ) -> Result<(), BatchError> {
        for part in &mut parts.records {
            let (by_key, in_order) = self.expected_times(part.key_number);
            let expected = if flags & FLAG_TIMES_IN_ORDER != 0 {
                in_order
            } else {
                by_key
            };
            part.timestamp_ms = expected.wrapping_add(take_signed(reader)?);
            self.saw_time(part.key_number, part.timestamp_ms);
        }
        Ok(())
    }

    fn take_headers<'a>(
        &mut self,
        reader: &mut Reader<'a>,
        parts: &mut Parts<'a>,
    ) -> Result<(), BatchError> {
        for part in &mut parts.records {
            let first = parts.headers.len();
            let place = Place {
                about: part.key_hash,
                timestamp_ms: part.timestamp_ms,
            };
            for column in (HEADER_COLUMN..).step_by(2).take(reader.count(2)?) {
                let has_value = reader.u8()? != 0;
                let name = self.take_alone(column, place, reader, &mut parts.arena)?;
                let value = if has_value {
                    let column = mix(column + 1, hash_bytes(parts.arena.get(&name)));
                    Some(self.take_alone(column, place, reader, &mut parts.arena)?)
                } else {
                    None
                };
                parts.headers.push((name, value));
            }
            part.headers = first..parts.headers.len();
        }
        Ok(())
    }

    fn take_alone(
        &mut self,
        column: u64,
        place: Place,
        reader: &mut Reader<'_>,
        arena: &mut Arena,
    ) -> Result<Range<usize>, BatchError> {
        let mut column = self.slots.open(column);
        let start = arena.bytes.len();
        self.slots.take(
            &mut column,
            place,
            &mut None,
            reader,
            &mut arena.bytes,
            arena.limit,
        )?;
        self.slots.close(&column);
        Ok(start..arena.bytes.len())
    }

    /// Files every record; the number of all slots.
    fn take_templates<'a>(
        &mut self,
        flags: u8,
        reader: &mut Reader<'a>,
        parts: &mut Parts<'a>,
        groups: &mut Groups,
    ) -> Result<usize, BatchError> {
        const UNKNOWN: BatchError = BatchError::Malformed("a template nobody sent");
        let mut slots = 0_usize;
        // unpacked values are no more together than all that is decoded may be
        let mut room = parts.arena.limit;
        for (at, part) in parts.records.iter_mut().enumerate() {
            let code = if flags & FLAG_TEMPLATES_EXPECTED != 0 {
                CODE_EXPECTED
            } else {
                reader.varint()?
            };
            let (number, template) = match code {
                CODE_NEW => {
                    let template = Template::new(take_bytes(reader)?)
                        .ok_or(BatchError::Malformed("a template is broken"))?;
                    let template = Arc::new(template);
                    (self.add_template(Arc::clone(&template)), template)
                }
                CODE_RAW => {
                    part.value = take_whole(flags, reader, &mut room)?;
                    continue;
                }
                code => {
                    let number = if code == CODE_EXPECTED {
                        self.expected_template(part.key_number)
                    } else {
                        u32::try_from(code - CODE_NUMBER).unwrap_or(0)
                    };
                    let state = self.template_state(number).ok_or(UNKNOWN)?;
                    let template = state.template.clone().ok_or(UNKNOWN)?;
                    self.templates.touch(number - 1).ok_or(UNKNOWN)?;
                    (number, template)
                }
            };
            self.saw_template(part.key_number, number);
            groups.file(self, number, &template, at);
            let first = slots;
            slots = slots.saturating_add(template.columns().len());
            part.value = Value::Split(template, first);
        }
        Ok(slots)
    }

    fn take_slots<'a>(
        &mut self,
        group: &Group,
        reader: &mut Reader<'a>,
        parts: &mut Parts<'a>,
        ranges: &mut [Range<usize>],
    ) -> Result<(), BatchError> {
        for (at, id) in group.template.columns().iter().enumerate() {
            let mut column = self.slots.open(id.hash);
            for record in &group.records {
                let Some(part) = parts.records.get_mut(*record) else {
                    continue;
                };
                let Value::Split(_, first) = part.value else {
                    continue;
                };
                let element = id.element.map(|element| {
                    let range = ranges.get(first + usize::from(element));
                    hash_bytes(range.map_or(&[], |range| parts.arena.get(range)))
                });
                let place = group.place(part.key_hash, element, part.timestamp_ms);
                let start = parts.arena.bytes.len();
                self.slots.take(
                    &mut column,
                    place,
                    &mut part.sibling,
                    reader,
                    &mut parts.arena.bytes,
                    parts.arena.limit,
                )?;
                if let Some(range) = ranges.get_mut(first + at) {
                    *range = start..parts.arena.bytes.len();
                }
            }
            self.slots.close(&column);
        }
        Ok(())
    }
}

fn take_bytes<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], BatchError> {
    let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    Ok(reader.bytes(len)?)
}

/// A value that was not split; what is unpacked takes from `room`.
fn take_whole<'a>(
    flags: u8,
    reader: &mut Reader<'a>,
    room: &mut usize,
) -> Result<Value<'a>, BatchError> {
    let Some(len) = reader.varint()?.checked_sub(1) else {
        return Ok(Value::Null);
    };
    let (len, is_packed) = if flags & FLAG_PACKED == 0 {
        (len, false)
    } else {
        (len >> 1, len & 1 != 0)
    };
    let bytes = reader.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
    if !is_packed {
        return Ok(Value::Raw(bytes));
    }
    let text = ihex::unpack(bytes, *room)?;
    *room -= text.len();
    Ok(Value::Unpacked(text))
}

fn take_blocks<'a>(
    flags: u8,
    reader: &mut Reader<'a>,
    parts: &mut Parts<'a>,
) -> Result<(), BatchError> {
    let plain = |count: u32, base_timestamp_ms| BlockStart {
        count,
        base_timestamp_ms,
        is_log_append_time: false,
    };
    let records = &parts.records;
    match flags & (FLAG_BLOCK_EACH | FLAG_BLOCKS_LISTED) {
        0 => {
            let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
            let first = records.first().map_or(0, |part| part.timestamp_ms);
            parts.blocks.push(plain(count, first));
        }
        FLAG_BLOCK_EACH => {
            let blocks = records.iter().map(|part| plain(1, part.timestamp_ms));
            parts.blocks.extend(blocks);
        }
        FLAG_BLOCKS_LISTED => {
            let mut at = 0_usize;
            for _ in 0..reader.count(2)? {
                let head = reader.varint()?;
                let count = u32::try_from(head >> 1).unwrap_or(u32::MAX);
                let first = records.get(at).map_or(0, |part| part.timestamp_ms);
                at = at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
                parts.blocks.push(BlockStart {
                    count,
                    base_timestamp_ms: first.wrapping_add(reader.zigzag()?),
                    is_log_append_time: head & 1 != 0,
                });
            }
        }
        _ => return Err(BatchError::Malformed("blocks are of no known kind")),
    }
    let total: u64 = parts
        .blocks
        .iter()
        .map(|block| u64::from(block.count))
        .sum();
    if total != records.len() as u64 {
        return Err(BatchError::Malformed("blocks and records do not add up"));
    }
    Ok(())
}

fn write(parts: &Parts<'_>, ranges: &[Range<usize>], limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut writer = PayloadWriter::new(limit);
    let mut records = parts.records.iter();
    let mut value = Vec::new();
    let mut headers = Vec::new();
    for block in &parts.blocks {
        writer.start_block(*block)?;
        let count = usize::try_from(block.count).unwrap_or(usize::MAX);
        for part in records.by_ref().take(count) {
            headers.clear();
            let ours = parts.headers.get(part.headers.clone()).unwrap_or_default();
            headers.extend(ours.iter().map(|(name, value)| Header {
                name: parts.arena.get(name),
                value: value.as_ref().map(|value| parts.arena.get(value)),
            }));
            let value = match &part.value {
                Value::Null => None,
                Value::Raw(bytes) => Some(*bytes),
                Value::Unpacked(bytes) => Some(bytes.as_slice()),
                Value::Split(template, first) => {
                    value.clear();
                    template.join(&mut value, |slot, out| {
                        let range = ranges.get(first + slot);
                        out.extend_from_slice(range.map_or(&[], |r| parts.arena.get(r)));
                    });
                    Some(value.as_slice())
                }
            };
            let key = part.key.as_ref().map(|key| parts.arena.get(key));
            writer.push(part.timestamp_ms, key, value, &headers)?;
        }
    }
    writer.finish()
}
