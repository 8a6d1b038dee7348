//! Quotas over real sockets: what a client is told, and what it gets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf as _;
use kafka_protocol::messages::{ApiKey, FetchResponse, MetadataResponse, ProduceResponse};
use kafka_protocol::protocol::{Decodable as _, Encodable as _};
use shared::units::ByteSize;
use tokio::time::{Instant, timeout};

use super::connections::{Client, LIMIT, node, node_with, until, until_count};
use super::logins::{authenticate, handshake, till};
use super::reading::fetch_frame;
use super::{batch, metadata_request, request};
use crate::access::{Access, Rules};
use crate::config::AccessConfig;
use crate::quota::{Limits, Quota};

fn two_kib_a_second() -> Arc<Quota> {
    let rate = Some(ByteSize::kib(2));
    Arc::new(Quota::new(Limits {
        producer_byte_rate: rate,
        consumer_byte_rate: rate,
        ..Limits::default()
    }))
}

/// Everybody, within limits.
fn everybody(limits: Limits) -> Access {
    let config = AccessConfig {
        anonymous: Some(Rules {
            limits,
            ..Rules::all()
        }),
        users: Vec::new(),
    };
    Access::new(&config).unwrap()
}

async fn produced(client: &mut Client) -> ProduceResponse {
    let (_, mut body) = client.receive().await;
    ProduceResponse::decode(&mut body, 8).unwrap()
}

#[tokio::test]
async fn a_producer_is_told_at_once_and_not_read_for_as_long() {
    let node = node(|config, _| config.quota = two_kib_a_second()).await;
    let mut client = node.client().await;
    let began = Instant::now();
    let records = batch(&[&"x".repeat(2_500)], None);
    client.send_produce(1, -1, 0, records).await;
    client.send_ping(2).await;
    let answer = produced(&mut client).await;
    let told = u64::try_from(answer.throttle_time_ms).unwrap();
    assert!((1..=600).contains(&told), "{told} ms");
    let partition = &answer.responses[0].partition_responses[0];
    assert_eq!((partition.error_code, partition.base_offset), (0, 0));
    assert_eq!(client.receive().await.0, 2);
    assert!(began.elapsed() >= Duration::from_millis(told), "{told} ms");
    assert_eq!(node.stats.throttled_ms.load(Ordering::Relaxed), told);
    client.send_produce(3, -1, 0, batch(&["x"], None)).await;
    let told = produced(&mut client).await.throttle_time_ms;
    assert!(
        told < 100,
        "the debt is paid, and {told} ms for these few bytes"
    );
}

/// What waits while nothing is read has waited: it is not held as long once more.
#[tokio::test]
async fn the_time_for_which_a_client_was_not_read_counts_for_its_next_request() {
    let longest = Duration::from_secs(2);
    let node = node(|config, _| {
        config.quota = two_kib_a_second();
        config.longest_mute = longest;
    })
    .await;
    let mut client = node.client().await;
    let records = batch(&[&"x".repeat(60_000)], None);
    client.send_produce(1, -1, 0, records).await;
    client.send_produce(2, -1, 0, batch(&["x"], None)).await;
    assert!(produced(&mut client).await.throttle_time_ms > 0);
    let began = Instant::now();
    produced(&mut client).await;
    let waited = began.elapsed();
    assert!(waited > longest / 2, "it is held, {waited:?}");
    assert!(waited < longest * 7 / 4, "only once, {waited:?}");
}

/// Those who wait hold the budget and the overdraft too, and would for 20 s.
#[tokio::test]
async fn who_waits_for_its_rate_gives_up_what_another_user_waits_for() {
    let limits = Limits {
        producer_byte_rate: Some(ByteSize::kib(2)),
        ..Limits::default()
    };
    let config = AccessConfig {
        anonymous: Some(Rules {
            limits,
            ..Rules::all()
        }),
        users: vec![till()],
    };
    let access = Access::new(&config).unwrap();
    let node = node_with(access, |_, limits| limits.max_unsynced_bytes = 50_000).await;
    let mut other = node.client().await;
    assert_eq!(handshake(&mut other, "PLAIN").await, 0);
    assert_eq!(authenticate(&mut other, b"\0till\0secret").await.0, 0);
    let of_size = |bytes| batch(&[&"x".repeat(bytes)], None);
    assert_eq!(node.client().await.produce(of_size(45_000)).await, 0);
    let budget = node.ingest.budget();
    until("the budget is given back", || budget.used() == 0).await;

    let mut throttled = Vec::new();
    for _ in 0..2 {
        let mut client = node.client().await;
        let taken = node.stats.requests.load(Ordering::Relaxed);
        client.send_produce(1, -1, 0, of_size(40_000)).await;
        until_count(&node.stats.requests, taken + 1).await;
        throttled.push(client);
    }
    assert!(budget.used() > 40_000);
    let batches = node.ingest.stats().batches.load(Ordering::Relaxed);
    assert_eq!(batches, 1, "both wait");
    let served = timeout(LIMIT / 2, other.produce(of_size(20_000))).await;
    assert_eq!(served.expect("it is served"), 0);
}

