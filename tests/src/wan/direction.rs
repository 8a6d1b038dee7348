//! The model of one direction; no clock and no I/O.
//!
//! ```text
//! push ─► [outage, UDP?] ─► queue (drop tail) ─► rate ─► [outage?] ─► loss ─► twice? ─► delay ─► pop
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::conditions::Conditions;
use super::dice::Dice;

const IPV4_PROTOCOL: usize = 9;
const UDP: u8 = 17;
const LATE: Duration = Duration::from_millis(1);

/// Packets and IP bytes of one direction since it began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// What the sender handed over: what its interface counts.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// What the rate carried, packets that were lost behind it too: what a metered link bills.
    pub carried_packets: u64,
    /// Their bytes.
    pub carried_bytes: u64,
    /// What the receiver got.
    pub delivered_packets: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Lost at random.
    pub lost: u64,
    /// Dropped by an outage.
    pub cut: u64,
    /// Dropped because they were UDP.
    pub blocked: u64,
    /// Delivered a second time.
    pub doubled: u64,
    /// Held back.
    pub held_back: u64,
    /// The most that waited in the queue, bytes.
    pub queue_most: u64,
    /// How late this process delivered at worst. Beyond a few milliseconds a run is not to be trusted.
    pub late_most: Duration,
    /// Packets that were delivered more than a millisecond late.
    pub late_packets: u64,
}

/// One way of a link. Times are since the laboratory began.
#[derive(Debug)]
pub(super) struct Direction {
    conditions: Conditions,
    is_up: bool,
    /// With the time of arrival.
    queue: VecDeque<(Duration, Vec<u8>)>,
    queued_bytes: u64,
    /// When the head of the queue has passed the bottleneck.
    head_done: Option<Duration>,
    /// When the packet before it had.
    free_from: Duration,
    flight: BTreeMap<(Duration, u64), Vec<u8>>,
    next_flight: u64,
    last_release: Duration,
    in_burst: bool,
    loss: Dice,
    jitter: Dice,
    twice: Dice,
    order: Dice,
    counters: Counters,
}

