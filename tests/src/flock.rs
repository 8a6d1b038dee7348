//! Many sites in one process: real QUIC connections and the site's half of the link, stores in memory.
//!
//! Each site has one log of numbered records, keeps what is not acknowledged, and dials again as a site
//! does, with backoff or when the hub said. Its records name the site and their offset, so that the
//! central topic tells whether each came once and in order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use quinn::{Connection, Endpoint, VarInt};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shared::batch::{Block, BlockWriter, NoneCodec, Outgoing};
use shared::class::{Class, ClassRules};
use shared::ids::{Incarnation, TopicName, TopicPartition};
use shared::link::{Close, DataStream, ReadResult, Sender, SenderConfig, SenderOutput};
use shared::record::put_record;
use shared::retry::{Retry, RetryConfig};
use shared::wire::{ALPN, Code, Handle, LogRange};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::central::Committed;
use crate::hub::Certs;
use crate::{rogue, wait};

const LOG: Handle = Handle(1);
/// What a site may take to dial, and to be welcomed.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
const RETRY: RetryConfig = RetryConfig {
    min: Duration::from_millis(200),
    max: Duration::from_secs(5),
};
/// What a site reads at once.
const READ_BYTES: u32 = 64 << 10;

/// The sites.
#[derive(Debug)]
pub struct Flock {
    runtime: Runtime,
    endpoint: Endpoint,
    members: Vec<Arc<Member>>,
    tasks: JoinSet<()>,
}

/// One site.
#[derive(Debug)]
pub struct Member {
    /// As its certificate says.
    pub name: String,
    value_bytes: usize,
    end: watch::Sender<u64>,
    acked: AtomicU64,
    /// Sessions that opened, those that are open, and times that the hub told when to come back.
    opened: AtomicU64,
    open: AtomicU64,
    told_later: AtomicU64,
    times: Mutex<Times>,
}

/// When records were written, and how long they took.
#[derive(Debug, Default)]
struct Times {
    waiting: VecDeque<(u64, Instant)>,
    taken: Vec<Duration>,
}

impl Flock {
    /// Sites `<prefix>-000` and on, with logs of `topic` and values of about so many bytes. They dial at
    /// once and have nothing to send yet.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn start(
        hub: SocketAddr,
        certs: &Certs,
        prefix: &str,
        sites: usize,
        topic: &str,
        value_bytes: usize,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let endpoint = {
            let _guard = runtime.enter();
            Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?
        };
        let log = TopicPartition {
            topic: TopicName::new(topic)?,
            partition: 0,
            track: shared::ids::Track::First,
        };
        let (mut members, mut tasks) = (Vec::new(), JoinSet::new());
        for number in 0..sites {
            let name = format!("{prefix}-{number:03}");
            let config = rogue::client_config(&certs.issue(&name)?, true, ALPN)?;
            let member = Arc::new(Member {
                name,
                value_bytes,
                end: watch::Sender::new(0),
                acked: AtomicU64::new(0),
                opened: AtomicU64::new(0),
                open: AtomicU64::new(0),
                told_later: AtomicU64::new(0),
                times: Mutex::default(),
            });
            members.push(Arc::clone(&member));
            let dialler = Dialler {
                endpoint: endpoint.clone(),
                config,
                hub,
                log: log.clone(),
                member,
            };
            tasks.spawn_on(dialler.run(), runtime.handle());
        }
        Ok(Self {
            runtime,
            endpoint,
            members,
            tasks,
        })
    }

    /// The sites.
    #[must_use]
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Every site writes so many records more.
    pub fn append(&self, records: u64) {
        for member in &self.members {
            member.append(records);
        }
    }

    /// Waits until everything that was written is acknowledged.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_acked(&self, limit: Duration) -> Result<()> {
        let is_done = |member: &&Arc<Member>| member.acked() == member.written();
        let missing = || {
            self.members
                .iter()
                .filter(|member| !is_done(member))
                .count()
        };
        let all = wait::until_true("all sites have their acknowledgements", limit, || {
            missing() == 0
        });
        all.with_context(|| format!("{} sites have not", missing()))
    }

    /// Waits until every site has opened a session after `before`, as [`Flock::opened`] gave it.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_back(&self, before: &[u64], limit: Duration) -> Result<()> {
        let missing = || {
            let pairs = self.members.iter().zip(before);
            pairs
                .filter(|(member, before)| member.opened.load(Ordering::Relaxed) <= **before)
                .count()
        };
        let all = wait::until_true("all sites are back", limit, || missing() == 0);
        all.with_context(|| format!("{} sites are not", missing()))
    }

    /// How often each site has opened a session.
    #[must_use]
    pub fn opened(&self) -> Vec<u64> {
        let opened = |member: &Arc<Member>| member.opened.load(Ordering::Relaxed);
        self.members.iter().map(opened).collect()
    }

    /// Sites with an open session.
    #[must_use]
    pub fn open(&self) -> u64 {
        let open = |member: &Arc<Member>| member.open.load(Ordering::Relaxed);
        self.members.iter().map(open).sum()
    }

    /// How often the hub told a site when to come back.
    #[must_use]
    pub fn told_later(&self) -> u64 {
        let told = |member: &Arc<Member>| member.told_later.load(Ordering::Relaxed);
        self.members.iter().map(told).sum()
    }

    /// Records that all sites have written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.members.iter().map(|member| member.written()).sum()
    }

    /// Fails unless the central records are exactly those that the sites wrote, each site's in order.
    ///
    /// # Errors
    /// Names the first record that is missing, twice, or out of order.
    pub fn check(&self, seen: &[Committed]) -> Result<()> {
        let mut next: BTreeMap<&str, u64> = BTreeMap::new();
        for record in seen {
            let text = std::str::from_utf8(record.payload.as_deref().unwrap_or_default())?;
            let mut words = text.split(' ');
            let (site, offset) = (words.next().unwrap_or_default(), words.next());
            let offset: u64 = offset.context("a record of somebody else")?.parse()?;
            let next = next.entry(site).or_default();
            ensure!(
                *next == offset,
                "{site}: {offset} comes after {next} records"
            );
            *next += 1;
        }
        for member in &self.members {
            let found = next.get(member.name.as_str()).copied().unwrap_or_default();
            let written = member.written();
            ensure!(found == written, "{}: {found} of {written}", member.name);
        }
        Ok(())
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        self.tasks.abort_all();
        self.endpoint.close(VarInt::from_u32(0), b"");
        let closed =
            async { tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await };
        let _late = self.runtime.block_on(closed);
    }
}

