//! Which APIs are served in which versions, the request header, and `ApiVersions` itself. Plain code.

use bytes::Bytes;

use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;

/// The APIs that are advertised.
#[expect(clippy::enum_variant_names, reason = "the names are Kafka's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Api {
    /// Records in.
    Produce = 0,
    /// Records out.
    Fetch = 1,
    /// Offsets by time.
    ListOffsets = 2,
    /// Where topics are.
    Metadata = 3,
    /// Offsets kept for a consumer group.
    OffsetCommit = 8,
    /// Told to it.
    OffsetFetch = 9,
    /// Which broker has a group: this one.
    FindCoordinator = 10,
    /// A member comes, or comes again.
    JoinGroup = 11,
    /// A member is there.
    Heartbeat = 12,
    /// Members go.
    LeaveGroup = 13,
    /// What each member reads.
    SyncGroup = 14,
    /// Groups and their members.
    DescribeGroups = 15,
    /// Groups.
    ListGroups = 16,
    /// A login begins.
    SaslHandshake = 17,
    /// This list.
    ApiVersions = 18,
    /// A producer id for idempotence.
    InitProducerId = 22,
    /// Topics made by tools.
    CreateTopics = 19,
    /// Topics deleted.
    DeleteTopics = 20,
    /// Records deleted.
    DeleteRecords = 21,
    /// Where a leader epoch ends.
    OffsetForLeaderEpoch = 23,
    /// Settings.
    DescribeConfigs = 32,
    /// A login goes on.
    SaslAuthenticate = 36,
    /// Topics that grow.
    CreatePartitions = 37,
    /// Groups deleted.
    DeleteGroups = 42,
    /// Settings changed.
    IncrementalAlterConfigs = 44,
    /// Committed offsets deleted.
    OffsetDelete = 47,
    /// The broker, once more.
    DescribeCluster = 60,
}

impl Api {
    /// The first flexible version (KIP-482).
    const fn flexible_from(self) -> i16 {
        match self {
            Self::Produce | Self::Metadata => 9,
            Self::Fetch => 12,
            Self::ListOffsets => 6,
            Self::FindCoordinator | Self::ApiVersions | Self::ListGroups => 3,
            Self::InitProducerId
            | Self::DeleteRecords
            | Self::CreatePartitions
            | Self::DeleteGroups
            | Self::SaslAuthenticate => 2,
            Self::OffsetForLeaderEpoch
            | Self::DeleteTopics
            | Self::DescribeConfigs
            | Self::Heartbeat
            | Self::LeaveGroup
            | Self::SyncGroup => 4,
            Self::CreateTopics | Self::DescribeGroups => 5,
            Self::OffsetFetch | Self::JoinGroup => 6,
            Self::OffsetCommit => 8,
            Self::OffsetDelete | Self::SaslHandshake => i16::MAX,
            Self::IncrementalAlterConfigs => 1,
            Self::DescribeCluster => 0,
        }
    }
}

