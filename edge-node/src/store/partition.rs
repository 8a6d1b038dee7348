//! One partition's books: its three ends, its gaps and what became of every record.
//!
//! ```text
//!   start            acked                    end
//!     │ kept for local │ waiting for the hub    │
//!     │ readers        │                        │
//! ────┴───batches──────┴──batches, gaps─────────┴──►
//! ```
//! Always true, checked by [`Partition::invariants`]:
//! * `start <= acked <= end`, in offsets and in bytes; `origin <= acked`;
//! * gaps are in order and lie in `start..end`;
//! * no gap spans `acked`, `split` or, behind a split, `other`;
//! * without a split `other <= acked`, with one `acked <= split <= end` (see [`super::tracks`]);
//! * `end = committed + queued + expired + dropped_oldest + dropped_newest + damaged + deleted`.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::history;
use shared::ids::{Offset, TopicName, Track};

use super::{GapReason, Ledger, LogRange, Tracks};

/// Most gaps that one partition keeps; `drop-newest` refuses beyond it.
pub(super) const MAX_GAPS: usize = 10_000;

/// A boundary between items, with all that was ever appended before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) offset: Offset,
    pub(super) chain: u64,
    /// Logical bytes appended before it since the partition began, dropped ones included.
    pub(super) bytes: u64,
}

/// A range without records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) from: Point,
    pub(super) to: Point,
    pub(super) reason: GapReason,
    /// Readers have seen this part of it as a gap, and may have sent it. Not stored: every gap that was is
    /// taken for told after a restart.
    pub(super) told: Told,
}

/// A range of offsets, nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) from: Offset,
    pub(super) to: Offset,
}

impl Told {
    /// The smallest range that holds both.
    fn and(self, other: Self) -> Self {
        if self.from == self.to {
            other
        } else if other.from == other.to {
            self
        } else {
            Self {
                from: self.from.min(other.from),
                to: self.to.max(other.to),
            }
        }
    }
}

impl Gap {
    pub(super) fn records(&self) -> u64 {
        self.to.offset - self.from.offset
    }

    fn bytes(&self) -> u64 {
        self.to.bytes - self.from.bytes
    }

    /// A reader has seen where it ends: the hub's checkpoint may lie there.
    fn is_told(&self) -> bool {
        self.told.from < self.told.to && self.told.to == self.to.offset
    }

    /// Readers have seen all of it from this offset on.
    pub(super) fn is_told_from(&self, offset: Offset) -> bool {
        self.is_told() && self.told.from <= offset.max(self.from.offset)
    }

    /// Records that no reader has seen as a gap. Once the hub's checkpoint is past them it can only hold
    /// them as records: they were read, and sent, before they became a gap.
    fn untold(&self) -> u64 {
        self.records().saturating_sub(self.told.to - self.told.from)
    }
}

/// Records that were accepted and are not delivered, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) expired: u64,
    pub(super) oldest: u64,
    pub(super) newest: u64,
    pub(super) damaged: u64,
    pub(super) deleted: u64,
}

impl Lost {
    fn add(&mut self, reason: GapReason, records: u64) {
        match reason {
            GapReason::Expired => self.expired += records,
            GapReason::DroppedOldest => self.oldest += records,
            GapReason::DroppedNewest => self.newest += records,
            GapReason::Damaged => self.damaged += records,
            GapReason::Deleted => self.deleted += records,
        }
    }

    /// Takes records out again; returns how many there were to take.
    fn take(&mut self, reason: GapReason, records: u64) -> u64 {
        let lost = match reason {
            GapReason::Expired => &mut self.expired,
            GapReason::DroppedOldest => &mut self.oldest,
            GapReason::DroppedNewest => &mut self.newest,
            GapReason::Damaged => &mut self.damaged,
            GapReason::Deleted => &mut self.deleted,
        };
        let taken = records.min(*lost);
        *lost -= taken;
        taken
    }

    pub(super) fn total(&self) -> u64 {
        self.expired + self.oldest + self.newest + self.damaged + self.deleted
    }
}

