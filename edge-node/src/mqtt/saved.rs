//! What of MQTT outlives the process, and how it is laid out. Plain code.
//!
//! In the store's state, integers big endian, texts with their length before them (u16):
//!
//! ```text
//! space         key                              value
//! MqttSession   's' client id                    version = 2 │ expiry s u32 │ away since, age ms u64; 0: there │
//!                                                0 or 1, user │ count u32 │ (filter │ options u8 │ identifier u32)…
//! MqttSession   'a' client id                    version = 1 │ expiry s u32 │ away since, as above, of later
//! MqttSession   'p' client id                    version = 2 │ count u32 │ (partition u32 │ offset u64)… │
//!                                                count u32 │ (packet id u16 │ flags u8 │ partition u32 │ offset u64)… │
//!                                                count u32 │ (filter │ options u8 │ identifier u32 │ 0 or 1, topic)… │
//!                                                count u32 │ (shared filter │ count u32 │ (partition u32 │ offset u64)…)… │
//!                                                count u32 │ (count u32 │ (partition u32 │ offset u64)… │ count u32 │ filter…)…
//! MqttSession   't'                              version = 1 │ age ms u64 │ since boot, ms u64 │ wall ms i64 │ boot id u128
//! MqttInflight  client id │ packet id u16        nothing: a PUBLISH of QoS 2 that was stored, not released
//! MqttRetained  'm' topic                        version = 2 │ published, wall ms i64 │ QoS u8 │
//!                                                0 or 1, partition u32, offset u64 │ …properties │ payload
//! MqttRetained  'c' partition u32                next offset u64 that retained messages are made from
//! MqttRetained  'f' Kafka topic                  nothing: its new partitions are followed from their start
//! ```
//! A session's second value is always of one moment: what is before its offsets was sent and is done, or
//! is among its packet ids; the filters are those of new subscriptions whose retained messages were not all sent,
//! with the last topic that was; the shared filters are of what the session was given as a member; the last filters
//! hold only from the offsets before them. Flags are 1: QoS 2, 2: released, 4: a retained message, 8: without a place.
//! The value may be older than the truth, and then QoS 1 is sent again. It is written and synced before a message
//! of QoS 2 is sent and before its PUBREL, so QoS 2 is not.
//!
//! Version 1 of a session had the wall clock, ms i64, for the age ([`super::away`]), that of its progress no filters,
//! and that of a retained message no place.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::away::{Away, Clocks, Stamp};
use super::inflight::Sent;
use super::packet::{Message, MessageProperties, Options, Qos, RetainHandling};
use super::session::{Moment, Place, Positions, Scan, State};
use crate::store::{PartitionId, StateChange, StateSpace};

const VERSION: u8 = 1;
const WITH_AGE: u8 = 2;
const WITH_SCANS: u8 = 2;
const WITH_PLACE: u8 = 2;

const EXACTLY_ONCE: u8 = 1;
const RELEASED: u8 = 2;
const RETAINED: u8 = 4;
const NO_PLACE: u8 = 8;

/// A session as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSession {
    /// Seconds; `u32::MAX`: for ever.
    pub expiry_s: u32,
    /// When the client went.
    pub away: Away,
    /// The user that it belongs to.
    pub owner: Option<Box<str>>,
    /// Filters as they came.
    pub subscriptions: Vec<(Box<str>, Options)>,
}

/// How far a session had come.
#[derive(Debug, Clone, Default)]
pub struct SavedProgress {
    /// The next offset in each log.
    pub positions: Positions,
    /// What was on its way, in order.
    pub sent: Vec<Sent>,
    /// Retained messages that new subscriptions had still to get.
    pub scans: Vec<Scan>,
    /// What it was given as a member of shared subscriptions and had not been sent.
    pub owed: Vec<(Box<str>, Place)>,
    /// Subscriptions that began further on in the log.
    pub moments: Vec<Moment>,
}

