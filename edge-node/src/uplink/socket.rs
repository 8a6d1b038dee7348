//! The UDP socket under QUIC, shaped: what leaves by it is counted and paced to the last datagram,
//! handshakes, repetitions and acknowledgements included.
//!
//! While the shaper holds, QUIC keeps the one datagram that it has built and builds no other: nothing queues
//! up in the kernel, and a critical record waits behind that one. How many datagrams QUIC may build at once
//! follows the rate.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::shaper::{Packets, Shaper, Timer};

/// A socket that a [`Shaper`] rules.
#[derive(Debug)]
pub struct ShapedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    shaper: Arc<Shaper>,
}

impl ShapedSocket {
    /// Puts a shaper on a socket.
    #[must_use]
    pub fn new(inner: Arc<dyn AsyncUdpSocket>, shaper: Arc<Shaper>) -> Self {
        Self { inner, shaper }
    }

    /// The same for a socket of the standard library, on tokio's runtime.
    ///
    /// # Errors
    /// When the system refuses what QUIC needs of it.
    pub fn wrap(socket: std::net::UdpSocket, shaper: Arc<Shaper>) -> io::Result<Arc<Self>> {
        let inner = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Arc::new(Self::new(inner, shaper)))
    }
}

impl AsyncUdpSocket for ShapedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(ShapedPoller {
            inner: Arc::clone(&self.inner).create_io_poller(),
            shaper: Arc::clone(&self.shaper),
            timer: Timer::default(),
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let packets = Packets::udp(
            transmit.contents.len(),
            transmit.segment_size,
            transmit.destination,
        );
        // counted before it leaves: the count may be too high for a moment and never too low
        if !self.shaper.try_take(packets) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inner
            .try_send(transmit)
            .inspect_err(|_| self.shaper.give_back(packets))
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(context, buffers, meta))?;
        for meta in meta.iter().take(count) {
            let packets = Packets::udp(meta.len, Some(meta.stride), meta.addr);
            self.shaper.received(packets);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner
            .max_transmit_segments()
            .min(self.shaper.max_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Waits for the shaper, then for the socket.
struct ShapedPoller {
    inner: Pin<Box<dyn UdpPoller>>,
    shaper: Arc<Shaper>,
    timer: Timer,
}

impl UdpPoller for ShapedPoller {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.shaper.poll_ready(&mut this.timer, context));
        this.inner.as_mut().poll_writable(context)
    }
}

impl fmt::Debug for ShapedPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShapedPoller").finish_non_exhaustive()
    }
}
