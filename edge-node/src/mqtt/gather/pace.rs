//! When a batch waits for more messages. Plain code.
//!
//! A batch costs a sync, a round of the tail and wake-ups on the way, whether it has one message or a hundred.
//! With a thousand clients that publish now and then a few messages have always come when the sync before is
//! done; held for a moment they are a batch that is worth it.
//!
//! It is of no use where clients wait for an acknowledgement before they publish on: nothing comes while
//! theirs is held. So whoever is alone is never held, and where a hold has brought nothing there is none for a
//! while, each time for longer.

use std::time::Duration;

/// How long.
pub const HOLD: Duration = Duration::from_millis(2);
/// Fewer messages are not held: few publish, and each wants its acknowledgement.
const FEW: usize = 3;
/// So many are a batch.
const ENOUGH: usize = 64;
/// A hold must bring so many, or half of what waited.
const WORTH: usize = 4;
/// Batches that are not held after a hold that brought nothing: the first time, and at most.
const FIRST_REST: u32 = 16;
const LAST_REST: u32 = 1024;
/// Holds in a row that were worth it after which the next one that is not counts as the first again.
const STEADY: u32 = 8;

/// What one gatherer has learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Batches that are not held.
    rest: u32,
    next_rest: u32,
    /// Holds in a row that were worth it.
    worth: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rest: 0,
            next_rest: FIRST_REST,
            worth: 0,
        }
    }
}

impl Pace {
    /// Whether a batch of so many messages waits for more.
    pub fn holds(&mut self, waiting: usize) -> bool {
        if !(FEW..ENOUGH).contains(&waiting) {
            return false;
        }
        let is_resting = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        !is_resting
    }

    /// What a hold brought: messages before it and after.
    pub fn held(&mut self, before: usize, after: usize) {
        if after.saturating_sub(before) >= before.div_ceil(2).min(WORTH) {
            self.worth += 1;
            if self.worth == STEADY {
                self.next_rest = FIRST_REST;
            }
            return;
        }
        self.worth = 0;
        self.rest = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(LAST_REST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_is_alone_is_never_held() {
        let mut pace = Pace::default();
        assert!((0..100).all(|_| !pace.holds(1) && !pace.holds(2)));
    }

    #[test]
    fn what_is_enough_is_never_held() {
        let mut pace = Pace::default();
        assert!((ENOUGH..ENOUGH + 100).all(|waiting| !pace.holds(waiting)));
    }

    #[test]
    fn a_stream_is_held_each_time() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            assert!(pace.holds(10));
            pace.held(10, 20);
        }
    }

    proptest! {
        /// Of the batches of clients that wait for their acknowledgements few are held, though now and then
        /// a hold brings half of them together.
        #[test]
        fn holds_that_bring_nothing_become_rare(clients in FEW..ENOUGH) {
            let (mut pace, mut held) = (Pace::default(), 0);
            for _ in 0..20_000 {
                if pace.holds(clients) {
                    held += 1;
                    pace.held(clients, if held % 2 == 0 { clients } else { 2 * clients });
                }
            }
            prop_assert!(held < 80, "{held}");
        }
    }
}
