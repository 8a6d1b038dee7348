//! Bytes of data streams that have begun and not ended.
//!
//! A hub reads all streams that a site has begun, in whatever order their bytes come: an alarm overtakes
//! what was begun before it, and if its stream were not read before the others end, they would stand in
//! each other's way for good. What a site may have on its way is bounded by its credit; one that keeps to no
//! credit is not read any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The streams of one session.
#[derive(Debug)]
pub(super) struct Partial {
    /// Never reached by a site that keeps to its credit.
    most: u64,
    held: AtomicU64,
    ended: Notify,
}

/// One stream; what came of it is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Part {
    partial: Arc<Partial>,
    bytes: AtomicU64,
}

impl Partial {
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            held: AtomicU64::new(0),
            ended: Notify::new(),
        }
    }

    /// Bytes of all streams.
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    pub(super) fn begin(self: &Arc<Self>) -> Part {
        Part {
            partial: Arc::clone(self),
            bytes: AtomicU64::new(0),
        }
    }
}

impl Part {
    /// So many more bytes came. Ends when more may be read. Cancel-safe.
    pub(super) async fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.partial.held.fetch_add(bytes, Ordering::AcqRel);
        loop {
            let ended = self.partial.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.partial.held() <= self.partial.most {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Acquire);
        self.partial.held.fetch_sub(bytes, Ordering::AcqRel);
        self.partial.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_the_limit_nothing_is_read_until_a_stream_ends() {
        let partial = Arc::new(Partial::new(100));
        let (first, second) = (partial.begin(), partial.begin());
        first.came(60).await;
        {
            let late = second.came(60);
            tokio::pin!(late);
            tokio::select! {
                biased;
                () = &mut late => panic!("it is too much"),
                () = tokio::task::yield_now() => {}
            }
            drop(first);
            late.await;
        }
        assert_eq!(partial.held(), 60);
        drop(second);
        assert_eq!(partial.held(), 0);
    }
}
