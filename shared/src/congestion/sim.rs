//! Two QUIC connections over a simulated link in virtual time: the same seed loses the same packets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::congestion::ControllerFactory;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt,
};

/// IPv4 and UDP headers.
const HEADERS: u64 = 28;
/// One data stream of the simulated site.
const STREAM_BYTES: usize = 256 << 10;

/// One direction of a link: everything that matters to a controller.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Bits per second of IP packets.
    pub rate: u64,
    /// Bytes that wait before the rate.
    pub queue: u64,
    pub delay: Duration,
    pub jitter: Duration,
    /// In millionths, after the rate.
    pub loss: u64,
    /// The receiver sleeps so long in each so long.
    pub stall: (Duration, Duration),
}

impl Link {
    pub fn path(rate: u64, round_trip_ms: u64, loss: u64, queue_percent: u64) -> Self {
        Self {
            rate,
            queue: rate / 8 * round_trip_ms / 1000 * queue_percent / 100,
            delay: Duration::from_millis(round_trip_ms / 2),
            jitter: Duration::ZERO,
            loss,
            stall: (Duration::ZERO, Duration::from_secs(1)),
        }
    }
}

struct Wire {
    link: Link,
    began: Instant,
    free_from: Instant,
    flight: BTreeMap<(Instant, u64), Vec<u8>>,
    count: u64,
    dice: u64,
    last: Instant,
    is_up: bool,
    sent_bytes: u64,
    dropped: u64,
    /// Sum over packets of the time in the queue.
    waited: Duration,
    packets: u32,
}

impl Wire {
    fn new(link: Link, now: Instant, seed: u64) -> Self {
        Self {
            link,
            began: now,
            free_from: now,
            flight: BTreeMap::new(),
            count: 0,
            dice: seed,
            last: now,
            is_up: true,
            sent_bytes: 0,
            dropped: 0,
            waited: Duration::ZERO,
            packets: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn send(&mut self, now: Instant, datagram: Vec<u8>) {
        let bytes = datagram.len() as u64 + HEADERS;
        self.sent_bytes += bytes;
        let waiting = self.free_from.saturating_duration_since(now);
        self.waited += waiting;
        self.packets += 1;
        let waiting = waiting.as_nanos() * u128::from(self.link.rate) / 8_000_000_000;
        if !self.is_up
            || waiting > 0 && waiting + u128::from(bytes) > u128::from(self.link.queue) + 1500
        {
            self.dropped += 1;
            return;
        }
        let sending = Duration::from_nanos(bytes * 8_000_000_000 / self.link.rate);
        self.free_from = self.free_from.max(now) + sending;
        if self.below(1_000_000) < self.link.loss {
            return;
        }
        let mut release = self.free_from + self.link.delay;
        if !self.link.jitter.is_zero() {
            let spread = u64::try_from(self.link.jitter.as_nanos()).unwrap() * 2;
            release = release + Duration::from_nanos(self.below(spread)) - self.link.jitter;
        }
        let (asleep, every) = self.link.stall;
        let phase = (release - self.began).as_nanos() % every.as_nanos();
        if phase < asleep.as_nanos() {
            release += asleep - Duration::from_nanos(u64::try_from(phase).unwrap());
        }
        self.last = self.last.max(release);
        self.count += 1;
        self.flight.insert((self.last, self.count), datagram);
    }

    fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        let entry = self
            .flight
            .first_entry()
            .filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }
}

struct Peer {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    address: SocketAddr,
}

impl Peer {
    fn handle(&mut self, now: Instant, from: SocketAddr, datagram: &[u8], out: &mut Vec<Vec<u8>>) {
        let mut buffer = Vec::new();
        let event =
            self.endpoint
                .handle(now, from, None, None, BytesMut::from(datagram), &mut buffer);
        match event {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut self.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let mut buffer = Vec::new();
                let accepted = self.endpoint.accept(incoming, now, &mut buffer, None);
                self.connection = Some(accepted.ok().expect("the simulated client is welcome"));
            }
            Some(DatagramEvent::Response(transmit)) => out.push(buffer[..transmit.size].to_vec()),
            None => {}
        }
    }

