//! What a client's session knows: subscriptions, what waits for the client, what it has not yet
//! acknowledged, and how far it has come in the log. Plain code.
//!
//! ```text
//!             a message finds the queue full, or the client goes
//!      Live ───────────────────────────────────────────────────► Behind (its own place in the log)
//!        ▲                                                          │
//!        └──── client is there, and has read as far as the tail ────┘
//! ```
//! While Live the tail puts messages into the queue. While Behind the queue is filled from the log, from
//! the session's own place on: so what waits for a client that is away is a number for each partition, and
//! not a copy, and lasts as long as the log's retention. Messages of QoS 0 are for those who are there, and
//! never come from there.
//!
//! Always true: every record before a session's place ([`State::place_in_log`]) was taken into `inflight`
//! or is not for it.

mod fare;
mod since;
mod subscriptions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shared::ids::Offset;
use tokio::sync::oneshot::error::TryRecvError;

pub use fare::{FREE_QUEUE, Fare, Paid};
pub use since::{Moment, Since};
pub use subscriptions::Subscriptions;

use super::filters::matches;
use super::gather::Synced;
use super::inflight::Inflight;
use super::packet::{Message, Options, Qos, Will, reason};
use super::saved::SavedProgress;
use crate::store::PartitionId;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its log.
    pub partition: PartitionId,
    /// Its offset.
    pub offset: Offset,
}

/// The next offset in each log.
pub type Positions = BTreeMap<PartitionId, Offset>;

/// A message as it goes to one client.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Shared by all who get it.
    pub message: Arc<Message>,
    /// The lower of the publisher's and the subscription's.
    pub qos: Qos,
    /// The flag.
    pub retain: bool,
    /// Of the subscriptions that match.
    pub identifiers: Vec<u32>,
    /// Its record; `None`: it is the broker's own, or of QoS 0 and so not read again.
    pub place: Option<Place>,
    /// It is the retained message of a new subscription, from the first of [`State::scans`].
    pub is_retained: bool,
    /// The filter of the shared subscription that it came by, as the client wrote it.
    pub shared: Option<Box<str>>,
    /// What it holds of the node's budget while it is in a queue; `None`: it is in the queue's free share.
    pub paid: Option<Paid>,
}

/// What happens to a message of QoS 0 for a client whose queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest of QoS 0 in the queue goes.
    DropOldest,
    /// It goes.
    DropNewest,
    /// The client is disconnected.
    Disconnect,
}

/// Bounds of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Messages that wait in memory.
    pub queue_messages: usize,
    /// Their bytes, though one message is always taken.
    pub queue_bytes: usize,
    /// What happens to QoS 0 beyond.
    pub overflow: Overflow,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Bytes of their filters.
    pub filter_bytes: usize,
}

/// Where a session gets its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    /// From the tail.
    Live,
    /// From the log, from here on.
    Behind(Positions),
}

/// What became of a message that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It waits in the queue.
    Queued,
    /// The session reads it from the log.
    Left,
    /// It was of QoS 0, and it or an older one is lost to this client.
    Dropped,
}

/// The connection that a session has at the moment.
#[derive(Debug)]
pub struct Link {
    /// Tells one connection from another.
    pub number: u64,
    /// Why it must go.
    pub kicked: Option<u8>,
    /// Messages of QoS 1 and 2 that the client takes at a time.
    pub window: usize,
    /// There is something to send, or a reason to go, and the connection has not seen it.
    is_woken: bool,
    /// The connection's task.
    waker: Option<Waker>,
}

impl Link {
    /// A connection whose client takes so many messages of QoS 1 and 2 at a time.
    #[must_use]
    pub fn new(number: u64, window: usize) -> Self {
        Self {
            number,
            kicked: None,
            window,
            is_woken: false,
            waker: None,
        }
    }