/// Writes a session's subscriptions, and the age at which its client went (`None`: it is there).
#[must_use]
pub fn session(state: &State, away_since_ms: Option<u64>) -> StateChange {
    let mut out = BytesMut::new();
    out.put_u8(WITH_AGE);
    out.put_u32(state.expiry_s);
    out.put_u64(away_since_ms.unwrap_or(0));
    put_option(&mut out, state.owner.as_deref(), put_text);
    put_count(&mut out, state.subscriptions.len());
    for (filter, options) in state.subscriptions.iter() {
        put_text(&mut out, filter);
        out.put_u8(options_bits(options));
        out.put_u32(options.identifier.unwrap_or(0));
    }
    StateChange::put(
        StateSpace::MqttSession,
        key(b's', &state.client_id),
        out.freeze(),
    )
}

/// Writes only how long a session lasts and the age at which its client went: its subscriptions are on disk.
#[must_use]
pub fn away(state: &State, away_since_ms: Option<u64>) -> StateChange {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u32(state.expiry_s);
    out.put_u64(away_since_ms.unwrap_or(0));
    StateChange::put(
        StateSpace::MqttSession,
        key(b'a', &state.client_id),
        out.freeze(),
    )
}

/// Reads what [`away`] wrote: seconds that the session lasts, and when its client went.
#[must_use]
pub fn read_away(mut bytes: &[u8]) -> Option<(u32, Away)> {
    let from = &mut bytes;
    if from.try_get_u8().ok()? != VERSION {
        return None;
    }
    let expiry_s = from.try_get_u32().ok()?;
    let away = match from.try_get_u64().ok()? {
        0 => Away::There,
        age_ms => Away::Since(age_ms),
    };
    Some((expiry_s, away))
}

/// Writes all that has changed of a session that outlives its connection.
#[must_use]
pub fn changed(state: &State, away_since_ms: Option<u64>, tail: &Positions) -> Vec<StateChange> {
    let filters = (!state.has_saved_filters).then(|| session(state, away_since_ms));
    let others = [away(state, away_since_ms), progress(state, tail)];
    filters.into_iter().chain(others).collect()
}

/// Writes how far a session has come.
#[must_use]
pub fn progress(state: &State, tail: &Positions) -> StateChange {
    let mut out = BytesMut::new();
    out.put_u8(WITH_SCANS);
    let places = state.place_in_log(tail);
    put_positions(&mut out, &places);
    put_count(&mut out, state.inflight.len());
    for sent in state.inflight.iter() {
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        out.put_u16(sent.id);
        out.put_u8(
            flag(sent.is_exactly_once, EXACTLY_ONCE)
                | flag(sent.is_released, RELEASED)
                | flag(sent.is_retained, RETAINED)
                | flag(sent.place.is_none(), NO_PLACE),
        );
        let nowhere = Place {
            partition: PartitionId(0),
            offset: 0,
        };
        put_place(&mut out, sent.place.unwrap_or(nowhere));
    }
    put_count(&mut out, state.scans.len());
    for scan in &state.scans {
        put_text(&mut out, &scan.filter);
        out.put_u8(options_bits(&scan.options));
        out.put_u32(scan.options.identifier.unwrap_or(0));
        put_option(&mut out, scan.after.as_deref(), put_text);
    }
    let given: Vec<(&str, Place)> = state.given().collect();
    let of_one = |a: &(&str, Place), b: &(&str, Place)| a.0 == b.0;
    put_count(&mut out, given.chunk_by(of_one).count());
    for same in given.chunk_by(of_one) {
        put_text(&mut out, same[0].0);
        put_count(&mut out, same.len());
        for (_, place) in same {
            put_place(&mut out, *place);
        }
    }
    put_count(&mut out, state.since.after(&places).count());
    for moment in state.since.after(&places) {
        put_positions(&mut out, &moment.from);
        put_count(&mut out, moment.filters.len());
        for filter in &moment.filters {
            put_text(&mut out, filter);
        }
    }
    StateChange::put(
        StateSpace::MqttSession,
        key(b'p', &state.client_id),
        out.freeze(),
    )
}

