//! Puts the parts of a hub together and runs them until the process is told to stop.
//!
//! The order matters: the admin listener first, so that an operator sees why a hub is not ready; the
//! lanes once Kafka answers; the intake last, so that no site is welcomed by a hub that cannot commit.

mod embedded;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime as _, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use shared::tasks::Tasks;
use shared::tls::ServerTls;
use shared::transport::{ProbeSocket, TcpLimits};
use shared::units::ByteSize;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::Node;
use crate::chunks::{ChunksConfig, SiteChunks};
use crate::commit::{Health, Lanes};
use crate::config::{Cluster, Config, ListenConfig};
use crate::intake::{Budget, CodecStates, Intake, IntakeConfig, IntakeStats, TcpDoor};
use crate::reloads::Reloads;
use crate::sites::Register;

/// QUIC version 1 (RFC 9000), and no draft.
const QUIC_V1: u32 = 1;
/// Kernel buffers of the UDP socket: hundreds of sites share it.
const SOCKET_BUFFER: usize = 4 << 20;
/// Reassembly of one stream. What comes is bounded by the connection's window; a stream's own is never what a site
/// waits for, or a large batch that is short of it would hold up those behind it while the connection has credit.
const STREAM_WINDOW: u32 = 3 << 20;
const _: () = assert!(STREAM_WINDOW as u64 >= 2 * Budget::MOST_RECEIVE_WINDOW);
/// Bytes of a connection that has no session yet that came and were not read.
const FIRST_RECEIVE_WINDOW: u32 = 128 << 10;
/// Data streams that a site may have open at once.
const STREAMS: u32 = 256;
/// Connections that the kernel has ready.
const TCP_BACKLOG: u32 = 1_024;
/// A path is asked for larger packets this often.
const MTU_LOOK: Duration = Duration::from_secs(60 * 60);
/// What the hub sends is little: acknowledgements.
const SEND_WINDOW: u64 = 1 << 20;
/// How often the configuration is looked at for changed rules.
const RULES_INTERVAL: Duration = Duration::from_secs(2);
/// How often certificate files are looked at.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(10);

/// What the intake and the admin listener share.
struct Parts {
    sites: Arc<Register>,
    intake: Arc<IntakeStats>,
    /// Where the configuration came from.
    file: Option<PathBuf>,
    health: Health,
    reloads: Arc<Reloads>,
}

/// Runs a hub until it is told to stop.
///
/// # Errors
/// What kept it from starting, or the part that took it down.
pub async fn run(
    mut config: Config,
    cluster: Cluster,
    file: Option<PathBuf>,
) -> anyhow::Result<()> {
    let mock = match cluster {
        Cluster::Embedded => {
            let lanes = i32::try_from(config.commit.lanes).unwrap_or(i32::MAX);
            let checkpoints = (config.commit.checkpoint_topic.to_string(), lanes);
            let dead_letters = (config.kafka.dead_letter_topic.to_string(), 1);
            Some(embedded::EmbeddedCluster::start(vec![
                checkpoints,
                dead_letters,
            ])?)
        }
        Cluster::Configured => None,
    };
    if let Some(cluster) = &mock {
        config.kafka.bootstrap = cluster.bootstrap().to_owned();
        warn!(
            bootstrap = cluster.bootstrap(),
            "Embedded cluster: nothing is kept"
        );
    }
    let tasks = Tasks::new();
    tasks.stop_on_signals().context("install signal handlers")?;
    let parts = Parts {
        sites: Arc::default(),
        intake: Arc::default(),
        file,
        health: Health::default(),
        reloads: Arc::default(),
    };
    let node = Node::new(
        config.commit.lanes,
        Arc::clone(&parts.sites),
        Arc::clone(&parts.intake),
        parts.health.clone(),
        Arc::clone(&parts.reloads),
        shared::time::now(),
    );
    let admin = TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("[admin] listen = \"{}\"", config.admin.listen))?;
    info!(address = %admin.local_addr()?, "Admin listens");
    let provider = Arc::new(node.clone());
    let stop = tasks.stopping();
    tasks.core("admin", async move {
        Ok(shared::admin::serve(admin, provider, stop).await?)
    });
    // sites may not be welcomed before, but their certificates and ports can be wrong now
    let tls = Arc::new(ServerTls::load(config.listen.tls.clone())?);
    let endpoint = listen(&config.listen, &tls)?;
    let door = tcp_door(&config.listen, endpoint.local_addr()?, &tls)?;
    tasks.core(
        "certificates",
        renew(
            tls,
            endpoint.clone(),
            config.listen.clone(),
            Arc::clone(&parts.reloads),
            tasks.stopping(),
        ),
    );
    let hub = serve(
        config.clone(),
        (endpoint, door),
        cluster,
        parts,
        node,
        tasks.clone(),
    );
    tasks.core("hub", hub);
    let outcome = tasks
        .finish(config.node.stop_timeout.duration() + Duration::from_secs(5))
        .await;
    drop(mock);
    outcome
}

