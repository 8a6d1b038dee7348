//! Stored values, laid out by hand. Numbers are big endian; each value begins with its version.
//!
//! ```text
//! batch      1 │ 0 0 0 │ count u32 │ chain u64 │ bytes u64 │ age u64 │ position u64 │ record batch
//!              (chain and bytes: of all before it in the partition; position: bytes appended before
//!              it in the whole store; age: store clock, ms)
//! index      2 │ point │ age u64 │ max timestamp i64
//!              (1: without a max timestamp that could be used, a batch's own stands in its place)
//! point      offset u64 │ chain u64 │ bytes u64
//! gap        1 │ reason u8 │ from point │ to point
//! partition  2 │ version u64 │ origin u64 │ start point │ acked point │ end point │ committed u64
//!              │ expired u64 │ oldest u64 │ newest u64 │ damaged u64 │ last age u64
//!              │ index u32 │ topic length u8 │ topic │ deleted u64 │ retired u8
//!              (1: without the last two)
//! producer   1 │ epoch i16 │ used u64 │ n u8 │ n × (first i32 │ last i32 │ base offset u64)
//! store      1 │ incarnation u128 │ next partition u32 │ next producer i64 │ age u64 │ wall i64
//! ```
//! RocksDB has checksums over all of it; a value that does not parse is damage all the same. The whole
//! picture is in `docs/disk-format.md`; `golden/values.txt` pins the bytes.

use std::collections::VecDeque;

use shared::ids::{Incarnation, Offset, TopicName, Track};

use super::GapReason;
use super::age::AgeClock;
use super::partition::{Gap, Lost, Partition, Point, Told};
use super::producers::{ProducerState, Sent};

const VERSION: u8 = 1;
const INDEX_VERSION: u8 = 2;
const PARTITION_VERSION: u8 = 2;
/// Of books whose partition has or had a second track.
const TRACKS_VERSION: u8 = 3;

/// Bytes in front of a stored batch.
pub(super) const HEAD_LEN: usize = 40;

/// What stands in front of a stored batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHead {
    pub(super) count: u32,
    /// The partition's history before the batch.
    pub(super) chain: u64,
    /// The partition's logical bytes before the batch.
    pub(super) bytes: u64,
    pub(super) age_ms: u64,
    /// Bytes that the whole store appended before it.
    pub(super) position: u64,
}

/// An entry of the time index: everything before the point was appended at `age_ms` of the store's
/// clock or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) point: Point,
    pub(super) age_ms: u64,
    /// No batch between the entry before and this one has a larger timestamp; `i64::MAX` when that is not
    /// known.
    pub(super) max_timestamp_ms: i64,
}

/// What belongs to the whole store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreRecord {
    pub(super) incarnation: Incarnation,
    pub(super) next_partition: u32,
    /// First producer id of the block that was not begun.
    pub(super) next_producer: i64,
    pub(super) age: AgeClock,
}

impl StoreRecord {
    /// Of a store that was just made.
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            next_partition: 0,
            next_producer: 0,
            age: AgeClock::default(),
        }
    }
}

/// A batch in its stored form, with its base offset patched in.
pub(super) fn put_batch(out: &mut Vec<u8>, head: &BatchHead, base: Offset, batch: &[u8]) {
    out.clear();
    out.reserve(HEAD_LEN + batch.len());
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    out.extend_from_slice(&head.count.to_be_bytes());
    for word in [head.chain, head.bytes, head.age_ms, head.position] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(batch);
    shared::record::patch(&mut out[HEAD_LEN..], base, 0);
}

/// The head of a stored batch and the batch behind it.
pub(super) fn split_batch(value: &[u8]) -> Option<(BatchHead, &[u8])> {
    let mut input = Input::new(value)?;
    input.take::<3>()?;
    let head = BatchHead {
        count: input.u32()?,
        chain: input.u64()?,
        bytes: input.u64()?,
        age_ms: input.u64()?,
        position: input.u64()?,
    };
    (head.count > 0 && input.0.len() >= shared::record::HEADER_LEN).then_some((head, input.0))
}

/// The checksum of a stored batch as its header says.
pub(super) fn crc_of(batch: &[u8]) -> u32 {
    batch
        .get(17..)
        .and_then(|tail| tail.first_chunk())
        .map_or(0, |crc| u32::from_be_bytes(*crc))
}

