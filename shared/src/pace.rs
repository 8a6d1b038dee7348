//! How fast bytes may leave: the generic cell rate algorithm on bytes really sent (ITU-T I.371).
//!
//! ```text
//!              tolerance
//!            ◄───────────►
//!  ──────────┼───────────┼──────────► time
//!         may send    due (theoretical arrival time)
//! ```
//! Each burst moves `due` on by what it takes at the rate; a burst may leave as soon as `due` is no further
//! ahead than the tolerance. Its size is not asked before: so one call tells when to send, whatever comes,
//! and a timer is enough to wait.
//!
//! What always holds: in any window of [`WINDOW`] no more than `rate x window` and [`EXCESS_PERCENT`] of it
//! leave, as long as no burst is larger than [`Pace::max_burst`]. A slow link makes that hard: one packet of
//! 1,500 bytes is 3.75 % of what 32 kbit/s carry in ten seconds. What a burst takes beyond the excess is
//! taken off the rate.
//!
//! The crate `governor` has no debts (it must know a size before it says yes), counts in whole nanoseconds a
//! cell and cannot change its rate while it runs; this is all three in a hundred lines.

use std::time::Duration;

use crate::units::BitRate;

/// Any window of this length is held to the rate.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How much more than the rate may leave in a window.
pub const EXCESS_PERCENT: u64 = 2;
/// Largest packet on a link without jumbo frames.
const PACKET: u64 = 1_500;
/// A burst is at most what the rate carries in so long: what a critical record may have to wait behind.
const BURST_MS: u64 = 10;
/// A timer may be so late, on a busy machine, and the rate is reached all the same.
const LATENESS_MS: u64 = 50;
/// Datagrams that the kernel takes in one call, at most.
const MAX_SEGMENTS: u64 = 10;

/// What a rate means in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    /// Bytes a second, the excess of a burst taken off.
    bytes_per_sec: u64,
    tolerance_bytes: u64,
    segments: u64,
}

impl Shape {
    fn of(rate: BitRate) -> Self {
        let per_sec = rate.bytes_per_sec().max(1);
        let in_ms = |millis: u64| per_sec.saturating_mul(millis) / 1_000;
        let segments = (in_ms(BURST_MS) / PACKET).clamp(1, MAX_SEGMENTS);
        let burst = segments * PACKET;
        let excess = per_sec.saturating_mul(WINDOW.as_secs()) / 100 * EXCESS_PERCENT;
        let tolerance_bytes = in_ms(LATENESS_MS).min(excess.saturating_sub(burst));
        let too_much = burst.saturating_sub(excess).div_ceil(WINDOW.as_secs());
        Self {
            // half at least: below 2 kbit/s a packet is more than the excess of any window
            bytes_per_sec: per_sec.saturating_sub(too_much).max(per_sec.div_ceil(2)),
            tolerance_bytes,
            segments,
        }
    }

    /// How long the rate takes for so many bytes, rounded up.
    fn time(&self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_sec));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// When bytes may leave. `now` is a time since any fixed origin that never goes back.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: Option<BitRate>,
    shape: Option<Shape>,
    due: Duration,
}

impl Pace {
    /// At a rate from the start; `None`: as fast as it goes.
    #[must_use]
    pub fn new(rate: Option<BitRate>) -> Self {
        Self {
            rate,
            shape: rate.map(Shape::of),
            due: Duration::ZERO,
        }
    }

    /// The rate as it was set.
    #[must_use]
    pub const fn rate(&self) -> Option<BitRate> {
        self.rate
    }

    /// Changes the rate. What was sent already counts at the new rate: a change is no free burst.
    pub fn set_rate(&mut self, rate: Option<BitRate>, now: Duration) {
        let ahead = self.due.saturating_sub(now);
        let shape = rate.map(Shape::of);
        let ahead = match (self.shape, shape) {
            (Some(old), Some(new)) => {
                let owed =
                    ahead.as_nanos().saturating_mul(old.bytes_per_sec.into()) / 1_000_000_000;
                new.time(u64::try_from(owed).unwrap_or(u64::MAX))
            }
            // nobody knows what left while there was no limit: one tolerance is taken for used
            (None, Some(new)) => new.time(new.tolerance_bytes),
            (_, None) => Duration::ZERO,
        };
        self.due = now.saturating_add(ahead);
        (self.rate, self.shape) = (rate, shape);
    }

    /// When the next burst may leave: a time that has passed means at once.
    #[must_use]
    pub fn ready_at(&self) -> Duration {
        self.shape.map_or(Duration::ZERO, |shape| {
            self.due.saturating_sub(shape.time(shape.tolerance_bytes))
        })
    }

    /// Whether a burst may leave.
    #[must_use]
    pub fn is_ready(&self, now: Duration) -> bool {
        self.ready_at() <= now
    }

    /// So many bytes left.
    pub fn sent(&mut self, bytes: u64, now: Duration) {
        if let Some(shape) = self.shape {
            self.due = self.due.max(now).saturating_add(shape.time(bytes));
        }
    }

