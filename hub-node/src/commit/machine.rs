//! What a lane decides, without doing it: who may deliver, what the next transaction holds, what an
//! outcome means.
//!
//! ```text
//!            attach                  acquired                    work
//! released ─────────► acquiring ─────────────────► ready ◄──────────────► committing
//!    ▲                  │  ▲                                                │   │
//!    │ step-down over,    │  └──────────────── outcome unknown ──────────────┘   │
//!    │ a site attaches    │                                                      │
//! stepped down ◄──────────┴────────────────────── fenced ────────────────────────┘
//! ```
//!
//! Always true:
//! - per log, what is committed, in the transaction under way and queued follow each other without a
//!   hole and without overlap (`skip_below` cuts overlaps);
//! - a `Committed` event is only emitted for a checkpoint that a transaction committed or that was read
//!   back from the cluster;
//! - at most one session of a site may deliver, and none before nothing of its predecessor is left;
//! - a session is let in only after a transaction that began after it came has committed: a hub that was
//!   fenced and does not know it would tell checkpoints that are out of date. In a busy lane that costs
//!   nothing, in an idle one a transaction that holds nothing but the lane's claim.
//!
//! After an unknown outcome nothing is thrown away: the batches stay, the lane is acquired anew, and
//! the checkpoints read then say of each batch whether it is in the cluster. Being fenced is different:
//! the sites have gone to another hub, which answers for them; everything is dropped and sent again there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use shared::ids::{Incarnation, Offset, SiteId, TopicPartition};

use super::checkpoint::{LogKey, Moved, Stored};
use super::queue::{Cost, FairQueue, Queued};
use super::{Checkpoint, Content, Delivery, EndReason, LaneEvent, SessionId};

/// Bounds of a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What a transaction holds at most.
    pub(crate) transaction: Cost,
    /// Bytes that may wait before the lane stops listening.
    pub(crate) queue_bytes: usize,
}

/// What the driver carries out.
#[derive(Debug)]
pub(crate) enum Output {
    /// The answer to an attach.
    Attached(SessionId, Result<(), EndReason>),
    /// The answer to a question for checkpoints.
    Checkpoints(Ticket, Result<Vec<Option<Checkpoint>>, EndReason>),
    /// Word to a session. `Ended` is the last.
    Event(SessionId, LaneEvent),
}

/// Which question an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// A blocking step that the driver does; one at a time.
#[derive(Debug)]
pub(crate) enum Work {
    /// Take the lane over and read its checkpoints.
    Acquire,
    /// Commit this.
    Commit(Transaction),
}

/// The content of one Kafka transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    /// Deliveries in order; none when only the lane's ownership is to be proven.
    pub(crate) items: Vec<Queued>,
    /// What is committed of each of their logs so far.
    pub(crate) logs: HashMap<Arc<LogKey>, Stored>,
}

/// How a transaction ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Records and checkpoints are in the cluster.
    Committed {
        /// The logs' ledgers as committed.
        logs: HashMap<Arc<LogKey>, Stored>,
        /// The producer has served its turn: take the lane again before going on.
        reacquire: bool,
    },
    /// Another hub has the lane.
    Fenced,
    /// Nobody knows, or this producer cannot go on.
    Unknown,
    /// Nothing was committed; these sessions sent records that cannot be read.
    Malformed(Vec<SessionId>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Released,
    Acquiring,
    Ready,
    Committing,
    SteppedDown { until: Instant },
}

#[derive(Debug)]
struct Session {
    site: SiteId,
    incarnation: Incarnation,
    /// Where the next delivery of a log starts, once it has delivered.
    tails: HashMap<TopicPartition, Tail>,
}

#[derive(Debug)]
struct Tail {
    key: Arc<LogKey>,
    /// Where the log starts while the cluster holds nothing of it. A site that got a new incarnation goes
    /// on counting its offsets, so this is the first delivery's base: the session has held it against the
    /// site's hello. 0 where a checkpoint stood, so that a cluster that lost it is noticed.
    origin: Offset,
    next: Offset,
}

#[derive(Debug)]
struct Attach {
    site: SiteId,
    incarnation: Incarnation,
    session: SessionId,
    proof: Proof,
}

/// Whether the lane was this hub's after a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    None,
    /// The step under way will tell.
    UnderWay,
    Given,
}

