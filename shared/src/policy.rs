//! What the link may be used for: the rates, the classes and the data allowance, by time and use.
//!
//! ```text
//!   window that holds, else the policy's own ──► limits ┐
//!                                                       ├─► decision: rates, classes, why, until when
//!   used of the allowance ──► continue, critical, stop ─┘
//! ```
//! A [`Policy`] decides for itself. Several of them may apply to one link: the site's, the one that the hub
//! pushed, and that of the path in use. Each byte must be allowed by all of them: [`Decision::and`] takes the
//! lower rate and the classes that all allow. Pure code: it takes `now` and what was used.
//!
//! Sites decide by it; a hub reads with [`pushed`] what it is told to push to them, so that a policy that no
//! site takes is refused where it was written.

mod allowance;
mod read;
mod window;
mod write;
mod zone;

use crate::class::ClassSet;
use crate::units::{BitRate, ByteSize};

pub use allowance::{Action, Allowance, Calendar, Period, Term};
pub use read::{RATES, from_section, pushed};
pub use window::{Days, TimeOfDay, Window};
pub use write::stated;
pub use zone::Zone;

/// Rates and classes that hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the site; `None`: as fast as it goes.
    pub rate_up: Option<BitRate>,
    /// To the site.
    pub rate_down: Option<BitRate>,
    /// Classes of topics that may be sent. None: the link is not used.
    pub classes: ClassSet,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate_up: None,
            rate_down: None,
            classes: ClassSet::ALL,
        }
    }
}

/// A validated policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whose clock windows and periods follow.
    pub zone: Zone,
    /// What holds outside all windows.
    pub limits: Limits,
    /// The first that holds decides.
    pub windows: Vec<Window>,
    /// `None`: as much as it likes.
    pub allowance: Option<Allowance>,
}

impl Default for Policy {
    /// Everything is allowed.
    fn default() -> Self {
        Self {
            zone: Zone::utc(),
            limits: Limits::default(),
            windows: Vec::new(),
            allowance: None,
        }
    }
}

/// How much of the allowance is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charged {
    /// Bytes in the period that is charged.
    pub used: u64,
    /// When that period ends.
    pub end_ms: i64,
}

/// What holds at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// From the site; `None`: as fast as it goes.
    pub rate_up: Option<BitRate>,
    /// To the site.
    pub rate_down: Option<BitRate>,
    /// Classes that may be sent. None: nothing leaves.
    pub classes: ClassSet,
    /// Bytes that may still move; `None`: no end.
    pub hard_left: Option<u64>,
    /// Why, for people.
    pub reason: String,
    /// When something else may hold if nothing is sent until then; `None`: never.
    pub next_change_ms: Option<i64>,
}

impl Policy {
    /// What holds at a time and with so much used.
    #[must_use]
    pub fn decide(&self, wall_ms: i64, charged: Charged) -> Decision {
        let wall_ms = zone::sane(wall_ms);
        let window = self.window_at(wall_ms);
        let limits = window.map_or(self.limits, |window| window.limits);
        let mut decision = Decision {
            rate_up: limits.rate_up,
            rate_down: limits.rate_down,
            classes: limits.classes,
            hard_left: None,
            reason: match window {
                Some(window) if limits.classes.is_empty() => {
                    format!("window {window}: `classes` is empty")
                }
                Some(window) => format!("window {window}"),
                None if limits.classes.is_empty() && self.windows.is_empty() => {
                    "`classes` is empty".to_owned()
                }
                None if self.windows.is_empty() => String::new(),
                None if limits.classes.is_empty() => {
                    "outside all windows: `classes` is empty".to_owned()
                }
                None => "outside all windows".to_owned(),
            },
            next_change_ms: window::next_change(&self.windows, &self.zone, wall_ms),
        };
        if let Some(allowance) = &self.allowance {
            self.restrict(&mut decision, allowance, charged);
        }
        decision
    }

    /// Windows that never hold, because those before them hold at all their times: their places in the list.
    #[must_use]
    pub fn hidden_windows(&self) -> Vec<usize> {
        window::hidden(&self.windows)
    }

    /// The calendar of the allowance.
    #[must_use]
    pub fn calendar(&self) -> Option<Calendar> {
        self.allowance.as_ref().map(|allowance| Calendar {
            period: allowance.period,
            zone: self.zone.clone(),
        })
    }

