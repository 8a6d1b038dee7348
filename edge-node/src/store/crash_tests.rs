//! What becomes of a store whose process or disk misbehaves. A crash is a copy of the directory while
//! the store is open: the files as a killed process leaves them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::SeedableRng;
use shared::ids::{Offset, Track};
use shared::record::{Compression, ProducerStamp};
use tempfile::TempDir;

use super::contract::{
    HOUR, NOW, append, batch, batch_with, check, config, ensure, ledger, limited, offsets, rules,
    seeded, tempdir, topic,
};
use super::node::StartReport;
use super::{
    AppendError, GapReason, Item, OnFull, PartitionId, RocksStore, Store, StoreConfig, StoreError,
    TopicRules,
};

#[test]
fn everything_survives_a_kill() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", limited(OnFull::DropOldest, 3_000));
    let stamp = ProducerStamp {
        id: s.next_producer_id().unwrap(),
        epoch: 0,
        base_sequence: 0,
    };
    let sent = batch_with(3, 10, Compression::None, Some(stamp));
    for _ in 0..30 {
        append(&*s, p, &batch(2, 50)).unwrap();
    }
    let first = append(&*s, p, &sent).unwrap();
    s.acknowledge(p, Track::First, s.range(p).unwrap().start + 40)
        .unwrap();
    assert!(s.split(p).unwrap());
    s.sweep(NOW).unwrap();

    let copy = killed(dir.path());
    let (t, report) = open(copy.path());
    assert_eq!((report.is_new, report.was_closed), (false, false));
    assert_eq!((report.damaged, report.salvage), (vec![], None));
    assert_eq!(t.range(p), s.range(p));
    assert_eq!(t.ledger(), s.ledger());
    assert_eq!(t.incarnation(), s.incarnation());
    assert_eq!(t.read(p, 0, usize::MAX), s.read(p, 0, usize::MAX));
    let again = append(&*t, p, &sent).unwrap();
    assert_eq!(
        (again.base_offset, again.is_duplicate),
        (first.base_offset, true)
    );
    assert!(t.next_producer_id().unwrap() > stamp.id);
    assert_eq!(ensure(&*t, "b", 1, rules()).partitions, [PartitionId(1)]);
    check(&*t);
}

/// Protocols keep facts beside the log: a kill and a salvage keep them as well.
#[test]
fn facts_survive_a_kill_and_a_salvage() {
    use super::StateSpace::MqttSession;
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    append(&*s, p, &batch(1, 50)).unwrap();
    let facts: Vec<_> = (0..50)
        .map(|n| super::StateChange::put(MqttSession, format!("client-{n:02}"), vec![n; 100]))
        .collect();
    s.put_state(facts).blocking_recv().unwrap().unwrap();
    let before = s.state(MqttSession, b"").unwrap();
    assert_eq!(before.len(), 50);

    let copy = killed(dir.path());
    let (t, _) = open(copy.path());
    assert_eq!(t.state(MqttSession, b"").unwrap(), before);
    drop(t);

    let copy = killed(dir.path());
    super::repair::mark(copy.path(), "a test says so");
    let (t, report) = open(copy.path());
    assert!(report.salvage.is_some());
    assert_eq!(t.state(MqttSession, b"").unwrap(), before);
}

/// What the process before had read of a gap nobody knows.
#[test]
fn a_stored_gap_grows_no_more_after_a_restart() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", limited(OnFull::DropNewest, 250));
    for _ in 0..4 {
        append(&*s, p, &batch(1, 100)).unwrap();
    }
    let (end, chain) = (4, s.chain_at(p, 4).unwrap());
    assert_eq!(ledger(&*s, "a").dropped_newest, 3);
    let copy = killed(dir.path());
    let (t, _) = open(copy.path());
    topic(&*t, "a", limited(OnFull::DropNewest, 250));
    append(&*t, p, &batch(1, 100)).unwrap();
    assert_eq!(ledger(&*t, "a").dropped_newest, 4);
    assert_eq!(t.chain_at(p, end).unwrap(), chain);
    check(&*t);
}

