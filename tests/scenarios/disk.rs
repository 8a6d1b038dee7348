//! The disk: power cuts, failing syncs, a full file system, damage.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use system_tests::broker::Broker;
use system_tests::oracle::Verdict;
use system_tests::power::Power;
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::stage::Stage;
use system_tests::volume::Volume;
use system_tests::writer::{Ledger, Pace, Writer};
use system_tests::{seed, wait};

const LIMIT: Duration = Duration::from_secs(90);

/// Row 2: everything that was acknowledged had been synced.
#[test]
#[ignore = "system test: make test"]
fn a_power_cut_takes_nothing_that_was_acknowledged() -> Result<()> {
    let verdict = power_cuts(false)?;
    seed::say(&format!("power cuts: {verdict}"));
    verdict.check()
}

/// The same with syncs that do nothing: if this were clean, the test above would prove nothing.
#[test]
#[ignore = "system test: make test"]
fn the_power_cut_test_bites_when_syncs_do_nothing() -> Result<()> {
    let verdict = power_cuts(true)?;
    seed::say(&format!("power cuts without syncs: {verdict}"));
    ensure!(
        verdict.missing.count > 0,
        "nothing was lost without syncs: the test proves nothing"
    );
    Ok(())
}

fn power_cuts(are_syncs_ignored: bool) -> Result<Verdict> {
    let run_seed = seed::announce("power cuts");
    let mut random = seed::generator(run_seed, "cuts");
    let mut stage = Stage::prepare(
        Broker::shared().bootstrap(),
        &Settings::default(),
        &Settings::default(),
    )?;
    stage.hub.start()?;
    let power = Power::of(&mut stage.site, are_syncs_ignored)?;
    stage.site.start()?;
    // What was shipped already can't be lost: nothing is until the cuts are over.
    stage.link.cut();
    let topic = stage.topic("power");
    let mut acked = Vec::new();
    // A store that synced nothing does not survive its first cut.
    for cut in 0..if are_syncs_ignored { 1 } else { 5 } {
        // One producer for each life of the site: whether a producer survives is another scenario.
        let pace = Pace {
            rate: 2_000,
            seed: run_seed,
            ..Pace::default()
        };
        let name = format!("w{cut}");
        let writer = Writer::kafka(&name, &stage.site.bootstrap(), &topic, pace, &[])?;
        wait::until_true("some records are acknowledged", LIMIT, || {
            writer.ledger().acked_count() > 200
        })?;
        wait::let_run(Duration::from_millis(random.random_range(0..500)));
        power.cut(&mut stage.site)?;
        // Only what was acknowledged before the cut counts; the writer ends with the site.
        acked.extend(writer.ledger().acked().iter().cloned());
        drop(writer);
        stage.site.start()?;
    }
    stage.link.heal();
    stage.judge(
        &acked,
        if are_syncs_ignored {
            Duration::from_secs(15)
        } else {
            LIMIT
        },
    )
}

/// Row 5: after a failed sync nothing more is acknowledged from that log, and nothing that was is lost.
#[test]
#[ignore = "system test: make test"]
fn a_failing_sync_costs_no_acknowledged_record() -> Result<()> {
    let mut stage = Stage::prepare(
        Broker::shared().bootstrap(),
        &Settings::default(),
        &Settings::default(),
    )?;
    stage.hub.start()?;
    let power = Power::of(&mut stage.site, false)?;
    stage.site.start()?;
    stage.link.cut();
    let topic = stage.topic("eio");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, Pace::default(), &[])?;
    let ledger = writer.ledger();
    wait::until_true("some are acknowledged", LIMIT, || {
        ledger.acked_count() > 500
    })?;
    power.break_syncs()?;
    wait::let_run(Duration::from_secs(1));
    let stuck = ledger.acked_count();
    wait::let_run(Duration::from_secs(2));
    ensure!(
        ledger.acked_count() == stuck,
        "records were acknowledged while syncs fail"
    );
    power.mend_syncs();
    power.cut(&mut stage.site)?;
    stage.site.start()?;
    stage.link.heal();
    let ledger = writer.finish(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    seed::say(&format!("failing syncs: {verdict}"));
    verdict.check()
}

