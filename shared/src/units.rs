//! Sizes, durations and bit rates as people write them: `256MiB`, `7d`, `256kbit`.
//!
//! A unit is always written out; only a plain number of bytes goes without. Text and value round-trip:
//! what [`fmt::Display`] prints, [`FromStr`] reads as the same value.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const SIZE_FORMS: &str = "a whole number of bytes such as 1048576, or with B, kB, MB, GB, TB, PB (powers of 1000) or KiB, MiB, GiB, TiB (powers of 1024)";
const SPAN_FORMS: &str = "whole numbers with ms, s, m, h, d or w, such as 500ms, 30s, 7d or 1h30m";

const RATE_FORMS: &str = "a whole number with bit, kbit, Mbit or Gbit (a second, powers of 1000), such as 256kbit or 10Mbit";

/// Largest first, so that [`ByteSize::rounded`] takes the largest unit that fits.
const BINARY_UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];
const DECIMAL_UNITS: [(&str, u64); 5] = [
    ("PB", 1_000_000_000_000_000),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];
/// Units of a [`BitRate`] in bits a second, largest first.
const RATE_UNITS: [(&str, u64); 4] = [
    ("Gbit", 1_000_000_000),
    ("Mbit", 1_000_000),
    ("kbit", 1_000),
    ("bit", 1),
];
/// Units of a [`Span`] in milliseconds, largest first.
const SPAN_UNITS: [(&str, u64); 6] = [
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Why a text is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not one of the accepted forms.
    #[error("`{text}` is not a {what}; accepted: {accepted}")]
    Form {
        text: String,
        what: &'static str,
        accepted: &'static str,
    },
    /// More than 64 bits can hold.
    #[error("`{text}` is too large for a {what}")]
    TooLarge { text: String, what: &'static str },
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many times 1024 bytes.
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many times 1024 x 1024 bytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// So many times 1024 x 1024 x 1024 bytes.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes for an amount of memory; what a `usize` cannot hold becomes its maximum.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// For people: one decimal and the nearest binary unit, such as `1.5 GiB`. Does not round-trip.
    #[must_use]
    pub fn rounded(self) -> String {
        BINARY_UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor)
            .map_or_else(
                || format!("{} B", self.0),
                |(name, factor)| {
                    let tenths = u128::from(self.0) * 10 / u128::from(*factor);
                    format!("{}.{} {name}", tenths / 10, tenths % 10)
                },
            )
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form {
            text: text.to_owned(),
            what: "size",
            accepted: SIZE_FORMS,
        };
        let large = || UnitError::TooLarge {
            text: text.to_owned(),
            what: "size",
        };
        let (number, unit) = split_number(text.trim()).ok_or_else(form)?;
        let factor = match unit {
            "" | "B" => 1,
            _ => BINARY_UNITS
                .iter()
                .chain(&DECIMAL_UNITS)
                .find(|(name, _)| *name == unit)
                .map(|(_, factor)| *factor)
                .ok_or_else(form)?,
        };
        let count = number.parse::<u64>().map_err(|_| large())?;
        count.checked_mul(factor).map(Self).ok_or_else(large)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit of either system that leaves no rest: `2GB`, `1536MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, factor): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*factor);
        match BINARY_UNITS
            .iter()
            .chain(&DECIMAL_UNITS)
            .filter(exact)
            .max_by_key(|(_, factor)| *factor)
        {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A length of time in whole milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    millis: u64,
}

impl Span {
    /// So many milliseconds.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self { millis }
    }

    /// So many seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self {
            millis: secs * 1_000,
        }
    }

    /// So many minutes.
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self {
            millis: minutes * 60_000,
        }
    }

    /// So many hours.
    #[must_use]
    pub const fn hours(hours: u64) -> Self {
        Self {
            millis: hours * 3_600_000,
        }
    }

    /// So many days of 24 hours.
    #[must_use]
    pub const fn days(days: u64) -> Self {
        Self {
            millis: days * 86_400_000,
        }
    }

    /// The milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.millis
    }

    /// The same as the standard library has it.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }

    /// For people: the two largest units only, such as `3d4h`, and milliseconds below a second only.
    /// Does not round-trip.
    #[must_use]
    pub fn rounded(self) -> String {
        let Some(first) = SPAN_UNITS
            .iter()
            .position(|(_, factor)| self.millis >= *factor)
        else {
            return "0s".to_owned();
        };
        let smallest = match SPAN_UNITS.get(first + 1) {
            Some((_, factor)) => (*factor).max(1_000),
            None => 1,
        };
        Self {
            millis: self.millis / smallest * smallest,
        }
        .to_string()
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form {
            text: text.to_owned(),
            what: "duration",
            accepted: SPAN_FORMS,
        };
        let large = || UnitError::TooLarge {
            text: text.to_owned(),
            what: "duration",
        };
        let mut rest = text.trim();
        let mut millis = 0_u64;
        let mut last_factor = u64::MAX;
        loop {
            let (number, tail) = split_number(rest).ok_or_else(form)?;
            let end = tail
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let factor = SPAN_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, factor)| *factor)
                // Each unit once and from large to small: `30s1h` is more likely a slip than a wish.
                .filter(|factor| *factor < last_factor)
                .ok_or_else(form)?;
            let count = number.parse::<u64>().map_err(|_| large())?;
            let part = count.checked_mul(factor).ok_or_else(large)?;
            millis = millis.checked_add(part).ok_or_else(large)?;
            if tail.is_empty() {
                return Ok(Self { millis });
            }
            (rest, last_factor) = (tail, factor);
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        // Weeks are read but not printed: `7d` stays `7d`.
        for (name, factor) in &SPAN_UNITS[1..] {
            if rest >= *factor {
                write!(f, "{}{name}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.duration()
    }
}

/// Bits a second, as links are sold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(pub u64);

impl BitRate {
    /// So many thousand bits a second.
    #[must_use]
    pub const fn kbit(count: u64) -> Self {
        Self(count * 1_000)
    }

    /// So many million bits a second.
    #[must_use]
    pub const fn mbit(count: u64) -> Self {
        Self(count * 1_000_000)
    }

    /// The bits a second.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whole bytes a second, rounded down.
    #[must_use]
    pub const fn bytes_per_sec(self) -> u64 {
        self.0 / 8
    }

    /// For people: one decimal and the nearest unit, such as `1.5 Mbit/s`. Does not round-trip.
    #[must_use]
    pub fn rounded(self) -> String {
        match RATE_UNITS.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((name, factor)) if *factor > 1 => {
                let tenths = u128::from(self.0) * 10 / u128::from(*factor);
                format!("{}.{} {name}/s", tenths / 10, tenths % 10)
            }
            Some(_) | None => format!("{} bit/s", self.0),
        }
    }
}

impl FromStr for BitRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let form = || UnitError::Form {
            text: text.to_owned(),
            what: "bit rate",
            accepted: RATE_FORMS,
        };
        let large = || UnitError::TooLarge {
            text: text.to_owned(),
            what: "bit rate",
        };
        let (number, unit) = split_number(text.trim()).ok_or_else(form)?;
        let unit = unit.strip_suffix("/s").unwrap_or(unit);
        let factor = RATE_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, factor)| *factor)
            // a bare number could be meant in bytes
            .ok_or_else(form)?;
        let count = number.parse::<u64>().map_err(|_| large())?;
        count.checked_mul(factor).map(Self).ok_or_else(large)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, factor): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*factor);
        match RATE_UNITS.iter().find(exact) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}bit", self.0),
        }
    }
}

impl fmt::Debug for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Digits and what follows them; `None` when there are no digits.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    (end > 0).then(|| {
        let (number, unit) = text.split_at(end);
        (number, unit.trim_start())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_in_both_systems() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("17B", 17),
            ("256MiB", 268_435_456),
            ("256 MiB", 268_435_456),
            ("1MB", 1_000_000),
            ("3kB", 3_000),
            ("1PB", 1_000_000_000_000_000),
            ("16TiB", 17_592_186_044_416),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_refused_size_names_the_value_and_the_forms() {
        for text in ["", "MiB", "1.5GiB", "-1", "12 apples", "1mb", "1Mib"] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("MiB"),
                "{error}"
            );
        }
        assert!(matches!(
            "99999999TiB".parse::<ByteSize>(),
            Err(UnitError::TooLarge { .. })
        ));
        assert!(matches!(
            "99999999999999999999".parse::<ByteSize>(),
            Err(UnitError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_size_is_shown_in_the_largest_unit_that_leaves_no_rest() {
        for (bytes, text) in [
            (0, "0B"),
            (17, "17B"),
            (1_024, "1KiB"),
            (100_000, "100kB"),
            (1_024_000, "1000KiB"),
            (268_435_456, "256MiB"),
            (1_610_612_736, "1536MiB"),
            (2_000_000_000, "2GB"),
            (1_000_000_000_000_000, "1PB"),
            (1 << 50, "1024TiB"),
        ] {
            let size = ByteSize(bytes);
            assert_eq!(size.to_string(), text);
            assert_eq!(text.parse(), Ok(size), "{text}");
        }
    }

    #[test]
    fn durations_are_read_in_parts() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
            ("0s", 0),
            ("1d2h", 93_600_000),
        ] {
            assert_eq!(text.parse(), Ok(Span::millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_refused_duration_names_the_value_and_the_forms() {
        for text in [
            "", "30", "s", "1.5h", "-3s", "30s1h", "1s1s", "5 years", "5us",
        ] {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("500ms"),
                "{error}"
            );
        }
        assert!(matches!(
            "99999999999999999w".parse::<Span>(),
            Err(UnitError::TooLarge { .. })
        ));
    }

    #[test]
    fn bit_rates_are_read_and_a_bare_number_is_not() {
        for (text, bits) in [
            ("256kbit", 256_000),
            ("10 Mbit", 10_000_000),
            ("1Gbit", 1_000_000_000),
            ("9600bit", 9_600),
            ("32kbit/s", 32_000),
        ] {
            assert_eq!(text.parse(), Ok(BitRate(bits)), "{text}");
        }
        for text in ["", "256", "256kB", "1.5Mbit", "-1kbit", "1mbit", "kbit"] {
            let error = text.parse::<BitRate>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("kbit"),
                "{error}"
            );
        }
        assert!(matches!(
            "99999999999999Gbit".parse::<BitRate>(),
            Err(UnitError::TooLarge { .. })
        ));
        assert_eq!(BitRate::kbit(256).bytes_per_sec(), 32_000);
        assert_eq!(BitRate(1_540_000).rounded(), "1.5 Mbit/s");
        assert_eq!(BitRate(600).rounded(), "600 bit/s");
    }

    #[test]
    fn people_get_short_figures() {
        assert_eq!(ByteSize(1_610_612_736).rounded(), "1.5 GiB");
        assert_eq!(ByteSize(12).rounded(), "12 B");
        assert_eq!(Span::millis(93_784_005).rounded(), "1d2h");
        assert_eq!(Span::millis(6_721).rounded(), "6s");
        assert_eq!(Span::millis(721).rounded(), "721ms");
        assert_eq!(Span::millis(0).rounded(), "0s");
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes in any::<u64>()) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn whole_units_round_trip(count in 0_u64..10_000, unit in 0_usize..9) {
            let (_, factor) = *BINARY_UNITS.iter().chain(&DECIMAL_UNITS).nth(unit).unwrap();
            let size = ByteSize(count * factor);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn durations_round_trip(millis in any::<u64>()) {
            prop_assert_eq!(Span::millis(millis).to_string().parse(), Ok(Span::millis(millis)));
        }

        #[test]
        fn bit_rates_round_trip(bits in any::<u64>()) {
            prop_assert_eq!(BitRate(bits).to_string().parse(), Ok(BitRate(bits)));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            drop(text.parse::<BitRate>());
            drop(text.parse::<ByteSize>());
            drop(text.parse::<Span>());
        }
    }
}
