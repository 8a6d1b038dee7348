//! A value as a template and slots.
//!
//! The template's first byte tells its kind, JSON or text; then follow the value's bytes with a [`MARK`]
//! in the place of each slot. In JSON every string and every other scalar in the place of a value is a
//! slot; names, braces and white space are the template. In text the words with a digit in them are
//! slots, dates and times as one; other words and all separators are the template.

use super::{hash_bytes, mix};

/// Stands for a slot in a template; a value that has it is not split.
const MARK: u8 = 1;

const JSON: u8 = b'J';
const TEXT: u8 = b'T';

/// Longest value that is split; a longer one is better off with a compressor that sees all of it.
pub(crate) const MAX_VALUE_LEN: usize = 64 << 10;

/// Longest template, its kind included.
pub(crate) const MAX_TEMPLATE_LEN: usize = 16 << 10;

/// Most slots of one value.
pub(crate) const MAX_SLOTS: usize = 4096;

/// What is split at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SplitLimits {
    /// Longest value.
    pub(crate) value_len: usize,
    /// Longest template, its kind included.
    pub(crate) template_len: usize,
    /// Most slots, up to 65,536.
    pub(crate) slots: usize,
}

impl SplitLimits {
    /// For a codec that keeps every template.
    pub(crate) const SMALL: Self = Self {
        value_len: MAX_VALUE_LEN,
        template_len: MAX_TEMPLATE_LEN,
        slots: MAX_SLOTS,
    };

    /// For a codec that folds templates.
    pub(crate) const LARGE: Self = Self {
        value_len: 1 << 20,
        template_len: 512 << 10,
        slots: 1 << 16,
    };
}

/// Deepest nesting of JSON: one bit a level.
const MAX_DEPTH: u32 = 64;

/// Slots of a text template beyond this one share columns.
const MAX_TEXT_COLUMN: u64 = 30;

/// A value taken apart; used again for the next one.
#[derive(Debug, Default, Clone)]
pub(crate) struct Split {
    /// Kind, literals and marks.
    pub(crate) template: Vec<u8>,
    /// Where each slot stands in the value: first byte, and one after the last.
    pub(crate) slots: Vec<(u32, u32)>,
}

/// Which slots belong together: the same column in every record of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColumnId {
    /// Path in JSON, the literal before it and its place in text.
    pub(crate) hash: u64,
    /// The slot that names the thing which this slot is about, always one before it: the first scalar of
    /// an object in an array, the word before `#` or `=`.
    pub(crate) element: Option<u16>,
}

/// Takes a value apart. False when it is empty, too long, not text, or has too many slots; `split` is
/// worth nothing then.
pub(crate) fn tokenize(value: &[u8], split: &mut Split) -> bool {
    tokenize_within(value, split, SplitLimits::SMALL)
}

/// The same within other limits.
pub(crate) fn tokenize_within(value: &[u8], split: &mut Split, limits: SplitLimits) -> bool {
    let Some(first) = value.first() else {
        return false;
    };
    if value.len() > limits.value_len || !is_text(value) {
        return false;
    }
    (matches!(first, b'{' | b'[') && Cursor::new(value, split, JSON, limits).json().is_some())
        || Cursor::new(value, split, TEXT, limits).text().is_some()
}

fn is_text(value: &[u8]) -> bool {
    let has_control = value.iter().fold(false, |found, byte| {
        found | (CLASS[usize::from(*byte)] & CONTROL != 0)
    });
    !has_control && std::str::from_utf8(value).is_ok()
}

/// Reads a value and fills a split.
struct Cursor<'a> {
    value: &'a [u8],
    split: &'a mut Split,
    /// Where the literal that is not in the template yet begins.
    literal: usize,
    limits: SplitLimits,
}

impl<'a> Cursor<'a> {
    fn new(value: &'a [u8], split: &'a mut Split, kind: u8, limits: SplitLimits) -> Self {
        split.template.clear();
        split.template.push(kind);
        split.slots.clear();
        Self {
            value,
            split,
            literal: 0,
            limits,
        }
    }

    fn at(&self, at: usize) -> u8 {
        self.value.get(at).copied().unwrap_or(0)
    }

