//! How fast sites may send, each for itself and all together: who may read how much next.
//!
//! A session asks for a turn when it has read what it was granted. Sites that wait take turns at the
//! total, an equal quantum each; one that is held by its own limit steps aside until it has earned its
//! next quantum. So a site that wants less than an even share gets all that it wants, and the others
//! share the rest evenly (max-min fairness). What is not read stays in QUIC's window, and then at the
//! site: nothing is ever dropped.
//!
//! Always true: what is granted in any time `t` is at most `burst + rate * t` of the total, and of each
//! site; a site stands in at most one of `turns` and `resting`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::bucket::Bucket;

/// A turn is what the limit lets through in a 50th of a second, within these bounds.
const TURNS_A_SECOND: u64 = 50;
const MIN_QUANTUM: u64 = 1 << 10;
const MAX_QUANTUM: u64 = 64 << 10;
/// What may come at once after a rest: a tenth of a second, and at least four turns.
const BURSTS_A_SECOND: u64 = 10;

/// Bytes a second; `None`: as fast as it comes.
pub(super) type Limit = Option<u64>;

/// The plain part: no clock, no task.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    total: Option<Bucket>,
    rate: Limit,
    sites: BTreeMap<K, Site>,
    /// Sites that want a turn and are held by nothing but the total.
    turns: VecDeque<K>,
    /// Sites that want a turn and wait for their own limit.
    resting: BTreeSet<(Duration, K)>,
}

#[derive(Debug)]
struct Site {
    own: Option<Bucket>,
    rate: Limit,
    /// Open sessions; for a moment two.
    sessions: u32,
    wants: bool,
}

impl<K: Ord + Clone> Limiter<K> {
    pub(super) fn new(rate: Limit, now: Duration) -> Self {
        Self {
            total: rate.map(|rate| bucket(rate, quantum(rate), now)),
            rate,
            sites: BTreeMap::new(),
            turns: VecDeque::new(),
            resting: BTreeSet::new(),
        }
    }

    /// A session of a site begins. Two of one site share its limit.
    pub(super) fn join(&mut self, key: K, rate: Limit, now: Duration) {
        // those that left and owe nothing are like those that never came
        self.sites
            .retain(|_, site| site.sessions > 0 || !site.is_settled(now));
        let site = self.sites.entry(key.clone()).or_insert_with(|| Site {
            own: None,
            rate: None,
            sessions: 0,
            wants: false,
        });
        site.sessions = site.sessions.saturating_add(1);
        self.set(&key, rate, now);
    }

    /// A session of the site ended.
    pub(super) fn leave(&mut self, key: &K) {
        let Some(site) = self.sites.get_mut(key) else {
            return;
        };
        site.sessions = site.sessions.saturating_sub(1);
        if site.sessions == 0 {
            site.wants = false;
            self.turns.retain(|turn| turn != key);
            self.resting.retain(|(_, turn)| turn != key);
        }
    }

    /// The site's own limit is another from here on.
    pub(super) fn set(&mut self, key: &K, rate: Limit, now: Duration) {
        let turn = self.quantum_of(rate);
        let Some(site) = self.sites.get_mut(key) else {
            return;
        };
        if site.rate == rate {
            return;
        }
        site.rate = rate;
        match (rate, &mut site.own) {
            (None, own) => *own = None,
            (Some(rate), Some(own)) => own.set(rate, burst(rate, turn), now),
            (Some(rate), own @ None) => *own = Some(bucket(rate, turn, now)),
        }
        // what it waits for has changed
        if site.wants {
            self.resting.retain(|(_, turn)| turn != key);
            if !self.turns.contains(key) {
                self.turns.push_back(key.clone());
            }
        }
    }

    /// The site has used up its last turn and asks for another.
    pub(super) fn want(&mut self, key: &K) {
        if let Some(site) = self.sites.get_mut(key)
            && !std::mem::replace(&mut site.wants, true)
        {
            self.turns.push_back(key.clone());
        }
    }

    /// Bytes that a site was granted and that nobody will read.
    pub(super) fn give_back(&mut self, key: &K, bytes: u64) {
        if let Some(total) = &mut self.total {
            total.put(bytes);
        }
        if let Some(own) = self.sites.get_mut(key).and_then(|site| site.own.as_mut()) {
            own.put(bytes);
        }
    }

    /// The next turn: whose, and how many bytes.
    pub(super) fn poll_grant(&mut self, now: Duration) -> Option<(K, u64)> {
        while let Some((at, _)) = self.resting.first()
            && *at <= now
        {
            let rested = self.resting.pop_first();
            self.turns.extend(rested.map(|(_, key)| key));
        }
        while let Some(key) = self.turns.front().cloned() {
            let turn = self.turn_of(&key);
            let Some(site) = self.sites.get_mut(&key) else {
                self.turns.pop_front();
                continue;
            };
            if let Some(own) = &mut site.own
                && !own.has(turn, now)
            {
                self.resting.insert((own.ready_at(turn), key));
                self.turns.pop_front();
                continue;
            }
            if let Some(total) = &mut self.total {
                if !total.has(turn, now) {
                    return None;
                }
                total.take(turn);
            }
            if let Some(own) = &mut site.own {
                own.take(turn);
            }
            site.wants = false;
            self.turns.pop_front();
            return Some((key, turn));
        }
        None
    }

    /// When [`Limiter::poll_grant`] may have something that it does not have yet; after it said `None`.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        let rested = self.resting.first().map(|(at, _)| *at);
        let total = self.turns.front().and_then(|key| {
            let total = self.total.as_ref()?;
            Some(total.ready_at(self.turn_of(key)))
        });
        rested.into_iter().chain(total).min()
    }

    /// Sites that wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.turns.len() + self.resting.len()
    }

    fn turn_of(&self, key: &K) -> u64 {
        self.quantum_of(self.sites.get(key).and_then(|site| site.rate))
    }

    /// Equal for all while there is a total: turns are what makes it fair.
    fn quantum_of(&self, own: Limit) -> u64 {
        self.rate.or(own).map_or(MAX_QUANTUM, quantum)
    }
}

