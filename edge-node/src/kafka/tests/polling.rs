//! Fetches that wait for records, over real sockets.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, FetchRequest, FetchResponse, TopicName, fetch_request};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::time::{Instant, timeout};

use super::connections::{Client, LIMIT, Node, node, until, until_count};
use super::{batch, request, text};

const FOREVER_MS: i32 = 100_000;

impl Client {
    async fn send_fetch(&mut self, correlation: i32, offset: i64, min_bytes: i32, wait_ms: i32) {
        let partition = fetch_request::FetchPartition::default()
            .with_partition(0)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20);
        let topic = fetch_request::FetchTopic::default()
            .with_topic(TopicName(text("t")))
            .with_partitions(vec![partition]);
        let body = FetchRequest::default()
            .with_replica_id((-1).into())
            .with_max_wait_ms(wait_ms)
            .with_min_bytes(min_bytes)
            .with_max_bytes(1 << 20)
            .with_topics(vec![topic]);
        let frame = request(ApiKey::Fetch, 11, correlation, |out| {
            body.encode(out, 11).unwrap();
        });
        self.send(&frame).await;
    }

    /// Correlation id, error code and bytes of records of the next response.
    async fn fetched(&mut self) -> (i32, i16, usize) {
        let (correlation, mut body) = self.receive().await;
        let response = FetchResponse::decode(&mut body, 11).unwrap();
        let partition = &response.responses[0].partitions[0];
        let bytes = partition.records.as_ref().map_or(0, Bytes::len);
        (correlation, partition.error_code, bytes)
    }
}

/// A client that has sent a fetch, which waits, and a ping behind it.
async fn waiting(node: &Node, min_bytes: i32) -> Client {
    let mut client = node.known_client().await;
    let requests = &node.stats.requests;
    let before = requests.load(Ordering::Relaxed);
    client.send_fetch(1, 0, min_bytes, FOREVER_MS).await;
    client.send_ping(2).await;
    until_count(requests, before + 2).await;
    client
}

#[tokio::test]
async fn a_fetch_waits_for_records_and_holds_up_its_own_connection_only() {
    let node = node(|_, _| {}).await;
    let mut client = waiting(&node, 1).await;
    let mut other = node.client().await;
    assert_eq!(other.ping(5).await, 5);
    assert!(client.has_nothing());
    let sent = batch(&["a"], None);
    assert_eq!(other.produce(sent.clone()).await, 0);
    assert_eq!(client.fetched().await, (1, 0, sent.len()));
    assert_eq!(client.receive().await.0, 2, "in order");
    client.send_fetch(3, 0, 1, FOREVER_MS).await;
    assert_eq!(client.fetched().await, (3, 0, sent.len()), "at once");
}

#[tokio::test]
async fn a_fetch_waits_until_there_is_as_much_as_it_wants() {
    let node = node(|_, _| {}).await;
    let sent = batch(&["a"], None);
    let wanted = i32::try_from(3 * sent.len()).unwrap();
    let mut client = waiting(&node, wanted).await;
    let mut producer = node.client().await;
    for _ in 0..2 {
        assert_eq!(producer.produce(sent.clone()).await, 0);
        assert!(client.has_nothing());
    }
    assert_eq!(producer.produce(sent.clone()).await, 0);
    assert_eq!(client.fetched().await, (1, 0, 3 * sent.len()));
}

#[tokio::test]
async fn a_fetch_whose_time_is_up_gets_what_there_is() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    for (min_bytes, wait_ms) in [(1, 0), (1, 20), (0, FOREVER_MS)] {
        client.send_fetch(1, 0, min_bytes, wait_ms).await;
        assert_eq!(client.fetched().await, (1, 0, 0));
    }
    let sent = batch(&["a"], None);
    assert_eq!(client.produce(sent.clone()).await, 0);
    client.send_fetch(2, 0, 1 << 20, 20).await;
    assert_eq!(client.fetched().await, (2, 0, sent.len()));
    client.send_fetch(3, 9, 1, FOREVER_MS).await;
    assert_eq!(client.fetched().await, (3, 1, 0), "errors are told at once");
}

#[tokio::test]
async fn a_client_that_leaves_and_a_node_that_stops_end_the_wait() {
    let mut node = node(|_, _| {}).await;
    let client = waiting(&node, 1).await;
    drop(client);
    until("the connection is gone", || {
        node.stats.open.load(Ordering::Relaxed) == 0
    })
    .await;
    let mut client = waiting(&node, 1).await;
    let before = Instant::now();
    node.stop.cancel();
    assert_eq!(client.fetched().await, (1, 0, 0));
    assert_eq!(client.receive().await.0, 2);
    client.expect_close().await;
    timeout(LIMIT, node.task.join_next()).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(10));
}
