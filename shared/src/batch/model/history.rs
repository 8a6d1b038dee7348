//! What is known of one slot of one device: its last value and how well each way of predicting it did.
//!
//! Numbers are mantissas in the unit of their format. Everything here only predicts, so differences that
//! don't fit are cut short, the same at both ends. Four entries to a bucket; the one that was not used for
//! longest makes room.
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes in bits and hashes cut to tags"
)]

use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use super::value::Value;
use crate::batch::BatchError;

/// Ways of predicting a number.
pub(super) const PREDICTORS: usize = 14;
const WAYS: usize = 4;
/// The error of a predictor that never predicted, see [`size_class`].
const ERROR_NEW: u16 = 64;

/// The history of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct History {
    tag: u32,
    used: u16,
    /// Unit of the numbers; [`History::NO_UNIT`] before the first.
    pub(super) unit: u8,
    /// Numbers seen in this unit, up to 255.
    pub(super) count: u8,
    /// Bit i: whether the value i uses ago was the one before it.
    pub(super) repeats: u8,
    /// Signed size of the last residual.
    pub(super) last_class: i8,
    pub(super) last: Value,
    /// The last number.
    pub(super) number: i64,
    /// The last number less the one before.
    pub(super) step: i32,
    /// Mean step, four bits behind the point.
    pub(super) trend: i32,
    /// Fast and slow mean, less the last number, four bits behind the point.
    pub(super) means: [i32; 2],
    /// Difference to the number before it in the record.
    pub(super) sibling: i32,
    /// Difference to the record's timestamp in the same unit.
    pub(super) clock: i64,
    /// Mean size of each predictor's error.
    pub(super) errors: [u16; PREDICTORS],
}

impl History {
    pub(super) const NO_UNIT: u8 = 255;

    const NEW: Self = Self {
        tag: 0,
        used: 0,
        unit: Self::NO_UNIT,
        count: 0,
        repeats: 0,
        last_class: 0,
        last: Value::NONE,
        number: 0,
        step: 0,
        trend: 0,
        means: [0; 2],
        sibling: 0,
        clock: 0,
        errors: [ERROR_NEW; PREDICTORS],
    };

    /// Takes in the next value.
    pub(super) fn update(&mut self, value: Value) {
        self.repeats = self.repeats << 1 | u8::from(value == self.last);
        self.last = value;
        let Some((format, number)) = value.as_number() else {
            return;
        };
        if self.unit != format.unit() {
            self.unit = format.unit();
            self.count = 0;
        }
        if self.count == 0 {
            self.step = 0;
            self.trend = 0;
            self.means = [0; 2];
        } else {
            let step = number.saturating_sub(self.number);
            let scaled = step.saturating_mul(16);
            self.step = narrow(step);
            let trend = i64::from(self.trend);
            self.trend = narrow(trend.saturating_add(scaled.saturating_sub(trend) >> 2));
            for (mean, shift) in self.means.iter_mut().zip([2, 4]) {
                let off = i64::from(*mean).saturating_sub(scaled);
                *mean = narrow(off - (off >> shift));
            }
        }
        self.number = number;
        self.count = self.count.saturating_add(1);
    }

    /// Learns how far each prediction was off.
    pub(super) fn judge(&mut self, number: i64, predictions: &[Option<i64>; PREDICTORS]) {
        judge(&mut self.errors, number, predictions, 3);
    }
}

/// Mean sizes of errors; the mean forgets by `1 / 2^shift`.
pub(super) fn judge(
    errors: &mut [u16; PREDICTORS],
    number: i64,
    predictions: &[Option<i64>; PREDICTORS],
    shift: u32,
) {
    let round = (1_u32 << (shift - 1)) - 1;
    for (error, prediction) in errors.iter_mut().zip(predictions) {
        if let Some(prediction) = prediction {
            let size = size_class(number.wrapping_sub(*prediction).unsigned_abs());
            let sum = (u32::from(*error) << shift) - u32::from(*error) + size + round;
            *error = u16::try_from(sum >> shift).unwrap_or(u16::MAX);
        }
    }
}

/// `16 * log2(size + 1)`.
#[inline]
pub(super) fn size_class(size: u64) -> u32 {
    let y = size.saturating_add(1);
    let log = 63 - y.leading_zeros();
    let fraction = if log >= 4 {
        y >> (log - 4)
    } else {
        y << (4 - log)
    };
    log * 16 + (fraction & 15) as u32
}

