//! Age of a critical record when it is readable in the central Kafka, while a gigabyte of bulk drains over
//! 256 kbit/s and 600 ms.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use system_tests::record::Numbered;
use system_tests::settings::Settings;
use system_tests::wait;
use system_tests::wan::{Conditions, Way};
use system_tests::writer::{Pace, Writer};
use toml::{Table, Value};

use crate::field::Field;
use crate::load;
use crate::results::{Goal, Row};

const RATE: u64 = 256_000;
const ROUND_TRIP: Duration = Duration::from_millis(600);
const LIMIT: Duration = Duration::from_secs(300);
const RECORD: usize = 1_000;
const BACKLOG: u64 = 1_000_000;
const ALARMS: u64 = 200;
const ALARMS_A_SECOND: u32 = 2;

/// Measures the rows.
///
/// # Errors
/// When a system does not start or records do not arrive.
pub fn rows() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let configured = Settings::default().with("policy.rate_up", "256kbit");
    for (what, settings) in [
        ("rate configured", configured),
        ("rate not known", Settings::default()),
    ] {
        let (p99, share) = run(&settings).with_context(|| what.to_owned())?;
        let name = format!("critical record to Kafka behind 1 GB of bulk, {what}, p99");
        rows.push(Row::new(&name, "s", p99, None, Goal::Below(1.5)));
        let name = format!("link that the bulk keeps meanwhile, {what}");
        rows.push(Row::new(
            &name,
            "of the rate",
            share,
            None,
            Goal::Above(0.85),
        ));
    }
    Ok(rows)
}

fn class(pattern: &str, class: &str) -> Table {
    let mut rule = Table::new();
    rule.insert("match".to_owned(), Value::from(pattern));
    rule.insert("class".to_owned(), Value::from(class));
    rule
}

/// The 99th percentile in seconds, and the IP bytes from the site that were not alarms by the rate.
fn run(settings: &Settings) -> Result<(f64, f64)> {
    let settings = settings
        .clone()
        .with("store.quota", "8GiB")
        .with_rule("topics", class("alarms", "critical"))
        .with_rule("topics", class("backlog", "bulk"));
    let field = Field::open(Conditions::path(RATE, ROUND_TRIP, 100), &settings)?;
    let alarms = |rate: u32, total: u64| {
        field.at_site(|site| {
            let pace = Pace {
                rate,
                total: Some(total),
                ..Pace::default()
            };
            Writer::kafka("alarm", &site.bootstrap(), "alarms", pace, &[])
        })
    };
    // the topic exists at the centre, and its reader has found it
    let first = alarms(0, 1)??.complete(LIMIT)?;
    let bootstrap = field.at_centre(|broker| broker.bootstrap().to_owned())?;
    let reader =
        field.at_centre(|_| system_tests::central::Reader::start(&bootstrap, &["alarms"]))??;
    reader.wait_for(first.acked_count(), LIMIT)?;

    field.at_site(|site| load::fill(&site.bootstrap(), "backlog", BACKLOG, RECORD))??;
    let up = || field.link().counters(Way::Up);
    let before = up().delivered_bytes;
    wait::until_true("the backlog drains", LIMIT, || {
        up().delivered_bytes > before + 10 * RATE / 8
    })?;

    let (began, before) = (Instant::now(), up().delivered_bytes);
    let written = alarms(ALARMS_A_SECOND, ALARMS)??.complete(LIMIT)?;
    let carried = (up().delivered_bytes - before) as f64 * 8.0;
    let share = carried / began.elapsed().as_secs_f64() / RATE as f64;
    reader.wait_for(1 + usize::try_from(ALARMS)?, LIMIT)?;
    // an alarm's record and the headers of a packet of its own
    let of_alarms = f64::from(ALARMS_A_SECOND) * 8.0 * 330.0 / RATE as f64;

    let acked: HashMap<u64, Instant> = written
        .acked()
        .iter()
        .map(|record| (record.number, record.at))
        .collect();
    let mut ages: Vec<Duration> = reader
        .seen()
        .iter()
        .skip(1)
        .filter_map(|record| {
            let number = Numbered::decode(record.payload.as_deref()?)?.number;
            Some(record.seen.saturating_duration_since(*acked.get(&number)?))
        })
        .collect();
    ages.sort_unstable();
    let p99 = ages
        .get(ages.len() * 99 / 100)
        .context("no alarm arrived")?;
    Ok((p99.as_secs_f64(), share - of_alarms))
}
