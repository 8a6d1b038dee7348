//! The HTTP listener as scripts and tools use it: curl, and schemathesis with the site's own document.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::clients::Client;
use system_tests::hub::Certs;
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::{paths, process, seed, wait};
use toml::{Table, toml};

const LIMIT: Duration = Duration::from_secs(60);
/// A few hundred requests for each operation, on a machine that does something else too.
const SCHEMATHESIS_LIMIT: Duration = Duration::from_secs(600);

/// The same requests each time, unless `KEDGE_SEED` says otherwise.
const SCHEMATHESIS_SEED: u64 = 1;

/// A token and its SHA-256.
const TOKEN: &str = "test-token";
const TOKEN_HASH: &str = "sha256:4c5dc9b7708905f77f5e5d16316b5dfb425e68cb326dcd55a860e90a7707031e";

/// A site that has no hub.
fn alone(over: &Settings) -> Result<(Certs, Site)> {
    let certs = Certs::make()?;
    let site = Site::alone(&certs, over)?;
    Ok((certs, site))
}

fn user(rules: Table) -> toml::Value {
    vec![toml::Value::Table(rules)].into()
}

/// The document says what the site does: schemathesis makes requests of it, valid and not, and holds every answer
/// against it. Not the tail, which has no end.
#[test]
#[ignore = "system test: make test"]
fn the_openapi_document_is_true() -> Result<()> {
    let everything = toml! {
        name = "tester"
        tokens = ["sha256:4c5dc9b7708905f77f5e5d16316b5dfb425e68cb326dcd55a860e90a7707031e"]
        produce = ["*"]
        consume = ["*"]
    };
    ensure!(everything["tokens"][0].as_str() == Some(TOKEN_HASH));
    let over = Settings::default()
        .with("access.user", user(everything))
        .with("http.request_timeout", "1s")
        .with("topics.max_topics", 10_000);
    let (_certs, site) = alone(&over)?;
    for topic in ["one", "two"] {
        let lines = ["{\"t\": 20.5}", "text", "\u{1}"].map(str::to_owned);
        post(&site, topic, &lines)?;
    }
    let settings = paths::scratch("schemathesis")?;
    let file = settings.path().join("schemathesis.toml");
    std::fs::write(
        &file,
        // what is well-formed may still be too far on, or name a partition that the topic has not
        "[checks]\npositive_data_acceptance.expected-statuses = [\"2xx\", 404, 416, 422]\n",
    )?;
    let mut command = Command::new(paths::python()?.with_file_name("schemathesis"));
    command.arg("--config-file").arg(&file).arg("run");
    command.arg(format!("{}/openapi.json", site.http()));
    command.args(["--exclude-path-regex", "tail$", "--checks", "all"]);
    command.arg(format!("--header=Authorization: Bearer {TOKEN}"));
    command.args(["--max-examples", "25", "--no-color", "--no-shrink"]);
    command.args(["--continue-on-failure", "--warnings", "off"]);
    let seed = seed::asked().unwrap_or(SCHEMATHESIS_SEED);
    command.arg(format!("--seed={}", seed % 1_000_000));
    command.current_dir(settings.path());
    let said = process::run("schemathesis", command, SCHEMATHESIS_LIMIT)?;
    ensure!(said.contains("No issues found"), "{said}");
    Ok(())
}

fn post(site: &Site, topic: &str, values: &[String]) -> Result<()> {
    let records: Vec<Value> = values
        .iter()
        .map(|value| serde_json::json!({"value": value, "partition": 0}))
        .collect();
    let body = Value::from(records).to_string();
    let answer = curl(
        site,
        &format!("/v1/topics/{topic}/records"),
        &["-H", "content-type: application/json", "-d", &body],
    )?;
    ensure!(answer["records"] == values.len(), "{answer}");
    Ok(())
}

fn curl(site: &Site, path: &str, more: &[&str]) -> Result<Value> {
    let mut command = Command::new("curl");
    command.args(["-sS", "-g", "--fail-with-body"]);
    command.arg(format!("-HAuthorization: Bearer {TOKEN}"));
    command.args(more).arg(format!("{}{path}", site.http()));
    let text = process::run("curl", command, LIMIT)?;
    serde_json::from_str(&text).with_context(|| format!("read {text}"))
}

/// A tail that curl writes to a file.
struct Tail {
    child: Child,
    file: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Tail {
    fn start(site: &Site, topic: &str, last: &str) -> Result<Self> {
        let dir = paths::scratch("tail")?;
        let file = dir.path().join("events");
        let mut command = Command::new("curl");
        command.args(["-sSN", "-o"]).arg(&file);
        command.arg(format!("-HLast-Event-ID: {last}"));
        command.arg(format!("{}/v1/topics/{topic}/tail", site.http()));
        command.stderr(Stdio::null());
        Ok(Self {
            child: command.spawn()?,
            file,
            _dir: dir,
        })
    }

    fn events(&self) -> Vec<(String, Value)> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let events = text.split("\n\n").filter_map(|event| {
            let (id, data) = event.strip_prefix("id: ")?.split_once("\ndata: ")?;
            Some((id.to_owned(), serde_json::from_str(data).ok()?))
        });
        events.collect()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Kafka clients' records, compressed or not, are read over HTTP; a reader that comes back after the node was killed
/// misses nothing and gets nothing twice.
#[test]
#[ignore = "system test: make test"]
fn what_kafka_clients_write_is_read_over_http_across_a_kill() -> Result<()> {
    let one = Settings::default().with("topics.default.partitions", 1);
    let (_certs, mut site) = alone(&one)?;
    let lines =
        |from: usize| -> Vec<String> { (from..from + 500).map(|i| format!("{i}")).collect() };
    let mut last = "0:0".to_owned();
    let mut seen = Vec::new();
    for (round, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
        let tail = if round == 0 {
            None
        } else {
            Some(Tail::start(&site, "t", &last)?)
        };
        let written = lines(round * 500);
        Client::Kcat.produce(&site.bootstrap(), "t", &written, Some(codec), &[])?;
        let tail = match tail {
            Some(tail) => tail,
            None => Tail::start(&site, "t", &last)?,
        };
        wait::until_true("the tail tells all", LIMIT, || tail.events().len() >= 500)?;
        let events = tail.events();
        last.clone_from(&events[events.len() - 1].0);
        seen.extend(
            events
                .into_iter()
                .map(|(_, record)| record["value"].clone()),
        );
        site.kill();
        site.start()?;
    }
    let all: Vec<Value> = (0..2500).map(Value::from).collect();
    ensure!(seen == all, "{} values", seen.len());
    let mut offset = Value::from("earliest");
    let mut read = Vec::new();
    while read.len() < 2500 {
        let offset_text = offset.to_string();
        let path = format!(
            "/v1/topics/t/records?max=700&offset={}",
            offset_text.trim_matches('"')
        );
        let page = curl(&site, &path, &[])?;
        ensure!(page["gaps"] == Value::Array(Vec::new()), "{page}");
        let records = page["records"].as_array().context("records")?;
        ensure!(!records.is_empty(), "{page}");
        read.extend(records.iter().map(|record| record["value"].clone()));
        offset = page["next_offset"].clone();
    }
    ensure!(read == all && offset == 2500, "{} values", read.len());
    Ok(())
}
