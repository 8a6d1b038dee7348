//! Writers of numbered records, which keep what was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientConfig, Message as _};

use serde::Serialize;

use crate::record::{Numbered, Shape};
use crate::{seed, wait};

/// A record that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acked {
    /// Which topic it was written to.
    pub topic: String,
    pub writer: String,
    pub number: u64,
    /// CRC-32C of the payload.
    pub hash: u32,
    /// Where the site says that it is, when the protocol tells.
    pub place: Option<(i32, i64)>,
    pub at: Instant,
}

/// What writers know: what was acknowledged, and how much was sent and refused.
#[derive(Debug, Default)]
pub struct Ledger {
    acked: Mutex<Vec<Acked>>,
    refused: Mutex<Vec<String>>,
    sent: AtomicU64,
    payload_bytes: AtomicU64,
}

impl Ledger {
    /// Everything that was acknowledged so far.
    ///
    /// # Panics
    /// When a writer panicked.
    pub fn acked(&self) -> MutexGuard<'_, Vec<Acked>> {
        self.acked.lock().expect("no holder panics")
    }

    /// Number of records acknowledged so far.
    #[must_use]
    pub fn acked_count(&self) -> usize {
        self.acked().len()
    }

    /// Errors of records that were given up.
    ///
    /// # Panics
    /// When a writer panicked.
    pub fn refused(&self) -> MutexGuard<'_, Vec<String>> {
        self.refused.lock().expect("no holder panics")
    }

    /// Records handed to clients.
    #[must_use]
    pub fn sent_count(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Payload bytes of the acknowledged records.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes.load(Ordering::Relaxed)
    }

    /// Notes an acknowledgement.
    pub fn note(&self, acked: Acked, payload_bytes: usize) {
        let bytes = u64::try_from(payload_bytes).unwrap_or_default();
        self.payload_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.acked().push(acked);
    }
}

/// How a writer writes.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Records a second; 0: as fast as it goes.
    pub rate: u32,
    /// Bytes of a record's payload.
    pub size: usize,
    /// Ends by itself after so many.
    pub total: Option<u64>,
    /// Different keys; 0: records without a key.
    pub keys: u64,
    /// What the contents look like.
    pub shape: Shape,
    /// Decides the contents.
    pub seed: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rate: 1_000,
            size: 200,
            total: None,
            keys: 50,
            shape: Shape::Blob,
            seed: 1,
        }
    }
}

/// A writer's thread.
#[derive(Debug)]
pub struct Writer {
    name: String,
    ledger: Arc<Ledger>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// librdkafka over a site's Kafka listener, idempotent, retrying for ever.
    ///
    /// # Errors
    /// When librdkafka refuses its settings.
    pub fn kafka(
        name: &str,
        bootstrap: &str,
        topic: &str,
        pace: Pace,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let ledger = Arc::new(Ledger::default());
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            .set("client.id", name)
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("linger.ms", "5")
            .set("request.timeout.ms", "5000")
            .set("socket.timeout.ms", "10000")
            .set("retry.backoff.ms", "50")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("topic.metadata.refresh.interval.ms", "5000");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let context = Notes {
            ledger: Arc::clone(&ledger),
            writer: name.to_owned(),
        };
        let producer: ThreadedProducer<Notes> = config
            .create_with_context(context)
            .context("make a producer")?;
        let is_stopping = Arc::new(AtomicBool::new(false));
        let job = Job {
            name: name.to_owned(),
            topic: topic.to_owned(),
            pace,
            ledger: Arc::clone(&ledger),
            is_stopping: Arc::clone(&is_stopping),
        };
        let thread = thread::spawn(move || {
            job.write(|job, record| send(&producer, job, record))?;
            producer.flush(FLUSH_LIMIT).context("flush the producer")
        });
        Ok(Self {
            name: name.to_owned(),
            ledger,
            is_stopping,
            thread: Some(thread),
        })
    }

    /// HTTP: one JSON array of ten records a request. What was not answered with 2xx is written again under
    /// new numbers, since HTTP knows no idempotence.
    #[must_use]
    pub fn http(name: &str, base_url: &str, topic: &str, pace: Pace) -> Self {
        let ledger = Arc::new(Ledger::default());
        let is_stopping = Arc::new(AtomicBool::new(false));
        let job = Job {
            name: name.to_owned(),
            topic: topic.to_owned(),
            pace,
            ledger: Arc::clone(&ledger),
            is_stopping: Arc::clone(&is_stopping),
        };
        let poster = Poster::new(format!("{base_url}/v1/topics/{topic}/records"));
        let thread = thread::spawn(move || {
            let mut waiting = Vec::new();
            job.write(|job, record| {
                waiting.push(record.clone());
                if waiting.len() >= POST_RECORDS {
                    poster.post(job, &std::mem::take(&mut waiting));
                }
                Ok(())
            })?;
            if !waiting.is_empty() {
                poster.post(&job, &waiting);
            }
            Ok(())
        });
        Self {
            name: name.to_owned(),
            ledger,
            is_stopping,
            thread: Some(thread),
        }
    }

