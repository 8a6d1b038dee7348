//! Real sockets on the loopback, a listener, and a store that answers as the test says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, InitProducerIdRequest, MetadataResponse, ProduceResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use shared::record::ProducerStamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{batch, framed, metadata_request, produce_request, request};
use crate::access::Access;
use crate::egress::{Egress, EgressLimits};
use crate::ingest::tests::any_topic;
use crate::ingest::tests::fake::{FakeStore, Mode};
use crate::ingest::{Ingest, IngestLimits};
use crate::kafka::frame::Pace;
use crate::kafka::group::Limits;
use crate::kafka::groups::Groups;
use crate::kafka::{KafkaConfig, KafkaStats, Listener, Services};
use crate::store::AppendError;

pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) struct Node {
    pub(super) store: Arc<FakeStore>,
    pub(super) egress: Egress,
    pub(super) ingest: Ingest,
    pub(super) stats: Arc<KafkaStats>,
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinSet<()>,
    _groups: JoinSet<()>,
}

pub(super) async fn node(change: impl FnOnce(&mut KafkaConfig, &mut IngestLimits)) -> Node {
    node_with(Access::open(), change).await
}

pub(super) async fn node_with(
    access: Access,
    change: impl FnOnce(&mut KafkaConfig, &mut IngestLimits),
) -> Node {
    let mut config = KafkaConfig::new("127.0.0.1:0".parse().unwrap());
    config.full_delay = Duration::from_millis(1);
    let mut limits = IngestLimits::default();
    change(&mut config, &mut limits);
    let store = FakeStore::shared();
    let ingest = Ingest::new(store.clone(), any_topic(), limits);
    ingest.topic("t", true).await.unwrap();
    let egress = Egress::new(store.clone(), EgressLimits::default());
    let stats = Arc::new(KafkaStats::default());
    let opened = Groups::open(store.clone(), Limits::default(), Arc::clone(&stats));
    let (groups, groups_task) = opened.unwrap();
    let services = Services {
        ingest: ingest.clone(),
        egress: egress.clone(),
        groups,
        access: Arc::new(access),
        stats: Arc::clone(&stats),
    };
    let listener = Listener::bind(config, services).await.unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(listener.run(stop.clone()));
    let mut groups = JoinSet::new();
    groups.spawn(groups_task.run(stop.clone()));
    Node {
        store,
        egress,
        ingest,
        stats,
        address,
        stop,
        task,
        _groups: groups,
    }
}

impl Node {
    pub(super) async fn client(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// A client that has had an answer, so that the listener knows it.
    pub(super) async fn known_client(&self) -> Client {
        let mut client = self.client().await;
        client.ping(0).await;
        client
    }

    fn stored(&self) -> Vec<Bytes> {
        let topic = self.ingest.topics()[0].clone();
        let partitions = topic.partitions.iter();
        partitions.flat_map(|id| self.store.batches(*id)).collect()
    }
}

pub(super) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_true() {
        assert!(Instant::now() < end, "{what}");
        tokio::task::yield_now().await;
    }
}

pub(super) async fn until_count(counter: &AtomicU64, at_least: u64) {
    until("counter", || counter.load(Ordering::Relaxed) >= at_least).await;
}

pub(super) struct Client(TcpStream);

impl Client {
    pub(super) async fn send(&mut self, body: &[u8]) {
        self.0.write_all(&framed(body)).await.unwrap();
    }

    /// The next response: its correlation id and the rest.
    pub(super) async fn receive(&mut self) -> (i32, Bytes) {
        let read = async {
            let len = self.0.read_u32().await.unwrap();
            let mut body = vec![0; usize::try_from(len).unwrap()];
            self.0.read_exact(&mut body).await.unwrap();
            let mut body = Bytes::from(body);
            (body.get_i32(), body)
        };
        timeout(LIMIT, read).await.expect("a response")
    }

    /// Asks for the API versions and returns the correlation id of what comes back.
    pub(super) async fn ping(&mut self, correlation: i32) -> i32 {
        self.send_ping(correlation).await;
        self.receive().await.0
    }

