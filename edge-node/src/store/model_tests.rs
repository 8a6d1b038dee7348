//! Random histories: the store on disk, killed and opened again at any point, never differs from its
//! twin in memory. `KEDGE_CASES=1000` for more of them.

use std::sync::Arc;

use proptest::prelude::*;
use shared::ids::{Incarnation, Offset, Track};
use shared::record::{Compression, ProducerStamp};
use tempfile::TempDir;

use super::contract::{HOUR, NOW, append, batch_with, check, config, limited, seeded, tempdir};
use super::crash_tests::killed;
use super::{Item, MemoryStore, OnFull, PartitionId, RocksStore, Store, StoreConfig, TopicRules};

#[derive(Debug, Clone)]
enum Step {
    Append {
        partition: usize,
        count: u32,
        len: usize,
        sequence: Option<i32>,
    },
    Acknowledge {
        partition: usize,
        track: Track,
        share: u64,
    },
    /// What comes from here on goes by the other track.
    Split {
        partition: usize,
    },
    Advance {
        minutes: i64,
    },
    /// A reader comes by: what it saw must stay recognisable.
    Read {
        partition: usize,
        share: u64,
        max_bytes: usize,
    },
    Renew,
    Kill,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..4_usize, 1..6_u32, 0..200_usize, proptest::option::weighted(0.3, 0..12_i32))
            .prop_map(|(partition, count, len, sequence)| {
                Step::Append { partition, count, len, sequence }
            }),
        6 => (0..4_usize, any::<bool>(), 0..=100_u64).prop_map(|(partition, is_first, share)| {
            let track = if is_first { Track::First } else { Track::Second };
            Step::Acknowledge { partition, track, share }
        }),
        2 => (0..4_usize).prop_map(|partition| Step::Split { partition }),
        3 => (0..4_usize, 0..=100_u64, 1..2_000_usize)
            .prop_map(|(partition, share, max_bytes)| Step::Read { partition, share, max_bytes }),
        2 => (-100..100_i64).prop_map(|minutes| Step::Advance { minutes }),
        1 => Just(Step::Renew),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("KEDGE_CASES").map_or(24, |text| text.parse().unwrap()),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_store_that_is_killed_and_opened_again_equals_its_twin(steps in steps()) {
        run(&steps);
    }
}

fn run(steps: &[Step]) {
    let limits = StoreConfig {
        quota_bytes: Some(4_000),
        max_producers: 3,
        ..config()
    };
    let memory = MemoryStore::new(&limits, Incarnation(1));
    let mut disk = OnDisk::new(limits);
    let mut wall = NOW;
    let mut told = Told::default();
    let partitions = topics(&memory);
    assert_eq!(partitions, topics(&*disk.store));
    for step in steps {
        match step {
            Step::Append {
                partition,
                count,
                len,
                sequence,
            } => {
                let stamp = sequence.map(|base_sequence| ProducerStamp {
                    id: i64::from(*count),
                    epoch: 0,
                    base_sequence,
                });
                let batch = batch_with(*count, *len, Compression::None, stamp);
                let p = partitions[*partition];
                assert_eq!(append(&memory, p, &batch), append(&*disk.store, p, &batch));
            }
            Step::Split { partition } => {
                let p = partitions[*partition];
                assert_eq!(memory.split(p), disk.store.split(p));
            }
            Step::Acknowledge {
                partition,
                track,
                share,
            } => {
                let p = partitions[*partition];
                let range = memory.range(p).unwrap();
                let next = range.acked + (range.end - range.acked) * share / 100;
                memory.acknowledge(p, *track, next).unwrap();
                disk.store.acknowledge(p, *track, next).unwrap();
            }
            Step::Advance { minutes } => {
                wall += minutes * HOUR / 60;
                memory.sweep(wall).unwrap();
                disk.store.sweep(wall).unwrap();
            }
            Step::Read {
                partition,
                share,
                max_bytes,
            } => {
                let p = partitions[*partition];
                let range = memory.range(p).unwrap();
                let from = range.acked + (range.end - range.acked) * share / 100;
                let items = memory.read(p, from, *max_bytes).unwrap();
                assert_eq!(disk.store.read(p, from, *max_bytes).unwrap(), items);
                told.note(p, &items);
            }
            Step::Renew => {
                memory.renew_incarnation().unwrap();
                disk.store.renew_incarnation().unwrap();
            }
            Step::Kill => {
                disk.kill();
                memory.forget_unstored();
            }
            Step::Close => {
                disk.close();
                memory.forget_unstored();
            }
        }
        same(&memory, &disk.store, &partitions);
        told.check(&memory);
    }
    disk.kill();
    memory.forget_unstored();
    same(&memory, &disk.store, &partitions);
    check(&*disk.store);
}

