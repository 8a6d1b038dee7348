//! The way to the hub: dials out, runs one session after the other, and comes back after every end.
//!
//! ```text
//!  connect ──► session ──► ended ──► wait (backoff with full jitter, or the hub's hint) ──► connect …
//!     │ failed                          ▲
//!     └── next hub address ─────────────┘
//! ```
//! Being offline is normal: nothing here is an error of the node. What is not acknowledged stays in the
//! store, and the next session starts from the hub's committed checkpoints. Nothing of a session outlives
//! it, so there is nothing to repair.
//!
//! Beside a session, [`watch`] looks for a connection that should take its place: when the hub is not heard
//! any more, and when UDP works again for a site that went over TCP. The new one is up before the old one
//! is left.

mod batcher;
mod chains;
mod choice;
mod chunks;
mod connect;
mod driver;
mod keeper;
mod live;
mod load;
mod meter;
mod outlet;
mod pacer;
pub mod paths;
pub mod plan;
pub mod policy;
mod reasons;
mod refused;
mod roam;
mod sendbuffer;
pub mod shaper;
pub mod socket;
mod steward;
mod thrift;
mod traffic;
mod vigil;
mod watch;
mod work;
mod worker;
mod worth;

use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::batch::CODEC_LONG;
use shared::link::{Close, Unsettled};
use shared::retry::{Retry, RetryConfig};
use shared::transport::{Connection, Lost, LostKind, TransportKind};
use shared::wire::Code;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use chains::CodecBytes;
pub use connect::ConnectError;
pub(crate) use keeper::boot_id;
pub use keeper::{InForce, InUse, Keeper, PathView, Policies, View};
pub use outlet::look_at_path;
pub use steward::{FromHub, Rules, Standing};
pub use worker::StartError;

use crate::admin::UplinkView;
use crate::config::{TopicsConfig, UplinkConfig};
use crate::status::UplinkStatus;
use crate::store::{Store, StoreError};
use connect::Connector;
use driver::{Ended, SessionSettings, Signals};
use live::Backlogs;
use reasons::{Reason, Reasons};
use refused::Refused;
use roam::Roam;
use traffic::Traffic;
use watch::Better;
use worker::{Worker, WorkerConfig};

/// A session that lasted so long was a good one, whatever ended it: longer than a hub needs to refuse what
/// it was sent.
const STEADY: Duration = Duration::from_secs(5);
/// Between the handshake and the hub's welcome, which waits for Kafka when that is slow.
const NOT_LET_IN: &str = "the hub answers and has not let this site in yet";
/// Before another path is tried.
const OTHER_PATH: Duration = Duration::from_millis(200);

/// Counters of the uplink, for metrics and status.
#[derive(Debug, Default)]
pub struct UplinkStats {
    /// A hub has welcomed this site and the session is open.
    pub connected: AtomicBool,
    /// Sessions that a hub welcomed.
    pub sessions: AtomicU64,
    /// Attempts to dial.
    pub attempts: AtomicU64,
    /// The session, or why there is none.
    state: Mutex<LinkState>,
    /// Bytes of data streams that the hub has, encoded.
    pub payload_bytes: AtomicU64,
    /// The same before encoding, as charged to the hub's credit.
    pub raw_bytes: AtomicU64,
    /// Bytes sent in IP packets, headers included.
    pub wire_tx_bytes: AtomicU64,
    /// Bytes received in IP packets, headers included.
    pub wire_rx_bytes: AtomicU64,
    /// IP packets sent.
    pub wire_tx_packets: AtomicU64,
    /// IP packets received.
    pub wire_rx_packets: AtomicU64,
    /// What codecs take.
    pub codecs: Arc<CodecBytes>,
    /// Data streams by topic and codec.
    traffic: Traffic,
    /// Logs that the hub does not take.
    refused: Refused,
    /// Why renewed certificates are not used.
    certificates: Mutex<Option<String>>,
    /// New incarnations since the process started.
    pub incarnations: AtomicU64,
    /// Smoothed round-trip time of the last session, microseconds.
    pub rtt_micros: AtomicU64,
    /// Sessions over TLS over TCP, because UDP was blocked.
    pub tcp_sessions: AtomicU64,
    /// The session, or the last one, went over TCP.
    over_tcp: AtomicBool,
    /// The session's hub is not heard.
    silent: AtomicBool,
    /// The session waits for acknowledgements.
    waiting: AtomicBool,
    /// The session should ask its hub for a word.
    speak: Notify,
}

