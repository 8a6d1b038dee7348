//! What the link may be used for: rates, windows, allowances, and the plan, on a link that counts IP bytes.

mod pushed;
mod uplinks;

use std::collections::VecDeque;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::broker::Broker;
use system_tests::clock::Clock;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Pace, Writer};
use system_tests::{paths, process, seed, wait};
use toml::toml;

const LIMIT: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);
/// What the policy is held to.
const WINDOW: Duration = Duration::from_secs(10);

fn write(stage: &Stage, topic: &str, records: u64) -> Result<()> {
    let pace = Pace {
        rate: 0,
        total: Some(records),
        size: 1_000,
        ..Pace::default()
    };
    Writer::kafka("w", &stage.site.bootstrap(), topic, pace, &[])?.complete(LIMIT)?;
    Ok(())
}

fn policy(stage: &Stage) -> Result<Value> {
    Ok(stage.site.admin().status()?["policy"].clone())
}

/// Most bytes from the site within any ten seconds, and all of them, while it runs.
fn watch_link(stage: &Stage, time: Duration) -> (u64, u64) {
    let (start, first) = (Instant::now(), stage.link.bytes().0);
    let (mut looks, mut most) = (VecDeque::from([(Duration::ZERO, 0)]), 0);
    while start.elapsed() < time {
        wait::let_run(LOOK);
        let (now, bytes) = (start.elapsed(), stage.link.bytes().0 - first);
        looks.push_back((now, bytes));
        while looks.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            looks.pop_front();
        }
        let oldest = looks.front().map_or(bytes, |(_, bytes)| *bytes);
        most = most.max(bytes - oldest);
    }
    (most, stage.link.bytes().0 - first)
}

