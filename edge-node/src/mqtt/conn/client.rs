//! A client that is connected: carries out its packets; [`deliver`] makes what goes to it.

mod deliver;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use shared::time::wall_ms;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::acks::{Acks, Due};
use super::room::Room;
use super::throttle::Throttle;
use super::wire::Wire;
use super::{End, HIGH_WATER, SETTLE, has_codes};
use crate::access::Principal;
use crate::ingest::Reservation;
use crate::mqtt::broker::{Broker, Session};
use crate::mqtt::codec::{Malformed, decode, put_ack, put_pingresp, put_suback, put_unsuback};
use crate::mqtt::frame::Frame;
use crate::mqtt::inflight::Sent;
use crate::mqtt::packet::{AckKind, Incoming, Message, Publish, Qos, Version, reason};
use crate::mqtt::saved;
use crate::mqtt::session;
use crate::quota::{Meter, Place};

/// Packet ids of QoS 2 that a client of MQTT 3.1.1 may leave unreleased.
const MAX_UNRELEASED: usize = 8 * 1024;
/// How long a client of MQTT 3.1.1 waits before it is disconnected because the site is full.
const FULL_DELAY: Duration = Duration::from_millis(500);

/// What was agreed in the handshake.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_packet: usize,
    pub(super) aliases: u16,
    pub(super) keep_alive: Option<Duration>,
}

/// Topic aliases (MQTT 5, section 3.3.2.3.4).
#[derive(Debug, Default)]
struct Aliases {
    /// What the client's stand for.
    incoming: HashMap<u16, Arc<str>>,
    /// What ours stand for.
    outgoing: HashMap<Arc<str>, u16>,
}

/// The client.
#[derive(Debug)]
pub(super) struct Client<'b> {
    pub(super) broker: &'b Arc<Broker>,
    pub(super) version: Version,
    pub(super) session: Arc<Session>,
    /// What tells it from other connections of the session.
    pub(super) number: u64,
    pub(super) acks: Acks,
    pub(super) keep_alive: Option<Duration>,
    pub(super) throttle: Throttle,
    /// Its place among its user's connections.
    pub(super) place: Option<Place>,
    /// Deliveries wait for its rate.
    is_withheld: bool,
    limits: Limits,
    user: Principal,
    /// Absent until there are some.
    aliases: Option<Box<Aliases>>,
    /// PUBRECs whose PUBRELs wait for the disk.
    received: Vec<u16>,
    /// It asked not to get back what it publishes.
    has_no_local: bool,
    /// What an earlier connection had sent and is still to be sent again, before anything else.
    again: VecDeque<Sent>,
    /// The output's part of the node's budget, when it has more than its free share.
    room: Option<Box<Room>>,
    /// There was no room for the next message, with what is in the output.
    is_short: bool,
    /// Waits for room for a message in the queue.
    queue_room: Option<Box<Room>>,
}

impl<'b> Client<'b> {
    pub(super) fn new(
        broker: &'b Arc<Broker>,
        version: Version,
        session: Arc<Session>,
        number: u64,
        limits: Limits,
        user: Principal,
        (meter, place): (Meter, Place),
        again: Vec<Sent>,
    ) -> Self {
        let mut client = Self {
            broker,
            version,
            session,
            number,
            acks: Acks::default(),
            keep_alive: limits.keep_alive,
            throttle: Throttle::new(broker.config.publish_rate, meter),
            place: Some(place),
            is_withheld: false,
            limits,
            user,
            aliases: None,
            received: Vec::new(),
            has_no_local: false,
            again: again.into(),
            room: None,
            is_short: false,
            queue_room: None,
        };
        client.look_at_options();
        client
    }

    fn look_at_options(&mut self) {
        let state = self.session.state();
        let mut all = state.subscriptions.iter();
        self.has_no_local = all.any(|(_, options)| options.no_local);
    }

    /// Whether the session is still this connection's.
    pub(super) fn check(&self) -> Result<(), End> {
        let state = self.session.state();
        state.check(self.number).map_err(End::Kicked)
    }

    pub(super) async fn carry_out<S>(
        &mut self,
        frame: &Frame,
        wire: &mut Wire<S>,
    ) -> Result<(), End> {
        match decode(self.version, frame, wall_ms())? {
            Incoming::Publish(publish) => Box::pin(self.publish(*publish, frame.1.len())).await,
            Incoming::Ack {
                kind: AckKind::PubRel,
                id,
                ..
            } => {
                self.released(id);
                Ok(())
            }
            Incoming::Ack { kind, id, reason } => {
                self.acknowledged(kind, id, reason, &mut wire.output);
                Ok(())
            }
            Incoming::Subscribe { id, filters } => {
                let subscribed = self.broker.subscribe(&self.session, &self.user, filters);
                let codes = Box::pin(subscribed).await;
                self.look_at_options();
                put_suback(&mut wire.output, self.version, id, &codes);
                self.check()
            }
            Incoming::Unsubscribe { id, filters } => {
                let codes = Box::pin(self.broker.unsubscribe(&self.session, filters)).await;
                self.look_at_options();
                put_unsuback(&mut wire.output, self.version, id, &codes);
                self.check()
            }
            Incoming::PingReq => {
                put_pingresp(&mut wire.output);
                Ok(())
            }
            Incoming::Disconnect {
                reason,
                session_expiry_s,
            } => Err(self.goodbye(reason, session_expiry_s)),
            Incoming::Connect(_) => Err(protocol("a second CONNECT")),
            Incoming::Auth => Err(protocol("AUTH without an authentication")),
        }
    }

