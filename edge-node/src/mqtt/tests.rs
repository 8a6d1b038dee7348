//! The broker as clients see it: real sockets on the loopback, and the in-memory store.

mod client;
mod memory;

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName};
use shared::record::{BatchBuilder, BatchHeader, Header, Records, open};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::packet::{AckKind, Qos, Version, reason};
use super::*;
use crate::access::{Credential, Mechanism, Rules};
use crate::ingest::IngestLimits;
use crate::ingest::tests::any_topic;
use crate::ingest::tests::fake::{FakeStore, Mode};
use crate::seldom::capture::Lines;
use crate::store::{AppendError, Item, MemoryStore, StateSpace, StoreConfig};
use client::{Client, connect, lasting};

struct Node {
    store: Arc<dyn Store>,
    ingest: Ingest,
    stats: Arc<MqttStats>,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinSet<()>,
}

fn new_store() -> Arc<dyn Store> {
    let config = StoreConfig {
        default_rules: any_topic().default.rules(),
        ..StoreConfig::default()
    };
    Arc::new(MemoryStore::new(&config, Incarnation(7)))
}

async fn node(rules: Vec<Rule>) -> Node {
    node_on(new_store(), rules, |_| {}).await
}

async fn node_on(
    store: Arc<dyn Store>,
    rules: Vec<Rule>,
    change: impl FnOnce(&mut MqttConfig),
) -> Node {
    node_with(store, rules, Access::open(), change).await
}

async fn node_with(
    store: Arc<dyn Store>,
    rules: Vec<Rule>,
    access: Access,
    change: impl FnOnce(&mut MqttConfig),
) -> Node {
    let mut config = MqttConfig::new("127.0.0.1:0".parse().unwrap());
    config.no_subscribe = vec!["secret/#".to_owned()];
    change(&mut config);
    let ingest = Ingest::new(store.clone(), any_topic(), IngestLimits::default());
    let map = TopicMap::new(rules, TopicName::new("mqtt_messages").ok()).unwrap();
    let stats = Arc::new(MqttStats::default());
    let services = Services {
        store: store.clone(),
        ingest: ingest.clone(),
        access: Arc::new(access),
        stats: stats.clone(),
    };
    let listener = Listener::bind(config, map, services).await.unwrap();
    let address = listener.addresses().unwrap()[0];
    let stop = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(listener.run(stop.clone()));
    Node {
        store,
        ingest,
        stats,
        address,
        stop,
        task,
    }
}

impl Node {
    /// Stops it, and starts another on what it left.
    async fn restart(self) -> Self {
        node_on(self.end().await, Vec::new(), |_| {}).await
    }

    /// Stops it; what it left.
    async fn end(mut self) -> Arc<dyn Store> {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
        self.store
    }

    /// Everything in a Kafka topic: key, value, headers.
    fn records(&self, topic: &str) -> Vec<(String, String, Vec<(String, String)>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let Some(topic) = self.store.topic(topic) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for partition in &topic.partitions {
            for item in self.store.read(*partition, 0, 1 << 24).unwrap() {
                let Item::Batch { batch, .. } = item else {
                    continue;
                };
                let header = BatchHeader::parse(&batch).unwrap();
                let records = open(&batch, &header, 1 << 24).unwrap();
                for record in Records::new(&records, header.count).map(Result::unwrap) {
                    let headers = record
                        .headers()
                        .map(|h| (text(h.name), text(h.value.unwrap_or_default())));
                    let (key, value) = (
                        record.key.unwrap_or_default(),
                        record.value.unwrap_or_default(),
                    );
                    found.push((text(key), text(value), headers.collect()));
                }
            }
        }
        found
    }

    async fn produce(&self, topic: &str, key: &str, value: &str) -> Offset {
        let topic = self.ingest.topic(topic, true).await.unwrap();
        let mut batch = BatchBuilder::default();
        let unit = Header {
            name: b"unit",
            value: Some(b"C"),
        };
        batch.push(
            shared::time::wall_ms(),
            Some(key.as_bytes()),
            Some(value.as_bytes()),
            &[unit],
        );
        let pending = self
            .ingest
            .append(&topic, 0, batch.build().unwrap())
            .await
            .unwrap();
        pending.synced().await.unwrap().base_offset
    }
}

