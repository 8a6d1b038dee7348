//! A trained dictionary, and how it goes to the other end.

use bytes::Bytes;
use zstd::zstd_safe::DDict;

use super::super::BatchError;
use super::CARRIED_SHIFT;
use super::frames::{Packer, Unpacker};
use crate::wire::{Reader, put_varint};

/// No dictionary that comes is larger, whatever the other end trains.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// RFC 8878, section 5.
const MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// A dictionary goes once: at a high level it takes milliseconds.
const LEVEL: i32 = 19;

/// A dictionary in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dictionary {
    version: u32,
    bytes: Bytes,
}

impl Dictionary {
    /// A dictionary of this version, which is not 0.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when the bytes are not one: zstd would take anything as raw content.
    pub(super) fn new(version: u32, bytes: Bytes) -> Result<Self, BatchError> {
        let is_one = bytes.len() <= MAX_BYTES && bytes.starts_with(&MAGIC);
        if !is_one || DDict::try_create(&bytes).is_none() {
            return Err(BatchError::Malformed("not a dictionary"));
        }
        Ok(Self { version, bytes })
    }

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The version that follows this dictionary.
pub(super) fn next_version(old: Option<&Dictionary>) -> Result<u32, BatchError> {
    let next = old.map_or(0, Dictionary::version).checked_add(1);
    next.ok_or(BatchError::Malformed("too many dictionaries"))
}

/// How the bytes stand in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    AsItIs = 1,
    Frame = 2,
    FrameWithOld = 3,
}

/// A dictionary within a payload.
#[derive(Debug)]
pub(super) struct Carried {
    version: u32,
    how: How,
    bytes: Vec<u8>,
}

impl Carried {
    /// In as few bytes as there are, with the dictionary before it at hand.
    pub(super) fn new(
        dictionary: &Dictionary,
        old: Option<&Dictionary>,
    ) -> Result<Self, BatchError> {
        let packed = Packer::new(old, LEVEL)?.shortest(dictionary.bytes())?;
        let (how, bytes) = if packed.frame.len() >= dictionary.bytes().len() {
            (How::AsItIs, dictionary.bytes().to_vec())
        } else if packed.is_with_dictionary {
            (How::FrameWithOld, packed.frame)
        } else {
            (How::Frame, packed.frame)
        };
        Ok(Self {
            version: dictionary.version(),
            how,
            bytes,
        })
    }

    /// Behind the head, and into it.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        if let Some(head) = out.first_mut() {
            *head |= (self.how as u8) << CARRIED_SHIFT;
        }
        put_varint(out, self.version.into());
        put_varint(out, self.bytes.len() as u64);
        out.extend_from_slice(&self.bytes);
    }

    /// What [`Self::put`] wrote, by the bits of the head.
    pub(super) fn read(bits: u8, reader: &mut Reader<'_>) -> Result<Option<Self>, BatchError> {
        let how = match bits {
            0 => return Ok(None),
            1 => How::AsItIs,
            2 => How::Frame,
            _ => How::FrameWithOld,
        };
        let version = reader.varint_u32()?;
        let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        if len > MAX_BYTES {
            return Err(BatchError::TooLarge {
                bytes: len,
                limit: MAX_BYTES,
            });
        }
        let bytes = reader.bytes(len)?.to_vec();
        Ok(Some(Self {
            version,
            how,
            bytes,
        }))
    }

    /// The dictionary, which takes the place of this one.
    pub(super) fn open(&self, old: Option<&Dictionary>) -> Result<Dictionary, BatchError> {
        if self.version != next_version(old)? {
            return Err(BatchError::Malformed("a dictionary of another version"));
        }
        let bytes = match self.how {
            How::AsItIs => self.bytes.clone(),
            How::Frame => Unpacker::new(None)?.open(false, &self.bytes, MAX_BYTES)?,
            How::FrameWithOld => Unpacker::new(old)?.open(true, &self.bytes, MAX_BYTES)?,
        };
        Dictionary::new(self.version, bytes.into())
    }

    /// Bytes that it adds to a payload, about.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + 4
    }
}