    fn goodbye(&self, code: u8, expiry_s: Option<u32>) -> End {
        let mut state = self.session.state();
        if let Some(expiry_s) = expiry_s {
            // MQTT 5, section 3.14.2.2.2
            if state.expiry_s == 0 && expiry_s != 0 {
                return protocol("a session expiry where CONNECT had none");
            }
            state.expiry_s = expiry_s.min(self.broker.config.max_session_expiry_s);
        }
        End::Goodbye {
            with_will: code == reason::DISCONNECT_WITH_WILL,
        }
    }

    async fn publish(&mut self, publish: Publish, bytes: usize) -> Result<(), End> {
        let stats = &self.broker.stats;
        stats.publishes.fetch_add(1, Ordering::Relaxed);
        if let Some(wait) = self.throttle.came(bytes) {
            add_ms(&stats.throttled_ms, wait);
        }
        let Publish {
            mut message,
            id,
            alias,
            ..
        } = publish;
        self.resolve_alias(&mut message, alias)?;
        let (qos, kind) = match message.qos {
            Qos::AtMostOnce => (Qos::AtMostOnce, AckKind::PubAck),
            Qos::AtLeastOnce => (Qos::AtLeastOnce, AckKind::PubAck),
            Qos::ExactlyOnce => (Qos::ExactlyOnce, AckKind::PubRec),
        };
        let mut fact = None;
        if qos == Qos::ExactlyOnce {
            let mut state = self.session.state();
            match state.incoming(id) {
                session::Incoming::New => {}
                session::Incoming::Known => {
                    drop(state);
                    // it is on disk, or on its way there before this acknowledgement
                    self.acks.push_ready(kind, id, reason::SUCCESS);
                    return Ok(());
                }
                session::Incoming::Unsettled(synced) => {
                    drop(state);
                    self.acks.push_record(kind, id, synced);
                    return Ok(());
                }
            }
            if state.is_persistent() {
                state.has_facts = true;
                fact = Some(saved::stored(&state.client_id, id));
            }
        }
        if let Err(end) = self.check_receive_maximum() {
            // it is not stored: when it is sent again it must not look as if it were
            if qos == Qos::ExactlyOnce {
                self.session.state().incoming.remove(&id);
            }
            return Err(end);
        }
        if self.has_no_local {
            message.from = Some(Box::from(&*self.session.client_id));
        }
        let mut reservation = Reservation::default();
        reservation.grow(self.broker.ingest.budget(), bytes).await;
        match (
            self.broker
                .publish(Some(&self.user), message, fact, reservation)
                .await,
            qos,
        ) {
            (Ok(_), Qos::AtMostOnce) => {}
            (Ok(accepted), Qos::AtLeastOnce | Qos::ExactlyOnce) => {
                if accepted.ack_early {
                    self.acks.push_ready(kind, id, reason::SUCCESS);
                } else {
                    // answered after the sync
                    self.acks.push_record(kind, id, accepted.synced);
                }
            }
            (Err(error), Qos::AtMostOnce) => {
                debug!(%error, "Message of QoS 0 not taken");
                stats.refused.fetch_add(1, Ordering::Relaxed);
            }
            (Err(error), Qos::AtLeastOnce | Qos::ExactlyOnce) => {
                debug!(%error, "Message not taken");
                self.acks.push_ready(kind, id, error.reason());
            }
        }
        Ok(())
    }

    fn resolve_alias(&mut self, message: &mut Message, alias: Option<u16>) -> Result<(), End> {
        let Some(alias) = alias else { return Ok(()) };
        let invalid = Malformed {
            reason: reason::TOPIC_ALIAS_INVALID,
            what: "a topic alias that is not allowed",
        };
        if alias == 0 || alias > self.broker.config.topic_aliases {
            return Err(invalid.into());
        }
        if message.topic.is_empty() {
            let known = self.aliases.as_ref();
            let known = known.and_then(|aliases| aliases.incoming.get(&alias));
            message.topic = known.cloned().ok_or(invalid)?;
        } else {
            let aliases = self.aliases.get_or_insert_default();
            aliases.incoming.insert(alias, message.topic.clone());
        }
        Ok(())
    }

    /// MQTT 5, section 3.3.4. A client of 3.1.1 is not told, and is only bounded.
    fn check_receive_maximum(&self) -> Result<(), End> {
        let unreleased = self.session.state().incoming.len();
        let most = usize::from(self.broker.config.receive_maximum);
        let is_exceeded = match self.version {
            Version::V3 => unreleased > MAX_UNRELEASED,
            Version::V5 => unreleased + self.acks.pubacks() > most,
        };
        if is_exceeded {
            return Err(End::Kicked(reason::RECEIVE_MAXIMUM_EXCEEDED));
        }
        Ok(())
    }

