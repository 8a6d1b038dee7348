//! The store's own clock, for retention by age.
//!
//! Wall clocks start in 1970, jump and go back. This clock only ever moves forward, by what the wall
//! clock moved between two sweeps; a step back counts as nothing, and so does a step that is too large
//! to be true. So a wrong clock never makes records look old; at worst they are kept longer.

/// A longer time between two sweeps is a clock that was set, not a node that was off.
const MAX_STEP_MS: i64 = 100 * 24 * 3_600_000;

/// Age of the store, ms, and the wall clock when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AgeClock {
    pub(super) now_ms: u64,
    pub(super) wall_ms: i64,
}

impl Default for AgeClock {
    fn default() -> Self {
        Self {
            now_ms: 0,
            wall_ms: i64::MIN,
        }
    }
}

impl AgeClock {
    /// Takes the wall clock's word as far as it can be true.
    #[must_use]
    pub(super) fn advanced(self, wall_ms: i64) -> Self {
        let step = wall_ms.saturating_sub(self.wall_ms);
        let step = if step > MAX_STEP_MS { 0 } else { step };
        Self {
            now_ms: self.now_ms + u64::try_from(step).unwrap_or(0),
            wall_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_makes_nothing_old() {
        let day = 24 * 3_600_000;
        let mut age = AgeClock::default().advanced(0);
        assert_eq!(age.now_ms, 0, "the first look says nothing");
        age = age.advanced(1_000);
        assert_eq!(age.now_ms, 1_000);
        age = age.advanced(20_000 * day);
        assert_eq!(age.now_ms, 1_000, "from 1970 to a set clock");
        age = age.advanced(19_000 * day);
        assert_eq!(age.now_ms, 1_000, "back again");
        age = age.advanced(19_025 * day);
        assert_eq!(age.now_ms, 1_000 + 25 * 86_400_000, "25 days without power");
    }
}
