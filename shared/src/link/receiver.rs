//! The hub's half of a session.
//!
//! ```text
//!  AwaitHello ─► Attaching (the driver asks the lane) ─► Open ─► Closed
//! ```
//! Data streams come in any order; per log they are put back in order and delivered, each offset once.
//! What came and is not committed is held against the credit window, in bytes, and against
//! `MAX_STREAMS_IN_FLIGHT`. Streams that came before are dropped and cost no credit.
//!
//! A log whose payload cannot be read because a codec's memory is lost starts again from there:
//! ```text
//!  in order ── restart() ─► waiting for the first stream that the site sent after it was told ─► in order
//! ```
//! What the site sent in between is void: it is taken in, given its credit back and dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::sender::millis;
use super::window::ReceiveCredit;
use super::{Close, broken};
use crate::dedup::ChunkId;
use crate::ids::{Incarnation, Offset, TopicPartition};
use crate::wire::{
    Ack, CheckpointEntry, Code, DataContent, DataHeader, Farewell, Frame, FrameDecoder, Handle,
    Hello, LogEntry, LogRange, LogReply, MAX_LOG_STREAMS, MAX_OFFSET, MAX_STREAMS_IN_FLIGHT,
    MAX_VERSION, Restart, Welcome, WireError, max_stream_len,
};

/// Entries in one frame of checkpoints or acknowledgements: at most 24 and 15 bytes each.
const MAX_CHECKPOINTS: usize = 2_500;
const MAX_ACKS: usize = 4_000;
/// How long an acknowledgement waits for what else is about to be committed: topics whose batches came together
/// share one packet back.
const ACK_HOLD: Duration = Duration::from_millis(100);

/// What the hub's half needs to know from the start.
#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    /// Codec ids that the driver can decode.
    pub codecs: Vec<u8>,
    /// Most logs of one session; those declared beyond are denied.
    pub max_logs: usize,
    /// Most decoded bytes of one stream, at least `wire::MIN_MAX_BATCH_BYTES`.
    pub max_batch_bytes: u32,
    /// Bytes that came and are not committed, as charged (see `wire::charge`). Below
    /// `max_batch_bytes + 256` a site with a batch of that size waits until it is raised.
    pub window: u64,
    /// The site pings this often; three times as long without a word ends the session.
    pub keep_alive: Duration,
    /// From the connection to the whole hello.
    pub handshake_timeout: Duration,
}

/// The lane's answer about one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogAnswer {
    /// What the cluster holds.
    pub reply: LogReply,
    /// The one of the site's anchors, counted from 1, that this hub has; 0: none.
    pub anchor: u8,
}

/// The next step of one log, in order. Decode the payload with [`crate::batch::Memory::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Which log.
    pub log: TopicPartition,
    /// First offset.
    pub base_offset: Offset,
    /// Offset after the last.
    pub next_offset: Offset,
    /// Chain if it is told, and records or gap.
    pub header: DataHeader,
    /// The encoded records; empty for a gap.
    pub payload: Bytes,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiverOutput {
    /// Append to the control stream.
    Control(Bytes),
    /// Attach to the site's lane, ask it for the checkpoints of these logs and answer with
    /// [`Receiver::handle_checkpoints`], or with [`Receiver::refuse`].
    Attach {
        incarnation: Incarnation,
        nonce: u64,
        software: String,
        logs: Vec<LogEntry>,
    },
    /// Ask the lane for the checkpoints of more logs and answer with
    /// [`Receiver::handle_checkpoints`], in the order of the questions.
    Lookup { logs: Vec<LogEntry> },
    /// So many logs are denied because the session has as many as it may have. For people.
    Excess { logs: usize },
    /// Hand to the lane; [`Receiver::handle_committed`] when it is committed.
    Deliver(Delivered),
    /// The session is over. Nothing comes after this.
    Close(Close),
}

