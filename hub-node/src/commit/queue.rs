//! What waits for a lane's next transaction: one line a site, served in turns.
//!
//! A site that sends much must not keep another waiting: each turn takes at most a quantum from one
//! site's line, then the next site's turn comes. Within a site the order is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use shared::ids::{Offset, SiteId};

use super::checkpoint::LogKey;
use super::{Content, Delivery, SessionId};

/// Bytes that a site gets into a transaction before it is the next one's turn: a few deliveries.
const QUANTUM_BYTES: usize = 256 * 1024;

/// A delivery on its way into a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub(crate) session: SessionId,
    pub(crate) key: Arc<LogKey>,
    /// Where the log starts while the cluster holds nothing of it.
    pub(crate) origin: Offset,
    pub(crate) delivery: Arc<Delivery>,
    /// Records below are in the cluster, or stand in the line before this one.
    pub(crate) skip_below: Offset,
}

impl Queued {
    /// Records that it brings, those to be skipped not counted.
    pub(crate) fn records(&self) -> u64 {
        let from = self.skip_below.max(self.delivery.base_offset);
        self.delivery.next.next_offset.saturating_sub(from)
    }

    /// What it costs of a transaction's bounds; a gap is a checkpoint and nothing else.
    fn cost(&self) -> Cost {
        match self.delivery.content {
            Content::Records(_) => Cost {
                bytes: self.delivery.bytes,
                records: self.records(),
            },
            Content::Gap { .. } => Cost {
                bytes: 0,
                records: 1,
            },
        }
    }
}

/// How much goes into one transaction at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) bytes: usize,
    pub(crate) records: u64,
}

/// The lines of all sites of a lane.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    lines: HashMap<SiteId, VecDeque<Queued>>,
    /// Sites with a line, the next one to be served first.
    turns: VecDeque<SiteId>,
    /// Bytes that the first of them has had of its turn: a turn goes on in the next transaction.
    turn_bytes: usize,
    bytes: usize,
}

impl FairQueue {
    pub(crate) fn push(&mut self, queued: Queued) {
        self.bytes += queued.delivery.bytes;
        self.line(&queued.key.site.clone()).push_back(queued);
    }

    /// Takes what fits `budget`, but at least one delivery.
    pub(crate) fn take(&mut self, budget: Cost) -> Vec<Queued> {
        let mut taken = Vec::new();
        let mut left = budget;
        while let Some(site) = self.turns.front().cloned() {
            if !self.take_turn(&site, &mut left, &mut taken) {
                break;
            }
        }
        taken
    }

    /// One site's turn; false when the transaction is full.
    fn take_turn(&mut self, site: &SiteId, left: &mut Cost, taken: &mut Vec<Queued>) -> bool {
        let line = self
            .lines
            .get_mut(site)
            .expect("a site with a turn has a line");
        while let Some(head) = line.front() {
            let cost = head.cost();
            if self.turn_bytes > 0 && self.turn_bytes + cost.bytes > QUANTUM_BYTES {
                break;
            }
            if !taken.is_empty() && (cost.bytes > left.bytes || cost.records > left.records) {
                return false;
            }
            self.turn_bytes += cost.bytes;
            left.bytes = left.bytes.saturating_sub(cost.bytes);
            left.records = left.records.saturating_sub(cost.records);
            self.bytes -= head.delivery.bytes;
            taken.extend(line.pop_front());
        }
        self.turn_bytes = 0;
        self.turns.pop_front();
        if line.is_empty() {
            self.lines.remove(site);
        } else {
            self.turns.push_back(site.clone());
        }
        true
    }

    /// Puts what was taken back in front, in the order in which it was taken.
    pub(crate) fn put_back(&mut self, taken: Vec<Queued>) {
        for queued in taken.into_iter().rev() {
            self.bytes += queued.delivery.bytes;
            self.line(&queued.key.site.clone()).push_front(queued);
        }
    }

    fn line(&mut self, site: &SiteId) -> &mut VecDeque<Queued> {
        if !self.lines.contains_key(site) {
            self.turns.push_back(site.clone());
        }
        self.lines.entry(site.clone()).or_default()
    }

