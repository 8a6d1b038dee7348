//! The bytes of the link between a site and a hub: control frames and data streams.
//!
//! One bidirectional control stream carries framed messages both ways, in order. Records travel on
//! short unidirectional streams from site to hub, one batch or one gap each, in any order. The bytes
//! are drawn in `docs/link-protocol.md` and pinned by golden files in `shared/golden`.
//!
//! Always true: a length or a count is held against a limit and against the bytes that are there
//! before anything is allocated for it; fixed-width numbers are big endian; varints are unsigned
//! LEB128 of at most ten bytes. Deliberately absent: the site's name, which only its certificate says.
//!
//! A frame of an unknown type is an error in every version: both ends speak exactly the version that
//! the hub chose in its welcome, and whoever adds a frame type raises the version.

mod data;
mod frame;
mod hello;
mod varint;

#[cfg(test)]
mod tests;

pub use data::{
    DataContent, DataHeader, MAX_CODEC, MAX_DATA_HEADER_LEN, MAX_EXPANSION, RecordsHeader,
    SizeClass, charge, max_stream_len,
};
pub use frame::{Ack, Frame, FrameDecoder, Restart};
pub use hello::{
    Anchor, Checkpoint, CheckpointEntry, Code, Farewell, Hello, LogEntry, LogRange, LogReply,
    MAX_ANCHORS, Welcome,
};
pub(crate) use varint::{Reader, put_varint, put_zigzag};

use crate::ids::{NameError, Offset};

/// First bytes of a hello.
pub const MAGIC: [u8; 4] = *b"KDGE";

/// Oldest protocol version spoken here.
pub const MIN_VERSION: u16 = 3;

/// Newest protocol version spoken here.
pub const MAX_VERSION: u16 = 3;

/// What a node's `version` tells of the link: `link protocol 3`, or `link protocol 3 to 4`. Not what [`ALPN`] ends in:
/// that names the handshake, which is the same for all versions.
#[must_use]
pub fn spoken() -> String {
    let newest = match MAX_VERSION {
        MIN_VERSION => String::new(),
        newest => format!(" to {newest}"),
    };
    format!("link protocol {MIN_VERSION}{newest}")
}

/// The TLS application protocol of the link.
pub const ALPN: &[u8] = b"kedge/1";

/// Most bytes in a hello or a welcome.
pub const MAX_HELLO_LEN: usize = 1 << 20;

/// Most bytes in any other control frame.
pub const MAX_FRAME_LEN: usize = 64 << 10;

/// Most bytes of a policy that a hub pushes.
pub const MAX_POLICY_LEN: usize = 32 << 10;

/// Most unacknowledged data streams of one session.
pub const MAX_STREAMS_IN_FLIGHT: usize = 1024;

/// Most unacknowledged data streams of one log: their places are told in eight bits.
pub const MAX_LOG_STREAMS: usize = 63;

/// What a data stream costs beyond its decoded bytes: its header and the bookkeeping at both ends.
pub const STREAM_OVERHEAD: u64 = 256;

/// Least that a hub may name as its largest batch, so that every batch that a site's ingest accepts
/// can be sent.
pub const MIN_MAX_BATCH_BYTES: u32 = 4 << 20;

/// Largest offset: Kafka's are signed.
pub const MAX_OFFSET: Offset = i64::MAX.unsigned_abs();

/// Gap reason of a range that the hub does not hold and the site no longer has: what it was told
/// long ago that the hub held. Reasons below are the store's.
pub const GAP_NOT_AT_SITE: u8 = 5;

/// Gap reason of a range that the partition's other track has. No record is lost by it.
pub const GAP_OTHER_TRACK: u8 = 7;

/// A handle of one log within one session: small, chosen by the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// Why bytes from the link were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Ends early, has bytes left over, or a value outside what is accepted.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// A type that this version does not define.
    #[error("unknown frame type {0}")]
    UnknownFrame(u8),
    /// A frame larger than its type may be.
    #[error("frame of type {kind} and {bytes} bytes is larger than {limit}")]
    TooLarge { kind: u8, bytes: u64, limit: usize },
    /// No version in common; the rest of the hello was not read.
    #[error("peer speaks versions {min} to {max}, this end {MIN_VERSION} to {MAX_VERSION}")]
    Version { min: u16, max: u16 },
    /// A topic with a name that Kafka does not accept.
    #[error("topic name: {0}")]
    Name(#[from] NameError),
}
