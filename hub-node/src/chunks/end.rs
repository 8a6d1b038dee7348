//! A session's way to its site's chunks, and the hub's end of a log's chain.

use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use shared::batch::{BatchError, CODEC_LONG, ChainCodec};
use shared::dedup::{LongConfig, LongDecoder};
use shared::ids::SiteId;

use super::{SharedChunks, SiteChunks};

/// The store of a session's site, opened when it is first needed.
#[derive(Debug)]
pub(crate) struct SiteStore {
    chunks: Arc<SiteChunks>,
    site: SiteId,
    store: Option<SharedChunks>,
}

impl SiteStore {
    pub(crate) fn new(chunks: Arc<SiteChunks>, site: SiteId) -> Self {
        Self {
            chunks,
            site,
            store: None,
        }
    }

    /// A chain that begins.
    pub(crate) fn fresh(&mut self) -> Option<Box<dyn ChainCodec>> {
        self.end(LongDecoder::new(LongConfig::default()).ok()?)
    }

    /// A chain that goes on from a saved state.
    pub(crate) fn load(&mut self, saved: &[u8]) -> Option<Box<dyn ChainCodec>> {
        self.end(LongDecoder::restore(saved, LongConfig::default()).ok()?)
    }

    fn end(&mut self, decoder: LongDecoder) -> Option<Box<dyn ChainCodec>> {
        if !self.chunks.are_kept() {
            return None;
        }
        let open = || self.chunks.of(&self.site, SystemTime::now());
        let store = Arc::clone(self.store.get_or_insert_with(open));
        Some(Box::new(HubEnd { decoder, store }))
    }
}

#[derive(Debug)]
struct HubEnd {
    decoder: LongDecoder,
    store: SharedChunks,
}

impl ChainCodec for HubEnd {
    fn codec(&self) -> u8 {
        CODEC_LONG
    }

    fn encode(&mut self, _raw: &[u8]) -> Result<Vec<u8>, BatchError> {
        Err(BatchError::Malformed("this end decodes"))
    }

    fn decode(&mut self, payload: &[u8], max_raw_len: usize) -> Result<Bytes, BatchError> {
        // held for a payload: only this site's sessions want it, and one of them is open at a time
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        self.decoder.decode(payload, max_raw_len, store.as_mut())
    }

    fn position(&self) -> u64 {
        self.decoder.position()
    }

    fn save(&self) -> Vec<u8> {
        // a state that cannot be saved cannot be loaded: the chain begins anew then
        self.decoder.save().unwrap_or_default()
    }

    fn memory(&self) -> usize {
        self.decoder.memory()
    }
}
