//! What the site tells about itself: the document at `/status`, and the same for people.
//!
//! The heart is the delivery ledger: for each topic
//! `accepted = committed + queued + expired + dropped_oldest + dropped_newest + damaged + deleted`, in records.
//! If it does not add up, the text says so and `edge-node status` exits with 1.

mod policy;

use std::fmt;

use serde::{Deserialize, Serialize};
use shared::class::Class;
use shared::cli::{Table, thousands};
use shared::time::utc;
use shared::units::{ByteSize, Span};

pub use policy::{AllowanceStatus, PathStatus, PolicyStatus, RuleStatus};

use crate::store;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the software.
    pub version: String,
    /// The site's name, from its certificate; absent when it has none yet.
    pub site: Option<String>,
    /// The store's incarnation.
    pub incarnation: String,
    /// The site's wall clock, ms since the epoch.
    pub wall_ms: i64,
    /// Since the start of the process.
    pub uptime_ms: u64,
    /// Whether it accepts records.
    #[serde(default)]
    pub ready: bool,
    /// What keeps it from accepting records; empty when ready.
    pub problems: Vec<String>,
    /// The way to the hub.
    pub uplink: UplinkStatus,
    /// What it may be used for.
    #[serde(default)]
    pub policy: PolicyStatus,
    /// Every topic's ledger, by name.
    pub topics: Vec<TopicStatus>,
}

/// The way to the hub. A site that is offline is healthy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UplinkStatus {
    /// Whether the configuration has it switched on.
    pub is_enabled: bool,
    /// Whether a session with a hub is open.
    pub is_connected: bool,
    /// The hub of the session, or the one dialled last.
    pub hub: Option<String>,
    /// Wall clock of the last change of `is_connected`, ms since the epoch.
    pub changed_ms: i64,
    /// Why there is no session.
    pub last_error: Option<String>,
    /// Sessions that were opened since the start.
    pub sessions: u64,
    /// Attempts to dial since the start.
    pub attempts: u64,
    /// Records' bytes before compression, sent since the start.
    pub raw_bytes: u64,
    /// The same compressed.
    pub encoded_bytes: u64,
    /// Bytes of IP packets that sessions sent since the start; dials that failed are in those of the paths.
    pub sent_bytes: u64,
    /// Bytes of IP packets that sessions received.
    pub received_bytes: u64,
    /// Smoothed round-trip time of the session, microseconds.
    pub rtt_us: u64,
    /// The path of the session, where there are several.
    pub path: Option<String>,
    /// Why it is this one.
    pub path_reason: Option<String>,
    /// The session goes over TLS over TCP, because UDP is blocked.
    pub is_over_tcp: bool,
    /// The session waits for a hub that is not heard: the link may be away.
    pub is_silent: bool,
    /// Sessions over TCP since the start.
    pub tcp_sessions: u64,
    /// IP packets sent since the start.
    pub sent_packets: u64,
    /// IP packets received.
    pub received_packets: u64,
    /// Memory that codecs take, bytes.
    pub codec_bytes: u64,
    /// Their saved states on disk, bytes.
    pub codec_saved_bytes: u64,
    /// Topic partitions whose codec remembers something.
    pub codec_logs: u64,
    /// What was sent since the start, by topic and codec.
    pub traffic: Vec<TopicTraffic>,
    /// Topics that the hub refuses, as it said last: at most a thousand.
    pub refused_topics: Vec<String>,
    /// What keeps records from the hub though it is there, and takes a person to mend.
    pub problems: Vec<String>,
}

/// What one topic put on the link with one codec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicTraffic {
    /// Its name; `*`: those beyond the first thousand.
    pub topic: String,
    /// `none`, `zstd`, `dictionary`, `columnar`, `modelled` or `chunks`; `gap` for what was dropped.
    pub codec: String,
    /// Data streams.
    pub streams: u64,
    /// Records' bytes before the codec, by size class.
    pub raw_bytes: u64,
    /// Bytes of the streams, their headers included.
    pub sent_bytes: u64,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicStatus {
    /// Its name.
    pub name: String,
    /// How urgent its records are on the link.
    #[serde(default)]
    pub class: Class,
    /// Offsets of a backlog that new records pass (`live_first`); 0: there is none.
    #[serde(default)]
    pub passed: u64,
    /// Its ledger.
    pub ledger: Ledger,
}

