//! Fetch and the offset APIs against kafka-protocol, over a store in memory.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{
    ApiKey, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
    OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, TopicName, fetch_request,
    list_offsets_request, offset_for_leader_epoch_request,
};
use kafka_protocol::protocol::Encodable;
use proptest::prelude::*;
use shared::record::BatchHeader;

use super::oracle::response;
use super::{batch, request, text};
use crate::ingest::tests::any_topic;
use crate::kafka::dispatch::{Plan, plan};
use crate::kafka::{fetch, offsets};
use crate::store::{Append, FetchLimit, MemoryStore, Store};

const FETCH: std::ops::RangeInclusive<i16> = 4..=12;
const LIST_OFFSETS: std::ops::RangeInclusive<i16> = 1..=7;
const EPOCHS: std::ops::RangeInclusive<i16> = 2..=4;

/// Topic `t` with 4 partitions; the first holds five batches of two records.
fn store() -> (Arc<MemoryStore>, Bytes) {
    let store = Arc::new(MemoryStore::default());
    let name = shared::ids::TopicName::new("t").unwrap();
    let rules = any_topic().default.rules();
    let topic = store.ensure_topic(&name, 4, rules).unwrap();
    let batch = batch(&["one", "two"], None);
    for _ in 0..5 {
        let append = Append {
            partition: topic.partitions[0],
            batch: batch.clone(),
            header: BatchHeader::parse(&batch).unwrap(),
            state: Vec::new(),
        };
        store.append(append).blocking_recv().unwrap().unwrap();
    }
    (store, batch)
}

pub(super) fn fetch_frame(
    version: i16,
    session: (i32, i32),
    wanted: &[(&str, Vec<(i32, i64, i32)>)],
) -> Bytes {
    let topics = wanted.iter().map(|(name, partitions)| {
        let partitions = partitions.iter().map(|(index, offset, max_bytes)| {
            fetch_request::FetchPartition::default()
                .with_partition(*index)
                .with_fetch_offset(*offset)
                .with_partition_max_bytes(*max_bytes)
        });
        fetch_request::FetchTopic::default()
            .with_topic(TopicName(text(name)))
            .with_partitions(partitions.collect())
    });
    let mut body = FetchRequest::default()
        .with_replica_id((-1).into())
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_isolation_level(1)
        .with_topics(topics.collect());
    if version >= 7 {
        let forgotten = fetch_request::ForgottenTopic::default()
            .with_topic(TopicName(text("old")))
            .with_partitions(vec![1, 2]);
        body = body
            .with_session_id(session.0)
            .with_session_epoch(session.1)
            .with_forgotten_topics_data(vec![forgotten]);
    }
    if version >= 11 {
        body = body.with_rack_id(text("rack"));
    }
    request(ApiKey::Fetch, version, 7, |out| {
        body.encode(out, version).unwrap()
    })
}

fn fetched(store: &dyn Store, frame: &Bytes, limit: usize) -> FetchResponse {
    let (header, plan) = plan(frame).unwrap();
    let Plan::Fetch(asked) = plan else {
        panic!("{plan:?}")
    };
    let limit = FetchLimit {
        bytes: limit,
        is_first_whole: true,
    };
    let answer = fetch::assemble(store, &header, &asked, limit);
    let (correlation, found) = response::<FetchResponse>(answer.bytes, header.version);
    assert_eq!((correlation, found.error_code, found.session_id), (7, 0, 0));
    let data = found.responses.iter().flat_map(|topic| &topic.partitions);
    let data_bytes: usize = data.map(|p| p.records.as_ref().map_or(0, Bytes::len)).sum();
    assert_eq!(data_bytes, answer.data_bytes);
    found
}

