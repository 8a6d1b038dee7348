//! Which topics there may be, and by which rules. Plain code.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use shared::ids::TopicName;

use crate::store::{OnFull, TopicRules};

/// Partitions of a topic that is created on demand: client test suites expect 4 (tansu's findings).
pub const DEFAULT_PARTITIONS: NonZeroU32 = NonZeroU32::new(4).expect("4 is not 0");
/// Kafka's `message.max.bytes`: no client at its defaults sends a larger batch.
pub const DEFAULT_MAX_BATCH_BYTES: usize = 1_048_588;
/// Topics per site; each costs memory in the store and a line per metric.
pub const DEFAULT_MAX_TOPICS: usize = 1000;

/// A topic name with `*` for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern(Box<str>);

impl NamePattern {
    /// Any text is a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// True when the whole name fits the pattern.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return name == &*self.0;
        };
        let Some(mut name) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or("");
        // the leftmost place for each part leaves the most for those after it
        for part in parts {
            let Some((_, after)) = name.split_once(part) else {
                return false;
            };
            name = after;
        }
        name.ends_with(last)
    }
}

/// A topic that the config file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredTopic {
    /// Its partitions; fewer than it has are ignored.
    pub partitions: NonZeroU32,
    /// Its rules.
    pub rules: TopicRules,
}

/// Which topics there may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPolicy {
    /// A producer may create a topic by asking for it.
    pub auto_create: bool,
    /// What it may be called; empty: any name but those that start with `__`, which are Kafka's own.
    pub allowed: Vec<NamePattern>,
    /// Partitions of a topic created on demand.
    pub partitions: NonZeroU32,
    /// Rules of every topic that is not declared.
    pub rules: TopicRules,
    /// Topics by name that exist from the start.
    pub declared: BTreeMap<TopicName, DeclaredTopic>,
    /// No topic is created on demand beyond this number of all topics.
    pub max_topics: usize,
}

impl Default for TopicPolicy {
    fn default() -> Self {
        Self {
            auto_create: true,
            allowed: Vec::new(),
            partitions: DEFAULT_PARTITIONS,
            rules: TopicRules {
                retention_ms: None,
                retention_bytes: None,
                on_full: OnFull::Backpressure,
                max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
            },
            declared: BTreeMap::new(),
            max_topics: DEFAULT_MAX_TOPICS,
        }
    }
}

impl TopicPolicy {
    /// The rules of a topic.
    #[must_use]
    pub fn rules_for(&self, name: &TopicName) -> &TopicRules {
        self.declared
            .get(name)
            .map_or(&self.rules, |declared| &declared.rules)
    }

    /// `Err` says why a missing topic may not be created on demand.
    pub(super) fn may_create(&self, name: &TopicName, topics: usize) -> Result<(), &'static str> {
        if !self.auto_create {
            return Err("topics are not created on demand here");
        }
        let is_allowed = if self.allowed.is_empty() {
            !name.as_str().starts_with("__")
        } else {
            self.allowed.iter().any(|p| p.matches(name.as_str()))
        };
        if !is_allowed {
            return Err("its name is not among those allowed");
        }
        if topics >= self.max_topics {
            return Err("there are as many topics as allowed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name, fits) in [
            ("plant", "plant", true),
            ("plant", "plants", false),
            ("*", "", true),
            ("*", "x", true),
            ("plant.*", "plant.1", true),
            ("plant.*", "plan.1", false),
            ("*.raw", "a.raw", true),
            ("*.raw", "raw", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
        ] {
            assert_eq!(
                NamePattern::new(pattern).matches(name),
                fits,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn a_topic_is_created_only_where_the_policy_allows() {
        let name = |text| TopicName::new(text).unwrap();
        let mut policy = TopicPolicy::default();
        assert!(policy.may_create(&name("a"), 0).is_ok());
        assert!(policy.may_create(&name("__consumer_offsets"), 0).is_err());
        assert!(policy.may_create(&name("a"), DEFAULT_MAX_TOPICS).is_err());
        policy.allowed = vec![NamePattern::new("plant.*")];
        assert!(policy.may_create(&name("a"), 0).is_err());
        assert!(policy.may_create(&name("plant.a"), 0).is_ok());
        policy.auto_create = false;
        assert!(policy.may_create(&name("plant.a"), 0).is_err());
    }
}
