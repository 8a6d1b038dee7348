//! One session: the loop between `link::Receiver`, a connection and the site's lane.
//!
//! Order of the branches: everything that comes out is carried out first; then the lane's answers and
//! events, the control stream, room in the lane's queue, what was decoded, data streams, the timers, changed rules, the
//! connection's end, and last the wish to stop. Nothing in the loop waits for the lane: while Kafka is down it may take
//! nothing for minutes, and keep-alives are answered all the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use shared::batch::{CODEC_LONG, OpenError, Opened, remembers, supported_codecs};
use shared::ids::{Incarnation, Offset, SiteId, TopicName, TopicPartition};
use shared::link::{Close, Delivered, LogAnswer, Receiver, ReceiverConfig, ReceiverOutput};
use shared::transport::{Connection, ControlRecv, ControlSend, DataStreamIn, ReadError};
use shared::wire::{
    Anchor, Checkpoint as WireCheckpoint, Code, DataContent, GAP_OTHER_TRACK, Handle, LogEntry,
    LogReply, MAX_OFFSET,
};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::budget::Share;
use super::ingress::Allowance;
use super::memories::LogMemories;
use super::opener::{Begin, Opener, Outcome};
use super::partial::{Part, Partial};
use super::slow_start::SlowStart;
use super::states::StateKey;
use super::{Intake, IntakeStats};
use crate::chunks::SiteStore;
use crate::commit::{
    Checkpoint, Content, Delivery, EndReason, LaneEvent, LaneHandle, LaneRequest, RoomShare,
    SessionId,
};
use crate::config::{SiteRule, SitesConfig};

/// Control frames waiting to be written. A link that takes none of so many is dead.
const CONTROL_QUEUE: usize = 1024;
/// Events of the lane waiting for the session.
const EVENT_QUEUE: usize = 1024;
/// Data streams that are read at once: all that the transport lets a site begin ([`super::partial`]).
const READERS: usize = 256;
/// What streams of a site may have on their way beyond its credit: their headers.
const HEADERS: u64 = 64 << 10;
/// How long a lane may take to let a session in: it may have to end an older one or reach Kafka.
const LANE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a goodbye may take to reach the site.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a site is told of a log whose other track it does not know of: no history of its own agrees with it, and it
/// begins a new incarnation.
const BEYOND_EVERY_LOG: Checkpoint = Checkpoint {
    next_offset: MAX_OFFSET,
    chain: 0,
};

/// Who the session is of.
#[derive(Debug)]
pub(super) struct SessionContext<'a> {
    pub(super) intake: &'a Intake,
    pub(super) site: &'a SiteId,
    pub(super) id: SessionId,
}

type Answer = Result<Vec<Told>, Refusal>;
type PendingAnswer = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Where one log goes on.
#[derive(Debug)]
struct Told {
    handle: Handle,
    key: StateKey,
    answer: LogAnswer,
    /// The state of its codec that both ends have.
    agreed: Option<Anchor>,
}

/// What the lane said instead of checkpoints.
#[derive(Debug)]
enum Refusal {
    Ended(EndReason),
    Unreachable,
    /// It was not even asked: too many sites come at once.
    Later(Duration),
}

