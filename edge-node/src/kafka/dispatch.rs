//! From the bytes of a request to what is to be done about it. Plain code.

use bytes::Bytes;

use super::admin::{
    self, AdminRequest, AlterConfigs, CreatePartitions, CreateTopics, DeleteRecords, DeleteTopics,
    DescribeConfigs,
};
use super::api::{self, Api, Header};
use super::codec::Malformed;
use super::error::ErrorCode;
use super::fetch::{self, FetchRequest};
use super::group;
use super::group::codec::{self as groups, FindCoordinator};
use super::login;
use super::metadata::{self, MetadataRequest};
use super::offsets::{self, AtTime, EpochEnd, Question};
use super::produce::{self, Acks, Outcome, ProduceRequest, TopicOutcome};
use super::producer_id;

/// What a request asks for.
#[derive(Debug)]
pub enum Plan<'a> {
    /// This answer, at once.
    Reply(Vec<u8>),
    /// Topics, created where allowed.
    Metadata(MetadataRequest<'a>),
    /// Records in.
    Produce(ProduceRequest<'a>),
    /// A producer id.
    ProducerId,
    /// Records out.
    Fetch(FetchRequest),
    /// Offsets by time.
    ListOffsets(Question<AtTime>),
    /// Where leader epochs end.
    EpochEnds(Question<EpochEnd>),
    /// What administration tools ask.
    Admin(AdminRequest),
    /// The broker, for this kind of endpoint.
    Cluster(i8),
    /// Which broker has groups.
    Coordinators(FindCoordinator),
    /// A login begins, with this mechanism.
    Handshake(String),
    /// A login goes on.
    Authenticate(Bytes),
    /// Something about groups.
    Group(group::Request),
}

/// Why a connection is closed with no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// Not a request of the API that it names.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// An API, or a version, that was not advertised: Kafka closes the connection too.
    #[error("API {key} version {version} is not served")]
    NotServed { key: i16, version: i16 },
    /// `acks=0` has no response, so that a refusal can only be told by closing (as Kafka does).
    #[error("batch sent with acks=0 was refused: {0:?}")]
    RefusedWithoutAcks(ErrorCode),
    /// Only a login may come before one.
    #[error("API {key} before a login")]
    NotLoggedIn { key: i16 },
}

