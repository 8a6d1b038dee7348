//! Which data stream may write to QUIC, and how much of it waits there.
//!
//! quinn takes the peer's credit for a byte when it is written, not when it is sent. A large value that is
//! written whole leaves no credit, and a stream that begins later can't be written then, however urgent it is:
//! an alarm would wait until a thin link has carried megabytes. So:
//!
//! - one stream writes at a time, the most urgent first, and one under way makes way for a more urgent one;
//! - it writes only while what is written and not acknowledged stays within [`room`]: what the path holds, and
//!   what is sent until the writer is woken again, but not all that the peer has credit for. A more urgent one has a
//!   little beyond that, and beyond what less urgent ones had written when the path seemed to hold more.
//!
//! quinn knows what is not acknowledged and has a limit for it, but one for all streams: it is the room of who
//! wrote last, so that an acknowledgement that makes room wakes the writer, and nothing else does. (Each change
//! of it wakes the connection. Lifting it after every write had both wake each other without end, and each lap
//! took from quinn's pacer the fraction of a byte that a thin link had earned.) The control stream has the whole
//! limit, for the moment of a write; writers are serialised for that.
//!
//! quinn counts what was written at once as not acknowledged until all of it is. So a writer writes in pieces: a batch
//! that fills the room would keep the next one from the link for a round trip.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use quinn::{SendStream, WriteError};

/// What is written and not acknowledged, at most.
pub(super) const SEND_WINDOW: u64 = 4 << 20;
/// What the peer lets wait before it is read, until it tells.
const PEER_WINDOW: u64 = 128 << 10;
/// Bandwidth-delay products that are written: what follows a lost packet is not acknowledged before that is.
const ROUNDS: u64 = 3;
const THIN_ROUNDS: u64 = 2;
/// A writer is woken within this time.
const WAKE_TIME: Duration = Duration::from_millis(100);
const LEAST_AHEAD: u64 = 16 << 10;
const MOST_AHEAD: u64 = 512 << 10;
/// Bytes a second of a thin link: there it counts what others have written, and the peer's credit does not come
/// back at once.
const THIN: u64 = 250_000;
/// Less than the smallest window that a hub grants (96 KiB).
const THIN_ROOM: u64 = 64 << 10;
/// What a stream has beyond others that are one priority below.
const STEP: u64 = 8 << 10;
/// The part of a writer's limit that it writes at once, and what is never too much.
const PIECES: u64 = 16;
const LEAST_PIECE: usize = 2 << 10;

/// What may be written and not acknowledged on a path with this congestion window.
fn room(window: u64, rtt: Duration) -> u64 {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let in_time = |time| window.saturating_mul(micros(time)) / micros(rtt).max(1);
    let ahead = in_time(WAKE_TIME).clamp(LEAST_AHEAD, MOST_AHEAD);
    let all = window.saturating_mul(ROUNDS).saturating_add(ahead);
    let most = if in_time(Duration::from_secs(1)) < THIN {
        THIN_ROOM.max(window.saturating_mul(THIN_ROUNDS))
    } else {
        SEND_WINDOW
    };
    all.min(most)
}

/// Of the peer's window. QUIC's credit for the rest is what urgent streams live on while all of this is held up on a link
/// that became thin: quinn gives credit back by eighths of the window, so one may be used already, and one passes
/// before there is more.
fn part_of(peer_window: u64) -> u64 {
    peer_window / 4 * 3
}

/// What is written at once within this limit.
fn piece(limit: u64) -> usize {
    usize::try_from(limit / PIECES).map_or(usize::MAX, |bytes| bytes.max(LEAST_PIECE))
}

/// The writers of a connection.
#[derive(Debug, Default)]
pub(super) struct Writing(Mutex<Writers>);

#[derive(Debug)]
struct Writers {
    /// By quinn's priority, no two of which are the same.
    waiting: BTreeMap<i32, Option<Waker>>,
    /// The last window that was known.
    window: u64,
    /// quinn's limit, where it is not the one that it began with.
    limit: Option<u64>,
    /// By the caller's priority.
    under_way: BTreeMap<i32, UnderWay>,
    peer_window: u64,
}

impl Default for Writers {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            window: 0,
            limit: None,
            under_way: BTreeMap::new(),
            peer_window: PEER_WINDOW,
        }
    }
}

