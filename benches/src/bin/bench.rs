//! Runs the benchmarks of whole systems: all of them, or those that are named.

#![allow(clippy::print_stdout, reason = "a command prints")]

use std::path::PathBuf;

use anyhow::Result;
use benches::results::Row;
use benches::wan::{self, Extent};
use benches::{
    alarm, append, bytes, drain, fetch, hub, images, latency, memory, mqtt, outage, rates, results,
    streams, wire,
};
use clap::Parser;

/// Measures whole systems against their peers
#[derive(Debug, Parser)]
struct Args {
    /// Which: alarm, append, bytes, drain, fetch, hub, images, latency, memory, mqtt, outage, rates,
    /// streams, tail, wan, wire; all when none is named
    names: Vec<String>,
    /// Where results.json and README.md stand
    #[arg(long, default_value = "benches")]
    folder: PathBuf,
    /// Everything that a benchmark can measure: every transport three times on each WAN link, an hour
    #[arg(long)]
    full: bool,
    /// Of the WAN links those whose name contains this, such as `50 Mbit/s`; their table is not written then
    #[arg(long)]
    only: Option<String>,
}

type Bench = (&'static str, fn(&Args) -> Result<Vec<Row>>);

const ALL: [Bench; 16] = [
    ("alarm", |_| alarm::rows()),
    ("append", |_| append::rows()),
    ("bytes", |args| bytes::rows(&args.folder)),
    ("drain", |_| drain::rows()),
    ("fetch", |_| fetch::cold_rows()),
    ("hub", |_| hub::rows()),
    ("images", |_| images::rows()),
    ("latency", |_| latency::rows()),
    ("memory", |_| memory::rows()),
    ("mqtt", |_| mqtt::rows()),
    ("outage", |args| outage::rows(args.extent())),
    ("rates", |_| rates::rows()),
    ("streams", |_| streams::rows()),
    ("tail", |_| fetch::tail_rows()),
    ("wan", |args| {
        wan::rows(args.extent(), args.only.as_deref(), &args.folder)
    }),
    ("wire", |_| wire::rows()),
];

impl Args {
    fn extent(&self) -> Extent {
        if self.full {
            Extent::Full
        } else {
            Extent::Quick
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    for (name, rows) in ALL {
        if !args.names.is_empty() && !args.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("==> {name}");
        let rows = rows(&args)?;
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
