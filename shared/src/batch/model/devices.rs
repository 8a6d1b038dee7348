//! Record keys that were seen, in the order in which their next record is due.
//!
//! A device is due one interval after its last record, where the interval is its last one. The number of
//! a key is its place in a table; the one that spoke least recently makes room.

use std::collections::HashMap;

use super::snapshot::{Reader, Saved, Writer};
use super::timing::Timing;
use crate::batch::BatchError;
use crate::batch::split::{hash_bytes, mix};

/// Longest key with a number.
pub(super) const MAX_KEY_LEN: usize = 512;
const MAX_DEVICES: usize = 2048;

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// `None` is the null key.
    pub(super) key: Option<Vec<u8>>,
    pub(super) hash: u64,
    pub(super) timing: Timing,
    used: u32,
}

/// The table.
#[derive(Debug, Clone)]
pub(super) struct Devices {
    known: Vec<Option<Device>>,
    by_hash: HashMap<u64, u16>,
    /// Numbers by when they are due.
    order: Vec<u16>,
    uses: u32,
    bytes: usize,
    max_bytes: usize,
}

const OVERHEAD: usize = size_of::<Device>() + 24;

impl Devices {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            known: Vec::new(),
            by_hash: HashMap::new(),
            order: Vec::new(),
            uses: 0,
            bytes: 0,
            max_bytes: max_bytes.max(4 * (MAX_KEY_LEN + OVERHEAD)),
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes
    }

    /// Keys with a number.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Bits of a number: all numbers are below two to this power.
    pub(super) fn id_bits(&self) -> u32 {
        usize::BITS - self.known.len().leading_zeros()
    }

    pub(super) fn at(&self, id: u16) -> Option<&Device> {
        self.known.get(usize::from(id))?.as_ref()
    }

    pub(super) fn find(&self, key: Option<&[u8]>) -> Option<u16> {
        let id = *self.by_hash.get(&key_hash(key))?;
        let device = self.at(id)?;
        (device.key.as_deref() == key).then_some(id)
    }

    /// Gives a number to a key of at most [`MAX_KEY_LEN`] bytes.
    pub(super) fn insert(&mut self, key: Option<&[u8]>) -> u16 {
        let len = key.map_or(0, <[u8]>::len) + OVERHEAD;
        while self.order.len() >= MAX_DEVICES || self.bytes + len > self.max_bytes {
            if !self.forget_oldest() {
                break;
            }
        }
        self.uses = self.uses.wrapping_add(1);
        let device = Device {
            key: key.map(<[u8]>::to_vec),
            hash: key_hash(key),
            timing: Timing::default(),
            used: self.uses,
        };
        self.bytes += len;
        let hash = device.hash;
        let at = match self.known.iter().position(Option::is_none) {
            Some(at) => {
                self.known[at] = Some(device);
                at
            }
            None => {
                self.known.push(Some(device));
                self.known.len() - 1
            }
        };
        let id = u16::try_from(at).unwrap_or(0);
        self.by_hash.insert(hash, id);
        self.order.push(id);
        self.settle(id);
        id
    }

    fn forget_oldest(&mut self) -> bool {
        let uses = self.uses;
        let oldest = self
            .known
            .iter()
            .enumerate()
            .filter_map(|(at, device)| Some((uses.wrapping_sub(device.as_ref()?.used), at)))
            .max();
        let Some((_, at)) = oldest else {
            return false;
        };
        let Some(device) = self.known[at].take() else {
            return false;
        };
        let id = u16::try_from(at).unwrap_or(0);
        self.bytes -= device.key.as_ref().map_or(0, Vec::len) + OVERHEAD;
        if self.by_hash.get(&device.hash) == Some(&id) {
            self.by_hash.remove(&device.hash);
        }
        self.order.retain(|other| *other != id);
        true
    }

    /// The device spoke.
    pub(super) fn spoke(&mut self, id: u16, timing: Timing) {
        self.uses = self.uses.wrapping_add(1);
        let uses = self.uses;
        let Some(Some(device)) = self.known.get_mut(usize::from(id)) else {
            return;
        };
        device.used = uses;
        device.timing = timing;
        self.settle(id);
    }

    /// How many others are due before this device.
    pub(super) fn rank(&self, id: u16) -> usize {
        self.order
            .iter()
            .position(|other| *other == id)
            .unwrap_or(0)
    }

    /// The device of a rank.
    pub(super) fn ranked(&self, rank: usize) -> Option<u16> {
        self.order.get(rank).copied()
    }

    fn due(&self, id: u16) -> (i64, u16) {
        let due = self.at(id).map_or(0, |device| device.timing.due_ms());
        (due, id)
    }

    fn settle(&mut self, id: u16) {
        let at = self.rank(id);
        self.order.remove(at);
        let due = self.due(id);
        let at = self.order.partition_point(|other| self.due(*other) < due);
        self.order.insert(at, id);
    }
}

pub(super) fn key_hash(key: Option<&[u8]>) -> u64 {
    key.map_or(1, |key| mix(hash_bytes(key), 0x6b))
}

impl Saved for Devices {
    fn save(&self, to: &mut Writer) {
        to.u32(self.uses);
        to.len(self.known.len());
        for device in &self.known {
            let Some(device) = device else {
                to.u8(2);
                continue;
            };
            to.u8(u8::from(device.key.is_some()));
            to.bytes(device.key.as_deref().unwrap_or_default());
            device.timing.save(to);
            to.u32(device.used);
        }
        self.order.iter().for_each(|id| to.u16(*id));
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        const BAD: BatchError = BatchError::Malformed("saved state has a bad key");
        self.uses = from.u32()?;
        let mut used = 0;
        for id in 0..from.len(MAX_DEVICES)? {
            let kind = from.u8()?;
            if kind == 2 {
                self.known.push(None);
                continue;
            }
            let bytes = from.bytes(MAX_KEY_LEN)?;
            let key = (kind == 1).then_some(bytes);
            let hash = key_hash(key);
            let mut timing = Timing::default();
            timing.load(from)?;
            self.known.push(Some(Device {
                key: key.map(<[u8]>::to_vec),
                hash,
                timing,
                used: from.u32()?,
            }));
            self.by_hash
                .insert(hash, u16::try_from(id).map_err(|_| BAD)?);
            self.bytes += bytes.len() + OVERHEAD;
            used += 1;
        }
        for _ in 0..used {
            let id = from.u16()?;
            if self.at(id).is_none() || self.order.contains(&id) {
                return Err(BAD);
            }
            self.order.push(id);
        }
        Ok(())
    }
}
