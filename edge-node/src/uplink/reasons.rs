//! Why there is no session, hub by hub: what is shown, and when it is worth a line in the log.
//!
//! A hub that says no tells more than one that does not answer, whichever was dialled last.

use std::collections::BTreeMap;

/// Why a hub has no session with this site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    /// In words.
    pub(super) text: String,
    /// One end refused the other; else it is only offline, which is normal.
    pub(super) is_refusal: bool,
}

/// The last reason of each hub. As many as there are hubs in the configuration.
#[derive(Debug, Default)]
pub(super) struct Reasons(BTreeMap<String, Reason>);

impl Reasons {
    /// Takes a reason; true when it is another than this hub's last.
    pub(super) fn note(&mut self, hub: &str, reason: Reason) -> bool {
        let is_same = |last: &Reason| {
            last.is_refusal == reason.is_refusal
                && without_digits(&last.text).eq(without_digits(&reason.text))
        };
        let is_news = !self.0.get(hub).is_some_and(is_same);
        self.0.insert(hub.to_owned(), reason);
        is_news
    }

    /// A session is open.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The most telling reason, given the one of the hub dialled last.
    pub(super) fn shown(&self, last: &str) -> Option<String> {
        let of_last = self.0.get(last)?;
        if of_last.is_refusal {
            return Some(of_last.text.clone());
        }
        let refusal = self.0.iter().find(|(_, reason)| reason.is_refusal);
        let text = match refusal {
            Some((hub, refusal)) => format!("{}; {hub}: {}", of_last.text, refusal.text),
            None => of_last.text.clone(),
        };
        Some(text)
    }
}

/// The clock's reading is part of some reasons, and a port that changes is no other reason.
fn without_digits(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().filter(|c| !c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Reason {
        Reason {
            text: text.to_owned(),
            is_refusal: true,
        }
    }

    fn offline() -> Reason {
        Reason {
            text: "the hub does not answer".to_owned(),
            is_refusal: false,
        }
    }

    #[test]
    fn a_reason_is_news_once() {
        let mut reasons = Reasons::default();
        assert!(reasons.note(
            "a:1",
            refused("expired; the clock reads 2026-01-01T00:00:01Z")
        ));
        assert!(!reasons.note(
            "a:1",
            refused("expired; the clock reads 2026-01-01T00:00:09Z")
        ));
        assert!(reasons.note("b:1", offline()));
        assert!(!reasons.note(
            "a:1",
            refused("expired; the clock reads 2026-01-01T00:01:00Z")
        ));
        assert!(reasons.note("a:1", refused("not on the allow list")));
        reasons.clear();
        assert!(reasons.note("b:1", offline()));
    }

    #[test]
    fn a_refusal_is_shown_beside_a_hub_that_does_not_answer() {
        let mut reasons = Reasons::default();
        reasons.note("a:1", refused("not on the allow list"));
        reasons.note("b:1", offline());
        let shown = reasons.shown("b:1").unwrap();
        assert_eq!(shown, "the hub does not answer; a:1: not on the allow list");
        assert_eq!(reasons.shown("a:1").unwrap(), "not on the allow list");
    }
}
