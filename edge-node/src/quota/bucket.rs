//! How fast something may come. Plain code.
//!
//! A generic cell rate algorithm (ITU-T I.371) with debts: a second's worth at once, then as fast as the rate
//! says. What is counted is never too much: it makes a debt, and the next has to wait until it is paid.
//! `shared::pace` shapes packets of a link, to a hundredth of a second; here clients may come in bursts.

use std::time::Duration;

/// Beyond the rate at once.
const BURST: Duration = Duration::from_secs(1);
/// No debt is larger: the times in it stay numbers that can be added.
const MOST_DEBT: Duration = Duration::from_secs(24 * 3600);

/// A rate, and how much of it was used. `now` is a time since any fixed origin that never goes back.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    per_s: u64,
    /// When all that came would be due if it had come evenly.
    due: Duration,
}

impl Bucket {
    /// So much a second, at least one.
    #[must_use]
    pub fn new(per_s: u64) -> Self {
        Self {
            per_s: per_s.max(1),
            due: Duration::ZERO,
        }
    }

    /// Counts what came.
    pub fn take(&mut self, amount: u64, now: Duration) {
        let nanos = (u128::from(amount) * 1_000_000_000).div_ceil(u128::from(self.per_s));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let most = now.saturating_add(MOST_DEBT);
        self.due = self.due.max(now).saturating_add(cost).min(most);
    }

    /// How long until more may come; `None`: it may.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Option<Duration> {
        let wait = self.due.saturating_sub(BURST).saturating_sub(now);
        (!wait.is_zero()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_stays_below_the_rate_never_waits() {
        let mut bucket = Bucket::new(10);
        for step in 0..1000 {
            let now = Duration::from_millis(100 * step);
            assert_eq!(bucket.wait(now), None);
            bucket.take(1, now);
        }
    }

    #[test]
    fn a_debt_is_paid_at_the_rate() {
        let mut bucket = Bucket::new(1024);
        let now = Duration::from_secs(5);
        bucket.take(1024, now);
        assert_eq!(bucket.wait(now), None, "a second's worth at once");
        bucket.take(10 * 1024, now);
        assert_eq!(bucket.wait(now), Some(Duration::from_secs(10)));
        let later = Duration::from_secs(14);
        assert_eq!(bucket.wait(later), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(Duration::from_secs(15)), None);
        bucket.take(u64::MAX, now);
        assert!(bucket.wait(now).unwrap() <= MOST_DEBT);
    }

    proptest! {
        #[test]
        fn no_more_comes_than_the_rate_and_a_burst(
            per_s in 1_u64..5_000,
            steps in prop::collection::vec((0_u64..20, 1_u64..2_000), 1..2000),
        ) {
            let mut bucket = Bucket::new(per_s);
            let (mut now, mut all, mut largest) = (Duration::ZERO, 0, 0);
            for (wait, amount) in steps {
                now += Duration::from_millis(wait);
                now += bucket.wait(now).unwrap_or_default();
                prop_assert_eq!(bucket.wait(now), None);
                bucket.take(amount, now);
                all += amount;
                largest = amount.max(largest);
                let allowed = u128::from(per_s) * (now.as_millis() + 1_001) / 1_000;
                prop_assert!(
                    u128::from(all) <= allowed + u128::from(largest) + 1,
                    "{} in {:?}", all, now
                );
            }
        }
    }
}
