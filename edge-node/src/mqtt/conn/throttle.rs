//! Holds a client to its rates: the bytes of its user and its listener, and the messages of its connection.
//!
//! What came is taken and acknowledged; then its next publish waits until the rate has caught up, and what
//! comes behind it waits with it, up to [`MOST_HELD`]; beyond, nothing is read and the client's own window
//! fills. Only what keeps a connection and its deliveries going passes: PINGREQ and the acknowledgements of what
//! it is sent. PUBREL belongs to its own publishes, one of which may wait.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::mqtt::frame::Frame;
use crate::quota::{Bucket, Flow, Meter};

/// Bytes of packets that wait behind a publish.
const MOST_HELD: usize = 64 * 1024;
/// What a packet takes beside its bytes.
const FRAME_WEIGHT: usize = 64;

/// What is counted of one client.
#[derive(Debug)]
pub(super) struct Throttle {
    began: Instant,
    rate: Option<Bucket>,
    meter: Meter,
}

impl Throttle {
    /// `publish_rate` is in messages a second.
    pub(super) fn new(publish_rate: Option<u32>, meter: Meter) -> Self {
        Self {
            began: Instant::now(),
            rate: publish_rate.map(|rate| Bucket::new(rate.into())),
            meter,
        }
    }

    /// Counts a publish, and tells how long the next has to wait.
    pub(super) fn came(&mut self, bytes: usize) -> Option<Duration> {
        if let Some(rate) = &mut self.rate {
            rate.take(1, self.began.elapsed());
        }
        self.meter.count(Flow::Produce, bytes);
        self.pause()
    }

    /// How long its next publish has to wait.
    pub(super) fn pause(&self) -> Option<Duration> {
        let rate = self.rate.as_ref();
        let of_rate = rate.and_then(|rate| rate.wait(self.began.elapsed()));
        of_rate.max(self.meter.wait(Flow::Produce))
    }

    /// Counts what was delivered.
    pub(super) fn delivered(&self, bytes: usize) {
        self.meter.count(Flow::Consume, bytes);
    }

    /// Most bytes that are delivered before that is asked again.
    pub(super) fn at_once(&self) -> usize {
        self.meter.at_once(Flow::Consume)
    }

    /// How long the next delivery has to wait.
    pub(super) fn delivery_pause(&self) -> Option<Duration> {
        self.meter.wait(Flow::Consume)
    }
}

/// Packets that wait behind a publish, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    frames: VecDeque<Frame>,
    weight: usize,
}

impl Held {
    pub(super) fn push(&mut self, (head, body): Frame) {
        // not with all that was read beside it
        let frame = (head, Bytes::copy_from_slice(&body));
        self.weight += frame.1.len() + FRAME_WEIGHT;
        self.frames.push_back(frame);
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front();
        match &frame {
            Some(frame) => self.weight -= frame.1.len() + FRAME_WEIGHT,
            None => self.frames = VecDeque::new(),
        }
        frame
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Nothing more is read before some of it is carried out.
    pub(super) fn is_full(&self) -> bool {
        self.weight >= MOST_HELD
    }
}

/// Whether a packet is carried out although a publish waits: PUBACK, PUBREC, PUBCOMP and PINGREQ.
pub(super) fn passes(frame: &Frame) -> bool {
    matches!(frame.0 >> 4, 4 | 5 | 7 | 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_keeps_its_order() {
        let mut held = Held::default();
        let mut count = 0_u8;
        while !held.is_full() {
            held.push((0x30, Bytes::from(vec![count; 1000])));
            count += 1;
        }
        assert!(usize::from(count) * 1000 <= MOST_HELD);
        for expected in 0..count {
            assert_eq!(held.pop().unwrap().1[0], expected);
            assert!(!held.is_full());
        }
        assert_eq!(held.pop(), None);
        assert_eq!(held.weight, 0);
    }

    #[test]
    fn pings_and_acknowledgements_pass_and_nothing_else() {
        let passing = (0..=15_u8).filter(|kind| passes(&(kind << 4, Bytes::new())));
        assert_eq!(passing.collect::<Vec<_>>(), [4, 5, 7, 12]);
    }
}
