//! Flags, numbers and bytes as decisions of one bit each.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of the bits that their loops count"
)]

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
    /// How often a fold stands there.
    Turns,
}

/// Sets of weights that one domain takes.
const DOMAIN_SETS: usize = 70;
const DEEP_SET: usize = 69;
const FLAG_SETS: usize = 7 * DOMAIN_SETS;
/// Most kinds of flags.
const FLAGS: usize = 68;
const TEXT_SETS: usize = FLAG_SETS + FLAGS;
const _: () = assert!(TEXT_SETS + 128 <= NODE_SETS);

/// Bits behind the first of a number that see all contexts, and those that see one.
const FINE_BITS: u32 = 3;
const COARSE_BITS: u32 = 8;

impl Domain {
    fn node(self, group: u64, leaf: u32, set: usize) -> Node {
        Node {
            group: (self as u64 + 1) << 32 | group,
            leaf,
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
            group: flag as u64,
            leaf: 0,
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
        if self.bit(coder, value == 0, contexts, domain.node(0, 0, 0)) {
            return 0;
        }
        let is_negative = self.bit(coder, value < 0, contexts, domain.node(0, 1, 1));
        let sign = u32::from(is_negative);
        let size = value.unsigned_abs();
        let bits = if C::ENCODES { size.ilog2() } else { 0 };
        let mut len = 0;
        while len < 63 {
            // zero, sign and the first three lengths share a group, then every four
            let place = (len + 1) * 2 + sign;
            let node = domain.node(u64::from(place / 8), place % 8, 2 + len as usize);
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
                let group = 1000 + u64::from(len * 2 + sign);
                let node = domain.node(group, number as u32, 66 + depth as usize);
                self.bit(coder, bit, contexts, node)
            } else if depth < COARSE_BITS {
                let node = domain.node(2000 + u64::from(len), depth, DEEP_SET);
                self.bit(coder, bit, &broadest, node)
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
                group: (flag as u64) << 40 | number >> 3 << 20 | 1,
                leaf: (number & 7) as u32,
                set: FLAG_SETS + flag % FLAGS,
            };
            let bit = self.bit(coder, value >> place & 1 != 0, contexts, node);
            number = number << 1 | u64::from(bit);
        }
        (number & ((1 << len) - 1)) as u32
    }

    /// Whether the next byte of a text is this one.
    pub(super) fn is_byte<C: Coder>(
        &mut self,
        coder: &mut C,
        value: bool,
        contexts: &Contexts,
        guess: u8,
        hint: i16,
        set: usize,
    ) -> bool {
        let node = Node {
            group: 2 << 48 | u64::from(guess >> 3),
            leaf: u32::from(guess & 7),
            set: TEXT_SETS + 64 + set % 64,
        };
        self.bit_with(coder, value, contexts, node, hint)
    }

    /// A byte whose guess, if there is one, is believed by `trust`.
    pub(super) fn byte<C: Coder>(
        &mut self,
        coder: &mut C,
        value: u8,
        contexts: &Contexts,
        guess: Option<(u8, i16)>,
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
            // three groups: the first three bits, the next three behind them, the last two
            let known = 7 - place;
            let (group, leaf) = match known {
                0..3 => (1, node),
                3..6 => (
                    8 | node >> (known - 3),
                    1 << (known - 3) | node & ((1 << (known - 3)) - 1),
                ),
                _ => (
                    64 | node >> (known - 6),
                    1 << (known - 6) | node & ((1 << (known - 6)) - 1),
                ),
            };
            let at = Node {
                group: 1 << 48 | u64::from(group),
                leaf,
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