    fn wake(&mut self) {
        self.is_woken = true;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// What is known of a PUBLISH of QoS 2 that comes.
#[derive(Debug)]
pub enum Incoming {
    /// It is to be stored.
    New,
    /// It is stored, or on its way on this connection.
    Known,
    /// It was on its way when an earlier connection ended; this says what becomes of it.
    Unsettled(Synced),
}

/// Retained messages that a new subscription still has to get. Some of those of the first may be in the
/// queue; when the client goes they are looked for again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Of the subscription.
    pub filter: String,
    /// Of the subscription.
    pub options: Options,
    /// The last topic whose message was taken from the queue.
    pub after: Option<Arc<str>>,
    /// Those in the queue are the last.
    pub is_last: bool,
}

/// A session.
#[derive(Debug)]
pub struct State {
    /// Whose.
    pub client_id: Arc<str>,
    /// The user that it belongs to; nobody else gets it.
    pub owner: Option<Box<str>>,
    /// Absent while the client is away.
    pub link: Option<Link>,
    /// Seconds that it outlives its connection; `u32::MAX`: for ever.
    pub expiry_s: u32,
    /// Of the connection, or waiting for its delay.
    pub will: Option<Box<Will>>,
    /// By filter as it came, `$share/...` included.
    pub subscriptions: Subscriptions,
    /// From where in the log those hold that began ahead of the session's place.
    pub since: Since,
    /// Packet ids of QoS 2 that the client has not released.
    pub incoming: BTreeSet<u16>,
    /// Those of them whose connection ended before it was known whether they are stored.
    pub unsettled: BTreeMap<u16, Synced>,
    /// What was sent.
    pub inflight: Inflight,
    /// Retained messages to come.
    pub scans: VecDeque<Scan>,
    /// What it was given as a member of shared subscriptions before a restart, with their filters, and has not been
    /// sent: bounded by the queue that it was in.
    pub owed: VecDeque<(Box<str>, Place)>,
    /// Somebody fills the queue from the log.
    pub is_reading: bool,
    /// What is on disk of its progress is not the newest.
    pub is_dirty: bool,
    /// It may be on disk, as it was written when it outlived its connection.
    pub is_on_disk: bool,
    /// Its filters on disk are these.
    pub has_saved_filters: bool,
    /// It has ended; nobody may use it.
    pub is_over: bool,
    /// The deadline at which it ends, while its client is away: when, and its number.
    pub end_deadline: Option<(Duration, u64)>,
    /// The deadline at which its will is published.
    pub will_deadline: Option<(Duration, u64)>,
    /// Packet ids of QoS 2 may be on disk.
    pub has_facts: bool,
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    /// Those of them that are not paid for.
    free_bytes: usize,
    /// Something is paid for, and nothing was taken since [`State::spill`] looked last.
    is_stalled: bool,
    feed: Feed,
    limits: SessionLimits,
}

impl State {
    /// A new session, without subscriptions and so with nothing behind it.
    #[must_use]
    pub fn new(client_id: Arc<str>, limits: SessionLimits) -> Self {
        Self {
            client_id,
            owner: None,
            link: None,
            expiry_s: 0,
            will: None,
            subscriptions: Subscriptions::default(),
            since: Since::default(),
            incoming: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            inflight: Inflight::default(),
            scans: VecDeque::new(),
            owed: VecDeque::new(),
            is_reading: false,
            is_dirty: false,
            is_on_disk: false,
            has_saved_filters: false,
            is_over: false,
            end_deadline: None,
            will_deadline: None,
            has_facts: false,
            queue: VecDeque::new(),
            queue_bytes: 0,
            free_bytes: 0,
            is_stalled: false,
            feed: Feed::Live,
            limits,
        }
    }

    /// One that outlived a restart.
    #[must_use]
    pub fn restored(client_id: Arc<str>, limits: SessionLimits, saved: SavedProgress) -> Self {
        let mut state = Self::new(client_id, limits);
        state.is_on_disk = true;
        state.feed = Feed::Behind(saved.positions);
        for sent in saved.sent {
            state.inflight.restore(sent);
        }
        state.scans = saved.scans.into();
        state.owed = saved.owed.into();
        state.since = Since::restored(saved.moments);
        state
    }

