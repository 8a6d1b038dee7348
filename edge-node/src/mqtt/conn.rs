//! One client's connection: a thin loop around a session.
//!
//! ```text
//!            ┌───────── what came ─────────┐
//! socket ───►│ frame ─► decode ─► carry out│───► log, sessions
//!            └─────────────────────────────┘
//!            ┌───────── what goes ─────────┐
//! socket ◄───│ buffer ◄─ acknowledgements, │◄─── syncs, in the order of the publishes
//!            │           deliveries        │◄─── the session's queue
//!            └─────────────────────────────┘
//! ```
//! One task does both, and neither waits for the other: a client that publishes and does not read is read
//! from until what it must be told fills its buffer. PUBACK and PUBREC are sent after the record's sync.

mod acks;
mod client;
mod handshake;
mod throttle;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::codec::{Malformed, put_disconnect};
use super::frame::{self, Frame, FrameError};
use super::packet::{Version, reason};
use crate::quota::Quota;
use client::Client;
use throttle::{Held, passes};

/// What is read at a time from a client that sends little.
const SMALL_READ: usize = 1024;
/// And from one that sends much.
const LARGE_READ: usize = 32 * 1024;
/// Bytes for a client that does not take them above which nothing more is made for it.
const HIGH_WATER: usize = 64 * 1024;
/// Unanswered publishes and bytes for the client above which nothing more is read from it.
const MAX_ACKS: usize = 8 * 1024;
/// A last word to a client that may not listen.
const LAST_WORD: Duration = Duration::from_secs(1);
/// For what was published on a connection that has ended.
const SETTLE: Duration = Duration::from_secs(10);

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client closed the connection")]
    Closed,
    #[error("the client said goodbye")]
    Goodbye {
        /// The will is wanted all the same.
        with_will: bool,
    },
    #[error("the node stops")]
    Stopped,
    #[error("no CONNECT in time")]
    NoConnect,
    #[error("refused with {0:#04x}")]
    Refused(u8),
    #[error("told to go with {0:#04x}")]
    Kicked(u8),
    #[error("nothing came for longer than the keep-alive")]
    Silent,
    #[error("a packet took too long to come")]
    TooSlow,
    #[error("the client does not take what is sent")]
    NotReading,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the log does not take what was published")]
    NotStored(u8),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl End {
    /// What an MQTT 5 client is told.
    fn code(&self) -> Option<u8> {
        match self {
            Self::Closed
            | Self::Goodbye { .. }
            | Self::NoConnect
            | Self::Refused(_)
            | Self::Io(_) => None,
            Self::Stopped => Some(reason::SERVER_SHUTTING_DOWN),
            Self::Kicked(code) | Self::NotStored(code) => Some(*code),
            Self::Silent => Some(reason::KEEP_ALIVE_TIMEOUT),
            Self::TooSlow | Self::NotReading => Some(reason::UNSPECIFIED),
            Self::Frame(FrameError::TooLarge { .. }) => Some(reason::PACKET_TOO_LARGE),
            Self::Frame(FrameError::Length) => Some(reason::MALFORMED),
            Self::Malformed(malformed) => Some(malformed.reason),
        }
    }

    fn keeps_will(&self) -> bool {
        !matches!(self, Self::Goodbye { with_will: false } | Self::Stopped)
    }

    /// Nobody did anything wrong.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::Closed | Self::Goodbye { .. } | Self::Stopped | Self::Kicked(_)
        )
    }
}

/// Who is at the other end, as far as the transport knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// The user that the client's certificate names.
    pub(super) certified: Option<String>,
}

/// One connection; consumed by [`Connection::serve`].
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) broker: Arc<Broker>,
    pub(super) peer: Peer,
    /// Its listener's.
    pub(super) quota: Arc<Quota>,
    pub(super) stop: CancellationToken,
}

