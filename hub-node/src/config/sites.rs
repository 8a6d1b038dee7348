//! `[sites]`: who may connect, and with what.

use std::sync::Arc;

use shared::config::Pattern;
use shared::units::ByteSize;

/// `[sites]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitesConfig {
    /// `[[sites.rule]]`: the first whose pattern matches the site's name decides; none: refused.
    pub rules: Vec<SiteRule>,
}

/// One `[[sites.rule]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRule {
    /// Site names that it is for.
    pub pattern: Pattern,
    /// Whether these sites may connect.
    pub allow: bool,
    /// Topics that they may write.
    pub topics: Vec<Pattern>,
    /// Bytes of data streams a second that each of them may send.
    pub ingress: Option<ByteSize>,
    /// What their links may be used for: TOML that is sent to them as it is.
    pub policy: Option<Arc<str>>,
}

impl SitesConfig {
    /// The rule of a site that may connect; `None`: it may not.
    #[must_use]
    pub fn rule(&self, site: &str) -> Option<&SiteRule> {
        let rule = self.rules.iter().find(|rule| rule.pattern.matches(site));
        rule.filter(|rule| rule.allow)
    }

    /// The link policy for a site, when its rule has one.
    #[must_use]
    pub fn policy_for(&self, site: &str) -> Option<Arc<str>> {
        self.rule(site)?.policy.clone()
    }

    /// Bytes a second that a site may send.
    #[must_use]
    pub fn ingress_of(&self, site: &str) -> Option<u64> {
        Some(self.rule(site)?.ingress?.bytes())
    }
}

impl SiteRule {
    /// Whether a site under this rule may write a topic.
    #[must_use]
    pub fn allows_topic(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| pattern.matches(topic))
    }
}
