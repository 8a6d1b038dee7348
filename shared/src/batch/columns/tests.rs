//! Both ends of a chain agree on every byte, whatever goes through.

use proptest::prelude::*;

use super::*;
use crate::batch::{Block, BlockWriter};
use crate::record::{Header, put_record};

const LIMITS: ChainLimits = ChainLimits {
    state_bytes: 256 << 10,
};
const LIMIT: usize = 4 << 20;

/// A record as the tests make it: timestamp, key, value, headers.
type Record = (
    i64,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

struct Pair {
    encoder: ColumnarCodec,
    decoder: ColumnarCodec,
}

impl Pair {
    fn new(limits: ChainLimits) -> Self {
        Self {
            encoder: ColumnarCodec::new(limits, 3),
            decoder: ColumnarCodec::new(limits, 1),
        }
    }

    /// Sends a payload through; its length on the way.
    fn send(&mut self, raw: &[u8]) -> usize {
        let payload = self.encoder.encode(raw).unwrap();
        let decoded = self.decoder.decode(&payload, raw.len()).unwrap();
        assert!(decoded == raw, "not what was sent");
        assert_eq!(self.encoder.position(), self.decoder.position());
        payload.len()
    }

    /// Both ends stop and go on from what they saved.
    fn restart(&mut self, limits: ChainLimits) {
        let saved = self.encoder.save();
        assert_eq!(saved, self.decoder.save());
        let position = self.encoder.position();
        self.encoder = ColumnarCodec::load(&saved, limits, 3).unwrap();
        self.decoder = ColumnarCodec::load(&saved, limits, 1).unwrap();
        assert_eq!(self.encoder.position(), position);
        assert_eq!(self.decoder.position(), position);
    }
}

/// One block of these records.
fn block(base_offset: u64, base_timestamp_ms: i64, records: &[Record]) -> Block {
    let mut bytes = Vec::new();
    for (at, (timestamp_ms, key, value, headers)) in (0..).zip(records) {
        let headers: Vec<Header<'_>> = headers
            .iter()
            .map(|(name, value)| Header {
                name,
                value: value.as_deref(),
            })
            .collect();
        let delta = timestamp_ms.wrapping_sub(base_timestamp_ms);
        put_record(
            &mut bytes,
            at,
            delta,
            key.as_deref(),
            value.as_deref(),
            &headers,
        );
    }
    Block {
        base_offset,
        count: u32::try_from(records.len()).unwrap(),
        base_timestamp_ms,
        is_log_append_time: false,
        records: bytes.into(),
    }
}

fn payload(records: &[Record]) -> Vec<u8> {
    let mut writer = BlockWriter::default();
    if let Some((first, ..)) = records.first() {
        writer.push(&block(0, *first, records)).unwrap();
    }
    writer.finish()
}

/// What a few devices say in a second.
fn readings(second: i64) -> Vec<Record> {
    (0..5)
        .map(|device| {
            let at = 1_750_000_000_000 + second * 1000 + device * 7;
            let value = format!(
                r#"{{"id":"pump-{device}","ts":{},"t":{}.{:02},"ok":{},"m":[{{"n":"a","v":{}}},{{"n":"b","v":null}}]}}"#,
                at - 12,
                20 + device,
                (second * 7 + device) % 100,
                second % 10 != 3,
                second * device,
            );
            let headers = vec![(b"site".to_vec(), Some(b"north".to_vec())), (b"x".to_vec(), None)];
            let key = (device != 4).then(|| format!("pump-{device}").into_bytes());
            (at, key, Some(value.into_bytes()), headers)
        })
        .collect()
}

/// The worked example of docs/link-protocol.md, "Codec 3, columnar".
#[test]
fn a_small_chain_has_the_bytes_of_the_document() {
    let first = [
        b"\x00".as_slice(),                      // head: columns, one raw block
        b"\x00\x01",                             // flags, records
        b"\x01\x02m1",                           // a new key
        b"\xf6\x00\x00\x03\x2e\xe8\x41\xcf\x86", // its timestamp
        b"\x01\x0fJ{\"t\":\x01,\"ok\":\x01}",    // a new template
        b"\xfc\x02\xef\xd0",                     // two decimals, 2136
        b"\xfb\x04true",
    ]
    .concat();
    let payloads: [&[u8]; 4] = [
        &first,
        b"\x00\x00\x01\x03\xe6\xf0\x03\x02\x00",
        b"\x00\x18\x01\x00\x02\x00",
        b"\x00\x18\x01\x00\x00\x00",
    ];
    let positions = [
        0x626c_b223_7b9b_0003,
        0x655c_5277_842f_137b,
        0x214a_5d2a_a1ae_e5e3,
        0xa1b9_25a9_88f7_9710,
    ];
    let mut pair = Pair::new(LIMITS);
    assert_eq!(pair.encoder.position(), 0xcfe5_2c4a_b264_2537);
    for (at, (expected, position)) in (0..).zip(payloads.into_iter().zip(positions)) {
        let value = format!(r#"{{"t":21.{},"ok":true}}"#, 36 + at).into_bytes();
        let key = Some(b"m1".to_vec());
        let raw = payload(&[(1_750_000_003_011 + at * 1000, key, Some(value), vec![])]);
        let sent = pair.encoder.encode(&raw).unwrap();
        if at == 0 {
            let seal = super::super::seal(&raw, 1, 0x0102_0304_0506_0708);
            assert_eq!(seal, 0xf6fa_2bb2);
        }
        assert_eq!(sent, expected, "payload {at}");
        assert_eq!(pair.decoder.decode(&sent, raw.len()).unwrap(), raw);
        assert_eq!(pair.encoder.position(), position, "payload {at}");
        assert_eq!(pair.decoder.position(), position, "payload {at}");
    }
}

/// How many contexts there is room for follows from it at both ends.
#[test]
fn a_context_counts_as_64_bytes() {
    assert_eq!(size_of::<context::Context>(), 64);
}

#[test]
fn readings_shrink_to_a_few_bytes_and_survive_restarts() {
    let mut pair = Pair::new(LIMITS);
    let (mut raw_bytes, mut sent) = (0, 0);
    for second in 0..200 {
        let raw = payload(&readings(second));
        raw_bytes += raw.len();
        let len = pair.send(&raw);
        sent += len;
        if second % 50 == 49 {
            assert!(len < 100, "{len}");
            pair.restart(LIMITS);
        }
    }
    assert!(sent * 20 < raw_bytes, "{sent} of {raw_bytes}");
}

#[test]
fn blocks_of_all_kinds_survive() {
    let mut pair = Pair::new(LIMITS);
    let records = readings(1);
    for is_log_append_time in [false, true] {
        for sizes in [vec![5], vec![1, 1, 1, 1, 1], vec![2, 3], vec![]] {
            for shift in [0, -77] {
                let mut writer = BlockWriter::default();
                let (mut at, mut offset) = (0, 7);
                for size in &sizes {
                    let records = &records[at..at + size];
                    let mut block = block(offset, records[0].0 + shift, records);
                    block.is_log_append_time = is_log_append_time;
                    writer.push(&block).unwrap();
                    at += size;
                    offset += block.count as u64;
                }
                pair.send(&writer.finish());
            }
        }
    }
}

#[test]
fn what_is_not_a_payload_of_blocks_goes_raw() {
    let mut pair = Pair::new(LIMITS);
    let noise: Vec<u8> = (0_u32..50_000)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    for raw in [b"".as_slice(), b"x", &noise, b"", &noise, &[0; 300_000]] {
        let len = pair.send(raw);
        assert!(len <= raw.len() + 16, "{len}");
    }
    pair.restart(LIMITS);
    pair.send(&noise);
    pair.send(&payload(&readings(5)));
}

#[test]
fn state_stays_within_its_bound_whatever_is_new() {
    let mut pair = Pair::new(LIMITS);
    for round in 0..300_u64 {
        let records: Vec<Record> = (0..40)
            .map(|n| {
                let id = super::super::split::mix(round, n);
                let value = format!(r#"{{"k{:x}":"{id:x}","s{}":[{id}]}}"#, id % 1000, id % 7);
                (
                    id.cast_signed(),
                    Some(id.to_string().into_bytes()),
                    Some(value.into_bytes()),
                    vec![],
                )
            })
            .collect();
        pair.send(&payload(&records));
        let state = pair.decoder.state.memory();
        assert!(state < 2 * table_bytes(LIMITS), "{state}");
    }
    pair.restart(LIMITS);
    pair.send(&payload(&readings(1)));
    assert!(pair.decoder.memory() < 2 << 20, "{}", pair.decoder.memory());
}

#[test]
fn saved_state_of_other_limits_or_with_a_flipped_bit_is_refused() {
    let mut pair = Pair::new(LIMITS);
    pair.send(&payload(&readings(0)));
    let saved = pair.encoder.save();
    assert!(ColumnarCodec::load(&saved, ChainLimits::default(), 3).is_err());
    for at in (0..saved.len()).step_by(7) {
        let mut broken = saved.clone();
        broken[at] ^= 4;
        let loaded = ColumnarCodec::load(&broken, LIMITS, 3);
        assert!(
            loaded.is_err() || loaded.unwrap().save() == saved,
            "byte {at}"
        );
    }
    for len in 0..saved.len() {
        assert!(ColumnarCodec::load(&saved[..len], LIMITS, 3).is_err());
    }
}

#[test]
fn a_payload_larger_than_allowed_is_refused() {
    let mut encoder = ColumnarCodec::new(LIMITS, 3);
    let raw = payload(&(0..100).flat_map(readings).collect::<Vec<_>>());
    let first = encoder.encode(&raw).unwrap();
    let bomb = encoder.encode(&vec![0; 32 << 20]).unwrap();
    assert!(bomb.len() < 10_000);
    let decoder = || ColumnarCodec::new(LIMITS, 3);
    assert!(decoder().decode(&first, raw.len() - 1).is_err());
    let mut decoder = decoder();
    assert!(decoder.decode(&first, raw.len()).is_ok());
    assert!(decoder.decode(&bomb, 1 << 20).is_err());
}

#[test]
fn a_payload_larger_than_the_window_is_not_worse_than_a_frame_of_its_own() {
    let mut pair = Pair::new(LIMITS);
    pair.send(&payload(&readings(0)));
    let noise: Vec<u8> = (0..150_000_u64)
        .map(|n| super::super::split::mix(n, n).to_le_bytes()[3])
        .collect();
    // comes again after more than a window
    let raw = noise.repeat(3);
    let len = pair.send(&raw);
    assert!(len < noise.len() + 5_000, "{len}");
    let record: Vec<Record> = (0..3)
        .map(|n| (n, None, Some(noise.clone()), vec![]))
        .collect();
    let records = payload(&record);
    let sent = pair.encoder.encode(&records).unwrap();
    assert!(pair.decoder.decode(&sent, records.len()).unwrap() == records);
    let (head, len) = (sent[0], sent.len());
    assert!(
        head & HEAD_LEARN != 0 && len < noise.len() + 5_000,
        "{head} {len}"
    );
    let after = pair.send(&payload(&readings(1)));
    assert!(after < 300, "{after}");
    pair.restart(LIMITS);
    pair.send(&raw);
}

/// Values with the same keys in ever other orders: every one is a template of its own.
#[test]
fn what_columns_make_longer_goes_as_zstd_would() {
    let mut pair = Pair::new(LIMITS);
    let mut random = 1_u64;
    for batch in 0..20 {
        let record = |at: i64| {
            let mut names: Vec<u64> = (0..12).collect();
            for last in (1..names.len()).rev() {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let other = usize::try_from(random >> 33).unwrap() % (last + 1);
                names.swap(last, other);
            }
            let fields: Vec<String> = names.iter().map(|name| format!(r#""k{name}":1"#)).collect();
            let value = format!("{{{}}}", fields.join(","));
            let at = 1_750_000_000_000 + (batch * 500 + at) * 100;
            (at, None, Some(value.into_bytes()), Vec::new())
        };
        let records: Vec<Record> = (0..500).map(record).collect();
        let raw = payload(&records);
        let (sent, zstd) = (pair.send(&raw), plain(&raw, 3).unwrap().len());
        assert!(sent <= zstd + 8, "{sent} bytes, zstd takes {zstd}");
    }
}

/// Hexadecimal digits at random, in which a stream with history finds matches that cost more than they bring.
#[test]
fn what_is_not_split_costs_little_more_than_zstd() {
    let mut pair = Pair::new(LIMITS);
    let mut random = 1_u64;
    for batch in 0..20 {
        let digit = |_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            b"0123456789abcdef"[usize::try_from(random >> 60).unwrap()]
        };
        let value: Vec<u8> = (0..80_000).map(digit).collect();
        let raw = payload(&[(number_of(batch), None, Some(value), vec![])]);
        let (sent, zstd) = (pair.send(&raw), plain(&raw, 3).unwrap().len());
        assert!(
            sent <= zstd + ALONE_GAIN + 1,
            "{sent} bytes, zstd takes {zstd}"
        );
    }
}

/// Both ends learn from what goes beside the stream, so that the next is columns again.
#[test]
fn a_payload_beside_the_stream_is_learnt_from() {
    let mut pair = Pair::new(LIMITS);
    let raw = payload(&readings(0));
    let frame = plain(&raw, 3).unwrap();
    let mut body = Vec::new();
    let list = RecordList::read(&raw).unwrap();
    let encoder = &mut pair.encoder;
    encoder.state.encode(&list, &mut encoder.scratch, &mut body);
    let sent = encoder.alone(HEAD_LEARN | ALONE_FRAME, &body, &frame);
    encoder.position = next_position(encoder.position, &raw);
    assert!(pair.decoder.decode(&sent, raw.len()).unwrap() == raw);
    pair.restart(LIMITS);
    let after = pair.send(&payload(&readings(1)));
    assert!(after < 300, "{after}");
    let noise = [
        &[HEAD_LEARN | HEAD_ALONE | ALONE_FRAME][..],
        &plain(b"no list", 3).unwrap(),
    ]
    .concat();
    assert!(matches!(
        pair.decoder.decode(&noise, LIMIT),
        Err(BatchError::Malformed(_))
    ));
}

#[test]
fn no_payload_grows_by_more_than_a_little() {
    let mut pair = Pair::new(LIMITS);
    for round in 0..40_i64 {
        let mut value = Vec::new();
        for n in 0..500 {
            let number = super::super::split::mix(n, round.cast_unsigned());
            let digits = [1, 17, 2, 16][usize::try_from(n % 4).unwrap()];
            value.extend(number.to_string().bytes().take(digits));
            value.push(b',');
        }
        let record = (number_of(round), None, Some(value), vec![]);
        let raw = payload(&[record]);
        let len = pair.send(&raw);
        assert!(len <= raw.len() + PAYLOAD_SLACK, "{len} of {}", raw.len());
    }
    for len in [0_usize, 1, 5, 40, 200_000, 3_000_000] {
        let noise: Vec<u8> = (0..len as u64)
            .map(|n| super::super::split::mix(n, 99).to_le_bytes()[5])
            .collect();
        let sent = pair.send(&noise);
        assert!(sent <= len + PAYLOAD_SLACK, "{sent} of {len}");
    }
}

fn number_of(round: i64) -> i64 {
    round.wrapping_mul(0x1234_5678_9abc_def1)
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        r#"\{"a":-?[0-9]{1,3}(\.[0-9]{1,2})?,"b":"[a-c]{0,2}","c":\[(\{"n":"[xy]","v":[0-9]\})?\]\}"#
            .prop_map(String::into_bytes),
        r"[ab]{1,2}=[0-9]{1,4} [0-9A-F]{8} 1[0-9]:0[0-9]:00\.[0-9]{2}".prop_map(String::into_bytes),
        r"20[0-9]{2}-0[1-9]-1[0-9]T0[0-9]:00:0[0-9](Z|\+01:00)".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let header = ("[a-b]{1,2}", proptest::option::of(values()));
    let headers = proptest::collection::vec(
        header.prop_map(|(name, value)| (name.into_bytes(), value)),
        0..3,
    );
    proptest::collection::vec(
        (
            prop_oneof![any::<i64>(), 1_750_000_000_000_i64..1_750_000_100_000],
            proptest::option::of("[a-d]{0,1}".prop_map(String::into_bytes)),
            proptest::option::weighted(0.9, values()),
            headers,
        ),
        1..12,
    )
}

proptest! {
    #[test]
    fn anything_survives(
        payloads in proptest::collection::vec(records(), 1..8),
        restart in 0_usize..8,
    ) {
        let mut pair = Pair::new(LIMITS);
        for (at, records) in payloads.iter().enumerate() {
            if at == restart {
                pair.restart(LIMITS);
            }
            pair.send(&payload(records));
        }
    }

    #[test]
    fn a_broken_payload_is_an_error_or_another_payload(
        records in records(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let mut encoder = ColumnarCodec::new(LIMITS, 3);
        let mut decoder = ColumnarCodec::new(LIMITS, 3);
        let warm = encoder.encode(&payload(&readings(0))).unwrap();
        decoder.decode(&warm, LIMIT).unwrap();
        let raw = payload(&records);
        let mut broken = encoder.encode(&raw).unwrap();
        for (at, flip) in flips {
            let at = at.index(broken.len());
            broken[at] ^= flip;
        }
        if let Ok(decoded) = decoder.decode(&broken, 100_000) {
            prop_assert!(decoded.len() <= 100_000);
        }
    }

    #[test]
    fn broken_column_bytes_are_an_error_or_another_payload(
        records in records(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut scratch = Scratch::default();
        let mut encoder = State::new(1 << 18);
        let mut decoder = State::new(1 << 18);
        for records in [&readings(0), &records] {
            let raw = payload(records);
            let mut body = Vec::new();
            encoder.encode(&RecordList::read(&raw).unwrap(), &mut scratch, &mut body);
            prop_assert_eq!(decoder.clone().decode(&body, raw.len()), Ok(raw));
            let mut broken = body.clone();
            for (at, flip) in &flips {
                let at = at.index(broken.len());
                broken[at] ^= flip;
            }
            for broken in [&broken[..], &body[..cut.index(body.len())]] {
                let decoded = decoder.clone().decode(broken, 100_000);
                prop_assert!(decoded.is_err() || decoded.is_ok_and(|raw| raw.len() <= 100_000));
            }
            decoder.decode(&body, LIMIT).unwrap();
        }
    }
}

#[test]
fn fuzz_payloads() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut decoder = ColumnarCodec::new(LIMITS, 3);
        let raw = decoder.decode(bytes, 10_000);
        assert!(raw.is_ok_and(|raw| raw.len() <= 10_000) || decoder.memory() < 4 << 20);
    });
}

#[test]
fn fuzz_column_bytes() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut decoder = State::new(1 << 18);
        if let Ok(raw) = decoder.decode(bytes, 10_000) {
            assert!(raw.len() <= 10_000);
        }
    });
}