/// The last that is known of the link, for people.
#[derive(Debug, Default, Clone)]
struct LinkState {
    /// The hub of the session, or the one dialled last.
    hub: Option<String>,
    /// Why there is no session.
    last_error: Option<String>,
    /// Wall clock of the last change between connected and not, ms since the epoch.
    changed_ms: i64,
    /// Which of several paths the session takes, or the last one took.
    way: Option<Way>,
}

/// A path that is used.
#[derive(Debug, Clone)]
struct Way {
    /// As configured.
    path: String,
    /// Why it is this one, for people.
    reason: String,
}

impl UplinkStats {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with renewed certificates; true when that is another answer than before.
    fn certificates(&self, problem: Option<String>) -> bool {
        let mut known = self
            .certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_new = *known != problem;
        *known = problem;
        is_new
    }

    fn dialling(&self, hub: String) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.lock().hub = Some(hub);
    }

    fn carried_by(&self, kind: TransportKind) {
        if kind == TransportKind::Tcp {
            self.tcp_sessions.fetch_add(1, Ordering::Relaxed);
        }
        let is_tcp = kind == TransportKind::Tcp;
        self.over_tcp.store(is_tcp, Ordering::Relaxed);
        self.silent.store(false, Ordering::Relaxed);
        self.waiting.store(false, Ordering::Relaxed);
        if !self.connected.load(Ordering::Relaxed) {
            let mut state = self.lock();
            state
                .last_error
                .get_or_insert_with(|| NOT_LET_IN.to_owned());
        }
    }

    fn goes_by(&self, path: &str, reason: String) {
        let path = path.to_owned();
        self.lock().way = Some(Way { path, reason });
    }

    fn opened(&self) {
        self.refused.begin();
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.connected.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        state.changed_ms = shared::time::wall_ms();
        state.last_error = None;
    }

    pub(crate) fn closed(&self, why: &str) {
        let mut state = self.lock();
        if self.connected.swap(false, Ordering::Relaxed) {
            state.changed_ms = shared::time::wall_ms();
        }
        state.last_error = Some(why.to_owned());
    }
}

impl UplinkView for UplinkStats {
    fn status(&self) -> UplinkStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.lock().clone();
        let is_connected = self.connected.load(Ordering::Relaxed);
        let (refused_topics, others) = self.refused.topics();
        let refused = refused::in_words(&refused_topics, others);
        let certificates = self
            .certificates
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let certificates = certificates.as_ref().map(|error| {
            format!("renewed certificates cannot be used, the old ones stay: {error}")
        });
        let way = state.way.filter(|_| is_connected);
        let (path, path_reason) = way.map(|way| (way.path, way.reason)).unzip();
        UplinkStatus {
            is_enabled: true,
            is_connected,
            hub: state.hub,
            changed_ms: state.changed_ms,
            last_error: state.last_error,
            sessions: read(&self.sessions),
            attempts: read(&self.attempts),
            raw_bytes: read(&self.raw_bytes),
            encoded_bytes: read(&self.payload_bytes),
            sent_bytes: read(&self.wire_tx_bytes),
            received_bytes: read(&self.wire_rx_bytes),
            sent_packets: read(&self.wire_tx_packets),
            received_packets: read(&self.wire_rx_packets),
            rtt_us: read(&self.rtt_micros),
            path,
            path_reason,
            is_over_tcp: is_connected && self.over_tcp.load(Ordering::Relaxed),
            is_silent: is_connected && self.silent.load(Ordering::Relaxed),
            tcp_sessions: read(&self.tcp_sessions),
            codec_bytes: read(&self.codecs.live),
            codec_saved_bytes: read(&self.codecs.saved),
            codec_logs: read(&self.codecs.logs),
            traffic: self.traffic.read(),
            refused_topics,
            problems: refused.into_iter().chain(certificates).collect(),
        }
    }
}