/// Number of bits with the sign of the number.
#[inline]
pub(super) fn signed_class(number: i64) -> i8 {
    let bits = (64 - number.unsigned_abs().leading_zeros()) as i8;
    if number < 0 { -bits } else { bits }
}

/// Cut to 32 bits.
#[inline]
pub(super) fn narrow(number: i64) -> i32 {
    i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX })
}

/// The table.
#[derive(Debug, Clone)]
pub(super) struct Histories {
    entries: Vec<History>,
    uses: u32,
}

impl Histories {
    pub(super) fn new(bytes: usize) -> Self {
        let len = (bytes / size_of::<History>())
            .next_multiple_of(WAYS)
            .max(WAYS);
        Self {
            // one more for what is passing
            entries: vec![History::NEW; len + 1],
            uses: 0,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.entries.len() * size_of::<History>()
    }

    /// The place of a history that is thrown away: for what is perhaps never seen again.
    pub(super) fn passing(&mut self) -> usize {
        let at = self.entries.len() - 1;
        self.entries[at] = History::NEW;
        at
    }

    /// True for [`Histories::passing`].
    pub(super) fn is_passing(&self, place: usize) -> bool {
        place == self.entries.len() - 1
    }

    /// The place of a slot's history, if there is one; else a fresh one if `may_add`.
    pub(super) fn place(&mut self, slot: u64, may_add: bool) -> Option<usize> {
        let hash = slot.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let hash = hash ^ (hash >> 29);
        let tag = (hash >> 32) as u32 | 1;
        let buckets = (self.entries.len() / WAYS) as u64;
        let first = (((hash & 0xffff_ffff) * buckets) >> 32) as usize * WAYS;
        self.uses = self.uses.wrapping_add(1);
        let now = ((self.uses >> 8) & 0xffff) as u16;
        let bucket = &mut self.entries[first..first + WAYS];
        let (at, found) = match bucket.iter().position(|entry| entry.tag == tag) {
            Some(at) => (at, true),
            None => (oldest(bucket, now), false),
        };
        if !found {
            if !may_add {
                return None;
            }
            bucket[at] = History {
                tag,
                ..History::NEW
            };
        }
        bucket[at].used = now;
        Some(first + at)
    }

    #[inline]
    pub(super) fn at(&self, place: usize) -> &History {
        &self.entries[place]
    }

    #[inline]
    pub(super) fn at_mut(&mut self, place: usize) -> &mut History {
        &mut self.entries[place]
    }
}

fn oldest(bucket: &[History], now: u16) -> usize {
    let mut best = (0, 0);
    for (at, entry) in bucket.iter().enumerate() {
        if entry.tag == 0 {
            return at;
        }
        let age = now.wrapping_sub(entry.used);
        if age > best.1 {
            best = (at, age);
        }
    }
    best.0
}

impl Saved for Histories {
    fn save(&self, to: &mut Writer) {
        to.u32(self.uses);
        save_sparse(
            to,
            &self.entries,
            |entry| entry.tag == 0,
            |to, entry| {
                to.u32(entry.tag);
                to.u16(entry.used);
                to.u8(entry.unit);
                to.u8(entry.count);
                to.u8(entry.repeats);
                to.i8(entry.last_class);
                to.value(entry.last);
                to.i64(entry.number);
                for number in [entry.step, entry.trend, entry.means[0], entry.means[1]] {
                    to.i32(number);
                }
                to.i32(entry.sibling);
                to.i64(entry.clock);
                entry.errors.iter().for_each(|error| to.u16(*error));
            },
        );
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        self.uses = from.u32()?;
        load_sparse(from, &mut self.entries, |from| {
            Ok(History {
                tag: from.u32()?,
                used: from.u16()?,
                unit: from.u8()?,
                count: from.u8()?,
                repeats: from.u8()?,
                last_class: from.i8()?,
                last: from.value()?,
                number: from.i64()?,
                step: from.i32()?,
                trend: from.i32()?,
                means: [from.i32()?, from.i32()?],
                sibling: from.i32()?,
                clock: from.i64()?,
                errors: from.u16s()?,
            })
        })
    }
}
