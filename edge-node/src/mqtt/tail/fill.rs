//! A session that is behind reads the log itself, from its own place on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::ids::Offset;

use super::{PAUSE, READ_BYTES, walk};
use crate::ingest::Reservation;
use crate::mqtt::broker::{Broker, Session};
use crate::mqtt::packet::Message;
use crate::mqtt::record::{message_of, topic_of};
use crate::mqtt::session::{Fare, Place};
use crate::store::{Item, PartitionId, StoreError};

/// How often who waits for room looks whether the client is still there.
const LOOK: Duration = Duration::from_secs(1);

/// What is to be done after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// The next step.
    More,
    /// Nothing.
    Done,
    /// To wait until the node has room for a message of so many bytes.
    Short(usize),
}

/// What came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// All of it is in the queue.
    All,
    /// The queue is full, or the session gone.
    Some,
    /// The node has no room for a message of so many bytes.
    Short(usize),
}

impl Broker {
    /// Fills a session's queue from the log, until it is full or the session has come up with the tail.
    /// One at a time for a session.
    pub(in crate::mqtt) fn fill(self: &Arc<Self>, session: &Arc<Session>, number: u64) {
        {
            let mut state = session.state();
            let is_due = state.behind().is_some() && !state.is_reading && state.is_half_empty();
            if !is_due || state.check(number).is_err() {
                return;
            }
            state.is_reading = true;
        }
        let (broker, session) = (self.clone(), session.clone());
        self.tasks.spawn(async move {
            let mut granted = None;
            loop {
                let Ok(turn) = broker.readers.acquire().await else {
                    return;
                };
                let (at, of) = (broker.clone(), session.clone());
                let filled =
                    tokio::task::spawn_blocking(move || at.fill_step(&of, number, granted)).await;
                granted = None;
                match filled {
                    Ok(Ok(Filled::More)) => {}
                    Ok(Ok(Filled::Done)) => return,
                    Ok(Ok(Filled::Short(bytes))) => {
                        drop(turn);
                        granted = broker.room_for(&session, number, bytes).await;
                        if granted.is_none() {
                            return;
                        }
                    }
                    Ok(Err(_)) | Err(_) => {
                        // the tail says why; whoever serves the session asks again after a pause
                        drop(turn);
                        tokio::time::sleep(PAUSE).await;
                        let mut state = session.state();
                        if state.check(number).is_ok() {
                            state.is_reading = false;
                            state.wake();
                        }
                        return;
                    }
                }
            }
        });
    }

    /// Waits until the node has room for a message in the client's queue; `None`: the client has gone.
    async fn room_for(&self, session: &Session, number: u64, bytes: usize) -> Option<Reservation> {
        let mut part = Reservation::default();
        {
            let mut grown = pin!(part.grow(&self.queues, bytes));
            while tokio::time::timeout(LOOK, grown.as_mut()).await.is_err() {
                let mut state = session.state();
                if self.is_stopping() || state.check(number).is_err() {
                    return None;
                }
                if state.has_waiting() {
                    // of QoS 0: it may be paid for, and who waits must not hold anything. As above
                    state.is_reading = false;
                    return None;
                }
            }
        }
        Some(part)
    }

    fn fill_step(
        &self,
        session: &Session,
        number: u64,
        granted: Option<Reservation>,
    ) -> Result<Filled, StoreError> {
        let mut granted = granted;
        let next = {
            let tail = self.tail();
            let mut state = session.state();
            if state.check(number).is_err() {
                return Ok(Filled::Done);
            }
            if state.try_live(tail.processed()) || !state.has_room() {
                state.is_reading = false;
                state.wake();
                return Ok(Filled::Done);
            }
            let positions = state.behind().cloned().unwrap_or_default();
            let place = |id: &PartitionId| positions.get(id).copied().unwrap_or_default();
            let mut ends = tail
                .processed()
                .iter()
                .map(|(id, end)| (*id, place(id), *end));
            ends.find(|(_, from, end)| from < end)
        };
        let Some((partition, from, end)) = next else {
            return Ok(Filled::More);
        };
        let name = self.tail().name(partition);
        let items = match (self.store.browse(partition, from, READ_BYTES), name) {
            (Ok(items), Some(name)) => (items, name),
            (Err(StoreError::UnknownPartition), _) | (_, None) => {
                session.state().advance(partition, end);
                return Ok(Filled::More);
            }
            (Err(error), _) => return Err(error),
        };
        let (items, name) = items;
        if items.is_empty() {
            session.state().advance(partition, end);
        }
        for item in items {
            let put = match item {
                Item::Gap { to, .. } => {
                    session.state().advance(partition, to.min(end));
                    Put::All
                }
                Item::Batch {
                    batch, next_offset, ..
                } => self.fill_batch(
                    session,
                    number,
                    &name,
                    partition,
                    (from, end),
                    &batch,
                    next_offset,
                    &mut granted,
                ),
            };
            match put {
                Put::All => {}
                Put::Some => break,
                Put::Short(bytes) => {
                    let mut state = session.state();
                    if state.check(number).is_ok() && state.has_waiting() {
                        // it is asked for again when the client has taken that
                        state.is_reading = false;
                        return Ok(Filled::Done);
                    }
                    return Ok(Filled::Short(bytes));
                }
            }
        }
        Ok(Filled::More)
    }

    /// Puts what the client wants of a batch into its queue.
    fn fill_batch(
        &self,
        session: &Session,
        number: u64,
        name: &str,
        partition: PartitionId,
        (from, end): (Offset, Offset),
        batch: &Bytes,
        next_offset: Offset,
        granted: &mut Option<Reservation>,
    ) -> Put {
        let mut goes_on = true;
        let mut short = None;
        walk(batch, partition, |found| {
            let offset = found.place.offset;
            if offset < from {
                return true;
            }
            if offset >= end {
                session.state().advance(partition, end);
                goes_on = false;
                return false;
            }
            let Some((topic, rule)) = topic_of(&self.map, name, &found.record) else {
                return true;
            };
            if !session.state().listens_to(&topic) {
                return true;
            }
            let message = Arc::new(message_of(topic, rule, found.timestamp_ms, &found.record));
            let mut state = session.state();
            goes_on = state.check(number).is_ok() && state.has_room();
            if goes_on {
                if let Some(mut delivery) = state.wants(&message, found.place) {
                    let mut fare = Fare::new(&self.queues, granted.take());
                    if !state.pays(&mut delivery, &mut fare) {
                        short = Some(message.weight());
                        goes_on = false;
                        return false;
                    }
                    state.enqueue(delivery);
                }
                state.advance(partition, offset + 1);
            }
            goes_on
        });
        if goes_on {
            session.state().advance(partition, next_offset.min(end));
            return Put::All;
        }
        short.map_or(Put::Some, Put::Short)
    }

    /// The message of a record that was on its way to a client when the client went. Blocks.
    pub(in crate::mqtt) fn load(&self, place: Place) -> Option<Arc<Message>> {
        let name = self.tail().name(place.partition)?;
        let items = self.store.browse(place.partition, place.offset, 1).ok()?;
        let mut loaded = None;
        for item in items {
            if let Item::Batch { batch, .. } = item {
                walk(&batch, place.partition, |found| {
                    if found.place == place {
                        loaded = topic_of(&self.map, &name, &found.record).map(|(topic, rule)| {
                            message_of(topic, rule, found.timestamp_ms, &found.record)
                        });
                    }
                    found.place.offset < place.offset
                });
            }
        }
        loaded.map(Arc::new)
    }
}
