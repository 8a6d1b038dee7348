//! The engine over a disk that fails on command.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use bytes::Bytes;
use shared::ids::{Offset, Track};
use shared::record::{BatchHeader, Compression, ProducerStamp};

use super::contract::{batch, batch_with, config, rules};
use super::disk::{Disk, DiskError, Op, Scan};
use super::draft::Limits;
use super::engine::{Engine, Loaded, Write};
use super::memory::MemoryDisk;
use super::state::StateSpace;
use super::value::{IndexEntry, StoreRecord};
use super::{Append, AppendError, Appended, PartitionId, StoreError};

/// FAULTS row 5: after a failed sync nothing is acknowledged from this log again.
#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    let (s, p) = engine();
    append(&s, p).unwrap();
    s.disk.fail(FAILED);
    assert!(matches!(append(&s, p), Err(AppendError::Unavailable(_))));
    s.disk.fail(SOUND);
    assert!(
        matches!(append(&s, p), Err(AppendError::Unavailable(_))),
        "the disk lies from here"
    );
    assert!(matches!(*s.failure().borrow(), Some(StoreError::Io(_))));
    assert!(s.acknowledge(p, Track::First, 1).is_err() && s.sweep(0).is_err());
    assert_eq!(s.range(p).unwrap().end, 1);
    assert_eq!(
        s.read(p, 0, 1).unwrap().len(),
        1,
        "what is there is still served"
    );
}

/// FAULTS row 4: a full disk refuses and passes, and what was refused leaves no trace.
#[test]
fn a_group_refused_by_a_full_disk_leaves_no_trace() {
    let (s, p) = engine();
    let stamp = ProducerStamp {
        id: 1,
        epoch: 0,
        base_sequence: 0,
    };
    let sent = batch_with(3, 3, Compression::None, Some(stamp));
    s.disk.fail(FULL);
    assert!(matches!(send(&s, p, &sent), Err(AppendError::Full(_))));
    assert_eq!(
        (s.range(p).unwrap().end, s.failure().borrow().clone()),
        (0, None)
    );
    s.disk.fail(SOUND);
    let appended = send(&s, p, &sent).unwrap();
    assert!(
        !appended.is_duplicate && appended.base_offset == 0,
        "{appended:?}"
    );
    assert!(
        s.disk.has_scrubbed(),
        "bytes of the failed write may be left beyond the end"
    );
}

#[test]
fn a_full_disk_does_not_stop_the_cursor() {
    let (s, p) = engine();
    append(&s, p).unwrap();
    s.disk.fail(FULL);
    s.acknowledge(p, Track::First, 1).unwrap();
    assert_eq!(s.range(p).unwrap().acked, 1);
}

/// Producers that wait for room must not wait for the next sweep.
#[test]
fn on_a_low_disk_an_acknowledgement_makes_room_at_once() {
    let (s, p) = engine();
    let large = batch(1, 300_000);
    for _ in 0..4 {
        send(&s, p, &large).unwrap();
    }
    s.acknowledge(p, Track::First, 1).unwrap();
    s.disk.is_low.store(true, Ordering::Relaxed);
    assert!(matches!(append(&s, p), Err(AppendError::Full(_))));
    s.acknowledge(p, Track::First, 2).unwrap();
    assert_eq!(s.range(p).unwrap().start, 0, "not for every small one");
    s.acknowledge(p, Track::First, 4).unwrap();
    assert_eq!(s.range(p).unwrap().start, 4);
    s.disk.is_low.store(false, Ordering::Relaxed);
    append(&s, p).unwrap();
}

#[test]
fn on_a_low_disk_an_append_lets_acknowledged_records_go() {
    let (s, p) = engine();
    for _ in 0..4 {
        send(&s, p, &batch(1, 300_000)).unwrap();
    }
    s.acknowledge(p, Track::First, 4).unwrap();
    assert_eq!(s.range(p).unwrap().start, 0);
    s.disk.is_low.store(true, Ordering::Relaxed);
    assert!(matches!(append(&s, p), Err(AppendError::Full(_))));
    assert_eq!(s.range(p).unwrap().start, 4);
}