/// The socket and its buffers.
pub(super) struct Wire<S> {
    read: ReadHalf<S>,
    write: WriteHalf<S>,
    input: BytesMut,
    /// What came and has to wait.
    held: Held,
    output: BytesMut,
    max_packet: usize,
    /// Bytes that the input needs before there can be a packet.
    needed: usize,
    last_in: Instant,
    /// Since when a packet is incomplete.
    partial_since: Option<Instant>,
    /// Since when nothing of the output was taken.
    stuck_since: Option<Instant>,
    is_busy: bool,
    /// Something was written and may still be in a buffer below.
    needs_flush: bool,
}

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    fn new(stream: S, max_packet: usize) -> Self {
        let (read, write) = split(stream);
        Self {
            read,
            write,
            input: BytesMut::new(),
            held: Held::default(),
            output: BytesMut::new(),
            max_packet,
            needed: 2,
            last_in: Instant::now(),
            partial_since: None,
            stuck_since: None,
            is_busy: false,
            needs_flush: false,
        }
    }

    /// The next packet to carry out.
    fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        match self.held.pop() {
            Some(frame) => Ok(Some(frame)),
            None => self.frame(),
        }
    }

    /// While nothing is read although there may be something, silence is not the client's.
    fn excuse(&mut self) {
        if self.held.is_full() {
            self.last_in = Instant::now();
            self.partial_since = self.partial_since.map(|_| self.last_in);
        }
    }

    /// The next packet that is whole.
    fn frame(&mut self) -> Result<Option<Frame>, FrameError> {
        match frame::take(&mut self.input, self.max_packet)? {
            Ok(frame) => {
                self.partial_since = None;
                Ok(Some(frame))
            }
            Err(needed) => {
                self.needed = needed;
                if self.input.is_empty() {
                    self.partial_since = None;
                    self.input = BytesMut::new();
                } else {
                    self.partial_since.get_or_insert_with(Instant::now);
                }
                Ok(None)
            }
        }
    }

    /// Reads once. Cancel-safe.
    async fn fill(&mut self) -> io::Result<usize> {
        fill(&mut self.read, &mut self.input, self.needed, self.is_busy).await
    }

    fn filled(&mut self, count: usize) {
        self.last_in = Instant::now();
        self.is_busy = count >= SMALL_READ;
    }

    /// So many bytes were written, or with 0 the rest was flushed.
    fn pushed(&mut self, count: usize) -> io::Result<()> {
        self.needs_flush = count > 0;
        if self.output.is_empty() {
            if self.output.capacity() > HIGH_WATER {
                self.output = BytesMut::new();
            }
            if self.needs_flush
                && let Some(flushed) = self.write.flush().now_or_never()
            {
                flushed?;
                self.needs_flush = false;
            }
        }
        let is_done = self.output.is_empty() && !self.needs_flush;
        self.stuck_since = (!is_done).then(Instant::now);
        Ok(())
    }

    /// Writes all there is, for so long.
    async fn flush(&mut self, limit: Duration) {
        let all = async {
            self.write.write_all_buf(&mut self.output).await?;
            self.write.flush().await
        };
        // whoever does not take it has gone
        drop(timeout(limit, all).await);
    }

    async fn close(&mut self, limit: Duration) {
        self.flush(limit).await;
        drop(timeout(LAST_WORD, self.write.shutdown()).await);
    }
}

