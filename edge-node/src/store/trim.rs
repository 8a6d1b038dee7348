//! What retention lets go, and where it cuts: at entries of the time index, so that deletion comes in
//! few large ranges.

use super::disk::{Disk, DiskError, Op};
use super::draft::Draft;
use super::partition::{Partition, Point};
use super::{GapReason, OnFull, PartitionId, Topic, retention};

impl<D: Disk> Draft<'_, D> {
    /// Applies a topic's limits as far as `on_full` allows without an append to judge.
    pub(super) fn sweep_topic(&mut self, topic: &Topic) -> Result<(), DiskError> {
        if let Some(retention_ms) = topic.rules.retention_ms {
            let now = self.book.record.age.now_ms;
            if let Some(cutoff) = now.checked_sub(retention_ms) {
                for id in &topic.partitions {
                    self.expire(*id, cutoff)?;
                }
            }
        }
        let usage = self.usage(topic);
        if let Some(bytes) = retention::excess_of(usage.topic, usage.topic_limit) {
            self.free_acked(&topic.partitions, bytes)?;
        }
        let usage = self.usage(topic);
        if let Some(bytes) = retention::excess_of(usage.topic, usage.topic_limit)
            && topic.rules.on_full == OnFull::DropOldest
        {
            self.drop_oldest(&topic.partitions, bytes)?;
        }
        Ok(())
    }

    /// Applies the node's quota.
    pub(super) fn sweep_node(&mut self) -> Result<(), DiskError> {
        match retention::excess_of(self.stored_bytes, self.limits.quota_bytes) {
            Some(bytes) => self.free_acked_of_all(bytes),
            None => Ok(()),
        }
    }

    /// The disk is nearly full, whoever fills it: acknowledged records go, and when there are none the
    /// oldest of topics that say so.
    pub(super) fn relieve(&mut self, bytes: u64) -> Result<(), DiskError> {
        if self.acked_bytes > 0 {
            return self.free_acked_of_all(bytes);
        }
        let book = self.book;
        for topic in book.topics.values() {
            if topic.rules.on_full == OnFull::DropOldest {
                self.drop_oldest(&topic.partitions, bytes)?;
            }
        }
        Ok(())
    }

    fn expire(&mut self, id: PartitionId, cutoff_ms: u64) -> Result<(), DiskError> {
        let Some(p) = self.partition(id).filter(|p| p.start.offset < p.end.offset) else {
            return Ok(());
        };
        let mut cut = p.start;
        if p.last_age_ms <= cutoff_ms {
            cut = p.end;
        } else {
            let (from, to) = (p.start.offset, p.end.offset);
            self.disk.index(id, from, to, &mut |entry| {
                let is_old = entry.age_ms <= cutoff_ms;
                if is_old {
                    cut = entry.point;
                }
                is_old
            })?;
        }
        self.trim(id, cut, GapReason::Expired);
        Ok(())
    }

    /// Lets acknowledged records of all topics go, about `bytes` of them.
    pub(super) fn free_acked_of_all(&mut self, bytes: u64) -> Result<(), DiskError> {
        let mut ids: Vec<PartitionId> = self.book.partitions().map(|(id, _)| id).collect();
        ids.sort_unstable();
        self.free_acked(&ids, bytes)
    }

    pub(super) fn free_acked(&mut self, ids: &[PartitionId], bytes: u64) -> Result<(), DiskError> {
        self.free(
            ids,
            bytes,
            Partition::acked_bytes,
            |p| p.acked,
            GapReason::DroppedOldest,
        )
    }

    /// Lets the oldest records go, sent or not, about `bytes` of them.
    pub(super) fn drop_oldest(&mut self, ids: &[PartitionId], bytes: u64) -> Result<(), DiskError> {
        self.free(
            ids,
            bytes,
            Partition::stored_bytes,
            |p| p.end,
            GapReason::DroppedOldest,
        )
    }

    /// Trims the partitions that hold most first, until `bytes` are free.
    fn free(
        &mut self,
        ids: &[PartitionId],
        bytes: u64,
        size: fn(&Partition) -> u64,
        limit: fn(&Partition) -> Point,
        reason: GapReason,
    ) -> Result<(), DiskError> {
        let goal = self.stored_bytes.saturating_sub(bytes);
        let mut order: Vec<(u64, PartitionId)> = ids
            .iter()
            .filter_map(|id| Some((size(self.partition(*id)?), *id)))
            .filter(|(size, _)| *size > 0)
            .collect();
        order.sort_unstable_by_key(|(size, id)| (std::cmp::Reverse(*size), *id));
        for (_, id) in order {
            if self.stored_bytes <= goal {
                break;
            }
            let Some(p) = self.partition(id) else {
                continue;
            };
            let cut = self.cut_for(id, p, self.stored_bytes - goal, limit(p))?;
            self.trim(id, cut, reason);
        }
        Ok(())
    }

    /// The first known boundary, at most `limit`, with `bytes` stored before it.
    fn cut_for(
        &self,
        id: PartitionId,
        p: &Partition,
        bytes: u64,
        limit: Point,
    ) -> Result<Point, DiskError> {
        let mut cut = limit;
        self.disk
            .index(id, p.start.offset, limit.offset, &mut |entry| {
                let is_enough = p.live_bytes(p.start, entry.point) >= bytes;
                if is_enough {
                    cut = entry.point;
                }
                !is_enough
            })?;
        Ok(cut)
    }

    pub(super) fn trim(&mut self, partition: PartitionId, cut: Point, reason: GapReason) {
        // a boundary inside a gap is none
        let cut = match self.partition(partition).and_then(|p| p.gap_at(cut.offset)) {
            Some(gap) => gap.from,
            None => cut,
        };
        if let Some((from, to)) = self.edit(partition, |p| p.trim(cut, reason)) {
            self.push(Op::Delete {
                partition,
                from,
                to,
            });
        }
    }
}
