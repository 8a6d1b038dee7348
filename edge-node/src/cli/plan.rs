//! `edge-node plan`: when each topic will be caught up, and what that will cost.
//!
//! Backlog, arrivals, what the link carries and the policies that hold come from the running node: of the configuration
//! only the address of its admin listener is read. [`crate::uplink::plan`] plays them forward.

use std::fmt;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shared::admin::fetch;
use shared::class::{ClassShares, PerClass};
use shared::cli::{Outcome, Output, STATUS_LIMIT, StatusArgs, Table, print, thousands};
use shared::policy::{RATES, stated};
use shared::time::utc;
use shared::units::{BitRate, ByteSize, Span};

use super::CONFIG_FILE;
use crate::config::Config;
use crate::status::{PathStatus, RuleStatus, Status};
use crate::uplink::plan::{Account, Backlog, Measured, TopicPlan, plan};
use crate::uplink::policy::{Charged, Policy};

/// Nothing was sent yet: what a zstd producer's records come to in the mean, headers included.
const ASSUMED_PER_MILLION: u64 = 300_000;
/// The link was never the limit: a modest uplink.
const ASSUMED_LINK: BitRate = BitRate::mbit(1);
/// Fewer stored bytes say nothing about the rest.
const ENOUGH_BYTES: u64 = 64 << 10;

/// Somebody waits at the terminal.
const LONGEST_WATCH: Span = Span::minutes(1);

/// Options of `plan`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    status: StatusArgs,
    /// What the link carries, instead of what was measured: 256kbit, 2Mbit (8kbit to 100Gbit)
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<BitRate>,
    /// The path to plan for, instead of the session's, or of the first that may be used
    #[arg(long, value_name = "NAME")]
    path: Option<String>,
    /// How long to watch what arrives (0s to 1m); 0s plans for what waits only
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = watch)]
    watch: Span,
}

/// What a link may carry.
fn rate(text: &str) -> Result<BitRate, String> {
    let rate = text.parse::<BitRate>().map_err(|error| error.to_string())?;
    if !RATES.contains(&rate) {
        return Err(format!(
            "out of range; accepted: {} to {}",
            RATES.start(),
            RATES.end()
        ));
    }
    Ok(rate)
}

/// How long the command may take to watch.
fn watch(text: &str) -> Result<Span, String> {
    let watch = text.parse::<Span>().map_err(|error| error.to_string())?;
    if watch > LONGEST_WATCH {
        return Err(format!("out of range; accepted: 0s to {LONGEST_WATCH}"));
    }
    Ok(watch)
}

/// What is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlanReport {
    /// Wall clock of the plan, ms since the epoch.
    pub(super) at_ms: i64,
    /// The path that was planned for.
    pub(super) path: String,
    /// Whether the node has a session with a hub: else times count from when it has.
    pub(super) is_connected: bool,
    /// What it was taken to carry when no policy slows it, bits a second.
    pub(super) link_bits: u64,
    /// Whether that was given, measured while the link was the limit, or what the policy grants; else assumed.
    pub(super) link_is_known: bool,
    /// Bytes in IP packets for a million stored bytes.
    pub(super) wire_per_million: u64,
    /// Whether that was measured; else assumed.
    pub(super) cost_is_known: bool,
    /// Every topic.
    pub(super) topics: Vec<TopicPlan>,
    /// Bytes of all.
    pub(super) wire_bytes: u64,
    /// When the last topic is caught up; absent when one never is.
    pub(super) done_ms: Option<i64>,
}

/// Runs the command.
pub(super) fn run(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let address = match args.status.admin {
        Some(address) => address,
        None => Config::load_admin(args.status.config.file(CONFIG_FILE).as_deref())?.listen,
    };
    let ask = || -> anyhow::Result<Status> {
        let (_, text) = fetch(address, "/status", STATUS_LIMIT)?;
        serde_json::from_str(&text).context("read the status of the node")
    };
    let first = ask()?;
    let watched = args.watch.duration();
    let last = if watched.is_zero() {
        first.clone()
    } else {
        std::thread::sleep(watched);
        ask()?
    };
    let path = chosen_path(&last, args.path.as_deref())?;
    let report = report(&first, &last, &path, args.rate)?;
    match args.status.output {
        Output::Json => print(format_args!("{}\n", serde_json::to_string_pretty(&report)?))?,
        Output::Text => print(&report)?,
    }
    Ok(Outcome::Fine)
}

