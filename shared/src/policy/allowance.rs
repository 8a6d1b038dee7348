//! A data allowance: so many bytes a day, week or month, and what happens when they run out.

use std::fmt;

use crate::units::ByteSize;
use jiff::civil::Date;

use super::zone::{Zone, sane};

/// Where the first action begins, in percent.
const FIRST_PERCENT: u64 = 80;
/// Days from one week to the next.
const WEEK: i32 = 7;

/// How often the allowance is given anew, always at midnight of the site's time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Every day.
    Day,
    /// Every week, on a day of it: 1 is Monday, 7 is Sunday.
    Week { reset_day: u8 },
    /// Every month, on a day of it, or on its last one when it is shorter.
    Month { reset_day: u8 },
}

/// When an allowance is given anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    /// How often.
    pub period: Period,
    /// Whose midnight counts.
    pub zone: Zone,
}

impl Calendar {
    /// The period that a time belongs to.
    #[must_use]
    pub fn term(&self, wall_ms: i64) -> Term {
        self.period.term(&self.zone, wall_ms)
    }

    /// When the period that a time belongs to ends.
    #[must_use]
    pub fn end_ms(&self, wall_ms: i64) -> i64 {
        self.term(wall_ms).end_ms
    }

    /// Tells calendars apart in a file.
    #[must_use]
    pub fn key(&self) -> u64 {
        let (kind, day) = match self.period {
            Period::Day => (1, 0),
            Period::Week { reset_day } => (2, reset_day),
            Period::Month { reset_day } => (3, reset_day),
        };
        let zone = crc32c::crc32c(self.zone.to_string().as_bytes());
        u64::from(zone) << 16 | u64::from(day) << 8 | kind
    }
}

/// One period of the calendar, in ms since 1970: from the first to before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Term {
    /// Its first moment.
    pub start_ms: i64,
    /// The first moment after it.
    pub end_ms: i64,
}

impl Term {
    /// How long it is.
    #[must_use]
    pub const fn length_ms(self) -> i64 {
        self.end_ms.saturating_sub(self.start_ms)
    }
}

impl Period {
    /// The period that a time belongs to.
    pub(super) fn term(self, zone: &Zone, wall_ms: i64) -> Term {
        let now = sane(wall_ms);
        let mut first = self.first_day(zone.local(now).date);
        // a clock that is put back over midnight shows a date before it has begun for good
        if zone.day_start(first) > now {
            first = self.first_day(first.yesterday().unwrap_or(first));
        }
        Term {
            start_ms: zone.day_start(first),
            end_ms: zone.day_start(self.next_first_day(first)),
        }
    }

    /// The reset day at or before a date.
    fn first_day(self, date: Date) -> Date {
        match self {
            Self::Day => date,
            Self::Week { reset_day } => {
                let day = i32::from(date.weekday().to_monday_one_offset());
                let since = (day + WEEK - i32::from(reset_day)).rem_euclid(WEEK);
                (0..since).fold(date, |date, _| date.yesterday().unwrap_or(date))
            }
            Self::Month { reset_day } => {
                let here = in_month(date, reset_day);
                if here <= date {
                    return here;
                }
                let before = date.first_of_month().yesterday().unwrap_or(date);
                in_month(before, reset_day)
            }
        }
    }

    fn next_first_day(self, first: Date) -> Date {
        let after = |days: i32| (0..days).fold(first, |date, _| date.tomorrow().unwrap_or(date));
        match self {
            Self::Day => after(1),
            Self::Week { .. } => after(WEEK),
            Self::Month { reset_day } => {
                let next = first.last_of_month().tomorrow().unwrap_or(first);
                in_month(next, reset_day)
            }
        }
    }
}

