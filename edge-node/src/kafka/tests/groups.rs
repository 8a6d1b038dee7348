//! Requests about groups as kafka-protocol writes them, and answers as it reads them, in every version.

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest,
    DescribeGroupsResponse, FindCoordinatorRequest, FindCoordinatorResponse, GroupId,
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest,
    OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse, TopicName,
};
use kafka_protocol::protocol::{Encodable, StrBytes};

use super::oracle::response;
use super::{request, text};
use crate::kafka::api::{Header, VERSIONS};
use crate::kafka::dispatch::{Plan, plan};
use crate::kafka::error::ErrorCode;
use crate::kafka::group::codec::encode;
use crate::kafka::group::{
    Answer, Caller, CommitAnswer, CommitEntry, CommitRequest, Described, DescribedMember,
    FetchAnswer, FetchRequest, FetchedOffset, JoinAnswer, JoinRequest, JoinedMember, LeaveAnswer,
    LeaveRequest, Leaving, ListRequest, Listed, MemberRef, Request, SyncAnswer, SyncRequest,
};
use crate::kafka::grouping;

fn group_id() -> GroupId {
    GroupId(text("g"))
}

fn topic(name: &str) -> TopicName {
    TopicName(text(name))
}

fn some(name: &str, is_there: bool) -> Option<StrBytes> {
    is_there.then(|| text(name))
}

fn owned(name: &str, is_there: bool) -> Option<String> {
    is_there.then(|| name.to_owned())
}

/// Runs a case for every version that is advertised.
fn each_version(api: ApiKey, case: impl Fn(i16)) {
    let (_, min, max) = VERSIONS
        .into_iter()
        .find(|(it, ..)| *it as i16 == api as i16)
        .unwrap();
    (min..=max).for_each(case);
}

fn planned(api: ApiKey, version: i16, message: &impl Encodable) -> (Header, Request) {
    let frame = request(api, version, 5, |out| message.encode(out, version).unwrap());
    match plan(&frame) {
        Ok((header, Plan::Group(request))) => (header, request),
        other => panic!("{api:?} {version}: {other:?}"),
    }
}

fn who(has_instance: bool) -> MemberRef {
    MemberRef {
        group: "g".to_owned(),
        generation: 3,
        member: "m".to_owned(),
        instance: owned("i", has_instance),
    }
}

#[test]
fn join_group_goes_both_ways() {
    each_version(ApiKey::JoinGroup, |version| {
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(text("range"))
            .with_metadata(Bytes::from_static(b"meta"));
        let message = JoinGroupRequest::default()
            .with_group_id(group_id())
            .with_session_timeout_ms(10)
            .with_rebalance_timeout_ms(if version >= 1 { 20 } else { -1 })
            .with_member_id(text("m"))
            .with_group_instance_id(some("i", version >= 5))
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![protocol])
            .with_reason(some("why", version >= 8));
        let (header, found) = planned(ApiKey::JoinGroup, version, &message);
        let expected = JoinRequest {
            who: MemberRef {
                generation: -1,
                ..who(version >= 5)
            },
            session_ms: 10,
            rebalance_ms: if version >= 1 { 20 } else { 10 },
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), Bytes::from_static(b"meta"))],
            knows_required_id: version >= 4,
            can_skip_assignment: version >= 9,
            caller: Caller {
                client_id: "test".to_owned(),
                host: String::new(),
            },
        };
        assert_eq!(found, Request::Join(expected));

        let answer = JoinAnswer {
            error: ErrorCode::None,
            generation: 7,
            protocol_type: Some("consumer".to_owned()),
            protocol: Some("range".to_owned()),
            leader: "l".to_owned(),
            skips_assignment: version >= 9,
            member: "m".to_owned(),
            members: vec![JoinedMember {
                member: "m".to_owned(),
                instance: Some("i".to_owned()),
                metadata: Bytes::from_static(b"meta"),
            }],
        };
        let bytes = encode(&header, &Answer::Join(answer));
        let (correlation, found) = response::<JoinGroupResponse>(bytes, version);
        assert_eq!(
            (correlation, found.error_code, found.generation_id),
            (5, 0, 7)
        );
        assert_eq!(found.protocol_name, Some(text("range")));
        assert_eq!(found.protocol_type, some("consumer", version >= 7));
        assert_eq!((found.leader, found.member_id), (text("l"), text("m")));
        assert_eq!(found.skip_assignment, version >= 9);
        assert_eq!(found.members[0].group_instance_id, some("i", version >= 5));
        assert_eq!(&found.members[0].metadata[..], b"meta");

        let refused = JoinAnswer::refused(ErrorCode::MemberIdRequired, "m");
        let bytes = encode(&header, &Answer::Join(refused));
        let (_, found) = response::<JoinGroupResponse>(bytes, version);
        assert_eq!((found.error_code, found.generation_id), (79, -1));
    });
}

