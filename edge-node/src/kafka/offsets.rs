//! `ListOffsets` 1 to 7 and `OffsetForLeaderEpoch` 2 to 4. Plain code; the answers are read from the store
//! through its port.

use std::collections::BTreeSet;

use super::api::Header;
use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;
use super::fetch::{Entries, LEADER_EPOCH, NO_EPOCH, NO_OFFSET, as_i64, check_epoch};
use crate::store::{PartitionId, Store};

/// "The end of the log" in the place of a timestamp.
const LATEST: i64 = -1;
/// "The start of the log".
const EARLIEST: i64 = -2;
/// "The record with the largest timestamp" (KIP-734), from version 7 on.
const MAX_TIMESTAMP: i64 = -3;
/// "None" in the place of a timestamp.
const NO_TIMESTAMP: i64 = -1;

/// A question about some partitions of some topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question<T> {
    /// Topics by name, unchecked, and what is asked of their partitions.
    pub topics: Vec<(String, Vec<T>)>,
    /// Topics among them that the user may not know of.
    pub refused: BTreeSet<String>,
}

/// What `ListOffsets` asks of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtTime {
    /// Its number.
    pub index: i32,
    /// The epoch that the client takes for the leader's.
    pub leader_epoch: i32,
    /// ms since the epoch, or one of the special values.
    pub timestamp: i64,
}

/// What `OffsetForLeaderEpoch` asks of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    /// Its number.
    pub index: i32,
    /// The epoch that the client takes for the leader's.
    pub current_epoch: i32,
    /// The epoch whose end is asked for.
    pub epoch: i32,
}

/// Reads a `ListOffsets` request.
///
/// # Errors
/// [`Malformed`].
pub fn decode_at_time(mut reader: Reader<'_>, version: i16) -> Result<Question<AtTime>, Malformed> {
    reader.i32()?; // replica: consumers say -1
    if version >= 2 {
        reader.i8()?; // isolation level: both see the same here
    }
    let question = decode_topics(&mut reader, 12, |reader| {
        Ok(AtTime {
            index: reader.i32()?,
            leader_epoch: if version >= 4 {
                reader.i32()?
            } else {
                NO_EPOCH
            },
            timestamp: reader.i64()?,
        })
    })?;
    reader.skip_tags()?;
    reader.finish()?;
    Ok(question)
}

/// Reads an `OffsetForLeaderEpoch` request.
///
/// # Errors
/// [`Malformed`].
pub fn decode_epoch_end(
    mut reader: Reader<'_>,
    version: i16,
) -> Result<Question<EpochEnd>, Malformed> {
    if version >= 3 {
        reader.i32()?; // replica: consumers say -1
    }
    let question = decode_topics(&mut reader, 12, |reader| {
        Ok(EpochEnd {
            index: reader.i32()?,
            current_epoch: reader.i32()?,
            epoch: reader.i32()?,
        })
    })?;
    reader.skip_tags()?;
    reader.finish()?;
    Ok(question)
}

