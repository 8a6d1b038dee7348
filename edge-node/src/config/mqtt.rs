//! `[mqtt]`: the listeners for MQTT clients, and which Kafka topic an MQTT topic is.

use std::net::SocketAddr;

use shared::config::Section;
use shared::ids::TopicName;
use shared::units::{ByteSize, Span};

use super::access::byte_rates;
use crate::mqtt::packet::Qos;
use crate::mqtt::session::Overflow;
use crate::mqtt::{AckRule, RetainRule, Rule, Template, TopicMap};
use crate::quota::Limits;
use crate::tls::ListenerTls;

const PORT: u16 = 1883;
/// Where messages without a rule go.
const DEFAULT_TOPIC: &str = "mqtt_messages";
/// An operator's week of holidays.
const DEFAULT_MAX_SESSION_EXPIRY: Span = Span::days(7);

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttConfig {
    /// MQTT over TCP.
    pub listen: SocketAddr,
    /// `[[mqtt.listener]]`: more of them.
    pub listeners: Vec<MqttListener>,
    /// Open connections, over all listeners.
    pub max_connections: usize,
    /// Sessions, with those whose clients are away.
    pub max_sessions: usize,
    /// Largest packet.
    pub max_packet: ByteSize,
    /// Publishes of QoS 1 and 2 of one client that are not yet done.
    pub receive_maximum: u16,
    /// Messages of QoS 1 and 2 on their way to one client.
    pub max_inflight: u16,
    /// Longest keep-alive; `None`: as the client asks.
    pub max_keep_alive: Option<Span>,
    /// Longest life of a session whose client is away; `None`: as the client asks.
    pub max_session_expiry: Option<Span>,
    /// Messages that wait in memory for one client.
    pub queue_messages: usize,
    /// And their bytes.
    pub queue_bytes: ByteSize,
    /// Bytes of what waits in memory for all clients.
    pub delivery_bytes: ByteSize,
    /// Bytes of packets of all clients that have not wholly come.
    pub partial_bytes: ByteSize,
    /// What happens to messages of QoS 0 beyond.
    pub overflow: Overflow,
    /// Subscriptions of one client.
    pub max_subscriptions: usize,
    /// Bytes of their filters.
    pub filter_bytes: ByteSize,
    /// Topics that have a retained message.
    pub retained_messages: usize,
    /// And their bytes.
    pub retained_bytes: ByteSize,
    /// Messages a second that one client may publish; `None`: no limit.
    pub publish_rate: Option<u32>,
    /// Filters that nobody may subscribe to.
    pub no_subscribe: Vec<String>,
    /// Which Kafka topic an MQTT topic is.
    pub map: TopicMap,
    /// What all clients of this listener together may use.
    pub limits: Limits,
}

/// `[[mqtt.listener]]`: another address that MQTT clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// MQTT over WebSocket.
    pub websocket: bool,
    /// Its certificate; `None`: plain text.
    pub tls: Option<ListenerTls>,
    /// What all its clients together may use; its connections are among the `max_connections` of all.
    pub limits: Limits,
}

