//! quinn as a transport, with a controller of choice: data streams as the uplink's, one after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use quinn::congestion::ControllerFactory;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls;
use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, ServerConfig, TransportConfig, VarInt,
};
use system_tests::wan::{End, Lab};
use tokio::task::JoinSet;

use super::run::{LENGTH, PORT, Sample};

/// As large as the uplink's.
const STREAM_BYTES: usize = 256 << 10;
/// The windows of flow control do not limit: what is compared are the controllers.
const WINDOW: u32 = 64 << 20;
/// Streams under way at once. They share the connection, so that all end together: fewer than the window holds, and the
/// site would wait a round trip for new ones.
const STREAMS: u32 = 1024;
const NAME: &str = "hub";
const SOCKET_BUFFER: usize = 2 << 20;

/// Makes controllers.
pub(super) type Factory = Arc<dyn ControllerFactory + Send + Sync>;

pub(super) fn run(lab: &Lab, controller: Factory) -> Result<Sample> {
    let hub = SocketAddr::from((lab.link(0).address(End::Hub), PORT));
    let (server, client) = configs(controller)?;
    let is_over = AtomicBool::new(false);
    let sockets = (
        lab.inside(End::Hub, || socket(hub))??,
        lab.inside(End::Site, || {
            socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
        })??,
    );
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let received = block_on(receive(sockets.0, server));
            is_over.store(true, Ordering::Release);
            received
        });
        let resent = block_on(send(sockets.1, client, hub, &is_over));
        let bytes = receiver.join().ok().context("the receiver panicked")??;
        Ok(Sample {
            bytes,
            resent: resent?,
        })
    })
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

async fn send(
    socket: std::net::UdpSocket,
    client: ClientConfig,
    hub: SocketAddr,
    is_over: &AtomicBool,
) -> Result<f64> {
    let endpoint = endpoint(socket, None)?;
    let connection = endpoint
        .connect_with(client, hub, NAME)?
        .await
        .context("connect")?;
    let chunk = bytes::Bytes::from(vec![7; STREAM_BYTES]);
    while !is_over.load(Ordering::Acquire) {
        // the receiver closes when its time is over
        let Ok(mut stream) = connection.open_uni().await else {
            break;
        };
        if stream.write_chunk(chunk.clone()).await.is_err() {
            break;
        }
        stream.finish()?;
    }
    let stats = connection.stats();
    Ok(stats.path.lost_bytes as f64 / stats.udp_tx.bytes.max(1) as f64)
}

async fn receive(socket: std::net::UdpSocket, server: ServerConfig) -> Result<u64> {
    let endpoint = endpoint(socket, Some(server))?;
    let incoming = endpoint.accept().await.context("no connection")?;
    let connection = incoming.await.context("accept")?;
    let received = count(&connection).await?;
    connection.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    Ok(received)
}

/// From the first byte for so long.
async fn count(connection: &Connection) -> Result<u64> {
    let counter = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut streams = JoinSet::new();
    let mut first: Option<Instant> = None;
    loop {
        let wait = first.map_or(LENGTH * 2, |first| LENGTH.saturating_sub(first.elapsed()));
        tokio::select! {
            accepted = connection.accept_uni() => {
                let stream = accepted.context("the connection was lost")?;
                first.get_or_insert_with(Instant::now);
                streams.spawn(drain(stream, Arc::clone(&counter)));
            }
            Some(_ended) = streams.join_next() => {}
            () = tokio::time::sleep(wait) => break,
        }
    }
    Ok(counter.load(Ordering::Relaxed))
}

async fn drain(mut stream: RecvStream, counter: Arc<std::sync::atomic::AtomicU64>) {
    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, false).await {
        counter.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
    }
}

fn endpoint(socket: std::net::UdpSocket, server: Option<ServerConfig>) -> Result<Endpoint> {
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(
        quinn::EndpointConfig::default(),
        server,
        socket,
        runtime,
    )?)
}

fn socket(address: SocketAddr) -> Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn configs(controller: Factory) -> Result<(ServerConfig, ClientConfig)> {
    let certified = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
    let certificate = certified.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())?;
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(Arc::new(transport()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = transport();
    transport.congestion_controller_factory(controller);
    client.transport_config(Arc::new(transport));
    Ok((server, client))
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(u64::from(WINDOW))
        .keep_alive_interval(Some(Duration::from_secs(5)));
    transport
}
