//! The site's half of a session.
//!
//! ```text
//!  a log:  Undeclared ─► Declared ─► Checking ─► Ready ◄─► Reading
//!                            │          │          ▲
//!                            ▼          ▼          ▼
//!                          Parked (mismatch,    Trimmed (asking for the chain at the
//!                          too large), Denied   log's start, then a gap up to there)
//! ```
//! A denied log becomes a declared one when the hub answers again: its rules may change.
//!
//! Which log reads and which stream goes next is the schedule's to say: by class, fair between the topics of
//! a class, in order within a log. Reads under way and items waiting are bounded by `max_reads`.
//!
//! Nothing is sent before the hub was heard about every log: should one of them need a new incarnation,
//! what the others have in flight would come again under it.

mod delay;
mod flow;
mod log;
mod port;
mod restart;
mod schedule;
mod topics;
mod transit;
mod turns;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::log::{Log, Phase};
pub use self::port::{Begin, DataStream, ReadResult, SenderConfig, SenderOutput, Unsettled};
use self::schedule::Schedule;
use super::window::SendCredit;
use super::{Close, broken};
use crate::class::{Class, ClassSet, PerClass};
use crate::ids::{Offset, TopicPartition, Track};
use crate::wire::{
    Ack, Anchor, Code, Farewell, Frame, FrameDecoder, Handle, Hello, LogEntry, LogRange,
    MAX_VERSION, MIN_MAX_BATCH_BYTES, MIN_VERSION, Welcome,
};

/// Bytes of log entries in a hello, and in one declare.
const HELLO_LOGS_LEN: usize = 768 << 10;
const DECLARE_LOGS_LEN: usize = 56 << 10;

#[derive(Debug)]
enum State {
    Fresh,
    Connecting { deadline: Duration },
    Open(Session),
    Closed,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    max_batch_bytes: u32,
    keep_alive: Duration,
    next_ping: Duration,
    last_heard: Duration,
}

impl Session {
    fn dead_at(&self) -> Duration {
        self.last_heard.saturating_add(self.keep_alive * 3)
    }
}

/// The site's half of one connection.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    state: State,
    logs: BTreeMap<Handle, Log>,
    undeclared: VecDeque<Handle>,
    /// Which log reads next, what was read and waits, and which stream goes next.
    schedule: Schedule,
    /// Questions about the chain that are not asked yet, and how many wait for their answer.
    unasked: VecDeque<(Handle, Offset)>,
    questions: usize,
    /// Logs of which it is not known where to go on.
    unresolved: usize,
    /// It was known of all logs once.
    is_begun: bool,
    /// A log needs a new incarnation: when to stop waiting for the others.
    renewal: Option<Duration>,
    /// What sessions before this one left.
    recalled: Unsettled,
    in_flight: usize,
    credit: SendCredit,
    pings: u64,
    /// The codecs of the welcome.
    codecs: Vec<u8>,
    decoder: FrameDecoder,
    outputs: VecDeque<SenderOutput>,
    #[cfg(test)]
    pub(super) mutation: Option<super::mutation::Mutation>,
}

