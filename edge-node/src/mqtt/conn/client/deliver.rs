//! What goes to a client: messages from its session's queue, and what an earlier connection had sent.
//!
//! What the client has not taken yet holds a part of the node's budget, as what waits in its queue does. Without one a
//! message stays where it is, in the queue or in the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::BytesMut;
use shared::time::wall_ms;

use super::{Client, add_ms};
use crate::ingest::Reservation;
use crate::mqtt::codec::{Outgoing, put_ack, put_publish};
use crate::mqtt::conn::room::FREE;
use crate::mqtt::conn::{End, HIGH_WATER};
use crate::mqtt::inflight::Sent;
use crate::mqtt::packet::{AckKind, Qos, reason};
use crate::mqtt::session::Delivery;

/// Messages taken from the session at a time.
const DELIVERIES: usize = 64;

impl Client<'_> {
    /// Writes messages until the buffer or the client's window is full, or the node's room for what clients do not
    /// take.
    pub(in crate::mqtt::conn) async fn deliver(
        &mut self,
        output: &mut BytesMut,
    ) -> Result<(), End> {
        self.send_again(output).await?;
        let delivered = self.deliver_queued(output).await;
        if !self.waits_to_queue() {
            self.queue_room = None;
        }
        delivered
    }

    async fn deliver_queued(&mut self, output: &mut BytesMut) -> Result<(), End> {
        let mut batch: Vec<(Delivery, u16)> = Vec::new();
        let most = self.throttle.at_once().min(HIGH_WATER);
        while self.again.is_empty()
            && output.len() < HIGH_WATER
            && !self.waits_to_send()
            && !self.withholds()
        {
            let now_ms = wall_ms();
            let mut short: Option<usize> = None;
            let (is_durable, is_behind, is_owed, may_scan) = {
                let (broker, room) = (self.broker, &mut self.room);
                let mut state = self.session.state();
                state.check(self.number).map_err(End::Kicked)?;
                // who takes nothing more of what there is has no use for what would be read
                let had_window = state.has_window();
                let mut bytes = 0;
                while batch.len() < DELIVERIES && bytes < most {
                    let may_take = |weight: usize| {
                        let over = (output.len() + bytes + weight).saturating_sub(FREE);
                        let has_room = over == 0
                            || room.get_or_insert_default().try_hold(&broker.outputs, over);
                        short = (!has_room).then_some(over);
                        has_room
                    };
                    let Some(taken) = state.take(now_ms, may_take) else {
                        break;
                    };
                    bytes += taken.0.message.weight();
                    batch.push(taken);
                }
                let is_behind = had_window
                    && state.behind().is_some()
                    && !state.is_reading
                    && state.is_half_empty();
                let may_scan = !state.scans.is_empty() && !state.has_waiting();
                let is_owed = !state.owed.is_empty() && state.is_half_empty();
                (state.is_persistent(), is_behind, is_owed, may_scan)
            };
            let has_loaded =
                is_owed && !self.waits_to_queue() && Box::pin(self.load_owed()).await?;
            if is_behind {
                self.broker.fill(&self.session, self.number);
            }
            if batch.is_empty() {
                if has_loaded {
                    continue;
                }
                if let Some(over) = short {
                    self.wait_to_send(over);
                    return Ok(());
                }
                if may_scan && !self.waits_to_queue() {
                    let granted = self.granted();
                    if let Some(bytes) = self.broker.scan_retained(&self.session, granted) {
                        self.wait_to_queue(bytes);
                    }
                    continue;
                }
                return Ok(());
            }
            let has_exactly_once = batch
                .iter()
                .any(|(delivery, _)| delivery.qos == Qos::ExactlyOnce);
            if is_durable
                && has_exactly_once
                && !Box::pin(self.broker.save_progress(&self.session)).await
            {
                return Err(End::NotStored(reason::QUOTA_EXCEEDED));
            }
            for (delivery, id) in batch.drain(..) {
                self.put(&delivery, id, false, now_ms, output);
            }
        }
        Ok(())
    }

    /// Puts into the queue what it was given as a member of shared subscriptions; false when nothing of it.
    async fn load_owed(&mut self) -> Result<bool, End> {
        let granted = self.granted();
        let (broker, session) = (self.broker.clone(), self.session.clone());
        let Ok(_turn) = self.broker.readers.acquire().await else {
            return Ok(false);
        };
        let load = tokio::task::spawn_blocking(move || broker.load_owed(&session, granted));
        match load.await {
            Ok(None) => Ok(true),
            Ok(Some(bytes)) => {
                let has_waiting = self.session.state().has_waiting();
                if !has_waiting {
                    self.wait_to_queue(bytes);
                }
                // what is there goes first
                Ok(false)
            }
            Err(_) => Err(End::NotStored(reason::UNSPECIFIED)),
        }
    }

    /// Waits until the node has room for so many bytes of output: when what is there has gone, so that nobody who
    /// holds a part waits for another's.
    fn wait_to_send(&mut self, over: usize) {
        let room = self.room.get_or_insert_default();
        if room.is_empty() {
            room.wait(&self.broker.outputs, over);
        } else {
            self.is_short = true;
        }
    }

    /// Waits until the node has room for a message of so many bytes in the queue.
    fn wait_to_queue(&mut self, bytes: usize) {
        let room = self.queue_room.get_or_insert_default();
        room.wait(&self.broker.queues, bytes);
    }

    /// What was waited for.
    fn granted(&mut self) -> Option<Reservation> {
        self.queue_room.take().map(|room| room.into_held())
    }

    fn waits_to_send(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.is_waiting())
    }

    fn waits_to_queue(&self) -> bool {
        let room = self.queue_room.as_ref();
        room.is_some_and(|room| room.is_waiting())
    }

    /// Ready when there is the room that it waits for.
    pub(in crate::mqtt::conn) fn poll_rooms(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let rooms = [&mut self.room, &mut self.queue_room].into_iter().flatten();
        let mut waiting = rooms.filter(|room| room.is_waiting());
        let is_ready = waiting.any(|room| room.poll(cx).is_ready());
        if is_ready {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// So many bytes of the output have gone, and so many are left. Whether that is what was waited for.
    pub(in crate::mqtt::conn) fn sent(&mut self, count: usize, left: usize) -> bool {
        if let Some(room) = &mut self.room {
            room.gone(count, left.saturating_sub(FREE));
            if room.is_empty() {
                self.room = None;
            }
        }
        self.room.is_none() && std::mem::take(&mut self.is_short)
    }

    /// Whether the output has more than its free share, and so has to get on when others wait.
    pub(in crate::mqtt::conn) fn has_room(&self) -> bool {
        self.room.is_some()
    }

    /// Whether others wait for what the client does not take.
    pub(in crate::mqtt::conn) fn is_hogging(&self) -> bool {
        let room = self.room.as_ref();
        let patience = self.broker.config.patience;
        room.is_some_and(|room| room.is_hogging(&self.broker.outputs, patience))
    }

    /// Whether deliveries have to wait for the rate; there is a timer for the end of that.
    fn withholds(&mut self) -> bool {
        let wait = self.throttle.delivery_pause();
        if let Some(wait) = wait.filter(|_| !self.is_withheld) {
            add_ms(&self.broker.stats.throttled_ms, wait);
        }
        self.is_withheld = wait.is_some();
        self.is_withheld
    }

    /// Deliveries waited for the rate, and need not any more.
    pub(in crate::mqtt::conn) fn may_deliver_again(&self) -> bool {
        self.is_withheld && self.throttle.delivery_pause().is_none()
    }

    fn put(&mut self, delivery: &Delivery, id: u16, dup: bool, now_ms: i64, output: &mut BytesMut) {
        let before = output.len();
        let message = &delivery.message;
        let alias = self.alias(&message.topic);
        let outgoing = Outgoing {
            message,
            qos: delivery.qos,
            retain: delivery.retain,
            dup,
            id,
            identifiers: &delivery.identifiers,
            alias,
            left_s: message.left_s(now_ms),
        };
        if put_publish(output, self.version, &outgoing, self.limits.max_packet) {
            self.broker.stats.deliveries.fetch_add(1, Ordering::Relaxed);
            self.throttle.delivered(output.len() - before);
            if let Some((alias, false)) = alias {
                let aliases = self.aliases.get_or_insert_default();
                aliases.outgoing.insert(message.topic.clone(), alias);
            }
            return;
        }
        // MQTT 5, section 3.1.2.11.4: as if it had been sent
        self.broker.stats.dropped.fetch_add(1, Ordering::Relaxed);
        if id != 0 {
            self.session.state().inflight.refused(id);
        }
    }

    /// The alias of a topic, if it has one or may get one, and whether the client knows it.
    fn alias(&self, topic: &Arc<str>) -> Option<(u16, bool)> {
        let outgoing = self.aliases.as_ref().map(|aliases| &aliases.outgoing);
        if let Some(alias) = outgoing.and_then(|outgoing| outgoing.get(topic)) {
            return Some((*alias, true));
        }
        let next = outgoing.map_or(0, HashMap::len) + 1;
        let next = u16::try_from(next).unwrap_or(u16::MAX);
        (next <= self.limits.aliases).then_some((next, false))
    }

    /// Sends what an earlier connection had sent and the client did not acknowledge, as far as there is room.
    async fn send_again(&mut self, output: &mut BytesMut) -> Result<(), End> {
        if self.again.is_empty() {
            return Ok(());
        }
        while output.len() < HIGH_WATER && !self.waits_to_send() && !self.withholds() {
            let Some(sent) = self.again.pop_front() else {
                self.again = VecDeque::new();
                break;
            };
            if let Some(bytes) = Box::pin(self.send_one_again(&sent, output)).await {
                self.again.push_front(sent);
                self.wait_to_send(bytes);
                break;
            }
        }
        self.release_received(output).await
    }

    /// Sends one of them; the bytes that it has to wait for when there is no room.
    async fn send_one_again(&mut self, sent: &Sent, output: &mut BytesMut) -> Option<usize> {
        let (id, is_exactly_once) = (sent.id, sent.is_exactly_once);
        let is_released = {
            let state = self.session.state();
            // it may have been acknowledged meanwhile
            state.inflight.get(id)?.is_released
        };
        if is_released {
            if sent.is_released {
                put_ack(output, self.version, AckKind::PubRel, id, reason::SUCCESS);
            }
            return None;
        }
        let now_ms = wall_ms();
        let may_have = |place| self.broker.may_have(&self.user, place);
        let delivery = if sent.place.is_some_and(|place| !may_have(place)) {
            // the user's rules have changed since it was sent
            None
        } else if sent.delivery.is_some() || sent.place.is_none() {
            sent.delivery.clone()
        } else {
            let (broker, session, sent) = (self.broker.clone(), self.session.clone(), sent.clone());
            let _turn = self.broker.readers.acquire().await.ok()?;
            let loaded = tokio::task::spawn_blocking(move || broker.loaded(&session, &sent)).await;
            loaded.unwrap_or_default()
        };
        match delivery.filter(|delivery| !delivery.message.is_expired(now_ms)) {
            Some(delivery) => {
                let over = (output.len() + delivery.message.weight()).saturating_sub(FREE);
                let has_room = over == 0
                    || self
                        .room
                        .get_or_insert_default()
                        .try_hold(&self.broker.outputs, over);
                if !has_room {
                    return Some(over);
                }
                self.put(&delivery, id, true, now_ms, output);
            }
            // retention has let it go. The client may have it, and would take whatever comes next under its
            // id for the same: the id is free once PUBCOMP says so
            None if is_exactly_once => {
                if self.session.state().inflight.received(id) {
                    self.received.push(id);
                }
            }
            None => {
                self.session.state().inflight.refused(id);
            }
        }
        None
    }
}
