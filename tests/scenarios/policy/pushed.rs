//! What the hub pushes: it takes effect, outlives the site's restart, is replaced and withdrawn, and never closes the
//! link for good.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value as Json, json};
use system_tests::broker::Broker;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Acked, Ledger, Pace, Writer};
use system_tests::{paths, process, seed, wait};
use toml::{Table, Value};

use super::{LIMIT, policy, watch_link};

/// More than the slow policy lets through in the whole scenario.
const BACKLOG: u64 = 5_000;
const ALARMS: u64 = 50;

/// By a window of the whole day, so that there is a reason to tell.
const CRITICAL: &str = "[policy]\nrate_up = \"1Mbit\"\n\
     [[policy.window]]\nrate_up = \"256kbit\"\nclasses = [\"critical\"]\n";
const CRITICAL_BITS: u64 = 256_000;
const SLOW: &str = "[policy]\nrate_up = \"64kbit\"\n";
const SLOW_BITS: u64 = 64_000;

/// They let nothing leave at any time: the site would not hear that they are withdrawn.
const CLOSING: [(&str, &str); 2] = [
    // the file allows critical and bulk
    (
        "a window of the whole day",
        "[policy]\n[[policy.window]]\nclasses = [\"normal\"]\n",
    ),
    (
        "no class that the file allows",
        "[policy]\nclasses = [\"normal\"]\n",
    ),
];

fn rule(policy: &str) -> Table {
    let mut rule = Table::new();
    rule.insert("match".to_owned(), Value::from("site-*"));
    rule.insert("policy".to_owned(), Value::from(policy));
    rule
}

/// The hub's rule for the site has this policy from here on; `None`: there is no rule.
fn set_rule(stage: &Stage, policy: Option<&str>) -> Result<()> {
    let file = stage.hub.settings_file();
    let mut settings: Table = fs::read_to_string(&file)?.parse()?;
    settings.remove("sites");
    if let Some(policy) = policy {
        let mut sites = Table::new();
        let rules = vec![Value::Table(rule(policy))];
        sites.insert("rule".to_owned(), Value::from(rules));
        settings.insert("sites".to_owned(), Value::Table(sites));
    }
    // a hub that reads half a file tells of a problem
    let new = file.with_extension("new");
    fs::write(&new, settings.to_string())?;
    fs::rename(&new, &file).context("replace the hub's configuration")
}

fn site_settings() -> Settings {
    let class = |pattern: &str, class: &str| {
        let mut rule = Table::new();
        rule.insert("match".to_owned(), Value::from(pattern));
        rule.insert("class".to_owned(), Value::from(class));
        rule
    };
    Settings::default()
        .with("policy.classes", vec!["critical", "bulk"])
        .with_rule("topics", class("alarms*", "critical"))
        .with_rule("topics", class("backlog*", "bulk"))
}

/// Whose policy holds, and at which rate the site may send.
fn holds(stage: &Stage, source: &str, bits: &Json) -> bool {
    policy(stage)
        .is_ok_and(|found| found["source"] == source && found["paths"][0]["rate_up_bits"] == *bits)
}

fn in_force(stage: &Stage, source: &str, bits: &Json) -> Result<()> {
    let what = format!("{bits} bits a second from {source}");
    wait::until_true(&what, LIMIT, || holds(stage, source, bits))
        .with_context(|| format!("it is {:?}", policy(stage)))
}

/// The first problem with policies, of which the site tells.
fn problem(stage: &Stage) -> Option<String> {
    let found = policy(stage).ok()?;
    found["problems"][0].as_str().map(ToOwned::to_owned)
}

fn write(stage: &Stage, name: &str, topic: &str, records: u64) -> Result<Arc<Ledger>> {
    let pace = Pace {
        rate: 0,
        total: Some(records),
        size: 1_000,
        ..Pace::default()
    };
    Writer::kafka(name, &stage.site.bootstrap(), topic, pace, &[])?.complete(LIMIT)
}

/// What `edge-node status` says; with a problem of policies it exits with 1.
fn told(stage: &Stage, status: i32) -> Result<String> {
    let mut command = Command::new(paths::node("edge-node")?);
    command
        .args(["status", "--config"])
        .arg(stage.site.settings_file());
    process::run_to(status, "edge-node status", command, LIMIT)
}