/// Row 4: producers are told to wait, nothing is lost, and it goes on without a restart.
#[test]
#[ignore = "system test: make test"]
fn a_full_disk_pushes_back_and_recovers_without_a_restart() -> Result<()> {
    let Some(volume) = Volume::mount(160)? else {
        return Ok(());
    };
    let site = Settings::default()
        .with("store.quota", "1GiB")
        .with("store.sweep_interval", "1s")
        .with("store.min_free", "24MiB")
        .with("store.reserve", "16MiB");
    let mut stage = Stage::prepare(
        Broker::shared().bootstrap(),
        &Settings::default(),
        &Settings::default(),
    )?;
    let identity = stage.certs.issue("site-full")?;
    stage.site = Site::prepare_at(
        &volume.path().join("data"),
        stage.link.address(),
        &identity,
        &site,
    )?;
    stage.hub.start()?;
    stage.site.start()?;
    stage.link.cut();
    let topic = stage.topic("full");
    let pace = Pace {
        rate: 0,
        size: 2_000,
        ..Pace::default()
    };
    // What waits in the client must fit once more when the disk is free again.
    let queue = [("queue.buffering.max.messages", "10000")];
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &queue)?;
    wait_stuck(&writer.ledger())?;
    // Then somebody else takes the rest.
    volume.fill()?;
    wait::let_run(Duration::from_secs(2));
    stage.site.process()?.check_alive()?;
    let stuck = writer.ledger().acked_count();
    stage.link.heal();
    wait::let_run(Duration::from_secs(3));
    volume.relieve();
    wait::until_true("it accepts again", LIMIT, || {
        writer.ledger().acked_count() > stuck + 100_000
    })?;
    let ledger = writer.finish(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    seed::say(&format!("disk full after {stuck} records: {verdict}"));
    ensure!(
        ledger.refused().is_empty(),
        "given up: {:?}",
        ledger.refused()
    );
    stage.site.process()?.check_alive()?;
    verdict.check()
}

