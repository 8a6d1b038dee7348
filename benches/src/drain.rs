//! A backlog that goes from a site to Kafka over loopback, against MirrorMaker 2.

use std::time::{Duration, Instant};

use anyhow::Result;
use system_tests::broker::Broker;
use system_tests::hub::{Certs, Hub};
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::wait;

use crate::latency::Tail;
use crate::load;
use crate::mirror::Mirror;
use crate::results::{Goal, Row};

const RECORDS: u64 = 2_000_000;
const LIMIT: Duration = Duration::from_secs(240);

/// Measures the row.
///
/// # Errors
/// When a system does not start, or does not drain within four minutes.
pub fn rows() -> Result<Vec<Row>> {
    let ours = ours()?;
    let theirs = mirror_maker()?;
    Ok(vec![Row::new(
        "backlog of 2 million 200 B records to Kafka, loopback",
        "records/s",
        ours,
        Some(("MirrorMaker 2", theirs)),
        Goal::AtLeast(4.0),
    )])
}

/// From the hub's start to the last acknowledgement: certificates, lanes and the first transaction
/// included.
fn ours() -> Result<f64> {
    let broker = Broker::start()?;
    let certs = Certs::make()?;
    let settings = Settings::default().with("kafka.create_partitions", 4);
    let mut hub = Hub::prepare("bench", broker.bootstrap(), &certs.hub(), &settings)?;
    let settings = Settings::default().with("topics.default.partitions", 4);
    let mut site = Site::prepare(hub.address(), &certs.issue("site-a")?, &settings)?;
    site.start()?;
    load::produce(&site.bootstrap(), "bench", RECORDS, None)?;
    hub.start()?;
    wait::until_true("the first record is committed", LIMIT, || {
        site.ledger("bench")
            .is_ok_and(|ledger| ledger.committed > 0)
    })?;
    let before = site.ledger("bench")?.committed;
    let started = Instant::now();
    wait::until_true("the backlog is committed", LIMIT, || {
        site.ledger("bench")
            .is_ok_and(|ledger| ledger.committed == RECORDS)
    })?;
    Ok((RECORDS - before) as f64 / started.elapsed().as_secs_f64())
}

/// From its first record at the centre to the last.
fn mirror_maker() -> Result<f64> {
    let (from, to) = (Broker::start()?, Broker::start()?);
    from.create_topic("bench", 4, &[])?;
    load::produce(from.bootstrap(), "bench", RECORDS, None)?;
    let tail = Tail::start(to.bootstrap(), "site.bench")?;
    let _mirror = Mirror::start(&from, &to)?;
    wait::until_true("the first record is mirrored", LIMIT, || tail.count() > 0)?;
    let (before, started) = (tail.count(), Instant::now());
    wait::until_true("the backlog is mirrored", LIMIT, || tail.count() >= RECORDS)?;
    Ok((RECORDS - before) as f64 / started.elapsed().as_secs_f64())
}
