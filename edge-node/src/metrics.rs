//! Every metric of the site: names, units, labels. All are read from others' counters at scrape time.
//!
//! Labels are bounded: `topic` to [`MAX_TOPICS`] names, `reason` and `protocol` to a few words.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::class::Class;
use shared::metrics::{Labels, Scrape, level, single};

use crate::http::HttpStats;
use crate::ingest::IngestStats;
use crate::kafka::KafkaStats;
use crate::mqtt::MqttStats;
use crate::status::{
    AllowanceStatus, Ledger, PathStatus, PolicyStatus, Status, TopicStatus, TopicTraffic,
};
use crate::store::Space;

/// In front of every name.
pub const PREFIX: &str = "kedge_edge";

/// Topics that have series of their own; the rest is summed up under [`OTHER_TOPICS`].
const MAX_TOPICS: usize = 1_000;

/// No topic can have this name.
const OTHER_TOPICS: &str = "*";

/// Counters of the parts that are switched on.
#[derive(Debug, Clone, Copy)]
pub struct Counters<'a> {
    /// The door to the log.
    pub ingest: &'a IngestStats,
    /// The Kafka listener.
    pub kafka: Option<&'a KafkaStats>,
    /// The HTTP listener.
    pub http: Option<&'a HttpStats>,
    /// The MQTT listener's, when it is on.
    pub mqtt: Option<&'a MqttStats>,
    /// What is stored and what may be.
    pub space: Space,
}

/// Writes every family.
///
/// # Errors
/// The writer's.
pub fn write(scrape: &mut Scrape<'_>, status: &Status, counters: Counters<'_>) -> fmt::Result {
    write_node(scrape, status)?;
    write_space(scrape, &counters.space)?;
    write_ledger(scrape, &bounded(&status.topics))?;
    write_uplink(scrape, status)?;
    write_policy(scrape, &status.policy)?;
    write_ingest(scrape, counters.ingest)?;
    write_connections(scrape, counters)?;
    counters
        .kafka
        .map_or(Ok(()), |kafka| write_kafka(scrape, kafka))?;
    counters
        .http
        .map_or(Ok(()), |http| write_http(scrape, http))?;
    counters
        .mqtt
        .map_or(Ok(()), |mqtt| write_mqtt(scrape, mqtt))?;
    shared::metrics::process(scrape)
}

fn write_node(scrape: &mut Scrape<'_>, status: &Status) -> fmt::Result {
    let ready = f64::from(u8::from(status.problems.is_empty()));
    scrape.gauge("ready", "1 when the site accepts records", single(ready))?;
    let uptime = level(status.uptime_ms) / 1_000.0;
    scrape.gauge(
        "uptime_seconds",
        "Seconds since the process started",
        single(uptime),
    )?;
    let unbalanced = level(status.unbalanced().count() as u64);
    scrape.gauge(
        "ledger_unbalanced_topics",
        "Topics whose delivery ledger does not add up: a bug",
        single(unbalanced),
    )?;
    let info = vec![("version", status.version.clone())];
    scrape.gauge(
        "build_info",
        "Always 1; the version is in the label",
        [(info, 1.0)],
    )
}

fn write_space(scrape: &mut Scrape<'_>, space: &Space) -> fmt::Result {
    scrape.gauge(
        "store_bytes",
        "Logical bytes of all records stored, those that the hub acknowledged included",
        single(level(space.stored_bytes)),
    )?;
    if let Some(quota) = space.quota_bytes {
        scrape.gauge(
            "store_quota_bytes",
            "Most logical bytes that may be stored",
            single(level(quota)),
        )?;
    }
    if let Some(free) = space.free_bytes {
        scrape.gauge(
            "store_free_bytes",
            "Free bytes of the store's file system",
            single(level(free)),
        )?;
    }
    Ok(())
}

