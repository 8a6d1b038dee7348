//! What is kept of the counts: bytes of each path, and what is used of each allowance.
//!
//! ```text
//!  file:  counted + ahead ──────────────────┐ written and synced
//!  fence of the shaper ◄────────────────────┘ then moved so far
//! ```
//! The file says more than was counted: the bytes *ahead* may move before it is written again, and no datagram
//! leaves beyond them. So whenever the process is killed, the file says no less than what moved, and more by
//! no more than what was ahead: [`Ahead`] is a few seconds' worth. A stop in order writes the exact counts.
//!
//! ```text
//!   0  4b 44 47 4d   magic "KDGM"
//!   4  00 01         version
//!   6  u16           paths, then for each:
//!                      u8 length and name, u64 sent, u64 received, u64 packets sent, u64 packets received
//!      u16           books, then for each:
//!                      u8 length and name, u64 calendar, i64 start, i64 end, u64 used, u128 boot,
//!                      i64 mark (wall), u64 mark (running), u8 flags (1: unproven, 2: left, 4: lost),
//!                      u64 unproven, i64 left start, u64 left used
//!      u32           CRC-32C of all before
//! ```
//! Numbers are big endian. A file that can't be read is set aside, and the counts begin anew at the end of
//! their allowances: all count as used up (*lost*) until their next period.

use std::collections::BTreeMap;

use super::policy::{Entry, Left};
use super::shaper::Traffic;

const MAGIC: [u8; 4] = *b"KDGM";
const VERSION: u16 = 1;
const CRC_LEN: usize = 4;
/// Paths and books in a file, at most.
const MAX_ENTRIES: usize = 256;
const HAS_UNPROVEN: u8 = 1;
const HAS_LEFT: u8 = 2;
const IS_LOST: u8 = 4;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Kept {
    pub(super) paths: BTreeMap<String, Traffic>,
    pub(super) books: BTreeMap<String, Entry>,
}

/// Why a file can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeptError {
    /// Not one of ours, or of a later version.
    #[error("no counts of a version known here")]
    Version,
    /// Damaged.
    #[error("damaged: checksum or lengths are wrong")]
    Damaged,
}

