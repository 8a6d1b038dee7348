//! Codec 2, dictionary: one zstd frame a payload, with a dictionary that was trained from the log's own payloads.
//!
//! ```text
//! head  the dictionary that is in use from here on    bytes
//! u8    version varint, length varint, its bytes      to the end: the raw payload, or a frame
//!       (bits 2 and 3)                                (bits 0 and 1)
//! ```
//! Head: bits 0 and 1 what the bytes are: 0 the raw payload, 1 a frame, 2 a frame with the dictionary. Bits 2
//! and 3 how a dictionary stands there: 0 there is none, 1 as it is, 2 as a frame, 3 as a frame with the
//! dictionary before it. Bits 4 to 7: with 2, the low bits of the dictionary's version; else 0. Frames
//! (RFC 8878) go without their magic number and without a dictionary's id, and tell their content size.
//!
//! Always true: only the encoder trains; both ends hold the same dictionary after the same payload, and a
//! position stands for the dictionaries that went through as well. Versions count from 1 without a gap. A payload
//! is no longer than a zstd frame of its own, but for the one that carries a dictionary; and a dictionary goes
//! only when it saves more than it costs on as many bytes as have come since the last.
//!
//! A payload depends on the dictionary alone. The samples are the encoder's: they are not saved, and an
//! encoder that goes on from a saved state begins to sample anew.

mod frames;
mod trained;
mod trainer;

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

use super::BatchError;
use super::chain::{ChainCodec, next_position};
use super::codec::CODEC_DICTIONARY;
use crate::wire::{Reader, put_varint};
use frames::{Packer, Unpacker, plain, unpack_plain};
use trained::{Carried, Dictionary};
use trainer::Trainer;

const STORED: u8 = 0;
const FRAME: u8 = 1;
const WITH_DICTIONARY: u8 = 2;

const CARRIED_SHIFT: u32 = 2;
const VERSION_SHIFT: u32 = 4;

/// A larger payload holds so much of what repeats that a dictionary brings next to nothing: it goes as a frame
/// of its own. It is not sampled either, and carries no dictionary.
const LARGE: usize = 32 << 10;

const SAVED_VERSION: u8 = 1;
const SAVED_MAGIC: [u8; 4] = *b"KDIC";
const SAVE_LEVEL: i32 = 3;
/// Position and version, before the dictionary.
const SAVED_HEAD: usize = 32;

fn failed(error: impl fmt::Display) -> BatchError {
    BatchError::Codec {
        codec: CODEC_DICTIONARY,
        error: error.to_string(),
    }
}

/// One end of a chain with a dictionary.
#[derive(Debug)]
pub struct DictionaryCodec {
    level: i32,
    position: u64,
    dictionary: Option<Dictionary>,
    trainer: Trainer,
    packer: Option<Packer>,
    unpacker: Option<Unpacker>,
}

impl DictionaryCodec {
    /// A chain that begins; `level` (1 to 19) is the encoder's alone.
    #[must_use]
    pub fn new(level: i32) -> Self {
        Self {
            level,
            position: next_position(CODEC_DICTIONARY.into(), &[]),
            dictionary: None,
            trainer: Trainer::default(),
            packer: None,
            unpacker: None,
        }
    }

    /// A chain that goes on from what [`ChainCodec::save`] gave.
    ///
    /// # Errors
    /// [`BatchError`] when it is broken.
    pub fn load(saved: &[u8], level: i32) -> Result<Self, BatchError> {
        const OTHER: BatchError = BatchError::Malformed("saved state of another kind");
        let mut reader = Reader::new(saved);
        if reader.array()? != SAVED_MAGIC || reader.u8()? != SAVED_VERSION {
            return Err(OTHER);
        }
        let found = reader.u32()?;
        let frame = reader.bytes(reader.remaining())?;
        let computed = crc32c::crc32c(frame);
        if computed != found {
            return Err(BatchError::Checksum { found, computed });
        }
        let state = unpack_plain(frame, trained::MAX_BYTES + SAVED_HEAD)?;
        let mut reader = Reader::new(&state);
        let mut codec = Self::new(level);
        codec.position = reader.u64()?;
        let version = reader.varint_u32()?;
        let bytes = Bytes::copy_from_slice(reader.bytes(reader.remaining())?);
        codec.dictionary = match version {
            0 if bytes.is_empty() => None,
            0 => return Err(OTHER),
            version => Some(Dictionary::new(version, bytes)?),
        };
        Ok(codec)
    }

    fn version(&self) -> u32 {
        self.dictionary.as_ref().map_or(0, Dictionary::version)
    }

