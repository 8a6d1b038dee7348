//! Fetches that wait for records, over real sockets.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, FetchRequest, FetchResponse, TopicName, fetch_request};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::time::{Instant, timeout};

use super::connections::{Client, LIMIT, Node, node, until, until_count};
use super::{batch, request, text};
use crate::kafka::{KafkaConfig, Pace};
use crate::store::Store as _;

const FOREVER_MS: i32 = 100_000;

impl Client {
    async fn send_fetch(&mut self, correlation: i32, offset: i64, min_bytes: i32, wait_ms: i32) {
        let most = (min_bytes, 1 << 20);
        self.send_fetch_of(correlation, offset, most, wait_ms).await;
    }

    /// Fetches at least and at most so many bytes.
    async fn send_fetch_of(
        &mut self,
        correlation: i32,
        offset: i64,
        (min_bytes, max_bytes): (i32, i32),
        wait_ms: i32,
    ) {
        let partition = fetch_request::FetchPartition::default()
            .with_partition(0)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(max_bytes);
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
        let (correlation, error, records) = self.fetched_records().await;
        (correlation, error, records.len())
    }

    async fn fetched_records(&mut self) -> (i32, i16, Bytes) {
        let (correlation, mut body) = self.receive().await;
        let response = FetchResponse::decode(&mut body, 11).unwrap();
        let partition = response.responses[0].partitions[0].clone();
        let records = partition.records.unwrap_or_default();
        (correlation, partition.error_code, records)
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

#[tokio::test]
async fn a_fetch_that_finds_the_memory_taken_is_answered_without_records() {
    let patience = Duration::from_millis(20);
    let node = node(|config, _| config.fetch_patience = patience).await;
    let sent = batch(&["a"], None);
    let mut client = node.client().await;
    assert_eq!(client.produce(sent.clone()).await, 0);
    let all = node.egress.allow(usize::MAX, LIMIT).await.unwrap();
    client.send_fetch(1, 0, 1, FOREVER_MS).await;
    assert_eq!(client.fetched().await, (1, 0, 0));
    // who is at the end of the log needs none
    client.send_fetch(2, 1, 1, 20).await;
    assert_eq!(client.fetched().await, (2, 0, 0));
    assert_eq!(node.egress.used(), all.bytes(), "nothing beyond it");
    drop(all);
    client.send_fetch(3, 0, 1, FOREVER_MS).await;
    assert_eq!(client.fetched().await, (3, 0, sent.len()));
    until("it is given back", || node.egress.used() == 0).await;
}

#[tokio::test]
async fn a_fetch_waits_for_memory_that_others_give_back() {
    let node = node(|config, _| config.fetch_patience = LIMIT).await;
    let sent = batch(&["a"], None);
    let mut client = node.client().await;
    assert_eq!(client.produce(sent.clone()).await, 0);
    let all = node.egress.allow(usize::MAX, LIMIT).await.unwrap();
    client.send_fetch(1, 0, 1, 0).await;
    // others are served meanwhile
    assert_eq!(node.client().await.ping(5).await, 5);
    assert!(client.has_nothing());
    drop(all);
    assert_eq!(client.fetched().await, (1, 0, sent.len()));
}

/// Ten batches of a record each, and the bytes of one.
async fn ten_batches(node: &Node) -> i32 {
    let mut producer = node.client().await;
    let sent = batch(&["value"], None);
    for _ in 0..10 {
        assert_eq!(producer.produce(sent.clone()).await, 0);
    }
    i32::try_from(sent.len()).unwrap()
}

/// Base offset of the only batch.
fn base(records: &Bytes) -> i64 {
    i64::from_be_bytes(*records.first_chunk().unwrap())
}

/// A client that has fetched the first two of ten batches, so that the next is read ahead; and the bytes of one.
async fn catching_up(node: &Node) -> (Client, i32) {
    let one = ten_batches(node).await;
    let mut client = node.client().await;
    for offset in [0, 1] {
        client.send_fetch_of(1, offset, (1, one), 0).await;
        assert_eq!(base(&client.fetched_records().await.2), offset);
    }
    (client, one)
}

#[tokio::test]
async fn who_catches_up_gets_every_batch_once_and_the_next_is_read_ahead() {
    let node = node(|config, _| config.ahead_kept = LIMIT).await;
    let one = ten_batches(&node).await;
    let fetches = || node.store.fetches.load(Ordering::Relaxed);
    let mut client = node.client().await;
    for offset in 0..10 {
        client.send_fetch_of(1, offset, (1, one), FOREVER_MS).await;
        let (_, error, records) = client.fetched_records().await;
        assert_eq!((error, base(&records)), (0, offset));
        assert_eq!(records.len(), usize::try_from(one).unwrap());
    }
    assert_eq!(fetches(), 10, "what was read ahead was not read again");
    client.send_fetch_of(2, 10, (1, one), 0).await;
    assert_eq!(client.fetched().await, (2, 0, 0));
    assert_eq!(fetches(), 10, "the end of a log is known from memory");
    assert_eq!(node.egress.used(), 0);
}

#[tokio::test]
async fn what_was_read_ahead_in_vain_is_given_back_and_not_sent() {
    let node = node(|_, _| {}).await;
    let (mut client, one) = catching_up(&node).await;
    // elsewhere than it was expected
    client.send_fetch_of(2, 7, (1, one), 0).await;
    assert_eq!(base(&client.fetched_records().await.2), 7);
    client.send_fetch_of(3, 8, (1, one), 0).await;
    assert_eq!(base(&client.fetched_records().await.2), 8);
    // for less than it is, and for more
    client.send_fetch_of(4, 9, (1, 1), 0).await;
    assert_eq!(base(&client.fetched_records().await.2), 9);
    for offset in [0, 1] {
        client.send_fetch_of(5, offset, (1, one), 0).await;
        assert_eq!(base(&client.fetched_records().await.2), offset);
    }
    client.send_fetch_of(6, 2, (2 * one, 3 * one), 0).await;
    let records = client.fetched_records().await.2;
    assert_eq!(
        (base(&records), records.len()),
        (2, usize::try_from(3 * one).unwrap())
    );
    until("the memory is given back", || node.egress.used() == 0).await;
}

#[tokio::test]
async fn what_is_deleted_is_not_sent_although_it_was_read_ahead() {
    let node = node(|_, _| {}).await;
    let (mut client, one) = catching_up(&node).await;
    let fetches = || node.store.fetches.load(Ordering::Relaxed);
    until("the next is read", || fetches() == 3).await;
    let id = node.ingest.topics()[0].partitions[0];
    node.store.delete_records(id, 5).unwrap();
    client.send_fetch_of(2, 2, (1, one), 0).await;
    let (_, error, records) = client.fetched_records().await;
    assert!(error == 1 || base(&records) == 5, "{error} {records:?}");
}

/// A client that asks for more than it takes, so that an answer waits for it.
async fn stuck(node: &Node) -> Client {
    let large = batch(&[&"x".repeat(900_000)], None);
    assert_eq!(node.client().await.produce(large).await, 0);
    let mut client = node.client().await;
    for correlation in 0..30 {
        client.send_fetch(correlation, 0, 1, 0).await;
    }
    let sent = &node.stats.bytes_out;
    let (mut before, mut since) = (0, Instant::now());
    // buffers of the system take some; that they are full is only seen by nothing moving
    let is_stuck = || {
        let now = sent.load(Ordering::Relaxed);
        if now <= 900_000 || now != before || node.egress.used() <= 900_000 {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(150)
    };
    until("the client is stuck", is_stuck).await;
    client
}

fn soon(config: &mut KafkaConfig) {
    config.answer_pace_when_short = Pace {
        grace: Duration::from_millis(50),
        bytes_per_s: 1 << 30,
    };
}

#[tokio::test]
async fn an_answer_that_is_not_taken_gives_up_the_memory_that_others_wait_for() {
    let node = node(|config, _| soon(config)).await;
    let client = stuck(&node).await;
    assert_eq!(node.stats.failed.load(Ordering::Relaxed), 0, "nobody waits");
    let all = node.egress.allow(usize::MAX, LIMIT).await;
    assert!(all.is_some());
    until_count(&node.stats.failed, 1).await;
    drop(client);
}

/// The requests behind the answer hold the budget and the overdraft too.
#[tokio::test]
async fn an_answer_that_is_not_taken_gives_up_what_producers_wait_for() {
    let node = node(|config, limits| {
        soon(config);
        limits.max_unsynced_bytes = 50_000;
    })
    .await;
    let mut client = stuck(&node).await;
    let budget = node.ingest.budget();
    until("the budget is given back", || budget.used() < 10_000).await;
    for correlation in 30..32 {
        let records = batch(&[&"x".repeat(40_000)], None);
        let before = node.stats.requests.load(Ordering::Relaxed);
        client.send_produce(correlation, -1, 0, records).await;
        until_count(&node.stats.requests, before + 1).await;
    }
    assert!(budget.used() > 40_000);
    let mut other = node.client().await;
    let records = batch(&[&"x".repeat(20_000)], None);
    let served = timeout(LIMIT, other.produce(records)).await;
    assert_eq!(served.expect("it is served"), 0);
}

#[tokio::test]
async fn while_others_wait_for_memory_answers_are_small() {
    let node = node(|config, _| config.fetch_patience = LIMIT).await;
    let mut producer = node.client().await;
    let one = batch(&[&"x".repeat(100_000)], None);
    for _ in 0..6 {
        assert_eq!(producer.produce(one.clone()).await, 0);
    }
    let limits = *node.egress.limits();
    let all = node.egress.allow(usize::MAX, LIMIT).await;
    let mut first = node.client().await;
    first.send_fetch(1, 0, 1, 0).await;
    until("it waits", || node.egress.is_short()).await;
    let mut second = node.client().await;
    second.send_fetch(2, 0, 1, 0).await;
    until("it waits too", || node.egress.waiting() == 2).await;
    drop(all);
    assert_eq!(first.fetched().await, (1, 0, 6 * one.len()));
    let (_, error, bytes) = second.fetched().await;
    assert!(
        error == 0 && (1..=limits.max_bytes / 64).contains(&bytes),
        "{bytes}"
    );
}