impl Sender {
    /// A session that has not begun: add the logs, then [`Sender::start`].
    #[must_use]
    pub fn new(config: SenderConfig) -> Self {
        let SenderConfig {
            classes,
            max_reads,
            max_read_bytes,
            ..
        } = config;
        Self {
            config,
            state: State::Fresh,
            logs: BTreeMap::new(),
            undeclared: VecDeque::new(),
            schedule: Schedule::new(classes, max_reads, max_read_bytes),
            unasked: VecDeque::new(),
            questions: 0,
            unresolved: 0,
            is_begun: false,
            renewal: None,
            recalled: Unsettled::default(),
            in_flight: 0,
            credit: SendCredit::default(),
            pings: 0,
            codecs: Vec::new(),
            decoder: FrameDecoder::default(),
            outputs: VecDeque::new(),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// Adds a log under a handle of the caller's choice (the store's partition number). A handle that
    /// is known keeps its log as it is. Before [`Sender::start`] it goes into the hello, later into a
    /// declare. `acked` is the store's own cursor: the next offset that it does not know the hub to hold.
    pub fn add_log(
        &mut self,
        handle: Handle,
        log: TopicPartition,
        class: Class,
        range: LogRange,
        acked: Offset,
    ) {
        debug_assert!(range.is_valid(), "log range out of order");
        if self.logs.contains_key(&handle) {
            return;
        }
        let is_classless = broken!(self, ForgetClass);
        let class = if is_classless { Class::Normal } else { class };
        self.schedule.add(handle, &log.topic, class);
        let log = Log {
            range,
            phase: Phase::Undeclared,
            known_acked: acked,
            first_unacked: acked.max(range.start),
            is_unproven: false,
            is_start_known: true,
            acked: range.origin,
            read: range.origin,
            in_flight: VecDeque::new(),
            held: 0,
            seq: 0,
            is_restarted: false,
            is_stale: false,
            hub_chain: 0,
            has_other_track: log.track == Track::Second,
            anchors: Vec::new(),
            begin: Some(Begin::Fresh),
            log,
        };
        self.logs.insert(handle, log);
        self.undeclared.push_back(handle);
        self.unresolved += 1;
    }

    /// This log's partition has another track, which is added too: to be called right after
    /// [`Sender::add_log`].
    pub fn pair_track(&mut self, handle: Handle) {
        if let Some(log) = self.logs.get_mut(&handle) {
            log.has_other_track = true;
        }
    }

    /// The saved states of this log's codec, best first: to be called right after [`Sender::add_log`]. The
    /// hub says which of them it has too. Those beyond [`crate::wire::MAX_ANCHORS`] are not offered.
    pub fn offer_anchors(&mut self, handle: Handle, anchors: Vec<Anchor>) {
        if let Some(log) = self.logs.get_mut(&handle)
            && log.phase == Phase::Undeclared
        {
            log.anchors = anchors;
            log.anchors.truncate(crate::wire::MAX_ANCHORS);
        }
    }

    /// Takes over what the session before this one left.
    pub fn recall(&mut self, unsettled: Unsettled) {
        self.recalled = unsettled;
    }

    /// What this session leaves to the next one. Bounded by the streams that one session may have in flight.
    #[must_use]
    pub fn unsettled(&self) -> Unsettled {
        let mut unsettled = self.recalled.clone();
        for (handle, log) in &self.logs {
            let ends = log
                .in_flight
                .iter()
                .map(|(end, chain)| ((*handle, *end), *chain));
            unsettled.0.extend(ends);
        }
        unsettled
    }

    /// Sends the hello.
    pub fn start(&mut self, now: Duration) {
        if !matches!(self.state, State::Fresh) {
            return;
        }
        let hello = Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            nonce: self.config.nonce,
            incarnation: self.config.incarnation,
            software: self.config.software.clone(),
            codecs: self.config.codecs.clone(),
            logs: self.next_declared(HELLO_LOGS_LEN),
        };
        self.send(&Frame::Hello(hello));
        self.state = State::Connecting {
            deadline: now.saturating_add(self.config.handshake_timeout),
        };
    }

    /// The log's end moved. Unknown handles and lower ends are ignored.
    pub fn log_grew(&mut self, handle: Handle, end: Offset, now: Duration) {
        if let Some(log) = self.logs.get_mut(&handle)
            && end > log.range.end
        {
            log.range.end = end;
            self.schedule.grew(handle, now);
            self.enqueue(handle);
        }
    }

    /// Which classes may be sent. The others keep what they have until they may again.
    pub fn set_classes_allowed(&mut self, allowed: ClassSet) {
        self.schedule.set_allowed(allowed);
    }

    /// How long records wait for company, by class.
    pub fn set_max_delay(&mut self, max_delay: PerClass<Duration>) {
        self.schedule.set_max_delay(max_delay);
    }

    /// Bytes that may be with the transport: see [`Sender::handle_delivered`]. One stream may go beyond
    /// them, and what is less urgent takes no room from what is more urgent. Without a bound at first. `usual` is what
    /// it would be if no batch were larger than [`Sender::set_max_read_bytes`] wants.
    pub fn set_send_budget(&mut self, bytes: u64, usual: u64) {
        self.schedule.set_send_budget(bytes, usual);
    }

    /// Raw bytes that one read asks for, in place of the configuration's.
    pub fn set_max_read_bytes(&mut self, bytes: u32) {
        self.schedule.set_read_bytes(bytes.max(1));
    }

    /// The link has carried so many bytes, of whichever streams and with repetitions. True: a class waits until it has
    /// carried more, so say that again soon.
    pub fn handle_carried(&mut self, bytes: u64) -> bool {
        self.schedule.carried(bytes)
    }

    /// The peer's transport has a whole stream: its class and its [`DataStream::len`].
    pub fn handle_delivered(&mut self, class: Class, bytes: u64) {
        self.schedule.delivered(class, bytes);
    }

    /// Bytes of the streams that were handed to the transport and are not delivered.
    #[must_use]
    pub fn bytes_in_transit(&self) -> u64 {
        self.schedule.bytes_in_transit()
    }

    /// Those of them of classes that may not be sent any more: only the end of the session takes them back.
    #[must_use]
    pub fn bytes_forbidden(&self) -> u64 {
        self.schedule.bytes_forbidden()
    }

    /// Bytes of the control stream, as they came.
    pub fn handle_control(&mut self, bytes: &[u8], now: Duration) {
        self.decoder.feed(bytes);
        while !self.is_closed() {
            match self.decoder.poll() {
                Ok(Some(frame)) => self.handle_frame(frame, now),
                Ok(None) => return,
                Err(error) => self.fail(Code::BadFrame, error.to_string()),
            }
        }
    }

    fn handle_frame(&mut self, frame: Frame, now: Duration) {
        if let State::Open(session) = &mut self.state {
            session.last_heard = now;
        }
        let is_open = matches!(self.state, State::Open(_));
        match frame {
            Frame::Welcome(welcome) if !is_open => self.handle_welcome(welcome, now),
            Frame::Refuse(farewell) if !is_open => self.close_by_peer(farewell),
            Frame::Goodbye(farewell) => self.close_by_peer(farewell),
            Frame::Checkpoints(entries) if is_open => self.handle_checkpoints(&entries),
            Frame::Ack(ack) if is_open => self.handle_ack(&ack),
            Frame::Credit(limit) if is_open => self.credit.raise(limit),
            Frame::Restart(restart) if is_open => self.handle_restart(restart),
            Frame::Policy(text) if is_open => self.outputs.push_back(SenderOutput::Policy(text)),
            Frame::Missing(ids) if is_open => self.outputs.push_back(SenderOutput::Missing(ids)),
            Frame::Window(bytes) if is_open => self.outputs.push_back(SenderOutput::Window(bytes)),
            Frame::Ping(number) => self.send(&Frame::Pong(number)),
            Frame::Pong(_) => {}
            Frame::Hello(_)
            | Frame::Declare(_)
            | Frame::Welcome(_)
            | Frame::Refuse(_)
            | Frame::Checkpoints(_)
            | Frame::Ack(_)
            | Frame::Credit(_)
            | Frame::Restart(_)
            | Frame::Policy(_)
            | Frame::Missing(_)
            | Frame::Window(_) => self.fail(Code::BadFrame, "frame out of place".into()),
        }
    }

    fn handle_welcome(&mut self, welcome: Welcome, now: Duration) {
        let problem = if !(MIN_VERSION..=MAX_VERSION).contains(&welcome.version) {
            Some((Code::Version, "hub chose a version that was not offered"))
        } else if !welcome
            .codecs
            .iter()
            .all(|c| self.config.codecs.contains(c))
        {
            Some((Code::BadFrame, "hub chose a codec that was not offered"))
        } else if welcome.max_batch_bytes < MIN_MAX_BATCH_BYTES {
            Some((Code::BadFrame, "hub's largest batch is below the minimum"))
        } else if welcome.keep_alive_ms == 0 {
            Some((Code::BadFrame, "hub's keep-alive interval is zero"))
        } else {
            None
        };
        if let Some((code, text)) = problem {
            return self.fail(code, text.into());
        }
        let keep_alive = Duration::from_millis(welcome.keep_alive_ms.into());
        self.codecs.clone_from(&welcome.codecs);
        self.state = State::Open(Session {
            max_batch_bytes: welcome.max_batch_bytes,
            keep_alive,
            next_ping: now.saturating_add(keep_alive),
            last_heard: now,
        });
        self.credit.raise(welcome.credit_limit);
        self.schedule.set_window(welcome.credit_limit);
        self.outputs.push_back(SenderOutput::Established {
            version: welcome.version,
            codecs: welcome.codecs,
            max_batch_bytes: welcome.max_batch_bytes,
        });
        self.handle_checkpoints(&welcome.checkpoints);
    }

    /// Acknowledgements are cumulative: one at or below the last is ignored; one beyond what was sent,
    /// or inside a stream, ends the session.
    fn handle_ack(&mut self, ack: &Ack) {
        self.credit.raise(ack.credit_limit);
        for &(handle, next_offset) in &ack.acked {
            let Some(log) = self.logs.get_mut(&handle) else {
                return self.fail(Code::BadFrame, "acknowledges an unknown log".into());
            };
            if next_offset <= log.acked {
                continue;
            }
            let Some(streams) = log
                .in_flight
                .iter()
                .position(|(end, _)| *end == next_offset)
            else {
                return self.fail(Code::BadFrame, "acknowledges what was not sent".into());
            };
            log.in_flight.drain(..=streams);
            log.acked = next_offset;
            self.enqueue(handle);
            self.in_flight -= streams + 1;
            self.outputs.push_back(SenderOutput::Acked {
                handle,
                next_offset,
            });
        }
    }

    /// Time passed: records that waited for company, keep-alive and dead peer.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.schedule.release(now);
        match &mut self.state {
            State::Connecting { deadline } if now >= *deadline => {
                self.fail(Code::Timeout, "no welcome in time".into());
            }
            State::Open(session) if now >= session.dead_at() => {
                self.fail(Code::Timeout, "nothing heard from the hub".into());
            }
            State::Open(_) if self.renewal.is_some_and(|deadline| now >= deadline) => {
                self.close(Code::HistoryMismatch, None, "new incarnation");
            }
            State::Open(session) if now >= session.next_ping => {
                session.next_ping = now.saturating_add(session.keep_alive);
                self.pings += 1;
                self.send(&Frame::Ping(self.pings));
            }
            State::Fresh | State::Connecting { .. } | State::Open(_) | State::Closed => {}
        }
    }