    fn flush(&mut self, end: usize) -> Option<()> {
        let literal = self.value.get(self.literal..end)?;
        if self.split.template.len() + literal.len() >= self.limits.template_len {
            return None;
        }
        self.split.template.extend_from_slice(literal);
        Some(())
    }

    fn slot(&mut self, start: usize, end: usize) -> Option<()> {
        self.flush(start)?;
        if self.split.slots.len() >= self.limits.slots {
            return None;
        }
        self.split.template.push(MARK);
        self.split
            .slots
            .push((u32::try_from(start).ok()?, u32::try_from(end).ok()?));
        self.literal = end;
        Some(())
    }

    fn json(mut self) -> Option<()> {
        let mut nesting = Nesting::default();
        let mut at = 0;
        while at < self.value.len() {
            let byte = self.at(at);
            match byte {
                b'{' | b'[' => nesting.open(byte == b'{')?,
                b'}' | b']' => nesting.close()?,
                b',' => nesting.comma()?,
                b':' | b' ' | b'\n' | b'\t' | b'\r' => {}
                b'"' => {
                    let end = self.string_end(at + 1)?;
                    if nesting.is_name {
                        nesting.is_name = false;
                    } else {
                        self.slot(at + 1, end)?;
                    }
                    at = end;
                }
                b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                    let start = at;
                    at += 1;
                    while at < self.value.len()
                        && CLASS[usize::from(self.at(at))] & JSON_DELIMITER == 0
                    {
                        at += 1;
                    }
                    self.slot(start, at)?;
                    continue;
                }
                _ => return None,
            }
            at += 1;
        }
        if nesting.depth != 0 {
            return None;
        }
        self.flush(self.value.len())
    }

    /// Where the string's closing quote stands.
    fn string_end(&self, start: usize) -> Option<usize> {
        let mut at = start;
        loop {
            match self.value.get(at)? {
                b'"' => return Some(at),
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
    }

    fn text(mut self) -> Option<()> {
        let len = self.value.len();
        let mut at = 0;
        while at < len {
            if self.class(at) & SEPARATOR != 0 {
                at += 1;
                continue;
            }
            let rest = self.value.get(at..)?;
            let stamp = stamp_len(rest);
            if stamp > 0 {
                self.slot(at, at + stamp)?;
                at += stamp;
                continue;
            }
            let mut classes = 0;
            let start = at;
            while at < len && self.class(at) & SEPARATOR == 0 {
                classes |= self.class(at);
                at += 1;
            }
            if classes & DIGIT != 0 {
                let word = self.value.get(start..at)?;
                self.slot(start, start + slot_len(word))?;
            }
        }
        self.flush(len)
    }

    fn class(&self, at: usize) -> u8 {
        CLASS[usize::from(self.at(at))]
    }
}

/// Which brackets are open, and whether the next string is a name.
#[derive(Default)]
struct Nesting {
    objects: u64,
    depth: u32,
    is_name: bool,
}

impl Nesting {
    fn open(&mut self, is_object: bool) -> Option<()> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        self.objects = (self.objects << 1) | u64::from(is_object);
        self.is_name = is_object;
        Some(())
    }

    fn close(&mut self) -> Option<()> {
        self.depth = self.depth.checked_sub(1)?;
        self.objects >>= 1;
        self.is_name = false;
        Some(())
    }

    fn comma(&mut self) -> Option<()> {
        self.is_name = self.objects & 1 != 0;
        (self.depth > 0).then_some(())
    }
}

/// How much of a word with digits is the slot: trailing dots and the unit behind a number are not.
fn slot_len(word: &[u8]) -> usize {
    let digits = |from: usize| {
        let rest = word.get(from..).unwrap_or_default();
        rest.iter().take_while(|b| b.is_ascii_digit()).count()
    };
    let sign = usize::from(word.first() == Some(&b'-'));
    let whole = digits(sign);
    let mut number = sign + whole;
    if whole > 0 && word.get(number) == Some(&b'.') && digits(number + 1) > 0 {
        number += 1 + digits(number + 1);
    }
    let unit = word.get(number..).unwrap_or_default();
    let is_unit = whole > 0
        && unit.len() <= 8
        && unit
            .first()
            .is_some_and(|b| !b.is_ascii_hexdigit() && *b != b'.')
        && unit.iter().all(|b| b.is_ascii_alphabetic() || *b == b'%');
    if is_unit {
        return number;
    }
    let dots = word.iter().rev().take_while(|b| **b == b'.').count();
    word.len() - dots
}

