//! The keys of a policy: the same for the site, for each path, and in what the hub pushes.

use std::ops::RangeInclusive;

use super::{
    Action, Allowance, Days, Limits, Period, Policy, TimeOfDay, Window, Zone, are_ever_open,
};
use crate::class::Class;
use crate::config::{ConfigError, Document, Problem, Section};
use crate::units::{BitRate, ByteSize};

/// What a link may be said to carry, in bits a second: a handshake takes a few seconds at the lowest.
pub const RATES: RangeInclusive<BitRate> = BitRate::kbit(8)..=BitRate::mbit(100_000);
/// Below it a single handshake is a tenth of the allowance.
const LEAST_ALLOWANCE: ByteSize = ByteSize(100_000);
const MOST_ALLOWANCE: ByteSize = ByteSize(1_000_000_000_000_000);
/// Each is looked at every second.
const MAX_WINDOWS: usize = 64;
/// Bytes of a policy that the hub pushes: it travels in one control frame.
const MAX_PUSHED_BYTES: usize = 32 << 10;
/// A Monday in winter: windows repeat each week.
const ANY_WEEK_MS: i64 = 1_767_571_200_000;

/// Reads a policy that the hub pushed: the text of a `[policy]` section. An empty one is none.
///
/// # Errors
/// [`ConfigError`] with every problem found.
pub fn pushed(text: &str) -> Result<Option<Policy>, ConfigError> {
    let file = "the hub's policy";
    if text.len() > MAX_PUSHED_BYTES {
        return Err(ConfigError::Syntax {
            file: file.to_owned(),
            message: format!("longer than {MAX_PUSHED_BYTES} bytes"),
        });
    }
    let mut document = Document::parse(text, file, [])?;
    let policy = from_section(&mut document.section("policy"), &Zone::utc());
    document.finish()?;
    if !are_ever_open(&[&policy], ANY_WEEK_MS) {
        let is_empty = policy.limits.classes.is_empty();
        return Err(ConfigError::Invalid {
            file: file.to_owned(),
            problems: vec![Problem {
                key: if is_empty { "policy.classes" } else { "policy.window" }.to_owned(),
                value: is_empty.then(|| "[]".to_owned()),
                variable: None,
                message: "closed at all times, the site would not hear that this is withdrawn; \
                          accepted: a class in [policy] or one of its windows, at some time of the week"
                    .to_owned(),
            }],
        });
    }
    Ok(Some(policy).filter(|_| !text.trim().is_empty()))
}

/// Reads the keys of a policy. Its zone is this one unless it says another.
#[must_use]
pub fn from_section(section: &mut Section, zone: &Zone) -> Policy {
    let zone = section.parsed("time_zone", zone.clone());
    let limits = limits(section, Limits::default());
    let windows = section.sections("window");
    if windows.len() > MAX_WINDOWS {
        section.problem("window", format!("more than {MAX_WINDOWS}"));
    }
    let windows = windows.into_iter().map(|it| window(it, limits)).collect();
    let allowance = allowance(section.section("allowance"));
    Policy {
        zone,
        limits,
        windows,
        allowance,
    }
}

/// Keys that are left out are those of `default`.
fn limits(section: &mut Section, default: Limits) -> Limits {
    let classes = if section.has("classes") {
        section
            .list::<Class>("classes", Vec::new())
            .into_iter()
            .collect()
    } else {
        // asked for all the same: the key is known
        let _none = section.list::<Class>("classes", Vec::new());
        default.classes
    };
    Limits {
        rate_up: section.rate_limit("rate_up", default.rate_up, RATES),
        rate_down: section.rate_limit("rate_down", default.rate_down, RATES),
        classes,
    }
}

fn window(mut section: Section, default: Limits) -> Window {
    let days = if section.has("days") {
        Days::union(&section.required_list::<Days>("days", "[\"mon-fri\"]"))
    } else {
        let _none = section.list::<Days>("days", Vec::new());
        Days::ALL
    };
    let from = section.parsed("from", TimeOfDay::START);
    let to = section.parsed("to", TimeOfDay::END);
    if from == to {
        section.problem(
            "to",
            format!("the same as `from` = {from}; for all day leave out both"),
        );
    } else if from == TimeOfDay::END && to == TimeOfDay::START {
        section.problem(
            "to",
            "never holds from 24:00 to 00:00; for all day leave out both",
        );
    }
    Window {
        days,
        from,
        to,
        limits: limits(&mut section, default),
    }
}

