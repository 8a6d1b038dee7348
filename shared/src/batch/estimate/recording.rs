//! Recordings: text lines, each a record, perhaps with its time and key.
//!
//! Either every line is an object `{"key": …, "ts": ms, "value": …}`, as recorders of other systems' topics
//! write them, or every line is a value as it stands. Of those that are JSON, fields may be named that hold
//! the time and the key.
//!
//! The first line decides which; one that differs is an error and never changes how the others are read. In which unit
//! times are, most of them decide (see [`Times`]).

mod times;

use std::io::Read as _;
use std::time::Duration;

use serde_json::Value;

use self::times::{Stamp, TIMES, candidate, resolve, spaced};
use super::Sample;
use crate::record::{HEADER_LEN, record_len};

pub use self::times::{TimeUnit, Times};

/// Magic of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What some editors put before a text (RFC 3629, section 6): no part of the first line.
const UTF8_MARK: &[u8] = &[0xef, 0xbb, 0xbf];
/// The same of UTF-16, of either order.
const UTF16_MARKS: [&[u8]; 2] = [&[0xff, 0xfe], &[0xfe, 0xff]];

/// Largest record with its batch's header: no topic's `max_batch` is larger, for every hub takes so much in one piece.
pub const MAX_RECORD_BYTES: usize = 4 << 20;

/// A line that says key, time and value.
const RECORDED: &str = "{\"key\": …, \"ts\": ms, \"value\": …}";
/// Where such a line has its time.
const TS: &str = "ts";
/// Between two lines that do not say their time, when nobody says it either.
const ASSUMED_INTERVAL: Duration = Duration::from_secs(1);

/// Fields that recorders write. One that has others beside a value that is no text is a value itself, such as
/// `{"ts":1750000000000,"sensor":"inlet","value":21.5}`: its other fields would be lost.
const RECORDED_FIELDS: [&str; 7] = [
    "key",
    TS,
    "value",
    "topic",
    "partition",
    "offset",
    "headers",
];

const KEYS: &str = "a string, a number or null";

/// Most characters of a line that an error shows.
const SHOWN_CHARS: usize = 60;

/// How lines become records.
#[derive(Debug, Clone)]
pub struct RecordingOptions {
    /// Path of the field that holds the time, its names joined by dots. Naming one says that lines are values.
    pub time_field: Option<String>,
    /// Path of the field that holds the key; likewise.
    pub key_field: Option<String>,
    /// Unit of times that are numbers; `None`: as most of them look.
    pub time_unit: Option<TimeUnit>,
    /// Time between two lines that do not say their time; `None`: a second is
    /// assumed.
    pub interval: Option<Duration>,
}

/// What a recording holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Its records, in its order.
    pub samples: Vec<Sample>,
    /// Where their times are from.
    pub times: Times,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// There is not one record in it.
    #[error("there is no record in it")]
    Empty,
    /// More than is held in memory.
    #[error("it is larger than {0} bytes unpacked: cut it, a few hours are enough")]
    TooLarge(u64),
    /// Text that is none to us.
    #[error("it is UTF-16; expected: UTF-8, as `iconv -f UTF-16 -t UTF-8` makes it")]
    Utf16,
    /// No site takes the record.
    #[error(
        "line {line}: the record takes {bytes} bytes; expected: at most {MAX_RECORD_BYTES}, the largest max_batch that a \
         topic may have"
    )]
    TooLong { line: usize, bytes: usize },
    /// The zstd frame is broken.
    #[error("it does not unpack: {0}")]
    Unpack(std::io::Error),
    /// A line that is none of those that the first one announced.
    #[error(
        "line {line}: `{found}` is not a JSON object ({error}); expected: {RECORDED}, as in the first line"
    )]
    NotAnObject {
        line: usize,
        found: String,
        error: String,
    },
    /// A line that lacks the field, or has something else there.
    #[error("line {line}: no {what} at `{field}`: {found}; expected: {expected}")]
    Field {
        line: usize,
        what: &'static str,
        field: String,
        found: String,
        expected: &'static str,
    },
}

/// The bytes of a recording, out of the zstd frame that they perhaps are in; at most `limit` of them.
///
/// # Errors
/// [`RecordingError::TooLarge`] or [`RecordingError::Unpack`].
pub fn unpack(bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>, RecordingError> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let plain = if bytes.starts_with(&ZSTD_MAGIC) {
        let mut plain = Vec::new();
        zstd::stream::read::Decoder::new(bytes.as_slice())
            .and_then(|decoder| {
                decoder
                    .take(limit.saturating_add(1))
                    .read_to_end(&mut plain)
            })
            .map_err(RecordingError::Unpack)?;
        plain
    } else {
        bytes
    };
    if plain.len() > most {
        return Err(RecordingError::TooLarge(limit));
    }
    Ok(plain)
}

