//! Dials hubs: addresses in turn, names looked up anew each time, certificates read anew each time.
//!
//! QUIC repeats what is not answered ever more seldom, so that an attempt that began while the link was
//! down would sleep on long after it is back. Fresh attempts are raced against it, and the first one on a
//! slow link is not given up for them. Where UDP is blocked, none of them is ever answered: after
//! [`UDP_PATIENCE`] TLS over TCP to the same host and port joins the race. What a race may cost while nothing is
//! heard is in [`super::thrift`].

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use quinn::congestion::{ControllerFactory, CubicConfig};
use quinn::{ClientConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rand::RngExt as _;
use shared::config::HostPort;
use shared::congestion::{MeasuredConfig, RateLimit};
use shared::tls::{ClientTls, Peer, TlsError};
use shared::transport::{Connection, Lost, LostKind, NudgeHandle, QuicConnection};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::outlet::{Binding, Outlet, Udp};
use super::thrift::{Stance, Thrift};
use super::watch::{self, Echoes};
use super::{Policies, UplinkStats};
use crate::config::{Congestion, UplinkConfig};

/// Reassembly of one stream holds no more than this; batches are smaller.
const STREAM_WINDOW: u32 = 1 << 20;
/// What the hub sends beside acknowledgements is little.
const RECEIVE_WINDOW: u32 = 2 << 20;
/// A path is asked for larger packets this often: each look costs a few kilobytes where it has none.
const MTU_LOOK: Duration = Duration::from_secs(60 * 60);
/// A fresh attempt starts beside those under way about this often: a handshake takes less on most links.
const RACE_EVERY: Duration = Duration::from_secs(2);
/// Attempts at once: the first, and the latest.
const RACERS: usize = 3;
/// UDP that is not answered for so long may be blocked.
const UDP_PATIENCE: Duration = Duration::from_secs(4);
/// How long an attempt on another path may take, over each transport.
const PATH_PATIENCE: Duration = Duration::from_secs(3);
/// Between attempts over TCP within one race, and when none was answered for long.
const TCP_AGAIN: Duration = Duration::from_secs(5);
const TCP_SELDOM: Duration = Duration::from_secs(60);
/// Between looks at what a race costs.
const RACE_LOOK: Duration = Duration::from_millis(250);
/// QUIC repeats after three times this: long after an attempt that may not repeat anything is given up.
const CAREFUL_RTT: Duration = Duration::from_secs(30);

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

    fn of(address: SocketAddr, lost: Lost) -> Self {
        let text = lost.text;
        match lost.kind {
            LostKind::TimedOut => Self::NoAnswer { address, text },
            LostKind::Closed { .. } | LostKind::Refused | LostKind::Local | LostKind::Broken => {
                Self::Refused { address, text }
            }
        }
    }
}

/// Dials the configured hubs in turn.
#[derive(Debug)]
pub(super) struct Connector {
    /// One for each path, the preferred first. At least one.
    outlets: Vec<Outlet>,
    /// The path that is used.
    path: usize,
    hubs: Vec<HostPort>,
    next: usize,
    tls: ClientTls,
    stats: Arc<UplinkStats>,
    server_name: Option<String>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    nat_keep_alive: Duration,
    congestion: Congestion,
    is_tcp_allowed: bool,
    /// Since when nothing was heard over UDP from the hub that is being dialled, over several races.
    unanswered: Mutex<Option<Instant>>,
    origin: Instant,
    /// What dialling may cost, for each path.
    thrifts: Vec<Mutex<Thrift>>,
}

impl Connector {
    pub(super) fn new(
        config: &UplinkConfig,
        policies: &Policies,
        stats: &Arc<UplinkStats>,
    ) -> Result<Self, ConnectError> {
        let bindings = config.paths.iter();
        let bindings = bindings.map(|path| (path.name.clone(), Binding::from(&path.bind)));
        let mut bindings: Vec<(String, Binding)> = bindings.collect();
        if bindings.is_empty() {
            bindings.push((String::new(), Binding::default()));
        }
        let outlets: Vec<Outlet> = bindings
            .into_iter()
            .enumerate()
            .map(|(path, (name, binding))| {
                Outlet::new(name, binding, Arc::clone(policies.shaper(path)))
            })
            .collect();
        if config.paths.is_empty() {
            // a machine without a network stack is seen at the start; a path may come later
            outlets[0].udp()?;
        }
        let budget = config.outage_budget.bytes();
        let thrift = |_: &Outlet| Mutex::new(Thrift::new(budget));
        Ok(Self {
            thrifts: outlets.iter().map(thrift).collect(),
            origin: Instant::now(),
            outlets,
            path: 0,
            hubs: config.hubs.clone(),
            next: 0,
            // a problem with the files is seen at the start, not at the first dial
            tls: ClientTls::load(config.tls.clone())?,
            stats: Arc::clone(stats),
            server_name: config.server_name.clone(),
            connect_timeout: config.connect_timeout.duration(),
            idle_timeout: config.idle_timeout.duration(),
            nat_keep_alive: config.nat_keep_alive.duration(),
            congestion: config.congestion,
            is_tcp_allowed: config.tcp_fallback,
            unanswered: Mutex::default(),
        })
    }

