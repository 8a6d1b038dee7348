//! librdkafka's clients and their properties.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::AdminClient;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::deliveries::{Deliveries, LaneContext, LaneProducer};
use super::words::Words;
use crate::commit::CommitConfig;
use crate::sink::{SinkError, errors};

/// Bytes of a batch: below Kafka's default limit for one, large for throughput.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// Records of a batch.
pub(super) const BATCH_RECORDS: usize = 10_000;

/// The properties that the promise rests on; nobody overrides them.
const FIXED: [&str; 10] = [
    "bootstrap.servers",
    "transactional.id",
    "transaction.timeout.ms",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "isolation.level",
    "allow.auto.create.topics",
];

/// Makes clients.
#[derive(Debug)]
pub(super) struct Clients {
    bootstrap_servers: String,
    transactional_id_prefix: String,
    checkpoint_topic: String,
    compression: String,
    delivery_timeout: Duration,
    transaction_timeout: Duration,
    queue_messages: u64,
    properties: BTreeMap<String, String>,
    words: Words,
}

impl Clients {
    pub(super) fn new(config: &CommitConfig) -> Self {
        let is_free = |key: &str| !FIXED.contains(&key);
        Self {
            bootstrap_servers: config.bootstrap_servers.clone(),
            transactional_id_prefix: config.transactional_id_prefix.clone(),
            checkpoint_topic: config.checkpoint_topic.clone(),
            compression: config.compression.clone(),
            // librdkafka wants a record to give up before its transaction does
            delivery_timeout: config.delivery_timeout.min(config.transaction_timeout),
            transaction_timeout: config.transaction_timeout,
            queue_messages: u64::from(config.max_transaction_records).max(50_000) * 4,
            properties: config
                .properties
                .iter()
                .filter(|(key, _)| is_free(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            words: Words::default(),
        }
    }

    /// What the connections of these clients say.
    pub(super) fn words(&self) -> &Words {
        &self.words
    }

    /// What librdkafka refuses of the properties: key and reason. No value is told, it may be a secret.
    pub(super) fn refused_properties(&self) -> Vec<(String, &'static str)> {
        let refused = |(key, value): (&String, &String)| {
            let mut alone = ClientConfig::new();
            alone.set(key, value);
            match alone.create_native_config() {
                Ok(_) => None,
                Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => Some((
                    key.clone(),
                    "librdkafka knows no such property, or this build of it lacks it",
                )),
                Err(_) => Some((key.clone(), "librdkafka does not take this value for it")),
            }
        };
        self.properties.iter().filter_map(refused).collect()
    }

    pub(super) fn checkpoint_topic(&self) -> &str {
        &self.checkpoint_topic
    }

    /// When every record must have been answered for: the library's own timeout and a margin.
    pub(super) fn settle_timeout(&self) -> Duration {
        self.delivery_timeout + Duration::from_secs(2)
    }

    pub(super) fn producer(
        &self,
        lane: u32,
        batch_bytes: usize,
        alone: bool,
        deliveries: Arc<Deliveries>,
    ) -> Result<LaneProducer, SinkError> {
        let id = format!("{}-{lane}", self.transactional_id_prefix);
        let config = self.producer_config(&id, batch_bytes, alone);
        LaneProducer::from_config_and_context(
            &config,
            LaneContext::new(deliveries, self.words.clone()),
        )
        .map_err(|error| errors::sink_error(&error, None))
    }

    /// Of a producer with this transactional id.
    pub(super) fn producer_config(
        &self,
        id: &str,
        batch_bytes: usize,
        alone: bool,
    ) -> ClientConfig {
        let batch_records = if alone { 1 } else { BATCH_RECORDS };
        let defaults = [
            // what lingers goes when the lane flushes, at the end of a transaction at the latest
            ("linger.ms", "1000".to_owned()),
            ("batch.size", batch_bytes.to_string()),
            ("batch.num.messages", batch_records.to_string()),
            ("compression.type", self.compression.clone()),
            // the topic's limit decides, and we check it ourselves
            ("message.max.bytes", "100000000".to_owned()),
            (
                "queue.buffering.max.messages",
                self.queue_messages.to_string(),
            ),
            ("queue.buffering.max.kbytes", "1048576".to_owned()),
            // what a metadata round may take before a topic counts as gone
            ("topic.metadata.propagation.max.ms", "5000".to_owned()),
        ];
        let fixed = [
            ("transactional.id", id.to_owned()),
            ("transaction.timeout.ms", millis(self.transaction_timeout)),
            ("message.timeout.ms", millis(self.delivery_timeout)),
            ("enable.idempotence", "true".to_owned()),
            // a checkpoint topic that somebody deleted must not come back with the broker's defaults
            ("allow.auto.create.topics", "false".to_owned()),
        ];
        let mut config = self.config(&defaults);
        for (key, value) in fixed {
            config.set(key, value);
        }
        if alone {
            config.set("batch.num.messages", "1");
        }
        config
    }

    /// For topics. `creates` lets the broker create what is asked for, where nothing else can.
    pub(super) fn admin(&self, creates: bool) -> Result<AdminClient<Words>, SinkError> {
        let mut config = self.config(&[]);
        config.set("allow.auto.create.topics", creates.to_string());
        AdminClient::from_config_and_context(&config, self.words.clone())
            .map_err(|error| errors::sink_error(&error, None))
    }

    /// For reading the checkpoints.
    pub(super) fn consumer(&self) -> Result<BaseConsumer<Words>, SinkError> {
        let group = format!("{}-restore", self.transactional_id_prefix);
        let defaults = [
            ("fetch.wait.max.ms", "50".to_owned()),
            ("fetch.error.backoff.ms", "100".to_owned()),
        ];
        let mut config = self.config(&defaults);
        // the group is never joined; librdkafka wants a name to assign a partition by hand
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("auto.offset.reset", "earliest");
        config.set("isolation.level", "read_committed");
        config.set("check.crcs", "true");
        BaseConsumer::from_config_and_context(&config, self.words.clone())
            .map_err(|error| errors::sink_error(&error, None))
    }

    /// A broker that vanished without a word is noticed in about this time; librdkafka wants it below
    /// the transaction's.
    fn socket_timeout(&self) -> Duration {
        Duration::from_secs(10).min(self.transaction_timeout / 2)
    }

    fn config(&self, defaults: &[(&str, String)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", "kedge-hub")
            // else each commit waits 40 ms for a delayed acknowledgement of TCP
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("socket.timeout.ms", millis(self.socket_timeout()))
            .set("socket.connection.setup.timeout.ms", "5000")
            // work goes on within about this time after a broker is back
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("retry.backoff.ms", "50")
            .set("retry.backoff.max.ms", "500")
            .set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in defaults {
            config.set(*key, value);
        }
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }
}

fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}
