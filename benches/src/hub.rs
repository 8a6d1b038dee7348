//! The hub alone, fed by simulated sites, against one plain idempotent producer on the same broker.
//!
//! Both write the same keys and values, in batches of the same size with the same compression, to topics
//! with as many partitions, and both begin warm: topics looked up, connections and lanes there. The hub
//! and its sites run in transactions and over QUIC on the machine on which the broker runs, the peer
//! needs neither. A second peer sends the hub's five headers as well: what they cost.

#![allow(clippy::print_stdout, reason = "a bench says how it went")]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use system_tests::broker::Broker;
use system_tests::hub::{Certs, Hub};
use system_tests::process;
use system_tests::settings::Settings;

use crate::fleet::{BATCH, Fleet};
use crate::load::VALUE_LEN;
use crate::results::{Goal, Row};

/// As many as a hub has that is told nothing.
const LANES: i64 = 4;
const SITES: u32 = 16;
const PARTITIONS: i32 = 4;
const BATCHES_PER_SITE: u64 = 125;
const RECORDS: u64 = BATCHES_PER_SITE * BATCH * SITES as u64;
const WARM_UP: u64 = SITES as u64 * BATCH;
/// The first warms the broker up: its compiler is at work for seconds.
const ROUNDS: usize = 4;
const LIMIT: Duration = Duration::from_secs(60);

/// Measures the rows.
///
/// # Errors
/// When a system does not start or a record is missing.
pub fn rows() -> Result<Vec<Row>> {
    let broker = Broker::start()?;
    let (mut ours, mut plain, mut headers) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ours.push(hub(&broker, round)?);
        plain.push(producer(&broker, &format!("plain-{round}"), false)?);
        headers.push(producer(&broker, &format!("headers-{round}"), true)?);
        println!(
            "    hub {}\n    plain {}\n    with headers {}",
            ours[round], plain[round], headers[round]
        );
    }
    let (ours, plain, headers) = (
        median(&ours[1..]),
        median(&plain[1..]),
        median(&headers[1..]),
    );
    let unit = "records/s";
    Ok(vec![
        Row::new(
            "hub alone, 16 simulated sites, 200 B records",
            unit,
            ours,
            Some(("one idempotent librdkafka producer", plain)),
            Goal::AtLeast(0.7),
        ),
        Row::new(
            "hub alone against a producer that sends the hub's headers",
            unit,
            ours,
            Some(("the same producer with five headers", headers)),
            Goal::AtLeast(0.7),
        ),
    ])
}

/// How one run went.
struct Run {
    rate: f64,
    /// Who used how much of the processor, in microseconds a record.
    costs: Vec<(&'static str, f64)>,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} records/s; µs of processor a record:", self.rate)?;
        self.costs
            .iter()
            .try_for_each(|(who, cost)| write!(f, " {who} {cost:.2}"))
    }
}