/// The state of one partition; small, cloned for every change and put back when it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) topic: TopicName,
    pub(super) index: u32,
    /// The topic was deleted: what is left are the offsets that must not be given again, and gaps that the
    /// hub is still to be told of.
    pub(super) is_retired: bool,
    /// Grows with every stored change: of two records the higher one is the later.
    pub(super) version: u64,
    /// First offset of this incarnation.
    pub(super) origin: Offset,
    pub(super) start: Point,
    pub(super) acked: Point,
    pub(super) end: Point,
    /// The track of what lies from `acked` on, up to the split if there is one.
    pub(super) main: Track,
    /// Where the other track stands at the hub.
    pub(super) other: Point,
    /// Where the other track's part begins.
    pub(super) split: Option<Point>,
    pub(super) committed: u64,
    pub(super) lost: Lost,
    /// Store age of the last append, ms.
    pub(super) last_age_ms: u64,
    pub(super) gaps: Arc<BTreeMap<Offset, Gap>>,
    /// What was appended since the last entry of the time index; `None` when nothing was since the store was
    /// opened.
    pub(super) block: Option<Block>,
}

/// The stretch of a log behind the last entry of its time index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Bytes of the log before it.
    pub(super) bytes: u64,
    /// Store age at its first batch, ms.
    pub(super) age_ms: u64,
    /// Largest timestamp of its batches.
    pub(super) max_timestamp_ms: i64,
}

impl Partition {
    pub(super) fn new(topic: TopicName, index: u32) -> Self {
        Self {
            topic,
            index,
            is_retired: false,
            version: 0,
            origin: 0,
            start: Point::default(),
            acked: Point::default(),
            end: Point::default(),
            main: Track::First,
            other: Point::default(),
            split: None,
            committed: 0,
            lost: Lost::default(),
            last_age_ms: 0,
            gaps: Arc::default(),
            block: None,
        }
    }

    pub(super) fn range(&self) -> LogRange {
        LogRange {
            origin: self.origin,
            start: self.start.offset,
            first: self.behind_gaps(self.start.offset),
            acked: self.acked.offset,
            end: self.end.offset,
            bytes: self.end.bytes,
            tracks: Tracks {
                main: self.main,
                other: self.other.offset,
                split: self.split.map(|split| split.offset),
            },
        }
    }

    /// Moves the end past a batch; returns where it begins.
    pub(super) fn append(&mut self, crc: u32, count: u32, bytes: u64, age_ms: u64) -> Point {
        let before = self.end;
        self.end = Point {
            offset: before.offset + u64::from(count),
            chain: history::after_batch(before.chain, crc, count),
            bytes: before.bytes + bytes,
        };
        self.last_age_ms = age_ms;
        before
    }

    /// Takes a batch into the books and leaves a gap in its place.
    pub(super) fn drop_newest(&mut self, crc: u32, count: u32, age_ms: u64) -> Point {
        let from = self.append(crc, count, 0, age_ms);
        self.add_gap(from, self.end, GapReason::DroppedNewest);
        self.settle();
        from
    }

    /// What comes from here on goes by the other track; false when it has a part already, or when there is no
    /// backlog that it would pass.
    pub(super) fn split(&mut self) -> bool {
        if self.split.is_some() || self.acked.offset >= self.end.offset {
            return false;
        }
        self.split = Some(self.end);
        true
    }

    /// The offsets of a track that an acknowledgement may move it to: above the first, up to the second.
    pub(super) fn open_part(&self, track: Track) -> Option<(Offset, Offset)> {
        match self.split {
            _ if track == self.main => {
                let end = self.split.unwrap_or(self.end);
                Some((self.acked.offset, end.offset))
            }
            // what lies before the split is the main track's, and a part begins with its first offset
            Some(split) => Some((
                self.other.offset.max(split.offset.saturating_sub(1)),
                self.end.offset,
            )),
            None => None,
        }
    }

