//! Runs transports on links, several laboratories at once.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quinn::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use shared::congestion::MeasuredConfig;
use system_tests::wan::{Lab, Plan, Way};

use super::links::{Cell, Transport};
use super::{quic, tcp};

/// From the first byte that arrives.
pub(super) const LENGTH: Duration = Duration::from_secs(20);
pub(super) const PORT: u16 = 4433;
/// Bits per second of all laboratories that run at once.
const AT_ONCE: u64 = 100_000_000;
/// And their number.
const LABS: usize = 6;
/// Packets that came later than this cannot be trusted: the machine was busy.
const LATE: Duration = Duration::from_millis(20);

/// Runs until one can be trusted.
const ATTEMPTS: usize = 3;

/// What a run brought.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Received by the application.
    pub bytes: u64,
    /// Sent again, by what was sent.
    pub resent: f64,
}

impl Sample {
    /// By what the rate could have carried less the loss.
    #[must_use]
    pub fn goodput(&self, cell: &Cell) -> f64 {
        self.bytes as f64 * 8.0 / LENGTH.as_secs_f64() / cell.rate as f64 / cell.delivered()
    }
}

/// One of many.
#[derive(Debug, Clone, Copy)]
struct Job {
    cell: Cell,
    transport: Transport,
    seed: u64,
}

/// Every transport on every link so many times.
///
/// # Errors
/// The first that went wrong.
pub(super) fn all(cells: &[Cell], runs: u64) -> Result<Vec<(Cell, Transport, Sample)>> {
    let mut jobs = Vec::new();
    for cell in cells {
        for seed in 1..=runs {
            jobs.extend(Transport::ALL.map(|transport| Job {
                cell: *cell,
                transport,
                seed,
            }));
        }
    }
    let room = Room::default();
    thread::scope(|scope| {
        let running: Vec<_> = jobs
            .iter()
            .map(|job| {
                let room = &room;
                scope.spawn(move || {
                    let _place = room.enter(job.cell.rate);
                    let sample = one(job)
                        .with_context(|| format!("{} on {}", job.transport.name(), job.cell))?;
                    Ok((job.cell, job.transport, sample))
                })
            })
            .collect();
        running
            .into_iter()
            .map(|run| run.join().ok().context("a run panicked")?)
            .collect()
    })
}

#[allow(
    clippy::print_stdout,
    reason = "a long measurement tells how far it is"
)]
fn one(job: &Job) -> Result<Sample> {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        let (sample, late) = attempt(job)?;
        attempts.next();
        let is_doubtful = late > LATE;
        let doubt = match (is_doubtful, attempts.is_empty()) {
            (false, _) => String::new(),
            (true, false) => format!(", packets up to {late:?} late: again"),
            (true, true) => format!(", packets up to {late:?} late"),
        };
        println!(
            "    {}: {} {:.3}, {:.1} % twice{doubt}",
            job.cell,
            job.transport.name(),
            sample.goodput(&job.cell),
            sample.resent * 100.0
        );
        if !is_doubtful || attempts.is_empty() {
            return Ok(sample);
        }
    }
}

/// What it brought, and how late the laboratory was at worst.
fn attempt(job: &Job) -> Result<(Sample, Duration)> {
    let lab = Lab::start(&[Plan {
        up: job.cell.up(),
        down: job.cell.down(),
        seed: job.seed,
    }])?;
    let sample = match job.transport {
        Transport::Kedge => quic::run(&lab, Arc::new(MeasuredConfig::default())),
        Transport::TcpCubic => tcp::run(&lab, "cubic"),
        Transport::TcpBbr => tcp::run(&lab, "bbr"),
        Transport::QuinnCubic => quic::run(&lab, Arc::new(CubicConfig::default())),
        Transport::QuinnNewReno => quic::run(&lab, Arc::new(NewRenoConfig::default())),
        Transport::QuinnBbr => quic::run(&lab, Arc::new(BbrConfig::default())),
    }?;
    Ok((sample, lab.link(0).counters(Way::Up).late_most))
}

/// Lets so many in at once that the machine carries their sum.
#[derive(Debug, Default)]
struct Room {
    busy: Mutex<(usize, u64)>,
    left: Condvar,
}

struct Place<'a>(&'a Room, u64);

impl Room {
    fn enter(&self, rate: u64) -> Place<'_> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full =
            |busy: &mut (usize, u64)| busy.0 >= LABS || busy.0 > 0 && busy.1 + rate > AT_ONCE;
        let waited = self.left.wait_while(busy, is_full);
        let mut busy = waited.unwrap_or_else(PoisonError::into_inner);
        busy.0 += 1;
        busy.1 += rate;
        Place(self, rate)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.0 -= 1;
        busy.1 -= self.1;
        self.0.left.notify_all();
    }
}
