//! A recording in batches, and what an encoder makes of them from wherever it begins. Logs with the same
//! recording that begin at the same place with the same state send the same bytes: these are made once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use shared::batch::estimate::Sample;
use shared::batch::{
    Block, BlockWriter, CODEC_MODELLED, ChainCodec, ChainLimits, Outgoing, Packed, ZstdEncoder,
    load_chain, new_chain,
};
use shared::record::put_record;
use shared::wire::Anchor;

/// Raw bytes of a batch, at least.
const BATCH_BYTES: usize = 16 << 10;
/// The level of a site that is told nothing.
const LEVEL: i32 = 3;
/// When a site saves its state: after so many raw bytes first, then after twice as many each time.
const FIRST_ANCHOR_AFTER: usize = 64 << 10;
const ANCHOR_AFTER: usize = 4 << 20;

/// See the module.
pub(super) struct Script {
    batches: Vec<Batch>,
    made: Mutex<Made>,
}

struct Batch {
    raw: Vec<u8>,
    base_offset: u64,
    next_offset: u64,
}

#[derive(Default)]
struct Made {
    lines: HashMap<Start, Arc<Line>>,
    /// States by their position, and how many raw bytes the next one waits for.
    states: HashMap<u64, (Bytes, usize)>,
}

/// How the first batch of a line is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Memory {
    /// With nothing before it, nor anything kept for those after it.
    None,
    Fresh,
    Anchor(u64),
}

/// At which batch, and how.
type Start = (usize, Memory);

/// The batches from one on, encoded.
pub(super) struct Line {
    from: usize,
    payloads: Vec<Packed>,
    /// Offsets after which both ends save their states.
    anchors: Vec<(u64, Anchor)>,
}

impl Line {
    /// The newest state that the hub has kept when it holds everything before this offset.
    pub(super) fn anchor_at(&self, acked: u64) -> Option<Anchor> {
        let settled = self.anchors.iter().rev().find(|(next, _)| *next <= acked);
        settled.map(|(_, anchor)| *anchor)
    }
}

impl Script {
    /// The first batches of a recording.
    pub(super) fn new(samples: &[Sample], batches: usize) -> Result<Self> {
        let mut rest = samples;
        let mut script = Self {
            batches: Vec::new(),
            made: Mutex::default(),
        };
        while script.batches.len() < batches {
            let mut bytes = 0;
            let is_before_end = |sample: &&Sample| {
                let is_open = bytes < BATCH_BYTES;
                bytes += sample.value.as_ref().map_or(0, Vec::len);
                is_open
            };
            let count = rest.iter().take_while(is_before_end).count();
            let batch;
            (batch, rest) = rest.split_at(count);
            ensure!(!rest.is_empty(), "the recording is too short");
            let base_offset = script.end(script.batches.len());
            script.batches.push(Batch {
                raw: raw(batch)?,
                base_offset,
                next_offset: base_offset + count as u64,
            });
        }
        Ok(script)
    }

    /// Offset after so many batches.
    pub(super) fn end(&self, batches: usize) -> u64 {
        let last = batches
            .checked_sub(1)
            .and_then(|last| self.batches.get(last));
        last.map_or(0, |batch| batch.next_offset)
    }

    /// What goes out from this offset on.
    pub(super) fn line(&self, from: u64, memory: Memory) -> Result<Arc<Line>> {
        let first = self.number(from)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = made.lines.get(&(first, memory)) {
            return Ok(Arc::clone(line));
        }
        let line = Arc::new(self.make(first, memory, &mut made.states)?);
        made.lines.insert((first, memory), Arc::clone(&line));
        Ok(line)
    }

    /// The batch at this offset: where it ends, and its payload.
    pub(super) fn payload(&self, line: &Line, from: u64) -> Result<(u64, Packed)> {
        let number = self.number(from)?;
        let at = number.checked_sub(line.from);
        let packed = at.and_then(|at| line.payloads.get(at));
        let packed = packed.context("a log goes back")?.clone();
        Ok((self.batches[number].next_offset, packed))
    }

    fn number(&self, from: u64) -> Result<usize> {
        let found = self
            .batches
            .binary_search_by_key(&from, |batch| batch.base_offset);
        found.ok().context("no batch begins there")
    }

    fn make(
        &self,
        from: usize,
        memory: Memory,
        states: &mut HashMap<u64, (Bytes, usize)>,
    ) -> Result<Line> {
        let mut line = Line {
            from,
            payloads: Vec::new(),
            anchors: Vec::new(),
        };
        let limits = ChainLimits::default();
        let (mut codec, mut anchor_after) = match memory {
            Memory::None => {
                let mut zstd = ZstdEncoder::new(LEVEL)?;
                for batch in &self.batches[from..] {
                    line.payloads.push(batch.outgoing().pack(&mut zstd)?);
                }
                return Ok(line);
            }
            Memory::Fresh => (
                new_chain(CODEC_MODELLED, limits, LEVEL)?,
                FIRST_ANCHOR_AFTER,
            ),
            Memory::Anchor(position) => {
                let (state, after) = states.get(&position).context("an unknown state")?;
                (load_chain(CODEC_MODELLED, state, limits, LEVEL)?, *after)
            }
        };
        let mut since = 0;
        for batch in &self.batches[from..] {
            let is_fresh = memory == Memory::Fresh && line.payloads.is_empty();
            let mut packed = batch.outgoing().pack_chain(codec.as_mut(), is_fresh)?;
            since += batch.raw.len();
            if since >= anchor_after {
                packed.header.is_anchor = true;
                anchor_after = (anchor_after * 2).min(ANCHOR_AFTER);
                since = 0;
                line.anchors
                    .push((batch.next_offset, anchor(codec.as_ref())));
                states.insert(codec.position(), (codec.save().into(), anchor_after));
            }
            line.payloads.push(packed);
        }
        Ok(line)
    }
}

fn anchor(codec: &dyn ChainCodec) -> Anchor {
    Anchor {
        codec: codec.codec(),
        position: codec.position(),
    }
}

impl Batch {
    /// The offset stands for the history.
    fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            raw: &self.raw,
            next_offset: self.next_offset,
            chain: self.next_offset,
        }
    }
}

/// As one producer's batch.
fn raw(samples: &[Sample]) -> Result<Vec<u8>> {
    let base = samples.first().map_or(0, |sample| sample.timestamp_ms);
    let mut records = Vec::new();
    for (number, sample) in (0..).zip(samples) {
        let (key, value) = (sample.key.as_deref(), sample.value.as_deref());
        put_record(
            &mut records,
            number,
            sample.timestamp_ms - base,
            key,
            value,
            &[],
        );
    }
    let mut writer = BlockWriter::default();
    writer.push(&Block {
        base_offset: 0,
        count: u32::try_from(samples.len())?,
        base_timestamp_ms: base,
        is_log_append_time: false,
        records: records.into(),
    })?;
    Ok(writer.finish())
}