    /// Moves a track's cursor up to a boundary; false when it is there already. Records that were sent before they
    /// became a gap, and that the hub holds for all that, are no loss.
    pub(super) fn acknowledge(&mut self, track: Track, to: Point) -> bool {
        let part = self.open_part(track);
        if part.is_none_or(|(above, last)| to.offset <= above || to.offset > last) {
            return false;
        }
        if track == self.main {
            self.commit(self.acked.offset, to.offset);
            self.acked = to;
        } else if let Some(split) = self.split {
            self.commit(self.other.offset.max(split.offset), to.offset);
            self.other = to;
        }
        self.join_tracks();
        self.settle();
        true
    }

    /// The hub holds what lies between these offsets.
    fn commit(&mut self, from: Offset, to: Offset) {
        let mut gone = 0;
        for (_, gap) in self.gaps.range(from..to) {
            gone += gap.records() - self.lost.take(gap.reason, gap.untold());
        }
        self.committed += to - from - gone;
    }

    /// The main track's part is done, and the hub knows that the other track goes on behind it.
    fn join_tracks(&mut self) {
        if let Some(split) = self.split
            && self.acked.offset == split.offset
            && self.other.offset >= split.offset
        {
            self.main = self.main.other();
            self.acked = self.other;
            self.other = split;
            self.split = None;
        }
    }

    /// The part behind the split that the hub holds; empty without a split.
    fn held_behind(&self) -> (Point, Point) {
        let split = self.split.filter(|split| self.other.offset > split.offset);
        split.map_or((self.acked, self.acked), |split| (split, self.other))
    }

    /// The hub holds what stands there.
    fn is_held(&self, offset: Offset) -> bool {
        let (from, to) = self.held_behind();
        offset < self.acked.offset || (from.offset <= offset && offset < to.offset)
    }

    /// Where tracks begin and end: a gap ends there.
    pub(super) fn seams(&self) -> [Offset; 3] {
        let (from, to) = self.held_behind();
        let split = self.split.map_or(from.offset, |split| split.offset);
        [self.acked.offset, split, to.offset]
    }

    /// Lets everything before `cut` go. What was not acknowledged leaves gaps with this reason. Returns
    /// the offsets to delete.
    pub(super) fn trim(&mut self, cut: Point, reason: GapReason) -> Option<(Offset, Offset)> {
        if cut.offset <= self.start.offset || cut.offset > self.end.offset {
            return None;
        }
        let from = self.start.offset;
        self.start = if cut.offset <= self.acked.offset {
            cut
        } else {
            self.acked
        };
        let start = self.start.offset;
        Arc::make_mut(&mut self.gaps).retain(|offset, _| *offset >= start);
        if cut.offset > self.acked.offset {
            self.add_gap(self.acked, cut, reason);
        }
        self.settle();
        Some((from, cut.offset))
    }

    /// Notes that the disk lost what lies between two boundaries.
    pub(super) fn add_damage(&mut self, from: Point, to: Point) {
        self.add_gap(from, to, GapReason::Damaged);
    }

    /// The stretches of `from..to` that are no gap yet become one. What is acknowledged is no loss: the hub has
    /// the records.
    fn add_gap(&mut self, from: Point, to: Point, reason: GapReason) {
        let (held_from, held_to) = self.held_behind();
        let split = self.split.unwrap_or(held_from);
        for seam in [self.acked, split, held_to] {
            if from.offset < seam.offset && seam.offset < to.offset {
                self.add_gap(from, seam, reason);
                self.add_gap(seam, to, reason);
                return;
            }
        }
        let inside: Vec<Gap> = self
            .gaps
            .range(from.offset..to.offset)
            .map(|(_, gap)| *gap)
            .collect();
        let mut at = from;
        for gap in inside {
            self.add_stretch(at, gap.from, reason);
            at = gap.to;
        }
        self.add_stretch(at, to, reason);
    }

