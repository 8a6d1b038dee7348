//! Cuts a byte stream into requests: a length of 4 bytes, then so many bytes. Plain code.
//!
//! The length is checked before anything is allocated for it, and the buffer grows with the bytes that
//! came, not with those that were promised.

use std::time::{Duration, Instant};

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};

const PREFIX: usize = 4;
/// Smallest request: API, version, correlation.
const MIN_FRAME: usize = 8;
/// Room made for a read when nothing is known.
pub(super) const READ_BYTES: usize = 16 * 1024;
/// A request up to this size is copied out, so that it doesn't keep the whole read alive.
const COPIED_BYTES: usize = 4 * 1024;
/// Less room than this is not worth a read.
const MIN_ROOM: usize = 2 * 1024;

/// Why the stream is not a sequence of requests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is not that of a request: another protocol, or garbage.
    #[error("request length {0} is impossible")]
    Length(i32),
    /// Longer than allowed.
    #[error("request of {bytes} bytes is larger than {limit}")]
    TooLarge { bytes: usize, limit: usize },
}

/// How slowly a request may arrive.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time that any request has.
    pub grace: Duration,
    /// Bytes per second that add to it.
    pub bytes_per_s: u64,
}

/// Bytes received and not yet handed on.
#[derive(Debug)]
pub struct FrameBuffer {
    buffer: BytesMut,
    max_frame: usize,
    /// When the first byte of the request at the front came.
    started: Option<Instant>,
}

impl FrameBuffer {
    /// An empty buffer for requests of at most `max_frame` bytes.
    #[must_use]
    pub fn new(max_frame: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            max_frame,
            started: None,
        }
    }

    /// The next whole request without its length, and the bytes that it took on the wire.
    ///
    /// # Errors
    /// [`FrameError`]: nothing behind it can be understood.
    pub fn take(&mut self) -> Result<Option<(Bytes, usize)>, FrameError> {
        let Some(len) = self.frame_len()? else {
            return Ok(None);
        };
        if self.buffer.len() < PREFIX + len {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        self.started = None;
        let frame = if len <= COPIED_BYTES {
            let copy = Bytes::copy_from_slice(&self.buffer[..len]);
            self.buffer.advance(len);
            copy
        } else {
            self.buffer.split_to(len).freeze()
        };
        Ok(Some((frame, PREFIX + len)))
    }

    fn frame_len(&self) -> Result<Option<usize>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let claimed = i32::from_be_bytes(*prefix);
        let bytes = usize::try_from(claimed)
            .ok()
            .filter(|len| *len >= MIN_FRAME)
            .ok_or(FrameError::Length(claimed))?;
        if bytes > self.max_frame {
            return Err(FrameError::TooLarge {
                bytes,
                limit: self.max_frame,
            });
        }
        Ok(Some(bytes))
    }

    /// Room for one read: as much again as has come, no more than the request needs, and at least
    /// [`READ_BYTES`].
    pub fn room(&mut self) -> Limit<&mut BytesMut> {
        let missing = match self.frame_len() {
            Ok(Some(len)) => (PREFIX + len).saturating_sub(self.buffer.len()),
            Ok(None) | Err(_) => 0,
        };
        let wanted = missing.min(self.buffer.len()).max(READ_BYTES);
        if self.buffer.capacity() - self.buffer.len() < MIN_ROOM {
            self.buffer.reserve(wanted);
        }
        // the buffer may have grown by more than it was asked to
        (&mut self.buffer).limit(wanted)
    }

    /// Takes bytes that were read elsewhere; no more at once than [`READ_BYTES`].
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// From now on requests may be so large; no larger than at first.
    pub fn set_max_frame(&mut self, bytes: usize) {
        self.max_frame = bytes;
    }

    /// Most bytes that can be in the buffer after a read, when whole requests are taken between reads.
    #[must_use]
    pub fn max_buffered(&self) -> usize {
        2 * (PREFIX + self.max_frame) + READ_BYTES
    }

    /// Call after a read, and after the last whole request was taken.
    pub fn mark(&mut self, now: Instant) {
        if self.buffer.is_empty() {
            self.started = None;
            // an idle connection holds no memory
            self.buffer = BytesMut::new();
        } else if self.started.is_none() {
            self.started = Some(now);
        }
    }

    /// Time that passed while we did not read is not the sender's.
    pub fn pause(&mut self, waited: Duration) {
        self.started = self.started.map(|started| started + waited);
    }

    /// True between two requests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// When the request at the front is overdue; `None` between two requests.
    #[must_use]
    pub fn deadline(&self, pace: Pace) -> Option<Instant> {
        let earned = self.buffer.len() as u64 * 1000 / pace.bytes_per_s.max(1);
        self.started
            .map(|started| started + pace.grace + Duration::from_millis(earned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn requests_come_out_whole_however_they_came() {
        let bodies = [vec![1; 8], vec![2; 100], vec![3; 5000]];
        let stream: Vec<u8> = bodies.iter().flat_map(|b| framed(b)).collect();
        for step in [1, 3, 7, 1000, stream.len()] {
            let mut frames = FrameBuffer::new(10_000);
            let mut found = Vec::new();
            for chunk in stream.chunks(step) {
                frames.room().put_slice(chunk);
                while let Some((frame, wire)) = frames.take().unwrap() {
                    assert_eq!(wire, frame.len() + 4);
                    found.push(frame.to_vec());
                }
            }
            assert_eq!(found, bodies);
            assert!(frames.is_empty());
        }
    }

    #[test]
    fn an_impossible_length_is_refused_before_memory_is_taken() {
        for claimed in [i32::MIN, -1, 0, 7] {
            let mut frames = FrameBuffer::new(1000);
            frames.room().put_slice(&claimed.to_be_bytes());
            assert_eq!(frames.take(), Err(FrameError::Length(claimed)));
        }
        let mut frames = FrameBuffer::new(1000);
        frames.room().put_slice(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(frames.take(), Err(FrameError::TooLarge { .. })));
        assert!(frames.buffer.capacity() < 64 * 1024);
    }

    #[test]
    fn the_buffer_follows_what_came_not_what_was_promised() {
        let mut frames = FrameBuffer::new(100 << 20);
        frames.room().put_slice(&(100_i32 << 20).to_be_bytes());
        assert_eq!(frames.take(), Ok(None));
        assert!(frames.buffer.capacity() <= 64 * 1024);
    }

    #[test]
    fn a_slow_request_earns_time_by_its_bytes_only() {
        let pace = Pace {
            grace: Duration::from_secs(10),
            bytes_per_s: 100,
        };
        let start = Instant::now();
        let mut frames = FrameBuffer::new(10_000);
        frames.mark(start);
        assert_eq!(frames.deadline(pace), None);
        frames.room().put_slice(&5000_i32.to_be_bytes());
        frames.mark(start);
        assert_eq!(
            frames.deadline(pace),
            Some(start + Duration::from_millis(10_040))
        );
        frames.room().put_slice(&[0; 996]);
        frames.mark(start + Duration::from_secs(5));
        assert_eq!(frames.deadline(pace), Some(start + Duration::from_secs(20)));
        frames.pause(Duration::from_secs(3));
        assert_eq!(frames.deadline(pace), Some(start + Duration::from_secs(23)));
    }
}
