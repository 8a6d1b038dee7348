//! Every key once: its name, its default with the reason for it, and what is accepted.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use shared::config::{AdminConfig, ConfigError, Document, HostPort, LogConfig, Pattern, Section};
use shared::ids::TopicName;
use shared::policy::pushed;
use shared::tls::TlsFiles;
use shared::units::{ByteSize, Span};

use super::{
    Cluster, CommitConfig, Config, KafkaConfig, ListenConfig, NodeConfig, Properties, SiteRule,
    SitesConfig,
};

use crate::sink::mapping::PartitionRule;

/// An idle connection costs 30 to 40 kB: about 400 MB of sessions.
const DEFAULT_MAX_SESSIONS: u32 = 10_000;
/// What 1,000 new connections a second keep under way while a round trip takes half a second.
const DEFAULT_MAX_HANDSHAKES: u32 = 1_000;
/// A handshake and a welcome cost a millisecond or two of a core: under half of one.
const DEFAULT_ADMIT_RATE: u32 = 200;
/// A handshake over a satellite, with loss.
const DEFAULT_HANDSHAKE: Span = Span::secs(15);
/// Sessions outlive outages of ten minutes; sites keep NATs awake below the session, for less.
const DEFAULT_KEEP_ALIVE: Span = Span::minutes(4);
/// As long as sites hold their end.
const DEFAULT_IDLE: Span = Span::minutes(15);
/// A second of a 64 Mbit/s link.
const DEFAULT_SESSION_WINDOW: ByteSize = ByteSize::mib(8);
/// 64 sessions at their full window.
const DEFAULT_MEMORY: ByteSize = ByteSize::mib(512);
/// Twice the sites' default, for batches that were sent compressed.
const DEFAULT_MAX_BATCH: ByteSize = ByteSize::mib(4);
/// Bounds what a session costs in tables.
const DEFAULT_MAX_LOGS: u32 = 10_000;
/// Each costs a producer: 0.7 MB and seven threads with three brokers.
/// A thousand topic partitions at a megabyte each.
const DEFAULT_CODEC_MEMORY: ByteSize = ByteSize::gib(1);
const DEFAULT_CODEC_DISK: ByteSize = ByteSize::gib(16);
/// The last few versions of what most sites send: images, firmware, snapshots.
const DEFAULT_SITE_CHUNKS: ByteSize = ByteSize::mib(64);
/// As much as a hub has for its sessions.
const DEFAULT_CHUNKS_IN_MEMORY: ByteSize = ByteSize::mib(512);
/// Sixty-four sites that send large values.
const DEFAULT_CHUNKS_ON_DISK: ByteSize = ByteSize::gib(4);

const DEFAULT_LANES: u32 = 4;
/// A transaction costs the broker as much as a few thousand records; beyond this more of them in one
/// stop to pay.
const DEFAULT_TRANSACTION_RECORDS: u32 = 20_000;
const DEFAULT_TRANSACTION_BYTES: ByteSize = ByteSize::mib(16);
/// A dead hub's open transaction hides the records behind it for so long.
const DEFAULT_TRANSACTION_TIMEOUT: Span = Span::secs(30);
/// Four transactions: one under way, others that fill while it commits.
const DEFAULT_LANE_QUEUE: ByteSize = ByteSize::mib(64);
/// Longer than a site takes to find the other hub, so that two hubs do not take a lane in turns.
const DEFAULT_STEP_DOWN: Span = Span::secs(10);
const DEFAULT_STEP_DOWN_MAX: Span = Span::minutes(2);

const DEFAULT_CERTIFICATE: &str = "/etc/kedge/hub.pem";
const DEFAULT_KEY: &str = "/etc/kedge/hub-key.pem";
const DEFAULT_CA: &str = "/etc/kedge/ca.pem";
const DEFAULT_TEMPLATE: &str = "{topic}";
const DEFAULT_DEAD_LETTERS: &str = "kedge.dead-letters";
const DEFAULT_CHECKPOINTS: &str = "__kedge_checkpoints";

const LISTEN_PORT: u16 = 7443;
const ADMIN_PORT: u16 = 9691;

/// Settings of librdkafka that exactly-once delivery rests on.
const FIXED_PROPERTIES: [&str; 8] = [
    "isolation.level",
    "bootstrap.servers",
    "metadata.broker.list",
    "transactional.id",
    "transaction.timeout.ms",
    "enable.idempotence",
    "acks",
    "request.required.acks",
];

