//! Promises of the coordinator, one each.

use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::kafka::error::ErrorCode;
use crate::store::StateChange;

const S: Duration = Duration::from_secs(1);

struct Desk {
    coordinator: Coordinator,
    now: Duration,
    next: u64,
    answers: Vec<(Ticket, Answer)>,
    writes: Vec<(WriteId, Vec<StateChange>)>,
    /// Writes succeed at once.
    is_disk_fast: bool,
}

impl Desk {
    fn new(limits: Limits) -> Self {
        Self::restored(limits, &[])
    }

    fn restored(limits: Limits, facts: &[(Bytes, Bytes)]) -> Self {
        let random = StdRng::seed_from_u64(1);
        let (coordinator, unreadable) = Coordinator::restore(limits, random, facts, Duration::ZERO);
        assert_eq!(unreadable, 0);
        Self {
            coordinator,
            now: Duration::ZERO,
            next: 0,
            answers: Vec::new(),
            writes: Vec::new(),
            is_disk_fast: true,
        }
    }

    fn send(&mut self, request: Request) -> Ticket {
        self.next += 1;
        self.coordinator
            .handle(Ticket(self.next), request, self.now);
        self.collect();
        Ticket(self.next)
    }

    fn collect(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Answer(ticket, answer) => self.answers.push((ticket, answer)),
                Output::Write(id, changes) => {
                    self.writes.push((id, changes));
                    if self.is_disk_fast {
                        self.coordinator.written(id, true);
                    }
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.coordinator.next_deadline() <= end {
            self.now = self.now.max(self.coordinator.next_deadline());
            self.coordinator.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
    }

    fn take(&mut self, ticket: Ticket) -> Option<Answer> {
        let at = self.answers.iter().position(|(it, _)| *it == ticket)?;
        Some(self.answers.remove(at).1)
    }

    fn joined(&mut self, ticket: Ticket) -> JoinAnswer {
        match self.take(ticket) {
            Some(Answer::Join(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn synced(&mut self, ticket: Ticket) -> SyncAnswer {
        match self.take(ticket) {
            Some(Answer::Sync(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn heartbeat(&mut self, who: &MemberRef) -> ErrorCode {
        let ticket = self.send(Request::Heartbeat(who.clone()));
        match self.take(ticket) {
            Some(Answer::Heartbeat(code)) => code,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, who: &MemberRef, offset: i64, metadata: &str) -> ErrorCode {
        let ticket = self.send(commit(who, offset, metadata));
        match self.take(ticket) {
            Some(Answer::Commit(answer)) => answer.topics[0].1[0].1,
            other => panic!("{other:?}"),
        }
    }

    fn committed(&mut self, group: &str) -> (i64, String) {
        let topics = Some(vec![("t".to_owned(), vec![0])]);
        let ticket = self.send(Request::Fetch(FetchRequest {
            groups: vec![(group.to_owned(), topics)],
        }));
        match self.take(ticket) {
            Some(Answer::Fetch(answer)) => {
                let found = &answer.groups[0].2[0].1[0];
                (found.offset, found.metadata.clone())
            }
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self, group: &str) -> &'static str {
        let ticket = self.send(Request::Describe(vec![group.to_owned()]));
        match self.take(ticket) {
            Some(Answer::Describe(groups)) => groups[0].state,
            other => panic!("{other:?}"),
        }
    }

    /// Members that joined together and know what they read; the first is the leader.
    fn stable(&mut self, names: &[Option<&str>]) -> Vec<MemberRef> {
        let tickets: Vec<_> = names.iter().map(|it| self.send(join(*it, ""))).collect();
        self.pass(S);
        let joined: Vec<_> = tickets.into_iter().map(|it| self.joined(it)).collect();
        let mut members: Vec<_> = joined
            .iter()
            .zip(names)
            .map(|(answer, instance)| MemberRef {
                group: "g".to_owned(),
                generation: answer.generation,
                member: answer.member.clone(),
                instance: instance.map(str::to_owned),
            })
            .collect();
        let leader = joined[0].leader.clone();
        members.sort_by_key(|it| it.member != leader);
        let all: Vec<_> = members.iter().map(|it| it.member.clone()).collect();
        for member in members.iter().rev() {
            let mine = if member.member == leader {
                all.clone()
            } else {
                Vec::new()
            };
            self.send(sync(member, &mine));
        }
        for (_, answer) in std::mem::take(&mut self.answers) {
            match answer {
                Answer::Sync(answer) => assert_eq!(answer.error, ErrorCode::None),
                other @ (Answer::Join(_)
                | Answer::Heartbeat(_)
                | Answer::Leave(_)
                | Answer::Commit(_)
                | Answer::Fetch(_)
                | Answer::Describe(_)
                | Answer::List(_)
                | Answer::Delete(_)
                | Answer::DeleteOffsets(..)) => panic!("{other:?}"),
            }
        }
        members
    }
}

fn join(instance: Option<&str>, member: &str) -> Request {
    Request::Join(join_request(instance, member))
}

fn join_request(instance: Option<&str>, member: &str) -> JoinRequest {
    JoinRequest {
        who: MemberRef {
            group: "g".to_owned(),
            generation: -1,
            member: member.to_owned(),
            instance: instance.map(str::to_owned),
        },
        session_ms: 10_000,
        rebalance_ms: 60_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
        knows_required_id: false,
        can_skip_assignment: false,
        caller: Caller::default(),
    }
}

fn sync(who: &MemberRef, assigned: &[String]) -> Request {
    let assignments = assigned
        .iter()
        .map(|id| (id.clone(), Bytes::from(id.clone())));
    Request::Sync(SyncRequest {
        who: who.clone(),
        protocol_type: None,
        protocol: None,
        assignments: assignments.collect(),
    })
}

fn commit(who: &MemberRef, offset: i64, metadata: &str) -> Request {
    Request::Commit(CommitRequest {
        who: who.clone(),
        topics: vec![(
            "t".to_owned(),
            vec![CommitEntry {
                partition: 0,
                offset,
                leader_epoch: 7,
                metadata: metadata.to_owned(),
                refused: None,
            }],
        )],
    })
}

fn simple(group: &str) -> MemberRef {
    MemberRef {
        group: group.to_owned(),
        generation: -1,
        ..MemberRef::default()
    }
}

#[test]
fn first_members_wait_for_each_other_and_no_longer() {
    let mut desk = Desk::new(Limits::default());
    let first = desk.send(join(None, ""));
    desk.pass(Duration::from_millis(400));
    let second = desk.send(join(None, ""));
    desk.pass(Duration::from_millis(400));
    assert_eq!(desk.take(first), None, "another came: they wait once more");
    desk.pass(Duration::from_millis(200));
    let (first, second) = (desk.joined(first), desk.joined(second));
    assert_eq!((first.generation, second.generation), (1, 1));
    assert_eq!(first.leader, second.leader);
    assert_eq!(first.members.len() + second.members.len(), 2);
}

#[test]
fn an_unknown_member_is_given_an_id_first() {
    let mut desk = Desk::new(Limits::default());
    let mut request = join_request(None, "");
    request.knows_required_id = true;
    let ticket = desk.send(Request::Join(request.clone()));
    let refused = desk.joined(ticket);
    assert_eq!(refused.error, ErrorCode::MemberIdRequired);
    request.who.member.clone_from(&refused.member);
    let ticket = desk.send(Request::Join(request));
    desk.pass(S);
    assert_eq!(desk.joined(ticket).member, refused.member);
}

#[test]
fn an_id_that_is_not_used_is_forgotten_and_holds_nobody_up() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[None]);
    let mut request = join_request(None, "");
    request.knows_required_id = true;
    let ticket = desk.send(Request::Join(request.clone()));
    request.who.member = desk.joined(ticket).member;
    desk.pass(5 * S);
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::None);
    desk.pass(6 * S);
    let ticket = desk.send(Request::Join(request));
    assert_eq!(desk.joined(ticket).error, ErrorCode::UnknownMemberId);
}

#[test]
fn a_member_that_dies_is_out_after_its_session_and_the_others_share() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[None, None]);
    desk.pass(8 * S);
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::None);
    desk.pass(4 * S);
    assert_eq!(desk.heartbeat(&members[1]), ErrorCode::UnknownMemberId);
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::RebalanceInProgress);
    let ticket = desk.send(join(None, &members[0].member));
    let joined = desk.joined(ticket);
    assert_eq!((joined.generation, joined.members.len()), (2, 1));
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::IllegalGeneration);
    assert_eq!(
        desk.commit(&members[0], 1, ""),
        ErrorCode::IllegalGeneration
    );
}

#[test]
fn a_member_that_does_not_join_again_is_left_behind() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[None, None]);
    let ticket = desk.send(join(None, ""));
    for _ in 0..8 {
        assert_eq!(desk.heartbeat(&members[0]), ErrorCode::RebalanceInProgress);
        desk.pass(5 * S);
    }
    assert_eq!(desk.take(ticket), None);
    for _ in 0..5 {
        desk.heartbeat(&members[0]);
        desk.pass(5 * S);
    }
    assert_eq!(desk.joined(ticket).members.len(), 1);
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::UnknownMemberId);
}