fn put_positions(out: &mut BytesMut, positions: &Positions) {
    put_count(out, positions.len());
    for (partition, offset) in positions {
        out.put_u32(partition.0);
        out.put_u64(*offset);
    }
}

fn put_place(out: &mut BytesMut, place: Place) {
    out.put_u32(place.partition.0);
    out.put_u64(place.offset);
}

fn take_positions(from: &mut &[u8]) -> Option<Positions> {
    let mut positions = Positions::new();
    for _ in 0..from.try_get_u32().ok()? {
        let place = take_place(from)?;
        positions.insert(place.partition, place.offset);
    }
    Some(positions)
}

fn take_place(from: &mut &[u8]) -> Option<Place> {
    Some(Place {
        partition: PartitionId(from.try_get_u32().ok()?),
        offset: from.try_get_u64().ok()?,
    })
}

/// Forgets a session.
#[must_use]
pub fn forget(state: &State) -> Vec<StateChange> {
    let mut changes = vec![
        StateChange::forget(StateSpace::MqttSession, key(b's', &state.client_id)),
        StateChange::forget(StateSpace::MqttSession, key(b'a', &state.client_id)),
        StateChange::forget(StateSpace::MqttSession, key(b'p', &state.client_id)),
    ];
    changes.extend(
        state
            .incoming
            .iter()
            .map(|id| released(&state.client_id, *id)),
    );
    changes
}

/// Notes that a PUBLISH of QoS 2 is stored: in one write with its record.
#[must_use]
pub fn stored(client_id: &str, id: u16) -> StateChange {
    StateChange::put(
        StateSpace::MqttInflight,
        incoming_key(client_id, id),
        Bytes::new(),
    )
}

/// Notes that it was released.
#[must_use]
pub fn released(client_id: &str, id: u16) -> StateChange {
    StateChange::forget(StateSpace::MqttInflight, incoming_key(client_id, id))
}

fn incoming_key(client_id: &str, id: u16) -> Bytes {
    let mut key = BytesMut::from(client_id.as_bytes());
    key.put_u16(id);
    key.freeze()
}

/// Client id and packet id of a key in `MqttInflight`.
#[must_use]
pub fn read_incoming(key: &[u8]) -> Option<(&str, u16)> {
    let (client_id, id) = key.split_at_checked(key.len().checked_sub(2)?)?;
    Some((
        std::str::from_utf8(client_id).ok()?,
        u16::from_be_bytes([id[0], id[1]]),
    ))
}

fn key(kind: u8, name: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + name.len());
    key.put_u8(kind);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// What a key in `MqttSession` or `MqttRetained` is about, and whose.
#[must_use]
pub fn read_key(key: &[u8]) -> Option<(u8, &str)> {
    let (kind, name) = key.split_first()?;
    Some((*kind, std::str::from_utf8(name).ok()?))
}

/// Reads what [`session`] wrote.
#[must_use]
pub fn read_session(mut bytes: &[u8]) -> Option<SavedSession> {
    let from = &mut bytes;
    let version = from.try_get_u8().ok()?;
    let expiry_s = from.try_get_u32().ok()?;
    let away = match version {
        VERSION => match from.try_get_i64().ok()? {
            0 => Away::There,
            since_ms => Away::SinceWall(since_ms),
        },
        WITH_AGE => match from.try_get_u64().ok()? {
            0 => Away::There,
            age_ms => Away::Since(age_ms),
        },
        _ => return None,
    };
    let owner = take_option(from, take_text)?;
    let count = from.try_get_u32().ok()?;
    let mut subscriptions = Vec::new();
    for _ in 0..count {
        let filter = take_text(from)?;
        let bits = from.try_get_u8().ok()?;
        let identifier = Some(from.try_get_u32().ok()?).filter(|id| *id != 0);
        subscriptions.push((filter, read_options(bits, identifier)?));
    }
    Some(SavedSession {
        expiry_s,
        away,
        owner,
        subscriptions,
    })
}