/// Runs a session until it ends.
pub(super) async fn run(
    context: &SessionContext<'_>,
    connection: Connection,
    stop: &CancellationToken,
) -> Close {
    let handshake_timeout = context.intake.config.handshake_timeout;
    let accepted = tokio::time::timeout(handshake_timeout, connection.accept_control()).await;
    let (send, recv) = match accepted {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return lost(&error.to_string()),
        Err(_elapsed) => return lost("no control stream"),
    };
    let mut writer = JoinSet::new();
    let (control_out, control_queue) = mpsc::channel(CONTROL_QUEUE);
    writer.spawn(write_control(send, control_queue));
    let (events_in, events) = mpsc::channel(EVENT_QUEUE);
    let mut sites = context.intake.sites();
    let own_limit = sites.borrow_and_update().ingress_of(context.site.as_str());
    let ingress = &context.intake.ingress;
    let received = Arc::<AtomicU64>::default();
    let memories = LogMemories::new(
        Arc::clone(&context.intake.states),
        SiteStore::new(Arc::clone(&context.intake.chunks), context.site.clone()),
        usize::try_from(context.intake.config.max_batch_bytes).unwrap_or(usize::MAX),
    );
    let session = Session {
        context,
        receiver: Receiver::new(receiver_config(context.intake), Duration::ZERO),
        origin: Instant::now(),
        connection,
        control_out,
        writer,
        events_in,
        opener: Opener::new(memories, context.intake.turns.clone()),
        lane: context.intake.lanes.lane_of(context.site),
        undelivered: VecDeque::new(),
        questions: VecDeque::new(),
        share: context.intake.budget.join(),
        room: context.intake.lanes.room_of(context.site),
        partial: Arc::new(Partial::new(
            context.intake.budget.most() + HEADERS,
            Arc::clone(&received),
        )),
        allowance: Arc::new(ingress.join(context.site, own_limit)),
        received,
        slow_start: SlowStart::new(),
        policy: None,
        receive_window: 0,
        told_window: 0,
        arrival: None,
        is_welcome: false,
        is_turned_away: false,
        denied: BTreeMap::new(),
    };
    session.run(recv, events, sites, stop).await
}

fn receiver_config(intake: &Intake) -> ReceiverConfig {
    let mut codecs = supported_codecs();
    if intake.chunks.are_kept() {
        codecs.push(CODEC_LONG);
    }
    if !intake.states.has_room() {
        codecs.retain(|codec| !remembers(*codec));
    }
    ReceiverConfig {
        codecs,
        max_logs: intake.config.max_logs,
        max_batch_bytes: intake.config.max_batch_bytes,
        window: SlowStart::new().window(intake.budget.window()),
        keep_alive: intake.config.keep_alive,
        handshake_timeout: intake.config.handshake_timeout,
    }
}

struct Session<'a> {
    context: &'a SessionContext<'a>,
    receiver: Receiver,
    origin: Instant,
    connection: Connection,
    control_out: mpsc::Sender<Bytes>,
    writer: JoinSet<()>,
    events_in: mpsc::Sender<LaneEvent>,
    opener: Opener,
    lane: LaneHandle,
    /// What has no room in the lane's queue yet, in order. The receiver bounds what it delivers.
    undelivered: VecDeque<Delivery>,
    /// Questions to the lane, asked one at a time in this order. The receiver bounds the logs that
    /// they are about.
    questions: VecDeque<PendingAnswer>,
    share: Share,
    room: RoomShare,
    partial: Arc<Partial>,
    allowance: Arc<Allowance>,
    /// Bytes of data streams, for the register.
    received: Arc<AtomicU64>,
    slow_start: SlowStart,
    /// What the site was told last.
    policy: Option<Arc<str>>,
    receive_window: u32,
    /// The one that the site knows of.
    told_window: u32,
    /// Who waits for the welcome.
    arrival: Option<Arrival>,
    is_welcome: bool,
    /// The lane never heard of it.
    is_turned_away: bool,
    /// Logs that the site's rule does not allow: they are answered again when it does. Bounded by the logs that
    /// a session may have.
    denied: BTreeMap<Handle, TopicName>,
}

/// What a hello said.
struct Arrival {
    incarnation: Incarnation,
    software: String,
    logs: usize,
}

