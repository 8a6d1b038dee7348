//! A connection between a site and a hub, whichever transport carries it.
//!
//! ```text
//!                       ┌ Quic: one QUIC stream each               (UDP)
//!  Connection ──────────┤
//!    control, data      └ Tcp: frames cut and multiplexed over TLS (docs/transport.md)
//! ```
//! Both carry the same: one **control stream**, ordered bytes both ways that overtake all else, and
//! **data streams** from site to hub, each whole or not at all, in any order. Sessions see nothing of the
//! difference, so that they can go on over TCP where UDP is blocked with the same guarantees. One contract
//! suite (`transport/tests.rs`) runs on both.
//!
//! Always true: nothing that a peer sends makes this end hold more than the windows it granted and the
//! streams that it is assembling, each of which is bounded. The identity of a site is the one in its
//! certificate on both transports.

mod nudge;
mod probe;
mod quic;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

pub use probe::{Echo, PROBE_IP_BYTES};
pub use quic::{NudgeHandle, QuicConnection};
pub use socket::{Heard, ProbeSocket};
pub use tcp::{Pacer, TcpConnection, TcpLimits, connect as connect_tcp, tune as tune_tcp};

use crate::ids::SiteId;
use crate::tls::IdentityError;

/// Most bytes of an end's reason that are kept or sent.
const MAX_REASON: usize = 512;

/// Which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
}

impl TransportKind {
    /// For logs, status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// A connection whose handshake is over (or, with early data, on its way). Clones are the same connection;
/// when the last one is dropped, it ends.
#[derive(Debug, Clone)]
pub enum Connection {
    /// QUIC.
    Quic(QuicConnection),
    /// TLS over TCP.
    Tcp(TcpConnection),
}

/// A data stream on its way out. It is in the queue from the call on, in the order of the calls of its
/// priority; the future completes when the transport has sent all of it (QUIC: and the peer's transport
/// has acknowledged it). Dropped before that, the stream may arrive whole or not at all.
pub type Sending = Pin<Box<dyn Future<Output = Result<(), Lost>> + Send>>;

impl Connection {
    /// What carries it.
    #[must_use]
    pub const fn kind(&self) -> TransportKind {
        match self {
            Self::Quic(_) => TransportKind::Quic,
            Self::Tcp(_) => TransportKind::Tcp,
        }
    }

    /// Opens the control stream: at the site, once.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn open_control(&self) -> Result<(ControlSend, ControlRecv), Lost> {
        match self {
            Self::Quic(connection) => connection.open_control().await,
            Self::Tcp(connection) => Ok(connection.control()),
        }
    }

    /// Waits for the site's control stream: at the hub, once.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn accept_control(&self) -> Result<(ControlSend, ControlRecv), Lost> {
        match self {
            Self::Quic(connection) => connection.accept_control().await,
            Self::Tcp(connection) => Ok(connection.control()),
        }
    }

    /// Sends one data stream: `head` and `payload` behind each other. Streams of a higher priority (0 to 7)
    /// overtake those of a lower one at any byte; equals go one after the other.
    #[must_use]
    pub fn send(&self, head: Bytes, payload: Bytes, priority: i32) -> Sending {
        match self {
            Self::Quic(connection) => connection.send(head, payload, priority),
            Self::Tcp(connection) => connection.send(head, payload, priority),
        }
    }

    /// The next data stream that the peer opened. Cancel-safe. What is not taken holds the peer back.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn accept_data(&self) -> Result<DataStreamIn, Lost> {
        match self {
            Self::Quic(connection) => connection.accept_data().await,
            Self::Tcp(connection) => connection.accept_data().await,
        }
    }

    /// Changes how many bytes of the peer may be on their way or wait to be taken.
    pub fn set_receive_window(&self, bytes: u32) {
        match self {
            Self::Quic(connection) => connection.set_receive_window(bytes),
            Self::Tcp(connection) => connection.set_receive_window(bytes),
        }
    }

    /// How many bytes may be on their way to the peer or wait there to be taken: a part of them is left for streams
    /// that are more urgent. Over TCP the peer tells that by itself.
    pub fn set_peer_window(&self, bytes: u64) {
        match self {
            Self::Quic(connection) => connection.set_peer_window(bytes),
            Self::Tcp(_) => {}
        }
    }

    /// Makes the connection say something that the peer must answer, at once and whatever its timers and its
    /// window say: the link may be back. Over TCP the kernel repeats often enough by itself.
    pub fn nudge(&self) {
        match self {
            Self::Quic(connection) => connection.nudge(),
            Self::Tcp(_) => {}
        }
    }

    /// Ends the connection and tells the peer why. What is still queued is not sent.
    pub fn close(&self, code: u32, reason: &[u8]) {
        let reason = &reason[..reason.len().min(MAX_REASON)];
        match self {
            Self::Quic(connection) => connection.close(code, reason),
            Self::Tcp(connection) => connection.close(code, reason),
        }
    }

    /// Waits for the end. Cancel-safe.
    pub async fn closed(&self) -> Lost {
        match self {
            Self::Quic(connection) => connection.closed().await,
            Self::Tcp(connection) => connection.closed().await,
        }
    }

    /// The peer's address; it may change while the connection lasts.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Tcp(connection) => connection.remote_address(),
        }
    }

    /// The site at the other end, by its certificate; to be asked by a hub.
    ///
    /// # Errors
    /// [`IdentityError`]: end the connection.
    pub fn site(&self, wall_ms: i64) -> Result<SiteId, IdentityError> {
        match self {
            Self::Quic(connection) => connection.site(wall_ms),
            Self::Tcp(connection) => connection.site(wall_ms),
        }
    }

    /// What was counted and measured so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        match self {
            Self::Quic(connection) => connection.stats(),
            Self::Tcp(connection) => connection.stats(),
        }
    }
}

