//! Consumer groups: who is a member, who reads which partition, and what was read. Plain code.
//!
//! The classic group protocol as Kafka's brokers speak it, with static members (KIP-345), member ids that
//! are known before they count (KIP-394), and offsets of programs that don't use groups otherwise. The
//! protocol of KIP-848 is not served.
//!
//! ```text
//!            join            all joined, or the          the leader's
//!  ┌───────┐ ┌───────────► ┌─────────┐ time is up ┌─────────┐ assignment ┌────────┐
//!  │ Empty ├─┘             │ Joining ├───────────►│ Syncing ├───────────►│ Stable │
//!  └───────┘ ◄───────────┐ └─────────┘            └────┬────┘            └───┬────┘
//!            nobody left │   ▲  ▲ a member joins, leaves, dies or changes    │
//!                        └───┘  └─────────────────┴──────────────────────────┘
//! ```
//! [`Coordinator`] takes requests, the time and the outcome of writes, and gives out answers and writes;
//! [`super::groups`] is the driver around it. Always true: a request gets exactly one answer; within a
//! generation there is one leader and one protocol that every member knows; a member's request with another
//! generation, or of a member that was replaced, changes nothing.
//!
//! **On disk** are committed offsets, and for how long a group was without members. A commit is answered, and
//! seen by others, after its write was synced. Who is a member is not kept: after a restart members find that
//! they are unknown, and join again. Time counts while the node runs only, so that a clock that jumps makes
//! nothing expire.
//!
//! **Bounds** are in [`Limits`]: groups, members, bytes of what members say about themselves, offsets and
//! their metadata. At a bound the request that would go beyond is refused, and nothing that is there suffers.

pub mod codec;
mod coordinator;
mod limits;
mod member;
mod membership;
mod messages;
mod offsets;
#[cfg(test)]
mod sim;
mod stored;
#[cfg(test)]
mod tests;

pub use coordinator::{Coordinator, Output, WriteId};
pub use limits::Limits;
pub use messages::{
    Answer, Caller, CommitAnswer, CommitEntry, CommitRequest, Described, DescribedMember,
    FetchAnswer, FetchRequest, FetchedOffset, JoinAnswer, JoinRequest, JoinedMember, LeaveAnswer,
    LeaveRequest, Leaving, ListRequest, Listed, MemberRef, Request, SyncAnswer, SyncRequest,
    Ticket, TopicEntries,
};
