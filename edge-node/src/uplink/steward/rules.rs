//! The policies as they are configured, and what one of the hub's makes of them.

use shared::policy::are_ever_open;

use crate::uplink::policy::Policy;

/// What a policy that the hub pushes may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromHub {
    /// Allow less than the file does.
    Tighten,
    /// Stand in place of the file's.
    Replace,
    /// Nothing.
    Ignore,
}

/// The policies of a site, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// For the site, over all paths.
    pub site: Policy,
    /// What the hub may change.
    pub from_hub: FromHub,
    /// For each path by name, the preferred first. At least one.
    pub paths: Vec<(String, Policy)>,
}

impl Rules {
    /// Whether a policy of the hub leaves no class that may be sent at any time by any path, where the file does: a
    /// site that used it would never hear that it is withdrawn.
    #[must_use]
    pub fn are_closed_by(&self, hub: &Policy, wall_ms: i64) -> bool {
        self.are_open(None, wall_ms) && !self.are_open(Some(hub), wall_ms)
    }

    /// The paths that the file itself closes at all times, by name.
    #[must_use]
    pub fn closed_paths(&self, wall_ms: i64) -> Vec<&str> {
        let is_closed = |path: &Policy| !are_ever_open(&[&self.site, path], wall_ms);
        let closed = self.paths.iter().filter(|(_, path)| is_closed(path));
        closed.map(|(name, _)| name.as_str()).collect()
    }

    /// Windows that never hold, as the keys of the file.
    #[must_use]
    pub fn hidden_windows(&self) -> Vec<String> {
        let of = |key: String, policy: &Policy| {
            let hidden = policy.hidden_windows().into_iter();
            hidden.map(move |index| format!("{key}.window[{index}]"))
        };
        let paths = self.paths.iter().enumerate();
        let paths =
            paths.flat_map(|(index, (_, policy))| of(format!("uplink.path[{index}]"), policy));
        of("policy".to_owned(), &self.site).chain(paths).collect()
    }

    fn are_open(&self, hub: Option<&Policy>, wall_ms: i64) -> bool {
        let shared = match (hub, self.from_hub) {
            (Some(hub), FromHub::Tighten) => vec![&self.site, hub],
            (Some(hub), FromHub::Replace) => vec![hub],
            (_, FromHub::Ignore) | (None, FromHub::Tighten | FromHub::Replace) => vec![&self.site],
        };
        self.paths.iter().any(|(_, path)| {
            let all: Vec<&Policy> = shared.iter().copied().chain([path]).collect();
            are_ever_open(&all, wall_ms)
        })
    }
}

#[cfg(test)]
mod tests {
    use shared::class::{Class, ClassSet};

    use super::*;
    use crate::uplink::policy::{Limits, Window};

    /// 2026-11-27 12:00 UTC, a Friday
    const FRIDAY_NOON: i64 = 1_795_780_800_000;

    fn only(classes: &[Class]) -> Policy {
        Policy {
            limits: Limits {
                classes: classes.iter().copied().collect(),
                ..Limits::default()
            },
            ..Policy::default()
        }
    }

    /// Critical records, on a day of the week from one time to another.
    fn at(day: &str, from: &str, to: &str) -> Policy {
        let window = Window {
            days: day.parse().unwrap(),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            limits: Limits {
                classes: ClassSet::CRITICAL_ONLY,
                ..Limits::default()
            },
        };
        Policy {
            windows: vec![window],
            ..only(&[])
        }
    }

    fn rules(site: Policy, from_hub: FromHub, path: Policy) -> Rules {
        Rules {
            site,
            from_hub,
            paths: vec![("cell".to_owned(), path)],
        }
    }

    #[test]
    fn a_pushed_policy_closes_where_it_has_no_class_with_the_file_and_a_path() {
        let (critical, bulk) = (only(&[Class::Critical]), only(&[Class::Bulk]));
        let all = Policy::default();
        for (site, from_hub, path, expected) in [
            (&bulk, FromHub::Tighten, &all, true),
            (&all, FromHub::Tighten, &bulk, true),
            (&critical, FromHub::Tighten, &all, false),
            (&bulk, FromHub::Replace, &all, false),
            (&bulk, FromHub::Replace, &bulk, true),
            (&bulk, FromHub::Ignore, &all, false),
            // the file's own doing
            (&only(&[]), FromHub::Tighten, &all, false),
        ] {
            let rules = rules(site.clone(), from_hub, path.clone());
            let closed = rules.are_closed_by(&critical, FRIDAY_NOON);
            assert_eq!(closed, expected, "{rules:?}");
        }
        let mut two = rules(all.clone(), FromHub::Tighten, bulk);
        two.paths.push(("satellite".to_owned(), all));
        assert!(!two.are_closed_by(&critical, FRIDAY_NOON));
        assert!(two.closed_paths(FRIDAY_NOON).is_empty());
        two.site = critical;
        assert_eq!(two.closed_paths(FRIDAY_NOON), ["cell"]);
    }

    #[test]
    fn windows_that_never_hold_together_close_and_an_hour_of_the_week_is_enough() {
        let site = at("mon", "06:00", "08:00");
        let closes = |hub: &Policy| {
            let rules = rules(site.clone(), FromHub::Tighten, Policy::default());
            rules.are_closed_by(hub, FRIDAY_NOON)
        };
        assert!(closes(&at("mon", "08:00", "09:00")));
        assert!(closes(&at("tue", "06:00", "08:00")));
        assert!(!closes(&at("mon", "07:59", "09:00")));
        // the night from Sunday to Monday
        assert!(!closes(&at("sun", "22:00", "07:00")));
    }
}
