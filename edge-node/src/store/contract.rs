//! The contract of [`Store`], run against both implementations, and what tests of stores share.

use std::sync::Arc;

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName, Track};
use shared::record::{BatchBuilder, BatchHeader, Compression, ProducerStamp};
use tempfile::TempDir;

use super::{
    Append, AppendError, Appended, GapReason, Item, Ledger, MemoryStore, OnFull, PartitionId,
    RocksStore, StateChange, Store, StoreConfig, StoreError, Topic, TopicRules, Tracks,
};

/// A store under test, and the directory that it lives in, if any.
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    _dir: Option<TempDir>,
}

/// A config of small numbers.
pub(super) fn config() -> StoreConfig {
    StoreConfig {
        min_free_bytes: 0,
        reserve_bytes: 0,
        index_bytes: 1,
        ..StoreConfig::default()
    }
}

pub(super) fn seeded() -> Box<dyn rand::Rng + Send> {
    Box::new(<rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(7))
}

/// In memory where the machine has such a directory: there are thousands of syncs in these tests.
pub(super) fn tempdir() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub(super) fn memory(config: &StoreConfig) -> Subject {
    let store = Arc::new(MemoryStore::new(config, Incarnation(1)));
    Subject { store, _dir: None }
}

pub(super) fn rocks(config: &StoreConfig) -> Subject {
    let dir = tempdir();
    let (store, report) = RocksStore::open(dir.path(), config, seeded()).unwrap();
    assert!(report.is_new);
    Subject {
        store,
        _dir: Some(dir),
    }
}

