//! Durable appends through the Kafka listener, against Kafka with and without a sync a batch.

use anyhow::Result;
use system_tests::broker::Broker;
use system_tests::settings::Settings;
use system_tests::stage::Stage;

use crate::results::{Goal, Row};
use crate::{crowd, load};

const RECORDS: u64 = 1_000_000;
/// Systems take turns, so that what else the machine does meets all of them; the median counts.
const TURNS: usize = 3;

/// Measures the rows.
///
/// # Errors
/// When a system does not start or refuses records.
pub fn rows() -> Result<Vec<Row>> {
    let (few, many) = (start(4)?, start(1)?);
    let broker = Broker::start()?;
    create_topics(&broker)?;
    let (few, many) = (few.site.bootstrap(), many.site.bootstrap());
    let kafka = broker.bootstrap();
    for (bootstrap, topic) in [(few.as_str(), "ours"), (kafka, "plain")] {
        load::produce(bootstrap, topic, RECORDS / 10, None)?;
    }
    let one = |bootstrap, topic| load::produce(bootstrap, topic, RECORDS, None);
    let [ours, flushed, plain] =
        in_turns([&|| one(&few, "ours"), &|| one(kafka, "flushed"), &|| {
            one(kafka, "plain")
        }])?;
    let [ours_of_many, flushed_of_many, plain_of_many] = in_turns([
        &|| crowd::produce(&many, "ours"),
        &|| crowd::produce(kafka, "synced"),
        &|| crowd::produce(kafka, "free"),
    ])?;
    let unit = "records/s";
    Ok(vec![
        Row::new(
            "durable append, 200 B, acks=all",
            unit,
            ours,
            Some(("Kafka, flush.messages=1", flushed)),
            Goal::AtLeast(2.0),
        ),
        Row::new(
            "durable append against Kafka without sync",
            unit,
            ours,
            Some(("Kafka, defaults", plain)),
            Goal::AtLeast(0.7),
        ),
        Row::new(
            "durable append, 50 producers with 20 records in flight each",
            unit,
            ours_of_many,
            Some(("Kafka, flush.messages=1", flushed_of_many)),
            Goal::AtLeast(2.0),
        ),
        Row::new(
            "durable append, 50 producers, against Kafka without sync",
            unit,
            ours_of_many,
            Some(("Kafka, defaults", plain_of_many)),
            Goal::AtLeast(0.7),
        ),
    ])
}

/// A site on its own: the hub is not started.
fn start(partitions: u32) -> Result<Stage> {
    let settings = Settings::default().with("topics.default.partitions", partitions);
    let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &settings)?;
    stage.site.start()?;
    Ok(stage)
}

fn create_topics(broker: &Broker) -> Result<()> {
    let synced = &[("flush.messages", "1")][..];
    broker.create_topic("flushed", 4, synced)?;
    broker.create_topic("plain", 4, &[])?;
    for (prefix, settings) in [("synced", synced), ("free", &[])] {
        for producer in 0..crowd::PRODUCERS {
            broker.create_topic(&crowd::topic(prefix, producer), 1, settings)?;
        }
    }
    Ok(())
}

/// Measures all systems one after the other, so many times; the median of each.
fn in_turns<const N: usize>(systems: [&dyn Fn() -> Result<f64>; N]) -> Result<[f64; N]> {
    let mut figures = systems.map(|_| Vec::with_capacity(TURNS));
    for _ in 0..TURNS {
        for (measure, figures) in systems.iter().zip(&mut figures) {
            figures.push(measure()?);
        }
    }
    Ok(figures.map(|mut figures| {
        figures.sort_unstable_by(f64::total_cmp);
        figures[TURNS / 2]
    }))
}
