//! What came over a TCP connection and was not taken yet.
//!
//! The window that the peer is granted is what it may send beyond what came, less the whole streams that
//! nobody read: a session that takes nothing holds its peer back, and a stream that is longer than the
//! window still comes through. So at most two windows, and [`MAX_PARTIAL`] streams of the largest size,
//! are held.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{PIECE_OVERHEAD, Violation};
use super::outgoing::{FIRST_WINDOW, MAX_PARTIAL};
use crate::transport::ReadError;

/// What this end takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpLimits {
    /// Longest data stream; 0: none at all.
    pub max_data_len: usize,
    /// Bytes that may be on their way or wait to be taken.
    pub window: u64,
}

/// Everything that was received and not taken.
#[derive(Debug)]
pub(super) struct Incoming {
    limits: TcpLimits,
    control: BytesMut,
    is_control_over: bool,
    /// `None`: longer than a stream may be, the rest is dropped.
    partial: BTreeMap<u64, Option<Partial>>,
    whole: VecDeque<(Result<Bytes, ReadError>, u64)>,
    whole_cost: u64,
    received: u64,
    /// The limit that the peer knows.
    told: u64,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: BytesMut,
    cost: u64,
}

impl Incoming {
    pub(super) fn new(limits: TcpLimits) -> Self {
        Self {
            limits,
            control: BytesMut::new(),
            is_control_over: false,
            partial: BTreeMap::new(),
            whole: VecDeque::new(),
            whole_cost: 0,
            received: 0,
            told: FIRST_WINDOW,
        }
    }

    pub(super) fn control_len(&self) -> usize {
        self.control.len()
    }

    pub(super) fn handle_control(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.is_control_over {
            return Err(Violation("control after its end"));
        }
        self.control.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) const fn handle_control_end(&mut self) {
        self.is_control_over = true;
    }

    pub(super) fn handle_piece(
        &mut self,
        stream: u64,
        is_last: bool,
        bytes: Bytes,
    ) -> Result<(), Violation> {
        if self.limits.max_data_len == 0 {
            return Err(Violation("a data stream to who takes none"));
        }
        let cost = bytes.len() as u64 + PIECE_OVERHEAD;
        self.received = self.received.saturating_add(cost);
        if self.received > self.told {
            return Err(Violation("beyond the window"));
        }
        let begun = self.partial.remove(&stream);
        if begun.is_none() && !is_last && self.partial.len() >= MAX_PARTIAL {
            return Err(Violation("too many streams in parts"));
        }
        let limit = self.limits.max_data_len;
        let sofar = match begun {
            Some(None) => None,
            Some(Some(partial)) => (partial.bytes.len() + bytes.len() <= limit).then_some(partial),
            None => (bytes.len() <= limit).then(Partial::default),
        };
        match (sofar, is_last) {
            // a stream that came in one piece is not copied
            (Some(partial), true) if partial.bytes.is_empty() => {
                self.push_whole(Ok(bytes), partial.cost + cost);
            }
            (Some(mut partial), _) => {
                partial.bytes.extend_from_slice(&bytes);
                partial.cost += cost;
                if is_last {
                    self.push_whole(Ok(partial.bytes.freeze()), partial.cost);
                } else {
                    self.partial.insert(stream, Some(partial));
                }
            }
            (None, true) => self.push_whole(Err(ReadError::TooLong), cost),
            (None, false) => {
                self.partial.insert(stream, None);
            }
        }
        Ok(())
    }

    fn push_whole(&mut self, stream: Result<Bytes, ReadError>, cost: u64) {
        self.whole_cost += cost;
        self.whole.push_back((stream, cost));
    }

    /// What of the control stream is there; `None` within when it is over.
    pub(super) fn take_control(&mut self, buffer: &mut [u8]) -> Option<Option<usize>> {
        if self.control.is_empty() {
            return self.is_control_over.then_some(None);
        }
        let len = buffer.len().min(self.control.len());
        buffer[..len].copy_from_slice(&self.control[..len]);
        self.control.advance(len);
        Some(Some(len))
    }

