//! The history of a partition in 64 bits: each batch's checksum and count, one after another.
//!
//! ```text
//! chain(0)    = 0
//! chain(next) = fmix64((rotl(chain, 29) ^ (crc << 32 | count)) * 0x9e3779b97f4a7c15 + 1)
//! ```
//! `fmix64` is MurmurHash3's finaliser. Batches that were acknowledged and dropped count like the
//! others, so a drop or a loss never changes the chain of what follows. Values are stored and sent: this
//! function never changes.

/// The history after one more batch.
pub(super) fn after_batch(chain: u64, crc: u32, count: u32) -> u64 {
    mix(chain, u64::from(crc) << 32 | u64::from(count))
}

fn mix(chain: u64, word: u64) -> u64 {
    let mut z = (chain.rotate_left(29) ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(1);
    z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_as_they_are_for_ever() {
        let one = after_batch(0, 0x1234_5678, 3);
        let two = after_batch(one, 0, 1);
        assert_eq!([one, two], GOLDEN);
    }

    #[test]
    fn order_and_count_matter() {
        let ab = after_batch(after_batch(0, 1, 1), 2, 1);
        let ba = after_batch(after_batch(0, 2, 1), 1, 1);
        assert_ne!(ab, ba);
        assert_ne!(after_batch(0, 1, 1), after_batch(0, 1, 2));
    }

    const GOLDEN: [u64; 2] = [3_089_815_396_989_942_888, 1_230_754_960_255_556_489];
}
