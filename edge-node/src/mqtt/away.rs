//! How long clients have been away. Plain code.
//!
//! Not by the wall clock: a node that starts in 1970 and is told the time later would find that all its
//! sessions have expired. While the node runs, time is what the clock since boot says, which nobody sets. Over
//! a restart it still is, when the machine did not start anew. When it did, nobody knows how long it was off;
//! then the wall clock is asked, with the last time that was noted, and believed as far as it can be true.

use std::time::Duration;

/// A longer time without power is a clock that was set.
const MAX_OFF_MS: i64 = 100 * 24 * 3_600_000;
/// What every session has left, if its expiry is not shorter, when only the wall clock says how long the machine
/// was off: clients that are there return in that time.
const LEAST_LEFT: Duration = Duration::from_secs(3600);

/// What the machine's clocks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Since boot, [`shared::time::now`].
    pub up: Duration,
    /// The wall clock.
    pub wall_ms: i64,
    /// Another after each start of the machine.
    pub boot_id: u128,
}

/// The age of this node's sessions, and when that was so. On disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Milliseconds that went by since the first of all.
    pub age_ms: u64,
    /// What the clocks said then.
    pub clocks: Clocks,
}

/// Since when a client is away, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// It was there.
    There,
    /// Since this age.
    Since(u64),
    /// As the wall clock had it: of an earlier version.
    SinceWall(i64),
}

/// Measures how long clients are away.
#[derive(Debug, Clone, Copy)]
pub struct AwayClock {
    began: Stamp,
    /// The machine has started since the last stamp.
    has_guessed: bool,
}

impl AwayClock {
    /// Goes on from the last stamp of an earlier process.
    #[must_use]
    pub fn new(last: Option<Stamp>, now: Clocks) -> Self {
        // 0 is for clients that are there
        let mut age_ms = 1;
        let mut has_guessed = true;
        if let Some(last) = last {
            has_guessed = last.clocks.boot_id != now.boot_id;
            let off = if has_guessed {
                plausible(now.wall_ms.saturating_sub(last.clocks.wall_ms))
            } else {
                millis(now.up.saturating_sub(last.clocks.up))
            };
            age_ms = last.age_ms.saturating_add(off).max(1);
        }
        Self {
            began: Stamp {
                age_ms,
                clocks: now,
            },
            has_guessed,
        }
    }

    /// The age at a time since boot.
    #[must_use]
    pub fn age_ms(&self, up: Duration) -> u64 {
        let running = millis(up.saturating_sub(self.began.clocks.up));
        self.began.age_ms.saturating_add(running)
    }

    /// What is to be written at that time, for the next process.
    #[must_use]
    pub fn stamp(&self, up: Duration, wall_ms: i64) -> Stamp {
        let boot_id = self.began.clocks.boot_id;
        Stamp {
            age_ms: self.age_ms(up),
            clocks: Clocks {
                up,
                wall_ms,
                boot_id,
            },
        }
    }

    /// What a session that lives for `expiry` without its client has left when this process begins.
    #[must_use]
    pub fn left(&self, expiry: Duration, away: Away) -> Duration {
        let (away_ms, is_guessed) = match away {
            Away::There => return expiry,
            Away::Since(age_ms) => (self.began.age_ms.saturating_sub(age_ms), self.has_guessed),
            Away::SinceWall(since_ms) => {
                let wall_ms = self.began.clocks.wall_ms;
                (plausible(wall_ms.saturating_sub(since_ms)), true)
            }
        };
        let left = expiry.saturating_sub(Duration::from_millis(away_ms));
        if is_guessed {
            left.max(LEAST_LEFT.min(expiry))
        } else {
            left
        }
    }
}

fn plausible(step_ms: i64) -> u64 {
    let step_ms = if step_ms > MAX_OFF_MS { 0 } else { step_ms };
    u64::try_from(step_ms).unwrap_or(0)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: u64 = 24 * 3600;
    const DAY_MS: i64 = 24 * 3_600_000;
    /// Some day of 2026.
    const TODAY_MS: i64 = 20_700 * DAY_MS;

    fn clocks(up_s: u64, wall_ms: i64, boot_id: u128) -> Clocks {
        Clocks {
            up: Duration::from_secs(up_s),
            wall_ms,
            boot_id,
        }
    }

    /// A client goes a second after a first process began, which stops a second later.
    fn after(first: Clocks, second: Clocks) -> Duration {
        let clock = AwayClock::new(None, first);
        let away = Away::Since(clock.age_ms(first.up + Duration::from_secs(1)));
        let stamp = clock.stamp(first.up + Duration::from_secs(2), first.wall_ms + 2_000);
        AwayClock::new(Some(stamp), second).left(Duration::from_secs(6 * DAY_S), away)
    }

    #[test]
    fn a_clock_that_is_set_ends_no_session() {
        let whole = Duration::from_secs(6 * DAY_S);
        let was_behind = after(clocks(10, 300_000, 1), clocks(20, TODAY_MS, 1));
        assert_eq!(was_behind, whole - Duration::from_secs(9), "the same boot");
        let by_days = after(
            clocks(10, TODAY_MS - 30 * DAY_MS, 1),
            clocks(20, TODAY_MS, 1),
        );
        assert_eq!(by_days, whole - Duration::from_secs(9), "the same boot");
        let was_behind = after(clocks(10, 300_000, 1), clocks(20, TODAY_MS, 2));
        assert_eq!(was_behind, whole - Duration::from_secs(1), "another boot");
        let by_days = after(
            clocks(10, TODAY_MS - 30 * DAY_MS, 1),
            clocks(20, TODAY_MS, 2),
        );
        assert_eq!(by_days, LEAST_LEFT, "it can't be told from 30 days off");
        let set_back = after(clocks(10, TODAY_MS, 1), clocks(20, 300_000, 2));
        assert_eq!(set_back, whole - Duration::from_secs(1));
    }

    #[test]
    fn time_without_power_counts() {
        let left = after(
            clocks(10, TODAY_MS, 1),
            clocks(20, TODAY_MS + 2 * DAY_MS, 2),
        );
        assert_eq!(left, Duration::from_secs(4 * DAY_S + 1));
    }

    #[test]
    fn what_was_written_by_the_wall_clock_is_believed_as_far_as_it_can_be_true() {
        let clock = AwayClock::new(None, clocks(10, TODAY_MS, 1));
        let expiry = Duration::from_secs(6 * DAY_S);
        let left = |since_ms| clock.left(expiry, Away::SinceWall(since_ms));
        assert_eq!(left(300_000), expiry);
        assert_eq!(left(TODAY_MS + DAY_MS), expiry);
        assert_eq!(left(TODAY_MS - 2 * DAY_MS), Duration::from_secs(4 * DAY_S));
        assert_eq!(left(TODAY_MS - 7 * DAY_MS), LEAST_LEFT);
        assert_eq!(
            clock.left(Duration::from_secs(9), Away::SinceWall(1)),
            Duration::from_secs(9)
        );
        assert_eq!(clock.left(expiry, Away::There), expiry);
    }
}
