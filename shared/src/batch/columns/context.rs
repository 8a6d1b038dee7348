//! What is remembered of one column for one key, what it predicts, and the tokens that correct it.
//!
//! ```text
//! token, where a number is expected      token, where a string is expected
//!   0..=223  residual                      0    the last string
//!   224..=239, 1 byte   more of it         1    the one before
//!   240..=243, 2 bytes
//!   244, 3 bytes; 245, 4; 246, 8
//!   247  hexadecimal: mask, differences
//!   248  the string before the last
//!   249  the last string
//! either: 250, id: a string; 251, length, bytes: a new one; 252, format, token: a number
//! ```
//! The residual is the zigzag difference to the prediction. Several predictors run along, and the one
//! that lately needed the fewest bits is believed; nothing about the choice is sent.

use super::super::BatchError;
use super::super::split::{Format, rescale};
use crate::wire::{Reader, WireError, put_varint, put_zigzag};

pub(super) const TOKEN_SAME: u8 = 0;
pub(super) const TOKEN_BEFORE: u8 = 1;
const TOKEN_2: u8 = 224;
const TOKEN_3: u8 = 240;
const TOKEN_4: u8 = 244;
const TOKEN_5: u8 = 245;
const TOKEN_9: u8 = 246;
const TOKEN_HEX: u8 = 247;
pub(super) const TOKEN_TEXT_BEFORE: u8 = 248;
pub(super) const TOKEN_TEXT_SAME: u8 = 249;
pub(super) const TOKEN_TEXT_ID: u8 = 250;
pub(super) const TOKEN_TEXT_NEW: u8 = 251;
pub(super) const TOKEN_FORMAT: u8 = 252;

const BASE_2: u64 = 224;
const BASE_3: u64 = BASE_2 + (16 << 8);
const BASE_4: u64 = BASE_3 + (4 << 16);

/// Unit of [`Format::Hex`].
const UNIT_HEX: u8 = 96;

const PREDICTORS: usize = 6;

/// The mean is kept in sixteenths.
const MEAN_ONE: i64 = 16;

/// What else a prediction may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene {
    /// The record's own timestamp.
    pub(super) timestamp_ms: i64,
    /// The last value of the column, whichever its key.
    pub(super) latest: i64,
    /// The last point in time among the record's own slots.
    pub(super) sibling: Option<(TimeUnit, i64)>,
}

/// What is remembered of one column for one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Context {
    value: i64,
    delta: i64,
    mean: i64,
    /// Value minus the record's timestamp.
    offset: i64,
    costs: [u16; PREDICTORS],
    /// Ids plus one of the last two strings, last first.
    texts: [u32; 2],
    format: Option<Format>,
    /// Numbers since the unit changed, up to 2.
    seen: u8,
    /// Strings since the last number, up to 2.
    texts_in_a_row: u8,
}

impl Context {
    /// True when the next slot should be a number.
    pub(super) fn expects_number(&self) -> bool {
        self.format.is_some() && self.texts_in_a_row < 2
    }

    /// How numbers were last printed.
    pub(super) fn format(&self) -> Option<Format> {
        self.format
    }

    pub(super) fn value(&self) -> i64 {
        self.value
    }

    /// Id of the last string, or the one before.
    pub(super) fn text(&self, before: bool) -> Option<u32> {
        self.texts[usize::from(before)].checked_sub(1)
    }

    /// A string was there; without an id when it is not kept.
    pub(super) fn saw_text(&mut self, id: Option<u32>) {
        self.texts_in_a_row = 2.min(self.texts_in_a_row + 1);
        if let Some(text) = id.and_then(|id| id.checked_add(1))
            && text != self.texts[0]
        {
            self.texts = [text, self.texts[0]];
        }
    }

    /// Turns to a format, before a number in it is predicted.
    pub(super) fn turn_to(&mut self, format: Format) {
        let (from, to) = (self.format.map(Format::unit), format.unit());
        self.format = Some(format);
        if from == Some(to) {
            return;
        }
        let rescaled = |value| rescale(value, from?, to);
        match (
            rescaled(self.value),
            rescaled(self.delta),
            rescaled(self.mean),
            rescaled(self.offset),
        ) {
            (Some(value), Some(delta), Some(mean), Some(offset)) => {
                (self.value, self.delta, self.mean, self.offset) = (value, delta, mean, offset);
            }
            _ => {
                (self.value, self.delta, self.mean, self.offset) = (0, 0, 0, 0);
                self.seen = 0;
            }
        }
    }

    fn unit(&self) -> u8 {
        self.format.map_or(0, Format::unit)
    }

