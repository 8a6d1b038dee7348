//! Codec 3, columnar: records by template and column, each number predicted from the last of its column and
//! key, then zstd with history.
//!
//! ```text
//! head  blocks of the zstd stream: column bytes, or the raw payload
//! u8
//! ```
//! Head: bits 0 and 1 how the blocks stand there (`stream::Blocks`); bit 2: the raw payload went through the
//! stream; bit 3: everything remembered but the stream is forgotten first; bit 4: the raw payload follows
//! beside the stream, as it is (bits 0 and 1: 0) or as a zstd frame of its own (2), and the stream begins
//! anew behind it, primed with its last bytes; bit 5, with a frame: both ends split it all the same, to learn from it, and
//! the stream is primed with the column bytes. The other bits are 0.
//!
//! Always true: both ends hold the same state after the same payloads; what is forgotten follows from
//! [`ChainLimits::state_bytes`] alone. A payload that is not split, or was not worth it lately, goes raw
//! through the same stream, so that it costs what zstd with history costs; one that even so grows, or whose
//! columns do, goes as a zstd frame of its own, or as it is when that grows too. So does one for which such a frame
//! is shorter than its columns: no payload that is split costs more than zstd and a byte, and no other more than 64.

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
const HEAD_LEARN: u8 = 32;

const SAVED_VERSION: u8 = 1;
const SAVED_MAGIC: [u8; 4] = *b"KCOL";

/// Column bytes may be this much longer than the raw payload.
const BODY_SLACK: usize = 1024;

/// A payload may be this much longer than what it decodes to, less than [`crate::wire::MAX_EXPANSION`].
const PAYLOAD_SLACK: usize = 32;

/// A frame of its own must be this much shorter than a payload that is not split, because the stream begins anew
/// behind it.
const ALONE_GAIN: usize = 64;

/// Level of the frame that each payload is held against: a Kafka producer's.
const RIVAL_LEVEL: i32 = 3;

const ALONE_STORED: u8 = 0;
const ALONE_FRAME: u8 = 2;

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

    fn columns_of(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        if !self.worth.should_split() {
            return None;
        }
        let list = RecordList::read(raw)?;
        let mut body = Vec::with_capacity(raw.len() / 4);
        self.state.encode(&list, &mut self.scratch, &mut body);
        Some(body)
    }

    fn forget(&mut self) {
        self.state = State::new(table_bytes(self.limits));
    }

    /// The payload beside the stream, which begins anew behind `body`.
    fn alone(&mut self, head: u8, body: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 1);
        out.push(head | HEAD_ALONE);
        out.extend_from_slice(bytes);
        self.stream.restart(body);
        out
    }

    fn encode_next(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let columns = self.columns_of(raw);
        let is_split = columns.is_some();
        let frame = plain(raw, self.level.min(RIVAL_LEVEL))?;
        let body = columns.as_deref().unwrap_or(raw);
        let fits = body.len() <= raw.len() + BODY_SLACK;
        let mut out = vec![0];
        if fits {
            let blocks = self.stream.compress(body, &mut out)?;
            if let Some(head) = out.first_mut() {
                *head = blocks.code() | if is_split { 0 } else { HEAD_RAW };
            }
            let gain = if is_split { 1 } else { ALONE_GAIN };
            let is_lost = frame.len() + gain < out.len();
            if is_split {
                self.worth.saw(is_lost);
            }
            if is_lost && frame.len() < raw.len() {
                let learn = if is_split { HEAD_LEARN } else { 0 };
                return Ok(self.alone(learn | ALONE_FRAME, body, &frame));
            }
        }
        if out.len() > raw.len() + PAYLOAD_SLACK || !fits {
            // the stream did not take it, or made it longer than the other end has to accept
            if is_split {
                self.forget();
                self.worth.lost();
            }
            let head = if is_split { HEAD_FORGET } else { 0 };
            return Ok(if frame.len() < raw.len() {
                self.alone(head | ALONE_FRAME, raw, &frame)
            } else {
                self.alone(head | ALONE_STORED, raw, raw)
            });
        }
        self.stream.remember(body);
        Ok(out)
    }

    fn decode_alone(
        &mut self,
        head: u8,
        payload: &[u8],
        max_raw_len: usize,
    ) -> Result<Vec<u8>, BatchError> {
        let raw = match head & 3 {
            ALONE_STORED if payload.len() <= max_raw_len => payload.to_vec(),
            ALONE_FRAME => Decompressor::new()
                .and_then(|mut d| d.decompress(payload, max_raw_len))
                .map_err(failed)?,
            _ => return Err(BatchError::Malformed("a payload of no known kind")),
        };
        if head & HEAD_LEARN == 0 {
            self.stream.restart(&raw);
            return Ok(raw);
        }
        let list = RecordList::read(&raw).ok_or(NOTHING_TO_LEARN)?;
        let mut body = Vec::with_capacity(raw.len() / 4);
        self.state.encode(&list, &mut self.scratch, &mut body);
        if body.len() > raw.len() + BODY_SLACK {
            return Err(NOTHING_TO_LEARN);
        }
        self.stream.restart(&body);
        Ok(raw)
    }
}

const NOTHING_TO_LEARN: BatchError = BatchError::Malformed("a frame that does not split");

impl ChainCodec for ColumnarCodec {
    fn codec(&self) -> u8 {
        CODEC_COLUMNAR
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let out = self.encode_next(raw)?;
        self.position = next_position(self.position, raw);
        Ok(out)
    }

    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        let (head, payload) = payload
            .split_first()
            .ok_or(BatchError::Malformed("an empty payload"))?;
        if head & !(HEAD_RAW | HEAD_FORGET | HEAD_ALONE | HEAD_LEARN | 3) != 0
            || head & HEAD_LEARN != 0 && head & !3 != HEAD_ALONE | HEAD_LEARN
        {
            return Err(BatchError::Malformed("unknown flag"));
        }
        if head & HEAD_FORGET != 0 {
            self.forget();
        }
        let blocks = Blocks::from_code(*head);
        let raw = if head & HEAD_ALONE != 0 {
            self.decode_alone(*head, payload, max_raw_len)?
        } else if head & HEAD_RAW != 0 {
            let raw = self.stream.decompress(blocks, payload, max_raw_len)?;
            self.stream.remember(&raw);
            raw
        } else {
            let limit = max_raw_len.saturating_add(BODY_SLACK);
            let body = self.stream.decompress(blocks, payload, limit)?;
            self.stream.remember(&body);
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
        .map_err(failed)?;
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

fn plain(raw: &[u8], level: i32) -> Result<Vec<u8>, BatchError> {
    Compressor::new(level)
        .and_then(|mut compressor| compressor.compress(raw))
        .map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> BatchError {
    BatchError::Codec {
        codec: CODEC_COLUMNAR,
        error: error.to_string(),
    }
}

/// Whether splitting pays: left alone for a while when it lost against plain zstd several times in a row.
#[derive(Debug, Default)]
struct Worth {
    losses: u32,
    /// Payloads that still go raw.
    pause: u32,
}

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

    fn saw(&mut self, is_lost: bool) {
        if is_lost {
            self.lost();
        } else {
            self.losses = 0;
        }
    }

    /// Columns were longer than plain zstd.
    fn lost(&mut self) {
        self.losses += 1;
        if self.losses >= MAX_LOSSES {
            self.pause = 1 << self.losses.min(MAX_PAUSE_LOG);
        }
    }
}
