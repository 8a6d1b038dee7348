//! Which Kafka topic an MQTT topic is, and back. Plain code.
//!
//! ```text
//! MQTT topic ──► first rule whose filter matches ──► Kafka topic, record key
//! Kafka topic, record key ──► MQTT topic, if the rules bring that one back to the same Kafka topic
//! ```
//! The second condition is what keeps one set of records: a message and its record are the same thing
//! seen from two sides, and no record has an MQTT topic under which another Kafka topic would be
//! written. Rules that could break it are refused when the configuration is read.

use std::borrow::Cow;
use std::sync::Arc;

use shared::ids::TopicName;

use super::codec::{is_valid_filter, is_valid_topic};
use super::filters::{captures, covers, is_system, matches, overlap};
use super::packet::Qos;

/// What the key of a record is made of, or an MQTT topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// `{topic}`: the whole MQTT topic.
    Topic,
    /// `{key}`: the record's key.
    Key,
    /// `{1}`: what the first wildcard stands for.
    Capture(usize),
}

/// Why a template can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not known; accepted: text, {{topic}}, {{key}}, {{1}} to {{9}}")]
pub struct TemplateError(String);

impl std::str::FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            let (name, after) = after
                .split_once('}')
                .ok_or_else(|| TemplateError(text.to_owned()))?;
            parts.push(match name {
                "topic" => Part::Topic,
                "key" => Part::Key,
                digit => match digit.parse::<usize>() {
                    Ok(number @ 1..=9) => Part::Capture(number),
                    Ok(_) | Err(_) => return Err(TemplateError(format!("{{{digit}}}"))),
                },
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self(parts))
    }
}

impl Template {
    /// The MQTT topic as it is.
    #[must_use]
    pub fn topic_itself() -> Self {
        Self(vec![Part::Topic])
    }

    fn is(&self, part: &Part) -> bool {
        matches!(&self.0[..], [only] if only == part)
    }

    fn uses(&self, wanted: impl Fn(&Part) -> bool) -> bool {
        self.0.iter().any(wanted)
    }

    /// The key of a message's record.
    fn key<'t>(&self, filter: &str, topic: &'t str) -> Cow<'t, str> {
        if self.is(&Part::Topic) {
            return Cow::Borrowed(topic);
        }
        let captured = captures(filter, topic);
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => &**text,
            Part::Topic => topic,
            Part::Capture(number) => captured.get(number - 1).copied().unwrap_or_default(),
            Part::Key => "",
        });
        Cow::Owned(parts.collect())
    }

    /// The MQTT topic of a record.
    fn topic(&self, key: &str) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => &**text,
            Part::Key => key,
            Part::Topic | Part::Capture(_) => "",
        });
        parts.collect()
    }

    /// A filter that matches every topic that this makes of a key without `/`.
    fn filter(&self) -> String {
        let text = self.topic("\u{1}");
        let levels = text
            .split('/')
            .map(|level| if level.contains('\u{1}') { "+" } else { level });
        levels.collect::<Vec<_>>().join("/")
    }
}

/// Whether messages are retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetainRule {
    /// As their publishers ask; records of Kafka and HTTP producers are not.
    AsPublished,
    /// Every record is the newest value of its MQTT topic, whoever wrote it.
    Always,
    /// None.
    Never,
}

/// When a publisher of QoS 1 or 2 has its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckRule {
    /// After the record is synced.
    AfterSync,
    /// When it was received: a crash loses it.
    BeforeSync,
}

/// One `[[mqtt.map]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// MQTT topics that it is for.
    pub filter: String,
    /// Where their records go.
    pub kafka: TopicName,
    /// The records' key.
    pub key: Template,
    /// The MQTT topic of a record that did not come by MQTT; `None`: the key is the topic if `key` says
    /// so, and otherwise such records are not for MQTT.
    pub topic: Option<Template>,
    /// Of records that did not come by MQTT.
    pub qos: Qos,
    /// Whether they are retained.
    pub retain: RetainRule,
    /// When they are acknowledged.
    pub ack: AckRule,
}

impl Rule {
    /// What holds where no rule matches: the key is the topic.
    #[must_use]
    pub fn everything(kafka: TopicName) -> Self {
        Self {
            filter: "#".to_owned(),
            kafka,
            key: Template(vec![Part::Topic]),
            topic: None,
            qos: Qos::AtLeastOnce,
            retain: RetainRule::AsPublished,
            ack: AckRule::AfterSync,
        }
    }

    fn key_is_topic(&self) -> bool {
        self.key.is(&Part::Topic)
    }

    fn back(&self) -> Option<Cow<'_, Template>> {
        match &self.topic {
            Some(template) => Some(Cow::Borrowed(template)),
            None if self.key_is_topic() => Some(Cow::Owned(Template(vec![Part::Key]))),
            None => None,
        }
    }
}

