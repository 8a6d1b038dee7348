//! Which sites may connect, and what the hub saw of them last.
//!
//! The site's name comes from its certificate; the rules here only narrow down what a valid certificate
//! may do. The register is bounded: beyond [`MAX_KNOWN_SITES`] the site that was seen longest ago and is
//! not connected is forgotten (its checkpoints live in Kafka and are not touched).

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde::Serialize;
use shared::ids::{Incarnation, SiteId, TopicName};

/// Sites whose last words are kept for `status` and metrics.
const MAX_KNOWN_SITES: usize = 50_000;

/// A name, or a prefix followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// Wraps a pattern; every text is one.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// True when the name is the pattern, or starts with what stands before its `*`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == self.0,
        }
    }
}

/// What sites may do.
#[derive(Debug, Clone)]
pub struct SiteRules {
    /// Sites that may connect.
    pub allowed: Vec<NamePattern>,
    /// Topics that any of them may write.
    pub topics: Vec<NamePattern>,
}

impl Default for SiteRules {
    fn default() -> Self {
        Self {
            allowed: vec![NamePattern::new("*")],
            topics: vec![NamePattern::new("*")],
        }
    }
}

impl SiteRules {
    /// May this site connect at all?
    #[must_use]
    pub fn admits(&self, site: &SiteId) -> bool {
        self.allowed
            .iter()
            .any(|pattern| pattern.matches(site.as_str()))
    }

    /// May sites write this topic?
    #[must_use]
    pub fn allows_topic(&self, topic: &TopicName) -> bool {
        self.topics
            .iter()
            .any(|pattern| pattern.matches(topic.as_str()))
    }
}

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
}

/// The sites that this hub process has seen.
#[derive(Debug, Default)]
pub struct Register {
    sites: Mutex<BTreeMap<SiteId, SiteStatus>>,
}

impl Register {
    /// A session of the site opened.
    pub fn connected(&self, site: &SiteId, incarnation: Incarnation, wall_ms: i64) {
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
        });
        status.sessions += 1;
        status.changed_ms = wall_ms;
        if status.incarnation != text {
            status.incarnation = text;
            status.incarnation_changes += 1;
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
    fn a_pattern_is_a_name_or_a_prefix() {
        assert!(NamePattern::new("shop-*").matches("shop-7"));
        assert!(NamePattern::new("*").matches("anything"));
        assert!(!NamePattern::new("shop-7").matches("shop-77"));
    }

    #[test]
    fn a_changed_incarnation_is_counted() {
        let register = Register::default();
        for incarnation in [1, 1, 2] {
            register.connected(&site("a"), Incarnation(incarnation), 0);
            register.disconnected(&site("a"), 1);
        }
        assert_eq!(register.snapshot()["a"].incarnation_changes, 1);
        assert_eq!(register.open_sessions(), 0);
    }
}
