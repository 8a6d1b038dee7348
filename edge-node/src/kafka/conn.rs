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

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::admin;
use super::ahead::Ahead;
use super::api::{Api, Header};
use super::dispatch::{self, Plan, Unanswerable};
use super::error::ErrorCode;
use super::fetching::{Ask, PendingFetch};
use super::frame::FrameError;
use super::grouping::{self, PendingGroup};
use super::intake::{Activity, Claim, Incoming, Intake};
use super::login::Login;
use super::metadata::{self, Cluster, MetadataRequest, TopicAnswer};
use super::offsets::Question;
use super::pending::PendingProduce;
use super::throttle::{Mute, told_ms};
use super::{KafkaConfig, Services, producer_id};
use crate::access::{Principal, RefusedLogins};
use crate::egress::ReadFailed;
use crate::quota::Flow;
use crate::tls;

/// How a connection ended when nobody did anything wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client closed it between two requests.
    Closed,
    /// No request for the idle timeout.
    Idle,
    /// It could not log in.
    Refused,
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
    #[error("the client does not read its responses, or so slowly that it holds up others")]
    NotReading,
    #[error("answers took too long while the connection was closed")]
    Drain,
    #[error("the TLS handshake took too long")]
    SlowHandshake,
    #[error(transparent)]
    Read(#[from] ReadFailed),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A request's answer, or what it waits for.
#[derive(Debug)]
enum Reply {
    Ready(Vec<u8>),
    /// The connection ends with it.
    Last(Vec<u8>),
    Produce(PendingProduce),
    Fetch(PendingFetch),
    /// What the store is asked when it is this request's turn.
    Ask(Ask),
    /// What the groups' task has to answer.
    Group(PendingGroup),
}

#[derive(Debug)]
struct Queued {
    reply: Reply,
    claim: Claim,
}

/// Whose connection it is, what its client is told about this node, and how long it was held.
#[derive(Debug)]
struct Session {
    login: Login,
    peer: SocketAddr,
    host: String,
    port: u16,
    /// How long what is read next may have waited already, because nothing was read.
    muted: Duration,
}

/// The sending side of a socket, with TLS or without.
pub(super) type Outgoing = Box<dyn AsyncWrite + Send + Unpin>;

/// Largest request before a login; a login's messages are far smaller.
const MAX_LOGIN: usize = 64 * 1024;

/// One connection; consumed by [`Connection::serve`].
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) config: Arc<KafkaConfig>,
    pub(super) services: Services,
    pub(super) activity: Arc<Activity>,
    pub(super) stop: CancellationToken,
    pub(super) mute: Mute,
    /// Its listener's.
    pub(super) refused: Arc<RefusedLogins>,
}

