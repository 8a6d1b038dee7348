//! Times of a recording: from its lines, in the unit that most of them are written in, or one record after the other.

use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use crate::batch::split::{Format, parse};

/// From here on a number is seconds since 1970 (2001); less may be counted from the recording's begin.
const LEAST_SECONDS: u64 = 1_000_000_000;
/// From here on ms (1973), µs and ns likewise: each is a thousand times the one before.
const LEAST_MILLIS: u64 = 100_000_000_000;
const LEAST_MICROS: u64 = LEAST_MILLIS * 1_000;
const LEAST_NANOS: u64 = LEAST_MICROS * 1_000;

/// What a time may be.
pub(super) const TIMES: &str = "seconds, ms, µs or ns since 1970, or 2026-01-31T12:00:00.000Z";

/// Unit of times that are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeUnit {
    /// `s`
    Seconds,
    /// `ms`
    Millis,
    /// `us`
    Micros,
    /// `ns`
    Nanos,
}

impl TimeUnit {
    const ALL: [Self; 4] = [Self::Seconds, Self::Millis, Self::Micros, Self::Nanos];

    /// As options and answers write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Millis => "ms",
            Self::Micros => "us",
            Self::Nanos => "ns",
        }
    }

    /// What a number of this size is in; `small` where it says nothing.
    fn of_size(whole: u64, small: Self) -> Self {
        match whole {
            0..LEAST_SECONDS => small,
            LEAST_SECONDS..LEAST_MILLIS => Self::Seconds,
            LEAST_MILLIS..LEAST_MICROS => Self::Millis,
            LEAST_MICROS..LEAST_NANOS => Self::Micros,
            LEAST_NANOS.. => Self::Nanos,
        }
    }
}

impl FromStr for TimeUnit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|unit| unit.name() == text);
        found.ok_or_else(|| "no unit of time; accepted: s, ms, us, ns".to_owned())
    }
}

/// Where the times of a recording are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Times {
    /// The lines say none: one record after the other.
    Spaced {
        /// From one to the next.
        interval: Duration,
        /// Nobody said so.
        is_assumed: bool,
        /// A field of the first line that may be a time.
        candidate: Option<String>,
    },
    /// A field of every line.
    Field {
        /// Its path.
        field: String,
        /// Of the numbers among them; `None` when all are dates.
        unit: Option<TimeUnit>,
        /// The unit is that of most numbers' size; nobody said it.
        is_by_size: bool,
        /// Numbers whose size says another unit.
        others: usize,
    },
}

/// A time as a line writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stamp {
    /// ms since 1970.
    Date(i64),
    /// In a unit that only the whole recording tells.
    Number { mantissa: i64, decimals: u8 },
}

impl Stamp {
    /// Nothing when the value is no time.
    pub(super) fn read(value: &Value) -> Option<Self> {
        let text = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        let (format, mantissa) = parse(text.as_bytes(), None)?;
        match format {
            Format::DateTime { decimals, .. } => Some(Self::Date(
                to_ms(mantissa, decimals).saturating_sub(format.zone_ms()),
            )),
            Format::Fixed(decimals) => Some(Self::Number { mantissa, decimals }),
            Format::Padded(_)
            | Format::Trimmed(_)
            | Format::TrimmedToOne(_)
            | Format::Hex { .. }
            | Format::TimeOfDay { .. } => None,
        }
    }

    /// Without its decimals; `None` of a date.
    fn whole(self) -> Option<i64> {
        match self {
            Self::Date(_) => None,
            Self::Number { mantissa, decimals } => Some(mantissa.div_euclid(power(decimals))),
        }
    }

    fn ms(self, unit: TimeUnit) -> i64 {
        let (mantissa, decimals) = match self {
            Self::Date(ms) => return ms,
            Self::Number { mantissa, decimals } => (mantissa, decimals),
        };
        let whole = mantissa.div_euclid(power(decimals));
        match unit {
            TimeUnit::Seconds => to_ms(mantissa, decimals),
            TimeUnit::Millis => whole,
            TimeUnit::Micros => whole.div_euclid(1_000),
            TimeUnit::Nanos => whole.div_euclid(1_000_000),
        }
    }

    /// Whether it is a date, or so large that it can hardly be anything but a time.
    fn is_evident(self) -> bool {
        self.whole()
            .is_none_or(|whole| u64::try_from(whole).is_ok_and(|whole| whole >= LEAST_SECONDS))
    }
}

