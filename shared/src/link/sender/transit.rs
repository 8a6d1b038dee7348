//! Bytes that the transport has and the peer's transport does not.
//!
//! A class counts what is as urgent as itself or more: what is less urgent goes behind it in the transport
//! too, so it never has to wait for room that they take. One stream may go beyond the budget.
//!
//! The transport sends what is more urgent first, always. So a class that sends without end holds back what a less
//! urgent one handed over, for good; and one that has little to send hands all of it over and wants no turn. A class
//! that passed another in such a way by some budgets makes way for it until something of it is delivered.

use crate::class::{Class, ClassSet, PerClass};

/// Usual budgets that what is less urgent may have here before a more urgent class waits for its turn no more.
const MUCH: u64 = 2;
/// Usual budgets that a class may have delivered while nothing of a less urgent one was.
const PATIENCE: u64 = 4;

#[derive(Debug)]
pub(super) struct Transit {
    budget: u64,
    /// The same, had all streams the size that the path wants: it tells what is much.
    usual: u64,
    handed: PerClass<u64>,
    /// For each class that has something here: what each more urgent one had delivered since anything of it was.
    passed: PerClass<PerClass<u64>>,
}

impl Default for Transit {
    /// Without a bound of its own: the credit's holds.
    fn default() -> Self {
        Self {
            budget: u64::MAX,
            usual: u64::MAX,
            handed: PerClass::default(),
            passed: PerClass::default(),
        }
    }
}

impl Transit {
    /// At least one stream always goes.
    pub(super) fn set_budget(&mut self, bytes: u64, usual: u64) {
        self.budget = bytes.max(1);
        self.usual = usual.max(1);
    }

    pub(super) fn has_room(&self, class: Class) -> bool {
        let before = self.handed.up_to(class);
        before.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)) < self.budget
    }

    /// What is less urgent than one class and not than the other is so much that the other's turn would last.
    pub(super) fn is_much_between(&self, above: Class, class: Class) -> bool {
        let between = Class::all()
            .into_iter()
            .filter(|of| *of > above && *of <= class);
        self.bytes(between.collect()) >= self.usual.saturating_mul(MUCH)
    }

    pub(super) fn hand(&mut self, class: Class, bytes: u64) {
        if self.handed[class] == 0 {
            self.passed[class] = PerClass::default();
        }
        self.handed[class] = self.handed[class].saturating_add(bytes);
    }

    pub(super) fn deliver(&mut self, class: Class, bytes: u64) {
        self.handed[class] = self.handed[class].saturating_sub(bytes);
        self.passed[class] = PerClass::default();
        for behind in Class::all().into_iter().filter(|behind| *behind > class) {
            let passed = &mut self.passed[behind][class];
            *passed = passed.saturating_add(bytes);
        }
    }

    /// It has passed one of these for too long. What is more than a usual budget is not waited for: it would take too long.
    pub(super) fn makes_way(&self, class: Class, for_any: ClassSet) -> bool {
        let most = self.usual.saturating_mul(PATIENCE);
        let is_passed = |behind: Class| {
            let handed = self.handed[behind];
            behind > class
                && (1..=self.usual).contains(&handed)
                && self.passed[behind][class] > most
        };
        for_any.iter().any(is_passed)
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
        transit.set_budget(1_000, 1_000);
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

    #[test]
    fn who_passed_others_for_long_makes_way_until_they_move() {
        let mut transit = Transit::default();
        transit.set_budget(1_000, 1_000);
        let pass = |transit: &mut Transit, bytes: u64| {
            transit.hand(Class::Critical, bytes);
            transit.deliver(Class::Critical, bytes);
        };
        let makes_way = |transit: &Transit| {
            [Class::Critical, Class::Normal].map(|c| transit.makes_way(c, ClassSet::ALL))
        };
        pass(&mut transit, 10_000);
        transit.hand(Class::Bulk, 600);
        assert_eq!(makes_way(&transit), [false; 2], "that was before");
        pass(&mut transit, 4_000);
        assert_eq!(makes_way(&transit), [false; 2]);
        pass(&mut transit, 1);
        assert_eq!(makes_way(&transit), [true, false], "normal passed nothing");
        assert!(!transit.makes_way(Class::Critical, ClassSet::CRITICAL_ONLY));
        transit.hand(Class::Bulk, 401);
        assert_eq!(makes_way(&transit), [false; 2], "too much to wait for");
        transit.deliver(Class::Bulk, 500);
        assert_eq!(makes_way(&transit), [false; 2], "it moved");
        pass(&mut transit, 4_001);
        assert_eq!(makes_way(&transit), [true, false]);
        transit.deliver(Class::Bulk, 501);
        assert_eq!(makes_way(&transit), [false; 2], "it is through");
    }
}
