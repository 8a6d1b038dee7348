//! Several ways out: asks [`Paths`] which to use, and looks beside a session for one that should be used
//! instead: the next one when the hub is not heard any more, and a better one when it works again.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::transport::Connection;
use tokio::time::Instant;
use tracing::{debug, info};

use super::connect::Connector;
use super::paths::{Paths, Step};
use super::watch::Better;
use super::{Policies, UplinkStats};

/// Between looks.
const LOOK: Duration = Duration::from_millis(500);
/// A hub that is not heard for so long more is looked for on another path.
const FAIL_OVER: Duration = Duration::from_millis(1_500);

/// The ways out of a site and how they do.
#[derive(Debug)]
pub(super) struct Roam {
    origin: Instant,
    paths: Mutex<Paths>,
    count: usize,
}

impl Roam {
    pub(super) fn new(count: usize) -> Self {
        Self {
            origin: Instant::now(),
            paths: Mutex::new(Paths::new(count)),
            count,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The path to dial on, as soon as one may be used. A site with one path only waits for its policy.
    pub(super) async fn choose(
        &self,
        connector: &Connector,
        policies: &Policies,
        stats: &UplinkStats,
    ) -> usize {
        if self.count == 1 {
            policies.allowed(0, stats).await;
            return 0;
        }
        self.lock().alone();
        loop {
            let now = self.now();
            self.refresh(connector, policies, now);
            let step = self.lock().poll(now);
            match step {
                Some(Step::Dial(path) | Step::Move(path)) => return path,
                Some(Step::Probe(_) | Step::Leave) | None => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A connection is up on the path.
    pub(super) fn connected(&self, path: usize) {
        self.lock().connected(path, self.now());
    }

    /// None came about on the path, or the one there was lost.
    pub(super) fn failed(&self, path: usize) {
        self.lock().failed(path, self.now());
    }

    /// The session on the path ended in order.
    pub(super) fn ended(&self, path: usize) {
        self.lock().ended(path);
    }

    /// A path may be used when its policy lets something leave and its address or interface is there; when none
    /// is, any that its policy allows: the attempt says what is missing.
    fn refresh(&self, connector: &Connector, policies: &Policies, now: Duration) {
        let allowed: Vec<usize> = (0..self.count)
            .filter(|path| !policies.decision(*path).is_stopped())
            .collect();
        let present: Vec<usize> = allowed
            .iter()
            .copied()
            .filter(|path| connector.has_path(*path))
            .collect();
        let usable = if present.is_empty() { allowed } else { present };
        let mut paths = self.lock();
        for path in 0..self.count {
            paths.set_usable(path, usable.contains(&path), now);
        }
    }

    /// Says in the status by which path the session goes, and why not by a better one. A site with one path says
    /// nothing.
    pub(super) fn tell(
        &self,
        connector: &Connector,
        policies: &Policies,
        stats: &UplinkStats,
        current: usize,
    ) {
        if self.count == 1 {
            return;
        }
        let view = policies.view();
        let name = |path: usize| view.paths.get(path).map_or("", |path| path.name.as_str());
        let why_not = |path: usize| {
            let decision = policies.decision(path);
            let what = if decision.is_stopped() {
                format!("is closed by its policy: {}", decision.reason)
            } else if !connector.has_path(path) {
                "is not there".to_owned()
            } else if self.lock().is_good(path) {
                "answers again and must prove itself".to_owned()
            } else {
                "does not answer".to_owned()
            };
            format!("{} {what}", name(path))
        };
        let reason = match current {
            0 => "the first choice".to_owned(),
            _ => (0..current).map(why_not).collect::<Vec<_>>().join("; "),
        };
        stats.goes_by(name(current), reason);
    }

    /// Ends with a connection on another path that should take the session's place.
    pub(super) async fn better(
        &self,
        connector: &Connector,
        connection: &Connection,
        policies: &Policies,
        stats: &UplinkStats,
        current: usize,
    ) -> Better {
        if self.count == 1 {
            std::future::pending::<()>().await;
        }
        let hub = connection.remote_address();
        let mut silent_since = None;
        let mut is_left = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.now();
            self.refresh(connector, policies, now);
            self.tell(connector, policies, stats, current);
            let is_silent = stats.silent.load(Ordering::Relaxed);
            if is_silent {
                let since = *silent_since.get_or_insert(now);
                if !is_left && now >= since + FAIL_OVER {
                    is_left = true;
                    self.lock().failed(current, now);
                }
            } else {
                silent_since = None;
                if std::mem::take(&mut is_left) {
                    self.lock().stays(current);
                }
            }
            let step = self.lock().poll(now);
            match step {
                // none is better than the one whose hub is not heard
                Some(Step::Dial(path) | Step::Move(path)) if path == current => {
                    (silent_since, is_left) = (None, false);
                    self.lock().stays(current);
                }
                Some(Step::Dial(path) | Step::Move(path)) => {
                    info!(from = current, to = path, "Trying another path");
                    match connector.dial_on(path, hub).await {
                        Ok(connection) => {
                            return Better {
                                connection,
                                other_hub: None,
                                other_path: Some(path),
                            };
                        }
                        Err(error) => {
                            debug!(path, %error, "Path does not work");
                            let mut paths = self.lock();
                            paths.failed(path, self.now());
                            // while the hub is not heard the next one follows
                            if !is_left {
                                paths.stays(current);
                            }
                        }
                    }
                }
                Some(Step::Probe(path)) => {
                    let is_good = connector.is_there(path, hub).await;
                    debug!(path, is_good, "Looked after a better path");
                    self.lock().probed(path, is_good, self.now());
                }
                // the session hears of it from its policy
                Some(Step::Leave) | None => {}
            }
        }
    }
}
