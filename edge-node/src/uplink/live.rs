//! What the link is told of logs and their tracks, and when new records of a topic with `live_first` are to pass its
//! backlog. No I/O but the store's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::ids::{Offset, TopicPartition, Track};
use shared::link::Sender;

use super::chains::AnchorBook;
use super::worker::handle_of;
use crate::config::TopicsConfig;
use crate::store::{PartitionId, Store};

/// Records that the hub lacks for so long are a backlog. It is longer than what a healthy link takes for a batch,
/// and the order between two tracks is not given up for less.
const BEHIND: Duration = Duration::from_secs(10);
/// Ends of a log that are remembered; an even number.
const MAX_ENDS: usize = 32;

/// Tells the sender of new logs and of those that grew.
pub(super) fn tell_logs(
    sender: &mut Sender,
    store: &dyn Store,
    topics: &TopicsConfig,
    book: &AnchorBook,
    now: Duration,
) {
    for log in store.logs() {
        let Ok(range) = store.range(log.id) else {
            continue;
        };
        let settings = topics.settings(log.topic.as_str());
        let has_two = settings.live_first || range.tracks.is_used();
        for track in Track::BOTH {
            let handle = handle_of(log.id, track);
            let (declared, acked) = range.of_track(track);
            if sender.log(handle).is_some() {
                sender.log_grew(handle, declared.end, now);
            } else if has_two || track == Track::First {
                let place = TopicPartition {
                    topic: log.topic.clone(),
                    partition: log.partition,
                    track,
                };
                sender.add_log(handle, place, settings.class, declared, acked);
                if has_two {
                    sender.pair_track(handle);
                }
                sender.offer_anchors(handle, book.of(handle));
            }
        }
    }
}

/// Logs of topics with `live_first` whose new records are to pass a backlog. Not where the hub does not take both
/// tracks: the one that it refuses would keep its records for good.
pub(super) fn to_split(
    sender: &Sender,
    store: &dyn Store,
    topics: &TopicsConfig,
    backlogs: &Backlogs,
    now: Duration,
) -> Vec<PartitionId> {
    let mut there = HashSet::new();
    let mut behind = Vec::new();
    for log in store.logs() {
        if !topics.settings(log.topic.as_str()).live_first {
            continue;
        }
        let Ok(range) = store.range(log.id) else {
            continue;
        };
        there.insert(log.id);
        let is_behind = backlogs.observe(log.id, range.acked, range.end, now);
        let is_taken = |track| sender.is_taken(handle_of(log.id, track));
        if is_behind && range.tracks.split.is_none() && Track::BOTH.into_iter().all(is_taken) {
            behind.push(log.id);
        }
    }
    backlogs.keep_only(&there);
    behind
}

/// How far the logs of such topics are behind, from one session to the next. Bounded by the store's partitions: those
/// that are deleted are forgotten.
#[derive(Debug, Clone, Default)]
pub(super) struct Backlogs(Arc<Mutex<HashMap<PartitionId, Backlog>>>);

impl Backlogs {
    /// The hub lacks `acked..end`. True when the oldest of it has waited too long and records get through again: what
    /// comes before that waits for the link and not for a backlog, and belongs to it.
    pub(super) fn observe(
        &self,
        partition: PartitionId,
        acked: Offset,
        end: Offset,
        now: Duration,
    ) -> bool {
        let mut logs = self.lock();
        logs.entry(partition).or_default().observe(acked, end, now)
    }

    fn keep_only(&self, there: &HashSet<PartitionId>) {
        self.lock().retain(|id, _| there.contains(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PartitionId, Backlog>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One log's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Backlog {
    /// What the hub had when it was looked at last, and when that was.
    acked: Option<Offset>,
    looked_at: Option<Duration>,
    /// The log's ends that the hub has not come to, and since when what lies before each may be there: since the look
    /// before the one that saw it. What was there at the first look is of no known age.
    ends: VecDeque<(Offset, Option<Duration>)>,
}

impl Backlog {
    fn observe(&mut self, acked: Offset, end: Offset, now: Duration) -> bool {
        let before = self.acked.replace(acked);
        let is_moving = before.is_some_and(|before| acked > before);
        let since = self.looked_at.replace(now);
        if self.ends.back().is_none_or(|(last, _)| end > *last) {
            self.ends.push_back((end, since));
        }
        while self.ends.front().is_some_and(|(end, _)| *end <= acked) {
            self.ends.pop_front();
        }
        if self.ends.len() >= MAX_ENDS {
            // what lies before one that is left out counts as younger than it is
            let mut place = 0;
            self.ends.retain(|_| {
                place += 1;
                place == 1 || place % 2 == 0
            });
        }
        let is_old =
            |since: Option<Duration>| since.is_none_or(|since| now.saturating_sub(since) >= BEHIND);
        is_moving && self.ends.front().is_some_and(|(_, since)| is_old(*since))
    }
}

#[cfg(test)]
mod tests;
