//! The connection under the session: it outlives outages and changes of address, goes over TCP where UDP is
//! blocked, and costs a quiet site little.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use system_tests::broker::Broker;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Pace, Writer};
use system_tests::{seed, wait};

const LIMIT: Duration = Duration::from_secs(120);
/// For a process that shares its processor.
const SLACK: Duration = Duration::from_millis(300);

/// The nodes' own defaults, where the harness has shorter timers.
fn as_delivered() -> (Settings, Settings) {
    let hub = Settings::default()
        .with("listen.keep_alive", "4m")
        .with("listen.idle_timeout", "15m");
    let site = Settings::default().with("uplink.idle_timeout", "15m");
    (hub, site)
}

fn metric(stage: &Stage, name: &str) -> f64 {
    let name = format!("kedge_edge_uplink_{name}");
    stage.site.admin().metric(&name, "").unwrap_or(-1.0)
}

fn steady(rate: u32) -> Pace {
    Pace {
        rate,
        ..Pace::default()
    }
}

#[test]
#[ignore = "system test: make test-links"]
fn an_outage_costs_no_session_and_little_and_is_over_at_once() -> Result<()> {
    let (hub, site) = as_delivered();
    let stage = Stage::start_with(Broker::shared(), &hub, &site)?;
    let topic = stage.topic("outage");
    let delay = Duration::from_millis(50);
    stage.link.set(|faults| faults.delay = delay);
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, steady(500), &[])?;
    let reader = stage.reader(&[&topic])?;
    reader.wait_more(1_000, LIMIT)?;
    let sessions = metric(&stage, "sessions_total");
    for seconds in [5, 40] {
        let outage = Duration::from_secs(seconds);
        let (before, _) = stage.link.bytes();
        stage.link.cut();
        wait::let_run(outage);
        let (after, _) = stage.link.bytes();
        let seen = reader.count();
        let received = || {
            stage
                .hub
                .admin()
                .metric("kedge_hub_received_bytes_total", "")
        };
        let held = received()?;
        stage
            .link
            .set(|faults| (faults.is_up_cut, faults.is_down_cut) = (false, false));
        let healed = Instant::now();
        wait::until_true("data at the hub", LIMIT, || {
            received().is_ok_and(|bytes| bytes > held)
        })?;
        let took = healed.elapsed();
        reader.wait("a record after the outage", LIMIT, |records| {
            records.len() > seen
        })?;
        let committed = healed.elapsed();
        let spent = after - before;
        seed::say(&format!(
            "outage of {outage:?}: first data at the hub {took:?} after it, in Kafka {committed:?}; \
             {spent} bytes sent into it"
        ));
        let goal = Duration::from_secs(1) + delay * 4 + SLACK;
        ensure!(took < goal, "{took:?} after an outage of {outage:?}");
        // what was on its way when the link went, QUIC's own repetitions, and the probes
        let most = 120_000 + seconds * 500;
        ensure!(
            spent < most,
            "{spent} bytes sent into an outage of {outage:?}"
        );
        reader.wait_more(500, LIMIT)?;
    }
    let after = metric(&stage, "sessions_total");
    ensure!(after == sessions, "{sessions} sessions became {after}");
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

