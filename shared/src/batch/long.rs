//! One zstd stream with a long window, flushed after every piece: what is near, found again.
//!
//! Both ends keep the end of the window, so that it can be saved and a later stream begin with it. What is
//! saved are the bytes, not zstd's state, so the two ends need not run the same build of zstd:
//!
//! ```text
//!  0        4         5                13           17          21
//!  ├ "KLW1" ├ window  ├ position       ├ length     ├ CRC-32C   ├ one zstd frame
//!  │        │ log u8  │ u64            │ u32        │ u32       │
//! ```
//! Long-distance matching is on: matches of 32 bytes and more are found anywhere in the window, whatever
//! the level's own tables hold. A reader refuses a stream with a window larger than its own.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::{BatchError, CODEC_LONG};
use crate::wire::Reader;

const MAGIC: [u8; 4] = *b"KLW1";

/// Shortest match that is looked for in the whole window. zstd's own 64 misses what stands between two
/// small changes.
const MIN_MATCH: u32 = 32;
/// One position in 2^5 goes into the table of long matches, which has room for all of them at 8 bytes
/// each: a quarter of the window.
const HASH_RATE_LOG: u32 = 5;
/// What is saved of a window at most: the last versions of what is small. Kept in memory besides zstd's own
/// window, and saved often.
const MAX_SAVED: usize = 2 << 20;
/// The level of a saved window: saved often, read seldom.
const SAVE_LEVEL: i32 = 1;
/// What a dictionary of plain bytes begins with, so that none is taken for one in zstd's own format.
const PLAIN: u8 = 0;

fn failed(code: usize) -> BatchError {
    refused(get_error_name(code))
}

fn refused(error: impl fmt::Display) -> BatchError {
    BatchError::Codec {
        codec: CODEC_LONG,
        error: error.to_string(),
    }
}

fn saved_len(window_log: u32) -> usize {
    MAX_SAVED.min(1 << window_log)
}

/// What went through a stream last, as much as is saved.
#[derive(Debug)]
struct History {
    pieces: VecDeque<Bytes>,
    len: usize,
    limit: usize,
}

impl History {
    fn new(window_log: u32) -> Self {
        Self {
            pieces: VecDeque::new(),
            len: 0,
            limit: saved_len(window_log),
        }
    }

    fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.len += piece.len();
        self.pieces.push_back(piece);
        while let Some(first) = self.pieces.front()
            && self.len - first.len() >= self.limit
        {
            self.len -= first.len();
            self.pieces.pop_front();
        }
    }

    /// The last bytes.
    fn joined(&self) -> Vec<u8> {
        let mut skip = self.len.saturating_sub(self.limit);
        let mut joined = Vec::with_capacity(self.len - skip);
        for piece in &self.pieces {
            let start = skip.min(piece.len());
            joined.extend_from_slice(&piece[start..]);
            skip -= start;
        }
        joined
    }
}

/// A window and the position that it belongs to, as saved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SavedWindow {
    pub(crate) position: u64,
    window_log: u32,
    bytes: Vec<u8>,
}

impl SavedWindow {
    /// Reads what [`LongWriter::save`] or [`LongReader::save`] made.
    ///
    /// # Errors
    /// [`BatchError`] when it is damaged, of another version or of another window.
    pub(crate) fn read(saved: &[u8], window_log: u32) -> Result<Self, BatchError> {
        let mut reader = Reader::new(saved);
        if reader.array()? != MAGIC || u32::from(reader.u8()?) != window_log {
            return Err(BatchError::Malformed("saved window of another kind"));
        }
        let position = reader.u64()?;
        let len = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
        if len > saved_len(window_log) {
            return Err(BatchError::Malformed("saved window is too long"));
        }
        let crc = reader.u32()?;
        let frame = reader.bytes(reader.remaining())?;
        let bytes = zstd::bulk::Decompressor::new()
            .and_then(|mut zstd| zstd.decompress(frame, len))
            .map_err(refused)?;
        let computed = crc32c::crc32c(&bytes);
        if bytes.len() != len {
            return Err(BatchError::Malformed("saved window is too short"));
        }
        if computed != crc {
            return Err(BatchError::Checksum {
                found: crc,
                computed,
            });
        }
        Ok(Self {
            position,
            window_log,
            bytes,
        })
    }

    fn write(history: &History, window_log: u32, position: u64) -> Result<Vec<u8>, BatchError> {
        let bytes = history.joined();
        let mut out = MAGIC.to_vec();
        out.push(u8::try_from(window_log).unwrap_or(u8::MAX));
        out.extend_from_slice(&position.to_be_bytes());
        let len = u32::try_from(bytes.len()).map_err(refused)?;
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
        let frame = zstd::bulk::compress(&bytes, SAVE_LEVEL).map_err(refused)?;
        out.extend_from_slice(&frame);
        Ok(out)
    }

