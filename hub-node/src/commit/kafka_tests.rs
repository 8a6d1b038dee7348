//! The lanes on a real cluster, named by `KAFKA_BOOTSTRAP`; without one those tests pass without a
//! word. Errors are injected with librdkafka's mock cluster, which knows neither isolation nor fencing:
//! it says nothing about exactly-once, only that the lanes get on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use shared::ids::{Incarnation, SiteId, TopicName, TopicPartition};
use shared::record::{Header, put_record};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::sink::kafka::KafkaCluster;
use crate::sink::memory::MemoryCluster;
use crate::sink::{Cluster, Destination, LaneSink, OutRecord};

/// Events that a session may leave unread.
const EVENTS: usize = 64;
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn records_and_their_checkpoint_commit_together() {
    let Some(world) = World::new("plain") else {
        return;
    };
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("orders", 2);
    assert_eq!(site.checkpoint(&log).await, None);
    let headers = [
        Header {
            name: b"a",
            value: Some(b"1"),
        },
        Header {
            name: b"a",
            value: None,
        },
    ];
    let sent = [
        (Some(&b"k"[..]), Some(&b"v0"[..]), &headers[..]),
        (None, Some(&b"v1"[..]), &[]),
        (Some(&b"k"[..]), None, &[]),
        (None, Some(&b""[..]), &[]),
    ];
    site.deliver(&log, 0, 77, &sent).await;
    assert_eq!(site.committed(&log, 4).await.chain, 77);

    let got = world.read(&log.topic);
    let mut got: Vec<_> = got
        .into_iter()
        .map(|r| (r.header("kedge.offset"), r))
        .collect();
    got.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(got.len(), 4);
    let first = &got[0].1;
    let text = |name: &str, value: Option<&str>| {
        (
            name.to_owned(),
            value.map(|value| value.as_bytes().to_vec()),
        )
    };
    assert_eq!(
        first.headers,
        [
            text("a", Some("1")),
            text("a", None),
            text("kedge.site", Some("shop-1")),
            text("kedge.incarnation", Some(&format!("{:032x}", 1))),
            text("kedge.partition", Some("2")),
            text("kedge.offset", Some("0")),
            text("kedge.ts", Some(&sent_ms().to_string())),
        ]
    );
    assert_eq!(first.timestamp_ms, sent_ms());
    assert_eq!(
        first.partition, got[2].1.partition,
        "one key, one partition"
    );
    assert_eq!(
        got[1].1.partition, got[3].1.partition,
        "one log, one partition"
    );
    let kv: Vec<_> = got
        .iter()
        .map(|(_, r)| (r.key.as_deref(), r.value.as_deref()))
        .collect();
    for (got, (key, value, _)) in kv.iter().zip(sent) {
        assert_eq!(*got, (key, value));
    }

    hub.stop().await;
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let checkpoint = site.checkpoint(&log).await.unwrap();
    assert_eq!((checkpoint.next_offset, checkpoint.chain), (4, 77));
    site.deliver(&log, 2, 78, &[sent[2], sent[3], sent[1]])
        .await;
    site.committed(&log, 5).await;
    assert_eq!(world.read(&log.topic).len(), 5, "the overlap is skipped");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_record_goes_alone_to_the_dead_letters() {
    let Some(world) = World::new("dead") else {
        return;
    };
    world
        .create("small", &[("max.message.bytes", "20000")])
        .await;
    world
        .create("compacted", &[("cleanup.policy", "compact")])
        .await;
    world.create("strict", &[]).await;
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let small = world.log("small", 0);
    let large = vec![b'x'; 100_000];
    let value = |value: &'static [u8]| (None, Some(value), &[][..]);
    let records = [value(b"a"), (None, Some(&large[..]), &[][..]), value(b"b")];
    site.deliver(&small, 0, 1, &records).await;
    let compacted = world.log("compacted", 0);
    let keyed = |key: &'static [u8]| (Some(key), Some(&b"v"[..]), &[][..]);
    site.deliver(
        &compacted,
        0,
        1,
        &[keyed(b"1"), value(b"no key"), keyed(b"2")],
    )
    .await;
    // a day ahead: this topic has the default limit of an hour
    let strict = world.log("strict", 0);
    let day = now_ms() + 86_400_000;
    site.deliver_at(&strict, 0, 1, &[value(b"tomorrow")], day)
        .await;
    site.committed(&small, 3).await;
    site.committed(&compacted, 3).await;
    site.committed(&strict, 1).await;

    assert_eq!(values(&world.read(&small.topic)), ["a", "b"]);
    assert_eq!(values(&world.read(&compacted.topic)), ["v", "v"]);
    assert!(world.read(&strict.topic).is_empty());
    let dead = poll_until(async || {
        let dead = world.read(&world.topic("dead"));
        (dead.len() >= 3).then_some(dead)
    })
    .await;
    let mut reasons: Vec<_> = dead
        .iter()
        .map(|r| {
            (
                r.header("kedge.topic"),
                r.header("kedge.offset"),
                r.header("kedge.reason"),
            )
        })
        .collect();
    reasons.sort();
    let expect = |log: &TopicPartition, offset: &str, reason: &str| {
        (log.topic.to_string(), offset.to_owned(), reason.to_owned())
    };
    assert_eq!(
        reasons,
        [
            expect(&compacted, "1", "no-key"),
            expect(&small, "1", "too-large"),
            expect(&strict, "0", "invalid-timestamp"),
        ]
    );
    assert_eq!(hub.lanes.counters().dead_letters.load(Ordering::Relaxed), 3);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_kafka_will_delete_for_their_age_are_counted() {
    let Some(world) = World::new("aged") else {
        return;
    };
    let hour = ("retention.ms", "3600000");
    world.create("by-site-time", &[hour]).await;
    let by_arrival = [hour, ("message.timestamp.type", "LogAppendTime")];
    world.create("by-arrival", &by_arrival).await;
    let compacted = [hour, ("cleanup.policy", "compact")];
    world.create("compacted", &compacted).await;
    world.create("for-ever", &[("retention.ms", "-1")]).await;
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let record = (Some(&b"k"[..]), Some(&b"v"[..]), &[][..]);
    let past = now_ms() - 7_200_000;
    for name in ["by-site-time", "by-arrival", "compacted", "for-ever"] {
        let log = world.log(name, 0);
        site.deliver_at(&log, 0, 1, &[record, record], past).await;
        site.committed(&log, 2).await;
        site.deliver_at(&log, 2, 2, &[record], past + 7_200_000)
            .await;
        site.committed(&log, 3).await;
    }
    let counted = hub.lanes.counters().past_retention.load(Ordering::Relaxed);
    assert_eq!(counted, 2);
    hub.stop().await;
}

#[tokio::test]
async fn records_from_1970_are_committed_and_counted() {
    let (world, cluster) = World::in_memory_with(Destination {
        max_age_ms: Some(3_600_000),
        ..World::destination()
    });
    let hub = world.hub_on(&cluster).await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let (old, young) = (world.log("t", 0), world.log("t", 1));
    let record = (None, Some(&b"x"[..]), &[][..]);
    site.deliver_at(&old, 0, 1, &[record, record], 0).await;
    site.committed(&old, 2).await;
    let now = now_ms();
    site.deliver_at(&young, 0, 1, &[record], now).await;
    site.committed(&young, 1).await;
    let counters = hub.lanes.counters();
    assert_eq!(counters.past_retention.load(Ordering::Relaxed), 2);
    assert_eq!(counters.committed_records.load(Ordering::Relaxed), 3);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_only_the_broker_knows_finds_its_culprit() {
    let Some(world) = World::new("culprit") else {
        return;
    };
    world.create("shrinks", &[]).await;
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("shrinks", 0);
    let value = |value: &'static [u8]| (None, Some(value), &[][..]);
    site.deliver(&log, 0, 1, &[value(b"a")]).await;
    site.committed(&log, 1).await;
    // the hub remembers the old limit
    world.alter("shrinks", "max.message.bytes", "5000").await;
    let noise = noise(20_000);
    let records = [value(b"b"), (None, Some(&noise[..]), &[][..]), value(b"c")];
    site.deliver(&log, 1, 2, &records).await;
    site.committed(&log, 4).await;
    assert_eq!(values(&world.read(&log.topic)), ["a", "b", "c"]);
    let dead = world.read(&world.topic("dead"));
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header("kedge.reason"), "too-large");
    site.deliver(&log, 4, 3, &[value(b"d")]).await;
    site.committed(&log, 5).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_topics_are_dead_letters_where_none_are_created() {
    let Some(mut world) = World::new("unknown") else {
        return;
    };
    world.create("dead", &[]).await;
    world.config.topics.auto_create = false;
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let (log, ours) = (
        world.log("nowhere", 0),
        TopicPartition {
            topic: TopicName::new(&world.config.checkpoint_topic).unwrap(),
            partition: 0,
            track: shared::ids::Track::First,
        },
    );
    for log in [&log, &ours] {
        site.deliver(log, 0, 1, &[(None, Some(b"x"), &[])]).await;
        site.committed(log, 1).await;
    }
    let mut reasons: Vec<_> = world
        .read(&world.topic("dead"))
        .iter()
        .map(|r| r.header("kedge.reason"))
        .collect();
    reasons.sort();
    assert_eq!(reasons, ["invalid-topic", "unknown-topic"]);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_dead_letter_topic_holds_its_lane_and_is_told() {
    let (world, cluster) = World::in_memory_with(Destination {
        is_compacted: true,
        ..World::destination()
    });
    let hub = world.hub_on(&cluster).await;
    let site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("t", 0);
    site.deliver(&log, 0, 1, &[(None, Some(b"no key"), &[])])
        .await;
    let mut troubled = hub.lanes.troubled();
    let told = troubled.wait_for(|count| *count == 1);
    tokio::time::timeout(LIMIT, told).await.unwrap().unwrap();
    assert!(hub.lanes.counters().rebuilds.load(Ordering::Relaxed) > 0);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_topic_that_is_gone_is_told_and_does_not_come_back_by_itself() {
    let Some(world) = World::new("gone") else {
        return;
    };
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("t", 0);
    let record: [Sent<'_>; 1] = [(None, Some(b"x"), &[])];
    site.deliver(&log, 0, 1, &record).await;
    site.committed(&log, 1).await;
    let admin: AdminClient<DefaultClientContext> = world.client().create().unwrap();
    let topic = world.config.checkpoint_topic.as_str();
    let deleted = admin.delete_topics(&[topic], &AdminOptions::new()).await;
    deleted.unwrap().remove(0).unwrap();
    site.deliver(&log, 1, 2, &record).await;
    let mut troubled = hub.lanes.troubled();
    let told = troubled.wait_for(|count| *count == 1);
    tokio::time::timeout(2 * LIMIT, told)
        .await
        .unwrap()
        .unwrap();
    let mut config = world.client();
    config.set("allow.auto.create.topics", "false");
    let reader: BaseConsumer = config.set("group.id", "looks").create().unwrap();
    let all = reader.fetch_metadata(None, LIMIT).unwrap();
    assert!(all.topics().iter().all(|found| found.name() != topic));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_hub_is_fenced_and_writes_nothing_visible() {
    let Some(mut world) = World::new("zombie") else {
        return;
    };
    world.config.step_down = Duration::from_secs(3);
    let (a, b) = (world.hub().await, world.hub().await);
    let log = world.log("t", 0);
    let record = |value: &'static [u8]| [(None, Some(value), &[][..])];
    let mut at_a = Site::attach(&a, "shop-1").await.unwrap();
    at_a.deliver(&log, 0, 1, &record(b"a0")).await;
    at_a.committed(&log, 1).await;
    let mut at_b = Site::attach(&b, "shop-1").await.unwrap();
    assert_eq!(at_b.checkpoint(&log).await.unwrap().next_offset, 1);
    // A does not know yet
    at_a.deliver(&log, 1, 66, &record(b"zombie")).await;
    assert_eq!(at_a.ended().await, EndReason::Fenced);
    at_b.deliver(&log, 1, 2, &record(b"b1")).await;
    at_b.committed(&log, 2).await;
    assert_eq!(values(&world.read(&log.topic)), ["a0", "b1"]);
    assert_eq!(a.lanes.counters().fenced.load(Ordering::Relaxed), 1);
    // after a while A may take the lane back, if a site comes to it
    assert_eq!(
        Site::attach(&a, "shop-1").await.err(),
        Some(EndReason::Fenced)
    );
    let at_a = poll_until(async || Site::attach(&a, "shop-1").await.ok()).await;
    assert_eq!(at_a.checkpoint(&log).await.unwrap().next_offset, 2);
    at_b.deliver(&log, 2, 3, &record(b"late")).await;
    assert_eq!(at_b.ended().await, EndReason::Fenced);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_hub_left_open_is_never_seen() {
    let Some(world) = World::new("crash") else {
        return;
    };
    world.create("t", &[]).await;
    let handle = tokio::runtime::Handle::current();
    let cluster = KafkaCluster::new(&world.config, handle).unwrap();
    let topic = world.topic("t");
    let topic = topic.as_str().to_owned();
    let left = tokio::task::spawn_blocking(move || {
        cluster.prepare().unwrap();
        let mut dies = cluster.lane(0);
        dies.acquire((b"\x02", b"dies"), &mut |_, _| ()).unwrap();
        let record = |value: &'static [u8]| OutRecord {
            topic: Box::leak(topic.clone().into_boxed_str()),
            partition: 0,
            key: None,
            value: Some(value),
            timestamp_ms: sent_ms(),
            headers: None,
            marks: &[],
        };
        dies.destination(&topic).unwrap();
        dies.begin().unwrap();
        dies.produce(0, &record(b"committed")).unwrap();
        dies.store(b"key", b"1").unwrap();
        assert!(dies.settle().unwrap().is_empty());
        dies.commit().unwrap();
        dies.begin().unwrap();
        dies.produce(0, &record(b"open")).unwrap();
        dies.store(b"key", b"2").unwrap();
        assert!(dies.settle().unwrap().is_empty());
        // it dies here; its successor settles what it left
        let mut read = Vec::new();
        let mut heir = cluster.lane(0);
        heir.acquire((b"\x02", b"heir"), &mut |key, value| {
            read.push((key.to_vec(), value.unwrap().to_vec()));
        })
        .unwrap();
        assert_eq!(dies.commit(), Err(crate::sink::SinkError::Fenced));
        read
    });
    let read = left.await.unwrap();
    let stored: Vec<_> = read.iter().filter(|(key, _)| key == b"key").collect();
    assert_eq!(stored, [&(b"key".to_vec(), b"1".to_vec())]);
    assert_eq!(values(&world.read(&world.topic("t"))), ["committed"]);
}

#[tokio::test]
async fn a_graceful_stop_commits_what_was_handed_in() {
    let (world, cluster) = World::in_memory();
    let hub = world.hub_on(&cluster).await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("t", 0);
    for offset in 0..50 {
        site.deliver(&log, offset, 0, &[(None, Some(b"x"), &[])])
            .await;
    }
    // the lane has everything once it answers
    site.checkpoint(&log).await;
    hub.stop().await;
    assert_eq!(site.last().await, (Some(50), Some(EndReason::Stopping)));
    let committed = cluster.read_committed(log.topic.as_str());
    assert_eq!(committed.into_iter().flatten().count(), 50);
}

#[tokio::test]
async fn a_session_that_does_not_read_is_ended_and_holds_nobody_up() {
    let (world, cluster) = World::in_memory();
    let hub = world.hub_on(&cluster).await;
    let mut deaf = Site::attach(&hub, "shop-1").await.unwrap();
    let mut other = Site::attach(&hub, "shop-2").await.unwrap();
    let log = world.log("t", 0);
    for offset in 0..EVENTS as u64 + 1 {
        deaf.deliver(&log, offset, 0, &[(None, Some(b"x"), &[])])
            .await;
        other
            .deliver(&log, offset, 0, &[(None, Some(b"x"), &[])])
            .await;
        other.committed(&log, offset + 1).await;
    }
    assert_eq!(deaf.last().await.1, None, "its queue ends without a word");
    hub.stop().await;
}

#[tokio::test]
async fn a_session_waits_for_a_cluster_that_is_down_and_may_give_up() {
    let (world, cluster) = World::in_memory();
    let is_down = Arc::new(AtomicBool::new(true));
    let down = is_down.clone();
    cluster.set_faults(move |_| {
        let down = down.load(Ordering::Relaxed);
        down.then(|| crate::sink::SinkError::Unknown("down".to_owned()))
    });
    let hub = world.hub_on(&cluster).await;
    let attach = tokio::time::timeout(Duration::from_millis(300), Site::attach(&hub, "shop-1"));
    assert!(attach.await.is_err(), "nobody is let in");
    assert_eq!(*hub.lanes.troubled().borrow(), 1);
    is_down.store(false, Ordering::Relaxed);
    let site = Site::attach(&hub, "shop-1").await.unwrap();
    assert_eq!(site.checkpoint(&world.log("t", 0)).await, None);
    assert_eq!(*hub.lanes.troubled().borrow(), 0);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_every_call_are_survived() {
    use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as E};
    let mock = rdkafka::mocking::MockCluster::new(1).unwrap();
    let mut world = World::at("errors", mock.bootstrap_servers(), 4);
    world.config.topics.by_asking = true;
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("t", 0);
    let mut next = 0;
    let faults = [
        (
            Api::InitProducerId,
            E::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        ),
        (
            Api::AddPartitionsToTxn,
            E::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS,
        ),
        (Api::AddPartitionsToTxn, E::RD_KAFKA_RESP_ERR__TRANSPORT),
        (Api::Produce, E::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION),
        (Api::Produce, E::RD_KAFKA_RESP_ERR__TRANSPORT),
        (
            Api::Produce,
            E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        ),
        (Api::EndTxn, E::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE),
        (Api::EndTxn, E::RD_KAFKA_RESP_ERR__TRANSPORT),
        (Api::EndTxn, E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE),
    ];
    for (api, error) in faults {
        mock.request_errors(api, &[error; 2]);
        site.deliver(&log, next, next, &[(None, Some(b"x"), &[])])
            .await;
        next += 1;
        site.committed(&log, next).await;
        mock.clear_request_errors(api);
    }
    let counters = hub.lanes.counters();
    assert_eq!(counters.committed_records.load(Ordering::Relaxed), next);
    assert_eq!(counters.dead_letters.load(Ordering::Relaxed), 0);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_waited_for_is_told_with_what_its_connections_say() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let world = World::at("absent", address, 4);
    let (health, cancel) = (Health::default(), CancellationToken::new());
    let starting = Lanes::start(world.config.clone(), cancel.clone(), health.clone());
    tokio::select! {
        started = starting => panic!("{started:?}"),
        trouble = poll_until(async || health.waits_for()) => assert!(trouble.error.contains("refused"), "{trouble:?}"),
    }
    cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_soon_after_the_cluster_is_back() {
    let mock = rdkafka::mocking::MockCluster::new(1).unwrap();
    let mut world = World::at("down", mock.bootstrap_servers(), 4);
    world.config.topics.by_asking = true;
    world.config.delivery_timeout = Duration::from_secs(2);
    world.config.transaction_timeout = Duration::from_secs(2);
    let hub = world.hub().await;
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    let log = world.log("t", 0);
    let record = [(None, Some(&b"x"[..]), &[][..])];
    site.deliver(&log, 0, 1, &record).await;
    site.committed(&log, 1).await;
    mock.broker_down(1).unwrap();
    site.deliver(&log, 1, 2, &record).await;
    // longer than a transaction may take: the outcome is unknown, the batch is kept
    let mut troubled = hub.lanes.troubled();
    let wait = troubled.wait_for(|count| *count > 0);
    tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap();
    let troubles = hub.health.troubles();
    let (_, trouble) = troubles.first_key_value().unwrap();
    assert!(!trouble.error.is_empty() && trouble.since_ms <= shared::time::wall_ms());
    mock.broker_up(1).unwrap();
    let up = std::time::Instant::now();
    site.committed(&log, 2).await;
    println!("{:?} after it was back", up.elapsed());
    assert!(up.elapsed() < Duration::from_secs(5), "{:?}", up.elapsed());
    assert_eq!(*hub.lanes.troubled().borrow(), 0);
    assert!(hub.health.troubles().is_empty());
    hub.stop().await;
}

/// Kill and restart the broker meanwhile: `KEDGE_SOAK_S=60 KAFKA_BOOTSTRAP=… cargo test -p hub-node
/// --lib commit::kafka_tests::soak -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is told"]
#[allow(clippy::disallowed_methods, reason = "the test awaits what it spawns")]
async fn soak() {
    let Some(world) = World::new("soak") else {
        return;
    };
    let seconds = std::env::var("KEDGE_SOAK_S").map_or(10, |s| s.parse().unwrap());
    let hub = Arc::new(world.hub().await);
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let sites: Vec<_> = (0..8)
        .map(|i| {
            tokio::spawn(feed(
                hub.clone(),
                format!("site-{i}"),
                world.log("t", 0),
                until,
            ))
        })
        .collect();
    let mut expected = BTreeMap::new();
    for (i, site) in sites.into_iter().enumerate() {
        expected.insert(format!("site-{i}"), site.await.unwrap());
    }
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for got in world.read(&world.topic("t")) {
        let next = next.entry(got.header("kedge.site")).or_default();
        assert_eq!(got.header("kedge.offset"), next.to_string());
        *next += 1;
    }
    assert_eq!(next, expected);
    let counters = hub.lanes.counters();
    println!("{counters:?}");
    Arc::into_inner(hub).unwrap().stop().await;
}

/// A site that sends as fast as its credit allows and comes back whenever it is thrown out.
async fn feed(
    hub: Arc<Hub>,
    name: String,
    log: TopicPartition,
    until: tokio::time::Instant,
) -> u64 {
    let value = [b'x'; 200];
    let records = vec![(None, Some(&value[..]), &[][..]); 50];
    let (mut acked, mut sent_all) = (0, 0);
    loop {
        let Ok(mut site) = Site::attach(&hub, &name).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let checkpoint = site.checkpoint(&log).await.map_or(0, |c| c.next_offset);
        assert!(checkpoint >= acked, "{checkpoint} >= {acked}");
        acked = checkpoint;
        let mut next = checkpoint;
        loop {
            let is_over = tokio::time::Instant::now() > until && next >= sent_all;
            if is_over && acked == next {
                return acked;
            }
            while next < acked + 1000 && !is_over {
                site.deliver(&log, next, next, &records).await;
                next += 50;
                sent_all = sent_all.max(next);
            }
            let waiting = std::time::Instant::now();
            match tokio::time::timeout(Duration::from_secs(120), site.events.recv()).await {
                Ok(Some(LaneEvent::Committed(logs))) => {
                    if waiting.elapsed() > Duration::from_secs(2) {
                        println!(
                            "{name}: {:?} without a commit, until {}",
                            waiting.elapsed(),
                            now_ms()
                        );
                    }
                    let moved = logs.iter().find(|(moved, _)| *moved == log);
                    acked = moved.unwrap().1.next_offset;
                }
                Ok(Some(LaneEvent::Ended(_)) | None) => break,
                Err(_) => panic!("{name}: nothing committed for two minutes"),
            }
        }
    }
}

/// How long one record alone takes to be committed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn latency() {
    let Some(world) = World::new("latency") else {
        return;
    };
    let hub = world.hub().await;
    let attaching = std::time::Instant::now();
    let mut site = Site::attach(&hub, "shop-1").await.unwrap();
    println!("lane acquired in {:?}", attaching.elapsed());
    let log = world.log("t", 0);
    let mut took = Vec::new();
    for offset in 0..200 {
        let sent = std::time::Instant::now();
        site.deliver(&log, offset, 0, &[(None, Some(b"x"), &[])])
            .await;
        site.committed(&log, offset + 1).await;
        took.push(sent.elapsed());
    }
    took.sort();
    println!("p50 {:?}, p99 {:?}", took[100], took[198]);
    hub.stop().await;
}

/// Names of one test's topics and lanes, so that tests share a cluster.
struct World {
    name: String,
    config: CommitConfig,
}

impl World {
    fn new(name: &str) -> Option<Self> {
        let bootstrap = std::env::var("KAFKA_BOOTSTRAP").ok()?;
        Some(Self::at(name, bootstrap, 2))
    }

    fn at(name: &str, bootstrap: String, lanes: u32) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{:x}-{number}", now_ms());
        let config = CommitConfig {
            bootstrap_servers: bootstrap,
            transactional_id_prefix: format!("{name}-lane"),
            checkpoint_topic: format!("{name}-checkpoints"),
            dead_letter_topic: format!("{name}-dead"),
            lanes,
            topics: TopicPolicy {
                partitions: Some(4),
                ..TopicPolicy::default()
            },
            ..CommitConfig::default()
        };
        Self { name, config }
    }

    fn destination() -> Destination {
        Destination {
            partitions: 2,
            max_batch_bytes: 100_000,
            is_compacted: false,
            max_timestamp_behind_ms: None,
            max_timestamp_ahead_ms: None,
            max_age_ms: None,
        }
    }

    fn in_memory() -> (Self, MemoryCluster) {
        Self::in_memory_with(Self::destination())
    }

    fn in_memory_with(destination: Destination) -> (Self, MemoryCluster) {
        let cluster = MemoryCluster::new(2, Some(destination));
        (Self::at("memory", String::new(), 2), cluster)
    }

    async fn hub_on(&self, cluster: &MemoryCluster) -> Hub {
        let cancel = CancellationToken::new();
        let cluster = Arc::new(cluster.clone());
        let health = Health::default();
        let (config, stop) = (self.config.clone(), cancel.clone());
        let lanes = Lanes::start_on(cluster, config, stop, health.clone()).await;
        Hub {
            lanes: lanes.unwrap(),
            cancel,
            health,
        }
    }

    async fn hub(&self) -> Hub {
        let cancel = CancellationToken::new();
        let health = Health::default();
        let lanes = Lanes::start(self.config.clone(), cancel.clone(), health.clone())
            .await
            .unwrap();
        Hub {
            lanes,
            cancel,
            health,
        }
    }

    fn topic(&self, topic: &str) -> TopicName {
        TopicName::new(&format!("{}-{topic}", self.name)).unwrap()
    }

    fn log(&self, topic: &str, partition: u32) -> TopicPartition {
        TopicPartition {
            topic: self.topic(topic),
            partition,
            track: shared::ids::Track::First,
        }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.config.bootstrap_servers);
        config
    }

    async fn create(&self, topic: &str, config: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let topic = self.topic(topic);
        let mut new = NewTopic::new(topic.as_str(), 2, TopicReplication::Fixed(1));
        for (key, value) in config {
            new = new.set(key, value);
        }
        let made = admin.create_topics([&new], &AdminOptions::new()).await;
        made.unwrap().remove(0).unwrap();
    }

    async fn alter(&self, topic: &str, key: &str, value: &str) {
        use rdkafka::admin::{AlterConfig, ResourceSpecifier};
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let topic = self.topic(topic);
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic.as_str())).set(key, value);
        let altered = admin.alter_configs([&change], &AdminOptions::new()).await;
        altered.unwrap().remove(0).unwrap();
    }

    /// Everything that a reader of committed records sees, in order per partition.
    fn read(&self, topic: &TopicName) -> Vec<Got> {
        let mut config = self.client();
        config
            .set("group.id", "test")
            .set("isolation.level", "read_committed");
        config
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().unwrap();
        let metadata = consumer
            .fetch_metadata(Some(topic.as_str()), LIMIT)
            .unwrap();
        let partitions = metadata.topics()[0].partitions().len();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            let partition = i32::try_from(partition).unwrap();
            assignment
                .add_partition_offset(topic.as_str(), partition, Offset::Beginning)
                .unwrap();
        }
        self.await_markers(topic, partitions);
        consumer.assign(&assignment).unwrap();
        let (mut got, mut ended) = (Vec::new(), 0);
        while ended < partitions {
            match consumer.poll(LIMIT).expect("the cluster answers") {
                Ok(message) => got.push(Got::of(&message)),
                Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
                Err(error) => panic!("{error}"),
            }
        }
        got.sort_by_key(|got| got.partition);
        got
    }

    /// A commit is answered before its markers are in the partitions, and until then a `read_committed`
    /// consumer comes to an early end. A transaction that a test leaves open ends the wait after a while.
    fn await_markers(&self, topic: &TopicName, partitions: usize) {
        let ends = |isolation: &str| -> i64 {
            let mut config = self.client();
            config
                .set("group.id", "ends")
                .set("isolation.level", isolation);
            let consumer: BaseConsumer = config.create().unwrap();
            let end = |partition| {
                let partition = i32::try_from(partition).unwrap();
                consumer
                    .fetch_watermarks(topic.as_str(), partition, LIMIT)
                    .unwrap()
                    .1
            };
            (0..partitions).map(end).sum()
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while ends("read_committed") < ends("read_uncommitted")
            && std::time::Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[derive(Debug)]
struct Got {
    partition: i32,
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Got {
    fn of<M: Message>(message: &M) -> Self {
        let headers = message.headers();
        Self {
            partition: message.partition(),
            timestamp_ms: message.timestamp().to_millis().unwrap(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map_or_else(Vec::new, |headers| {
                headers
                    .iter()
                    .map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec)))
                    .collect()
            }),
        }
    }

    fn header(&self, name: &str) -> String {
        let found = self.headers.iter().rev().find(|(key, _)| key == name);
        let value = found.and_then(|(_, value)| value.clone());
        String::from_utf8(value.unwrap_or_default()).unwrap()
    }
}

fn values(got: &[Got]) -> Vec<String> {
    got.iter()
        .map(|got| {
            String::from_utf8_lossy(got.value.as_deref().unwrap())
                .chars()
                .take(20)
                .collect()
        })
        .collect()
}

struct Hub {
    lanes: Lanes,
    cancel: CancellationToken,
    health: Health,
}

impl Hub {
    async fn stop(mut self) {
        self.cancel.cancel();
        self.lanes.join().await.unwrap();
    }
}

type Sent<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a [Header<'a>]);

/// A site's session, as the hub's intake would drive it.
struct Site {
    session: SessionId,
    lane: LaneHandle,
    events: mpsc::Receiver<LaneEvent>,
    committed: BTreeMap<TopicPartition, Checkpoint>,
}

impl Site {
    async fn attach(hub: &Hub, site: &str) -> Result<Self, EndReason> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let session = SessionId(NUMBER.fetch_add(1, Ordering::Relaxed));
        let site = SiteId::new(site).unwrap();
        let lane = hub.lanes.lane_of(&site);
        let (events, inbox) = mpsc::channel(EVENTS);
        let (reply, answer) = oneshot::channel();
        let attach = LaneRequest::Attach {
            site,
            incarnation: Incarnation(1),
            session,
            events,
            reply,
        };
        lane.send(attach).await.unwrap();
        tokio::time::timeout(LIMIT, answer)
            .await
            .unwrap()
            .unwrap()?;
        Ok(Self {
            session,
            lane,
            events: inbox,
            committed: BTreeMap::new(),
        })
    }

    async fn checkpoint(&self, log: &TopicPartition) -> Option<Checkpoint> {
        let (reply, answer) = oneshot::channel();
        let request = LaneRequest::Checkpoints {
            session: self.session,
            logs: vec![log.clone()],
            reply,
        };
        self.lane.send(request).await.unwrap();
        answer.await.unwrap().unwrap()[0]
    }

    async fn deliver(&self, log: &TopicPartition, base: u64, chain: u64, records: &[Sent<'_>]) {
        self.deliver_at(log, base, chain, records, sent_ms()).await;
    }

    async fn deliver_at(
        &self,
        log: &TopicPartition,
        base: u64,
        chain: u64,
        records: &[Sent<'_>],
        timestamp_ms: i64,
    ) {
        let mut bytes = Vec::new();
        for (i, (key, value, headers)) in (0..).zip(records) {
            put_record(&mut bytes, i, 0, *key, *value, headers);
        }
        let count = u32::try_from(records.len()).unwrap();
        let delivery = Delivery {
            log: log.clone(),
            base_offset: base,
            next: Checkpoint {
                next_offset: base + u64::from(count),
                chain,
            },
            bytes: bytes.len(),
            hold: None,
            content: Content::Records(vec![Block {
                base_offset: base,
                count,
                base_timestamp_ms: timestamp_ms,
                is_log_append_time: false,
                records: bytes.into(),
            }]),
        };
        let session = self.session;
        self.lane
            .send(LaneRequest::Deliver { session, delivery })
            .await
            .unwrap();
    }

    /// Waits until a log is committed up to `next`.
    async fn committed(&mut self, log: &TopicPartition, next: u64) -> Checkpoint {
        loop {
            if let Some(checkpoint) = self.committed.get(log)
                && checkpoint.next_offset >= next
            {
                return *checkpoint;
            }
            match self.event().await {
                LaneEvent::Committed(logs) => self.committed.extend(logs),
                LaneEvent::Ended(reason) => panic!("ended: {reason:?}"),
            }
        }
    }

    async fn ended(&mut self) -> EndReason {
        loop {
            if let LaneEvent::Ended(reason) = self.event().await {
                return reason;
            }
        }
    }

    /// All that the lane still says: the last checkpoint, and the end.
    async fn last(&mut self) -> (Option<u64>, Option<EndReason>) {
        let (mut next, mut end) = (None, None);
        while let Ok(Some(event)) = tokio::time::timeout(LIMIT, self.events.recv()).await {
            match event {
                LaneEvent::Committed(logs) => next = Some(logs[0].1.next_offset),
                LaneEvent::Ended(reason) => end = Some(reason),
            }
        }
        (next, end)
    }

    async fn event(&mut self) -> LaneEvent {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await;
        event
            .expect("the lane answers")
            .expect("the session goes on")
    }
}

async fn poll_until<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(done) = attempt().await {
            return done;
        }
        assert!(tokio::time::Instant::now() < deadline, "in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// When the test run began, for records: a broker deletes those that are older than its retention.
fn sent_ms() -> i64 {
    static SENT: LazyLock<i64> = LazyLock::new(now_ms);
    *SENT
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}
