//! The opening of a session, and its end: hello, welcome, checkpoints, farewell.

use super::varint::{Reader, put_varint};
use super::{Handle, MAGIC, MAX_OFFSET, MAX_VERSION, MIN_VERSION, WireError};
use crate::ids::{Incarnation, MAX_TOPIC_NAME_LEN, Offset, TopicName, TopicPartition, Track};

const MAX_SOFTWARE_LEN: usize = 64;
const MAX_CODECS: usize = 32;
const MAX_TEXT_LEN: usize = 256;
/// Most saved codec states that a site may offer for one log.
pub const MAX_ANCHORS: usize = 4;

/// The range of one log at the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// First offset that belongs to the site's incarnation: where the hub starts without a checkpoint.
    pub origin: Offset,
    /// First offset still stored, not below `origin`.
    pub start: Offset,
    /// Next offset to be assigned.
    pub end: Offset,
}

impl LogRange {
    /// `origin <= start <= end`, and offsets that Kafka can hold.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.origin <= self.start && self.start <= self.end && self.end <= MAX_OFFSET
    }
}

/// A codec's memory that an end saved: where it stands says what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Anchor {
    /// The codec.
    pub codec: u8,
    /// See [`crate::batch::ChainCodec::position`].
    pub position: u64,
}

/// A log as the site declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// How later frames call it.
    pub handle: Handle,
    /// Which log.
    pub log: TopicPartition,
    /// What the site has of it.
    pub range: LogRange,
    /// The site knows of the partition's other track, and declares it too. A second track is never alone.
    pub has_other_track: bool,
    /// Codec states that the site saved, best first; at most [`MAX_ANCHORS`].
    pub anchors: Vec<Anchor>,
}

impl LogEntry {
    /// Fewest bytes of an entry: a topic of one letter and small numbers.
    const MIN_LEN: usize = 9;

    /// How the track is told.
    const fn track_byte(&self) -> u8 {
        match (self.log.track, self.has_other_track) {
            (Track::First, false) => 0,
            (Track::First, true) => 1,
            (Track::Second, _) => 2,
        }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.handle.0.into());
        put_text(out, self.log.topic.as_str(), MAX_TOPIC_NAME_LEN);
        put_varint(out, self.log.partition.into());
        out.push(self.track_byte());
        put_varint(out, self.range.origin);
        put_varint(out, self.range.start);
        put_varint(out, self.range.end);
        let anchors = &self.anchors[..self.anchors.len().min(MAX_ANCHORS)];
        put_varint(out, anchors.len() as u64);
        for anchor in anchors {
            out.push(anchor.codec);
            out.extend_from_slice(&anchor.position.to_be_bytes());
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let handle = Handle(reader.varint_u32()?);
        let topic = TopicName::new(reader.text(MAX_TOPIC_NAME_LEN)?)?;
        let partition = reader.varint_u32()?;
        let (track, has_other_track) = match reader.u8()? {
            0 => (Track::First, false),
            1 => (Track::First, true),
            2 => (Track::Second, true),
            _ => return Err(WireError::Malformed("unknown track")),
        };
        let entry = Self {
            handle,
            log: TopicPartition {
                topic,
                partition,
                track,
            },
            range: LogRange {
                origin: reader.varint()?,
                start: reader.varint()?,
                end: reader.varint()?,
            },
            has_other_track,
            anchors: take_anchors(reader)?,
        };
        if !entry.range.is_valid() {
            return Err(WireError::Malformed("log range is out of order"));
        }
        Ok(entry)
    }
}

fn take_anchors(reader: &mut Reader<'_>) -> Result<Vec<Anchor>, WireError> {
    let count = reader.count(9)?;
    if count > MAX_ANCHORS {
        return Err(WireError::Malformed("more than 4 anchors of a log"));
    }
    let take = |_| {
        Ok(Anchor {
            codec: reader.u8()?,
            position: reader.u64()?,
        })
    };
    (0..count).map(take).collect()
}

pub(super) fn put_logs(out: &mut Vec<u8>, logs: &[LogEntry]) {
    put_varint(out, logs.len() as u64);
    for log in logs {
        log.put(out);
    }
}

pub(super) fn take_logs(reader: &mut Reader<'_>) -> Result<Vec<LogEntry>, WireError> {
    let count = reader.count(LogEntry::MIN_LEN)?;
    (0..count).map(|_| LogEntry::take(reader)).collect()
}