#[test]
fn sync_group_goes_both_ways() {
    each_version(ApiKey::SyncGroup, |version| {
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(text("m"))
            .with_assignment(Bytes::from_static(b"mine"));
        let message = SyncGroupRequest::default()
            .with_group_id(group_id())
            .with_generation_id(3)
            .with_member_id(text("m"))
            .with_group_instance_id(some("i", version >= 3))
            .with_protocol_type(some("consumer", version >= 5))
            .with_protocol_name(some("range", version >= 5))
            .with_assignments(vec![assignment]);
        let (header, found) = planned(ApiKey::SyncGroup, version, &message);
        let expected = SyncRequest {
            who: who(version >= 3),
            protocol_type: owned("consumer", version >= 5),
            protocol: owned("range", version >= 5),
            assignments: vec![("m".to_owned(), Bytes::from_static(b"mine"))],
        };
        assert_eq!(found, Request::Sync(expected));
        let answer = SyncAnswer {
            error: ErrorCode::None,
            protocol_type: Some("consumer".to_owned()),
            protocol: Some("range".to_owned()),
            assignment: Bytes::from_static(b"mine"),
        };
        let bytes = encode(&header, &Answer::Sync(answer));
        let (_, found) = response::<SyncGroupResponse>(bytes, version);
        assert_eq!((found.error_code, &found.assignment[..]), (0, &b"mine"[..]));
        assert_eq!(found.protocol_name, some("range", version >= 5));
    });
}

#[test]
fn heartbeats_go_both_ways() {
    each_version(ApiKey::Heartbeat, |version| {
        let message = HeartbeatRequest::default()
            .with_group_id(group_id())
            .with_generation_id(3)
            .with_member_id(text("m"))
            .with_group_instance_id(some("i", version >= 3));
        let (header, found) = planned(ApiKey::Heartbeat, version, &message);
        assert_eq!(found, Request::Heartbeat(who(version >= 3)));
        let bytes = encode(&header, &Answer::Heartbeat(ErrorCode::RebalanceInProgress));
        let (_, found) = response::<HeartbeatResponse>(bytes, version);
        assert_eq!(found.error_code, 27);
    });
}

#[test]
fn leave_group_goes_both_ways() {
    each_version(ApiKey::LeaveGroup, |version| {
        let message = LeaveGroupRequest::default().with_group_id(group_id());
        let message = if version >= 3 {
            message.with_members(vec![
                MemberIdentity::default()
                    .with_member_id(text("m"))
                    .with_group_instance_id(Some(text("i")))
                    .with_reason(some("why", version >= 5)),
            ])
        } else {
            message.with_member_id(text("m"))
        };
        let (header, found) = planned(ApiKey::LeaveGroup, version, &message);
        let leaving = Leaving {
            member: "m".to_owned(),
            instance: owned("i", version >= 3),
        };
        let expected = LeaveRequest {
            group: "g".to_owned(),
            members: vec![leaving.clone()],
        };
        assert_eq!(found, Request::Leave(expected));
        let answer = LeaveAnswer {
            error: ErrorCode::None,
            members: vec![(leaving, ErrorCode::UnknownMemberId)],
        };
        let bytes = encode(&header, &Answer::Leave(answer));
        let (_, found) = response::<LeaveGroupResponse>(bytes, version);
        if version >= 3 {
            assert_eq!((found.error_code, found.members[0].error_code), (0, 25));
            assert_eq!(found.members[0].group_instance_id, Some(text("i")));
        } else {
            assert_eq!(found.error_code, 25);
        }
    });
}

