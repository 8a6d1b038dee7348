//! One way out of the machine: the local sockets of an uplink, bound to its address or interface.
//!
//! A path whose interface is not there yet (a modem that registers, a cable) is bound when it is used. What
//! is bound to an interface, or to nothing, survives a change of its address: the kernel takes the address
//! that the interface has, and QUIC carries the connection over (RFC 9000, section 9).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, TokioRuntime, VarInt};
use shared::congestion::RateLimit;
use shared::transport::{ProbeSocket, tune_tcp};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tracing::{info, warn};

use super::pacer::{Knock, TcpPacer};
use super::shaper::{Packets, Shaper};
use super::socket::ShapedSocket;
use crate::config::{Bind, PathConfig};

/// How long the last words may take when the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a path is bound to; nothing: the machine's routes decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Binding {
    /// A local address.
    pub address: Option<IpAddr>,
    /// A network interface, by name. Needs `CAP_NET_RAW` on kernels before 5.7.
    pub interface: Option<String>,
}

impl From<&Bind> for Binding {
    fn from(bind: &Bind) -> Self {
        match bind {
            Bind::Any => Self::default(),
            Bind::Local(address) => Self {
                address: Some(*address),
                interface: None,
            },
            Bind::Interface(name) => Self {
                address: None,
                interface: Some(name.clone()),
            },
        }
    }
}

/// One way out.
#[derive(Debug)]
pub(super) struct Outlet {
    /// As configured, for errors.
    name: String,
    binding: Binding,
    shaper: Arc<Shaper>,
    udp: Mutex<Option<Udp>>,
    /// Its address or interface was not there when it was last looked for.
    is_missing: AtomicBool,
}

/// The bound UDP socket under QUIC.
#[derive(Debug, Clone)]
pub(super) struct Udp {
    pub(super) endpoint: Endpoint,
    pub(super) socket: Arc<ProbeSocket>,
    pub(super) is_v6: bool,
    shaped: Arc<ShapedSocket>,
}

impl Udp {
    /// Datagrams that came, of whatever kind.
    pub(super) fn heard(&self) -> u64 {
        self.shaped.heard()
    }
}

impl Outlet {
    /// Everything that leaves and comes by it passes the shaper.
    pub(super) const fn new(name: String, binding: Binding, shaper: Arc<Shaper>) -> Self {
        Self {
            name,
            binding,
            shaper,
            udp: Mutex::new(None),
            is_missing: AtomicBool::new(false),
        }
    }

    /// What its policy allows, for congestion controllers.
    pub(super) fn limit(&self) -> RateLimit {
        self.shaper.limit()
    }

    /// Bytes that left by it.
    pub(super) fn sent(&self) -> u64 {
        self.shaper.traffic().sent
    }

    /// What holds TCP back here, for a connection to this address.
    pub(super) fn pacer(&self, peer: SocketAddr) -> Arc<TcpPacer> {
        Arc::new(TcpPacer::new(Arc::clone(&self.shaper), peer))
    }

    fn udp_slot(&self) -> MutexGuard<'_, Option<Udp>> {
        self.udp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The UDP socket, bound when it is not yet.
    ///
    /// # Errors
    /// The address or the interface is not there.
    pub(super) fn udp(&self) -> io::Result<Udp> {
        let mut slot = self.udp_slot();
        if let Some(udp) = &*slot {
            return Ok(udp.clone());
        }
        let udp = self.open()?;
        *slot = Some(udp.clone());
        Ok(udp)
    }

    /// Whether its address or interface is there at the moment; says so when that changes.
    pub(super) fn is_there(&self) -> bool {
        if self.binding == Binding::default() {
            return true;
        }
        let bound = self.bind();
        let is_there = bound.is_ok();
        if self.is_missing.swap(!is_there, Ordering::Relaxed) == is_there {
            match bound {
                Ok(_socket) => info!(path = self.name, "Path is there"),
                Err(error) => {
                    warn!(%error, "Path is not there");
                    // an interface that comes again is another one, whatever its name
                    drop(self.udp_slot().take());
                }
            }
        }
        is_there
    }

    fn open(&self) -> io::Result<Udp> {
        let (socket, is_v6) = self.bind()?;
        let shaped = ShapedSocket::wrap(socket, Arc::clone(&self.shaper))?;
        let socket = Arc::new(ProbeSocket::asking(Arc::clone(&shaped) as _));
        let below: Arc<dyn AsyncUdpSocket> = Arc::clone(&socket) as _;
        let endpoint = Endpoint::new_with_abstract_socket(
            EndpointConfig::default(),
            None,
            below,
            Arc::new(TokioRuntime),
        )?;
        Ok(Udp {
            endpoint,
            socket,
            is_v6,
            shaped,
        })
    }

    fn bind(&self) -> io::Result<(UdpSocket, bool)> {
        self.bind_any().map_err(|error| self.named(error))
    }

    /// Says which path it was, and what is not there.
    fn named(&self, error: io::Error) -> io::Error {
        let what = match (&self.binding.address, &self.binding.interface) {
            (Some(address), _) => format!("address {address}"),
            (None, Some(interface)) => format!("interface `{interface}`"),
            (None, None) => return error,
        };
        let text = format!("path `{}`, {what}: {error}", self.name);
        io::Error::new(error.kind(), text)
    }

