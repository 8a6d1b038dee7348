//! The way out of the log for readers at the site: Kafka consumers and whoever else serves records.
//!
//! A read may wait for the disk, so it runs on a thread of its own, a few at a time. The bytes of all
//! answers that are being put together or sent stay within [`EgressLimits::max_bytes`] for the whole
//! node: who reads takes its part first, and gives it back when the client has the answer. Nobody holds a
//! part while it waits for records to come. While somebody waits for one, [`Egress::is_short`] says so: who
//! holds a part for a client that does not take its answer is then to give it up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::store::Store;
use crate::waiters::Waiters;

/// What readers are held to.
#[derive(Debug, Clone, Copy)]
pub struct EgressLimits {
    /// Bytes of answers under way, over all readers.
    pub max_bytes: usize,
    /// Most bytes of one answer, unless its first batch alone is larger.
    pub max_answer_bytes: usize,
    /// Reads of the disk at a time.
    pub max_parallel_reads: usize,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            // a small box has 64 MiB for the whole process: a quarter of it
            max_bytes: 16 * 1024 * 1024,
            // larger answers are not faster, and eight readers have their turn at once
            max_answer_bytes: 2 * 1024 * 1024,
            max_parallel_reads: 4,
        }
    }
}

/// The thread that read did not come back.
#[derive(Debug, thiserror::Error)]
#[error("a read of the log failed: {0}")]
pub struct ReadFailed(String);

/// Handle to the way out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Egress {
    store: Arc<dyn Store>,
    bytes: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    waiting: Waiters,
    limits: EgressLimits,
}

/// A part of the budget; given back on drop.
#[derive(Debug)]
pub struct Allowance(OwnedSemaphorePermit);

impl Allowance {
    /// Bytes that it stands for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }

    /// Gives back all but `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let spare = self.bytes().saturating_sub(bytes);
        drop(self.0.split(spare));
    }
}

impl Egress {
    /// Reads from `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, limits: EgressLimits) -> Self {
        let max_bytes = limits
            .max_bytes
            .clamp(1, Semaphore::MAX_PERMITS.min(1 << 31));
        let limits = EgressLimits {
            max_bytes,
            max_answer_bytes: limits.max_answer_bytes.min(max_bytes),
            ..limits
        };
        Self {
            store,
            bytes: Arc::new(Semaphore::new(max_bytes)),
            turns: Arc::new(Semaphore::new(limits.max_parallel_reads.max(1))),
            waiting: Waiters::default(),
            limits,
        }
    }

    /// The log.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &EgressLimits {
        &self.limits
    }

    /// Bytes of answers under way.
    #[must_use]
    pub fn used(&self) -> usize {
        let free = self.bytes.available_permits();
        self.limits.max_bytes.saturating_sub(free)
    }

    /// Takes `bytes` of the budget, at most all of it, first come, first served. `None` when there was no
    /// room for `patience`.
    pub async fn allow(&self, bytes: usize, patience: Duration) -> Option<Allowance> {
        let wanted = u32::try_from(bytes.min(self.limits.max_bytes)).unwrap_or(u32::MAX);
        if let Ok(permit) = self.bytes.clone().try_acquire_many_owned(wanted) {
            return Some(Allowance(permit));
        }
        let _waiting = self.waiting.enter();
        let permit = self.bytes.clone().acquire_many_owned(wanted);
        let permit = timeout(patience, permit).await.ok()?;
        permit.ok().map(Allowance)
    }

    /// Whether somebody waits for a part of the budget.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.waiting.count() > 0
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.count()
    }

    /// Carries out `read` where it may wait for the disk.
    ///
    /// # Errors
    /// [`ReadFailed`] when it panicked or the runtime stops.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> T + Send + 'static,
    ) -> Result<T, ReadFailed> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|error| ReadFailed(error.to_string()))?;
        let store = Arc::clone(&self.store);
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read(&*store)
        });
        work.await.map_err(|error| ReadFailed(error.to_string()))
    }

    /// Begins a read that nobody waits for yet, with its part of the budget. `None` when that would take from
    /// those who wait: half of the budget and a turn stay free.
    #[must_use]
    pub fn read_ahead<T: Send + 'static>(
        &self,
        bytes: usize,
        read: impl FnOnce(&dyn Store) -> T + Send + 'static,
    ) -> Option<JoinHandle<(T, Allowance)>> {
        let spare = self.limits.max_bytes / 2;
        let free = self.bytes.available_permits();
        if free.saturating_sub(bytes) < spare || self.turns.available_permits() < 2 {
            return None;
        }
        let wanted = u32::try_from(bytes).ok()?;
        let permit = self.bytes.clone().try_acquire_many_owned(wanted).ok()?;
        let allowance = Allowance(permit);
        let turn = self.turns.clone().try_acquire_owned().ok()?;
        let store = Arc::clone(&self.store);
        Some(tokio::task::spawn_blocking(move || {
            let _turn = turn;
            (read(&*store), allowance)
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::store::MemoryStore;

    fn egress() -> Egress {
        let limits = EgressLimits {
            max_bytes: 100,
            ..EgressLimits::default()
        };
        Egress::new(Arc::new(MemoryStore::default()), limits)
    }

    #[tokio::test]
    async fn answers_stay_within_the_budget_and_come_back_on_drop() {
        let egress = egress();
        assert_eq!(egress.limits().max_answer_bytes, 100);
        let patience = Duration::from_millis(20);
        let mut first = egress.allow(1_000, patience).await.unwrap();
        assert_eq!((first.bytes(), egress.used()), (100, 100));
        {
            let mut wait = std::pin::pin!(egress.allow(1, patience));
            assert!(!egress.is_short(), "nobody waits yet");
            let mut context = Context::from_waker(Waker::noop());
            assert!(wait.as_mut().poll(&mut context).is_pending() && egress.is_short());
            assert!(wait.await.is_none());
        }
        assert!(!egress.is_short(), "it gave up");
        first.shrink(30);
        assert_eq!(egress.used(), 30);
        let second = egress.allow(70, patience).await.unwrap();
        drop((first, second));
        assert_eq!(egress.used(), 0);
    }

    #[tokio::test]
    async fn reading_ahead_leaves_half_of_the_budget_and_a_turn_to_others() {
        let egress = egress();
        assert!(egress.read_ahead(51, |_| ()).is_none());
        let ahead = egress.read_ahead(50, |_| 7).unwrap();
        assert!(egress.read_ahead(1, |_| ()).is_none());
        let (found, allowance) = ahead.await.unwrap();
        assert_eq!((found, allowance.bytes(), egress.used()), (7, 50, 50));
        drop(allowance);
        let turns = egress.turns.clone().acquire_many_owned(3).await;
        assert!(egress.read_ahead(1, |_| ()).is_none());
        assert_eq!(egress.used(), 0);
        drop(turns);
        assert!(egress.read_ahead(1, |_| ()).is_some());
    }

    #[tokio::test]
    async fn a_read_that_panics_fails_and_gives_its_turn_back() {
        let egress = egress();
        for _ in 0..10 {
            let failed = egress.read(|_| panic!("on purpose")).await;
            assert!(failed.is_err());
        }
        assert_eq!(egress.read(|store| store.topics().len()).await.unwrap(), 0);
    }
}
