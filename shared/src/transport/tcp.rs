//! The connection over TLS over TCP, for networks that let no UDP through.
//!
//! Frames ([`frame`]) carry the control stream and pieces of the data streams; two small state machines
//! decide what is written next ([`outgoing`]) and hold what came ([`incoming`]). Two tasks connect them to
//! the socket: one reads, one writes. They end with the connection, at the latest [`LINGER`] after it was
//! closed, whoever still holds a handle.
//!
//! Little lies between the queue and the wire: the writer takes a few kilobytes at a time, and the kernel is
//! told to hold no more than it has sent (`TCP_NOTSENT_LOWAT`), so that what is urgent overtakes.

mod frame;
mod incoming;
mod outgoing;
mod socket;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;

pub use incoming::TcpLimits;
pub use socket::tune;

use super::{ControlRecv as AnyRecv, ControlSend as AnySend, DataStreamIn as AnyData};
use super::{DataHalf, RecvHalf, SendHalf};
use super::{LinkStats, Lost, LostKind, MAX_REASON, ReadError, Sending};
use crate::ids::SiteId;
use crate::tls::{IdentityError, Peer, explain_tls, site_of_chain};
use frame::{Frame, Violation};
use incoming::Incoming;
use outgoing::Outgoing;

/// Bytes taken from the queue at a time: what comes later waits for them.
const WRITE_BYTES: usize = 8 << 10;
/// Bytes read at a time.
const READ_BYTES: usize = 32 << 10;
/// Control bytes that wait to be written; then whoever writes waits.
const MAX_CONTROL_OUT: usize = 256 << 10;
/// Control bytes that wait to be taken; then nothing more is read.
const MAX_CONTROL_IN: usize = 2 << 20;
/// What TLS 1.3 puts around a record (RFC 8446, section 5.2).
const TLS_RECORD: usize = 22;
/// How long the last frames may take once the connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Says when bytes may leave. QUIC's socket is shaped datagram by datagram; here it is asked before each
/// write.
pub trait Pacer: fmt::Debug + Send + Sync {
    /// Ends when something may leave.
    fn ready(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Most bytes that should then leave at once.
    fn most(&self) -> usize;

    /// So many bytes left, without the headers of IP and TCP.
    fn sent(&self, bytes: usize);

    /// What the kernel counted in all, whenever somebody asks for it: its own packets are in it.
    fn observe(&self, stats: &LinkStats);
}

/// A connection over TCP.
#[derive(Clone)]
pub struct TcpConnection {
    shared: Arc<Shared>,
    /// Closes the connection when the last handle is gone.
    _last: Arc<CloseOnDrop>,
}

struct Shared {
    state: Mutex<State>,
    /// The writer has something to do.
    to_write: Notify,
    /// Control bytes or a data stream came, or the end.
    came: Notify,
    /// Room for control bytes, on either side.
    room: Notify,
    /// Set together with [`State::lost`].
    ended: CancellationToken,
    chain: Option<Vec<CertificateDer<'static>>>,
    remote: SocketAddr,
    peer: Peer,
    /// For its counters only; closed when the last handle is gone.
    socket: socket2::Socket,
    pacer: Option<Arc<dyn Pacer>>,
}

struct State {
    outgoing: Outgoing,
    incoming: Incoming,
    /// Why it ended; the first reason counts.
    lost: Option<Lost>,
    /// The last frame, when this end closes.
    farewell: Option<(u64, Bytes)>,
}

impl fmt::Debug for TcpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConnection")
            .field("remote", &self.shared.remote)
            .finish_non_exhaustive()
    }
}

/// The site's handshake on a connected socket.
///
/// # Errors
/// [`Lost`] says whose certificate is wrong, or what the network did.
pub async fn connect(
    stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
    server_name: &str,
    pacer: Option<Arc<dyn Pacer>>,
) -> Result<TcpConnection, Lost> {
    let broken = |error: &dyn fmt::Display| Lost::new(LostKind::Broken, error.to_string());
    let remote = stream.peer_addr().map_err(|error| broken(&error))?;
    let name = ServerName::try_from(server_name.to_owned()).map_err(|error| broken(&error))?;
    let connecting = TlsConnector::from(config).connect(name, stream).await;
    let stream = connecting.map_err(|error| lost_of(&error, Peer::Hub))?;
    let takes_nothing = TcpLimits {
        max_data_len: 0,
        window: 0,
    };
    TcpConnection::start(stream.into(), remote, Peer::Hub, takes_nothing, pacer)
}

