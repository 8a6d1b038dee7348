//! One zstd frame without an end, flushed after every payload, and what of it need not be sent.
//!
//! The frame's header is the same at both ends, and of the block headers (RFC 8878, 3.1.1.2) a payload of
//! one block needs only the type: the length is what is left of the payload. The last bytes that went
//! through are kept, to begin a frame anew after the state was saved: a raw content dictionary.

use std::fmt;

use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush;
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, compress_bound, get_error_name,
};

use super::super::BatchError;
use super::super::codec::CODEC_COLUMNAR;

/// How the blocks of a payload stand in it; two bits of its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocks {
    /// One block of the type: 0 raw, 1 run length (never made), 2 compressed.
    One(u8),
    /// All as zstd wrote them, headers included.
    Many,
}

impl Blocks {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::One(kind) => kind & 3,
            Self::Many => 3,
        }
    }

    pub(super) fn from_code(code: u8) -> Self {
        match code & 3 {
            3 => Self::Many,
            kind => Self::One(kind),
        }
    }
}

const BLOCK_HEADER_LEN: usize = 3;
const BLOCK_COMPRESSED: u32 = 2;

/// Magic, then: no checksum, no dictionary id, no content size, a window descriptor.
const FRAME_HEADER: [u8; 5] = [0x28, 0xb5, 0x2f, 0xfd, 0x00];

/// First byte of a trained dictionary; history that begins like one would be read as one.
const DICTIONARY_MAGIC_0: u8 = 0x37;

/// Most that the output grows at once.
const OUT_STEP: usize = 64 << 10;

pub(super) struct Stream {
    window_log: u32,
    level: i32,
    encoder: Option<CCtx<'static>>,
    decoder: Option<DCtx<'static>>,
    /// The next payload is the first of the frame.
    is_fresh: bool,
    history: Vec<u8>,
    scratch: Vec<u8>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("window_log", &self.window_log)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// A stream with a window of `1 << window_log` bytes that begins with `history`.
    pub(super) fn new(window_log: u32, level: i32, history: Vec<u8>) -> Self {
        Self {
            window_log,
            level,
            encoder: None,
            decoder: None,
            is_fresh: true,
            history,
            scratch: Vec::new(),
        }
    }

    /// The last bytes that went through, at most a window.
    pub(super) fn history(&self) -> &[u8] {
        let window = 1_usize << self.window_log;
        let start = self.history.len().saturating_sub(window);
        self.history.get(start..).unwrap_or_default()
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.history.capacity()
            + self.scratch.capacity()
            + self.encoder.as_ref().map_or(0, CCtx::sizeof)
            + self.decoder.as_ref().map_or(0, DCtx::sizeof)
    }

