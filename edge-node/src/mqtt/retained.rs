//! Retained messages: the newest of each topic that has one. Plain code.
//!
//! Made from the log, record by record; a message with an empty payload takes its topic's out. Bounded in
//! number and bytes, with what is on its way ([`coming`]): at the bound a message of a further topic is
//! refused when an MQTT client publishes it, and delivered and not kept when it is a record of another protocol.

mod claim;
mod coming;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

pub use claim::{Claim, SharedRetained};
use coming::Coming;
use shared::ids::Offset;

use super::filters::matches;
use super::packet::Message;
use super::session::Place;
use crate::store::PartitionId;

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

/// What topics take of the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Taken {
    entries: usize,
    bytes: usize,
}

/// The store.
#[derive(Debug)]
pub struct Retained {
    messages: BTreeMap<Arc<str>, Held>,
    coming: Coming,
    /// By all topics: of each the larger of what it has and what comes.
    taken: Taken,
    limits: RetainedLimits,
}

impl Retained {
    /// Empty.
    #[must_use]
    pub fn new(limits: RetainedLimits) -> Self {
        Self {
            messages: BTreeMap::new(),
            coming: Coming::default(),
            taken: Taken::default(),
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

    fn taken_by(&self, topic: &str) -> Taken {
        let held = self.messages.get(topic).map(Held::weight);
        let most = held.max(self.coming.most(topic));
        Taken {
            entries: usize::from(most.is_some()),
            bytes: most.unwrap_or(0),
        }
    }

    /// Changes something about one topic, and counts what that comes to.
    fn change<T>(&mut self, topic: &str, change: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.taken_by(topic);
        let changed = change(self);
        let after = self.taken_by(topic);
        self.taken.entries = self.taken.entries + after.entries - before.entries;
        self.taken.bytes = self.taken.bytes + after.bytes - before.bytes;
        changed
    }

    /// Whether a message of `topic` and so many bytes would be kept.
    fn has_room(&self, topic: &str, weight: usize) -> bool {
        let (all, own) = (self.taken, self.taken_by(topic));
        let entries = all.entries - own.entries + 1;
        let bytes = all.bytes - own.bytes + own.bytes.max(weight);
        entries <= self.limits.entries && bytes <= self.limits.bytes
    }

    /// Takes the room for a message that is to be written to the log; false: there is none. It is held until
    /// [`Retained::give_back`], or until the tail has passed where [`Retained::stored`] says that it is.
    fn claim(&mut self, topic: &Arc<str>, weight: usize) -> bool {
        let is_taken = !self.coming.is_full() && self.has_room(topic, weight);
        if is_taken {
            self.change(topic, |it| it.coming.add(topic, weight));
        }
        is_taken
    }

    /// It does not come.
    fn give_back(&mut self, topic: &str, weight: usize) {
        self.change(topic, |it| it.coming.remove(topic, weight));
    }

    /// It is in the log.
    fn stored(&mut self, topic: &Arc<str>, weight: usize, place: Place) {
        if !self.coming.keep(place, topic, weight) {
            self.give_back(topic, weight);
        }
    }

    /// The tail has come to these offsets; `None`: the partition is gone.
    pub fn passed(&mut self, places: impl IntoIterator<Item = (PartitionId, Option<Offset>)>) {
        // it may look before it is known that something is stored, but not before it is claimed
        if self.coming.is_empty() {
            return;
        }
        for (partition, next) in places {
            self.coming.passed(partition, next);
        }
        for (topic, weight) in self.coming.take_passed() {
            self.give_back(&topic, weight);
        }
    }

    /// Keeps a message, or takes out what its topic had.
    pub fn put(&mut self, message: &Arc<Message>, place: Option<Place>) -> Kept {
        let topic = &message.topic;
        let is_removed = message.payload.is_empty();
        let old = self.change(topic, |it| it.messages.remove(topic));
        if is_removed {
            return if old.is_some() {
                Kept::Removed
            } else {
                Kept::Nothing
            };
        }
        if !self.has_room(topic, message.weight()) {
            return Kept::Refused;
        }
        let held = Held {
            message: message.clone(),
            place,
        };
        self.change(topic, |it| it.messages.insert(topic.clone(), held));
        Kept::Stored
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
            self.change(topic, |it| it.messages.remove(topic));
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
        assert_eq!((store.len(), store.taken), (0, Taken::default()));
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

    fn place(offset: Offset) -> Place {
        Place {
            partition: PartitionId(1),
            offset,
        }
    }

    #[test]
    fn what_is_on_its_way_counts() {
        let mut store = Retained::new(LIMITS);
        let topics = ["a", "b", "c", "d"].map(Arc::<str>::from);
        let weight = message("a", "1").weight();
        for topic in &topics[..3] {
            assert!(store.claim(topic, weight));
        }
        assert!(!store.claim(&topics[3], weight));
        assert!(store.claim(&topics[0], weight), "a topic counts once");
        assert_eq!(store.put(&message("d", "1"), None), Kept::Refused);
        store.give_back("b", weight);
        assert!(store.claim(&topics[3], weight));
        // the tail keeps one before it is known to be stored, and one after
        assert_eq!(store.put(&message("a", "1"), Some(place(7))), Kept::Stored);
        store.passed([(PartitionId(1), Some(8))]);
        store.stored(&topics[0], weight, place(7));
        store.stored(&topics[0], weight, place(9));
        store.stored(&topics[2], weight, place(8));
        assert_eq!(store.put(&message("c", "1"), Some(place(8))), Kept::Stored);
        store.passed([(PartitionId(1), Some(10))]);
        store.give_back("d", weight);
        assert!(store.coming.is_empty());
        let bytes = 2 * weight;
        assert_eq!(store.taken, Taken { entries: 2, bytes });
    }

    #[test]
    fn bytes_on_their_way_count_as_the_largest_of_each_topic() {
        let mut store = Retained::new(LIMITS);
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        assert!(store.claim(&a, 600) && store.claim(&a, 300));
        assert!(!store.claim(&b, 500));
        store.give_back("a", 600);
        assert!(store.claim(&b, 500));
        store.give_back("a", 300);
        store.give_back("b", 500);
        assert_eq!(store.taken, Taken::default());
    }

    #[test]
    fn a_partition_that_goes_takes_with_it_what_was_to_come() {
        let mut store = Retained::new(LIMITS);
        let topics = ["a", "b"].map(Arc::<str>::from);
        assert!(store.claim(&topics[0], 1) && store.claim(&topics[1], 1));
        store.stored(&topics[0], 1, place(7));
        store.passed([(PartitionId(1), None)]);
        store.stored(&topics[1], 1, place(8));
        assert_eq!(store.taken, Taken::default());
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
