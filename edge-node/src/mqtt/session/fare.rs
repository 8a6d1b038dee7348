//! What pays for a message that waits in a client's queue, so that all queues together stay within the node's budget.
//!
//! A queue has a small share for nothing. For a message beyond that a part of the budget is taken, once for all the
//! queues that the message is in: they share it in memory.

use std::sync::Arc;

use crate::ingest::{Budget, Reservation};

/// Bytes of messages in a client's queue that need no part of the budget.
pub const FREE_QUEUE: usize = 16 * 1024;

/// What is paid for one message; given back when no queue has it any more.
pub type Paid = Arc<Reservation>;

/// Pays for one message, at most once. Without a budget nothing is had beyond the free share.
#[derive(Debug, Default)]
pub struct Fare<'b> {
    budget: Option<&'b Budget>,
    granted: Option<Reservation>,
    paid: Option<Paid>,
    is_refused: bool,
}

impl<'b> Fare<'b> {
    /// From `budget`, or from what somebody waited for.
    #[must_use]
    pub fn new(budget: &'b Budget, granted: Option<Reservation>) -> Self {
        Self {
            budget: Some(budget),
            granted,
            ..Self::default()
        }
    }

    /// Something was given back: it may have so much now.
    pub fn retry(&mut self) {
        self.is_refused = false;
    }

    /// `None`: the budget has not so much at the moment.
    pub fn pay(&mut self, bytes: usize) -> Option<Paid> {
        if self.paid.is_none() && !self.is_refused {
            let mut part = self.granted.take().unwrap_or_default();
            let missing = bytes.saturating_sub(part.bytes());
            let has_all = missing == 0
                || self
                    .budget
                    .is_some_and(|budget| part.try_grow(budget, missing));
            if has_all {
                part.shrink_to(bytes);
                self.paid = Some(Arc::new(part));
            }
            self.is_refused = !has_all;
            if let Some(budget) = self.budget.filter(|_| !has_all) {
                budget.missed();
            }
        }
        self.paid.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_paid_for_once_however_many_queues_have_it() {
        let budget = Budget::new(100);
        let mut fare = Fare::new(&budget, None);
        let both = (fare.pay(60), fare.pay(60));
        assert!(both.0.is_some() && both.1.is_some());
        assert_eq!(budget.used(), 60);
        assert!(Fare::new(&budget, None).pay(60).is_none());
        drop((both, fare));
        assert_eq!(budget.used(), 0);
        assert!(Fare::default().pay(1).is_none());
    }

    #[test]
    fn what_was_waited_for_is_used_and_the_rest_given_back() {
        let budget = Budget::new(100);
        let mut granted = Reservation::default();
        assert!(granted.try_grow(&budget, 90));
        let paid = Fare::new(&budget, Some(granted)).pay(20);
        assert!(paid.is_some());
        assert_eq!(budget.used(), 20);
    }
}
