//! What one direction of a link does to its packets.

use std::time::Duration;

/// One percent of a share in millionths.
pub const PERCENT: u32 = 10_000;

/// The bottleneck's queue: what does not fit is dropped from its tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// So many bytes.
    Bytes(u64),
    /// What the rate carries in this time; it follows later changes of the rate.
    Time(Duration),
}

/// Loss in bursts (Gilbert and Elliott): a good state without and a bad one with loss. Millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bursts {
    /// From good to bad, at each packet.
    pub begin: u32,
    /// From bad to good, at each packet.
    pub end: u32,
    /// Loss in the bad state.
    pub loss: u32,
}

/// One direction of a link. The default is a wire: no limit, no delay, no loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// Bits per second of IP packets; 0 is no limit.
    pub rate: u64,
    /// What waits for the rate.
    pub queue: Queue,
    /// One way, after the rate.
    pub delay: Duration,
    /// Evenly spread around the delay, up and down.
    pub jitter: Duration,
    /// Whether jitter leaves packets in order, as on a path that is one line of queues.
    pub keeps_order: bool,
    /// Lost independently, in millionths. After the rate: what is lost has used its share of it, as on radio.
    pub loss: u32,
    /// Lost in bursts, besides.
    pub bursts: Option<Bursts>,
    /// Delivered twice, in millionths.
    pub duplicates: u32,
    /// Held back for `held_back`, so that others overtake, in millionths.
    pub reorders: u32,
    /// For how long.
    pub held_back: Duration,
    /// UDP does not pass, as behind some firewalls.
    pub blocks_udp: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            rate: 0,
            queue: Queue::Bytes(1_000_000),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            keeps_order: true,
            loss: 0,
            bursts: None,
            duplicates: 0,
            reorders: 0,
            held_back: Duration::from_millis(10),
            blocks_udp: false,
        }
    }
}

impl Conditions {
    /// A rate, half of a round trip, and a queue in percent of the product of rate and round trip.
    #[must_use]
    pub fn path(rate: u64, round_trip: Duration, queue_percent: u32) -> Self {
        Self {
            rate,
            queue: Queue::Time(round_trip * queue_percent / 100),
            delay: round_trip / 2,
            ..Self::default()
        }
    }

    /// Time that the rate needs for so many bytes.
    #[must_use]
    pub(super) fn sending_time(&self, bytes: u64) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    pub(super) fn queue_bytes(&self) -> u64 {
        match self.queue {
            Queue::Bytes(bytes) => bytes,
            Queue::Time(_) if self.rate == 0 => u64::MAX,
            Queue::Time(time) => {
                let bytes = time.as_nanos() * u128::from(self.rate) / 8_000_000_000;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
        }
    }
}
