//! `Fetch` 4 to 12: records out. Plain code; [`assemble`] reads the store through its port.
//!
//! There are no fetch sessions (KIP-227): the answer says session 0, so that clients name all their
//! partitions each time. Every stored record is committed: the last stable offset is the high watermark,
//! and the list of aborted transactions is empty.

mod answer;

use std::collections::BTreeSet;

pub use answer::{Assembled, Piece, Source, assemble, assemble_from_memory, refuse_session};
use shared::ids::Offset;

use super::codec::{Malformed, Reader};
use super::error::ErrorCode;

/// Topics, and partitions, in one request: more than any site has.
pub(super) const MAX_ENTRIES: usize = 10_000;
/// "None" in the place of an offset.
pub const NO_OFFSET: i64 = -1;
/// The only leader epoch that there ever was.
pub const LEADER_EPOCH: i32 = 0;
/// "I don't know" in the place of a leader epoch.
pub const NO_EPOCH: i32 = -1;

/// A request, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// How long to wait for `min_bytes`, ms.
    pub max_wait_ms: i32,
    /// Bytes of batches that are worth an answer.
    pub min_bytes: i32,
    /// Most bytes of batches.
    pub max_bytes: i32,
    /// Refers to a fetch session, and there are none.
    pub is_of_session: bool,
    /// What to read.
    pub topics: Vec<FetchTopic>,
    /// Topics among them that the user may not read.
    pub refused: BTreeSet<String>,
}

/// What to read of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopic {
    /// Its name, unchecked.
    pub name: String,
    /// What to read of its partitions.
    pub partitions: Vec<FetchPartition>,
}

/// What to read of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPartition {
    /// Its number.
    pub index: i32,
    /// The epoch that the client takes for the leader's.
    pub leader_epoch: i32,
    /// First offset wanted.
    pub offset: i64,
    /// Most bytes.
    pub max_bytes: i32,
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`].
pub fn decode(mut reader: Reader<'_>, version: i16) -> Result<FetchRequest, Malformed> {
    reader.i32()?; // replica: consumers say -1
    let max_wait_ms = reader.i32()?;
    let min_bytes = reader.i32()?;
    let max_bytes = reader.i32()?;
    reader.i8()?; // isolation level: both read the same here
    let mut is_of_session = false;
    if version >= 7 {
        reader.i32()?; // session
        // 0 asks for a session and -1 for none; all others belong to one (KIP-227)
        is_of_session = !matches!(reader.i32()?, 0 | -1);
    }
    let topics = decode_topics(&mut reader, version)?;
    if version >= 7 {
        decode_forgotten(&mut reader)?;
    }
    if version >= 11 {
        reader.string()?; // rack
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(FetchRequest {
        max_wait_ms,
        min_bytes,
        max_bytes,
        is_of_session,
        topics,
        refused: BTreeSet::new(),
    })
}

fn decode_topics(reader: &mut Reader<'_>, version: i16) -> Result<Vec<FetchTopic>, Malformed> {
    let mut entries = Entries::new();
    let topic_count = entries.enter(reader.array_len(3)?)?;
    let mut topics = Vec::with_capacity(topic_count);
    for _ in 0..topic_count {
        let name = reader.string()?.to_owned();
        let partition_count = entries.enter(reader.array_len(16)?)?;
        let mut partitions = Vec::with_capacity(partition_count);
        for _ in 0..partition_count {
            partitions.push(decode_partition(reader, version)?);
        }
        reader.skip_tags()?;
        topics.push(FetchTopic { name, partitions });
    }
    Ok(topics)
}

fn decode_partition(reader: &mut Reader<'_>, version: i16) -> Result<FetchPartition, Malformed> {
    let index = reader.i32()?;
    let leader_epoch = if version >= 9 {
        reader.i32()?
    } else {
        NO_EPOCH
    };
    let offset = reader.i64()?;
    if version >= 12 {
        reader.i32()?; // epoch of the last record: there is one only
    }
    if version >= 5 {
        reader.i64()?; // log start of a follower
    }
    let max_bytes = reader.i32()?;
    reader.skip_tags()?;
    Ok(FetchPartition {
        index,
        leader_epoch,
        offset,
        max_bytes,
    })
}

fn decode_forgotten(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    for _ in 0..reader.array_len(3)? {
        reader.string()?;
        for _ in 0..reader.array_len(4)? {
            reader.i32()?;
        }
        reader.skip_tags()?;
    }
    Ok(())
}

/// Counts what a request lists, over all its levels.
#[derive(Debug)]
pub(super) struct Entries(usize);

impl Entries {
    pub(super) const fn new() -> Self {
        Self(MAX_ENTRIES)
    }

    pub(super) fn enter(&mut self, count: usize) -> Result<usize, Malformed> {
        self.0 = self
            .0
            .checked_sub(count)
            .ok_or(Malformed("names too many things"))?;
        Ok(count)
    }
}

/// Holds an epoch that a client names against the only one there is (KIP-320).
///
/// # Errors
/// The error that the client is told.
pub fn check_epoch(epoch: i32) -> Result<(), ErrorCode> {
    match epoch {
        NO_EPOCH | LEADER_EPOCH => Ok(()),
        later if later > LEADER_EPOCH => Err(ErrorCode::UnknownLeaderEpoch),
        _ => Err(ErrorCode::FencedLeaderEpoch),
    }
}

/// An offset as Kafka writes it.
pub(super) fn as_i64(offset: Offset) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}
