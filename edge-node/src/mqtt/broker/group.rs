//! Shared subscriptions: each message goes to one of the members (MQTT 5, section 4.8.2).
//!
//! To the members in turn, leaving out those that are away, that read the log, or whose queue is full. When
//! nobody is left the message waits for the group: its place in the log, not a copy, and only while the
//! process runs. Members that go give back what they had not been sent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Broker, Session, Subscriber};
use crate::mqtt::packet::{Message, Qos};
use crate::mqtt::session::{Delivery, Offered, Place, Positions, merge};

/// Messages that wait for one group; beyond, the newest are lost to it.
const MAX_BACKLOG: usize = 10_000;

/// The members of a shared subscription.
#[derive(Debug)]
pub struct Group {
    /// `$share/<name>/<filter>`, its name.
    pub name: Box<str>,
    /// The whole of it.
    filter: Box<str>,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    list: Vec<Subscriber>,
    /// Whose turn it is.
    next: usize,
    backlog: VecDeque<Place>,
}

impl Group {
    pub(super) fn new(name: &str, filter: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            filter: filter.into(),
            members: Mutex::default(),
        })
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, subscriber: Subscriber) {
        let mut members = self.members();
        members
            .list
            .retain(|old| old.session.key != subscriber.session.key);
        members.list.push(subscriber);
    }

    /// True when nobody is left.
    pub(super) fn leave(&self, key: u64) -> bool {
        let mut members = self.members();
        members.list.retain(|old| old.session.key != key);
        members.list.is_empty()
    }

    /// Whether a session is a member.
    pub(super) fn has(&self, key: u64) -> bool {
        self.members()
            .list
            .iter()
            .any(|member| member.session.key == key)
    }

    /// Gives a message to the next member that takes it.
    pub(in crate::mqtt) fn offer(
        &self,
        place: Place,
        message: &Arc<Message>,
        tail: &Positions,
    ) -> Offered {
        let mut members = self.members();
        if members.backlog.is_empty()
            && let Some(offered) = members.give(&self.filter, place, message, tail)
        {
            return offered;
        }
        let waits = |member: &Subscriber| message.qos.min(member.options.qos) != Qos::AtMostOnce;
        if members.backlog.len() >= MAX_BACKLOG || !members.list.iter().any(waits) {
            return Offered::Dropped;
        }
        members.backlog.push_back(place);
        Offered::Left
    }

    /// Puts back what a member was not sent.
    fn return_to(&self, place: Place) {
        let mut members = self.members();
        if members.backlog.len() < MAX_BACKLOG {
            let at = members.backlog.partition_point(|other| *other < place);
            members.backlog.insert(at, place);
        }
    }

    /// The next that waits, when there is somebody to take it.
    fn next_waiting(&self) -> Option<Place> {
        let members = self.members();
        let place = members.backlog.front().copied()?;
        members.list.iter().any(takes).then_some(place)
    }

    /// True when it is done with.
    fn give_waiting(&self, place: Place, message: Option<&Arc<Message>>, tail: &Positions) -> bool {
        let mut members = self.members();
        if members.backlog.front() != Some(&place) {
            return true;
        }
        let is_given = message
            .is_none_or(|message| members.give(&self.filter, place, message, tail).is_some());
        if is_given {
            members.backlog.pop_front();
        }
        is_given
    }
}

fn takes(member: &Subscriber) -> bool {
    let state = member.session.state();
    state.link.is_some() && state.behind().is_none() && state.has_room()
}

impl Members {
    fn give(
        &mut self,
        filter: &str,
        place: Place,
        message: &Arc<Message>,
        tail: &Positions,
    ) -> Option<Offered> {
        let count = self.list.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            let member = &self.list[at];
            if !takes(member) {
                continue;
            }
            let options = std::iter::once(&member.options);
            let Some(mut delivery) =
                merge(message, options, &member.session.client_id, Some(place))
            else {
                continue;
            };
            delivery.shared = Some(filter.into());
            let offered = member.session.state().offer(delivery, tail);
            self.next = at + 1;
            return Some(offered);
        }
        None
    }
}

/// Name and filter of a shared subscription.
pub(super) fn shared(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

impl Broker {
    pub(super) fn group(&self, filter: &str) -> Option<Arc<Group>> {
        let (name, plain) = shared(filter)?;
        self.groups()
            .at(plain)
            .iter()
            .find(|group| *group.name == *name)
            .cloned()
    }

    /// Takes what a member that goes was not sent.
    pub(super) fn take_back(&self, deliveries: Vec<Delivery>) {
        let places = deliveries
            .into_iter()
            .filter_map(|delivery| Some((delivery.shared?, delivery.place?)));
        self.give_back(places);
    }

    /// The same, by the filters of shared subscriptions and the records.
    pub(super) fn give_back(&self, places: impl IntoIterator<Item = (Box<str>, Place)>) {
        for (filter, place) in places {
            if let Some(group) = self.group(&filter) {
                group.return_to(place);
            }
        }
    }

    /// Puts what a member was given before a restart into its queue, as far as there is room. Blocks.
    pub fn load_owed(&self, session: &Session) {
        loop {
            let first = {
                let state = session.state();
                let first = state.owed.front().filter(|_| state.has_room());
                first.cloned()
            };
            let Some(first) = first else { return };
            let message = self.load(first.1);
            let mut state = session.state();
            if state.owed.front() != Some(&first) {
                continue;
            }
            state.owed.pop_front();
            state.is_dirty = true;
            let (filter, place) = first;
            let options = state.subscriptions.get(&filter).copied();
            if let (Some(message), Some(options)) = (message, options)
                && let Some(mut delivery) = merge(
                    &message,
                    std::iter::once(&options),
                    &session.client_id,
                    Some(place),
                )
            {
                delivery.shared = Some(filter);
                state.enqueue(delivery);
            }
        }
    }

    /// Gives what waits for groups to members that have come, or have room. Blocks.
    pub(super) fn serve_groups(&self) {
        let mut waiting = Vec::new();
        self.groups().for_each(|group| {
            if group.next_waiting().is_some() {
                waiting.push(group.clone());
            }
        });
        for group in waiting {
            // all that waits: a backlog that drains slower than it fills would never end
            for _ in 0..MAX_BACKLOG {
                let Some(place) = group.next_waiting() else {
                    break;
                };
                let message = self.load(place);
                let tail = self.tail().processed().clone();
                if !group.give_waiting(place, message.as_ref(), &tail) {
                    break;
                }
            }
        }
    }
}
