//! What kafka-protocol writes we read, and what we write it reads, in every version served.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, InitProducerIdRequest, InitProducerIdResponse,
    MetadataResponse, ProduceResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use proptest::prelude::*;
use shared::ids::TopicName;

use super::{metadata_request, produce_request, request, text};
use crate::config::TopicsConfig;
use crate::ingest::tests::any_topic;
use crate::kafka::api::Header;
use crate::kafka::dispatch::{Plan, plan};
use crate::kafka::error::ErrorCode;
use crate::kafka::metadata::{self, Cluster, TopicAnswer};
use crate::kafka::produce::{self, Acks, Outcome, TopicOutcome};
use crate::kafka::{api, producer_id};
use crate::store::{Appended, PartitionId, Topic};

/// Decodes a response of ours to its last byte.
pub(super) fn response<T: Decodable + HeaderVersion>(bytes: Vec<u8>, version: i16) -> (i32, T) {
    let mut bytes = Bytes::from(bytes);
    assert_eq!(bytes.get_u32() as usize, bytes.len());
    let correlation = bytes.get_i32();
    if T::header_version(version) == 1 {
        assert_eq!(bytes.get_u8(), 0, "no tagged fields");
    }
    let decoded = T::decode(&mut bytes, version).unwrap();
    assert!(bytes.is_empty(), "{bytes:?} left over");
    (correlation, decoded)
}

type Data = Vec<(String, Vec<(i32, Option<Vec<u8>>)>)>;

fn data() -> impl Strategy<Value = Data> {
    let records = prop::option::of(prop::collection::vec(any::<u8>(), 0..50));
    let partitions = prop::collection::vec((any::<i32>(), records), 0..4);
    prop::collection::vec(("[a-zü.]{0,12}", partitions), 0..4)
}

