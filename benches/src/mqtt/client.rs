//! As much of an MQTT 3.1.1 client as a load needs: it must cost less than the brokers.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBACK: u8 = 9;
/// No client here is silent for longer than a benchmark takes.
const KEEP_ALIVE_S: u16 = 1200;

/// How a message is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qos {
    AtMostOnce,
    AtLeastOnce,
}

/// A client with a clean session.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    out: BytesMut,
    received: BytesMut,
    packet_id: u16,
}

impl Client {
    pub(super) async fn connect(address: SocketAddr, id: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            out: BytesMut::new(),
            received: BytesMut::new(),
            packet_id: 0,
        };
        let mut body = BytesMut::new();
        put_text(&mut body, "MQTT");
        // version 3.1.1, clean session
        body.put_slice(&[4, 2]);
        body.put_u16(KEEP_ALIVE_S);
        put_text(&mut body, id);
        client.put(0x10, &body);
        client.flush().await?;
        let connack = client.next(CONNACK).await?;
        ensure!(connack.get(1) == Some(&0), "refused: {connack:?}");
        Ok(client)
    }

    /// Subscribes at QoS 0.
    pub(super) async fn subscribe(&mut self, filter: &str) -> Result<()> {
        let mut body = BytesMut::new();
        body.put_u16(1);
        put_text(&mut body, filter);
        body.put_u8(0);
        self.put(0x82, &body);
        self.flush().await?;
        let suback = self.next(SUBACK).await?;
        ensure!(suback.get(2) == Some(&0), "refused: {suback:?}");
        Ok(())
    }

    /// Puts a message into the buffer.
    pub(super) fn publish(&mut self, topic: &str, qos: Qos, payload: &[u8]) {
        let mut body = BytesMut::with_capacity(topic.len() + payload.len() + 4);
        put_text(&mut body, topic);
        let header = match qos {
            Qos::AtMostOnce => 0x30,
            Qos::AtLeastOnce => {
                self.packet_id = self.packet_id.wrapping_add(1).max(1);
                body.put_u16(self.packet_id);
                0x32
            }
        };
        body.put_slice(payload);
        self.put(header, &body);
    }

    /// Sends what is in the buffer.
    pub(super) async fn flush(&mut self) -> Result<()> {
        self.stream.write_all_buf(&mut self.out).await?;
        Ok(())
    }

    /// Acknowledgements that are here; waits for the first.
    pub(super) async fn acknowledgements(&mut self) -> Result<usize> {
        self.count(PUBACK).await
    }

    /// Messages that are here; waits for the first.
    pub(super) async fn messages(&mut self) -> Result<usize> {
        self.count(PUBLISH).await
    }

    async fn count(&mut self, kind: u8) -> Result<usize> {
        let mut counted = 0;
        while counted == 0 {
            while let Some((found, _)) = self.take() {
                ensure!(found == kind, "packet of type {found}, expected {kind}");
                counted += 1;
            }
            if counted == 0 {
                self.read().await?;
            }
        }
        Ok(counted)
    }

    async fn next(&mut self, kind: u8) -> Result<BytesMut> {
        loop {
            if let Some((found, body)) = self.take() {
                ensure!(found == kind, "packet of type {found}, expected {kind}");
                return Ok(body);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<()> {
        self.received.reserve(4096);
        if self.stream.read_buf(&mut self.received).await? == 0 {
            bail!("the broker closed the connection");
        }
        Ok(())
    }

    /// Type and body of the next packet, when it is here whole.
    fn take(&mut self) -> Option<(u8, BytesMut)> {
        let (mut len, mut at) = (0, 1);
        loop {
            let byte = *self.received.get(at)?;
            len |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte < 0x80 {
                break;
            }
        }
        if self.received.len() < at + len {
            return None;
        }
        let kind = self.received[0] >> 4;
        self.received.advance(at);
        Some((kind, self.received.split_to(len)))
    }

    fn put(&mut self, header: u8, body: &[u8]) {
        self.out.put_u8(header);
        let mut len = body.len();
        while len >= 0x80 {
            self.out.put_u8(low(len) | 0x80);
            len >>= 7;
        }
        self.out.put_u8(low(len));
        self.out.put_slice(body);
    }
}

/// The lowest seven bits.
fn low(len: usize) -> u8 {
    (len & 0x7f).to_le_bytes()[0]
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(u16::try_from(text.len()).expect("ids and topics are short"));
    out.put_slice(text.as_bytes());
}
