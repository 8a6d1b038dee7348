//! What was used of an allowance in its period, and when it is given anew: also when the wall clock lies.
//!
//! ```text
//!            the clock passes the period's end
//!   charged ───────────────────────────────────► is it true? ──► proven: anew
//!      ▲                                             │
//!      │                                             ├──► not proven, the first time: anew, and the old
//!      │      the clock goes back behind the         │    period is remembered
//!      └──── period's beginning: what was used ◄─────┤
//!            under the wrong one is added            └──► not proven again: withheld
//! ```
//! A site's clock may start in 1970, be set by years, or go wrong for a while. The machine's running clock
//! (time since boot, sleep included) can't be set, so it is the witness:
//!
//! - *Proven*: since the last renewal, or since the first look after a boot, no more wall time has passed
//!   than running time; or a whole period of running time has.
//! - What isn't proven is believed once a boot, and again after two periods' length of running time: a site
//!   without a clock of its own learns the date after each boot. Two, because a belief can bring a second
//!   allowance with it, at the midnight that follows in the new date.
//! - A clock that is behind renews nothing; it goes on with the period that it knows.
//!
//! So in one boot, whatever the clock does, no more than two allowances are given for each period's length of
//! running time, and three more at its ends; and an allowance that a wrong clock brought is taken into account when the clock
//! comes back. A site that is switched off for whole periods loses nothing by that.
//!
//! Changing the period or its zone keeps what was used: editing a file is no way to a new allowance.

use std::time::Duration;

use super::{Calendar, Term};

/// The clocks of a machine are this much apart without lying: the wall clock is slewed and stepped a little.
const TOLERANCE_MS: u64 = 60_000;

/// A reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Milliseconds since 1970; may be wrong and may jump.
    pub wall_ms: i64,
    /// Since boot, time asleep included.
    pub running: Duration,
    /// Of this boot.
    pub boot_id: u128,
}

/// A period that was left because the clock said so, without proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::uplink) struct Left {
    pub(in crate::uplink) start_ms: i64,
    pub(in crate::uplink) used: u64,
}

/// The facts, as they are kept in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::uplink) struct Entry {
    /// Of the calendar that the period is of.
    pub(in crate::uplink) calendar: u64,
    /// The period that is charged.
    pub(in crate::uplink) start_ms: i64,
    pub(in crate::uplink) end_ms: i64,
    /// Bytes charged to it.
    pub(in crate::uplink) used: u64,
    /// The boot that the running times below are of.
    pub(in crate::uplink) boot_id: u128,
    /// Wall clock and running clock at the last renewal or the first look of that boot.
    pub(in crate::uplink) mark_wall_ms: i64,
    pub(in crate::uplink) mark_running_ms: u64,
    /// Running clock at the last renewal without proof.
    pub(in crate::uplink) unproven_ms: Option<u64>,
    pub(in crate::uplink) left: Option<Left>,
    /// The counts were damaged: `used` is what is assumed.
    pub(in crate::uplink) is_lost: bool,
}

/// What a look at the clocks came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The period goes on.
    Same,
    /// The allowance is given anew.
    Renewed,
    /// The same, on the word of the wall clock alone.
    RenewedUnproven,
    /// The clock came back: what was used under the wrong date is added.
    Returned,
    /// The wall clock says that the period is over, and is not believed.
    Withheld,
}

/// What was used of one allowance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    entry: Entry,
}

impl Book {
    /// A book in which nothing is written.
    #[must_use]
    pub fn new(calendar: &Calendar, now: Clocks) -> Self {
        let term = calendar.term(now.wall_ms);
        Self {
            entry: Entry {
                calendar: calendar.key(),
                start_ms: term.start_ms,
                end_ms: term.end_ms,
                used: 0,
                boot_id: now.boot_id,
                mark_wall_ms: now.wall_ms,
                mark_running_ms: millis(now.running),
                unproven_ms: None,
                left: None,
                is_lost: false,
            },
        }
    }

