//! Administration against kafka-protocol, over a store in memory.

use bytes::Bytes;
use kafka_protocol::messages::{
    ApiKey, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest,
    CreateTopicsResponse, DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, DescribeClusterRequest, DescribeClusterResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    TopicName, create_partitions_request, create_topics_request, delete_records_request,
    describe_configs_request, incremental_alter_configs_request,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use shared::record::Compression;

use super::oracle::response;
use super::{request, text};
use crate::access::{Principal, Rules};
use crate::ingest::tests::fake::FakeStore;
use crate::ingest::tests::{any_topic, batch_of};
use crate::ingest::{Ingest, IngestLimits};
use crate::kafka::admin::encode_cluster;
use crate::kafka::dispatch::{Plan, plan};
use crate::kafka::metadata::Cluster;

fn door() -> Ingest {
    Ingest::new(FakeStore::shared(), any_topic(), IngestLimits::default())
}

async fn asked<Q: Encodable, A: Decodable + HeaderVersion>(
    ingest: &Ingest,
    api: ApiKey,
    version: i16,
    body: &Q,
) -> A {
    let frame = request(api, version, 3, |out| body.encode(out, version).unwrap());
    let (header, plan) = plan(&frame).unwrap();
    let Plan::Admin(asked) = plan else {
        panic!("{plan:?}")
    };
    let user = Principal::anonymous(Rules::all());
    let bytes = asked.answer(ingest, &header, &user).await;
    response(bytes, version).1
}

fn new_topic(name: &str, partitions: i32, replicas: i16) -> create_topics_request::CreatableTopic {
    create_topics_request::CreatableTopic::default()
        .with_name(TopicName(text(name)))
        .with_num_partitions(partitions)
        .with_replication_factor(replicas)
}

fn with_setting(
    topic: create_topics_request::CreatableTopic,
    name: &str,
    value: &str,
) -> create_topics_request::CreatableTopic {
    let config = create_topics_request::CreatableTopicConfig::default()
        .with_name(text(name))
        .with_value(Some(text(value)));
    topic.with_configs(vec![config])
}

fn with_brokers(
    topic: create_topics_request::CreatableTopic,
    brokers: &[i32],
) -> create_topics_request::CreatableTopic {
    let assignments = brokers.iter().zip(0..).map(|(broker, index)| {
        create_topics_request::CreatableReplicaAssignment::default()
            .with_partition_index(index)
            .with_broker_ids(vec![(*broker).into()])
    });
    topic.with_assignments(assignments.collect())
}

#[tokio::test]
async fn topics_are_created_in_every_version_and_refused_with_kafkas_codes() {
    for version in 2..=4 {
        let ingest = door();
        let topics = vec![
            new_topic("a", 3, 1),
            new_topic("b", -1, -1),
            with_brokers(new_topic("c", -1, -1), &[1, 1]),
            with_setting(new_topic("d", 1, 1), "retention.ms", "60000"),
            new_topic("e", 0, 1),
            new_topic("f", 1, 3),
            with_brokers(new_topic("g", -1, -1), &[1, 2]),
            with_brokers(new_topic("h", 2, -1), &[1, 1]),
            with_setting(new_topic("i", 1, 1), "no.such.key", "1"),
            new_topic("not a name", 1, 1),
            new_topic("__own", 1, 1),
            new_topic("j", 1, 1),
            new_topic("j", 1, 1),
        ];
        let codes = [0, 0, 0, 0, 37, 38, 39, 42, 40, 17, 44, 42, 42];
        let body = |is_trial| {
            CreateTopicsRequest::default()
                .with_topics(topics.clone())
                .with_timeout_ms(5)
                .with_validate_only(is_trial)
        };
        for is_trial in [true, false] {
            let found: CreateTopicsResponse =
                asked(&ingest, ApiKey::CreateTopics, version, &body(is_trial)).await;
            let told: Vec<i16> = found.topics.iter().map(|topic| topic.error_code).collect();
            assert_eq!(told, codes);
            for topic in &found.topics {
                assert_eq!(topic.error_message.is_some(), topic.error_code != 0);
            }
            let made: Vec<usize> = ingest.topics().iter().map(|t| t.partitions.len()).collect();
            assert_eq!(made, if is_trial { vec![] } else { vec![3, 4, 2, 1] });
        }
        let again: CreateTopicsResponse =
            asked(&ingest, ApiKey::CreateTopics, version, &body(false)).await;
        assert_eq!(again.topics[0].error_code, 36);
        assert_eq!(ingest.topics()[3].rules.retention_ms, Some(60_000));
    }
}

#[tokio::test]
async fn topics_grow_in_every_version() {
    for version in 0..=3 {
        let ingest = door();
        ingest.topic("a", true).await.unwrap();
        let topics = [("a", 6), ("b", 6), ("a2", 1)].map(|(name, count)| {
            create_partitions_request::CreatePartitionsTopic::default()
                .with_name(TopicName(text(name)))
                .with_count(count)
                .with_assignments(None)
        });
        let body = CreatePartitionsRequest::default().with_topics(topics.to_vec());
        let found: CreatePartitionsResponse =
            asked(&ingest, ApiKey::CreatePartitions, version, &body).await;
        let told: Vec<i16> = found.results.iter().map(|topic| topic.error_code).collect();
        assert_eq!(told, [0, 3, 3]);
        assert_eq!(ingest.topics()[0].partitions.len(), 6);
        let found: CreatePartitionsResponse =
            asked(&ingest, ApiKey::CreatePartitions, version, &body).await;
        assert_eq!(found.results[0].error_code, 37, "no increase");
    }
}

#[tokio::test]
async fn records_and_topics_are_deleted_in_every_version_and_never_silently() {
    for version in 0..=2 {
        let ingest = door();
        let topic = ingest.topic("a", true).await.unwrap();
        for value in [b"one", b"two"] {
            let batch = batch_of(&[value], Compression::None);
            let pending = ingest.append(&topic, 0, batch).await.unwrap();
            pending.synced().await.unwrap();
        }
        let names = vec![TopicName(text("a")), TopicName(text("b"))];
        let delete = DeleteTopicsRequest::default().with_topic_names(names);
        let found: DeleteTopicsResponse =
            asked(&ingest, ApiKey::DeleteTopics, version + 3, &delete).await;
        let told: Vec<i16> = found
            .responses
            .iter()
            .map(|topic| topic.error_code)
            .collect();
        assert_eq!(told, [44, 3]);
        if version + 3 >= 5 {
            let why = found.responses[0].error_message.as_ref().unwrap();
            assert!(why.starts_with("2 records"), "{why}");
        }
        for (offset, low, code) in [(1, 1, 0), (9, -1, 1), (-5, -1, 1), (-1, 2, 0)] {
            let partition = delete_records_request::DeleteRecordsPartition::default()
                .with_partition_index(0)
                .with_offset(offset);
            let of_topic = delete_records_request::DeleteRecordsTopic::default()
                .with_name(TopicName(text("a")))
                .with_partitions(vec![partition]);
            let body = DeleteRecordsRequest::default().with_topics(vec![of_topic]);
            let found: DeleteRecordsResponse =
                asked(&ingest, ApiKey::DeleteRecords, version, &body).await;
            let partition = &found.topics[0].partitions[0];
            assert_eq!((partition.low_watermark, partition.error_code), (low, code));
        }
        let found: DeleteTopicsResponse =
            asked(&ingest, ApiKey::DeleteTopics, version + 1, &delete).await;
        assert_eq!(found.responses[0].error_code, 0);
        assert!(ingest.topics().is_empty());
    }
}

fn described(name: &str, kind: i8, keys: Option<&[&str]>) -> DescribeConfigsRequest {
    let keys = keys.map(|keys| keys.iter().map(|key| text(key)).collect());
    let resource = describe_configs_request::DescribeConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_configuration_keys(keys);
    DescribeConfigsRequest::default()
        .with_resources(vec![resource])
        .with_include_synonyms(true)
}

fn altered(
    name: &str,
    kind: i8,
    changes: &[(&str, i8, Option<&str>)],
) -> IncrementalAlterConfigsRequest {
    let configs = changes.iter().map(|(key, operation, value)| {
        incremental_alter_configs_request::AlterableConfig::default()
            .with_name(text(key))
            .with_config_operation(*operation)
            .with_value(value.map(text))
    });
    let resource = incremental_alter_configs_request::AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_configs(configs.collect());
    IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
}

#[tokio::test]
async fn settings_are_described_in_every_version() {
    let ingest = door();
    ingest.topic("a", true).await.unwrap();
    for version in 1..=4 {
        let all: DescribeConfigsResponse = asked(
            &ingest,
            ApiKey::DescribeConfigs,
            version,
            &described("a", 2, None),
        )
        .await;
        let result = &all.results[0];
        assert_eq!((result.error_code, result.resource_type), (0, 2));
        let value = |name: &str| {
            let mut configs = result.configs.iter();
            let found = configs.find(|config| config.name.as_str() == name).unwrap();
            assert_eq!(found.synonyms.len(), 1);
            found.value.as_ref().unwrap().to_string()
        };
        assert_eq!(value("max.message.bytes"), "1048588");
        assert_eq!(value("retention.ms"), "-1");
        assert_eq!(value("kedge.class"), "normal");
        let some: DescribeConfigsResponse = asked(
            &ingest,
            ApiKey::DescribeConfigs,
            version,
            &described("a", 2, Some(&["retention.ms", "other"])),
        )
        .await;
        assert_eq!(some.results[0].configs.len(), 1);
        for (name, kind, code) in [("b", 2, 3), ("1", 4, 0), ("2", 4, 42), ("x", 8, 42)] {
            let found: DescribeConfigsResponse = asked(
                &ingest,
                ApiKey::DescribeConfigs,
                version,
                &described(name, kind, None),
            )
            .await;
            assert_eq!(found.results[0].error_code, code, "{name} {kind}");
        }
    }
}

#[tokio::test]
async fn settings_are_changed_in_every_version() {
    for version in 0..=1 {
        let ingest = door();
        ingest.topic("a", true).await.unwrap();
        let set = ("retention.ms", 0, Some("90000"));
        for (name, kind, changes, code) in [
            ("a", 2, vec![set, ("segment.ms", 0, Some("5"))], 0),
            ("a", 2, vec![("retention.ms", 0, Some("x"))], 40),
            ("a", 2, vec![("retention.ms", 0, None)], 42),
            ("a", 2, vec![("cleanup.policy", 2, Some("compact"))], 40),
            ("a", 2, vec![("retention.ms", 9, None)], 42),
            (
                "a",
                2,
                vec![("flush.ms", 0, Some("1")), ("nope", 1, None)],
                40,
            ),
            ("b", 2, vec![set], 3),
            ("1", 4, vec![set], 44),
            ("x", 8, vec![set], 42),
        ] {
            let found: IncrementalAlterConfigsResponse = asked(
                &ingest,
                ApiKey::IncrementalAlterConfigs,
                version,
                &altered(name, kind, &changes),
            )
            .await;
            let told = &found.responses[0];
            assert_eq!(told.error_code, code, "{name} {changes:?}");
            assert_eq!(told.error_message.is_some(), code != 0);
        }
        assert_eq!(ingest.topics()[0].rules.retention_ms, Some(90_000));
        assert_eq!(ingest.overrides("a").value("flush.ms"), None);
        let _unset: IncrementalAlterConfigsResponse = asked(
            &ingest,
            ApiKey::IncrementalAlterConfigs,
            version,
            &altered("a", 2, &[("retention.ms", 1, None)]),
        )
        .await;
        assert_eq!(ingest.topics()[0].rules.retention_ms, None);
    }
}

#[test]
fn the_cluster_is_one_broker() {
    let cluster = Cluster {
        host: "10.0.0.1",
        port: 9092,
        id: "site",
    };
    for (version, endpoints, code) in [(0, 1, 0), (1, 1, 0), (1, 2, 115)] {
        let mut body = DescribeClusterRequest::default();
        if version >= 1 {
            body = body.with_endpoint_type(endpoints);
        }
        let frame: Bytes = request(ApiKey::DescribeCluster, version, 3, |out| {
            body.encode(out, version).unwrap();
        });
        let (header, plan) = plan(&frame).unwrap();
        let Plan::Cluster(found) = plan else {
            panic!("{plan:?}")
        };
        assert_eq!(found, endpoints);
        let bytes = encode_cluster(&header, found, &cluster);
        let (_, found) = response::<DescribeClusterResponse>(bytes, version);
        assert_eq!(
            (found.error_code, found.cluster_id.as_str()),
            (code, "site")
        );
        assert_eq!(found.brokers.len(), usize::from(code == 0));
    }
}