#[test]
fn stored_batches_are_fetched_as_they_are_in_every_version() {
    let (store, batch) = store();
    for version in FETCH {
        let wanted = [
            ("t", vec![(0, 3, 1 << 20), (1, 0, 1 << 20), (9, 0, 1)]),
            ("none", vec![(0, 0, 1)]),
        ];
        let found = fetched(&*store, &fetch_frame(version, (0, 0), &wanted), 1 << 20);
        let topic = &found.responses[0];
        assert_eq!(topic.topic.as_str(), "t");
        let [first, empty, missing] = &topic.partitions[..] else {
            panic!("{topic:?}")
        };
        assert_eq!((first.error_code, first.partition_index), (0, 0));
        assert_eq!((first.high_watermark, first.last_stable_offset), (10, 10));
        if version >= 5 {
            assert_eq!(first.log_start_offset, 0);
        }
        assert!(first.aborted_transactions.as_ref().unwrap().is_empty());
        assert_eq!(first.preferred_read_replica.0, -1);
        let records = first.records.as_ref().unwrap();
        assert_eq!(
            records.len(),
            4 * batch.len(),
            "from the batch that holds 3"
        );
        assert_eq!(BatchHeader::parse(records).unwrap().base_offset, 2);
        assert_eq!(records[16..batch.len()], batch[16..]);
        assert_eq!((empty.error_code, empty.high_watermark), (0, 0));
        assert!(empty.records.as_ref().unwrap().is_empty());
        assert_eq!((missing.error_code, missing.high_watermark), (3, -1));
        assert_eq!(found.responses[1].partitions[0].error_code, 3);
    }
}

#[test]
fn the_first_batch_is_whole_and_the_limits_hold_for_the_rest() {
    let (store, batch) = store();
    let len = i32::try_from(batch.len()).unwrap();
    for (max_bytes, limit, batches) in [
        (1, 1 << 20, 1),
        (len * 2, 1 << 20, 2),
        (len * 3 - 1, 1 << 20, 2),
        (1 << 20, 1, 1),
        (1 << 20, batch.len() * 3, 3),
        (-1, 1 << 20, 1),
    ] {
        let wanted = [("t", vec![(1, 0, 1), (0, 0, max_bytes), (0, 0, max_bytes)])];
        let found = fetched(&*store, &fetch_frame(11, (0, -1), &wanted), limit);
        let partitions = &found.responses[0].partitions;
        let lens: Vec<usize> = partitions
            .iter()
            .map(|p| p.records.as_ref().unwrap().len() / batch.len())
            .collect();
        let again = if limit > 1000 && max_bytes >= len {
            batches
        } else {
            0
        };
        assert_eq!(lens, [0, batches, again], "{max_bytes} {limit}");
    }
}

#[test]
fn offsets_outside_of_the_log_and_unknown_epochs_are_refused() {
    let (store, _) = store();
    for (offset, code) in [(-1, 1), (11, 1), (i64::MAX, 1), (10, 0)] {
        let wanted = [("t", vec![(0, offset, 1)])];
        let found = fetched(&*store, &fetch_frame(12, (0, 0), &wanted), 1000);
        let partition = &found.responses[0].partitions[0];
        assert_eq!(partition.error_code, code, "{offset}");
        assert!(partition.records.as_ref().unwrap().is_empty());
    }
    assert_eq!(fetch::check_epoch(1).unwrap_err().code(), 75);
    assert_eq!(fetch::check_epoch(-2).unwrap_err().code(), 74);
}

