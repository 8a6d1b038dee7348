//! Where sites knock over TCP: the same port as QUIC's, for networks that block UDP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shared::tls::ServerTls;
use shared::transport::{Connection, Lost, TcpConnection, TcpLimits, tune_tcp};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

/// Handshakes under way; who comes beyond is turned away before it costs anything.
const MAX_HANDSHAKES: usize = 64;
/// After a failed accept: usually the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The listener and what its connections are given.
#[derive(Debug)]
pub struct TcpDoor {
    listener: TcpListener,
    tls: Arc<ServerTls>,
    limits: TcpLimits,
    idle_timeout: Duration,
    handshakes: Arc<Semaphore>,
}

/// One who knocked.
#[derive(Debug)]
pub(super) struct Knock {
    stream: TcpStream,
    pub(super) remote: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    limits: TcpLimits,
    idle_timeout: Duration,
    _place: OwnedSemaphorePermit,
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
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
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
            let Ok(place) = Arc::clone(&self.handshakes).try_acquire_owned() else {
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
    /// The handshake.
    pub(super) async fn open(self) -> Result<Connection, Lost> {
        tune_tcp(&self.stream, self.idle_timeout);
        let accepting = TcpConnection::accept(self.stream, self.config, self.limits);
        Ok(Connection::Tcp(accepting.await?))
    }
}