    fn dictionary(&self) -> Vec<u8> {
        let mut dictionary = Vec::with_capacity(self.bytes.len() + 1);
        dictionary.push(PLAIN);
        dictionary.extend_from_slice(&self.bytes);
        dictionary
    }
}

/// The end that compresses.
pub(crate) struct LongWriter {
    context: CCtx<'static>,
    history: History,
    window_log: u32,
}

impl fmt::Debug for LongWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongWriter")
            .field("window_log", &self.window_log)
            .finish_non_exhaustive()
    }
}

impl LongWriter {
    /// A stream that begins empty or with a saved window.
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory or refuses a parameter.
    pub(crate) fn new(
        level: i32,
        window_log: u32,
        from: Option<SavedWindow>,
    ) -> Result<Self, BatchError> {
        let mut context = CCtx::try_create().ok_or_else(|| refused("no memory"))?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(window_log),
            CParameter::EnableLongDistanceMatching(true),
            CParameter::LdmHashLog(window_log - HASH_RATE_LOG),
            CParameter::LdmMinMatch(MIN_MATCH),
            CParameter::LdmHashRateLog(HASH_RATE_LOG),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ] {
            context.set_parameter(parameter).map_err(failed)?;
        }
        let mut history = History::new(window_log);
        if let Some(saved) = from {
            context
                .load_dictionary(&saved.dictionary())
                .map_err(failed)?;
            history.push(saved.bytes.into());
        }
        Ok(Self {
            context,
            history,
            window_log,
        })
    }

    /// Compresses a piece and appends it to `out`, whole.
    ///
    /// # Errors
    /// [`BatchError::Codec`]; the stream is over.
    pub(crate) fn write(&mut self, piece: Bytes, out: &mut Vec<u8>) -> Result<(), BatchError> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut input = InBuffer::around(&piece);
        loop {
            out.reserve(CCtx::out_size());
            let at = out.len();
            let mut output = OutBuffer::around_pos(out, at);
            let left = self
                .context
                .compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_flush)
                .map_err(failed)?;
            if left == 0 && input.pos() == piece.len() {
                break;
            }
        }
        self.history.push(piece);
        Ok(())
    }

    /// The window, to begin another stream with.
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory.
    pub(crate) fn save(&self, position: u64) -> Result<Vec<u8>, BatchError> {
        SavedWindow::write(&self.history, self.window_log, position)
    }

    pub(crate) fn memory(&self) -> usize {
        self.context.sizeof() + self.history.len
    }
}

/// The end that decompresses.
pub(crate) struct LongReader {
    context: DCtx<'static>,
    history: History,
    window_log: u32,
}

impl fmt::Debug for LongReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongReader")
            .field("window_log", &self.window_log)
            .finish_non_exhaustive()
    }
}

impl LongReader {
    /// A stream that begins empty or with a saved window.
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory or refuses a parameter.
    pub(crate) fn new(window_log: u32, from: Option<SavedWindow>) -> Result<Self, BatchError> {
        let mut context = DCtx::try_create().ok_or_else(|| refused("no memory"))?;
        context
            .set_parameter(DParameter::WindowLogMax(window_log))
            .map_err(failed)?;
        let mut history = History::new(window_log);
        if let Some(saved) = from {
            context
                .load_dictionary(&saved.dictionary())
                .map_err(failed)?;
            history.push(saved.bytes.into());
        }
        Ok(Self {
            context,
            history,
            window_log,
        })
    }

    /// Decompresses the next piece, of exactly `len` bytes; nothing more is allocated for it.
    ///
    /// # Errors
    /// [`BatchError`]: the stream is over.
    pub(crate) fn read(&mut self, compressed: &[u8], len: usize) -> Result<Bytes, BatchError> {
        if len == 0 && compressed.is_empty() {
            return Ok(Bytes::new());
        }
        let mut piece = Vec::with_capacity(len);
        let mut input = InBuffer::around(compressed);
        loop {
            let before = (piece.len(), input.pos());
            // a vector may have more room than was asked for: whoever sends more is found below
            let mut output = OutBuffer::around_pos(&mut piece, before.0);
            self.context
                .decompress_stream(&mut output, &mut input)
                .map_err(failed)?;
            if piece.len() > len || (piece.len(), input.pos()) == before {
                break;
            }
            if piece.len() == len && input.pos() == compressed.len() {
                break;
            }
        }
        if piece.len() != len || input.pos() != compressed.len() {
            return Err(BatchError::Malformed("literals are not as announced"));
        }
        let piece = Bytes::from(piece);
        self.history.push(piece.clone());
        Ok(piece)
    }

    /// See [`LongWriter::save`].
    ///
    /// # Errors
    /// [`BatchError::Codec`] when zstd has no memory.
    pub(crate) fn save(&self, position: u64) -> Result<Vec<u8>, BatchError> {
        SavedWindow::write(&self.history, self.window_log, position)
    }

    pub(crate) fn memory(&self) -> usize {
        self.context.sizeof() + self.history.len
    }
}