    /// Nobody knows what was used: at least so much.
    pub(in crate::uplink) fn take_for_used(&mut self, bytes: u64) {
        self.entry.used = self.entry.used.max(bytes);
        self.entry.is_lost = true;
    }

    /// Whether what was used is only assumed.
    pub(in crate::uplink) const fn is_lost(&self) -> bool {
        self.entry.is_lost
    }

    /// As it was kept.
    pub(in crate::uplink) const fn restore(entry: Entry) -> Self {
        Self { entry }
    }

    /// What to keep.
    pub(in crate::uplink) const fn entry(&self) -> Entry {
        self.entry
    }

    /// Bytes used in the period.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.entry.used
    }

    /// When the period ends, by the wall clock.
    #[must_use]
    pub const fn end_ms(&self) -> i64 {
        self.entry.end_ms
    }

    /// When it began.
    #[must_use]
    pub const fn start_ms(&self) -> i64 {
        self.entry.start_ms
    }

    /// So many bytes were sent or received.
    pub const fn charge(&mut self, bytes: u64) {
        self.entry.used = self.entry.used.saturating_add(bytes);
    }

    /// Looks at the clocks; to be done every few seconds and before anything is sent.
    pub fn look(&mut self, calendar: &Calendar, now: Clocks) -> Seen {
        self.note_boot(now);
        let term = calendar.term(now.wall_ms);
        if self.entry.calendar != calendar.key() {
            self.entry.calendar = calendar.key();
            self.entry.left = None;
            self.open(term);
            return Seen::Same;
        }
        match term.start_ms.cmp(&self.entry.start_ms) {
            std::cmp::Ordering::Equal => Seen::Same,
            std::cmp::Ordering::Greater => self.ahead(term, now),
            std::cmp::Ordering::Less => self.behind(term, now),
        }
    }

    /// Running times of another boot mean nothing.
    const fn note_boot(&mut self, now: Clocks) {
        if self.entry.boot_id != now.boot_id {
            self.entry.boot_id = now.boot_id;
            self.entry.unproven_ms = None;
            self.mark(now);
        }
    }

    const fn mark(&mut self, now: Clocks) {
        self.entry.mark_wall_ms = now.wall_ms;
        self.entry.mark_running_ms = millis(now.running);
    }

    const fn open(&mut self, term: Term) {
        self.entry.start_ms = term.start_ms;
        self.entry.end_ms = term.end_ms;
    }

    fn ahead(&mut self, term: Term, now: Clocks) -> Seen {
        let entry = self.entry;
        let running = self.since_mark(now);
        let wall = now.wall_ms.saturating_sub(entry.mark_wall_ms);
        let is_steady = u64::try_from(wall).is_ok_and(|wall| wall <= running + TOLERANCE_MS);
        if is_steady || running >= self.length_ms() {
            self.entry.left = None;
            self.renew(term, now);
            return Seen::Renewed;
        }
        let is_rare = entry.unproven_ms.is_none_or(|at| {
            let since = millis(now.running).saturating_sub(at);
            i64::try_from(since).unwrap_or(i64::MAX) >= term.length_ms().saturating_mul(2)
        });
        if !is_rare {
            return Seen::Withheld;
        }
        self.entry.left = Some(Left {
            start_ms: entry.start_ms,
            used: entry.used,
        });
        self.entry.unproven_ms = Some(millis(now.running));
        self.renew(term, now);
        Seen::RenewedUnproven
    }

    fn behind(&mut self, term: Term, now: Clocks) -> Seen {
        if let Some(left) = self
            .entry
            .left
            .filter(|left| term.start_ms >= left.start_ms)
        {
            let is_old = term.start_ms == left.start_ms;
            self.charge(if is_old { left.used } else { 0 });
            self.entry.left = None;
            self.open(term);
            self.mark(now);
            return Seen::Returned;
        }
        // the date that was believed is wrong: after a period's length of real time the next is due
        if self.since_mark(now) >= self.length_ms() {
            self.renew(term, now);
            return Seen::Renewed;
        }
        Seen::Same
    }

    const fn renew(&mut self, term: Term, now: Clocks) {
        self.open(term);
        self.entry.used = 0;
        self.entry.is_lost = false;
        self.mark(now);
    }

    const fn since_mark(&self, now: Clocks) -> u64 {
        millis(now.running).saturating_sub(self.entry.mark_running_ms)
    }

    fn length_ms(&self) -> u64 {
        let length = self.entry.end_ms.saturating_sub(self.entry.start_ms);
        u64::try_from(length).unwrap_or(0)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "584 million years")]
const fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::policy::{Period, Zone};

    use super::*;

    const DAY: i64 = 86_400_000;
    const HOUR: i64 = 3_600_000;
    /// 2026-11-28 00:00 UTC
    const TODAY: i64 = 1_795_824_000_000;

    fn daily() -> Calendar {
        Calendar {
            period: Period::Day,
            zone: Zone::utc(),
        }
    }

    fn clocks(wall_ms: i64, running_ms: i64, boot_id: u128) -> Clocks {
        Clocks {
            wall_ms,
            running: Duration::from_millis(u64::try_from(running_ms).unwrap()),
            boot_id,
        }
    }

    fn used(wall_ms: i64, running_ms: i64) -> Book {
        let mut book = Book::new(&daily(), clocks(wall_ms, running_ms, 1));
        book.charge(700);
        book
    }

    #[test]
    fn a_clock_that_runs_true_renews_every_period() {
        let mut book = used(TODAY + 23 * HOUR, 0);
        assert_eq!(
            book.look(&daily(), clocks(TODAY + DAY - 1, HOUR - 1, 1)),
            Seen::Same
        );
        assert_eq!(
            book.look(&daily(), clocks(TODAY + DAY, HOUR, 1)),
            Seen::Renewed
        );
        assert_eq!(book.used(), 0);
        for day in 1..10 {
            book.charge(1);
            let now = clocks(TODAY + DAY + day * DAY, HOUR + day * DAY, 1);
            assert_eq!(book.look(&daily(), now), Seen::Renewed);
        }
    }

    #[test]
    fn a_clock_that_was_set_forward_and_back_gives_nothing_anew() {
        let mut book = used(TODAY, 0);
        let wrong = TODAY + 26_000 * DAY;
        assert_eq!(
            book.look(&daily(), clocks(wrong, 1_000, 1)),
            Seen::RenewedUnproven
        );
        book.charge(50);
        assert_eq!(
            book.look(&daily(), clocks(TODAY + 3_000, 3_000, 1)),
            Seen::Returned
        );
        assert_eq!(book.used(), 750);
        // and not again on the way there
        assert_eq!(book.look(&daily(), clocks(wrong, 4_000, 1)), Seen::Withheld);
        assert_eq!(
            book.look(&daily(), clocks(TODAY + DAY + HOUR, DAY + HOUR, 1)),
            Seen::Renewed
        );
    }

    #[test]
    fn a_clock_that_creeps_to_midnight_by_jumps_is_believed_once() {
        let mut book = used(TODAY, 0);
        let mut renewed = 0;
        for day in 1..20 {
            let before = clocks(TODAY + day * DAY - 1_000, day * 10_000, 1);
            let after = clocks(TODAY + day * DAY + 1_000, day * 10_000 + 2_000, 1);
            for now in [before, after] {
                renewed += usize::from(matches!(
                    book.look(&daily(), now),
                    Seen::Renewed | Seen::RenewedUnproven
                ));
            }
        }
        assert_eq!(renewed, 1);
    }

    /// Each belief just before a midnight of its date, which then proves itself.
    #[test]
    fn jumps_to_just_before_midnight_give_two_allowances_a_period() {
        let mut book = used(TODAY, 0);
        let (mut date, mut running, mut renewed) = (TODAY, 0, 0);
        for _ in 0..10 {
            date += 9 * DAY;
            for (wall, time) in [
                (date - 1_000, 1_000),
                (date, 1_000),
                (date + DAY, DAY),
                (date + DAY, 0),
            ] {
                running += time;
                let seen = book.look(&daily(), clocks(wall, running, 1));
                renewed += usize::from(matches!(seen, Seen::Renewed | Seen::RenewedUnproven));
            }
        }
        assert!(renewed <= 2 * 10 + 3, "{renewed} in 10 days");
        assert!(renewed >= 10, "{renewed} in 10 days");
    }

    #[test]
    fn a_site_without_a_clock_starts_in_1970_and_learns_the_date() {
        let mut book = used(TODAY, 5_000);
        // the same day: nothing is given
        assert_eq!(book.look(&daily(), clocks(10_000, 10_000, 2)), Seen::Same);
        assert_eq!(
            book.look(&daily(), clocks(TODAY + HOUR, 20_000, 2)),
            Seen::Same
        );
        assert_eq!(book.used(), 700);
        // the next day, at a third boot
        assert_eq!(book.look(&daily(), clocks(10_000, 10_000, 3)), Seen::Same);
        let now = clocks(TODAY + DAY + HOUR, 20_000, 3);
        assert_eq!(book.look(&daily(), now), Seen::RenewedUnproven);
        // and the day after, without a boot between
        let now = clocks(TODAY + 2 * DAY, 20_000 + 23 * HOUR, 3);
        assert_eq!(book.look(&daily(), now), Seen::Renewed);
    }

    #[test]
    fn a_date_that_was_far_too_late_from_the_start_holds_for_one_period() {
        let mut book = used(TODAY + 26_000 * DAY, 0);
        assert_eq!(book.look(&daily(), clocks(TODAY, HOUR, 1)), Seen::Same);
        assert_eq!(
            book.look(&daily(), clocks(TODAY + DAY, HOUR + DAY, 1)),
            Seen::Renewed
        );
        assert_eq!(
            book.look(&daily(), clocks(TODAY + 2 * DAY, HOUR + 2 * DAY, 1)),
            Seen::Renewed
        );
    }

    #[test]
    fn another_calendar_keeps_what_was_used() {
        let mut book = used(TODAY + HOUR, 0);
        let monthly = Calendar {
            period: Period::Month { reset_day: 1 },
            zone: Zone::utc(),
        };
        assert_eq!(book.look(&monthly, clocks(TODAY + HOUR, 1, 1)), Seen::Same);
        assert_eq!(book.used(), 700);
        assert_eq!(book.end_ms(), TODAY + 3 * DAY);
        assert_eq!(Book::restore(book.entry()), book);
    }

    proptest! {
        /// A site that uses all it gets at once, under a clock that does what it likes.
        #[test]
        fn a_wild_clock_gives_at_most_two_allowances_a_period(
            steps in prop::collection::vec((0_i64..6 * HOUR, -40 * DAY..40 * DAY, any::<bool>()), 1..200),
        ) {
            let mut book = used(TODAY, 0);
            let (mut wall, mut running, mut total) = (TODAY, 0, 0_u64);
            const ALL: u64 = 1_000;
            for (time, jump, is_jump) in steps {
                running += time;
                wall += time + if is_jump { jump } else { 0 };
                let _seen = book.look(&daily(), clocks(wall, running, 1));
                let left = ALL.saturating_sub(book.used());
                book.charge(left);
                total += left;
            }
            let periods = u64::try_from(running / DAY).unwrap();
            // the day begins with the book, so that two at the ends are given anew, and some was left of the first
            prop_assert!(total <= (2 * periods + 3) * ALL, "{} in {} days", total, periods);
        }
    }
}
