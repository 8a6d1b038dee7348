//! The node-wide budget of bytes that were received and are not yet synced.
//!
//! A listener takes from it what it has read, not what a length field promised, and gives it back when
//! the request is answered. When it is used up everybody stops reading, and the senders' own windows
//! push back.
//!
//! Many half-received requests could use it up and wait for each other for ever. So one connection at
//! a time may go on reading beyond it (the overdraft) until what it received is answered: memory stays
//! within the budget and one connection's own limit. While somebody waits, [`Budget::is_short`] says so: who
//! holds a part of it for a request that does not come along is then to give it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::waiters::Waiters;

/// The budget. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
    capacity: usize,
    waiting: Waiters,
    /// Somebody who does not wait went without.
    was_missed: Arc<AtomicBool>,
}

impl Budget {
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(Semaphore::MAX_PERMITS);
        Self {
            bytes: Arc::new(Semaphore::new(capacity)),
            overdraft: Arc::new(Semaphore::new(1)),
            capacity,
            waiting: Waiters::default(),
            was_missed: Arc::default(),
        }
    }

    /// Bytes reserved at the moment.
    #[must_use]
    pub fn used(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.available_permits())
    }

    /// Whether somebody waits for a part of it.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.waiting.count() > 0
    }

    /// Somebody needed a part of it, does not wait, and goes without.
    pub fn missed(&self) {
        self.was_missed.store(true, Ordering::Relaxed);
    }

    /// Whether that was so since it was asked last.
    #[must_use]
    pub fn take_missed(&self) -> bool {
        self.was_missed.swap(false, Ordering::Relaxed)
    }

    /// All bytes that may be reserved.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Bytes taken from the budget; given back on drop.
#[derive(Debug, Default)]
pub struct Reservation {
    counted: Option<OwnedSemaphorePermit>,
    /// Bytes read on the overdraft: they are not in `counted`.
    uncounted: usize,
    overdraft: Option<Arc<OwnedSemaphorePermit>>,
}

impl Reservation {
    /// Bytes that it stands for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.uncounted
            + self
                .counted
                .as_ref()
                .map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Adds `more` bytes, and waits for them if need be. Cancel-safe: a wait that is dropped has taken
    /// nothing.
    ///
    /// # Panics
    /// When `more` exceeds 4 GiB: nobody reads that much at once.
    pub async fn grow(&mut self, budget: &Budget, more: usize) {
        let permits = u32::try_from(more).expect("a read is below 4 GiB");
        if more <= budget.capacity
            && let Ok(permit) = budget.bytes.clone().try_acquire_many_owned(permits)
        {
            return self.add(permit);
        }
        if self.overdraft.is_some() {
            self.uncounted += more;
            return;
        }
        let _waiting = budget.waiting.enter();
        tokio::select! {
            biased;
            permit = budget.bytes.clone().acquire_many_owned(permits), if more <= budget.capacity => {
                self.add(permit.expect("the semaphore is never closed"));
            }
            overdraft = budget.overdraft.clone().acquire_owned() => {
                self.overdraft = Some(Arc::new(overdraft.expect("the semaphore is never closed")));
                self.uncounted += more;
            }
        }
    }

    /// Adds `more` bytes if they are there at once, and says whether they were. More than the whole budget goes
    /// through the overdraft.
    pub fn try_grow(&mut self, budget: &Budget, more: usize) -> bool {
        if more > budget.capacity {
            let Ok(overdraft) = budget.overdraft.clone().try_acquire_owned() else {
                return false;
            };
            self.overdraft = Some(Arc::new(overdraft));
            self.uncounted += more;
            return true;
        }
        let permits = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = budget.bytes.clone().try_acquire_many_owned(permits);
        permit.map(|permit| self.add(permit)).is_ok()
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        drop(self.split(self.bytes().saturating_sub(bytes)));
    }

    fn add(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.counted {
            Some(counted) => counted.merge(permit),
            None => self.counted = Some(permit),
        }
    }

    /// Splits off `bytes` for the request that they belong to, at most what it stands for.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let held = self
            .counted
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let counted = self
            .counted
            .as_mut()
            .and_then(|held_permit| held_permit.split(bytes.min(held)));
        let uncounted = (bytes - bytes.min(held)).min(self.uncounted);
        self.uncounted -= uncounted;
        let overdraft = if uncounted > 0 {
            self.overdraft.clone()
        } else {
            None
        };
        if self.uncounted == 0 {
            self.overdraft = None;
        }
        Self {
            counted,
            uncounted,
            overdraft,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn what_was_reserved_comes_back_on_drop() {
        let budget = Budget::new(100);
        let mut reservation = Reservation::default();
        ready(reservation.grow(&budget, 60)).unwrap();
        let request = reservation.split(25);
        assert_eq!(
            (request.bytes(), reservation.bytes(), budget.used()),
            (25, 35, 60)
        );
        drop(request);
        assert_eq!(budget.used(), 35);
        drop(reservation);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn one_connection_at_a_time_may_finish_beyond_the_budget() {
        let budget = Budget::new(100);
        let (mut a, mut b, mut c) = (
            Reservation::default(),
            Reservation::default(),
            Reservation::default(),
        );
        ready(a.grow(&budget, 100)).unwrap();
        ready(b.grow(&budget, 70)).expect("the overdraft is free");
        ready(b.grow(&budget, 70)).expect("it holds the overdraft");
        assert!(
            ready(c.grow(&budget, 1)).is_none(),
            "the overdraft is taken"
        );
        assert!(!budget.is_short(), "it stopped waiting");
        {
            let mut wait = std::pin::pin!(c.grow(&budget, 1));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(wait.as_mut().poll(&mut context).is_pending());
            assert!(budget.is_short());
        }
        let request = b.split(140);
        drop(b);
        assert!(
            ready(c.grow(&budget, 1)).is_none(),
            "the request still holds it"
        );
        drop(request);
        ready(c.grow(&budget, 1)).expect("the overdraft is free again");
        drop(a);
        assert_eq!(budget.used(), 0, "overdrawn bytes are not counted");
    }

    #[test]
    fn who_does_not_wait_gets_what_is_there_or_nothing() {
        let budget = Budget::new(100);
        let (mut a, mut b, mut c) = (
            Reservation::default(),
            Reservation::default(),
            Reservation::default(),
        );
        assert!(a.try_grow(&budget, 80) && !b.try_grow(&budget, 30));
        assert_eq!((b.bytes(), budget.used()), (0, 80));
        a.shrink_to(70);
        assert!(b.try_grow(&budget, 30));
        assert!(b.try_grow(&budget, 200), "through the overdraft");
        assert!(!c.try_grow(&budget, 200), "one at a time");
        b.shrink_to(0);
        assert!(c.try_grow(&budget, 200));
        drop((a, c));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn more_than_the_whole_budget_goes_through_the_overdraft() {
        let budget = Budget::new(10);
        let mut a = Reservation::default();
        ready(a.grow(&budget, 50)).expect("never waits for what can not be");
        assert_eq!(a.bytes(), 50);
    }
}
