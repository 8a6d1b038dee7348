//! `[sites]`: who may connect, and with what.

use shared::config::Pattern;

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
}

impl SitesConfig {
    /// The rule of a site that may connect; `None`: it may not.
    #[must_use]
    pub fn rule(&self, site: &str) -> Option<&SiteRule> {
        let rule = self.rules.iter().find(|rule| rule.pattern.matches(site));
        rule.filter(|rule| rule.allow)
    }
}

impl SiteRule {
    /// Whether a site under this rule may write a topic.
    #[must_use]
    pub fn allows_topic(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| pattern.matches(topic))
    }
}
