//! What changed on disk while the hub runs and cannot be used: the old goes on, and a person has to know.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a status shows of an error that lists every problem of a file.
const MAX_CHARS: usize = 2_000;

/// The last look at each kind of file.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<Last>);

#[derive(Debug, Default)]
struct Last {
    file: Option<String>,
    certificates: Option<String>,
}

impl Reloads {
    /// The configuration file was read again. True when what is wrong with it is news.
    pub fn file(&self, error: Option<String>) -> bool {
        note(&mut self.lock().file, error)
    }

    /// The certificates were.
    pub fn certificates(&self, error: Option<String>) -> bool {
        note(&mut self.lock().certificates, error)
    }

    /// What a person should mend; empty when all that is on disk is in use.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let last = self.lock();
        let file = last.file.as_ref().map(|error| {
            format!("the configuration file cannot be used, the old rules for sites hold: {error}")
        });
        let certificates = last.certificates.as_ref().map(|error| {
            format!("renewed certificates cannot be used, the old ones stay: {error}")
        });
        file.into_iter().chain(certificates).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(held: &mut Option<String>, error: Option<String>) -> bool {
    let error = error.map(|text| text.chars().take(MAX_CHARS).collect());
    let is_news = error.is_some() && *held != error;
    *held = error;
    is_news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_a_problem_until_it_can() {
        let reloads = Reloads::default();
        assert!(!reloads.file(None));
        assert!(reloads.file(Some("kafka.bootstrap: missing".to_owned())));
        assert!(!reloads.file(Some("kafka.bootstrap: missing".to_owned())));
        assert!(reloads.certificates(Some("hub.pem: no certificate".to_owned())));
        let problems = reloads.problems();
        assert!(problems[0].ends_with("the old rules for sites hold: kafka.bootstrap: missing"));
        assert!(problems[1].ends_with("the old ones stay: hub.pem: no certificate"));
        reloads.file(None);
        assert_eq!(reloads.problems().len(), 1);
    }
}
