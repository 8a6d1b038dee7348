//! What a connection promises, held against both transports over loopback.

use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_like::join_all;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::time::wall_ms;
use crate::tls::tests::World;
use crate::tls::{ClientTls, Peer};

/// Generous: a loaded machine is no failure.
const LIMIT: Duration = Duration::from_secs(30);
const MAX_LEN: usize = 5 << 20;

/// Two ends, and what must live as long as they.
struct Pair {
    site: Connection,
    hub: Connection,
    endpoints: Vec<quinn::Endpoint>,
}

async fn connect(kind: TransportKind) -> Pair {
    let world = World::new();
    let client = world.good_site();
    connect_as(kind, &world, &client).await.unwrap()
}

async fn connect_as(
    kind: TransportKind,
    world: &World,
    client: &ClientTls,
) -> Result<Pair, (Lost, Lost)> {
    let meeting = async {
        match kind {
            TransportKind::Quic => over_quic(world, client, None).await,
            TransportKind::Tcp => over_tcp(world, client).await,
        }
    };
    timeout(LIMIT, meeting).await.expect("a handshake in time")
}

/// `windows`: what the hub takes of the connection and of a stream before it is read.
async fn over_quic(
    world: &World,
    client: &ClientTls,
    windows: Option<[u32; 2]>,
) -> Result<Pair, (Lost, Lost)> {
    let mut server = quinn::ServerConfig::with_crypto(world.good_hub().config());
    if let Some([all, stream]) = windows {
        let mut transport = quinn::TransportConfig::default();
        transport
            .receive_window(all.into())
            .stream_receive_window(stream.into());
        server.transport_config(Arc::new(transport));
    }
    let hub = quinn::Endpoint::server(server, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let site = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut transport = quinn::TransportConfig::default();
    let cubic = Arc::new(quinn::congestion::CubicConfig::default());
    let nudge = NudgeHandle::prepare(&mut transport, cubic, 1 << 20);
    let mut config = quinn::ClientConfig::new(client.config());
    config.transport_config(Arc::new(transport));
    let address = hub.local_addr().unwrap();
    let dial = async {
        let connecting = site.connect_with(config, address, "127.0.0.1").unwrap();
        let connection = connecting
            .await
            .map_err(|error| Lost::from((&error, Peer::Hub)))?;
        let connection = QuicConnection::new(connection, Peer::Hub).with_nudge(nudge);
        Ok::<_, Lost>(Connection::Quic(connection))
    };
    let accept = async {
        let connection = hub.accept().await.unwrap().await;
        let connection = connection.map_err(|error| Lost::from((&error, Peer::Site)))?;
        Ok::<_, Lost>(Connection::Quic(QuicConnection::new(
            connection,
            Peer::Site,
        )))
    };
    let ends = tokio::join!(dial, accept);
    pair(ends, vec![site, hub]).await
}

async fn over_tcp(world: &World, client: &ClientTls) -> Result<Pair, (Lost, Lost)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let dial = async {
        let stream = TcpStream::connect(address).await.unwrap();
        tune_tcp(&stream, LIMIT);
        let connection = connect_tcp(stream, client.tcp_config(), "127.0.0.1", None).await?;
        Ok::<_, Lost>(Connection::Tcp(connection))
    };
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        let limits = TcpLimits {
            max_data_len: MAX_LEN,
            window: 1 << 20,
        };
        let config = world.good_hub().tcp_config();
        let connection = TcpConnection::accept(stream, config, limits).await?;
        Ok::<_, Lost>(Connection::Tcp(connection))
    };
    let ends = tokio::join!(dial, accept);
    pair(ends, Vec::new()).await
}

/// A hub's refusal reaches the site after its own handshake.
async fn pair(
    ends: (Result<Connection, Lost>, Result<Connection, Lost>),
    endpoints: Vec<quinn::Endpoint>,
) -> Result<Pair, (Lost, Lost)> {
    match ends {
        (Ok(site), Ok(hub)) => Ok(Pair {
            site,
            hub,
            endpoints,
        }),
        (Ok(site), Err(at_hub)) => Err((site.closed().await, at_hub)),
        (Err(at_site), Err(at_hub)) => Err((at_site, at_hub)),
        (Err(at_site), Ok(hub)) => Err((at_site, hub.closed().await)),
    }
}

/// Runs a promise on each transport.
macro_rules! contract {
    ($($name:ident),+ $(,)?) => {
        mod quic {
            $(#[tokio::test]
            async fn $name() {
                tokio::time::timeout(super::LIMIT, super::$name(super::TransportKind::Quic)).await.expect("in time");
            })+
        }
        mod tcp {
            $(#[tokio::test]
            async fn $name() {
                tokio::time::timeout(super::LIMIT, super::$name(super::TransportKind::Tcp)).await.expect("in time");
            })+
        }
    };
}

