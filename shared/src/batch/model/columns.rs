//! What is known of one column of all devices together: its format, how often its values repeat, how well
//! each way of predicting does, and which numbers it takes when these are few.

use super::history::{PREDICTORS, judge};
use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use super::value::Value;
use crate::batch::BatchError;
use crate::batch::split::{Format, rescale};

const WAYS: usize = 4;
/// Most numbers of one alphabet.
const MAX_ALPHABET: usize = 1024;
/// After so many values an alphabet must have known a quarter of them.
const TRIALS: [u32; 2] = [512, 4096];

/// What stood last in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    #[default]
    Nothing,
    Number,
    Text,
}

/// The numbers that a column takes, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Alphabet {
    unit: u8,
    numbers: Vec<i64>,
    total: u32,
    known: u32,
    /// Too many different ones: given up.
    is_off: bool,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Column {
    tag: u32,
    used: u32,
    pub(super) format: Option<Format>,
    pub(super) kind: Kind,
    /// Values seen, up to [`u16::MAX`].
    pub(super) count: u16,
    /// How often one of the candidates was right, of 65,536.
    pub(super) hits: u16,
    pub(super) step: i64,
    /// Most significant digits of a number.
    pub(super) digits: u8,
    pub(super) errors: [u16; PREDICTORS],
    pub(super) alphabet: Alphabet,
}

impl Column {
    /// Takes in the next value; `spare` numbers may be added to all alphabets together.
    pub(super) fn update(&mut self, value: Value, was_candidate: bool, spare: &mut usize) {
        self.count = self.count.saturating_add(1);
        let target = if was_candidate { 65_535 } else { 0 };
        let hits = i32::from(self.hits);
        self.hits = u16::try_from(hits + (target - hits) / 32).unwrap_or(0);
        match value.as_number() {
            Some((format, number)) => {
                self.kind = Kind::Number;
                self.format = Some(format);
                self.alphabet.update(format.unit(), number, spare);
            }
            None => self.kind = Kind::Text,
        }
    }

    pub(super) fn judge(&mut self, number: i64, predictions: &[Option<i64>; PREDICTORS]) {
        judge(&mut self.errors, number, predictions, 4);
    }
}

impl Alphabet {
    /// The numbers, when there are some in this unit.
    pub(super) fn numbers(&self, unit: u8) -> &[i64] {
        if self.is_off || self.unit != unit || self.numbers.len() < 2 {
            return &[];
        }
        &self.numbers
    }

    fn clear(&mut self, spare: &mut usize) {
        *spare += self.numbers.len();
        self.numbers = Vec::new();
    }

    fn update(&mut self, unit: u8, number: i64, spare: &mut usize) {
        if self.is_off {
            return;
        }
        if self.unit != unit {
            self.change_unit(unit, spare);
        }
        self.total += 1;
        match self.numbers.binary_search(&number) {
            Ok(_) => self.known += 1,
            Err(at) if self.numbers.len() < MAX_ALPHABET && *spare > 0 => {
                *spare -= 1;
                self.numbers.insert(at, number);
            }
            Err(_) => {}
        }
        if TRIALS.contains(&self.total) && self.known * 4 < self.total {
            self.is_off = true;
            self.clear(spare);
        }
        if self.total > 1 << 16 {
            self.total /= 2;
            self.known /= 2;
        }
    }

    fn change_unit(&mut self, unit: u8, spare: &mut usize) {
        let numbers: Option<Vec<i64>> = self
            .numbers
            .iter()
            .map(|number| rescale(*number, self.unit, unit))
            .collect();
        match numbers.filter(|numbers| numbers.is_sorted()) {
            Some(numbers) => self.numbers = numbers,
            None => self.clear(spare),
        }
        self.unit = unit;
    }
}

/// The table: four entries to a bucket, the one that was not used for longest makes room.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    entries: Vec<Column>,
    uses: u32,
    /// Numbers that may still be added to alphabets.
    pub(super) spare: usize,
    most_numbers: usize,
}