    /// Appends `body` to the stream and its blocks to `out`. [`Self::remember`] or [`Self::restart`] follows.
    pub(super) fn compress(
        &mut self,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Blocks, BatchError> {
        if self.encoder.is_none() {
            self.encoder = Some(self.new_encoder()?);
        }
        let Some(encoder) = &mut self.encoder else {
            return Err(failed(0));
        };
        self.scratch.clear();
        self.scratch.reserve(compress_bound(body.len()) + 64);
        let mut input = InBuffer::around(body);
        loop {
            let at = self.scratch.len();
            let mut output = OutBuffer::around_pos(&mut self.scratch, at);
            let left = encoder
                .compress_stream2(&mut output, &mut input, ZSTD_e_flush)
                .map_err(failed)?;
            if left == 0 && input.pos() == body.len() {
                break;
            }
            self.scratch.reserve(left.max(OUT_STEP));
        }
        let mut blocks = self.scratch.as_slice();
        if self.is_fresh && !body.is_empty() {
            blocks = blocks
                .strip_prefix(self.frame_header().as_slice())
                .ok_or_else(|| failed(0))?;
            self.is_fresh = false;
        }
        let kept = match one_block(blocks) {
            Some((kind, content)) => {
                out.extend_from_slice(content);
                Blocks::One(kind)
            }
            None => {
                out.extend_from_slice(blocks);
                Blocks::Many
            }
        };
        self.scratch.clear();
        self.scratch.shrink_to(OUT_STEP);
        Ok(kept)
    }

    /// The body of a payload's blocks: at most `limit` bytes. [`Self::remember`] follows.
    pub(super) fn decompress(
        &mut self,
        blocks: Blocks,
        payload: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, BatchError> {
        self.scratch.clear();
        if self.is_fresh && !(payload.is_empty() && blocks == Blocks::Many) {
            self.scratch.extend_from_slice(&self.frame_header());
            self.is_fresh = false;
        }
        match blocks {
            Blocks::One(kind) => {
                let len = u32::try_from(payload.len())
                    .ok()
                    .filter(|len| *len < 1 << 21)
                    .ok_or(BatchError::Malformed("a block is too long"))?;
                let header = (len << 3 | u32::from(kind) << 1).to_le_bytes();
                self.scratch.extend_from_slice(&header[..BLOCK_HEADER_LEN]);
            }
            Blocks::Many => check_blocks(payload)?,
        }
        self.scratch.extend_from_slice(payload);
        if self.decoder.is_none() {
            self.decoder = Some(self.new_decoder()?);
        }
        let Some(decoder) = &mut self.decoder else {
            return Err(failed(0));
        };
        let mut body = Vec::new();
        let mut input = InBuffer::around(&self.scratch);
        loop {
            // one byte more than the limit tells that there is more
            let most = limit.saturating_add(1);
            let step = OUT_STEP
                .max(body.len())
                .min(most.saturating_sub(body.len()));
            if step == 0 {
                return Err(BatchError::TooLarge {
                    bytes: body.len(),
                    limit,
                });
            }
            body.reserve_exact(step);
            let at = body.len();
            let read = input.pos();
            let mut output = OutBuffer::around_pos(&mut body, at);
            decoder
                .decompress_stream(&mut output, &mut input)
                .map_err(failed)?;
            let is_full = body.len() == body.capacity();
            if input.pos() == self.scratch.len() && !is_full {
                break;
            }
            if input.pos() == read && body.len() == at {
                return Err(BatchError::Malformed("a payload ends inside a block"));
            }
        }
        if body.len() > limit {
            return Err(BatchError::TooLarge {
                bytes: body.len(),
                limit,
            });
        }
        self.scratch.clear();
        self.scratch.shrink_to(OUT_STEP);
        Ok(body)
    }

    fn frame_header(&self) -> [u8; 6] {
        let descriptor = ((self.window_log - 10) << 3).to_le_bytes()[0];
        let [a, b, c, d, e] = FRAME_HEADER;
        [a, b, c, d, e, descriptor]
    }

    fn primer(&self) -> &[u8] {
        let history = self.history();
        let looks_trained = history.first() == Some(&DICTIONARY_MAGIC_0);
        history
            .get(usize::from(looks_trained)..)
            .unwrap_or_default()
    }

    fn new_encoder(&self) -> Result<CCtx<'static>, BatchError> {
        let mut encoder = CCtx::try_create().ok_or_else(|| failed(0))?;
        for parameter in [
            CParameter::CompressionLevel(self.level),
            CParameter::WindowLog(self.window_log),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            encoder.set_parameter(parameter).map_err(failed)?;
        }
        if !self.history.is_empty() {
            encoder.load_dictionary(self.primer()).map_err(failed)?;
        }
        Ok(encoder)
    }

    fn new_decoder(&self) -> Result<DCtx<'static>, BatchError> {
        let mut decoder = DCtx::try_create().ok_or_else(|| failed(0))?;
        decoder
            .set_parameter(DParameter::WindowLogMax(self.window_log))
            .map_err(failed)?;
        if !self.history.is_empty() {
            decoder.load_dictionary(self.primer()).map_err(failed)?;
        }
        Ok(decoder)
    }

    /// Begins the frame anew behind bytes that went beside it.
    pub(super) fn restart(&mut self, bytes: &[u8]) {
        self.remember(bytes);
        self.encoder = None;
        self.decoder = None;
        self.is_fresh = true;
    }

    /// Keeps what went through, to begin anew from.
    pub(super) fn remember(&mut self, body: &[u8]) {
        let window = 1_usize << self.window_log;
        let tail = body
            .get(body.len().saturating_sub(window)..)
            .unwrap_or_default();
        let most = window + window / 4;
        if self.history.len() + tail.len() > most {
            let keep = window.saturating_sub(tail.len()).min(self.history.len());
            let drop = self.history.len() - keep;
            self.history.drain(..drop);
        }
        self.history.extend_from_slice(tail);
    }
}

/// Type and content, when it is one raw or compressed block.
fn one_block(blocks: &[u8]) -> Option<(u8, &[u8])> {
    let (header, content) = blocks.split_first_chunk::<BLOCK_HEADER_LEN>()?;
    let (kind, len) = block_header(*header);
    (len == content.len() && (kind == 0 || kind == BLOCK_COMPRESSED))
        .then(|| (kind.to_le_bytes()[0], content))
}

fn block_header(header: [u8; BLOCK_HEADER_LEN]) -> (u32, usize) {
    let [a, b, c] = header;
    let header = u32::from_le_bytes([a, b, c, 0]);
    (
        header >> 1 & 3,
        usize::try_from(header >> 3).unwrap_or(usize::MAX),
    )
}

/// Whole blocks, none of them the frame's last.
fn check_blocks(mut blocks: &[u8]) -> Result<(), BatchError> {
    const MALFORMED: BatchError = BatchError::Malformed("blocks are not whole");
    while !blocks.is_empty() {
        let (header, rest) = blocks
            .split_first_chunk::<BLOCK_HEADER_LEN>()
            .ok_or(MALFORMED)?;
        let (kind, len) = block_header(*header);
        let len = if kind == 1 { 1 } else { len };
        if header[0] & 1 != 0 || kind == 3 {
            return Err(MALFORMED);
        }
        blocks = rest.get(len..).ok_or(MALFORMED)?;
    }
    Ok(())
}

fn failed(code: usize) -> BatchError {
    BatchError::Codec {
        codec: CODEC_COLUMNAR,
        error: match code {
            0 => "zstd has no memory, or makes something else than a frame".to_owned(),
            code => get_error_name(code).to_owned(),
        },
    }
}
