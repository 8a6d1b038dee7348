//! Answers on their way to a client, which takes them as it likes.
//!
//! What waits to be sent holds memory that others may wait for: an answer with records its part of the node's, and the
//! requests behind it theirs of what was received. While somebody waits for such memory an answer must get on, as
//! requests that come must ([`KafkaConfig::pace_when_short`](super::KafkaConfig::pace_when_short)); else the
//! connection is closed.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout_at};

use super::conn::{ConnError, Connection, Outgoing};
use super::frame::Pace;
use super::intake::LOOK;

/// Bytes of requests that nobody is held up by.
const LITTLE: usize = 16 * 1024;

impl Connection {
    /// Writes an answer; `has_allowance`: it holds a part of the node's memory for what is read.
    ///
    /// # Errors
    /// [`ConnError::NotReading`] when the client does not take it in time; the socket's.
    pub(super) async fn send(
        &self,
        write: &mut Outgoing,
        answer: &[u8],
        has_allowance: bool,
    ) -> Result<(), ConnError> {
        let mut taking = Taking::new(answer.len(), Instant::now());
        let until = taking.began + self.config.write_timeout;
        let pace = self.config.answer_pace_when_short;
        let look = LOOK.min(pace.grace);
        let mut rest = answer;
        loop {
            // neither has written anything when it is dropped
            let step = async {
                if rest.is_empty() {
                    // TLS has a buffer of its own
                    write.flush().await.map(|()| 0)
                } else {
                    write.write(rest).await
                }
            };
            let step = timeout_at(until.min(Instant::now() + look), step).await;
            let now = Instant::now();
            match step {
                Ok(count) => {
                    let count = count?;
                    if rest.is_empty() {
                        return Ok(());
                    }
                    if count == 0 {
                        return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
                    }
                    rest = rest.get(count..).unwrap_or_default();
                    taking.moved = now;
                }
                Err(_) if now >= until => return Err(ConnError::NotReading),
                Err(_) => {}
            }
            if taking.is_slow(pace, now) && self.holds_up_others(has_allowance) {
                return Err(ConnError::NotReading);
            }
        }
    }

    /// Whether others wait for memory that this connection holds.
    fn holds_up_others(&self, has_allowance: bool) -> bool {
        let has_requests = self.activity.held() > LITTLE;
        (has_allowance && self.services.egress.is_short())
            || (has_requests && self.services.ingest.budget().is_short())
    }
}

/// How far a client has come with an answer.
#[derive(Debug)]
struct Taking {
    began: Instant,
    /// When it took something last.
    moved: Instant,
    /// What it has at a pace beyond the grace.
    bytes: u64,
}

impl Taking {
    fn new(bytes: usize, now: Instant) -> Self {
        Self {
            began: now,
            moved: now,
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        }
    }

    /// True when it has taken nothing for the grace, or not all in the time that all of it has.
    fn is_slow(&self, pace: Pace, now: Instant) -> bool {
        let earned = self.bytes.saturating_mul(1_000) / pace.bytes_per_s.max(1);
        let all = pace.grace + Duration::from_millis(earned);
        now >= self.moved + pace.grace || now >= self.began + all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_nothing_is_slow_and_so_is_who_takes_too_little() {
        let seconds = Duration::from_secs;
        let pace = Pace {
            grace: seconds(2),
            bytes_per_s: 1_000,
        };
        let began = Instant::now();
        let mut taking = Taking::new(3_000, began);
        assert!(!taking.is_slow(pace, began + Duration::from_millis(1_999)));
        assert!(taking.is_slow(pace, began + seconds(2)));
        taking.moved = began + seconds(4);
        assert!(!taking.is_slow(pace, began + Duration::from_millis(4_999)));
        assert!(taking.is_slow(pace, began + seconds(5)));
    }
}
