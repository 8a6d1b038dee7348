//! Time, events and faults.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::Tally;
use super::disk::Disk;
use super::hub::{Hub, Lane};
use super::memory::HubMemory;
use super::network::{Fate, Network, Packet, Side};
use super::oracle::{Oracle, Verdict};
use super::rng::Rng;
use super::site::{Policy, Site};
use crate::batch::Decoders;
use crate::ids::{Incarnation, Offset};
use crate::link::mutation::Mutation;
use crate::link::{Begin, Unsettled};
use crate::wire::{Code, Handle};

/// After the last fault everything is committed within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run that needs more steps than this runs in a circle.
const MAX_STEPS: u64 = 200_000;

#[derive(Debug)]
pub(super) enum Event {
    Arrives {
        connection: u64,
        to: Side,
        packet: Packet,
    },
    Dial,
    Append,
    ReadDone {
        connection: u64,
        handle: Handle,
        from: Offset,
        max_bytes: u32,
        chain: u64,
        begin: Option<Begin>,
    },
    SiteStarts,
    HubStarts,
    LaneStep {
        life: u64,
    },
    TransactionEnds {
        life: u64,
    },
    Fault,
    Heal,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) rng: Rng,
    pub(super) mutation: Option<Mutation>,
    pub(super) network: Network,
    pub(super) site: Site,
    pub(super) hub: Hub,
    pub(super) oracle: Oracle,
    pub(super) tally: Tally,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    /// The number of the event that is being handled.
    event: u64,
    heals_at: Duration,
    /// Milliseconds between faults, on average.
    fault_ms: u64,
    append_ms: u64,
}