impl TcpConnection {
    /// The hub's handshake on an accepted socket.
    ///
    /// # Errors
    /// [`Lost`] says whose certificate is wrong, or what the network did.
    pub async fn accept(
        stream: TcpStream,
        config: Arc<rustls::ServerConfig>,
        limits: TcpLimits,
    ) -> Result<Self, Lost> {
        let remote = stream
            .peer_addr()
            .map_err(|error| Lost::new(LostKind::Broken, error.to_string()))?;
        let accepting = TlsAcceptor::from(config).accept(stream).await;
        let stream = accepting.map_err(|error| lost_of(&error, Peer::Site))?;
        Self::start(stream.into(), remote, Peer::Site, limits, None)
    }

    fn start(
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        peer: Peer,
        limits: TcpLimits,
        pacer: Option<Arc<dyn Pacer>>,
    ) -> Result<Self, Lost> {
        let (tcp, session) = stream.get_ref();
        if session.alpn_protocol() != Some(crate::tls::ALPN) {
            return Err(Lost::new(LostKind::Broken, "no protocol in common (ALPN)"));
        }
        let socket = tcp
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Lost::new(LostKind::Broken, error.to_string()))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                outgoing: Outgoing::new(),
                incoming: Incoming::new(limits),
                lost: None,
                farewell: None,
            }),
            to_write: Notify::new(),
            came: Notify::new(),
            room: Notify::new(),
            ended: CancellationToken::new(),
            chain: session
                .peer_certificates()
                .map(|chain| chain.iter().map(|der| der.clone().into_owned()).collect()),
            remote,
            peer,
            socket: socket.into(),
            pacer: pacer.clone(),
        });
        let (read, write) = tokio::io::split(stream);
        let mut tasks = JoinSet::new();
        tasks.spawn(run_reader(Arc::clone(&shared), read));
        tasks.spawn(run_writer(Arc::clone(&shared), write, pacer));
        // both end with the connection, which the last handle closes
        tasks.detach_all();
        Ok(Self {
            _last: Arc::new(CloseOnDrop(Arc::clone(&shared))),
            shared,
        })
    }

    pub(super) fn control(&self) -> (AnySend, AnyRecv) {
        let send = ControlSend {
            connection: self.clone(),
        };
        let recv = ControlRecv {
            connection: self.clone(),
        };
        (AnySend(SendHalf::Tcp(send)), AnyRecv(RecvHalf::Tcp(recv)))
    }

    pub(super) fn send(&self, head: Bytes, payload: Bytes, priority: i32) -> Sending {
        let (done, told) = oneshot::channel();
        self.shared
            .lock()
            .outgoing
            .push_stream(head, payload, priority, done);
        self.shared.to_write.notify_one();
        let connection = self.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                Ok(()) = told => Ok(()),
                lost = connection.closed() => Err(lost),
            }
        })
    }

    pub(super) async fn accept_data(&self) -> Result<AnyData, Lost> {
        let taken = self
            .shared
            .wait(&self.shared.came, |state| state.incoming.take_data())
            .await;
        let (content, cost) = taken?;
        let held = Held {
            shared: Arc::clone(&self.shared),
            cost,
        };
        Ok(AnyData(DataHalf::Tcp(DataStreamIn { content, held })))
    }

    pub(super) fn set_receive_window(&self, bytes: u32) {
        let window = {
            let mut state = self.shared.lock();
            state.incoming.set_window(bytes.into());
            state.incoming.poll_window()
        };
        self.shared.grant(window);
    }

    pub(super) fn close(&self, code: u32, reason: &[u8]) {
        self.shared.close(code, reason);
    }

    pub(super) async fn closed(&self) -> Lost {
        self.shared.ended.cancelled().await;
        self.shared.lock().lost.clone().unwrap_or_else(Lost::local)
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.shared.remote
    }

    pub(super) fn site(&self, wall_ms: i64) -> Result<SiteId, IdentityError> {
        let chain = self.shared.chain.as_deref().unwrap_or_default();
        site_of_chain(chain, wall_ms)
    }

    pub(super) fn stats(&self) -> LinkStats {
        let stats = LinkStats {
            unsent: self.shared.lock().outgoing.waiting(),
            ..socket::stats(self.shared.socket.as_fd(), self.shared.remote.ip())
        };
        if let Some(pacer) = &self.shared.pacer {
            pacer.observe(&stats);
        }
        stats
    }
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(0, b"");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something, or the connection is over and there will be nothing. Cancel-safe.
    async fn wait<T>(
        &self,
        notify: &Notify,
        mut take: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Lost> {
        loop {
            let mut notified = pin!(notify.notified());
            notified.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(taken) = take(&mut state) {
                    return Ok(taken);
                }
                if let Some(lost) = &state.lost {
                    return Err(lost.clone());
                }
            }
            notified.await;
        }
    }

    fn grant(&self, window: Option<u64>) {
        if let Some(limit) = window {
            self.lock().outgoing.push_window(limit);
            self.to_write.notify_one();
        }
    }

    fn close(&self, code: u32, reason: &[u8]) {
        let reason = Bytes::copy_from_slice(reason);
        self.end(Lost::local(), Some((code.into(), reason)));
    }

    /// The first reason counts.
    fn end(&self, lost: Lost, farewell: Option<(u64, Bytes)>) {
        {
            let mut state = self.lock();
            if state.lost.is_none() {
                state.lost = Some(lost);
                state.farewell = farewell;
            }
        }
        self.ended.cancel();
        self.to_write.notify_one();
        self.came.notify_waiters();
        self.room.notify_waiters();
    }

    /// One frame of the peer; true when it was the last.
    fn handle(&self, frame: Frame) -> Result<bool, Violation> {
        let window = {
            let mut state = self.lock();
            match frame {
                Frame::Control(bytes) => state.incoming.handle_control(&bytes)?,
                Frame::ControlEnd => state.incoming.handle_control_end(),
                Frame::Piece {
                    stream,
                    is_last,
                    bytes,
                } => state.incoming.handle_piece(stream, is_last, bytes)?,
                Frame::Window(limit) => {
                    state.outgoing.handle_window(limit);
                    self.to_write.notify_one();
                }
                Frame::Close { code, reason } => {
                    drop(state);
                    let reason = &reason[..reason.len().min(MAX_REASON)];
                    self.end(Lost::closed(code, reason), None);
                    return Ok(true);
                }
            }
            state.incoming.poll_window()
        };
        self.grant(window);
        self.came.notify_waiters();
        Ok(false)
    }
}