fn same(memory: &MemoryStore, disk: &RocksStore, partitions: &[PartitionId]) {
    for p in partitions {
        assert_eq!(memory.range(*p), disk.range(*p));
        assert_eq!(memory.peek(*p), disk.peek(*p));
    }
    assert_eq!(memory.ledger(), disk.ledger());
}

/// Where gaps ended that a reader saw: the hub's checkpoint may lie there.
#[derive(Default)]
struct Told(Vec<(PartitionId, Offset, u64)>);

impl Told {
    fn note(&mut self, p: PartitionId, items: &[Item]) {
        for item in items {
            if let Item::Gap { to, chain, .. } = item {
                self.0.push((p, *to, *chain));
            }
        }
    }

    /// Each is a boundary still, or everything before it is acknowledged or gone.
    fn check(&self, s: &MemoryStore) {
        for (p, to, chain) in &self.0 {
            let is_gone = |items: &[Item]| {
                let before = items.iter().take_while(|item| first_of(item) < *to);
                let acked = s.range(*p).unwrap().acked;
                before
                    .filter(|item| first_of(item) >= acked)
                    .all(|item| matches!(item, Item::Gap { .. }))
            };
            let found = s.chain_at(*p, *to).unwrap();
            assert!(
                found == Some(*chain) || is_gone(&s.peek(*p)),
                "{to} of {p:?} is no boundary: {:?}",
                s.peek(*p)
            );
        }
    }
}

fn first_of(item: &Item) -> Offset {
    match item {
        Item::Batch { base_offset, .. } => *base_offset,
        Item::Gap { from, .. } => *from,
    }
}

fn topics(s: &dyn Store) -> Vec<PartitionId> {
    let all = [
        ("backpressure", limited(OnFull::Backpressure, 1_500)),
        ("oldest", limited(OnFull::DropOldest, 1_500)),
        ("newest", limited(OnFull::DropNewest, 1_500)),
        (
            "aged",
            TopicRules {
                retention_ms: Some(HOUR.unsigned_abs()),
                ..limited(OnFull::DropOldest, 9_000)
            },
        ),
    ];
    all.map(|(name, rules)| super::contract::topic(s, name, rules))
        .to_vec()
}

struct OnDisk {
    store: Arc<RocksStore>,
    dir: TempDir,
    config: StoreConfig,
}

impl OnDisk {
    fn new(config: StoreConfig) -> Self {
        let dir = tempdir();
        let (store, _) = RocksStore::open(dir.path(), &config, seeded()).unwrap();
        Self { store, dir, config }
    }

    fn kill(&mut self) {
        self.reopen(killed(self.dir.path()));
    }

    fn close(&mut self) {
        self.store.close();
        self.reopen(killed(self.dir.path()));
    }

    fn reopen(&mut self, copy: TempDir) {
        let (store, report) = RocksStore::open(copy.path(), &self.config, seeded()).unwrap();
        assert!(
            report.damaged.is_empty() && report.salvage.is_none(),
            "{report:?}"
        );
        self.store = store;
        self.dir = copy;
        topics(&*self.store);
    }
}
