//! What is known of topics: looked up, created where policy says so, and remembered for a while.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::client::Clients;
use super::native;
use super::words::Words;
use crate::commit::{CommitConfig, TopicPolicy};
use crate::sink::{Destination, DestinationError, Reason, SinkError, errors};

/// A lookup is believed this long: a topic that grew is noticed, as by Kafka's own clients, later.
const FRESH: Duration = Duration::from_secs(60);
/// A refusal is asked for again sooner: somebody may have made the topic.
const FRESH_REFUSAL: Duration = Duration::from_secs(10);
/// Entries of the cache; beyond, it starts over.
const MAX_CACHED: usize = 50_000;
/// One request for metadata, or of an administrator.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a topic that was just created shows.
const CREATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Kafka's default for `max.message.bytes`.
const DEFAULT_MAX_BATCH_BYTES: usize = 1_048_588;

/// The cluster's topics.
pub(super) struct Topics {
    admin: AdminClient<Words>,
    /// Lets the broker create a topic that is asked for: some clusters know no other way.
    creating: AdminClient<Words>,
    handle: Handle,
    policy: TopicPolicy,
    checkpoint_topic: String,
    lanes: u32,
    cache: Mutex<HashMap<String, Cached>>,
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topics").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Cached {
    at: Instant,
    found: Result<Arc<Destination>, Reason>,
}

/// What the cluster says of a topic's existence.
enum Presence {
    Partitions(u32),
    Absent,
    Refused(Reason),
}

/// What came of creating a topic.
enum Creation {
    Done,
    Unsupported,
    Refused(Code),
}

impl Topics {
    pub(super) fn new(
        clients: &Clients,
        config: &CommitConfig,
        handle: Handle,
    ) -> Result<Self, SinkError> {
        Ok(Self {
            admin: clients.admin(false)?,
            creating: clients.admin(true)?,
            handle,
            policy: config.topics.clone(),
            checkpoint_topic: config.checkpoint_topic.clone(),
            lanes: config.lanes,
            cache: Mutex::new(HashMap::new()),
        })
    }

    /// Finds or creates the checkpoint topic; its number of partitions.
    pub(super) fn prepare_checkpoints(&self) -> Result<u32, SinkError> {
        self.check_checkpoints(true)
    }

    /// Whether the checkpoint topic is still what it was when the hub started. One that is gone is not
    /// made anew behind the administrator's back.
    pub(super) fn verify_checkpoints(&self) -> Result<(), SinkError> {
        self.check_checkpoints(false).map(|_| ())
    }

    fn check_checkpoints(&self, creates: bool) -> Result<u32, SinkError> {
        let topic = &self.checkpoint_topic;
        let unknown = |error: DestinationError| SinkError::Unknown(error.to_string());
        let refused =
            |text: String| SinkError::Refused(format!("checkpoint topic `{topic}`: {text}"));
        let partitions = match self.presence(&self.admin, topic).map_err(unknown)? {
            Presence::Partitions(count) => count,
            Presence::Refused(reason) => return Err(refused(reason.code().to_owned())),
            Presence::Absent if !creates => {
                let text =
                    "it is gone; bring it back, or start the hub again to begin with an empty one";
                return Err(refused(text.to_owned()));
            }
            Presence::Absent => {
                let created = self.create(topic, Some(self.lanes), &checkpoint_topic_config());
                match created.map_err(unknown)? {
                    Creation::Done => info!(topic, lanes = self.lanes, "Checkpoint topic created"),
                    Creation::Unsupported => self.ask_for(topic).map_err(unknown)?,
                    Creation::Refused(code) => return Err(refused(code.to_string())),
                }
                self.await_partitions(topic).map_err(unknown)?
            }
        };
        let found = self.configuration(topic).map_err(unknown)?;
        let policy = found
            .as_ref()
            .and_then(|found| setting(found, "cleanup.policy"));
        match policy {
            Some(policy) if policy != "compact" => {
                // retention would delete the checkpoints of a quiet site, and its records come twice
                return Err(refused(format!(
                    "its cleanup.policy is `{policy}`, not `compact`"
                )));
            }
            Some(_) => {}
            None if !creates => {}
            None => warn!(
                topic,
                "The cluster does not tell whether the checkpoint topic is compacted"
            ),
        }
        if partitions != self.lanes {
            // the sites' checkpoints lie where the topic's own number put them
            return Err(refused(format!(
                "it has {partitions} partitions and `lanes` is {}; they must be the same, and never change",
                self.lanes
            )));
        }
        Ok(partitions)
    }

