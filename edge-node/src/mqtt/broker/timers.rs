//! What happens by itself: sessions end, wills are published, progress is written, `$SYS` is told.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{Broker, Session, Sessions};
use crate::mqtt::packet::{Message, Qos};
use crate::mqtt::saved;
use crate::mqtt::session::State;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Ticks between writes of the progress of sessions: what QoS 1 may be sent again after a crash.
const SAVE_TICKS: u64 = 5;
/// Ticks between `$SYS` messages, and between looks for retained messages that are too old.
const SYSTEM_TICKS: u64 = 50;
/// Ticks between notes of how much time has gone by: so much longer do sessions last with a crash.
const AGE_TICKS: u64 = 300;
/// Sessions written at a time.
pub(super) const SAVE_AT_ONCE: usize = 256;

/// Something that happens to a session unless its client returns.
#[derive(Debug)]
pub(super) struct Deadline {
    session: Weak<Session>,
    pub(super) number: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Will,
    End,
}

impl Deadline {
    /// The will is published.
    pub(super) fn will(session: &Arc<Session>, number: u64) -> Self {
        Self {
            session: Arc::downgrade(session),
            number,
            what: What::Will,
        }
    }

    /// The session is forgotten.
    pub(super) fn end(session: &Arc<Session>, number: u64) -> Self {
        Self {
            session: Arc::downgrade(session),
            number,
            what: What::End,
        }
    }
}

impl Sessions {
    /// Returns what it is known by.
    pub(super) fn schedule(&mut self, at: Duration, deadline: Deadline) -> (Duration, u64) {
        let key = (at, deadline.number);
        self.deadlines.insert(key, deadline);
        key
    }

    /// A session's deadlines are over: its client is back, or it has ended.
    pub(super) fn cancel(&mut self, state: &mut State) {
        let keys = [state.will_deadline.take(), state.end_deadline.take()];
        for key in keys.into_iter().flatten() {
            self.deadlines.remove(&key);
        }
    }
}

/// Runs until `stop`.
pub async fn run_timers(broker: Arc<Broker>, stop: CancellationToken) {
    let started = shared::time::now();
    let mut ticks = 0_u64;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                broker.save_age();
                return;
            }
            () = tokio::time::sleep(TICK) => {}
        }
        broker.carry_out_deadlines(shared::time::now());
        broker.spill();
        if !broker.groups().is_empty() {
            let at = broker.clone();
            let served = tokio::task::spawn_blocking(move || at.serve_groups()).await;
            if let Err(error) = served {
                tracing::warn!(%error, "Shared subscriptions were not served");
            }
        }
        if ticks.is_multiple_of(SAVE_TICKS) {
            broker.save_dirty().await;
        }
        if ticks.is_multiple_of(SYSTEM_TICKS) {
            broker.tell_system(shared::time::now().saturating_sub(started));
            broker.expire_retained();
        }
        if ticks.is_multiple_of(AGE_TICKS) {
            broker.save_age();
        }
        ticks += 1;
    }
}

impl Broker {
    fn carry_out_deadlines(self: &Arc<Self>, now: Duration) {
        let due: Vec<Deadline> = {
            let mut sessions = self.sessions();
            let later = sessions.deadlines.split_off(&(now, u64::MAX));
            std::mem::replace(&mut sessions.deadlines, later)
                .into_values()
                .collect()
        };
        for deadline in due {
            let Some(session) = deadline.session.upgrade() else {
                continue;
            };
            match deadline.what {
                What::Will => {
                    let will = {
                        let mut state = session.state();
                        let is_due = state
                            .will_deadline
                            .is_some_and(|(_, number)| number == deadline.number);
                        if is_due { state.will.take() } else { None }
                    };
                    if let Some(will) = will {
                        self.publish_will(*will);
                    }
                }
                What::End => {
                    let mut sessions = self.sessions();
                    let is_due = session
                        .state()
                        .end_deadline
                        .is_some_and(|(_, number)| number == deadline.number);
                    if is_due {
                        sessions.by_client.remove(&session.client_id);
                        self.end(&session);
                    }
                }
            }
        }
    }

