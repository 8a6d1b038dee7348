//! Committed offsets of all groups, within bounds.

use std::collections::{BTreeMap, BTreeSet};

use super::limits::Limits;

/// An offset as committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: String,
}

/// Of one group: by topic and partition.
pub(super) type ByPartition = BTreeMap<String, BTreeMap<i32, Committed>>;

/// All groups' offsets that are on disk, and how much is on its way there.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    groups: BTreeMap<String, ByPartition>,
    count: usize,
    metadata_bytes: usize,
    coming: Room,
}

/// What a commit adds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    offsets: usize,
    metadata_bytes: usize,
}

impl Offsets {
    pub(super) fn topics(&self) -> BTreeSet<String> {
        let topics = self.groups.values().flat_map(BTreeMap::keys);
        topics.cloned().collect()
    }

    pub(super) fn of(&self, group: &str) -> Option<&ByPartition> {
        self.groups.get(group)
    }

    pub(super) fn has(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    pub(super) fn get(&self, group: &str, topic: &str, partition: i32) -> Option<&Committed> {
        self.groups.get(group)?.get(topic)?.get(&partition)
    }

    /// Sets room aside for an offset until it is on disk; `None`: there is none. One that replaces another
    /// needs none but for longer metadata.
    pub(super) fn reserve(
        &mut self,
        limits: &Limits,
        group: &str,
        topic: &str,
        partition: i32,
        metadata: usize,
    ) -> Option<Room> {
        let old = self.get(group, topic, partition);
        let room = Room {
            offsets: usize::from(old.is_none()),
            metadata_bytes: metadata.saturating_sub(old.map_or(0, |old| old.metadata.len())),
        };
        let coming = self.coming.plus(room);
        let is_too_many = room.offsets > 0 && self.count + coming.offsets > limits.max_offsets;
        let is_too_large = room.metadata_bytes > 0
            && self.metadata_bytes + coming.metadata_bytes > limits.max_metadata_bytes;
        if is_too_many || is_too_large {
            return None;
        }
        self.coming = coming;
        Some(room)
    }

    pub(super) fn release(&mut self, room: Room) {
        self.coming.offsets -= room.offsets;
        self.coming.metadata_bytes -= room.metadata_bytes;
    }

    pub(super) fn put(&mut self, group: &str, topic: &str, partition: i32, committed: Committed) {
        self.metadata_bytes += committed.metadata.len();
        self.count += 1;
        let group = self.groups.entry(group.to_owned()).or_default();
        let old = group
            .entry(topic.to_owned())
            .or_default()
            .insert(partition, committed);
        self.forgot(old.as_ref());
    }

    pub(super) fn forget(&mut self, group: &str, topic: &str, partition: i32) {
        let Some(topics) = self.groups.get_mut(group) else {
            return;
        };
        let Some(partitions) = topics.get_mut(topic) else {
            return;
        };
        let old = partitions.remove(&partition);
        if partitions.is_empty() {
            topics.remove(topic);
        }
        if topics.is_empty() {
            self.groups.remove(group);
        }
        self.forgot(old.as_ref());
    }

    fn forgot(&mut self, old: Option<&Committed>) {
        if let Some(old) = old {
            self.count -= 1;
            self.metadata_bytes -= old.metadata.len();
        }
    }

    /// Every partition of a topic that any group has an offset of.
    pub(super) fn of_topic(&self, topic: &str) -> Vec<(String, i32)> {
        let groups = self.groups.iter();
        let found = groups.filter_map(|(group, topics)| Some((group, topics.get(topic)?)));
        found
            .flat_map(|(group, partitions)| partitions.keys().map(|it| (group.clone(), *it)))
            .collect()
    }

    /// Offsets on disk, and bytes of their metadata.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.count, self.metadata_bytes)
    }
}

impl Room {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            offsets: self.offsets + other.offsets,
            metadata_bytes: self.metadata_bytes + other.metadata_bytes,
        }
    }
}
