//! What came last in a situation: a table from the hash of the situation to a value. Two entries to a
//! bucket; one that was never asked again makes room first, so that what happens once does not drive out
//! what happens often.

use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use super::value::Value;
use crate::batch::BatchError;

/// Bytes of one entry.
const ENTRY_LEN: usize = 12;

const IN_USE: u32 = 1 << 16;

/// The table; an entry is 15 check bits, whether it was asked again, the kind, then the bits of the value.
#[derive(Debug, Clone)]
pub(super) struct Memo {
    entries: Vec<[u32; 3]>,
}

impl Memo {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            entries: vec![[0; 3]; (bytes / ENTRY_LEN).next_multiple_of(2).max(2)],
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.entries.len() * ENTRY_LEN
    }

    /// First place of the bucket, and the check bits.
    #[inline]
    fn bucket(&self, situation: u64) -> (usize, u32) {
        let hash = situation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = hash ^ (hash >> 32);
        let at = ((hash & 0xffff_ffff) * (self.entries.len() / 2) as u64) >> 32;
        (at as usize * 2, (hash >> 49) as u32)
    }

    #[inline]
    fn find(&self, situation: u64) -> Result<usize, (usize, u32)> {
        let (first, check) = self.bucket(situation);
        let is = |at: usize| {
            let head = self.entries[at][0];
            head >> 17 == check && head & 0xffff != 0
        };
        if is(first) {
            Ok(first)
        } else if is(first + 1) {
            Ok(first + 1)
        } else {
            Err((first, check))
        }
    }

    /// What came last here.
    #[inline]
    pub(super) fn last(&self, situation: u64) -> Value {
        let Ok(at) = self.find(situation) else {
            return Value::NONE;
        };
        let [head, low, high] = self.entries[at];
        let bits = (u64::from(high) << 32 | u64::from(low)).cast_signed();
        Value::from_parts((head & 0xffff) as u16, bits)
    }

    /// Remembers a value.
    #[inline]
    pub(super) fn put(&mut self, situation: u64, value: Value) {
        self.put_if(situation, value, true);
    }

    /// Remembers a value; in a situation that is not known only when it `may_add` it.
    #[inline]
    pub(super) fn put_if(&mut self, situation: u64, value: Value, may_add: bool) {
        let (at, head) = match self.find(situation) {
            Ok(at) => (at, self.entries[at][0] & !0xffff | IN_USE),
            Err(_) if !may_add => return,
            Err((first, check)) => (self.make_room(first), check << 17),
        };
        let (kind, bits) = value.parts();
        let bits = bits.cast_unsigned();
        self.entries[at] = [
            head | u32::from(kind),
            (bits & 0xffff_ffff) as u32,
            (bits >> 32) as u32,
        ];
    }

    #[inline]
    fn make_room(&mut self, first: usize) -> usize {
        let in_use = |entry: &[u32; 3]| entry[0] & IN_USE != 0;
        if !in_use(&self.entries[first]) {
            return first;
        }
        if !in_use(&self.entries[first + 1]) {
            // next time the first must have been asked again
            self.entries[first][0] &= !IN_USE;
            return first + 1;
        }
        self.entries[first][0] &= !IN_USE;
        self.entries[first + 1][0] &= !IN_USE;
        first
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
