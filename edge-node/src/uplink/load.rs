//! How long a path's transport had as much to send as the path holds: only then is what it sends what the
//! link carries, and not what there was to say.
//!
//! Plain code: it takes `now`, any time that never goes back.

use std::time::Duration;

/// Time that one path was full, since the start.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// It is full, since then.
    since: Option<Duration>,
    /// Before.
    full: Duration,
}

impl Load {
    /// The transport has enough to fill the path, or it hasn't.
    pub(super) fn set(&mut self, is_full: bool, now: Duration) {
        match (self.since, is_full) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.full += now.saturating_sub(since);
                self.since = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// How long it was full.
    pub(super) fn full(&self, now: Duration) -> Duration {
        let lasting = self.since.map(|since| now.saturating_sub(since));
        self.full + lasting.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_time_that_it_was_full_counts() {
        let at = Duration::from_secs;
        let mut load = Load::default();
        assert_eq!(load.full(at(5)), at(0));
        load.set(true, at(5));
        load.set(true, at(6));
        assert_eq!(load.full(at(7)), at(2));
        load.set(false, at(8));
        load.set(false, at(9));
        assert_eq!(load.full(at(20)), at(3));
        load.set(true, at(20));
        assert_eq!(load.full(at(21)), at(4));
    }
}
