//! What a client may do, by names of topics and groups, and how much. Plain code.

use std::sync::Arc;

use shared::config::Pattern;

use crate::quota::{Creator, Limits, Quota};

/// What a user may do. Names are matched against each pattern; none matches: it may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Topics that it may write.
    pub produce: Vec<Pattern>,
    /// Topics that it may read.
    pub consume: Vec<Pattern>,
    /// Consumer groups that it may join, commit to, look at and delete.
    pub groups: Vec<Pattern>,
    /// May create, change and delete topics by hand, and look at and delete every group.
    pub admin: bool,
    /// How much of it.
    pub limits: Limits,
}

impl Rules {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self {
            produce: vec![Pattern::any()],
            consume: vec![Pattern::any()],
            groups: vec![Pattern::any()],
            admin: true,
            limits: Limits::default(),
        }
    }

    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Self {
            produce: Vec::new(),
            consume: Vec::new(),
            groups: Vec::new(),
            admin: false,
            limits: Limits::default(),
        }
    }
}

fn matches(patterns: &[Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

/// Who a client is and what it may do. Clones share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    name: Option<Arc<str>>,
    rules: Arc<Rules>,
    quota: Arc<Quota>,
}

impl Principal {
    /// A client that didn't say who it is.
    #[must_use]
    pub fn anonymous(rules: Rules) -> Self {
        Self::new(None, rules)
    }

    /// A user.
    #[must_use]
    pub fn user(name: &str, rules: Rules) -> Self {
        Self::new(Some(name.into()), rules)
    }

    fn new(name: Option<Arc<str>>, rules: Rules) -> Self {
        Self {
            name,
            quota: Arc::new(Quota::new(rules.limits)),
            rules: Arc::new(rules),
        }
    }

    /// The user's name; `None` for the anonymous.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether it may write to the topic, and create it where the topics' rules allow.
    #[must_use]
    pub fn may_produce(&self, topic: &str) -> bool {
        matches(&self.rules.produce, topic)
    }

    /// Whether it may read the topic.
    #[must_use]
    pub fn may_consume(&self, topic: &str) -> bool {
        matches(&self.rules.consume, topic)
    }

    /// Whether it may know that the topic is there.
    #[must_use]
    pub fn may_see(&self, topic: &str) -> bool {
        self.rules.admin || self.may_produce(topic) || self.may_consume(topic)
    }

    /// Whether it may use the consumer group.
    #[must_use]
    pub fn may_use_group(&self, group: &str) -> bool {
        self.rules.admin || matches(&self.rules.groups, group)
    }

    /// What all its clients together use.
    #[must_use]
    pub fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// Whose the topics are that it creates.
    #[must_use]
    pub fn creator(&self) -> Creator<'_> {
        Creator {
            name: self.name().unwrap_or_default(),
            most: self.rules.limits.max_topics,
        }
    }

    /// Whether it may create, change and delete topics by hand.
    #[must_use]
    pub fn may_administer(&self) -> bool {
        self.rules.admin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_allows_what_it_names_and_nothing_else() {
        let rules = Rules {
            produce: vec!["sales.*".parse().unwrap(), "alarms".parse().unwrap()],
            consume: vec!["prices".parse().unwrap()],
            groups: vec!["till-?".parse().unwrap()],
            ..Rules::none()
        };
        let till = Principal::user("till", rules.clone());
        assert!(till.may_produce("sales.day") && till.may_produce("alarms"));
        assert!(!till.may_produce("prices") && !till.may_produce("sales"));
        assert!(till.may_consume("prices") && !till.may_consume("alarms"));
        assert!(till.may_see("alarms") && till.may_see("prices") && !till.may_see("salaries"));
        assert!(till.may_use_group("till-1") && !till.may_use_group("till-12"));
        assert!(!till.may_administer());
        let admin = Principal::user(
            "boss",
            Rules {
                admin: true,
                ..rules
            },
        );
        assert!(admin.may_see("salaries") && admin.may_use_group("any") && admin.may_administer());
        assert!(
            !admin.may_consume("salaries"),
            "reading is a rule of its own"
        );
    }
}
