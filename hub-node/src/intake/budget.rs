//! How much of the process's memory all sessions together may fill.
//!
//! Each session is granted a window as credit, an even share of the budget, but never less than the
//! largest batch, so that no site can be stuck with a batch that never fits. With many sites those
//! windows can add up to more than the budget. What counts is what really came: at the limit, sessions
//! that hold something take no further data stream until something is committed, and QUIC's flow control
//! holds their sites back. So the process holds at most the budget, one batch for each session, and
//! QUIC's receive windows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The budget of one process, in decoded bytes.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    least: u64,
    most: u64,
    sessions: AtomicU64,
    held: AtomicU64,
    /// Told when the sum of all falls below the limit.
    room: Notify,
}

/// One session's part of the budget; what it holds is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: u64,
}

impl Budget {
    /// `total` bytes for all sessions; windows of at least `least` and at most `most` for each.
    #[must_use]
    pub fn new(total: u64, least: u64, most: u64) -> Self {
        Self {
            total,
            least,
            most: most.max(least),
            sessions: AtomicU64::new(0),
            held: AtomicU64::new(0),
            room: Notify::new(),
        }
    }

    pub(super) fn join(self: &Arc<Self>) -> Share {
        self.sessions.fetch_add(1, Ordering::AcqRel);
        Share {
            budget: Arc::clone(self),
            held: 0,
        }
    }

    /// Bytes that each session may hold at the moment.
    #[must_use]
    pub fn window(&self) -> u64 {
        let open = self.sessions.load(Ordering::Acquire).max(1);
        (self.total / open).clamp(self.least, self.most)
    }

    /// Bytes that came and are not committed, all sessions.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// The limit.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Ends when there may be room again. Take it before asking [`Share::may_read`].
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }
}

impl Share {
    /// What the session holds by now.
    pub(super) fn update(&mut self, held: u64) {
        let total = self.budget.total;
        if held > self.held {
            self.budget
                .held
                .fetch_add(held - self.held, Ordering::AcqRel);
        } else if held < self.held {
            let freed = self.held - held;
            let before = self.budget.held.fetch_sub(freed, Ordering::AcqRel);
            if before >= total && before - freed < total {
                self.budget.room.notify_waiters();
            }
        }
        self.held = held;
    }

    /// A session that holds nothing may always take one stream: every site makes way.
    pub(super) fn may_read(&self) -> bool {
        self.held == 0 || self.budget.held() < self.budget.total
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.update(0);
        self.budget.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_even_shares_within_their_bounds() {
        let budget = Arc::new(Budget::new(100, 8, 32));
        let shares: Vec<Share> = (0..5).map(|_| budget.join()).collect();
        assert_eq!(budget.window(), 20);
        drop(shares);
        assert_eq!(budget.window(), 32);
        let _shares: Vec<Share> = (0..50).map(|_| budget.join()).collect();
        assert_eq!(budget.window(), 8);
    }

    #[test]
    fn at_the_limit_only_who_holds_nothing_may_read() {
        let budget = Arc::new(Budget::new(100, 8, 100));
        let (mut full, empty) = (budget.join(), budget.join());
        full.update(100);
        assert!(!full.may_read() && empty.may_read());
        full.update(99);
        assert!(full.may_read());
        drop(full);
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn room_is_told_to_those_who_wait() {
        let budget = Arc::new(Budget::new(10, 1, 10));
        let (mut first, mut second) = (budget.join(), budget.join());
        first.update(6);
        second.update(6);
        let room = budget.room();
        tokio::pin!(room);
        room.as_mut().enable();
        second.update(1);
        room.await;
    }
}
