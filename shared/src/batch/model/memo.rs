//! What came last in a situation: a table from the hash of the situation to a value. A new situation
//! overwrites the one that had its place.

use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use super::value::Value;
use crate::batch::BatchError;

/// Bytes of one entry.
const ENTRY_LEN: usize = 12;

/// The table; an entry is 16 check bits and the kind, then the bits of the value.
#[derive(Debug, Clone)]
pub(super) struct Memo {
    entries: Vec<[u32; 3]>,
}

impl Memo {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            entries: vec![[0; 3]; (bytes / ENTRY_LEN).max(1)],
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.entries.len() * ENTRY_LEN
    }

    #[inline]
    fn place(&self, situation: u64) -> (usize, u32) {
        let hash = situation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = hash ^ (hash >> 32);
        let at = ((hash & 0xffff_ffff) * self.entries.len() as u64) >> 32;
        (usize::try_from(at).unwrap_or(0), (hash >> 48) as u32)
    }

    /// What came last here.
    #[inline]
    pub(super) fn last(&self, situation: u64) -> Value {
        let (at, check) = self.place(situation);
        let [head, low, high] = self.entries[at];
        if head >> 16 != check {
            return Value::NONE;
        }
        let bits = (u64::from(high) << 32 | u64::from(low)).cast_signed();
        Value::from_parts((head & 0xffff) as u16, bits)
    }

    #[inline]
    pub(super) fn put(&mut self, situation: u64, value: Value) {
        let (at, check) = self.place(situation);
        let (kind, bits) = value.parts();
        let bits = bits.cast_unsigned();
        self.entries[at] = [
            check << 16 | u32::from(kind),
            (bits & 0xffff_ffff) as u32,
            (bits >> 32) as u32,
        ];
    }
}

impl Saved for Memo {
    fn save(&self, to: &mut Writer) {
        save_sparse(
            to,
            &self.entries,
            |entry| *entry == [0; 3],
            |to, entry| entry.iter().for_each(|word| to.u32(*word)),
        );
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        load_sparse(from, &mut self.entries, |from| {
            Ok([from.u32()?, from.u32()?, from.u32()?])
        })
    }
}
