//! Large payloads: what the hub holds already is named instead of sent.
//!
//! Codec 5. Large record values are cut where their content says so ([`cut`]), and a chunk that the hub
//! is believed to hold ([`ChunkIndex`]) becomes a reference of its length and the first 16 bytes of its
//! BLAKE3 hash. Everything else are literals: they go through one zstd stream with a long window, which
//! finds what is near and changed a little. So the window serves versions that follow on each other, and
//! chunks serve exact repeats behind the window, in another topic, or from before the last restart.
//!
//! ```text
//!  site                                                hub
//!  raw ─► cut ─► known? ─► reference ─┐
//!                  │                  ├─ payload ═══►  references ─► ChunkStore ─► raw
//!                  └─► long window ───┘                     │ one is not there
//!   does not refer to them again ◄── Missing(ids), Restart ─┘
//!   and sends the log again from there ══════════════════►     (all other logs go on)
//! ```
//! Always true:
//! - an id at the hub was computed by the hub from bytes that it got from this site, and is compared
//!   with the bytes again when they come from a disk: a reference gives the bytes or a miss;
//! - a store belongs to one site. A site that names a chunk of another learns nothing and gets nothing:
//!   for it that is a miss, however common the chunk may be elsewhere;
//! - the index is a belief. It may be wrong in any way: a wrong entry costs a round trip and what was under
//!   way of that log, a missing one costs bytes. What was missing once is sent, so no miss comes twice;
//! - what a payload decodes to is bounded by the announced length before anything is allocated.
//!
//! The checksum of the decoded batch is compared as for every codec. Not done here: files, locks, time.
//! The bound of a store is in bytes of chunks, on both sides, so that both forget at about the same
//! time. Two different chunks under one id need 2^64 hashes to make; whoever makes them harms only
//! records of their own site.

mod cache;
mod chunker;
mod decoder;
mod encoder;
mod refs;

#[cfg(test)]
mod tests;

pub use cache::{ChunkIndex, ChunkStore, MemoryChunks, Place};
pub use chunker::{Piece, cut};
pub use decoder::LongDecoder;
pub use encoder::LongEncoder;
pub use refs::MAX_REFERENCES;
pub(crate) use refs::{put_missing, take_missing};

use std::fmt;

use crate::batch::BatchError;

/// Smallest and largest window that may be configured: 256 KiB and 128 MiB.
pub const WINDOW_LOGS: std::ops::RangeInclusive<u32> = 18..=27;

/// Names a chunk: the first 16 bytes of its BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 16]);

impl ChunkId {
    /// The id of these bytes.
    #[must_use]
    pub fn of(chunk: &[u8]) -> Self {
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(blake3::hash(chunk).as_bytes()) {
            *to = *from;
        }
        Self(id)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// What the two ends of a chain must agree on, and what the site chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongConfig {
    /// zstd level of the literals; the site's choice.
    pub level: i32,
    /// The window is 2 to this many bytes. A hub refuses streams with a larger window than its own.
    pub window_log: u32,
    /// Values below are never cut; the site's choice.
    pub min_value_bytes: usize,
}

impl Default for LongConfig {
    /// 8 MiB of window: three versions of an image of 2 MB. From 16 KiB a value is more than a record.
    fn default() -> Self {
        Self {
            level: 3,
            window_log: 23,
            min_value_bytes: 16 << 10,
        }
    }
}

impl LongConfig {
    /// The largest window that fits into so many bytes of state.
    #[must_use]
    pub fn window_log_within(state_bytes: u32) -> u32 {
        state_bytes
            .checked_ilog2()
            .unwrap_or(0)
            .clamp(*WINDOW_LOGS.start(), *WINDOW_LOGS.end())
    }

    fn checked(self) -> Result<Self, BatchError> {
        if WINDOW_LOGS.contains(&self.window_log) {
            Ok(self)
        } else {
            Err(BatchError::Malformed("window is too small or too large"))
        }
    }
}
