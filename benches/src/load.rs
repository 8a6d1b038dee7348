//! A librdkafka producer that keeps the log under load and counts what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

/// Bytes of each record's value.
pub const VALUE_LEN: usize = 200;
/// Where a value says when it was handed to the client.
const STAMP: std::ops::Range<usize> = 20..28;

/// Records that were acknowledged or refused.
#[derive(Debug, Default, Clone)]
pub struct Count {
    delivered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl Count {
    /// Records acknowledged.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Records refused.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() {
            &self.delivered
        } else {
            &self.failed
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A producer with `acks=all` and the client's own defaults, which hold a record back for up to 5 ms so that others
/// go with it.
#[must_use]
pub fn settings(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("queue.buffering.max.messages", "200000")
        .set("linger.ms", "5");
    config
}

/// Microseconds since the epoch.
#[must_use]
pub fn wall_us() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// How long ago a record of [`produce`] was handed to the client, us.
#[must_use]
pub fn age_us(value: &[u8]) -> Option<u64> {
    let stamp = value.get(STAMP)?.first_chunk()?;
    Some(wall_us().saturating_sub(u64::from_be_bytes(*stamp)))
}

/// Sends so many records with [`settings`], and returns records a second once all are acknowledged.
///
/// # Errors
/// When a record is refused, or not all are acknowledged within five minutes.
pub fn produce(bootstrap: &str, topic: &str, records: u64, pace: Option<u64>) -> Result<f64> {
    produce_with(&settings(bootstrap), topic, records, pace)
}

/// The same with other settings.
///
/// # Errors
/// As [`produce`].
pub fn produce_with(
    config: &ClientConfig,
    topic: &str,
    records: u64,
    pace: Option<u64>,
) -> Result<f64> {
    let count = Count::default();
    let producer: ThreadedProducer<Count> = config.create_with_context(count.clone())?;
    let mut value = vec![b'x'; VALUE_LEN];
    let started = Instant::now();
    for number in 0..records {
        value[..20].copy_from_slice(format!("{number:020}").as_bytes());
        value[STAMP].copy_from_slice(&wall_us().to_be_bytes());
        let key = number.to_be_bytes();
        loop {
            let record = BaseRecord::<[u8], [u8]>::to(topic)
                .key(&key)
                .payload(&value);
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
        if let Some(rate) = pace {
            let due = Duration::from_secs_f64(number as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    producer.flush(Duration::from_secs(300))?;
    let seconds = started.elapsed().as_secs_f64();
    let delivered = count.delivered();
    if delivered != records {
        bail!("{delivered} of {records} records were acknowledged");
    }
    Ok(records as f64 / seconds)
}

/// Puts so many records that do not compress into a topic, as fast as they are acknowledged.
///
/// # Errors
/// When one is refused.
pub fn fill(bootstrap: &str, topic: &str, records: u64, size: usize) -> Result<()> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "5")
        .set("batch.size", "65536");
    let (producer, count) = fill_queue(&config, topic, records, size)?;
    producer.flush(Duration::from_secs(600))?;
    if count.delivered() != records {
        bail!(
            "{} of {records} records were acknowledged",
            count.delivered()
        );
    }
    Ok(())
}

/// The same, without waiting for what fits into the producer's queue.
///
/// # Errors
/// When the producer cannot be made or takes no record.
pub fn fill_queue(
    config: &ClientConfig,
    topic: &str,
    records: u64,
    size: usize,
) -> Result<(ThreadedProducer<Count>, Count)> {
    let count = Count::default();
    let producer: ThreadedProducer<Count> = config.create_with_context(count.clone())?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut value = vec![0; size];
    for _ in 0..records {
        for word in value.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        loop {
            match producer.send(BaseRecord::<(), [u8]>::to(topic).payload(&value)) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    Ok((producer, count))
}
