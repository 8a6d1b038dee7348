//! What dialling may cost while no hub is heard.
//!
//! A link that is down may still be billed for what is sent into it, and a handshake repeats packets of 1,228
//! bytes. An account holds what several handshakes cost, for a quick first connection and for links that lose
//! much, and is full again whenever anything is heard. Once that is used up it earns
//! `uplink.outage_budget` a minute. Whatever left by the path is charged: handshakes and their repetitions,
//! the farewells of those that were given up, TCP's SYNs, and probes.
//!
//! | account | a race of handshakes |
//! | --- | --- |
//! | more than a minute's budget | goes on as it likes |
//! | enough for an attempt | may begin one that repeats nothing soon |
//! | less | asks with probes of 44 bytes |
//! | overdrawn | ends what it has begun, and asks |
//!
//! An answer to a probe shows that the link is back: the account is full, and a handshake follows at once.
//!
//! Plain code: times are since any fixed origin.

use std::time::Duration;

use shared::transport::PROBE_IP_BYTES;

/// Several handshakes that are not answered: QUIC's first packets.
const START: i64 = 12 * 1_228;
/// An attempt that is not answered: its first packet, and its farewell.
const ATTEMPT: i64 = 2 * 1_228;
/// Between probes at the least, and after a long time.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_LATE: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_secs(15 * 60);
const MINUTE_MS: u64 = 60_000;

/// What the account allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stance {
    /// Handshakes as many and as often as is good.
    Free,
    /// One more, if it doesn't repeat what it sends.
    Careful,
    /// No more.
    Waits,
    /// And those under way are too dear.
    Overdrawn,
}

/// The account of a path.
#[derive(Debug)]
pub(super) struct Thrift {
    /// Bytes a minute.
    budget: u64,
    left: i64,
    /// What had left and what had come when it was looked at last.
    sent: u64,
    heard: u64,
    filled: Duration,
    silent_since: Duration,
}

impl Thrift {
    /// `budget` is in bytes a minute.
    pub(super) fn new(budget: u64) -> Self {
        let mut thrift = Self {
            budget,
            left: 0,
            sent: 0,
            heard: 0,
            filled: Duration::ZERO,
            silent_since: Duration::ZERO,
        };
        thrift.fill();
        thrift
    }

    fn most_earned(&self) -> i64 {
        i64::try_from(self.budget).unwrap_or(i64::MAX)
    }

    fn most(&self) -> i64 {
        self.most_earned().saturating_add(START)
    }

    fn fill(&mut self) {
        self.left = self.most();
    }