#[test]
fn a_close_in_order_is_seen_and_nothing_is_looked_at_twice() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    append(&*s, p, &batch(2, 50)).unwrap();
    s.close();
    assert!(matches!(
        append(&*s, p, &batch(2, 50)),
        Err(AppendError::Unavailable(_))
    ));
    drop(s);
    let (s, report) = open(dir.path());
    assert!(report.was_closed);
    assert_eq!(s.range(p).unwrap().end, 2);
    let (_, report) = open(killed(dir.path()).path());
    assert!(!report.was_closed, "the mark is taken away on start");
}

#[test]
fn a_store_that_is_open_is_not_opened_again() {
    let dir = tempdir();
    let (_s, _) = open(dir.path());
    let second = RocksStore::open(dir.path(), &config(), seeded());
    assert!(matches!(second, Err(StoreError::Io(_))), "{second:?}");
    assert!(!dir.path().join("damaged-1").exists());
}

/// FAULTS row 3: wherever the log's tail is cut, what was acknowledged is there or declared lost.
#[test]
fn a_write_ahead_log_cut_at_any_byte_loses_nothing_silently() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..4 {
        append(&*s, p, &batch(5, 3)).unwrap();
    }
    let chain = s.chain_at(p, 20).unwrap();
    let whole = killed(dir.path());
    let wal = only(whole.path(), ".log");
    let len = fs::metadata(&wal).unwrap().len();
    let mut declared = Vec::new();
    // every byte of the last two commits, and some before
    let cuts = (0..len).filter(|cut| *cut + 900 > len || cut % 97 == 0);
    for cut in cuts {
        let copy = killed(whole.path());
        let wal = only(copy.path(), ".log");
        fs::File::options()
            .write(true)
            .open(&wal)
            .unwrap()
            .set_len(cut)
            .unwrap();
        let (t, report) = open(copy.path());
        let range = t.range(p).unwrap();
        assert_eq!(range.end, 20, "cut at {cut}: offsets are never used twice");
        assert_eq!(t.chain_at(p, 20).unwrap(), chain);
        let left = ledger(&*t, "a");
        assert_eq!(left.accepted, 20);
        assert_eq!(left.queued + left.damaged, 20, "cut at {cut}");
        let lost: u64 = report.damaged.iter().map(|d| d.to - d.from).sum();
        assert_eq!(left.damaged, lost);
        append(&*t, p, &batch(1, 1)).unwrap();
        check(&*t);
        declared.push(lost);
    }
    assert!(
        declared.contains(&5) && declared.contains(&10),
        "{declared:?}"
    );
}

/// Shows that the test above can fail: it is the ends file that knows.
/// The client knows its batches as acknowledged and goes on behind them.
#[test]
fn a_producer_goes_on_after_the_log_lost_its_last_batches() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    let id = s.next_producer_id().unwrap();
    let batch_of = |base_sequence| {
        let stamp = ProducerStamp {
            id,
            epoch: 0,
            base_sequence,
        };
        batch_with(1, 300, Compression::None, Some(stamp))
    };
    for sequence in 0..6 {
        append(&*s, p, &batch_of(sequence)).unwrap();
    }
    let copy = killed(dir.path());
    let wal = only(copy.path(), ".log");
    let len = fs::metadata(&wal).unwrap().len();
    let file = fs::File::options().write(true).open(&wal).unwrap();
    file.set_len(len - 1_000).unwrap();
    let (t, report) = open(copy.path());
    let from = report.damaged[0].from;
    assert!((2..5).contains(&from), "{report:?}");
    let kept = i32::try_from(from).unwrap() - 1;
    assert!(append(&*t, p, &batch_of(kept)).unwrap().is_duplicate);
    let next = append(&*t, p, &batch_of(6)).unwrap();
    assert_eq!((next.base_offset, next.is_duplicate), (6, false));
    assert!(append(&*t, p, &batch_of(8)).is_err());
    check(&*t);
}

