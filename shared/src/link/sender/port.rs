//! What goes into the site's half, and what comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::class::{Class, ClassRules};
use crate::dedup::ChunkId;
use crate::ids::{Incarnation, Offset};
use crate::link::{Close, Mismatch};
use crate::wire::{Anchor, DataContent, DataHeader, Handle, RecordsHeader};

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
    /// Most reads under way and read items waiting, of all classes that may be sent; one that has none may
    /// always have one. Bounds memory together with the hub's `max_batch_bytes`.
    pub max_reads: usize,
    /// Raw bytes that one read asks for; one larger producer batch may exceed it.
    pub max_read_bytes: u32,
    /// How the classes share the link, and how long their records wait for company.
    pub classes: ClassRules,
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
        /// The hub computes the chain by itself (see [`crate::history::after_plain`]).
        is_chain_known: bool,
        /// Codec, size and checksum.
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

/// What a codec's memory of a log holds when a session begins to send it, or begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Nothing.
    Fresh,
    /// What both ends saved.
    Anchor(Anchor),
}

/// One unidirectional stream to open: write the header, then the payload, then finish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataStream {
    /// How urgent it is: the transport is to send what is more urgent first.
    pub class: Class,
    /// First offset.
    pub base_offset: Offset,
    /// Offset after the last.
    pub next_offset: Offset,
    /// Which log, and how to read the payload.
    pub header: DataHeader,
    /// The header's bytes.
    pub head: Bytes,
    /// The bytes after it; empty for a gap.
    pub payload: Bytes,
}

impl DataStream {
    /// Bytes of the whole stream.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "there is no stream without a header"
    )]
    pub fn len(&self) -> u64 {
        (self.head.len() + self.payload.len()) as u64
    }
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderOutput {
    /// Append to the control stream.
    Control(Bytes),
    /// The hub has welcomed us: encode with one of these codecs, at most this many raw bytes a batch.
    Established {
        version: u16,
        codecs: Vec<u8>,
        max_batch_bytes: u32,
    },
    /// Open a stream and send.
    Data(DataStream),
    /// Read from the store and answer with [`Sender::handle_read`](super::Sender::handle_read).
    Read {
        handle: Handle,
        from: Offset,
        max_bytes: u32,
        /// The chain at `from` as the hub will know it; 0: it will not.
        chain: u64,
        /// Set the codec's memory to this first.
        begin: Option<Begin>,
    },
    /// Ask the store for its chain at this offset and answer with [`Sender::handle_chain`](super::Sender::handle_chain).
    Chain { handle: Handle, offset: Offset },
    /// The hub says what the link may be used for; an empty text withdraws what it said before.
    Policy(String),
    /// The hub holds everything before this offset.
    Acked { handle: Handle, next_offset: Offset },
    /// The hub does not hold these chunks: encode nothing that refers to them. Comes before the reads of a log
    /// that begins again because of it.
    Missing(Vec<ChunkId>),
    /// So many bytes may wait at the hub's transport before they are read.
    Window(u64),
    /// The log is parked: the site needs a new incarnation. Nothing is sent any more; once it is known what
    /// the hub holds of the other logs, and that is told as [`SenderOutput::Acked`], the session closes
    /// with [`Code::HistoryMismatch`](crate::wire::Code::HistoryMismatch).
    HistoryMismatch { handle: Handle, mismatch: Mismatch },
    /// The log is parked: the hub does not take it from this site.
    Denied { handle: Handle },
    /// The hub takes it after all.
    Admitted { handle: Handle },
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

/// Read, and waiting for its turn.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) handle: Handle,
    pub(super) base_offset: Offset,
    pub(super) next_offset: Offset,
    pub(super) chain: u64,
    pub(super) is_chain_known: bool,
    pub(super) content: DataContent,
    pub(super) payload: Bytes,
}

impl Held {
    pub(super) fn header(&self, seq: u8, is_restart: bool) -> DataHeader {
        DataHeader {
            handle: self.handle,
            seq,
            is_restart,
            count: self.next_offset.saturating_sub(self.base_offset),
            chain: (!self.is_chain_known).then_some(self.chain),
            content: self.content,
        }
    }

    pub(super) fn charge(&self) -> u64 {
        self.header(0, false).charge()
    }

    /// Offsets that it covers.
    pub(super) fn records(&self) -> u64 {
        self.next_offset.saturating_sub(self.base_offset)
    }

    /// Most bytes that the payload decodes to.
    pub(super) fn raw_len(&self) -> u32 {
        match self.content {
            DataContent::Records(records) => records.size.bytes(),
            DataContent::Gap { .. } => 0,
        }
    }
}

impl ReadResult {
    /// What waits for its turn; `None` when there was nothing.
    pub(super) fn into_held(self, handle: Handle) -> Option<Held> {
        match self {
            Self::Records {
                base_offset,
                next_offset,
                chain,
                is_chain_known,
                header,
                payload,
            } => Some(Held {
                handle,
                base_offset,
                next_offset,
                chain,
                is_chain_known,
                content: DataContent::Records(header),
                payload,
            }),
            Self::Gap {
                from,
                to,
                reason,
                chain,
            } => Some(Held {
                handle,
                base_offset: from,
                next_offset: to,
                chain,
                is_chain_known: false,
                content: DataContent::Gap { reason },
                payload: Bytes::new(),
            }),
            Self::Nothing => None,
        }
    }
}