    fn candidates(&self, scene: &Scene) -> [i64; PREDICTORS] {
        let unit = TimeUnit::of(self.value, self.unit());
        let time = unit.and_then(|unit| unit.convert(scene.timestamp_ms));
        let sibling = scene
            .sibling
            .filter(|(of, _)| unit == Some(*of))
            .map_or(self.value, |(_, value)| value);
        [
            self.value,
            self.value.wrapping_add(self.delta),
            self.mean.wrapping_add(MEAN_ONE / 2).div_euclid(MEAN_ONE),
            time.map_or(self.value, |time| time.wrapping_add(self.offset)),
            sibling,
            scene.latest,
        ]
    }

    fn best(&self) -> usize {
        let costs = self.costs.iter().enumerate();
        costs.min_by_key(|(_, cost)| **cost).map_or(0, |(at, _)| at)
    }

    /// Appends the token of a number in the format turned to, and remembers the number.
    pub(super) fn put_number(&mut self, value: i64, scene: &Scene, out: &mut Vec<u8>) {
        if self.unit() == UNIT_HEX {
            put_hex(out, value, self.value);
            self.value = value;
            self.texts_in_a_row = 0;
            return;
        }
        let candidates = self.candidates(scene);
        let residual = value.wrapping_sub(candidates[self.best()]);
        put_residual(out, zigzag(residual));
        self.saw_number(value, scene, &candidates);
    }

    /// The other direction, with the token that was read.
    pub(super) fn take_number(
        &mut self,
        token: u8,
        scene: &Scene,
        reader: &mut Reader<'_>,
    ) -> Result<i64, BatchError> {
        if self.unit() == UNIT_HEX {
            self.value = take_hex(token, self.value, reader)?;
            self.texts_in_a_row = 0;
            return Ok(self.value);
        }
        let candidates = self.candidates(scene);
        let residual = unzigzag(take_residual(token, reader)?);
        let value = candidates[self.best()].wrapping_add(residual);
        self.saw_number(value, scene, &candidates);
        Ok(value)
    }

    fn saw_number(&mut self, value: i64, scene: &Scene, candidates: &[i64; PREDICTORS]) {
        if self.seen > 0 {
            for (cost, candidate) in self.costs.iter_mut().zip(candidates) {
                let bits = 64 - zigzag(value.wrapping_sub(*candidate)).leading_zeros();
                let bits = u16::try_from(bits * 64).unwrap_or(u16::MAX);
                *cost = *cost - *cost / 8 + bits / 8;
            }
            self.delta = value.wrapping_sub(self.value);
            let sixteenths = value.wrapping_mul(MEAN_ONE);
            self.mean = self
                .mean
                .wrapping_add(sixteenths.wrapping_sub(self.mean) >> 3);
        } else {
            self.delta = 0;
            self.mean = value.wrapping_mul(MEAN_ONE);
        }
        self.value = value;
        self.seen = 2.min(self.seen + 1);
        self.texts_in_a_row = 0;
        let time =
            TimeUnit::of(value, self.unit()).and_then(|unit| unit.convert(scene.timestamp_ms));
        self.offset = time.map_or(0, |time| value.wrapping_sub(time));
    }

    /// Appends all of it.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        for value in [self.value, self.delta, self.mean, self.offset] {
            put_zigzag(out, value);
        }
        for cost in self.costs {
            put_varint(out, cost.into());
        }
        for text in self.texts {
            put_varint(out, text.into());
        }
        put_varint(
            out,
            self.format.map_or(0, |format| u64::from(format.code()) + 1),
        );
        out.push(self.seen << 4 | self.texts_in_a_row);
    }

    /// What [`Self::save`] wrote.
    pub(super) fn load(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut context = Self {
            value: reader.zigzag()?,
            delta: reader.zigzag()?,
            mean: reader.zigzag()?,
            offset: reader.zigzag()?,
            ..Self::default()
        };
        for cost in &mut context.costs {
            *cost = u16::try_from(reader.varint()?).unwrap_or(u16::MAX);
        }
        for text in &mut context.texts {
            *text = reader.varint_u32()?;
        }
        context.format = match reader.varint_u32()? {
            0 => None,
            code => Format::from_code(code - 1),
        };
        let counts = reader.u8()?;
        (context.seen, context.texts_in_a_row) = (2.min(counts >> 4), 2.min(counts & 15));
        Ok(context)
    }
}

/// What one of a point in time is, when a number looks like one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeUnit {
    /// Powers of ten from one to the second.
    digits: u8,
    is_of_day: bool,
    is_text: bool,
}

