//! What the client matrix runs against: a site behind a [`Cutter`], or, to see that the tests themselves are
//! right, Apache Kafka there.

use std::collections::BTreeMap;
use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message as _};

use crate::broker::Broker;
use crate::cutter::Cutter;
use crate::matrix::Seen;
use crate::settings::Settings;
use crate::stage::Stage;
use crate::{seed, wait};

/// Partitions of a topic that a client's first request creates; of Kafka's own settings too.
pub const PARTITIONS: usize = 3;

/// How long one answer to the harness may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Something that speaks Kafka, can be killed, and comes back.
#[derive(Debug)]
pub struct Node {
    /// Every client's connection goes through it.
    pub cutter: Cutter,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    // its hub was never started: local clients don't need one
    Site(Box<Stage>),
    Kafka(Broker),
}

impl Node {
    /// A site without a hub; with `KEDGE_MATRIX_KAFKA` set, Apache Kafka.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        let cutter = Cutter::start()?;
        let (kind, bootstrap) = if env::var_os("KEDGE_MATRIX_KAFKA").is_some() {
            let broker = Broker::start_behind(cutter.address())?;
            let bootstrap = broker.bootstrap().to_owned();
            (Kind::Kafka(broker), bootstrap)
        } else {
            let over = Settings::default()
                .with("topics.default.partitions", i64::try_from(PARTITIONS)?)
                .with("kafka.advertised", cutter.address().to_string());
            let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &over)?;
            stage.site.start()?;
            let bootstrap = stage.site.bootstrap();
            (Kind::Site(Box::new(stage)), bootstrap)
        };
        cutter.aim(&bootstrap)?;
        Ok(Self { cutter, kind })
    }

    /// Where clients connect.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.cutter.address().to_string()
    }

    /// SIGKILL, and a start on the same directory and port.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Site(stage) => {
                stage.site.kill();
                stage.site.start()
            }
            Kind::Kafka(broker) => {
                broker.kill();
                broker.restart()
            }
        }
    }

    /// Reads a topic from its beginning to its present end, without a group. Only records whose value is a
    /// number.
    ///
    /// # Errors
    /// When it can't be read to its end.
    pub fn read(&self, topic: &str) -> Result<Vec<Seen>> {
        let all = self.read_texts(topic)?;
        let number = |(partition, offset, key, value): &Read| {
            Some(Seen {
                partition: *partition,
                offset: *offset,
                key: key.clone(),
                value: value.parse().ok()?,
            })
        };
        Ok(all.iter().filter_map(number).collect())
    }

    /// The last value of each key.
    ///
    /// # Errors
    /// When the topic can't be read to its end.
    pub fn read_table(&self, topic: &str) -> Result<BTreeMap<String, String>> {
        let all = self.read_texts(topic)?;
        Ok(all
            .into_iter()
            .map(|(_, _, key, value)| (key, value))
            .collect())
    }

    fn read_texts(&self, topic: &str) -> Result<Vec<Read>> {
        let consumer = self.consumer("unused")?;
        let mut wanted = self.partitions(&consumer, topic)?;
        let mut ends = BTreeMap::new();
        for partition in wanted.elements() {
            let number = partition.partition();
            let (low, high) = consumer.fetch_watermarks(topic, number, LIMIT)?;
            if high > low {
                ends.insert(number, high);
            }
        }
        wanted.set_all_offsets(Offset::Beginning)?;
        consumer.assign(&wanted)?;
        let mut all = Vec::new();
        let deadline = Instant::now() + LIMIT;
        while !ends.is_empty() {
            anyhow::ensure!(Instant::now() < deadline, "{topic}: not read to {ends:?}");
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let (partition, offset) = (message.partition(), message.offset());
            let text = |bytes: Option<&[u8]>| {
                String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
            };
            all.push((
                partition,
                offset,
                text(message.key()),
                text(message.payload()),
            ));
            if ends.get(&partition).is_some_and(|end| offset + 1 >= *end) {
                ends.remove(&partition);
            }
        }
        Ok(all)
    }

    /// Waits until a group has committed `count` records of a topic, all partitions together.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_committed(&self, group: &str, topic: &str, count: i64) -> Result<()> {
        let consumer = self.consumer(group)?;
        let partitions = self.partitions(&consumer, topic)?;
        let mut last = None;
        let what = format!("{group} has committed {count} records");
        let reached = wait::until_true(&what, LIMIT, || {
            last = consumer
                .committed_offsets(partitions.clone(), LIMIT)
                .map(|offsets| {
                    let raw = offsets.elements().into_iter();
                    let raw = raw.filter_map(|each| each.offset().to_raw());
                    // nothing committed is below 0
                    raw.filter(|offset| *offset >= 0).sum::<i64>()
                })
                .ok();
            last == Some(count)
        });
        reached.with_context(|| format!("it has committed {last:?}"))
    }

    fn consumer(&self, group: &str) -> Result<BaseConsumer> {
        ClientConfig::new()
            .set("bootstrap.servers", self.bootstrap())
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "50")
            .create()
            .context("make a consumer")
    }

    fn partitions(&self, consumer: &BaseConsumer, topic: &str) -> Result<TopicPartitionList> {
        let metadata = consumer.fetch_metadata(Some(topic), LIMIT)?;
        let topics = metadata.topics();
        let found = topics.first().context("no such topic")?;
        let mut list = TopicPartitionList::new();
        for partition in found.partitions() {
            list.add_partition(topic, partition.id());
        }
        Ok(list)
    }
}

/// Partition, offset, key, value.
type Read = (i32, i64, String, String);

/// A name that no other run uses.
#[must_use]
pub fn fresh(name: &str) -> String {
    format!("{name}-{}", seed::fresh())
}