#[test]
fn offset_commit_goes_both_ways() {
    each_version(ApiKey::OffsetCommit, |version| {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(2)
            .with_committed_offset(40)
            .with_committed_leader_epoch(if version >= 6 { 1 } else { -1 })
            .with_committed_metadata(Some(text("meta")));
        let message = OffsetCommitRequest::default()
            .with_group_id(group_id())
            .with_generation_id_or_member_epoch(3)
            .with_member_id(text("m"))
            .with_group_instance_id(some("i", version >= 7))
            .with_topics(vec![
                OffsetCommitRequestTopic::default()
                    .with_name(topic("t"))
                    .with_partitions(vec![partition]),
            ]);
        let (header, found) = planned(ApiKey::OffsetCommit, version, &message);
        let entry = CommitEntry {
            partition: 2,
            offset: 40,
            leader_epoch: if version >= 6 { 1 } else { -1 },
            metadata: "meta".to_owned(),
            refused: None,
        };
        let expected = CommitRequest {
            who: who(version >= 7),
            topics: vec![("t".to_owned(), vec![entry])],
        };
        assert_eq!(found, Request::Commit(expected));
        let answer = CommitAnswer {
            topics: vec![("t".to_owned(), vec![(2, ErrorCode::IllegalGeneration)])],
        };
        let bytes = encode(&header, &Answer::Commit(answer));
        let (_, found) = response::<OffsetCommitResponse>(bytes, version);
        assert_eq!(found.topics[0].name, topic("t"));
        let found = &found.topics[0].partitions[0];
        assert_eq!((found.partition_index, found.error_code), (2, 22));
    });
}

#[test]
fn offset_fetch_goes_both_ways() {
    each_version(ApiKey::OffsetFetch, |version| {
        for is_all in [false, true] {
            if is_all && version < 2 {
                continue;
            }
            let message = OffsetFetchRequest::default();
            let message = if version >= 8 {
                let topics = OffsetFetchRequestTopics::default()
                    .with_name(topic("t"))
                    .with_partition_indexes(vec![0, 2]);
                message.with_groups(vec![
                    OffsetFetchRequestGroup::default()
                        .with_group_id(group_id())
                        .with_topics((!is_all).then(|| vec![topics])),
                ])
            } else {
                let topics = OffsetFetchRequestTopic::default()
                    .with_name(topic("t"))
                    .with_partition_indexes(vec![0, 2]);
                message
                    .with_group_id(group_id())
                    .with_topics((!is_all).then(|| vec![topics]))
            };
            let (_, found) = planned(ApiKey::OffsetFetch, version, &message);
            let topics = (!is_all).then(|| vec![("t".to_owned(), vec![0, 2])]);
            let groups = vec![("g".to_owned(), topics)];
            assert_eq!(found, Request::Fetch(FetchRequest { groups }));
        }
        let header = Header {
            api: VERSIONS
                .into_iter()
                .map(|it| it.0)
                .find(|it| *it as i16 == 9),
            key: 9,
            version,
            correlation: 5,
        };
        let fetched = FetchedOffset {
            partition: 2,
            offset: 40,
            leader_epoch: 1,
            metadata: "meta".to_owned(),
            error: ErrorCode::None,
        };
        let topics = vec![("t".to_owned(), vec![fetched])];
        let groups = vec![("g".to_owned(), ErrorCode::None, topics)];
        let bytes = encode(&header, &Answer::Fetch(FetchAnswer { groups }));
        let (_, found) = response::<OffsetFetchResponse>(bytes, version);
        let (offset, epoch, metadata) = if version >= 8 {
            assert_eq!(found.groups[0].group_id, group_id());
            let it = &found.groups[0].topics[0].partitions[0];
            (
                it.committed_offset,
                it.committed_leader_epoch,
                it.metadata.clone(),
            )
        } else {
            let it = &found.topics[0].partitions[0];
            (
                it.committed_offset,
                it.committed_leader_epoch,
                it.metadata.clone(),
            )
        };
        let expected = if version >= 5 { 1 } else { -1 };
        assert_eq!(
            (offset, epoch, metadata),
            (40, expected, Some(text("meta")))
        );
    });
}

