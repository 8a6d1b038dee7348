//! Whether a topic that is missing may be created because a client asks for it. Plain code.

use shared::ids::TopicName;

use crate::config::TopicsConfig;

/// Kafka's own topics; a client that asks for one must not make it an ordinary topic.
const RESERVED_PREFIX: &str = "__";

/// `Err` says why not. `topics` is the number there are.
pub(super) fn may_create(
    config: &TopicsConfig,
    name: &TopicName,
    topics: usize,
) -> Result<(), &'static str> {
    if name.as_str().starts_with(RESERVED_PREFIX) {
        return Err("names that start with `__` are Kafka's own");
    }
    if !config.may_create(name.as_str()) {
        return Err("topics of this name are not created on demand here");
    }
    if topics >= config.max_topics {
        return Err("there are as many topics as allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::tests::any_topic;

    #[test]
    fn a_topic_is_created_only_where_the_policy_allows() {
        let name = |text| TopicName::new(text).unwrap();
        let mut config = any_topic();
        assert!(may_create(&config, &name("a"), 0).is_ok());
        assert!(may_create(&config, &name("__consumer_offsets"), 0).is_err());
        assert!(may_create(&config, &name("a"), config.max_topics).is_err());
        config.auto_create = false;
        assert!(may_create(&config, &name("a"), 0).is_err());
    }
}
