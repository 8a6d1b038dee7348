//! `Produce`: decoded in versions 0 to 8, served from 3 on. Plain code.

use bytes::Bytes;

use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;
use crate::store::Appended;

/// Topics, and partitions, in one request: more than any site has.
const MAX_ENTRIES: usize = 10_000;

/// When the producer wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// Never: there is no response.
    None,
    /// After the sync: 1 and all are the same where there is one replica.
    Synced,
    /// A value that Kafka does not define.
    Invalid,
}

/// A request, decoded. Record batches are not looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct ProduceRequest<'a> {
    /// Present when the producer is transactional.
    pub transactional_id: Option<&'a str>,
    /// When to answer.
    pub acks: Acks,
    /// How long the client waits, ms.
    pub timeout_ms: i32,
    /// Records by topic.
    pub topics: Vec<TopicData<'a>>,
}

impl ProduceRequest<'_> {
    /// Bytes of all its batches.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let partitions = self.topics.iter().flat_map(|topic| &topic.partitions);
        let batches = partitions.filter_map(|(_, batch)| batch.as_ref());
        batches.map(Bytes::len).sum()
    }
}

/// The records for one topic.
#[derive(Debug, PartialEq, Eq)]
pub struct TopicData<'a> {
    /// Its name, unchecked.
    pub name: &'a str,
    /// Partition index and records as they came.
    pub partitions: Vec<(i32, Option<Bytes>)>,
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`].
pub fn decode(mut reader: Reader<'_>, version: i16) -> Result<ProduceRequest<'_>, Malformed> {
    let transactional_id = if version >= 3 {
        reader.nullable_string()?
    } else {
        None
    };
    let acks = match reader.i16()? {
        0 => Acks::None,
        1 | -1 => Acks::Synced,
        _ => Acks::Invalid,
    };
    let timeout_ms = reader.i32()?;
    let topics = decode_topics(&mut reader)?;
    reader.finish()?;
    Ok(ProduceRequest {
        transactional_id,
        acks,
        timeout_ms,
        topics,
    })
}

fn decode_topics<'a>(reader: &mut Reader<'a>) -> Result<Vec<TopicData<'a>>, Malformed> {
    let mut left = MAX_ENTRIES;
    let mut enter = |count: usize| match left.checked_sub(count) {
        None => Err(Malformed("too many topics or partitions")),
        Some(rest) => {
            left = rest;
            Ok(count)
        }
    };
    let topic_count = enter(reader.array_len(6)?)?;
    let mut topics = Vec::with_capacity(topic_count);
    for _ in 0..topic_count {
        let name = reader.string()?;
        let partition_count = enter(reader.array_len(8)?)?;
        let mut partitions = Vec::with_capacity(partition_count);
        for _ in 0..partition_count {
            partitions.push((reader.i32()?, reader.nullable_bytes()?));
        }
        topics.push(TopicData { name, partitions });
    }
    Ok(topics)
}

/// What became of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Synced.
    Stored(Appended),
    /// Refused; the text is for people.
    Refused(ErrorCode, String),
}

/// What became of one topic's batches.
#[derive(Debug)]
pub struct TopicOutcome {
    /// As in the request.
    pub name: String,
    /// Partition index and outcome, in the order of the request.
    pub partitions: Vec<(i32, Outcome)>,
}

/// Writes the response; the client is to wait so long before it sends more.
#[must_use]
pub fn encode(
    correlation: i32,
    version: i16,
    topics: &[TopicOutcome],
    throttle_ms: i32,
) -> Vec<u8> {
    let mut out = Writer::response(correlation);
    out.array_len(topics.len());
    for topic in topics {
        out.string(&topic.name);
        out.array_len(topic.partitions.len());
        for (index, outcome) in &topic.partitions {
            put_partition(&mut out, version, *index, outcome);
        }
    }
    if version >= 1 {
        out.i32(throttle_ms);
    }
    out.finish()
}

fn put_partition(out: &mut Writer, version: i16, index: i32, outcome: &Outcome) {
    let (error, base, log_start, text) = match outcome {
        Outcome::Stored(appended) => (
            ErrorCode::None,
            i64::try_from(appended.base_offset).expect("offsets stay below 2^63"),
            i64::try_from(appended.log_start).expect("offsets stay below 2^63"),
            None,
        ),
        Outcome::Refused(error, text) => (*error, -1, -1, Some(text.as_str())),
    };
    out.i32(index);
    out.i16(error.code());
    out.i64(base);
    if version >= 2 {
        out.i64(-1); // log append time: timestamps are the producer's
    }
    if version >= 5 {
        out.i64(log_start);
    }
    if version >= 8 {
        out.array_len(0); // errors of single records
        out.nullable_string(text);
    }
}