/// No session was ever there: what is sent to find a hub has a budget too, and the hub is found at once.
#[test]
#[ignore = "system test: make test-links"]
fn a_hub_that_is_away_from_the_start_costs_little_and_is_found_at_once() -> Result<()> {
    let (hub, site) = as_delivered();
    let site = site.with("uplink.tcp_fallback", false);
    let mut stage = Stage::prepare(Broker::shared().bootstrap(), &hub, &site)?;
    stage.hub.start()?;
    stage.link.cut();
    stage.site.start()?;
    let minute = Duration::from_secs(60);
    wait::let_run(minute);
    let (spent, _) = stage.link.bytes();
    stage.link.heal();
    let healed = Instant::now();
    wait::until_true("a session", LIMIT, || metric(&stage, "connected") == 1.0)?;
    let took = healed.elapsed();
    seed::say(&format!(
        "hub away for {minute:?} from the start: {spent} bytes sent, {took:?} until the session"
    ));
    ensure!(spent < 32_000, "{spent} bytes sent");
    ensure!(
        took < Duration::from_secs(2) + SLACK,
        "found after {took:?}"
    );
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn udp_that_is_blocked_in_the_middle_is_gone_around_and_come_back_to() -> Result<()> {
    let (hub, site) = as_delivered();
    let stage = Stage::start_with(Broker::shared(), &hub, &site)?;
    let topic = stage.topic("blocked");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, steady(500), &[])?;
    let reader = stage.reader(&[&topic])?;
    reader.wait_more(1_000, LIMIT)?;
    ensure!(metric(&stage, "over_tcp") == 0.0, "it began over TCP");

    stage.link.set(|faults| faults.is_udp_blocked = true);
    let blocked = Instant::now();
    wait::until_true("the session goes over TCP", LIMIT, || {
        metric(&stage, "over_tcp") == 1.0
    })?;
    let took = blocked.elapsed();
    reader.wait_more(1_000, LIMIT)?;
    ensure!(
        took < Duration::from_secs(12),
        "{took:?} until it went over TCP"
    );

    stage.link.set(|faults| faults.is_udp_blocked = false);
    let free = Instant::now();
    wait::until_true("the session goes over UDP", LIMIT, || {
        metric(&stage, "over_tcp") == 0.0 && metric(&stage, "connected") == 1.0
    })?;
    seed::say(&format!(
        "over TCP after {took:?}, back after {:?}",
        free.elapsed()
    ));
    reader.wait_more(1_000, LIMIT)?;
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

#[test]
#[ignore = "system test: make test-links"]
fn a_site_whose_network_blocks_udp_starts_over_tcp() -> Result<()> {
    let (hub, site) = as_delivered();
    let mut stage = Stage::prepare(Broker::shared().bootstrap(), &hub, &site)?;
    stage.link.set(|faults| faults.is_udp_blocked = true);
    stage.hub.start()?;
    stage.site.start()?;
    let topic = stage.topic("tcp-only");
    let pace = Pace {
        rate: 0,
        total: Some(20_000),
        size: 500,
        ..Pace::default()
    };
    let ledger = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    let verdict = stage.judge(&ledger.acked(), LIMIT)?;
    seed::say(&format!("over TCP: {verdict}"));
    verdict.check()?;
    ensure!(metric(&stage, "over_tcp") == 1.0, "it did not go over TCP");
    // and an outage there
    stage.link.cut();
    wait::let_run(Duration::from_secs(10));
    stage
        .link
        .set(|faults| (faults.is_up_cut, faults.is_down_cut) = (false, false));
    let pace = Pace {
        total: Some(1_000),
        ..Pace::default()
    };
    let ledger = Writer::kafka("v", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    let reader = stage.reader(&[&topic])?;
    reader.wait("all records", LIMIT, |records| {
        records.len() >= 20_000 + ledger.acked_count()
    })
}

#[test]
#[ignore = "system test: make test"]
fn a_change_of_address_costs_no_session() -> Result<()> {
    let (hub, site) = as_delivered();
    let stage = Stage::start_with(Broker::shared(), &hub, &site)?;
    let topic = stage.topic("address");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, steady(1_000), &[])?;
    let reader = stage.reader(&[&topic])?;
    reader.wait_more(1_000, LIMIT)?;
    let sessions = metric(&stage, "sessions_total");
    for _ in 0..3 {
        stage.link.forget();
        reader.wait_more(2_000, LIMIT)?;
    }
    let after = metric(&stage, "sessions_total");
    ensure!(after == sessions, "{sessions} sessions became {after}");
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

#[test]
#[ignore = "system test: make test"]
fn a_hub_that_was_killed_and_is_back_is_dialled_at_once() -> Result<()> {
    let (hub, site) = as_delivered();
    let mut stage = Stage::start_with(Broker::shared(), &hub, &site)?;
    let topic = stage.topic("killed");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, steady(500), &[])?;
    let reader = stage.reader(&[&topic])?;
    reader.wait_more(1_000, LIMIT)?;
    stage.hub.kill();
    wait::let_run(Duration::from_secs(10));
    let sessions = metric(&stage, "sessions_total");
    stage.hub.start()?;
    let ready = Instant::now();
    wait::until_true("the site has a session again", LIMIT, || {
        metric(&stage, "sessions_total") > sessions
    })?;
    let took = ready.elapsed();
    seed::say(&format!("a session {took:?} after the hub was ready"));
    ensure!(took < Duration::from_secs(5), "{took:?}");
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

/// Ten times what a thin link carries, for `KEDGE_OVERLOAD_SECONDS` (a minute; ten in `make soak`): the session's own
/// words get through, records go on arriving, and in the end all of them are there.
#[test]
#[ignore = "system test: make test"]
fn a_thin_link_under_tenfold_overload_loses_no_session() -> Result<()> {
    const RATE: u64 = 50_000 / 8;
    const RECORD: usize = 250;
    let seconds = std::env::var("KEDGE_OVERLOAD_SECONDS");
    let seconds: u64 = seconds.map_or(Ok(60), |text| text.parse())?;
    let (hub, site) = as_delivered();
    let stage = Stage::start_with(Broker::shared(), &hub, &site)?;
    let topic = stage.topic("overload");
    let reader = stage.reader(&[&topic])?;
    wait::until_true("the site is connected", LIMIT, || {
        metric(&stage, "connected") == 1.0
    })?;
    stage.link.set(|faults| {
        faults.rate = Some(RATE);
        faults.delay = Duration::from_millis(100);
        faults.queue = Duration::from_millis(500);
    });
    // nothing that a codec could make less of
    let tenfold = Pace {
        rate: u32::try_from(10 * RATE)? / u32::try_from(RECORD)?,
        size: RECORD,
        ..Pace::default()
    };
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, tenfold, &[])?;
    reader.wait_for(1, LIMIT)?;
    let sessions = metric(&stage, "sessions_total");
    let (before, began) = (stage.link.bytes().0, Instant::now());
    let mut longest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(seconds) {
        let since = Instant::now();
        reader.wait_more(1, LIMIT)?;
        longest = longest.max(since.elapsed());
    }
    let (spent, took) = (stage.link.bytes().0 - before, began.elapsed());
    let used = spent as f64 / (took.as_secs_f64() * RATE as f64);
    let after = metric(&stage, "sessions_total");
    let written = writer.ledger().acked_count() * RECORD;
    let load = written as f64 / (took.as_secs_f64() * RATE as f64);
    seed::say(&format!(
        "thin link: {took:?} at {load:.1} times its rate, {used:.2} of it used, longest silence at the centre \
         {longest:?}; {sessions} sessions became {after}"
    ));
    ensure!(load > 5.0, "the load is only {load:.1} times the rate");
    ensure!(after == sessions, "{sessions} sessions became {after}");
    ensure!(metric(&stage, "silent") == 0.0, "the hub seems silent");
    ensure!(used > 0.8, "{used:.2} of the link used");
    // what waits is delivered when there is room
    stage.link.heal();
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()?;
    let after = metric(&stage, "sessions_total");
    ensure!(after == sessions, "{sessions} sessions became {after}");
    Ok(())
}

/// Below 1 MB a day.
#[test]
#[ignore = "system test: make test-links"]
fn a_quiet_site_costs_little() -> Result<()> {
    let (hub, site) = as_delivered();
    let stage = Stage::start_with(Broker::shared(), &hub, &site)?;
    wait::until_true("the site is connected", LIMIT, || {
        metric(&stage, "connected") == 1.0
    })?;
    // the path's packet size is looked for at first
    wait::let_run(Duration::from_secs(5));
    let count = || {
        let (up, down) = stage.link.bytes();
        up + down
    };
    let (before, since) = (count(), Instant::now());
    wait::let_run(Duration::from_secs(80));
    let (spent, seconds) = (count() - before, since.elapsed().as_secs());
    let a_day = spent.checked_mul(86_400).context("overflow")? / seconds;
    seed::say(&format!("{spent} bytes in {seconds} s: {a_day} a day"));
    ensure!(metric(&stage, "silent") == 0.0, "the hub seems silent");
    ensure!(
        a_day < 800_000,
        "{a_day} bytes a day, without the session's pings"
    );
    Ok(())
}
