//! The logistic function and its inverse in integers, so that every processor agrees on every bit.
//!
//! A probability is 16 bits wide, from 1 to 65,535; its logit `ln(p / (1 - p))` has eight bits behind the
//! point and lies within ±[`LOGIT_MAX`]. The tables are made at compile time from one constant.

/// Largest logit, 12.0: one in 163,000.
pub(super) const LOGIT_MAX: i32 = 3071;

const SIZE: usize = 6144;
/// `exp(-1/256)`, 62 bits behind the point.
const DECAY: u128 = 4_593_706_758_521_714_574;

static SQUASH: [u16; SIZE] = squash_table();
static STRETCH: [i16; 4096] = stretch_table();

/// The probability of a logit.
#[inline]
pub(super) fn squash(logit: i32) -> u32 {
    let at = logit.clamp(-LOGIT_MAX, LOGIT_MAX) + LOGIT_MAX + 1;
    u32::from(SQUASH[at.unsigned_abs() as usize % SIZE])
}

/// The logit of a probability of 16 bits.
#[inline]
pub(super) fn stretch(p: u32) -> i32 {
    i32::from(STRETCH[(p >> 4) as usize & 4095])
}

#[expect(clippy::cast_possible_truncation, reason = "at most 65,535")]
const fn squash_table() -> [u16; SIZE] {
    let mut table = [0; SIZE];
    // exp(-k / 256) for growing k, mirrored around one half
    let mut power = 1_u128 << 62;
    let mut k = 0;
    while k < SIZE / 2 {
        let low = (65_536 * power / ((1 << 62) + power)) as u32;
        let low = if low == 0 { 1 } else { low };
        table[SIZE / 2 - k] = low as u16;
        if SIZE / 2 + k < SIZE {
            table[SIZE / 2 + k] = (65_536 - low) as u16;
        }
        power = (power * DECAY) >> 62;
        k += 1;
    }
    table[0] = table[1];
    table
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "logits fit 13 bits"
)]
const fn stretch_table() -> [i16; 4096] {
    let squash = squash_table();
    let mut table = [0; 4096];
    let mut at = 0;
    let mut p = 0;
    while p < 4096 {
        // the middle of the sixteen probabilities that share an entry
        while at + 1 < SIZE && (squash[at] as usize) < p * 16 + 8 {
            at += 1;
        }
        table[p] = at as i16 - (SIZE / 2) as i16;
        p += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_symmetric_monotonic_and_pinned() {
        for logit in -LOGIT_MAX..LOGIT_MAX {
            assert!(squash(logit) <= squash(logit + 1));
            assert_eq!(squash(logit) + squash(-logit), 65_536);
        }
        for p in (1..4095).map(|p| p * 16 + 8) {
            assert!(squash(stretch(p)).abs_diff(p) <= 70, "{p}");
        }
        let bytes: Vec<u8> = SQUASH
            .iter()
            .flat_map(|p| p.to_le_bytes())
            .chain(STRETCH.iter().flat_map(|s| s.to_le_bytes()))
            .collect();
        assert_eq!(crc32c::crc32c(&bytes), 3_615_557_400);
    }
}
