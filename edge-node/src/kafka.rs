//! The Kafka protocol: to its clients the site looks like a cluster of one broker.
//!
//! Which APIs are served in which versions, and why: [`api::VERSIONS`]. A success is answered after the
//! store's sync, for `acks=1` and `acks=all` alike; consumers get what is synced, as it is stored.
//!
//! Everything but [`listener`], [`conn`], [`intake`], [`pending`], [`fetching`], [`ahead`], [`sending`] and [`throttle`] is plain code: bytes in,
//! values out. Nothing that arrives is trusted: lengths are checked before memory is taken, buffers grow with
//! what was received, and connections, requests and bytes in flight, and time are all limited by
//! [`KafkaConfig`]; answers with records have their part of the node's memory ([`crate::egress`]).
//!
//! Deliberately not done here: transactions, fetch sessions, topic ids.

pub mod admin;
mod ahead;
pub mod api;
pub mod codec;
mod conn;
pub mod dispatch;
pub mod error;
pub mod fetch;
mod fetching;
pub mod frame;
pub mod group;
mod grouping;
pub mod groups;
mod intake;
mod listener;
mod login;
pub mod metadata;
pub mod offsets;
mod pending;
mod permit;
pub mod produce;
pub mod producer_id;
mod sending;
mod throttle;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use frame::Pace;
pub use listener::Listener;

use shared::tls::TlsError;

use crate::access::Access;
use crate::config;
use crate::egress::Egress;
use crate::ingest::Ingest;
use crate::quota::Quota;
use crate::tls::Acceptor;
use groups::Groups;

/// The listener's settings.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// Where to listen.
    pub bind: SocketAddr,
    /// TLS; `None`: plain text.
    pub tls: Option<Arc<Acceptor>>,
    /// Time for a TLS handshake, and then for the login where one is needed.
    pub login_timeout: Duration,
    /// How long a refused login waits for its answer.
    pub refused_delay: Duration,
    /// Host and port that clients are told; `None`: the address that they connected to.
    pub advertised: Option<(String, u16)>,
    /// Tells clients one site from another.
    pub cluster_id: String,
    /// Open connections.
    pub max_connections: usize,
    /// At that many, a connection idle for so long makes room for the next.
    pub min_idle: Duration,
    /// Largest request.
    pub max_request_bytes: usize,
    /// Unanswered requests of one connection.
    pub max_inflight_requests: usize,
    /// Bytes of the unanswered requests of one connection; at least two of the largest are allowed.
    pub max_inflight_bytes: usize,
    /// A connection without a request for so long is closed.
    pub idle_timeout: Duration,
    /// How slowly a request may arrive.
    pub pace: Pace,
    /// And how slowly while others wait for what it holds of the node's budget.
    pub pace_when_short: Pace,
    /// A client that does not take a response for so long is closed.
    pub write_timeout: Duration,
    /// How slowly it may take one while others wait for what that holds of the node's memory.
    pub answer_pace_when_short: Pace,
    /// How long a fetch waits for its part of the node's memory before it is answered without records.
    pub fetch_patience: Duration,
    /// How long records that were read before a client asks for them are kept.
    pub ahead_kept: Duration,
    /// The longest that a client above its quota is not read from.
    pub longest_mute: Duration,
    /// How long the answer "full, try again" is held back.
    pub full_delay: Duration,
    /// Time to answer what is in flight on stop.
    pub drain_timeout: Duration,
    /// What all clients of the listener together may use.
    pub quota: Arc<Quota>,
}

impl KafkaConfig {
    /// The file's settings, with defaults for what it doesn't name.
    #[must_use]
    pub fn from_file(file: &config::KafkaConfig, cluster_id: String) -> Self {
        let advertised = file.advertised.as_ref();
        Self {
            advertised: advertised.map(|at| (at.host.clone(), at.port)),
            cluster_id,
            max_connections: file.max_connections,
            max_request_bytes: file.max_request.as_usize(),
            max_inflight_bytes: file.max_inflight.as_usize(),
            idle_timeout: file.idle_timeout.duration(),
            quota: Arc::new(Quota::new(file.limits)),
            ..Self::new(file.listen)
        }
    }

    /// The settings of another listener of the file.
    ///
    /// # Errors
    /// [`TlsError`]: its certificate can't be used.
    pub fn for_listener(self, listener: &config::KafkaListener) -> Result<Self, TlsError> {
        let tls = listener.tls.clone().map(Acceptor::load).transpose()?;
        let advertised = listener.advertised.as_ref();
        Ok(Self {
            bind: listener.listen,
            advertised: advertised.map(|at| (at.host.clone(), at.port)),
            tls: tls.map(Arc::new),
            max_connections: listener.max_connections,
            quota: Arc::new(Quota::new(listener.limits)),
            ..self
        })
    }

    /// Defaults for a listener at `bind`.
    #[must_use]
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            tls: None,
            login_timeout: Duration::from_secs(20),
            refused_delay: Duration::from_millis(200),
            advertised: None,
            cluster_id: "kedge".to_owned(),
            max_connections: 1000,
            min_idle: Duration::from_secs(10),
            // clients send at most 1 MiB a partition by default
            max_request_bytes: 8 * 1024 * 1024,
            max_inflight_requests: 64,
            max_inflight_bytes: 16 * 1024 * 1024,
            // Kafka's connections.max.idle.ms
            idle_timeout: Duration::from_secs(600),
            pace: Pace {
                grace: Duration::from_secs(20),
                bytes_per_s: 4 * 1024,
            },
            pace_when_short: Pace {
                grace: Duration::from_secs(2),
                bytes_per_s: 128 * 1024,
            },
            write_timeout: Duration::from_secs(30),
            // the largest answer has 6 s
            answer_pace_when_short: Pace {
                grace: Duration::from_secs(2),
                bytes_per_s: 512 * 1024,
            },
            fetch_patience: Duration::from_secs(5),
            // a client that takes longer for one answer would gain nothing by the next being ready
            ahead_kept: Duration::from_millis(100),
            longest_mute: throttle::LONGEST,
            full_delay: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(10),
            quota: Arc::default(),
        }
    }
}

/// What connections work with; the same for all listeners of the protocol.
#[derive(Debug, Clone)]
pub struct Services {
    /// Records in.
    pub ingest: Ingest,
    /// Records out.
    pub egress: Egress,
    /// Consumer groups.
    pub groups: Groups,
    /// Users and their rules.
    pub access: Arc<Access>,
    /// Counters.
    pub stats: Arc<KafkaStats>,
}

/// Counters of the listeners, for metrics.
#[derive(Debug, Default)]
pub struct KafkaStats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open.
    pub open: AtomicU64,
    /// Connections refused at the listener's limit, or at their user's.
    pub refused_connections: AtomicU64,
    /// Idle connections ended for others.
    pub evicted: AtomicU64,
    /// Connections ended by an error: garbage, too slow, a broken socket.
    pub failed: AtomicU64,
    /// Failures of `accept`, such as no file descriptors.
    pub accept_errors: AtomicU64,
    /// Requests received whole.
    pub requests: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
    /// Consumer groups known.
    pub groups: AtomicU64,
    /// Offsets that they committed.
    pub offsets: AtomicU64,
    /// Writes of offsets that the disk refused.
    pub failed_commits: AtomicU64,
    /// Logins refused.
    pub refused_logins: AtomicU64,
    /// Batches that were not stored.
    pub refused_batches: AtomicU64,
    /// Time that clients were told to wait because of a quota, ms.
    pub throttled_ms: AtomicU64,
}

#[cfg(test)]
mod tests;
