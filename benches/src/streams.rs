//! A thousand streams of modelled state at one hub: what they take of its memory, and what the bound on that
//! memory costs in bytes.
//!
//! Twenty simulated sites send fifty logs each, encoded by the production codec, in batches of 16 KiB of
//! records. Half-way all sites leave and come back: each log goes on from a state that both ends kept, or begins
//! anew where the hub has none. The peer is the same with a hub that may keep everything.

#![allow(clippy::print_stdout, reason = "a bench says how it went")]

mod script;
mod site;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use system_tests::broker::Broker;
use system_tests::hub::{Certs, Hub};
use system_tests::paths;
use system_tests::settings::Settings;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::script::Script;
use self::site::{Goal as Progress, Log, Site};
use crate::bytes::{Recording, recordings};
use crate::results::{Goal, Row};

/// Recordings whose values are large: their topics take more than these streams.
const LARGE_VALUES: [&str; 2] = ["firmware", "snapshots"];
const SITES: usize = 20;
const LOGS: usize = 50;
/// Batches of a log before its site leaves, and again after it came back: 128 KiB of records each time.
const BATCHES: usize = 8;
const PARTITIONS: i32 = 4;
const BOUND: &str = "1GiB";
const NO_BOUND: &str = "64GiB";
/// The hub's allocator gives back what is free within ten seconds; the least that is seen meanwhile counts.
const SETTLE: Duration = Duration::from_secs(12);
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Measures the rows.
///
/// # Errors
/// When a system does not start, a recording cannot be read, or a session ends.
pub fn rows() -> Result<Vec<Row>> {
    let scripts = scripts()?;
    let broker = Broker::start()?;
    let free = run(&broker, &scripts, NO_BOUND)?;
    let bound = run(&broker, &scripts, BOUND)?;
    println!("    without a bound {free}\n    with {BOUND} {bound}");
    let megabytes = |run: &Run| run.sent as f64 / 1e6;
    Ok(vec![
        Row::new(
            "hub with 1,000 modelled streams, codec_memory = 1GiB: resident beyond the same without a record",
            "GiB",
            bound.grown as f64 / GIB,
            None,
            Goal::Below(1.0),
        ),
        Row::new(
            "1,000 modelled streams that come back once, codec_memory = 1GiB: bytes sent",
            "MB",
            megabytes(&bound),
            Some(("without a bound", megabytes(&free))),
            Goal::AtMost(1.03),
        ),
    ])
}

fn scripts() -> Result<Vec<Arc<Script>>> {
    let recordings = recordings()?.into_iter();
    let small = recordings.filter(|recording| !LARGE_VALUES.contains(&recording.name.as_str()));
    let mut scripts = Vec::new();
    for Recording { name, samples } in small {
        let script =
            Script::new(&samples, 2 * BATCHES).with_context(|| format!("recording {name}"))?;
        scripts.push(Arc::new(script));
    }
    Ok(scripts)
}

/// How one hub fared.
struct Run {
    /// Bytes that the sites gave to their transports.
    sent: u64,
    /// Bytes resident at the end, all sessions open, beyond those before the first record.
    grown: u64,
    /// Logs that began anew because the hub had lost what they went on from.
    restarts: u64,
    took: Duration,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            grown,
            restarts,
            took,
        } = self;
        write!(
            f,
            "{sent} bytes sent, {grown} resident, {restarts} logs began anew, {took:.0?}"
        )
    }
}

fn run(broker: &Broker, scripts: &[Arc<Script>], codec_memory: &str) -> Result<Run> {
    let started = Instant::now();
    let topic = format!("streams-{}", codec_memory.to_lowercase());
    // the recordings are from years ago
    broker.create_topic(&topic, PARTITIONS, &[("retention.ms", "-1")])?;
    let certs = Certs::make()?;
    let codec_dir = paths::scratch("codecs")?;
    let settings = Settings::default()
        .with("listen.codec_memory", codec_memory)
        // the harness's short timers are for hubs that have the processor to themselves
        .with("listen.keep_alive", "30s")
        .with("listen.idle_timeout", "2m")
        .with(
            "listen.codec_dir",
            codec_dir.path().to_string_lossy().into_owned(),
        );
    let mut hub = Hub::prepare(&topic, broker.bootstrap(), &certs.hub(), &settings)?;
    hub.start()?;
    let mut crowd = Crowd::start(&hub, &certs, &topic, scripts)?;
    crowd.reach(Progress {
        session: 0,
        batches: 0,
    })?;
    let before = resident(&mut hub)?;
    crowd.reach(Progress {
        session: 0,
        batches: BATCHES,
    })?;
    crowd.reach(Progress {
        session: 1,
        batches: BATCHES,
    })?;
    crowd.reach(Progress {
        session: 1,
        batches: 2 * BATCHES,
    })?;
    let grown = resident(&mut hub)?.saturating_sub(before);
    Ok(Run {
        sent: crowd.sent.load(Ordering::Relaxed),
        grown,
        restarts: crowd.restarts.load(Ordering::Relaxed),
        took: started.elapsed(),
    })
}

/// The least that the hub has resident for a while.
fn resident(hub: &mut Hub) -> Result<u64> {
    let process = hub.process()?;
    let started = Instant::now();
    let mut least = u64::MAX;
    while started.elapsed() < SETTLE {
        least = least.min(process.resident_bytes());
        thread::sleep(SAMPLE_EVERY);
    }
    Ok(least)
}

/// All sites.
struct Crowd {
    runtime: Runtime,
    goal: watch::Sender<Progress>,
    reached: Vec<watch::Receiver<Option<Progress>>>,
    tasks: JoinSet<Result<()>>,
    sent: Arc<AtomicU64>,
    restarts: Arc<AtomicU64>,
}

impl Crowd {
    fn start(hub: &Hub, certs: &Certs, topic: &str, scripts: &[Arc<Script>]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (goal, goals) = watch::channel(Progress {
            session: 0,
            batches: 0,
        });
        let (mut reached, mut tasks) = (Vec::new(), JoinSet::new());
        let (sent, restarts) = (Arc::default(), Arc::default());
        for number in 0..SITES {
            let identity = certs.issue(&format!("site-{number:02}"))?;
            let log = |log| Log::new(topic, log, &scripts[log % scripts.len()], &restarts);
            let logs = (0..LOGS).map(log).collect::<Result<_>>()?;
            let (here, there) = watch::channel(None);
            reached.push(there);
            let site = Site::new(hub.address(), &identity, logs, &sent)?;
            tasks.spawn_on(site.run(goals.clone(), here), runtime.handle());
        }
        Ok(Self {
            runtime,
            goal,
            reached,
            tasks,
            sent,
            restarts,
        })
    }

    /// Lets all sites go on, and waits until the hub has acknowledged everything.
    fn reach(&mut self, goal: Progress) -> Result<()> {
        self.goal.send_replace(goal);
        let (reached, tasks) = (&mut self.reached, &mut self.tasks);
        self.runtime.block_on(async {
            for reached in reached {
                tokio::select! {
                    there = reached.wait_for(|there| *there == Some(goal)) => drop(there?),
                    Some(ended) = tasks.join_next() => ended??,
                }
            }
            Ok(())
        })
    }
}
