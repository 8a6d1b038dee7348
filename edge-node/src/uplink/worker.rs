//! The uplink's thread for what may block: reading and packing batches, moving cursors, looking up
//! histories. One thread, so that one encoder's memory is enough and cursors move in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;

use shared::batch::{BatchError, CODEC_ZSTD, NoneCodec, Outgoing, Packed, ZstdEncoder, remembers};
use shared::dedup::ChunkId;
use shared::ids::{Offset, Track};
use shared::link::{Begin, ReadResult};
use shared::wire::{GAP_OTHER_TRACK, Handle};
use tokio::sync::mpsc;
use tracing::debug;

use super::batcher::{AssembleError, Assembled, assemble};
use super::chains::{AnchorBook, Chains, CodecBytes, Wish};
use super::choice::Choice;
use super::chunks::Chunks;
use super::work::thread_time;
use crate::store::{PartitionId, Store, StoreError, TrackView};

/// Jobs that may wait for the thread. A session never has more reads under way than its link allows.
const QUEUE_LEN: usize = 256;

/// What the thread is asked to do for a session.
#[derive(Debug)]
pub(super) enum Job {
    /// Answered with [`Done::Read`].
    Read {
        handle: Handle,
        from: Offset,
        max_bytes: usize,
        /// The chain at `from`, as the hub will know it; 0: it will not.
        chain: u64,
        /// What the codec's memory of the log is to be set to first.
        begin: Option<Begin>,
        /// What the link carries, in bytes a second, if it is known.
        link: Option<u64>,
        /// Codecs of the session.
        codecs: Arc<[u8]>,
    },
    /// The hub does not hold these chunks. Not answered.
    Missing { ids: Vec<ChunkId> },
    /// Moves cursors; answered with [`Done::Failed`] only when the store fails.
    Acknowledge { cursors: Vec<(Handle, Offset)> },
    /// Lets new records of a partition pass its backlog. Answered with [`Done::Failed`] only when the store fails;
    /// the store's changes tell of it.
    Split { partition: PartitionId },
    /// Answered with [`Done::Settled`].
    Settle,
    /// Answered with [`Done::Chain`].
    Chain { handle: Handle, offset: Offset },
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
    book: AnchorBook,
}

/// What the thread needs to know.
#[derive(Debug, Clone)]
pub(super) struct WorkerConfig {
    /// Where states of codecs are kept.
    pub(super) codec_directory: PathBuf,
    /// The codec that is set for good.
    pub(super) fixed_codec: Option<u8>,
    /// Bytes that codecs may remember, in memory and as much on disk.
    pub(super) codec_memory: usize,
    /// Where what they take is counted.
    pub(super) counted: Arc<CodecBytes>,
    /// Bytes of chunks that the hub is taken to keep.
    pub(super) chunk_bytes: u64,
    /// zstd level of what is sent.
    pub(super) zstd_level: i32,
    /// Most bytes that a stored batch may decompress to.
    pub(super) max_uncompressed_bytes: usize,
}

impl Worker {
    pub(super) fn start(store: Arc<dyn Store>, config: WorkerConfig) -> Result<Self, StartError> {
        let (jobs, queue) = sync_channel(QUEUE_LEN);
        let book = AnchorBook::default();
        let encoders = Encoders::open(&config, book.clone())?;
        thread::Builder::new()
            .name("uplink-worker".into())
            .spawn(move || work(&queue, store.as_ref(), &config, encoders))?;
        Ok(Self { jobs, book })
    }