impl Columns {
    pub(super) fn new(bytes: usize, alphabet_bytes: usize) -> Self {
        let len = (bytes / size_of::<Column>())
            .next_multiple_of(WAYS)
            .max(WAYS);
        Self {
            entries: vec![Column::default(); len],
            uses: 0,
            spare: alphabet_bytes / 8,
            most_numbers: alphabet_bytes / 8,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.entries.len() * size_of::<Column>() + (self.most_numbers - self.spare) * 8
    }

    /// The place of a column; a fresh one when there is none.
    pub(super) fn place(&mut self, column: u64) -> usize {
        let hash = column.wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = hash ^ (hash >> 31);
        let tag = (hash >> 32) as u32 | 1;
        let buckets = (self.entries.len() / WAYS) as u64;
        let first = (((hash & 0xffff_ffff) * buckets) >> 32) as usize * WAYS;
        self.uses = self.uses.wrapping_add(1);
        let now = self.uses;
        let bucket = &mut self.entries[first..first + WAYS];
        let at = bucket
            .iter()
            .position(|entry| entry.tag == tag)
            .unwrap_or_else(|| {
                let at = (0..WAYS)
                    .max_by_key(|at| match bucket[*at].tag {
                        0 => u32::MAX,
                        _ => now.wrapping_sub(bucket[*at].used),
                    })
                    .unwrap_or(0);
                self.spare += bucket[at].alphabet.numbers.len();
                bucket[at] = Column {
                    tag,
                    errors: [64; PREDICTORS],
                    hits: 32_768,
                    ..Column::default()
                };
                at
            });
        bucket[at].used = now;
        first + at
    }

    #[inline]
    pub(super) fn at(&self, place: usize) -> &Column {
        &self.entries[place]
    }

    #[inline]
    pub(super) fn at_mut(&mut self, place: usize) -> &mut Column {
        &mut self.entries[place]
    }

    /// Takes the next value into a column.
    pub(super) fn update(&mut self, place: usize, value: Value, was_candidate: bool) {
        self.entries[place].update(value, was_candidate, &mut self.spare);
    }
}

impl Saved for Columns {
    fn save(&self, to: &mut Writer) {
        to.u32(self.uses);
        save_sparse(
            to,
            &self.entries,
            |entry| entry.tag == 0,
            |to, entry| {
                to.u32(entry.tag);
                to.u32(entry.used);
                to.u32(entry.format.map_or(u32::MAX, Format::code));
                to.u8(match entry.kind {
                    Kind::Nothing => 0,
                    Kind::Number => 1,
                    Kind::Text => 2,
                });
                to.u16(entry.count);
                to.u16(entry.hits);
                to.i64(entry.step);
                to.u8(entry.digits);
                entry.errors.iter().for_each(|error| to.u16(*error));
                to.u8(entry.alphabet.unit);
                to.u8(u8::from(entry.alphabet.is_off));
                to.u32(entry.alphabet.total);
                to.u32(entry.alphabet.known);
                to.len(entry.alphabet.numbers.len());
                entry.alphabet.numbers.iter().for_each(|n| to.i64(*n));
            },
        );
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        self.uses = from.u32()?;
        let mut spare = self.most_numbers;
        load_sparse(from, &mut self.entries, |from| {
            let tag = from.u32()?;
            let used = from.u32()?;
            let format = Format::from_code(from.u32()?);
            let kind = match from.u8()? {
                0 => Kind::Nothing,
                1 => Kind::Number,
                _ => Kind::Text,
            };
            let (count, hits, step) = (from.u16()?, from.u16()?, from.i64()?);
            let digits = from.u8()?;
            let errors = from.u16s()?;
            let (unit, is_off) = (from.u8()?, from.u8()? != 0);
            let (total, known) = (from.u32()?, from.u32()?);
            let len = from.len(MAX_ALPHABET.min(spare))?;
            spare -= len;
            let numbers = (0..len).map(|_| from.i64()).collect::<Result<_, _>>()?;
            Ok(Column {
                tag,
                used,
                format,
                kind,
                count,
                hits,
                step,
                digits,
                errors,
                alphabet: Alphabet {
                    unit,
                    numbers,
                    total,
                    known,
                    is_off,
                },
            })
        })?;
        self.spare = spare;
        Ok(())
    }
}
