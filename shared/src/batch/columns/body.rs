//! The column bytes of a payload, before zstd.
//!
//! ```text
//! flags  n       keys           timestamps   blocks    headers      templates        slots
//! u8     varint  unless all as  a token for  if they   if there     unless all as    by template,
//!                expected       each record  are odd   are any      expected         column, record
//!
//! key        0 as expected, 1 length bytes: a new one, else its number + 2 (null: 2)
//! template   0 as expected, 1 length bytes: a new one, 2 length + 1 bytes: the value as it is (0: null),
//!            else its number + 2; where values are packed, 2 (length * 2 + packed) + 1 bytes
//! ```
//! Flags: bits 0 and 1 blocks (0 one, 1 one a record, 2 listed), 2 headers, 3 keys as expected, 4 templates
//! as expected, 5 timestamps after the record before instead of the key's last, 6 some values as they are are packed
//! ([`super::super::split::ihex`]).

use std::sync::Arc;

use super::super::split::{BlockStart, Template, hash_bytes, mix};
use super::slots::Place;
use super::state::{KeyState, NULL_KEY, State};

pub(super) const FLAG_BLOCK_EACH: u8 = 1;
pub(super) const FLAG_BLOCKS_LISTED: u8 = 2;
pub(super) const FLAG_HEADERS: u8 = 4;
pub(super) const FLAG_KEYS_EXPECTED: u8 = 8;
pub(super) const FLAG_TEMPLATES_EXPECTED: u8 = 16;
pub(super) const FLAG_TIMES_IN_ORDER: u8 = 32;
pub(super) const FLAG_PACKED: u8 = 64;

pub(super) const CODE_EXPECTED: u64 = 0;
pub(super) const CODE_NEW: u64 = 1;
/// Numbers of keys, and of templates from 1 on, come behind this.
pub(super) const CODE_NUMBER: u64 = 2;
/// Numbers of templates begin at 1, so that this is not one.
pub(super) const CODE_RAW: u64 = 2;

/// Column of header names at a place; values are one further.
pub(super) const HEADER_COLUMN: u64 = 0x4844_5253;

/// Records of one template, in order.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) template: Arc<Template>,
    /// What else than the key names its slots.
    pub(super) about: u64,
    pub(super) records: Vec<usize>,
    number: u32,
}

impl Group {
    /// Where a slot of it stands, given the hash of the slot that names it.
    pub(super) fn place(&self, key: u64, element: Option<u64>, timestamp_ms: i64) -> Place {
        let about = mix(self.about, key);
        Place {
            about: element.map_or(about, |element| mix(about, element)),
            timestamp_ms,
        }
    }
}

/// Groups of a payload.
#[derive(Debug, Default)]
pub(super) struct Groups {
    pub(super) all: Vec<Group>,
}

impl Groups {
    /// Files a record under a template, known by number or not kept at all.
    pub(super) fn file(
        &mut self,
        state: &mut State,
        number: u32,
        template: &Arc<Template>,
        record: usize,
    ) {
        let known = state.template_state(number).and_then(|state| state.group);
        if let Some(group) = known.and_then(|at| self.all.get_mut(at)) {
            group.records.push(record);
            return;
        }
        if let Some(state) = state.template_state(number) {
            state.group = Some(self.all.len());
        }
        self.all.push(Group {
            template: Arc::clone(template),
            about: if template.is_json() {
                0
            } else {
                hash_bytes(template.bytes())
            },
            records: vec![record],
            number,
        });
    }

    /// Forgets which records had which template.
    pub(super) fn dissolve(self, state: &mut State) {
        for group in self.all {
            if let Some(state) = state.template_state(group.number) {
                state.group = None;
            }
        }
    }
}

/// Hash of a key for contexts.
pub(super) fn key_hash(key: Option<&[u8]>) -> u64 {
    key.map_or(0, hash_bytes)
}

impl State {
    /// Number of the key that should come next.
    pub(super) fn expected_key(&mut self) -> u32 {
        let last = self.last_key;
        self.key_state(last).next
    }

    /// A record had the key of this number.
    pub(super) fn saw_key(&mut self, number: u32) {
        let last = self.last_key;
        self.key_state(last).next = number;
        self.last_key = number;
        if number != NULL_KEY {
            self.keys.touch(number - 1);
        }
    }

    /// When a record of this key should come: after the key's last, and after the record before.
    pub(super) fn expected_times(&mut self, key: u32) -> (i64, i64) {
        let before = self.timestamp_ms;
        let key = self.key_state(key);
        let by_key = if key.delta_ms == 0 {
            before
        } else {
            key.timestamp_ms.wrapping_add(key.delta_ms)
        };
        (by_key, before)
    }

    /// A record of this key has this timestamp.
    pub(super) fn saw_time(&mut self, key: u32, timestamp_ms: i64) {
        self.timestamp_ms = timestamp_ms;
        let key = self.key_state(key);
        let delta_ms = timestamp_ms.wrapping_sub(key.timestamp_ms);
        *key = KeyState {
            timestamp_ms,
            delta_ms: if key.was_seen { delta_ms } else { 0 },
            was_seen: true,
            ..*key
        };
    }
}

/// True for the block of a payload that is only one, or of a record that is alone in it.
pub(super) fn is_plain(block: &BlockStart, first_timestamp_ms: i64) -> bool {
    !block.is_log_append_time && block.base_timestamp_ms == first_timestamp_ms
}
