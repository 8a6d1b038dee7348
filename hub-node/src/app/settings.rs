//! From the configuration as written to what the lanes want to know.

use std::time::Duration;

use crate::commit::{CommitConfig, TopicPolicy};
use crate::config::Config;

/// Left of the broker's time limit for a transaction once deliveries have had theirs.
const COMMIT_SHARE: Duration = Duration::from_secs(10);

pub(super) fn commit(config: &Config) -> CommitConfig {
    let (kafka, commit) = (&config.kafka, &config.commit);
    let transaction_timeout = commit.transaction_timeout.duration();
    let defaults = CommitConfig::default();
    CommitConfig {
        bootstrap_servers: kafka.bootstrap.clone(),
        transactional_id_prefix: commit.transactional_id_prefix.clone(),
        checkpoint_topic: commit.checkpoint_topic.to_string(),
        lanes: commit.lanes,
        template: kafka.topic_template.clone(),
        dead_letter_topic: kafka.dead_letter_topic.to_string(),
        topics: TopicPolicy {
            auto_create: kafka.create_topics,
            partitions: u32::try_from(kafka.create_partitions)
                .ok()
                .filter(|count| *count > 0),
            replication_factor: u32::try_from(kafka.replication)
                .ok()
                .filter(|count| *count > 0),
            ..defaults.topics.clone()
        },
        max_transaction_bytes: commit.max_transaction_bytes.as_usize(),
        max_transaction_records: u32::try_from(commit.max_transaction_records).unwrap_or(u32::MAX),
        max_queue_bytes: commit.lane_queue.as_usize(),
        delivery_timeout: transaction_timeout
            .saturating_sub(COMMIT_SHARE)
            .max(transaction_timeout / 2),
        transaction_timeout,
        stop_timeout: config.node.stop_timeout.duration(),
        properties: kafka.properties.0.clone(),
        ..defaults
    }
}
