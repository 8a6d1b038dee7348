//! The rows, as JSON and as a table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// One measured figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Unit of both figures.
    pub unit: String,
    /// Ours.
    pub ours: f64,
    /// The peer's, and who it is; absent when the goal is absolute.
    pub peer: Option<(String, f64)>,
    /// Ours by the peer's.
    pub ratio: Option<f64>,
    /// What was aimed at, in words.
    pub goal: String,
    /// Whether it was reached.
    pub is_met: bool,
    /// How to measure it again.
    pub command: String,
    /// Where it was measured.
    pub machine: String,
}

/// What a figure has to be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At least so many times the peer's.
    AtLeast(f64),
    /// At most so many times the peer's.
    AtMost(f64),
    /// At most so much, whatever anybody else has.
    Below(f64),
    /// At least so much, whatever anybody else has.
    Above(f64),
}

impl Row {
    /// A figure, its peer's and its goal.
    #[must_use]
    pub fn new(name: &str, unit: &str, ours: f64, peer: Option<(&str, f64)>, goal: Goal) -> Self {
        let ratio = peer.map(|(_, peer)| ours / peer);
        let (is_met, goal) = match goal {
            Goal::AtLeast(times) => (
                ratio.is_some_and(|ratio| ratio >= times),
                format!("at least {times}x"),
            ),
            Goal::AtMost(times) => (
                ratio.is_some_and(|ratio| ratio <= times),
                format!("at most {times}x"),
            ),
            Goal::Below(limit) => (ours <= limit, format!("at most {limit} {unit}")),
            Goal::Above(limit) => (ours >= limit, format!("at least {limit} {unit}")),
        };
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours,
            peer: peer.map(|(name, figure)| (name.to_owned(), figure)),
            ratio,
            goal,
            is_met,
            command: "make bench".to_owned(),
            machine: machine(),
        }
    }

    fn line(&self) -> String {
        let peer = self.peer.as_ref().map_or_else(
            || "–".to_owned(),
            |(name, figure)| format!("{} ({name})", number(*figure)),
        );
        let ratio = self
            .ratio
            .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}x"));
        let met = if self.is_met { "yes" } else { "**no**" };
        format!(
            "| {} | {} {} | {peer} | {ratio} | {} | {met} |",
            self.name,
            number(self.ours),
            self.unit,
            self.goal
        )
    }
}

/// Many goals are about 1: below 2 with three digits after the point.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 2.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    format!("{cores} cores, {model}")
}

const HEADER: &str = "# Benchmarks

Made by `make bench`, which runs each system and its peer one after the other on the same machine. Ratios count, not
absolute figures: the machine is small and shared. `results.json` has the same with the commands.

| what | Kedge | peer | ratio | goal | met |
| --- | --- | --- | --- | --- | --- |
";

/// Writes `results.json` and `README.md` into the folder. A row that is there already and was not
/// measured this time stays as it is.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(folder: &Path, rows: Vec<Row>) -> Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join("results.json");
    let mut all: Vec<Row> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).context("read results.json")?,
        Err(_) => Vec::new(),
    };
    for row in rows {
        match all.iter_mut().find(|known| known.name == row.name) {
            Some(known) => *known = row,
            None => all.push(row),
        }
    }
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
    let mut table = HEADER.to_owned();
    for row in &all {
        writeln!(table, "{}", row.line())?;
    }
    let mut machines: Vec<&str> = all.iter().map(|row| row.machine.as_str()).collect();
    machines.sort_unstable();
    machines.dedup();
    let machines = machines.join("; ");
    writeln!(table, "\nMachines, by row in `results.json`: {machines}.")?;
    let tables = tables(folder)?;
    let notes = fs::read_to_string(folder.join("notes.md")).unwrap_or_default();
    fs::write(
        folder.join("README.md"),
        format!("{table}\n{tables}{notes}"),
    )?;
    Ok(())
}

/// What benchmarks have written into `tables/`, by name.
fn tables(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder.join("tables"))
        .into_iter()
        .flatten()
        .flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let mut all = String::new();
    for path in paths {
        all.push_str(&fs::read_to_string(path)?);
        all.push('\n');
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_figure_next_to_its_goal_is_told_from_it() {
        let cases = [
            (0.0, "0.000"),
            (0.107_759, "0.108"),
            (0.9984, "0.998"),
            (1.007_168_75, "1.007"),
            (1.033_336, "1.033"),
            (1.044_063, "1.044"),
            (1.9994, "1.999"),
            (-1.5, "-1.500"),
            (2.0, "2.0"),
            (17.758_616, "17.8"),
            (99.94, "99.9"),
            (100.0, "100"),
            (542_690.132, "542690"),
        ];
        for (value, written) in cases {
            assert_eq!(number(value), written, "{value}");
        }
    }
}
