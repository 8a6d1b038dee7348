//! Every key once: its name, its default with the reason for it, and what is accepted.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use shared::config::{AdminConfig, Document, HostPort, LogConfig, Pattern, Section};
use shared::ids::TopicName;
use shared::tls::TlsFiles;
use shared::units::{ByteSize, Span};

use super::{
    Cluster, CommitConfig, Config, KafkaConfig, ListenConfig, NodeConfig, Properties, SiteRule,
    SitesConfig,
};

/// An idle connection costs 30 to 40 kB: about 400 MB of sessions.
const DEFAULT_MAX_SESSIONS: u32 = 10_000;
/// A handshake over a satellite, with loss.
const DEFAULT_HANDSHAKE: Span = Span::secs(15);
/// 60 MB a month and site would be too much on a metered link; NATs forget after 30 s.
const DEFAULT_KEEP_ALIVE: Span = Span::secs(10);
/// Three keep-alives.
const DEFAULT_IDLE: Span = Span::secs(30);
/// A second of a 64 Mbit/s link.
const DEFAULT_SESSION_WINDOW: ByteSize = ByteSize::mib(8);
/// 64 sessions at their full window.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);
/// Twice the sites' default, for batches that were sent compressed.
const DEFAULT_MAX_BATCH: ByteSize = ByteSize::mib(4);
/// Bounds what a session costs in tables.
const DEFAULT_MAX_LOGS: u32 = 10_000;
/// Each costs a producer: 0.7 MB and seven threads with three brokers.
const DEFAULT_LANES: u32 = 4;
/// A transaction costs the broker as much as a few thousand records: let it grow with what waits.
const DEFAULT_TRANSACTION_RECORDS: u32 = 50_000;
const DEFAULT_TRANSACTION_BYTES: ByteSize = ByteSize::mib(16);
/// What waits during a commit makes the next transaction: waiting longer only adds delay.
const DEFAULT_LINGER: Span = Span::millis(5);
/// librdkafka's default. A dead hub's open transaction hides the records behind it for so long.
const DEFAULT_TRANSACTION_TIMEOUT: Span = Span::secs(60);
/// Two transactions: one under way, one that fills.
const DEFAULT_LANE_QUEUE: ByteSize = ByteSize::mib(32);

const DEFAULT_CERTIFICATE: &str = "/etc/kedge/hub.pem";
const DEFAULT_KEY: &str = "/etc/kedge/hub-key.pem";
const DEFAULT_CA: &str = "/etc/kedge/ca.pem";
const DEFAULT_TEMPLATE: &str = "{topic}";
const DEFAULT_DEAD_LETTERS: &str = "kedge.dead-letters";
const DEFAULT_CHECKPOINTS: &str = "kedge.checkpoints";

const LISTEN_PORT: u16 = 7443;
const ADMIN_PORT: u16 = 9691;

/// Settings of librdkafka that exactly-once delivery rests on.
const FIXED_PROPERTIES: [&str; 7] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "transactional.id",
    "transaction.timeout.ms",
    "enable.idempotence",
    "acks",
    "request.required.acks",
];

pub(super) fn config(document: &mut Document, cluster: Cluster) -> Config {
    let config = Config {
        node: node(document.section("node")),
        listen: listen(document.section("listen")),
        kafka: kafka(document.section("kafka"), cluster),
        commit: commit(document.section("commit")),
        sites: sites(document.section("sites")),
        admin: AdminConfig::read(
            document.section("admin"),
            SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT)),
        ),
        log: LogConfig::read(document.section("log")),
    };
    if config.kafka.dead_letter_topic == config.commit.checkpoint_topic {
        let name = &config.commit.checkpoint_topic;
        document.problem(
            "commit.checkpoint_topic",
            format!("{name} is also kafka.dead_letter_topic"),
        );
    }
    config
}

fn node(mut section: Section) -> NodeConfig {
    let stop = Span::secs(1)..=Span::minutes(5);
    NodeConfig {
        stop_timeout: section.span("stop_timeout", Span::secs(10), stop),
    }
}

