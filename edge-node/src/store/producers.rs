//! Idempotent producers (KIP-98): is this batch new, seen before, or out of order?
//!
//! Plain state: the writer asks [`Producers::check`] for every batch of a group, then keeps or forgets
//! what it noted when the group is on disk or failed. The states are stored with the batches, so that
//! a restart does not forget who sent what. Bounded: the producer that was quiet longest is forgotten,
//! and a producer without a state is taken at its word. So is one whose log lost records, as far as its
//! next batch is none that is there: to be told of a hole that only the site can have made is the end of
//! some clients.

use std::collections::{BTreeMap, HashMap, VecDeque};

use shared::ids::{Incarnation, Offset};
use shared::record::ProducerStamp;

use super::{AppendError, PartitionId};

/// The id of the producer with this number in an incarnation: 31 bits of the incarnation, 32 of the number.
/// A store that lost everything counts from 0 again while clients of the lost one are still at work: they
/// must not share an id with others.
pub(super) fn id_of(incarnation: Incarnation, number: i64) -> i64 {
    let folded = incarnation.0 ^ (incarnation.0 >> 64);
    let salt = (folded ^ (folded >> 32)) & 0x7fff_ffff;
    let salt = i64::try_from(salt).expect("masked to 31 bits");
    salt << 32 | number & 0xffff_ffff
}

/// Kafka keeps as many, and clients have at most five requests in flight.
const REMEMBERED: usize = 5;

/// A producer in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ProducerKey {
    pub(super) partition: PartitionId,
    pub(super) id: i64,
}

/// A batch that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) first: i32,
    pub(super) last: i32,
    pub(super) base_offset: Offset,
}

/// What is known of a producer in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProducerState {
    pub(super) epoch: i16,
    /// Rank among all producers by last use.
    pub(super) used: u64,
    /// The last batches, oldest first; never empty.
    pub(super) sent: VecDeque<Sent>,
    /// Later batches may be among what the log was found to have lost. Not stored.
    pub(super) is_doubtful: bool,
}

/// The answer to a batch that may be appended or is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    New,
    Duplicate(Offset),
}

/// A producer's first batch in a partition, which was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    epoch: i16,
    first: i32,
}

/// All producers, with the changes of the group under way on top.
#[derive(Debug, Default)]
pub(super) struct Producers {
    kept: HashMap<ProducerKey, ProducerState>,
    by_use: BTreeMap<u64, ProducerKey>,
    noted: HashMap<ProducerKey, ProducerState>,
    /// First batches that were refused. What the producer sent behind them must not take their place:
    /// the first would not be accepted any more when it is sent again.
    refused: HashMap<ProducerKey, Refused>,
    next_use: u64,
    max: usize,
}

impl Producers {
    pub(super) fn new(max: usize, stored: Vec<(ProducerKey, ProducerState)>) -> Self {
        let mut all = Self {
            max: max.max(1),
            ..Self::default()
        };
        for (key, state) in stored {
            all.next_use = all.next_use.max(state.used + 1);
            all.by_use.insert(state.used, key);
            all.kept.insert(key, state);
        }
        all
    }

    /// Judges a batch of `count` records.
    pub(super) fn check(
        &self,
        partition: PartitionId,
        stamp: ProducerStamp,
        count: u32,
    ) -> Result<Verdict, AppendError> {
        let key = ProducerKey {
            partition,
            id: stamp.id,
        };
        match self.noted.get(&key).or_else(|| self.kept.get(&key)) {
            None => self.check_first(key, stamp),
            Some(state) if state.is_doubtful => match state.check(stamp, count) {
                Ok(Verdict::New) | Err(AppendError::OutOfOrderSequence { .. }) => {
                    self.check_first(key, stamp)
                }
                settled => settled,
            },
            Some(state) => state.check(stamp, count),
        }
    }

    /// Judges what may be a producer's first batch.
    fn check_first(&self, key: ProducerKey, stamp: ProducerStamp) -> Result<Verdict, AppendError> {
        match self.refused.get(&key) {
            Some(refused) if refused.comes_before(stamp) => Err(AppendError::OutOfOrderSequence {
                producer: stamp.id,
                found: stamp.base_sequence,
                expected: refused.first,
            }),
            Some(_) | None => Ok(Verdict::New),
        }
    }