/// The records had been sent: the hub acknowledges what this start could not find.
#[test]
fn damage_that_the_hub_turns_out_to_hold_is_no_loss() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..6 {
        append(&*s, p, &batch(1, 300)).unwrap();
    }
    let copy = killed(dir.path());
    let wal = only(copy.path(), ".log");
    let len = fs::metadata(&wal).unwrap().len();
    let file = fs::File::options().write(true).open(&wal).unwrap();
    file.set_len(len - 1_000).unwrap();
    let (t, report) = open(copy.path());
    let lost = ledger(&*t, "a").damaged;
    assert!(lost > 0, "{report:?}");
    t.acknowledge(p, Track::First, 6).unwrap();
    let after = ledger(&*t, "a");
    assert_eq!((after.committed, after.damaged), (6, 0));
    check(&*t);
}

#[test]
fn without_the_ends_file_a_lost_tail_would_be_silent() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..4 {
        append(&*s, p, &batch(5, 3)).unwrap();
    }
    let copy = killed(dir.path());
    fs::remove_file(copy.path().join("ends")).unwrap();
    let wal = only(copy.path(), ".log");
    let len = fs::metadata(&wal).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&wal)
        .unwrap()
        .set_len(len - 1)
        .unwrap();
    let (t, report) = open(copy.path());
    assert_eq!((t.range(p).unwrap().end, report.damaged), (15, vec![]));
}

#[test]
fn a_flipped_bit_in_the_write_ahead_log_costs_only_what_it_hit() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..40 {
        append(&*s, p, &batch(5, 2_000)).unwrap();
    }
    let whole = killed(dir.path());
    let len = fs::metadata(only(whole.path(), ".log")).unwrap().len();
    let mut worst = 0;
    for at in (1..9).map(|n| len / 10 * n) {
        let copy = killed(whole.path());
        flip(&only(copy.path(), ".log"), at);
        let (t, report) = open(copy.path());
        assert_eq!(t.range(p).unwrap().end, 200);
        let left = ledger(&*t, "a");
        assert!(
            left.damaged > 0 && left.queued + left.damaged == 200,
            "{left:?}"
        );
        assert!(!report.damaged.is_empty());
        check(&*t);
        worst = worst.max(left.damaged);
        // and it stays so
        drop(t);
        let (t, report) = open(copy.path());
        assert!(report.damaged.is_empty());
        assert_eq!(ledger(&*t, "a"), left);
    }
    // a block of 32 KiB is skipped at most, with the records that reach into it
    assert!(worst <= 50, "{worst} records lost to one bit");
}

/// FAULTS row 3: damage in a table file is met while reading, and mended by the next start.
#[test]
fn a_flipped_bit_in_a_table_file_becomes_an_exact_gap_on_the_next_start() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..50 {
        append(&*s, p, &batch(10, 1_000)).unwrap();
    }
    s.acknowledge(p, Track::First, 100).unwrap();
    s.db()
        .flush_cf(super::rocks::family(s.db(), "log"))
        .unwrap();
    s.close(); // what was closed in order is taken on trust
    let copy = killed(dir.path());
    let table = largest(copy.path(), ".sst");
    flip(&table, fs::metadata(&table).unwrap().len() / 2);
    let (t, _) = open(copy.path());
    let Err(StoreError::Corrupt(_)) = read_all(&*t, p) else {
        panic!("the damage was not met")
    };
    assert!(t.failure().borrow().is_some(), "the node is told to stop");
    assert!(matches!(
        append(&*t, p, &batch(1, 1)),
        Err(AppendError::Unavailable(_))
    ));
    drop(t);
    let (t, report) = open(copy.path());
    let salvage = report.salvage.unwrap();
    assert!(!salvage.is_total_loss && salvage.set_aside.unwrap().exists());
    let left = ledger(&*t, "a");
    assert_eq!((left.accepted, left.committed), (500, 100));
    assert_eq!(left.queued + left.damaged, 400);
    assert!(
        left.damaged > 0 && left.damaged <= 30,
        "a block holds two batches: {left:?}"
    );
    assert_eq!(t.incarnation(), s.incarnation());
    assert_eq!(t.chain_at(p, 500).unwrap(), s.chain_at(p, 500).unwrap());
    append(&*t, p, &batch(1, 1)).unwrap();
    check(&*t);
    drop(t);
    let (t, report) = open(copy.path());
    assert_eq!(report.salvage, None);
    assert_eq!(ledger(&*t, "a").damaged, left.damaged);
}

