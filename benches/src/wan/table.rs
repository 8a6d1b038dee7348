//! Medians, the table of every link and transport, the plots, and the rows that have a goal.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::links::{Cell, Transport, cells};
use super::run::Sample;
use crate::plot::{Chart, Panel};
use crate::results::{Goal, Row};

/// Goodput and what was sent twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Median {
    goodput: f64,
    resent: f64,
}

pub(super) type Medians = HashMap<(Cell, Transport), Median>;

pub(super) fn medians(samples: &[(Cell, Transport, Sample)]) -> Medians {
    let mut grouped: HashMap<(Cell, Transport), Vec<Sample>> = HashMap::new();
    for (cell, transport, sample) in samples {
        grouped
            .entry((*cell, *transport))
            .or_default()
            .push(*sample);
    }
    let median = |((cell, transport), samples): ((Cell, Transport), Vec<Sample>)| {
        let goodput = middle(samples.iter().map(|sample| sample.goodput(&cell)));
        let resent = middle(samples.iter().map(|sample| sample.resent));
        ((cell, transport), Median { goodput, resent })
    };
    grouped.into_iter().map(median).collect()
}

fn middle(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The worst link of each promise.
pub(super) fn rows(medians: &Medians) -> Vec<Row> {
    let cells = cells();
    let (thin, wide): (Vec<Cell>, Vec<Cell>) = cells.iter().partition(|cell| cell.is_satellite());
    let worst = |cells: &[Cell], transport| {
        let goodput = |cell: &Cell| Some(medians.get(&(*cell, transport))?.goodput);
        cells
            .iter()
            .filter_map(goodput)
            .fold(f64::INFINITY, f64::min)
    };
    let behind = |cell: &Cell| {
        let bbr = medians.get(&(*cell, Transport::TcpBbr))?.goodput;
        Some(bbr - medians.get(&(*cell, Transport::Kedge))?.goodput)
    };
    let waste = |cells: &[Cell]| {
        let beyond = |cell: &Cell| {
            let resent = medians.get(&(*cell, Transport::Kedge))?.resent;
            Some((resent - (1.0 - cell.delivered())) * 100.0)
        };
        cells
            .iter()
            .filter_map(beyond)
            .fold(f64::NEG_INFINITY, f64::max)
    };
    let goodput = |name: &str, cells: &[Cell], least| {
        let peer = ("TCP BBR", worst(cells, Transport::TcpBbr));
        Row::new(
            name,
            "of the rate",
            worst(cells, Transport::Kedge),
            Some(peer),
            Goal::Above(least),
        )
    };
    let rows = vec![
        goodput("goodput on the worst link from 10 Mbit/s up", &wide, 0.91),
        goodput("goodput on the worst satellite link", &thin, 0.87),
        Row::new(
            "goodput behind TCP BBR's, worst link",
            "of the rate",
            cells
                .iter()
                .filter_map(behind)
                .fold(f64::NEG_INFINITY, f64::max),
            None,
            Goal::Below(0.01),
        ),
        Row::new(
            "sent twice beyond the loss, worst link from 10 Mbit/s up",
            "points",
            waste(&wide),
            None,
            Goal::Below(3.0),
        ),
        Row::new(
            "sent twice beyond the loss, worst satellite link",
            "points",
            waste(&thin),
            None,
            Goal::Below(6.0),
        ),
    ];
    // of links that were not measured there is nothing to say
    rows.into_iter()
        .filter(|row| row.ours.is_finite())
        .collect()
}

/// `tables/wan.md` and `plots/goodput.svg`.
pub(super) fn write(folder: &Path, medians: &Medians) -> Result<()> {
    let (tables, plots) = (folder.join("tables"), folder.join("plots"));
    fs::create_dir_all(&tables)?;
    fs::create_dir_all(&plots)?;
    fs::write(tables.join("wan.md"), table(medians))?;
    fs::write(plots.join("goodput.svg"), chart(medians).svg())?;
    Ok(())
}

/// The figures of a table that was written: a link that is not measured anew keeps its own.
pub(super) fn read(folder: &Path) -> Medians {
    let text = fs::read_to_string(folder.join("tables/wan.md")).unwrap_or_default();
    let rows = text.lines().filter_map(|line| {
        let line = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(line.split(" | ").collect::<Vec<_>>())
    });
    let mut rows = rows.filter(|row| row.len() > 1);
    let names = rows.next().unwrap_or_default();
    let mut found = Medians::new();
    for row in rows {
        let Some(cell) = cells().into_iter().find(|cell| cell.to_string() == row[0]) else {
            continue;
        };
        for (name, figure) in names.iter().zip(row).skip(1) {
            let transport = Transport::ALL.into_iter().find(|it| it.name() == *name);
            if let Some((transport, median)) = transport.zip(Median::read(figure)) {
                found.insert((cell, transport), median);
            }
        }
    }
    found
}

impl Median {
    /// As it stands in the table.
    fn read(figure: &str) -> Option<Self> {
        let (goodput, resent) = figure.strip_suffix(" %")?.split_once(" / ")?;
        Some(Self {
            goodput: goodput.parse().ok()?,
            resent: resent.parse::<f64>().ok()? / 100.0,
        })
    }
}

const STORY: &str = "## Transports on WAN links

Goodput by what the rate could have carried less the loss, and after the slash the share of what was sent that was sent
again. Twenty seconds from the first byte, once (`--full`: the median of three); queue in products of rate and round trip. About
0.955 is the limit that headers set. [The plot](plots/goodput.svg) shows it.

";

fn table(medians: &Medians) -> String {
    let transports: Vec<_> = Transport::ALL
        .into_iter()
        .filter(|transport| medians.keys().any(|(_, measured)| measured == transport))
        .collect();
    let mut out = STORY.to_owned();
    let names: Vec<_> = transports
        .iter()
        .map(|transport| transport.name())
        .collect();
    let _infallible = writeln!(out, "| link, loss, queue | {} |", names.join(" | "));
    let _infallible = writeln!(out, "| --- |{}", " --- |".repeat(names.len()));
    for cell in cells() {
        let figure = |transport: &Transport| {
            medians.get(&(cell, *transport)).map_or_else(
                || "–".to_owned(),
                |median| format!("{:.3} / {:.1} %", median.goodput, median.resent * 100.0),
            )
        };
        let figures: Vec<_> = transports.iter().map(figure).collect();
        let _infallible = writeln!(out, "| {cell} | {} |", figures.join(" | "));
    }
    out
}

fn chart(medians: &Medians) -> Chart {
    let mut panels = Vec::new();
    for queue_percent in [25, 100] {
        let cells = cells()
            .into_iter()
            .filter(|cell| cell.queue_percent == queue_percent);
        let mut links: Vec<Vec<Cell>> = Vec::new();
        for cell in cells {
            match links.last_mut() {
                Some(link) if link[0].rate == cell.rate => link.push(cell),
                Some(_) | None => links.push(vec![cell]),
            }
        }
        panels.extend(links.iter().map(|link| panel(medians, link)));
    }
    Chart {
        title: "Goodput over loss".to_owned(),
        x: "loss, %".to_owned(),
        y: "goodput / (rate x (1 - loss))".to_owned(),
        top: 1.0,
        panels,
    }
}

fn panel(medians: &Medians, link: &[Cell]) -> Panel {
    let goodput = |cell: &Cell, transport| Some(medians.get(&(*cell, transport))?.goodput);
    let lines = Transport::ALL.into_iter().map(|transport| {
        let values = link.iter().map(|cell| goodput(cell, transport)).collect();
        (transport.name().to_owned(), values)
    });
    let Cell {
        rate,
        round_trip_ms,
        queue_percent,
        ..
    } = link[0];
    let queue = f64::from(queue_percent) / 100.0;
    Panel {
        title: format!(
            "{} Mbit/s, {round_trip_ms} ms, queue {queue}",
            rate / 1_000_000
        ),
        places: link
            .iter()
            .map(|cell| format!("{}", f64::from(cell.loss) / 1e4))
            .collect(),
        lines: lines.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).is_empty());
        let median = |goodput, resent| Median { goodput, resent };
        let mut medians = Medians::new();
        for (at, cell) in cells().into_iter().enumerate() {
            medians.insert((cell, Transport::Kedge), median(0.9, at as f64 / 1e3));
            if at > 2 {
                medians.insert((cell, Transport::QuinnBbr), median(0.125, 0.5));
            }
        }
        write(folder.path(), &medians).unwrap();
        let found = read(folder.path());
        assert_eq!(table(&found), table(&medians));
        assert_eq!(found.len(), medians.len());
    }
}
