//! One log of a session at the site.

use std::collections::VecDeque;

use crate::ids::{Offset, TopicPartition};
use crate::wire::{Checkpoint, DataContent, DataHeader, LogRange};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Undeclared,
    Declared,
    Checking(Checkpoint),
    Ready,
    Reading { reserved: u64, end: Offset },
    Trimmed,
    Parked,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) log: TopicPartition,
    pub(super) range: LogRange,
    pub(super) phase: Phase,
    /// What the store took for the hub's checkpoint when the session began.
    pub(super) first_unacked: Offset,
    /// The hub's checkpoint lies inside a batch or a gap of the log: the first read tells which.
    pub(super) is_unproven: bool,
    /// False when the log was trimmed further than `range.start` says.
    pub(super) is_start_known: bool,
    /// The hub holds everything before; `acked <= read <= range.end`.
    pub(super) acked: Offset,
    /// Everything before was read, and waits in `held` or was sent.
    pub(super) read: Offset,
    /// Where the streams end that were sent and are not acknowledged, in order.
    pub(super) in_flight: VecDeque<Offset>,
    pub(super) in_ring: bool,
}

impl Log {
    /// The store joined what was sent already and what follows into one gap.
    pub(super) fn is_rest_of_gap(&self, header: &DataHeader) -> bool {
        matches!(header.content, DataContent::Gap { .. })
            && header.base_offset < self.read
            && self.read < header.next_offset
    }
}
