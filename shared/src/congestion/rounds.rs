//! What a round trip delivered, and the best of the last ones.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rounds whose best rate counts: a cycle, and a little more.
const RATES: usize = 12;
/// A round trip that was not seen again for so long is forgotten: paths change.
const BASE_MEMORY: Duration = Duration::from_secs(10);
/// Not seen for so long, it is looked for.
const BASE_STALE: Duration = Duration::from_secs(5);
/// Loss beyond the mean that is still chance, in thousandths.
const CHANCE_LOSS: u64 = 20;
/// Rounds that may be the least of `BASE_MEMORY`.
const BASES: usize = 32;

/// From one packet sent to its acknowledgement.
#[derive(Debug, Clone)]
pub(super) struct Round {
    began: Instant,
    /// The last packet that the round before acknowledged left then, and this round's last.
    sent_from: Instant,
    sent_to: Instant,
    acked: u64,
    lost: u64,
    round_trips: Duration,
    least: Duration,
    most: Duration,
    latest: Duration,
    samples: u32,
    is_app_limited: bool,
}

/// A round that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summary {
    /// Bytes per second that were acknowledged.
    pub(super) rate: u64,
    /// Mean.
    pub(super) round_trip: Duration,
    pub(super) longest: Duration,
    /// Of the packet that ended it.
    pub(super) latest: Duration,
    /// From the least to the most, a quarter: what the round trip varies by.
    pub(super) deviation: Duration,
    pub(super) acked: u64,
    pub(super) lost: u64,
    /// Of what was sent, in thousandths.
    pub(super) loss: u64,
    /// There was less to send than allowed.
    pub(super) is_app_limited: bool,
}

impl Round {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            sent_from: now,
            sent_to: now,
            acked: 0,
            lost: 0,
            round_trips: Duration::ZERO,
            least: Duration::MAX,
            most: Duration::ZERO,
            latest: Duration::ZERO,
            samples: 0,
            is_app_limited: false,
        }
    }

    /// The one that follows.
    pub(super) fn next(&self, now: Instant) -> Self {
        Self {
            sent_from: self.sent_to,
            sent_to: self.sent_to,
            ..Self::new(now)
        }
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(super) fn add_acked(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        is_app_limited: bool,
    ) {
        let round_trip = now.saturating_duration_since(sent);
        self.sent_to = self.sent_to.max(sent);
        self.acked += bytes;
        self.round_trips += round_trip;
        self.least = self.least.min(round_trip);
        self.most = self.most.max(round_trip);
        self.latest = round_trip;
        self.samples += 1;
        self.is_app_limited |= is_app_limited;
    }

    pub(super) fn add_lost(&mut self, bytes: u64) {
        self.lost += bytes;
    }

    /// Nothing when it has no sample.
    pub(super) fn end(&self, now: Instant) -> Option<Summary> {
        let round_trip = self.round_trips.checked_div(self.samples)?;
        // acknowledgements that were held up come together, faster than the path is
        let sending = self.sent_to.saturating_duration_since(self.sent_from);
        let time = now.saturating_duration_since(self.began).max(sending);
        let micros = time.as_micros().max(100);
        let rate = u128::from(self.acked) * 1_000_000 / micros;
        Some(Summary {
            rate: u64::try_from(rate).unwrap_or(u64::MAX),
            round_trip,
            longest: self.most,
            latest: self.latest,
            deviation: self.most.saturating_sub(self.least) / 4,
            acked: self.acked,
            lost: self.lost,
            loss: self.lost * 1000 / (self.lost + self.acked).max(1),
            is_app_limited: self.is_app_limited,
        })
    }
}

/// Delivery rates of the last rounds that the application did not limit.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates(VecDeque<u64>);

impl Rates {
    pub(super) fn add(&mut self, rate: u64) {
        if self.0.len() == RATES {
            self.0.pop_front();
        }
        self.0.push_back(rate);
    }

    /// Bytes per second; 0 before the first.
    pub(super) fn best(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }
}

/// The round trip without a queue: the least mean of a round. The least sample would be too small where
/// the delay varies.
#[derive(Debug, Clone, Default)]
pub(super) struct BaseRoundTrip {
    /// Ascending.
    rounds: VecDeque<(Instant, Duration, Duration)>,
    /// The least sample, until a round is over.
    first: Option<Duration>,
    /// When a round came near it.
    confirmed: Option<Instant>,
}

impl BaseRoundTrip {
    pub(super) fn bound(&mut self, sample: Duration) {
        if self.rounds.is_empty() {
            self.first = Some(self.first.map_or(sample, |first| first.min(sample)));
        }
    }

    pub(super) fn add(&mut self, now: Instant, summary: &Summary) {
        let mean = summary.round_trip;
        if mean <= self.mean() + self.mean() / 16 {
            self.confirmed = Some(now);
        }
        while self
            .rounds
            .back()
            .is_some_and(|(_, least, _)| *least >= mean)
        {
            self.rounds.pop_back();
        }
        if self.rounds.len() < BASES {
            self.rounds.push_back((now, mean, summary.deviation));
        }
        let is_old = |(seen, ..): &(Instant, Duration, Duration)| {
            now.saturating_duration_since(*seen) > BASE_MEMORY
        };
        while self.rounds.len() > 1 && self.rounds.front().is_some_and(is_old) {
            self.rounds.pop_front();
        }
    }

    /// Whether the queue has not been empty for some time.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        let since = self
            .confirmed
            .map(|seen| now.saturating_duration_since(seen));
        since.is_some_and(|since| since > BASE_STALE)
    }

    pub(super) fn mean(&self) -> Duration {
        let round = self.rounds.front().map(|(_, mean, _)| *mean);
        round.or(self.first).unwrap_or_default()
    }

    /// What must be in flight to fill it: with what it varies by.
    pub(super) fn get(&self) -> Duration {
        let deviation = self.rounds.front().map(|(.., deviation)| *deviation);
        self.mean() + deviation.unwrap_or_default()
    }
}

/// What rounds are like when nothing is probed for: the measure for those that probed.
#[derive(Debug, Clone, Default)]
pub(super) struct Calm {
    longest: Option<Duration>,
    /// By which rounds differ from it.
    deviation: Duration,
    /// In thousandths.
    loss: u64,
}

impl Calm {
    pub(super) fn add(&mut self, summary: &Summary) {
        let Summary { longest, loss, .. } = *summary;
        let mean = self.longest.unwrap_or(longest);
        self.deviation = (3 * self.deviation + mean.abs_diff(longest)) / 4;
        self.longest = Some((3 * mean + longest) / 4);
        self.loss = (7 * self.loss + loss) / 8;
    }

    /// More than chance makes it.
    pub(super) fn is_exceeded(&self, longest: Duration) -> bool {
        let calm = |mean: Duration| mean + (2 * self.deviation).clamp(mean / 16, mean / 4);
        self.longest.is_some_and(|mean| longest > calm(mean))
    }

    /// More than chance makes it.
    pub(super) fn is_costly(&self, loss: u64) -> bool {
        loss > self.loss + CHANCE_LOSS
    }
}
