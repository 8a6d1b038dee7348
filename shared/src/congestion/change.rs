//! Whether the path became another one: thinner, longer, or both.
//!
//! Best rate and least round trip are remembered, so a path that changes under a connection is at first
//! taken for the old one with a queue: at a best rate a thousand times too high the window floods it, and
//! nothing but the queue is seen any more. What gives it away is a round that was slow *and* brought little.
//! From rate and round trip of such a round alone, which of them changed cannot be told (what was in
//! flight is their product in any case); so nothing that was known counts, and the path is drained and looked at
//! anew.

use std::time::Duration;

use super::rounds::Summary;

/// Slower than this beyond the base, besides its half: schedulers and held up acknowledgements do as much.
const GRAIN: Duration = Duration::from_millis(10);
/// Rounds in a row that bring less than half of the best rate; one that brings less than this part is enough.
const ROUNDS: u32 = 2;
const PART: u64 = 4;

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
        let is_slow = summary.round_trip > base + base / 2 + GRAIN;
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
