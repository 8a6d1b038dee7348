//! Keeps house for the link: charges what moved to every allowance that it concerns, decides what holds on
//! each path, and says how far the fences may be.
//!
//! ```text
//!  traffic of a path ──► its book, the site's, the hub's ──► decisions ──► the tightest holds
//!                          │
//!                          └──► what is kept: counted + ahead ──► written ──► fence
//! ```
//! The site's policy and the one that the hub pushed count what all paths move; a path's own counts its own.
//!
//! Plain code: it takes counters and clocks, and says what to write and what to set. [`super::keeper`] does
//! it.

mod idle;
mod rules;

use std::collections::BTreeMap;
use std::time::Duration;

use shared::units::{BitRate, ByteSize};

use super::meter::{Ahead, Kept};
use super::policy::{
    Action, Allowance, Book, Calendar, Charged, Clocks, Decision, Period, Policy, Seen,
};
use super::shaper::Traffic;
use idle::Idle;

pub use rules::{FromHub, Rules};

/// Names of books; a path's is its name behind this.
const SITE: &str = "site";
const HUB: &str = "hub";
const PATH: &str = "path ";

/// The best speed of a path is forgotten by this part a second: by half in six minutes.
const FADE: u64 = 512;

/// Seconds of a path in which it was full for so much of the time, in percent, tell what the link carries.
const FULL: u128 = 90;
/// A second that came to so much of the policy's rate, in percent, tells nothing of the link.
const AT_RATE: u64 = 85;

/// What was to last for seconds and is used up so soon was too little.
const SOON: Duration = Duration::from_secs(1);

/// How an allowance stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// `site`, `hub` or the path's name.
    pub of: String,
    /// So many a period.
    pub bytes: ByteSize,
    /// Which.
    pub period: Period,
    /// Of them.
    pub used: u64,
    /// What holds because of that.
    pub action: Action,
    /// When the period ends.
    pub end_ms: i64,
}

/// A policy with what was used of its allowance.
#[derive(Debug)]
struct Account {
    policy: Policy,
    /// With the calendar that it is kept by; `None` without an allowance.
    book: Option<(Calendar, Book)>,
}

impl Account {
    /// With the book of this name, when there is one.
    fn new(policy: Policy, name: &str, idle: &mut Idle, now: Clocks) -> Self {
        let book = policy.calendar().map(|calendar| {
            let kept = idle.take(name);
            let mut book = kept.unwrap_or_else(|| Book::new(&calendar, now));
            let _seen = book.look(&calendar, now);
            (calendar, book)
        });
        Self { policy, book }
    }

    /// Another policy; what was used stays used, also when an allowance comes back only later.
    fn replace(&mut self, policy: Policy, name: &str, idle: &mut Idle, now: Clocks) {
        self.release(name, idle);
        *self = Self::new(policy, name, idle, now);
    }

    fn release(&mut self, name: &str, idle: &mut Idle) {
        if let Some((_, book)) = self.book.take() {
            idle.put(name.to_owned(), book);
        }
    }

    /// What was used is not known: all of it.
    fn take_for_used(&mut self) {
        let bytes = self.policy.allowance.map_or(0, |it| it.bytes.bytes());
        if let Some((_, book)) = &mut self.book {
            book.take_for_used(bytes);
        }
    }

    fn look(&mut self, now: Clocks) -> Seen {
        self.book
            .as_mut()
            .map_or(Seen::Same, |(calendar, book)| book.look(calendar, now))
    }

    const fn charge(&mut self, bytes: u64) {
        if let Some((_, book)) = &mut self.book {
            book.charge(bytes);
        }
    }

    fn decide(&self, wall_ms: i64) -> Decision {
        let charged = self
            .book
            .as_ref()
            .map_or_else(Charged::default, |(_, book)| Charged {
                used: book.used(),
                end_ms: book.end_ms(),
            });
        self.policy.decide(wall_ms, charged)
    }

