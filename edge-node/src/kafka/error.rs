//! Kafka's error codes, and which of them each refusal is. Plain code.
//!
//! What a client does next is the point: codes marked "retriable" make every client send the batch
//! again, the others fail it for good.

use shared::record::RecordError;

use crate::ingest::{Refusal, TopicError};
use crate::store::{AppendError, StoreError};

/// The error codes that this node sends (Kafka protocol guide, "Error Codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum ErrorCode {
    /// Success.
    None = 0,
    /// The log does not hold that offset: consumers start over where their settings say.
    OffsetOutOfRange = 1,
    /// The bytes changed on their way: retriable.
    CorruptMessage = 2,
    /// Retriable: clients ask for metadata again.
    UnknownTopicOrPartition = 3,
    /// The sync took longer than the client waits: retriable.
    RequestTimedOut = 7,
    /// The batch is larger than the topic allows; Java splits it, others fail it.
    MessageTooLarge = 10,
    /// What is committed with an offset is too large.
    OffsetMetadataTooLarge = 12,
    /// The disk refused it: retriable.
    CoordinatorNotAvailable = 15,
    /// Not a topic name.
    InvalidTopic = 17,
    /// Acks other than 0, 1 and all.
    InvalidRequiredAcks = 21,
    /// A member of another generation: it joins again.
    IllegalGeneration = 22,
    /// No protocol that the group and the member both know.
    InconsistentGroupProtocol = 23,
    /// Empty, or too long.
    InvalidGroupId = 24,
    /// It is out, or never was in: it joins as a new one.
    UnknownMemberId = 25,
    /// Shorter or longer than allowed.
    InvalidSessionTimeout = 26,
    /// The group forms anew: it joins again.
    RebalanceInProgress = 27,
    /// As many offsets are kept as may be.
    InvalidCommitOffsetSize = 28,
    /// The user's rules do not allow it.
    TopicAuthorizationFailed = 29,
    /// The user's rules do not allow it.
    GroupAuthorizationFailed = 30,
    /// A way to log in that is not served.
    UnsupportedSaslMechanism = 33,
    /// A login in the wrong order.
    IllegalSaslState = 34,
    /// A version of an API that is not served.
    UnsupportedVersion = 35,
    /// There is a topic of this name.
    TopicAlreadyExists = 36,
    /// A number of partitions that can't be.
    InvalidPartitions = 37,
    /// There is one broker.
    InvalidReplicationFactor = 38,
    /// There is one broker.
    InvalidReplicaAssignment = 39,
    /// A setting, or a value, that topics don't have.
    InvalidConfig = 40,
    /// A field has a value that it can't have.
    InvalidRequest = 42,
    /// Message format 0 or 1.
    UnsupportedForMessageFormat = 43,
    /// The site's configuration does not allow it, or the hub lacks records.
    PolicyViolation = 44,
    /// A hole in an idempotent producer's sequence.
    OutOfOrderSequence = 45,
    /// A newer incarnation of the producer is at work.
    InvalidProducerEpoch = 47,
    /// Transactions are not served.
    TransactionalIdAuthorizationFailed = 53,
    /// The store is full, or its disk failed: retriable.
    KafkaStorageError = 56,
    /// The user or its password is wrong.
    SaslAuthenticationFailed = 58,
    /// Somebody is in the group.
    NonEmptyGroup = 68,
    /// No such group.
    GroupIdNotFound = 69,
    /// There are no fetch sessions: clients ask without one.
    FetchSessionIdNotFound = 70,
    /// The client knows an older leader epoch.
    FencedLeaderEpoch = 74,
    /// The client knows a leader epoch that there never was.
    UnknownLeaderEpoch = 75,
    /// A codec that Kafka does not define.
    UnsupportedCompression = 76,
    /// Join again with the id that comes with this.
    MemberIdRequired = 79,
    /// As many members, or groups, as may be.
    GroupMaxSizeReached = 81,
    /// Another instance has the static id.
    FencedInstanceId = 82,
    /// The batch breaks a rule of its format.
    InvalidRecord = 87,
    /// Controllers were asked for, and there are none.
    UnsupportedEndpointType = 115,
}

impl ErrorCode {
    /// As sent.
    #[must_use]
    pub fn code(self) -> i16 {
        self as i16
    }
}

impl From<&TopicError> for ErrorCode {
    fn from(error: &TopicError) -> Self {
        match error {
            TopicError::InvalidName(_) => Self::InvalidTopic,
            // what a broker with auto.create.topics.enable=false answers
            TopicError::Unknown(..) => Self::UnknownTopicOrPartition,
            // what clients tell their users at once
            TopicError::TooMany(_) => Self::TopicAuthorizationFailed,
            TopicError::Store(_) => Self::KafkaStorageError,
        }
    }
}

impl From<&RecordError> for ErrorCode {
    fn from(error: &RecordError) -> Self {
        match error {
            RecordError::Checksum { .. } => Self::CorruptMessage,
            RecordError::Magic(_) => Self::UnsupportedForMessageFormat,
            RecordError::TooLarge { .. } => Self::MessageTooLarge,
            RecordError::UnknownCompression(_) => Self::UnsupportedCompression,
            // the checksum is right, so sending it again would not help
            RecordError::Malformed(_)
            | RecordError::Decompress(_)
            | RecordError::Unsupported(_) => Self::InvalidRecord,
        }
    }
}

impl From<&AppendError> for ErrorCode {
    fn from(error: &AppendError) -> Self {
        match error {
            AppendError::UnknownPartition => Self::UnknownTopicOrPartition,
            AppendError::OutOfOrderSequence { .. } => Self::OutOfOrderSequence,
            AppendError::ProducerFenced { .. } => Self::InvalidProducerEpoch,
            AppendError::Full(_) | AppendError::Unavailable(_) => Self::KafkaStorageError,
        }
    }
}

impl From<&StoreError> for ErrorCode {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::UnknownPartition => Self::UnknownTopicOrPartition,
            StoreError::Corrupt(_) | StoreError::Io(_) => Self::KafkaStorageError,
        }
    }
}

impl From<&Refusal> for ErrorCode {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownPartition => Self::UnknownTopicOrPartition,
            Refusal::Record(error) => error.into(),
            Refusal::Append(error) => error.into(),
        }
    }
}