#[tokio::test]
async fn a_message_is_a_record_and_reaches_its_subscribers() {
    for version in [Version::V3, Version::V5] {
        let node = node(Vec::new()).await;
        let mut subscriber = Client::new(node.address, connect(version, "s")).await;
        subscriber.subscribe("plant/+", Qos::ExactlyOnce).await;
        let mut publisher = Client::new(node.address, connect(version, "p")).await;
        for (id, qos) in [
            (0, Qos::AtMostOnce),
            (7, Qos::AtLeastOnce),
            (8, Qos::ExactlyOnce),
        ] {
            publisher
                .publish("plant/a", &format!("m{id}"), qos, id)
                .await;
            publisher.expect_acks(qos, id).await;
            let message = subscriber.message().await;
            assert_eq!(
                (&*message.topic, message.qos),
                ("plant/a", qos),
                "{version:?}"
            );
            assert_eq!(message.payload, format!("m{id}"));
        }
        let records = node.records("mqtt_messages");
        let qos = |number: &str| vec![("mqtt.qos".to_owned(), number.to_owned())];
        let record = |value: &str, headers| ("plant/a".to_owned(), value.to_owned(), headers);
        let expected = [
            record("m0", qos("0")),
            record("m7", Vec::new()),
            record("m8", qos("2")),
        ];
        assert_eq!(records, expected);
    }
}

#[tokio::test]
async fn what_kafka_and_http_produce_reaches_subscribers() {
    let kafka = TopicName::new("temperature").unwrap();
    let rule = Rule {
        filter: "plant/+/temperature".to_owned(),
        key: "{1}".parse().unwrap(),
        topic: Some("plant/{key}/temperature".parse().unwrap()),
        retain: RetainRule::Always,
        ..Rule::everything(kafka)
    };
    let node = node(vec![rule]).await;
    let mut subscriber = Client::new(node.address, connect(Version::V5, "s")).await;
    subscriber.subscribe("plant/#", Qos::AtLeastOnce).await;
    node.produce("temperature", "a", "20.5").await;
    let message = subscriber.message().await;
    assert_eq!(
        (&*message.topic, &message.payload[..], message.retain),
        ("plant/a/temperature", &b"20.5"[..], false)
    );
    assert_eq!(
        message.properties.unwrap().user,
        [("unit".into(), "C".into())]
    );
    let mut late = Client::new(node.address, connect(Version::V5, "late")).await;
    late.subscribe("plant/+/temperature", Qos::AtLeastOnce)
        .await;
    assert!(
        late.message().await.retain,
        "the newest of each key is retained"
    );
}

#[tokio::test]
async fn a_message_of_qos_2_that_is_sent_again_after_a_restart_is_stored_once() {
    let node = node(Vec::new()).await;
    let persistent = || lasting("p", u32::MAX);
    let mut publisher = Client::new(node.address, persistent()).await;
    publisher.publish("t", "once", Qos::ExactlyOnce, 5).await;
    publisher.expect_ack(AckKind::PubRec, 5).await;
    drop(publisher);
    let node = node.restart().await;
    let mut publisher = Client::new(node.address, persistent()).await;
    assert!(publisher.session_present);
    publisher.publish("t", "once", Qos::ExactlyOnce, 5).await;
    publisher.expect_ack(AckKind::PubRec, 5).await;
    publisher.ack(AckKind::PubRel, 5).await;
    publisher.expect_ack(AckKind::PubComp, 5).await;
    publisher.publish("t", "twice", Qos::ExactlyOnce, 5).await;
    publisher.expect_ack(AckKind::PubRec, 5).await;
    let values: Vec<_> = node
        .records("mqtt_messages")
        .into_iter()
        .map(|(_, value, _)| value)
        .collect();
    assert_eq!(values, ["once", "twice"]);
}

