//! How fast one client may publish. Plain code.
//!
//! A generic cell rate algorithm: a second's worth at once, then one each interval. A client above its rate is
//! not refused: nothing more is read from it until it is below, and its own window fills.

use std::time::Duration;

/// Beyond the rate at once.
const BURST: Duration = Duration::from_secs(1);

/// One client's rate.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    interval: Duration,
    /// When the next message would be due if all came evenly, since the connection began.
    due: Duration,
}

impl Rate {
    /// So many messages a second, at least one.
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_s.max(1),
            due: Duration::ZERO,
        }
    }

    /// Counts a message.
    pub fn count(&mut self, now: Duration) {
        self.due = self.due.max(now) + self.interval;
    }

    /// Until when nothing more is read, if the client is above its rate.
    #[must_use]
    pub fn pause(&self, now: Duration) -> Option<Duration> {
        let until = self.due.saturating_sub(BURST);
        (until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_below_its_rate_is_never_held_up() {
        let mut rate = Rate::new(10);
        for step in 0..1000 {
            let now = Duration::from_millis(100 * step);
            assert_eq!(rate.pause(now), None);
            rate.count(now);
        }
    }

    proptest! {
        #[test]
        fn no_more_comes_than_the_rate_and_a_burst(per_s in 1_u32..500, waits in prop::collection::vec(0_u64..20, 1..2000)) {
            let mut rate = Rate::new(per_s);
            let (mut now, mut count) = (Duration::ZERO, 0_u32);
            for wait in waits {
                now += Duration::from_millis(wait);
                now = rate.pause(now).unwrap_or(now);
                rate.count(now);
                count += 1;
            }
            let most = f64::from(per_s) * (now.as_secs_f64() + 1.0) + 2.0;
            prop_assert!(f64::from(count) <= most, "{count} in {now:?}");
        }
    }
}
