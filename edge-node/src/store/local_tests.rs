//! What readers at the site get, from both stores.

use bytes::Bytes;
use proptest::prelude::*;
use shared::ids::{Offset, Track};
use shared::record::{BatchBuilder, BatchHeader, Compression};

use super::contract::{
    HOUR, NOW, append, batch, config, ledger, limited, memory, rocks, rules, seeded, tempdir, topic,
};
use super::{
    FetchLimit, Fetched, LogRange, Moment, OnFull, PartitionId, RocksStore, Store, StoreConfig,
};

const ALL: FetchLimit = FetchLimit {
    bytes: usize::MAX,
    is_first_whole: false,
};

#[test]
fn a_local_reader_gets_batches_as_they_are_stored() {
    for site in [memory(&config()), rocks(&config())] {
        let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
        for _ in 0..5 {
            append(s, p, &batch(4, 100)).unwrap();
        }
        let len = batch(4, 100).len();
        let stored = fetched(s, p, 0, ALL);
        assert_eq!(bases(&stored.1), [0, 4, 8, 12, 16]);
        let ends = |range: LogRange| (range.start, range.end, range.bytes);
        let bytes = 5 * u64::try_from(len).unwrap();
        assert_eq!((ends(stored.0.range), stored.0.next), ((0, 20, bytes), 20));
        for (from, bytes, is_first_whole, expected) in [
            (7, 3 * len, false, &[4, 8, 12][..]),
            (8, 3 * len - 1, false, &[8, 12]),
            (8, len - 1, false, &[]),
            (8, 0, true, &[8]),
            (16, usize::MAX, true, &[16]),
            (20, usize::MAX, true, &[]),
            (21, usize::MAX, true, &[]),
        ] {
            let limit = FetchLimit {
                bytes,
                is_first_whole,
            };
            assert_eq!(
                bases(&fetched(s, p, from, limit).1),
                expected,
                "{from} {limit:?}"
            );
        }
    }
}

#[test]
fn a_local_reader_steps_over_gaps_and_tells_nobody_of_them() {
    let len = u64::try_from(batch(1, 10).len()).unwrap();
    for site in [memory(&config()), rocks(&config())] {
        let s = &*site.store;
        let p = topic(s, "a", limited(OnFull::DropNewest, 3 * len));
        for _ in 0..6 {
            append(s, p, &batch(1, 10)).unwrap();
        }
        let (found, bytes) = fetched(s, p, 0, ALL);
        assert_eq!((bases(&bytes), found.next), (vec![0, 1, 2], 6));
        assert_eq!(fetched(s, p, 4, ALL).0.next, 6);
        s.acknowledge(p, Track::First, 3).unwrap();
        append(s, p, &batch(1, 10)).unwrap();
        assert_eq!(bases(&fetched(s, p, 3, ALL).1), [6]);
        // had the gap been told, it would count as a loss; as it is, the hub must hold the records
        s.acknowledge(p, Track::First, 7).unwrap();
        assert_eq!(ledger(s, "a").dropped_newest, 0);
        let below = fetched(s, p, 0, ALL);
        assert!(below.1.is_empty() && below.0.range.start > 0);
    }
}

#[test]
fn a_point_in_time_is_the_first_record_that_late() {
    // index entries behind every batch, behind some, and behind none
    for index_bytes in [1, 500, 1 << 20] {
        let config = StoreConfig {
            index_bytes,
            ..config()
        };
        for site in [memory(&config), rocks(&config)] {
            let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
            assert_eq!(s.offset_for_time(p, 0).unwrap(), None);
            assert_eq!(s.largest_timestamp(p).unwrap(), None);
            let times = [[5, 3], [9, 9], [2, 2], [7, 12], [1, 1], [12, 4], [30, 8]];
            for (n, times) in times.iter().enumerate() {
                append(s, p, &batch_at(times, n % 2 == 0)).unwrap();
            }
            let flat = times.concat();
            for wanted in 0..32 {
                let expected = flat.iter().position(|time| *time >= wanted);
                let found = s.offset_for_time(p, wanted).unwrap();
                assert_eq!(found, expected.map(|at| moment(&flat, at)), "{wanted}");
            }
            assert_eq!(s.largest_timestamp(p).unwrap(), Some(moment(&flat, 12)));
        }
    }
}