#[test]
fn a_member_that_never_asks_for_its_assignment_is_out() {
    let mut desk = Desk::new(Limits::default());
    let tickets = [desk.send(join(None, "")), desk.send(join(None, ""))];
    desk.pass(S);
    let joined = tickets.map(|ticket| desk.joined(ticket));
    let leader = joined.iter().find(|it| it.leader == it.member).unwrap();
    let who = MemberRef {
        generation: 1,
        member: leader.member.clone(),
        ..simple("g")
    };
    desk.send(sync(&who, &[]));
    for _ in 0..13 {
        desk.heartbeat(&who);
        desk.pass(5 * S);
    }
    assert_eq!(desk.heartbeat(&who), ErrorCode::RebalanceInProgress);
}

#[test]
fn a_static_member_comes_back_without_a_rebalance_and_fences_the_old_one() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[Some("a"), Some("b")]);
    for old in &members {
        let ticket = desk.send(join(old.instance.as_deref(), ""));
        let joined = desk.joined(ticket);
        assert_eq!((joined.error, joined.generation), (ErrorCode::None, 1));
        assert_ne!(
            joined.member, joined.leader,
            "an old client would assign anew"
        );
        let who = MemberRef {
            member: joined.member,
            ..old.clone()
        };
        let ticket = desk.send(sync(&who, &[]));
        assert_eq!(
            desk.synced(ticket).assignment,
            old.member.clone().into_bytes()
        );
        assert_eq!(desk.heartbeat(old), ErrorCode::FencedInstanceId);
        assert_eq!(desk.commit(old, 1, ""), ErrorCode::FencedInstanceId);
        assert_eq!(desk.heartbeat(&who), ErrorCode::None);
    }
    assert_eq!(desk.state("g"), "Stable");
}

