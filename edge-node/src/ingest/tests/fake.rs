//! A store for tests of what stands in front of it: the store in memory, whose answers are held back
//! or replaced as the test says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName, Track};
use tokio::sync::{oneshot, watch};

use crate::store::{
    Append, AppendError, Appended, DeleteError, FetchLimit, Fetched, Item, Ledger, Log, LogRange,
    MemoryStore, Moment, PartitionId, StateChange, StateSpace, Store, StoreError, Topic,
    TopicRules,
};

type Outcome = Result<Appended, AppendError>;

/// How appends are answered.
#[derive(Debug, Clone, Default)]
pub(crate) enum Mode {
    /// At once.
    #[default]
    Sync,
    /// When the test calls [`FakeStore::release`].
    Hold,
    /// With this error, so many times.
    Refuse(AppendError, u32),
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    held: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeStore {
    memory: MemoryStore,
    /// Calls of [`Store::fetch`].
    pub(crate) fetches: AtomicUsize,
    state: Mutex<State>,
}

impl FakeStore {
    pub(crate) fn shared() -> Arc<Self> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state().mode = mode;
    }

    pub(crate) fn held(&self) -> usize {
        self.state().held.len()
    }

    /// Answers everything held, the last first: nobody may rely on their order.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        state.mode = Mode::Sync;
        for (answer, outcome) in state.held.drain(..).rev() {
            answer.send(outcome).ok();
        }
    }

    /// The batches of a log, with base offset 0 again.
    pub(crate) fn batches(&self, partition: PartitionId) -> Vec<Bytes> {
        let items = self.memory.read(partition, 0, usize::MAX).unwrap();
        let batches = items.into_iter().map(|item| match item {
            Item::Batch { batch, .. } => {
                let mut batch = batch.to_vec();
                shared::record::patch(&mut batch, 0, 0);
                batch.into()
            }
            Item::Gap { .. } => panic!("a gap"),
        });
        batches.collect()
    }
}

impl Store for FakeStore {
    fn append(&self, append: Append) -> oneshot::Receiver<Outcome> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state();
        if let Mode::Refuse(error, times) = &mut state.mode
            && let Some(left) = times.checked_sub(1)
        {
            *times = left;
            answer.send(Err(error.clone())).ok();
            return receiver;
        }
        let outcome = self
            .memory
            .append(append)
            .try_recv()
            .expect("answered at once");
        if matches!(state.mode, Mode::Hold) {
            state.held.push((answer, outcome));
        } else {
            answer.send(outcome).ok();
        }
        receiver
    }

    fn put_state(&self, changes: Vec<StateChange>) -> oneshot::Receiver<Result<(), AppendError>> {
        self.memory.put_state(changes)
    }

    fn state(&self, space: StateSpace, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.memory.state(space, prefix)
    }

    fn space(&self) -> crate::store::Space {
        self.memory.space()
    }

    fn ensure_topic(
        &self,
        name: &TopicName,
        partitions: u32,
        rules: TopicRules,
    ) -> Result<Arc<Topic>, StoreError> {
        self.memory.ensure_topic(name, partitions, rules)
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        self.memory.topics()
    }

    fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.memory.topic(name)
    }

    fn delete_records(
        &self,
        partition: PartitionId,
        before: Offset,
    ) -> Result<LogRange, StoreError> {
        self.memory.delete_records(partition, before)
    }

    fn delete_topic(&self, name: &str) -> Result<(), DeleteError> {
        self.memory.delete_topic(name)
    }

    fn logs(&self) -> Vec<Log> {
        self.memory.logs()
    }

    fn next_producer_id(&self) -> Result<i64, StoreError> {
        self.memory.next_producer_id()
    }

    fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        max: usize,
    ) -> Result<Vec<Item>, StoreError> {
        self.memory.read(partition, from, max)
    }

    fn browse(
        &self,
        partition: PartitionId,
        from: Offset,
        max: usize,
    ) -> Result<Vec<Item>, StoreError> {
        self.memory.browse(partition, from, max)
    }

    fn fetch(
        &self,
        partition: PartitionId,
        from: Offset,
        limit: FetchLimit,
        out: &mut Vec<u8>,
    ) -> Result<Fetched, StoreError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        self.memory.fetch(partition, from, limit, out)
    }

    fn range(&self, partition: PartitionId) -> Result<LogRange, StoreError> {
        self.memory.range(partition)
    }

    fn offset_for_time(
        &self,
        partition: PartitionId,
        timestamp_ms: i64,
    ) -> Result<Option<Moment>, StoreError> {
        self.memory.offset_for_time(partition, timestamp_ms)
    }

    fn largest_timestamp(&self, partition: PartitionId) -> Result<Option<Moment>, StoreError> {
        self.memory.largest_timestamp(partition)
    }

    fn chain_at(&self, partition: PartitionId, offset: Offset) -> Result<Option<u64>, StoreError> {
        self.memory.chain_at(partition, offset)
    }

    fn acknowledge(
        &self,
        partition: PartitionId,
        track: Track,
        next: Offset,
    ) -> Result<(), StoreError> {
        self.memory.acknowledge(partition, track, next)
    }

    fn split(&self, partition: PartitionId) -> Result<bool, StoreError> {
        self.memory.split(partition)
    }

    fn sweep(&self, wall_ms: i64) -> Result<(), StoreError> {
        self.memory.sweep(wall_ms)
    }

    fn incarnation(&self) -> Incarnation {
        self.memory.incarnation()
    }

    fn renew_incarnation(&self) -> Result<Incarnation, StoreError> {
        self.memory.renew_incarnation()
    }

    fn ledger(&self) -> Vec<(TopicName, Ledger)> {
        self.memory.ledger()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.memory.changes()
    }

    fn failure(&self) -> watch::Receiver<Option<StoreError>> {
        self.memory.failure()
    }
}