pub(super) fn index_entry(entry: &IndexEntry) -> Vec<u8> {
    let mut out = vec![INDEX_VERSION];
    put_point(&mut out, &entry.point);
    out.extend_from_slice(&entry.age_ms.to_be_bytes());
    out.extend_from_slice(&entry.max_timestamp_ms.to_be_bytes());
    out
}

pub(super) fn parse_index_entry(value: &[u8]) -> Option<IndexEntry> {
    let (version, rest) = value.split_first()?;
    let mut input = Input(rest);
    let entry = IndexEntry {
        point: input.point()?,
        age_ms: input.u64()?,
        max_timestamp_ms: input.u64()?.cast_signed(),
    };
    match *version {
        INDEX_VERSION => Some(entry),
        VERSION => Some(IndexEntry {
            max_timestamp_ms: i64::MAX,
            ..entry
        }),
        _ => None,
    }
}

pub(super) fn gap(gap: &Gap) -> Vec<u8> {
    let mut out = vec![VERSION, gap.reason as u8];
    put_point(&mut out, &gap.from);
    put_point(&mut out, &gap.to);
    out
}

pub(super) fn parse_gap(value: &[u8]) -> Option<Gap> {
    let mut input = Input::new(value)?;
    let reason = match input.u8()? {
        1 => GapReason::Expired,
        2 => GapReason::DroppedOldest,
        3 => GapReason::DroppedNewest,
        4 => GapReason::Damaged,
        6 => GapReason::Deleted,
        _ => return None,
    };
    let (from, to) = (input.point()?, input.point()?);
    (from.offset < to.offset && from.bytes <= to.bytes).then_some(Gap {
        from,
        to,
        reason,
        // the process before may have sent it
        told: Told {
            from: from.offset,
            to: to.offset,
        },
    })
}

pub(super) fn partition(p: &Partition) -> Vec<u8> {
    let has_tracks = p.range().tracks.is_used();
    let mut out = vec![if has_tracks {
        TRACKS_VERSION
    } else {
        PARTITION_VERSION
    }];
    out.extend_from_slice(&p.version.to_be_bytes());
    out.extend_from_slice(&p.origin.to_be_bytes());
    for point in [&p.start, &p.acked, &p.end] {
        put_point(&mut out, point);
    }
    let lost = &p.lost;
    for number in [
        p.committed,
        lost.expired,
        lost.oldest,
        lost.newest,
        lost.damaged,
        p.last_age_ms,
    ] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&p.index.to_be_bytes());
    let name = p.topic.as_str().as_bytes();
    out.push(u8::try_from(name.len()).expect("topic names have at most 249 bytes"));
    out.extend_from_slice(name);
    out.extend_from_slice(&lost.deleted.to_be_bytes());
    out.push(u8::from(p.is_retired));
    if has_tracks {
        out.push(p.main.number());
        put_point(&mut out, &p.other);
        out.push(u8::from(p.split.is_some()));
        put_point(&mut out, &p.split.unwrap_or_default());
    }
    out
}

/// The books of a partition, without its gaps.
pub(super) fn parse_partition(value: &[u8]) -> Option<Partition> {
    let (layout, rest) = value.split_first()?;
    if !matches!(*layout, VERSION | PARTITION_VERSION | TRACKS_VERSION) {
        return None;
    }
    let mut input = Input(rest);
    let (version, origin) = (input.u64()?, input.u64()?);
    let (start, acked, end) = (input.point()?, input.point()?, input.point()?);
    let committed = input.u64()?;
    let lost = Lost {
        expired: input.u64()?,
        oldest: input.u64()?,
        newest: input.u64()?,
        damaged: input.u64()?,
        deleted: 0,
    };
    let last_age_ms = input.u64()?;
    let index = input.u32()?;
    let len = usize::from(input.u8()?);
    let (name, rest) = input.0.split_at_checked(len)?;
    let name = std::str::from_utf8(name).ok()?;
    let mut p = Partition::new(TopicName::new(name).ok()?, index);
    p.version = version;
    p.origin = origin;
    (p.start, p.acked, p.end) = (start, acked, end);
    p.committed = committed;
    p.lost = lost;
    let mut input = Input(rest);
    if matches!(*layout, PARTITION_VERSION | TRACKS_VERSION) {
        p.lost.deleted = input.u64()?;
        p.is_retired = input.u8()? != 0;
    }
    if *layout == TRACKS_VERSION {
        p.main = Track::of(input.u8()?)?;
        p.other = input.point()?;
        let is_split = input.u8()? != 0;
        p.split = Some(input.point()?).filter(|_| is_split);
    }
    p.last_age_ms = last_age_ms;
    let ordered = start.offset <= acked.offset
        && acked.offset <= end.offset
        && start.bytes <= acked.bytes
        && acked.bytes <= end.bytes
        && origin <= acked.offset
        && p.are_tracks_in_order();
    ordered.then_some(p)
}