/// The delivery ledger, in records but for `queued_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Acknowledged to producers.
    pub accepted: u64,
    /// Acknowledged by the hub as committed.
    pub committed: u64,
    /// Stored, not yet acknowledged by the hub.
    pub queued: u64,
    /// Logical bytes of the queued records.
    pub queued_bytes: u64,
    /// Aged out before they were sent.
    pub expired: u64,
    /// Dropped by `drop-oldest`.
    pub dropped_oldest: u64,
    /// Dropped by `drop-newest`.
    pub dropped_newest: u64,
    /// Lost by the disk.
    pub damaged: u64,
    /// Deleted by a client before they were sent.
    #[serde(default)]
    pub deleted: u64,
}

impl From<store::Ledger> for Ledger {
    fn from(ledger: store::Ledger) -> Self {
        Self {
            accepted: ledger.accepted,
            committed: ledger.committed,
            queued: ledger.queued,
            queued_bytes: ledger.queued_bytes,
            expired: ledger.expired,
            dropped_oldest: ledger.dropped_oldest,
            dropped_newest: ledger.dropped_newest,
            damaged: ledger.damaged,
            deleted: ledger.deleted,
        }
    }
}

impl Ledger {
    /// Records that are accounted for.
    #[must_use]
    pub const fn accounted(&self) -> u64 {
        self.committed
            .saturating_add(self.queued)
            .saturating_add(self.expired)
            .saturating_add(self.dropped_oldest)
            .saturating_add(self.dropped_newest)
            .saturating_add(self.damaged)
            .saturating_add(self.deleted)
    }

    /// Whether every accepted record is accounted for, and no other.
    #[must_use]
    pub const fn adds_up(&self) -> bool {
        self.accepted == self.accounted()
    }

    /// Both together.
    #[must_use]
    pub(crate) const fn plus(self, other: &Self) -> Self {
        Self {
            accepted: self.accepted.saturating_add(other.accepted),
            committed: self.committed.saturating_add(other.committed),
            queued: self.queued.saturating_add(other.queued),
            queued_bytes: self.queued_bytes.saturating_add(other.queued_bytes),
            expired: self.expired.saturating_add(other.expired),
            dropped_oldest: self.dropped_oldest.saturating_add(other.dropped_oldest),
            dropped_newest: self.dropped_newest.saturating_add(other.dropped_newest),
            damaged: self.damaged.saturating_add(other.damaged),
            deleted: self.deleted.saturating_add(other.deleted),
        }
    }

    fn cells(&self) -> [String; 9] {
        [
            thousands(self.accepted),
            thousands(self.committed),
            thousands(self.queued),
            ByteSize(self.queued_bytes).rounded(),
            thousands(self.expired),
            thousands(self.dropped_oldest),
            thousands(self.dropped_newest),
            thousands(self.damaged),
            thousands(self.deleted),
        ]
    }
}

impl Status {
    /// The topics whose ledger does not add up.
    pub fn unbalanced(&self) -> impl Iterator<Item = &TopicStatus> {
        self.topics.iter().filter(|topic| !topic.ledger.adds_up())
    }

