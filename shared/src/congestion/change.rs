//! Whether the path became another one: thinner, longer, or both.
//!
//! Best rate and least round trip are remembered, so a path that changes under a connection is at first
//! taken for the old one with a queue: at a best rate a thousand times too high the window floods it, and
//! nothing but the queue is seen any more. What gives it away is a round that was slow *and* brought little.
//! From rate and round trip of such a round alone, which of them changed cannot be told (what was in
//! flight is their product in any case); so nothing that was known counts, and the path is drained and looked at
//! anew.

use std::time::{Duration, Instant};

use super::rounds::Summary;

/// Slower than this beyond the base, besides its half: schedulers and held up acknowledgements do as much.
const GRAIN: Duration = Duration::from_millis(10);
/// Rounds in a row that bring less than half of the best rate; one that brings less than this part is enough.
const ROUNDS: u32 = 2;
const PART: u64 = 4;
/// Packets whose acknowledgements tell a rate.
const TELLING: u64 = 4;

/// Rounds that look like another path.
#[derive(Debug, Clone, Default)]
pub(super) struct Change {
    rounds: u32,
}

impl Change {
    /// Whether this round shows it.
    pub(super) fn is_shown(
        &mut self,
        summary: &Summary,
        best: u64,
        base: Duration,
        is_heavy: bool,
    ) -> bool {
        // what was not filled brings little on any path
        let is_telling = !summary.is_app_limited || is_heavy;
        let limit = base + base / 2 + GRAIN;
        // after an outage only what was sent before it is late
        let is_slow = summary.round_trip > limit && summary.latest > limit;
        if !is_telling || !is_slow || summary.rate > best / 2 {
            self.rounds = 0;
            return false;
        }
        self.rounds += 1;
        let is_shown = self.rounds >= ROUNDS || summary.rate < best / PART;
        if is_shown {
            self.rounds = 0;
        }
        is_shown
    }
}

/// What was in flight when the path was found to be another one. It tells nothing of the round trip, but it
/// comes out of the queue at the path's rate.
#[derive(Debug, Clone)]
pub(super) struct Drain {
    from: Instant,
    first_acked: Option<Instant>,
    last_acked: Instant,
    /// After the first time.
    bytes: u64,
}

impl Drain {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            from: now,
            first_acked: None,
            last_acked: now,
            bytes: 0,
        }
    }

    /// Whether a packet of that time was in flight then.
    pub(super) fn is_of(&self, sent: Instant) -> bool {
        sent < self.from
    }

    /// False for the first packet that was not.
    pub(super) fn add_acked(&mut self, now: Instant, sent: Instant, bytes: u64) -> bool {
        if !self.is_of(sent) {
            return false;
        }
        if now > *self.first_acked.get_or_insert(now) {
            self.bytes += bytes;
            self.last_acked = now;
        }
        true
    }

    /// Bytes per second, if there was enough.
    pub(super) fn rate(&self, mtu: u64) -> Option<u64> {
        let time = self.last_acked.saturating_duration_since(self.first_acked?);
        if self.bytes < TELLING * mtu {
            return None;
        }
        let rate = u128::from(self.bytes) * 1_000_000 / time.as_micros().max(1);
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const BEST: u64 = 1_000_000;

    fn round(rate: u64, round_trip_ms: u64, latest_ms: u64) -> Summary {
        Summary {
            rate,
            round_trip: Duration::from_millis(round_trip_ms),
            longest: Duration::from_millis(round_trip_ms.max(latest_ms)),
            latest: Duration::from_millis(latest_ms),
            deviation: Duration::ZERO,
            acked: 100_000,
            lost: 0,
            loss: 0,
            is_app_limited: false,
        }
    }

    #[test]
    fn a_path_is_another_one_when_it_is_slow_and_brings_little() {
        for (what, summary, rounds) in [
            ("a queue", round(900_000, 400, 400), None),
            ("stalls", round(400_000, 110, 110), None),
            ("an outage that is over", round(1_000, 9_000, 101), None),
            ("thinner", round(400_000, 250, 250), Some(2)),
            (
                "a wire that became a satellite",
                round(8_000, 900, 1_200),
                Some(1),
            ),
        ] {
            let mut change = Change::default();
            let shown = (1..=9).find(|_| change.is_shown(&summary, BEST, BASE, false));
            assert_eq!(shown, rounds, "{what}");
        }
        let idle = Summary {
            is_app_limited: true,
            ..round(8_000, 900, 1_200)
        };
        assert!(!Change::default().is_shown(&idle, BEST, BASE, false));
        assert!(Change::default().is_shown(&idle, BEST, BASE, true));
    }

    #[test]
    fn what_drains_tells_the_rate_it_comes_at() {
        let began = super::super::tests::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut drain = Drain::new(at(0));
        assert!(!drain.is_of(at(0)) && drain.rate(1_000).is_none());
        let sent = began - Duration::from_millis(10);
        assert!((1..=5).all(|number| drain.add_acked(at(number * 40), sent, 1_000)));
        assert!(!drain.add_acked(at(220), at(1), 1_000));
        assert_eq!(drain.rate(1_000), Some(25_000));
        assert_eq!(drain.rate(1_200), None, "too few packets");
    }
}