fn median(runs: &[Run]) -> f64 {
    let mut rates: Vec<_> = runs.iter().map(|run| run.rate).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

type CpuTime<'a> = Box<dyn Fn() -> Duration + 'a>;

/// Takes the time of `work`, which moves all records.
fn measure(
    who: Vec<(&'static str, CpuTime<'_>)>,
    work: impl FnOnce() -> Result<()>,
) -> Result<Run> {
    let before: Vec<_> = who.iter().map(|(_, used)| used()).collect();
    let started = Instant::now();
    work()?;
    let rate = RECORDS as f64 / started.elapsed().as_secs_f64();
    let costs = who.iter().zip(before).map(|((who, used), before)| {
        let cost = (used() - before).as_secs_f64() * 1e6 / RECORDS as f64;
        (*who, cost)
    });
    Ok(Run {
        rate,
        costs: costs.collect(),
    })
}

/// The keys and values of one batch.
fn records() -> Vec<([u8; 8], [u8; VALUE_LEN])> {
    let record = |number: u64| {
        let mut value = [b'x'; VALUE_LEN];
        value[..20].copy_from_slice(format!("{number:020}").as_bytes());
        (number.to_be_bytes(), value)
    };
    (0..BATCH).map(record).collect()
}

fn hub(broker: &Broker, round: usize) -> Result<Run> {
    let topic = format!("hub-{round}");
    broker.create_topic(&topic, PARTITIONS, &[])?;
    let certs = Certs::make()?;
    let settings = Settings::default().with("commit.lanes", LANES);
    let mut hub = Hub::prepare(&topic, broker.bootstrap(), &certs.hub(), &settings)?;
    hub.start()?;
    let records = records();
    let batch = records.iter().map(|(key, value)| (&key[..], &value[..]));
    let mut fleet = Fleet::start(hub.address(), &certs, SITES, &topic, batch)?;
    fleet.send_up_to(BATCH)?;
    let hub_id = hub.process()?.id();
    let who: Vec<(_, CpuTime<'_>)> = vec![
        ("hub", Box::new(|| process::cpu_time(hub_id))),
        ("sites", Box::new(|| process::cpu_time(std::process::id()))),
        ("Kafka", Box::new(|| broker.cpu_time())),
    ];
    let run = measure(who, || fleet.send_up_to(BATCH + BATCHES_PER_SITE * BATCH))?;
    drop(fleet);
    expect(count(broker, &topic)?)?;
    Ok(run)
}

fn expect(found: u64) -> Result<()> {
    if found != WARM_UP + RECORDS {
        bail!("{found} of {} records are there", WARM_UP + RECORDS);
    }
    Ok(())
}

#[derive(Debug, Default, Clone)]
struct Count {
    delivered: Arc<AtomicU64>,
}

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The peer, with the settings of the hub's own producers as far as they are about speed.
fn producer(broker: &Broker, topic: &str, with_headers: bool) -> Result<Run> {
    broker.create_topic(topic, PARTITIONS, &[])?;
    let count_of = Count::default();
    let producer: ThreadedProducer<Count> = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("batch.size", "1000000")
        .set("batch.num.messages", "10000")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "500000")
        .create_with_context(count_of.clone())?;
    let records = records();
    let send = |total: u64| -> Result<()> {
        for number in 0..total {
            let (key, value) = &records[usize::try_from(number % BATCH)?];
            let mut record = BaseRecord::to(topic).key(&key[..]).payload(&value[..]);
            if with_headers {
                record = record.headers(headers(number));
            }
            while let Err((error, back)) = producer.send(record) {
                if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(producer.flush(LIMIT)?)
    };
    send(WARM_UP)?;
    let who: Vec<(_, CpuTime<'_>)> = vec![
        (
            "producer",
            Box::new(|| process::cpu_time(std::process::id())),
        ),
        ("Kafka", Box::new(|| broker.cpu_time())),
    ];
    let run = measure(who, || send(RECORDS))?;
    expect(count_of.delivered.load(Ordering::Relaxed))?;
    expect(count(broker, topic)?)?;
    Ok(run)
}

fn headers(number: u64) -> OwnedHeaders {
    let (number, timestamp) = (number.to_string(), "1763841600000");
    let incarnation = "00000000000000000000000000000001";
    [
        ("kedge.site", "site-00"),
        ("kedge.incarnation", incarnation),
        ("kedge.partition", "0"),
        ("kedge.offset", &number),
        ("kedge.ts", timestamp),
    ]
    .into_iter()
    .fold(
        OwnedHeaders::new_with_capacity(5),
        |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        },
    )
}

/// Records that a reader of committed records finds.
fn count(broker: &Broker, topic: &str) -> Result<u64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("group.id", "bench-count")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut count, mut ended) = (0, 0);
    while ended < PARTITIONS {
        match consumer.poll(LIMIT).context("the records do not come")? {
            Ok(record) => count += u64::from(record.payload_len() == VALUE_LEN),
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}
