//! Watches whether the hub is still heard, and decides what to do when it is not.
//!
//! ```text
//!  heard ──► asked, no answer for max(1.5 s, 4 RTT) ──► silent: probe, by a byte budget
//!    ▲                                                     │           │
//!    │ anything is heard                   answer: the link is there   no answer for 3 s
//!    ├──────────────────────────────── nudge the connection            try TCP, ever more seldom
//!    │                                     │ not heard all the same
//!    └──────────────────────────────── dial beside it; the first that is up wins
//! ```
//! A session that waits for acknowledgements has the hub say a word when that is quiet for as long: what the
//! hub said last may be lost, and its own repetitions sleep too.
//!
//! A link that is down may still be billed for what is sent into it, and QUIC's own repetitions become so
//! seldom that they find a link that is back after as long again. Probes cost 44 bytes each
//! (`shared::transport`, `probe.rs`), so that they can be sent twice a second; nothing dearer is sent before
//! one was answered. The old connection stays: it goes on with what it has in flight, and most outages cost
//! no handshake at all. A hub that answers as another process is dialled at once, it knows nothing of the
//! connection. Where other hubs are configured, they are asked too: one that answers for a while when the
//! session's own does not is dialled.
//!
//! Plain code: times are since any fixed origin.

use std::time::Duration;

/// A hub that was asked may take so long at least.
const LEAST_SILENCE: Duration = Duration::from_millis(1_500);
/// Or so many round trips.
const SILENT_ROUNDS: u32 = 4;
/// Probes come this often at first, then, in long outages, more seldom.
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_LATER: Duration = Duration::from_secs(1);
const PROBE_LATE: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(120);
const LATE: Duration = Duration::from_secs(15 * 60);
/// What follows a nudge may take so long, or [`NUDGE_ROUNDS`] round trips.
const LEAST_PATIENCE: Duration = Duration::from_millis(300);
const NUDGE_ROUNDS: u32 = 2;
/// Unanswered nudges after which a fresh connection is tried beside the old one.
const NUDGES: u32 = 2;
/// Between fresh attempts.
const DIAL_EVERY: Duration = Duration::from_secs(3);
/// After such a silence other hubs are asked too.
const OTHERS_AFTER: Duration = Duration::from_secs(4);
/// Another hub that answered is dialled when the session's own did not for so much longer.
const OTHER_AHEAD: Duration = Duration::from_secs(2);
/// UDP may be blocked: no probe was answered for so long.
const TCP_AFTER: Duration = Duration::from_secs(3);
/// Between attempts over TCP, doubled each time.
const TCP_EVERY: Duration = Duration::from_secs(8);
const TCP_SELDOM: Duration = Duration::from_secs(60);
/// What a fresh attempt sends into a link that is down: QUIC's first packet, and it may be repeated.
const ATTEMPT_BYTES: u64 = 2 * 1_228;
/// What a TCP attempt sends into a link that is down: three SYNs.
const SYN_BYTES: u64 = 3 * 60;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Have the session ask for a word: it waits for acknowledgements, and the hub is quiet. It may be at work,
    /// or what it said was lost.
    Speak,
    /// Ask the hub's port whether it is there.
    Probe,
    /// The same at another hub: the how manieth of the others.
    ProbeOther(usize),
    /// Make the connection say something.
    Nudge,
    /// Try a fresh QUIC connection beside it.
    Dial,
    /// Try one to this other hub.
    DialOther(usize),
    /// Try one over TCP.
    DialTcp,
}

/// The watch over one connection.
#[derive(Debug)]
pub(super) struct Vigil {
    probe_bytes: u64,
    is_tcp_allowed: bool,
    /// How many other hubs there are.
    others: usize,
    /// Bytes a minute that may go into a link that is down, and how many are left of them.
    budget: u64,
    left: u64,
    filled: Duration,
    asked: u64,
    heard: u64,
    rtt: Duration,
    /// Since when the hub owes an answer.
    owed: Option<Duration>,
    /// When it was heard last, or asked to speak.
    quiet_since: Duration,
    is_speak_due: bool,
    /// The hub's process, as it said when the connection was young.
    instance: Option<u32>,
    silence: Option<Silence>,
    first_probe: Option<Duration>,
}