    /// Keeps of one site only what `keep` says.
    pub(crate) fn retain(&mut self, site: &SiteId, keep: impl FnMut(&Queued) -> bool) {
        let Some(line) = self.lines.get_mut(site) else {
            return;
        };
        let bytes_of =
            |line: &VecDeque<Queued>| -> usize { line.iter().map(|q| q.delivery.bytes).sum() };
        let before = bytes_of(line);
        line.retain(keep);
        self.bytes -= before - bytes_of(line);
        if line.is_empty() {
            self.lines.remove(site);
            if self.turns.front() == Some(site) {
                self.turn_bytes = 0;
            }
            self.turns.retain(|turn| turn != site);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn line_of(&self, site: &SiteId) -> impl Iterator<Item = &Queued> {
        self.lines.get(site).into_iter().flatten()
    }

    pub(crate) fn has(&self, site: &SiteId) -> bool {
        self.lines.contains_key(site)
    }

    pub(crate) fn sites(&self) -> Vec<SiteId> {
        self.lines.keys().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Bytes of all lines.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use shared::ids::{Incarnation, TopicName, TopicPartition};

    use super::*;
    use crate::commit::{Block, Checkpoint};

    const WIDE: Cost = Cost {
        bytes: usize::MAX,
        records: u64::MAX,
    };

    #[test]
    fn a_busy_site_does_not_keep_a_quiet_one_waiting() {
        let mut queue = FairQueue::default();
        for i in 0..100 {
            queue.push(queued("busy", i, 100_000));
        }
        queue.push(queued("quiet", 0, 100_000));
        let taken = queue.take(Cost {
            bytes: 500_000,
            records: 1000,
        });
        assert_eq!(
            names(&taken),
            ["busy-0", "busy-1", "quiet-0", "busy-2", "busy-3"]
        );
    }

    #[test]
    fn a_turn_that_a_full_transaction_cuts_short_goes_on_and_is_not_had_twice() {
        let mut queue = FairQueue::default();
        for i in 0..20 {
            queue.push(queued("a", i, 100_000));
            queue.push(queued("b", i, 100_000));
        }
        let tight = Cost {
            bytes: 350_000,
            records: 1_000,
        };
        let taken: Vec<_> = (0..8).flat_map(|_| queue.take(tight)).collect();
        let of_a = names(&taken)
            .iter()
            .filter(|name| name.starts_with('a'))
            .count();
        assert_eq!((of_a, taken.len()), (12, 24));
    }

    #[test]
    fn one_delivery_larger_than_a_transaction_goes_alone() {
        let mut queue = FairQueue::default();
        queue.push(queued("a", 0, 10_000_000));
        queue.push(queued("a", 1, 1));
        let tight = Cost {
            bytes: 100,
            records: 10,
        };
        assert_eq!(names(&queue.take(tight)), ["a-0"]);
        assert_eq!(names(&queue.take(tight)), ["a-1"]);
        assert!(queue.is_empty() && queue.bytes() == 0);
    }

    #[test]
    fn what_is_put_back_comes_out_first_and_in_order() {
        let mut queue = FairQueue::default();
        for i in 0..4 {
            queue.push(queued("a", i, 10));
        }
        let taken = queue.take(Cost {
            bytes: 20,
            records: 1000,
        });
        assert_eq!(names(&taken), ["a-0", "a-1"]);
        queue.put_back(taken);
        assert_eq!(queue.bytes(), 40);
        assert_eq!(names(&queue.take(WIDE)), ["a-0", "a-1", "a-2", "a-3"]);
    }

    #[test]
    fn what_is_dropped_frees_its_bytes() {
        let mut queue = FairQueue::default();
        queue.push(queued("a", 0, 10));
        queue.push(queued("a", 1, 20));
        let site = SiteId::new("a").unwrap();
        queue.retain(&site, |queued| queued.delivery.base_offset == 1);
        assert_eq!(queue.bytes(), 20);
        queue.retain(&site, |_| false);
        assert_eq!(queue.bytes(), 0);
        assert!(queue.take(WIDE).is_empty());
    }

    fn names(taken: &[Queued]) -> Vec<String> {
        let name = |q: &Queued| format!("{}-{}", q.key.site, q.delivery.base_offset);
        taken.iter().map(name).collect()
    }

    fn queued(site: &str, offset: u64, bytes: usize) -> Queued {
        let log = TopicPartition {
            topic: TopicName::new("t").unwrap(),
            partition: 0,
            track: shared::ids::Track::First,
        };
        Queued {
            origin: 0,
            session: SessionId(1),
            key: Arc::new(LogKey {
                site: SiteId::new(site).unwrap(),
                incarnation: Incarnation(1),
                log: log.clone(),
            }),
            delivery: Arc::new(Delivery {
                log,
                base_offset: offset,
                next: Checkpoint {
                    next_offset: offset + 1,
                    chain: 0,
                },
                content: Content::Records(vec![Block {
                    base_offset: offset,
                    count: 1,
                    base_timestamp_ms: 0,
                    is_log_append_time: false,
                    records: Bytes::new(),
                }]),
                bytes,
                hold: None,
            }),
            skip_below: 0,
        }
    }
}
