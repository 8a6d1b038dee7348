//! A client that says what it is told, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::mqtt::codec::{Outgoing, decode, put_ack, put_publish};
use crate::mqtt::frame::{self, Frame};
use crate::mqtt::packet::{AckKind, Incoming, Message, Qos, Version};

const LIMIT: Duration = Duration::from_secs(20);

/// What a client says first.
pub(super) struct Connect {
    pub(super) version: Version,
    pub(super) client_id: &'static str,
    pub(super) clean_start: bool,
    pub(super) session_expiry_s: u32,
    pub(super) will: Option<(&'static str, &'static str)>,
}

pub(super) fn connect(version: Version, client_id: &'static str) -> Connect {
    Connect {
        version,
        client_id,
        clean_start: true,
        session_expiry_s: 0,
        will: None,
    }
}

/// A client of MQTT 5 that comes back to its session.
pub(super) fn lasting(client_id: &'static str, session_expiry_s: u32) -> Connect {
    Connect {
        clean_start: false,
        session_expiry_s,
        ..connect(Version::V5, client_id)
    }
}

fn text(out: &mut BytesMut, text: &str) {
    out.put_u16(u16::try_from(text.len()).unwrap());
    out.put_slice(text.as_bytes());
}

fn packet(first: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::from(&[first, u8::try_from(body.len()).unwrap()][..]);
    assert!(body.len() < 128);
    out.put_slice(body);
    out.freeze()
}

impl Connect {
    fn bytes(&self) -> Bytes {
        let mut body = BytesMut::new();
        text(&mut body, "MQTT");
        body.put_u8(if self.version == Version::V5 { 5 } else { 4 });
        let will = if self.will.is_some() { 0x0c } else { 0 };
        body.put_u8(u8::from(self.clean_start) << 1 | will);
        body.put_u16(0);
        if self.version == Version::V5 {
            body.put_slice(&[5, 0x11]);
            body.put_u32(self.session_expiry_s);
        }
        text(&mut body, self.client_id);
        if let Some((topic, payload)) = self.will {
            if self.version == Version::V5 {
                body.put_u8(0);
            }
            text(&mut body, topic);
            text(&mut body, payload);
        }
        packet(0x10, &body)
    }
}

pub(super) struct Client {
    socket: TcpStream,
    input: BytesMut,
    version: Version,
    pub(super) session_present: bool,
}

impl Client {
    pub(super) async fn new(address: SocketAddr, connect: Connect) -> Self {
        let mut client = Self::stranger(address, connect.version).await;
        client.send(&connect.bytes()).await;
        let (first, body) = client.frame().await.expect("a CONNACK");
        assert_eq!((first, body[1]), (0x20, 0), "accepted");
        client.session_present = body[0] == 1;
        client
    }

    /// One that has not said anything yet.
    pub(super) async fn stranger(address: SocketAddr, version: Version) -> Self {
        Self {
            socket: TcpStream::connect(address).await.unwrap(),
            input: BytesMut::new(),
            version,
            session_present: false,
        }
    }

