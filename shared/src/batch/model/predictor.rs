//! The probability of the next bit: adaptive counters, chosen by contexts, mixed by learnt weights.
//!
//! ```text
//! contexts ─ hash with the node ─ counters ─ logits ─┬ weights of set A ┐
//!                                                    └ weights of set B ┴ mean ─ refined ─ p
//! ```
//! A counter holds a probability and how often it was asked; it moves by 1/n, later by 1/60. Counters
//! live in a table of fixed size, two to a bucket, found by eight check bits; the one that was asked less
//! makes room. Weights move against the error of their set, fast at first. The refinement maps the mixed
//! logit to what followed on such logits before.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "fixed-point numbers within the ranges that their tables give"
)]

use super::coder::Coder;
use super::logistic::{LOGIT_MAX, squash, stretch};
use super::snapshot::{Reader, Saved, Writer, load_sparse, save_sparse};
use crate::batch::BatchError;

/// Most contexts of one symbol.
pub(super) const MAX_CONTEXTS: usize = 14;
const INPUTS: usize = MAX_CONTEXTS + 2;

/// Sets of weights by node.
pub(super) const NODE_SETS: usize = 688;
/// Sets of weights by column.
const COLUMN_SETS: usize = 512;
/// Refinement maps, each of [`REFINE_STEPS`] entries.
const REFINE_MAPS: usize = 512;
const REFINE_STEPS: usize = 33;
/// Logits between two entries.
const REFINE_STEP: u32 = 192;
const REFINE_RATE: u32 = 6;

/// Counters of one line of the cache.
const LINE: usize = 16;

const COUNT_LIMIT: u32 = 60;
const COUNTER_BITS: u32 = 18;
const COUNTER_NEW: u32 = 1 << 31;

/// What a counter that was asked so often moves by, of 65,536.
static RATES: [u16; 64] = rates();
/// How far a young counter is believed, of 256.
static TRUST: [u16; 64] = trust();

const fn rates() -> [u16; 64] {
    let mut table = [0; 64];
    let mut n = 0;
    while n < 64 {
        table[n] = (2 * 65_536 / (2 * n + 3)) as u16;
        n += 1;
    }
    table
}

const fn trust() -> [u16; 64] {
    let mut table = [256; 64];
    table[0] = 0;
    table[1] = 192;
    table[2] = 230;
    table
}

/// The contexts of one symbol, each with its own place in the hash.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contexts {
    hashes: [u64; MAX_CONTEXTS],
    len: usize,
    /// Chooses the set of weights by column.
    column: u64,
}

impl Contexts {
    /// At most [`MAX_CONTEXTS`], the broadest first. `column` chooses weights.
    #[inline]
    pub(super) fn new<const N: usize>(column: u64, contexts: [u64; N]) -> Self {
        let mut hashes = [0; MAX_CONTEXTS];
        for (i, (hash, context)) in hashes.iter_mut().zip(contexts).enumerate() {
            *hash = spread(context, i);
        }
        Self {
            hashes,
            len: N.min(MAX_CONTEXTS),
            column,
        }
    }

    /// Only the first.
    #[inline]
    pub(super) fn broadest(&self) -> Self {
        Self { len: 1, ..*self }
    }
}

#[inline]
fn spread(context: u64, place: usize) -> u64 {
    (context ^ (place as u64 + 1) << 56).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// Where a bit stands in its symbol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    /// Tells the groups of bits of all kinds of symbols apart: the counters of one context in one group
    /// lie in one line of the cache.
    pub(super) group: u64,
    /// Which bit of the group, below 64; eight or sixteen are best.
    pub(super) leaf: u32,
    /// Set of weights, below [`NODE_SETS`].
    pub(super) set: usize,
}

/// Weights of the inputs, 13 bits behind the point.
#[derive(Debug, Clone, Copy)]
struct Set {
    weights: [i16; INPUTS],
    seen: u16,
}

const WEIGHT_BITS: u32 = 13;
const WEIGHT_NEW: i16 = 2450;
const SEEN_MAX: u16 = 60_000;
/// Errors smaller than this teach nothing that the weights could hold.
const MIN_ERROR: i32 = 48;

impl Set {
    const NEW: Self = Self {
        weights: [WEIGHT_NEW; INPUTS],
        seen: 0,
    };

    #[inline]
    fn dot(&self, inputs: &[i16; INPUTS]) -> i32 {
        let sum: i32 = self
            .weights
            .iter()
            .zip(inputs)
            .map(|(weight, input)| i32::from(*weight) * i32::from(*input))
            .sum();
        (sum >> WEIGHT_BITS).clamp(-LOGIT_MAX, LOGIT_MAX)
    }

