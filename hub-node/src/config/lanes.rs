//! The same settings as the lanes take them.

use std::time::Duration;

use super::Config;
use crate::commit::{CommitConfig, TopicPolicy};

/// Left of the broker's limit for a transaction once deliveries have had theirs.
const COMMIT_SHARE: Duration = Duration::from_secs(10);

impl Config {
    /// What the lanes are told.
    #[must_use]
    pub fn lanes(&self) -> CommitConfig {
        let (kafka, commit) = (&self.kafka, &self.commit);
        let transaction_timeout = commit.transaction_timeout.duration();
        CommitConfig {
            bootstrap_servers: kafka.bootstrap.clone(),
            hub_name: self.node.name.clone(),
            transactional_id_prefix: commit.transactional_id_prefix.clone(),
            checkpoint_topic: commit.checkpoint_topic.to_string(),
            lanes: commit.lanes,
            template: kafka.topic_template.clone(),
            partition_rule: kafka.partition_by,
            dead_letter_topic: kafka.dead_letter_topic.to_string(),
            topics: TopicPolicy {
                auto_create: kafka.create_topics,
                partitions: kafka.create_partitions,
                replication_factor: kafka.replication,
                ..TopicPolicy::default()
            },
            max_transaction_bytes: commit.max_transaction_bytes.as_usize(),
            max_transaction_records: commit.max_transaction_records,
            max_queue_bytes: commit.lane_queue.as_usize(),
            // longer, and the transaction may have timed out before the record is in it
            delivery_timeout: transaction_timeout
                .saturating_sub(COMMIT_SHARE)
                .max(transaction_timeout / 2),
            transaction_timeout,
            step_down: commit.step_down.duration(),
            step_down_max: commit.step_down_max.duration(),
            stop_timeout: self.node.stop_timeout.duration(),
            compression: kafka.compression.to_owned(),
            properties: kafka.properties.0.clone(),
        }
    }
}