/// What is advertised: API, lowest and highest version.
///
/// - Produce from 0 although only 3 and up are served: when it starts at 3, librdkafka before 2.11.1
///   silently sends everything uncompressed (KAFKA-18659, librdkafka#4956).
/// - librdkafka takes message format 2 from Fetch 4, zstd from Fetch 10 and lz4 from `FindCoordinator`
///   (`rdkafka_feature.c`). Fetch ends before 13, where topics have ids in place of names.
pub const VERSIONS: [(Api, i16, i16); 27] = [
    (Api::Produce, 0, 8),
    (Api::Fetch, 4, 12),
    (Api::ListOffsets, 1, 7),
    (Api::Metadata, 0, 8),
    (Api::OffsetCommit, 2, 8),
    (Api::OffsetFetch, 1, 8),
    (Api::FindCoordinator, 0, 4),
    (Api::JoinGroup, 0, 9),
    (Api::Heartbeat, 0, 4),
    (Api::LeaveGroup, 0, 5),
    (Api::SyncGroup, 0, 5),
    (Api::DescribeGroups, 0, 5),
    (Api::ListGroups, 0, 5),
    (Api::SaslHandshake, 0, 1),
    (Api::ApiVersions, 0, 3),
    (Api::CreateTopics, 2, 4),
    (Api::DeleteTopics, 1, 5),
    (Api::DeleteRecords, 0, 2),
    (Api::InitProducerId, 0, 1),
    (Api::OffsetForLeaderEpoch, 2, 4),
    (Api::DescribeConfigs, 1, 4),
    (Api::SaslAuthenticate, 0, 2),
    (Api::CreatePartitions, 0, 3),
    (Api::DeleteGroups, 0, 2),
    (Api::IncrementalAlterConfigs, 0, 1),
    (Api::OffsetDelete, 0, 0),
    (Api::DescribeCluster, 0, 1),
];

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The API; `None` when it is not one of ours.
    pub api: Option<Api>,
    /// Its number as sent.
    pub key: i16,
    /// Its version.
    pub version: i16,
    /// Comes back in the response.
    pub correlation: i32,
}

impl Header {
    /// Reads the part that is the same in all versions.
    ///
    /// # Errors
    /// [`Malformed`] when there are not even 8 bytes.
    pub fn parse(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let key = reader.i16()?;
        Ok(Self {
            api: VERSIONS.iter().map(|v| v.0).find(|api| *api as i16 == key),
            key,
            version: reader.i16()?,
            correlation: reader.i32()?,
        })
    }

    /// True when the version is among those advertised.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        VERSIONS
            .iter()
            .any(|(api, min, max)| Some(*api) == self.api && (*min..=*max).contains(&self.version))
    }

    /// Reads the rest of the header: what the client calls itself, and tags in the flexible version.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes end early.
    pub fn client_id<'a>(&self, reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
        let client_id = reader.header_string()?;
        if self.is_flexible() {
            reader.set_flexible();
        }
        reader.skip_tags()?;
        Ok(client_id.unwrap_or_default())
    }

    /// True in versions with compact types and tagged fields.
    #[must_use]
    pub fn is_flexible(&self) -> bool {
        self.api
            .is_some_and(|api| self.version >= api.flexible_from())
    }
}

/// Reads an `ApiVersions` request: only its shape matters.
///
/// # Errors
/// [`Malformed`].
pub fn decode_api_versions(mut reader: Reader<'_>, version: i16) -> Result<(), Malformed> {
    if version >= 3 {
        reader.string()?; // client software name
        reader.string()?; // and its version
        reader.skip_tags()?;
    }
    reader.finish()
}

/// The answer to `ApiVersions`. A version that is not served is answered in version 0 with the error,
/// so that the client can ask again (KIP-511).
#[must_use]
pub fn encode_api_versions(header: &Header) -> Vec<u8> {
    let is_supported = header.is_supported();
    let version = if is_supported { header.version } else { 0 };
    let error = if is_supported {
        ErrorCode::None
    } else {
        ErrorCode::UnsupportedVersion
    };
    let mut out = Writer::response(header.correlation);
    if version >= 3 {
        out.set_flexible();
    }
    out.i16(error.code());
    out.array_len(VERSIONS.len());
    for (api, min, max) in VERSIONS {
        out.i16(api as i16);
        out.i16(min);
        out.i16(max);
        out.tags();
    }
    if version >= 1 {
        out.i32(0); // throttle time
    }
    out.tags();
    out.finish()
}

/// The frame's header and a cursor behind it.
///
/// # Errors
/// [`Malformed`].
pub fn open(frame: &Bytes) -> Result<(Header, Reader<'_>), Malformed> {
    let mut reader = Reader::new(frame);
    let header = Header::parse(&mut reader)?;
    Ok((header, reader))
}
