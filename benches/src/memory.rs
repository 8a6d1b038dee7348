//! What a site costs: resident memory under load and with a backlog, time to be ready, binary size.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use system_tests::paths;
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::stage::Stage;

use crate::load;
use crate::results::{Goal, Row};

const MIB: f64 = 1024.0 * 1024.0;
const GB_OF_RECORDS: u64 = 4_800_000;
/// Records a second while memory is looked at.
const PACE: u64 = 10_000;
/// After a burst the node gives memory back within seconds.
const SETTLE: Duration = Duration::from_secs(8);
const WATCHED: Duration = Duration::from_secs(10);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// Measures the rows.
///
/// # Errors
/// When the site does not start or refuses records.
pub fn rows() -> Result<Vec<Row>> {
    let settings = Settings::default()
        .with("topics.default.partitions", 4)
        .with("store.quota", "20GiB");
    let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &settings)?;
    let site = &mut stage.site;
    site.start()?;
    let empty = resident(site)?;
    let mut rows = vec![Row::new(
        "resident at 10,000 records/s",
        "MiB",
        empty,
        None,
        Goal::Below(64.0),
    )];
    let mut stored = 0;
    for gb in [1, 10] {
        load::produce(
            &site.bootstrap(),
            "bench",
            (gb - stored) * GB_OF_RECORDS,
            None,
        )?;
        stored = gb;
        rows.extend(backlog(site, gb, empty)?);
    }
    rows.push(Row::new(
        "edge-node, stripped",
        "MB",
        binary()?,
        None,
        Goal::Below(25.0),
    ));
    Ok(rows)
}

/// Right after so many gigabytes were appended at full speed: memory, a kill, and memory again.
fn backlog(site: &mut Site, gb: u64, empty: f64) -> Result<[Row; 3]> {
    let full = resident(site)?;
    site.kill();
    let started = Instant::now();
    site.start()?;
    let ready = started.elapsed().as_secs_f64() * 1000.0;
    let restarted = resident(site)?;
    let same = |name: String, figure: f64| {
        let peer = Some(("with no backlog", empty));
        Row::new(&name, "MiB", figure, peer, Goal::AtMost(1.1))
    };
    Ok([
        same(format!("resident with {gb} GB queued"), full),
        same(
            format!("resident with {gb} GB queued, restarted"),
            restarted,
        ),
        Row::new(
            &format!("ready after SIGKILL with {gb} GB queued"),
            "ms",
            ready,
            None,
            Goal::Below(1000.0),
        ),
    ])
}

/// Resident memory at a steady load, the median: it goes up and down with the write buffers.
fn resident(site: &mut Site) -> Result<f64> {
    let (bootstrap, process) = (site.bootstrap(), site.process()?);
    let seconds = (SETTLE + WATCHED).as_secs();
    thread::scope(|scope| {
        let load =
            scope.spawn(move || load::produce(&bootstrap, "bench", PACE * seconds, Some(PACE)));
        thread::sleep(SETTLE);
        let mut samples = Vec::new();
        while !load.is_finished() {
            samples.push(process.resident_bytes());
            thread::sleep(SAMPLE_EVERY);
        }
        load.join().ok().context("the load panicked")??;
        samples.sort_unstable();
        let median = samples.get(samples.len() / 2).context("no sample")?;
        Ok(*median as f64 / MIB)
    })
}

fn binary() -> Result<f64> {
    let dir = paths::scratch("binary")?;
    let stripped = dir.path().join("edge-node");
    let mut strip = std::process::Command::new("strip");
    strip
        .arg("-o")
        .arg(&stripped)
        .arg(paths::node("edge-node")?);
    system_tests::process::run("strip edge-node", strip, Duration::from_secs(60))?;
    Ok(fs::metadata(&stripped)?.len() as f64 / 1e6)
}
