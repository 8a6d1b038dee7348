//! The site's half of a session.
//!
//! ```text
//!  a log:  Undeclared ─► Declared ─► Checking ─► Ready ◄─► Reading
//!                            │          │          ▲
//!                            ▼          ▼          ▼
//!                          Parked (mismatch,    Trimmed (asking for the chain at the
//!                          denied, too large)   log's start, then a gap up to there)
//! ```
//! Logs with something to send take turns, one read each; what was read waits for credit in the order
//! in which it was read. Reads under way and items waiting are bounded together by `max_reads`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::resume::{Mismatch, Resume, compare, resume};
use super::window::SendCredit;
use super::{Close, broken};
use crate::ids::{Incarnation, Offset, TopicPartition};
use crate::wire::{
    Ack, Checkpoint, CheckpointEntry, Code, DataContent, DataHeader, Farewell, Frame, FrameDecoder,
    GAP_NOT_AT_SITE, Handle, Hello, LogEntry, LogRange, MAX_STREAMS_IN_FLIGHT, MAX_VERSION,
    MIN_MAX_BATCH_BYTES, MIN_VERSION, RecordsHeader, STREAM_OVERHEAD, Welcome, charge,
};

/// Bytes of log entries in a hello, and in one declare.
const HELLO_LOGS_LEN: usize = 768 << 10;
const DECLARE_LOGS_LEN: usize = 56 << 10;

/// With less credit than this, and than a whole read, no read starts while others are under way: streams
/// would get ever smaller.
const MIN_READ_BYTES: u64 = 16 << 10;

/// What the site's half needs to know from the start.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// Random for each session, to tell them apart in logs.
    pub nonce: u64,
    /// The store's incarnation.
    pub incarnation: Incarnation,
    /// Name and version of the software, for people.
    pub software: String,
    /// Codec ids that the driver can encode, best first.
    pub codecs: Vec<u8>,
    /// Most reads under way and read items waiting for credit. Bounds memory together with the hub's
    /// `max_batch_bytes`.
    pub max_reads: usize,
    /// Raw bytes that one read asks for; one larger producer batch may exceed it.
    pub max_read_bytes: u32,
    /// From hello to welcome.
    pub handshake_timeout: Duration,
}

/// What a read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadResult {
    /// Consecutive records, encoded.
    Records {
        /// First offset. Larger than asked for when the log was trimmed in between.
        base_offset: Offset,
        /// Offset after the last.
        next_offset: Offset,
        /// The store's chain at `next_offset`.
        chain: u64,
        /// Codec, raw length and checksum.
        header: RecordsHeader,
        /// The encoded payload.
        payload: Bytes,
    },
    /// A range that the store dropped.
    Gap {
        /// First offset that is missing. Larger than asked for when the log was trimmed in between.
        from: Offset,
        /// Offset after the last one missing.
        to: Offset,
        /// The store's reason.
        reason: u8,
        /// The store's chain at `to`.
        chain: u64,
    },
    /// Nothing there after all: the log is asked again once it has grown.
    Nothing,
}

/// One unidirectional stream to open: write the header, then the payload, then finish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataStream {
    /// Which log and range.
    pub header: DataHeader,
    /// The header's bytes.
    pub head: Bytes,
    /// The bytes after it; empty for a gap.
    pub payload: Bytes,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderOutput {
    /// Append to the control stream.
    Control(Bytes),
    /// The hub has welcomed us: encode with this codec, at most this many raw bytes a batch.
    Established {
        version: u16,
        codec: u8,
        max_batch_bytes: u32,
    },
    /// Open a stream and send.
    Data(DataStream),
    /// Read from the store and answer with [`Sender::handle_read`].
    Read {
        handle: Handle,
        from: Offset,
        max_bytes: u32,
    },
    /// Ask the store for its chain at this offset and answer with [`Sender::handle_chain`].
    Chain { handle: Handle, offset: Offset },
    /// The hub holds everything before this offset.
    Acked { handle: Handle, next_offset: Offset },
    /// The log is parked: the site needs a new incarnation, after which it connects anew.
    HistoryMismatch { handle: Handle, mismatch: Mismatch },
    /// The log is parked: the hub does not take it from this site.
    Denied { handle: Handle },
    /// The log is parked: one producer batch is larger than the hub accepts.
    TooLarge {
        handle: Handle,
        offset: Offset,
        bytes: u32,
        limit: u32,
    },
    /// The session is over. Nothing comes after this.
    Close(Close),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Undeclared,
    Declared,
    Checking(Checkpoint),
    Ready,
    Reading { reserved: u64, end: Offset },
    Trimmed,
    Parked,
}

