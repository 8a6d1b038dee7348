//! Shared subscriptions: each message goes to one of the members (MQTT 5, section 4.8.2).
//!
//! To the members in turn, leaving out those that are away, that read the log, or whose queue is full. When
//! nobody is left the message waits for the group: its place in the log, not a copy, and only while the
//! process runs. Members that go give back what they had not been sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Broker, Session, Subscriber};
use crate::ingest::Reservation;
use crate::mqtt::packet::{Message, Qos};
use crate::mqtt::session::{Fare, Offered, Place, Positions, State, merge};

/// Messages that wait for one group; beyond, the newest are lost to it.
const MAX_BACKLOG: usize = 10_000;
/// Messages that wait for all groups, of 16 bytes each; beyond, each has only its share.
pub(super) const MAX_BACKLOGS: usize = 512 * 1024;

/// What waits for all groups.
#[derive(Debug)]
pub struct Backlogs {
    most: usize,
    places: AtomicUsize,
    groups: AtomicUsize,
}

impl Backlogs {
    /// At most so many places, and once more as many where each group has no more than its share.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            places: AtomicUsize::new(0),
            groups: AtomicUsize::new(0),
        })
    }

    /// Whether a group for which `len` wait already may have another.
    fn takes(&self, len: usize) -> bool {
        let share = self.most / self.groups.load(Ordering::Relaxed).max(1);
        let has_room = self.places.load(Ordering::Relaxed) < self.most;
        len < MAX_BACKLOG && (has_room || len < share)
    }
}

/// The members of a shared subscription.
#[derive(Debug)]
pub struct Group {
    /// `$share/<name>/<filter>`, its name.
    pub name: Box<str>,
    /// The whole of it.
    filter: Box<str>,
    members: Mutex<Members>,
    backlogs: Arc<Backlogs>,
}

