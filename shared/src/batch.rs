//! What a data stream carries: blocks of records, and the codecs that shrink them.
//!
//! A block is what one producer sent at once, uncompressed, its records verbatim as in Kafka's record
//! batch. The raw payload is a sequence of blocks; offsets need no bytes because blocks are contiguous
//! from the stream's base offset on:
//!
//! ```text
//! count   base timestamp     flags  length  records
//! varint  zigzag varint, ms, u8     varint  Kafka's uncompressed records, offset deltas from 0
//!         delta to the block
//!         before (first: 0)
//! ```
//! Flag bit 0: all records carry the base timestamp (`LogAppendTime`), whatever their deltas say.
//!
//! A codec works on the whole raw payload and is known by its id; both ends agree on one in hello and
//! welcome, and codec 0 (none) is always allowed. What the codec makes is never longer than the raw
//! payload: an encoder that cannot shrink it leaves the payload as it is, as codec 0. Nothing is
//! decoded before the announced length was held against the limit, and never more than announced.

mod blocks;
mod chain;
mod codec;
mod columns;
mod dictionary;
pub mod estimate;
mod long;
mod model;
mod open;
mod pack;
mod split;
mod zstd;

#[cfg(test)]
mod tests;

pub use blocks::{Block, BlockWriter, read_blocks};
pub use chain::{ChainCodec, ChainLimits, load_chain, new_chain, next_position, remembers};
pub use codec::{
    CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_LONG, CODEC_MODELLED, CODEC_NONE, CODEC_ZSTD, Decoder,
    Encoder, NoneCodec, codec_name, supported_codecs,
};
pub use columns::ColumnarCodec;
pub use dictionary::DictionaryCodec;
pub(crate) use long::{LongReader, LongWriter, SavedWindow};
pub use model::ModelChain;
pub use open::{Decoders, Incoming, Memories, Memory, OpenError, Opened};
pub use pack::{Outgoing, Packed, seal, seal_crc};
pub use zstd::{ZstdDecoder, ZstdEncoder};

/// Why a batch could not be encoded or was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Ends early, or says something that its bytes do not hold.
    #[error("batch is malformed: {0}")]
    Malformed(&'static str),
    /// More decoded bytes than the limit.
    #[error("batch of {bytes} bytes is larger than {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// A codec that was not agreed on.
    #[error("batch names codec {0}, which this end does not have")]
    UnknownCodec(u8),
    /// The codec failed.
    #[error("codec {codec}: {error}")]
    Codec { codec: u8, error: String },
    /// The bytes changed on their way.
    #[error("batch checksum is {found:#010x}, computed {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
    /// A payload refers to chunks that are not here; see [`crate::dedup`].
    #[error("{} chunks are not here", .0.len())]
    Missing(Vec<crate::dedup::ChunkId>),
    /// Records inside a block are broken.
    #[error("records in a batch: {0}")]
    Records(#[from] crate::record::RecordError),
}
