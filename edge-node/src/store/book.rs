//! The whole store's state in memory: topics, partitions, totals.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use shared::ids::{Incarnation, Offset, TopicName};

use super::partition::Partition;
use super::value::StoreRecord;
use super::{Ledger, Log, PartitionId, Topic, TopicRules};

/// What readers see: everything in it is on disk.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) record: StoreRecord,
    pub(super) topics: BTreeMap<TopicName, Arc<Topic>>,
    partitions: HashMap<PartitionId, Partition>,
    /// Logical bytes stored, over all partitions.
    pub(super) stored_bytes: u64,
    /// Of these, bytes that the hub acknowledged.
    pub(super) acked_bytes: u64,
    /// Bytes ever appended.
    pub(super) position: u64,
}

impl Book {
    /// The state as it was stored; topics have `rules` until they are told theirs.
    pub(super) fn new(
        record: StoreRecord,
        partitions: Vec<(PartitionId, Partition)>,
        rules: &Arc<TopicRules>,
    ) -> Self {
        let mut book = Self {
            record,
            topics: BTreeMap::new(),
            partitions: HashMap::new(),
            stored_bytes: 0,
            acked_bytes: 0,
            position: 0,
        };
        let mut ids: BTreeMap<TopicName, BTreeMap<u32, PartitionId>> = BTreeMap::new();
        for (id, partition) in partitions {
            if !partition.is_retired {
                let of_topic = ids.entry(partition.topic.clone()).or_default();
                of_topic.insert(partition.index, id);
            }
            book.put(id, partition);
        }
        for (name, partitions) in ids {
            let topic = Topic {
                name: name.clone(),
                partitions: partitions.into_values().collect(),
                rules: Arc::clone(rules),
            };
            book.topics.insert(name, Arc::new(topic));
        }
        book
    }

    pub(super) fn partition(&self, id: PartitionId) -> Option<&Partition> {
        self.partitions.get(&id)
    }

    pub(super) fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        self.partitions
            .iter()
            .map(|(id, partition)| (*id, partition))
    }

    /// The topic of a partition, unless it was deleted.
    pub(super) fn topic_of(&self, id: PartitionId) -> Option<&Arc<Topic>> {
        let partition = self.partitions.get(&id).filter(|p| !p.is_retired)?;
        self.topics.get(partition.topic.as_str())
    }

    /// What is left of a deleted topic of this name: partitions by number.
    pub(super) fn retired(&self, name: &str) -> BTreeMap<u32, PartitionId> {
        self.partitions()
            .filter(|(_, p)| p.is_retired && p.topic.as_str() == name)
            .map(|(id, p)| (p.index, id))
            .collect()
    }

    /// Logs that the hub is to have, by id.
    pub(super) fn logs(&self) -> Vec<Log> {
        let mut logs: Vec<Log> = self
            .partitions()
            .filter(|(_, p)| !p.is_retired || p.acked.offset < p.end.offset)
            .map(|(id, p)| Log {
                id,
                topic: p.topic.clone(),
                partition: p.index,
            })
            .collect();
        logs.sort_unstable_by_key(|log| log.id);
        logs
    }

    /// Puts a partition's new state in.
    pub(super) fn put(&mut self, id: PartitionId, partition: Partition) {
        partition.invariants();
        self.stored_bytes += partition.stored_bytes();
        self.acked_bytes += partition.acked_bytes();
        self.position += partition.end.bytes;
        if let Some(old) = self.partitions.insert(id, partition) {
            self.stored_bytes -= old.stored_bytes();
            self.acked_bytes -= old.acked_bytes();
            self.position -= old.end.bytes;
        }
    }

    /// A reader has seen the gaps that hold these offsets, from there on.
    pub(super) fn tell_gaps(&mut self, id: PartitionId, offsets: &[Offset]) {
        if let Some(p) = self.partitions.get_mut(&id) {
            p.tell_gaps(offsets.iter().copied());
        }
    }

    #[cfg(test)]
    pub(super) fn tell_all_gaps(&mut self) {
        for p in self.partitions.values_mut() {
            let all: Vec<Offset> = p.gaps.keys().copied().collect();
            p.tell_gaps(all.into_iter());
        }
    }

    pub(super) fn ledger(&self) -> Vec<(TopicName, Ledger)> {
        let of_topic = |topic: &Arc<Topic>| {
            let mut ledger = Ledger::default();
            for id in &topic.partitions {
                if let Some(partition) = self.partitions.get(id) {
                    partition.add_to(&mut ledger);
                }
            }
            (topic.name.clone(), ledger)
        };
        self.topics.values().map(of_topic).collect()
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.record.incarnation
    }
}
