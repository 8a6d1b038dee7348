//! When the next record of a device comes.

use super::coder::Coder;
use super::history::{narrow, signed_class, size_class};
use super::predictor::Contexts;
use super::snapshot::{Reader, Saved, Writer};
use super::state::State;
use super::symbols::Domain;
use crate::batch::BatchError;
use crate::batch::split::mix;

const PREDICTORS: usize = 6;
const ERROR_NEW: u16 = 64;
/// A tick that is off by more begins anew.
const MAX_JITTER_MS: i64 = 2000;

/// The rhythm of one device, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    count: u8,
    last_class: i8,
    last_ms: i64,
    step_ms: i32,
    /// Mean step, four bits behind the point.
    trend: i32,
    /// Where the regular tick stands less the last timestamp, four bits behind the point.
    level: i32,
    errors: [u16; PREDICTORS],
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            count: 0,
            last_class: 0,
            last_ms: 0,
            step_ms: 0,
            trend: 0,
            level: 0,
            errors: [ERROR_NEW; PREDICTORS],
        }
    }
}

impl Timing {
    /// When the next record is due if the last interval repeats.
    pub(super) fn due_ms(&self) -> i64 {
        self.last_ms.saturating_add(self.step_ms.into())
    }

    pub(super) fn last_ms(&self) -> i64 {
        self.last_ms
    }

    fn predictions(&self, all: &Self) -> [Option<i64>; PREDICTORS] {
        let mut found = [None; PREDICTORS];
        found[0] = Some(all.last_ms);
        found[5] = Some(all.last_ms.wrapping_add(all.step_ms.into()));
        if self.count > 0 {
            let last = self.last_ms;
            found[1] = Some(last.wrapping_add(i64::from(all.trend)));
            if self.count > 1 {
                found[2] = Some(last.wrapping_add(self.step_ms.into()));
                found[3] = Some(last.wrapping_add(i64::from(self.trend) >> 4));
            }
            let tick = i64::from(self.level) + i64::from(self.trend);
            found[4] = Some(last.wrapping_add(tick >> 4));
        }
        found
    }

    fn judge(&mut self, at_ms: i64, found: &[Option<i64>; PREDICTORS], shift: u32) {
        for (error, prediction) in self.errors.iter_mut().zip(found) {
            if let Some(prediction) = prediction {
                let size = size_class(at_ms.wrapping_sub(*prediction).unsigned_abs());
                let sum = (u32::from(*error) << shift) - u32::from(*error) + size;
                *error = u16::try_from((sum + (1 << (shift - 1)) - 1) >> shift).unwrap_or(u16::MAX);
            }
        }
    }

    /// The device's tick follows the regular rhythm and not the jitter.
    fn tick(&mut self, at_ms: i64) {
        let step = at_ms.saturating_sub(self.last_ms);
        if self.count == 0 {
            self.level = 0;
        } else {
            let scaled = step.saturating_mul(16);
            if self.count == 1 {
                self.trend = narrow(scaled);
            } else {
                let trend = i64::from(self.trend);
                self.trend = narrow(trend + (scaled.saturating_sub(trend) >> 3));
            }
            // where the tick was expected, less the new timestamp
            let expected = (i64::from(self.level) + i64::from(self.trend)).saturating_sub(scaled);
            self.level = if expected.saturating_abs() > MAX_JITTER_MS * 16 {
                0
            } else {
                narrow(expected - (expected >> 3))
            };
            self.step_ms = narrow(step);
        }
        self.last_ms = at_ms;
        self.count = self.count.saturating_add(1);
    }
}

impl Saved for Timing {
    fn save(&self, to: &mut Writer) {
        to.u8(self.count);
        to.i8(self.last_class);
        to.i64(self.last_ms);
        for number in [self.step_ms, self.trend, self.level] {
            to.i32(number);
        }
        self.errors.iter().for_each(|error| to.u16(*error));
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        *self = Self {
            count: from.u8()?,
            last_class: from.i8()?,
            last_ms: from.i64()?,
            step_ms: from.i32()?,
            trend: from.i32()?,
            level: from.i32()?,
            errors: from.u16s()?,
        };
        Ok(())
    }
}

impl State {
    /// Codes the timestamp of a record of this device, or of one without a number.
    pub(super) fn timestamp<C: Coder>(
        &mut self,
        coder: &mut C,
        at_ms: i64,
        device: Option<u16>,
        device_hash: u64,
    ) -> i64 {
        let all = self.recent.timing;
        let own = device
            .and_then(|id| self.devices.at(id))
            .map_or_else(Timing::default, |device| device.timing);
        let found = own.predictions(&all);
        let errors = if own.count >= 3 {
            own.errors
        } else {
            all.errors
        };
        let (mut first, mut second) = (0, 0);
        for i in 0..PREDICTORS {
            if found[i].is_some() && errors[i] < errors[first] {
                second = first;
                first = i;
            }
        }
        if first == 0 {
            second = 5;
        }
        let guess = found[first].unwrap_or(0);
        let other = found[second].unwrap_or(0);
        let class = |number: i64| u64::from(signed_class(number).cast_unsigned());
        let which = first as u64;
        let contexts = Contexts::new(
            which,
            [
                mix(which, 801),
                mix(u64::from(errors[first]) / 4, 802 | which << 16),
                mix(device_hash, 803),
                mix(u64::from(own.last_class.cast_unsigned()), 804),
                mix(class(guess.wrapping_sub(all.last_ms)) | which << 8, 805),
                mix(class(other.wrapping_sub(guess)), 806),
            ],
        );
        let off = at_ms.wrapping_sub(guess);
        let off = self
            .predictor
            .number(coder, off, &contexts, Domain::Timestamp);
        let at_ms = guess.wrapping_add(off);

        let all = &mut self.recent.timing;
        all.judge(at_ms, &found, 4);
        if own.count > 0 {
            // of all devices together the mean step is the last one of any
            all.trend = narrow(at_ms.wrapping_sub(own.last_ms));
        }
        all.step_ms = narrow(at_ms.wrapping_sub(all.last_ms));
        all.last_ms = at_ms;
        let mut own = own;
        own.errors = errors;
        own.judge(at_ms, &found, 3);
        own.last_class = signed_class(off);
        own.tick(at_ms);
        if let Some(id) = device {
            self.devices.spoke(id, own);
        }
        at_ms
    }
}
