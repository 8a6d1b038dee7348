//! Reading from the log for requests: beside the runtime's threads, so many at a time, and waiting for
//! what is not there yet.
//!
//! A read takes a slot, and a page that was read keeps it until the client has taken it. So memory is
//! bounded by the slots, whatever is asked; who gets none in time is told to try again.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use shared::ids::Offset;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::error::HttpError;
use crate::store::{Item, LogRange, PartitionId, Store, StoreError, Topic};

type Result<T> = std::result::Result<T, HttpError>;

/// Appends to other topics wake everybody who waits; this is the least time between two looks that
/// were for nothing.
pub(super) const VAIN_PAUSE: Duration = Duration::from_millis(10);

/// The right to read, and to hold what was read.
pub(super) type Slot = OwnedSemaphorePermit;

/// A way to the log for readers.
#[derive(Debug)]
pub(super) struct Reading {
    store: Arc<dyn Store>,
    slots: Arc<Semaphore>,
    slot_wait: Duration,
    stop: CancellationToken,
}

impl Reading {
    pub(super) fn new(
        store: Arc<dyn Store>,
        slots: usize,
        slot_wait: Duration,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            slots: Arc::new(Semaphore::new(slots.max(1))),
            slot_wait,
            stop,
        }
    }

    /// The node stops: answer with what there is.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// All topics by name.
    pub(super) fn topics(&self) -> Vec<Arc<Topic>> {
        self.store.topics()
    }

    /// A topic that exists.
    ///
    /// # Errors
    /// 404, or 400 when no topic can have this name.
    pub(super) fn topic(&self, name: &str) -> Result<Arc<Topic>> {
        if let Some(topic) = self.store.topic(name) {
            return Ok(topic);
        }
        shared::ids::TopicName::new(name).map_err(|error| {
            HttpError::new(StatusCode::BAD_REQUEST, format!("topic name {error}"))
        })?;
        let text = format!("topic `{name}` does not exist");
        Err(HttpError::new(StatusCode::NOT_FOUND, text))
    }

    /// The ends of a log. From memory.
    pub(super) fn range(&self, id: PartitionId) -> Result<LogRange> {
        Ok(self.store.range(id)?)
    }

    /// Tells of appends: subscribe, then look, then wait.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.store.changes()
    }

    /// A slot to read, waited for within bounds.
    ///
    /// # Errors
    /// 429.
    pub(super) async fn slot(&self) -> Result<Slot> {
        let slot = timeout(self.slot_wait, self.slots.clone().acquire_owned()).await;
        slot.ok().and_then(std::result::Result::ok).ok_or_else(|| {
            let text = "too many readers at a time; try again";
            HttpError::new(StatusCode::TOO_MANY_REQUESTS, text)
        })
    }

    /// Reads about `max_bytes` from an offset and makes something of it, on a thread that may block.
    ///
    /// # Errors
    /// 503 when the log cannot be read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        id: PartitionId,
        from: Offset,
        max_bytes: usize,
        make: impl FnOnce(&[Item]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        let work = move || make(&store.browse(id, from, max_bytes)?);
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|error| {
                Err(StoreError::Io(format!("reading for a client: {error}")).into())
            })
    }

    /// Waits until something stands at `from` or beyond, the time is over, or the node stops.
    ///
    /// # Errors
    /// [`Reading::range`]'s.
    pub(super) async fn wait_for(
        &self,
        id: PartitionId,
        from: Offset,
        wait: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + wait;
        let mut changes = self.changes();
        while self.range(id)?.end <= from {
            let changed = tokio::select! {
                biased;
                () = self.stop.cancelled() => false,
                changed = timeout_at(deadline, changes.changed()) => matches!(changed, Ok(Ok(()))),
            };
            if !changed {
                break;
            }
            if self.range(id)?.end <= from {
                tokio::time::sleep(VAIN_PAUSE).await;
            }
        }
        Ok(())
    }
}
