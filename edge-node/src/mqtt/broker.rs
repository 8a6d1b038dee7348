//! What the connections share: sessions, subscriptions, retained messages, and the way into the log.
//!
//! Locks are held for lines, never over an `await`, and always taken in this order: tail, then sessions,
//! then filters and groups, then one session, then retained messages.

mod connect;
mod group;
mod load;
mod publish;
mod subscribe;
mod timers;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::task::TaskTracker;

pub use connect::{Admitted, Refused};
pub use group::{Backlogs, Group};
pub use publish::{Accepted, PublishError};
pub use timers::run_timers;

use super::away::AwayClock;
use super::filters::Filters;
use super::gather::Gather;
use super::packet::Options;
use super::retained::{Retained, SharedRetained};
use super::session::State;
use super::tail::Tail;
use super::topic_map::{RetainRule, TopicMap};
use super::{MqttConfig, MqttStats};
use crate::access::Access;
use crate::ingest::{Budget, Ingest};
use crate::seldom::Seldom;
use crate::store::Store;

/// Sessions that read the log at a time.
const READERS: usize = 2;

/// A client's session, shared between its connection and those that have messages for it.
#[derive(Debug)]
pub struct Session {
    /// Unique while the process runs.
    pub key: u64,
    /// Whose.
    pub client_id: Arc<str>,
    state: Mutex<State>,
}

impl Session {
    pub(super) fn new(key: u64, state: State) -> Arc<Self> {
        Arc::new(Self {
            key,
            client_id: state.client_id.clone(),
            state: Mutex::new(state),
        })
    }

    /// The session itself, for lines.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's subscription.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// Whose.
    pub session: Arc<Session>,
    /// How it wants its messages.
    pub options: Options,
}

#[derive(Debug, Default)]
pub(super) struct Sessions {
    pub(super) by_client: HashMap<Arc<str>, Arc<Session>>,
    /// What is to happen to sessions whose clients are away, by [`shared::time::now`].
    deadlines: BTreeMap<(Duration, u64), timers::Deadline>,
}

/// Everything that connections share.
#[derive(Debug)]
pub struct Broker {
    pub(super) config: MqttConfig,
    pub(super) map: Arc<TopicMap>,
    pub(super) stats: Arc<MqttStats>,
    pub(super) store: Arc<dyn Store>,
    pub(super) access: Arc<Access>,
    pub(super) ingest: Ingest,
    pub(super) gather: Gather,
    pub(super) tasks: TaskTracker,
    sessions: Mutex<Sessions>,
    filters: RwLock<Filters<Subscriber>>,
    groups: RwLock<Filters<Arc<Group>>>,
    backlogs: Arc<Backlogs>,
    retained: SharedRetained,
    /// The broker's own, under `$SYS`.
    system: Mutex<Retained>,
    tail: Mutex<Tail>,
    away: AwayClock,
    /// Moves whenever the tail does.
    pub(super) ticks: watch::Sender<u64>,
    /// A message that is retained was published since the start.
    pub(super) uses_retained: AtomicBool,
    pub(super) readers: Semaphore,
    /// Bytes of packets that have not wholly come, beyond each connection's free share.
    pub(super) intake: Budget,
    /// Bytes of messages in the queues of clients, beyond the free share of each.
    pub(super) queues: Budget,
    /// Bytes that clients have not taken yet, beyond the free share of each.
    pub(super) outputs: Budget,
    /// That clients are refused because there are too many sessions is told seldom.
    full: Seldom,
    /// A connection has let go of its session.
    released: Notify,
    /// Connections end.
    is_stopping: AtomicBool,
    numbers: AtomicU64,
}

impl Broker {
    pub(super) fn retained(&self) -> MutexGuard<'_, Retained> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn system(&self) -> MutexGuard<'_, Retained> {
        self.system.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn filters(&self) -> RwLockReadGuard<'_, Filters<Subscriber>> {
        self.filters.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn filters_mut(&self) -> RwLockWriteGuard<'_, Filters<Subscriber>> {
        self.filters.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn groups(&self) -> RwLockReadGuard<'_, Filters<Arc<Group>>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn groups_mut(&self) -> RwLockWriteGuard<'_, Filters<Arc<Group>>> {
        self.groups.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections must end.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Tells the connections that have their session to end.
    pub(super) fn stop_connections(&self) {
        self.is_stopping.store(true, Ordering::Release);
        // whoever gets its session after this lock sees the flag
        for session in self.sessions().by_client.values() {
            session.state().wake();
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether what is in the log is for anybody.
    pub(super) fn has_readers(&self) -> bool {
        let keeps = |kafka: &str| self.map.retain_rule(kafka) == RetainRule::Always;
        self.uses_retained.load(Ordering::Acquire)
            || self.map.kafka_topics().any(|name| keeps(name.as_str()))
            || !self.filters().is_empty()
            || !self.groups().is_empty()
    }
}