    pub(super) async fn send_ping(&mut self, correlation: i32) {
        let frame = request(ApiKey::ApiVersions, 0, correlation, |out| {
            ApiVersionsRequest::default().encode(out, 0).unwrap();
        });
        self.send(&frame).await;
    }

    pub(super) async fn send_produce(
        &mut self,
        correlation: i32,
        acks: i16,
        index: i32,
        records: Bytes,
    ) {
        let data = [("t", vec![(index, Some(records))])];
        let frame = request(ApiKey::Produce, 8, correlation, |out| {
            produce_request(acks, None, &data).encode(out, 8).unwrap();
        });
        self.send(&frame).await;
    }

    /// Error code and base offset of the next response, which answers one batch.
    pub(super) async fn produced(&mut self) -> (i32, i16, i64) {
        let (correlation, mut body) = self.receive().await;
        let response = ProduceResponse::decode(&mut body, 8).unwrap();
        let partition = &response.responses[0].partition_responses[0];
        (correlation, partition.error_code, partition.base_offset)
    }

    pub(super) async fn produce(&mut self, records: Bytes) -> i16 {
        self.send_produce(1, -1, 0, records).await;
        self.produced().await.1
    }

    pub(super) async fn skip(&mut self, bytes: usize) {
        let mut skipped = vec![0; bytes];
        let read = self.0.read_exact(&mut skipped);
        timeout(LIMIT, read).await.expect("bytes").unwrap();
    }

