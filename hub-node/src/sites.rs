//! What the hub saw of each site last.
//!
//! Who may connect stands in the configuration (`[sites]`). The register is bounded: beyond [`MAX_KNOWN_SITES`] the site that was seen longest ago and is
//! not connected is forgotten (its checkpoints live in Kafka and are not touched).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use shared::ids::{Incarnation, SiteId};

/// Sites whose last words are kept for `status` and metrics.
const MAX_KNOWN_SITES: usize = 50_000;

/// So long a site is said to be two after it was seen.
const TWINS_MEMORY: Duration = Duration::from_secs(600);
/// Topics of a site that are named as refused.
const MAX_NAMED: usize = 10;

/// One site as the hub knows it.
#[derive(Debug, Clone, Serialize)]
pub struct SiteStatus {
    /// Sessions of it that are open: 0 or 1, for a moment 2 when one takes over.
    pub sessions: u32,
    /// The incarnation that it named last, as hexadecimal digits.
    pub incarnation: String,
    /// Wall clock of the last connect or disconnect, ms since the epoch.
    pub changed_ms: i64,
    /// How often it changed its incarnation while this hub ran: a restored or copied store.
    pub incarnation_changes: u64,
    /// The one that it named before, in this hub's time.
    #[serde(skip)]
    previous: Option<String>,
    /// When it was last found to be two sites, by the running clock.
    #[serde(skip)]
    twins_at: Option<Duration>,
    /// Topics that the session wanted to send and may not; at most [`MAX_NAMED`].
    #[serde(skip)]
    refused: Vec<String>,
    /// How many there are beside them.
    #[serde(skip)]
    refused_more: usize,
    /// Bytes of data streams in sessions that have ended.
    #[serde(skip)]
    ended_bytes: u64,
    /// The same of the session that is open, or was last.
    #[serde(skip)]
    session_bytes: Arc<AtomicU64>,
}

impl SiteStatus {
    /// Bytes of data streams that it sent since this hub started.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.ended_bytes + self.session_bytes.load(Ordering::Relaxed)
    }

    /// What a person should look after, at this time of the running clock.
    #[must_use]
    pub fn problems(&self, now: Duration) -> Vec<String> {
        let refused = (!self.refused.is_empty()).then(|| {
            let named = self.refused.join(", ");
            let more = match self.refused_more {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("topics refused, no `topics` of its rule matches: {named}{more}")
        });
        let is_recent = |at: &Duration| now < *at + TWINS_MEMORY;
        let twins = self.twins_at.filter(is_recent).map(|_| {
            let (one, other) = self.twins();
            format!(
                "two sites seem to have its certificate: incarnations {one} and {other} take over from each \
                 other; give each site a certificate of its own"
            )
        });
        refused.into_iter().chain(twins).collect()
    }

    /// The last two incarnations; one twice where no other was seen.
    fn twins(&self) -> (String, String) {
        let other = self.previous.as_ref().unwrap_or(&self.incarnation);
        (self.incarnation.clone(), other.clone())
    }
}

/// The sites that this hub process has seen.
#[derive(Debug, Default)]
pub struct Register {
    sites: Mutex<BTreeMap<SiteId, SiteStatus>>,
}

impl Register {
    /// A session of the site opened, which counts its bytes. The incarnation that the site named before, when
    /// that was another one.
    pub fn connected(
        &self,
        site: &SiteId,
        incarnation: Incarnation,
        bytes: Arc<AtomicU64>,
        wall_ms: i64,
    ) -> Option<String> {
        let mut sites = self.lock();
        if !sites.contains_key(site.as_str()) && sites.len() >= MAX_KNOWN_SITES {
            forget_oldest(&mut sites);
        }
        let text = incarnation.to_string();
        let status = sites.entry(site.clone()).or_insert_with(|| SiteStatus {
            sessions: 0,
            incarnation: text.clone(),
            changed_ms: wall_ms,
            incarnation_changes: 0,
            previous: None,
            twins_at: None,
            refused: Vec::new(),
            refused_more: 0,
            ended_bytes: 0,
            session_bytes: Arc::default(),
        });
        status.ended_bytes = status.received_bytes();
        status.session_bytes = bytes;
        status.sessions += 1;
        // the session says what it is refused
        (status.refused, status.refused_more) = (Vec::new(), 0);
        status.changed_ms = wall_ms;
        if status.incarnation == text {
            return None;
        }
        status.incarnation_changes += 1;
        let before = std::mem::replace(&mut status.incarnation, text);
        status.previous = Some(before.clone());
        Some(before)
    }