#[tokio::test]
async fn a_session_outlives_the_process_with_what_waits_for_it() {
    let node = node(Vec::new()).await;
    let persistent = || lasting("s", 1000);
    let mut subscriber = Client::new(node.address, persistent()).await;
    assert!(!subscriber.session_present);
    subscriber.subscribe("t", Qos::ExactlyOnce).await;
    let mut publisher = Client::new(node.address, connect(Version::V3, "p")).await;
    publisher.publish("t", "sent", Qos::ExactlyOnce, 1).await;
    publisher.expect_acks(Qos::ExactlyOnce, 1).await;
    let (message, id) = subscriber.message_and_id().await;
    assert_eq!(message.payload, "sent");
    drop(subscriber);
    for (id, text) in [(2, "first"), (3, "second")] {
        publisher.publish("t", text, Qos::AtLeastOnce, id).await;
        publisher.expect_acks(Qos::AtLeastOnce, id).await;
    }
    let node = node.restart().await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    assert!(subscriber.session_present);
    let (again, same_id) = subscriber.message_and_id().await;
    assert_eq!(
        (&again.payload[..], same_id),
        (&b"sent"[..], id),
        "it was not acknowledged"
    );
    subscriber.ack(AckKind::PubRec, id).await;
    for text in ["first", "second"] {
        assert_eq!(subscriber.message().await.payload, text);
    }
}

#[tokio::test]
async fn a_subscriber_that_falls_behind_reads_the_log_and_misses_nothing() {
    let store = new_store();
    let node = node_on(store, Vec::new(), |config| {
        config.session.queue_messages = 10
    })
    .await;
    let mut subscriber = Client::new(node.address, connect(Version::V5, "s")).await;
    subscriber.subscribe("t", Qos::AtLeastOnce).await;
    let mut publisher = Client::new(node.address, connect(Version::V3, "p")).await;
    for number in 1..=500 {
        publisher
            .publish("t", &number.to_string(), Qos::AtLeastOnce, number)
            .await;
    }
    for number in 1..=500 {
        publisher.expect_ack(AckKind::PubAck, number).await;
    }
    for number in 1..=500 {
        let (message, id) = subscriber.message_and_id().await;
        assert_eq!(message.payload, number.to_string());
        subscriber.ack(AckKind::PubAck, id).await;
    }
}

#[tokio::test]
async fn a_shared_subscription_keeps_what_nobody_was_there_for() {
    let node = node(Vec::new()).await;
    let persistent = |id| lasting(id, 1000);
    let mut member = Client::new(node.address, persistent("m")).await;
    member.subscribe("$share/g/t", Qos::AtLeastOnce).await;
    drop(member);
    let mut publisher = Client::new(node.address, connect(Version::V3, "p")).await;
    let gone = || node.stats.connected.load(Ordering::Relaxed) == 1;
    client::until("the member is gone", gone).await;
    for number in 1..=3 {
        publisher
            .publish("t", &number.to_string(), Qos::AtLeastOnce, number)
            .await;
        publisher.expect_ack(AckKind::PubAck, number).await;
    }
    let mut member = Client::new(node.address, persistent("m")).await;
    for number in 1..=3 {
        assert_eq!(member.message().await.payload, number.to_string());
    }
}

#[tokio::test]
async fn what_a_member_of_a_shared_subscription_was_given_comes_after_a_crash() {
    let node = node(Vec::new()).await;
    let persistent = || lasting("m", 1000);
    let mut member = Client::new(node.address, persistent()).await;
    member.subscribe("$share/g/t", Qos::AtLeastOnce).await;
    drop(member);
    for text in ["one", "two", "three"] {
        node.produce("mqtt_messages", "t", text).await;
    }
    let store = node.end().await;
    let partition = store.topic("mqtt_messages").unwrap().partitions[0];
    let place = |offset| {
        let filter: Box<str> = "$share/g/t".into();
        (filter, session::Place { partition, offset })
    };
    let given = saved::SavedProgress {
        positions: session::Positions::from([(partition, 3)]),
        owed: vec![place(0), place(2)],
        ..saved::SavedProgress::default()
    };
    let limits = MqttConfig::new("127.0.0.1:0".parse().unwrap()).session;
    let state = session::State::restored(Arc::from("m"), limits, given);
    let change = saved::progress(&state, &session::Positions::new());
    store.put_state(vec![change]).await.unwrap().unwrap();
    let node = node_on(store, Vec::new(), |_| {}).await;
    let mut member = Client::new(node.address, persistent()).await;
    for text in ["one", "three"] {
        assert_eq!(member.message().await.payload, text);
    }
}

