//! What transports make of WAN links, in the laboratory of [`system_tests::wan`].
//!
//! Each transport fills each link from the site to the hub for twenty seconds, from the first byte that
//! arrives. Two figures count: goodput, what the receiver's application got, by what the rate could have
//! carried less the link's loss; and what was sent twice, which costs money on metered links. Several
//! runs go on at once in laboratories of their own, as many as the machine carries.

mod links;
mod quic;
mod run;
mod table;
mod tcp;

use std::path::Path;

use anyhow::Result;

use crate::results::Row;

pub use links::{Cell, Transport};
pub use run::Sample;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every transport once on each link.
    Quick,
    /// Three times; the median counts.
    Full,
}

/// Measures goodput on the links whose name contains `only`, writes the table and the plots into the folder. The other links
/// keep what the table has.
///
/// # Errors
/// Without root, `ip` of iproute2 or TUN devices, or when a transport does not start.
pub fn rows(extent: Extent, only: Option<&str>, folder: &Path) -> Result<Vec<Row>> {
    let runs = match extent {
        Extent::Quick => 1,
        Extent::Full => 3,
    };
    let is_wanted = |cell: &Cell| only.is_none_or(|only| cell.to_string().contains(only));
    let cells: Vec<_> = links::cells().into_iter().filter(is_wanted).collect();
    let samples = run::all(&cells, runs)?;
    let mut medians = if only.is_some() {
        table::read(folder)
    } else {
        table::Medians::new()
    };
    medians.extend(table::medians(&samples));
    table::write(folder, &medians)?;
    Ok(table::rows(&medians))
}