fn allowance(mut section: Section) -> Option<Allowance> {
    let actions = [
        ("continue", Action::Continue),
        ("critical-only", Action::CriticalOnly),
        ("stop", Action::Stop),
    ];
    let is_given = |key: &&str| section.has(key);
    let others = ["period", "reset_day", "at_80", "at_100"];
    if !section.has("bytes") && others.iter().any(is_given) {
        // an allowance that is none would be taken for one
        section.problem(
            "bytes",
            "missing; for example bytes = \"2GB\", or \"unlimited\"",
        );
    }
    let bytes = section.size_limit("bytes", None, LEAST_ALLOWANCE..=MOST_ALLOWANCE);
    let period = period(&mut section);
    let has_end = section.has("at_100");
    let at_80 = section.choice("at_80", Action::Continue, &actions);
    let at_100 = section.choice("at_100", Action::Stop, &actions);
    let allows_more = match at_80 {
        Action::Continue => None,
        Action::CriticalOnly => (at_100 == Action::Continue).then_some("critical-only, stop"),
        Action::Stop => (at_100 != Action::Stop).then_some("stop"),
    };
    if let Some(accepted) = allows_more.filter(|_| has_end) {
        section.problem(
            "at_100",
            format!("allows more than `at_80`; accepted: {accepted}"),
        );
    }
    Some(Allowance {
        bytes: bytes?,
        period,
        at_80,
        at_100,
    })
}

