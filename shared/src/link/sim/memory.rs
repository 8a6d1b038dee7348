//! A codec that remembers, and notices at once when its two ends are not at the same place.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::rng::Rng;
use crate::batch::{
    BatchError, ChainCodec, Encoder, Memories, Memory, NoneCodec, Outgoing, Packed, ZstdEncoder,
    next_position,
};
use crate::ids::Incarnation;
use crate::link::Begin;
use crate::wire::{Anchor, MAX_ANCHORS};

pub(super) const CODEC: u8 = 7;

/// Puts its position before each payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counting(u64);

impl ChainCodec for Counting {
    fn codec(&self) -> u8 {
        CODEC
    }

    fn encode(&mut self, raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        let payload = [&self.0.to_be_bytes(), raw].concat();
        self.0 = next_position(self.0, raw);
        Ok(payload)
    }

    fn decode(&mut self, payload: &[u8], _max_raw: usize) -> Result<Bytes, BatchError> {
        let raw = payload
            .strip_prefix(&self.0.to_be_bytes())
            .ok_or(BatchError::Malformed("another position"))?;
        self.0 = next_position(self.0, raw);
        Ok(Bytes::copy_from_slice(raw))
    }

    fn position(&self) -> u64 {
        self.0
    }

    fn save(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn memory(&self) -> usize {
        8
    }
}

/// What the site remembers of one log.
#[derive(Debug)]
pub(super) struct SiteMemory {
    rng: Rng,
    codec: Option<Counting>,
    /// Newest first.
    anchors: Vec<u64>,
    zstd: Option<ZstdEncoder>,
}

impl SiteMemory {
    pub(super) fn new(seed: u64) -> Self {
        // a context costs as much as a whole run
        let has_zstd = seed.is_multiple_of(64);
        Self {
            rng: Rng::new(seed),
            codec: None,
            anchors: Vec::new(),
            zstd: has_zstd.then(|| ZstdEncoder::new(1).expect("there is memory")),
        }
    }

    pub(super) fn anchors(&self) -> Vec<Anchor> {
        let anchor = |position: &u64| Anchor {
            codec: CODEC,
            position: *position,
        };
        self.anchors.iter().map(anchor).collect()
    }

    pub(super) fn pack(&mut self, outgoing: &Outgoing<'_>, begin: Option<Begin>) -> Packed {
        match begin {
            Some(Begin::Fresh) => self.codec = None,
            Some(Begin::Anchor(anchor)) => self.codec = Some(Counting(anchor.position)),
            None => {}
        }
        if self.rng.chance(30) {
            let zstd = self.zstd.as_mut().map(|zstd| zstd as &mut dyn Encoder);
            let packed = outgoing.pack(zstd.unwrap_or(&mut NoneCodec));
            return packed.expect("bytes in memory are encoded");
        }
        let is_fresh = self.codec.is_none() || self.rng.chance(5);
        let mut codec = self.codec.filter(|_| !is_fresh).unwrap_or(Counting(1));
        let packed = outgoing.pack_chain(&mut codec, is_fresh);
        let mut packed = packed.expect("bytes in memory are encoded");
        if self.rng.chance(20) {
            packed.header.is_anchor = true;
            self.anchors.insert(0, codec.position());
            self.anchors.truncate(MAX_ANCHORS);
        }
        self.codec = Some(codec);
        packed
    }
}

/// What a hub remembers beyond sessions: in memory, so that a crash takes it.
#[derive(Debug, Default)]
pub(super) struct HubMemory {
    saved: BTreeMap<(Incarnation, usize), Vec<u64>>,
}

impl HubMemory {
    /// The first of the site's anchors that is here, counted from 1.
    pub(super) fn agree(&self, key: (Incarnation, usize), anchors: &[Anchor]) -> u8 {
        let saved = self.saved.get(&key).map_or(&[][..], Vec::as_slice);
        let is_known = |anchor: &Anchor| saved.contains(&anchor.position);
        anchors
            .iter()
            .position(is_known)
            .map_or(0, |place| place as u8 + 1)
    }
}

/// What a session remembers of one log.
#[derive(Debug, Default)]
pub(super) struct SessionMemory {
    pub(super) memory: Memory,
    pub(super) agreed: Option<u64>,
    pub(super) chain: u64,
}

/// Where one log's saved states are.
pub(super) struct Kept<'a> {
    pub(super) hub: &'a mut HubMemory,
    pub(super) key: (Incarnation, usize),
    pub(super) agreed: Option<u64>,
}

impl Memories for Kept<'_> {
    fn fresh(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>> {
        (codec == CODEC).then(|| Box::new(Counting(1)) as Box<dyn ChainCodec>)
    }

    fn agreed(&mut self, _codec: u8) -> Option<Box<dyn ChainCodec>> {
        let position = self.agreed?;
        Some(Box::new(Counting(position)))
    }

    fn keep(&mut self, codec: &dyn ChainCodec) {
        let saved = self.hub.saved.entry(self.key).or_default();
        saved.insert(0, codec.position());
        saved.truncate(2);
    }
}