#[test]
fn damage_marks_the_store_for_salvage() {
    let (s, p) = engine();
    s.disk.fail(CORRUPT);
    assert!(append(&s, p).is_err());
    assert_eq!(s.disk.marked.load(Ordering::Relaxed), 1);
}

const SOUND: u8 = 0;
const FAILED: u8 = 1;
const FULL: u8 = 2;
const CORRUPT: u8 = 3;

#[derive(Debug, Default)]
struct FaultyDisk {
    inner: MemoryDisk,
    fault: AtomicU8,
    scrubbed: AtomicU8,
    marked: AtomicU8,
    is_low: AtomicBool,
}

impl FaultyDisk {
    fn fail(&self, fault: u8) {
        self.fault.store(fault, Ordering::Relaxed);
    }

    fn has_scrubbed(&self) -> bool {
        self.scrubbed.load(Ordering::Relaxed) > 0
    }
}

impl Disk for FaultyDisk {
    fn commit(&self, ops: &[Op], is_synced: bool) -> Result<(), DiskError> {
        match self.fault.load(Ordering::Relaxed) {
            SOUND => {
                if ops.iter().any(|op| {
                    matches!(
                        op,
                        Op::Delete {
                            to: Offset::MAX,
                            ..
                        }
                    )
                }) {
                    self.scrubbed.fetch_add(1, Ordering::Relaxed);
                }
                self.inner.commit(ops, is_synced)
            }
            FULL => Err(DiskError::Full("full".to_owned())),
            CORRUPT => Err(DiskError::Corrupt("corrupt".to_owned())),
            _ => Err(DiskError::Failed("sync failed".to_owned())),
        }
    }

    fn state(&self, space: StateSpace, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, DiskError> {
        self.inner.state(space, prefix)
    }

    fn scan(&self, partition: PartitionId, from: Offset, to: Offset) -> Box<dyn Scan + '_> {
        self.inner.scan(partition, from, to)
    }

    fn index(
        &self,
        partition: PartitionId,
        from: Offset,
        to: Offset,
        visit: &mut dyn FnMut(&IndexEntry) -> bool,
    ) -> Result<(), DiskError> {
        self.inner.index(partition, from, to, visit)
    }

    fn is_low(&self) -> bool {
        self.is_low.load(Ordering::Relaxed)
    }

    fn mark_damaged(&self, _why: &str) {
        self.marked.fetch_add(1, Ordering::Relaxed);
    }
}

fn engine() -> (Engine<FaultyDisk>, PartitionId) {
    let loaded = Loaded {
        record: StoreRecord::new(shared::ids::Incarnation(1)),
        partitions: Vec::new(),
        producers: Vec::new(),
    };
    let limits = Limits {
        quota_bytes: None,
        index_bytes: 1,
    };
    let default_rules = std::sync::Arc::new(config().default_rules);
    let engine = Engine::new(FaultyDisk::default(), loaded, limits, 10, &default_rules);
    let name = shared::ids::TopicName::new("a").unwrap();
    let topic = engine.ensure_topic(&name, 1, rules()).unwrap();
    (engine, topic.partitions[0])
}

fn append(s: &Engine<FaultyDisk>, p: PartitionId) -> Result<Appended, AppendError> {
    send(s, p, &batch(1, 1))
}

#[expect(clippy::unwrap_in_result, reason = "the error is what tests ask for")]
fn send(
    s: &Engine<FaultyDisk>,
    partition: PartitionId,
    sent: &Bytes,
) -> Result<Appended, AppendError> {
    let header = BatchHeader::parse(sent).unwrap();
    let sent = Write::Append(Append {
        partition,
        batch: sent.clone(),
        header,
        state: Vec::new(),
    });
    s.write_group(&[sent])
        .remove(0)
        .map(Option::unwrap_or_default)
}
