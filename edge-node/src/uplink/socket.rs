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
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

use super::shaper::{Packets, Shaper, Timer};

/// A socket that a [`Shaper`] rules.
#[derive(Debug)]
pub struct ShapedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    shaper: Arc<Shaper>,
    heard: AtomicU64,
}

impl ShapedSocket {
    /// Puts a shaper on a socket.
    #[must_use]
    pub fn new(inner: Arc<dyn AsyncUdpSocket>, shaper: Arc<Shaper>) -> Self {
        Self {
            inner,
            shaper,
            heard: AtomicU64::new(0),
        }
    }

    /// Datagrams that came.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
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
            self.heard.fetch_add(packets.count, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::Duration;

    use shared::units::BitRate;
    use tokio::time::Instant;

    use super::*;

    fn local() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[tokio::test]
    async fn what_leaves_is_counted_paced_and_arrives() {
        let shaper = Arc::new(Shaper::new());
        shaper.set_rates(Some(BitRate::mbit(2)), None);
        let receiver = local();
        receiver.set_nonblocking(true).unwrap();
        let destination = receiver.local_addr().unwrap();
        let socket = ShapedSocket::wrap(local(), Arc::clone(&shaper)).unwrap();
        assert_eq!(socket.max_transmit_segments(), 1);
        let mut poller = Arc::clone(&socket).create_io_poller();
        let start = Instant::now();
        let contents = [7; 1_222];
        for _ in 0..40 {
            poll_fn(|context| poller.as_mut().poll_writable(context))
                .await
                .unwrap();
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: &contents,
                segment_size: None,
                src_ip: None,
            };
            socket.try_send(&transmit).unwrap();
        }
        // 50,000 bytes at 250,000 a second, less one packet and the tolerance
        assert!(
            start.elapsed() >= Duration::from_millis(135),
            "{:?}",
            start.elapsed()
        );
        let sent = shaper.traffic();
        assert_eq!((sent.sent_packets, sent.sent), (40, 50_000));
        let mut buffer = [0; 2_000];
        let arrived = std::iter::from_fn(|| receiver.recv(&mut buffer).ok());
        assert_eq!(arrived.map(|len| len as u64 + 28).sum::<u64>(), 50_000);
    }

    #[tokio::test]
    async fn what_arrives_is_counted_and_what_is_held_does_not_leave() {
        let shaper = Arc::new(Shaper::new());
        let socket = ShapedSocket::wrap(local(), Arc::clone(&shaper)).unwrap();
        let sender = local();
        let address = socket.local_addr().unwrap();
        sender.send_to(&[1; 100], address).unwrap();
        let (mut space, mut meta) = ([0; 2_000], [RecvMeta::default()]);
        let count = poll_fn(|context| {
            let mut buffers = [IoSliceMut::new(&mut space)];
            socket.poll_recv(context, &mut buffers, &mut meta)
        });
        assert_eq!(count.await.unwrap(), 1);
        assert_eq!(
            (shaper.traffic().received, shaper.traffic().received_packets),
            (128, 1)
        );
        shaper.set_fence(0);
        let transmit = Transmit {
            destination: sender.local_addr().unwrap(),
            ecn: None,
            contents: &[1; 10],
            segment_size: None,
            src_ip: None,
        };
        let refused = socket.try_send(&transmit).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(shaper.traffic().sent, 0);
    }
}
