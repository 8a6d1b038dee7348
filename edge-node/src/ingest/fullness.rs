//! Whether the site refuses producers because it is full: from the first refusal until there is room.
//!
//! A topic at its own limit is not a full site, nor is a queue that the disk empties in a moment.

use std::time::Duration;

use crate::store::{DISK_FULL, DISK_LOW, QUOTA_FULL, Space};

/// A refusal is remembered at least so long, so that it is not told at each of a producer's attempts.
const HOLD: Duration = Duration::from_secs(10);

/// Since when producers are refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// Wall clock of the first refusal, ms since the epoch.
    pub since_ms: i64,
    /// In words.
    pub why: &'static str,
}

/// What is known of refusals.
#[derive(Debug, Default)]
pub(super) struct Fullness(Option<State>);

#[derive(Debug)]
struct State {
    full: Full,
    last: Duration,
    /// Bytes that could not be deleted at the last refusal.
    unsent: u64,
}

impl Fullness {
    /// The store refused a batch; true when the site is full from here on.
    pub(super) fn refused(
        &mut self,
        why: &'static str,
        space: &Space,
        now: Duration,
        wall_ms: i64,
    ) -> bool {
        if ![QUOTA_FULL, DISK_LOW, DISK_FULL].contains(&why) {
            return false;
        }
        let since_ms = self.0.as_ref().map_or(wall_ms, |state| state.full.since_ms);
        let is_first = self.0.is_none();
        self.0 = Some(State {
            full: Full { since_ms, why },
            last: now,
            unsent: unsent(space),
        });
        is_first
    }

    /// Looks at the room there is; what is over, when it is.
    pub(super) fn review(&mut self, space: &Space, now: Duration) -> Option<Full> {
        let state = self.0.as_ref()?;
        let has_room = if state.full.why == QUOTA_FULL {
            // some percent more than what the last refusal found: one batch is not worth the word
            let slack = space.quota_bytes.unwrap_or(0) / 50;
            unsent(space) == 0 || unsent(space) + slack <= state.unsent
        } else {
            !space.is_disk_low
        };
        if !has_room || now < state.last + HOLD {
            return None;
        }
        self.0.take().map(|state| state.full)
    }

    /// Since when, when it is full.
    pub(super) fn full(&self) -> Option<Full> {
        self.0.as_ref().map(|state| state.full.clone())
    }
}

const fn unsent(space: &Space) -> u64 {
    space.stored_bytes.saturating_sub(space.acked_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn space(stored_bytes: u64) -> Space {
        Space {
            stored_bytes,
            quota_bytes: Some(100_000),
            ..Space::default()
        }
    }

    #[test]
    fn a_site_is_full_from_the_first_refusal_until_there_is_room() {
        let mut fullness = Fullness::default();
        assert!(fullness.refused(QUOTA_FULL, &space(99_900), at(1), 1_000));
        assert!(!fullness.refused(QUOTA_FULL, &space(99_950), at(2), 2_000));
        assert_eq!(fullness.review(&space(99_950), at(60)), None);
        assert_eq!(fullness.full().unwrap().since_ms, 1_000);
        assert_eq!(fullness.review(&space(90_000), at(3)), None, "too soon");
        assert!(fullness.review(&space(90_000), at(60)).is_some());
        assert_eq!(fullness.full(), None);
    }

    #[test]
    fn a_disk_with_room_again_ends_it_and_a_topics_limit_begins_nothing() {
        let mut fullness = Fullness::default();
        assert!(!fullness.refused("the topic is at its byte limit", &space(1), at(0), 0));
        let low = Space {
            is_disk_low: true,
            ..space(1)
        };
        assert!(fullness.refused(DISK_LOW, &low, at(0), 0));
        assert_eq!(fullness.review(&low, at(60)), None);
        assert!(fullness.review(&space(1), at(60)).is_some());
    }
}
