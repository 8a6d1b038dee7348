//! Logs that the hub does not take from this site: its rule leaves their topics out, or there are more than a
//! session may have. Known since the hub said so, until it says otherwise or a session begins anew.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::ids::TopicPartition;

/// Logs that are remembered by name; those beyond are counted.
const MAX_LOGS: usize = 1_000;
/// Topics that a message names.
const MAX_NAMED: usize = 10;

/// What the hub said in the session that is open, or was last.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<Logs>);

#[derive(Debug, Default)]
struct Logs {
    named: BTreeSet<TopicPartition>,
    others: u64,
}

impl Refused {
    /// A session begins: nothing is known yet.
    pub(super) fn begin(&self) {
        *self.lock() = Logs::default();
    }

    /// The hub does not take this log.
    pub(super) fn refuse(&self, log: TopicPartition) {
        let mut logs = self.lock();
        if logs.named.len() < MAX_LOGS {
            logs.named.insert(log);
        } else if !logs.named.contains(&log) {
            logs.others = logs.others.saturating_add(1);
        }
    }

    /// It takes it after all.
    pub(super) fn admit(&self, log: &TopicPartition) {
        let mut logs = self.lock();
        if !logs.named.remove(log) {
            logs.others = logs.others.saturating_sub(1);
        }
    }

    /// Topics with a log that the hub does not take, by name, and how many logs there are beside them.
    pub(super) fn topics(&self) -> (Vec<String>, u64) {
        let logs = self.lock();
        let names: BTreeSet<&str> = logs.named.iter().map(|log| log.topic.as_str()).collect();
        let names = names.into_iter().map(ToOwned::to_owned).collect();
        (names, logs.others)
    }

    fn lock(&self) -> MutexGuard<'_, Logs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For people; `None` when the hub takes everything.
pub(super) fn in_words(topics: &[String], others: u64) -> Option<String> {
    if topics.is_empty() {
        return None;
    }
    let named: Vec<&str> = topics.iter().take(MAX_NAMED).map(String::as_str).collect();
    let more = (topics.len() - named.len()) as u64 + others;
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let named = named.join(", ");
    Some(format!(
        "refused by the hub: {named}{more}: no `topics` of its [[sites.rule]] for this site matches, or the \
         site has more than listen.max_logs; their records wait until retention drops them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(topic: &str, partition: u32) -> TopicPartition {
        TopicPartition {
            topic: topic.parse().unwrap(),
            partition,
            track: shared::ids::Track::First,
        }
    }

    #[test]
    fn a_topic_is_refused_until_all_its_logs_are_taken_or_a_session_begins() {
        let refused = Refused::default();
        for (topic, partition) in [("b", 0), ("b", 1), ("a", 0)] {
            refused.refuse(log(topic, partition));
        }
        let both = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(refused.topics(), (both(), 0));
        refused.admit(&log("b", 0));
        assert_eq!(refused.topics(), (both(), 0));
        refused.admit(&log("b", 1));
        assert_eq!(refused.topics().0, ["a"]);
        refused.begin();
        assert_eq!(refused.topics(), (Vec::new(), 0));
    }

    #[test]
    fn what_is_remembered_and_told_is_bounded() {
        let refused = Refused::default();
        for number in 0..MAX_LOGS + 5 {
            refused.refuse(log(&format!("t{number:05}"), 0));
        }
        let (topics, others) = refused.topics();
        assert_eq!((topics.len(), others), (MAX_LOGS, 5));
        let text = in_words(&topics, others).unwrap();
        assert!(text.starts_with("refused by the hub: t00000, "), "{text}");
        assert!(text.contains("t00009 and 995 more: "), "{text}");
        assert_eq!(in_words(&[], 0), None);
    }
}