/// Writes the age of the sessions.
#[must_use]
pub fn stamp(stamp: &Stamp) -> StateChange {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u64(stamp.age_ms);
    out.put_u64(u64::try_from(stamp.clocks.up.as_millis()).unwrap_or(u64::MAX));
    out.put_i64(stamp.clocks.wall_ms);
    out.put_u128(stamp.clocks.boot_id);
    StateChange::put(StateSpace::MqttSession, key(b't', ""), out.freeze())
}

/// Reads what [`stamp`] wrote.
#[must_use]
pub fn read_stamp(mut bytes: &[u8]) -> Option<Stamp> {
    let from = &mut bytes;
    if from.try_get_u8().ok()? != VERSION {
        return None;
    }
    Some(Stamp {
        age_ms: from.try_get_u64().ok()?,
        clocks: Clocks {
            up: Duration::from_millis(from.try_get_u64().ok()?),
            wall_ms: from.try_get_i64().ok()?,
            boot_id: from.try_get_u128().ok()?,
        },
    })
}

/// Reads what [`progress`] wrote.
#[must_use]
pub fn read_progress(mut bytes: &[u8]) -> Option<SavedProgress> {
    let from = &mut bytes;
    let version = from.try_get_u8().ok()?;
    if version != VERSION && version != WITH_SCANS {
        return None;
    }
    let mut saved = SavedProgress {
        positions: take_positions(from)?,
        ..SavedProgress::default()
    };
    for _ in 0..from.try_get_u32().ok()? {
        let (id, flags) = (from.try_get_u16().ok()?, from.try_get_u8().ok()?);
        let place = take_place(from)?;
        saved.sent.push(Sent {
            id,
            delivery: None,
            shared: None,
            place: (flags & NO_PLACE == 0).then_some(place),
            is_exactly_once: flags & EXACTLY_ONCE != 0,
            is_released: flags & RELEASED != 0,
            is_retained: flags & RETAINED != 0,
        });
    }
    if version == VERSION {
        return Some(saved);
    }
    for _ in 0..from.try_get_u32().ok()? {
        let filter = take_text(from)?.into_string();
        let bits = from.try_get_u8().ok()?;
        let identifier = Some(from.try_get_u32().ok()?).filter(|id| *id != 0);
        saved.scans.push(Scan {
            filter,
            options: read_options(bits, identifier)?,
            after: take_option(from, take_text)?.map(Arc::from),
            is_last: false,
        });
    }
    for _ in 0..from.try_get_u32().ok()? {
        let filter = take_text(from)?;
        for _ in 0..from.try_get_u32().ok()? {
            saved.owed.push((filter.clone(), take_place(from)?));
        }
    }
    for _ in 0..from.try_get_u32().ok()? {
        let mut moment = Moment {
            from: take_positions(from)?,
            filters: BTreeSet::new(),
        };
        for _ in 0..from.try_get_u32().ok()? {
            moment.filters.insert(take_text(from)?);
        }
        saved.moments.push(moment);
    }
    Some(saved)
}

fn options_bits(options: &Options) -> u8 {
    let handling = match options.retain_handling {
        RetainHandling::Always => 0,
        RetainHandling::IfNew => 1,
        RetainHandling::Never => 2,
    };
    options.qos.number()
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | handling << 4
}

fn read_options(bits: u8, identifier: Option<u32>) -> Option<Options> {
    Some(Options {
        qos: Qos::of(bits & 3)?,
        no_local: bits & 4 != 0,
        retain_as_published: bits & 8 != 0,
        retain_handling: match bits >> 4 {
            0 => RetainHandling::Always,
            1 => RetainHandling::IfNew,
            _ => RetainHandling::Never,
        },
        identifier,
    })
}

