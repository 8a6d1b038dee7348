//! Quotas of users, as their clients see them: each is told in its own protocol, and nobody else waits.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use system_tests::hub::Certs;
use system_tests::mqtt::{Client, Hello, Version};
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::{paths, process, users};
use toml::{Table, Value, toml};

const LIMIT: Duration = Duration::from_secs(120);
const PASSWORD: &str = "secret";
/// Tokens of the users, and their SHA-256.
const SLOW: (&str, &str) = (
    "slow-token",
    "sha256:8fca511e871e5afb4ff5d07dfe606a6244d850dd9e7c7305a9cd56d6169179ad",
);
const FREE: (&str, &str) = (
    "free-token",
    "sha256:8031b3868321f70f88a1747c07b79d0d1aee490a47f2f05da3c4496024b9844a",
);

/// A site with a user that is held to these limits, and one that is not held to any.
fn site(limits: Table) -> Result<(Certs, Site)> {
    let may = |token: (&str, &str), limits: Table| {
        let hash = token.1;
        let mut rules = toml! {
            tokens = [hash]
            produce = ["*"]
            consume = ["*"]
        };
        rules.extend(limits);
        rules
    };
    let known: Vec<Value> = vec![
        users::with_password("slow", PASSWORD, may(SLOW, limits))?,
        users::with_password("free", PASSWORD, may(FREE, Table::new()))?,
    ];
    let certs = Certs::make()?;
    let over = Settings::default()
        .with("topics.default.partitions", 1)
        .with("access.user", known);
    let site = Site::alone(&certs, &over)?;
    Ok((certs, site))
}

fn throttled_ms(site: &Site, protocol: &str) -> Result<f64> {
    let labels = format!("protocol=\"{protocol}\"");
    site.admin()
        .metric("kedge_edge_throttled_milliseconds_total", &labels)
}

/// librdkafka is told the throttle time when it writes and when it reads, and loses nothing by it; a user without
/// quotas is told none meanwhile.
#[test]
#[ignore = "system test: make test"]
fn a_kafka_client_above_its_quota_is_told_to_wait_and_others_are_not() -> Result<()> {
    let (_certs, site) = site(toml! {
        producer_byte_rate = "64KiB"
        consumer_byte_rate = "64KiB"
        max_topics = 1
    })?;
    let run = |task: &str, user: &str, topic: &str| {
        let mut python = Command::new(paths::python()?);
        python.args(["-c", KAFKA, &site.bootstrap(), task, user, topic]);
        process::run(&format!("{user} {task}"), python, LIMIT)
    };
    let told = |said: &str, count: &str| -> Result<f64> {
        let (found, throttle) = said.trim().split_once(' ').context("two words")?;
        ensure!(found == count, "{said}");
        Ok(throttle.parse()?)
    };
    let written = told(&run("write", "slow", "slow")?, "40")?;
    ensure!(written > 0.0, "the producer was told nothing");
    let after = throttled_ms(&site, "kafka")?;
    ensure!(after > 0.0, "the metric says nothing");
    let free = told(&run("write", "free", "free")?, "40")?;
    ensure!(free == 0.0, "another user was told to wait {free} s");
    ensure!(
        throttled_ms(&site, "kafka")? == after,
        "another user waited"
    );
    let read = told(&run("read", "slow", "slow")?, "40")?;
    ensure!(read > 0.0, "the consumer was told nothing");
    let free = told(&run("read", "free", "free")?, "40")?;
    ensure!(free == 0.0, "another user was told to wait {free} s");
    let more = run("write", "slow", "another")?;
    ensure!(more.contains("TOPIC_AUTHORIZATION_FAILED"), "{more}");
    Ok(())
}

/// Writes or reads forty records of 10 KiB, and says how many and the longest throttle time, s.
const KAFKA: &str = r#"
import os, sys
from confluent_kafka import Consumer, KafkaException, Producer
bootstrap, task, user, topic = sys.argv[1:]
throttled, failed, count = [0.0], [], 0
config = {
    "bootstrap.servers": bootstrap, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
    "sasl.username": user, "sasl.password": "secret",
    "throttle_cb": lambda event: throttled.append(event.throttle_time),
}
if task == "write":
    producer = Producer(config)
    def delivered(error, _):
        global count
        count += error is None
        error and failed.append(error.name())
    try:
        for _ in range(40):
            producer.produce(topic, os.urandom(10240), on_delivery=delivered)
    except KafkaException as error:
        # a topic that is known to be refused is refused at once
        failed.append(error.args[0].name())
    producer.flush(90)
    # events of the last answer
    producer.poll(0.5)
