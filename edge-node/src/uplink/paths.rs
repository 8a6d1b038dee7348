//! Which of several uplinks is used: the first that may be and works; away from one that fails within
//! seconds, and back to a better one only when it has proved itself.
//!
//! ```text
//!            dial ──► on a path ──► failed: the path rests, the next usable one is dialled
//!              ▲          │
//!              │          ├─ a better path is usable: probe it ever more seldom ─ failed ─┐
//!              │          │      good twice, a while apart                     ◄──────────┘
//!              └── move ◄─┘
//! ```
//! The order of the configuration is the order of preference. A path that its policy closes, or whose
//! interface is gone, is not usable. A path that fails rests, twice as long each time, a minute at most; while all
//! rest, none is dialled until the first rest is over: a site never gives up. A path to which it moved and which
//! failed at once must be good for longer before it is moved to again, so that a link that comes and goes costs
//! little. A session says so once, however often its hub is not heard; what other paths come to meanwhile says
//! nothing of its own.
//!
//! Plain code: it is told what happened and says what to do.

use std::time::Duration;

/// A path that failed rests so long at first.
const REST_MIN: Duration = Duration::from_secs(2);
/// And so long in the end.
const REST_MAX: Duration = Duration::from_secs(60);
/// A better path is looked at so soon after it was left.
const PROBE_MIN: Duration = Duration::from_secs(5);
/// And so seldom in the end: a probe costs a handshake, about 6 kB.
const PROBE_MAX: Duration = Duration::from_secs(60);
/// A better path must be good for so long before it is moved to.
const SETTLE_MIN: Duration = Duration::from_secs(10);
/// The same for one that comes and goes.
const SETTLE_MAX: Duration = Duration::from_secs(300);
/// A session that lasted so long shows that its path is good.
const STEADY: Duration = Duration::from_secs(60);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Dial on this path, and say [`Paths::connected`] or [`Paths::failed`].
    Dial(usize),
    /// Try a handshake on this path beside the session, and say [`Paths::probed`].
    Probe(usize),
    /// End the session in order and dial on this path.
    Move(usize),
    /// End the session: no path may be used.
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Dialling(usize),
    On { path: usize, since: Duration },
}

#[derive(Debug, Clone)]
struct Path {
    is_usable: bool,
    /// Not dialled before.
    rests_until: Duration,
    rest: Duration,
    /// Next look at it, while a lesser one is used.
    probe_at: Duration,
    probe_every: Duration,
    is_probing: bool,
    /// Since when every probe was good.
    good_since: Option<Duration>,
    settle: Duration,
}

/// The session that there is, also while another path is tried.
#[derive(Debug, Clone, Copy)]
struct Home {
    path: usize,
    since: Duration,
    /// It said what its path is worth.
    has_judged: bool,
}

/// Chooses among the paths of a site. Times are since any fixed origin.
#[derive(Debug, Clone)]
pub struct Paths {
    paths: Vec<Path>,
    state: State,
    home: Option<Home>,
}