    fn transmit(&mut self, now: Instant, wire: &mut Wire) {
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut buffer = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, 10, &mut buffer) {
            let size = transmit.segment_size.unwrap_or(transmit.size);
            for segment in buffer[..transmit.size].chunks(size) {
                wire.send(now, segment.to_vec());
            }
            buffer.clear();
        }
    }

    fn timeout(&mut self, now: Instant) {
        if let Some((_, connection)) = &mut self.connection {
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
        }
    }

    fn next(&mut self) -> Option<Instant> {
        self.connection.as_mut()?.1.poll_timeout()
    }
}

/// What came of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Received bytes of the application by what the rate could have carried.
    pub goodput: f64,
    /// Sent twice by what was sent.
    pub resent: f64,
    /// From the hub to the site by the other direction.
    pub answers: f64,
    /// Mean time in the queue, by the round trip.
    pub queue: f64,
    /// Since the link's end of an outage until the first new byte.
    pub back: Option<Duration>,
}

/// What may be changed.
#[derive(Clone)]
pub struct Setup {
    pub up: Link,
    pub controller: Arc<dyn ControllerFactory + Send + Sync>,
    pub acks: Option<AckFrequencyConfig>,
    pub seconds: u64,
    pub seed: u64,
    pub trace: bool,
    /// Seconds after the start and duration.
    pub outage: Option<(u64, u64)>,
    /// At this second the rate becomes this.
    pub new_rate: Option<(u64, u64)>,
}

/// Sends as much as it can for so long, from the first byte that arrives.
pub fn run(setup: &Setup) -> Outcome {
    let began = Instant::now();
    let mut now = began;
    let mut up = Wire::new(setup.up, now, setup.seed);
    let mut down = Wire::new(
        Link {
            loss: 0,
            ..setup.up
        },
        now,
        setup.seed + 1000,
    );
    let (mut site, mut hub) = peers(setup, now);
    let chunk = Bytes::from(vec![7_u8; STREAM_BYTES]);
    let mut stream: Option<(StreamId, usize)> = None;
    let mut received = 0_u64;
    let mut first: Option<Instant> = None;
    let mut traced = now;
    let mut seen = 0;
    let end = |first: Option<Instant>| {
        first.unwrap_or(began + Duration::from_secs(60)) + Duration::from_secs(setup.seconds)
    };
    let mut back = None;
    while now < end(first) {
        if let Some((at, long)) = setup.outage {
            let since = now.saturating_duration_since(began);
            up.is_up = !(Duration::from_secs(at)..Duration::from_secs(at + long)).contains(&since);
            down.is_up = up.is_up;
        }
        if let Some((at, rate)) = setup.new_rate {
            if now.saturating_duration_since(began) >= Duration::from_secs(at) {
                up.link.rate = rate;
            }
        }
        site.timeout(now);
        hub.timeout(now);
        let mut answers = Vec::new();
        while let Some(datagram) = up.due(now) {
            hub.handle(now, site.address, &datagram, &mut answers);
        }
        while let Some(datagram) = down.due(now) {
            site.handle(now, hub.address, &datagram, &mut Vec::new());
        }
        if let Some((_, connection)) = &mut site.connection {
            while connection.poll().is_some() {}
            write(connection, &chunk, &mut stream);
        }
        if let Some((_, connection)) = &mut hub.connection {
            while connection.poll().is_some() {}
            let new = read(connection);
            if new > 0 {
                first.get_or_insert(now);
                if let Some((at, long)) = setup.outage {
                    let restored = began + Duration::from_secs(at + long);
                    if now >= restored && back.is_none() {
                        back = Some(now - restored);
                    }
                }
            }
            received += new;
        }
        site.transmit(now, &mut up);
        hub.transmit(now, &mut down);
        answers
            .into_iter()
            .for_each(|answer| down.send(now, answer));
        let times = [
            site.next(),
            hub.next(),
            up.flight.first_key_value().map(|(key, _)| key.0),
            down.flight.first_key_value().map(|(key, _)| key.0),
        ];
        let Some(next) = times.into_iter().flatten().min() else {
            break;
        };
        now = now.max(next);
        if setup.trace && now > traced + setup.up.delay * 2 {
            let stats = site
                .connection
                .as_ref()
                .map(|(_, connection)| connection.stats())
                .unwrap();
            println!(
                "{:7.3}s window {:7} rtt {:6.1} ms rate {:.3} lost {} queue {:.2}",
                (now - began).as_secs_f64(),
                stats.path.cwnd,
                stats.path.rtt.as_secs_f64() * 1e3,
                (received - seen) as f64 * 8.0
                    / (now - traced).as_secs_f64()
                    / setup.up.rate as f64,
                stats.path.lost_packets,
                up.free_from.saturating_duration_since(now).as_secs_f64()
                    / setup.up.delay.as_secs_f64()
                    / 2.0,
            );
            (traced, seen) = (now, received);
        }
    }
    let stats = site
        .connection
        .as_ref()
        .map(|(_, connection)| connection.stats())
        .unwrap();
    let could = setup.up.rate as f64 / 8.0 * setup.seconds as f64;
    Outcome {
        goodput: received as f64 / could,
        resent: stats.path.lost_bytes as f64 / stats.udp_tx.bytes as f64,
        answers: down.sent_bytes as f64 / up.sent_bytes as f64,
        queue: (up.waited / up.packets).as_secs_f64() / setup.up.delay.as_secs_f64() / 2.0,
        back,
    }
}

