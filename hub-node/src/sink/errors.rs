//! librdkafka's errors, sorted by what a lane does next.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::{Reason, SinkError};

/// A failed call, or a delivery that failed for no fault of its record. `fatal` is what the client
/// says about itself.
pub(super) fn sink_error(error: &KafkaError, fatal: Option<Code>) -> SinkError {
    let code = fatal.or_else(|| error.rdkafka_error_code());
    if code.is_some_and(is_fenced) {
        return SinkError::Fenced;
    }
    if code.is_some_and(needs_a_person) {
        return SinkError::Refused(error.to_string());
    }
    let is_abortable =
        matches!(error, KafkaError::Transaction(inner) if inner.txn_requires_abort());
    if is_abortable {
        return SinkError::Abortable(error.to_string());
    }
    // a property that librdkafka does not accept stays wrong
    let is_config = matches!(
        error,
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_)
    );
    if is_config {
        return SinkError::Refused(error.to_string());
    }
    SinkError::Unknown(error.to_string())
}

/// True when the same call may be made again: nothing has happened.
pub(super) fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(inner) if inner.is_retriable())
}

/// What the broker's word about a record means.
pub(super) enum Verdict {
    /// This record, for good. False: or another of its batch.
    Refused(Reason, bool),
    /// The topic changed under us: look it up again.
    Stale,
    /// It went down with its transaction.
    Collateral,
    /// The transaction cannot be trusted any more.
    Failed(SinkError),
}

/// Sorts a delivery that failed.
pub(super) fn delivery(error: &KafkaError) -> Verdict {
    let Some(code) = error.rdkafka_error_code() else {
        return Verdict::Failed(sink_error(error, None));
    };
    if let Some(reason) = record_reason(code) {
        return Verdict::Refused(reason, reason == Reason::NotAuthorized);
    }
    if is_one_of(
        code,
        &[
            Code::UnknownTopic,
            Code::UnknownPartition,
            Code::UnknownTopicOrPartition,
            Code::UnknownTopicId,
        ],
    ) {
        return Verdict::Stale;
    }
    if is_one_of(
        code,
        &[
            Code::InvalidDifferentRecord,
            Code::PurgeQueue,
            Code::PurgeInflight,
        ],
    ) {
        return Verdict::Collateral;
    }
    Verdict::Failed(sink_error(error, None))
}

/// Codes that say something about a record or its topic, not about the connection.
pub(super) fn record_reason(code: Code) -> Option<Reason> {
    let known = [
        (Code::MessageSizeTooLarge, Reason::TooLarge),
        (Code::InvalidMessageSize, Reason::TooLarge),
        (Code::InvalidRecord, Reason::InvalidRecord),
        (Code::InvalidMessage, Reason::InvalidRecord),
        (Code::InvalidTimestamp, Reason::InvalidTimestamp),
        (Code::TopicAuthorizationFailed, Reason::NotAuthorized),
        (Code::InvalidTopic, Reason::InvalidTopic),
        (Code::PolicyViolation, Reason::InvalidRecord),
    ];
    known
        .iter()
        .find(|(known, _)| *known == code)
        .map(|(_, reason)| *reason)
}

fn is_fenced(code: Code) -> bool {
    is_one_of(
        code,
        &[
            Code::Fenced,
            Code::ProducerFenced,
            Code::InvalidProducerEpoch,
        ],
    )
}

fn needs_a_person(code: Code) -> bool {
    is_one_of(
        code,
        &[
            Code::TransactionalIdAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
            Code::Authentication,
            Code::SaslAuthenticationFailed,
            Code::UnsupportedFeature,
        ],
    )
}

pub(super) fn is_one_of(code: Code, codes: &[Code]) -> bool {
    codes.contains(&code)
}
