//! A session that is behind reads the log itself, from its own place on.

use std::sync::Arc;

use bytes::Bytes;
use shared::ids::Offset;

use super::{PAUSE, READ_BYTES, walk};
use crate::mqtt::broker::{Broker, Session};
use crate::mqtt::packet::Message;
use crate::mqtt::record::{message_of, topic_of};
use crate::mqtt::session::Place;
use crate::store::{Item, PartitionId, StoreError};

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
            loop {
                let Ok(turn) = broker.readers.acquire().await else {
                    return;
                };
                let (at, of) = (broker.clone(), session.clone());
                let filled = tokio::task::spawn_blocking(move || at.fill_step(&of, number)).await;
                match filled {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => return,
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

    /// False when there is nothing more to do.
    fn fill_step(&self, session: &Session, number: u64) -> Result<bool, StoreError> {
        let next = {
            let tail = self.tail();
            let mut state = session.state();
            if state.check(number).is_err() {
                return Ok(false);
            }
            if state.try_live(tail.processed()) || !state.has_room() {
                state.is_reading = false;
                state.wake();
                return Ok(false);
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
            return Ok(true);
        };
        let name = self.tail().name(partition);
        let items = match (self.store.browse(partition, from, READ_BYTES), name) {
            (Ok(items), Some(name)) => (items, name),
            (Err(StoreError::UnknownPartition), _) | (_, None) => {
                session.state().advance(partition, end);
                return Ok(true);
            }
            (Err(error), _) => return Err(error),
        };
        let (items, name) = items;
        if items.is_empty() {
            session.state().advance(partition, end);
        }
        for item in items {
            let is_full = match item {
                Item::Gap { to, .. } => {
                    session.state().advance(partition, to.min(end));
                    false
                }
                Item::Batch {
                    batch, next_offset, ..
                } => !self.fill_batch(
                    session,
                    number,
                    &name,
                    partition,
                    (from, end),
                    &batch,
                    next_offset,
                ),
            };
            if is_full {
                break;
            }
        }
        Ok(true)
    }

    /// False when the queue is full or the session gone.
    fn fill_batch(
        &self,
        session: &Session,
        number: u64,
        name: &str,
        partition: PartitionId,
        (from, end): (Offset, Offset),
        batch: &Bytes,
        next_offset: Offset,
    ) -> bool {
        let mut goes_on = true;
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
                if let Some(delivery) = state.wants(&message, found.place) {
                    state.enqueue(delivery);
                }
                state.advance(partition, offset + 1);
            }
            goes_on
        });
        if goes_on {
            session.state().advance(partition, next_offset.min(end));
        }
        goes_on
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
