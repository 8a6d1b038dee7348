//! What the records of a busy site cost on the link, all headers and both directions, against a librdkafka
//! producer that sends the same records over TLS with zstd.
//!
//! Every recording is a topic, played evenly so that the whole of it would take ten minutes; both systems
//! have a second to fill a batch. The first minute is not counted: it is where codecs learn.

#![allow(clippy::print_stdout, reason = "a bench says how it went")]

mod trace;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use system_tests::settings::Settings;
use system_tests::wait;
use system_tests::wan::Conditions;

use self::trace::{Look, Trace};
use crate::bytes::{Recording, recordings};
use crate::field::Field;
use crate::load::Count;
use crate::results::{Goal, Row};

const RATE: u64 = 4_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(100);
const WHOLE: Duration = Duration::from_secs(600);
const LEARNS: Duration = Duration::from_secs(60);
const PLAYED: Duration = Duration::from_secs(240);
const TICK: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(120);

/// Measures the row.
///
/// # Errors
/// When a system does not start or a record does not arrive.
pub fn rows() -> Result<Vec<Row>> {
    let recordings = recordings()?;
    let (ours, peer) = thread::scope(|scope| {
        let ours = scope.spawn(|| ours(&recordings));
        let peer = scope.spawn(|| peers(&recordings));
        let join = |run: thread::ScopedJoinHandle<'_, Result<f64>>| {
            run.join().ok().context("a run panicked")?
        };
        anyhow::Ok((join(ours)?, join(peer)?))
    })?;
    Ok(vec![Row::new(
        "IP bytes at the interface, both directions, all recordings at once",
        "B/record",
        ours,
        Some(("librdkafka with zstd over TLS", peer)),
        Goal::AtMost(0.2),
    )])
}

fn ours(recordings: &[Recording]) -> Result<f64> {
    let settings = Settings::default().with("uplink.classes.normal.max_delay", "1s");
    let field = Field::open(Conditions::path(RATE, ROUND_TRIP, 100), &settings)?;
    let mut config = ClientConfig::new();
    let bootstrap = field.at_site(|site| site.bootstrap())?;
    config
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "5");
    let (producer, count) = field.at_site(|_| producer(&config))??;
    let cost = play(recordings, &producer, &field)?;
    producer.flush(LIMIT)?;
    ensure!(count.failed() == 0, "the site refused records");
    field.at_site(|site| {
        wait::until_true("the site has sent everything", LIMIT, || {
            recordings
                .iter()
                .all(|recording| site.ledger(&recording.name).is_ok_and(|it| it.queued == 0))
        })
    })??;
    Ok(cost)
}

fn peers(recordings: &[Recording]) -> Result<f64> {
    let field = Field::bare(Conditions::path(RATE, ROUND_TRIP, 100))?;
    let (producer, count) = field.as_peer(|mut config| {
        config.set("linger.ms", "1000").set("batch.size", "1000000");
        producer(&config)
    })??;
    let cost = play(recordings, &producer, &field)?;
    producer.flush(LIMIT)?;
    ensure!(count.failed() == 0, "Kafka refused records");
    Ok(cost)
}

fn producer(config: &ClientConfig) -> Result<(ThreadedProducer<Count>, Count)> {
    let count = Count::default();
    Ok((config.create_with_context(count.clone())?, count))
}

/// IP bytes a record, after the time in which codecs learn.
fn play(
    recordings: &[Recording],
    producer: &ThreadedProducer<Count>,
    field: &Field,
) -> Result<f64> {
    let began = Instant::now();
    let mut sent = vec![0; recordings.len()];
    let mut learnt = None;
    let mut counted = BTreeMap::new();
    while began.elapsed() < PLAYED {
        let now = began.elapsed();
        if learnt.is_none() && now >= LEARNS {
            learnt = Some(Look::now(field)?);
            counted.clear();
        }
        for (recording, sent) in recordings.iter().zip(&mut sent) {
            let due = recording.samples.len() as u128 * now.as_millis() / WHOLE.as_millis();
            let due = usize::try_from(due)?;
            for sample in recording.samples.iter().take(due).skip(*sent) {
                let mut record =
                    BaseRecord::<[u8], [u8]>::to(&recording.name).timestamp(sample.timestamp_ms);
                if let Some(key) = &sample.key {
                    record = record.key(key);
                }
                if let Some(value) = &sample.value {
                    record = record.payload(value);
                }
                producer.send(record).map_err(|(error, _)| error)?;
                *counted.entry(recording.name.clone()).or_default() += 1;
            }
            *sent = due.max(*sent);
        }
        thread::sleep(TICK);
    }
    let learnt = learnt.context("too short to learn")?;
    let played = Look::now(field)?;
    let trace = Trace {
        from: &learnt,
        to: &played,
        records: &counted,
    };
    println!("{trace}");
    let records: u64 = counted.values().sum();
    Ok((played.bytes() - learnt.bytes()) as f64 / records as f64)
}
