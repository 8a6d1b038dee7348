//! How large a transaction should be: as large as pays, but over in good time.
//!
//! Who comes while a transaction is under way waits for its end. On a slow cluster 16 MiB take seconds,
//! and every site waits for the bytes of the one that sends most; so transactions get smaller until they
//! take about [`TARGET`]. Where even a small one takes long, it is not its bytes that take the time, and
//! larger ones are worth it.

use std::time::Duration;

/// What a transaction may take.
const TARGET: Duration = Duration::from_millis(500);
/// What it may take where even a small one takes long.
const SLOW_TARGET: Duration = Duration::from_secs(2);
/// The first; each one that is over soon makes the next twice as large.
const FIRST: usize = 1 << 20;
/// One turn of one site; its time is what any transaction takes.
const SMALL: usize = 256 << 10;

/// The plain part: no clock.
#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    bytes: usize,
    /// What a small transaction took of late.
    small: Duration,
}

impl Pace {
    /// `most` is what a transaction holds on a fast cluster.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            bytes: most.min(FIRST),
            small: Duration::ZERO,
        }
    }

    /// What the next transaction may hold.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A transaction was committed.
    pub(crate) fn committed(&mut self, bytes: usize, took: Duration) {
        if bytes <= SMALL {
            self.small = if self.small.is_zero() {
                took
            } else {
                (self.small * 3 + took) / 4
            };
        }
        let target = (self.small * 2).clamp(TARGET, SLOW_TARGET);
        let least = SMALL.min(self.most);
        if took > target {
            if bytes > SMALL {
                let fit = scaled(bytes, target, took);
                self.bytes = fit.min(self.bytes).clamp(least, self.most);
            }
        } else if bytes >= self.bytes / 2 {
            let fit = scaled(bytes, target, took);
            let most = self.most.min(self.bytes.saturating_mul(2));
            self.bytes = fit.clamp(self.bytes, most.max(self.bytes));
        }
    }
}

fn scaled(bytes: usize, to: Duration, from: Duration) -> usize {
    let scaled = (bytes as u128).saturating_mul(to.as_nanos()) / from.as_nanos().max(1);
    usize::try_from(scaled).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 16 << 20;

    /// A cluster that takes `fixed` for anything and so many bytes a second; what a busy lane ends up
    /// with: its bytes, and how long they take.
    fn settle(pace: &mut Pace, fixed: Duration, rate: u64) -> (usize, Duration) {
        let mut took = Duration::ZERO;
        for _ in 0..50 {
            took = fixed + Duration::from_secs(pace.bytes() as u64) / u32::try_from(rate).unwrap();
            pace.committed(pace.bytes(), took);
        }
        (pace.bytes(), took)
    }

    #[test]
    fn on_a_fast_cluster_transactions_are_as_large_as_they_may_be() {
        let mut pace = Pace::new(MOST);
        let (bytes, _) = settle(&mut pace, Duration::from_millis(5), 100_000_000);
        assert_eq!(bytes, MOST);
    }

    #[test]
    fn on_a_slow_cluster_they_are_over_in_good_time() {
        let mut pace = Pace::new(MOST);
        let (bytes, took) = settle(&mut pace, Duration::from_millis(5), 2_000_000);
        assert!(took <= TARGET * 11 / 10, "{bytes} take {took:?}");
        assert!(bytes >= 900_000, "{bytes}");
    }

    #[test]
    fn on_one_that_is_only_far_away_they_stay_large_enough_to_pay() {
        let mut pace = Pace::new(MOST);
        let fixed = Duration::from_secs(1);
        let (bytes, took) = settle(&mut pace, fixed, 20_000_000);
        assert!(bytes >= 8 << 20, "{bytes} take {took:?}");
    }

    #[test]
    fn one_that_pushes_back_with_delays_is_not_answered_with_larger_ones() {
        let mut pace = Pace::new(MOST);
        // what is beyond the quota is paid for by whatever comes next
        for _ in 0..50 {
            pace.committed(1_000, Duration::from_secs(8));
            pace.committed(pace.bytes(), Duration::from_secs(8));
        }
        assert_eq!(pace.bytes(), SMALL);
    }

    #[test]
    fn after_a_stall_they_grow_again() {
        let mut pace = Pace::new(MOST);
        pace.committed(MOST, Duration::from_secs(60));
        assert_eq!(pace.bytes(), SMALL);
        let (bytes, _) = settle(&mut pace, Duration::from_millis(5), 100_000_000);
        assert_eq!(bytes, MOST);
    }

    #[test]
    fn a_limit_below_a_turn_is_kept() {
        let mut pace = Pace::new(1_000);
        settle(&mut pace, Duration::from_secs(2), 10);
        assert!(pace.bytes() <= 1_000);
    }
}
