//! The two ends: quinn's state machines without sockets, clock or tasks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, ConnectionStats, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt,
};

use super::Setup;
use super::wire::Wire;

/// One data stream of the site.
const STREAM_BYTES: usize = 256 << 10;
/// What an alarm comes to.
const ALARM: &[u8] = &[1; 300];
/// What a thin link carries in a third of a second.
const PIECE: &[u8] = &[7; 9_600];
/// Flow control does not limit.
const WINDOW: u32 = 64 << 20;
/// Of bulk with the transport, at most.
const BACKLOG: u64 = 8 << 20;
const STREAMS: u32 = 1_024;
/// Datagrams of one call to send.
const TRAIN: usize = 10;
const NAME: &str = "hub";

/// An endpoint with one connection, and the streams that are under way.
pub(super) struct Peer {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    pub(super) address: SocketAddr,
    streams: Vec<StreamId>,
    /// What each stream carries, and how far the newest is.
    chunk: Bytes,
    written: usize,
    /// In all.
    total: u64,
}

impl Peer {
    fn new(
        endpoint: Endpoint,
        connection: Option<(ConnectionHandle, Connection)>,
        port: u16,
    ) -> Self {
        Self {
            endpoint,
            connection,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            streams: Vec::new(),
            chunk: Bytes::from(vec![7; STREAM_BYTES]),
            written: 0,
            total: 0,
        }
    }

    pub(super) fn handle(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let mut answer = Vec::new();
        let datagram = BytesMut::from(datagram);
        let event = self
            .endpoint
            .handle(now, from, None, None, datagram, &mut answer);
        match event {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut self.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = self.endpoint.accept(incoming, now, &mut answer, None);
                self.connection = accepted.ok();
            }
            // refusals and retries: the hub sends none
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    pub(super) fn transmit(&mut self, now: Instant, wire: &mut Wire) {
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, TRAIN, &mut buffer) {
            let size = transmit.segment_size.unwrap_or(transmit.size);
            buffer
                .chunks(size)
                .for_each(|datagram| wire.send(now, datagram));
            buffer.clear();
        }
    }

    pub(super) fn timeout(&mut self, now: Instant) {
        if let Some((_, connection)) = &mut self.connection
            && connection.poll_timeout().is_some_and(|at| at <= now)
        {
            connection.handle_timeout(now);
        }
    }

    pub(super) fn next(&mut self) -> Option<Instant> {
        self.connection.as_mut()?.1.poll_timeout()
    }

    pub(super) fn stats(&self) -> ConnectionStats {
        let stats = self.connection.as_ref().map(|(_, connection)| connection);
        stats.expect("the site dialled").stats()
    }

    /// As the uplink: a window and a quarter in pieces, and two pieces more.
    pub(super) fn write_pieces(&mut self) {
        let Some((_, connection)) = &mut self.connection else {
            return;
        };
        while let Some(event) = connection.poll() {
            if let Event::Stream(StreamEvent::Finished { id }) = event
                && self.streams.contains(&id)
            {
                self.streams.retain(|stream| *stream != id);
            }
        }
        if connection.is_handshaking() {
            return;
        }
        let window = connection.congestion_state().window();
        let most = window / 4 * 5 + 2 * PIECE.len() as u64;
        while (self.streams.len() * PIECE.len()) as u64 <= most {
            let Some(id) = connection.streams().open(Dir::Uni) else {
                return;
            };
            let mut stream = connection.send_stream(id);
            let written = stream.write(PIECE).expect("there is room");
            assert_eq!(written, PIECE.len(), "there is room");
            stream.finish().expect("it is open");
            self.streams.push(id);
        }
    }

    /// As much as flow control and buffers take and leave to an alarm, one stream after the other.
    pub(super) fn write(&mut self, received: u64) {
        let Some((_, connection)) = &mut self.connection else {
            return;
        };
        while connection.poll().is_some() {}
        while self.total < received + BACKLOG {
            if self.streams.is_empty() {
                self.streams.extend(connection.streams().open(Dir::Uni));
                self.written = 0;
            }
            let Some(&id) = self.streams.first() else {
                return;
            };
            let mut rest = [self.chunk.slice(self.written..)];
            match connection.send_stream(id).write_chunks(&mut rest) {
                Ok(more) => {
                    self.written += more.bytes;
                    self.total += more.bytes as u64;
                }
                Err(_blocked) => return,
            }
            if self.written == self.chunk.len() {
                connection.send_stream(id).finish().expect("it is open");
                self.streams.clear();
            }
        }
    }

    /// A small stream that goes before all others.
    pub(super) fn alarm(&mut self) -> Option<StreamId> {
        let (_, connection) = self.connection.as_mut()?;
        while connection.poll().is_some() {}
        let id = connection.streams().open(Dir::Uni)?;
        let mut stream = connection.send_stream(id);
        stream.set_priority(1).expect("it is open");
        stream.write(ALARM).ok()?;
        stream.finish().expect("it is open");
        Some(id)
    }

    /// Everything that is there: how many bytes, and the streams that ended.
    pub(super) fn read(&mut self) -> (u64, Vec<StreamId>) {
        let (mut received, mut ended) = (0, Vec::new());
        let Some((_, connection)) = &mut self.connection else {
            return (received, ended);
        };
        while connection.poll().is_some() {}
        while let Some(id) = connection.streams().accept(Dir::Uni) {
            self.streams.push(id);
        }
        self.streams.retain(|&id| {
            let (bytes, is_open) = drain(connection, id);
            received += bytes;
            if !is_open {
                ended.push(id);
            }
            is_open
        });
        (received, ended)
    }
}

fn drain(connection: &mut Connection, id: StreamId) -> (u64, bool) {
    let mut stream = connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(false) else {
        return (0, false);
    };
    let mut received = 0;
    let is_open = loop {
        match chunks.next(usize::MAX) {
            Ok(Some(chunk)) => received += chunk.bytes.len() as u64,
            Ok(None) => break false,
            Err(_blocked) => break true,
        }
    };
    let _credit = chunks.finalize();
    (received, is_open)
}

/// A site that dials, and a hub.
pub(super) fn pair(setup: &Setup, now: Instant) -> (Peer, Peer) {
    let certified = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("a name");
    let certificate = certified.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];

    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("ring speaks TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .expect("they belong together");
    let tls = QuicServerConfig::try_from(tls).expect("ring has the initial suite");
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW));
    server.transport_config(Arc::new(transport));
    let server = Some(Arc::new(server));
    let mut config = EndpointConfig::default();
    config.rng_seed(Some([7; 32]));
    let config = Arc::new(config);
    let hub = Endpoint::new(Arc::clone(&config), server, true, None);
    let hub = Peer::new(hub, None, 4433);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("it was just made");
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("ring speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = QuicClientConfig::try_from(tls).expect("ring has the initial suite");
    let mut client = ClientConfig::new(Arc::new(tls));
    let mut transport = TransportConfig::default();
    transport
        .send_window(u64::from(WINDOW))
        .congestion_controller_factory(Arc::clone(&setup.controller) as _);
    client.transport_config(Arc::new(transport));
    let mut site = Endpoint::new(config, None, true, None);
    let connection = site
        .connect(now, client, hub.address, NAME)
        .expect("the configuration is complete");
    (Peer::new(site, Some(connection), 40_000), hub)
}