#[derive(Debug)]
struct Question {
    ticket: Ticket,
    session: SessionId,
    logs: Vec<TopicPartition>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Machine {
    bounds: Bounds,
    state: State,
    is_stopping: bool,
    committed: HashMap<Arc<LogKey>, Stored>,
    damaged: HashSet<LogKey>,
    sessions: HashMap<SessionId, Session>,
    attaching: Vec<Attach>,
    questions: Vec<Question>,
    queue: FairQueue,
    in_flight: Vec<Queued>,
    outputs: VecDeque<Output>,
}

impl Machine {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: State::Released,
            is_stopping: false,
            committed: HashMap::new(),
            damaged: HashSet::new(),
            sessions: HashMap::new(),
            attaching: Vec::new(),
            questions: Vec::new(),
            queue: FairQueue::default(),
            in_flight: Vec::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to carry out.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next blocking step. Its end is told with `handle_acquired`, `handle_outcome` or
    /// `handle_fenced`; only then is the next one asked for. A step to acquire that failed is asked for
    /// again.
    pub(crate) fn poll_work(&mut self) -> Option<Work> {
        match self.state {
            State::Released if !self.attaching.is_empty() => {
                self.state = State::Acquiring;
                self.prove();
                Some(Work::Acquire)
            }
            State::Acquiring => {
                self.prove();
                Some(Work::Acquire)
            }
            State::Ready if !self.queue.is_empty() || self.lacks_proof() => {
                self.prove();
                Some(Work::Commit(self.begin()))
            }
            State::Released | State::Ready | State::Committing | State::SteppedDown { .. } => None,
        }
    }

    /// What a transaction holds at most.
    pub(crate) fn transaction_bytes(&self) -> usize {
        self.bounds.transaction.bytes
    }

    /// False while the lane should not listen: what waits holds as many bytes as it may.
    pub(crate) fn has_room(&self) -> bool {
        self.held_bytes() < self.bounds.queue_bytes
    }

    /// Bytes of what waits and of the transaction under way.
    pub(crate) fn held_bytes(&self) -> usize {
        self.queue.bytes() + self.in_flight_bytes()
    }

    /// Bytes of the transaction under way.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        let in_flight = self.in_flight.iter();
        in_flight.map(|queued| queued.delivery.bytes).sum()
    }

    /// From here on a transaction holds so many bytes at most.
    pub(crate) fn set_transaction_bytes(&mut self, bytes: usize) {
        self.bounds.transaction.bytes = bytes;
    }