#[derive(Debug)]
struct Silence {
    since: Duration,
    probe_at: Duration,
    /// The last answer to a probe.
    echoed: Option<Duration>,
    /// The last nudge, and how many there were.
    nudged: Option<Duration>,
    nudges: u32,
    is_nudge_due: bool,
    is_other_process: bool,
    /// Probes sent, to take turns among the hubs.
    probes: usize,
    /// Another hub that answered, and when it did first.
    other: Option<(usize, Duration)>,
    dial_at: Duration,
    tcp_at: Duration,
    tcp_every: Duration,
}

impl Vigil {
    /// `budget` is in bytes a minute; `probe_bytes` what a probe costs.
    pub(super) fn new(budget: u64, probe_bytes: u64, is_tcp_allowed: bool, now: Duration) -> Self {
        Self {
            probe_bytes,
            is_tcp_allowed,
            others: 0,
            budget,
            left: budget,
            filled: now,
            asked: 0,
            heard: 0,
            rtt: Duration::ZERO,
            owed: None,
            quiet_since: now,
            is_speak_due: false,
            instance: None,
            silence: None,
            first_probe: Some(now),
        }
    }

    /// So many other hubs can be asked.
    pub(super) const fn set_others(&mut self, others: usize) {
        self.others = others;
    }

    /// True while the hub is not heard.
    pub(super) const fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// True while an answer is outstanding.
    pub(super) const fn is_owed(&self) -> bool {
        self.owed.is_some()
    }

    /// What the connection counted: packets that must be answered, packets that came. A session `is_waiting`
    /// while it has records on their way.
    pub(super) fn observe(
        &mut self,
        (asked, heard): (u64, u64),
        rtt: Duration,
        is_waiting: bool,
        now: Duration,
    ) {
        if heard != self.heard {
            (self.heard, self.owed, self.silence) = (heard, None, None);
            self.quiet_since = now;
        } else if asked != self.asked {
            self.owed.get_or_insert(now);
        }
        (self.asked, self.rtt) = (asked, rtt);
        let limit = LEAST_SILENCE.max(rtt * SILENT_ROUNDS);
        if is_waiting && self.owed.is_none() && now >= self.quiet_since + limit {
            (self.quiet_since, self.is_speak_due) = (now, true);
        }
        if self.silence.is_none() && self.owed.is_some_and(|owed| now >= owed + limit) {
            self.silence = Some(Silence {
                since: now,
                probe_at: now,
                echoed: None,
                nudged: None,
                nudges: 0,
                is_nudge_due: false,
                is_other_process: false,
                probes: 0,
                other: None,
                dial_at: now,
                tcp_at: now + TCP_AFTER,
                tcp_every: TCP_EVERY,
            });
        }
    }

    /// A probe was answered.
    pub(super) fn handle_echo(&mut self, instance: u32, now: Duration) {
        let known = *self.instance.get_or_insert(instance);
        let patience = LEAST_PATIENCE.max(self.rtt * NUDGE_ROUNDS);
        if let Some(silence) = &mut self.silence {
            silence.echoed = Some(now);
            silence.is_other_process = known != instance;
            let is_late = |nudged: Duration| now >= nudged + patience;
            silence.is_nudge_due = silence.nudged.is_none_or(is_late);
        }
    }

    /// Another hub answered.
    pub(super) fn handle_other(&mut self, other: usize, now: Duration) {
        if let Some(silence) = &mut self.silence {
            silence.other.get_or_insert((other, now));
        }
    }

