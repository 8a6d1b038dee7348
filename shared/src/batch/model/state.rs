//! Everything that both ends of a chain remember.

use super::columns::Columns;
use super::devices::Devices;
use super::fold::Folds;
use super::history::Histories;
use super::memo::Memo;
use super::predictor::Predictor;
use super::snapshot::{Reader, Saved, Writer};
use super::templates::Templates;
use super::texts::Texts;
use super::timing::Timing;
use crate::batch::{BatchError, ChainLimits};

/// What stood in the record or payload before, for the next one's contexts.
#[derive(Debug, Clone, Default)]
pub(super) struct Recent {
    pub(super) timing: Timing,
    /// Hashes of the last two keys.
    pub(super) keys: [u64; 2],
    /// Records of the last block, blocks of the last payload.
    pub(super) block_len: u32,
    pub(super) blocks: u32,
    /// First timestamp of the payload.
    pub(super) payload_start_ms: i64,
    /// Mean cost of naming a device by its rank, in 1/256 bit.
    pub(super) rank_cost: u32,
}

/// The state; its size follows from the limits.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) predictor: Predictor,
    pub(super) memo: Memo,
    pub(super) histories: Histories,
    pub(super) columns: Columns,
    pub(super) texts: Texts,
    pub(super) templates: Templates,
    pub(super) folds: Folds,
    pub(super) devices: Devices,
    pub(super) recent: Recent,
}

/// How the bytes are divided: measured on recordings of sensors, meters, vehicles, tills and logs.
const PARTS: [usize; 12] = [17, 13, 6, 3, 2, 8, 4, 4, 3, 2, 1, 1];

impl State {
    pub(super) fn new(limits: ChainLimits) -> Self {
        // sixty-eighths of the whole; the weights take four
        let part = limits.state_bytes.max(256 << 10) as usize / 68;
        let [
            counters,
            memo,
            histories,
            columns,
            alphabets,
            ring,
            texts,
            seen,
            templates,
            cells,
            folds,
            devices,
        ] = PARTS.map(|parts| parts * part);
        Self {
            predictor: Predictor::new(counters),
            memo: Memo::new(memo),
            histories: Histories::new(histories),
            columns: Columns::new(columns, alphabets),
            texts: Texts::new(ring, texts, seen),
            templates: Templates::new(templates, cells),
            folds: Folds::new(folds),
            devices: Devices::new(devices),
            recent: Recent::default(),
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.predictor.memory()
            + self.memo.memory()
            + self.histories.memory()
            + self.columns.memory()
            + self.texts.memory()
            + self.templates.memory()
            + self.folds.memory()
            + self.devices.memory()
    }
}

impl Saved for State {
    fn save(&self, to: &mut Writer) {
        self.predictor.save(to);
        self.memo.save(to);
        self.histories.save(to);
        self.columns.save(to);
        self.texts.save(to);
        self.templates.save(to);
        self.folds.save(to);
        self.devices.save(to);
        let recent = &self.recent;
        recent.timing.save(to);
        recent.keys.iter().for_each(|key| to.u64(*key));
        to.u32(recent.block_len);
        to.u32(recent.blocks);
        to.i64(recent.payload_start_ms);
        to.u32(recent.rank_cost);
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        self.predictor.load(from)?;
        self.memo.load(from)?;
        self.histories.load(from)?;
        self.columns.load(from)?;
        self.texts.load(from)?;
        self.templates.load(from)?;
        self.folds.load(from)?;
        self.devices.load(from)?;
        let mut timing = Timing::default();
        timing.load(from)?;
        self.recent = Recent {
            timing,
            keys: [from.u64()?, from.u64()?],
            block_len: from.u32()?,
            blocks: from.u32()?,
            payload_start_ms: from.i64()?,
            rank_cost: from.u32()?,
        };
        Ok(())
    }
}
