//! A Kafka client that keeps no rule: bytes over TCP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
}

impl Raw {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect {address}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// Sends bytes as they are. A peer that has closed already is no error.
    pub fn send(&mut self, bytes: &[u8]) {
        let _closed = self.stream.write_all(bytes);
    }

    /// Waits until the peer closes; gives what came before.
    ///
    /// # Errors
    /// When it keeps the connection open.
    pub fn until_closed(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Ok(_) => Ok(all),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(all),
            Err(error) => Err(error).context("the peer keeps the connection"),
        }
    }

    /// Sends a frame with its length and reads one frame back.
    ///
    /// # Errors
    /// When no whole frame comes.
    pub fn ask(&mut self, frame: &[u8]) -> Result<Vec<u8>> {
        self.send(&framed(frame));
        let mut length = [0; 4];
        self.stream
            .read_exact(&mut length)
            .context("read the answer's length")?;
        let length = u32::from_be_bytes(length);
        ensure!(length < 1 << 24, "an answer of {length} bytes");
        let mut answer = vec![0; usize::try_from(length)?];
        self.stream
            .read_exact(&mut answer)
            .context("read the answer")?;
        Ok(answer)
    }

    /// Produces one record batch (acks=all) and gives the error code of its partition.
    ///
    /// # Errors
    /// When the answer is not a produce response.
    pub fn produce(&mut self, topic: &str, partition: i32, batch: &[u8]) -> Result<i16> {
        let answer = self.ask(&produce_request(topic, partition, batch)?)?;
        // Correlation id, one topic with its name, one partition with its index, then the code.
        let at = 4 + 4 + 2 + topic.len() + 4 + 4;
        let code = answer
            .get(at..at + 2)
            .context("a produce response ends early")?;
        Ok(i16::from_be_bytes([code[0], code[1]]))
    }

    /// Asks for a topic's metadata, which creates the topic where that is allowed.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn create_topic(&mut self, topic: &str) -> Result<()> {
        let mut request = header(3, 4);
        request.extend(1_i32.to_be_bytes());
        put_text(&mut request, topic)?;
        request.push(1);
        self.ask(&request).map(drop)
    }
}

/// A request's header (version 1): API key, version, correlation id 7, a client id.
#[must_use]
pub fn header(api_key: i16, version: i16) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(api_key.to_be_bytes());
    header.extend(version.to_be_bytes());
    header.extend(7_i32.to_be_bytes());
    header.extend(3_i16.to_be_bytes());
    header.extend(b"raw");
    header
}

/// Produce version 7 with one batch.
///
/// # Errors
/// When something is too long for its length field.
pub fn produce_request(topic: &str, partition: i32, batch: &[u8]) -> Result<Vec<u8>> {
    let mut request = header(0, 7);
    request.extend((-1_i16).to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request.extend(10_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    put_text(&mut request, topic)?;
    request.extend(1_i32.to_be_bytes());
    request.extend(partition.to_be_bytes());
    request.extend(i32::try_from(batch.len())?.to_be_bytes());
    request.extend(batch);
    Ok(request)
}

/// The bytes with their length in front.
#[must_use]
pub fn framed(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], frame].concat()
}

/// A record batch of this moment whose records part is `records`, already compressed with the codec of that
/// number. The broker's retention would delete older ones.
#[must_use]
pub fn batch(codec: u8, count: i32, records: &[u8]) -> Vec<u8> {
    let timestamp_ms = shared::time::wall_ms().to_be_bytes();
    let mut body = Vec::new();
    body.extend(i16::from(codec).to_be_bytes());
    body.extend((count - 1).to_be_bytes());
    body.extend([timestamp_ms, timestamp_ms].concat());
    body.extend((-1_i64).to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend((-1_i32).to_be_bytes());
    body.extend(count.to_be_bytes());
    body.extend(records);
    let mut batch = Vec::new();
    batch.extend(0_i64.to_be_bytes());
    batch.extend(
        i32::try_from(body.len() + 9)
            .unwrap_or(i32::MAX)
            .to_be_bytes(),
    );
    batch.extend((-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c::crc32c(&body).to_be_bytes());
    batch.extend(body);
    batch
}

fn put_text(into: &mut Vec<u8>, text: &str) -> Result<()> {
    into.extend(i16::try_from(text.len())?.to_be_bytes());
    into.extend(text.as_bytes());
    Ok(())
}