#[test]
fn damage_that_a_compaction_meets_stops_acknowledgements_and_is_mended() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..50 {
        append(&*s, p, &batch(10, 1_000)).unwrap();
    }
    s.db()
        .flush_cf(super::rocks::family(s.db(), "log"))
        .unwrap();
    for _ in 0..50 {
        append(&*s, p, &batch(10, 1_000)).unwrap();
    }
    s.db()
        .flush_cf(super::rocks::family(s.db(), "log"))
        .unwrap();
    s.close();
    let copy = killed(dir.path());
    let table = largest(copy.path(), ".sst");
    flip(&table, fs::metadata(&table).unwrap().len() / 2);
    let (t, _) = open(copy.path());
    let log = super::rocks::family(t.db(), "log");
    let mut rewrite = rocksdb::CompactOptions::default();
    rewrite.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
    t.db()
        .compact_range_cf_opt(log, None::<&[u8]>, None::<&[u8]>, &rewrite);
    let refused = append(&*t, p, &batch(1, 1));
    assert!(
        matches!(refused, Err(AppendError::Unavailable(_))),
        "{refused:?}"
    );
    let failure = t.failure().borrow().clone();
    assert!(
        matches!(failure, Some(StoreError::Corrupt(_))),
        "{failure:?}"
    );
    drop(t);
    let (t, report) = open(copy.path());
    assert!(report.salvage.is_some());
    let left = ledger(&*t, "a");
    assert!(
        left.damaged > 0 && left.damaged <= 30 && left.accepted == 1000,
        "{left:?}"
    );
    append(&*t, p, &batch(1, 1)).unwrap();
    check(&*t);
}

#[test]
fn a_truncated_or_missing_file_does_not_keep_the_store_from_opening() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..50 {
        append(&*s, p, &batch(10, 1_000)).unwrap();
    }
    s.acknowledge(p, Track::First, 100).unwrap();
    s.db()
        .flush_cf(super::rocks::family(s.db(), "log"))
        .unwrap();
    append(&*s, p, &batch(10, 10)).unwrap();
    let truncate = |path: &Path| {
        let len = fs::metadata(path).unwrap().len();
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(len / 2)
            .unwrap();
    };
    let cases: [(&str, &str, &dyn Fn(&Path)); 7] = [
        ("table cut", ".sst", &truncate),
        ("table gone", ".sst", &|path| fs::remove_file(path).unwrap()),
        ("manifest flipped", "MANIFEST", &|path| flip(path, 40)),
        ("manifest cut", "MANIFEST", &truncate),
        ("manifest gone", "MANIFEST", &|path| {
            fs::remove_file(path).unwrap()
        }),
        ("current gone", "CURRENT", &|path| {
            fs::remove_file(path).unwrap()
        }),
        ("current garbage", "CURRENT", &|path| {
            fs::write(path, b"\0\0garbage").unwrap()
        }),
    ];
    for (name, file, damage) in cases {
        let copy = killed(dir.path());
        damage(&largest(copy.path(), file));
        let (t, report) = open(copy.path());
        let left = ledger(&*t, "a");
        println!("{name}: {left:?} {report:?}");
        assert_eq!(left.accepted, 510, "{name}");
        assert_eq!(left.queued + left.damaged + left.committed, 510, "{name}");
        if !file.contains(".sst") {
            assert_eq!(left.damaged, 0, "{name}: nothing of the log was hit");
        }
        append(&*t, p, &batch(1, 1)).unwrap();
        check(&*t);
    }
}

