//! What administration tools ask: topics, records and settings. Decoders and encoders are plain code; in
//! between the door to the log carries the change out ([`crate::ingest`]).

mod cluster;
mod configs;
mod records;
mod topics;

pub use cluster::{decode_cluster, encode_cluster};
pub use configs::{AlterConfigs, Altered, DescribeConfigs, Wanted};
pub use records::DeleteRecords;
pub use topics::{CreatePartitions, CreateTopics, DeleteTopics, Growth, NewTopic};

use super::api::Header;
use super::error::ErrorCode;
use super::fetch::Entries;
use crate::access::Principal;
use crate::ingest::{Ingest, TopicChangeError};

/// A request of an administration tool, decoded.
#[derive(Debug)]
pub enum AdminRequest {
    /// `CreateTopics`
    CreateTopics(CreateTopics),
    /// `CreatePartitions`
    CreatePartitions(CreatePartitions),
    /// `DeleteTopics`
    DeleteTopics(DeleteTopics),
    /// `DeleteRecords`
    DeleteRecords(DeleteRecords),
    /// `DescribeConfigs`
    DescribeConfigs(DescribeConfigs),
    /// `IncrementalAlterConfigs`
    AlterConfigs(AlterConfigs),
}

impl AdminRequest {
    /// Topics that it deletes.
    #[must_use]
    pub fn deletes(&self) -> &[String] {
        match self {
            Self::DeleteTopics(request) => &request.names,
            Self::CreateTopics(_)
            | Self::CreatePartitions(_)
            | Self::DeleteRecords(_)
            | Self::DescribeConfigs(_)
            | Self::AlterConfigs(_) => &[],
        }
    }

    /// Carries it out, and returns the response.
    pub async fn answer(self, ingest: &Ingest, header: &Header, user: &Principal) -> Vec<u8> {
        match self {
            Self::CreateTopics(request) => request.answer(ingest, header, user).await,
            Self::CreatePartitions(request) => request.answer(ingest, header, user).await,
            Self::DeleteTopics(request) => request.answer(ingest, header, user).await,
            Self::DeleteRecords(request) => request.answer(ingest, header, user).await,
            Self::DescribeConfigs(request) => request.answer(ingest, header, user),
            Self::AlterConfigs(request) => request.answer(ingest, header, user).await,
        }
    }
}

/// Why something was not done, for the program and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    code: ErrorCode,
    text: String,
}

impl Refusal {
    fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

impl From<TopicChangeError> for Refusal {
    fn from(error: TopicChangeError) -> Self {
        let code = match &error {
            TopicChangeError::InvalidName(_) => ErrorCode::InvalidTopic,
            TopicChangeError::Exists(_) => ErrorCode::TopicAlreadyExists,
            TopicChangeError::Unknown => ErrorCode::UnknownTopicOrPartition,
            TopicChangeError::Refused(_) | TopicChangeError::Delete(_) => {
                ErrorCode::PolicyViolation
            }
            TopicChangeError::Partitions(_) => ErrorCode::InvalidPartitions,
            TopicChangeError::Setting(_) => ErrorCode::InvalidConfig,
            TopicChangeError::OffsetOutOfRange(_) => ErrorCode::OffsetOutOfRange,
            TopicChangeError::Store(error) => error.into(),
        };
        Self::new(code, error.to_string())
    }
}

/// Lets go on whoever may change topics.
fn check_admin(user: &Principal) -> Result<(), Refusal> {
    if user.may_administer() {
        return Ok(());
    }
    let text = "the user may not administer topics";
    Err(Refusal::new(ErrorCode::TopicAuthorizationFailed, text))
}

/// The code and the text of an outcome.
fn told<T>(outcome: &Result<T, Refusal>) -> (i16, Option<&str>) {
    match outcome {
        Ok(_) => (ErrorCode::None.code(), None),
        Err(refusal) => (refusal.code.code(), Some(refusal.text.as_str())),
    }
}