    /// Whether it outlives its connection, and so must be on disk.
    #[must_use]
    pub fn is_persistent(&self) -> bool {
        self.expiry_s > 0
    }

    /// Whether this connection still has the session; otherwise why it must go.
    ///
    /// # Errors
    /// MQTT 5's reason code.
    pub fn check(&self, number: u64) -> Result<(), u8> {
        match &self.link {
            Some(link) if link.number == number => link.kicked.map_or(Ok(()), Err),
            Some(_) | None => Err(reason::SESSION_TAKEN_OVER),
        }
    }

    /// Whether this connection has not let go of it.
    #[must_use]
    pub fn is_linked(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }

    /// Ready, once, when this connection was woken since it was asked last, or has lost the session.
    pub fn poll_woken(&mut self, number: u64, cx: &Context<'_>) -> Poll<()> {
        let Some(link) = self.link.as_mut().filter(|link| link.number == number) else {
            return Poll::Ready(());
        };
        if std::mem::take(&mut link.is_woken) {
            return Poll::Ready(());
        }
        match &mut link.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => link.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Tells the connection to go.
    pub fn kick(&mut self, code: u8) {
        if let Some(link) = &mut self.link {
            link.kicked.get_or_insert(code);
            link.wake();
        }
    }

    /// Wakes the connection.
    pub fn wake(&mut self) {
        if let Some(link) = &mut self.link {
            link.wake();
        }
    }

    /// Offers a message from the tail, which has come to `tail` in the log (to the message's own place in
    /// its partition).
    pub fn offer(
        &mut self,
        mut delivery: Delivery,
        tail: &Positions,
        fare: &mut Fare<'_>,
    ) -> Offered {
        if delivery.qos == Qos::AtMostOnce {
            // only for who is there; it does not hold the place in the log
            delivery.place = None;
            if self.link.is_none() {
                return Offered::Left;
            }
            if self.has_room() && self.pays(&mut delivery, fare) {
                self.enqueue(delivery);
                return Offered::Queued;
            }
            self.overflow(delivery, fare);
            return Offered::Dropped;
        }
        if delivery.place.is_some() && self.feed != Feed::Live {
            return Offered::Left;
        }
        if self.has_room() && self.pays(&mut delivery, fare) {
            self.enqueue(delivery);
            return Offered::Queued;
        }
        let Some(place) = delivery.place else {
            return Offered::Dropped;
        };
        let mut positions = tail.clone();
        positions.insert(place.partition, place.offset);
        self.feed = Feed::Behind(positions);
        // with nothing in its queue, nothing that it does would make the connection read on
        self.wake();
        Offered::Left
    }

    fn overflow(&mut self, mut delivery: Delivery, fare: &mut Fare<'_>) {
        match self.limits.overflow {
            Overflow::DropNewest => {}
            Overflow::DropOldest => {
                let oldest = self
                    .queue
                    .iter()
                    .position(|queued| queued.qos == Qos::AtMostOnce);
                if let Some(old) = oldest.and_then(|at| self.queue.remove(at)) {
                    self.left(&old);
                    // what it was paid with may be what is missing
                    drop(old);
                    fare.retry();
                    if self.pays(&mut delivery, fare) {
                        self.enqueue(delivery);
                    }
                }
            }
            // others may have the room that one lacks who takes all it gets
            Overflow::Disconnect if self.queue.is_empty() => {}
            Overflow::Disconnect => self.kick(reason::QUOTA_EXCEEDED),
        }
    }

    /// A PUBLISH of QoS 2 has come.
    pub fn incoming(&mut self, id: u16) -> Incoming {
        if self.incoming.insert(id) {
            return Incoming::New;
        }
        let Some(mut synced) = self.unsettled.remove(&id) else {
            return Incoming::Known;
        };
        match synced.try_recv() {
            Ok(Ok(())) => Incoming::Known,
            Ok(Err(_)) | Err(TryRecvError::Closed) => Incoming::New,
            Err(TryRecvError::Empty) => Incoming::Unsettled(synced),
        }
    }

    /// Whether something is in the queue.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the queue takes another message.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.limits.queue_messages && self.queue_bytes < self.limits.queue_bytes
    }