    fn standing(&self, of: &str) -> Option<Standing> {
        let (allowance, (_, book)): (&Allowance, _) =
            self.policy.allowance.as_ref().zip(self.book.as_ref())?;
        Some(Standing {
            of: of.to_owned(),
            bytes: allowance.bytes,
            period: allowance.period,
            used: book.used(),
            action: allowance.action(book.used()),
            end_ms: book.end_ms(),
        })
    }

    /// As it is written down: with what may move before the next time.
    fn keep(&self, ahead: u64) -> Option<Book> {
        let (_, book) = self.book.as_ref()?;
        let mut book = book.clone();
        book.charge(ahead);
        Some(book)
    }
}

#[derive(Debug)]
struct PathState {
    name: String,
    account: Account,
    /// Counted before the process started.
    before: Traffic,
    /// Counted since.
    seen: Traffic,
    ahead: Ahead,
    /// Something wanted to leave since the start: until then nothing is written, so that a process that
    /// is started in vain again and again uses up nothing.
    is_used: bool,
    /// Bytes since the start that are written down, and when that was.
    written: u64,
    written_at: Duration,
    /// Where the speed was measured from.
    speed_from: (Duration, u64),
    bytes_per_sec: u64,
    /// How long it was full since the start, and until the speed was measured last.
    full: Duration,
    full_from: Duration,
    /// What the policy grants.
    rate: Option<BitRate>,
    /// The speed of the last second, when the link was its limit.
    carried: Option<u64>,
    /// Of two such seconds in a row the slower one; the best of them. One second may fill a queue only.
    best_bytes_per_sec: u64,
}

impl PathState {
    /// What the link is seen to carry, when it was the limit of the last `millis` and of the second before.
    fn carry(&mut self, bytes_per_sec: u64, millis: u128) -> Option<u64> {
        let full = self.full.saturating_sub(self.full_from).as_millis();
        self.full_from = self.full;
        let at_rate = |rate: BitRate| rate.bytes_per_sec() / 100 * AT_RATE;
        let is_held = self.rate.is_some_and(|rate| bytes_per_sec >= at_rate(rate));
        let is_limit = full * 100 >= millis * FULL && !is_held;
        let carried = is_limit.then_some(bytes_per_sec);
        let before = std::mem::replace(&mut self.carried, carried);
        Some(carried?.min(before?))
    }
}

/// What to write down, and how far the fences may be moved then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) kept: Kept,
    written: Vec<u64>,
}

/// Decides for all paths of a site.
#[derive(Debug)]
pub(super) struct Steward {
    from_hub: FromHub,
    site: Account,
    hub: Option<Account>,
    paths: Vec<PathState>,
    idle: Idle,
    /// Counts of paths that are not configured.
    others: BTreeMap<String, Traffic>,
}

impl Steward {
    pub(super) fn new(rules: Rules, kept: &Kept, now: Clocks) -> Self {
        let mut idle = Idle::default();
        let mut books = kept.books.clone();
        let mut account = |policy: Policy, of: String| {
            if let Some(entry) = books.remove(&of) {
                idle.put(of.clone(), Book::restore(entry));
            }
            Account::new(policy, &of, &mut idle, now)
        };
        let site = account(rules.site, SITE.to_owned());
        let paths = rules.paths.into_iter().map(|(name, policy)| PathState {
            account: account(policy, path_book(&name)),
            before: kept.paths.get(&name).copied().unwrap_or_default(),
            seen: Traffic::default(),
            ahead: Ahead::new(),
            is_used: false,
            written: 0,
            written_at: Duration::ZERO,
            speed_from: (now.running, 0),
            bytes_per_sec: 0,
            full: Duration::ZERO,
            full_from: Duration::ZERO,
            rate: None,
            carried: None,
            best_bytes_per_sec: 0,
            name,
        });
        let paths: Vec<PathState> = paths.collect();
        for (of, entry) in books {
            idle.put(of, Book::restore(entry));
        }
        let is_other = |name: &String| paths.iter().all(|path| path.name != *name);
        let others = kept.paths.iter().filter(|(name, _)| is_other(name));
        Self {
            from_hub: rules.from_hub,
            site,
            hub: None,
            others: others
                .map(|(name, traffic)| (name.clone(), *traffic))
                .collect(),
            paths,
            idle,
        }
    }

