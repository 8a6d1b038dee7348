//! Accepts connections and starts a session for each.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{Endpoint, Incoming, VarInt};
use shared::ids::SiteId;
use shared::tls::Peer;
use shared::transport::{Connection, Lost, LostKind, QuicConnection};
use shared::wire::Code;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::admission::Admission;
use super::gate::GateConfig;
use super::ingress::Ingress;
use super::opener::Turns;
use super::quiet::{Quiet, Superseded, Takeovers};
use super::session::{self, SessionContext};
use super::tcp_door::{Knock, TcpDoor};
use super::{Budget, CodecStates, IntakeLevels, IntakeStats};
use crate::chunks::SiteChunks;
use crate::commit::{LaneRouter, SessionId};
use crate::config::SitesConfig;
use crate::sites::Register;

/// Handshakes under way: beyond, a client must first prove its address (RFC 9000, 8.1.2).
const RETRY_ABOVE: usize = 64;
/// Sites between hello and welcome: what waits for the same transaction of a lane, a few times over.
const ADMITTED: usize = 64;
/// Handshakes begin this much faster than sites are let in: some fail, and who is told to come back has
/// had one too.
const HANDSHAKES_PER_ADMISSION: u64 = 4;
/// How long sessions may take to say goodbye when the hub stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the intake needs to know.
#[derive(Debug, Clone)]
pub struct IntakeConfig {
    /// Sites and topics.
    pub sites: SitesConfig,
    /// Most connections at once, handshakes included.
    pub max_connections: usize,
    /// Most handshakes under way.
    pub max_handshakes: usize,
    /// Most sites let in a second.
    pub admit_rate: u64,
    /// Bytes of data streams a second, all sites together.
    pub ingress: Option<u64>,
    /// Most logs of one site; it may not send the others.
    pub max_logs: usize,
    /// Most decoded bytes of one data stream.
    pub max_batch_bytes: u32,
    /// Sites ping this often; three times as long without a word ends a session.
    pub keep_alive: Duration,
    /// From the first packet to the end of the TLS handshake, and from there to the hello.
    pub handshake_timeout: Duration,
}

/// Everything that sessions share.
#[derive(Debug)]
pub struct Intake {
    pub(super) config: IntakeConfig,
    pub(super) lanes: LaneRouter,
    pub(super) register: Arc<Register>,
    pub(super) stats: Arc<IntakeStats>,
    pub(super) budget: Arc<Budget>,
    pub(super) states: Arc<CodecStates>,
    pub(super) chunks: Arc<SiteChunks>,
    pub(super) ingress: Arc<Ingress>,
    handshakes: Arc<Admission>,
    pub(super) admission: Arc<Admission>,
    /// Who decodes.
    pub(super) turns: Turns,
    sites: watch::Sender<Arc<SitesConfig>>,
    next_session: AtomicU64,
    /// Refusals that were logged lately, by address and reason.
    told_refusals: Mutex<Quiet<(IpAddr, String)>>,
    takeovers: Mutex<Takeovers<SiteId>>,
    superseded: Mutex<Superseded<SiteId>>,
    told_takeovers: Mutex<Quiet<SiteId>>,
}

impl Intake {
    /// An intake that hands to these lanes.
    #[must_use]
    pub fn new(
        config: IntakeConfig,
        lanes: LaneRouter,
        register: Arc<Register>,
        stats: Arc<IntakeStats>,
        budget: Arc<Budget>,
        states: Arc<CodecStates>,
        chunks: Arc<SiteChunks>,
    ) -> Self {
        let handshakes = GateConfig {
            most: config.max_handshakes,
            rate: config.admit_rate.saturating_mul(HANDSHAKES_PER_ADMISSION),
        };
        let admission = GateConfig {
            most: ADMITTED,
            rate: config.admit_rate,
        };
        let sites = Arc::new(config.sites.clone());
        Self {
            ingress: Arc::new(Ingress::new(config.ingress)),
            handshakes: Arc::new(Admission::new(handshakes)),
            admission: Arc::new(Admission::new(admission)),
            turns: Turns::default(),
            sites: watch::Sender::new(sites),
            config,
            lanes,
            register,
            stats,
            budget,
            states,
            chunks,
            next_session: AtomicU64::new(1),
            told_refusals: Mutex::default(),
            takeovers: Mutex::default(),
            superseded: Mutex::default(),
            told_takeovers: Mutex::default(),
        }
    }