/// Counters and measurements of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes sent in IP packets, headers and repetitions included.
    pub tx_bytes: u64,
    /// Bytes received in IP packets, headers included.
    pub rx_bytes: u64,
    /// IP packets sent.
    pub tx_packets: u64,
    /// Packets sent that the peer must answer: an unchanged [`Self::heard`] after one means silence.
    pub asked: u64,
    /// Packets received.
    pub heard: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Smallest round-trip time seen.
    pub min_rtt: Duration,
    /// The congestion window, bytes; 0: not known at the moment.
    pub window: u64,
    /// Bytes of data streams handed to the transport whose [`Sending`] is not complete.
    pub unsent: u64,
    /// Packets sent and found lost.
    pub lost: u64,
    /// Largest packet that the path is known to carry, IP headers included; 0 when not known.
    pub mtu: u16,
}

/// The outgoing half of the control stream.
#[derive(Debug)]
pub struct ControlSend(SendHalf);

#[derive(Debug)]
enum SendHalf {
    Quic(quic::ControlSend),
    Tcp(tcp::ControlSend),
}

impl ControlSend {
    /// Hands bytes over; waits while too many are on their way.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Lost> {
        match &mut self.0 {
            SendHalf::Quic(stream) => stream.write(bytes).await,
            SendHalf::Tcp(stream) => stream.write(bytes).await,
        }
    }

    /// Ends the stream; completes when what was written is out (QUIC: and acknowledged), so that a close of
    /// the connection does not cut it off.
    pub async fn finish(self) {
        match self.0 {
            SendHalf::Quic(stream) => stream.finish().await,
            SendHalf::Tcp(stream) => stream.finish().await,
        }
    }
}

/// The incoming half of the control stream.
#[derive(Debug)]
pub struct ControlRecv(RecvHalf);

#[derive(Debug)]
enum RecvHalf {
    Quic(quic::ControlRecv),
    Tcp(tcp::ControlRecv),
}

impl ControlRecv {
    /// Reads what is there; `None` at the end of the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        match &mut self.0 {
            RecvHalf::Quic(stream) => stream.read(buffer).await,
            RecvHalf::Tcp(stream) => stream.read(buffer).await,
        }
    }
}

/// A data stream that the peer opened.
#[derive(Debug)]
pub struct DataStreamIn(DataHalf);

#[derive(Debug)]
enum DataHalf {
    Quic(quic::DataStreamIn),
    Tcp(tcp::DataStreamIn),
}

impl DataStreamIn {
    /// Waits for all of it, at most `max_len` bytes. Memory follows the bytes that came, not a length that
    /// was promised.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(self, max_len: usize) -> Result<Bytes, ReadError> {
        self.read_paid(max_len, |_bytes| std::future::ready(()))
            .await
    }

    /// The same with a price: `pay` is asked for what came, by and by, and while it waits the peer is held
    /// back.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_paid<F, P>(self, max_len: usize, pay: F) -> Result<Bytes, ReadError>
    where
        F: Fn(usize) -> P + Send,
        P: Future<Output = ()> + Send,
    {
        match self.0 {
            DataHalf::Quic(stream) => stream.read(max_len, pay).await,
            DataHalf::Tcp(stream) => stream.read(max_len, pay).await,
        }
    }
}

/// Why a data stream was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Longer than a stream may be.
    #[error("data stream is too long")]
    TooLong,
    /// The stream or its connection ended early.
    #[error("{0}")]
    Lost(String),
}

/// How a connection ended, and in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Lost {
    /// How.
    pub kind: LostKind,
    /// For people; what came from the peer is cut and without control characters.
    pub text: String,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostKind {
    /// The peer's session closed it with this code.
    Closed { code: u64 },
    /// The peer's transport or TLS closed it: it does not like what it got.
    Refused,
    /// Nothing was heard for too long.
    TimedOut,
    /// This end closed it.
    Local,
    /// Whatever else: this end did not like what it got, or the network said so.
    Broken,
}

impl Lost {
    fn new(kind: LostKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// The peer's session said why.
    fn closed(code: u64, reason: &[u8]) -> Self {
        Self::new(LostKind::Closed { code }, printable(reason))
    }

    fn local() -> Self {
        Self::new(LostKind::Local, "closed by this end")
    }
}

/// What the other end sends is shown, within bounds and without line breaks.
fn printable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    text.chars().filter(|c| !c.is_control()).take(256).collect()
}
