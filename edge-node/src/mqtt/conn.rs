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
//!
//! Most connections are idle most of the time, and there are thousands. So what is large and short-lived
//! (the handshake, a packet that is carried out) is boxed while it runs, and [`wire`] holds no buffers.

mod acks;
mod client;
mod handshake;
mod room;
mod spare;
mod throttle;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::codec::{Malformed, put_disconnect};
use super::frame::FrameError;
use super::packet::{Version, reason};
use crate::access::RefusedLogins;
use crate::quota::{Place, Quota};
use client::Client;
use room::LOOK;
use throttle::passes;
use wire::Wire;

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
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The user that the client's certificate names.
    pub(super) certified: Option<String>,
    /// Bytes of a packet that its transport carries.
    pub(super) max_packet: usize,
}

/// One connection; consumed by [`Connection::serve`].
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) broker: Arc<Broker>,
    pub(super) peer: Box<Peer>,
    /// Its listener's.
    pub(super) quota: Arc<Quota>,
    pub(super) refused: Arc<RefusedLogins>,
    /// Among the listener's connections; given back with the connection.
    pub(super) _place: Place,
    pub(super) stop: CancellationToken,
}

impl Connection {
    /// Serves a client until it goes. What the future keeps is captured by it, where a parameter of an async
    /// function would be there twice.
    pub(super) fn serve<S>(self, stream: S) -> impl Future<Output = End> + Send
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let mut wire = Wire::new(stream, self.broker.config.max_connect_packet());
        async move {
            let end = match Box::pin(self.greet(&mut wire)).await {
                Ok(mut client) => {
                    let end = client.run(&mut wire).await;
                    Box::pin(client.part(&mut wire, &end)).await;
                    return end;
                }
                Err(end) => end,
            };
            Box::pin(wire.close(LAST_WORD)).await;
            end
        }
    }
}

