//! Packets as a client writes and reads them (MQTT 3.1.1 and 5, chapters 2 and 3).

use anyhow::{Context as _, Result, bail, ensure};

use super::properties::Properties;

/// The protocol's level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1.
    V3,
    /// 5.
    V5,
}

impl Version {
    /// As CONNECT says it.
    #[must_use]
    pub fn level(self) -> u8 {
        match self {
            Self::V3 => 4,
            Self::V5 => 5,
        }
    }
}

/// Control packet types.
pub mod kind {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const UNSUBSCRIBE: u8 = 10;
    pub const UNSUBACK: u8 = 11;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
}

/// A PUBLISH.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub is_retained: bool,
    pub is_repeated: bool,
    /// 0 with QoS 0.
    pub id: u16,
    pub properties: Properties,
}

/// What a broker sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    ConnAck {
        is_session_present: bool,
        code: u8,
        properties: Properties,
    },
    Publish(Publish),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    Ack {
        kind: u8,
        id: u16,
        code: u8,
    },
    SubAck {
        id: u16,
        codes: Vec<u8>,
    },
    UnsubAck {
        id: u16,
        codes: Vec<u8>,
    },
    PingResp,
    Disconnect {
        code: u8,
        properties: Properties,
    },
}

impl Publish {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        put_bytes(&mut body, self.topic.as_bytes());
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        if version == Version::V5 {
            self.properties.put(&mut body);
        }
        body.extend(&self.payload);
        let flags = u8::from(self.is_repeated) << 3 | self.qos << 1 | u8::from(self.is_retained);
        frame(kind::PUBLISH, flags, &body)
    }
}

/// A packet's bytes from its body.
#[must_use]
pub fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind << 4 | flags];
    put_variable(
        &mut bytes,
        u32::try_from(body.len()).expect("a test's size"),
    );
    bytes.extend(body);
    bytes
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP with success.
#[must_use]
pub fn ack(kind: u8, id: u16) -> Vec<u8> {
    let flags = if kind == kind::PUBREL { 2 } else { 0 };
    frame(kind, flags, &id.to_be_bytes())
}

/// SUBSCRIBE; a filter with its options byte, which in 3.1.1 is the QoS.
#[must_use]
pub fn subscribe(
    version: Version,
    id: u16,
    filters: &[(&str, u8)],
    properties: &Properties,
) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        properties.put(&mut body);
    }
    for (filter, options) in filters {
        put_bytes(&mut body, filter.as_bytes());
        body.push(*options);
    }
    frame(kind::SUBSCRIBE, 2, &body)
}

/// UNSUBSCRIBE.
#[must_use]
pub fn unsubscribe(version: Version, id: u16, filter: &str) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        Properties::none().put(&mut body);
    }
    put_bytes(&mut body, filter.as_bytes());
    frame(kind::UNSUBSCRIBE, 2, &body)
}

/// DISCONNECT with success.
#[must_use]
pub fn disconnect(version: Version, properties: &Properties) -> Vec<u8> {
    let mut body = Vec::new();
    if version == Version::V5 {
        body.push(0);
        properties.put(&mut body);
    }
    frame(kind::DISCONNECT, 0, &body)
}

/// Reads the first whole packet of a buffer: it and its length, or nothing while it is not whole.
///
/// # Errors
/// When that is not a packet that a broker sends.
pub fn decode(version: Version, buffer: &[u8]) -> Result<Option<(Packet, usize)>> {
    let mut rest = Bytes(buffer);
    let (Ok(first), Ok(length)) = (rest.byte(), rest.variable()) else {
        ensure!(buffer.len() < 5, "a length of more than four bytes");
        return Ok(None);
    };
    let header = buffer.len() - rest.0.len();
    let length = usize::try_from(length)?;
    if rest.0.len() < length {
        return Ok(None);
    }
    let mut body = Bytes(&rest.0[..length]);
    let packet = decode_body(version, first, &mut body)
        .with_context(|| format!("packet {first:#04x} of {length} bytes"))?;
    ensure!(
        body.0.is_empty(),
        "{packet:?} has {} bytes too many",
        body.0.len()
    );
    Ok(Some((packet, header + length)))
}