/// Decodes a request.
///
/// # Errors
/// [`Unanswerable`]: close the connection.
pub fn plan(frame: &Bytes) -> Result<(Header, Plan<'_>), Unanswerable> {
    let (header, mut reader) = api::open(frame)?;
    let not_served = Unanswerable::NotServed {
        key: header.key,
        version: header.version,
    };
    let Some(api) = header.api else {
        return Err(not_served);
    };
    if api == Api::ApiVersions && !header.is_supported() {
        return Ok((header, Plan::Reply(api::encode_api_versions(&header))));
    }
    if !header.is_supported() {
        return Err(not_served);
    }
    let client_id = header.client_id(&mut reader)?;
    let version = header.version;
    let plan = match api {
        Api::ApiVersions => {
            api::decode_api_versions(reader, header.version)?;
            Plan::Reply(api::encode_api_versions(&header))
        }
        Api::Metadata => Plan::Metadata(metadata::decode(reader, header.version)?),
        Api::Produce => plan_produce(&header, produce::decode(reader, header.version)?)?,
        Api::InitProducerId => {
            if producer_id::decode_is_transactional(reader)? {
                let refusal = Err(ErrorCode::TransactionalIdAuthorizationFailed);
                Plan::Reply(producer_id::encode(header.correlation, refusal))
            } else {
                Plan::ProducerId
            }
        }
        Api::FindCoordinator => {
            Plan::Coordinators(groups::decode_find_coordinator(reader, version)?)
        }
        Api::SaslHandshake => Plan::Handshake(login::decode_handshake(reader)?),
        Api::SaslAuthenticate => Plan::Authenticate(login::decode_authenticate(reader)?),
        Api::JoinGroup => {
            let request = groups::decode_join(reader, version, client_id)?;
            Plan::Group(group::Request::Join(request))
        }
        Api::SyncGroup => Plan::Group(group::Request::Sync(groups::decode_sync(reader, version)?)),
        Api::Heartbeat => {
            let request = groups::decode_heartbeat(reader, version)?;
            Plan::Group(group::Request::Heartbeat(request))
        }
        Api::LeaveGroup => Plan::Group(group::Request::Leave(groups::decode_leave(
            reader, version,
        )?)),
        Api::OffsetCommit => Plan::Group(group::Request::Commit(groups::decode_commit(
            reader, version,
        )?)),
        Api::OffsetFetch => Plan::Group(group::Request::Fetch(groups::decode_fetch(
            reader, version,
        )?)),
        Api::DescribeGroups => {
            let request = groups::decode_describe(reader, version)?;
            Plan::Group(group::Request::Describe(request))
        }
        Api::ListGroups => Plan::Group(group::Request::List(groups::decode_list(reader, version)?)),
        Api::DeleteGroups => Plan::Group(group::Request::Delete(groups::decode_delete(reader)?)),
        Api::OffsetDelete => {
            let (group, topics) = groups::decode_delete_offsets(reader)?;
            Plan::Group(group::Request::DeleteOffsets(group, topics))
        }
        Api::Fetch => {
            let request = fetch::decode(reader, header.version)?;
            if request.is_of_session {
                Plan::Reply(fetch::refuse_session(&header))
            } else {
                Plan::Fetch(request)
            }
        }
        Api::ListOffsets => Plan::ListOffsets(offsets::decode_at_time(reader, header.version)?),
        Api::OffsetForLeaderEpoch => {
            Plan::EpochEnds(offsets::decode_epoch_end(reader, header.version)?)
        }
        Api::DescribeCluster => Plan::Cluster(admin::decode_cluster(reader, header.version)?),
        Api::CreateTopics => Plan::Admin(AdminRequest::CreateTopics(CreateTopics::decode(reader)?)),
        Api::CreatePartitions => Plan::Admin(AdminRequest::CreatePartitions(
            CreatePartitions::decode(reader)?,
        )),
        Api::DeleteTopics => Plan::Admin(AdminRequest::DeleteTopics(DeleteTopics::decode(reader)?)),
        Api::DeleteRecords => {
            Plan::Admin(AdminRequest::DeleteRecords(DeleteRecords::decode(reader)?))
        }
        Api::DescribeConfigs => {
            let request = DescribeConfigs::decode(reader, header.version)?;
            Plan::Admin(AdminRequest::DescribeConfigs(request))
        }
        Api::IncrementalAlterConfigs => {
            Plan::Admin(AdminRequest::AlterConfigs(AlterConfigs::decode(reader)?))
        }
    };
    Ok((header, plan))
}

fn plan_produce<'a>(
    header: &Header,
    request: ProduceRequest<'a>,
) -> Result<Plan<'a>, Unanswerable> {
    let refusal = if header.version < 3 {
        Some((
            ErrorCode::UnsupportedVersion,
            "message formats before 2 are not served",
        ))
    } else if request.transactional_id.is_some() {
        Some((
            ErrorCode::TransactionalIdAuthorizationFailed,
            "transactions are not served here",
        ))
    } else if request.acks == Acks::Invalid {
        Some((ErrorCode::InvalidRequiredAcks, "accepted: 0, 1 and -1"))
    } else {
        None
    };
    match refusal {
        None => Ok(Plan::Produce(request)),
        Some((error, _)) if request.acks == Acks::None => {
            Err(Unanswerable::RefusedWithoutAcks(error))
        }
        Some((error, text)) => {
            let outcomes = refuse_all(&request, error, text);
            Ok(Plan::Reply(produce::encode(
                header.correlation,
                header.version,
                &outcomes,
                0,
            )))
        }
    }
}

fn refuse_all(request: &ProduceRequest<'_>, error: ErrorCode, text: &str) -> Vec<TopicOutcome> {
    let topics = request.topics.iter();
    topics
        .map(|topic| TopicOutcome {
            name: topic.name.to_owned(),
            partitions: topic
                .partitions
                .iter()
                .map(|(index, _)| (*index, Outcome::Refused(error, text.to_owned())))
                .collect(),
        })
        .collect()
}