#[test]
fn a_database_that_is_gone_is_a_declared_loss_and_a_new_incarnation() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    for _ in 0..5 {
        append(&*s, p, &batch(10, 10)).unwrap();
    }
    s.acknowledge(p, Track::First, 20).unwrap();
    let copy = killed(dir.path());
    fs::remove_dir_all(copy.path().join("db")).unwrap();
    let (t, report) = open(copy.path());
    assert!(report.salvage.unwrap().is_total_loss);
    assert_ne!(t.incarnation(), s.incarnation());
    let range = t.range(p).unwrap();
    assert_eq!((range.origin, range.acked, range.end), (20, 20, 50));
    let items = t.read(p, 0, usize::MAX).unwrap();
    assert!(matches!(
        items[..],
        [Item::Gap {
            from: 20,
            to: 50,
            reason: GapReason::Damaged,
            ..
        }]
    ));
    assert_eq!(ledger(&*t, "a").damaged, 30);
    append(&*t, p, &batch(1, 1)).unwrap();
    check(&*t);
}

/// Its clients go on as if nothing had happened, and share no id with those that come later.
#[test]
fn producers_of_a_store_that_is_gone_go_on_beside_later_ones() {
    let (before, after) = (tempdir(), tempdir());
    let (s, _) = open(before.path());
    let old = s.next_producer_id().unwrap();
    let rng = <rand::rngs::StdRng as SeedableRng>::seed_from_u64(8);
    let (t, _) = RocksStore::open(after.path(), &config(), Box::new(rng)).unwrap();
    let p = topic(&*t, "a", rules());
    let new = t.next_producer_id().unwrap();
    assert_ne!(old, new);
    for (id, base_sequence) in [(new, 0), (old, 70), (new, 1), (old, 71)] {
        let stamp = ProducerStamp {
            id,
            epoch: 0,
            base_sequence,
        };
        let sent = batch_with(1, 5, Compression::None, Some(stamp));
        assert!(!append(&*t, p, &sent).unwrap().is_duplicate);
        assert!(append(&*t, p, &sent).unwrap().is_duplicate);
    }
}

#[test]
fn a_salvage_cut_short_begins_again() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    append(&*s, p, &batch(10, 10)).unwrap();
    let copy = killed(dir.path());
    // as left by a kill after the database was set aside and half a copy was made
    fs::write(copy.path().join("salvage"), "why").unwrap();
    fs::rename(copy.path().join("db"), copy.path().join("damaged-4")).unwrap();
    fs::create_dir(copy.path().join("db-new")).unwrap();
    fs::write(copy.path().join("db-new/CURRENT"), "half").unwrap();
    let (t, report) = open(copy.path());
    assert_eq!(report.salvage.unwrap().reason, "why");
    assert_eq!(t.read(p, 0, usize::MAX), s.read(p, 0, usize::MAX));
    assert_eq!(t.incarnation(), s.incarnation());
    check(&*t);
}

#[test]
fn a_restored_snapshot_of_the_database_alone_is_seen() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let p = topic(&*s, "a", rules());
    append(&*s, p, &batch(10, 10)).unwrap();
    let old = killed(dir.path());
    append(&*s, p, &batch(7, 10)).unwrap();
    let copy = killed(dir.path());
    fs::remove_dir_all(copy.path().join("db")).unwrap();
    copy_dir(&old.path().join("db"), &copy.path().join("db"));
    let (t, report) = open(copy.path());
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(offsets(&t.read(p, 0, usize::MAX).unwrap()), [0, 10]);
    assert_eq!(t.range(p).unwrap().end, 17);
    check(&*t);
}

