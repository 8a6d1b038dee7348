//! A client that does one thing at a time.
//!
//! It acknowledges what it is sent, unless told otherwise, whenever it reads. A message of QoS 2 counts when it
//! comes for the first time; a repeated one is acknowledged and not counted (method A of section 4.3.3).

use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::packet::{self, Packet, Publish, Version, kind, put_bytes};
use super::properties::Properties;
use super::server::Server;

/// How long any answer may take.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long nothing has to come until it counts as nothing. After an answer to a ping, so that whatever the
/// broker had to say before has come.
const SILENCE: Duration = Duration::from_millis(250);

/// What came from a topic.
pub type Message = Publish;

/// A last will.
#[derive(Debug, Clone)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub is_retained: bool,
    pub properties: Properties,
}

/// What CONNECT says.
#[derive(Debug, Clone)]
pub struct Hello {
    pub version: Version,
    pub protocol: &'static str,
    pub client_id: String,
    /// Clean session, or clean start.
    pub is_clean: bool,
    pub keep_alive_s: u16,
    pub will: Option<Will>,
    pub user: Option<(String, String)>,
    pub properties: Properties,
}

impl Hello {
    /// A clean start without a keep-alive.
    #[must_use]
    pub fn new(version: Version, client_id: &str) -> Self {
        Self {
            version,
            protocol: "MQTT",
            client_id: client_id.to_owned(),
            is_clean: true,
            keep_alive_s: 0,
            will: None,
            user: None,
            properties: Properties::none(),
        }
    }

    /// Goes on with the session that is there.
    #[must_use]
    pub fn resume(mut self) -> Self {
        self.is_clean = false;
        self
    }

    /// With properties.
    #[must_use]
    pub fn with(mut self, properties: Properties) -> Self {
        self.properties = properties;
        self
    }

    /// With a keep-alive.
    #[must_use]
    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive_s = seconds;
        self
    }

    /// With a will of QoS 0.
    #[must_use]
    pub fn will(mut self, topic: &str, payload: &str, properties: Properties) -> Self {
        self.will = Some(Will {
            topic: topic.to_owned(),
            payload: payload.as_bytes().to_vec(),
            qos: 0,
            is_retained: false,
            properties,
        });
        self
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = u8::from(self.is_clean) << 1;
        if let Some(will) = &self.will {
            flags |= 4 | will.qos << 3 | u8::from(will.is_retained) << 5;
        }
        if self.user.is_some() {
            flags |= 0xC0;
        }
        let mut body = Vec::new();
        put_bytes(&mut body, self.protocol.as_bytes());
        body.extend([self.version.level(), flags]);
        body.extend(self.keep_alive_s.to_be_bytes());
        if self.version == Version::V5 {
            self.properties.put(&mut body);
        }
        put_bytes(&mut body, self.client_id.as_bytes());
        if let Some(will) = &self.will {
            if self.version == Version::V5 {
                will.properties.put(&mut body);
            }
            put_bytes(&mut body, will.topic.as_bytes());
            put_bytes(&mut body, &will.payload);
        }
        if let Some((user, password)) = &self.user {
            put_bytes(&mut body, user.as_bytes());
            put_bytes(&mut body, password.as_bytes());
        }
        packet::frame(kind::CONNECT, 0, &body)
    }
}

/// The broker's answer to CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub is_session_present: bool,
    pub code: u8,
    pub properties: Properties,
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    version: Version,
    next_id: u16,
    buffer: Vec<u8>,
    /// Messages that nobody asked for yet.
    inbox: VecDeque<Message>,
    /// Identifiers of messages of QoS 2 between PUBREC and PUBREL.
    unreleased: HashSet<u16>,
    /// Whether what comes is acknowledged.
    pub acknowledges: bool,
}