fn digits_at<const N: usize>(bytes: &[u8], places: [usize; N]) -> bool {
    places
        .iter()
        .all(|at| bytes.get(*at).is_some_and(u8::is_ascii_digit))
}

/// Length of a date with a time, or of a time of day, that stands at the start; else 0.
fn stamp_len(bytes: &[u8]) -> usize {
    if !bytes.first().is_some_and(u8::is_ascii_digit) {
        return 0;
    }
    if date_len(bytes) > 0 && matches!(bytes.get(10), Some(b'T' | b' ')) {
        let time = bytes.get(11..).map_or(0, time_len);
        if time > 0 {
            return 11 + time;
        }
    }
    time_len(bytes)
}

/// Length of `yyyy-mm-dd`, or 0.
pub(super) fn date_len(bytes: &[u8]) -> usize {
    let is_date = digits_at(bytes, [0, 1, 2, 3, 5, 6, 8, 9])
        && bytes.get(4) == Some(&b'-')
        && bytes.get(7) == Some(&b'-')
        && !bytes.get(10).is_some_and(u8::is_ascii_digit);
    if is_date { 10 } else { 0 }
}

/// Length of `hh:mm:ss` with up to nine decimals after a dot or three after a comma, or 0.
pub(super) fn time_len(bytes: &[u8]) -> usize {
    let is_time = bytes.get(2) == Some(&b':')
        && bytes.get(5) == Some(&b':')
        && digits_at(bytes, [0, 1, 3, 4, 6, 7]);
    if !is_time {
        return 0;
    }
    let fraction = bytes.get(9..).unwrap_or_default();
    let decimals = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
    match bytes.get(8) {
        Some(b) if b.is_ascii_digit() => 0,
        Some(b'.') if (1..=9).contains(&decimals) => 9 + decimals,
        Some(b',') if decimals == 3 => 12,
        _ => 8,
    }
}

/// A template that was checked, with what a codec needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    /// Ends of the literals before each slot: the places of the marks.
    marks: Vec<u32>,
    columns: Vec<ColumnId>,
}

impl Template {
    /// Checks a template that perhaps comes from outside. Every template of [`tokenize`] passes.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        Self::within(bytes, SplitLimits::SMALL)
    }

    /// The same within other limits.
    pub(crate) fn within(bytes: &[u8], limits: SplitLimits) -> Option<Self> {
        if bytes.len() > limits.template_len {
            return None;
        }
        let (kind, body) = bytes.split_first()?;
        let mut marks = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == MARK {
                marks.push(u32::try_from(at).ok()?);
            }
        }
        if marks.len() > limits.slots {
            return None;
        }
        let columns = match *kind {
            JSON => json_columns(body)?,
            TEXT => text_columns(body),
            _ => return None,
        };
        (columns.len() == marks.len()).then(|| Self {
            bytes: bytes.to_vec(),
            marks,
            columns,
        })
    }

    /// As it was given.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Column of each slot.
    pub(crate) fn columns(&self) -> &[ColumnId] {
        &self.columns
    }

    /// True when it was made from JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.bytes.first() == Some(&JSON)
    }

    /// Puts the value together: calls `slot` for each slot in order, to append it.
    pub(crate) fn join(&self, out: &mut Vec<u8>, mut slot: impl FnMut(usize, &mut Vec<u8>)) {
        let mut literal = 1;
        for (index, mark) in self.marks.iter().enumerate() {
            let mark = usize::try_from(*mark).unwrap_or(usize::MAX);
            out.extend_from_slice(self.bytes.get(literal..mark).unwrap_or_default());
            slot(index, out);
            literal = mark + 1;
        }
        out.extend_from_slice(self.bytes.get(literal..).unwrap_or_default());
    }

    /// Bytes of memory, about.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>()
            + self.bytes.len()
            + self.marks.len() * (size_of::<u32>() + size_of::<ColumnId>())
    }
}