#[test]
fn who_leaves_is_out_at_once_also_by_its_static_id() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[Some("a"), None, None]);
    let plain: Vec<_> = members.iter().filter(|it| it.instance.is_none()).collect();
    let leaving = |member: &str, instance: Option<&str>| Leaving {
        member: member.to_owned(),
        instance: instance.map(str::to_owned),
    };
    let ticket = desk.send(Request::Leave(LeaveRequest {
        group: "g".to_owned(),
        members: vec![
            leaving("", Some("a")),
            leaving("", Some("nobody")),
            leaving(&plain[0].member, None),
            leaving(&plain[0].member, None),
        ],
    }));
    let Some(Answer::Leave(answer)) = desk.take(ticket) else {
        panic!("an answer");
    };
    let codes: Vec<_> = answer.members.iter().map(|(_, code)| *code).collect();
    let unknown = ErrorCode::UnknownMemberId;
    assert_eq!(codes, [ErrorCode::None, unknown, ErrorCode::None, unknown]);
    assert_eq!(desk.heartbeat(plain[1]), ErrorCode::RebalanceInProgress);
}

#[test]
fn the_protocol_is_the_one_that_most_prefer_and_all_know() {
    let mut desk = Desk::new(Limits::default());
    let tickets: Vec<_> = [
        vec!["x", "y", "z"],
        vec!["z", "y"],
        vec!["z", "x", "y"],
        vec!["y", "z"],
    ]
    .into_iter()
    .map(|names| {
        let mut request = join_request(None, "");
        request.protocols = names
            .into_iter()
            .map(|it| (it.to_owned(), Bytes::new()))
            .collect();
        desk.send(Request::Join(request))
    })
    .collect();
    desk.pass(2 * S);
    for ticket in tickets {
        // x is not known to all; the first votes y, as does the last, the others z
        assert_eq!(desk.joined(ticket).protocol.as_deref(), Some("y"));
    }
    let mut other = join_request(None, "");
    other.protocols[0].0 = "x".to_owned();
    let ticket = desk.send(Request::Join(other));
    assert_eq!(
        desk.joined(ticket).error,
        ErrorCode::InconsistentGroupProtocol
    );
}

