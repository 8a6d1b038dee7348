//! A message as a Kafka record, and a record as a message. Plain code.
//!
//! | of the message | in the record |
//! | --- | --- |
//! | topic | key, as the rule says; header `mqtt.topic` when the key is something else |
//! | payload | value, as it is |
//! | time of arrival | timestamp |
//! | QoS | header `mqtt.qos`, unless it is the rule's |
//! | retain | header `mqtt.retain` = `1` |
//! | payload format indicator | header `mqtt.payload-format` |
//! | message expiry interval | header `mqtt.expiry`, seconds from the timestamp, in decimal |
//! | content type, response topic, correlation data | headers `mqtt.content-type`, `mqtt.response-topic`, `mqtt.correlation` |
//! | user properties | headers of the same name, in order; `mqtt.user.` before a name that begins with `mqtt.` |
//! | publisher's client id | header `mqtt.from`, only of clients that asked not to get back what they publish |
//!
//! The other way round any record is a message: headers that are not UTF-8 or too long are left out.

use std::sync::Arc;

use bytes::Bytes;
use shared::record::{BatchBuilder, Header, RecordRef, record_len};

use super::codec::is_valid_topic;
use super::packet::{Message, MessageProperties, Qos};
use super::topic_map::{RetainRule, Rule, TopicMap};

const PREFIX: &str = "mqtt.";
const USER: &str = "mqtt.user.";
const TOPIC: &str = "mqtt.topic";
const QOS: &str = "mqtt.qos";
const RETAIN: &str = "mqtt.retain";
const FORMAT: &str = "mqtt.payload-format";
const EXPIRY: &str = "mqtt.expiry";
const CONTENT_TYPE: &str = "mqtt.content-type";
const RESPONSE_TOPIC: &str = "mqtt.response-topic";
const CORRELATION: &str = "mqtt.correlation";
const FROM: &str = "mqtt.from";

/// MQTT's strings have two bytes of length.
const MAX_TEXT: usize = 65_535;
/// User properties made of one record's headers.
const MAX_USER: usize = 256;

/// A record of a message, with the memory that its headers borrow from.
#[derive(Debug)]
pub struct Draft {
    key: String,
    message: Message,
    own: Vec<(&'static str, Vec<u8>)>,
    user: Vec<(Box<str>, Box<str>)>,
}

impl Draft {
    /// The record of a message, by its rule.
    #[must_use]
    pub fn new(map: &TopicMap, rule: &Rule, mut message: Message) -> Self {
        let key = map.key(rule, &message.topic).into_owned();
        let mut own: Vec<(&'static str, Vec<u8>)> = Vec::new();
        if map.needs_topic(rule) {
            own.push((TOPIC, message.topic.as_bytes().to_vec()));
        }
        if message.qos != rule.qos {
            own.push((QOS, message.qos.number().to_string().into_bytes()));
        }
        if message.retain {
            own.push((RETAIN, b"1".to_vec()));
        }
        if let Some(from) = &message.from {
            own.push((FROM, from.as_bytes().to_vec()));
        }
        let mut user = Vec::new();
        if let Some(properties) = message.properties.take() {
            let properties = *properties;
            let number = |number: u32| number.to_string().into_bytes();
            let text = |text: Box<str>| text.into_string().into_bytes();
            own.extend(
                properties
                    .payload_format
                    .map(|format| (FORMAT, number(format.into()))),
            );
            own.extend(properties.expiry_s.map(|expiry| (EXPIRY, number(expiry))));
            own.extend(
                properties
                    .content_type
                    .map(|value| (CONTENT_TYPE, text(value))),
            );
            own.extend(
                properties
                    .response_topic
                    .map(|value| (RESPONSE_TOPIC, text(value))),
            );
            own.extend(
                properties
                    .correlation
                    .map(|value| (CORRELATION, value.to_vec())),
            );
            user = properties.user;
            for (name, _) in &mut user {
                if name.starts_with(PREFIX) {
                    *name = format!("mqtt.user.{name}").into();
                }
            }
        }
        Self {
            key,
            message,
            own,
            user,
        }
    }

    /// The record's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    fn headers(&self) -> Vec<Header<'_>> {
        let own = self.own.iter().map(|(name, value)| (*name, &value[..]));
        let user = self
            .user
            .iter()
            .map(|(name, value)| (&**name, value.as_bytes()));
        let all = own.chain(user);
        all.map(|(name, value)| Header {
            name: name.as_bytes(),
            value: Some(value),
        })
        .collect()
    }

