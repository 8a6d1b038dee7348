//! Frames byte by byte, written down apart from any codec: question and answer about an empty log.

use std::sync::Arc;

use bytes::Bytes;

use crate::ingest::tests::any_topic;
use crate::kafka::dispatch::{Plan, plan};
use crate::kafka::{fetch, offsets};
use crate::store::{FetchLimit, MemoryStore, Store};

#[test]
fn questions_and_answers_stay_as_they_are() {
    let store = Arc::new(MemoryStore::default());
    let name = shared::ids::TopicName::new("t").unwrap();
    store
        .ensure_topic(&name, 1, any_topic().default.rules())
        .unwrap();
    for line in include_str!("../golden/frames.txt").lines() {
        let [name, question, answer] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        assert_eq!(hex(&answered(&*store, &bytes(question))), answer, "{name}");
    }
}

fn answered(store: &dyn Store, frame: &Bytes) -> Vec<u8> {
    let (header, plan) = plan(frame).unwrap();
    let limit = FetchLimit {
        bytes: 1000,
        is_first_whole: true,
    };
    if let Plan::Fetch(asked) = plan {
        fetch::assemble(store, &header, &asked, limit).bytes
    } else if let Plan::ListOffsets(asked) = plan {
        offsets::answer_at_time(store, &header, &asked)
    } else if let Plan::EpochEnds(asked) = plan {
        offsets::answer_epoch_end(store, &header, &asked)
    } else {
        panic!("{plan:?}")
    }
}

fn bytes(hex: &str) -> Bytes {
    let pairs = hex.as_bytes().chunks(2);
    let texts = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    texts
        .map(|text| u8::from_str_radix(text, 16).unwrap())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
