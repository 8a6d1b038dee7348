//! What is on its way to be retained: accepted from a client, and not yet come by in the log. Plain code.
//!
//! ```text
//! claim ─► the log's queue ─► stored at a place ─► the tail has passed it: given back
//!                   └─► not stored: given back
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use shared::ids::Offset;

use crate::mqtt::session::Place;
use crate::store::PartitionId;

/// Messages that may be on their way at a time.
const MAX_COMING: usize = 64 * 1024;
/// What is passed of a partition that is gone: all that it had.
const GONE: Offset = Offset::MAX;

/// Bytes of the messages of one topic, and how many are so large.
type Weights = BTreeMap<usize, usize>;

/// All that is on its way.
#[derive(Debug, Default)]
pub(super) struct Coming {
    topics: HashMap<Arc<str>, Weights>,
    len: usize,
    /// In the log, and not known to be passed.
    stored: Vec<(Place, Arc<str>, usize)>,
    /// The next offset that the tail comes to; up to date while anything is on its way.
    passed: HashMap<PartitionId, Offset>,
}

impl Coming {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= MAX_COMING
    }

    /// The largest of a topic's.
    pub(super) fn most(&self, topic: &str) -> Option<usize> {
        let (most, _) = self.topics.get(topic)?.last_key_value()?;
        Some(*most)
    }

    pub(super) fn add(&mut self, topic: &Arc<str>, weight: usize) {
        let weights = self.topics.entry(topic.clone()).or_default();
        *weights.entry(weight).or_default() += 1;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, topic: &str, weight: usize) {
        let Some(weights) = self.topics.get_mut(topic) else {
            return;
        };
        let Some(count) = weights.get_mut(&weight) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            weights.remove(&weight);
        }
        if weights.is_empty() {
            self.topics.remove(topic);
        }
        self.len -= 1;
        if self.len == 0 {
            self.topics.shrink_to(16);
            self.stored.shrink_to(16);
            self.passed.clear();
        }
    }

    /// Keeps what is in the log until it is passed; false: it is already.
    pub(super) fn keep(&mut self, place: Place, topic: &Arc<str>, weight: usize) -> bool {
        let is_coming = !self.is_passed(place);
        if is_coming {
            self.stored.push((place, topic.clone(), weight));
        }
        is_coming
    }

    fn is_passed(&self, place: Place) -> bool {
        let next = self.passed.get(&place.partition);
        next.is_some_and(|next| place.offset < *next)
    }

    /// The tail has come so far; `None`: the partition is gone.
    pub(super) fn passed(&mut self, partition: PartitionId, next: Option<Offset>) {
        self.passed.insert(partition, next.unwrap_or(GONE));
    }

    /// Takes out what is passed.
    pub(super) fn take_passed(&mut self) -> Vec<(Arc<str>, usize)> {
        let stored = std::mem::take(&mut self.stored);
        let (passed, stored): (Vec<_>, Vec<_>) = stored
            .into_iter()
            .partition(|(place, ..)| self.is_passed(*place));
        self.stored = stored;
        let passed = passed.into_iter();
        passed.map(|(_, topic, weight)| (topic, weight)).collect()
    }
}
