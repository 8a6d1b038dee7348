//! Looks, beside a session, for a connection that should replace the session's own: a fresh one when the
//! hub is not heard any more ([`vigil`](super::vigil)), and QUIC again where UDP was blocked for a while.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use shared::transport::{Connection, Heard, PROBE_IP_BYTES, TransportKind};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tracing::{debug, info};

use super::UplinkStats;
use super::connect::{ConnectError, Connector};
use super::outlet::Udp;
use super::vigil::{Act, Vigil};

/// Between looks at a connection that owes nothing, and at one that does.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_CLOSELY: Duration = Duration::from_millis(100);
/// Fresh attempts at once.
const MAX_ATTEMPTS: usize = 3;
/// Probes whose answers are still taken.
const MAX_TOKENS: usize = 64;
/// A connection over TCP that is up shows that the link is there; UDP, which was asked at the same time, must
/// be silent for so much longer, or for some round trips, before it counts as blocked.
const UDP_GRACE: Duration = Duration::from_millis(1_500);
const UDP_GRACE_ROUNDS: u32 = 3;
/// Over TCP, QUIC is looked for this often at first and in the end.
const UDP_SOON: Duration = Duration::from_secs(5);
const UDP_SELDOM: Duration = Duration::from_secs(5 * 60);
/// Probes in one look, and how long each may take.
const UDP_PROBES: u32 = 3;
const UDP_ANSWER: Duration = Duration::from_millis(700);
/// A network may let QUIC pass and nothing else: one look in so many dials without an answer.
const DIAL_ANYWAY: u32 = 6;

type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Better, ConnectError>> + Send + 'a>>;

/// A connection that is up and better than the session's.
#[derive(Debug)]
pub(super) struct Better {
    pub(super) connection: Connection,
    /// It leads to another hub.
    pub(super) other_hub: Option<usize>,
    /// It goes another way.
    pub(super) other_path: Option<usize>,
}

/// Ends with a connection that is up and better than the session's.
pub(super) async fn better(
    connector: &Connector,
    connection: &Connection,
    session: &UplinkStats,
    budget: u64,
) -> Better {
    let Ok(udp) = connector.udp() else {
        // without a UDP socket there was no connection, or the outlet is about to close
        return std::future::pending().await;
    };
    let when_silent = when_silent(connector, connection, &udp, session, budget);
    match connection.kind() {
        TransportKind::Quic => when_silent.await,
        TransportKind::Tcp => tokio::select! {
            better = when_silent => better,
            better = when_udp_works(connector, &udp, connection.remote_address()) => better,
        },
    }
}

