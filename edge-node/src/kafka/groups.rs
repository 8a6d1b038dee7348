//! The consumer groups' driver: one task that owns the [`Coordinator`], its timers and its writes.
//!
//! ```text
//! connections ── requests, bounded queue ──► task ── state changes ──► store (synced)
//!             ◄────────── answers ──────────      ◄────── outcomes ───
//! ```
//! Order of its loop: outcomes of writes, stop, timers, requests. When it stops, requests that wait lose their
//! answer and their connections end; clients find the group again after the restart.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::KafkaStats;
use super::group::{Answer, Coordinator, Limits, Output, Request, Ticket, WriteId};
use crate::store::{AppendError, StateSpace, Store, StoreError};

/// Time for writes under way when the node stops.
const FINISH: Duration = Duration::from_secs(5);

/// Requests that wait for the task; above it connections wait.
const QUEUE: usize = 256;

type Message = (Work, Option<oneshot::Sender<Answer>>);

#[derive(Debug)]
enum Work {
    Request(Request),
    TopicGone(String),
}

/// A handle to the groups; clones share them.
#[derive(Debug, Clone)]
pub struct Groups {
    queue: mpsc::Sender<Message>,
}

/// The task's half.
#[derive(Debug)]
pub struct GroupsTask {
    queue: mpsc::Receiver<Message>,
    coordinator: Coordinator,
    store: Arc<dyn Store>,
    stats: Arc<KafkaStats>,
    waiting: HashMap<Ticket, oneshot::Sender<Answer>>,
    writes: VecDeque<(WriteId, oneshot::Receiver<Result<(), AppendError>>)>,
    next_ticket: u64,
}

impl Groups {
    /// Reads what the store has of groups. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`] of the read.
    pub fn open(
        store: Arc<dyn Store>,
        limits: Limits,
        stats: Arc<KafkaStats>,
    ) -> Result<(Self, GroupsTask), StoreError> {
        let facts = store.state(StateSpace::GroupOffset, &[])?;
        let random = StdRng::from_rng(&mut rand::rng());
        let now = shared::time::now();
        let (mut coordinator, unreadable) = Coordinator::restore(limits, random, &facts, now);
        if unreadable > 0 {
            warn!(
                unreadable,
                "Committed offsets could not be read and are left out"
            );
        }
        // a kill may have come between a topic's end and this
        for topic in coordinator.topics() {
            if store.topic(&topic).is_none() {
                coordinator.forget_topic(&topic);
            }
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let task = GroupsTask {
            queue: receiver,
            coordinator,
            store,
            stats,
            waiting: HashMap::new(),
            writes: VecDeque::new(),
            next_ticket: 0,
        };
        Ok((Self { queue: sender }, task))
    }

    /// Hands a request over, in the order of the calls. The answer may take as long as a rebalance; none
    /// comes when the node stops.
    pub async fn ask(&self, request: Request) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        // an error drops the sender, which is what the receiver notices
        let sent = self
            .queue
            .send((Work::Request(request), Some(sender)))
            .await;
        drop(sent);
        receiver
    }

    /// A topic was deleted: so are offsets in it.
    pub async fn topic_gone(&self, topic: &str) {
        let sent = self
            .queue
            .send((Work::TopicGone(topic.to_owned()), None))
            .await;
        drop(sent);
    }
}

impl GroupsTask {
    /// Serves until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.carry_out();
            let deadline = self.coordinator.next_deadline();
            tokio::select! {
                biased;
                Some((id, is_stored)) = outcome(&mut self.writes) => {
                    self.writes.pop_front();
                    self.written(id, is_stored);
                }
                () = stop.cancelled() => return self.finish().await,
                () = shared::time::sleep_until(deadline) => {
                    self.coordinator.handle_timeout(shared::time::now());
                }
                message = self.queue.recv() => match message {
                    Some((Work::Request(request), reply)) => self.request(request, reply),
                    Some((Work::TopicGone(topic), _)) => self.coordinator.forget_topic(&topic),
                    // the listeners are gone: the node stops
                    None => return,
                },
            }
        }
    }

    /// What was written is still told.
    async fn finish(mut self) {
        let all = async {
            while let Some((id, is_stored)) = outcome(&mut self.writes).await {
                self.writes.pop_front();
                self.written(id, is_stored);
                self.carry_out();
            }
        };
        if tokio::time::timeout(FINISH, all).await.is_err() {
            warn!("Offsets were on their way to the disk when the node stopped");
        }
    }

    fn request(&mut self, request: Request, reply: Option<oneshot::Sender<Answer>>) {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        if let Some(reply) = reply {
            self.waiting.insert(ticket, reply);
        }
        self.coordinator
            .handle(ticket, request, shared::time::now());
    }

    fn written(&mut self, id: WriteId, is_stored: bool) {
        if !is_stored {
            self.stats.failed_commits.fetch_add(1, Ordering::Relaxed);
        }
        self.coordinator.written(id, is_stored);
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Answer(ticket, answer) => {
                    if let Some(reply) = self.waiting.remove(&ticket)
                        && reply.send(answer).is_err()
                    {
                        debug!(?ticket, "Nobody waits for the answer any more");
                    }
                }
                Output::Write(id, changes) => {
                    self.writes.push_back((id, self.store.put_state(changes)));
                }
            }
        }
        let (groups, offsets) = self.coordinator.size();
        self.stats.groups.store(groups as u64, Ordering::Relaxed);
        self.stats.offsets.store(offsets as u64, Ordering::Relaxed);
    }
}

/// The outcome of the oldest write; it stays in the queue, so that a cancelled wait loses nothing.
async fn outcome(
    writes: &mut VecDeque<(WriteId, oneshot::Receiver<Result<(), AppendError>>)>,
) -> Option<(WriteId, bool)> {
    let (id, receiver) = writes.front_mut()?;
    let stored = match receiver.await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            warn!(%error, "Offsets were not stored");
            false
        }
        Err(_) => false,
    };
    Some((*id, stored))
}