/// Retention must cost a range and not a tombstone a record: what a reader has to step over.
#[test]
fn trimming_leaves_no_heap_of_tombstones() {
    let dir = tempdir();
    let (s, _) = open(dir.path());
    let retention_ms = Some(HOUR.unsigned_abs());
    let p = topic(
        &*s,
        "a",
        TopicRules {
            retention_ms,
            ..rules()
        },
    );
    s.sweep(NOW).unwrap();
    for _ in 0..500 {
        append(&*s, p, &batch(1, 100)).unwrap();
    }
    s.sweep(NOW + 2 * HOUR).unwrap();
    append(&*s, p, &batch(1, 100)).unwrap();
    let log = super::rocks::family(s.db(), "log");
    let point_deletes = s
        .db()
        .property_int_value_cf(log, "rocksdb.num-deletes-active-mem-table");
    let deletes = point_deletes.unwrap().unwrap();
    assert!(deletes <= 2, "{deletes} deletions for 500 records");
    assert_eq!(offsets(&s.read(p, 0, usize::MAX).unwrap()), [0, 500]);
    check(&*s);
}

/// FAULTS row 4. Needs root for the mount; says so when it is left out.
#[test]
fn a_full_disk_refuses_keeps_serving_and_comes_back_without_a_restart() {
    let Some(volume) = Tmpfs::mount(48) else {
        println!("LEFT OUT: no right to mount a tmpfs");
        return;
    };
    let dir = volume.0.path().join("store");
    let config = StoreConfig {
        min_free_bytes: 0,
        reserve_bytes: 4 << 20,
        ..config()
    };
    let (s, _) = RocksStore::open(&dir, &config, seeded()).unwrap();
    let p = topic(&*s, "a", rules());
    let filler = volume.0.path().join("filler");
    append(&*s, p, &batch(1, 100_000)).unwrap();
    fs::write(&filler, vec![1_u8; 24 << 20]).unwrap();
    let mut accepted = 1;
    let refused = loop {
        match append(&*s, p, &batch(1, 100_000)) {
            Ok(_) => accepted += 1,
            Err(refused) => break refused,
        }
        assert!(accepted < 1000, "the volume never filled");
    };
    assert!(matches!(refused, AppendError::Full(_)), "{refused:?}");
    assert_eq!(*s.failure().borrow(), None, "a full disk passes");
    assert_eq!(s.range(p).unwrap().end, accepted);
    check(&*s);
    s.acknowledge(p, Track::First, accepted / 2).unwrap();
    assert_eq!(s.range(p).unwrap().acked, accepted / 2);

    fs::remove_file(&filler).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(refused) = append(&*s, p, &batch(1, 100_000)) {
        assert!(matches!(refused, AppendError::Full(_)), "{refused:?}");
        assert!(
            std::time::Instant::now() < deadline,
            "never came back: {refused:?}"
        );
        std::thread::yield_now();
    }
    check(&*s);
    let end = s.range(p).unwrap().end;
    assert_eq!(end, accepted + 1, "nothing that was refused is there");
    let copy = killed(&dir);
    let (t, report) = RocksStore::open(copy.path(), &config, seeded()).unwrap();
    assert!(report.damaged.is_empty());
    assert_eq!(t.read(p, 0, usize::MAX), s.read(p, 0, usize::MAX));
    check(&*t);
}

