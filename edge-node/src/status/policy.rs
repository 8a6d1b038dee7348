//! What the link may be used for, as `/status` tells it and as people read it.

use std::fmt;

use serde::{Deserialize, Serialize};
use shared::class::Class;
use shared::time::utc;
use shared::units::{BitRate, ByteSize};

use crate::uplink::policy::{Action, Policy};
use crate::uplink::{InForce, PathView, Standing, View};

/// The policies in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// Whose they are: "file", "file and hub" or "hub".
    pub source: String,
    /// What keeps a new policy from holding, or counts from being kept.
    pub problems: Vec<String>,
    /// Every way out, the preferred first.
    pub paths: Vec<PathStatus>,
    /// Every allowance.
    pub allowances: Vec<AllowanceStatus>,
    /// The policies themselves that hold together: the site's, the hub's, each path's.
    pub rules: Vec<RuleStatus>,
    /// How the classes share a full link, the most urgent first, in thousandths.
    pub shares: Vec<u32>,
}

/// A policy that holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleStatus {
    /// "site", "hub", or "path".
    pub of: String,
    /// The path's name.
    pub path: Option<String>,
    /// The policy, as a `[policy]` section has it.
    pub policy: String,
}

/// What holds on one path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathStatus {
    /// As configured; "default" when none is.
    pub name: String,
    /// Bits a second from the site; absent: as fast as it goes.
    pub rate_up_bits: Option<u64>,
    /// To the site.
    pub rate_down_bits: Option<u64>,
    /// Classes that may be sent.
    pub classes: Vec<String>,
    /// Why.
    pub reason: String,
    /// Wall clock when something else may hold, ms since the epoch.
    pub next_change_ms: Option<i64>,
    /// Bytes of IP packets sent by this path since its counts began, headers included.
    pub sent_bytes: u64,
    /// The same received.
    pub received_bytes: u64,
    /// Both ways in a second, of late.
    pub bytes_per_sec: u64,
    /// The most of that in the last minutes while the link was the limit, neither what there was to send nor
    /// a policy; 0: it was not.
    pub best_bytes_per_sec: u64,
}

/// How one allowance stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AllowanceStatus {
    /// "site", "hub" or the path's name.
    pub of: String,
    /// Bytes in a period.
    pub bytes: u64,
    /// "day", "week" or "month".
    pub period: String,
    /// Used of them.
    pub used: u64,
    /// Left of them.
    pub left: u64,
    /// In percent.
    pub percent: u64,
    /// What holds because of that: "continue", "critical-only" or "stop".
    pub action: String,
    /// Wall clock at the end of the period, ms since the epoch.
    pub end_ms: i64,
}

impl From<&View> for PolicyStatus {
    fn from(view: &View) -> Self {
        Self {
            source: view.source.to_owned(),
            problems: view.problems.clone(),
            paths: view.paths.iter().map(PathStatus::from).collect(),
            allowances: view.allowances.iter().map(AllowanceStatus::from).collect(),
            rules: rules(&view.rules),
            shares: Class::all()
                .map(|class| view.shares.per_mille(class))
                .into(),
        }
    }
}

fn rules(rules: &InForce) -> Vec<RuleStatus> {
    let rule = |of: &str, path: Option<&String>, policy: &Policy| RuleStatus {
        of: of.to_owned(),
        path: path.cloned(),
        policy: policy.to_string(),
    };
    let over_all = rules.over_all.iter();
    let over_all = over_all.map(|(of, policy)| rule(of, None, policy));
    let paths = rules.paths.iter();
    let paths = paths.map(|(name, policy)| rule("path", Some(name), policy));
    over_all.chain(paths).collect()
}

impl From<&PathView> for PathStatus {
    fn from(path: &PathView) -> Self {
        let decision = &path.decision;
        let names = decision
            .classes
            .iter()
            .map(|class| class.as_str().to_owned());
        Self {
            name: path.name.clone(),
            rate_up_bits: decision.rate_up.map(BitRate::bits),
            rate_down_bits: decision.rate_down.map(BitRate::bits),
            classes: names.collect(),
            reason: decision.reason.clone(),
            next_change_ms: decision.next_change_ms,
            sent_bytes: path.traffic.sent,
            received_bytes: path.traffic.received,
            bytes_per_sec: path.bytes_per_sec,
            best_bytes_per_sec: path.best_bytes_per_sec,
        }
    }
}