/// Writes a retained message.
#[must_use]
pub fn retained(message: &Message, place: Option<Place>) -> StateChange {
    let mut out = BytesMut::with_capacity(64 + message.payload.len());
    out.put_u8(WITH_PLACE);
    out.put_i64(message.published_ms);
    out.put_u8(message.qos.number());
    put_option(&mut out, place, put_place);
    let none = MessageProperties::default();
    let properties = message.properties.as_deref().unwrap_or(&none);
    put_option(&mut out, properties.payload_format, BytesMut::put_u8);
    put_option(&mut out, properties.expiry_s, BytesMut::put_u32);
    put_option(&mut out, properties.content_type.as_deref(), put_text);
    put_option(&mut out, properties.response_topic.as_deref(), put_text);
    put_option(&mut out, properties.correlation.as_deref(), put_data);
    put_count(&mut out, properties.user.len());
    for (name, value) in &properties.user {
        put_text(&mut out, name);
        put_text(&mut out, value);
    }
    out.put_slice(&message.payload);
    StateChange::put(
        StateSpace::MqttRetained,
        key(b'm', &message.topic),
        out.freeze(),
    )
}

/// Forgets a topic's retained message.
#[must_use]
pub fn forget_retained(topic: &str) -> StateChange {
    StateChange::forget(StateSpace::MqttRetained, key(b'm', topic))
}

/// Reads what [`retained`] wrote.
#[must_use]
pub fn read_retained(topic: &str, bytes: &Bytes) -> Option<(Message, Option<Place>)> {
    let mut rest = &bytes[..];
    let from = &mut rest;
    let version = from.try_get_u8().ok()?;
    if version != VERSION && version != WITH_PLACE {
        return None;
    }
    let published_ms = from.try_get_i64().ok()?;
    let qos = Qos::of(from.try_get_u8().ok()?)?;
    let place = if version == WITH_PLACE {
        take_option(from, take_place)?
    } else {
        None
    };
    let mut properties = MessageProperties {
        payload_format: take_option(from, |from| from.try_get_u8().ok())?,
        expiry_s: take_option(from, |from| from.try_get_u32().ok())?,
        content_type: take_option(from, take_text)?,
        response_topic: take_option(from, take_text)?,
        correlation: take_option(from, |from| take_data(from).map(Bytes::copy_from_slice))?,
        user: Vec::new(),
    };
    for _ in 0..from.try_get_u32().ok()? {
        properties.user.push((take_text(from)?, take_text(from)?));
    }
    let is_empty = properties == MessageProperties::default();
    let message = Message {
        topic: Arc::from(topic),
        payload: Bytes::copy_from_slice(rest),
        qos,
        retain: true,
        published_ms,
        properties: (!is_empty).then(|| Box::new(properties)),
        from: None,
    };
    Some((message, place))
}

/// Writes how far retained messages are made from a log.
#[must_use]
pub fn cursor(partition: PartitionId, next: u64) -> StateChange {
    let mut key = BytesMut::from(&b"c"[..]);
    key.put_u32(partition.0);
    StateChange::put(
        StateSpace::MqttRetained,
        key.freeze(),
        next.to_be_bytes().to_vec(),
    )
}

/// Reads what [`cursor`] wrote.
#[must_use]
pub fn read_cursor(key: &[u8], value: &[u8]) -> Option<(PartitionId, u64)> {
    let number: [u8; 4] = key.strip_prefix(b"c")?.try_into().ok()?;
    let next: [u8; 8] = value.try_into().ok()?;
    Some((
        PartitionId(u32::from_be_bytes(number)),
        u64::from_be_bytes(next),
    ))
}