impl World {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let mut rng = Rng::new(seed);
        let full_window = rng.between(6_000, 80_000);
        let mut world = Self {
            now: Duration::ZERO,
            mutation,
            network: Network::new(&mut rng),
            site: Site {
                disk: Disk {
                    incarnation: Incarnation(1),
                    logs: Vec::new(),
                },
                snapshot: None,
                is_up: true,
                unsettled: Unsettled::default(),
                session: None,
                next_id: 1,
                next_incarnation: 1,
                max_reads: rng.between(1, 8) as usize,
                max_read_bytes: rng.between(200, 4_000) as u32,
                policy: Policy::new(seed),
                seed,
                memories: BTreeMap::new(),
            },
            hub: Hub {
                is_up: true,
                life: 0,
                sessions: BTreeMap::new(),
                lane: Lane::default(),
                window: full_window,
                full_window,
                stalled_until: Duration::ZERO,
                decoders: Decoders::default(),
                memory: HubMemory::default(),
            },
            oracle: Oracle::default(),
            tally: Tally::default(),
            events: BTreeMap::new(),
            next_event: 0,
            event: 0,
            heals_at: Duration::from_millis(rng.between(1_000, 15_000)),
            fault_ms: rng.between(100, 2_000),
            append_ms: rng.between(10, 200),
            rng,
        };
        world.after_us(0, Event::Append);
        world.after_us(1_000, Event::Dial);
        world.after_us(50_000, Event::Fault);
        world.after_us(world.heals_at.as_micros() as u64, Event::Heal);
        world
    }

    pub(super) fn run(mut self) -> Result<Tally, String> {
        let deadline = self.heals_at + PATIENCE;
        loop {
            self.step()
                .map_err(|what| format!("at {:?}: {what}", self.now))?;
            self.tally.steps += 1;
            if !self.has_faults() && self.is_done() {
                break;
            }
            if self.now > deadline || self.tally.steps > MAX_STEPS {
                let what = self.check_complete().err();
                if std::env::var_os("KEDGE_SEED").is_some() {
                    println!("{:#?}\n{:#?}", self.site.session, self.hub);
                }
                return Err(format!(
                    "not done {PATIENCE:?} after the last fault: {}",
                    what.unwrap_or_else(|| "the site was not told".into())
                ));
            }
        }
        self.check_complete()?;
        Ok(self.tally)
    }

    pub(super) fn has_faults(&self) -> bool {
        self.now < self.heals_at
    }

    fn is_done(&self) -> bool {
        let incarnation = self.site.disk.incarnation;
        self.site.is_up
            && self.site.disk.logs.iter().enumerate().all(|(n, log)| {
                let committed = self.oracle.committed(incarnation, n);
                log.acked == log.end && committed.is_none_or(|next| next == log.end)
            })
    }

    fn check_complete(&self) -> Verdict {
        let incarnation = self.site.disk.incarnation;
        for (number, log) in self.site.disk.logs.iter().enumerate() {
            let chain = log.chain_at(log.end).unwrap_or(0);
            self.oracle
                .check_complete(incarnation, number, log.end, chain)?;
        }
        Ok(())
    }

    pub(super) fn after_us(&mut self, delay_us: u64, event: Event) {
        self.at(self.now + Duration::from_micros(delay_us), event);
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((time, self.next_event), event);
    }

    /// Bytes of the control stream arrive in pieces of any size.
    pub(super) fn send_control(&mut self, connection: u64, to: Side, mut bytes: Bytes) {
        while bytes.len() > 1 && self.rng.chance(20) {
            let piece = bytes.split_to(self.rng.between(1, bytes.len() as u64 - 1) as usize);
            self.send(connection, to, Packet::Control(piece));
        }
        self.send(connection, to, Packet::Control(bytes));
    }

    pub(super) fn send(&mut self, connection: u64, to: Side, packet: Packet) {
        let at = self
            .network
            .arrival(connection, to, &packet, self.now, &mut self.rng);
        if matches!(packet, Packet::Data(_)) && self.rng.chance(3) {
            self.tally.repeats += 1;
            let later = at + Duration::from_micros(self.rng.below(500_000));
            self.at(
                later,
                Event::Arrives {
                    connection,
                    to,
                    packet: packet.clone(),
                },
            );
        }
        self.at(
            at,
            Event::Arrives {
                connection,
                to,
                packet,
            },
        );
    }

    /// Nothing arrives on this connection any more; perhaps its ends are told.
    pub(super) fn cut(&mut self, id: u64, is_told: bool) {
        if let Some(connection) = self.network.connections.get_mut(&id)
            && connection.cut_at.is_none()
        {
            connection.cut_at = Some(self.now);
            if is_told {
                self.send(id, Side::Site, Packet::Lost);
                self.send(id, Side::Hub, Packet::Lost);
            }
        }
    }

    /// The next event or time limit, whichever comes first.
    fn step(&mut self) -> Verdict {
        let timeout = self.next_timeout();
        let next = self.events.first_key_value().map(|((at, _), _)| *at);
        if let Some(timeout) = timeout.filter(|t| next.is_none_or(|next| *t < next)) {
            self.now = self.now.max(timeout);
            return self.time_out();
        }
        let Some(((at, number), event)) = self.events.pop_first() else {
            return Err("nothing happens any more".into());
        };
        self.event = number;
        self.now = self.now.max(at);
        self.check_dead_sessions()?;
        self.handle(event)
    }

    fn next_timeout(&self) -> Option<Duration> {
        let site = self.site.session.as_ref();
        let hubs = self.hub.sessions.values();
        site.and_then(|session| session.sender.poll_timeout())
            .into_iter()
            .chain(hubs.filter_map(|session| session.receiver.poll_timeout()))
            .min()
    }

    fn time_out(&mut self) -> Verdict {
        let now = self.now;
        if let Some(session) = &mut self.site.session {
            session.sender.handle_timeout(now);
        }
        let connections: Vec<u64> = self.hub.sessions.keys().copied().collect();
        for connection in connections {
            if let Some(session) = self.hub.sessions.get_mut(&connection) {
                session.receiver.handle_timeout(now);
            }
            self.pump_hub(connection)?;
        }
        self.pump_site()
    }

    fn handle(&mut self, event: Event) -> Verdict {
        match event {
            Event::Arrives {
                connection,
                to,
                packet,
            } => self.arrives(connection, to, packet),
            Event::Dial => self.dial(),
            Event::Append => {
                if self.has_faults() {
                    let delay = self.rng.below(self.append_ms * 2_000);
                    self.after_us(delay, Event::Append);
                    self.append()
                } else {
                    Ok(())
                }
            }
            Event::ReadDone {
                connection,
                handle,
                from,
                max_bytes,
                chain,
                begin,
            } => self.read_done(connection, handle, from, max_bytes, chain, begin),
            Event::SiteStarts => {
                self.site.is_up = true;
                self.dial()
            }
            Event::HubStarts => {
                self.hub.is_up = true;
                Ok(())
            }
            Event::LaneStep { life } => {
                self.lane_step(life);
                Ok(())
            }
            Event::TransactionEnds { life } => self.transaction_ends(life),
            Event::Fault => {
                if self.has_faults() {
                    let delay = self.rng.below(self.fault_ms * 2_000);
                    self.after_us(delay, Event::Fault);
                    self.fault()
                } else {
                    Ok(())
                }
            }
            Event::Heal => {
                self.allow_all()?;
                self.hub.window = self.hub.full_window;
                self.set_windows()
            }
        }
    }

    fn arrives(&mut self, connection: u64, to: Side, packet: Packet) -> Verdict {
        match (self.network.fate(connection, &packet, self.now), to) {
            (Fate::Vanishes, _) => Ok(()),
            (Fate::Later(at), _) => {
                // under its old number: what was sent first still arrives first
                let event = Event::Arrives {
                    connection,
                    to,
                    packet,
                };
                self.events.insert((at, self.event), event);
                Ok(())
            }
            (Fate::Arrives, Side::Site) => self.site_receives(connection, packet),
            (Fate::Arrives, Side::Hub) => {
                if let Packet::Data(stream) = &packet {
                    self.delivered(connection, stream)?;
                }
                self.hub_receives(connection, packet)
            }
        }
    }

    fn fault(&mut self) -> Verdict {
        match self.rng.below(100) {
            0..=4 => self.hub.forget(),
            5..=14 => {
                if let Some(session) = &self.site.session {
                    let connection = session.connection;
                    let is_told = self.rng.chance(50);
                    self.cut(connection, is_told);
                }
            }
            15..=26 => {
                let until = self.now + Duration::from_millis(self.rng.between(10, 6_000));
                self.network.block(until);
            }
            27..=36 if self.site.is_up => {
                self.tally.crashes += 1;
                self.site_crashes();
            }
            37..=46 if self.hub.is_up => {
                let is_committed = self.rng.chance(50);
                return self.hub_crashes(is_committed);
            }
            47..=56 => {
                let most = self.rng.between(1, 8);
                for log in &mut self.site.disk.logs {
                    log.trim(most);
                }
            }
            57..=64 => self.drop_oldest(),
            65..=67 => {
                if let Some(log) = self.site.disk.logs.first_mut() {
                    log.damage(self.rng.next() as usize, &mut self.oracle);
                    self.tally.gaps += 1;
                }
            }
            68..=73 => {
                let wait = self.rng.between(10, 3_000);
                self.hub.stalled_until = self.now + Duration::from_millis(wait);
            }
            74..=79 => {
                self.hub.window = self.rng.below(self.hub.full_window);
                return self.set_windows();
            }
            80..=83 => {
                if let Some(session) = &mut self.site.session {
                    session.sender.close(Code::Stopping, None, "stopping");
                    return self.pump_site();
                }
            }
            84..=86 => return self.end_sessions(Code::Stopping),
            87..=91 => self.site.snapshot = Some(self.site.disk.clone()),
            92..=94 if self.site.is_up => self.restore(),
            95..=96 if self.hub.is_up => {
                self.hub_crashes(true)?;
                self.tally.lost_checkpoints += 1;
                self.oracle.lose_checkpoints(&mut self.rng);
            }
            // the site dials again while the hub still believes in the older session
            97..=99 => self.hang_up_silently(),
            _ => {}
        }
        Ok(())
    }

    fn drop_oldest(&mut self) {
        let logs = self.site.disk.logs.len() as u64;
        if logs == 0 {
            return;
        }
        let number = self.rng.below(logs) as usize;
        let count = self.rng.between(1, 6) as usize;
        self.site.disk.logs[number].drop_oldest(count, &mut self.oracle);
        self.tally.gaps += 1;
    }

    fn restore(&mut self) {
        let Some(snapshot) = self.site.snapshot.clone() else {
            return;
        };
        self.tally.restores += 1;
        self.site_crashes();
        self.site.disk = snapshot;
        self.site.disk.crash(&mut self.rng);
        if self.rng.chance(50) {
            self.write_another_history();
        }
    }

    /// The restored store takes records, and drops some, before it reaches the hub.
    fn write_another_history(&mut self) {
        for number in 0..self.site.disk.logs.len() {
            let log = &mut self.site.disk.logs[number];
            for _ in 0..self.rng.between(1, 8) {
                let first = self.site.next_id;
                self.site.next_id += self.rng.between(1, 5);
                let ids = (first..self.site.next_id).collect();
                log.append(number, ids, &mut self.oracle);
            }
            let dropped = self.rng.below(12) as usize;
            log.drop_oldest(dropped, &mut self.oracle);
        }
    }

    fn hang_up_silently(&mut self) {
        if let Some(session) = self.site.session.take() {
            self.site.unsettled = session.sender.unsettled();
            self.cut(session.connection, false);
            self.after_us(1_000, Event::Dial);
        }
    }

    fn set_windows(&mut self) -> Verdict {
        let window = self.hub.window;
        let connections: Vec<u64> = self.hub.sessions.keys().copied().collect();
        for connection in connections {
            if let Some(session) = self.hub.sessions.get_mut(&connection) {
                session.receiver.set_window(window);
            }
            self.pump_hub(connection)?;
        }
        Ok(())
    }
}