    /// True when nothing on disk says which batch comes next.
    fn is_open(&self, key: ProducerKey) -> bool {
        self.kept.get(&key).is_none_or(|state| state.is_doubtful)
    }

    /// A batch that was new could not be appended.
    pub(super) fn refuse(&mut self, partition: PartitionId, stamp: ProducerStamp) {
        let key = ProducerKey {
            partition,
            id: stamp.id,
        };
        if !self.noted.contains_key(&key) && self.is_open(key) {
            let (epoch, first) = (stamp.epoch, stamp.base_sequence);
            self.expect_first(key, Refused { epoch, first });
        }
    }

    fn expect_first(&mut self, key: ProducerKey, refused: Refused) {
        if self.refused.len() >= self.max {
            // so many at once do not all come back; the others are taken at their word again
            self.refused.clear();
        }
        self.refused.insert(key, refused);
    }

    /// Notes a batch that goes into the group under way.
    pub(super) fn note(
        &mut self,
        partition: PartitionId,
        stamp: ProducerStamp,
        count: u32,
        base_offset: Offset,
    ) {
        let key = ProducerKey {
            partition,
            id: stamp.id,
        };
        let known = self
            .noted
            .remove(&key)
            .or_else(|| self.kept.get(&key).cloned());
        let mut state = known
            .filter(|state| state.epoch == stamp.epoch)
            .unwrap_or_else(|| ProducerState {
                epoch: stamp.epoch,
                used: 0,
                sent: VecDeque::with_capacity(REMEMBERED),
                is_doubtful: false,
            });
        state.is_doubtful = false;
        state.used = self.next_use;
        self.next_use += 1;
        if state.sent.len() == REMEMBERED {
            state.sent.pop_front();
        }
        state.sent.push_back(Sent {
            first: stamp.base_sequence,
            last: last_sequence(stamp.base_sequence, count),
            base_offset,
        });
        self.noted.insert(key, state);
    }

    /// What the group has to store: the states noted and the producers to forget for them.
    pub(super) fn changes(&self) -> (Vec<(ProducerKey, ProducerState)>, Vec<ProducerKey>) {
        let put: Vec<_> = self.noted.iter().map(|(k, s)| (*k, s.clone())).collect();
        let new = self
            .noted
            .keys()
            .filter(|k| !self.kept.contains_key(k))
            .count();
        let excess = (self.kept.len() + new).saturating_sub(self.max);
        let forget = self
            .by_use
            .values()
            .filter(|key| !self.noted.contains_key(key))
            .take(excess)
            .copied()
            .collect();
        (put, forget)
    }

    /// The group is on disk: what it noted holds.
    pub(super) fn keep(&mut self, forget: &[ProducerKey]) {
        for key in forget {
            if let Some(state) = self.kept.remove(key) {
                self.by_use.remove(&state.used);
            }
        }
        for (key, state) in self.noted.drain() {
            self.refused.remove(&key);
            self.by_use.insert(state.used, key);
            if let Some(old) = self.kept.insert(key, state) {
                self.by_use.remove(&old.used);
            }
        }
    }

    /// The group failed: nothing of it is known, but which batch of a producer came first.
    pub(super) fn forget_noted(&mut self) {
        for (key, state) in std::mem::take(&mut self.noted) {
            // what stands behind the last one kept is the group's
            let kept = self
                .kept
                .get(&key)
                .and_then(|kept| kept.sent.back().copied());
            let new = state.sent.iter().position(|sent| Some(*sent) == kept);
            let first = state.sent.get(new.map_or(0, |at| at + 1));
            if let Some(sent) = first.filter(|_| self.is_open(key)) {
                let (epoch, first) = (state.epoch, sent.first);
                self.expect_first(key, Refused { epoch, first });
            }
        }
    }

    /// A restart: what was refused is not stored.
    #[cfg(test)]
    pub(super) fn forget_refused(&mut self) {
        self.refused.clear();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept.len()
    }
}

impl Refused {
    /// True for a batch that the producer sent after the refused one.
    fn comes_before(self, stamp: ProducerStamp) -> bool {
        self.epoch == stamp.epoch && self.first != stamp.base_sequence
    }
}

