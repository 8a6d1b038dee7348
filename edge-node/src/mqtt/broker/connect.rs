//! Sessions begin, go on and end.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::timers::Deadline;
use super::{Broker, Session};
use crate::access::Principal;
use crate::mqtt::inflight::Sent;
use crate::mqtt::packet::{Connect, reason};
use crate::mqtt::saved;
use crate::mqtt::session::{Link, State};

/// How long a client waits for its own earlier connection to let go.
const TAKE_OVER: Duration = Duration::from_secs(15);
/// How often it does: others may come before it.
const TAKE_OVERS: usize = 3;

/// A connection that has its session.
#[derive(Debug)]
pub struct Admitted {
    /// Its session.
    pub session: Arc<Session>,
    /// What tells it from other connections.
    pub number: u64,
    /// An earlier session goes on.
    pub session_present: bool,
    /// What is sent again, in order.
    pub again: Vec<Sent>,
}

/// Why there is no session for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reason {0:#04x}")]
pub struct Refused(pub u8);

impl Broker {
    /// Finds or makes the session of a client, and takes it from an earlier connection. `expiry_s` and
    /// `window` are what was agreed.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn admit(
        self: &Arc<Self>,
        client_id: &str,
        user: &Principal,
        connect: &mut Connect,
        expiry_s: u32,
        window: usize,
    ) -> Result<Admitted, Refused> {
        let number = self.number();
        for _ in 0..TAKE_OVERS {
            let holder = match self.try_admit(client_id, user, connect, expiry_s, number, window) {
                Ok(admitted) => {
                    if let Err(Refused(reason::QUOTA_EXCEEDED)) = &admitted {
                        self.tell_full();
                    }
                    return admitted;
                }
                Err(holder) => holder,
            };
            let let_go = self.until_released(client_id, holder);
            if timeout(TAKE_OVER, let_go).await.is_err() {
                break;
            }
        }
        Err(Refused(reason::SERVER_BUSY))
    }

    /// A client was refused because there are as many sessions as allowed.
    fn tell_full(&self) {
        let stats = &self.stats;
        stats.refused_connections.fetch_add(1, Ordering::Relaxed);
        let Some(left_out) = self.full.turn(shared::time::now()) else {
            return;
        };
        let max_sessions = self.config.max_sessions;
        let connected = stats.connected.load(Ordering::Relaxed);
        warn!(
            max_sessions,
            connected, left_out, "Clients refused: there are as many sessions as allowed"
        );
    }

    /// Waits until a connection has let go of its client's session.
    async fn until_released(&self, client_id: &str, number: u64) {
        loop {
            let mut released = pin!(self.released.notified());
            released.as_mut().enable();
            let session = self.sessions().by_client.get(client_id).cloned();
            if session.is_none_or(|session| !session.state().is_linked(number)) {
                return;
            }
            released.await;
        }
    }

    /// `Err`: an earlier connection is told to go; its number.
    fn try_admit(
        self: &Arc<Self>,
        client_id: &str,
        user: &Principal,
        connect: &mut Connect,
        expiry_s: u32,
        number: u64,
        window: usize,
    ) -> Result<Result<Admitted, Refused>, u64> {
        let tail = self.tail();
        let mut sessions = self.sessions();
        let found = sessions.by_client.get(client_id).cloned();
        if let Some(session) = &found {
            let mut state = session.state();
            if state.owner.as_deref() != user.name() {
                // the messages of one user are not another's who knows the client id
                return Ok(Err(Refused(reason::NOT_AUTHORIZED)));
            }
            state.kick(reason::SESSION_TAKEN_OVER);
            if let Some(link) = &state.link {
                return Err(link.number);
            }
        }
        let old = match found {
            Some(session) if connect.clean_start => {
                sessions.by_client.remove(client_id);
                sessions.cancel(&mut session.state());
                self.end(&session);
                None
            }
            other => other,
        };
        let session_present = old.is_some();
        let session = match old {
            Some(session) => session,
            None if sessions.by_client.len() >= self.config.max_sessions => {
                return Ok(Err(Refused(reason::QUOTA_EXCEEDED)));
            }
            None => {
                let mut state = State::new(Arc::from(client_id), self.config.session);
                state.owner = user.name().map(Box::from);
                let session = Session::new(self.number(), state);
                sessions
                    .by_client
                    .insert(session.client_id.clone(), session.clone());
                session
            }
        };
        // before there is a connection, and while the tail is held: nothing has come by them to the client
        self.drop_revoked(&session, user);
        let mut state = session.state();
        state.link = Some(Link::new(number, window));
        state.expiry_s = expiry_s;
        state.will = connect.will.take().map(Box::new);
        sessions.cancel(&mut state);
        state.is_reading = false;
        state.is_dirty = true;
        state.try_live(tail.processed());
        let again = state.inflight.iter().cloned().collect();
        drop(state);
        drop(sessions);
        self.stats.connected.fetch_add(1, Ordering::Relaxed);
        Ok(Ok(Admitted {
            session,
            number,
            session_present,
            again,
        }))
    }

    /// Writes a session that outlives its connection, or forgets what it was when it did, and waits for the sync.
    pub async fn save(&self, session: &Session) -> bool {
        let (written, is_kept) = {
            // handed over while the tail is held, so that nothing older comes behind something newer
            let tail = self.tail();
            let mut state = session.state();
            let is_kept = state.is_persistent();
            if state.is_over || !(is_kept || state.is_on_disk) {
                return true;
            }
            let changes = if is_kept {
                state.is_dirty = false;
                state.is_on_disk = true;
                saved::changed(&state, None, tail.processed())
            } else {
                // after a crash it would come back, with what is sent and done
                saved::forget(&state)
            };
            (self.store.put_state(changes), is_kept)
        };
        let is_written = matches!(written.await, Ok(Ok(())));
        if is_written {
            let mut state = session.state();
            // only the client's own connection changes them, and it waits here
            state.has_saved_filters = is_kept;
            state.is_on_disk &= is_kept;
        }
        is_written
    }

    /// Writes how far a session has come, and waits for the sync: before a message of QoS 2 is sent, and
    /// before it is released.
    pub async fn save_progress(&self, session: &Session) -> bool {
        let written = {
            // as above
            let tail = self.tail();
            let mut state = session.state();
            if state.is_over || !state.is_persistent() {
                return true;
            }
            state.is_dirty = false;
            let progress = saved::progress(&state, tail.processed());
            self.store.put_state(vec![progress])
        };
        matches!(written.await, Ok(Ok(())))
    }

    /// The connection lets go of its session. `keeps_will`: it ended without saying so.
    pub fn release(self: &Arc<Self>, session: &Arc<Session>, number: u64, keeps_will: bool) {
        let mut due = None;
        {
            let tail = self.tail();
            let mut sessions = self.sessions();
            let mut state = session.state();
            if !state.is_linked(number) {
                return;
            }
            let mut shared = state.go_offline(tail.processed());
            if self.is_stopping() && state.is_persistent() {
                // a group's backlog ends with the process
                state.owed.extend(shared.drain(..));
            }
            if !keeps_will {
                state.will = None;
            }
            let now = shared::time::now();
            let is_over = state.expiry_s == 0;
            if let Some(will) = &state.will {
                let delay_s = will.delay_s.min(state.expiry_s);
                if delay_s == 0 {
                    due = state.will.take();
                } else {
                    let at = now + Duration::from_secs(delay_s.into());
                    let deadline = Deadline::will(session, self.number());
                    state.will_deadline = Some(sessions.schedule(at, deadline));
                }
            }
            if is_over {
                sessions.by_client.remove(&session.client_id);
            } else {
                if state.expiry_s != u32::MAX {
                    let at = now + Duration::from_secs(state.expiry_s.into());
                    let deadline = Deadline::end(session, self.number());
                    state.end_deadline = Some(sessions.schedule(at, deadline));
                }
                state.is_dirty = false;
                state.is_on_disk = true;
                // what is lost with a crash before the sync is only how far it had come
                let age_ms = self.away.age_ms(now);
                let changes = saved::changed(&state, Some(age_ms), tail.processed());
                drop(self.store.put_state(changes));
            }
            drop(state);
            if is_over {
                // before the client can have a new one, so that what is forgotten is not the new one's
                self.end(session);
            }
            drop(sessions);
            drop(tail);
            self.give_back(shared);
        }
        if let Some(will) = due {
            self.publish_will(*will);
        }
        self.stats.connected.fetch_sub(1, Ordering::Relaxed);
        self.released.notify_waiters();
    }

    pub(super) fn publish_will(self: &Arc<Self>, will: crate::mqtt::packet::Will) {
        let mut message = will.message;
        message.published_ms = shared::time::wall_ms();
        self.publish_aside(message);
    }

    /// A session is forgotten: it is out of the table of clients already, and the table is still locked.
    pub(super) fn end(self: &Arc<Self>, session: &Arc<Session>) {
        let (subscriptions, owed, changes, will) = {
            let mut state = session.state();
            if std::mem::replace(&mut state.is_over, true) {
                return;
            }
            let subscriptions = std::mem::take(&mut state.subscriptions);
            let owed = std::mem::take(&mut state.owed);
            let changes = saved::forget(&state);
            (subscriptions, owed, changes, state.will.take())
        };
        self.give_back(owed);
        for (filter, _) in subscriptions.iter() {
            self.remove_filter(session, filter);
        }
        drop(self.store.put_state(changes));
        if let Some(will) = will {
            self.publish_will(*will);
        }
    }
}
