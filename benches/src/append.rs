//! Durable appends through the Kafka listener, against Kafka with and without a sync a batch.

use anyhow::Result;
use system_tests::broker::Broker;
use system_tests::settings::Settings;
use system_tests::stage::Stage;

use crate::results::{Goal, Row};
use crate::{crowd, load};

const RECORDS: u64 = 1_000_000;

/// Measures the rows.
///
/// # Errors
/// When a system does not start or refuses records.
pub fn rows() -> Result<Vec<Row>> {
    let (ours, ours_of_many) = (site()?, site_of_many()?);
    let broker = Broker::start()?;
    broker.create_topic("flushed", 4, &[("flush.messages", "1")])?;
    broker.create_topic("plain", 4, &[])?;
    load::produce(broker.bootstrap(), "plain", RECORDS / 10, None)?;
    let flushed = load::produce(broker.bootstrap(), "flushed", RECORDS, None)?;
    let plain = load::produce(broker.bootstrap(), "plain", RECORDS, None)?;
    for (prefix, settings) in [("synced", &[("flush.messages", "1")][..]), ("free", &[])] {
        for producer in 0..crowd::PRODUCERS {
            broker.create_topic(&crowd::topic(prefix, producer), 1, settings)?;
        }
    }
    let flushed_of_many = crowd::produce(broker.bootstrap(), "synced")?;
    let plain_of_many = crowd::produce(broker.bootstrap(), "free")?;
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

fn site_of_many() -> Result<f64> {
    let stage = start(1)?;
    crowd::produce(&stage.site.bootstrap(), "crowd")
}

fn site() -> Result<f64> {
    let stage = start(4)?;
    load::produce(&stage.site.bootstrap(), "warm", RECORDS / 10, None)?;
    load::produce(&stage.site.bootstrap(), "bench", RECORDS, None)
}
