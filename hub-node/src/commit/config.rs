//! What the lanes are told.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::TopicTemplate;
use crate::sink::mapping::PartitionRule;

/// Settings of the lanes and of the connection to the central cluster.
#[derive(Debug, Clone)]
pub struct CommitConfig {
    /// `host:port,…` of the central cluster.
    pub bootstrap_servers: String,
    /// A name for people: it stands in the claims in the checkpoint topic.
    pub hub_name: String,
    /// Lane k produces as `<prefix>-<k>`. Hubs that may stand in for each other have the same.
    pub transactional_id_prefix: String,
    /// The compacted topic with one partition a lane.
    pub checkpoint_topic: String,
    /// Number of lanes: the checkpoint topic is created with as many partitions, and refused when it
    /// has another number. Never changed afterwards: a site's checkpoint is where this number put it.
    pub lanes: u32,
    /// Destination topics.
    pub template: TopicTemplate,
    /// Destination partitions.
    pub partition_rule: PartitionRule,
    /// Where records go that their topic refuses.
    pub dead_letter_topic: String,
    /// Topics that do not exist.
    pub topics: TopicPolicy,
    /// What a transaction holds at most.
    pub max_transaction_bytes: usize,
    /// What a transaction holds at most.
    pub max_transaction_records: u32,
    /// Bytes that may wait in one lane; at this level it stops listening to sessions.
    pub max_queue_bytes: usize,
    /// How long the cluster may take to take a record; then the transaction's outcome is unknown.
    pub delivery_timeout: Duration,
    /// When the cluster aborts the transaction of a hub that died.
    pub transaction_timeout: Duration,
    /// How long a lane that was fenced refuses sites, the first time; it doubles.
    pub step_down: Duration,
    /// The limit of that doubling.
    pub step_down_max: Duration,
    /// How long a graceful stop may take to commit what waits.
    pub stop_timeout: Duration,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    pub compression: String,
    /// Properties of librdkafka, for security settings above all. They override ours, but for those
    /// that the promise rests on (`transactional.id`, `enable.idempotence`, `isolation.level`, `acks`).
    pub properties: BTreeMap<String, String>,
}

/// What happens when a destination topic does not exist.
#[derive(Debug, Clone)]
pub struct TopicPolicy {
    /// Create it; else its records are dead letters.
    pub auto_create: bool,
    /// Partitions of a created topic; absent: the cluster's default.
    pub partitions: Option<u32>,
    /// Replication factor of a created topic, and of the checkpoint topic; absent: the cluster's
    /// default.
    pub replication_factor: Option<u32>,
    /// Creating means asking for metadata: the embedded cluster knows no other way.
    pub by_asking: bool,
    /// Topic configuration of a created topic.
    pub config: BTreeMap<String, String>,
}

impl Default for TopicPolicy {
    fn default() -> Self {
        // a site's clock may be wrong: since Kafka 4.0 a broker refuses what lies an hour ahead
        let any_time = ("message.timestamp.after.max.ms", i64::MAX);
        Self {
            auto_create: true,
            by_asking: false,
            partitions: None,
            replication_factor: None,
            config: BTreeMap::from([(any_time.0.to_owned(), any_time.1.to_string())]),
        }
    }
}

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            hub_name: "hub".to_owned(),
            transactional_id_prefix: "kedge".to_owned(),
            checkpoint_topic: "__kedge_checkpoints".to_owned(),
            // four keep a broker of a few cores busy; a transaction costs it as much as thousands of
            // records, so more lanes mean fewer records a second
            lanes: 4,
            template: "{topic}".parse().expect("a template that is written here"),
            partition_rule: PartitionRule::default(),
            dead_letter_topic: "kedge.dead-letters".to_owned(),
            topics: TopicPolicy::default(),
            max_transaction_bytes: 16 * 1024 * 1024,
            // where more records a transaction stop to pay
            max_transaction_records: 20_000,
            max_queue_bytes: 64 * 1024 * 1024,
            delivery_timeout: Duration::from_secs(20),
            transaction_timeout: Duration::from_secs(30),
            // longer than a site takes to find the other hub, so that two hubs do not take a lane from
            // each other in turns
            step_down: Duration::from_secs(10),
            step_down_max: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(5),
            compression: "lz4".to_owned(),
            properties: BTreeMap::new(),
        }
    }
}
