//! What the policy allows a connection, for its controllers to look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a policy allows, in bytes per second; it may change at any time.
#[derive(Debug, Clone)]
pub struct RateLimit(Arc<AtomicU64>);

impl Default for RateLimit {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl RateLimit {
    /// `u64::MAX` is no limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::Relaxed);
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
