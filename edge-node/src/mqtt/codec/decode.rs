//! Packets of clients, checked.

use std::sync::Arc;

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::{
    PropertiesParse as _, Property, Qos as CrateQos, RetainHandling as CrateRetainHandling,
    SubEntry, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::text::{check_texts, text};
use crate::mqtt::frame::Frame;
use crate::mqtt::packet::{
    AckKind, Connect, Incoming, Message, MessageProperties, Options, Publish, Qos, RetainHandling,
    Version, Will, reason,
};

/// Levels of a topic or filter; the tree of subscriptions is as deep.
const MAX_LEVELS: usize = 128;
/// Filters of one SUBSCRIBE or UNSUBSCRIBE.
const MAX_FILTERS: usize = 1_000;
/// User properties of one message.
const MAX_USER_PROPERTIES: usize = 256;

/// The value of the first property of one kind.
macro_rules! find {
    ($properties:expr, $kind:ident) => {
        $properties.iter().find_map(|property| match property {
            Property::$kind(value) => Some(value.val()),
            _ => None,
        })
    };
}

/// Why a packet ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Malformed {
    /// For MQTT 5's DISCONNECT or CONNACK.
    pub reason: u8,
    /// For the log.
    pub what: &'static str,
}

impl Malformed {
    const fn new(what: &'static str) -> Self {
        Self {
            reason: reason::MALFORMED,
            what,
        }
    }

    const fn protocol(what: &'static str) -> Self {
        Self {
            reason: reason::PROTOCOL_ERROR,
            what,
        }
    }
}

impl From<MqttError> for Malformed {
    fn from(error: MqttError) -> Self {
        let reason = u8::try_from(error as u16).ok().filter(|code| *code >= 0x80);
        Self {
            reason: reason.unwrap_or(reason::MALFORMED),
            what: "a packet that does not follow the protocol",
        }
    }
}

/// The version that a CONNECT asks for.
///
/// # Errors
/// [`Malformed`] when it is not a CONNECT of MQTT, or of a version that is not served.
pub fn connect_version((first, body): &Frame) -> Result<Version, Malformed> {
    if *first != 0x10 {
        return Err(Malformed::protocol("the first packet is not CONNECT"));
    }
    match (body.get(..6), body.get(6)) {
        (Some(b"\x00\x04MQTT"), Some(4)) => Ok(Version::V3),
        (Some(b"\x00\x04MQTT"), Some(5)) => Ok(Version::V5),
        (Some(b"\x00\x04MQTT"), Some(_)) | (Some(b"\x00\x06MQIs"), _) => Err(Malformed {
            reason: reason::UNSUPPORTED_VERSION,
            what: "a version of MQTT other than 3.1.1 and 5",
        }),
        _ => Err(Malformed::protocol("not MQTT")),
    }
}