    /// While clients wait for room for their messages, or lose those of QoS 0 for the lack of it, takes it from those
    /// that do not take theirs.
    fn spill(&self) {
        if !(self.queues.take_missed() | self.queues.is_short()) {
            return;
        }
        let all: Vec<Arc<Session>> = {
            let sessions = self.sessions();
            sessions.by_client.values().cloned().collect()
        };
        for session in all {
            let tail = self.tail();
            let lost = session.state().spill(tail.processed());
            self.stats.dropped.fetch_add(lost as u64, Ordering::Relaxed);
        }
    }

    /// Writes how far sessions have come that have sent or been acknowledged something.
    async fn save_dirty(&self) {
        let dirty: Vec<Arc<Session>> = {
            let sessions = self.sessions();
            let is_dirty = |session: &&Arc<Session>| {
                let state = session.state();
                state.is_dirty && state.is_persistent() && !state.is_over
            };
            sessions
                .by_client
                .values()
                .filter(is_dirty)
                .cloned()
                .collect()
        };
        for some in dirty.chunks(SAVE_AT_ONCE) {
            let written = {
                // handed over while the tail is held, so that nothing older comes behind something newer
                let tail = self.tail();
                let progress = |session: &Arc<Session>| {
                    let mut state = session.state();
                    state.is_dirty = false;
                    (!state.is_over && state.is_persistent())
                        .then(|| saved::progress(&state, tail.processed()))
                };
                let changes = some.iter().filter_map(progress).collect();
                self.store.put_state(changes)
            };
            if !matches!(written.await, Ok(Ok(()))) {
                for session in some {
                    session.state().is_dirty = true;
                }
                return;
            }
        }
    }

    /// Notes how much time has gone by for those that are away.
    pub(super) fn save_age(&self) {
        if self.sessions().by_client.is_empty() {
            return;
        }
        let (now, wall_ms) = (shared::time::now(), shared::time::wall_ms());
        let stamp = saved::stamp(&self.away.stamp(now, wall_ms));
        // without it they last a little longer
        drop(self.store.put_state(vec![stamp]));
    }

    fn tell_system(&self, uptime: Duration) {
        let count =
            |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let (sessions, retained) = (self.sessions().by_client.len(), self.retained().len());
        let subscriptions = self.filters().len();
        let connected = self.stats.connected.load(Ordering::Relaxed);
        let disconnected = (sessions as u64).saturating_sub(connected);
        let values = [
            (
                "version",
                format!("edge-node {}", env!("CARGO_PKG_VERSION")),
            ),
            ("uptime", format!("{} seconds", uptime.as_secs())),
            ("clients/connected", connected.to_string()),
            ("clients/disconnected", disconnected.to_string()),
            ("clients/total", sessions.to_string()),
            ("subscriptions/count", subscriptions.to_string()),
            ("retained messages/count", retained.to_string()),
            ("messages/received", count(&self.stats.publishes)),
            ("messages/sent", count(&self.stats.deliveries)),
            ("messages/dropped", count(&self.stats.dropped)),
            ("bytes/received", count(&self.stats.bytes_in)),
            ("bytes/sent", count(&self.stats.bytes_out)),
        ];
        let now_ms = shared::time::wall_ms();
        for (name, value) in values {
            let message = Message {
                topic: Arc::from(format!("$SYS/broker/{name}")),
                payload: Bytes::from(value),
                qos: Qos::AtMostOnce,
                retain: true,
                published_ms: now_ms,
                properties: None,
                from: None,
            };
            self.publish_own(&Arc::new(message));
        }
    }

    fn expire_retained(&self) {
        let topics = self.retained().expire(shared::time::wall_ms());
        if !topics.is_empty() {
            let changes = topics.iter().map(|topic| saved::forget_retained(topic));
            // one that comes back with a restart goes again
            drop(self.store.put_state(changes.collect()));
        }
    }
}
