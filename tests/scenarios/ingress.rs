//! Kills of a site under all its protocols at once: MQTT of QoS 1 and 2 and idempotent Kafka producers write,
//! MQTT subscribers read along. Nothing acknowledged is lost, QoS 2 and idempotent records are there once, and
//! what has one key keeps its order, at the centre and at the subscribers.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use system_tests::broker::Broker;
use system_tests::central::Committed;
use system_tests::mqtt::properties::id;
use system_tests::mqtt::reader::{MqttReader, Seen};
use system_tests::mqtt::writer::{MqttWriter, Plan};
use system_tests::mqtt::{Hello, Properties, Version};
use system_tests::record::Numbered;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Acked, Pace, Writer};
use system_tests::{oracle, seed, wait};
use toml::{Table, Value};

const LIMIT: Duration = Duration::from_secs(90);
const KILLS: u32 = 12;
/// Records a second of each writer.
const RATE: u32 = 200;

#[test]
#[ignore = "system test: make test"]
fn kills_lose_and_double_nothing_of_any_protocol() -> Result<()> {
    let run_seed = seed::announce("ingress kills");
    let mut random = seed::generator(run_seed, "kills");
    let name = |what: &str| format!("{what}-{run_seed}");
    let (first, second) = (name("qos1"), name("qos2"));
    let rules = [rule("q1/+", &first), rule("q2/+", &second)];
    let site = Settings::default().with("mqtt.map", Value::Array(rules.to_vec()));
    let mut stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let mqtt = stage.site.mqtt().parse()?;

    let readers = [
        MqttReader::start(mqtt, lasting(Version::V3, "reader-1"), "q1/+", 1)?,
        MqttReader::start(mqtt, lasting(Version::V5, "reader-2"), "q2/+", 2)?,
    ];
    let plan = |version, qos: u8, kafka_topic: &str| Plan {
        hello: lasting(version, &format!("writer-{qos}")),
        qos,
        prefix: format!("q{qos}"),
        kafka_topic: kafka_topic.to_owned(),
        rate: RATE,
        seed: run_seed,
    };
    let writers = [
        MqttWriter::start(mqtt, plan(Version::V3, 1, &first)),
        MqttWriter::start(mqtt, plan(Version::V5, 2, &second)),
    ];
    let kafka_topic = stage.topic("ingress-kafka");
    let pace = Pace {
        rate: RATE,
        seed: run_seed,
        ..Pace::default()
    };
    let kafka = Writer::kafka("k", &stage.site.bootstrap(), &kafka_topic, pace, &[])?;
    for _ in 0..KILLS {
        wait::let_run(Duration::from_millis(random.random_range(50..900)));
        stage.site.kill();
        stage.site.start()?;
    }
    let [once, twice] = writers.map(|writer| writer.finish(LIMIT));
    let (once, twice) = (once.context("QoS 1")?, twice.context("QoS 2")?);
    let kafka = kafka.finish(LIMIT)?;
    let refused = kafka.refused().clone();
    ensure!(
        refused.is_empty(),
        "an idempotent producer gave up: {refused:?}"
    );
    let (once, twice, kafka) = (
        once.acked().clone(),
        twice.acked().clone(),
        kafka.acked().clone(),
    );
    seed::say(&format!(
        "ingress kills: {KILLS} kills, acknowledged {} of QoS 1, {} of QoS 2, {} of Kafka",
        once.len(),
        twice.len(),
        kafka.len()
    ));
    ensure!(
        [&once, &twice, &kafka]
            .iter()
            .all(|acked| acked.len() > 100),
        "too few"
    );

    stage.judge(&kafka, LIMIT)?.check().context("Kafka")?;
    stage.judge(&twice, LIMIT)?.check().context("QoS 2")?;
    at_least_once(&stage, &once, &first).context("QoS 1")?;
    let [reader, exact_reader] = readers;
    let seen = all_seen(reader, &once).context("the reader of QoS 1")?;
    check_order(&first_of_each(&seen))?;
    let seen = all_seen(exact_reader, &twice).context("the reader of QoS 2")?;
    check_order(&seen).context("exactly once")
}

/// Each MQTT topic's name is the record's key.
fn rule(mqtt: &str, kafka: &str) -> Value {
    let pairs = [("mqtt", mqtt), ("kafka", kafka), ("key", "{topic}")];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), Value::from(value)));
    Value::Table(Table::from_iter(pairs))
}

fn lasting(version: Version, client_id: &str) -> Hello {
    let hello = Hello::new(version, client_id).resume();
    match version {
        Version::V3 => hello,
        Version::V5 => hello.with(Properties::none().four(id::SESSION_EXPIRY, 600)),
    }
}

/// The oracle over the first copy of each record: QoS 1 may be there again.
fn at_least_once(stage: &Stage, acked: &[Acked], topic: &str) -> Result<()> {
    let reader = stage.reader(&[topic])?;
    let distinct = |seen: &[Committed]| -> Vec<Committed> {
        let mut numbers = HashSet::new();
        let number = |record: &&Committed| {
            let payload = record.payload.as_deref().unwrap_or_default();
            Numbered::decode(payload).is_none_or(|record| numbers.insert(record.number))
        };
        seen.iter().filter(number).cloned().collect()
    };
    reader.wait("all acknowledged records", LIMIT, |seen| {
        seen.len() >= acked.len() && distinct(seen).len() >= acked.len()
    })?;
    let all = distinct(&reader.seen());
    oracle::judge(acked, &all, ToOwned::to_owned).check()
}

/// Waits until a subscriber has seen each acknowledged number, and nothing comes any more.
fn all_seen(reader: MqttReader, acked: &[Acked]) -> Result<Seen> {
    let complete = wait::until_true("all acknowledged records", LIMIT, || {
        let seen = reader.seen();
        let numbers: HashSet<u64> = seen.values().flatten().copied().collect();
        acked.iter().all(|record| numbers.contains(&record.number))
    });
    complete.with_context(|| format!("{} of {} were seen", reader.count(), acked.len()))?;
    wait::let_run(Duration::from_millis(300));
    reader.finish()
}

/// Without what came before.
fn first_of_each(seen: &Seen) -> Seen {
    let mut all = seen.clone();
    for numbers in all.values_mut() {
        let mut known = HashSet::new();
        numbers.retain(|number| known.insert(*number));
    }
    all
}

/// Fails unless each topic's numbers rise.
fn check_order(seen: &Seen) -> Result<()> {
    for (topic, numbers) in seen {
        for pair in numbers.windows(2) {
            ensure!(
                pair[0] < pair[1],
                "{topic}: {} came after {}",
                pair[1],
                pair[0]
            );
        }
    }
    Ok(())
}
