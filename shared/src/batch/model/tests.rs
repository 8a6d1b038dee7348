use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::batch::{Block, BlockWriter};
use crate::record::{Header, put_record};

const LIMIT: usize = 64 << 10;

fn small() -> ChainLimits {
    ChainLimits {
        state_bytes: 256 << 10,
    }
}

fn pair() -> (ModelChain, ModelChain) {
    (ModelChain::new(small()), ModelChain::new(small()))
}

/// Both ways, with every byte and the position compared.
fn pass(from: &mut ModelChain, to: &mut ModelChain, raw: &[u8]) -> usize {
    let payload = from.encode(raw).unwrap();
    let back = to.decode(&payload, raw.len()).unwrap();
    assert_eq!(back, raw);
    assert_eq!(from.position(), to.position());
    payload.len()
}

type Row<'a> = (i64, Option<&'a [u8]>, Option<&'a [u8]>);

fn block(base: u64, rows: &[Row<'_>]) -> Block {
    let first = rows.first().map_or(0, |row| row.0);
    let mut records = Vec::new();
    for (i, (at, key, value)) in rows.iter().enumerate() {
        let delta = at.wrapping_sub(first);
        put_record(
            &mut records,
            u32::try_from(i).unwrap(),
            delta,
            *key,
            *value,
            &[],
        );
    }
    Block {
        base_offset: base,
        count: u32::try_from(rows.len()).unwrap(),
        base_timestamp_ms: first,
        is_log_append_time: false,
        records: records.into(),
    }
}

fn payload(rows: &[Row<'_>]) -> Vec<u8> {
    let mut writer = BlockWriter::default();
    writer.push(&block(0, rows)).unwrap();
    writer.finish()
}

fn reading(i: i64) -> (i64, String, String) {
    let device = i % 5;
    let mut value = String::new();
    write!(
        value,
        "{{\"id\":\"m-{device}\",\"ts\":{},\"t\":{}.{:02},\"on\":{},\"n\":[{},{}],\"tags\":[{{\"k\":\"a\",\"v\":{}}},{{\"k\":\"b\",\"v\":{}}}]}}",
        1_750_000_000 + i,
        20 + i % 7,
        i * 13 % 100,
        i % 9 == 0,
        i,
        i * i % 31,
        i % 3,
        i % 4,
    )
    .unwrap();
    (
        1_750_000_000_000 + i * 1000,
        format!("site/m-{device}"),
        value,
    )
}

fn readings(from: i64, count: i64) -> Vec<u8> {
    let rows: Vec<_> = (from..from + count).map(reading).collect();
    let rows: Vec<Row<'_>> = rows
        .iter()
        .map(|(at, key, value)| (*at, Some(key.as_bytes()), Some(value.as_bytes())))
        .collect();
    payload(&rows)
}

#[test]
fn records_shrink_as_the_chain_goes_on() {
    let (mut from, mut to) = pair();
    let first = pass(&mut from, &mut to, &readings(0, 1));
    let mut last = 0;
    for i in 1..300 {
        last = pass(&mut from, &mut to, &readings(i, 1));
    }
    assert!(last * 10 < first, "{first} {last}");
    assert!(last < 12, "{last}");
    assert!(from.memory() < 700 << 10, "{}", from.memory());
}

/// Lists of random numbers, three times in each record.
#[test]
fn no_payload_costs_more_than_zstd() {
    let (mut from, mut to) = pair();
    let mut plain = 0;
    for batch in 0..40 {
        let value = |at: u64| {
            let number = |n| super::super::split::mix(n, batch * 1_000 + at) % 1_000_000_000;
            let list: Vec<u64> = (0..50).map(number).collect();
            format!(r#"{{"a":{list:?},"b":{list:?},"c":{list:?}}}"#)
        };
        let count = if batch % 2 == 0 { 2 } else { 50 };
        let values: Vec<String> = (0..count).map(value).collect();
        let row = |value| (1_750_000_000_000, None, value);
        let rows: Vec<Row<'_>> = values
            .iter()
            .map(|value| row(Some(value.as_bytes())))
            .collect();
        let raw = payload(&rows);
        let sent = from.encode(&raw).unwrap();
        plain += usize::from(sent[0] == ESCAPE && sent[1] & MODE_ZSTD != 0);
        assert_eq!(to.decode(&sent, raw.len()).unwrap(), raw);
        let zstd = zstd::bulk::compress(&raw, ZSTD_LEVEL).unwrap().len();
        assert!(
            sent.len() <= zstd + 2,
            "{} bytes, zstd takes {zstd}",
            sent.len()
        );
    }
    assert!(plain > 0, "nothing that zstd makes shorter");
}

#[test]
fn blocks_of_any_shape_come_back() {
    let (mut from, mut to) = pair();
    for shape in 0..40_u64 {
        let mut writer = BlockWriter::default();
        let mut base = 0;
        for part in 0..shape % 7 + 1 {
            let rows: Vec<_> = (0..part % 3 + 1)
                .map(|i| reading(i64::try_from(i + base).unwrap()))
                .collect();
            let rows: Vec<Row<'_>> = rows
                .iter()
                .map(|(at, key, value)| (*at, Some(key.as_bytes()), Some(value.as_bytes())))
                .collect();
            let mut block = block(base, &rows);
            block.is_log_append_time = shape % 5 == 0;
            block.base_timestamp_ms += i64::try_from(shape % 3).unwrap();
            base = block.next_offset();
            writer.push(&block).unwrap();
        }
        pass(&mut from, &mut to, &writer.finish());
    }
}

#[test]
fn block_structure_is_nearly_free_when_it_is_regular() {
    let (mut one, mut one_end) = pair();
    let (mut many, mut many_end) = pair();
    let (mut one_len, mut many_len) = (0, 0);
    for i in 0..200 {
        let rows: Vec<_> = (i * 4..i * 4 + 4).map(reading).collect();
        let rows: Vec<Row<'_>> = rows
            .iter()
            .map(|(at, key, value)| (*at, Some(key.as_bytes()), Some(value.as_bytes())))
            .collect();
        one_len += pass(&mut one, &mut one_end, &payload(&rows));
        let mut writer = BlockWriter::default();
        for (base, row) in (0..).zip(&rows) {
            writer.push(&block(base, &[*row])).unwrap();
        }
        many_len += pass(&mut many, &mut many_end, &writer.finish());
    }
    assert!(one_len.abs_diff(many_len) < 200, "{one_len} {many_len}");
}

#[test]
fn nulls_and_headers_come_back() {
    let (mut from, mut to) = pair();
    let long = [7_u8; 3000];
    for i in 0..30_u8 {
        let headers = [
            Header {
                name: b"trace",
                value: Some(&[i, 0, 1, 255]),
            },
            Header {
                name: b"",
                value: None,
            },
            Header {
                name: b"trace",
                value: Some(&long[..usize::from(i) * 100]),
            },
        ];
        let mut records = Vec::new();
        put_record(
            &mut records,
            0,
            0,
            None,
            None,
            &headers[..usize::from(i % 4)],
        );
        put_record(&mut records, 1, -5, Some(b""), Some(b""), &[]);
        put_record(
            &mut records,
            2,
            i64::MIN,
            Some(&long[..600]),
            Some(&long),
            &headers,
        );
        let mut writer = BlockWriter::default();
        writer
            .push(&Block {
                base_offset: 0,
                count: 3,
                base_timestamp_ms: i64::MAX - i64::from(i),
                is_log_append_time: false,
                records: records.into(),
            })
            .unwrap();
        pass(&mut from, &mut to, &writer.finish());
    }
}

#[test]
fn both_ends_go_on_from_saved_states() {
    let (mut from, mut to) = pair();
    for i in 0..60 {
        pass(&mut from, &mut to, &readings(i * 3, 3));
        if i % 7 == 0 {
            let saved = from.save();
            assert!(saved == to.save());
            from = ModelChain::load(&saved, small()).unwrap();
            assert!(from.save() == saved);
        }
        if i % 11 == 0 {
            to = ModelChain::load(&to.save(), small()).unwrap();
        }
    }
}

#[test]
fn torn_or_foreign_states_are_refused() {
    let (mut from, mut to) = pair();
    pass(&mut from, &mut to, &readings(0, 20));
    let saved = from.save();
    assert!(ModelChain::load(&saved, ChainLimits::default()).is_err());
    for at in (0..saved.len()).step_by(97) {
        let mut torn = saved.clone();
        torn[at] ^= 0x10;
        assert!(ModelChain::load(&torn, small()).is_err());
        assert!(ModelChain::load(&saved[..at], small()).is_err());
    }
}

#[test]
fn random_payloads_cost_a_few_bytes_and_then_no_time() {
    let (mut from, mut to) = pair();
    let mut state = 1_u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    for i in 0..40 {
        let value: Vec<u8> = (0..500).map(|_| noise()).collect();
        let raw = payload(&[(i, None, Some(&value))]);
        assert!(pass(&mut from, &mut to, &raw) <= raw.len() + 2);
    }
    assert!(from.effort.resting > 0);
    // what can be modelled again is, in time
    for i in 0..300 {
        pass(&mut from, &mut to, &readings(i, 1));
    }
    assert!(pass(&mut from, &mut to, &readings(300, 1)) < 40);
}

#[test]
fn long_values_see_those_before_them() {
    let (mut from, mut to) = pair();
    let image: Vec<u8> = (0..40_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 7).to_le_bytes()[0])
        .collect();
    let first = pass(&mut from, &mut to, &payload(&[(1, None, Some(&image))]));
    let second = pass(&mut from, &mut to, &payload(&[(2, None, Some(&image))]));
    assert!(second < 100 && second * 20 < first, "{first} {second}");
}

#[test]
fn many_devices_templates_and_texts_stay_within_bounds() {
    let (mut from, mut to) = pair();
    for i in 0..400_i64 {
        let rows: Vec<_> = (0..8)
            .map(|k| {
                let n = i * 8 + k;
                let value = format!(
                    "{{\"f{}\":\"text {n} of many\",\"x{n}\":{}}}",
                    n % 1000,
                    n * 7
                );
                (n, format!("device-{n}-{}", "x".repeat(100)), value)
            })
            .collect();
        let rows: Vec<Row<'_>> = rows
            .iter()
            .map(|(at, key, value)| (*at, Some(key.as_bytes()), Some(value.as_bytes())))
            .collect();
        pass(&mut from, &mut to, &payload(&rows));
    }
    assert!(from.memory() < 700 << 10, "{}", from.memory());
    let saved = from.save();
    to = ModelChain::load(&saved, small()).unwrap();
    pass(&mut from, &mut to, &readings(0, 10));
}

/// A change here is a change of the codec: both ends of a link must make it together.
#[test]
fn the_bits_are_pinned() {
    let (mut from, mut to) = pair();
    let mut crc = 0;
    for i in 0..80 {
        let raw = readings(i * 4, 4);
        let payload = from.encode(&raw).unwrap();
        assert_eq!(to.decode(&payload, raw.len()).unwrap(), raw);
        crc = crc32c::crc32c_append(crc, &payload);
    }
    assert_eq!(crc, 643_032_158);
}

/// Text that looks like what devices send, with all that may go wrong in it.
fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        2 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Some),
        8 => "(\\{(\"[a-c]\": ?(-?[0-9]{1,19}(\\.[0-9]{1,9})?|\"[a-z\u{1}\u{2}é\\\\]{0,5}\"|null|\\[\\{\"q\":[0-9]\\}(,\\{\"q\":[0-9]\\}){0,4}\\]),){0,4}\"z\":1\\})".prop_map(|s| Some(s.into_bytes())),
        3 => "([a-z]{1,5}[ =#][0-9A-F]{1,18} ?){0,5}(2024-0[1-9]-1[0-9]T0[0-9]:00:00(\\.[0-9]{3})?Z)?".prop_map(|s| Some(s.into_bytes())),
    ]
}

