//! A token bucket in whole numbers: so many units a second, a few at once.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// `level <= burst`; what was taken in any time `t` is at most `burst + rate * t`.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    rate: u64,
    burst: u64,
    /// In billionths of a unit, so that nothing is lost to rounding.
    level: u128,
    at: Duration,
}

impl Bucket {
    /// A full one. A rate of 0 is taken for 1.
    pub(super) fn new(rate: u64, burst: u64, now: Duration) -> Self {
        let burst = burst.max(1);
        Self {
            rate: rate.max(1),
            burst,
            level: u128::from(burst) * NANOS,
            at: now,
        }
    }

    /// Other numbers from here on.
    pub(super) fn set(&mut self, rate: u64, burst: u64, now: Duration) {
        self.refill(now);
        self.rate = rate.max(1);
        self.burst = burst.max(1);
        self.level = self.level.min(self.most());
    }

    fn most(&self) -> u128 {
        u128::from(self.burst) * NANOS
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(now);
        let earned = passed.saturating_mul(u128::from(self.rate));
        self.level = self.level.saturating_add(earned).min(self.most());
    }

    /// Whether so many are there; more than a full bucket holds counts as a full bucket.
    pub(super) fn has(&mut self, units: u64, now: Duration) -> bool {
        self.refill(now);
        self.level >= u128::from(units.min(self.burst)) * NANOS
    }

    /// Takes what [`Bucket::has`] said is there.
    pub(super) fn take(&mut self, units: u64) {
        let units = u128::from(units.min(self.burst)) * NANOS;
        self.level = self.level.saturating_sub(units);
    }

    /// Gives back what was taken and not used.
    pub(super) fn put(&mut self, units: u64) {
        let units = u128::from(units) * NANOS;
        self.level = self.level.saturating_add(units).min(self.most());
    }

    /// When so many will be there, as things stand.
    pub(super) fn ready_at(&self, units: u64) -> Duration {
        let wanted = u128::from(units.min(self.burst)) * NANOS;
        let missing = wanted.saturating_sub(self.level);
        let nanos = missing.div_ceil(u128::from(self.rate));
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.at.saturating_add(wait)
    }

    /// Whether it is as a new one would be.
    pub(super) fn is_full(&mut self, now: Duration) -> bool {
        self.has(self.burst, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_gives_more_than_its_rate_and_one_burst() {
        let mut bucket = Bucket::new(1_000, 100, Duration::ZERO);
        let mut taken = 0;
        for ms in 0..10_000 {
            let now = Duration::from_millis(ms);
            while bucket.has(7, now) {
                bucket.take(7);
                taken += 7;
            }
        }
        assert!((10_000..=10_100).contains(&taken), "{taken}");
    }

    #[test]
    fn at_the_time_that_it_names_there_is_enough_and_not_before() {
        let mut bucket = Bucket::new(3, 10, Duration::ZERO);
        bucket.take(10);
        let at = bucket.ready_at(10);
        assert!(!bucket.has(10, at.saturating_sub(Duration::from_nanos(1))));
        assert!(bucket.has(10, at));
    }

    #[test]
    fn a_clock_that_goes_back_earns_nothing() {
        let mut bucket = Bucket::new(1_000, 10, Duration::from_secs(5));
        bucket.take(10);
        assert!(!bucket.has(1, Duration::from_secs(4)));
        assert!(!bucket.has(1, Duration::from_secs(5)));
        assert!(bucket.is_full(Duration::from_secs(6)));
    }

    #[test]
    fn a_smaller_burst_keeps_no_more_than_that() {
        let mut bucket = Bucket::new(1_000, 1_000, Duration::ZERO);
        bucket.set(10, 10, Duration::ZERO);
        bucket.take(10);
        assert!(!bucket.has(1, Duration::ZERO));
    }
}