    fn window_at(&self, wall_ms: i64) -> Option<&Window> {
        let index = window::which(&self.windows, &self.zone, wall_ms)?;
        self.windows.get(index)
    }

    fn classes_at(&self, wall_ms: i64) -> ClassSet {
        let window = self.window_at(wall_ms);
        window.map_or(self.limits, |window| window.limits).classes
    }

    fn restrict(&self, decision: &mut Decision, allowance: &Allowance, charged: Charged) {
        decision.hard_left = allowance.hard_left(charged.used);
        let action = allowance.action(charged.used);
        match action {
            Action::Continue => {}
            Action::CriticalOnly => {
                decision.classes = decision.classes.intersection(ClassSet::CRITICAL_ONLY)
            }
            Action::Stop => decision.classes = ClassSet::EMPTY,
        }
        if allowance.percent(charged.used) >= 80 {
            let percent = allowance.percent(charged.used);
            let (all, period) = (allowance.bytes, allowance.period);
            let until = self.zone.text(charged.end_ms);
            let text = format!(
                "{percent} % of {all} a {period} used, until {until}: {}",
                action.name()
            );
            join(&mut decision.reason, &text);
            decision.next_change_ms = earlier(decision.next_change_ms, Some(charged.end_ms));
        }
    }
}

/// Whether there is a time within a week from `wall_ms` at which all of these policies together let some class be
/// sent. Allowances are not looked at: they come anew.
#[must_use]
pub fn are_ever_open(policies: &[&Policy], wall_ms: i64) -> bool {
    let wall_ms = zone::sane(wall_ms);
    let is_open = |at: i64| {
        let classes = policies.iter().map(|policy| policy.classes_at(at));
        !classes
            .fold(ClassSet::ALL, ClassSet::intersection)
            .is_empty()
    };
    let changes = policies
        .iter()
        .flat_map(|policy| window::boundaries(&policy.windows, &policy.zone, wall_ms))
        .filter(|at| *at > wall_ms);
    [wall_ms].into_iter().chain(changes).any(is_open)
}

impl Decision {
    /// Everything is allowed, for ever.
    #[must_use]
    pub const fn free() -> Self {
        Self {
            rate_up: None,
            rate_down: None,
            classes: ClassSet::ALL,
            hard_left: None,
            reason: String::new(),
            next_change_ms: None,
        }
    }

    /// Both hold: the lower rate, the classes of both. `whose` tells the other's reason apart.
    #[must_use]
    pub fn and(mut self, other: &Self, whose: &str) -> Self {
        self.rate_up = lower(self.rate_up, other.rate_up);
        self.rate_down = lower(self.rate_down, other.rate_down);
        let is_apart = !self.is_stopped() && !other.is_stopped();
        self.classes = self.classes.intersection(other.classes);
        let is_apart = is_apart && self.is_stopped();
        self.hard_left = lower(self.hard_left, other.hard_left);
        self.next_change_ms = earlier(self.next_change_ms, other.next_change_ms);
        if !other.reason.is_empty() {
            join(&mut self.reason, &format!("{whose}: {}", other.reason));
        }
        if is_apart {
            let text = format!("{whose}: none of its classes is one that the rest allows");
            join(&mut self.reason, &text);
        }
        self
    }

    /// Nothing may leave.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        self.classes.is_empty()
    }
}

