//! Every key once: its name, its default with the reason for it, and what is accepted.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use shared::class::Class;
use shared::config::{AdminConfig, Document, HostPort, LogConfig, Pattern, Section};
use shared::ids::TopicName;
use shared::tls::TlsFiles;
use shared::units::{ByteSize, Span};

use super::access::byte_rates;
use super::{
    AccessConfig, ClassesConfig, Codec, Config, Congestion, GroupsConfig, HttpConfig, KafkaConfig,
    KafkaListener, NodeConfig, StoreConfig, TopicRule, TopicSettings, TopicsConfig, UplinkConfig,
    policy,
};
use crate::kafka::group::Limits;
use crate::store::OnFull;
use crate::tls::ListenerTls;
use crate::uplink::policy::Zone;

/// A week of 200-byte records at 80 a second, on the smallest disk that such devices come with.
const DEFAULT_QUOTA: ByteSize = ByteSize::gib(10);
/// The system's own files and one compaction of ours must still fit.
const DEFAULT_MIN_FREE: ByteSize = ByteSize::mib(256);
/// A few write-ahead logs and a compaction's output: what deletion may need before it frees space.
const DEFAULT_RESERVE: ByteSize = ByteSize::mib(32);
/// Two groups of the largest size: one on its way to the disk, one waiting.
const DEFAULT_QUEUE: ByteSize = ByteSize::mib(8);
/// Retention is a matter of days; ten seconds keep each deletion small.
const DEFAULT_SWEEP: Span = Span::secs(10);
/// Kafka's own default.
const DEFAULT_RETENTION: Span = Span::days(7);
/// Kafka's `message.max.bytes`, rounded.
const DEFAULT_MAX_BATCH: ByteSize = ByteSize::mib(1);
/// What every hub takes in one piece, the link's framing included.
const LARGEST_MAX_BATCH: ByteSize = ByteSize::mib(4);
/// Clients send at most 1 MiB a partition by default, and several partitions a request.
const DEFAULT_MAX_REQUEST: ByteSize = ByteSize::mib(8);
/// Two of the largest requests.
const DEFAULT_MAX_INFLIGHT: ByteSize = ByteSize::mib(16);
/// Kafka's `connections.max.idle.ms`.
const DEFAULT_CLIENT_IDLE: Span = Span::minutes(10);
/// Longer than most outages: a connection that is nudged when the link is back goes on without a
/// handshake, and what was on its way is not encoded again.
const DEFAULT_LINK_IDLE: Span = Span::minutes(15);
/// NATs forget UDP after 30 s: 0.45 MB a day.
const DEFAULT_NAT_KEEP_ALIVE: Span = Span::secs(25);
/// Two probes a second, and now and then more.
const DEFAULT_OUTAGE_BUDGET: ByteSize = ByteSize::kib(6);
/// A handshake over a satellite and a slow hub.
const DEFAULT_CONNECT_TIMEOUT: Span = Span::secs(10);
/// Short: most interruptions are.
const DEFAULT_BACKOFF_MIN: Span = Span::millis(500);
/// Ten thousand sites bring a restarted hub about 700 attempts a second.
const DEFAULT_BACKOFF_MAX: Span = Span::secs(30);

/// As many topic partitions as most sites have, at a megabyte each; with less traffic they take less.
const DEFAULT_CODEC_MEMORY: ByteSize = ByteSize::mib(64);

/// A little less than a hub keeps for a site unless it says otherwise, so that the site forgets first.
const DEFAULT_HUB_CHUNKS: ByteSize = ByteSize::mib(48);

const DEFAULT_DATA_DIR: &str = "/var/lib/kedge";
const DEFAULT_CERTIFICATE: &str = "/etc/kedge/site.pem";
const DEFAULT_KEY: &str = "/etc/kedge/site-key.pem";
const DEFAULT_CA: &str = "/etc/kedge/ca.pem";

const KAFKA_PORT: u16 = 9092;
const HTTP_PORT: u16 = 9680;
const ADMIN_PORT: u16 = 9690;

const LARGEST_DISK: ByteSize = ByteSize(1 << 50);

pub(super) fn config(document: &mut Document) -> Config {
    let (node, store) = (
        node(document.section("node")),
        store(document.section("store")),
    );
    let topics = topics(document.section("topics"));
    let access = AccessConfig::read(document.section("access"));
    let (kafka, http) = (
        kafka(document.section("kafka")),
        http(document.section("http")),
    );
    let mqtt = super::mqtt::mqtt(document.section("mqtt"));
    let policy = policy::site(document.section("policy"));
    let config = Config {
        node,
        store,
        topics,
        access,
        kafka,
        http,
        mqtt,
        uplink: uplink(document.section("uplink"), &policy.policy.zone),
        policy,
        admin: admin(document),
        log: LogConfig::read(document.section("log")),
        file: None,
    };
    check_sizes(&config, document);
    check_listeners(&config, document);
    config
}

