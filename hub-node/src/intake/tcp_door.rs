//! Where sites knock over TCP: the same port as QUIC's, for networks that block UDP.
//!
//! A connection costs nothing to open. So one address has only some of the places, and who says nothing loses
//! his soon: a TLS client speaks first.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::tls::ServerTls;
use shared::transport::{Connection, Lost, TcpConnection, TcpLimits, tune_tcp};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// Handshakes under way; who comes beyond is turned away before it costs anything.
const MAX_HANDSHAKES: usize = 256;
/// Of one address, or of one network of IPv6: many sites may be behind it.
const MAX_OF_ONE: usize = 32;
/// Until the first byte.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// After a failed accept: usually the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The listener and what its connections are given.
#[derive(Debug)]
pub struct TcpDoor {
    listener: TcpListener,
    tls: Arc<ServerTls>,
    limits: TcpLimits,
    idle_timeout: Duration,
    places: Arc<Places>,
}

/// Handshakes under way.
#[derive(Debug, Default)]
struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_network: BTreeMap<IpAddr, usize>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let network = network_of(address);
        let mut taken = self.lock();
        let of_one = taken.by_network.get(&network).copied().unwrap_or_default();
        if taken.all >= MAX_HANDSHAKES || of_one >= MAX_OF_ONE {
            return None;
        }
        taken.all += 1;
        taken.by_network.insert(network, of_one + 1);
        Some(Place {
            places: Arc::clone(self),
            network,
        })
    }
}

/// Whoever has an address of IPv6 has all of its /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// One handshake's.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    network: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        let left = taken.by_network.remove(&self.network);
        if let Some(left) = left.filter(|left| *left > 1) {
            taken.by_network.insert(self.network, left - 1);
        }
    }
}

/// One who knocked.
#[derive(Debug)]
pub(super) struct Knock {
    stream: TcpStream,
    pub(super) remote: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    limits: TcpLimits,
    idle_timeout: Duration,
    _place: Place,
}

impl TcpDoor {
    /// A door at a listener. Certificates are those that `tls` has when somebody knocks.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        tls: Arc<ServerTls>,
        limits: TcpLimits,
        idle_timeout: Duration,
    ) -> Self {
        Self {
            listener,
            tls,
            limits,
            idle_timeout,
            places: Arc::default(),
        }
    }

    /// The next who knocks. Cancel-safe.
    pub(super) async fn accept(&self) -> Knock {
        loop {
            let (stream, remote) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.pause(&error).await;
                    continue;
                }
            };
            let Some(place) = self.places.enter(remote.ip()) else {
                debug!(%remote, "Too many TLS handshakes: turned away");
                continue;
            };
            return Knock {
                stream,
                remote,
                config: self.tls.tcp_config(),
                limits: self.limits,
                idle_timeout: self.idle_timeout,
                _place: place,
            };
        }
    }

    async fn pause(&self, error: &io::Error) {
        debug!(%error, "TCP accept failed");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

impl Knock {
    /// Whether he says something soon.
    pub(super) async fn speaks(&self) -> bool {
        let first = tokio::time::timeout(FIRST_WORD, self.stream.readable());
        matches!(first.await, Ok(Ok(())))
    }

    /// The handshake.
    pub(super) async fn open(self) -> Result<Connection, Lost> {
        tune_tcp(&self.stream, self.idle_timeout);
        let accepting = TcpConnection::accept(self.stream, self.config, self.limits);
        Ok(Connection::Tcp(accepting.await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_have_all_places() {
        let places = Arc::new(Places::default());
        let greedy = "192.0.2.1".parse().unwrap();
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        let mut held: Vec<Place> = (0..MAX_OF_ONE)
            .filter_map(|_| places.enter(greedy))
            .collect();
        assert_eq!(held.len(), MAX_OF_ONE);
        assert!(places.enter(greedy).is_none() && places.enter(mapped).is_none());
        assert!(places.enter("192.0.2.2".parse().unwrap()).is_some());
        held.pop();
        assert!(places.enter(mapped).is_some());
        drop(held);
        let taken = places.lock();
        assert_eq!((taken.all, taken.by_network.len()), (0, 0));
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        let places = Arc::new(Places::default());
        let address = |network: u16, host: u16| {
            let host = Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host);
            IpAddr::from(host)
        };
        let held: Vec<Place> = (0..300)
            .filter_map(|host| places.enter(address(0, host)))
            .collect();
        assert_eq!(held.len(), MAX_OF_ONE);
        let more: Vec<Place> = (1..300)
            .filter_map(|at| places.enter(address(at, 1)))
            .collect();
        assert_eq!(held.len() + more.len(), MAX_HANDSHAKES);
    }
}