/// The log begins with the message: no session on disk has a place in it.
#[tokio::test]
async fn the_first_message_of_all_reaches_a_session_that_was_away_across_a_restart() {
    let node = node(Vec::new()).await;
    let persistent = || lasting("s", 1000);
    let mut subscriber = Client::new(node.address, persistent()).await;
    subscriber.subscribe("t", Qos::AtLeastOnce).await;
    drop(subscriber);
    let gone = || node.stats.connected.load(Ordering::Relaxed) == 0;
    client::until("the subscriber is gone", gone).await;
    let mut publisher = Client::new(node.address, connect(Version::V3, "p")).await;
    publisher.publish("t", "first", Qos::AtLeastOnce, 1).await;
    publisher.expect_ack(AckKind::PubAck, 1).await;
    drop(publisher);
    let node = node.restart().await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    assert!(subscriber.session_present);
    assert_eq!(subscriber.message().await.payload, "first");
}

/// As a crash leaves it: acknowledged, and nothing else was written before the process was killed.
#[tokio::test]
async fn the_first_message_of_a_log_is_delivered_and_retained_though_the_node_was_killed_behind_it()
{
    let node = node(Vec::new()).await;
    let persistent = || lasting("s", 1000);
    let mut subscriber = Client::new(node.address, persistent()).await;
    subscriber.subscribe("t", Qos::AtLeastOnce).await;
    drop(subscriber);
    let store = node.end().await;
    let ingest = Ingest::new(store.clone(), any_topic(), IngestLimits::default());
    let topic = ingest.topic("mqtt_messages", true).await.unwrap();
    let mut batch = BatchBuilder::default();
    let retain = Header {
        name: b"mqtt.retain",
        value: Some(b"1"),
    };
    batch.push(
        shared::time::wall_ms(),
        Some(b"t"),
        Some(b"first"),
        &[retain],
    );
    let pending = ingest.append(&topic, 0, batch.build().unwrap()).await;
    pending.unwrap().synced().await.unwrap();
    let node = node_on(store, Vec::new(), |_| {}).await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    assert!(subscriber.session_present);
    assert_eq!(subscriber.message().await.payload, "first");
    let mut late = Client::new(node.address, connect(Version::V5, "late")).await;
    late.subscribe("t", Qos::AtLeastOnce).await;
    assert!(late.message().await.retain);
}

/// With a new rule the old records of its topic are not messages for sessions that were there before.
#[tokio::test]
async fn what_was_in_a_topic_before_a_rule_led_there_is_not_delivered() {
    let node = node(Vec::new()).await;
    let persistent = || lasting("s", 1000);
    let mut subscriber = Client::new(node.address, persistent()).await;
    subscriber.subscribe("#", Qos::AtLeastOnce).await;
    node.produce("old", "a", "before").await;
    drop(subscriber);
    let mut store = node.end().await;
    let rule = || Rule {
        filter: "old/#".to_owned(),
        key: "{1}".parse().unwrap(),
        topic: Some("old/{key}".parse().unwrap()),
        ..Rule::everything(TopicName::new("old").unwrap())
    };
    // the second start must not know less than the first
    for _ in 0..2 {
        store = node_on(store, vec![rule()], |_| {}).await.end().await;
    }
    let node = node_on(store, vec![rule()], |_| {}).await;
    node.produce("old", "a", "after").await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    assert_eq!(subscriber.message().await.payload, "after");
}

