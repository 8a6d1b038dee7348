//! MQTT 3.1.1 and 5: to a sensor the site is a broker, and what it publishes is a record.
//!
//! ```text
//! PUBLISH ─► topic map ─► gatherer ─► door ─► log ─► tail ─► filters ─► session's queue ─► PUBLISH
//!                                       │              ▲
//!                           PUBACK ◄────┘ synced       │ records of Kafka and HTTP producers
//! ```
//! There is one set of records. A message becomes a record of the Kafka topic that the [`topic_map`] names,
//! and subscribers are served from the log: so they get what any protocol wrote, what waits for a client
//! that is away is a place in the log, and it outlives a crash.
//!
//! Always true: PUBACK and PUBREC are sent after the record's sync; the packet id of a message of QoS 2 is
//! written with its record; a subscriber gets what is produced after its SUBACK, once however many of its
//! filters match.
//!
//! [`frame`], [`packet`], [`codec`], [`filters`], [`topic_map`], [`record`], [`retained`], [`inflight`],
//! [`session`], [`away`] and [`saved`] are plain code. [`broker`] is what the connections share, [`conn`] one of
//! them, [`tail`] follows the log, [`gather`] makes batches.
//!
//! Deliberately not done here: enhanced authentication (AUTH), MQTT 3.1, bridges.

pub mod away;
pub mod broker;
pub mod codec;
mod conn;
pub mod filters;
pub mod frame;
pub mod gather;
pub mod inflight;
mod listener;
pub mod packet;
pub mod record;
pub mod retained;
pub mod saved;
pub mod session;
pub mod tail;
#[cfg(test)]
mod tests;
pub mod topic_map;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use listener::Listener;
pub use topic_map::{AckRule, MapError, RetainRule, Rule, Template, TopicMap};

use shared::tls::TlsError;

use crate::access::{Access, RefusedLogins};
use crate::config;
use crate::ingest::Ingest;
use crate::quota::Quota;
use crate::store::Store;
use crate::tls::Acceptor;
use retained::RetainedLimits;
use session::{Overflow, SessionLimits};

/// Largest packet before a client is known.
const MAX_CONNECT_PACKET: usize = 128 * 1024;

/// What of the node MQTT works with.
#[derive(Debug, Clone)]
pub struct Services {
    /// The log.
    pub store: Arc<dyn Store>,
    /// The way into it.
    pub ingest: Ingest,
    /// Users and their rules.
    pub access: Arc<Access>,
    /// Counters.
    pub stats: Arc<MqttStats>,
}

/// What MQTT is spoken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A connection's bytes as they are.
    Tcp,
    /// Binary messages of WebSocket.
    WebSocket,
}

/// One address that clients connect to.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where.
    pub bind: SocketAddr,
    /// Over what.
    pub transport: Transport,
    /// What TLS is accepted with; `None`: plain text.
    pub tls: Option<Arc<Acceptor>>,
    /// What all its clients together may use.
    pub quota: Arc<Quota>,
    /// Tells of logins that were refused there.
    pub refused: Arc<RefusedLogins>,
}

impl Endpoint {
    /// MQTT over TCP in plain text.
    #[must_use]
    pub fn plain(bind: SocketAddr) -> Self {
        Self {
            bind,
            transport: Transport::Tcp,
            tls: None,
            quota: Arc::default(),
            refused: Arc::new(RefusedLogins::new("mqtt", bind)),
        }
    }

    fn from_file(file: &config::MqttListener) -> Result<Self, TlsError> {
        let tls = file.tls.clone().map(Acceptor::load).transpose()?;
        Ok(Self {
            bind: file.listen,
            transport: if file.websocket {
                Transport::WebSocket
            } else {
                Transport::Tcp
            },
            tls: tls.map(Arc::new),
            quota: Arc::new(Quota::new(file.limits)),
            refused: Arc::new(RefusedLogins::new("mqtt", file.listen)),
        })
    }
}

/// The listeners' settings.
#[derive(Debug, Clone)]
pub struct MqttConfig {
    /// Where MQTT is spoken, and over what.
    pub endpoints: Vec<Endpoint>,
    /// Open connections, over all listeners.
    pub max_connections: usize,
    /// Sessions, with those whose clients are away.
    pub max_sessions: usize,
    /// Largest packet.
    pub max_packet: usize,
    /// From the connection to CONNECT.
    pub connect_timeout: Duration,
    /// For a packet that has begun to come.
    pub packet_timeout: Duration,
    /// For a client that takes nothing of what is sent.
    pub write_timeout: Duration,
    /// How long a client may hold a part of what all share without getting on, while others wait; and a second for each
    /// 64 KiB.
    pub patience: Duration,
    /// Publishes of QoS 1 and 2 of one client that are not yet done.
    pub receive_maximum: u16,
    /// Messages of QoS 1 and 2 on their way to one client.
    pub max_inflight: usize,
    /// Topic aliases of one client, each way.
    pub topic_aliases: u16,
    /// Longest keep-alive, seconds; clients of MQTT 5 are told.
    pub max_keep_alive_s: Option<u16>,
    /// Longest life of a session without a connection, seconds.
    pub max_session_expiry_s: u32,
    /// Bounds of each session.
    pub session: SessionLimits,
    /// Bytes of packets that have not wholly come, over all clients, beyond 16 KiB of each.
    pub partial_bytes: usize,
    /// Bytes of messages that wait in memory for clients to take them, over all clients, beyond 32 KiB of each.
    pub delivery_bytes: usize,
    /// Bounds of what is retained.
    pub retained: RetainedLimits,
    /// Messages a second that one client may publish; `None`: no limit.
    pub publish_rate: Option<u32>,
    /// Filters that nobody may subscribe to.
    pub no_subscribe: Vec<String>,
    /// Time to answer what is in flight on stop.
    pub drain_timeout: Duration,
}

