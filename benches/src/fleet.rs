//! Simulated sites: the site's half of the link protocol over QUIC, without a store behind it. Their
//! records were packed once, so that the hub's work is measured and not theirs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use quinn::{Connection, Endpoint};
use shared::batch::{self, Block, BlockWriter, Outgoing, ZstdEncoder};
use shared::class::{Class, ClassRules};
use shared::ids::{Incarnation, TopicName, TopicPartition};
use shared::link::{DataStream, ReadResult, Sender, SenderConfig, SenderOutput};
use shared::record::put_record;
use shared::wire::{ALPN, Handle, LogRange, RecordsHeader};
use system_tests::hub::Certs;
use system_tests::rogue;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Records of one data stream: about the 256 KiB that a site aims at.
pub const BATCH: u64 = 1_000;

const LOG: Handle = Handle(1);
/// The level of a site that is told nothing.
const ZSTD_LEVEL: i32 = 3;
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// One batch, ready to be sent under any offset.
#[derive(Debug)]
struct Batch {
    header: RecordsHeader,
    crc: u32,
    payload: Bytes,
}

/// Sites with an open session and one log each.
#[derive(Debug)]
pub struct Fleet {
    runtime: Runtime,
    goal: watch::Sender<u64>,
    acked: Vec<watch::Receiver<u64>>,
    tasks: JoinSet<Result<()>>,
}

impl Fleet {
    /// Connects sites that have logs of `topic`, whose batches hold these keys and values.
    ///
    /// # Errors
    /// When a site cannot connect.
    pub fn start<'a>(
        hub: SocketAddr,
        certs: &Certs,
        sites: u32,
        topic: &str,
        records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let batch = Arc::new(pack(records)?);
        let (goal, goals) = watch::channel(0);
        let (mut acked, mut tasks) = (Vec::new(), JoinSet::new());
        for number in 0..sites {
            let identity = certs.issue(&format!("site-{number:02}"))?;
            let config = rogue::client_config(&identity, true, ALPN)?;
            let log = TopicPartition {
                topic: TopicName::new(topic)?,
                partition: 0,
                track: shared::ids::Track::First,
            };
            let connection = runtime.block_on(connect(hub, config))?;
            let (acked_in, acked_out) = watch::channel(0);
            acked.push(acked_out);
            let session = session(connection, log, Arc::clone(&batch), goals.clone(), acked_in);
            tasks.spawn_on(session, runtime.handle());
        }
        Ok(Self {
            runtime,
            goal,
            acked,
            tasks,
        })
    }

    /// Lets each site send until its log has so many records, and waits until all are acknowledged.
    ///
    /// # Errors
    /// When a session ends.
    pub fn send_up_to(&mut self, records_per_site: u64) -> Result<()> {
        self.goal.send_replace(records_per_site);
        let (acked, tasks) = (&mut self.acked, &mut self.tasks);
        self.runtime.block_on(async {
            for acked in acked {
                tokio::select! {
                    done = acked.wait_for(|acked| *acked >= records_per_site) => drop(done?),
                    Some(ended) = tasks.join_next() => ended??,
                }
            }
            Ok(())
        })
    }
}

fn pack<'a>(records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Batch> {
    let mut bytes = Vec::new();
    let mut count = 0;
    for (key, value) in records {
        put_record(&mut bytes, count, 0, Some(key), Some(value), &[]);
        count += 1;
    }
    let mut writer = BlockWriter::default();
    writer.push(&Block {
        base_offset: 0,
        count,
        base_timestamp_ms: shared::time::wall_ms(),
        is_log_append_time: false,
        records: bytes.into(),
    })?;
    let raw = writer.finish();
    let outgoing = Outgoing {
        raw: &raw,
        next_offset: 0,
        chain: 0,
    };
    let packed = outgoing.pack(&mut ZstdEncoder::new(ZSTD_LEVEL)?)?;
    Ok(Batch {
        header: packed.header,
        crc: crc32c::crc32c(&raw),
        payload: packed.payload,
    })
}

pub(crate) async fn connect(hub: SocketAddr, config: quinn::ClientConfig) -> Result<Connection> {
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    endpoint.set_default_client_config(config);
    let connecting = endpoint.connect(hub, "localhost")?;
    Ok(tokio::time::timeout(ANSWER_LIMIT, connecting).await??)
}

/// A site whose store grows to what `goal` says and has every batch in memory.
async fn session(
    connection: Connection,
    log: TopicPartition,
    batch: Arc<Batch>,
    mut goal: watch::Receiver<u64>,
    acked: watch::Sender<u64>,
) -> Result<()> {
    let started = Instant::now();
    let (mut control, mut answers) = connection.open_bi().await?;
    let mut sender = Sender::new(SenderConfig {
        nonce: 1,
        incarnation: Incarnation(1),
        software: "simulated site".to_owned(),
        codecs: batch::supported_codecs(),
        max_reads: 4,
        max_read_bytes: 256 << 10,
        classes: ClassRules::default(),
        handshake_timeout: ANSWER_LIMIT,
    });
    let range = LogRange {
        origin: 0,
        start: 0,
        end: *goal.borrow_and_update(),
    };
    sender.add_log(LOG, log, Class::Normal, range, 0);
    sender.start(started.elapsed());
    let mut buffer = vec![0; 16 << 10];
    loop {
        while let Some(output) = sender.poll_output() {
            match output {
                SenderOutput::Control(bytes) => control.write_chunk(bytes).await?,
                SenderOutput::Data(stream) => send(&connection, stream).await?,
                SenderOutput::Read { from, .. } => sender.handle_read(LOG, batch.at(from)),
                SenderOutput::Acked { next_offset, .. } => {
                    acked.send_replace(next_offset);
                }
                SenderOutput::Established { .. }
                | SenderOutput::Policy(_)
                | SenderOutput::Missing(_)
                | SenderOutput::Window(_) => {}
                other @ (SenderOutput::Chain { .. }
                | SenderOutput::HistoryMismatch { .. }
                | SenderOutput::Denied { .. }
                | SenderOutput::Admitted { .. }
                | SenderOutput::TooLarge { .. }
                | SenderOutput::Close(_)) => bail!("a session did not go on: {other:?}"),
            }
        }
        let wake = sender.poll_timeout().context("the session is over")?;
        tokio::select! {
            // `read` is cancel-safe: it takes nothing before it returns
            read = answers.read(&mut buffer) => {
                let len = read?.context("the hub ended the session")?;
                sender.handle_control(&buffer[..len], started.elapsed());
            }
            grown = goal.changed() => {
                grown?;
                sender.log_grew(LOG, *goal.borrow_and_update(), started.elapsed());
            }
            () = tokio::time::sleep_until((started + wake).into()) => {
                sender.handle_timeout(started.elapsed());
            }
        }
    }
}

pub(crate) async fn send(connection: &Connection, stream: DataStream) -> Result<()> {
    let mut data = connection.open_uni().await?;
    data.write_chunk(stream.head).await?;
    data.write_chunk(stream.payload).await?;
    data.finish()?;
    Ok(())
}

impl Batch {
    fn at(&self, from: u64) -> ReadResult {
        let next_offset = from + BATCH;
        ReadResult::Records {
            base_offset: from,
            next_offset,
            chain: next_offset,
            is_chain_known: false,
            header: RecordsHeader {
                check: batch::seal_crc(self.crc, next_offset, next_offset),
                ..self.header
            },
            payload: self.payload.clone(),
        }
    }
}
