//! Recordings are read as they stand, and every way of sending gives them back.

use super::*;

const CLOCK: fn() -> Duration = || Duration::ZERO;

fn plain() -> RecordingOptions {
    RecordingOptions {
        time_field: None,
        key_field: None,
        time_unit: None,
        interval: Some(Duration::from_secs(1)),
    }
}

fn options(delay: Duration) -> EstimateOptions {
    EstimateOptions {
        delay,
        level: 3,
        limits: ChainLimits::default(),
        topic_len: 8,
    }
}

fn sample(timestamp_ms: i64, key: Option<&str>, value: &str) -> Sample {
    Sample {
        timestamp_ms,
        key: key.map(|key| key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
    }
}

fn readings() -> Vec<Sample> {
    (0..2000)
        .map(|n| {
            let device = n % 4;
            let value = format!(
                r#"{{"id":"pump-{device}","t":{}.{:02}}}"#,
                20 + device,
                n * n % 7
            );
            sample(
                1_750_000_000_000 + n * 100,
                Some(&format!("pump-{device}")),
                &value,
            )
        })
        .collect()
}

#[test]
fn every_way_gives_the_records_back_and_knowing_more_costs_less() {
    let estimates = estimate(&readings(), &options(Duration::from_secs(1)), &CLOCK).unwrap();
    let of = |codec: &str| {
        let found = estimates.iter().find(|estimate| estimate.codec == codec);
        found.unwrap_or_else(|| panic!("{codec} is missing"))
    };
    assert_eq!(of("kafka-zstd").ratio, 1.0);
    assert_eq!(of("none").batches, 190);
    assert_eq!(of("none").records, 1900);
    assert!(of("zstd").ratio < 1.0);
    assert!(of("dictionary").bytes < of("zstd").bytes);
    assert!(of("columnar").bytes < of("dictionary").bytes);
    assert!(of("columnar").bytes_per_record < 5.0);
    // 2000 records in 199.9 s
    let expected = of("none").bytes_per_record * 10.0 * 30.0 * 86_400.0;
    assert!((of("none").bytes_per_month.unwrap() / expected - 1.0).abs() < 0.01);
}

#[test]
fn a_longer_delay_costs_less() {
    let bytes = |delay| {
        let estimates = estimate(&readings(), &options(delay), &CLOCK).unwrap();
        estimates
            .iter()
            .map(|e| e.bytes_per_record)
            .collect::<Vec<_>>()
    };
    let (short, long) = (
        bytes(Duration::from_millis(100)),
        bytes(Duration::from_secs(60)),
    );
    for (short, long) in short.iter().zip(&long) {
        assert!(short > long);
    }
}

#[test]
fn a_recording_of_one_record_is_estimated() {
    let estimates = estimate(&readings()[..1], &options(Duration::ZERO), &CLOCK).unwrap();
    assert!(
        estimates
            .iter()
            .all(|e| e.records == 1 && e.bytes_per_month.is_none())
    );
}

#[test]
fn a_recording_that_is_one_batch_is_counted_as_a_whole() {
    let hour = options(Duration::from_secs(3600));
    let at_once: Vec<Sample> = (0..100).map(|n| sample(5, None, &n.to_string())).collect();
    for samples in [&readings(), &at_once] {
        for e in estimate(samples, &hour, &CLOCK).unwrap() {
            assert_eq!(e.batches, 1, "{e:?}");
            assert_eq!(e.records, u64::try_from(samples.len()).unwrap());
            assert!(e.bytes > 0 && e.bytes == e.all_bytes, "{e:?}");
            assert!(e.ratio > 0.0 && e.ratio.is_finite(), "{e:?}");
        }
    }
    let estimates = estimate(&at_once, &hour, &CLOCK).unwrap();
    assert!(estimates.iter().all(|e| e.bytes_per_month.is_none()));
}

#[test]
fn the_order_of_a_recording_changes_nothing_but_records_of_one_time() {
    let sorted = readings();
    let mut backwards = sorted.clone();
    backwards.reverse();
    let mut turned = sorted.clone();
    turned.rotate_left(777);
    let second = options(Duration::from_secs(1));
    let expected = estimate(&sorted, &second, &CLOCK).unwrap();
    for samples in [backwards, turned] {
        assert_eq!(estimate(&samples, &second, &CLOCK).unwrap(), expected);
    }
}

#[test]
fn lines_that_say_key_time_and_value_are_taken_apart() {
    let text = b"{\"key\":\"a\",\"ts\":5,\"value\":\"x \\\"1\\\"\"}\r\n\n{\"key\":null,\"ts\":7,\"value\":null}\n";
    let samples = read_recording(text, &plain()).unwrap().samples;
    let nothing = Sample {
        timestamp_ms: 7,
        key: None,
        value: None,
    };
    assert_eq!(samples, [sample(5, Some("a"), "x \"1\""), nothing]);
}

#[test]
fn keys_and_values_may_be_other_json_than_text() {
    let text = br#"{"ts":1,"value":"x"}
{"key":17,"ts":2,"value":{"b": [1, true]}}
{"key":null,"ts":3,"value":4,"offset":9}
{"key":"a","ts":4,"value":[]}
{"ts":5,"value":null}"#;
    let samples = read_recording(text, &plain()).unwrap().samples;
    let expected = [
        sample(1, None, "x"),
        sample(2, Some("17"), r#"{"b":[1,true]}"#),
        sample(3, None, "4"),
        sample(4, Some("a"), "[]"),
    ];
    assert_eq!(samples[..4], expected);
    assert_eq!(samples[4].value, None);
    // the first line may have such a value as well
    let samples = read_recording(br#"{"key":1,"ts":2,"value":3.5}"#, &plain())
        .unwrap()
        .samples;
    assert_eq!(samples, [sample(2, Some("1"), "3.5")]);
}

#[test]
fn a_reading_whose_value_is_one_field_of_several_stands_as_it_is() {
    let text = r#"{"ts":1750000000000,"sensor":"inlet","value":21.5}"#;
    let samples = read_recording(text.as_bytes(), &plain()).unwrap().samples;
    assert_eq!(samples, [sample(0, None, text)]);
}

#[test]
fn one_odd_line_is_an_error_that_says_what_is_wrong_with_it() {
    let first = r#"{"key":"a","ts":1,"value":"x"}"#;
    for (odd, parts) in [
        (
            r#"{"key":"a","ts":2,"val"#,
            [r#"`{"key":"a","ts":2,"val` is not"#, "EOF", "\"ts\": ms"],
        ),
        ("7", ["`7`", "not a JSON object", "\"value\": …"]),
        (
            r#"{"ts":"noon","value":"x"}"#,
            ["no time at `ts`", "found \"noon\"", "ns since 1970"],
        ),
        (
            r#"{"value":"x"}"#,
            ["no time at `ts`", "it is missing", "ns since 1970"],
        ),
        (
            r#"{"ts":2}"#,
            ["no value at `value`", "it is missing", "any JSON"],
        ),
        (
            r#"{"key":[1],"ts":2,"value":"x"}"#,
            ["no key at `key`", "found [1]", "a string, a number or null"],
        ),
    ] {
        let text = format!("\n{first}\n{odd}\n{first}\n");
        let error = read_recording(text.as_bytes(), &plain()).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("line 3: "), "{error}");
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn other_lines_are_values_and_fields_may_be_named() {
    let text = b"{\"d\":{\"id\":7,\"at\":\"2026-01-31T12:00:00.5+01:00\"}}\n{\"d\":{\"id\":\"b\",\"at\":1769860800}}";
    let samples = read_recording(text, &plain()).unwrap().samples;
    assert_eq!(samples[1].timestamp_ms, 1000);
    assert_eq!(samples[1].key, None);
    let named = RecordingOptions {
        time_field: Some("d.at".to_owned()),
        key_field: Some("d.id".to_owned()),
        ..plain()
    };
    let samples = read_recording(text, &named).unwrap().samples;
    assert_eq!(samples[0].timestamp_ms, 1_769_857_200_500);
    assert_eq!(samples[0].key.as_deref(), Some(b"7".as_slice()));
    assert_eq!(samples[1].timestamp_ms, 1_769_860_800_000);
    assert_eq!(samples[1].key.as_deref(), Some(b"b".as_slice()));
}

#[test]
fn times_are_told_by_their_size() {
    for (time, ms) in [
        ("1750000000", 1_750_000_000_000),
        ("1750000000.25", 1_750_000_000_250),
        ("1750000000123", 1_750_000_000_123),
        ("1750000000123456", 1_750_000_000_123),
        ("1750000000123456789", 1_750_000_000_123),
        ("\"2025-06-15 15:06:40Z\"", 1_750_000_000_000),
    ] {
        let named = RecordingOptions {
            time_field: Some("t".to_owned()),
            ..plain()
        };
        let line = format!("{{\"t\":{time}}}");
        let samples = read_recording(line.as_bytes(), &named).unwrap().samples;
        assert_eq!(samples[0].timestamp_ms, ms, "{time}");
    }
}

#[test]
fn times_of_recorders_may_be_in_other_units_too() {
    for (time, ms) in [
        ("1750000000", 1_750_000_000_000),
        ("1750000000.25", 1_750_000_000_250),
        ("1750000000123", 1_750_000_000_123),
        ("1750000000123456", 1_750_000_000_123),
        ("\"2025-06-15T15:06:40Z\"", 1_750_000_000_000),
        ("250", 250),
    ] {
        let line = format!("{{\"ts\":{time},\"value\":\"x\"}}");
        let read = read_recording(line.as_bytes(), &plain()).unwrap();
        assert_eq!(read.samples[0].timestamp_ms, ms, "{time}");
    }
}

#[test]
fn lines_without_times_are_said_to_have_assumed_ones() {
    let spaced = |options: &RecordingOptions| {
        let read = read_recording(b"a\nb\n{\"ts\":1}", options).unwrap();
        let times = read.samples.iter().map(|it| it.timestamp_ms);
        (times.collect::<Vec<_>>(), read.times)
    };
    let nothing_said = RecordingOptions {
        interval: None,
        ..plain()
    };
    let (ms, times) = spaced(&nothing_said);
    assert_eq!(ms, [0, 1_000, 2_000]);
    assert!(
        matches!(
            times,
            Times::Spaced {
                is_assumed: true,
                ..
            }
        ),
        "{times:?}"
    );
    let said = RecordingOptions {
        interval: Some(Duration::from_micros(1_500)),
        ..plain()
    };
    let (ms, times) = spaced(&said);
    assert_eq!(ms, [0, 1, 3]);
    assert!(
        matches!(
            times,
            Times::Spaced {
                is_assumed: false,
                ..
            }
        ),
        "{times:?}"
    );
}

#[test]
fn what_is_missing_is_said() {
    let named = RecordingOptions {
        time_field: Some("t".to_owned()),
        ..plain()
    };
    let error = read_recording(b"{\"t\":1}\n\n{\"x\":1}", &named).unwrap_err();
    assert!(
        error.to_string().starts_with("line 3: no time at `t`"),
        "{error}"
    );
    let error = read_recording(b"{\"t\":1}\n{\"t\":2", &named).unwrap_err();
    let expected = "line 2: no time at `t`: the line is not a JSON object; expected: ";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert!(matches!(
        read_recording(b"\n", &plain()),
        Err(RecordingError::Empty)
    ));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_line() {
    let text = "\u{feff}{\"key\":\"a\",\"ts\":5,\"value\":\"x\"}\r\n{\"key\":\"a\",\"ts\":6,\"value\":\"y\"}\r\n";
    let samples = read_recording(text.as_bytes(), &plain()).unwrap().samples;
    assert_eq!(
        samples,
        [sample(5, Some("a"), "x"), sample(6, Some("a"), "y")]
    );
    assert!(matches!(
        read_recording("\u{feff}\n".as_bytes(), &plain()),
        Err(RecordingError::Empty)
    ));
    for mark in [[0xff, 0xfe], [0xfe, 0xff]] {
        let error = read_recording(&[&mark[..], b"a\0"].concat(), &plain()).unwrap_err();
        assert!(
            error.to_string().contains("UTF-16; expected: UTF-8"),
            "{error}"
        );
    }
}

#[test]
fn a_record_that_no_topic_takes_is_named_with_its_line_and_the_largest_goes_through() {
    let value = |len: usize| "x".repeat(len);
    let text = format!("ok\n\n{}\n", value(MAX_RECORD_BYTES));
    let error = read_recording(text.as_bytes(), &plain()).unwrap_err();
    let told = error.to_string();
    let expected = "line 3: the record takes 41943";
    assert!(told.starts_with(expected), "{told}");
    assert!(told.contains("at most 4194304"), "{told}");
    let text = format!("ok\n{}\n", value(MAX_RECORD_BYTES - 100));
    let samples = read_recording(text.as_bytes(), &plain()).unwrap().samples;
    let options = options(Duration::from_secs(1));
    let estimates = estimate(&samples, &options, &|| Duration::ZERO).unwrap();
    assert!(estimates.iter().all(|it| it.all_bytes > 0));
}

#[test]
fn recordings_are_unpacked_up_to_a_limit() {
    let text = b"a record\n".repeat(100);
    let packed = zstd::bulk::compress(&text, 3).unwrap();
    assert_eq!(unpack(packed.clone(), 900).unwrap(), text);
    assert!(matches!(
        unpack(packed, 899),
        Err(RecordingError::TooLarge(899))
    ));
    assert!(matches!(
        unpack(text.clone(), 899),
        Err(RecordingError::TooLarge(899))
    ));
    assert_eq!(unpack(text.clone(), 900).unwrap(), text);
}
