//! The connection over QUIC: one QUIC stream for each of its streams.

mod writing;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use quinn::congestion::ControllerFactory;
use quinn::{ConnectionError, VarInt};
use tokio::sync::oneshot;

use self::writing::{SEND_WINDOW, Turn, Writing};
use super::nudge::{Nudge, NudgeFactory, OPEN};
use super::{ControlRecv as AnyRecv, ControlSend as AnySend, DataStreamIn as AnyData};
use super::{DataHalf, RecvHalf, SendHalf};
use super::{LinkStats, Lost, LostKind, ReadError, Sending, printable};
use crate::ids::SiteId;
use crate::tls::{IdentityError, Peer, explain, site_of};

/// Read before it is paid for, of each stream.
const READ_AT_ONCE: usize = 64 << 10;
/// Pieces of a stream that wait for what comes before them: more than the packets of the largest receive window.
/// Each costs memory beside its bytes, however short it is.
const MOST_PIECES: usize = 8 << 10;
/// UDP and IP headers that a datagram costs beyond what QUIC counts.
const V4_HEADERS: u64 = 28;
const V6_HEADERS: u64 = 48;

/// A QUIC connection.
#[derive(Debug, Clone)]
pub struct QuicConnection {
    inner: quinn::Connection,
    peer: Peer,
    shared: Arc<Shared>,
    nudge: Option<NudgeHandle>,
}

/// What a connection needs to be nudged: part of its configuration before it is one.
#[derive(Debug, Clone)]
pub struct NudgeHandle {
    nudge: Arc<Nudge>,
    receive_window: u32,
}

