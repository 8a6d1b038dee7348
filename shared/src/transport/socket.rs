//! quinn's UDP socket with probes beside the QUIC packets: a hub answers them, a site asks and hears.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::broadcast;

use super::probe::{self, Echo, PROBE_LEN};

/// Answers in a second; a hub with more is being flooded.
const MAX_ANSWERS: u32 = 20_000;
/// Echoes that wait to be looked at.
const ECHOES: usize = 64;

/// The socket.
pub struct ProbeSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    role: Role,
}

enum Role {
    Answers { instance: u32, limit: PerSecond },
    Hears(broadcast::Sender<Heard>),
}

/// An answer that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// What it says.
    pub echo: Echo,
    /// From where.
    pub from: SocketAddr,
}

impl fmt::Debug for ProbeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeSocket")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl ProbeSocket {
    /// A hub's socket, which answers. `instance` is random for each start of the process.
    #[must_use]
    pub fn answering(inner: Arc<dyn AsyncUdpSocket>, instance: u32) -> Self {
        let limit = PerSecond::default();
        Self {
            inner,
            role: Role::Answers { instance, limit },
        }
    }

    /// A site's socket, which can ask.
    #[must_use]
    pub fn asking(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        let (echoes, _) = broadcast::channel(ECHOES);
        Self {
            inner,
            role: Role::Hears(echoes),
        }
    }

    /// Asks, from the same port as QUIC: a NAT on the way keeps the connection's entry. What cannot be sent
    /// at once is lost.
    pub fn ask(&self, to: SocketAddr, token: u64) {
        self.put(to, None, &probe::question(token));
    }

    /// The answers from here on. A hub's socket hears none.
    #[must_use]
    pub fn echoes(&self) -> broadcast::Receiver<Heard> {
        match &self.role {
            Role::Hears(echoes) => echoes.subscribe(),
            Role::Answers { .. } => broadcast::channel(1).1,
        }
    }

    fn put(&self, destination: SocketAddr, src_ip: Option<IpAddr>, contents: &[u8]) {
        let transmit = Transmit {
            destination,
            ecn: None,
            contents,
            segment_size: None,
            src_ip,
        };
        if let Err(error) = self.inner.try_send(&transmit) {
            tracing::trace!(%error, "Probe not sent");
        }
    }

    /// Takes probes out of what came; quinn skips what is left empty.
    fn sift(&self, datagrams: &[u8], meta: &mut RecvMeta) {
        // several datagrams from one sender come as one, all of the same length but the last
        if meta.stride != PROBE_LEN && meta.len != PROBE_LEN {
            return;
        }
        let datagrams = &datagrams[..meta.len.min(datagrams.len())];
        let mut are_probes = false;
        for datagram in datagrams.chunks(PROBE_LEN) {
            match &self.role {
                Role::Answers { instance, limit } => {
                    if let Some(answer) = probe::answer(datagram, *instance) {
                        are_probes = true;
                        if limit.may_pass(crate::time::now().as_secs()) {
                            self.put(meta.addr, meta.dst_ip, &answer);
                        }
                    }
                }
                Role::Hears(echoes) => {
                    if let Some(echo) = probe::read_answer(datagram) {
                        are_probes = true;
                        let from = meta.addr;
                        let _nobody_listens = echoes.send(Heard { echo, from });
                    }
                }
            }
        }
        if are_probes {
            meta.len = 0;
        }
    }
}

impl AsyncUdpSocket for ProbeSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(context, buffers, metas);
        if let Poll::Ready(Ok(count)) = &polled {
            for (buffer, meta) in buffers.iter().zip(metas.iter_mut()).take(*count) {
                self.sift(buffer, meta);
            }
        }
        polled
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Counts what passes in a second; races only let a few more pass.
#[derive(Debug, Default)]
struct PerSecond {
    second: AtomicU64,
    passed: AtomicU32,
}

impl PerSecond {
    fn may_pass(&self, second: u64) -> bool {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.passed.store(0, Ordering::Relaxed);
        }
        self.passed.fetch_add(1, Ordering::Relaxed) < MAX_ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use quinn::{Endpoint, EndpointConfig, Runtime as _, TokioRuntime};

    use super::*;

    fn bind() -> Arc<dyn AsyncUdpSocket> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        TokioRuntime.wrap_udp_socket(socket).unwrap()
    }

    fn endpoint(socket: &Arc<ProbeSocket>) -> Endpoint {
        let socket: Arc<dyn AsyncUdpSocket> = socket.clone();
        let config = EndpointConfig::default();
        Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime)).unwrap()
    }

    #[tokio::test]
    async fn a_hub_answers_beside_quic() {
        let hub = Arc::new(ProbeSocket::answering(bind(), 9));
        let site = Arc::new(ProbeSocket::asking(bind()));
        let _endpoints = (endpoint(&hub), endpoint(&site));
        let mut echoes = site.echoes();
        let to = hub.local_addr().unwrap();
        for token in [1, 2, 3] {
            // a socket that is new may not be known to be writable yet, at either end
            let heard = loop {
                site.ask(to, token);
                let heard = tokio::time::timeout(Duration::from_millis(200), echoes.recv());
                match heard.await {
                    Ok(Ok(heard)) if heard.echo.token == token => break heard,
                    Ok(_) | Err(_) => {}
                }
            };
            assert_eq!(heard.echo.instance, 9);
            assert_eq!(heard.from, to);
        }
    }

    #[test]
    fn a_flood_is_not_answered() {
        let limit = PerSecond::default();
        let passed = (0..2 * MAX_ANSWERS).filter(|_| limit.may_pass(5)).count();
        assert_eq!(passed, MAX_ANSWERS as usize);
        assert!(limit.may_pass(6));
    }
}
