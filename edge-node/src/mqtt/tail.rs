//! The tail of the log: what is new in the mapped topics goes to the sessions that want it.
//!
//! Each batch is read and decoded once, whoever subscribes; a message for which nobody subscribes is not
//! even copied. Retained messages are made here too, in the order of the log, and written to disk with the
//! place that they were made up to.

mod fill;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use shared::ids::Offset;
use shared::record::{BatchHeader, RecordRef, Records, open};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::broker::{Broker, Subscriber};
use super::packet::Message;
use super::record::{message_of, topic_of};
use super::retained::Kept;
use super::saved;
use super::session::{Fare, Offered, Place, Positions, merge};
use super::topic_map::{RetainRule, Rule};
use crate::store::{Item, PartitionId, StateChange, StoreError};

/// Bytes of batches asked from the log at a time.
const READ_BYTES: usize = 256 * 1024;
/// Most bytes that a batch may decompress to; what the door accepts.
const MAX_UNCOMPRESSED: usize = 16 * 1024 * 1024;
/// Retained messages written at a time on start.
const RETAINED_AT_ONCE: usize = 1_000;
/// Rounds on one visit of a thread.
const ROUNDS: usize = 16;
/// Records delivered without letting others at the tail.
const CHUNK: usize = 64;
/// Bytes read after which the place of retained messages is written though none has changed.
const CURSOR_BYTES: u64 = 4 * 1024 * 1024;
/// Records passed over after which it is, when nobody wants any.
const CURSOR_RECORDS: u64 = 10_000;
/// Pause after the disk refused.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a subscription waits for the tail; then it may get a message that is older.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How far the mapped topics have been delivered.
#[derive(Debug, Default)]
pub struct Tail {
    processed: Positions,
    /// The Kafka topic of each partition.
    names: BTreeMap<PartitionId, Arc<str>>,
    /// Places up to which retained messages on disk were made.
    cursors: Positions,
    /// Kafka topics that an earlier process followed.
    followed: BTreeSet<Arc<str>>,
    /// Partitions that no earlier process followed, though they were there when this one began.
    strange: BTreeSet<PartitionId>,
    /// What a start could not write yet.
    unsaved: Vec<StateChange>,
    has_started: bool,
    bytes: u64,
}

impl Tail {
    /// With the places that an earlier process had come to, and the Kafka topics that it followed.
    #[must_use]
    pub fn new(cursors: Positions, followed: BTreeSet<Arc<str>>) -> Self {
        Self {
            cursors,
            followed,
            ..Self::default()
        }
    }

    /// The next offset of each partition.
    #[must_use]
    pub fn processed(&self) -> &Positions {
        &self.processed
    }

    /// Whether an earlier process followed a partition, or would have: it was killed before it noted that it had
    /// come to it. Only for partitions that were there on start.
    #[must_use]
    pub fn was_followed(&self, partition: PartitionId) -> bool {
        !self.strange.contains(&partition)
    }

    /// The Kafka topic of a partition.
    #[must_use]
    pub fn name(&self, partition: PartitionId) -> Option<Arc<str>> {
        self.names.get(&partition).cloned()
    }
}

/// A record that becomes a message.
struct Found<'b> {
    place: Place,
    record: RecordRef<'b>,
    timestamp_ms: i64,
}

/// Calls `found` with the records of a batch; false ends the walk.
fn walk(batch: &Bytes, partition: PartitionId, mut found: impl FnMut(Found<'_>) -> bool) {
    let Ok(header) = BatchHeader::parse(batch) else {
        return;
    };
    let Ok(records) = open(batch, &header, MAX_UNCOMPRESSED) else {
        return;
    };
    for record in Records::new(&records, header.count) {
        // it was checked when it came in
        let Ok(record) = record else { return };
        let offset = header.base_offset + u64::from(record.offset_delta);
        let timestamp_ms = if header.is_log_append_time {
            header.max_timestamp_ms
        } else {
            header
                .base_timestamp_ms
                .saturating_add(record.timestamp_delta_ms)
        };
        if !found(Found {
            place: Place { partition, offset },
            record,
            timestamp_ms,
        }) {
            return;
        }
    }
}

/// Follows the log until `stop`.
pub async fn run(broker: Arc<Broker>, stop: CancellationToken) {
    let mut changes = broker.store.changes();
    let mut unsaved: Vec<StateChange> = std::mem::take(&mut broker.tail().unsaved);
    loop {
        changes.borrow_and_update();
        let at = broker.clone();
        let round = tokio::task::spawn_blocking(move || at.tail_rounds()).await;
        let round = match round {
            Ok(Ok(round)) => round,
            Ok(Err(error)) => {
                warn!(%error, "MQTT subscribers wait: the log can't be read");
                Round::failed()
            }
            Err(error) => {
                warn!(%error, "A round of the tail failed");
                Round::failed()
            }
        };
        let (has_more, has_failed) = (round.has_more, round.has_failed);
        unsaved.extend(round.changes);
        if !unsaved.is_empty() {
            save(&broker, &mut unsaved).await;
        }
        if has_more {
            if stop.is_cancelled() {
                return;
            }
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE), if has_failed || !unsaved.is_empty() => {}
        }
    }
}