    fn bind_any(&self) -> io::Result<(UdpSocket, bool)> {
        match self.binding.address {
            Some(address) => Ok((self.bind_to(address)?, address.is_ipv6())),
            // both IP versions where the machine has them
            None => match self.bind_to(Ipv6Addr::UNSPECIFIED.into()) {
                Ok(socket) => Ok((socket, true)),
                Err(_no_v6) => Ok((self.bind_to(Ipv4Addr::UNSPECIFIED.into())?, false)),
            },
        }
    }

    fn bind_to(&self, address: IpAddr) -> io::Result<UdpSocket> {
        let address = SocketAddr::from((address, 0));
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if domain == Domain::IPV6 && self.binding.address.is_none() {
            socket.set_only_v6(false)?;
        }
        self.bind_interface(&SockRef::from(&socket))?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    }

    fn bind_interface(&self, socket: &SockRef<'_>) -> io::Result<()> {
        match &self.binding.interface {
            Some(interface) => socket.bind_device(Some(interface.as_bytes())),
            None => Ok(()),
        }
    }

    /// Whether an address can be reached from here at all, as far as IP versions go.
    pub(super) fn speaks(&self, address: IpAddr) -> bool {
        match self.binding.address {
            Some(local) => local.is_ipv4() == address.is_ipv4(),
            None => true,
        }
    }

    /// A TCP connection from here. Its first packet is counted, and all of one that doesn't come about.
    ///
    /// # Errors
    /// The network's.
    pub(super) async fn connect_tcp(
        &self,
        to: SocketAddr,
        idle_timeout: Duration,
    ) -> io::Result<TcpStream> {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        let bound = self.bind_interface(&SockRef::from(&socket));
        let bound = bound.and_then(|()| match self.binding.address {
            Some(address) => socket.bind((address, 0).into()),
            None => Ok(()),
        });
        bound.map_err(|error| self.named(error))?;
        tune_tcp(&socket, idle_timeout);
        let knock = Knock::begin(&self.shaper, to).await;
        let connected = socket.connect(to).await;
        match &connected {
            Ok(_) => knock.open(),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => knock.refused(),
            Err(_) => drop(knock),
        }
        connected
    }

    /// A TCP connection to this address was opened and closed again, without a word.
    pub(super) fn count_visit(&self, peer: SocketAddr) {
        self.shaper.sent_already(Packets::tcp(3, 0, peer));
        self.shaper.received(Packets::tcp(3, 0, peer));
    }

    pub(super) async fn close(&self) {
        let udp = self.udp_slot().take();
        if let Some(udp) = udp {
            udp.endpoint.close(VarInt::from_u32(0), b"");
            let _late = tokio::time::timeout(CLOSE_TIMEOUT, udp.endpoint.wait_idle()).await;
        }
    }
}

/// Whether a path's address or interface is there at the moment.
///
/// # Errors
/// The system's, with the path and what is not there.
pub fn look_at_path(path: &PathConfig) -> io::Result<()> {
    let outlet = Outlet::new(path.name.clone(), Binding::from(&path.bind), Arc::default());
    outlet.bind().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::policy::Policy;

    #[tokio::test]
    async fn an_outlet_is_bound_to_its_address() {
        let binding = Binding {
            address: Some(Ipv4Addr::LOCALHOST.into()),
            interface: None,
        };
        let outlet = Outlet::new("lo".to_owned(), binding, Arc::default());
        let local = outlet.udp().unwrap().endpoint.local_addr().unwrap();
        assert!(local.ip().is_loopback() && outlet.is_there());
        assert!(outlet.speaks(Ipv4Addr::LOCALHOST.into()));
        assert!(!outlet.speaks(Ipv6Addr::LOCALHOST.into()));
    }

    #[tokio::test]
    async fn an_interface_that_is_not_there_is_an_error_and_no_more() {
        let binding = Binding {
            address: None,
            interface: Some("kedge-none0".to_owned()),
        };
        let outlet = Outlet::new("cell".to_owned(), binding, Arc::default());
        let is_named = |error: io::Error| {
            let text = error.to_string();
            assert!(
                text.starts_with("path `cell`, interface `kedge-none0`: "),
                "{text}"
            );
        };
        assert!(!outlet.is_there() && !outlet.is_there());
        is_named(outlet.udp().unwrap_err());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        is_named(outlet.connect_tcp(to, CLOSE_TIMEOUT).await.unwrap_err());
    }

    #[test]
    fn a_path_without_its_address_is_named() {
        let path = |bind| PathConfig {
            name: "cell".to_owned(),
            bind,
            policy: Policy::default(),
        };
        // for documentation (RFC 5737): no machine has it
        let missing = Bind::Local(Ipv4Addr::new(192, 0, 2, 77).into());
        let text = look_at_path(&path(missing)).unwrap_err().to_string();
        assert!(
            text.starts_with("path `cell`, address 192.0.2.77: "),
            "{text}"
        );
        assert!(look_at_path(&path(Bind::Local(Ipv4Addr::LOCALHOST.into()))).is_ok());
        assert!(look_at_path(&path(Bind::Any)).is_ok());
    }
}