impl From<&Standing> for AllowanceStatus {
    fn from(standing: &Standing) -> Self {
        let bytes = standing.bytes.bytes();
        let percent = u128::from(standing.used) * 100 / u128::from(bytes.max(1));
        Self {
            of: standing.of.clone(),
            bytes,
            period: standing.period.to_string(),
            used: standing.used,
            left: bytes.saturating_sub(standing.used),
            percent: u64::try_from(percent).unwrap_or(u64::MAX),
            action: standing.action.name().to_owned(),
            end_ms: standing.end_ms,
        }
    }
}

impl PolicyStatus {
    /// The lines of `edge-node status`. A site without any policy has none.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "policy       PROBLEM: {problem}")?;
        }
        for path in &self.paths {
            let name = if self.paths.len() > 1 {
                path.name.as_str()
            } else {
                ""
            };
            writeln!(f, "policy       {}", path.text(name, &self.source))?;
        }
        for allowance in &self.allowances {
            writeln!(f, "allowance    {}", allowance.text())?;
        }
        Ok(())
    }
}

impl PathStatus {
    fn text(&self, name: &str, source: &str) -> String {
        let rate = |bits: Option<u64>| {
            bits.map_or_else(|| "unlimited".to_owned(), |bits| BitRate(bits).rounded())
        };
        let (up, down) = (rate(self.rate_up_bits), rate(self.rate_down_bits));
        let classes = match self.classes.as_slice() {
            [] => "NOTHING IS SENT".to_owned(),
            classes => classes.join(", "),
        };
        let mut text = String::new();
        if !name.is_empty() {
            text = format!("{name}: ");
        }
        text.push_str(&format!("{up} up, {down} down; {classes}"));
        if !self.reason.is_empty() {
            text.push_str(&format!("; {}", self.reason));
        }
        if let Some(at) = self.next_change_ms {
            text.push_str(&format!("; may change {}", utc(at)));
        }
        text.push_str(&format!(" (from {source})"));
        text
    }
}

impl AllowanceStatus {
    fn text(&self) -> String {
        let Self {
            of,
            period,
            percent,
            action,
            ..
        } = self;
        let (used, left) = (ByteSize(self.used).rounded(), ByteSize(self.left).rounded());
        let (all, until) = (ByteSize(self.bytes), utc(self.end_ms));
        format!(
            "{of}: {used} of {all} a {period} used ({percent} %), {left} left until {until}: {action}"
        )
    }

    /// Whether it restricts what is sent.
    #[must_use]
    pub fn restricts(&self) -> bool {
        self.action != Action::Continue.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> PolicyStatus {
        PolicyStatus {
            source: "file".to_owned(),
            problems: Vec::new(),
            paths: vec![PathStatus {
                name: "default".to_owned(),
                rate_up_bits: Some(256_000),
                classes: vec!["critical".to_owned()],
                reason: "window mon-fri 08:00-18:00".to_owned(),
                next_change_ms: Some(1_795_798_800_000),
                ..PathStatus::default()
            }],
            allowances: vec![AllowanceStatus {
                of: "site".to_owned(),
                bytes: 5_000_000_000,
                period: "month".to_owned(),
                used: 4_100_000_000,
                left: 900_000_000,
                percent: 82,
                action: "critical-only".to_owned(),
                end_ms: 1_796_079_600_000,
            }],
            ..PolicyStatus::default()
        }
    }

    struct Shown(PolicyStatus);

    impl fmt::Display for Shown {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write(f)
        }
    }

    #[test]
    fn people_read_what_holds_why_and_what_is_left() {
        let text = Shown(status()).to_string();
        assert_eq!(
            text,
            "policy       256.0 kbit/s up, unlimited down; critical; window mon-fri 08:00-18:00; \
             may change 2026-11-27 17:00:00 UTC (from file)\n\
             allowance    site: 3.8 GiB of 5GB a month used (82 %), 858.3 MiB left until \
             2026-11-30 23:00:00 UTC: critical-only\n"
        );
        assert!(status().allowances[0].restricts());
        let mut stopped = status();
        stopped.paths[0].classes.clear();
        stopped.problems.push("bad file".to_owned());
        let text = Shown(stopped).to_string();
        assert!(
            text.contains("NOTHING IS SENT") && text.contains("PROBLEM: bad file"),
            "{text}"
        );
    }

    #[test]
    fn the_document_round_trips_and_an_older_one_is_read() {
        let text = serde_json::to_string(&status()).unwrap();
        assert_eq!(
            serde_json::from_str::<PolicyStatus>(&text).unwrap(),
            status()
        );
        assert_eq!(
            serde_json::from_str::<PolicyStatus>("{}").unwrap(),
            PolicyStatus::default()
        );
    }
}
