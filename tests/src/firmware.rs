//! Images as of firmware: large values of which little changes from one version to the next.

/// Places that change in one version; together a tenth of the image.
const PLACES: usize = 60;

/// So many versions of an image of `len` bytes, always the same ones.
#[must_use]
pub fn versions(count: usize, len: usize) -> Vec<Vec<u8>> {
    let mut random = Random(0x6b65_6467_6531);
    let first = code(&mut random, len);
    std::iter::successors(Some(first), |image| Some(next_version(image, &mut random)))
        .take(count)
        .collect()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }
}

/// Machine code as zstd sees it: words of four bytes, a few of them often, their operands at random. zstd 3
/// makes about three quarters of it.
fn code(random: &mut Random, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 4);
    while out.len() < len {
        let word = random.next().to_le_bytes();
        let common = random.below(100) < 45;
        let opcode = if common { word[0] % 12 } else { word[0] % 64 };
        let register = word[1] & 0x1f;
        let operand = if common {
            [word[2] & 3, 0]
        } else {
            [word[2], word[3]]
        };
        out.extend_from_slice(&[operand[0], operand[1], register, opcode << 2 | 0xe0]);
    }
    out.truncate(len);
    out
}

/// Rewrites a tenth: each place is replaced by code of its own length, or nearly, so that all behind it moves.
fn next_version(image: &[u8], random: &mut Random) -> Vec<u8> {
    let mut cuts: Vec<usize> = (0..PLACES).map(|_| random.below(image.len())).collect();
    cuts.sort_unstable();
    let mut out = Vec::with_capacity(image.len());
    let mut at = 0;
    let mut budget = image.len() / 10;
    for (n, cut) in cuts.iter().enumerate() {
        if *cut < at {
            continue;
        }
        out.extend_from_slice(&image[at..*cut]);
        let share = budget / (PLACES - n);
        let len = (share / 2 + random.below(share))
            .min(budget)
            .min(image.len() - cut);
        budget -= len;
        let shift = random.below(33);
        let replaced = code(random, len + shift);
        out.extend_from_slice(&replaced);
        at = cut + len;
    }
    out.extend_from_slice(&image[at..]);
    out
}