    fn add_stretch(&mut self, from: Point, to: Point, reason: GapReason) {
        if from.offset >= to.offset {
            return;
        }
        if !self.is_held(from.offset) {
            self.lost.add(reason, to.offset - from.offset);
        }
        let acked = self.acked.offset;
        let seams = self.seams();
        let is_crowded = self.gaps.len() >= MAX_GAPS;
        let gaps = Arc::make_mut(&mut self.gaps);
        // The end of a gap that was told stays a boundary, unless all before the gap is acknowledged: then
        // a checkpoint inside it is no riddle (the protocol sends the rest of the gap).
        let joins = |gap: &Gap| {
            gap.reason == reason && (!gap.is_told() || gap.from.offset == acked || is_crowded)
        };
        let mut gap = Gap {
            from,
            to,
            reason,
            told: Told::default(),
        };
        if let Some((_, before)) = gaps.range(..from.offset).next_back()
            && before.to.offset == from.offset
            && joins(before)
            && !seams.contains(&from.offset)
        {
            gap.from = before.from;
            gap.told = before.told;
        }
        if let Some(after) = gaps.get(&to.offset)
            && joins(after)
            && !seams.contains(&to.offset)
        {
            gap.to = after.to;
            gap.told = gap.told.and(after.told);
            gaps.remove(&to.offset);
        }
        gaps.insert(gap.from.offset, gap);
    }

    /// A reader has seen the gaps that hold these offsets, from there to their ends.
    pub(super) fn tell_gaps(&mut self, offsets: impl Iterator<Item = Offset>) {
        let gaps = Arc::make_mut(&mut self.gaps);
        for from in offsets {
            let holds = gaps.range_mut(..=from).next_back();
            if let Some((_, gap)) = holds.filter(|(_, gap)| from < gap.to.offset) {
                let to = gap.to.offset;
                gap.told = gap.told.and(Told { from, to });
            }
        }
    }

    /// An acknowledged gap at the start has told its story.
    fn settle(&mut self) {
        while let Some(gap) = self.gaps.get(&self.start.offset).copied()
            && gap.to.offset <= self.acked.offset
        {
            self.start = gap.to;
            Arc::make_mut(&mut self.gaps).remove(&gap.from.offset);
        }
    }

    /// Brings the books in order after a recovery.
    pub(super) fn settle_recovered(&mut self) {
        self.settle();
        if !self.is_balanced() {
            self.balance();
        }
        self.block = None;
    }

    /// The gap that holds this offset.
    pub(super) fn gap_at(&self, offset: Offset) -> Option<Gap> {
        let (_, gap) = self.gaps.range(..=offset).next_back()?;
        (offset < gap.to.offset).then_some(*gap)
    }

    /// The offset, or the end of the gaps that stand there.
    fn behind_gaps(&self, offset: Offset) -> Offset {
        let mut at = offset;
        while let Some(gap) = self.gap_at(at) {
            at = gap.to.offset;
        }
        at
    }

    /// A boundary known from memory.
    pub(super) fn known_point(&self, offset: Offset) -> Option<Point> {
        if let Some(point) = [self.start, self.acked, self.end, self.other]
            .into_iter()
            .chain(self.split)
            .find(|point| point.offset == offset)
        {
            return Some(point);
        }
        if let Some(gap) = self.gaps.get(&offset) {
            return Some(gap.from);
        }
        let (_, before) = self.gaps.range(..offset).next_back()?;
        (before.to.offset == offset).then_some(before.to)
    }

    /// Logical bytes stored between two boundaries.
    pub(super) fn live_bytes(&self, from: Point, to: Point) -> u64 {
        let gone: u64 = self
            .gaps
            .range(from.offset..to.offset)
            .map(|(_, gap)| gap.bytes())
            .sum();
        to.bytes.saturating_sub(from.bytes).saturating_sub(gone)
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.live_bytes(self.start, self.end)
    }

    pub(super) fn acked_bytes(&self) -> u64 {
        self.live_bytes(self.start, self.acked)
    }

    pub(super) fn queued_bytes(&self) -> u64 {
        let (from, to) = self.held_behind();
        self.live_bytes(self.acked, self.end) - self.live_bytes(from, to)
    }

    pub(super) fn queued(&self) -> u64 {
        let (from, to) = self.held_behind();
        self.live_records(self.acked, self.end) - self.live_records(from, to)
    }

    /// Records between two boundaries that are no gap.
    fn live_records(&self, from: Point, to: Point) -> u64 {
        let gaps = self.gaps.range(from.offset..to.offset);
        let gone: u64 = gaps.map(|(_, gap)| gap.records()).sum();
        to.offset - from.offset - gone
    }