impl TimeUnit {
    /// Seconds, ms, µs or ns since 1970 from 2001 on, as a number with decimals or a date; or a time of day.
    pub(super) fn of(value: i64, unit: u8) -> Option<Self> {
        if unit >= 32 {
            return (unit < UNIT_HEX).then_some(Self {
                digits: unit & 31,
                is_of_day: unit >= 64,
                is_text: true,
            });
        }
        let magnitude = value.unsigned_abs();
        if magnitude < 1_000_000_000 {
            return None;
        }
        let digits = unit
            + match magnitude / 10_u64.pow(u32::from(unit.min(18))) {
                0..1_000_000_000 => return None,
                1_000_000_000..10_000_000_000 => 0,
                1_000_000_000_000..10_000_000_000_000 => 3,
                1_000_000_000_000_000..10_000_000_000_000_000 => 6,
                1_000_000_000_000_000_000..=u64::MAX => 9,
                _ => return None,
            };
        Some(Self {
            digits,
            is_of_day: false,
            is_text: false,
        })
    }

    fn convert(self, timestamp_ms: i64) -> Option<i64> {
        let ms = if self.is_of_day {
            timestamp_ms.rem_euclid(86_400_000)
        } else {
            timestamp_ms
        };
        match self.digits {
            digits @ 0..=3 => Some(ms.div_euclid(10_i64.pow(u32::from(3 - digits)))),
            digits => ms.checked_mul(10_i64.checked_pow(u32::from(digits - 3))?),
        }
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Appends the token of a signed residual without a context.
pub(super) fn put_signed(out: &mut Vec<u8>, residual: i64) {
    put_residual(out, zigzag(residual));
}

/// The other direction.
pub(super) fn take_signed(reader: &mut Reader<'_>) -> Result<i64, BatchError> {
    let token = reader.u8()?;
    Ok(unzigzag(take_residual(token, reader)?))
}

fn put_residual(out: &mut Vec<u8>, residual: u64) {
    let (token, more, len) = match residual {
        0..BASE_2 => (residual, 0, 0),
        BASE_2..BASE_3 => {
            let rest = residual - BASE_2;
            (u64::from(TOKEN_2) + (rest >> 8), rest, 1)
        }
        BASE_3..BASE_4 => {
            let rest = residual - BASE_3;
            (u64::from(TOKEN_3) + (rest >> 16), rest, 2)
        }
        BASE_4..0x0100_0000 => (TOKEN_4.into(), residual, 3),
        0x0100_0000..0x1_0000_0000 => (TOKEN_5.into(), residual, 4),
        _ => (TOKEN_9.into(), residual, 8),
    };
    out.push(token.to_le_bytes()[0]);
    // the high byte first: it is the one that repeats
    out.extend(more.to_le_bytes().iter().take(len).rev());
}

fn take_residual(token: u8, reader: &mut Reader<'_>) -> Result<u64, BatchError> {
    let mut big_endian = |len: usize| -> Result<u64, BatchError> {
        let bytes = reader.bytes(len)?;
        Ok(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    };
    Ok(match token {
        0..TOKEN_2 => token.into(),
        TOKEN_2..TOKEN_3 => BASE_2 + (u64::from(token - TOKEN_2) << 8) + big_endian(1)?,
        TOKEN_3..TOKEN_4 => BASE_3 + (u64::from(token - TOKEN_3) << 16) + big_endian(2)?,
        TOKEN_4 => big_endian(3)?,
        TOKEN_5 => big_endian(4)?,
        TOKEN_9 => big_endian(8)?,
        _ => return Err(BatchError::Malformed("a token that is not a number's")),
    })
}

/// Which bytes differ, and by how much.
fn put_hex(out: &mut Vec<u8>, value: i64, last: i64) {
    if value == last {
        out.push(TOKEN_SAME);
        return;
    }
    out.push(TOKEN_HEX);
    let mask_at = out.len();
    out.push(0);
    let mut mask = 0;
    for (at, (new, old)) in value
        .to_be_bytes()
        .into_iter()
        .zip(last.to_be_bytes())
        .enumerate()
    {
        if new != old {
            mask |= 0x80 >> at;
            out.push(new.wrapping_sub(old));
        }
    }
    if let Some(place) = out.get_mut(mask_at) {
        *place = mask;
    }
}

fn take_hex(token: u8, last: i64, reader: &mut Reader<'_>) -> Result<i64, BatchError> {
    match token {
        TOKEN_SAME => Ok(last),
        TOKEN_HEX => {
            let mask = reader.u8()?;
            let mut bytes = last.to_be_bytes();
            for (at, byte) in bytes.iter_mut().enumerate() {
                if mask & (0x80 >> at) != 0 {
                    *byte = byte.wrapping_add(reader.u8()?);
                }
            }
            Ok(i64::from_be_bytes(bytes))
        }
        _ => Err(BatchError::Malformed("a token that is not a hexadecimal's")),
    }
}
