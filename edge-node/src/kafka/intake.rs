//! The receiving side of a connection: what it read, and what its bytes hold of the budgets.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, ReadBuf, ReadHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;

use super::KafkaConfig;
use super::conn::{ConnError, Connection, End};
use super::frame::FrameBuffer;
use crate::ingest::Reservation;

/// A read from TLS, whose records have at most 16 KiB, goes by the stack.
const TLS_CHUNK: usize = 8 * 1024;
/// How often a request that comes slowly, or waits for its user's rate, is held against what others wait for.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Socket, buffer and budgets.
#[derive(Debug)]
pub(super) struct Intake {
    read: Incoming,
    pub(super) frames: FrameBuffer,
    /// Bytes that this connection may have in flight.
    window: Arc<Semaphore>,
    held_window: Option<OwnedSemaphorePermit>,
    held: Reservation,
}

impl Intake {
    pub(super) fn new(read: Incoming, config: &KafkaConfig) -> Self {
        let frames = FrameBuffer::new(config.max_request_bytes);
        // less would wait for bytes that nothing gives back
        let window = config
            .max_inflight_bytes
            .max(frames.max_buffered())
            .min(Semaphore::MAX_PERMITS);
        Self {
            read,
            frames,
            window: Arc::new(Semaphore::new(window)),
            held_window: None,
            held: Reservation::default(),
        }
    }

    pub(super) fn claim(&mut self, bytes: usize, activity: &Arc<Activity>) -> Claim {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        let window = self.held_window.as_mut();
        let reservation = self.held.split(bytes);
        activity
            .held
            .fetch_add(reservation.bytes(), Ordering::Relaxed);
        Claim {
            _window: window.and_then(|held| held.split(bytes.min(held.num_permits()))),
            reservation,
            activity: activity.clone(),
        }
    }

    /// Reads once, and takes what came from the budgets. `Some`: there will be nothing more. Between two
    /// requests it waits until `idle_until`; for who is not known yet until `login_until`, also within one.
    pub(super) async fn fill(
        &mut self,
        connection: &Connection,
        idle_until: Instant,
        login_until: Option<Instant>,
    ) -> Result<Option<End>, ConnError> {
        let config = &connection.config;
        let overdue = self.frames.deadline(config.pace);
        if login_until.is_some_and(|until| until <= Instant::now()) {
            return Ok(Some(End::Idle));
        }
        let until = overdue.map_or(idle_until, Instant::from);
        let until = login_until.map_or(until, |login| until.min(login));
        let mut look = self.frames.deadline(config.pace_when_short);
        let received = loop {
            let next = look.map_or(until, |look| until.min(look.into()));
            let received = tokio::select! {
                biased;
                () = connection.stop.cancelled() => return Ok(Some(End::Stopped)),
                received = timeout_at(next, self.read.receive(&mut self.frames)) => received,
            };
            if let Ok(received) = received {
                break received?;
            }
            let now = Instant::now();
            if now < until && !connection.services.ingest.budget().is_short() {
                look = Some((now + LOOK).into_std());
            } else if overdue.is_some() {
                return Err(ConnError::TooSlow);
            } else {
                return Ok(Some(End::Idle));
            }
        };
        let count = match received {
            None => return Ok(None),
            Some(0) if self.frames.is_empty() => return Ok(Some(End::Closed)),
            Some(0) => return Err(ConnError::Truncated),
            Some(count) => count,
        };
        connection.activity.touch();
        connection
            .services
            .stats
            .bytes_in
            .fetch_add(count as u64, Ordering::Relaxed);
        let before = Instant::now();
        let stopped = tokio::select! {
            biased;
            () = self.reserve(connection, count) => false,
            () = connection.stop.cancelled() => true,
        };
        self.frames.pause(before.elapsed());
        Ok(stopped.then_some(End::Stopped))
    }

    async fn reserve(&mut self, connection: &Connection, count: usize) {
        let permits = u32::try_from(count).expect("a read is below 4 GiB");
        let window = self.window.clone().acquire_many_owned(permits).await;
        let window = window.expect("the semaphore is never closed");
        match &mut self.held_window {
            Some(held) => held.merge(window),
            None => self.held_window = Some(window),
        }
        self.held
            .grow(connection.services.ingest.budget(), count)
            .await;
    }
}

/// The receiving side of a socket, with TLS or without.
#[derive(Debug)]
pub(super) enum Incoming {
    Plain(OwnedReadHalf),
    Tls(Box<ReadHalf<TlsStream<TcpStream>>>),
}

impl Incoming {
    /// Reads once, without memory for it while nothing comes. `None`: there was nothing after all; 0: there will
    /// be nothing more. Cancel-safe.
    async fn receive(&mut self, frames: &mut FrameBuffer) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(read) => {
                read.readable().await?;
                match read.try_read_buf(&mut frames.room()) {
                    Ok(count) => Ok(Some(count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Self::Tls(read) => {
                poll_fn(|context| {
                    let mut chunk = [MaybeUninit::uninit(); TLS_CHUNK];
                    let mut chunk = ReadBuf::uninit(&mut chunk);
                    ready!(Pin::new(&mut **read).poll_read(context, &mut chunk))?;
                    frames.push(chunk.filled());
                    Poll::Ready(Ok(Some(chunk.filled().len())))
                })
                .await
            }
        }
    }
}

/// What a request holds until it is answered.
#[derive(Debug)]
pub(super) struct Claim {
    _window: Option<OwnedSemaphorePermit>,
    reservation: Reservation,
    activity: Arc<Activity>,
}

impl Claim {
    /// Gives back its part of the node's budget: who waits for records, or for the client to take an answer, must not
    /// hold up who brings some.
    pub(super) fn release(&mut self) {
        let released = std::mem::take(&mut self.reservation);
        let held = &self.activity.held;
        held.fetch_sub(released.bytes(), Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the listener sees of a connection, to choose which idle one makes room.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    last_ms: AtomicU64,
    in_flight: AtomicU32,
    /// Bytes of the node's budget that its unanswered requests hold.
    held: AtomicUsize,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            last_ms: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            held: AtomicUsize::new(0),
        }
    }

    pub(super) fn touch(&self) {
        let ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Bytes of the node's budget that unanswered requests hold.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Time since the last byte came; `None` while a request is being answered.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let is_idle = self.in_flight.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.epoch.elapsed().saturating_sub(last))
    }
}
