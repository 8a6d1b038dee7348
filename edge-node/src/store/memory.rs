//! The store's twin in memory: the same logic, nothing survives the process. For tests.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName, Track};
use tokio::sync::{oneshot, watch};

use super::disk::{Disk, DiskError, Op, Scan, Stored, StoredRef};
use super::draft::Limits;
use super::engine::{Engine, Loaded, Write};
use super::state::{StateChange, StateKey, StateSpace};
use super::value::{IndexEntry, StoreRecord};
use super::{
    Append, AppendError, Appended, DeleteError, FetchLimit, Fetched, Item, Ledger, Log, LogRange,
    Moment, PartitionId, Space, Store, StoreConfig, StoreError, Topic, TopicRules,
};

/// A store in memory. Appends are answered at once.
#[derive(Debug)]
pub struct MemoryStore {
    engine: Engine<MemoryDisk>,
    minted: Mutex<u128>,
}

impl MemoryStore {
    /// An empty store; `config` is read as far as memory has such limits.
    #[must_use]
    pub fn new(config: &StoreConfig, incarnation: Incarnation) -> Self {
        let record = StoreRecord::new(incarnation);
        let loaded = Loaded {
            record,
            partitions: Vec::new(),
            producers: Vec::new(),
        };
        let limits = Limits {
            quota_bytes: config.quota_bytes,
            index_bytes: config.index_bytes,
        };
        let rules = Arc::new(config.default_rules.clone());
        let disk = MemoryDisk::default();
        Self {
            engine: Engine::new(disk, loaded, limits, config.max_producers, &rules),
            minted: Mutex::new(incarnation.0),
        }
    }
}

#[cfg(test)]
impl MemoryStore {
    /// What a restart forgets.
    pub(super) fn forget_unstored(&self) {
        self.engine.forget_unstored();
    }

    /// A partition's items, unseen by any reader.
    pub(super) fn peek(&self, partition: PartitionId) -> Vec<Item> {
        self.engine.peek(partition)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(&StoreConfig::default(), Incarnation(1))
    }
}

impl Store for MemoryStore {
    fn append(&self, append: Append) -> oneshot::Receiver<Result<Appended, AppendError>> {
        let (sender, receiver) = oneshot::channel();
        let answer = self.engine.write_group(&[Write::Append(append)]).pop();
        if let Some(answer) = answer {
            // whoever asked may have gone
            sender.send(answer.map(Option::unwrap_or_default)).ok();
        }
        receiver
    }

    fn put_state(&self, changes: Vec<StateChange>) -> oneshot::Receiver<Result<(), AppendError>> {
        let (sender, receiver) = oneshot::channel();
        let answer = self.engine.write_group(&[Write::State(changes)]).pop();
        if let Some(answer) = answer {
            // whoever asked may have gone
            sender.send(answer.map(|_| ())).ok();
        }
        receiver
    }

    fn renew_incarnation(&self) -> Result<Incarnation, StoreError> {
        let minted = {
            let mut minted = self.minted.lock().unwrap_or_else(PoisonError::into_inner);
            *minted += 1;
            Incarnation(*minted)
        };
        self.engine.renew_incarnation(minted)
    }

    delegate_to_engine!();
}

#[derive(Debug, Default)]
pub(super) struct MemoryDisk(Mutex<Maps>);

#[derive(Debug, Default)]
struct Maps {
    batches: BTreeMap<(PartitionId, Offset), Stored>,
    index: BTreeMap<(PartitionId, Offset), IndexEntry>,
    state: BTreeMap<StateKey, Bytes>,
}

impl MemoryDisk {
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for MemoryDisk {
    fn commit(&self, ops: &[Op], _is_synced: bool) -> Result<(), DiskError> {
        let mut maps = self.maps();
        for op in ops {
            match op {
                Op::PutBatch {
                    partition,
                    base,
                    head,
                    batch,
                } => {
                    let mut patched = batch.to_vec();
                    shared::record::patch(&mut patched, *base, 0);
                    let (base, head, batch) = (*base, *head, patched.into());
                    let stored = Stored { base, head, batch };
                    maps.batches.insert((*partition, base), stored);
                }
                Op::PutIndex { partition, entry } => {
                    maps.index.insert((*partition, entry.point.offset), *entry);
                }
                Op::Delete {
                    partition,
                    from,
                    to,
                } => {
                    let is_kept = |key: &(PartitionId, Offset)| {
                        key.0 != *partition || key.1 < *from || key.1 >= *to
                    };
                    maps.batches.retain(|key, _| is_kept(key));
                    maps.index.retain(|key, _| is_kept(key));
                }
                Op::PutState(StateChange { key, value }) => match value {
                    Some(value) => {
                        maps.state.insert(key.clone(), value.clone());
                    }
                    None => {
                        maps.state.remove(key);
                    }
                },
                // the engine has these in memory already
                Op::PutGap { .. }
                | Op::DeleteGap { .. }
                | Op::PutPartition { .. }
                | Op::PutProducer { .. }
                | Op::DeleteProducer(_)
                | Op::PutStore(_) => {}
            }
        }
        Ok(())
    }

    fn scan(&self, partition: PartitionId, from: Offset, to: Offset) -> Box<dyn Scan + '_> {
        let maps = self.maps();
        let holds_from = maps
            .batches
            .range((partition, 0)..=(partition, from))
            .next_back();
        let first = holds_from
            .filter(|(_, stored)| stored.next() > from)
            .map_or(from, |(key, _)| key.1);
        let found = if first < to {
            maps.batches
                .range((partition, first)..(partition, to))
                .map(|(_, s)| s.clone())
                .collect()
        } else {
            Vec::new()
        };
        Box::new(MemoryScan {
            rest: found.into_iter(),
            at: None,
        })
    }

    fn index(
        &self,
        partition: PartitionId,
        from: Offset,
        to: Offset,
        visit: &mut dyn FnMut(&IndexEntry) -> bool,
    ) -> Result<(), DiskError> {
        if from < to {
            let range = (
                Bound::Excluded((partition, from)),
                Bound::Excluded((partition, to)),
            );
            for (_, entry) in self.maps().index.range(range) {
                if !visit(entry) {
                    break;
                }
            }
        }
        Ok(())
    }

    fn state(&self, space: StateSpace, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, DiskError> {
        let from = StateKey {
            space,
            key: Bytes::copy_from_slice(prefix),
        };
        let maps = self.maps();
        let found = maps
            .state
            .range(from..)
            .take_while(|(found, _)| found.space == space && found.key.starts_with(prefix));
        Ok(found
            .map(|(found, value)| (found.key.clone(), value.clone()))
            .collect())
    }
}

struct MemoryScan {
    rest: std::vec::IntoIter<Stored>,
    at: Option<Stored>,
}

impl Scan for MemoryScan {
    fn step(&mut self) -> Result<Option<StoredRef<'_>>, DiskError> {
        self.at = self.rest.next();
        Ok(self.at.as_ref().map(|stored| StoredRef {
            base: stored.base,
            head: stored.head,
            batch: &stored.batch,
        }))
    }
}
