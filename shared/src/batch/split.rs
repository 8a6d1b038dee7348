//! Takes raw payloads apart without loss, for the codecs that know what a record looks like.
//!
//! ```text
//! raw payload ─ RecordList ─ blocks: count, base timestamp, flag
//!                            records: timestamp, key, value, headers
//! value ─ tokenize ─ template: everything but the values, a mark for each   {"t":␁,"n":"␁"}
//!                    slots: the values as they stand                        21.50   pump-7
//! slot ─ number::parse ─ format: how it is printed                          two decimals
//!                        mantissa                                           2150
//! ```
//! Firmware in Intel HEX ([`ihex`]) is taken for the bytes that it says. Always true: whatever comes apart here
//! goes together again byte for byte, else it is refused and the caller sends it raw. The columns of a template
//! follow from the template alone, so that a decoder knows them before it has a slot. Nothing here panics or
//! takes more than its bounds, whatever the bytes.

pub(crate) mod ihex;
mod number;
mod records;
mod template;

#[cfg(test)]
mod tests;

pub(crate) use number::{Format, parse, print, rescale};
pub(crate) use records::{BlockStart, PayloadWriter, RecordList};
pub(crate) use template::{Split, SplitLimits, Template, tokenize, tokenize_within};

/// Mixes two numbers into a context; the same on every processor.
#[inline]
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// A hash of bytes that is the same on every processor. Not against an adversary: whoever looks up by it
/// compares the bytes too.
#[inline]
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = mix(0x51_7c_c1_b7_27_22_0a_95, bytes.len() as u64);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, u64::from_le_bytes(word));
    }
    mix(hash, hash >> 32)
}