#[derive(Debug)]
struct Log {
    log: TopicPartition,
    range: LogRange,
    phase: Phase,
    /// What the store took for the hub's checkpoint when the session began.
    first_unacked: Offset,
    /// The hub's checkpoint lies inside a batch or a gap of the log: the first read tells which.
    is_unproven: bool,
    /// The hub holds everything before; `acked <= read <= range.end`.
    acked: Offset,
    /// Everything before was read, and waits in `held` or was sent.
    read: Offset,
    /// Where the streams end that were sent and are not acknowledged, in order.
    in_flight: VecDeque<Offset>,
    in_ring: bool,
}

impl Log {
    /// The store joined what was sent already and what follows into one gap.
    fn is_rest_of_gap(&self, header: &DataHeader) -> bool {
        matches!(header.content, DataContent::Gap { .. })
            && header.base_offset < self.read
            && self.read < header.next_offset
    }
}

#[derive(Debug)]
enum State {
    Fresh,
    Connecting { deadline: Duration },
    Open(Session),
    Closed,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    codec: u8,
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
    /// Logs that want to read, each at most once.
    ring: VecDeque<Handle>,
    reads: usize,
    reserved: u64,
    /// Read, not yet sent.
    held: VecDeque<DataStream>,
    held_charge: u64,
    in_flight: usize,
    credit: SendCredit,
    pings: u64,
    decoder: FrameDecoder,
    outputs: VecDeque<SenderOutput>,
    #[cfg(test)]
    pub(super) mutation: Option<super::mutation::Mutation>,
}