fn write_ledger(scrape: &mut Scrape<'_>, topics: &[(String, Ledger)]) -> fmt::Result {
    let count = |read: fn(&Ledger) -> u64| {
        topics
            .iter()
            .map(move |(name, ledger)| (vec![("topic", name.clone())], read(ledger)))
    };
    let gauge =
        |read: fn(&Ledger) -> u64| count(read).map(|(labels, value)| (labels, level(value)));
    scrape.counter(
        "records_accepted",
        "Records acknowledged to producers; the sum of committed, queued, expired and dropped",
        count(|ledger| ledger.accepted),
    )?;
    scrape.counter(
        "records_committed",
        "Records that the hub acknowledged as committed",
        count(|ledger| ledger.committed),
    )?;
    scrape.gauge(
        "records_queued",
        "Records stored and not yet acknowledged by the hub",
        gauge(|ledger| ledger.queued),
    )?;
    scrape.gauge(
        "queued_bytes",
        "Logical bytes of the queued records",
        gauge(|ledger| ledger.queued_bytes),
    )?;
    // Gauges: what was taken for lost and is found at the hub later is taken out again.
    scrape.gauge(
        "records_expired",
        "Records that aged out before they were sent",
        gauge(|ledger| ledger.expired),
    )?;
    let reasons: [(&str, fn(&Ledger) -> u64); 4] = [
        ("oldest", |ledger| ledger.dropped_oldest),
        ("newest", |ledger| ledger.dropped_newest),
        ("damaged", |ledger| ledger.damaged),
        ("deleted", |ledger| ledger.deleted),
    ];
    let dropped = reasons.iter().flat_map(|(reason, read)| {
        topics.iter().map(move |(name, ledger)| {
            (
                vec![("topic", name.clone()), ("reason", (*reason).to_owned())],
                level(read(ledger)),
            )
        })
    });
    scrape.gauge(
        "records_dropped",
        "Records dropped before they were sent, by reason",
        dropped,
    )
}

fn write_uplink(scrape: &mut Scrape<'_>, status: &Status) -> fmt::Result {
    let uplink = &status.uplink;
    let connected = f64::from(u8::from(uplink.is_connected));
    scrape.gauge(
        "uplink_connected",
        "1 while a session with a hub is open",
        single(connected),
    )?;
    scrape.counter(
        "uplink_sessions",
        "Sessions opened with a hub",
        single(uplink.sessions),
    )?;
    scrape.counter(
        "uplink_attempts",
        "Attempts to dial a hub",
        single(uplink.attempts),
    )?;
    scrape.counter(
        "uplink_tcp_sessions",
        "Sessions over TCP, because UDP was blocked",
        single(uplink.tcp_sessions),
    )?;
    scrape.gauge(
        "uplink_over_tcp",
        "1 while the session goes over TCP",
        single(f64::from(u8::from(uplink.is_over_tcp))),
    )?;
    scrape.gauge(
        "uplink_silent",
        "1 while a session's hub is not heard",
        single(f64::from(u8::from(uplink.is_silent))),
    )?;
    scrape.counter(
        "uplink_raw_bytes",
        "Bytes of records sent, before compression",
        single(uplink.raw_bytes),
    )?;
    scrape.counter(
        "uplink_encoded_bytes",
        "Bytes of records sent, compressed",
        single(uplink.encoded_bytes),
    )?;
    scrape.counter(
        "uplink_sent_bytes",
        "Bytes of IP packets sent by sessions; dials that failed are in kedge_edge_path_sent_bytes",
        single(uplink.sent_bytes),
    )?;
    scrape.counter(
        "uplink_received_bytes",
        "Bytes of IP packets that sessions received",
        single(uplink.received_bytes),
    )?;
    scrape.counter(
        "uplink_sent_packets",
        "IP packets sent",
        single(uplink.sent_packets),
    )?;
    scrape.counter(
        "uplink_received_packets",
        "IP packets received",
        single(uplink.received_packets),
    )?;
    let codecs = [
        ("memory", uplink.codec_bytes),
        ("disk", uplink.codec_saved_bytes),
    ];
    scrape.gauge(
        "codec_state_bytes",
        "Bytes that codecs remember, by where; both are bounded by uplink.codec_memory",
        codecs.map(|(place, bytes)| (vec![("in", place.to_owned())], level(bytes))),
    )?;
    scrape.gauge(
        "codec_logs",
        "Topic partitions whose codec remembers something",
        single(level(uplink.codec_logs)),
    )?;
    scrape.gauge(
        "uplink_refused_topics",
        "Topics that the hub refuses by its rules: their records wait until retention drops them",
        single(level(uplink.refused_topics.len() as u64)),
    )?;
    write_traffic(scrape, &uplink.traffic)?;
    let rtt = level(uplink.rtt_us) / 1_000_000.0;
    scrape.gauge(
        "uplink_rtt_seconds",
        "Smoothed round-trip time to the hub",
        single(rtt),
    )
}

