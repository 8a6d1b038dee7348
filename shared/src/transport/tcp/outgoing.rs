//! What waits to be written to a TCP connection, and in which order.
//!
//! Control bytes first, then windows, then data: of the streams the one of the highest priority, among
//! equals the oldest, one piece at a time. So a stream of a higher priority overtakes at the next piece, and
//! equals stay whole behind each other. At most [`MAX_PARTIAL`] streams are begun and not ended, because the
//! peer holds what it has of each.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::frame::{Frame, MAX_PAYLOAD, PIECE_OVERHEAD, put_piece};

/// Streams begun and not ended at once.
pub(super) const MAX_PARTIAL: usize = 16;
/// What may be sent before the peer's first window.
pub(super) const FIRST_WINDOW: u64 = 64 << 10;

/// The queue.
#[derive(Debug)]
pub(super) struct Outgoing {
    control: VecDeque<Bytes>,
    control_len: usize,
    /// The control stream is to be ended; told when that is written.
    control_end: Option<oneshot::Sender<()>>,
    window: Option<u64>,
    streams: BTreeMap<(Reverse<i32>, u64), Outbound>,
    next_stream: u64,
    partial: usize,
    /// What all pieces so far cost, and may cost.
    sent: u64,
    limit: u64,
    /// Bytes of streams that wait.
    waiting: u64,
}

#[derive(Debug)]
struct Outbound {
    parts: VecDeque<Bytes>,
    left: usize,
    is_begun: bool,
    done: oneshot::Sender<()>,
}

/// Whom to tell that what they gave is written.
pub(super) type Done = Vec<oneshot::Sender<()>>;

impl Outgoing {
    pub(super) fn new() -> Self {
        Self {
            control: VecDeque::new(),
            control_len: 0,
            control_end: None,
            window: None,
            streams: BTreeMap::new(),
            next_stream: 0,
            partial: 0,
            sent: 0,
            limit: FIRST_WINDOW,
            waiting: 0,
        }
    }

    pub(super) const fn control_len(&self) -> usize {
        self.control_len
    }

    /// Bytes of data streams that wait.
    pub(super) const fn waiting(&self) -> u64 {
        self.waiting
    }

    pub(super) fn push_control(&mut self, mut bytes: Bytes) {
        self.control_len += bytes.len();
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_PAYLOAD));
            self.control.push_back(piece);
        }
    }

    pub(super) fn end_control(&mut self, done: oneshot::Sender<()>) {
        self.control_end = Some(done);
    }

    /// The highest limit is the one that counts.
    pub(super) fn push_window(&mut self, limit: u64) {
        self.window = Some(limit);
    }

    pub(super) fn push_stream(
        &mut self,
        head: Bytes,
        payload: Bytes,
        priority: i32,
        done: oneshot::Sender<()>,
    ) {
        let key = (Reverse(priority), self.next_stream);
        self.next_stream += 1;
        let left = head.len() + payload.len();
        self.waiting += left as u64;
        let parts = [head, payload];
        let parts = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let stream = Outbound {
            parts,
            left,
            is_begun: false,
            done,
        };
        self.streams.insert(key, stream);
    }

    /// The peer takes more. The limit never falls.
    pub(super) fn handle_window(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Appends frames of about `most` bytes together; whom to tell when they are written.
    pub(super) fn poll_write(&mut self, out: &mut Vec<u8>, most: usize) -> Done {
        let mut done = Vec::new();
        while out.len() < most {
            if let Some(bytes) = self.control.pop_front() {
                self.control_len -= bytes.len();
                Frame::Control(bytes).put(out);
            } else if let Some(told) = self.control_end.take() {
                Frame::ControlEnd.put(out);
                done.push(told);
            } else if let Some(limit) = self.window.take() {
                Frame::Window(limit).put(out);
            } else if !self.put_data(out, most, &mut done) {
                break;
            }
        }
        done
    }

    /// One piece; false when there is none that may be sent.
    fn put_data(&mut self, out: &mut Vec<u8>, most: usize, done: &mut Done) -> bool {
        let may_begin = self.partial < MAX_PARTIAL;
        let Some((&key, stream)) = self
            .streams
            .iter_mut()
            .find(|(_, stream)| may_begin || stream.is_begun)
        else {
            return false;
        };
        let credit = self.limit.saturating_sub(self.sent);
        let Some(room) = credit.checked_sub(PIECE_OVERHEAD) else {
            return false;
        };
        let most = most.saturating_sub(out.len()).clamp(1, MAX_PAYLOAD);
        let len = stream
            .left
            .min(most)
            .min(usize::try_from(room).unwrap_or(usize::MAX));
        if len == 0 && stream.left > 0 {
            return false;
        }
        let is_last = len == stream.left;
        let parts = stream.take(len);
        put_piece(out, key.1, is_last, &parts);
        self.sent += len as u64 + PIECE_OVERHEAD;
        self.waiting -= len as u64;
        match (stream.is_begun, is_last) {
            (false, false) => self.partial += 1,
            (true, true) => self.partial -= 1,
            (false, true) | (true, false) => {}
        }
        stream.is_begun = true;
        if is_last && let Some(stream) = self.streams.remove(&key) {
            done.push(stream.done);
        }
        true
    }
}

