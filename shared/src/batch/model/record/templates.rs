//! Templates: the one that a situation suggests, another one that is known, or a new one.

use super::{
    Budget, FLAG_FOLD_ID, FLAG_IS_FOLDED, FLAG_NEW_FOLD, FLAG_NEW_TEMPLATE, FLAG_TEMPLATE,
    FLAG_TEMPLATE_ID, MALFORMED, Scratch,
};
use crate::batch::BatchError;
use crate::batch::model::coder::Coder;
use crate::batch::model::fold::{self, Folds};
use crate::batch::model::predictor::Contexts;
use crate::batch::model::state::State;
use crate::batch::model::symbols::Domain;
use crate::batch::model::templates::Known;
use crate::batch::model::text::{self, Place};
use crate::batch::model::value::Value;
use crate::batch::split::{Split, SplitLimits, Template, hash_bytes, mix};

/// Marks in a template as the text coder sees them: bytes below 2 would be escaped.
const MARK: u8 = 1;
const CODED_MARK: u8 = 3;

impl State {
    /// True when the template fits the table, or folds to something that does.
    pub(super) fn can_code(&self, split: &Split, scratch: &mut Scratch) -> bool {
        let is_folded = fold::fold(&split.template, &mut scratch.folded, &mut scratch.counts);
        if is_folded && scratch.folded.len() <= fold::MAX_LEN {
            return true;
        }
        scratch.folded.clear();
        self.templates
            .accepts(split.template.len(), split.slots.len())
    }

