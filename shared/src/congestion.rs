//! How much a connection may have in flight: measured, not guessed from loss.
//!
//! Loss on the links of this product says little: radio loses packets at any load, and a controller that
//! halves for each lost packet starves at one in a thousand. So the window follows what the path was seen
//! to deliver:
//!
//! ```text
//! window = delivery rate (best of the last rounds) x round trip without queue x gain of this round
//! ```
//!
//! A *round* ends when a packet that was sent after its beginning is acknowledged. The gains go in a
//! cycle: probe above, drain below, cruise a little above, so that a path with more to give is noticed,
//! the queue is empty once a cycle (that is when the round trip is measured) and the link is never idle.
//! Loss is an answer only when it is much: more than [`HEAVY_LOSS`] of a round, or when probing caused it.
//!
//! quinn paces at 1.25 x window / smoothed round trip, in trains of at least ten packets. How far the
//! bottleneck pulls a train apart tells its rate in the first round ([`train`]), so start-up neither takes
//! many rounds nor floods a short queue.
//!
//! A [`RateLimit`] is what the policy allows: with one, nothing above it is probed for. The scheduler
//! shapes by bytes; the window only bounds what is in flight.
//!
//! Integers only, no clock, a few hundred bytes a connection.

mod rounds;
mod train;

#[cfg(test)]
mod sim;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use rounds::{BaseRoundTrip, Rates, Round};
use train::Trains;

/// Window gain of each round of a cycle, percent: probe, drain, cruise.
const CYCLE: [u64; 8] = [125, 97, 105, 105, 105, 105, 105, 105];
/// Gain of the draining round when the round trip without queue was not seen for some time.
const DEEP_DRAIN: u64 = 75;
/// Loss of a round, in thousandths, from which on it is taken for congestion.
const HEAVY_LOSS: u64 = 80;
/// Fewer lost packets than this are chance, whatever their share.
const FEW_PACKETS: u64 = 6;
/// Rounds without growth of the rate after which the path is taken to be full.
const FLAT_ROUNDS: u32 = 2;
/// In flight before anything is known; trains tell more before it is used up.
const INITIAL_PACKETS: u64 = 32;
/// Never less: a loss must be noticed by the packets that follow.
const LEAST_PACKETS: u64 = 4;

/// What a policy allows, in bytes per second; it may change at any time.
#[derive(Debug, Clone)]
pub struct RateLimit(Arc<AtomicU64>);

impl Default for RateLimit {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl RateLimit {
    /// `u64::MAX` is no limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::Relaxed);
    }

    fn bytes_per_second(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes a controller for each path of a connection.
#[derive(Debug, Clone, Default)]
pub struct MeasuredConfig {
    limit: RateLimit,
}

impl MeasuredConfig {
    /// Controllers that respect this limit.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self { limit }
    }
}

impl ControllerFactory for MeasuredConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Measured::new(self.limit.clone(), now, mtu))
    }
}

#[derive(Debug, Clone)]
enum Phase {
    /// Growing until the rate does not.
    Startup { best: u64, flat_rounds: u32 },
    /// In the cycle, at this turn.
    Cycle { turn: usize },
}

/// The controller of one path.
#[derive(Debug, Clone)]
struct Measured {
    limit: RateLimit,
    mtu: u64,
    window: u64,
    /// Learnt from loss that congestion made.
    ceiling: u64,
    phase: Phase,
    round: Round,
    rates: Rates,
    base: BaseRoundTrip,
    trains: Trains,
    /// Loss of packets that were sent before this has been answered.
    answered: Instant,
}

impl Measured {
    fn new(limit: RateLimit, now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        Self {
            limit,
            mtu,
            window: INITIAL_PACKETS * mtu,
            ceiling: u64::MAX,
            phase: Phase::STARTUP,
            round: Round::new(now),
            rates: Rates::default(),
            base: BaseRoundTrip::default(),
            trains: Trains::default(),
            answered: now,
        }
    }

    fn product(&self, rate: u64) -> u64 {
        let rate = rate.min(self.limit.bytes_per_second());
        let micros = u64::try_from(self.base.get().as_micros()).unwrap_or(u64::MAX);
        rate.saturating_mul(micros) / 1_000_000
    }