impl Site {
    fn is_settled(&mut self, now: Duration) -> bool {
        self.own.as_mut().is_none_or(|own| own.is_full(now))
    }
}

fn quantum(rate: u64) -> u64 {
    (rate / TURNS_A_SECOND).clamp(MIN_QUANTUM, MAX_QUANTUM)
}

fn burst(rate: u64, quantum: u64) -> u64 {
    // room to go on earning while others have their turns
    (rate / BURSTS_A_SECOND).max(4 * quantum)
}

fn bucket(rate: u64, quantum: u64, now: Duration) -> Bucket {
    Bucket::new(rate, burst(rate, quantum), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sites by their number: own limit, and bytes a second that they would send.
    fn run(total: Limit, sites: &[(Limit, u64)], seconds: u64) -> Vec<u64> {
        let mut limiter = Limiter::new(total, Duration::ZERO);
        for (key, (own, _)) in sites.iter().enumerate() {
            limiter.join(key, *own, Duration::ZERO);
        }
        let mut got = vec![0; sites.len()];
        let mut granted = vec![0; sites.len()];
        for ms in 0..seconds * 1_000 {
            let now = Duration::from_millis(ms);
            let ask = |limiter: &mut Limiter<usize>, granted: &mut [u64], got: &mut [u64]| {
                for (key, (_, demand)) in sites.iter().enumerate() {
                    let sent = demand * (ms + 1) / 1_000;
                    got[key] = sent.min(granted[key]);
                    if sent > granted[key] {
                        limiter.want(&key);
                    }
                }
            };
            ask(&mut limiter, &mut granted, &mut got);
            while let Some((key, bytes)) = limiter.poll_grant(now) {
                granted[key] += bytes;
                ask(&mut limiter, &mut granted, &mut got);
            }
            assert!(limiter.poll_timeout().is_none_or(|at| at > now));
        }
        got
    }

    fn near(value: u64, goal: u64) -> bool {
        value.abs_diff(goal) * 20 <= goal
    }

    #[test]
    fn a_site_is_held_to_its_own_limit() {
        let got = run(None, &[(Some(100_000), 1_000_000), (None, 1_000_000)], 20);
        assert!(near(got[0], 2_000_000), "{got:?}");
        assert!(near(got[1], 20_000_000), "{got:?}");
    }

    #[test]
    fn who_wants_little_gets_it_and_the_others_share_the_rest_evenly() {
        let sites = [
            (None, 50_000),
            (None, 10_000_000),
            (Some(100_000), 10_000_000),
            (None, 10_000_000),
        ];
        let got = run(Some(1_000_000), &sites, 20);
        assert!(near(got[0], 1_000_000), "{got:?}");
        assert!(near(got[2], 2_000_000), "{got:?}");
        assert!(
            near(got[1], 8_500_000) && near(got[3], 8_500_000),
            "{got:?}"
        );
    }

    #[test]
    fn the_total_is_never_passed_by_more_than_a_burst() {
        let sites = vec![(None, 5_000_000); 200];
        let got: u64 = run(Some(2_000_000), &sites, 10).iter().sum();
        assert!((19_500_000..=20_200_000).contains(&got), "{got}");
    }

    #[test]
    fn coming_back_does_not_fill_a_sites_bucket() {
        let mut limiter = Limiter::new(None, Duration::ZERO);
        let mut got = 0;
        for ms in 0..10_000 {
            let now = Duration::from_millis(ms);
            limiter.join("a", Some(10_000), now);
            limiter.want(&"a");
            while let Some((_, bytes)) = limiter.poll_grant(now) {
                got += bytes;
                limiter.want(&"a");
            }
            limiter.leave(&"a");
        }
        assert!(got <= 104_096, "{got}");
    }

    #[test]
    fn who_left_is_forgotten_and_has_no_turn() {
        let mut limiter = Limiter::new(Some(1_000), Duration::ZERO);
        for key in 0..100 {
            limiter.join(key, Some(1_000), Duration::ZERO);
            limiter.want(&key);
            limiter.leave(&key);
        }
        assert_eq!(limiter.waiting(), 0);
        assert_eq!(limiter.poll_grant(Duration::from_secs(9)), None);
        limiter.join(0, None, Duration::from_secs(9));
        assert_eq!(limiter.sites.len(), 1);
    }

    #[test]
    fn a_limit_that_is_lifted_ends_the_rest() {
        let mut limiter = Limiter::new(None, Duration::ZERO);
        limiter.join("a", Some(10), Duration::ZERO);
        limiter.want(&"a");
        while limiter.poll_grant(Duration::ZERO).is_some() {
            limiter.want(&"a");
        }
        limiter.set(&"a", None, Duration::ZERO);
        assert!(limiter.poll_grant(Duration::ZERO).is_some());
    }

    #[test]
    fn what_is_given_back_is_granted_again() {
        let mut limiter = Limiter::new(Some(1_000), Duration::ZERO);
        limiter.join("a", None, Duration::ZERO);
        limiter.want(&"a");
        let mut bytes = 0;
        while let Some((_, granted)) = limiter.poll_grant(Duration::ZERO) {
            bytes = granted;
            limiter.want(&"a");
        }
        limiter.give_back(&"a", bytes);
        assert_eq!(limiter.poll_grant(Duration::ZERO), Some(("a", bytes)));
    }
}