impl Sender {
    /// A session that has not begun: add the logs, then [`Sender::start`].
    #[must_use]
    pub fn new(config: SenderConfig) -> Self {
        Self {
            config,
            state: State::Fresh,
            logs: BTreeMap::new(),
            undeclared: VecDeque::new(),
            ring: VecDeque::new(),
            reads: 0,
            reserved: 0,
            held: VecDeque::new(),
            held_charge: 0,
            in_flight: 0,
            credit: SendCredit::default(),
            pings: 0,
            decoder: FrameDecoder::default(),
            outputs: VecDeque::new(),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// Adds a log under a handle of the caller's choice (the store's partition number). A handle that
    /// is known keeps its log, and only its end moves. Before [`Sender::start`] it goes into the
    /// hello, later into a declare. `acked` is the store's own cursor: the next offset that it does not
    /// know the hub to hold.
    pub fn add_log(&mut self, handle: Handle, log: TopicPartition, range: LogRange, acked: Offset) {
        debug_assert!(range.is_valid(), "log range out of order");
        if self.logs.contains_key(&handle) {
            self.log_grew(handle, range.end);
            return;
        }
        let log = Log {
            log,
            range,
            phase: Phase::Undeclared,
            first_unacked: acked.max(range.start),
            is_unproven: false,
            acked: range.origin,
            read: range.origin,
            in_flight: VecDeque::new(),
            in_ring: false,
        };
        self.logs.insert(handle, log);
        self.undeclared.push_back(handle);
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
    pub fn log_grew(&mut self, handle: Handle, end: Offset) {
        if let Some(log) = self.logs.get_mut(&handle)
            && end > log.range.end
        {
            log.range.end = end;
            self.enqueue(handle);
        }
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
            Frame::Ping(number) => self.send(&Frame::Pong(number)),
            Frame::Pong(_) => {}
            Frame::Hello(_)
            | Frame::Declare(_)
            | Frame::Welcome(_)
            | Frame::Refuse(_)
            | Frame::Checkpoints(_)
            | Frame::Ack(_)
            | Frame::Credit(_) => self.fail(Code::BadFrame, "frame out of place".into()),
        }
    }

    fn handle_welcome(&mut self, welcome: Welcome, now: Duration) {
        let problem = if !(MIN_VERSION..=MAX_VERSION).contains(&welcome.version) {
            Some((Code::Version, "hub chose a version that was not offered"))
        } else if welcome.codec != 0 && !self.config.codecs.contains(&welcome.codec) {
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
        self.state = State::Open(Session {
            codec: welcome.codec,
            max_batch_bytes: welcome.max_batch_bytes,
            keep_alive,
            next_ping: now.saturating_add(keep_alive),
            last_heard: now,
        });
        self.credit.raise(welcome.credit_limit);
        self.outputs.push_back(SenderOutput::Established {
            version: welcome.version,
            codec: welcome.codec,
            max_batch_bytes: welcome.max_batch_bytes,
        });
        self.handle_checkpoints(&welcome.checkpoints);
    }

    fn handle_checkpoints(&mut self, entries: &[CheckpointEntry]) {
        for entry in entries {
            let known = self.logs.get(&entry.handle);
            let Some(range) = known
                .filter(|log| log.phase == Phase::Declared)
                .map(|log| log.range)
            else {
                return self.fail(
                    Code::BadFrame,
                    "checkpoint of a log that was not declared".into(),
                );
            };
            self.resume_log(entry.handle, self.decide(&range, entry.reply));
        }
    }

    fn decide(&self, range: &LogRange, reply: crate::wire::LogReply) -> Resume {
        let decision = resume(range, reply);
        if broken!(self, ResumeFromStart) {
            return Resume::From(range.start);
        }
        if broken!(self, ForgetChainCheck)
            && let Resume::Check(checkpoint) = decision
        {
            return Resume::From(checkpoint.next_offset);
        }
        if broken!(self, ForgetEndCheck) && decision == Resume::Mismatch(Mismatch::BeyondEnd) {
            return Resume::From(range.end);
        }
        if broken!(self, ResumeOneLater)
            && let Resume::From(next) = decision
            && next < range.end
        {
            return Resume::From(next + 1);
        }
        decision
    }

    fn resume_log(&mut self, handle: Handle, decision: Resume) {
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        match decision {
            Resume::From(next) => {
                log.acked = next;
                log.read = next;
                log.phase = Phase::Ready;
                self.outputs.push_back(SenderOutput::Acked {
                    handle,
                    next_offset: next,
                });
                self.enqueue(handle);
            }
            Resume::Check(checkpoint) => {
                log.phase = Phase::Checking(checkpoint);
                self.outputs.push_back(SenderOutput::Chain {
                    handle,
                    offset: checkpoint.next_offset,
                });
            }
            Resume::Probe(next) if next >= log.range.end => {
                self.resume_log(handle, Resume::Mismatch(Mismatch::NotABoundary));
            }
            Resume::Probe(next) => {
                log.acked = next;
                log.read = next;
                log.phase = Phase::Ready;
                log.is_unproven = true;
                self.enqueue(handle);
            }
            Resume::Mismatch(mismatch) => {
                log.phase = Phase::Parked;
                self.outputs
                    .push_back(SenderOutput::HistoryMismatch { handle, mismatch });
            }
            Resume::Denied => {
                log.phase = Phase::Parked;
                self.outputs.push_back(SenderOutput::Denied { handle });
            }
        }
    }

    /// The answer to [`SenderOutput::Chain`]: the store's chain at that offset, `None` when it is not a
    /// boundary that the store knows.
    pub fn handle_chain(&mut self, handle: Handle, offset: Offset, chain: Option<u64>) {
        let Some(log) = self.logs.get(&handle) else {
            return;
        };
        match log.phase {
            Phase::Checking(checkpoint) if checkpoint.next_offset == offset => {
                self.resume_log(handle, compare(checkpoint, chain));
            }
            Phase::Trimmed if log.range.start == offset => {
                self.hold_trimmed(handle, chain.unwrap_or(0));
            }
            Phase::Checking(_)
            | Phase::Trimmed
            | Phase::Undeclared
            | Phase::Declared
            | Phase::Ready
            | Phase::Reading { .. }
            | Phase::Parked => {}
        }
    }

    /// What lies between what the hub holds and the log's start is no longer at the site.
    fn hold_trimmed(&mut self, handle: Handle, chain: u64) {
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        let header = DataHeader {
            handle,
            base_offset: log.read,
            next_offset: log.range.start,
            chain,
            content: DataContent::Gap {
                reason: GAP_NOT_AT_SITE,
            },
        };
        log.phase = Phase::Ready;
        self.hold(header, Bytes::new());
    }

    /// The answer to [`SenderOutput::Read`]. Answers that nobody waits for are ignored.
    pub fn handle_read(&mut self, handle: Handle, result: ReadResult) {
        let State::Open(session) = self.state else {
            return;
        };
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        let Phase::Reading { reserved, end } = log.phase else {
            return;
        };
        self.reads -= 1;
        self.reserved -= reserved;
        log.phase = Phase::Ready;
        let Some((mut header, payload)) = header_of(handle, result) else {
            // unless it grew while it was read, there is nothing up to its end
            if log.range.end == end {
                log.range.end = log.read;
            }
            return self.enqueue(handle);
        };
        let is_rest_of_gap = log.is_rest_of_gap(&header);
        // not a boundary because it was trimmed since the hub was asked, or because it became part of a gap
        let is_gone = header.base_offset > log.read
            || (is_rest_of_gap && header.base_offset <= log.first_unacked);
        if log.is_unproven && is_gone {
            log.is_unproven = false;
            self.outputs.push_back(SenderOutput::Acked {
                handle,
                next_offset: log.read,
            });
        }
        if is_rest_of_gap {
            header.base_offset = log.read;
        }
        if let Some(bytes) = raw_len(&header).filter(|len| *len > session.max_batch_bytes) {
            log.phase = Phase::Parked;
            self.outputs.push_back(SenderOutput::TooLarge {
                handle,
                offset: header.base_offset,
                bytes,
                limit: session.max_batch_bytes,
            });
        } else if log.is_unproven
            || header.base_offset < log.read
            || header.next_offset <= header.base_offset
        {
            self.resume_log(handle, Resume::Mismatch(Mismatch::NotABoundary));
        } else if header.base_offset > log.read {
            // trimmed while it was read: the gap goes first, then it is read again
            log.range.start = header.base_offset;
            self.enqueue(handle);
        } else {
            self.hold(header, payload);
        }
    }

    fn hold(&mut self, header: DataHeader, payload: Bytes) {
        let Some(log) = self.logs.get_mut(&header.handle) else {
            return;
        };
        log.read = header.next_offset;
        log.range.end = log.range.end.max(log.read);
        self.held_charge += header.charge();
        self.held.push_back(DataStream {
            head: header.encode(),
            header,
            payload,
        });
        self.enqueue(header.handle);
    }

    /// Puts a log in line if it has something to send.
    fn enqueue(&mut self, handle: Handle) {
        if let Some(log) = self.logs.get_mut(&handle)
            && log.phase == Phase::Ready
            && log.read < log.range.end
            && !log.in_ring
        {
            log.in_ring = true;
            self.ring.push_back(handle);
        }
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
            let Some(streams) = log.in_flight.iter().position(|end| *end == next_offset) else {
                return self.fail(Code::BadFrame, "acknowledges what was not sent".into());
            };
            log.in_flight.drain(..=streams);
            log.acked = next_offset;
            self.in_flight -= streams + 1;
            self.outputs.push_back(SenderOutput::Acked {
                handle,
                next_offset,
            });
        }
    }

    /// Time passed: keep-alive and dead peer.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.state {
            State::Connecting { deadline } if now >= *deadline => {
                self.fail(Code::Timeout, "no welcome in time".into());
            }
            State::Open(session) if now >= session.dead_at() => {
                self.fail(Code::Timeout, "nothing heard from the hub".into());
            }
            State::Open(session) if now >= session.next_ping => {
                session.next_ping = now.saturating_add(session.keep_alive);
                self.pings += 1;
                self.send(&Frame::Ping(self.pings));
            }
            State::Fresh | State::Connecting { .. } | State::Open(_) | State::Closed => {}
        }
    }

