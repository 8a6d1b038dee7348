//! Codec 3, columnar: records by template and column, each number predicted from the last of its column and
//! key, then zstd with history.
//!
//! ```text
//! head  blocks of the zstd stream: column bytes, or the raw payload
//! u8
//! ```
//! Head: bits 0 and 1 how the blocks stand there (`stream::Blocks`); bit 2: the raw payload went through the
//! stream; bit 3: everything remembered but the stream is forgotten first; bit 4: a zstd frame of its own
//! follows, beside the stream. The other bits are 0.
//!
//! Always true: both ends hold the same state after the same payloads; what is forgotten follows from
//! [`ChainLimits::state_bytes`] alone. A payload that is not split, or was not worth it lately, goes raw
//! through the same stream, so that it costs what zstd with history costs.

mod body;
mod context;
mod decode;
mod dictionary;
mod encode;
mod slots;
mod state;
mod stream;
mod table;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

use super::BatchError;
use super::chain::{ChainCodec, ChainLimits, next_position};
use super::codec::CODEC_COLUMNAR;
use super::split::RecordList;
use crate::wire::{Reader, put_varint};
use encode::Scratch;
use state::State;
use stream::{Blocks, Stream};

const HEAD_RAW: u8 = 4;
const HEAD_FORGET: u8 = 8;
const HEAD_ALONE: u8 = 16;

const SAVED_VERSION: u8 = 1;
const SAVED_MAGIC: [u8; 4] = *b"KCOL";

/// Column bytes may be this much longer than the raw payload.
const BODY_SLACK: usize = 1024;

/// Least state: below it a chain holds next to nothing.
const MIN_STATE_BYTES: u32 = 256 << 10;

/// One end of a columnar chain.
#[derive(Debug)]
pub struct ColumnarCodec {
    limits: ChainLimits,
    level: i32,
    position: u64,
    state: State,
    stream: Stream,
    worth: Worth,
    scratch: Scratch,
}

impl ColumnarCodec {
    /// A chain that begins; `level` (1 to 19) is the encoder's alone.
    #[must_use]
    pub fn new(limits: ChainLimits, level: i32) -> Self {
        Self {
            limits,
            level,
            position: next_position(CODEC_COLUMNAR.into(), &[]),
            state: State::new(table_bytes(limits)),
            stream: Stream::new(window_log(limits), level, Vec::new()),
            worth: Worth::default(),
            scratch: Scratch::default(),
        }
    }

    /// A chain that goes on from what [`ChainCodec::save`] gave, under the same limits.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when it is broken or of other limits.
    pub fn load(saved: &[u8], limits: ChainLimits, level: i32) -> Result<Self, BatchError> {
        let mut codec = Self::new(limits, level);
        let plain = open_saved(saved, limits)?;
        let mut reader = Reader::new(&plain);
        codec.position = reader.u64()?;
        codec.state.load(&mut reader)?;
        let history = reader.bytes(reader.remaining())?.to_vec();
        codec.stream = Stream::new(window_log(limits), level, history);
        Ok(codec)
    }

    fn columns_of(&mut self, raw: &[u8], head: &mut u8) -> Option<Vec<u8>> {
        if !self.worth.should_split() {
            return None;
        }
        let list = RecordList::read(raw)?;
        let mut body = Vec::with_capacity(raw.len() / 4);
        self.state.encode(&list, &mut self.scratch, &mut body);
        if body.len() > raw.len() + BODY_SLACK {
            // only made on purpose; the decoder need not make room for it
            self.state = State::new(table_bytes(self.limits));
            *head |= HEAD_FORGET;
            return None;
        }
        Some(body)
    }
}

