//! Coming back after an outage: Kedge's site and a librdkafka producer on links of 10 Mbit/s and 100 ms that
//! nobody tells of it, with more to send than the link carries.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use system_tests::settings::Settings;
use system_tests::wait;
use system_tests::wan::{Conditions, Way};

use crate::field::Field;
use crate::load;
use crate::results::{Goal, Row};
use crate::wan::Extent;

const RATE: u64 = 10_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(100);
const RECORD: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(180);
/// Steady before the link goes.
const BEFORE: Duration = Duration::from_secs(6);
const LOOK: Duration = Duration::from_millis(5);
/// Over which the rate is looked at.
const SPAN: Duration = Duration::from_millis(500);

/// From the end of an outage on, seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Back {
    /// Until the first packet with data came through.
    first: f64,
    /// From then on until the link carried nine tenths of its rate again.
    ramp: f64,
}

impl Back {
    fn worse(self, other: Self) -> Self {
        Self {
            first: self.first.max(other.first),
            ramp: self.ramp.max(other.ramp),
        }
    }
}

/// Measures the rows.
///
/// # Errors
/// When a system does not start or does not come back.
pub fn rows(extent: Extent) -> Result<Vec<Row>> {
    let outages: &[u64] = match extent {
        Extent::Quick => &[5, 30, 90],
        Extent::Full => &[5, 10, 30, 90, 300, 600],
    };
    let (ours, peers) = thread::scope(|scope| {
        let ours = scope.spawn(|| ours(outages));
        let peers = scope.spawn(|| peers(outages));
        let join = |run: thread::ScopedJoinHandle<'_, Result<Back>>| {
            run.join().ok().context("a run panicked")?
        };
        anyhow::Ok((join(ours)?, join(peers)?))
    })?;
    let longest = outages.last().copied().unwrap_or_default();
    let row = |what: &str, ours: f64, peer: f64, goal: f64| {
        let name = format!("{what} after outages of 5 s to {longest} s, the worst");
        let peer = Some(("librdkafka over TLS", peer));
        Row::new(&name, "s", ours, peer, Goal::Below(goal))
    };
    let round_trip = ROUND_TRIP.as_secs_f64();
    Ok(vec![
        row(
            "first useful byte",
            ours.first,
            peers.first,
            1.0 + 2.0 * round_trip,
        ),
        row(
            "from the first byte to 90 % of the rate",
            ours.ramp,
            peers.ramp,
            10.0 * round_trip,
        ),
    ])
}

fn ours(outages: &[u64]) -> Result<Back> {
    let settings = Settings::default().with("store.quota", "8GiB");
    let field = Field::open(Conditions::path(RATE, ROUND_TRIP, 100), &settings)?;
    field.at_site(|site| load::fill(&site.bootstrap(), "backlog", backlog(outages), RECORD))??;
    measure("Kedge", &field, outages)
}

fn peers(outages: &[u64]) -> Result<Back> {
    let field = Field::bare(Conditions::path(RATE, ROUND_TRIP, 100))?;
    let _producer = field.as_peer(|mut config| {
        config
            .set("queue.buffering.max.kbytes", "2000000")
            .set("queue.buffering.max.messages", "2000000");
        load::fill_queue(&config, "backlog", backlog(outages), RECORD)
    })??;
    measure("librdkafka", &field, outages)
}

/// Records for all the time that the link is there.
fn backlog(outages: &[u64]) -> u64 {
    let seconds = 20 * u64::try_from(outages.len() + 1).unwrap_or(1);
    RATE / 8 * seconds / 500
}

#[allow(clippy::print_stdout, reason = "a benchmark tells how far it is")]
fn measure(who: &str, field: &Field, outages: &[u64]) -> Result<Back> {
    let delivered = || field.link().counters(Way::Up).delivered_bytes;
    let full = RATE as f64 / 8.0 * 0.9 * SPAN.as_secs_f64();
    let is_full = || {
        let before = delivered();
        wait::let_run(SPAN);
        (delivered() - before) as f64 >= full
    };
    let mut worst = Back::default();
    for seconds in outages {
        wait::until_true("the link is full", LIMIT, is_full)?;
        wait::let_run(BEFORE);
        field.link().cut();
        wait::let_run(Duration::from_secs(*seconds));
        let before = delivered();
        field.link().restore();
        let restored = Instant::now();
        // probes, handshakes and single acknowledgements are smaller
        let mut looks = vec![(Duration::ZERO, before)];
        let (mut first, mut at_rate) = (None, None);
        while at_rate.is_none() {
            anyhow::ensure!(
                restored.elapsed() < LIMIT,
                "{who}: not back after {LIMIT:?}"
            );
            wait::let_run(LOOK);
            let (now, bytes) = (restored.elapsed(), delivered());
            looks.push((now, bytes));
            if first.is_none() && bytes - before >= FIRST {
                first = Some(now);
            }
            let since = looks.iter().rev().find(|(at, _)| now >= *at + SPAN);
            if since.is_some_and(|(_, then)| (bytes - then) as f64 >= full) {
                at_rate = Some(now.saturating_sub(SPAN));
            }
        }
        let (first, full) = (first.unwrap_or_default(), at_rate.unwrap_or_default());
        let back = Back {
            first: first.as_secs_f64(),
            ramp: full.saturating_sub(first).as_secs_f64(),
        };
        println!(
            "    {who}, {seconds} s: first data after {:.2} s, nine tenths of the rate {:.2} s later",
            back.first, back.ramp
        );
        worst = worst.worse(back);
    }
    Ok(worst)
}

/// What is surely no longer handshakes, probes and acknowledgements.
const FIRST: u64 = 6_000;