    pub(super) fn add_to(&self, ledger: &mut Ledger) {
        ledger.accepted += self.end.offset;
        ledger.committed += self.committed;
        ledger.queued += self.queued();
        ledger.queued_bytes += self.queued_bytes();
        ledger.expired += self.lost.expired;
        ledger.dropped_oldest += self.lost.oldest;
        ledger.dropped_newest += self.lost.newest;
        ledger.damaged += self.lost.damaged;
        ledger.deleted += self.lost.deleted;
    }

    /// Makes the ledger add up after a recovery that could not read everything: what nothing else
    /// explains was damaged.
    fn balance(&mut self) {
        let explained = self.committed + self.queued() + self.lost.total();
        self.lost.damaged += self.end.offset.saturating_sub(explained);
        let mut excess = explained.saturating_sub(self.end.offset);
        for number in [
            &mut self.lost.damaged,
            &mut self.committed,
            &mut self.lost.expired,
            &mut self.lost.oldest,
            &mut self.lost.newest,
            &mut self.lost.deleted,
        ] {
            let taken = excess.min(*number);
            *number -= taken;
            excess -= taken;
        }
    }

    /// True when the books add up.
    fn is_balanced(&self) -> bool {
        self.end.offset == self.committed + self.queued() + self.lost.total()
    }

    /// Whether the tracks fit the ends.
    pub(super) fn are_tracks_in_order(&self) -> bool {
        let (acked, end) = (self.acked.offset, self.end.offset);
        match self.split {
            None => self.other.offset <= acked,
            Some(split) => {
                let split = split.offset;
                acked <= split && split <= end && self.other.offset <= end
            }
        }
    }