pub(super) fn config(document: &mut Document, cluster: Cluster) -> Config {
    let listen = listen(document.section("listen"));
    let site_ingress = listen.site_ingress;
    let config = Config {
        node: node(document.section("node")),
        listen,
        kafka: kafka(document.section("kafka"), cluster),
        commit: commit(document.section("commit")),
        sites: sites(document.section("sites"), site_ingress),
        admin: admin(document),
        log: LogConfig::read(document.section("log")),
    };
    check_limits(&config, document);
    config
}

/// Limits that must fit into one another.
fn check_limits(config: &Config, document: &mut Document) {
    let (commit, listen) = (&config.commit, &config.listen);
    if commit.step_down > commit.step_down_max {
        let (first, last) = (commit.step_down, commit.step_down_max);
        let message = format!("{first} is larger than step_down_max = {last}");
        document.problem("commit.step_down", message);
    }
    if commit.lane_queue < listen.max_batch {
        let (queue, batch) = (commit.lane_queue, listen.max_batch);
        let message = format!("{queue} is less than listen.max_batch = {batch}");
        document.problem("commit.lane_queue", message);
    }
    if config.kafka.dead_letter_topic == config.commit.checkpoint_topic {
        let name = &config.commit.checkpoint_topic;
        document.problem(
            "commit.checkpoint_topic",
            format!("{name} is also kafka.dead_letter_topic"),
        );
    }
}

pub(super) fn admin(document: &mut Document) -> AdminConfig {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
    AdminConfig::read(document.section("admin"), listen)
}

fn node(mut section: Section) -> NodeConfig {
    let stop = Span::secs(1)..=Span::minutes(5);
    NodeConfig {
        // A topic's name has the same letters.
        name: section
            .parsed::<TopicName>("name", valid("hub"))
            .to_string(),
        stop_timeout: section.span("stop_timeout", Span::secs(10), stop),
    }
}

fn listen(mut section: Section) -> ListenConfig {
    let handshake = Span::secs(1)..=Span::minutes(5);
    let keep_alive = Span::secs(1)..=Span::minutes(10);
    let idle = Span::secs(3)..=Span::minutes(30);
    let window = ByteSize::kib(64)..=ByteSize::mib(256);
    let memory = ByteSize::mib(16)..=ByteSize::gib(256);
    let codec_memory = ByteSize::mib(1)..=ByteSize::gib(256);
    let codec_disk = ByteSize::mib(1)..=ByteSize::gib(16 << 10);
    let site_chunks = ByteSize::kib(0)..=ByteSize::gib(64);
    let chunks = ByteSize::mib(1)..=ByteSize::gib(16 << 10);
    // every batch that a site takes in must fit
    let batch = ByteSize::mib(4)..=ByteSize::mib(64);
    let codec_dir = section.optional::<PathBuf>("codec_dir");
    let default_chunks = match codec_dir {
        Some(_) => DEFAULT_CHUNKS_ON_DISK,
        None => DEFAULT_CHUNKS_IN_MEMORY,
    };
    let config = ListenConfig {
        address: section.parsed(
            "address",
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, LISTEN_PORT)),
        ),
        tcp: section.flag("tcp", true),
        tls: TlsFiles {
            certificate: section.path("certificate", DEFAULT_CERTIFICATE),
            key: section.path("key", DEFAULT_KEY),
            ca: section.path("ca", DEFAULT_CA),
        },
        max_sessions: section.number("max_sessions", DEFAULT_MAX_SESSIONS, 1..=1_000_000) as usize,
        max_handshakes: section.number("max_handshakes", DEFAULT_MAX_HANDSHAKES, 1..=100_000)
            as usize,
        admit_rate: u64::from(section.number("admit_rate", DEFAULT_ADMIT_RATE, 1..=100_000)),
        ingress: ingress(&mut section, "ingress", None),
        site_ingress: ingress(&mut section, "site_ingress", None),
        handshake_timeout: section.span("handshake_timeout", DEFAULT_HANDSHAKE, handshake),
        keep_alive: section.span("keep_alive", DEFAULT_KEEP_ALIVE, keep_alive),
        idle_timeout: section.span("idle_timeout", DEFAULT_IDLE, idle),
        session_window: section.size("session_window", DEFAULT_SESSION_WINDOW, window),
        memory: section.size("memory", DEFAULT_MEMORY, memory),
        max_batch: section.size("max_batch", DEFAULT_MAX_BATCH, batch),
        max_logs: section.number("max_logs", DEFAULT_MAX_LOGS, 1..=1_000_000) as usize,
        codec_memory: section.size("codec_memory", DEFAULT_CODEC_MEMORY, codec_memory),
        codec_dir,
        codec_disk: section.size("codec_disk", DEFAULT_CODEC_DISK, codec_disk),
        site_chunks: section.size("site_chunks", DEFAULT_SITE_CHUNKS, site_chunks),
        chunks: section.size("chunks", default_chunks, chunks),
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

