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
//! Loss is congestion only when it is much ([`HEAVY_LOSS`] of enough packets with a queue, [`RUINOUS_LOSS`]
//! without). A path that became another one is started on anew ([`change`]).
//!
//! Where the delay varies, rate and round trip mislead: acknowledgements come in clumps, and the least round
//! trip is one that was lucky. So a probe is judged by itself: when the round that acknowledges it had neither
//! a longer longest round trip nor more loss than [`Calm`] rounds, what it had in flight stays in flight.
//!
//! quinn paces at 1.25 x window / smoothed round trip, in trains of at least ten packets. How far the
//! bottleneck pulls a train apart tells its rate in the first round ([`train`]), so start-up neither takes
//! many rounds nor floods a short queue.
//!
//! A [`RateLimit`] is what the policy allows: with one, nothing above it is probed for. The scheduler
//! shapes by bytes; the window only bounds what is in flight.
//!
//! Integers only, no clock, a few hundred bytes a connection.

mod change;
mod limit;
mod losses;
mod rounds;
mod train;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use change::{Change, Drain};
pub use limit::RateLimit;
use losses::{Losses, Verdict};
use rounds::{BaseRoundTrip, Calm, Rates, Round, Summary};
use train::Trains;

/// Window gain of each round of a cycle, percent: probe, drain, refill, cruise.
const CYCLE: [u64; 10] = [118, 95, 107, 107, 107, 107, 107, 107, 107, 107];
const PROBE: usize = 0;
const DRAIN: usize = 1;
/// From here on rounds acknowledge what cruising rounds sent.
const CRUISE: usize = 3;
/// Gain of the draining round when the round trip without queue was not seen for some time.
const DEEP_DRAIN: u64 = 75;
/// Loss of a round, in thousandths, from which on it is taken for congestion.
const HEAVY_LOSS: u64 = 80;
/// And without a queue.
const RUINOUS_LOSS: u64 = 250;
/// Fewer lost packets than this are chance, whatever their share.
const FEW_PACKETS: u64 = 6;
/// Rounds without growth of the rate after which the path is taken to be full: with a queue or loss, without.
const FLAT_ROUNDS: u32 = 2;
const FLAT_AND_QUIET_ROUNDS: u32 = 5;
/// In flight before anything is known; trains tell more before it is used up.
const INITIAL_PACKETS: u64 = 16;
/// Beyond what fills the path: acknowledgements come for two packets at once, or later.
const MARGIN_PACKETS: u64 = 2;
/// Never less: a loss must be noticed by the packets that follow.
const LEAST_PACKETS: u64 = 4;
/// Unless the path does not hold as many.
const FEWEST_PACKETS: u64 = 2;

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

/// What a round tells.
#[derive(Debug, Clone, Copy)]
struct Signs {
    /// Slower than without a queue, and than when nothing is probed for.
    is_queueing: bool,
    /// What was lost of enough packets.
    verdict: Option<Verdict>,
    /// Loss that must be answered.
    is_heavy: bool,
    /// Clearly more than ever came through.
    is_growing: bool,
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
    /// The window of the last probe.
    probed: u64,
    /// A probe's that made no queue and cost nothing.
    carried: u64,
    calm: Calm,
    change: Change,
    losses: Losses,
    /// What was in flight when the path became another one is still to come.
    drain: Option<Drain>,
    /// The last round was slower than it would be without a queue.
    is_slow: bool,
    /// The last round's loss was answered: this round's packets were sent before.
    has_answered: bool,
}

impl Measured {
    fn new(limit: RateLimit, now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        Self {
            window: first_window(&limit, mtu),
            limit,
            mtu,
            ceiling: u64::MAX,
            phase: Phase::STARTUP,
            round: Round::new(now),
            rates: Rates::default(),
            base: BaseRoundTrip::default(),
            trains: Trains::default(),
            probed: 0,
            carried: 0,
            calm: Calm::default(),
            change: Change::default(),
            losses: Losses::default(),
            drain: None,
            is_slow: false,
            has_answered: false,
        }
    }

    /// What fills the path at this rate.
    fn product(&self, rate: u64) -> u64 {
        let micros = u64::try_from(self.base.get().as_micros()).unwrap_or(u64::MAX);
        rate.saturating_mul(micros) / 1_000_000
    }

