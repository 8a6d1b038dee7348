use proptest::prelude::*;
use serde_json::Value;
use shared::record::{BatchBuilder, patch};

use super::super::records::{Gather, Placement, gather_json};
use super::*;

type Owned = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

fn batch(base: Offset, records: &[Owned]) -> Item {
    let mut builder = BatchBuilder::default();
    for (key, value, headers) in records {
        let headers: Vec<Header<'_>> = headers
            .iter()
            .map(|(name, value)| Header {
                name,
                value: value.as_deref(),
            })
            .collect();
        builder.push(7, key.as_deref(), value.as_deref(), &headers);
    }
    let mut batch = builder.build().unwrap().to_vec();
    patch(&mut batch, base, 0);
    Item::Batch {
        batch: batch.into(),
        base_offset: base,
        next_offset: base + records.len() as u64,
        chain: 0,
    }
}

fn values(base: Offset, values: &[&str]) -> Item {
    let records: Vec<Owned> = values
        .iter()
        .map(|value| (None, Some(value.as_bytes().to_vec()), Vec::new()))
        .collect();
    batch(base, &records)
}

fn gap(from: Offset, to: Offset) -> Item {
    Item::Gap {
        from,
        to,
        reason: GapReason::Expired,
        chain: 0,
    }
}

/// What is seen in words, of at most `most` things.
fn seen(items: &[Item], from: Offset, most: usize) -> (Vec<String>, Offset) {
    let mut out = Vec::new();
    let next = walk(items, from, 1 << 20, &mut |seen| {
        out.push(match seen {
            Seen::Record { offset, record, .. } => {
                let value = String::from_utf8_lossy(record.value.unwrap_or_default());
                format!("{offset} {value}")
            }
            Seen::Gap(gap) => format!("{}-{} {}", gap.from, gap.to, gap.reason),
        });
        if out.len() < most {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    (out, next.unwrap())
}

#[test]
fn a_walk_begins_anywhere_and_tells_what_is_missing() {
    let items = [values(4, &["a", "b"]), gap(6, 9), values(9, &["c"])];
    let all = ["1-4 deleted", "4 a", "5 b", "6-9 expired", "9 c"];
    assert_eq!(seen(&items, 1, 99), (all.map(str::to_owned).into(), 10));
    assert_eq!(seen(&items, 4, 99).0, all[1..]);
    assert_eq!(seen(&items, 5, 99).0, all[2..]);
    assert_eq!(seen(&items, 7, 99).0, ["7-9 expired", "9 c"]);
    assert_eq!(seen(&items, 10, 99), (Vec::new(), 10));
}

#[test]
fn a_walk_goes_on_where_it_broke_off() {
    let items = [values(4, &["a", "b"]), gap(6, 9), values(9, &["c", "d"])];
    let whole = seen(&items, 0, 99);
    for most in 1..=whole.0.len() {
        let (mut parts, mut at) = (Vec::new(), 0);
        loop {
            let (part, next) = seen(&items, at, most);
            if part.is_empty() {
                break;
            }
            assert!(part.len() <= most && next > at);
            parts.extend(part);
            at = next;
        }
        assert_eq!((parts, at), whole);
    }
}

fn written(record: &Owned) -> String {
    let item = batch(17, std::slice::from_ref(record));
    let mut out = Vec::new();
    walk(&[item], 17, 1 << 20, &mut |seen| {
        let Seen::Record {
            offset,
            timestamp_ms,
            record,
        } = seen
        else {
            panic!("a gap");
        };
        put_record(&mut out, None, offset, timestamp_ms, &record);
        ControlFlow::Continue(())
    })
    .unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn records_are_written_as_they_are_taken() {
    let some = |text: &str| Some(text.as_bytes().to_vec());
    let head = r#"{"offset":17,"timestamp":7,"#;
    for (value, json) in [
        (some("text ü\n"), r#""value":"text ü\n""#),
        (
            some(r#"{"t":[1.50,"x y"]}"#),
            r#""value":{"t":[1.50,"x y"]}"#,
        ),
        (some("17"), r#""value":17"#),
        (some("true"), r#""value":true"#),
        // these would come back as others
        (some("null"), r#""value":"null""#),
        (some("\"a\""), r#""value":"\"a\"""#),
        (some("[1, 2]"), r#""value":"[1, 2]""#),
        (some("[1"), r#""value":"[1""#),
        (some("007"), r#""value":"007""#),
        (some(""), r#""value":"""#),
        (some("a\u{0}"), r#""value_base64":"YQA=""#),
        (Some(vec![0xff]), r#""value_base64":"/w==""#),
        (None, r#""value":null"#),
    ] {
        let line = written(&(some("17"), value, Vec::new()));
        assert_eq!(line, format!(r#"{head}"key":"17",{json}}}"#));
    }
    let headers = vec![
        (b"a".to_vec(), some("1")),
        (b"a".to_vec(), None),
        (vec![0xff], Some(vec![0])),
    ];
    assert_eq!(
        written(&(None, some("x"), headers)),
        format!(
            r#"{head}"key":null,"value":"x","headers":[{{"name":"a","value":"1"}},{{"name":"a","value":null}},{{"name_base64":"/w==","value_base64":"AA=="}}]}}"#
        )
    );
}

#[test]
fn json_too_deep_for_clients_is_text() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let value = |depth| {
        let line = written(&(None, Some(nested(depth).into_bytes()), Vec::new()));
        serde_json::from_str::<Value>(&line).unwrap()["value"].clone()
    };
    assert!(value(DEEPEST_JSON).is_array());
    assert!(value(DEEPEST_JSON + 1).is_string());
}

/// Bytes that are text, JSON, nearly JSON, or none of these.
fn payload() -> impl Strategy<Value = Option<Vec<u8>>> {
    let text = prop_oneof![
        any::<String>(),
        "[\\[\\]{}\":, 0-9tfn.eE-]{0,12}",
        any::<f64>().prop_map(|f| f.to_string()),
        prop::collection::vec(any::<(String, i64)>(), 0..4)
            .prop_map(|list| serde_json::json!(list).to_string()),
    ];
    prop_oneof![
        Just(None),
        text.prop_map(|text| Some(text.into_bytes())),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Some),
    ]
}

proptest! {
    /// Posting what was read stores the same bytes.
    #[test]
    fn what_is_read_and_posted_is_the_same(
        key in payload(),
        value in payload(),
        headers in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..6), payload()), 0..4),
    ) {
        let record = (key, value, headers);
        let line = written(&record);
        let (_, members) = line.split_once(",\"key").unwrap();
        let body = format!("{{\"key{members}");
        let mut gather = Gather::new(Placement {
            partitions: 1,
            keyless_partition: 0,
            now_ms: 0,
            max_batch_bytes: 1 << 20,
        });
        gather_json(body.as_bytes(), &mut gather).unwrap();
        let batches = gather.finish().unwrap();
        let header = BatchHeader::parse(&batches[0].1).unwrap();
        let records = open(&batches[0].1, &header, 1 << 20).unwrap();
        let again = Records::new(&records, 1).next().unwrap().unwrap();
        prop_assert_eq!(again.key, record.0.as_deref());
        prop_assert_eq!(again.value, record.1.as_deref());
        let headers: Vec<_> = again
            .headers()
            .map(|header| (header.name.to_vec(), header.value.map(<[u8]>::to_vec)))
            .collect();
        prop_assert_eq!(headers, record.2);
    }
}