#[derive(Debug)]
struct Log {
    log: TopicPartition,
    /// The site declared that it knows of the partition's other track.
    has_other_track: bool,
    origin: Offset,
    /// Known once the checkpoint was told; no data before.
    expected: Option<Offset>,
    /// Everything before is committed; `committed <= expected`.
    committed: Offset,
    /// The site knows that everything before is committed.
    acked: Offset,
    /// The place of the stream that is delivered next.
    seq: u8,
    /// Came early, by place.
    early: BTreeMap<u8, (DataHeader, Bytes)>,
    /// The site was told to restart; what comes until it did is kept in `early`.
    awaits_restart: bool,
    /// Places of streams that were sent before a restart, are void, and have not come.
    void: BTreeSet<u8>,
    /// Delivered and not committed: where each ends and what it costs.
    delivered: VecDeque<(Offset, u64)>,
}

/// A log as the site declared it, until it is answered.
#[derive(Debug, Clone, Copy)]
struct Declared {
    handle: Handle,
    /// One too many: the lane is not asked about it.
    is_excess: bool,
}

#[derive(Debug)]
enum State {
    AwaitHello { deadline: Duration },
    Attaching { version: u16 },
    Open { last_heard: Duration },
    Closed,
}

/// The hub's half of one connection.
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    state: State,
    logs: BTreeMap<Handle, Log>,
    handles: BTreeMap<TopicPartition, Handle>,
    /// Questions to the lane that are not answered, oldest first.
    lookups: VecDeque<Vec<Declared>>,
    /// Logs with something to acknowledge.
    dirty: BTreeSet<Handle>,
    /// When they are acknowledged at the latest.
    acks_due: Option<Duration>,
    /// Streams that are held, early or delivered.
    streams: usize,
    /// The codecs of the welcome.
    codecs: Vec<u8>,
    credit: ReceiveCredit,
    decoder: FrameDecoder,
    outputs: VecDeque<ReceiverOutput>,
    #[cfg(test)]
    pub(super) mutation: Option<super::mutation::Mutation>,
}