    pub(super) async fn expect_close(&mut self) {
        let mut rest = [0; 1000];
        match timeout(LIMIT, self.0.read(&mut rest))
            .await
            .expect("an end")
        {
            Ok(count) => assert_eq!(count, 0, "{:?}", &rest[..count]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    pub(super) fn has_nothing(&self) -> bool {
        let mut byte = [0];
        self.0
            .try_read(&mut byte)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

#[tokio::test]
async fn an_acknowledgement_waits_for_the_sync() {
    for acks in [1, -1] {
        let node = node(|_, _| {}).await;
        node.store.set(Mode::Hold);
        let mut client = node.known_client().await;
        client.send_produce(7, acks, 0, batch(&["a"], None)).await;
        until("the batch is with the store", || node.store.held() == 1).await;
        // others are served meanwhile
        assert_eq!(node.client().await.ping(1).await, 1);
        assert!(client.has_nothing());
        node.store.release();
        assert_eq!(client.produced().await, (7, 0, 0));
    }
}

#[tokio::test]
async fn pipelined_requests_reach_the_store_and_are_answered_in_order() {
    let node = node(|_, _| {}).await;
    node.store.set(Mode::Hold);
    let mut client = node.client().await;
    let stamp = |base_sequence| {
        Some(ProducerStamp {
            id: 1,
            epoch: 0,
            base_sequence,
        })
    };
    let sent: Vec<Bytes> = (0..20)
        .map(|i| batch(&[&i.to_string()], stamp(i)))
        .collect();
    for (i, batch) in sent.iter().enumerate() {
        client
            .send_produce(i32::try_from(i).unwrap(), -1, 0, batch.clone())
            .await;
    }
    client.send_ping(99).await;
    until("all are with the store", || node.store.held() == sent.len()).await;
    assert_eq!(node.stored(), sent);
    node.store.release(); // answers the last one first
    for i in 0..20 {
        assert_eq!(client.produced().await, (i, 0, i64::from(i)));
    }
    assert_eq!(client.receive().await.0, 99);
    until("the budget is given back", || {
        node.ingest.budget().used() == 0
    })
    .await;
}

#[tokio::test]
async fn acks_0_has_no_answer_and_a_refusal_closes() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    client.send_produce(1, 0, 0, batch(&["a"], None)).await;
    assert_eq!(client.ping(2).await, 2);
    assert_eq!(node.stored().len(), 1);
    client.send_produce(3, 0, 9, batch(&["a"], None)).await;
    client.expect_close().await;
}

#[tokio::test]
async fn a_batch_that_cannot_be_stored_is_answered_with_its_code() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    let good = batch(&["a"], None);
    let mut flipped = good.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let mut old = good.to_vec();
    old[16] = 1;
    let mut transactional = good.to_vec();
    transactional[22] |= 0x10;
    let large = "x".repeat(1_100_000);
    for (records, code) in [
        (Bytes::from(flipped), 2),
        (old.into(), 43),
        (transactional.into(), 87),
        ([good.clone(), good.clone()].concat().into(), 87),
        (good.slice(..40), 87),
        (Bytes::new(), 87),
        (batch(&[&large], None), 10),
        (good.clone(), 0),
    ] {
        assert_eq!(client.produce(records).await, code);
    }
    for index in [4, -1, i32::MAX] {
        client.send_produce(2, -1, index, good.clone()).await;
        assert_eq!(client.produced().await.1, 3);
    }
    for (acks, transactional_id, topic, records, code) in [
        (2, None, "t", Some(good.clone()), 21),
        (-1, Some("x"), "t", Some(good.clone()), 53),
        (-1, None, "missing", Some(good.clone()), 3),
        (-1, None, "not a name", Some(good.clone()), 17),
        (-1, None, "t", None, 87),
    ] {
        let data = [(topic, vec![(0, records)])];
        let frame = request(ApiKey::Produce, 8, 3, |out| {
            produce_request(acks, transactional_id, &data)
                .encode(out, 8)
                .unwrap();
        });
        client.send(&frame).await;
        assert_eq!(client.produced().await.1, code);
    }
    assert_eq!(node.stored(), [good]);
}

#[tokio::test]
async fn what_the_store_refuses_is_told_as_kafka_does() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    for (error, code) in [
        (AppendError::Full("quota"), 56),
        (AppendError::Unavailable("disk".into()), 56),
        (AppendError::UnknownPartition, 3),
        (
            AppendError::OutOfOrderSequence {
                producer: 1,
                found: 5,
                expected: 3,
            },
            45,
        ),
        (
            AppendError::ProducerFenced {
                producer: 1,
                found: 0,
                current: 1,
            },
            47,
        ),
    ] {
        node.store.set(Mode::Refuse(error, u32::MAX));
        assert_eq!(client.produce(batch(&["a"], None)).await, code);
    }
    node.store.set(Mode::Sync);
    assert_eq!(client.produce(batch(&["a"], None)).await, 0);
}

/// A retry waits behind the answers of all that its client had sent.
#[tokio::test]
async fn requests_refused_together_are_held_back_together() {
    let delay = Duration::from_secs(1);
    let node = node(|config, _| config.full_delay = delay).await;
    let full = AppendError::Full("quota");
    node.store.set(Mode::Refuse(full, u32::MAX));
    let mut client = node.client().await;
    let before = Instant::now();
    let data = [("t", vec![(0, Some(batch(&["a"], None)))])];
    for correlation in 0..8 {
        let frame = request(ApiKey::Produce, 7, correlation, |out| {
            produce_request(-1, None, &data).encode(out, 7).unwrap();
        });
        client.send(&frame).await;
    }
    for correlation in 0..8 {
        assert_eq!(client.receive().await.0, correlation);
        assert!(before.elapsed() >= delay, "held back");
    }
    assert!(before.elapsed() < 6 * delay, "{:?}", before.elapsed());
}

#[tokio::test]
async fn one_request_may_hold_good_and_bad_batches() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    let data = [
        (
            "t",
            vec![
                (0, Some(batch(&["a"], None))),
                (9, Some(batch(&["b"], None))),
            ],
        ),
        ("missing", vec![(0, Some(batch(&["c"], None)))]),
    ];
    let frame = request(ApiKey::Produce, 7, 3, |out| {
        produce_request(-1, None, &data).encode(out, 7).unwrap();
    });
    client.send(&frame).await;
    let (_, mut body) = client.receive().await;
    let response = ProduceResponse::decode(&mut body, 7).unwrap();
    let codes: Vec<Vec<i16>> = response
        .responses
        .iter()
        .map(|t| t.partition_responses.iter().map(|p| p.error_code).collect())
        .collect();
    assert_eq!(codes, [vec![0, 3], vec![3]]);
}

#[tokio::test]
async fn old_versions_of_produce_are_refused_with_their_code() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    for version in 0..3_i16 {
        // kafka-protocol doesn't write these either
        let mut body = BytesMut::new();
        for number in [0, version] {
            body.put_i16(number);
        }
        body.put_i32(5);
        body.put_i16(-1); // client id
        body.put_i16(1); // acks
        body.put_i32(1000);
        body.put_i32(1);
        body.put_i16(1);
        body.put_slice(b"t");
        body.put_i32(1);
        body.put_i32(0);
        body.put_i32(3);
        body.put_slice(b"old");
        client.send(&body).await;
        let (correlation, body) = client.receive().await;
        assert_eq!(correlation, 5);
        let throttle = if version >= 1 { 4 } else { 0 };
        let append_time = if version >= 2 { 8 } else { 0 };
        assert_eq!(body.len(), 4 + 3 + 4 + 4 + 2 + 8 + append_time + throttle);
        assert_eq!(body.slice(15..17)[..], 35_i16.to_be_bytes());
    }
}

