//! What the lanes have done, for metrics and status.

use std::sync::atomic::{AtomicU64, Ordering};

use super::aged::Warnings;
use super::checkpoint::Moved;

/// Sums over all lanes since the start, but for the last, which is a level.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records in their topics.
    pub committed_records: AtomicU64,
    /// Bytes of the deliveries that were committed, as they were held in memory.
    pub committed_bytes: AtomicU64,
    /// Transactions committed.
    pub transactions: AtomicU64,
    /// Transactions aborted.
    pub aborts: AtomicU64,
    /// Times that a lane was acquired.
    pub acquired: AtomicU64,
    /// Times that a lane had to be acquired anew after an unknown outcome.
    pub rebuilds: AtomicU64,
    /// Times that another hub took a lane away.
    pub fenced: AtomicU64,
    /// Records in the dead-letter topic.
    pub dead_letters: AtomicU64,
    /// Records that sites dropped by policy before they were sent.
    pub lost_records: AtomicU64,
    /// Committed records with timestamps so old that their topic does not keep them.
    pub past_retention: AtomicU64,
    pub(super) past_retention_warnings: Warnings,
    /// Bytes that wait in lanes or are in a transaction under way.
    pub queue_bytes: AtomicU64,
}

impl Counters {
    /// These records were committed to a topic that will not keep them.
    pub(super) fn past_retention(&self, topic: &str, records: u64, now_ms: i64) {
        self.past_retention.fetch_add(records, Ordering::Relaxed);
        let warnings = &self.past_retention_warnings;
        warnings.committed(topic, records, now_ms);
    }

    pub(super) fn moved(&self, moved: &Moved) {
        let records = moved.offsets.saturating_sub(moved.lost + moved.dead);
        self.committed_records.fetch_add(records, Ordering::Relaxed);
        self.lost_records.fetch_add(moved.lost, Ordering::Relaxed);
        self.dead_letters.fetch_add(moved.dead, Ordering::Relaxed);
    }
}