impl ChainCodec for ColumnarCodec {
    fn codec(&self) -> u8 {
        CODEC_COLUMNAR
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let mut out = vec![0];
        let mut head = 0;
        let body = self.columns_of(raw, &mut head);
        let body = body.as_deref().unwrap_or_else(|| {
            head |= HEAD_RAW;
            raw
        });
        let blocks = self.stream.compress(body, &mut out)?;
        if let Some(place) = out.first_mut() {
            *place = head | blocks.code();
        }
        self.worth
            .saw(raw, out.len(), self.level, head & HEAD_RAW != 0);
        self.position = next_position(self.position, raw);
        Ok(out)
    }

    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        let (head, payload) = payload
            .split_first()
            .ok_or(BatchError::Malformed("an empty payload"))?;
        if head & !(HEAD_RAW | HEAD_FORGET | 3) != 0 {
            return Err(BatchError::Malformed("unknown flag"));
        }
        if head & HEAD_FORGET != 0 {
            self.state = State::new(table_bytes(self.limits));
        }
        let blocks = Blocks::from_code(*head);
        let raw = if head & HEAD_RAW != 0 {
            self.stream.decompress(blocks, payload, max_raw_len)?
        } else {
            let limit = max_raw_len.saturating_add(BODY_SLACK);
            let body = self.stream.decompress(blocks, payload, limit)?;
            self.state.decode(&body, max_raw_len)?
        };
        self.position = next_position(self.position, &raw);
        Ok(raw.into())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn save(&self) -> Vec<u8> {
        let mut plain = self.position.to_be_bytes().to_vec();
        self.state.save(&mut plain);
        plain.extend_from_slice(self.stream.history());
        let mut out = SAVED_MAGIC.to_vec();
        out.push(SAVED_VERSION);
        put_varint(&mut out, self.limits.state_bytes.into());
        put_varint(&mut out, plain.len() as u64);
        out.extend_from_slice(&crc32c::crc32c(&plain).to_be_bytes());
        let packed = Compressor::new(SAVE_LEVEL).and_then(|mut c| c.compress(&plain));
        // without memory for it there is nothing to go on from: a reader refuses what is left out
        out.extend_from_slice(&packed.unwrap_or_default());
        out
    }

    fn memory(&self) -> usize {
        size_of::<Self>() + self.state.memory() + self.stream.memory()
    }
}

const SAVE_LEVEL: i32 = 3;

fn open_saved(saved: &[u8], limits: ChainLimits) -> Result<Vec<u8>, BatchError> {
    const OTHER: BatchError = BatchError::Malformed("saved state of another kind or size");
    let mut reader = Reader::new(saved);
    if reader.array()? != SAVED_MAGIC || reader.u8()? != SAVED_VERSION {
        return Err(OTHER);
    }
    if reader.varint_u32()? != limits.state_bytes {
        return Err(OTHER);
    }
    let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    let crc = reader.u32()?;
    let most = usize::try_from(limits.state_bytes.max(MIN_STATE_BYTES)).unwrap_or(usize::MAX);
    if len > most.saturating_mul(4) {
        return Err(OTHER);
    }
    let packed = reader.bytes(reader.remaining())?;
    let plain = Decompressor::new()
        .and_then(|mut d| d.decompress(packed, len))
        .map_err(|error| BatchError::Codec {
            codec: CODEC_COLUMNAR,
            error: error.to_string(),
        })?;
    let computed = crc32c::crc32c(&plain);
    if plain.len() != len || computed != crc {
        return Err(BatchError::Checksum {
            found: crc,
            computed,
        });
    }
    Ok(plain)
}

/// A quarter of the state is the window of zstd, from 64 KiB to 1 MiB.
fn window_log(limits: ChainLimits) -> u32 {
    (limits.state_bytes.max(MIN_STATE_BYTES) / 4)
        .ilog2()
        .min(20)
}

/// What is left for templates, keys, strings and contexts.
fn table_bytes(limits: ChainLimits) -> usize {
    let bytes = limits.state_bytes.max(MIN_STATE_BYTES);
    usize::try_from(bytes - bytes / 4).unwrap_or(0)
}

/// Whether splitting pays: held against plain zstd now and then, and left alone for a while when it lost.
#[derive(Debug, Default)]
struct Worth {
    payloads: u32,
    losses: u32,
    /// Payloads that still go raw.
    pause: u32,
}

/// Payloads between two comparisons, once it is known to pay.
const COMPARE_EVERY: u32 = 64;
const MAX_PAUSE_LOG: u32 = 10;
/// Losses in a row before a pause.
const MAX_LOSSES: u32 = 3;

impl Worth {
    fn should_split(&mut self) -> bool {
        if self.pause == 0 {
            return true;
        }
        self.pause -= 1;
        false
    }

    /// A payload became `len` bytes.
    fn saw(&mut self, raw: &[u8], len: usize, level: i32, was_raw: bool) {
        if was_raw || raw.is_empty() {
            return;
        }
        self.payloads = self.payloads.wrapping_add(1);
        let looks_bad = len > raw.len() / 2;
        if !looks_bad && !self.payloads.is_multiple_of(COMPARE_EVERY) && self.losses == 0 {
            return;
        }
        let plain = Compressor::new(level).and_then(|mut c| c.compress(raw));
        if plain.is_ok_and(|plain| plain.len() + 4 < len) {
            self.losses += 1;
            if self.losses >= MAX_LOSSES {
                self.pause = 1 << self.losses.min(MAX_PAUSE_LOG);
            }
        } else {
            self.losses = 0;
        }
    }
}
