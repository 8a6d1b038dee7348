//! The liveness and the safety of the whole under all faults at once.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use system_tests::broker::Broker;
use system_tests::chaos::{Chaos, World};
use system_tests::clock::Clock;
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::stage::Stage;
use system_tests::volume::Volume;
use system_tests::writer::{Acked, Pace, Writer};
use system_tests::{oracle, seed};

const LIMIT: Duration = Duration::from_secs(180);
/// Length in everyday runs; `KEDGE_CHAOS_SECONDS` for longer ones.
const SECONDS: u64 = 75;
/// Room for the site's store, until the ballast takes it.
const VOLUME_MIB: u32 = 512;

#[test]
#[ignore = "system test: make test"]
fn chaos_loses_nothing_doubles_nothing_and_makes_way() -> Result<()> {
    let length = env::var("KEDGE_CHAOS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let length = Duration::from_secs(length.unwrap_or(SECONDS));
    let run_seed = seed::announce("chaos");
    let broker = Broker::start()?;
    let volume = Volume::mount(VOLUME_MIB)?;
    let mut stage = Stage::prepare(
        broker.bootstrap(),
        &Settings::default(),
        &Settings::default(),
    )?;
    if let Some(volume) = &volume {
        let identity = stage.certs.issue("site-chaos")?;
        let small = Settings::default()
            .with("store.min_free", "24MiB")
            .with("store.reserve", "16MiB")
            .with("store.quota", "256MiB");
        let data = volume.path().join("data");
        stage.site = Site::prepare_at(&data, stage.link.address(), &identity, &small)?;
    }
    let clock = Clock::of(&mut stage.site)?;
    stage.hub.start()?;
    stage.site.start()?;

    let topics = [
        stage.topic("one"),
        stage.topic("two"),
        stage.topic("posted"),
    ];
    let reader = stage.reader(&topics.each_ref().map(String::as_str))?;
    let site = stage.site.bootstrap();
    let pace = |rate| Pace {
        rate,
        seed: run_seed,
        ..Pace::default()
    };
    let writers = [
        Writer::kafka(
            "one",
            &site,
            &topics[0],
            pace(1_000),
            &[("compression.type", "lz4")],
        )?,
        Writer::kafka("two", &site, &topics[1], pace(500), &[("linger.ms", "50")])?,
        Writer::http("posted", &stage.site.http(), &topics[2], pace(100)),
    ];
    let ledgers = writers.each_ref().map(Writer::ledger);
    reader.wait_for(1_000, LIMIT)?;

    let mut chaos = Chaos::new(run_seed);
    let mut world = World {
        broker: &broker,
        stage: &mut stage,
        volume: volume.as_ref(),
        clock: &clock,
    };
    chaos.run(&mut world, length)?;
    let acked: usize = ledgers.iter().map(|ledger| ledger.acked_count()).sum();
    let committed = reader.count();
    let share = percent(committed, acked);
    broker.wait_ready(LIMIT)?;
    let up = Instant::now();
    stage
        .hub
        .wait_ready()
        .context("the hub after the last fault")?;
    stage
        .site
        .wait_ready()
        .context("the site after the last fault")?;
    for writer in writers {
        writer.finish(LIMIT)?;
    }
    let acked: Vec<Acked> = ledgers
        .iter()
        .flat_map(|ledger| ledger.acked().clone())
        .collect();
    let waited = reader.wait("all acknowledged records", LIMIT, |seen| {
        seen.len() >= acked.len()
            && oracle::judge(&acked, seen, ToOwned::to_owned).missing.count == 0
    });
    let took = up.elapsed();
    drop(reader);
    let verdict = stage.judge(&acked, Duration::from_secs(10))?;
    let faults: Vec<_> = chaos
        .counts
        .iter()
        .map(|(trouble, count)| format!("{count} {trouble}"))
        .collect();
    seed::say(&format!(
        "chaos (seed {run_seed}, {length:?}; {}): {verdict}; {share} % committed when the last fault healed \
         (goal 50), all committed {took:?} after Kafka was up (goal 10 s)",
        faults.join(", ")
    ));
    verdict.check()?;
    waited?;
    let refused: Vec<String> = ledgers[..2]
        .iter()
        .flat_map(|ledger| ledger.refused().clone())
        .collect();
    ensure!(
        refused.is_empty(),
        "idempotent producers gave up: {refused:?}"
    );
    ensure!(
        share >= 50,
        "only {share} % was committed when the last fault healed"
    );
    Ok(())
}

fn percent(part: usize, whole: usize) -> usize {
    part * 100 / whole.max(1)
}
