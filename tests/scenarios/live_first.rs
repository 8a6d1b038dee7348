//! New records pass a backlog where the topic lets them (`live_first`), each exactly once, each track in order.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use system_tests::broker::Broker;
use system_tests::central::Committed;
use system_tests::link::Faults;
use system_tests::record::Numbered;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Acked, Pace, Writer};
use system_tests::{oracle, seed, wait};
use toml::{Table, Value};

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes a second: the backlog takes forty seconds, new records and two kills among them fifteen to twenty-five.
const RATE: u64 = 120_000;
const RECORD: usize = 1_000;
const BACKLOG: u64 = 4_800;
const NEW: u64 = 10;
/// Of the second outage: twelve seconds at ten a second, and then the most of it.
const SLOW: u64 = 120;
const LATER: u64 = 2_400;
/// Records on their way before new ones are written: the site looks once a second whether it has a
/// backlog, and changes its tracks before it splits anew.
const SEEN: u64 = 600;

#[test]
#[ignore = "system test: make test"]
fn new_records_pass_a_backlog_and_nothing_is_lost_or_doubled() -> Result<()> {
    let mut rule = Table::new();
    rule.insert("match".to_owned(), Value::from("feed*"));
    rule.insert("live_first".to_owned(), Value::from(true));
    rule.insert("partitions".to_owned(), Value::from(1));
    let site = Settings::default()
        .with("uplink.codec", "none")
        // it would not be as thin
        .with("uplink.tcp_fallback", false)
        // new records do not wait for company
        .with("uplink.classes.normal.max_delay", "50ms")
        .with_rule("topics", rule);
    let mut stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let topic = stage.topic("feed");
    let mut acked = Vec::new();
    acked.extend(write(&stage, &topic, "first", 1, 0)?);
    let reader = stage.reader(&[&topic])?;
    reader.wait_for(1, LIMIT)?;

    stage.link.cut();
    acked.extend(write(&stage, &topic, "old", BACKLOG, 0)?);
    come_back(&mut stage, &topic)?;
    let mut ages = Vec::new();
    for name in ["new-1", "new-2", "new-3"] {
        let began = Instant::now();
        acked.extend(write(&stage, &topic, name, NEW, 20)?);
        reader.wait(name, LIMIT, |seen| count(seen, name) == NEW)?;
        ages.push(began.elapsed());
        match name {
            "new-1" => {
                stage.site.kill();
                stage.site.start()?;
            }
            "new-2" => {
                stage.hub.kill();
                stage.hub.start()?;
            }
            _ => {}
        }
    }
    let unsent = stage.site.ledger(&topic)?.queued;
    seed::say(&format!(
        "live first: {NEW} new records in {ages:?}, {unsent} of the backlog left"
    ));
    ensure!(
        unsent > BACKLOG / 10,
        "the new records had no backlog to pass: {unsent} left"
    );
    stage.wait_drained(&topic, LIMIT)?;

    // the next outage, with the site up: the tracks change their places, and most of it comes after what has to be
    // late before anything is a backlog
    stage.link.cut();
    acked.extend(write(&stage, &topic, "slow", SLOW, 10)?);
    acked.extend(write(&stage, &topic, "later", LATER, 0)?);
    drain_slowly(&stage, &topic)?;
    acked.extend(write(&stage, &topic, "last", NEW, 0)?);
    reader.wait("last", LIMIT, |seen| count(seen, "last") == NEW)?;
    let unsent = stage.site.ledger(&topic)?.queued;
    seed::say(&format!("live first: {unsent} of the second backlog left"));
    ensure!(
        unsent > LATER / 4,
        "the last records waited for the backlog: {unsent} left"
    );
    stage.wait_drained(&topic, LIMIT)?;

    let verdict = stage.judge(&acked, LIMIT)?;
    seed::say(&format!("live first: {verdict}"));
    for fault in [
        &verdict.missing,
        &verdict.duplicated,
        &verdict.altered,
        &verdict.foreign,
    ] {
        ensure!(fault.count == 0, "the promise is broken: {verdict}");
    }
    in_order(&reader.seen())
}

/// Writes records and waits until the site has them. `rate`: records a second, 0 as fast as it goes.
fn write(stage: &Stage, topic: &str, name: &str, total: u64, rate: u32) -> Result<Vec<Acked>> {
    let pace = Pace {
        rate,
        total: Some(total),
        size: RECORD,
        ..Pace::default()
    };
    // batches that a thin link carries in a moment
    let batches = [("batch.size", "8192")];
    let writer = Writer::kafka(name, &stage.site.bootstrap(), topic, pace, &batches)?;
    Ok(writer.complete(LIMIT)?.acked().clone())
}

/// The site was switched off meanwhile.
fn come_back(stage: &mut Stage, topic: &str) -> Result<()> {
    stage.site.kill();
    stage.site.start()?;
    drain_slowly(stage, topic)
}

/// The link is back, and thin; some of the backlog is on its way.
fn drain_slowly(stage: &Stage, topic: &str) -> Result<()> {
    stage.link.set(|faults| {
        *faults = Faults {
            rate: Some(RATE),
            queue: Duration::from_millis(300),
            ..Faults::default()
        };
    });
    let before = stage.site.ledger(topic)?.queued;
    wait::until_true("the backlog drains", LIMIT, || {
        let ledger = stage.site.ledger(topic);
        ledger.is_ok_and(|ledger| ledger.queued + SEEN < before)
    })
}

fn count(seen: &[Committed], writer: &str) -> u64 {
    let numbered = |record: &Committed| Numbered::decode(record.payload.as_deref()?);
    let records = seen.iter().filter_map(numbered);
    records.filter(|record| record.writer == writer).count() as u64
}

/// Each writer's records lie in one track here: all of a backlog, or all after it.
fn in_order(seen: &[Committed]) -> Result<()> {
    let mut last = HashMap::new();
    for record in seen {
        let Some(numbered) = record.payload.as_deref().and_then(Numbered::decode) else {
            continue;
        };
        let offset: u64 = record
            .header(oracle::OFFSET_HEADER)
            .unwrap_or_default()
            .parse()?;
        let place = (record.partition, numbered.writer.clone());
        let before = last.insert(place, (numbered.number, offset));
        ensure!(
            before.is_none_or(|(number, before)| number < numbered.number && before < offset),
            "{} {} came after {before:?}",
            numbered.writer,
            numbered.number
        );
    }
    Ok(())
}
