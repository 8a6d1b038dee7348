//! Retained messages: the newest of each topic that has one. Plain code.
//!
//! Made from the log, record by record; a message with an empty payload takes its topic's out. Bounded in
//! number and bytes: at the bound a message of a further topic is
//! refused when an MQTT client publishes it, and delivered and not kept when it is a record of another protocol.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::filters::matches;
use super::packet::Message;
use super::session::Place;

/// Bounds of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetainedLimits {
    /// Topics.
    pub entries: usize,
    /// Bytes of their messages in memory.
    pub bytes: usize,
}

/// What a message did to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is the topic's retained message.
    Stored,
    /// The topic has none any more.
    Removed,
    /// There was none, and there is none.
    Nothing,
    /// At a bound: not kept, and what the topic had is gone.
    Refused,
}

/// A retained message.
#[derive(Debug, Clone)]
pub struct Held {
    /// The message.
    pub message: Arc<Message>,
    /// Its record, which the log may have let go; `None`: it is the broker's own.
    pub place: Option<Place>,
}

impl Held {
    fn weight(&self) -> usize {
        self.message.weight()
    }
}

/// The store.
#[derive(Debug)]
pub struct Retained {
    messages: BTreeMap<Arc<str>, Held>,
    bytes: usize,
    limits: RetainedLimits,
}

impl Retained {
    /// Empty.
    #[must_use]
    pub fn new(limits: RetainedLimits) -> Self {
        Self {
            messages: BTreeMap::new(),
            bytes: 0,
            limits,
        }
    }

    /// Topics that have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// True when no topic has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether a message of `topic` and so many bytes would be kept.
    #[must_use]
    pub fn has_room(&self, topic: &str, weight: usize) -> bool {
        let old = self.messages.get(topic);
        let bytes = self.bytes - old.map_or(0, |old| old.weight());
        let entries = self.messages.len() + usize::from(old.is_none());
        entries <= self.limits.entries && bytes + weight <= self.limits.bytes
    }

    /// Keeps a message, or takes out what its topic had.
    pub fn put(&mut self, message: &Arc<Message>, place: Option<Place>) -> Kept {
        let has_room = self.has_room(&message.topic, message.weight());
        let old = self.messages.remove(&message.topic);
        self.bytes -= old.as_ref().map_or(0, |old| old.weight());
        match (message.payload.is_empty(), has_room) {
            (true, _) if old.is_some() => Kept::Removed,
            (true, _) => Kept::Nothing,
            (false, true) => {
                self.bytes += message.weight();
                let held = Held {
                    message: message.clone(),
                    place,
                };
                self.messages.insert(message.topic.clone(), held);
                Kept::Stored
            }
            (false, false) => Kept::Refused,
        }
    }

    /// Up to `limit` messages that `filter` matches, in the order of their topics, after `after`.
    #[must_use]
    pub fn find(&self, filter: &str, after: Option<&str>, limit: usize) -> Vec<Held> {
        if !filter.contains(['+', '#']) {
            let found = self.messages.get(filter).filter(|_| after.is_none());
            return found.cloned().into_iter().collect();
        }
        let prefix = filter.split(['+', '#']).next().unwrap_or_default();
        // `a/#` matches `a` too
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let range = self.messages.range::<str, _>((from, Bound::Unbounded));
        let near = range.take_while(|(topic, _)| topic.starts_with(prefix));
        let matching = near.filter(|(topic, _)| matches(filter, topic));
        matching.map(|(_, held)| held.clone()).take(limit).collect()
    }

    /// The message of a record that the log may have let go. Looks at all there are.
    #[must_use]
    pub fn of_record(&self, place: Place) -> Option<Arc<Message>> {
        let mut all = self.messages.values();
        let held = all.find(|held| held.place == Some(place))?;
        Some(held.message.clone())
    }

    /// Takes out those that nobody wants any more; their topics.
    pub fn expire(&mut self, now_ms: i64) -> Vec<Arc<str>> {
        let old = self
            .messages
            .values()
            .filter(|held| held.message.is_expired(now_ms));
        let topics: Vec<_> = old.map(|held| held.message.topic.clone()).collect();
        for topic in &topics {
            let old = self.messages.remove(topic);
            self.bytes -= old.map_or(0, |old| old.weight());
        }
        topics
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::packet::Qos;

    fn message(topic: &str, payload: &'static str) -> Arc<Message> {
        Arc::new(Message {
            topic: topic.into(),
            payload: Bytes::from_static(payload.as_bytes()),
            qos: Qos::AtMostOnce,
            retain: true,
            published_ms: 0,
            properties: None,
            from: None,
        })
    }

    const LIMITS: RetainedLimits = RetainedLimits {
        entries: 3,
        bytes: 1_000,
    };

    #[test]
    fn the_newest_is_kept_and_an_empty_one_removes_it() {
        let mut store = Retained::new(LIMITS);
        assert_eq!(store.put(&message("a", "1"), None), Kept::Stored);
        assert_eq!(store.put(&message("a", "2"), None), Kept::Stored);
        assert_eq!(store.find("a", None, 9)[0].message.payload, "2");
        assert_eq!(store.put(&message("a", ""), None), Kept::Removed);
        assert_eq!(store.put(&message("a", ""), None), Kept::Nothing);
        assert_eq!((store.len(), store.bytes), (0, 0));
    }

    #[test]
    fn at_the_bound_a_further_topic_is_refused() {
        let mut store = Retained::new(LIMITS);
        for topic in ["a", "b", "c"] {
            assert_eq!(store.put(&message(topic, "1"), None), Kept::Stored);
        }
        assert_eq!(store.put(&message("d", "1"), None), Kept::Refused);
        assert_eq!(store.put(&message("c", "2"), None), Kept::Stored);
    }

    proptest! {
        #[test]
        fn pages_bring_each_match_once(
            topics in prop::collection::btree_set("[ab]{0,1}/?[ab]{1,2}", 0..20),
            filter in prop_oneof![Just("#"), Just("a/#"), Just("+/a"), Just("a/+"), Just("+"), Just("a")],
            page in 1_usize..4,
        ) {
            let mut store = Retained::new(RetainedLimits { entries: 100, bytes: 1 << 20 });
            for topic in &topics {
                store.put(&message(topic, "x"), None);
            }
            let mut found: Vec<String> = Vec::new();
            loop {
                let more = store.find(filter, found.last().map(String::as_str), page);
                if more.is_empty() {
                    break;
                }
                found.extend(more.iter().map(|held| held.message.topic.to_string()));
            }
            let expected: Vec<_> = topics.iter().filter(|t| matches(filter, t)).cloned().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