    /// Both ends go on with this dictionary.
    fn install(&mut self, dictionary: Dictionary) {
        self.position = next_position(self.position, dictionary.bytes());
        self.dictionary = Some(dictionary);
        self.packer = None;
        self.unpacker = None;
    }

    /// A dictionary that is worth its bytes, if it is time for one.
    fn train(&mut self) -> Result<Option<Carried>, BatchError> {
        if !self.trainer.is_due(self.version()) {
            return Ok(None);
        }
        let old = self.dictionary.as_ref();
        let packer = packer_of(&mut self.packer, old, self.level)?;
        let trained = self.trainer.train(old, packer, self.level)?;
        Ok(trained.map(|(dictionary, carried)| {
            self.install(dictionary);
            carried
        }))
    }

    fn encode_next(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        if raw.len() > LARGE {
            return Ok(match plain(raw, self.level)? {
                frame if frame.len() < raw.len() => [&[FRAME], frame.as_slice()].concat(),
                _ => [&[STORED], raw].concat(),
            });
        }
        let carried = self.train()?;
        let packer = packer_of(&mut self.packer, self.dictionary.as_ref(), self.level)?;
        let packed = packer.shortest(raw)?;
        let (kind, bytes) = if packed.frame.len() >= raw.len() {
            (STORED, raw)
        } else if packed.is_with_dictionary {
            (WITH_DICTIONARY, packed.frame.as_slice())
        } else {
            (FRAME, packed.frame.as_slice())
        };
        self.trainer.saw(raw, bytes.len());
        let mut out = Vec::with_capacity(1 + bytes.len());
        out.push(kind | self.version_bits(kind));
        if let Some(carried) = carried {
            carried.put(&mut out);
        }
        out.extend_from_slice(bytes);
        Ok(out)
    }

    fn decode_next(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        let mut reader = Reader::new(payload);
        let head = reader.u8()?;
        if let Some(carried) = Carried::read(head >> CARRIED_SHIFT & 3, &mut reader)? {
            let dictionary = carried.open(self.dictionary.as_ref())?;
            self.install(dictionary);
        }
        let kind = head & 3;
        if head & !0xf != self.version_bits(kind) {
            return Err(BatchError::Malformed("a payload of another dictionary"));
        }
        let bytes = reader.bytes(reader.remaining())?;
        let raw = match kind {
            STORED if bytes.len() <= max_raw_len => bytes.to_vec(),
            FRAME | WITH_DICTIONARY => {
                let unpacker = match &mut self.unpacker {
                    Some(unpacker) => unpacker,
                    empty @ None => empty.insert(Unpacker::new(self.dictionary.as_ref())?),
                };
                unpacker.open(kind == WITH_DICTIONARY, bytes, max_raw_len)?
            }
            _ => return Err(BatchError::Malformed("a payload of no known kind")),
        };
        Ok(raw.into())
    }

    fn version_bits(&self, kind: u8) -> u8 {
        let [low, ..] = self.version().to_le_bytes();
        if kind == WITH_DICTIONARY {
            low << VERSION_SHIFT
        } else {
            0
        }
    }
}

fn packer_of<'a>(
    packer: &'a mut Option<Packer>,
    dictionary: Option<&Dictionary>,
    level: i32,
) -> Result<&'a mut Packer, BatchError> {
    match packer {
        Some(packer) => Ok(packer),
        empty @ None => Ok(empty.insert(Packer::new(dictionary, level)?)),
    }
}

impl ChainCodec for DictionaryCodec {
    fn codec(&self) -> u8 {
        CODEC_DICTIONARY
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let payload = self.encode_next(raw)?;
        self.position = next_position(self.position, raw);
        Ok(payload)
    }

    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        let raw = self.decode_next(payload, max_raw_len)?;
        self.position = next_position(self.position, &raw);
        Ok(raw)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn save(&self) -> Vec<u8> {
        let mut state = self.position.to_be_bytes().to_vec();
        put_varint(&mut state, self.version().into());
        if let Some(dictionary) = &self.dictionary {
            state.extend_from_slice(dictionary.bytes());
        }
        // without memory for it there is nothing to go on from: a reader refuses what is left out
        let frame = plain(&state, SAVE_LEVEL).unwrap_or_default();
        let mut out = SAVED_MAGIC.to_vec();
        out.push(SAVED_VERSION);
        out.extend_from_slice(&crc32c::crc32c(&frame).to_be_bytes());
        out.extend_from_slice(&frame);
        out
    }

    fn memory(&self) -> usize {
        size_of::<Self>()
            + self.dictionary.as_ref().map_or(0, |d| d.bytes().len())
            + self.trainer.memory()
            + self.packer.as_ref().map_or(0, Packer::memory)
            + self.unpacker.as_ref().map_or(0, Unpacker::memory)
    }
}
