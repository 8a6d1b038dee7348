//! Many sites on one hub: they come back at once, they share a slow cluster, they keep to limits.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use system_tests::broker::Broker;
use system_tests::central::Reader;
use system_tests::flock::Flock;
use system_tests::hub::{Certs, Hub};
use system_tests::settings::Settings;
use system_tests::{seed, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// What stands around a flock.
struct Field {
    run: String,
    certs: Certs,
    hub: Hub,
}

impl Field {
    fn start(broker: &Broker, over: &Settings) -> Result<Self> {
        let run = seed::fresh().to_string();
        let certs = Certs::make()?;
        // hundreds of sites share this process and a busy machine with the hub
        let settings = Settings::default()
            .with("listen.keep_alive", "4s")
            .with("listen.idle_timeout", "15s")
            .over(over);
        let mut hub = Hub::prepare(&run, broker.bootstrap(), &certs.hub(), &settings)?;
        hub.start()?;
        Ok(Self { run, certs, hub })
    }
}

/// The hub is killed while all its sites send, and all of them come back with a backlog.
#[test]
#[ignore = "system test: make test-links"]
fn two_hundred_sites_come_back_to_a_killed_hub() -> Result<()> {
    const SITES: usize = 200;
    let broker = Broker::shared();
    // slow enough that most of them cannot be let in at once
    let settings = Settings::default()
        .with("listen.admit_rate", 25)
        .with("listen.memory", "32MiB");
    let mut field = Field::start(broker, &settings)?;
    let topic = format!("crowd-{}", field.run);
    broker.create_topic(&topic, 3, &[])?;
    let hub = field.hub.address();
    let flock = Flock::start(hub, &field.certs, "site", SITES, &topic, 1_000)?;
    flock.append(50);
    flock.wait_acked(LIMIT)?;
    let calm = field.hub.process()?.resident_bytes();

    let (before, told_before) = (flock.opened(), flock.told_later());
    flock.append(200);
    wait::until_true("the sites are sending", LIMIT, || {
        flock.members().iter().any(|member| member.acked() > 50)
    })?;
    field.hub.kill();
    flock.append(50);
    // longer than a site takes to notice
    wait::let_run(Duration::from_secs(5));
    let killed = Instant::now();
    field.hub.start()?;
    let ready = killed.elapsed();
    flock.wait_back(&before, LIMIT)?;
    let back = killed.elapsed();
    flock.wait_acked(LIMIT)?;
    let done = killed.elapsed();
    let peak = field.hub.process()?.peak_bytes();
    let told = flock.told_later() - told_before;
    seed::say(&format!(
        "{SITES} sites: hub ready after {ready:?}, all back {back:?}, all committed {done:?}; \
         {told} told to come back later; hub's memory {} MB before, {} MB at most after",
        calm >> 20,
        peak >> 20
    ));
    let reader = Reader::start(broker.bootstrap(), &[&topic])?;
    reader.wait_for(usize::try_from(flock.written())?, LIMIT)?;
    reader.wait_quiet(Duration::from_millis(1_500));
    flock.check(&reader.seen())?;
    ensure!(
        flock.open() == SITES as u64,
        "{} sites are connected",
        flock.open()
    );
    // 12 s to notice, 8 s at 25 a second, a hint's jitter, a lane's acquisition; more on a busy machine
    ensure!(back - ready < Duration::from_secs(90), "{back:?}");
    ensure!(peak < 300 << 20, "{peak} bytes");
    Ok(())
}

/// One site sends as fast as it can to a cluster that takes little; the others write a record now and then.
#[test]
#[ignore = "system test: make test-links"]
fn a_flood_on_a_slow_cluster_does_not_hold_up_quiet_sites() -> Result<()> {
    const QUIET: usize = 20;
    let broker = Broker::start()?;
    if !broker.is_local() {
        seed::say("slow cluster: KAFKA_BOOTSTRAP's cluster is not ours to slow down");
        return Ok(());
    }
    let mut field = Field::start(&broker, &Settings::default().with("commit.lanes", 1))?;
    let topic = format!("flood-{}", field.run);
    broker.create_topic(&topic, 3, &[])?;
    let hub = field.hub.address();
    let quiet = Flock::start(hub, &field.certs, "quiet", QUIET, &topic, 100)?;
    let flood = Flock::start(hub, &field.certs, "flood", 1, &topic, 1_000)?;
    quiet.append(1);
    quiet.wait_acked(LIMIT)?;
    broker.throttle_producers(1_000_000)?;
    // more than the cluster takes in the whole test
    flood.append(100_000);
    wait::until_true("the flood comes in", LIMIT, || {
        flood.members()[0].acked() > 1_000
    })?;
    for _ in 0..100 {
        quiet.append(1);
        wait::let_run(Duration::from_millis(200));
    }
    quiet.wait_acked(LIMIT)?;
    let members = quiet.members().iter();
    let mut latencies: Vec<_> = members.flat_map(|member| member.latencies()).collect();
    latencies.sort();
    let median = latencies[latencies.len() / 2];
    let late = latencies[latencies.len() * 99 / 100];
    let flooded = flood.members()[0].acked();
    seed::say(&format!(
        "flood: {flooded} of its records committed meanwhile; quiet sites: median {median:?}, p99 {late:?}, \
         worst {:?}",
        latencies.last()
    ));
    ensure!(flooded > 10_000, "the flood stands still: {flooded}");
    ensure!(late < Duration::from_secs(5), "p99 {late:?}");
    field.hub.process()?.check_alive()
}

/// A site's own limit and the total hold, and the total is shared evenly.
#[test]
#[ignore = "system test: make test-links"]
fn sites_keep_to_the_limits_of_the_hub() -> Result<()> {
    const MEASURED: Duration = Duration::from_secs(10);
    let broker = Broker::shared();
    let mut rule = toml::Table::new();
    rule.insert("match".to_owned(), "slow-*".into());
    rule.insert("ingress".to_owned(), "50kB".into());
    let mut everyone = toml::Table::new();
    everyone.insert("match".to_owned(), "*".into());
    let settings = Settings::default()
        .with("listen.ingress", "1MB")
        .with_rule("sites", rule)
        .with_rule("sites", everyone);
    let mut field = Field::start(broker, &settings)?;
    let topic = format!("limits-{}", field.run);
    broker.create_topic(&topic, 3, &[])?;
    let hub = field.hub.address();
    let slow = Flock::start(hub, &field.certs, "slow", 1, &topic, 1_000)?;
    let fast = Flock::start(hub, &field.certs, "fast", 3, &topic, 1_000)?;
    slow.append(100_000);
    fast.append(100_000);
    let received = |field: &Field| -> Result<Vec<u64>> {
        let status = field.hub.admin().status()?;
        let names = ["slow-000", "fast-000", "fast-001", "fast-002"];
        let bytes = |name: &str| status["sites"][name]["received_bytes"].as_u64();
        Ok(names.iter().map(|name| bytes(name).unwrap_or(0)).collect())
    };
    wait::until_true("everybody sends", LIMIT, || {
        received(&field).is_ok_and(|bytes| bytes.iter().all(|bytes| *bytes > 500_000))
    })?;
    let (before, began) = (received(&field)?, Instant::now());
    wait::let_run(MEASURED);
    let (after, took) = (received(&field)?, began.elapsed().as_secs_f64());
    let rates = before.iter().zip(&after);
    let rates: Vec<f64> = rates.map(|(b, a)| (a - b) as f64 / took / 1e3).collect();
    seed::say(&format!(
        "limits: {rates:.0?} kB/s of 50 and of (1000 - 50) / 3"
    ));
    ensure!((42.0..=56.0).contains(&rates[0]), "{rates:?}");
    for rate in &rates[1..] {
        ensure!((270.0..=365.0).contains(rate), "{rates:?}");
    }
    let held = field.hub.admin().metric("kedge_hub_sites_limited", "")?;
    ensure!(held > 0.0, "no site is held by a limit");
    field.hub.process()?.check_alive()
}