    /// True when half of the queue is free: time to read on.
    #[must_use]
    pub fn is_half_empty(&self) -> bool {
        self.queue.len() <= self.limits.queue_messages / 2
            && self.queue_bytes <= self.limits.queue_bytes / 2
    }

    /// Whether a message has a place within the node's budget: in the queue's free share, or paid for by `fare`.
    pub fn pays(&self, delivery: &mut Delivery, fare: &mut Fare<'_>) -> bool {
        let weight = delivery.message.weight();
        if delivery.paid.is_none() && self.free_bytes + weight > FREE_QUEUE {
            delivery.paid = fare.pay(weight);
            return delivery.paid.is_some();
        }
        true
    }

    /// A message has left the queue.
    fn left(&mut self, delivery: &Delivery) {
        let weight = delivery.message.weight();
        self.queue_bytes -= weight;
        if delivery.paid.is_none() {
            self.free_bytes -= weight;
        }
    }

    fn recount(&mut self) {
        let weight = |delivery: &Delivery| delivery.message.weight();
        self.queue_bytes = self.queue.iter().map(weight).sum();
        let free = self.queue.iter().filter(|delivery| delivery.paid.is_none());
        self.free_bytes = free.map(weight).sum();
    }

    /// Puts a message into the queue, past its bounds if need be.
    pub fn enqueue(&mut self, delivery: Delivery) {
        let weight = delivery.message.weight();
        self.queue_bytes += weight;
        if delivery.paid.is_none() {
            self.free_bytes += weight;
        }
        // nobody else has it
        self.is_dirty |= delivery.shared.is_some();
        self.queue.push_back(delivery);
        self.wake();
    }

    /// What it has as a member of shared subscriptions and has not been sent: their filters and the records.
    pub fn given(&self) -> impl Iterator<Item = (&str, Place)> {
        let owed = self.owed.iter().map(|(filter, place)| (&**filter, *place));
        let queued = self.queue.iter();
        owed.chain(
            queued.filter_map(|delivery| Some((delivery.shared.as_deref()?, delivery.place?))),
        )
    }

    /// Takes what it was given of one shared subscription and has not got.
    pub fn take_owed(&mut self, filter: &str) -> Vec<(Box<str>, Place)> {
        let all = std::mem::take(&mut self.owed).into_iter();
        let (of_it, others): (Vec<_>, Vec<_>) = all.partition(|(of, _)| **of == *filter);
        self.owed = others.into();
        of_it
    }

