//! The link goes away without a word, loses, repeats, reorders and delays.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use system_tests::broker::Broker;
use system_tests::link::Faults;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Pace, Writer};
use system_tests::{seed, wait};

const LIMIT: Duration = Duration::from_secs(90);

/// Row 12: the store goes on, and nothing that was acknowledged is sent again.
#[test]
#[ignore = "system test: make test"]
fn a_cut_link_stops_nothing_and_resumes_without_resending() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("cut");
    let before = Pace {
        rate: 0,
        total: Some(30_000),
        size: 500,
        ..Pace::default()
    };
    let first =
        Writer::kafka("before", &stage.site.bootstrap(), &topic, before, &[])?.complete(LIMIT)?;
    stage.wait_drained(&topic, LIMIT)?;
    let (sent_before, _) = stage.link.bytes();

    stage.link.cut();
    let during = Pace {
        rate: 500,
        total: Some(3_000),
        ..Pace::default()
    };
    let second =
        Writer::kafka("during", &stage.site.bootstrap(), &topic, during, &[])?.complete(LIMIT)?;
    ensure!(second.acked_count() == 3_000, "the site stopped accepting");
    stage.link.heal();
    let healed = Instant::now();
    stage.wait_drained(&topic, LIMIT)?;
    let took = healed.elapsed();
    let (sent_after, _) = stage.link.bytes();

    let mut acked = first.acked().clone();
    acked.extend(second.acked().iter().cloned());
    let verdict = stage.judge(&acked, LIMIT)?;
    let resent = sent_after - sent_before;
    seed::say(&format!(
        "link cut: {verdict}; drained {took:?} after the heal; {sent_before} bytes before, {resent} after"
    ));
    verdict.check()?;
    ensure!(
        resent < second.payload_bytes() + 500_000,
        "{resent} bytes for what was written offline"
    );
    ensure!(
        took < Duration::from_secs(15),
        "{took:?} until all was committed"
    );
    Ok(())
}

/// QUIC repeats a first packet after 1, 3, 7, 15 … seconds: an attempt that began while the link was down
/// must not decide when the site is back.
#[test]
#[ignore = "system test: make test"]
fn a_link_that_comes_back_is_used_at_once() -> Result<()> {
    let site = Settings::default().with("uplink.connect_timeout", "60s");
    let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let read = |name: &str| stage.site.admin().metric(name, "").unwrap_or(-1.0);
    let is_connected = || read("kedge_edge_uplink_connected") == 1.0;
    wait::until_true("the site is connected", LIMIT, is_connected)?;
    let attempts = read("kedge_edge_uplink_attempts_total");
    stage.link.cut();
    wait::until_true("the site dials", LIMIT, || {
        read("kedge_edge_uplink_attempts_total") > attempts
    })?;
    wait::let_run(Duration::from_secs(8));
    stage.link.heal();
    let healed = Instant::now();
    wait::until_true("the site is connected again", LIMIT, is_connected)?;
    let took = healed.elapsed();
    seed::say(&format!("connected {took:?} after the heal"));
    ensure!(took < Duration::from_secs(5), "{took:?} until it was back");
    Ok(())
}

/// Row 13: loss, duplication, reordering, delay and jitter together.
#[test]
#[ignore = "system test: make test"]
fn a_bad_link_loses_nothing() -> Result<()> {
    let run_seed = seed::announce("bad link");
    let stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("bad-link");
    stage.link.set(|faults| {
        *faults = Faults {
            loss: 0.05,
            duplicate: 0.05,
            reorder: 0.05,
            delay: Duration::from_millis(40),
            jitter: Duration::from_millis(20),
            ..Faults::default()
        };
    });
    let pace = Pace {
        rate: 1_000,
        total: Some(15_000),
        seed: run_seed,
        ..Pace::default()
    };
    let ledger = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    seed::say(&format!("bad link: {verdict}"));
    verdict.check()
}

/// One direction only: the site hears the hub and the hub doesn't hear the site, and the other way round.
#[test]
#[ignore = "system test: make test"]
fn half_a_link_is_no_livelock() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("half-link");
    let pace = Pace {
        rate: 1_000,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?;
    let reader = stage.reader(&[&topic])?;
    for is_up in [true, false] {
        reader.wait_more(500, LIMIT)?;
        stage.link.set(|faults| {
            (faults.is_up_cut, faults.is_down_cut) = (is_up, !is_up);
        });
        wait::let_run(Duration::from_secs(8));
        stage.link.heal();
        reader.wait_more(500, Duration::from_secs(20))?;
    }
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

/// A NAT that forgets: the site's packets come from another port from one moment to the next.
#[test]
#[ignore = "system test: make test"]
fn a_nat_that_forgets_is_survived() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("nat");
    let pace = Pace {
        rate: 1_000,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?;
    let reader = stage.reader(&[&topic])?;
    for _ in 0..3 {
        reader.wait_more(500, Duration::from_secs(20))?;
        stage.link.forget();
    }
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}