fn decode_body(version: Version, first: u8, body: &mut Bytes<'_>) -> Result<Packet> {
    let is_v5 = version == Version::V5;
    let properties = |body: &mut Bytes<'_>| {
        if is_v5 && !body.0.is_empty() {
            Properties::take(body)
        } else {
            Ok(Properties::none())
        }
    };
    let kind = first >> 4;
    let flags = first & 15;
    let expected = if kind == kind::PUBREL { 2 } else { 0 };
    ensure!(
        kind == kind::PUBLISH || flags == expected,
        "reserved flags are {flags}"
    );
    Ok(match kind {
        kind::CONNACK => {
            let flags = body.byte()?;
            ensure!(flags <= 1, "reserved flags of CONNACK");
            Packet::ConnAck {
                is_session_present: flags == 1,
                code: body.byte()?,
                properties: properties(body)?,
            }
        }
        kind::PUBLISH => {
            let qos = flags >> 1 & 3;
            ensure!(qos < 3, "QoS 3");
            let topic = body.text()?;
            let id = if qos > 0 { body.two()? } else { 0 };
            let properties = properties(body)?;
            Packet::Publish(Publish {
                topic,
                payload: std::mem::take(&mut body.0).to_vec(),
                qos,
                is_retained: flags & 1 == 1,
                is_repeated: flags & 8 == 8,
                id,
                properties,
            })
        }
        kind::PUBACK | kind::PUBREC | kind::PUBREL | kind::PUBCOMP => {
            let id = body.two()?;
            let code = if is_v5 && !body.0.is_empty() {
                body.byte()?
            } else {
                0
            };
            properties(body)?;
            Packet::Ack { kind, id, code }
        }
        kind::SUBACK | kind::UNSUBACK => {
            let id = body.two()?;
            properties(body)?;
            let codes = std::mem::take(&mut body.0).to_vec();
            if kind == kind::SUBACK {
                Packet::SubAck { id, codes }
            } else {
                Packet::UnsubAck { id, codes }
            }
        }
        kind::PINGRESP => Packet::PingResp,
        kind::DISCONNECT if is_v5 => Packet::Disconnect {
            code: if body.0.is_empty() { 0 } else { body.byte()? },
            properties: properties(body)?,
        },
        _ => bail!("a broker does not send that"),
    })
}

pub(super) fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("a test's text");
    into.extend(length.to_be_bytes());
    into.extend(bytes);
}

pub(super) fn put_variable(into: &mut Vec<u8>, mut value: u32) {
    loop {
        let low = u8::try_from(value % 128).expect("below 128");
        value /= 128;
        into.push(if value > 0 { low | 128 } else { low });
        if value == 0 {
            return;
        }
    }
}

/// What is left to read.
#[derive(Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn two(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn four(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn variable(&mut self) -> Result<u32> {
        let mut value = 0;
        for place in 0..4 {
            let byte = self.byte()?;
            value |= u32::from(byte & 127) << (7 * place);
            if byte < 128 {
                return Ok(value);
            }
        }
        bail!("a variable byte integer of more than four bytes")
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.two()?;
        self.take(usize::from(length))
    }

    pub(super) fn text(&mut self) -> Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).context("text that is not UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::super::properties::id;
    use super::*;

    #[test]
    fn a_publish_is_read_as_it_was_written() {
        let publish = Publish {
            topic: "a/b".to_owned(),
            payload: vec![7; 200],
            qos: 2,
            is_retained: true,
            is_repeated: true,
            id: 513,
            properties: Properties::none()
                .four(id::MESSAGE_EXPIRY, 9)
                .user("a", "b"),
        };
        let bytes = publish.encode(Version::V5);
        for end in 0..bytes.len() {
            assert_eq!(decode(Version::V5, &bytes[..end]).unwrap(), None);
        }
        let (packet, length) = decode(Version::V5, &bytes).unwrap().unwrap();
        assert_eq!((packet, length), (Packet::Publish(publish), bytes.len()));
    }
}
