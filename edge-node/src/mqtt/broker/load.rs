//! What an earlier process left: sessions, retained messages, and how far the log was delivered.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::group::{Backlogs, MAX_BACKLOGS};
use super::timers::{Deadline, SAVE_AT_ONCE};
use super::{Broker, READERS, Session, Sessions};
use crate::ingest::Budget;
use crate::mqtt::away::{Away, AwayClock, Clocks};
use crate::mqtt::filters::Filters;
use crate::mqtt::gather::Gather;
use crate::mqtt::retained::{Retained, RetainedLimits};
use crate::mqtt::saved::{self, SavedProgress};
use crate::mqtt::session::{Positions, State};
use crate::mqtt::tail::Tail;
use crate::mqtt::topic_map::TopicMap;
use crate::mqtt::{MqttConfig, Services};
use crate::seldom::Seldom;
use crate::store::{StateSpace, StoreError};
use crate::uplink::boot_id;

/// The broker's own messages are few.
const SYSTEM: RetainedLimits = RetainedLimits {
    entries: 64,
    bytes: 64 * 1024,
};

impl Broker {
    /// Reads what is on disk. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] when the disk fails.
    pub fn load_from(
        config: MqttConfig,
        map: TopicMap,
        services: Services,
    ) -> Result<Arc<Self>, StoreError> {
        let Services {
            store,
            ingest,
            access,
            stats,
        } = services;
        let mut retained = Retained::new(config.retained);
        let mut cursors = Positions::new();
        let mut followed: BTreeSet<Arc<str>> = BTreeSet::new();
        for (key, value) in store.state(StateSpace::MqttRetained, b"")? {
            if let Some((partition, next)) = saved::read_cursor(&key, &value) {
                cursors.insert(partition, next);
            } else if let Some((b'f', kafka)) = saved::read_key(&key) {
                followed.insert(Arc::from(kafka));
            } else if let Some((b'm', topic)) = saved::read_key(&key) {
                match saved::read_retained(topic, &value) {
                    Some((message, place)) => {
                        retained.put(&Arc::new(message), place);
                    }
                    None => warn!("A retained message on disk can't be read"),
                }
            }
        }
        let stamps = store.state(StateSpace::MqttSession, b"t")?;
        let stamp = stamps
            .first()
            .and_then(|(_, value)| saved::read_stamp(value));
        let clocks = Clocks {
            up: shared::time::now(),
            wall_ms: shared::time::wall_ms(),
            boot_id: boot_id(),
        };
        let tasks = TaskTracker::new();
        let uses_retained = AtomicBool::new(!retained.is_empty());
        let (intake, deliveries) = (config.partial_bytes, config.delivery_bytes);
        let broker = Arc::new(Self {
            intake: Budget::new(intake),
            queues: Budget::new(deliveries / 2),
            outputs: Budget::new(deliveries / 2),
            gather: Gather::new(ingest.clone(), tasks.clone()),
            config,
            map: Arc::new(map),
            stats,
            store,
            access,
            ingest,
            tasks,
            sessions: Mutex::new(Sessions::default()),
            filters: RwLock::new(Filters::default()),
            groups: RwLock::new(Filters::default()),
            backlogs: Backlogs::new(MAX_BACKLOGS),
            retained: Arc::new(Mutex::new(retained)),
            system: Mutex::new(Retained::new(SYSTEM)),
            tail: Mutex::new(Tail::new(cursors, followed)),
            away: AwayClock::new(stamp, clocks),
            ticks: watch::Sender::new(0),
            uses_retained,
            readers: Semaphore::new(READERS),
            full: Seldom::default(),
            released: Notify::new(),
            is_stopping: AtomicBool::new(false),
            numbers: AtomicU64::new(1),
        });
        broker.find_partitions()?;
        broker.catch_up_retained()?;
        broker.load_sessions()?;
        broker.save_followed();
        broker.save_age();
        Ok(broker)
    }