#[test]
fn a_point_in_time_is_found_after_a_restart_and_a_trim() {
    let config = StoreConfig {
        index_bytes: 300,
        ..config()
    };
    let dir = tempdir();
    let mut flat = Vec::new();
    for start in 0..3_i64 {
        let (store, _) = RocksStore::open(dir.path(), &config, seeded()).unwrap();
        let p = topic(&*store, "a", rules());
        for n in 0..10 {
            let times = [100 * start + n, 100 * start + 3 * (n % 4)];
            append(&*store, p, &batch_at(&times, false)).unwrap();
            flat.extend(times);
        }
        for wanted in (0..330).step_by(7) {
            let expected = flat.iter().position(|time| *time >= wanted);
            let found = store.offset_for_time(p, wanted).unwrap();
            assert_eq!(found, expected.map(|at| moment(&flat, at)), "{wanted}");
        }
        store.close();
    }
    let (store, _) = RocksStore::open(dir.path(), &config, seeded()).unwrap();
    let p = topic(&*store, "a", limited(OnFull::DropOldest, 1_500));
    store.sweep(NOW + HOUR).unwrap();
    let start = store.range(p).unwrap().start;
    let (_, stored) = fetched(&*store, p, 60, ALL);
    assert!(stored.is_empty());
    let first = fetch_first(&*store, p);
    assert!(first > 0, "{start}");
    for wanted in [0, 50, 105, 250, 400] {
        let expected = flat
            .iter()
            .enumerate()
            .position(|(at, time)| u64::try_from(at).unwrap() >= first && *time >= wanted);
        let found = store.offset_for_time(p, wanted).unwrap();
        assert_eq!(found, expected.map(|at| moment(&flat, at)), "{wanted}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_times_in_any_batches_are_found(
        batches in prop::collection::vec(prop::collection::vec(0_i64..50, 1..6), 1..40),
        index_bytes in 1_u64..2_000,
        wanted in 0_i64..55,
    ) {
        let site = memory(&StoreConfig { index_bytes, ..config() });
        let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
        for times in &batches {
            append(s, p, &batch_at(times, false)).unwrap();
        }
        let flat = batches.concat();
        let expected = flat.iter().position(|time| *time >= wanted);
        prop_assert_eq!(s.offset_for_time(p, wanted).unwrap(), expected.map(|at| moment(&flat, at)));
        let largest = flat.iter().max().unwrap();
        let expected = flat.iter().position(|time| time == largest).unwrap();
        prop_assert_eq!(s.largest_timestamp(p).unwrap(), Some(moment(&flat, expected)));
    }
}

fn moment(times: &[i64], at: usize) -> Moment {
    Moment {
        offset: u64::try_from(at).unwrap(),
        timestamp_ms: times[at],
    }
}

fn batch_at(times: &[i64], is_compressed: bool) -> Bytes {
    let mut builder = BatchBuilder::default();
    for time in times {
        builder.push(*time, None, Some(b"value"), &[]);
    }
    let codec = if is_compressed {
        Compression::Zstd
    } else {
        Compression::None
    };
    builder.build_with(codec, None).unwrap()
}

fn fetched(s: &dyn Store, p: PartitionId, from: Offset, limit: FetchLimit) -> (Fetched, Vec<u8>) {
    let mut out = Vec::new();
    let found = s.fetch(p, from, limit, &mut out).unwrap();
    (found, out)
}

fn fetch_first(s: &dyn Store, p: PartitionId) -> Offset {
    let start = s.range(p).unwrap().start;
    let (_, bytes) = fetched(s, p, start, ALL);
    bases(&bytes)[0]
}

/// Base offsets of batches that stand one behind the other.
fn bases(mut bytes: &[u8]) -> Vec<Offset> {
    let mut bases = Vec::new();
    while !bytes.is_empty() {
        let header = BatchHeader::parse(bytes).unwrap();
        shared::record::verify_checksum(&bytes[..header.total_len], header.crc).unwrap();
        bases.push(header.base_offset);
        bytes = &bytes[header.total_len..];
    }
    bases
}
