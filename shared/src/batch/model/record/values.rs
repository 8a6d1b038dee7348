//! Values: split into slots, or whole.

use super::{Budget, FLAG_ASIDE, FLAG_IS_NULL, FLAG_IS_SPLIT, FLAG_PACKED, MALFORMED, Scratch};
use crate::batch::BatchError;
use crate::batch::model::coder::Coder;
use crate::batch::model::field::{Row, Slot};
use crate::batch::model::predictor::Contexts;
use crate::batch::model::state::State;
use crate::batch::model::symbols::Domain;
use crate::batch::model::templates::Known;
use crate::batch::model::text::{self, Place};
use crate::batch::split::{Split, SplitLimits, ihex, mix, tokenize_within};

/// Longest value that is modelled although it doesn't split.
const MAX_MODELLED_LEN: usize = 2048;

impl State {
    /// Codes a value; a decoder finds it in the scratch. True when it is null.
    pub(super) fn value<C: Coder>(
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
        let is_long = |value: &&[u8]| C::ENCODES && value.len() > MAX_MODELLED_LEN;
        let packed = value.filter(is_long).and_then(ihex::pack);
        let can_split = C::ENCODES
            && packed.is_none()
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
                let value = value.unwrap_or_default();
                self.whole_value(coder, value, packed.as_deref(), budget, scratch)?;
            }
        }
        scratch.split = split;
        Ok(is_null)
    }

    /// A value that doesn't split: as text, or aside when it is long; `packed` is what goes aside in its place.
    fn whole_value<C: Coder>(
        &mut self,
        coder: &mut C,
        value: &[u8],
        packed: Option<&[u8]>,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<(), BatchError> {
        let is_long = value.len() > MAX_MODELLED_LEN;
        let contexts = Contexts::new(0, [951]);
        if self.predictor.flag(coder, is_long, &contexts, FLAG_ASIDE) {
            let contexts = Contexts::new(2, [953]);
            let is_packed = self
                .predictor
                .flag(coder, packed.is_some(), &contexts, FLAG_PACKED);
            let value = packed.unwrap_or(value);
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
            if is_packed {
                scratch.value = ihex::unpack(bytes, budget.bytes)?;
            } else {
                scratch.value.clear();
                scratch.value.extend_from_slice(bytes);
            }
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
}