    /// Within what congestion and the policy allow. The policy's bound leaves room: the scheduler shapes.
    fn set_window(&mut self, bytes: u64) {
        let allowed = self.product(self.limit.bytes_per_second());
        let allowed = (allowed / 4 * 5).saturating_add(MARGIN_PACKETS * self.mtu);
        let bytes = bytes.min(self.ceiling).min(allowed);
        let least = if self.ceiling < LEAST_PACKETS * self.mtu {
            FEWEST_PACKETS
        } else {
            LEAST_PACKETS
        };
        self.window = bytes.max(least * self.mtu);
    }

    /// In start-up, with each acknowledgement: threefold a round, in the way that trains show less.
    fn grow(&mut self, acked: u64, round_trip: Duration) {
        let full = self.trains.rate().map(|rate| self.product(rate));
        let is_slow = self.is_slow || round_trip > self.base.mean() / 4 * 5;
        // what trains hinted at came through: that is what the path has
        let through = self.product(self.rates.best());
        let is_sure = full.is_some_and(|full| through > full / 4 * 3);
        // a window that trains led to: what came through does not speak for it yet
        let is_ahead = self.window / 2 > through;
        let wanted = match full {
            // not at once all of it
            Some(full) if self.window < full / 2 => (full / 4 * 3).min(self.window * 8),
            Some(full) if self.window > full / 4 * 5 && (is_slow || is_sure || is_ahead) => {
                self.window + acked / 4
            }
            Some(full) if self.window > full / 4 * 5 => self.window + acked,
            Some(_) | None => self.window + 2 * acked,
        };
        self.set_window(wanted);
    }

    fn end_round(&mut self, now: Instant) {
        let next = self.round.next(now);
        let round = std::mem::replace(&mut self.round, next);
        let Some(summary) = round.end(now) else {
            return;
        };
        let base = self.base.mean();
        self.base.add(now, &summary);
        self.is_slow = summary.round_trip > self.base.mean() / 16 * 17;
        let signs = self.signs(&summary);
        let best = self.rates.best();
        if self.change.is_shown(&summary, best, base, signs.is_heavy) {
            return self.look_anew(now, &summary);
        }
        if !summary.is_app_limited || summary.rate > self.rates.best() {
            self.rates.add(summary.rate);
        }
        let has_room = self.judge_probe(&summary, &signs);
        self.answer_loss(&summary, &signs);
        self.next_phase(&summary, &signs, has_room);
        if let Phase::Cycle { turn } = self.phase {
            let full = self.product(self.rates.best()).max(self.carried);
            let is_deep = turn == DRAIN && self.base.is_stale(now);
            let gain = if is_deep { DEEP_DRAIN } else { CYCLE[turn] };
            let window = full / 100 * gain;
            let margin = if turn == DRAIN { 0 } else { MARGIN_PACKETS };
            self.set_window(window.saturating_add(margin * self.mtu));
            if turn == PROBE {
                // it may have been held back
                self.probed = window.min(self.window);
            }
        }
    }

    fn signs(&mut self, summary: &Summary) -> Signs {
        let verdict = self.losses.add(summary, self.mtu);
        let is_much = |loss| loss > RUINOUS_LOSS || loss > HEAVY_LOSS && self.is_slow;
        Signs {
            verdict,
            is_queueing: self.is_slow && self.calm.is_exceeded(summary.longest),
            is_heavy: verdict.is_some_and(|Verdict { lost, loss }| {
                is_much(loss) && lost > FEW_PACKETS * self.mtu
            }),
            is_growing: summary.rate > self.rates.best() / 12 * 13,
        }
    }

    /// The draining round acknowledges what the probing one sent: whether there is room for more.
    fn judge_probe(&mut self, summary: &Summary, signs: &Signs) -> bool {
        // whatever was carried, the path has less
        if summary.round_trip > 2 * self.base.mean() {
            self.carried = 0;
        }
        match self.phase {
            Phase::Startup { .. } | Phase::Cycle { turn: CRUISE.. } => {
                self.calm.add(summary);
                false
            }
            Phase::Cycle { turn: DRAIN } => {
                if signs.is_heavy || self.calm.is_costly(summary.loss) {
                    self.carried = 0;
                    return false;
                }
                if signs.is_queueing {
                    self.carried = self.carried / 8 * 7;
                    return false;
                }
                let has_room = !summary.is_app_limited && self.probed > 0;
                if has_room {
                    self.carried = self.carried.max(self.probed);
                }
                has_room
            }
            Phase::Cycle { .. } => false,
        }
    }