fn chosen_path(status: &Status, wanted: Option<&str>) -> anyhow::Result<PathStatus> {
    let paths = || status.policy.paths.iter();
    let named = |name: &str| paths().find(|path| path.name == name);
    let found = match wanted {
        Some(name) => named(name),
        None => {
            let uplink = &status.uplink;
            let of_session = uplink.path.as_deref().filter(|_| uplink.is_connected);
            of_session
                .and_then(named)
                .or_else(|| paths().find(|path| !path.classes.is_empty()))
                .or_else(|| status.policy.paths.first())
        }
    };
    let names = paths().map(|path| path.name.as_str());
    found.cloned().with_context(|| {
        let names: Vec<&str> = names.collect();
        match names.as_slice() {
            [] => "the uplink of the node is switched off".to_owned(),
            names => format!("no such path; the node has {}", names.join(", ")),
        }
    })
}

fn report(
    first: &Status,
    last: &Status,
    path: &PathStatus,
    rate: Option<BitRate>,
) -> anyhow::Result<PlanReport> {
    let backlog: Vec<Backlog> = last
        .topics
        .iter()
        .map(|topic| Backlog {
            topic: topic.name.clone(),
            class: topic.class,
            records: topic.ledger.queued,
            bytes: topic.ledger.queued_bytes,
            arriving: arriving(first, last, &topic.name),
        })
        .collect();
    let accounts = accounts(last, &path.name)?;
    let link = rate.or_else(|| link_of(path, &accounts));
    let cost = cost(last);
    let measured = Measured {
        wire_per_million: cost.unwrap_or(ASSUMED_PER_MILLION),
        link: link.unwrap_or(ASSUMED_LINK),
        shares: shares(last),
    };
    let refused = &last.uplink.refused_topics;
    let (held, free): (Vec<Backlog>, Vec<Backlog>) = backlog
        .into_iter()
        .partition(|it| it.records > 0 && refused.contains(&it.topic));
    let mut topics = plan(&free, &accounts, last.wall_ms, measured);
    topics.extend(held.iter().map(refused_plan));
    topics.sort_by(|left, right| left.topic.cmp(&right.topic));
    let ends: Option<Vec<i64>> = topics.iter().map(|topic| topic.done_ms).collect();
    Ok(PlanReport {
        at_ms: last.wall_ms,
        path: path.name.clone(),
        is_connected: last.uplink.is_connected,
        link_bits: measured.link.bits(),
        link_is_known: link.is_some(),
        wire_per_million: measured.wire_per_million,
        cost_is_known: cost.is_some(),
        wire_bytes: topics.iter().map(|topic| topic.wire_bytes).sum(),
        done_ms: ends.map(|ends| ends.into_iter().max().unwrap_or(last.wall_ms)),
        topics,
    })
}

/// How the classes share the node's link.
fn shares(status: &Status) -> ClassShares {
    match status.policy.shares[..] {
        [critical, normal, bulk] => {
            ClassShares::from_per_mille(PerClass::new([critical, normal, bulk]))
        }
        _ => ClassShares::default(),
    }
}

/// Of a topic that the hub refuses.
fn refused_plan(backlog: &Backlog) -> TopicPlan {
    TopicPlan {
        topic: backlog.topic.clone(),
        class: backlog.class.to_string(),
        records: backlog.records,
        bytes: backlog.bytes,
        wire_bytes: 0,
        done_ms: None,
        takes_ms: None,
        share_of_allowance: None,
        waits: Some("refused by the hub: see `edge-node status`".to_owned()),
    }
}

/// What was measured while the link was the limit, or what the policies grant at any time where that is more: a path
/// that a policy slows may carry more than was measured. `None`: nobody knows.
fn link_of(path: &PathStatus, accounts: &[Account]) -> Option<BitRate> {
    let measured = path.best_bytes_per_sec.saturating_mul(8);
    let measured = (measured > 0).then_some(BitRate(measured));
    let now = path.rate_up_bits.map(BitRate);
    let rates = accounts.iter().map(|account| rates(&account.policy));
    let rates: Vec<Vec<Option<BitRate>>> = rates.collect();
    // the policy that grants least
    let granted = rates.iter().filter_map(|rates| {
        let all: Option<Vec<BitRate>> = rates.iter().copied().collect();
        all?.into_iter().max()
    });
    if let Some(granted) = granted.min() {
        return measured.max(Some(granted)).max(now);
    }
    let has_rates = rates.iter().flatten().any(Option::is_some);
    match now {
        // held back now, and free at other times: measured was the policy
        Some(now) if has_rates => measured.filter(|rate| rate.bits() > now.bits() / 8 * 9),
        now => measured.max(now),
    }
}

