//! All that both ends of a columnar chain remember, the zstd stream aside.

use std::sync::Arc;

use super::super::split::Template;
use super::dictionary::Dictionary;
use super::slots::Slots;
use crate::wire::{Reader, WireError, put_varint, put_zigzag};

/// Number of the null key; other keys have their id plus one.
pub(super) const NULL_KEY: u32 = 0;

/// What is remembered of one key.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeyState {
    pub(super) timestamp_ms: i64,
    pub(super) delta_ms: i64,
    pub(super) was_seen: bool,
    /// Number of the key that came after it.
    pub(super) next: u32,
    /// Number of its last template, 0 for none.
    pub(super) template: u32,
}

/// What is remembered of one template.
#[derive(Debug, Clone, Default)]
pub(super) struct TemplateState {
    pub(super) template: Option<Arc<Template>>,
    /// Number of the template that came after it for the same key.
    pub(super) next: u32,
    /// Where its records of this payload are gathered.
    pub(super) group: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) keys: Dictionary,
    /// By number: the null key, then by id.
    pub(super) key_states: Vec<KeyState>,
    pub(super) last_key: u32,
    pub(super) timestamp_ms: i64,
    pub(super) templates: Dictionary,
    /// By id.
    pub(super) template_states: Vec<TemplateState>,
    pub(super) slots: Slots,
}

impl State {
    /// Empty, for about `max_bytes` of memory.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            keys: Dictionary::new(max_bytes / 8),
            key_states: vec![KeyState::default()],
            last_key: NULL_KEY,
            timestamp_ms: 0,
            templates: Dictionary::new(max_bytes / 8),
            template_states: Vec::new(),
            slots: Slots::new(max_bytes / 2),
        }
    }

    /// Bytes of memory, about.
    pub(super) fn memory(&self) -> usize {
        let templates = self.template_states.iter();
        let templates: usize = templates
            .map(|state| state.template.as_ref().map_or(0, |t| t.memory()))
            .sum();
        self.keys.memory()
            + self.templates.memory()
            + self.slots.memory()
            + templates
            + size_of_val(self.key_states.as_slice())
            + size_of_val(self.template_states.as_slice())
    }

    pub(super) fn key_state(&mut self, number: u32) -> &mut KeyState {
        let at = usize::try_from(number).unwrap_or(0);
        let at = if at < self.key_states.len() { at } else { 0 };
        &mut self.key_states[at]
    }

    /// Adds a key; without room for it it goes as the null key's neighbour, number 0.
    pub(super) fn add_key(&mut self, key: &[u8]) -> u32 {
        let Some(number) = self.keys.insert(key).and_then(|id| id.checked_add(1)) else {
            return NULL_KEY;
        };
        self.key_states
            .resize(self.keys.len() + 1, KeyState::default());
        *self.key_state(number) = KeyState::default();
        number
    }

    /// Adds a template that was checked; its number, or 0 when it is too long to keep.
    pub(super) fn add_template(&mut self, template: Arc<Template>) -> u32 {
        let Some(id) = self.templates.insert(template.bytes()) else {
            return 0;
        };
        self.template_states
            .resize(self.templates.len(), TemplateState::default());
        if let Some(state) = self.template_state(id + 1) {
            *state = TemplateState {
                template: Some(template),
                ..TemplateState::default()
            };
        }
        id + 1
    }

    pub(super) fn template_state(&mut self, number: u32) -> Option<&mut TemplateState> {
        let id = usize::try_from(number.checked_sub(1)?).ok()?;
        self.template_states.get_mut(id)
    }

    /// The template that should come after the last one of a key.
    pub(super) fn expected_template(&mut self, key: u32) -> u32 {
        let last = self.key_state(key).template;
        self.template_state(last).map_or(0, |state| state.next)
    }

    /// A record of this key had this template.
    pub(super) fn saw_template(&mut self, key: u32, number: u32) {
        let last = std::mem::replace(&mut self.key_state(key).template, number);
        if let Some(state) = self.template_state(last) {
            state.next = number;
        }
    }

    /// Appends all of it.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        self.keys.save(out);
        for state in &self.key_states {
            put_zigzag(out, state.timestamp_ms);
            put_zigzag(out, state.delta_ms);
            out.push(u8::from(state.was_seen));
            put_varint(out, state.next.into());
            put_varint(out, state.template.into());
        }
        put_varint(out, self.last_key.into());
        put_zigzag(out, self.timestamp_ms);
        self.templates.save(out);
        for state in &self.template_states {
            put_varint(out, state.next.into());
        }
        self.slots.save(out);
    }

    /// What [`Self::save`] wrote, into an empty one of the same size.
    pub(super) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        self.keys.load(reader)?;
        self.key_states.clear();
        for _ in 0..=self.keys.len() {
            self.key_states.push(KeyState {
                timestamp_ms: reader.zigzag()?,
                delta_ms: reader.zigzag()?,
                was_seen: reader.u8()? != 0,
                next: reader.varint_u32()?,
                template: reader.varint_u32()?,
            });
        }
        self.last_key = reader.varint_u32()?;
        self.timestamp_ms = reader.zigzag()?;
        self.templates.load(reader)?;
        for id in 0..self.templates.len() {
            let bytes = u32::try_from(id).ok().and_then(|id| self.templates.get(id));
            let template = match bytes {
                None => None,
                Some(bytes) => Some(Arc::new(
                    Template::new(bytes).ok_or(WireError::Malformed("a template is broken"))?,
                )),
            };
            self.template_states.push(TemplateState {
                template,
                next: reader.varint_u32()?,
                group: None,
            });
        }
        self.slots.load(reader)
    }
}
