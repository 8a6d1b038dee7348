//! The hub: drivers around [`Receiver`] and a model of the site's lane.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::memory::{self, HubMemory, Kept, SessionMemory};
use super::network::{Packet, Side};
use super::oracle::{Piece, Verdict};
use super::site::check_close;
use super::world::{Event, World};
use crate::batch::{Block, Decoders, Incoming, OpenError, Opened};
use crate::ids::Incarnation;
use crate::link::broken;
use crate::link::{Delivered, LogAnswer, Receiver, ReceiverConfig, ReceiverOutput};
use crate::wire::{Code, DataContent, LogEntry, LogReply, MIN_MAX_BATCH_BYTES};

pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct HubSession {
    pub(super) receiver: Receiver,
    incarnation: Incarnation,
    logs: Vec<LogEntry>,
    memories: BTreeMap<usize, SessionMemory>,
}

#[derive(Debug)]
struct Work {
    connection: u64,
    incarnation: Incarnation,
    delivered: Delivered,
    chain: u64,
    blocks: Vec<Block>,
}

/// Volatile, all of it: what the cluster holds is with the oracle.
#[derive(Debug, Default)]
pub(super) struct Lane {
    attached: Option<u64>,
    /// Attached, and waits for the end of the transaction under way.
    pub(super) waiting: Option<u64>,
    queue: VecDeque<Work>,
    transaction: Option<Vec<Work>>,
    has_step: bool,
}

#[derive(Debug)]
pub(super) struct Hub {
    pub(super) is_up: bool,
    /// Grows with each crash: events of an earlier life are void.
    pub(super) life: u64,
    pub(super) sessions: BTreeMap<u64, HubSession>,
    pub(super) lane: Lane,
    pub(super) window: u64,
    pub(super) full_window: u64,
    /// The cluster does not commit before.
    pub(super) stalled_until: Duration,
    pub(super) decoders: Decoders,
    pub(super) memory: HubMemory,
}

impl Hub {
    /// Its memory is short: what it remembers of logs goes.
    pub(super) fn forget(&mut self) {
        for session in self.sessions.values_mut() {
            for memory in session.memories.values_mut() {
                memory.memory.forget();
                memory.agreed = None;
            }
        }
        self.memory = HubMemory::default();
    }
}

impl World {
    pub(super) fn hub_receives(&mut self, connection: u64, packet: Packet) -> Verdict {
        if !self.hub.is_up {
            if matches!(packet, Packet::Open) {
                self.send(connection, Side::Site, Packet::Lost);
            }
            return Ok(());
        }
        if matches!(packet, Packet::Open) {
            self.accept(connection);
            return Ok(());
        }
        let now = self.now;
        let connection = if broken!(self, MixConnections) && matches!(packet, Packet::Data(_)) {
            self.hub.lane.attached.unwrap_or(connection)
        } else {
            connection
        };
        let Some(session) = self.hub.sessions.get_mut(&connection) else {
            return Ok(());
        };
        match packet {
            Packet::Control(bytes) => session.receiver.handle_control(&bytes, now),
            Packet::Data(bytes) => session.receiver.handle_data(&bytes, now),
            Packet::Lost => self.detach(connection),
            Packet::Open => {}
        }
        self.pump_hub(connection)
    }

    fn accept(&mut self, connection: u64) {
        let config = ReceiverConfig {
            codecs: vec![1, memory::CODEC],
            max_logs: 16,
            max_batch_bytes: MIN_MAX_BATCH_BYTES,
            window: self.hub.window,
            keep_alive: KEEP_ALIVE,
            handshake_timeout: Duration::from_secs(5),
        };
        let mut receiver = Receiver::new(config, self.now);
        receiver.mutation = self.mutation;
        let session = HubSession {
            receiver,
            incarnation: Incarnation(0),
            logs: Vec::new(),
            memories: BTreeMap::new(),
        };
        self.hub.sessions.insert(connection, session);
    }

    /// Carries out what a receiver wants, until it wants nothing.
    pub(super) fn pump_hub(&mut self, connection: u64) -> Verdict {
        while let Some(session) = self.hub.sessions.get_mut(&connection) {
            let (held, most) = (session.receiver.held_bytes(), self.hub.full_window);
            if held > most {
                return Err(format!("{held} bytes held by a session, window {most}"));
            }
            let Some(output) = session.receiver.poll_output() else {
                break;
            };
            match output {
                ReceiverOutput::Control(bytes) => {
                    self.send_control(connection, Side::Site, bytes);
                }
                ReceiverOutput::Attach {
                    incarnation, logs, ..
                } => {
                    session.incarnation = incarnation;
                    session.logs = logs;
                    self.attach(connection)?;
                }
                ReceiverOutput::Lookup { logs } => {
                    session.logs = logs;
                    self.answer(connection);
                }
                ReceiverOutput::Excess { logs } => {
                    return Err(format!("{logs} logs too many"));
                }
                ReceiverOutput::Deliver(delivered) => {
                    let incarnation = session.incarnation;
                    self.enqueue(connection, incarnation, delivered)?;
                }
                ReceiverOutput::Close(close) => {
                    check_close(&close)?;
                    self.send(connection, Side::Site, Packet::Lost);
                    self.detach(connection);
                }
            }
        }
        Ok(())
    }

