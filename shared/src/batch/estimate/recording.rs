//! Recordings: text lines, each a record, perhaps with its time and key.
//!
//! Either every line is an object `{"key": …, "ts": ms, "value": "…"}`, as recorders of other systems' topics
//! write them, or every line is a value as it stands. Of those that are JSON, fields may be named that hold
//! the time and the key.

use std::io::Read as _;
use std::time::Duration;

use serde_json::Value;

use super::Sample;
use crate::batch::split::{Format, parse};

/// Magic of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How lines become records.
#[derive(Debug, Clone)]
pub struct RecordingOptions {
    /// Path of the field that holds the time, its names joined by dots. Naming one says that lines are values.
    pub time_field: Option<String>,
    /// Path of the field that holds the key; likewise.
    pub key_field: Option<String>,
    /// Time between two lines that do not say their time.
    pub interval: Duration,
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
    /// The zstd frame is broken.
    #[error("it does not unpack: {0}")]
    Unpack(std::io::Error),
    /// A line that lacks the field.
    #[error("line {line}: no {what} at `{field}`; expected: {expected}")]
    Field {
        line: usize,
        what: &'static str,
        field: String,
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

/// The records of a recording, in its order.
///
/// # Errors
/// [`RecordingError`] with the first line that is not as the options say.
pub fn read_recording(
    text: &[u8],
    options: &RecordingOptions,
) -> Result<Vec<Sample>, RecordingError> {
    let lines = || {
        text.split(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .enumerate()
            .filter(|(_, line)| !line.is_empty())
    };
    let names_fields = options.time_field.is_some() || options.key_field.is_some();
    let recorded = if names_fields {
        None
    } else {
        lines().map(|(_, line)| recorded(line)).collect()
    };
    let samples: Vec<Sample> = match recorded {
        Some(samples) => samples,
        None => lines()
            .zip(0_i64..)
            .map(|((at, line), index)| sample(at + 1, line, index, options))
            .collect::<Result<_, _>>()?,
    };
    if samples.is_empty() {
        return Err(RecordingError::Empty);
    }
    Ok(samples)
}

/// A line that says key, time and value.
fn recorded(line: &[u8]) -> Option<Sample> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let text = |name: &str| match line.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.as_bytes().to_vec())),
        Some(_) => None,
    };
    line.get("value")?;
    Some(Sample {
        timestamp_ms: line.get("ts")?.as_i64()?,
        key: text("key")?,
        value: text("value")?,
    })
}

fn sample(
    line: usize,
    bytes: &[u8],
    index: i64,
    options: &RecordingOptions,
) -> Result<Sample, RecordingError> {
    let names_fields = options.time_field.is_some() || options.key_field.is_some();
    let json = if names_fields {
        serde_json::from_slice(bytes).unwrap_or(Value::Null)
    } else {
        Value::Null
    };
    let missing = |what, field: &str, expected| RecordingError::Field {
        line,
        what,
        field: field.to_owned(),
        expected,
    };
    let interval_ms = i64::try_from(options.interval.as_millis()).unwrap_or(i64::MAX);
    let timestamp_ms = match &options.time_field {
        None => index.saturating_mul(interval_ms),
        Some(field) => field_of(&json, field).and_then(time_ms).ok_or_else(|| {
            let expected = "seconds, ms, µs or ns since 1970, or 2026-01-31T12:00:00.000Z";
            missing("time", field, expected)
        })?,
    };
    let key = match &options.key_field {
        None => None,
        Some(field) => match field_of(&json, field) {
            Some(Value::String(text)) => Some(text.as_bytes().to_vec()),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Some(value.to_string().into()),
            Some(Value::Null) => None,
            Some(Value::Array(_) | Value::Object(_)) | None => {
                return Err(missing("key", field, "a string, a number or null"));
            }
        },
    };
    Ok(Sample {
        timestamp_ms,
        key,
        value: Some(bytes.to_vec()),
    })
}

fn field_of<'a>(json: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(json, |value, name| value.get(name))
}

/// A time as records write it, in ms since 1970.
fn time_ms(value: &Value) -> Option<i64> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let (format, mantissa) = parse(text.as_bytes(), None)?;
    match format {
        Format::DateTime { decimals, .. } => {
            let ms = to_ms(mantissa, decimals);
            Some(ms.saturating_sub(format.zone_ms()))
        }
        Format::Fixed(decimals) => {
            let whole = mantissa.div_euclid(power(decimals));
            Some(match whole.unsigned_abs() {
                0..100_000_000_000 => to_ms(mantissa, decimals),
                100_000_000_000..100_000_000_000_000 => whole,
                100_000_000_000_000..100_000_000_000_000_000 => whole.div_euclid(1000),
                _ => whole.div_euclid(1_000_000),
            })
        }
        Format::Padded(_)
        | Format::Trimmed(_)
        | Format::TrimmedToOne(_)
        | Format::Hex { .. }
        | Format::TimeOfDay { .. } => None,
    }
}

fn power(exponent: u8) -> i64 {
    10_i64.saturating_pow(exponent.into())
}

/// Thousandths of a number with so many decimals.
fn to_ms(mantissa: i64, decimals: u8) -> i64 {
    match decimals {
        0..=3 => mantissa.saturating_mul(power(3 - decimals)),
        _ => mantissa.div_euclid(power(decimals - 3)),
    }
}
