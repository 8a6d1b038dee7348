//! Templates that were seen, each with the last few records made from it.
//!
//! A number stands for a template until it is replaced by the one that was used least recently. Both the
//! bytes of all templates and the numbers in all remembered records are bounded.

use std::collections::HashMap;

use super::snapshot::{Reader, Saved, Writer};
use crate::batch::BatchError;
use crate::batch::split::{SplitLimits, Template, hash_bytes};

/// Most records remembered of one template.
pub(super) const MAX_RECORDS: usize = 32;
const MAX_TEMPLATES: usize = 512;
/// The unit of values in remembered records that are texts.
pub(super) const TEXT_UNIT: u8 = 254;

/// A slot's value in a remembered record: the unit and the number, or what stands for a text.
pub(super) type Cell = (u8, i64);

/// A template and the last records made from it, slot by slot.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) template: Template,
    hash: u64,
    used: u32,
    /// Most records; 0 when there is no room.
    depth: usize,
    /// Devices of the records, up to `depth`.
    pub(super) devices: Vec<u64>,
    /// Place of the oldest record once there are `depth`.
    next: usize,
    units: Vec<u8>,
    numbers: Vec<i64>,
}

impl Known {
    /// One that is used once and remembers nothing.
    pub(super) fn transient(template: Template) -> Self {
        Self {
            hash: 0,
            used: 0,
            depth: 0,
            devices: Vec::new(),
            next: 0,
            units: Vec::new(),
            numbers: Vec::new(),
            template,
        }
    }

    /// Place of the record `age` records ago.
    #[inline]
    pub(super) fn back(&self, age: usize) -> usize {
        let len = self.devices.len();
        (self.next + 2 * len - 1 - age) % len
    }

    /// Hash of the template.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// The values of a slot in all records.
    #[inline]
    pub(super) fn cells(&self, slot: usize) -> impl Iterator<Item = Cell> {
        let len = self.devices.len();
        let start = slot * self.depth;
        let units = self.units.get(start..start + len).unwrap_or_default();
        let numbers = self.numbers.get(start..start + len).unwrap_or_default();
        units.iter().copied().zip(numbers.iter().copied())
    }

    fn remember(&mut self, device: u64, cells: &[Cell]) {
        if self.depth == 0 {
            return;
        }
        if self.numbers.is_empty() {
            self.units = vec![0; cells.len() * self.depth];
            self.numbers = vec![0; cells.len() * self.depth];
        }
        let place = self.next;
        if self.devices.len() < self.depth {
            self.devices.push(device);
        } else if let Some(oldest) = self.devices.get_mut(place) {
            *oldest = device;
        }
        for (slot, (unit, number)) in cells.iter().enumerate() {
            self.units[slot * self.depth + place] = *unit;
            self.numbers[slot * self.depth + place] = *number;
        }
        self.next = (place + 1) % self.depth;
    }

    fn cells_reserved(&self) -> usize {
        self.depth * self.template.columns().len()
    }

    fn memory(&self) -> usize {
        // itself, its devices and its place among the hashes
        self.template.memory() + size_of::<Option<Self>>() + self.depth * 8 + 32
    }
}

/// The table.
#[derive(Debug, Clone)]
pub(super) struct Templates {
    known: Vec<Option<Known>>,
    by_hash: HashMap<u64, u32>,
    uses: u32,
    bytes: usize,
    max_bytes: usize,
    /// Cells that may still be remembered.
    spare_cells: usize,
    max_cells: usize,
}

impl Templates {
    pub(super) fn new(max_bytes: usize, cell_bytes: usize) -> Self {
        Self {
            known: Vec::new(),
            by_hash: HashMap::new(),
            uses: 0,
            bytes: 0,
            max_bytes,
            spare_cells: cell_bytes / 9,
            max_cells: cell_bytes / 9,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes + (self.max_cells - self.spare_cells) * 9
    }

    /// Numbers given so far: all numbers are below.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// True when a template of this length may be kept.
    pub(super) fn accepts(&self, bytes: usize, slots: usize) -> bool {
        bytes + slots * 24 + 256 <= self.max_bytes / 2
    }

    /// The number of a template.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let id = *self.by_hash.get(&hash_bytes(bytes))?;
        let known = self.at(id)?;
        (known.template.bytes() == bytes).then_some(id)
    }

    pub(super) fn at(&self, id: u32) -> Option<&Known> {
        self.known.get(id as usize)?.as_ref()
    }

    /// Marks as used, and takes it out for as long as its record is coded.
    pub(super) fn take(&mut self, id: u32) -> Option<Known> {
        self.uses = self.uses.wrapping_add(1);
        let uses = self.uses;
        let mut known = self.known.get_mut(id as usize)?.take()?;
        known.used = uses;
        Some(known)
    }