impl Member {
    /// Writes so many records more.
    pub fn append(&self, records: u64) {
        let end = self.written() + records;
        self.times().waiting.push_back((end, Instant::now()));
        self.end.send_replace(end);
    }

    /// Records that it has written.
    #[must_use]
    pub fn written(&self) -> u64 {
        *self.end.borrow()
    }

    /// Records that the hub has acknowledged.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// From each [`Member::append`] to its acknowledgement.
    #[must_use]
    pub fn latencies(&self) -> Vec<Duration> {
        self.times().taken.clone()
    }

    fn acknowledge(&self, next_offset: u64) {
        self.acked.fetch_max(next_offset, Ordering::Relaxed);
        let mut times = self.times();
        while let Some((end, at)) = times.waiting.front().copied()
            && end <= next_offset
        {
            times.waiting.pop_front();
            times.taken.push(at.elapsed());
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().expect("no holder panics")
    }

    /// A batch that begins at `from`: the same bytes whenever it is read.
    fn read(&self, from: u64, max_bytes: u32) -> Result<ReadResult> {
        let room = (max_bytes as usize / (self.value_bytes + 64)).max(1) as u64;
        let next_offset = self.written().min(from + room);
        if next_offset <= from {
            return Ok(ReadResult::Nothing);
        }
        let mut records = Vec::new();
        let key = self.name.as_bytes();
        for offset in from..next_offset {
            let value = self.value(offset);
            let delta = u32::try_from(offset - from)?;
            put_record(
                &mut records,
                delta,
                0,
                Some(key),
                Some(value.as_bytes()),
                &[],
            );
        }
        let mut writer = BlockWriter::default();
        writer.push(&Block {
            base_offset: from,
            count: u32::try_from(next_offset - from)?,
            base_timestamp_ms: shared::time::wall_ms(),
            is_log_append_time: false,
            records: records.into(),
        })?;
        let outgoing = Outgoing {
            raw: &writer.finish(),
            next_offset,
            chain: chain(next_offset),
        };
        let packed = outgoing.pack(&mut NoneCodec)?;
        Ok(ReadResult::Records {
            base_offset: from,
            next_offset,
            chain: outgoing.chain,
            is_chain_known: false,
            header: packed.header,
            payload: packed.payload,
        })
    }

    fn value(&self, offset: u64) -> String {
        let mut value = format!("{} {offset} ", self.name);
        let mut random = StdRng::seed_from_u64(offset);
        while value.len() < self.value_bytes {
            write!(value, "{:016x}", random.random::<u64>()).expect("a string takes it");
        }
        value
    }
}

/// Any function of the offset does as a history.
fn chain(offset: u64) -> u64 {
    offset.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Keeps one site connected.
struct Dialler {
    endpoint: Endpoint,
    config: quinn::ClientConfig,
    hub: SocketAddr,
    log: TopicPartition,
    member: Arc<Member>,
}

impl Dialler {
    async fn run(self) {
        let mut retry = Retry::new(RETRY);
        loop {
            if let Ok(connection) = self.dial().await {
                let before = self.member.opened.load(Ordering::Relaxed);
                let ended = self.session(&connection).await;
                let is_open = self.member.opened.load(Ordering::Relaxed) > before;
                if is_open {
                    self.member.open.store(0, Ordering::Relaxed);
                    retry.reset();
                }
                if let Ok(Close {
                    retry_after: Some(after),
                    ..
                }) = ended
                {
                    self.member.told_later.fetch_add(1, Ordering::Relaxed);
                    retry.hint(after);
                }
                connection.close(VarInt::from_u32(0), b"");
            }
            let wait = retry.next_delay(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    async fn dial(&self) -> Result<Connection> {
        let config = self.config.clone();
        let connecting = self.endpoint.connect_with(config, self.hub, "localhost")?;
        Ok(tokio::time::timeout(ANSWER_LIMIT, connecting).await??)
    }

    async fn session(&self, connection: &Connection) -> Result<Close> {
        let member = &self.member;
        let started = Instant::now();
        let (mut control, mut answers) = connection.open_bi().await?;
        let mut end = member.end.subscribe();
        let mut sender = Sender::new(SenderConfig {
            nonce: 1,
            incarnation: Incarnation(1),
            software: "simulated site".to_owned(),
            codecs: Vec::new(),
            max_reads: 4,
            max_read_bytes: READ_BYTES,
            classes: ClassRules::default(),
            handshake_timeout: ANSWER_LIMIT,
        });
        let range = LogRange {
            origin: 0,
            start: 0,
            end: *end.borrow_and_update(),
        };
        sender.add_log(LOG, self.log.clone(), Class::Normal, range, member.acked());
        sender.start(started.elapsed());
        let mut buffer = vec![0; 16 << 10];
        // a stream that the hub holds back must not hold back pings; credit bounds them
        let mut streams = JoinSet::new();
        loop {
            while let Some(output) = sender.poll_output() {
                match output {
                    SenderOutput::Control(bytes) => control.write_chunk(bytes).await?,
                    SenderOutput::Data(stream) => {
                        streams.spawn(send(connection.clone(), stream));
                    }
                    SenderOutput::Read {
                        from, max_bytes, ..
                    } => sender.handle_read(LOG, member.read(from, max_bytes)?),
                    SenderOutput::Acked { next_offset, .. } => member.acknowledge(next_offset),
                    SenderOutput::Chain { offset, .. } => {
                        sender.handle_chain(LOG, offset, Some(chain(offset)));
                    }
                    SenderOutput::Established { .. } => {
                        member.opened.fetch_add(1, Ordering::Relaxed);
                        member.open.store(1, Ordering::Relaxed);
                    }
                    SenderOutput::Policy(_)
                    | SenderOutput::Missing(_)
                    | SenderOutput::Window(_) => {}
                    SenderOutput::Close(close) => return Ok(close),
                    other @ (SenderOutput::HistoryMismatch { .. }
                    | SenderOutput::Denied { .. }
                    | SenderOutput::Admitted { .. }
                    | SenderOutput::TooLarge { .. }) => {
                        sender.close(Code::Internal, None, &format!("{other:?}"));
                    }
                }
            }
            let wake = sender.poll_timeout().context("the session is over")?;
            tokio::select! {
                // `read` is cancel-safe: it takes nothing before it returns
                read = answers.read(&mut buffer) => {
                    let len = read?.context("the hub ended the session")?;
                    sender.handle_control(&buffer[..len], started.elapsed());
                }
                Some(sent) = streams.join_next() => sent??,
                grown = end.changed() => {
                    grown?;
                    sender.log_grew(LOG, *end.borrow_and_update(), started.elapsed());
                }
                () = tokio::time::sleep_until((started + wake).into()) => {
                    sender.handle_timeout(started.elapsed());
                }
            }
        }
    }
}

async fn send(connection: Connection, stream: DataStream) -> Result<()> {
    let mut data = connection.open_uni().await?;
    data.write_chunk(stream.head).await?;
    data.write_chunk(stream.payload).await?;
    data.finish()?;
    Ok(())
}