impl Allowance {
    /// Of the bytes of a period, rounded down; 100 when the end has come.
    #[must_use]
    pub fn percent(&self, used: u64) -> u64 {
        let ByteSize(bytes) = self.bytes;
        let percent = u128::from(used) * 100 / u128::from(bytes.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }
}

fn join(reason: &mut String, text: &str) {
    if !reason.is_empty() {
        reason.push_str("; ");
    }
    reason.push_str(text);
}

/// The lower of two limits, of which either may be missing.
fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn earlier(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    lower(one, other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Class;

    /// 2026-11-27 12:00 UTC, a Friday
    const FRIDAY_NOON: i64 = 1_795_780_800_000;

    fn policy() -> Policy {
        Policy {
            zone: "Europe/Berlin".parse().unwrap(),
            limits: Limits {
                rate_up: Some(BitRate::mbit(2)),
                ..Limits::default()
            },
            windows: vec![Window {
                days: "mon-fri".parse().unwrap(),
                from: "08:00".parse().unwrap(),
                to: "18:00".parse().unwrap(),
                limits: Limits {
                    rate_up: Some(BitRate::kbit(256)),
                    ..Limits::default()
                },
            }],
            allowance: Some(Allowance {
                bytes: ByteSize(5_000_000_000),
                period: Period::Month { reset_day: 1 },
                at_80: Action::CriticalOnly,
                at_100: Action::Stop,
            }),
        }
    }

    fn charged(used: u64) -> Charged {
        Charged {
            used,
            // 2026-12-01 00:00 in Berlin
            end_ms: 1_796_079_600_000,
        }
    }

    #[test]
    fn a_closed_link_has_a_reason() {
        let closed = Limits {
            classes: ClassSet::EMPTY,
            ..Limits::default()
        };
        let reason = |policy: &Policy, at| policy.decide(at, Charged::default()).reason;
        let mut policy = Policy {
            allowance: None,
            ..policy()
        };
        policy.windows[0].limits = closed;
        let at_noon = "window mon-fri 08:00-18:00: `classes` is empty";
        assert_eq!(reason(&policy, FRIDAY_NOON), at_noon);
        policy.limits = closed;
        let at_night = FRIDAY_NOON + 12 * 3_600_000;
        let outside = "outside all windows: `classes` is empty";
        assert_eq!(reason(&policy, at_night), outside);
        policy.windows.clear();
        assert_eq!(reason(&policy, FRIDAY_NOON), "`classes` is empty");
    }

    #[test]
    fn a_window_decides_and_says_until_when() {
        let decision = policy().decide(FRIDAY_NOON, charged(0));
        assert_eq!(decision.rate_up, Some(BitRate::kbit(256)));
        assert_eq!(decision.reason, "window mon-fri 08:00-18:00");
        // 18:00 in Berlin is 17:00 UTC
        assert_eq!(decision.next_change_ms, Some(FRIDAY_NOON + 5 * 3_600_000));
        let later = policy().decide(FRIDAY_NOON + 6 * 3_600_000, charged(0));
        assert_eq!(later.rate_up, Some(BitRate::mbit(2)));
        assert_eq!(later.reason, "outside all windows");
    }

    #[test]
    fn an_allowance_restricts_whatever_window_holds() {
        let decision = policy().decide(FRIDAY_NOON, charged(4_100_000_000));
        assert_eq!(decision.classes, ClassSet::CRITICAL_ONLY);
        assert_eq!(decision.rate_up, Some(BitRate::kbit(256)));
        assert_eq!(
            decision.reason,
            "window mon-fri 08:00-18:00; 82 % of 5GB a month used, until 2026-12-01 00:00 \
             Europe/Berlin: critical-only"
        );
        let decision = policy().decide(FRIDAY_NOON, charged(5_000_000_000));
        assert!(decision.is_stopped());
        assert_eq!(decision.hard_left, Some(0));
    }

    #[test]
    fn of_two_policies_the_tighter_holds() {
        let site = policy().decide(FRIDAY_NOON, charged(0));
        let satellite = Policy {
            limits: Limits {
                rate_up: Some(BitRate::kbit(64)),
                rate_down: Some(BitRate::kbit(128)),
                classes: ClassSet::CRITICAL_ONLY,
            },
            ..Policy::default()
        };
        let path = satellite.decide(FRIDAY_NOON, Charged::default());
        let both = site.clone().and(&path, "path sat");
        assert_eq!(both.rate_up, Some(BitRate::kbit(64)));
        assert_eq!(both.rate_down, Some(BitRate::kbit(128)));
        assert_eq!(both.classes, ClassSet::CRITICAL_ONLY);
        assert_eq!(both.next_change_ms, site.next_change_ms);
        assert_eq!(both.reason, "window mon-fri 08:00-18:00");
        assert_eq!(Decision::free().and(&site, "site").classes, ClassSet::ALL);
        // nothing in common, and neither says why
        let bulk = Decision {
            classes: ClassSet::EMPTY.with(Class::Bulk),
            ..Decision::free()
        };
        let none = path.and(&bulk, "wire");
        assert!(none.is_stopped());
        assert!(
            none.reason.contains("wire: none of its classes"),
            "{none:?}"
        );
    }

    #[test]
    fn without_a_policy_everything_is_allowed_for_ever() {
        assert_eq!(
            Policy::default().decide(0, Charged::default()),
            Decision::free()
        );
    }
}