/// The times of all lines in ms, and what was found out about them. `told` is the unit that was asked for, `small` that of
/// numbers whose size says nothing.
pub(super) fn resolve(
    stamps: &[Stamp],
    field: &str,
    told: Option<TimeUnit>,
    small: TimeUnit,
) -> (Vec<i64>, Times) {
    let sizes = || {
        let numbers = stamps.iter().filter_map(|stamp| stamp.whole());
        numbers.map(|whole| TimeUnit::of_size(whole.unsigned_abs(), small))
    };
    let count = |unit| sizes().filter(|size| *size == unit).count();
    let has_numbers = sizes().next().is_some();
    // of as many the smaller unit, which makes the recording the shorter one
    let most = TimeUnit::ALL.into_iter().max_by_key(|unit| count(*unit));
    let unit = told.or(most).unwrap_or(small);
    let times = Times::Field {
        field: field.to_owned(),
        unit: has_numbers.then_some(unit),
        is_by_size: told.is_none(),
        others: if told.is_none() {
            sizes().filter(|size| *size != unit).count()
        } else {
            0
        },
    };
    (stamps.iter().map(|stamp| stamp.ms(unit)).collect(), times)
}

/// When the record at this place of the recording comes, in ms.
pub(super) fn spaced(index: i64, interval: Duration) -> i64 {
    let nanos = i128::try_from(interval.as_nanos()).unwrap_or(i128::MAX);
    let ms = nanos.saturating_mul(index.into()) / 1_000_000;
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Path of a field of this line that may be a time: of the object itself, else of an object in it.
pub(super) fn candidate(line: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(line).ok()?;
    let fields = json.as_object()?;
    let is_time = |value: &Value| Stamp::read(value).is_some_and(Stamp::is_evident);
    let within = |value: &Value| {
        let fields = value.as_object()?;
        let found = fields.iter().find(|(_, value)| is_time(value));
        found.map(|(name, _)| name.clone())
    };
    let direct = fields.iter().find(|(_, value)| is_time(value));
    direct.map(|(name, _)| name.clone()).or_else(|| {
        fields
            .iter()
            .find_map(|(outer, value)| Some(format!("{outer}.{}", within(value)?)))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(values: &[&str], told: Option<TimeUnit>, small: TimeUnit) -> (Vec<i64>, Times) {
        let stamps: Vec<Stamp> = values
            .iter()
            .map(|text| Stamp::read(&serde_json::from_str(text).unwrap()).unwrap())
            .collect();
        resolve(&stamps, "t", told, small)
    }

    #[test]
    fn most_times_decide_on_the_unit_of_all() {
        let clock_unset = ["0", "1750000000", "1750000001"];
        let (ms, times) = resolved(&clock_unset, None, TimeUnit::Millis);
        assert_eq!(ms, [0, 1_750_000_000_000, 1_750_000_001_000]);
        let expected = Times::Field {
            field: "t".to_owned(),
            unit: Some(TimeUnit::Seconds),
            is_by_size: true,
            others: 1,
        };
        assert_eq!(times, expected);
        // counted from the recording's begin
        assert_eq!(resolved(&["0", "250"], None, TimeUnit::Millis).0, [0, 250]);
    }

    #[test]
    fn a_unit_that_was_told_wins() {
        let (ms, times) = resolved(&["1750000000"], Some(TimeUnit::Millis), TimeUnit::Seconds);
        assert_eq!(ms, [1_750_000_000]);
        assert!(
            matches!(
                times,
                Times::Field {
                    is_by_size: false,
                    others: 0,
                    ..
                }
            ),
            "{times:?}"
        );
    }

    #[test]
    fn dates_have_no_unit() {
        let (ms, times) = resolved(&["\"2025-06-15T15:06:40Z\""], None, TimeUnit::Seconds);
        assert_eq!(ms, [1_750_000_000_000]);
        assert!(
            matches!(times, Times::Field { unit: None, .. }),
            "{times:?}"
        );
    }

    #[test]
    fn a_field_that_may_be_a_time_is_found() {
        for (line, field) in [
            (r#"{"n":7,"ts":1750000000,"value":2.5}"#, Some("ts")),
            (r#"{"head":{"at":"2025-06-15T15:06:40Z"}}"#, Some("head.at")),
            (r#"{"n":7}"#, None),
            ("pump 1 ok", None),
        ] {
            assert_eq!(candidate(line.as_bytes()).as_deref(), field, "{line}");
        }
    }

    #[test]
    fn records_of_a_rate_lie_less_than_a_millisecond_off() {
        let third = Duration::from_nanos(333_333_333);
        assert_eq!(spaced(3, third), 999);
        assert_eq!(spaced(i64::MAX, Duration::MAX), i64::MAX);
    }
}