/// Why the rules are refused. `rule` counts from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not a filter.
    #[error("`{filter}` is not an MQTT topic filter")]
    Filter {
        /// Which.
        rule: usize,
        /// As written.
        filter: String,
    },
    /// An earlier rule takes everything.
    #[error("never reached: `{earlier}` before it takes all that `{filter}` matches")]
    Shadowed {
        /// Which.
        rule: usize,
        /// As written.
        filter: String,
        /// The rule before it.
        earlier: String,
    },
    /// The way back is not the way there.
    #[error("would loop: a record of `{kafka}` would be the MQTT topic `{topic}`, which {instead}")]
    Loop {
        /// Which.
        rule: usize,
        /// The Kafka topic.
        kafka: String,
        /// The MQTT topics that records would have.
        topic: String,
        /// Where they would go instead.
        instead: String,
    },
    /// Two rules for one Kafka topic that disagree on what a key is.
    #[error(
        "`{kafka}` is also the topic of `{earlier}`: then the key of both must be \"{{topic}}\", \
             or nobody knows the MQTT topic of a record"
    )]
    Ambiguous {
        /// Which.
        rule: usize,
        /// The Kafka topic.
        kafka: String,
        /// The rule before it.
        earlier: String,
    },
    /// A topic of Kafka's own.
    #[error("`{kafka}`: topics that begin with `__` are not for sites; accepted: another name")]
    Internal {
        /// Which.
        rule: usize,
        /// The Kafka topic.
        kafka: String,
    },
    /// What a record's MQTT topic is made of makes none.
    #[error(
        "`{topic}` is no topic that can be published to; accepted: text without `+` and `#`, and {{key}}"
    )]
    Topic {
        /// Which.
        rule: usize,
        /// As it would be for the key `k`.
        topic: String,
    },
    /// A template uses what it can't have.
    #[error("{what}")]
    Template {
        /// Which.
        rule: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl MapError {
    /// The rule that is refused.
    #[must_use]
    pub fn rule(&self) -> usize {
        match self {
            Self::Filter { rule, .. }
            | Self::Shadowed { rule, .. }
            | Self::Loop { rule, .. }
            | Self::Ambiguous { rule, .. }
            | Self::Internal { rule, .. }
            | Self::Topic { rule, .. }
            | Self::Template { rule, .. } => *rule,
        }
    }

    /// The key of the rule that is at fault.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            Self::Filter { .. } | Self::Shadowed { .. } => "mqtt",
            Self::Internal { .. } => "kafka",
            Self::Loop { .. } | Self::Topic { .. } => "topic",
            Self::Ambiguous { .. } | Self::Template { .. } => "key",
        }
    }
}

/// The rules, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMap {
    rules: Vec<Rule>,
    /// The last rule takes what no other does, topics that begin with `$` too.
    has_rest: bool,
}

impl TopicMap {
    /// Rules, and where the rest goes (`None`: nowhere, it is refused).
    ///
    /// # Errors
    /// [`MapError`]: the first rule that loops, is ambiguous or is never reached.
    pub fn new(mut rules: Vec<Rule>, rest: Option<TopicName>) -> Result<Self, MapError> {
        for at in 0..rules.len() {
            check(&rules, at, rest.as_ref())?;
        }
        let has_rest = rest.is_some();
        rules.extend(rest.map(Rule::everything));
        Ok(Self { rules, has_rest })
    }

    /// No rules: nothing is taken.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            rules: Vec::new(),
            has_rest: false,
        }
    }

    /// The rule of an MQTT topic.
    #[must_use]
    pub fn rule(&self, topic: &str) -> Option<&Rule> {
        let rest = self.rules.last().filter(|_| self.has_rest);
        let mut rules = self.rules.iter();
        rules.find(|rule| matches(&rule.filter, topic)).or(rest)
    }

    /// The key of a message's record.
    #[must_use]
    pub fn key<'t>(&self, rule: &Rule, topic: &'t str) -> Cow<'t, str> {
        rule.key.key(&rule.filter, topic)
    }

    /// Whether a record must carry its MQTT topic beside the key.
    #[must_use]
    pub fn needs_topic(&self, rule: &Rule) -> bool {
        !rule.key_is_topic()
    }

    /// The MQTT topic of a record and the rule that holds for it; `None`: it is not for MQTT.
    #[must_use]
    pub fn back(
        &self,
        kafka: &str,
        key: Option<&[u8]>,
        carried: Option<&str>,
    ) -> Option<(Arc<str>, &Rule)> {
        let key = key.and_then(|key| std::str::from_utf8(key).ok());
        let topic = match carried {
            Some(topic) => Cow::Borrowed(topic),
            None => {
                let of_topic = |rule: &&Rule| rule.kafka.as_str() == kafka;
                let template = self.rules.iter().find(of_topic)?.back()?;
                let key = if template.uses(|part| *part == Part::Key) {
                    key?
                } else {
                    ""
                };
                if template.is(&Part::Key) {
                    Cow::Borrowed(key)
                } else {
                    Cow::Owned(template.topic(key))
                }
            }
        };
        if !is_valid_topic(&topic) || is_system(&topic) {
            return None;
        }
        let rule = self.rule(&topic)?;
        (rule.kafka.as_str() == kafka).then(|| (Arc::from(&*topic), rule))
    }

    /// The Kafka topics that records for a filter may be in.
    pub fn behind<'m>(&'m self, filter: &'m str) -> impl Iterator<Item = &'m TopicName> {
        // `#` of the last rule is meant for `$` topics too
        let is_rest = move |rule: &Rule| rule.filter == "#" && filter.starts_with('$');
        // a rule that takes all of the filter leaves nothing to those behind it
        let mut is_taken = false;
        let rules = self.rules.iter().filter(move |rule| {
            let counts = !is_taken && (overlap(&rule.filter, filter) || is_rest(rule));
            is_taken |= covers(&rule.filter, filter);
            counts
        });
        rules.map(|rule| &rule.kafka)
    }

    /// [`RetainRule::Always`] when any record of the Kafka topic may be retained unasked.
    #[must_use]
    pub fn retain_rule(&self, kafka: &str) -> RetainRule {
        let mut of_topic = self
            .rules
            .iter()
            .filter(|rule| rule.kafka.as_str() == kafka);
        let is_always = of_topic.any(|rule| rule.retain == RetainRule::Always);
        if is_always {
            RetainRule::Always
        } else {
            RetainRule::AsPublished
        }
    }

    /// All Kafka topics that messages may be in, each once.
    pub fn kafka_topics(&self) -> impl Iterator<Item = &TopicName> {
        let is_first = |at: &usize| {
            let name = &self.rules[*at].kafka;
            !self.rules[..*at].iter().any(|rule| rule.kafka == *name)
        };
        (0..self.rules.len())
            .filter(is_first)
            .map(|at| &self.rules[at].kafka)
    }
}