    /// Ready, nothing refused by the hub, every ledger adds up, and the policies are what the files say.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        let problems = [&self.problems, &self.uplink.problems, &self.policy.problems];
        let has_problems = problems.iter().any(|them| !them.is_empty());
        !has_problems && self.unbalanced().next().is_none()
    }

    fn write_ledger(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "topic",
            "class",
            "accepted",
            "committed",
            "queued",
            "queued bytes",
            "expired",
            "oldest dropped",
            "newest dropped",
            "damaged",
            "deleted",
        ]);
        let mut total = Ledger::default();
        for topic in &self.topics {
            total = total.plus(&topic.ledger);
            let who = [topic.name.clone(), topic.class.to_string()];
            table.row(who.into_iter().chain(topic.ledger.cells()));
        }
        if self.topics.len() > 1 {
            let who = ["(all)".to_owned(), String::new()];
            table.row(who.into_iter().chain(total.cells()));
        }
        writeln!(f, "\n{table}")?;
        for topic in self.topics.iter().filter(|topic| topic.passed > 0) {
            let (name, backlog) = (&topic.name, thousands(topic.passed));
            writeln!(f, "{name}: new records pass a backlog of {backlog}")?;
        }
        for topic in self.unbalanced() {
            let (accepted, accounted) = (topic.ledger.accepted, topic.ledger.accounted());
            let name = &topic.name;
            writeln!(
                f,
                "DOES NOT ADD UP  {name}: {accepted} accepted, {accounted} accounted for"
            )?;
        }
        if self.unbalanced().next().is_none() {
            writeln!(
                f,
                "The ledger adds up: accepted = committed + queued + expired + dropped + damaged + deleted"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up = Span::millis(self.uptime_ms).rounded();
        writeln!(
            f,
            "edge-node {}, up {up}, clock {}",
            self.version,
            utc(self.wall_ms)
        )?;
        writeln!(
            f,
            "site         {}",
            self.site.as_deref().unwrap_or(if self.uplink.is_enabled {
                "(no certificate)"
            } else {
                "(not known: the uplink is switched off)"
            })
        )?;
        writeln!(f, "incarnation  {}", self.incarnation)?;
        let ready = if self.problems.is_empty() {
            "yes"
        } else {
            "no"
        };
        writeln!(f, "ready        {ready}")?;
        for problem in self.problems.iter().chain(&self.uplink.problems) {
            writeln!(f, "problem      {problem}")?;
        }
        self.uplink.write(f, self.wall_ms, self.uptime_ms)?;
        self.policy.write(f)?;
        self.write_ledger(f)
    }
}