impl Direction {
    pub(super) fn new(conditions: Conditions, seed: u64) -> Self {
        // separate dice: switching one impairment on does not change what the others do
        let dice = |which: u64| Dice::new(seed ^ (which << 56));
        Self {
            conditions,
            is_up: true,
            queue: VecDeque::new(),
            queued_bytes: 0,
            head_done: None,
            free_from: Duration::ZERO,
            flight: BTreeMap::new(),
            next_flight: 0,
            last_release: Duration::ZERO,
            in_burst: false,
            loss: dice(1),
            jitter: dice(2),
            twice: dice(3),
            order: dice(4),
            counters: Counters::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// A packet arrives from the sender.
    pub(super) fn push(&mut self, now: Duration, packet: Vec<u8>) {
        self.advance(now);
        let bytes = packet.len() as u64;
        self.counters.sent_packets += 1;
        self.counters.sent_bytes += bytes;
        let fits = self.queued_bytes + bytes <= self.conditions.queue_bytes();
        if !self.is_up {
            self.counters.cut += 1;
        } else if self.conditions.blocks_udp && packet.get(IPV4_PROTOCOL) == Some(&UDP) {
            self.counters.blocked += 1;
        } else if !fits && !self.queue.is_empty() {
            self.counters.overflowed += 1;
        } else {
            self.queued_bytes += bytes;
            self.counters.queue_most = self.counters.queue_most.max(self.queued_bytes);
            self.queue.push_back((now, packet));
            self.advance(now);
        }
    }

    /// The next packet that is due at the receiver.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.advance(now);
        let entry = self
            .flight
            .first_entry()
            .filter(|entry| entry.key().0 <= now)?;
        let late = now.saturating_sub(entry.key().0);
        let packet = entry.remove();
        self.counters.late_most = self.counters.late_most.max(late);
        self.counters.late_packets += u64::from(late > LATE);
        self.counters.delivered_packets += 1;
        self.counters.delivered_bytes += packet.len() as u64;
        Some(packet)
    }

    /// When something happens by itself.
    pub(super) fn next_event(&self) -> Option<Duration> {
        let flight = self.flight.first_key_value().map(|(key, _)| key.0);
        self.head_done.into_iter().chain(flight).min()
    }

    /// What is half sent goes on at the new rate.
    pub(super) fn set(&mut self, now: Duration, conditions: Conditions) {
        self.advance(now);
        if let Some(done) = self.head_done {
            let left = done.saturating_sub(now).as_nanos();
            let (old, new) = (self.conditions.rate, conditions.rate);
            let left = (left * u128::from(old)).checked_div(u128::from(new));
            let left = Duration::from_nanos(u64::try_from(left.unwrap_or(0)).unwrap_or(u64::MAX));
            self.head_done = Some(now.saturating_add(left));
        }
        self.conditions = conditions;
        self.advance(now);
    }

    /// While it is down, what is sent is lost; what has passed the bottleneck arrives.
    pub(super) fn set_up(&mut self, now: Duration, is_up: bool) {
        self.advance(now);
        self.is_up = is_up;
    }

    /// Moves on what has passed the bottleneck by now.
    fn advance(&mut self, now: Duration) {
        while let Some((arrived, packet)) = self.queue.front() {
            let bytes = packet.len() as u64;
            let start = self.free_from.max(*arrived);
            let sending = self.conditions.sending_time(bytes);
            let end = start.saturating_add(sending);
            let done = *self.head_done.get_or_insert(end);
            if done > now {
                return;
            }
            self.head_done = None;
            self.free_from = done;
            self.queued_bytes -= bytes;
            self.counters.carried_packets += 1;
            self.counters.carried_bytes += bytes;
            if let Some((_, packet)) = self.queue.pop_front() {
                self.fly(done, packet);
            }
        }
    }

    fn fly(&mut self, now: Duration, packet: Vec<u8>) {
        if !self.is_up {
            self.counters.cut += 1;
            return;
        }
        if self.is_lost() {
            self.counters.lost += 1;
            return;
        }
        let mut release = now + self.delay();
        if self.conditions.keeps_order {
            release = release.max(self.last_release);
        }
        if self.order.chance(self.conditions.reorders) {
            release += self.conditions.held_back;
            self.counters.held_back += 1;
        } else {
            self.last_release = release;
        }
        if self.twice.chance(self.conditions.duplicates) {
            self.counters.doubled += 1;
            self.deliver_at(release, packet.clone());
        }
        self.deliver_at(release, packet);
    }

    fn deliver_at(&mut self, release: Duration, packet: Vec<u8>) {
        self.next_flight += 1;
        self.flight.insert((release, self.next_flight), packet);
    }

    fn is_lost(&mut self) -> bool {
        let in_burst = self.conditions.bursts.is_some_and(|bursts| {
            let change = if self.in_burst {
                bursts.end
            } else {
                bursts.begin
            };
            self.in_burst ^= self.loss.chance(change);
            self.in_burst && self.loss.chance(bursts.loss)
        });
        self.loss.chance(self.conditions.loss) || in_burst
    }

    fn delay(&mut self) -> Duration {
        let jitter = u64::try_from(self.conditions.jitter.as_nanos()).unwrap_or(u64::MAX / 4);
        if jitter == 0 {
            return self.conditions.delay;
        }
        let spread = Duration::from_nanos(self.jitter.below(2 * jitter));
        (self.conditions.delay + spread).saturating_sub(self.conditions.jitter)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::conditions::{Bursts, Conditions, PERCENT, Queue};
    use super::Direction;

    const MS: Duration = Duration::from_millis(1);
    /// A packet of 1250 bytes takes a millisecond.
    const TEN_MBIT: u64 = 10_000_000;

    #[test]
    fn the_rate_spaces_packets_and_the_delay_follows() {
        let mut way = direction(Conditions {
            delay: 50 * MS,
            ..ten_mbit()
        });
        (0..3).for_each(|number| way.push(Duration::ZERO, packet(number)));
        assert_eq!(drain(&mut way), [(51 * MS, 0), (52 * MS, 1), (53 * MS, 2)]);
    }

    #[test]
    fn a_full_queue_drops_its_tail() {
        let mut way = direction(Conditions {
            queue: Queue::Bytes(3000),
            ..ten_mbit()
        });
        (0..4).for_each(|number| way.push(Duration::ZERO, packet(number)));
        assert_eq!(drain(&mut way).len(), 2);
        assert_eq!(way.counters().overflowed, 2);
        assert_eq!(way.counters().queue_most, 2500);
    }

    #[test]
    fn a_late_caller_costs_no_rate() {
        let mut way = direction(ten_mbit());
        (0..10).for_each(|number| way.push(Duration::ZERO, packet(number)));
        let delivered = std::iter::from_fn(|| way.pop(10 * MS)).count();
        assert_eq!(delivered, 10);
        assert_eq!(way.counters().late_most, 9 * MS);
    }

    #[test]
    fn a_new_rate_holds_for_what_is_half_sent() {
        let mut way = direction(ten_mbit());
        way.push(Duration::ZERO, packet(0));
        let slow = Conditions {
            rate: 1_000_000,
            ..ten_mbit()
        };
        way.set(MS / 2, slow);
        assert_eq!(drain(&mut way), [(MS / 2 + 5 * MS, 0)]);
    }

    #[test]
    fn an_outage_loses_what_is_sent_into_it_and_no_more() {
        let mut way = direction(ten_mbit());
        way.push(Duration::ZERO, packet(0));
        way.push(Duration::ZERO, packet(1));
        way.set_up(3 * MS / 2, false);
        way.push(2 * MS, packet(2));
        way.set_up(100 * MS, true);
        way.push(100 * MS, packet(3));
        let delivered: Vec<_> = drain(&mut way)
            .into_iter()
            .map(|(_, number)| number)
            .collect();
        assert_eq!(delivered, [0, 3]);
        assert_eq!(way.counters().cut, 2);
    }

    #[test]
    fn udp_is_blocked_and_tcp_passes() {
        let mut way = direction(Conditions {
            blocks_udp: true,
            ..ten_mbit()
        });
        for protocol in [6, 17] {
            let mut bytes = packet(protocol);
            bytes[9] = protocol;
            way.push(Duration::ZERO, bytes);
        }
        assert_eq!(drain(&mut way), [(MS, 6)]);
        assert_eq!(way.counters().blocked, 1);
    }

    #[test]
    fn loss_has_the_mean_that_was_asked_for() {
        let bursts = |begin, end, loss| {
            Some(Bursts {
                begin: begin * PERCENT,
                end: end * PERCENT,
                loss: loss * PERCENT,
            })
        };
        for (loss, bursts, lost) in [
            (2 * PERCENT, None, 2_000),
            (0, bursts(1, 25, 100), 3_846),
            (0, bursts(1, 49, 50), 1_000),
        ] {
            let mut way = direction(Conditions {
                loss,
                bursts,
                ..Conditions::default()
            });
            (0..100_000).for_each(|_| way.push(Duration::ZERO, vec![0]));
            let off = way.counters().lost.abs_diff(lost);
            assert!(off * 10 < lost, "{off} from {lost}");
        }
    }

    #[test]
    fn the_same_seed_does_the_same_and_jitter_keeps_order() {
        let run = |conditions: Conditions| {
            let mut way = direction(conditions);
            (0..200).for_each(|number| way.push(u32::from(number) * MS, packet(number)));
            let order: Vec<_> = drain(&mut way)
                .into_iter()
                .map(|(_, number)| number)
                .collect();
            order
        };
        let jittery = Conditions {
            delay: 20 * MS,
            jitter: 10 * MS,
            ..Conditions::default()
        };
        assert!(run(jittery.clone()).is_sorted());
        let overtaking = Conditions {
            keeps_order: false,
            ..jittery
        };
        assert!(!run(overtaking).is_sorted());
        let reordering = Conditions {
            reorders: 10 * PERCENT,
            ..jittery
        };
        assert!(!run(reordering.clone()).is_sorted());
        assert_eq!(run(reordering.clone()), run(reordering));
        let doubling = Conditions {
            duplicates: 100 * PERCENT,
            ..Conditions::default()
        };
        assert_eq!(run(doubling).len(), 400);
    }

    fn ten_mbit() -> Conditions {
        Conditions {
            rate: TEN_MBIT,
            ..Conditions::default()
        }
    }

    fn direction(conditions: Conditions) -> Direction {
        Direction::new(conditions, 7)
    }

    fn packet(number: u8) -> Vec<u8> {
        let mut packet = vec![0; 1250];
        packet[0] = number;
        packet
    }

    /// Time of delivery and first byte of each packet, until nothing is on its way.
    fn drain(way: &mut Direction) -> Vec<(Duration, u8)> {
        let mut delivered = Vec::new();
        while let Some(time) = way.next_event() {
            while let Some(packet) = way.pop(time) {
                delivered.push((time, packet[0]));
            }
        }
        delivered
    }
}
