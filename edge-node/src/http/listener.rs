//! Serves the routes on a socket with limits that axum's own loop doesn't have: connections, idle
//! time, how slowly a request may come, and how slowly its answer may be taken.
//!
//! At the connection limit the next client waits until one closes; the one that has been idle longest makes room
//! ([`idle`]).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::caller::tell_refused;
use super::idle::{self, Activity, Leave, Places};
use super::{HttpConfig, HttpStats};
use crate::access::RefusedLogins;

/// Pause after `accept` failed: it does at once again while file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a request may take beyond the limits of its parts.
const MARGIN: Duration = Duration::from_secs(5);
/// How often a client that waits for a place looks for one who may leave.
const LOOK: Duration = Duration::from_millis(250);

/// A bound socket, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    config: HttpConfig,
    stats: Arc<HttpStats>,
}

impl Listener {
    /// Binds the socket.
    ///
    /// # Errors
    /// The address is taken, or not ours.
    pub async fn bind(config: HttpConfig, stats: Arc<HttpStats>) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::bind(config.bind).await?,
            config,
            stats,
        })
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves `router` until `stop`; then answers what is in flight, within the drain timeout.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let drain_timeout = self.config.drain_timeout;
        let limits = Limits::of(&self.config);
        let gate = Gate {
            permits: Arc::new(Semaphore::new(self.config.max_connections.max(1))),
            socket: self.socket,
            stats: self.stats,
            limits,
            places: Places::default(),
        };
        let address = gate.socket.local_addr().unwrap_or(self.config.bind);
        let refused = Arc::new(RefusedLogins::new("http", address));
        let service = router
            .layer(from_fn_with_state(refused, tell_refused))
            .layer(from_fn(idle::count))
            .into_make_service_with_connect_info::<Peer>();
        let serving =
            axum::serve(gate, service).with_graceful_shutdown(stop.clone().cancelled_owned());
        let mut serving = std::pin::pin!(serving.into_future());
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            result = &mut serving => return log_end(result),
        }
        match timeout(drain_timeout, serving).await {
            Ok(result) => log_end(result),
            Err(_) => info!("HTTP listener stopped with requests unanswered"),
        }
    }
}

fn log_end(result: io::Result<()>) {
    match result {
        Ok(()) => info!("HTTP listener stopped"),
        Err(error) => tracing::error!(%error, "HTTP listener failed"),
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    idle: Duration,
    min_idle: Duration,
    request: Duration,
    send: Duration,
    bytes_per_s: u64,
}

impl Limits {
    fn of(config: &HttpConfig) -> Self {
        let parts = config.body_grace + config.budget_wait + config.sync_timeout;
        Self {
            idle: config.idle_timeout.max(parts + MARGIN),
            min_idle: config.min_idle,
            request: parts + MARGIN,
            send: config.send_grace,
            bytes_per_s: config.min_bytes_per_s.max(1),
        }
    }
}

/// Whose connection it is.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// `None` at the listener's own end.
    pub(super) activity: Option<Arc<Activity>>,
}

impl Connected<IncomingStream<'_, Gate>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        stream.remote_addr().clone()
    }
}

#[derive(Debug)]
struct Gate {
    socket: TcpListener,
    permits: Arc<Semaphore>,
    stats: Arc<HttpStats>,
    limits: Limits,
    places: Places,
}

impl Gate {
    /// A place for one who is there; others make room if they can.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        let mut permit = std::pin::pin!(self.permits.clone().acquire_owned());
        let mut wait = Duration::ZERO;
        loop {
            if let Ok(permit) = timeout(wait, &mut permit).await {
                return permit.expect("the semaphore is never closed");
            }
            if self.places.make_room(Instant::now(), self.limits.min_idle) {
                self.stats.evicted.fetch_add(1, Ordering::Relaxed);
            }
            wait = LOOK;
        }
    }

    fn guard(&mut self, stream: TcpStream, permit: OwnedSemaphorePermit) -> Guarded {
        drop(stream.set_nodelay(true)); // slower, not wrong
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        self.stats.open.fetch_add(1, Ordering::Relaxed);
        let activity = Arc::new(Activity::new());
        self.places.add(&activity);
        Guarded {
            stream,
            stats: self.stats.clone(),
            limits: self.limits,
            clock: Clock::new(),
            timer: Box::pin(sleep_until(Instant::now())),
            leave: activity.asked_to_leave(),
            activity,
            _permit: permit,
        }
    }
}

