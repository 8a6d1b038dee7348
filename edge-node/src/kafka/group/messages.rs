//! What a coordinator is asked, and what it answers: free of versions, see [`super::codec`].

use bytes::Bytes;

use crate::kafka::error::ErrorCode;

/// Stands for one request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Whose connection a request came by; told by `DescribeGroups`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// As the client calls itself.
    pub client_id: String,
    /// Its address.
    pub host: String,
}

/// A request about groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `JoinGroup`
    Join(JoinRequest),
    /// `SyncGroup`
    Sync(SyncRequest),
    /// `Heartbeat`
    Heartbeat(MemberRef),
    /// `LeaveGroup`
    Leave(LeaveRequest),
    /// `OffsetCommit`
    Commit(CommitRequest),
    /// `OffsetFetch`
    Fetch(FetchRequest),
    /// `DescribeGroups`
    Describe(Vec<String>),
    /// `ListGroups`
    List(ListRequest),
    /// `DeleteGroups`
    Delete(Vec<String>),
    /// `OffsetDelete`: a group and partitions by topic.
    DeleteOffsets(String, Vec<(String, Vec<i32>)>),
}

/// The answer to a [`Request`] of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// `JoinGroup`
    Join(JoinAnswer),
    /// `SyncGroup`
    Sync(SyncAnswer),
    /// `Heartbeat`
    Heartbeat(ErrorCode),
    /// `LeaveGroup`
    Leave(LeaveAnswer),
    /// `OffsetCommit`
    Commit(CommitAnswer),
    /// `OffsetFetch`
    Fetch(FetchAnswer),
    /// `DescribeGroups`
    Describe(Vec<Described>),
    /// `ListGroups`
    List(Vec<Listed>),
    /// `DeleteGroups`
    Delete(Vec<(String, ErrorCode)>),
    /// `OffsetDelete`
    DeleteOffsets(ErrorCode, Vec<(String, Vec<(i32, ErrorCode)>)>),
}

/// A member as it calls itself in a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberRef {
    /// The group.
    pub group: String,
    /// The generation that it knows; negative: none.
    pub generation: i32,
    /// Its id; empty: none.
    pub member: String,
    /// The id that it keeps over restarts (KIP-345).
    pub instance: Option<String>,
}

/// `JoinGroup`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Who; without generation.
    pub who: MemberRef,
    /// Without a heartbeat for so long it is out, ms.
    pub session_ms: i32,
    /// So long it may take to join again, ms.
    pub rebalance_ms: i32,
    /// Such as `consumer`.
    pub protocol_type: String,
    /// Ways to assign that it knows, the preferred first, each with what the leader is told about it.
    pub protocols: Vec<(String, Bytes)>,
    /// The client understands `MEMBER_ID_REQUIRED` (version 4 and up).
    pub knows_required_id: bool,
    /// The client can be told to be the leader and assign nothing (version 9 and up, KIP-814).
    pub can_skip_assignment: bool,
    /// Whose connection it is.
    pub caller: Caller,
}

/// The answer to `JoinGroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    /// What went wrong.
    pub error: ErrorCode,
    /// The generation that begins; -1 with an error.
    pub generation: i32,
    /// The group's protocol type.
    pub protocol_type: Option<String>,
    /// The protocol chosen.
    pub protocol: Option<String>,
    /// The leader's member id.
    pub leader: String,
    /// Leader, but nothing is to be assigned.
    pub skips_assignment: bool,
    /// The member's own id.
    pub member: String,
    /// For the leader: everybody.
    pub members: Vec<JoinedMember>,
}

/// A member as its leader is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub member: String,
    /// Its static id.
    pub instance: Option<String>,
    /// What it says about itself for the chosen protocol.
    pub metadata: Bytes,
}

/// `SyncGroup`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRequest {
    /// Who.
    pub who: MemberRef,
    /// What it takes the group's protocol type and protocol for (version 5 and up).
    pub protocol_type: Option<String>,
    /// See above.
    pub protocol: Option<String>,
    /// From the leader: what each member gets.
    pub assignments: Vec<(String, Bytes)>,
}

/// The answer to `SyncGroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncAnswer {
    /// What went wrong.
    pub error: ErrorCode,
    /// The group's protocol type and protocol.
    pub protocol_type: Option<String>,
    /// See above.
    pub protocol: Option<String>,
    /// What the member gets.
    pub assignment: Bytes,
}

