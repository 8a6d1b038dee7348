//! What a session's codecs remember of its logs, within a bound.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::batch::{
    CODEC_LONG, ChainCodec, ChainLimits, Decoders, Incoming, Memories, Memory, OpenError, Opened,
    load_chain, new_chain,
};
use shared::link::Delivered;
use shared::wire::{Anchor, DataContent, Handle};

use super::states::{CodecStates, Saved, StateKey};
use crate::chunks::SiteStore;

/// Codecs of one session may take so much; beyond, the least recently used forget, at a cost in bytes.
const MAX_SESSION_BYTES: usize = 64 << 20;

/// What an encoder would spend: a decoder need not know.
const ANY_LEVEL: i32 = 3;

/// The codecs of one session.
#[derive(Debug)]
pub(super) struct LogMemories {
    states: Arc<CodecStates>,
    chunks: SiteStore,
    max_raw: usize,
    decoders: Decoders,
    logs: BTreeMap<Handle, LogMemory>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct LogMemory {
    key: StateKey,
    memory: Memory,
    /// What both ends agreed on, until it is used. Its state stays where it is kept.
    agreed: Option<Anchor>,
    /// The history before what comes next; 0: not known.
    chain: u64,
    bytes: usize,
    used: u64,
}

impl LogMemories {
    /// Payloads decode to `max_raw` bytes at most.
    pub(super) fn new(states: Arc<CodecStates>, chunks: SiteStore, max_raw: usize) -> Self {
        Self {
            states,
            chunks,
            max_raw,
            decoders: Decoders::default(),
            logs: BTreeMap::new(),
            bytes: 0,
            uses: 0,
        }
    }

    /// A log was told where to go on: with this history, and this place of its codec.
    pub(super) fn begin(
        &mut self,
        handle: Handle,
        key: StateKey,
        chain: u64,
        agreed: Option<Anchor>,
    ) {
        let log = LogMemory {
            key,
            memory: Memory::default(),
            agreed,
            chain,
            bytes: 0,
            used: 0,
        };
        self.logs.insert(handle, log);
    }

    /// Decodes and checks what comes next of a log.
    ///
    /// # Errors
    /// [`OpenError`]: the log must begin again from here, or the session must end.
    pub(super) fn open(&mut self, delivered: &Delivered) -> Result<Opened, OpenError> {
        let handle = delivered.header.handle;
        let Some(log) = self.logs.get_mut(&handle) else {
            let unknown = shared::batch::BatchError::Malformed("a log without a checkpoint");
            return Err(OpenError::Broken(unknown));
        };
        self.uses += 1;
        log.used = self.uses;
        let opened = match delivered.header.content {
            DataContent::Records(header) => log.memory.open(
                &Incoming {
                    header,
                    payload: &delivered.payload,
                    base_offset: delivered.base_offset,
                    next_offset: delivered.next_offset,
                    chain_before: log.chain,
                    chain: delivered.header.chain,
                    max_raw: self.max_raw,
                },
                &mut self.decoders,
                &mut Kept {
                    states: &self.states,
                    chunks: &mut self.chunks,
                    key: &log.key,
                    agreed: &mut log.agreed,
                },
            ),
            DataContent::Gap { .. } => Ok(Opened {
                blocks: Vec::new(),
                chain: delivered.header.chain.unwrap_or(0),
            }),
        };
        let (before, after) = (log.bytes, log.memory.bytes());
        log.bytes = after;
        if let Ok(opened) = &opened {
            log.chain = opened.chain;
        }
        self.account(before, after);
        self.stay_within_bounds(handle);
        opened
    }

    fn account(&mut self, before: usize, after: usize) {
        self.bytes = self.bytes + after - before;
        self.states.account(before, after);
    }

    /// The log that was just used keeps what it remembers.
    fn stay_within_bounds(&mut self, current: Handle) {
        while self.bytes > MAX_SESSION_BYTES {
            let others = self
                .logs
                .iter_mut()
                .filter(|(handle, _)| **handle != current);
            let oldest = others.filter(|(_, log)| log.bytes > 0);
            let Some((_, log)) = oldest.min_by_key(|(_, log)| log.used) else {
                return;
            };
            log.memory.forget();
            let before = std::mem::take(&mut log.bytes);
            self.account(before, 0);
        }
    }
}

impl Drop for LogMemories {
    fn drop(&mut self) {
        self.states.account(self.bytes, 0);
    }
}

/// Where one log's states come from.
struct Kept<'a> {
    states: &'a CodecStates,
    chunks: &'a mut SiteStore,
    key: &'a StateKey,
    agreed: &'a mut Option<Anchor>,
}

impl Memories for Kept<'_> {
    fn fresh(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>> {
        *self.agreed = None;
        if codec == CODEC_LONG {
            return self.chunks.fresh();
        }
        new_chain(codec, ChainLimits::default(), ANY_LEVEL).ok()
    }

    fn agreed(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>> {
        let anchor = self.agreed.take().filter(|anchor| anchor.codec == codec)?;
        let (_, saved) = self.states.agree(self.key, &[anchor])?;
        let limits = ChainLimits::default();
        let loaded = if codec == CODEC_LONG {
            self.chunks.load(&saved.state)?
        } else {
            load_chain(codec, &saved.state, limits, ANY_LEVEL).ok()?
        };
        (loaded.position() == saved.anchor.position).then_some(loaded)
    }

    fn keep(&mut self, codec: &dyn ChainCodec) {
        let saved = Saved {
            anchor: Anchor {
                codec: codec.codec(),
                position: codec.position(),
            },
            state: codec.save().into(),
        };
        self.states.keep(self.key, saved);
    }
}
