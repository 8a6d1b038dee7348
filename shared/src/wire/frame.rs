//! Control frames: `type u8, length varint, payload`, and their incremental decoder.

use bytes::Bytes;

use super::hello::{put_checkpoints, put_logs, put_text, take_checkpoints, take_logs, take_offset};
use super::varint::{Reader, put_varint};
use super::{
    CheckpointEntry, Farewell, Handle, Hello, LogEntry, MAX_FRAME_LEN, MAX_HELLO_LEN,
    MAX_POLICY_LEN, Welcome, WireError,
};
use crate::dedup::{ChunkId, put_missing, take_missing};
use crate::ids::Offset;

/// The hub holds everything before these offsets, and the site may send up to the credit limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Bytes that the site may send in all since the session began.
    pub credit_limit: u64,
    /// Logs and the next offset that the hub does not hold, each cumulative.
    pub acked: Vec<(Handle, Offset)>,
}

/// The hub cannot read on in a log, because a codec's memory is not the site's: it dropped what it had not
/// handed on, and waits for the log from this offset, with the memory empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// Which log.
    pub handle: Handle,
    /// Where to go on.
    pub next_offset: Offset,
}

/// One message on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Site to hub, first.
    Hello(Hello),
    /// Hub to site: the session is open.
    Welcome(Welcome),
    /// Hub to site: there will be no session.
    Refuse(Farewell),
    /// Site to hub: more logs.
    Declare(Vec<LogEntry>),
    /// Hub to site: the reply to declared logs, perhaps in several frames.
    Checkpoints(Vec<CheckpointEntry>),
    /// Hub to site.
    Ack(Ack),
    /// Hub to site: a new credit limit.
    Credit(u64),
    /// Either way: answer with a pong of the same number.
    Ping(u64),
    /// Either way: the answer to the latest ping.
    Pong(u64),
    /// Either way: the session ends in good order.
    Goodbye(Farewell),
    /// Hub to site: send a log again from here.
    Restart(Restart),
    /// Hub to site: what the link may be used for, as the site's configuration would say it; empty to
    /// withdraw it. At most [`MAX_POLICY_LEN`] bytes.
    Policy(String),
    /// Hub to site: it does not hold these chunks, do not refer to them.
    Missing(Vec<ChunkId>),
    /// Hub to site: so many bytes of the session may wait at the hub's transport before they are read.
    Window(u64),
}

impl Frame {
    /// The type on the wire.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Welcome(_) => 2,
            Self::Refuse(_) => 3,
            Self::Declare(_) => 4,
            Self::Checkpoints(_) => 5,
            Self::Ack(_) => 6,
            Self::Credit(_) => 7,
            Self::Ping(_) => 8,
            Self::Pong(_) => 9,
            Self::Goodbye(_) => 10,
            Self::Restart(_) => 11,
            Self::Policy(_) => 12,
            Self::Missing(_) => 13,
            Self::Window(_) => 14,
        }
    }

    /// The frame as it goes on the control stream.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut payload = Vec::new();
        match self {
            Self::Hello(hello) => hello.put(&mut payload),
            Self::Welcome(welcome) => welcome.put(&mut payload),
            Self::Refuse(farewell) | Self::Goodbye(farewell) => farewell.put(&mut payload),
            Self::Declare(logs) => put_logs(&mut payload, logs),
            Self::Checkpoints(entries) => put_checkpoints(&mut payload, entries),
            Self::Ack(ack) => put_ack(&mut payload, ack),
            Self::Credit(bytes) | Self::Window(bytes) => put_varint(&mut payload, *bytes),
            Self::Ping(number) | Self::Pong(number) => {
                payload.extend_from_slice(&number.to_be_bytes());
            }
            Self::Restart(restart) => {
                put_varint(&mut payload, restart.handle.0.into());
                put_varint(&mut payload, restart.next_offset);
            }
            Self::Policy(text) => put_text(&mut payload, text, MAX_POLICY_LEN),
            Self::Missing(ids) => put_missing(&mut payload, ids),
        }
        let mut out = Vec::with_capacity(payload.len() + 6);
        out.push(self.kind());
        put_varint(&mut out, payload.len() as u64);
        out.extend_from_slice(&payload);
        out.into()
    }

    /// Reads the payload of a frame of type `kind`.
    ///
    /// # Errors
    /// [`WireError`] when it is not one whole frame.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let frame = match kind {
            1 => Self::Hello(Hello::take(&mut reader)?),
            2 => Self::Welcome(Welcome::take(&mut reader)?),
            3 => Self::Refuse(Farewell::take(&mut reader)?),
            4 => Self::Declare(take_logs(&mut reader)?),
            5 => Self::Checkpoints(take_checkpoints(&mut reader)?),
            6 => Self::Ack(take_ack(&mut reader)?),
            7 => Self::Credit(reader.varint()?),
            8 => Self::Ping(reader.u64()?),
            9 => Self::Pong(reader.u64()?),
            10 => Self::Goodbye(Farewell::take(&mut reader)?),
            11 => Self::Restart(Restart {
                handle: Handle(reader.varint_u32()?),
                next_offset: take_offset(&mut reader)?,
            }),
            12 => Self::Policy(reader.text(MAX_POLICY_LEN)?.to_owned()),
            13 => Self::Missing(take_missing(&mut reader)?),
            14 => Self::Window(reader.varint()?),
            other => return Err(WireError::UnknownFrame(other)),
        };
        reader.finish()?;
        Ok(frame)
    }
}

