//! What the hub tells about itself: the document at `/status`, and the same for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use shared::cli::{Table, thousands};
use shared::time::utc;
use shared::units::{ByteSize, Span};

/// Sites that the text form lists; the document has all.
const LISTED_SITES: usize = 50;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the software.
    pub version: String,
    /// The hub's wall clock, ms since the epoch.
    pub wall_ms: i64,
    /// Since the start of the process.
    pub uptime_ms: u64,
    /// Whether it can do its work.
    #[serde(default)]
    pub ready: bool,
    /// What keeps it from its work; empty when ready.
    pub problems: Vec<String>,
    /// What changed on disk and cannot be used, so that the old goes on: settings, certificates. The hub stays ready.
    #[serde(default)]
    pub reload_problems: Vec<String>,
    /// Lanes, all and those that cannot commit at the moment.
    pub lanes: LaneCounts,
    /// What keeps lanes from committing.
    #[serde(default)]
    pub troubles: Vec<LaneTrouble>,
    /// Sums since the start.
    pub commit: CommitCounts,
    /// What comes in.
    #[serde(default)]
    pub intake: IntakeCounts,
    /// Sites that this process has seen, by name.
    pub sites: BTreeMap<String, SiteLine>,
}

/// The lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCounts {
    /// All lanes of the system.
    pub all: u64,
    /// Lanes that cannot commit.
    pub troubled: u64,
}

/// What keeps a lane from committing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneTrouble {
    /// Which; absent: the cluster has not answered yet, and no lane has started.
    pub lane: Option<u32>,
    /// Wall clock when it began, ms since the epoch.
    pub since_ms: i64,
    /// The last error.
    pub error: String,
}

impl LaneTrouble {
    /// One sentence for a person.
    #[must_use]
    pub fn text(&self) -> String {
        let (since, error) = (utc(self.since_ms), &self.error);
        match self.lane {
            Some(lane) => format!("lane {lane} since {since}: {error}"),
            None => format!("since {since}: {error}"),
        }
    }
}

/// What was committed since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitCounts {
    /// Records in their topics.
    pub records: u64,
    /// Their bytes as held in memory.
    pub bytes: u64,
    /// Transactions committed.
    pub transactions: u64,
    /// Transactions aborted.
    pub aborts: u64,
    /// Times that a lane was built anew after an unknown outcome.
    pub rebuilds: u64,
    /// Times that another hub took a lane.
    pub fenced: u64,
    /// Records in the dead-letter topic.
    pub dead_letters: u64,
    /// Records that sites declared as dropped by policy.
    pub gap_records: u64,
    /// Committed records that their topic will not keep: older than its retention.
    #[serde(default)]
    pub records_past_retention: u64,
    /// Bytes that wait to be committed.
    pub queue_bytes: u64,
}

/// What comes in: sums since the start of the process, and levels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntakeCounts {
    /// Bytes of data streams, as they came.
    pub received_bytes: u64,
    /// Connections refused: handshake, rules, or limits.
    pub refused: u64,
    /// Sites that were told when to come back.
    pub told_later: u64,
    /// Connections that wait for their handshake or are in it.
    pub handshakes: u64,
    /// Sites that wait to be let in.
    pub waiting: u64,
    /// Sites between hello and welcome.
    pub admitted: u64,
    /// Sites that are held by an ingress limit.
    pub limited: u64,
    /// Bytes that came and are not committed.
    pub held_bytes: u64,
    /// Memory of the codecs of open sessions, bytes.
    #[serde(default)]
    pub codec_bytes: u64,
    /// Their saved states in memory, bytes.
    #[serde(default)]
    pub codec_saved_bytes: u64,
    /// Their saved states on disk, bytes.
    #[serde(default)]
    pub codec_disk_bytes: u64,
}