impl UplinkStatus {
    fn write(&self, f: &mut fmt::Formatter<'_>, wall_ms: i64, uptime_ms: u64) -> fmt::Result {
        if !self.is_enabled {
            return writeln!(f, "uplink       switched off");
        }
        let hub = self.hub.as_deref().unwrap_or("any hub");
        // 0: never changed since the start.
        let lasting = match u64::try_from(wall_ms.saturating_sub(self.changed_ms)) {
            Ok(millis) if self.changed_ms != 0 => {
                format!(" for {}", Span::millis(millis).rounded())
            }
            Ok(_) | Err(_) if self.changed_ms == 0 => {
                format!(
                    " for {}, since the start",
                    Span::millis(uptime_ms).rounded()
                )
            }
            Ok(_) | Err(_) => String::new(),
        };
        if self.is_connected {
            let rtt = Span::millis(self.rtt_us.div_ceil(1_000)).rounded();
            let carrier = if self.is_over_tcp { ", over TCP" } else { "" };
            let silent = if self.is_silent {
                "; not heard at the moment"
            } else {
                ""
            };
            let path = self.path.as_ref().map_or_else(String::new, |path| {
                let reason = self.path_reason.as_deref().unwrap_or("the first choice");
                format!(" by {path} ({reason})")
            });
            writeln!(
                f,
                "uplink       connected to {hub}{lasting}{path}{carrier}, round trip {rtt}{silent}"
            )?;
        } else {
            let why = self.last_error.as_deref().unwrap_or("dialling");
            writeln!(f, "uplink       not connected{lasting}, {hub}: {why}")?;
        }
        let raw = ByteSize(self.raw_bytes).rounded();
        let sent = ByteSize(self.sent_bytes).rounded();
        writeln!(
            f,
            "sent         {raw} of records in {sent} on the wire since start"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str, ledger: Ledger) -> TopicStatus {
        TopicStatus {
            name: name.to_owned(),
            class: Class::Bulk,
            passed: 0,
            ledger,
        }
    }

    fn status(topics: Vec<TopicStatus>) -> Status {
        Status {
            version: "0.1.0".to_owned(),
            site: Some("shop-1".to_owned()),
            incarnation: "00ff".to_owned(),
            wall_ms: 100_000,
            uptime_ms: 93_600_000,
            ready: true,
            problems: Vec::new(),
            uplink: UplinkStatus {
                is_enabled: true,
                changed_ms: 40_000,
                last_error: Some("the hub does not answer".to_owned()),
                ..UplinkStatus::default()
            },
            policy: PolicyStatus::default(),
            topics,
        }
    }

    #[test]
    fn a_ledger_that_adds_up_says_so() {
        let ledger = Ledger {
            accepted: 1_500,
            committed: 1_000,
            queued: 300,
            queued_bytes: 2_097_152,
            expired: 100,
            dropped_oldest: 50,
            dropped_newest: 40,
            damaged: 7,
            deleted: 3,
        };
        let status = status(vec![topic("a", ledger), topic("b", Ledger::default())]);
        let text = status.to_string();
        assert!(status.is_fine());
        for part in [
            "up 1d2h",
            "shop-1",
            "not connected for 1m",
            "does not answer",
            "adds up",
            "(all)",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let line = text.lines().find(|line| line.starts_with("a ")).unwrap();
        let cells: Vec<&str> = line
            .split("  ")
            .map(str::trim)
            .filter(|c| !c.is_empty())
            .collect();
        assert_eq!(
            cells,
            [
                "a", "bulk", "1 500", "1 000", "300", "2.0 MiB", "100", "50", "40", "7", "3"
            ]
        );
    }

    #[test]
    fn a_ledger_that_does_not_add_up_is_named() {
        let ledger = Ledger {
            accepted: 10,
            committed: 4,
            queued: 5,
            ..Ledger::default()
        };
        let status = status(vec![
            topic("fine", Ledger::default()),
            topic("lossy", ledger),
        ]);
        assert!(!status.is_fine());
        let text = status.to_string();
        assert!(
            text.contains("DOES NOT ADD UP  lossy: 10 accepted, 9 accounted for"),
            "{text}"
        );
        assert!(!text.contains("The ledger adds up"));
    }

    #[test]
    fn a_site_that_never_had_a_session_says_for_how_long() {
        let mut status = status(Vec::new());
        (status.uplink.changed_ms, status.uplink.last_error) = (0, None);
        let text = status.to_string();
        let line = "uplink       not connected for 1d2h, since the start, any hub: dialling\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn what_the_hub_refuses_is_a_problem_of_a_site_that_is_ready() {
        let mut status = status(vec![topic("a", Ledger::default())]);
        assert!(status.is_fine());
        status.policy.problems = vec!["policy.rate_up: out of range".to_owned()];
        assert!(!status.is_fine());
        status.policy.problems.clear();
        status.uplink.problems = vec!["refused by the hub: a".to_owned()];
        assert!(!status.is_fine());
        let text = status.to_string();
        assert!(
            text.contains("ready        yes\nproblem      refused by the hub: a\n"),
            "{text}"
        );
    }

    #[test]
    fn a_site_without_an_uplink_is_not_said_to_lack_a_certificate() {
        let mut status = status(Vec::new());
        status.site = None;
        assert!(status.to_string().contains("(no certificate)"));
        status.uplink.is_enabled = false;
        assert!(!status.to_string().contains("(no certificate)"));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["ready"], true);
    }

    #[test]
    fn of_several_paths_the_one_in_use_is_named_with_the_reason() {
        let mut status = status(Vec::new());
        status.uplink.is_connected = true;
        assert!(!status.to_string().contains(" by "));
        status.uplink.path = Some("lte".to_owned());
        status.uplink.path_reason = Some("wired does not answer".to_owned());
        let text = status.to_string();
        let part = "connected to any hub for 1m by lte (wired does not answer), round trip";
        assert!(text.contains(part), "{text}");
    }

    #[test]
    fn the_document_round_trips() {
        let status = status(vec![topic("a", Ledger::default())]);
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }
}