/// Writes some of what there is, or flushes when there is nothing (0). Cancel-safe.
async fn push<S: AsyncWrite>(write: &mut WriteHalf<S>, output: &mut BytesMut) -> io::Result<usize> {
    if output.is_empty() {
        write.flush().await?;
        return Ok(0);
    }
    match write.write_buf(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

async fn fill<S: AsyncRead>(
    read: &mut ReadHalf<S>,
    input: &mut BytesMut,
    needed: usize,
    is_busy: bool,
) -> io::Result<usize> {
    if input.capacity() == input.len() {
        let least = if is_busy { LARGE_READ } else { SMALL_READ };
        let missing = needed.saturating_sub(input.len());
        input.reserve(missing.clamp(least, 2 * LARGE_READ));
    }
    read.read_buf(input).await
}

impl Connection {
    /// Serves a client until it goes.
    pub(super) async fn serve<S>(self, stream: S) -> End
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let mut wire = Wire::new(stream, self.broker.config.max_connect_packet());
        let greeted = self.greet(&mut wire).await;
        let mut client = match greeted {
            Ok(client) => client,
            Err(end) => {
                wire.close(LAST_WORD).await;
                return end;
            }
        };
        let end = client.run(&mut wire, &self.stop).await;
        client.settle(&mut wire).await;
        // the client's next connection waits for what is released, and needs the place
        client.place = None;
        self.broker
            .release(&client.session, client.link.number, end.keeps_will());
        if let Some(code) = end.code() {
            put_disconnect(&mut wire.output, client.version, code);
        }
        wire.close(LAST_WORD).await;
        end
    }
}

impl<'b> Client<'b> {
    /// Carries out what comes and sends what is to be sent.
    async fn run<S>(&mut self, wire: &mut Wire<S>, stop: &CancellationToken) -> End
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let timer = tokio::time::sleep_until(Instant::now());
        let mut timer = std::pin::pin!(timer);
        loop {
            if let Err(end) = self.work(wire).await {
                return end;
            }
            let deadline = self.deadline(wire);
            if let Some(deadline) = deadline.filter(|deadline| timer.deadline() != *deadline) {
                timer.as_mut().reset(deadline);
            }
            let may_read = self.acks.len() < MAX_ACKS
                && wire.output.len() < HIGH_WATER
                && !wire.held.is_full();
            let may_make = wire.output.len() < HIGH_WATER;
            let Wire {
                read,
                write,
                input,
                output,
                needed,
                is_busy,
                needs_flush,
                ..
            } = wire;
            tokio::select! {
                () = stop.cancelled() => return End::Stopped,
                pushed = push(write, output), if !output.is_empty() || *needs_flush => match pushed {
                    Ok(count) => {
                        self.broker.stats.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
                        if let Err(error) = wire.pushed(count) {
                            return error.into();
                        }
                    }
                    Err(error) => return error.into(),
                },
                () = self.acks.ready(), if may_make && !self.acks.is_empty() => {}
                () = self.link.wake.notified() => {}
                read = fill(read, input, *needed, *is_busy), if may_read => match read {
                    Ok(0) => return End::Closed,
                    Ok(count) => {
                        self.broker.stats.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
                        wire.filled(count);
                    }
                    Err(error) => return error.into(),
                },
                () = &mut timer, if deadline.is_some() => if let Some(end) = self.overdue(wire) { return end },
            }
        }
    }

    /// What can be done without waiting for the client.
    async fn work<S>(&mut self, wire: &mut Wire<S>) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        self.check()?;
        wire.excuse();
        while self.acks.len() < MAX_ACKS && wire.output.len() < HIGH_WATER {
            if self.throttle.pause().is_none() {
                let Some(frame) = wire.next()? else { break };
                self.carry_out(&frame, wire).await?;
                continue;
            }
            if wire.held.is_full() {
                break;
            }
            let Some(frame) = wire.frame()? else { break };
            if passes(&frame) {
                self.carry_out(&frame, wire).await?;
            } else {
                wire.held.push(frame);
            }
        }
        self.release_received(&mut wire.output).await?;
        self.answer(&mut wire.output)?;
        self.deliver(&mut wire.output).await?;
        if !wire.output.is_empty() {
            wire.stuck_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn deadline<S>(&self, wire: &Wire<S>) -> Option<Instant> {
        let config = &self.broker.config;
        let silent = self.keep_alive.map(|limit| wire.last_in + limit);
        let slow = wire
            .partial_since
            .map(|since| since + config.packet_timeout);
        let stuck = wire.stuck_since.map(|since| since + config.write_timeout);
        let pauses = [self.throttle.pause(), self.throttle.delivery_pause()];
        let [publish, delivery] = pauses.map(|wait| wait.map(|wait| Instant::now() + wait));
        [silent, slow, stuck, publish, delivery]
            .into_iter()
            .flatten()
            .min()
    }

    fn overdue<S: AsyncRead + AsyncWrite>(&self, wire: &mut Wire<S>) -> Option<End> {
        wire.excuse();
        let (config, now) = (&self.broker.config, Instant::now());
        let is_past = |since: Option<Instant>, limit: Duration| {
            since.is_some_and(|since| now >= since + limit)
        };
        if is_past(
            self.keep_alive.map(|_| wire.last_in),
            self.keep_alive.unwrap_or_default(),
        ) {
            return Some(End::Silent);
        }
        if is_past(wire.partial_since, config.packet_timeout) {
            return Some(End::TooSlow);
        }
        is_past(wire.stuck_since, config.write_timeout).then_some(End::NotReading)
    }
}

/// Whether this is the version that has reason codes.
fn has_codes(version: Version) -> bool {
    version == Version::V5
}
