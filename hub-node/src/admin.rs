//! What the admin listener shows of the parts of this hub.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shared::admin::{Check, Provider};
use shared::time;
use tokio::sync::watch;

use crate::commit::{Counters, Health, Lanes, Trouble};
use crate::intake::{Intake, IntakeStats};
use crate::metrics;
use crate::reloads::Reloads;
use crate::sites::Register;
use crate::status::{CommitCounts, IntakeCounts, LaneCounts, LaneTrouble, SiteLine, Status};

/// The parts of a running hub. Clones share them.
#[derive(Debug, Clone)]
pub struct Node {
    /// Set once the cluster has answered.
    lanes: Arc<OnceLock<LanesView>>,
    /// Set once it takes sites in.
    gate: Arc<OnceLock<Arc<Intake>>>,
    count: u32,
    sites: Arc<Register>,
    intake: Arc<IntakeStats>,
    health: Health,
    reloads: Arc<Reloads>,
    started: Duration,
}

#[derive(Debug)]
struct LanesView {
    counters: Arc<Counters>,
    troubled: watch::Receiver<usize>,
}

impl Node {
    /// A hub that started at `started`, by [`time::now`], and will have so many lanes. It is not ready
    /// before [`Node::lanes_started`].
    #[must_use]
    pub fn new(
        lanes: u32,
        sites: Arc<Register>,
        intake: Arc<IntakeStats>,
        health: Health,
        reloads: Arc<Reloads>,
        started: Duration,
    ) -> Self {
        Self {
            lanes: Arc::default(),
            gate: Arc::default(),
            count: lanes,
            sites,
            intake,
            health,
            reloads,
            started,
        }
    }

    /// The cluster has answered, the lanes are there.
    pub fn lanes_started(&self, lanes: &Lanes) {
        let view = || LanesView {
            counters: lanes.counters(),
            troubled: lanes.troubled(),
        };
        self.lanes.get_or_init(view);
    }

    /// Sites are taken in from here on.
    pub fn intake_started(&self, intake: &Arc<Intake>) {
        self.gate.get_or_init(|| Arc::clone(intake));
    }

    fn document(&self) -> Status {
        let sites = self.sites.snapshot().into_iter();
        let uptime = time::now().saturating_sub(self.started).as_millis();
        let problems = self.problems();
        let rules = self.gate.get().map(|intake| intake.rules());
        let limit = |site: &str| rules.as_ref()?.ingress_of(site);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wall_ms: time::wall_ms(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            ready: problems.is_empty(),
            problems,
            reload_problems: self.reloads.problems(),
            lanes: LaneCounts {
                all: u64::from(self.count),
                troubled: self.troubled(),
            },
            troubles: self.troubles(),
            commit: self.commit_counts(),
            intake: self.intake_counts(),
            sites: sites
                .map(|(name, site)| {
                    let line = SiteLine {
                        received_bytes: site.received_bytes(),
                        problems: site.problems(time::now()),
                        ingress: limit(name.as_str()),
                        sessions: site.sessions,
                        incarnation: site.incarnation,
                        changed_ms: site.changed_ms,
                        incarnation_changes: site.incarnation_changes,
                    };
                    (name.to_string(), line)
                })
                .collect(),
        }
    }

    fn intake_counts(&self) -> IntakeCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let levels = self.gate.get().map(|intake| intake.levels());
        let levels = levels.unwrap_or_default();
        IntakeCounts {
            received_bytes: read(&self.intake.payload_bytes),
            refused: read(&self.intake.refused),
            told_later: read(&self.intake.told_later),
            handshakes: levels.handshakes,
            waiting: levels.waiting,
            admitted: levels.admitted,
            limited: levels.limited,
            held_bytes: levels.held_bytes,
            codec_bytes: levels.codec_bytes,
            codec_saved_bytes: levels.codec_saved_bytes,
            codec_disk_bytes: levels.codec_disk_bytes,
        }
    }

    fn commit_counts(&self) -> CommitCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Some(LanesView { counters, .. }) = self.lanes.get() else {
            return CommitCounts::default();
        };
        CommitCounts {
            records: read(&counters.committed_records),
            bytes: read(&counters.committed_bytes),
            transactions: read(&counters.transactions),
            aborts: read(&counters.aborts),
            rebuilds: read(&counters.rebuilds),
            fenced: read(&counters.fenced),
            dead_letters: read(&counters.dead_letters),
            gap_records: read(&counters.lost_records),
            records_past_retention: read(&counters.past_retention),
            queue_bytes: read(&counters.queue_bytes),
        }
    }

    fn troubled(&self) -> u64 {
        let all = u64::from(self.count);
        self.lanes
            .get()
            .map_or(all, |lanes| *lanes.troubled.borrow() as u64)
    }

    fn troubles(&self) -> Vec<LaneTrouble> {
        let told = |lane, trouble: Trouble| LaneTrouble {
            lane,
            since_ms: trouble.since_ms,
            error: trouble.error,
        };
        let waits_for = self.health.waits_for().map(|it| told(None, it));
        let lanes = self.health.troubles().into_iter();
        let lanes = lanes.map(|(lane, it)| told(Some(lane), it));
        waits_for.into_iter().chain(lanes).collect()
    }

    fn problems(&self) -> Vec<String> {
        let checks = self.readiness().into_iter();
        checks
            .filter_map(|check| Some(format!("{}: {}", check.name, check.problem?)))
            .collect()
    }
}

impl Provider for Node {
    /// A hub is ready when every lane can commit.
    fn readiness(&self) -> Vec<Check> {
        let (troubled, all) = (self.troubled(), self.count);
        // why, one of them says; `/status` has it of all
        let oldest = self.troubles().into_iter().min_by_key(|it| it.since_ms);
        let why = oldest.map_or_else(String::new, |trouble| format!("; {}", trouble.text()));
        let problem = match self.lanes.get() {
            None => Some(format!("waiting for the central cluster{why}")),
            Some(_) if troubled > 0 => Some(format!("{troubled} of {all} cannot commit{why}")),
            Some(_) => None,
        };
        vec![Check::new("lanes", problem)]
    }

    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let (status, intake) = (self.document(), Arc::clone(&self.intake));
        shared::metrics::encode(metrics::PREFIX, move |scrape| {
            metrics::write(scrape, &status, &intake)
        })
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.document()).unwrap_or_default()
    }
}
