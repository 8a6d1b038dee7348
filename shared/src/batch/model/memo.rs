//! What came last in a situation: a table from the hash of the situation to a value. Two entries to a
//! bucket; one that was never asked again makes room first, so that what happens once does not drive out
//! what happens often.
//!
//! An entry is 12 check bits, whether it was asked again, 7 bits of kind, whether the number is large, and
//! 43 bits of value. Of a large number these are its hash, which names its place among some hundred others:
//! it is forgotten when another takes that place. A value of a kind that came after 127 others is not
//! remembered here.

use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use super::value::Value;
use crate::batch::BatchError;
use crate::batch::split::mix;

/// Bytes of one entry.
const ENTRY_LEN: usize = 8;

const CHECK_SHIFT: u32 = 52;
const IN_USE: u64 = 1 << 51;
const KIND_SHIFT: u32 = 44;
const KIND_MASK: u64 = 0x7f;
const MAX_KINDS: usize = 127;
const LARGE: u64 = 1 << 43;
const BITS: u32 = 43;
const BITS_MASK: u64 = (1 << BITS) - 1;
/// Large numbers take this part of the bytes.
const LARGE_SHARE: usize = 32;

/// The table.
#[derive(Debug, Clone)]
pub(super) struct Memo {
    entries: Vec<u64>,
    /// Kinds of values that were met, numbered from 1.
    kinds: Vec<u16>,
    /// Large numbers by their hash.
    large: Vec<i64>,
}

impl Memo {
    pub(super) fn new(bytes: usize) -> Self {
        let large = bytes / LARGE_SHARE / ENTRY_LEN;
        let entries = bytes / ENTRY_LEN - large;
        Self {
            entries: vec![0; entries.next_multiple_of(2).max(2)],
            kinds: Vec::with_capacity(MAX_KINDS),
            large: vec![0; large.max(1)],
        }
    }

    pub(super) fn memory(&self) -> usize {
        (self.entries.len() + self.large.len()) * ENTRY_LEN + MAX_KINDS * 2
    }

    /// First place of the bucket, and the check bits.
    #[inline]
    fn bucket(&self, situation: u64) -> (usize, u64) {
        let hash = situation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = hash ^ (hash >> 32);
        let at = ((hash & 0xffff_ffff) * (self.entries.len() / 2) as u64) >> 32;
        (at as usize * 2, hash >> CHECK_SHIFT)
    }