    /// Bytes that it takes in a batch, at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let (key, value) = (Some(self.key.as_bytes()), Some(&self.message.payload[..]));
        record_len(u32::MAX >> 1, i64::MAX, key, value, &self.headers())
    }

    /// Adds it to a batch.
    pub fn push(&self, batch: &mut BatchBuilder) {
        let (key, value) = (Some(self.key.as_bytes()), Some(&self.message.payload[..]));
        batch.push(self.message.published_ms, key, value, &self.headers());
    }
}

/// A record as MQTT subscribers get it, and the rule that holds for it; `None`: it is not for MQTT.
#[must_use]
pub fn topic_of<'m>(
    map: &'m TopicMap,
    kafka: &str,
    record: &RecordRef<'_>,
) -> Option<(Arc<str>, &'m Rule)> {
    let carried = record
        .headers()
        .find(|header| header.name == TOPIC.as_bytes());
    let carried = carried.and_then(|header| std::str::from_utf8(header.value?).ok());
    map.back(kafka, record.key, carried)
}

/// The rest of the message whose topic was found by [`topic_of`].
#[must_use]
pub fn message_of(
    topic: Arc<str>,
    rule: &Rule,
    timestamp_ms: i64,
    record: &RecordRef<'_>,
) -> Message {
    let mut message = Message {
        topic,
        payload: record.value.map(Bytes::copy_from_slice).unwrap_or_default(),
        qos: rule.qos,
        retain: rule.retain == RetainRule::Always,
        published_ms: timestamp_ms,
        properties: None,
        from: None,
    };
    let mut properties = MessageProperties::default();
    for header in record.headers() {
        let (Ok(name), Some(value)) = (std::str::from_utf8(header.name), header.value) else {
            continue;
        };
        if value.len() > MAX_TEXT || name.len() > MAX_TEXT {
            continue;
        }
        let text = || {
            std::str::from_utf8(value)
                .ok()
                .filter(|text| !text.contains('\0'))
        };
        match name {
            TOPIC => {}
            QOS => {
                message.qos = text()
                    .and_then(|t| t.parse().ok())
                    .and_then(Qos::of)
                    .unwrap_or(message.qos)
            }
            RETAIN => message.retain |= rule.retain != RetainRule::Never && value == b"1",
            FROM => message.from = text().map(Box::from),
            FORMAT => {
                properties.payload_format = text().and_then(|t| t.parse().ok()).filter(|f| *f <= 1)
            }
            EXPIRY => properties.expiry_s = text().and_then(|t| t.parse().ok()),
            CONTENT_TYPE => properties.content_type = text().map(Box::from),
            // a wildcard there makes clients disconnect ([MQTT-3.3.2-14])
            RESPONSE_TOPIC => {
                properties.response_topic =
                    text().filter(|topic| is_valid_topic(topic)).map(Box::from);
            }
            CORRELATION => properties.correlation = Some(Bytes::copy_from_slice(value)),
            name => {
                let name = match name.strip_prefix(USER) {
                    Some(rest) if rest.starts_with(PREFIX) => rest,
                    Some(_) | None => name,
                };
                if let Some(value) =
                    text().filter(|_| properties.user.len() < MAX_USER && !name.contains('\0'))
                {
                    properties.user.push((name.into(), value.into()));
                }
            }
        }
    }
    if properties != MessageProperties::default() {
        message.properties = Some(Box::new(properties));
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::ids::TopicName;
    use shared::record::{BatchHeader, Records, open};

    use super::*;

    fn back(map: &TopicMap, batch: &Bytes) -> Vec<Message> {
        let header = BatchHeader::parse(batch).unwrap();
        let records = open(batch, &header, 1 << 20).unwrap();
        let walk = Records::new(&records, header.count).map(Result::unwrap);
        let messages = walk.filter_map(|record| {
            let (topic, rule) = topic_of(map, "m", &record)?;
            let at = header.base_timestamp_ms + record.timestamp_delta_ms;
            Some(message_of(topic, rule, at, &record))
        });
        messages.collect()
    }

    fn map() -> TopicMap {
        TopicMap::new(Vec::new(), TopicName::new("m").ok()).unwrap()
    }

    fn text() -> impl Strategy<Value = Box<str>> {
        "(mqtt\\.)?(user\\.)?[a-z]{0,5}".prop_map(Into::into)
    }

    fn properties() -> impl Strategy<Value = MessageProperties> {
        (
            prop::option::of(0_u8..2),
            prop::option::of(any::<u32>()),
            prop::option::of(text()),
            prop::option::of("[a-z/]{1,5}".prop_map(Box::from)),
            prop::option::of(any::<Vec<u8>>().prop_map(Bytes::from)),
            prop::collection::vec((text(), text()), 0..4),
        )
            .prop_map(
                |(payload_format, expiry_s, content_type, response_topic, correlation, user)| {
                    MessageProperties {
                        payload_format,
                        expiry_s,
                        content_type,
                        response_topic,
                        correlation,
                        user,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn a_message_survives_the_log(
            topic in "[a-z]{1,5}(/[a-z]{0,5})?",
            payload: Vec<u8>,
            qos in 0_u8..3,
            retain: bool,
            published_ms in 0_i64..1 << 45,
            properties in prop::option::of(properties()),
            from in prop::option::of("[a-z]{1,5}".prop_map(Box::from)),
        ) {
            let properties = properties.filter(|found| *found != MessageProperties::default());
            let message = Message {
                topic: topic.into(),
                payload: payload.into(),
                qos: Qos::of(qos).unwrap(),
                retain,
                published_ms,
                properties: properties.map(Box::new),
                from,
            };
            let map = map();
            let rule = map.rule(&message.topic).unwrap();
            let draft = Draft::new(&map, rule, message.clone());
            let mut batch = BatchBuilder::default();
            draft.push(&mut batch);
            prop_assert!(batch.len() - shared::record::HEADER_LEN <= draft.bytes());
            prop_assert_eq!(back(&map, &batch.build().unwrap()), vec![message]);
        }
    }

    #[test]
    fn any_record_is_a_message() {
        let mut batch = BatchBuilder::default();
        let bad = [
            Header {
                name: b"mqtt.qos",
                value: Some(b"9"),
            },
            Header {
                name: b"\xff",
                value: Some(b"x"),
            },
            Header {
                name: b"mqtt.expiry",
                value: Some(b"-1"),
            },
            Header {
                name: b"none",
                value: None,
            },
            Header {
                name: b"mqtt.response-topic",
                value: Some(b"a/#"),
            },
            Header {
                name: b"unit",
                value: Some(b"C"),
            },
        ];
        batch.push(7, Some(b"a/b"), None, &bad);
        batch.push(7, Some(b"a/#"), Some(b"not a topic"), &[]);
        batch.push(7, None, Some(b"no key"), &[]);
        let messages = back(&map(), &batch.build().unwrap());
        assert_eq!(messages.len(), 1);
        let properties = messages[0].properties.as_ref().unwrap();
        assert_eq!(properties.user, [("unit".into(), "C".into())]);
        assert_eq!(properties.response_topic, None);
        assert_eq!(
            (messages[0].qos, messages[0].payload.len()),
            (Qos::AtLeastOnce, 0)
        );
    }
}
