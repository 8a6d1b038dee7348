//! The loop of one lane: it carries out what the machine decides.
//!
//! Branches in the order in which they are served: outputs, then the end of the blocking step under
//! way, then timers, then requests, then the wish to stop. One blocking step runs at a time, on a thread
//! for blocking work; while it runs the lane goes on listening, so that the next transaction takes all that
//! came meanwhile (group commit).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::backoff::Backoff;
use super::counters::Counters;
use super::health::LaneHealth;
use super::machine::{Machine, Outcome, Output, Ticket, Work};
use super::pace::Pace;
use super::transact::{Restored, Transactor};
use super::{Checkpoint, EndReason, LaneEvent, LaneRequest, SessionId};
use crate::sink::{LaneSink, SinkError};

/// Requests taken at once before the machine's outputs are served.
const REQUESTS_AT_ONCE: usize = 256;

/// First wait after a failed step: Kafka often is back at once.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest: work goes on within about this time after Kafka is back.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// A step that takes longer says that the cluster is in trouble.
const SLOW_STEP: Duration = Duration::from_secs(5);
/// Of a step that has not ended.
const NO_ANSWER: &str = "the central cluster does not answer";
/// A hub that was fenced twice within this time is one of two that want the same lane.
const CONTENTION: Duration = Duration::from_secs(600);

type Answer<T> = oneshot::Sender<Result<T, EndReason>>;

/// How long a lane steps down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepDown {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

/// A lane's task.
#[derive(Debug)]
pub(crate) struct Driver<S> {
    machine: Machine,
    pace: Pace,
    requests: mpsc::Receiver<LaneRequest>,
    cancel: CancellationToken,
    stop_timeout: Duration,
    counters: Arc<Counters>,
    health: LaneHealth,

    /// Here while no step is under way.
    transactor: Option<Transactor<S>>,
    step: Option<JoinHandle<(Transactor<S>, Done)>>,
    retry: Backoff,
    retry_at: Option<Instant>,
    step_down: Backoff,
    fenced_at: Option<Instant>,
    slow_at: Option<Instant>,
    step_began: Instant,
    /// The first of the failures since the last commit.
    failing_since: Option<Instant>,
    /// What was said of the last of them.
    failure: Option<String>,
    stop_at: Option<Instant>,

    sessions: HashMap<SessionId, mpsc::Sender<LaneEvent>>,
    attaching: HashMap<SessionId, Answer<()>>,
    questions: HashMap<Ticket, Answer<Vec<Option<Checkpoint>>>>,
    next_ticket: u64,
    counted_bytes: u64,
}

#[derive(Debug)]
enum Done {
    Acquired(Result<Restored, SinkError>),
    Transaction(Outcome),
}

impl<S: LaneSink> Driver<S> {
    pub(crate) fn new(
        machine: Machine,
        requests: mpsc::Receiver<LaneRequest>,
        transactor: Transactor<S>,
        cancel: CancellationToken,
        counters: Arc<Counters>,
        health: LaneHealth,
        step_down: StepDown,
        stop_timeout: Duration,
    ) -> Self {
        Self {
            pace: Pace::new(machine.transaction_bytes()),
            machine,
            requests,
            cancel,
            stop_timeout,
            counters,
            health,
            transactor: Some(transactor),
            step: None,
            retry: Backoff::new(RETRY_MIN, RETRY_MAX),
            retry_at: None,
            step_down: Backoff::new(step_down.min, step_down.max),
            fenced_at: None,
            slow_at: None,
            step_began: Instant::now(),
            failing_since: None,
            failure: None,
            stop_at: None,
            sessions: HashMap::new(),
            attaching: HashMap::new(),
            questions: HashMap::new(),
            next_ticket: 0,
            counted_bytes: 0,
        }
    }