    /// Charges what left by the path since the last look, and pays what was earned. `sent` are its bytes and
    /// `heard` its datagrams since any time.
    pub(super) fn observe(&mut self, sent: u64, heard: u64, now: Duration) -> Stance {
        let spent = i64::try_from(sent.saturating_sub(self.sent)).unwrap_or(i64::MAX);
        // a session over TCP is charged too, and its bytes are none of an attempt's
        let most_owed = -self.most();
        self.left = self.left.saturating_sub(spent).max(most_owed);
        self.sent = sent;
        if heard != self.heard {
            (self.heard, self.silent_since, self.filled) = (heard, now, now);
            self.fill();
        }
        let passed = now.saturating_sub(self.filled).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX).min(MINUTE_MS);
        let earned = i64::try_from(self.budget.saturating_mul(passed) / MINUTE_MS);
        let earned = earned.unwrap_or(i64::MAX);
        if earned > 0 {
            self.filled = now;
            let most = self.left.max(self.most_earned());
            self.left = self.left.saturating_add(earned).min(most);
        }
        self.stance()
    }

    fn stance(&self) -> Stance {
        if self.left > self.most_earned() {
            Stance::Free
        } else if self.left >= ATTEMPT.min(self.most_earned()) {
            Stance::Careful
        } else if self.left >= 0 {
            Stance::Waits
        } else {
            Stance::Overdrawn
        }
    }

    /// How long until the next probe: they have half of the budget at most.
    pub(super) fn probe_every(&self, now: Duration) -> Duration {
        let millis = MINUTE_MS.saturating_mul(2 * PROBE_IP_BYTES) / self.budget.max(1);
        let is_late = now.saturating_sub(self.silent_since) >= LATE;
        let least = if is_late { PROBE_LATE } else { PROBE_EVERY };
        Duration::from_millis(millis).max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 6 << 10;
    const PACKET: u64 = 1_228;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// Attempts into a link that is down, as QUIC makes them: two packets after 1, 3, 7 s, or much later when
    /// it is careful, and one when it is given up. Bytes sent by each minute.
    fn minutes(budget: u64, count: u64) -> Vec<u64> {
        let mut thrift = Thrift::new(budget);
        let mut attempts: Vec<(Duration, bool)> = Vec::new();
        let (mut sent, mut dial_at, mut probe_at) = (0, Duration::ZERO, Duration::ZERO);
        let mut told = Vec::new();
        for tick in 0..count * 120 {
            let now = Duration::from_millis(tick * 500);
            for (began, is_careful) in &attempts {
                let is_due = [1, 3, 7].into_iter().any(|at| now == *began + secs(at));
                if is_due && !is_careful {
                    sent += 2 * PACKET;
                }
            }
            let stance = thrift.observe(sent, 0, now);
            match stance {
                Stance::Overdrawn => sent += PACKET * attempts.drain(..).count() as u64,
                Stance::Waits => {}
                Stance::Free | Stance::Careful => {
                    if now >= dial_at {
                        if attempts.len() == 3 {
                            attempts.remove(1);
                            sent += PACKET;
                        }
                        attempts.push((now, stance == Stance::Careful));
                        dial_at = now + secs(2);
                        sent += PACKET;
                    }
                }
            }
            if stance != Stance::Free && now >= probe_at {
                probe_at = now + thrift.probe_every(now);
                sent += PROBE_IP_BYTES;
            }
            if tick % 120 == 119 {
                told.push(sent - told.iter().sum::<u64>());
            }
        }
        told
    }

    #[test]
    fn a_minute_costs_the_budget_once_the_first_attempts_are_made() {
        for budget in [1 << 10, BUDGET, 64 << 10] {
            let minutes = minutes(budget, 60);
            let first = 15_000 + 2 * budget + 3 * PACKET;
            assert!(minutes[0] <= first, "{budget}: {minutes:?}");
            let rest: u64 = minutes[1..].iter().sum();
            assert!(rest <= 60 * budget + 4 * PACKET, "{budget}: {minutes:?}");
            assert!(rest >= 59 * budget / 4, "{budget}: it goes on: {minutes:?}");
        }
    }

    #[test]
    fn a_first_connection_is_free_and_what_is_heard_makes_it_so_again() {
        let mut thrift = Thrift::new(BUDGET);
        assert_eq!(thrift.observe(0, 0, secs(0)), Stance::Free);
        assert_eq!(thrift.observe(9 * PACKET, 0, secs(5)), Stance::Free);
        assert_eq!(thrift.observe(13 * PACKET, 0, secs(6)), Stance::Careful);
        assert_eq!(thrift.observe(16 * PACKET, 0, secs(6)), Stance::Waits);
        assert_eq!(thrift.observe(20 * PACKET, 0, secs(6)), Stance::Overdrawn);
        assert_eq!(thrift.observe(20 * PACKET, 1, secs(7)), Stance::Free);
        assert_eq!(thrift.observe(20 * PACKET, 1, secs(3_600)), Stance::Free);
    }

    #[test]
    fn a_long_session_over_tcp_leaves_no_endless_debt() {
        let mut thrift = Thrift::new(BUDGET);
        assert_eq!(thrift.observe(1 << 40, 0, secs(0)), Stance::Overdrawn);
        let at = (1..600).find(|at| thrift.observe(1 << 40, 0, secs(*at)) == Stance::Careful);
        assert!(at.is_some_and(|at| at < 300), "{at:?}");
    }

    #[test]
    fn probes_have_half_of_the_budget_and_become_fewer() {
        let thrift = Thrift::new(BUDGET);
        assert_eq!(thrift.probe_every(secs(1)), PROBE_EVERY);
        assert_eq!(thrift.probe_every(LATE), PROBE_LATE);
        let poor = Thrift::new(1 << 10).probe_every(secs(1));
        assert!(poor > secs(5) && poor < secs(6), "{poor:?}");
    }
}
