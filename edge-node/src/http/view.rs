//! What stands in the log as a reader over HTTP sees it. Plain code.
//!
//! [`walk`] shows records and gaps in order, from any offset, decoding one batch at a time and no further
//! than its limit. [`put_record`] and [`put_gap`] write them as JSON; a record as producing takes it, so
//! that what is read and posted again is the same bytes:
//!
//! ```json
//! {"offset": 17, "timestamp": 1700000000000, "key": "k", "value": {"t": 20.5},
//!  "headers": [{"name": "unit", "value": "C"}]}
//! ```
//! A value that is compact JSON other than a string or `null` stands there as JSON, other text as a
//! string, anything else as `value_base64`. Keys and headers are strings or base64.

use std::ops::ControlFlow;

use shared::ids::Offset;
use shared::record::{BatchHeader, Header, RecordError, RecordRef, Records, open};

use super::json;
use crate::base64;
use crate::store::{GapReason, Item};

/// JSON inside JSON: clients' parsers give up at some depth, and this is below all that are known.
const DEEPEST_JSON: usize = 64;

/// What a reader comes past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    /// A record.
    Record {
        offset: Offset,
        timestamp_ms: i64,
        record: RecordRef<'a>,
    },
    /// Offsets without records.
    Gap(Gap),
}

/// Offsets `from..to` have no records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) from: Offset,
    pub(super) to: Offset,
    pub(super) reason: &'static str,
}

/// Deleted: as retention says after the hub had them, or by a client.
const DELETED: &str = "deleted";

fn word(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Expired => "expired",
        GapReason::DroppedOldest => "dropped-oldest",
        GapReason::DroppedNewest => "dropped-newest",
        GapReason::Damaged => "damaged",
        GapReason::Deleted => DELETED,
    }
}

/// Shows what `items` hold from offset `from` on, until `visit` breaks off (what it was shown then
/// counts as seen). Returns the offset to go on from.
///
/// # Errors
/// [`RecordError`] when a stored batch cannot be decoded within `max_decoded` bytes.
pub(super) fn walk(
    items: &[Item],
    from: Offset,
    max_decoded: usize,
    visit: &mut dyn FnMut(Seen<'_>) -> ControlFlow<()>,
) -> Result<Offset, RecordError> {
    let mut at = from;
    for item in items {
        let (first, next) = match item {
            Item::Batch {
                base_offset,
                next_offset,
                ..
            } => (*base_offset, *next_offset),
            Item::Gap { from, to, .. } => (*from, *to),
        };
        if next <= at {
            continue;
        }
        if first > at {
            let gap = Gap {
                from: at,
                to: first,
                reason: DELETED,
            };
            at = first;
            if visit(Seen::Gap(gap)).is_break() {
                return Ok(at);
            }
        }
        let flow = match item {
            Item::Batch { batch, .. } => {
                let header = BatchHeader::parse(batch)?;
                let records = open(batch, &header, max_decoded)?;
                walk_batch(&header, &records, &mut at, visit)?
            }
            Item::Gap { to, reason, .. } => {
                let gap = Gap {
                    from: at,
                    to: *to,
                    reason: word(*reason),
                };
                at = *to;
                visit(Seen::Gap(gap))
            }
        };
        if flow.is_break() {
            break;
        }
    }
    Ok(at)
}

fn walk_batch(
    header: &BatchHeader,
    records: &[u8],
    at: &mut Offset,
    visit: &mut dyn FnMut(Seen<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, RecordError> {
    for record in Records::new(records, header.count) {
        let record = record?;
        let offset = header.base_offset + u64::from(record.offset_delta);
        if offset < *at {
            continue;
        }
        let timestamp_ms = if header.is_log_append_time {
            header.max_timestamp_ms
        } else {
            header
                .base_timestamp_ms
                .saturating_add(record.timestamp_delta_ms)
        };
        *at = offset + 1;
        let flow = visit(Seen::Record {
            offset,
            timestamp_ms,
            record,
        });
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Writes a record; of a tail with its partition.
pub(super) fn put_record(
    out: &mut Vec<u8>,
    partition: Option<u32>,
    offset: Offset,
    timestamp_ms: i64,
    record: &RecordRef<'_>,
) {
    out.push(b'{');
    if let Some(partition) = partition {
        put(out, &format!("\"partition\":{partition},"));
    }
    put(
        out,
        &format!("\"offset\":{offset},\"timestamp\":{timestamp_ms},"),
    );
    put_text(out, "key", record.key);
    out.push(b',');
    match record.value.and_then(embeddable) {
        Some(json) => {
            put(out, "\"value\":");
            put(out, json);
        }
        None => put_text(out, "value", record.value),
    }
    let mut separator = ",\"headers\":[";
    for header in record.headers() {
        put(out, separator);
        put_header(out, &header);
        separator = ",";
    }
    // without any, the member is left out
    put(out, if separator == "," { "]}" } else { "}" });
}

fn put_header(out: &mut Vec<u8>, header: &Header<'_>) {
    out.push(b'{');
    put_text(out, "name", Some(header.name));
    out.push(b',');
    put_text(out, "value", header.value);
    out.push(b'}');
}

/// Writes a gap; of a tail with its partition.
pub(super) fn put_gap(out: &mut Vec<u8>, partition: Option<u32>, gap: &Gap) {
    let Gap { from, to, reason } = gap;
    out.push(b'{');
    if let Some(partition) = partition {
        put(out, &format!("\"partition\":{partition},"));
    }
    put(
        out,
        &format!("\"from\":{from},\"to\":{to},\"reason\":\"{reason}\"}}"),
    );
}

/// A member that holds bytes: a string where they are text, else base64 under another name.
fn put_text(out: &mut Vec<u8>, name: &str, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        return put(out, &format!("\"{name}\":null"));
    };
    match plain_text(bytes) {
        Some(text) => {
            put(out, &format!("\"{name}\":"));
            put_string(out, text);
        }
        None => {
            put(out, &format!("\"{name}_base64\":\""));
            put(out, &base64::encode(bytes));
            out.push(b'"');
        }
    }
}

/// A JSON string.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("memory takes any text");
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// UTF-8 without control characters: those take six bytes each in JSON, base64 less.
fn plain_text(bytes: &[u8]) -> Option<&str> {
    let is_plain = |b: &u8| *b >= 0x20 || matches!(b, b'\t' | b'\n' | b'\r');
    let text = std::str::from_utf8(bytes).ok()?;
    bytes.iter().all(is_plain).then_some(text)
}

/// JSON that producing would store as the same bytes again.
fn embeddable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    match text.as_bytes().first()? {
        b'{' | b'[' | b't' | b'f' | b'-' | b'0'..=b'9' => {}
        _ => return None,
    }
    (json::is_compact(text) && json::depth(text) <= DEEPEST_JSON).then_some(text)
}

#[cfg(test)]
mod tests;
