//! The bytes of the checkpoint topic.
//!
//! A lane's partition holds four kinds of records, all compacted by key. Integers are big endian.
//!
//! ```text
//! checkpoint  key    kind = 1 | site length u8 | site | incarnation 16 bytes | partition u32 | topic
//!             value  version = 1 | next offset u64 | chain u64 | lost u64 | dead u64 | wall ms i64 | crc u32
//!             value  version = 2 | next offset u64 | chain u64 | lost u64 | dead u64 | elsewhere u64 | wall ms i64 | crc u32
//! second      key    kind = 4, the rest as of a checkpoint: of the second track of a partition at the site
//!             value  as of a checkpoint
//! claim       key    kind = 2
//!             value  version = 1 | wall ms i64 | hub name length u8 | hub name | crc u32
//! layout      key    kind = 3
//!             value  version = 1 | lanes u32 | crc u32
//! ```
//! A claim says who took the lane over last. The layout is written once, with the first transaction, and never
//! again: a site's checkpoint is where the number of lanes of that day put it.
//!
//! The checksum is CRC-32C of the key and of the value before it, so that a value cannot pass for
//! another log's. `lost` counts the records that the site dropped by policy (gaps), `dead` those that
//! went to the dead-letter topic; with `next offset` they are the log's ledger, and they are exact
//! because they commit together with what they count. `elsewhere` counts the records that the partition's other
//! track has; version 1 has none. Wall times only inform people.
//!
//! Nothing read is trusted: a key that is not ours is somebody else's record and is passed over; a value
//! that does not fit its key marks the log as damaged, and the lane refuses that site rather than
//! guess where it was.

use shared::ids::{Incarnation, SiteId, TopicName, TopicPartition, Track};

use super::Checkpoint;

const KIND_CHECKPOINT: u8 = 1;
const KIND_CLAIM: u8 = 2;
const KIND_LAYOUT: u8 = 3;
const KIND_SECOND: u8 = 4;
const VERSION: u8 = 1;
/// Of a checkpoint with records elsewhere.
const VERSION_ELSEWHERE: u8 = 2;
const CHECKPOINT_VALUE_LEN: usize = 1 + 6 * 8 + 4;

/// A log as the hub knows it: whose, of which history, which partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey {
    /// Whose.
    pub site: SiteId,
    /// Of which history.
    pub incarnation: Incarnation,
    /// Which partition at the site.
    pub log: TopicPartition,
}

/// A log's ledger as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// What the cluster holds.
    pub checkpoint: Checkpoint,
    /// Records that the site dropped by policy: part of `next_offset`, in no topic.
    pub lost: u64,
    /// Records that are in the dead-letter topic instead of their own.
    pub dead: u64,
    /// Records that the partition's other track has: part of `next_offset`.
    pub elsewhere: u64,
}

impl Stored {
    /// What a log starts from that the cluster has never heard of.
    pub const NOTHING: Self = Self {
        checkpoint: Checkpoint {
            next_offset: 0,
            chain: 0,
        },
        lost: 0,
        dead: 0,
        elsewhere: 0,
    };
}

/// By how much logs' ledgers grew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Offsets in all, but for those that another track has.
    pub offsets: u64,
    /// Those that the site dropped.
    pub lost: u64,
    /// Those in the dead-letter topic.
    pub dead: u64,
}

impl Moved {
    /// Adds the difference of one log's two ledgers.
    pub fn add(&mut self, before: &Stored, after: &Stored) {
        let grown = |before: u64, after: u64| after.saturating_sub(before);
        let (from, to) = (before.checkpoint, after.checkpoint);
        self.offsets += grown(from.next_offset, to.next_offset)
            .saturating_sub(grown(before.elsewhere, after.elsewhere));
        self.lost += grown(before.lost, after.lost);
        self.dead += grown(before.dead, after.dead);
    }
}

/// Who serves a lane; the last record that a lane writes before it reads its checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// When, ms since the epoch.
    pub at_ms: i64,
    /// A name for people.
    pub hub: String,
}

/// What a record of the checkpoint topic says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A log's ledger; `None` when somebody deleted it.
    Checkpoint(LogKey, Option<Stored>),
    /// A lane was taken over.
    Claim(Claim),
    /// The value does not fit the key.
    Damaged(LogKey),
    /// Into how many lanes the sites are spread; `None` when it cannot be read, perhaps because a later
    /// version wrote it.
    Layout(Option<u32>),
    /// Not one of ours.
    Foreign,
}

/// The key of a log's checkpoint.
#[must_use]
pub fn checkpoint_key(key: &LogKey) -> Vec<u8> {
    let site = key.site.as_str().as_bytes();
    let topic = key.log.topic.as_str().as_bytes();
    let mut out = Vec::with_capacity(2 + site.len() + 16 + 4 + topic.len());
    out.push(match key.log.track {
        Track::First => KIND_CHECKPOINT,
        Track::Second => KIND_SECOND,
    });
    out.push(u8::try_from(site.len()).expect("site names have at most 63 characters"));
    out.extend_from_slice(site);
    out.extend_from_slice(&key.incarnation.0.to_be_bytes());
    out.extend_from_slice(&key.log.partition.to_be_bytes());
    out.extend_from_slice(topic);
    out
}