#[tokio::test]
async fn a_packet_id_that_was_released_is_free_whatever_became_of_its_session() {
    let node = node(Vec::new()).await;
    let session = |session_expiry_s| lasting("p", session_expiry_s);
    let mut publisher = Client::new(node.address, session(1000)).await;
    publisher.publish("t", "one", Qos::ExactlyOnce, 5).await;
    publisher.expect_ack(AckKind::PubRec, 5).await;
    drop(publisher);
    let mut publisher = Client::new(node.address, session(0)).await;
    assert!(publisher.session_present);
    publisher.ack(AckKind::PubRel, 5).await;
    publisher.expect_ack(AckKind::PubComp, 5).await;
    drop(publisher);
    let gone = || node.stats.connected.load(Ordering::Relaxed) == 0;
    client::until("the session has ended", gone).await;
    let publisher = Client::new(node.address, session(1000)).await;
    drop(publisher);
    let node = node.restart().await;
    let mut publisher = Client::new(node.address, session(1000)).await;
    publisher.publish("t", "two", Qos::ExactlyOnce, 5).await;
    publisher.expect_ack(AckKind::PubRec, 5).await;
    let values: Vec<_> = node
        .records("mqtt_messages")
        .into_iter()
        .map(|(_, value, _)| value)
        .collect();
    assert_eq!(values, ["one", "two"]);
}

/// Publishes retained messages, and waits until they are.
async fn retain(node: &Node, topics: u16, qos: Qos) {
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    for number in 1..=topics {
        publisher
            .retain(&format!("r/{number:03}"), qos, number)
            .await;
        publisher.expect_acks(qos, number).await;
    }
    let mut late = Client::new(node.address, connect(Version::V5, "late")).await;
    // a subscription waits for the tail
    late.subscribe("none", qos).await;
}

#[tokio::test]
async fn retained_messages_that_were_not_sent_yet_come_after_a_reconnect_and_after_a_restart() {
    let node = node_on(new_store(), Vec::new(), |config| config.max_inflight = 5).await;
    retain(&node, 200, Qos::AtLeastOnce).await;
    let persistent = || lasting("s", 1000);
    let mut found = std::collections::BTreeSet::new();
    let mut subscriber = Client::new(node.address, persistent()).await;
    subscriber.subscribe("r/#", Qos::AtLeastOnce).await;
    for _ in 0..70 {
        found.insert(subscriber.message().await.topic);
    }
    drop(subscriber);
    let mut subscriber = Client::new(node.address, persistent()).await;
    for _ in 0..30 {
        let message = subscriber.message().await;
        assert!(message.retain);
        found.insert(message.topic);
    }
    drop(subscriber);
    let node = node.restart().await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    while found.len() < 200 {
        found.insert(subscriber.message().await.topic);
    }
}