    /// When to call [`Sender::handle_timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.state {
            State::Fresh | State::Closed => None,
            State::Connecting { deadline } => Some(*deadline),
            State::Open(session) => Some(session.next_ping.min(session.dead_at())),
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
        self.poll_data()
            .or_else(|| self.poll_read(session.max_batch_bytes))
    }

    fn poll_data(&mut self) -> Option<SenderOutput> {
        let charge = self.held.front()?.header.charge();
        if self.in_flight >= MAX_STREAMS_IN_FLIGHT {
            return None;
        }
        if !self.credit.take(charge) && !broken!(self, IgnoreCredit) {
            return None;
        }
        let stream = self.held.pop_front()?;
        self.held_charge -= charge;
        self.in_flight += 1;
        if let Some(log) = self.logs.get_mut(&stream.header.handle) {
            log.in_flight.push_back(stream.header.next_offset);
        }
        Some(SenderOutput::Data(stream))
    }

    fn poll_read(&mut self, max_batch_bytes: u32) -> Option<SenderOutput> {
        if self.reads + self.held.len() >= self.config.max_reads {
            return None;
        }
        let credit = self
            .credit
            .available()
            .saturating_sub(self.reserved + self.held_charge)
            .saturating_sub(STREAM_OVERHEAD);
        let is_idle = self.reads == 0 && self.held.is_empty() && self.in_flight == 0;
        let most = self.config.max_read_bytes.min(max_batch_bytes);
        if credit < MIN_READ_BYTES.min(most.into()) && !(is_idle && credit > 0) {
            return None;
        }
        let handle = self.ring.pop_front()?;
        let log = self.logs.get_mut(&handle)?;
        log.in_ring = false;
        if log.read < log.range.start {
            if broken!(self, ForgetTrimmedGap) {
                log.read = log.range.start;
            } else {
                log.phase = Phase::Trimmed;
                return Some(SenderOutput::Chain {
                    handle,
                    offset: log.range.start,
                });
            }
        }
        let max_bytes = u32::try_from(credit).map_or(most, |credit| most.min(credit));
        let reserved = charge(max_bytes);
        log.phase = Phase::Reading {
            reserved,
            end: log.range.end,
        };
        self.reads += 1;
        self.reserved += reserved;
        Some(SenderOutput::Read {
            handle,
            from: log.read,
            max_bytes,
        })
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

    /// The codec of the welcome; `None` before.
    #[must_use]
    pub fn codec(&self) -> Option<u8> {
        match self.state {
            State::Open(session) => Some(session.codec),
            State::Fresh | State::Connecting { .. } | State::Closed => None,
        }
    }

    /// Streams sent and not acknowledged.
    #[must_use]
    pub fn streams_in_flight(&self) -> usize {
        self.in_flight
    }

    /// Reads under way and items waiting for credit.
    #[must_use]
    pub fn reads_and_items(&self) -> usize {
        self.reads + self.held.len()
    }

    /// The log behind a handle.
    #[must_use]
    pub fn log(&self, handle: Handle) -> Option<&TopicPartition> {
        self.logs.get(&handle).map(|log| &log.log)
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
        self.held.clear();
        self.ring.clear();
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
                range: log.range,
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

fn header_of(handle: Handle, result: ReadResult) -> Option<(DataHeader, Bytes)> {
    match result {
        ReadResult::Records {
            base_offset,
            next_offset,
            chain,
            header,
            payload,
        } => Some((
            DataHeader {
                handle,
                base_offset,
                next_offset,
                chain,
                content: DataContent::Records(header),
            },
            payload,
        )),
        ReadResult::Gap {
            from,
            to,
            reason,
            chain,
        } => Some((
            DataHeader {
                handle,
                base_offset: from,
                next_offset: to,
                chain,
                content: DataContent::Gap { reason },
            },
            Bytes::new(),
        )),
        ReadResult::Nothing => None,
    }
}

fn raw_len(header: &DataHeader) -> Option<u32> {
    match header.content {
        DataContent::Records(records) => Some(records.raw_len),
        DataContent::Gap { .. } => None,
    }
}

pub(super) fn millis(duration: Option<Duration>) -> u32 {
    duration.map_or(0, |duration| {
        u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
    })
}