#[test]
fn bad_joins_are_refused_by_name() {
    let mut desk = Desk::new(Limits::default());
    let mut refused = |change: fn(&mut JoinRequest)| {
        let mut request = join_request(None, "");
        change(&mut request);
        let ticket = desk.send(Request::Join(request));
        desk.joined(ticket).error
    };
    assert_eq!(
        refused(|it| it.who.group.clear()),
        ErrorCode::InvalidGroupId
    );
    assert_eq!(
        refused(|it| it.who.group = "x".repeat(256)),
        ErrorCode::InvalidGroupId
    );
    assert_eq!(
        refused(|it| it.session_ms = 10),
        ErrorCode::InvalidSessionTimeout
    );
    assert_eq!(
        refused(|it| it.session_ms = i32::MAX),
        ErrorCode::InvalidSessionTimeout
    );
    assert_eq!(
        refused(|it| it.who.member = "m".into()),
        ErrorCode::UnknownMemberId
    );
    assert_eq!(
        refused(|it| it.protocols.clear()),
        ErrorCode::InconsistentGroupProtocol
    );
}

#[test]
fn at_each_bound_the_newcomer_is_refused() {
    let limits = Limits {
        max_groups: 2,
        max_members: 2,
        max_member_bytes: 2_000,
        ..Limits::default()
    };
    let mut desk = Desk::new(limits);
    let members = desk.stable(&[None, None]);
    let ticket = desk.send(join(None, ""));
    assert_eq!(desk.joined(ticket).error, ErrorCode::GroupMaxSizeReached);
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::None);
    let mut large = join_request(None, "");
    large.who.group = "large".to_owned();
    large.protocols[0].1 = Bytes::from(vec![0; 2_000]);
    let ticket = desk.send(Request::Join(large));
    assert_eq!(desk.joined(ticket).error, ErrorCode::GroupMaxSizeReached);
    assert_eq!(desk.commit(&simple("second"), 1, ""), ErrorCode::None);
    assert_eq!(
        desk.commit(&simple("third"), 1, ""),
        ErrorCode::GroupMaxSizeReached
    );
    assert_eq!(desk.commit(&simple("second"), 2, ""), ErrorCode::None);
}

#[test]
fn offsets_are_bounded_in_number_and_metadata() {
    let limits = Limits {
        max_offsets: 2,
        max_metadata: 10,
        max_metadata_bytes: 15,
        ..Limits::default()
    };
    let mut desk = Desk::new(limits);
    assert_eq!(
        desk.commit(&simple("a"), 1, "0123456789x"),
        ErrorCode::OffsetMetadataTooLarge
    );
    assert_eq!(desk.commit(&simple("a"), 1, "0123456789"), ErrorCode::None);
    assert_eq!(
        desk.commit(&simple("b"), 1, "0123456789"),
        ErrorCode::InvalidCommitOffsetSize
    );
    assert_eq!(desk.commit(&simple("b"), 1, ""), ErrorCode::None);
    assert_eq!(
        desk.commit(&simple("c"), 1, ""),
        ErrorCode::InvalidCommitOffsetSize
    );
    assert_eq!(desk.commit(&simple("a"), 2, "012345678"), ErrorCode::None);
    assert_eq!(desk.committed("a"), (2, "012345678".to_owned()));
}

#[test]
fn a_commit_is_answered_and_seen_when_it_is_on_disk_and_not_before() {
    let mut desk = Desk::new(Limits::default());
    assert_eq!(desk.commit(&simple("g"), 1, ""), ErrorCode::None);
    desk.is_disk_fast = false;
    let tickets = [2, 3].map(|offset| desk.send(commit(&simple("g"), offset, "m")));
    assert_eq!(desk.committed("g").0, 1);
    let ids: Vec<_> = desk
        .writes
        .iter()
        .rev()
        .take(2)
        .map(|(id, _)| *id)
        .collect();
    desk.coordinator.written(ids[1], true);
    desk.coordinator.written(ids[0], false);
    desk.collect();
    let codes = tickets.map(|ticket| match desk.take(ticket) {
        Some(Answer::Commit(answer)) => answer.topics[0].1[0].1,
        other => panic!("{other:?}"),
    });
    assert_eq!(codes, [ErrorCode::None, ErrorCode::CoordinatorNotAvailable]);
    assert_eq!(desk.committed("g"), (2, "m".to_owned()));
}

#[test]
fn offsets_outlive_a_restart_and_members_do_not() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[None]);
    assert_eq!(desk.commit(&members[0], 42, "meta"), ErrorCode::None);
    let writes = desk.writes.into_iter().flat_map(|(_, changes)| changes);
    let facts: Vec<_> = writes.map(|it| (it.key.key, it.value.unwrap())).collect();
    let mut desk = Desk::restored(Limits::default(), &facts);
    assert_eq!(desk.committed("g"), (42, "meta".to_owned()));
    assert_eq!(desk.state("g"), "Empty");
    assert_eq!(desk.heartbeat(&members[0]), ErrorCode::UnknownMemberId);
    assert_eq!(desk.committed("other").0, -1);
}

