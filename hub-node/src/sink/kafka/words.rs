//! What librdkafka says of its connections: why, where a call of it says only that it had no answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tracing::debug;

/// The newest of them.
const MAX_WORDS: usize = 4;
/// Older ones may be about something that has passed.
const MAX_AGE: Duration = Duration::from_secs(15);
/// A server's own words may be among them.
const MAX_LEN: usize = 300;

/// Keeps librdkafka's own words out of the log, but for debugging, and the newest that say why a connection failed. Clones
/// share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Words(Arc<Mutex<VecDeque<(Instant, String)>>>);

impl Words {
    /// librdkafka logs something.
    pub(super) fn logged(&self, facility: &str, message: &str) {
        debug!(facility, message, "librdkafka");
        if facility == "FAIL" {
            self.note(message, Instant::now());
        }
    }

    /// An error with what was said of connections just before.
    pub(super) fn explain(&self, error: &dyn std::fmt::Display) -> String {
        self.explain_at(error, Instant::now())
    }

    fn explain_at(&self, error: &dyn std::fmt::Display, now: Instant) -> String {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = words
            .iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) < MAX_AGE);
        let recent: Vec<&str> = recent.map(|(_, text)| text.as_str()).collect();
        if recent.is_empty() {
            error.to_string()
        } else {
            format!("{error} ({})", recent.join("; "))
        }
    }

    fn note(&self, text: &str, now: Instant) {
        let text: String = plain(text)
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_LEN)
            .collect();
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.retain(|(_, known)| *known != text);
        if words.len() == MAX_WORDS {
            words.pop_front();
        }
        words.push_back((now, text));
    }
}

/// Without the thread in front and the times behind, which differ from attempt to attempt.
fn plain(text: &str) -> &str {
    let text = match text.split_once("]: ") {
        Some((thread, rest)) if thread.starts_with("[thrd:") => rest,
        Some(_) | None => text,
    };
    text.split_once(" (after ").map_or(text, |(cause, _)| cause)
}

impl ClientContext for Words {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.logged(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka");
        if error.rdkafka_error_code() == Some(Code::Authentication) {
            self.note(reason, Instant::now());
        }
    }
}

impl ConsumerContext for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_alike_are_told_once_and_for_a_while() {
        let words = Words::default();
        let now = Instant::now();
        assert_eq!(words.explain_at(&"no answer", now), "no answer");
        for took in [0, 7] {
            let text = format!(
                "[thrd:host:9092/bootstrap]: host:9092/bootstrap: Connect to ipv4#192.0.2.1:9092 failed: refused (after \
                 {took}ms in state CONNECT)"
            );
            words.note(&text, now);
        }
        assert_eq!(
            words.explain_at(&"no answer", now),
            "no answer (host:9092/bootstrap: Connect to ipv4#192.0.2.1:9092 failed: refused)"
        );
        assert_eq!(words.explain_at(&"no answer", now + MAX_AGE), "no answer");
    }

    #[test]
    fn only_the_newest_words_are_kept() {
        let words = Words::default();
        let now = Instant::now();
        for number in 0..=MAX_WORDS {
            words.note(&format!("w{number}"), now);
        }
        assert_eq!(words.explain_at(&"x", now), "x (w1; w2; w3; w4)");
    }
}
