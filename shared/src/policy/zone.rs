//! The site's time zone: wall clock readings to local dates and back.
//!
//! The system's time zone database is used when there is one, else the one that is built in: a site without
//! tzdata keeps its windows. In spring an hour of the local clock does not exist, in autumn one comes twice;
//! what that means is said at each function.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Span, Timestamp};

/// The years for which windows and periods are computed. Clocks that are wrong by centuries count as the
/// nearest of them: nothing here fails.
const EARLIEST_MS: i64 = 0;
const LATEST_MS: i64 = 7_258_118_400_000; // 2200-01-01

/// Changes of the offset looked at between two times. Rules of today have two a year.
const MAX_TRANSITIONS: usize = 16;

/// A time zone by its IANA name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

/// A reading of the local clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) date: Date,
    /// 0 to 1,439.
    pub(super) minute: u16,
}

impl Zone {
    /// Coordinated universal time.
    #[must_use]
    pub const fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// What the local clock shows.
    pub(super) fn local(&self, wall_ms: i64) -> Local {
        let local = self.0.to_datetime(timestamp(wall_ms));
        let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute()));
        Local {
            date: local.date(),
            minute: minute.unwrap_or(0),
        }
    }

    /// When the local clock shows a minute of a date: once, twice, or in the hour that is left out, never.
    pub(super) fn instants(&self, date: Date, minute: u16) -> Vec<i64> {
        let (date, minute) = match minute {
            1_440.. => (date.tomorrow().unwrap_or(date), 0),
            _ => (date, minute),
        };
        let local = date.to_datetime(time(minute));
        let at = |offset: Offset| {
            offset
                .to_timestamp(local)
                .ok()
                .map(Timestamp::as_millisecond)
        };
        let (first, second) = match self.0.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => (at(offset), None),
            AmbiguousOffset::Gap { .. } => (None, None),
            AmbiguousOffset::Fold { before, after } => (at(before), at(after)),
        };
        first.into_iter().chain(second).collect()
    }

    /// When a date begins: midnight for good, or where midnight is left out, when the clock is put forward.
    pub(super) fn day_start(&self, date: Date) -> i64 {
        if let Some(last) = self.instants(date, 0).last() {
            return *last;
        }
        let around = self.0.to_timestamp(date.to_datetime(Time::midnight()));
        let around = around.map_or(EARLIEST_MS, Timestamp::as_millisecond);
        let day = Span::new().hours(24);
        let before = timestamp(around).checked_sub(day).unwrap_or_default();
        let change = self.0.following(before).next();
        change.map_or(around, |change| change.timestamp().as_millisecond())
    }

    /// When the clock is put forward or back, after one time and up to another.
    pub(super) fn transitions(&self, after_ms: i64, until_ms: i64) -> Vec<i64> {
        self.0
            .following(timestamp(after_ms))
            .map(|change| change.timestamp().as_millisecond())
            .take_while(|at| *at <= until_ms)
            .take(MAX_TRANSITIONS)
            .collect()
    }

    /// For people: `2026-11-28 08:00 Europe/Berlin`.
    #[must_use]
    pub fn text(&self, wall_ms: i64) -> String {
        let local = self.0.to_datetime(timestamp(wall_ms));
        let (date, hour, minute) = (local.date(), local.hour(), local.minute());
        format!("{date} {hour:02}:{minute:02} {self}")
    }
}

/// Within the years that are computed.
pub(super) fn sane(wall_ms: i64) -> i64 {
    wall_ms.clamp(EARLIEST_MS, LATEST_MS)
}

fn timestamp(wall_ms: i64) -> Timestamp {
    Timestamp::from_millisecond(sane(wall_ms)).unwrap_or_default()
}

fn time(minute: u16) -> Time {
    let part = |value: u16| i8::try_from(value).unwrap_or(0);
    Time::new(part(minute / 60), part(minute % 60), 0, 0).unwrap_or(Time::midnight())
}

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let zone = TimeZone::get(text).ok().map(Self);
        zone.ok_or_else(|| {
            "not a time zone; accepted: a name of the IANA time zone database such as \
             Europe/Berlin, America/New_York or UTC"
                .to_owned()
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    const HOUR: i64 = 3_600_000;

    fn zone(name: &str) -> Zone {
        name.parse().unwrap()
    }

    #[test]
    fn an_hour_that_is_left_out_has_no_instant_and_one_that_comes_twice_has_two() {
        let berlin = zone("Europe/Berlin");
        assert!(berlin.instants(date(2026, 3, 29), 150).is_empty());
        let twice = berlin.instants(date(2026, 10, 25), 150);
        assert_eq!(twice.len(), 2);
        assert_eq!(twice[1] - twice[0], HOUR);
        assert_eq!(berlin.instants(date(2026, 11, 28), 0).len(), 1);
        let change = berlin.transitions(twice[0], twice[1]);
        assert_eq!(change, [twice[0] + HOUR / 2]);
    }

    #[test]
    fn a_day_without_midnight_begins_when_the_clock_is_put_forward() {
        // Beirut: 2024-03-31 00:00 became 01:00
        let beirut = zone("Asia/Beirut");
        let start = beirut.day_start(date(2024, 3, 31));
        assert_eq!(beirut.local(start).date, date(2024, 3, 31));
        assert_eq!(beirut.local(start).minute, 60);
        assert_eq!(beirut.local(start - 1).date, date(2024, 3, 30));
    }

    #[test]
    fn a_day_in_autumn_has_25_hours() {
        let zone = zone("America/New_York");
        let length = zone.day_start(date(2026, 11, 2)) - zone.day_start(date(2026, 11, 1));
        assert_eq!(length, 25 * HOUR);
    }

    #[test]
    fn a_wild_clock_is_no_error() {
        for wall_ms in [i64::MIN, -1, i64::MAX] {
            let local = zone("Europe/Berlin").local(wall_ms);
            assert!(local.minute < 1_440);
        }
    }

    #[test]
    fn unknown_zones_are_refused_with_examples() {
        let error = "Europe/Berlni".parse::<Zone>().unwrap_err();
        assert!(error.contains("Europe/Berlin"), "{error}");
    }
}