    /// What must be known of a topic before it is written to.
    pub(super) fn destination(&self, topic: &str) -> Result<Arc<Destination>, DestinationError> {
        if let Some(found) = self.cached(topic) {
            return found.map_err(DestinationError::Refused);
        }
        let found = match self.look_up(topic) {
            Ok(found) => Ok(Arc::new(found)),
            Err(DestinationError::Refused(reason)) => Err(reason),
            Err(error @ DestinationError::Unavailable(_)) => return Err(error),
        };
        let mut cache = self.lock();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        let at = Instant::now();
        let entry = Cached {
            at,
            found: found.clone(),
        };
        cache.insert(topic.to_owned(), entry);
        found.map_err(DestinationError::Refused)
    }

    /// The topic is not what it was.
    pub(super) fn forget(&self, topic: &str) {
        self.lock().remove(topic);
    }

    fn cached(&self, topic: &str) -> Option<Result<Arc<Destination>, Reason>> {
        let cache = self.lock();
        let cached = cache.get(topic)?;
        let fresh = match cached.found {
            Ok(_) => FRESH,
            Err(_) => FRESH_REFUSAL,
        };
        (cached.at.elapsed() < fresh).then(|| cached.found.clone())
    }

    fn look_up(&self, topic: &str) -> Result<Destination, DestinationError> {
        let partitions = match self.presence(&self.admin, topic)? {
            Presence::Partitions(count) => count,
            Presence::Refused(reason) => return Err(DestinationError::Refused(reason)),
            Presence::Absent if !self.policy.auto_create => {
                return Err(DestinationError::Refused(Reason::UnknownTopic));
            }
            Presence::Absent => self.create_destination(topic)?,
        };
        let resource = self.configuration(topic)?;
        Ok(describe(resource.as_ref(), partitions))
    }

    fn create_destination(&self, topic: &str) -> Result<u32, DestinationError> {
        let created = match self.create(topic, self.policy.partitions, &self.policy.config)? {
            // a cluster of an earlier version knows fewer settings
            Creation::Refused(Code::InvalidConfig) => {
                self.create(topic, self.policy.partitions, &Default::default())?
            }
            created @ (Creation::Done | Creation::Unsupported | Creation::Refused(_)) => created,
        };
        match created {
            Creation::Done => info!(topic, "Topic created"),
            Creation::Unsupported => self.ask_for(topic)?,
            Creation::Refused(code) => {
                warn!(topic, %code, "The cluster refuses to create a topic");
                let is_forbidden = errors::is_one_of(
                    code,
                    &[
                        Code::TopicAuthorizationFailed,
                        Code::ClusterAuthorizationFailed,
                    ],
                );
                return Err(DestinationError::Refused(if is_forbidden {
                    Reason::NotAuthorized
                } else if code == Code::InvalidTopic {
                    Reason::InvalidTopic
                } else {
                    Reason::UnknownTopic
                }));
            }
        }
        self.await_partitions(topic)
    }

    /// Lets the broker create a topic because somebody asks for it.
    fn ask_for(&self, topic: &str) -> Result<(), DestinationError> {
        self.presence(&self.creating, topic).map(|_| ())
    }

