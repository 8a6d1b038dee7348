//! `make demo`: the main job on one machine, with an outage and a kill in the middle.
//!
//! A hub with librdkafka's in-process mock cluster (or the cluster of `KAFKA_BOOTSTRAP`), one site, writers
//! over Kafka and HTTP, and a relay between site and hub that can be cut. It ends with a table and a verdict:
//! FAIL when a record is missing or there twice.

use std::env;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use system_tests::central::Reader;
use system_tests::oracle::{self, Verdict};
use system_tests::record::Shape;
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::wait;
use system_tests::writer::{Acked, Ledger, Pace, Writer};
use system_tests::{broker, hub};

const ONLINE: Duration = Duration::from_secs(8);
const OFFLINE: Duration = Duration::from_secs(15);
const DEAD: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(120);
/// How long a cluster of one's own may take to answer at all.
const KAFKA_LIMIT: Duration = Duration::from_secs(8);
const KAFKA_RATE: u32 = 2_000;
const HTTP_RATE: u32 = 100;

/// What the run came to.
struct Outcome {
    verdict: Verdict,
    offline: Duration,
}

fn main() -> ExitCode {
    match run() {
        Ok(Outcome { verdict, offline }) if verdict.is_clean() => {
            say(&format!(
                "\nPASS: {} records, each exactly once, through a {:.0} s outage and a SIGKILL",
                number(verdict.acked),
                offline.as_secs_f64()
            ));
            ExitCode::SUCCESS
        }
        Ok(Outcome { verdict, .. }) => {
            say(&format!("\nFAIL: {verdict}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("\nFAIL: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Outcome> {
    let real = env::var("KAFKA_BOOTSTRAP").ok();
    let mut stage = start(real.as_deref())?;
    let topics = [stage.topic("readings"), stage.topic("webhooks")];
    let outcome = play(&mut stage, &topics);
    if let Some(bootstrap) = real {
        tell_what_stays(&bootstrap, &stage.run, &topics);
    }
    outcome
}

fn play(stage: &mut Stage, topics: &[String; 2]) -> Result<Outcome> {
    let reader = stage.reader(&topics.each_ref().map(String::as_str))?;
    let pace = Pace {
        rate: KAFKA_RATE,
        shape: Shape::Telemetry,
        size: 250,
        ..Pace::default()
    };
    let kafka = Writer::kafka(
        "pumps",
        &stage.site.bootstrap(),
        &topics[0],
        pace.clone(),
        &[],
    )?;
    let pace = Pace {
        rate: HTTP_RATE,
        ..pace
    };
    let http = Writer::http("hooks", &stage.site.http(), &topics[1], pace);
    let screen = Screen {
        ledgers: [kafka.ledger(), http.ledger()],
        reader: &reader,
    };

    screen.run("online", ONLINE);
    let cut = Instant::now();
    stage.link.cut();
    screen.run("link cut", OFFLINE / 2);
    stage.site.kill();
    screen.run("link cut, edge killed (SIGKILL)", DEAD);
    stage.site.start().context("restart the edge")?;
    screen.run("link cut, edge restarted", OFFLINE / 2 - DEAD);
    let waiting = screen.acked();
    stage.link.heal();
    let (offline, healed) = (cut.elapsed(), Instant::now());
    screen.until("catching up", LIMIT, || missing(&waiting, &reader) == 0)?;
    let catching_up = healed.elapsed();
    screen.run("online", ONLINE);
    let (kafka, http) = (kafka.finish(LIMIT)?, http.finish(LIMIT)?);
    let acked = screen.acked();
    let _judged_below = screen.until("last records", LIMIT, || missing(&acked, &reader) == 0);
    reader.wait_quiet(Duration::from_secs(1));
    screen.end();
    let (up, down) = stage.link.bytes();
    let bytes_in = kafka.payload_bytes() + http.payload_bytes();
    let verdict = oracle::judge(&acked, &reader.seen(), ToOwned::to_owned);
    table(&[
        ("records accepted at the site", number(verdict.acked)),
        ("records committed in Kafka", number(verdict.found)),
        ("missing", number(verdict.missing.count)),
        ("duplicated", number(verdict.duplicated.count)),
        ("out of order", number(verdict.disordered.count)),
        ("bytes in (payloads)", bytes(bytes_in)),
        ("bytes on the wire, up", bytes(up)),
        ("bytes on the wire, down", bytes(down)),
        ("ratio in : wire, up", ratio(bytes_in, up)),
        ("time offline", seconds(offline)),
        ("time to catch up", seconds(catching_up)),
    ]);
    ensure!(verdict.acked > 0, "no record was accepted at the site");
    Ok(Outcome { verdict, offline })
}

fn start(real: Option<&str>) -> Result<Stage> {
    if let Some(bootstrap) = real {
        ensure!(
            broker::answers(bootstrap, KAFKA_LIMIT),
            "No Kafka answers at {bootstrap} (KAFKA_BOOTSTRAP)"
        );
    }
    let bootstrap = real.unwrap_or("127.0.0.1:9");
    say("==> demo: certificates, hub and site");
    let mut stage = Stage::prepare(bootstrap, &Settings::default(), &Settings::default())?;
    if real.is_none() {
        stage.hub = stage.hub.with_args(&["--embedded-cluster"]);
    }
    stage.hub.start()?;
    if real.is_none() {
        stage.set_bootstrap(stage.hub.embedded_bootstrap()?);
    }
    stage.site.start()?;
    say(&format!(
        "    central cluster {} ({}), hub {}, site: Kafka {}, {}",
        stage.bootstrap(),
        if real.is_some() { "yours" } else { "embedded" },
        stage.hub.address(),
        stage.site.bootstrap(),
        stage.site.http(),
    ));
    Ok(stage)
}

fn missing(acked: &[Acked], reader: &Reader) -> usize {
    oracle::judge(acked, &reader.seen(), ToOwned::to_owned)
        .missing
        .count
}

/// One line that follows what happens.
struct Screen<'a> {
    ledgers: [Arc<Ledger>; 2],
    reader: &'a Reader,
}

impl Screen<'_> {
    /// Shows progress for a while.
    fn run(&self, phase: &str, length: Duration) {
        let started = Instant::now();
        while started.elapsed() < length {
            wait::let_run(self.step().min(length - started.elapsed().min(length)));
            let share = started.elapsed().as_secs_f64() / length.as_secs_f64();
            self.show(phase, share.min(1.0));
        }
    }

    /// Shows progress until something holds.
    fn until(&self, phase: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
        let mut shown = Instant::now();
        wait::until_true(phase, limit, || {
            if shown.elapsed() > self.step() {
                shown = Instant::now();
                self.show(phase, 0.0);
            }
            holds()
        })
    }

    fn acked(&self) -> Vec<Acked> {
        self.ledgers
            .iter()
            .flat_map(|ledger| ledger.acked().clone())
            .collect()
    }

    #[expect(clippy::print_stdout, reason = "a program for people")]
    fn show(&self, phase: &str, share: f64) {
        let accepted: usize = self.ledgers.iter().map(|ledger| ledger.acked_count()).sum();
        let committed = self.reader.count();
        let width = 20;
        let filled = (1..=width)
            .filter(|at| f64::from(*at) <= share * f64::from(width))
            .count();
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(20 - filled));
        let waiting = accepted.saturating_sub(committed);
        let line = format!(
            "    [{bar}] {phase:<32} accepted {:>8}  committed {:>8}  waiting {:>7}",
            number(accepted),
            number(committed),
            number(waiting)
        );
        if stdout().is_terminal() {
            print!("\r\x1b[K{line}");
            let _not_shown = stdout().flush();
        } else {
            println!("{line}");
        }
    }

    fn end(&self) {
        if stdout().is_terminal() {
            say("");
        }
    }

    fn step(&self) -> Duration {
        Duration::from_millis(if stdout().is_terminal() { 200 } else { 2_000 })
    }
}

/// A cluster that is not ours keeps the records to look at, until somebody deletes them.
fn tell_what_stays(bootstrap: &str, run: &str, topics: &[String; 2]) {
    let left = [
        topics[0].clone(),
        topics[1].clone(),
        hub::checkpoint_topic(run),
        hub::dead_letter_topic(run),
    ];
    say("\nThese topics stay in your Kafka, as far as they were made:");
    for topic in &left {
        say(&format!("    {topic}"));
    }
    say("To delete them:");
    say(&format!(
        "    kafka-topics.sh --bootstrap-server {bootstrap} --delete --if-exists --topic '{}'",
        left.join("|").replace('.', "\\.")
    ));
}

fn table(rows: &[(&str, String)]) {
    let line = format!("+{}+{}+", "-".repeat(32), "-".repeat(16));
    say(&line);
    for (name, value) in rows {
        say(&format!("| {name:<30} | {value:>14} |"));
    }
    say(&line);
}

/// 1234567 as `1,234,567`.
fn number(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(value: u64) -> String {
    format!(
        "{} kB",
        number(usize::try_from(value / 1_000).unwrap_or(usize::MAX))
    )
}

fn ratio(of: u64, to: u64) -> String {
    let tenths = of * 10 / to.max(1);
    format!("{}.{} : 1", tenths / 10, tenths % 10)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[expect(clippy::print_stdout, reason = "a program for people")]
fn say(line: &str) {
    println!("{line}");
}
