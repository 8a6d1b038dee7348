//! One slot of a record: first whether it is what one of five situations suggests, else a number by its
//! distance from the best prediction, else a text.
#![expect(
    clippy::cast_possible_truncation,
    reason = "places in alphabets and digits of a number"
)]

use super::coder::Coder;
use super::columns::Kind;
use super::history::{History, PREDICTORS, narrow, signed_class, size_class};
use super::predictor::Contexts;
use super::state::State;
use super::symbols::Domain;
use super::templates::{Cell, Known, MAX_RECORDS, TEXT_UNIT};
use super::text::{self, Place};
use super::texts;
use super::value::Value;
use crate::batch::BatchError;
use crate::batch::split::{Format, mix, parse, print, rescale};

const CANDIDATES: usize = 5;
/// The one that this thing said last, on any device.
const ANY_DEVICE: usize = 3;
/// Order in which candidates are asked, and at most how many.
const ORDER: [usize; CANDIDATES] = [4, 1, 0, 2, 3];
const MAX_ASKED: usize = 3;
/// Candidates are not asked in columns where they are right less often, of 65,536.
const MIN_HITS: u16 = 1300;

/// Situations are not added for such columns, but for one value in eight.
const MIN_HITS_TO_ADD: u16 = 6500;

const FLAG_CANDIDATE: usize = 0;
const FLAG_IS_NUMBER: usize = 16;
const FLAG_SAME_FORMAT: usize = 20;
const FLAG_FORMAT: usize = 21;
const FLAG_KNOWN: usize = 22;
const FLAG_COARSE: usize = 23;

/// The record around a slot, as far as it was coded.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) device: u64,
    pub(super) timestamp_ms: i64,
    /// Hash of the value before.
    previous: u64,
    /// The same, or how far off the last two numbers were when it is never the same twice.
    previous_trait: u64,
    previous_class: i8,
    /// Which candidate was right in the slot before.
    previous_hit: usize,
    previous_number: Option<(u8, i64)>,
    /// How unlike this record each remembered one is.
    distances: [u32; MAX_RECORDS],
    pub(super) cells: Vec<Cell>,
}

impl Row {
    pub(super) fn new(device: u64, timestamp_ms: i64) -> Self {
        Self {
            device,
            timestamp_ms,
            previous: 0,
            previous_trait: 0,
            previous_class: 0,
            previous_hit: 0,
            previous_number: None,
            distances: [0; MAX_RECORDS],
            cells: Vec::new(),
        }
    }
}

/// Which slot this is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) column: u64,
    pub(super) element: u64,
    /// The template and the place in it, if it is one's.
    pub(super) known: Option<(&'a Known, usize)>,
}

/// Hashes and places of all that is known about a slot.
struct Seat {
    device_column: u64,
    /// Column and element.
    statistics: u64,
    history: usize,
    column: usize,
    element_column: usize,
    /// Situations in the memo.
    own: u64,
    any_element: u64,
    after_previous: u64,
    any_device: u64,
    after_last: u64,
    after_two: u64,
}

