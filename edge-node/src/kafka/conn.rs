//! One client's connection: a thin loop around [`super::dispatch`].
//!
//! ```text
//!          ┌────────── reader ───────────┐   bounded queue,   ┌───── writer ──────┐
//! socket ─►│ frame ─► plan ─► check ─►   │──► in order of  ──►│ wait for the sync │─► socket
//!          │ append (to the store's queue)│     requests      │ encode, send      │
//!          └─────────────────────────────┘                    └───────────────────┘
//! ```
//! What reads the log waits for its turn in the writer, so a fetch that waits for records holds up only what
//! its own connection asks behind it, as in Kafka.
//!
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
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::admin;
use super::dispatch::{self, Plan, Unanswerable};
use super::error::ErrorCode;
use super::fetching::{Ask, PendingFetch};
use super::frame::FrameError;
use super::intake::{Activity, Claim, Intake};
use super::metadata::{self, Cluster, MetadataRequest, TopicAnswer};
use super::pending::PendingProduce;
use super::{KafkaConfig, KafkaStats, producer_id};
use crate::egress::{Egress, ReadFailed};
use crate::ingest::Ingest;

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
    Read(#[from] ReadFailed),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A request's answer, or what it waits for.
#[derive(Debug)]
enum Reply {
    Ready(Vec<u8>),
    Produce(PendingProduce),
    Fetch(PendingFetch),
    /// What the store is asked when it is this request's turn.
    Ask(Ask),
}

#[derive(Debug)]
struct Queued {
    reply: Reply,
    claim: Claim,
}

/// One connection; consumed by [`Connection::serve`].
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) config: Arc<KafkaConfig>,
    pub(super) ingest: Ingest,
    pub(super) egress: Egress,
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
                // nobody waits for records any more
                self.stop.cancel();
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
            Plan::Produce(request) => {
                Reply::Produce(PendingProduce::append(&self.ingest, &header, request).await)
            }
            Plan::Fetch(request) => Reply::Fetch(PendingFetch::new(&header, request)),
            Plan::ListOffsets(asked) => Reply::Ask(Ask::ListOffsets(header, asked)),
            Plan::EpochEnds(asked) => Reply::Ask(Ask::EpochEnds(header, asked)),
            Plan::Admin(request) => Reply::Ready(request.answer(&self.ingest, &header).await),
            Plan::Cluster(endpoints) => {
                let id = &self.config.cluster_id;
                let cluster = Cluster { host, port, id };
                Reply::Ready(admin::encode_cluster(&header, endpoints, &cluster))
            }
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

    /// Sends answers in the order of their requests.
    async fn answer(
        &self,
        mut write: OwnedWriteHalf,
        mut queue: mpsc::Receiver<Queued>,
    ) -> Result<(), ConnError> {
        while let Some(Queued { reply, mut claim }) = queue.recv().await {
            let mut allowance = None;
            let bytes = match reply {
                Reply::Ready(bytes) => Some(bytes),
                Reply::Produce(pending) => {
                    let settled = pending.settle(&self.stats.refused_batches).await?;
                    if let Some(since) = settled.full_since {
                        self.hold_back(since + self.config.full_delay).await;
                    }
                    settled.response
                }
                Reply::Fetch(pending) => {
                    claim.release();
                    let answer = pending.settle(&self.egress, &self.stop).await?;
                    allowance = answer.allowance;
                    Some(answer.bytes)
                }
                Reply::Ask(ask) => Some(ask.answer(&self.egress).await?),
            };
            if let Some(bytes) = bytes {
                timeout(self.config.write_timeout, write.write_all(&bytes))
                    .await
                    .map_err(|_| ConnError::NotReading)??;
                let sent = u64::try_from(bytes.len()).unwrap_or(0);
                self.stats.bytes_out.fetch_add(sent, Ordering::Relaxed);
            }
            drop(allowance);
            self.activity.touch();
            drop(claim);
        }
        write.shutdown().await?;
        Ok(())
    }

    /// Clients that retry at once while the store is full would only keep the node busy. Requests that
    /// were refused together are held together: behind a pipeline of them a retry would wait for each.
    async fn hold_back(&self, until: Instant) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// An address as clients can dial it: IPv4 as such even when the socket is IPv6.
fn text_of(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
