//! What becomes of a record that its topic refuses for good: a record of the dead-letter topic.
//!
//! Key, value and headers are kept; the hub's marks follow, `kedge.topic` among them, and then
//!
//! | name | value |
//! | --- | --- |
//! | `kedge.destination` | the central topic that refused it |
//! | `kedge.reason` | `too-large`, `no-key`, `invalid-record`, `invalid-timestamp`, `unknown-topic`, `invalid-topic` or `not-authorized` |
//! | `kedge.truncated` | only where something was cut: bytes of the original key and value, `12,3456` |
//!
//! A record that is too large for the dead-letter topic itself loses its own headers and the end of its
//! value, then the end of its key. The timestamp is the hub's time: the record's own may be the reason.

use shared::record::{Header, HeaderIter, RecordRef};

use crate::sink::{Destination, OutRecord, ProduceError, Reason, mapping::Marks};

/// Room for the batch's header, the record's lengths and the hub's headers, the longest names included.
pub(crate) const OVERHEAD_BYTES: usize = 1280;

/// Bytes of a key that are kept when a record must be cut.
const KEPT_KEY_BYTES: usize = 256;

/// Where dead letters go.
#[derive(Debug, Clone)]
pub(crate) struct Morgue<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) destination: &'a Destination,
    pub(crate) now_ms: i64,
}

/// Upper bound of what a record takes in a batch of its own.
pub(crate) fn size_bound(record: &RecordRef<'_>) -> usize {
    let headers: usize = record
        .headers()
        .map(|h| h.name.len() + len_of(h.value) + 10)
        .sum();
    len_of(record.key) + len_of(record.value) + headers + OVERHEAD_BYTES
}

/// Hands the dead letter of `record` to `produce`.
pub(crate) fn produce(
    morgue: &Morgue<'_>,
    refused_by: &str,
    reason: Reason,
    record: &RecordRef<'_>,
    marks: &Marks,
    produce: &mut dyn FnMut(&OutRecord<'_>) -> Result<(), ProduceError>,
) -> Result<(), ProduceError> {
    let kept = Kept::of(record, morgue.destination.max_batch_bytes);
    let (own, count) = marks.headers();
    let mut headers = own[..count].to_vec();
    let mut mark = |name: &'static str, value| {
        headers.push(Header {
            name: name.as_bytes(),
            value: Some(value),
        });
    };
    mark("kedge.destination", refused_by.as_bytes());
    mark("kedge.reason", reason.code().as_bytes());
    if let Some(truncated) = &kept.truncated {
        mark("kedge.truncated", truncated.as_bytes());
    }
    produce(&OutRecord {
        topic: morgue.topic,
        partition: morgue.partition,
        key: kept.key,
        value: kept.value,
        timestamp_ms: morgue.now_ms,
        headers: kept.headers,
        marks: &headers,
    })
}

struct Kept<'a> {
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Option<HeaderIter<'a>>,
    truncated: Option<String>,
}

impl<'a> Kept<'a> {
    fn of(record: &RecordRef<'a>, limit: usize) -> Self {
        if size_bound(record) <= limit {
            return Self {
                key: record.key,
                value: record.value,
                headers: Some(record.headers()),
                truncated: None,
            };
        }
        let room = limit.saturating_sub(OVERHEAD_BYTES);
        let key = record
            .key
            .map(|key| &key[..key.len().min(KEPT_KEY_BYTES).min(room)]);
        let room = room - len_of(key);
        Self {
            key,
            value: record.value.map(|value| &value[..value.len().min(room)]),
            headers: None,
            truncated: Some(format!("{},{}", len_of(record.key), len_of(record.value))),
        }
    }
}

fn len_of(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(0, <[u8]>::len)
}