async fn serve(
    config: Config,
    (endpoint, door): (Endpoint, Option<TcpDoor>),
    cluster: Cluster,
    parts: Parts,
    node: Node,
    tasks: Tasks,
) -> anyhow::Result<()> {
    let stop = tasks.stopping();
    let lanes_stop = CancellationToken::new();
    let mut settings = config.lanes();
    settings.topics.by_asking = cluster == Cluster::Embedded;
    let starting = Lanes::start(settings, lanes_stop.clone(), parts.health.clone());
    let mut lanes = tokio::select! {
        lanes = starting => lanes.context("start lanes")?,
        () = stop.cancelled() => return Ok(()),
    };
    let budget = Arc::new(Budget::new(
        config.listen.memory.bytes(),
        config.listen.max_batch.bytes() + shared::wire::STREAM_OVERHEAD,
        config.listen.session_window.bytes(),
    ));
    node.lanes_started(&lanes);
    let intake = Arc::new(Intake::new(
        intake_config(&config),
        lanes.router(),
        parts.sites,
        parts.intake,
        budget,
        Arc::new(codec_states(&config)?),
        Arc::new(site_chunks(&config)),
    ));
    node.intake_started(&intake);
    if let Some(file) = parts.file {
        let (intake, stop) = (Arc::clone(&intake), stop.clone());
        let rules = follow_rules(intake, file, cluster, parts.reloads, stop);
        tasks.core("rules", rules);
    }
    info!(address = %endpoint.local_addr()?, "Hub listens for sites");
    // sessions end before the lanes, so that what they handed in is committed
    let sessions = async {
        intake.serve(endpoint, door, stop).await;
        lanes_stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = lanes.join() => ended.context("a lane ended"),
        () = sessions => Ok(()),
    }
}

fn codec_states(config: &Config) -> anyhow::Result<CodecStates> {
    let listen = &config.listen;
    if let Some(directory) = &listen.codec_dir {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("listen.codec_dir = \"{}\"", directory.display()))?;
    }
    let limit = listen.codec_memory.bytes();
    let saved = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(CodecStates::new(
        saved,
        limit,
        listen.codec_dir.clone(),
        listen.codec_disk.bytes(),
    ))
}

fn site_chunks(config: &Config) -> SiteChunks {
    let listen = &config.listen;
    SiteChunks::new(ChunksConfig {
        directory: listen.codec_dir.clone(),
        max_site_bytes: listen.site_chunks.bytes(),
        max_bytes: listen.chunks.bytes(),
    })
}

fn intake_config(config: &Config) -> IntakeConfig {
    let listen = &config.listen;
    IntakeConfig {
        sites: config.sites.clone(),
        max_connections: listen.max_sessions,
        max_handshakes: listen.max_handshakes,
        admit_rate: listen.admit_rate,
        ingress: listen.ingress.map(ByteSize::bytes),
        max_logs: listen.max_logs,
        max_batch_bytes: u32::try_from(listen.max_batch.bytes()).unwrap_or(u32::MAX),
        keep_alive: listen.keep_alive.duration(),
        handshake_timeout: listen.handshake_timeout.duration(),
    }
}

