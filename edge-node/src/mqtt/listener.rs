//! Accepts MQTT clients, up to a limit, and runs what they share.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, info, warn};

use super::broker::{Broker, run_timers};
use super::conn::{Connection, End, Peer};
use super::{Endpoint, MqttConfig, Services, TopicMap, Transport, tail, websocket};
use crate::tls::{self, Acceptor};

/// Pause after `accept` failed: it does at once again while file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound sockets, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<(TcpListener, Endpoint)>,
    broker: Arc<Broker>,
}

type Accepted<'s> = (io::Result<(TcpStream, SocketAddr)>, &'s Endpoint);

impl Listener {
    /// Binds the sockets and reads what an earlier process left.
    ///
    /// # Errors
    /// An address is taken or not ours, or the disk fails.
    pub async fn bind(config: MqttConfig, map: TopicMap, services: Services) -> io::Result<Self> {
        let mut sockets = Vec::with_capacity(config.endpoints.len());
        for endpoint in &config.endpoints {
            let bind = endpoint.bind;
            let socket = TcpListener::bind(bind).await;
            let socket =
                socket.map_err(|error| io::Error::new(error.kind(), format!("{bind}: {error}")))?;
            sockets.push((socket, endpoint.clone()));
        }
        let load = move || Broker::load_from(config, map, services);
        let broker = tokio::task::spawn_blocking(load)
            .await?
            .map_err(io::Error::other)?;
        Ok(Self { sockets, broker })
    }

    /// Where they are bound, in the order of the configuration.
    ///
    /// # Errors
    /// The operating system's.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets
            .iter()
            .map(|(socket, _)| socket.local_addr())
            .collect()
    }

    /// Serves clients until `stop`; then answers what is in flight, within the drain timeout.
    pub async fn run(self, stop: CancellationToken) {
        let Self { sockets, broker } = self;
        let limit = broker.config.drain_timeout;
        // the tail goes on while connections end
        let last = CancellationToken::new();
        let mut shared = JoinSet::new();
        shared.spawn(tail::run(broker.clone(), last.clone()));
        shared.spawn(run_timers(broker.clone(), last.clone()));
        for acceptor in sockets
            .iter()
            .filter_map(|(_, endpoint)| endpoint.tls.clone())
        {
            shared.spawn(tls::keep_fresh(acceptor, last.clone()));
        }
        let mut pool = Pool {
            tasks: JoinSet::new(),
            next: 0,
            broker: broker.clone(),
            stop: stop.child_token(),
        };
        loop {
            tokio::select! {
                biased;
                () = pool.stop.cancelled() => break,
                Some(ended) = pool.tasks.join_next() => pool.ended(ended),
                Some(ended) = shared.join_next() => {
                    warn!(?ended, "A part of MQTT ended");
                    break;
                }
                (accepted, endpoint) = accept(&sockets) => pool.accepted(accepted, endpoint).await,
            }
        }
        drop(sockets);
        pool.stop.cancel();
        broker.stop_connections();
        pool.drain(limit).await;
        broker.gather.close();
        broker.tasks.close();
        let is_done = timeout(limit, broker.tasks.wait()).await.is_ok();
        last.cancel();
        while shared.join_next().await.is_some() {}
        info!(is_done, "MQTT listener stopped");
    }
}

/// The next connection on any of them. Cancel-safe.
async fn accept(sockets: &[(TcpListener, Endpoint)]) -> Accepted<'_> {
    std::future::poll_fn(|cx| {
        for (socket, endpoint) in sockets {
            if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                return Poll::Ready((accepted, endpoint));
            }
        }
        Poll::Pending
    })
    .await
}

/// The open connections.
#[derive(Debug)]
struct Pool {
    tasks: JoinSet<End>,
    next: u64,
    broker: Arc<Broker>,
    stop: CancellationToken,
}

impl Pool {
    async fn accepted(
        &mut self,
        accepted: io::Result<(TcpStream, SocketAddr)>,
        endpoint: &Endpoint,
    ) {
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "Accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return;
            }
        };
        let stats = &self.broker.stats;
        let is_full = self.tasks.len() >= self.broker.config.max_connections;
        let place = endpoint.quota.connect().filter(|_| !is_full);
        let Some(place) = place else {
            stats.refused_connections.fetch_add(1, Ordering::Relaxed);
            debug!("Connection refused: there are as many as allowed");
            return;
        };
        stats.accepted.fetch_add(1, Ordering::Relaxed);
        stats.open.fetch_add(1, Ordering::Relaxed);
        self.next += 1;
        let connection = Connection {
            broker: self.broker.clone(),
            peer: Box::new(Peer {
                address,
                certified: None,
                max_packet: match endpoint.transport {
                    Transport::Tcp => usize::MAX,
                    Transport::WebSocket => websocket::MAX_MESSAGE,
                },
            }),
            quota: endpoint.quota.clone(),
            refused: endpoint.refused.clone(),
            _place: place,
            stop: self.stop.clone(),
        };
        // slower without, not wrong
        drop(stream.set_nodelay(true));
        // one that is enabled takes as much memory as a session; connections tell what they do at DEBUG
        let span = debug_span!("mqtt", conn = self.next);
        // a plain connection takes no more memory for what others need
        match (endpoint.tls.clone(), endpoint.transport) {
            (None, Transport::Tcp) => {
                self.tasks.spawn(connection.serve(stream).instrument(span));
            }
            (None, Transport::WebSocket) => {
                self.tasks
                    .spawn(serve_websocket(connection, stream).instrument(span));
            }
            (Some(acceptor), transport) => {
                let served = serve_tls(connection, stream, transport, acceptor);
                self.tasks.spawn(served.instrument(span));
            }
        }
    }

    fn ended(&mut self, ended: Result<End, JoinError>) {
        let stats = &self.broker.stats;
        stats.open.fetch_sub(1, Ordering::Relaxed);
        match ended {
            Ok(end) if end.is_ordinary() => debug!(%end, "Connection ended"),
            Ok(end) => {
                stats.failed.fetch_add(1, Ordering::Relaxed);
                debug!(%end, "Connection ended by an error");
            }
            Err(error) => {
                stats.failed.fetch_add(1, Ordering::Relaxed);
                warn!(%error, "Connection task failed");
            }
        }
    }

    async fn drain(&mut self, limit: Duration) {
        let connections = self.tasks.len();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                self.ended(ended);
            }
        };
        let is_done = timeout(limit, all).await.is_ok();
        info!(connections, is_done, "MQTT clients are disconnected");
    }
}

async fn serve_websocket<S>(connection: Connection, stream: S) -> End
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let limit = connection.broker.config.connect_timeout;
    match timeout(limit, Box::pin(websocket::accept(stream))).await {
        Ok(Ok(stream)) => Box::pin(connection.serve(stream)).await,
        Ok(Err(error)) => error.into(),
        Err(_) => End::NoConnect,
    }
}

async fn serve_tls(
    mut connection: Connection,
    stream: TcpStream,
    transport: Transport,
    acceptor: Arc<Acceptor>,
) -> End {
    let limit = connection.broker.config.connect_timeout;
    let acceptor = TlsAcceptor::from(acceptor.config());
    let stream = match timeout(limit, Box::pin(acceptor.accept(stream))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return error.into(),
        Err(_) => return End::NoConnect,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    connection.peer.certified = certificates.and_then(|chain| tls::common_name(chain.first()?));
    match transport {
        Transport::Tcp => Box::pin(connection.serve(stream)).await,
        Transport::WebSocket => Box::pin(serve_websocket(connection, stream)).await,
    }
}
