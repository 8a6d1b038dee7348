//! Subscriptions of sessions.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::warn;

use super::group::shared;
use super::{Broker, Group, Session, Subscriber};
use crate::access::Principal;
use crate::ingest::Reservation;
use crate::mqtt::codec::is_valid_filter;
use crate::mqtt::filters::{is_system, matches};
use crate::mqtt::inflight::Sent;
use crate::mqtt::packet::{Options, Qos, RetainHandling, reason};
use crate::mqtt::session::{Delivery, Fare, Place, Scan};

/// Retained messages put into a queue at a time.
const SCAN: usize = 64;

impl Broker {
    /// Subscribes, and gives the codes for SUBACK. What is published from now on is delivered.
    pub async fn subscribe(
        &self,
        session: &Arc<Session>,
        user: &Principal,
        filters: Vec<(String, Options)>,
    ) -> Vec<u8> {
        self.tail_caught_up().await;
        let codes = filters
            .into_iter()
            .map(|(filter, options)| self.subscribe_one(session, user, filter, options));
        let codes = codes.collect();
        if self.save(session).await {
            session.state().wake();
            return codes;
        }
        codes.into_iter().map(|_| reason::UNSPECIFIED).collect()
    }

    fn subscribe_one(
        &self,
        session: &Arc<Session>,
        user: &Principal,
        filter: String,
        options: Options,
    ) -> u8 {
        if let Err(code) = self.may_subscribe(user, &filter) {
            return code;
        }
        let is_shared = filter.starts_with("$share/");
        let is_new = {
            // held until messages find the session: what is before it is not for the subscription, all else is
            let tail = self.tail();
            let is_new = {
                let mut state = session.state();
                if !state.may_subscribe(&filter) {
                    return reason::QUOTA_EXCEEDED;
                }
                state.subscribe(&filter, options, tail.processed())
            };
            self.insert_filter(session, &filter, options);
            is_new
        };
        let wants_retained = match options.retain_handling {
            RetainHandling::Always => true,
            RetainHandling::IfNew => is_new,
            RetainHandling::Never => false,
        };
        if wants_retained && !is_shared {
            let scan = Scan {
                filter,
                options,
                after: None,
                is_last: false,
            };
            session.state().scan(scan);
        }
        options.qos.number()
    }

    /// Whether a user may have a subscription.
    fn may_subscribe(&self, user: &Principal, filter: &str) -> Result<(), u8> {
        let (name, plain) = match shared(filter) {
            Some((name, plain)) => (Some(name), plain),
            None => (None, filter),
        };
        let is_bad_name = name.is_some_and(|name| name.is_empty() || name.contains(['+', '#']));
        let is_half_shared = name.is_none() && filter.starts_with("$share/");
        if is_bad_name || is_half_shared || !is_valid_filter(plain) {
            return Err(reason::FILTER_INVALID);
        }
        if self
            .config
            .no_subscribe
            .iter()
            .any(|denied| denied == plain || matches(denied, plain))
        {
            return Err(reason::UNSPECIFIED);
        }
        let mut behind = self.map.behind(plain);
        if !is_system(plain) && !behind.all(|kafka| user.may_consume(kafka.as_str())) {
            return Err(reason::NOT_AUTHORIZED);
        }
        Ok(())
    }

    /// Ends the subscriptions of a session that comes back to a user who may not have them any more: the rules may
    /// have changed with a restart.
    pub(super) fn drop_revoked(&self, session: &Session, user: &Principal) {
        let revoked: Vec<String> = {
            let state = session.state();
            let filters = state.subscriptions.iter();
            filters
                .filter(|(filter, _)| self.may_subscribe(user, filter).is_err())
                .map(|(filter, _)| filter.to_string())
                .collect()
        };
        for filter in &revoked {
            self.drop_filter(session, filter);
        }
        if !revoked.is_empty() {
            let (client_id, count) = (&*session.client_id, revoked.len());
            warn!(client_id, user = ?user.name(), count, "Subscriptions ended that the user may not have any more");
        }
    }

    /// Whether a user may read a record's topic.
    pub fn may_have(&self, user: &Principal, place: Place) -> bool {
        let name = self.tail().name(place.partition);
        name.is_none_or(|name| user.may_consume(&name))
    }

    /// Ends a subscription; false: there was none.
    fn drop_filter(&self, session: &Session, filter: &str) -> bool {
        let (had, owed) = {
            let mut state = session.state();
            let had = state.unsubscribe(filter);
            (had, state.take_owed(filter))
        };
        self.give_back(owed);
        self.remove_filter(session, filter);
        had
    }