fn decode_topics<T>(
    reader: &mut Reader<'_>,
    min_bytes: usize,
    decode: impl Fn(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Question<T>, Malformed> {
    let mut entries = Entries::new();
    let topic_count = entries.enter(reader.array_len(3)?)?;
    let mut topics = Vec::with_capacity(topic_count);
    for _ in 0..topic_count {
        let name = reader.string()?.to_owned();
        let partition_count = entries.enter(reader.array_len(min_bytes)?)?;
        let mut partitions = Vec::with_capacity(partition_count);
        for _ in 0..partition_count {
            partitions.push(decode(reader)?);
            reader.skip_tags()?;
        }
        reader.skip_tags()?;
        topics.push((name, partitions));
    }
    Ok(Question {
        topics,
        refused: BTreeSet::new(),
    })
}

/// Answers a `ListOffsets` request. Blocks for the disk.
#[must_use]
pub fn answer_at_time(store: &dyn Store, header: &Header, asked: &Question<AtTime>) -> Vec<u8> {
    let version = header.version;
    let mut out = Writer::reply(header);
    if version >= 2 {
        out.i32(0); // throttle time
    }
    put_topics(store, &mut out, asked, |out, id_of, asked| {
        let found = find(store, id_of, asked, version);
        let (error, timestamp, offset, epoch) = match found {
            Ok(Found { timestamp, offset }) => (ErrorCode::None, timestamp, offset, LEADER_EPOCH),
            Err(error) => (error, NO_TIMESTAMP, NO_OFFSET, NO_EPOCH),
        };
        out.i32(asked.index);
        out.i16(error.code());
        out.i64(timestamp);
        out.i64(offset);
        if version >= 4 {
            out.i32(if offset == NO_OFFSET { NO_EPOCH } else { epoch });
        }
    });
    out.tags();
    out.finish()
}

fn put_topics<T>(
    store: &dyn Store,
    out: &mut Writer,
    asked: &Question<T>,
    put: impl Fn(&mut Writer, IdOf<'_>, &T),
) {
    out.array_len(asked.topics.len());
    for (name, partitions) in &asked.topics {
        let topic = store.topic(name);
        let is_refused = asked.refused.contains(name);
        let id_of = |index: i32| {
            if is_refused {
                return Err(ErrorCode::TopicAuthorizationFailed);
            }
            let index = usize::try_from(index).ok();
            let id = topic.as_ref().zip(index);
            id.and_then(|(topic, index)| topic.partitions.get(index).copied())
                .ok_or(ErrorCode::UnknownTopicOrPartition)
        };
        out.string(name);
        out.array_len(partitions.len());
        for partition in partitions {
            put(out, &id_of, partition);
            out.tags();
        }
        out.tags();
    }
}

/// Finds a topic's partition by number.
type IdOf<'a> = &'a dyn Fn(i32) -> Result<PartitionId, ErrorCode>;

struct Found {
    timestamp: i64,
    offset: i64,
}

fn find(
    store: &dyn Store,
    id_of: IdOf<'_>,
    asked: &AtTime,
    version: i16,
) -> Result<Found, ErrorCode> {
    let id = id_of(asked.index)?;
    check_epoch(asked.leader_epoch)?;
    let range = store.range(id).map_err(|error| ErrorCode::from(&error))?;
    let at = |offset| Found {
        timestamp: NO_TIMESTAMP,
        offset: as_i64(offset),
    };
    let by_time = match asked.timestamp {
        LATEST => return Ok(at(range.end)),
        EARLIEST => return Ok(at(range.first)),
        MAX_TIMESTAMP if version >= 7 => store.largest_timestamp(id),
        timestamp if timestamp >= 0 => store.offset_for_time(id, timestamp),
        _ => return Err(ErrorCode::UnsupportedVersion),
    };
    let by_time = by_time.map_err(|error| ErrorCode::from(&error))?;
    Ok(by_time.map_or(
        Found {
            timestamp: NO_TIMESTAMP,
            offset: NO_OFFSET,
        },
        |moment| Found {
            timestamp: moment.timestamp_ms,
            offset: as_i64(moment.offset),
        },
    ))
}

/// Answers an `OffsetForLeaderEpoch` request.
#[must_use]
pub fn answer_epoch_end(store: &dyn Store, header: &Header, asked: &Question<EpochEnd>) -> Vec<u8> {
    let mut out = Writer::reply(header);
    out.i32(0); // throttle time
    put_topics(store, &mut out, asked, |out, id_of, asked| {
        let (error, epoch, end) = match end_of(store, id_of, asked) {
            Ok(Some(end)) => (ErrorCode::None, LEADER_EPOCH, end),
            Ok(None) => (ErrorCode::None, NO_EPOCH, NO_OFFSET),
            Err(error) => (error, NO_EPOCH, NO_OFFSET),
        };
        out.i16(error.code());
        out.i32(asked.index);
        out.i32(epoch);
        out.i64(end);
    });
    out.tags();
    out.finish()
}

fn end_of(store: &dyn Store, id_of: IdOf<'_>, asked: &EpochEnd) -> Result<Option<i64>, ErrorCode> {
    let id = id_of(asked.index)?;
    check_epoch(asked.current_epoch)?;
    let range = store.range(id).map_err(|error| ErrorCode::from(&error))?;
    Ok((asked.epoch == LEADER_EPOCH).then(|| as_i64(range.end)))
}
