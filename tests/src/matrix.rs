//! The Kafka clients of `tests/clients`: one program each, all with the same tasks and the same words.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::dialog::Dialog;
use crate::{paths, wait};

/// How long a task of a few hundred records, or a change in a group, may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A client and its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Kcat,
    ConfluentPython,
    KafkaPython,
    Aiokafka,
    Kafkajs,
    FranzGo,
    Sarama,
    Java,
}

/// A record as a client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub key: String,
    /// The record's number.
    pub value: u64,
}

impl Seen {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("record ")?.split(' ');
        Some(Self {
            partition: words.next()?.parse().ok()?,
            offset: words.next()?.parse().ok()?,
            key: words.next()?.to_owned(),
            value: words.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Kcat => "kcat",
            Self::ConfluentPython => "confluent-kafka-python",
            Self::KafkaPython => "kafka-python",
            Self::Aiokafka => "aiokafka",
            Self::Kafkajs => "kafkajs",
            Self::FranzGo => "franz-go",
            Self::Sarama => "sarama",
            Self::Java => "java",
        })
    }
}

impl Program {
    /// Writes records `first`, `first + 1`, … and waits until all are acknowledged.
    ///
    /// # Errors
    /// When the client gives up.
    pub fn produce(self, bootstrap: &str, topic: &str, first: u64, count: u64) -> Result<()> {
        self.write("produce", bootstrap, topic, first, count)
    }

    /// The same with idempotence on.
    ///
    /// # Errors
    /// When the client gives up.
    pub fn produce_idempotent(
        self,
        bootstrap: &str,
        topic: &str,
        first: u64,
        count: u64,
    ) -> Result<()> {
        self.write("idempotent", bootstrap, topic, first, count)
    }

    fn write(self, task: &str, bootstrap: &str, topic: &str, first: u64, count: u64) -> Result<()> {
        let numbers = [first.to_string(), count.to_string()];
        let dialog = self.start(bootstrap, task, topic, &numbers)?;
        dialog.finish(LIMIT).map(drop)
    }

    /// Reads `count` records from the beginning, without a group where the client can.
    ///
    /// # Errors
    /// When it does not get so many.
    pub fn consume(self, bootstrap: &str, topic: &str, count: usize) -> Result<Vec<Seen>> {
        let dialog = self.start(bootstrap, "consume", topic, &[count.to_string()])?;
        let said = dialog.finish(LIMIT)?;
        Ok(said.iter().filter_map(|line| Seen::parse(line)).collect())
    }

    fn start(
        self,
        bootstrap: &str,
        task: &str,
        topic: &str,
        arguments: &[String],
    ) -> Result<Dialog> {
        let mut command = self.command()?;
        command.args([bootstrap, task, topic]).args(arguments);
        let log = paths::log_file(&format!("{self}-{task}"))?;
        Dialog::start(&format!("{self} {task}"), command, &log)
    }

    fn command(self) -> Result<Command> {
        Ok(match self {
            Self::Kcat => python("kcat.py")?,
            Self::ConfluentPython => python("confluent.py")?,
            Self::KafkaPython => python("kafka_python.py")?,
            Self::Aiokafka => python("aio.py")?,
            Self::Kafkajs => {
                let mut node = Command::new("node");
                node.arg(installed("node-clients/client.js")?);
                node.env("KAFKAJS_NO_PARTITIONER_WARNING", "1");
                node
            }
            Self::FranzGo => Command::new(installed("go-clients/franz")?),
            Self::Sarama => Command::new(installed("go-clients/sarama")?),
            Self::Java => java("Client")?,
        })
    }
}

/// One of our Java programs, with the Kafka jars and a log on standard error.
///
/// # Errors
/// When the set-up has not run.
pub fn java(class: &str) -> Result<Command> {
    let classes = installed("java-clients")?;
    let jars = paths::kafka_class_path()?;
    let mut java = Command::new("java");
    // it lives for seconds: what the second compiler would give is never earned back
    java.args([
        "-Xmx256m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-cp",
    ]);
    java.arg(format!("{}:{jars}", classes.display())).arg(class);
    Ok(java)
}

fn python(script: &str) -> Result<Command> {
    let mut python = Command::new(paths::python()?);
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients/python");
    python.arg("-B").arg(scripts.join(script));
    Ok(python)
}

