//! The site: a driver around [`Sender`] over a model store.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::disk::{Disk, DiskLog};
use super::memory::{self, SiteMemory};
use super::network::{Packet, Side};
use super::oracle::Verdict;
use super::rng::{Rng, mix};
use super::world::{Event, World};
use crate::class::{Class, ClassRules, ClassSet, ClassShares, PerClass};
use crate::ids::{Incarnation, Offset, TopicName, TopicPartition};
use crate::link::{Begin, Close, Mismatch, Sender, SenderConfig, SenderOutput, Unsettled};
use crate::wire::{Code, DataHeader, Handle};

#[derive(Debug)]
pub(super) struct SiteSession {
    pub(super) connection: u64,
    pub(super) sender: Sender,
    /// A log needs a new incarnation.
    mismatch: Option<(Handle, Mismatch)>,
}

#[derive(Debug)]
pub(super) struct Site {
    pub(super) disk: Disk,
    /// A copy that somebody may put back.
    pub(super) snapshot: Option<Disk>,
    pub(super) is_up: bool,
    /// What the last session left, in memory.
    pub(super) unsettled: Unsettled,
    pub(super) session: Option<SiteSession>,
    pub(super) next_id: u64,
    pub(super) next_incarnation: u128,
    pub(super) max_reads: usize,
    pub(super) max_read_bytes: u32,
    pub(super) seed: u64,
    /// By log; a crash takes it, and half of the time nothing was saved.
    pub(super) memories: BTreeMap<usize, SiteMemory>,
    pub(super) policy: Policy,
}

/// What the site may send, and how.
#[derive(Debug)]
pub(super) struct Policy {
    rng: Rng,
    rules: ClassRules,
    send_budget: u64,
    pub(super) allowed: ClassSet,
}

impl Policy {
    /// Draws from a generator of its own: seeds keep their meaning.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(mix(seed));
        let most_ms = if rng.chance(50) { 0 } else { 1_500 };
        let max_delay = PerClass::from_fn(|_| Duration::from_millis(rng.below(most_ms + 1)));
        let is_bounded = rng.chance(50);
        Self {
            rules: ClassRules {
                shares: ClassShares::default(),
                max_delay,
            },
            send_budget: if is_bounded {
                rng.between(1, 8_000)
            } else {
                u64::MAX
            },
            allowed: ClassSet::ALL,
            rng,
        }
    }

    /// Now and then other classes may be sent.
    fn change(&mut self) {
        if self.rng.chance(5) {
            let any = Class::all().into_iter();
            self.allowed = any.filter(|_| self.rng.chance(60)).collect();
        }
    }
}

fn class_of(number: usize) -> Class {
    Class::all()[number % Class::COUNT]
}

pub(super) fn handle_of(number: usize) -> Handle {
    Handle(number as u32 * 7 + 1)
}

pub(super) fn number_of(handle: Handle) -> usize {
    (handle.0 / 7) as usize
}

pub(super) fn name_of(number: usize) -> TopicPartition {
    TopicPartition {
        topic: TopicName::new("t").expect("a good name"),
        partition: number as u32,
        track: crate::ids::Track::First,
    }
}

impl World {
    pub(super) fn dial(&mut self) -> Verdict {
        if !self.site.is_up || self.site.session.is_some() {
            return Ok(());
        }
        let connection = self.network.connect();
        let mut sender = Sender::new(SenderConfig {
            nonce: connection,
            incarnation: self.site.disk.incarnation,
            software: "simulated".into(),
            codecs: vec![memory::CODEC, 1],
            max_reads: self.site.max_reads,
            max_read_bytes: self.site.max_read_bytes,
            classes: self.site.policy.rules,
            handshake_timeout: Duration::from_secs(5),
        });
        sender.mutation = self.mutation;
        for (number, log) in self.site.disk.logs.iter().enumerate() {
            let (handle, name, class) = (handle_of(number), name_of(number), class_of(number));
            sender.add_log(handle, name, class, log.range(), log.acked);
            if let Some(memory) = self.site.memories.get(&number) {
                sender.offer_anchors(handle, memory.anchors());
            }
        }
        sender.set_classes_allowed(self.site.policy.allowed);
        let budget = self.site.policy.send_budget;
        sender.set_send_budget(budget, budget);
        sender.recall(self.site.unsettled.clone());
        sender.start(self.now);
        self.tally.sessions += 1;
        self.site.session = Some(SiteSession {
            connection,
            sender,
            mismatch: None,
        });
        self.send(connection, Side::Hub, Packet::Open);
        self.pump_site()
    }