/// A client that has an id takes what comes next under it for the same message.
/// Sent without waiting for an answer: none is on disk when the last comes.
#[tokio::test]
async fn retained_messages_that_are_on_their_way_count() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.retained.entries = 10;
    })
    .await;
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    for id in 1..=100 {
        let topic = format!("r/{id}");
        publisher.retain(&topic, Qos::AtLeastOnce, id).await;
    }
    for id in 1..=100 {
        let expected = if id <= 10 {
            reason::SUCCESS
        } else {
            reason::QUOTA_EXCEEDED
        };
        assert_eq!(publisher.ack_reason(id).await, expected, "{id}");
    }
    // those that have one already may have another
    for id in 1..=10 {
        let topic = format!("r/{id}");
        publisher.retain(&topic, Qos::AtLeastOnce, id).await;
        assert_eq!(publisher.ack_reason(id).await, reason::SUCCESS);
    }
    let mut subscriber = Client::new(node.address, connect(Version::V5, "s")).await;
    subscriber.subscribe("r/+", Qos::AtLeastOnce).await;
    for _ in 0..10 {
        assert!(subscriber.message().await.retain);
    }
    let mut old = Client::new(node.address, connect(Version::V3, "old")).await;
    old.retain("r/11", Qos::AtLeastOnce, 1).await;
    assert_eq!(old.disconnected().await, None);
    assert_eq!(node.stats.not_retained.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_retained_message_of_qos_2_keeps_its_id_over_a_restart() {
    let node = node(Vec::new()).await;
    retain(&node, 1, Qos::ExactlyOnce).await;
    let persistent = || lasting("s", 1000);
    let mut subscriber = Client::new(node.address, persistent()).await;
    subscriber.subscribe("r/#", Qos::ExactlyOnce).await;
    let (first, id) = subscriber.message_and_id().await;
    drop(subscriber);
    let node = node.restart().await;
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    publisher.publish("r/new", "new", Qos::ExactlyOnce, 1).await;
    publisher.expect_acks(Qos::ExactlyOnce, 1).await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    let (again, same_id) = subscriber.message_and_id().await;
    assert_eq!(
        (again.topic, again.retain, same_id),
        (first.topic, true, id)
    );
    let (new, other_id) = subscriber.message_and_id().await;
    assert_eq!(&*new.topic, "r/new");
    assert_ne!(other_id, id);
}

#[tokio::test]
async fn a_session_that_ends_with_its_connection_is_not_on_disk_though_it_was() {
    let node = node(Vec::new()).await;
    let session = |session_expiry_s| lasting("s", session_expiry_s);
    let on_disk = || {
        let facts = [StateSpace::MqttSession, StateSpace::MqttInflight];
        let mut all = facts
            .iter()
            .flat_map(|space| node.store.state(*space, b"").unwrap());
        all.any(|(key, _)| key.as_ref() != b"t")
    };
    let mut subscriber = Client::new(node.address, session(1000)).await;
    subscriber.subscribe("t", Qos::ExactlyOnce).await;
    subscriber.publish("u", "u", Qos::ExactlyOnce, 1).await;
    subscriber.expect_ack(AckKind::PubRec, 1).await;
    assert!(on_disk());
    let subscriber = Client::new(node.address, session(0)).await;
    assert!(subscriber.session_present);
    assert!(!on_disk(), "a crash would bring it back");
}

#[tokio::test]
async fn a_session_does_not_keep_what_its_user_may_not_read_any_more() {
    let node = node(Vec::new()).await;
    let persistent = || lasting("s", 1000);
    let mut subscriber = Client::new(node.address, persistent()).await;
    subscriber.subscribe("t", Qos::AtLeastOnce).await;
    node.produce("mqtt_messages", "t", "sent").await;
    subscriber.message_and_id().await;
    drop(subscriber);
    let store = node.end().await;
    let rules = Rules {
        consume: vec!["other".parse().unwrap()],
        ..Rules::all()
    };
    let access = Access::new(&config::AccessConfig {
        anonymous: Some(rules),
        users: Vec::new(),
    });
    let node = node_with(store, Vec::new(), access.unwrap(), |_| {}).await;
    node.produce("mqtt_messages", "t", "waits").await;
    let mut subscriber = Client::new(node.address, persistent()).await;
    assert!(subscriber.session_present);
    // what was sent to it would come before the answer
    assert_eq!(
        subscriber.try_subscribe("t", Qos::AtLeastOnce).await,
        reason::NOT_AUTHORIZED
    );
    let saved = node.store.state(StateSpace::MqttSession, b"ss").unwrap();
    let saved = saved::read_session(&saved[0].1).unwrap();
    assert!(saved.subscriptions.is_empty(), "{saved:?}");
}

#[tokio::test]
async fn the_second_connection_of_a_client_takes_the_session_over() {
    let node = node(Vec::new()).await;
    let mut first = Client::new(node.address, connect(Version::V5, "c")).await;
    let _second = Client::new(node.address, connect(Version::V5, "c")).await;
    assert_eq!(first.disconnected().await, Some(reason::SESSION_TAKEN_OVER));
}

#[tokio::test]
async fn an_idle_client_is_told_that_the_node_stops() {
    let node = node(Vec::new()).await;
    let mut idle = Client::new(node.address, connect(Version::V5, "c")).await;
    idle.ping().await;
    node.stop.cancel();
    assert_eq!(
        idle.disconnected().await,
        Some(reason::SERVER_SHUTTING_DOWN)
    );
}

#[tokio::test]
async fn filters_that_may_not_be_subscribed_to_are_refused() {
    let node = node(Vec::new()).await;
    let mut client = Client::new(node.address, connect(Version::V5, "c")).await;
    assert_eq!(
        client.try_subscribe("secret/a", Qos::AtLeastOnce).await,
        reason::UNSPECIFIED
    );
    assert_eq!(
        client.try_subscribe("a/#/b", Qos::AtLeastOnce).await,
        reason::FILTER_INVALID
    );
}

#[tokio::test]
async fn a_will_is_published_when_a_client_goes_without_a_word() {
    let node = node(Vec::new()).await;
    let mut subscriber = Client::new(node.address, connect(Version::V3, "s")).await;
    subscriber.subscribe("will", Qos::AtLeastOnce).await;
    let will = client::Connect {
        will: Some(("will", "gone")),
        ..connect(Version::V3, "w")
    };
    drop(Client::new(node.address, will).await);
    assert_eq!(subscriber.message().await.payload, "gone");
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let node = node(Vec::new()).await;
    let mut bystander = Client::new(node.address, connect(Version::V5, "b")).await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x10, 0xff, 0xff, 0xff, 0x7f],
        &[0x10, 2, 0, 0],
    ] {
        client::raw(node.address, bytes).await;
    }
    bystander.ping().await;
    bystander
        .send(&Bytes::from_static(&[0x30, 0xff, 0xff, 0xff, 0x7f]))
        .await;
    assert_eq!(
        bystander.disconnected().await,
        Some(reason::PACKET_TOO_LARGE)
    );
}

