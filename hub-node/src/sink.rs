//! The central cluster as a lane needs it: a transactional producer, the lane's stored checkpoints, and
//! what is known of destination topics.
//!
//! The port is blocking on purpose: librdkafka's transaction calls are, and a lane makes them from its own
//! blocking step. Two implementations pass the same contract suite: [`kafka`] and the in-memory
//! [`memory`], a truthful model of transactions, isolation and fencing.

pub mod kafka;
pub mod mapping;
pub mod memory;

mod errors;

use std::sync::Arc;

use shared::record::{Header, HeaderIter};

/// The cluster: where lanes come from.
pub trait Cluster: Send + Sync + 'static {
    /// One lane's access.
    type Lane: LaneSink;

    /// Makes sure that the checkpoint topic is there; says into how many lanes it splits the sites.
    ///
    /// # Errors
    /// [`SinkError`]; to be tried again unless it is [`SinkError::Refused`].
    fn prepare(&self) -> Result<u32, SinkError>;

    /// Access to one lane; nothing is taken over yet.
    fn lane(&self, lane: u32) -> Self::Lane;
}

/// One lane's producer. Whoever acquires a lane fences everybody who acquired it before.
pub trait LaneSink: Send + 'static {
    /// Throws the old producer away and makes one under the lane's transactional id: that settles what
    /// its predecessors left open and fences them. Then writes the claim and reads the lane's partition
    /// from its start up to the claim: `read` gets the committed records in order.
    ///
    /// # Errors
    /// [`SinkError`]: the lane is not acquired.
    fn acquire(
        &mut self,
        claim: (&[u8], &[u8]),
        read: &mut dyn FnMut(&[u8], Option<&[u8]>),
    ) -> Result<(), SinkError>;

    /// What is known of a topic, which is created where policy says so.
    ///
    /// # Errors
    /// [`DestinationError`].
    fn destination(&mut self, topic: &str) -> Result<Arc<Destination>, DestinationError>;

    /// Opens a transaction.
    ///
    /// # Errors
    /// [`SinkError`].
    fn begin(&mut self) -> Result<(), SinkError>;

    /// Hands in a record; `tag` comes back when the cluster refuses it. Returns before it is delivered.
    ///
    /// # Errors
    /// [`ProduceError`].
    fn produce(&mut self, tag: usize, record: &OutRecord<'_>) -> Result<(), ProduceError>;

    /// Hands in a record for the lane's partition of the checkpoint topic.
    ///
    /// # Errors
    /// [`SinkError`].
    fn store(&mut self, key: &[u8], value: &[u8]) -> Result<(), SinkError>;

    /// Waits until the cluster has answered for every record of the transaction; the records that it
    /// refused. When there are any, the transaction can only be aborted.
    ///
    /// # Errors
    /// [`SinkError`].
    fn settle(&mut self) -> Result<Vec<Refusal>, SinkError>;

    /// Commits what is settled.
    ///
    /// # Errors
    /// [`SinkError`]: whether it is committed is not known, except after [`SinkError::Fenced`].
    fn commit(&mut self) -> Result<CommitEnd, SinkError>;

    /// Aborts the transaction.
    ///
    /// # Errors
    /// [`SinkError`]: the producer cannot go on.
    fn abort(&mut self) -> Result<(), SinkError>;

    /// From the next `acquire` on: send each record alone, so that a refusal names its culprit.
    fn send_alone(&mut self, alone: bool);

    /// Throws the producer away.
    fn release(&mut self);
}

/// What a committed transaction means for its producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitEnd {
    /// The next transaction may begin.
    GoOn,
    /// Something of this one may still be under way and would end the next: acquire the lane anew.
    Reacquire,
}

/// A record on its way out.
#[derive(Debug, Clone)]
pub struct OutRecord<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition, below the destination's count.
    pub partition: u32,
    /// Null when absent.
    pub key: Option<&'a [u8]>,
    /// Null when absent.
    pub value: Option<&'a [u8]>,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The record's own headers, first.
    pub headers: Option<HeaderIter<'a>>,
    /// The hub's headers, after them.
    pub marks: &'a [Header<'a>],
}

/// What the hub must know of a topic before it writes to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Number of partitions, at least one.
    pub partitions: u32,
    /// The broker's limit for a batch, and so for a record that is alone in one.
    pub max_batch_bytes: usize,
    /// Records without a key are refused.
    pub is_compacted: bool,
    /// How far before the broker's clock a timestamp may lie, ms; absent: any.
    pub max_timestamp_behind_ms: Option<u64>,
    /// How far ahead of it.
    pub max_timestamp_ahead_ms: Option<u64>,
    /// Records with timestamps further back are deleted at the next retention check; absent: they stay.
    pub max_age_ms: Option<u64>,
}

/// Why a record can never enter its topic. The codes are written into dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Larger than the topic accepts.
    TooLarge,
    /// A compacted topic needs keys.
    NoKey,
    /// The broker's validation failed.
    InvalidRecord,
    /// Too far from the broker's clock.
    InvalidTimestamp,
    /// The topic does not exist and is not to be created.
    UnknownTopic,
    /// The template gives a name that Kafka does not accept.
    InvalidTopic,
    /// The hub may not write to the topic.
    NotAuthorized,
}

impl Reason {
    /// The word in a dead letter's `kedge.reason`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::NoKey => "no-key",
            Self::InvalidRecord => "invalid-record",
            Self::InvalidTimestamp => "invalid-timestamp",
            Self::UnknownTopic => "unknown-topic",
            Self::InvalidTopic => "invalid-topic",
            Self::NotAuthorized => "not-authorized",
        }
    }
}

/// A record that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// As given to [`LaneSink::produce`].
    pub tag: usize,
    /// Why; absent when the topic must be looked up again before anything is said about the record.
    pub reason: Option<Reason>,
    /// False when it shared a batch with others and may be innocent.
    pub is_certain: bool,
}

/// Why a topic cannot be written to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// For good, as far as the hub can tell.
    #[error("topic refused: {}", .0.code())]
    Refused(Reason),
    /// The cluster does not answer; to be tried again.
    #[error("topic unavailable: {0}")]
    Unavailable(String),
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// It alone, and for good; the transaction goes on.
    #[error("record refused: {}", .0.code())]
    Refused(Reason),
    /// The transaction is lost.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

/// What a lane does next after a failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// Another hub acquired the lane: step down.
    #[error("another hub has taken the lane")]
    Fenced,
    /// Nothing is committed: abort and try again with the same producer.
    #[error("transaction must be aborted: {0}")]
    Abortable(String),
    /// The outcome is not known, or the producer is broken: acquire the lane anew.
    #[error("outcome not known: {0}")]
    Unknown(String),
    /// As before, and a person must act: configuration or rights.
    #[error("refused by the cluster: {0}")]
    Refused(String),
}
