//! A produce request between the reader, which hands its batches to the store, and the writer, which
//! answers it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::api::Header;
use super::dispatch::Unanswerable;
use super::error::ErrorCode;
use super::produce::{self, Acks, Outcome, ProduceRequest, TopicData, TopicOutcome};
use crate::access::Principal;
use crate::ingest::{Ingest, Pending};
use crate::store::AppendError;

/// Bounds for the time that a client says it waits for the sync.
const SYNC_WAIT_MS: std::ops::RangeInclusive<i32> = 1_000..=300_000;

/// A produce request whose batches are with the store.
#[derive(Debug)]
pub(super) struct PendingProduce {
    correlation: i32,
    version: i16,
    acks: Acks,
    /// When the last batch was handed to the store.
    since: Instant,
    /// When the client stops waiting.
    deadline: Instant,
    topics: Vec<PendingTopic>,
    /// What the client is told to wait, ms.
    throttle_ms: i32,
}

#[derive(Debug)]
struct PendingTopic {
    name: String,
    partitions: Vec<(i32, Result<Pending, Outcome>)>,
}

/// What is known once every batch of a request was stored or refused.
#[derive(Debug)]
pub(super) struct Settled {
    /// The response; `None` when the producer wants none.
    pub(super) response: Option<Vec<u8>>,
    /// When a batch found the store full: the answer is worth holding back for a while from then.
    pub(super) full_since: Option<Instant>,
}

impl PendingProduce {
    /// Appends every batch of a request, one after the other.
    pub(super) async fn append(
        ingest: &Ingest,
        principal: &Principal,
        header: &Header,
        request: ProduceRequest<'_>,
        throttle_ms: i32,
    ) -> Self {
        let wait_ms = request
            .timeout_ms
            .clamp(*SYNC_WAIT_MS.start(), *SYNC_WAIT_MS.end());
        let wait = Duration::from_millis(u64::from(wait_ms.unsigned_abs()));
        let mut topics = Vec::with_capacity(request.topics.len());
        for data in request.topics {
            topics.push(PendingTopic::append(ingest, principal, data).await);
        }
        Self {
            correlation: header.correlation,
            version: header.version,
            acks: request.acks,
            since: Instant::now(),
            deadline: Instant::now() + wait,
            topics,
            throttle_ms,
        }
    }

    /// Waits for the syncs; `refused` counts the batches that were not stored.
    ///
    /// # Errors
    /// [`Unanswerable`] when something was refused that can't be told.
    pub(super) async fn settle(self, refused: &AtomicU64) -> Result<Settled, Unanswerable> {
        let mut is_full = false;
        let mut first_refusal = None;
        let mut outcomes = Vec::with_capacity(self.topics.len());
        for topic in self.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for (index, state) in topic.partitions {
                let outcome = match state {
                    Err(outcome) => outcome,
                    Ok(batch) => synced(batch, self.deadline, &mut is_full).await,
                };
                if let Outcome::Refused(code, text) = &outcome {
                    debug!(topic = topic.name, index, ?code, text, "Batch not stored");
                    refused.fetch_add(1, Ordering::Relaxed);
                    first_refusal.get_or_insert(*code);
                }
                partitions.push((index, outcome));
            }
            outcomes.push(TopicOutcome {
                name: topic.name,
                partitions,
            });
        }
        let response = match (self.acks, first_refusal) {
            (Acks::None, Some(code)) => return Err(Unanswerable::RefusedWithoutAcks(code)),
            (Acks::None, None) => None,
            (Acks::Synced | Acks::Invalid, _) => {
                let (correlation, version) = (self.correlation, self.version);
                Some(produce::encode(
                    correlation,
                    version,
                    &outcomes,
                    self.throttle_ms,
                ))
            }
        };
        Ok(Settled {
            response,
            full_since: is_full.then_some(self.since),
        })
    }
}

async fn synced(batch: Pending, deadline: Instant, is_full: &mut bool) -> Outcome {
    match timeout_at(deadline, batch.synced()).await {
        // the store has synced it: this is what an acknowledgement rests on
        Ok(Ok(appended)) => Outcome::Stored(appended),
        Ok(Err(error)) => {
            *is_full |= matches!(error, AppendError::Full(_));
            Outcome::Refused((&error).into(), error.to_string())
        }
        Err(_) => Outcome::Refused(
            ErrorCode::RequestTimedOut,
            "the disk took longer than the request allows".to_owned(),
        ),
    }
}

impl PendingTopic {
    fn refused(data: &TopicData<'_>) -> Self {
        let refusal = || {
            let text = "the user may not write to this topic".to_owned();
            Err(Outcome::Refused(ErrorCode::TopicAuthorizationFailed, text))
        };
        let partitions = data.partitions.iter().map(|(index, _)| (*index, refusal()));
        Self {
            name: data.name.to_owned(),
            partitions: partitions.collect(),
        }
    }

    async fn append(ingest: &Ingest, principal: &Principal, data: TopicData<'_>) -> Self {
        if !principal.may_produce(data.name) {
            return Self::refused(&data);
        }
        let topic = ingest.topic(data.name, false).await;
        let mut partitions = Vec::with_capacity(data.partitions.len());
        for (index, records) in data.partitions {
            let pending = match (&topic, records) {
                (Err(error), _) => Err(Outcome::Refused(error.into(), error.to_string())),
                (Ok(_), None) => {
                    let text = "no records".to_owned();
                    Err(Outcome::Refused(ErrorCode::InvalidRecord, text))
                }
                (Ok(topic), Some(batch)) => {
                    // a negative index is no partition either
                    let partition = u32::try_from(index).unwrap_or(u32::MAX);
                    let appended = ingest.append(topic, partition, batch).await;
                    appended
                        .map_err(|refusal| Outcome::Refused((&refusal).into(), refusal.to_string()))
                }
            };
            partitions.push((index, pending));
        }
        Self {
            name: data.name.to_owned(),
            partitions,
        }
    }
}