    /// The next thing to do.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Act> {
        if self.first_probe.take().is_some() {
            return Some(Act::Probe);
        }
        if std::mem::take(&mut self.is_speak_due) {
            return Some(Act::Speak);
        }
        self.refill(now);
        let answers_probes = self.instance.is_some();
        let silence = self.silence.as_mut()?;
        let patience = LEAST_PATIENCE.max(self.rtt * NUDGE_ROUNDS);
        if silence.is_nudge_due && !silence.is_other_process {
            silence.is_nudge_due = false;
            silence.nudged = Some(now);
            silence.nudges += 1;
            return Some(Act::Nudge);
        }
        let is_there = silence
            .echoed
            .is_some_and(|echoed| now < echoed + DIAL_EVERY);
        let in_vain = silence.nudges >= NUDGES
            && silence
                .nudged
                .is_some_and(|nudged| now >= nudged + patience);
        if now >= silence.dial_at {
            // a link that answers is not down: no budget
            let may_dial = (is_there && (in_vain || silence.is_other_process))
                || (!answers_probes && take(&mut self.left, ATTEMPT_BYTES));
            if may_dial {
                silence.dial_at = now + DIAL_EVERY;
                return Some(Act::Dial);
            }
        }
        if let Some((other, answered)) = silence.other
            && now >= answered + OTHER_AHEAD
        {
            silence.other = None;
            if silence.echoed.is_none_or(|echoed| echoed < answered) {
                return Some(Act::DialOther(other));
            }
        }
        let is_tcp_due = self.is_tcp_allowed && !is_there && now >= silence.tcp_at;
        if is_tcp_due && take(&mut self.left, SYN_BYTES) {
            silence.tcp_at = now + silence.tcp_every;
            silence.tcp_every = (silence.tcp_every * 2).min(TCP_SELDOM);
            return Some(Act::DialTcp);
        }
        if now >= silence.probe_at && take(&mut self.left, self.probe_bytes) {
            let silent_for = now.saturating_sub(silence.since);
            silence.probe_at = now + probe_interval(silent_for);
            silence.probes = silence.probes.wrapping_add(1);
            let turn = silence.probes % (self.others + 1);
            return Some(match turn.checked_sub(1) {
                Some(other) if silent_for >= OTHERS_AFTER => Act::ProbeOther(other),
                Some(_) | None => Act::Probe,
            });
        }
        None
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled);
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let gained = self.budget.saturating_mul(millis) / 60_000;
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(self.budget);
            self.filled = now;
        }
    }
}

