//! Wakes a QUIC connection whose link was away.
//!
//! QUIC repeats what is not acknowledged ever more seldom (RFC 9002, section 6.2): after an outage of a
//! minute it may sleep for another one. What is lost fills the congestion window meanwhile, so that nothing
//! else is sent either. A nudge lets one flight out whatever the window says; its acknowledgement shows
//! everything before it to be lost, which is then sent again at once. That nothing came through while there
//! was no link is not congestion: losses from before the nudge are not told to the controller.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Larger than what is ever in flight. quinn does not pace windows of more than 32 bits.
pub(super) const OPEN: u64 = 1 << 40;

/// Asks for flights; shared by a connection's handle and its controller.
#[derive(Debug, Default)]
pub(super) struct Nudge(AtomicU64);

impl Nudge {
    pub(super) fn ask(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn asked(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Builds controllers of another kind that can be nudged.
pub(super) struct NudgeFactory {
    pub(super) inner: Arc<dyn ControllerFactory + Send + Sync>,
    pub(super) nudge: Arc<Nudge>,
}

impl fmt::Debug for NudgeFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NudgeFactory").finish_non_exhaustive()
    }
}

impl ControllerFactory for NudgeFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Nudged {
            inner: Arc::clone(&self.inner).build(now, current_mtu),
            nudge: Arc::clone(&self.nudge),
            done: self.nudge.asked(),
            since: None,
        })
    }
}

struct Nudged {
    inner: Box<dyn Controller>,
    nudge: Arc<Nudge>,
    /// Nudges that were followed.
    done: u64,
    /// When the last one left.
    since: Option<Instant>,
}

impl Controller for Nudged {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        let asked = self.nudge.asked();
        if asked != self.done {
            (self.done, self.since) = (asked, Some(now));
        }
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        if self.since.is_some_and(|since| sent < since) {
            return;
        }
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.nudge.asked() == self.done {
            self.inner.window()
        } else {
            OPEN
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            nudge: Arc::clone(&self.nudge),
            done: self.done,
            since: self.since,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    /// The controller within, for who looks into it.
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quinn::congestion::CubicConfig;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant does")]
    fn a_nudge_lets_one_flight_out_and_forgives_what_was_lost_before() {
        let nudge = Arc::new(Nudge::default());
        let factory = Arc::new(NudgeFactory {
            inner: Arc::new(CubicConfig::default()),
            nudge: Arc::clone(&nudge),
        });
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut controller = factory.build(start, 1_200);
        let window = controller.window();
        controller.on_sent(at(1), 1_200, 1);
        nudge.ask();
        assert_eq!(controller.window(), OPEN);
        controller.on_sent(at(60), 1_200, 2);
        assert_eq!(controller.window(), window);
        controller.on_congestion_event(at(61), at(1), true, 1_200);
        assert_eq!(controller.window(), window);
        controller.on_sent(at(62), 1_200, 3);
        controller.on_congestion_event(at(63), at(62), false, 1_200);
        assert!(controller.window() < window);
    }
}
