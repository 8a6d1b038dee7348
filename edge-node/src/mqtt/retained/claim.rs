//! Room for a message that is on its way.

use std::sync::{Arc, Mutex, PoisonError};

use super::Retained;
use crate::mqtt::session::Place;

/// The retained messages, shared.
pub type SharedRetained = Arc<Mutex<Retained>>;

/// Room for one message; given back on drop, unless the message is stored.
#[derive(Debug)]
pub struct Claim {
    retained: SharedRetained,
    topic: Arc<str>,
    weight: usize,
    place: Option<Place>,
}

impl Claim {
    /// Takes it; `None`: there is none.
    #[must_use]
    pub fn take(retained: &SharedRetained, topic: &Arc<str>, weight: usize) -> Option<Self> {
        let mut all = retained.lock().unwrap_or_else(PoisonError::into_inner);
        all.claim(topic, weight).then(|| Self {
            retained: retained.clone(),
            topic: topic.clone(),
            weight,
            place: None,
        })
    }

    /// The message is in the log: its room is held until the tail has passed it there.
    /// `None`: nobody knows where, so nobody passes it.
    pub fn stored(mut self, place: Option<Place>) {
        self.place = place;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        match self.place {
            Some(place) => all.stored(&self.topic, self.weight, place),
            None => all.give_back(&self.topic, self.weight),
        }
    }
}
