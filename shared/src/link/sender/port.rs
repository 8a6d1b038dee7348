//! What goes into the site's half, and what comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Incarnation, Offset};
use crate::link::{Close, Mismatch};
use crate::wire::{DataContent, DataHeader, Handle, RecordsHeader};

/// What the site's half needs to know from the start.
#[derive(Debug, Clone)]
pub struct SenderConfig {
    /// Random for each session, to tell them apart in logs.
    pub nonce: u64,
    /// The store's incarnation.
    pub incarnation: Incarnation,
    /// Name and version of the software, for people.
    pub software: String,
    /// Codec ids that the driver can encode, best first.
    pub codecs: Vec<u8>,
    /// Most reads under way and read items waiting for credit. Bounds memory together with the hub's
    /// `max_batch_bytes`.
    pub max_reads: usize,
    /// Raw bytes that one read asks for; one larger producer batch may exceed it.
    pub max_read_bytes: u32,
    /// From hello to welcome.
    pub handshake_timeout: Duration,
}

/// Where streams ended that were sent and not acknowledged, with their chains: the hub's next checkpoint
/// may lie there, and by then the store may have made a gap of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsettled(pub(super) BTreeMap<(Handle, Offset), u64>);

/// What a read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadResult {
    /// Consecutive records, encoded.
    Records {
        /// First offset. Larger than asked for when the log was trimmed in between.
        base_offset: Offset,
        /// Offset after the last.
        next_offset: Offset,
        /// The store's chain at `next_offset`.
        chain: u64,
        /// Codec, raw length and checksum.
        header: RecordsHeader,
        /// The encoded payload.
        payload: Bytes,
    },
    /// A range that the store dropped.
    Gap {
        /// First offset that is missing. Larger than asked for when the log was trimmed in between.
        from: Offset,
        /// Offset after the last one missing.
        to: Offset,
        /// The store's reason.
        reason: u8,
        /// The store's chain at `to`.
        chain: u64,
    },
    /// Nothing there after all: the log is asked again once it has grown.
    Nothing,
}

/// One unidirectional stream to open: write the header, then the payload, then finish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataStream {
    /// Which log and range.
    pub header: DataHeader,
    /// The header's bytes.
    pub head: Bytes,
    /// The bytes after it; empty for a gap.
    pub payload: Bytes,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderOutput {
    /// Append to the control stream.
    Control(Bytes),
    /// The hub has welcomed us: encode with this codec, at most this many raw bytes a batch.
    Established {
        version: u16,
        codec: u8,
        max_batch_bytes: u32,
    },
    /// Open a stream and send.
    Data(DataStream),
    /// Read from the store and answer with [`Sender::handle_read`](super::Sender::handle_read).
    Read {
        handle: Handle,
        from: Offset,
        max_bytes: u32,
    },
    /// Ask the store for its chain at this offset and answer with [`Sender::handle_chain`](super::Sender::handle_chain).
    Chain { handle: Handle, offset: Offset },
    /// The hub holds everything before this offset.
    Acked { handle: Handle, next_offset: Offset },
    /// The log is parked: the site needs a new incarnation. Nothing is sent any more; once it is known what
    /// the hub holds of the other logs, and that is told as [`SenderOutput::Acked`], the session closes
    /// with [`Code::HistoryMismatch`](crate::wire::Code::HistoryMismatch).
    HistoryMismatch { handle: Handle, mismatch: Mismatch },
    /// The log is parked: the hub does not take it from this site.
    Denied { handle: Handle },
    /// The log is parked: one producer batch is larger than the hub accepts.
    TooLarge {
        handle: Handle,
        offset: Offset,
        bytes: u32,
        limit: u32,
    },
    /// The session is over. Nothing comes after this.
    Close(Close),
}

impl ReadResult {
    /// The stream that it becomes; `None` when there was nothing.
    pub(super) fn into_stream(self, handle: Handle) -> Option<(DataHeader, Bytes)> {
        match self {
            Self::Records {
                base_offset,
                next_offset,
                chain,
                header,
                payload,
            } => Some((
                DataHeader {
                    handle,
                    base_offset,
                    next_offset,
                    chain,
                    content: DataContent::Records(header),
                },
                payload,
            )),
            Self::Gap {
                from,
                to,
                reason,
                chain,
            } => Some((
                DataHeader {
                    handle,
                    base_offset: from,
                    next_offset: to,
                    chain,
                    content: DataContent::Gap { reason },
                },
                Bytes::new(),
            )),
            Self::Nothing => None,
        }
    }
}