    /// The counts were damaged. They are no way to an allowance that was used already: all in force count
    /// as used up until their periods end.
    pub(super) fn handle_lost_counts(&mut self) {
        let hub = self.hub.iter_mut();
        let paths = self.paths.iter_mut().map(|path| &mut path.account);
        for account in [&mut self.site].into_iter().chain(hub).chain(paths) {
            account.take_for_used();
        }
    }

    /// Allowances that are taken for used up because their counts were damaged.
    pub(super) fn lost(&self) -> Vec<&str> {
        let hub = self.hub.iter().map(|hub| (HUB, hub));
        let paths = self.paths.iter();
        let paths = paths.map(|path| (path.name.as_str(), &path.account));
        [(SITE, &self.site)]
            .into_iter()
            .chain(hub)
            .chain(paths)
            .filter(|(_, account)| {
                account
                    .book
                    .as_ref()
                    .is_some_and(|(_, book)| book.is_lost())
            })
            .map(|(name, _)| name)
            .collect()
    }

    /// Other rules for the same paths; a path that the rules don't have keeps its own.
    pub(super) fn set_rules(&mut self, rules: Rules, now: Clocks) {
        self.from_hub = rules.from_hub;
        self.site.replace(rules.site, SITE, &mut self.idle, now);
        for (name, policy) in rules.paths {
            if let Some(path) = self.paths.iter_mut().find(|path| path.name == name) {
                let account = &mut path.account;
                account.replace(policy, &path_book(&name), &mut self.idle, now);
            }
        }
    }

    /// The policy that the hub pushed; `None`: it has none any more.
    pub(super) fn set_hub(&mut self, policy: Option<Policy>, now: Clocks) {
        if let Some(mut old) = self.hub.take() {
            old.release(HUB, &mut self.idle);
        }
        self.hub = policy.map(|policy| Account::new(policy, HUB, &mut self.idle, now));
    }

    /// How long a path's transport had enough to fill it since the start, and the rate that its policy
    /// grants: to be said before [`Steward::handle_traffic`].
    pub(super) fn handle_load(&mut self, path: usize, full: Duration, rate: Option<BitRate>) {
        if let Some(path) = self.paths.get_mut(path) {
            (path.full, path.rate) = (full, rate);
        }
    }

    /// What a path's shaper has counted since the start.
    pub(super) fn handle_traffic(&mut self, path: usize, traffic: Traffic, running: Duration) {
        let Some(path) = self.paths.get_mut(path) else {
            return;
        };
        let moved = traffic.bytes().saturating_sub(path.seen.bytes());
        path.seen = traffic;
        path.is_used |= moved > 0;
        path.account.charge(moved);
        let (since, bytes) = path.speed_from;
        let time = running.saturating_sub(since).as_millis();
        if time >= 1_000 {
            let moved = u128::from(traffic.bytes().saturating_sub(bytes));
            let speed = u64::try_from(moved * 1_000 / time).unwrap_or(u64::MAX);
            path.bytes_per_sec = (path.bytes_per_sec / 4).saturating_mul(3) + speed / 4;
            // what a link once carried says less with every minute
            let faded = path.best_bytes_per_sec - path.best_bytes_per_sec / FADE;
            path.best_bytes_per_sec = faded.max(path.carry(speed, time).unwrap_or(0));
            path.speed_from = (running, traffic.bytes());
        }
        self.site.charge(moved);
        if let Some(hub) = &mut self.hub {
            hub.charge(moved);
        }
    }

    /// Looks at the clocks; what the books came to that is worth telling.
    pub(super) fn handle_clocks(&mut self, now: Clocks) -> Vec<(String, Seen)> {
        let mut seen = vec![(SITE.to_owned(), self.site.look(now))];
        if let Some(hub) = &mut self.hub {
            seen.push((HUB.to_owned(), hub.look(now)));
        }
        for path in &mut self.paths {
            seen.push((path.name.clone(), path.account.look(now)));
        }
        seen.retain(|(_, seen)| *seen != Seen::Same);
        seen
    }