    /// The saved states of codecs, to offer to a hub.
    pub(super) fn anchors(&self) -> &AnchorBook {
        &self.book
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
    config: &WorkerConfig,
    mut encoders: Encoders,
) {
    loop {
        // ends when the last handle is gone, or at the time
        let next = match encoders.chains.chunks_due() {
            Some(wait) => queue.recv_timeout(wait),
            None => queue.recv().map_err(RecvTimeoutError::from),
        };
        let (job, done) = match next {
            Ok(next) => next,
            Err(RecvTimeoutError::Timeout) => {
                encoders.chains.write_chunks();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let answer =
            run(job, store, config, &mut encoders).unwrap_or_else(|e| Some(Done::Failed(e)));
        if let Some(answer) = answer {
            // a session that has ended no longer wants its answers
            let _gone = done.blocking_send(answer);
        }
    }
}

/// What the thread encodes with.
pub(super) struct Encoders {
    zstd: ZstdEncoder,
    chains: Chains,
    choice: Choice,
}

impl Encoders {
    pub(super) fn open(config: &WorkerConfig, book: AnchorBook) -> Result<Self, BatchError> {
        let chunks = Chunks::open(
            config.codec_directory.join("chunks.index"),
            config.chunk_bytes,
            config.zstd_level,
        );
        Ok(Self {
            zstd: ZstdEncoder::new(config.zstd_level)?,
            chains: Chains::open(
                config.codec_directory.clone(),
                config.codec_memory,
                config.zstd_level,
                book,
                chunks,
                Arc::clone(&config.counted),
            ),
            choice: Choice::new(config.fixed_codec),
        })
    }

    fn pack(
        &mut self,
        handle: Handle,
        codec: u8,
        outgoing: &Outgoing<'_>,
    ) -> Result<Packed, BatchError> {
        let started = shared::time::now();
        let before = thread_time();
        let packed = if remembers(codec) {
            self.chains.pack(handle, codec, outgoing)
        } else if codec == CODEC_ZSTD {
            outgoing.pack(&mut self.zstd)
        } else {
            outgoing.pack(&mut NoneCodec)
        }?;
        let spent = shared::time::now().saturating_sub(started);
        let worked = before.and_then(|before| Some(thread_time()?.saturating_sub(before)));
        let (raw, encoded) = (outgoing.raw.len(), packed.payload.len());
        self.choice
            .observe(codec, raw, encoded, spent, worked.unwrap_or(spent));
        Ok(packed)
    }
}

/// Does one job; the answer, if it has one.
pub(super) fn run(
    job: Job,
    store: &dyn Store,
    config: &WorkerConfig,
    encoders: &mut Encoders,
) -> Result<Option<Done>, WorkError> {
    Ok(match job {
        Job::Read {
            handle,
            from,
            max_bytes,
            chain,
            begin,
            link,
            codecs,
        } => {
            if let Some(begin) = begin {
                encoders.chains.begin(handle, begin);
            }
            let (partition, track) = log_of(handle);
            let tracks = store.range(partition)?.tracks;
            let items = match tracks.view(track, from) {
                TrackView::Own => store.read(partition, from, max_bytes)?,
                TrackView::Done => Vec::new(),
                TrackView::Other(to) => {
                    let result = other_track(store, partition, from, to)?;
                    return Ok(Some(Done::Read { handle, result }));
                }
            };
            let limit = config.max_uncompressed_bytes;
            let result = match assemble(items, max_bytes, limit, chain)? {
                Assembled::Other(result) => result,
                Assembled::Records {
                    raw,
                    base_offset,
                    next_offset,
                    chain,
                    is_chain_known,
                    is_backlog,
                } => {
                    let outgoing = Outgoing {
                        raw: &raw,
                        next_offset,
                        chain,
                    };
                    let records = next_offset - base_offset;
                    // what the hub lets in may be less than what waits
                    let (range, _) = store.range(partition)?.of_track(track);
                    let waiting = range.end.saturating_sub(next_offset);
                    let is_backlog = is_backlog || waiting > records;
                    let now = shared::time::now();
                    let codec = encoders
                        .choice
                        .pick(&codecs, raw.len(), is_backlog, link, now);
                    let wish = Wish {
                        codec,
                        allowed: &codecs,
                        raw_len: raw.len(),
                        records,
                    };
                    let codec = encoders.chains.choose(handle, &wish);
                    let packed = encoders.pack(handle, codec, &outgoing);
                    let packed = packed.map_err(AssembleError::Codec)?;
                    ReadResult::Records {
                        base_offset,
                        next_offset,
                        chain,
                        is_chain_known,
                        header: packed.header,
                        payload: packed.payload,
                    }
                }
            };
            Some(Done::Read { handle, result })
        }
        Job::Acknowledge { cursors } => {
            for (handle, next) in cursors {
                let (partition, track) = log_of(handle);
                store.acknowledge(partition, track, next)?;
                encoders.chains.acknowledged(handle, next);
            }
            None
        }
        Job::Split { partition } => {
            if store.split(partition)? {
                debug!(partition = partition.0, "New records pass the backlog");
            }
            None
        }
        Job::Missing { ids } => {
            encoders.chains.chunks().missing(&ids);
            None
        }
        Job::Settle => {
            encoders.chains.write_chunks();
            Some(Done::Settled)
        }
        Job::Chain { handle, offset } => {
            let (partition, _) = log_of(handle);
            let chain = store.chain_at(partition, offset)?;
            Some(Done::Chain {
                handle,
                offset,
                chain,
            })
        }
    })
}

/// What the partition's other track has, as a gap of this one.
fn other_track(
    store: &dyn Store,
    partition: PartitionId,
    from: Offset,
    to: Offset,
) -> Result<ReadResult, StoreError> {
    let chain = store.chain_at(partition, to)?;
    Ok(chain.map_or(ReadResult::Nothing, |chain| ReadResult::Gap {
        from,
        to,
        reason: GAP_OTHER_TRACK,
        chain,
    }))
}

/// A track's handle: the same in every session. Fewer than 2^31 partitions are ever created; each takes a sync.
pub(super) const fn handle_of(partition: PartitionId, track: Track) -> Handle {
    match track {
        Track::First => Handle(partition.0 << 1),
        Track::Second => Handle((partition.0 << 1) | 1),
    }
}

/// Whose handle it is.
pub(super) const fn log_of(handle: Handle) -> (PartitionId, Track) {
    let track = if handle.0 & 1 == 0 {
        Track::First
    } else {
        Track::Second
    };
    (PartitionId(handle.0 >> 1), track)
}