#[test]
fn fetch_sessions_are_declined_and_unknown_ones_refused() {
    for version in 7..=12 {
        for (epoch, is_refused) in [(0, false), (-1, false), (1, true), (7, true)] {
            let frame = fetch_frame(version, (3, epoch), &[("t", vec![(0, 0, 1)])]);
            let (_, plan) = plan(&frame).unwrap();
            if let Plan::Reply(bytes) = plan {
                assert!(is_refused);
                let (_, found) = response::<FetchResponse>(bytes, version);
                assert_eq!((found.error_code, found.session_id), (70, 0));
            } else {
                assert!(!is_refused && matches!(plan, Plan::Fetch(_)), "{plan:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn fetch_requests_are_read_as_written(
        version in FETCH,
        wanted in prop::collection::vec(
            ("[a-zü.]{0,12}", prop::collection::vec(any::<(i32, i64, i32)>(), 0..4)),
            0..4,
        ),
    ) {
        let topics: Vec<(&str, _)> = wanted.iter().map(|(n, p)| (n.as_str(), p.clone())).collect();
        let frame = fetch_frame(version, (0, 0), &topics);
        let (_, plan) = plan(&frame).unwrap();
        let Plan::Fetch(found) = plan else { panic!("{plan:?}") };
        prop_assert_eq!((found.max_wait_ms, found.min_bytes, found.max_bytes), (500, 1, 1 << 20));
        let found: Vec<_> = found.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.into_iter();
            let partitions = partitions.map(|p| (p.index, p.offset, p.max_bytes));
            (topic.name, partitions.collect::<Vec<_>>())
        }).collect();
        prop_assert_eq!(found, wanted);
    }
}

#[test]
fn offsets_are_listed_by_time_in_every_version() {
    let (store, _) = store();
    let time = 1_700_000_000_000;
    for version in LIST_OFFSETS {
        let asked = [
            (0, -1, 0, 10, -1),
            (0, -2, 0, 0, -1),
            (0, time, 0, 0, time),
            (0, time + 1, 0, -1, -1),
            (1, -1, 0, 0, -1),
            (9, -1, 3, -1, -1),
            (0, -5, 35, -1, -1),
        ];
        let partitions = asked.iter().map(|(index, timestamp, ..)| {
            list_offsets_request::ListOffsetsPartition::default()
                .with_partition_index(*index)
                .with_timestamp(*timestamp)
        });
        let topic = list_offsets_request::ListOffsetsTopic::default()
            .with_name(TopicName(text("t")))
            .with_partitions(partitions.collect());
        let body = ListOffsetsRequest::default()
            .with_replica_id((-1).into())
            .with_isolation_level(i8::from(version >= 2))
            .with_topics(vec![topic]);
        let frame = request(ApiKey::ListOffsets, version, 4, |out| {
            body.encode(out, version).unwrap();
        });
        let (header, plan) = plan(&frame).unwrap();
        let Plan::ListOffsets(question) = plan else {
            panic!("{plan:?}")
        };
        let bytes = offsets::answer_at_time(&*store, &header, &question);
        let (_, found) = response::<ListOffsetsResponse>(bytes, version);
        for (found, asked) in found.topics[0].partitions.iter().zip(asked) {
            assert_eq!(found.partition_index, asked.0);
            assert_eq!(found.error_code, asked.2, "{asked:?}");
            assert_eq!(
                (found.offset, found.timestamp),
                (asked.3, asked.4),
                "{asked:?}"
            );
            if version >= 4 {
                assert_eq!(found.leader_epoch, if asked.3 >= 0 { 0 } else { -1 });
            }
        }
    }
}

#[test]
fn the_only_epoch_ends_where_the_log_does() {
    let (store, _) = store();
    for version in EPOCHS {
        let asked = [(0, 0, 0, 0, 10), (0, 1, 0, -1, -1), (9, 0, 3, -1, -1)];
        let partitions = asked.iter().map(|(index, epoch, ..)| {
            offset_for_leader_epoch_request::OffsetForLeaderPartition::default()
                .with_partition(*index)
                .with_current_leader_epoch(-1)
                .with_leader_epoch(*epoch)
        });
        let topic = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
            .with_topic(TopicName(text("t")))
            .with_partitions(partitions.collect());
        let body = OffsetForLeaderEpochRequest::default()
            .with_replica_id(if version >= 3 {
                (-1).into()
            } else {
                (-2).into()
            })
            .with_topics(vec![topic]);
        let frame = request(ApiKey::OffsetForLeaderEpoch, version, 4, |out| {
            body.encode(out, version).unwrap();
        });
        let (header, plan) = plan(&frame).unwrap();
        let Plan::EpochEnds(question) = plan else {
            panic!("{plan:?}")
        };
        let bytes = offsets::answer_epoch_end(&*store, &header, &question);
        let (_, found) = response::<OffsetForLeaderEpochResponse>(bytes, version);
        for (found, asked) in found.topics[0].partitions.iter().zip(asked) {
            assert_eq!(found.partition, asked.0);
            assert_eq!(found.error_code, asked.2);
            assert_eq!((found.leader_epoch, found.end_offset), (asked.3, asked.4));
        }
    }
}