impl Receiver {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(config: ReceiverConfig, now: Duration) -> Self {
        Self {
            state: State::AwaitHello {
                deadline: now.saturating_add(config.handshake_timeout),
            },
            credit: ReceiveCredit::new(config.window),
            config,
            logs: BTreeMap::new(),
            handles: BTreeMap::new(),
            lookups: VecDeque::new(),
            dirty: BTreeSet::new(),
            acks_due: None,
            streams: 0,
            codecs: Vec::new(),
            decoder: FrameDecoder::default(),
            outputs: VecDeque::new(),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// Most bytes that a data stream may have: stop reading one that is longer, and end the session
    /// with [`Code::Limit`].
    #[must_use]
    pub fn max_stream_len(&self) -> usize {
        max_stream_len(usize::try_from(self.config.max_batch_bytes).unwrap_or(usize::MAX))
    }

    /// Bytes of the control stream, as they came.
    pub fn handle_control(&mut self, bytes: &[u8], now: Duration) {
        self.heard(now);
        self.decoder.feed(bytes);
        while !self.is_closed() {
            match self.decoder.poll() {
                Ok(Some(frame)) => self.handle_frame(frame),
                Ok(None) => return,
                Err(error @ WireError::Version { .. }) => {
                    self.refuse(Code::Version, None, &error.to_string());
                }
                Err(error) => self.fail(Code::BadFrame, &error.to_string()),
            }
        }
    }

    fn heard(&mut self, now: Duration) {
        if let State::Open { last_heard } = &mut self.state {
            *last_heard = now;
        }
    }

    fn handle_frame(&mut self, frame: Frame) {
        let is_first = matches!(self.state, State::AwaitHello { .. });
        let is_open = matches!(self.state, State::Open { .. });
        match frame {
            Frame::Hello(hello) if is_first => self.handle_hello(hello),
            Frame::Declare(logs) if is_open => self.handle_declare(logs),
            Frame::Ping(number) if !is_first => self.send(&Frame::Pong(number)),
            Frame::Pong(_) if !is_first => {}
            Frame::Goodbye(farewell) if !is_first => {
                let retry_after = Duration::from_millis(farewell.retry_after_ms.into());
                self.finish(Close {
                    code: farewell.code,
                    by_peer: true,
                    retry_after: Some(retry_after).filter(|wait| !wait.is_zero()),
                    text: farewell.text,
                });
            }
            Frame::Hello(_)
            | Frame::Declare(_)
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Goodbye(_)
            | Frame::Welcome(_)
            | Frame::Refuse(_)
            | Frame::Checkpoints(_)
            | Frame::Ack(_)
            | Frame::Credit(_)
            | Frame::Restart(_)
            | Frame::Policy(_)
            | Frame::Missing(_)
            | Frame::Window(_) => self.fail(Code::BadFrame, "frame out of place"),
        }
    }

    fn handle_hello(&mut self, hello: Hello) {
        let offered = hello.codecs.iter().copied();
        self.codecs = offered.filter(|c| self.config.codecs.contains(c)).collect();
        self.state = State::Attaching {
            version: hello.max_version.min(MAX_VERSION),
        };
        let Some((declared, logs)) = self.declare(hello.logs) else {
            return;
        };
        self.lookups.push_back(declared);
        self.outputs.push_back(ReceiverOutput::Attach {
            incarnation: hello.incarnation,
            nonce: hello.nonce,
            software: hello.software,
            logs,
        });
    }

    fn handle_declare(&mut self, logs: Vec<LogEntry>) {
        let Some((declared, logs)) = self.declare(logs) else {
            return;
        };
        if logs.is_empty() {
            // nothing to ask the lane: a site cannot make questions pile up
            let denied = |log: Declared| CheckpointEntry {
                handle: log.handle,
                reply: LogReply::Denied,
                anchor: 0,
            };
            return self.tell_more(&declared.into_iter().map(denied).collect::<Vec<_>>());
        }
        self.lookups.push_back(declared);
        self.outputs.push_back(ReceiverOutput::Lookup { logs });
    }

    /// Asks again about logs that were denied, because the rules have changed: a [`ReceiverOutput::Lookup`]
    /// follows, in which they name no range and no anchors, and its answer goes to the site unasked. A site that
    /// expects no such word comes back in a session of its own. Other logs are ignored.
    pub fn ask_again(&mut self, handles: &[Handle]) {
        if !matches!(self.state, State::Open { .. }) {
            return;
        }
        let denied = |handle: &Handle| {
            let log = self.logs.get(handle)?;
            let at = log.origin;
            log.expected.is_none().then(|| LogEntry {
                handle: *handle,
                log: log.log.clone(),
                range: LogRange {
                    origin: at,
                    start: at,
                    end: at,
                },
                has_other_track: log.has_other_track,
                anchors: Vec::new(),
            })
        };
        let logs: Vec<LogEntry> = handles.iter().filter_map(denied).collect();
        if logs.is_empty() {
            return;
        }
        let declared = logs.iter().map(|entry| Declared {
            handle: entry.handle,
            is_excess: false,
        });
        self.lookups.push_back(declared.collect());
        self.outputs.push_back(ReceiverOutput::Lookup { logs });
    }

    /// Takes logs up, as many as one session may have. All that were declared, and those taken up; `None`
    /// when the session is over because of them.
    fn declare(&mut self, entries: Vec<LogEntry>) -> Option<(Vec<Declared>, Vec<LogEntry>)> {
        let mut declared = Vec::with_capacity(entries.len());
        let mut logs = Vec::with_capacity(entries.len());
        for entry in entries {
            let is_excess = self.logs.len() >= self.config.max_logs;
            declared.push(Declared {
                handle: entry.handle,
                is_excess,
            });
            if is_excess {
                continue;
            }
            let log = Log {
                log: entry.log.clone(),
                has_other_track: entry.has_other_track,
                origin: entry.range.origin,
                expected: None,
                committed: 0,
                acked: 0,
                seq: 0,
                early: BTreeMap::new(),
                awaits_restart: false,
                void: BTreeSet::new(),
                delivered: VecDeque::new(),
            };
            let is_known = self.logs.insert(entry.handle, log).is_some()
                || self
                    .handles
                    .insert(entry.log.clone(), entry.handle)
                    .is_some();
            if is_known {
                self.fail(Code::BadFrame, "log declared twice");
                return None;
            }
            logs.push(entry);
        }
        let excess = declared.len() - logs.len();
        if excess > 0 {
            self.outputs
                .push_back(ReceiverOutput::Excess { logs: excess });
        }
        Some((declared, logs))
    }

    /// The lane's answer to the oldest [`ReceiverOutput::Attach`] or [`ReceiverOutput::Lookup`], one
    /// reply for each of its logs in their order. Logs beyond the limit are denied in their places.
    pub fn handle_checkpoints(&mut self, answers: &[LogAnswer], now: Duration) {
        if self.is_closed() {
            return;
        }
        let Some(declared) = self.lookups.pop_front() else {
            return self.fail(Code::Internal, "checkpoints that nobody asked for");
        };
        if declared.iter().filter(|log| !log.is_excess).count() != answers.len() {
            return self.fail(Code::Internal, "checkpoints do not match the logs");
        }
        let mut answers = answers.iter().copied();
        let mut entries = Vec::with_capacity(declared.len());
        for Declared { handle, is_excess } in declared {
            let asked = if is_excess { None } else { answers.next() };
            let LogAnswer { reply, anchor } = asked.unwrap_or(LogAnswer {
                reply: LogReply::Denied,
                anchor: 0,
            });
            let entry = CheckpointEntry {
                handle,
                reply,
                anchor,
            };
            if is_excess {
                entries.push(entry);
                continue;
            }
            if let Some(log) = self.logs.get_mut(&handle) {
                let expected = match reply {
                    LogReply::Absent => Some(log.origin),
                    LogReply::At(checkpoint) => Some(checkpoint.next_offset),
                    LogReply::Denied => None,
                };
                log.expected = expected;
                log.committed = expected.unwrap_or(0);
                log.acked = log.committed;
            }
            entries.push(entry);
        }
        self.tell(entries, now);
    }

    fn tell(&mut self, entries: Vec<CheckpointEntry>, now: Duration) {
        if let State::Attaching { version } = self.state {
            self.state = State::Open { last_heard: now };
            let welcome = Welcome {
                version,
                codecs: self.codecs.clone(),
                credit_limit: self.credit.announce(),
                max_batch_bytes: self.config.max_batch_bytes,
                keep_alive_ms: millis(Some(self.config.keep_alive)).max(1),
                checkpoints: entries,
            };
            self.send(&Frame::Welcome(welcome));
        } else {
            self.tell_more(&entries);
        }
    }

    fn tell_more(&mut self, entries: &[CheckpointEntry]) {
        for part in entries.chunks(MAX_CHECKPOINTS) {
            self.send(&Frame::Checkpoints(part.to_vec()));
        }
    }

    /// One whole data stream.
    pub fn handle_data(&mut self, stream: &Bytes, now: Duration) {
        self.heard(now);
        if !matches!(self.state, State::Open { .. }) {
            if !self.is_closed() {
                self.fail(Code::BadFrame, "data before the welcome");
            }
            return;
        }
        let (header, payload) = match DataHeader::decode(stream) {
            Ok(parts) => parts,
            Err(error) => return self.fail(Code::BadFrame, &error.to_string()),
        };
        if let DataContent::Records(records) = header.content {
            if records.codec != 0 && !self.codecs.contains(&records.codec) {
                return self.fail(Code::BadFrame, "data in a codec that was not chosen");
            }
            if records.size.bytes() > self.config.max_batch_bytes {
                return self.fail(Code::Limit, "data larger than the largest batch");
            }
        }
        self.place(header, payload);
    }

    /// Finds a stream's place in its log. Only what is held costs credit.
    fn place(&mut self, header: DataHeader, payload: Bytes) {
        let is_out_of_order = broken!(self, DeliverOutOfOrder);
        let may_repeat = broken!(self, SkipDuplicateCheck);
        let Some(log) = self.logs.get_mut(&header.handle) else {
            return self.fail(Code::BadFrame, "data of a log that was not declared");
        };
        if log.expected.is_none() {
            return self.fail(Code::BadFrame, "data of a log without a checkpoint");
        }
        let is_void = !header.is_restart && log.void.remove(&header.seq);
        let ahead = places_ahead(log.seq, header.seq);
        let is_repeated = ahead.is_none() || log.early.contains_key(&header.seq);
        if is_repeated && !is_void && !may_repeat {
            return;
        }
        if !self.credit.receive(header.charge()) {
            return self.fail(Code::Limit, "data beyond the credit");
        }
        if is_void {
            return self.credit.release(header.charge());
        }
        if self.streams >= MAX_STREAMS_IN_FLIGHT {
            return self.fail(Code::Limit, "more streams in flight than allowed");
        }
        let most = if log.awaits_restart { 2 } else { 1 } * MAX_LOG_STREAMS;
        if log.early.len() + log.delivered.len() >= most {
            return self.fail(Code::Limit, "more streams of one log than allowed");
        }
        if header.is_restart && !log.awaits_restart {
            return self.fail(Code::BadFrame, "a restart that nobody asked for");
        }
        self.streams += 1;
        if header.is_restart {
            self.begin_again(header.handle, header.seq);
        } else if log.awaits_restart || (ahead != Some(0) && !is_out_of_order) {
            log.early.insert(header.seq, (header, payload));
            return;
        }
        self.deliver(header, payload);
        self.deliver_early(header.handle);
    }

    /// The first stream after a restart has come: what has its place before it is void.
    fn begin_again(&mut self, handle: Handle, seq: u8) {
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        while log.seq != seq {
            if let Some((header, _)) = log.early.remove(&log.seq) {
                self.streams -= 1;
                self.credit.release(header.charge());
            } else {
                log.void.insert(log.seq);
            }
            log.seq = log.seq.wrapping_add(1);
        }
        log.awaits_restart = false;
    }

    fn deliver(&mut self, header: DataHeader, payload: Bytes) {
        let is_gap_lost = broken!(self, IgnoreGap);
        let is_acked_early = broken!(self, AckBeforeCommit);
        let Some(log) = self.logs.get_mut(&header.handle) else {
            return;
        };
        let base_offset = log.expected.unwrap_or(0);
        let Some(next_offset) = base_offset
            .checked_add(header.count)
            .filter(|next| *next <= MAX_OFFSET)
        else {
            return self.fail(Code::BadFrame, "range is too large");
        };
        log.expected = Some(next_offset);
        log.seq = log.seq.wrapping_add(1);
        // a place that is about to be used again is no longer that of a void stream
        log.void.remove(&log.seq.wrapping_add(LAST_PLACE));
        log.delivered.push_back((next_offset, header.charge()));
        if is_acked_early {
            log.committed = next_offset;
            self.dirty.insert(header.handle);
            self.acks_due = Some(Duration::ZERO);
        }
        if is_gap_lost && matches!(header.content, DataContent::Gap { .. }) {
            return;
        }
        self.outputs.push_back(ReceiverOutput::Deliver(Delivered {
            log: log.log.clone(),
            base_offset,
            next_offset,
            header,
            payload,
        }));
    }

    /// Delivers what came early and is next by now.
    fn deliver_early(&mut self, handle: Handle) {
        while let Some(log) = self.logs.get_mut(&handle)
            && !log.awaits_restart
            && let Some((header, payload)) = log.early.remove(&log.seq)
        {
            self.deliver(header, payload);
        }
    }

    /// What was delivered of this log from `next_offset` on was not handed on, because a codec's memory is
    /// lost: the site is to send it again.
    pub fn restart(&mut self, handle: Handle, next_offset: Offset) {
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        let void = log.delivered.iter().rev();
        let void = void.take_while(|(end, _)| *end > next_offset).count();
        for (_, charge) in log.delivered.drain(log.delivered.len() - void..) {
            self.streams -= 1;
            self.credit.release(charge);
        }
        log.expected = Some(next_offset);
        log.awaits_restart = true;
        self.outputs.retain(
            |output| !matches!(output, ReceiverOutput::Deliver(d) if d.header.handle == handle),
        );
        self.send(&Frame::Restart(Restart {
            handle,
            next_offset,
        }));
    }

    /// Payloads refer to chunks that are not here: tell the site, before [`Receiver::restart`].
    pub fn missing(&mut self, ids: Vec<ChunkId>) {
        self.send(&Frame::Missing(ids));
    }

    /// The lane committed everything of this log before `next_offset`. The acknowledgement comes with
    /// the next outputs, one frame for all logs; while more is on its way to be committed it waits a moment for
    /// that. Unknown logs and lower offsets are ignored.
    pub fn handle_committed(&mut self, log: &TopicPartition, next_offset: Offset, now: Duration) {
        let is_credit_lost = broken!(self, ForgetCredit);
        let Some((&handle, log)) = self
            .handles
            .get(log)
            .and_then(|handle| Some((handle, self.logs.get_mut(handle)?)))
        else {
            return;
        };
        while let Some(&(end, charge)) = log.delivered.front()
            && end <= next_offset
        {
            log.delivered.pop_front();
            self.streams -= 1;
            if !is_credit_lost {
                self.credit.release(charge);
            }
            if end > log.committed {
                log.committed = end;
                self.dirty.insert(handle);
                self.acks_due
                    .get_or_insert_with(|| now.saturating_add(ACK_HOLD));
            }
        }
    }

    /// Nothing else is about to be committed, or the site needs its credit.
    fn is_ack_urgent(&self) -> bool {
        self.streams == 0 || self.dirty.len() >= MAX_ACKS || self.credit.is_wanted()
    }

    /// The acknowledgements wait no longer.
    fn release_acks(&mut self, now: Duration) {
        if self.acks_due.is_some_and(|due| due <= now) {
            self.acks_due = Some(Duration::ZERO);
        }
    }

    /// The hub's memory budget changed: this session may hold so many bytes from here on. Smaller than
    /// before: no new credit until enough is committed.
    pub fn set_window(&mut self, bytes: u64) {
        self.credit.set_window(bytes);
    }

    /// Tells an open session what its link may be used for; an empty text withdraws it. Before the welcome
    /// nothing is told.
    pub fn push_policy(&mut self, text: &str) {
        if matches!(self.state, State::Open { .. }) {
            self.send(&Frame::Policy(text.to_owned()));
        }
    }

    /// Tells an open session how many bytes may wait at the transport before they are read, so that the site leaves
    /// some for what is urgent. Before the welcome nothing is told.
    pub fn tell_receive_window(&mut self, bytes: u64) {
        if matches!(self.state, State::Open { .. }) {
            self.send(&Frame::Window(bytes));
        }
    }

    /// Bytes that came and are not committed, as charged.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.credit.held()
    }

