//! A fetch between its request and its answer: it waits until there is enough, or until its time is up.
//!
//! While it waits it holds the request only. Whether the logs have grown is known from memory; they are
//! read when that is enough for an answer. What needs no disk is answered without leaving the runtime's threads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::ahead::Ahead;
use super::api::Header;
use super::fetch::{self, Assembled, FetchRequest, Piece};
use super::offsets::{self, AtTime, EpochEnd, Question};
use super::throttle::told_ms;
use crate::egress::{Allowance, Egress, ReadFailed};
use crate::quota::{Flow, Meter};
use crate::store::{FetchLimit, LogRange, PartitionId, Store};

/// Longest time that a fetch waits for records, whatever it asks.
const LONGEST_WAIT_MS: i32 = 300_000;
/// Partitions of a request that are looked up on the runtime's threads; more would keep others waiting.
const FEW: usize = 64;
/// Of the node's memory an answer has one of so many shares while others wait for some.
const SHARES: usize = 64;

/// A fetch that waits for its turn.
#[derive(Debug)]
pub(super) struct PendingFetch {
    header: Header,
    request: Arc<FetchRequest>,
    deadline: Instant,
    meter: Meter,
}

/// The response, and what it holds of the node's budget until it is sent.
#[derive(Debug)]
pub(super) struct FetchAnswer {
    pub(super) bytes: Vec<u8>,
    pub(super) allowance: Option<Allowance>,
    /// What the client was told to wait before it asks for more.
    pub(super) throttle: Option<Duration>,
}

impl FetchAnswer {
    fn new(mut read: Assembled, allowance: Option<Allowance>, throttle: Option<Duration>) -> Self {
        if let Some(wait) = throttle {
            read.set_throttle(told_ms(wait));
        }
        Self {
            bytes: read.bytes,
            allowance,
            throttle,
        }
    }
}

/// What the logs have for a request.
#[derive(Debug)]
struct Looked {
    read: Assembled,
    allowance: Option<Allowance>,
    has_room: bool,
}

impl PendingFetch {
    /// The time that it may wait begins now.
    pub(super) fn new(header: &Header, request: FetchRequest, meter: Meter) -> Self {
        let wait_ms = request.max_wait_ms.clamp(0, LONGEST_WAIT_MS).unsigned_abs();
        Self {
            header: *header,
            request: Arc::new(request),
            deadline: Instant::now() + Duration::from_millis(u64::from(wait_ms)),
            meter,
        }
    }

