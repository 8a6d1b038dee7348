//! What the buffers of one connection hold of a budget of the node: for a packet that is incomplete, and for what the
//! client has not yet taken.
//!
//! Both have a small share for nothing. Whoever needs more waits for it without blocking, and while others wait is
//! to get on: [`Room::is_hogging`].

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::ingest::{Budget, Reservation};

/// Bytes of each buffer that need no part of a budget.
pub(super) const FREE: usize = 16 * 1024;
/// Bytes a second at which a part gets on at least.
const PACE: u64 = 64 * 1024;
/// How often who holds a part is held against what others wait for.
pub(super) const LOOK: Duration = Duration::from_secs(1);

struct Waiting(Pin<Box<dyn Future<Output = Reservation> + Send>>);

impl fmt::Debug for Waiting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Waiting")
    }
}

/// A part of a budget, and the wait for more.
#[derive(Debug)]
pub(super) struct Room {
    held: Reservation,
    waiting: Option<Waiting>,
    /// Since when the held bytes should get on. Time spent waiting does not count.
    since: Instant,
    /// When a byte moved last, or was allowed to.
    moved: Instant,
    waiting_since: Instant,
    /// Bytes that are to go before `since` is anew: those that were there then. What has come behind them since need
    /// not.
    to_go: usize,
}

impl Default for Room {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            held: Reservation::default(),
            waiting: None,
            since: now,
            moved: now,
            waiting_since: now,
            to_go: 0,
        }
    }
}

impl Room {
    /// Holds at least `bytes` if they are there at once.
    pub(super) fn try_hold(&mut self, budget: &Budget, bytes: usize) -> bool {
        let missing = bytes.saturating_sub(self.held.bytes());
        if self.is_waiting() {
            return false;
        }
        if self.held.bytes() == 0 {
            self.excuse();
        }
        let has_all = missing == 0 || self.held.try_grow(budget, missing);
        self.begin_to_go();
        has_all
    }

    fn begin_to_go(&mut self) {
        if self.to_go == 0 {
            self.to_go = self.held.bytes();
        }
    }

    /// Begins to wait until it holds `bytes`. [`Room::poll`] says when.
    pub(super) fn wait(&mut self, budget: &Budget, bytes: usize) {
        if self.is_waiting() {
            return;
        }
        self.waiting_since = Instant::now();
        let missing = bytes.saturating_sub(self.held.bytes());
        let (budget, mut held) = (budget.clone(), std::mem::take(&mut self.held));
        self.waiting = Some(Waiting(Box::pin(async move {
            held.grow(&budget, missing).await;
            held
        })));
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Ready when it does not wait, or need not any more.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.waiting {
            let Poll::Ready(held) = waiting.0.as_mut().poll(cx) else {
                return Poll::Pending;
            };
            self.held = held;
            self.waiting = None;
            self.since += self.waiting_since.elapsed();
            self.moved = Instant::now();
            self.begin_to_go();
        }
        Poll::Ready(())
    }

    /// What it holds, for somebody else.
    pub(super) fn into_held(self) -> Reservation {
        self.held
    }

    /// So many bytes of the buffer have gone, and it has `left`.
    pub(super) fn gone(&mut self, count: usize, left: usize) {
        if self.is_waiting() {
            return;
        }
        self.held.shrink_to(left);
        if count > 0 {
            self.moved = Instant::now();
        }
        self.to_go = self.to_go.saturating_sub(count);
        if count > 0 && self.to_go == 0 {
            self.excuse();
            self.begin_to_go();
        }
    }

    /// Something of what it is held for has come.
    pub(super) fn came(&mut self) {
        self.moved = Instant::now();
    }

    /// True when it stands for nothing.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_waiting() && self.held.bytes() == 0
    }

    /// That the bytes do not get on is the node's doing.
    pub(super) fn excuse(&mut self) {
        self.since = Instant::now();
        self.moved = self.since;
    }

    /// Whether the bytes should have got on when others wait for their part: when none has moved for `patience`, or not
    /// all after `patience` and the time that they take at [`PACE`].
    pub(super) fn is_hogging(&self, budget: &Budget, patience: Duration) -> bool {
        let bytes = u64::try_from(self.held.bytes()).unwrap_or(u64::MAX);
        let enough = patience + Duration::from_secs(bytes / PACE);
        let is_slow = self.since.elapsed() >= enough || self.moved.elapsed() >= patience;
        bytes > 0 && budget.is_short() && is_slow
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn is_ready(room: &mut Room) -> bool {
        room.poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn a_large_part_is_not_held_for_one_who_takes_nothing() {
        let large = 1_000 * 1024;
        let budget = Budget::new(large);
        let mut rooms: [Room; 3] = Default::default();
        assert!(rooms[0].try_hold(&budget, large));
        rooms[1].wait(&budget, large);
        assert!(is_ready(&mut rooms[1]), "the overdraft");
        rooms[2].wait(&budget, large);
        assert!(!is_ready(&mut rooms[2]));
        rooms[0].since -= PATIENCE;
        assert!(
            !rooms[0].is_hogging(&budget, PATIENCE),
            "it has time for so much"
        );
        rooms[0].moved -= PATIENCE;
        assert!(rooms[0].is_hogging(&budget, PATIENCE));
        rooms[0].came();
        assert!(!rooms[0].is_hogging(&budget, PATIENCE));
    }

    #[test]
    fn who_takes_what_was_there_gets_on_however_much_comes_behind_it() {
        let budget = Budget::new(100);
        let mut rooms: [Room; 3] = Default::default();
        assert!(rooms[0].try_hold(&budget, 90));
        rooms[0].since -= PATIENCE;
        for _ in 0..3 {
            rooms[0].gone(30, 60);
            assert!(rooms[0].try_hold(&budget, 90));
        }
        rooms[1].wait(&budget, 90);
        assert!(is_ready(&mut rooms[1]), "the overdraft");
        rooms[2].wait(&budget, 90);
        assert!(!is_ready(&mut rooms[2]));
        assert!(!rooms[0].is_hogging(&budget, PATIENCE));
    }

    #[test]
    fn who_does_not_get_on_is_told_from_who_waits() {
        let budget = Budget::new(100);
        let mut rooms: [Room; 3] = Default::default();
        assert!(rooms[0].try_hold(&budget, 90));
        assert!(!rooms[1].try_hold(&budget, 90));
        rooms[1].wait(&budget, 90);
        assert!(is_ready(&mut rooms[1]), "the overdraft");
        rooms[0].since -= PATIENCE;
        rooms[2].since -= PATIENCE;
        assert!(!rooms[0].is_hogging(&budget, PATIENCE), "nobody waits");
        rooms[2].wait(&budget, 90);
        assert!(!is_ready(&mut rooms[2]));
        assert!(rooms[0].is_hogging(&budget, PATIENCE) && !rooms[2].is_hogging(&budget, PATIENCE));
        rooms[0].gone(80, 90);
        assert!(rooms[0].is_hogging(&budget, PATIENCE), "not all has gone");
        rooms[0].gone(10, 10);
        assert!(!rooms[0].is_hogging(&budget, PATIENCE), "it gets on");
        rooms[0].gone(10, 0);
        assert!(rooms[0].is_empty());
        assert!(is_ready(&mut rooms[2]));
        assert_eq!(budget.used(), 90);
    }
}