impl MqttConfig {
    /// The file's settings, with defaults for what it doesn't name. Reads the certificates: blocks.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn from_file(file: &config::MqttConfig) -> Result<Self, TlsError> {
        let mut endpoints = vec![Endpoint {
            quota: Arc::new(Quota::new(file.limits)),
            ..Endpoint::plain(file.listen)
        }];
        for listener in &file.listeners {
            endpoints.push(Endpoint::from_file(listener)?);
        }
        let overflow = file.overflow;
        Ok(Self {
            endpoints,
            max_connections: file.max_connections,
            max_sessions: file.max_sessions,
            max_packet: file.max_packet.as_usize(),
            receive_maximum: file.receive_maximum,
            max_inflight: usize::from(file.max_inflight),
            max_keep_alive_s: file
                .max_keep_alive
                .map(|span| u16::try_from(span.as_millis() / 1000).unwrap_or(u16::MAX)),
            max_session_expiry_s: file.max_session_expiry.map_or(u32::MAX, |span| {
                u32::try_from(span.as_millis() / 1000).unwrap_or(u32::MAX)
            }),
            session: SessionLimits {
                queue_messages: file.queue_messages,
                queue_bytes: file.queue_bytes.as_usize(),
                overflow,
                subscriptions: file.max_subscriptions,
                filter_bytes: file.filter_bytes.as_usize(),
            },
            partial_bytes: file.partial_bytes.as_usize(),
            delivery_bytes: file.delivery_bytes.as_usize(),
            retained: RetainedLimits {
                entries: file.retained_messages,
                bytes: file.retained_bytes.as_usize(),
            },
            publish_rate: file.publish_rate,
            no_subscribe: file.no_subscribe.clone(),
            ..Self::new(file.listen)
        })
    }

    /// Defaults for a listener at `bind`.
    #[must_use]
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            endpoints: vec![Endpoint::plain(bind)],
            max_connections: 10_000,
            max_sessions: 20_000,
            max_packet: 1024 * 1024,
            connect_timeout: Duration::from_secs(10),
            packet_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            patience: Duration::from_secs(5),
            receive_maximum: 256,
            max_inflight: 64,
            topic_aliases: 16,
            max_keep_alive_s: None,
            max_session_expiry_s: 7 * 24 * 3600,
            session: SessionLimits {
                queue_messages: 1_000,
                queue_bytes: 1024 * 1024,
                overflow: Overflow::DropNewest,
                subscriptions: 1_000,
                filter_bytes: 256 * 1024,
            },
            // a small box has 64 MiB for the whole process
            partial_bytes: 8 * 1024 * 1024,
            delivery_bytes: 16 * 1024 * 1024,
            retained: RetainedLimits {
                entries: 10_000,
                bytes: 16 * 1024 * 1024,
            },
            publish_rate: None,
            no_subscribe: Vec::new(),
            drain_timeout: Duration::from_secs(10),
        }
    }

    fn max_connect_packet(&self) -> usize {
        // a will may be as long as its length says
        self.max_packet.min(MAX_CONNECT_PACKET)
    }
}

/// Counters, for metrics.
#[derive(Debug, Default)]
pub struct MqttStats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open.
    pub open: AtomicU64,
    /// Connections refused at a listener's limit, at their user's, or at that of sessions.
    pub refused_connections: AtomicU64,
    /// Connections ended by an error: garbage, too slow, a broken socket.
    pub failed: AtomicU64,
    /// Clients that have their session.
    pub connected: AtomicU64,
    /// Messages received.
    pub publishes: AtomicU64,
    /// Messages sent.
    pub deliveries: AtomicU64,
    /// Messages received and not stored.
    pub refused: AtomicU64,
    /// Messages not sent to a client that did not keep up, or does not take packets of their size.
    pub dropped: AtomicU64,
    /// Messages delivered and, at the bound, not retained.
    pub not_retained: AtomicU64,
    /// Records of mapped topics that have no MQTT topic.
    pub unmapped: AtomicU64,
    /// Time that clients above a quota or their rate were held up, ms.
    pub throttled_ms: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
}
