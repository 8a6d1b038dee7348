//! A policy as text, for who asks a running site what holds: the keys that a `[policy]` section has, and back.

use std::fmt;

use super::{Limits, Period, Policy, Zone, from_section};
use crate::config::{ConfigError, Document};
use crate::units::BitRate;

/// Reads what [`Policy`]'s `Display` wrote. One that closes the link is taken too: a path may have it.
///
/// # Errors
/// [`ConfigError`] with every problem found.
pub fn stated(text: &str) -> Result<Policy, ConfigError> {
    let mut document = Document::parse(text, "the policy of the node", [])?;
    let policy = from_section(&mut document.section("policy"), &Zone::utc());
    document.finish()?;
    Ok(policy)
}

/// TOML that [`stated`] reads as the same policy.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[policy]\ntime_zone = \"{}\"", self.zone)?;
        write_limits(f, &self.limits)?;
        for window in &self.windows {
            let days = window.days.to_string().replace(',', "\", \"");
            writeln!(f, "[[policy.window]]\ndays = [\"{days}\"]")?;
            writeln!(f, "from = \"{}\"\nto = \"{}\"", window.from, window.to)?;
            write_limits(f, &window.limits)?;
        }
        let Some(allowance) = &self.allowance else {
            return Ok(());
        };
        let period = allowance.period;
        writeln!(f, "[policy.allowance]\nbytes = \"{}\"", allowance.bytes)?;
        writeln!(f, "period = \"{period}\"")?;
        match period {
            Period::Day => {}
            Period::Week { reset_day } | Period::Month { reset_day } => {
                writeln!(f, "reset_day = {reset_day}")?;
            }
        }
        let (early, end) = (allowance.at_80.name(), allowance.at_100.name());
        writeln!(f, "at_80 = \"{early}\"\nat_100 = \"{end}\"")
    }
}

/// All of them: what a window leaves out are the policy's own.
fn write_limits(f: &mut fmt::Formatter<'_>, limits: &Limits) -> fmt::Result {
    let rate = |rate: Option<BitRate>| {
        rate.map_or_else(|| "unlimited".to_owned(), |rate| rate.to_string())
    };
    let classes = limits.classes.iter();
    let classes: Vec<String> = classes.map(|class| format!("\"{class}\"")).collect();
    let (up, down) = (rate(limits.rate_up), rate(limits.rate_down));
    writeln!(f, "rate_up = \"{up}\"\nrate_down = \"{down}\"")?;
    writeln!(f, "classes = [{}]", classes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_what_was_written() {
        for text in [
            "",
            "[policy]\nclasses = []\n",
            "[policy]\nrate_up = \"2Mbit\"\n[[policy.window]]\nrate_up = \"unlimited\"\ndays = [\"sun\"]\n",
            r#"
            [policy]
            time_zone = "Europe/Berlin"
            rate_up = "2Mbit"
            rate_down = "64kbit"
            [[policy.window]]
            days = ["mon-wed", "fri"]
            from = "22:00"
            to = "06:30"
            rate_up = "256kbit"
            classes = ["critical", "normal"]
            [[policy.window]]
            to = "24:00"
            from = "12:00"
            classes = []
            [policy.allowance]
            bytes = "5368709121"
            period = "week"
            reset_day = 5
            at_80 = "continue"
            at_100 = "critical-only"
            "#,
            "[policy.allowance]\nbytes = \"5GB\"\nperiod = \"day\"\nat_80 = \"stop\"\n",
        ] {
            let policy = stated(text).unwrap();
            let written = policy.to_string();
            assert_eq!(stated(&written).unwrap(), policy, "{written}");
        }
    }
}
