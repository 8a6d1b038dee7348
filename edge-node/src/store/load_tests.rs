//! Load by hand: `cargo test -p edge-node --lib store::load_tests -- --ignored --nocapture`, with
//! `KEDGE_LOAD_MIB` for the size of the backlog.

use std::collections::VecDeque;
use std::time::Instant;

use shared::ids::Track;

use super::contract::{NOW, batch, check_range, config, ensure, rules, seeded};
use super::{Append, Item, RocksStore, Store, StoreConfig};

/// Appends a backlog of 200-byte records in batches of 1 MB to 8 partitions, opens the store again, reads
/// and acknowledges everything. Shows speed, resident memory and the time that opening took.
#[test]
#[ignore = "takes minutes and disk; shows figures"]
fn a_backlog_costs_neither_memory_nor_time_to_open() {
    let mib: usize = std::env::var("KEDGE_LOAD_MIB").map_or(1024, |text| text.parse().unwrap());
    let dir =
        tempfile::tempdir_in(std::env::var("KEDGE_LOAD_DIR").unwrap_or_else(|_| "/tmp".into()))
            .unwrap();
    let real = StoreConfig {
        index_bytes: 64 << 10,
        reserve_bytes: 16 << 20,
        ..config()
    };
    let (s, _) = RocksStore::open(dir.path(), &real, seeded()).unwrap();
    let topic = ensure(&*s, "load", 8, rules());
    let sent = batch(4_800, 200);
    let header = shared::record::BatchHeader::parse(&sent).unwrap();
    let total = mib * (1 << 20) / sent.len();
    println!("opened empty: {} MiB resident", resident_mib());
    let begin = Instant::now();
    let mut waiting = VecDeque::new();
    let (mut worst, mut peak) = (0, 0);
    for n in 0..total {
        if waiting.len() == 4 {
            let (at, answer): (Instant, tokio::sync::oneshot::Receiver<_>) =
                waiting.pop_front().unwrap();
            let appended: Result<_, _> = answer.blocking_recv().unwrap();
            appended.unwrap();
            worst = worst.max(at.elapsed().as_millis());
        }
        let partition = topic.partitions[n % 8];
        let answer = s.append(Append {
            partition,
            batch: sent.clone(),
            header,
            state: Vec::new(),
        });
        waiting.push_back((Instant::now(), answer));
        peak = peak.max(resident_mib());
    }
    for (_, answer) in waiting {
        answer.blocking_recv().unwrap().unwrap();
    }
    let took = begin.elapsed();
    let records = f64::from(u32::try_from(total * 4_800).unwrap());
    println!(
        "appended {mib} MiB: {:.0} records/s, worst batch {worst} ms, at most {peak} MiB resident",
        records / took.as_secs_f64()
    );
    drop(s);
    let begin = Instant::now();
    let (s, report) = RocksStore::open(dir.path(), &real, seeded()).unwrap();
    println!(
        "opened after a kill in {:?}, {} MiB resident, {report:?}",
        begin.elapsed(),
        resident_mib()
    );
    let begin = Instant::now();
    peak = 0;
    for p in &topic.partitions {
        let end = s.range(*p).unwrap().end;
        let mut at = 0;
        while at < end {
            for item in s.read(*p, at, 1 << 20).unwrap() {
                let (Item::Batch {
                    next_offset: next, ..
                }
                | Item::Gap { to: next, .. }) = item;
                at = next;
            }
            s.acknowledge(*p, Track::First, at).unwrap();
            peak = peak.max(resident_mib());
        }
        check_range(&*s, *p);
    }
    println!(
        "read and acknowledged: {:.0} records/s, at most {peak} MiB resident",
        records / begin.elapsed().as_secs_f64()
    );
    let size = || super::space::size_of(dir.path()) >> 20;
    println!("{} MiB on disk", size());
    drop(s);
    let quota = StoreConfig {
        quota_bytes: Some(64 << 20),
        ..real
    };
    let (s, _) = RocksStore::open(dir.path(), &quota, seeded()).unwrap();
    let begin = Instant::now();
    s.sweep(NOW).unwrap();
    println!(
        "swept to 64 MiB in {:?}: {} MiB on disk",
        begin.elapsed(),
        size()
    );
    for n in 0..100 {
        let partition = topic.partitions[n % 8];
        let appended = s.append(Append {
            partition,
            batch: sent.clone(),
            header,
            state: Vec::new(),
        });
        let next = appended.blocking_recv().unwrap().unwrap().base_offset + 4_800;
        s.acknowledge(partition, Track::First, next).unwrap();
    }
    println!("100 MiB later: {} MiB on disk", size());
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