    /// Carries out what the sender wants, until it wants nothing.
    pub(super) fn pump_site(&mut self) -> Verdict {
        while let Some(session) = &mut self.site.session {
            let connection = session.connection;
            // as many of each class, when one after the other may be sent
            let most = self.site.max_reads * Class::COUNT;
            if session.sender.reads_and_items() > most {
                return Err(format!("more than {most} reads and items at the site"));
            }
            let Some(output) = session.sender.poll_output() else {
                break;
            };
            match output {
                SenderOutput::Control(bytes) => self.send_control(connection, Side::Hub, bytes),
                SenderOutput::Data(stream) => {
                    if !self.site.policy.allowed.contains(stream.class) {
                        return Err(format!("{} data, which may not be sent", stream.class));
                    }
                    let bytes = [stream.head, stream.payload].concat().into();
                    self.send(connection, Side::Hub, Packet::Data(bytes));
                }
                SenderOutput::Read {
                    handle,
                    from,
                    max_bytes,
                    chain,
                    begin,
                } => {
                    if matches!(begin, Some(Begin::Anchor(_))) {
                        self.tally.resumptions += 1;
                    }
                    let delay = self.rng.below(20_000);
                    let event = Event::ReadDone {
                        connection,
                        handle,
                        from,
                        max_bytes,
                        chain,
                        begin,
                    };
                    self.after_us(delay, event);
                }
                SenderOutput::Chain { handle, offset } => {
                    let chain = self.site.disk.logs[number_of(handle)].chain_at(offset);
                    if let Some(session) = &mut self.site.session {
                        session.sender.handle_chain(handle, offset, chain);
                    }
                }
                SenderOutput::Acked {
                    handle,
                    next_offset,
                } => self.acknowledged(number_of(handle), next_offset)?,
                SenderOutput::HistoryMismatch { handle, mismatch } => {
                    if let Some(session) = &mut self.site.session {
                        session.mismatch = Some((handle, mismatch));
                    }
                }
                SenderOutput::Missing(_) => return Err("chunks without a codec for them".into()),
                SenderOutput::Denied { .. }
                | SenderOutput::Admitted { .. }
                | SenderOutput::TooLarge { .. } => {
                    return Err(format!("a log is parked: {output:?}"));
                }
                SenderOutput::Established { .. }
                | SenderOutput::Policy(_)
                | SenderOutput::Window(_) => {}
                SenderOutput::Close(close) => {
                    check_close(&close)?;
                    if close.code == Code::HistoryMismatch && !close.by_peer {
                        self.renew()?;
                    }
                    self.hang_up();
                }
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, number: usize, next: Offset) -> Verdict {
        let incarnation = self.site.disk.incarnation;
        self.oracle.acked(incarnation, number, next)?;
        let log = &mut self.site.disk.logs[number];
        log.acked = log.acked.max(next);
        if log.acked > log.end {
            return Err(format!("log {number}: acknowledged beyond its end"));
        }
        Ok(())
    }

    fn renew(&mut self) -> Verdict {
        let Some(session) = &self.site.session else {
            return Ok(());
        };
        let Some((handle, why)) = session.mismatch else {
            return Err("history mismatch without a log".into());
        };
        // what was in flight when the process died is not remembered
        let is_unproven = why == Mismatch::NotABoundary && self.tally.crashes > self.tally.unproven;
        if is_unproven {
            self.tally.unproven += 1;
        } else {
            self.tally.renewals += 1;
        }
        if self.tally.renewals > self.tally.restores {
            return Err(format!(
                "log {}: new incarnation without need: {why:?}",
                number_of(handle)
            ));
        }
        if session.sender.streams_in_flight() == 0 {
            self.check_adopted(session.sender.is_resolved())?;
        }
        self.site.next_incarnation += 1;
        let incarnation = Incarnation(self.site.next_incarnation);
        self.site.disk.renew(incarnation, &mut self.oracle);
        Ok(())
    }

    /// What the hub holds of a history that is the site's too must not come again.
    fn check_adopted(&self, is_resolved: bool) -> Verdict {
        let incarnation = self.site.disk.incarnation;
        for (number, log) in self.site.disk.logs.iter().enumerate() {
            let Some(held) = self.oracle.checkpoint(incarnation, number) else {
                continue;
            };
            let is_shared = log.chain_at(held.next_offset) == Some(held.chain);
            if is_shared && log.acked < held.next_offset && (is_resolved || self.mutation.is_some())
            {
                return Err(format!(
                    "log {number}: {} of {} would come again",
                    held.next_offset, log.acked
                ));
            }
        }
        Ok(())
    }

    /// The session is over: the connection closes, and the site dials again after a while.
    pub(super) fn hang_up(&mut self) {
        if let Some(session) = self.site.session.take() {
            self.site.unsettled = session.sender.unsettled();
            self.send(session.connection, Side::Hub, Packet::Lost);
            let delay = self.rng.between(20_000, 600_000);
            self.after_us(delay, Event::Dial);
        }
    }

    pub(super) fn site_receives(&mut self, connection: u64, packet: Packet) -> Verdict {
        let now = self.now;
        let Some(session) = self
            .site
            .session
            .as_mut()
            .filter(|session| session.connection == connection)
        else {
            return Ok(());
        };
        match packet {
            Packet::Control(bytes) => session.sender.handle_control(&bytes, now),
            Packet::Lost => self.hang_up(),
            Packet::Open | Packet::Data(_) => return Err("the hub does not send this".into()),
        }
        self.pump_site()
    }

    pub(super) fn read_done(
        &mut self,
        connection: u64,
        handle: Handle,
        from: Offset,
        max_bytes: u32,
        chain: u64,
        begin: Option<Begin>,
    ) -> Verdict {
        if let Some(session) = &mut self.site.session
            && session.connection == connection
        {
            let number = number_of(handle);
            let log = &self.site.disk.logs[number];
            let seed = self.site.seed;
            let memory = self.site.memories.entry(number);
            let memory = memory.or_insert_with(|| SiteMemory::new(seed + number as u64));
            let result = log.read(from, max_bytes, chain, begin, memory);
            session.sender.handle_read(handle, result);
        }
        self.pump_site()
    }

    pub(super) fn append(&mut self) -> Verdict {
        if !self.site.is_up {
            return Ok(());
        }
        let known = self.site.disk.logs.len();
        let number = if known == 0 || (known < 4 && self.rng.chance(4)) {
            self.site.disk.logs.push(DiskLog::default());
            self.oracle.begin(self.site.disk.incarnation, known, 0);
            known
        } else {
            self.rng.below(known as u64) as usize
        };
        let first = self.site.next_id;
        self.site.next_id += self.rng.between(1, 5);
        let ids: Vec<u64> = (first..self.site.next_id).collect();
        let log = &mut self.site.disk.logs[number];
        if self.rng.chance(3) {
            log.drop_newest(number, ids.len() as u64, first, &mut self.oracle);
            self.tally.gaps += 1;
        } else {
            log.append(number, ids, &mut self.oracle);
        }
        self.tally.items += 1;
        let log = &self.site.disk.logs[number];
        let (range, acked) = (log.range(), log.acked);
        self.site.policy.change();
        if let Some(session) = &mut self.site.session {
            let (handle, name, class) = (handle_of(number), name_of(number), class_of(number));
            session.sender.add_log(handle, name, class, range, acked);
            session.sender.log_grew(handle, range.end, self.now);
            session.sender.set_classes_allowed(self.site.policy.allowed);
        }
        self.pump_site()
    }

    /// From here on nothing is held back.
    pub(super) fn allow_all(&mut self) -> Verdict {
        self.site.policy.allowed = ClassSet::ALL;
        if let Some(session) = &mut self.site.session {
            session.sender.set_classes_allowed(ClassSet::ALL);
        }
        self.pump_site()
    }

    /// The hub's transport has a whole stream.
    pub(super) fn delivered(&mut self, connection: u64, stream: &Bytes) -> Verdict {
        let Some(session) = self.site.session.as_mut() else {
            return Ok(());
        };
        if session.connection == connection
            && let Ok((header, _)) = DataHeader::decode(stream)
        {
            let class = class_of(number_of(header.handle));
            session.sender.handle_delivered(class, stream.len() as u64);
        }
        self.pump_site()
    }

    /// The process dies; now and then it takes a while until somebody notices.
    pub(super) fn site_crashes(&mut self) {
        if let Some(session) = self.site.session.take() {
            // nobody tells the hub
            self.cut(session.connection, false);
        }
        self.site.is_up = false;
        self.site.unsettled = Unsettled::default();
        if self.rng.chance(50) {
            self.site.memories.clear();
        }
        self.site.disk.crash(&mut self.rng);
        let most = if self.rng.chance(15) {
            12_000_000
        } else {
            2_000_000
        };
        let delay = self.rng.between(1_000, most);
        self.after_us(delay, Event::SiteStarts);
    }
}

/// Two correct ends never accuse each other of breaking the protocol.
pub(super) fn check_close(close: &Close) -> Verdict {
    match close.code {
        Code::Busy | Code::Superseded | Code::Timeout | Code::Stopping | Code::HistoryMismatch => {
            Ok(())
        }
        Code::Version
        | Code::NotAllowed
        | Code::NotOwner
        | Code::BadFrame
        | Code::Limit
        | Code::Internal
        | Code::Other(_) => Err(format!("session ended: {close:?}")),
    }
}
