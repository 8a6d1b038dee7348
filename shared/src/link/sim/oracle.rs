//! What must hold, checked at every step against everything that the site ever accepted.
//!
//! The oracle knows each batch and gap that any store of the site ever appended, by its chain, with
//! its predecessor. What the hub commits must follow on what it committed before, batch by batch, back
//! along the chain: none missing, none twice, in order. A gap may only cover what a store dropped.

use std::collections::BTreeMap;

use super::rng::Rng;
use crate::batch::Block;
use crate::ids::{Incarnation, Offset};
use crate::record::Records;
use crate::wire::{Checkpoint, DataContent, GAP_NOT_AT_SITE};

/// What the hub commits of a log at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) base_offset: Offset,
    pub(super) next_offset: Offset,
    pub(super) chain: u64,
    pub(super) content: DataContent,
}

/// Something that a store appended.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) base: Offset,
    pub(super) next: Offset,
    pub(super) parent: u64,
    pub(super) chain: u64,
    /// Absent for what was a gap from the start.
    pub(super) records: Option<Vec<u64>>,
    pub(super) is_dropped: bool,
}

/// What the central cluster holds of one log of one incarnation.
#[derive(Debug, Default)]
struct Central {
    origin: Offset,
    checkpoint: Option<Checkpoint>,
    /// Offsets and chains that the checkpoint went through.
    passed: BTreeMap<Offset, u64>,
    /// Id by offset.
    records: BTreeMap<Offset, u64>,
    /// The highest checkpoint ever, whatever the hub lost since.
    ever_committed: Offset,
    has_lost: bool,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// Number of the log and entry, by chain.
    entries: BTreeMap<u64, (usize, Entry)>,
    central: BTreeMap<(Incarnation, usize), Central>,
}

pub(super) type Verdict = Result<(), String>;

impl Central {
    fn committed(&self) -> Option<Offset> {
        match self.checkpoint {
            Some(checkpoint) => Some(checkpoint.next_offset),
            None if self.has_lost => None,
            None => Some(self.origin),
        }
    }
}

impl Oracle {
    pub(super) fn register(&mut self, log: usize, entry: Entry) {
        let twice = self.entries.insert(entry.chain, (log, entry));
        assert!(twice.is_none(), "two histories with one chain");
    }

    /// A log of an incarnation starts at `origin`.
    pub(super) fn begin(&mut self, incarnation: Incarnation, log: usize, origin: Offset) {
        self.central.entry((incarnation, log)).or_default().origin = origin;
    }

    /// The store replaced everything from `base` up to this chain by a gap.
    pub(super) fn dropped(&mut self, base: Offset, mut chain: u64) {
        while let Some((_, entry)) = self.entries.get_mut(&chain).filter(|(_, e)| e.next > base) {
            entry.is_dropped = true;
            chain = entry.parent;
        }
    }

    pub(super) fn checkpoint(&self, incarnation: Incarnation, log: usize) -> Option<Checkpoint> {
        self.central.get(&(incarnation, log))?.checkpoint
    }

    /// Everything of this log before is committed; `None` when only the site knows.
    pub(super) fn committed(&self, incarnation: Incarnation, log: usize) -> Option<Offset> {
        self.central.get(&(incarnation, log))?.committed()
    }

    /// The hub lost what it knew of some logs, and fell back to what it knew earlier of others; the records
    /// stay in the cluster, and those above such an earlier checkpoint come twice from here on.
    pub(super) fn lose_checkpoints(&mut self, rng: &mut Rng) {
        for central in self.central.values_mut() {
            let keeps = rng.below(central.passed.len() as u64 + 1) as usize;
            let earlier = central.passed.iter().nth(keeps);
            let earlier = earlier.map(|(next, chain)| (*next, *chain));
            let earlier = earlier.filter(|_| rng.chance(50));
            let next = earlier.map_or(0, |(next, _)| next);
            central.checkpoint =
                earlier.map(|(next_offset, chain)| Checkpoint { next_offset, chain });
            central.passed.retain(|offset, _| *offset <= next);
            central.records.retain(|offset, _| *offset < next);
            central.has_lost = true;
        }
    }