#[tokio::test]
async fn garbage_ends_its_connection_and_no_other() {
    let node = node(|config, _| config.max_request_bytes = 100_000).await;
    let mut good = node.known_client().await;
    let oversized = framed(&[0; 100_001]);
    let wrong_api = request(ApiKey::LeaveGroup, 0, 1, |_| {});
    let wrong_version = request(ApiKey::Metadata, 99, 1, |_| {});
    let body_short = request(ApiKey::Metadata, 5, 1, |out| out.put_i32(1000));
    let body_long = request(ApiKey::Metadata, 0, 1, |out| {
        out.put_i32(0);
        out.put_u8(7);
    });
    let claims_much = request(ApiKey::Produce, 8, 1, |out| {
        out.put_i16(-1);
        out.put_i16(-1);
        out.put_i32(0);
        out.put_i32(i32::MAX);
    });
    let cases: [&[u8]; 11] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
        &[0; 64],
        &[0, 0, 0, 3, 1, 2, 3],
        &oversized,
        &framed(&wrong_api),
        &framed(&wrong_version),
        &framed(&body_short),
        &framed(&body_long),
        &framed(&claims_much),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS
    ];
    for (done, bytes) in cases.into_iter().enumerate() {
        let mut client = node.client().await;
        // it may be closed before all is sent
        drop(client.0.write_all(bytes).await);
        client.expect_close().await;
        until_count(&node.stats.failed, done as u64 + 1).await;
        assert_eq!(good.produce(batch(&["a"], None)).await, 0);
    }
}

#[tokio::test]
async fn what_came_before_garbage_is_answered() {
    let node = node(|_, _| {}).await;
    node.store.set(Mode::Hold);
    let mut client = node.client().await;
    client.send_produce(1, -1, 0, batch(&["a"], None)).await;
    client.0.write_all(&[0xff; 8]).await.unwrap();
    until("the batch is with the store", || node.store.held() == 1).await;
    node.store.release();
    assert_eq!(client.produced().await, (1, 0, 0));
    client.expect_close().await;
}

#[tokio::test]
async fn a_client_that_leaves_inside_a_request_is_forgotten() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    client.0.write_all(&[0, 0, 1, 0, 0, 0]).await.unwrap();
    client.0.shutdown().await.unwrap();
    client.expect_close().await;
    until_count(&node.stats.failed, 1).await;
    until("it is gone", || {
        node.stats.open.load(Ordering::Relaxed) == 0
    })
    .await;
    until("the budget is given back", || {
        node.ingest.budget().used() == 0
    })
    .await;
}