else:
    # nothing in memory: each fetch is for what is read next
    config |= {"group.id": "readers-" + user, "auto.offset.reset": "earliest"}
    consumer = Consumer(config)
    consumer.subscribe([topic])
    for _ in range(900):
        message = consumer.poll(0.1)
        if message and not message.error():
            count += 1
        if count == 40:
            break
    consumer.poll(0.5)
    consumer.close()
print(failed[0] if failed else f"{count} {max(throttled)}")
"#;

/// curl gets 429 with the seconds to wait, and what it was answered 200 is stored.
#[test]
#[ignore = "system test: make test"]
fn an_http_client_above_its_quota_gets_429_and_others_do_not() -> Result<()> {
    let (_certs, site) = site(toml! {
        producer_byte_rate = "16KiB"
        consumer_byte_rate = "16KiB"
    })?;
    let body = paths::scratch("body")?;
    let file = body.path().join("body");
    // half a minute of debt: longer than the requests behind it take
    std::fs::write(&file, vec![b'x'; 600 * 1024])?;
    let post = |token: &str| {
        let data = format!("@{}", file.display());
        curl(
            &site,
            token,
            "/v1/topics/t/records",
            &["--data-binary", &data],
        )
    };
    ensure!(post(SLOW.0)?.0 == 200, "the first goes through");
    let (status, retry) = post(SLOW.0)?;
    ensure!(status == 429, "{status}");
    ensure!(
        retry.is_some_and(|seconds| (1..=37).contains(&seconds)),
        "{retry:?}"
    );
    ensure!(post(FREE.0)?.0 == 200, "another user");
    let path = "/v1/topics/t/records?max_bytes=1048576";
    ensure!(
        curl(&site, SLOW.0, path, &[])?.0 == 200,
        "reading is counted by itself"
    );
    let (status, retry) = curl(&site, SLOW.0, path, &[])?;
    ensure!(status == 429 && retry.is_some(), "{status} {retry:?}");
    ensure!(curl(&site, FREE.0, path, &[])?.0 == 200, "another user");
    ensure!(site.ledger("t")?.accepted == 2, "{:?}", site.ledger("t")?);
    ensure!(
        throttled_ms(&site, "http")? > 0.0,
        "the metric says nothing"
    );
    Ok(())
}

/// Status and `Retry-After`.
fn curl(site: &Site, token: &str, path: &str, more: &[&str]) -> Result<(u16, Option<u64>)> {
    let mut command = Command::new("curl");
    command.args(["-sS", "-g", "-o", "/dev/null", "-D", "-"]);
    command.arg(format!("-HAuthorization: Bearer {token}"));
    command.args(more).arg(format!("{}{path}", site.http()));
    let head = process::run("curl", command, LIMIT)?.to_ascii_lowercase();
    // behind a "100 Continue"
    let head = head
        .trim_end()
        .rsplit("\r\n\r\n")
        .next()
        .unwrap_or_default();
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    let retry = head
        .lines()
        .find_map(|line| line.strip_prefix("retry-after: "));
    Ok((
        status,
        retry.and_then(|seconds| seconds.trim().parse().ok()),
    ))
}

