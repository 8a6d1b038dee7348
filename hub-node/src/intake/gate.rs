//! Who is let in when many sites come at once, and what the others are told.
//!
//! ```text
//!            a place is free                       welcome, or gone
//! arrives ─────────────────────► admitted ───────────────────────────► done
//!    │  too many          ▲
//!    ├───────► waits ─────┘ in order
//!    │  too many wait
//!    └───────► told when to come back
//! ```
//! After a restart of the hub all its sites dial within moments. Each costs a handshake, a question to
//! its lane and a share of a transaction; a hub that takes on all at once answers none in time, and all
//! come again. So only so many are between hello and welcome, and so many a second go in; a few wait for
//! as long as their patience lasts; the rest are told, each another time, when there is room for them:
//! one after the other at the speed at which sites really get in.
//!
//! Always true: `admitted <= most`; who waits goes in before who comes later; hints given one after the
//! other lie at least as far apart as sites get in, until [`MAX_HINT`] is reached.

use std::collections::VecDeque;
use std::time::Duration;

use super::bucket::Bucket;

/// Who waits, waits so long at most, as far as can be foreseen: sites give up an answer after 15 s.
const PATIENCE: Duration = Duration::from_secs(3);
/// Nobody is told to come back later than this, even when nothing gets in: it may begin to any time.
const MAX_HINT: Duration = Duration::from_secs(60);
/// Nor sooner.
const MIN_HINT: Duration = Duration::from_millis(500);
/// The speed at which sites get in is measured over so long.
const MEASURED: Duration = Duration::from_secs(1);
/// In thousandths, so that slow is not never.
const THOUSAND: u64 = 1_000;

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct GateConfig {
    /// Most between hello and welcome.
    pub(super) most: usize,
    /// Most let in a second.
    pub(super) rate: u64,
}

/// What becomes of one that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stands in line; [`Gate::poll_admit`] will name it.
    Waits,
    /// It is to come back after this long.
    Later(Duration),
}

/// The plain part: no clock, no task.
#[derive(Debug)]
pub(super) struct Gate<K> {
    config: GateConfig,
    line: VecDeque<K>,
    admitted: usize,
    pace: Bucket,
    /// Sites a second that get in, in thousandths, as last measured.
    speed: u64,
    measured_from: Duration,
    measured: u64,
    /// The next one that is told to come back is told this time.
    slot: Duration,
    /// For the spread of those who are told [`MAX_HINT`].
    turned_away: u32,
}

impl<K: PartialEq> Gate<K> {
    pub(super) fn new(config: GateConfig, now: Duration) -> Self {
        Self {
            config,
            line: VecDeque::new(),
            admitted: 0,
            // a tenth of a second's worth at once
            pace: Bucket::new(config.rate, (config.rate / 10).max(1), now),
            speed: config.rate.saturating_mul(THOUSAND),
            measured_from: now,
            measured: 0,
            slot: now,
            turned_away: 0,
        }
    }

    /// One more is here.
    pub(super) fn arrive(&mut self, key: K, now: Duration) -> Verdict {
        let patience = self.speed.saturating_mul(PATIENCE.as_secs()) / THOUSAND;
        let most = usize::try_from(patience).unwrap_or(usize::MAX);
        if self.line.len() >= most.max(self.config.most) {
            return Verdict::Later(self.hint(now));
        }
        self.line.push_back(key);
        Verdict::Waits
    }

    /// The next to be let in.
    pub(super) fn poll_admit(&mut self, now: Duration) -> Option<K> {
        if self.line.is_empty() || self.admitted >= self.config.most || !self.pace.has(1, now) {
            return None;
        }
        if self.admitted == 0 && self.measured == 0 {
            // it was quiet: idle time says nothing about speed
            self.measured_from = now;
        }
        self.pace.take(1);
        self.admitted += 1;
        self.line.pop_front()
    }

