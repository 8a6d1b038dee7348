//! One session: the loop between `link::Receiver`, a connection and the site's lane.
//!
//! Order of the branches: everything that comes out is carried out first; then the lane's answers and
//! events, the control stream, room in the lane's queue, data streams, the timer, the connection's end,
//! and last the wish to stop. Nothing in the loop waits for the lane: while Kafka is down it may take
//! nothing for minutes, and keep-alives are answered all the same.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::batch::{OpenError, Opened, remembers, supported_codecs};
use shared::ids::{Incarnation, SiteId};
use shared::link::{Close, Delivered, LogAnswer, Receiver, ReceiverConfig, ReceiverOutput};
use shared::transport::{Connection, ControlRecv, ControlSend, ReadError};
use shared::wire::{Checkpoint as WireCheckpoint, Code, DataContent, Handle, LogEntry, LogReply};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::budget::Share;
use super::memories::LogMemories;
use super::states::{Saved, StateKey};
use super::{Intake, IntakeStats};
use crate::commit::{
    Checkpoint, Content, Delivery, EndReason, LaneEvent, LaneHandle, LaneRequest, SessionId,
};
use crate::config::SiteRule;

/// Control frames waiting to be written. A link that takes none of so many is dead.
const CONTROL_QUEUE: usize = 1024;
/// Events of the lane waiting for the session.
const EVENT_QUEUE: usize = 1024;
/// Data streams that are read at once. Each holds at most one batch; the transport holds back the others.
const READERS: usize = 32;
/// How long a lane may take to let a session in: it may have to end an older one or reach Kafka.
const LANE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a goodbye may take to reach the site.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

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
    agreed: Option<Saved>,
}

/// What the lane said instead of checkpoints.
#[derive(Debug)]
enum Refusal {
    Ended(EndReason),
    Unreachable,
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
    let session = Session {
        context,
        receiver: Receiver::new(receiver_config(context.intake), Duration::ZERO),
        origin: Instant::now(),
        connection,
        control_out,
        writer,
        events_in,
        memories: LogMemories::new(
            Arc::clone(&context.intake.states),
            usize::try_from(context.intake.config.max_batch_bytes).unwrap_or(usize::MAX),
        ),
        lane: context.intake.lanes.lane_of(context.site),
        undelivered: VecDeque::new(),
        questions: VecDeque::new(),
        share: context.intake.budget.join(),
        is_registered: false,
    };
    session.run(recv, events, stop).await
}

