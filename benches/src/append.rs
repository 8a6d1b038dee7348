//! Durable appends through the Kafka listener, against Kafka with and without a sync a batch.

use anyhow::Result;
use system_tests::broker::Broker;
use system_tests::settings::Settings;
use system_tests::stage::Stage;

use crate::load;
use crate::results::{Goal, Row};

const RECORDS: u64 = 1_000_000;

/// Measures the rows.
///
/// # Errors
/// When a system does not start or refuses records.
pub fn rows() -> Result<Vec<Row>> {
    let ours = site()?;
    let broker = Broker::start()?;
    broker.create_topic("flushed", 4, &[("flush.messages", "1")])?;
    broker.create_topic("plain", 4, &[])?;
    load::produce(broker.bootstrap(), "plain", RECORDS / 10, None)?;
    let flushed = load::produce(broker.bootstrap(), "flushed", RECORDS, None)?;
    let plain = load::produce(broker.bootstrap(), "plain", RECORDS, None)?;
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
    ])
}

fn site() -> Result<f64> {
    // the hub is not started: the site works alone
    let settings = Settings::default().with("topics.default.partitions", 4);
    let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &settings)?;
    stage.site.start()?;
    load::produce(&stage.site.bootstrap(), "warm", RECORDS / 10, None)?;
    load::produce(&stage.site.bootstrap(), "bench", RECORDS, None)
}
