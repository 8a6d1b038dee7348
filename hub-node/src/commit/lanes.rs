//! All lanes of a hub: started together, found by site, stopped together.

use std::sync::Arc;
use std::time::Duration;

use shared::ids::SiteId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::LaneRequest;
use super::backoff::Backoff;
use super::config::CommitConfig;
use super::counters::Counters;
use super::driver::{Driver, StepDown};
use super::health::Health;
use super::machine::{Bounds, Machine};
use super::queue::Cost;
use super::room::{Room, RoomShare};
use super::sending::Mapping;
use super::transact::Transactor;
use crate::sink::kafka::KafkaCluster;
use crate::sink::mapping::lane_of;
use crate::sink::{Cluster, SinkError};

/// Requests that may wait in front of a lane: deliveries are bounded by credit, in bytes.
const REQUESTS: usize = 1024;

/// A lane's address.
pub type LaneHandle = mpsc::Sender<LaneRequest>;

/// Why the lanes did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Configuration or rights: trying again does not help.
    #[error(transparent)]
    Refused(SinkError),
    /// Cancelled while the cluster did not answer.
    #[error("stopped before the central cluster answered")]
    Stopped,
}

/// The lanes of a hub.
#[derive(Debug)]
pub struct Lanes {
    ways: Arc<[Way]>,
    counters: Arc<Counters>,
    troubled: watch::Receiver<usize>,
    tasks: JoinSet<()>,
}

impl Lanes {
    /// Starts the lanes once the cluster answers; waits for it as long as it takes, and tells `health` why. A lane takes its
    /// transactional id when its first site attaches, so a standby hub disturbs nobody.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        config: CommitConfig,
        cancel: CancellationToken,
        health: Health,
    ) -> Result<Self, StartError> {
        let cluster = KafkaCluster::new(&config, tokio::runtime::Handle::current())
            .map_err(StartError::Refused)?;
        Self::start_on(Arc::new(cluster), config, cancel, health).await
    }

    /// The same on any cluster.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_on<C: Cluster>(
        cluster: Arc<C>,
        config: CommitConfig,
        cancel: CancellationToken,
        health: Health,
    ) -> Result<Self, StartError> {
        let lanes = prepare(&cluster, &config.bootstrap_servers, &cancel, &health).await?;
        let counters = Arc::new(Counters::default());
        let mut tasks = JoinSet::new();
        let mut ways = Vec::new();
        for lane in 0..lanes {
            let (handle, requests) = mpsc::channel(REQUESTS);
            let room = Arc::new(Room::new(config.max_queue_bytes as u64));
            ways.push(Way { handle, room });
            let transactor = Transactor::new(
                cluster.lane(lane),
                Mapping::of(&config),
                config.hub_name.clone(),
                lanes,
                counters.clone(),
            );
            let driver = Driver::new(
                Machine::new(bounds(&config)),
                requests,
                transactor,
                cancel.clone(),
                counters.clone(),
                health.lane(lane),
                StepDown {
                    min: config.step_down,
                    max: config.step_down_max,
                },
                config.stop_timeout,
            );
            tasks.spawn(driver.run().instrument(info_span!("lane", lane)));
        }
        info!(lanes, topic = config.checkpoint_topic, "Lanes started");
        Ok(Self {
            ways: ways.into(),
            counters,
            troubled: health.subscribe(),
            tasks,
        })
    }

    /// The way to a site's lane; it does not change while the hub runs.
    #[must_use]
    pub fn lane_of(&self, site: &SiteId) -> LaneHandle {
        self.router().lane_of(site)
    }

    /// The same, to be handed around.
    #[must_use]
    pub fn router(&self) -> LaneRouter {
        LaneRouter(self.ways.clone())
    }

    /// What the lanes have done.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// How many lanes cannot commit at the moment: the hub is ready while it is 0.
    #[must_use]
    pub fn troubled(&self) -> watch::Receiver<usize> {
        self.troubled.clone()
    }

    /// Returns once all lanes have ended after the cancellation, or as soon as one has panicked: then
    /// the node must go down. Cancel safe.
    ///
    /// # Errors
    /// The panic.
    pub async fn join(&mut self) -> Result<(), tokio::task::JoinError> {
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

/// The way to one lane.
#[derive(Debug)]
struct Way {
    handle: LaneHandle,
    room: Arc<Room>,
}

/// Finds a site's lane.
#[derive(Debug, Clone)]
pub struct LaneRouter(Arc<[Way]>);

impl LaneRouter {
    /// The way to a site's lane.
    #[must_use]
    pub fn lane_of(&self, site: &SiteId) -> LaneHandle {
        self.way(site).handle.clone()
    }

    /// A session's part of its lane's queue.
    #[must_use]
    pub fn room_of(&self, site: &SiteId) -> RoomShare {
        self.way(site).room.share()
    }

    fn way(&self, site: &SiteId) -> &Way {
        let lanes = u32::try_from(self.0.len()).expect("the number of lanes is a u32");
        &self.0[lane_of(site, lanes) as usize]
    }
}

async fn prepare<C: Cluster>(
    cluster: &Arc<C>,
    bootstrap: &str,
    cancel: &CancellationToken,
    health: &Health,
) -> Result<u32, StartError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut is_told = false;
    loop {
        let step = cluster.clone();
        let prepared = tokio::task::spawn_blocking(move || step.prepare());
        let error = tokio::select! {
            // the step left behind ends by its own timeout
            () = cancel.cancelled() => return Err(StartError::Stopped),
            prepared = prepared => match prepared.expect("the step does not panic") {
                Ok(lanes) => {
                    health.arrived();
                    return Ok(lanes);
                }
                Err(error @ SinkError::Refused(_)) => return Err(StartError::Refused(error)),
                Err(error) => error,
            },
        };
        health.wait(&error.to_string(), shared::time::wall_ms());
        if !std::mem::replace(&mut is_told, true) {
            warn!(%error, bootstrap, "The central cluster does not answer; waiting for it");
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(StartError::Stopped),
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

fn bounds(config: &CommitConfig) -> Bounds {
    Bounds {
        transaction: Cost {
            bytes: config.max_transaction_bytes,
            records: u64::from(config.max_transaction_records),
        },
        queue_bytes: config.max_queue_bytes,
    }
}

impl Mapping {
    fn of(config: &CommitConfig) -> Self {
        Self {
            template: config.template.clone(),
            rule: config.partition_rule,
            dead_letter_topic: config.dead_letter_topic.clone(),
            checkpoint_topic: config.checkpoint_topic.clone(),
        }
    }
}