/// The value of a log's checkpoint, sealed to its key.
#[must_use]
pub fn checkpoint_value(key: &[u8], stored: &Stored, at_ms: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHECKPOINT_VALUE_LEN);
    let has_elsewhere = stored.elsewhere > 0;
    out.push(if has_elsewhere {
        VERSION_ELSEWHERE
    } else {
        VERSION
    });
    out.extend_from_slice(&stored.checkpoint.next_offset.to_be_bytes());
    out.extend_from_slice(&stored.checkpoint.chain.to_be_bytes());
    out.extend_from_slice(&stored.lost.to_be_bytes());
    out.extend_from_slice(&stored.dead.to_be_bytes());
    if has_elsewhere {
        out.extend_from_slice(&stored.elsewhere.to_be_bytes());
    }
    out.extend_from_slice(&at_ms.to_be_bytes());
    seal(key, out)
}

/// The key of a lane's claim.
#[must_use]
pub fn claim_key() -> Vec<u8> {
    vec![KIND_CLAIM]
}

/// The value of a lane's claim. A hub's name is cut to 255 bytes.
#[must_use]
pub fn claim_value(claim: &Claim) -> Vec<u8> {
    let name = claim.hub.as_bytes();
    let len = u8::try_from(name.len()).unwrap_or(u8::MAX);
    let mut out = vec![VERSION];
    out.extend_from_slice(&claim.at_ms.to_be_bytes());
    out.push(len);
    out.extend_from_slice(&name[..usize::from(len)]);
    seal(&claim_key(), out)
}

/// The key of a lane's layout.
#[must_use]
pub fn layout_key() -> Vec<u8> {
    vec![KIND_LAYOUT]
}

/// The value of a lane's layout.
#[must_use]
pub fn layout_value(lanes: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&lanes.to_be_bytes());
    seal(&layout_key(), out)
}

fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&crc.to_be_bytes());
    value
}

/// Reads a record of the checkpoint topic.
#[must_use]
pub fn read(key: &[u8], value: Option<&[u8]>) -> Entry {
    match key.split_first() {
        Some((&KIND_CLAIM, [])) => value
            .and_then(|value| read_claim(key, value))
            .map_or(Entry::Foreign, Entry::Claim),
        Some((&KIND_LAYOUT, [])) => Entry::Layout(value.and_then(|value| {
            let mut rest = unseal(key, value)?;
            let lanes = u32::from_be_bytes(take_array(&mut rest)?);
            rest.is_empty().then_some(lanes)
        })),
        Some((&kind @ (KIND_CHECKPOINT | KIND_SECOND), rest)) => {
            match (read_log_key(kind, rest), value) {
                (None, _) => Entry::Foreign,
                (Some(log), None) => Entry::Checkpoint(log, None),
                (Some(log), Some(value)) => match read_stored(key, value) {
                    None => Entry::Damaged(log),
                    stored @ Some(_) => Entry::Checkpoint(log, stored),
                },
            }
        }
        Some(_) | None => Entry::Foreign,
    }
}

fn read_log_key(kind: u8, mut rest: &[u8]) -> Option<LogKey> {
    let site_len = take_array::<1>(&mut rest)?[0];
    let site = take(&mut rest, usize::from(site_len))?;
    let incarnation = u128::from_be_bytes(take_array(&mut rest)?);
    let partition = u32::from_be_bytes(take_array(&mut rest)?);
    Some(LogKey {
        site: SiteId::new(std::str::from_utf8(site).ok()?).ok()?,
        incarnation: Incarnation(incarnation),
        log: TopicPartition {
            topic: TopicName::new(std::str::from_utf8(rest).ok()?).ok()?,
            partition,
            track: if kind == KIND_SECOND {
                Track::Second
            } else {
                Track::First
            },
        },
    })
}

fn read_stored(key: &[u8], value: &[u8]) -> Option<Stored> {
    let (version, mut rest) = unseal_any(key, value)?;
    if !matches!(version, VERSION | VERSION_ELSEWHERE) {
        return None;
    }
    let mut next = || take_array(&mut rest).map(u64::from_be_bytes);
    let stored = Stored {
        checkpoint: Checkpoint {
            next_offset: next()?,
            chain: next()?,
        },
        lost: next()?,
        dead: next()?,
        elsewhere: match version {
            VERSION_ELSEWHERE => next()?,
            _ => 0,
        },
    };
    let _at_ms = next()?;
    rest.is_empty().then_some(stored)
}

fn read_claim(key: &[u8], value: &[u8]) -> Option<Claim> {
    let mut rest = unseal(key, value)?;
    let at_ms = i64::from_be_bytes(take_array(&mut rest)?);
    let name_len = take_array::<1>(&mut rest)?[0];
    let name = take(&mut rest, usize::from(name_len))?;
    rest.is_empty().then(|| Claim {
        at_ms,
        hub: String::from_utf8_lossy(name).into_owned(),
    })
}