impl Drop for Group {
    fn drop(&mut self) {
        let len = self.members().backlog.len();
        self.backlogs.places.fetch_sub(len, Ordering::Relaxed);
        self.backlogs.groups.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Members {
    list: Vec<Subscriber>,
    /// Whose turn it is.
    next: usize,
    backlog: VecDeque<Place>,
}

impl Group {
    pub(super) fn new(name: &str, filter: &str, backlogs: &Arc<Backlogs>) -> Arc<Self> {
        backlogs.groups.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            backlogs: backlogs.clone(),
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
        fare: &mut Fare<'_>,
    ) -> Offered {
        let mut members = self.members();
        if members.backlog.is_empty()
            && let Some(offered) = members.give(&self.filter, place, message, tail, fare)
        {
            return offered;
        }
        let waits = |member: &Subscriber| message.qos.min(member.options.qos) != Qos::AtMostOnce;
        if !self.backlogs.takes(members.backlog.len()) || !members.list.iter().any(waits) {
            return Offered::Dropped;
        }
        self.backlogs.places.fetch_add(1, Ordering::Relaxed);
        members.backlog.push_back(place);
        Offered::Left
    }

    /// Puts back what a member was not sent.
    fn return_to(&self, place: Place) {
        let mut members = self.members();
        if self.backlogs.takes(members.backlog.len()) {
            self.backlogs.places.fetch_add(1, Ordering::Relaxed);
            let at = members.backlog.partition_point(|other| *other < place);
            members.backlog.insert(at, place);
        }
    }

    /// The next that waits, when there is somebody to take it.
    fn next_waiting(&self) -> Option<Place> {
        let members = self.members();
        let place = members.backlog.front().copied()?;
        let is_there = |member: &Subscriber| takes(&member.session.state());
        members.list.iter().any(is_there).then_some(place)
    }

    /// True when it is done with.
    fn give_waiting(
        &self,
        place: Place,
        message: Option<&Arc<Message>>,
        tail: &Positions,
        fare: &mut Fare<'_>,
    ) -> bool {
        let mut members = self.members();
        if members.backlog.front() != Some(&place) {
            return true;
        }
        let is_given = message.is_none_or(|message| {
            let given = members.give(&self.filter, place, message, tail, fare);
            given.is_some()
        });
        if is_given {
            members.backlog.pop_front();
            self.backlogs.places.fetch_sub(1, Ordering::Relaxed);
            if members.backlog.is_empty() {
                members.backlog = VecDeque::new();
            }
        }
        is_given
    }
}

fn takes(state: &State) -> bool {
    state.link.is_some() && state.behind().is_none() && state.has_room()
}

impl Members {
    fn give(
        &mut self,
        filter: &str,
        place: Place,
        message: &Arc<Message>,
        tail: &Positions,
        fare: &mut Fare<'_>,
    ) -> Option<Offered> {
        let count = self.list.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            let member = &self.list[at];
            let mut state = member.session.state();
            if !takes(&state) {
                continue;
            }
            let options = std::iter::once(&member.options);
            let Some(mut delivery) =
                merge(message, options, &member.session.client_id, Some(place))
            else {
                continue;
            };
            delivery.shared = Some(filter.into());
            if !state.pays(&mut delivery, fare) {
                continue;
            }
            let offered = state.offer(delivery, tail, fare);
            drop(state);
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

    /// Takes what a member was not sent: the filters of shared subscriptions and the records.
    pub(super) fn give_back(&self, places: impl IntoIterator<Item = (Box<str>, Place)>) {
        for (filter, place) in places {
            if let Some(group) = self.group(&filter) {
                group.return_to(place);
            }
        }
    }

    /// Puts what a member was given and has not got into its queue, as far as there is room, with what was waited
    /// for. The bytes of the next when the node has no room for it. Blocks.
    pub fn load_owed(&self, session: &Session, granted: Option<Reservation>) -> Option<usize> {
        let mut granted = granted;
        loop {
            let first = {
                let state = session.state();
                let first = state.owed.front().filter(|_| state.has_room());
                first.cloned()
            };
            let first = first?;
            let message = self.load(first.1);
            let mut state = session.state();
            if state.owed.front() != Some(&first) {
                continue;
            }
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
                let mut fare = Fare::new(&self.queues, granted.take());
                if !state.pays(&mut delivery, &mut fare) {
                    return Some(delivery.message.weight());
                }
                state.enqueue(delivery);
            }
            state.owed.pop_front();
            state.is_dirty = true;
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
                let mut fare = Fare::new(&self.queues, None);
                if !group.give_waiting(place, message.as_ref(), &tail, &mut fare) {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::packet::{Options, RetainHandling};
    use crate::mqtt::session::{Overflow, SessionLimits};
    use crate::store::PartitionId;

    #[test]
    fn what_waits_for_all_groups_is_bounded_and_each_has_its_share() {
        let limits = SessionLimits {
            queue_messages: 1,
            queue_bytes: 1,
            overflow: Overflow::DropNewest,
            subscriptions: 1,
            filter_bytes: 10,
        };
        let options = Options {
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Never,
            identifier: None,
        };
        let backlogs = Backlogs::new(100);
        let group = |key| {
            let group = Group::new("g", "$share/g/t", &backlogs);
            let session = Session::new(key, State::new(Arc::from("c"), limits));
            group.join(Subscriber { session, options });
            group
        };
        let message = Arc::new(Message {
            topic: Arc::from("t"),
            payload: bytes::Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            published_ms: 0,
            properties: None,
            from: None,
        });
        let fill = |group: &Group| {
            let kept = (0..1_000).filter(|offset| {
                let place = Place {
                    partition: PartitionId(1),
                    offset: *offset,
                };
                let offered = group.offer(place, &message, &Positions::new(), &mut Fare::default());
                offered == Offered::Left
            });
            kept.count()
        };
        let first = group(1);
        assert_eq!(fill(&first), 100);
        let others: Vec<_> = (2..=4).map(group).collect();
        for other in &others {
            assert_eq!(fill(other), 25, "its share");
        }
        drop(first);
        drop(others);
        assert_eq!(backlogs.places.load(Ordering::Relaxed), 0);
        assert_eq!(fill(&group(5)), 100);
    }
}
