//! Codec 2: one zstd frame a payload, with a dictionary that was trained from the log's own payloads.
//!
//! A payload is a frame (RFC 8878) without its magic number and without the dictionary's id: both ends know
//! them. It decodes without any other payload.

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use super::split::{PayloadWriter, RecordList, hash_bytes};
use super::{BatchError, CODEC_ZSTD_DICT, Decoder, Encoder};

/// Smallest and largest dictionary.
pub const MIN_DICTIONARY_BYTES: usize = 4 << 10;
/// See [`MIN_DICTIONARY_BYTES`].
pub const MAX_DICTIONARY_BYTES: usize = 64 << 10;

/// Samples are kept up to so many times the dictionary that is made of them: zstd asks for about 100.
const SAMPLE_FACTOR: usize = 64;

/// Fewest samples that say anything.
const MIN_SAMPLES: usize = 8;

/// Samples of payloads rather than of records, once there are so many.
const ENOUGH_PAYLOADS: usize = 200;

/// Largest single sample: what stands further back a dictionary does not reach.
const MAX_SAMPLE_BYTES: usize = 16 << 10;

fn failed(error: impl fmt::Display) -> BatchError {
    BatchError::Codec {
        codec: CODEC_ZSTD_DICT,
        error: error.to_string(),
    }
}

/// A trained dictionary and its name: a hash of its bytes, the same at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dictionary {
    id: u64,
    bytes: Bytes,
}

impl Dictionary {
    /// A dictionary from the bytes that [`Trainer::train`] gave, here or at the other end.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when they are not one: zstd would take anything as raw content.
    pub fn new(bytes: Bytes) -> Result<Self, BatchError> {
        if bytes.len() > MAX_DICTIONARY_BYTES || bytes.get(..4) != Some(&DICTIONARY_MAGIC) {
            return Err(BatchError::Malformed("not a dictionary"));
        }
        let (high, low) = (crc32c::crc32c(&bytes), hash_bytes(&bytes));
        let id = (u64::from(high) << 32 | low & 0xffff_ffff).max(1);
        Ok(Self { id, bytes })
    }

    /// Never 0.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// For the other end.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// RFC 8878, section 3.1.1.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// RFC 8878, section 5.
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// Gathers samples of a log's payloads, up to a bound.
#[derive(Debug)]
pub struct Trainer {
    dictionary_bytes: usize,
    payloads: Samples,
    records: Samples,
    seen: u64,
}

#[derive(Debug, Default)]
struct Samples {
    bytes: Vec<u8>,
    lens: Vec<usize>,
}

impl Samples {
    fn push(&mut self, sample: &[u8], most: usize) {
        if !sample.is_empty()
            && sample.len() <= MAX_SAMPLE_BYTES
            && self.bytes.len() + sample.len() <= most
        {
            self.bytes.extend_from_slice(sample);
            self.lens.push(sample.len());
        }
    }
}

impl Trainer {
    /// For a dictionary of about so many bytes, held to the range of this module.
    #[must_use]
    pub fn new(dictionary_bytes: usize) -> Self {
        Self {
            dictionary_bytes: dictionary_bytes.clamp(MIN_DICTIONARY_BYTES, MAX_DICTIONARY_BYTES),
            payloads: Samples::default(),
            records: Samples::default(),
            seen: 0,
        }
    }

    /// Takes samples of a raw payload: all of it, and its records while there are few payloads.
    pub fn sample(&mut self, raw: &[u8]) {
        let most = self.dictionary_bytes * SAMPLE_FACTOR / 2;
        self.seen += 1;
        self.payloads.push(raw, most);
        if self.seen > ENOUGH_PAYLOADS as u64 {
            return;
        }
        let Some(list) = RecordList::read(raw) else {
            return;
        };
        for record in &list.records {
            let mut writer = PayloadWriter::new(MAX_SAMPLE_BYTES);
            let block = super::split::BlockStart {
                count: 1,
                base_timestamp_ms: record.timestamp_ms,
                is_log_append_time: false,
            };
            let written = writer.start_block(block).and_then(|()| {
                writer.push(
                    record.timestamp_ms,
                    record.key,
                    record.value,
                    list.headers_of(record),
                )
            });
            if let (Ok(()), Ok(sample)) = (written, writer.finish()) {
                self.records.push(&sample, most);
            }
        }
    }

    /// True when there are samples of several times the dictionary's size.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.payloads.bytes.len().max(self.records.bytes.len())
            >= self.dictionary_bytes * SAMPLE_FACTOR / 4
    }

    /// Trains; `None` when the samples are too few or have nothing in common.
    #[must_use]
    pub fn train(&self) -> Option<Dictionary> {
        let samples = if self.payloads.lens.len() >= ENOUGH_PAYLOADS {
            &self.payloads
        } else {
            &self.records
        };
        if samples.lens.len() < MIN_SAMPLES {
            return None;
        }
        // a dictionary of nearly all samples would tell little of what comes
        let most = self.dictionary_bytes.min(samples.bytes.len() / 4);
        let bytes = zstd::dict::from_continuous(
            &samples.bytes,
            &samples.lens,
            most.max(MIN_DICTIONARY_BYTES.min(samples.bytes.len())),
        );
        Dictionary::new(bytes.ok()?.into()).ok()
    }
}

/// Encodes with a dictionary.
pub struct DictEncoder {
    compressor: Compressor<'static>,
    id: u64,
}

impl DictEncoder {
    /// A context of this level (1 to 19).
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory.
    pub fn new(dictionary: &Dictionary, level: i32) -> Result<Self, BatchError> {
        let mut compressor =
            Compressor::with_dictionary(level, &dictionary.bytes).map_err(failed)?;
        compressor
            .set_parameter(CParameter::DictIdFlag(false))
            .map_err(failed)?;
        Ok(Self {
            compressor,
            id: dictionary.id,
        })
    }
}

impl fmt::Debug for DictEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DictEncoder")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Encoder for DictEncoder {
    fn codec(&self) -> u8 {
        CODEC_ZSTD_DICT
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let frame = self.compressor.compress(raw).map_err(failed)?;
        frame
            .strip_prefix(&FRAME_MAGIC)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| failed("zstd makes something else than a frame"))
    }
}

/// Decodes with the dictionary that the encoder had, into exactly the announced length.
pub struct DictDecoder {
    decompressor: Decompressor<'static>,
    id: u64,
    frame: Vec<u8>,
}

impl DictDecoder {
    /// A context.
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd refuses the dictionary.
    pub fn new(dictionary: &Dictionary) -> Result<Self, BatchError> {
        Ok(Self {
            decompressor: Decompressor::with_dictionary(&dictionary.bytes).map_err(failed)?,
            id: dictionary.id,
            frame: Vec::new(),
        })
    }
}

impl fmt::Debug for DictDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DictDecoder")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Decoder for DictDecoder {
    fn codec(&self) -> u8 {
        CODEC_ZSTD_DICT
    }

    fn decode(&mut self, payload: &Bytes, raw_len: usize) -> Result<Bytes, BatchError> {
        self.frame.clear();
        self.frame.extend_from_slice(&FRAME_MAGIC);
        self.frame.extend_from_slice(payload);
        let raw = self
            .decompressor
            .decompress(&self.frame, raw_len)
            .map_err(failed)?;
        if raw.len() != raw_len {
            return Err(BatchError::Malformed(
                "payload decodes to less than announced",
            ));
        }
        Ok(raw.into())
    }
}