/// Rates up, outside all windows and in each, where anything may be sent.
fn rates(policy: &Policy) -> Vec<Option<BitRate>> {
    let in_windows = policy.windows.iter().map(|window| &window.limits);
    let all = [&policy.limits].into_iter().chain(in_windows);
    all.filter(|limits| !limits.classes.is_empty())
        .map(|limits| limits.rate_up)
        .collect()
}

/// Bytes in IP packets, both ways, for a million stored bytes, since the node started.
fn cost(status: &Status) -> Option<u64> {
    let uplink = &status.uplink;
    let wire = u128::from(uplink.sent_bytes) + u128::from(uplink.received_bytes);
    let raw = u128::from(uplink.raw_bytes);
    (uplink.raw_bytes >= ENOUGH_BYTES)
        .then(|| u64::try_from(wire * 1_000_000 / raw).unwrap_or(u64::MAX))
}

/// Stored bytes of a topic that arrive in a second.
fn arriving(first: &Status, last: &Status, topic: &str) -> u64 {
    let ledger = |status: &Status| {
        let found = status.topics.iter().find(|it| it.name == topic);
        found.map(|it| it.ledger)
    };
    let (Some(before), Some(after)) = (ledger(first), ledger(last)) else {
        return 0;
    };
    let millis = last.uptime_ms.saturating_sub(first.uptime_ms);
    let records = u128::from(after.accepted.saturating_sub(before.accepted));
    let size = u128::from(after.queued_bytes) / u128::from(after.queued.max(1));
    match millis {
        0 => 0,
        millis => u64::try_from(records * size * 1_000 / u128::from(millis)).unwrap_or(u64::MAX),
    }
}

/// The policies that hold together on a path, with what was used of them.
fn accounts(status: &Status, path: &str) -> anyhow::Result<Vec<Account>> {
    let rules = &status.policy.rules;
    anyhow::ensure!(
        !rules.is_empty(),
        "the node, of version {}, does not tell the policies that hold; expected: a node of this version, {}",
        status.version,
        env!("CARGO_PKG_VERSION")
    );
    let holds = |rule: &&RuleStatus| rule.path.as_deref().is_none_or(|name| name == path);
    rules
        .iter()
        .filter(holds)
        .map(|rule| {
            let of = rule.path.as_ref().unwrap_or(&rule.of).clone();
            let policy = stated(&rule.policy)
                .with_context(|| format!("read the policy of {of} that the node tells"))?;
            let allowance = status.policy.allowances.iter().find(|it| it.of == of);
            let charged = allowance.map_or_else(Charged::default, |it| Charged {
                used: it.used,
                end_ms: it.end_ms,
            });
            Ok(Account {
                of,
                policy,
                charged,
            })
        })
        .collect()
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "topic",
            "class",
            "records",
            "bytes",
            "on the link",
            "of allowance",
            "caught up in",
            "at",
        ]);
        for topic in &self.topics {
            let share = topic.share_of_allowance;
            table.row([
                topic.topic.clone(),
                topic.class.clone(),
                thousands(topic.records),
                ByteSize(topic.bytes).rounded(),
                ByteSize(topic.wire_bytes).rounded(),
                share.map_or_else(
                    || "-".to_owned(),
                    |it| format!("{}.{:02} %", it / 100, it % 100),
                ),
                topic
                    .takes_ms
                    .map_or_else(|| "never".to_owned(), |it| Span::millis(it).rounded()),
                topic.done_ms.map_or_else(String::new, utc),
            ]);
        }
        writeln!(f, "{table}")?;
        for topic in &self.topics {
            if let Some(waits) = &topic.waits {
                writeln!(f, "{} waits: {waits}", topic.topic)?;
            }
        }
        let (all, link) = (
            ByteSize(self.wire_bytes).rounded(),
            BitRate(self.link_bits).rounded(),
        );
        writeln!(f, "In all {all} on the link by path {}", self.path)?;
        if !self.is_connected {
            writeln!(
                f,
                "No session with a hub now: times count from when there is one"
            )?;
        }
        let assumed = if self.link_is_known {
            ""
        } else {
            ", assumed: it was never the limit, or a policy was, so what it carries is not known; give --rate"
        };
        writeln!(f, "Link {link}{assumed}")?;
        let (whole, part) = (
            self.wire_per_million / 10_000,
            self.wire_per_million / 100 % 100,
        );
        let cost = if self.cost_is_known {
            ""
        } else {
            ", assumed: nothing was measured yet"
        };
        writeln!(
            f,
            "Cost {whole}.{part:02} bytes on the link for 100 bytes stored{cost}"
        )
    }
}