impl Paths {
    /// So many paths, the best first, all usable.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let path = Path {
            is_usable: true,
            rests_until: Duration::ZERO,
            rest: REST_MIN,
            probe_at: Duration::ZERO,
            probe_every: PROBE_MIN,
            is_probing: false,
            good_since: None,
            settle: SETTLE_MIN,
        };
        Self {
            paths: vec![path; count],
            state: State::Idle,
            home: None,
        }
    }

    /// The path of the session, or of the attempt under way.
    #[must_use]
    pub const fn current(&self) -> Option<usize> {
        match self.state {
            State::Idle => None,
            State::Dialling(path) | State::On { path, .. } => Some(path),
        }
    }

    /// Whether a path may be used: by its policy, and as far as the machine has its address or interface.
    pub fn set_usable(&mut self, path: usize, is_usable: bool, now: Duration) {
        let Some(path) = self.paths.get_mut(path) else {
            return;
        };
        if is_usable && !path.is_usable {
            // what it was like before says nothing
            (path.rests_until, path.rest) = (now, REST_MIN);
            (path.probe_at, path.probe_every, path.good_since) = (now, PROBE_MIN, None);
        }
        path.is_usable = is_usable;
    }

    /// A session is open on the path.
    pub fn connected(&mut self, path: usize, now: Duration) {
        self.state = State::On { path, since: now };
        self.home = Some(Home {
            path,
            since: now,
            has_judged: false,
        });
        if let Some(path) = self.paths.get_mut(path) {
            path.good_since = None;
        }
        // a look that was under way went with the session before
        self.paths
            .iter_mut()
            .for_each(|path| path.is_probing = false);
        // the better ones were tried just before, or rest
        for better in self.paths.iter_mut().take(path) {
            better.probe_at = better.probe_at.max(now + better.probe_every);
        }
    }

    /// No session came about on the path, or the one on it is lost.
    pub fn failed(&mut self, path: usize, now: Duration) {
        let home = self.home.as_mut();
        let unjudged = home.filter(|home| home.path == path && !home.has_judged);
        let lasted = unjudged.map(|home| {
            home.has_judged = true;
            now.saturating_sub(home.since)
        });
        if self.current() == Some(path) {
            self.state = State::Idle;
        }
        let Some(path) = self.paths.get_mut(path) else {
            return;
        };
        match lasted {
            Some(lasted) if lasted >= STEADY => {
                (path.rest, path.settle, path.probe_every) = (REST_MIN, SETTLE_MIN, PROBE_MIN);
            }
            Some(_) => path.settle = (path.settle * 2).min(SETTLE_MAX),
            None => {}
        }
        path.rests_until = now + path.rest;
        path.rest = (path.rest * 2).min(REST_MAX);
        path.probe_at = now + path.probe_every;
        path.good_since = None;
    }

    /// The session on the path goes on: its hub is heard again, or no other path was better.
    pub fn stays(&mut self, path: usize) {
        if let Some(home) = self.home.filter(|home| home.path == path) {
            let since = home.since;
            self.state = State::On { path, since };
        }
    }

    /// The session ended in order, or the hub wanted it: the path is not to blame.
    pub fn ended(&mut self, path: usize) {
        if self.current() == Some(path) {
            self.state = State::Idle;
        }
        self.home = self.home.filter(|home| home.path != path);
    }

    /// There is no session and no attempt: what was under way beside the last session went with it.
    pub fn alone(&mut self) {
        self.state = State::Idle;
        self.paths
            .iter_mut()
            .for_each(|path| path.is_probing = false);
    }

    /// What a probe came to.
    pub fn probed(&mut self, path: usize, is_good: bool, now: Duration) {
        let Some(path) = self.paths.get_mut(path) else {
            return;
        };
        path.is_probing = false;
        if is_good {
            path.good_since.get_or_insert(now);
            path.probe_every = PROBE_MIN;
        } else {
            path.good_since = None;
            path.probe_every = (path.probe_every * 2).min(PROBE_MAX);
        }
        path.probe_at = now + path.probe_every;
    }

    /// Whether every look at a better path since some time came to something.
    #[must_use]
    pub fn is_good(&self, path: usize) -> bool {
        let path = self.paths.get(path);
        path.is_some_and(|path| path.good_since.is_some())
    }

    /// What to do now; `None`: wait until [`Paths::poll_timeout`] or the next event.
    pub fn poll(&mut self, now: Duration) -> Option<Step> {
        match self.state {
            State::Idle => {
                let path = self.choose(now)?;
                self.state = State::Dialling(path);
                Some(Step::Dial(path))
            }
            State::Dialling(path) | State::On { path, .. } if !self.is_usable(path) => {
                match self.choose(now) {
                    Some(next) => {
                        self.state = State::Dialling(next);
                        Some(Step::Move(next))
                    }
                    None => {
                        self.state = State::Idle;
                        Some(Step::Leave)
                    }
                }
            }
            State::Dialling(_) => None,
            State::On { path, .. } => self.better(path, now),
        }
    }

    /// When [`Paths::poll`] has something to do if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match self.state {
            State::Idle => {
                let usable = self.paths.iter().filter(|path| path.is_usable);
                usable.map(|path| path.rests_until).min()
            }
            State::Dialling(_) => None,
            State::On { path, .. } => {
                let better = self.paths.iter().take(path);
                better
                    .filter(|path| path.is_usable && !path.is_probing)
                    .map(|path| path.probe_at)
                    .min()
            }
        }
    }

    fn is_usable(&self, path: usize) -> bool {
        self.paths.get(path).is_some_and(|path| path.is_usable)
    }

    /// The first that may be dialled; while all rest, none.
    fn choose(&self, now: Duration) -> Option<usize> {
        let is_ready = |path: &Path| path.is_usable && path.rests_until <= now;
        self.paths.iter().position(is_ready)
    }

    /// Looks after the paths that are better than the one in use.
    fn better(&mut self, current: usize, now: Duration) -> Option<Step> {
        let better = self.paths.iter_mut().take(current).enumerate();
        for (index, path) in better.filter(|(_, path)| path.is_usable && !path.is_probing) {
            let has_settled = |since: Duration| now.saturating_sub(since) >= path.settle;
            if path.good_since.is_some_and(has_settled) {
                self.state = State::Dialling(index);
                return Some(Step::Move(index));
            }
            if path.probe_at <= now {
                path.is_probing = true;
                return Some(Step::Probe(index));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIFI: usize = 0;
    const CELL: usize = 1;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn on_wifi() -> Paths {
        let mut paths = Paths::new(2);
        assert_eq!(paths.poll(secs(0)), Some(Step::Dial(WIFI)));
        paths.connected(WIFI, secs(0));
        paths
    }

    #[test]
    fn a_path_that_fails_is_left_at_once_and_taken_again_when_it_has_proved_itself() {
        let mut paths = on_wifi();
        paths.failed(WIFI, secs(100));
        assert_eq!(paths.poll(secs(100)), Some(Step::Dial(CELL)));
        paths.connected(CELL, secs(101));
        assert_eq!(paths.poll(secs(102)), None);
        assert_eq!(paths.poll_timeout(), Some(secs(106)));
        assert_eq!(paths.poll(secs(106)), Some(Step::Probe(WIFI)));
        assert_eq!(paths.poll(secs(106)), None);
        paths.probed(WIFI, false, secs(109));
        assert_eq!(paths.poll_timeout(), Some(secs(119)));
        assert_eq!(paths.poll(secs(119)), Some(Step::Probe(WIFI)));
        paths.probed(WIFI, true, secs(120));
        assert_eq!(paths.poll(secs(125)), Some(Step::Probe(WIFI)));
        paths.probed(WIFI, true, secs(126));
        assert_eq!(paths.poll(secs(131)), Some(Step::Move(WIFI)));
        paths.connected(WIFI, secs(132));
        assert_eq!(paths.poll_timeout(), None);
    }

    #[test]
    fn what_was_under_way_beside_a_session_that_ended_is_forgotten() {
        let mut paths = on_wifi();
        paths.set_usable(WIFI, false, secs(100));
        assert_eq!(paths.poll(secs(100)), Some(Step::Move(CELL)));
        // the policy ends the session before the attempt comes to anything
        paths.ended(WIFI);
        assert_eq!(paths.poll(secs(200)), None);
        paths.alone();
        assert_eq!(paths.poll(secs(200)), Some(Step::Dial(CELL)));
        paths.connected(CELL, secs(201));
        paths.set_usable(WIFI, true, secs(202));
        assert_eq!(paths.poll(secs(210)), Some(Step::Probe(WIFI)));
        // and another connection on the same path takes over before the look ends
        paths.connected(CELL, secs(211));
        assert_eq!(paths.poll(secs(300)), Some(Step::Probe(WIFI)));
    }

    #[test]
    fn what_others_come_to_says_nothing_of_the_sessions_path() {
        let mut paths = Paths::new(3);
        for dead in [0, 1] {
            assert_eq!(paths.poll(secs(0)), Some(Step::Dial(dead)));
            paths.failed(dead, secs(0));
        }
        assert_eq!(paths.poll(secs(0)), Some(Step::Dial(2)));
        paths.connected(2, secs(0));
        for now in [100, 102, 110, 130] {
            paths.failed(2, secs(now));
            while let Some(Step::Dial(path)) = paths.poll(secs(now)) {
                if path == 2 {
                    break;
                }
                paths.failed(path, secs(now));
            }
            paths.stays(2);
            assert_eq!(paths.current(), Some(2));
        }
        assert_eq!(paths.paths[2].settle, SETTLE_MIN);
        paths.failed(2, secs(140));
        paths.connected(2, secs(150));
        paths.failed(2, secs(155));
        paths.failed(2, secs(157));
        assert_eq!(paths.paths[2].settle, SETTLE_MIN * 2, "once a session");
    }

    #[test]
    fn a_path_that_its_policy_closes_is_left_in_order() {
        let mut paths = on_wifi();
        paths.set_usable(WIFI, false, secs(10));
        assert_eq!(paths.poll(secs(10)), Some(Step::Move(CELL)));
        paths.connected(CELL, secs(11));
        paths.set_usable(CELL, false, secs(20));
        assert_eq!(paths.poll(secs(20)), Some(Step::Leave));
        assert_eq!(paths.poll(secs(21)), None);
        assert_eq!(paths.poll_timeout(), None);
        paths.set_usable(WIFI, true, secs(30));
        assert_eq!(paths.poll(secs(30)), Some(Step::Dial(WIFI)));
    }

    #[test]
    fn when_all_fail_they_are_tried_in_turns_ever_more_seldom() {
        let mut paths = Paths::new(2);
        let (mut now, mut dials) = (Duration::ZERO, Vec::new());
        while now < secs(300) {
            match paths.poll(now) {
                Some(Step::Dial(path)) => {
                    dials.push(path);
                    now += secs(1);
                    paths.failed(path, now);
                }
                Some(other) => panic!("{other:?}"),
                None => now = paths.poll_timeout().unwrap().max(now),
            }
        }
        assert_eq!(dials[..3], [WIFI, CELL, WIFI]);
        assert!(
            dials.contains(&CELL) && (12..24).contains(&dials.len()),
            "{dials:?}"
        );
    }

    #[test]
    fn without_a_path_there_is_nothing_to_do() {
        let mut paths = Paths::new(0);
        assert_eq!(paths.poll(secs(0)), None);
    }

    #[test]
    fn a_path_that_comes_and_goes_is_moved_to_ever_more_seldom() {
        let mut paths = on_wifi();
        let (mut now, mut moves) = (secs(1), 0);
        paths.failed(WIFI, now);
        while now < secs(3_600) {
            match paths.poll(now) {
                Some(Step::Dial(WIFI) | Step::Move(WIFI)) => {
                    moves += 1;
                    paths.connected(WIFI, now);
                    now += secs(5);
                    paths.failed(WIFI, now);
                }
                Some(Step::Dial(path) | Step::Move(path)) => paths.connected(path, now),
                Some(Step::Probe(path)) => paths.probed(path, true, now),
                Some(Step::Leave) => panic!("left"),
                None => now = paths.poll_timeout().unwrap().max(now),
            }
        }
        assert!((10..20).contains(&moves), "{moves}");
    }

    proptest! {
        /// Whatever was before: once one path works and no other, it is used within the longest rest.
        #[test]
        fn a_path_that_works_is_found(
            usable in prop::collection::vec(any::<bool>(), 3),
            outcomes in prop::collection::vec(any::<bool>(), 0..60),
            works in 0_usize..3,
        ) {
            let mut paths = Paths::new(3);
            let mut now = Duration::ZERO;
            let step = |paths: &mut Paths, now: &mut Duration, is_good: &dyn Fn(usize) -> bool| {
                match paths.poll(*now) {
                    Some(Step::Dial(path) | Step::Move(path)) => {
                        *now += secs(1);
                        if is_good(path) { paths.connected(path, *now) } else { paths.failed(path, *now) }
                    }
                    Some(Step::Probe(path)) => paths.probed(path, is_good(path), *now),
                    Some(Step::Leave) | None => {
                        let soonest = *now + secs(1);
                        *now = paths.poll_timeout().map_or(soonest, |at| at.max(soonest));
                    }
                }
            };
            for (path, is_usable) in usable.iter().enumerate() {
                paths.set_usable(path, *is_usable, now);
            }
            for is_good in outcomes {
                if let (State::On { path, .. }, false) = (paths.state, is_good) {
                    paths.failed(path, now);
                }
                step(&mut paths, &mut now, &|_| is_good);
            }
            for path in 0..3 {
                paths.set_usable(path, true, now);
            }
            if let State::On { path, .. } = paths.state {
                paths.failed(path, now);
            }
            let start = now;
            while !matches!(paths.state, State::On { path, .. } if path == works) {
                step(&mut paths, &mut now, &|path| path == works);
                prop_assert!(now < start + REST_MAX * 2 + SETTLE_MAX, "not found");
            }
        }
    }
}
