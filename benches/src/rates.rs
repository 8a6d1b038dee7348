//! What leaves the interface of a site whose rate or allowance is configured, on a link that would carry more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use system_tests::settings::Settings;
use system_tests::wait;
use system_tests::wan::{Conditions, Way};

use crate::field::Field;
use crate::load;
use crate::results::{Goal, Row};

const RATES: [(&str, u64); 5] = [
    ("32kbit", 32_000),
    ("256kbit", 256_000),
    ("2Mbit", 2_000_000),
    ("20Mbit", 20_000_000),
    ("100Mbit", 100_000_000),
];
const WINDOW: Duration = Duration::from_secs(10);
const LENGTH: Duration = Duration::from_secs(16);
const LOOK: Duration = Duration::from_millis(5);
const RECORD: usize = 1_000;
const ALLOWANCE: u64 = 3_000_000;

/// A wire, 20 ms away.
fn link() -> Conditions {
    Conditions {
        delay: Duration::from_millis(10),
        ..Conditions::default()
    }
}

/// Measures the rows.
///
/// # Errors
/// When a system does not start.
pub fn rows() -> Result<Vec<Row>> {
    let (mut most, mut least) = (0.0, f64::INFINITY);
    for (rate, bits) in RATES {
        let (top, mean) = run(rate, bits)?;
        println(rate, top, mean);
        most = f64::max(most, top);
        least = f64::min(least, mean);
    }
    let used = allowance()?;
    Ok(vec![
        Row::new(
            "IP bytes in any 10 s, the worst of 32 kbit/s to 100 Mbit/s configured",
            "of the rate",
            most,
            None,
            Goal::Below(1.02),
        ),
        Row::new(
            "the same in the mean, the least of them",
            "of the rate",
            least,
            None,
            Goal::Above(0.9),
        ),
        Row::new(
            "IP bytes of both directions with an allowance, backlog left",
            "of the allowance",
            used,
            None,
            Goal::Below(1.0),
        ),
    ])
}

#[allow(clippy::print_stdout, reason = "a benchmark tells how far it is")]
fn println(rate: &str, top: f64, mean: f64) {
    println!("    {rate}: at most {top:.4} of the rate in ten seconds, {mean:.4} in the mean");
}

/// The most within any ten seconds, and the mean, by the rate.
fn run(rate: &str, bits: u64) -> Result<(f64, f64)> {
    let settings = Settings::default()
        .with("policy.rate_up", rate)
        .with("store.quota", "8GiB");
    let field = Field::open(link(), &settings)?;
    let bytes = bits / 8 * (LENGTH.as_secs() + 10) + 10_000_000;
    let records = bytes / u64::try_from(RECORD)?;
    field.at_site(|site| load::fill(&site.bootstrap(), "backlog", records, RECORD))??;
    let sent = || field.link().counters(Way::Up).sent_bytes;
    let (start, first) = (Instant::now(), sent());
    let (mut looks, mut most) = (VecDeque::from([(Duration::ZERO, 0)]), 0);
    while start.elapsed() < LENGTH {
        wait::let_run(LOOK);
        let (now, bytes) = (start.elapsed(), sent() - first);
        looks.push_back((now, bytes));
        while looks.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            looks.pop_front();
        }
        let oldest = looks.front().map_or(bytes, |(_, bytes)| *bytes);
        most = most.max(bytes - oldest);
    }
    let mean = (sent() - first) as f64 / start.elapsed().as_secs_f64();
    let bytes_a_second = bits as f64 / 8.0;
    Ok((
        most as f64 / (bytes_a_second * WINDOW.as_secs_f64()),
        mean / bytes_a_second,
    ))
}

/// What was used when the policy stopped the site, by the allowance.
fn allowance() -> Result<f64> {
    let settings = Settings::default()
        .with("policy.rate_up", "4Mbit")
        .with("policy.allowance.bytes", format!("{ALLOWANCE}B"))
        .with("policy.allowance.period", "day")
        .with("policy.allowance.at_100", "stop");
    let field = Field::open(link(), &settings)?;
    field.at_site(|site| load::fill(&site.bootstrap(), "backlog", 20_000, RECORD))??;
    let limit = Duration::from_secs(120);
    field.at_site(|site| {
        wait::until_true("the policy stops the site", limit, || {
            let status = site.admin().status().unwrap_or_default();
            status["policy"]["allowances"][0]["action"] == "stop"
        })
    })??;
    wait::let_run(Duration::from_secs(10));
    Ok(field.sent_bytes() as f64 / ALLOWANCE as f64)
}