    fn load_sessions(&self) -> Result<(), StoreError> {
        let mut progress: HashMap<String, SavedProgress> = HashMap::new();
        for (key, value) in self.store.state(StateSpace::MqttSession, b"p")? {
            if let (Some((_, client_id)), Some(saved)) =
                (saved::read_key(&key), saved::read_progress(&value))
            {
                progress.insert(client_id.to_owned(), saved);
            }
        }
        let mut incoming: HashMap<String, Vec<u16>> = HashMap::new();
        for (key, _) in self.store.state(StateSpace::MqttInflight, b"")? {
            if let Some((client_id, id)) = saved::read_incoming(&key) {
                incoming.entry(client_id.to_owned()).or_default().push(id);
            }
        }
        let mut aways: HashMap<String, (u32, Away)> = HashMap::new();
        for (key, value) in self.store.state(StateSpace::MqttSession, b"a")? {
            if let (Some((_, client_id)), Some(away)) =
                (saved::read_key(&key), saved::read_away(&value))
            {
                aways.insert(client_id.to_owned(), away);
            }
        }
        let now = shared::time::now();
        let mut moved = Vec::new();
        for (key, value) in self.store.state(StateSpace::MqttSession, b"s")? {
            let (Some((_, client_id)), Some(mut found)) =
                (saved::read_key(&key), saved::read_session(&value))
            else {
                warn!("A session on disk can't be read");
                continue;
            };
            if let Some(away) = aways.remove(client_id) {
                (found.expiry_s, found.away) = away;
            }
            let mut found_progress = progress.remove(client_id).unwrap_or_default();
            let mut is_moved = false;
            {
                let tail = self.tail();
                for (partition, next) in tail.processed() {
                    // followed by an earlier process: it began after the session was written, and all of it is for
                    // it. Otherwise a rule leads there only since, and what is there is not for it
                    let first = if tail.was_followed(*partition) {
                        0
                    } else {
                        *next
                    };
                    found_progress
                        .positions
                        .entry(*partition)
                        .or_insert_with(|| {
                            is_moved = true;
                            first
                        });
                }
            }
            let mut state =
                State::restored(Arc::from(client_id), self.config.session, found_progress);
            state.is_dirty = is_moved;
            state.has_saved_filters = true;
            state.expiry_s = found.expiry_s;
            state.owner = found.owner;
            state.subscriptions = found.subscriptions.iter().cloned().collect();
            state.incoming = incoming
                .remove(client_id)
                .unwrap_or_default()
                .into_iter()
                .collect();
            state.has_facts = !state.incoming.is_empty();
            if is_moved {
                // before these places are noted as followed, from when on it would begin at their start
                moved.push(saved::progress(&state, self.tail().processed()));
            }
            let session = Session::new(self.number(), state);
            for (filter, options) in &found.subscriptions {
                self.insert_filter(&session, filter, *options);
            }
            let mut sessions = self.sessions();
            if found.expiry_s != u32::MAX {
                let whole = Duration::from_secs(found.expiry_s.into());
                let left = self.away.left(whole, found.away);
                let deadline = Deadline::end(&session, self.number());
                let key = sessions.schedule(now + left, deadline);
                session.state().end_deadline = Some(key);
            }
            sessions
                .by_client
                .insert(session.client_id.clone(), session);
        }
        // of sessions that are gone: a packet id of the client's next session must not look like theirs
        for (client_id, ids) in incoming {
            moved.extend(ids.into_iter().map(|id| saved::released(&client_id, id)));
        }
        while !moved.is_empty() {
            let some = moved.split_off(moved.len().saturating_sub(SAVE_AT_ONCE));
            // those that fail are written with the next of their progress
            drop(self.store.put_state(some).blocking_recv());
        }
        let count = self.sessions().by_client.len();
        if count > 0 {
            info!(sessions = count, "MQTT sessions go on");
        }
        Ok(())
    }
}