    /// The oldest stream that is whole, and what is to be released when it was read.
    pub(super) fn take_data(&mut self) -> Option<(Result<Bytes, ReadError>, u64)> {
        self.whole.pop_front()
    }

    /// A stream that was taken is read: the peer may send as much again.
    pub(super) const fn release(&mut self, cost: u64) {
        self.whole_cost = self.whole_cost.saturating_sub(cost);
    }

    pub(super) fn set_window(&mut self, bytes: u64) {
        self.limits.window = bytes.max(FIRST_WINDOW);
    }

    /// A new limit for the peer, when it is worth a frame.
    pub(super) fn poll_window(&mut self) -> Option<u64> {
        if self.limits.max_data_len == 0 {
            return None;
        }
        let granted = self.received.saturating_add(self.limits.window);
        let limit = granted.saturating_sub(self.whole_cost);
        if limit < self.told.saturating_add(self.limits.window / 4) {
            return None;
        }
        self.told = limit;
        Some(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TcpLimits = TcpLimits {
        max_data_len: 1 << 20,
        window: 256 << 10,
    };

    fn piece(incoming: &mut Incoming, stream: u64, is_last: bool, len: usize) {
        incoming
            .handle_piece(stream, is_last, Bytes::from(vec![1; len]))
            .unwrap();
    }

    fn read(incoming: &mut Incoming) -> Option<Result<Bytes, ReadError>> {
        let (stream, cost) = incoming.take_data()?;
        incoming.release(cost);
        Some(stream)
    }

    #[test]
    fn a_stream_longer_than_the_window_comes_through() {
        let mut incoming = Incoming::new(LIMITS);
        let (mut left, mut limit, mut sent) = (1_usize << 20, FIRST_WINDOW, 0_u64);
        while left > 0 {
            let len = left.min(10_000);
            left -= len;
            sent += len as u64 + PIECE_OVERHEAD;
            limit = incoming.poll_window().unwrap_or(limit);
            assert!(sent <= limit, "stuck with {left} left");
            piece(&mut incoming, 0, left == 0, len);
        }
        assert_eq!(read(&mut incoming).unwrap().unwrap().len(), 1 << 20);
    }

    #[test]
    fn who_takes_nothing_grants_nothing() {
        let mut incoming = Incoming::new(LIMITS);
        let mut limit = incoming.poll_window().unwrap();
        let mut sent = 0;
        for stream in 0.. {
            sent += 1_000 + PIECE_OVERHEAD;
            if sent > limit {
                break;
            }
            piece(&mut incoming, stream, true, 1_000);
            limit = incoming.poll_window().unwrap_or(limit);
        }
        assert!(incoming.whole_cost <= 2 * LIMITS.window);
        while read(&mut incoming).is_some() {}
        assert!(incoming.poll_window().unwrap() > limit);
    }

    #[test]
    fn a_stream_that_is_too_long_is_told_and_holds_nothing() {
        let mut incoming = Incoming::new(TcpLimits {
            max_data_len: 100,
            ..LIMITS
        });
        piece(&mut incoming, 3, false, 90);
        piece(&mut incoming, 3, false, 90);
        assert_eq!(incoming.partial.get(&3).map(Option::is_none), Some(true));
        piece(&mut incoming, 3, true, 1);
        assert_eq!(read(&mut incoming), Some(Err(ReadError::TooLong)));
        piece(&mut incoming, 4, true, 100);
        assert_eq!(read(&mut incoming).unwrap().unwrap().len(), 100);
    }

    #[test]
    fn a_peer_that_goes_too_far_is_refused() {
        let mut incoming = Incoming::new(LIMITS);
        let sent = incoming.handle_piece(0, false, Bytes::from(vec![0; 70_000]));
        assert_eq!(sent, Err(Violation("beyond the window")));
        let mut incoming = Incoming::new(LIMITS);
        for stream in 0..16 {
            piece(&mut incoming, stream, false, 1);
        }
        let sent = incoming.handle_piece(16, false, Bytes::new());
        assert_eq!(sent, Err(Violation("too many streams in parts")));
        let mut site = Incoming::new(TcpLimits {
            max_data_len: 0,
            window: 0,
        });
        assert!(site.handle_piece(0, true, Bytes::new()).is_err());
    }
}
