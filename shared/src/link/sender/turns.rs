//! Whose turn it is on a link that all classes fill: deficit round robin, the most urgent first.
//!
//! In a round every class may send its share of [`ROUND_BYTES`], the more urgent before the less urgent. A
//! stream goes whole, so a class may go into debt, which it pays in later rounds. Who has nothing to send
//! saves up no more than one round: an alarm after a quiet hour goes at once, a flood of them does not
//! take the link from the others.
//!
//! Who has the turn and no room in the transport pays for its next stream by what the link carries meanwhile: on a
//! link that has become thin one batch takes half a minute, and the turn would last until then.

use crate::class::{Class, ClassSet, ClassShares, PerClass};

/// Small enough that the shares hold within seconds on a thin link, large enough that a burst of alarms
/// goes in one piece.
const ROUND_BYTES: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Turns {
    shares: ClassShares,
    /// What each may still send in this round; below zero: debt.
    left: PerClass<i64>,
    /// Paid of what comes next.
    paid: PerClass<u64>,
}

impl Turns {
    pub(super) fn new(shares: ClassShares) -> Self {
        Self {
            shares,
            left: PerClass::from_fn(|class| quantum(&shares, class)),
            paid: PerClass::default(),
        }
    }

    /// Who is next among those that have something to send.
    pub(super) fn next(&mut self, wanting: ClassSet) -> Option<Class> {
        if wanting.is_empty() {
            return None;
        }
        if self.first(wanting).is_none() {
            self.begin_rounds(wanting);
        }
        self.first(wanting)
    }

    fn first(&self, wanting: ClassSet) -> Option<Class> {
        wanting.iter().find(|class| self.left[*class] > 0)
    }

    /// As many rounds as it takes until one of them may send.
    fn begin_rounds(&mut self, wanting: ClassSet) {
        let rounds_of = |class| {
            let quantum = quantum(&self.shares, class);
            (-self.left[class]) / quantum + 1
        };
        let rounds = wanting.iter().map(rounds_of).min().unwrap_or(1);
        for class in Class::all() {
            let quantum = quantum(&self.shares, class);
            let left = self.left[class].saturating_add(quantum.saturating_mul(rounds));
            self.left[class] = left.min(quantum);
        }
    }

    /// Charges what was sent, unless nobody else wants the link.
    pub(super) fn sent(&mut self, class: Class, bytes: u64, wanting: ClassSet) {
        if wanting.without(class).is_empty() {
            return;
        }
        let paid = bytes.min(self.paid[class]);
        self.paid[class] -= paid;
        self.charge(class, bytes - paid);
    }

    /// Charges what the link carried while this class has the turn and others wait for its end.
    pub(super) fn carried(&mut self, class: Class, bytes: u64) {
        self.paid[class] = self.paid[class].saturating_add(bytes);
        self.charge(class, bytes);
    }

    fn charge(&mut self, class: Class, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.left[class] = self.left[class].saturating_sub(bytes);
    }
}

fn quantum(shares: &ClassShares, class: Class) -> i64 {
    let bytes = ROUND_BYTES * u64::from(shares.per_mille(class)) / 1_000;
    i64::try_from(bytes).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL_AND_BULK: ClassSet = ClassSet::ALL.without(Class::Critical);

    /// Bytes sent by class when those in `wanting` always have streams of these sizes.
    fn shares_of(wanting: ClassSet, sizes: [u64; 3], total: u64) -> [u64; 3] {
        let mut turns = Turns::new(ClassShares::default());
        let mut sent = [0; 3];
        while sent.iter().sum::<u64>() < total {
            let class = turns.next(wanting).unwrap();
            turns.sent(class, sizes[class.index()], wanting);
            sent[class.index()] += sizes[class.index()];
        }
        sent.map(|bytes| (bytes * 1_000 + total / 2) / total)
    }

    #[test]
    fn a_full_link_is_shared_by_weight_whatever_the_sizes() {
        for sizes in [[1_000; 3], [100, 10_000, 100_000], [300_000, 200, 50]] {
            let shares = shares_of(ClassSet::ALL, sizes, 100_000_000);
            for (found, wanted) in shares.into_iter().zip([760, 190, 50]) {
                assert!(found.abs_diff(wanted) <= 5, "{sizes:?}: {shares:?}");
            }
        }
        let [_, normal, bulk] = shares_of(NORMAL_AND_BULK, [0, 900, 30_000], 100_000_000);
        assert!(normal.abs_diff(792) <= 5 && bulk.abs_diff(208) <= 5);
    }

    #[test]
    fn who_is_alone_has_the_link_and_runs_up_no_debt() {
        let mut turns = Turns::new(ClassShares::default());
        let alone = ClassSet::CRITICAL_ONLY;
        for _ in 0..100 {
            assert_eq!(turns.next(alone), Some(Class::Critical));
            turns.sent(Class::Critical, 1 << 20, alone);
        }
        assert_eq!(turns.next(ClassSet::ALL), Some(Class::Critical));
        assert_eq!(turns.next(ClassSet::EMPTY), None);
    }

    #[test]
    fn what_the_link_carries_ends_a_turn_and_is_paid_once() {
        let mut turns = Turns::new(ClassShares::default());
        turns.sent(Class::Critical, ROUND_BYTES, ClassSet::ALL);
        assert_eq!(turns.next(ClassSet::ALL), Some(Class::Normal));
        let carried = ROUND_BYTES / 4;
        turns.carried(Class::Normal, carried);
        assert_eq!(turns.next(ClassSet::ALL), Some(Class::Bulk));
        let before = turns.left[Class::Normal];
        turns.sent(Class::Normal, carried + 7, ClassSet::ALL);
        assert_eq!(turns.left[Class::Normal], before - 7);
        turns.sent(Class::Normal, 10, ClassSet::ALL);
        assert_eq!(turns.left[Class::Normal], before - 17);
    }

    #[test]
    fn what_comes_after_silence_goes_at_once() {
        let mut turns = Turns::new(ClassShares::default());
        for _ in 0..50 {
            let class = turns.next(NORMAL_AND_BULK).unwrap();
            turns.sent(class, 10_000, NORMAL_AND_BULK);
            assert_eq!(turns.next(ClassSet::ALL), Some(Class::Critical));
        }
    }
}
