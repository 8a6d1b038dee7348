//! What MQTT packets say, whatever their version. Plain values.

use std::sync::Arc;

use bytes::Bytes;

/// The protocol that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1 (protocol level 4).
    V3,
    /// MQTT 5 (protocol level 5).
    V5,
}

/// How often a message may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(clippy::enum_variant_names, reason = "the specification's names")]
pub enum Qos {
    /// At most once.
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl Qos {
    /// From its number.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::AtMostOnce => 0,
            Self::AtLeastOnce => 1,
            Self::ExactlyOnce => 2,
        }
    }
}

/// An application message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published; not empty once aliases are resolved.
    pub topic: Arc<str>,
    /// Any bytes.
    pub payload: Bytes,
    /// The publisher's.
    pub qos: Qos,
    /// The publisher's.
    pub retain: bool,
    /// When it was published, wall clock, ms: what its expiry counts from.
    pub published_ms: i64,
    /// MQTT 5's; boxed because most messages have none.
    pub properties: Option<Box<MessageProperties>>,
    /// The publisher's client id, when it asked not to get its own messages back.
    pub from: Option<Box<str>>,
}

/// MQTT 5's properties of a message that travel to its subscribers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageProperties {
    /// 1: the payload is UTF-8.
    pub payload_format: Option<u8>,
    /// Seconds after which nobody wants it.
    pub expiry_s: Option<u32>,
    /// What the payload is.
    pub content_type: Option<Box<str>>,
    /// Where an answer is expected.
    pub response_topic: Option<Box<str>>,
    /// What the answer must carry.
    pub correlation: Option<Bytes>,
    /// In their order; names may repeat.
    pub user: Vec<(Box<str>, Box<str>)>,
}

impl Message {
    /// Seconds that it still has; `Some(0)`: it is too old. `None`: it never is.
    #[must_use]
    pub fn left_s(&self, now_ms: i64) -> Option<u32> {
        let expiry = self.properties.as_ref()?.expiry_s?;
        let age_ms = now_ms.saturating_sub(self.published_ms).max(0);
        let age_s = u32::try_from(age_ms / 1000).unwrap_or(u32::MAX);
        Some(expiry.saturating_sub(age_s))
    }

    /// True when nobody wants it any more.
    #[must_use]
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.left_s(now_ms) == Some(0)
    }

    /// About the bytes that it holds in memory.
    #[must_use]
    pub fn weight(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |properties| {
            let user = properties.user.iter();
            let user: usize = user
                .map(|(name, value)| name.len() + value.len() + 32)
                .sum();
            let texts = [&properties.content_type, &properties.response_topic];
            let texts: usize = texts
                .iter()
                .map(|text| text.as_ref().map_or(0, |t| t.len()))
                .sum();
            128 + user + texts + properties.correlation.as_ref().map_or(0, Bytes::len)
        });
        96 + self.topic.len() + self.payload.len() + properties
    }
}

/// A client's CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// What it speaks.
    pub version: Version,
    /// Empty: the broker chooses.
    pub client_id: String,
    /// An earlier session is thrown away.
    pub clean_start: bool,
    /// Seconds; 0: none.
    pub keep_alive_s: u16,
    /// Published when the connection ends without a DISCONNECT.
    pub will: Option<Will>,
    /// Who it says it is.
    pub user: Option<String>,
    /// What proves it.
    pub password: Option<Bytes>,
    /// Seconds that the session outlives the connection; `u32::MAX`: for ever. MQTT 3.1.1: 0 with a
    /// clean session, for ever without.
    pub session_expiry_s: u32,
    /// QoS 1 and 2 messages that it takes at a time.
    pub receive_maximum: u16,
    /// Largest packet that it takes.
    pub max_packet_bytes: Option<u32>,
    /// Topic aliases that it takes.
    pub topic_alias_maximum: u16,
    /// It asks for CONNACK's response information.
    pub wants_response_information: bool,
    /// Reason strings and user properties may be sent with any packet.
    pub wants_problem_information: bool,
    /// It asks for an enhanced authentication, which is not served.
    pub has_authentication: bool,
}

