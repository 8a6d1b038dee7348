//! Runs the benchmarks of whole systems: all of them, or those that are named.

#![allow(clippy::print_stdout, reason = "a command prints")]

use std::path::PathBuf;

use anyhow::Result;
use benches::results::Row;
use benches::{append, drain, hub, latency, memory, results};
use clap::Parser;

/// Measures whole systems against their peers
#[derive(Debug, Parser)]
struct Args {
    /// Which: append, drain, hub, latency, memory; all when none is named
    names: Vec<String>,
    /// Where results.json and README.md stand
    #[arg(long, default_value = "benches")]
    folder: PathBuf,
}

type Bench = (&'static str, fn() -> Result<Vec<Row>>);

const ALL: [Bench; 5] = [
    ("append", append::rows),
    ("drain", drain::rows),
    ("hub", hub::rows),
    ("latency", latency::rows),
    ("memory", memory::rows),
];

fn main() -> Result<()> {
    let args = Args::parse();
    for (name, rows) in ALL {
        if !args.names.is_empty() && !args.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("==> {name}");
        let rows = rows()?;
        for row in &rows {
            println!(
                "    {}: {:.1} {}, ratio {:?}",
                row.name, row.ours, row.unit, row.ratio
            );
        }
        results::write(&args.folder, rows)?;
    }
    Ok(())
}