/// Streams of one priority that are not acknowledged as a whole.
#[derive(Debug)]
struct UnderWay {
    streams: usize,
    /// What they and less urgent ones have written and is not acknowledged is no more than this. Only quinn knows
    /// what it is.
    unacked: u64,
}

impl Writers {
    fn begin(&mut self, priority: i32) {
        let unacked = self.written_below(priority);
        let begun = self.under_way.entry(priority);
        let fresh = || UnderWay {
            streams: 0,
            unacked,
        };
        begun.or_insert_with(fresh).streams += 1;
    }

    fn end(&mut self, priority: i32) {
        if let Some(of_it) = self.under_way.get_mut(&priority) {
            of_it.streams -= 1;
            if of_it.streams == 0 {
                self.under_way.remove(&priority);
            }
        }
    }

    /// What may be written and not acknowledged when a stream of this priority writes.
    fn limit_of(&self, room: u64, priority: i32) -> u64 {
        let beyond = STEP * u64::from(priority.unsigned_abs());
        let room = room.min(part_of(self.peer_window));
        let least = room.max(self.written_below(priority));
        least.saturating_add(beyond).min(SEND_WINDOW)
    }

    fn written_below(&self, priority: i32) -> u64 {
        let below = self.under_way.range(..priority).next_back();
        below.map_or(0, |(_, below)| below.unacked)
    }

    /// A stream of this priority wrote so much within a limit.
    fn wrote(&mut self, bytes: u64, priority: i32, limit: u64) {
        for (above, of_it) in &mut self.under_way {
            let more = if *above >= priority { bytes } else { 0 };
            of_it.unacked = of_it.unacked.saturating_add(more).min(limit);
        }
    }

    fn limit(&mut self, connection: &quinn::Connection, bytes: u64) {
        if self.limit.unwrap_or(SEND_WINDOW) != bytes {
            self.limit = Some(bytes);
            connection.set_send_window(bytes);
        }
    }
}

impl Writing {
    fn lock(&self) -> MutexGuard<'_, Writers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_peer_window(&self, bytes: u64) {
        self.lock().peer_window = bytes;
    }

    /// Lines up. `level` is the stream's own, `priority` that of the caller.
    pub(super) fn line_up(self: &Arc<Self>, level: i32, priority: i32) -> Turn {
        let mut writers = self.lock();
        writers.waiting.insert(level, None);
        writers.begin(priority);
        Turn {
            writing: Arc::clone(self),
            level,
            priority,
        }
    }

    /// Polls a write that takes no turn.
    pub(super) fn poll_urgent<T>(
        &self,
        connection: &quinn::Connection,
        write: impl FnOnce() -> Poll<T>,
    ) -> Poll<T> {
        let mut writers = self.lock();
        let before = writers.limit.unwrap_or(SEND_WINDOW);
        writers.limit(connection, SEND_WINDOW);
        let written = write();
        writers.limit(connection, before);
        written
    }
}

/// A place in line, to be kept until the stream is acknowledged or given up.
#[derive(Debug)]
pub(super) struct Turn {
    writing: Arc<Writing>,
    level: i32,
    priority: i32,
}

impl Turn {
    /// Writes something of what is left in `bytes` when it is this one's turn and there is room.
    pub(super) fn poll_write(
        &self,
        connection: &quinn::Connection,
        stream: &mut SendStream,
        bytes: &mut Bytes,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        let mut writers = self.writing.lock();
        let first = writers.waiting.last_key_value().map(|(level, _)| *level);
        if first.is_some_and(|first| first > self.level) {
            let waker = context.waker().clone();
            writers.waiting.insert(self.level, Some(waker));
            return Poll::Pending;
        }
        let path = connection.stats().path;
        // a nudge opens it wide for a moment
        if path.cwnd < super::OPEN {
            writers.window = path.cwnd;
        }
        let limit = writers.limit_of(room(writers.window, path.rtt), self.priority);
        writers.limit(connection, limit);
        let mut next = bytes.slice(..bytes.len().min(piece(limit)));
        let written = pin!(stream.write_chunks(std::slice::from_mut(&mut next))).poll(context);
        written.map_ok(|written| {
            bytes.advance(written.bytes);
            writers.wrote(written.bytes as u64, self.priority, limit);
        })
    }