contract! {
    control_bytes_go_both_ways_in_order,
    data_streams_arrive_whole_and_equals_in_order,
    a_stream_beyond_the_limit_is_told,
    a_higher_priority_overtakes_what_is_on_its_way,
    who_takes_nothing_holds_data_back_and_not_control,
    the_reason_of_an_end_reaches_the_other,
    the_last_handle_ends_the_connection,
    a_goodbye_arrives_before_the_end,
    a_site_is_known_by_its_certificate,
    a_stranger_is_refused_and_told,
    bytes_are_counted,
}

async fn read_control(recv: &mut ControlRecv, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 1_000];
    while all.len() < len {
        match recv.read(&mut buffer).await.unwrap() {
            Some(read) => all.extend_from_slice(&buffer[..read]),
            None => break,
        }
    }
    all
}

async fn control(pair: &Pair) -> [(ControlSend, ControlRecv); 2] {
    let (mut send, recv) = pair.site.open_control().await.unwrap();
    // a stream is there for the other end when its first byte is
    send.write(Bytes::from_static(b"!")).await.unwrap();
    let (hub_send, mut hub_recv) = pair.hub.accept_control().await.unwrap();
    assert_eq!(read_control(&mut hub_recv, 1).await, b"!");
    [(send, recv), (hub_send, hub_recv)]
}

async fn control_bytes_go_both_ways_in_order(kind: TransportKind) {
    let pair = connect(kind).await;
    let [(mut send, mut recv), (mut hub_send, mut hub_recv)] = control(&pair).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let bytes = Bytes::from(sent.clone());
    let up = async {
        for start in (0..bytes.len()).step_by(100_000) {
            send.write(bytes.slice(start..start + 100_000))
                .await
                .unwrap();
        }
        send.finish().await;
    };
    let echo = async {
        let all = read_control(&mut hub_recv, usize::MAX).await;
        hub_send.write(Bytes::from(all)).await.unwrap();
    };
    let (_, _, back) = tokio::join!(up, echo, read_control(&mut recv, sent.len()));
    assert!(back == sent);
}

async fn data_streams_arrive_whole_and_equals_in_order(kind: TransportKind) {
    let pair = connect(kind).await;
    let lens = [0, 1, 3 << 20, 17, 40_000, 4 << 20];
    let sending: Vec<Sending> = lens
        .iter()
        .map(|len| {
            let payload = Bytes::from(vec![u8::try_from(len % 251).unwrap(); *len]);
            pair.site.send(Bytes::from_static(b"head"), payload, 0)
        })
        .collect();
    let receive = async {
        for len in lens {
            let stream = pair.hub.accept_data().await.unwrap();
            let bytes = stream.read(MAX_LEN).await.unwrap();
            assert_eq!(&bytes[..4], b"head");
            assert_eq!(bytes.len(), 4 + len);
            let last = bytes.last().copied().unwrap();
            assert!(len == 0 || usize::from(last) == len % 251);
        }
    };
    let (sent, ()) = tokio::join!(join_all(sending), receive);
    assert!(sent.iter().all(Result::is_ok));
}

async fn a_stream_beyond_the_limit_is_told(kind: TransportKind) {
    let pair = connect(kind).await;
    let long = Bytes::from(vec![0; MAX_LEN]);
    let sending = pair.site.send(Bytes::from_static(b"x"), long, 0);
    let receive = async {
        let stream = pair.hub.accept_data().await.unwrap();
        assert_eq!(stream.read(MAX_LEN).await, Err(ReadError::TooLong));
        pair.hub.close(7, b"limit");
    };
    let (_either, ()) = tokio::join!(sending, receive);
}

