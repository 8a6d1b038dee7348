//! Clients above their quota: how long they have to wait is told with the answer, which comes at once, and for
//! so long nothing more is read from the connection (KIP-219).
//!
//! A client that opens another connection meanwhile gains little: its user's debt is the same there, and what
//! it produces is not taken before that is paid, or before it has waited as long as a client is ever told. Then
//! it is taken all the same, and adds to the debt. What waits so holds a part of the node's memory, which it
//! does not keep from others: it is taken early when somebody waits for memory.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::conn::Connection;
use super::intake::LOOK;
use crate::access::Principal;
use crate::quota::{Flow, Meter};

/// The longest that a client is told to wait, and is not read from: clients give a request up after 30 s.
pub(super) const LONGEST: Duration = Duration::from_secs(20);

/// Until when nothing is read from a connection.
#[derive(Debug, Default)]
pub(super) struct Mute(Mutex<Option<Instant>>);

impl Mute {
    fn until(&self) -> Option<Instant> {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| *until > Instant::now())
    }

    fn extend(&self, until: Instant) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *held = (*held).max(Some(until));
    }
}

/// As the protocol tells it, ms.
pub(super) fn told_ms(wait: Duration) -> i32 {
    let ms = wait.min(LONGEST).as_micros().div_ceil(1_000);
    i32::try_from(ms).unwrap_or(i32::MAX)
}

impl Connection {
    /// What a user's bytes on this listener are counted with.
    pub(super) fn meter(&self, principal: &Principal) -> Meter {
        Meter::new(&self.config.quota, principal.quota())
    }

    /// Reads nothing more for so long; the client was told.
    pub(super) fn mute(&self, wait: Duration) {
        let throttled = &self.services.stats.throttled_ms;
        let told = u64::from(told_ms(wait).unsigned_abs());
        throttled.fetch_add(told, Ordering::Relaxed);
        let most = self.config.longest_mute;
        self.mute.extend(Instant::now() + wait.min(most));
    }

    /// Waits until something may be read again; how long that took.
    pub(super) async fn unmuted(&self) -> Duration {
        if self.mute.until().is_none() {
            return Duration::ZERO;
        }
        let began = Instant::now();
        while let Some(until) = self.mute.until() {
            self.hold_back(until).await;
            if self.stop.is_cancelled() {
                break;
            }
        }
        began.elapsed()
    }

    /// Waits until the debt is paid that other connections of the user made, or this one before it was muted as
    /// long as may be; no longer than that with what the request has waited while the connection was muted.
    pub(super) async fn settle_debt(&self, meter: &Meter, muted: Duration) {
        let began = Instant::now();
        let most = self.config.longest_mute;
        loop {
            let left = most.saturating_sub(muted + began.elapsed());
            let Some(step) = next_step(meter.wait(Flow::Produce), left) else {
                break;
            };
            // others must not wait for what this request holds
            if self.stop.is_cancelled() || self.services.ingest.budget().is_short() {
                break;
            }
            self.hold_back(Instant::now() + step).await;
        }
    }
}

/// How long to wait for a debt before the next look at it, by who waits no longer than `left`; `None`: no longer.
fn next_step(debt: Option<Duration>, left: Duration) -> Option<Duration> {
    let left = debt?.min(left);
    (!left.is_zero()).then_some(left.min(LOOK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_waited_for_in_steps_and_no_longer_than_is_ever_told() {
        let ms = Duration::from_millis;
        for (debt_ms, left_ms, step_ms) in [
            (None, 20_000, None),
            (Some(300), 20_000, Some(300)),
            (Some(100_000), 20_000, Some(1_000)),
            (Some(100_000), 400, Some(400)),
            (Some(300), 400, Some(300)),
            (Some(100_000), 0, None),
        ] {
            let step = next_step(debt_ms.map(ms), ms(left_ms));
            assert_eq!(step, step_ms.map(ms), "{debt_ms:?} with {left_ms} left");
        }
    }
}