    /// The site was told that the hub holds everything before `next`.
    pub(super) fn acked(&self, incarnation: Incarnation, log: usize, next: Offset) -> Verdict {
        let central = self.central.get(&(incarnation, log));
        let committed = central.map_or(0, |c| c.ever_committed.max(c.origin));
        if next > committed {
            return Err(format!("{next} acknowledged, {committed} committed"));
        }
        Ok(())
    }

    /// The cluster committed one delivery.
    pub(super) fn commit(
        &mut self,
        incarnation: Incarnation,
        log: usize,
        piece: &Piece,
        blocks: &[Block],
    ) -> Verdict {
        let central = self
            .central
            .get_mut(&(incarnation, log))
            .ok_or("commit of a log that does not exist")?;
        let expected = match central.checkpoint {
            Some(checkpoint) => checkpoint.next_offset,
            // the hub knows nothing: it takes the site's word for what it told the site before
            None if central.has_lost && piece.base_offset <= central.ever_committed => {
                piece.base_offset.max(central.origin)
            }
            None => central.origin,
        };
        if piece.base_offset != expected {
            return Err(format!(
                "log {log}: commit from {} to {}, expected {expected}",
                piece.base_offset, piece.next_offset
            ));
        }
        match piece.content {
            DataContent::Records(_) => {
                check_records(&self.entries, central, log, piece, blocks)?;
            }
            DataContent::Gap { reason } => {
                check_gap(&self.entries, central, log, piece, reason)?;
            }
        }
        for block in blocks {
            for (offset, id) in (block.base_offset..).zip(ids_of(block)) {
                if central.records.insert(offset, id).is_some() {
                    return Err(format!("log {log}: offset {offset} committed twice"));
                }
            }
        }
        central.checkpoint = Some(Checkpoint {
            next_offset: piece.next_offset,
            chain: piece.chain,
        });
        central.passed.insert(piece.next_offset, piece.chain);
        central.ever_committed = central.ever_committed.max(piece.next_offset);
        Ok(())
    }

    /// The end: everything of this log is committed, and what is committed is what was appended. This
    /// looks at ids only, not at what `commit` concluded.
    pub(super) fn check_complete(
        &self,
        incarnation: Incarnation,
        log: usize,
        end: Offset,
        end_chain: u64,
    ) -> Verdict {
        let Some(central) = self.central.get(&(incarnation, log)) else {
            return Err(format!("log {log} is unknown"));
        };
        let checkpoint = central.committed().unwrap_or(end);
        if checkpoint != end {
            return Err(format!("log {log}: {checkpoint} committed of {end}"));
        }
        let mut chain = end_chain;
        while let Some((_, entry)) = self
            .entries
            .get(&chain)
            .filter(|(_, e)| e.next > central.origin)
        {
            let known = central
                .records
                .range(entry.base.max(central.origin)..entry.next);
            let found: Vec<u64> = known.map(|(_, id)| *id).collect();
            let skipped = (central.origin.saturating_sub(entry.base)) as usize;
            let whole = entry.records.as_deref().unwrap_or_default();
            let is_right = found == whole[skipped.min(whole.len())..]
                || entry.is_dropped
                || (found.is_empty() && central.has_lost);
            if !is_right {
                return Err(format!(
                    "log {log}: {}..{} should be {whole:?}, is {found:?}",
                    entry.base, entry.next
                ));
            }
            chain = entry.parent;
        }
        Ok(())
    }
}

fn ids_of(block: &Block) -> Vec<u64> {
    Records::new(&block.records, block.count)
        .map(|record| {
            let value = record.expect("checked before").value.expect("has a value");
            u64::from_be_bytes(value[..8].try_into().expect("eight bytes"))
        })
        .collect()
}

