//! Whatever is killed, at whatever moment, each acknowledged record arrives once and in order.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::RngExt as _;
use system_tests::broker::Broker;
use system_tests::central::Reader;
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::stage::Stage;
use system_tests::writer::{Pace, Writer};
use system_tests::{seed, wait};

const LIMIT: Duration = Duration::from_secs(90);

/// Row 1 of the fault table: kill -9 of the edge, random, under load, again and again on the same directory.
#[test]
#[ignore = "system test: make test"]
fn the_edge_survives_kill_9_again_and_again_on_the_same_directory() -> Result<()> {
    let run_seed = seed::announce("edge kills");
    let mut random = seed::generator(run_seed, "kills");
    let mut stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("kills");
    let pace = Pace {
        rate: 3_000,
        seed: run_seed,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?;
    let http_topic = stage.topic("kills-http");
    let pace = Pace {
        rate: 200,
        seed: run_seed,
        ..Pace::default()
    };
    let http = Writer::http("h", &stage.site.http(), &http_topic, pace);
    let mut slowest = Duration::ZERO;
    for _ in 0..kills() {
        wait::let_run(Duration::from_millis(random.random_range(50..800)));
        stage.site.kill();
        let killed = Instant::now();
        stage.site.start()?;
        slowest = slowest.max(killed.elapsed());
    }
    let (ledger, posted) = (writer.finish(LIMIT)?, http.finish(LIMIT)?);
    let refused = ledger.refused().clone();
    ensure!(
        refused.is_empty(),
        "an idempotent producer gave up: {refused:?}"
    );
    let mut acked = ledger.acked().clone();
    acked.extend(posted.acked().iter().cloned());
    let verdict = stage.judge(&acked, LIMIT)?;
    seed::say(&format!(
        "edge kills: {verdict}; slowest restart {slowest:?}"
    ));
    ensure!(
        slowest < Duration::from_secs(5),
        "a restart took {slowest:?}"
    );
    verdict.check()
}

/// How often the edge is killed: `KEDGE_KILLS`, or few enough for everyday runs.
fn kills() -> u32 {
    std::env::var("KEDGE_KILLS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(25)
}

/// Row 6: the hub dies in the middle of whatever it does; what counts is in Kafka only.
#[test]
#[ignore = "system test: make test"]
fn the_hub_survives_kill_9_under_load() -> Result<()> {
    let run_seed = seed::announce("hub kills");
    let mut random = seed::generator(run_seed, "kills");
    let mut stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("hub-kills");
    let pace = Pace {
        rate: 4_000,
        seed: run_seed,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?;
    for _ in 0..6 {
        wait::let_run(Duration::from_millis(random.random_range(300..2_500)));
        stage.hub.kill();
        stage.hub.start()?;
    }
    let ledger = writer.finish(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    seed::say(&format!("hub kills: {verdict}"));
    verdict.check()
}

/// Row 7: the hub comes back elsewhere, with nothing but Kafka.
#[test]
#[ignore = "system test: make test"]
fn a_hub_on_another_machine_goes_on_where_the_first_one_ended() -> Result<()> {
    let broker = Broker::shared();
    let mut stage = Stage::start(broker)?;
    let topic = stage.topic("moved");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, Pace::default(), &[])?;
    stage.reader(&[&topic])?.wait_for(1_000, LIMIT)?;
    stage.hub.kill();
    let mut other = stage.another_hub(&Settings::default())?;
    other.start()?;
    stage.link.redirect(other.address());
    wait::let_run(Duration::from_secs(2));
    let ledger = writer.finish(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    verdict.check()
}

/// Row 8: Kafka is killed, and Kafka stands still.
#[test]
#[ignore = "system test: make test"]
fn kafka_may_die_or_freeze() -> Result<()> {
    let broker = Broker::start()?;
    if !broker.is_local() {
        seed::say("skipped: KAFKA_BOOTSTRAP is not ours to kill");
        return Ok(());
    }
    let mut stage = Stage::start(&broker)?;
    let topic = stage.topic("kafka-faults");
    let pace = Pace {
        rate: 2_000,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?;
    stage.reader(&[&topic])?.wait_for(1_000, LIMIT)?;
    broker.kill();
    wait::let_run(Duration::from_secs(5));
    broker.restart()?;
    wait::let_run(Duration::from_secs(5));
    broker.freeze();
    wait::let_run(Duration::from_secs(15));
    broker.thaw();
    let accepted = writer.ledger().acked_count();
    ensure!(accepted > 30_000, "the site stopped accepting: {accepted}");
    let ledger = writer.finish(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    let resident = stage.hub.process()?.resident_bytes() >> 20;
    seed::say(&format!(
        "Kafka killed and frozen: {verdict}; hub {resident} MiB"
    ));
    verdict.check()
}

/// A stop is polite: nothing that was acknowledged waits for the next start's repair.
#[test]
#[ignore = "system test: make test"]
fn both_nodes_stop_on_sigterm() -> Result<()> {
    let mut stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("sigterm");
    let pace = Pace {
        rate: 0,
        total: Some(2_000),
        ..Pace::default()
    };
    let ledger = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    let limit = Duration::from_secs(15);
    let edge = stage.site.process()?.terminate(limit)?;
    let hub = stage.hub.process()?.terminate(limit)?;
    ensure!(edge.success() && hub.success(), "edge {edge}, hub {hub}");
    stage.hub.start()?;
    stage.site.start()?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

/// Row 8: while Kafka stands still nothing is committed, and yet no session ends: neither those that are
/// open, whose records the lane has no room for, nor one that waits to be let in.
#[test]
#[ignore = "system test: make test"]
fn sessions_outlive_a_kafka_that_stands_still() -> Result<()> {
    let broker = Broker::start()?;
    if !broker.is_local() {
        seed::say("skipped: KAFKA_BOOTSTRAP is not ours to freeze");
        return Ok(());
    }
    let hub = Settings::default()
        .with("commit.lanes", 1)
        .with("commit.lane_queue", "4MiB")
        .with("commit.max_transaction_bytes", "4MiB");
    let stage = Stage::start_with(&broker, &hub, &Settings::default())?;
    let topic = stage.topic("stands-still");
    let mut sites = vec![
        stage.another_site("site-b", &Settings::default())?,
        stage.another_site("site-c", &Settings::default())?,
    ];
    let mut late = stage.another_site("site-late", &Settings::default())?;
    for site in &mut sites {
        site.start()?;
    }
    sites.push(stage.site);
    let pace = Pace {
        rate: 2_000,
        size: 1_000,
        ..Pace::default()
    };
    let mut writers = Vec::new();
    for (n, site) in sites.iter().enumerate() {
        let name = format!("w{n}");
        writers.push(Writer::kafka(
            &name,
            &site.bootstrap(),
            &topic,
            pace.clone(),
            &[],
        )?);
    }
    let counted = |site: &Site| -> Result<(f64, f64)> {
        let admin = site.admin();
        Ok((
            admin.metric("kedge_edge_uplink_attempts_total", "")?,
            admin.metric("kedge_edge_uplink_connected", "")?,
        ))
    };
    for site in &sites {
        wait::until_true("the site is connected", LIMIT, || {
            counted(site).is_ok_and(|(_, connected)| connected > 0.0)
        })?;
    }
    let reader = Reader::start(broker.bootstrap(), &[&topic])?;
    reader.wait_for(1_000, LIMIT)?;
    let before = sites.iter().map(counted).collect::<Result<Vec<_>>>()?;

    broker.freeze();
    late.start()?;
    wait::let_run(Duration::from_secs(11));
    let (attempts, _) = counted(&late)?;
    wait::let_run(Duration::from_secs(9));
    let after = sites.iter().map(counted).collect::<Result<Vec<_>>>()?;
    broker.thaw();
    ensure!(
        before == after && attempts == 1.0,
        "attempts and sessions: {before:?}, then {after:?}; {attempts} of a site that waits to be let in"
    );
    let mut acked = Vec::new();
    for writer in writers {
        acked.extend(writer.finish(LIMIT)?.acked().iter().cloned());
    }
    reader.wait_for(acked.len(), LIMIT)?;
    Ok(())
}