/// Runs each promise against both stores.
macro_rules! promises {
    ($($name:ident)*) => {
        mod in_memory {
            $(#[test] fn $name() { super::$name(super::memory); })*
        }
        mod on_disk {
            $(#[test] fn $name() { super::$name(super::rocks); })*
        }
    };
}

promises! {
    batches_come_back_verbatim_in_order
    a_read_begins_with_the_item_that_holds_the_offset
    the_cursor_moves_up_only_and_to_boundaries
    same_history_means_same_chain
    an_idempotent_producer_is_stored_once
    producer_ids_are_never_given_twice
    a_full_topic_pushes_back
    a_full_topic_drops_its_oldest_and_leaves_a_gap
    a_full_topic_drops_the_newest_and_leaves_a_gap
    a_split_log_is_acknowledged_in_two_places
    a_gap_that_was_read_grows_no_more
    records_that_were_sent_before_they_were_dropped_count_as_committed
    acknowledged_records_go_first
    the_quota_counts_all_topics
    old_records_expire_and_unsent_ones_leave_a_gap
    a_clock_that_jumps_expires_nothing
    topics_grow_and_take_new_rules
    a_new_incarnation_begins_at_the_cursors
    readers_are_woken
    unknown_partitions_are_refused
    facts_are_written_with_their_batch_or_not_at_all
    a_reader_below_the_start_is_shown_what_is_gone
}

type Make = fn(&StoreConfig) -> Subject;

/// Also when nothing stands behind it: a reader that got nothing would ask for ever.
fn a_reader_below_the_start_is_shown_what_is_gone(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
    for _ in 0..3 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    s.acknowledge(p, Track::First, 3).unwrap();
    for start in [2, 3] {
        s.delete_records(p, start).unwrap();
        let found = s.browse(p, 0, 1).unwrap();
        let Item::Gap { from, to, .. } = &found[0] else {
            panic!("{found:?}");
        };
        assert_eq!((*from, *to), (0, start));
        assert_eq!(found.len() as u64, 4 - start, "and what is left");
    }
    assert_eq!(s.browse(p, 3, 1), Ok(vec![]));
    assert_eq!(s.read(p, 0, 1), Ok(vec![]), "the hub has it");
}

fn facts_are_written_with_their_batch_or_not_at_all(make: Make) {
    use super::StateSpace::{GroupOffset, MqttInflight, MqttSession};
    let s = make(&config()).store;
    let p = topic(&*s, "a", rules());
    let fact = |key: &'static str, value: &'static str| StateChange::put(MqttSession, key, value);
    let put = |changes| s.put_state(changes).blocking_recv().unwrap();
    put(vec![fact("a/1", "x"), fact("a/2", "x"), fact("b", "x")]).unwrap();
    put(vec![
        fact("a/2", "y"),
        StateChange::forget(MqttSession, "b"),
        StateChange::put(MqttInflight, "a/1", "other"),
    ])
    .unwrap();
    let found = |prefix: &str| -> Vec<(String, String)> {
        let found = s.state(MqttSession, prefix.as_bytes()).unwrap();
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        found.iter().map(|(k, v)| (text(k), text(v))).collect()
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(found(""), [pair("a/1", "x"), pair("a/2", "y")]);
    assert_eq!(found("a/2"), [pair("a/2", "y")]);
    assert!(s.state(GroupOffset, b"").unwrap().is_empty());

    let send = |partition, sequence, value| {
        let stamp = ProducerStamp {
            id: 7,
            epoch: 0,
            base_sequence: sequence,
        };
        let batch = batch_with(1, 1, Compression::None, Some(stamp));
        let append = Append {
            partition,
            header: BatchHeader::parse(&batch).unwrap(),
            batch,
            state: vec![fact("with", value)],
        };
        s.append(append).blocking_recv().unwrap()
    };
    send(p, 0, "first").unwrap();
    assert_eq!(found("with"), [pair("with", "first")]);
    assert!(send(p, 0, "duplicate").unwrap().is_duplicate);
    send(p, 5, "out of order").unwrap_err();
    send(PartitionId(99), 0, "unknown").unwrap_err();
    assert_eq!(found("with"), [pair("with", "first")]);
}

fn batches_come_back_verbatim_in_order(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
    for codec in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let sent = batch_with(3, 50, codec, None);
        let appended = append(s, p, &sent).unwrap();
        let items = s.read(p, appended.base_offset, usize::MAX).unwrap();
        let [
            Item::Batch {
                batch,
                base_offset,
                next_offset,
                ..
            },
        ] = &items[..]
        else {
            panic!("{items:?}")
        };
        assert_eq!(
            (*base_offset, *next_offset),
            (appended.base_offset, appended.base_offset + 3)
        );
        assert_eq!(
            batch[8..12],
            sent[8..12],
            "all but base offset and leader epoch"
        );
        assert_eq!(
            batch[16..],
            sent[16..],
            "all but base offset and leader epoch"
        );
        assert_eq!(
            BatchHeader::parse(batch).unwrap().base_offset,
            appended.base_offset
        );
    }
    assert_eq!(s.range(p).unwrap().end, 9);
    check(s);
}

fn a_read_begins_with_the_item_that_holds_the_offset(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
    let len = batch(4, 100).len();
    for _ in 0..5 {
        append(s, p, &batch(4, 100)).unwrap();
    }
    let bases = |from, max| -> Vec<Offset> { offsets(&s.read(p, from, max).unwrap()) };
    assert_eq!(bases(0, 1), [0], "at least one");
    assert_eq!(bases(7, 2 * len), [4, 8]);
    assert_eq!(bases(8, 3 * len - 1), [8, 12]);
    assert_eq!(bases(19, usize::MAX), [16]);
    assert!(bases(20, usize::MAX).is_empty() && bases(99, 1).is_empty());
}

fn the_cursor_moves_up_only_and_to_boundaries(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
    for _ in 0..4 {
        append(s, p, &batch(10, 10)).unwrap();
    }
    let queued_bytes = ledger(s, "a").queued_bytes;
    for (next, acked) in [(10, 10), (5, 10), (25, 20), (40, 40), (10, 40), (99, 40)] {
        s.acknowledge(p, Track::First, next).unwrap();
        assert_eq!(s.range(p).unwrap().acked, acked, "acknowledged {next}");
        assert!(s.chain_at(p, acked).unwrap().is_some());
        let left = ledger(s, "a");
        assert_eq!((left.committed, left.queued), (acked, 40 - acked));
        assert_eq!(left.queued_bytes, queued_bytes / 4 * (40 - acked) / 10);
    }
    check(s);
}

fn same_history_means_same_chain(make: Make) {
    let (one, two) = (make(&config()), make(&config()));
    let (a, b) = (&*one.store, &*two.store);
    let (p, q) = (topic(a, "a", rules()), topic(b, "a", rules()));
    for size in [1, 2, 3] {
        append(a, p, &batch(2, size)).unwrap();
        append(b, q, &batch(2, size)).unwrap();
    }
    assert_eq!(a.chain_at(p, 0).unwrap(), Some(0));
    for at in [2, 4, 6] {
        assert_eq!(a.chain_at(p, at).unwrap(), b.chain_at(q, at).unwrap());
        assert!(a.chain_at(p, at).unwrap().is_some());
        assert_eq!(a.chain_at(p, at - 1).unwrap(), None, "no boundary");
    }
    assert_eq!(a.chain_at(p, 7).unwrap(), None, "beyond the end");
    append(a, p, &batch(2, 4)).unwrap();
    append(b, q, &batch(2, 5)).unwrap();
    assert_ne!(a.chain_at(p, 8).unwrap(), b.chain_at(q, 8).unwrap());
}

fn an_idempotent_producer_is_stored_once(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
    let id = s.next_producer_id().unwrap();
    let send = |epoch, base_sequence| {
        let stamp = ProducerStamp {
            id,
            epoch,
            base_sequence,
        };
        append(s, p, &batch_with(2, 5, Compression::None, Some(stamp)))
    };
    for sequence in [0, 2, 4] {
        assert!(!send(0, sequence).unwrap().is_duplicate);
    }
    let again = send(0, 2).unwrap();
    assert_eq!((again.base_offset, again.is_duplicate), (2, true));
    assert_eq!(
        send(0, 8),
        Err(AppendError::OutOfOrderSequence {
            producer: id,
            found: 8,
            expected: 6
        })
    );
    send(1, 0).unwrap();
    assert_eq!(
        send(0, 6),
        Err(AppendError::ProducerFenced {
            producer: id,
            found: 0,
            current: 1
        })
    );
    assert_eq!(s.range(p).unwrap().end, 8);
    check(s);
}

fn producer_ids_are_never_given_twice(make: Make) {
    let site = make(&config());
    let mut ids: Vec<i64> = (0..2500)
        .map(|_| site.store.next_producer_id().unwrap())
        .collect();
    ids.dedup();
    assert!(ids.is_sorted() && ids.len() == 2500);
    site.store.renew_incarnation().unwrap();
    let later: Vec<i64> = (0..10)
        .map(|_| site.store.next_producer_id().unwrap())
        .collect();
    assert!(!later.iter().any(|id| ids.contains(id)));
}

fn a_full_topic_pushes_back(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", limited(OnFull::Backpressure, 5 * len_of(10)));
    for _ in 0..5 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    assert!(matches!(
        append(s, p, &batch(1, 10)),
        Err(AppendError::Full(_))
    ));
    s.acknowledge(p, Track::First, 2).unwrap();
    append(s, p, &batch(1, 10)).unwrap();
    assert_eq!(s.range(p).unwrap().acked, 2);
    let left = ledger(s, "a");
    assert_eq!((left.accepted, left.queued, left.committed), (6, 4, 2));
    check(s);
}

fn a_full_topic_drops_its_oldest_and_leaves_a_gap(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", limited(OnFull::DropOldest, 5 * len_of(10)));
    for _ in 0..20 {
        append(s, p, &batch(2, 1)).unwrap();
    }
    let items = s.read(p, 0, usize::MAX).unwrap();
    let Item::Gap {
        from: 0,
        to,
        reason: GapReason::DroppedOldest,
        chain,
    } = items[0]
    else {
        panic!("{items:?}")
    };
    assert_eq!(s.chain_at(p, to).unwrap(), Some(chain));
    let left = ledger(s, "a");
    assert_eq!((left.accepted, left.dropped_oldest), (40, to));
    assert_eq!(left.queued, 40 - to);
    assert!(left.queued_bytes <= 5 * len_of(10));
    check(s);
    s.acknowledge(p, Track::First, to).unwrap();
    assert_eq!(
        s.range(p).unwrap().start,
        to,
        "a gap that the hub knows goes"
    );
    assert_eq!(ledger(s, "a").committed, 0);
    check(s);
}

fn a_full_topic_drops_the_newest_and_leaves_a_gap(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", limited(OnFull::DropNewest, 3 * len_of(10)));
    let q = topic(s, "b", rules());
    for _ in 0..10 {
        append(s, p, &batch(1, 10)).unwrap();
        append(s, q, &batch(1, 10)).unwrap();
    }
    let items = s.read(p, 2, usize::MAX).unwrap();
    assert!(matches!(
        items[..],
        [
            Item::Batch { base_offset: 2, .. },
            Item::Gap {
                from: 3,
                to: 10,
                reason: GapReason::DroppedNewest,
                ..
            }
        ]
    ));
    assert_eq!(
        s.chain_at(p, 10).unwrap(),
        s.chain_at(q, 10).unwrap(),
        "a drop is history too"
    );
    s.acknowledge(p, Track::First, 3).unwrap();
    append(s, p, &batch(1, 10)).unwrap();
    let left = ledger(s, "a");
    assert_eq!(
        (left.accepted, left.dropped_newest, left.queued),
        (11, 7, 1)
    );
    check(s);
}

/// What is new goes by the other track, which is acknowledged on its own; the ledger knows both.
fn a_split_log_is_acknowledged_in_two_places(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", rules());
    let [first, second] = Track::BOTH;
    let tracks = |main, other, split| Tracks { main, other, split };
    let ends = |from| {
        s.read(p, from, usize::MAX)
            .unwrap()
            .iter()
            .map(next_of)
            .max()
    };
    assert!(!s.split(p).unwrap(), "no backlog");
    for _ in 0..3 {
        append(s, p, &batch(2, 10)).unwrap();
    }
    s.acknowledge(p, first, 2).unwrap();
    s.acknowledge(p, second, 4).unwrap();
    assert!(s.split(p).unwrap() && !s.split(p).unwrap());
    for _ in 0..2 {
        append(s, p, &batch(2, 10)).unwrap();
    }
    assert_eq!(s.range(p).unwrap().tracks, tracks(first, 0, Some(6)));
    assert_eq!((ends(2), ends(6)), (Some(6), Some(10)));
    assert!(s.chain_at(p, 6).unwrap().is_some());
    s.acknowledge(p, second, 4).unwrap();
    s.acknowledge(p, second, 8).unwrap();
    let (range, counted) = (s.range(p).unwrap(), ledger(s, "a"));
    assert_eq!((range.acked, range.tracks.other), (2, 8));
    assert_eq!((counted.committed, counted.queued), (4, 6));
    assert_eq!(counted.queued_bytes, 3 * len_of_pair());
    check(s);

    // what the hub holds behind the split is no loss
    s.delete_records(p, 8).unwrap();
    let counted = ledger(s, "a");
    assert_eq!(
        (counted.committed, counted.deleted, counted.queued),
        (4, 4, 2)
    );
    assert!(matches!(
        s.read(p, 2, usize::MAX).unwrap()[..],
        [Item::Gap { from: 2, to: 6, .. }]
    ));
    s.acknowledge(p, first, 6).unwrap();
    let range = s.range(p).unwrap();
    assert_eq!((range.acked, range.tracks), (8, tracks(second, 6, None)));
    assert_eq!(ledger(s, "a").committed, 4);
    check(s);

    // the tracks change places, once the hub knows where the other one goes on
    assert!(s.split(p).unwrap());
    append(s, p, &batch(2, 10)).unwrap();
    s.acknowledge(p, second, 10).unwrap();
    assert_eq!(s.range(p).unwrap().tracks, tracks(second, 6, Some(10)));
    assert!(!s.split(p).unwrap());
    s.acknowledge(p, first, 10).unwrap();
    assert_eq!(s.range(p).unwrap().tracks, tracks(first, 10, None));
    s.acknowledge(p, first, 12).unwrap();
    let counted = ledger(s, "a");
    assert_eq!((counted.committed, counted.queued), (8, 0));
    s.delete_topic("a").unwrap();
    check(s);
}

fn next_of(item: &Item) -> Offset {
    match item {
        Item::Batch { next_offset, .. } => *next_offset,
        Item::Gap { to, .. } => *to,
    }
}

fn len_of_pair() -> u64 {
    batch(2, 10).len() as u64
}

/// The hub may commit what was read, and its acknowledgement be lost: its checkpoint must be a boundary.
fn a_gap_that_was_read_grows_no_more(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", limited(OnFull::DropNewest, 3 * len_of(10)));
    let drop_two = || {
        append(s, p, &batch(1, 10)).unwrap();
        append(s, p, &batch(1, 10)).unwrap();
    };
    for _ in 0..3 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    drop_two();
    drop_two();
    let told = s.chain_at(p, 7).unwrap();
    assert!(told.is_some());
    assert_eq!(offsets(&s.read(p, 0, 1).unwrap()), [0], "not the gap");
    // a reader at the site tells the hub nothing
    let browsed = s.browse(p, 0, usize::MAX).unwrap();
    assert_eq!(offsets(&browsed), [0, 1, 2, 3]);
    drop_two();
    assert_eq!(
        s.chain_at(p, 7).unwrap(),
        None,
        "the hub was not told of the gap"
    );
    let told = s.chain_at(p, 9).unwrap();
    assert_eq!(offsets(&s.read(p, 2, usize::MAX).unwrap()), [2, 3]);
    drop_two();
    drop_two();
    assert_eq!(s.chain_at(p, 9).unwrap(), told);
    assert_eq!(offsets(&s.read(p, 2, usize::MAX).unwrap()), [2, 3, 9]);
    s.acknowledge(p, Track::First, 9).unwrap();
    assert_eq!(s.range(p).unwrap().acked, 9);
    check(s);
}

/// The hub was slow to commit, and meanwhile the site took what it had sent for lost.
fn records_that_were_sent_before_they_were_dropped_count_as_committed(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", limited(OnFull::DropOldest, 5 * len_of(10)));
    for _ in 0..5 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    let sent = s.read(p, 0, usize::MAX).unwrap();
    assert_eq!(offsets(&sent), [0, 1, 2, 3, 4]);
    for _ in 0..9 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    let left = ledger(s, "a");
    let lost = left.dropped_oldest;
    assert!(left.committed == 0 && lost > 5, "{left:?}");
    let rest = s.read(p, 5, usize::MAX).unwrap();
    assert!(matches!(rest[0], Item::Gap { from: 0, to, .. } if to == lost));
    s.acknowledge(p, Track::First, 5).unwrap();
    s.acknowledge(p, Track::First, 14).unwrap();
    let left = ledger(s, "a");
    assert_eq!((left.accepted, left.dropped_oldest), (14, lost - 5));
    assert_eq!((left.committed, left.queued), (14 - (lost - 5), 0));
    check(s);
}

fn acknowledged_records_go_first(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let p = topic(s, "a", limited(OnFull::DropOldest, 4 * len_of(10)));
    for _ in 0..4 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    s.acknowledge(p, Track::First, 3).unwrap();
    assert_eq!(s.range(p).unwrap().start, 0, "kept for local readers");
    for _ in 0..3 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    let left = ledger(s, "a");
    assert_eq!((left.queued, left.dropped_oldest), (4, 0));
    append(s, p, &batch(1, 10)).unwrap();
    assert!(ledger(s, "a").dropped_oldest > 0);
    check(s);
}

fn the_quota_counts_all_topics(make: Make) {
    let quota_bytes = Some(6 * len_of(10));
    let site = make(&StoreConfig {
        quota_bytes,
        ..config()
    });
    let s = &*site.store;
    let (p, q) = (topic(s, "a", rules()), topic(s, "b", rules()));
    for _ in 0..3 {
        append(s, p, &batch(1, 10)).unwrap();
        append(s, q, &batch(1, 10)).unwrap();
    }
    assert!(matches!(
        append(s, p, &batch(1, 10)),
        Err(AppendError::Full(_))
    ));
    s.acknowledge(q, Track::First, 3).unwrap();
    for _ in 0..3 {
        append(s, p, &batch(1, 10)).unwrap();
    }
    assert_eq!(s.range(q).unwrap().start, 3);
    assert!(matches!(
        append(s, q, &batch(1, 10)),
        Err(AppendError::Full(_))
    ));
    check(s);
}

fn old_records_expire_and_unsent_ones_leave_a_gap(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let retention_ms = Some(HOUR.unsigned_abs());
    let p = topic(
        s,
        "a",
        TopicRules {
            retention_ms,
            ..rules()
        },
    );
    s.sweep(NOW).unwrap();
    append(s, p, &batch(5, 10)).unwrap();
    s.acknowledge(p, Track::First, 5).unwrap();
    append(s, p, &batch(5, 10)).unwrap();
    s.sweep(NOW + HOUR / 2).unwrap();
    append(s, p, &batch(5, 10)).unwrap();
    assert_eq!(s.range(p).unwrap().start, 0);
    s.sweep(NOW + HOUR).unwrap();
    let items = s.read(p, 0, usize::MAX).unwrap();
    assert!(matches!(
        items[..],
        [
            Item::Gap {
                from: 5,
                to: 10,
                reason: GapReason::Expired,
                ..
            },
            Item::Batch {
                base_offset: 10,
                ..
            }
        ]
    ));
    s.sweep(NOW + 3 * HOUR).unwrap();
    let left = ledger(s, "a");
    assert_eq!((left.committed, left.expired, left.queued), (5, 10, 0));
    assert_eq!(offsets(&s.read(p, 0, usize::MAX).unwrap()), [5], "one gap");
    check(s);
}

fn a_clock_that_jumps_expires_nothing(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let retention_ms = Some(HOUR.unsigned_abs());
    let p = topic(
        s,
        "a",
        TopicRules {
            retention_ms,
            ..rules()
        },
    );
    s.sweep(1_000).unwrap();
    append(s, p, &batch(5, 10)).unwrap();
    for wall in [NOW, 1_000, NOW, i64::MAX, i64::MIN, -5] {
        s.sweep(wall).unwrap();
        assert_eq!(ledger(s, "a").queued, 5, "at {wall}");
    }
}

fn topics_grow_and_take_new_rules(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let one = ensure(s, "a", 1, rules());
    let other = ensure(s, "b", 2, rules());
    let grown = ensure(s, "a", 3, limited(OnFull::DropNewest, 7));
    assert_eq!((one.partitions.len(), grown.partitions.len()), (1, 3));
    assert_eq!(grown.partitions[0], one.partitions[0]);
    assert!(
        !grown
            .partitions
            .iter()
            .any(|p| other.partitions.contains(p))
    );
    assert_eq!(ensure(s, "a", 1, rules()).partitions, grown.partitions);
    assert_eq!(*s.topic("a").unwrap().rules, rules());
    assert!(s.topic("c").is_none());
    let names: Vec<String> = s.topics().iter().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
}

fn a_new_incarnation_begins_at_the_cursors(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, topic(&*site.store, "a", rules()));
    append(s, p, &batch(5, 10)).unwrap();
    append(s, p, &batch(5, 10)).unwrap();
    s.acknowledge(p, Track::First, 5).unwrap();
    let before = s.incarnation();
    let after = s.renew_incarnation().unwrap();
    assert_ne!(before, after);
    assert_eq!(s.incarnation(), after);
    let range = s.range(p).unwrap();
    assert_eq!((range.origin, range.acked, range.end), (5, 5, 10));
}

fn readers_are_woken(make: Make) {
    let site = make(&config());
    let s = &*site.store;
    let mut changes = s.changes();
    let p = topic(s, "a", rules());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    append(s, p, &batch(5, 10)).unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(*s.failure().borrow(), None);
}

fn unknown_partitions_are_refused(make: Make) {
    let site = make(&config());
    let (s, p) = (&*site.store, PartitionId(9));
    assert_eq!(
        append(s, p, &batch(1, 1)),
        Err(AppendError::UnknownPartition)
    );
    assert_eq!(s.read(p, 0, 1), Err(StoreError::UnknownPartition));
    assert_eq!(s.range(p), Err(StoreError::UnknownPartition));
    assert_eq!(s.chain_at(p, 0), Err(StoreError::UnknownPartition));
    assert_eq!(
        s.acknowledge(p, Track::First, 1),
        Err(StoreError::UnknownPartition)
    );
}

pub(super) const HOUR: i64 = 3_600_000;
pub(super) const NOW: i64 = 1_800_000_000_000;

pub(super) fn rules() -> TopicRules {
    config().default_rules
}

pub(super) fn limited(on_full: OnFull, retention_bytes: u64) -> TopicRules {
    TopicRules {
        on_full,
        retention_bytes: Some(retention_bytes),
        ..rules()
    }
}

pub(super) fn ensure(s: &dyn Store, name: &str, partitions: u32, rules: TopicRules) -> Arc<Topic> {
    s.ensure_topic(&TopicName::new(name).unwrap(), partitions, rules)
        .unwrap()
}

pub(super) fn topic(s: &dyn Store, name: &str, rules: TopicRules) -> PartitionId {
    ensure(s, name, 1, rules).partitions[0]
}

pub(super) fn batch(count: u32, value_len: usize) -> Bytes {
    batch_with(count, value_len, Compression::None, None)
}

pub(super) fn batch_with(
    count: u32,
    value_len: usize,
    codec: Compression,
    producer: Option<ProducerStamp>,
) -> Bytes {
    let mut builder = BatchBuilder::default();
    for n in 0..count {
        let value = vec![n.to_le_bytes()[0]; value_len];
        builder.push(NOW, None, Some(&value), &[]);
    }
    builder.build_with(codec, producer).unwrap()
}

fn len_of(value_len: usize) -> u64 {
    u64::try_from(batch(1, value_len).len()).unwrap()
}

#[expect(clippy::unwrap_in_result, reason = "the error is what tests ask for")]
pub(super) fn append(
    s: &dyn Store,
    partition: PartitionId,
    batch: &Bytes,
) -> Result<Appended, AppendError> {
    let header = BatchHeader::parse(batch).unwrap();
    s.append(Append {
        partition,
        batch: batch.clone(),
        header,
        state: Vec::new(),
    })
    .blocking_recv()
    .unwrap()
}

pub(super) fn ledger(s: &dyn Store, name: &str) -> Ledger {
    let all = s.ledger();
    all.into_iter()
        .find(|(topic, _)| topic.as_str() == name)
        .unwrap()
        .1
}

pub(super) fn offsets(items: &[Item]) -> Vec<Offset> {
    let first = |item: &Item| match item {
        Item::Batch { base_offset, .. } => *base_offset,
        Item::Gap { from, .. } => *from,
    };
    items.iter().map(first).collect()
}

pub(super) fn check_range(s: &dyn Store, p: PartitionId) {
    let range = s.range(p).unwrap();
    assert!(
        range.start <= range.acked && range.acked <= range.end,
        "{range:?}"
    );
    assert!(range.origin <= range.acked, "{range:?}");
    assert!(s.chain_at(p, range.acked).unwrap().is_some());
}

/// What must always be true, seen from outside: items cover the log without holes, chains agree, the
/// ledger adds up.
pub(super) fn check(s: &dyn Store) {
    for topic in s.topics() {
        for p in &topic.partitions {
            let range = s.range(*p).unwrap();
            check_range(s, *p);
            let mut at = range.start;
            let mut items = s.read(*p, range.start, usize::MAX).unwrap();
            if let Some(split) = range.tracks.split.filter(|split| range.start < *split) {
                items.extend(s.read(*p, split, usize::MAX).unwrap());
            }
            for item in items {
                let (from, to, chain) = match item {
                    Item::Batch {
                        base_offset,
                        next_offset,
                        chain,
                        batch,
                    } => {
                        let header = BatchHeader::parse(&batch).unwrap();
                        assert_eq!(header.next_offset(), next_offset);
                        shared::record::verify_checksum(&batch, header.crc).unwrap();
                        (base_offset, next_offset, chain)
                    }
                    Item::Gap {
                        from, to, chain, ..
                    } => (from, to, chain),
                };
                assert_eq!(from, at, "items follow on each other");
                assert_eq!(s.chain_at(*p, to).unwrap(), Some(chain), "chain at {to}");
                at = to;
            }
            assert_eq!(at, range.end);
        }
    }
    for (name, l) in s.ledger() {
        let lost = l.expired + l.dropped_oldest + l.dropped_newest + l.damaged + l.deleted;
        assert_eq!(l.accepted, l.committed + l.queued + lost, "{name}: {l:?}");
    }
}
