//! How long records wait for company before a batch of them is closed.
//!
//! A packet and its acknowledgement cost more than a few well compressed records, so a class may let its
//! records wait for others. The first log of a class whose time is up takes all that wait in the class
//! along: they share packets.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::class::{Class, PerClass};
use crate::wire::Handle;

#[derive(Debug)]
pub(super) struct Delays {
    max: PerClass<Duration>,
    /// Since when each log's oldest unread record has waited.
    waiting: PerClass<BTreeSet<(Duration, Handle)>>,
}

impl Delays {
    pub(super) fn new(max: PerClass<Duration>) -> Self {
        Self {
            max,
            waiting: PerClass::default(),
        }
    }

    pub(super) fn set_max(&mut self, max: PerClass<Duration>) {
        self.max = max;
    }

    /// Whether records of this class wait at all.
    pub(super) fn is_any(&self, class: Class) -> bool {
        !self.max[class].is_zero()
    }

    /// A log waits. `since` stays what it was first until it is taken.
    pub(super) fn wait(&mut self, class: Class, handle: Handle, since: Duration) {
        self.waiting[class].insert((since, handle));
    }

    /// A log no longer waits, whatever its time.
    pub(super) fn take(&mut self, class: Class, handle: Handle, since: Duration) {
        self.waiting[class].remove(&(since, handle));
    }

    /// When a class's first log has waited for long enough.
    pub(super) fn deadline(&self) -> Option<Duration> {
        Class::all()
            .into_iter()
            .filter_map(|class| self.deadline_of(class))
            .min()
    }

    fn deadline_of(&self, class: Class) -> Option<Duration> {
        let (since, _) = self.waiting[class].first()?;
        Some(since.saturating_add(self.max[class]))
    }

    /// All logs of the classes whose time is up, in the order in which they began to wait.
    pub(super) fn release(&mut self, now: Duration) -> Vec<Handle> {
        let mut released = Vec::new();
        for class in Class::all() {
            if self.deadline_of(class).is_some_and(|at| at <= now) {
                let waiting = std::mem::take(&mut self.waiting[class]);
                released.extend(waiting.into_iter().map(|(_, handle)| handle));
            }
        }
        released
    }

    pub(super) fn clear(&mut self) {
        self.waiting = PerClass::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_first_whose_time_is_up_takes_its_class_along() {
        let mut delays = Delays::new(PerClass::new([ms(0), ms(100), ms(1_000)]));
        assert!(!delays.is_any(Class::Critical) && delays.is_any(Class::Bulk));
        delays.wait(Class::Normal, Handle(2), ms(10));
        delays.wait(Class::Normal, Handle(1), ms(90));
        delays.wait(Class::Bulk, Handle(3), ms(0));
        assert_eq!(delays.deadline(), Some(ms(110)));
        assert!(delays.release(ms(109)).is_empty());
        assert_eq!(delays.release(ms(110)), [Handle(2), Handle(1)]);
        assert_eq!(delays.deadline(), Some(ms(1_000)));
        delays.take(Class::Bulk, Handle(3), ms(0));
        assert_eq!(delays.deadline(), None);
    }

    #[test]
    fn a_shorter_delay_holds_for_those_that_wait() {
        let mut delays = Delays::new(PerClass::new([ms(0), ms(100), ms(1_000)]));
        delays.wait(Class::Bulk, Handle(3), ms(0));
        delays.set_max(PerClass::new([ms(0), ms(100), ms(200)]));
        assert_eq!(delays.deadline(), Some(ms(200)));
    }
}
