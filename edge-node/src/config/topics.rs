//! `[topics]`: which topics exist and what their logs may hold.

use shared::class::Class;
use shared::config::Pattern;
use shared::ids::TopicName;
use shared::units::{ByteSize, Span};

use crate::store::{OnFull, TopicRules};

/// `[topics]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicsConfig {
    /// Whether a client that writes to an unknown topic creates it.
    pub auto_create: bool,
    /// Topics at the site, however created.
    pub max_topics: usize,
    /// `[topics.default]`
    pub default: TopicSettings,
    /// `[[topics.rule]]`: the first whose pattern matches decides.
    pub rules: Vec<TopicRule>,
}

/// One `[[topics.rule]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRule {
    /// Names that it is for.
    pub pattern: Pattern,
    /// Whether clients may create such topics; a rule with an exact name creates its topic on start.
    pub auto_create: bool,
    /// What holds for them; keys that the rule leaves out are those of `[topics.default]`.
    pub settings: TopicSettings,
}

/// What one topic's log may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings {
    /// Partitions on creation. More in a later configuration are added, fewer are ignored.
    pub partitions: u32,
    /// Records older than this go, sent or not. `None`: no limit.
    pub retention: Option<Span>,
    /// Logical bytes of all partitions. `None`: only the node's quota.
    pub retention_bytes: Option<ByteSize>,
    /// What happens when only unsent records are left to delete.
    pub on_full: OnFull,
    /// Largest record batch.
    pub max_batch: ByteSize,
    /// How urgent its records are on the link.
    pub class: Class,
    /// New records pass the backlog: each of the two keeps its order.
    pub live_first: bool,
}

impl TopicSettings {
    /// As the store takes it.
    #[must_use]
    pub fn rules(&self) -> TopicRules {
        TopicRules {
            retention_ms: self.retention.map(Span::as_millis),
            retention_bytes: self.retention_bytes.map(ByteSize::bytes),
            on_full: self.on_full,
            max_batch_bytes: self.max_batch.as_usize(),
        }
    }
}

impl TopicsConfig {
    /// What holds for a topic.
    #[must_use]
    pub fn settings(&self, topic: &str) -> TopicSettings {
        self.rule(topic).map_or(self.default, |rule| rule.settings)
    }

    /// Whether new records of any topic pass its backlog.
    #[must_use]
    pub fn has_live_first(&self) -> bool {
        let mut rules = self.rules.iter();
        self.default.live_first || rules.any(|rule| rule.settings.live_first)
    }

    /// Whether a client may create the topic by writing to it.
    #[must_use]
    pub fn may_create(&self, topic: &str) -> bool {
        self.rule(topic)
            .map_or(self.auto_create, |rule| rule.auto_create)
    }

    /// Topics to create on start: the rules with an exact name.
    pub fn declared(&self) -> impl Iterator<Item = (TopicName, TopicSettings)> + '_ {
        self.rules
            .iter()
            .filter(|rule| rule.pattern.is_exact())
            .filter_map(|rule| {
                let name = rule.pattern.as_str();
                Some((TopicName::new(name).ok()?, self.settings(name)))
            })
    }

    fn rule(&self, topic: &str) -> Option<&TopicRule> {
        self.rules.iter().find(|rule| rule.pattern.matches(topic))
    }
}
