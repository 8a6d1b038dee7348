//! From a request's body to record batches. Plain code.
//!
//! JSON and NDJSON carry records as objects:
//!
//! ```json
//! {"key": "k", "value": {"t": 20.5}, "headers": {"unit": "C"}, "partition": 2, "timestamp": 1700000000000}
//! ```
//! A string is stored as its characters in UTF-8, any other JSON as compact JSON text with its numbers as
//! written, `null` as Kafka's null (as a value: a tombstone). `value_base64` and `key_base64` carry bytes.
//! Only the value is required. Any other content type is one record, the body as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use shared::partitioner::partition_for_key;
use shared::record::{BatchBuilder, HEADER_LEN, Header, record_len};

use super::json::{self, Cursor, Invalid};
use crate::base64;

/// Milliseconds since 1970, to the end of the year 9999; -1 is Kafka's "none".
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -1..=253_402_300_799_999;

/// Why a body can't become batches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not UTF-8, not JSON, or not records.
    #[error("{0}")]
    Invalid(String),
    /// The topic has fewer partitions.
    #[error("record {index}: partition {partition}; accepted: 0 to {last}")]
    NoPartition {
        index: u32,
        partition: u32,
        last: u32,
    },
    /// Not a time that Kafka's clients read.
    #[error(
        "record {index}: timestamp {timestamp_ms}; accepted: -1 (none) to 253402300799999 (9999-12-31)"
    )]
    Timestamp { index: u32, timestamp_ms: i64 },
    /// One record does not fit the topic's largest batch.
    #[error("record {index} takes {bytes} bytes; accepted: {limit}")]
    RecordTooLarge {
        index: u32,
        bytes: usize,
        limit: usize,
    },
    /// There is nothing to store.
    #[error("no records; at least one is needed")]
    Empty,
}

/// One record as it came.
#[derive(Debug, Default)]
pub struct Record<'a> {
    /// Absent: none.
    pub key: Option<Cow<'a, [u8]>>,
    /// Absent: Kafka's null.
    pub value: Option<Cow<'a, [u8]>>,
    /// In their order; names may repeat.
    pub headers: Vec<HeaderOf<'a>>,
    /// Where it must go.
    pub partition: Option<u32>,
    /// Absent: the time of arrival.
    pub timestamp_ms: Option<i64>,
}

/// A header's name and value as they came.
pub type HeaderOf<'a> = (Cow<'a, [u8]>, Option<Cow<'a, [u8]>>);

/// What holds for all records of a request.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// The topic's partitions.
    pub partitions: u32,
    /// For records with neither key nor partition: all of a request stay together.
    pub keyless_partition: u32,
    /// Time of arrival.
    pub now_ms: i64,
    /// The topic's largest batch.
    pub max_batch_bytes: usize,
}

/// Gathers records into one or more batches a partition.
#[derive(Debug)]
pub struct Gather {
    placement: Placement,
    open: BTreeMap<u32, BatchBuilder>,
    closed: Vec<(u32, Bytes)>,
    count: u32,
}

impl Gather {
    /// Empty.
    #[must_use]
    pub fn new(placement: Placement) -> Self {
        Self {
            placement,
            open: BTreeMap::new(),
            closed: Vec::new(),
            count: 0,
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`BodyError`] when it can't be stored.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), BodyError> {
        let place = self.placement;
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) if partition >= place.partitions => {
                return Err(BodyError::NoPartition {
                    index: self.count,
                    partition,
                    last: place.partitions.saturating_sub(1),
                });
            }
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, place.partitions),
            (None, None) => place.keyless_partition,
        };
        let headers: Vec<Header<'_>> = record
            .headers
            .iter()
            .map(|(name, value)| Header {
                name,
                value: value.as_deref(),
            })
            .collect();
        let timestamp_ms = record.timestamp_ms.unwrap_or(place.now_ms);
        if !TIMESTAMPS.contains(&timestamp_ms) {
            return Err(BodyError::Timestamp {
                index: self.count,
                timestamp_ms,
            });
        }
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        // both deltas taken at their longest: a few bytes too many at most
        let bytes = record_len(u32::MAX >> 1, i64::MAX, key, value, &headers);
        if HEADER_LEN + bytes > place.max_batch_bytes {
            return Err(BodyError::RecordTooLarge {
                index: self.count,
                bytes,
                limit: place.max_batch_bytes - HEADER_LEN.min(place.max_batch_bytes),
            });
        }
        let mut builder = self.open.remove(&partition).unwrap_or_default();
        if builder.len() + bytes > place.max_batch_bytes {
            self.close(partition, std::mem::take(&mut builder));
        }
        builder.push(timestamp_ms, key, value, &headers);
        self.open.insert(partition, builder);
        self.count += 1;
        Ok(())
    }

    fn close(&mut self, partition: u32, builder: BatchBuilder) {
        if let Some(batch) = builder.build() {
            self.closed.push((partition, batch));
        }
    }

    /// Partition and batch, in the order of the records for each partition.
    ///
    /// # Errors
    /// [`BodyError::Empty`].
    pub fn finish(mut self) -> Result<Vec<(u32, Bytes)>, BodyError> {
        for (partition, builder) in std::mem::take(&mut self.open) {
            self.close(partition, builder);
        }
        if self.closed.is_empty() {
            return Err(BodyError::Empty);
        }
        Ok(self.closed)
    }
}