/// The site's first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version that the site speaks.
    pub min_version: u16,
    /// Newest version that the site speaks.
    pub max_version: u16,
    /// Random, to tell sessions apart in logs.
    pub nonce: u64,
    /// The site's incarnation: checkpoints of another one do not apply.
    pub incarnation: Incarnation,
    /// Name and version of the software, for people.
    pub software: String,
    /// Codec ids that the site can encode, best first. Codec 0 (none) is always allowed.
    pub codecs: Vec<u8>,
    /// The logs known so far; more may be declared later.
    pub logs: Vec<LogEntry>,
}

impl Hello {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.min_version.to_be_bytes());
        out.extend_from_slice(&self.max_version.to_be_bytes());
        out.extend_from_slice(&self.nonce.to_be_bytes());
        out.extend_from_slice(&self.incarnation.0.to_be_bytes());
        put_text(out, &self.software, MAX_SOFTWARE_LEN);
        put_codecs(out, &self.codecs);
        put_logs(out, &self.logs);
    }

    /// Magic and versions keep their place in every version; the rest is read only when there is a
    /// version in common.
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        if reader.array()? != MAGIC {
            return Err(WireError::Malformed("hello does not start with its magic"));
        }
        let (min_version, max_version) = (reader.u16()?, reader.u16()?);
        if min_version > max_version || min_version > MAX_VERSION || max_version < MIN_VERSION {
            return Err(WireError::Version {
                min: min_version,
                max: max_version,
            });
        }
        Ok(Self {
            min_version,
            max_version,
            nonce: reader.u64()?,
            incarnation: Incarnation(reader.u128()?),
            software: reader.text(MAX_SOFTWARE_LEN)?.to_owned(),
            codecs: take_codecs(reader)?,
            logs: take_logs(reader)?,
        })
    }
}

fn put_codecs(out: &mut Vec<u8>, codecs: &[u8]) {
    let codecs = &codecs[..codecs.len().min(MAX_CODECS)];
    put_varint(out, codecs.len() as u64);
    out.extend_from_slice(codecs);
}

fn take_codecs(reader: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    let count = reader.count(1)?;
    if count > MAX_CODECS {
        return Err(WireError::Malformed("more than 32 codecs"));
    }
    Ok(reader.bytes(count)?.to_vec())
}

/// What the central cluster holds of one log: everything before `next_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The next offset that the cluster does not hold yet.
    pub next_offset: Offset,
    /// The site's history up to there, as its store computed it; 0: not known.
    pub chain: u64,
}

/// The hub's word on one declared log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogReply {
    /// The cluster holds nothing of this log and incarnation.
    Absent,
    /// The cluster holds everything before the checkpoint.
    At(Checkpoint),
    /// This site may not send this log.
    Denied,
}

/// The reply to one declared log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// Which log.
    pub handle: Handle,
    /// Where to go on.
    pub reply: LogReply,
    /// The one of the site's anchors, counted from 1, that the hub has too; 0: none, the codec's memory
    /// is empty.
    pub anchor: u8,
}

impl CheckpointEntry {
    const MIN_LEN: usize = 3;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.handle.0.into());
        match self.reply {
            LogReply::Absent => out.push(0),
            LogReply::At(checkpoint) => {
                out.push(1);
                put_varint(out, checkpoint.next_offset);
                out.extend_from_slice(&checkpoint.chain.to_be_bytes());
            }
            LogReply::Denied => out.push(2),
        }
        out.push(self.anchor);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let handle = Handle(reader.varint_u32()?);
        let reply = match reader.u8()? {
            0 => LogReply::Absent,
            1 => LogReply::At(Checkpoint {
                next_offset: take_offset(reader)?,
                chain: reader.u64()?,
            }),
            2 => LogReply::Denied,
            _ => return Err(WireError::Malformed("unknown kind of checkpoint")),
        };
        Ok(Self {
            handle,
            reply,
            anchor: reader.u8()?,
        })
    }
}

pub(super) fn put_checkpoints(out: &mut Vec<u8>, checkpoints: &[CheckpointEntry]) {
    put_varint(out, checkpoints.len() as u64);
    for entry in checkpoints {
        entry.put(out);
    }
}

