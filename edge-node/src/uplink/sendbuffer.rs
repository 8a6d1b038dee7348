//! How much the transport is given at a time, and in what pieces.
//!
//! What the transport has is sent in the order of its urgency, but it is given away: the policy cannot hold
//! it back, and records that come later cannot join it. So it gets what keeps the path full and little more: the
//! measured bandwidth-delay product and a quarter, and the piece that follows. A piece takes a fraction of
//! a second on the link, however thin it is. A new session knows nothing of that (a round trip without a queue
//! makes every path look fast), so its pieces grow with what was delivered.
//!
//! Plain: the driver says what it measures, and carries out what comes out.

use std::time::Duration;

use shared::class::{Class, PerClass};

/// On a thin link a piece takes so long, so that what was begun is soon done.
const PIECE_TIME: Duration = Duration::from_millis(300);
/// Encoded bytes of the smallest piece: a few packets.
const MIN_PIECE: u64 = 4 << 10;
/// Raw bytes of the smallest piece: with less, every header weighs.
const MIN_READ: u64 = 8 << 10;
/// Raw bytes for an encoded one, at most: what compresses better than this must not make pieces that a
/// batch that doesn't would turn into minutes.
const MAX_RATIO: u64 = 16;
/// Encoded bytes after which older ones count half for the ratio.
const RATIO_MEMORY: u64 = 256 << 10;
/// Shorter waits are not worth a timer.
const SHORTEST_DELAY: Duration = Duration::from_millis(2);
/// Where the configuration leaves a class's delay open, half a round trip, but never more than this.
const LONGEST_FREE_DELAY: Duration = Duration::from_millis(250);
/// Encoded bytes of a session's first pieces, and the part of what was delivered that later ones may have.
const FIRST_PIECE: u64 = 16 << 10;
const PART_OF_DELIVERED: u64 = 4;
/// The size of a large batch is forgotten over so many smaller ones.
const FADES: u64 = 32;

/// Sizes by what is measured.
#[derive(Debug)]
pub(super) struct SendBuffer {
    /// Raw bytes of the largest piece.
    max_read: u32,
    /// Bytes that the path holds, by the congestion controller; 0: not known.
    window: u64,
    rtt: Duration,
    /// Encoded bytes that the other end has.
    delivered: u64,
    raw: u64,
    encoded: u64,
    /// Encoded bytes of the largest of the last batches: a stored one goes whole, however large a piece should
    /// be. What is smaller, as alarms are, makes it fade.
    largest: u64,
}

impl SendBuffer {
    pub(super) fn new(max_read: u32) -> Self {
        Self {
            max_read,
            window: 0,
            rtt: Duration::ZERO,
            delivered: 0,
            raw: 0,
            encoded: 0,
            largest: 0,
        }
    }

    /// What the transport knows of the path: the congestion window and the smoothed round-trip time.
    pub(super) fn observe_path(&mut self, window: u64, rtt: Duration) {
        // not told for a moment now and then
        if window > 0 {
            self.window = window;
        }
        self.rtt = rtt;
    }

    /// The other end has so many bytes more.
    pub(super) fn observe_delivered(&mut self, bytes: u64) {
        self.delivered = self.delivered.saturating_add(bytes);
    }

    /// What a batch of so many bytes came to.
    pub(super) fn observe_batch(&mut self, raw: u64, encoded: u64) {
        self.raw = self.raw.saturating_add(raw);
        self.encoded = self.encoded.saturating_add(encoded);
        self.largest = encoded.max(self.largest - self.largest.div_ceil(FADES));
        if self.encoded > RATIO_MEMORY {
            self.raw /= 2;
            self.encoded /= 2;
        }
    }

    /// Bytes that may be with the transport.
    pub(super) fn budget(&self) -> u64 {
        self.budget_for(self.piece().max(self.largest))
    }

    /// The same if no batch were larger than a piece.
    pub(super) fn usual_budget(&self) -> u64 {
        self.budget_for(self.piece())
    }

    fn budget_for(&self, stream: u64) -> u64 {
        let path = self.window.saturating_add(self.window / 4);
        path.saturating_add(stream.saturating_mul(2))
    }

    /// Raw bytes of a piece.
    pub(super) fn read_bytes(&self) -> u32 {
        let ratio = self.raw / self.encoded.max(1);
        let raw = self.piece().saturating_mul(ratio.clamp(1, MAX_RATIO));
        u32::try_from(raw.max(MIN_READ)).map_or(self.max_read, |raw| raw.min(self.max_read))
    }