async fn run_reader(shared: Arc<Shared>, read: ReadHalf<TlsStream<TcpStream>>) {
    let end = read_frames(&shared, read);
    tokio::select! {
        biased;
        lost = end => shared.end(lost, None),
        () = linger(&shared) => {}
    }
}

/// Reads until the end, whatever it is. After this end closed, what comes is read and dropped, so that the
/// kernel does not take the farewell back.
async fn read_frames(shared: &Shared, mut read: ReadHalf<TlsStream<TcpStream>>) -> Lost {
    let mut buffer = BytesMut::new();
    // the first window is due before anything came
    let window = shared.lock().incoming.poll_window();
    shared.grant(window);
    loop {
        let has_room = shared.wait(&shared.room, |state| {
            (state.incoming.control_len() < MAX_CONTROL_IN).then_some(())
        });
        let _over = has_room.await;
        let is_over = shared.lock().lost.is_some();
        buffer.reserve(READ_BYTES);
        match read.read_buf(&mut buffer).await {
            Ok(0) => return Lost::new(LostKind::Broken, "the peer went away"),
            Ok(_) if is_over => buffer.clear(),
            Ok(_) => loop {
                match Frame::take(&mut buffer) {
                    Ok(Some(frame)) => match shared.handle(frame) {
                        Ok(false) => {}
                        Ok(true) => return Lost::local(),
                        Err(violation) => return refuse(shared, violation),
                    },
                    Ok(None) => break,
                    Err(violation) => return refuse(shared, violation),
                }
            },
            Err(error) => return lost_of(&error, shared.peer),
        }
    }
}

fn refuse(shared: &Shared, violation: Violation) -> Lost {
    let text = violation.to_string();
    let code = crate::wire::Code::BadFrame.to_u8();
    let reason = Bytes::from(text.clone());
    let lost = Lost::new(LostKind::Broken, text);
    shared.end(lost.clone(), Some((code.into(), reason)));
    lost
}

async fn run_writer(
    shared: Arc<Shared>,
    write: WriteHalf<TlsStream<TcpStream>>,
    pacer: Option<Arc<dyn Pacer>>,
) {
    tokio::select! {
        biased;
        outcome = write_frames(&shared, write, pacer.as_deref()) => if let Err(error) = outcome {
            shared.end(lost_of(&error, shared.peer), None);
        },
        () = linger(&shared) => {}
    }
}