    /// The reason that a client is refused with.
    pub(super) async fn refused(address: SocketAddr, connect: Connect) -> u8 {
        let mut client = Self::stranger(address, connect.version).await;
        client.send(&connect.bytes()).await;
        let (first, body) = client.frame().await.expect("a CONNACK");
        assert_eq!(first, 0x20);
        body[1]
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// As much as the broker takes.
    pub(super) async fn send_some(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Ok(Ok(count)) = timeout(Duration::from_millis(50), self.socket.write(rest)).await
        {
            rest = &rest[count..];
            if rest.is_empty() {
                return;
            }
        }
    }

    /// `None`: the connection is closed.
    async fn frame(&mut self) -> Option<Frame> {
        let read = async {
            loop {
                if let Ok(frame) = frame::take(&mut self.input, 1 << 24).unwrap() {
                    return Some(frame);
                }
                match self.socket.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        timeout(LIMIT, read).await.expect("a packet in time")
    }

    pub(super) async fn try_subscribe(&mut self, filter: &str, qos: Qos) -> u8 {
        let mut body = BytesMut::from(&[0, 9][..]);
        if self.version == Version::V5 {
            body.put_u8(0);
        }
        text(&mut body, filter);
        body.put_u8(qos.number());
        self.send(&packet(0x82, &body)).await;
        let (first, body) = self.frame().await.expect("a SUBACK");
        assert_eq!(first, 0x90);
        *body.last().unwrap()
    }

    pub(super) async fn subscribe(&mut self, filter: &str, qos: Qos) {
        assert_eq!(self.try_subscribe(filter, qos).await, qos.number());
    }

    pub(super) async fn publish(&mut self, topic: &str, payload: &str, qos: Qos, id: u16) {
        self.send_message(topic, payload, qos, id, false).await;
    }

    /// Publishes a message that is retained.
    pub(super) async fn retain(&mut self, topic: &str, qos: Qos, id: u16) {
        self.send_message(topic, "retained", qos, id, true).await;
    }

    async fn send_message(&mut self, topic: &str, payload: &str, qos: Qos, id: u16, retain: bool) {
        let message = Message {
            topic: Arc::from(topic),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos,
            retain,
            published_ms: 0,
            properties: None,
            from: None,
        };
        let outgoing = Outgoing {
            message: &message,
            qos,
            retain,
            dup: false,
            id,
            identifiers: &[],
            alias: None,
            left_s: None,
        };
        let mut out = BytesMut::new();
        put_publish(&mut out, self.version, &outgoing, usize::MAX);
        self.send(&out).await;
    }

    pub(super) async fn ack(&mut self, kind: AckKind, id: u16) {
        let mut out = BytesMut::new();
        put_ack(&mut out, self.version, kind, id, 0);
        self.send(&out).await;
    }

    async fn incoming(&mut self) -> Incoming {
        let frame = self.frame().await.expect("a packet");
        decode(self.version, &frame, 0).unwrap()
    }

    pub(super) async fn expect_ack(&mut self, kind: AckKind, id: u16) {
        assert_eq!(
            self.incoming().await,
            Incoming::Ack {
                kind,
                id,
                reason: 0
            }
        );
    }

    /// The reason code of an acknowledgement.
    pub(super) async fn ack_reason(&mut self, of: u16) -> u8 {
        let incoming = self.incoming().await;
        let Incoming::Ack { id, reason, .. } = incoming else {
            panic!("{incoming:?}");
        };
        assert_eq!(id, of);
        reason
    }

    /// All that a publish is answered with.
    pub(super) async fn expect_acks(&mut self, qos: Qos, id: u16) {
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.expect_ack(AckKind::PubAck, id).await,
            Qos::ExactlyOnce => {
                self.expect_ack(AckKind::PubRec, id).await;
                self.ack(AckKind::PubRel, id).await;
                self.expect_ack(AckKind::PubComp, id).await;
            }
        }
    }

    /// The next message, not acknowledged; acknowledgements before it are passed over.
    pub(super) async fn message_and_id(&mut self) -> (Message, u16) {
        loop {
            let incoming = self.incoming().await;
            if let Incoming::Publish(publish) = incoming {
                return (publish.message, publish.id);
            }
        }
    }

    /// The next message, acknowledged.
    pub(super) async fn message(&mut self) -> Message {
        let (message, id) = self.message_and_id().await;
        match message.qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.ack(AckKind::PubAck, id).await,
            Qos::ExactlyOnce => {
                self.ack(AckKind::PubRec, id).await;
                self.expect_ack(AckKind::PubRel, id).await;
                self.ack(AckKind::PubComp, id).await;
            }
        }
        message
    }

    pub(super) async fn ping(&mut self) {
        self.send(&[0xc0, 0]).await;
        assert_eq!(self.frame().await.expect("a PINGRESP").0, 0xd0);
    }

    /// The reason of the broker's DISCONNECT, once the connection is closed.
    pub(super) async fn disconnected(&mut self) -> Option<u8> {
        let mut code = None;
        while let Some((first, body)) = self.frame().await {
            if first == 0xe0 {
                code = body.first().copied();
            }
        }
        code
    }
}

/// Sends bytes, and waits until the broker has closed the connection.
pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut rest = Vec::new();
    drop(
        timeout(LIMIT, socket.read_to_end(&mut rest))
            .await
            .expect("closed in time"),
    );
}

pub(super) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_true() {
        assert!(Instant::now() < end, "{what}");
        tokio::task::yield_now().await;
    }
}
