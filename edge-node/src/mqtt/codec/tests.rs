//! What we write is read by the crate, and nothing that comes in breaks us.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mqtt_protocol_core::mqtt::packet::{Property, v3_1_1, v5_0};
use proptest::prelude::*;

use super::*;
use crate::mqtt::frame;
use crate::mqtt::packet::{
    AckKind, Incoming, Message, MessageProperties, Options, Qos, RetainHandling, Version, reason,
};

/// The one packet in `out`.
fn frame_of(out: &BytesMut) -> frame::Frame {
    let mut buffer = out.clone();
    let frame = frame::take(&mut buffer, 1 << 24).unwrap().unwrap();
    assert!(buffer.is_empty(), "one packet, and its length is right");
    frame
}

fn text() -> impl Strategy<Value = Box<str>> {
    "[a-zä]{0,6}".prop_map(Into::into)
}

fn properties() -> impl Strategy<Value = MessageProperties> {
    (
        prop::option::of(Just(1_u8)),
        prop::option::of(text()),
        prop::option::of("[a-z]{1,5}(/[a-z]{1,5})?".prop_map(Box::from)),
        prop::option::of(any::<Vec<u8>>().prop_map(Bytes::from)),
        prop::collection::vec((text(), text()), 0..4),
    )
        .prop_map(
            |(payload_format, content_type, response_topic, correlation, user)| MessageProperties {
                payload_format,
                expiry_s: None,
                content_type,
                response_topic,
                correlation,
                user,
            },
        )
}

prop_compose! {
    fn message()(
        topic in "[a-z]{1,6}(/[a-z]{0,6}){0,2}",
        payload in "[ -~]{0,300}",
        qos in 0_u8..3,
        retain: bool,
        properties in prop::option::of(properties()),
    ) -> Message {
        Message {
            topic: topic.into(),
            payload: Bytes::from(payload),
            qos: Qos::of(qos).unwrap(),
            retain,
            published_ms: 7,
            properties: properties.filter(|p| *p != MessageProperties::default()).map(Box::new),
            from: None,
        }
    }
}

