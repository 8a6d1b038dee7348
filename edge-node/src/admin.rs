//! What the admin listener shows of the parts of this node.

use std::sync::Arc;
use std::time::Duration;

use shared::admin::{Check, Provider};
use shared::ids::SiteId;
use shared::time;

use crate::config::TopicsConfig;
use crate::http::HttpStats;
use crate::ingest::IngestStats;
use crate::kafka::KafkaStats;
use crate::metrics::{self, Counters};
use crate::mqtt::MqttStats;
use crate::status::{PolicyStatus, Status, TopicStatus, UplinkStatus};
use crate::store::Store;
use crate::uplink::Policies;

/// The uplink as the admin listener sees it.
pub trait UplinkView: std::fmt::Debug + Send + Sync + 'static {
    /// What it is doing and has done.
    fn status(&self) -> UplinkStatus;
}

/// No uplink: switched off.
#[derive(Debug, Clone, Copy)]
pub struct NoUplink;

impl UplinkView for NoUplink {
    fn status(&self) -> UplinkStatus {
        UplinkStatus::default()
    }
}

/// The parts of a running node.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name in the certificate, when there is one.
    pub site: Option<SiteId>,
    /// The log.
    pub store: Arc<dyn Store>,
    /// What holds for its topics.
    pub topics: TopicsConfig,
    /// The door's counters.
    pub ingest: Arc<IngestStats>,
    /// The Kafka listener's, when it is on.
    pub kafka: Option<Arc<KafkaStats>>,
    /// The HTTP listener's, when it is on.
    pub http: Option<Arc<HttpStats>>,
    /// The MQTT listener's, when it is on.
    pub mqtt: Option<Arc<MqttStats>>,
    /// The uplink.
    pub uplink: Arc<dyn UplinkView>,
    /// What it may be used for, when it is on.
    pub policies: Option<Policies>,
    /// When the process started, by [`time::now`].
    pub started: Duration,
}

impl Node {
    fn document(&self) -> Status {
        let topics = self.store.ledger().into_iter();
        let topics = topics.map(|(name, ledger)| TopicStatus {
            class: self.topics.settings(name.as_str()).class,
            passed: self.passed(name.as_str()),
            name: name.to_string(),
            ledger: ledger.into(),
        });
        let mut topics: Vec<TopicStatus> = topics.collect();
        topics.sort_by(|left, right| left.name.cmp(&right.name));
        let uptime = time::now().saturating_sub(self.started).as_millis();
        let problems = self.problems();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            site: self.site.as_ref().map(ToString::to_string),
            incarnation: self.store.incarnation().to_string(),
            wall_ms: time::wall_ms(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            ready: problems.is_empty(),
            problems,
            uplink: self.uplink.status(),
            policy: self
                .policies
                .as_ref()
                .map_or_else(PolicyStatus::default, |policies| {
                    PolicyStatus::from(&*policies.view())
                }),
            topics,
        }
    }

    /// What new records of a topic pass, in offsets.
    fn passed(&self, topic: &str) -> u64 {
        let topic = self.store.topic(topic);
        let partitions = topic.iter().flat_map(|topic| &topic.partitions);
        let ranges = partitions.filter_map(|id| self.store.range(*id).ok());
        ranges
            .filter_map(|range| Some(range.tracks.split?.saturating_sub(range.acked)))
            .sum()
    }

    fn problems(&self) -> Vec<String> {
        let checks = self.readiness().into_iter();
        checks
            .filter_map(|check| Some(format!("{}: {}", check.name, check.problem?)))
            .collect()
    }
}

impl Provider for Node {
    /// A site is ready when it takes records. The link is none of it: being offline is normal.
    fn readiness(&self) -> Vec<Check> {
        let failure = self
            .store
            .failure()
            .borrow()
            .as_ref()
            .map(ToString::to_string);
        let full = self.ingest.full_since().map(|full| {
            let since = time::utc(full.since_ms);
            format!("FULL: producers are refused since {since}: {}", full.why)
        });
        vec![Check::new("store", failure), Check::new("space", full)]
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let (node, status) = (self.clone(), self.document());
        shared::metrics::encode(metrics::PREFIX, move |scrape| {
            let counters = Counters {
                ingest: &node.ingest,
                kafka: node.kafka.as_deref(),
                http: node.http.as_deref(),
                mqtt: node.mqtt.as_deref(),
                space: node.store.space(),
            };
            metrics::write(scrape, &status, counters)
        })
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.document()).unwrap_or_default()
    }
}