/// From the rule in the hub's file to the link, and back again.
#[test]
#[ignore = "system test: make test-links"]
fn a_pushed_policy_holds_over_restarts_until_it_is_replaced_or_withdrawn() -> Result<()> {
    const MEASURED: Duration = Duration::from_secs(20);
    let hub = Settings::default().with_rule("sites", rule(CRITICAL));
    let mut stage = Stage::start_with(Broker::shared(), &hub, &site_settings())?;
    let (alarms, backlog) = (stage.topic("alarms"), stage.topic("backlog"));
    let reader = stage.reader(&[&alarms])?;

    in_force(&stage, "file and hub", &json!(CRITICAL_BITS))?;
    let path = policy(&stage)?["paths"][0].clone();
    ensure!(path["classes"] == json!(["critical"]), "{path}");
    let reason = path["reason"].as_str().unwrap_or_default().to_owned();
    ensure!(reason.contains("hub: window 00:00-24:00"), "{path}");
    let text = told(&stage, 0)?;
    ensure!(
        text.contains(&reason) && text.contains("(from file and hub)"),
        "edge-node status says {text}"
    );
    let bulk = write(&stage, "bulk", &backlog, BACKLOG)?;
    let first = write(&stage, "first", &alarms, ALARMS)?;
    reader.wait_for(first.acked_count(), LIMIT)?;
    let ledger = stage.site.ledger(&backlog)?;
    ensure!(
        (ledger.committed, ledger.queued) == (0, BACKLOG),
        "bulk was sent: {ledger:?}"
    );

    // it is the site's own until it hears of another one
    stage.hub.kill();
    stage.site.kill();
    stage.site.start()?;
    ensure!(
        holds(&stage, "file and hub", &json!(CRITICAL_BITS)),
        "after a restart without a hub: {:?}",
        policy(&stage)
    );

    set_rule(&stage, Some(SLOW))?;
    stage.hub.start()?;
    in_force(&stage, "file and hub", &json!(SLOW_BITS))?;
    wait::until_true("bulk leaves", LIMIT, || {
        stage.site.ledger(&backlog).is_ok_and(|it| it.committed > 0)
    })?;
    let (most, all) = watch_link(&stage, MEASURED);
    let allowed = SLOW_BITS / 8 * 10;
    let (over, used) = (most * 1_000 / allowed, all * 1_000 / (allowed * 2));
    ensure!(over <= 1_020, "{most} of {allowed} bytes in ten seconds");
    ensure!(used >= 850, "{all} bytes in {MEASURED:?}");

    set_rule(&stage, None)?;
    in_force(&stage, "file", &Json::Null)?;
    stage.wait_drained(&backlog, LIMIT)?;
    let acked: Vec<Acked> = [&bulk, &first]
        .iter()
        .flat_map(|ledger| ledger.acked().clone())
        .collect();
    let verdict = stage.judge(&acked, LIMIT)?;
    seed::say(&format!(
        "pushed: at most {over} per mille of its rate in ten seconds, {used} in the mean; {verdict}"
    ));
    verdict.check()
}

/// A hub that runs is told by its file: what would cut the site off is refused there, said, and mended from here.
#[test]
#[ignore = "system test: make test-links"]
fn a_pushed_policy_that_closes_the_link_for_good_is_refused() -> Result<()> {
    let stage = Stage::start_with(Broker::shared(), &Settings::default(), &site_settings())?;
    let alarms = stage.topic("alarms");
    let reader = stage.reader(&[&alarms])?;
    in_force(&stage, "file", &Json::Null)?;
    for (number, (what, closing)) in CLOSING.into_iter().enumerate() {
        set_rule(&stage, Some(SLOW))?;
        in_force(&stage, "file and hub", &json!(SLOW_BITS))?;
        let cleared = || problem(&stage).is_none();
        wait::until_true("no problem with policies is left", LIMIT, cleared)?;

        set_rule(&stage, Some(closing))?;
        let said = wait::until("the site says what it refused", LIMIT, || problem(&stage))
            .with_context(|| format!("{what}: the policy is {:?}", policy(&stage)))?;
        ensure!(
            said.contains("the hub's policy cannot be used"),
            "{what}: the site says {said}"
        );
        seed::say(&format!("{what}: {said}"));
        let text = told(&stage, 1)?;
        ensure!(text.contains(&said), "{what}: edge-node status says {text}");
        // the one before holds, and records go on
        ensure!(
            holds(&stage, "file and hub", &json!(SLOW_BITS)),
            "{what}: {:?}",
            policy(&stage)
        );
        let seen = reader.count();
        write(&stage, &format!("w{number}"), &alarms, ALARMS)?;
        reader.wait_for(seen + usize::try_from(ALARMS)?, LIMIT)?;
    }
    set_rule(&stage, None)?;
    in_force(&stage, "file", &Json::Null)?;
    ensure!(
        problem(&stage).is_none(),
        "withdrawn, and still a problem: {:?}",
        policy(&stage)
    );
    Ok(())
}
