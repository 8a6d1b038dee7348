//! Loss that a policer makes: what comes faster than its rate is dropped, and nothing waits.
//!
//! There is no queue to see, so it looks like radio that loses at any load; but what is sent beyond the rate brings
//! nothing and is paid for. The two are told apart by trying: sent at the rate that came through, radio goes on
//! losing the same part, a policer stops.
//!
//! ```text
//! looking ── much loss without a queue ──> trying ── the loss is gone ──> holding
//!    ^                                       │ it is not, and no lower rate is left:   │ for some rounds, or
//!    │                                       │ radio, made up for                      │ until there is loss
//!    └───────────────────────────────────────┴─────────────────────────────────────────┘
//! ```
//!
//! A policer lets what was not used for a while through at once (a token bucket, RFC 2697). So more than its rate
//! comes through for some rounds after each hold, and a rate that was measured then is too high: the next one tried
//! is what the try itself brought, the last what was held before.

use std::time::Duration;

use super::rounds::Summary;

/// Loss that is worth a try, in thousandths. Cruising sends 7 % more than comes through.
const LOSS: u64 = 60;
/// Of so many packets: fewer are chance.
const PACKETS: u64 = 8;
/// Cruising rounds that are looked at together, and on a path that holds few packets at most.
const LOOK: u32 = 6;
const MOST_LOOK: u32 = 24;
/// What a round trip varies by anyway, besides a sixteenth.
const GRAIN: Duration = Duration::from_millis(4);
/// Rounds after a hold in which any loss is reason enough for a try.
const PROBING: u32 = 24;
/// The loss has to fall to this part of what it was.
const PART: u64 = 3;
/// Rounds of a try that acknowledge what was sent before, and all of them at most.
const STALE: u32 = 2;
const TRY: u32 = 16;
/// Rates tried one after the other.
const TRIES: u32 = 4;
/// Rounds that a rate is held, at first and at most: twice as long each time that it is found again,
const HOLD: u32 = 48;
const MOST_HOLD: u32 = 192;
/// or for so long, if that is shorter,
const HOLD_TIME: Duration = Duration::from_secs(30);
/// within this part of it.
const SAME: u64 = 8;
/// Looks without a try after one in vain, at first and at most: twice as many each time.
const PAUSE: u32 = 1;
const MOST_PAUSE: u32 = 64;
/// Loss that is made up for at most, in thousandths.
const MOST_RADIO: u64 = 200;

/// Rounds, taken together.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    rounds: u32,
    acked: u64,
    lost: u64,
    time: Duration,
    round_trips: Duration,
}

impl Sum {
    fn add(&mut self, summary: &Summary) {
        self.rounds += 1;
        self.acked = self.acked.saturating_add(summary.acked);
        self.lost = self.lost.saturating_add(summary.lost);
        self.time += summary.time;
        self.round_trips += summary.round_trip;
    }

    fn sent(&self) -> u64 {
        self.acked.saturating_add(self.lost).max(1)
    }

    /// In thousandths.
    fn loss(&self) -> u64 {
        self.lost.saturating_mul(1_000) / self.sent()
    }

    /// Longer than without a queue.
    fn is_slow(&self, base: Duration) -> bool {
        let mean = self.round_trips / self.rounds.max(1);
        mean > base + base / 16 + GRAIN
    }