async fn a_higher_priority_overtakes_what_is_on_its_way(kind: TransportKind) {
    let pair = connect(kind).await;
    let bulk = pair
        .site
        .send(Bytes::new(), Bytes::from(vec![0; 4 << 20]), 0);
    let alarm = pair.site.send(Bytes::new(), Bytes::from_static(b"fire"), 5);
    let receive = async {
        let mut first = None;
        let reads =
            (0..2).map(|_| async { pair.hub.accept_data().await.unwrap().read(MAX_LEN).await });
        let mut reads: Vec<_> = reads.map(Box::pin).collect();
        poll_fn(|context| {
            reads.retain_mut(|read| match read.as_mut().poll(context) {
                std::task::Poll::Ready(bytes) => {
                    let len = bytes.unwrap().len();
                    first.get_or_insert(len);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if reads.is_empty() {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
        first
    };
    let (bulk, alarm, first) = tokio::join!(bulk, alarm, receive);
    assert!(bulk.is_ok() && alarm.is_ok());
    assert_eq!(first, Some(4), "the alarm waited for the bulk");
}

async fn who_takes_nothing_holds_data_back_and_not_control(kind: TransportKind) {
    let pair = connect(kind).await;
    let [(mut send, _recv), (_hub_send, mut hub_recv)] = control(&pair).await;
    let sending = (0..16)
        .map(|_| {
            pair.site
                .send(Bytes::new(), Bytes::from(vec![0; 2 << 20]), 0)
        })
        .map(Box::pin);
    let sending = join_all(sending.collect());
    let talk = async {
        for _ in 0..200 {
            send.write(Bytes::from_static(b"ping")).await.unwrap();
            assert_eq!(read_control(&mut hub_recv, 4).await, b"ping");
        }
        let unsent = pair.site.stats().unsent;
        assert!(unsent > 8 << 20, "{unsent} bytes wait");
        for _ in 0..16 {
            let stream = pair.hub.accept_data().await.unwrap();
            assert_eq!(stream.read(MAX_LEN).await.unwrap().len(), 2 << 20);
        }
    };
    let (sent, ()) = tokio::join!(sending, talk);
    assert!(sent.iter().all(Result::is_ok));
    assert_eq!(pair.site.stats().unsent, 0);
}

/// Whatever credit the bulk could take: a peer that reads nothing of it still hears of the alarm.
/// Who waits for room is woken by what makes room.
#[tokio::test]
async fn a_writer_without_room_rests() {
    let pair = connect(TransportKind::Quic).await;
    // from now on the hub hears nothing, and nothing is acknowledged
    let elsewhere = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    pair.endpoints[1].rebind(elsewhere).unwrap();
    let value = Bytes::from(vec![0; MAX_LEN]);
    let mut sending = pair.site.send(Bytes::new(), value, 0);
    let mut polls = 0;
    let counted = poll_fn(|context| {
        polls += 1;
        sending.as_mut().poll(context)
    });
    timeout(Duration::from_secs(1), counted)
        .await
        .expect_err("nobody takes it");
    assert!(polls < 100, "{polls} in a second");
}

#[tokio::test]
async fn large_values_leave_credit_for_an_alarm() {
    let world = World::new();
    let meeting = over_quic(&world, &world.good_site(), Some([1 << 20; 2])).await;
    let pair = meeting.unwrap();
    let [_site, _hub] = control(&pair).await;
    let bulk = |_| {
        let payload = Bytes::from(vec![0; 900_000]);
        Box::pin(pair.site.send(Bytes::new(), payload, 0))
    };
    let bulk = join_all((0..2).map(bulk).collect());
    let alarm = pair.site.send(Bytes::new(), Bytes::from_static(b"fire"), 2);
    let receive = async {
        let streams = [
            pair.hub.accept_data().await.unwrap(),
            pair.hub.accept_data().await.unwrap(),
            pair.hub.accept_data().await.unwrap(),
        ];
        let [first, second, alarm] = streams;
        assert_eq!(alarm.read(MAX_LEN).await.unwrap(), "fire");
        for value in [first, second] {
            assert_eq!(value.read(MAX_LEN).await.unwrap().len(), 900_000);
        }
    };
    let all = async { tokio::join!(bulk, alarm, receive) };
    let (sent, alarm, ()) = timeout(LIMIT, all).await.expect("in time");
    assert!(alarm.is_ok() && sent.iter().all(Result::is_ok));
}

/// A large value that is short of its own stream's credit holds up nobody who is more urgent.
#[tokio::test]
async fn an_alarm_passes_a_value_whose_own_credit_is_used_up() {
    const CREDIT: u32 = 64 << 10;
    let world = World::new();
    let meeting = over_quic(&world, &world.good_site(), Some([4 << 20, CREDIT])).await;
    let pair = meeting.unwrap();
    let value = Bytes::from(vec![0; 2 << 20]);
    let bulk = pair.site.send(Bytes::new(), value, 0);
    let receive = async {
        let value = pair.hub.accept_data().await.unwrap();
        while pair.hub.stats().rx_bytes < u64::from(CREDIT) {
            tokio::task::yield_now().await;
        }
        let alarm = pair.site.send(Bytes::new(), Bytes::from_static(b"fire"), 2);
        let heard = async { pair.hub.accept_data().await.unwrap().read(MAX_LEN).await };
        let (sent, heard) = tokio::join!(alarm, heard);
        sent.unwrap();
        assert_eq!(heard.unwrap(), "fire");
        assert_eq!(value.read(MAX_LEN).await.unwrap().len(), 2 << 20);
    };
    let all = async { tokio::join!(bulk, receive) };
    let (sent, ()) = timeout(LIMIT, all).await.expect("in time");
    sent.unwrap();
}

async fn the_reason_of_an_end_reaches_the_other(kind: TransportKind) {
    for closes_hub in [true, false] {
        let pair = connect(kind).await;
        let (here, there) = if closes_hub {
            (&pair.hub, &pair.site)
        } else {
            (&pair.site, &pair.hub)
        };
        here.close(5, b"another\nsession");
        assert_eq!(here.closed().await.kind, LostKind::Local);
        let lost = there.closed().await;
        assert_eq!(lost.kind, LostKind::Closed { code: 5 });
        assert_eq!(lost.text, "anothersession");
        assert!(there.accept_data().await.is_err());
        let sent = there.send(Bytes::new(), Bytes::from_static(b"x"), 0).await;
        assert_eq!(sent.unwrap_err().kind, LostKind::Closed { code: 5 });
    }
}

async fn the_last_handle_ends_the_connection(kind: TransportKind) {
    let pair = connect(kind).await;
    let second = pair.site.clone();
    drop(pair.site);
    let sent = second.send(Bytes::new(), Bytes::from_static(b"x"), 0);
    let accepted = async { pair.hub.accept_data().await.unwrap().read(9).await };
    let (sent, bytes) = tokio::join!(sent, accepted);
    assert!(sent.is_ok() && bytes.is_ok());
    drop(second);
    assert_eq!(pair.hub.closed().await.kind, LostKind::Closed { code: 0 });
}

async fn a_goodbye_arrives_before_the_end(kind: TransportKind) {
    let pair = connect(kind).await;
    let [(mut send, _recv), (_hub_send, mut hub_recv)] = control(&pair).await;
    let say = async {
        send.write(Bytes::from_static(b"goodbye")).await.unwrap();
        send.finish().await;
        pair.site.close(9, b"stopping");
    };
    let ((), heard) = tokio::join!(say, read_control(&mut hub_recv, 7));
    assert_eq!(heard, b"goodbye");
    assert_eq!(pair.hub.closed().await.kind, LostKind::Closed { code: 9 });
}

async fn a_site_is_known_by_its_certificate(kind: TransportKind) {
    let pair = connect(kind).await;
    assert_eq!(pair.hub.site(wall_ms()).unwrap().as_str(), "shop-1");
    assert!(pair.hub.site(0).is_err(), "outside its dates");
    assert!(pair.site.site(wall_ms()).is_err(), "a hub is no site");
    assert!(pair.hub.remote_address().ip().is_loopback());
}

async fn a_stranger_is_refused_and_told(kind: TransportKind) {
    let world = World::new();
    let stranger = world.rogue_site();
    let (at_site, at_hub) = connect_as(kind, &world, &stranger)
        .await
        .err()
        .expect("a refusal");
    assert_eq!(at_site.kind, LostKind::Refused, "{at_site}");
    assert!(
        at_site.text.contains("this site's certificate comes from"),
        "{at_site}"
    );
    assert!(at_hub.text.contains("does not know"), "{at_hub}");
}

async fn bytes_are_counted(kind: TransportKind) {
    let pair = connect(kind).await;
    let before = pair.site.stats();
    let payload = Bytes::from(vec![0; 1 << 20]);
    let sending = pair.site.send(Bytes::new(), payload, 0);
    let receive = async { pair.hub.accept_data().await.unwrap().read(MAX_LEN).await };
    let (sent, _) = tokio::join!(sending, receive);
    sent.unwrap();
    let (site, hub) = (pair.site.stats(), pair.hub.stats());
    let sent = site.tx_bytes - before.tx_bytes;
    assert!((1 << 20..12 << 17).contains(&sent), "{sent} bytes sent");
    assert!(hub.rx_bytes > 1 << 20);
    assert!(site.asked > before.asked && hub.heard > 0);
    assert!(site.rtt < Duration::from_secs(5) && site.window > 0);
}

/// The little of `futures` that is needed here.
mod futures_like {
    use std::future::poll_fn;
    use std::task::Poll;

    pub(super) async fn join_all<F: Future + Unpin>(futures: Vec<F>) -> Vec<F::Output> {
        let mut left: Vec<_> = futures.into_iter().map(Some).collect();
        let mut outputs: Vec<Option<F::Output>> = left.iter().map(|_| None).collect();
        poll_fn(move |context| {
            for (future, output) in left.iter_mut().zip(&mut outputs) {
                if let Some(running) = future
                    && let Poll::Ready(ready) = std::pin::Pin::new(running).poll(context)
                {
                    *output = Some(ready);
                    *future = None;
                }
            }
            if left.iter().any(Option::is_some) {
                return Poll::Pending;
            }
            Poll::Ready(outputs.drain(..).flatten().collect())
        })
        .await
    }
}
