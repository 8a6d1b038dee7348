//! The site's store as the protocol sees it: logs of batches and gaps, with a chain over both.

use std::collections::VecDeque;

use bytes::Bytes;

use super::memory::SiteMemory;
use super::oracle::{Entry, Oracle};
use super::rng::{Rng, mix};
use crate::batch::{Block, BlockWriter, Outgoing, read_blocks};
use crate::history;
use crate::ids::{Incarnation, Offset};
use crate::link::{Begin, ReadResult};
use crate::record::put_record;
use crate::wire::LogRange;

pub(super) const DROPPED_OLDEST: u8 = 2;
pub(super) const DROPPED_NEWEST: u8 = 3;
pub(super) const DAMAGED: u8 = 4;

/// What lies at some offsets.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Ids of the records.
    Records(Vec<u64>),
    Gap(u8),
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) base: Offset,
    pub(super) next: Offset,
    pub(super) chain: u64,
    pub(super) kind: Kind,
}

/// One log on disk. `start <= acked <= end`.
#[derive(Debug, Clone, Default)]
pub(super) struct DiskLog {
    pub(super) origin: Offset,
    pub(super) start: Offset,
    start_chain: u64,
    pub(super) acked: Offset,
    acked_synced: Offset,
    pub(super) end: Offset,
    end_chain: u64,
    items: VecDeque<Item>,
}

/// All that survives a crash of the site.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) incarnation: Incarnation,
    pub(super) logs: Vec<DiskLog>,
}

impl Disk {
    /// As the store does it: what is not acknowledged is sent again under a new name.
    pub(super) fn renew(&mut self, incarnation: Incarnation, oracle: &mut Oracle) {
        self.incarnation = incarnation;
        for (number, log) in self.logs.iter_mut().enumerate() {
            log.origin = log.acked;
            oracle.begin(incarnation, number, log.origin);
        }
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        for log in &mut self.logs {
            if rng.chance(50) {
                log.acked = log.acked_synced.max(log.start).max(log.origin);
            }
            log.acked_synced = log.acked;
        }
    }
}

impl DiskLog {
    pub(super) fn range(&self) -> LogRange {
        LogRange {
            origin: self.origin,
            start: self.start.max(self.origin),
            end: self.end,
        }
    }

    fn push(&mut self, number: usize, len: u64, kind: Kind, salt: u64, oracle: &mut Oracle) {
        // what a plain batch adds to the history, or something else
        let plain = match &kind {
            Kind::Records(ids) => history::after_plain(self.end_chain, &[block_of(self.end, ids)]),
            Kind::Gap(_) => None,
        };
        let other = mix(self.end_chain ^ mix(self.end ^ salt.rotate_left(17))) | 1;
        let item = Item {
            base: self.end,
            next: self.end + len,
            chain: plain.filter(|_| !salt.is_multiple_of(5)).unwrap_or(other),
            kind,
        };
        oracle.register(
            number,
            Entry {
                base: item.base,
                next: item.next,
                parent: self.end_chain,
                chain: item.chain,
                records: match &item.kind {
                    Kind::Records(ids) => Some(ids.clone()),
                    Kind::Gap(_) => None,
                },
                is_dropped: false,
            },
        );
        self.end = item.next;
        self.end_chain = item.chain;
        self.items.push_back(item);
    }

    /// A synced append: also makes the cursor durable.
    pub(super) fn append(&mut self, number: usize, ids: Vec<u64>, oracle: &mut Oracle) {
        self.acked_synced = self.acked;
        let salt = ids[0];
        self.push(number, ids.len() as u64, Kind::Records(ids), salt, oracle);
    }

    pub(super) fn drop_newest(&mut self, number: usize, len: u64, salt: u64, oracle: &mut Oracle) {
        self.push(number, len, Kind::Gap(DROPPED_NEWEST), salt, oracle);
    }

    /// Deletes up to `most` acknowledged items.
    pub(super) fn trim(&mut self, most: u64) {
        for _ in 0..most {
            let Some(first) = self.items.front().filter(|item| item.next <= self.acked) else {
                return;
            };
            self.start = first.next;
            self.start_chain = first.chain;
            self.items.pop_front();
        }
    }

    /// Drops unsent records: acknowledged ones go first, what follows becomes one gap.
    pub(super) fn drop_oldest(&mut self, count: usize, oracle: &mut Oracle) {
        self.trim(u64::MAX);
        let count = count.min(self.items.len());
        let dropped: Vec<Item> = self.items.drain(..count).collect();
        let (Some(first), Some(last)) = (dropped.first(), dropped.last()) else {
            return;
        };
        for item in &dropped {
            oracle.dropped(item.base, item.chain);
        }
        self.items.push_front(Item {
            base: first.base,
            next: last.next,
            chain: last.chain,
            kind: Kind::Gap(DROPPED_OLDEST),
        });
    }

    /// The disk loses one item.
    pub(super) fn damage(&mut self, place: usize, oracle: &mut Oracle) {
        let place = place % self.items.len().max(1);
        if let Some(item) = self.items.get_mut(place) {
            item.kind = Kind::Gap(DAMAGED);
            oracle.dropped(item.base, item.chain);
        }
    }

    pub(super) fn chain_at(&self, offset: Offset) -> Option<u64> {
        if offset == self.start {
            return Some(self.start_chain);
        }
        let place = self.items.partition_point(|item| item.next < offset);
        let item = self.items.get(place).filter(|item| item.next == offset)?;
        Some(item.chain)
    }

    pub(super) fn read(
        &self,
        from: Offset,
        max_bytes: u32,
        known: u64,
        begin: Option<Begin>,
        memory: &mut SiteMemory,
    ) -> ReadResult {
        let place = self.items.partition_point(|item| item.next <= from);
        let Some(first) = self.items.get(place) else {
            return ReadResult::Nothing;
        };
        if let Kind::Gap(reason) = first.kind {
            return ReadResult::Gap {
                from: first.base,
                to: first.next,
                reason,
                chain: first.chain,
            };
        }
        let mut writer = BlockWriter::default();
        let (mut next_offset, mut chain) = (first.base, 0);
        for item in self.items.iter().skip(place) {
            let Kind::Records(ids) = &item.kind else {
                break;
            };
            let block = block_of(item.base, ids);
            let len = writer.raw_len() + block.records.len() + 16;
            if writer.raw_len() > 0 && len > max_bytes as usize {
                break;
            }
            writer.push(&block).expect("items are contiguous");
            (next_offset, chain) = (item.next, item.chain);
        }
        let raw = writer.finish();
        let packed = memory.pack(
            &Outgoing {
                raw: &raw,
                next_offset,
                chain,
            },
            begin,
        );
        let blocks = read_blocks(&raw.clone().into(), first.base, next_offset);
        let blocks = blocks.expect("what was written can be read");
        ReadResult::Records {
            base_offset: first.base,
            next_offset,
            chain,
            is_chain_known: history::after_plain(known, &blocks) == Some(chain),
            header: packed.header,
            payload: packed.payload,
        }
    }
}

fn block_of(base_offset: Offset, ids: &[u64]) -> Block {
    let mut records = Vec::new();
    for (delta, id) in (0..).zip(ids) {
        let mut value = id.to_be_bytes().to_vec();
        value.resize(8 + (*id % 64) as usize, 0);
        put_record(&mut records, delta, 0, None, Some(&value), &[]);
    }
    Block {
        base_offset,
        count: ids.len() as u32,
        base_timestamp_ms: 1_000 + ids[0] as i64,
        is_log_append_time: false,
        records: Bytes::from(records),
    }
}