/// The quota is the same promise without a full disk.
#[test]
#[ignore = "system test: make test"]
fn the_quota_pushes_back_and_recovers() -> Result<()> {
    let site = Settings::default().with("store.quota", "32MiB");
    let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    stage.link.cut();
    let topic = stage.topic("quota");
    let pace = Pace {
        rate: 0,
        size: 2_000,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?;
    wait_stuck(&writer.ledger())?;
    let stuck = writer.ledger().acked_count();
    ensure!(stuck > 8_000, "it was full after {stuck} records of 2 kB");
    stage.link.heal();
    let ledger = writer.ledger();
    wait::until_true("it accepts again", LIMIT, || ledger.acked_count() > stuck)?;
    let slowest = slowest_step(&ledger, stuck + 20_000)?;
    seed::say(&format!(
        "at the quota nothing was accepted for {slowest:?}"
    ));
    ensure!(
        slowest < Duration::from_secs(2),
        "accepts in bursts: nothing for {slowest:?}"
    );
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

/// The longest time without an acknowledgement until there are so many.
fn slowest_step(ledger: &Ledger, goal: usize) -> Result<Duration> {
    let mut last = (ledger.acked_count(), Instant::now());
    let mut slowest = Duration::ZERO;
    wait::until_true("it goes on accepting", LIMIT, || {
        let count = ledger.acked_count();
        if count != last.0 {
            slowest = slowest.max(last.1.elapsed());
            last = (count, Instant::now());
        }
        count >= goal
    })?;
    Ok(slowest)
}

fn wait_stuck(ledger: &Ledger) -> Result<()> {
    let mut last = (ledger.acked_count(), Instant::now());
    wait::until_true("the site pushes back", LIMIT, || {
        let count = ledger.acked_count();
        if count != last.0 {
            last = (count, Instant::now());
        }
        count > 0 && last.1.elapsed() > Duration::from_secs(3)
    })
}

/// Row 3: the end of the write-ahead log is gone.
#[test]
#[ignore = "system test: make test"]
fn a_torn_write_ahead_log_costs_exactly_what_is_reported() -> Result<()> {
    damage("torn log", |data, random| {
        let file = newest(data, "log")?;
        let length = fs::metadata(&file)?.len();
        let keep = length - random.random_range(1..length / 2);
        fs::File::options().write(true).open(&file)?.set_len(keep)?;
        Ok(format!("{} cut from {length} to {keep}", name(&file)))
    })
}

/// Row 3: one bit of a sorted table is wrong.
#[test]
#[ignore = "system test: make test"]
fn a_flipped_bit_in_a_table_costs_exactly_what_is_reported() -> Result<()> {
    damage("flipped bit", |data, random| {
        let file = newest(data, "sst")?;
        let mut bytes = fs::read(&file)?;
        let at = random.random_range(0..bytes.len() / 2);
        bytes[at] ^= 1 << random.random_range(0..8);
        fs::write(&file, bytes)?;
        Ok(format!("{} at {at}", name(&file)))
    })
}

/// Row 3: a table is cut short.
#[test]
#[ignore = "system test: make test"]
fn a_truncated_table_costs_exactly_what_is_reported() -> Result<()> {
    damage("truncated table", |data, random| {
        let file = newest(data, "sst")?;
        let length = fs::metadata(&file)?.len();
        let keep = random.random_range(0..length);
        fs::File::options().write(true).open(&file)?.set_len(keep)?;
        Ok(format!("{} cut from {length} to {keep}", name(&file)))
    })
}

/// The node starts, goes on, and says to the record how much is lost.
fn damage(
    what: &str,
    harm: impl FnOnce(&Path, &mut rand::rngs::StdRng) -> Result<String>,
) -> Result<()> {
    let run_seed = seed::announce(what);
    let mut stage = Stage::start(Broker::shared())?;
    stage.link.cut();
    let topic = stage.topic("damage");
    // Large enough that tables are written, small enough for a test.
    let pace = Pace {
        rate: 0,
        total: Some(60_000),
        size: 1_000,
        seed: run_seed,
        ..Pace::default()
    };
    let ledger =
        Writer::kafka("before", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    stage.site.kill();
    let done = harm(stage.site.data_dir(), &mut seed::generator(run_seed, what))?;
    stage.site.start().context("start on a damaged store")?;
    let pace = Pace {
        rate: 0,
        total: Some(1_000),
        ..Pace::default()
    };
    let after =
        Writer::kafka("after", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    stage.link.heal();
    let site = stage.wait_drained(&topic, LIMIT)?;
    let mut acked = ledger.acked().clone();
    acked.extend(after.acked().iter().cloned());
    let verdict = stage.judge(&acked, Duration::from_secs(10))?;
    seed::say(&format!(
        "{what} ({done}): {verdict}; the site says {site:?}"
    ));
    ensure!(
        u64::try_from(verdict.missing.count)? == site.damaged,
        "{} are missing and {} are reported",
        verdict.missing.count,
        site.damaged
    );
    let found_after = verdict
        .missing
        .examples
        .iter()
        .all(|example| !example.starts_with("after"));
    ensure!(
        found_after,
        "records written after the repair are missing: {verdict}"
    );
    let mut others = verdict;
    others.missing = Default::default();
    others.check()
}

fn newest(dir: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    collect(dir, extension, &mut found)?;
    found.sort_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
    found.retain(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 100_000));
    found
        .pop()
        .with_context(|| format!("no large .{extension} file below {}", dir.display()))
}

fn collect(dir: &Path, extension: &str, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, extension, into)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
