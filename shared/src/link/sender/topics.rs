//! The logs of one class that want to read: fair between topics by bytes, partitions of a topic in turn.

use std::collections::VecDeque;

use crate::wire::Handle;

/// A topic's place in its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicIndex(usize);

#[derive(Debug, Default)]
struct Topic {
    ready: VecDeque<Handle>,
    /// Bytes that it may still read in this round; below zero: debt.
    left: i64,
    in_ring: bool,
}

/// Deficit round robin over topics.
#[derive(Debug, Default)]
pub(super) struct Topics {
    topics: Vec<Topic>,
    /// Topics with a log that is ready, each once.
    ring: VecDeque<usize>,
}

impl Topics {
    pub(super) fn add(&mut self) -> TopicIndex {
        self.topics.push(Topic::default());
        TopicIndex(self.topics.len() - 1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.ring.clear();
        for topic in &mut self.topics {
            topic.ready.clear();
            topic.in_ring = false;
        }
    }

    /// Puts a log in line. It must not be there already.
    pub(super) fn push(&mut self, index: TopicIndex, handle: Handle) {
        let Some(topic) = self.topics.get_mut(index.0) else {
            return;
        };
        topic.ready.push_back(handle);
        if !topic.in_ring {
            topic.in_ring = true;
            self.ring.push_back(index.0);
        }
    }

    /// The log whose turn it is. `quantum`: what a topic may read in a round.
    pub(super) fn pop(&mut self, quantum: u32) -> Option<Handle> {
        let quantum = i64::from(quantum.max(1));
        let mut turned = 0;
        loop {
            let index = *self.ring.front()?;
            if turned == self.ring.len() {
                self.begin_rounds(quantum);
                turned = 0;
            }
            let topic = self.topics.get_mut(index)?;
            if topic.left <= 0 {
                self.ring.rotate_left(1);
                turned += 1;
                continue;
            }
            let handle = topic.ready.pop_front();
            self.ring.pop_front();
            topic.in_ring = !topic.ready.is_empty();
            if topic.in_ring {
                self.ring.push_back(index);
            }
            return handle;
        }
    }

    /// As many rounds as it takes until one of them may read.
    fn begin_rounds(&mut self, quantum: i64) {
        let left = |index: &usize| self.topics.get(*index).map_or(0, |topic| topic.left);
        let least_debt = self.ring.iter().map(|index| -left(index)).min();
        let more = quantum.saturating_mul(least_debt.unwrap_or(0) / quantum + 1);
        // one that has nothing to read saves nothing up, but its debt is paid
        for topic in &mut self.topics {
            topic.left = topic.left.saturating_add(more).min(quantum);
        }
    }

    /// Charges a read, or takes back what it was charged too much.
    pub(super) fn charge(&mut self, index: TopicIndex, bytes: i64) {
        if let Some(topic) = self.topics.get_mut(index.0) {
            topic.left = topic.left.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTUM: u32 = 1_000;

    /// Reads of a number of bytes by topic, each ready again at once.
    fn bytes_of(topics: &[&[i64]], reads: usize) -> Vec<i64> {
        let mut fair = Topics::default();
        let mut logs = Vec::new();
        for (number, partitions) in topics.iter().enumerate() {
            let index = fair.add();
            for &bytes in *partitions {
                let handle = Handle(u32::try_from(logs.len()).unwrap());
                logs.push((number, index, bytes));
                fair.push(index, handle);
            }
        }
        let mut sums = vec![0; topics.len()];
        for _ in 0..reads {
            let handle = fair.pop(QUANTUM).unwrap();
            let (number, index, bytes) = logs[handle.0 as usize];
            fair.charge(index, bytes);
            sums[number] += bytes;
            fair.push(index, handle);
        }
        sums
    }

    #[test]
    fn topics_get_the_same_bytes_whatever_their_reads_and_partitions() {
        let sums = bytes_of(&[&[100], &[1_000; 8], &[30_000, 10]], 20_000);
        let most = sums.iter().max().unwrap();
        let least = sums.iter().min().unwrap();
        assert!(most - least <= 40_000, "{sums:?}");
    }

    #[test]
    fn partitions_of_a_topic_take_turns() {
        let mut fair = Topics::default();
        let index = fair.add();
        for number in 0..3 {
            fair.push(index, Handle(number));
        }
        let mut turns = Vec::new();
        for _ in 0..6 {
            let handle = fair.pop(QUANTUM).unwrap();
            turns.push(handle.0);
            fair.push(index, handle);
        }
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn what_is_cleared_is_gone() {
        let mut fair = Topics::default();
        let index = fair.add();
        fair.push(index, Handle(1));
        fair.clear();
        assert!(fair.is_empty());
        assert_eq!(fair.pop(QUANTUM), None);
        fair.push(index, Handle(1));
        assert_eq!(fair.pop(QUANTUM), Some(Handle(1)));
        assert!(fair.is_empty());
    }
}