/// Gathers the records of a JSON array, or of one object.
///
/// # Errors
/// [`BodyError`].
pub fn gather_json(body: &[u8], gather: &mut Gather) -> Result<(), BodyError> {
    let text = utf8(body)?;
    let mut cursor = Cursor::new(text);
    let is_array = cursor.skip(b'[');
    if !(is_array && cursor.skip(b']')) {
        loop {
            gather.push(&record(&mut cursor).map_err(|e| at_record(gather, text, &e))?)?;
            if !is_array {
                break;
            }
            if cursor.skip(b']') {
                break;
            }
            cursor
                .expect(b',')
                .map_err(|e| at_record(gather, text, &e))?;
        }
    }
    end(&mut cursor).map_err(|e| at_record(gather, text, &e))
}

/// Gathers the records of NDJSON: an object a line; empty lines are skipped.
///
/// # Errors
/// [`BodyError`].
pub fn gather_ndjson(body: &[u8], gather: &mut Gather) -> Result<(), BodyError> {
    for (index, line) in utf8(body)?.lines().enumerate() {
        let at_line = |e: Invalid| {
            let (_, column) = json::place(line, e.at);
            BodyError::Invalid(format!("line {}, {e} (column {column})", index + 1))
        };
        let mut cursor = Cursor::new(line);
        if cursor.peek().is_none() {
            continue;
        }
        let record = record(&mut cursor).map_err(at_line)?;
        end(&mut cursor).map_err(at_line)?;
        gather.push(&record)?;
    }
    Ok(())
}

fn utf8(body: &[u8]) -> Result<&str, BodyError> {
    std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        BodyError::Invalid(format!("byte {at}: not UTF-8; bytes go into value_base64"))
    })
}

fn at_record(gather: &Gather, text: &str, error: &Invalid) -> BodyError {
    let (line, column) = json::place(text, error.at);
    let record = gather.count;
    BodyError::Invalid(format!(
        "record {record}, {error} (line {line}, column {column})"
    ))
}

fn end(cursor: &mut Cursor<'_>) -> Result<(), Invalid> {
    match cursor.peek() {
        None => Ok(()),
        Some(_) => Err(cursor.invalid("more text after the records")),
    }
}

fn record<'a>(cursor: &mut Cursor<'a>) -> Result<Record<'a>, Invalid> {
    if cursor.peek() != Some(b'{') {
        let what = "expected `{`: a record is an object such as {\"key\": \"k\", \"value\": 20.5}";
        return Err(cursor.invalid(what));
    }
    let begin = cursor.here();
    let mut record = Record::default();
    let (mut has_key, mut has_value) = (false, false);
    let once = |cursor: &Cursor<'a>, seen: &mut bool, what: &str| {
        if std::mem::replace(seen, true) {
            return Err(cursor.invalid(format!("a second {what}")));
        }
        Ok(())
    };
    cursor.object(|cursor, name| {
        let in_field = |error: Invalid| Invalid {
            what: format!("{name}: {}", error.what),
            ..error
        };
        match &*name {
            "key" => {
                once(cursor, &mut has_key, "key")?;
                record.key = bytes_of(cursor).map_err(in_field)?;
            }
            "key_base64" => {
                once(cursor, &mut has_key, "key")?;
                record.key = Some(base64_of(cursor).map_err(in_field)?);
            }
            "value" => {
                once(cursor, &mut has_value, "value")?;
                record.value = bytes_of(cursor).map_err(in_field)?;
            }
            "value_base64" => {
                once(cursor, &mut has_value, "value")?;
                record.value = Some(base64_of(cursor).map_err(in_field)?);
            }
            "headers" => record.headers = headers_of(cursor).map_err(in_field)?,
            "partition" => {
                let what = "a partition number, such as 0";
                record.partition = number_of(cursor, what).map_err(in_field)?;
            }
            "timestamp" => {
                let what = "milliseconds since 1970, such as 1700000000000";
                record.timestamp_ms = number_of(cursor, what).map_err(in_field)?;
            }
            other => {
                let known = "key, key_base64, value, value_base64, headers, partition, timestamp";
                let shown: String = other.chars().take(40).collect();
                return Err(cursor.invalid(format!("`{shown}`; accepted: {known}")));
            }
        }
        Ok(())
    })?;
    if !has_value {
        return Err(begin.invalid("a record without value or value_base64"));
    }
    Ok(record)
}