/// The reset day in a date's month.
fn in_month(date: Date, reset_day: u8) -> Date {
    let last = date.last_of_month();
    let day = i8::try_from(reset_day)
        .unwrap_or(i8::MAX)
        .clamp(1, last.day());
    Date::new(date.year(), date.month(), day).unwrap_or(last)
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "day",
            Self::Week { .. } => "week",
            Self::Month { .. } => "month",
        })
    }
}

/// What happens when the allowance runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// As before.
    Continue,
    /// Only records of critical topics.
    CriticalOnly,
    /// Nothing leaves: the session is closed and none is dialled until the next period.
    Stop,
}

impl Action {
    /// As it is written in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::CriticalOnly => "critical-only",
            Self::Stop => "stop",
        }
    }
}

/// Bytes both ways in IP packets, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// So many a period.
    pub bytes: ByteSize,
    /// When they are given anew.
    pub period: Period,
    /// From 80 % on.
    pub at_80: Action,
    /// When all is used.
    pub at_100: Action,
}

impl Allowance {
    /// Kept back from the end, for what the hub may still send after the last datagram has left: so that
    /// `stop` means that the allowance is never exceeded.
    const fn margin(&self) -> u64 {
        let bytes = self.bytes.bytes();
        let share = bytes / 100;
        let least = if bytes / 10 < LEAST_MARGIN {
            bytes / 10
        } else {
            LEAST_MARGIN
        };
        if share < least {
            least
        } else if share > MOST_MARGIN {
            MOST_MARGIN
        } else {
            share
        }
    }

    /// What counts as all of it.
    const fn end(&self) -> u64 {
        match self.at_100 {
            Action::Stop => self.bytes.bytes() - self.margin(),
            Action::Continue | Action::CriticalOnly => self.bytes.bytes(),
        }
    }

    /// Where the first action begins.
    fn first(&self) -> u64 {
        let bytes = u128::from(self.bytes.bytes()) * u128::from(FIRST_PERCENT);
        u64::try_from(bytes.div_ceil(100)).unwrap_or(u64::MAX)
    }

    /// What holds at so many used bytes.
    #[must_use]
    pub fn action(&self, used: u64) -> Action {
        if used >= self.end() {
            self.at_100
        } else if used >= self.first() {
            self.at_80
        } else {
            Action::Continue
        }
    }

    /// Bytes until another action holds; `None` when there is none to come.
    #[must_use]
    pub fn until_next_action(&self, used: u64) -> Option<u64> {
        let current = self.action(used);
        [self.first(), self.end()]
            .into_iter()
            .filter(|at| *at > used && self.action(*at) != current)
            .map(|at| at - used)
            .min()
    }

    /// Bytes that may still move before nothing may any more; `None`: this never stops anything.
    #[must_use]
    pub fn hard_left(&self, used: u64) -> Option<u64> {
        let stop = match (self.at_80, self.at_100) {
            // beyond what ends the session: for saying goodbye
            (Action::Stop, _) => self.first().saturating_add(self.margin() / 4),
            (_, Action::Stop) => self.end().saturating_add(self.margin() / 4),
            (Action::Continue | Action::CriticalOnly, Action::Continue | Action::CriticalOnly) => {
                return None;
            }
        };
        Some(stop.saturating_sub(used))
    }
}

