//! One client's connection: a thin loop around [`super::dispatch`].
//!
//! ```text
//!          ┌────────── reader ───────────┐   bounded queue,   ┌───── writer ──────┐
//! socket ─►│ frame ─► plan ─► check ─►   │──► in order of  ──►│ wait for the sync │─► socket
//!          │ append (to the store's queue)│     requests      │ encode, send      │
//!          └─────────────────────────────┘                    └───────────────────┘
//! ```
//! The reader doesn't wait for syncs, so requests are pipelined; it appends one after the other, so
//! the batches of one connection reach the store in order; the writer answers in order. Both live in
//! one task. An answer with success is sent only after the store's sync.
//!
//! At the limits (requests or bytes in flight, the node's budget) the reader stops reading and the
//! client's own window fills. A stream that can't be understood ends the connection after everything
//! before it was answered.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::api::Header;
use super::dispatch::{self, Plan, Unanswerable};
use super::error::ErrorCode;
use super::frame::{FrameBuffer, FrameError};
use super::metadata::{self, Cluster, MetadataRequest, TopicAnswer};
use super::produce::{self, Acks, Outcome, ProduceRequest, TopicOutcome};
use super::{KafkaConfig, KafkaStats, producer_id};
use crate::ingest::{Ingest, Pending, Refusal, Reservation};
use crate::store::AppendError;

/// Bounds for the time that a client says it waits for the sync.
const SYNC_WAIT_MS: std::ops::RangeInclusive<i32> = 1_000..=300_000;

/// How a connection ended when nobody did anything wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed it between two requests.
    Closed,
    /// No request for the idle timeout.
    Idle,
    /// This node stops, or made room for another client.
    Stopped,
}

