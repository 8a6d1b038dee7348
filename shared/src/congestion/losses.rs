//! Loss over enough packets to say something: on a thin link that takes several rounds.

use super::rounds::Summary;

/// Packets after which the share of lost ones counts.
const ENOUGH: u64 = 32;

/// Packets since the last verdict.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses {
    lost: u64,
    sent: u64,
}

/// How much was lost of enough packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict {
    pub(super) lost: u64,
    /// In thousandths.
    pub(super) loss: u64,
}

impl Losses {
    /// The verdict, when with this round there are enough packets.
    pub(super) fn add(&mut self, summary: &Summary, mtu: u64) -> Option<Verdict> {
        self.lost = self.lost.saturating_add(summary.lost);
        self.sent = self.sent.saturating_add(summary.lost + summary.acked);
        if self.sent < ENOUGH * mtu {
            return None;
        }
        let Self { lost, sent } = std::mem::take(self);
        Some(Verdict {
            lost,
            loss: lost * 1000 / sent.max(1),
        })
    }
}
