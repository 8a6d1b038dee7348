//! Time windows: on some days of the week, from one time of the local clock to another, other limits.
//!
//! A window holds while the local clock shows a time within it. So a window from 02:00 to 03:00 is left out
//! with that hour in spring and holds for two hours in autumn, as a person with a watch would do it. A window
//! whose end is not after its beginning goes on past midnight and belongs to the day on which it began.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;

use super::Limits;
use super::zone::{Local, Zone};

/// In the order of the bits of [`Days`].
const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
/// Every combination of day and window comes again within so many days.
const HORIZON_DAYS: usize = 8;
const DAY_MINUTES: u16 = 1_440;
const DAY_MS: i64 = 86_400_000;

/// Days of the week.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Days(u8);

impl Days {
    /// Every day.
    pub const ALL: Self = Self(0x7f);

    /// All of several.
    #[must_use]
    pub fn union(parts: &[Self]) -> Self {
        Self(parts.iter().fold(0, |all, part| all | part.0))
    }

    fn has(self, date: Date) -> bool {
        let day = date.weekday().to_monday_zero_offset();
        u32::try_from(day).is_ok_and(|day| self.0 >> day & 1 == 1)
    }
}

impl FromStr for Days {
    type Err = String;

    /// One day or a range of days.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |name: &str| DAY_NAMES.iter().position(|day| *day == name.trim());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!(
                "not a day of the week; accepted: {}, or a range such as mon-fri",
                DAY_NAMES.join(", ")
            ));
        };
        // `sat-mon` goes on over the end of the week
        let count = (last + 7 - first) % 7;
        let days = (0..=count).fold(0, |days, next| days | 1 << ((first + next) % 7));
        Ok(Self(days))
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |day: usize| self.0 >> day & 1 == 1;
        let mut day = 0;
        let mut is_first = true;
        while day < DAY_NAMES.len() {
            let last = (day..DAY_NAMES.len()).take_while(|next| has(*next)).last();
            let Some(last) = last else {
                day += 1;
                continue;
            };
            if !is_first {
                f.write_str(",")?;
            }
            is_first = false;
            match last - day {
                0 => f.write_str(DAY_NAMES[day])?,
                1 => write!(f, "{},{}", DAY_NAMES[day], DAY_NAMES[last])?,
                _ => write!(f, "{}-{}", DAY_NAMES[day], DAY_NAMES[last])?,
            }
            day = last + 1;
        }
        Ok(())
    }
}

impl fmt::Debug for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A time of the local clock, to the minute; 24:00 is the end of a day.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// 00:00.
    pub const START: Self = Self(0);
    /// 24:00.
    pub const END: Self = Self(DAY_MINUTES);
}

impl FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(hour, minute)| {
            let is_plain = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            if !is_plain(hour) || !is_plain(minute) {
                return None;
            }
            let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
            let all = hour * 60 + minute;
            (minute < 60 && all <= DAY_MINUTES).then_some(Self(all))
        });
        parsed.ok_or_else(|| "not a time of day; accepted: 00:00 to 24:00".to_owned())
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl fmt::Debug for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One window and what holds in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Days on which it begins.
    pub days: Days,
    /// The first minute.
    pub from: TimeOfDay,
    /// The first minute after it.
    pub to: TimeOfDay,
    /// Instead of the policy's own.
    pub limits: Limits,
}

impl Window {
    /// Whether it goes on past midnight.
    fn wraps(&self) -> bool {
        self.to <= self.from
    }

    fn holds(&self, local: Local) -> bool {
        let now = TimeOfDay(local.minute);
        if !self.wraps() {
            return self.days.has(local.date) && self.from <= now && now < self.to;
        }
        let began_today = self.days.has(local.date) && self.from <= now;
        let yesterday = local.date.yesterday();
        began_today || yesterday.is_ok_and(|day| self.days.has(day)) && now < self.to
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != Days::ALL {
            write!(f, "{} ", self.days)?;
        }
        write!(f, "{}-{}", self.from, self.to)
    }
}

/// Windows that never hold, because those before them hold at all their times.
pub(super) fn hidden(windows: &[Window]) -> Vec<usize> {
    let monday = Date::constant(2026, 1, 5);
    let days = monday.series(jiff::Span::new().days(1)).take(7);
    let minutes = || 0..DAY_MINUTES;
    let times: Vec<Local> = days
        .flat_map(|date| minutes().map(move |minute| Local { date, minute }))
        .collect();
    let mut is_free = vec![true; times.len()];
    let mut hidden = Vec::new();
    for (index, window) in windows.iter().enumerate() {
        let mut is_seen = false;
        for (local, is_free) in times.iter().zip(&mut is_free) {
            if *is_free && window.holds(*local) {
                (is_seen, *is_free) = (true, false);
            }
        }
        if !is_seen {
            hidden.push(index);
        }
    }
    hidden
}