impl ProducerState {
    fn check(&self, stamp: ProducerStamp, count: u32) -> Result<Verdict, AppendError> {
        if stamp.epoch < self.epoch {
            return Err(AppendError::ProducerFenced {
                producer: stamp.id,
                found: stamp.epoch,
                current: self.epoch,
            });
        }
        let expected = if stamp.epoch > self.epoch {
            0
        } else {
            let last = last_sequence(stamp.base_sequence, count);
            let seen = self
                .sent
                .iter()
                .find(|sent| sent.first == stamp.base_sequence && sent.last == last);
            if let Some(sent) = seen {
                return Ok(Verdict::Duplicate(sent.base_offset));
            }
            self.sent.back().map_or(0, |sent| next_sequence(sent.last))
        };
        if stamp.base_sequence == expected {
            Ok(Verdict::New)
        } else {
            Err(AppendError::OutOfOrderSequence {
                producer: stamp.id,
                found: stamp.base_sequence,
                expected,
            })
        }
    }
}

/// Sequence of a batch's last record; sequences go from `i32::MAX` on to 0
/// (`DefaultRecordBatch.incrementSequence`).
fn last_sequence(first: i32, count: u32) -> i32 {
    let sum = (i64::from(first) + i64::from(count) - 1) & i64::from(i32::MAX);
    i32::try_from(sum).expect("masked to 31 bits")
}