#[tokio::test]
async fn a_publish_above_the_rate_waits_and_a_ping_behind_it_does_not() {
    for version in [Version::V3, Version::V5] {
        let node = node_on(new_store(), Vec::new(), |config| {
            config.endpoints[0].quota = Arc::new(Quota::new(crate::quota::Limits {
                producer_byte_rate: Some(shared::units::ByteSize::kib(1)),
                ..crate::quota::Limits::default()
            }));
        })
        .await;
        let mut client = Client::new(node.address, connect(version, "p")).await;
        // a minute of debt
        let large = "x".repeat(60 * 1024);
        client.publish("a", &large, Qos::AtLeastOnce, 1).await;
        client.expect_acks(Qos::AtLeastOnce, 1).await;
        for id in [2, 3] {
            client.publish("a", "small", Qos::AtLeastOnce, id).await;
            client.ping().await;
        }
        assert_eq!(node.records("mqtt_messages").len(), 1);
        let waited = node.stats.throttled_ms.load(Ordering::Relaxed);
        assert!(waited > 50_000, "{waited} ms");
    }
}

/// What a client said before it went is carried out, also when it has to wait for the rate.
#[tokio::test]
async fn a_client_above_the_rate_may_say_goodbye() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.endpoints[0].quota = Arc::new(Quota::new(crate::quota::Limits {
            producer_byte_rate: Some(shared::units::ByteSize::kib(4)),
            ..crate::quota::Limits::default()
        }));
    })
    .await;
    let will = client::Connect {
        will: Some(("will", "gone")),
        ..connect(Version::V5, "p")
    };
    let mut client = Client::new(node.address, will).await;
    // a second of debt
    let large = "x".repeat(8 * 1024);
    client.publish("a", &large, Qos::AtLeastOnce, 1).await;
    client.expect_acks(Qos::AtLeastOnce, 1).await;
    client.publish("a", "held", Qos::AtMostOnce, 0).await;
    client.send(&[0xe0, 0]).await;
    drop(client);
    let gone = || node.stats.connected.load(Ordering::Relaxed) == 0;
    client::until("the client is gone", gone).await;
    client::until("what it sent is stored", || {
        node.records("mqtt_messages").len() >= 2
    })
    .await;
    let values = node.records("mqtt_messages").into_iter();
    let values: Vec<_> = values.map(|(_, value, _)| value).collect();
    assert_eq!(values, [large, "held".to_owned()]);
}