    fn released(&mut self, id: u16) {
        let (was_there, may_be_on_disk) = {
            let mut state = self.session.state();
            state.unsettled.remove(&id);
            (state.incoming.remove(&id), state.has_facts)
        };
        match (was_there, may_be_on_disk) {
            (true, true) => {
                // the id may be used again once PUBCOMP is there: it must not look like this message then
                let change = saved::released(&self.session.client_id, id);
                let synced = self.broker.store.put_state(vec![change]);
                self.acks.push_fact(AckKind::PubComp, id, synced);
            }
            (true, false) => self.acks.push_ready(AckKind::PubComp, id, reason::SUCCESS),
            (false, _) => self
                .acks
                .push_ready(AckKind::PubComp, id, reason::PACKET_ID_NOT_FOUND),
        }
    }

    fn acknowledged(&mut self, kind: AckKind, id: u16, code: u8, output: &mut BytesMut) {
        let mut state = self.session.state();
        let is_known = match kind {
            AckKind::PubAck => state.inflight.acknowledged(id),
            AckKind::PubRec if code >= reason::UNSPECIFIED => state.inflight.refused(id),
            AckKind::PubRec => state.inflight.received(id),
            AckKind::PubComp => state.inflight.completed(id),
            AckKind::PubRel => true,
        };
        state.is_dirty = true;
        drop(state);
        if kind == AckKind::PubRec && code < reason::UNSPECIFIED {
            if is_known {
                self.received.push(id);
            } else {
                put_ack(
                    output,
                    self.version,
                    AckKind::PubRel,
                    id,
                    reason::PACKET_ID_NOT_FOUND,
                );
            }
        }
    }

    /// Sends PUBRELs, after it is on disk that the client has their messages.
    pub(super) async fn release_received(&mut self, output: &mut BytesMut) -> Result<(), End> {
        if self.received.is_empty() {
            return Ok(());
        }
        if !Box::pin(self.broker.save_progress(&self.session)).await {
            return Err(End::NotStored(reason::QUOTA_EXCEEDED));
        }
        for id in self.received.drain(..) {
            put_ack(output, self.version, AckKind::PubRel, id, reason::SUCCESS);
        }
        Ok(())
    }

    /// Writes the acknowledgements that are due.
    pub(super) fn answer(&mut self, output: &mut BytesMut) -> Result<(), End> {
        while output.len() < HIGH_WATER {
            let Some(due) = self.acks.take() else { break };
            self.answer_one(due, output)?;
        }
        Ok(())
    }

    fn answer_one(&self, due: Due, output: &mut BytesMut) -> Result<(), End> {
        let is_error = due.code >= reason::UNSPECIFIED && due.code != reason::PACKET_ID_NOT_FOUND;
        if is_error {
            self.broker.stats.refused.fetch_add(1, Ordering::Relaxed);
            let mut state = self.session.state();
            match due.kind {
                AckKind::PubRec => {
                    state.incoming.remove(&due.id);
                }
                AckKind::PubComp => {
                    // on disk it is not released: PUBREL comes again
                    state.incoming.insert(due.id);
                }
                AckKind::PubAck | AckKind::PubRel => {}
            }
            drop(state);
            // MQTT 3.1.1 has no way to say that a message was not taken
            if !has_codes(self.version) || due.kind == AckKind::PubComp {
                return Err(End::NotStored(due.code));
            }
        }
        put_ack(output, self.version, due.kind, due.id, due.code);
        Ok(())
    }

    /// Waits for what was published, so that the session knows what is on disk before it goes on.
    pub(super) async fn settle<S>(&mut self, wire: &mut Wire<S>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let all = async {
            while !self.acks.is_empty() {
                poll_fn(|cx| self.acks.poll_ready(cx)).await;
                if let Some(due) = self.acks.take() {
                    let is_full = due.code == reason::QUOTA_EXCEEDED && !has_codes(self.version);
                    // the connection ends anyway
                    drop(self.answer_one(due, &mut wire.output));
                    if is_full {
                        tokio::time::sleep(FULL_DELAY).await;
                    }
                }
            }
        };
        if timeout(SETTLE, all).await.is_err() {
            debug!("A connection ended before what was published on it was stored");
        }
        self.keep_unsettled();
    }

    /// What may be stored is not stored again: when it comes again, on another connection, it waits for what becomes of
    /// it.
    fn keep_unsettled(&mut self) {
        let unsettled = self.acks.take_unsettled();
        let mut state = self.session.state();
        if state.is_linked(self.number) {
            state.unsettled.extend(unsettled);
        }
    }
}

impl Drop for Client<'_> {
    /// A task that fails must not keep the session from the client's next connection.
    fn drop(&mut self) {
        self.keep_unsettled();
        self.broker.release(&self.session, self.number, true);
    }
}

fn add_ms(counter: &AtomicU64, time: Duration) {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    counter.fetch_add(ms, Ordering::Relaxed);
}

fn protocol(what: &'static str) -> End {
    Malformed {
        reason: reason::PROTOCOL_ERROR,
        what,
    }
    .into()
}