    /// Waits until there is enough to send, the time is up, or `stop`. For its part of the node's memory it
    /// waits for `patience`.
    ///
    /// # Errors
    /// [`ReadFailed`]: close the connection.
    pub(super) async fn settle(
        self,
        egress: &Egress,
        ahead: &mut Ahead,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<FetchAnswer, ReadFailed> {
        if let Some(wait) = self.meter.wait(Flow::Consume) {
            // as Kafka does: no records now, and when to ask again
            let looked = self.read(egress, patience, 0).await?;
            return Ok(FetchAnswer::new(looked.read, None, Some(wait)));
        }
        let most = self.meter.at_once(Flow::Consume);
        let mut changes = egress.store().changes();
        let piece = ahead.take(&self.request).await;
        let mut piece = piece.filter(|(piece, _)| piece.bytes.len() <= most);
        loop {
            // what comes from here on is noticed below
            changes.borrow_and_update();
            let Looked {
                read,
                allowance,
                has_room,
            } = match self.look(egress, piece.take()) {
                Some(looked) => looked,
                None => self.read(egress, patience, most).await?,
            };
            let min_bytes = usize::try_from(self.request.min_bytes).unwrap_or(0);
            let is_due = Instant::now() >= self.deadline || stop.is_cancelled();
            // without room there is nothing to wait for either
            let is_complete = read.is_worth(min_bytes) || !has_room;
            if is_due || is_complete {
                let throttle = self.meter.count(Flow::Consume, read.data_bytes);
                let source = read.source.clone().filter(|_| throttle.is_none());
                ahead.note(egress, &self.request, source);
                return Ok(FetchAnswer::new(read, allowance, throttle));
            }
            // one with records is read again, and holds nothing until then
            drop(allowance);
            let missing = min_bytes.saturating_sub(read.data_bytes);
            let empty = (read.data_bytes == 0).then_some(read.bytes);
            let logs = Logs {
                store: &**egress.store(),
                before: read.logs,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = logs.grow(missing, &mut changes) => {}
                () = sleep_until(self.deadline) => {}
            }
            if let Some(bytes) = empty.filter(|_| logs.are_unchanged()) {
                return Ok(FetchAnswer {
                    bytes,
                    allowance: None,
                    throttle: None,
                });
            }
        }
    }

    /// The answer, if it takes nothing from the disk: `piece` was read ahead, or there is nothing to read.
    fn look(&self, egress: &Egress, piece: Option<(Piece, Allowance)>) -> Option<Looked> {
        let topics = self.request.topics.iter();
        let partitions: usize = topics.map(|topic| topic.partitions.len()).sum();
        if partitions > FEW {
            return None;
        }
        let (piece, allowance) = piece.unzip();
        let (store, piece) = (&**egress.store(), piece.as_ref());
        let read = fetch::assemble_from_memory(store, &self.header, &self.request, piece)?;
        Some(Looked {
            read,
            allowance,
            has_room: true,
        })
    }

    /// Reads the logs as far as there is room, and `most` bytes; without any, only their ends.
    async fn read(
        &self,
        egress: &Egress,
        patience: Duration,
        most: usize,
    ) -> Result<Looked, ReadFailed> {
        let asked = usize::try_from(self.request.max_bytes).unwrap_or(0);
        let mut bytes = asked.min(egress.limits().max_answer_bytes).min(most);
        if egress.is_short() {
            // soon taken, also by who is slow
            bytes = bytes.min(egress.limits().max_bytes / SHARES);
        }
        // the first batch is sent however large it is
        let room = bytes.max(self.largest_batch(&**egress.store()));
        let mut allowance = if most > 0 {
            egress.allow(room, patience).await
        } else {
            None
        };
        let limit = FetchLimit {
            bytes: if allowance.is_some() { bytes } else { 0 },
            is_first_whole: allowance.is_some(),
        };
        let (header, request) = (self.header, Arc::clone(&self.request));
        let read = egress
            .read(move |store| fetch::assemble(store, &header, &request, limit))
            .await?;
        if let Some(allowance) = &mut allowance {
            allowance.shrink(read.bytes.len());
        }
        Ok(Looked {
            read,
            has_room: allowance.is_some(),
            allowance,
        })
    }

    fn largest_batch(&self, store: &dyn Store) -> usize {
        let topics = self.request.topics.iter();
        let known = topics.filter_map(|topic| store.topic(&topic.name));
        known
            .map(|topic| topic.rules.max_batch_bytes)
            .max()
            .unwrap_or(0)
    }
}

/// Logs that a fetch waits for, as they were when they were read.
struct Logs<'a> {
    store: &'a dyn Store,
    before: Vec<(PartitionId, LogRange)>,
}

impl Logs<'_> {
    /// Returns when so many bytes were appended to them.
    async fn grow(&self, bytes: usize, changes: &mut watch::Receiver<u64>) {
        let wanted = u64::try_from(bytes).unwrap_or(u64::MAX).max(1);
        while changes.changed().await.is_ok() {
            if self.grown_bytes() >= wanted {
                return;
            }
        }
        // the store is gone: so is the node, in a moment
        std::future::pending().await
    }

    fn grown_bytes(&self) -> u64 {
        let grown = self.before.iter().map(|(id, before)| {
            let now = self.store.range(*id);
            now.map_or(u64::MAX, |now| now.bytes.saturating_sub(before.bytes))
        });
        grown.fold(0, u64::saturating_add)
    }

    fn are_unchanged(&self) -> bool {
        let mut logs = self.before.iter();
        logs.all(|(id, before)| self.store.range(*id).as_ref() == Ok(before))
    }
}

/// A question that the store answers at once, though it may have to read for it.
#[derive(Debug)]
pub(super) enum Ask {
    ListOffsets(Header, Question<AtTime>),
    EpochEnds(Header, Question<EpochEnd>),
}

impl Ask {
    /// The response.
    ///
    /// # Errors
    /// [`ReadFailed`]: close the connection.
    pub(super) async fn answer(self, egress: &Egress) -> Result<Vec<u8>, ReadFailed> {
        egress
            .read(move |store| match &self {
                Self::ListOffsets(header, asked) => offsets::answer_at_time(store, header, asked),
                Self::EpochEnds(header, asked) => offsets::answer_epoch_end(store, header, asked),
            })
            .await
    }
}