/// What a hub sends at most after a site fell silent: a few packets, each a few times.
const LEAST_MARGIN: u64 = 32 << 10;
const MOST_MARGIN: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;

    fn allowance(bytes: u64, at_80: Action, at_100: Action) -> Allowance {
        Allowance {
            bytes: ByteSize(bytes),
            period: Period::Month { reset_day: 1 },
            at_80,
            at_100,
        }
    }

    #[test]
    fn a_month_begins_on_its_reset_day_or_its_last() {
        let period = Period::Month { reset_day: 31 };
        for (day, first, next) in [
            (date(2026, 1, 30), date(2025, 12, 31), date(2026, 1, 31)),
            (date(2026, 1, 31), date(2026, 1, 31), date(2026, 2, 28)),
            (date(2026, 2, 28), date(2026, 2, 28), date(2026, 3, 31)),
            (date(2028, 2, 28), date(2028, 1, 31), date(2028, 2, 29)),
            (date(2026, 4, 30), date(2026, 4, 30), date(2026, 5, 31)),
        ] {
            assert_eq!(period.first_day(day), first, "{day}");
            assert_eq!(period.next_first_day(first), next, "{day}");
        }
        let period = Period::Month { reset_day: 15 };
        assert_eq!(period.first_day(date(2026, 1, 14)), date(2025, 12, 15));
        assert_eq!(period.first_day(date(2026, 1, 15)), date(2026, 1, 15));
    }

    #[test]
    fn a_week_begins_on_its_reset_day() {
        // 2026-11-28 is a Saturday
        let saturday = date(2026, 11, 28);
        assert_eq!(
            Period::Week { reset_day: 1 }.first_day(saturday),
            date(2026, 11, 23)
        );
        assert_eq!(Period::Week { reset_day: 6 }.first_day(saturday), saturday);
        assert_eq!(
            Period::Week { reset_day: 7 }.first_day(saturday),
            date(2026, 11, 22)
        );
    }

    #[test]
    fn a_period_ends_at_midnight_of_the_site() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        let term = Period::Month { reset_day: 1 }.term(&berlin, 1_795_824_000_000);
        // 2026-11-01 00:00 and 2026-12-01 00:00 in Berlin, one hour before UTC
        assert_eq!(
            (term.start_ms, term.end_ms),
            (1_793_487_600_000, 1_796_079_600_000)
        );
    }

    #[test]
    fn actions_begin_at_80_percent_and_at_the_end() {
        let both = allowance(10_000_000, Action::CriticalOnly, Action::Stop);
        assert_eq!(both.action(7_999_999), Action::Continue);
        assert_eq!(both.until_next_action(7_999_000), Some(1_000));
        assert_eq!(both.action(8_000_000), Action::CriticalOnly);
        assert_eq!(both.action(10_000_000), Action::Stop);
        // the end comes before the last byte
        assert!(both.end() < 10_000_000 && both.end() > 9_800_000);
        assert!(both.hard_left(both.end()).unwrap() < both.margin());
        let never = allowance(1_000, Action::Continue, Action::CriticalOnly);
        assert_eq!(never.hard_left(5_000), None);
        assert_eq!(never.action(999), Action::Continue);
        assert_eq!(never.until_next_action(1_000), None);
    }

    proptest! {
        #[test]
        fn every_time_lies_in_its_period_and_periods_join(
            wall_ms in 0_i64..4_000_000_000_000,
            zone in prop::sample::select(vec![
                "Europe/Berlin", "America/New_York", "Asia/Beirut", "America/Sao_Paulo", "Pacific/Apia",
            ]),
            kind in 0_u8..3,
            day in 1_u8..32,
        ) {
            let zone: Zone = zone.parse().unwrap();
            let period = match kind {
                0 => Period::Day,
                1 => Period::Week { reset_day: (day - 1) % 7 + 1 },
                _ => Period::Month { reset_day: day },
            };
            let term = period.term(&zone, wall_ms);
            prop_assert!(term.start_ms <= wall_ms && wall_ms < term.end_ms, "{:?}", term);
            prop_assert_eq!(period.term(&zone, term.end_ms).start_ms, term.end_ms);
            prop_assert_eq!(period.term(&zone, term.end_ms - 1), term);
        }

        #[test]
        fn nothing_overflows(bytes in any::<u64>(), used in any::<u64>()) {
            let it = allowance(bytes, Action::CriticalOnly, Action::Stop);
            prop_assert!(it.end() <= bytes);
            prop_assert!(it.until_next_action(used).is_none_or(|left| left > 0));
            let _no_panic = (it.action(used), it.hard_left(used));
        }
    }
}
