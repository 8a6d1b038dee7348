//! Answers and messages, written into a connection's buffer.

use bytes::{BufMut, BytesMut};

use crate::mqtt::packet::{AckKind, Message, Qos, Version, reason};

/// Bytes of the longest fixed header.
const MAX_HEADER: usize = 5;

/// What CONNACK says. MQTT 3.1.1 has the first two only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnAck {
    /// MQTT 5's reason code.
    pub reason: u8,
    /// An earlier session goes on.
    pub session_present: bool,
    /// When it is not what the client asked for.
    pub session_expiry_s: Option<u32>,
    /// QoS 1 and 2 messages that are taken at a time.
    pub receive_maximum: Option<u16>,
    /// Largest packet that is taken.
    pub max_packet_bytes: Option<u32>,
    /// The id that the broker chose.
    pub assigned_client_id: Option<String>,
    /// Topic aliases that are taken.
    pub topic_alias_maximum: Option<u16>,
    /// When it is not what the client asked for.
    pub keep_alive_s: Option<u16>,
    /// Where a client may expect answers.
    pub response_information: Option<String>,
    /// Why it was refused.
    pub reason_text: Option<&'static str>,
}

/// Writes a CONNACK.
pub fn put_connack(out: &mut BytesMut, version: Version, ack: &ConnAck) {
    if version == Version::V3 {
        out.put_slice(&[
            0x20,
            2,
            u8::from(ack.session_present),
            v3_return_code(ack.reason),
        ]);
        return;
    }
    let mut properties = BytesMut::new();
    put_u32(&mut properties, 0x11, ack.session_expiry_s);
    put_u16(&mut properties, 0x21, ack.receive_maximum);
    put_u32(&mut properties, 0x27, ack.max_packet_bytes);
    put_text(&mut properties, 0x12, ack.assigned_client_id.as_deref());
    put_u16(&mut properties, 0x22, ack.topic_alias_maximum);
    put_u16(&mut properties, 0x13, ack.keep_alive_s);
    put_text(&mut properties, 0x1a, ack.response_information.as_deref());
    put_text(&mut properties, 0x1f, ack.reason_text);
    let body = 2 + varint_len(properties.len()) + properties.len();
    put_header(out, 0x20, body);
    out.put_slice(&[u8::from(ack.session_present), ack.reason]);
    put_varint(out, properties.len());
    out.put_slice(&properties);
}

/// MQTT 3.1.1, section 3.2.2.3.
fn v3_return_code(code: u8) -> u8 {
    match code {
        reason::SUCCESS => 0,
        reason::UNSUPPORTED_VERSION => 1,
        reason::CLIENT_ID_INVALID => 2,
        reason::BAD_CREDENTIALS => 4,
        reason::NOT_AUTHORIZED => 5,
        _ => 3,
    }
}

/// Writes PUBACK, PUBREC, PUBREL or PUBCOMP.
pub fn put_ack(out: &mut BytesMut, version: Version, kind: AckKind, id: u16, code: u8) {
    let first = match kind {
        AckKind::PubAck => 0x40,
        AckKind::PubRec => 0x50,
        AckKind::PubRel => 0x62,
        AckKind::PubComp => 0x70,
    };
    let has_reason = version == Version::V5 && code != reason::SUCCESS;
    out.put_slice(&[first, if has_reason { 3 } else { 2 }]);
    out.put_u16(id);
    if has_reason {
        out.put_u8(code);
    }
}

/// Writes a SUBACK; MQTT 3.1.1 knows one code for errors.
pub fn put_suback(out: &mut BytesMut, version: Version, id: u16, codes: &[u8]) {
    let properties = usize::from(version == Version::V5);
    put_header(out, 0x90, 2 + properties + codes.len());
    out.put_u16(id);
    out.put_bytes(0, properties);
    for code in codes {
        let is_error = *code >= reason::UNSPECIFIED;
        out.put_u8(if is_error && version == Version::V3 {
            reason::UNSPECIFIED
        } else {
            *code
        });
    }
}

/// Writes an UNSUBACK; MQTT 3.1.1's has no codes.
pub fn put_unsuback(out: &mut BytesMut, version: Version, id: u16, codes: &[u8]) {
    match version {
        Version::V3 => {
            put_header(out, 0xb0, 2);
            out.put_u16(id);
        }
        Version::V5 => {
            put_header(out, 0xb0, 3 + codes.len());
            out.put_u16(id);
            out.put_u8(0);
            out.put_slice(codes);
        }
    }
}

/// Writes a PINGRESP.
pub fn put_pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Writes a DISCONNECT; MQTT 3.1.1 has none from the broker.
pub fn put_disconnect(out: &mut BytesMut, version: Version, code: u8) {
    if version == Version::V5 {
        out.put_slice(&[0xe0, 1, code]);
    }
}