pub(super) fn admin(document: &mut Document) -> AdminConfig {
    AdminConfig::read(document.section("admin"), loopback(ADMIN_PORT))
}

fn node(mut section: Section) -> NodeConfig {
    let stop = Span::secs(1)..=Span::minutes(5);
    NodeConfig {
        data_dir: section.path("data_dir", DEFAULT_DATA_DIR),
        stop_timeout: section.span("stop_timeout", Span::secs(10), stop),
    }
}

fn store(mut section: Section) -> StoreConfig {
    let sweep = Span::secs(1)..=Span::hours(1);
    StoreConfig {
        quota: section.size("quota", DEFAULT_QUOTA, ByteSize::mib(16)..=LARGEST_DISK),
        min_free: section.size("min_free", DEFAULT_MIN_FREE, ByteSize(0)..=LARGEST_DISK),
        reserve: section.size(
            "reserve",
            DEFAULT_RESERVE,
            ByteSize::mib(16)..=ByteSize::gib(4),
        ),
        queue: section.size("queue", DEFAULT_QUEUE, ByteSize::mib(1)..=ByteSize::gib(1)),
        sweep_interval: section.span("sweep_interval", DEFAULT_SWEEP, sweep),
    }
}

fn topics(mut section: Section) -> TopicsConfig {
    let default = TopicSettings {
        partitions: 1,
        retention: Some(DEFAULT_RETENTION),
        retention_bytes: None,
        on_full: OnFull::Backpressure,
        max_batch: DEFAULT_MAX_BATCH,
        class: Class::Normal,
        // records arrive in the order of their log unless somebody says that they need not
        live_first: false,
    };
    let auto_create = section.flag("auto_create", true);
    let default = topic_settings(&mut section.section("default"), default);
    let rules = section.sections("rule").into_iter();
    TopicsConfig {
        auto_create,
        max_topics: section.number("max_topics", 1_000_u32, 1..=100_000) as usize,
        default,
        rules: rules
            .filter_map(|rule| topic_rule(rule, auto_create, default))
            .collect(),
    }
}

fn topic_rule(
    mut section: Section,
    auto_create: bool,
    default: TopicSettings,
) -> Option<TopicRule> {
    let pattern = section.required::<Pattern>("match", "\"sensors.*\"");
    if let Some(pattern) = pattern.as_ref().filter(|pattern| pattern.is_exact())
        && let Err(error) = TopicName::new(pattern.as_str())
    {
        section.problem("match", error.to_string());
    }
    let auto_create = section.flag("auto_create", auto_create);
    let settings = topic_settings(&mut section, default);
    Some(TopicRule {
        pattern: pattern?,
        auto_create,
        settings,
    })
}

fn topic_settings(section: &mut Section, default: TopicSettings) -> TopicSettings {
    let on_full = [
        ("backpressure", OnFull::Backpressure),
        ("drop-oldest", OnFull::DropOldest),
        ("drop-newest", OnFull::DropNewest),
    ];
    let classes = Class::all().map(|class| (class.as_str(), class));
    let retention = Span::secs(1)..=Span::days(3_650);
    let bytes = ByteSize::mib(1)..=LARGEST_DISK;
    let batch = ByteSize::kib(1)..=LARGEST_MAX_BATCH;
    TopicSettings {
        partitions: section.number("partitions", default.partitions, 1..=256),
        retention: section.span_limit("retention", default.retention, retention),
        retention_bytes: section.size_limit("retention_bytes", default.retention_bytes, bytes),
        on_full: section.choice("on_full", default.on_full, &on_full),
        max_batch: section.size("max_batch", default.max_batch, batch),
        class: section.choice("class", default.class, &classes),
        live_first: section.flag("live_first", default.live_first),
    }
}

fn kafka(mut section: Section) -> Option<KafkaConfig> {
    let request = ByteSize::kib(64)..=ByteSize::mib(128);
    let inflight = ByteSize::kib(64)..=ByteSize::gib(1);
    let idle = Span::secs(1)..=Span::days(1);
    let enabled = section.flag("enabled", true);
    let max_connections = section.number("max_connections", 1_000_u32, 1..=100_000);
    let config = KafkaConfig {
        listen: section.parsed("listen", loopback(KAFKA_PORT)),
        advertised: section.optional::<HostPort>("advertised"),
        max_connections: max_connections as usize,
        max_request: section.size("max_request", DEFAULT_MAX_REQUEST, request),
        max_inflight: section.size("max_inflight", DEFAULT_MAX_INFLIGHT, inflight),
        idle_timeout: section.span("idle_timeout", DEFAULT_CLIENT_IDLE, idle),
        limits: byte_rates(&mut section),
        listeners: kafka_listeners(&mut section, max_connections),
        groups: groups(section.section("groups")),
    };
    enabled.then_some(config)
}

