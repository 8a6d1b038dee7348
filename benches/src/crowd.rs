//! Many producers at once, each with a connection and a topic of its own and little in flight: what
//! writes to a site.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::load::{Count, VALUE_LEN};

/// Connections: machines of a small factory.
pub const PRODUCERS: usize = 50;
/// Records of one producer that wait for their acknowledgement: what a machine keeps while it waits.
const UNACKNOWLEDGED: &str = "20";
const WARM_UP: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(10);

/// The topic of a producer.
#[must_use]
pub fn topic(prefix: &str, producer: usize) -> String {
    format!("{prefix}-{producer}")
}

/// Lets all producers write for a while, and returns the records a second that were acknowledged.
///
/// # Errors
/// When a client does not start or a record is refused.
pub fn produce(bootstrap: &str, prefix: &str) -> Result<f64> {
    let count = Count::default();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..PRODUCERS)
        .map(|number| {
            let producer = connect(bootstrap, &count)?;
            let (topic, stop) = (topic(prefix, number), Arc::clone(&stop));
            Ok(thread::spawn(move || write(&producer, &topic, &stop)))
        })
        .collect::<Result<_>>()?;
    thread::sleep(WARM_UP);
    let (before, started) = (count.delivered(), Instant::now());
    thread::sleep(MEASURED);
    let rate = (count.delivered() - before) as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let ended = thread.join();
        ended.ok().context("a producer's thread panicked")??;
    }
    match count.failed() {
        0 => Ok(rate),
        failed => bail!("{failed} records were refused"),
    }
}

fn connect(bootstrap: &str, count: &Count) -> Result<BaseProducer<Count>> {
    let client = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("max.in.flight.requests.per.connection", "5")
        .set("queue.buffering.max.messages", UNACKNOWLEDGED)
        .create_with_context(count.clone())?;
    Ok(client)
}

fn write(producer: &BaseProducer<Count>, topic: &str, stop: &AtomicBool) -> Result<()> {
    let value = [b'x'; VALUE_LEN];
    while !stop.load(Ordering::Relaxed) {
        match producer.send(BaseRecord::<[u8], [u8]>::to(topic).payload(&value)) {
            Ok(()) => {}
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                producer.poll(Duration::from_millis(5));
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(())
}