/// Notes that partitions of a Kafka topic that are not known yet are followed from their start, also by the next
/// process.
#[must_use]
pub fn followed(kafka: &str) -> StateChange {
    StateChange::put(StateSpace::MqttRetained, key(b'f', kafka), Bytes::new())
}

/// Notes that they are not: no rule leads there any more.
#[must_use]
pub fn unfollowed(kafka: &str) -> StateChange {
    StateChange::forget(StateSpace::MqttRetained, key(b'f', kafka))
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_text(out: &mut BytesMut, text: &str) {
    put_data(out, text.as_bytes());
}

/// # Panics
/// Never: MQTT's strings and binary data have at most 65535 bytes.
fn put_data(out: &mut BytesMut, data: &[u8]) {
    out.put_u16(u16::try_from(data.len()).expect("a string of MQTT is at most 65535 bytes"));
    out.put_slice(data);
}

fn put_option<T>(out: &mut BytesMut, value: Option<T>, put: impl Fn(&mut BytesMut, T)) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn take_option<'b, T>(
    from: &mut &'b [u8],
    take: impl Fn(&mut &'b [u8]) -> Option<T>,
) -> Option<Option<T>> {
    match from.try_get_u8().ok()? {
        0 => Some(None),
        _ => take(from).map(Some),
    }
}

fn take_data<'b>(from: &mut &'b [u8]) -> Option<&'b [u8]> {
    let len = usize::from(from.try_get_u16().ok()?);
    let (data, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(data)
}