#[tokio::test]
async fn metadata_creates_topics_and_tells_the_address_dialled() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    for (may_create, code, partitions) in [(false, 3, 0), (true, 0, 4)] {
        let frame = request(ApiKey::Metadata, 8, 1, |out| {
            metadata_request(Some(&["fresh"]), may_create)
                .encode(out, 8)
                .unwrap();
        });
        client.send(&frame).await;
        let (_, mut body) = client.receive().await;
        let found = MetadataResponse::decode(&mut body, 8).unwrap();
        assert_eq!(found.brokers[0].host.as_str(), "127.0.0.1");
        assert_eq!(found.brokers[0].port, i32::from(node.address.port()));
        assert_eq!(found.topics[0].error_code, code);
        assert_eq!(found.topics[0].partitions.len(), partitions);
    }
}

#[tokio::test]
async fn every_producer_gets_an_id_of_its_own() {
    let node = node(|_, _| {}).await;
    let mut client = node.client().await;
    let mut ids = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let frame = request(ApiKey::InitProducerId, 1, 1, |out| {
            InitProducerIdRequest::default()
                .with_transactional_id(None)
                .encode(out, 1)
                .unwrap();
        });
        client.send(&frame).await;
        let (_, mut body) = client.receive().await;
        assert_eq!((body.get_i32(), body.get_i16()), (0, 0));
        assert!(ids.insert(body.get_i64()));
    }
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let node = node(|config, _| config.max_inflight_requests = 2).await;
    node.store.set(Mode::Hold);
    let mut client = node.client().await;
    for i in 0..50 {
        client.send_produce(i, -1, 0, batch(&["a"], None)).await;
    }
    // one with the writer, two queued, one that waits for the queue
    until("some are with the store", || node.store.held() == 4).await;
    assert_eq!(node.client().await.ping(1).await, 1);
    assert_eq!(node.store.held(), 4);
    node.store.release();
    for i in 0..50 {
        assert_eq!(client.produced().await.0, i);
    }
}

#[tokio::test]
async fn bytes_beyond_the_budget_wait_and_nothing_gets_stuck() {
    let node = node(|_, limits| limits.max_unsynced_bytes = 50_000).await;
    let mut clients = JoinSet::new();
    let value = "x".repeat(40_000);
    for _ in 0..8 {
        let (mut client, value) = (node.client().await, value.clone());
        clients.spawn(async move {
            for _ in 0..20 {
                assert_eq!(client.produce(batch(&[&value], None)).await, 0);
            }
        });
    }
    timeout(LIMIT, clients.join_all())
        .await
        .expect("all are served");
    assert_eq!(node.stored().len(), 160);
    until("the budget is given back", || {
        node.ingest.budget().used() == 0
    })
    .await;
}