impl axum::serve::Listener for Gate {
    type Io = Guarded;
    type Addr = Peer;

    async fn accept(&mut self) -> (Guarded, Peer) {
        loop {
            match self.socket.accept().await {
                Ok((stream, address)) => {
                    let permit = self.place().await;
                    let guarded = self.guard(stream, permit);
                    let activity = Some(guarded.activity.clone());
                    return (guarded, Peer { address, activity });
                }
                Err(error) => {
                    debug!(%error, "Accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        let address = self.socket.local_addr()?;
        let activity = None;
        Ok(Peer { address, activity })
    }
}

/// When a connection's request began to come, and how much of it came; and the same of what the client
/// is slow to take.
#[derive(Debug)]
struct Clock {
    last: Instant,
    started: Option<Instant>,
    received: u64,
    /// Since when the client's window has not been open for all that there is.
    held_up: Option<Instant>,
    taken: u64,
    /// Nothing at all fits at the moment.
    is_blocked: bool,
}

impl Clock {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            started: None,
            received: 0,
            held_up: None,
            taken: 0,
            is_blocked: false,
        }
    }

    fn received(&mut self, bytes: u64) {
        self.last = Instant::now();
        self.started.get_or_insert(self.last);
        self.received += bytes;
    }

    fn sent(&mut self, bytes: usize, of: usize) {
        self.last = Instant::now();
        self.started = None;
        self.received = 0;
        self.is_blocked = false;
        if bytes == of {
            self.held_up = None;
            self.taken = 0;
        } else {
            self.taken += bytes as u64;
        }
    }

    fn blocked(&mut self) {
        self.is_blocked = true;
        self.held_up.get_or_insert_with(Instant::now);
    }

    fn deadline(&self, limits: &Limits) -> Instant {
        let with_earned = |since: Instant, grace: Duration, bytes: u64| {
            since + grace + Duration::from_millis(bytes * 1000 / limits.bytes_per_s)
        };
        let request = self
            .started
            .map(|started| with_earned(started, limits.request, self.received));
        let send = self
            .held_up
            .filter(|_| self.is_blocked)
            .map(|since| with_earned(since, limits.send, self.taken));
        let idle = self.last + limits.idle;
        [request, send]
            .into_iter()
            .flatten()
            .fold(idle, Instant::min)
    }
}

/// A connection that ends when nothing moves on it, or a request takes too long to come.
#[derive(Debug)]
struct Guarded {
    stream: TcpStream,
    stats: Arc<HttpStats>,
    limits: Limits,
    clock: Clock,
    timer: Pin<Box<Sleep>>,
    activity: Arc<Activity>,
    leave: Leave,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stats.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Guarded {
    fn poll_overdue(&mut self, leave_at: Option<Instant>, cx: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.clock.deadline(&self.limits);
        let deadline = leave_at.map_or(deadline, |at| at.min(deadline));
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            let count = buf.filled().len() - before;
            if self.clock.started.is_none() {
                self.activity.touch();
            }
            self.clock.received(count as u64);
            return Poll::Ready(result);
        }
        let this = &mut *self;
        let min_idle = this.limits.min_idle;
        let leave_at = match this.leave.poll(&this.activity, min_idle, cx) {
            Poll::Ready(leave_at) => leave_at,
            Poll::Pending => None,
        };
        self.poll_overdue(leave_at, cx).map(Err)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_write(cx, buf) {
            self.clock.sent(*result.as_ref().unwrap_or(&0), buf.len());
            self.activity.touch();
            self.activity.held_up(self.clock.held_up.is_some());
            return Poll::Ready(result);
        }
        self.clock.blocked();
        self.activity.held_up(true);
        self.poll_overdue(None, cx).map(Err)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
