//! Golden bytes, round trips, refusals and garbage.

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::dedup::ChunkId;
use crate::ids::{Incarnation, TopicName, TopicPartition, Track};

fn log(partition: u32) -> TopicPartition {
    TopicPartition {
        topic: TopicName::new("plant.1_temp-x").unwrap(),
        partition,
        track: Track::First,
    }
}

fn entry(handle: u32) -> LogEntry {
    LogEntry {
        handle: Handle(handle),
        log: log(handle),
        range: LogRange {
            origin: 5,
            start: 300,
            end: 70_000,
        },
        has_other_track: false,
        anchors: vec![Anchor {
            codec: 4,
            position: 0x1112_1314_1516_1718,
        }],
    }
}

fn second_track(entry: LogEntry) -> LogEntry {
    LogEntry {
        log: TopicPartition {
            track: Track::Second,
            ..entry.log
        },
        has_other_track: true,
        ..entry
    }
}

fn farewell() -> Farewell {
    Farewell {
        code: Code::NotOwner,
        retry_after_ms: 1_500,
        text: "try the next hub".into(),
    }
}

/// One frame of each kind, by the name of its golden file.
fn control_frames() -> Vec<(&'static str, Frame)> {
    let checkpoints = vec![
        CheckpointEntry {
            handle: Handle(1),
            reply: LogReply::At(Checkpoint {
                next_offset: 66_000,
                chain: 0x0102_0304_0506_0708,
            }),
            anchor: 1,
        },
        CheckpointEntry {
            handle: Handle(2),
            reply: LogReply::Absent,
            anchor: 0,
        },
        CheckpointEntry {
            handle: Handle(300),
            reply: LogReply::Denied,
            anchor: 0,
        },
    ];
    vec![
        (
            "hello",
            Frame::Hello(Hello {
                min_version: 3,
                max_version: 3,
                nonce: 0x1122_3344_5566_7788,
                incarnation: Incarnation(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
                software: "edge-node 0.1.0".into(),
                codecs: vec![4, 1],
                logs: vec![entry(1), entry(300)],
            }),
        ),
        (
            "welcome",
            Frame::Welcome(Welcome {
                version: 3,
                codecs: vec![4, 1],
                credit_limit: 8 << 20,
                max_batch_bytes: 4 << 20,
                keep_alive_ms: 10_000,
                checkpoints: checkpoints.clone(),
            }),
        ),
        ("refuse", Frame::Refuse(farewell())),
        ("declare", Frame::Declare(vec![second_track(entry(2))])),
        ("checkpoints", Frame::Checkpoints(checkpoints)),
        (
            "ack",
            Frame::Ack(Ack {
                credit_limit: 9 << 20,
                acked: vec![(Handle(1), 66_500), (Handle(300), 7)],
            }),
        ),
        ("credit", Frame::Credit(10 << 20)),
        ("ping", Frame::Ping(3)),
        ("pong", Frame::Pong(3)),
        ("goodbye", Frame::Goodbye(farewell())),
        (
            "restart",
            Frame::Restart(Restart {
                handle: Handle(300),
                next_offset: 66_500,
            }),
        ),
        ("policy", Frame::Policy("rate_up = \"1Mbit\"".into())),
        (
            "missing",
            Frame::Missing(vec![ChunkId([0xab; 16]), ChunkId::of(b"chunk")]),
        ),
        ("window", Frame::Window(1 << 20)),
    ]
}

fn data_headers() -> Vec<(&'static str, DataHeader)> {
    let header = |chain, content| DataHeader {
        handle: Handle(300),
        seq: 200,
        is_restart: false,
        count: 500,
        chain,
        content,
    };
    let records = RecordsHeader {
        codec: 4,
        is_fresh: false,
        is_anchor: true,
        size: SizeClass::of(100_000),
        check: 0xdead_beef,
    };
    let chain = Some(0x0102_0304_0506_0708);
    let gap = DataContent::Gap { reason: 2 };
    let restarted = DataHeader {
        is_restart: true,
        ..header(
            chain,
            DataContent::Records(RecordsHeader {
                is_fresh: true,
                is_anchor: false,
                ..records
            }),
        )
    };
    vec![
        ("data-records", header(None, DataContent::Records(records))),
        ("data-restart", restarted),
        ("data-gap", header(chain, gap)),
    ]
}

fn decode_one(bytes: &[u8]) -> Result<Option<Frame>, WireError> {
    let mut decoder = FrameDecoder::default();
    decoder.feed(bytes);
    decoder.poll()
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for line in bytes.chunks(16) {
        for (n, byte) in line.iter().enumerate() {
            let space = if n == 0 { "" } else { " " };
            write!(out, "{space}{byte:02x}").unwrap();
        }
        out.push('\n');
    }
    out
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// `KEDGE_BLESS=1` writes the files; a change of an existing one is a change of the protocol.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden/wire")
        .join(name)
        .with_extension("hex");
    if std::env::var_os("KEDGE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, hex(bytes)).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    unhex(&text)
}

#[test]
fn control_frames_keep_their_bytes() {
    for (name, frame) in control_frames() {
        let bytes = frame.encode();
        let pinned = golden(name, &bytes);
        assert_eq!(hex(&bytes), hex(&pinned), "{name}");
        assert_eq!(decode_one(&pinned).unwrap(), Some(frame), "{name}");
    }
}

#[test]
fn data_headers_keep_their_bytes() {
    for (name, header) in data_headers() {
        let bytes = header.encode();
        let pinned = golden(name, &bytes);
        assert_eq!(hex(&bytes), hex(&pinned), "{name}");
        let (decoded, payload) = DataHeader::decode(&pinned.into()).unwrap();
        assert_eq!((decoded, payload.len()), (header, 0), "{name}");
    }
}

#[test]
fn frames_come_out_whole_wherever_they_are_cut() {
    let frames: Vec<Frame> = control_frames().into_iter().map(|(_, f)| f).collect();
    let bytes: Vec<u8> = frames.iter().flat_map(|f| f.encode().to_vec()).collect();
    for size in [1, 2, 3, 7, 100, bytes.len()] {
        let mut decoder = FrameDecoder::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(size) {
            decoder.feed(piece);
            while let Some(frame) = decoder.poll().unwrap() {
                found.push(frame);
            }
        }
        assert_eq!(found, frames, "pieces of {size}");
        assert_eq!(decoder.buffered(), 0);
    }
}

#[test]
fn a_frame_that_ends_early_or_late_is_refused() {
    for (name, frame) in control_frames() {
        let bytes = frame.encode();
        let payload = &bytes[bytes.len() - payload_len(&bytes)..];
        for len in 0..payload.len() {
            assert!(
                Frame::decode(frame.kind(), &payload[..len]).is_err(),
                "{name} cut to {len}"
            );
        }
        let longer = [payload, &[0]].concat();
        assert!(Frame::decode(frame.kind(), &longer).is_err(), "{name}");
    }
    for (name, header) in data_headers() {
        let bytes = header.encode();
        for len in 0..bytes.len() {
            assert!(DataHeader::decode(&bytes.slice(..len)).is_err(), "{name}");
        }
    }
}

fn payload_len(frame: &[u8]) -> usize {
    let mut reader = Reader::new(&frame[1..]);
    usize::try_from(reader.varint().unwrap()).unwrap()
}

#[test]
fn a_length_is_refused_before_its_bytes_come() {
    for (kind, limit) in [(1, MAX_HELLO_LEN), (2, MAX_HELLO_LEN), (6, MAX_FRAME_LEN)] {
        for (len, is_accepted) in [(limit, true), (limit + 1, false), (usize::MAX, false)] {
            let mut bytes = vec![kind];
            put_varint(&mut bytes, len as u64);
            let result = decode_one(&bytes);
            assert_eq!(result == Ok(None), is_accepted, "{kind} {len}: {result:?}");
        }
    }
    assert_eq!(decode_one(&[0]), Err(WireError::UnknownFrame(0)));
    assert_eq!(decode_one(&[15]), Err(WireError::UnknownFrame(15)));
}

#[test]
fn a_count_is_held_against_the_bytes_that_are_there() {
    let mut payload = vec![0];
    put_varint(&mut payload, u64::MAX);
    assert!(Frame::decode(6, &payload).is_err());
    assert!(Frame::decode(5, &payload[1..]).is_err());
    assert!(Frame::decode(4, &payload[1..]).is_err());
}

#[test]
fn a_hello_of_another_version_is_told_apart_whatever_follows() {
    let mut payload = MAGIC.to_vec();
    payload.extend_from_slice(&[0, 4, 0, 5]);
    payload.extend_from_slice(b"something unheard of");
    assert_eq!(
        Frame::decode(1, &payload),
        Err(WireError::Version { min: 4, max: 5 })
    );
}

#[test]
fn long_text_is_cut_at_a_character() {
    let frame = Frame::Goodbye(Farewell {
        code: Code::Internal,
        retry_after_ms: 0,
        text: "ü".repeat(200) + "x",
    });
    let Ok(Some(Frame::Goodbye(farewell))) = decode_one(&frame.encode()) else {
        panic!("a goodbye");
    };
    assert_eq!(farewell.text, "ü".repeat(128));
}

#[test]
fn a_header_of_a_batch_a_second_is_small() {
    let header = DataHeader {
        handle: Handle(7),
        seq: 255,
        is_restart: false,
        count: 100,
        chain: None,
        content: DataContent::Records(RecordsHeader {
            codec: 4,
            is_fresh: false,
            is_anchor: false,
            size: SizeClass::of(30_000),
            check: u32::MAX,
        }),
    };
    assert_eq!(header.encode().len(), 9);
}

#[test]
fn no_data_header_is_longer_than_its_limit() {
    let header = DataHeader {
        handle: Handle(u32::MAX),
        seq: 255,
        is_restart: true,
        count: u64::MAX,
        chain: Some(u64::MAX),
        content: DataContent::Records(RecordsHeader {
            codec: MAX_CODEC - 1,
            is_fresh: true,
            is_anchor: true,
            size: SizeClass(u8::MAX),
            check: u32::MAX,
        }),
    };
    assert!(header.encode().len() <= MAX_DATA_HEADER_LEN);
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    for bytes in [
        // a gap with a codec, a gap without its chain, no offsets at all
        &[0x25, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2][..],
        &[0x01, 1, 0, 1, 2],
        &[0x00, 1, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert!(DataHeader::decode(&Bytes::copy_from_slice(bytes)).is_err());
    }
}

proptest! {
    #[test]
    fn numbers_survive(value: u64, signed: i64) {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        put_zigzag(&mut out, signed);
        let mut reader = Reader::new(&out);
        prop_assert_eq!(reader.varint(), Ok(value));
        prop_assert_eq!(reader.zigzag(), Ok(signed));
        prop_assert!(reader.finish().is_ok());
    }

    #[test]
    fn hellos_survive(
        nonce: u64,
        incarnation: u128,
        software in "[a-zA-Z0-9 .ü]{0,30}",
        codecs in proptest::collection::vec(any::<u8>(), 0..32),
        logs in proptest::collection::vec(log_entry(), 0..20),
    ) {
        let frame = Frame::Hello(Hello {
            min_version: 0,
            max_version: 9,
            nonce,
            incarnation: Incarnation(incarnation),
            software,
            codecs,
            logs,
        });
        prop_assert_eq!(decode_one(&frame.encode()), Ok(Some(frame)));
    }

    #[test]
    fn acknowledgements_survive(
        credit_limit: u64,
        acked in proptest::collection::vec((any::<u32>(), 0..=MAX_OFFSET), 0..50),
    ) {
        let acked = acked.into_iter().map(|(handle, next)| (Handle(handle), next)).collect();
        let frame = Frame::Ack(Ack { credit_limit, acked });
        prop_assert_eq!(decode_one(&frame.encode()), Ok(Some(frame)));
    }

    #[test]
    fn checkpoints_survive(
        entries in proptest::collection::vec((any::<u32>(), log_reply(), any::<u8>()), 0..50),
    ) {
        let entries = entries
            .into_iter()
            .map(|(handle, reply, anchor)| CheckpointEntry {
                handle: Handle(handle),
                reply,
                anchor,
            })
            .collect();
        let frame = Frame::Checkpoints(entries);
        prop_assert_eq!(decode_one(&frame.encode()), Ok(Some(frame)));
    }

    #[test]
    fn farewells_survive(code: u8, retry_after_ms: u32, text in "[a-z ü]{0,80}") {
        let farewell = Farewell { code: Code::from_u8(code), retry_after_ms, text };
        prop_assert_eq!(farewell.code.to_u8(), code);
        let frame = Frame::Refuse(farewell);
        prop_assert_eq!(decode_one(&frame.encode()), Ok(Some(frame)));
    }

    #[test]
    fn data_streams_survive(
        handle: u32,
        seq: u8,
        is_restart: bool,
        count in 1..u64::MAX,
        chain: Option<u64>,
        is_records: bool,
        codec in 0..MAX_CODEC,
        is_fresh: bool,
        is_anchor: bool,
        check: u32,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let records = RecordsHeader {
            codec,
            is_fresh,
            is_anchor,
            size: SizeClass::of(payload.len()),
            check,
        };
        let header = DataHeader {
            handle: Handle(handle),
            seq,
            is_restart,
            count,
            chain: if is_records { chain } else { Some(chain.unwrap_or(0)) },
            content: if is_records {
                DataContent::Records(records)
            } else {
                DataContent::Gap { reason: codec }
            },
        };
        let payload = if is_records { payload } else { Vec::new() };
        let stream = Bytes::from([&header.encode()[..], &payload[..]].concat());
        let decoded = DataHeader::decode(&stream);
        prop_assert_eq!(decoded, Ok((header, Bytes::from(payload))));
    }
}

fn log_entry() -> impl Strategy<Value = LogEntry> {
    let offsets = proptest::collection::vec(0..=MAX_OFFSET, 3);
    let anchors = proptest::collection::vec((any::<u8>(), any::<u64>()), 0..=MAX_ANCHORS);
    (
        any::<u32>(),
        "[a-z._-]{3,40}",
        any::<u32>(),
        any::<(bool, bool)>(),
        offsets,
        anchors,
    )
        .prop_map(
            |(handle, topic, partition, (is_second, is_paired), mut offsets, anchors)| {
                let track = if is_second {
                    Track::Second
                } else {
                    Track::First
                };
                offsets.sort_unstable();
                LogEntry {
                    handle: Handle(handle),
                    log: TopicPartition {
                        topic: TopicName::new(&topic).unwrap(),
                        partition,
                        track,
                    },
                    has_other_track: is_second || is_paired,
                    range: LogRange {
                        origin: offsets[0],
                        start: offsets[1],
                        end: offsets[2],
                    },
                    anchors: anchors
                        .into_iter()
                        .map(|(codec, position)| Anchor { codec, position })
                        .collect(),
                }
            },
        )
}

fn log_reply() -> impl Strategy<Value = LogReply> {
    prop_oneof![
        Just(LogReply::Absent),
        Just(LogReply::Denied),
        (0..=MAX_OFFSET, any::<u64>())
            .prop_map(|(next_offset, chain)| LogReply::At(Checkpoint { next_offset, chain })),
    ]
}

#[test]
fn fuzz_control_frames() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut decoder = FrameDecoder::default();
        decoder.feed(bytes);
        while let Ok(Some(frame)) = decoder.poll() {
            // what was understood is written so that it is understood in the same way
            assert_eq!(decode_one(&frame.encode()), Ok(Some(frame)));
        }
        assert!(decoder.buffered() <= bytes.len());
    });
}

#[test]
fn fuzz_frame_payloads() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((kind, payload)) = bytes.split_first() else {
            return;
        };
        if let Ok(frame) = Frame::decode(kind % 15, payload) {
            assert_eq!(decode_one(&frame.encode()), Ok(Some(frame)));
        }
    });
}

#[test]
fn fuzz_data_streams() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok((header, payload)) = DataHeader::decode(&Bytes::copy_from_slice(bytes)) {
            let again = Bytes::from([&header.encode()[..], &payload[..]].concat());
            assert_eq!(DataHeader::decode(&again), Ok((header, payload)));
        }
    });
}

#[test]
fn the_version_that_is_told_is_that_of_the_hello() {
    assert_eq!(spoken(), "link protocol 3");
    assert_eq!((MIN_VERSION, MAX_VERSION), (3, 3));
}