/// Why a connection was ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Unanswerable(#[from] Unanswerable),
    #[error("the client closed inside a request")]
    Truncated,
    #[error("a request came too slowly")]
    TooSlow,
    #[error("the client does not read its responses")]
    NotReading,
    #[error("answers took too long while the connection was closed")]
    Drain,
    #[error(transparent)]
    Io(#[from] io::Error),
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

    fn touch(&self) {
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

/// What a request holds until it is answered.
#[derive(Debug)]
struct Claim {
    _window: Option<OwnedSemaphorePermit>,
    _reservation: Reservation,
    activity: Arc<Activity>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's answer, or what it waits for.
#[derive(Debug)]
enum Reply {
    Ready(Vec<u8>),
    Produce(PendingProduce),
}

#[derive(Debug)]
struct Queued {
    reply: Reply,
    claim: Claim,
}

#[derive(Debug)]
struct PendingProduce {
    correlation: i32,
    version: i16,
    acks: Acks,
    /// When the client stops waiting.
    deadline: Instant,
    topics: Vec<PendingTopic>,
}

#[derive(Debug)]
struct PendingTopic {
    name: String,
    partitions: Vec<(i32, Result<Pending, Outcome>)>,
}

/// One connection; consumed by [`Connection::serve`].
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) config: Arc<KafkaConfig>,
    pub(super) ingest: Ingest,
    pub(super) stats: Arc<KafkaStats>,
    pub(super) activity: Arc<Activity>,
    pub(super) stop: CancellationToken,
}

impl Connection {
    pub(super) async fn serve(self, stream: TcpStream) -> Result<End, ConnError> {
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let (host, port) = self
            .config
            .advertised
            .clone()
            .unwrap_or_else(|| (text_of(local.ip()), local.port()));
        let (read, write) = stream.into_split();
        let (sender, receiver) = mpsc::channel(self.config.max_inflight_requests.max(1));
        let intake = Intake::new(read, &self.config);
        let mut writer = std::pin::pin!(self.answer(write, receiver));
        let mut reader = std::pin::pin!(self.read(intake, sender, &host, port));
        tokio::select! {
            biased;
            // it ends first only when it fails
            result = &mut writer => result.map(|()| End::Closed),
            end = &mut reader => {
                // what was accepted before is answered even when what came after is garbage
                timeout(self.config.drain_timeout, writer)
                    .await
                    .map_err(|_| ConnError::Drain)??;
                end
            }
        }
    }

    async fn read(
        &self,
        mut intake: Intake,
        sender: mpsc::Sender<Queued>,
        host: &str,
        port: u16,
    ) -> Result<End, ConnError> {
        loop {
            while let Some((frame, wire_bytes)) = intake.frames.take()? {
                self.stats.requests.fetch_add(1, Ordering::Relaxed);
                let claim = intake.claim(wire_bytes, &self.activity);
                let reply = self.carry_out(&frame, host, port).await?;
                if sender.send(Queued { reply, claim }).await.is_err() {
                    return Ok(End::Closed); // the writer failed and says why
                }
            }
            intake.frames.mark(now());
            if let Some(end) = intake.fill(self).await? {
                return Ok(end);
            }
        }
    }

    async fn carry_out(&self, frame: &Bytes, host: &str, port: u16) -> Result<Reply, ConnError> {
        let (header, plan) = dispatch::plan(frame)?;
        Ok(match plan {
            Plan::Reply(bytes) => Reply::Ready(bytes),
            Plan::Metadata(request) => {
                let topics = self.topics(&request).await;
                let id = &self.config.cluster_id;
                let cluster = Cluster { host, port, id };
                let bytes = metadata::encode(header.correlation, header.version, &cluster, &topics);
                Reply::Ready(bytes)
            }
            Plan::ProducerId => {
                let id = self.ingest.next_producer_id().await;
                let id = id.map_err(|error| {
                    debug!(%error, "No producer id");
                    ErrorCode::KafkaStorageError
                });
                Reply::Ready(producer_id::encode(header.correlation, id))
            }
            Plan::Produce(request) => Reply::Produce(self.append(&header, request).await),
        })
    }

    async fn topics(&self, request: &MetadataRequest<'_>) -> Vec<TopicAnswer> {
        let Some(names) = &request.topics else {
            let topics = self.ingest.topics();
            return topics.into_iter().map(TopicAnswer::Found).collect();
        };
        let mut answers = Vec::new();
        for name in names {
            answers.push(match self.ingest.topic(name, request.may_create).await {
                Ok(topic) => TopicAnswer::Found(topic),
                Err(error) => TopicAnswer::Missing((*name).to_owned(), (&error).into()),
            });
        }
        answers
    }

    /// Appends every batch of a request, one after the other.
    async fn append(&self, header: &Header, request: ProduceRequest<'_>) -> PendingProduce {
        let wait_ms = request
            .timeout_ms
            .clamp(*SYNC_WAIT_MS.start(), *SYNC_WAIT_MS.end());
        let wait = Duration::from_millis(u64::from(wait_ms.unsigned_abs()));
        let mut topics = Vec::with_capacity(request.topics.len());
        for data in request.topics {
            let topic = self.ingest.topic(data.name, false).await;
            let mut partitions = Vec::with_capacity(data.partitions.len());
            for (index, records) in data.partitions {
                let pending = match (&topic, records) {
                    (Err(error), _) => Err(Outcome::Refused(error.into(), error.to_string())),
                    (Ok(_), None) => Err(Outcome::Refused(
                        ErrorCode::InvalidRecord,
                        "no records".to_owned(),
                    )),
                    (Ok(topic), Some(batch)) => {
                        // a negative index is no partition either
                        let partition = u32::try_from(index).unwrap_or(u32::MAX);
                        let appended = self.ingest.append(topic, partition, batch).await;
                        appended.map_err(|refusal: Refusal| {
                            Outcome::Refused((&refusal).into(), refusal.to_string())
                        })
                    }
                };
                partitions.push((index, pending));
            }
            topics.push(PendingTopic {
                name: data.name.to_owned(),
                partitions,
            });
        }
        PendingProduce {
            correlation: header.correlation,
            version: header.version,
            acks: request.acks,
            deadline: Instant::now() + wait,
            topics,
        }
    }

    /// Sends answers in the order of their requests.
    async fn answer(
        &self,
        mut write: OwnedWriteHalf,
        mut queue: mpsc::Receiver<Queued>,
    ) -> Result<(), ConnError> {
        while let Some(Queued { reply, claim }) = queue.recv().await {
            let bytes = match reply {
                Reply::Ready(bytes) => Some(bytes),
                Reply::Produce(pending) => self.settle(pending).await?,
            };
            if let Some(bytes) = bytes {
                timeout(self.config.write_timeout, write.write_all(&bytes))
                    .await
                    .map_err(|_| ConnError::NotReading)??;
            }
            self.activity.touch();
            drop(claim);
        }
        write.shutdown().await?;
        Ok(())
    }

    /// Waits for the syncs of one request. `None` when the producer wants no answer.
    async fn settle(&self, pending: PendingProduce) -> Result<Option<Vec<u8>>, ConnError> {
        let mut is_full = false;
        let mut refused = None;
        let mut outcomes = Vec::with_capacity(pending.topics.len());
        for topic in pending.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for (index, state) in topic.partitions {
                let outcome = match state {
                    Err(outcome) => outcome,
                    Ok(batch) => match timeout_at(pending.deadline, batch.synced()).await {
                        // the store has synced it: this is what an acknowledgement rests on
                        Ok(Ok(appended)) => Outcome::Stored(appended),
                        Ok(Err(error)) => {
                            is_full |= matches!(error, AppendError::Full(_));
                            Outcome::Refused((&error).into(), error.to_string())
                        }
                        Err(_) => Outcome::Refused(
                            ErrorCode::RequestTimedOut,
                            "the disk took longer than the request allows".to_owned(),
                        ),
                    },
                };
                if let Outcome::Refused(code, text) = &outcome {
                    debug!(topic = topic.name, index, ?code, text, "Batch not stored");
                    self.stats.refused_batches.fetch_add(1, Ordering::Relaxed);
                    refused.get_or_insert(*code);
                }
                partitions.push((index, outcome));
            }
            outcomes.push(TopicOutcome {
                name: topic.name,
                partitions,
            });
        }
        if is_full {
            // clients that retry at once would only keep the node busy
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(self.config.full_delay) => {}
            }
        }
        match (pending.acks, refused) {
            (Acks::None, Some(code)) => Err(Unanswerable::RefusedWithoutAcks(code).into()),
            (Acks::None, None) => Ok(None),
            (Acks::Synced | Acks::Invalid, _) => Ok(Some(produce::encode(
                pending.correlation,
                pending.version,
                &outcomes,
            ))),
        }
    }
}

/// The receiving side: socket, buffer, and what its bytes hold of the budgets.
#[derive(Debug)]
struct Intake {
    read: OwnedReadHalf,
    frames: FrameBuffer,
    /// Bytes that this connection may have in flight.
    window: Arc<Semaphore>,
    held_window: Option<OwnedSemaphorePermit>,
    held: Reservation,
}

impl Intake {
    fn new(read: OwnedReadHalf, config: &KafkaConfig) -> Self {
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

    fn claim(&mut self, bytes: usize, activity: &Arc<Activity>) -> Claim {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        let window = self.held_window.as_mut();
        Claim {
            _window: window.and_then(|held| held.split(bytes.min(held.num_permits()))),
            _reservation: self.held.split(bytes),
            activity: activity.clone(),
        }
    }

    /// Reads once, and takes what came from the budgets. `Some`: there will be nothing more.
    async fn fill(&mut self, connection: &Connection) -> Result<Option<End>, ConnError> {
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

/// An address as clients can dial it: IPv4 as such even when the socket is IPv6.
fn text_of(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