    /// What holds on a path.
    pub(super) fn decide(&self, path: usize, wall_ms: i64) -> Decision {
        let shared = self.decide_shared(wall_ms);
        match self.paths.get(path) {
            Some(path) => shared.and(&path.account.decide(wall_ms), &path.name),
            None => shared,
        }
    }

    fn decide_shared(&self, wall_ms: i64) -> Decision {
        let hub = self.hub.as_ref().map(|hub| hub.decide(wall_ms));
        match (hub, self.from_hub) {
            (Some(hub), FromHub::Tighten) => self.site.decide(wall_ms).and(&hub, HUB),
            (Some(hub), FromHub::Replace) => Decision::free().and(&hub, HUB),
            (_, FromHub::Ignore) | (None, FromHub::Tighten | FromHub::Replace) => {
                self.site.decide(wall_ms)
            }
        }
    }

    /// Bytes since the start up to which datagrams may leave by a path.
    pub(super) fn fence(&self, path: usize, wall_ms: i64) -> u64 {
        let Some(path) = self.paths.get(path) else {
            return 0;
        };
        // where nothing is held to an allowance, a disk that takes no counts holds up no records
        self.hard_left(path, wall_ms).map_or(u64::MAX, |left| {
            path.seen.bytes().saturating_add(left).min(path.written)
        })
    }

    /// What a path may still move by all allowances.
    fn hard_left(&self, path: &PathState, wall_ms: i64) -> Option<u64> {
        // what all share is given out in parts, anew at every look
        let paths = self.paths.len().max(1) as u64;
        let shared = self.decide_shared(wall_ms).hard_left;
        let own = path.account.decide(wall_ms).hard_left;
        shared.map(|left| left / paths).into_iter().chain(own).min()
    }

    /// Something stands at a path's fence, or will soon.
    pub(super) fn fence_met(&mut self, path: usize) {
        if let Some(path) = self.paths.get_mut(path) {
            path.is_used = true;
        }
    }

    /// What to write so that the fences can be moved; `None` while there is enough ahead.
    pub(super) fn draft(&mut self, now: Clocks) -> Option<Draft> {
        let smallest = |account: &Account| account.policy.allowance.map(|it| it.bytes.bytes());
        let shared = smallest(&self.site).into_iter();
        let shared = shared.chain(self.hub.as_ref().and_then(smallest)).min();
        let wants = |path: &PathState| {
            let ahead = path.ahead.bytes();
            let most = self
                .hard_left(path, now.wall_ms)
                .map_or(ahead, |left| left.min(ahead));
            path.is_used && path.written.saturating_sub(path.seen.bytes()) < most / 2
        };
        let wanting: Vec<bool> = self.paths.iter().map(wants).collect();
        if !wanting.contains(&true) {
            return None;
        }
        for (path, wants) in self.paths.iter_mut().zip(wanting) {
            let is_used_up = wants && now.running.saturating_sub(path.written_at) < SOON;
            let allowance = smallest(&path.account).into_iter().chain(shared).min();
            path.ahead.follow(path.bytes_per_sec, is_used_up, allowance);
        }
        Some(self.draft_with(|path| {
            let ahead = if path.is_used { path.ahead.bytes() } else { 0 };
            self.hard_left(path, now.wall_ms)
                .map_or(ahead, |left| left.min(ahead))
        }))
    }

    /// What to write when nothing will move any more.
    pub(super) fn last_draft(&self) -> Draft {
        self.draft_with(|_| 0)
    }

    /// A draft is on the disk.
    pub(super) fn written(&mut self, draft: &Draft, running: Duration) {
        for (path, written) in self.paths.iter_mut().zip(&draft.written) {
            (path.written, path.written_at) = (*written, running);
        }
    }