impl Connection {
    pub(super) async fn serve(self, stream: TcpStream) -> Result<End, ConnError> {
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let peer = stream.peer_addr()?;
        let (host, port) = self
            .config
            .advertised
            .clone()
            .unwrap_or_else(|| (text_of(local.ip()), local.port()));
        let (read, write, common_name) = self.open(stream).await?;
        let session = Session {
            login: Login::new(Arc::clone(&self.services.access), common_name.as_deref()),
            peer,
            host,
            port,
            muted: Duration::ZERO,
        };
        let (sender, receiver) = mpsc::channel(self.config.max_inflight_requests.max(1));
        let intake = Intake::new(read, &self.config);
        let mut writer = std::pin::pin!(self.answer(write, receiver));
        let mut reader = std::pin::pin!(self.read(intake, sender, session));
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

    /// The two sides of the socket, and the common name of the client's certificate.
    async fn open(
        &self,
        stream: TcpStream,
    ) -> Result<(Incoming, Outgoing, Option<String>), ConnError> {
        let Some(acceptor) = &self.config.tls else {
            let (read, write) = stream.into_split();
            return Ok((Incoming::Plain(read), Box::new(write), None));
        };
        let acceptor = tokio_rustls::TlsAcceptor::from(acceptor.config());
        let stream = timeout(self.config.login_timeout, acceptor.accept(stream))
            .await
            .map_err(|_| ConnError::SlowHandshake)??;
        let certificates = stream.get_ref().1.peer_certificates();
        let common_name = certificates.and_then(|chain| tls::common_name(chain.first()?));
        let (read, write) = tokio::io::split(stream);
        Ok((Incoming::Tls(Box::new(read)), Box::new(write), common_name))
    }

    async fn read(
        &self,
        mut intake: Intake,
        sender: mpsc::Sender<Queued>,
        mut session: Session,
    ) -> Result<End, ConnError> {
        let opened = Instant::now();
        loop {
            loop {
                let most = self.config.max_request_bytes;
                let is_stranger = session.login.principal().is_none();
                let most = if is_stranger {
                    most.min(MAX_LOGIN)
                } else {
                    most
                };
                intake.frames.set_max_frame(most);
                let muted = self.unmuted().await;
                intake.frames.pause(muted);
                session.muted = session.muted.max(muted);
                let Some((frame, wire_bytes)) = intake.frames.take()? else {
                    break;
                };
                self.services.stats.requests.fetch_add(1, Ordering::Relaxed);
                let claim = intake.claim(wire_bytes, &self.activity);
                let reply = self.carry_out(&frame, &mut session).await?;
                let is_refused = matches!(reply, Reply::Last(_));
                if sender.send(Queued { reply, claim }).await.is_err() {
                    return Ok(End::Closed); // the writer failed and says why
                }
                if is_refused {
                    return Ok(End::Refused);
                }
            }
            intake.frames.mark(now());
            let idle_until = Instant::now() + self.config.idle_timeout;
            let is_stranger = session.login.principal().is_none();
            let login_until = is_stranger.then(|| opened + self.config.login_timeout);
            let before = Instant::now();
            if let Some(end) = intake.fill(self, idle_until, login_until).await? {
                return Ok(end);
            }
            // what had to be waited for came that much later
            session.muted = session.muted.saturating_sub(before.elapsed());
        }
    }

    async fn carry_out(&self, frame: &Bytes, session: &mut Session) -> Result<Reply, ConnError> {
        let (header, plan) = dispatch::plan(frame)?;
        let is_login = matches!(
            header.api,
            Some(Api::ApiVersions | Api::SaslHandshake | Api::SaslAuthenticate)
        );
        match (plan, session.login.principal().cloned()) {
            (Plan::Handshake(mechanism), _) => {
                let step = session.login.handshake(&header, &mechanism);
                Ok(Reply::Ready(step.response))
            }
            (Plan::Authenticate(bytes), _) => {
                let step = session.login.authenticate(&header, &bytes).await;
                let Some(reason) = step.refusal else {
                    return Ok(Reply::Ready(step.response));
                };
                let refused = &self.services.stats.refused_logins;
                refused.fetch_add(1, Ordering::Relaxed);
                let claimed = session.login.claimed();
                self.refused.tell(session.peer, claimed, &reason);
                // who guesses has to wait
                self.hold_back(Instant::now() + self.config.refused_delay)
                    .await;
                Ok(Reply::Last(step.response))
            }
            (Plan::Reply(bytes), _) if is_login => Ok(Reply::Ready(bytes)),
            (_, None) => Err(Unanswerable::NotLoggedIn { key: header.key }.into()),
            (_, Some(_)) if !session.login.has_place() => {
                let refused = &self.services.stats.refused_connections;
                refused.fetch_add(1, Ordering::Relaxed);
                debug!("Connection refused: its user has as many as allowed");
                // no answer says it: as a broker that is at a limit of connections
                Ok(Reply::Last(Vec::new()))
            }
            (plan, Some(principal)) => Ok(self.serve_plan(header, plan, session, &principal).await),
        }
    }

    async fn serve_plan(
        &self,
        header: Header,
        plan: Plan<'_>,
        session: &Session,
        principal: &Principal,
    ) -> Reply {
        let (host, port) = (session.host.as_str(), session.port);
        match plan {
            Plan::Reply(bytes) => Reply::Ready(bytes),
            Plan::Handshake(_) | Plan::Authenticate(_) => Reply::Last(Vec::new()),
            Plan::Metadata(request) => {
                let topics = self.topics(&request, principal).await;
                let id = &self.config.cluster_id;
                let cluster = Cluster { host, port, id };
                let bytes = metadata::encode(header.correlation, header.version, &cluster, &topics);
                Reply::Ready(bytes)
            }
            Plan::ProducerId => {
                let id = self.services.ingest.next_producer_id().await;
                let id = id.map_err(|error| {
                    debug!(%error, "No producer id");
                    ErrorCode::KafkaStorageError
                });
                Reply::Ready(producer_id::encode(header.correlation, id))
            }
            Plan::Produce(request) => {
                let meter = self.meter(principal);
                self.settle_debt(&meter, session.muted).await;
                let throttle = meter.count(Flow::Produce, request.bytes());
                let ingest = &self.services.ingest;
                let told = throttle.map_or(0, told_ms);
                let pending =
                    PendingProduce::append(ingest, principal, &header, request, told).await;
                if let Some(wait) = throttle {
                    self.mute(wait);
                }
                Reply::Produce(pending)
            }
            Plan::Fetch(mut request) => {
                let names = request.topics.iter().map(|topic| &topic.name);
                let refused = names.filter(|name| !principal.may_consume(name));
                request.refused = refused.cloned().collect();
                Reply::Fetch(PendingFetch::new(&header, request, self.meter(principal)))
            }
            Plan::ListOffsets(mut asked) => {
                asked.refused = unseen(&asked, principal);
                Reply::Ask(Ask::ListOffsets(header, asked))
            }
            Plan::EpochEnds(mut asked) => {
                asked.refused = unseen(&asked, principal);
                Reply::Ask(Ask::EpochEnds(header, asked))
            }
            Plan::Admin(request) => {
                let ingest = &self.services.ingest;
                let deleted = request.deletes().to_vec();
                let answer = request.answer(ingest, &header, principal).await;
                for topic in deleted {
                    // a topic of the same name that comes later begins anew
                    if ingest.known(&topic).is_none() {
                        self.services.groups.topic_gone(&topic).await;
                    }
                }
                Reply::Ready(answer)
            }
            Plan::Cluster(endpoints) => {
                let id = &self.config.cluster_id;
                let cluster = Cluster { host, port, id };
                Reply::Ready(admin::encode_cluster(&header, endpoints, &cluster))
            }
            Plan::Coordinators(request) => {
                Reply::Ready(grouping::coordinators(&header, &request, host, port))
            }
            Plan::Group(request) => {
                let request =
                    grouping::complete(request, &self.services.ingest, session.peer.ip()).await;
                let groups = &self.services.groups;
                Reply::Group(PendingGroup::ask(groups, &header, request, principal).await)
            }
        }
    }

    async fn topics(
        &self,
        request: &MetadataRequest<'_>,
        principal: &Principal,
    ) -> Vec<TopicAnswer> {
        let Some(names) = &request.topics else {
            let topics = self.services.ingest.topics();
            let seen = topics
                .into_iter()
                .filter(|topic| principal.may_see(topic.name.as_str()));
            return seen.map(TopicAnswer::Found).collect();
        };
        let mut answers = Vec::new();
        for name in names {
            if !principal.may_see(name) {
                let error = ErrorCode::TopicAuthorizationFailed;
                answers.push(TopicAnswer::Missing((*name).to_owned(), error));
                continue;
            }
            let may_create =
                request.may_create && (principal.may_produce(name) || principal.may_administer());
            let creator = may_create.then(|| principal.creator());
            answers.push(match self.services.ingest.topic_for(name, creator).await {
                Ok(topic) => TopicAnswer::Found(topic),
                Err(error) => TopicAnswer::Missing((*name).to_owned(), (&error).into()),
            });
        }
        answers
    }

    /// Sends answers in the order of their requests.
    async fn answer(
        &self,
        mut write: Outgoing,
        mut queue: mpsc::Receiver<Queued>,
    ) -> Result<(), ConnError> {
        let mut ahead = Ahead::new(self.config.ahead_kept);
        loop {
            let next = tokio::select! {
                biased;
                next = queue.recv() => next,
                () = ahead.expired() => {
                    ahead.drop_piece();
                    continue;
                }
            };
            let Some(Queued { reply, mut claim }) = next else {
                break;
            };
            let mut allowance = None;
            let bytes = match reply {
                Reply::Ready(bytes) | Reply::Last(bytes) => Some(bytes),
                Reply::Produce(pending) => {
                    let settled = pending.settle(&self.services.stats.refused_batches).await?;
                    if let Some(since) = settled.full_since {
                        self.hold_back(since + self.config.full_delay).await;
                    }
                    settled.response
                }
                Reply::Fetch(pending) => {
                    // before it waits
                    claim.release();
                    let (egress, patience) = (&self.services.egress, self.config.fetch_patience);
                    let answer = pending.settle(egress, &mut ahead, patience, &self.stop);
                    let answer = answer.await?;
                    allowance = answer.allowance;
                    if let Some(wait) = answer.throttle {
                        self.mute(wait);
                    }
                    Some(answer.bytes)
                }
                Reply::Ask(ask) => Some(ask.answer(&self.services.egress).await?),
                Reply::Group(pending) => {
                    claim.release();
                    match pending.settle(&self.stop).await {
                        Some(bytes) => Some(bytes),
                        // the node stops: clients find the group again after it
                        None => return Ok(()),
                    }
                }
            };
            // what it was received in is with the store, or gone
            claim.release();
            if let Some(bytes) = bytes {
                self.send(&mut write, &bytes, allowance.is_some()).await?;
                let sent = u64::try_from(bytes.len()).unwrap_or(0);
                self.services
                    .stats
                    .bytes_out
                    .fetch_add(sent, Ordering::Relaxed);
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
    pub(super) async fn hold_back(&self, until: Instant) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

/// Topics of a question that the user may not know of.
fn unseen<T>(asked: &Question<T>, principal: &Principal) -> BTreeSet<String> {
    let names = asked.topics.iter().map(|(name, _)| name);
    names
        .filter(|name| !principal.may_see(name))
        .cloned()
        .collect()
}

/// An address as clients can dial it: IPv4 as such even when the socket is IPv6.
pub(super) fn text_of(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