impl Kept {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        put_count(&mut out, self.paths.len());
        for (name, traffic) in self.paths.iter().take(MAX_ENTRIES) {
            put_name(&mut out, name);
            for number in [
                traffic.sent,
                traffic.received,
                traffic.sent_packets,
                traffic.received_packets,
            ] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
        put_count(&mut out, self.books.len());
        for (name, entry) in self.books.iter().take(MAX_ENTRIES) {
            put_name(&mut out, name);
            put_entry(&mut out, entry);
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, KeptError> {
        let mut input = Input(bytes);
        if input.array()? != MAGIC || u16::from_be_bytes(input.array()?) != VERSION {
            return Err(KeptError::Version);
        }
        let split = bytes.len().checked_sub(CRC_LEN).ok_or(KeptError::Damaged)?;
        let (body, crc) = bytes.split_at(split);
        if crc32c::crc32c(body).to_be_bytes() != *crc {
            return Err(KeptError::Damaged);
        }
        let mut kept = Self::default();
        for _ in 0..input.count()? {
            let name = input.name()?;
            let traffic = Traffic {
                sent: input.u64()?,
                received: input.u64()?,
                sent_packets: input.u64()?,
                received_packets: input.u64()?,
            };
            kept.paths.insert(name, traffic);
        }
        for _ in 0..input.count()? {
            let name = input.name()?;
            kept.books.insert(name, input.entry()?);
        }
        if input.0.len() != CRC_LEN {
            return Err(KeptError::Damaged);
        }
        Ok(kept)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count.min(MAX_ENTRIES)).unwrap_or(0);
    out.extend_from_slice(&count.to_be_bytes());
}

/// Names come from a configuration that bounds them.
fn put_name(out: &mut Vec<u8>, name: &str) {
    let len = u8::try_from(name.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend(name.bytes().take(len.into()));
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let left = entry.left.unwrap_or(Left {
        start_ms: 0,
        used: 0,
    });
    let unproven = if entry.unproven_ms.is_some() {
        HAS_UNPROVEN
    } else {
        0
    };
    let has_left = if entry.left.is_some() { HAS_LEFT } else { 0 };
    out.extend_from_slice(&entry.calendar.to_be_bytes());
    out.extend_from_slice(&entry.start_ms.to_be_bytes());
    out.extend_from_slice(&entry.end_ms.to_be_bytes());
    out.extend_from_slice(&entry.used.to_be_bytes());
    out.extend_from_slice(&entry.boot_id.to_be_bytes());
    out.extend_from_slice(&entry.mark_wall_ms.to_be_bytes());
    out.extend_from_slice(&entry.mark_running_ms.to_be_bytes());
    let is_lost = if entry.is_lost { IS_LOST } else { 0 };
    out.push(unproven | has_left | is_lost);
    out.extend_from_slice(&entry.unproven_ms.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&left.start_ms.to_be_bytes());
    out.extend_from_slice(&left.used.to_be_bytes());
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], KeptError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(KeptError::Damaged)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, KeptError> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, KeptError> {
        self.array().map(i64::from_be_bytes)
    }

    fn count(&mut self) -> Result<usize, KeptError> {
        let count = usize::from(u16::from_be_bytes(self.array()?));
        if count > MAX_ENTRIES {
            return Err(KeptError::Damaged);
        }
        Ok(count)
    }

    fn name(&mut self) -> Result<String, KeptError> {
        let [len] = self.array()?;
        let (name, rest) = self
            .0
            .split_at_checked(len.into())
            .ok_or(KeptError::Damaged)?;
        self.0 = rest;
        String::from_utf8(name.to_vec()).map_err(|_| KeptError::Damaged)
    }

    fn entry(&mut self) -> Result<Entry, KeptError> {
        let mut entry = Entry {
            calendar: self.u64()?,
            start_ms: self.i64()?,
            end_ms: self.i64()?,
            used: self.u64()?,
            boot_id: self.array().map(u128::from_be_bytes)?,
            mark_wall_ms: self.i64()?,
            mark_running_ms: self.u64()?,
            unproven_ms: None,
            left: None,
            is_lost: false,
        };
        let [flags] = self.array()?;
        let (unproven_ms, start_ms, used) = (self.u64()?, self.i64()?, self.u64()?);
        entry.unproven_ms = (flags & HAS_UNPROVEN != 0).then_some(unproven_ms);
        entry.is_lost = flags & IS_LOST != 0;
        entry.left = (flags & HAS_LEFT != 0).then_some(Left { start_ms, used });
        Ok(entry)
    }
}

/// How many bytes are written down before they move.
///
/// Enough for a few seconds, so that a flash disk isn't worn out; little, because a kill takes them from the
/// allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead(u64);

impl Ahead {
    /// A site with nothing to say, which sends half a megabyte a day, writes some 17 times.
    const LEAST: u64 = 64 << 10;
    /// Four seconds of 128 Mbit/s.
    const MOST: u64 = 64 << 20;
    /// Seconds of traffic at the speed that was seen.
    const SECONDS: u64 = 4;
    /// Of an allowance, at most: a period takes 200 writes, and a kill 1 %.
    const PART: u64 = 100;
    /// A few packets, however small the allowance.
    const PACKETS: u64 = 8 << 10;

    pub(super) const fn new() -> Self {
        Self(Self::LEAST)
    }

    pub(super) const fn bytes(self) -> u64 {
        self.0
    }

    /// At the speed of late; when it is used up at once, the speed isn't known yet. `allowance` is the
    /// smallest that it counts against.
    pub(super) fn follow(&mut self, bytes_per_sec: u64, is_used_up: bool, allowance: Option<u64>) {
        let wanted = bytes_per_sec.saturating_mul(Self::SECONDS);
        let grown = if is_used_up {
            self.0.saturating_mul(4)
        } else {
            0
        };
        let part = allowance.map_or(u64::MAX, |bytes| (bytes / Self::PART).max(Self::PACKETS));
        self.0 = wanted.max(grown).clamp(Self::LEAST, Self::MOST).min(part);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept() -> Kept {
        let entry = Entry {
            calendar: 0x1234_5678_0103,
            start_ms: 1_793_487_600_000,
            end_ms: 1_796_079_600_000,
            used: 4_100_000_000,
            boot_id: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
            mark_wall_ms: 1_795_824_000_000,
            mark_running_ms: 86_400_000,
            unproven_ms: None,
            left: None,
            is_lost: false,
        };
        let unproven = Entry {
            unproven_ms: Some(7),
            left: Some(Left {
                start_ms: -1,
                used: 9,
            }),
            ..entry
        };
        let traffic = Traffic {
            sent: 1,
            received: 2,
            sent_packets: 3,
            received_packets: 4,
        };
        Kept {
            paths: [
                ("wifi".to_owned(), traffic),
                ("lte".to_owned(), Traffic::default()),
            ]
            .into(),
            books: [
                ("site".to_owned(), entry),
                ("path lte".to_owned(), unproven),
            ]
            .into(),
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        assert_eq!(Kept::decode(&kept().encode()), Ok(kept()));
        assert_eq!(Kept::decode(&Kept::default().encode()), Ok(Kept::default()));
    }

    #[test]
    fn the_layout_is_pinned() {
        let hex: String = kept()
            .encode()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, include_str!("meter/kept-1.hex").trim_end());
    }

    #[test]
    fn damage_and_other_versions_are_told_apart() {
        let good = kept().encode();
        for at in 6..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(Kept::decode(&bad), Err(KeptError::Damaged), "{at}");
        }
        let mut later = good.clone();
        later[5] = 2;
        assert_eq!(Kept::decode(&later), Err(KeptError::Version));
        for len in 0..good.len() {
            assert!(Kept::decode(&good[..len]).is_err());
        }
    }

    #[test]
    fn what_is_ahead_follows_the_speed_within_bounds() {
        let mut ahead = Ahead::new();
        ahead.follow(0, true, None);
        assert_eq!(ahead.bytes(), 256 << 10);
        ahead.follow(12_500_000, false, None);
        assert_eq!(ahead.bytes(), 50_000_000);
        ahead.follow(u64::MAX, true, None);
        assert_eq!(ahead.bytes(), 64 << 20);
        ahead.follow(12_500_000, true, Some(1_000_000_000));
        assert_eq!(ahead.bytes(), 10_000_000);
        ahead.follow(12_500_000, true, Some(100_000));
        assert_eq!(ahead.bytes(), 8 << 10);
        ahead.follow(10, false, None);
        assert_eq!(ahead.bytes(), 64 << 10);
    }

    proptest! {
        #[test]
        fn no_file_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(Kept::decode(&bytes));
        }
    }
}