    /// Moves the weights against an error of 16 bits; `inputs` are eight times what they were.
    #[inline]
    fn learn(&mut self, inputs: &[i16; INPUTS], error: i32) {
        let seen = i32::from(self.seen);
        if self.seen < SEEN_MAX {
            self.seen += 1;
        }
        if error.abs() < MIN_ERROR {
            return;
        }
        // 0.08 at first, 0.006 in the end
        let rate = (RATE_FIRST * 32 / (32 + seen)).max(RATE_LAST);
        let step = ((error * rate) >> 13).clamp(-32_767, 32_767);
        for (weight, input) in self.weights.iter_mut().zip(inputs) {
            let change = (((i32::from(*input) * step) >> 16) as i16 + 1) >> 1;
            *weight = weight.saturating_add(change);
        }
    }
}

const RATE_FIRST: i32 = 5243;
const RATE_LAST: i32 = 393;

/// All that is learnt about bits.
#[derive(Clone)]
pub(super) struct Predictor {
    counters: Vec<u32>,
    by_node: Vec<Set>,
    by_column: Vec<Set>,
    refine: Vec<u16>,
    #[cfg(feature = "model-cost")]
    pub(super) cost: [f64; 16],
    #[cfg(feature = "model-cost")]
    pub(super) account: usize,
    #[cfg(feature = "model-cost")]
    log: Vec<f64>,
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Predictor").finish_non_exhaustive()
    }
}