    /// Serves until cancelled; then commits what waits, within the limit.
    pub(crate) async fn run(mut self) {
        let mut requests = Vec::with_capacity(REQUESTS_AT_ONCE);
        while !self.is_done() {
            self.serve();
            tokio::select! {
                biased;
                done = end_of(&mut self.step) => self.finish_step(done),
                () = at(self.retry_at) => self.retry_at = None,
                () = at(self.slow_at) => {
                    self.slow_at = None;
                    self.slow();
                }
                () = at(self.stop_at) => self.stop_at = Some(Instant::now()),
                count = self.requests.recv_many(&mut requests, REQUESTS_AT_ONCE),
                    if self.machine.has_room() =>
                {
                    if count == 0 {
                        break; // every handle is gone: nobody can ask anything any more
                    }
                    for request in requests.drain(..) {
                        self.handle(request);
                    }
                }
                () = self.cancel.cancelled(), if self.stop_at.is_none() => self.stop(),
            }
        }
        self.machine.end_all(EndReason::Stopping);
        self.serve_outputs();
        if let Some(mut transactor) = self.transactor.take() {
            // closing a producer takes a moment
            let closed = tokio::task::spawn_blocking(move || transactor.release()).await;
            if let Err(error) = closed {
                warn!(%error, "The producer was not closed");
            }
        }
    }

    fn is_done(&self) -> bool {
        let Some(stop_at) = self.stop_at else {
            return false;
        };
        (self.machine.is_drained() && self.step.is_none()) || Instant::now() >= stop_at
    }

    fn stop(&mut self) {
        self.machine.handle_stop();
        self.stop_at = Some(Instant::now() + self.stop_timeout);
    }

    fn serve(&mut self) {
        self.serve_outputs();
        self.start_step();
        let bytes = self.machine.held_bytes() as u64;
        let level = &self.counters.queue_bytes;
        level.fetch_add(bytes.wrapping_sub(self.counted_bytes), Ordering::Relaxed);
        self.counted_bytes = bytes;
    }

