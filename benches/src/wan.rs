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

use anyhow::Result;

use crate::results::Row;

pub use links::{Cell, Transport};
pub use run::Sample;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Kedge and TCP BBR once on each link, for a look.
    Quick,
    /// Every transport on each link three times; the median counts.
    Full,
}

/// Measures goodput, writes the table and the plots into the folder.
///
/// # Errors
/// Without root, `ip` of iproute2 or TUN devices, or when a transport does not start.
pub fn rows(extent: Extent, folder: &std::path::Path) -> Result<Vec<Row>> {
    let transports: &[Transport] = match extent {
        Extent::Quick => &[Transport::Kedge, Transport::TcpBbr],
        Extent::Full => &Transport::ALL,
    };
    let runs = match extent {
        Extent::Quick => 1,
        Extent::Full => 3,
    };
    let samples = run::all(&links::cells(), transports, runs)?;
    let medians = table::medians(&samples);
    table::write(folder, &medians)?;
    Ok(table::rows(&medians))
}