fn put_ack(out: &mut Vec<u8>, ack: &Ack) {
    put_varint(out, ack.credit_limit);
    put_varint(out, ack.acked.len() as u64);
    for (handle, next) in &ack.acked {
        put_varint(out, handle.0.into());
        put_varint(out, *next);
    }
}

fn take_ack(reader: &mut Reader<'_>) -> Result<Ack, WireError> {
    let credit_limit = reader.varint()?;
    let count = reader.count(2)?;
    let acked = (0..count)
        .map(|_| Ok((Handle(reader.varint_u32()?), take_offset(reader)?)))
        .collect::<Result<_, WireError>>()?;
    Ok(Ack {
        credit_limit,
        acked,
    })
}

fn limit_of(kind: u8) -> Result<usize, WireError> {
    match kind {
        1 | 2 => Ok(MAX_HELLO_LEN),
        3..=14 => Ok(MAX_FRAME_LEN),
        other => Err(WireError::UnknownFrame(other)),
    }
}

/// Cuts a stream of bytes into frames. Holds at most one frame that is not whole, and what was fed
/// beside it; type and length are checked as soon as they are there. An error is final.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    consumed: usize,
}

impl FrameDecoder {
    /// Adds bytes as they came. Call [`FrameDecoder::poll`] until it has no more before feeding again.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// [`WireError`]: the stream cannot be read any further.
    pub fn poll(&mut self) -> Result<Option<Frame>, WireError> {
        let bytes = &self.buffer[self.consumed..];
        let Some((&kind, rest)) = bytes.split_first() else {
            self.shrink();
            return Ok(None);
        };
        let limit = limit_of(kind)?;
        let mut reader = Reader::new(rest);
        let Some(len) = take_length(&mut reader, kind, limit)? else {
            return Ok(None);
        };
        let head = bytes.len() - reader.remaining();
        let Ok(payload) = reader.bytes(len) else {
            return Ok(None);
        };
        let frame = Frame::decode(kind, payload)?;
        self.consumed += head + len;
        Ok(Some(frame))
    }

    /// Bytes held that are not yet a frame.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// A large hello is not kept in memory for the rest of the session.
    fn shrink(&mut self) {
        self.buffer.clear();
        self.consumed = 0;
        self.buffer.shrink_to(4096);
    }
}

/// `None` when the length has not come in full.
fn take_length(
    reader: &mut Reader<'_>,
    kind: u8,
    limit: usize,
) -> Result<Option<usize>, WireError> {
    let available = reader.remaining();
    let len = match reader.varint() {
        Ok(len) => len,
        Err(_) if available < 10 => return Ok(None),
        Err(error) => return Err(error),
    };
    match usize::try_from(len) {
        Ok(len) if len <= limit => Ok(Some(len)),
        Ok(_) | Err(_) => Err(WireError::TooLarge {
            kind,
            bytes: len,
            limit,
        }),
    }
}