    /// Datagrams of one burst.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        let segments = self.shape.map_or(u64::MAX, |shape| shape.segments);
        usize::try_from(segments).unwrap_or(usize::MAX)
    }

    /// Bytes of one burst.
    #[must_use]
    pub fn max_burst(&self) -> u64 {
        self.shape.map_or(u64::MAX, |shape| shape.segments * PACKET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    /// Sends bursts of at most `sizes` (in turns) as soon as allowed, the timer late by `late` (in turns).
    fn run(
        pace: &mut Pace,
        from: Duration,
        until: Duration,
        sizes: &[u64],
        late: &[u64],
    ) -> Vec<(Duration, u64)> {
        let mut now = from;
        let mut sent = Vec::new();
        for turn in 0.. {
            if !pace.is_ready(now) {
                let late = Duration::from_micros(late[turn % late.len()]);
                now = pace.ready_at() + late;
            }
            if now > until {
                return sent;
            }
            let bytes = sizes[turn % sizes.len()].min(pace.max_burst());
            pace.sent(bytes, now);
            sent.push((now, bytes));
        }
        sent
    }

    /// Most bytes in any closed window of ten seconds.
    fn most(sent: &[(Duration, u64)]) -> u64 {
        let (mut first, mut sum, mut most) = (0, 0, 0);
        for (at, bytes) in sent {
            sum += bytes;
            while sent[first].0 + WINDOW < *at {
                sum -= sent[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    #[test]
    fn the_rate_is_kept_and_reached_from_32_kbit_to_100_mbit() {
        for kbit in [
            32, 50, 64, 100, 256, 512, 1_000, 2_000, 10_000, 50_000, 100_000,
        ] {
            let rate = BitRate::kbit(kbit);
            let allowed = rate.bytes_per_sec() * 10;
            let mut pace = Pace::new(Some(rate));
            let sent = run(
                &mut pace,
                MS,
                Duration::from_secs(40),
                &[15_000],
                &[900, 100],
            );
            let most = most(&sent);
            assert!(most * 100 <= allowed * 102, "{rate}: {most} of {allowed}");
            let all: u64 = sent.iter().map(|(_, bytes)| bytes).sum();
            assert!(all * 100 >= allowed * 4 * 97, "{rate}: {all} in 40 s");
        }
    }

    #[test]
    fn a_pause_earns_no_more_than_the_tolerance() {
        let mut pace = Pace::new(Some(BitRate::mbit(1)));
        pace.sent(1_500, MS);
        let sent = run(
            &mut pace,
            Duration::from_secs(3_600),
            Duration::from_secs(3_601),
            &[1_500],
            &[0],
        );
        let at_once = sent
            .iter()
            .take_while(|(at, _)| *at == Duration::from_secs(3_600));
        // 50 ms and the one that makes it more
        assert_eq!(at_once.count(), 5);
    }

    #[test]
    fn a_change_of_rate_is_no_free_burst() {
        let mut pace = Pace::new(Some(BitRate::kbit(32)));
        let now = Duration::from_secs(1);
        pace.sent(1_500, now);
        pace.set_rate(Some(BitRate::kbit(64)), now);
        // what was owed at the old rate is owed at the new one, and takes half as long
        let wait = pace.ready_at() - now;
        assert!(wait > 170 * MS && wait < 195 * MS, "{wait:?}");
        pace.set_rate(None, now);
        assert!(pace.is_ready(now) && pace.max_segments() > 10);
        pace.set_rate(Some(BitRate::mbit(10)), now);
        assert!(pace.is_ready(now));
    }

    #[test]
    fn a_slow_link_sends_packets_one_by_one() {
        assert_eq!(Pace::new(Some(BitRate::kbit(32))).max_segments(), 1);
        assert_eq!(Pace::new(Some(BitRate::mbit(100))).max_segments(), 10);
        assert_eq!(Pace::new(Some(BitRate(0))).max_segments(), 1);
    }

    proptest! {
        #[test]
        fn no_window_is_more_than_two_percent_over(
            kbits in prop::collection::vec(32_u64..100_000, 1..4),
            sizes in prop::collection::vec(60_u64..15_000, 1..8),
            late in prop::collection::vec(0_u64..30_000, 1..8),
        ) {
            let mut pace = Pace::new(None);
            let mut from = Duration::ZERO;
            for kbit in kbits {
                let rate = BitRate::kbit(kbit);
                pace.set_rate(Some(rate), from);
                let until = from + Duration::from_secs(15);
                let most = most(&run(&mut pace, from, until, &sizes, &late));
                prop_assert!(most * 100 <= rate.bytes_per_sec() * 10 * 102, "{} at {}", most, rate);
                from = until;
            }
        }

        #[test]
        fn no_input_panics(bits in any::<u64>(), bytes in any::<u64>(), now in any::<u64>()) {
            let now = Duration::from_nanos(now);
            let mut pace = Pace::new(Some(BitRate(bits)));
            pace.sent(bytes, now);
            pace.set_rate(Some(BitRate(bits / 3)), now);
            pace.sent(bytes, Duration::MAX);
            let _any = pace.ready_at();
        }
    }
}
