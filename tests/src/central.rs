//! Reads the central topics as an application does, with `isolation.level=read_committed`, and keeps all
//! it saw.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::{ClientConfig, Message as _, Offset};

use crate::wait;

/// How often new topics and partitions are looked for.
const LOOK_FOR_PARTITIONS: Duration = Duration::from_millis(500);

/// One committed record.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Where it is in the central cluster.
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// What it is.
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub timestamp_ms: Option<i64>,
    /// When this reader saw it.
    pub seen: Instant,
}

impl Committed {
    /// A header's value as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    fn new(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(|headers| {
            let owned = |header: rdkafka::message::Header<'_, &[u8]>| {
                (
                    header.key.to_owned(),
                    header.value.unwrap_or_default().to_vec(),
                )
            };
            headers.iter().map(owned).collect()
        });
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
            timestamp_ms: message.timestamp().to_millis(),
            seen: Instant::now(),
        }
    }
}

/// A reader of whole topics, from their beginning, that goes on until it is dropped. It survives the
/// broker's faults, and topics may appear later.
#[derive(Debug)]
pub struct Reader {
    seen: Arc<Mutex<Vec<Committed>>>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts reading.
    ///
    /// # Errors
    /// When librdkafka refuses its settings.
    pub fn start(bootstrap: &str, topics: &[&str]) -> Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "kedge-system-tests")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("allow.auto.create.topics", "false")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.error.backoff.ms", "50")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .create()?;
        let topics: Vec<String> = topics.iter().map(ToString::to_string).collect();
        let (seen, is_stopping) = (Arc::default(), Arc::default());
        let (into, stop) = (Arc::clone(&seen), Arc::clone(&is_stopping));
        let thread = thread::spawn(move || read(&consumer, &topics, &into, &stop));
        Ok(Self {
            seen,
            is_stopping,
            thread: Some(thread),
        })
    }

    /// All records so far, in the order in which each partition holds them.
    ///
    /// # Panics
    /// When the reading thread panicked.
    pub fn seen(&self) -> MutexGuard<'_, Vec<Committed>> {
        self.seen.lock().expect("the reader does not panic")
    }

    /// Waits until what it has seen satisfies `enough`.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut enough: impl FnMut(&[Committed]) -> bool,
    ) -> Result<()> {
        wait::until_true(what, limit, || enough(&self.seen()))
    }

    /// Waits until nothing new has come for `quiet`.
    pub fn wait_quiet(&self, quiet: Duration) {
        let (mut count, mut since) = (self.count(), Instant::now());
        while since.elapsed() < quiet {
            thread::sleep(Duration::from_millis(50));
            let seen = self.count();
            if seen != count {
                (count, since) = (seen, Instant::now());
            }
        }
    }

    /// How many records it has seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.seen().len()
    }

    /// Waits until it has seen `more` records than it has by now.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_more(&self, more: usize, limit: Duration) -> Result<()> {
        let count = self.count() + more;
        self.wait_for(count, limit)
    }

    /// Waits until it has seen at least `count` records.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Result<()> {
        let what = format!("{count} committed records");
        self.wait(&what, limit, |seen| seen.len() >= count)
            .map_err(|late| late.context(format!("{} were seen", self.count())))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn read(
    consumer: &BaseConsumer,
    topics: &[String],
    seen: &Mutex<Vec<Committed>>,
    is_stopping: &AtomicBool,
) {
    let mut assigned = BTreeSet::new();
    let mut looked = None;
    while !is_stopping.load(Ordering::Relaxed) {
        if looked.is_none_or(|at: Instant| at.elapsed() > LOOK_FOR_PARTITIONS) {
            assign_new(consumer, topics, &mut assigned);
            looked = Some(Instant::now());
        }
        // Errors (a broker that is down, a topic that is not there yet) pass.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
            let record = Committed::new(&message);
            seen.lock().expect("no holder panics").push(record);
        }
    }
}

fn assign_new(consumer: &BaseConsumer, topics: &[String], assigned: &mut BTreeSet<(String, i32)>) {
    for topic in topics {
        let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(1)) else {
            continue;
        };
        let partitions = metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions());
        let mut added = TopicPartitionList::new();
        for partition in partitions {
            if assigned.insert((topic.clone(), partition.id())) {
                added
                    .add_partition_offset(topic, partition.id(), Offset::Beginning)
                    .expect("the beginning is a valid offset");
            }
        }
        if added.count() > 0 {
            consumer
                .incremental_assign(&added)
                .expect("partitions that are new to this reader");
        }
    }
}