/// A message that is published for a client that went away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// What is published.
    pub message: Message,
    /// Seconds to wait for the client to return.
    pub delay_s: u32,
}

/// A client's PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The message; its topic is empty when an alias stands for it.
    pub message: Message,
    /// 0 with QoS 0.
    pub id: u16,
    /// It may have been sent before.
    pub dup: bool,
    /// MQTT 5's topic alias.
    pub alias: Option<u16>,
}

/// How a subscription wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// At most so often.
    pub qos: Qos,
    /// Not what the client itself published.
    pub no_local: bool,
    /// The retain flag as published, instead of "this was stored".
    pub retain_as_published: bool,
    /// Whether retained messages are sent on SUBSCRIBE.
    pub retain_handling: RetainHandling,
    /// MQTT 5's subscription identifier.
    pub identifier: Option<u32>,
}

/// Whether retained messages are sent on SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainHandling {
    /// Always.
    Always,
    /// When the subscription is a new one.
    IfNew,
    /// Never.
    Never,
}

/// One of the four packets that acknowledge a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the specification's names")]
pub enum AckKind {
    /// QoS 1: done.
    PubAck,
    /// QoS 2: the receiver has it.
    PubRec,
    /// QoS 2: the sender forgot it.
    PubRel,
    /// QoS 2: done.
    PubComp,
}

/// What a client may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// CONNECT.
    Connect(Box<Connect>),
    /// PUBLISH.
    Publish(Box<Publish>),
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    Ack {
        /// Which of them.
        kind: AckKind,
        /// The PUBLISH that it is about.
        id: u16,
        /// The reason code; 0x80 and above: an error.
        reason: u8,
    },
    /// SUBSCRIBE.
    Subscribe {
        /// For the answer.
        id: u16,
        /// At least one.
        filters: Vec<(String, Options)>,
    },
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// For the answer.
        id: u16,
        /// At least one.
        filters: Vec<String>,
    },
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect {
        /// 4: the will is wanted all the same.
        reason: u8,
        /// Another session expiry than CONNECT's.
        session_expiry_s: Option<u32>,
    },
    /// AUTH: not served.
    Auth,
}

/// Reason codes that this broker gives (MQTT 5, section 2.4).
pub mod reason {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const SUCCESS: u8 = 0x00;
    pub const DISCONNECT_WITH_WILL: u8 = 0x04;
    pub const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub const UNSPECIFIED: u8 = 0x80;
    pub const MALFORMED: u8 = 0x81;
    pub const PROTOCOL_ERROR: u8 = 0x82;
    pub const UNSUPPORTED_VERSION: u8 = 0x84;
    pub const CLIENT_ID_INVALID: u8 = 0x85;
    pub const BAD_CREDENTIALS: u8 = 0x86;
    pub const NOT_AUTHORIZED: u8 = 0x87;
    pub const SERVER_BUSY: u8 = 0x89;
    pub const SERVER_SHUTTING_DOWN: u8 = 0x8b;
    pub const BAD_AUTHENTICATION_METHOD: u8 = 0x8c;
    pub const KEEP_ALIVE_TIMEOUT: u8 = 0x8d;
    pub const SESSION_TAKEN_OVER: u8 = 0x8e;
    pub const FILTER_INVALID: u8 = 0x8f;
    pub const TOPIC_INVALID: u8 = 0x90;
    pub const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
    pub const TOPIC_ALIAS_INVALID: u8 = 0x94;
    pub const PACKET_TOO_LARGE: u8 = 0x95;
    pub const QUOTA_EXCEEDED: u8 = 0x97;
    pub const PAYLOAD_FORMAT_INVALID: u8 = 0x99;
}