fn take_text(from: &mut &[u8]) -> Option<Box<str>> {
    std::str::from_utf8(take_data(from)?).ok().map(Box::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::session::{Overflow, SessionLimits};

    const LIMITS: SessionLimits = SessionLimits {
        queue_messages: 10,
        queue_bytes: 1000,
        overflow: Overflow::DropNewest,
        subscriptions: 10,
        filter_bytes: 100,
    };

    fn value(change: StateChange) -> Bytes {
        change.value.unwrap()
    }

    prop_compose! {
        fn options()(qos in 0_u8..3, no_local: bool, retain_as_published: bool, handling in 0_u8..3, identifier in prop::option::of(1_u32..9)) -> Options {
            let retain_handling = match handling {
                0 => RetainHandling::Always,
                1 => RetainHandling::IfNew,
                _ => RetainHandling::Never,
            };
            Options { qos: Qos::of(qos).unwrap(), no_local, retain_as_published, retain_handling, identifier }
        }
    }

    prop_compose! {
        fn place()(partition: u32, offset: u64) -> Place {
            Place { partition: PartitionId(partition), offset }
        }
    }

    proptest! {
        #[test]
        fn a_session_is_read_as_it_was_written(
            expiry_s: u32,
            since_ms: u64,
            owner in prop::option::of("[a-z]{0,4}".prop_map(Box::from)),
            subscriptions in prop::collection::btree_map("[a-z/+#]{1,6}".prop_map(Box::from), options(), 0..4),
            positions in prop::collection::btree_map(any::<u32>().prop_map(PartitionId), any::<u64>(), 0..4),
            sent in prop::collection::vec((any::<u16>(), any::<[bool; 3]>(), prop::option::of(place())), 0..4),
            scans in prop::collection::vec(("[a-z]{1,3}", options(), prop::option::of("[a-z]{0,3}")), 0..3),
            owed in prop::collection::vec(("[ab]".prop_map(Box::from), place()), 0..5),
            filters in prop::collection::btree_set("[ab]{1,2}".prop_map(Box::from), 1..3),
        ) {
            let sent: Vec<Sent> = sent.into_iter().map(|(id, [is_exactly_once, is_released, is_retained], place)| Sent {
                id,
                delivery: None,
                shared: None,
                place,
                is_exactly_once,
                is_released,
                is_retained,
            }).collect();
            let scans: Vec<Scan> = scans.into_iter().map(|(filter, options, after)| Scan {
                filter,
                options,
                after: after.map(Arc::from),
                is_last: false,
            }).collect();
            // further on than the session in one log, or all hold already
            let from = positions.iter().map(|(id, next)| (*id, next.saturating_add(1))).collect::<Positions>();
            let is_ahead = positions.iter().any(|(id, next)| from[id] > *next);
            let moments: Vec<Moment> = is_ahead.then_some(Moment { from, filters }).into_iter().collect();
            let was = SavedProgress {
                positions: positions.clone(),
                sent: sent.clone(),
                scans: scans.clone(),
                owed: owed.clone(),
                moments: moments.clone(),
            };
            let mut state = State::restored(Arc::from("c"), LIMITS, was);
            state.expiry_s = expiry_s;
            state.owner = owner.clone();
            state.subscriptions = subscriptions.clone().into_iter().collect();
            let read = read_session(&value(session(&state, Some(since_ms)))).unwrap();
            let away = if since_ms == 0 { Away::There } else { Away::Since(since_ms) };
            let subscriptions = subscriptions.into_iter().collect();
            prop_assert_eq!(read, SavedSession { expiry_s, away, owner, subscriptions });
            prop_assert_eq!(read_away(&value(super::away(&state, Some(since_ms)))), Some((expiry_s, away)));
            prop_assert_eq!(changed(&state, None, &Positions::new()).len(), 3);
            state.has_saved_filters = true;
            prop_assert_eq!(changed(&state, None, &Positions::new()).len(), 2);
            let read = read_progress(&value(progress(&state, &Positions::new()))).unwrap();
            prop_assert_eq!(read.positions, positions);
            let ids = |sent: &[Sent]| sent.iter().map(|s| (s.id, s.place, s.is_exactly_once, s.is_released, s.is_retained)).collect::<Vec<_>>();
            prop_assert_eq!(ids(&read.sent), ids(&sent));
            prop_assert_eq!(read.scans, scans);
            prop_assert_eq!(read.owed, owed);
            prop_assert_eq!(read.moments, moments);
        }

        #[test]
        fn the_age_is_read_as_it_was_written(age_ms: u64, up_ms: u64, wall_ms: i64, boot_id: u128) {
            let up = Duration::from_millis(up_ms);
            let was = Stamp { age_ms, clocks: Clocks { up, wall_ms, boot_id } };
            prop_assert_eq!(read_stamp(&value(stamp(&was))), Some(was));
        }

        #[test]
        fn a_retained_message_is_read_as_it_was_written(
            payload in any::<Vec<u8>>().prop_map(Bytes::from),
            content_type in prop::option::of("[a-z]{0,4}".prop_map(Box::from)),
            correlation in prop::option::of(any::<Vec<u8>>().prop_map(Bytes::from)),
            expiry_s: Option<u32>,
            user in prop::collection::vec(("[a-z]{0,3}".prop_map(Box::from), "[a-z]{0,3}".prop_map(Box::from)), 0..3),
            place in prop::option::of(place()),
        ) {
            let properties = MessageProperties { content_type, correlation, expiry_s, user, ..MessageProperties::default() };
            let has_any = properties != MessageProperties::default();
            let message = Message {
                topic: Arc::from("a/b"),
                payload,
                qos: Qos::AtLeastOnce,
                retain: true,
                published_ms: 99,
                properties: has_any.then(|| Box::new(properties)),
                from: None,
            };
            prop_assert_eq!(read_retained("a/b", &value(retained(&message, place))), Some((message, place)));
        }

        #[test]
        fn no_bytes_break_the_readers(bytes: Vec<u8>) {
            drop(read_session(&bytes));
            drop(read_progress(&bytes));
            let _away = read_away(&bytes);
            let _stamp = read_stamp(&bytes);
            drop(read_retained("t", &Bytes::from(bytes.clone())));
            let _cursor = read_cursor(&bytes, &bytes);
            let _incoming = read_incoming(&bytes);
        }
    }
}