proptest! {
    /// A PUBLISH is the same both ways: what is written is what is read, by us and by the crate.
    #[test]
    fn a_message_is_read_as_it_was_written(
        message in message(),
        is_v5: bool,
        dup: bool,
        identifiers in prop::collection::vec(1_u32..268_435_455, 0..3),
        left_s: Option<u32>,
        alias in prop::option::of(1_u16..100),
    ) {
        let version = if is_v5 { Version::V5 } else { Version::V3 };
        let id = if message.qos == Qos::AtMostOnce { 0 } else { 77 };
        let dup = dup && id != 0;
        let outgoing = Outgoing {
            message: &message,
            qos: message.qos,
            retain: message.retain,
            dup,
            id,
            identifiers: &identifiers,
            alias: alias.map(|alias| (alias, false)),
            left_s,
        };
        let mut out = BytesMut::new();
        prop_assert!(put_publish(&mut out, version, &outgoing, usize::MAX));
        let len = out.len();
        let mut other = BytesMut::new();
        prop_assert!(!put_publish(&mut other, version, &outgoing, len - 1));
        prop_assert!(put_publish(&mut other, version, &outgoing, len));
        let frame = frame_of(&out);
        if version == Version::V5 {
            let body: Arc<[u8]> = Arc::from(&frame.1[..]);
            let (packet, _) = v5_0::Publish::parse(frame.0 & 15, body).unwrap();
            let ids = packet.props().iter().filter_map(|property| {
                if let Property::SubscriptionIdentifier(id) = property {
                    Some(id.val())
                } else {
                    None
                }
            });
            prop_assert_eq!(ids.collect::<Vec<_>>(), identifiers.clone());
        }
        if identifiers.is_empty() || !is_v5 {
            let Incoming::Publish(read) = decode(version, &frame, 7).unwrap() else { panic!("not a PUBLISH") };
            let mut expected = message.clone();
            if is_v5 {
                let mut properties = expected.properties.take().unwrap_or_default();
                properties.expiry_s = left_s;
                expected.properties = Some(properties).filter(|p| **p != MessageProperties::default());
            } else {
                expected.properties = None;
            }
            prop_assert_eq!(&read.message, &expected);
            prop_assert_eq!((read.id, read.dup), (id, dup));
            prop_assert_eq!(read.alias, alias.filter(|_| is_v5));
        }
    }

    #[test]
    fn no_bytes_break_the_decoder(first: u8, body: Vec<u8>, is_v5: bool) {
        let version = if is_v5 { Version::V5 } else { Version::V3 };
        let frame = (first, Bytes::from(body));
        let _version = connect_version(&frame);
        drop(decode(version, &frame, 0));
    }

    /// Bytes that are nearly a packet get further than random ones.
    #[test]
    fn a_changed_packet_does_not_break_the_decoder(
        message in message(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut: prop::sample::Index,
    ) {
        let outgoing = Outgoing {
            message: &message, qos: message.qos, retain: false, dup: false,
            id: u16::from(message.qos != Qos::AtMostOnce), identifiers: &[], alias: None, left_s: Some(3),
        };
        let mut out = BytesMut::new();
        put_publish(&mut out, Version::V5, &outgoing, usize::MAX);
        let (first, body) = frame_of(&out);
        let mut body = body.to_vec();
        for (at, value) in changes {
            let len = body.len();
            body[at.index(len)] = value;
        }
        body.truncate(cut.index(body.len() + 1));
        let frame = (first, Bytes::from(body));
        drop(decode(Version::V5, &frame, 0));
        drop(decode(Version::V3, &frame, 0));
    }
}

#[test]
fn acknowledgements_are_read_by_the_crate() {
    for kind in [
        AckKind::PubAck,
        AckKind::PubRec,
        AckKind::PubRel,
        AckKind::PubComp,
    ] {
        let code = match kind {
            AckKind::PubRel | AckKind::PubComp => reason::PACKET_ID_NOT_FOUND,
            AckKind::PubAck | AckKind::PubRec => reason::QUOTA_EXCEEDED,
        };
        for (version, code) in [(Version::V3, 0), (Version::V5, 0), (Version::V5, code)] {
            let mut out = BytesMut::new();
            put_ack(&mut out, version, kind, 513, code);
            let frame = frame_of(&out);
            let read = decode(version, &frame, 0).unwrap();
            assert_eq!(
                read,
                Incoming::Ack {
                    kind,
                    id: 513,
                    reason: code
                }
            );
            let id = match (kind, version) {
                (AckKind::PubAck, Version::V3) => {
                    v3_1_1::Puback::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubRec, Version::V3) => {
                    v3_1_1::Pubrec::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubRel, Version::V3) => {
                    v3_1_1::Pubrel::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubComp, Version::V3) => {
                    v3_1_1::Pubcomp::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubAck, Version::V5) => {
                    v5_0::Puback::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubRec, Version::V5) => {
                    v5_0::Pubrec::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubRel, Version::V5) => {
                    v5_0::Pubrel::parse(&frame.1).unwrap().0.packet_id()
                }
                (AckKind::PubComp, Version::V5) => {
                    v5_0::Pubcomp::parse(&frame.1).unwrap().0.packet_id()
                }
            };
            assert_eq!(id, 513);
        }
    }
}

#[test]
fn answers_are_read_by_the_crate() {
    let ack = ConnAck {
        session_present: true,
        session_expiry_s: Some(5),
        receive_maximum: Some(6),
        max_packet_bytes: Some(7),
        assigned_client_id: Some("id".to_owned()),
        topic_alias_maximum: Some(8),
        keep_alive_s: Some(9),
        response_information: Some("response/id".to_owned()),
        ..ConnAck::default()
    };
    let mut out = BytesMut::new();
    put_connack(&mut out, Version::V5, &ack);
    let (packet, used) = v5_0::Connack::parse(&frame_of(&out).1).unwrap();
    assert!(packet.session_present());
    assert_eq!((packet.props().len(), used), (7, frame_of(&out).1.len()));
    let mut out = BytesMut::new();
    put_connack(&mut out, Version::V3, &ack);
    assert!(
        v3_1_1::Connack::parse(&frame_of(&out).1)
            .unwrap()
            .0
            .session_present()
    );
    let mut out = BytesMut::new();
    put_suback(&mut out, Version::V5, 3, &[0, 2, reason::NOT_AUTHORIZED]);
    assert_eq!(
        v5_0::Suback::parse(&frame_of(&out).1)
            .unwrap()
            .0
            .reason_codes()
            .len(),
        3
    );
    let mut out = BytesMut::new();
    put_suback(&mut out, Version::V3, 3, &[0, 2, reason::NOT_AUTHORIZED]);
    assert_eq!(&frame_of(&out).1[..], [0, 3, 0, 2, 0x80]);
    let mut out = BytesMut::new();
    put_unsuback(
        &mut out,
        Version::V5,
        3,
        &[0, reason::NO_SUBSCRIPTION_EXISTED],
    );
    assert_eq!(
        v5_0::Unsuback::parse(&frame_of(&out).1)
            .unwrap()
            .0
            .packet_id(),
        3
    );
    let mut out = BytesMut::new();
    put_disconnect(&mut out, Version::V5, reason::SESSION_TAKEN_OVER);
    assert!(v5_0::Disconnect::parse(&frame_of(&out).1).is_ok());
}

#[test]
fn a_subscribe_is_read_with_its_options() {
    let body = Bytes::from_static(&[
        0, 5, 2, 0x0b, 9, 0, 1, b'a', 0b10_1110, 0, 3, b'b', b'/', b'#', 1,
    ]);
    let read = decode(Version::V5, &(0x82, body), 0).unwrap();
    let options = Options {
        qos: Qos::ExactlyOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::Never,
        identifier: Some(9),
    };
    let plain = Options {
        qos: Qos::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
        identifier: Some(9),
    };
    let filters = vec![("a".to_owned(), options), ("b/#".to_owned(), plain)];
    assert_eq!(read, Incoming::Subscribe { id: 5, filters });
}

#[test]
fn what_the_protocol_forbids_is_refused() {
    let refused = |version, first: u8, body: &'static [u8]| {
        decode(version, &(first, Bytes::from_static(body)), 0)
            .unwrap_err()
            .reason
    };
    assert_eq!(
        refused(Version::V3, 0x31, b"\0\x03a/+x"),
        reason::TOPIC_INVALID
    );
    assert_eq!(
        refused(Version::V3, 0x36, b"\0\x01a\0\x01"),
        reason::MALFORMED,
        "QoS 3"
    );
    assert_eq!(
        refused(Version::V3, 0x32, b"\0\x01a\0\0"),
        reason::PROTOCOL_ERROR,
        "packet id 0"
    );
    assert_eq!(
        refused(Version::V3, 0x80, b"\0\x01\0\x01a\0"),
        reason::MALFORMED,
        "flags"
    );
    assert_eq!(
        refused(Version::V3, 0x82, b"\0\x01"),
        reason::PROTOCOL_ERROR,
        "no filter"
    );
    assert_eq!(
        refused(Version::V5, 0x30, b"\0\x01a\x02\x01\x01\xff"),
        reason::PAYLOAD_FORMAT_INVALID
    );
    let connect = |flags: u8| {
        let body = [b"\0\x04MQTT\x04".as_slice(), &[flags, 0, 0, 0, 1, b'c']].concat();
        decode(Version::V3, &(0x10, Bytes::from(body)), 0)
    };
    assert!(connect(2).is_ok());
    assert!(connect(3).is_err(), "reserved");
    assert!(connect(0x2a).is_err(), "the QoS of no will");
    let old = (0x10, Bytes::from_static(b"\0\x06MQIsdp\x03\x02\0\0\0\x01c"));
    assert_eq!(
        connect_version(&old).unwrap_err().reason,
        reason::UNSUPPORTED_VERSION
    );
}