    /// Pings out of turn: whether the hub is there, and what it said last, matters at once. Its answer makes
    /// the hub's transport notice what was lost before it.
    pub fn ping(&mut self, now: Duration) {
        if let State::Open(session) = &mut self.state {
            session.next_ping = now.saturating_add(session.keep_alive);
            self.pings += 1;
            self.send(&Frame::Ping(self.pings));
        }
    }

    /// When to call [`Sender::handle_timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.state {
            State::Fresh | State::Closed => None,
            State::Connecting { deadline } => Some(*deadline),
            State::Open(session) => {
                let next = session.next_ping.min(session.dead_at());
                let others = [self.renewal, self.schedule.deadline()];
                Some(others.into_iter().flatten().fold(next, Duration::min))
            }
        }
    }

    /// The next thing to do. Control and events come before data, data before reads.
    pub fn poll_output(&mut self) -> Option<SenderOutput> {
        if matches!(self.state, State::Open(_)) && !self.undeclared.is_empty() {
            let logs = self.next_declared(DECLARE_LOGS_LEN);
            self.send(&Frame::Declare(logs));
        }
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let State::Open(session) = self.state else {
            return None;
        };
        let is_resolved = self.unresolved == 0;
        self.is_begun |= is_resolved;
        let is_over = is_resolved && self.in_flight == 0 || broken!(self, RenewAtOnce);
        if self.renewal.is_some() && is_over {
            self.close(Code::HistoryMismatch, None, "new incarnation");
            return self.outputs.pop_front();
        }
        if let Some(question) = self.poll_question() {
            return Some(question);
        }
        if !self.is_begun || self.renewal.is_some() {
            return None;
        }
        self.poll_data()
            .or_else(|| self.poll_read(session.max_batch_bytes))
    }

    /// Says goodbye and ends the session: no output comes after this but the goodbye and the close.
    pub fn close(&mut self, code: Code, retry_after: Option<Duration>, text: &str) {
        if self.is_closed() {
            return;
        }
        let farewell = Farewell {
            code,
            retry_after_ms: millis(retry_after),
            text: text.to_owned(),
        };
        if !matches!(self.state, State::Fresh) {
            self.send(&Frame::Goodbye(farewell));
        }
        self.finish(Close {
            code,
            by_peer: false,
            retry_after: None,
            text: text.to_owned(),
        });
    }

    /// True once [`SenderOutput::Close`] is due or was given.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The codecs of the welcome, beside 0; none before.
    #[must_use]
    pub fn codecs(&self) -> &[u8] {
        &self.codecs
    }

    /// Streams sent and not acknowledged.
    #[must_use]
    pub fn streams_in_flight(&self) -> usize {
        self.in_flight
    }

    /// It is known of all logs where to go on.
    #[cfg(test)]
    pub(super) fn is_resolved(&self) -> bool {
        self.unresolved == 0
    }

    /// Reads under way and items waiting for credit.
    #[must_use]
    pub fn reads_and_items(&self) -> usize {
        self.schedule.items()
    }

    /// The log behind a handle.
    #[must_use]
    pub fn log(&self, handle: Handle) -> Option<&TopicPartition> {
        self.logs.get(&handle).map(|log| &log.log)
    }

    /// The hub has said that it takes this log.
    #[must_use]
    pub fn is_taken(&self, handle: Handle) -> bool {
        let phase = self.logs.get(&handle).map(|log| log.phase);
        phase.is_some_and(|phase| match phase {
            Phase::Undeclared | Phase::Declared | Phase::Denied => false,
            Phase::Checking(_)
            | Phase::Ready
            | Phase::Reading { .. }
            | Phase::Trimmed
            | Phase::Parked => true,
        })
    }

    fn fail(&mut self, code: Code, text: String) {
        self.close(code, None, &text);
    }

    fn close_by_peer(&mut self, farewell: Farewell) {
        let retry_after = Duration::from_millis(farewell.retry_after_ms.into());
        self.finish(Close {
            code: farewell.code,
            by_peer: true,
            retry_after: Some(retry_after).filter(|wait| !wait.is_zero()),
            text: farewell.text,
        });
    }

    fn finish(&mut self, close: Close) {
        self.state = State::Closed;
        self.schedule.clear();
        self.unasked.clear();
        // what was acknowledged is told again next time; a driver that closed in order to begin a new
        // incarnation must not hear of the old one's offsets any more
        self.outputs
            .retain(|output| matches!(output, SenderOutput::Control(_)));
        self.outputs.push_back(SenderOutput::Close(close));
    }

    fn send(&mut self, frame: &Frame) {
        self.outputs
            .push_back(SenderOutput::Control(frame.encode()));
    }

    /// Takes undeclared logs, as many as fit into `max_len` bytes.
    fn next_declared(&mut self, max_len: usize) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        let mut bytes = Vec::new();
        while let Some(&handle) = self.undeclared.front() {
            let Some(log) = self.logs.get_mut(&handle) else {
                self.undeclared.pop_front();
                continue;
            };
            let entry = LogEntry {
                handle,
                log: log.log.clone(),
                range: log.declared(),
                has_other_track: log.has_other_track,
                anchors: log.anchors.clone(),
            };
            entry.put(&mut bytes);
            if bytes.len() > max_len {
                break;
            }
            log.phase = Phase::Declared;
            entries.push(entry);
            self.undeclared.pop_front();
        }
        entries
    }
}

pub(super) fn millis(duration: Option<Duration>) -> u32 {
    duration.map_or(0, |duration| {
        u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
    })
}
