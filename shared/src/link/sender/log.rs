//! One log of a session at the site.

use std::collections::VecDeque;

use super::port::{Begin, Held};
use crate::ids::{Offset, TopicPartition};
use crate::wire::{Anchor, Checkpoint, DataContent, LogRange, MAX_LOG_STREAMS};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Undeclared,
    Declared,
    Checking(Checkpoint),
    Ready,
    Reading {
        reserved: u64,
        end: Offset,
    },
    Trimmed,
    Parked,
    /// The hub does not take it; it may say otherwise later.
    Denied,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) log: TopicPartition,
    pub(super) range: LogRange,
    pub(super) phase: Phase,
    /// The store's own cursor when the session began: the hub has said that it holds everything before.
    pub(super) known_acked: Offset,
    /// The same, or the log's start where that lies above.
    pub(super) first_unacked: Offset,
    /// The hub's checkpoint lies inside a batch or a gap of the log: the first read tells which.
    pub(super) is_unproven: bool,
    /// False when the log was trimmed further than `range.start` says.
    pub(super) is_start_known: bool,
    /// The hub holds everything before; `acked <= read <= range.end`.
    pub(super) acked: Offset,
    /// Everything before was read, and waits in `held` or was sent.
    pub(super) read: Offset,
    /// Where the streams end that were sent and are not acknowledged, in order, with their chains.
    pub(super) in_flight: VecDeque<(Offset, u64)>,
    /// Read and not sent.
    pub(super) held: usize,
    /// The place of the next stream.
    pub(super) seq: u8,
    /// The next stream is the first after a restart.
    pub(super) is_restarted: bool,
    /// What is being read is void.
    pub(super) is_stale: bool,
    /// The chain at `read`, as the hub will know it; 0: it will not.
    pub(super) hub_chain: u64,
    /// Its partition's other track is a log of the session too.
    pub(super) has_other_track: bool,
    /// Saved states of the codec, as declared.
    pub(super) anchors: Vec<Anchor>,
    /// What the codec's memory is to be set to.
    pub(super) begin: Option<Begin>,
}

impl Log {
    /// The hub is not heard about this log, or what it said is not compared.
    pub(super) fn is_unresolved(&self) -> bool {
        matches!(
            self.phase,
            Phase::Undeclared | Phase::Declared | Phase::Checking(_)
        )
    }

    /// What the hub is told. A log that it knows nothing of begins where the store's cursor is.
    pub(super) fn declared(&self) -> LogRange {
        let origin = self.known_acked.clamp(self.range.origin, self.range.end);
        LogRange {
            origin,
            start: self.range.start.max(origin),
            end: self.range.end,
        }
    }

    /// The store joined what was sent already and what follows into one gap.
    pub(super) fn is_rest_of_gap(&self, read: &Held) -> bool {
        matches!(read.content, DataContent::Gap { .. })
            && read.base_offset < self.read
            && self.read < read.next_offset
    }

    /// As many streams as the hub takes of one log are unacknowledged or about to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.held + self.in_flight.len() >= MAX_LOG_STREAMS
    }
}