fn check(rules: &[Rule], at: usize, rest: Option<&TopicName>) -> Result<(), MapError> {
    let rule = &rules[at];
    let filter = rule.filter.clone();
    if !is_valid_filter(&filter) || filter.starts_with("$share/") {
        return Err(MapError::Filter { rule: at, filter });
    }
    let earlier = &rules[..at];
    if let Some(wide) = earlier.iter().find(|other| covers(&other.filter, &filter)) {
        let earlier = wide.filter.clone();
        return Err(MapError::Shadowed {
            rule: at,
            filter,
            earlier,
        });
    }
    let is_capture = |part: &Part| matches!(part, Part::Capture(_));
    if rule.key.uses(|part| *part == Part::Key) {
        let what = "the key can't be made of the key";
        return Err(MapError::Template { rule: at, what });
    }
    let wildcards = rule
        .filter
        .split('/')
        .filter(|level| matches!(*level, "+" | "#"));
    let wildcards = wildcards.count();
    if rule
        .key
        .uses(|part| matches!(part, Part::Capture(number) if *number > wildcards))
    {
        let what = "the filter has fewer wildcards than the key counts";
        return Err(MapError::Template { rule: at, what });
    }
    if let Some(topic) = &rule.topic
        && topic.uses(|part| *part == Part::Topic || is_capture(part))
    {
        let what = "the topic of a record can only be made of text and {key}";
        return Err(MapError::Template { rule: at, what });
    }
    if let Some(topic) = &rule.topic {
        let topic = topic.topic("k");
        if !is_valid_topic(&topic) || is_system(&topic) {
            return Err(MapError::Topic { rule: at, topic });
        }
    }
    if rule.kafka.as_str().starts_with("__") {
        let kafka = rule.kafka.as_str().to_owned();
        return Err(MapError::Internal { rule: at, kafka });
    }
    let plain = |other: &Rule| other.key_is_topic() && other.topic.is_none();
    let kafka = rule.kafka.as_str().to_owned();
    if let Some(other) = earlier.iter().find(|other| other.kafka == rule.kafka)
        && !(plain(other) && plain(rule))
    {
        let earlier = other.filter.clone();
        return Err(MapError::Ambiguous {
            rule: at,
            kafka,
            earlier,
        });
    }
    if rest == Some(&rule.kafka) && !plain(rule) {
        let earlier = "the messages without a rule".to_owned();
        return Err(MapError::Ambiguous {
            rule: at,
            kafka,
            earlier,
        });
    }
    check_way_back(rules, at)
}

fn check_way_back(rules: &[Rule], at: usize) -> Result<(), MapError> {
    let rule = &rules[at];
    let Some(template) = &rule.topic else {
        return Ok(());
    };
    let topic = template.filter();
    let refuse = |instead: String| {
        let (kafka, topic) = (rule.kafka.as_str().to_owned(), topic.clone());
        Err(MapError::Loop {
            rule: at,
            kafka,
            topic,
            instead,
        })
    };
    if template.is(&Part::Key) {
        return Ok(()); // what the rule does not match is left out, record by record
    }
    if let Some(other) = rules[..at]
        .iter()
        .find(|other| overlap(&other.filter, &topic))
    {
        return refuse(format!(
            "`{}` before it sends to `{}`",
            other.filter, other.kafka
        ));
    }
    if !covers(&rule.filter, &topic) {
        return refuse(format!("`{}` does not match", rule.filter));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
