//! A simulated site: the link protocol over QUIC with logs whose payloads are in scripts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use quinn::{Connection, ReadError};
use shared::batch::{self, CODEC_MODELLED};
use shared::class::{Class, ClassRules};
use shared::ids::{Incarnation, TopicName, TopicPartition};
use shared::link::{Begin, ReadResult, Sender, SenderConfig, SenderOutput};
use shared::wire::{ALPN, Anchor, Handle, LogRange};
use system_tests::hub::Identity;
use system_tests::rogue;
use tokio::sync::watch;

use super::script::{Line, Memory, Script};
use crate::fleet;

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How far sites are to go: in which of their sessions, and to how many batches of each log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Goal {
    pub(super) session: u32,
    pub(super) batches: usize,
}

/// One log of a site.
pub(super) struct Log {
    name: TopicPartition,
    script: Arc<Script>,
    line: Option<Arc<Line>>,
    acked: u64,
    /// The state that the site would have on its disk.
    settled: Option<Anchor>,
    /// Counts when it begins anew with something before.
    restarts: Arc<AtomicU64>,
}

impl Log {
    pub(super) fn new(
        topic: &str,
        partition: usize,
        script: &Arc<Script>,
        restarts: &Arc<AtomicU64>,
    ) -> Result<Self> {
        Ok(Self {
            name: TopicPartition {
                topic: TopicName::new(topic)?,
                partition: u32::try_from(partition)?,
                track: shared::ids::Track::First,
            },
            script: Arc::clone(script),
            line: None,
            acked: 0,
            settled: None,
            restarts: Arc::clone(restarts),
        })
    }

    fn read(&mut self, from: u64, begin: Option<Begin>, is_modelled: bool) -> Result<ReadResult> {
        let line = match (begin, &self.line) {
            (None, Some(line)) => Arc::clone(line),
            (begin, _) => {
                let memory = match begin {
                    _ if !is_modelled => Memory::None,
                    Some(Begin::Anchor(anchor)) => Memory::Anchor(anchor.position),
                    Some(Begin::Fresh) | None => Memory::Fresh,
                };
                self.script.line(from, memory)?
            }
        };
        if begin == Some(Begin::Fresh) && from > 0 {
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
        let (next_offset, packed) = self.script.payload(&line, from)?;
        self.line = Some(line);
        Ok(ReadResult::Records {
            base_offset: from,
            next_offset,
            chain: next_offset,
            is_chain_known: false,
            header: packed.header,
            payload: packed.payload,
        })
    }

    fn acknowledged(&mut self, next_offset: u64) {
        self.acked = next_offset;
        let anchor = self
            .line
            .as_ref()
            .and_then(|line| line.anchor_at(next_offset));
        self.settled = anchor.or(self.settled);
    }
}

/// A site and its logs; a log's handle is its place.
pub(super) struct Site {
    hub: SocketAddr,
    config: quinn::ClientConfig,
    logs: Vec<Log>,
    sent: Arc<AtomicU64>,
}

impl Site {
    pub(super) fn new(
        hub: SocketAddr,
        identity: &Identity,
        logs: Vec<Log>,
        sent: &Arc<AtomicU64>,
    ) -> Result<Self> {
        Ok(Self {
            hub,
            config: rogue::client_config(identity, true, ALPN)?,
            logs,
            sent: Arc::clone(sent),
        })
    }

    /// One session after the other, as the goals say.
    pub(super) async fn run(
        mut self,
        mut goals: watch::Receiver<Goal>,
        reached: watch::Sender<Option<Goal>>,
    ) -> Result<()> {
        loop {
            let connection = fleet::connect(self.hub, self.config.clone()).await?;
            self.session(&connection, &mut goals, &reached).await?;
            connection.close(0_u32.into(), b"");
        }
    }