/// Labels: topics, bounded where they are counted, and the codecs.
fn write_traffic(scrape: &mut Scrape<'_>, traffic: &[TopicTraffic]) -> fmt::Result {
    let count = |read: fn(&TopicTraffic) -> u64| {
        traffic.iter().map(move |it| {
            let labels = vec![("topic", it.topic.clone()), ("codec", it.codec.clone())];
            (labels, read(it))
        })
    };
    scrape.counter(
        "uplink_topic_raw_bytes",
        "Bytes of records sent, before compression and rounded up by at most an eighth, by topic and codec",
        count(|it| it.raw_bytes),
    )?;
    scrape.counter(
        "uplink_topic_encoded_bytes",
        "Bytes of records sent, compressed, by topic and codec; packets around them not included",
        count(|it| it.sent_bytes),
    )?;
    scrape.counter(
        "uplink_topic_streams",
        "Data streams sent, by topic and codec",
        count(|it| it.streams),
    )
}

/// Labels: the configured paths and their allowances, a few each.
fn write_policy(scrape: &mut Scrape<'_>, policy: &PolicyStatus) -> fmt::Result {
    let path = |path: &PathStatus| -> Labels { vec![("path", path.name.clone())] };
    let of = |it: &AllowanceStatus| -> Labels { vec![("of", it.of.clone())] };
    let up = policy.paths.iter();
    let up = up.filter_map(|it| Some((path(it), level(it.rate_up_bits?))));
    scrape.gauge(
        "policy_rate_up_bits",
        "Bits a second that may leave by a path; absent without a limit",
        up,
    )?;
    let allowed = policy.paths.iter().flat_map(|it| {
        Class::all().into_iter().map(move |class| {
            let is_allowed = it.classes.iter().any(|name| name == class.as_str());
            let labels = vec![("path", it.name.clone()), ("class", class.to_string())];
            (labels, f64::from(u8::from(is_allowed)))
        })
    });
    scrape.gauge(
        "policy_class_allowed",
        "1 while records of the class may be sent by the path",
        allowed,
    )?;
    scrape.counter(
        "path_sent_bytes",
        "Bytes of IP packets sent by a path, headers included, kept across restarts",
        policy.paths.iter().map(|it| (path(it), it.sent_bytes)),
    )?;
    scrape.counter(
        "path_received_bytes",
        "Bytes of IP packets received by a path, headers included, kept across restarts",
        policy.paths.iter().map(|it| (path(it), it.received_bytes)),
    )?;
    scrape.gauge(
        "allowance_bytes",
        "Bytes of a data allowance in its period",
        policy.allowances.iter().map(|it| (of(it), level(it.bytes))),
    )?;
    scrape.gauge(
        "allowance_used_bytes",
        "Bytes used of a data allowance in this period",
        policy.allowances.iter().map(|it| (of(it), level(it.used))),
    )?;
    scrape.gauge(
        "policy_problems",
        "Why a new policy does not hold or counts cannot be kept: how many reasons, see status",
        single(level(policy.problems.len() as u64)),
    )
}

