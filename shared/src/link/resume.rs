//! Where a log goes on, given what the hub holds and what the site has.

use crate::ids::Offset;
use crate::wire::{Checkpoint, LogRange, LogReply};

/// How the hub's checkpoint contradicts the site's log: the store went back in time, or it is another
/// store under the same name. The site needs a new incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The checkpoint lies beyond the log's end.
    BeyondEnd,
    /// The checkpoint lies below the first offset of this incarnation.
    BelowOrigin,
    /// The log has another history up to the checkpoint.
    ChainDiffers,
    /// The checkpoint lies inside a batch of the log, or inside a gap, where the history up to it cannot be
    /// compared.
    NotABoundary,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resume {
    /// Go on from here.
    From(Offset),
    /// Go on from the checkpoint if the store's history up to it has the same chain.
    Check(Checkpoint),
    /// No batch of the log ends here. Go on if one did that was sent, and became part of a gap since.
    Probe(Checkpoint),
    /// Cannot go on.
    Mismatch(Mismatch),
    /// The hub does not take this log.
    Denied,
}

/// Everything before `acked` was committed in this incarnation, as the hub said itself. A hub that knows
/// less has lost checkpoints: if it knows nothing of the log, nothing is sent again; else what is missing
/// below the log's start becomes a gap.
pub(super) fn resume(range: &LogRange, acked: Offset, reply: LogReply) -> Resume {
    let checkpoint = match reply {
        LogReply::Absent => return Resume::From(acked.clamp(range.origin, range.end)),
        LogReply::Denied => return Resume::Denied,
        LogReply::At(checkpoint) => checkpoint,
    };
    let next = checkpoint.next_offset;
    if next > range.end {
        Resume::Mismatch(Mismatch::BeyondEnd)
    } else if next < range.origin {
        Resume::Mismatch(Mismatch::BelowOrigin)
    } else if next < range.start && next > acked {
        Resume::Mismatch(Mismatch::NotABoundary)
    } else if next < range.start || next == range.origin || checkpoint.chain == 0 {
        Resume::From(next)
    } else {
        Resume::Check(checkpoint)
    }
}

/// Compares the hub's checkpoint with the store's chain at its offset (`None`: not a boundary there).
pub(super) fn compare(checkpoint: Checkpoint, at_site: Option<u64>) -> Resume {
    match at_site {
        None => Resume::Probe(checkpoint),
        Some(chain) if chain != checkpoint.chain => Resume::Mismatch(Mismatch::ChainDiffers),
        Some(_) => Resume::From(checkpoint.next_offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_resumption_is_complete() {
        let range = LogRange {
            origin: 10,
            start: 20,
            end: 30,
        };
        let at = |next_offset, chain| LogReply::At(Checkpoint { next_offset, chain });
        let check = |next_offset, chain| Resume::Check(Checkpoint { next_offset, chain });
        for (reply, expected) in [
            (LogReply::Absent, Resume::From(25)),
            (LogReply::Denied, Resume::Denied),
            (at(9, 7), Resume::Mismatch(Mismatch::BelowOrigin)),
            (at(10, 7), Resume::From(10)),
            (at(19, 7), Resume::From(19)),
            (at(20, 7), check(20, 7)),
            (at(20, 0), Resume::From(20)),
            (at(30, 7), check(30, 7)),
            (at(31, 7), Resume::Mismatch(Mismatch::BeyondEnd)),
        ] {
            assert_eq!(resume(&range, 25, reply), expected, "{reply:?}");
        }
        let trimmed = Resume::Mismatch(Mismatch::NotABoundary);
        assert_eq!(resume(&range, 15, at(19, 7)), trimmed);
        assert_eq!(resume(&range, 5, LogReply::Absent), Resume::From(10));
    }
}