fn next_sequence(last: i32) -> i32 {
    last.checked_add(1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_sent_again_gets_its_old_offset() {
        let mut p = Producers::new(10, Vec::new());
        for i in 0..7 {
            send(&mut p, 0, i * 10, 10, u64::try_from(i).unwrap() * 10).unwrap();
        }
        assert_eq!(p.check(P, stamp(0, 20), 10), Ok(Verdict::Duplicate(20)));
        assert_eq!(p.check(P, stamp(0, 60), 10), Ok(Verdict::Duplicate(60)));
        assert_eq!(p.check(P, stamp(0, 70), 10), Ok(Verdict::New));
        for forgotten_or_odd in [(10, 10), (60, 9), (71, 10)] {
            let (first, count) = forgotten_or_odd;
            assert!(matches!(
                p.check(P, stamp(0, first), count),
                Err(AppendError::OutOfOrderSequence { expected: 70, .. })
            ));
        }
    }

    #[test]
    fn ids_of_two_incarnations_differ() {
        let lost = Incarnation(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        let fresh = Incarnation(lost.0 ^ (1 << 64));
        for number in [0, 1, 999, 1_000] {
            let (old, new) = (id_of(lost, number), id_of(fresh, number));
            assert!(old >= 0 && new >= 0 && old != new, "{old} {new}");
            assert_eq!(id_of(lost, number + 1), old + 1);
        }
        assert!(id_of(Incarnation(u128::MAX >> 1), i64::MAX) >= 0);
    }

    #[test]
    fn sequences_go_on_at_zero_after_the_largest() {
        let mut p = Producers::new(10, Vec::new());
        send(&mut p, 0, i32::MAX - 1, 4, 0).unwrap();
        assert_eq!(p.check(P, stamp(0, 2), 1), Ok(Verdict::New));
        assert_eq!(
            p.check(P, stamp(0, i32::MAX - 1), 4),
            Ok(Verdict::Duplicate(0))
        );
        send(&mut p, 0, 2, i32::MAX as u32 - 1, 4).unwrap();
        assert!(p.check(P, stamp(0, 1), 1).is_err());
        assert_eq!(next_sequence(i32::MAX), 0);
    }

    #[test]
    fn an_epoch_starts_at_zero_and_fences_the_one_before() {
        let mut p = Producers::new(10, Vec::new());
        send(&mut p, 3, 40, 1, 0).unwrap();
        assert!(matches!(
            p.check(P, stamp(4, 41), 1),
            Err(AppendError::OutOfOrderSequence { expected: 0, .. })
        ));
        send(&mut p, 4, 0, 1, 1).unwrap();
        assert!(matches!(
            p.check(P, stamp(3, 41), 1),
            Err(AppendError::ProducerFenced { current: 4, .. })
        ));
    }

    #[test]
    fn a_failed_group_leaves_no_trace() {
        let mut p = Producers::new(10, Vec::new());
        p.note(P, stamp(0, 0), 1, 0);
        assert_eq!(p.check(P, stamp(0, 0), 1), Ok(Verdict::Duplicate(0)));
        p.forget_noted();
        assert_eq!(p.check(P, stamp(0, 0), 1), Ok(Verdict::New));
    }

    #[test]
    fn nothing_takes_the_place_of_a_first_batch_that_was_refused() {
        let mut p = Producers::new(10, Vec::new());
        // pipelined: the first finds the store full, the second would fit
        assert_eq!(p.check(P, stamp(0, 0), 10), Ok(Verdict::New));
        p.refuse(P, stamp(0, 0));
        assert!(matches!(
            p.check(P, stamp(0, 10), 10),
            Err(AppendError::OutOfOrderSequence { expected: 0, .. })
        ));
        send(&mut p, 0, 0, 10, 0).unwrap();
        send(&mut p, 0, 10, 10, 10).unwrap();
        p.refuse(P, stamp(0, 20));
        assert_eq!(p.check(P, stamp(0, 20), 1), Ok(Verdict::New));
    }

    #[test]
    fn a_first_batch_of_a_failed_group_keeps_its_place() {
        let mut p = Producers::new(10, Vec::new());
        p.note(P, stamp(0, 5), 10, 0);
        p.note(P, stamp(0, 15), 10, 10);
        p.forget_noted();
        assert!(p.check(P, stamp(0, 15), 10).is_err());
        assert_eq!(p.check(P, stamp(0, 5), 10), Ok(Verdict::New));
        // a producer that gave up starts again with another epoch
        assert_eq!(p.check(P, stamp(1, 0), 1), Ok(Verdict::New));
    }

    #[test]
    fn a_producer_whose_batches_were_lost_goes_on() {
        let mut p = Producers::new(10, Vec::new());
        send(&mut p, 0, 0, 10, 0).unwrap();
        send(&mut p, 0, 10, 10, 10).unwrap();
        let mut stored: Vec<_> = p.kept.drain().collect();
        stored[0].1.is_doubtful = true;
        let mut p = Producers::new(10, stored);
        assert_eq!(p.check(P, stamp(0, 10), 10), Ok(Verdict::Duplicate(10)));
        // 20 to 49 were acknowledged and lost
        p.refuse(P, stamp(0, 50));
        assert!(
            p.check(P, stamp(0, 60), 10).is_err(),
            "not before the one refused"
        );
        p.note(P, stamp(0, 50), 10, 20);
        p.forget_noted();
        assert!(p.check(P, stamp(0, 60), 10).is_err());
        send(&mut p, 0, 50, 10, 20).unwrap();
        assert!(
            p.check(P, stamp(0, 70), 10).is_err(),
            "from here on it is known"
        );
        assert_eq!(p.check(P, stamp(0, 60), 10), Ok(Verdict::New));
        assert_eq!(p.check(P, stamp(0, 10), 10), Ok(Verdict::Duplicate(10)));
    }

    #[test]
    fn the_producer_that_was_quiet_longest_is_forgotten() {
        let mut p = Producers::new(3, Vec::new());
        for id in [1, 2, 3, 1, 4] {
            p.note(
                P,
                ProducerStamp {
                    id,
                    epoch: 0,
                    base_sequence: 0,
                },
                1,
                0,
            );
            let (_, forget) = p.changes();
            p.keep(&forget);
        }
        assert_eq!(p.len(), 3);
        let knows = |id| {
            let stamp = ProducerStamp {
                id,
                epoch: 0,
                base_sequence: 0,
            };
            p.check(P, stamp, 1) == Ok(Verdict::Duplicate(0))
        };
        assert!(knows(1) && !knows(2) && knows(3) && knows(4));
    }

    const P: PartitionId = PartitionId(0);

    fn stamp(epoch: i16, base_sequence: i32) -> ProducerStamp {
        ProducerStamp {
            id: 9,
            epoch,
            base_sequence,
        }
    }

    fn send(
        p: &mut Producers,
        epoch: i16,
        first: i32,
        count: u32,
        offset: Offset,
    ) -> Result<(), AppendError> {
        let verdict = p.check(P, stamp(epoch, first), count)?;
        if verdict == Verdict::New {
            p.note(P, stamp(epoch, first), count, offset);
            let (_, forget) = p.changes();
            p.keep(&forget);
        }
        Ok(())
    }
}
