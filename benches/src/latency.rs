//! From acceptance at the site to a `read_committed` consumer at the centre, at a steady thousand records
//! a second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _};
use system_tests::broker::Broker;
use system_tests::hub::{Certs, Hub};
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::wait;

use crate::load;
use crate::mirror::Mirror;
use crate::results::{Goal, Row};

const RATE: u64 = 1_000;
const SECONDS: u64 = 20;
const LIMIT: Duration = Duration::from_secs(120);

/// A consumer that counts a topic's records and how old each is when it comes.
#[derive(Debug)]
pub struct Tail {
    count: Arc<AtomicU64>,
    ages_us: Arc<Mutex<Vec<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tail {
    /// Starts at the topic's beginning; the topic may come later.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn start(bootstrap: &str, topic: &str) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "bench-tail")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("allow.auto.create.topics", "false")
            .create()?;
        consumer.subscribe(&[topic])?;
        let mut tail = Self {
            count: Arc::default(),
            ages_us: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        let (count, ages, stop) = (
            Arc::clone(&tail.count),
            Arc::clone(&tail.ages_us),
            Arc::clone(&tail.stop),
        );
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else {
                    continue;
                };
                let age = record.payload().and_then(load::age_us);
                let mut ages = ages.lock().expect("no holder panics");
                // what a drain needs is the count
                if ages.len() < 200_000 {
                    ages.push(age.unwrap_or(u64::MAX));
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        tail.thread = Some(thread);
        Ok(tail)
    }

    /// Records that came.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Median and 99th percentile of the ages after the first `skip` records, ms.
    fn percentiles(&self, skip: usize) -> (f64, f64) {
        let mut ages = self
            .ages_us
            .lock()
            .expect("no holder panics")
            .split_off(skip);
        ages.sort_unstable();
        let at = |share: usize| ages[(ages.len() * share / 100).min(ages.len() - 1)] as f64 / 1e3;
        (at(50), at(99))
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // a panic was printed by its thread, and what it counted is too little already
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// Measures the rows.
///
/// # Errors
/// When a system does not start or records do not arrive.
pub fn rows() -> Result<Vec<Row>> {
    let (median, p99) = ours()?;
    let (peer_median, peer_p99) = mirror_maker()?;
    let row = |name: &str, ours: f64, peer: f64| {
        Row::new(
            name,
            "ms",
            ours,
            Some(("MirrorMaker 2", peer)),
            Goal::AtMost(0.5),
        )
    };
    Ok(vec![
        row(
            "site to centre at 1,000 records/s, p50",
            median,
            peer_median,
        ),
        row("site to centre at 1,000 records/s, p99", p99, peer_p99),
    ])
}

/// The first seconds are start-up: lanes, producers, topics.
const SKIPPED: u64 = 5 * RATE;

fn run(write_to: &str, tail: &Tail) -> Result<(f64, f64)> {
    run_with(&load::settings(write_to), "bench", tail)
}

/// Median and 99th percentile at a steady rate, ms.
pub(crate) fn run_with(producer: &ClientConfig, topic: &str, tail: &Tail) -> Result<(f64, f64)> {
    let records = RATE * SECONDS + SKIPPED;
    load::produce_with(producer, topic, records, Some(RATE))?;
    wait::until_true("all records arrive", LIMIT, || tail.count() >= records)?;
    Ok(tail.percentiles(usize::try_from(SKIPPED)?))
}

fn ours() -> Result<(f64, f64)> {
    let broker = Broker::start()?;
    broker.create_topic("bench", 4, &[])?;
    let certs = Certs::make()?;
    let mut hub = Hub::prepare(
        "bench",
        broker.bootstrap(),
        &certs.hub(),
        &Settings::default(),
    )?;
    let mut site = Site::prepare(hub.address(), &certs.issue("site-a")?, &Settings::default())?;
    hub.start()?;
    site.start()?;
    run(
        &site.bootstrap(),
        &Tail::start(broker.bootstrap(), "bench")?,
    )
}

fn mirror_maker() -> Result<(f64, f64)> {
    let (from, to) = (Broker::start()?, Broker::start()?);
    from.create_topic("bench", 4, &[])?;
    let tail = Tail::start(to.bootstrap(), "site.bench")?;
    let _mirror = Mirror::start(&from, &to)?;
    load::produce(from.bootstrap(), "bench", 1, None)?;
    wait::until_true("the first record is mirrored", LIMIT, || tail.count() > 0)?;
    run(from.bootstrap(), &tail)
}
