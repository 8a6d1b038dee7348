//! Codec 4: records by what is known of their stream, each bit as cheap as it is expected.
//!
//! ```text
//! payload ─ blocks, keys, timestamps ┐
//! value ─ template, slots ───────────┼─ flags, numbers, bytes ─ bits ─ mixed probability ─ coder
//! all that was seen before ──────────┘
//! ```
//! The split of [`super::split`] turns a payload into decisions: is this value the one that stood here
//! last, by how much does it miss the best of fourteen predictions, which letter follows. Each decision
//! is some bits; the probability of each comes from counters chosen by several contexts and mixed by
//! learnt weights, as in the PAQ family of compressors. Encoder and decoder run the same code on the same
//! state; only the arithmetic coder knows which of the two it is.
//!
//! Always true: integers only, so the bits are the same on every processor; every table has a fixed size
//! that follows from [`ChainLimits`]; what is forgotten is the same at both ends; bytes that no encoder
//! made decode to an error or to wrong bytes that the batch's checksum finds, within the announced length.
//!
//! ```text
//! payload: coded bits, first byte below 0xff
//!          0xff  mode  bytes                                  the whole payload
//!          0xff  mode  length  coded bits  bytes              bit 2: long values stand aside in the bytes
//!                      varint
//! ```
//! Mode bit 0: the bytes are a zstd frame, else as they are. Mode bit 1: both ends learn from them. A
//! value that doesn't split and is long goes aside, compressed with those before it in sight. A payload
//! that zstd makes smaller than the model goes so and is learnt from; after a few of these the model
//! rests, longer each time, so that what is random or compressed costs no time.

mod aside;
mod coder;
mod columns;
mod devices;
mod field;
mod fold;
mod history;
mod logistic;
mod memo;
mod predictor;
mod record;
mod snapshot;
mod state;
mod symbols;
mod templates;
mod text;
mod texts;
mod timing;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use zstd::bulk::Decompressor;

use self::aside::Aside;
use self::coder::ESCAPE;
use self::record::Scratch;
use self::snapshot::{Reader, Saved, Writer};
use self::state::State;
use super::split::RecordList;
use super::{BatchError, CODEC_MODELLED, ChainCodec, ChainLimits, next_position};
use crate::wire::{self, put_varint};

const MODE_ZSTD: u8 = 1;
const MODE_LEARN: u8 = 2;
const MODE_ASIDE: u8 = 4;
const MODES: u8 = MODE_ZSTD | MODE_LEARN | MODE_ASIDE;

const ZSTD_LEVEL: i32 = 3;

/// Payloads in a row for which zstd was as good but for an eighth, and their bytes, before the model rests.
const MAX_LOSSES: u32 = 4;
const MAX_LOST_BYTES: usize = 4096;
/// The first rest, in payloads; each following one is twice as long.
const FIRST_REST: u32 = 16;
const MAX_REST: u32 = 256;

/// Version of [`ChainCodec::save`].
const STATE_VERSION: u8 = 3;
const STATE_MAGIC: [u8; 4] = *b"KMS\0";

/// One end of a modelled chain.
#[derive(Debug)]
pub struct ModelChain {
    limits: ChainLimits,
    state: State,
    scratch: Scratch,
    aside: Aside,
    position: u64,
    effort: Effort,
}

/// Whether an encoder's model is worth its time.
#[derive(Debug, Clone, Copy, Default)]
struct Effort {
    losses: u32,
    lost_bytes: usize,
    /// Payloads that it still rests, and for how long it rested last.
    resting: u32,
    rest: u32,
}

impl Effort {
    fn won(&mut self) {
        *self = Self::default();
    }

    fn lost(&mut self, bytes: usize) {
        self.losses += 1;
        self.lost_bytes = self.lost_bytes.saturating_add(bytes);
        if self.losses >= MAX_LOSSES && self.lost_bytes >= MAX_LOST_BYTES {
            self.rest = (self.rest * 2).clamp(FIRST_REST, MAX_REST);
            self.resting = self.rest;
            // one more loss after the rest and it rests again
            self.losses = MAX_LOSSES - 1;
        }
    }

    fn rests(&mut self) -> bool {
        let rests = self.resting > 0;
        self.resting = self.resting.saturating_sub(1);
        rests
    }
}

impl ModelChain {
    /// A chain that has seen nothing.
    #[must_use]
    pub fn new(limits: ChainLimits) -> Self {
        Self {
            limits,
            state: State::new(limits),
            scratch: Scratch::default(),
            aside: Aside::new(limits.state_bytes as usize / 4),
            effort: Effort::default(),
            position: next_position(u64::from(CODEC_MODELLED), &[]),
        }
    }

    /// Goes on from a saved state of a chain with the same limits.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] when the bytes are torn, of another version or of other limits.
    pub fn load(saved: &[u8], limits: ChainLimits) -> Result<Self, BatchError> {
        const BAD: BatchError =
            BatchError::Malformed("saved state of a chain is torn or of another version");
        let rest = saved.strip_prefix(&STATE_MAGIC).ok_or(BAD)?;
        let (version, rest) = rest.split_first().ok_or(BAD)?;
        let (crc, frame) = rest.split_first_chunk().ok_or(BAD)?;
        if *version != STATE_VERSION || crc32c::crc32c(frame) != u32::from_le_bytes(*crc) {
            return Err(BAD);
        }
        let most = limits.state_bytes as usize * 4 + (4 << 20);
        let state = Decompressor::new()
            .and_then(|mut zstd| zstd.decompress(frame, most))
            .map_err(|_| BAD)?;
        let mut reader = Reader::new(&state);
        if reader.u32()? != limits.state_bytes {
            return Err(BAD);
        }
        let mut chain = Self::new(limits);
        chain.position = reader.u64()?;
        chain.state.load(&mut reader)?;
        chain.aside.load(&mut reader)?;
        reader.finish()?;
        Ok(chain)
    }