fn take(left: &mut u64, bytes: u64) -> bool {
    match left.checked_sub(bytes) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

fn probe_interval(silent_for: Duration) -> Duration {
    if silent_for < LATER {
        PROBE_EVERY
    } else if silent_for < LATE {
        PROBE_LATER
    } else {
        PROBE_LATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 6_000;
    const PROBE: u64 = 44;
    const RTT: Duration = Duration::from_millis(100);

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A connection that was heard at 0 and learnt the hub's process.
    fn young() -> Vigil {
        let mut vigil = Vigil::new(BUDGET, PROBE, true, ms(0));
        assert_eq!(vigil.poll(ms(0)), Some(Act::Probe));
        vigil.handle_echo(1, ms(100));
        vigil.observe((5, 5), RTT, false, ms(100));
        vigil
    }

    fn acts(vigil: &mut Vigil, from: u64, to: u64) -> Vec<(u64, Act)> {
        let mut acts = Vec::new();
        for now in (from..to).step_by(50) {
            vigil.observe((6, 5), RTT, false, ms(now));
            while let Some(act) = vigil.poll(ms(now)) {
                acts.push((now, act));
            }
        }
        acts
    }

    #[test]
    fn a_quiet_connection_is_left_alone() {
        let mut vigil = young();
        for now in (100..100_000).step_by(100) {
            vigil.observe((5, 5), RTT, false, ms(now));
            assert_eq!(vigil.poll(ms(now)), None);
        }
    }

    #[test]
    fn a_session_that_waits_asks_a_quiet_hub_for_a_word() {
        let mut vigil = young();
        let mut spoken = Vec::new();
        for now in (100..5_000).step_by(50) {
            vigil.observe((5, 5), RTT, now >= 1_000, ms(now));
            while let Some(act) = vigil.poll(ms(now)) {
                spoken.push((now, act));
            }
        }
        let expected = [1_600, 3_100, 4_600].map(|at| (at, Act::Speak));
        assert_eq!(spoken, expected);
    }

    #[test]
    fn an_answer_that_is_owed_too_long_is_asked_for_twice_a_second() {
        let mut vigil = young();
        let seen = acts(&mut vigil, 1_000, 5_000);
        let probes: Vec<u64> = seen
            .iter()
            .filter(|(_, act)| *act == Act::Probe)
            .map(|(at, _)| *at)
            .collect();
        assert_eq!(probes, [2_500, 3_000, 3_500, 4_000, 4_500]);
        assert!(!seen.iter().any(|(_, act)| *act == Act::Dial));
    }

    #[test]
    fn a_link_that_is_back_gets_a_nudge_and_then_a_fresh_connection() {
        let mut vigil = young();
        acts(&mut vigil, 1_000, 60_000);
        vigil.handle_echo(1, ms(60_000));
        assert_eq!(vigil.poll(ms(60_000)), Some(Act::Nudge));
        let seen = acts(&mut vigil, 60_050, 60_500);
        assert!(!seen.iter().any(|(_, act)| *act == Act::Nudge));
        vigil.handle_echo(1, ms(60_500));
        let seen = acts(&mut vigil, 60_500, 61_000);
        assert_eq!(seen.first(), Some(&(60_500, Act::Nudge)));
        assert!(seen.contains(&(60_800, Act::Dial)));
        // the nudge did it after all
        vigil.observe((9, 6), RTT, false, ms(61_000));
        assert!(!vigil.is_silent());
    }

    #[test]
    fn another_process_is_dialled_at_once() {
        let mut vigil = young();
        acts(&mut vigil, 1_000, 20_000);
        vigil.handle_echo(2, ms(20_000));
        assert_eq!(vigil.poll(ms(20_000)), Some(Act::Dial));
    }

    #[test]
    fn where_udp_is_blocked_tcp_is_tried_ever_more_seldom() {
        let mut vigil = young();
        let tries: Vec<u64> = acts(&mut vigil, 1_000, 120_000)
            .into_iter()
            .filter(|(_, act)| *act == Act::DialTcp)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(tries, [5_500, 13_500, 29_500, 61_500]);
    }

    #[test]
    fn another_hub_is_dialled_when_only_it_answers() {
        for own_answers in [true, false] {
            let mut vigil = young();
            vigil.set_others(1);
            let seen = acts(&mut vigil, 1_000, 10_000);
            assert!(seen.iter().any(|(_, act)| *act == Act::ProbeOther(0)));
            vigil.handle_other(0, ms(10_000));
            if own_answers {
                vigil.handle_echo(1, ms(10_500));
            }
            let seen = acts(&mut vigil, 10_550, 13_000);
            let dialled = seen.iter().any(|(_, act)| *act == Act::DialOther(0));
            assert_eq!(dialled, !own_answers);
        }
    }

    #[test]
    fn what_goes_into_a_dead_link_is_within_the_budget() {
        for budget in [1_000, BUDGET] {
            let mut vigil = Vigil::new(budget, PROBE, true, ms(0));
            let mut spent = 0;
            for (_, act) in acts(&mut vigil, 0, 600_000) {
                spent += match act {
                    Act::Probe | Act::ProbeOther(_) => PROBE,
                    Act::Dial | Act::DialOther(_) => ATTEMPT_BYTES,
                    Act::DialTcp => SYN_BYTES,
                    Act::Nudge | Act::Speak => 0,
                };
            }
            assert!(spent <= 11 * budget, "{spent} of {budget} a minute");
        }
    }

    #[test]
    fn a_hub_that_answers_no_probes_is_dialled_within_the_budget() {
        let mut vigil = Vigil::new(BUDGET, PROBE, false, ms(0));
        vigil.observe((5, 5), RTT, false, ms(0));
        let dials = acts(&mut vigil, 0, 60_000)
            .iter()
            .filter(|(_, act)| *act == Act::Dial)
            .count();
        assert!((2..=5).contains(&dials), "{dials} attempts in a minute");
    }
}
