//! Kafka's own programs at a site: the console tools of Apache Kafka 4, and Kafka Streams.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use system_tests::dialog::Dialog;
use system_tests::kafka_node::{Node, fresh};
use system_tests::matrix::{LIMIT, Program, java};
use system_tests::{paths, wait};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const VERSIONS: &str = "org.apache.kafka.tools.BrokerApiVersionsCommand";

#[test]
#[ignore = "system test: make test"]
fn the_console_tools_work() -> Result<()> {
    let node = Node::start()?;
    let mut tools = Tools::start(&node.bootstrap())?;
    let (topic, group) = (fresh("tools"), fresh("group"));

    tools.run(VERSIONS, "")?;
    let create = format!("--create --topic {topic} --partitions 3 --config retention.ms=86400000");
    tools.run(TOPICS, &create)?;
    let listed = tools.run(TOPICS, "--list")?;
    ensure!(listed.contains(&topic), "{listed:?}");

    let mut lines = tempfile::NamedTempFile::new()?;
    for number in 0..10 {
        writeln!(lines, "key-{number}:{number}")?;
    }
    let file = lines.path().display();
    let keyed = "--reader-property parse.key=true --reader-property key.separator=:";
    tools.run(PRODUCER, &format!("--topic {topic} {keyed} < {file}"))?;
    let consume = format!("--topic {topic} --group {group} --from-beginning --max-messages 10");
    let mut seen = tools.run(CONSUMER, &consume)?;
    seen.retain(|line| line.len() == 1);
    seen.sort();
    ensure!(
        seen == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        "{seen:?}"
    );

    let ends = tools.run(OFFSETS, &format!("--topic {topic}"))?;
    ensure!(sum_of_offsets(&ends, &topic) == 10, "{ends:?}");
    let described = tools.run(GROUPS, &format!("--describe --group {group}"))?;
    ensure!(sums(&described, &topic) == (10, 0), "{described:?}");
    let reset = format!("--reset-offsets --to-earliest --execute --group {group} --topic {topic}");
    tools.run(GROUPS, &reset)?;
    let described = tools.run(GROUPS, &format!("--describe --group {group}"))?;
    ensure!(sums(&described, &topic) == (0, 10), "{described:?}");
    tools.run(GROUPS, &format!("--delete --group {group}"))?;
    let listed = tools.run(GROUPS, "--list")?;
    ensure!(!listed.contains(&group), "{listed:?}");

    let named = format!("--entity-type topics --entity-name {topic}");
    tools.run(
        CONFIGS,
        &format!("--alter {named} --add-config retention.ms=3600000"),
    )?;
    let described = tools.run(CONFIGS, &format!("--describe {named}"))?;
    ensure!(
        described
            .iter()
            .any(|line| line.contains("retention.ms=3600000")),
        "{described:?}"
    );
    tools.run(TOPICS, &format!("--alter --topic {topic} --partitions 4"))?;
    let described = tools.run(TOPICS, &format!("--describe --topic {topic}"))?;
    ensure!(
        described
            .iter()
            .any(|line| line.contains("PartitionCount: 4")),
        "{described:?}"
    );
    Ok(())
}

/// The tools, in one process.
struct Tools {
    dialog: Dialog,
    bootstrap: String,
    ended: usize,
}

impl Tools {
    fn start(bootstrap: &str) -> Result<Self> {
        let log = paths::log_file("kafka-tools")?;
        Ok(Self {
            dialog: Dialog::start("Kafka's tools", java("Tools")?, &log)?,
            bootstrap: bootstrap.to_owned(),
            ended: 0,
        })
    }

    /// Runs one and gives what it wrote.
    fn run(&mut self, tool: &str, arguments: &str) -> Result<Vec<String>> {
        let before = self.dialog.said().len();
        let bootstrap = &self.bootstrap;
        let line = format!("{tool} --bootstrap-server {bootstrap} {arguments}");
        self.dialog.tell(line.trim_end())?;
        let nth = self.ended;
        self.ended += 1;
        let status = self.dialog.wait(&line, LIMIT, |said| {
            said.iter()
                .filter_map(|line| line.strip_prefix("ended "))
                .nth(nth)
                .map(str::to_owned)
        })?;
        let mut said = self.dialog.said().split_off(before);
        ensure!(status == "0", "{line}: ended with {status}: {said:?}");
        said.truncate(said.len() - 1);
        Ok(said)
    }
}

/// Of lines `TOPIC:PARTITION:OFFSET`.
fn sum_of_offsets(lines: &[String], topic: &str) -> i64 {
    let offset = |line: &String| {
        let rest = line.strip_prefix(topic)?;
        rest.rsplit_once(':')?.1.parse::<i64>().ok()
    };
    lines.iter().filter_map(offset).sum()
}

/// Committed offsets and lag, of the table `GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …`.
fn sums(lines: &[String], topic: &str) -> (i64, i64) {
    let mut sums = (0, 0);
    for line in lines {
        let words: Vec<_> = line.split_whitespace().collect();
        if words.get(1) == Some(&topic) {
            let number = |at: usize| {
                words
                    .get(at)
                    .and_then(|word| word.parse().ok())
                    .unwrap_or(0)
            };
            sums = (sums.0 + number(3), sums.1 + number(5));
        }
    }
    sums
}

/// Kafka Streams counts words at least once, and goes on after the node was killed.
#[test]
#[ignore = "system test: make test"]
fn a_word_count_of_kafka_streams_goes_on_after_a_kill() -> Result<()> {
    let mut node = Node::start()?;
    let bootstrap = node.bootstrap();
    let (input, output) = (fresh("words"), fresh("counts"));
    Program::ConfluentPython.produce(&bootstrap, &input, 0, 100)?;
    let state = paths::scratch("streams")?;
    let mut command = java("WordCount")?;
    command
        .args([bootstrap.as_str(), &input, &output, &fresh("count")])
        .arg(state.path());
    let streams = Dialog::start("Kafka Streams", command, &paths::log_file("streams")?)?;
    wait_counted(&node, &output, 1).context("before the kill")?;
    node.kill_and_restart()?;
    Program::ConfluentPython.produce(&bootstrap, &input, 0, 100)?;
    wait_counted(&node, &output, 2).context("after the kill")?;
    streams.close(LIMIT).map(drop)
}

/// Waits until each of a hundred words was counted so often.
fn wait_counted(node: &Node, output: &str, times: u64) -> Result<()> {
    let mut last = BTreeMap::new();
    let what = format!("each word is counted {times} times");
    let counted = wait::until_true(&what, LIMIT + Duration::from_secs(30), || {
        last = node.read_table(output).unwrap_or_default();
        let is_there = |count: &String| count.parse().is_ok_and(|count: u64| count >= times);
        last.len() == 100 && last.values().all(is_there)
    });
    counted.with_context(|| format!("the counts are {last:?}"))
}