impl Outbound {
    fn take(&mut self, mut len: usize) -> Vec<Bytes> {
        let mut parts = Vec::with_capacity(2);
        self.left -= len;
        while len > 0 {
            let Some(front) = self.parts.front_mut() else {
                break;
            };
            let part = front.split_to(front.len().min(len));
            len -= part.len();
            parts.push(part);
            if front.is_empty() {
                self.parts.pop_front();
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn push(outgoing: &mut Outgoing, len: usize, priority: i32) -> oneshot::Receiver<()> {
        let (done, told) = oneshot::channel();
        let payload = Bytes::from(vec![7; len]);
        outgoing.push_stream(Bytes::from_static(b"head"), payload, priority, done);
        told
    }

    fn next(outgoing: &mut Outgoing, most: usize) -> Vec<Frame> {
        let mut out = Vec::new();
        for done in outgoing.poll_write(&mut out, most) {
            let _gone = done.send(());
        }
        let mut buffer = BytesMut::from(out.as_slice());
        std::iter::from_fn(|| Frame::take(&mut buffer).unwrap()).collect()
    }

    fn piece(frame: &Frame) -> (u64, usize, bool) {
        match frame {
            Frame::Piece {
                stream,
                is_last,
                bytes,
            } => (*stream, bytes.len(), *is_last),
            Frame::Control(_) | Frame::ControlEnd | Frame::Window(_) | Frame::Close { .. } => {
                panic!("{frame:?}")
            }
        }
    }

    #[test]
    fn a_higher_priority_overtakes_at_the_next_piece_and_equals_do_not() {
        let mut outgoing = Outgoing::new();
        let mut bulk = push(&mut outgoing, 2_000, 0);
        let _second = push(&mut outgoing, 500, 0);
        assert_eq!(piece(&next(&mut outgoing, 1_000)[0]), (0, 1_000, false));
        let mut alarm = push(&mut outgoing, 100, 9);
        let frames = next(&mut outgoing, 1_000);
        assert_eq!(piece(&frames[0]), (2, 104, true));
        assert_eq!(piece(&frames[1]).0, 0);
        assert!(alarm.try_recv().is_ok() && bulk.try_recv().is_err());
        let frames = next(&mut outgoing, 1_000);
        assert_eq!((piece(&frames[0]).0, piece(&frames[1]).0), (0, 1));
        assert!(bulk.try_recv().is_ok());
    }

    #[test]
    fn control_goes_before_data() {
        let mut outgoing = Outgoing::new();
        let _told = push(&mut outgoing, 100, i32::MAX);
        outgoing.push_control(Bytes::from_static(b"ack"));
        let frames = next(&mut outgoing, 1_000);
        assert_eq!(frames[0], Frame::Control(Bytes::from_static(b"ack")));
        assert_eq!(frames.len(), 2);
    }

    #[test]
    fn no_more_is_sent_than_the_window_allows() {
        let mut outgoing = Outgoing::new();
        let _told = push(&mut outgoing, 1 << 20, 0);
        let all: usize = std::iter::from_fn(|| next(&mut outgoing, 1_000).first().map(piece))
            .map(|(_, len, _)| len + 32)
            .sum();
        assert_eq!(all as u64, FIRST_WINDOW);
        outgoing.handle_window(FIRST_WINDOW + 100);
        outgoing.handle_window(5);
        assert_eq!(piece(&next(&mut outgoing, 1_000)[0]).1, 68);
        assert!(next(&mut outgoing, 1_000).is_empty());
    }

    #[test]
    fn few_streams_are_in_parts_at_once() {
        let mut outgoing = Outgoing::new();
        let mut begun = std::collections::BTreeSet::new();
        let mut told = Vec::new();
        for priority in 0..40 {
            told.push(push(&mut outgoing, 3_000, priority));
            for frame in next(&mut outgoing, 100) {
                begun.insert(piece(&frame).0);
            }
        }
        assert_eq!(begun.len(), MAX_PARTIAL);
        outgoing.handle_window(u64::MAX);
        while !next(&mut outgoing, 10_000).is_empty() {}
        assert!(told.iter_mut().all(|told| told.try_recv().is_ok()));
        assert_eq!((outgoing.waiting(), outgoing.partial), (0, 0));
    }
}