    /// The value's template, taken out of the table.
    pub(super) fn template<C: Coder>(
        &mut self,
        coder: &mut C,
        template: &[u8],
        device: u64,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<Chosen, BatchError> {
        let of_device = mix(device, 0x7e);
        let last = self.memo.last(of_device).as_text().unwrap_or(0);
        let before = self.memo.last(mix(of_device, 1)).as_text().unwrap_or(0);
        let situations = [
            mix(mix(device, last.into()), mix(before.into(), 33)),
            mix(mix(device, last.into()), 34),
        ];
        let candidates = [
            self.memo.last(situations[0]).as_text(),
            self.memo.last(situations[1]).as_text(),
            Some(last),
        ];
        let want = if C::ENCODES {
            self.templates.find(template)
        } else {
            None
        };
        let contexts = [
            mix(u64::from(last), 7),
            mix(mix(last.into(), before.into()), 6),
            mix(device, 5),
        ];
        let mut found = None;
        let mut asked = [None; 3];
        for (i, candidate) in candidates.into_iter().enumerate() {
            let Some(candidate) = candidate.filter(|id| self.templates.at(*id).is_some()) else {
                continue;
            };
            if asked.contains(&Some(candidate)) {
                continue;
            }
            asked[i] = Some(candidate);
            let contexts = Contexts::new(0, contexts);
            let is = want == Some(candidate);
            if self.predictor.flag(coder, is, &contexts, FLAG_TEMPLATE + i) {
                found = Some(candidate);
                break;
            }
        }
        let id = match found {
            Some(id) => id,
            None => {
                match self.other_template(coder, template, want, device, last, budget, scratch)? {
                    Other::Known(id) => id,
                    Other::TooLarge(template) => {
                        return Ok(Chosen {
                            id: None,
                            known: Known::transient(template),
                        });
                    }
                }
            }
        };
        for situation in situations {
            self.memo.put(situation, Value::text(id));
        }
        self.memo.put(mix(of_device, 1), Value::text(last));
        self.memo.put(of_device, Value::text(id));
        let known = self.templates.take(id).ok_or(MALFORMED)?;
        Ok(Chosen {
            id: Some(id),
            known,
        })
    }

    fn other_template<C: Coder>(
        &mut self,
        coder: &mut C,
        template: &[u8],
        want: Option<u32>,
        device: u64,
        last: u32,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<Other, BatchError> {
        let contexts = Contexts::new(1, [20, mix(device, 21)]);
        let is_folded = !scratch.folded.is_empty();
        if self
            .predictor
            .flag(coder, is_folded, &contexts, FLAG_IS_FOLDED)
        {
            return self.folded_template(coder, device, last, budget, scratch);
        }
        let contexts = Contexts::new(0, [9, mix(device, 8)]);
        if self
            .predictor
            .flag(coder, want.is_none(), &contexts, FLAG_NEW_TEMPLATE)
        {
            let base = self.templates.at(last).map(|known| known.template.bytes());
            let base = base.unwrap_or_default().to_vec();
            let limit = budget.bytes.saturating_add(1);
            let bytes = self.template_text(coder, template, &base, limit)?;
            let template = Template::within(&bytes, SplitLimits::LARGE).ok_or(MALFORMED)?;
            if !self
                .templates
                .accepts(bytes.len(), template.columns().len())
            {
                return Err(MALFORMED);
            }
            return Ok(Other::Known(self.templates.insert(template)));
        }
        let len = u32::try_from(self.templates.len()).unwrap_or(u32::MAX);
        let bits = 32 - len.leading_zeros();
        let contexts = Contexts::new(0, [12, mix(device, 13), mix(last.into(), 14)]);
        let id = want.unwrap_or(0);
        let id = self
            .predictor
            .bits(coder, id, bits, &contexts, FLAG_TEMPLATE_ID);
        self.templates
            .at(id)
            .map(|_| Other::Known(id))
            .ok_or(MALFORMED)
    }

    fn folded_template<C: Coder>(
        &mut self,
        coder: &mut C,
        device: u64,
        last: u32,
        budget: &mut Budget,
        scratch: &mut Scratch,
    ) -> Result<Other, BatchError> {
        let want = if C::ENCODES {
            self.folds.find(&scratch.folded)
        } else {
            None
        };
        let contexts = Contexts::new(1, [22, mix(device, 23)]);
        let is_new = want.is_none();
        let id = if self.predictor.flag(coder, is_new, &contexts, FLAG_NEW_FOLD) {
            let base = self
                .folds
                .at(self.folds.latest())
                .unwrap_or_default()
                .to_vec();
            let limit = budget.bytes.saturating_mul(2).min(fold::MAX_LEN);
            let folded = std::mem::take(&mut scratch.folded);
            let bytes = self.template_text(coder, &folded, &base, limit)?;
            self.folds.insert(&bytes)
        } else {
            let contexts = Contexts::new(1, [24, mix(device, 25), mix(last.into(), 26)]);
            let id = want.unwrap_or(0);
            self.predictor
                .bits(coder, id, Folds::ID_BITS, &contexts, FLAG_FOLD_ID)
        };
        self.folds.touch(id);
        let folded = self.folds.at(id).ok_or(MALFORMED)?.to_vec();
        let hash = hash_bytes(&folded);
        let limit = budget.bytes.saturating_add(budget.slots.min(1 << 20));
        let limit = limit.min(SplitLimits::LARGE.template_len);
        let mut counts = scratch.counts.iter();
        let bytes = fold::expand(&folded, limit, &mut |place| {
            budget.slots = budget.slots.checked_sub(1).ok_or(MALFORMED)?;
            let here = mix(hash, place as u64);
            let before = self.memo.last(here).as_text().unwrap_or(0);
            let contexts = Contexts::new(
                here,
                [
                    here,
                    mix(here, device),
                    mix(here, u64::from(before) << 8 | 1),
                ],
            );
            let count = counts.next().copied().unwrap_or(1);
            let off = i64::from(count) - 1;
            let off = self.predictor.number(coder, off, &contexts, Domain::Turns);
            let count = u32::try_from(off.saturating_add(1)).map_err(|_| MALFORMED)?;
            self.memo.put(here, Value::text(count));
            Ok(count)
        })?;
        if let Some(id) = self.templates.find(&bytes) {
            return Ok(Other::Known(id));
        }
        let template = Template::within(&bytes, SplitLimits::LARGE).ok_or(MALFORMED)?;
        if !self
            .templates
            .accepts(bytes.len(), template.columns().len())
        {
            return Ok(Other::TooLarge(template));
        }
        Ok(Other::Known(self.templates.insert(template)))
    }

    /// A template as text; `base` is one like it.
    fn template_text<C: Coder>(
        &mut self,
        coder: &mut C,
        template: &[u8],
        base: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, BatchError> {
        let swap = |bytes: &[u8], from: u8, to: u8| -> Vec<u8> {
            let swap = |byte: &u8| if *byte == from { to } else { *byte };
            bytes.iter().map(swap).collect()
        };
        let base = swap(base, MARK, CODED_MARK);
        let place = Place {
            column: 4242,
            element: 0,
            previous: 0,
            last: &base,
            follower: &[],
        };
        let input = swap(template, MARK, CODED_MARK);
        let mut out = Vec::new();
        text::code(
            coder,
            &mut self.predictor,
            &mut self.texts,
            &input,
            &place,
            limit,
            &mut out,
        )?;
        Ok(if C::ENCODES {
            template.to_vec()
        } else {
            swap(&out, CODED_MARK, MARK)
        })
    }
}

/// A template in use.
pub(super) struct Chosen {
    /// Its number, if it has one.
    pub(super) id: Option<u32>,
    pub(super) known: Known,
}

/// A template that no situation suggested.
enum Other {
    Known(u32),
    /// Not worth its place in the table.
    TooLarge(Template),
}