    /// When [`Gate::poll_admit`] may name one that it does not name yet, unless a place gets free before.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        let waits = !self.line.is_empty() && self.admitted < self.config.most;
        waits.then(|| self.pace.ready_at(1))
    }

    /// One that waited went away.
    pub(super) fn gave_up(&mut self, key: &K) {
        self.line.retain(|waiting| waiting != key);
    }

    /// One that was let in has its welcome, or is gone without.
    pub(super) fn done(&mut self, is_welcome: bool, now: Duration) {
        self.admitted = self.admitted.saturating_sub(1);
        self.measured += u64::from(is_welcome);
        let passed = now.saturating_sub(self.measured_from);
        if passed >= MEASURED {
            self.measure(passed, now);
        }
    }

    /// Quick to see that it goes faster, slow to believe that it goes slower. While nobody waits it is
    /// the sites that come slowly, not the gate that is slow.
    fn measure(&mut self, passed: Duration, now: Duration) {
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let seen = self.measured.saturating_mul(THOUSAND * THOUSAND) / millis.max(1);
        let slower = (self.speed - self.speed / 4).max(seen);
        let most = self.config.rate.saturating_mul(THOUSAND);
        if seen >= self.speed || !self.line.is_empty() {
            self.speed = slower.clamp(THOUSAND, most.max(THOUSAND));
        }
        self.measured_from = now;
        self.measured = 0;
    }

    /// When one that cannot be served is to come back: each is told another time, one after the other as
    /// sites get in, behind those who wait.
    pub(super) fn hint(&mut self, now: Duration) -> Duration {
        let gap = Duration::from_micros(1_000_000 * THOUSAND / self.speed.max(1));
        let waiting = u32::try_from(self.line.len()).unwrap_or(u32::MAX);
        let first = (now + MIN_HINT).max(now.saturating_add(gap.saturating_mul(waiting)));
        self.slot = self.slot.max(first);
        let last = now + MAX_HINT;
        if self.slot > last {
            return self.far_hint();
        }
        let hint = self.slot.saturating_sub(now);
        self.slot += gap;
        hint
    }

    /// All times are taken: evenly over the second half of the longest hint.
    fn far_hint(&mut self) -> Duration {
        // multiples of the golden ratio fill an interval evenly, however many come
        self.turned_away = self.turned_away.wrapping_add(0x9e37_79b9);
        let part = ((MAX_HINT / 2).as_nanos() * u128::from(self.turned_away)) >> 32;
        MAX_HINT / 2 + Duration::from_nanos(u64::try_from(part).unwrap_or(0))
    }

    /// Whether so many come that each should begin small.
    pub(super) fn is_crowded(&self) -> bool {
        !self.line.is_empty() || self.admitted * 2 >= self.config.most
    }

    /// Those who wait, and those who are between hello and welcome.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.line.len(), self.admitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: GateConfig = GateConfig {
        most: 16,
        rate: 200,
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Lets `sites` come within `over`, each held up for `step` between hello and welcome, and back when
    /// told; the time at which the last one is in, the most that were in at once, and the most that were
    /// told to come back.
    fn storm(sites: u32, over: Duration, step: Duration) -> (Duration, usize, u32) {
        let mut gate = Gate::new(CONFIG, Duration::ZERO);
        let mut coming: Vec<(Duration, u32)> =
            (0..sites).map(|site| (over * site / sites, site)).collect();
        let mut inside: VecDeque<(Duration, u32)> = VecDeque::new();
        let (mut welcome, mut most, mut told) = (0, 0, 0);
        for tick in 0.. {
            let now = ms(tick);
            while let Some((at, _)) = inside.front()
                && *at <= now
            {
                inside.pop_front();
                gate.done(true, now);
                welcome += 1;
            }
            if welcome == sites {
                return (now, most, told);
            }
            let (here, later) = coming.into_iter().partition(|(at, _)| *at <= now);
            coming = later;
            let here: Vec<_> = here;
            for (_, site) in here {
                if let Verdict::Later(hint) = gate.arrive(site, now) {
                    told += 1;
                    coming.push((now + hint, site));
                }
            }
            while let Some(site) = gate.poll_admit(now) {
                inside.push_back((now + step, site));
            }
            most = most.max(inside.len());
            assert!(now < Duration::from_secs(600), "{welcome} of {sites}");
        }
        unreachable!()
    }

    #[test]
    fn a_few_sites_do_not_notice_the_gate() {
        let (last, _, told) = storm(16, ms(0), ms(50));
        assert!(last <= ms(150) && told == 0, "{last:?} {told}");
    }

    #[test]
    fn a_thousand_sites_get_in_at_the_rate_that_is_configured() {
        let (last, most, _) = storm(1_000, ms(500), ms(20));
        assert!(most <= CONFIG.most);
        assert!(last <= Duration::from_secs(7), "{last:?}");
    }

    #[test]
    fn a_slow_hub_still_gets_all_in_without_much_idle_time() {
        // 16 at once, half a second each: 32 a second, 31 s for a thousand
        let (last, _, told) = storm(1_000, ms(500), ms(500));
        assert!(last <= Duration::from_secs(60), "{last:?}");
        assert!(told < 3_000, "{told}");
    }

    #[test]
    fn hints_are_spread_and_bounded() {
        let mut gate: Gate<u32> = Gate::new(CONFIG, Duration::ZERO);
        let mut hints: Vec<Duration> = (0..20_000).map(|_| gate.hint(ms(0))).collect();
        hints.sort();
        assert!(hints[0] >= MIN_HINT && hints[19_999] <= MAX_HINT);
        // no second of the minute is told to more than twice an even share of what is left for it
        for second in 1..60 {
            let (from, to) = (ms(second * 1_000), ms((second + 1) * 1_000));
            let told = hints
                .iter()
                .filter(|hint| (from..to).contains(*hint))
                .count();
            assert!((195..=600).contains(&told), "{told} in second {second}");
        }
    }

    #[test]
    fn who_is_told_comes_behind_who_waits() {
        let mut gate = Gate::new(CONFIG, Duration::ZERO);
        let mut waiting = 0;
        let hint = loop {
            match gate.arrive(waiting, ms(0)) {
                Verdict::Waits => waiting += 1,
                Verdict::Later(hint) => break hint,
            }
        };
        assert_eq!(waiting, 600);
        assert_eq!(hint, PATIENCE);
    }

    #[test]
    fn places_of_those_who_gave_up_are_free() {
        let mut gate = Gate::new(
            GateConfig {
                most: 1,
                rate: 1_000,
            },
            ms(0),
        );
        for site in 0..3 {
            assert_eq!(gate.arrive(site, ms(0)), Verdict::Waits);
        }
        assert_eq!(gate.poll_admit(ms(0)), Some(0));
        assert_eq!(gate.poll_admit(ms(0)), None);
        gate.gave_up(&1);
        gate.done(false, ms(5));
        assert_eq!(gate.poll_admit(ms(5)), Some(2));
        assert_eq!(gate.counts(), (0, 1));
    }

    #[test]
    fn the_pace_is_kept_when_welcomes_are_quick() {
        let mut gate = Gate::new(CONFIG, ms(0));
        let mut admitted = 0;
        for tick in 0..1_000 {
            let now = ms(tick);
            let _verdict = gate.arrive(tick, now);
            while gate.poll_admit(now).is_some() {
                admitted += 1;
                gate.done(true, now);
            }
        }
        assert!((195..=220).contains(&admitted), "{admitted}");
    }
}