#[tokio::test]
async fn a_consumer_gets_no_more_before_its_debt_is_paid() {
    let large = batch(&[&"x".repeat(60_000)], None);
    let mut nodes = Vec::new();
    for quota in [two_kib_a_second(), Arc::default()] {
        let node = node(|config, _| config.quota = quota).await;
        let topic = node.ingest.topic("t", false).await.unwrap();
        let pending = node.ingest.append(&topic, 0, large.clone()).await.unwrap();
        pending.synced().await.unwrap();
        nodes.push(node);
    }
    let (held, free) = (&nodes[0], &nodes[1]);
    let fetch = |client: Client| async {
        let mut client = client;
        let frame = fetch_frame(11, (0, -1), &[("t", vec![(0, 0, 1 << 20)])]);
        client.send(&frame).await;
        let (_, mut body) = client.receive().await;
        let answer = FetchResponse::decode(&mut body, 11).unwrap();
        let records = answer.responses[0].partitions[0].records.clone();
        (
            answer.throttle_time_ms,
            records.map_or(0, |it| it.remaining()),
        )
    };
    let (told, bytes) = fetch(held.client().await).await;
    assert_eq!(
        (told, bytes),
        (20_000, large.len()),
        "as long as is ever told"
    );
    let (told, bytes) = fetch(held.client().await).await;
    assert!(told > 0 && bytes == 0, "another connection: {told} ms");
    let (told, bytes) = fetch(free.client().await).await;
    assert_eq!((told, bytes), (0, large.len()), "where there is no quota");
}

async fn metadata(client: &mut Client, topic: &str) -> i16 {
    let frame = request(ApiKey::Metadata, 4, 1, |out| {
        let asked = metadata_request(Some(&[topic]), true);
        asked.encode(out, 4).unwrap();
    });
    client.send(&frame).await;
    let (_, mut body) = client.receive().await;
    let answer = MetadataResponse::decode(&mut body, 4).unwrap();
    answer.topics[0].error_code
}

#[tokio::test]
async fn connections_beyond_their_number_are_closed_and_one_that_goes_makes_room() {
    let limits = Limits {
        max_connections: Some(1),
        ..Limits::default()
    };
    let node = node_with(everybody(limits), |_, _| {}).await;
    let mut first = node.client().await;
    assert_eq!(metadata(&mut first, "t").await, 0);
    let mut second = node.client().await;
    second.ping(1).await;
    second.send_produce(1, -1, 0, batch(&["a"], None)).await;
    second.expect_close().await;
    assert_eq!(node.stats.refused_connections.load(Ordering::Relaxed), 1);
    assert_eq!(metadata(&mut first, "t").await, 0);
    drop(first);
    let end = Instant::now() + LIMIT;
    while node.stats.open.load(Ordering::Relaxed) > 0 {
        assert!(Instant::now() < end, "a connection is still open");
        tokio::task::yield_now().await;
    }
    assert_eq!(metadata(&mut node.client().await, "t").await, 0);
}

#[tokio::test]
async fn topics_beyond_their_number_are_not_created() {
    let limits = Limits {
        max_topics: Some(1),
        ..Limits::default()
    };
    let node = node_with(everybody(limits), |_, _| {}).await;
    let mut client = node.client().await;
    for (topic, code) in [("t", 0), ("a", 0), ("a", 0), ("b", 29)] {
        assert_eq!(metadata(&mut client, topic).await, code, "{topic}");
    }
    node.ingest.delete_topic("a").await.unwrap();
    assert_eq!(
        metadata(&mut client, "b").await,
        0,
        "one that is gone counts no more"
    );
}
