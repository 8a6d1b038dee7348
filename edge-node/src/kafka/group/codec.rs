//! Requests about groups as they stand on the wire, and their answers. Plain code.
//!
//! Source: the message definitions of Apache Kafka (`clients/src/main/resources/common/message`).

mod admin;
mod members;
mod offsets;

use std::collections::BTreeSet;

pub use admin::{decode_delete, decode_delete_offsets, decode_describe, decode_list};
pub use members::{decode_heartbeat, decode_join, decode_leave, decode_sync};
pub use offsets::{
    FindCoordinator, decode_commit, decode_fetch, decode_find_coordinator, encode_coordinators,
};

use super::messages::Answer;
use crate::kafka::api::Header;
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;

/// Entries of the lists of one request: more than any site has.
const MAX_ENTRIES: usize = 10_000;

/// Writes an answer.
#[must_use]
pub fn encode(header: &Header, answer: &Answer) -> Vec<u8> {
    let mut out = Writer::reply(header);
    let version = header.version;
    match answer {
        Answer::Join(answer) => members::encode_join(&mut out, version, answer),
        Answer::Sync(answer) => members::encode_sync(&mut out, version, answer),
        Answer::Heartbeat(error) => members::encode_heartbeat(&mut out, version, *error),
        Answer::Leave(answer) => members::encode_leave(&mut out, version, answer),
        Answer::Commit(answer) => offsets::encode_commit(&mut out, version, answer),
        Answer::Fetch(answer) => offsets::encode_fetch(&mut out, version, answer),
        Answer::Describe(groups) => admin::encode_describe(&mut out, version, groups),
        Answer::List(groups) => admin::encode_list(&mut out, version, groups),
        Answer::Delete(groups) => admin::encode_delete(&mut out, groups),
        Answer::DeleteOffsets(error, topics) => {
            admin::encode_delete_offsets(&mut out, *error, topics);
        }
    }
    out.finish()
}

fn throttle(out: &mut Writer, is_there: bool) {
    if is_there {
        out.i32(0);
    }
}

fn error(out: &mut Writer, error: ErrorCode) {
    out.i16(error.code());
}

fn bytes(out: &mut Writer, bytes: &[u8]) {
    out.records(|to| to.extend_from_slice(bytes));
}

/// The length of a list, within what one request may hold.
fn bounded(len: usize) -> Result<usize, Malformed> {
    if len > MAX_ENTRIES {
        return Err(Malformed("too many entries"));
    }
    Ok(len)
}

/// A list of texts, each once: what is named twice would be answered twice, at no cost to who asks.
fn texts(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    let len = bounded(reader.array_len(1)?)?;
    let mut named = BTreeSet::new();
    let mut found = Vec::new();
    for _ in 0..len {
        let text = reader.string()?;
        if named.insert(text) {
            found.push(text.to_owned());
        }
    }
    Ok(found)
}

/// Partitions by topic; bounded over all topics.
fn by_topic<'a, T>(
    reader: &mut Reader<'a>,
    topics: usize,
    mut read: impl FnMut(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Vec<(String, Vec<T>)>, Malformed> {
    let mut left = MAX_ENTRIES;
    let mut found = Vec::new();
    for _ in 0..bounded(topics)? {
        let topic = reader.string()?.to_owned();
        let len = reader.array_len(4)?;
        left = left
            .checked_sub(len)
            .ok_or(Malformed("too many partitions"))?;
        let partitions = (0..len).map(|_| read(reader)).collect::<Result<_, _>>()?;
        reader.skip_tags()?;
        found.push((topic, partitions));
    }
    Ok(found)
}