async fn write_frames(
    shared: &Shared,
    mut write: WriteHalf<TlsStream<TcpStream>>,
    pacer: Option<&dyn Pacer>,
) -> io::Result<()> {
    let mut out = Vec::with_capacity(2 * WRITE_BYTES);
    loop {
        // chosen only when it may leave, so that what is urgent overtakes until then
        let most = match pacer {
            Some(pacer) => {
                pacer.ready().await;
                pacer.most().clamp(1, WRITE_BYTES)
            }
            None => WRITE_BYTES,
        };
        let (done, is_over) = {
            let mut state = shared.lock();
            if state.lost.is_none() {
                (state.outgoing.poll_write(&mut out, most), false)
            } else {
                // what the session still had to say went before; data that waits is not sent
                if let Some((code, reason)) = state.farewell.take() {
                    Frame::Close { code, reason }.put(&mut out);
                }
                (Vec::new(), true)
            }
        };
        if !out.is_empty() {
            write.write_all(&out).await?;
            write.flush().await?;
            if let Some(pacer) = pacer {
                pacer.sent(out.len() + TLS_RECORD);
            }
            out.clear();
            shared.room.notify_waiters();
            for done in done {
                let _nobody_waits = done.send(());
            }
        } else if !is_over {
            // a permit is kept while nobody waits, so that nothing pushed meanwhile is missed
            shared.to_write.notified().await;
        }
        if is_over {
            return write.shutdown().await;
        }
    }
}

/// Ends some time after the connection.
async fn linger(shared: &Shared) {
    shared.ended.cancelled().await;
    tokio::time::sleep(LINGER).await;
}

/// The control stream's outgoing half.
#[derive(Debug)]
pub(super) struct ControlSend {
    connection: TcpConnection,
}

impl ControlSend {
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Lost> {
        let shared = &self.connection.shared;
        let has_room = shared.wait(&shared.room, |state| {
            (state.outgoing.control_len() < MAX_CONTROL_OUT && state.lost.is_none()).then_some(())
        });
        has_room.await?;
        shared.lock().outgoing.push_control(bytes);
        shared.to_write.notify_one();
        Ok(())
    }

    pub(super) async fn finish(self) {
        let (done, told) = oneshot::channel();
        let shared = &self.connection.shared;
        shared.lock().outgoing.end_control(done);
        shared.to_write.notify_one();
        tokio::select! {
            biased;
            _written = told => {}
            () = shared.ended.cancelled() => {}
        }
    }
}

/// The control stream's incoming half.
#[derive(Debug)]
pub(super) struct ControlRecv {
    connection: TcpConnection,
}

impl ControlRecv {
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        let shared = &self.connection.shared;
        let read = shared
            .wait(&shared.came, |state| state.incoming.take_control(buffer))
            .await?;
        shared.room.notify_waiters();
        Ok(read)
    }
}

/// A data stream that the peer sent, whole.
#[derive(Debug)]
pub(super) struct DataStreamIn {
    content: Result<Bytes, ReadError>,
    held: Held,
}

impl DataStreamIn {
    pub(super) async fn read<F, P>(self, max_len: usize, pay: F) -> Result<Bytes, ReadError>
    where
        F: Fn(usize) -> P + Send,
        P: Future<Output = ()> + Send,
    {
        let bytes = self.content?;
        pay(bytes.len()).await;
        drop(self.held);
        if bytes.len() > max_len {
            return Err(ReadError::TooLong);
        }
        Ok(bytes)
    }
}

/// Lets the peer send as much again when it is dropped.
struct Held {
    shared: Arc<Shared>,
    cost: u64,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("cost", &self.cost).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let window = {
            let mut state = self.shared.lock();
            state.incoming.release(self.cost);
            state.incoming.poll_window()
        };
        self.shared.grant(window);
    }
}

/// What an error of the socket or of TLS means.
fn lost_of(error: &io::Error, peer: Peer) -> Lost {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(_)) => Lost::new(
            LostKind::Refused,
            explain_tls(tls, error, peer, crate::time::wall_ms()),
        ),
        _ if error.kind() == io::ErrorKind::TimedOut => {
            Lost::new(LostKind::TimedOut, "the peer does not answer")
        }
        _ => Lost::new(
            LostKind::Broken,
            explain_tls(tls, error, peer, crate::time::wall_ms()),
        ),
    }
}
