//! A central cluster in memory: a truthful model of what the lanes rely on.
//!
//! Transactions of several lanes are open at once; a reader of committed records sees a partition up to
//! the first record whose transaction is still open, and nothing that was aborted. Acquiring a lane
//! fences its older owners and aborts what they left open. Topics refuse batches that are too large,
//! and with them every record of the batch. Faults are injected by the test.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Cluster, CommitEnd, Destination, DestinationError, LaneSink, OutRecord, ProduceError, Reason,
    Refusal, SinkError,
};

/// Where a fault may strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Before the lane is taken over.
    Acquire,
    /// After it is taken over, before its checkpoints are read.
    Restore,
    /// Before a record is taken.
    Produce,
    /// Before the deliveries are known.
    Settle,
    /// Before the commit.
    Commit,
    /// After the commit: the hub never hears of it.
    Committed,
    /// Before an abort.
    Abort,
}

type Faults = Box<dyn FnMut(Point) -> Option<SinkError> + Send>;

/// The cluster.
#[derive(Clone)]
pub struct MemoryCluster(Arc<Mutex<State>>);

struct State {
    lanes: u32,
    /// For topics that nobody declared; `None`: they are refused.
    default: Option<Destination>,
    topics: HashMap<String, Topic>,
    checkpoints: Vec<Vec<Stored>>,
    epochs: Vec<u64>,
    transactions: Vec<Fate>,
    open: HashMap<u32, usize>,
    faults: Faults,
}

struct Topic {
    /// What the hub is told.
    told: Destination,
    /// What is true.
    max_batch_bytes: usize,
    partitions: Vec<Vec<Stored>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Committed,
    Aborted,
}

struct Stored {
    transaction: usize,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A record as a reader of committed records gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Null when absent.
    pub key: Option<Vec<u8>>,
    /// Null when absent.
    pub value: Option<Vec<u8>>,
    /// In order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl std::fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryCluster").finish_non_exhaustive()
    }
}