impl Client {
    /// Opens a connection and says nothing.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open(server: &Server, version: Version) -> Result<Self> {
        Self::open_at(server.address(), version)
    }

    /// The same by address.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn open_at(address: SocketAddr, version: Version) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self {
            stream,
            version,
            next_id: 1,
            buffer: Vec::new(),
            inbox: VecDeque::new(),
            unreleased: HashSet::new(),
            acknowledges: true,
        })
    }

    /// Connects; the answer must be success.
    ///
    /// # Errors
    /// When it is another, or none.
    pub fn connect(server: &Server, hello: &Hello) -> Result<(Self, Welcome)> {
        let mut client = Self::open(server, hello.version)?;
        let welcome = client.greet(hello)?;
        ensure!(
            welcome.code == 0,
            "{} is refused: {welcome:?}",
            hello.client_id
        );
        Ok((client, welcome))
    }

    /// Sends CONNECT and waits for the answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn greet(&mut self, hello: &Hello) -> Result<Welcome> {
        self.send(&hello.encode())?;
        match self.packet(LIMIT)? {
            Some(Packet::ConnAck {
                is_session_present,
                code,
                properties,
            }) => Ok(Welcome {
                is_session_present,
                code,
                properties,
            }),
            other => bail!("CONNECT is answered with {other:?}"),
        }
    }

    /// Goes on where the client's last connection ended: what it had received of QoS 2 and not released is not
    /// counted again.
    pub fn go_on_from(&mut self, last: Self) {
        self.unreleased = last.unreleased;
        self.inbox = last.inbox;
        self.next_id = last.next_id;
    }

    /// Messages that have come and that nobody asked for yet.
    pub fn take_messages(&mut self) -> Vec<Message> {
        self.inbox.drain(..).collect()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("send")
    }

    /// A packet identifier.
    pub fn new_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Publishes and waits until it is acknowledged to the end; gives the reason code.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn publish(&mut self, topic: &str, payload: &str, qos: u8) -> Result<u8> {
        self.publish_as(Publish {
            topic: topic.to_owned(),
            payload: payload.as_bytes().to_vec(),
            qos,
            ..Publish::default()
        })
    }

    /// The same with the retain flag.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn retain(&mut self, topic: &str, payload: &str, qos: u8) -> Result<u8> {
        self.publish_as(Publish {
            topic: topic.to_owned(),
            payload: payload.as_bytes().to_vec(),
            qos,
            is_retained: true,
            ..Publish::default()
        })
    }

    /// The same, of everything but the packet identifier.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn publish_as(&mut self, mut publish: Publish) -> Result<u8> {
        if publish.qos == 0 {
            self.send(&publish.encode(self.version))?;
            return Ok(0);
        }
        publish.id = self.new_id();
        self.send(&publish.encode(self.version))?;
        let first = if publish.qos == 1 {
            kind::PUBACK
        } else {
            kind::PUBREC
        };
        let code = self.wait_ack(first, publish.id)?;
        if publish.qos == 1 || code >= 128 {
            return Ok(code);
        }
        self.send(&packet::ack(kind::PUBREL, publish.id))?;
        self.wait_ack(kind::PUBCOMP, publish.id)
    }

    /// Waits for an acknowledgement and gives its reason code.
    ///
    /// # Errors
    /// When another packet of that kind comes, or none.
    pub fn wait_ack(&mut self, wanted: u8, wanted_id: u16) -> Result<u8> {
        self.wait("an acknowledgement", |packet| {
            let &Packet::Ack { kind, id, code } = packet else {
                return None;
            };
            (kind == wanted && id == wanted_id).then_some(code)
        })
    }

    /// Subscribes to one filter; it must be granted. `options` is the QoS, with the options of MQTT 5.
    ///
    /// # Errors
    /// When it is not granted.
    pub fn subscribe(&mut self, filter: &str, options: u8) -> Result<()> {
        let codes = self.subscribe_to(&[(filter, options)], &Properties::none())?;
        ensure!(
            codes == [options & 3],
            "{filter} is answered with {codes:?}"
        );
        Ok(())
    }

    /// Subscribes and gives the reason codes.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn subscribe_to(
        &mut self,
        filters: &[(&str, u8)],
        properties: &Properties,
    ) -> Result<Vec<u8>> {
        let id = self.new_id();
        let bytes = packet::subscribe(self.version, id, filters, properties);
        self.send(&bytes)?;
        self.wait("SUBACK", |packet| {
            let Packet::SubAck { id: found, codes } = packet else {
                return None;
            };
            (*found == id).then(|| codes.clone())
        })
    }

    /// Unsubscribes and gives the reason codes; 3.1.1 has none.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn unsubscribe(&mut self, filter: &str) -> Result<Vec<u8>> {
        let id = self.new_id();
        self.send(&packet::unsubscribe(self.version, id, filter))?;
        self.wait("UNSUBACK", |packet| {
            let Packet::UnsubAck { id: found, codes } = packet else {
                return None;
            };
            (*found == id).then(|| codes.clone())
        })
    }

    /// Sends PINGREQ and waits for its answer.
    ///
    /// # Errors
    /// When none comes.
    pub fn ping(&mut self) -> Result<()> {
        self.send(&packet::frame(kind::PINGREQ, 0, &[]))?;
        self.wait("PINGRESP", |packet| {
            (*packet == Packet::PingResp).then_some(())
        })
    }

    /// The next message.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn message(&mut self) -> Result<Message> {
        self.message_within(LIMIT)
    }

    /// The next message, waited for so long.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn message_within(&mut self, limit: Duration) -> Result<Message> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(message) = self.inbox.pop_front() {
                return Ok(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.packet(left).context("wait for a message")? {
                Some(packet) => self.handle(packet, "a message")?,
                None => bail!("closed while waiting for a message"),
            }
        }
    }

    /// The next so many messages, and then nothing more.
    ///
    /// # Errors
    /// When there are fewer or more.
    pub fn exactly(&mut self, count: usize) -> Result<Vec<Message>> {
        let mut all = Vec::new();
        while all.len() < count {
            let next = self.message();
            all.push(next.with_context(|| format!("{} of {count} came: {all:?}", all.len()))?);
        }
        self.nothing_more()?;
        Ok(all)
    }

    /// Makes sure that nothing comes.
    ///
    /// # Errors
    /// When a message does.
    pub fn nothing_more(&mut self) -> Result<()> {
        self.ping()?;
        let deadline = Instant::now() + SILENCE;
        while self.inbox.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.listen(left)? {
                Heard::Packet(packet) => self.handle(packet, "nothing")?,
                Heard::Silence => return Ok(()),
                Heard::End => bail!("closed while nothing was to come"),
            }
        }
        bail!("one too many: {:?}", self.inbox)
    }

    /// Says goodbye and waits until the broker closes.
    ///
    /// # Errors
    /// When it does not.
    pub fn disconnect(self) -> Result<()> {
        self.disconnect_with(&Properties::none())
    }

    /// The same with properties.
    ///
    /// # Errors
    /// When the broker does not close.
    pub fn disconnect_with(mut self, properties: &Properties) -> Result<()> {
        self.send(&packet::disconnect(self.version, properties))?;
        let goodbye = self.wait_closed(LIMIT)?;
        ensure!(goodbye.is_none(), "DISCONNECT is answered with {goodbye:?}");
        Ok(())
    }

    /// Goes without a word.
    pub fn vanish(self) {
        let _gone = self.stream.shutdown(Shutdown::Both);
    }

    /// Waits until the broker closes; gives the reason code of its DISCONNECT if it sent one.
    ///
    /// # Errors
    /// When it keeps the connection open.
    pub fn wait_closed(&mut self, limit: Duration) -> Result<Option<u8>> {
        let deadline = Instant::now() + limit;
        let mut goodbye = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.packet(left).context("wait for the end")? {
                None => return Ok(goodbye),
                Some(Packet::Disconnect { code, .. }) => goodbye = Some(code),
                Some(_) => {}
            }
        }
    }

    /// The next packet as it came, unacknowledged; nothing when the broker closed.
    ///
    /// # Errors
    /// When none comes in time, or what comes is not a packet.
    pub fn packet(&mut self, limit: Duration) -> Result<Option<Packet>> {
        match self.listen(limit)? {
            Heard::Packet(packet) => Ok(Some(packet)),
            Heard::End => Ok(None),
            Heard::Silence => bail!("nothing came within {limit:?}"),
        }
    }

    /// The same, where nothing and the end are no errors.
    ///
    /// # Errors
    /// When what comes is not a packet.
    pub fn listen(&mut self, limit: Duration) -> Result<Heard> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some((packet, length)) = packet::decode(self.version, &self.buffer)? {
                self.buffer.drain(..length);
                return Ok(Heard::Packet(packet));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Heard::Silence);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Heard::End),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if is_silence(error.kind()) => return Ok(Heard::Silence),
                Err(error) if is_end(error.kind()) => return Ok(Heard::End),
                Err(error) => return Err(error).context("read"),
            }
        }
    }

    /// Waits for a packet that `take` wants; others are handled as ever.
    fn wait<T>(&mut self, what: &str, mut take: impl FnMut(&Packet) -> Option<T>) -> Result<T> {
        loop {
            let packet = self
                .packet(LIMIT)
                .with_context(|| format!("wait for {what}"))?;
            let Some(packet) = packet else {
                bail!("closed while waiting for {what}");
            };
            match take(&packet) {
                Some(found) => return Ok(found),
                None => self.handle(packet, what)?,
            }
        }
    }

    /// Takes and acknowledges a packet of a delivery.
    ///
    /// # Errors
    /// When it is of another kind, or the connection is gone.
    pub fn handle(&mut self, packet: Packet, instead_of: &str) -> Result<()> {
        if let Packet::Ack {
            kind: kind::PUBREL,
            id,
            ..
        } = packet
        {
            self.unreleased.remove(&id);
            return self.send(&packet::ack(kind::PUBCOMP, id));
        }
        let Packet::Publish(publish) = packet else {
            bail!("{packet:?} instead of {instead_of}");
        };
        self.receive(publish)
    }

    fn receive(&mut self, publish: Publish) -> Result<()> {
        if !self.acknowledges {
            return Ok(());
        }
        let answer = match publish.qos {
            0 => None,
            1 => Some(kind::PUBACK),
            _ => Some(kind::PUBREC),
        };
        let id = publish.id;
        if publish.qos < 2 || self.unreleased.insert(id) {
            self.inbox.push_back(publish);
        }
        answer.map_or(Ok(()), |answer| self.send(&packet::ack(answer, id)))
    }
}

/// What a look at the connection gives.
#[derive(Debug)]
pub enum Heard {
    Packet(Packet),
    Silence,
    End,
}

fn is_silence(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn is_end(error: ErrorKind) -> bool {
    matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}