    /// All is written: the next in line may write.
    pub(super) fn pass(&self) {
        let mut writers = self.writing.lock();
        if writers.waiting.remove(&self.level).is_none() {
            return;
        }
        let next = writers.waiting.last_entry();
        let waker = next.and_then(|mut next| next.get_mut().take());
        drop(writers);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.writing.lock().end(self.priority);
        self.pass();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1 << 10;

    #[test]
    fn an_urgent_stream_has_room_beyond_what_was_written_when_there_was_more() {
        let mut writers = Writers {
            peer_window: SEND_WINDOW,
            ..Writers::default()
        };
        writers.begin(0);
        assert_eq!(writers.limit_of(64 * K, 0), 64 * K);
        writers.wrote(100_000, 0, 64 * K);
        // half of it is too much now
        assert_eq!(writers.limit_of(30 * K, 0), 30 * K);
        writers.begin(2);
        assert_eq!(writers.limit_of(30 * K, 2), 64 * K + 2 * STEP);
        // what was acknowledged is known when somebody has room again
        writers.wrote(1, 0, 30 * K);
        assert_eq!(writers.limit_of(30 * K, 2), 30 * K + 2 * STEP);
        writers.wrote(u64::MAX, 0, SEND_WINDOW);
        assert_eq!(writers.limit_of(30 * K, 2), SEND_WINDOW);
        // and when all of it was
        writers.end(0);
        assert_eq!(writers.limit_of(30 * K, 2), 30 * K + 2 * STEP);
    }

    #[test]
    fn less_urgent_streams_leave_credit_for_urgent_ones() {
        let mut writers = Writers::default();
        writers.begin(0);
        assert_eq!(writers.limit_of(SEND_WINDOW, 0), PEER_WINDOW / 4 * 3);
        writers.peer_window = 1 << 20;
        assert_eq!(writers.limit_of(SEND_WINDOW, 0), 768 * K);
        assert_eq!(writers.limit_of(SEND_WINDOW, 1), 768 * K + STEP);
        // on a thin link the whole room goes into the least that a hub grants
        assert!(part_of(96 * K) >= THIN_ROOM + STEP);
    }

    #[test]
    fn streams_do_not_widen_the_room_of_their_own_priority() {
        let mut writers = Writers::default();
        writers.begin(0);
        writers.wrote(64 * K, 0, 64 * K);
        for _ in 0..1_000 {
            writers.begin(1);
            let limit = writers.limit_of(64 * K, 1);
            assert_eq!(limit, 64 * K + STEP);
            writers.wrote(limit, 1, limit);
        }
        assert_eq!(writers.limit_of(10 * K, 2), 64 * K + 3 * STEP);
        // nor does it forget what others wrote before
        for _ in 0..1_000 {
            writers.end(1);
        }
        writers.begin(1);
        writers.wrote(K, 1, writers.limit_of(10 * K, 1));
        assert_eq!(writers.limit_of(10 * K, 2), 65 * K + 2 * STEP);
    }

    #[test]
    fn what_is_written_at_once_leaves_room_as_it_is_acknowledged() {
        // a batch of a Kafka producer on a thin link, and the least room there is
        assert_eq!(piece(THIN_ROOM), 4 << 10);
        assert_eq!(piece(LEAST_AHEAD), LEAST_PIECE);
        assert!(LEAST_PIECE as u64 * 8 <= LEAST_AHEAD);
        assert_eq!(piece(SEND_WINDOW), 256 << 10);
    }

    #[test]
    fn the_room_keeps_the_path_full_and_credit_free() {
        for (window, rtt_ms, expected) in [
            // 256 kbit/s, 100 ms
            (3_200, 100, 9_600 + LEAST_AHEAD),
            // the same with a queue of a second on the way
            (35_200, 1_100, 2 * 35_200),
            // and over a satellite
            (19_200, 600, THIN_ROOM),
            // 10 Mbit/s, 100 ms
            (125_000, 100, 4 * 125_000),
            // a cable in the house
            (14_720, 1, 3 * 14_720 + MOST_AHEAD),
            (u64::MAX, 0, SEND_WINDOW),
            (0, 0, LEAST_AHEAD),
        ] {
            let found = room(window, Duration::from_millis(rtt_ms));
            assert_eq!(found, expected, "{window} bytes, {rtt_ms} ms");
        }
    }
}
