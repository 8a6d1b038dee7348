//! `GET /v1/topics/{topic}/tail`: records as they come, as Server-Sent Events (the HTML standard, section
//! 9.2).
//!
//! ```text
//! id: 0:18,1:40
//! data: {"partition":0,"offset":17,"timestamp":1700000000000,"key":null,"value":{"t":20.5}}
//! ```
//! The id is where to go on in each partition, so a client that comes back with it as `Last-Event-ID`
//! misses nothing and gets nothing twice. A gap is an event of its own, `event: gap`. Comments come while
//! there is nothing to tell, so that neither side takes the other for dead.
//!
//! A tail holds one piece at a time and reads the next when the client has taken it. Who is slower than the
//! producers falls behind in the log, not in memory; what retention deletes before a tail comes to it
//! shows as a gap. So does who is held to a rate ([`crate::quota`]). The number of tails is bounded; beyond, 429.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::Deserialize;
use shared::ids::Offset;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::App;
use super::caller::{Admission, Deed};
use super::consume::{Begin, pick, refused, unreadable};
use super::error::HttpError;
use super::reading::VAIN_PAUSE;
use super::sent::{PIECE, Page};
use super::view::{self, Seen};
use crate::quota::Flow;
use crate::store::{Item, PartitionId, Topic};

type Result<T> = std::result::Result<T, HttpError>;

/// What a client should wait before it comes back, ms.
const RETRY_MS: u32 = 2000;

/// What the address says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    partition: Option<u32>,
    offset: Option<String>,
}

pub(super) async fn tail(
    State(app): State<Arc<App>>,
    topic: std::result::Result<Path<String>, PathRejection>,
    params: std::result::Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let asked = app.clone();
    app.answer(async {
        let (Path(name), Query(params)) = (topic?, params?);
        asked.tail(&name, &params, &headers)
    })
    .await
}

/// A place in one partition.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    partition: u32,
    id: PartitionId,
    next: Offset,
}