/// Rules for sites that are changed in the file hold from then on; everything else at the next start.
async fn follow_rules(
    intake: Arc<Intake>,
    file: PathBuf,
    cluster: Cluster,
    reloads: Arc<Reloads>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let changed = |file: &PathBuf| {
        std::fs::metadata(file)
            .and_then(|meta| meta.modified())
            .ok()
    };
    let mut seen = changed(&file);
    loop {
        tokio::select! {
            () = tokio::time::sleep(RULES_INTERVAL) => {}
            () = stop.cancelled() => return Ok(()),
        }
        let now = changed(&file);
        if now == seen {
            continue;
        }
        seen = now;
        match Config::load(Some(&file), cluster) {
            Ok(config) => {
                reloads.file(None);
                if intake.set_sites(config.sites) {
                    info!("Rules for sites changed");
                }
            }
            Err(error) => {
                warn!(%error, "The changed file cannot be used, the old rules stay");
                reloads.file(Some(error.to_string()));
            }
        }
    }
}

/// New connections see certificates that were renewed on disk; open ones go on.
async fn renew(
    tls: Arc<ServerTls>,
    endpoint: Endpoint,
    config: ListenConfig,
    reloads: Arc<Reloads>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEWAL_INTERVAL) => {}
            () = stop.cancelled() => return Ok(()),
        }
        match tls.refresh(shared::time::wall_ms()) {
            Ok(is_new) => {
                reloads.certificates(None);
                if is_new {
                    endpoint.set_server_config(Some(server_config(&config, &tls)));
                    info!("Certificates renewed");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if reloads.certificates(Some(text)) {
                    warn!(%error, "Renewed certificates cannot be used, the old ones stay");
                }
            }
        }
    }
}

fn server_config(config: &ListenConfig, tls: &ServerTls) -> ServerConfig {
    let mut server = ServerConfig::with_crypto(tls.config());
    server.transport_config(Arc::new(transport(config)));
    server
}

fn listen(config: &ListenConfig, tls: &ServerTls) -> anyhow::Result<Endpoint> {
    let server = server_config(config, tls);
    let mut endpoint = EndpointConfig::default();
    endpoint.supported_versions(vec![QUIC_V1]);
    let socket = bind(config.address)
        .with_context(|| format!("[listen] address = \"{}\"", config.address))?;
    let socket = TokioRuntime.wrap_udp_socket(socket)?;
    // sites ask whether the hub is there before they send anything dear
    let socket = Arc::new(ProbeSocket::answering(socket, rand::random()));
    Ok(Endpoint::new_with_abstract_socket(
        endpoint,
        Some(server),
        socket,
        Arc::new(TokioRuntime),
    )?)
}

/// The same address over TCP.
fn tcp_door(
    config: &ListenConfig,
    address: SocketAddr,
    tls: &Arc<ServerTls>,
) -> anyhow::Result<Option<TcpDoor>> {
    if !config.tcp {
        return Ok(None);
    }
    let listener = bind_tcp(address).with_context(|| {
        format!("[listen] address = \"{address}\" over TCP; tcp = false does without")
    })?;
    let max_batch = usize::try_from(config.max_batch.bytes()).unwrap_or(usize::MAX);
    let limits = TcpLimits {
        max_data_len: shared::wire::max_stream_len(max_batch),
        window: FIRST_RECEIVE_WINDOW.into(),
    };
    let idle_timeout = config.idle_timeout.duration();
    let tls = Arc::clone(tls);
    Ok(Some(TcpDoor::new(listener, tls, limits, idle_timeout)))
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // a hub that starts anew finds its port free though old connections linger
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(TCP_BACKLOG)
}

fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // the kernel grants what it allows; less costs packets, not correctness
    for refused in [
        socket.set_recv_buffer_size(SOCKET_BUFFER).err(),
        socket.set_send_buffer_size(SOCKET_BUFFER).err(),
    ]
    .into_iter()
    .flatten()
    {
        warn!(%refused, "UDP socket buffers stay small");
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn transport(config: &ListenConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.interval(MTU_LOOK);
    transport
        .max_idle_timeout(IdleTimeout::try_from(config.idle_timeout.duration()).ok())
        // sites keep the NATs on the way awake, and more often: a second end that does costs twice
        .keep_alive_interval(Some(config.idle_timeout.duration() / 2))
        .mtu_discovery_config(Some(discovery))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(FIRST_RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None);
    transport
}
