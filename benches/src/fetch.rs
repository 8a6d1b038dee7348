//! Local consumers: how fast they read a log that is not in memory, and how soon they see a new record.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use system_tests::broker::Broker;
use system_tests::settings::Settings;
use system_tests::stage::Stage;

use crate::latency::Tail;
use crate::load;
use crate::results::{Goal, Row};

const RECORDS: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(120);
/// Systems take turns, so that what else the machine does meets all of them; the median counts.
const TURNS: usize = 3;

/// A site on its own: the hub is not started.
fn start() -> Result<Stage> {
    let settings = Settings::default().with("topics.default.partitions", 1);
    let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &settings)?;
    stage.site.start()?;
    Ok(stage)
}

/// Measures how fast a log is read that is not in memory.
///
/// # Errors
/// When a system does not start or records do not arrive.
pub fn cold_rows() -> Result<Vec<Row>> {
    let mut stage = start()?;
    let broker = Broker::start()?;
    broker.create_topic("bench", 1, &[])?;
    for bootstrap in [&stage.site.bootstrap(), broker.bootstrap()] {
        load::produce(bootstrap, "bench", RECORDS, None)?;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        stage.site.kill();
        stage.site.start()?;
        drop_caches()?;
        ours.push(read_all(&stage.site.bootstrap())?);
        broker.kill();
        broker.restart()?;
        drop_caches()?;
        theirs.push(read_all(broker.bootstrap())?);
    }
    for figures in [&mut ours, &mut theirs] {
        figures.sort_by(f64::total_cmp);
    }
    Ok(vec![Row::new(
        "fetch by one librdkafka consumer from a cold log, 200 B records",
        "MB/s",
        ours[TURNS / 2],
        Some(("Kafka", theirs[TURNS / 2])),
        Goal::AtLeast(1.0),
    )])
}

/// Files that are not in memory, as for a consumer that comes back after days.
fn drop_caches() -> Result<()> {
    let synced = std::process::Command::new("sync").status()?;
    ensure!(synced.success(), "sync ended with {synced}");
    fs::write("/proc/sys/vm/drop_caches", "1").context("forgetting cached files needs root")
}

/// Bytes of keys and values a second, in millions.
fn read_all(bootstrap: &str) -> Result<f64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "bench-fetch")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset("bench", 0, Offset::Beginning)?;
    consumer.assign(&from)?;
    let started = Instant::now();
    let (mut records, mut bytes) = (0, 0);
    while records < RECORDS {
        ensure!(started.elapsed() < LIMIT, "{records} of {RECORDS} came");
        let Some(record) = consumer.poll(Duration::from_secs(1)) else {
            continue;
        };
        let record = record?;
        records += 1;
        bytes += record.payload_len() + record.key_len();
    }
    Ok(bytes as f64 / 1e6 / started.elapsed().as_secs_f64())
}

/// Measures how soon a new record is seen: with a producer that sends at once, so that what is measured is the broker, and
/// with the client's default of holding records back for 5 ms, which both have to wait for.
///
/// # Errors
/// When a system does not start or records do not arrive.
pub fn tail_rows() -> Result<Vec<Row>> {
    let stage = start()?;
    let broker = Broker::start()?;
    let mut rows = Vec::new();
    for (linger_ms, how, count) in [("0", "", TURNS), ("5", " with a linger of 5 ms", 1)] {
        let (ours, theirs) = turns(count, linger_ms, &stage.site.bootstrap(), &broker)?;
        for (share, ours, theirs) in [("p50", ours.0, theirs.0), ("p99", ours.1, theirs.1)] {
            rows.push(Row::new(
                &format!("produce to fetch at 1,000 records/s{how}, {share}"),
                "ms",
                ours,
                Some(("Kafka, flush.messages=1", theirs)),
                Goal::AtMost(0.5),
            ));
        }
    }
    Ok(rows)
}

/// Median and 99th percentile of both systems, ms: the median of turns.
fn turns(
    count: usize,
    linger_ms: &str,
    ours: &str,
    theirs: &Broker,
) -> Result<((f64, f64), (f64, f64))> {
    let (mut found, mut peers) = (Vec::new(), Vec::new());
    for turn in 0..count {
        let topic = format!("bench-{linger_ms}-{turn}");
        load::produce(ours, &topic, 1, None)?;
        found.push(produce_to_fetch(linger_ms, ours, &topic)?);
        theirs.create_topic(&topic, 1, &[("flush.messages", "1")])?;
        load::produce(theirs.bootstrap(), &topic, 1, None)?;
        peers.push(produce_to_fetch(linger_ms, theirs.bootstrap(), &topic)?);
    }
    Ok((middle(&found), middle(&peers)))
}

fn middle(found: &[(f64, f64)]) -> (f64, f64) {
    let of = |figure: fn(&(f64, f64)) -> f64| {
        let mut figures: Vec<f64> = found.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    (of(|(median, _)| *median), of(|(_, p99)| *p99))
}

fn produce_to_fetch(linger_ms: &str, bootstrap: &str, topic: &str) -> Result<(f64, f64)> {
    let mut producer = load::settings(bootstrap);
    // the default of Kafka's own producer: at most five requests under way, and no duplicates
    producer.set("enable.idempotence", "true");
    producer.set("linger.ms", linger_ms);
    crate::latency::run_with(&producer, topic, &Tail::start(bootstrap, topic)?)
}
