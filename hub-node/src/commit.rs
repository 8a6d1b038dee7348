//! The exactly-once story: what sites sent and their checkpoints go into one Kafka transaction.
//!
//! A lane is a shard of sites: one transactional producer and one partition of the compacted checkpoint
//! topic. Sessions hand what they received to their site's lane; the lane puts what several sites sent
//! into one transaction together with their checkpoints, commits, and only then tells the sessions, which
//! acknowledge to the sites. After an outcome that is not known the producer is thrown away and the lane
//! goes on from its committed checkpoints with the batches that it still holds.

mod aged;
mod backoff;
pub mod checkpoint;
mod config;
mod counters;
mod dead_letter;
mod driver;
mod health;
#[cfg(test)]
mod kafka_tests;
mod lanes;
mod machine;
mod pace;
mod queue;
mod room;
mod sending;
#[cfg(test)]
mod shares;
#[cfg(test)]
mod sim;
mod transact;

pub use checkpoint::LogKey;
pub use config::{CommitConfig, TopicPolicy};
pub use counters::Counters;
pub use health::{Health, Trouble};
pub use lanes::{LaneHandle, LaneRouter, Lanes, StartError};
pub use room::{Hold, Room, RoomShare};
pub use shared::batch::Block;

use std::sync::Arc;

use shared::ids::{Incarnation, Offset, SiteId, TopicPartition};
use tokio::sync::{mpsc, oneshot};

/// What the central cluster holds of one log: everything before `next_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The next offset that the cluster does not hold yet.
    pub next_offset: Offset,
    /// The site's history up to there, as the site's store computed it.
    pub chain: u64,
}

/// A session's number, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What a delivery carries.
#[derive(Debug, Clone)]
pub enum Content {
    /// Records; those below the checkpoint are skipped.
    Records(Vec<Block>),
    /// The site dropped this range by policy; the reason is `edge-node`'s gap reason byte.
    Gap { reason: u8 },
}

/// One step of one log: it moves the checkpoint from `base_offset` to `next.next_offset`.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Which log.
    pub log: TopicPartition,
    /// Where it starts.
    pub base_offset: Offset,
    /// The checkpoint once it is committed.
    pub next: Checkpoint,
    /// The records, or a gap.
    pub content: Content,
    /// Bytes that it holds in memory, for the budgets.
    pub bytes: usize,
    /// Its place in the lane's queue, when somebody counts.
    pub hold: Option<Arc<Hold>>,
}

/// A lane's word to a session.
#[derive(Debug, Clone)]
pub enum LaneEvent {
    /// The transaction committed: these checkpoints hold.
    Committed(Vec<(TopicPartition, Checkpoint)>),
    /// The session must end: another took its place, or the lane went to another hub.
    Ended(EndReason),
}

/// Why a lane ends a session or refuses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The same site opened another session.
    Superseded,
    /// Another hub fenced this lane.
    Fenced,
    /// A delivery did not follow on the one before it, or its history is not the committed one.
    OutOfOrder,
    /// A delivery holds records that cannot be read.
    Malformed,
    /// The committed checkpoint of one of its logs cannot be read: a person must look.
    Damaged,
    /// The hub is stopping.
    Stopping,
}

/// A session's wish to the lane of its site.
#[derive(Debug)]
pub enum LaneRequest {
    /// Opens the site's session; a session that the site had before is ended. What that one handed in
    /// is still committed, it crossed the link after all; the answer comes when nothing of it is left,
    /// so that the checkpoints asked for next include it. The asker gives up with `Detach`.
    Attach {
        site: SiteId,
        incarnation: Incarnation,
        session: SessionId,
        /// Bounded; the lane never waits for it: a session that does not read is ended, without a word.
        events: mpsc::Sender<LaneEvent>,
        reply: oneshot::Sender<Result<(), EndReason>>,
    },
    /// Asks for the checkpoints of logs (absent: the cluster holds nothing of it).
    Checkpoints {
        session: SessionId,
        logs: Vec<TopicPartition>,
        reply: oneshot::Sender<Result<Vec<Option<Checkpoint>>, EndReason>>,
    },
    /// The next step of one of the session's logs. In order per log.
    Deliver {
        session: SessionId,
        delivery: Delivery,
    },
    /// The session ended. What it handed in is still committed.
    Detach { session: SessionId },
}