pub(super) fn producer(state: &ProducerState) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&state.epoch.to_be_bytes());
    out.extend_from_slice(&state.used.to_be_bytes());
    out.push(u8::try_from(state.sent.len()).expect("a handful is remembered"));
    for sent in &state.sent {
        out.extend_from_slice(&sent.first.to_be_bytes());
        out.extend_from_slice(&sent.last.to_be_bytes());
        out.extend_from_slice(&sent.base_offset.to_be_bytes());
    }
    out
}

pub(super) fn parse_producer(value: &[u8]) -> Option<ProducerState> {
    let mut input = Input::new(value)?;
    let epoch = i16::from_be_bytes(input.take()?);
    let used = input.u64()?;
    let count = usize::from(input.u8()?);
    let mut sent = VecDeque::with_capacity(count);
    for _ in 0..count {
        sent.push_back(Sent {
            first: i32::from_be_bytes(input.take()?),
            last: i32::from_be_bytes(input.take()?),
            base_offset: input.u64()?,
        });
    }
    Some(ProducerState {
        epoch,
        used,
        sent,
        is_doubtful: false,
    })
}

pub(super) fn store(record: &StoreRecord) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&record.incarnation.0.to_be_bytes());
    out.extend_from_slice(&record.next_partition.to_be_bytes());
    out.extend_from_slice(&record.next_producer.to_be_bytes());
    out.extend_from_slice(&record.age.now_ms.to_be_bytes());
    out.extend_from_slice(&record.age.wall_ms.to_be_bytes());
    out
}

pub(super) fn parse_store(value: &[u8]) -> Option<StoreRecord> {
    let mut input = Input::new(value)?;
    Some(StoreRecord {
        incarnation: Incarnation(u128::from_be_bytes(input.take()?)),
        next_partition: input.u32()?,
        next_producer: input.u64()?.cast_signed(),
        age: AgeClock {
            now_ms: input.u64()?,
            wall_ms: input.u64()?.cast_signed(),
        },
    })
}

