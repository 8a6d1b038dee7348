//! Whether every lane can commit, and what keeps one from it: since when, and what was said last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The cluster's own words may be among the error's.
const MAX_ERROR_CHARS: usize = 600;

/// What keeps a lane, or all of them, from committing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Wall clock when it began, ms since the epoch.
    pub since_ms: i64,
    /// The last error.
    pub error: String,
}

/// All lanes' health: ready while no lane is in trouble. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    troubled: watch::Sender<usize>,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// The cluster has not answered yet, and no lane has started.
    cluster: Option<Trouble>,
    lanes: BTreeMap<u32, Trouble>,
}

impl Health {
    /// How many lanes are in trouble.
    pub(crate) fn subscribe(&self) -> watch::Receiver<usize> {
        self.0.troubled.subscribe()
    }

    /// Why no lane has started: `None` before the cluster was asked, and once it has answered.
    #[must_use]
    pub fn waits_for(&self) -> Option<Trouble> {
        self.0.lock().cluster.clone()
    }

    /// The lanes that are in trouble.
    #[must_use]
    pub fn troubles(&self) -> BTreeMap<u32, Trouble> {
        self.0.lock().lanes.clone()
    }

    /// The cluster did not answer when it was asked first.
    pub(crate) fn wait(&self, error: &str, now_ms: i64) {
        note(&mut self.0.lock().cluster, error, now_ms);
    }

    /// It answered.
    pub(crate) fn arrived(&self) {
        self.0.lock().cluster = None;
    }

    pub(crate) fn lane(&self, lane: u32) -> LaneHealth {
        LaneHealth {
            all: self.clone(),
            lane,
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, told: &Told) {
        let count = told.lanes.len();
        self.troubled.send_if_modified(|held| {
            let is_news = *held != count;
            *held = count;
            is_news
        });
    }
}

/// One lane's word on it.
#[derive(Debug)]
pub(crate) struct LaneHealth {
    all: Health,
    lane: u32,
}

impl LaneHealth {
    /// The lane commits.
    pub(crate) fn well(&mut self) {
        let mut told = self.all.0.lock();
        told.lanes.remove(&self.lane);
        self.all.0.count(&told);
    }

    /// Whether it was said not to.
    pub(crate) fn is_troubled(&self) -> bool {
        self.all.0.lock().lanes.contains_key(&self.lane)
    }

    /// The lane does not: true when that is news.
    pub(crate) fn trouble(&mut self, error: &str, now_ms: i64) -> bool {
        let mut told = self.all.0.lock();
        let is_news = !told.lanes.contains_key(&self.lane);
        let mut held = told.lanes.remove(&self.lane);
        note(&mut held, error, now_ms);
        told.lanes.extend(held.map(|trouble| (self.lane, trouble)));
        self.all.0.count(&told);
        is_news
    }
}

/// The last error, since the first.
fn note(held: &mut Option<Trouble>, error: &str, now_ms: i64) {
    let since_ms = held.as_ref().map_or(now_ms, |trouble| trouble.since_ms);
    *held = Some(Trouble {
        since_ms,
        error: error.chars().take(MAX_ERROR_CHARS).collect(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_in_trouble_tells_since_when_and_the_last_error() {
        let health = Health::default();
        let troubled = health.subscribe();
        let mut lane = health.lane(2);
        assert!(lane.trouble("no answer", 5));
        assert!(!lane.trouble("authentication failed", 9));
        let expected = Trouble {
            since_ms: 5,
            error: "authentication failed".to_owned(),
        };
        assert_eq!(health.troubles(), BTreeMap::from([(2, expected)]));
        assert_eq!(*troubled.borrow(), 1);
        lane.well();
        assert!(health.troubles().is_empty());
        assert_eq!(*troubled.borrow(), 0);
    }

    #[test]
    fn a_cluster_that_is_waited_for_is_forgotten_once_it_answers() {
        let health = Health::default();
        assert_eq!(health.waits_for(), None);
        health.wait("no answer", 1);
        health.wait("refused", 2);
        let trouble = health.waits_for().unwrap();
        assert_eq!((trouble.since_ms, trouble.error.as_str()), (1, "refused"));
        health.arrived();
        assert_eq!(health.waits_for(), None);
    }
}