    /// Puts back what was taken out, with the record made from it.
    pub(super) fn put_back(&mut self, id: u32, mut known: Known, device: u64, cells: &[Cell]) {
        known.remember(device, cells);
        if let Some(place) = self.known.get_mut(id as usize) {
            *place = Some(known);
        }
    }

    fn depth(&self, slots: usize) -> usize {
        if slots == 0 || slots > 512 {
            return 0;
        }
        (self.spare_cells / 2 / slots).min(MAX_RECORDS)
    }

    /// Gives a number to a template, perhaps that of one which is forgotten for it. The caller has asked
    /// whether it is accepted.
    pub(super) fn insert(&mut self, template: Template) -> u32 {
        let hash = hash_bytes(template.bytes());
        self.uses = self.uses.wrapping_add(1);
        let slots = template.columns().len();
        let mut known = Known {
            hash,
            used: self.uses,
            depth: 0,
            devices: Vec::new(),
            next: 0,
            units: Vec::new(),
            numbers: Vec::new(),
            template,
        };
        let need = known.memory() + MAX_RECORDS * 8;
        let mut free = None;
        while self.bytes + need > self.max_bytes
            || (free.is_none() && self.known.len() >= MAX_TEMPLATES)
        {
            let Some(id) = self.forget_oldest() else {
                break;
            };
            free = Some(id);
        }
        known.depth = self.depth(slots);
        self.spare_cells -= known.cells_reserved();
        self.bytes += known.memory();
        let vacant = || self.known.iter().position(Option::is_none);
        let place = free.map(|id| id as usize).or_else(vacant);
        let id = match place {
            Some(place) => {
                self.known[place] = Some(known);
                place
            }
            None => {
                self.known.push(Some(known));
                self.known.len() - 1
            }
        };
        let id = u32::try_from(id).unwrap_or(0);
        self.by_hash.insert(hash, id);
        id
    }

    fn forget_oldest(&mut self) -> Option<u32> {
        let uses = self.uses;
        let (at, _) = self
            .known
            .iter()
            .enumerate()
            .filter_map(|(at, known)| Some((at, uses.wrapping_sub(known.as_ref()?.used))))
            .max_by_key(|(at, age)| (*age, *at))?;
        let known = self.known[at].take()?;
        self.bytes -= known.memory();
        self.spare_cells += known.cells_reserved();
        let id = u32::try_from(at).ok()?;
        if self.by_hash.get(&known.hash) == Some(&id) {
            self.by_hash.remove(&known.hash);
        }
        Some(id)
    }
}

impl Saved for Templates {
    fn save(&self, to: &mut Writer) {
        to.u32(self.uses);
        to.len(self.known.len());
        for known in &self.known {
            let Some(known) = known else {
                to.bytes(&[]);
                continue;
            };
            to.bytes(known.template.bytes());
            to.u32(known.used);
            to.len(known.depth);
            to.len(known.next);
            to.len(known.devices.len());
            known.devices.iter().for_each(|device| to.u64(*device));
            if !known.devices.is_empty() {
                known.units.iter().for_each(|unit| to.u8(*unit));
                known.numbers.iter().for_each(|number| to.i64(*number));
            }
        }
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        const BAD: BatchError = BatchError::Malformed("saved state has a bad template");
        self.uses = from.u32()?;
        for id in 0..from.len(MAX_TEMPLATES)? {
            let bytes = from.bytes(self.max_bytes)?;
            if bytes.is_empty() {
                self.known.push(None);
                continue;
            }
            let template = Template::within(bytes, SplitLimits::LARGE).ok_or(BAD)?;
            let slots = template.columns().len();
            let used = from.u32()?;
            let depth = from.len(MAX_RECORDS)?;
            let next = from.len(depth.saturating_sub(1))?;
            let len = from.len(depth)?;
            self.spare_cells = self.spare_cells.checked_sub(depth * slots).ok_or(BAD)?;
            let cells = if len == 0 { 0 } else { depth * slots };
            let hash = hash_bytes(template.bytes());
            let known = Known {
                template,
                hash,
                used,
                depth,
                devices: (0..len).map(|_| from.u64()).collect::<Result<_, _>>()?,
                next,
                units: (0..cells).map(|_| from.u8()).collect::<Result<_, _>>()?,
                numbers: (0..cells).map(|_| from.i64()).collect::<Result<_, _>>()?,
            };
            self.bytes += known.memory();
            self.known.push(Some(known));
            self.by_hash
                .insert(hash, u32::try_from(id).map_err(|_| BAD)?);
        }
        Ok(())
    }
}