    fn draft_with(&self, ahead: impl Fn(&PathState) -> u64) -> Draft {
        let mut kept = Kept {
            paths: self.others.clone(),
            books: self.idle.entries(),
        };
        let mut keep = |name: String, book: Option<Book>| {
            if let Some(book) = book {
                kept.books.insert(name, book.entry());
            }
        };
        let all = self.paths.iter().map(&ahead).fold(0, u64::saturating_add);
        keep(SITE.to_owned(), self.site.keep(all));
        keep(
            HUB.to_owned(),
            self.hub.as_ref().and_then(|hub| hub.keep(all)),
        );
        for path in &self.paths {
            keep(path_book(&path.name), path.account.keep(ahead(path)));
        }
        for path in &self.paths {
            let mut traffic = path.total();
            // nobody knows which way it will go; together they are never too low
            traffic.sent = traffic.sent.saturating_add(ahead(path));
            kept.paths.insert(path.name.clone(), traffic);
        }
        let written = self.paths.iter();
        Draft {
            written: written
                .map(|path| path.seen.bytes().saturating_add(ahead(path)))
                .collect(),
            kept,
        }
    }

    /// Names of the paths, the preferred first.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.paths.iter().map(|path| path.name.as_str())
    }

    /// Bytes of a path since its counts began.
    pub(super) fn total(&self, path: usize) -> Traffic {
        self.paths
            .get(path)
            .map_or_else(Traffic::default, PathState::total)
    }

    /// Bytes a second of a path: of late, and the best of the last minutes while the link was the limit.
    pub(super) fn speed(&self, path: usize) -> (u64, u64) {
        let path = self.paths.get(path);
        path.map_or((0, 0), |path| (path.bytes_per_sec, path.best_bytes_per_sec))
    }

    /// How all allowances stand.
    pub(super) fn standings(&self) -> Vec<Standing> {
        let site = self.site.standing(SITE);
        let hub = self.hub.as_ref().and_then(|hub| hub.standing(HUB));
        let paths = self.paths.iter();
        let paths = paths.filter_map(|path| path.account.standing(&path.name));
        site.into_iter().chain(hub).chain(paths).collect()
    }
}

fn path_book(name: &str) -> String {
    format!("{PATH}{name}")
}