/// The entries from `piece.chain` back to the first at or below `base`, newest first.
fn history<'a>(
    entries: &'a BTreeMap<u64, (usize, Entry)>,
    log: usize,
    piece: &Piece,
) -> Result<Vec<&'a Entry>, String> {
    let mut found = Vec::new();
    let mut chain = piece.chain;
    let mut next = piece.next_offset;
    while next > piece.base_offset {
        let (of, entry) = entries
            .get(&chain)
            .ok_or_else(|| format!("log {log}: chain {chain:x} at {next} is nobody's"))?;
        if *of != log || entry.next != next {
            return Err(format!(
                "log {log}: chain {chain:x} is not of offset {next}"
            ));
        }
        found.push(entry);
        chain = entry.parent;
        next = entry.base;
    }
    Ok(found)
}

fn check_records(
    entries: &BTreeMap<u64, (usize, Entry)>,
    central: &Central,
    log: usize,
    piece: &Piece,
    blocks: &[Block],
) -> Verdict {
    let mut expected = history(entries, log, piece)?;
    expected.reverse();
    if let (Some(first), Some(checkpoint)) = (expected.first(), central.checkpoint)
        && first.parent != checkpoint.chain
    {
        return Err(format!(
            "log {log}: records from {} on do not follow the history that is committed",
            piece.base_offset
        ));
    }
    let is_same = expected.len() == blocks.len()
        && expected.iter().zip(blocks).all(|(entry, block)| {
            entry.base == block.base_offset && entry.records.as_ref() == Some(&ids_of(block))
        });
    if !is_same {
        return Err(format!(
            "log {log}: records {}..{} are not what was appended",
            piece.base_offset, piece.next_offset
        ));
    }
    Ok(())
}

/// A gap may cover only what is gone, back to a point where its history and the committed one meet.
fn check_gap(
    entries: &BTreeMap<u64, (usize, Entry)>,
    central: &Central,
    log: usize,
    piece: &Piece,
    reason: u8,
) -> Verdict {
    if reason == GAP_NOT_AT_SITE {
        return if central.has_lost {
            Ok(())
        } else {
            Err(format!(
                "log {log}: {}..{} declared not at the site, without need",
                piece.base_offset, piece.next_offset
            ))
        };
    }
    let mut chain = piece.chain;
    while let Some((of, entry)) = entries.get(&chain) {
        if *of != log || !(entry.is_dropped || entry.records.is_none()) {
            return Err(format!(
                "log {log}: a gap {}..{} covers live records {}..{}",
                piece.base_offset, piece.next_offset, entry.base, entry.next
            ));
        }
        check_split(central, log, entry, piece.base_offset)?;
        let has_met = entry.base <= piece.base_offset
            && (entry.base <= central.origin
                || central.passed.get(&entry.base) == Some(&entry.parent)
                || central.has_lost);
        if has_met {
            return Ok(());
        }
        chain = entry.parent;
    }
    Err(format!("log {log}: a gap with an unknown history"))
}

/// A gap is sent from `base` on because what it covers below is committed: it must be these very records.
fn check_split(central: &Central, log: usize, entry: &Entry, base: Offset) -> Verdict {
    let from = entry.base.max(central.origin);
    let to = entry.next.min(base);
    if from >= to || central.has_lost {
        return Ok(());
    }
    let found: Vec<u64> = central.records.range(from..to).map(|(_, id)| *id).collect();
    let records = entry.records.as_deref().unwrap_or_default();
    let skipped = (from - entry.base) as usize;
    let appended = records.get(skipped..skipped + (to - from) as usize);
    let is_same = found.is_empty() || appended == Some(&found[..]);
    if !is_same {
        return Err(format!(
            "log {log}: {from}..{to} vanished behind records of another history"
        ));
    }
    Ok(())
}