fn write_ingest(scrape: &mut Scrape<'_>, ingest: &IngestStats) -> fmt::Result {
    let count = |counter: &AtomicU64| single(counter.load(Ordering::Relaxed));
    scrape.counter(
        "ingest_batches",
        "Batches handed to the store",
        count(&ingest.batches),
    )?;
    scrape.counter(
        "ingest_records",
        "Records handed to the store",
        count(&ingest.records),
    )?;
    scrape.counter(
        "ingest_bytes",
        "Bytes of batches as received",
        count(&ingest.bytes),
    )?;
    scrape.counter(
        "ingest_refused",
        "Batches refused because of what they are",
        count(&ingest.refused),
    )?;
    scrape.counter(
        "ingest_full",
        "Batches refused because the store was full",
        count(&ingest.full),
    )?;
    scrape.counter(
        "topics_created",
        "Topics created because a client asked for them",
        count(&ingest.topics_created),
    )
}

fn write_connections(scrape: &mut Scrape<'_>, counters: Counters<'_>) -> fmt::Result {
    let kafka = counters
        .kafka
        .map(|stats| ("kafka", &stats.open, &stats.accepted, &stats.requests));
    let http = counters
        .http
        .map(|stats| ("http", &stats.open, &stats.accepted, &stats.requests));
    let mqtt = counters
        .mqtt
        .map(|stats| ("mqtt", &stats.open, &stats.accepted, &stats.publishes));
    let listeners: Vec<_> = kafka.into_iter().chain(http).chain(mqtt).collect();
    let label = |protocol: &str| -> Labels { vec![("protocol", protocol.to_owned())] };
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let open = listeners
        .iter()
        .map(|(protocol, open, ..)| (label(protocol), level(read(open))));
    scrape.gauge("connections_open", "Open connections of clients", open)?;
    let accepted = listeners
        .iter()
        .map(|(protocol, _, all, _)| (label(protocol), read(all)));
    scrape.counter(
        "connections_accepted",
        "Connections of clients accepted",
        accepted,
    )?;
    let requests = listeners
        .iter()
        .map(|(protocol, _, _, all)| (label(protocol), read(all)));
    scrape.counter("requests", "Requests received", requests)?;
    let kafka = counters.kafka.map(|it| ("kafka", &it.throttled_ms));
    let http = counters.http.map(|it| ("http", &it.throttled_ms));
    let mqtt = counters.mqtt.map(|it| ("mqtt", &it.throttled_ms));
    let throttled = kafka.into_iter().chain(http).chain(mqtt);
    scrape.counter(
        "throttled_milliseconds",
        "Time that clients above a quota were told or made to wait",
        throttled.map(|(protocol, ms)| (label(protocol), read(ms))),
    )
}

fn write_kafka(scrape: &mut Scrape<'_>, kafka: &KafkaStats) -> fmt::Result {
    let count = |counter: &AtomicU64| single(counter.load(Ordering::Relaxed));
    scrape.counter(
        "kafka_connections_refused",
        "Connections refused at the limit",
        count(&kafka.refused_connections),
    )?;
    scrape.counter(
        "kafka_connections_failed",
        "Connections ended by garbage, slowness or a broken socket",
        count(&kafka.failed),
    )?;
    scrape.counter(
        "kafka_received_bytes",
        "Bytes received",
        count(&kafka.bytes_in),
    )?;
    scrape.counter("kafka_sent_bytes", "Bytes sent", count(&kafka.bytes_out))?;
    scrape.counter(
        "kafka_batches_refused",
        "Batches answered with an error",
        count(&kafka.refused_batches),
    )?;
    scrape.counter(
        "kafka_logins_refused",
        "Logins with a wrong user or password",
        count(&kafka.refused_logins),
    )?;
    scrape.counter(
        "kafka_commits_failed",
        "Writes of committed offsets that the disk refused",
        count(&kafka.failed_commits),
    )?;
    let read = |counter: &AtomicU64| single(level(counter.load(Ordering::Relaxed)));
    scrape.gauge("kafka_groups", "Consumer groups known", read(&kafka.groups))?;
    scrape.gauge(
        "kafka_committed_offsets",
        "Offsets that consumer groups committed and that are kept",
        read(&kafka.offsets),
    )
}