#[test]
#[ignore = "system test: make test-links"]
fn a_configured_rate_holds_over_every_ten_seconds() -> Result<()> {
    for (rate, bits) in [("32kbit", 32_000_u64), ("1Mbit", 1_000_000)] {
        let site = Settings::default().with("policy.rate_up", rate);
        let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
        let topic = stage.topic("rate");
        write(&stage, &topic, 30_000)?;
        // not the time until the first batch is made
        wait::until_true("records leave", LIMIT, || stage.link.bytes().0 > 20_000)?;
        let (most, all) = watch_link(&stage, Duration::from_secs(25));
        let allowed = bits / 8 * 10;
        let (over, used) = (most * 1_000 / allowed, all * 1_000 / (allowed * 25 / 10));
        seed::say(&format!(
            "{rate}: at most {over} per mille of the rate in ten seconds, {used} in the mean"
        ));
        ensure!(over <= 1_020, "{most} of {allowed} bytes in ten seconds");
        ensure!(used >= 850, "{all} bytes in 25 s");
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test-links"]
fn a_rate_down_slows_what_is_answered() -> Result<()> {
    const DOWN: u64 = 16_000 / 8;
    // compressed, all of it would be there before the time is over
    let site = Settings::default()
        .with("policy.rate_down", "16kbit")
        .with("uplink.codec", "none");
    let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let topic = stage.topic("answers");
    write(&stage, &topic, 60_000)?;
    wait::until_true("records leave", LIMIT, || stage.link.bytes().0 > 200_000)?;
    // what came before the first answers were too many
    wait::let_run(WINDOW);
    let (began, before) = (Instant::now(), stage.link.bytes());
    wait::let_run(Duration::from_secs(20));
    let (after, elapsed) = (stage.link.bytes(), began.elapsed().as_secs_f64());
    let (up, down) = (after.0 - before.0, after.1 - before.1);
    let share = down as f64 / (elapsed * DOWN as f64);
    seed::say(&format!(
        "16 kbit/s down: {share:.2} of it used, {up} bytes up, {down} down"
    ));
    ensure!(share < 1.05, "{down} bytes in {elapsed} s");
    ensure!(share > 0.7, "it goes on as far as that: {up} bytes up");
    Ok(())
}

#[test]
#[ignore = "system test: make test-links"]
fn an_allowance_is_never_exceeded_and_outlives_kills() -> Result<()> {
    const ALL: u64 = 1_500_000;
    let site = Settings::default()
        .with("policy.rate_up", "2Mbit")
        .with("policy.allowance.bytes", format!("{ALL}B"))
        .with("policy.allowance.period", "day")
        .with("policy.allowance.at_100", "stop");
    let mut stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let topic = stage.topic("allowance");
    write(&stage, &topic, 20_000)?;
    let used = |stage: &Stage| policy(stage).ok()?["allowances"][0]["used"].as_u64();
    wait::until_true("a part is used", LIMIT, || used(&stage) > Some(300_000))?;
    let before = used(&stage).context("the allowance is told")?;
    stage.site.kill();
    stage.site.start()?;
    let after = used(&stage).context("the allowance is told")?;
    ensure!(
        after >= before,
        "{after} used after a kill, {before} before"
    );
    ensure!(
        after <= before + 100_000,
        "{after} used after a kill, {before} before"
    );
    let is_stopped = || {
        let policy = policy(&stage).unwrap_or_default();
        policy["allowances"][0]["action"] == "stop"
            && policy["paths"][0]["classes"] == Value::Array(vec![])
    };
    wait::until_true("the policy stops the site", LIMIT, is_stopped)?;
    wait::let_run(Duration::from_secs(5));
    let (up, down) = stage.link.bytes();
    wait::let_run(Duration::from_secs(5));
    seed::say(&format!(
        "{up} + {down} of {ALL} bytes; {before} used before a kill, {after} after"
    ));
    ensure!(up + down <= ALL, "{} bytes of {ALL}", up + down);
    ensure!(
        stage.link.bytes() == (up, down),
        "something left after the stop"
    );
    let uplink = stage.site.admin().status()?["uplink"]["last_error"].clone();
    ensure!(
        uplink.to_string().contains("policy"),
        "the status says {uplink}"
    );
    // records are taken all the same
    write(&stage, &topic, 100)
}

#[test]
#[ignore = "system test: make test-links"]
fn what_is_counted_is_what_the_link_carries() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    // faster than the relay reads, the kernel drops what the site sent and the link never saw
    stage.link.set(|faults| {
        faults.rate = Some(1_000_000);
        faults.queue = Duration::from_millis(200);
    });
    let topic = stage.topic("counts");
    write(&stage, &topic, 20_000)?;
    stage.wait_drained(&topic, LIMIT)?;
    wait::let_run(Duration::from_secs(3));
    let (up, down) = stage.link.bytes();
    let path = policy(&stage)?["paths"][0].clone();
    let near = |counted: &Value, carried: u64| {
        let counted = counted.as_u64().unwrap_or_default();
        counted.abs_diff(carried) * 100 <= carried * 2
    };
    seed::say(&format!(
        "{up} up and {down} down on the link, counted {path}"
    ));
    ensure!(near(&path["sent_bytes"], up), "{path}, {up} on the link");
    ensure!(
        near(&path["received_bytes"], down),
        "{path}, {down} on the link"
    );
    Ok(())
}

#[test]
#[ignore = "system test: make test-links"]
fn a_policy_follows_its_file_and_a_bad_one_changes_nothing() -> Result<()> {
    let site = Settings::default().with("policy.rate_up", "64kbit");
    let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let file = stage.site.settings_file();
    let text = fs::read_to_string(&file)?;
    let rate = |bits: u64| {
        let found = policy(&stage).unwrap_or_default();
        found["paths"][0]["rate_up_bits"] == bits
    };
    wait::until_true("the first rate holds", LIMIT, || rate(64_000))?;
    let sessions = stage
        .site
        .admin()
        .metric("kedge_edge_uplink_sessions_total", "")?;
    fs::write(&file, text.replace("64kbit", "fast"))?;
    wait::until_true("the bad file is told", LIMIT, || {
        let found = policy(&stage).unwrap_or_default();
        found["problems"][0].to_string().contains("policy.rate_up")
    })?;
    ensure!(rate(64_000), "the old policy does not hold");
    fs::write(&file, text.replace("64kbit", "8Mbit"))?;
    wait::until_true("the new rate holds", Duration::from_secs(10), || {
        rate(8_000_000)
    })?;
    ensure!(
        policy(&stage)?["problems"] == Value::Array(vec![]),
        "the problem stays"
    );
    let topic = stage.topic("reload");
    write(&stage, &topic, 5_000)?;
    stage.wait_drained(&topic, Duration::from_secs(30))?;
    let after = stage
        .site
        .admin()
        .metric("kedge_edge_uplink_sessions_total", "")?;
    ensure!(
        after <= sessions.max(1.0),
        "{after} sessions after {sessions}"
    );
    Ok(())
}

/// A site's day in India: half past five hours from UTC, and no daylight saving.
struct Day {
    clock: Clock,
    /// From true time to the site's at the beginning.
    ahead: i64,
    began: Instant,
}

impl Day {
    const ZONE: &str = "Asia/Kolkata";
    const FROM_UTC: i64 = 5 * 3_600 + 1_800;

    /// Begins the day at a time of the next 24 hours, so that certificates hold.
    fn begin(clock: Clock, hour: i64, minute: i64) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let local = i64::try_from(now)? + Self::FROM_UTC;
        let ahead = (hour * 3_600 + minute * 60 - local).rem_euclid(86_400);
        let day = Self {
            clock,
            ahead,
            began: Instant::now(),
        };
        day.clock.jump(ahead)?;
        Ok(day)
    }

    /// Turns the clock on: so much later than the beginning, whatever has passed since.
    fn turn_to(&self, later: i64) -> Result<()> {
        let passed = i64::try_from(self.began.elapsed().as_secs())?;
        self.clock.jump(self.ahead + later - passed)
    }
}