    fn await_partitions(&self, topic: &str) -> Result<u32, DestinationError> {
        let deadline = Instant::now() + CREATION_TIMEOUT;
        loop {
            match self.presence(&self.admin, topic)? {
                Presence::Partitions(count) => return Ok(count),
                Presence::Refused(reason) => return Err(DestinationError::Refused(reason)),
                Presence::Absent if Instant::now() > deadline => {
                    let text = format!("`{topic}` was created and does not show");
                    return Err(DestinationError::Unavailable(text));
                }
                // the cluster's metadata spreads; there is nothing to wait for but time
                Presence::Absent => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn presence(
        &self,
        client: &AdminClient<Words>,
        topic: &str,
    ) -> Result<Presence, DestinationError> {
        let metadata = client.inner().fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        for client in [&self.admin, &self.creating] {
            native::drain(client.inner());
        }
        let metadata = metadata.map_err(|error| {
            let words = client.inner().context();
            DestinationError::Unavailable(words.explain(&error))
        })?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(Presence::Absent);
        };
        use RDKafkaRespErr as E;
        match found.error() {
            None => Ok(match u32::try_from(found.partitions().len()) {
                Ok(count @ 1..) => Presence::Partitions(count),
                Ok(0) | Err(_) => Presence::Absent,
            }),
            Some(
                E::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | E::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => Ok(Presence::Absent),
            Some(E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) => {
                Ok(Presence::Refused(Reason::NotAuthorized))
            }
            Some(E::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION) => {
                Ok(Presence::Refused(Reason::InvalidTopic))
            }
            Some(other) => Err(DestinationError::Unavailable(Code::from(other).to_string())),
        }
    }

    fn create(
        &self,
        topic: &str,
        partitions: Option<u32>,
        config: &std::collections::BTreeMap<String, String>,
    ) -> Result<Creation, DestinationError> {
        if self.policy.by_asking {
            return Ok(Creation::Unsupported);
        }
        // -1 is the cluster's default (KIP-464)
        let number = |wanted: Option<u32>| wanted.and_then(|n| i32::try_from(n).ok()).unwrap_or(-1);
        let replication = TopicReplication::Fixed(number(self.policy.replication_factor));
        let mut topic = NewTopic::new(topic, number(partitions), replication);
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST_TIMEOUT))
            .operation_timeout(Some(REQUEST_TIMEOUT));
        let created = self
            .handle
            .block_on(self.admin.create_topics([&topic], &options));
        let unavailable = |text: String| Err(DestinationError::Unavailable(text));
        match created {
            Ok(results) => match results.into_iter().next() {
                Some(Ok(_)) | Some(Err((_, Code::TopicAlreadyExists))) => Ok(Creation::Done),
                Some(Err((_, code))) if is_passing(code) => unavailable(code.to_string()),
                Some(Err((_, code))) => Ok(Creation::Refused(code)),
                None => unavailable("no answer about a topic".to_owned()),
            },
            Err(KafkaError::AdminOp(Code::UnsupportedFeature)) => Ok(Creation::Unsupported),
            Err(error) => unavailable(error.to_string()),
        }
    }

    /// A topic's settings; absent where the cluster does not tell.
    fn configuration(&self, topic: &str) -> Result<Option<ConfigResource>, DestinationError> {
        if self.policy.by_asking {
            return Ok(None);
        }
        let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
        let asked = [ResourceSpecifier::Topic(topic)];
        let described = self
            .handle
            .block_on(self.admin.describe_configs(&asked, &options));
        match described {
            Ok(results) => match results.into_iter().next() {
                Some(Ok(found)) => Ok(Some(found)),
                Some(Err(code)) if is_passing(code) => {
                    Err(DestinationError::Unavailable(code.to_string()))
                }
                // not ours to see
                Some(Err(_)) | None => Ok(None),
            },
            Err(KafkaError::AdminOp(Code::UnsupportedFeature)) => Ok(None),
            Err(error) => Err(DestinationError::Unavailable(error.to_string())),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A topic's limits; Kafka's defaults where the cluster does not tell.
fn describe(resource: Option<&ConfigResource>, partitions: u32) -> Destination {
    let value = |name: &str| setting(resource?, name);
    // -1, no limit, is no u64
    let limit = |name: &str| value(name)?.parse().ok().filter(|ms| *ms < i64::MAX as u64);
    let deletes_by_own_time = value("cleanup.policy")
        .is_some_and(|policy| policy.contains("delete"))
        && value("message.timestamp.type").is_some_and(|kind| kind == "CreateTime");
    Destination {
        partitions,
        max_batch_bytes: value("max.message.bytes")
            .and_then(|text| text.parse().ok())
            .unwrap_or(DEFAULT_MAX_BATCH_BYTES),
        is_compacted: value("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        max_timestamp_behind_ms: limit("message.timestamp.before.max.ms"),
        max_timestamp_ahead_ms: limit("message.timestamp.after.max.ms"),
        max_age_ms: if deletes_by_own_time {
            limit("retention.ms")
        } else {
            None
        },
    }
}

/// Small segments, compacted early: a lane that is acquired reads all of its partition.
fn checkpoint_topic_config() -> std::collections::BTreeMap<String, String> {
    [
        ("cleanup.policy", "compact"),
        ("segment.bytes", "16777216"),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("max.compaction.lag.ms", "600000"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn setting<'a>(resource: &'a ConfigResource, name: &str) -> Option<&'a str> {
    resource.get(name)?.value.as_deref()
}

/// Codes that pass by themselves.
fn is_passing(code: Code) -> bool {
    errors::is_one_of(
        code,
        &[
            Code::RequestTimedOut,
            Code::NotController,
            Code::OperationTimedOut,
            Code::BrokerTransportFailure,
            Code::CoordinatorLoadInProgress,
            Code::ThrottlingQuotaExceeded,
        ],
    )
}