fn write(connection: &mut Connection, chunk: &Bytes, stream: &mut Option<(StreamId, usize)>) {
    loop {
        if stream.is_none() {
            *stream = connection.streams().open(Dir::Uni).map(|id| (id, 0));
        }
        let Some((id, written)) = stream else { return };
        match connection
            .send_stream(*id)
            .write_chunks(&mut [chunk.slice(*written..)])
        {
            Ok(more) => *written += more.bytes,
            Err(_blocked) => return,
        }
        if *written == chunk.len() {
            connection.send_stream(*id).finish().expect("it is open");
            *stream = None;
        }
    }
}

fn read(connection: &mut Connection) -> u64 {
    let mut received = 0;
    let mut ids = Vec::new();
    while let Some(id) = connection.streams().accept(Dir::Uni) {
        ids.push(id);
    }
    // small ids suffice: streams are read as soon as anything arrives on them
    let open = OPEN.with(|open| {
        let mut open = open.borrow_mut();
        open.extend(ids);
        open.clone()
    });
    let mut done = Vec::new();
    for id in open {
        let mut stream = connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(false) else {
            done.push(id);
            continue;
        };
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => received += chunk.bytes.len() as u64,
                Ok(None) => {
                    done.push(id);
                    break;
                }
                Err(_blocked) => break,
            }
        }
        let _transmit = chunks.finalize();
    }
    OPEN.with(|open| open.borrow_mut().retain(|id| !done.contains(id)));
    received
}

thread_local! {
    static OPEN: std::cell::RefCell<Vec<StreamId>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn peers(setup: &Setup, now: Instant) -> (Peer, Peer) {
    OPEN.with(|open| open.borrow_mut().clear());
    let certified = rcgen::generate_simple_self_signed(vec!["hub".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let tls = QuicServerConfig::try_from(tls).unwrap();
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(1024))
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(64 << 20));
    server.transport_config(Arc::new(transport));
    let hub = Endpoint::new(
        Arc::new(EndpointConfig::default()),
        Some(Arc::new(server)),
        true,
        None,
    );
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = QuicClientConfig::try_from(tls).unwrap();
    let mut client = ClientConfig::new(Arc::new(tls));
    let mut transport = TransportConfig::default();
    transport
        .send_window(32 << 20)
        .congestion_controller_factory(Arc::clone(&setup.controller) as _)
        .ack_frequency_config(setup.acks.clone());
    client.transport_config(Arc::new(transport));
    let mut site = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let hub_address = SocketAddr::from((Ipv4Addr::LOCALHOST, 4433));
    let connection = site.connect(now, client, hub_address, "hub").unwrap();
    (
        Peer {
            endpoint: site,
            connection: Some(connection),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000)),
        },
        Peer {
            endpoint: hub,
            connection: None,
            address: hub_address,
        },
    )
}

fn _unused(_: Event, _: StreamEvent) {}