impl PathState {
    const fn total(&self) -> Traffic {
        Traffic {
            sent: self.before.sent.saturating_add(self.seen.sent),
            received: self.before.received.saturating_add(self.seen.received),
            sent_packets: self
                .before
                .sent_packets
                .saturating_add(self.seen.sent_packets),
            received_packets: self
                .before
                .received_packets
                .saturating_add(self.seen.received_packets),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::class::ClassSet;
    use shared::units::BitRate;

    use super::*;
    use crate::uplink::policy::{Limits, Zone};

    const NOON: i64 = 1_795_780_800_000;

    fn clocks(seconds: u64) -> Clocks {
        Clocks {
            wall_ms: NOON + i64::try_from(seconds * 1_000).unwrap(),
            running: Duration::from_secs(seconds),
            boot_id: 1,
        }
    }

    fn metered(bytes: u64) -> Policy {
        Policy {
            allowance: Some(Allowance {
                bytes: ByteSize(bytes),
                period: Period::Day,
                at_80: Action::CriticalOnly,
                at_100: Action::Stop,
            }),
            zone: Zone::utc(),
            ..Policy::default()
        }
    }

    fn rules(site: Policy, cell: Policy) -> Rules {
        Rules {
            site,
            from_hub: FromHub::Tighten,
            paths: vec![("wifi".into(), Policy::default()), ("cell".into(), cell)],
        }
    }

    fn sent(bytes: u64) -> Traffic {
        Traffic {
            sent: bytes,
            ..Traffic::default()
        }
    }

    /// Seconds of so many bytes, in which the path was full for so many milliseconds.
    fn run(steward: &mut Steward, seconds: &[(u64, u64)], rate: Option<BitRate>) -> u64 {
        let (mut bytes, mut full) = (0, Duration::ZERO);
        for (second, (more, millis)) in (1..).zip(seconds) {
            bytes += more;
            full += Duration::from_millis(*millis);
            steward.handle_load(0, full, rate);
            steward.handle_traffic(0, sent(bytes), Duration::from_secs(second));
        }
        steward.speed(0).1
    }

    #[test]
    fn only_a_path_that_is_full_tells_what_the_link_carries() {
        let new = || {
            let rules = rules(Policy::default(), Policy::default());
            Steward::new(rules, &Kept::default(), clocks(0))
        };
        let mut trickling = new();
        // dialling in vain, keep-alives, a record now and then
        assert_eq!(run(&mut trickling, &[(4_000, 0); 60], None), 0);
        assert!(trickling.speed(0).0 > 3_000, "of late it is told as it is");
        assert_eq!(run(&mut new(), &[(90_000, 600); 60], None), 0);
        // a burst into a queue, and then what the link carries
        let seconds = [(4_000, 0), (90_000, 950), (32_000, 1_000), (31_000, 990)];
        // a second fades it a little
        assert_eq!(run(&mut new(), &seconds, None), 32_000 - 32_000 / FADE);
        assert_eq!(run(&mut new(), &[(90_000, 1_000), (4_000, 0)], None), 0);
        // held by the policy, and by the link below the policy
        let rate = Some(BitRate::kbit(256));
        assert_eq!(run(&mut new(), &[(32_000, 1_000); 9], rate), 0);
        assert_eq!(run(&mut new(), &[(16_000, 1_000); 9], rate), 16_000);
    }

    #[test]
    fn a_path_counts_its_own_bytes_and_the_site_counts_all() {
        let rules = rules(metered(100_000_000), metered(10_000_000));
        let mut steward = Steward::new(rules, &Kept::default(), clocks(0));
        steward.handle_traffic(0, sent(50_000_000), Duration::ZERO);
        steward.handle_traffic(1, sent(9_000_000), Duration::ZERO);
        let used: Vec<_> = steward
            .standings()
            .into_iter()
            .map(|it| (it.of, it.used))
            .collect();
        assert_eq!(
            used,
            [
                ("site".to_owned(), 59_000_000),
                ("cell".to_owned(), 9_000_000)
            ]
        );
        assert_eq!(steward.decide(0, NOON).classes, ClassSet::ALL);
        let cell = steward.decide(1, NOON);
        assert_eq!(cell.classes, ClassSet::CRITICAL_ONLY);
        assert!(
            cell.reason.starts_with("cell: 90 % of 10MB a day used"),
            "{}",
            cell.reason
        );
        assert_eq!(steward.names().collect::<Vec<_>>(), ["wifi", "cell"]);
    }

    #[test]
    fn the_hub_tightens_replaces_or_is_ignored() {
        let slow = |kbit| Policy {
            limits: Limits {
                rate_up: Some(BitRate::kbit(kbit)),
                ..Limits::default()
            },
            ..Policy::default()
        };
        for (from_hub, pushed, expected) in [
            (FromHub::Tighten, 500, 100),
            (FromHub::Tighten, 50, 50),
            (FromHub::Replace, 500, 500),
            (FromHub::Ignore, 50, 100),
        ] {
            let rules = Rules {
                from_hub,
                ..rules(slow(100), Policy::default())
            };
            let mut steward = Steward::new(rules, &Kept::default(), clocks(0));
            steward.set_hub(Some(slow(pushed)), clocks(0));
            let rate = steward.decide(0, NOON).rate_up;
            assert_eq!(rate, Some(BitRate::kbit(expected)), "{from_hub:?}");
            steward.set_hub(None, clocks(1));
            assert_eq!(steward.decide(0, NOON).rate_up, Some(BitRate::kbit(100)));
        }
    }

    #[test]
    fn a_policy_that_is_withdrawn_and_pushed_again_is_no_new_allowance() {
        let rules = rules(Policy::default(), Policy::default());
        let mut steward = Steward::new(rules, &Kept::default(), clocks(0));
        steward.set_hub(Some(metered(1_000_000)), clocks(0));
        steward.handle_traffic(0, sent(900_000), Duration::ZERO);
        steward.set_hub(None, clocks(1));
        let draft = steward.last_draft();
        let mut steward = Steward::new(
            self::rules(Policy::default(), Policy::default()),
            &draft.kept,
            clocks(2),
        );
        steward.set_hub(Some(metered(2_000_000)), clocks(3));
        assert_eq!(steward.standings()[0].used, 900_000);
    }

    /// Used of the allowance that the test is about.
    fn used(steward: &Steward) -> u64 {
        steward.standings()[0].used
    }

    #[test]
    fn an_allowance_that_is_taken_out_and_put_back_goes_on() {
        let free = || rules(Policy::default(), Policy::default());
        let set = || rules(metered(1_000_000), Policy::default());
        let mut steward = Steward::new(set(), &Kept::default(), clocks(0));
        steward.handle_traffic(0, sent(700_000), Duration::ZERO);
        steward.set_rules(free(), clocks(1));
        assert!(steward.standings().is_empty());
        steward.set_rules(set(), clocks(6));
        assert_eq!(used(&steward), 700_000);
        // and over starts, with and without it
        steward.set_rules(free(), clocks(7));
        let kept = steward.last_draft().kept;
        let kept = Steward::new(free(), &kept, clocks(8)).last_draft().kept;
        assert_eq!(used(&Steward::new(set(), &kept, clocks(9))), 700_000);
        let tomorrow = clocks(13 * 3_600);
        assert_eq!(used(&Steward::new(set(), &kept, tomorrow)), 0);
    }

    #[test]
    fn a_pushed_policy_without_an_allowance_between_two_is_no_new_one() {
        let free = rules(Policy::default(), Policy::default());
        let mut steward = Steward::new(free, &Kept::default(), clocks(0));
        steward.set_hub(Some(metered(1_000_000)), clocks(0));
        steward.handle_traffic(0, sent(900_000), Duration::ZERO);
        steward.set_hub(Some(Policy::default()), clocks(1));
        steward.set_hub(Some(metered(1_000_000)), clocks(2));
        assert_eq!(used(&steward), 900_000);
    }

    #[test]
    fn a_path_that_is_not_configured_for_a_while_keeps_its_count() {
        let set = || rules(Policy::default(), metered(1_000_000));
        let mut steward = Steward::new(set(), &Kept::default(), clocks(0));
        steward.handle_traffic(1, sent(300_000), Duration::ZERO);
        let mut without = set();
        without.paths.truncate(1);
        let kept = steward.last_draft().kept;
        let kept = Steward::new(without, &kept, clocks(1)).last_draft().kept;
        assert_eq!(used(&Steward::new(set(), &kept, clocks(2))), 300_000);
    }

    #[test]
    fn after_damage_an_allowance_counts_as_used_up_until_its_next_period() {
        let set = || rules(metered(1_000_000), metered(2_000_000));
        let mut steward = Steward::new(set(), &Kept::default(), clocks(0));
        steward.set_hub(Some(metered(3_000_000)), clocks(0));
        steward.handle_lost_counts();
        assert_eq!(steward.lost(), ["site", "hub", "cell"]);
        let used: Vec<u64> = steward.standings().iter().map(|it| it.used).collect();
        assert_eq!(used, [1_000_000, 3_000_000, 2_000_000]);
        assert!(steward.decide(0, NOON).is_stopped());
        // the next start knows it, too
        let kept = Kept::decode(&steward.last_draft().kept.encode()).unwrap();
        let mut steward = Steward::new(set(), &kept, clocks(1));
        assert_eq!(steward.lost(), ["site", "cell"]);
        let tomorrow = clocks(13 * 3_600);
        let _seen = steward.handle_clocks(tomorrow);
        assert!(steward.lost().is_empty());
        assert!(!steward.decide(0, tomorrow.wall_ms).is_stopped());
    }

    #[test]
    fn nothing_leaves_before_it_is_written_down_nor_is_written_before_it_wants_to_leave() {
        let rules = rules(metered(100_000_000), Policy::default());
        let mut steward = Steward::new(rules, &Kept::default(), clocks(0));
        assert_eq!(steward.draft(clocks(0)), None);
        assert_eq!(steward.fence(0, NOON), 0);
        steward.fence_met(0);
        let draft = steward.draft(clocks(5)).unwrap();
        steward.written(&draft, Duration::from_secs(5));
        assert_eq!(
            (steward.fence(0, NOON), steward.fence(1, NOON)),
            (64 << 10, 0)
        );
        assert_eq!(steward.draft(clocks(6)), None);
        steward.handle_traffic(0, sent(50 << 10), Duration::from_secs(1));
        assert!(steward.draft(clocks(6)).is_some());
    }

    #[test]
    fn without_an_allowance_a_disk_that_takes_nothing_holds_nothing_up() {
        let rules = rules(Policy::default(), Policy::default());
        let mut steward = Steward::new(rules, &Kept::default(), clocks(0));
        assert_eq!(steward.fence(0, NOON), u64::MAX);
        assert_eq!(steward.draft(clocks(0)), None);
        steward.handle_traffic(0, sent(1_000), Duration::ZERO);
        assert!(steward.draft(clocks(1)).is_some());
    }

    #[test]
    fn starting_over_and_over_takes_a_little_and_nothing_beyond_the_end() {
        let mut kept = Kept::default();
        for _ in 0..1_000 {
            let rules = rules(metered(10_000_000), Policy::default());
            let mut steward = Steward::new(rules, &kept, clocks(0));
            steward.fence_met(0);
            if let Some(draft) = steward.draft(clocks(1)) {
                kept = draft.kept;
            }
        }
        let rules = rules(metered(10_000_000), Policy::default());
        let used = Steward::new(rules, &kept, clocks(0)).standings()[0].used;
        assert!((9_000_000..=10_000_000).contains(&used), "{used}");
    }

    #[test]
    fn a_day_that_is_used_up_stops_the_site_until_the_next() {
        let rules = rules(metered(1_000_000), Policy::default());
        let mut steward = Steward::new(rules, &Kept::default(), clocks(0));
        steward.handle_traffic(0, sent(999_000), Duration::ZERO);
        assert!(steward.decide(0, NOON).is_stopped());
        // 2026-11-28 00:00 is twelve hours later
        let tomorrow = clocks(12 * 3_600);
        assert_eq!(
            steward.handle_clocks(tomorrow),
            [("site".to_owned(), Seen::Renewed)]
        );
        assert!(!steward.decide(0, tomorrow.wall_ms).is_stopped());
    }

    proptest! {
        /// A process that sends as much as its fence lets it, is killed at any time and starts again.
        #[test]
        fn however_often_it_is_killed_the_allowance_holds(
            steps in prop::collection::vec((0_u64..900_000, 0_u8..10), 1..80),
        ) {
            const ALL: u64 = 5_000_000;
            let mut kept = Kept::default();
            let mut really = 0_u64;
            let mut now = 0;
            let mut steward = Steward::new(rules(metered(ALL), Policy::default()), &kept, clocks(now));
            let mut since_start = 0_u64;
            for (bytes, event) in steps {
                now += 1;
                if event == 0 {
                    steward = Steward::new(rules(metered(ALL), Policy::default()), &kept, clocks(now));
                    since_start = 0;
                } else if event == 1 {
                    steward.handle_traffic(0, sent(since_start), Duration::from_secs(now));
                    let draft = steward.last_draft();
                    kept = draft.kept;
                    steward = Steward::new(rules(metered(ALL), Policy::default()), &kept, clocks(now));
                    since_start = 0;
                    prop_assert!(steward.total(0).bytes() >= really);
                }
                steward.fence_met(0);
                if let Some(draft) = steward.draft(clocks(now)) {
                    kept = draft.kept.clone();
                    steward.written(&draft, Duration::from_secs(now));
                }
                let moved = bytes.min(steward.fence(0, NOON).saturating_sub(since_start));
                since_start += moved;
                really += moved;
                // the counters are read only now and then
                if event > 3 {
                    steward.handle_traffic(0, sent(since_start), Duration::from_secs(now));
                }
                prop_assert!(really <= ALL, "{}", really);
                prop_assert!(kept.paths.get("wifi").map_or(0, Traffic::bytes) >= really);
            }
        }
    }
}