    /// What it knows.
    #[must_use]
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// Stops making records and waits until each one that was made is acknowledged or refused.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Arc<Ledger>> {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.join(limit)?;
        Ok(Arc::clone(&self.ledger))
    }

    /// Waits until it has written its total.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn complete(mut self, limit: Duration) -> Result<Arc<Ledger>> {
        self.join(limit)?;
        Ok(Arc::clone(&self.ledger))
    }

    fn join(&mut self, limit: Duration) -> Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let what = format!("writer {} ends", self.name);
        wait::until_true(&what, limit, || thread.is_finished()).map_err(|late| {
            late.context(format!(
                "{} of {} records were acknowledged",
                self.ledger.acked_count(),
                self.ledger.sent_count()
            ))
        })?;
        match thread.join() {
            Ok(ended) => ended,
            Err(_) => bail!("writer {} panicked", self.name),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

/// Records in one POST.
const POST_RECORDS: usize = 10;
/// How long a writer that stops waits for its last acknowledgements.
const FLUSH_LIMIT: Duration = Duration::from_secs(120);

struct Job {
    name: String,
    topic: String,
    pace: Pace,
    ledger: Arc<Ledger>,
    is_stopping: Arc<AtomicBool>,
}

impl Job {
    fn write(&self, mut send: impl FnMut(&Self, &Numbered) -> Result<()>) -> Result<()> {
        let mut random = seed::generator(self.pace.seed, &self.name);
        let started = Instant::now();
        let mut number = 0;
        while !self.is_stopping() && self.pace.total.is_none_or(|total| number < total) {
            if self.pace.rate > 0 {
                let due = started
                    + Duration::from_secs(1).mul_f64(as_f64(number) / f64::from(self.pace.rate));
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let record = Numbered::new(
                &self.name,
                number,
                self.pace.size,
                self.pace.shape,
                &mut random,
            );
            send(self, &record)?;
            self.ledger.sent.fetch_add(1, Ordering::Relaxed);
            number += 1;
        }
        Ok(())
    }

    fn key(&self, number: u64) -> Option<String> {
        (self.pace.keys > 0).then(|| format!("{}-{}", self.name, number % self.pace.keys))
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "record numbers are far below 2^52"
)]
fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Notes librdkafka's delivery reports.
struct Notes {
    ledger: Arc<Ledger>,
    writer: String,
}

impl ClientContext for Notes {
    fn error(&self, _error: KafkaError, _reason: &str) {
        // A site that is down is part of the experiment.
    }
}

impl ProducerContext for Notes {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Self::DeliveryOpaque) {
        match result {
            Ok(message) => {
                let payload = message.payload().unwrap_or_default();
                let acked = Acked {
                    topic: message.topic().to_owned(),
                    writer: self.writer.clone(),
                    number: *number,
                    hash: crc32c::crc32c(payload),
                    place: Some((message.partition(), message.offset())),
                    at: Instant::now(),
                };
                self.ledger.note(acked, payload.len());
            }
            Err((error, _)) => self.ledger.refused().push(format!("{number}: {error}")),
        }
    }
}

fn send(producer: &ThreadedProducer<Notes>, job: &Job, record: &Numbered) -> Result<()> {
    let (payload, key) = (record.encode(), job.key(record.number));
    loop {
        let mut message =
            BaseRecord::with_opaque_to(&job.topic, Box::new(record.number)).payload(&payload);
        if let Some(key) = &key {
            message = message.key(key);
        }
        match producer.send(message) {
            Ok(()) => break,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                if job.is_stopping() {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err((error, _)) => return Err(error).context("hand a record to librdkafka"),
        }
    }
    Ok(())
}

/// An element of the posted array. The site stores the value's text as it stands.
#[derive(Serialize)]
struct Row<'a> {
    key: Option<String>,
    value: &'a Numbered,
}

struct Poster {
    agent: ureq::Agent,
    url: String,
}

impl Poster {
    fn new(url: String) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build();
        Self {
            agent: config.into(),
            url,
        }
    }

    fn post(&self, job: &Job, records: &[Numbered]) {
        let rows: Vec<_> = records
            .iter()
            .map(|record| Row {
                key: job.key(record.number),
                value: record,
            })
            .collect();
        let answer = self.agent.post(&self.url).send_json(&rows);
        match answer {
            Ok(answer) if answer.status().is_success() => {
                for record in records {
                    let payload = record.encode();
                    let acked = Acked {
                        topic: job.topic.clone(),
                        writer: record.writer.clone(),
                        number: record.number,
                        hash: crc32c::crc32c(&payload),
                        place: None,
                        at: Instant::now(),
                    };
                    job.ledger.note(acked, payload.len());
                }
            }
            Ok(answer) => {
                job.ledger
                    .refused()
                    .push(format!("HTTP {}", answer.status()));
                thread::sleep(Duration::from_millis(100));
            }
            Err(error) => {
                job.ledger.refused().push(format!("HTTP {error}"));
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}