    /// Bytes per second.
    fn rate(&self) -> u64 {
        let rate = u128::from(self.acked) * 1_000_000 / self.time.as_micros().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

/// A rate that may be the policer's.
#[derive(Debug, Clone, Copy)]
struct Try {
    /// Bytes per second.
    rate: u64,
    /// In thousandths, before.
    loss: u64,
    /// Shortly after a hold.
    is_probe: bool,
    rounds: u32,
    /// Those before it.
    tries: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Looking,
    Trying(Try),
    /// For so many rounds, and so long, at most.
    Holding {
        rate: u64,
        rounds: u32,
        left: Duration,
    },
}

/// Looks for a policer on the path.
#[derive(Debug, Clone)]
pub(super) struct Policer {
    state: State,
    sum: Sum,
    /// Looks until a try is worth it again, and after the next one in vain.
    pause: u32,
    next_pause: u32,
    /// The rate held last, and for how many rounds.
    held: u64,
    hold: u32,
    /// Rounds in which the policer is still expected.
    probing: u32,
    radio: u64,
}

impl Default for Policer {
    fn default() -> Self {
        Self {
            state: State::Looking,
            sum: Sum::default(),
            pause: 0,
            next_pause: PAUSE,
            held: 0,
            hold: HOLD,
            probing: 0,
            radio: 0,
        }
    }
}

impl Policer {
    /// Loss that a lower rate didn't mend, in thousandths; less than [`LOSS`] is not looked into.
    pub(super) const fn radio(&self) -> u64 {
        self.radio
    }

    /// A round is over: whether it was one that cruised, and whether what was allowed was used. `base` is a round trip without a queue. Bytes per second to be sent in the next one, where there
    /// is, or may be, a policer.
    pub(super) fn add(
        &mut self,
        summary: &Summary,
        is_cruising: bool,
        is_full: bool,
        base: Duration,
        mtu: u64,
    ) -> Option<u64> {
        self.state = match self.state {
            State::Looking => self.look(summary, is_cruising, is_full, base, mtu),
            State::Trying(attempt) => self.judge(summary, attempt, mtu),
            State::Holding { rate, rounds, left } => {
                let left = left.saturating_sub(summary.time);
                self.go_on(summary, rate, rounds, left, base)
            }
        };
        match self.state {
            State::Looking => None,
            State::Trying(Try { rate, .. }) | State::Holding { rate, .. } => Some(rate),
        }
    }

    fn look(
        &mut self,
        summary: &Summary,
        is_cruising: bool,
        is_full: bool,
        base: Duration,
        mtu: u64,
    ) -> State {
        let is_probe = self.probing > 0;
        self.probing = self.probing.saturating_sub(1);
        if !is_probe && !is_cruising || !is_full {
            return State::Looking;
        }
        self.sum.add(summary);
        let is_much = self.sum.loss() >= LOSS;
        let is_enough = self.sum.lost >= PACKETS * mtu;
        let rounds = match (is_much, is_enough) {
            // a thin path needs more of them
            (true, false) => MOST_LOOK,
            (true, true) if is_probe => 1,
            _ => LOOK,
        };
        if self.sum.rounds < rounds {
            return State::Looking;
        }
        let sum = std::mem::take(&mut self.sum);
        if !is_much || !is_enough {
            self.radio = 0;
            return State::Looking;
        }
        if sum.is_slow(base) {
            return State::Looking;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return State::Looking;
        }
        State::Trying(Try {
            rate: sum.rate(),
            loss: sum.loss(),
            is_probe,
            rounds: 0,
            tries: 0,
        })
    }

    fn judge(&mut self, summary: &Summary, attempt: Try, mtu: u64) -> State {
        let Try {
            rate,
            loss,
            is_probe,
            tries,
            ..
        } = attempt;
        if attempt.rounds >= STALE {
            self.sum.add(summary);
        }
        let rounds = attempt.rounds + 1;
        let expected = self.sum.sent().saturating_mul(loss) / 1_000;
        if rounds <= STALE || expected < PACKETS * mtu && rounds < TRY {
            return State::Trying(Try { rounds, ..attempt });
        }
        let sum = std::mem::take(&mut self.sum);
        if sum.loss().saturating_mul(PART) <= loss {
            return self.found(rate);
        }
        let lower = sum.rate().min(rate);
        let has_fallen = sum.loss() <= loss / 3 * 2;
        let next = match tries {
            ..TRIES if has_fallen || is_probe && lower > self.held => Some((lower, tries + 1)),
            ..=TRIES if is_probe => Some((self.held, TRIES + 1)),
            _ => None,
        };
        if let Some((rate, tries)) = next {
            return State::Trying(Try {
                rate,
                tries,
                rounds: 0,
                ..attempt
            });
        }
        self.radio = sum.loss().min(loss).min(MOST_RADIO);
        self.pause = self.next_pause;
        self.next_pause = (self.next_pause * 2).min(MOST_PAUSE);
        State::Looking
    }

    fn found(&mut self, rate: u64) -> State {
        let is_same = rate.abs_diff(self.held) <= self.held / SAME;
        self.hold = if is_same {
            (self.hold * 2).min(MOST_HOLD)
        } else {
            HOLD
        };
        self.held = rate;
        self.radio = 0;
        self.next_pause = PAUSE;
        State::Holding {
            rate,
            rounds: self.hold,
            left: HOLD_TIME,
        }
    }

    fn go_on(
        &mut self,
        summary: &Summary,
        rate: u64,
        rounds: u32,
        left: Duration,
        base: Duration,
    ) -> State {
        self.sum.add(summary);
        let mut is_over = rounds == 0 || left.is_zero();
        if self.sum.rounds >= LOOK {
            let sum = std::mem::take(&mut self.sum);
            is_over |= sum.loss() >= LOSS || sum.is_slow(base);
        }
        if !is_over {
            return State::Holding {
                rate,
                rounds: rounds - 1,
                left,
            };
        }
        self.sum = Sum::default();
        self.probing = PROBING;
        State::Looking
    }
}