    /// Encoded bytes that the link carries in a piece's time.
    fn piece(&self) -> u64 {
        let proven = FIRST_PIECE.max(self.delivered / PART_OF_DELIVERED);
        let most = u64::from(self.max_read).min(proven).max(MIN_PIECE);
        if self.window == 0 {
            return most;
        }
        let rtt_us = u64::try_from(self.rtt.as_micros()).unwrap_or(u64::MAX);
        let piece_us = u64::try_from(PIECE_TIME.as_micros()).unwrap_or(u64::MAX);
        let bytes = self.window.saturating_mul(piece_us) / rtt_us.max(1);
        bytes.clamp(MIN_PIECE, most)
    }

    /// How long records wait for company; where that is left open it follows the path.
    pub(super) fn delays(&self, asked: &PerClass<Option<Duration>>) -> PerClass<Duration> {
        let free = (self.rtt / 2).min(LONGEST_FREE_DELAY);
        let free = Some(free).filter(|delay| *delay >= SHORTEST_DELAY);
        PerClass::from_fn(|class: Class| asked[class].or(free).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_READ: u32 = 256 << 10;

    fn path(window: u64, rtt_ms: u64) -> SendBuffer {
        let mut buffer = SendBuffer::new(MAX_READ);
        buffer.observe_delivered(u64::from(MAX_READ) * PART_OF_DELIVERED);
        buffer.observe_path(window, Duration::from_millis(rtt_ms));
        buffer
    }

    #[test]
    fn the_budget_and_the_pieces_follow_the_path() {
        for (window, rtt_ms, piece, budget) in [
            // nothing known yet
            (0, 0, 256 << 10, 512 << 10),
            // 256 kbit/s over a satellite
            (19_200, 600, 9_600, 43_200),
            // 50 kbit/s, 200 ms
            (1_250, 200, 4 << 10, 1_562 + (8 << 10)),
            // 10 Mbit/s, 100 ms
            (125_000, 100, 256 << 10, 156_250 + (512 << 10)),
            // a cable in the house
            (14_720, 1, 256 << 10, 18_400 + (512 << 10)),
        ] {
            let buffer = path(window, rtt_ms);
            assert_eq!(buffer.piece(), piece, "{window} bytes, {rtt_ms} ms");
            assert_eq!(buffer.budget(), budget, "{window} bytes, {rtt_ms} ms");
        }
    }

    #[test]
    fn the_pieces_of_a_new_session_grow_with_what_was_delivered() {
        let mut buffer = SendBuffer::new(MAX_READ);
        // a thin link whose queue is still empty
        buffer.observe_path(14_720, Duration::from_millis(1));
        assert_eq!(buffer.budget(), 18_400 + (32 << 10));
        assert_eq!(buffer.read_bytes(), 16 << 10);
        buffer.observe_delivered(128 << 10);
        assert_eq!(buffer.read_bytes(), 32 << 10);
        buffer.observe_delivered(u64::MAX);
        assert_eq!(buffer.read_bytes(), MAX_READ);
    }

    #[test]
    fn a_batch_larger_than_a_piece_is_followed_while_it_is_on_its_way() {
        let mut buffer = path(19_200, 600);
        buffer.observe_batch(64 << 10, 64 << 10);
        assert!(buffer.budget() > (64 << 10) + 19_200);
        for _ in 0..4 {
            buffer.observe_batch(100, 100);
        }
        assert!(buffer.budget() > (64 << 10) + 19_200, "alarms in between");
        for _ in 0..200 {
            buffer.observe_batch(100, 100);
        }
        assert_eq!(buffer.budget(), 43_200);
    }

    #[test]
    fn a_read_grows_with_what_the_codec_makes_of_it() {
        let mut buffer = path(19_200, 600);
        assert_eq!(buffer.read_bytes(), 9_600);
        buffer.observe_batch(100_000, 20_000);
        assert_eq!(buffer.read_bytes(), 48_000);
        for _ in 0..100 {
            buffer.observe_batch(10_000, 10_000);
        }
        assert!(buffer.read_bytes() < 20_000, "what it was is forgotten");
        buffer.observe_batch(1 << 40, 1);
        assert_eq!(buffer.read_bytes(), 9_600 * 16);
        assert_eq!(path(1 << 40, 1).read_bytes(), MAX_READ);
        assert_eq!(path(1, 1_000).read_bytes(), 8 << 10);
    }

    #[test]
    fn a_delay_that_is_left_open_follows_the_path() {
        let second = Duration::from_secs(1);
        let asked = PerClass::new([Some(Duration::ZERO), None, Some(second)]);
        for (rtt_ms, wait_ms) in [(0, 0), (1, 0), (60, 30), (600, 250)] {
            let delays = path(10_000, rtt_ms).delays(&asked);
            let wanted = [Duration::ZERO, Duration::from_millis(wait_ms), second];
            assert_eq!(delays, PerClass::new(wanted), "{rtt_ms} ms");
        }
    }
}