    /// A newer session takes the lane; what the older one queued is dropped, and the answer waits for
    /// the transaction that may hold the rest.
    fn attach(&mut self, connection: u64) -> Verdict {
        let older = self.hub.lane.attached.replace(connection);
        if !broken!(self, KeepOldQueue) {
            self.hub.lane.queue.clear();
        }
        self.hub.lane.waiting = None;
        if let Some(older) = older.filter(|older| *older != connection)
            && let Some(session) = self.hub.sessions.get_mut(&older)
        {
            session.receiver.close(Code::Superseded, None, "superseded");
            self.pump_hub(older)?;
        }
        if self.hub.lane.transaction.is_some() && !broken!(self, AnswerDuringTransaction) {
            self.hub.lane.waiting = Some(connection);
        } else {
            self.answer(connection);
        }
        Ok(())
    }

    fn answer(&mut self, connection: u64) {
        let Some(session) = self.hub.sessions.get_mut(&connection) else {
            return;
        };
        let mut answers = Vec::new();
        for entry in &session.logs {
            let number = entry.log.partition as usize;
            let key = (session.incarnation, number);
            let checkpoint = self.oracle.checkpoint(session.incarnation, number);
            let anchor = self.hub.memory.agree(key, &entry.anchors);
            let place = usize::from(anchor).checked_sub(1);
            let agreed = place.and_then(|place| entry.anchors.get(place));
            let memory = SessionMemory {
                agreed: agreed.map(|anchor| anchor.position),
                chain: checkpoint.map_or(0, |checkpoint| checkpoint.chain),
                ..SessionMemory::default()
            };
            session.memories.insert(number, memory);
            answers.push(LogAnswer {
                reply: checkpoint.map_or(LogReply::Absent, LogReply::At),
                anchor,
            });
        }
        session.receiver.handle_checkpoints(&answers, self.now);
    }

    fn enqueue(
        &mut self,
        connection: u64,
        incarnation: Incarnation,
        delivered: Delivered,
    ) -> Verdict {
        if self.hub.lane.attached != Some(connection) {
            return Ok(());
        }
        let handle = delivered.header.handle;
        let base_offset = delivered.base_offset;
        let opened = match self.open(connection, incarnation, &delivered) {
            Ok(opened) => opened,
            Err(OpenError::Lost(_) | OpenError::Missing(_)) => {
                self.tally.restarts += 1;
                if let Some(session) = self.hub.sessions.get_mut(&connection) {
                    session.receiver.restart(handle, base_offset);
                }
                return Ok(());
            }
            Err(OpenError::Broken(error)) => {
                return Err(format!("a batch does not decode: {error}"));
            }
        };
        self.hub.lane.queue.push_back(Work {
            connection,
            incarnation,
            delivered,
            chain: opened.chain,
            blocks: opened.blocks,
        });
        let queued: u64 = self.hub.lane.queue.iter().map(charge).sum();
        if queued > self.hub.full_window {
            return Err(format!("{queued} bytes wait in the lane"));
        }
        self.wake_lane();
        Ok(())
    }

    fn open(
        &mut self,
        connection: u64,
        incarnation: Incarnation,
        delivered: &Delivered,
    ) -> Result<Opened, OpenError> {
        let number = delivered.log.partition as usize;
        let session = self.hub.sessions.get_mut(&connection);
        let session = session.expect("the session that delivers");
        let memory = session.memories.entry(number).or_default();
        let opened = match delivered.header.content {
            DataContent::Records(header) => memory.memory.open(
                &Incoming {
                    header,
                    payload: &delivered.payload,
                    base_offset: delivered.base_offset,
                    next_offset: delivered.next_offset,
                    chain_before: memory.chain,
                    chain: delivered.header.chain,
                    max_raw: MIN_MAX_BATCH_BYTES as usize,
                },
                &mut self.hub.decoders,
                &mut Kept {
                    hub: &mut self.hub.memory,
                    key: (incarnation, number),
                    agreed: memory.agreed.take(),
                },
            )?,
            DataContent::Gap { .. } => Opened {
                blocks: Vec::new(),
                chain: delivered.header.chain.unwrap_or(0),
            },
        };
        memory.chain = opened.chain;
        Ok(opened)
    }

    fn wake_lane(&mut self) {
        let lane = &mut self.hub.lane;
        if lane.has_step || lane.transaction.is_some() || lane.queue.is_empty() {
            return;
        }
        lane.has_step = true;
        let life = self.hub.life;
        let wait = self.hub.stalled_until.saturating_sub(self.now);
        let delay = wait.as_micros() as u64 + self.rng.below(30_000);
        self.after_us(delay, Event::LaneStep { life });
    }