fn kafka_listeners(section: &mut Section, max_connections: u32) -> Vec<KafkaListener> {
    let listeners = section.sections("listener").into_iter();
    listeners
        .filter_map(|mut section| {
            let listen = section.required::<SocketAddr>("listen", "\"0.0.0.0:9093\"");
            let advertised = section.optional::<HostPort>("advertised");
            let tls = listener_tls(&mut section);
            let most = section.number("max_connections", max_connections, 1..=100_000);
            let limits = byte_rates(&mut section);
            Some(KafkaListener {
                listen: listen?,
                advertised,
                tls,
                max_connections: most as usize,
                limits,
            })
        })
        .collect()
}

/// A listener's certificate and key: both, or none for plain text.
pub(super) fn listener_tls(section: &mut Section) -> Option<ListenerTls> {
    let mut path = |key: &str| section.has(key).then(|| section.path(key, ""));
    let (certificate, key) = (path("certificate"), path("key"));
    let client_ca = path("client_ca");
    if client_ca.is_none() && section.has("client_certificates") {
        section.problem(
            "client_certificates",
            "no client is asked for one without client_ca; accepted: with client_ca",
        );
    }
    let words = [("required", true), ("optional", false)];
    let requires_client = section.choice("client_certificates", true, &words);
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ListenerTls {
            certificate,
            key,
            client_ca,
            requires_client,
        }),
        (None, None) => {
            if client_ca.is_some() {
                section.problem(
                    "client_ca",
                    "without TLS; accepted: with certificate and key",
                );
            }
            None
        }
        (Some(_), None) => {
            section.problem("key", "missing; a certificate needs its key");
            None
        }
        (None, Some(_)) => {
            section.problem("certificate", "missing; a key needs its certificate");
            None
        }
    }
}

fn groups(mut section: Section) -> GroupsConfig {
    let default = Limits::default();
    let span = |time: Duration| Span::millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let session = Span::millis(100)..=Span::hours(2);
    let config = GroupsConfig {
        max_groups: section.number("max_groups", default.max_groups, 1..=100_000),
        max_members: section.number("max_members", default.max_members, 1..=10_000),
        max_offsets: section.number("max_offsets", default.max_offsets, 1..=10_000_000),
        initial_delay: section.span(
            "initial_delay",
            span(default.initial_delay),
            Span::millis(0)..=Span::minutes(5),
        ),
        min_session: section.span("min_session", span(default.min_session), session.clone()),
        max_session: section.span("max_session", span(default.max_session), session),
        retention: section.span(
            "retention",
            span(default.retention),
            Span::minutes(1)..=Span::days(3_650),
        ),
    };
    if config.min_session > config.max_session {
        let message = format!("larger than max_session = {}", config.max_session);
        section.problem("min_session", message);
    }
    config
}

fn http(mut section: Section) -> Option<HttpConfig> {
    let timeout = Span::secs(1)..=Span::minutes(10);
    let body = ByteSize::kib(1)..=ByteSize::mib(64);
    let enabled = section.flag("enabled", true);
    let config = HttpConfig {
        listen: section.parsed("listen", loopback(HTTP_PORT)),
        max_connections: section.number("max_connections", 256_u32, 1..=100_000) as usize,
        max_body: section.size("max_body", ByteSize::mib(1), body),
        request_timeout: section.span("request_timeout", Span::secs(30), timeout),
        max_tails: section.number("max_tails", 64_u32, 0..=10_000) as usize,
        limits: byte_rates(&mut section),
    };
    enabled.then_some(config)
}