    /// Between payloads nothing is kept but what is counted: of a thousand chains one is at work.
    fn rest(&mut self) {
        self.scratch = Scratch::default();
    }

    /// Codes the records of a payload and learns from them.
    fn modelled(&mut self, list: &RecordList<'_>) -> Result<Vec<u8>, BatchError> {
        let coded = self.state.encode(list, &mut self.scratch);
        if self.scratch.aside.is_empty() {
            return Ok(coded);
        }
        let mut out = vec![ESCAPE, MODE_ASIDE];
        put_varint(&mut out, coded.len() as u64);
        out.extend_from_slice(&coded);
        let bytes = &self.scratch.aside;
        match self.aside.compress(bytes)? {
            Some(frame) => {
                out[1] |= MODE_ZSTD;
                out.extend_from_slice(&frame);
            }
            None => out.extend_from_slice(bytes),
        }
        self.aside.push(bytes);
        Ok(out)
    }

    fn coded(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let list = RecordList::read(raw).filter(|list| !list.blocks.is_empty());
        let Some(list) = list.filter(|_| !self.effort.rests()) else {
            return whole(raw, 0);
        };
        let modelled = self.modelled(&list)?;
        let whole = whole(raw, MODE_LEARN)?;
        let is_shorter = modelled.len() < whole.len();
        if is_shorter && (modelled.len() < raw.len() / 2 || modelled.len() < whole.len() / 8 * 7) {
            self.effort.won();
        } else {
            self.effort.lost(raw.len());
        }
        Ok(if is_shorter { modelled } else { whole })
    }

    fn opened(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Vec<u8>, BatchError> {
        let Some(rest) = payload.strip_prefix(&[ESCAPE]) else {
            self.scratch.aside.clear();
            return self.state.decode(payload, max_raw_len, &mut self.scratch);
        };
        let (mode, rest) = rest
            .split_first()
            .filter(|(mode, _)| **mode & !MODES == 0)
            .ok_or(BatchError::Malformed("payload of an unknown mode"))?;
        if mode & MODE_ASIDE != 0 {
            return self.opened_aside(*mode, rest, max_raw_len);
        }
        let raw = if mode & MODE_ZSTD == 0 {
            rest.to_vec()
        } else {
            Decompressor::new()
                .and_then(|mut zstd| zstd.decompress(rest, max_raw_len))
                .map_err(failed)?
        };
        if raw.len() > max_raw_len {
            return Err(BatchError::TooLarge {
                bytes: raw.len(),
                limit: max_raw_len,
            });
        }
        if mode & MODE_LEARN != 0 {
            let list = RecordList::read(&raw)
                .filter(|list| !list.blocks.is_empty())
                .ok_or(BatchError::Malformed("nothing to learn from"))?;
            self.state.encode(&list, &mut self.scratch);
            self.aside.push(&self.scratch.aside);
        }
        Ok(raw)
    }

    fn opened_aside(
        &mut self,
        mode: u8,
        rest: &[u8],
        max_raw_len: usize,
    ) -> Result<Vec<u8>, BatchError> {
        let mut reader = wire::Reader::new(rest);
        let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        let coded = reader.bytes(len)?;
        let bytes = reader.bytes(reader.remaining())?;
        self.scratch.aside = if mode & MODE_ZSTD == 0 {
            bytes.to_vec()
        } else {
            self.aside.decompress(bytes, max_raw_len)?
        };
        let raw = self.state.decode(coded, max_raw_len, &mut self.scratch)?;
        self.aside.push(&self.scratch.aside);
        Ok(raw)
    }
}

/// A payload without a model.
fn whole(raw: &[u8], mode: u8) -> Result<Vec<u8>, BatchError> {
    let frame = zstd::bulk::compress(raw, ZSTD_LEVEL).map_err(failed)?;
    let (mode, bytes) = if frame.len() < raw.len() {
        (mode | MODE_ZSTD, frame.as_slice())
    } else {
        (mode, raw)
    };
    Ok([&[ESCAPE, mode], bytes].concat())
}

fn failed(error: impl fmt::Display) -> BatchError {
    BatchError::Codec {
        codec: CODEC_MODELLED,
        error: error.to_string(),
    }
}

impl ChainCodec for ModelChain {
    fn codec(&self) -> u8 {
        CODEC_MODELLED
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let payload = self.coded(raw)?;
        self.rest();
        self.position = next_position(self.position, raw);
        Ok(payload)
    }

    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        let raw = self.opened(payload, max_raw_len)?;
        self.rest();
        self.position = next_position(self.position, &raw);
        Ok(raw.into())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn save(&self) -> Vec<u8> {
        let mut state = Writer::default();
        state.u32(self.limits.state_bytes);
        state.u64(self.position);
        self.state.save(&mut state);
        self.aside.save(&mut state);
        let frame = zstd::bulk::compress(&state.out, ZSTD_LEVEL).unwrap_or_default();
        let mut out = STATE_MAGIC.to_vec();
        out.push(STATE_VERSION);
        out.extend_from_slice(&crc32c::crc32c(&frame).to_le_bytes());
        out.extend_from_slice(&frame);
        out
    }

    fn memory(&self) -> usize {
        self.state.memory() + self.aside.memory()
    }
}
