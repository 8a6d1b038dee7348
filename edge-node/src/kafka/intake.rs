//! The receiving side of a connection: what it read, and what its bytes hold of the budgets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::KafkaConfig;
use super::conn::{ConnError, Connection, End};
use super::frame::FrameBuffer;
use crate::ingest::Reservation;

/// Socket, buffer and budgets.
#[derive(Debug)]
pub(super) struct Intake {
    read: OwnedReadHalf,
    pub(super) frames: FrameBuffer,
    /// Bytes that this connection may have in flight.
    window: Arc<Semaphore>,
    held_window: Option<OwnedSemaphorePermit>,
    held: Reservation,
}

impl Intake {
    pub(super) fn new(read: OwnedReadHalf, config: &KafkaConfig) -> Self {
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
        Claim {
            _window: window.and_then(|held| held.split(bytes.min(held.num_permits()))),
            reservation: self.held.split(bytes),
            activity: activity.clone(),
        }
    }

    /// Reads once, and takes what came from the budgets. `Some`: there will be nothing more.
    pub(super) async fn fill(&mut self, connection: &Connection) -> Result<Option<End>, ConnError> {
        let config = &connection.config;
        let overdue = self.frames.deadline(config.pace);
        let until = overdue.map_or_else(|| Instant::now() + config.idle_timeout, Instant::from);
        tokio::select! {
            biased;
            () = connection.stop.cancelled() => return Ok(Some(End::Stopped)),
            ready = timeout_at(until, self.read.readable()) => match ready {
                Err(_) if overdue.is_some() => return Err(ConnError::TooSlow),
                Err(_) => return Ok(Some(End::Idle)),
                Ok(ready) => ready?,
            },
        }
        let count = match self.read.try_read_buf(&mut self.frames.room()) {
            Ok(0) if self.frames.is_empty() => return Ok(Some(End::Closed)),
            Ok(0) => return Err(ConnError::Truncated),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        connection.activity.touch();
        connection
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
        self.held.grow(connection.ingest.budget(), count).await;
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
    /// Gives back its part of the node's budget: who waits for records must not hold up who brings some.
    pub(super) fn release(&mut self) {
        self.reservation = Reservation::default();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the listener sees of a connection, to choose which idle one makes room.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    last_ms: AtomicU64,
    in_flight: AtomicU32,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            last_ms: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
        }
    }

    pub(super) fn touch(&self) {
        let ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// Time since the last byte came; `None` while a request is being answered.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        let is_idle = self.in_flight.load(Ordering::Relaxed) == 0;
        is_idle.then(|| self.epoch.elapsed().saturating_sub(last))
    }
}
