//! Flags, numbers and bytes as decisions of one bit each.

use super::coder::Coder;
use super::predictor::{Contexts, NODE_SETS, Node, Predictor};

/// What a number means: each has its own nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Domain {
    /// Distance in the column's alphabet.
    Alphabet,
    /// What a prediction was off by.
    Residual,
    /// What the prediction of a timestamp was off by.
    Timestamp,
    /// Rank of a device among those that are due.
    Rank,
    /// Counts of records, blocks and headers.
    Count,
    /// Base timestamp of a block.
    Base,
}

/// Sets of weights that one domain takes.
const DOMAIN_SETS: usize = 70;
const DEEP_SET: usize = 69;
const FLAG_SETS: usize = 420;
/// Most kinds of flags.
const FLAGS: usize = 68;
const TEXT_SETS: usize = FLAG_SETS + FLAGS;
const _: () = assert!(TEXT_SETS + 64 <= NODE_SETS);

/// Bits behind the first of a number that see all contexts, and those that see one.
const FINE_BITS: u32 = 3;
const COARSE_BITS: u32 = 8;

impl Domain {
    fn node(self, id: u64, set: usize) -> Node {
        Node {
            id: (self as u64 + 1) << 32 | id,
            set: self as usize * DOMAIN_SETS + set,
        }
    }
}

impl Predictor {
    /// One decision of the kind `flag`, below [`FLAGS`].
    pub(super) fn flag<C: Coder>(
        &mut self,
        coder: &mut C,
        value: bool,
        contexts: &Contexts,
        flag: usize,
    ) -> bool {
        let node = Node {
            id: flag as u64,
            set: FLAG_SETS + flag % FLAGS,
        };
        self.bit(coder, value, contexts, node)
    }

    /// A number, small ones cheap: zero or not, sign, how many bits, then the bits.
    pub(super) fn number<C: Coder>(
        &mut self,
        coder: &mut C,
        value: i64,
        contexts: &Contexts,
        domain: Domain,
    ) -> i64 {
        if self.bit(coder, value == 0, contexts, domain.node(1, 0)) {
            return 0;
        }
        let is_negative = self.bit(coder, value < 0, contexts, domain.node(2, 1));
        let sign = u64::from(is_negative);
        let size = value.unsigned_abs();
        let bits = if C::ENCODES { size.ilog2() } else { 0 };
        let mut len = 0;
        while len < 63 {
            let node = domain.node(16 + u64::from(len) * 2 + sign, 2 + len as usize);
            if !self.bit(coder, bits > len, contexts, node) {
                break;
            }
            len += 1;
        }
        let mut number = 1_u64;
        let broadest = contexts.broadest();
        for depth in 0..len {
            let place = len - 1 - depth;
            let bit = size >> place & 1 != 0;
            let bit = if depth < FINE_BITS {
                let id = 1000 + u64::from(len) * 64 + number * 2 + sign;
                let node = domain.node(id, 66 + depth as usize);
                self.bit(coder, bit, contexts, node)
            } else if depth < COARSE_BITS {
                let id = 90_000 + u64::from(len) * 64 + u64::from(place);
                self.bit(coder, bit, &broadest, domain.node(id, DEEP_SET))
            } else {
                self.even(coder, bit)
            };
            number = number << 1 | u64::from(bit);
        }
        if is_negative {
            number.cast_signed().wrapping_neg()
        } else {
            number.cast_signed()
        }
    }

    /// A number of so many bits, without history but its own.
    pub(super) fn bits<C: Coder>(
        &mut self,
        coder: &mut C,
        value: u32,
        len: u32,
        contexts: &Contexts,
        flag: usize,
    ) -> u32 {
        let mut number = 1_u64;
        for place in (0..len).rev() {
            let node = Node {
                id: (flag as u64) << 40 | number,
                set: FLAG_SETS + flag % FLAGS,
            };
            let bit = self.bit(coder, value >> place & 1 != 0, contexts, node);
            number = number << 1 | u64::from(bit);
        }
        (number & ((1 << len) - 1)) as u32
    }

    /// A byte whose guess, if there is one, is believed by `trust`.
    pub(super) fn byte<C: Coder>(
        &mut self,
        coder: &mut C,
        value: u8,
        contexts: &Contexts,
        guess: Option<(u8, i32)>,
        set: usize,
    ) -> u8 {
        let mut node = 1_u32;
        for place in (0..8).rev() {
            let hint = match guess {
                Some((byte, trust)) if (u32::from(byte) | 256) >> (place + 1) == node => {
                    if byte >> place & 1 != 0 {
                        trust
                    } else {
                        -trust
                    }
                }
                _ => 0,
            };
            let at = Node {
                id: 1 << 48 | u64::from(node),
                set: TEXT_SETS + set % 64,
            };
            let bit = self.bit_with(coder, value >> place & 1 != 0, contexts, at, hint);
            node = node << 1 | u32::from(bit);
        }
        (node & 0xff) as u8
    }

    fn even<C: Coder>(&mut self, coder: &mut C, bit: bool) -> bool {
        #[cfg(feature = "model-cost")]
        {
            self.cost[self.account] += 1.0;
        }
        coder.code(bit, 32_768)
    }
}