impl NudgeHandle {
    /// Sets up a configuration: its controller, which is `controller` but for nudges, its windows, and the
    /// order of its streams.
    #[must_use]
    pub fn prepare(
        transport: &mut quinn::TransportConfig,
        controller: Arc<dyn ControllerFactory + Send + Sync>,
        receive_window: u32,
    ) -> Self {
        let nudge = Arc::new(Nudge::default());
        transport
            .send_fairness(true)
            .receive_window(VarInt::from_u32(receive_window))
            .send_window(SEND_WINDOW)
            .congestion_controller_factory(Arc::new(NudgeFactory {
                inner: controller,
                nudge: Arc::clone(&nudge),
            }));
        Self {
            nudge,
            receive_window,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Ends when the stream before is open: streams are opened in the order of the calls.
    opening: Mutex<Option<oneshot::Receiver<()>>>,
    /// Data streams so far.
    count: AtomicU32,
    unsent: AtomicU64,
    writing: Arc<Writing>,
}

/// Priorities of data streams that callers tell apart.
const LEVELS: i32 = 8;
/// quinn's for each of them.
const STEPS: i32 = i32::MAX / LEVELS;

/// quinn's priority of a data stream: those that began earlier go before later ones of the same priority, and
/// one under way is interrupted for a higher one. quinn can do the first without this (`send_fairness`), but
/// then not the second.
fn level(priority: i32, count: u32) -> i32 {
    let age = i32::try_from(count % STEPS.unsigned_abs()).unwrap_or(0);
    (priority.clamp(0, LEVELS - 1) + 1) * STEPS - 1 - age
}

impl QuicConnection {
    /// Wraps a connection; `peer` is who the other end is.
    #[must_use]
    pub fn new(inner: quinn::Connection, peer: Peer) -> Self {
        Self {
            inner,
            peer,
            shared: Arc::default(),
            nudge: None,
        }
    }

    /// The same, of a connection whose configuration was prepared for nudges.
    #[must_use]
    pub fn with_nudge(self, nudge: NudgeHandle) -> Self {
        Self {
            nudge: Some(nudge),
            ..self
        }
    }

    pub(super) fn nudge(&self) {
        if let Some(handle) = &self.nudge {
            handle.nudge.ask();
            // A window that grows is told to the peer, which acknowledges it. That it shrinks again is not
            // told, but made up for by and by (quinn's own accounting).
            let window = handle.receive_window;
            let wider = VarInt::from_u32(window.saturating_add(1));
            self.inner.set_receive_window(wider);
            self.inner.set_receive_window(VarInt::from_u32(window));
        }
    }

    /// quinn's own handle, for what only QUIC has.
    #[must_use]
    pub const fn quinn(&self) -> &quinn::Connection {
        &self.inner
    }

    pub(super) async fn open_control(&self) -> Result<(AnySend, AnyRecv), Lost> {
        let opened = self.inner.open_bi().await;
        self.control(opened)
    }

    pub(super) async fn accept_control(&self) -> Result<(AnySend, AnyRecv), Lost> {
        let accepted = self.inner.accept_bi().await;
        self.control(accepted)
    }

    fn control(
        &self,
        streams: Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>,
    ) -> Result<(AnySend, AnyRecv), Lost> {
        let (stream, recv) = streams.map_err(|error| self.lost(&error))?;
        // acknowledgements and keep-alives go before any data
        let _closed = stream.set_priority(i32::MAX);
        let send = ControlSend {
            stream,
            connection: self.clone(),
        };
        let recv = ControlRecv {
            stream: recv,
            connection: self.clone(),
        };
        Ok((AnySend(SendHalf::Quic(send)), AnyRecv(RecvHalf::Quic(recv))))
    }

    pub(super) fn send(&self, head: Bytes, payload: Bytes, priority: i32) -> Sending {
        let (is_open, turn_of_next) = oneshot::channel();
        let my_turn = self
            .shared
            .opening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(turn_of_next);
        let count = self.shared.count.fetch_add(1, Ordering::Relaxed);
        let level = level(priority, count);
        let unsent = Unsent::new(&self.shared, head.len() + payload.len());
        let connection = self.clone();
        Box::pin(async move {
            if let Some(turn) = my_turn {
                let _opened_or_given_up = turn.await;
            }
            let opened = connection.inner.open_uni().await;
            drop(is_open);
            let stream = opened.map_err(|error| connection.lost(&error))?;
            let _closed = stream.set_priority(level);
            let mut stream = Unfinished(Some(stream));
            let turn = connection.shared.writing.line_up(level, priority);
            stream.write(head, &turn, &connection).await?;
            stream.write(payload, &turn, &connection).await?;
            turn.pass();
            let outcome = stream.finish(&connection).await;
            drop((turn, unsent));
            outcome
        })
    }

    pub(super) async fn accept_data(&self) -> Result<AnyData, Lost> {
        let accepted = self.inner.accept_uni().await;
        let stream = accepted.map_err(|error| self.lost(&error))?;
        Ok(AnyData(DataHalf::Quic(DataStreamIn { stream })))
    }

    pub(super) fn close(&self, code: u32, reason: &[u8]) {
        self.inner.close(VarInt::from_u32(code), reason);
    }

    pub(super) async fn closed(&self) -> Lost {
        let error = self.inner.closed().await;
        self.lost(&error)
    }

    pub(super) fn set_receive_window(&self, bytes: u32) {
        self.inner.set_receive_window(VarInt::from_u32(bytes));
    }

    pub(super) fn set_peer_window(&self, bytes: u64) {
        self.shared.writing.set_peer_window(bytes);
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        // a socket of both IP versions has IPv4 addresses in IPv6's form
        let address = self.inner.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }

    pub(super) fn site(&self, wall_ms: i64) -> Result<SiteId, IdentityError> {
        site_of(self.inner.peer_identity(), wall_ms)
    }

    pub(super) fn stats(&self) -> LinkStats {
        let stats = self.inner.stats();
        let is_v4 = self.inner.remote_address().ip().to_canonical().is_ipv4();
        let headers = if is_v4 { V4_HEADERS } else { V6_HEADERS };
        let sent = &stats.frame_tx;
        let asked = [
            sent.stream,
            sent.ping,
            sent.crypto,
            sent.max_data,
            sent.max_stream_data,
            sent.max_streams_uni,
            sent.max_streams_bidi,
            sent.new_connection_id,
            sent.path_challenge,
            sent.reset_stream,
            sent.data_blocked,
            sent.stream_data_blocked,
            sent.streams_blocked_uni,
        ];
        LinkStats {
            tx_bytes: stats.udp_tx.bytes + headers * stats.udp_tx.datagrams,
            rx_bytes: stats.udp_rx.bytes + headers * stats.udp_rx.datagrams,
            tx_packets: stats.udp_tx.datagrams,
            asked: asked.iter().sum(),
            heard: stats.udp_rx.datagrams,
            rtt: stats.path.rtt,
            min_rtt: self.inner.min_rtt(),
            // a nudge opens it wide for a moment
            window: if stats.path.cwnd < OPEN {
                stats.path.cwnd
            } else {
                0
            },
            unsent: self.shared.unsent.load(Ordering::Relaxed),
            lost: stats.path.lost_packets,
            mtu: stats
                .path
                .current_mtu
                .saturating_add(u16::try_from(headers).unwrap_or_default()),
        }
    }

    fn lost(&self, error: &ConnectionError) -> Lost {
        lost_of(error, self.peer)
    }

    /// Streams see no more than that the connection is gone; it knows why.
    fn lost_or(&self, seen: &dyn std::fmt::Display) -> Lost {
        match self.inner.close_reason() {
            Some(error) => self.lost(&error),
            None => Lost::new(LostKind::Broken, seen.to_string()),
        }
    }
}

/// What the end of a QUIC connection means.
pub(crate) fn lost_of(error: &ConnectionError, peer: Peer) -> Lost {
    let told = || explain(error, peer, crate::time::wall_ms());
    match error {
        ConnectionError::ApplicationClosed(closed) => {
            Lost::closed(closed.error_code.into_inner(), &closed.reason)
        }
        ConnectionError::ConnectionClosed(_) => Lost::new(LostKind::Refused, told()),
        ConnectionError::TimedOut => Lost::new(LostKind::TimedOut, told()),
        ConnectionError::LocallyClosed => Lost::local(),
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::Reset
        | ConnectionError::CidsExhausted => Lost::new(LostKind::Broken, told()),
    }
}

impl From<(&ConnectionError, Peer)> for Lost {
    fn from((error, peer): (&ConnectionError, Peer)) -> Self {
        lost_of(error, peer)
    }
}

/// Counts the bytes of a stream while they are on their way.
struct Unsent {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Unsent {
    fn new(shared: &Arc<Shared>, bytes: usize) -> Self {
        let bytes = bytes as u64;
        shared.unsent.fetch_add(bytes, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            bytes,
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.shared.unsent.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Resets the stream when it is dropped before its end: quinn would finish it, and the peer would take
/// the part for the whole.
struct Unfinished(Option<quinn::SendStream>);

impl Unfinished {
    async fn write(
        &mut self,
        mut bytes: Bytes,
        turn: &Turn,
        connection: &QuicConnection,
    ) -> Result<(), Lost> {
        while let Some(stream) = self.0.as_mut().filter(|_| !bytes.is_empty()) {
            let write =
                poll_fn(|context| turn.poll_write(&connection.inner, stream, &mut bytes, context));
            write.await.map_err(|error| connection.lost_or(&error))?;
        }
        Ok(())
    }

    async fn finish(mut self, connection: &QuicConnection) -> Result<(), Lost> {
        let Some(mut stream) = self.0.take() else {
            return Ok(());
        };
        stream
            .finish()
            .map_err(|error| connection.lost_or(&error))?;
        match stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_code)) => Err(connection.lost_or(&"the peer does not want the stream")),
            Err(error) => Err(connection.lost_or(&error)),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            let _over = stream.reset(VarInt::from_u32(0));
        }
    }
}

/// The control stream's outgoing half.
#[derive(Debug)]
pub(super) struct ControlSend {
    stream: quinn::SendStream,
    connection: QuicConnection,
}

impl ControlSend {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Lost> {
        let writing = &self.connection.shared.writing;
        let mut write = pin!(self.stream.write_chunk(bytes));
        let inner = &self.connection.inner;
        let written =
            poll_fn(|context| writing.poll_urgent(inner, || write.as_mut().poll(context))).await;
        written.map_err(|error| self.connection.lost_or(&error))
    }

    pub(super) async fn finish(mut self) {
        let _closed = self.stream.finish();
        let _stopped = self.stream.stopped().await;
    }
}

/// The control stream's incoming half.
#[derive(Debug)]
pub(super) struct ControlRecv {
    stream: quinn::RecvStream,
    connection: QuicConnection,
}

impl ControlRecv {
    /// quinn's `read` is cancel-safe: it takes nothing before it returns.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        let read = self.stream.read(buffer).await;
        read.map_err(|error| self.connection.lost_or(&error))
    }
}

/// A data stream that the peer opened.
#[derive(Debug)]
pub(super) struct DataStreamIn {
    stream: quinn::RecvStream,
}

impl DataStreamIn {
    pub(super) async fn read<F, P>(mut self, max_len: usize, pay: F) -> Result<Bytes, ReadError>
    where
        F: Fn(usize) -> P + Send,
        P: Future<Output = ()> + Send,
    {
        let mut arrived = Arrived::default();
        let lost =
            |error: quinn::ReadError| ReadError::Lost(printable(error.to_string().as_bytes()));
        let most = READ_AT_ONCE.min(max_len.saturating_add(1));
        // in whatever order: what waits for a lost packet would keep the connection's credit from other streams
        while let Some(chunk) = self.stream.read_chunk(most, false).await.map_err(lost)? {
            pay(chunk.bytes.len()).await;
            let end = chunk.offset.saturating_add(chunk.bytes.len() as u64);
            if end > max_len as u64 {
                return Err(ReadError::TooLong);
            }
            arrived.put(chunk.offset, chunk.bytes);
            if arrived.later.len() > MOST_PIECES {
                return Err(ReadError::Lost("a stream in too many pieces".to_owned()));
            }
        }
        Ok(arrived.finish())
    }
}

/// A stream's bytes as they come, in any order, none twice.
#[derive(Debug, Default)]
struct Arrived {
    first: Bytes,
    /// From the beginning without a gap, once there is more than the first piece.
    all: BytesMut,
    /// Copied, for a piece of a packet keeps all of it.
    later: BTreeMap<u64, Bytes>,
}

impl Arrived {
    fn len(&self) -> u64 {
        self.first.len().max(self.all.len()) as u64
    }

    fn put(&mut self, offset: u64, bytes: Bytes) {
        if offset != self.len() {
            self.later.insert(offset, Bytes::copy_from_slice(&bytes));
            return;
        }
        self.append(bytes);
        while let Some(next) = self.later.remove(&self.len()) {
            self.append(next);
        }
    }

    fn append(&mut self, bytes: Bytes) {
        if self.len() == 0 {
            self.first = bytes;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&bytes);
    }

    /// A stream that came in one piece is not copied.
    fn finish(self) -> Bytes {
        if self.all.is_empty() {
            self.first
        } else {
            self.all.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_any_order() {
        let text = Bytes::from_static(b"0123456789");
        let put = |cuts: &[(usize, usize)]| {
            let mut arrived = Arrived::default();
            for (from, to) in cuts {
                arrived.put(*from as u64, text.slice(*from..*to));
            }
            arrived.finish()
        };
        assert!(put(&[]).is_empty());
        assert_eq!(put(&[(0, 10)]), text);
        for cuts in [
            [(0, 3), (3, 4), (4, 10)],
            [(3, 4), (4, 10), (0, 3)],
            [(4, 10), (0, 3), (3, 4)],
            [(4, 10), (3, 4), (0, 3)],
        ] {
            assert_eq!(put(&cuts), text, "{cuts:?}");
        }
    }

    #[test]
    fn an_alert_is_told_in_words() {
        let error = ConnectionError::ConnectionClosed(quinn::ConnectionClose {
            // RFC 9001, section 4.8: 0x100 plus the alert, here unknown_ca
            error_code: quinn::TransportErrorCode::crypto(48),
            frame_type: None,
            reason: Bytes::new(),
        });
        let lost = lost_of(&error, Peer::Hub);
        assert_eq!(lost.kind, LostKind::Refused);
        let told = "comes from an authority that the hub does not know";
        assert!(lost.text.contains(told), "{lost}");
    }
}