fn rows() -> impl Strategy<Value = Vec<(i64, Option<Vec<u8>>, Option<Vec<u8>>)>> {
    let at = prop_oneof![5 => 0_i64..10_000, 1 => any::<i64>()];
    let key = prop_oneof![
        1 => Just(None),
        4 => "[ab]{1,2}".prop_map(|s| Some(s.into_bytes())),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Some),
    ];
    prop::collection::vec((at, key, value()), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_records_come_back(payloads in prop::collection::vec(rows(), 1..12), at in 0_usize..12) {
        let (mut from, mut to) = pair();
        for (i, rows) in payloads.iter().enumerate() {
            let rows: Vec<Row<'_>> = rows
                .iter()
                .map(|(at, key, value)| (*at, key.as_deref(), value.as_deref()))
                .collect();
            pass(&mut from, &mut to, &payload(&rows));
            if i == at {
                to = ModelChain::load(&to.save(), small()).unwrap();
            }
        }
    }

    #[test]
    fn any_bytes_come_back(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4)) {
        let (mut from, mut to) = pair();
        for raw in &payloads {
            pass(&mut from, &mut to, raw);
        }
    }

    #[test]
    fn hostile_payloads_end_within_bounds(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
        bits in 1_u8..,
    ) {
        let (mut from, mut to) = pair();
        for i in 0..3 {
            pass(&mut from, &mut to, &readings(i * 5, 5));
        }
        let mut torn = from.encode(&readings(15, 5)).unwrap();
        let at = flip.index(torn.len());
        torn[at] ^= bits;
        let saved = to.save();
        for payload in [&torn, &payload] {
            let mut to = ModelChain::load(&saved, small()).unwrap();
            if let Ok(raw) = to.decode(payload, LIMIT) {
                prop_assert!(raw.len() <= LIMIT);
                let mut to = ModelChain::load(&saved, small()).unwrap();
                prop_assert!(to.decode(payload, raw.len().saturating_sub(1)).is_err() || raw.is_empty());
            }
        }
    }
}