/// The request that stalls holds the whole budget and the overdraft too, and has half an hour left by its own pace.
#[tokio::test]
async fn a_request_that_stalls_gives_up_what_others_wait_for() {
    let node = node(|config, limits| {
        limits.max_unsynced_bytes = 50_000;
        config.pace.grace = Duration::from_secs(1_800);
        config.pace_when_short.grace = Duration::from_millis(50);
        config.pace_when_short.bytes_per_s = 1_000_000;
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut client = node.client().await;
        client
            .0
            .write_all(&100_000_u32.to_be_bytes())
            .await
            .unwrap();
        client.0.write_all(&[0; 60_000]).await.unwrap();
        stalled.push(client);
    }
    until("the budget is used up", || {
        node.ingest.budget().used() > 40_000
    })
    .await;
    let mut client = node.client().await;
    let value = "x".repeat(30_000);
    let served = timeout(LIMIT, client.produce(batch(&[&value], None))).await;
    assert_eq!(served.expect("it is served"), 0);
}

#[tokio::test]
async fn the_smallest_window_holds_the_largest_requests() {
    let node = node(|config, limits| {
        config.max_request_bytes = 100_000;
        config.max_inflight_bytes = 0;
        limits.max_unsynced_bytes = 1;
    })
    .await;
    let value = "x".repeat(99_000);
    let data = [("t", vec![(0, Some(batch(&[&value], None)))])];
    let frame = framed(&request(ApiKey::Produce, 8, 1, |out| {
        produce_request(-1, None, &data).encode(out, 8).unwrap();
    }));
    let (read, mut write) = node.client().await.0.into_split();
    let mut sender = JoinSet::new();
    sender.spawn(async move {
        for _ in 0..100 {
            write.write_all(&frame).await.unwrap();
        }
        write
    });
    let mut answers = tokio::io::BufReader::new(read);
    for _ in 0..100 {
        let read = async {
            let len = answers.read_u32().await.unwrap();
            let mut body = vec![0; usize::try_from(len).unwrap()];
            answers.read_exact(&mut body).await.unwrap();
        };
        timeout(LIMIT, read).await.expect("a response");
    }
    assert_eq!(node.stored().len(), 100);
}

#[tokio::test]
async fn silent_and_slow_clients_are_closed() {
    let node = node(|config, _| {
        config.idle_timeout = Duration::from_millis(30);
        config.pace = Pace {
            grace: Duration::from_millis(30),
            bytes_per_s: 1 << 30,
        };
    })
    .await;
    let mut silent = node.client().await;
    silent.expect_close().await;
    let mut slow = node.client().await;
    slow.0.write_all(&[0, 0, 1, 0, 0]).await.unwrap();
    slow.expect_close().await;
    until_count(&node.stats.failed, 1).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed() {
    let node = node(|config, _| config.write_timeout = Duration::from_millis(50)).await;
    for i in 0..100 {
        node.ingest
            .topic(&format!("a-topic-with-a-long-name-{i}"), true)
            .await
            .ok();
    }
    let mut client = node.client().await;
    let frame = framed(&request(ApiKey::Metadata, 1, 1, |out| {
        metadata_request(None, true).encode(out, 1).unwrap();
    }));
    // each answer is hundreds of times its question
    while client.0.write_all(&frame).await.is_ok() {}
    until_count(&node.stats.failed, 1).await;
}

#[tokio::test]
async fn at_the_limit_the_idle_make_room_and_the_busy_do_not() {
    let node = node(|config, _| {
        config.max_connections = 2;
        config.min_idle = Duration::ZERO;
    })
    .await;
    node.store.set(Mode::Hold);
    let mut idle = node.known_client().await;
    let mut busy = node.known_client().await;
    busy.send_produce(1, -1, 0, batch(&["a"], None)).await;
    until("it is busy", || node.store.held() == 1).await;
    let mut next = node.client().await;
    next.send_produce(2, -1, 0, batch(&["b"], None)).await;
    idle.expect_close().await;
    until("it is busy", || node.store.held() == 2).await;
    node.client().await.expect_close().await;
    assert_eq!(node.stats.evicted.load(Ordering::Relaxed), 1);
    assert_eq!(node.stats.refused_connections.load(Ordering::Relaxed), 1);
    node.store.release();
    assert_eq!(busy.produced().await.0, 1);
    assert_eq!(next.produced().await.0, 2);
}

#[tokio::test]
async fn a_stop_answers_what_is_in_flight() {
    let mut node = node(|_, _| {}).await;
    node.store.set(Mode::Hold);
    let mut idle = node.known_client().await;
    let mut busy = node.known_client().await;
    busy.send_produce(1, -1, 0, batch(&["a"], None)).await;
    until("it is busy", || node.store.held() == 1).await;
    node.stop.cancel();
    idle.expect_close().await;
    assert!(TcpStream::connect(node.address).await.is_err());
    node.store.release();
    assert_eq!(busy.produced().await, (1, 0, 0));
    busy.expect_close().await;
    node.task.join_next().await.unwrap().unwrap();
    assert_eq!(node.stats.open.load(Ordering::Relaxed), 0);
}
