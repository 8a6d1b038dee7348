//! Every metric of the hub: names, units, labels. All are read from others' counters at scrape time.
//!
//! No label names a site: ten thousand of them would be ten thousand series. `/status` lists sites.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::metrics::{Scrape, level, single};

use crate::intake::IntakeStats;
use crate::status::Status;

/// In front of every name.
pub const PREFIX: &str = "kedge_hub";

/// Writes every family.
///
/// # Errors
/// The writer's.
pub fn write(scrape: &mut Scrape<'_>, status: &Status, intake: &IntakeStats) -> fmt::Result {
    write_node(scrape, status)?;
    write_commit(scrape, status)?;
    write_sites(scrape, status)?;
    write_intake(scrape, intake)?;
    write_levels(scrape, status)?;
    shared::metrics::process(scrape)
}

fn write_intake(scrape: &mut Scrape<'_>, stats: &IntakeStats) -> fmt::Result {
    let read = |counter: &AtomicU64| single(counter.load(Ordering::Relaxed));
    scrape.counter(
        "connections",
        "Handshakes that succeeded",
        read(&stats.connections),
    )?;
    scrape.counter(
        "refused_connections",
        "Connections refused",
        read(&stats.refused),
    )?;
    scrape.counter(
        "refused_logs",
        "Logs that a site declared and that its rule does not allow, or that were too many",
        read(&stats.refused_logs),
    )?;
    scrape.counter(
        "told_later",
        "Sites that were told when to come back",
        read(&stats.told_later),
    )?;
    scrape.counter(
        "violations",
        "Sessions ended for a breach",
        read(&stats.violations),
    )?;
    scrape.counter(
        "received_bytes",
        "Bytes of data streams",
        read(&stats.payload_bytes),
    )?;
    scrape.counter(
        "received_records",
        "Records handed to lanes",
        read(&stats.records),
    )?;
    let gaps = read(&stats.gap_records);
    scrape.counter(
        "received_gap_records",
        "Records that sites declared lost",
        gaps,
    )
}

fn write_levels(scrape: &mut Scrape<'_>, status: &Status) -> fmt::Result {
    let intake = &status.intake;
    for (name, help, value) in [
        (
            "handshakes",
            "Connections that wait for their handshake or are in it",
            intake.handshakes,
        ),
        (
            "sites_waiting",
            "Sites that wait to be let in",
            intake.waiting,
        ),
        (
            "sites_admitted",
            "Sites between hello and welcome",
            intake.admitted,
        ),
        (
            "sites_limited",
            "Sites that are held by an ingress limit",
            intake.limited,
        ),
        (
            "held_bytes",
            "Bytes that came and are not committed",
            intake.held_bytes,
        ),
        (
            "codec_live_bytes",
            "Memory of the codecs of open sessions",
            intake.codec_bytes,
        ),
        (
            "codec_saved_memory_bytes",
            "Saved states of codecs in memory",
            intake.codec_saved_bytes,
        ),
        (
            "codec_saved_disk_bytes",
            "Saved states of codecs on disk, at most listen.codec_disk",
            intake.codec_disk_bytes,
        ),
    ] {
        scrape.gauge(name, help, single(level(value)))?;
    }
    Ok(())
}

fn write_node(scrape: &mut Scrape<'_>, status: &Status) -> fmt::Result {
    let ready = f64::from(u8::from(status.problems.is_empty()));
    scrape.gauge("ready", "1 when every lane can commit", single(ready))?;
    let uptime = level(status.uptime_ms) / 1_000.0;
    scrape.gauge(
        "uptime_seconds",
        "Seconds since the process started",
        single(uptime),
    )?;
    scrape.gauge(
        "reload_problems",
        "Changed settings and renewed certificates that cannot be used, the old ones hold: see status",
        single(level(status.reload_problems.len() as u64)),
    )?;
    let info = vec![("version", status.version.clone())];
    scrape.gauge(
        "build_info",
        "Always 1; the version is in the label",
        [(info, 1.0)],
    )
}

fn write_commit(scrape: &mut Scrape<'_>, status: &Status) -> fmt::Result {
    let (lanes, commit) = (&status.lanes, &status.commit);
    scrape.gauge("lanes", "Lanes of the system", single(level(lanes.all)))?;
    scrape.gauge(
        "lanes_troubled",
        "Lanes that cannot commit",
        single(level(lanes.troubled)),
    )?;
    let waiting = level(commit.queue_bytes);
    scrape.gauge(
        "queue_bytes",
        "Bytes that wait to be committed",
        single(waiting),
    )?;
    for (name, help, value) in [
        (
            "records_committed",
            "Records committed to their topics",
            commit.records,
        ),
        (
            "committed_bytes",
            "Bytes of committed deliveries, as held in memory",
            commit.bytes,
        ),
        (
            "transactions_committed",
            "Kafka transactions committed",
            commit.transactions,
        ),
        (
            "transactions_aborted",
            "Kafka transactions aborted",
            commit.aborts,
        ),
        (
            "lanes_rebuilt",
            "Lanes acquired anew after an unknown outcome",
            commit.rebuilds,
        ),
        ("lanes_fenced", "Lanes that another hub took", commit.fenced),
        (
            "dead_letters",
            "Records in the dead-letter topic",
            commit.dead_letters,
        ),
        (
            "gap_records",
            "Records that sites declared as dropped by policy",
            commit.gap_records,
        ),
        (
            "records_past_retention",
            "Committed records older than their topic's retention.ms: Kafka deletes them",
            commit.records_past_retention,
        ),
    ] {
        scrape.counter(name, help, single(value))?;
    }
    Ok(())
}

fn write_sites(scrape: &mut Scrape<'_>, status: &Status) -> fmt::Result {
    let sites = status.sites.values();
    let connected = sites.clone().filter(|site| site.sessions > 0).count() as u64;
    scrape.gauge(
        "sites_connected",
        "Sites with an open session",
        single(level(connected)),
    )?;
    let known = level(status.sites.len() as u64);
    scrape.gauge(
        "sites_known",
        "Sites that this process has seen",
        single(known),
    )?;
    let changes = sites.map(|site| site.incarnation_changes).sum();
    scrape.counter(
        "incarnation_changes",
        "Times that a site came back with another store: restored, wiped or copied",
        single(changes),
    )
}
