//! Takes what sites send: accepts connections, runs one session a site, hands what came to the lanes.
//!
//! A site is who its certificate says; nothing in a message can change that. A bad frame ends the session
//! that sent it and touches no other. What a session may hold in memory is granted as credit from one
//! budget for the process: when Kafka is slow nothing is committed, no credit is given back, and sites
//! keep their records. What sites send is held to limits ([`limits`]); when many come back at once they are
//! let in one after the other ([`gate`]).

mod admission;
mod bucket;
mod budget;
mod endpoint;
mod gate;
mod ingress;
mod limits;
mod memories;
mod opener;
mod partial;
mod quiet;
mod session;
mod slow_start;
mod states;
mod tcp_door;

use std::sync::atomic::{AtomicU64, Ordering};

use shared::wire::{DataContent, GAP_OTHER_TRACK};

pub use budget::Budget;
pub use endpoint::{Intake, IntakeConfig};
pub use states::CodecStates;
pub use tcp_door::TcpDoor;

/// Counters of the intake, for metrics and status.
#[derive(Debug, Default)]
pub struct IntakeStats {
    /// Connections whose handshake succeeded.
    pub connections: AtomicU64,
    /// Connections refused: handshake, rules, or limits.
    pub refused: AtomicU64,
    /// Logs that were declared and not taken: no topic of the site's rule matches, or there were too many.
    pub refused_logs: AtomicU64,
    /// Sites told to come back later, because too many came at once or the lane did not answer.
    pub told_later: AtomicU64,
    /// Sessions ended because the peer broke the protocol or a limit.
    pub violations: AtomicU64,
    /// Bytes of data streams as they came.
    pub payload_bytes: AtomicU64,
    /// Records handed to lanes.
    pub records: AtomicU64,
    /// Gap ranges handed to lanes, in records.
    pub gap_records: AtomicU64,
    /// Logs that had to be sent again because what a codec remembered was lost.
    pub restarts: AtomicU64,
}

/// How full the intake is at the moment, for metrics and status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeLevels {
    /// Connections that wait for their handshake to begin, and those in it.
    pub handshakes: u64,
    /// Sites that wait to be let in.
    pub waiting: u64,
    /// Sites between hello and welcome.
    pub admitted: u64,
    /// Sites that are held by a limit.
    pub limited: u64,
    /// Bytes that came and are not committed.
    pub held_bytes: u64,
    /// Memory of the codecs of open sessions.
    pub codec_bytes: u64,
    /// Saved states in memory.
    pub codec_saved_bytes: u64,
    /// Saved states on disk.
    pub codec_disk_bytes: u64,
}

impl IntakeStats {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// A data stream of so many offsets came.
    fn take(&self, content: &DataContent, records: u64) {
        match content {
            DataContent::Records(_) => Self::add(&self.records, records),
            // the other track brings them
            DataContent::Gap {
                reason: GAP_OTHER_TRACK,
            } => {}
            DataContent::Gap { .. } => Self::add(&self.gap_records, records),
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::wire::GAP_NOT_AT_SITE;

    use super::*;

    #[test]
    fn what_the_other_track_brings_is_no_missing_record() {
        let stats = IntakeStats::default();
        for (reason, expected) in [(GAP_OTHER_TRACK, 0), (GAP_NOT_AT_SITE, 7)] {
            stats.take(&DataContent::Gap { reason }, 7);
            assert_eq!(stats.gap_records.load(Ordering::Relaxed), expected);
        }
        assert_eq!(stats.records.load(Ordering::Relaxed), 0);
    }
}
