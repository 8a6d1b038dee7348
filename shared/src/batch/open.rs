//! The hub's end: payloads of data streams become blocks of records again.

use bytes::Bytes;

use super::zstd::ZstdDecoder;
use super::{BatchError, Block, ChainCodec, Decoder, NoneCodec, read_blocks, seal};
use crate::dedup::ChunkId;
use crate::history;
use crate::ids::Offset;
use crate::wire::RecordsHeader;

/// One decoder of each kind that remembers nothing, with contexts that are used again.
#[derive(Debug)]
pub struct Decoders {
    decoders: Vec<Box<dyn Decoder>>,
}

impl Default for Decoders {
    fn default() -> Self {
        Self {
            decoders: vec![Box::new(NoneCodec), Box::new(ZstdDecoder::default())],
        }
    }
}

/// Where the memories of codecs come from, and where they are kept.
pub trait Memories {
    /// A codec that remembers nothing; `None` when there is no codec of this id that remembers.
    fn fresh(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>>;

    /// The state that both ends agreed on when the session began, if this log has one.
    fn agreed(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>>;

    /// Keeps the state for a later session.
    fn keep(&mut self, codec: &dyn ChainCodec);
}

/// A payload of records that came.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// How to read it.
    pub header: RecordsHeader,
    /// The bytes.
    pub payload: &'a Bytes,
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Offset after the last record.
    pub next_offset: Offset,
    /// The history before; 0: not known.
    pub chain_before: u64,
    /// The history after, if the site says it.
    pub chain: Option<u64>,
    /// Most bytes that it may decode to.
    pub max_raw: usize,
}

/// What a payload held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The records.
    pub blocks: Vec<Block>,
    /// The history after them; 0: not known.
    pub chain: u64,
}

/// Why a payload was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The codec's memory is not the site's, or was lost: the log has to be sent again from here, with the
    /// memory empty.
    #[error("codec state: {0}")]
    Lost(BatchError),
    /// The payload refers to chunks that the hub does not hold: the site has to know, and the log is lost from
    /// here as well.
    #[error("{} chunks are not here", .0.len())]
    Missing(Vec<ChunkId>),
    /// The site breaks the protocol: its session must end.
    #[error(transparent)]
    Broken(#[from] BatchError),
}

/// What the hub remembers of one log within a session.
#[derive(Debug, Default)]
pub struct Memory {
    codec: Option<Box<dyn ChainCodec>>,
}

impl Memory {
    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codec.as_ref().map_or(0, |codec| codec.memory())
    }

    /// Forgets everything: a payload that refers to it is lost.
    pub fn forget(&mut self) {
        self.codec = None;
    }

    /// Decodes and checks the next payload of the log, down to every record.
    ///
    /// # Errors
    /// [`OpenError`]. More than `max_raw` bytes are refused before anything is decoded.
    pub fn open(
        &mut self,
        incoming: &Incoming<'_>,
        decoders: &mut Decoders,
        memories: &mut dyn Memories,
    ) -> Result<Opened, OpenError> {
        let header = incoming.header;
        let size = usize::try_from(header.size.bytes()).unwrap_or(usize::MAX);
        if size > incoming.max_raw {
            return Err(OpenError::Broken(BatchError::TooLarge {
                bytes: size,
                limit: incoming.max_raw,
            }));
        }
        let alone = |decoder: &&mut Box<dyn Decoder>| decoder.codec() == header.codec;
        let Some(decoder) = decoders.decoders.iter_mut().find(alone) else {
            return self.open_chain(incoming, size, memories);
        };
        let raw = decoder.decode(incoming.payload, size)?;
        Ok(incoming.check(&raw)?)
    }

    fn open_chain(
        &mut self,
        incoming: &Incoming<'_>,
        size: usize,
        memories: &mut dyn Memories,
    ) -> Result<Opened, OpenError> {
        let header = incoming.header;
        let unknown = BatchError::UnknownCodec(header.codec);
        let mut codec = if header.is_fresh {
            memories.fresh(header.codec).ok_or(unknown)?
        } else {
            let known = self.codec.take().filter(|c| c.codec() == header.codec);
            let missing = OpenError::Lost(BatchError::Codec {
                codec: header.codec,
                error: "the state that the payload refers to is gone".into(),
            });
            known
                .or_else(|| memories.agreed(header.codec))
                .ok_or(missing)?
        };
        let opened = codec
            .decode(incoming.payload, size)
            .and_then(|raw| incoming.check(&raw));
        // a memory that was empty cannot be another than the site's
        let failed = |error| {
            if let BatchError::Missing(ids) = error {
                OpenError::Missing(ids)
            } else if header.is_fresh {
                OpenError::Broken(error)
            } else {
                OpenError::Lost(error)
            }
        };
        let opened = opened.map_err(failed)?;
        if header.is_anchor {
            memories.keep(codec.as_ref());
        }
        self.codec = Some(codec);
        Ok(opened)
    }
}

impl Incoming<'_> {
    fn check(&self, raw: &Bytes) -> Result<Opened, BatchError> {
        let blocks = read_blocks(raw, self.base_offset, self.next_offset)?;
        let followed = || history::after_plain(self.chain_before, &blocks);
        let Some(chain) = self.chain.or_else(followed) else {
            return Err(BatchError::Malformed("history does not follow"));
        };
        let computed = seal(raw, self.next_offset, chain);
        if computed != self.header.check {
            return Err(BatchError::Checksum {
                found: self.header.check,
                computed,
            });
        }
        Ok(Opened { blocks, chain })
    }
}
