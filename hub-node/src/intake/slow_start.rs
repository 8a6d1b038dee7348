//! How much a session may have on its way at first, while many sites come back at once.
//!
//! All of them have a backlog. With full windows from the start their batches would lie in the hub's
//! memory long before the lanes can commit them; so each begins with little, and with every commit it
//! may have twice as much.

use std::time::Duration;

/// About one batch of a site, encoded records being smaller than this by far.
const FIRST: u64 = 512 << 10;
/// A session whose first batch does not fit must not wait for a commit that cannot come.
const UNSTUCK_AFTER: Duration = Duration::from_secs(1);

/// The plain part: no clock.
#[derive(Debug)]
pub(super) struct SlowStart {
    window: u64,
    raised: Duration,
}

impl SlowStart {
    /// Small, until [`SlowStart::begin`].
    pub(super) const fn new() -> Self {
        Self {
            window: FIRST,
            raised: Duration::ZERO,
        }
    }

    /// The session opens.
    pub(super) fn begin(&mut self, is_crowded: bool, now: Duration) {
        self.raised = now;
        if !is_crowded {
            self.window = u64::MAX;
        }
    }

    /// Something of it was committed.
    pub(super) fn committed(&mut self, now: Duration) {
        self.window = self.window.saturating_mul(2);
        self.raised = now;
    }

    /// Time passed; true when the window grew.
    pub(super) fn handle_timeout(&mut self, most: u64, now: Duration) -> bool {
        let is_due = self.poll_timeout(most).is_some_and(|at| at <= now);
        if is_due {
            self.committed(now);
        }
        is_due
    }

    /// The window, where `most` is what the budget grants.
    pub(super) fn window(&self, most: u64) -> u64 {
        self.window.min(most)
    }

    /// When to call [`SlowStart::handle_timeout`].
    pub(super) fn poll_timeout(&self, most: u64) -> Option<Duration> {
        (self.window < most).then(|| self.raised + UNSTUCK_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 8 << 20;

    #[test]
    fn alone_a_session_begins_with_all_that_the_budget_grants() {
        let mut start = SlowStart::new();
        start.begin(false, Duration::ZERO);
        assert_eq!(start.window(MOST), MOST);
        assert_eq!(start.poll_timeout(MOST), None);
    }

    #[test]
    fn in_a_crowd_it_doubles_with_every_commit() {
        let mut start = SlowStart::new();
        start.begin(true, Duration::ZERO);
        let mut windows = vec![start.window(MOST)];
        while start.poll_timeout(MOST).is_some() {
            start.committed(Duration::ZERO);
            windows.push(start.window(MOST));
        }
        assert_eq!(windows, [512, 1024, 2048, 4096, 8192].map(|kib| kib << 10));
    }

    #[test]
    fn a_batch_that_does_not_fit_is_not_stuck() {
        let mut start = SlowStart::new();
        start.begin(true, Duration::ZERO);
        let mut now = Duration::ZERO;
        while let Some(at) = start.poll_timeout(MOST) {
            assert!(!start.handle_timeout(MOST, now));
            now = at;
            assert!(start.handle_timeout(MOST, now));
        }
        assert!(now <= Duration::from_secs(5), "{now:?}");
    }
}
