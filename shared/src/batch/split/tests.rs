//! Whatever is taken apart goes together again, byte for byte.

use proptest::prelude::*;

use super::number::MAX_NUMBER_LEN;
use super::template::{MAX_SLOTS, MAX_TEMPLATE_LEN, MAX_VALUE_LEN};
use super::*;
use crate::batch::{Block, BlockWriter};
use crate::record::{Header, put_record};

/// The value put together from what it was taken apart into; itself when it is not split.
fn joined(value: &[u8]) -> Vec<u8> {
    let mut split = Split::default();
    if !tokenize(value, &mut split) {
        return value.to_vec();
    }
    let template = Template::new(&split.template).expect("a template that was just made");
    assert_eq!(template.columns().len(), split.slots.len());
    for (slot, column) in template.columns().iter().enumerate() {
        assert!(
            column
                .element
                .is_none_or(|element| usize::from(element) < slot)
        );
    }
    let mut out = Vec::new();
    template.join(&mut out, |slot, out| {
        let (start, end) = split.slots[slot];
        let token = &value[start as usize..end as usize];
        let mut preferred = None;
        // whatever the preferred format was, a number prints as it was read
        for _ in 0..2 {
            if let Some((format, mantissa)) = parse(token, preferred) {
                assert_eq!(printed(format, mantissa), token);
                preferred = Some(format);
            }
        }
        out.extend_from_slice(token);
    });
    out
}

fn printed(format: Format, mantissa: i64) -> Vec<u8> {
    let mut out = Vec::new();
    print(format, mantissa, &mut out);
    assert!(out.len() <= MAX_NUMBER_LEN, "{format:?} {mantissa}");
    out
}

fn slots(value: &str) -> Vec<&str> {
    let mut split = Split::default();
    assert!(tokenize(value.as_bytes(), &mut split), "{value}");
    let ranges = split.slots.iter();
    ranges
        .map(|(start, end)| value.get(*start as usize..*end as usize).unwrap())
        .collect()
}