proptest! {
    #[test]
    fn produce_requests_are_read_as_written(
        version in 3_i16..=8,
        acks in prop::sample::select(vec![-1_i16, 1]),
        data in data(),
    ) {
        let topics: Vec<_> = data
            .iter()
            .map(|(name, partitions)| {
                let partitions = partitions.iter();
                (
                    name.as_str(),
                    partitions.map(|(i, r)| (*i, r.clone().map(Bytes::from))).collect(),
                )
            })
            .collect();
        let frame = request(ApiKey::Produce, version, 7, |out| {
            produce_request(acks, None, &topics).encode(out, version).unwrap();
        });
        let (header, plan) = plan(&frame).unwrap();
        prop_assert_eq!((header.correlation, header.version), (7, version));
        let Plan::Produce(found) = plan else { panic!("{plan:?}") };
        prop_assert_eq!(found.acks, Acks::Synced);
        prop_assert_eq!(found.timeout_ms, 30_000);
        let found: Data = found
            .topics
            .into_iter()
            .map(|t| {
                let partitions = t.partitions.into_iter();
                let partitions = partitions.map(|(i, r)| (i, r.map(|r| r.to_vec())));
                (t.name.to_owned(), partitions.collect())
            })
            .collect();
        prop_assert_eq!(found, data);
    }

    #[test]
    fn produce_responses_are_read_as_written(
        version in 3_i16..=8,
        outcomes in prop::collection::vec(
            ("[a-z]{1,9}", prop::collection::vec((any::<i32>(), prop::option::of(0_u64..1 << 60)), 0..5)),
            0..4,
        ),
    ) {
        let topics: Vec<TopicOutcome> = outcomes
            .iter()
            .map(|(name, partitions)| TopicOutcome {
                name: name.clone(),
                partitions: partitions
                    .iter()
                    .map(|(index, base)| {
                        let stored = |base: u64| Outcome::Stored(Appended {
                            base_offset: base,
                            is_duplicate: false,
                            log_start: base / 2,
                        });
                        let refused = || Outcome::Refused(ErrorCode::InvalidRecord, "why".into());
                        (*index, base.map_or_else(refused, stored))
                    })
                    .collect(),
            })
            .collect();
        let bytes = produce::encode(9, version, &topics, 7);
        let (correlation, found) = response::<ProduceResponse>(bytes, version);
        prop_assert_eq!(correlation, 9);
        prop_assert_eq!(found.throttle_time_ms, if version >= 1 { 7 } else { 0 });
        prop_assert_eq!(found.responses.len(), outcomes.len());
        for (topic, (name, partitions)) in found.responses.iter().zip(&outcomes) {
            prop_assert_eq!(topic.name.as_str(), name);
            prop_assert_eq!(topic.partition_responses.len(), partitions.len());
            for (found, (index, base)) in topic.partition_responses.iter().zip(partitions) {
                prop_assert_eq!(found.index, *index);
                prop_assert_eq!(found.error_code, if base.is_some() { 0 } else { 87 });
                let base = base.map_or(-1, |base| i64::try_from(base).unwrap());
                prop_assert_eq!(found.base_offset, base);
                prop_assert_eq!(found.log_append_time_ms, -1);
                if version >= 5 {
                    prop_assert_eq!(found.log_start_offset, if base < 0 { -1 } else { base / 2 });
                }
                if version >= 8 {
                    let message = found.error_message.as_ref().map(ToString::to_string);
                    prop_assert_eq!(message.as_deref(), (base < 0).then_some("why"));
                }
            }
        }
    }

    #[test]
    fn metadata_goes_both_ways(
        version in 0_i16..=8,
        names in prop::option::of(prop::collection::btree_set("[a-z]{1,9}", 1..5)),
        may_create: bool,
    ) {
        prop_assume!(version >= 1 || names.is_some());
        let list: Option<Vec<&str>> = names.as_ref().map(|n| n.iter().map(String::as_str).collect());
        let frame = request(ApiKey::Metadata, version, 3, |out| {
            let may_create = may_create || version < 4;
            metadata_request(list.as_deref(), may_create).encode(out, version).unwrap();
        });
        let (header, plan) = plan(&frame).unwrap();
        let Plan::Metadata(found) = plan else { panic!("{plan:?}") };
        let found_names: Option<Vec<&str>> = found.topics.map(|t| t.into_iter().collect());
        prop_assert_eq!(&found_names, &list);
        prop_assert_eq!(found.may_create, may_create || version < 4);

        let config: TopicsConfig = any_topic();
        let topic = Arc::new(Topic {
            name: TopicName::new("there").unwrap(),
            partitions: (0..4).map(PartitionId).collect(),
            rules: Arc::new(config.default.rules()),
        });
        let cluster = Cluster { host: "10.0.0.1", port: 9092, id: "site" };
        let answers = [
            TopicAnswer::Found(topic),
            TopicAnswer::Missing("not".into(), ErrorCode::UnknownTopicOrPartition),
        ];
        let bytes = metadata::encode(header.correlation, version, &cluster, &answers);
        let (correlation, found) = response::<MetadataResponse>(bytes, version);
        prop_assert_eq!(correlation, 3);
        prop_assert_eq!(found.brokers.len(), 1);
        prop_assert_eq!(found.brokers[0].host.as_str(), "10.0.0.1");
        prop_assert_eq!(found.brokers[0].port, 9092);
        if version >= 1 {
            prop_assert_eq!(found.controller_id, found.brokers[0].node_id);
        }
        if version >= 2 {
            prop_assert_eq!(found.cluster_id, Some(text("site")));
        }
        let codes: Vec<i16> = found.topics.iter().map(|t| t.error_code).collect();
        prop_assert_eq!(codes, vec![0, 3]);
        let there = &found.topics[0].partitions;
        let indexes: Vec<i32> = there.iter().map(|p| p.partition_index).collect();
        prop_assert_eq!(indexes, vec![0, 1, 2, 3]);
        for partition in there {
            prop_assert_eq!(partition.leader_id, found.brokers[0].node_id);
            prop_assert_eq!(&partition.replica_nodes, &partition.isr_nodes);
        }
        prop_assert!(found.topics[1].partitions.is_empty());
    }

    #[test]
    fn producer_ids_go_both_ways(version in 0_i16..=1, id in 0_i64.., transactional: bool) {
        let frame = request(ApiKey::InitProducerId, version, 5, |out| {
            InitProducerIdRequest::default()
                .with_transactional_id(transactional.then(|| text("t").into()))
                .encode(out, version)
                .unwrap();
        });
        let (header, plan) = plan(&frame).unwrap();
        let bytes = match plan {
            Plan::ProducerId if !transactional => producer_id::encode(header.correlation, Ok(id)),
            Plan::Reply(bytes) if transactional => bytes,
            other @ (Plan::ProducerId
            | Plan::Reply(_)
            | Plan::Metadata(_)
            | Plan::Fetch(_)
            | Plan::ListOffsets(_)
            | Plan::EpochEnds(_)
            | Plan::Admin(_)
            | Plan::Cluster(_)
            | Plan::Coordinators(_)
            | Plan::Group(_)
            | Plan::Handshake(_)
            | Plan::Authenticate(_)
            | Plan::Produce(_)) => panic!("{other:?}"),
        };
        let (_, found) = response::<InitProducerIdResponse>(bytes, version);
        let (code, id, epoch) = if transactional { (53, -1, -1) } else { (0, id, 0) };
        prop_assert_eq!(found.error_code, code);
        prop_assert_eq!(found.producer_id.0, id);
        prop_assert_eq!(found.producer_epoch, epoch);
    }
}

#[test]
fn api_versions_are_told_in_every_version_and_refused_in_version_0() {
    for version in 0..=5 {
        let asked = version.min(4);
        let mut frame = request(ApiKey::ApiVersions, asked, 1, |out| {
            ApiVersionsRequest::default()
                .with_client_software_name(text("t"))
                .with_client_software_version(text("1"))
                .encode(out, asked)
                .unwrap();
        })
        .to_vec();
        frame[3] = version.to_be_bytes()[1];
        let frame = Bytes::from(frame);
        let (_, Plan::Reply(bytes)) = plan(&frame).unwrap() else {
            panic!("an answer at once");
        };
        let (answered, code) = if version <= 3 { (version, 0) } else { (0, 35) };
        let (_, found) = response::<ApiVersionsResponse>(bytes, answered);
        assert_eq!(
            (found.error_code, found.api_keys.len()),
            (code, api::VERSIONS.len())
        );
        let produce = found.api_keys.iter().find(|api| api.api_key == 0).unwrap();
        assert_eq!((produce.min_version, produce.max_version), (0, 8));
    }
}

#[test]
fn every_api_that_is_advertised_stands_in_kafkas_list() {
    for (api, min, max) in api::VERSIONS {
        let key = ApiKey::try_from(api as i16).unwrap();
        let known = key.valid_versions();
        assert!(max <= known.max && min <= max, "{key:?}");
        for version in min..=max {
            let header = Header {
                api: Some(api),
                key: api as i16,
                version,
                correlation: 0,
            };
            // the flexible versions have another header
            let is_flexible = key.request_header_version(version) >= 2;
            assert_eq!(header.is_flexible(), is_flexible, "{key:?} {version}");
        }
    }
}
