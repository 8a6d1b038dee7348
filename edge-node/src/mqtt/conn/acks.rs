//! Acknowledgements that wait for the disk, in the order of what they acknowledge.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::ingest::Refusal;
use crate::mqtt::gather::Synced;
use crate::mqtt::packet::{AckKind, reason};
use crate::store::AppendError;

/// What an acknowledgement waits for.
#[derive(Debug)]
enum Wait {
    /// Nothing: it has this reason code.
    Ready(u8),
    /// The sync of a record.
    Record(Synced),
    /// The sync of a fact.
    Fact(oneshot::Receiver<Result<(), AppendError>>),
}

#[derive(Debug)]
struct Waiting {
    kind: AckKind,
    id: u16,
    wait: Wait,
}

/// An acknowledgement that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) kind: AckKind,
    pub(super) id: u16,
    pub(super) code: u8,
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Acks {
    waiting: VecDeque<Waiting>,
    /// PUBACKs among them.
    pubacks: usize,
}

impl Acks {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Publishes of QoS 1 that are not yet answered.
    pub(super) fn pubacks(&self) -> usize {
        self.pubacks
    }

    /// Takes the messages of QoS 2 of which nobody knows yet whether they are stored: their packet ids, and what says
    /// so.
    pub(super) fn take_unsettled(&mut self) -> Vec<(u16, Synced)> {
        let all = std::mem::take(&mut self.waiting);
        self.pubacks = 0;
        all.into_iter()
            .filter_map(|waiting| match waiting.wait {
                Wait::Record(synced) if waiting.kind == AckKind::PubRec => {
                    Some((waiting.id, synced))
                }
                Wait::Record(_) | Wait::Ready(_) | Wait::Fact(_) => None,
            })
            .collect()
    }

    fn push(&mut self, kind: AckKind, id: u16, wait: Wait) {
        self.pubacks += usize::from(kind == AckKind::PubAck);
        self.waiting.push_back(Waiting { kind, id, wait });
    }

    pub(super) fn push_ready(&mut self, kind: AckKind, id: u16, code: u8) {
        self.push(kind, id, Wait::Ready(code));
    }

    pub(super) fn push_record(&mut self, kind: AckKind, id: u16, synced: Synced) {
        self.push(kind, id, Wait::Record(synced));
    }

    pub(super) fn push_fact(
        &mut self,
        kind: AckKind,
        id: u16,
        synced: oneshot::Receiver<Result<(), AppendError>>,
    ) {
        self.push(kind, id, Wait::Fact(synced));
    }

    /// Ready when the first can be sent.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(first) = self.waiting.front_mut() else {
            return Poll::Pending;
        };
        let code = match &mut first.wait {
            Wait::Ready(_) => return Poll::Ready(()),
            Wait::Record(synced) => ready!(Pin::new(synced).poll(cx))
                .map_or(reason::UNSPECIFIED, |outcome| record_code(&outcome)),
            Wait::Fact(synced) => ready!(Pin::new(synced).poll(cx))
                .map_or(reason::UNSPECIFIED, |outcome| fact_code(&outcome)),
        };
        first.wait = Wait::Ready(code);
        Poll::Ready(())
    }

    /// The first, if it can be sent.
    pub(super) fn take(&mut self) -> Option<Due> {
        let first = self.waiting.front_mut()?;
        let code = match &mut first.wait {
            Wait::Ready(code) => *code,
            Wait::Record(synced) => match synced.try_recv() {
                Ok(outcome) => record_code(&outcome),
                Err(TryRecvError::Closed) => reason::UNSPECIFIED,
                Err(TryRecvError::Empty) => return None,
            },
            Wait::Fact(synced) => match synced.try_recv() {
                Ok(outcome) => fact_code(&outcome),
                Err(TryRecvError::Closed) => reason::UNSPECIFIED,
                Err(TryRecvError::Empty) => return None,
            },
        };
        let due = Due {
            kind: first.kind,
            id: first.id,
            code,
        };
        self.waiting.pop_front();
        if self.waiting.is_empty() {
            self.waiting.shrink_to(8);
        }
        self.pubacks -= usize::from(due.kind == AckKind::PubAck);
        Some(due)
    }
}

fn record_code(outcome: &Result<(), Refusal>) -> u8 {
    match outcome {
        Ok(()) => reason::SUCCESS,
        Err(Refusal::Append(error)) => fact_code(&Err(error.clone())),
        Err(Refusal::UnknownPartition | Refusal::Record(_)) => reason::UNSPECIFIED,
    }
}

fn fact_code(outcome: &Result<(), AppendError>) -> u8 {
    match outcome {
        Ok(()) => reason::SUCCESS,
        Err(AppendError::Full(_)) => reason::QUOTA_EXCEEDED,
        Err(
            AppendError::UnknownPartition
            | AppendError::OutOfOrderSequence { .. }
            | AppendError::ProducerFenced { .. }
            | AppendError::Unavailable(_),
        ) => reason::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_when_a_connection_ends_is_handed_over() {
        let mut acks = Acks::default();
        let (_pubrec, synced) = oneshot::channel();
        acks.push_record(AckKind::PubRec, 7, synced);
        let (_puback, synced) = oneshot::channel();
        acks.push_record(AckKind::PubAck, 8, synced);
        acks.push_ready(AckKind::PubRec, 9, reason::SUCCESS);
        let ids: Vec<u16> = acks
            .take_unsettled()
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        assert_eq!((ids, acks.len(), acks.pubacks()), (vec![7], 0, 0));
    }
}
