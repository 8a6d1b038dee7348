//! The bottleneck's rate from packets that were sent at once and acknowledged apart.
//!
//! ```text
//! sent      ||||||||||
//! acked                 |  |  |  |  |      rate = bytes after the first acknowledgement / time
//! ```
//!
//! Only a hint: acknowledgements that were held up together make it too high, other traffic makes it too
//! low. It helps start-up along and is not used after it.

use std::time::{Duration, Instant};

/// Packets sent within this time are one train.
const TOGETHER: Duration = Duration::from_micros(500);
/// A train has at least so many packets.
const PACKETS: u32 = 8;
/// And its acknowledgements came at so many different times
const TIMES: u32 = 3;
/// over at least this time; less could be the timers' grain.
const SPREAD: Duration = Duration::from_micros(400);
/// The median of so many counts.
const KEPT: usize = 5;

/// Trains that were acknowledged lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Trains {
    current: Option<Train>,
    rates: [u64; KEPT],
    count: usize,
}

#[derive(Debug, Clone, Copy)]
struct Train {
    sent: Instant,
    first_acked: Instant,
    last_acked: Instant,
    /// Acknowledged after the first time.
    bytes: u64,
    packets: u32,
    times: u32,
}

impl Trains {
    pub(super) fn add_acked(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let train = self.current.filter(|train| {
            sent.checked_duration_since(train.sent)
                .is_some_and(|after| after <= TOGETHER)
        });
        if train.is_none() {
            self.end();
        }
        let train = self.current.get_or_insert(Train {
            sent,
            first_acked: now,
            last_acked: now,
            bytes: 0,
            packets: 0,
            times: 1,
        });
        train.packets += 1;
        if now > train.first_acked {
            train.bytes += bytes;
            train.times += u32::from(now > train.last_acked);
            train.last_acked = now;
        }
    }

    /// Bytes per second; nothing before the first train.
    pub(super) fn rate(&self) -> Option<u64> {
        let kept = self.count.min(KEPT);
        let mut rates = self.rates;
        let rates = rates.get_mut(..kept)?;
        rates.sort_unstable();
        rates.get(kept.checked_sub(1)? / 2).copied()
    }

    fn end(&mut self) {
        let Some(train) = self.current.take() else {
            return;
        };
        let spread = train
            .last_acked
            .saturating_duration_since(train.first_acked);
        if train.packets < PACKETS || train.times < TIMES || spread < SPREAD {
            return;
        }
        let rate = u128::from(train.bytes) * 1_000_000_000 / spread.as_nanos().max(1);
        self.add(u64::try_from(rate).unwrap_or(u64::MAX));
    }

    /// What a train told, or something that is as good a hint; bytes per second.
    pub(super) fn add(&mut self, rate: u64) {
        self.rates[self.count % KEPT] = rate;
        self.count += 1;
    }
}