/// What a connection had counted when it was last looked at.
#[derive(Debug, Default)]
struct Seen {
    tx: u64,
    rx: u64,
    tx_packets: u64,
    rx_packets: u64,
}

impl Seen {
    /// Adds what the connection sent and received since the last look.
    fn observe(&mut self, connection: &Connection, totals: &UplinkStats) {
        let stats = connection.stats();
        let now = Self {
            tx: stats.tx_bytes,
            rx: stats.rx_bytes,
            tx_packets: stats.tx_packets,
            rx_packets: stats.heard,
        };
        // a path that changed from IPv6 to IPv4 counts smaller headers
        let add = |total: &AtomicU64, now: u64, before: u64| {
            total.fetch_add(now.saturating_sub(before), Ordering::Relaxed);
        };
        add(&totals.wire_tx_bytes, now.tx, self.tx);
        add(&totals.wire_rx_bytes, now.rx, self.rx);
        add(&totals.wire_tx_packets, now.tx_packets, self.tx_packets);
        add(&totals.wire_rx_packets, now.rx_packets, self.rx_packets);
        *self = now;
        let rtt = u64::try_from(stats.rtt.as_micros()).unwrap_or(u64::MAX);
        totals.rtt_micros.store(rtt, Ordering::Relaxed);
    }
}

/// Why the uplink cannot run at all. A hub that does not answer is not among it.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Certificates, addresses or the local socket.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The worker thread did not start.
    #[error(transparent)]
    Worker(#[from] StartError),
}

/// The codecs offered to a hub, best first; the one for large values beside them.
fn offered(config: &UplinkConfig) -> Vec<u8> {
    let mut codecs = config.codec.offered();
    if !codecs.is_empty() && config.hub_chunks.bytes() > 0 {
        codecs.push(CODEC_LONG);
    }
    codecs
}

/// The uplink of a site.
#[derive(Debug)]
pub struct Uplink {
    connector: Connector,
    roam: Roam,
    policies: Policies,
    worker: Worker,
    store: Arc<dyn Store>,
    stats: Arc<UplinkStats>,
    retry: Retry,
    reasons: Reasons,
    /// What the last session had in flight when it ended.
    unsettled: Unsettled,
    settings: SessionSettings,
    /// Bytes a minute that may be sent into a link that is down.
    outage_budget: u64,
}

impl Uplink {
    /// Binds the local socket and starts the worker thread.
    ///
    /// # Errors
    /// [`UplinkError`] when certificates cannot be read or the socket cannot be bound.
    pub fn new(
        config: &UplinkConfig,
        topics: &TopicsConfig,
        store: &Arc<dyn Store>,
        stats: &Arc<UplinkStats>,
        policies: &Policies,
        max_uncompressed_bytes: usize,
        data_dir: &Path,
    ) -> Result<Self, UplinkError> {
        let worker_config = WorkerConfig {
            codec_directory: data_dir.join("codecs"),
            fixed_codec: config.codec.fixed(),
            codec_memory: usize::try_from(config.codec_memory.bytes()).unwrap_or(usize::MAX),
            chunk_bytes: config.hub_chunks.bytes(),
            zstd_level: config.level,
            max_uncompressed_bytes,
            counted: Arc::clone(&stats.codecs),
        };
        let connector = Connector::new(config, policies, stats)?;
        Ok(Self {
            roam: Roam::new(connector.paths()),
            connector,
            policies: policies.clone(),
            worker: Worker::start(Arc::clone(store), worker_config)?,
            store: Arc::clone(store),
            stats: Arc::clone(stats),
            reasons: Reasons::default(),
            retry: Retry::new(RetryConfig {
                min: config.backoff_min.duration(),
                max: config.backoff_max.duration(),
            }),
            unsettled: Unsettled::default(),
            settings: SessionSettings {
                codecs: offered(config),
                max_reads: config.max_reads,
                max_read_bytes: u32::try_from(config.max_read.bytes()).unwrap_or(u32::MAX),
                topics: topics.clone(),
                classes: config.classes,
                backlogs: Backlogs::default(),
                took_back: None,
            },
            outage_budget: config.outage_budget.bytes(),
        })
    }

