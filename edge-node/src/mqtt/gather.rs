//! Gathers messages into record batches: while one batch of a partition is on its way to the disk, the
//! next one fills.
//!
//! So with one message at a time each has its own sync, and with thousands a sync is shared by thousands.
//! Only where a steady stream comes from many does a batch wait a moment for more ([`pace`]). One task for each partition that is written to; what waits is bounded in
//! number here and in bytes by the node's budget of received bytes, which each message holds a part of.

pub mod pace;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use shared::record::{BatchBuilder, HEADER_LEN};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use self::pace::{HOLD, Pace};
use super::record::Draft;
use super::retained::Claim;
use super::session::Place;
use crate::ingest::{Ingest, Refusal, Reservation};
use crate::store::{AppendError, PartitionId, StateChange, Topic};

/// Messages that wait for one partition.
const QUEUE: usize = 4_096;
/// Room in a batch for what its header and its neighbours take.
const MARGIN: usize = HEADER_LEN;

/// Resolves when the message is on disk.
pub type Synced = oneshot::Receiver<Result<(), Refusal>>;

/// A message on its way.
#[derive(Debug)]
pub struct Item {
    /// Its record.
    pub draft: Draft,
    /// A fact to be written with it.
    pub state: Option<StateChange>,
    /// Its part of the budget.
    pub reservation: Reservation,
    /// Its room among the retained messages, when it is one.
    pub claim: Option<Claim>,
    /// Who waits for it.
    pub done: oneshot::Sender<Result<(), Refusal>>,
}

/// The gatherers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gather {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    ingest: Ingest,
    tasks: TaskTracker,
    /// One for each partition of the mapped topics.
    queues: Mutex<HashMap<PartitionId, Queue>>,
}

#[derive(Debug, Clone)]
struct Queue {
    items: mpsc::Sender<Item>,
    /// The log did not take the last batch.
    refuses: Arc<AtomicBool>,
}

impl Gather {
    /// None yet.
    #[must_use]
    pub fn new(ingest: Ingest, tasks: TaskTracker) -> Self {
        let queues = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                ingest,
                tasks,
                queues,
            }),
        }
    }

    /// Hands a message over; waits while as many as allowed wait for its partition. False: the log did not take the
    /// last batch, and may not take this one either.
    pub async fn append(&self, topic: &Arc<Topic>, partition: u32, item: Item) -> bool {
        let Some(id) = partition_at(topic, partition) else {
            drop(item.done.send(Err(Refusal::UnknownPartition)));
            return false;
        };
        let queue = self.queue(id, topic, partition);
        if let Err(mpsc::error::SendError(item)) = queue.items.send(item).await {
            let stopped = AppendError::Unavailable("the node stops".to_owned());
            drop(item.done.send(Err(stopped.into())));
            return false;
        }
        !queue.refuses.load(Ordering::Relaxed)
    }

    fn queue(&self, id: PartitionId, topic: &Arc<Topic>, partition: u32) -> Queue {
        let mut queues = self
            .inner
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(id).or_insert_with(|| {
            let (items, receiver) = mpsc::channel(QUEUE);
            let refuses = Arc::new(AtomicBool::new(false));
            let run = run(
                self.inner.ingest.clone(),
                topic.name.as_str().to_owned(),
                partition,
                receiver,
                refuses.clone(),
            );
            self.inner.tasks.spawn(run);
            Queue { items, refuses }
        });
        queue.clone()
    }

    /// Lets the gatherers end when they have nothing more to do.
    pub fn close(&self) {
        let mut queues = self
            .inner
            .queues
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queues.clear();
    }
}

fn partition_at(topic: &Topic, index: u32) -> Option<PartitionId> {
    topic.partitions.get(usize::try_from(index).ok()?).copied()
}

async fn run(
    ingest: Ingest,
    name: String,
    partition: u32,
    mut queue: mpsc::Receiver<Item>,
    refuses: Arc<AtomicBool>,
) {
    let mut next = None;
    let mut pace = Pace::default();
    loop {
        let first = match next.take() {
            Some(item) => item,
            None => match queue.recv().await {
                Some(item) => item,
                None => return,
            },
        };
        let waiting = 1 + queue.len();
        if pace.holds(waiting) {
            tokio::time::sleep(HOLD).await;
            pace.held(waiting, 1 + queue.len());
        }
        // rules may have changed, and partitions be added
        let topic = match ingest.topic(&name, true).await {
            Ok(topic) => topic,
            Err(error) => {
                let error = AppendError::Unavailable(error.to_string());
                refuses.store(true, Ordering::Relaxed);
                drop(first.done.send(Err(error.into())));
                continue;
            }
        };
        let batch;
        (batch, next) = gather(first, &mut queue, topic.rules.max_batch_bytes);
        batch.append(&ingest, &topic, partition, &refuses).await;
    }
}

/// What goes into one batch, and the message that no longer fits.
fn gather(
    first: Item,
    queue: &mut mpsc::Receiver<Item>,
    max_bytes: usize,
) -> (Batch, Option<Item>) {
    let mut batch = Batch::default();
    batch.push(first);
    while let Ok(item) = queue.try_recv() {
        if batch.builder.len() + item.draft.bytes() + MARGIN > max_bytes {
            return (batch, Some(item));
        }
        batch.push(item);
    }
    (batch, None)
}

#[derive(Debug, Default)]
struct Batch {
    builder: BatchBuilder,
    state: Vec<StateChange>,
    waiting: Vec<(oneshot::Sender<Result<(), Refusal>>, Reservation)>,
    claims: Vec<Claim>,
}

impl Batch {
    fn push(&mut self, item: Item) {
        item.draft.push(&mut self.builder);
        self.state.extend(item.state);
        self.claims.extend(item.claim);
        self.waiting.push((item.done, item.reservation));
    }

    async fn append(self, ingest: &Ingest, topic: &Topic, partition: u32, refuses: &AtomicBool) {
        let Some(bytes) = self.builder.build() else {
            return;
        };
        let appended = match ingest
            .append_with(topic, partition, bytes, self.state)
            .await
        {
            Ok(pending) => {
                let last = u64::from(pending.count.saturating_sub(1));
                let appended = pending.synced().await;
                appended
                    .map(|appended| appended.base_offset + last)
                    .map_err(Refusal::from)
            }
            Err(refusal) => Err(refusal),
        };
        let outcome = appended.map(|offset| {
            let place = partition_at(topic, partition).map(|partition| Place { partition, offset });
            for claim in self.claims {
                claim.stored(place);
            }
        });
        refuses.store(outcome.is_err(), Ordering::Relaxed);
        for (done, _reservation) in self.waiting {
            // the client may have gone
            drop(done.send(outcome.clone()));
        }
    }
}