fn listen(mut section: Section) -> ListenConfig {
    let handshake = Span::secs(1)..=Span::minutes(5);
    let keep_alive = Span::secs(1)..=Span::minutes(10);
    let idle = Span::secs(3)..=Span::minutes(30);
    let window = ByteSize::kib(64)..=ByteSize::mib(256);
    let memory = ByteSize::mib(16)..=ByteSize::gib(256);
    let batch = ByteSize::kib(64)..=ByteSize::mib(64);
    let config = ListenConfig {
        address: section.parsed(
            "address",
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, LISTEN_PORT)),
        ),
        tls: TlsFiles {
            certificate: section.path("certificate", DEFAULT_CERTIFICATE),
            key: section.path("key", DEFAULT_KEY),
            ca: section.path("ca", DEFAULT_CA),
        },
        max_sessions: section.number("max_sessions", DEFAULT_MAX_SESSIONS, 1..=1_000_000) as usize,
        handshake_timeout: section.span("handshake_timeout", DEFAULT_HANDSHAKE, handshake),
        keep_alive: section.span("keep_alive", DEFAULT_KEEP_ALIVE, keep_alive),
        idle_timeout: section.span("idle_timeout", DEFAULT_IDLE, idle),
        session_window: section.size("session_window", DEFAULT_SESSION_WINDOW, window),
        memory: section.size("memory", DEFAULT_MEMORY, memory),
        max_batch: section.size("max_batch", DEFAULT_MAX_BATCH, batch),
        max_logs: section.number("max_logs", DEFAULT_MAX_LOGS, 1..=1_000_000) as usize,
    };
    if config.idle_timeout.as_millis() < 2 * config.keep_alive.as_millis() {
        let message = format!("less than twice keep_alive = {}", config.keep_alive);
        section.problem("idle_timeout", message);
    }
    if config.session_window > config.memory {
        section.problem(
            "session_window",
            format!("more than memory = {}", config.memory),
        );
    }
    config
}

fn kafka(mut section: Section, cluster: Cluster) -> KafkaConfig {
    let example = "\"kafka-1:9092,kafka-2:9092\"";
    let bootstrap = match cluster {
        Cluster::Configured => section.required::<Bootstrap>("bootstrap", example),
        Cluster::Embedded => section.optional::<Bootstrap>("bootstrap"),
    };
    let properties = section.map("properties");
    for key in properties
        .keys()
        .filter(|key| FIXED_PROPERTIES.contains(&key.as_str()))
    {
        let message = "set by the hub itself: delivery rests on it; accepted: other properties";
        section.problem(&format!("properties.\"{key}\""), message);
    }
    KafkaConfig {
        bootstrap: bootstrap.map(|bootstrap| bootstrap.0).unwrap_or_default(),
        properties: Properties(properties),
        topic_template: section.parsed("topic_template", valid(DEFAULT_TEMPLATE)),
        create_topics: section.flag("create_topics", true),
        create_partitions: section.number("create_partitions", 6, 1..=10_000),
        replication: section.number("replication", -1, -1..=100),
        dead_letter_topic: section
            .parsed::<TopicName>("dead_letter_topic", valid(DEFAULT_DEAD_LETTERS)),
    }
}

fn commit(mut section: Section) -> CommitConfig {
    let bytes = ByteSize::kib(64)..=ByteSize::gib(1);
    let linger = Span::millis(0)..=Span::secs(10);
    let timeout = Span::secs(5)..=Span::minutes(15);
    CommitConfig {
        checkpoint_topic: section
            .parsed::<TopicName>("checkpoint_topic", valid(DEFAULT_CHECKPOINTS)),
        lanes: section.number("lanes", DEFAULT_LANES, 1..=256),
        transactional_id_prefix: section
            .parsed::<TopicName>("transactional_id_prefix", valid("kedge"))
            .to_string(),
        max_transaction_bytes: section.size(
            "max_transaction_bytes",
            DEFAULT_TRANSACTION_BYTES,
            bytes.clone(),
        ),
        max_transaction_records: section.number(
            "max_transaction_records",
            DEFAULT_TRANSACTION_RECORDS,
            1..=1_000_000,
        ) as usize,
        linger: section.span("linger", DEFAULT_LINGER, linger),
        transaction_timeout: section.span(
            "transaction_timeout",
            DEFAULT_TRANSACTION_TIMEOUT,
            timeout,
        ),
        lane_queue: section.size("lane_queue", DEFAULT_LANE_QUEUE, bytes),
    }
}

fn sites(mut section: Section) -> SitesConfig {
    if !section.has("rule") {
        // A certificate of our own CA is the admission.
        let _ = section.sections("rule");
        let everyone = SiteRule {
            pattern: Pattern::any(),
            allow: true,
            topics: vec![Pattern::any()],
        };
        return SitesConfig {
            rules: vec![everyone],
        };
    }
    SitesConfig {
        rules: section
            .sections("rule")
            .into_iter()
            .filter_map(site_rule)
            .collect(),
    }
}

fn site_rule(mut section: Section) -> Option<SiteRule> {
    let pattern = section.required::<Pattern>("match", "\"shop-*\"");
    let allow = section.flag("allow", true);
    let topics = section.list("topics", vec![Pattern::any()]);
    Some(SiteRule {
        pattern: pattern?,
        allow,
        topics,
    })
}

/// `host:port` of one or more brokers.
struct Bootstrap(String);

impl FromStr for Bootstrap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for broker in text.split(',') {
            broker.trim().parse::<HostPort>().map_err(|_| {
                "not a list of brokers; accepted: host:port, separated by commas".to_owned()
            })?;
        }
        Ok(Self(text.to_owned()))
    }
}

fn valid<T: FromStr>(constant: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    constant.parse().expect("a default is valid")
}