/// A publish behind one that was too much waits for its acknowledgement, longer than the keep-alive, and the
/// connection holds; mosquitto's clients of another user are done meanwhile.
#[test]
#[ignore = "system test: make test"]
fn an_mqtt_client_above_its_quota_waits_and_keeps_its_connection() -> Result<()> {
    let (_certs, site) = site(toml! {
        producer_byte_rate = "16KiB"
        consumer_byte_rate = "16KiB"
    })?;
    let port = site.mqtt().rsplit(':').next().context("a port")?.to_owned();
    let mut python = Command::new(paths::python()?);
    python.args(["-c", MQTT, &port]);
    let slow = thread::spawn(move || process::run("paho", python, LIMIT));
    system_tests::wait::until_true("the first is stored", LIMIT, || {
        site.ledger("mqtt_messages")
            .is_ok_and(|ledger| ledger.accepted >= 1)
    })?;
    for number in 0..5 {
        let payload = format!("{number}");
        mosquitto(
            "mosquitto_pub",
            &port,
            "free",
            &["-t", "free", "-q", "1", "-m", &payload],
        )?;
    }
    ensure!(!slow.is_finished(), "the other had nothing to wait for");
    let said = slow.join().expect("it runs to its end")?;
    let mut words = said.split_whitespace();
    let waited: f64 = words.next().context("a time")?.parse()?;
    // it owed 19 s; timers are not exact, machines are busy
    ensure!(
        waited > 10.0,
        "the second was acknowledged {waited} s after the first"
    );
    ensure!(words.next() == Some("0"), "it was disconnected: {said}");
    ensure!(
        throttled_ms(&site, "mqtt")? > 0.0,
        "the metric says nothing"
    );

    // deliveries: a second's worth at once, the rest at the rate
    let payload = "x".repeat(16 * 1024);
    let retained = |number: usize| format!("retained/{number}");
    for number in 0..6 {
        let publish = ["-t", &retained(number), "-q", "1", "-r", "-m", &payload];
        mosquitto("mosquitto_pub", &port, "free", &publish)?;
    }
    let began = Instant::now();
    let subscribe = ["-t", "retained/+", "-q", "1", "-C", "6", "-W", "100"];
    let said = mosquitto("mosquitto_sub", &port, "slow", &subscribe)?;
    ensure!(
        said.lines().count() == 6,
        "{} messages",
        said.lines().count()
    );
    ensure!(
        began.elapsed() > Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}

fn mosquitto(program: &str, port: &str, user: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", port, "-u", user, "-P", PASSWORD]);
    command.args(arguments);
    process::run(program, command, LIMIT)
}

/// Says how many seconds lie between two acknowledgements, and how often it was disconnected.
const MQTT: &str = r#"
import sys, threading, time
import paho.mqtt.client as mqtt
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="slow", protocol=mqtt.MQTTv5)
client.username_pw_set("slow", "secret")
ready, lost = threading.Event(), []
client.on_connect = lambda *_: ready.set()
client.on_disconnect = lambda client, _, flags, reason, properties: lost.append(str(reason))
client.connect("127.0.0.1", int(sys.argv[1]), keepalive=3)
client.loop_start()
assert ready.wait(20)
first = client.publish("slow", b"x" * 320 * 1024, qos=1)
second = client.publish("slow", b"y", qos=1)
first.wait_for_publish(90)
began = time.monotonic()
second.wait_for_publish(90)
assert second.is_published()
print(time.monotonic() - began, len(lost))
client.disconnect()
client.loop_stop()
"#;

/// A user's connections are counted over its clients; one that takes over its own connection needs no other.
#[test]
#[ignore = "system test: make test"]
fn a_user_has_as_many_connections_as_it_may() -> Result<()> {
    let (_certs, site) = site(toml! { max_connections = 1 })?;
    let address = site.mqtt().parse()?;
    let hello = |client_id: &str, user: &str| Hello {
        user: Some((user.to_owned(), PASSWORD.to_owned())),
        ..Hello::new(Version::V5, client_id)
    };
    let connect = |client_id: &str, user: &str| -> Result<(Client, u8)> {
        let mut client = Client::open_at(address, Version::V5)?;
        let code = client.greet(&hello(client_id, user))?.code;
        Ok((client, code))
    };
    let (first, code) = connect("a", "slow")?;
    ensure!(code == 0, "{code:#x}");
    let (_refused, code) = connect("b", "slow")?;
    ensure!(code == 0x97, "{code:#x}");
    let (mut again, code) = connect("a", "slow")?;
    ensure!(code == 0, "a client that comes back: {code:#x}");
    drop(first);
    again.ping()?;
    for client_id in ["c", "d"] {
        let (_other, code) = connect(client_id, "free")?;
        ensure!(code == 0, "another user: {code:#x}");
    }
    again.disconnect()?;
    system_tests::wait::until_true("its place is free again", LIMIT, || {
        connect("b", "slow").is_ok_and(|(_, code)| code == 0)
    })
}
