//! Wall clocks that are wrong. No order and no decision on duplicates may depend on them.

use std::time::Duration;

use anyhow::{Result, ensure};
use system_tests::broker::Broker;
use system_tests::clock::Clock;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Pace, Writer};
use system_tests::{seed, wait};

const LIMIT: Duration = Duration::from_secs(60);
const DAY: i64 = 86_400;

/// Row 15: jumps by a day in both directions while records flow.
#[test]
#[ignore = "system test: make test"]
fn a_jumping_clock_changes_nothing() -> Result<()> {
    let mut stage = Stage::prepare(
        Broker::shared().bootstrap(),
        &Settings::default(),
        &Settings::default(),
    )?;
    let clock = Clock::of(&mut stage.site)?;
    stage.hub.start()?;
    stage.site.start()?;
    let topic = stage.topic("clock");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, Pace::default(), &[])?;
    for jump in [DAY, -DAY, 0, 20 * 365 * DAY, 0] {
        clock.jump(jump)?;
        wait::let_run(Duration::from_secs(2));
    }
    let ledger = writer.finish(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    seed::say(&format!("jumping clock: {verdict}"));
    verdict.check()
}

/// 1970 at boot: certificates are not valid yet, so the link stays closed; the store goes on.
#[test]
#[ignore = "system test: make test"]
fn a_site_in_1970_stores_and_delivers_when_its_clock_is_right() -> Result<()> {
    let mut stage = Stage::prepare(
        Broker::shared().bootstrap(),
        &Settings::default(),
        &Settings::default(),
    )?;
    let clock = Clock::of(&mut stage.site)?;
    clock.jump(-56 * 365 * DAY)?;
    stage.hub.start()?;
    stage.site.start()?;
    let topic = stage.topic("1970");
    let pace = Pace {
        rate: 0,
        total: Some(2_000),
        ..Pace::default()
    };
    let ledger = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    ensure!(ledger.acked_count() == 2_000);
    wait::let_run(Duration::from_secs(2));
    ensure!(
        stage.site.ledger(&topic)?.committed == 0,
        "a certificate of the future was accepted"
    );
    clock.jump(0)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}