fn write_http(scrape: &mut Scrape<'_>, http: &HttpStats) -> fmt::Result {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    scrape.counter(
        "http_refused",
        "Requests answered with an error",
        single(read(&http.refused)),
    )?;
    scrape.gauge(
        "http_tails_open",
        "Tails that are read",
        single(level(read(&http.tails))),
    )
}

fn write_mqtt(scrape: &mut Scrape<'_>, mqtt: &MqttStats) -> fmt::Result {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    scrape.gauge(
        "mqtt_clients",
        "Clients that have their session",
        [(Labels::new(), level(read(&mqtt.connected)))],
    )?;
    for (name, help, counter) in [
        (
            "mqtt_connections_refused",
            "Connections refused at a limit, that of sessions too",
            &mqtt.refused_connections,
        ),
        (
            "mqtt_connections_failed",
            "Connections ended by garbage, slowness or a broken socket",
            &mqtt.failed,
        ),
        ("mqtt_received_bytes", "Bytes received", &mqtt.bytes_in),
        ("mqtt_sent_bytes", "Bytes sent", &mqtt.bytes_out),
        (
            "mqtt_messages_sent",
            "Messages sent to subscribers",
            &mqtt.deliveries,
        ),
        (
            "mqtt_messages_refused",
            "Messages received and not stored",
            &mqtt.refused,
        ),
        (
            "mqtt_messages_dropped",
            "Messages not sent to subscribers that did not keep up",
            &mqtt.dropped,
        ),
        (
            "mqtt_messages_not_retained",
            "Messages delivered and, at the bound, not retained",
            &mqtt.not_retained,
        ),
        (
            "mqtt_records_unmapped",
            "Records of mapped topics without an MQTT topic",
            &mqtt.unmapped,
        ),
    ] {
        scrape.counter(name, help, single(read(counter)))?;
    }
    Ok(())
}