#[cfg(test)]
mod tests {
    use shared::class::Class;

    use super::*;
    use crate::status::{AllowanceStatus, Ledger, PolicyStatus, TopicStatus, UplinkStatus};

    /// The same node with this policy for the site.
    fn under(policy: &str, mut status: Status) -> Status {
        status.policy.rules[0].policy = stated(policy).unwrap().to_string();
        status
    }

    fn status(uptime_ms: u64, accepted: u64) -> Status {
        Status {
            version: String::new(),
            site: None,
            incarnation: String::new(),
            wall_ms: 1_795_780_800_000,
            uptime_ms,
            ready: true,
            problems: Vec::new(),
            uplink: UplinkStatus {
                raw_bytes: 1_000_000,
                sent_bytes: 190_000,
                received_bytes: 10_000,
                ..UplinkStatus::default()
            },
            policy: PolicyStatus {
                paths: vec![PathStatus {
                    name: "default".to_owned(),
                    classes: vec!["normal".to_owned()],
                    rate_up_bits: Some(80_000),
                    best_bytes_per_sec: 9_000,
                    ..PathStatus::default()
                }],
                allowances: vec![AllowanceStatus {
                    of: "site".to_owned(),
                    used: 1_000_000,
                    end_ms: 1_796_083_200_000,
                    ..AllowanceStatus::default()
                }],
                rules: [("site", None), ("path", Some("default".to_owned()))]
                    .map(|(of, path)| RuleStatus {
                        of: of.to_owned(),
                        path,
                        policy: String::new(),
                    })
                    .to_vec(),
                shares: vec![760, 190, 50],
                ..PolicyStatus::default()
            },
            topics: vec![TopicStatus {
                name: "a".to_owned(),
                class: Class::Normal,
                passed: 0,
                ledger: Ledger {
                    accepted,
                    queued: 10_000,
                    queued_bytes: 1_000_000,
                    ..Ledger::default()
                },
            }],
        }
    }