    /// Runs until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let stats = Arc::clone(&self.stats);
        while !stop.is_cancelled() {
            let path = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                path = self.roam.choose(&self.connector, &self.policies, &stats) => path,
            };
            let hint = tokio::select! {
                biased;
                // a session ends by itself when it is told to stop; an attempt is dropped
                hint = self.attempt(path, &stop) => hint,
                () = stopped_while_dialling(&stop, &stats) => break,
            };
            if let Some(hint) = hint {
                self.retry.hint(hint);
            }
            let mut wait = self.retry.next_delay(&mut rand::rng());
            if hint.is_none() && self.connector.paths() > 1 {
                // a path that failed rests; another one need not
                wait = wait.min(OTHER_PATH);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.connector.answered(), if hint.is_none() => {}
                () = stop.cancelled() => break,
            }
        }
        self.connector.close().await;
    }

    /// One connection and its session, and those that take their place while it lasts; the hub's wish when to
    /// come back, if it had one.
    async fn attempt(&mut self, mut path: usize, stop: &CancellationToken) -> Option<Duration> {
        self.connector.take_path(path);
        let mut hub = self.connector.hub().to_string();
        self.stats.dialling(hub.clone());
        let mut connection = match self.connector.dial().await {
            Ok(connection) => connection,
            Err(error) => {
                self.roam.failed(path);
                self.not_open(&hub, error.to_string(), error.is_refusal());
                return None;
            }
        };
        loop {
            let since = Instant::now();
            self.roam.connected(path);
            self.roam
                .tell(&self.connector, &self.policies, &self.stats, path);
            let (outcome, next) = self.session(connection, path, stop).await;
            match &outcome {
                Ok(ended) if ended.close.by_peer || ended.close.code != Code::Timeout => {
                    self.roam.ended(path);
                }
                Ok(_) | Err(_) => self.roam.failed(path),
            }
            let hint = match outcome {
                Ok(ended) => self.after(&hub, ended, since.elapsed()).await,
                Err(lost) => {
                    let is_refusal = lost.kind != LostKind::TimedOut;
                    let close = driver::close_of(lost);
                    self.not_open(&hub, in_words(&close), is_refusal);
                    self.connector.next_hub();
                    None
                }
            };
            connection = match next {
                Some(Better {
                    connection,
                    other_hub,
                    other_path,
                }) => {
                    if let Some(other) = other_hub {
                        self.connector.turn_to(other);
                    }
                    if let Some(other) = other_path {
                        path = other;
                        self.connector.take_path(path);
                    }
                    connection
                }
                None => return hint,
            };
            hub = self.connector.hub().to_string();
        }
    }

    /// Runs a session until it ends, or until a better connection is up, which is returned too.
    async fn session(
        &self,
        connection: Connection,
        path: usize,
        stop: &CancellationToken,
    ) -> (Result<Ended, Lost>, Option<Better>) {
        let carrier = connection.kind().name();
        self.stats.carried_by(connection.kind());
        debug!(carrier, "Connected");
        let replaced = CancellationToken::new();
        let session = driver::run(
            connection.clone(),
            Arc::clone(&self.store),
            self.worker.clone(),
            Arc::clone(&self.stats),
            self.unsettled.clone(),
            &self.settings,
            self.policies.clone(),
            path,
            self.policies.stopped(path),
            Signals {
                stop,
                replaced: &replaced,
                speak: &self.stats.speak,
            },
        );
        let mut session = pin!(session);
        let stats = &self.stats;
        let next = tokio::select! {
            biased;
            ended = &mut session => return (ended, None),
            next = watch::better(&self.connector, &connection, stats, self.outage_budget) => next,
            next = self.roam.better(&self.connector, &connection, &self.policies, stats, path) => next,
        };
        let to = next.connection.kind().name();
        info!(from = carrier, to, "Uplink moves to another connection");
        replaced.cancel();
        (session.await, Some(next))
    }

    /// Tells why there is no session: once, not at every attempt.
    fn not_open(&mut self, hub: &str, text: String, is_refusal: bool) {
        let reason = Reason { text, is_refusal };
        let text = reason.text.clone();
        let is_news = self.reasons.note(hub, reason);
        self.stats
            .closed(&self.reasons.shown(hub).unwrap_or_default());
        match (is_news, is_refusal) {
            (true, true) => warn!(hub, reason = text, "Connection refused"),
            // being offline is normal
            (true, false) => info!(hub, reason = text, "Hub not reached"),
            (false, _) => debug!(hub, reason = text, "Still no session"),
        }
    }

    async fn after(&mut self, hub: &str, ended: Ended, lasted: Duration) -> Option<Duration> {
        let Ended {
            close,
            was_open,
            needs_incarnation,
            unsettled,
            took_back,
        } = ended;
        self.unsettled = unsettled;
        self.settings.took_back = took_back;
        if was_open {
            self.reasons.clear();
            self.stats.closed(&in_words(&close));
            info!(code = ?close.code, by_peer = close.by_peer, text = close.text, "Uplink closed");
        } else {
            self.not_open(hub, in_words(&close), close.by_peer);
        }
        // A hub that turns a session away as soon as it is open must not be asked again in a loop.
        if was_open && (!close.by_peer || lasted > STEADY) {
            self.retry.reset();
        }
        if needs_incarnation {
            // what the hub holds of logs whose history agrees is acknowledged under the old incarnation:
            // it must not come again under the new one
            if self.worker.settle().await {
                self.renew_incarnation();
            }
            return Some(Duration::ZERO);
        }
        let is_replaced = close.code == Code::Superseded && !close.by_peer;
        if !is_replaced && (!was_open || close.by_peer || close.code == Code::Timeout) {
            self.connector.next_hub();
        }
        close.retry_after
    }

    /// Not done in a loop by mistake: the next hello names the new incarnation, of which the hub holds
    /// nothing that could differ.
    fn renew_incarnation(&self) {
        let renewed: Result<_, StoreError> = self.store.renew_incarnation();
        match renewed {
            Ok(incarnation) => {
                self.stats.incarnations.fetch_add(1, Ordering::Relaxed);
                warn!(%incarnation, "New incarnation: the store went back in time or was copied");
            }
            Err(error) => warn!(%error, "New incarnation could not be written"),
        }
    }
}

/// The hub's own words, or what this end saw.
fn in_words(close: &Close) -> String {
    match close.code {
        Code::Timeout => close.text.clone(),
        Code::NotAllowed => format!("the hub refuses this site: {}", close.text),
        Code::Version
        | Code::Busy
        | Code::NotOwner
        | Code::Superseded
        | Code::BadFrame
        | Code::Limit
        | Code::Stopping
        | Code::Internal
        | Code::HistoryMismatch
        | Code::Other(_) => format!("{:?}: {}", close.code, close.text),
    }
}

/// Ends when the node stops and no session is open that could say goodbye by itself.
async fn stopped_while_dialling(stop: &CancellationToken, stats: &UplinkStats) {
    stop.cancelled().await;
    if stats.connected.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_cannot_be_used_are_a_problem_until_others_can() {
        let stats = UplinkStats::default();
        let bad = || Some("site.pem: no certificate in it".to_owned());
        assert!(stats.certificates(bad()));
        assert!(!stats.certificates(bad()), "told once");
        let problems = stats.status().problems;
        assert!(problems[0].contains("site.pem"), "{problems:?}");
        assert!(stats.certificates(None));
        assert!(stats.status().problems.is_empty());
    }
}
