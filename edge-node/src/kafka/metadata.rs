//! `Metadata` 0 to 8: the site looks like a cluster of one broker. Plain code.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;
use crate::store::Topic;

/// Names in one request: more than any site has topics.
const MAX_NAMES: usize = 10_000;
/// The only broker's id.
pub const BROKER_ID: i32 = 1;

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct MetadataRequest<'a> {
    /// The topics asked for, each once; `None`: all.
    pub topics: Option<BTreeSet<&'a str>>,
    /// The client allows that missing topics are created.
    pub may_create: bool,
}

/// Reads a request.
///
/// # Errors
/// [`Malformed`].
pub fn decode(mut reader: Reader<'_>, version: i16) -> Result<MetadataRequest<'_>, Malformed> {
    let names = reader.nullable_array(2)?;
    let topics = match names {
        None if version == 0 => return Err(Malformed("null where an array is required")),
        None => None,
        // version 0 has no null: empty means all
        Some(0) if version == 0 => None,
        Some(count) if count > MAX_NAMES => return Err(Malformed("too many topics")),
        Some(count) => {
            let mut topics = BTreeSet::new();
            for _ in 0..count {
                topics.insert(reader.string()?);
            }
            Some(topics)
        }
    };
    let may_create = version < 4 || reader.bool()?;
    if version >= 8 {
        reader.bool()?; // authorized operations of the cluster,
        reader.bool()?; // and of topics
    }
    reader.finish()?;
    Ok(MetadataRequest { topics, may_create })
}

/// What a client is told of one topic.
#[derive(Debug)]
pub enum TopicAnswer {
    /// It is there.
    Found(Arc<Topic>),
    /// It is not.
    Missing(String, ErrorCode),
}

/// The cluster as told to clients.
#[derive(Debug, Clone)]
pub struct Cluster<'a> {
    /// Where clients reach the broker.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// Tells one cluster from another.
    pub id: &'a str,
}

/// Writes the response.
#[must_use]
pub fn encode(
    correlation: i32,
    version: i16,
    cluster: &Cluster<'_>,
    topics: &[TopicAnswer],
) -> Vec<u8> {
    let mut out = Writer::response(correlation);
    if version >= 3 {
        out.i32(0); // throttle time
    }
    out.array_len(1);
    out.i32(BROKER_ID);
    out.string(cluster.host);
    out.i32(i32::from(cluster.port));
    if version >= 1 {
        out.nullable_string(None); // rack
    }
    if version >= 2 {
        out.nullable_string(Some(cluster.id));
    }
    if version >= 1 {
        out.i32(BROKER_ID); // controller
    }
    out.array_len(topics.len());
    for topic in topics {
        put_topic(&mut out, version, topic);
    }
    if version >= 8 {
        out.i32(i32::MIN); // authorized operations: not told
    }
    out.finish()
}

fn put_topic(out: &mut Writer, version: i16, topic: &TopicAnswer) {
    let (name, error, partitions) = match topic {
        TopicAnswer::Found(topic) => (topic.name.as_str(), ErrorCode::None, topic.partitions.len()),
        TopicAnswer::Missing(name, error) => (name.as_str(), *error, 0),
    };
    out.i16(error.code());
    out.string(name);
    if version >= 1 {
        out.bool(false); // internal
    }
    out.array_len(partitions);
    for index in 0..partitions {
        out.i16(ErrorCode::None.code());
        out.i32(i32::try_from(index).expect("partitions are few"));
        out.i32(BROKER_ID); // leader
        if version >= 7 {
            out.i32(0); // leader epoch: there was never another leader
        }
        put_replicas(out);
        put_replicas(out); // in sync
        if version >= 5 {
            out.array_len(0); // offline
        }
    }
    if version >= 8 {
        out.i32(i32::MIN);
    }
}

fn put_replicas(out: &mut Writer) {
    out.array_len(1);
    out.i32(BROKER_ID);
}
