//! How long to wait before the next attempt: exponential backoff with full jitter.
//!
//! Each wait is drawn evenly from zero to a bound that doubles up to a limit, so that ten thousand
//! sites that lost the same hub do not come back together. The crate `backoff` computes the bound; its
//! own jitter is switched off (factor 0), because it draws from a generator that can't be passed in
//! and simulations must replay. There is never a last attempt: a site retries for years.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;
use rand::{Rng, RngExt};

/// The bounds of the waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// Bound of the first wait.
    pub min: Duration,
    /// Bound of the longest.
    pub max: Duration,
}

/// The state between attempts.
#[derive(Debug)]
pub struct Retry {
    bounds: ExponentialBackoff,
    hint: Option<Duration>,
    attempts: u32,
}

impl Retry {
    /// Before the first attempt.
    #[must_use]
    pub fn new(config: RetryConfig) -> Self {
        let bounds = ExponentialBackoff {
            current_interval: config.min,
            initial_interval: config.min,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: config.max.max(config.min),
            // The crate's default gives up after 15 minutes.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self {
            bounds,
            hint: None,
            attempts: 0,
        }
    }

    /// An attempt failed: how long to wait before the next.
    pub fn next_delay(&mut self, rng: &mut impl Rng) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let bound = self
            .bounds
            .next_backoff()
            .unwrap_or(self.bounds.max_interval);
        match self.hint.take() {
            // At once is meant so.
            Some(Duration::ZERO) => Duration::ZERO,
            // Spread as well: a hub may tell all its sites the same.
            Some(hint) => {
                let jitter = (hint / 4).max(self.bounds.initial_interval);
                hint.saturating_add(spread(jitter, rng))
            }
            None => spread(bound.min(self.bounds.max_interval), rng),
        }
    }

    /// The hub said when to come back: this decides the next wait, which is at least as long.
    pub const fn hint(&mut self, delay: Duration) {
        self.hint = Some(delay);
    }

    /// It works again: the next wait is short.
    pub fn reset(&mut self) {
        self.bounds.reset();
        self.hint = None;
        self.attempts = 0;
    }

    /// Failed attempts since the last success.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }
}

fn spread(bound: Duration, rng: &mut impl Rng) -> Duration {
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.random_range(0..=nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const CONFIG: RetryConfig = RetryConfig {
        min: Duration::from_millis(500),
        max: Duration::from_secs(30),
    };

    fn delays(seed: u64, count: usize) -> Vec<Duration> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut retry = Retry::new(CONFIG);
        (0..count).map(|_| retry.next_delay(&mut rng)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_waits() {
        assert_eq!(delays(7, 50), delays(7, 50));
        assert_ne!(delays(7, 50), delays(8, 50));
    }

    #[test]
    fn waits_stay_under_a_doubling_bound_and_never_end() {
        for seed in 0..200 {
            let mut bound = CONFIG.min;
            for delay in delays(seed, 40) {
                assert!(
                    delay <= bound + Duration::from_micros(1),
                    "{delay:?} > {bound:?}"
                );
                bound = (bound * 2).min(CONFIG.max);
            }
        }
    }

    #[test]
    fn jitter_is_full() {
        let late: Vec<Duration> = (0..2_000).map(|seed| delays(seed, 10)[9]).collect();
        let mean = late.iter().sum::<Duration>() / 2_000;
        assert!(late.iter().any(|delay| *delay < Duration::from_secs(1)));
        assert!(late.iter().any(|delay| *delay > Duration::from_secs(29)));
        assert!((14..=16).contains(&mean.as_secs()), "{mean:?}");
    }

    #[test]
    fn a_hint_decides_one_wait() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut retry = Retry::new(CONFIG);
        retry.hint(Duration::from_secs(120));
        let hinted = retry.next_delay(&mut rng);
        assert!((120..=150).contains(&hinted.as_secs()), "{hinted:?}");
        assert!(retry.next_delay(&mut rng) <= Duration::from_secs(1));
    }

    #[test]
    fn short_hints_to_many_sites_are_spread_too() {
        let hint = Duration::from_millis(500);
        let mut waits: Vec<Duration> = (0..1_000)
            .map(|seed| {
                let mut retry = Retry::new(CONFIG);
                retry.hint(hint);
                retry.next_delay(&mut StdRng::seed_from_u64(seed))
            })
            .collect();
        waits.sort();
        assert!(waits[0] >= hint);
        assert!(waits[999] - waits[0] > Duration::from_millis(490));
    }

    #[test]
    fn success_starts_over() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut retry = Retry::new(CONFIG);
        for _ in 0..20 {
            retry.next_delay(&mut rng);
        }
        assert_eq!(retry.attempts(), 20);
        retry.reset();
        assert_eq!(retry.attempts(), 0);
        assert!(retry.next_delay(&mut rng) <= CONFIG.min + Duration::from_micros(1));
    }
}