fn text_of<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, str>>, Invalid> {
    let raw = cursor.value()?;
    if raw == "null" {
        return Ok(None);
    }
    json::plain(raw).map(Some).map_err(|e| cursor.invalid(e))
}

fn bytes_of<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Cow<'a, [u8]>>, Invalid> {
    Ok(text_of(cursor)?.map(bytes))
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn base64_of<'a>(cursor: &mut Cursor<'a>) -> Result<Cow<'a, [u8]>, Invalid> {
    cursor.peek();
    let here = cursor.here();
    let text = cursor.string()?;
    match base64::decode(&text) {
        Some(bytes) => Ok(Cow::Owned(bytes)),
        None => Err(here.invalid("not base64 (RFC 4648, section 4)")),
    }
}

/// An object of names and values, or a list of `{"name": …, "value": …}`, where names and values may be
/// bytes: `name_base64`, `value_base64`.
fn headers_of<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<HeaderOf<'a>>, Invalid> {
    let mut headers = Vec::new();
    if !cursor.skip(b'[') {
        cursor.object(|cursor, name| {
            headers.push((bytes(name), bytes_of(cursor)?));
            Ok(())
        })?;
        return Ok(headers);
    }
    if cursor.skip(b']') {
        return Ok(headers);
    }
    loop {
        headers.push(header_of(cursor)?);
        if cursor.skip(b']') {
            return Ok(headers);
        }
        cursor.expect(b',')?;
    }
}

fn header_of<'a>(cursor: &mut Cursor<'a>) -> Result<HeaderOf<'a>, Invalid> {
    let (mut name, mut value) = (None, None);
    cursor.object(|cursor, member| {
        let (is_second, what) = match &*member {
            "name" => (name.replace(bytes(cursor.string()?)).is_some(), "name"),
            "name_base64" => (name.replace(base64_of(cursor)?).is_some(), "name"),
            "value" => (value.replace(bytes_of(cursor)?).is_some(), "value"),
            "value_base64" => (value.replace(Some(base64_of(cursor)?)).is_some(), "value"),
            other => {
                let known = "name, name_base64, value, value_base64";
                let shown: String = other.chars().take(40).collect();
                return Err(cursor.invalid(format!("`{shown}` in a header; accepted: {known}")));
            }
        };
        if is_second {
            return Err(cursor.invalid(format!("a second {what} in a header")));
        }
        Ok(())
    })?;
    match (name, value) {
        (Some(name), Some(value)) => Ok((name, value)),
        _ => Err(cursor.invalid("a header needs a name and a value")),
    }
}

/// `null` is as good as absent.
fn number_of<T: std::str::FromStr>(
    cursor: &mut Cursor<'_>,
    what: &str,
) -> Result<Option<T>, Invalid> {
    cursor.peek();
    let here = cursor.here();
    match cursor.value()? {
        "null" => Ok(None),
        raw => match raw.parse().ok().or_else(|| whole(raw)) {
            Some(number) => Ok(Some(number)),
            None => {
                let found: String = raw.chars().take(40).collect();
                Err(here.invalid(format!("expected {what}; found {found}")))
            }
        },
    }
}

/// A whole number that is written as a fraction or with an exponent, such as `104473.0`: an integer to JSON Schema
/// (2020-12, validation, section 6.1.1), and what some languages make of one.
fn whole<T: std::str::FromStr>(raw: &str) -> Option<T> {
    let number: f64 = raw.parse().ok()?;
    let is_whole = number.is_finite() && number.fract() == 0.0;
    is_whole.then(|| format!("{number:.0}").parse().ok())?
}
