//! Decodes what a session was sent, in its order and beside the session.
//!
//! A codec that remembers takes up to a fifth of a second of a processor for one batch. On the runtime's own
//! threads that would hold up other sessions' packets and keep-alives until their sites take the hub for
//! dead; so it has threads of its own, at most one for each processor, which sessions take in turns. What
//! decodes in a moment is decoded at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shared::batch::{OpenError, Opened, remembers};
use shared::link::Delivered;
use shared::wire::{Anchor, DataContent, Handle};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

use super::memories::LogMemories;
use super::states::StateKey;

/// What was delivered, and what it decoded to.
pub(super) type Outcome = (Delivered, Result<Opened, OpenError>);

/// Who decodes at once, of all sessions.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(processors)))
    }
}

/// A session's decoders and what waits for them. What waits is bounded by the receiver's credit.
#[derive(Debug)]
pub(super) struct Opener {
    turns: Turns,
    /// Away while a batch is decoded.
    memories: Option<LogMemories>,
    /// In the order of each log; logs take turns, so that an alarm does not wait behind a window of bulk.
    waiting: BTreeMap<Handle, VecDeque<Work>>,
    line: VecDeque<Handle>,
    at_work: JoinSet<(LogMemories, Outcome)>,
}

#[derive(Debug)]
enum Work {
    Begin(Box<Begin>),
    Open(Delivered),
}

/// A log was told where to go on.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) handle: Handle,
    pub(super) key: StateKey,
    /// The history before what comes next; 0: not known.
    pub(super) chain: u64,
    /// The place whose state both ends have of its codec.
    pub(super) agreed: Option<Anchor>,
}

impl Opener {
    pub(super) fn new(memories: LogMemories, turns: Turns) -> Self {
        Self {
            turns,
            memories: Some(memories),
            waiting: BTreeMap::new(),
            line: VecDeque::new(),
            at_work: JoinSet::new(),
        }
    }

    pub(super) fn begin(&mut self, begin: Begin) {
        self.push(begin.handle, Work::Begin(Box::new(begin)));
    }

    pub(super) fn open(&mut self, delivered: Delivered) {
        self.push(delivered.header.handle, Work::Open(delivered));
    }

    fn push(&mut self, handle: Handle, work: Work) {
        let queue = self.waiting.entry(handle).or_insert_with(|| {
            self.line.push_back(handle);
            VecDeque::new()
        });
        queue.push_back(work);
    }

    /// The next of the log whose turn it is, which goes to the end of the line.
    fn pop(&mut self) -> Option<Work> {
        let handle = self.line.pop_front()?;
        let queue = self.waiting.get_mut(&handle)?;
        let work = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&handle);
        } else {
            self.line.push_back(handle);
        }
        work
    }

    /// The log begins again: what waits of it is void.
    pub(super) fn forget(&mut self, handle: Handle) {
        if let Some(queue) = self.waiting.get_mut(&handle) {
            queue.retain(|work| matches!(work, Work::Begin(_)));
            if queue.is_empty() {
                self.waiting.remove(&handle);
                self.line.retain(|waiting| *waiting != handle);
            }
        }
    }

    /// The session ends: what its codecs remember is given back at once, not when the goodbye has been said.
    pub(super) fn release(&mut self) {
        self.memories = None;
    }

    /// What is decoded next, without end while there is nothing to decode. Cancel-safe.
    ///
    /// # Errors
    /// A decoder panicked: its memory is gone, and the session with it.
    pub(super) async fn next(&mut self) -> Result<Outcome, JoinError> {
        loop {
            if let Some(done) = self.at_work.join_next().await {
                let (memories, outcome) = done?;
                self.memories = Some(memories);
                return Ok(outcome);
            }
            // none is at work, so the memories are here unless they were given back or a decoder panicked
            let Some(mut memories) = self.memories.take() else {
                return std::future::pending().await;
            };
            match self.pop() {
                None => {
                    self.memories = Some(memories);
                    return std::future::pending().await;
                }
                Some(Work::Begin(begin)) => {
                    memories.begin(begin.handle, begin.key, begin.chain, begin.agreed);
                    self.memories = Some(memories);
                }
                Some(Work::Open(delivered)) if is_quick(&delivered) => {
                    let opened = memories.open(&delivered);
                    self.memories = Some(memories);
                    return Ok((delivered, opened));
                }
                Some(Work::Open(delivered)) => self.start(memories, delivered),
            }
        }
    }

    fn start(&mut self, mut memories: LogMemories, delivered: Delivered) {
        let turns = Arc::clone(&self.turns.0);
        self.at_work.spawn(async move {
            // never closed
            let turn = turns.acquire_owned().await;
            let decoding = tokio::task::spawn_blocking(move || {
                // it goes on when the session is gone
                let _turn = turn;
                let opened = memories.open(&delivered);
                (memories, (delivered, opened))
            });
            match decoding.await {
                Ok(done) => done,
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        });
    }
}

fn is_quick(delivered: &Delivered) -> bool {
    match delivered.header.content {
        DataContent::Records(header) => !remembers(header.codec),
        DataContent::Gap { .. } => true,
    }
}