/// Bytes a second.
fn ingress(section: &mut Section, key: &str, default: Option<ByteSize>) -> Option<ByteSize> {
    let range = ByteSize(1_000)..=ByteSize::gib(100);
    section.size_limit(key, default, range)
}

fn kafka(mut section: Section, cluster: Cluster) -> KafkaConfig {
    let rules = [
        ("key", PartitionRule::Hash),
        ("site-partition", PartitionRule::Preserve),
    ];
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"].map(|codec| (codec, codec));
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
        create_partitions: Some(section.number("create_partitions", 0_u32, 0..=10_000))
            .filter(|count| *count > 0),
        replication: Some(section.number("replication", 0_u32, 0..=100)).filter(|count| *count > 0),
        partition_by: section.choice("partition_by", PartitionRule::Hash, &rules),
        compression: section.choice("compression", "lz4", &codecs),
        dead_letter_topic: section
            .parsed::<TopicName>("dead_letter_topic", valid(DEFAULT_DEAD_LETTERS)),
    }
}

fn commit(mut section: Section) -> CommitConfig {
    let bytes = ByteSize::kib(64)..=ByteSize::gib(1);
    let timeout = Span::secs(5)..=Span::minutes(15);
    let waits = Span::secs(1)..=Span::hours(1);
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
        ),
        transaction_timeout: section.span(
            "transaction_timeout",
            DEFAULT_TRANSACTION_TIMEOUT,
            timeout,
        ),
        lane_queue: section.size("lane_queue", DEFAULT_LANE_QUEUE, bytes),
        step_down: section.span("step_down", DEFAULT_STEP_DOWN, waits.clone()),
        step_down_max: section.span("step_down_max", DEFAULT_STEP_DOWN_MAX, waits),
    }
}

fn sites(mut section: Section, site_ingress: Option<ByteSize>) -> SitesConfig {
    if !section.has("rule") {
        // A certificate of our own CA is the admission.
        let _ = section.sections("rule");
        let everyone = SiteRule {
            pattern: Pattern::any(),
            allow: true,
            topics: vec![Pattern::any()],
            ingress: site_ingress,
            policy: None,
        };
        return SitesConfig {
            rules: vec![everyone],
        };
    }
    SitesConfig {
        rules: section
            .sections("rule")
            .into_iter()
            .filter_map(|section| site_rule(section, site_ingress))
            .collect(),
    }
}

fn site_rule(mut section: Section, site_ingress: Option<ByteSize>) -> Option<SiteRule> {
    let pattern = section.required::<Pattern>("match", "\"shop-*\"");
    let allow = section.flag("allow", true);
    let topics = section.list("topics", vec![Pattern::any()]);
    let ingress = ingress(&mut section, "ingress", site_ingress);
    let policy = policy(&mut section);
    Some(SiteRule {
        pattern: pattern?,
        allow,
        topics,
        ingress,
        policy,
    })
}

/// The link policy of sites: TOML with nothing beside `[policy]`, sent to them as it is. What every site refuses is
/// refused here, by the parser that sites have.
fn policy(section: &mut Section) -> Option<Arc<str>> {
    let text = section.optional::<String>("policy")?;
    match pushed(&text) {
        Ok(_policy) => return Some(text.into()),
        Err(ConfigError::Invalid { problems, .. }) => {
            for problem in problems {
                section.nested("policy", problem);
            }
        }
        Err(error @ (ConfigError::Read { .. } | ConfigError::Syntax { .. })) => {
            section.problem("policy", error.to_string());
        }
    }
    None
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