impl Session<'_> {
    async fn run(
        mut self,
        mut recv: ControlRecv,
        mut events: mpsc::Receiver<LaneEvent>,
        mut sites: watch::Receiver<Arc<SitesConfig>>,
        stop: &CancellationToken,
    ) -> Close {
        let mut buffer = vec![0; 16 << 10];
        let mut readers = JoinSet::new();
        let lane = self.lane.clone();
        let max_len = self.receiver.max_stream_len();
        let close = loop {
            if let Some(close) = self.carry_out() {
                break close;
            }
            let held = self.receiver.held_bytes() + self.partial.held();
            self.share.update(held);
            let wake = self.receiver.poll_timeout().map(|at| self.origin + at);
            let raise = self
                .slow_start
                .poll_timeout(self.context.intake.budget.window());
            let raise = raise.filter(|_| self.is_welcome).map(|at| self.origin + at);
            let may_hand_over = self.may_hand_over();
            let room = self.context.intake.budget.room();
            let may_read = readers.len() < READERS && self.share.may_read();
            tokio::select! {
                biased;
                answer = first_answer(&mut self.questions) => {
                    self.questions.pop_front();
                    self.handle_answer(answer);
                }
                Some(event) = events.recv() => self.handle_event(event),
                // `read` is cancel-safe: it takes nothing before it returns
                read = recv.read(&mut buffer) => match read {
                    Ok(Some(len)) => {
                        let now = self.now();
                        self.receiver.handle_control(&buffer[..len], now);
                    }
                    Ok(None) => break lost("control stream ended"),
                    Err(error) => break lost(&error.to_string()),
                },
                // `reserve` is cancel-safe: it loses nothing but its turn
                permit = lane.reserve(), if may_hand_over => {
                    match (permit, self.undelivered.pop_front()) {
                        (Ok(permit), Some(delivery)) => permit.send(request(self.context.id, &self.room, delivery)),
                        (Err(_gone), _) => lane_is_gone(&mut self.receiver),
                        (Ok(_), None) => {}
                    }
                }
                // `next` is cancel-safe: what is at work or waits stays in its place
                opened = self.opener.next() => match opened {
                    Ok(outcome) => self.handle_opened(outcome),
                    Err(error) => self.receiver.close(Code::Internal, None, &error.to_string()),
                },
                Some(stream) = readers.join_next() => self.handle_stream(stream),
                // `accept_data` is cancel-safe: a stream that is not taken stays in the queue
                accepted = self.connection.accept_data(), if may_read => {
                    match accepted {
                        Ok(stream) => {
                            let allowance = Arc::clone(&self.allowance);
                            let part = self.partial.begin();
                            readers.spawn(read_stream(stream, max_len, part, allowance));
                        }
                        Err(error) => break lost(&error.to_string()),
                    }
                }
                () = room, if !may_read => {}
                () = sleep_until(wake) => {
                    let now = self.now();
                    self.receiver.handle_timeout(now);
                }
                () = sleep_until(raise) => {
                    let (most, now) = (self.context.intake.budget.window(), self.now());
                    self.slow_start.handle_timeout(most, now);
                    self.set_window();
                }
                Ok(()) = sites.changed() => {
                    let sites = Arc::clone(&sites.borrow_and_update());
                    self.handle_rules(&sites, false);
                }
                error = self.connection.closed() => break lost(&error.to_string()),
                () = stop.cancelled() => {
                    let after = self.context.intake.admission.hint();
                    self.receiver.close(Code::Stopping, Some(after), "hub-node stops");
                }
            }
        };
        self.end(close).await
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Does everything that the receiver wants done; the end of the session if that is among it.
    fn carry_out(&mut self) -> Option<Close> {
        while let Some(output) = self.receiver.poll_output() {
            match output {
                ReceiverOutput::Control(bytes) => {
                    if self.control_out.try_send(bytes).is_err() {
                        self.receiver
                            .close(Code::Timeout, None, "control stream is stuck");
                    }
                }
                ReceiverOutput::Attach {
                    incarnation,
                    software,
                    logs,
                    ..
                } => {
                    self.arrival = Some(Arrival {
                        incarnation,
                        software,
                        logs: logs.len(),
                    });
                    let question = self.ask(Some(incarnation), logs);
                    self.questions.push_back(question);
                }
                ReceiverOutput::Lookup { logs } => {
                    let question = self.ask(None, logs);
                    self.questions.push_back(question);
                }
                ReceiverOutput::Excess { logs } => {
                    let limit = self.context.intake.config.max_logs;
                    IntakeStats::add(&self.context.intake.stats.refused_logs, logs as u64);
                    warn!(logs, limit, "More logs than one session may have: denied");
                }
                ReceiverOutput::Deliver(delivered) => self.opener.open(delivered),
                ReceiverOutput::Close(close) => return Some(close),
            }
        }
        None
    }

    fn register(&mut self, arrival: Arrival) {
        let Arrival {
            incarnation,
            software,
            logs,
        } = arrival;
        info!(%incarnation, software, logs, "Site connected");
        let register = &self.context.intake.register;
        let received = Arc::clone(&self.received);
        let now = shared::time::wall_ms();
        let before = register.connected(self.context.site, incarnation, received, now);
        if let Some(before) = before {
            let (intake, site) = (self.context.intake, self.context.site);
            intake.took_over(site, &before, &incarnation.to_string());
        }
    }

    /// Asks the site's lane for checkpoints, attaching to it first when an incarnation is given. To get in
    /// has a limit; an open session keeps asking, its other logs go on meanwhile.
    fn ask(&self, incarnation: Option<Incarnation>, logs: Vec<LogEntry>) -> PendingAnswer {
        let lane = self.lane.clone();
        let limit = incarnation.map(|_| LANE_TIMEOUT);
        let (site, session) = (self.context.site.clone(), self.context.id);
        let owner = site.clone();
        let events = self.events_in.clone();
        let admission = incarnation.map(|_| Arc::clone(&self.context.intake.admission));
        let sites = Arc::clone(&self.context.intake.sites().borrow());
        let rule = sites.rule(self.context.site.as_str());
        let is_allowed = |topic: &str| rule.is_some_and(|rule: &SiteRule| rule.allows_topic(topic));
        let allowed: Vec<bool> = logs
            .iter()
            .map(|entry| is_allowed(entry.log.topic.as_str()))
            .collect();
        let states = Arc::clone(&self.context.intake.states);
        let names = logs.iter().map(|entry| entry.log.clone());
        // a store that is older than its partition's second track does not know of it
        let alone = logs.iter().filter(|entry| !entry.has_other_track);
        let others = alone.map(|entry| TopicPartition {
            track: entry.log.track.other(),
            ..entry.log.clone()
        });
        let names = names.chain(others).collect();
        Box::pin(async move {
            let place = match &admission {
                Some(admission) => Some(admission.enter().await.map_err(Refusal::Later)?),
                None => None,
            };
            let asked = async {
                if let Some(incarnation) = incarnation {
                    let (reply, answer) = oneshot::channel();
                    let attach = LaneRequest::Attach {
                        site,
                        incarnation,
                        session,
                        events,
                        reply,
                    };
                    lane.send(attach)
                        .await
                        .map_err(|_gone| Refusal::Unreachable)?;
                    answer
                        .await
                        .map_err(|_gone| Refusal::Unreachable)?
                        .map_err(Refusal::Ended)?;
                }
                let (reply, answer) = oneshot::channel();
                let question = LaneRequest::Checkpoints {
                    session,
                    logs: names,
                    reply,
                };
                lane.send(question)
                    .await
                    .map_err(|_gone| Refusal::Unreachable)?;
                answer
                    .await
                    .map_err(|_gone| Refusal::Unreachable)?
                    .map_err(Refusal::Ended)
            };
            let mut checkpoints = match limit {
                Some(limit) => tokio::time::timeout(limit, asked)
                    .await
                    .map_err(|_elapsed| Refusal::Unreachable)??,
                // ends with the lane or with the session
                None => asked.await?,
            };
            let others = checkpoints.split_off(logs.len().min(checkpoints.len()));
            let told = logs.iter().zip(&mut checkpoints);
            let alone = told.filter(|(entry, _)| !entry.has_other_track);
            for ((_, checkpoint), other) in alone.zip(others) {
                if other.is_some() {
                    *checkpoint = Some(BEYOND_EVERY_LOG);
                }
            }
            let replies = checkpoints.into_iter().zip(allowed).map(reply_of);
            let told = move |(entry, reply): (LogEntry, LogReply)| {
                let key = StateKey {
                    site: owner.clone(),
                    log: entry.log,
                };
                let agreed = states.agree(&key, &entry.anchors);
                Told {
                    handle: entry.handle,
                    answer: LogAnswer {
                        reply,
                        anchor: agreed.as_ref().map_or(0, |(place, _)| *place),
                    },
                    agreed: agreed.map(|(_, saved)| saved.anchor),
                    key,
                }
            };
            let pairs: Vec<_> = logs.into_iter().zip(replies).collect();
            // states may be on disk
            let told = tokio::task::spawn_blocking(|| pairs.into_iter().map(told).collect());
            let told = told.await.map_err(|_failed| Refusal::Unreachable)?;
            if let Some(place) = place {
                place.welcome();
            }
            Ok(told)
        })
    }

    fn handle_answer(&mut self, answer: Answer) {
        match answer {
            Ok(told) => {
                let answers: Vec<LogAnswer> = told.iter().map(|told| told.answer).collect();
                let denied = told
                    .iter()
                    .filter(|told| told.answer.reply == LogReply::Denied)
                    .map(|told| (told.handle, told.key.log.topic.clone()));
                let denied: Vec<(Handle, TopicName)> = denied.collect();
                for told in told {
                    let chain = match told.answer.reply {
                        LogReply::At(checkpoint) => checkpoint.chain,
                        LogReply::Absent | LogReply::Denied => 0,
                    };
                    self.opener.begin(Begin {
                        handle: told.handle,
                        key: told.key,
                        chain,
                        agreed: told.agreed,
                    });
                }
                let now = self.now();
                let arrival = self.arrival.take();
                let is_first = arrival.is_some();
                if let Some(arrival) = arrival {
                    self.is_welcome = true;
                    self.register(arrival);
                    let is_crowded = self.context.intake.admission.is_crowded();
                    self.slow_start.begin(is_crowded, now);
                    self.set_window();
                }
                self.receiver.handle_checkpoints(&answers, now);
                self.deny(denied);
                if is_first {
                    self.tell_receive_window();
                    let sites = Arc::clone(&self.context.intake.sites().borrow());
                    self.handle_rules(&sites, true);
                }
            }
            Err(Refusal::Ended(reason)) => self.refuse(reason),
            Err(Refusal::Unreachable) => {
                let text = "the lane does not answer: is Kafka up?";
                self.later(self.context.intake.admission.hint(), text);
            }
            Err(Refusal::Later(after)) => {
                self.is_turned_away = true;
                self.later(after, "many sites come at once");
            }
        }
    }

    fn later(&mut self, after: Duration, text: &str) {
        IntakeStats::add(&self.context.intake.stats.told_later, 1);
        self.receiver.refuse(Code::Busy, Some(after), text);
    }

    /// What the budget and the session's own start grant.
    fn set_window(&mut self) {
        let budget = &self.context.intake.budget;
        let window = self.slow_start.window(budget.window());
        self.receiver.set_window(window);
        let bytes = u32::try_from(budget.receive_window()).unwrap_or(u32::MAX);
        if bytes != self.receive_window {
            self.receive_window = bytes;
            self.connection.set_receive_window(bytes);
            if bytes.abs_diff(self.told_window) > self.told_window / 8 {
                self.tell_receive_window();
            }
        }
    }

    fn tell_receive_window(&mut self) {
        if self.is_welcome {
            self.told_window = self.receive_window;
            self.receiver
                .tell_receive_window(self.receive_window.into());
        }
    }

    /// The rules for sites, at first and when they have changed.
    /// A session that begins is told its policy in any case: the site keeps the last one that it was told.
    fn handle_rules(&mut self, sites: &SitesConfig, is_first: bool) {
        let site = self.context.site.as_str();
        if sites.rule(site).is_none() {
            let text = format!("site `{site}` is not on the allow list");
            return self.receiver.refuse(Code::NotAllowed, None, &text);
        }
        self.allow_again(sites);
        self.allowance.set(sites.ingress_of(site));
        let policy = sites.policy_for(site);
        if self.is_welcome && (is_first || policy != self.policy) {
            self.tell_policy(policy);
        }
    }

    /// These logs were refused.
    fn deny(&mut self, logs: Vec<(Handle, TopicName)>) {
        if logs.is_empty() {
            return;
        }
        let stats = &self.context.intake.stats;
        IntakeStats::add(&stats.refused_logs, logs.len() as u64);
        let topics: BTreeSet<&str> = logs.iter().map(|(_, topic)| topic.as_str()).collect();
        let (topic, topics) = (topics.first().copied().unwrap_or_default(), topics.len());
        info!(
            topic,
            topics, "Topics that no rule for this site allows: refused"
        );
        self.denied.extend(logs);
        self.tell_denied();
    }

    /// Logs that were refused and that the rules allow are answered again.
    fn allow_again(&mut self, sites: &SitesConfig) {
        let Some(rule) = sites.rule(self.context.site.as_str()) else {
            return;
        };
        let allowed = self.denied.iter();
        let allowed = allowed.filter(|(_, topic)| rule.allows_topic(topic.as_str()));
        let allowed: Vec<Handle> = allowed.map(|(handle, _)| *handle).collect();
        if allowed.is_empty() {
            return;
        }
        info!(logs = allowed.len(), "Logs that were refused are allowed");
        for handle in &allowed {
            self.denied.remove(handle);
        }
        self.receiver.ask_again(&allowed);
        self.tell_denied();
    }

    /// For the site's line in the status.
    fn tell_denied(&self) {
        let topics: BTreeSet<&str> = self.denied.values().map(TopicName::as_str).collect();
        let register = &self.context.intake.register;
        register.refused(self.context.site, topics.into_iter());
    }

    /// The site's link policy is this from here on; `None`: what its own file says.
    fn tell_policy(&mut self, policy: Option<Arc<str>>) {
        self.receiver.push_policy(policy.as_deref().unwrap_or(""));
        self.policy = policy;
    }

    fn handle_event(&mut self, event: LaneEvent) {
        match event {
            LaneEvent::Committed(checkpoints) => {
                let now = self.now();
                for (log, checkpoint) in checkpoints {
                    let next = checkpoint.next_offset;
                    self.receiver.handle_committed(&log, next, now);
                }
                self.slow_start.committed(self.now());
                self.set_window();
            }
            LaneEvent::Ended(reason) => self.refuse(reason),
        }
    }

    fn refuse(&mut self, reason: EndReason) {
        if reason == EndReason::Superseded && self.is_welcome {
            self.context.intake.superseded(self.context.site);
        }
        let after = || Some(self.context.intake.admission.hint());
        let (code, after, text) = match reason {
            EndReason::Superseded => (
                Code::Superseded,
                None,
                "the same site opened another session",
            ),
            EndReason::Fenced => (Code::NotOwner, None, "another hub owns the site's lane"),
            EndReason::OutOfOrder => (Code::BadFrame, None, "delivery out of order"),
            EndReason::Malformed => (Code::BadFrame, None, "records cannot be read"),
            EndReason::Damaged => (Code::Internal, after(), "a checkpoint cannot be read"),
            EndReason::Stopping => (Code::Stopping, after(), "hub-node stops"),
        };
        self.receiver.refuse(code, after, text);
    }

    fn handle_stream(&mut self, read: Result<Result<Bytes, ReadError>, tokio::task::JoinError>) {
        match read {
            Ok(Ok(stream)) => {
                let stats = &self.context.intake.stats;
                IntakeStats::add(&stats.payload_bytes, stream.len() as u64);
                let now = self.now();
                self.receiver.handle_data(&stream, now);
            }
            Ok(Err(ReadError::TooLong)) => {
                self.receiver.close(
                    Code::Limit,
                    None,
                    "data stream is longer than a batch may be",
                );
            }
            Ok(Err(ReadError::Lost(text))) => self.receiver.close(Code::BadFrame, None, &text),
            Err(error) => self
                .receiver
                .close(Code::Internal, None, &error.to_string()),
        }
    }

    fn handle_opened(&mut self, (delivered, opened): Outcome) {
        let stats = &self.context.intake.stats;
        let (base_offset, next_offset) = (delivered.base_offset, delivered.next_offset);
        let Opened { blocks, chain } = match opened {
            Ok(opened) => opened,
            Err(OpenError::Lost(error)) => {
                debug!(log = %delivered.log, base_offset, %error, "Log begins again");
                IntakeStats::add(&stats.restarts, 1);
                return self.restart(delivered.header.handle, base_offset);
            }
            Err(OpenError::Missing(ids)) => {
                debug!(log = %delivered.log, base_offset, chunks = ids.len(), "Chunks are missing");
                IntakeStats::add(&stats.restarts, 1);
                self.receiver.missing(ids);
                return self.restart(delivered.header.handle, base_offset);
            }
            Err(OpenError::Broken(error)) => {
                return self
                    .receiver
                    .close(Code::BadFrame, None, &error.to_string());
            }
        };
        let Delivered { log, header, .. } = delivered;
        let is_remembered =
            matches!(header.content, DataContent::Records(header) if remembers(header.codec));
        let records = next_offset - base_offset;
        stats.take(&header.content, records);
        let content = match header.content {
            DataContent::Gap { reason } => {
                if reason != GAP_OTHER_TRACK {
                    info!(%log, from = base_offset, to = next_offset, reason, "Gap");
                }
                Content::Gap { reason }
            }
            DataContent::Records(_) => Content::Records(blocks),
        };
        let delivery = Delivery {
            log,
            base_offset,
            next: Checkpoint { next_offset, chain },
            content,
            bytes: usize::try_from(header.charge()).unwrap_or(usize::MAX),
            hold: None,
        };
        self.undelivered.push_back(delivery);
        self.hand_over();
        if is_remembered && self.context.intake.states.is_over() {
            // at once, or others would be ended for it too; it comes back with codecs that remember nothing
            self.opener.release();
            let after = self.context.intake.admission.hint();
            self.later(after, "codecs of all sites take more memory than they may");
        }
    }

    fn restart(&mut self, handle: Handle, from: Offset) {
        self.opener.forget(handle);
        self.receiver.restart(handle, from);
    }

    /// Hands to the lane what it takes at once.
    fn hand_over(&mut self) {
        while self.may_hand_over() {
            match self.lane.try_reserve() {
                Ok(permit) => {
                    if let Some(delivery) = self.undelivered.pop_front() {
                        permit.send(request(self.context.id, &self.room, delivery));
                    }
                }
                Err(TrySendError::Full(())) => return,
                Err(TrySendError::Closed(())) => return lane_is_gone(&mut self.receiver),
            }
        }
    }

    fn may_hand_over(&self) -> bool {
        let next = self.undelivered.front();
        next.is_some_and(|delivery| self.room.may_take(delivery.bytes as u64))
    }

    async fn end(mut self, close: Close) -> Close {
        if self.is_welcome {
            let register = &self.context.intake.register;
            register.disconnected(self.context.site, shared::time::wall_ms());
        }
        // dropping the queue finishes the control stream, and with it the goodbye
        drop(self.control_out);
        if !close.by_peer && close.code != Code::Timeout {
            let drained = async { while self.writer.join_next().await.is_some() {} };
            let _late = tokio::time::timeout(GOODBYE_TIMEOUT, drained).await;
        }
        self.connection
            .close(close.code.to_u8().into(), close.text.as_bytes());
        self.undelivered.clear();
        if self.is_turned_away {
            return close;
        }
        // Last, because a lane that is stuck takes it late. One that is gone has no session to end.
        let _gone = self
            .lane
            .send(LaneRequest::Detach {
                session: self.context.id,
            })
            .await;
        close
    }
}

