//! Checks batches to the last byte, with a bound on the memory and the threads that it takes.

use bytes::Bytes;
use shared::record::{self, BatchHeader, BatchLimits, Compression, RecordError};
use tokio::sync::Semaphore;

use super::Refusal;
use crate::store::AppendError;

/// A compressed batch up to this size is first tried on the spot, with
/// [`INLINE_UNCOMPRESSED_BYTES`] of output: a hop to another thread costs more than the work.
const INLINE_BATCH_BYTES: usize = 32 * 1024;
/// Most bytes that a batch checked on the spot may decompress to.
const INLINE_UNCOMPRESSED_BYTES: usize = 256 * 1024;

/// What every batch passes before it is stored.
#[derive(Debug)]
pub(super) struct Checker {
    max_uncompressed_bytes: usize,
    /// Large compressed batches at a time.
    turns: Semaphore,
}

impl Checker {
    pub(super) fn new(max_uncompressed_bytes: usize, max_parallel: usize) -> Self {
        Self {
            max_uncompressed_bytes,
            turns: Semaphore::new(max_parallel.max(1)),
        }
    }

    /// The header of a batch that may be stored.
    pub(super) async fn check(
        &self,
        batch: &Bytes,
        max_batch_bytes: usize,
    ) -> Result<BatchHeader, Refusal> {
        let limits = BatchLimits {
            max_batch_bytes,
            max_uncompressed_bytes: self.max_uncompressed_bytes,
        };
        match try_inline(batch, &limits) {
            Some(result) => Ok(result?),
            None => self.check_aside(batch.clone(), limits).await,
        }
    }

    /// Checks a batch on the blocking pool.
    async fn check_aside(&self, batch: Bytes, limits: BatchLimits) -> Result<BatchHeader, Refusal> {
        let turn = self.turns.acquire().await;
        let _turn = turn.map_err(|_| stopped("the semaphore is closed"))?;
        let checked =
            tokio::task::spawn_blocking(move || record::check(&batch, &limits).map(|c| c.header));
        match checked.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(stopped(error)),
        }
    }
}

fn stopped(error: impl std::fmt::Display) -> Refusal {
    AppendError::Unavailable(format!("check of a batch: {error}")).into()
}

/// The check's result when it is cheap enough for the task that received the batch, `None` when it
/// belongs on another thread.
fn try_inline(batch: &Bytes, limits: &BatchLimits) -> Option<Result<BatchHeader, RecordError>> {
    let header = match BatchHeader::parse(batch) {
        // too large is the more useful answer, and `check` gives it
        Err(error) if batch.len() <= limits.max_batch_bytes => return Some(Err(error)),
        Err(_) => return Some(record::check(batch, limits).map(|c| c.header)),
        Ok(header) => header,
    };
    if header.compression == Compression::None || batch.len() > limits.max_batch_bytes {
        return Some(record::check(batch, limits).map(|c| c.header));
    }
    if batch.len() > INLINE_BATCH_BYTES {
        return None;
    }
    let inline = BatchLimits {
        max_uncompressed_bytes: limits.max_uncompressed_bytes.min(INLINE_UNCOMPRESSED_BYTES),
        ..*limits
    };
    match record::check(batch, &inline) {
        Err(RecordError::TooLarge { .. })
            if limits.max_uncompressed_bytes > INLINE_UNCOMPRESSED_BYTES =>
        {
            None
        }
        result => Some(result.map(|c| c.header)),
    }
}
