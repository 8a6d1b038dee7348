//! Bytes that the transport has and the peer's transport does not.
//!
//! A class counts what is as urgent as itself or more: what is less urgent goes behind it in the transport
//! too, so it never has to wait for room that they take. One stream may go beyond the budget.

use crate::class::{Class, ClassSet, PerClass};

#[derive(Debug)]
pub(super) struct Transit {
    budget: u64,
    handed: PerClass<u64>,
}

impl Default for Transit {
    /// Without a bound of its own: the credit's holds.
    fn default() -> Self {
        Self {
            budget: u64::MAX,
            handed: PerClass::default(),
        }
    }
}

impl Transit {
    /// At least one stream always goes.
    pub(super) fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes.max(1);
    }

    pub(super) fn has_room(&self, class: Class) -> bool {
        let before = self.handed.up_to(class);
        before.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)) < self.budget
    }

    /// It has no room, whatever the others take.
    pub(super) fn is_full_of(&self, class: Class) -> bool {
        self.handed[class] >= self.budget
    }

    pub(super) fn hand(&mut self, class: Class, bytes: u64) {
        self.handed[class] = self.handed[class].saturating_add(bytes);
    }

    pub(super) fn deliver(&mut self, class: Class, bytes: u64) {
        self.handed[class] = self.handed[class].saturating_sub(bytes);
    }

    pub(super) fn bytes(&self, classes: ClassSet) -> u64 {
        let handed = classes.iter().map(|class| self.handed[class]);
        handed.fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_less_urgent_takes_no_room() {
        let mut transit = Transit::default();
        assert!(transit.has_room(Class::Bulk));
        transit.set_budget(1_000);
        transit.hand(Class::Bulk, 999);
        assert!(transit.has_room(Class::Bulk), "one stream may go beyond it");
        transit.hand(Class::Bulk, 999);
        assert!(!transit.has_room(Class::Bulk));
        assert!(transit.has_room(Class::Normal));
        transit.hand(Class::Normal, 1_000);
        assert!(!transit.has_room(Class::Normal) && transit.has_room(Class::Critical));
        transit.deliver(Class::Bulk, 1_998);
        assert!(!transit.has_room(Class::Bulk), "normal data is in its way");
        transit.deliver(Class::Normal, 1_000);
        assert!(transit.has_room(Class::Bulk));
        assert_eq!(transit.bytes(ClassSet::ALL), 0);
        transit.hand(Class::Critical, 7);
        assert_eq!(transit.bytes(ClassSet::ALL), 7);
        assert_eq!(transit.bytes(ClassSet::CRITICAL_ONLY), 7);
        assert_eq!(transit.bytes(ClassSet::EMPTY.with(Class::Bulk)), 0);
    }
}