fn installed(path: &str) -> Result<PathBuf> {
    let path = paths::cache().join(path);
    if !path.exists() {
        bail!("no {}: run `make setup-test`", path.display());
    }
    Ok(path)
}

/// A member of a consumer group.
#[derive(Debug)]
pub struct Member {
    dialog: Dialog,
    commits: usize,
}

impl Member {
    /// Starts a client that joins.
    ///
    /// # Errors
    /// When its program cannot be started.
    pub fn join(program: Program, bootstrap: &str, topic: &str, group: &str) -> Result<Self> {
        let dialog = program.start(bootstrap, "group", topic, &[group.to_owned()])?;
        Ok(Self { dialog, commits: 0 })
    }

    /// What it has seen so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let said = self.dialog.said();
        said.iter().filter_map(|line| Seen::parse(line)).collect()
    }

    /// The partitions that it holds.
    #[must_use]
    pub fn assigned(&self) -> Vec<i32> {
        last_assignment(&self.dialog.said())
    }

    /// Waits until it holds so many partitions.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_assigned(&mut self, count: usize) -> Result<()> {
        let what = format!("holds {count} partitions");
        self.dialog.wait(&what, LIMIT, |said| {
            (last_assignment(said).len() == count).then_some(())
        })
    }

    /// Waits until it has seen a record of each number.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_seen(&mut self, numbers: Range<u64>) -> Result<()> {
        let what = format!("sees {numbers:?}");
        self.dialog.wait(&what, LIMIT, |said| {
            let mut left: BTreeSet<u64> = numbers.clone().collect();
            for seen in said.iter().filter_map(|line| Seen::parse(line)) {
                left.remove(&seen.value);
            }
            left.is_empty().then_some(())
        })
    }

    /// Has it commit what it has seen. A commit that falls into a rebalance is refused, and asked for again.
    ///
    /// # Errors
    /// When it does not come to pass.
    pub fn commit(&mut self) -> Result<()> {
        for _ in 0..20 {
            self.dialog.tell("commit")?;
            self.commits += 1;
            let nth = self.commits - 1;
            let outcome = self.dialog.wait("answers a commit", LIMIT, |said| {
                let is_outcome =
                    |line: &&String| *line == "committed" || line.starts_with("failed");
                said.iter().filter(is_outcome).nth(nth).cloned()
            })?;
            if outcome == "committed" {
                return Ok(());
            }
            wait::let_run(Duration::from_millis(500));
        }
        bail!("no commit of 20 came to pass")
    }

    /// Has it leave, and gives all that it saw.
    ///
    /// # Errors
    /// When it does not end, or with a failure.
    pub fn leave(self) -> Result<Vec<Seen>> {
        let said = self.dialog.close(LIMIT)?;
        Ok(said.iter().filter_map(|line| Seen::parse(line)).collect())
    }
}

fn last_assignment(said: &[String]) -> Vec<i32> {
    let last = said
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix("assigned"));
    let words = last.unwrap_or_default().split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Fails unless each number of the range was seen exactly once, and each key's in order.
///
/// # Errors
/// With what is missing, doubled or out of order.
pub fn check_once_in_order(seen: &[Seen], numbers: Range<u64>) -> Result<()> {
    check_once(seen, numbers)?;
    check_order(seen)
}

/// Fails unless each number of the range was seen exactly once.
///
/// # Errors
/// With what is missing or doubled.
pub fn check_once(seen: &[Seen], numbers: Range<u64>) -> Result<()> {
    let mut counts: BTreeMap<u64, usize> = numbers.map(|number| (number, 0)).collect();
    for record in seen {
        *counts.entry(record.value).or_default() += 1;
    }
    let missing: Vec<_> = counts.iter().filter(|(_, count)| **count == 0).collect();
    let doubled: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(
        missing.is_empty() && doubled.is_empty(),
        "{} records; missing {missing:?}, more than once {doubled:?}",
        seen.len()
    );
    Ok(())
}

/// Fails when a key's numbers fall.
///
/// # Errors
/// With the first that does.
pub fn check_order(seen: &[Seen]) -> Result<()> {
    let mut last = HashMap::new();
    for record in seen {
        let number = record.value % 10;
        ensure!(
            record.key == format!("key-{number}"),
            "{record:?} has a wrong key"
        );
        let before = last.insert(&record.key, record.value);
        ensure!(
            before.is_none_or(|before| before < record.value),
            "{record:?} comes after {before:?}"
        );
    }
    Ok(())
}
