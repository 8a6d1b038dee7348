//! `OffsetCommit` 2-8, `OffsetFetch` 1-8, `FindCoordinator` 0-4.

use std::collections::BTreeSet;

use super::super::messages::{
    CommitAnswer, CommitEntry, CommitRequest, FetchAnswer, FetchRequest, FetchedOffset,
    TopicEntries,
};
use super::members::member;
use super::{MAX_ENTRIES, bounded, by_topic, error, texts, throttle};
use crate::kafka::api::Header;
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;

/// Reads `OffsetCommit`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_commit(mut reader: Reader<'_>, version: i16) -> Result<CommitRequest, Malformed> {
    let who = member(&mut reader, version >= 7)?;
    if version <= 4 {
        reader.i64()?; // how long to keep it: the node's setting holds
    }
    let count = reader.array_len(5)?;
    let topics = by_topic(&mut reader, count, |reader| {
        let (partition, offset) = (reader.i32()?, reader.i64()?);
        let leader_epoch = if version >= 6 { reader.i32()? } else { -1 };
        let metadata = reader.nullable_string()?.unwrap_or_default().to_owned();
        reader.skip_tags()?;
        Ok(CommitEntry {
            partition,
            offset,
            leader_epoch,
            metadata,
            refused: None,
        })
    })?;
    reader.skip_tags()?;
    reader.finish()?;
    Ok(CommitRequest { who, topics })
}

pub(super) fn encode_commit(out: &mut Writer, version: i16, answer: &CommitAnswer) {
    throttle(out, version >= 3);
    put_codes(out, &answer.topics);
    out.tags();
}

pub(super) fn put_codes(out: &mut Writer, topics: &TopicEntries<(i32, ErrorCode)>) {
    out.array_len(topics.len());
    for (topic, partitions) in topics {
        out.string(topic);
        out.array_len(partitions.len());
        for (partition, code) in partitions {
            out.i32(*partition);
            error(out, *code);
            out.tags();
        }
        out.tags();
    }
}

/// Reads `OffsetFetch`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_fetch(mut reader: Reader<'_>, version: i16) -> Result<FetchRequest, Malformed> {
    let mut groups = Vec::new();
    if version >= 8 {
        let mut left = MAX_ENTRIES;
        let mut named = BTreeSet::new();
        for _ in 0..bounded(reader.array_len(2)?)? {
            let group = reader.string()?.to_owned();
            // null topics ask for all: a few bytes must not ask for that again and again
            if !named.insert(group.clone()) {
                return Err(Malformed("names a group twice"));
            }
            let topics = asked_partitions(&mut reader)?;
            reader.skip_tags()?;
            let asked = topics
                .iter()
                .flatten()
                .map(|(_, partitions)| partitions.len());
            left = left
                .checked_sub(asked.sum::<usize>())
                .ok_or(Malformed("too many partitions"))?;
            groups.push((group, topics));
        }
    } else {
        let group = reader.string()?.to_owned();
        groups.push((group, asked_partitions(&mut reader)?));
    }
    if version >= 7 {
        reader.bool()?; // only stable offsets: there are no transactions, all are
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(FetchRequest { groups })
}

fn asked_partitions(reader: &mut Reader<'_>) -> Result<Option<Vec<(String, Vec<i32>)>>, Malformed> {
    let Some(count) = reader.nullable_array(2)? else {
        return Ok(None);
    };
    by_topic(reader, count, Reader::i32).map(Some)
}

pub(super) fn encode_fetch(out: &mut Writer, version: i16, answer: &FetchAnswer) {
    throttle(out, version >= 3);
    if version >= 8 {
        out.array_len(answer.groups.len());
        for (group, code, topics) in &answer.groups {
            out.string(group);
            put_offsets(out, version, topics);
            error(out, *code);
            out.tags();
        }
    } else if let Some((_, code, topics)) = answer.groups.first() {
        put_offsets(out, version, topics);
        if version >= 2 {
            error(out, *code);
        }
    }
    out.tags();
}

fn put_offsets(out: &mut Writer, version: i16, topics: &TopicEntries<FetchedOffset>) {
    out.array_len(topics.len());
    for (topic, partitions) in topics {
        out.string(topic);
        out.array_len(partitions.len());
        for found in partitions {
            out.i32(found.partition);
            out.i64(found.offset);
            if version >= 5 {
                out.i32(found.leader_epoch);
            }
            out.string(&found.metadata);
            error(out, found.error);
            out.tags();
        }
        out.tags();
    }
}

/// `FindCoordinator`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindCoordinator {
    /// Groups, or transactional ids.
    pub keys: Vec<String>,
    /// 0: of groups; 1: of transactions.
    pub key_type: i8,
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`].
pub fn decode_find_coordinator(
    mut reader: Reader<'_>,
    version: i16,
) -> Result<FindCoordinator, Malformed> {
    let mut keys = Vec::new();
    if version < 4 {
        keys.push(reader.string()?.to_owned());
    }
    let key_type = if version >= 1 { reader.i8()? } else { 0 };
    if version >= 4 {
        keys = texts(&mut reader)?;
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(FindCoordinator { keys, key_type })
}

/// Writes the response: each key is at the address, or is refused.
#[must_use]
pub fn encode_coordinators(
    header: &Header,
    node: i32,
    host: &str,
    port: u16,
    keys: &[(String, Option<(ErrorCode, &str)>)],
) -> Vec<u8> {
    let mut out = Writer::reply(header);
    throttle(&mut out, header.version >= 1);
    if header.version >= 4 {
        out.array_len(keys.len());
        for (key, refusal) in keys {
            out.string(key);
            put_address(&mut out, node, host, port, refusal.is_some());
            put_refusal(&mut out, *refusal, true);
            out.tags();
        }
    } else if let Some((_, refusal)) = keys.first() {
        put_refusal(&mut out, *refusal, header.version >= 1);
        put_address(&mut out, node, host, port, refusal.is_some());
    }
    out.tags();
    out.finish()
}

fn put_refusal(out: &mut Writer, refusal: Option<(ErrorCode, &str)>, has_text: bool) {
    error(out, refusal.map_or(ErrorCode::None, |(code, _)| code));
    if has_text {
        out.nullable_string(refusal.map(|(_, text)| text));
    }
}

fn put_address(out: &mut Writer, node: i32, host: &str, port: u16, is_refused: bool) {
    out.i32(if is_refused { -1 } else { node });
    out.string(if is_refused { "" } else { host });
    out.i32(if is_refused { -1 } else { i32::from(port) });
}