    /// The rules for sites, as they stand and as they change.
    pub(super) fn sites(&self) -> watch::Receiver<Arc<SitesConfig>> {
        self.sites.subscribe()
    }

    /// Other rules from here on; open sessions are held to them too. False when they are the same.
    pub fn set_sites(&self, sites: SitesConfig) -> bool {
        self.sites.send_if_modified(|current| {
            let is_news = **current != sites;
            *current = Arc::new(sites);
            is_news
        })
    }

    /// The rules for sites.
    #[must_use]
    pub fn rules(&self) -> Arc<SitesConfig> {
        Arc::clone(&self.sites.borrow())
    }

    /// How full it is.
    #[must_use]
    pub fn levels(&self) -> IntakeLevels {
        let (queued, shaking) = self.handshakes.counts();
        let (waiting, admitted) = self.admission.counts();
        IntakeLevels {
            handshakes: (queued + shaking) as u64,
            waiting: waiting as u64,
            admitted: admitted as u64,
            limited: self.ingress.waiting() as u64,
            held_bytes: self.budget.held(),
            codec_bytes: self.states.live_bytes(),
            codec_saved_bytes: self.states.saved_bytes() as u64,
            codec_disk_bytes: self.states.disk_bytes(),
        }
    }

    /// Accepts until stopped; then tells every session and waits for their goodbyes.
    pub async fn serve(
        self: Arc<Self>,
        endpoint: Endpoint,
        tcp: Option<TcpDoor>,
        stop: CancellationToken,
    ) {
        let mut connections = JoinSet::new();
        let (ingress, handshakes) = (Arc::clone(&self.ingress), Arc::clone(&self.handshakes));
        let admission = Arc::clone(&self.admission);
        let gates = async { tokio::join!(ingress.run(), handshakes.run(), admission.run()) };
        tokio::pin!(gates);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                (never, _, _) = &mut gates => match never {},
                Some(ended) = connections.join_next() => log_end(ended),
                incoming = endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    self.admit(incoming, &endpoint, &mut connections, &stop);
                }
                knock = knock_at(tcp.as_ref()) => self.admit_tcp(knock, &mut connections, &stop),
            }
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        let _late = tokio::time::timeout(STOP_TIMEOUT, drained).await;
        endpoint.close(
            VarInt::from_u32(Code::Stopping.to_u8().into()),
            b"hub-node stops",
        );
        let _late = tokio::time::timeout(STOP_TIMEOUT, endpoint.wait_idle()).await;
    }

    fn admit(
        self: &Arc<Self>,
        incoming: Incoming,
        endpoint: &Endpoint,
        connections: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        if connections.len() >= self.config.max_connections {
            IntakeStats::add(&self.stats.refused, 1);
            incoming.refuse();
            return;
        }
        let handshakes = connections
            .len()
            .saturating_sub(endpoint.open_connections());
        if handshakes > RETRY_ABOVE && incoming.may_retry() {
            let _spent = incoming.retry();
            return;
        }
        let remote = incoming.remote_address();
        let intake = Arc::clone(self);
        let stop = stop.clone();
        let handshake = async move {
            let accepted = async { incoming.accept()?.await };
            let connection = accepted.await;
            let connection = connection.map_err(|error| Lost::from((&error, Peer::Site)))?;
            Ok(Connection::Quic(QuicConnection::new(
                connection,
                Peer::Site,
            )))
        };
        connections.spawn(async move { intake.connection(handshake, remote, stop).await });
    }

    fn admit_tcp(
        self: &Arc<Self>,
        knock: Knock,
        connections: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        if connections.len() >= self.config.max_connections {
            return IntakeStats::add(&self.stats.refused, 1);
        }
        let (intake, stop, remote) = (Arc::clone(self), stop.clone(), knock.remote);
        connections.spawn(async move {
            if knock.speaks().await {
                intake.connection(knock.open(), remote, stop).await;
            }
        });
    }

    async fn connection(
        self: Arc<Self>,
        handshake: impl Future<Output = Result<Connection, Lost>>,
        remote: SocketAddr,
        stop: CancellationToken,
    ) {
        let handshake = async {
            // one that does not begin in time is refused by being dropped
            let place = self.handshakes.enter().await.ok()?;
            Some((handshake.await, place))
        };
        let connection = match tokio::time::timeout(self.config.handshake_timeout, handshake).await
        {
            Ok(Some((Ok(connection), place))) => {
                place.welcome();
                connection
            }
            Ok(Some((Err(error), _place))) => {
                IntakeStats::add(&self.stats.refused, 1);
                return self.tell_failed(remote, &error);
            }
            Ok(None) | Err(_) => return IntakeStats::add(&self.stats.refused, 1),
        };
        match connection.site(shared::time::wall_ms()) {
            Ok(site) if self.sites.borrow().rule(site.as_str()).is_some() => {
                IntakeStats::add(&self.stats.connections, 1);
                let span = info_span!("session", %site);
                self.session(connection, site, stop).instrument(span).await;
            }
            Ok(site) => {
                let text = format!("site `{site}` is not on the allow list");
                self.turn_away(&connection, &text);
            }
            Err(error) => self.turn_away(&connection, &error.to_string()),
        }
    }

    async fn session(&self, connection: Connection, site: SiteId, stop: CancellationToken) {
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let context = SessionContext {
            intake: self,
            site: &site,
            id,
        };
        let close = session::run(&context, connection, &stop).await;
        if matches!(close.code, Code::BadFrame | Code::Limit) && !close.by_peer {
            IntakeStats::add(&self.stats.violations, 1);
            warn!(code = ?close.code, text = close.text, "Session ended: protocol violation");
        } else {
            info!(code = ?close.code, by_peer = close.by_peer, text = close.text, "Session ended");
        }
    }

    fn turn_away(&self, connection: &Connection, text: &str) {
        IntakeStats::add(&self.stats.refused, 1);
        let remote = connection.remote_address();
        if self.may_tell(remote, text) {
            warn!(%remote, text, "Connection refused");
        }
        connection.close(Code::NotAllowed.to_u8().into(), text.as_bytes());
    }

    /// One end refused the other's certificate. An open port sees many who only try: they are not told.
    fn tell_failed(&self, remote: SocketAddr, lost: &Lost) {
        let is_refusal = matches!(lost.kind, LostKind::Refused | LostKind::Broken);
        if is_refusal && self.may_tell(remote, &without_times(&lost.text)) {
            warn!(%remote, reason = lost.text, "Handshake failed");
        } else {
            debug!(%remote, %lost, "Handshake failed");
        }
    }

    fn may_tell(&self, remote: SocketAddr, reason: &str) -> bool {
        lock(&self.told_refusals).may_tell((remote.ip(), reason.to_owned()), shared::time::now())
    }

    /// A site came with another incarnation than before.
    pub(super) fn took_over(&self, site: &SiteId, from: &str, to: &str) {
        let now = shared::time::now();
        let is_often = lock(&self.takeovers).note(site.clone(), from, to, now);
        if is_often {
            self.tell_twins(site, now);
        }
    }

    /// A session of the site made room for another.
    pub(super) fn superseded(&self, site: &SiteId) {
        let now = shared::time::now();
        let is_often = lock(&self.superseded).note(site.clone(), now);
        if is_often {
            self.tell_twins(site, now);
        }
    }

    fn tell_twins(&self, site: &SiteId, now: Duration) {
        let Some((incarnation, other)) = self.register.twins(site, now) else {
            return;
        };
        if lock(&self.told_takeovers).may_tell(site.clone(), now) {
            warn!(%site, incarnation, other, "Two sites seem to have one certificate");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Never ends where there is no door.
async fn knock_at(door: Option<&TcpDoor>) -> Knock {
    match door {
        Some(door) => door.accept().await,
        None => std::future::pending().await,
    }
}

/// The clock's reading makes no other reason.
fn without_times(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn log_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "Connection task ended early");
    }
}