pub(super) fn mqtt(mut section: Section) -> Option<MqttConfig> {
    let overflow = [
        ("drop-newest", Overflow::DropNewest),
        ("drop-oldest", Overflow::DropOldest),
        ("disconnect", Overflow::Disconnect),
    ];
    let packet = ByteSize::kib(1)..=ByteSize::mib(16);
    let keep_alive = Span::secs(1)..=Span::hours(18);
    let expiry = Span::secs(1)..=Span::days(3_650);
    let queue = ByteSize::kib(16)..=ByteSize::mib(64);
    // the longest filter has one byte less
    let filters = ByteSize::kib(64)..=ByteSize::mib(64);
    let memory = ByteSize::mib(1)..=ByteSize::gib(16);
    let retained = ByteSize::kib(16)..=ByteSize::gib(1);
    let enabled = section.flag("enabled", true);
    let config = MqttConfig {
        listen: section.parsed("listen", super::read::loopback(PORT)),
        listeners: section
            .sections("listener")
            .into_iter()
            .filter_map(listener)
            .collect(),
        max_connections: section.number("max_connections", 10_000_u32, 1..=1_000_000) as usize,
        max_sessions: section.number("max_sessions", 20_000_u32, 1..=1_000_000) as usize,
        max_packet: section.size("max_packet", ByteSize::mib(1), packet),
        receive_maximum: section.number("receive_maximum", 256, 1..=65_535),
        max_inflight: section.number("max_inflight", 64, 1..=1_000),
        max_keep_alive: section.span_limit("max_keep_alive", None, keep_alive),
        max_session_expiry: section.span_limit(
            "max_session_expiry",
            Some(DEFAULT_MAX_SESSION_EXPIRY),
            expiry,
        ),
        queue_messages: section.number("queue_messages", 1_000_u32, 10..=100_000) as usize,
        queue_bytes: section.size("queue_bytes", ByteSize::mib(1), queue),
        delivery_bytes: section.size("delivery_bytes", ByteSize::mib(16), memory.clone()),
        partial_bytes: section.size("partial_bytes", ByteSize::mib(8), memory),
        overflow: section.choice("overflow", Overflow::DropNewest, &overflow),
        max_subscriptions: section.number("max_subscriptions", 1_000_u32, 1..=100_000) as usize,
        filter_bytes: section.size("filter_bytes", ByteSize::kib(256), filters),
        retained_messages: section.number("retained_messages", 10_000_u32, 1..=1_000_000) as usize,
        retained_bytes: section.size("retained_bytes", ByteSize::mib(16), retained),
        publish_rate: Some(section.number("publish_rate", 0, 0..=1_000_000))
            .filter(|rate| *rate > 0),
        no_subscribe: section.list("no_subscribe", Vec::new()),
        map: map(&mut section),
        limits: byte_rates(&mut section),
    };
    enabled.then_some(config)
}

fn listener(mut section: Section) -> Option<MqttListener> {
    let listen = section.required::<SocketAddr>("listen", "\"0.0.0.0:8083\"");
    let websocket = section.flag("websocket", false);
    let tls = super::read::listener_tls(&mut section);
    let is_limited = section.has("max_connections");
    let max_connections =
        is_limited.then(|| section.number("max_connections", 1_000_000, 1..=1_000_000));
    let limits = Limits {
        max_connections,
        ..byte_rates(&mut section)
    };
    Some(MqttListener {
        listen: listen?,
        websocket,
        tls,
        limits,
    })
}

fn map(section: &mut Section) -> TopicMap {
    let name = section.parsed("default_topic", DefaultTopic::default());
    let mut sections = section.sections("map");
    let rules: Vec<_> = sections.iter_mut().map(rule).collect();
    // a rule that can't be read has its own problem
    let is_whole = rules.iter().all(Option::is_some);
    let map = TopicMap::new(rules.into_iter().flatten().collect(), name.0);
    match map {
        Ok(map) => map,
        Err(error) => {
            let at = sections.get_mut(error.rule()).filter(|_| is_whole);
            if let Some(rule) = at {
                rule.problem(error.key(), error.to_string());
            }
            TopicMap::nothing()
        }
    }
}

fn rule(section: &mut Section) -> Option<Rule> {
    let qos = [
        ("at-most-once", Qos::AtMostOnce),
        ("at-least-once", Qos::AtLeastOnce),
        ("exactly-once", Qos::ExactlyOnce),
    ];
    let retain = [
        ("as-published", RetainRule::AsPublished),
        ("always", RetainRule::Always),
        ("never", RetainRule::Never),
    ];
    let ack = [
        ("after-sync", AckRule::AfterSync),
        ("before-sync-may-lose", AckRule::BeforeSync),
    ];
    let filter = section.required::<String>("mqtt", "\"plant/+/temperature\"");
    let kafka = section.required::<TopicText>("kafka", "\"temperature\"");
    let key = section.parsed::<Template>("key", Template::topic_itself());
    let topic = section.optional::<Template>("topic");
    let qos = section.choice("qos", Qos::AtLeastOnce, &qos);
    let retain = section.choice("retain", RetainRule::AsPublished, &retain);
    let ack = section.choice("ack", AckRule::AfterSync, &ack);
    Some(Rule {
        filter: filter?,
        kafka: kafka?.0,
        key,
        topic,
        qos,
        retain,
        ack,
    })
}

struct TopicText(TopicName);

impl std::str::FromStr for TopicText {
    type Err = shared::ids::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TopicName::new(text).map(Self)
    }
}

/// A topic, or `""` for none.
struct DefaultTopic(Option<TopicName>);

impl Default for DefaultTopic {
    fn default() -> Self {
        Self(TopicName::new(DEFAULT_TOPIC).ok())
    }
}

impl std::str::FromStr for DefaultTopic {
    type Err = shared::ids::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        TopicName::new(text).map(|name| Self(Some(name)))
    }
}
