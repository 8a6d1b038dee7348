//! Those who wait for a part of something that all share, so that who holds one can be asked to give it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many wait. Cheap to clone: clones count together.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<AtomicUsize>);

/// One who waits, until it is dropped: also if it stops waiting before its turn.
#[derive(Debug)]
pub struct Waiting<'a>(&'a AtomicUsize);

impl Waiters {
    /// Counts one more.
    #[must_use]
    pub fn enter(&self) -> Waiting<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.0)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
