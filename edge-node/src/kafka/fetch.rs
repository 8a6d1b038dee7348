//! `Fetch` 4 to 12: records out. Plain code; [`assemble`] reads the store through its port.
//!
//! There are no fetch sessions (KIP-227): the answer says session 0, so that clients name all their
//! partitions each time. Every stored record is committed: the last stable offset is the high watermark,
//! and the list of aborted transactions is empty.

use std::collections::BTreeSet;

use shared::ids::Offset;

use super::api::Header;
use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;
use crate::store::{FetchLimit, Fetched, LogRange, PartitionId, Store};

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

/// A response, and what is needed to know whether it is worth sending.
#[derive(Debug)]
pub struct Assembled {
    /// The response.
    pub bytes: Vec<u8>,
    /// Where its throttle time stands.
    throttle_at: usize,
    /// Bytes of batches in it.
    pub data_bytes: usize,
    /// A partition was refused.
    pub has_error: bool,
    /// There is more than the limits allow.
    pub has_more: bool,
    /// The logs that were read, as they were.
    pub logs: Vec<(PartitionId, LogRange)>,
}

impl Assembled {
    /// Tells the client to wait before it asks for more.
    pub fn set_throttle(&mut self, throttle_ms: i32) {
        let field = self.bytes.get_mut(self.throttle_at..self.throttle_at + 4);
        if let Some(field) = field {
            field.copy_from_slice(&throttle_ms.to_be_bytes());
        }
    }

    /// Whether it is to be sent although there is time to wait for more.
    #[must_use]
    pub fn is_worth(&self, min_bytes: usize) -> bool {
        let is_for_nothing = self.logs.is_empty();
        self.has_error || self.has_more || is_for_nothing || self.data_bytes >= min_bytes
    }
}

/// Puts the response together, with batches as far as `limit` allows. Blocks for the disk.
#[must_use]
pub fn assemble(
    store: &dyn Store,
    header: &Header,
    request: &FetchRequest,
    limit: FetchLimit,
) -> Assembled {
    let mut out = Writer::reply(header);
    let throttle_at = out.position();
    put_head(&mut out, header.version, ErrorCode::None);
    let mut assembly = Assembly {
        store,
        version: header.version,
        limit,
        data_bytes: 0,
        has_error: false,
        has_more: false,
        logs: Vec::new(),
    };
    out.array_len(request.topics.len());
    for topic in &request.topics {
        let known = if request.refused.contains(&topic.name) {
            Err(ErrorCode::TopicAuthorizationFailed)
        } else {
            let known = store.topic(&topic.name);
            known.ok_or(ErrorCode::UnknownTopicOrPartition)
        };
        out.string(&topic.name);
        out.array_len(topic.partitions.len());
        for wanted in &topic.partitions {
            let id = known.as_ref().map_err(|error| *error).and_then(|topic| {
                let index = usize::try_from(wanted.index).ok();
                let id = index.and_then(|index| topic.partitions.get(index).copied());
                id.ok_or(ErrorCode::UnknownTopicOrPartition)
            });
            assembly.put_partition(&mut out, id, wanted);
            out.tags();
        }
        out.tags();
    }
    out.tags();
    Assembled {
        bytes: out.finish(),
        throttle_at,
        data_bytes: assembly.data_bytes,
        has_error: assembly.has_error,
        has_more: assembly.has_more,
        logs: assembly.logs,
    }
}

/// The answer to a request that refers to a fetch session.
#[must_use]
pub fn refuse_session(header: &Header) -> Vec<u8> {
    let mut out = Writer::reply(header);
    put_head(&mut out, header.version, ErrorCode::FetchSessionIdNotFound);
    out.array_len(0);
    out.tags();
    out.finish()
}

fn put_head(out: &mut Writer, version: i16, error: ErrorCode) {
    out.i32(0); // throttle time
    if version >= 7 {
        out.i16(error.code());
        out.i32(0); // session
    }
}

struct Assembly<'a> {
    store: &'a dyn Store,
    version: i16,
    /// What is left of it.
    limit: FetchLimit,
    data_bytes: usize,
    has_error: bool,
    has_more: bool,
    logs: Vec<(PartitionId, LogRange)>,
}

impl Assembly<'_> {
    fn put_partition(
        &mut self,
        out: &mut Writer,
        id: Result<PartitionId, ErrorCode>,
        wanted: &FetchPartition,
    ) {
        out.i32(wanted.index);
        // what is known once the records are read stands before them
        let error_at = out.position();
        out.i16(ErrorCode::None.code());
        let ends_at = out.position();
        out.i64(NO_OFFSET); // high watermark
        out.i64(NO_OFFSET); // last stable offset
        if self.version >= 5 {
            out.i64(NO_OFFSET); // log start
        }
        out.array_len(0); // aborted transactions
        if self.version >= 11 {
            out.i32(-1); // no replica is nearer
        }
        match out.records(|bytes| self.read(id, wanted, bytes)) {
            Ok(range) => {
                let (start, end) = (as_i64(range.first), as_i64(range.end));
                out.set_i64(ends_at, end);
                out.set_i64(ends_at + 8, end);
                if self.version >= 5 {
                    out.set_i64(ends_at + 16, start);
                }
            }
            Err(error) => {
                self.has_error = true;
                out.set_i16(error_at, error.code());
            }
        }
    }

    fn read(
        &mut self,
        id: Result<PartitionId, ErrorCode>,
        wanted: &FetchPartition,
        bytes: &mut Vec<u8>,
    ) -> Result<LogRange, ErrorCode> {
        let id = id?;
        check_epoch(wanted.leader_epoch)?;
        let from = u64::try_from(wanted.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
        let limit = FetchLimit {
            bytes: usize::try_from(wanted.max_bytes)
                .unwrap_or(0)
                .min(self.limit.bytes),
            ..self.limit
        };
        let before = bytes.len();
        let is_full = limit.bytes == 0 && !limit.is_first_whole;
        let fetched = if is_full {
            let range = self.store.range(id);
            range.map(|range| Fetched { range, next: from })
        } else {
            self.store.fetch(id, from, limit, bytes)
        };
        let fetched = fetched.map_err(|error| {
            bytes.truncate(before);
            ErrorCode::from(&error)
        })?;
        let range = fetched.range;
        if from < range.start || from > range.end {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        let appended = bytes.len() - before;
        // what comes next has no room: nor is it looked for in other logs
        let is_stuck =
            fetched.next < range.end && !limit.is_first_whole && limit.bytes == self.limit.bytes;
        self.limit.bytes = self.limit.bytes.saturating_sub(appended);
        if is_stuck {
            self.limit.bytes = 0;
        }
        // the first batch of all may exceed the limits, the others may not
        self.limit.is_first_whole &= appended == 0;
        self.data_bytes += appended;
        self.has_more |= fetched.next < range.end;
        self.logs.push((id, range));
        Ok(range)
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
