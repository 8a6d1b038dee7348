//! One direction of a simulated link.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// IPv4 and UDP headers.
const HEADERS: u64 = 28;
/// A queue that is not empty takes one packet at least.
const PACKET: u64 = 1_500;

/// Everything that matters to a controller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// Bits per second of IP packets.
    pub(crate) rate: u64,
    /// Bytes that wait before the rate.
    pub(crate) queue: u64,
    pub(crate) delay: Duration,
    /// Around the delay; packets stay in order.
    pub(crate) jitter: Duration,
    /// In millionths, after the rate.
    pub(crate) loss: u64,
    /// The receiver sleeps so long in each so long.
    pub(crate) stall: (Duration, Duration),
}

impl Link {
    pub(crate) const fn path(rate: u64, round_trip_ms: u64, loss: u64, queue_percent: u64) -> Self {
        Self {
            rate,
            queue: rate / 8 * round_trip_ms / 1_000 * queue_percent / 100,
            delay: Duration::from_millis(round_trip_ms / 2),
            jitter: Duration::ZERO,
            loss,
            stall: (Duration::ZERO, Duration::from_secs(1)),
        }
    }
}

/// A link with what is on it.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) link: Link,
    pub(super) is_up: bool,
    began: Instant,
    free_from: Instant,
    last: Instant,
    flight: BTreeMap<(Instant, u64), Vec<u8>>,
    count: u64,
    dice: u64,
    waited: Duration,
    packets: u32,
}

impl Wire {
    pub(super) fn new(link: Link, now: Instant, seed: u64) -> Self {
        Self {
            link,
            is_up: true,
            began: now,
            free_from: now,
            last: now,
            flight: BTreeMap::new(),
            count: 0,
            dice: seed,
            waited: Duration::ZERO,
            packets: 0,
        }
    }

    pub(super) fn send(&mut self, now: Instant, datagram: &[u8]) {
        let bytes = datagram.len() as u64 + HEADERS;
        let waiting = self.waiting(now);
        self.waited += waiting;
        self.packets += 1;
        let queued = waiting.as_nanos() * u128::from(self.link.rate) / 8_000_000_000;
        let fits = queued + u128::from(bytes) <= u128::from(self.link.queue + PACKET);
        if !self.is_up || !fits && !waiting.is_zero() {
            return;
        }
        let sending = Duration::from_nanos(bytes * 8_000_000_000 / self.link.rate);
        self.free_from = self.free_from.max(now) + sending;
        if self.below(1_000_000) < self.link.loss {
            return;
        }
        self.last = self.last.max(self.release());
        self.count += 1;
        self.flight
            .insert((self.last, self.count), datagram.to_vec());
    }

    pub(super) fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        let entry = self.flight.first_entry();
        Some(entry.filter(|entry| entry.key().0 <= now)?.remove())
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.flight.first_key_value().map(|(key, _)| key.0)
    }

    fn waiting(&self, now: Instant) -> Duration {
        self.free_from.saturating_duration_since(now)
    }

    pub(super) fn mean_wait(&self) -> Duration {
        self.waited / self.packets.max(1)
    }

    fn release(&mut self) -> Instant {
        let mut release = self.free_from + self.link.delay;
        let jitter = nanos(self.link.jitter);
        if jitter > 0 {
            let spread = Duration::from_nanos(self.below(2 * jitter));
            release = release + spread - self.link.jitter;
        }
        let (asleep, every) = self.link.stall;
        let phase = nanos(release - self.began) % nanos(every);
        release + asleep.saturating_sub(Duration::from_nanos(phase))
    }

    /// SplitMix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