#[tokio::test]
async fn where_sessions_of_clients_that_are_away_take_all_places_others_are_told() {
    let lines = Lines::new();
    let node = node_on(new_store(), Vec::new(), |config| config.max_sessions = 2).await;
    for id in ["a", "b"] {
        drop(Client::new(node.address, lasting(id, 1000)).await);
    }
    let code = Client::refused(node.address, connect(Version::V5, "c")).await;
    assert_eq!(code, reason::QUOTA_EXCEEDED);
    let code = Client::refused(node.address, connect(Version::V3, "c")).await;
    assert_eq!(code, 3, "server unavailable");
    assert_eq!(node.stats.refused_connections.load(Ordering::Relaxed), 2);
    let told = lines.with("as many sessions as allowed");
    assert_eq!(told.len(), 1, "{told:?}");
    // whose session it is may come, and end it
    drop(Client::new(node.address, connect(Version::V5, "a")).await);
    let is_gone = || node.stats.connected.load(Ordering::Relaxed) == 0;
    client::until("it is gone", is_gone).await;
    Client::new(node.address, connect(Version::V5, "c")).await;
}

#[tokio::test]
async fn after_the_log_refused_a_message_none_is_acknowledged_before_the_sync() {
    let store = FakeStore::shared();
    let rule = Rule {
        ack: AckRule::BeforeSync,
        ..Rule::everything(TopicName::new("fast").unwrap())
    };
    let node = node_on(store.clone(), vec![rule], |_| {}).await;
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    let full = AppendError::Full("on purpose");
    store.set(Mode::Hold);
    publisher.publish("t", "held", Qos::AtLeastOnce, 1).await;
    publisher.expect_ack(AckKind::PubAck, 1).await;
    client::until("it waits for the sync", || store.held() == 1).await;
    store.release();
    store.set(Mode::Refuse(full, u32::MAX));
    publisher.publish("t", "lost", Qos::AtLeastOnce, 2).await;
    publisher.expect_ack(AckKind::PubAck, 2).await;
    let refused = &node.ingest.stats().full;
    let is_refused = || refused.load(Ordering::Relaxed) == 1;
    client::until("the log refuses it", is_refused).await;
    for (id, qos) in [(3, Qos::AtLeastOnce), (4, Qos::ExactlyOnce)] {
        publisher.publish("t", "refused", qos, id).await;
        assert_eq!(publisher.ack_reason(id).await, reason::QUOTA_EXCEEDED);
    }
    // until one is stored
    store.set(Mode::Hold);
    publisher.publish("t", "stored", Qos::AtLeastOnce, 5).await;
    publisher.ping().await;
    client::until("it waits for the sync", || store.held() == 1).await;
    store.release();
    publisher.expect_ack(AckKind::PubAck, 5).await;
    store.set(Mode::Hold);
    publisher.publish("t", "held", Qos::AtLeastOnce, 6).await;
    publisher.expect_ack(AckKind::PubAck, 6).await;
    client::until("it waits for the sync", || store.held() == 1).await;
    let values = node.records("fast").into_iter().map(|(_, value, _)| value);
    assert!(values.eq(["held", "stored", "held"]));
}

#[tokio::test]
async fn refused_logins_are_told_once_in_a_while_and_without_the_secret() {
    let lines = Lines::new();
    let user = config::UserConfig {
        name: "till".to_owned(),
        credentials: vec![Credential::make(
            Mechanism::Sha256,
            b"secret",
            b"0123456789abcdef",
        )],
        password_file: None,
        tokens: Vec::new(),
        common_name: None,
        rules: Rules::all(),
    };
    let access = Access::new(&config::AccessConfig {
        anonymous: None,
        users: vec![user],
    });
    let node = node_with(new_store(), Vec::new(), access.unwrap(), |_| {}).await;
    let connect = b"\x10\x1a\0\x04MQTT\x04\xc2\0\0\0\x01c\0\x04till\0\x05wr0ng";
    for _ in 0..2 {
        client::raw(node.address, connect).await;
    }
    let told = lines.with("Login refused");
    assert_eq!(told.len(), 1, "{told:?}");
    for part in ["mqtt", "till", "127.0.0.1", "user or password is wrong"] {
        assert!(told[0].contains(part), "{part}: {told:?}");
    }
    assert!(!told[0].contains("wr0ng"));
}