/// `LeaveGroup`: one member, or several since version 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaveRequest {
    /// The group.
    pub group: String,
    /// Who leaves.
    pub members: Vec<Leaving>,
}

/// Who leaves, or left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// Its id; empty when only the static one is known.
    pub member: String,
    /// Its static id.
    pub instance: Option<String>,
}

/// The answer to `LeaveGroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaveAnswer {
    /// What went wrong for all.
    pub error: ErrorCode,
    /// What went wrong for each.
    pub members: Vec<(Leaving, ErrorCode)>,
}

/// Something of each of several partitions, by topic.
pub type TopicEntries<T> = Vec<(String, Vec<T>)>;

/// `OffsetCommit`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRequest {
    /// Who; generation and member empty for programs that don't use the group otherwise.
    pub who: MemberRef,
    /// Offsets by topic.
    pub topics: TopicEntries<CommitEntry>,
}

/// One offset to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitEntry {
    /// Partition index.
    pub partition: i32,
    /// Next offset to read.
    pub offset: i64,
    /// Leader epoch of the record before; -1: not known.
    pub leader_epoch: i32,
    /// Anything.
    pub metadata: String,
    /// Set where it is refused before the coordinator looks: no such topic, or no right to it.
    pub refused: Option<ErrorCode>,
}

/// The answer to `OffsetCommit`: in the request's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitAnswer {
    /// Partition index and outcome, by topic.
    pub topics: TopicEntries<(i32, ErrorCode)>,
}

/// `OffsetFetch` for one group; several make one request since version 8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// Each group with the partitions asked for; `None`: all.
    pub groups: Vec<(String, Option<Vec<(String, Vec<i32>)>>)>,
}

/// The answer to `OffsetFetch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchAnswer {
    /// In the request's order.
    pub groups: Vec<(String, ErrorCode, TopicEntries<FetchedOffset>)>,
}

/// One committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedOffset {
    /// Partition index.
    pub partition: i32,
    /// Next offset to read; -1: none was committed.
    pub offset: i64,
    /// As committed.
    pub leader_epoch: i32,
    /// As committed.
    pub metadata: String,
    /// Set where the client may not know.
    pub error: ErrorCode,
}

/// A group as `DescribeGroups` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its id.
    pub group: String,
    /// Set where the client may not know.
    pub error: ErrorCode,
    /// Kafka's word for its state.
    pub state: &'static str,
    /// Its protocol type.
    pub protocol_type: String,
    /// The protocol in use.
    pub protocol: String,
    /// Its members.
    pub members: Vec<DescribedMember>,
}

/// A member as `DescribeGroups` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedMember {
    /// Its ids.
    pub who: Leaving,
    /// Whose connection it joined by.
    pub caller: Caller,
    /// What it says about itself for the protocol in use.
    pub metadata: Bytes,
    /// What it reads.
    pub assignment: Bytes,
}

/// What kind of groups there are, in Kafka's words (KIP-848).
pub(super) const GROUP_TYPE: &str = "classic";

/// `ListGroups`: empty lists mean all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only groups in these states.
    pub states: Vec<String>,
    /// Only groups of these types.
    pub types: Vec<String>,
}

/// A group as `ListGroups` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub group: String,
    /// Its protocol type.
    pub protocol_type: String,
    /// Kafka's word for its state.
    pub state: &'static str,
}

impl JoinAnswer {
    /// A refusal.
    #[must_use]
    pub fn refused(error: ErrorCode, member: &str) -> Self {
        Self {
            error,
            generation: -1,
            protocol_type: None,
            protocol: None,
            leader: String::new(),
            skips_assignment: false,
            member: member.to_owned(),
            members: Vec::new(),
        }
    }
}

impl SyncAnswer {
    /// A refusal.
    #[must_use]
    pub fn refused(error: ErrorCode) -> Self {
        Self {
            error,
            protocol_type: None,
            protocol: None,
            assignment: Bytes::new(),
        }
    }
}

impl JoinRequest {
    /// Bytes of what the member says about itself.
    #[must_use]
    pub fn len(&self) -> usize {
        let protocols = self.protocols.iter();
        let protocols: usize = protocols
            .map(|(name, metadata)| name.len() + metadata.len())
            .sum();
        let instance = self.who.instance.as_ref().map_or(0, String::len);
        protocols + self.caller.client_id.len() + 2 * instance
    }

    /// True when it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