    fn set_window(&mut self, bytes: u64) {
        self.window = bytes.min(self.ceiling).max(LEAST_PACKETS * self.mtu);
    }

    fn grow(&mut self, acked: u64) {
        let bound = self.trains.rate().map(|rate| self.product(rate));
        let wanted = match bound {
            // what the trains promise, but not at once all of it
            Some(bound) if self.window < bound / 2 => (bound * 3 / 4).min(self.window * 8),
            Some(bound) if self.window > bound * 5 / 4 => self.window + acked / 4,
            Some(_) | None => self.window + 2 * acked,
        };
        self.set_window(wanted);
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        let Some(summary) = round.end(now) else { return };
        self.base.add(now, summary.round_trip);
        let is_heavy = summary.loss > HEAVY_LOSS && summary.lost > FEW_PACKETS * self.mtu;
        let is_growing = summary.rate > self.rates.best() / 10 * 11;
        if !summary.is_app_limited || summary.rate > self.rates.best() {
            self.rates.add(summary.rate);
        }
        let product = self.product(self.rates.best());
        if is_heavy {
            let through = self.window / 1000 * (1000 - summary.loss);
            self.ceiling = through.max(product / 2);
            self.answered = now;
        } else if self.ceiling < u64::MAX && self.window > self.ceiling / 10 * 9 {
            let percent = if matches!(self.phase, Phase::Cycle { turn: 0 }) { 125 } else { 102 };
            self.ceiling = self.ceiling / 100 * percent;
        }
        self.next_phase(now, is_heavy, is_growing, summary.is_app_limited);
        if let Phase::Cycle { turn } = self.phase {
            let is_stale = turn == 1 && self.base.is_stale(now);
            let gain = if is_stale { DEEP_DRAIN } else { CYCLE[turn] };
            self.set_window(product / 100 * gain + 3 * self.mtu);
        }
    }

    fn next_phase(&mut self, now: Instant, is_heavy: bool, is_growing: bool, is_app_limited: bool) {
        self.phase = match self.phase {
            Phase::Startup { best, flat_rounds } => {
                let rate = self.rates.best();
                let (best, flat_rounds) = if rate > best / 4 * 5 {
                    (rate, 0)
                } else {
                    (best, flat_rounds + u32::from(!is_app_limited))
                };
                let is_full = self.trains.rate().is_some_and(|full| rate > full / 10 * 9);
                if flat_rounds >= FLAT_ROUNDS || is_full || is_heavy {
                    self.answered = now;
                    Phase::Cycle { turn: 1 }
                } else {
                    Phase::Startup { best, flat_rounds }
                }
            }
            // the rate rises: probe on
            Phase::Cycle { .. } if is_growing && !is_heavy => Phase::Cycle { turn: 0 },
            Phase::Cycle { turn } => Phase::Cycle { turn: (turn + 1) % CYCLE.len() },
        };
    }

    /// The link was away. Half of what it carried, and from there as at the beginning.
    fn restart(&mut self, now: Instant) {
        let half = self.product(self.rates.best()) / 2;
        self.ceiling = u64::MAX;
        self.set_window(half.max(self.initial_window()));
        self.phase = Phase::STARTUP;
        self.rates = Rates::default();
        self.trains = Trains::default();
        self.round = Round::new(now);
        self.answered = now;
    }
}

impl Phase {
    const STARTUP: Self = Self::Startup {
        best: 0,
        flat_rounds: 0,
    };
}

impl Controller for Measured {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _: &RttEstimator) {
        self.round.add_acked(now.saturating_duration_since(sent), bytes, app_limited);
        self.trains.add_acked(now, sent, bytes);
        self.base.bound(now.saturating_duration_since(sent));
        if matches!(self.phase, Phase::Startup { .. }) && !app_limited {
            self.grow(bytes);
        }
        if sent >= self.round.began() {
            self.end_round(now);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        if sent > self.answered {
            self.round.add_lost(lost);
        }
        if persistent {
            self.restart(now);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

const _: Duration = Duration::ZERO;
