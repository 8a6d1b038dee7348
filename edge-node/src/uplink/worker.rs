//! The uplink's thread for what may block: reading and packing batches, moving cursors, looking up
//! histories. One thread, so that one encoder's memory is enough and cursors move in order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use shared::batch::{BatchError, CODEC_ZSTD, Encoder, NoneCodec, ZstdEncoder};
use shared::ids::Offset;
use shared::link::ReadResult;
use shared::wire::Handle;
use tokio::sync::mpsc;

use super::batcher::{AssembleError, assemble};
use crate::store::{PartitionId, Store, StoreError};

/// Jobs that may wait for the thread. A session never has more reads under way than its link allows.
const QUEUE_LEN: usize = 256;

/// What the thread is asked to do for a session.
#[derive(Debug)]
pub(super) enum Job {
    /// Answered with [`Done::Read`].
    Read {
        handle: Handle,
        partition: PartitionId,
        from: Offset,
        max_bytes: usize,
        codec: u8,
    },
    /// Moves cursors; answered with [`Done::Failed`] only when the store fails.
    Acknowledge { cursors: Vec<(PartitionId, Offset)> },
    /// Answered with [`Done::Settled`].
    Settle,
    /// Answered with [`Done::Chain`].
    Chain {
        handle: Handle,
        partition: PartitionId,
        offset: Offset,
    },
}

/// The thread's answers.
#[derive(Debug)]
pub(super) enum Done {
    /// What stands at the offset that was asked for.
    Read { handle: Handle, result: ReadResult },
    /// `None`: the store does not know its history at that offset.
    Chain {
        handle: Handle,
        offset: Offset,
        chain: Option<u64>,
    },
    /// Everything queued before is done.
    Settled,
    /// The session cannot go on.
    Failed(WorkError),
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    /// The store failed; its own failure signal says what happens to the node.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stored bytes could not be packed.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

/// Why the thread could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system refused a thread.
    #[error("uplink thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The encoder refused its level.
    #[error("uplink encoder: {0}")]
    Encoder(#[from] BatchError),
}

/// The way to the thread. It ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    jobs: SyncSender<(Job, mpsc::Sender<Done>)>,
}

/// What the thread needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerConfig {
    /// zstd level of what is sent.
    pub(super) zstd_level: i32,
    /// Most bytes that a stored batch may decompress to.
    pub(super) max_uncompressed_bytes: usize,
}

impl Worker {
    pub(super) fn start(store: Arc<dyn Store>, config: WorkerConfig) -> Result<Self, StartError> {
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let encoders = Encoders {
            zstd: ZstdEncoder::new(config.zstd_level)?,
            none: NoneCodec,
        };
        thread::Builder::new()
            .name("uplink-worker".into())
            .spawn(move || work(&queue, store.as_ref(), config, encoders))?;
        Ok(Self { jobs })
    }

    /// Queues a job. Its answer goes to `done`, which has room for every job of a session.
    /// `Err` when the queue is full: the session is to ask again.
    pub(super) fn submit(&self, job: Job, done: &mpsc::Sender<Done>) -> Result<(), Job> {
        self.jobs
            .try_send((job, done.clone()))
            .map_err(|refused| match refused {
                std::sync::mpsc::TrySendError::Full((job, _))
                | std::sync::mpsc::TrySendError::Disconnected((job, _)) => job,
            })
    }

    /// Ends once everything queued before is done; false when the queue is full.
    pub(super) async fn settle(&self) -> bool {
        let (done, mut settled) = mpsc::channel(1);
        let is_queued = self.submit(Job::Settle, &done).is_ok();
        // the thread holds the only sender, and it goes with the job
        drop(done);
        is_queued && settled.recv().await.is_some()
    }
}

fn work(
    queue: &Receiver<(Job, mpsc::Sender<Done>)>,
    store: &dyn Store,
    config: WorkerConfig,
    mut encoders: Encoders,
) {
    while let Ok((job, done)) = queue.recv() {
        let answer =
            run(job, store, config, &mut encoders).unwrap_or_else(|e| Some(Done::Failed(e)));
        if let Some(answer) = answer {
            // a session that has ended no longer wants its answers
            let _gone = done.blocking_send(answer);
        }
    }
}

struct Encoders {
    zstd: ZstdEncoder,
    none: NoneCodec,
}

impl Encoders {
    fn of(&mut self, codec: u8) -> &mut dyn Encoder {
        if codec == CODEC_ZSTD {
            &mut self.zstd
        } else {
            &mut self.none
        }
    }
}

fn run(
    job: Job,
    store: &dyn Store,
    config: WorkerConfig,
    encoders: &mut Encoders,
) -> Result<Option<Done>, WorkError> {
    Ok(match job {
        Job::Read {
            handle,
            partition,
            from,
            max_bytes,
            codec,
        } => {
            let items = store.read(partition, from, max_bytes)?;
            let limit = config.max_uncompressed_bytes;
            let result = assemble(items, max_bytes, limit, encoders.of(codec))?;
            Some(Done::Read { handle, result })
        }
        Job::Acknowledge { cursors } => {
            for (partition, next) in cursors {
                store.acknowledge(partition, next)?;
            }
            None
        }
        Job::Settle => Some(Done::Settled),
        Job::Chain {
            handle,
            partition,
            offset,
        } => {
            let chain = store.chain_at(partition, offset)?;
            Some(Done::Chain {
                handle,
                offset,
                chain,
            })
        }
    })
}