    fn handle(&mut self, request: LaneRequest) {
        match request {
            LaneRequest::Attach {
                site,
                incarnation,
                session,
                events,
                reply,
            } => {
                self.sessions.insert(session, events);
                self.attaching.insert(session, reply);
                let now = Instant::now().into_std();
                self.machine.handle_attach(site, incarnation, session, now);
            }
            LaneRequest::Checkpoints {
                session,
                logs,
                reply,
            } => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.questions.insert(ticket, reply);
                self.machine.handle_question(ticket, session, logs);
            }
            LaneRequest::Deliver { session, delivery } => {
                self.machine.handle_delivery(session, delivery);
            }
            LaneRequest::Detach { session } => self.forget(session),
        }
    }

    fn forget(&mut self, session: SessionId) {
        self.machine.handle_detach(session);
        self.sessions.remove(&session);
        self.attaching.remove(&session);
    }

    fn serve_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Attached(session, answer) => self.attached(session, answer),
                Output::Checkpoints(ticket, answer) => {
                    if let Some(reply) = self.questions.remove(&ticket) {
                        // a session that went away meanwhile sends its detach
                        drop(reply.send(answer));
                    }
                }
                Output::Event(session, event) => self.tell(session, event),
            }
        }
    }

    fn attached(&mut self, session: SessionId, answer: Result<(), EndReason>) {
        let is_refused = answer.is_err();
        let gave_up = match self.attaching.remove(&session) {
            Some(reply) => reply.send(answer).is_err(),
            None => true,
        };
        if is_refused || gave_up {
            self.forget(session);
        }
    }

    fn tell(&mut self, session: SessionId, event: LaneEvent) {
        let is_last = matches!(event, LaneEvent::Ended(_));
        let is_told = match self.sessions.get(&session) {
            Some(events) => events.try_send(event).is_ok(),
            None => false,
        };
        if is_last || !is_told {
            // dropping the sender is the end that a session sees which did not read
            self.forget(session);
        }
    }

    fn start_step(&mut self) {
        if self.retry_at.is_some() || self.step.is_some() {
            return;
        }
        let Some(work) = self.machine.poll_work() else {
            return;
        };
        let mut transactor = self
            .transactor
            .take()
            .expect("it is here while no step is under way");
        self.step_began = Instant::now();
        self.slow_at = Some(self.failing_since.unwrap_or(self.step_began) + SLOW_STEP);
        self.step = Some(tokio::task::spawn_blocking(move || {
            let done = match work {
                Work::Acquire => Done::Acquired(transactor.acquire(wall_ms())),
                Work::Commit(transaction) => {
                    Done::Transaction(transactor.run(&transaction, wall_ms()))
                }
            };
            (transactor, done)
        }));
    }

    fn finish_step(&mut self, (transactor, done): (Transactor<S>, Done)) {
        self.transactor = Some(transactor);
        self.step = None;
        self.slow_at = None;
        match done {
            Done::Acquired(Ok(restored)) => self.acquired(restored),
            Done::Acquired(Err(SinkError::Fenced)) | Done::Transaction(Outcome::Fenced) => {
                self.fenced();
            }
            Done::Acquired(Err(error)) => self.failed(&error),
            Done::Transaction(outcome) => self.ended(outcome),
        }
    }

    fn acquired(&mut self, restored: Restored) {
        let took = self.step_began.elapsed();
        info!(logs = restored.logs.len(), ?took, "Lane acquired");
        self.counters.acquired.fetch_add(1, Ordering::Relaxed);
        // a lane that is acquired again and again but commits nothing is not well
        if self.machine.is_drained() {
            self.failing_since = None;
        }
        if self.failing_since.is_none() {
            self.failure = None;
            self.health.well();
        }
        let moved = self
            .machine
            .handle_acquired(restored.logs, restored.damaged);
        self.counters.moved(&moved);
    }

    fn slow(&mut self) {
        let since = self.failing_since.unwrap_or(self.step_began).elapsed();
        let began_ms = wall_ms() - i64::try_from(since.as_millis()).unwrap_or(0);
        let error = self.failure.as_deref().unwrap_or(NO_ANSWER);
        if self.health.trouble(error, began_ms) {
            error!(took = ?since, error, "Lane does not get on; trying on");
        }
    }

    fn failed(&mut self, error: &SinkError) {
        let text = error.to_string();
        let is_news = self.health.trouble(&text, wall_ms());
        self.failure = Some(text);
        if is_news {
            match error {
                SinkError::Refused(_) => error!(%error, "Lane cannot be acquired; trying on"),
                SinkError::Fenced | SinkError::Abortable(_) | SinkError::Unknown(_) => {
                    warn!(%error, "Lane cannot be acquired; trying on");
                }
            }
        }
        self.retry_at = Some(Instant::now() + self.retry.next());
    }

    fn ended(&mut self, outcome: Outcome) {
        match &outcome {
            Outcome::Committed { .. } => {
                self.retry.reset();
                self.failing_since = None;
                self.failure = None;
                self.health.well();
                let bytes = self.machine.in_flight_bytes();
                self.pace.committed(bytes, self.step_began.elapsed());
                self.machine.set_transaction_bytes(self.pace.bytes());
            }
            Outcome::Unknown => {
                self.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
                self.failing_since.get_or_insert(self.step_began);
                let told = self.transactor.as_mut().and_then(Transactor::take_failure);
                if let Some(text) = told {
                    if self.health.is_troubled() {
                        self.health.trouble(&text, wall_ms());
                    }
                    self.failure = Some(text);
                }
                self.retry_at = Some(Instant::now() + self.retry.next());
            }
            Outcome::Malformed(sessions) => {
                warn!(?sessions, "Sessions sent records that cannot be read");
            }
            Outcome::Fenced => {}
        }
        self.machine.handle_outcome(outcome);
    }

    fn fenced(&mut self) {
        self.counters.fenced.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        if self
            .fenced_at
            .replace(now)
            .is_none_or(|then| now - then > CONTENTION)
        {
            self.step_down.reset();
        }
        let wait = self.step_down.next();
        warn!(?wait, "Another hub took the lane; stepping down");
        if let Some(transactor) = &mut self.transactor {
            transactor.release();
        }
        self.machine
            .handle_fenced((Instant::now() + wait).into_std());
    }
}

/// The end of the step under way; never, when there is none.
async fn end_of<T>(step: &mut Option<JoinHandle<T>>) -> T {
    match step {
        None => std::future::pending().await,
        Some(step) => match step.await {
            Ok(done) => done,
            // the step panicked: this task must end too, and the node with it
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => std::future::pending().await,
            },
        },
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        None => std::future::pending().await,
        Some(instant) => sleep_until(instant).await,
    }
}

fn wall_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}
