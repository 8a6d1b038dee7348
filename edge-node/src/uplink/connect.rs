//! Dials hubs: addresses in turn, names looked up anew each time, certificates read anew each time.
//!
//! QUIC repeats what is not answered ever more seldom, so that an attempt that began while the link was
//! down would sleep on long after it is back. Fresh attempts are raced against it, and the first one on a
//! slow link is not given up for them.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig,
    VarInt,
};
use rand::RngExt as _;
use shared::config::HostPort;
use shared::tls::{ClientTls, Peer, TlsError};
use tracing::warn;

use super::shaper::Shaper;
use super::socket::ShapedSocket;
use crate::config::UplinkConfig;

/// Reassembly of one stream holds no more than this; batches are smaller.
const STREAM_WINDOW: u32 = 1 << 20;
/// What the hub sends beside acknowledgements is little.
const RECEIVE_WINDOW: u32 = 2 << 20;
/// Data handed to QUIC and not acknowledged by the peer's QUIC.
const SEND_WINDOW: u64 = 4 << 20;
/// A fresh attempt starts beside those under way about this often: a handshake takes less on most links.
const RACE_EVERY: Duration = Duration::from_secs(2);
/// Attempts at once: the first, and the latest.
const RACERS: usize = 3;
/// How long the last words may take when the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a hub was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The local socket.
    #[error("local UDP socket: {0}")]
    Socket(#[from] io::Error),
    /// The name has no address, or the resolver does not answer.
    #[error("look up `{host}`: {error}")]
    Resolve { host: String, error: io::Error },
    /// QUIC refused to start.
    #[error("connect to {address}: {error}")]
    Start {
        address: SocketAddr,
        error: quinn::ConnectError,
    },
    /// No answer from this address.
    #[error("connect to {address}: {text}")]
    NoAnswer { address: SocketAddr, text: String },
    /// One end refused the other.
    #[error("connect to {address}: {text}")]
    Refused { address: SocketAddr, text: String },
    /// No answer in time.
    #[error("connect to `{host}`: no answer within {limit:?}")]
    Timeout { host: String, limit: Duration },
}

impl ConnectError {
    /// Somebody said no: a person must look, other than when a site is offline.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Refused { .. } => true,
            Self::Socket(_)
            | Self::Resolve { .. }
            | Self::Start { .. }
            | Self::NoAnswer { .. }
            | Self::Timeout { .. } => false,
        }
    }
}

/// Dials the configured hubs in turn.
#[derive(Debug)]
pub(super) struct Connector {
    endpoint: Endpoint,
    hubs: Vec<HostPort>,
    next: usize,
    tls: ClientTls,
    server_name: Option<String>,
    connect_timeout: Duration,
    idle_timeout: Duration,
}

impl Connector {
    pub(super) fn new(config: &UplinkConfig, shaper: &Arc<Shaper>) -> Result<Self, ConnectError> {
        Ok(Self {
            endpoint: bind(shaper)?,
            hubs: config.hubs.clone(),
            next: 0,
            // a problem with the files is seen at the start, not at the first dial
            tls: ClientTls::load(config.tls.clone())?,
            server_name: config.server_name.clone(),
            connect_timeout: config.connect_timeout.duration(),
            idle_timeout: config.idle_timeout.duration(),
        })
    }

    /// Dials the hub whose turn it is; after a failure it is the next one's.
    pub(super) async fn dial(&mut self) -> Result<Connection, ConnectError> {
        let dialled = tokio::time::timeout(self.connect_timeout, self.race()).await;
        let outcome = dialled.unwrap_or_else(|_elapsed| {
            let host = self.hub().to_string();
            Err(ConnectError::Timeout {
                host,
                limit: self.connect_timeout,
            })
        });
        if outcome.is_err() {
            self.next_hub();
        }
        outcome
    }

    pub(super) fn next_hub(&mut self) {
        self.next = (self.next + 1) % self.hubs.len();
    }

    pub(super) async fn close(self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
        let _late = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }

    /// The hub whose turn it is.
    pub(super) fn hub(&self) -> &HostPort {
        &self.hubs[self.next]
    }

    /// What the first of several attempts comes to.
    async fn race(&self) -> Result<Connection, ConnectError> {
        let mut racers = vec![Box::pin(self.try_hub())];
        loop {
            // spread: thousands of sites may have lost the same hub
            let wait = RACE_EVERY.mul_f64(rand::rng().random_range(0.75..1.25));
            tokio::select! {
                biased;
                outcome = first_of(&mut racers) => return outcome,
                () = tokio::time::sleep(wait) => {}
            }
            if racers.len() == RACERS {
                drop(racers.remove(1));
            }
            racers.push(Box::pin(self.try_hub()));
        }
    }

    async fn try_hub(&self) -> Result<Connection, ConnectError> {
        let hub = self.hub();
        let resolve = |error| ConnectError::Resolve {
            host: hub.to_string(),
            error,
        };
        let addresses = tokio::net::lookup_host((hub.host.as_str(), hub.port)).await;
        let is_v6 = self.endpoint.local_addr()?.is_ipv6();
        let address = addresses
            .map_err(resolve)?
            .find(|address| is_v6 || address.is_ipv4())
            .ok_or_else(|| resolve(io::Error::other("no address")))?;
        let name = self.server_name.as_deref().unwrap_or(&hub.host);
        let connecting = self
            .endpoint
            .connect_with(self.client_config(), address, name)
            .map_err(|error| ConnectError::Start { address, error })?;
        connecting.await.map_err(|error| {
            let text = shared::tls::explain(&error, Peer::Hub, shared::time::wall_ms());
            if error == quinn::ConnectionError::TimedOut {
                ConnectError::NoAnswer { address, text }
            } else {
                ConnectError::Refused { address, text }
            }
        })
    }

    fn client_config(&self) -> ClientConfig {
        if let Err(error) = self.tls.refresh() {
            warn!(%error, "Renewed certificates cannot be used, the old ones stay");
        }
        let mut config = ClientConfig::new(self.tls.config());
        config.transport_config(Arc::new(self.transport()));
        config
    }

    fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::try_from(self.idle_timeout).ok();
        transport
            .max_idle_timeout(idle)
            // the protocol's own keep-alives begin with the welcome, for which a hub may need longer: its
            // lane may be waiting for Kafka
            .keep_alive_interval(Some(self.idle_timeout / 2))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
            .send_window(SEND_WINDOW)
            // batches in the order in which they were read: one that is whole can be committed
            .send_fairness(false)
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None);
        transport
    }
}

/// Cancel-safe: the others go on when it is asked again.
async fn first_of<F: Future>(racers: &mut [Pin<Box<F>>]) -> F::Output {
    poll_fn(|context| {
        let ended = racers
            .iter_mut()
            .map(|racer| racer.as_mut().poll(context))
            .find(Poll::is_ready);
        ended.unwrap_or(Poll::Pending)
    })
    .await
}

/// Both IP versions where the machine has them.
fn bind(shaper: &Arc<Shaper>) -> io::Result<Endpoint> {
    let v6 = std::net::UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let socket = v6.or_else(|_no_v6| {
        std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
    })?;
    let socket = ShapedSocket::wrap(socket, Arc::clone(shaper))?;
    let config = EndpointConfig::default();
    Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))
}