fn receiver_config(intake: &Intake) -> ReceiverConfig {
    let mut codecs = supported_codecs();
    if !intake.states.has_room() {
        codecs.retain(|codec| !remembers(*codec));
    }
    ReceiverConfig {
        codecs,
        max_logs: intake.config.max_logs,
        max_batch_bytes: intake.config.max_batch_bytes,
        window: intake.budget.window(),
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
    memories: LogMemories,
    lane: LaneHandle,
    /// What the lane's queue had no room for, in order. The receiver bounds what it delivers.
    undelivered: VecDeque<LaneRequest>,
    /// Questions to the lane, asked one at a time in this order. The receiver bounds the logs that
    /// they are about.
    questions: VecDeque<PendingAnswer>,
    share: Share,
    is_registered: bool,
}

impl Session<'_> {
    async fn run(
        mut self,
        mut recv: ControlRecv,
        mut events: mpsc::Receiver<LaneEvent>,
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
            self.share.update(self.receiver.held_bytes());
            let wake = self.receiver.poll_timeout().map(|at| self.origin + at);
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
                permit = lane.reserve(), if !self.undelivered.is_empty() => {
                    match (permit, self.undelivered.pop_front()) {
                        (Ok(permit), Some(request)) => permit.send(request),
                        (Err(_gone), _) => lane_is_gone(&mut self.receiver),
                        (Ok(_), None) => {}
                    }
                }
                Some(stream) = readers.join_next() => self.handle_stream(stream),
                // `accept_data` is cancel-safe: a stream that is not taken stays in the queue
                accepted = self.connection.accept_data(), if may_read => {
                    match accepted {
                        Ok(stream) => {
                            readers.spawn(stream.read(max_len));
                        }
                        Err(error) => break lost(&error.to_string()),
                    }
                }
                () = room, if !may_read => {}
                () = sleep_until(wake) => {
                    let now = self.now();
                    self.receiver.handle_timeout(now);
                }
                error = self.connection.closed() => break lost(&error.to_string()),
                () = stop.cancelled() => {
                    let after = self.context.intake.config.retry_after;
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
                    info!(%incarnation, software, logs = logs.len(), "Site connected");
                    self.register(incarnation);
                    let question = self.ask(Some(incarnation), logs);
                    self.questions.push_back(question);
                }
                ReceiverOutput::Lookup { logs } => {
                    let question = self.ask(None, logs);
                    self.questions.push_back(question);
                }
                ReceiverOutput::Excess { logs } => {
                    let limit = self.context.intake.config.max_logs;
                    warn!(logs, limit, "More logs than one session may have: denied");
                }
                ReceiverOutput::Deliver(delivered) => self.deliver(delivered),
                ReceiverOutput::Close(close) => return Some(close),
            }
        }
        None
    }

    fn register(&mut self, incarnation: Incarnation) {
        let register = &self.context.intake.register;
        if register.connected(self.context.site, incarnation, shared::time::wall_ms()) {
            self.context.intake.took_over(self.context.site);
        }
        self.is_registered = true;
    }

    /// Asks the site's lane for checkpoints, attaching to it first when an incarnation is given. To get in
    /// has a limit; an open session keeps asking, its other logs go on meanwhile.
    fn ask(&self, incarnation: Option<Incarnation>, logs: Vec<LogEntry>) -> PendingAnswer {
        let lane = self.lane.clone();
        let limit = incarnation.map(|_| LANE_TIMEOUT);
        let (site, session) = (self.context.site.clone(), self.context.id);
        let owner = site.clone();
        let events = self.events_in.clone();
        let rule = self
            .context
            .intake
            .config
            .sites
            .rule(self.context.site.as_str());
        let is_allowed = |topic: &str| rule.is_some_and(|rule: &SiteRule| rule.allows_topic(topic));
        let allowed: Vec<bool> = logs
            .iter()
            .map(|entry| is_allowed(entry.log.topic.as_str()))
            .collect();
        let states = Arc::clone(&self.context.intake.states);
        let names = logs.iter().map(|entry| entry.log.clone()).collect();
        Box::pin(async move {
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
            let checkpoints = match limit {
                Some(limit) => tokio::time::timeout(limit, asked)
                    .await
                    .map_err(|_elapsed| Refusal::Unreachable)??,
                // ends with the lane or with the session
                None => asked.await?,
            };
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
                    agreed: agreed.map(|(_, saved)| saved),
                    key,
                }
            };
            let pairs: Vec<_> = logs.into_iter().zip(replies).collect();
            // states may be on disk
            let told = tokio::task::spawn_blocking(|| pairs.into_iter().map(told).collect());
            told.await.map_err(|_failed| Refusal::Unreachable)
        })
    }

    fn handle_answer(&mut self, answer: Answer) {
        match answer {
            Ok(told) => {
                let answers: Vec<LogAnswer> = told.iter().map(|told| told.answer).collect();
                for told in told {
                    let chain = match told.answer.reply {
                        LogReply::At(checkpoint) => checkpoint.chain,
                        LogReply::Absent | LogReply::Denied => 0,
                    };
                    self.memories
                        .begin(told.handle, told.key, chain, told.agreed);
                }
                let now = self.now();
                self.receiver.handle_checkpoints(&answers, now);
            }
            Err(Refusal::Ended(reason)) => self.refuse(reason),
            Err(Refusal::Unreachable) => {
                let after = self.context.intake.config.retry_after;
                let text = "the lane does not answer: is Kafka up?";
                self.receiver.refuse(Code::Busy, Some(after), text);
            }
        }
    }

    fn handle_event(&mut self, event: LaneEvent) {
        match event {
            LaneEvent::Committed(checkpoints) => {
                for (log, checkpoint) in checkpoints {
                    self.receiver.handle_committed(&log, checkpoint.next_offset);
                }
                self.receiver
                    .set_window(self.context.intake.budget.window());
            }
            LaneEvent::Ended(reason) => self.refuse(reason),
        }
    }

    fn refuse(&mut self, reason: EndReason) {
        let after = self.context.intake.config.retry_after;
        let (code, after, text) = match reason {
            EndReason::Superseded => (
                Code::Superseded,
                None,
                "the same site opened another session",
            ),
            EndReason::Fenced => (Code::NotOwner, None, "another hub owns the site's lane"),
            EndReason::OutOfOrder => (Code::BadFrame, None, "delivery out of order"),
            EndReason::Malformed => (Code::BadFrame, None, "records cannot be read"),
            EndReason::Damaged => (Code::Internal, Some(after), "a checkpoint cannot be read"),
            EndReason::Stopping => (Code::Stopping, Some(after), "hub-node stops"),
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

    fn deliver(&mut self, delivered: Delivered) {
        let stats = &self.context.intake.stats;
        let (base_offset, next_offset) = (delivered.base_offset, delivered.next_offset);
        let Opened { blocks, chain } = match self.memories.open(&delivered) {
            Ok(opened) => opened,
            Err(OpenError::Lost(error)) => {
                debug!(log = %delivered.log, base_offset, %error, "Log begins again");
                IntakeStats::add(&stats.restarts, 1);
                return self.receiver.restart(delivered.header.handle, base_offset);
            }
            Err(OpenError::Broken(error)) => {
                return self
                    .receiver
                    .close(Code::BadFrame, None, &error.to_string());
            }
        };
        let Delivered { log, header, .. } = delivered;
        let records = next_offset - base_offset;
        let content = match header.content {
            DataContent::Gap { reason } => {
                info!(%log, from = base_offset, to = next_offset, reason, "Gap");
                IntakeStats::add(&stats.gap_records, records);
                Content::Gap { reason }
            }
            DataContent::Records(_) => {
                IntakeStats::add(&stats.records, records);
                Content::Records(blocks)
            }
        };
        let delivery = Delivery {
            log,
            base_offset,
            next: Checkpoint { next_offset, chain },
            content,
            bytes: usize::try_from(header.charge()).unwrap_or(usize::MAX),
        };
        let request = LaneRequest::Deliver {
            session: self.context.id,
            delivery,
        };
        if !self.undelivered.is_empty() {
            self.undelivered.push_back(request);
            return;
        }
        match self.lane.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(request)) => self.undelivered.push_back(request),
            Err(TrySendError::Closed(_)) => lane_is_gone(&mut self.receiver),
        }
    }

    async fn end(mut self, close: Close) -> Close {
        if self.is_registered {
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
