//! zstd frames without their magic number: with a dictionary, or without one.

use std::fmt;

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DDict, compress_bound, get_error_name, get_frame_content_size,
};

use super::super::BatchError;
use super::trained::Dictionary;
use super::{LARGE, failed};

/// RFC 8878, section 3.1.1.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn zstd_failed(code: usize) -> BatchError {
    failed(get_error_name(code))
}

fn no_memory() -> BatchError {
    failed("no memory for a context")
}

fn without_magic(frame: &[u8]) -> Result<Vec<u8>, BatchError> {
    let frame = frame.strip_prefix(&FRAME_MAGIC);
    let frame = frame.ok_or_else(|| failed("zstd made something else than a frame"))?;
    Ok(frame.to_vec())
}

/// A frame from a context of its own, which goes again: for what is large or rare.
pub(super) fn plain(raw: &[u8], level: i32) -> Result<Vec<u8>, BatchError> {
    Packer::new(None, level)?.plain(raw)
}

/// What [`plain`] made.
pub(super) fn unpack_plain(frame: &[u8], max_raw_len: usize) -> Result<Vec<u8>, BatchError> {
    Unpacker::new(None)?.open(false, frame, max_raw_len)
}

/// A frame, and what it takes to open it.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) frame: Vec<u8>,
    pub(super) is_with_dictionary: bool,
}

/// Makes frames with one context.
pub(super) struct Packer {
    context: CCtx<'static>,
    level: i32,
    has_dictionary: bool,
    scratch: Vec<u8>,
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer")
            .field("level", &self.level)
            .field("has_dictionary", &self.has_dictionary)
            .finish_non_exhaustive()
    }
}

impl Packer {
    pub(super) fn new(dictionary: Option<&Dictionary>, level: i32) -> Result<Self, BatchError> {
        let mut context = CCtx::try_create().ok_or_else(no_memory)?;
        if let Some(dictionary) = dictionary {
            context
                .set_parameter(CParameter::CompressionLevel(level))
                .and_then(|_| context.set_parameter(CParameter::DictIdFlag(false)))
                .and_then(|_| context.load_dictionary(dictionary.bytes()))
                .map_err(zstd_failed)?;
        }
        Ok(Self {
            context,
            level,
            has_dictionary: dictionary.is_some(),
            scratch: Vec::new(),
        })
    }

    /// A frame of its own.
    pub(super) fn plain(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        self.make_room(raw);
        // zstd.h: ZSTD_compressCCtx ignores parameters that were set, the dictionary among them
        self.context
            .compress(&mut self.scratch, raw, self.level)
            .map_err(zstd_failed)?;
        without_magic(&self.scratch)
    }

    /// A frame with the dictionary, or of its own, whichever is shorter.
    pub(super) fn shortest(&mut self, raw: &[u8]) -> Result<Packed, BatchError> {
        let plain = self.plain(raw)?;
        if self.has_dictionary {
            self.make_room(raw);
            self.context
                .compress2(&mut self.scratch, raw)
                .map_err(zstd_failed)?;
            if self.scratch.len() < plain.len() + FRAME_MAGIC.len() {
                return Ok(Packed {
                    frame: without_magic(&self.scratch)?,
                    is_with_dictionary: true,
                });
            }
        }
        Ok(Packed {
            frame: plain,
            is_with_dictionary: false,
        })
    }

    fn make_room(&mut self, raw: &[u8]) {
        self.scratch.clear();
        self.scratch.reserve(compress_bound(raw.len()));
    }

    pub(super) fn memory(&self) -> usize {
        self.context.sizeof() + self.scratch.capacity()
    }
}

/// Opens frames with one context.
pub(super) struct Unpacker {
    context: DCtx<'static>,
    dictionary: Option<DDict<'static>>,
    frame: Vec<u8>,
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Unpacker {
    pub(super) fn new(dictionary: Option<&Dictionary>) -> Result<Self, BatchError> {
        let prepare = |dictionary: &Dictionary| {
            let prepared = DDict::try_create(dictionary.bytes());
            prepared.ok_or(BatchError::Malformed("not a dictionary"))
        };
        Ok(Self {
            context: DCtx::try_create().ok_or_else(no_memory)?,
            dictionary: dictionary.map(prepare).transpose()?,
            frame: Vec::new(),
        })
    }

    /// The content of a frame without its magic number. Nothing is allocated before the content size that it
    /// claims was held against the limit.
    pub(super) fn open(
        &mut self,
        is_with_dictionary: bool,
        bytes: &[u8],
        max_raw_len: usize,
    ) -> Result<Vec<u8>, BatchError> {
        self.frame.clear();
        self.frame.extend_from_slice(&FRAME_MAGIC);
        self.frame.extend_from_slice(bytes);
        let len = get_frame_content_size(&self.frame).ok().flatten();
        let len = len.ok_or(BatchError::Malformed("a frame without its content size"))?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > max_raw_len {
            return Err(BatchError::TooLarge {
                bytes: len,
                limit: max_raw_len,
            });
        }
        let mut raw = Vec::with_capacity(len);
        let opened = match (&self.dictionary, is_with_dictionary) {
            (_, false) => self.context.decompress(&mut raw, &self.frame),
            (Some(dictionary), true) => {
                self.context
                    .decompress_using_ddict(&mut raw, &self.frame, dictionary)
            }
            (None, true) => return Err(BatchError::Malformed("there is no dictionary")),
        };
        // what is large comes seldom, and is not kept
        self.frame.truncate(LARGE);
        self.frame.shrink_to(LARGE);
        opened.map_err(zstd_failed)?;
        if raw.len() == len {
            Ok(raw)
        } else {
            Err(BatchError::Malformed("a frame of another length"))
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.context.sizeof()
            + self.dictionary.as_ref().map_or(0, DDict::sizeof)
            + self.frame.capacity()
    }
}
