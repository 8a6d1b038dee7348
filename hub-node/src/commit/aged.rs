//! Records that Kafka will delete at its next retention check, because it counts from a record's own
//! timestamp: a site that was offline for longer than its topic keeps records, or whose clock stood in
//! 1970. They are committed like any other; here somebody says so.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

/// A topic is named again after so long.
const SILENCE_MS: i64 = 3_600_000;
/// Topics remembered; beyond, it starts over.
const MAX_TOPICS: usize = 10_000;

/// When each topic was named last, wall clock.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<HashMap<String, i64>>);

impl Warnings {
    /// Warns of records that were committed to a topic which will not keep them, once an hour a topic.
    pub(super) fn committed(&self, topic: &str, records: u64, now_ms: i64) {
        if self.is_due(topic, now_ms) {
            warn!(
                topic,
                records,
                "Committed records are older than the topic's retention.ms: Kafka deletes them soon"
            );
        }
    }

    fn is_due(&self, topic: &str, now_ms: i64) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // a clock that was set back may warn early, never fall silent
        let is_silent = |last: &i64| (0..SILENCE_MS).contains(&now_ms.saturating_sub(*last));
        if told.get(topic).is_some_and(is_silent) {
            return false;
        }
        if told.len() >= MAX_TOPICS {
            told.clear();
        }
        told.insert(topic.to_owned(), now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_named_once_an_hour() {
        let warnings = Warnings::default();
        assert!(warnings.is_due("a", 0));
        assert!(!warnings.is_due("a", SILENCE_MS - 1));
        assert!(warnings.is_due("b", SILENCE_MS - 1));
        assert!(warnings.is_due("a", SILENCE_MS));
        assert!(warnings.is_due("a", 0), "the clock was set back");
    }
}
