//! Kafka's record batch, version 2: checked, opened, walked and built.
//!
//! The site stores what a producer sent verbatim; only the base offset and the leader epoch are
//! patched, and both lie outside the batch's checksum. Nothing here trusts a length: every count is
//! held against the bytes that are there, and what a batch decompresses to is bounded.
//!
//! ```text
//!  0        8        12        16    17    21        23         27          35         43
//!  ├ base   ├ batch  ├ leader  ├magic├ crc ├ attri-  ├ last     ├ base      ├ max      ├
//!  │ offset │ length │ epoch   │ = 2 │     │ butes   │ offset   │ timestamp │ timestamp│
//!  │ i64    │ i32    │ i32     │ i8  │ u32 │ i16     │ delta i32│ i64 ms    │ i64 ms   │
//! 43         51       53       57      61
//!  ├ producer ├ producer├ base  ├ record├ records, perhaps compressed …
//!  │ id i64   │ epoch   │ seq   │ count │
//!  │          │ i16     │ i32   │ i32   │
//! ```
//! All big endian; the length counts from the leader epoch on; the checksum is CRC-32C of everything
//! from the attributes on. Source: Kafka protocol guide, "Record Batch".

mod build;
mod compression;
mod walk;

use bytes::Bytes;

pub use build::BatchBuilder;
pub use compression::{Compression, compress, decompress};
pub use walk::{Header, HeaderIter, RecordRef, Records, put_record, record_len};

use crate::ids::Offset;

/// Bytes before the first record.
pub const HEADER_LEN: usize = 61;
const LENGTH_PREFIX: usize = 12;
const CRC_START: usize = 21;

/// What may stand in a batch that comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most bytes of a batch as it comes, header included.
    pub max_batch_bytes: usize,
    /// Most bytes of its records once decompressed.
    pub max_uncompressed_bytes: usize,
}

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Ends early, or a length inside points outside.
    #[error("record batch is malformed: {0}")]
    Malformed(&'static str),
    /// Message format 0 or 1, or one from the future.
    #[error("record batch has magic {0}; accepted: 2")]
    Magic(i8),
    /// The bytes changed on their way.
    #[error("record batch checksum is {found:#010x}, computed {computed:#010x}")]
    Checksum { found: u32, computed: u32 },
    /// More bytes than the limit, as they came or decompressed.
    #[error("record batch of {bytes} bytes is larger than {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// A codec id that Kafka does not define.
    #[error("record batch names compression {0}; accepted: 0 to 4")]
    UnknownCompression(u8),
    /// The codec refused the bytes.
    #[error("record batch does not decompress: {0}")]
    Decompress(String),
    /// Control batches and transactional batches are for brokers with a transaction coordinator.
    #[error("record batch is {0}; accepted: plain or idempotent batches")]
    Unsupported(&'static str),
}

/// Who produced a batch and where it stands in that producer's sequence (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerStamp {
    /// Producer id, not negative.
    pub id: i64,
    /// Producer epoch, not negative.
    pub epoch: i16,
    /// Sequence number of the batch's first record; wraps from `i32::MAX` to 0.
    pub base_sequence: i32,
}

/// The header of a record batch, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// All bytes of the batch, header included.
    pub total_len: usize,
    /// The checksum as written.
    pub crc: u32,
    /// How the records are compressed.
    pub compression: Compression,
    /// True when timestamps were set by the broker (`LogAppendTime`).
    pub is_log_append_time: bool,
    /// Timestamp that the records' deltas refer to, ms since the epoch.
    pub base_timestamp_ms: i64,
    /// Largest timestamp, ms since the epoch.
    pub max_timestamp_ms: i64,
    /// Present when the producer is idempotent.
    pub producer: Option<ProducerStamp>,
    /// Number of records, at least one; offsets are contiguous.
    pub count: u32,
}

impl BatchHeader {
    /// Reads a header and holds it against the bytes that follow, without the checksum.
    ///
    /// # Errors
    /// [`RecordError`] when the bytes are not one batch of version 2 that a plain producer may send.
    pub fn parse(batch: &[u8]) -> Result<Self, RecordError> {
        let total_len = batch_len(batch)?;
        let Some(head) = batch.get(..HEADER_LEN).filter(|_| total_len >= HEADER_LEN) else {
            return Err(RecordError::Malformed("shorter than its header"));
        };
        if batch.len() < total_len {
            return Err(RecordError::Malformed("shorter than its length says"));
        }
        let attributes = i16_at(head, 21);
        if attributes & 0x20 != 0 {
            return Err(RecordError::Unsupported("a control batch"));
        }
        if attributes & 0x10 != 0 {
            return Err(RecordError::Unsupported("transactional"));
        }
        let count = u32::try_from(i32_at(head, 57)).unwrap_or(0);
        let last_delta = i32_at(head, 23);
        if count == 0 || i64::from(last_delta) != i64::from(count) - 1 {
            return Err(RecordError::Malformed(
                "record count and last offset delta disagree",
            ));
        }
        Ok(Self {
            base_offset: u64::try_from(i64_at(head, 0))
                .map_err(|_| RecordError::Malformed("negative base offset"))?,
            total_len,
            crc: u32::from_be_bytes(array_at(head, 17)),
            compression: Compression::from_attributes(attributes)?,
            is_log_append_time: attributes & 0x08 != 0,
            base_timestamp_ms: i64_at(head, 27),
            max_timestamp_ms: i64_at(head, 35),
            producer: producer_stamp(head)?,
            count,
        })
    }

