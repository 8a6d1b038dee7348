//! What a site costs: resident memory under load and with a backlog, time to be ready, binary size.

use std::fs;
use std::time::Instant;

use anyhow::Result;
use system_tests::paths;
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::stage::Stage;

use crate::load;
use crate::results::{Goal, Row};

const MIB: f64 = 1024.0 * 1024.0;
const GIB_OF_RECORDS: u64 = 4_800_000;

/// Measures the rows.
///
/// # Errors
/// When the site does not start or refuses records.
pub fn rows() -> Result<Vec<Row>> {
    let settings = Settings::default().with("topics.default.partitions", 4);
    let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &settings)?;
    let site = &mut stage.site;
    site.start()?;
    load::produce(&site.bootstrap(), "bench", 200_000, Some(10_000))?;
    let loaded = resident(site)?;
    load::produce(&site.bootstrap(), "bench", GIB_OF_RECORDS, None)?;
    load::produce(&site.bootstrap(), "bench", 100_000, Some(10_000))?;
    let full = resident(site)?;
    site.kill();
    let started = Instant::now();
    site.start()?;
    let ready = started.elapsed().as_secs_f64() * 1000.0;
    load::produce(&site.bootstrap(), "bench", 100_000, Some(10_000))?;
    let restarted = resident(site)?;
    let same = |name: &str, figure: f64| {
        Row::new(
            name,
            "MiB",
            figure,
            Some(("with no backlog", loaded)),
            Goal::AtMost(1.1),
        )
    };
    Ok(vec![
        Row::new(
            "resident at 10,000 records/s",
            "MiB",
            loaded,
            None,
            Goal::Below(64.0),
        ),
        same("resident with 1 GB queued", full),
        same("resident with 1 GB queued, restarted", restarted),
        Row::new(
            "ready after SIGKILL with 1 GB queued",
            "ms",
            ready,
            None,
            Goal::Below(1000.0),
        ),
        Row::new(
            "edge-node, stripped",
            "MB",
            binary()?,
            None,
            Goal::Below(25.0),
        ),
    ])
}

fn resident(site: &mut Site) -> Result<f64> {
    Ok(site.process()?.resident_bytes() as f64 / MIB)
}

fn binary() -> Result<f64> {
    let dir = paths::scratch("binary")?;
    let stripped = dir.path().join("edge-node");
    let mut strip = std::process::Command::new("strip");
    strip
        .arg("-o")
        .arg(&stripped)
        .arg(paths::node("edge-node")?);
    system_tests::process::run("strip edge-node", strip, std::time::Duration::from_secs(60))?;
    Ok(fs::metadata(&stripped)?.len() as f64 / 1e6)
}