    /// Until the goal is in another session.
    async fn session(
        &mut self,
        connection: &Connection,
        goals: &mut watch::Receiver<Goal>,
        reached: &watch::Sender<Option<Goal>>,
    ) -> Result<()> {
        let started = Instant::now();
        let (mut control, mut answers) = connection.open_bi().await?;
        let mut goal = *goals.borrow_and_update();
        let mut sender = self.sender(goal);
        sender.start(started.elapsed());
        let (mut is_modelled, mut is_open) = (false, false);
        let mut buffer = vec![0; 16 << 10];
        loop {
            while let Some(output) = sender.poll_output() {
                match output {
                    SenderOutput::Control(bytes) => {
                        self.count(bytes.len() as u64);
                        control.write_chunk(bytes).await?;
                    }
                    SenderOutput::Data(stream) => {
                        self.count(stream.len());
                        fleet::send(connection, stream).await?;
                    }
                    SenderOutput::Read {
                        handle,
                        from,
                        begin,
                        ..
                    } => {
                        let read = self.log(handle)?.read(from, begin, is_modelled)?;
                        sender.handle_read(handle, read);
                    }
                    SenderOutput::Chain { handle, offset } => {
                        sender.handle_chain(handle, offset, Some(offset));
                    }
                    SenderOutput::Acked {
                        handle,
                        next_offset,
                    } => self.log(handle)?.acknowledged(next_offset),
                    SenderOutput::Established { codecs, .. } => {
                        is_modelled = codecs.contains(&CODEC_MODELLED);
                        is_open = true;
                    }
                    SenderOutput::Policy(_) | SenderOutput::Window(_) => {}
                    other @ (SenderOutput::Missing(_)
                    | SenderOutput::HistoryMismatch { .. }
                    | SenderOutput::Denied { .. }
                    | SenderOutput::Admitted { .. }
                    | SenderOutput::TooLarge { .. }
                    | SenderOutput::Close(_)) => bail!("a session did not go on: {other:?}"),
                }
            }
            if is_open && self.is_at(goal) {
                reached.send_replace(Some(goal));
            }
            let wake = sender.poll_timeout().context("the session is over")?;
            tokio::select! {
                // `read` is cancel-safe: it takes nothing before it returns
                read = answers.read(&mut buffer) => {
                    let len = read.map_err(ended)?.context("the hub ended the session")?;
                    sender.handle_control(&buffer[..len], started.elapsed());
                }
                changed = goals.changed() => {
                    changed?;
                    let next = *goals.borrow_and_update();
                    if next.session != goal.session {
                        return Ok(());
                    }
                    goal = next;
                    for (handle, log) in (0..).zip(&self.logs) {
                        sender.log_grew(Handle(handle), log.script.end(goal.batches), started.elapsed());
                    }
                }
                () = tokio::time::sleep_until((started + wake).into()) => {
                    sender.handle_timeout(started.elapsed());
                }
            }
        }
    }

    fn sender(&self, goal: Goal) -> Sender {
        let mut sender = Sender::new(SenderConfig {
            nonce: u64::from(goal.session),
            incarnation: Incarnation(1),
            software: "simulated site".to_owned(),
            codecs: batch::supported_codecs(),
            max_reads: 4,
            max_read_bytes: 256 << 10,
            classes: ClassRules::default(),
            handshake_timeout: ANSWER_LIMIT,
        });
        for (handle, log) in (0..).zip(&self.logs) {
            let range = LogRange {
                origin: 0,
                start: 0,
                end: log.script.end(goal.batches),
            };
            sender.add_log(
                Handle(handle),
                log.name.clone(),
                Class::Normal,
                range,
                log.acked,
            );
            sender.offer_anchors(Handle(handle), log.settled.into_iter().collect());
        }
        sender
    }

    fn log(&mut self, handle: Handle) -> Result<&mut Log> {
        let log = self.logs.get_mut(usize::try_from(handle.0)?);
        log.context("a log that was not declared")
    }

    fn is_at(&self, goal: Goal) -> bool {
        let is_there = |log: &Log| log.acked >= log.script.end(goal.batches);
        self.logs.iter().all(is_there)
    }

    fn count(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn ended(error: ReadError) -> anyhow::Error {
    anyhow::Error::new(error).context("read the hub's answers")
}