impl Predictor {
    /// Counters take `counter_bytes`, the weights 100 KiB more.
    pub(super) fn new(counter_bytes: usize) -> Self {
        let lines = (counter_bytes / (4 * LINE)).max(1);
        Self {
            counters: vec![0; lines * LINE],
            by_node: vec![Set::NEW; NODE_SETS],
            by_column: vec![Set::NEW; COLUMN_SETS],
            refine: (0..REFINE_MAPS * REFINE_STEPS)
                .map(|i| refine_start(i % REFINE_STEPS))
                .collect(),
            #[cfg(feature = "model-cost")]
            cost: [0.0; 16],
            #[cfg(feature = "model-cost")]
            account: 0,
            #[cfg(feature = "model-cost")]
            log: (0..4097)
                .map(|p| -((f64::from(p) + 0.5) / 4096.5).log2())
                .collect(),
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.counters.len() * 4
            + (self.by_node.len() + self.by_column.len()) * size_of::<Set>()
            + self.refine.len() * 2
    }

    #[cfg(feature = "model-cost")]
    pub(super) fn account(&mut self, account: usize) {
        self.account = account;
    }

    #[cfg(not(feature = "model-cost"))]
    #[inline]
    #[expect(clippy::unused_self, reason = "counts only when costs are looked at")]
    pub(super) fn account(&mut self, _account: usize) {}

    /// Codes one bit and learns it.
    #[inline]
    pub(super) fn bit<C: Coder>(
        &mut self,
        coder: &mut C,
        bit: bool,
        contexts: &Contexts,
        node: Node,
    ) -> bool {
        self.bit_with(coder, bit, contexts, node, 0)
    }

    /// The same with a logit that comes from elsewhere.
    #[inline]
    pub(super) fn bit_with<C: Coder>(
        &mut self,
        coder: &mut C,
        bit: bool,
        contexts: &Contexts,
        node: Node,
        hint: i16,
    ) -> bool {
        let len = contexts.len;
        let at = self.find(contexts, node);
        let mut inputs = [0_i16; INPUTS];
        for i in 0..len {
            let counter = self.counters[at[i]];
            let count = (counter >> 8) & 63;
            let logit = stretch(counter >> 16);
            inputs[i] = ((logit * i32::from(TRUST[count as usize])) >> 8) as i16;
        }
        inputs[MAX_CONTEXTS] = hint;
        inputs[MAX_CONTEXTS + 1] = 256;
        let set = node.set % NODE_SETS;
        let column = (column_hash(contexts.column, node.set) % COLUMN_SETS as u64) as usize;
        let logit_a = self.by_node[set].dot(&inputs);
        let logit_b = self.by_column[column].dot(&inputs);
        let logit = (logit_a + logit_b) >> 1;
        let mixed = squash(logit);
        let (refined, step) = self.refined(column, logit);
        let p = ((mixed + refined) >> 1).clamp(6, 65_530);
        let bit = coder.code(bit, p);
        #[cfg(feature = "model-cost")]
        {
            let q = if bit { p } else { 65_536 - p };
            self.cost[self.account] += self.log[(q >> 4) as usize];
        }
        let target = if bit { 65_535 } else { 0 };
        for input in &mut inputs {
            *input *= 8;
        }
        self.by_node[set].learn(&inputs, target - squash(logit_a).cast_signed());
        self.by_column[column].learn(&inputs, target - squash(logit_b).cast_signed());
        let entry = &mut self.refine[step];
        let off = target - i32::from(*entry);
        *entry = (i32::from(*entry) + (off >> REFINE_RATE)) as u16;
        for slot in &at[..len] {
            let counter = &mut self.counters[*slot];
            *counter = learn_counter(*counter, bit);
        }
        bit
    }

    /// What followed on such a logit before, and the entry that will learn it.
    #[inline]
    fn refined(&self, map: usize, logit: i32) -> (u32, usize) {
        let scaled = (logit + LOGIT_MAX + 1).unsigned_abs();
        let low = (scaled / REFINE_STEP) as usize;
        let part = scaled % REFINE_STEP;
        let first = map % REFINE_MAPS * REFINE_STEPS + low;
        let (left, right) = (self.refine[first], self.refine[first + 1]);
        let p = (u32::from(left) * (REFINE_STEP - part) + u32::from(right) * part) / REFINE_STEP;
        (p, first + usize::from(part > REFINE_STEP / 2))
    }

    /// The counters of all contexts; where there is none it takes the place of the less asked of two.
    #[inline]
    fn find(&mut self, contexts: &Contexts, node: Node) -> [usize; MAX_CONTEXTS] {
        let group = node.group.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let lines = (self.counters.len() / LINE) as u64;
        let mut at = [0_usize; MAX_CONTEXTS];
        let mut checks = [0_u32; MAX_CONTEXTS];
        let mut pairs = [[0_u32; 2]; MAX_CONTEXTS];
        let len = contexts.len;
        for i in 0..len {
            let hash = (contexts.hashes[i] ^ group).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            let line = ((hash >> 32) * lines) >> 32;
            let pair = ((hash >> 24) as u32 ^ node.leaf) & 7;
            at[i] = line as usize * LINE + 2 * pair as usize;
            checks[i] = ((hash >> 12) as u32 ^ node.leaf.wrapping_mul(0x95)) & 0xff;
        }
        // all loads before the first decision, so that they run side by side
        for i in 0..len {
            pairs[i] = [self.counters[at[i]], self.counters[at[i] + 1]];
        }
        for i in 0..len {
            let [first, second] = pairs[i];
            let check = checks[i];
            if first & 0xff == check && first >= 0x100 {
                continue;
            }
            if second & 0xff == check && second >= 0x100 {
                at[i] += 1;
                continue;
            }
            at[i] += usize::from((second >> 8) & 63 < (first >> 8) & 63);
            self.counters[at[i]] = COUNTER_NEW | check;
        }
        at
    }
}

#[inline]
fn column_hash(column: u64, set: usize) -> u64 {
    (column ^ (set as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}

#[inline]
fn learn_counter(counter: u32, bit: bool) -> u32 {
    let count = (counter >> 8) & 63;
    let p = i64::from(counter >> (32 - COUNTER_BITS));
    let target = if bit { (1_i64 << COUNTER_BITS) - 1 } else { 0 };
    let moved = p + (((target - p) * i64::from(RATES[count as usize])) >> 16);
    let count = if count < COUNT_LIMIT {
        count + 1
    } else {
        count
    };
    (moved as u32) << (32 - COUNTER_BITS) | count << 8 | counter & 0xff
}

fn refine_start(step: usize) -> u16 {
    let logit = (i32::try_from(step).unwrap_or(0) - 16) * 192;
    u16::try_from(squash(logit)).unwrap_or(u16::MAX)
}

impl Saved for Set {
    fn save(&self, to: &mut Writer) {
        self.weights.iter().for_each(|weight| to.i16(*weight));
        to.u16(self.seen);
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        for weight in &mut self.weights {
            *weight = from.i16()?;
        }
        self.seen = from.u16()?.min(SEEN_MAX);
        Ok(())
    }
}

impl Saved for Predictor {
    fn save(&self, to: &mut Writer) {
        save_sparse(to, &self.counters, |c| *c == 0, |to, c| to.u32(*c));
        for sets in [&self.by_node, &self.by_column] {
            save_sparse(to, sets, |set| set.seen == 0, |to, set| set.save(to));
        }
        self.refine.iter().for_each(|p| to.u16(*p));
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        load_sparse(from, &mut self.counters, |from| from.u32())?;
        for sets in [&mut self.by_node, &mut self.by_column] {
            load_sparse(from, sets, |from| {
                let mut set = Set::NEW;
                set.load(from)?;
                Ok(set)
            })?;
        }
        for p in &mut self.refine {
            *p = from.u16()?;
        }
        Ok(())
    }
}
