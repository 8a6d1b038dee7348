//! How much of the process's memory all sessions together may fill.
//!
//! Each session is granted a window as credit, an even share of the budget, but never less than the
//! largest batch, so that no site can be stuck with a batch that never fits. With many sites those
//! windows can add up to more than the budget. What counts is what really came: a session that holds as
//! much as is free takes no further data stream until something is committed, and QUIC's flow control
//! holds its site back. So `n` sessions that want more get a part in `n + 1` each, there is room for one
//! that comes later, and the process holds at most the budget, what each session has begun, and QUIC's
//! receive windows, which shrink as sessions become more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// 1 Mbit/s over a satellite.
const LEAST_RECEIVE_WINDOW: u64 = 96 << 10;
/// Sessions that wait are told each time that such a part of the budget is free again.
const PARTS: u64 = 16;

/// The budget of one process, in decoded bytes.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    least: u64,
    most: u64,
    sessions: AtomicU64,
    held: AtomicU64,
    /// Told when the sum of all has fallen.
    room: Notify,
}

/// One session's part of the budget; what it holds is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: u64,
}

impl Budget {
    /// Most bytes that a connection may hold before they are read: the three quarters that a site fills with what is
    /// not urgent are 15 Mbit/s over a satellite.
    pub const MOST_RECEIVE_WINDOW: u64 = 3 << 19;

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

    /// The largest window that any session is ever granted.
    pub(super) const fn most(&self) -> u64 {
        self.most
    }

    /// Bytes that each session's connection may hold before they are read: a quarter of the budget for
    /// all, as long as it is enough for a thin link.
    #[must_use]
    pub fn receive_window(&self) -> u64 {
        let open = self.sessions.load(Ordering::Acquire).max(1);
        (self.total / 4 / open).clamp(LEAST_RECEIVE_WINDOW, Self::MOST_RECEIVE_WINDOW)
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
            let part = (total / PARTS).max(1);
            if before / part != (before - freed) / part {
                self.budget.room.notify_waiters();
            }
        }
        self.held = held;
    }

    /// A session that holds nothing may always take one stream: every site makes way.
    pub(super) fn may_read(&self) -> bool {
        self.held == 0 || self.held < self.budget.total.saturating_sub(self.budget.held())
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
    fn who_holds_as_much_as_is_free_reads_no_more() {
        let budget = Arc::new(Budget::new(100, 8, 100));
        let (mut full, empty) = (budget.join(), budget.join());
        full.update(50);
        assert!(!full.may_read() && empty.may_read());
        full.update(49);
        assert!(full.may_read());
        drop(full);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn receive_windows_are_a_quarter_of_the_budget() {
        let budget = Arc::new(Budget::new(512 << 20, 4 << 20, 8 << 20));
        assert_eq!(budget.receive_window(), Budget::MOST_RECEIVE_WINDOW);
        let _shares: Vec<Share> = (0..512).map(|_| budget.join()).collect();
        assert_eq!(budget.receive_window(), 256 << 10);
        let _more: Vec<Share> = (0..4_096).map(|_| budget.join()).collect();
        assert_eq!(budget.receive_window(), LEAST_RECEIVE_WINDOW);
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