    fn answer_loss(&mut self, summary: &Summary, signs: &Signs) {
        // after an answer comes a round of packets that were sent before it
        let is_answered = std::mem::take(&mut self.has_answered);
        if !signs.is_heavy {
            let is_clean = summary.lost == 0 && !self.is_slow || signs.verdict.is_some();
            if is_clean && self.window >= self.ceiling / 10 * 9 {
                self.ceiling = (self.ceiling / 8).saturating_mul(9);
            }
            return;
        }
        let loss = signs.verdict.map_or(0, |verdict| verdict.loss);
        // what a probe lost is over with the probe
        let is_probe = matches!(
            self.phase,
            Phase::Cycle {
                turn: PROBE | DRAIN
            }
        );
        if is_answered || is_probe && loss < RUINOUS_LOSS {
            return;
        }
        // not more than what got through
        let through = self.window / 1000 * (1000 - loss);
        let full = self.product(self.rates.best()).max(self.carried);
        self.ceiling = through.max(full / 2).max(FEWEST_PACKETS * self.mtu);
        self.has_answered = true;
    }

    fn next_phase(&mut self, summary: &Summary, signs: &Signs, has_room: bool) {
        self.phase = match self.phase {
            Phase::Startup { best, flat_rounds } => {
                let rate = self.rates.best();
                let (best, flat_rounds) = if rate > best / 4 * 5 {
                    (rate, 0)
                } else {
                    (best, flat_rounds + u32::from(!summary.is_app_limited))
                };
                let full = self.trains.rate();
                let is_full = full.is_some_and(|full| rate > full / 10 * 9) && signs.is_queueing;
                let has_overflowed = signs.is_queueing || self.calm.is_costly(summary.loss);
                let is_flat = flat_rounds >= FLAT_ROUNDS && has_overflowed
                    || flat_rounds >= FLAT_AND_QUIET_ROUNDS;
                if is_flat || is_full || signs.is_heavy {
                    // what is lost next was sent before
                    self.has_answered = true;
                    Phase::Cycle { turn: DRAIN }
                } else {
                    Phase::Startup { best, flat_rounds }
                }
            }
            // there is more to have: probe on
            Phase::Cycle { .. } if (signs.is_growing || has_room) && !signs.is_heavy => {
                Phase::Cycle { turn: PROBE }
            }
            Phase::Cycle { turn } => Phase::Cycle {
                turn: (turn + 1) % CYCLE.len(),
            },
        };
    }

    /// The path is another one: as at the beginning, as soon as what is in flight is through.
    fn look_anew(&mut self, now: Instant, summary: &Summary) {
        // if only the rate changed, half of the path
        let half = self.product(summary.rate) / 2;
        self.restart(now);
        self.set_window(half);
        self.base = BaseRoundTrip::default();
        self.drain = Some(Drain::new(now));
    }

    /// The link was away. Half of what it carried, and from there as at the beginning.
    fn restart(&mut self, now: Instant) {
        let half = self.product(self.rates.best()) / 2;
        self.has_answered = false;
        self.ceiling = u64::MAX;
        self.set_window(half.max(self.initial_window()));
        self.phase = Phase::STARTUP;
        self.carried = 0;
        self.calm = Calm::default();
        self.rates = Rates::default();
        self.losses = Losses::default();
        self.trains = Trains::default();
        self.round = Round::new(now);
    }
}

/// With a limit, at most what it allows in half a second.
fn first_window(limit: &RateLimit, mtu: u64) -> u64 {
    let allowed = (limit.bytes_per_second() / 2).max(LEAST_PACKETS * mtu);
    allowed.min(INITIAL_PACKETS * mtu)
}

impl Phase {
    const STARTUP: Self = Self::Startup {
        best: 0,
        flat_rounds: 0,
    };
}

impl Controller for Measured {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        _: &RttEstimator,
    ) {
        if let Some(drain) = &mut self.drain {
            if drain.add_acked(now, sent, bytes) {
                return;
            }
            if let Some(rate) = drain.rate(self.mtu) {
                self.trains.add(rate);
            }
            self.drain = None;
            self.round = Round::new(now);
        }
        self.round.add_acked(now, sent, bytes, app_limited);
        self.trains.add_acked(now, sent, bytes);
        self.base.bound(now.saturating_duration_since(sent));
        if matches!(self.phase, Phase::Startup { .. }) && !app_limited {
            self.grow(bytes, now.saturating_duration_since(sent));
        }
        if sent >= self.round.began() {
            self.end_round(now);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        let is_old = |drain: &Drain| drain.is_of(sent);
        if self.drain.as_ref().is_some_and(is_old) {
            return;
        }
        self.round.add_lost(lost);
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
        first_window(&self.limit, self.mtu)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