/// An open bracket while the columns of a JSON template are found.
struct Level {
    is_object: bool,
    path: u64,
    index: u64,
    name: u64,
    /// An object that is an element of an array: the slots in it are named by its first.
    is_element: bool,
    element: Option<u16>,
}

fn json_columns(body: &[u8]) -> Option<Vec<ColumnId>> {
    let mut columns = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    let mut nesting = Nesting::default();
    let mut at = 0;
    while let Some(byte) = body.get(at).copied() {
        at += 1;
        match byte {
            b'{' | b'[' => {
                nesting.open(byte == b'{')?;
                let (path, in_array) = match levels.last() {
                    None => (1, false),
                    Some(level) if level.is_object => (mix(level.path, level.name), false),
                    Some(level) => (mix(level.path, 5), true),
                };
                levels.push(Level {
                    is_object: byte == b'{',
                    path,
                    index: 0,
                    name: 0,
                    is_element: in_array && byte == b'{',
                    element: None,
                });
            }
            b'}' | b']' => {
                nesting.close()?;
                levels.pop()?;
            }
            b',' => {
                nesting.comma()?;
                let level = levels.last_mut()?;
                level.index += u64::from(!level.is_object);
            }
            b':' | b' ' | b'\n' | b'\t' | b'\r' => {}
            b'"' if body.get(at) == Some(&MARK) && body.get(at + 1) == Some(&b'"') => {
                columns.push(place(&mut levels, columns.len())?);
                at += 2;
            }
            b'"' => {
                let start = at;
                loop {
                    match body.get(at)? {
                        b'"' => break,
                        b'\\' => at += 2,
                        _ => at += 1,
                    }
                }
                levels.last_mut()?.name = hash_bytes(body.get(start..at)?);
                nesting.is_name = false;
                at += 1;
            }
            MARK => columns.push(place(&mut levels, columns.len())?),
            _ => return None,
        }
    }
    (nesting.depth == 0).then_some(columns)
}

fn place(levels: &mut [Level], slot: usize) -> Option<ColumnId> {
    let element = levels
        .iter()
        .rev()
        .find(|level| level.is_element)
        .and_then(|level| level.element);
    let Some(level) = levels.last_mut() else {
        return Some(ColumnId {
            hash: 7,
            element: None,
        });
    };
    if level.is_element && level.element.is_none() {
        level.element = Some(u16::try_from(slot).ok()?);
    }
    let hash = if level.is_object {
        mix(level.path, level.name)
    } else {
        mix(level.path, 1000 + level.index)
    };
    Some(ColumnId { hash, element })
}

fn text_columns(body: &[u8]) -> Vec<ColumnId> {
    let mut columns: Vec<ColumnId> = Vec::new();
    for piece in body.split_inclusive(|byte| *byte == MARK) {
        let Some((&MARK, literal)) = piece.split_last() else {
            break;
        };
        let tail = literal
            .get(literal.len().saturating_sub(6)..)
            .unwrap_or_default();
        let index = columns.len() as u64;
        let names = matches!(literal, b"#" | b"=");
        columns.push(ColumnId {
            hash: mix(hash_bytes(tail), 77 + index.min(MAX_TEXT_COLUMN)),
            element: index
                .checked_sub(1)
                .filter(|_| names)
                .and_then(|index| u16::try_from(index).ok()),
        });
    }
    columns
}

const SEPARATOR: u8 = 1;
const DIGIT: u8 = 2;
const JSON_DELIMITER: u8 = 4;
const CONTROL: u8 = 8;

/// What each byte is.
const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut at = 0;
    while at < 0x20 {
        class[at] = CONTROL;
        at += 1;
    }
    let space = b"\t\n\r ";
    at = 0;
    while at < space.len() {
        class[space[at] as usize] = SEPARATOR | JSON_DELIMITER;
        at += 1;
    }
    let both = b",:\"[]{}";
    at = 0;
    while at < both.len() {
        class[both[at] as usize] = SEPARATOR | JSON_DELIMITER;
        at += 1;
    }
    let text = b";=()'<>|#";
    at = 0;
    while at < text.len() {
        class[text[at] as usize] = SEPARATOR;
        at += 1;
    }
    let digits = b"0123456789";
    at = 0;
    while at < digits.len() {
        class[digits[at] as usize] = DIGIT;
        at += 1;
    }
    class
};
