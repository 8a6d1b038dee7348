//! Other people's clients, as their users run them: one subprocess each, at its defaults.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{broker, paths, process};

/// How long a client may take.
const LIMIT: Duration = Duration::from_secs(90);

/// A client that produces lines of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// kcat, on librdkafka 2.0.
    Kcat,
    /// confluent-kafka-python, on librdkafka 2.16.
    ConfluentPython,
    /// kafka-python, a client of its own.
    KafkaPython,
    /// The console producer of Apache Kafka, the Java client.
    Java,
}

/// All of them.
pub const ALL: [Client; 4] = [
    Client::Kcat,
    Client::ConfluentPython,
    Client::KafkaPython,
    Client::Java,
];

/// Every codec of the Kafka protocol.
pub const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

impl Client {
    /// A word for names and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kcat => "kcat",
            Self::ConfluentPython => "confluent-kafka-python",
            Self::KafkaPython => "kafka-python",
            Self::Java => "java-console-producer",
        }
    }

    /// Produces `lines`, one record each, with the codec (`None`: the client's default); ends when all are
    /// acknowledged.
    ///
    /// # Errors
    /// When the client reports a failure or takes too long.
    pub fn produce(
        self,
        bootstrap: &str,
        topic: &str,
        lines: &[String],
        codec: Option<&str>,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let mut input = tempfile::NamedTempFile::new().context("make an input file")?;
        input.write_all((lines.join("\n") + "\n").as_bytes())?;
        let path = input.path();
        let settings = settings.iter().map(|(key, value)| format!("{key}={value}"));
        let mut command = match self {
            Self::Kcat => {
                let mut kcat = Command::new("kcat");
                kcat.args(["-P", "-b", bootstrap, "-t", topic]);
                kcat.args(codec.iter().flat_map(|codec| ["-z", *codec]));
                kcat.args(settings.flat_map(|setting| ["-X".to_owned(), setting]));
                kcat.arg("-l").arg(path);
                kcat
            }
            Self::ConfluentPython | Self::KafkaPython => {
                let script = if self == Self::KafkaPython {
                    KAFKA_PYTHON
                } else {
                    CONFLUENT_PYTHON
                };
                let mut python = Command::new(paths::python()?);
                python.args(["-c", script, bootstrap, topic]).arg(path);
                python.arg(codec.unwrap_or("default")).args(settings);
                python
            }
            Self::Java => {
                let mut java = broker::java("256m")?;
                java.args([
                    "org.apache.kafka.tools.ConsoleProducer",
                    "--bootstrap-server",
                    bootstrap,
                ]);
                java.args(["--topic", topic]);
                java.args(
                    codec
                        .iter()
                        .flat_map(|codec| ["--compression-codec", *codec]),
                );
                java.args(settings.flat_map(|setting| ["--command-property".to_owned(), setting]));
                java.stdin(input.reopen()?);
                java
            }
        };
        if self != Self::Java {
            command.stdin(std::process::Stdio::null());
        }
        process::run(self.name(), command, LIMIT).map(drop)
    }
}

const CONFLUENT_PYTHON: &str = r#"
import sys
from confluent_kafka import Producer
bootstrap, topic, path, codec, *settings = sys.argv[1:]
config = {"bootstrap.servers": bootstrap}
if codec != "default":
    config["compression.type"] = codec
config.update(setting.split("=", 1) for setting in settings)
failed = []
producer = Producer(config)
for line in open(path, "rb").read().splitlines():
    producer.produce(topic, line, on_delivery=lambda error, _: error and failed.append(str(error)))
    producer.poll(0)
left = producer.flush(60)
sys.exit(f"{left} left, failed: {failed[:3]}" if left or failed else 0)
"#;

const KAFKA_PYTHON: &str = r#"
import sys
from kafka import KafkaProducer
bootstrap, topic, path, codec, *settings = sys.argv[1:]
config = {"bootstrap_servers": bootstrap}
if codec != "default":
    config["compression_type"] = None if codec == "none" else codec
for setting in settings:
    key, value = setting.split("=", 1)
    config[key] = value == "true" if value in ("true", "false") else value
producer = KafkaProducer(**config)
sent = [producer.send(topic, line) for line in open(path, "rb").read().splitlines()]
producer.flush(60)
for future in sent:
    future.get(timeout=10)
producer.close(10)
"#;

/// Reads what is committed of a topic to its end with kcat and gives the payloads.
///
/// # Errors
/// When kcat fails.
pub fn kcat_consume(bootstrap: &str, topic: &str) -> Result<Vec<String>> {
    kcat_consume_with(bootstrap, topic, &[("isolation.level", "read_committed")])
}

/// Reads a topic to its end with kcat, with settings of librdkafka, and gives the payloads.
///
/// # Errors
/// When kcat fails.
pub fn kcat_consume_with(
    bootstrap: &str,
    topic: &str,
    settings: &[(&str, &str)],
) -> Result<Vec<String>> {
    let mut kcat = Command::new("kcat");
    kcat.args([
        "-C",
        "-b",
        bootstrap,
        "-t",
        topic,
        "-e",
        "-q",
        "-o",
        "beginning",
    ]);
    for (key, value) in settings {
        kcat.arg("-X").arg(format!("{key}={value}"));
    }
    let text = process::run("kcat -C", kcat, LIMIT)?;
    Ok(text.lines().map(ToOwned::to_owned).collect())
}