/// The records of a recording, in its order, and where their times are from.
///
/// # Errors
/// [`RecordingError`] with the first line that is not as the options say.
pub fn read_recording(
    text: &[u8],
    options: &RecordingOptions,
) -> Result<Recording, RecordingError> {
    if UTF16_MARKS.iter().any(|mark| text.starts_with(mark)) {
        return Err(RecordingError::Utf16);
    }
    let text = text.strip_prefix(UTF8_MARK).unwrap_or(text);
    let lines = || {
        text.split(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .enumerate()
            .filter(|(_, line)| !line.is_empty())
    };
    let Some((_, first)) = lines().next() else {
        return Err(RecordingError::Empty);
    };
    let names_fields = options.time_field.is_some() || options.key_field.is_some();
    let is_recorded = !names_fields && is_recorded(first);
    let mut samples = Vec::new();
    let mut stamps = Vec::new();
    for (at, line) in lines() {
        let (sample, stamp) = if is_recorded {
            recorded(at + 1, line)?
        } else {
            sample(at + 1, line, options)?
        };
        samples.push(sendable(at + 1, sample)?);
        stamps.extend(stamp);
    }
    let times = match (&options.time_field, is_recorded) {
        (Some(field), _) => timed(&mut samples, &stamps, field, options, TimeUnit::Seconds),
        (None, true) => timed(&mut samples, &stamps, TS, options, TimeUnit::Millis),
        (None, false) => {
            let interval = options.interval.unwrap_or(ASSUMED_INTERVAL);
            for (sample, index) in samples.iter_mut().zip(0..) {
                sample.timestamp_ms = spaced(index, interval);
            }
            Times::Spaced {
                interval,
                is_assumed: options.interval.is_none(),
                candidate: candidate(first),
            }
        }
    };
    Ok(Recording { samples, times })
}

/// Gives the records the times of their lines.
fn timed(
    samples: &mut [Sample],
    stamps: &[Stamp],
    field: &str,
    options: &RecordingOptions,
    small: TimeUnit,
) -> Times {
    let (ms, times) = resolve(stamps, field, options.time_unit, small);
    for (sample, ms) in samples.iter_mut().zip(ms) {
        sample.timestamp_ms = ms;
    }
    times
}

/// A record that a batch may be made of.
fn sendable(line: usize, sample: Sample) -> Result<Sample, RecordingError> {
    let (key, value) = (sample.key.as_deref(), sample.value.as_deref());
    match HEADER_LEN + record_len(0, 0, key, value, &[]) {
        0..=MAX_RECORD_BYTES => Ok(sample),
        bytes => Err(RecordingError::TooLong { line, bytes }),
    }
}

/// Whether a recording that begins with this line has key, time and value in each.
fn is_recorded(line: &[u8]) -> bool {
    let Ok(Value::Object(fields)) = serde_json::from_slice(line) else {
        return false;
    };
    let is_text = matches!(fields.get("value"), Some(Value::String(_) | Value::Null));
    let are_known = || {
        fields
            .keys()
            .all(|name| RECORDED_FIELDS.contains(&name.as_str()))
    };
    fields.contains_key(TS) && fields.contains_key("value") && (is_text || are_known())
}

/// The record of a line, its time not in it but beside it.
fn recorded(line: usize, bytes: &[u8]) -> Result<(Sample, Option<Stamp>), RecordingError> {
    let no_object = |error: String| RecordingError::NotAnObject {
        line,
        found: shortened(&String::from_utf8_lossy(bytes)),
        error,
    };
    let json: Value =
        serde_json::from_slice(bytes).map_err(|error| no_object(error.to_string()))?;
    if !json.is_object() {
        return Err(no_object("another JSON value".to_owned()));
    }
    let wrong = |what, field: &str, expected| wrong(line, &json, what, field, expected);
    let stamp = json.get(TS).and_then(Stamp::read);
    let stamp = stamp.ok_or_else(|| wrong("time", TS, TIMES))?;
    let sample = Sample {
        timestamp_ms: 0,
        key: match json.get("key") {
            None => None,
            Some(key) => key_text(key).ok_or_else(|| wrong("key", "key", KEYS))?,
        },
        value: match json.get("value") {
            None => return Err(wrong("value", "value", "a string, null or any JSON")),
            Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.as_bytes().to_vec()),
            Some(value) => Some(value.to_string().into()),
        },
    };
    Ok((sample, Some(stamp)))
}

/// A key as records have it: absent when null. Nothing when it can be none.
fn key_text(key: &Value) -> Option<Option<Vec<u8>>> {
    match key {
        Value::Null => Some(None),
        Value::String(text) => Some(Some(text.as_bytes().to_vec())),
        Value::Number(_) | Value::Bool(_) => Some(Some(key.to_string().into())),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn wrong(
    line: usize,
    json: &Value,
    what: &'static str,
    field: &str,
    expected: &'static str,
) -> RecordingError {
    let found = match field_of(json, field) {
        Some(value) => format!("found {}", shortened(&value.to_string())),
        None if json.is_object() => "it is missing".to_owned(),
        None => "the line is not a JSON object".to_owned(),
    };
    RecordingError::Field {
        line,
        what,
        field: field.to_owned(),
        found,
        expected,
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The same of a line that is a value.
fn sample(
    line: usize,
    bytes: &[u8],
    options: &RecordingOptions,
) -> Result<(Sample, Option<Stamp>), RecordingError> {
    let names_fields = options.time_field.is_some() || options.key_field.is_some();
    let json = if names_fields {
        serde_json::from_slice(bytes).unwrap_or(Value::Null)
    } else {
        Value::Null
    };
    let missing = |what, field: &str, expected| wrong(line, &json, what, field, expected);
    let stamp = match &options.time_field {
        None => None,
        Some(field) => {
            let stamp = field_of(&json, field).and_then(Stamp::read);
            Some(stamp.ok_or_else(|| missing("time", field, TIMES))?)
        }
    };
    let key = match &options.key_field {
        None => None,
        Some(field) => field_of(&json, field)
            .and_then(key_text)
            .ok_or_else(|| missing("key", field, KEYS))?,
    };
    let sample = Sample {
        timestamp_ms: 0,
        key,
        value: Some(bytes.to_vec()),
    };
    Ok((sample, stamp))
}

fn field_of<'a>(json: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(json, |value, name| value.get(name))
}