#[test]
fn offsets_of_a_group_without_members_age_and_others_do_not() {
    let limits = Limits {
        retention: 160 * S,
        ..Limits::default()
    };
    let mut desk = Desk::new(limits.clone());
    let members = desk.stable(&[None]);
    assert_eq!(desk.commit(&members[0], 1, ""), ErrorCode::None);
    assert_eq!(desk.commit(&simple("idle"), 1, ""), ErrorCode::None);
    for _ in 0..16 {
        desk.pass(9 * S);
        assert_eq!(desk.heartbeat(&members[0]), ErrorCode::None);
    }
    assert_eq!(desk.committed("idle").0, 1);
    // a restart does not begin the count anew
    let facts: Vec<_> = facts_of(&desk);
    let mut restarted = Desk::restored(limits, &facts);
    restarted.pass(30 * S);
    assert_eq!(restarted.committed("idle").0, -1);
    assert_eq!(restarted.committed("g").0, 1);
    for _ in 0..4 {
        desk.pass(9 * S);
        assert_eq!(desk.heartbeat(&members[0]), ErrorCode::None);
    }
    assert_eq!(desk.committed("idle").0, -1);
    assert_eq!(desk.committed("g").0, 1);
    assert_eq!(desk.state("idle"), "Dead");
    assert!(
        !facts_of(&desk)
            .iter()
            .any(|(key, _)| key.ends_with(b"idle"))
    );
}

/// What the writes left on disk.
fn facts_of(desk: &Desk) -> Vec<(Bytes, Bytes)> {
    let mut facts = std::collections::BTreeMap::new();
    for change in desk.writes.iter().flat_map(|(_, changes)| changes) {
        match &change.value {
            Some(value) => drop(facts.insert(change.key.key.clone(), value.clone())),
            None => drop(facts.remove(&change.key.key)),
        }
    }
    facts.into_iter().collect()
}

#[test]
fn groups_are_deleted_only_when_nobody_is_in_them() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[None]);
    desk.commit(&members[0], 1, "");
    desk.commit(&simple("idle"), 1, "");
    let groups = ["g", "idle", "none"].map(str::to_owned).to_vec();
    let ticket = desk.send(Request::Delete(groups));
    let Some(Answer::Delete(outcomes)) = desk.take(ticket) else {
        panic!("an answer");
    };
    let codes: Vec<_> = outcomes.iter().map(|(_, code)| *code).collect();
    assert_eq!(
        codes,
        [
            ErrorCode::NonEmptyGroup,
            ErrorCode::None,
            ErrorCode::GroupIdNotFound
        ]
    );
    assert_eq!((desk.committed("g").0, desk.committed("idle").0), (1, -1));
    let topics = vec![("t".to_owned(), vec![0])];
    let ticket = desk.send(Request::DeleteOffsets("g".to_owned(), topics));
    assert_eq!(
        desk.take(ticket),
        Some(Answer::DeleteOffsets(ErrorCode::NonEmptyGroup, Vec::new()))
    );
    desk.coordinator.forget_topic("t");
    desk.collect();
    assert_eq!(desk.committed("g").0, -1);
}

#[test]
fn programs_without_a_group_may_commit_only_where_nobody_is() {
    let mut desk = Desk::new(Limits::default());
    let members = desk.stable(&[None]);
    assert_eq!(desk.commit(&simple("g"), 5, ""), ErrorCode::UnknownMemberId);
    let stranger = MemberRef {
        generation: 3,
        member: "m".to_owned(),
        ..simple("new")
    };
    assert_eq!(desk.commit(&stranger, 5, ""), ErrorCode::IllegalGeneration);
    desk.pass(20 * S);
    assert_eq!(desk.commit(&members[0], 5, ""), ErrorCode::UnknownMemberId);
    assert_eq!(desk.commit(&simple("g"), 5, ""), ErrorCode::None);
}

/// The clock of a machine goes on while it sleeps, and nobody could have joined meanwhile.
#[test]
fn a_machine_that_slept_forgets_no_offsets() {
    let mut desk = Desk::new(Limits {
        retention: 160 * S,
        ..Limits::default()
    });
    let members = desk.stable(&[None]);
    assert_eq!(desk.commit(&members[0], 1, ""), ErrorCode::None);
    desk.now += 1_000 * S;
    desk.coordinator.handle_timeout(desk.now);
    desk.collect();
    assert_eq!(desk.committed("g").0, 1);
}
