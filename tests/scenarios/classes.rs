//! An alarm behind a backlog, on a thin and long link.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value as Json;
use system_tests::broker::Broker;
use system_tests::central::Reader;
use system_tests::record::Numbered;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Ledger, Pace, Writer};
use system_tests::{seed, wait};
use toml::{Table, Value};

const LIMIT: Duration = Duration::from_secs(90);
/// 256 kbit/s, and a satellite's way.
const RATE: u64 = 32_000;
const ONE_WAY: Duration = Duration::from_millis(300);
/// One bandwidth-delay product.
const QUEUE: Duration = Duration::from_millis(600);
const RECORD: usize = 1_000;
/// More than the link carries while the alarms come.
const BACKLOG: u64 = 12_000;
const ALARMS: u64 = 60;

/// A site that knows what its link carries fills no queue on the way.
#[test]
#[ignore = "system test: make test"]
fn an_alarm_behind_a_backlog_is_not_late() -> Result<()> {
    let site = Settings::default().with("policy.rate_up", "250kbit");
    let found = alarms_behind_a_backlog("with the rate configured", &site)?;
    ensure!(found.p90 < Duration::from_millis(1_500), "{found:?}");
    ensure!(found.p99 < Duration::from_secs(3), "{found:?}");
    ensure!(found.share > 0.82, "{found:?}");
    Ok(())
}

/// One that does not know it has what the congestion controller lets queue up besides.
#[test]
#[ignore = "system test: make test"]
fn an_alarm_waits_for_no_more_than_the_queue_on_the_way() -> Result<()> {
    let found = alarms_behind_a_backlog("with the rate unknown", &Settings::default())?;
    ensure!(found.p90 < Duration::from_millis(1_500), "{found:?}");
    ensure!(found.p99 < Duration::from_secs(3), "{found:?}");
    ensure!(found.share > 0.82, "{found:?}");
    Ok(())
}

/// What was written of a large value must not use up the hub's credit for what is more urgent.
#[test]
#[ignore = "system test: make test"]
fn an_alarm_does_not_wait_for_large_values() -> Result<()> {
    let site = with_classes(&Settings::default().with("policy.rate_up", "250kbit"));
    let stage = Stage::start_with(Broker::shared(), &patient_hub(), &site)?;
    let (backlog, alarms) = (stage.topic("backlog"), stage.topic("alarms"));
    let reader = stage.reader(&[&alarms])?;
    let bootstrap = stage.site.bootstrap();
    let pace = |rate, total| Pace {
        rate,
        total: Some(total),
        ..Pace::default()
    };
    Writer::kafka("first", &bootstrap, &alarms, pace(1, 1), &[])?.complete(LIMIT)?;
    reader.wait_for(1, LIMIT)?;
    stage.link.set(|faults| {
        faults.rate = Some(RATE);
        faults.delay = Duration::from_millis(50);
        faults.queue = QUEUE;
    });
    let large = Pace {
        size: 900_000,
        ..pace(0, 2)
    };
    Writer::kafka("large", &bootstrap, &backlog, large, &[])?.complete(LIMIT)?;
    let written = Writer::kafka("alarm", &bootstrap, &alarms, pace(2, 14), &[])?.complete(LIMIT)?;
    reader.wait_for(15, LIMIT)?;
    let latest = ages(&written, &reader).into_iter().max();
    seed::say(&format!("the latest alarm behind large values: {latest:?}"));
    ensure!(stage.site.ledger(&backlog)?.committed < 2, "no backlog");
    let limit = Duration::from_millis(1_500);
    ensure!(latest.is_some_and(|age| age < limit), "{latest:?}");
    Ok(())
}

/// What an allowance forbids does not leave because it was handed to the transport before.
#[test]
#[ignore = "system test: make test"]
fn what_may_not_be_sent_any_more_is_taken_back() -> Result<()> {
    const LARGE: u64 = 6;
    let site = with_classes(&Settings::default())
        .with("policy.allowance.bytes", "2MB")
        .with("policy.allowance.period", "day")
        .with("policy.allowance.at_100", "critical-only");
    let stage = Stage::start_with(Broker::shared(), &patient_hub(), &site)?;
    let (backlog, alarms) = (stage.topic("backlog"), stage.topic("alarms"));
    let reader = stage.reader(&[&alarms])?;
    stage.link.set(|faults| {
        faults.rate = Some(125_000);
        faults.delay = Duration::from_millis(50);
        faults.queue = Duration::from_millis(200);
    });
    let bootstrap = stage.site.bootstrap();
    let large = Pace {
        rate: 0,
        total: Some(LARGE),
        size: 900_000,
        ..Pace::default()
    };
    Writer::kafka("large", &bootstrap, &backlog, large, &[])?.complete(LIMIT)?;
    let only = Json::from(vec!["critical"]);
    wait::until_true("the allowance is used up", LIMIT, || {
        let status = stage.site.admin().status();
        status.is_ok_and(|status| status["policy"]["paths"][0]["classes"] == only)
    })?;
    let before = stage.link.bytes().0;
    wait::let_run(Duration::from_secs(10));
    let more = stage.link.bytes().0 - before;
    seed::say(&format!("{more} bytes after the last that were allowed"));
    ensure!(more < 400_000, "{more} bytes more");
    ensure!(stage.site.ledger(&backlog)?.committed < LARGE, "no backlog");
    let one = Pace {
        total: Some(1),
        ..Pace::default()
    };
    Writer::kafka("alarm", &bootstrap, &alarms, one, &[])?.complete(LIMIT)?;
    reader.wait_for(1, LIMIT)
}

