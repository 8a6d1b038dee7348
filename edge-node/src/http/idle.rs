//! Connections that wait for a request make room for others when there are as many as allowed.
//!
//! A connection is idle while no request is under way on it, from its head on until its answer was taken. One whose
//! head comes byte by byte is idle from the first byte on.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::listener::Peer;

/// What is known of a connection beside its socket.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Since when it is idle, if it is.
    since_ms: AtomicU64,
    /// Requests under way.
    requests: AtomicU32,
    /// The client does not take an answer.
    is_held_up: AtomicBool,
    /// It is to make room.
    leave: CancellationToken,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            since_ms: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            is_held_up: AtomicBool::new(false),
            leave: CancellationToken::new(),
        }
    }

    /// If it is idle, it begins to be so only now.
    pub(super) fn touch(&self) {
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn held_up(&self, is_held_up: bool) {
        self.is_held_up.store(is_held_up, Ordering::Relaxed);
    }

    /// Since when it is idle; `None`: it is not.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_idle =
            self.requests.load(Ordering::Relaxed) == 0 && !self.is_held_up.load(Ordering::Relaxed);
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        is_idle.then(|| self.began + since)
    }

    /// Resolves when it is to make room.
    pub(super) fn asked_to_leave(&self) -> Leave {
        Leave(Box::pin(self.leave.clone().cancelled_owned()))
    }
}

/// What a connection waits for to be asked to make room.
#[derive(Debug)]
pub(super) struct Leave(Pin<Box<WaitForCancellationFutureOwned>>);

impl Leave {
    /// When an idle connection is to go.
    pub(super) fn poll(
        &mut self,
        activity: &Activity,
        patience: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Instant>> {
        if !activity.leave.is_cancelled() {
            ready!(self.0.as_mut().poll(cx));
        }
        // a request may have come since it was asked: then once it is idle again
        Poll::Ready(activity.idle_since().map(|since| since + patience))
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Places {
    open: Vec<Weak<Activity>>,
    /// So many at the last count, and some that have ended since.
    counted: usize,
}

impl Places {
    pub(super) fn add(&mut self, activity: &Arc<Activity>) {
        if self.open.len() > 2 * self.counted {
            self.open.retain(|open| open.strong_count() > 0);
            self.counted = self.open.len().max(16);
        }
        self.open.push(Arc::downgrade(activity));
    }

    /// Asks the one that has been idle longest to leave, if it has been for `patience`; false: none has.
    pub(super) fn make_room(&mut self, now: Instant, patience: Duration) -> bool {
        let idle = self.open.iter().filter_map(|open| {
            let activity = open.upgrade()?;
            let since = activity.idle_since()?;
            let may_leave = !activity.leave.is_cancelled() && since + patience <= now;
            may_leave.then_some((since, activity))
        });
        let longest = idle.min_by_key(|(since, _)| *since);
        if let Some((_, activity)) = &longest {
            activity.leave.cancel();
        }
        longest.is_some()
    }
}

/// A request under way.
#[derive(Debug)]
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a request as under way until its answer was taken.
pub(super) async fn count(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let busy = peer.activity.map(Busy::new);
    let response = next.run(request).await;
    response.map(|body| Body::new(Counted { body, _busy: busy }))
}

/// A body that keeps its request under way.
#[derive(Debug)]
struct Counted {
    body: Body,
    _busy: Option<Busy>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    #[test]
    fn who_has_been_idle_longest_makes_room_and_nobody_with_a_request() {
        let mut places = Places::default();
        let all: Vec<_> = (0..4).map(|_| Arc::new(Activity::new())).collect();
        all.iter().for_each(|activity| places.add(activity));
        let since = |at: usize, ms: u64| all[at].since_ms.store(ms, Ordering::Relaxed);
        let (busy, held_up) = (Busy::new(all[0].clone()), &all[1]);
        held_up.held_up(true);
        since(2, 700);
        since(3, 500);
        let now = all[3].began + Duration::from_millis(2600);
        assert!(places.make_room(now, PATIENCE));
        let left = || all.iter().map(|it| it.leave.is_cancelled());
        assert!(left().eq([false, false, false, true]));
        assert!(!places.make_room(now, PATIENCE), "not long enough");
        assert!(places.make_room(now + PATIENCE, PATIENCE));
        assert!(left().eq([false, false, true, true]));
        drop(busy);
        held_up.held_up(false);
        let later = Instant::now() + PATIENCE;
        assert!(places.make_room(later, PATIENCE) && places.make_room(later, PATIENCE));
        assert!(left().all(|has_left| has_left) && !places.make_room(later, PATIENCE));
    }

    #[test]
    fn ended_connections_are_not_kept_in_mind() {
        let mut places = Places::default();
        for _ in 0..1_000 {
            places.add(&Arc::new(Activity::new()));
        }
        assert!(places.open.len() < 100, "{}", places.open.len());
    }
}