    /// The site was found to be two; their incarnations, when it is known.
    pub fn twins(&self, site: &SiteId, now: Duration) -> Option<(String, String)> {
        let mut sites = self.lock();
        let status = sites.get_mut(site.as_str())?;
        status.twins_at = Some(now);
        Some(status.twins())
    }

    /// The site's session may not send these topics.
    pub fn refused<'a>(&self, site: &SiteId, mut topics: impl Iterator<Item = &'a str>) {
        if let Some(status) = self.lock().get_mut(site.as_str()) {
            let named = topics.by_ref().take(MAX_NAMED);
            status.refused = named.map(ToOwned::to_owned).collect();
            status.refused_more = topics.count();
        }
    }

    /// A session of the site ended.
    pub fn disconnected(&self, site: &SiteId, wall_ms: i64) {
        if let Some(status) = self.lock().get_mut(site.as_str()) {
            status.sessions = status.sessions.saturating_sub(1);
            status.changed_ms = wall_ms;
        }
    }

    /// All sites by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<SiteId, SiteStatus> {
        self.lock().clone()
    }

    /// Sessions that are open.
    #[must_use]
    pub fn open_sessions(&self) -> u64 {
        self.lock()
            .values()
            .map(|status| u64::from(status.sessions))
            .sum()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SiteId, SiteStatus>> {
        self.sites
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn forget_oldest(sites: &mut BTreeMap<SiteId, SiteStatus>) {
    let oldest = sites
        .iter()
        .filter(|(_, status)| status.sessions == 0)
        .min_by_key(|(_, status)| status.changed_ms)
        .map(|(site, _)| site.clone());
    if let Some(site) = oldest {
        sites.remove(site.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str) -> SiteId {
        SiteId::new(name).unwrap()
    }

    #[test]
    fn refused_topics_are_named_until_a_session_begins_or_they_are_allowed() {
        let register = Register::default();
        let connect = || {
            let _same = register.connected(&site("a"), Incarnation(1), Arc::default(), 0);
        };
        let problems = || register.snapshot()["a"].problems(Duration::ZERO);
        connect();
        assert!(problems().is_empty());
        let names: Vec<String> = (0..12).map(|number| format!("t{number:02}")).collect();
        register.refused(&site("a"), names.iter().map(String::as_str));
        let [problem] = &problems()[..] else {
            panic!("one problem");
        };
        assert!(problem.ends_with("t09 and 2 more"), "{problem}");
        register.refused(&site("a"), std::iter::empty());
        assert!(problems().is_empty());
        register.refused(&site("a"), ["t"].into_iter());
        connect();
        assert!(problems().is_empty());
    }

    #[test]
    fn two_sites_with_one_certificate_are_a_problem_for_a_while() {
        let register = Register::default();
        let now = Duration::from_secs(1_000);
        for incarnation in [1, 2, 1] {
            let _before =
                register.connected(&site("a"), Incarnation(incarnation), Arc::default(), 0);
        }
        let [one, two] = [1, 2].map(|it| Incarnation(it).to_string());
        assert_eq!(
            register.twins(&site("a"), now),
            Some((one.clone(), two.clone()))
        );
        assert_eq!(register.twins(&site("b"), now), None);
        let status = &register.snapshot()["a"];
        let problems = status.problems(now);
        assert!(problems.len() == 1 && problems[0].contains(&one) && problems[0].contains(&two));
        assert!(status.problems(now + TWINS_MEMORY).is_empty());
    }

    #[test]
    fn a_changed_incarnation_is_counted() {
        let register = Register::default();
        for incarnation in [1, 1, 2] {
            let _before =
                register.connected(&site("a"), Incarnation(incarnation), Arc::new(10.into()), 0);
            register.disconnected(&site("a"), 1);
        }
        assert_eq!(register.snapshot()["a"].incarnation_changes, 1);
        assert_eq!(register.snapshot()["a"].received_bytes(), 30);
        assert_eq!(register.open_sessions(), 0);
    }
}