#[derive(Debug)]
struct Found {
    p50: Duration,
    p90: Duration,
    p99: Duration,
    /// What the backlog has of the link.
    share: f64,
}

fn with_classes(site: &Settings) -> Settings {
    let class = |pattern: &str, class: &str| {
        let mut rule = Table::new();
        rule.insert("match".to_owned(), Value::from(pattern));
        rule.insert("class".to_owned(), Value::from(class));
        rule
    };
    site.clone()
        .with("uplink.connect_timeout", "10s")
        .with("uplink.idle_timeout", "20s")
        .with("uplink.codec", "none")
        .with_rule("topics", class("alarms*", "critical"))
        .with_rule("topics", class("backlog*", "bulk"))
}

/// A round trip with a full queue takes longer than the harness's short timers allow.
fn patient_hub() -> Settings {
    Settings::default()
        .with("listen.keep_alive", "10s")
        .with("listen.idle_timeout", "30s")
}

/// Time from the site's acknowledgement of an alarm until a reader at the centre sees it, while a backlog
/// drains.
fn alarms_behind_a_backlog(what: &str, site: &Settings) -> Result<Found> {
    let stage = Stage::start_with(Broker::shared(), &patient_hub(), &with_classes(site))?;
    let (backlog, alarms) = (stage.topic("backlog"), stage.topic("alarms"));
    // the topic exists at the centre, and its reader has found it
    let reader = stage.reader(&[&alarms])?;
    let first = Pace {
        total: Some(1),
        ..Pace::default()
    };
    Writer::kafka("first", &stage.site.bootstrap(), &alarms, first, &[])?.complete(LIMIT)?;
    reader.wait_for(1, LIMIT)?;

    stage.link.set(|faults| {
        faults.rate = Some(RATE);
        faults.delay = ONE_WAY;
        faults.queue = QUEUE;
    });
    let bulk = Pace {
        rate: 0,
        total: Some(BACKLOG),
        size: RECORD,
        ..Pace::default()
    };
    // two seconds of the link each: an alarm must not wait for the rest of one that is on its way
    let batches = [("batch.size", "65536")];
    Writer::kafka("bulk", &stage.site.bootstrap(), &backlog, bulk, &batches)?.complete(LIMIT)?;
    wait::until_true("the backlog drains", LIMIT, || {
        stage.site.ledger(&backlog).is_ok_and(|l| l.committed > 300)
    })?;

    let (began, before) = (Instant::now(), stage.site.ledger(&backlog)?.committed);
    let alarm = Pace {
        rate: 1,
        total: Some(ALARMS),
        ..Pace::default()
    };
    let written =
        Writer::kafka("alarm", &stage.site.bootstrap(), &alarms, alarm, &[])?.complete(LIMIT)?;
    let after = stage.site.ledger(&backlog)?.committed;
    let elapsed = began.elapsed();
    reader.wait_for(1 + usize::try_from(ALARMS)?, LIMIT)?;

    let mut ages = ages(&written, &reader);
    ages.sort_unstable();
    let at = |percent: usize| ages[(ages.len() * percent / 100).min(ages.len() - 1)];
    let bytes = (after - before) as f64 * RECORD as f64;
    let share = bytes / (elapsed.as_secs_f64() * RATE as f64);
    let found = Found {
        p50: at(50),
        p90: at(90),
        p99: at(99),
        share,
    };
    seed::say(&format!("alarms behind a backlog, {what}: {found:?}"));
    ensure!(found.p50 > ONE_WAY, "the link is shorter than it should be");
    Ok(found)
}

fn ages(written: &Ledger, reader: &Reader) -> Vec<Duration> {
    let acked: HashMap<u64, Instant> = written
        .acked()
        .iter()
        .map(|record| (record.number, record.at))
        .collect();
    reader
        .seen()
        .iter()
        .filter_map(|record| {
            let numbered = Numbered::decode(record.payload.as_deref()?)?;
            let acked = acked.get(&numbered.number)?;
            (numbered.writer == "alarm").then(|| record.seen.saturating_duration_since(*acked))
        })
        .collect()
}