#[test]
fn groups_are_described_listed_and_deleted() {
    each_version(ApiKey::DescribeGroups, |version| {
        let message = DescribeGroupsRequest::default().with_groups(vec![group_id()]);
        let (header, found) = planned(ApiKey::DescribeGroups, version, &message);
        assert_eq!(found, Request::Describe(vec!["g".to_owned()]));
        let described = Described {
            group: "g".to_owned(),
            error: ErrorCode::None,
            state: "Stable",
            protocol_type: "consumer".to_owned(),
            protocol: "range".to_owned(),
            members: vec![DescribedMember {
                who: Leaving {
                    member: "m".to_owned(),
                    instance: Some("i".to_owned()),
                },
                caller: Caller {
                    client_id: "c".to_owned(),
                    host: "/::1".to_owned(),
                },
                metadata: Bytes::from_static(b"meta"),
                assignment: Bytes::from_static(b"mine"),
            }],
        };
        let bytes = encode(&header, &Answer::Describe(vec![described]));
        let (_, found) = response::<DescribeGroupsResponse>(bytes, version);
        let group = &found.groups[0];
        assert_eq!(
            (&group.group_state, &group.protocol_data),
            (&text("Stable"), &text("range"))
        );
        let member = &group.members[0];
        assert_eq!(
            (&member.client_host, &member.client_id),
            (&text("/::1"), &text("c"))
        );
        assert_eq!(member.group_instance_id, some("i", version >= 4));
        assert_eq!(&member.member_assignment[..], b"mine");
    });
    each_version(ApiKey::ListGroups, |version| {
        let mut message = ListGroupsRequest::default();
        let mut expected = ListRequest::default();
        if version >= 4 {
            message.states_filter = vec![text("Stable")];
            expected.states = vec!["Stable".to_owned()];
        }
        if version >= 5 {
            message.types_filter = vec![text("classic")];
            expected.types = vec!["classic".to_owned()];
        }
        let (header, found) = planned(ApiKey::ListGroups, version, &message);
        assert_eq!(found, Request::List(expected));
        let listed = Listed {
            group: "g".to_owned(),
            protocol_type: "consumer".to_owned(),
            state: "Stable",
        };
        let bytes = encode(&header, &Answer::List(vec![listed]));
        let (_, found) = response::<ListGroupsResponse>(bytes, version);
        assert_eq!(found.groups[0].group_id, group_id());
        let word = |word: &str, from: i16| {
            if version >= from {
                text(word)
            } else {
                text("")
            }
        };
        assert_eq!(found.groups[0].group_state, word("Stable", 4));
        assert_eq!(found.groups[0].group_type, word("classic", 5));
    });
    each_version(ApiKey::DeleteGroups, |version| {
        let message = DeleteGroupsRequest::default().with_groups_names(vec![group_id()]);
        let (header, found) = planned(ApiKey::DeleteGroups, version, &message);
        assert_eq!(found, Request::Delete(vec!["g".to_owned()]));
        let answer = Answer::Delete(vec![("g".to_owned(), ErrorCode::NonEmptyGroup)]);
        let (_, found) = response::<DeleteGroupsResponse>(encode(&header, &answer), version);
        assert_eq!(found.results[0].error_code, 68);
    });
    each_version(ApiKey::OffsetDelete, |version| {
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(2);
        let message = OffsetDeleteRequest::default()
            .with_group_id(group_id())
            .with_topics(vec![
                OffsetDeleteRequestTopic::default()
                    .with_name(topic("t"))
                    .with_partitions(vec![partition]),
            ]);
        let (header, found) = planned(ApiKey::OffsetDelete, version, &message);
        let topics = vec![("t".to_owned(), vec![2])];
        assert_eq!(found, Request::DeleteOffsets("g".to_owned(), topics));
        let codes = vec![("t".to_owned(), vec![(2, ErrorCode::None)])];
        let answer = Answer::DeleteOffsets(ErrorCode::None, codes);
        let (_, found) = response::<OffsetDeleteResponse>(encode(&header, &answer), version);
        assert_eq!(found.topics[0].partitions[0].partition_index, 2);
    });
}

#[test]
fn this_broker_has_every_group_and_no_transactions() {
    each_version(ApiKey::FindCoordinator, |version| {
        for key_type in [0, 1] {
            if version == 0 && key_type == 1 {
                continue;
            }
            let message = FindCoordinatorRequest::default().with_key_type(key_type);
            let message = if version >= 4 {
                message.with_coordinator_keys(vec![text("g"), text("h")])
            } else {
                message.with_key(text("g"))
            };
            let frame = request(ApiKey::FindCoordinator, version, 5, |out| {
                message.encode(out, version).unwrap();
            });
            let (header, Plan::Coordinators(asked)) = plan(&frame).unwrap() else {
                panic!("coordinators");
            };
            let bytes = grouping::coordinators(&header, &asked, "10.0.0.1", 9092);
            let (_, found) = response::<FindCoordinatorResponse>(bytes, version);
            let (code, node, host, port) = if key_type == 0 {
                (0, 1, text("10.0.0.1"), 9092)
            } else {
                (53, -1, text(""), -1)
            };
            if version >= 4 {
                assert_eq!(found.coordinators.len(), 2);
                let it = &found.coordinators[1];
                assert_eq!(it.key, text("h"));
                assert_eq!((it.error_code, it.node_id.0), (code, node));
                assert_eq!((&it.host, it.port), (&host, port));
            } else {
                assert_eq!((found.error_code, found.node_id.0), (code, node));
                assert_eq!((&found.host, found.port), (&host, port));
            }
        }
    });
}
