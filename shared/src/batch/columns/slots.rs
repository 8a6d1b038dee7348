//! Slots to tokens and back: every column predicted from what was there for the same key.

use super::super::BatchError;
use super::super::split::{Format, hash_bytes, mix, parse, print};
use super::context::{
    Context, Scene, TOKEN_BEFORE, TOKEN_FORMAT, TOKEN_SAME, TOKEN_TEXT_BEFORE, TOKEN_TEXT_ID,
    TOKEN_TEXT_NEW, TOKEN_TEXT_SAME, TimeUnit,
};
use super::dictionary::Dictionary;
use super::table::Table;
use crate::wire::{Reader, WireError, put_varint};

/// A point in time among a record's slots.
pub(super) type Sibling = Option<(TimeUnit, i64)>;

#[derive(Debug, Clone)]
pub(super) struct Slots {
    texts: Dictionary,
    /// By column alone: a copy of what was last there for any key.
    columns: Table,
    /// By column, element and key.
    contexts: Table,
}

/// One column while the records of a payload go through it.
#[derive(Debug)]
pub(super) struct Column {
    hash: u64,
    latest: Context,
}

/// Where in its column a slot stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Hash of what else names the thing that the slot is about: the key, the element.
    pub(super) about: u64,
    pub(super) timestamp_ms: i64,
}

impl Slots {
    /// Empty, for about `max_bytes` of memory.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            texts: Dictionary::new(max_bytes / 4),
            columns: Table::new(max_bytes / 8),
            contexts: Table::new(max_bytes / 2),
        }
    }

    /// A payload begins.
    pub(super) fn tick(&mut self) {
        self.columns.tick();
        self.contexts.tick();
    }

    pub(super) fn memory(&self) -> usize {
        self.texts.memory() + self.columns.memory() + self.contexts.memory()
    }

    /// Begins a column; [`Self::close`] ends it.
    pub(super) fn open(&mut self, hash: u64) -> Column {
        Column {
            hash,
            latest: *self.columns.at(hash, Context::default),
        }
    }

    pub(super) fn close(&mut self, column: &Column) {
        *self.columns.at(column.hash, Context::default) = column.latest;
    }

    /// Appends the tokens of a slot.
    #[inline]
    pub(super) fn put(
        &mut self,
        column: &mut Column,
        place: Place,
        sibling: &mut Sibling,
        slot: &[u8],
        out: &mut Vec<u8>,
    ) {
        let context = self
            .contexts
            .at(mix(column.hash, place.about), || column.latest);
        let expects_number = context.expects_number();
        let is_text = |id: Option<u32>| id.is_some_and(|id| self.texts.is(id, slot));
        if !expects_number && is_text(context.text(false)) {
            out.push(TOKEN_SAME);
            see_text(&mut self.texts, context, context.text(false));
        } else if let Some((format, value)) = parse(slot, context.format()) {
            if !expects_number || context.format() != Some(format) {
                out.push(TOKEN_FORMAT);
                put_varint(out, format.code().into());
                context.turn_to(format);
            }
            let scene = Scene {
                timestamp_ms: place.timestamp_ms,
                latest: column.latest.value(),
                sibling: *sibling,
            };
            context.put_number(value, &scene, out);
            see_time(sibling, format, value);
        } else if is_text(context.text(false)) {
            out.push(TOKEN_TEXT_SAME);
            see_text(&mut self.texts, context, context.text(false));
        } else if is_text(context.text(true)) {
            out.push(if expects_number {
                TOKEN_TEXT_BEFORE
            } else {
                TOKEN_BEFORE
            });
            see_text(&mut self.texts, context, context.text(true));
        } else if let Some(id) = self.texts.find(slot, hash_bytes(slot)) {
            out.push(TOKEN_TEXT_ID);
            put_varint(out, id.into());
            see_text(&mut self.texts, context, Some(id));
        } else {
            out.push(TOKEN_TEXT_NEW);
            put_varint(out, slot.len() as u64);
            out.extend_from_slice(slot);
            context.saw_text(self.texts.insert(slot));
        }
        column.latest = *context;
    }

    /// Appends the slot to `out`, which may grow up to `limit` bytes.
    #[inline]
    pub(super) fn take(
        &mut self,
        column: &mut Column,
        place: Place,
        sibling: &mut Sibling,
        reader: &mut Reader<'_>,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(), BatchError> {
        let context = self
            .contexts
            .at(mix(column.hash, place.about), || column.latest);
        let expects_number = context.expects_number();
        let token = reader.u8()?;
        let number = match (token, expects_number) {
            (TOKEN_FORMAT, _) => {
                let format = Format::from_code(reader.varint_u32()?)
                    .ok_or(BatchError::Malformed("a format that does not exist"))?;
                context.turn_to(format);
                Some((format, reader.u8()?))
            }
            (..=TOKEN_LAST_NUMBER, true) => context.format().map(|format| (format, token)),
            _ => None,
        };
        if let Some((format, token)) = number {
            let scene = Scene {
                timestamp_ms: place.timestamp_ms,
                latest: column.latest.value(),
                sibling: *sibling,
            };
            let value = context.take_number(token, &scene, reader)?;
            print(format, value, out);
            see_time(sibling, format, value);
        } else if token == TOKEN_TEXT_NEW {
            let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
            let bytes = reader.bytes(len)?;
            out.extend_from_slice(bytes);
            context.saw_text(self.texts.insert(bytes));
        } else {
            let id = match (token, expects_number) {
                (TOKEN_SAME, false) | (TOKEN_TEXT_SAME, _) => context.text(false),
                (TOKEN_BEFORE, false) | (TOKEN_TEXT_BEFORE, true) => context.text(true),
                (TOKEN_TEXT_ID, _) => Some(reader.varint_u32()?),
                _ => None,
            };
            let text = id.and_then(|id| self.texts.touch(id));
            out.extend_from_slice(text.ok_or(BatchError::Malformed("a string nobody sent"))?);
            context.saw_text(id);
        }
        column.latest = *context;
        if out.len() > limit {
            return Err(BatchError::TooLarge {
                bytes: out.len(),
                limit,
            });
        }
        Ok(())
    }

    /// Appends all of it.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        self.texts.save(out);
        self.columns.save(out);
        self.contexts.save(out);
    }

    /// What [`Self::save`] wrote, into an empty one of the same size.
    pub(super) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        self.texts.load(reader)?;
        self.columns.load(reader)?;
        self.contexts.load(reader)
    }
}

/// The last token that is a number's by itself.
const TOKEN_LAST_NUMBER: u8 = TOKEN_TEXT_BEFORE - 1;

fn see_text(texts: &mut Dictionary, context: &mut Context, id: Option<u32>) {
    if let Some(id) = id {
        texts.touch(id);
    }
    context.saw_text(id);
}

fn see_time(sibling: &mut Sibling, format: Format, value: i64) {
    if let Some(unit) = TimeUnit::of(value, format.unit()) {
        *sibling = Some((unit, value));
    }
}