    pub(super) fn invariants(&self) {
        debug_assert!(self.start.offset <= self.acked.offset, "{self:?}");
        debug_assert!(self.acked.offset <= self.end.offset, "{self:?}");
        debug_assert!(self.origin <= self.acked.offset, "{self:?}");
        debug_assert!(self.is_balanced(), "ledger: {self:?}");
        debug_assert!(self.are_tracks_in_order(), "{self:?}");
        let mut at = self.start.offset;
        for gap in self.gaps.values() {
            debug_assert!(gap.from.offset >= at, "gap before {at}: {self:?}");
            debug_assert!(gap.from.offset < gap.to.offset, "{self:?}");
            for seam in self.seams() {
                debug_assert!(gap.to.offset <= seam || gap.from.offset >= seam, "{self:?}");
            }
            at = gap.to.offset;
        }
        debug_assert!(at <= self.end.offset, "{self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimming_unsent_records_keeps_earlier_gaps_with_their_reason() {
        let mut p = log(&[10, 10]);
        p.drop_newest(7, 5, 0);
        p.append(8, 10, 100, 0);
        let (cut, oldest) = (p.end, GapReason::DroppedOldest);
        p.append(9, 1, 100, 0);
        assert_eq!(p.trim(cut, oldest), Some((0, 35)));
        let seen: Vec<_> = p
            .gaps
            .values()
            .map(|g| (g.from.offset, g.to.offset, g.reason))
            .collect();
        let newest = GapReason::DroppedNewest;
        assert_eq!(seen, [(0, 20, oldest), (20, 25, newest), (25, 35, oldest)]);
        assert_eq!(
            (p.queued(), p.queued_bytes(), p.stored_bytes()),
            (1, 100, 100)
        );
        p.invariants();
    }

    #[test]
    fn gaps_of_one_reason_grow_together() {
        let mut p = log(&[1, 1, 1, 1]);
        for offset in 1..4 {
            let cut = Point {
                offset,
                chain: offset,
                bytes: offset * 100,
            };
            p.trim(cut, GapReason::Expired);
        }
        assert_eq!(p.gaps.len(), 1);
        assert_eq!((p.lost.expired, p.queued_bytes()), (3, 100));
        p.invariants();
    }

    #[test]
    fn the_end_of_a_gap_that_was_told_stays_a_boundary() {
        let mut p = log(&[10]);
        p.drop_newest(7, 5, 0);
        p.tell_gaps([10].into_iter());
        p.drop_newest(8, 5, 0);
        p.drop_newest(9, 5, 0);
        let ends = |p: &Partition| p.gaps.values().map(|g| g.to.offset).collect::<Vec<_>>();
        assert_eq!(ends(&p), [15, 25]);
        let boundary = p.gaps[&10].from;
        p.acknowledge(Track::First, boundary);
        p.tell_gaps([15].into_iter());
        p.drop_newest(9, 5, 0);
        assert_eq!(ends(&p), [15, 25, 30], "not behind another gap");
        p.invariants();
    }

    #[test]
    fn a_gap_at_the_cursor_grows_whoever_saw_it() {
        let mut p = log(&[10]);
        p.acknowledge(Track::First, p.end);
        p.drop_newest(7, 5, 0);
        p.tell_gaps([10].into_iter());
        p.drop_newest(8, 5, 0);
        assert_eq!((p.gaps.len(), p.gaps[&10].to.offset), (1, 20));
        assert!(!p.gaps[&10].is_told());
        p.invariants();
    }

    #[test]
    fn an_acknowledged_gap_at_the_start_goes() {
        let mut p = log(&[5]);
        let cut = p.end;
        p.append(3, 5, 100, 0);
        p.trim(cut, GapReason::Expired);
        assert_eq!(p.range().start, 0);
        p.tell_gaps([0].into_iter());
        assert!(p.acknowledge(Track::First, cut));
        assert!(p.gaps.is_empty());
        assert_eq!((p.range().start, p.committed), (5, 0));
        assert!(
            !p.acknowledge(Track::First, cut),
            "the cursor moves up only"
        );
        p.invariants();
    }

    #[test]
    fn what_the_hub_holds_although_it_became_a_gap_is_committed() {
        let mut p = log(&[10, 10, 10]);
        let (cut, whole) = (p.end, |p: &Partition| {
            (p.committed, p.lost.oldest, p.queued())
        });
        p.append(1, 5, 100, 0);
        p.trim(cut, GapReason::DroppedOldest);
        assert_eq!(whole(&p), (0, 30, 5));
        let mut all_sent = p.clone();
        assert!(all_sent.acknowledge(Track::First, all_sent.end));
        assert_eq!(
            whole(&all_sent),
            (35, 0, 0),
            "all was sent before it was dropped"
        );
        p.tell_gaps([10].into_iter());
        assert!(p.acknowledge(Track::First, cut));
        assert_eq!(
            whole(&p),
            (10, 20, 5),
            "the hub went on inside the gap, at 10"
        );
        p.invariants();
    }

    #[test]
    fn a_part_of_a_gap_that_was_told_stays_a_loss_when_the_gap_grows() {
        let mut p = log(&[10, 10]);
        let first = Point {
            offset: 10,
            chain: 1,
            bytes: 100,
        };
        p.trim(first, GapReason::DroppedOldest);
        p.tell_gaps([0].into_iter());
        let end = p.end;
        p.trim(end, GapReason::DroppedOldest);
        assert_eq!(p.gaps.len(), 1);
        p.acknowledge(Track::First, end);
        assert_eq!((p.committed, p.lost.oldest), (10, 10));
        p.invariants();
    }

    #[test]
    fn damage_among_acknowledged_records_is_no_loss() {
        let mut p = log(&[10, 10, 10]);
        let point = |offset: u64| Point {
            offset,
            chain: 1,
            bytes: offset * 10,
        };
        p.acknowledge(Track::First, point(20));
        p.add_damage(point(10), point(30));
        assert_eq!((p.lost.damaged, p.committed, p.queued()), (10, 20, 0));
        assert_eq!(p.gaps.len(), 2, "no gap spans the cursor");
        p.invariants();
    }

    fn log(counts: &[u32]) -> Partition {
        let mut p = Partition::new(TopicName::new("t").unwrap(), 0);
        for count in counts {
            p.append(1, *count, 100, 0);
        }
        p
    }
}