/// A message as one subscriber gets it.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// What was published.
    pub message: &'a Message,
    /// The lower of the publisher's and the subscription's.
    pub qos: Qos,
    /// See [`crate::mqtt::packet::Options::retain_as_published`].
    pub retain: bool,
    /// It may have been sent before.
    pub dup: bool,
    /// 0 with QoS 0.
    pub id: u16,
    /// Of all the client's subscriptions that match.
    pub identifiers: &'a [u32],
    /// An alias, and whether the topic is known by it already.
    pub alias: Option<(u16, bool)>,
    /// Seconds that it still has.
    pub left_s: Option<u32>,
}

/// Writes a PUBLISH, unless it would be longer than `max_bytes`. True when it was written.
pub fn put_publish(
    out: &mut BytesMut,
    version: Version,
    outgoing: &Outgoing<'_>,
    max_bytes: usize,
) -> bool {
    let message = outgoing.message;
    let is_known = matches!(outgoing.alias, Some((_, true)));
    let topic = if is_known { "" } else { &*message.topic };
    let has_id = outgoing.qos != Qos::AtMostOnce;
    let properties = match version {
        Version::V3 => 0,
        Version::V5 => properties_len(outgoing),
    };
    let properties_field = match version {
        Version::V3 => 0,
        Version::V5 => varint_len(properties),
    };
    let body = 2
        + topic.len()
        + 2 * usize::from(has_id)
        + properties_field
        + properties
        + message.payload.len();
    if 1 + varint_len(body) + body > max_bytes {
        return false;
    }
    out.reserve(MAX_HEADER + body);
    let flags =
        u8::from(outgoing.dup) << 3 | outgoing.qos.number() << 1 | u8::from(outgoing.retain);
    put_header(out, 0x30 | flags, body);
    put_bytes(out, topic.as_bytes());
    if has_id {
        out.put_u16(outgoing.id);
    }
    if version == Version::V5 {
        put_varint(out, properties);
        put_properties(out, outgoing);
    }
    out.put_slice(&message.payload);
    true
}

fn properties_len(outgoing: &Outgoing<'_>) -> usize {
    let mut len =
        3 * usize::from(outgoing.alias.is_some()) + 5 * usize::from(outgoing.left_s.is_some());
    let identifiers = outgoing.identifiers.iter();
    len += identifiers
        .map(|id| 1 + varint_len(*id as usize))
        .sum::<usize>();
    if let Some(properties) = &outgoing.message.properties {
        len += 2 * usize::from(properties.payload_format.is_some());
        let texts = [&properties.content_type, &properties.response_topic];
        len += texts
            .iter()
            .filter_map(|text| text.as_ref())
            .map(|text| 3 + text.len())
            .sum::<usize>();
        len += properties
            .correlation
            .as_ref()
            .map_or(0, |data| 3 + data.len());
        let user = properties.user.iter();
        len += user
            .map(|(name, value)| 5 + name.len() + value.len())
            .sum::<usize>();
    }
    len
}

fn put_properties(out: &mut BytesMut, outgoing: &Outgoing<'_>) {
    put_u16(out, 0x23, outgoing.alias.map(|(alias, _)| alias));
    put_u32(out, 0x02, outgoing.left_s);
    for id in outgoing.identifiers {
        out.put_u8(0x0b);
        put_varint(out, *id as usize);
    }
    let Some(properties) = &outgoing.message.properties else {
        return;
    };
    if let Some(format) = properties.payload_format {
        out.put_slice(&[0x01, format]);
    }
    put_text(out, 0x03, properties.content_type.as_deref());
    put_text(out, 0x08, properties.response_topic.as_deref());
    if let Some(data) = &properties.correlation {
        out.put_u8(0x09);
        put_bytes(out, data);
    }
    for (name, value) in &properties.user {
        out.put_u8(0x26);
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn put_u32(out: &mut BytesMut, kind: u8, value: Option<u32>) {
    if let Some(value) = value {
        out.put_u8(kind);
        out.put_u32(value);
    }
}

fn put_u16(out: &mut BytesMut, kind: u8, value: Option<u16>) {
    if let Some(value) = value {
        out.put_u8(kind);
        out.put_u16(value);
    }
}

fn put_text(out: &mut BytesMut, kind: u8, value: Option<&str>) {
    if let Some(value) = value {
        out.put_u8(kind);
        put_bytes(out, value.as_bytes());
    }
}

/// With the length in front that MQTT's strings and binary data have.
///
/// # Panics
/// Never: what is longer than 64 KiB did not come in by MQTT, and is cut where it came in.
fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).expect("strings of messages are at most 65535 bytes");
    out.put_u16(len);
    out.put_slice(bytes);
}

fn put_header(out: &mut BytesMut, first: u8, body: usize) {
    out.put_u8(first);
    put_varint(out, body);
}

fn put_varint(out: &mut BytesMut, mut value: usize) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.put_u8(low);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

fn varint_len(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
