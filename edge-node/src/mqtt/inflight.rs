//! What was sent to a client with QoS 1 or 2 and is not yet done. Plain code.
//!
//! ```text
//! QoS 1: Sent ──PUBACK──► gone
//! QoS 2: Sent ──PUBREC──► Released (PUBREL sent) ──PUBCOMP──► gone
//! ```
//! In the order of sending, which is the order of sending again after a reconnect. At most as many as the
//! client takes (MQTT 5, section 4.9) and as the configuration allows.

use std::collections::VecDeque;

use super::session::{Delivery, Place};

/// One of them.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its packet id.
    pub id: u16,
    /// What was sent, when it is not in the log. Of all else only the place is kept: it is read again if it has to be
    /// sent again, so what a client leaves unacknowledged takes no memory.
    pub delivery: Option<Delivery>,
    /// Where its record is, when it is in the log.
    pub place: Option<Place>,
    /// The filter of the shared subscription that it came by.
    pub shared: Option<Box<str>>,
    /// True: 2, false: 1.
    pub is_exactly_once: bool,
    /// PUBREC came: PUBREL is what is sent again.
    pub is_released: bool,
    /// It was the retained message of a new subscription.
    pub is_retained: bool,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Inflight {
    sent: VecDeque<Sent>,
    last_id: u16,
}

impl Inflight {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// True when everything is done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// What was sent with this id.
    #[must_use]
    pub fn get(&self, id: u16) -> Option<&Sent> {
        self.sent.iter().find(|sent| sent.id == id)
    }

    /// In the order of sending.
    pub fn iter(&self) -> impl Iterator<Item = &Sent> {
        self.sent.iter()
    }

    /// Puts one back that outlived a restart.
    pub fn restore(&mut self, sent: Sent) {
        self.last_id = sent.id;
        self.sent.push_back(sent);
    }

    /// Notes that a delivery is sent, and gives its packet id. `None`: all ids are taken.
    pub fn send(&mut self, delivery: &Delivery, is_exactly_once: bool) -> Option<u16> {
        let id = (0..u16::MAX).find_map(|_| {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let is_free = !self.sent.iter().any(|sent| sent.id == self.last_id);
            is_free.then_some(self.last_id)
        })?;
        self.sent.push_back(Sent {
            id,
            place: delivery.place,
            is_retained: delivery.is_retained,
            shared: delivery.shared.clone(),
            delivery: delivery.place.is_none().then(|| delivery.clone()),
            is_exactly_once,
            is_released: false,
        });
        Some(id)
    }

    /// PUBACK: false when nothing of this id waits for it.
    pub fn acknowledged(&mut self, id: u16) -> bool {
        self.remove(|sent| sent.id == id && !sent.is_exactly_once)
    }

    /// PUBREC: false when nothing of this id waits for it. It may come again.
    pub fn received(&mut self, id: u16) -> bool {
        let sent = self
            .sent
            .iter_mut()
            .find(|sent| sent.id == id && sent.is_exactly_once);
        let Some(sent) = sent else { return false };
        sent.is_released = true;
        sent.delivery = None;
        true
    }

    /// PUBREC with an error: the client does not want it.
    pub fn refused(&mut self, id: u16) -> bool {
        self.remove(|sent| sent.id == id)
    }

    /// PUBCOMP: false when nothing of this id waits for it.
    pub fn completed(&mut self, id: u16) -> bool {
        self.remove(|sent| sent.id == id && sent.is_released)
    }

    fn remove(&mut self, is_it: impl Fn(&Sent) -> bool) -> bool {
        let at = self.sent.iter().position(is_it);
        at.is_some_and(|at| self.sent.remove(at).is_some())
    }
}
