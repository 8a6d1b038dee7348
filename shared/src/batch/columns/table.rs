//! Contexts by column and key: a table of fixed size that forgets the least recently used of four.

use super::context::Context;
use crate::wire::{Reader, WireError, put_varint};

/// Places that a context may stand in.
const WAYS: usize = 4;

/// Bytes of one place.
const PLACE_BYTES: usize = size_of::<Context>() + size_of::<u64>() + size_of::<u32>();

#[derive(Debug, Clone)]
pub(super) struct Table {
    /// 0: empty.
    tags: Vec<u64>,
    ages: Vec<u32>,
    contexts: Vec<Context>,
    clock: u32,
}

impl Table {
    /// Empty, for up to `max_bytes` of memory.
    pub(super) fn new(max_bytes: usize) -> Self {
        let most = (max_bytes / PLACE_BYTES / WAYS).max(16);
        // the largest power of two that is not larger
        let sets = 1 << most.ilog2();
        Self {
            tags: vec![0; sets * WAYS],
            ages: vec![0; sets * WAYS],
            contexts: vec![Context::default(); sets * WAYS],
            clock: 0,
        }
    }

    /// A payload begins: what it uses is younger than all before.
    pub(super) fn tick(&mut self) {
        self.clock = self.clock.wrapping_add(1);
    }

    /// The context of this hash, and whether it was there; else the oldest made `fresh`.
    #[inline]
    pub(super) fn at(&mut self, hash: u64, fresh: impl FnOnce() -> Context) -> &mut Context {
        let tag = hash.max(1);
        let sets = self.tags.len() / WAYS;
        let set = usize::try_from(hash >> 40).unwrap_or(0) & (sets - 1);
        let places = set * WAYS..set * WAYS + WAYS;
        let found = places.clone().find(|at| self.tags[*at] == tag);
        let place = found.unwrap_or_else(|| {
            let oldest = places.max_by_key(|at| match self.tags[*at] {
                0 => u32::MAX,
                _ => self.clock.wrapping_sub(self.ages[*at]),
            });
            let place = oldest.unwrap_or(0);
            self.tags[place] = tag;
            self.contexts[place] = fresh();
            place
        });
        self.ages[place] = self.clock;
        &mut self.contexts[place]
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.tags.len() * PLACE_BYTES
    }

    /// Appends all of it.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        put_varint(
            out,
            self.tags.iter().filter(|tag| **tag != 0).count() as u64,
        );
        let mut last = 0;
        for (at, tag) in self.tags.iter().enumerate().filter(|(_, tag)| **tag != 0) {
            put_varint(out, (at - last) as u64);
            last = at;
            out.extend_from_slice(&tag.to_be_bytes());
            put_varint(out, self.clock.wrapping_sub(self.ages[at]).into());
            self.contexts[at].save(out);
        }
    }

    /// What [`Self::save`] wrote, into an empty one of the same size.
    pub(super) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let mut at = 0_usize;
        for _ in 0..reader.count(8)? {
            at = at.saturating_add(usize::try_from(reader.varint()?).unwrap_or(usize::MAX));
            let tag = reader.u64()?;
            let age = reader.varint_u32()?;
            let context = Context::load(reader)?;
            if at >= self.tags.len() {
                return Err(WireError::Malformed("a table is larger than its bound"));
            }
            self.tags[at] = tag;
            self.ages[at] = self.clock.wrapping_sub(age);
            self.contexts[at] = context;
        }
        Ok(())
    }
}