fn put_point(out: &mut Vec<u8>, point: &Point) {
    for word in [point.offset, point.chain, point.bytes] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// A cursor that ends instead of reading past the end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Begins behind a version that is known.
    fn new(value: &'a [u8]) -> Option<Self> {
        value.strip_prefix(&[VERSION]).map(Self)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn point(&mut self) -> Option<Point> {
        Some(Point {
            offset: self.u64()?,
            chain: self.u64()?,
            bytes: self.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_as_it_was_and_no_prefix_of_it_parses() {
        let entry = samples::entry();
        check(&index_entry(&entry), parse_index_entry, &entry);
        let hole = samples::gap();
        check(&gap(&hole), parse_gap, &hole);
        let books = samples::books();
        check(&partition(&books), parse_partition, &books);
        let books = samples::tracks();
        check(&partition(&books), parse_partition, &books);
        let state = samples::producer();
        check(&producer(&state), parse_producer, &state);
        let all = samples::store();
        check(&store(&all), parse_store, &all);
    }

    /// What is on a disk somewhere must stay readable: a change here is a new version.
    #[test]
    fn the_bytes_stay_as_they_are() {
        let mut stored = Vec::new();
        let head = BatchHead {
            count: 2,
            chain: 3,
            bytes: 4,
            age_ms: 5,
            position: 6,
        };
        put_batch(&mut stored, &head, 77, &[0xaa; 61]);
        let all = [
            ("batch", stored),
            ("index", index_entry(&samples::entry())),
            ("gap", gap(&samples::gap())),
            ("partition", partition(&samples::books())),
            ("tracks", partition(&samples::tracks())),
            ("producer", producer(&samples::producer())),
            ("store", store(&samples::store())),
        ];
        let text: String = all
            .iter()
            .map(|(name, bytes)| {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{name} {hex}\n")
            })
            .collect();
        assert_eq!(text, include_str!("golden/values.txt"));
    }

    #[test]
    fn values_of_the_first_version_stay_readable() {
        let bytes = |hex: &str| -> Vec<u8> {
            let pairs = hex.as_bytes().chunks(2);
            let texts = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
            texts
                .map(|text| u8::from_str_radix(text, 16).unwrap())
                .collect()
        };
        let all = include_str!("golden/values-1.txt");
        let line = |name: &str| {
            let mut lines = all.lines();
            bytes(lines.find_map(|line| line.strip_prefix(name)).unwrap())
        };
        let entry = parse_index_entry(&line("index ")).unwrap();
        let unknown = IndexEntry {
            max_timestamp_ms: i64::MAX,
            ..samples::entry()
        };
        assert_eq!(entry, unknown);
        let mut books = samples::books();
        (books.lost.deleted, books.is_retired) = (0, false);
        assert_eq!(parse_partition(&line("partition ")), Some(books));
    }

    mod samples {
        use super::*;

        fn point(n: u64) -> Point {
            Point {
                offset: n,
                chain: !n,
                bytes: n * 3,
            }
        }

        pub(super) fn entry() -> IndexEntry {
            IndexEntry {
                point: point(5),
                age_ms: 6,
                max_timestamp_ms: -7,
            }
        }

        pub(super) fn gap() -> Gap {
            Gap {
                from: point(5),
                to: point(6),
                reason: GapReason::Damaged,
                told: Told { from: 5, to: 6 },
            }
        }

        pub(super) fn books() -> Partition {
            let mut books = Partition::new(TopicName::new("plant.1").unwrap(), 3);
            (books.version, books.origin, books.committed) = (9, 2, 4);
            (books.start, books.acked, books.end) = (point(1), point(7), point(9));
            books.lost = Lost {
                expired: 1,
                oldest: 2,
                newest: 3,
                damaged: 4,
                deleted: 5,
            };
            books.is_retired = true;
            books.last_age_ms = 88;
            books
        }

        pub(super) fn tracks() -> Partition {
            Partition {
                main: Track::Second,
                other: point(3),
                split: Some(point(8)),
                ..books()
            }
        }

        pub(super) fn producer() -> ProducerState {
            let sent = Sent {
                first: i32::MAX,
                last: 3,
                base_offset: 1 << 50,
            };
            ProducerState {
                epoch: 7,
                used: 99,
                sent: VecDeque::from([sent, sent]),
                is_doubtful: false,
            }
        }

        pub(super) fn store() -> StoreRecord {
            StoreRecord {
                incarnation: Incarnation(1 << 100),
                next_partition: 4,
                next_producer: 1000,
                age: AgeClock {
                    now_ms: 5,
                    wall_ms: -6,
                },
            }
        }
    }

    #[test]
    fn a_batch_is_stored_behind_its_head_and_with_its_offset() {
        let head = BatchHead {
            count: 2,
            chain: 3,
            bytes: 4,
            age_ms: 5,
            position: 6,
        };
        let mut out = Vec::new();
        put_batch(&mut out, &head, 77, &[0xaa; 70]);
        let (found, batch) = split_batch(&out).unwrap();
        assert_eq!((found, &batch[..8]), (head, &77_u64.to_be_bytes()[..]));
        assert_eq!(split_batch(&out[..90]), None);
    }

    fn check<T: PartialEq + std::fmt::Debug>(
        bytes: &[u8],
        parse: fn(&[u8]) -> Option<T>,
        expected: &T,
    ) {
        assert_eq!(parse(bytes).as_ref(), Some(expected));
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), None, "first {len} bytes");
        }
        let mut other_version = bytes.to_vec();
        other_version[0] = 99;
        assert_eq!(parse(&other_version), None);
    }
}