async fn when_silent(
    connector: &Connector,
    connection: &Connection,
    udp: &Udp,
    session: &UplinkStats,
    budget: u64,
) -> Better {
    let origin = Instant::now();
    let mut echoes = Echoes::new(udp);
    let is_tcp_allowed = connector.is_tcp_allowed();
    let mut vigil = Vigil::new(budget, PROBE_IP_BYTES, is_tcp_allowed, Duration::ZERO);
    // looked up while there is a resolver
    let others = connector.others().await;
    vigil.set_others(others.len());
    let mut attempts: Vec<Attempt<'_>> = Vec::new();
    let mut over_tcp: Option<(Better, Duration)> = None;
    let mut was_silent = false;
    loop {
        let now = origin.elapsed();
        let stats = connection.stats();
        let is_waiting = session.waiting.load(Ordering::Relaxed);
        vigil.observe((stats.asked, stats.heard), stats.rtt, is_waiting, now);
        let is_silent = vigil.is_silent();
        if is_silent != was_silent {
            was_silent = is_silent;
            session.silent.store(is_silent, Ordering::Relaxed);
            let text = if is_silent {
                "Hub not heard"
            } else {
                "Hub heard again"
            };
            info!(rtt = ?stats.rtt, "{text}");
        }
        if !is_silent {
            attempts.clear();
            over_tcp = None;
        }
        let grace = UDP_GRACE.max(stats.rtt * UDP_GRACE_ROUNDS);
        if let Some((better, up)) = over_tcp.take() {
            if now >= up + grace {
                return better;
            }
            over_tcp = Some((better, up));
        }
        let remote = connection.remote_address();
        while let Some(act) = vigil.poll(now) {
            match act {
                Act::Probe => echoes.ask(remote, None),
                Act::ProbeOther(other) => {
                    if let Some((_, address)) = others.get(other) {
                        echoes.ask(*address, Some(other));
                    }
                }
                Act::Speak => session.speak.notify_one(),
                Act::Nudge => {
                    connection.nudge();
                    // and what the hub said last is found lost by what it says next
                    session.speak.notify_one();
                }
                Act::Dial => start(&mut attempts, None, connector.dial_quic(remote)),
                Act::DialTcp => start(&mut attempts, None, connector.dial_tcp(remote)),
                Act::DialOther(other) => {
                    if let Some((hub, _)) = others.get(other) {
                        start(&mut attempts, Some(*hub), connector.dial_other(*hub));
                    }
                }
            }
            debug!(?act, "Watch");
        }
        let pause = if vigil.is_owed() { LOOK_CLOSELY } else { LOOK };
        tokio::select! {
            biased;
            better = first_up(&mut attempts) => match better.connection.kind() {
                TransportKind::Quic => return better,
                TransportKind::Tcp => over_tcp = Some((better, origin.elapsed())),
            },
            (other, instance) = echoes.next() => match other {
                None => {
                    // UDP is not blocked
                    over_tcp = None;
                    vigil.handle_echo(instance, origin.elapsed());
                }
                Some(other) => vigil.handle_other(other, origin.elapsed()),
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The oldest attempt stays, for slow links; of the others the latest.
fn start<'a>(
    attempts: &mut Vec<Attempt<'a>>,
    other_hub: Option<usize>,
    dialling: impl Future<Output = Result<Connection, ConnectError>> + Send + 'a,
) {
    let attempt: Attempt<'a> = Box::pin(async move {
        let connection = dialling.await?;
        Ok(Better {
            connection,
            other_hub,
            other_path: None,
        })
    });
    if attempts.len() == MAX_ATTEMPTS {
        drop(attempts.remove(1));
    }
    attempts.push(attempt);
}

/// The first attempt that came to something; those that failed are forgotten. Cancel-safe.
async fn first_up(attempts: &mut Vec<Attempt<'_>>) -> Better {
    poll_fn(|context| {
        let mut up = None;
        attempts.retain_mut(|attempt| match attempt.as_mut().poll(context) {
            Poll::Ready(Ok(better)) => {
                up.get_or_insert(better);
                false
            }
            Poll::Ready(Err(error)) => {
                debug!(%error, "Attempt beside the session failed");
                false
            }
            Poll::Pending => true,
        });
        up.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Ends with a QUIC connection, once one comes about.
async fn when_udp_works(connector: &Connector, udp: &Udp, hub: SocketAddr) -> Better {
    let mut wait = UDP_SOON;
    let mut looks = 0_u32;
    loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(UDP_SELDOM);
        looks = looks.wrapping_add(1);
        if !answers(udp, hub).await && !looks.is_multiple_of(DIAL_ANYWAY) {
            continue;
        }
        match connector.dial_quic(hub).await {
            Ok(connection) => {
                return Better {
                    connection,
                    other_hub: None,
                    other_path: None,
                };
            }
            Err(error) => debug!(%error, "UDP is still blocked"),
        }
    }
}

pub(super) async fn answers(udp: &Udp, hub: SocketAddr) -> bool {
    let mut echoes = Echoes::new(udp);
    for _ in 0..UDP_PROBES {
        echoes.ask(hub, None);
        let heard = tokio::time::timeout(UDP_ANSWER, echoes.next()).await;
        if heard.is_ok() {
            return true;
        }
    }
    false
}

/// Questions asked and the answers to them.
pub(super) struct Echoes<'a> {
    udp: &'a Udp,
    heard: broadcast::Receiver<Heard>,
    /// With the place of the hub among the others, if it is one of them.
    tokens: VecDeque<(u64, Option<usize>)>,
}

impl<'a> Echoes<'a> {
    pub(super) fn new(udp: &'a Udp) -> Self {
        Self {
            udp,
            heard: udp.socket.echoes(),
            tokens: VecDeque::with_capacity(MAX_TOKENS),
        }
    }

    pub(super) fn ask(&mut self, hub: SocketAddr, other: Option<usize>) {
        let token = rand::random();
        if self.tokens.len() == MAX_TOKENS {
            self.tokens.pop_front();
        }
        self.tokens.push_back((token, other));
        self.udp.socket.ask(self.on_wire(hub), token);
    }

    /// A socket of both IP versions takes IPv4 addresses in IPv6's form.
    fn on_wire(&self, hub: SocketAddr) -> SocketAddr {
        match hub {
            SocketAddr::V4(v4) if self.udp.is_v6 => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => hub,
        }
    }

    /// Who answered next, and as which process. Cancel-safe.
    pub(super) async fn next(&mut self) -> (Option<usize>, u32) {
        loop {
            match self.heard.recv().await {
                Ok(Heard { echo, .. }) => {
                    let mut tokens = self.tokens.iter();
                    if let Some(at) = tokens.position(|(token, _)| *token == echo.token)
                        && let Some((_, other)) = self.tokens.remove(at)
                    {
                        return (other, echo.instance);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
