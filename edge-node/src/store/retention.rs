//! What must go to make room for an append: decided here, carried out by the draft.
//!
//! ```text
//! fits ──────────────────────────────► append
//! over a limit ─► acknowledged records of the topic, then of the node, go first
//!              └► only unsent ones left: backpressure refuses, drop-oldest drops the topic's oldest,
//!                 drop-newest drops the batch itself
//! ```

use super::OnFull;

/// Bytes that go at once while the disk is low.
pub(super) const RELIEF_BYTES: u64 = 32 << 20;
/// Less than this is left to the next sweep: deletion comes in few large ranges.
pub(super) const RELIEF_STEP: u64 = 1 << 20;

/// Logical bytes in use and their limits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) topic: u64,
    pub(super) topic_acked: u64,
    pub(super) topic_limit: Option<u64>,
    pub(super) node: u64,
    pub(super) node_acked: u64,
    pub(super) node_limit: Option<u64>,
    /// The file system has less free space than it should.
    pub(super) is_disk_low: bool,
}

/// Whose acknowledged records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Topic,
    Node,
}

/// The next thing to do for an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Append,
    FreeAcked(Scope, u64),
    DropOldest(u64),
    DropNewest,
    Refuse(&'static str),
}

/// Says what to do next for `incoming` bytes. `is_stuck`: the step before freed nothing.
pub(super) fn next_step(usage: &Usage, incoming: u64, on_full: OnFull, is_stuck: bool) -> Step {
    let topic_excess = excess(usage.topic, incoming, usage.topic_limit);
    let node_excess = excess(usage.node, incoming, usage.node_limit);
    let fits = topic_excess == 0 && node_excess == 0;
    if fits && !usage.is_disk_low {
        return Step::Append;
    }
    let can_ever_fit = [usage.topic_limit, usage.node_limit]
        .into_iter()
        .flatten()
        .all(|limit| incoming <= limit);
    if !is_stuck && can_ever_fit {
        if topic_excess > 0 && usage.topic_acked > 0 {
            let slack = slack(usage.topic_limit);
            return Step::FreeAcked(Scope::Topic, topic_excess + slack);
        }
        if node_excess > 0 && usage.node_acked > 0 {
            let slack = slack(usage.node_limit);
            return Step::FreeAcked(Scope::Node, node_excess + slack);
        }
    }
    if usage.is_disk_low && !is_stuck && usage.node_acked >= RELIEF_STEP {
        return Step::FreeAcked(Scope::Node, RELIEF_BYTES);
    }
    match on_full {
        OnFull::DropNewest => Step::DropNewest,
        OnFull::DropOldest if !fits && !is_stuck && can_ever_fit && usage.topic > 0 => {
            let limit = if topic_excess >= node_excess {
                usage.topic_limit
            } else {
                usage.node_limit
            };
            Step::DropOldest(topic_excess.max(node_excess) + slack(limit))
        }
        OnFull::Backpressure | OnFull::DropOldest => {
            Step::Refuse(reason(topic_excess, node_excess))
        }
    }
}

/// Bytes by which a topic is over its limit, and some more so that deletion comes in few large ranges.
pub(super) fn excess_of(used: u64, limit: Option<u64>) -> Option<u64> {
    let excess = excess(used, 0, limit);
    (excess > 0).then(|| excess + slack(limit))
}

fn reason(topic_excess: u64, node_excess: u64) -> &'static str {
    if topic_excess > 0 {
        "the topic is at its byte limit and nothing may be deleted"
    } else if node_excess > 0 {
        super::QUOTA_FULL
    } else {
        super::DISK_LOW
    }
}

fn excess(used: u64, incoming: u64, limit: Option<u64>) -> u64 {
    limit.map_or(0, |limit| {
        used.saturating_add(incoming).saturating_sub(limit)
    })
}

/// A range delete for each megabyte or so: small limits take larger shares.
fn slack(limit: Option<u64>) -> u64 {
    limit.map_or(0, |limit| (limit / 64).max((limit / 8).min(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_records_go_first_then_the_topic_decides() {
        let usage = Usage {
            topic: 90,
            topic_acked: 40,
            topic_limit: Some(100),
            node: 500,
            node_acked: 100,
            node_limit: Some(600),
            is_disk_low: false,
        };
        for on_full in [OnFull::Backpressure, OnFull::DropOldest, OnFull::DropNewest] {
            assert_eq!(next_step(&usage, 10, on_full, false), Step::Append);
            let freed = Step::FreeAcked(Scope::Topic, 22);
            assert_eq!(next_step(&usage, 20, on_full, false), freed);
        }
        let unsent = Usage {
            topic_acked: 0,
            ..usage
        };
        assert!(matches!(
            next_step(&unsent, 20, OnFull::Backpressure, false),
            Step::Refuse(_)
        ));
        assert_eq!(
            next_step(&unsent, 20, OnFull::DropOldest, false),
            Step::DropOldest(22)
        );
        assert_eq!(
            next_step(&unsent, 20, OnFull::DropNewest, false),
            Step::DropNewest
        );
        assert!(matches!(
            next_step(&unsent, 20, OnFull::DropOldest, true),
            Step::Refuse(_)
        ));
    }

    #[test]
    fn the_nodes_quota_takes_acknowledged_records_of_any_topic() {
        let usage = Usage {
            topic: 10,
            node: 600,
            node_acked: 100,
            node_limit: Some(600),
            ..Usage::default()
        };
        let step = next_step(&usage, 10, OnFull::Backpressure, false);
        assert_eq!(step, Step::FreeAcked(Scope::Node, 85));
        let stuck = next_step(&usage, 10, OnFull::Backpressure, true);
        assert!(matches!(stuck, Step::Refuse(_)));
    }

    #[test]
    fn nothing_is_dropped_for_a_batch_that_never_fits_or_a_disk_that_others_fill() {
        let usage = Usage {
            topic: 90,
            topic_acked: 9,
            topic_limit: Some(100),
            ..Usage::default()
        };
        assert!(matches!(
            next_step(&usage, 101, OnFull::DropOldest, false),
            Step::Refuse(_)
        ));
        assert_eq!(
            next_step(&usage, 101, OnFull::DropNewest, false),
            Step::DropNewest
        );
        let low = Usage {
            is_disk_low: true,
            ..usage
        };
        assert!(matches!(
            next_step(&low, 1, OnFull::DropOldest, false),
            Step::Refuse(_)
        ));
        let acked = Usage {
            node_acked: RELIEF_STEP,
            ..low
        };
        let freed = Step::FreeAcked(Scope::Node, RELIEF_BYTES);
        assert_eq!(next_step(&acked, 1, OnFull::Backpressure, false), freed);
        let stuck = next_step(&acked, 1, OnFull::Backpressure, true);
        assert!(matches!(stuck, Step::Refuse(_)));
    }
}