pub(super) fn take_checkpoints(reader: &mut Reader<'_>) -> Result<Vec<CheckpointEntry>, WireError> {
    let count = reader.count(CheckpointEntry::MIN_LEN)?;
    (0..count).map(|_| CheckpointEntry::take(reader)).collect()
}

pub(super) fn take_offset(reader: &mut Reader<'_>) -> Result<Offset, WireError> {
    let offset = reader.varint()?;
    if offset > MAX_OFFSET {
        return Err(WireError::Malformed("offset larger than 63 bits"));
    }
    Ok(offset)
}

/// The hub's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both ends speak from here on.
    pub version: u16,
    /// The codecs that the site may use beside 0: those of the hello that the hub decodes, in its order.
    pub codecs: Vec<u8>,
    /// Bytes that the site may send in all since the session began.
    pub credit_limit: u64,
    /// Most decoded bytes of one data stream.
    pub max_batch_bytes: u32,
    /// The site pings this often; three times as long without a word ends the session.
    pub keep_alive_ms: u32,
    /// One entry for each log of the hello, in its order.
    pub checkpoints: Vec<CheckpointEntry>,
}

impl Welcome {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_be_bytes());
        put_codecs(out, &self.codecs);
        put_varint(out, self.credit_limit);
        put_varint(out, self.max_batch_bytes.into());
        put_varint(out, self.keep_alive_ms.into());
        put_checkpoints(out, &self.checkpoints);
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            version: reader.u16()?,
            codecs: take_codecs(reader)?,
            credit_limit: reader.varint()?,
            max_batch_bytes: reader.varint_u32()?,
            keep_alive_ms: reader.varint_u32()?,
            checkpoints: take_checkpoints(reader)?,
        })
    }
}

/// Why a session is refused or ends. Also the application error code of the QUIC connection's close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// No protocol version in common.
    Version,
    /// The certificate may not do this.
    NotAllowed,
    /// The hub has no room or Kafka is away.
    Busy,
    /// Another hub owns the site's track: try the next address.
    NotOwner,
    /// The same site opened another session.
    Superseded,
    /// The peer broke the protocol.
    BadFrame,
    /// The peer went past a bound: credit, logs or streams.
    Limit,
    /// Nothing was heard for too long.
    Timeout,
    /// The process stops in good order.
    Stopping,
    /// This end failed.
    Internal,
    /// The site starts a new incarnation and comes back.
    HistoryMismatch,
    /// A code of a later version.
    Other(u8),
}

impl Code {
    /// The number on the wire.
    #[must_use]
    pub fn to_u8(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::NotAllowed => 2,
            Self::Busy => 3,
            Self::NotOwner => 4,
            Self::Superseded => 5,
            Self::BadFrame => 6,
            Self::Limit => 7,
            Self::Timeout => 8,
            Self::Stopping => 9,
            Self::Internal => 10,
            Self::HistoryMismatch => 11,
            Self::Other(code) => code,
        }
    }

    /// The code of a number on the wire.
    #[must_use]
    pub fn from_u8(code: u8) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::NotAllowed,
            3 => Self::Busy,
            4 => Self::NotOwner,
            5 => Self::Superseded,
            6 => Self::BadFrame,
            7 => Self::Limit,
            8 => Self::Timeout,
            9 => Self::Stopping,
            10 => Self::Internal,
            11 => Self::HistoryMismatch,
            other => Self::Other(other),
        }
    }
}

/// The last frame of a session: a refusal or a goodbye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Farewell {
    /// Why.
    pub code: Code,
    /// Come back no earlier than this; 0: as the site's own backoff says.
    pub retry_after_ms: u32,
    /// For people; cut to 256 bytes.
    pub text: String,
}

impl Farewell {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.code.to_u8());
        put_varint(out, self.retry_after_ms.into());
        put_text(out, &self.text, MAX_TEXT_LEN);
    }

    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            code: Code::from_u8(reader.u8()?),
            retry_after_ms: reader.varint_u32()?,
            text: reader.text(MAX_TEXT_LEN)?.to_owned(),
        })
    }
}

/// Text behind its length, cut at a character boundary to at most `max_len` bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, max_len: usize) {
    let mut len = text.len().min(max_len);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    put_varint(out, len as u64);
    out.extend_from_slice(&text.as_bytes()[..len]);
}