/// One site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteLine {
    /// Open sessions.
    pub sessions: u32,
    /// The incarnation that it named last.
    pub incarnation: String,
    /// Wall clock of the last connect or disconnect, ms since the epoch.
    pub changed_ms: i64,
    /// How often it changed its incarnation while this hub ran.
    pub incarnation_changes: u64,
    /// Bytes of its data streams since this hub started.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes a second that it may send; absent: as fast as it comes.
    #[serde(default)]
    pub ingress: Option<u64>,
    /// What a person should look after; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up = Span::millis(self.uptime_ms).rounded();
        writeln!(
            f,
            "hub-node {}, up {up}, clock {}",
            self.version,
            utc(self.wall_ms)
        )?;
        let connected = self.sites.values().filter(|site| site.sessions > 0).count();
        let ready = if self.problems.is_empty() {
            "yes"
        } else {
            "no"
        };
        writeln!(f, "ready     {ready}")?;
        for problem in self.problems.iter().chain(&self.reload_problems) {
            writeln!(f, "problem   {problem}")?;
        }
        // one alone is told as the problem's reason
        for trouble in self.troubles.iter().filter(|_| self.troubles.len() > 1) {
            writeln!(f, "trouble   {}", trouble.text())?;
        }
        writeln!(
            f,
            "lanes     {}, {} in trouble",
            self.lanes.all, self.lanes.troubled
        )?;
        let sites = thousands(self.sites.len() as u64);
        writeln!(
            f,
            "sites     {} connected, {sites} seen",
            thousands(connected as u64)
        )?;
        let intake = &self.intake;
        writeln!(
            f,
            "intake    {} waiting to be let in, {} held by a limit, {} told to come back since start",
            thousands(intake.waiting + intake.admitted),
            thousands(intake.limited),
            thousands(intake.told_later)
        )?;
        let commit = &self.commit;
        let mut table = Table::new(&["since start", ""]);
        table.row(["records committed".to_owned(), thousands(commit.records)]);
        table.row([
            "bytes committed".to_owned(),
            ByteSize(commit.bytes).rounded(),
        ]);
        table.row([
            "bytes waiting".to_owned(),
            ByteSize(commit.queue_bytes).rounded(),
        ]);
        table.row(["transactions".to_owned(), thousands(commit.transactions)]);
        table.row(["aborted".to_owned(), thousands(commit.aborts)]);
        table.row(["lanes rebuilt".to_owned(), thousands(commit.rebuilds)]);
        table.row([
            "lanes lost to another hub".to_owned(),
            thousands(commit.fenced),
        ]);
        table.row(["dead letters".to_owned(), thousands(commit.dead_letters)]);
        table.row([
            "records dropped at sites".to_owned(),
            thousands(commit.gap_records),
        ]);
        table.row([
            "records past retention".to_owned(),
            thousands(commit.records_past_retention),
        ]);
        write!(f, "\n{table}")?;
        self.write_sites(f)
    }
}

impl Status {
    /// Ready, and all that is on disk is in use.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.problems.is_empty() && self.reload_problems.is_empty()
    }

    fn write_sites(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sites.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&[
            "site",
            "state",
            "since",
            "incarnations",
            "received",
            "limit",
        ]);
        for (name, site) in self.sites.iter().take(LISTED_SITES) {
            let state = if site.sessions > 0 {
                "connected"
            } else {
                "away"
            };
            let since = utc(site.changed_ms);
            let incarnations = thousands(site.incarnation_changes + 1);
            let received = ByteSize(site.received_bytes).rounded();
            let limit = site.ingress.map_or_else(
                || "none".to_owned(),
                |limit| format!("{}/s", ByteSize(limit)),
            );
            table.row([
                name.clone(),
                state.to_owned(),
                since,
                incarnations,
                received,
                limit,
            ]);
        }
        write!(f, "\n{table}")?;
        let more = self.sites.len().saturating_sub(LISTED_SITES);
        if more > 0 {
            writeln!(f, "and {more} more: --output json lists all")?;
        }
        let problems = self.sites.iter();
        let problems =
            problems.flat_map(|(name, site)| site.problems.iter().map(move |it| (name, it)));
        for (name, problem) in problems.clone().take(LISTED_SITES) {
            writeln!(f, "problem   {name}: {problem}")?;
        }
        let more = problems.count().saturating_sub(LISTED_SITES);
        if more > 0 {
            writeln!(f, "and {more} more problems: --output json lists all")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_round_trips_and_reads_well() {
        let site = SiteLine {
            sessions: 1,
            incarnation: "00".to_owned(),
            changed_ms: 0,
            incarnation_changes: 0,
            received_bytes: 3 << 20,
            ingress: Some(50_000),
            problems: vec!["topics refused: b".to_owned()],
        };
        let status = Status {
            version: "0.1.0".to_owned(),
            wall_ms: 1_000,
            uptime_ms: 90_000,
            ready: false,
            problems: vec!["lanes: 1 of 4 cannot commit".to_owned()],
            reload_problems: vec!["the configuration file cannot be used".to_owned()],
            troubles: [2, 3]
                .map(|lane| LaneTrouble {
                    lane: Some(lane),
                    since_ms: 1_795_780_800_000,
                    error: "no answer".to_owned(),
                })
                .to_vec(),
            lanes: LaneCounts {
                all: 4,
                troubled: 1,
            },
            commit: CommitCounts {
                records: 1_234_567,
                ..CommitCounts::default()
            },
            intake: IntakeCounts {
                told_later: 17,
                ..IntakeCounts::default()
            },
            sites: BTreeMap::from([("shop-1".to_owned(), site)]),
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        let shown = status.to_string();
        for part in [
            "up 1m30s",
            "ready     no",
            "1 of 4 cannot commit",
            "problem   the configuration file cannot be used\n",
            "trouble   lane 2 since 2026-11-27 12:00:00 UTC: no answer\n",
            "1 234 567",
            "shop-1",
            "17 told to come back",
            "3.0 MiB",
            "50kB/s",
            "problem   shop-1: topics refused: b\n",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
}