    #[test]
    fn the_report_follows_what_was_measured_and_the_policy() {
        let policy = "[policy]\nrate_up = \"80kbit\"\n[policy.allowance]\nbytes = \"2MB\"\n";
        let (first, last) = (status(1_000, 50_000), status(3_000, 50_040));
        let last = under(policy, last);
        let path = chosen_path(&last, None).unwrap();
        let report = report(&first, &last, &path, None).unwrap();
        assert_eq!(
            (report.link_bits, report.wire_per_million),
            (80_000, 200_000)
        );
        assert!(report.link_is_known && report.cost_is_known);
        // 200 kB at 10 kB/s, while 20 records of 100 bytes arrive in a second: 400 B/s on the link
        let takes = report.topics[0].takes_ms.unwrap();
        assert!((20_700..21_000).contains(&takes), "{takes}");
        assert!(
            (208_000..209_000).contains(&report.wire_bytes),
            "{}",
            report.wire_bytes
        );
        let text = report.to_string();
        for part in [
            "of allowance",
            "10.41 %",
            "20s",
            "Cost 20.00 bytes",
            "Link 80.0 kbit/s\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_sites_own_trickle_is_not_what_its_link_carries() {
        let mut last = status(1_000, 1);
        let path = &mut last.policy.paths[0];
        (
            path.bytes_per_sec,
            path.best_bytes_per_sec,
            path.rate_up_bits,
        ) = (3_000, 0, None);
        let plan = |status: &Status, rate| {
            let path = chosen_path(status, None).unwrap();
            report(status, status, &path, rate).unwrap()
        };
        let report = plan(&last, None);
        assert_eq!((report.link_bits, report.link_is_known), (1_000_000, false));
        let report = plan(&last, Some(BitRate::mbit(2)));
        assert_eq!((report.link_bits, report.link_is_known), (2_000_000, true));
        last.policy.paths[0].rate_up_bits = Some(256_000);
        let report = plan(&last, None);
        assert_eq!((report.link_bits, report.link_is_known), (256_000, true));
    }

    #[test]
    fn what_a_window_grants_is_not_what_the_link_carries_at_other_times() {
        let plan = |policy: &str, measured: u64| {
            let mut last = under(policy, status(1_000, 1));
            let path = &mut last.policy.paths[0];
            (path.best_bytes_per_sec, path.rate_up_bits) = (measured, Some(32_000));
            let path = chosen_path(&last, None).unwrap();
            let report = report(&last, &last, &path, None).unwrap();
            (report.link_bits, report.link_is_known)
        };
        let slow = "[[policy.window]]\nrate_up = \"32kbit\"\n";
        let day = format!("[policy]\nrate_up = \"2Mbit\"\n{slow}");
        assert_eq!(plan(&day, 4_000), (2_000_000, true));
        let free = format!("[policy]\n{slow}");
        assert_eq!(plan(&free, 4_000), (ASSUMED_LINK.bits(), false));
        assert_eq!(plan(&free, 400_000), (3_200_000, true), "before the window");
    }

    #[test]
    fn what_the_node_says_holds_and_nothing_else() {
        let mut last = status(1_000, 50_000);
        let path = chosen_path(&last, None).unwrap();
        let takes = |last: &Status| {
            let report = report(last, last, &path, None).unwrap();
            report.topics[0].takes_ms
        };
        let free = takes(&last).unwrap();
        let hub = RuleStatus {
            of: "hub".to_owned(),
            path: None,
            policy: "[policy]\nrate_up = \"8kbit\"\n".to_owned(),
        };
        last.policy.rules.push(hub);
        assert!(takes(&last).unwrap() > 5 * free);
        // a way that is not taken has a policy of its own
        last.policy.rules[2].path = Some("satellite".to_owned());
        assert_eq!(takes(&last), Some(free));
        last.topics[0].class = Class::Bulk;
        last.policy.rules[0].policy = "[policy]\nclasses = [\"critical\"]\n".to_owned();
        assert_eq!(takes(&last), None);
        last.policy.rules.clear();
        let error = report(&last, &last, &path, None).unwrap_err().to_string();
        assert!(error.contains("does not tell the policies"), "{error}");
    }

    #[test]
    fn a_topic_that_the_hub_refuses_is_never_caught_up() {
        let mut last = status(1_000, 10_000);
        let mut other = last.topics[0].clone();
        other.name = "b".to_owned();
        last.topics.push(other);
        last.uplink.refused_topics = vec!["a".to_owned()];
        let path = chosen_path(&last, None).unwrap();
        let report = report(&last, &last, &path, None).unwrap();
        let takes = report
            .topics
            .iter()
            .map(|it| (it.topic.as_str(), it.takes_ms.is_some()));
        assert_eq!(takes.collect::<Vec<_>>(), [("a", false), ("b", true)]);
        assert_eq!(report.done_ms, None);
        let text = report.to_string();
        assert!(
            text.contains("never") && text.contains("a waits: refused by the hub"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_planned_with_is_refused() {
        assert_eq!(watch("1m"), Ok(Span::minutes(1)));
        assert_eq!(watch("0s"), Ok(Span::millis(0)));
        assert_eq!(
            watch("61s"),
            Err("out of range; accepted: 0s to 1m".to_owned())
        );
        assert!(watch("5").unwrap_err().contains("500ms"));
        assert_eq!(rate("8kbit"), Ok(BitRate::kbit(8)));
        for text in ["7999bit", "0bit", "101Gbit"] {
            assert_eq!(
                rate(text),
                Err("out of range; accepted: 8kbit to 100Gbit".to_owned())
            );
        }
        assert!(rate("256").unwrap_err().contains("kbit"));
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_assumed() {
        let mut last = status(1_000, 1);
        last.uplink = UplinkStatus::default();
        let path = &mut last.policy.paths[0];
        (path.best_bytes_per_sec, path.rate_up_bits) = (0, None);
        let path = chosen_path(&last, Some("default")).unwrap();
        let report = report(&last, &last, &path, None).unwrap();
        assert!(!report.link_is_known && !report.cost_is_known);
        let text = report.to_string();
        assert!(
            text.contains("Link 1.0 Mbit/s, assumed") && text.contains("give --rate"),
            "{text}"
        );
        let error = chosen_path(&last, Some("lte")).unwrap_err().to_string();
        assert_eq!(error, "no such path; the node has default");
    }

    #[test]
    fn the_path_of_the_session_is_planned_for() {
        let mut last = status(1_000, 0);
        let mut lte = last.policy.paths[0].clone();
        lte.name = "lte".to_owned();
        last.policy.paths.push(lte);
        last.uplink.path = Some("lte".to_owned());
        let name = |status: &Status| chosen_path(status, None).unwrap().name;
        assert_eq!(name(&last), "default", "there is no session");
        last.uplink.is_connected = true;
        assert_eq!(name(&last), "lte");
        last.uplink.path = Some("gone".to_owned());
        assert_eq!(name(&last), "default");
    }
}