    /// Lets messages find a session.
    pub(super) fn insert_filter(&self, session: &Arc<Session>, filter: &str, options: Options) {
        let subscriber = Subscriber {
            session: session.clone(),
            options,
        };
        let key = session.key;
        let Some((name, plain)) = shared(filter) else {
            let is_same = |old: &Subscriber| old.session.key == key;
            self.filters_mut().insert(filter, subscriber, is_same);
            return;
        };
        let mut groups = self.groups_mut();
        let group = groups
            .at(plain)
            .iter()
            .find(|group| *group.name == *name)
            .cloned();
        let group = group.unwrap_or_else(|| {
            let group = Group::new(name, filter, &self.backlogs);
            groups.insert(plain, group.clone(), |_| false);
            group
        });
        group.join(subscriber);
    }

    pub(super) fn remove_filter(&self, session: &Session, filter: &str) {
        let key = session.key;
        let Some((name, plain)) = shared(filter) else {
            self.filters_mut()
                .remove(filter, |old| old.session.key == key);
            return;
        };
        let mut groups = self.groups_mut();
        let group = groups
            .at(plain)
            .iter()
            .find(|group| *group.name == *name)
            .cloned();
        if let Some(group) = group.filter(|group| group.has(key))
            && group.leave(key)
        {
            groups.remove(plain, |other| Arc::ptr_eq(other, &group));
        }
    }

    /// Ends subscriptions, and gives the codes for UNSUBACK.
    pub async fn unsubscribe(&self, session: &Arc<Session>, filters: Vec<String>) -> Vec<u8> {
        let mut codes = Vec::with_capacity(filters.len());
        for filter in filters {
            let had = self.drop_filter(session, &filter);
            codes.push(if had {
                reason::SUCCESS
            } else {
                reason::NO_SUBSCRIPTION_EXISTED
            });
        }
        if self.save(session).await {
            return codes;
        }
        codes.into_iter().map(|_| reason::UNSPECIFIED).collect()
    }

    /// Puts some of the retained messages of new subscriptions into the queue, once those before have been taken
    /// from it: as many as there is room for, with what was waited for. The bytes of the first when there is room for
    /// none.
    pub fn scan_retained(&self, session: &Session, granted: Option<Reservation>) -> Option<usize> {
        let mut granted = granted;
        let mut state = session.state();
        if state.has_waiting() {
            return None;
        }
        if state.scans.front().is_some_and(|scan| scan.is_last) {
            state.scans.pop_front();
            state.is_dirty = true;
        }
        let Some(scan) = state.scans.front_mut() else {
            state.scans = VecDeque::new();
            return None;
        };
        let store = if is_system(&scan.filter) {
            self.system()
        } else {
            self.retained()
        };
        let found = store.find(&scan.filter, scan.after.as_deref(), SCAN);
        drop(store);
        let is_last = found.len() < SCAN;
        let (mut is_cut, mut short) = (false, None);
        let options = scan.options;
        let now_ms = shared::time::wall_ms();
        for held in &found {
            if held.message.is_expired(now_ms) {
                continue;
            }
            let qos = held.message.qos.min(options.qos);
            if !state.has_room() {
                is_cut = true;
                break;
            }
            let mut delivery = Delivery {
                message: held.message.clone(),
                qos,
                retain: true,
                identifiers: options.identifier.into_iter().collect(),
                place: held.place.filter(|_| qos != Qos::AtMostOnce),
                is_retained: true,
                shared: None,
                paid: None,
            };
            let mut fare = Fare::new(&self.queues, granted.take());
            if !state.pays(&mut delivery, &mut fare) {
                is_cut = true;
                short = (!state.has_waiting()).then(|| delivery.message.weight());
                break;
            }
            state.enqueue(delivery);
        }
        let scan = state.scans.front_mut()?;
        scan.is_last = is_last && !is_cut;
        if !is_last && found.iter().all(|held| held.message.is_expired(now_ms)) {
            // none of them will be taken
            scan.after = found.last().map(|held| held.message.topic.clone());
        }
        short
    }

    /// The delivery of a record that was on its way to a client when the client went. Blocks.
    pub fn loaded(&self, session: &Session, sent: &Sent) -> Option<Delivery> {
        let place = sent.place?;
        let kept = || {
            let retained = sent.is_retained.then(|| self.retained());
            retained?.of_record(place)
        };
        let message = self.load(place).or_else(kept)?;
        let qos = if sent.is_exactly_once {
            Qos::ExactlyOnce
        } else {
            Qos::AtLeastOnce
        };
        let state = session.state();
        let mut delivery = state.wants(&message, place).unwrap_or_else(|| Delivery {
            message,
            qos,
            retain: false,
            identifiers: Vec::new(),
            place: Some(place),
            is_retained: false,
            shared: None,
            paid: None,
        });
        delivery.qos = qos;
        delivery.retain |= sent.is_retained;
        Some(delivery)
    }
}
