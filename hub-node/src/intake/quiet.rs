//! Keeps what clients can make the hub log from filling its log.

use std::collections::BTreeMap;
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

/// Sites whose sessions take over from each other: a copied disk, or a certificate on two machines.
#[derive(Debug)]
pub(super) struct Takeovers<K>(BTreeMap<K, Vec<Duration>>);

/// Takeovers within [`AGAIN_AFTER`] that one machine does not come to.
const MANY: usize = 3;
/// Sites that are watched at once.
const MAX_WATCHED: usize = 1_024;

impl<K> Default for Takeovers<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Takeovers<K> {
    /// A site came with another incarnation than its last one; true when that is too often for one
    /// machine.
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
        if times.len() <= MANY {
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
    fn two_machines_are_noticed_and_a_restored_site_is_not() {
        let mut takeovers = Takeovers::default();
        for second in [0, 1, 2] {
            assert!(!takeovers.note("a", at(second)));
        }
        assert!(!takeovers.note("b", at(3)));
        assert!(takeovers.note("a", at(4)));
        assert!(takeovers.note("a", at(5)));
        assert!(!takeovers.note("a", at(200)));
    }
}