/// Windows open and close on the site's own clock, in its zone, under records that flow.
#[test]
#[ignore = "system test: make test-links"]
fn the_rate_on_the_link_follows_the_windows() -> Result<()> {
    const DAY_BITS: u64 = 64_000;
    const NIGHT_BITS: u64 = 1_000_000;
    let window = toml! {
        from = "08:00"
        to = "18:00"
        rate_up = "64kbit"
    };
    let site = Settings::default()
        .with("policy.time_zone", Day::ZONE)
        .with("policy.rate_up", "1Mbit")
        .with("policy.window", vec![toml::Value::Table(window)]);
    let mut stage = Stage::prepare(Broker::shared().bootstrap(), &Settings::default(), &site)?;
    let day = Day::begin(Clock::of(&mut stage.site)?, 7, 0)?;
    stage.hub.start()?;
    stage.site.start()?;
    let topic = stage.topic("window");
    write(&stage, &topic, 40_000)?;
    let in_force = |bits: u64| {
        wait::until_true("the window's rate is in force", LIMIT, || {
            policy(&stage).is_ok_and(|found| found["paths"][0]["rate_up_bits"] == bits)
        })
    };
    let measure = |what: &str, bits: u64| {
        let time = Duration::from_secs(20);
        let (most, all) = watch_link(&stage, time);
        let allowed = bits / 8 * 10;
        let (over, used) = (most * 1_000 / allowed, all * 1_000 / (allowed * 2));
        seed::say(&format!(
            "{what}: at most {over} per mille of the rate in ten seconds, {used} in the mean"
        ));
        ensure!(over <= 1_020, "{what}: {most} of {allowed} bytes in 10 s");
        ensure!(used >= 850, "{what}: {all} bytes in {time:?}");
        Ok(())
    };
    in_force(NIGHT_BITS)?;
    let sessions = || {
        let admin = stage.site.admin();
        admin.metric("kedge_edge_uplink_sessions_total", "")
    };
    wait::until_true("the site has a session", LIMIT, || {
        sessions().is_ok_and(|count| count == 1.0)
    })?;
    measure("before the window", NIGHT_BITS)?;
    // the window opens by itself, three seconds later
    day.turn_to(3_600 - 3)?;
    in_force(DAY_BITS)?;
    measure("in the window", DAY_BITS)?;
    day.turn_to(11 * 3_600 - 3)?;
    in_force(NIGHT_BITS)?;
    measure("after the window", NIGHT_BITS)?;
    ensure!(sessions()? == 1.0, "a window cost a session");
    Ok(())
}

#[test]
#[ignore = "system test: make test-links"]
fn a_plan_comes_true() -> Result<()> {
    let site = Settings::default().with("policy.rate_up", "256kbit");
    let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site)?;
    let topic = stage.topic("plan");
    // what records cost is measured first
    write(&stage, &topic, 2_000)?;
    stage.wait_drained(&topic, LIMIT)?;
    stage.link.cut();
    write(&stage, &topic, 10_000)?;
    stage.link.heal();
    let start = Instant::now();
    let mut command = Command::new(paths::node("edge-node")?);
    command
        .args([
            "plan", "--output", "json", "--watch", "0s", "--rate", "256kbit", "--config",
        ])
        .arg(stage.site.settings_file());
    let text = process::run("edge-node plan", command, LIMIT)?;
    let plan: Value = serde_json::from_str(&text).context("the plan is JSON")?;
    let before = stage.link.bytes();
    let ledger = stage.wait_drained(&topic, LIMIT)?;
    let took = u64::try_from(start.elapsed().as_millis())?;
    let (up, down) = stage.link.bytes();
    let cost = up + down - before.0 - before.1;
    let told = plan["topics"].as_array().context("topics")?.iter();
    let mut told = told.filter(|it| it["topic"] == topic.as_str());
    let told = told.next().context("the topic is in the plan")?;
    let (takes, bytes) = (
        told["takes_ms"].as_u64().context("it will be done")?,
        told["wire_bytes"].as_u64().context("it costs")?,
    );
    seed::say(&format!(
        "{} records: planned {takes} ms and {bytes} bytes, took {took} ms and {cost} bytes",
        ledger.accepted
    ));
    ensure!(
        takes.abs_diff(took) <= took / 4 + 3_000,
        "{takes} ms planned, {took} taken"
    );
    ensure!(
        bytes.abs_diff(cost) <= cost / 4 + 20_000,
        "{bytes} bytes planned, {cost} used"
    );
    Ok(())
}