fn period(section: &mut Section) -> Period {
    let words = [
        ("day", Kind::Day),
        ("week", Kind::Week),
        ("month", Kind::Month),
    ];
    let kind = section.choice("period", Kind::Month, &words);
    let is_given = section.has("reset_day");
    let reset_day = section.number("reset_day", 1_u8, 1..=31);
    match kind {
        Kind::Day if is_given => {
            section.problem(
                "reset_day",
                "a day has none; accepted with period = \"week\" or \"month\"",
            );
            Period::Day
        }
        Kind::Day => Period::Day,
        Kind::Week if reset_day > 7 => {
            section.problem(
                "reset_day",
                "not a day of the week; accepted: 1 (Monday) to 7 (Sunday)",
            );
            Period::Week { reset_day: 1 }
        }
        Kind::Week => Period::Week { reset_day },
        Kind::Month => Period::Month { reset_day },
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Day,
    Week,
    Month,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::ClassSet;

    const PUSHED: &str = r#"
        [policy]
        time_zone = "Europe/Berlin"
        rate_up = "2Mbit"
        [[policy.window]]
        days = ["mon-fri"]
        from = "08:00"
        to = "18:00"
        rate_up = "256kbit"
        classes = ["critical", "normal"]
        [policy.allowance]
        bytes = "5GB"
        period = "month"
        reset_day = 15
        at_80 = "critical-only"
    "#;

    fn problems(text: &str) -> String {
        pushed(text).unwrap_err().to_string()
    }

    #[test]
    fn a_pushed_policy_that_could_never_be_withdrawn_is_refused() {
        let window = "\n[[policy.window]]\nfrom = \"03:00\"\nto = \"04:00\"\n";
        let closed = "[policy]\nclasses = []\n";
        for text in [closed.to_owned(), format!("{closed}{window}classes = []\n")] {
            assert!(problems(&text).contains("policy.classes = []"), "{text}");
        }
        let all_day = "[[policy.window]]\nclasses = []\n";
        let half = |from: &str, to: &str| {
            format!("[[policy.window]]\nfrom = \"{from}\"\nto = \"{to}\"\nclasses = []\n")
        };
        let halves = half("00:00", "12:00") + &half("12:00", "24:00");
        let behind = format!("{all_day}{window}classes = [\"critical\"]\n");
        for text in [all_day, &halves, &behind] {
            assert!(problems(text).contains("policy.window: closed"), "{text}");
        }
        let open = format!("{closed}{window}classes = [\"critical\"]\n");
        assert!(pushed(&open).unwrap().is_some());
    }

    #[test]
    fn a_pushed_policy_has_the_keys_of_the_section() {
        let policy = pushed(PUSHED).unwrap().unwrap();
        assert_eq!(policy.zone.to_string(), "Europe/Berlin");
        assert_eq!(policy.limits.rate_up, Some(BitRate::mbit(2)));
        let window = &policy.windows[0];
        assert_eq!(window.to_string(), "mon-fri 08:00-18:00");
        assert_eq!(window.limits.rate_up, Some(BitRate::kbit(256)));
        assert!(!window.limits.classes.contains(Class::Bulk));
        assert_eq!(window.limits.rate_down, None);
        let allowance = policy.allowance.unwrap();
        assert_eq!(allowance.period, Period::Month { reset_day: 15 });
        assert_eq!(
            (allowance.at_80, allowance.at_100),
            (Action::CriticalOnly, Action::Stop)
        );
        assert!(pushed(" \n").unwrap().is_none());
    }

    #[test]
    fn every_mistake_is_named() {
        let text = problems(
            "[policy]\ntime_zone = \"Berlin\"\nrate_up = \"256\"\nrate_down = \"1kbit\"\n\
             classes = [\"urgent\"]\nfrom_hub = \"ignore\"\n[[policy.window]]\ndays = [\"Monday\"]\n\
             from = \"8:00\"\n[[policy.window]]\nfrom = \"08:00\"\nto = \"08:00\"\n\
             [policy.allowance]\nbytes = \"1kB\"\nperiod = \"week\"\nreset_day = 8\n\
             at_80 = \"stop\"\nat_100 = \"continue\"\n",
        );
        for part in [
            "policy.time_zone = \"Berlin\": not a time zone",
            "policy.rate_up = \"256\": `256` is not a bit rate",
            "policy.rate_down = \"1kbit\": out of range; accepted: 8kbit to",
            "policy.classes[0] = \"urgent\"",
            "policy.from_hub: no such key",
            "policy.window[0].days[0] = \"Monday\": not a day",
            "policy.window[0].from = \"8:00\": not a time of day",
            "policy.window[1].to = \"08:00\": the same as `from` = 08:00",
            "policy.allowance.bytes = \"1kB\": out of range",
            "policy.allowance.reset_day = 8: not a day of the week",
            "policy.allowance.at_100 = \"continue\": allows more than",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(problems(&"#".repeat(40_000)).contains("longer than"));
    }

    #[test]
    fn an_allowance_without_bytes_is_refused() {
        for key in ["at_80 = \"stop\"", "at_100 = \"stop\"", "period = \"day\""] {
            let text = problems(&format!("[policy.allowance]\n{key}\n"));
            assert!(text.contains("policy.allowance.bytes: missing"), "{text}");
        }
        let unlimited = "[policy.allowance]\nbytes = \"unlimited\"\nat_80 = \"stop\"\n";
        assert_eq!(pushed(unlimited).unwrap().unwrap().allowance, None);
    }

    #[test]
    fn a_window_that_never_holds_is_refused() {
        let window = |from: &str, to: &str| {
            pushed(&format!(
                "[[policy.window]]\nfrom = \"{from}\"\nto = \"{to}\"\n"
            ))
        };
        let text = window("24:00", "00:00").unwrap_err().to_string();
        assert!(
            text.contains("policy.window[0].to = \"00:00\": never holds"),
            "{text}"
        );
        window("24:00", "06:00").unwrap();
        window("00:00", "24:00").unwrap();
    }

    #[test]
    fn whatever_is_no_class_is_told_which_there_are() {
        let text = problems("[policy]\nclasses = [\"bulk\", 5]\n");
        assert!(
            text.contains(
                "policy.classes[1] = 5: not a text; `5` is not a class; accepted: critical"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_window_may_close_the_link() {
        let text = "[policy]\n[[policy.window]]\nfrom = \"22:00\"\nto = \"06:00\"\nclasses = []\n";
        let policy = pushed(text).unwrap().unwrap();
        assert_eq!(policy.windows[0].limits.classes, ClassSet::EMPTY);
        assert_eq!(policy.windows[0].days, Days::ALL);
    }
}