/// MQTT 3.1.1, section 1.5.3, and MQTT 5, section 1.5.4. `~` stands for the byte in question.
#[test]
fn strings_with_a_nul_or_that_are_not_utf_8_are_malformed_wherever_they_are() {
    let (v3, v5) = (Version::V3, Version::V5);
    let cases: [(_, u8, &[u8]); 22] = [
        (v3, 0x10, b"\0\x04MQTT\x04\x02\0\0\0\x01~"),
        (v3, 0x10, b"\0\x04MQTT\x04\x82\0\0\0\x01c\0\x01~"),
        (v3, 0x10, b"\0\x04MQTT\x04\x06\0\0\0\x01c\0\x01~\0\x01p"),
        (v5, 0x10, b"\0\x04MQTT\x05\x02\0\0\0\0\x01~"),
        (v5, 0x10, b"\0\x04MQTT\x05\x82\0\0\0\0\x01c\0\x01~"),
        (v5, 0x10, b"\0\x04MQTT\x05\x06\0\0\0\0\x01c\0\0\x01~\0\x01p"),
        (
            v5,
            0x10,
            b"\0\x04MQTT\x05\x02\0\0\x07\x26\0\x01k\0\x01~\0\x01c",
        ),
        (v5, 0x10, b"\0\x04MQTT\x05\x02\0\0\x04\x15\0\x01~\0\x01c"),
        (
            v5,
            0x10,
            b"\0\x04MQTT\x05\x06\0\0\0\0\x01c\x04\x03\0\x01~\0\x01t\0\x01p",
        ),
        (v3, 0x30, b"\0\x02a~"),
        (v5, 0x30, b"\0\x02a~\0"),
        (v5, 0x30, b"\0\x01a\x07\x26\0\x01~\0\x01v"),
        (v5, 0x30, b"\0\x01a\x07\x26\0\x01k\0\x01~"),
        (v5, 0x30, b"\0\x01a\x04\x03\0\x01~"),
        (v5, 0x30, b"\0\x01a\x04\x08\0\x01~"),
        (v5, 0x40, b"\0\x01\x80\x04\x1f\0\x01~"),
        (v3, 0x82, b"\0\x01\0\x01~\0"),
        (v5, 0x82, b"\0\x01\0\0\x0a$share/~/a\0"),
        (v5, 0x82, b"\0\x01\x07\x26\0\x01k\0\x01~\0\x01a\0"),
        (v3, 0xa2, b"\0\x01\0\x01~"),
        (v5, 0xa2, b"\0\x01\x07\x26\0\x01k\0\x01~\0\x01a"),
        (v5, 0xe0, b"\0\x04\x1f\0\x01~"),
    ];
    for (version, first, body) in cases {
        let with = |byte: u8| {
            let body = body.iter().map(|it| if *it == b'~' { byte } else { *it });
            let refused = decode(version, &(first, body.collect()), 0).err();
            refused.map(|malformed| malformed.reason)
        };
        let shown = body.escape_ascii();
        assert_eq!(with(b'x'), None, "{version:?} {first:#x} {shown}");
        let code = Some(reason::MALFORMED);
        assert_eq!(with(0), code, "{version:?} {first:#x} {shown}");
        assert!(with(0xff).is_some(), "{version:?} {first:#x} {shown}");
    }
    // a surrogate, as in CESU-8
    let body = Bytes::from_static(b"\0\x01a\x06\x03\0\x03\xed\xa0\x80");
    let refused = decode(v5, &(0x30, body), 0).unwrap_err();
    assert_eq!(refused.reason, reason::MALFORMED);
}

#[test]
fn filters_and_topics_are_told_from_what_they_are_not() {
    for good in ["a", "#", "+", "a/#", "+/b/#", "/", "//", "$SYS/#", "a b"] {
        assert!(is_valid_filter(good), "{good}");
    }
    for bad in ["", "a#", "#/a", "a+/b", "a/#/b", "a\0"] {
        assert!(!is_valid_filter(bad), "{bad}");
    }
    assert!(
        is_valid_topic("a/b")
            && !is_valid_topic("a/+")
            && !is_valid_topic("a/#")
            && !is_valid_topic("")
    );
    let deep = "/".repeat(200);
    assert!(!is_valid_topic(&deep) && !is_valid_filter(&deep));
}
