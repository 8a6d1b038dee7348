//! Connections between the site and the hub, and what becomes of the bytes on them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::rng::Rng;

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Site,
    Hub,
}

/// What travels.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    /// The site dialled.
    Open,
    Control(Bytes),
    /// A whole unidirectional stream.
    Data(Bytes),
    /// The connection is over.
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Nothing arrives any more.
    pub(super) cut_at: Option<Duration>,
    /// Nothing arrives before.
    pub(super) blocked_until: Duration,
    last_control: [Duration; 2],
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) connections: BTreeMap<u64, Connection>,
    latency_us: u64,
    next_id: u64,
}

/// What happens to a packet when its time has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Arrives,
    Later(Duration),
    Vanishes,
}

impl Network {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self {
            connections: BTreeMap::new(),
            latency_us: rng.between(200, 150_000),
            next_id: 0,
        }
    }

    pub(super) fn connect(&mut self) -> u64 {
        self.next_id += 1;
        self.connections.insert(self.next_id, Connection::default());
        self.next_id
    }

    /// When a packet that is sent at `now` arrives, unless something happens to its connection.
    pub(super) fn arrival(
        &mut self,
        id: u64,
        to: Side,
        packet: &Packet,
        now: Duration,
        rng: &mut Rng,
    ) -> Duration {
        let connection = self.connections.entry(id).or_default();
        let slowness = match packet {
            Packet::Data(_) => 3,
            Packet::Open | Packet::Control(_) | Packet::Lost => 1,
        };
        let delay = self.latency_us + rng.below(self.latency_us * slowness + 1);
        let at = now + Duration::from_micros(delay);
        if matches!(packet, Packet::Data(_)) {
            return at;
        }
        // the control stream keeps its order
        let last = &mut connection.last_control[to as usize];
        *last = at.max(*last).max(connection.blocked_until) + Duration::from_micros(1);
        *last
    }

    pub(super) fn fate(&self, id: u64, packet: &Packet, now: Duration) -> Fate {
        let Some(connection) = self.connections.get(&id) else {
            return Fate::Vanishes;
        };
        if matches!(packet, Packet::Lost) {
            Fate::Arrives
        } else if connection.cut_at.is_some() {
            Fate::Vanishes
        } else if now < connection.blocked_until {
            Fate::Later(connection.blocked_until)
        } else {
            Fate::Arrives
        }
    }

    /// Nothing gets through until then; what is on its way arrives afterwards.
    pub(super) fn block(&mut self, until: Duration) {
        for connection in self.connections.values_mut() {
            connection.blocked_until = connection.blocked_until.max(until);
        }
    }
}
