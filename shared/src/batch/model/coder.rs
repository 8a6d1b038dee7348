//! A binary arithmetic coder: 64 bits of interval, no carry, and the shortest tail.
//!
//! The decoder reads zeros behind the end, so the encoder drops the zeros at its end. A payload whose
//! first byte is [`ESCAPE`] was not coded here: the first decision, at a probability of one in 256,
//! keeps every coded payload below it.

/// The first byte of a payload that says its own mode.
pub(super) const ESCAPE: u8 = 0xff;

/// One direction. The model runs the same code for both: what [`Coder::ENCODES`] decides is only whether
/// the bit is told or asked.
pub(super) trait Coder {
    /// True for the encoder.
    const ENCODES: bool;

    /// Codes one bit whose probability of being set is `p` of 65,536, neither 0 nor 1. A decoder ignores
    /// `bit`.
    fn code(&mut self, bit: bool, p: u32) -> bool;
}

/// The part of the interval that a set bit takes: `low` to the result, the rest begins behind it.
#[inline]
fn split(low: u64, high: u64, p: u32) -> u64 {
    let range = high - low;
    low + (range >> 16) * u64::from(p) + (((range & 0xffff) * u64::from(p)) >> 16)
}

/// Gathers bits into bytes.
#[derive(Debug)]
pub(super) struct Encoder {
    low: u64,
    high: u64,
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        let high = u64::MAX >> 8 | (u64::from(ESCAPE) - 1) << 56;
        Self {
            low: 0,
            high,
            out: Vec::new(),
        }
    }

    /// The bytes, ended so that no shorter string decodes to the same bits.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for bytes in 0..=8_u32 {
            let step = 1_u128 << (64 - 8 * bytes);
            let value = u128::from(self.low).next_multiple_of(step);
            if value <= u128::from(self.high) {
                let value = u64::try_from(value).unwrap_or(u64::MAX).to_be_bytes();
                self.out.extend_from_slice(&value[..bytes as usize]);
                break;
            }
        }
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

impl Coder for Encoder {
    const ENCODES: bool = true;

    #[inline]
    fn code(&mut self, bit: bool, p: u32) -> bool {
        let middle = split(self.low, self.high, p);
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.out.push(self.high.to_be_bytes()[0]);
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        bit
    }
}

/// Takes bits off bytes; any bytes decode to something.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    low: u64,
    high: u64,
    at: u64,
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self {
            low: 0,
            high: u64::MAX >> 8 | (u64::from(ESCAPE) - 1) << 56,
            at: 0,
            rest: bytes,
        };
        for _ in 0..8 {
            decoder.shift();
        }
        decoder
    }

    #[inline]
    fn shift(&mut self) {
        let byte = match self.rest.split_first() {
            Some((byte, rest)) => {
                self.rest = rest;
                *byte
            }
            None => 0,
        };
        self.at = self.at << 8 | u64::from(byte);
    }

    /// Bytes that were never looked at: none when the payload is what an encoder made.
    pub(super) fn unread(&self) -> usize {
        self.rest.len()
    }
}

impl Coder for Decoder<'_> {
    const ENCODES: bool = false;

    #[inline]
    fn code(&mut self, _bit: bool, p: u32) -> bool {
        let middle = split(self.low, self.high, p);
        let bit = self.at <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.shift();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_come_back_at_any_probability(
            bits in prop::collection::vec((any::<bool>(), 1_u32..65_536), 0..500),
        ) {
            let mut encoder = Encoder::new();
            for (bit, p) in &bits {
                encoder.code(*bit, *p);
            }
            let bytes = encoder.finish();
            prop_assert!(bytes.first() != Some(&ESCAPE));
            prop_assert!(bytes.last() != Some(&0));
            let mut decoder = Decoder::new(&bytes);
            for (bit, p) in &bits {
                prop_assert_eq!(decoder.code(false, *p), *bit);
            }
            prop_assert_eq!(decoder.unread(), 0);
        }
    }

    #[test]
    fn what_is_expected_costs_nothing() {
        let mut encoder = Encoder::new();
        for _ in 0..200 {
            encoder.code(true, 65_535);
        }
        assert_eq!(encoder.finish(), Vec::<u8>::new());
    }

    #[test]
    fn a_decoder_of_noise_goes_on_for_ever() {
        let mut decoder = Decoder::new(&[ESCAPE; 40]);
        for p in 1..10_000 {
            decoder.code(false, p);
        }
    }
}