impl State {
    /// Codes the next slot; a decoder appends its bytes to `out`, at most `limit`.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when the bytes were not made by an encoder.
    pub(super) fn field<C: Coder>(
        &mut self,
        coder: &mut C,
        token: &[u8],
        slot: Slot<'_>,
        row: &mut Row,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<Value, BatchError> {
        let seat = self.seat(&slot, row);
        let history = *self.histories.at(seat.history);
        let candidates = [
            history.last,
            self.memo.last(seat.after_two),
            self.memo.last(seat.after_previous),
            self.memo.last(seat.any_device),
            self.memo.last(seat.after_last),
        ];
        let kind = self.columns.at(seat.element_column).kind;
        let format = self.columns.at(seat.element_column).format;
        let want = if C::ENCODES {
            self.recognise(token, kind, format)
        } else {
            Value::NONE
        };
        let (hit, found) = self.ask(coder, &slot, &seat, row, &history, &candidates, want);
        let mut class = 0;
        let value = match found {
            Some(value) => {
                self.refer(&seat, row, value);
                if let Some(id) = value.as_text() {
                    self.texts.touch(id);
                }
                if !C::ENCODES {
                    self.print(value, limit, out)?;
                }
                value
            }
            None => {
                let kinds = Contexts::new(
                    slot.column,
                    [
                        mix(slot.column, 61),
                        mix(seat.statistics, 62),
                        mix(mix(slot.column, row.previous), 63),
                    ],
                );
                let flag = FLAG_IS_NUMBER + kind as usize;
                let is_number =
                    self.predictor
                        .flag(coder, want.as_number().is_some(), &kinds, flag);
                if is_number {
                    let (value, found) =
                        self.numeric(coder, &slot, &seat, row, &history, &candidates, want)?;
                    class = found;
                    if !C::ENCODES {
                        self.print(value, limit, out)?;
                    }
                    value
                } else {
                    self.textual(coder, token, &slot, row, &candidates, &seat, limit, out)?
                }
            }
        };
        self.learn(&slot, &seat, row, &history, &candidates, value);
        row.previous = value.hash();
        row.previous_trait = if hit < CANDIDATES || value.as_number().is_none() {
            row.previous
        } else {
            let classes = [row.previous_class, class].map(i8::cast_unsigned);
            mix(u64::from(u16::from_le_bytes(classes)), 0x7a)
        };
        row.previous_class = class;
        row.previous_hit = hit;
        if let Some((format, number)) = value.as_number() {
            row.previous_number = Some((format.unit(), number));
        }
        Ok(value)
    }

    fn seat(&mut self, slot: &Slot<'_>, row: &Row) -> Seat {
        let device_column = mix(row.device, slot.column);
        let statistics = mix(slot.column, slot.element);
        let own = mix(device_column, mix(slot.element, 1));
        let history = self.history(own, slot);
        let column = self.columns.place(slot.column);
        let element_column = if slot.element == 0 {
            column
        } else {
            self.columns.place(statistics)
        };
        let known = self.histories.at(history);
        let last = known.last.hash();
        Seat {
            device_column,
            statistics,
            history,
            column,
            element_column,
            own,
            any_element: mix(device_column, 2),
            after_previous: mix(device_column, mix(row.previous, 3)),
            any_device: mix(slot.column, mix(slot.element, 4)),
            after_last: mix(statistics, mix(last, mix(row.previous, 21))),
            after_two: mix(
                device_column,
                mix(
                    slot.element,
                    mix(last, mix(i64::from(known.step).cast_unsigned(), 22)),
                ),
            ),
        }
    }

    /// The place of the slot's history. Things named by an element may be many and come once: they get a
    /// history when they come back.
    fn history(&mut self, own: u64, slot: &Slot<'_>) -> usize {
        let once = if slot.element == 0 {
            Value::NONE
        } else {
            self.memo.last(own)
        };
        let may_add = slot.element == 0 || !once.is_none();
        let Some(place) = self.histories.place(own, may_add) else {
            return self.histories.passing();
        };
        let history = self.histories.at_mut(place);
        if history.last.is_none() && !once.is_none() {
            history.update(once);
        }
        place
    }

    /// The value of a token; none when it is a text without a number.
    fn recognise(&self, token: &[u8], kind: Kind, format: Option<Format>) -> Value {
        let text = || self.texts.find(token).map_or(Value::NONE, Value::text);
        if kind == Kind::Text && token.len() > 3 && !token.contains(&b'.') {
            return text();
        }
        match parse(token, format) {
            // letters and digits that stand for bits are rarely a quantity
            None | Some((Format::Hex { .. }, _)) => text(),
            Some((format, number)) => Value::number(format, number),
        }
    }

    fn ask<C: Coder>(
        &mut self,
        coder: &mut C,
        slot: &Slot<'_>,
        seat: &Seat,
        row: &Row,
        history: &History,
        candidates: &[Value; CANDIDATES],
        want: Value,
    ) -> (usize, Option<Value>) {
        let column = self.columns.at(seat.column);
        if column.count >= 64 && column.hits <= MIN_HITS {
            return (CANDIDATES, None);
        }
        let mut agree = 0_u64;
        for (i, candidate) in candidates.iter().enumerate() {
            let is_there = !candidate.is_none();
            agree |= u64::from(is_there && *candidate == candidates[0]) << i;
            agree |= u64::from(is_there) << (i + 5);
        }
        let mut asked = [Value::NONE; MAX_ASKED];
        let mut count = 0;
        for i in ORDER {
            let candidate = candidates[i];
            if candidate.is_none() || asked.contains(&candidate) {
                continue;
            }
            asked[count] = candidate;
            count += 1;
            let repeats = u64::from(history.repeats);
            let which = i as u64;
            let contexts = Contexts::new(
                slot.column,
                [
                    mix(slot.column, which),
                    mix(seat.statistics, which << 8 | repeats & 7),
                    mix(seat.device_column, which << 8 | repeats),
                    mix(slot.column, which << 16 | agree << 4 | 7),
                    mix(mix(slot.column, candidate.hash()), which),
                    mix(
                        mix(slot.column, row.previous_hit as u64),
                        which | (repeats & 1) << 8,
                    ),
                ],
            );
            let flag = FLAG_CANDIDATE + (count - 1) * CANDIDATES + i;
            if self
                .predictor
                .flag(coder, want == candidate, &contexts, flag)
            {
                return (i, Some(candidate));
            }
            if count == MAX_ASKED {
                break;
            }
        }
        (CANDIDATES, None)
    }

    fn print(&self, value: Value, limit: usize, out: &mut Vec<u8>) -> Result<(), BatchError> {
        let start = out.len();
        match (value.as_number(), value.as_text()) {
            (Some((format, number)), _) => print(format, number, out),
            (None, Some(id)) => self.texts.copy(id, out),
            (None, None) => {}
        }
        if out.len() - start > limit {
            return Err(BatchError::Malformed("value is longer than announced"));
        }
        Ok(())
    }

    /// References that follow a value which was not predicted as a number.
    fn refer(&mut self, seat: &Seat, row: &Row, value: Value) {
        let Some((format, number)) = value.as_number() else {
            return;
        };
        let history = self.histories.at_mut(seat.history);
        if let Some(clock) = clock_reference(format, row.timestamp_ms, number) {
            history.clock = number.wrapping_sub(clock);
        }
        if let Some((_, previous)) = row
            .previous_number
            .filter(|(unit, _)| *unit == format.unit())
        {
            history.sibling = narrow(number.wrapping_sub(previous));
        }
    }

    fn predictions(
        &self,
        slot: &Slot<'_>,
        seat: &Seat,
        row: &Row,
        history: &History,
        candidates: &[Value; CANDIDATES],
        format: Format,
    ) -> [Option<i64>; PREDICTORS] {
        let unit = format.unit();
        let of = |value: Value| {
            let (format, number) = value.as_number()?;
            rescale(number, format.unit(), unit)
        };
        let mut found = [None; PREDICTORS];
        if let Some(last) =
            rescale(history.number, history.unit, unit).filter(|_| history.count > 0)
        {
            found[0] = Some(last);
            if history.unit == unit {
                if history.count > 1 {
                    let step = self.columns.at(seat.column).step;
                    found[1] = Some(last.wrapping_add(history.step.into()));
                    found[9] = Some(last.wrapping_add(step));
                    found[10] = Some(last.wrapping_add(i64::from(history.trend >> 4)));
                }
                let [fast, slow] = history.means;
                found[2] = Some(last.wrapping_add(i64::from(fast >> 4)));
                found[3] = Some(last.wrapping_add(i64::from(slow >> 4)));
            }
        }
        if slot.element != 0 {
            found[4] = of(self.memo.last(seat.any_element));
        }
        found[5] = of(candidates[2]);
        if let Some((_, previous)) = row.previous_number.filter(|(with, _)| *with == unit) {
            found[6] = Some(previous.wrapping_add(history.sibling.into()));
        }
        let near = found[0].or(found[4]).unwrap_or(0);
        if let Some(clock) = clock_reference(format, row.timestamp_ms, near) {
            found[7] = Some(clock.wrapping_add(history.clock));
        }
        found[8] = of(candidates[3]);
        if let Some((known, place)) = slot.known {
            neighbours(known, place, row, unit, &mut found);
        }
        found
    }

    fn numeric<C: Coder>(
        &mut self,
        coder: &mut C,
        slot: &Slot<'_>,
        seat: &Seat,
        row: &Row,
        history: &History,
        candidates: &[Value; CANDIDATES],
        want: Value,
    ) -> Result<(Value, i8), BatchError> {
        let format = self.format(coder, slot, seat, want)?;
        let number = want.as_number().map_or(0, |(_, number)| number);
        let found = self.predictions(slot, seat, row, history, candidates, format);
        let errors = if history.count >= 3 {
            history.errors
        } else {
            self.columns.at(seat.column).errors
        };
        let guess = Guess::best(&found, &errors);
        let (value, class) = self.distance(coder, slot, seat, row, history, &guess, format, number);
        self.columns.at_mut(seat.column).judge(value, &found);
        let known = self.histories.at_mut(seat.history);
        known.errors = errors;
        known.judge(value, &found);
        known.last_class = class;
        let value = Value::number(format, value);
        self.refer(seat, row, value);
        Ok((value, class))
    }

    fn format<C: Coder>(
        &mut self,
        coder: &mut C,
        slot: &Slot<'_>,
        seat: &Seat,
        want: Value,
    ) -> Result<Format, BatchError> {
        let wanted = want.as_number().map(|(format, _)| format);
        let contexts = Contexts::new(
            slot.column,
            [mix(slot.column, 65), mix(seat.statistics, 66)],
        );
        if let Some(format) = self.columns.at(seat.element_column).format {
            let is_same = wanted == Some(format);
            if self
                .predictor
                .flag(coder, is_same, &contexts, FLAG_SAME_FORMAT)
            {
                return Ok(format);
            }
        }
        let code = wanted.map_or(0, Format::code);
        let contexts = Contexts::new(1, [67]);
        let code = self.predictor.bits(coder, code, 16, &contexts, FLAG_FORMAT);
        Format::from_code(code).ok_or(BatchError::Malformed("unknown format of a number"))
    }

    fn distance<C: Coder>(
        &mut self,
        coder: &mut C,
        slot: &Slot<'_>,
        seat: &Seat,
        row: &Row,
        history: &History,
        guess: &Guess,
        format: Format,
        number: i64,
    ) -> (i64, i8) {
        let alphabet = self.columns.at(seat.column).alphabet.numbers(format.unit());
        if !alphabet.is_empty() {
            let place = nearest(alphabet, guess.first);
            let target = alphabet.binary_search(&number);
            let second = guess.second.map_or(100, |second| {
                let at = alphabet.partition_point(|n| *n < second);
                signed_class(at as i64 - place as i64)
            });
            let contexts = Contexts::new(
                slot.column,
                [
                    mix(slot.column, 71),
                    mix(seat.statistics, 72),
                    mix(mix(slot.column, guess.error / 4), 73),
                ],
            );
            let here = alphabet[place];
            if self
                .predictor
                .flag(coder, target.is_ok(), &contexts, FLAG_KNOWN)
            {
                let contexts = guess.contexts(300, slot, seat, row, history, here, second);
                let at = target.unwrap_or(0) as i64 - place as i64;
                let at = self
                    .predictor
                    .number(coder, at, &contexts, Domain::Alphabet);
                let alphabet = self.columns.at(seat.column).alphabet.numbers(format.unit());
                let at = (place as i64)
                    .saturating_add(at)
                    .clamp(0, alphabet.len() as i64 - 1);
                let value = alphabet[usize::try_from(at).unwrap_or(0)];
                return (value, signed_class(value.wrapping_sub(guess.first)));
            }
        }
        let second = guess
            .second
            .map_or(100, |second| signed_class(second.wrapping_sub(guess.first)));
        let quantum = self.quantum(seat, format, guess.first);
        let mut is_coarse = false;
        if quantum > 1 {
            let contexts = Contexts::new(
                slot.column,
                [mix(slot.column, 75), mix(seat.statistics, 76)],
            );
            let is = number % quantum == 0;
            is_coarse = self.predictor.flag(coder, is, &contexts, FLAG_COARSE);
        }
        if is_coarse {
            let first = guess.first / quantum;
            let log = u64::from(quantum.ilog10());
            let guess = guess.coarser(13 * log);
            let contexts = guess.contexts(500, slot, seat, row, history, 0, second);
            let off = number / quantum - first;
            let off = self
                .predictor
                .number(coder, off, &contexts, Domain::Residual);
            let value = first.wrapping_add(off).wrapping_mul(quantum);
            return (value, signed_class(off));
        }
        let contexts = guess.contexts(500, slot, seat, row, history, 0, second);
        let off = number.wrapping_sub(guess.first);
        let off = self
            .predictor
            .number(coder, off, &contexts, Domain::Residual);
        (guess.first.wrapping_add(off), signed_class(off))
    }

    /// What numbers near this one are multiples of, when the column's have so many significant digits.
    fn quantum(&self, seat: &Seat, format: Format, near: i64) -> i64 {
        let digits = u32::from(self.columns.at(seat.element_column).digits);
        let has_point = matches!(format, Format::Trimmed(_) | Format::TrimmedToOne(_));
        let len = near
            .unsigned_abs()
            .checked_ilog10()
            .map_or(0, |log| log + 1);
        if !has_point || digits == 0 || len <= digits {
            return 1;
        }
        10_i64.pow((len - digits).min(17))
    }

    fn textual<C: Coder>(
        &mut self,
        coder: &mut C,
        token: &[u8],
        slot: &Slot<'_>,
        row: &Row,
        candidates: &[Value; CANDIDATES],
        seat: &Seat,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<Value, BatchError> {
        let (mut last, mut follower) = (Vec::new(), Vec::new());
        let other = self.memo.last(seat.any_element);
        if let Some(id) = candidates[0].as_text().or(other.as_text()) {
            self.texts.copy(id, &mut last);
        }
        if let Some(id) = candidates[2].as_text().or(candidates[3].as_text()) {
            self.texts.copy(id, &mut follower);
        }
        let place = Place {
            column: slot.column,
            element: slot.element,
            previous: row.previous,
            last: &last,
            follower: &follower,
        };
        let from = out.len();
        let start = text::code(
            coder,
            &mut self.predictor,
            &mut self.texts,
            token,
            &place,
            limit,
            out,
        )?;
        let text = if C::ENCODES { token } else { &out[from..] };
        Ok(self.name(text, start))
    }

    /// The value of a text that was coded from `start` on.
    fn name(&mut self, text: &[u8], start: u32) -> Value {
        if text.len() > texts::MAX_LEN || text.iter().any(|byte| *byte < 2) {
            return Value::NONE;
        }
        Value::text(self.texts.insert(text, start))
    }

    fn learn(
        &mut self,
        slot: &Slot<'_>,
        seat: &Seat,
        row: &mut Row,
        history: &History,
        candidates: &[Value; CANDIDATES],
        value: Value,
    ) {
        let was_candidate = !value.is_none() && candidates.contains(&value);
        self.columns.update(seat.column, value, was_candidate);
        if let Some((format, number)) = value.as_number()
            && history.count > 0
            && history.unit == format.unit()
        {
            self.columns.at_mut(seat.column).step = number.wrapping_sub(history.number);
        }
        if seat.element_column != seat.column {
            let (kind, format) = {
                let column = self.columns.at(seat.column);
                (column.kind, column.format)
            };
            let own = self.columns.at_mut(seat.element_column);
            own.kind = kind;
            if kind == Kind::Number {
                own.format = format;
            }
        }
        if let Some((_, number)) = value.as_number() {
            let own = self.columns.at_mut(seat.element_column);
            own.digits = own.digits.max(significant(number));
        }
        if self.histories.is_passing(seat.history) {
            // what the same thing said on another device tells as much, and takes one entry for all
            let is_own = candidates[ANY_DEVICE] != value;
            self.memo.put_if(seat.own, value, is_own);
        }
        self.histories.at_mut(seat.history).update(value);
        // a situation is worth an entry when nothing else foretold the value, and the column's values are
        // foretold now and then
        let column = self.columns.at(seat.column);
        let is_new = column.count < 64 || column.count.is_multiple_of(8);
        let is_open = column.hits > MIN_HITS_TO_ADD || is_new;
        let may_add = !was_candidate && is_open;
        if slot.element != 0 {
            self.memo.put(seat.any_element, value);
        }
        self.memo.put(seat.any_device, value);
        self.memo.put_if(seat.after_previous, value, may_add);
        self.memo.put_if(seat.after_last, value, may_add);
        self.memo.put_if(seat.after_two, value, may_add);
        let cell = match value.as_number() {
            Some((format, number)) => (format.unit(), number),
            None => (TEXT_UNIT, value.as_text().map_or(-1, i64::from)),
        };
        if let Some((known, place)) = slot.known {
            let typical = u32::from(self.columns.at(seat.column).errors[0]);
            for (distance, other) in row.distances.iter_mut().zip(known.cells(place)) {
                *distance = *distance - *distance / 4 + unlike(cell, other, typical);
            }
        }
        row.cells.push(cell);
    }
}

/// How unlike two cells are, in sixteenths of a bit beyond what is typical.
fn unlike((unit, number): Cell, (other_unit, other): Cell, typical: u32) -> u32 {
    if unit != other_unit {
        return 200;
    }
    if unit == TEXT_UNIT {
        return if number == other { 0 } else { 100 };
    }
    size_class(number.wrapping_sub(other).unsigned_abs()).saturating_sub(typical.saturating_sub(24))
}

/// Predictions from the remembered records that are most like this one.
fn neighbours(
    known: &Known,
    place: usize,
    row: &Row,
    unit: u8,
    found: &mut [Option<i64>; PREDICTORS],
) {
    let mut best = [(u32::MAX, 0_i64); 4];
    let len = known.devices.len();
    if len == 0 {
        return;
    }
    let mut cells = [(0, 0); MAX_RECORDS];
    for (cell, other) in cells.iter_mut().zip(known.cells(place)) {
        *cell = other;
    }
    for age in 0..len {
        let at = known.back(age);
        let (other_unit, number) = cells[at];
        if other_unit != unit {
            continue;
        }
        let other = if known.devices[at] == row.device {
            0
        } else {
            3
        };
        let distance = row.distances[at] * 4 + other;
        if distance < best[3].0 {
            best[3] = (distance, number);
            let mut i = 3;
            while i > 0 && best[i].0 < best[i - 1].0 {
                best.swap(i, i - 1);
                i -= 1;
            }
        }
    }
    if best[0].0 < u32::MAX {
        found[11] = Some(best[0].1);
    }
    if best[3].0 < u32::MAX {
        let sum: i128 = best.iter().map(|(_, number)| i128::from(*number)).sum();
        let mean = i64::try_from((sum + 2) >> 2).unwrap_or(0);
        found[12] = Some(mean);
        if let Some(own) = found[2] {
            found[13] = i64::try_from((i128::from(own) + i128::from(mean)) >> 1).ok();
        }
    }
}

/// The two best predictions and how good the best was so far.
struct Guess {
    first: i64,
    second: Option<i64>,
    /// Quarter of the mean size of its error.
    error: u64,
    /// Where other predictions lie from the best, roughly.
    views: [u64; 2],
}

impl Guess {
    fn best(found: &[Option<i64>; PREDICTORS], errors: &[u16; PREDICTORS]) -> Self {
        let mut first: Option<(u16, i64)> = None;
        let mut second: Option<(u16, i64)> = None;
        for (prediction, error) in found.iter().zip(errors) {
            let Some(prediction) = prediction else {
                continue;
            };
            if first.is_none_or(|(best, _)| *error < best) {
                second = first;
                first = Some((*error, *prediction));
            } else if second.is_none_or(|(best, _)| *error < best) {
                second = Some((*error, *prediction));
            }
        }
        let (error, best) = first.unwrap_or((0, 0));
        let view = |i: usize| {
            found[i].map_or(100, |other| {
                signed_class(other.wrapping_sub(best)).cast_unsigned()
            })
        };
        let views = |a, b| u64::from(u16::from_le_bytes([view(a), view(b)]));
        Self {
            first: best,
            second: second.map(|(_, prediction)| prediction),
            error: u64::from(error) / 4,
            views: [views(0, 12), views(3, 11)],
        }
    }

    /// The same among numbers so much coarser.
    fn coarser(&self, by: u64) -> Self {
        Self {
            error: self.error.saturating_sub(by),
            ..*self
        }
    }

    fn contexts(
        &self,
        domain: u64,
        slot: &Slot<'_>,
        seat: &Seat,
        row: &Row,
        history: &History,
        here: i64,
        second: i8,
    ) -> Contexts {
        let error = self.error;
        let class = |class: i8| u64::from(class.cast_unsigned());
        Contexts::new(
            slot.column,
            [
                mix(seat.statistics, domain),
                mix(seat.statistics, mix(error, domain + 1)),
                mix(seat.device_column, mix(slot.element, domain + 2)),
                mix(slot.column, mix(class(row.previous_class), domain + 3)),
                mix(
                    seat.statistics,
                    mix(class(history.last_class) | (error / 4) << 8, domain + 4),
                ),
                mix(seat.statistics, mix(here.cast_unsigned(), domain + 5)),
                mix(mix(slot.column, class(second)), mix(error / 2, domain + 6)),
                mix(mix(slot.column, row.previous_trait), domain + 7),
                mix(mix(slot.column, self.views[0]), mix(error / 4, domain + 8)),
                mix(mix(seat.statistics, self.views[1]), domain + 9),
            ],
        )
    }
}

/// Decimal digits without the zeros at the end.
fn significant(number: i64) -> u8 {
    let mut rest = number.unsigned_abs();
    while rest >= 10 && rest.is_multiple_of(10) {
        rest /= 10;
    }
    rest.checked_ilog10().map_or(0, |log| log as u8 + 1)
}

/// Place of the number that is nearest; the alphabet is not empty.
fn nearest(alphabet: &[i64], to: i64) -> usize {
    let at = alphabet
        .partition_point(|n| *n < to)
        .min(alphabet.len() - 1);
    let off = |at: usize| alphabet[at].wrapping_sub(to).unsigned_abs();
    if at > 0 && off(at) > off(at - 1) {
        at - 1
    } else {
        at
    }
}

/// The record's timestamp in the unit of this number, when it can be a time near it.
fn clock_reference(format: Format, timestamp_ms: i64, near: i64) -> Option<i64> {
    match format {
        Format::DateTime { decimals, .. } => Some(if decimals >= 3 {
            timestamp_ms.wrapping_mul(10_i64.pow(u32::from(decimals.min(12)) - 3))
        } else {
            timestamp_ms.div_euclid(10_i64.pow(3 - u32::from(decimals)))
        }),
        Format::TimeOfDay { .. } | Format::Padded(_) | Format::Hex { .. } => None,
        Format::Fixed(_) | Format::Trimmed(_) | Format::TrimmedToOne(_) => {
            let near = i128::from(near) * 10;
            [(1, 1), (1, 1000), (1000, 1), (1_000_000, 1)]
                .into_iter()
                .find(|(times, by)| {
                    let time = i128::from(timestamp_ms) * times / by;
                    near > time * 7 && near < time * 14
                })
                .map(|(times, by)| {
                    let time = i128::from(timestamp_ms) * times;
                    i64::try_from(time.div_euclid(by)).unwrap_or(0)
                })
        }
    }
}