/// RocksDB begins no compaction that reads more than is free once one has found the disk full.
#[test]
fn a_disk_that_somebody_filled_takes_as_much_as_before_when_it_is_free_again() {
    let Some(volume) = Tmpfs::mount(160) else {
        println!("LEFT OUT: no right to mount a tmpfs");
        return;
    };
    let dir = volume.0.path().join("store");
    let config = StoreConfig {
        min_free_bytes: 16 << 20,
        reserve_bytes: 4 << 20,
        ..config()
    };
    let (s, _) = RocksStore::open(&dir, &config, seeded()).unwrap();
    let p = topic(&*s, "a", rules());
    let record = batch(1, 100_000);
    let mut end = 0;
    while append(&*s, p, &record).is_ok() {
        end += 1;
    }
    assert!(end > 500, "full after {end} records of 100 kB");
    // the hub goes on while somebody has taken the rest
    let filler = volume.0.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while io::Write::write_all(&mut file, &[1; 4_096]).is_ok() {}
    for acked in (10..end / 3).step_by(10) {
        s.acknowledge(p, Track::First, acked).unwrap();
    }
    fs::remove_file(&filler).unwrap();
    let more = end + 4_000;
    let mut acked = end / 3;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while end < more {
        // the hub is some megabytes behind, and catches up when nothing comes
        match append(&*s, p, &record) {
            Ok(_) => {
                end += 1;
                acked = acked.max(end.saturating_sub(600));
            }
            Err(refused) => {
                assert!(matches!(refused, AppendError::Full(_)), "{refused:?}");
                acked = (acked + 10).min(end);
                let _full = s.sweep(NOW);
            }
        }
        s.acknowledge(p, Track::First, acked).unwrap();
        let is_late = std::time::Instant::now() > deadline;
        assert!(
            !is_late,
            "stuck at {end} records, {acked} of them at the hub"
        );
    }
    check(&*s);
}

/// What is deleted takes space in tables and the write-ahead log until there is a reason to write them anew.
#[test]
fn a_disk_with_little_more_than_what_must_be_free_is_used_again_and_again() {
    let Some(volume) = Tmpfs::mount(64) else {
        println!("LEFT OUT: no right to mount a tmpfs");
        return;
    };
    let dir = volume.0.path().join("store");
    let config = StoreConfig {
        min_free_bytes: 48 << 20,
        ..config()
    };
    let (s, _) = RocksStore::open(&dir, &config, seeded()).unwrap();
    let p = topic(&*s, "a", rules());
    let mut end = 0;
    for round in 0..20 {
        let before = end;
        // one is refused, too, while RocksDB writes out the last ones
        for _ in 0..2 {
            while append(&*s, p, &batch(1, 100_000)).is_ok() {
                end += 1;
            }
            s.acknowledge(p, Track::First, end).unwrap();
            s.sweep(NOW).unwrap();
        }
        assert!(end > before + 10, "{end} records in round {round}");
    }
    check(&*s);
}

#[test]
fn a_salvage_without_room_for_a_copy_mends_in_place() {
    let Some(volume) = Tmpfs::mount(64) else {
        println!("LEFT OUT: no right to mount a tmpfs");
        return;
    };
    let dir = volume.0.path().join("store");
    let (s, _) = open(&dir);
    let p = topic(&*s, "a", rules());
    for _ in 0..160 {
        append(&*s, p, &batch(10, 10_000)).unwrap();
    }
    s.acknowledge(p, Track::First, 100).unwrap();
    s.db()
        .flush_cf(super::rocks::family(s.db(), "log"))
        .unwrap();
    let (incarnation, chain) = (s.incarnation(), s.chain_at(p, 1_600).unwrap());
    s.close();
    drop(s);
    let table = largest(&dir, ".sst");
    flip(&table, fs::metadata(&table).unwrap().len() / 2);
    fs::write(dir.join("salvage"), "a test").unwrap();
    let filler = volume.0.path().join("filler");
    fs::write(&filler, vec![1_u8; 32 << 20]).unwrap();
    let (t, report) = open(&dir);
    fs::remove_file(&filler).unwrap();
    let salvage = report.salvage.unwrap();
    assert_eq!((salvage.set_aside, salvage.is_total_loss), (None, false));
    let left = ledger(&*t, "a");
    println!("{left:?}");
    assert_eq!((left.accepted, left.committed), (1_600, 100));
    assert!(left.damaged > 0 && left.queued > 0 && left.queued + left.damaged == 1_500);
    assert_eq!(
        (t.incarnation(), t.chain_at(p, 1_600).unwrap()),
        (incarnation, chain)
    );
    append(&*t, p, &batch(1, 1)).unwrap();
    check(&*t);
}