#[test]
fn values_fall_into_slots_as_a_reader_would_expect() {
    assert_eq!(
        slots(r#"{"a": 1.50, "b\"": ["x\"y", {"n":null}], "c":{"d":""}}"#),
        ["1.50", r#"x\"y"#, "null", ""]
    );
    assert_eq!(
        slots("(1666123414.590352) can0 315#69000000009000"),
        ["1666123414.590352", "can0", "315", "69000000009000"]
    );
    assert_eq!(
        slots("2014-02-14 14:30:00,1.732 took 25ms at 50% of host-7. Jun  9 06:06:20,123 x"),
        [
            "2014-02-14 14:30:00",
            "1.732",
            "25",
            "50",
            "host-7",
            "9",
            "06:06:20,123"
        ]
    );
    assert_eq!(slots("no digits"), [""; 0]);
    // looks like JSON and is not
    assert_eq!(slots("{oops 1"), ["1"]);
}

#[test]
fn columns_are_paths_and_elements_are_named_by_their_first_scalar() {
    let columns = |value: &str| {
        let mut split = Split::default();
        assert!(tokenize(value.as_bytes(), &mut split));
        Template::new(&split.template).unwrap().columns().to_vec()
    };
    let a = columns(r#"{"m":[{"n":"a","v":1},{"n":"b","v":2}],"t":0}"#);
    let b = columns(r#"{"t":0,"m":[{"n":"a","v":1}]}"#);
    assert_eq!(a[1].hash, a[3].hash);
    assert_eq!((a[1].element, a[3].element), (Some(0), Some(2)));
    assert_eq!((a[0].element, a[4].element), (None, None));
    assert_eq!(a[1].hash, b[2].hash);
    assert_eq!(a[4].hash, b[0].hash);
    assert_eq!(b[2].element, Some(1));
    let can = columns("(1.5) can0 315#6900");
    assert_eq!(can[3].element, Some(2));
}

#[test]
fn what_is_not_text_or_too_much_is_refused() {
    let mut split = Split::default();
    for value in [
        b"".as_slice(),
        b"a\x01b1",
        b"a\0b",
        b"\xff\xfe1",
        b"\x1b[0m",
    ] {
        assert!(!tokenize(value, &mut split), "{value:?}");
    }
    assert!(!tokenize(&b"1 ".repeat(MAX_SLOTS + 1), &mut split));
    assert!(!tokenize(&vec![b'a'; MAX_TEMPLATE_LEN], &mut split));
    assert!(!tokenize(&vec![b'1'; MAX_VALUE_LEN + 1], &mut split));
    assert!(tokenize(&vec![b'['; MAX_TEMPLATE_LEN - 2], &mut split));
    assert_eq!(split.template[0], b'T');
    let deep = [b"[".repeat(64), b"]".repeat(64)].concat();
    assert!(tokenize(&deep, &mut split));
    assert_eq!(split.template[0], b'J');
}

#[test]
fn templates_from_outside_are_checked() {
    for bytes in [
        b"".as_slice(),
        b"X",
        b"J{",
        b"J}",
        b"J\"a\"",
        b"J{\"a",
        b"J{\"a\\",
        b"Jx",
    ] {
        assert_eq!(Template::new(bytes), None, "{bytes:?}");
    }
    assert!(Template::new(&[vec![b'T'], vec![1; MAX_SLOTS]].concat()).is_some());
    assert!(Template::new(&[vec![b'T'], vec![1; MAX_SLOTS + 1]].concat()).is_none());
    assert!(Template::new(&vec![b'T'; MAX_TEMPLATE_LEN + 1]).is_none());
}

#[test]
fn numbers_are_read_in_the_format_that_fits() {
    let cases: &[(&str, Option<Format>, Option<(Format, i64)>)] = &[
        ("1.50", None, Some((Format::Fixed(2), 150))),
        ("-7", None, Some((Format::Fixed(0), -7))),
        ("007", None, Some((Format::Padded(3), 7))),
        ("12", Some(Format::Padded(2)), Some((Format::Padded(2), 12))),
        (
            "1.5",
            Some(Format::Fixed(2)),
            Some((Format::Trimmed(2), 150)),
        ),
        (
            "3",
            Some(Format::Trimmed(2)),
            Some((Format::Trimmed(2), 300)),
        ),
        (
            "2.0",
            Some(Format::Fixed(3)),
            Some((Format::TrimmedToOne(3), 2000)),
        ),
        (
            "00:01:02.5",
            None,
            Some((
                Format::TimeOfDay {
                    has_comma: false,
                    decimals: 1,
                },
                625,
            )),
        ),
        (
            "1970-01-02T00:00:00Z",
            None,
            Some((
                Format::DateTime {
                    has_space: false,
                    has_comma: false,
                    decimals: 0,
                    zone: 1,
                },
                86_400,
            )),
        ),
        (
            "2018-03-01T00:15:00+09:00",
            None,
            Some((
                Format::DateTime {
                    has_space: false,
                    has_comma: false,
                    decimals: 0,
                    zone: 102,
                },
                1_519_863_300,
            )),
        ),
        (
            "3FFF",
            None,
            Some((
                Format::Hex {
                    digits: 4,
                    is_upper: true,
                },
                0x3fff,
            )),
        ),
        (
            "0011",
            Some(Format::Hex {
                digits: 4,
                is_upper: true,
            }),
            Some((
                Format::Hex {
                    digits: 4,
                    is_upper: true,
                },
                0x11,
            )),
        ),
        (
            "FFFFFFFFFFFFFFFF",
            None,
            Some((
                Format::Hex {
                    digits: 16,
                    is_upper: true,
                },
                -1,
            )),
        ),
        ("-0", None, None),
        ("-0.0", None, None),
        ("1.", None, None),
        (".5", None, None),
        ("00.5", None, None),
        ("1e5", None, None),
        ("aBcD", None, None),
        ("1970-02-30T00:00:00Z", None, None),
        ("1970-00-01T00:00:00Z", None, None),
        ("1970-01-01T24:00:00Z", None, None),
        ("1970-01-01T00:00:00-00:00", None, None),
        ("00:60:00", None, None),
        (
            "1750000000123456789",
            None,
            Some((Format::Fixed(0), 1_750_000_000_123_456_789)),
        ),
        ("9999999999999999999", None, None),
        ("12345678901234567890", None, None),
    ];
    for (token, preferred, expected) in cases {
        assert_eq!(parse(token.as_bytes(), *preferred), *expected, "{token}");
        if let Some((format, mantissa)) = expected {
            assert_eq!(printed(*format, *mantissa), token.as_bytes());
        }
    }
}

#[test]
fn every_code_is_one_format_and_prints_anything() {
    let mut formats = 0;
    for code in 0..1 << 17 {
        let Some(format) = Format::from_code(code) else {
            continue;
        };
        formats += 1;
        assert_eq!(format.code(), code);
        for mantissa in [0, 1, -1, 123_456_789, i64::MAX, i64::MIN] {
            printed(format, mantissa);
        }
    }
    assert!(formats > 4000, "{formats}");
    assert_eq!(Format::from_code(u32::MAX), None);
}

fn payload(blocks: &[(i64, bool, Vec<(i64, Option<Vec<u8>>, Option<Vec<u8>>, u8)>)]) -> Vec<u8> {
    let mut writer = BlockWriter::default();
    let mut base_offset = 0;
    for (base_timestamp_ms, is_log_append_time, records) in blocks {
        let mut bytes = Vec::new();
        for (at, (delta, key, value, headers)) in (0..).zip(records) {
            let header = Header {
                name: b"trace",
                value: (*headers > 1).then_some(b"x"),
            };
            let headers = vec![header; usize::from(*headers)];
            put_record(
                &mut bytes,
                at,
                *delta,
                key.as_deref(),
                value.as_deref(),
                &headers,
            );
        }
        let block = Block {
            base_offset,
            count: u32::try_from(records.len()).unwrap(),
            base_timestamp_ms: *base_timestamp_ms,
            is_log_append_time: *is_log_append_time,
            records: bytes.into(),
        };
        base_offset = block.next_offset();
        writer.push(&block).unwrap();
    }
    writer.finish()
}

proptest! {
    #[test]
    fn payloads_come_apart_and_go_together(
        blocks in proptest::collection::vec(
            (
                any::<i64>(),
                any::<bool>(),
                proptest::collection::vec(
                    (
                        any::<i64>(),
                        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)),
                        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
                        0_u8..4,
                    ),
                    1..6,
                ),
            ),
            0..5,
        ),
        flip in any::<prop::sample::Index>(),
    ) {
        let raw = payload(&blocks);
        let list = RecordList::read(&raw).expect("a payload that a writer made");
        prop_assert_eq!(list.blocks.len(), blocks.len());
        if !raw.is_empty() {
            // reading checks that writing gives the same; it must not panic on what is broken
            let mut raw = raw.clone();
            let at = flip.index(raw.len());
            raw[at] ^= 0x91;
            prop_assert!(RecordList::read(&raw).is_none_or(|list| list.blocks.len() <= raw.len()));
        }
    }

    #[test]
    fn json_like_values_survive(value in r#"[\[{]("a\\?"|[0-9.\-]{1,5}|[\]}{\[,: tn]){0,40}[\]}]"#) {
        prop_assert_eq!(joined(value.as_bytes()), value.into_bytes());
    }

    #[test]
    fn text_survives(value in r"[a-f0-9 ,;=#:T.\-+Z%\n]{1,60}") {
        prop_assert_eq!(joined(value.as_bytes()), value.into_bytes());
    }

    #[test]
    fn number_like_tokens_print_as_they_were_read(
        token in r"(-?[0-9]{1,4}(\.[0-9]{1,4})?|[0-9]{2}:[0-6][0-9]:[0-6][0-9]([.,][0-9]{1,9})?|[0-9]{4}-[01][0-9]-[0-3][0-9][T ][012][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{3})?(Z|[+-][01][0-9]:[0134][05])?|[0-9a-f]{4,17}|[0-9A-F]{4,17})",
        codes in proptest::collection::vec(0_u32..1 << 16, 8),
    ) {
        let preferred = codes.into_iter().filter_map(Format::from_code).map(Some);
        for preferred in preferred.chain([None, Some(Format::Fixed(3)), Some(Format::Trimmed(3)),
            Some(Format::TrimmedToOne(3)), Some(Format::Padded(3))]) {
            if let Some((format, mantissa)) = parse(token.as_bytes(), preferred) {
                prop_assert_eq!(Format::from_code(format.code()), Some(format));
                let printed = printed(format, mantissa);
                prop_assert_eq!(String::from_utf8(printed).unwrap(), token.clone());
            }
        }
    }
}

#[test]
fn fuzz_values() {
    bolero::check!().for_each(|bytes: &[u8]| {
        assert_eq!(joined(bytes), bytes);
    });
}

#[test]
fn fuzz_templates() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Some(template) = Template::new(bytes) {
            assert_eq!(template.bytes(), bytes);
            let mut out = Vec::new();
            template.join(&mut out, |_, out| out.push(b'0'));
            assert_eq!(out.len() + 1, bytes.len());
        }
    });
}

#[test]
fn fuzz_records() {
    bolero::check!().for_each(|bytes: &[u8]| {
        assert!(RecordList::read(bytes).is_none_or(|list| list.blocks.len() <= bytes.len()));
    });
}

#[test]
fn fuzz_numbers() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Some((format, mantissa)) = parse(bytes, None) {
            assert_eq!(printed(format, mantissa), bytes);
        }
    });
}
