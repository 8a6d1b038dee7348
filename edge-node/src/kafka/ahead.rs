//! Reading ahead for one connection: what its next fetch will ask for is read while the client works on the
//! last answer.
//!
//! It begins when an answer has batches of one log only, goes on where the one before ended, and there is
//! more: who catches up asks for the next piece at once. What is read is as large as an answer, comes from the
//! part of the node's memory that nobody uses ([`Egress::read_ahead`]), and is dropped when it is not asked
//! for in time. It holds batches only: the ends of the log, whether it still has them and whether the
//! client may read them are looked up when they are asked for.

use std::future::pending;
use std::time::Duration;

use shared::ids::Offset;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::fetch::{FetchRequest, Piece, Source};
use crate::egress::{Allowance, Egress};
use crate::store::{FetchLimit, PartitionId};

/// What is read ahead, and where the last answer ended.
#[derive(Debug)]
pub(super) struct Ahead {
    kept: Duration,
    ended: Option<(PartitionId, Offset)>,
    reading: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    source: Source,
    /// What the client allowed for it.
    most: usize,
    until: Instant,
    work: JoinHandle<(Option<Piece>, Allowance)>,
}

impl Ahead {
    /// Nothing yet; what is read is kept for so long.
    pub(super) const fn new(kept: Duration) -> Self {
        Self {
            kept,
            ended: None,
            reading: None,
        }
    }

    /// Takes note of an answer, and begins to read what comes behind it when that is worth it.
    pub(super) fn note(&mut self, egress: &Egress, request: &FetchRequest, source: Option<Source>) {
        self.reading = None;
        let ended = self.ended.take();
        let Some(source) = source else {
            return;
        };
        self.ended = Some((source.id, source.next));
        if ended == Some((source.id, source.from)) && source.has_more {
            let most = most_bytes(request, &source.topic, source.index);
            let until = Instant::now() + self.kept;
            self.reading = most.and_then(|most| Reading::begin(egress, source, most, until));
        }
    }

    /// What was read ahead, if it is for this request. It has to wait when the disk is not ready.
    pub(super) async fn take(&mut self, request: &FetchRequest) -> Option<(Piece, Allowance)> {
        let reading = self.reading.take()?;
        if !reading.is_for(request) {
            return None;
        }
        // a read that panicked is done again, and fails where somebody hears of it
        let (piece, mut allowance) = reading.work.await.ok()?;
        let piece = piece?;
        let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0);
        allowance.shrink(piece.bytes.len());
        (piece.bytes.len() >= min_bytes).then_some((piece, allowance))
    }

    /// Returns when what was read ahead is to be dropped. Cancel-safe.
    pub(super) async fn expired(&self) {
        match &self.reading {
            Some(reading) => sleep_until(reading.until).await,
            None => pending().await,
        }
    }

    /// Gives the memory back.
    pub(super) fn drop_piece(&mut self) {
        self.reading = None;
    }
}

impl Reading {
    fn begin(egress: &Egress, source: Source, most: usize, until: Instant) -> Option<Self> {
        let most = most.min(egress.limits().max_answer_bytes);
        let topic = egress.store().topic(&source.topic)?;
        let (id, from) = (source.id, source.next);
        let limit = FetchLimit {
            bytes: most,
            is_first_whole: true,
        };
        // the first batch is read however large it is
        let room = most.max(topic.rules.max_batch_bytes);
        let work = egress.read_ahead(room, move |store| {
            let mut bytes = Vec::with_capacity(most);
            let fetched = store.fetch(id, from, limit, &mut bytes).ok()?;
            (!bytes.is_empty()).then_some(Piece {
                id,
                from,
                next: fetched.next,
                bytes,
            })
        })?;
        Some(Self {
            source,
            most,
            until,
            work,
        })
    }

    fn is_for(&self, request: &FetchRequest) -> bool {
        let Source { topic, index, .. } = &self.source;
        let partitions = request.topics.iter().filter(|asked| asked.name == *topic);
        let mut partitions = partitions.flat_map(|asked| &asked.partitions);
        let is_next = partitions.any(|asked| {
            asked.index == *index && u64::try_from(asked.offset) == Ok(self.source.next)
        });
        is_next && most_bytes(request, topic, *index).is_some_and(|most| most >= self.most)
    }
}

/// Most bytes of a partition that a request allows for.
fn most_bytes(request: &FetchRequest, topic: &str, index: i32) -> Option<usize> {
    let mut topics = request.topics.iter().filter(|asked| asked.name == topic);
    let asked = topics.find_map(|asked| asked.partitions.iter().find(|p| p.index == index))?;
    let most = asked.max_bytes.min(request.max_bytes);
    usize::try_from(most).ok()
}
