//! Growing waits with jitter.

use std::time::Duration;

use rand::RngExt;

/// Doubles from `min` to `max`; each wait lies between half of that and all of it.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            current: min,
        }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.current;
        self.current = (wait * 2).min(self.max);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.current = self.min;
    }
}
