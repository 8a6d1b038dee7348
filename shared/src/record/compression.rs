//! The codecs of Kafka's record batches, each with a cap on what comes out.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::RecordError;

/// How a batch's records are compressed: the low three bits of its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As they are.
    None,
    /// RFC 1952.
    Gzip,
    /// Raw snappy, or xerial's framing as the Java client writes it.
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    pub(super) fn from_attributes(attributes: i16) -> Result<Self, RecordError> {
        Ok(match attributes & 0x07 {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            other => return Err(RecordError::UnknownCompression(other.to_le_bytes()[0])),
        })
    }

    pub(crate) fn attributes(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }
}

/// Decompresses to at most `limit` bytes; uncompressed input is handed through without a copy.
///
/// # Errors
/// [`RecordError::TooLarge`] at the limit, [`RecordError::Decompress`] for bytes that the codec
/// refuses.
pub fn decompress(codec: Compression, input: Bytes, limit: usize) -> Result<Bytes, RecordError> {
    let refused = |error: io::Error| RecordError::Decompress(error.to_string());
    match codec {
        Compression::None if input.len() > limit => Err(RecordError::TooLarge {
            bytes: input.len(),
            limit,
        }),
        Compression::None => Ok(input),
        Compression::Gzip => read_bounded(flate2::read::MultiGzDecoder::new(&input[..]), limit),
        Compression::Snappy => snappy(&input, limit),
        Compression::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(&input[..]), limit),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(&input[..]).map_err(refused)?;
            // a frame's window is memory that the sender chooses
            decoder.window_log_max(27).map_err(refused)?;
            read_bounded(decoder, limit)
        }
    }
}

fn read_bounded(reader: impl Read, limit: usize) -> Result<Bytes, RecordError> {
    let mut out = Vec::new();
    let cap = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader
        .take(cap)
        .read_to_end(&mut out)
        .map_err(|error| RecordError::Decompress(error.to_string()))?;
    if out.len() > limit {
        return Err(RecordError::TooLarge {
            bytes: out.len(),
            limit,
        });
    }
    Ok(Bytes::from(out))
}

/// Magic of xerial's framing, in which the Java client and others wrap snappy: 8 bytes of magic, two
/// version numbers of 4 bytes, then blocks of a 4-byte length and raw snappy.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_LEN: usize = 16;

fn snappy(input: &[u8], limit: usize) -> Result<Bytes, RecordError> {
    let mut out = Vec::new();
    if !input.starts_with(&XERIAL_MAGIC) {
        snappy_block(input, limit, &mut out)?;
        return Ok(out.into());
    }
    let mut rest = input
        .get(XERIAL_HEADER_LEN..)
        .ok_or_else(|| RecordError::Decompress("xerial header ends early".into()))?;
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let block = tail
            .get(..length)
            .ok_or_else(|| RecordError::Decompress("xerial block ends early".into()))?;
        snappy_block(block, limit, &mut out)?;
        rest = &tail[length..];
    }
    if rest.is_empty() {
        Ok(out.into())
    } else {
        Err(RecordError::Decompress(
            "bytes after the last xerial block".into(),
        ))
    }
}

fn snappy_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let refused = |error: snap::Error| RecordError::Decompress(error.to_string());
    let len = snap::raw::decompress_len(block).map_err(refused)?;
    let start = out.len();
    if start + len > limit {
        return Err(RecordError::TooLarge {
            bytes: start + len,
            limit,
        });
    }
    out.resize(start + len, 0);
    snap::raw::Decoder::new()
        .decompress(block, &mut out[start..])
        .map_err(refused)?;
    Ok(())
}

/// Compresses records as a Kafka producer would, snappy without framing.
///
/// # Errors
/// The codec's own error; none is known for inputs in memory.
pub fn compress(codec: Compression, input: &[u8]) -> io::Result<Vec<u8>> {
    match codec {
        Compression::None => Ok(input.to_vec()),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(input)?;
            encoder.finish()
        }
        Compression::Snappy => snap::raw::Encoder::new()
            .compress_vec(input)
            .map_err(io::Error::other),
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(input)?;
            encoder.finish().map_err(io::Error::other)
        }
        Compression::Zstd => zstd::bulk::compress(input, 3),
    }
}
