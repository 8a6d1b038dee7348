//! A slot's value as the tables remember it.

use crate::batch::split::{Format, mix};

/// Nothing, a text by its place in the store of texts, or a number by format and mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Value {
    kind: u16,
    bits: i64,
}

const TEXT: u16 = 1;
const NUMBER: u16 = 2;

impl Value {
    pub(super) const NONE: Self = Self { kind: 0, bits: 0 };

    pub(super) fn text(id: u32) -> Self {
        Self {
            kind: TEXT,
            bits: id.into(),
        }
    }

    /// Codes of formats stay below 2^16 - 2; any other would only spoil a prediction.
    pub(super) fn number(format: Format, mantissa: i64) -> Self {
        Self {
            kind: u16::try_from(format.code()).map_or(0, |code| code.saturating_add(NUMBER)),
            bits: mantissa,
        }
    }

    pub(super) fn is_none(self) -> bool {
        self.kind == 0
    }

    pub(super) fn as_text(self) -> Option<u32> {
        (self.kind == TEXT)
            .then(|| u32::try_from(self.bits).ok())
            .flatten()
    }

    pub(super) fn as_number(self) -> Option<(Format, i64)> {
        let code = self.kind.checked_sub(NUMBER)?;
        Some((Format::from_code(code.into())?, self.bits))
    }

    pub(super) fn hash(self) -> u64 {
        mix(self.bits.cast_unsigned(), u64::from(self.kind) + 3)
    }

    /// Kind and bits, for tables and snapshots.
    pub(super) fn parts(self) -> (u16, i64) {
        (self.kind, self.bits)
    }

    pub(super) fn from_parts(kind: u16, bits: i64) -> Self {
        Self { kind, bits }
    }
}
