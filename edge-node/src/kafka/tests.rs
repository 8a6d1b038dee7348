//! Tests of the protocol as a whole; kafka-protocol, generated from Kafka's own definitions, is the
//! other side.

mod admin;
mod connections;
mod fuzz;
mod golden;
mod groups;
mod logins;
mod oracle;
mod polling;
mod quotas;
mod reading;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, MetadataRequest, ProduceRequest, RequestHeader, TopicName, metadata_request,
    produce_request,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use shared::record::{BatchBuilder, Compression, ProducerStamp};

/// A request as it stands on the wire, without its length.
fn request(api: ApiKey, version: i16, correlation: i32, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    RequestHeader::default()
        .with_request_api_key(api as i16)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some("test".into()))
        .encode(&mut out, api.request_header_version(version))
        .unwrap();
    body(&mut out);
    out.freeze()
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn produce_request(
    acks: i16,
    transactional_id: Option<&str>,
    topics: &[(&str, Vec<(i32, Option<Bytes>)>)],
) -> ProduceRequest {
    let topics = topics.iter().map(|(name, partitions)| {
        let partitions = partitions.iter().map(|(index, records)| {
            produce_request::PartitionProduceData::default()
                .with_index(*index)
                .with_records(records.clone())
        });
        produce_request::TopicProduceData::default()
            .with_name(TopicName(text(name)))
            .with_partition_data(partitions.collect())
    });
    ProduceRequest::default()
        .with_transactional_id(transactional_id.map(|id| text(id).into()))
        .with_acks(acks)
        .with_timeout_ms(30_000)
        .with_topic_data(topics.collect())
}

fn metadata_request(topics: Option<&[&str]>, may_create: bool) -> MetadataRequest {
    MetadataRequest::default()
        .with_topics(topics.map(|names| {
            let names = names.iter();
            names
                .map(|name| {
                    metadata_request::MetadataRequestTopic::default()
                        .with_name(Some(TopicName(text(name))))
                })
                .collect()
        }))
        .with_allow_auto_topic_creation(may_create)
}

fn batch(values: &[&str], producer: Option<ProducerStamp>) -> Bytes {
    let mut builder = BatchBuilder::default();
    for value in values {
        builder.push(1_700_000_000_000, None, Some(value.as_bytes()), &[]);
    }
    builder.build_with(Compression::None, producer).unwrap()
}

fn framed(body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u32(u32::try_from(body.len()).unwrap());
    out.put_slice(body);
    out.freeze()
}
