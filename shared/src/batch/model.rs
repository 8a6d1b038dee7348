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
//!          0xff  mode  bytes
//! ```
//! Mode bit 0: the bytes are a zstd frame, else as they are. Mode bit 1: both ends learn from them.

mod coder;
mod columns;
mod devices;
mod field;
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

use bytes::Bytes;

use self::coder::ESCAPE;
use self::record::Scratch;
use self::snapshot::{Reader, Saved, Writer};
use self::state::State;
use super::split::RecordList;
use super::{BatchError, CODEC_MODELLED, ChainCodec, ChainLimits, next_position};

const MODE_ZSTD: u8 = 1;
const MODE_LEARN: u8 = 2;

const ZSTD_LEVEL: i32 = 3;

/// Version of [`ChainCodec::save`].
const STATE_VERSION: u8 = 1;
const STATE_MAGIC: [u8; 4] = *b"KMS\0";

/// One end of a modelled chain.
#[derive(Debug)]
pub struct ModelChain {
    limits: ChainLimits,
    state: State,
    scratch: Scratch,
    position: u64,
}

impl ModelChain {
    /// A chain that has seen nothing.
    #[must_use]
    pub fn new(limits: ChainLimits) -> Self {
        Self {
            limits,
            state: State::new(limits),
            scratch: Scratch::default(),
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
        let state = zstd::bulk::Decompressor::new()
            .and_then(|mut zstd| zstd.decompress(frame, most))
            .map_err(|_| BAD)?;
        let mut reader = Reader::new(&state);
        if reader.u32()? != limits.state_bytes {
            return Err(BAD);
        }
        let mut chain = Self::new(limits);
        chain.position = reader.u64()?;
        chain.state.load(&mut reader)?;
        reader.finish()?;
        Ok(chain)
    }

    fn escaped(&mut self, raw: &[u8], mode: u8) -> Vec<u8> {
        let mut out = vec![ESCAPE, mode];
        match zstd::bulk::compress(raw, ZSTD_LEVEL) {
            Ok(frame) if frame.len() < raw.len() => {
                out[1] |= MODE_ZSTD;
                out.extend_from_slice(&frame);
            }
            _ => out.extend_from_slice(raw),
        }
        out
    }
}

impl ChainCodec for ModelChain {
    fn codec(&self) -> u8 {
        CODEC_MODELLED
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let payload = match RecordList::read(raw).filter(|list| !list.blocks.is_empty()) {
            Some(list) => self.state.encode(&list, &mut self.scratch),
            None => self.escaped(raw, 0),
        };
        self.position = next_position(self.position, raw);
        Ok(payload)
    }

    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        let raw: Bytes = match payload.strip_prefix(&[ESCAPE]) {
            None => self
                .state
                .decode(payload, max_raw_len, &mut self.scratch)?
                .into(),
            Some(rest) => {
                let (mode, body) = rest
                    .split_first()
                    .ok_or(BatchError::Malformed("payload without its mode"))?;
                let raw = if mode & MODE_ZSTD == 0 {
                    body.to_vec()
                } else {
                    zstd::bulk::Decompressor::new()
                        .and_then(|mut zstd| zstd.decompress(body, max_raw_len))
                        .map_err(|error| BatchError::Codec {
                            codec: CODEC_MODELLED,
                            error: error.to_string(),
                        })?
                };
                if raw.len() > max_raw_len {
                    return Err(BatchError::TooLarge {
                        bytes: raw.len(),
                        limit: max_raw_len,
                    });
                }
                if mode & MODE_LEARN != 0 {
                    let list = RecordList::read(&raw)
                        .ok_or(BatchError::Malformed("nothing to learn from"))?;
                    self.state.encode(&list, &mut self.scratch);
                }
                raw.into()
            }
        };
        self.position = next_position(self.position, &raw);
        Ok(raw)
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn save(&self) -> Vec<u8> {
        let mut state = Writer::default();
        state.u32(self.limits.state_bytes);
        state.u64(self.position);
        self.state.save(&mut state);
        let frame = zstd::bulk::compress(&state.out, ZSTD_LEVEL).unwrap_or_default();
        let mut out = STATE_MAGIC.to_vec();
        out.push(STATE_VERSION);
        out.extend_from_slice(&crc32c::crc32c(&frame).to_le_bytes());
        out.extend_from_slice(&frame);
        out
    }

    fn memory(&self) -> usize {
        self.state.memory()
    }
}

#[cfg(feature = "model-cost")]
impl ModelChain {
    /// Bytes per record by kind of decision.
    pub fn costs(&self, records: usize) -> String {
        let names = [
            "flags", "kind", "alphabet", "residual", "text", "template", "key", "time", "block",
            "whole", "headers",
        ];
        names
            .iter()
            .zip(self.state.predictor.cost)
            .map(|(name, cost)| format!("{name} {:.3} ", cost / 8.0 / records as f64))
            .collect()
    }
}