    /// Time passed: a hello that does not come, a peer that went silent. While the lane is asked for
    /// checkpoints only the driver's own time limit counts.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        match self.state {
            State::AwaitHello { .. } => self.fail(Code::Timeout, "no hello in time"),
            State::Open { .. } if self.dead_at().is_none_or(|at| now < at) => {
                self.release_acks(now)
            }
            State::Open { .. } => self.fail(Code::Timeout, "nothing heard from the site"),
            State::Attaching { .. } | State::Closed => {}
        }
    }

    /// When to call [`Receiver::handle_timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.state {
            State::AwaitHello { deadline } => Some(deadline),
            State::Open { .. } => self.dead_at().into_iter().chain(self.acks_due).min(),
            State::Attaching { .. } | State::Closed => None,
        }
    }

    fn dead_at(&self) -> Option<Duration> {
        match self.state {
            State::Open { .. } if broken!(self, ForgetDeadPeer) => None,
            State::Open { last_heard } => {
                Some(last_heard.saturating_add(self.config.keep_alive * 3))
            }
            State::AwaitHello { .. } | State::Attaching { .. } | State::Closed => None,
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ReceiverOutput> {
        if matches!(self.state, State::Open { .. }) {
            // looked at here, because credit also becomes free by other ways than a commit
            let is_due = |due: Duration| due.is_zero() || self.is_ack_urgent();
            if self.acks_due.is_some_and(is_due) {
                self.acknowledge();
            } else if self.acks_due.is_none() && self.credit.is_news() {
                let limit = self.credit.announce();
                self.send(&Frame::Credit(limit));
            }
        }
        self.outputs.pop_front()
    }

    /// Only `committed` is ever acknowledged, and only [`Receiver::handle_committed`] moves it.
    fn acknowledge(&mut self) {
        let mut acked = Vec::new();
        self.acks_due = None;
        while acked.len() < MAX_ACKS
            && let Some(handle) = self.dirty.pop_first()
        {
            if let Some(log) = self.logs.get_mut(&handle)
                && log.committed > log.acked
            {
                log.acked = log.committed;
                acked.push((handle, log.committed));
            }
        }
        if !self.dirty.is_empty() {
            self.acks_due = Some(Duration::ZERO);
        }
        let credit_limit = self.credit.announce();
        self.send(&Frame::Ack(Ack {
            credit_limit,
            acked,
        }));
    }

    /// Refuses the session in place of a welcome; later the same as [`Receiver::close`].
    pub fn refuse(&mut self, code: Code, retry_after: Option<Duration>, text: &str) {
        self.end(code, retry_after, text, Frame::Refuse);
    }

    /// Says goodbye and ends the session: no output comes after this but the goodbye and the close.
    pub fn close(&mut self, code: Code, retry_after: Option<Duration>, text: &str) {
        self.end(code, retry_after, text, Frame::Goodbye);
    }

    fn fail(&mut self, code: Code, text: &str) {
        self.close(code, None, text);
    }

    fn end(
        &mut self,
        code: Code,
        retry_after: Option<Duration>,
        text: &str,
        before_welcome: fn(Farewell) -> Frame,
    ) {
        let farewell = Farewell {
            code,
            retry_after_ms: millis(retry_after),
            text: text.to_owned(),
        };
        match self.state {
            State::Closed => return,
            State::Open { .. } => self.send(&Frame::Goodbye(farewell)),
            State::AwaitHello { .. } | State::Attaching { .. } => {
                self.send(&before_welcome(farewell));
            }
        }
        self.finish(Close {
            code,
            by_peer: false,
            retry_after: None,
            text: text.to_owned(),
        });
    }

    /// True once [`ReceiverOutput::Close`] is due or was given.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn finish(&mut self, close: Close) {
        self.state = State::Closed;
        self.logs.clear();
        self.handles.clear();
        self.dirty.clear();
        self.acks_due = None;
        // what was not handed to the lane is sent again; after a delivery that does not decode nothing of
        // its log may follow
        self.outputs
            .retain(|output| matches!(output, ReceiverOutput::Control(_)));
        self.outputs.push_back(ReceiverOutput::Close(close));
    }

    fn send(&mut self, frame: &Frame) {
        self.outputs
            .push_back(ReceiverOutput::Control(frame.encode()));
    }
}

/// The highest place that a site may use beyond the next one.
const LAST_PLACE: u8 = 62;

/// How far a stream is ahead of the next one; `None` when it came before. Half of all places are ahead.
fn places_ahead(next: u8, seq: u8) -> Option<u8> {
    Some(seq.wrapping_sub(next)).filter(|ahead| *ahead < 128)
}
