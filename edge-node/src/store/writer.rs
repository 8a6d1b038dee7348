//! Group commit: one thread takes everything that waits and has it written with one sync.
//!
//! The queue is bounded by count and by bytes; an append that finds it full is refused at once, so that
//! the producer waits and not our memory. While one group is synced the next one gathers: throughput
//! grows with load and an idle store answers after one sync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;

use super::disk::DiskError;
use super::engine::{Answer, Engine, Write};
use super::rocks::RocksDisk;
use super::{Append, AppendError, Appended, StateChange};

/// Why an append is refused that finds no place in the queue.
const QUEUE_FULL: &str = "too many appends wait for the disk";
/// A group is full from here on: what is copied into one write is at most this and one batch.
const GROUP_BYTES: usize = 1024 * 1024;
/// What a waiting append takes beside its bytes.
const OVERHEAD: usize = 256;
/// How long the thread waits before it looks after what is left to sync.
const IDLE: Duration = Duration::from_secs(1);

/// Who is told.
#[derive(Debug)]
enum Reply {
    Append(oneshot::Sender<Result<Appended, AppendError>>),
    State(oneshot::Sender<Result<(), AppendError>>),
}

impl Reply {
    fn send(self, answer: Answer) {
        // whoever asked may have gone
        match self {
            Self::Append(reply) => {
                reply.send(answer.map(Option::unwrap_or_default)).ok();
            }
            Self::State(reply) => {
                reply.send(answer.map(|_| ())).ok();
            }
        }
    }
}

#[derive(Debug)]
struct Waiting {
    write: Write,
    reply: Reply,
}

#[derive(Debug)]
enum Message {
    Write(Waiting),
    Stop,
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Writer {
    queue: SyncSender<Message>,
    waiting_bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(
        engine: Arc<Engine<RocksDisk>>,
        max_len: usize,
        max_bytes: usize,
    ) -> std::io::Result<Self> {
        let (queue, receiver) = sync_channel(max_len.max(1));
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&waiting_bytes);
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                let run = AssertUnwindSafe(|| run(&engine, &receiver, &counter));
                if catch_unwind(run).is_err() {
                    engine.fail(DiskError::Failed("the store's writer panicked".to_owned()));
                }
            })?;
        Ok(Self {
            queue,
            waiting_bytes,
            max_bytes,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues a batch; never blocks.
    pub(super) fn append(
        &self,
        append: Append,
    ) -> oneshot::Receiver<Result<Appended, AppendError>> {
        let (reply, receiver) = oneshot::channel();
        self.queue(Write::Append(append), Reply::Append(reply));
        receiver
    }

    /// Queues facts; never blocks.
    pub(super) fn put_state(
        &self,
        changes: Vec<StateChange>,
    ) -> oneshot::Receiver<Result<(), AppendError>> {
        let (reply, receiver) = oneshot::channel();
        self.queue(Write::State(changes), Reply::State(reply));
        receiver
    }

    fn queue(&self, write: Write, reply: Reply) {
        let cost = cost(&write);
        let before = self.waiting_bytes.fetch_add(cost, Ordering::Relaxed);
        // what is larger than the whole queue still passes when nothing else waits
        let refused = if before > 0 && before + cost > self.max_bytes {
            Some((reply, AppendError::Full(QUEUE_FULL)))
        } else {
            match self
                .queue
                .try_send(Message::Write(Waiting { write, reply }))
            {
                Ok(()) => None,
                Err(TrySendError::Full(Message::Write(waiting))) => {
                    let why = AppendError::Full(QUEUE_FULL);
                    Some((waiting.reply, why))
                }
                Err(TrySendError::Disconnected(Message::Write(waiting))) => {
                    let why = AppendError::Unavailable("the store is closed".to_owned());
                    Some((waiting.reply, why))
                }
                Err(
                    TrySendError::Full(Message::Stop) | TrySendError::Disconnected(Message::Stop),
                ) => None,
            }
        };
        if let Some((reply, why)) = refused {
            self.waiting_bytes.fetch_sub(cost, Ordering::Relaxed);
            reply.send(Err(why));
        }
    }

    /// Answers what waits, then ends the thread. Later appends are refused.
    pub(super) fn stop(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // ends when the thread has made room, or fails because it is gone
            self.queue.send(Message::Stop).ok();
            if thread.join().is_err() {
                tracing::error!("Store writer ended in a panic");
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn cost(write: &Write) -> usize {
    let changes = |changes: &[StateChange]| {
        let each = changes.iter().map(|change| change.len() + OVERHEAD);
        each.sum::<usize>()
    };
    match write {
        Write::Append(append) => append.batch.len() + OVERHEAD + changes(&append.state),
        Write::State(state) => OVERHEAD + changes(state),
    }
}

fn run(engine: &Engine<RocksDisk>, queue: &Receiver<Message>, waiting_bytes: &AtomicUsize) {
    let mut is_stopping = false;
    let mut has_unsynced = false;
    let mut group = Vec::new();
    let mut replies = Vec::new();
    while !is_stopping {
        // an idle store sleeps for good once nothing is left to sync
        let first = if has_unsynced {
            queue.recv_timeout(IDLE)
        } else {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        let mut next = match first {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut bytes = 0;
        while let Some(message) = next {
            match message {
                Message::Write(waiting) => {
                    bytes += cost(&waiting.write);
                    group.push(waiting.write);
                    replies.push(waiting.reply);
                }
                Message::Stop => {
                    is_stopping = true;
                    break;
                }
            }
            next = if bytes < GROUP_BYTES {
                queue.try_recv().ok()
            } else {
                None
            };
        }
        if !group.is_empty() {
            let answers = engine.write_group(&group);
            group.clear();
            waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            for (reply, answer) in replies.drain(..).zip(answers) {
                reply.send(answer);
            }
        }
        has_unsynced = engine.disk.sync_ends();
    }
}