#[test]
fn below_its_free_space_the_node_refuses_before_the_disk_is_full() {
    let dir = tempdir();
    let all = StoreConfig {
        min_free_bytes: u64::MAX / 2,
        ..config()
    };
    let (s, _) = RocksStore::open(dir.path(), &all, seeded()).unwrap();
    let p = topic(&*s, "a", rules());
    assert!(matches!(
        append(&*s, p, &batch(1, 1)),
        Err(AppendError::Full(_))
    ));
    s.acknowledge(p, Track::First, 0).unwrap();
    s.sweep(NOW).unwrap();
    check(&*s);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let dir = tempdir();
    let small = StoreConfig {
        append_queue_bytes: 1,
        ..config()
    };
    let (s, _) = RocksStore::open(dir.path(), &small, seeded()).unwrap();
    let p = topic(&*s, "a", rules());
    let sent = batch(1, 10);
    let header = shared::record::BatchHeader::parse(&sent).unwrap();
    let answers: Vec<_> = (0..200)
        .map(|_| {
            s.append(super::Append {
                partition: p,
                batch: sent.clone(),
                header,
                state: Vec::new(),
            })
        })
        .map(|answer| answer.blocking_recv().unwrap())
        .collect();
    assert!(answers.iter().all(Result::is_ok), "one at a time passes");
    let waiting: Vec<_> = (0..200)
        .map(|_| {
            s.append(super::Append {
                partition: p,
                batch: sent.clone(),
                header,
                state: Vec::new(),
            })
        })
        .collect();
    let refused = waiting
        .into_iter()
        .map(|answer| answer.blocking_recv().unwrap())
        .filter(|answer| matches!(answer, Err(AppendError::Full(_))))
        .count();
    assert!(refused > 0);
}

fn open(dir: &Path) -> (Arc<RocksStore>, StartReport) {
    RocksStore::open(
        dir,
        &config(),
        Box::new(rand::rngs::StdRng::from_rng(&mut rand::rng())),
    )
    .unwrap()
}

fn read_all(s: &dyn Store, p: PartitionId) -> Result<Vec<Offset>, StoreError> {
    let mut all = Vec::new();
    let range = s.range(p)?;
    let mut at = range.start;
    while at < range.end {
        let items = s.read(p, at, 1)?;
        all.extend(offsets(&items));
        at = match items.last() {
            Some(Item::Batch { next_offset, .. }) => *next_offset,
            Some(Item::Gap { to, .. }) => *to,
            None => break,
        };
    }
    Ok(all)
}

/// The files as a process leaves them that is killed now. A file that RocksDB deletes meanwhile makes
/// the copy no picture of any moment: it is taken again.
pub(super) fn killed(dir: &Path) -> TempDir {
    for _ in 0..20 {
        let copy = tempdir();
        match try_copy(dir, copy.path()) {
            Ok(()) => return copy,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }
    panic!("files keep vanishing")
}

fn copy_dir(from: &Path, to: &Path) {
    try_copy(from, to).unwrap();
}

fn try_copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            try_copy(&entry.path(), &target)?;
        } else if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn files(dir: &Path, part: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("db")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.file_name().unwrap().to_str().unwrap().contains(part))
        .collect()
}

fn only(dir: &Path, part: &str) -> PathBuf {
    let mut found = files(dir, part);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn largest(dir: &Path, part: &str) -> PathBuf {
    let found = files(dir, part);
    found
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    let at = usize::try_from(at).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// A small volume of its own.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempdir();
        let size = format!("size={mib}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status()
            .ok();
    }
}