impl MemoryCluster {
    /// A cluster whose topics are made on demand, as `default` says.
    #[must_use]
    pub fn new(lanes: u32, default: Option<Destination>) -> Self {
        let state = State {
            lanes,
            default,
            topics: HashMap::new(),
            checkpoints: (0..lanes).map(|_| Vec::new()).collect(),
            epochs: vec![0; lanes as usize],
            transactions: Vec::new(),
            open: HashMap::new(),
            faults: Box::new(|_| None),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// From now on faults strike as this says.
    pub fn set_faults(&self, faults: impl FnMut(Point) -> Option<SinkError> + Send + 'static) {
        self.lock().faults = Box::new(faults);
    }

    /// The topic takes smaller batches from now on; hubs that looked before do not know.
    pub fn shrink(&self, topic: &str, max_batch_bytes: usize) {
        if let Some(topic) = self.lock().topics.get_mut(topic) {
            topic.max_batch_bytes = max_batch_bytes;
        }
    }

    /// Names of the topics that exist.
    #[must_use]
    pub fn topics(&self) -> Vec<String> {
        self.lock().topics.keys().cloned().collect()
    }

    /// What a reader of committed records sees of a topic, by partition.
    #[must_use]
    pub fn read_committed(&self, topic: &str) -> Vec<Vec<Committed>> {
        let state = self.lock();
        let Some(topic) = state.topics.get(topic) else {
            return Vec::new();
        };
        let visible = |partition: &Vec<Stored>| {
            let seen = state.visible(partition);
            seen.map(|stored| Committed {
                key: stored.key.clone(),
                value: stored.value.clone(),
                headers: stored.headers.clone(),
            })
            .collect()
        };
        topic.partitions.iter().map(visible).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Up to the first open transaction, without what was aborted.
    fn visible<'a>(&'a self, partition: &'a [Stored]) -> impl Iterator<Item = &'a Stored> {
        let fate = |stored: &&Stored| self.transactions[stored.transaction];
        partition
            .iter()
            .take_while(move |stored| fate(stored) != Fate::Open)
            .filter(move |stored| fate(stored) == Fate::Committed)
    }

    fn strike(&mut self, point: Point) -> Result<(), SinkError> {
        match (self.faults)(point) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn begin(&mut self, lane: u32) {
        self.transactions.push(Fate::Open);
        self.open.insert(lane, self.transactions.len() - 1);
    }

    fn end(&mut self, lane: u32, fate: Fate) {
        if let Some(transaction) = self.open.remove(&lane) {
            self.transactions[transaction] = fate;
        }
    }
}

impl Cluster for MemoryCluster {
    type Lane = MemoryLane;

    fn prepare(&self) -> Result<u32, SinkError> {
        Ok(self.lock().lanes)
    }

    fn lane(&self, lane: u32) -> MemoryLane {
        MemoryLane {
            cluster: self.clone(),
            lane,
            epoch: 0,
            wants_alone: false,
            is_alone: false,
            sent: Vec::new(),
        }
    }
}

/// One lane's producer.
#[derive(Debug)]
pub struct MemoryLane {
    cluster: MemoryCluster,
    lane: u32,
    epoch: u64,
    wants_alone: bool,
    is_alone: bool,
    /// Tag, topic, partition and size of what the transaction holds.
    sent: Vec<(usize, String, u32, usize)>,
}

impl MemoryLane {
    /// The cluster, if this is still the lane's owner.
    fn owned(&self) -> Result<MutexGuard<'_, State>, SinkError> {
        let state = self.cluster.lock();
        if state.epochs[self.lane as usize] != self.epoch {
            return Err(SinkError::Fenced);
        }
        Ok(state)
    }

    fn transaction(&self, state: &State) -> Result<usize, SinkError> {
        let open = state.open.get(&self.lane).copied();
        open.ok_or_else(|| SinkError::Unknown("no transaction is open".to_owned()))
    }
}

impl LaneSink for MemoryLane {
    fn acquire(
        &mut self,
        claim: (&[u8], &[u8]),
        read: &mut dyn FnMut(&[u8], Option<&[u8]>),
    ) -> Result<(), SinkError> {
        let lane = self.lane as usize;
        let mut state = self.cluster.lock();
        state.strike(Point::Acquire)?;
        state.end(self.lane, Fate::Aborted);
        state.epochs[lane] += 1;
        self.epoch = state.epochs[lane];
        self.is_alone = self.wants_alone;
        state.strike(Point::Restore)?;
        state.begin(self.lane);
        let transaction = state.transactions.len() - 1;
        state.checkpoints[lane].push(Stored {
            transaction,
            key: Some(claim.0.to_vec()),
            value: Some(claim.1.to_vec()),
            headers: Vec::new(),
        });
        state.end(self.lane, Fate::Committed);
        for stored in state.visible(&state.checkpoints[lane]) {
            read(
                stored.key.as_deref().unwrap_or_default(),
                stored.value.as_deref(),
            );
        }
        Ok(())
    }

    fn destination(&mut self, topic: &str) -> Result<Arc<Destination>, DestinationError> {
        let mut state = self.cluster.lock();
        if !state.topics.contains_key(topic) {
            let refused = DestinationError::Refused(Reason::UnknownTopic);
            let told = state.default.clone().ok_or(refused)?;
            let made = Topic {
                max_batch_bytes: told.max_batch_bytes,
                partitions: (0..told.partitions).map(|_| Vec::new()).collect(),
                told,
            };
            state.topics.insert(topic.to_owned(), made);
        }
        Ok(Arc::new(state.topics[topic].told.clone()))
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        self.sent.clear();
        self.owned()?.begin(self.lane);
        Ok(())
    }

    fn produce(&mut self, tag: usize, record: &OutRecord<'_>) -> Result<(), ProduceError> {
        let mut state = self.owned()?;
        state.strike(Point::Produce)?;
        let transaction = self.transaction(&state)?;
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
        let own = record.headers.clone().into_iter().flatten();
        let headers = own.chain(record.marks.iter().copied());
        let stored = Stored {
            transaction,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers
                .map(|header| {
                    let name = String::from_utf8_lossy(header.name).into_owned();
                    (name, header.value.map(<[u8]>::to_vec))
                })
                .collect(),
        };
        let Some(topic) = state.topics.get_mut(record.topic) else {
            return Err(ProduceError::Refused(Reason::UnknownTopic));
        };
        topic.partitions[record.partition as usize].push(stored);
        drop(state);
        let topic = record.topic.to_owned();
        self.sent.push((tag, topic, record.partition, bytes));
        Ok(())
    }

    fn store(&mut self, key: &[u8], value: &[u8]) -> Result<(), SinkError> {
        let mut state = self.owned()?;
        state.strike(Point::Produce)?;
        let transaction = self.transaction(&state)?;
        state.checkpoints[self.lane as usize].push(Stored {
            transaction,
            key: Some(key.to_vec()),
            value: Some(value.to_vec()),
            headers: Vec::new(),
        });
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<Refusal>, SinkError> {
        let mut state = self.owned()?;
        state.strike(Point::Settle)?;
        let is_refused = |(_, topic, _, bytes): &&(usize, String, u32, usize)| {
            *bytes > state.topics[topic].max_batch_bytes
        };
        let culprits: Vec<_> = self.sent.iter().filter(is_refused).collect();
        let shares_batch =
            |topic: &str, partition: u32| culprits.iter().any(|c| c.1 == topic && c.2 == partition);
        let mut refusals = Vec::new();
        for sent in &self.sent {
            let is_hit = if self.is_alone {
                is_refused(&sent)
            } else {
                shares_batch(&sent.1, sent.2)
            };
            if is_hit {
                refusals.push(Refusal {
                    tag: sent.0,
                    reason: Some(Reason::TooLarge),
                    is_certain: false,
                });
            }
        }
        Ok(refusals)
    }

    fn commit(&mut self) -> Result<CommitEnd, SinkError> {
        let mut state = self.owned()?;
        state.strike(Point::Commit)?;
        self.transaction(&state)?;
        state.end(self.lane, Fate::Committed);
        state.strike(Point::Committed)?;
        Ok(CommitEnd::GoOn)
    }

    fn abort(&mut self) -> Result<(), SinkError> {
        let mut state = self.owned()?;
        state.strike(Point::Abort)?;
        state.end(self.lane, Fate::Aborted);
        Ok(())
    }

    fn send_alone(&mut self, alone: bool) {
        self.wants_alone = alone;
    }

    fn release(&mut self) {}
}