    pub(super) fn lane_step(&mut self, life: u64) {
        if life != self.hub.life {
            return;
        }
        self.hub.lane.has_step = false;
        if self.hub.lane.queue.is_empty() || self.hub.lane.transaction.is_some() {
            return;
        }
        let waiting = self.hub.lane.queue.len();
        let count = self.rng.between(1, waiting as u64) as usize;
        self.hub.lane.transaction = Some(self.hub.lane.queue.drain(..count).collect());
        let delay = self.rng.between(500, 80_000);
        self.after_us(delay, Event::TransactionEnds { life });
    }

    pub(super) fn transaction_ends(&mut self, life: u64) -> Verdict {
        if life != self.hub.life {
            return Ok(());
        }
        let outcome = if self.has_faults() {
            self.rng.below(100)
        } else {
            100
        };
        match outcome {
            // the hub dies before the commit, or after it and before the acknowledgement
            0 | 1 => {
                self.hub.lane.transaction = None;
                self.hub_crashes(false)?;
            }
            2 | 3 => self.hub_crashes(true)?,
            // aborted: the lane starts anew from its checkpoints
            4 | 5 if !broken!(self, AckAborted) => {
                self.hub.lane.transaction = None;
                self.end_sessions(Code::Busy)?;
            }
            _ => {
                let work = self.hub.lane.transaction.take().unwrap_or_default();
                if outcome > 5 {
                    self.commit(&work)?;
                }
                let mut connections: Vec<u64> = Vec::new();
                for done in &work {
                    // the lane acknowledges to the session that is attached and to no other
                    if self.hub.lane.attached == Some(done.connection)
                        && let Some(session) = self.hub.sessions.get_mut(&done.connection)
                    {
                        let next = done.delivered.next_offset;
                        let (log, now) = (&done.delivered.log, self.now);
                        session.receiver.handle_committed(log, next, now);
                        connections.push(done.connection);
                    }
                }
                connections.dedup();
                for connection in connections {
                    self.pump_hub(connection)?;
                }
            }
        }
        if let Some(connection) = self.hub.lane.waiting.take() {
            self.answer(connection);
            self.pump_hub(connection)?;
        }
        self.wake_lane();
        Ok(())
    }

    fn commit(&mut self, work: &[Work]) -> Verdict {
        self.tally.commits += 1;
        for done in work {
            let number = done.delivered.log.partition as usize;
            let piece = Piece {
                base_offset: done.delivered.base_offset,
                next_offset: done.delivered.next_offset,
                chain: done.chain,
                content: done.delivered.header.content,
            };
            self.oracle
                .commit(done.incarnation, number, &piece, &done.blocks)?;
        }
        Ok(())
    }

    /// Ends all sessions in good order, and forgets what they queued.
    pub(super) fn end_sessions(&mut self, code: Code) -> Verdict {
        self.hub.lane.queue.clear();
        let connections: Vec<u64> = self.hub.sessions.keys().copied().collect();
        for connection in connections {
            if let Some(session) = self.hub.sessions.get_mut(&connection) {
                let wait = Some(Duration::from_millis(100));
                session.receiver.close(code, wait, "come back");
            }
            self.pump_hub(connection)?;
        }
        Ok(())
    }

    fn detach(&mut self, connection: u64) {
        self.hub.sessions.remove(&connection);
        let lane = &mut self.hub.lane;
        if lane.attached == Some(connection) {
            lane.attached = None;
            lane.queue.clear();
        }
        if lane.waiting == Some(connection) {
            lane.waiting = None;
        }
    }

    /// The transaction under way is committed or not; the rest is gone.
    pub(super) fn hub_crashes(&mut self, is_committed: bool) -> Verdict {
        if let Some(work) = self.hub.lane.transaction.take()
            && is_committed
        {
            self.commit(&work)?;
        }
        self.tally.crashes += 1;
        self.hub.life += 1;
        self.hub.lane = Lane::default();
        if self.rng.chance(50) {
            self.hub.memory = HubMemory::default();
        }
        let connections: Vec<u64> = self.hub.sessions.keys().copied().collect();
        self.hub.sessions.clear();
        for connection in connections {
            let is_told = self.rng.chance(50);
            self.cut(connection, is_told);
        }
        self.hub.is_up = false;
        let delay = self.rng.between(1_000, 1_500_000);
        self.after_us(delay, Event::HubStarts);
        Ok(())
    }

    /// A session whose connection is gone ends in time, even if nobody says a word.
    pub(super) fn check_dead_sessions(&self) -> Verdict {
        for connection in self.hub.sessions.keys() {
            let cut_at = self
                .network
                .connections
                .get(connection)
                .and_then(|c| c.cut_at);
            if let Some(cut_at) = cut_at
                && self.hub.lane.waiting != Some(*connection)
                && self.now > cut_at + Duration::from_secs(6)
            {
                return Err(format!("session {connection} outlives its connection"));
            }
        }
        Ok(())
    }
}

fn charge(work: &Work) -> u64 {
    work.delivered.header.charge()
}
