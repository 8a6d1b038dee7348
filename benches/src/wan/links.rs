//! The links and the transports of the comparison.

use std::fmt;
use std::time::Duration;

use system_tests::wan::Conditions;

/// One link: a cell of the table for each transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Bits per second.
    pub rate: u64,
    /// Milliseconds.
    pub round_trip_ms: u64,
    /// Millionths, independent.
    pub loss: u32,
    /// Percent of rate x round trip.
    pub queue_percent: u32,
}

impl Cell {
    /// The direction that is filled.
    #[must_use]
    pub fn up(&self) -> Conditions {
        Conditions {
            loss: self.loss,
            ..self.down()
        }
    }

    /// The way of the acknowledgements: the same without loss.
    #[must_use]
    pub fn down(&self) -> Conditions {
        let round_trip = Duration::from_millis(self.round_trip_ms);
        Conditions::path(self.rate, round_trip, self.queue_percent)
    }

    /// What arrives at best, of what the rate carries.
    #[must_use]
    pub fn delivered(&self) -> f64 {
        1.0 - f64::from(self.loss) / 1e6
    }

    /// Thin, and far away.
    #[must_use]
    pub fn is_satellite(&self) -> bool {
        self.rate <= 1_000_000
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loss = f64::from(self.loss) / 1e4;
        let queue = f64::from(self.queue_percent) / 100.0;
        let rate = self.rate / 1_000_000;
        write!(
            f,
            "{rate} Mbit/s, {} ms, {loss} %, {queue}",
            self.round_trip_ms
        )
    }
}

/// Every link: rate and round trip, with their losses, each with a short and a long queue.
#[must_use]
pub(super) fn cells() -> Vec<Cell> {
    const LINKS: [(u64, u64, &[u32]); 4] = [
        (1_000_000, 600, &[0, 10_000]),
        (10_000_000, 100, &[0, 10_000, 30_000]),
        (50_000_000, 200, &[0, 10_000, 30_000]),
        (100_000_000, 50, &[0, 1_000, 10_000]),
    ];
    let mut cells = Vec::new();
    for (rate, round_trip_ms, losses) in LINKS {
        for &loss in losses {
            for queue_percent in [25, 100] {
                cells.push(Cell {
                    rate,
                    round_trip_ms,
                    loss,
                    queue_percent,
                });
            }
        }
    }
    cells
}

/// Who fills the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC with the controller of `shared::congestion`.
    Kedge,
    /// The kernel's TCP with CUBIC.
    TcpCubic,
    /// The kernel's TCP with BBR.
    TcpBbr,
    /// quinn's default.
    QuinnCubic,
    /// quinn's New Reno.
    QuinnNewReno,
    /// quinn's BBR.
    QuinnBbr,
}

impl Transport {
    /// All of them, as the table's columns.
    pub const ALL: [Self; 6] = [
        Self::Kedge,
        Self::TcpCubic,
        Self::TcpBbr,
        Self::QuinnCubic,
        Self::QuinnNewReno,
        Self::QuinnBbr,
    ];

    /// As in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kedge => "Kedge",
            Self::TcpCubic => "TCP CUBIC",
            Self::TcpBbr => "TCP BBR",
            Self::QuinnCubic => "quinn cubic",
            Self::QuinnNewReno => "quinn newreno",
            Self::QuinnBbr => "quinn bbr",
        }
    }
}