impl App {
    fn tail(self: Arc<Self>, name: &str, params: &Params, headers: &HeaderMap) -> Result<Response> {
        let caller = self.allow(headers, Deed::Consume, name)?;
        let admission = self.begin(&caller, Flow::Consume)?;
        let last = headers.get("last-event-id").map(|id| {
            let text = id.to_str().unwrap_or("");
            let accepted = "the id of an event of this tail, such as 0:17,1:40";
            positions(text).ok_or_else(|| refused("Last-Event-ID", text, accepted))
        });
        let last = last.transpose()?;
        let begin = params.offset.as_deref().map(Begin::parse).transpose()?;
        let topic = self.reading.topic(name)?;
        let cursors = self.cursors(&topic, params.partition, begin, last.as_deref())?;
        let permit = self.tails.clone().try_acquire_owned().map_err(|_| {
            let text = "too many tails are open; try again later";
            HttpError::new(StatusCode::TOO_MANY_REQUESTS, text)
        })?;
        self.stats.tails.fetch_add(1, Ordering::Relaxed);
        let feed = Feed {
            changes: self.reading.changes(),
            topic: topic.name.as_str().to_owned(),
            follows_all: params.partition.is_none(),
            cursors,
            turn: 0,
            heartbeat: Instant::now() + self.config.heartbeat,
            app: self,
            admission,
            _permit: permit,
        };
        let events = Events {
            page: Page::new(format!("retry: {RETRY_MS}\n\n").into_bytes(), None),
            step: Step::Idle(feed),
        };
        let mut response = Body::new(events).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    /// Where to begin in each partition that is meant.
    fn cursors(
        &self,
        topic: &Topic,
        partition: Option<u32>,
        begin: Option<Begin>,
        last: Option<&[(u32, Offset)]>,
    ) -> Result<Vec<Cursor>> {
        let meant = match partition {
            Some(_) => vec![pick(topic, partition)?],
            None => numbered(topic).collect(),
        };
        let cursor = |(partition, id)| {
            let begin = match last {
                None => begin.unwrap_or(Begin::Latest),
                Some(last) => last
                    .iter()
                    .find(|(named, _)| *named == partition)
                    // it was not there when the event was sent
                    .map_or(Begin::Earliest, |(_, next)| Begin::At(*next)),
            };
            let next = begin.resolve(&self.reading.range(id)?)?;
            Ok(Cursor {
                partition,
                id,
                next,
            })
        };
        meant.into_iter().map(cursor).collect()
    }
}

fn numbered(topic: &Topic) -> impl Iterator<Item = (u32, PartitionId)> {
    (0..).zip(topic.partitions.iter().copied())
}

/// An event id: `partition:next offset`, by commas.
fn positions(text: &str) -> Option<Vec<(u32, Offset)>> {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let position = |part: &str| {
        let (partition, next) = part.split_once(':')?;
        let is_plain = digits(partition) && digits(next);
        is_plain
            .then(|| Some((partition.parse().ok()?, next.parse().ok()?)))
            .flatten()
    };
    text.split(',').map(position).collect()
}

/// What a tail reads from.
#[derive(Debug)]
struct Feed {
    app: Arc<App>,
    topic: String,
    /// Partitions that the topic gets later are followed too.
    follows_all: bool,
    cursors: Vec<Cursor>,
    /// Whose turn it is.
    turn: usize,
    changes: watch::Receiver<u64>,
    /// When a comment is due.
    heartbeat: Instant,
    admission: Admission,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.app.stats.tails.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Feed {
    /// What to send next; `None` when the node stops or the log cannot be read.
    async fn next(mut self) -> Option<(Self, Page)> {
        loop {
            if let Some(wait) = self.admission.meter.wait(Flow::Consume) {
                // a sign of life comes in time, however long it takes
                let until = (Instant::now() + wait).min(self.heartbeat);
                let app = self.app.clone();
                tokio::select! {
                    () = app.reading.stop().cancelled() => return None,
                    () = sleep_until(until) => {}
                }
                if Instant::now() >= self.heartbeat {
                    return Some(self.comment());
                }
                continue;
            }
            self.changes.mark_unchanged();
            match self.waiting() {
                Ok(None) => {}
                Ok(Some(index)) => return self.read(index).await,
                Err(error) => return self.fail(&error),
            }
            let app = self.app.clone();
            tokio::select! {
                biased;
                () = app.reading.stop().cancelled() => return None,
                changed = self.changes.changed() => changed.ok()?,
                () = sleep_until(self.heartbeat) => return Some(self.comment()),
            }
            if matches!(self.waiting(), Ok(None)) {
                sleep(VAIN_PAUSE).await;
            }
        }
    }

    fn comment(mut self) -> (Self, Page) {
        self.heartbeat = Instant::now() + self.app.config.heartbeat;
        (self, Page::new(b":\n\n".to_vec(), None))
    }

    /// A partition with something to read, in turns.
    fn waiting(&mut self) -> Result<Option<usize>> {
        // one that was deleted ends the tail
        let topic = self.app.reading.topic(&self.topic)?;
        if self.follows_all {
            for (partition, id) in numbered(&topic).skip(self.cursors.len()) {
                self.cursors.push(Cursor {
                    partition,
                    id,
                    next: 0,
                });
            }
        }
        let count = self.cursors.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let cursor = self.cursors[index];
            if self.app.reading.range(cursor.id)?.end > cursor.next {
                self.turn = index + 1;
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    async fn read(mut self, index: usize) -> Option<(Self, Page)> {
        let app = self.app.clone();
        let slot = tokio::select! {
            () = app.reading.stop().cancelled() => return None,
            slot = app.reading.slot() => slot,
        };
        let Ok(slot) = slot else {
            // all slots taken for long: a sign of life, and again
            return Some(self.comment());
        };
        let mut cursors = self.cursors.clone();
        let (at, decoded) = (cursors[index], app.max_decoded);
        let make = move |items: &[Item]| {
            let events = events(items, &mut cursors, index, decoded)?;
            Ok((events, cursors[index].next))
        };
        match app.reading.read(at.id, at.next, PIECE, make).await {
            Ok((events, next)) => {
                self.cursors[index].next = next;
                self.heartbeat = Instant::now() + app.config.heartbeat;
                self.admission.meter.count(Flow::Consume, events.len());
                // what is no larger than the connection takes at once needs no counting
                let slot = (events.len() > PIECE).then_some(slot);
                Some((self, Page::new(events, slot)))
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The client comes back and is told then.
    fn fail(self, error: &HttpError) -> Option<(Self, Page)> {
        tracing::debug!(topic = self.topic, text = error.text, "Tail ended");
        None
    }
}

/// Events until a piece is full. Moves the cursor.
fn events(items: &[Item], cursors: &mut [Cursor], index: usize, decoded: usize) -> Result<Vec<u8>> {
    let Cursor {
        partition, next, ..
    } = cursors[index];
    let (mut before, mut after) = (String::new(), String::new());
    for cursor in &cursors[..index] {
        write!(before, "{}:{},", cursor.partition, cursor.next).ok();
    }
    for cursor in &cursors[index + 1..] {
        write!(after, ",{}:{}", cursor.partition, cursor.next).ok();
    }
    let mut out = Vec::new();
    let next = view::walk(items, next, decoded, &mut |seen| {
        let (kind, at) = match seen {
            Seen::Record { offset, .. } => ("", offset + 1),
            Seen::Gap(gap) => ("event: gap\n", gap.to),
        };
        let id = format!("{kind}id: {before}{partition}:{at}{after}\ndata: ");
        out.extend_from_slice(id.as_bytes());
        match seen {
            Seen::Record {
                offset,
                timestamp_ms,
                record,
            } => view::put_record(&mut out, Some(partition), offset, timestamp_ms, &record),
            Seen::Gap(gap) => view::put_gap(&mut out, Some(partition), &gap),
        }
        out.extend_from_slice(b"\n\n");
        if out.len() < PIECE {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    cursors[index].next = next.map_err(|error| unreadable(&error))?;
    Ok(out)
}

type Next = Pin<Box<dyn Future<Output = Option<(Feed, Page)>> + Send>>;

enum Step {
    Idle(Feed),
    Reading(Next),
    Ended,
}

/// The body: pages of events, each read when the one before it was taken.
struct Events {
    page: Page,
    step: Step,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.page.take() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let mut next = match std::mem::replace(&mut self.step, Step::Ended) {
                Step::Idle(feed) => Box::pin(feed.next()) as Next,
                Step::Reading(next) => next,
                Step::Ended => return Poll::Ready(None),
            };
            match next.as_mut().poll(cx) {
                Poll::Pending => {
                    self.step = Step::Reading(next);
                    return Poll::Pending;
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some((feed, page))) => {
                    self.page = page;
                    self.step = Step::Idle(feed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_a_tail_gave_are_positions() {
        assert_eq!(positions("0:17"), Some(vec![(0, 17)]));
        assert_eq!(positions("0:17,3:0"), Some(vec![(0, 17), (3, 0)]));
        for text in [
            "",
            "0",
            ":",
            "0:",
            "0:-1",
            "0:+1",
            "0:1,",
            "x:1",
            "0:1 ",
            "0:99999999999999999999",
        ] {
            assert_eq!(positions(text), None, "{text}");
        }
    }
}