    #[inline]
    fn find(&self, situation: u64) -> Result<usize, (usize, u64)> {
        let (first, check) = self.bucket(situation);
        let is = |at: usize| {
            let entry = self.entries[at];
            entry >> CHECK_SHIFT == check && entry >> KIND_SHIFT & KIND_MASK != 0
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
        let entry = self.entries[at];
        let kind = (entry >> KIND_SHIFT & KIND_MASK) as usize;
        let Some(kind) = self.kinds.get(kind - 1) else {
            return Value::NONE;
        };
        if entry & LARGE == 0 {
            let bits = (entry << (64 - BITS)).cast_signed() >> (64 - BITS);
            return Value::from_parts(*kind, bits);
        }
        let hash = entry & BITS_MASK;
        let bits = self.large[self.large_place(hash)];
        if large_hash(bits) == hash {
            Value::from_parts(*kind, bits)
        } else {
            Value::NONE
        }
    }

    #[inline]
    fn large_place(&self, hash: u64) -> usize {
        ((hash * self.large.len() as u64) >> BITS) as usize
    }

    /// Kind and bits as they stand in an entry; 0 when there is none or no number for its kind.
    #[inline]
    fn packed(&mut self, value: Value) -> u64 {
        let (kind, bits) = value.parts();
        if kind == 0 {
            return 0;
        }
        let at = match self.kinds.iter().position(|known| *known == kind) {
            Some(at) => at,
            None if self.kinds.len() < MAX_KINDS => {
                self.kinds.push(kind);
                self.kinds.len() - 1
            }
            None => return 0,
        };
        let is_large = bits << (64 - BITS) >> (64 - BITS) != bits;
        let rest = if is_large {
            LARGE | large_hash(bits)
        } else {
            bits.cast_unsigned() & BITS_MASK
        };
        (at as u64 + 1) << KIND_SHIFT | rest
    }

    /// Remembers a value.
    #[inline]
    pub(super) fn put(&mut self, situation: u64, value: Value) {
        self.put_if(situation, value, true);
    }

    /// Remembers a value; in a situation that is not known only when it `may_add` it, and never that there
    /// was none.
    #[inline]
    pub(super) fn put_if(&mut self, situation: u64, value: Value, may_add: bool) {
        let packed = self.packed(value);
        let (at, head) = match self.find(situation) {
            Ok(at) if packed == 0 => (at, 0),
            Ok(at) => (at, self.entries[at] >> CHECK_SHIFT << CHECK_SHIFT | IN_USE),
            Err(_) if !may_add || packed == 0 => return,
            Err((first, check)) => (self.make_room(first), check << CHECK_SHIFT),
        };
        self.entries[at] = head | packed;
        if packed & LARGE != 0 {
            let place = self.large_place(packed & BITS_MASK);
            self.large[place] = value.parts().1;
        }
    }

    #[inline]
    fn make_room(&mut self, first: usize) -> usize {
        let in_use = |entry: u64| entry & IN_USE != 0;
        if !in_use(self.entries[first]) {
            return first;
        }
        if !in_use(self.entries[first + 1]) {
            // next time the first must have been asked again
            self.entries[first] &= !IN_USE;
            return first + 1;
        }
        self.entries[first] &= !IN_USE;
        self.entries[first + 1] &= !IN_USE;
        first
    }
}

fn large_hash(bits: i64) -> u64 {
    mix(bits.cast_unsigned(), 0x1a) >> (64 - BITS)
}

impl Saved for Memo {
    fn save(&self, to: &mut Writer) {
        to.len(self.kinds.len());
        self.kinds.iter().for_each(|kind| to.u16(*kind));
        save_sparse(to, &self.entries, |e| *e == 0, |to, e| to.u64(*e));
        save_sparse(to, &self.large, |bits| *bits == 0, |to, bits| to.i64(*bits));
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        for _ in 0..from.len(MAX_KINDS)? {
            self.kinds.push(from.u16()?);
        }
        load_sparse(from, &mut self.entries, |from| from.u64())?;
        load_sparse(from, &mut self.large, |from| from.i64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_of_any_size_are_remembered_and_none_is_forgotten() {
        let mut memo = Memo::new(8 << 10);
        let most = (1 << (BITS - 1)) - 1;
        for bits in [0, -1, 7, most, -most - 1, most + 1, i64::MAX, i64::MIN] {
            memo.put(1, Value::from_parts(9, bits));
            assert_eq!(memo.last(1), Value::from_parts(9, bits));
        }
        memo.put(1, Value::NONE);
        assert_eq!(memo.last(1), Value::NONE);
    }

    #[test]
    fn large_numbers_make_room_for_each_other() {
        let mut memo = Memo::new(256 << 10);
        for i in 0..3000_u16 {
            memo.put(i.into(), Value::from_parts(9, i64::MAX - i64::from(i)));
        }
        let known = (0..3000_u16)
            .filter(|i| match memo.last((*i).into()) {
                Value::NONE => false,
                found => {
                    assert_eq!(found, Value::from_parts(9, i64::MAX - i64::from(*i)));
                    true
                }
            })
            .count();
        assert!((200..=memo.large.len()).contains(&known), "{known}");
    }

    #[test]
    fn kinds_are_bounded() {
        let mut memo = Memo::new(64 << 10);
        for kind in 1..=200_u16 {
            memo.put(kind.into(), Value::from_parts(kind, 5));
        }
        let known = |kind: u16| memo.last(kind.into()) == Value::from_parts(kind, 5);
        let count = (1..=200).filter(|kind| known(*kind)).count();
        assert!((100..=MAX_KINDS).contains(&count), "{count}");
    }

    proptest! {
        #[test]
        fn a_saved_memo_is_the_same(puts in prop::collection::vec((0_u64..50, 0_u16..9, any::<i64>()), 0..200)) {
            let mut memo = Memo::new(1 << 10);
            for (situation, kind, bits) in puts {
                memo.put_if(situation, Value::from_parts(kind, bits >> (bits & 63)), bits % 3 != 0);
            }
            let mut to = Writer::default();
            memo.save(&mut to);
            let mut back = Memo::new(1 << 10);
            back.load(&mut Reader::new(&to.out)).unwrap();
            prop_assert_eq!(&back.entries, &memo.entries);
            prop_assert_eq!(&back.kinds, &memo.kinds);
            prop_assert_eq!(&back.large, &memo.large);
        }
    }
}