/// What came of reading on.
#[derive(Debug, Default)]
struct Round {
    /// There may be more.
    has_more: bool,
    /// A log could not be read; the others were.
    has_failed: bool,
    /// To be written.
    changes: Vec<StateChange>,
}

impl Round {
    fn failed() -> Self {
        Self {
            has_failed: true,
            ..Self::default()
        }
    }
}

/// What can't be written is kept, and written with what comes next.
async fn save(broker: &Broker, unsaved: &mut Vec<StateChange>) {
    let newest: BTreeMap<_, _> = unsaved
        .drain(..)
        .map(|change| (change.key.clone(), change))
        .collect();
    let changes: Vec<_> = newest.into_values().collect();
    let written = broker.store.put_state(changes.clone()).await;
    if !matches!(written, Ok(Ok(()))) {
        *unsaved = changes;
    }
}

impl Broker {
    /// Reads on until there is nothing more or something to be written: to go to another thread and back costs
    /// more than to look once more.
    fn tail_rounds(&self) -> Result<Round, StoreError> {
        let mut round = self.tail_round()?;
        for _ in 1..ROUNDS {
            if !round.has_more || round.has_failed || !round.changes.is_empty() {
                break;
            }
            round = self.tail_round()?;
        }
        Ok(round)
    }

    /// Reads on in every partition.
    fn tail_round(&self) -> Result<Round, StoreError> {
        self.find_partitions()?;
        let mut round = Round::default();
        let partitions: Vec<_> = self
            .tail()
            .processed
            .iter()
            .map(|(id, next)| (*id, *next))
            .collect();
        for (partition, next) in partitions {
            let end = match self.store.range(partition) {
                Ok(range) => range.end,
                Err(StoreError::UnknownPartition) => {
                    self.tail().forget(partition);
                    self.retained().passed([(partition, None)]);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if next < end && !self.skip(partition, end, &mut round.changes) {
                match self.read_on(partition, next, &mut round.changes) {
                    Ok(()) => round.has_more = true,
                    Err(error) => {
                        warn!(%error, ?partition, "MQTT subscribers of a log wait: it can't be read");
                        round.has_failed = true;
                    }
                }
            }
        }
        if self.uses_retained.load(Ordering::Acquire) {
            let tail = self.tail();
            let places = tail.processed.iter().map(|(id, next)| (*id, Some(*next)));
            self.retained().passed(places);
        }
        self.ticks.send_modify(|ticks| *ticks += 1);
        Ok(round)
    }

    /// Partitions that are not followed yet: of a topic that is new from its start, on start from the end.
    pub(super) fn find_partitions(&self) -> Result<(), StoreError> {
        for name in self.map.kafka_topics() {
            let Some(topic) = self.store.topic(name.as_str()) else {
                continue;
            };
            for partition in &topic.partitions {
                if self.tail().processed.contains_key(partition) {
                    continue;
                }
                let range = match self.store.range(*partition) {
                    Ok(range) => range,
                    Err(StoreError::UnknownPartition) => continue,
                    Err(error) => return Err(error),
                };
                let mut tail = self.tail();
                let next = if tail.has_started {
                    range.start
                } else {
                    let is_known = tail.cursors.contains_key(partition)
                        || tail.followed.contains(name.as_str());
                    if !is_known {
                        tail.strange.insert(*partition);
                    }
                    range.end
                };
                // somebody else may have found it meanwhile, and gone on
                tail.processed.entry(*partition).or_insert(next);
                tail.names.insert(*partition, Arc::from(name.as_str()));
            }
        }
        self.tail().has_started = true;
        Ok(())
    }

    /// Makes the retained messages of records that an earlier process had not come to. Blocks; on start, when
    /// nobody is there to get anything.
    pub(super) fn catch_up_retained(&self) -> Result<(), StoreError> {
        let partitions: Vec<_> = {
            let tail = self.tail();
            let place = |(id, end): (&PartitionId, &Offset)| {
                if !tail.was_followed(*id) {
                    return None;
                }
                // the log begins after what an earlier process wrote last, or it would have a place there
                let next = tail.cursors.get(id).copied().unwrap_or_default();
                Some((*id, next, *end, tail.names.get(id)?.clone()))
            };
            tail.processed.iter().filter_map(place).collect()
        };
        let mut changes = Vec::new();
        for (partition, mut next, end, name) in partitions {
            while next < end {
                let before = next;
                for item in self.store.browse(partition, next, READ_BYTES)? {
                    match item {
                        Item::Gap { to, .. } => next = next.max(to),
                        Item::Batch {
                            batch, next_offset, ..
                        } => {
                            self.retain_batch(&name, partition, &batch, &mut changes);
                            next = next.max(next_offset);
                        }
                    }
                }
                if next == before {
                    break;
                }
                if changes.len() >= RETAINED_AT_ONCE {
                    // the cursor comes behind them: without the sync they are made again
                    drop(
                        self.store
                            .put_state(std::mem::take(&mut changes))
                            .blocking_recv(),
                    );
                }
            }
            self.tail().cursors.insert(partition, end);
            changes.push(saved::cursor(partition, end));
        }
        if !self.retained().is_empty() {
            self.uses_retained.store(true, Ordering::Release);
        }
        if !changes.is_empty() {
            // without the sync it is made again
            drop(self.store.put_state(changes));
        }
        Ok(())
    }

    /// Notes which topics are followed, and from where those whose rules are new. Blocks; behind the places that
    /// sessions have in them, and before anything is acknowledged: after a crash a partition that has no place
    /// on disk began under our eyes, and all of it is to be delivered.
    pub(super) fn save_followed(&self) {
        let mut changes = Vec::new();
        {
            let mut tail = self.tail();
            let ends: Vec<_> = tail
                .strange
                .iter()
                .filter_map(|id| Some((*id, *tail.processed.get(id)?)))
                .collect();
            for (partition, end) in ends {
                tail.cursors.insert(partition, end);
                changes.push(saved::cursor(partition, end));
            }
            let names: BTreeSet<Arc<str>> = self
                .map
                .kafka_topics()
                .map(|name| Arc::from(name.as_str()))
                .collect();
            let fresh = names.difference(&tail.followed);
            changes.extend(fresh.map(|name| saved::followed(name)));
            let old = tail.followed.difference(&names);
            changes.extend(old.map(|name| saved::unfollowed(name)));
            tail.followed = names;
        }
        if changes.is_empty() {
            return;
        }
        let written = self.store.put_state(changes.clone()).blocking_recv();
        if !matches!(written, Ok(Ok(()))) {
            warn!("What MQTT follows could not be written: it is tried again");
            self.tail().unsaved = changes;
        }
    }

    fn retain_batch(
        &self,
        name: &str,
        partition: PartitionId,
        batch: &Bytes,
        changes: &mut Vec<StateChange>,
    ) {
        walk(batch, partition, |found| {
            if let Some((topic, rule)) = topic_of(&self.map, name, &found.record) {
                let message = message_of(topic, rule, found.timestamp_ms, &found.record);
                if message.retain {
                    changes.extend(self.retain(&Arc::new(message), found.place));
                }
            }
            true
        });
    }

    /// Keeps a retained message, and says what is to be written.
    fn retain(&self, message: &Arc<Message>, place: Place) -> Option<StateChange> {
        let kept = self.retained().put(message, Some(place));
        match kept {
            Kept::Stored => Some(saved::retained(message, Some(place))),
            Kept::Removed => Some(saved::forget_retained(&message.topic)),
            Kept::Nothing => None,
            Kept::Refused => {
                self.stats.not_retained.fetch_add(1, Ordering::Relaxed);
                Some(saved::forget_retained(&message.topic))
            }
        }
    }

    /// Goes to the end without reading when nobody wants anything.
    fn skip(&self, partition: PartitionId, end: Offset, changes: &mut Vec<StateChange>) -> bool {
        let mut tail = self.tail();
        // `end` was read before: what is published after a subscription lies behind it
        if self.has_readers() {
            return false;
        }
        tail.processed.insert(partition, end);
        let cursor = tail.cursors.get(&partition).copied();
        if cursor.is_none_or(|cursor| end.saturating_sub(cursor) > CURSOR_RECORDS) {
            tail.cursors.insert(partition, end);
            changes.push(saved::cursor(partition, end));
        }
        true
    }

    fn read_on(
        &self,
        partition: PartitionId,
        from: Offset,
        changes: &mut Vec<StateChange>,
    ) -> Result<(), StoreError> {
        let Some(name) = self.tail().name(partition) else {
            return Ok(());
        };
        let before = changes.len();
        for item in self.store.browse(partition, from, READ_BYTES)? {
            match item {
                Item::Gap { to, .. } => self.tail().advance(partition, to),
                Item::Batch {
                    batch, next_offset, ..
                } => {
                    self.deliver(&name, partition, from, &batch, changes);
                    let mut tail = self.tail();
                    tail.advance(partition, next_offset);
                    tail.bytes += batch.len() as u64;
                }
            }
        }
        self.ticks.send_modify(|ticks| *ticks += 1);
        let mut tail = self.tail();
        if changes.len() > before
            || tail.bytes > CURSOR_BYTES
            || !tail.cursors.contains_key(&partition)
        {
            tail.bytes = 0;
            let next = tail.processed.get(&partition).copied().unwrap_or_default();
            tail.cursors.insert(partition, next);
            changes.push(saved::cursor(partition, next));
        }
        Ok(())
    }

    fn deliver(
        &self,
        name: &str,
        partition: PartitionId,
        from: Offset,
        batch: &Bytes,
        changes: &mut Vec<StateChange>,
    ) {
        let mut chunk: Vec<(Place, Arc<Message>, RetainRule)> = Vec::with_capacity(CHUNK);
        walk(batch, partition, |found| {
            if found.place.offset < from {
                return true;
            }
            let Some((topic, rule)) = topic_of(&self.map, name, &found.record) else {
                self.stats.unmapped.fetch_add(1, Ordering::Relaxed);
                return true;
            };
            if !self.is_wanted(&topic, rule) {
                return true;
            }
            let message = message_of(topic, rule, found.timestamp_ms, &found.record);
            chunk.push((found.place, Arc::new(message), rule.retain));
            if chunk.len() == CHUNK {
                self.deliver_chunk(&mut chunk, changes);
            }
            true
        });
        self.deliver_chunk(&mut chunk, changes);
    }

    fn is_wanted(&self, topic: &str, rule: &Rule) -> bool {
        let mut is_wanted =
            rule.retain == RetainRule::Always || self.uses_retained.load(Ordering::Acquire);
        if !is_wanted {
            self.filters().find(topic, |_| is_wanted = true);
        }
        if !is_wanted {
            self.groups().find(topic, |_| is_wanted = true);
        }
        is_wanted
    }

    fn deliver_chunk(
        &self,
        chunk: &mut Vec<(Place, Arc<Message>, RetainRule)>,
        changes: &mut Vec<StateChange>,
    ) {
        // a session that goes, or that comes up with the tail, sees all of a chunk or nothing
        let mut tail = self.tail();
        for (place, message, _) in chunk.drain(..) {
            self.offer(place, &message, tail.processed());
            if message.retain {
                changes.extend(self.retain(&message, place));
            }
            tail.advance(place.partition, place.offset + 1);
        }
    }

    fn offer(&self, place: Place, message: &Arc<Message>, tail: &Positions) {
        let filters = self.filters();
        let mut found: Vec<&Subscriber> = Vec::new();
        let mut fare = Fare::new(&self.queues, None);
        filters.find(&message.topic, |subscriber| found.push(subscriber));
        found.sort_unstable_by_key(|subscriber| subscriber.session.key);
        for same in found.chunk_by(|a, b| a.session.key == b.session.key) {
            let session = &same[0].session;
            let options = same.iter().map(|subscriber| &subscriber.options);
            if let Some(delivery) = merge(message, options, &session.client_id, Some(place)) {
                let offered = session.state().offer(delivery, tail, &mut fare);
                self.count(offered);
            }
        }
        drop(filters);
        self.groups().find(&message.topic, |group| {
            self.count(group.offer(place, message, tail, &mut fare))
        });
    }

    pub(super) fn count(&self, offered: Offered) {
        if offered == Offered::Dropped {
            self.stats.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what is in the log at the moment has been delivered.
    pub(super) async fn tail_caught_up(&self) {
        let mut ticks = self.ticks.subscribe();
        // a log may be so new that the tail has not seen it; the tail says what fails
        drop(self.find_partitions());
        let ends: Positions = {
            let partitions: Vec<_> = self.tail().processed.keys().copied().collect();
            let end = |id: PartitionId| Some((id, self.store.range(id).ok()?.end));
            partitions.into_iter().filter_map(end).collect()
        };
        let reached = async {
            loop {
                ticks.borrow_and_update();
                let is_reached = {
                    let tail = self.tail();
                    ends.iter()
                        .all(|(id, end)| tail.processed.get(id).is_none_or(|next| next >= end))
                };
                if is_reached || ticks.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(CATCH_UP, reached).await.is_err() {
            warn!("A subscription did not wait for the tail");
        }
    }
}

impl Tail {
    fn advance(&mut self, partition: PartitionId, to: Offset) {
        if let Some(next) = self.processed.get_mut(&partition) {
            *next = to.max(*next);
        }
    }

    fn forget(&mut self, partition: PartitionId) {
        self.processed.remove(&partition);
        self.names.remove(&partition);
        self.cursors.remove(&partition);
    }
}
