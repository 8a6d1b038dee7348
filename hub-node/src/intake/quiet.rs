//! Keeps what clients can make the hub log from filling its log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The same is told again after this long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Things told in that time; beyond, nothing is, because somebody is trying many addresses.
const MAX_TOLD: usize = 256;

/// What was told lately.
#[derive(Debug)]
pub(super) struct Quiet<K>(BTreeMap<K, Duration>);

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Quiet<K> {
    /// Whether to tell it.
    pub(super) fn may_tell(&mut self, what: K, now: Duration) -> bool {
        self.0.retain(|_, told| now < *told + AGAIN_AFTER);
        if self.0.len() >= MAX_TOLD || self.0.contains_key(&what) {
            return false;
        }
        self.0.insert(what, now);
        true
    }
}

/// Sites whose incarnations take turns: a copied disk, or a certificate on two machines.
///
/// A site takes a new incarnation at times, and may come back to an old one when a store is restored. Back and forth
/// and back again come only two.
#[derive(Debug)]
pub(super) struct Takeovers<K>(BTreeMap<K, VecDeque<(Duration, String)>>);

/// Changes are remembered for so long: who is turned out comes back after a minute at most.
const MEMORY: Duration = Duration::from_secs(600);
/// Incarnations that came back within [`MEMORY`]; fewer are stores that were restored.
const MANY_RETURNS: usize = 3;
/// Changes of a site that are remembered.
const MAX_CHANGES: usize = 8;
/// Sites that are watched at once.
const MAX_WATCHED: usize = 1_024;

impl<K> Default for Takeovers<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Takeovers<K> {
    /// A site came with another incarnation than its last one; true when these are two sites.
    pub(super) fn note(&mut self, site: K, from: &str, to: &str, now: Duration) -> bool {
        self.0.retain(|_, changes| {
            changes.retain(|(at, _)| now < *at + MEMORY);
            !changes.is_empty()
        });
        if self.0.len() >= MAX_WATCHED && !self.0.contains_key(&site) {
            return false;
        }
        let changes = self.0.entry(site).or_default();
        if changes.is_empty() {
            changes.push_back((now, from.to_owned()));
        }
        changes.push_back((now, to.to_owned()));
        if changes.len() > MAX_CHANGES {
            changes.pop_front();
        }
        let different: BTreeSet<&str> = changes.iter().map(|(_, name)| name.as_str()).collect();
        changes.len() - different.len() >= MANY_RETURNS
    }
}

/// Sites whose sessions are superseded more often than one site does it that moves between its paths.
#[derive(Debug)]
pub(super) struct Superseded<K>(BTreeMap<K, Vec<Duration>>);

/// Times within [`AGAIN_AFTER`].
const MANY_SUPERSEDED: usize = 6;

impl<K> Default for Superseded<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Superseded<K> {
    /// A session of the site made room for another; true when that is too often for one site.
    pub(super) fn note(&mut self, site: K, now: Duration) -> bool {
        self.0.retain(|_, times| {
            times.retain(|at| now < *at + AGAIN_AFTER);
            !times.is_empty()
        });
        if self.0.len() >= MAX_WATCHED && !self.0.contains_key(&site) {
            return false;
        }
        let times = self.0.entry(site).or_default();
        times.push(now);
        if times.len() <= MANY_SUPERSEDED {
            return false;
        }
        // counted anew from here: a site that does it without end takes no more memory
        times.remove(0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_same_is_told_once_a_minute() {
        let mut quiet = Quiet::default();
        assert!(quiet.may_tell("a", at(0)));
        assert!(!quiet.may_tell("a", at(59)));
        assert!(quiet.may_tell("b", at(59)));
        assert!(quiet.may_tell("a", at(60)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut quiet = Quiet::default();
        let told = (0..10_000).filter(|n| quiet.may_tell(*n, at(1))).count();
        assert_eq!(told, MAX_TOLD);
        assert!(quiet.may_tell(10_000, at(61)));
    }

    #[test]
    fn incarnations_that_take_turns_are_two_sites() {
        let mut takeovers = Takeovers::default();
        // each waits its half minute, and comes back
        let turns = [("x", "y"), ("y", "x"), ("x", "y"), ("y", "x")];
        let noted: Vec<bool> = (0..)
            .zip(turns)
            .map(|(turn, (from, to))| takeovers.note("a", from, to, at(turn * 30)))
            .collect();
        assert_eq!(noted, [false, false, false, true]);
        assert!(!takeovers.note("b", "x", "y", at(130)));
        assert!(!takeovers.note("a", "x", "y", at(2_000)), "forgotten");
        for turn in 0..100 {
            takeovers.note("a", "x", "y", at(2_000 + turn));
        }
        assert_eq!(takeovers.0["a"].len(), MAX_CHANGES);
    }

    #[test]
    fn a_site_that_is_restored_is_one_site() {
        let mut takeovers = Takeovers::default();
        // a backup of x comes back, and takes a new incarnation, as does the backup of that one
        let changes = [("x", "y"), ("y", "x"), ("x", "z"), ("z", "y"), ("y", "w")];
        for (second, (from, to)) in (0..).zip(changes) {
            assert!(!takeovers.note("a", from, to, at(second)), "{to}");
        }
    }

    #[test]
    fn a_site_is_superseded_a_few_times_a_minute_at_most() {
        let mut superseded = Superseded::default();
        for second in 0..6 {
            assert!(!superseded.note("a", at(second)));
        }
        assert!(superseded.note("a", at(7)));
        assert!(superseded.note("a", at(8)));
        assert!(!superseded.note("a", at(200)));
    }
}
