//! What the link is told of logs and their tracks, and when new records of a topic with `live_first` are to pass its
//! backlog. No I/O but the store's.

use std::collections::HashMap;
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

/// How far the logs of such topics are behind, from one session to the next. Bounded by the store's partitions.
#[derive(Debug, Clone, Default)]
pub(super) struct Backlogs(Arc<Mutex<HashMap<PartitionId, Backlog>>>);

impl Backlogs {
    /// The hub lacks `acked..end`. True when the oldest of it has waited too long.
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

    fn lock(&self) -> MutexGuard<'_, HashMap<PartitionId, Backlog>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One log's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Backlog {
    /// When the hub had everything.
    even_at: Option<Duration>,
    /// The log's end at some time, which the hub has not come to since. What another process left is of no
    /// known age.
    mark: Option<(Offset, Option<Duration>)>,
}

impl Backlog {
    fn observe(&mut self, acked: Offset, end: Offset, now: Duration) -> bool {
        if acked >= end {
            (self.even_at, self.mark) = (Some(now), None);
            return false;
        }
        let since = match (self.mark, self.even_at) {
            (Some((upto, since)), _) if acked < upto => since,
            (Some(_), _) => Some(now),
            (None, even_at) => even_at,
        };
        let upto = self.mark.filter(|(upto, _)| acked < *upto);
        self.mark = Some((upto.map_or(end, |(upto, _)| upto), since));
        since.is_none_or(|since| now.saturating_sub(since) >= BEHIND)
    }
}

#[cfg(test)]
mod tests;