    /// Whether the client takes another message of QoS 1 or 2.
    #[must_use]
    pub fn has_window(&self) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| self.inflight.len() < link.window)
    }

    /// The next message to send and its packet id (0 with QoS 0), if the client takes one, and `may_take` so many
    /// bytes.
    pub fn take(
        &mut self,
        now_ms: i64,
        may_take: impl FnOnce(usize) -> bool,
    ) -> Option<(Delivery, u16)> {
        self.link.as_ref()?;
        while self.queue.front()?.message.is_expired(now_ms) {
            self.pop();
        }
        let next = self.queue.front()?;
        if next.qos != Qos::AtMostOnce && !self.has_window() || !may_take(next.message.weight()) {
            return None;
        }
        let delivery = self.pop()?;
        if delivery.qos == Qos::AtMostOnce {
            return Some((delivery, 0));
        }
        let id = self
            .inflight
            .send(&delivery, delivery.qos == Qos::ExactlyOnce)?;
        self.is_dirty = true;
        Some((delivery, id))
    }

    fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.left(&delivery);
        self.is_stalled = false;
        if self.queue.is_empty() {
            self.queue.shrink_to(16);
        }
        if let Some(scan) = self.scans.front_mut().filter(|_| delivery.is_retained) {
            scan.after = Some(delivery.message.topic.clone());
            self.is_dirty = true;
        }
        Some(delivery)
    }

    /// The first place of each log that is not yet taken: what a restart goes on from.
    #[must_use]
    pub fn place_in_log(&self, tail: &Positions) -> Positions {
        let mut places = match &self.feed {
            Feed::Live => tail.clone(),
            Feed::Behind(positions) => positions.clone(),
        };
        let own = self
            .queue
            .iter()
            .filter(|delivery| delivery.shared.is_none() && !delivery.is_retained);
        for place in own.filter_map(|delivery| delivery.place) {
            let first = places.entry(place.partition).or_insert(place.offset);
            *first = place.offset.min(*first);
        }
        places
    }

    /// The connection has gone: what waits is read from the log again, or looked for among the retained, but for
    /// what is of shared subscriptions. That is given back, for others: filters and records.
    pub fn go_offline(&mut self, tail: &Positions) -> Vec<(Box<str>, Place)> {
        self.link = None;
        let (mut shared, _) = self.empty_queue(tail);
        if self.expiry_s == 0 {
            // nobody will acknowledge them here
            // and what was sent as QoS 2 goes to nobody else (MQTT 5, [MQTT-4.8.2-5])
            let sent = self.inflight.iter().filter(|sent| !sent.is_exactly_once);
            shared.extend(sent.filter_map(|sent| Some((sent.shared.clone()?, sent.place?))));
        }
        self.is_dirty = true;
        shared
    }

    /// Empties the queue of what can be had again. What was of shared subscriptions, and how many messages of QoS 0
    /// are lost.
    fn empty_queue(&mut self, tail: &Positions) -> (Vec<(Box<str>, Place)>, usize) {
        let places = self.place_in_log(tail);
        self.since.reached(&places);
        self.feed = Feed::Behind(places);
        if let Some(scan) = self.scans.front_mut() {
            scan.is_last = false;
        }
        let (mut shared, mut lost) = (Vec::new(), 0);
        for delivery in std::mem::take(&mut self.queue) {
            if delivery.is_retained {
                continue;
            }
            match (delivery.qos, delivery.place) {
                (Qos::AtMostOnce, _) if self.link.is_some() && delivery.paid.is_none() => {
                    self.queue.push_back(delivery);
                }
                (Qos::AtMostOnce, _) => lost += 1,
                (Qos::AtLeastOnce | Qos::ExactlyOnce, Some(place)) => {
                    shared.extend(delivery.shared.map(|filter| (filter, place)));
                }
                (Qos::AtLeastOnce | Qos::ExactlyOnce, None) => self.queue.push_back(delivery),
            }
        }
        self.recount();
        self.is_stalled = false;
        (shared, lost)
    }

    /// Others wait for the budget: what this client has in its queue and did not take since the last look waits in
    /// the log from now on. How many messages of QoS 0 are lost with it.
    pub fn spill(&mut self, tail: &Positions) -> usize {
        if self.queue_bytes == self.free_bytes || self.is_reading || self.link.is_none() {
            return 0;
        }
        if !std::mem::replace(&mut self.is_stalled, true) {
            return 0;
        }
        let (shared, lost) = self.empty_queue(tail);
        // nobody else gets what this member was given
        self.owed.extend(shared);
        self.is_dirty = true;
        lost
    }

    /// Where it must read on, unless it is Live.
    #[must_use]
    pub fn behind(&self) -> Option<&Positions> {
        match &self.feed {
            Feed::Live => None,
            Feed::Behind(positions) => Some(positions),
        }
    }

    /// Its place in a log once everything before `to` is in the queue.
    pub fn advance(&mut self, partition: PartitionId, to: Offset) {
        if let Feed::Behind(positions) = &mut self.feed {
            let place = positions.entry(partition).or_insert(to);
            *place = to.max(*place);
        }
    }

    /// Becomes Live when nothing is left to read before `tail`, or nobody listens.
    pub fn try_live(&mut self, tail: &Positions) -> bool {
        if let Feed::Behind(positions) = &self.feed {
            let has_read = |(partition, end): (&PartitionId, &Offset)| {
                positions.get(partition).copied().unwrap_or_default() >= *end
            };
            if !self.subscriptions.is_empty() && !tail.iter().all(has_read) {
                return false;
            }
            self.feed = Feed::Live;
        }
        true
    }

    /// How a message that is read from the log goes to this client, if it does. Shared subscriptions are
    /// left to those who are there.
    #[must_use]
    pub fn wants(&self, message: &Arc<Message>, place: Place) -> Option<Delivery> {
        let own = self
            .subscriptions
            .iter()
            .filter(|(filter, _)| !filter.starts_with("$share/"));
        let holding = own.filter(|(filter, _)| self.since.holds(filter, place));
        let matching = holding
            .filter(|(filter, _)| matches(filter, &message.topic))
            .map(|(_, options)| options);
        let delivery = merge(message, matching, &self.client_id, Some(place))?;
        (delivery.qos != Qos::AtMostOnce).then_some(delivery)
    }

    /// Whether a subscription of its own matches.
    #[must_use]
    pub fn listens_to(&self, topic: &str) -> bool {
        let mut all = self.subscriptions.iter();
        all.any(|(filter, _)| matches(filter, topic))
    }

    /// A subscription begins, with the tail at `tail`. True: it is a new one.
    pub fn subscribe(&mut self, filter: &str, options: Options, tail: &Positions) -> bool {
        self.has_saved_filters = false;
        let is_new = self.subscriptions.insert(filter, options);
        if is_new {
            self.since.begin(filter, tail);
            let places = self.place_in_log(tail);
            self.since.reached(&places);
        }
        is_new
    }

    /// A subscription ends. False: there was none.
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        self.stop_scans(filter);
        self.since.end(filter);
        self.has_saved_filters = false;
        self.subscriptions.remove(filter)
    }

    /// A subscription is to get the retained messages; one that gets them already begins anew.
    pub fn scan(&mut self, scan: Scan) {
        self.stop_scans(&scan.filter);
        self.scans.push_back(scan);
    }

    /// With a subscription ends what it would still get of the retained.
    fn stop_scans(&mut self, filter: &str) {
        let is_first = |scan: &Scan| scan.filter == filter;
        if self.scans.front().is_some_and(is_first) {
            self.queue.retain(|delivery| !delivery.is_retained);
            self.recount();
        }
        self.scans.retain(|scan| scan.filter != filter);
    }

    /// The limits on subscriptions.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        let bytes = self.subscriptions.bytes() + filter.len();
        self.subscriptions.contains(filter)
            || self.subscriptions.len() < self.limits.subscriptions
                && bytes <= self.limits.filter_bytes
    }
}

/// One delivery of a message for all the subscriptions of a client that match: the highest QoS, all
/// identifiers.
#[must_use]
pub fn merge<'o>(
    message: &Arc<Message>,
    options: impl Iterator<Item = &'o Options>,
    client_id: &str,
    place: Option<Place>,
) -> Option<Delivery> {
    let mut delivery: Option<Delivery> = None;
    for options in options {
        if options.no_local && message.from.as_deref() == Some(client_id) {
            continue;
        }
        let merged = delivery.get_or_insert_with(|| Delivery {
            message: message.clone(),
            qos: Qos::AtMostOnce,
            retain: false,
            identifiers: Vec::new(),
            place,
            is_retained: false,
            shared: None,
            paid: None,
        });
        merged.qos = merged.qos.max(options.qos.min(message.qos));
        merged.retain |= options.retain_as_published && message.retain;
        merged.identifiers.extend(options.identifier);
    }
    delivery
}

#[cfg(test)]
mod tests;