/// The first window that holds; its place in the list.
pub(super) fn which(windows: &[Window], zone: &Zone, wall_ms: i64) -> Option<usize> {
    let local = zone.local(wall_ms);
    windows.iter().position(|window| window.holds(local))
}

/// When another window will hold, or none; `None` when that never changes.
pub(super) fn next_change(windows: &[Window], zone: &Zone, wall_ms: i64) -> Option<i64> {
    let current = which(windows, zone, wall_ms);
    let mut candidates = boundaries(windows, zone, wall_ms);
    candidates.sort_unstable();
    candidates
        .into_iter()
        .filter(|at| *at > wall_ms)
        .find(|at| which(windows, zone, *at) != current)
}

/// Every time within the horizon at which a window may begin or end.
pub(super) fn boundaries(windows: &[Window], zone: &Zone, wall_ms: i64) -> Vec<i64> {
    if windows.is_empty() {
        return Vec::new();
    }
    let mut minutes: Vec<u16> = windows
        .iter()
        .flat_map(|window| [window.from.0 % DAY_MINUTES, window.to.0 % DAY_MINUTES])
        // a window of some days may begin or end with the day
        .chain([0])
        .collect();
    minutes.sort_unstable();
    minutes.dedup();
    let until = wall_ms.saturating_add(DAY_MS.saturating_mul(HORIZON_DAYS as i64));
    // the clock is put forward or back into a window, or out of one
    let mut found = zone.transitions(wall_ms, until);
    let mut day = zone.local(wall_ms).date;
    for _ in 0..=HORIZON_DAYS {
        for minute in &minutes {
            found.extend(zone.instants(day, *minute));
        }
        let Ok(next) = day.tomorrow() else {
            break;
        };
        day = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: i64 = 60_000;

    fn window(days: &str, from: &str, to: &str) -> Window {
        Window {
            days: days.parse().unwrap(),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            limits: Limits::default(),
        }
    }

    fn at(zone: &Zone, day: Date, time: &str) -> i64 {
        zone.instants(day, time.parse::<TimeOfDay>().unwrap().0)[0]
    }

    #[test]
    fn windows_that_others_hide_are_found() {
        let window = |days: &str, from: &str, to: &str| Window {
            days: days.parse().unwrap(),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            limits: Limits::default(),
        };
        let all_day = || window("mon-sun", "00:00", "24:00");
        let restart = || window("mon-sun", "03:55", "04:05");
        let night = || window("mon-sun", "22:00", "06:00");
        assert_eq!(hidden(&[all_day(), restart()]), [1]);
        assert_eq!(hidden(&[night(), restart(), all_day(), night()]), [1, 3]);
        assert!(hidden(&[restart(), night(), all_day()]).is_empty());
        // the night of Sunday ends on Monday
        let sunday = window("sun", "22:00", "06:00");
        let monday = window("mon", "05:00", "06:00");
        assert_eq!(hidden(&[sunday.clone(), monday.clone()]), [1]);
        assert!(hidden(&[monday, sunday]).is_empty());
        let halves = [
            window("mon-fri", "00:00", "24:00"),
            window("sat-sun", "00:00", "24:00"),
            restart(),
        ];
        assert_eq!(hidden(&halves), [2]);
    }

    #[test]
    fn the_first_window_that_matches_decides() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        let windows = [
            window("mon-fri", "08:00", "12:00"),
            window("mon-sun", "08:00", "18:00"),
        ];
        // a Friday and a Saturday
        let (friday, saturday) = (date(2026, 11, 27), date(2026, 11, 28));
        for (day, time, expected) in [
            (friday, "07:59", None),
            (friday, "08:00", Some(0)),
            (friday, "12:00", Some(1)),
            (friday, "18:00", None),
            (saturday, "08:00", Some(1)),
        ] {
            assert_eq!(
                which(&windows, &berlin, at(&berlin, day, time)),
                expected,
                "{time}"
            );
        }
        let next = next_change(&windows, &berlin, at(&berlin, friday, "09:30"));
        assert_eq!(next, Some(at(&berlin, friday, "12:00")));
        let next = next_change(&windows, &berlin, at(&berlin, friday, "20:00"));
        assert_eq!(next, Some(at(&berlin, saturday, "08:00")));
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_began() {
        let zone = Zone::utc();
        let windows = [window("fri", "22:00", "06:00")];
        let (friday, saturday) = (date(2026, 11, 27), date(2026, 11, 28));
        for (day, time, expected) in [
            (friday, "05:00", None),
            (friday, "22:00", Some(0)),
            (saturday, "05:59", Some(0)),
            (saturday, "06:00", None),
            (saturday, "23:00", None),
        ] {
            assert_eq!(
                which(&windows, &zone, at(&zone, day, time)),
                expected,
                "{day} {time}"
            );
        }
        let next = next_change(&windows, &zone, at(&zone, saturday, "07:00"));
        assert_eq!(next, Some(at(&zone, date(2026, 12, 4), "22:00")));
    }

    #[test]
    fn an_hour_left_out_in_spring_leaves_out_its_window() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        let windows = [window("mon-sun", "02:00", "03:00")];
        let before = at(&berlin, date(2026, 3, 29), "01:30");
        assert_eq!(which(&windows, &berlin, before + 30 * MINUTE), None);
        let next = next_change(&windows, &berlin, before);
        assert_eq!(next, Some(at(&berlin, date(2026, 3, 30), "02:00")));
        // one that begins within the hour begins when the clock is put forward
        let windows = [window("mon-sun", "02:30", "04:00")];
        assert_eq!(
            next_change(&windows, &berlin, before),
            Some(before + 30 * MINUTE)
        );
    }

    #[test]
    fn an_hour_that_comes_twice_has_its_window_twice() {
        let new_york: Zone = "America/New_York".parse().unwrap();
        let windows = [window("mon-sun", "01:00", "02:00")];
        let from = at(&new_york, date(2026, 11, 1), "01:00");
        assert_eq!(
            next_change(&windows, &new_york, from),
            Some(from + 120 * MINUTE)
        );
        // half of it: twice half an hour
        let windows = [window("mon-sun", "01:30", "02:00")];
        let changes: Vec<i64> = (0..4)
            .scan(from, |now, _| {
                *now = next_change(&windows, &new_york, *now)?;
                Some((*now - from) / MINUTE)
            })
            .collect();
        assert_eq!(changes[..4], [30, 60, 90, 120]);
    }

    #[test]
    fn days_and_times_are_read_and_shown() {
        for (text, shown) in [
            ("mon", "mon"),
            ("mon-fri", "mon-fri"),
            ("sat-mon", "mon,sat,sun"),
            ("mon-sun", "mon-sun"),
        ] {
            assert_eq!(text.parse::<Days>().unwrap().to_string(), shown);
        }
        for bad in ["", "Monday", "mon-", "mon-xyz"] {
            assert!(bad.parse::<Days>().is_err(), "{bad}");
        }
        for bad in ["", "8:00", "24:01", "12:60", "-1:00", "12", "1200", "٠٨:٠٠"] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
        assert_eq!("24:00".parse::<TimeOfDay>().unwrap(), TimeOfDay::END);
        assert_eq!(
            window("mon-fri", "22:00", "06:00").to_string(),
            "mon-fri 22:00-06:00"
        );
    }

    fn any_window() -> impl Strategy<Value = Window> {
        (1_u8..0x80, 0_u16..96, 1_u16..97).prop_filter_map("empty", |(days, from, to)| {
            (from != to).then(|| Window {
                days: Days(days),
                from: TimeOfDay(from * 15),
                to: TimeOfDay(to * 15),
                limits: Limits::default(),
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a look at every quarter of an hour; all zones here change at a whole one.
        #[test]
        fn the_next_change_is_the_first(
            windows in prop::collection::vec(any_window(), 1..4),
            zone in prop::sample::select(vec![
                "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Asia/Beirut",
            ]),
            // a week around each change of 2024, and any day of it
            start in prop::sample::select(vec![
                1_709_856_000_000_i64, 1_711_584_000_000, 1_712_188_800_000, 1_729_728_000_000,
                1_730_419_200_000, 1_718_000_000_000 / 900_000 * 900_000,
            ]),
            quarter in 0_i64..400,
        ) {
            let zone: Zone = zone.parse().unwrap();
            let now = start + quarter * 15 * MINUTE;
            let current = which(&windows, &zone, now);
            let steps = 4 * 24 * HORIZON_DAYS as i64;
            let mut later = (1..=steps).map(|step| now + step * 15 * MINUTE);
            let expected = later.find(|at| which(&windows, &zone, *at) != current);
            prop_assert_eq!(next_change(&windows, &zone, now), expected);
        }
    }
}
