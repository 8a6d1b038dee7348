//! A store for tests of what stands in front of it: it keeps batches in memory, and answers at once,
//! never, or with an error, as the test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use shared::ids::{Incarnation, Offset, TopicName};
use tokio::sync::{oneshot, watch};

use crate::store::{
    Append, AppendError, Appended, Item, Ledger, LogRange, PartitionId, Store, StoreError, Topic,
    TopicRules,
};

type Answer = oneshot::Sender<Result<Appended, AppendError>>;

/// How appends are answered.
#[derive(Debug, Clone, Default)]
pub(crate) enum Mode {
    /// At once.
    #[default]
    Sync,
    /// When the test calls [`FakeStore::release`].
    Hold,
    /// With this error.
    Refuse(AppendError),
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    topics: BTreeMap<TopicName, Arc<Topic>>,
    partitions: u32,
    logs: BTreeMap<PartitionId, (u64, Vec<Bytes>)>,
    producers: i64,
    held: Vec<(Answer, Appended)>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeStore {
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
        for (answer, appended) in state.held.drain(..).rev() {
            drop(answer.send(Ok(appended)));
        }
    }

    pub(crate) fn batches(&self, partition: PartitionId) -> Vec<Bytes> {
        let state = self.state();
        state
            .logs
            .get(&partition)
            .map_or_else(Vec::new, |log| log.1.clone())
    }
}

impl Store for FakeStore {
    fn ensure_topic(
        &self,
        name: &TopicName,
        partitions: u32,
        rules: TopicRules,
    ) -> Result<Arc<Topic>, StoreError> {
        let mut state = self.state();
        if let Some(topic) = state.topics.get(name) {
            return Ok(topic.clone());
        }
        let first = state.partitions;
        state.partitions += partitions;
        let topic = Arc::new(Topic {
            name: name.clone(),
            partitions: (first..first + partitions).map(PartitionId).collect(),
            rules: Arc::new(rules),
        });
        state.topics.insert(name.clone(), topic.clone());
        Ok(topic)
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        self.state().topics.values().cloned().collect()
    }

    fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.state().topics.get(name).cloned()
    }

    fn append(&self, append: Append) -> oneshot::Receiver<Result<Appended, AppendError>> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state();
        if let Mode::Refuse(error) = &state.mode {
            drop(answer.send(Err(error.clone())));
            return receiver;
        }
        let (end, batches) = state.logs.entry(append.partition).or_default();
        let appended = Appended {
            base_offset: *end,
            is_duplicate: false,
            log_start: 0,
        };
        *end += u64::from(append.header.count);
        batches.push(append.batch);
        if matches!(state.mode, Mode::Hold) {
            state.held.push((answer, appended));
        } else {
            drop(answer.send(Ok(appended)));
        }
        receiver
    }

    fn next_producer_id(&self) -> Result<i64, StoreError> {
        let mut state = self.state();
        state.producers += 1;
        Ok(state.producers)
    }

    fn read(&self, _: PartitionId, _: Offset, _: usize) -> Result<Vec<Item>, StoreError> {
        unimplemented!("nothing in front of the store reads")
    }

    fn range(&self, _: PartitionId) -> Result<LogRange, StoreError> {
        unimplemented!("nothing in front of the store reads")
    }

    fn chain_at(&self, _: PartitionId, _: Offset) -> Result<Option<u64>, StoreError> {
        unimplemented!("nothing in front of the store reads")
    }

    fn acknowledge(&self, _: PartitionId, _: Offset) -> Result<(), StoreError> {
        unimplemented!("nothing in front of the store acknowledges")
    }

    fn sweep(&self, _: i64) -> Result<(), StoreError> {
        Ok(())
    }

    fn incarnation(&self) -> Incarnation {
        Incarnation(1)
    }

    fn renew_incarnation(&self) -> Result<Incarnation, StoreError> {
        Ok(Incarnation(2))
    }

    fn ledger(&self) -> Vec<(TopicName, Ledger)> {
        Vec::new()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    fn failure(&self) -> watch::Receiver<Option<StoreError>> {
        watch::channel(None).1
    }
}