    /// Dials the hub whose turn it is; after a failure it is the next one's.
    pub(super) async fn dial(&mut self) -> Result<Connection, ConnectError> {
        self.unanswered().get_or_insert_with(Instant::now);
        let outcome = self.within(self.connect_timeout, self.race()).await;
        if matches!(outcome, Ok(_) | Err(ConnectError::Refused { .. })) {
            *self.unanswered() = None;
        }
        if outcome.is_err() {
            self.next_hub();
        }
        outcome
    }

    /// How many paths there are.
    pub(super) const fn paths(&self) -> usize {
        self.outlets.len()
    }

    /// Whether a path's address or interface is there at the moment.
    pub(super) fn has_path(&self, path: usize) -> bool {
        self.outlets.get(path).is_some_and(Outlet::is_there)
    }

    /// From here on this path is used.
    pub(super) const fn take_path(&mut self, path: usize) {
        self.path = path;
    }

    /// Whether the session's hub can be reached by a path: a probe, or a TCP connection where UDP is blocked.
    pub(super) async fn is_there(&self, path: usize, known: SocketAddr) -> bool {
        let Some(outlet) = self.outlets.get(path) else {
            return false;
        };
        match outlet.udp() {
            Ok(udp) if watch::answers(&udp, known).await => true,
            Ok(_) if self.is_tcp_allowed => {
                let connecting = outlet.connect_tcp(known, self.idle_timeout);
                let connected = tokio::time::timeout(PATH_PATIENCE, connecting).await;
                let is_there = matches!(connected, Ok(Ok(_)));
                if is_there {
                    outlet.count_visit(known);
                }
                is_there
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// An attempt on another path, beside a session.
    pub(super) async fn dial_on(
        &self,
        path: usize,
        known: SocketAddr,
    ) -> Result<Connection, ConnectError> {
        let outlet = self.outlets.get(path).unwrap_or_else(|| self.outlet());
        let udp = outlet.udp()?;
        let (stance, _) = self.look_at_costs(path, &udp);
        let over_udp = async {
            let is_dear = matches!(stance, Stance::Waits | Stance::Overdrawn);
            if is_dear && !watch::answers(&udp, known).await {
                let text = "no probe is answered".to_owned();
                let address = known;
                return Err(ConnectError::NoAnswer { address, text });
            }
            let address = self.resolve_or(known).await?;
            self.try_quic(outlet, self.hub(), address, false).await
        };
        let failed = match self.within(PATH_PATIENCE, over_udp).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        if !self.is_tcp_allowed {
            return Err(failed);
        }
        let over_tcp = async {
            let address = self.resolve_or(known).await?;
            self.try_tcp(outlet, self.hub(), address).await
        };
        self.within(PATH_PATIENCE, over_tcp).await
    }

    fn outlet(&self) -> &Outlet {
        &self.outlets[self.path.min(self.outlets.len() - 1)]
    }

    /// One attempt beside a session, over QUIC only, at the session's hub.
    pub(super) async fn dial_quic(&self, known: SocketAddr) -> Result<Connection, ConnectError> {
        let attempt = async {
            let address = self.resolve_or(known).await?;
            self.try_quic(self.outlet(), self.hub(), address, false)
                .await
        };
        self.within(self.connect_timeout, attempt).await
    }

    /// The same at another hub: one of [`Self::others`].
    pub(super) async fn dial_other(&self, hub: usize) -> Result<Connection, ConnectError> {
        let hub = self.hubs.get(hub).unwrap_or_else(|| self.hub());
        let attempt = async {
            let address = self.resolve(hub).await?;
            self.try_quic(self.outlet(), hub, address, false).await
        };
        self.within(self.connect_timeout, attempt).await
    }

    /// The hubs that are not the one whose turn it is, as far as they have an address.
    pub(super) async fn others(&self) -> Vec<(usize, SocketAddr)> {
        let mut others = Vec::new();
        for (index, hub) in self.hubs.iter().enumerate() {
            if index != self.next
                && let Ok(address) = self.resolve(hub).await
            {
                others.push((index, address));
            }
        }
        others
    }

    /// From here on it is this one's turn.
    pub(super) fn turn_to(&mut self, hub: usize) {
        self.next = hub % self.hubs.len();
    }

    /// One attempt beside a session, over TCP only.
    pub(super) async fn dial_tcp(&self, known: SocketAddr) -> Result<Connection, ConnectError> {
        let attempt = async {
            let address = self.resolve_or(known).await?;
            self.try_tcp(self.outlet(), self.hub(), address).await
        };
        self.within(self.connect_timeout, attempt).await
    }

    /// The UDP socket that the hub is dialled from.
    pub(super) fn udp(&self) -> io::Result<Udp> {
        self.outlet().udp()
    }

    pub(super) const fn is_tcp_allowed(&self) -> bool {
        self.is_tcp_allowed
    }

    pub(super) fn next_hub(&mut self) {
        self.next = (self.next + 1) % self.hubs.len();
    }

    pub(super) async fn close(self) {
        for outlet in self.outlets {
            outlet.close().await;
        }
    }

    /// The hub whose turn it is.
    pub(super) fn hub(&self) -> &HostPort {
        &self.hubs[self.next]
    }

    fn unanswered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        attempt: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ConnectError> {
        let outcome = tokio::time::timeout(limit, attempt).await;
        outcome.unwrap_or_else(|_elapsed| {
            let host = self.hub().to_string();
            Err(ConnectError::Timeout { host, limit })
        })
    }

    /// What the first of several attempts comes to; TCP counts only when it comes to something.
    async fn race(&self) -> Result<Connection, ConnectError> {
        let udp = self.udp()?;
        let address = self.resolve(self.hub()).await?;
        let mut echoes = Echoes::new(&udp);
        let mut racers = Vec::new();
        let mut over_tcp = Box::pin(self.tcp_in_time());
        let (mut dial_at, mut probe_at) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            let (stance, probe_every) = self.look_at_costs(self.path, &udp);
            match stance {
                Stance::Overdrawn => racers.clear(),
                Stance::Waits => {}
                Stance::Free | Stance::Careful if now < dial_at => {}
                Stance::Free | Stance::Careful => {
                    if racers.len() == RACERS {
                        drop(racers.remove(1));
                    }
                    racers.push(Box::pin(self.try_hub(stance)));
                    // spread: thousands of sites may have lost the same hub
                    dial_at = now + RACE_EVERY.mul_f64(rand::rng().random_range(0.75..1.25));
                }
            }
            if stance != Stance::Free && now >= probe_at {
                echoes.ask(address, None);
                probe_at = now + probe_every;
            }
            tokio::select! {
                biased;
                outcome = first_of(&mut racers) => return outcome,
                connection = &mut over_tcp => return Ok(connection),
                // the link is back, and those under way sleep
                _ = echoes.next() => {
                    dial_at = Instant::now();
                    *self.unanswered() = None;
                }
                () = tokio::time::sleep(RACE_LOOK) => {}
            }
        }
    }

    /// What dialling may cost from here on, and how often probes may be sent.
    fn look_at_costs(&self, path: usize, udp: &Udp) -> (Stance, Duration) {
        let now = self.origin.elapsed();
        let path = path.min(self.outlets.len() - 1);
        let mut thrift = self.thrifts[path]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let stance = thrift.observe(self.outlets[path].sent(), udp.heard(), now);
        (stance, thrift.probe_every(now))
    }

    /// Ends when the hub whose turn it is answers a probe, after a race in which it was not heard: it need not be
    /// waited for any longer.
    pub(super) async fn answered(&self) {
        let is_unanswered = self.unanswered().is_some();
        let (Ok(udp), true) = (self.udp(), is_unanswered) else {
            return std::future::pending().await;
        };
        let Ok(address) = self.resolve(self.hub()).await else {
            return std::future::pending().await;
        };
        let mut echoes = Echoes::new(&udp);
        loop {
            let (_, probe_every) = self.look_at_costs(self.path, &udp);
            echoes.ask(address, None);
            if tokio::time::timeout(probe_every, echoes.next())
                .await
                .is_ok()
            {
                return;
            }
        }
    }

    async fn try_hub(&self, stance: Stance) -> Result<Connection, ConnectError> {
        let hub = self.hub();
        let address = self.resolve(hub).await?;
        let is_careful = stance == Stance::Careful;
        self.try_quic(self.outlet(), hub, address, is_careful).await
    }

    /// A connection over TCP, once QUIC had its time; without end where there is none to be had.
    async fn tcp_in_time(&self) -> Connection {
        if !self.is_tcp_allowed {
            std::future::pending::<()>().await;
        }
        let since = self.unanswered().unwrap_or_else(Instant::now);
        tokio::time::sleep_until(since + UDP_PATIENCE).await;
        loop {
            let hub = self.hub();
            let attempt = async {
                let address = self.resolve(hub).await?;
                self.try_tcp(self.outlet(), hub, address).await
            };
            match attempt.await {
                Ok(connection) => return connection,
                Err(error) => debug!(%error, "No TCP either"),
            }
            let wait = (since.elapsed() / 2).clamp(TCP_AGAIN, TCP_SELDOM);
            tokio::time::sleep(wait).await;
        }
    }

    async fn resolve(&self, hub: &HostPort) -> Result<SocketAddr, ConnectError> {
        let failed = |error| ConnectError::Resolve {
            host: hub.to_string(),
            error,
        };
        let outlet = self.outlet();
        let is_v6 = outlet.udp()?.is_v6;
        let addresses = tokio::net::lookup_host((hub.host.as_str(), hub.port)).await;
        addresses
            .map_err(failed)?
            .find(|address| (is_v6 || address.is_ipv4()) && outlet.speaks(address.ip()))
            .ok_or_else(|| failed(io::Error::other("no address")))
    }

    /// While the link is down there may be no resolver either.
    async fn resolve_or(&self, known: SocketAddr) -> Result<SocketAddr, ConnectError> {
        match self.resolve(self.hub()).await {
            Ok(address) => Ok(address),
            Err(ConnectError::Resolve { .. }) => Ok(known),
            Err(error) => Err(error),
        }
    }

    fn name<'a>(&'a self, hub: &'a HostPort) -> &'a str {
        self.server_name.as_deref().unwrap_or(&hub.host)
    }

    async fn try_quic(
        &self,
        outlet: &Outlet,
        hub: &HostPort,
        address: SocketAddr,
        is_careful: bool,
    ) -> Result<Connection, ConnectError> {
        self.refresh_certificates();
        let (mut transport, nudge) = self.transport(outlet.limit());
        if is_careful {
            transport.initial_rtt(CAREFUL_RTT);
        }
        let mut config = ClientConfig::new(self.tls.config());
        config.transport_config(Arc::new(transport));
        let endpoint = outlet.udp()?.endpoint;
        let connecting = endpoint
            .connect_with(config, address, self.name(hub))
            .map_err(|error| ConnectError::Start { address, error })?;
        let connection = connecting
            .await
            .map_err(|error| ConnectError::of(address, Lost::from((&error, Peer::Hub))))?;
        let connection = QuicConnection::new(connection, Peer::Hub).with_nudge(nudge);
        Ok(Connection::Quic(connection))
    }

    async fn try_tcp(
        &self,
        outlet: &Outlet,
        hub: &HostPort,
        address: SocketAddr,
    ) -> Result<Connection, ConnectError> {
        self.refresh_certificates();
        let connecting = outlet.connect_tcp(address, self.idle_timeout);
        let stream = connecting.await.map_err(|error| ConnectError::NoAnswer {
            address,
            text: error.to_string(),
        })?;
        let tls = self.tls.tcp_config();
        let pacer = outlet.pacer(address);
        let shaking = shared::transport::connect_tcp(stream, tls, self.name(hub), Some(pacer));
        let connection = shaking
            .await
            .map_err(|lost| ConnectError::of(address, lost))?;
        Ok(Connection::Tcp(connection))
    }

    fn refresh_certificates(&self) {
        let problem = self.tls.refresh(shared::time::wall_ms()).err();
        let problem = problem.map(|error| error.to_string());
        let is_new = self.stats.certificates(problem.clone());
        if let Some(error) = problem.filter(|_| is_new) {
            warn!(%error, "Renewed certificates cannot be used, the old ones stay");
        }
    }

    fn transport(&self, limit: RateLimit) -> (TransportConfig, NudgeHandle) {
        let mut transport = TransportConfig::default();
        let controller: Arc<dyn ControllerFactory + Send + Sync> = match self.congestion {
            Congestion::Cubic => Arc::new(CubicConfig::default()),
            Congestion::Measured => Arc::new(MeasuredConfig::new(limit)),
        };
        let nudge = NudgeHandle::prepare(&mut transport, controller, RECEIVE_WINDOW);
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.interval(MTU_LOOK);
        transport
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            // the site alone keeps the NATs on the way awake: one small packet each way, and only when
            // nothing else was said
            .keep_alive_interval(Some(self.nat_keep_alive.min(self.idle_timeout / 2)))
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None);
        (transport, nudge)
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
