//! Headers: their names and values, like slots of a record of their own.

use super::{Budget, FLAG_NULL_HEADER, MALFORMED};
use crate::batch::BatchError;
use crate::batch::model::coder::Coder;
use crate::batch::model::field::{Row, Slot};
use crate::batch::model::predictor::Contexts;
use crate::batch::model::state::State;
use crate::batch::model::symbols::Domain;
use crate::batch::split::{hash_bytes, mix};
use crate::record::Header;

impl State {
    pub(super) fn headers<C: Coder>(
        &mut self,
        coder: &mut C,
        headers: &[Header<'_>],
        device: u64,
        at_ms: i64,
        budget: &mut Budget,
    ) -> Result<Vec<OwnedHeader>, BatchError> {
        let contexts = Contexts::new(1, [941, mix(device, 942)]);
        let count = i64::try_from(headers.len()).unwrap_or(i64::MAX);
        let count = self
            .predictor
            .number(coder, count, &contexts, Domain::Count);
        let count = usize::try_from(count).map_err(|_| MALFORMED)?;
        budget.slots = budget.slots.checked_sub(count).ok_or(MALFORMED)?;
        let mut decoded = Vec::new();
        let mut row = Row::new(mix(device, 78), at_ms);
        for i in 0..count {
            let header = headers.get(i);
            let mut name = Vec::new();
            let slot = |column| Slot {
                column,
                element: 0,
                known: None,
            };
            let token = header.map_or(&[][..], |header| header.name);
            let at = slot(mix(943, i.min(16) as u64));
            self.field(coder, token, at, &mut row, budget.bytes, &mut name)?;
            let column = mix(944, hash_bytes(if C::ENCODES { token } else { &name }));
            budget.bytes = budget.bytes.saturating_sub(name.len());
            let value = header.and_then(|header| header.value);
            let contexts = Contexts::new(0, [mix(column, 945)]);
            let is_null = self
                .predictor
                .flag(coder, value.is_none(), &contexts, FLAG_NULL_HEADER);
            let mut out = Vec::new();
            if !is_null {
                let token = value.unwrap_or_default();
                self.field(coder, token, slot(column), &mut row, budget.bytes, &mut out)?;
                budget.bytes = budget.bytes.saturating_sub(out.len());
            }
            if !C::ENCODES {
                decoded.push(OwnedHeader {
                    name,
                    value: (!is_null).then_some(out),
                });
            }
        }
        Ok(decoded)
    }
}

/// A decoded header.
pub(super) struct OwnedHeader {
    name: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl OwnedHeader {
    pub(super) fn view(&self) -> Header<'_> {
        Header {
            name: &self.name,
            value: self.value.as_deref(),
        }
    }
}