fn uplink(mut section: Section, zone: &Zone) -> Option<UplinkConfig> {
    let codecs = [
        ("auto", Codec::Auto),
        ("modelled", Codec::Modelled),
        ("columnar", Codec::Columnar),
        ("zstd", Codec::Zstd),
        ("none", Codec::None),
    ];
    let controllers = [
        ("cubic", Congestion::Cubic),
        ("measured", Congestion::Measured),
    ];
    // a hub remembers no more of one site
    let memory = ByteSize::mib(1)..=ByteSize::mib(64);
    let chunks = ByteSize::kib(0)..=ByteSize::gib(64);
    let read = ByteSize::kib(4)..=ByteSize::mib(4);
    let connect = Span::secs(1)..=Span::minutes(5);
    let idle = Span::secs(1)..=Span::minutes(30);
    let nat = Span::secs(5)..=Span::minutes(10);
    let outage = ByteSize::kib(1)..=ByteSize::mib(16);
    let waits = Span::millis(10)..=Span::hours(1);
    let enabled = section.flag("enabled", true);
    let hubs = if enabled {
        section.required_list::<HostPort>("hubs", "[\"hub.example.com:7443\"]")
    } else {
        section.list("hubs", Vec::new())
    };
    let config = UplinkConfig {
        hubs,
        paths: policy::paths(&mut section, zone),
        tls: TlsFiles {
            certificate: section.path("certificate", DEFAULT_CERTIFICATE),
            key: section.path("key", DEFAULT_KEY),
            ca: section.path("ca", DEFAULT_CA),
        },
        server_name: section.optional::<String>("server_name"),
        codec: section.choice("codec", Codec::Auto, &codecs),
        codec_memory: section.size("codec_memory", DEFAULT_CODEC_MEMORY, memory),
        hub_chunks: section.size("hub_chunks", DEFAULT_HUB_CHUNKS, chunks),
        level: section.number("level", 3, 1..=19),
        congestion: section.choice("congestion", Congestion::Measured, &controllers),
        max_read: section.size("max_read", ByteSize::kib(256), read),
        max_reads: section.number("max_reads", 4_u32, 1..=256) as usize,
        classes: ClassesConfig::read(section.section("classes")),
        connect_timeout: section.span("connect_timeout", DEFAULT_CONNECT_TIMEOUT, connect),
        idle_timeout: section.span("idle_timeout", DEFAULT_LINK_IDLE, idle),
        nat_keep_alive: section.span("nat_keep_alive", DEFAULT_NAT_KEEP_ALIVE, nat),
        outage_budget: section.size("outage_budget", DEFAULT_OUTAGE_BUDGET, outage),
        tcp_fallback: section.flag("tcp_fallback", true),
        backoff_min: section.span("backoff_min", DEFAULT_BACKOFF_MIN, waits.clone()),
        backoff_max: section.span("backoff_max", DEFAULT_BACKOFF_MAX, waits),
    };
    if !enabled {
        return None;
    }
    if config.backoff_min > config.backoff_max {
        let message = format!("larger than backoff_max = {}", config.backoff_max);
        section.problem("backoff_min", message);
    }
    Some(config)
}

/// Sizes that must fit into one another.
fn check_sizes(config: &Config, document: &mut Document) {
    let topics = &config.topics;
    let largest = topics.rules.iter().map(|rule| rule.settings.max_batch);
    let largest = largest
        .chain([topics.default.max_batch])
        .max()
        .unwrap_or_default();
    let mut at_least = |key: &str, value: ByteSize, name: &str, least: ByteSize| {
        if value < least {
            document.problem(key, format!("{value} is less than {name} = {least}"));
        }
    };
    at_least(
        "store.queue",
        config.store.queue,
        "the largest max_batch of a topic",
        largest,
    );
    if let Some(kafka) = &config.kafka {
        let name = "the largest max_batch of a topic";
        at_least("kafka.max_request", kafka.max_request, name, largest);
        at_least(
            "kafka.max_inflight",
            kafka.max_inflight,
            "max_request",
            kafka.max_request,
        );
    }
}

/// Two listeners on one address: the second would fail at start.
fn check_listeners(config: &Config, document: &mut Document) {
    let mut listeners = vec![
        (
            "kafka.listen".to_owned(),
            config.kafka.as_ref().map(|kafka| kafka.listen),
        ),
        (
            "http.listen".to_owned(),
            config.http.as_ref().map(|http| http.listen),
        ),
        (
            "mqtt.listen".to_owned(),
            config.mqtt.as_ref().map(|mqtt| mqtt.listen),
        ),
        ("admin.listen".to_owned(), Some(config.admin.listen)),
    ];
    let more = config.kafka.iter().flat_map(|kafka| &kafka.listeners);
    listeners.extend(more.enumerate().map(|(index, listener)| {
        let key = format!("kafka.listener[{index}].listen");
        (key, Some(listener.listen))
    }));
    let more = config.mqtt.iter().flat_map(|mqtt| &mqtt.listeners);
    listeners.extend(more.enumerate().map(|(index, listener)| {
        let key = format!("mqtt.listener[{index}].listen");
        (key, Some(listener.listen))
    }));
    for (index, (key, address)) in listeners.iter().enumerate() {
        let Some(address) = address.filter(|address| address.port() != 0) else {
            continue;
        };
        let twin = listeners[..index]
            .iter()
            .find(|(_, other)| *other == Some(address));
        if let Some((other, _)) = twin {
            document.problem(key, format!("{address} is also {other}"));
        }
    }
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