/// From here on it fills the lane's queue.
fn request(session: SessionId, room: &RoomShare, mut delivery: Delivery) -> LaneRequest {
    delivery.hold = Some(Arc::new(room.take(delivery.bytes as u64)));
    LaneRequest::Deliver { session, delivery }
}

fn lane_is_gone(receiver: &mut Receiver) {
    receiver.close(Code::Internal, None, "the lane is gone");
}

fn reply_of((checkpoint, is_allowed): (Option<Checkpoint>, bool)) -> LogReply {
    match checkpoint {
        _ if !is_allowed => LogReply::Denied,
        None => LogReply::Absent,
        Some(Checkpoint { next_offset, chain }) => {
            LogReply::At(WireCheckpoint { next_offset, chain })
        }
    }
}

fn lost(text: &str) -> Close {
    Close {
        code: Code::Timeout,
        by_peer: false,
        retry_after: None,
        text: text.to_owned(),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Cancel-safe: a question that is not answered yet stays in its place.
async fn first_answer(questions: &mut VecDeque<PendingAnswer>) -> Answer {
    match questions.front_mut() {
        Some(answer) => answer.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn write_control(mut send: ControlSend, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = queue.recv().await {
        if send.write(bytes).await.is_err() {
            return;
        }
    }
    // wait until the peer has it, so that the goodbye is not cut off by the connection's close
    send.finish().await;
}

/// What comes is paid for before more is read.
async fn read_stream(
    stream: DataStreamIn,
    max_len: usize,
    part: Part,
    allowance: Arc<Allowance>,
) -> Result<Bytes, ReadError> {
    let (part, allowance) = (&part, &allowance);
    let pay = |bytes| async move {
        part.came(bytes as u64).await;
        allowance.pay(bytes).await;
    };
    stream.read_paid(max_len, pay).await
}
