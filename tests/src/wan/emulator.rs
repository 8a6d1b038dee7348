//! Both directions of a link and what is to happen to them when; no clock and no I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use super::conditions::Conditions;
use super::direction::Direction;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the site to the hub.
    Up,
    /// From the hub to the site.
    Down,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    pub(super) fn index(self) -> usize {
        match self {
            Self::Up => 0,
            Self::Down => 1,
        }
    }
}

/// Something that happens to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// New conditions in one direction.
    Set(Way, Conditions),
    /// Nothing passes in either direction.
    Cut,
    /// The link is back.
    Restore,
}

/// Two directions and a schedule.
#[derive(Debug)]
pub(super) struct Emulator {
    ways: [Direction; 2],
    schedule: BTreeMap<(Duration, u64), Change>,
    next_change: u64,
}

impl Emulator {
    pub(super) fn new(up: Conditions, down: Conditions, seed: u64) -> Self {
        Self {
            ways: [
                Direction::new(up, seed.wrapping_mul(2)),
                Direction::new(down, seed.wrapping_mul(2).wrapping_add(1)),
            ],
            schedule: BTreeMap::new(),
            next_change: 0,
        }
    }

    pub(super) fn way(&self, way: Way) -> &Direction {
        &self.ways[way.index()]
    }

    pub(super) fn push(&mut self, now: Duration, way: Way, packet: Vec<u8>) {
        self.run_due(now);
        self.ways[way.index()].push(now, packet);
    }

    pub(super) fn pop(&mut self, now: Duration, way: Way) -> Option<Vec<u8>> {
        self.run_due(now);
        self.ways[way.index()].pop(now)
    }

    pub(super) fn next_event(&self) -> Option<Duration> {
        let change = self.schedule.first_key_value().map(|(key, _)| key.0);
        let ways = self.ways.iter().filter_map(Direction::next_event);
        ways.chain(change).min()
    }

    pub(super) fn schedule(&mut self, at: Duration, change: Change) {
        self.next_change += 1;
        self.schedule.insert((at, self.next_change), change);
    }

    /// Each change at its own time, however late the caller is.
    pub(super) fn run_due(&mut self, now: Duration) {
        while let Some(entry) = self
            .schedule
            .first_entry()
            .filter(|entry| entry.key().0 <= now)
        {
            let ((at, _), change) = entry.remove_entry();
            match change {
                Change::Set(way, conditions) => self.ways[way.index()].set(at, conditions),
                Change::Cut => self.set_up(at, false),
                Change::Restore => self.set_up(at, true),
            }
        }
    }

    fn set_up(&mut self, at: Duration, is_up: bool) {
        for way in &mut self.ways {
            way.set_up(at, is_up);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::conditions::Conditions;
    use super::{Change, Emulator, Way};

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn changes_happen_at_their_own_time() {
        let slow = Conditions {
            rate: 8_000,
            ..Conditions::default()
        };
        let mut link = Emulator::new(slow.clone(), slow.clone(), 1);
        link.schedule(
            4 * S,
            Change::Set(
                Way::Up,
                Conditions {
                    rate: 16_000,
                    ..slow
                },
            ),
        );
        link.schedule(2 * S, Change::Cut);
        link.schedule(3 * S, Change::Restore);
        for second in 0..5 {
            link.push(second * S, Way::Up, vec![0; 500]);
        }
        let mut arrived = Vec::new();
        while let Some(time) = link.next_event() {
            while link.pop(time, Way::Up).is_some() {
                arrived.push(time);
            }
            link.run_due(time);
        }
        assert_eq!(arrived, [S / 2, 3 * S / 2, 7 * S / 2, 17 * S / 4]);
    }
}