    /// True when nothing waits and nothing is under way.
    pub(crate) fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_empty()
    }

    /// A site's session asks to be let in.
    pub(crate) fn handle_attach(
        &mut self,
        site: SiteId,
        incarnation: Incarnation,
        session: SessionId,
        now: Instant,
    ) {
        if let State::SteppedDown { until } = self.state {
            if now < until {
                self.outputs
                    .push_back(Output::Attached(session, Err(EndReason::Fenced)));
                return;
            }
            self.state = State::Released;
        }
        if self.is_stopping {
            self.outputs
                .push_back(Output::Attached(session, Err(EndReason::Stopping)));
            return;
        }
        self.supersede(&site);
        self.attaching.push(Attach {
            site,
            incarnation,
            session,
            proof: Proof::None,
        });
    }

    /// A session asks where the cluster stands.
    pub(crate) fn handle_question(
        &mut self,
        ticket: Ticket,
        session: SessionId,
        logs: Vec<TopicPartition>,
    ) {
        self.questions.push(Question {
            ticket,
            session,
            logs,
        });
        self.answer();
    }

    /// A session hands in the next step of one of its logs.
    pub(crate) fn handle_delivery(&mut self, session: SessionId, delivery: Delivery) {
        // a session that was ended learns it from its event; what it still sends is for nobody
        if self.is_stopping || !self.sessions.contains_key(&session) {
            return;
        }
        if let Err(reason) = self.accept(session, delivery) {
            self.end(session, reason);
        }
    }

    /// A session went away, or gave up attaching. What it handed in is committed all the same.
    pub(crate) fn handle_detach(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        let outputs = &mut self.outputs;
        // nobody listens, but the driver forgets whom it would have told
        self.attaching.retain(|attach| {
            if attach.session == session {
                outputs.push_back(Output::Attached(session, Err(EndReason::Superseded)));
            }
            attach.session != session
        });
        self.questions.retain(|question| {
            if question.session == session {
                let answer = Err(EndReason::Superseded);
                outputs.push_back(Output::Checkpoints(question.ticket, answer));
            }
            question.session != session
        });
    }

    /// The lane is this hub's; `logs` is all that the cluster has of it. Says what of the transaction
    /// under way turned out to be committed.
    pub(crate) fn handle_acquired(
        &mut self,
        logs: HashMap<Arc<LogKey>, Stored>,
        damaged: HashSet<LogKey>,
    ) -> Moved {
        self.state = State::Ready;
        self.proven();
        let in_flight: HashSet<_> = self.in_flight.iter().map(|queued| &queued.key).collect();
        let mut moved = Moved::default();
        for key in in_flight {
            if let Some(after) = logs.get(key) {
                moved.add(self.committed.get(key).unwrap_or(&Stored::NOTHING), after);
            }
        }
        self.committed = logs;
        self.damaged = damaged;
        let kept = std::mem::take(&mut self.in_flight);
        self.queue.put_back(kept);
        self.reconcile();
        self.end_damaged();
        self.admit();
        self.answer();
        self.check();
        moved
    }

    /// The transaction under way ended; being fenced is told with `handle_fenced`.
    pub(crate) fn handle_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Committed { logs, reacquire } => self.committed(logs, reacquire),
            Outcome::Fenced => {}
            Outcome::Unknown => self.state = State::Acquiring,
            Outcome::Malformed(sessions) => {
                self.state = State::Ready;
                let kept = std::mem::take(&mut self.in_flight);
                self.queue.put_back(kept);
                for session in sessions {
                    self.end_malformed(session);
                }
                self.admit();
            }
        }
        self.check();
    }

    /// Another hub has the lane.
    pub(crate) fn handle_fenced(&mut self, until: Instant) {
        self.state = State::SteppedDown { until };
        self.end_all(EndReason::Fenced);
        self.queue.clear();
        self.in_flight.clear();
        self.committed.clear();
        self.damaged.clear();
    }

    /// No more deliveries are taken; what waits may still be committed.
    pub(crate) fn handle_stop(&mut self) {
        self.is_stopping = true;
        for attach in std::mem::take(&mut self.attaching) {
            self.outputs
                .push_back(Output::Attached(attach.session, Err(EndReason::Stopping)));
        }
    }

    /// The end of a graceful stop.
    pub(crate) fn end_all(&mut self, reason: EndReason) {
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.end(session, reason);
        }
        for attach in std::mem::take(&mut self.attaching) {
            self.outputs
                .push_back(Output::Attached(attach.session, Err(reason)));
        }
        for question in std::mem::take(&mut self.questions) {
            self.outputs
                .push_back(Output::Checkpoints(question.ticket, Err(reason)));
        }
    }

    fn begin(&mut self) -> Transaction {
        self.in_flight = self.queue.take(self.bounds.transaction);
        self.state = State::Committing;
        let stored =
            |key: &Arc<LogKey>| self.committed.get(key).copied().unwrap_or(Stored::NOTHING);
        Transaction {
            logs: self
                .in_flight
                .iter()
                .map(|queued| (queued.key.clone(), stored(&queued.key)))
                .collect(),
            items: self.in_flight.clone(),
        }
    }

    fn committed(&mut self, logs: HashMap<Arc<LogKey>, Stored>, reacquire: bool) {
        self.state = if reacquire {
            State::Acquiring
        } else {
            State::Ready
        };
        self.proven();
        let done = std::mem::take(&mut self.in_flight);
        self.committed.extend(logs);
        self.report(done.iter().map(|queued| (queued.session, &queued.key)));
        self.admit();
    }

    /// Tells sessions what the cluster holds of logs that moved.
    fn report<'a>(&mut self, moved: impl Iterator<Item = (SessionId, &'a Arc<LogKey>)>) {
        let mut by_session: HashMap<SessionId, HashMap<TopicPartition, Checkpoint>> =
            HashMap::new();
        for (session, key) in moved {
            let Some(stored) = self.committed.get(key) else {
                continue;
            };
            if self.sessions.contains_key(&session) {
                by_session
                    .entry(session)
                    .or_default()
                    .insert(key.log.clone(), stored.checkpoint);
            }
        }
        for (session, logs) in by_session {
            let event = LaneEvent::Committed(logs.into_iter().collect());
            self.outputs.push_back(Output::Event(session, event));
        }
    }

    fn accept(&mut self, id: SessionId, delivery: Delivery) -> Result<(), EndReason> {
        let session = self.sessions.get_mut(&id).expect("looked up by the caller");
        if !is_well_formed(&delivery) {
            return Err(EndReason::Malformed);
        }
        let tail = match session.tails.get_mut(&delivery.log) {
            Some(tail) => tail,
            None => {
                let key = Arc::new(LogKey {
                    site: session.site.clone(),
                    incarnation: session.incarnation,
                    log: delivery.log.clone(),
                });
                if self.damaged.contains(&key) {
                    return Err(EndReason::Damaged);
                }
                let stored = self.committed.get(&key);
                let origin = stored.map_or(delivery.base_offset, |_| 0);
                let next = stored.map_or(origin, |stored| stored.checkpoint.next_offset);
                session
                    .tails
                    .entry(delivery.log.clone())
                    .or_insert(Tail { key, origin, next })
            }
        };
        if delivery.base_offset > tail.next {
            return Err(EndReason::OutOfOrder);
        }
        let (key, origin) = (tail.key.clone(), tail.origin);
        if delivery.next.next_offset > tail.next {
            let skip_below = std::mem::replace(&mut tail.next, delivery.next.next_offset);
            self.queue.push(Queued {
                session: id,
                key,
                origin,
                delivery: Arc::new(delivery),
                skip_below,
            });
        } else {
            // nothing in it that is not here; say so if it is committed, else its event will come
            let stored = self.committed.get(&key);
            if stored.is_some_and(|s| s.checkpoint.next_offset >= delivery.next.next_offset) {
                self.report(std::iter::once((id, &key)));
            }
        }
        Ok(())
    }

    /// After the lane was acquired anew: which of the kept batches are in the cluster?
    fn reconcile(&mut self) {
        let mut tails = HashMap::new();
        for site in self.queue.sites() {
            self.reconcile_line(&site, &mut tails);
        }
        let committed = &self.committed;
        let mut astray = Vec::new();
        for (id, session) in &mut self.sessions {
            for tail in session.tails.values_mut() {
                let next = tails.get(&tail.key).copied();
                let next = next.unwrap_or_else(|| {
                    let stored = committed.get(&tail.key);
                    stored.map_or(tail.origin, |stored| stored.checkpoint.next_offset)
                });
                if next < tail.next {
                    astray.push(*id);
                }
                tail.next = next;
            }
        }
        for session in astray {
            self.end(session, EndReason::OutOfOrder);
        }
    }

    fn reconcile_line(&mut self, site: &SiteId, tails: &mut HashMap<Arc<LogKey>, Offset>) {
        let mut done = Vec::new();
        let mut ended = Vec::new();
        let mut broken = HashSet::new();
        let mut kept = Vec::new();
        let committed = &self.committed;
        self.queue.retain(site, |queued| {
            let stored = committed.get(&queued.key);
            let at = stored.unwrap_or(&Stored::NOTHING).checkpoint;
            let start = stored.map_or(queued.origin, |_| at.next_offset);
            let next = queued.delivery.next;
            let tail = tails.entry(queued.key.clone()).or_insert(start);
            let has_other_history = next.next_offset == at.next_offset && next.chain != at.chain;
            let leaves_a_hole = queued.delivery.base_offset > *tail;
            if has_other_history || leaves_a_hole {
                // the cluster holds what somebody else sent, or went back: the site starts over
                broken.insert(queued.key.clone());
            }
            if broken.contains(&queued.key) {
                ended.push(queued.session);
            } else if next.next_offset <= *tail {
                done.push((queued.session, queued.key.clone()));
            } else {
                let skip_below = std::mem::replace(tail, next.next_offset);
                kept.push(Queued {
                    skip_below,
                    ..queued.clone()
                });
            }
            false
        });
        self.queue.put_back(kept);
        self.report(done.iter().map(|(session, key)| (*session, key)));
        for session in ended {
            self.end(session, EndReason::OutOfOrder);
        }
    }

    fn end_damaged(&mut self) {
        let is_damaged = |session: &Session| {
            let of_session =
                |key: &&LogKey| key.site == session.site && key.incarnation == session.incarnation;
            self.damaged
                .iter()
                .any(|key| of_session(&key) && session.tails.contains_key(&key.log))
        };
        let hit: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, session)| is_damaged(session))
            .map(|(id, session)| (*id, session.site.clone()))
            .collect();
        for (session, site) in hit {
            self.queue.retain(&site, |queued| queued.session != session);
            self.end(session, EndReason::Damaged);
        }
    }

    fn end_malformed(&mut self, id: SessionId) {
        for site in self.queue.sites() {
            self.queue.retain(&site, |queued| queued.session != id);
        }
        self.end(id, EndReason::Malformed);
    }

    /// The one session of a site makes room for another.
    fn supersede(&mut self, site: &SiteId) {
        let older = self
            .sessions
            .iter()
            .find(|(_, session)| session.site == *site);
        if let Some(id) = older.map(|(id, _)| *id) {
            self.end(id, EndReason::Superseded);
        }
        let outputs = &mut self.outputs;
        self.attaching.retain(|attach| {
            if attach.site == *site {
                outputs.push_back(Output::Attached(attach.session, Err(EndReason::Superseded)));
            }
            attach.site != *site
        });
    }

    fn end(&mut self, id: SessionId, reason: EndReason) {
        if self.sessions.remove(&id).is_some() {
            self.outputs
                .push_back(Output::Event(id, LaneEvent::Ended(reason)));
        }
        let outputs = &mut self.outputs;
        self.questions.retain(|question| {
            if question.session == id {
                outputs.push_back(Output::Checkpoints(question.ticket, Err(reason)));
            }
            question.session != id
        });
    }

    /// A step begins whose success proves that the lane is this hub's.
    fn prove(&mut self) {
        for attach in &mut self.attaching {
            if attach.proof == Proof::None {
                attach.proof = Proof::UnderWay;
            }
        }
    }

    fn proven(&mut self) {
        for attach in &mut self.attaching {
            if attach.proof == Proof::UnderWay {
                attach.proof = Proof::Given;
            }
        }
    }

    fn lacks_proof(&self) -> bool {
        self.attaching
            .iter()
            .any(|attach| attach.proof != Proof::Given)
    }

    /// Lets in who waits and of whose site nothing is left.
    fn admit(&mut self) {
        if !self.knows_checkpoints() {
            return;
        }
        let (queue, in_flight) = (&self.queue, &self.in_flight);
        let is_free = |site: &SiteId| {
            !queue.has(site) && in_flight.iter().all(|queued| queued.key.site != *site)
        };
        let (free, waiting) = std::mem::take(&mut self.attaching)
            .into_iter()
            .partition(|attach| attach.proof == Proof::Given && is_free(&attach.site));
        self.attaching = waiting;
        let free: Vec<Attach> = free;
        for attach in free {
            let session = Session {
                site: attach.site,
                incarnation: attach.incarnation,
                tails: HashMap::new(),
            };
            self.sessions.insert(attach.session, session);
            self.outputs
                .push_back(Output::Attached(attach.session, Ok(())));
        }
    }

    fn answer(&mut self) {
        for question in std::mem::take(&mut self.questions) {
            let Some(session) = self.sessions.get(&question.session) else {
                let answer = Output::Checkpoints(question.ticket, Err(EndReason::Superseded));
                self.outputs.push_back(answer);
                continue;
            };
            if !self.knows_checkpoints() {
                self.questions.push(question);
                continue;
            }
            let answer = self.checkpoints_of(session, &question.logs);
            self.outputs
                .push_back(Output::Checkpoints(question.ticket, answer));
        }
    }

    fn checkpoints_of(
        &self,
        session: &Session,
        logs: &[TopicPartition],
    ) -> Result<Vec<Option<Checkpoint>>, EndReason> {
        let checkpoint = |log: &TopicPartition| {
            let key = LogKey {
                site: session.site.clone(),
                incarnation: session.incarnation,
                log: log.clone(),
            };
            if self.damaged.contains(&key) {
                return Err(EndReason::Damaged);
            }
            Ok(self.committed.get(&key).map(|stored| stored.checkpoint))
        };
        logs.iter().map(checkpoint).collect()
    }

    fn knows_checkpoints(&self) -> bool {
        matches!(self.state, State::Ready | State::Committing)
    }

    /// The first of the promises above, in debug builds.
    fn check(&self) {
        if !cfg!(debug_assertions) || !self.knows_checkpoints() {
            return;
        }
        let mut tails: HashMap<&LogKey, Offset> = HashMap::new();
        let sites = self.queue.sites();
        let queued = sites.iter().flat_map(|site| self.queue.line_of(site));
        for queued in self.in_flight.iter().chain(queued) {
            let stored = self.committed.get(&queued.key);
            let start = stored.map_or(queued.origin, |stored| stored.checkpoint.next_offset);
            let tail = tails.entry(&queued.key).or_insert(start);
            let from = queued.skip_below.max(queued.delivery.base_offset);
            debug_assert_eq!(from, *tail, "{:?} does not follow", queued.key);
            *tail = queued.delivery.next.next_offset;
        }
    }
}

/// Blocks follow each other from the delivery's base to its end, and it moves the checkpoint.
fn is_well_formed(delivery: &Delivery) -> bool {
    if delivery.next.next_offset <= delivery.base_offset {
        return false;
    }
    match &delivery.content {
        Content::Gap { .. } => true,
        Content::Records(blocks) => {
            let end = blocks.iter().try_fold(delivery.base_offset, |at, block| {
                (block.base_offset == at && block.count > 0)
                    .then(|| at.checked_add(u64::from(block.count)))
                    .flatten()
            });
            end == Some(delivery.next.next_offset)
        }
    }
}

#[cfg(test)]
mod tests;
