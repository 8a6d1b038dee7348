//! How much of a lane's queue one session may fill.
//!
//! At most as much as is free besides: a session alone gets half of the queue, `n` sessions that all want
//! more get a part in `n + 1` each, and one that comes later finds room at once. So sites that send more
//! than Kafka takes wait in their own sessions, not in front of the lane, where everybody would stand
//! behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The queue of one lane, in bytes.
#[derive(Debug)]
pub struct Room {
    total: u64,
    held: AtomicU64,
}

/// One session's part of it.
#[derive(Debug)]
pub struct RoomShare {
    room: Arc<Room>,
    held: Arc<AtomicU64>,
}

/// The bytes of one delivery, held from the session until it is committed or thrown away.
#[derive(Debug)]
pub struct Hold {
    room: Arc<Room>,
    of_session: Arc<AtomicU64>,
    bytes: u64,
}

impl Room {
    /// Room for so many bytes.
    #[must_use]
    pub const fn new(total: u64) -> Self {
        Self {
            total,
            held: AtomicU64::new(0),
        }
    }

    /// A session's part.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> RoomShare {
        RoomShare {
            room: Arc::clone(self),
            held: Arc::default(),
        }
    }

    fn free(&self) -> u64 {
        self.total.saturating_sub(self.held.load(Ordering::Acquire))
    }
}

impl RoomShare {
    /// Whether the session may hand over so many bytes more. One that has nothing there always may; for
    /// the others there is a commit to come, after which to ask again.
    #[must_use]
    pub fn may_take(&self, bytes: u64) -> bool {
        let held = self.held.load(Ordering::Acquire);
        held == 0 || held.saturating_add(bytes) <= self.room.free()
    }

    /// Takes them.
    #[must_use]
    pub fn take(&self, bytes: u64) -> Hold {
        self.room.held.fetch_add(bytes, Ordering::AcqRel);
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Hold {
            room: Arc::clone(&self.room),
            of_session: Arc::clone(&self.held),
            bytes,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::AcqRel);
        self.of_session.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(share: &RoomShare, holds: &mut Vec<Hold>) {
        while share.may_take(10) {
            holds.push(share.take(10));
        }
    }

    #[test]
    fn one_session_leaves_as_much_as_it_takes() {
        let room = Arc::new(Room::new(1_000));
        let mut holds = Vec::new();
        fill(&room.share(), &mut holds);
        assert_eq!(room.free(), 500);
        drop(holds);
        assert_eq!(room.free(), 1_000);
    }

    #[test]
    fn sessions_that_come_and_commit_in_turns_end_up_with_even_parts() {
        let room = Arc::new(Room::new(1_000));
        let mut sessions: Vec<_> = (0..4).map(|_| (room.share(), Vec::new())).collect();
        for _ in 0..200 {
            for (share, holds) in &mut sessions {
                fill(share, holds);
                holds.pop();
                fill(share, holds);
            }
        }
        for (_, holds) in &sessions {
            assert!((18..=21).contains(&holds.len()), "{}", holds.len());
        }
    }

    #[test]
    fn in_a_full_lane_a_session_with_nothing_there_may_still_hand_over_one() {
        let room = Arc::new(Room::new(10));
        let mut holds = Vec::new();
        for _ in 0..5 {
            let share = room.share();
            fill(&share, &mut holds);
            assert!(!share.may_take(10));
        }
        assert_eq!(holds.len(), 5);
    }
}