/// A packet of a client.
///
/// # Errors
/// [`Malformed`].
pub fn decode(version: Version, (first, body): &Frame, now_ms: i64) -> Result<Incoming, Malformed> {
    let (kind, flags) = (first >> 4, first & 0x0f);
    let expected = match kind {
        3 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != expected {
        return Err(Malformed::new("reserved flags are set"));
    }
    match (kind, version) {
        (1, Version::V3) => connect_v3(body, now_ms),
        (1, Version::V5) => connect_v5(body, now_ms),
        (3, _) => publish(version, flags, body, now_ms),
        (4..=7, _) => ack(version, kind, body),
        (8, _) => subscribe(version, body),
        (10, _) => unsubscribe(version, body),
        (12, _) if body.is_empty() => Ok(Incoming::PingReq),
        (14, Version::V3) if body.is_empty() => Ok(Incoming::Disconnect {
            reason: reason::SUCCESS,
            session_expiry_s: None,
        }),
        (14, Version::V5) => disconnect(body),
        (15, Version::V5) => Ok(Incoming::Auth),
        _ => Err(Malformed::protocol("a packet that clients do not send")),
    }
}

/// All of `body` must be the packet.
fn whole<T>(body: &[u8], parsed: Result<(T, usize), MqttError>) -> Result<T, Malformed> {
    let (packet, used) = parsed?;
    if used != body.len() {
        return Err(Malformed::new("bytes after the end of a packet"));
    }
    Ok(packet)
}

/// Flags that the crate does not look at (MQTT 3.1.1 and 5, section 3.1.2.3).
fn check_connect_flags(version: Version, body: &[u8]) -> Result<(), Malformed> {
    let flags = *body.get(7).ok_or(Malformed::new("CONNECT is too short"))?;
    let (has_will, will_qos, will_retain) = (flags & 4 != 0, flags >> 3 & 3, flags & 0x20 != 0);
    if flags & 1 != 0 {
        return Err(Malformed::new("the reserved flag of CONNECT is set"));
    }
    if will_qos == 3 || (!has_will && (will_qos != 0 || will_retain)) {
        return Err(Malformed::new(
            "the flags of the will contradict each other",
        ));
    }
    if version == Version::V3 && flags & 0xc0 == 0x40 {
        return Err(Malformed::new("a password without a user name"));
    }
    Ok(())
}

fn connect_v3(body: &[u8], now_ms: i64) -> Result<Incoming, Malformed> {
    check_connect_flags(Version::V3, body)?;
    let packet = whole(body, v3_1_1::Connect::parse(body))?;
    let will = match packet.will_topic() {
        None => None,
        Some(topic) => Some(Will {
            message: Message {
                topic: valid_topic(topic)?,
                payload: Bytes::copy_from_slice(packet.will_payload().unwrap_or_default()),
                qos: qos_of(packet.will_qos()),
                retain: packet.will_retain(),
                published_ms: now_ms,
                properties: None,
                from: None,
            },
            delay_s: 0,
        }),
    };
    Ok(Incoming::Connect(Box::new(Connect {
        version: Version::V3,
        client_id: text(packet.client_id())?.to_owned(),
        clean_start: packet.clean_session(),
        keep_alive_s: packet.keep_alive(),
        will,
        user: user_name(packet.user_name())?,
        password: packet.password().map(Bytes::copy_from_slice),
        session_expiry_s: if packet.clean_session() { 0 } else { u32::MAX },
        receive_maximum: u16::MAX,
        max_packet_bytes: None,
        topic_alias_maximum: 0,
        wants_response_information: false,
        wants_problem_information: false,
        has_authentication: false,
    })))
}

fn connect_v5(body: &[u8], now_ms: i64) -> Result<Incoming, Malformed> {
    check_connect_flags(Version::V5, body)?;
    let packet = whole(body, v5_0::Connect::parse(body))?;
    let will = match packet.will_topic() {
        None => None,
        Some(topic) => Some(Will {
            message: Message {
                topic: valid_topic(topic)?,
                payload: Bytes::copy_from_slice(packet.will_payload().unwrap_or_default()),
                qos: qos_of(packet.will_qos()),
                retain: packet.will_retain(),
                published_ms: now_ms,
                properties: message_properties(packet.will_props())?,
                from: None,
            },
            delay_s: find!(packet.will_props(), WillDelayInterval).unwrap_or(0),
        }),
    };
    let properties = packet.props();
    check_texts(properties)?;
    Ok(Incoming::Connect(Box::new(Connect {
        version: Version::V5,
        client_id: text(packet.client_id())?.to_owned(),
        clean_start: packet.clean_start(),
        keep_alive_s: packet.keep_alive(),
        will,
        user: user_name(packet.user_name())?,
        password: packet.password().map(Bytes::copy_from_slice),
        session_expiry_s: find!(properties, SessionExpiryInterval).unwrap_or(0),
        receive_maximum: find!(properties, ReceiveMaximum).unwrap_or(u16::MAX),
        max_packet_bytes: find!(properties, MaximumPacketSize),
        topic_alias_maximum: find!(properties, TopicAliasMaximum).unwrap_or(0),
        wants_response_information: find!(properties, RequestResponseInformation) == Some(1),
        wants_problem_information: find!(properties, RequestProblemInformation) != Some(0),
        has_authentication: find!(properties, AuthenticationMethod).is_some(),
    })))
}

fn user_name(name: Option<&str>) -> Result<Option<String>, Malformed> {
    name.map(|name| text(name).map(str::to_owned)).transpose()
}

fn qos_of(qos: CrateQos) -> Qos {
    match qos {
        CrateQos::AtMostOnce => Qos::AtMostOnce,
        CrateQos::AtLeastOnce => Qos::AtLeastOnce,
        CrateQos::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn message_properties(
    properties: &[Property],
) -> Result<Option<Box<MessageProperties>>, Malformed> {
    check_texts(properties)?;
    let mut found = MessageProperties {
        payload_format: find!(properties, PayloadFormatIndicator),
        expiry_s: find!(properties, MessageExpiryInterval),
        content_type: find!(properties, ContentType).map(Box::from),
        response_topic: find!(properties, ResponseTopic).map(Box::from),
        correlation: find!(properties, CorrelationData).map(Bytes::copy_from_slice),
        user: Vec::new(),
    };
    if let Some(topic) = &found.response_topic
        && !is_valid_topic(topic)
    {
        return Err(Malformed::protocol("a response topic with wildcards"));
    }
    for property in properties {
        if let Property::UserProperty(pair) = property {
            found.user.push((pair.key().into(), pair.val().into()));
        }
    }
    if found.user.len() > MAX_USER_PROPERTIES {
        return Err(Malformed {
            reason: reason::QUOTA_EXCEEDED,
            what: "too many user properties",
        });
    }
    let is_empty = found == MessageProperties::default();
    Ok((!is_empty).then(|| Box::new(found)))
}

fn publish(version: Version, flags: u8, body: &Bytes, now_ms: i64) -> Result<Incoming, Malformed> {
    let copy: Arc<[u8]> = Arc::from(&body[..]);
    let (topic, qos, id, payload_len, properties, alias) = match version {
        Version::V3 => {
            let packet = whole(body, v3_1_1::Publish::parse(flags, copy))?;
            let payload = packet.payload().as_slice().len();
            let topic = valid_topic(packet.topic_name())?;
            (topic, packet.qos(), packet.packet_id(), payload, None, None)
        }
        Version::V5 => {
            let packet = whole(body, v5_0::Publish::parse(flags, copy))?;
            let properties = packet.props();
            let alias = find!(properties, TopicAlias);
            if properties
                .iter()
                .any(|p| matches!(p, Property::SubscriptionIdentifier(_)))
            {
                return Err(Malformed::protocol(
                    "a PUBLISH with a subscription identifier",
                ));
            }
            let topic = match packet.topic_name() {
                "" if alias.is_some() => Arc::from(""),
                topic => valid_topic(topic)?,
            };
            let payload = packet.payload().as_slice().len();
            let properties = message_properties(properties)?;
            (
                topic,
                packet.qos(),
                packet.packet_id(),
                payload,
                properties,
                alias,
            )
        }
    };
    let (qos, dup) = (qos_of(qos), flags & 8 != 0);
    let id = id.unwrap_or(0);
    if qos == Qos::AtMostOnce && dup {
        return Err(Malformed::protocol("a PUBLISH of QoS 0 that is sent again"));
    }
    if qos != Qos::AtMostOnce && id == 0 {
        return Err(Malformed::protocol("packet id 0"));
    }
    let payload = body.slice(body.len() - payload_len..);
    let is_text = properties
        .as_ref()
        .is_some_and(|p| p.payload_format == Some(1));
    if is_text && std::str::from_utf8(&payload).is_err() {
        return Err(Malformed {
            reason: reason::PAYLOAD_FORMAT_INVALID,
            what: "a payload that is not the UTF-8 that it says it is",
        });
    }
    Ok(Incoming::Publish(Box::new(Publish {
        message: Message {
            topic,
            payload,
            qos,
            retain: flags & 1 != 0,
            published_ms: now_ms,
            properties,
            from: None,
        },
        id,
        dup,
        alias,
    })))
}

fn ack(version: Version, kind: u8, body: &[u8]) -> Result<Incoming, Malformed> {
    let kind = match kind {
        4 => AckKind::PubAck,
        5 => AckKind::PubRec,
        6 => AckKind::PubRel,
        _ => AckKind::PubComp,
    };
    let (id, rest) = body
        .split_at_checked(2)
        .ok_or(Malformed::new("an acknowledgement without its id"))?;
    let id = u16::from_be_bytes([id[0], id[1]]);
    let (reason, properties) = rest.split_first().unwrap_or((&reason::SUCCESS, &[]));
    if id == 0 || (version == Version::V3 && !rest.is_empty()) {
        return Err(Malformed::new("a malformed acknowledgement"));
    }
    if !properties.is_empty() {
        check_texts(&whole(properties, Vec::<Property>::parse(properties))?)?;
    }
    Ok(Incoming::Ack {
        kind,
        id,
        reason: *reason,
    })
}

fn subscribe(version: Version, body: &[u8]) -> Result<Incoming, Malformed> {
    let (id, entries, identifier) = match version {
        Version::V3 => {
            let packet = whole(body, v3_1_1::Subscribe::parse(body))?;
            (packet.packet_id(), packet.entries().clone(), None)
        }
        Version::V5 => {
            let packet = whole(body, v5_0::Subscribe::parse(body))?;
            check_texts(packet.props())?;
            let identifier = find!(packet.props(), SubscriptionIdentifier);
            (packet.packet_id(), packet.entries().clone(), identifier)
        }
    };
    check_request(id, entries.len())?;
    let filters = entries
        .iter()
        .map(|entry| subscription(version, entry, identifier));
    Ok(Incoming::Subscribe {
        id,
        filters: filters.collect::<Result<_, _>>()?,
    })
}

fn check_request(id: u16, filters: usize) -> Result<(), Malformed> {
    if id == 0 || filters == 0 {
        return Err(Malformed::protocol("packet id 0, or no filters"));
    }
    if filters > MAX_FILTERS {
        return Err(Malformed {
            reason: reason::QUOTA_EXCEEDED,
            what: "too many filters in one packet",
        });
    }
    Ok(())
}

fn subscription(
    version: Version,
    entry: &SubEntry,
    identifier: Option<u32>,
) -> Result<(String, Options), Malformed> {
    let options = entry.sub_opts();
    let filter = text(entry.topic_filter())?;
    let options = match version {
        Version::V3 => Options {
            qos: qos_of(options.qos()),
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Always,
            identifier: None,
        },
        Version::V5 => Options {
            qos: qos_of(options.qos()),
            no_local: options.nl(),
            retain_as_published: options.rap(),
            retain_handling: match options.rh() {
                CrateRetainHandling::SendRetained => RetainHandling::Always,
                CrateRetainHandling::SendRetainedIfNotExists => RetainHandling::IfNew,
                CrateRetainHandling::DoNotSendRetained => RetainHandling::Never,
            },
            identifier,
        },
    };
    if options.no_local && filter.starts_with("$share/") {
        return Err(Malformed::protocol("a shared subscription with no-local"));
    }
    Ok((filter.to_owned(), options))
}

fn unsubscribe(version: Version, body: &[u8]) -> Result<Incoming, Malformed> {
    let (id, entries) = match version {
        Version::V3 => {
            let packet = whole(body, v3_1_1::Unsubscribe::parse(body))?;
            (packet.packet_id(), packet.entries().clone())
        }
        Version::V5 => {
            let packet = whole(body, v5_0::Unsubscribe::parse(body))?;
            check_texts(packet.props())?;
            (packet.packet_id(), packet.entries().clone())
        }
    };
    let filters = entries
        .iter()
        .map(|filter| text(filter.as_str()).map(str::to_owned));
    let filters: Vec<String> = filters.collect::<Result<_, _>>()?;
    check_request(id, filters.len())?;
    Ok(Incoming::Unsubscribe { id, filters })
}

fn disconnect(body: &[u8]) -> Result<Incoming, Malformed> {
    let packet = whole(body, v5_0::Disconnect::parse(body))?;
    let properties = packet.props().as_deref().unwrap_or_default();
    check_texts(properties)?;
    Ok(Incoming::Disconnect {
        reason: body.first().copied().unwrap_or(reason::SUCCESS),
        session_expiry_s: find!(properties, SessionExpiryInterval),
    })
}

fn valid_topic(topic: &str) -> Result<Arc<str>, Malformed> {
    if !is_valid_topic(text(topic)?) {
        return Err(Malformed {
            reason: reason::TOPIC_INVALID,
            what: "not a topic that may be published to",
        });
    }
    Ok(Arc::from(topic))
}

/// Whether messages may have this topic.
#[must_use]
pub fn is_valid_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0']) && is_short(topic)
}

/// Whether this is a filter (of a shared subscription: what follows its name).
#[must_use]
pub fn is_valid_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    let mut is_valid = !filter.is_empty() && !filter.contains('\0') && is_short(filter);
    while let Some(level) = levels.next() {
        is_valid &= match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            level => !level.contains(['+', '#']),
        };
    }
    is_valid
}

fn is_short(topic: &str) -> bool {
    topic.len() <= usize::from(u16::MAX)
        && topic.bytes().filter(|b| *b == b'/').count() < MAX_LEVELS
}
