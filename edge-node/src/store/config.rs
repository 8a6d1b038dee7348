//! What a store can be told, with defaults for a small box.

use super::{OnFull, TopicRules};

/// Limits of a store. Everything has a bound; these are they.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Logical bytes of all topics: acknowledged records go first, then the topic's `on_full` decides.
    /// The disk holds up to twice as much while RocksDB compacts. `None`: no limit.
    pub quota_bytes: Option<u64>,
    /// Free space of the file system below which appends are refused and acknowledged records go.
    pub min_free_bytes: u64,
    /// Space set aside so that deletion works on a disk that others have filled.
    pub reserve_bytes: u64,
    /// Bytes of appends that wait for the next sync; above it appends are refused at once.
    pub append_queue_bytes: usize,
    /// Appends that wait for the next sync.
    pub append_queue_len: usize,
    /// Idempotent producers remembered, counted per partition; the quietest is forgotten first.
    pub max_producers: usize,
    /// Bytes of a log between two entries of its time index: retention cuts there.
    pub index_bytes: u64,
    /// Rules of topics that were found in the store and were not told theirs yet.
    pub default_rules: TopicRules,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            quota_bytes: None,
            // RocksDB needs room for a few files of 8 MiB while it compacts
            min_free_bytes: 64 << 20,
            reserve_bytes: 16 << 20,
            // two groups of the largest size: one on its way to the disk, one waiting
            append_queue_bytes: 8 << 20,
            append_queue_len: 4096,
            max_producers: 10_000,
            index_bytes: 64 << 10,
            default_rules: TopicRules {
                retention_ms: None,
                retention_bytes: None,
                on_full: OnFull::Backpressure,
                max_batch_bytes: 1 << 20,
            },
        }
    }
}