impl<'b> Client<'b> {
    /// Carries out what comes and sends what is to be sent.
    async fn run<S>(&mut self, wire: &mut Wire<S>) -> End
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let mut timer = pin!(sleep_until(Instant::now()));
        loop {
            if let Err(end) = self.work(wire).await {
                return end;
            }
            let next = std::future::poll_fn(|cx| self.poll_next(wire, timer.as_mut(), cx)).await;
            if let Err(end) = next {
                return end;
            }
        }
    }

    /// What can be done without waiting for the client.
    async fn work<S>(&mut self, wire: &mut Wire<S>) -> Result<(), End>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        if self.broker.is_stopping() {
            return Err(End::Stopped);
        }
        self.check()?;
        wire.excuse(self.acks.len() >= MAX_ACKS);
        wire.lend();
        while self.may_work(wire) {
            // what waits for a rate is taken early when others wait for what it holds
            if self.throttle.pause().is_none() || wire.holds_up(&self.broker.intake) {
                let Some(frame) = wire.next()? else { break };
                self.carry_out(&frame, wire).await?;
                wire.carried_out();
                continue;
            }
            if wire.held.is_full() {
                break;
            }
            let Some(frame) = wire.frame()? else { break };
            let is_publish = frame.0 >> 4 == 3;
            if passes(&frame) || !is_publish && wire.held.is_empty() {
                self.carry_out(&frame, wire).await?;
                wire.carried_out();
            } else {
                wire.held.push(frame);
            }
        }
        self.release_received(&mut wire.output).await?;
        self.answer(&mut wire.output)?;
        self.deliver(&mut wire.output).await
    }

    /// Sends what is there, and waits for something to do: outputs before inputs before timers. Whoever
    /// stops the node or takes the session wakes it.
    fn poll_next<S>(
        &mut self,
        wire: &mut Wire<S>,
        timer: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let was_full = wire.is_full();
        let pushed = wire.poll_push(cx)?;
        let stats = &self.broker.stats;
        if pushed > 0 {
            stats.bytes_out.fetch_add(pushed as u64, Ordering::Relaxed);
        }
        let mut is_due = self.sent(pushed, wire.output.len());
        is_due |= was_full && !wire.is_full();
        is_due |= self.poll_rooms(cx).is_ready();
        is_due |= !wire.is_full() && self.acks.poll_ready(cx).is_ready();
        is_due |= self.session.state().poll_woken(self.number, cx).is_ready();
        let may_go_on = self.throttle.pause().is_none() || wire.holds_up(&self.broker.intake);
        is_due |= self.may_work(wire) && !wire.held.is_empty() && may_go_on;
        is_due |= !wire.is_full() && self.may_deliver_again();
        let may_read = self.may_work(wire) && !wire.held.is_full();
        is_due |= may_read && wire.has_frames;
        if may_read
            && !wire.has_frames
            && !wire.has_ended
            && let Poll::Ready(count) = wire.poll_fill(cx, &self.broker.intake)?
        {
            stats.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
            is_due = true;
        }
        // what came before the end is carried out, also when it has to wait
        if wire.has_ended && wire.held.is_empty() && !wire.has_frames {
            return Poll::Ready(Err(End::Closed));
        }
        if wire.is_hogging(&self.broker.intake, self.broker.config.patience) {
            return Poll::Ready(Err(End::TooSlow));
        }
        if self.is_hogging() {
            return Poll::Ready(Err(End::NotReading));
        }
        if is_due {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(poll_until(timer, self.deadline(wire), cx));
        Poll::Ready(self.overdue(wire).map_or(Ok(()), Err))
    }

    fn may_work<S>(&self, wire: &Wire<S>) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acks.len() < MAX_ACKS && !wire.is_full()
    }

    /// The end of a connection: what was published is settled, the session let go, the client told.
    async fn part<S>(&mut self, wire: &mut Wire<S>, end: &End)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        self.settle(wire).await;
        // the client's next connection waits for what is released, and needs the place
        self.place = None;
        self.broker
            .release(&self.session, self.number, end.keeps_will());
        if let Some(code) = end.code() {
            put_disconnect(&mut wire.output, self.version, code);
        }
        wire.close(LAST_WORD).await;
    }

    fn deadline<S>(&self, wire: &Wire<S>) -> Option<Instant>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = &self.broker.config;
        let silent = self.keep_alive.map(|limit| wire.last_in + limit);
        let slow = wire
            .partial_since
            .map(|since| since + config.packet_timeout);
        let stuck = wire.stuck_since.map(|since| since + config.write_timeout);
        let pauses = [self.throttle.pause(), self.throttle.delivery_pause()];
        let [publish, delivery] = pauses.map(|wait| wait.map(|wait| Instant::now() + wait));
        let look = (wire.has_room() || self.has_room()).then(|| Instant::now() + LOOK);
        [silent, slow, stuck, publish, delivery, look]
            .into_iter()
            .flatten()
            .min()
    }

    fn overdue<S: AsyncRead + AsyncWrite + Unpin>(&self, wire: &mut Wire<S>) -> Option<End> {
        wire.excuse(self.acks.len() >= MAX_ACKS);
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

/// Ready when a deadline is there and over. The timer is set again only when it would ring too late: with
/// every packet the deadline moves away.
fn poll_until(
    mut timer: Pin<&mut Sleep>,
    deadline: Option<Instant>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let Some(deadline) = deadline else {
        return Poll::Pending;
    };
    if timer.deadline() > deadline {
        timer.as_mut().reset(deadline);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if Instant::now() >= deadline {
            return Poll::Ready(());
        }
        timer.as_mut().reset(deadline);
    }
    Poll::Pending
}

/// Whether this is the version that has reason codes.
fn has_codes(version: Version) -> bool {
    version == Version::V5
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::mqtt::broker::Session;

    fn size_of_future<F>(_: impl FnOnce(Connection, TcpStream) -> F) -> usize {
        size_of::<F>()
    }

    /// There are thousands of them.
    #[test]
    fn an_idle_connection_is_small() {
        let connection = size_of_future(Connection::serve::<TcpStream>);
        assert!(connection <= 1024, "{connection} bytes");
        let session = size_of::<Session>();
        assert!(session <= 512, "{session} bytes");
    }
}
