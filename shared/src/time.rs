//! The only clock.
//!
//! Deadlines come from [`now`], which goes on while the machine sleeps: a vehicle parked overnight
//! must not take eight hours for none. The wall clock ([`wall_ms`]) only labels records, log lines and
//! certificates' validity: no ordering, no time-out and no duplicate check depends on it.
#![expect(
    clippy::disallowed_methods,
    reason = "the one place that reads a clock"
)]

use std::time::{Duration, SystemTime};

/// A sleep is cut into naps of this length: tokio's timer stands still while the machine sleeps, so
/// that a deadline that passed meanwhile is noticed this late at most.
const LONGEST_NAP: Duration = Duration::from_secs(5);

/// Time since boot, time asleep included (`CLOCK_BOOTTIME`).
#[must_use]
#[expect(unsafe_code, reason = "std has no suspend-aware clock")]
pub fn now() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write to, and lives longer than it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(result, 0, "every Linux since 2.6.39 has CLOCK_BOOTTIME");
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(secs, nanos)
}

/// Milliseconds since 1970 as the wall clock has it; it may be wrong and may jump.
#[must_use]
pub fn wall_ms() -> i64 {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// Waits until [`now`] has reached `deadline`. Cancel-safe.
pub async fn sleep_until(deadline: Duration) {
    loop {
        let left = deadline.saturating_sub(now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_NAP)).await;
    }
}

/// Waits for `length`, measured by [`now`]. Cancel-safe.
pub async fn sleep(length: Duration) {
    sleep_until(now().saturating_add(length)).await;
}

/// A wall clock reading for people: `2026-11-22 17:30:05 UTC`.
#[must_use]
pub fn utc(wall_ms: i64) -> String {
    let secs = wall_ms.div_euclid(1_000);
    let (days, second) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar: years begin in
/// March, so that the leap day is a year's last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_ends_of_years() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (-1_000, "1969-12-31 23:59:59 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199_999, "2024-02-29 23:59:59 UTC"),
            (1_767_225_599_000, "2025-12-31 23:59:59 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }

    #[tokio::test]
    async fn a_sleep_ends_at_its_deadline_and_not_before() {
        let deadline = now() + Duration::from_millis(20);
        sleep_until(deadline).await;
        assert!(now() >= deadline);
    }
}