    /// Offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.base_offset + u64::from(self.count)
    }
}

fn producer_stamp(head: &[u8]) -> Result<Option<ProducerStamp>, RecordError> {
    let stamp = ProducerStamp {
        id: i64_at(head, 43),
        epoch: i16_at(head, 51),
        base_sequence: i32_at(head, 53),
    };
    if stamp.id == -1 {
        return Ok(None);
    }
    if stamp.id < 0 || stamp.epoch < 0 || stamp.base_sequence < 0 {
        return Err(RecordError::Malformed(
            "negative producer id, epoch or sequence",
        ));
    }
    Ok(Some(stamp))
}

/// Length of the batch that starts here, header included, as its own length field says.
///
/// # Errors
/// [`RecordError::Malformed`] when there are not even 12 bytes or the length is negative,
/// [`RecordError::Magic`] when it is not a batch of version 2.
pub fn batch_len(bytes: &[u8]) -> Result<usize, RecordError> {
    if bytes.len() <= 16 {
        return Err(RecordError::Malformed("shorter than its header"));
    }
    // the place of the magic byte is the same in all message formats
    let magic = i8::from_be_bytes([bytes[16]]);
    if magic != 2 {
        return Err(RecordError::Magic(magic));
    }
    usize::try_from(i32_at(bytes, 8))
        .map(|len| len + LENGTH_PREFIX)
        .map_err(|_| RecordError::Malformed("negative length"))
}

/// A batch that was checked to the last byte, with its records decompressed.
#[derive(Debug, Clone)]
pub struct CheckedBatch {
    /// The header.
    pub header: BatchHeader,
    /// The records, uncompressed.
    pub records: Bytes,
}

/// Checks one whole batch from outside: lengths, checksum, bounded decompression, every record.
///
/// # Errors
/// [`RecordError`] says what is wrong; nothing larger than the limits was allocated.
pub fn check(batch: &Bytes, limits: &BatchLimits) -> Result<CheckedBatch, RecordError> {
    if batch.len() > limits.max_batch_bytes {
        return Err(RecordError::TooLarge {
            bytes: batch.len(),
            limit: limits.max_batch_bytes,
        });
    }
    let header = BatchHeader::parse(batch)?;
    if header.total_len != batch.len() {
        return Err(RecordError::Malformed("bytes after its end"));
    }
    verify_checksum(batch, header.crc)?;
    let records = open(batch, &header, limits.max_uncompressed_bytes)?;
    let mut walker = Records::new(&records, header.count);
    for record in &mut walker {
        record?;
    }
    walker.finish()?;
    Ok(CheckedBatch { header, records })
}

/// The uncompressed records of a batch whose header was parsed before. Shares the batch's memory when
/// it is not compressed.
///
/// # Errors
/// [`RecordError`] when they do not decompress within `limit` bytes.
pub fn open(batch: &Bytes, header: &BatchHeader, limit: usize) -> Result<Bytes, RecordError> {
    if batch.len() < header.total_len || header.total_len < HEADER_LEN {
        return Err(RecordError::Malformed("shorter than its length says"));
    }
    decompress(
        header.compression,
        batch.slice(HEADER_LEN..header.total_len),
        limit,
    )
}

/// Compares the checksum in the header with the bytes.
///
/// # Errors
/// [`RecordError::Checksum`] with both values.
pub fn verify_checksum(batch: &[u8], found: u32) -> Result<(), RecordError> {
    let computed = crc32c::crc32c(&batch[CRC_START.min(batch.len())..]);
    if computed != found {
        return Err(RecordError::Checksum { found, computed });
    }
    Ok(())
}

/// Writes the base offset and leader epoch into a batch in place. Both lie outside its checksum.
///
/// # Panics
/// When `batch` is shorter than a header: the caller has parsed it.
pub fn patch(batch: &mut [u8], base_offset: Offset, leader_epoch: i32) {
    let base = i64::try_from(base_offset).expect("offsets stay below 2^63");
    batch[0..8].copy_from_slice(&base.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(array_at(bytes, at))
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(array_at(bytes, at))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests;