/// Checks version and checksum; what lies between.
fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (version, rest) = unseal_any(key, value)?;
    (version == VERSION).then_some(rest)
}

/// Checks the checksum; the version, and what lies between.
fn unseal_any<'a>(key: &[u8], value: &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (body, crc) = value.split_last_chunk::<4>()?;
    let computed = crc32c::crc32c_append(crc32c::crc32c(key), body);
    let (&version, rest) = body.split_first()?;
    (computed == u32::from_be_bytes(*crc)).then_some((version, rest))
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = from.split_at_checked(len)?;
    *from = tail;
    Some(head)
}

fn take_array<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = from.split_first_chunk::<N>()?;
    *from = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_checkpoint_has_these_bytes() {
        let (key, value) = encode(&log_key(), &stored());
        assert_eq!(
            hex(&key),
            "01067368 6f702d31 00112233 44556677 8899aabb ccddeeff 00000003 6f726465 7273"
                .replace(' ', "")
        );
        assert_eq!(
            hex(&value),
            "01 000000000000002a 1122334455667788 0000000000000005 0000000000000001 \
             0000018bcfe56800 e3676d4b"
                .replace(' ', "")
        );
    }

    #[test]
    fn a_claim_has_these_bytes() {
        let value = claim_value(&claim());
        assert_eq!(hex(&claim_key()), "02");
        assert_eq!(
            hex(&value),
            "01 0000018bcfe56800 05 6875622d61 582fc55d".replace(' ', "")
        );
        assert_eq!(read(&claim_key(), Some(&value)), Entry::Claim(claim()));
    }

    #[test]
    fn a_layout_has_these_bytes() {
        let value = layout_value(4);
        assert_eq!(hex(&layout_key()), "03");
        assert_eq!(hex(&value), "01 00000004 9c1d4fe3".replace(' ', ""));
        assert_eq!(read(&layout_key(), Some(&value)), Entry::Layout(Some(4)));
        assert_eq!(read(&layout_key(), Some(&value[1..])), Entry::Layout(None));
    }

    #[test]
    fn what_was_written_is_read() {
        let (key, value) = encode(&log_key(), &stored());
        assert_eq!(
            read(&key, Some(&value)),
            Entry::Checkpoint(log_key(), Some(stored()))
        );
        assert_eq!(read(&key, None), Entry::Checkpoint(log_key(), None));
    }

    #[test]
    fn a_second_track_has_a_key_of_its_own_and_counts_what_the_first_one_has() {
        let mut log = log_key();
        log.log.track = Track::Second;
        let ledger = Stored {
            elsewhere: 30,
            ..stored()
        };
        let (key, value) = encode(&log, &ledger);
        assert_eq!(key[1..], checkpoint_key(&log_key())[1..]);
        assert_eq!((key[0], value[0]), (4, 2));
        let expected = Entry::Checkpoint(log, Some(ledger));
        assert_eq!(read(&key, Some(&value)), expected);
        let mut moved = Moved::default();
        moved.add(&Stored::NOTHING, &ledger);
        assert_eq!((moved.offsets, moved.lost, moved.dead), (12, 5, 1));
    }

    #[test]
    fn a_value_does_not_pass_for_another_logs() {
        let (_, value) = encode(&log_key(), &stored());
        let mut other = log_key();
        other.log.partition = 4;
        let key = checkpoint_key(&other);
        assert_eq!(read(&key, Some(&value)), Entry::Damaged(other));
    }

    #[test]
    fn any_flipped_bit_in_a_value_is_seen() {
        let (key, value) = encode(&log_key(), &stored());
        for bit in 0..value.len() * 8 {
            let mut bad = value.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&key, Some(&bad)), Entry::Damaged(log_key()), "{bit}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(
            key in proptest::collection::vec(any::<u8>(), 0..80),
            kind in 0_u8..6,
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..80)),
        ) {
            let mut key = key;
            if let Some(first) = key.first_mut() {
                *first = kind;
            }
            drop(read(&key, value.as_deref()));
        }
    }

    fn encode(log: &LogKey, stored: &Stored) -> (Vec<u8>, Vec<u8>) {
        let key = checkpoint_key(log);
        let value = checkpoint_value(&key, stored, 1_700_000_000_000);
        (key, value)
    }

    fn log_key() -> LogKey {
        LogKey {
            site: SiteId::new("shop-1").unwrap(),
            incarnation: Incarnation(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
            log: TopicPartition {
                topic: TopicName::new("orders").unwrap(),
                partition: 3,
                track: Track::First,
            },
        }
    }

    fn stored() -> Stored {
        Stored {
            checkpoint: Checkpoint {
                next_offset: 42,
                chain: 0x1122_3344_5566_7788,
            },
            lost: 5,
            dead: 1,
            elsewhere: 0,
        }
    }

    fn claim() -> Claim {
        Claim {
            at_ms: 1_700_000_000_000,
            hub: "hub-a".to_owned(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut out, byte| {
            write!(out, "{byte:02x}").unwrap();
            out
        })
    }
}