/// At most [`MAX_TOPICS`] names; what is left goes into one.
fn bounded(topics: &[TopicStatus]) -> Vec<(String, Ledger)> {
    let (named, rest) = topics.split_at(topics.len().min(MAX_TOPICS));
    let mut series: Vec<_> = named
        .iter()
        .map(|topic| (topic.name.clone(), topic.ledger))
        .collect();
    if !rest.is_empty() {
        let sum = rest
            .iter()
            .fold(Ledger::default(), |sum, topic| sum.plus(&topic.ledger));
        series.push((OTHER_TOPICS.to_owned(), sum));
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::UplinkStatus;
    use shared::class::Class;

    fn text(topics: Vec<TopicStatus>) -> String {
        let status = Status {
            version: "0.1.0".to_owned(),
            site: None,
            incarnation: String::new(),
            wall_ms: 0,
            uptime_ms: 1_500,
            ready: true,
            problems: Vec::new(),
            uplink: UplinkStatus {
                traffic: vec![TopicTraffic {
                    topic: "a".to_owned(),
                    codec: "modelled".to_owned(),
                    streams: 2,
                    raw_bytes: 900,
                    sent_bytes: 60,
                }],
                ..UplinkStatus::default()
            },
            policy: policy(),
            topics,
        };
        shared::metrics::encode(PREFIX, move |scrape| {
            let (ingest, kafka, http) = (
                IngestStats::default(),
                KafkaStats::default(),
                HttpStats::default(),
            );
            kafka.open.store(3, Ordering::Relaxed);
            let counters = Counters {
                ingest: &ingest,
                kafka: Some(&kafka),
                http: Some(&http),
                mqtt: None,
                space: Space {
                    stored_bytes: 7,
                    quota_bytes: Some(9),
                    ..Space::default()
                },
            };
            write(scrape, &status, counters)
        })
        .unwrap()
    }

    fn policy() -> PolicyStatus {
        PolicyStatus {
            paths: vec![PathStatus {
                name: "lte".to_owned(),
                rate_up_bits: Some(256_000),
                classes: vec!["critical".to_owned()],
                sent_bytes: 11,
                ..PathStatus::default()
            }],
            allowances: vec![AllowanceStatus {
                of: "site".to_owned(),
                used: 5,
                ..AllowanceStatus::default()
            }],
            ..PolicyStatus::default()
        }
    }

    fn topic(name: String, accepted: u64) -> TopicStatus {
        let ledger = Ledger {
            accepted,
            committed: accepted,
            ..Ledger::default()
        };
        TopicStatus {
            name,
            class: Class::Normal,
            passed: 0,
            ledger,
        }
    }

    #[test]
    fn the_ledger_is_told_by_topic_and_reason() {
        let ledger = Ledger {
            accepted: 15,
            committed: 1,
            queued: 2,
            queued_bytes: 400,
            expired: 3,
            dropped_oldest: 4,
            dropped_newest: 5,
            damaged: 0,
            deleted: 0,
        };
        let text = text(vec![TopicStatus {
            name: "a".to_owned(),
            class: Class::Normal,
            passed: 0,
            ledger,
        }]);
        for line in [
            "kedge_edge_records_accepted_total{topic=\"a\"} 15",
            "kedge_edge_records_committed_total{topic=\"a\"} 1",
            "kedge_edge_records_queued{topic=\"a\"} 2.0",
            "kedge_edge_records_expired{topic=\"a\"} 3.0",
            "kedge_edge_records_dropped{topic=\"a\",reason=\"oldest\"} 4.0",
            "kedge_edge_records_dropped{topic=\"a\",reason=\"newest\"} 5.0",
            "kedge_edge_records_dropped{topic=\"a\",reason=\"damaged\"} 0.0",
            "kedge_edge_connections_open{protocol=\"kafka\"} 3.0",
            "kedge_edge_uplink_topic_encoded_bytes_total{topic=\"a\",codec=\"modelled\"} 60",
            "kedge_edge_uplink_topic_streams_total{topic=\"a\",codec=\"modelled\"} 2",
            "kedge_edge_ready 1.0",
            "kedge_edge_store_bytes 7.0",
            "kedge_edge_store_quota_bytes 9.0",
            "kedge_edge_ledger_unbalanced_topics 0.0",
            "kedge_edge_policy_rate_up_bits{path=\"lte\"} 256000.0",
            "kedge_edge_policy_class_allowed{path=\"lte\",class=\"critical\"} 1.0",
            "kedge_edge_policy_class_allowed{path=\"lte\",class=\"bulk\"} 0.0",
            "kedge_edge_path_sent_bytes_total{path=\"lte\"} 11",
            "kedge_edge_allowance_used_bytes{of=\"site\"} 5.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.contains("kedge_edge_process_resident_bytes"));
    }

    #[test]
    fn topics_beyond_the_bound_share_a_series() {
        let text = text(
            (0..MAX_TOPICS + 5)
                .map(|index| topic(format!("t{index:04}"), 2))
                .collect(),
        );
        let series = text
            .lines()
            .filter(|line| line.starts_with("kedge_edge_records_accepted_total"));
        assert_eq!(series.count(), MAX_TOPICS + 1);
        assert!(text.contains("kedge_edge_records_accepted_total{topic=\"*\"} 10\n"));
    }

    #[test]
    fn no_family_is_written_twice() {
        let text = text(vec![topic("a".to_owned(), 1)]);
        let mut families: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("# TYPE"))
            .collect();
        let all = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), all);
    }
}
