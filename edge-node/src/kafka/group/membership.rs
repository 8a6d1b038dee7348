//! The members of one group and its generations: the state machine of the classic protocol.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::limits::Limits;
use super::member::{Member, millis, new_id};
use super::messages::{
    Answer, DescribedMember, JoinAnswer, JoinRequest, Leaving, MemberRef, SyncAnswer, SyncRequest,
    Ticket,
};
use crate::kafka::error::ErrorCode;

/// What a request is handled with.
pub(super) struct Context<'a> {
    pub(super) now: Duration,
    pub(super) limits: &'a Limits,
    pub(super) random: &'a mut StdRng,
    pub(super) answers: &'a mut Vec<(Ticket, Answer)>,
}

impl Context<'_> {
    fn refuse_join(&mut self, ticket: Ticket, error: ErrorCode, member: &str) {
        let answer = JoinAnswer::refused(error, member);
        self.answers.push((ticket, Answer::Join(answer)));
    }

    fn refuse_sync(&mut self, ticket: Ticket, error: ErrorCode) {
        self.answers
            .push((ticket, Answer::Sync(SyncAnswer::refused(error))));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Joining(Phase),
    Syncing,
    Stable,
}

/// Members are asked to join again, until all have or the time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Phase {
    deadline: Duration,
    /// For a group's first members: how much longer it may wait while more come.
    first: Option<First>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct First {
    left: Duration,
    has_grown: bool,
}

/// One group, without its offsets.
#[derive(Debug)]
pub(super) struct Membership {
    state: State,
    generation: i32,
    protocol_type: String,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Member ids of static members.
    statics: BTreeMap<String, String>,
    /// Ids that were given out and have not joined yet, and until when they are known (KIP-394).
    pending: BTreeMap<String, Duration>,
    /// Members that have not asked for their assignment yet in this generation.
    unsynced: BTreeSet<String>,
    /// When these are out.
    sync_deadline: Duration,
}

impl Membership {
    pub(super) fn new(protocol_type: String) -> Self {
        Self {
            state: State::Empty,
            generation: 0,
            protocol_type,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            statics: BTreeMap::new(),
            pending: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            sync_deadline: Duration::ZERO,
        }
    }

    /// Nobody is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.state == State::Empty
    }

    /// Nobody is in it, or about to be.
    pub(super) fn is_unused(&self) -> bool {
        self.is_empty() && self.pending.is_empty()
    }

    pub(super) fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    pub(super) fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Kafka's word.
    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::Empty => "Empty",
            State::Joining(_) => "PreparingRebalance",
            State::Syncing => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }

    pub(super) fn described(&self) -> Vec<DescribedMember> {
        // before a protocol is chosen there is nothing to tell
        let is_settled = matches!(self.state, State::Stable | State::Syncing);
        let protocol = self.protocol.as_deref().filter(|_| is_settled);
        self.members
            .values()
            .map(|member| member.described(protocol))
            .collect()
    }

    /// Bytes that members take.
    pub(super) fn len(&self) -> usize {
        let members: usize = self.members.values().map(Member::len).sum();
        let pending: usize = self.pending.keys().map(String::len).sum();
        members + pending
    }

    // ---- JoinGroup

    pub(super) fn join(&mut self, cx: &mut Context<'_>, ticket: Ticket, request: JoinRequest) {
        let id = request.who.member.clone();
        if !self.has_room_for(&request.who, cx.limits) {
            return cx.refuse_join(ticket, ErrorCode::GroupMaxSizeReached, &id);
        }
        if let Err(error) = self.check_instance(&request.who) {
            return cx.refuse_join(ticket, error, &id);
        }
        if !self.supports(&request) {
            return cx.refuse_join(ticket, ErrorCode::InconsistentGroupProtocol, &id);
        }
        if id.is_empty() {
            self.join_new(cx, ticket, request);
        } else {
            self.join_known(cx, ticket, request);
        }
    }

    fn has_room_for(&self, who: &MemberRef, limits: &Limits) -> bool {
        let is_known = self.members.contains_key(&who.member)
            || self.pending.contains_key(&who.member)
            || who
                .instance
                .as_ref()
                .is_some_and(|it| self.statics.contains_key(it));
        is_known || self.members.len() + self.pending.len() < limits.max_members
    }

    /// A member that says both of its ids must be the one that the static id stands for.
    fn check_instance(&self, who: &MemberRef) -> Result<(), ErrorCode> {
        let Some(instance) = &who.instance else {
            return Ok(());
        };
        match self.statics.get(instance) {
            _ if who.member.is_empty() => Ok(()),
            Some(member) if *member == who.member => Ok(()),
            Some(_) => Err(ErrorCode::FencedInstanceId),
            None => Err(ErrorCode::UnknownMemberId),
        }
    }

    /// There is a protocol that it and everybody else knows.
    fn supports(&self, request: &JoinRequest) -> bool {
        let replaced = request
            .who
            .instance
            .as_ref()
            .and_then(|it| self.statics.get(it));
        let mut others = self
            .members
            .values()
            .filter(|member| member.id != request.who.member && Some(&member.id) != replaced)
            .peekable();
        if request.protocols.is_empty() || request.protocol_type.is_empty() {
            return false;
        }
        if others.peek().is_none() {
            return true;
        }
        let others: Vec<_> = others.collect();
        let mut names = request.protocols.iter().map(|(name, _)| name);
        request.protocol_type == self.protocol_type
            && names.any(|name| others.iter().all(|other| other.knows(name)))
    }

    fn join_new(&mut self, cx: &mut Context<'_>, ticket: Ticket, request: JoinRequest) {
        let id = new_id(&request, cx.random.random());
        let replaced = request
            .who
            .instance
            .as_ref()
            .and_then(|it| self.statics.get(it));
        if let Some(old) = replaced.cloned() {
            self.replace(cx, ticket, &old, id, request);
        } else if request.who.instance.is_none() && request.knows_required_id {
            self.pending
                .insert(id.clone(), cx.now + millis(request.session_ms));
            cx.refuse_join(ticket, ErrorCode::MemberIdRequired, &id);
        } else {
            self.add(cx, ticket, id, request);
        }
    }

    fn join_known(&mut self, cx: &mut Context<'_>, ticket: Ticket, request: JoinRequest) {
        let id = request.who.member.clone();
        if self.pending.remove(&id).is_some() {
            return self.add(cx, ticket, id, request);
        }
        let is_leader = self.leader.as_ref() == Some(&id);
        let Some(member) = self.members.get_mut(&id) else {
            return cx.refuse_join(ticket, ErrorCode::UnknownMemberId, &id);
        };
        let is_same = member.has_protocols(&request.protocols);
        let asks_again = match self.state {
            // it missed the answer
            State::Syncing => is_same,
            State::Stable => is_same && !is_leader,
            State::Joining(_) | State::Empty => false,
        };
        if asks_again {
            member.touch(cx.now);
            let answer = self.generation_for(&id);
            return cx.answers.push((ticket, Answer::Join(answer)));
        }
        if let Some(older) = member.join.replace(ticket) {
            // of a connection that broke
            cx.refuse_join(older, ErrorCode::RebalanceInProgress, &id);
        }
        member.update(request);
        self.rebalance(cx);
    }

    fn add(&mut self, cx: &mut Context<'_>, ticket: Ticket, id: String, request: JoinRequest) {
        if self.members.is_empty() {
            self.protocol_type.clone_from(&request.protocol_type);
        }
        if let Some(instance) = &request.who.instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        let member = Member::new(id.clone(), request, ticket, cx.now + cx.limits.new_member);
        self.members.insert(id.clone(), member);
        self.leader.get_or_insert(id);
        if let State::Joining(Phase {
            first: Some(first), ..
        }) = &mut self.state
        {
            first.has_grown = true;
        }
        self.rebalance(cx);
    }

    /// A static member came back under a new id: it takes over what the old one had, without a rebalance if
    /// the group's protocol stays the same (KIP-345).
    fn replace(
        &mut self,
        cx: &mut Context<'_>,
        ticket: Ticket,
        old: &str,
        id: String,
        request: JoinRequest,
    ) {
        let Some(mut member) = self.members.remove(old) else {
            return cx.refuse_join(ticket, ErrorCode::UnknownMemberId, "");
        };
        if let Some(waiting) = member.join.take() {
            cx.refuse_join(waiting, ErrorCode::FencedInstanceId, old);
        }
        if let Some(waiting) = member.sync.take() {
            cx.refuse_sync(waiting, ErrorCode::FencedInstanceId);
        }
        let was_leader = self.leader.as_deref() == Some(old);
        if was_leader {
            self.leader = Some(id.clone());
        }
        if self.unsynced.remove(old) {
            self.unsynced.insert(id.clone());
        }
        if let Some(instance) = &request.who.instance {
            self.statics.insert(instance.clone(), id.clone());
        }
        let can_skip = request.can_skip_assignment;
        member.id.clone_from(&id);
        member.update(request);
        member.touch(cx.now);
        self.members.insert(id.clone(), member);
        if self.state == State::Stable && self.elect_protocol() == self.protocol {
            let mut answer = self.generation_for(&id);
            if was_leader && can_skip {
                answer.skips_assignment = true;
            } else if was_leader {
                // an older client that finds itself the leader would assign anew, and nobody would ask
                old.clone_into(&mut answer.leader);
                answer.members.clear();
            }
            return cx.answers.push((ticket, Answer::Join(answer)));
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.join = Some(ticket);
        }
        self.rebalance(cx);
    }

    /// The generation as a member is told.
    fn generation_for(&self, id: &str) -> JoinAnswer {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let is_leader = self.leader.as_deref() == Some(id);
        let members = self.members.values();
        JoinAnswer {
            error: ErrorCode::None,
            generation: self.generation,
            protocol_type: Some(self.protocol_type.clone()),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            skips_assignment: false,
            member: id.to_owned(),
            members: if is_leader {
                members.map(|member| member.as_joined(protocol)).collect()
            } else {
                Vec::new()
            },
        }
    }

    // ---- rebalances

    /// Asks everybody to join again, and goes on when they have.
    fn rebalance(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.state, State::Joining(_)) {
            self.begin_joining(cx);
        }
        self.join_when_complete(cx);
    }

    fn begin_joining(&mut self, cx: &mut Context<'_>) {
        if self.state == State::Syncing {
            for member in self.members.values_mut() {
                member.assignment = Bytes::new();
                if let Some(ticket) = member.sync.take() {
                    member.touch(cx.now);
                    cx.refuse_sync(ticket, ErrorCode::RebalanceInProgress);
                }
            }
        }
        self.unsynced.clear();
        let patience = self.patience();
        let phase = if self.state == State::Empty {
            let delay = cx.limits.initial_delay.min(patience);
            Phase {
                deadline: cx.now + delay,
                first: Some(First {
                    left: patience - delay,
                    has_grown: false,
                }),
            }
        } else {
            Phase {
                deadline: cx.now + patience,
                first: None,
            }
        };
        self.state = State::Joining(phase);
    }

    /// How long the slowest member may take to join again.
    fn patience(&self) -> Duration {
        let all = self.members.values().map(|member| member.rebalance);
        all.max().unwrap_or_default()
    }

    fn join_when_complete(&mut self, cx: &mut Context<'_>) {
        let State::Joining(phase) = self.state else {
            return;
        };
        let is_complete = phase.first.is_none()
            && self.pending.is_empty()
            && self.members.values().all(|member| member.join.is_some());
        if is_complete || phase.deadline <= cx.now {
            self.end_joining(cx, phase);
        }
    }

    fn end_joining(&mut self, cx: &mut Context<'_>, phase: Phase) {
        if let Some(First {
            left,
            has_grown: true,
        }) = phase.first
            && !left.is_zero()
        {
            let delay = cx.limits.initial_delay.min(left);
            self.state = State::Joining(Phase {
                deadline: cx.now + delay,
                first: Some(First {
                    left: left - delay,
                    has_grown: false,
                }),
            });
            return;
        }
        // whoever did not join again is out; static members have until their session ends
        let late = self.members.values();
        let late = late.filter(|member| member.join.is_none() && member.instance.is_none());
        let late: Vec<_> = late.map(|member| member.id.clone()).collect();
        for id in late {
            self.forget(cx, &id, ErrorCode::UnknownMemberId);
        }
        if self.members.is_empty() {
            self.generation = self.generation.wrapping_add(1).max(1);
            self.protocol = None;
            self.state = State::Empty;
            return;
        }
        let has_joined = |id: &String| self.members.get(id).is_some_and(|it| it.join.is_some());
        if !self.leader.as_ref().is_some_and(has_joined) {
            let mut joined = self.members.values().filter(|member| member.join.is_some());
            match joined.next() {
                Some(member) => self.leader = Some(member.id.clone()),
                None => {
                    // only static members that are away: until their sessions end
                    let patience = self.patience().max(Duration::from_secs(1));
                    self.state = State::Joining(Phase {
                        deadline: cx.now + patience,
                        first: None,
                    });
                    return;
                }
            }
        }
        self.begin_generation(cx);
    }

    fn begin_generation(&mut self, cx: &mut Context<'_>) {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.protocol = self.elect_protocol();
        self.state = State::Syncing;
        self.sync_deadline = cx.now + self.patience();
        self.unsynced = self.members.keys().cloned().collect();
        let joined: Vec<_> = self
            .members
            .values_mut()
            .filter_map(|member| {
                let ticket = member.join.take()?;
                member.joined(cx.now);
                Some((ticket, member.id.clone()))
            })
            .collect();
        for (ticket, id) in joined {
            let answer = self.generation_for(&id);
            cx.answers.push((ticket, Answer::Join(answer)));
        }
    }

    /// The protocol that most members prefer among those that all know.
    fn elect_protocol(&self) -> Option<String> {
        let is_common = |name: &&str| self.members.values().all(|member| member.knows(name));
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some(name) = member.protocol_names().find(is_common) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let winner = votes
            .into_iter()
            .max_by_key(|(name, votes)| (*votes, Reverse(*name)));
        winner.map(|(name, _)| name.to_owned())
    }

    // ---- SyncGroup, Heartbeat, commits

    /// The member, if it is who it says it is and of this generation.
    fn check(&mut self, who: &MemberRef) -> Result<&mut Member, ErrorCode> {
        self.check_instance(who)?;
        let id = match (&who.instance, who.member.is_empty()) {
            (Some(instance), true) => self.statics.get(instance),
            (Some(_) | None, _) => Some(&who.member),
        };
        let member = id.and_then(|id| self.members.get_mut(id));
        let member = member.ok_or(ErrorCode::UnknownMemberId)?;
        if who.generation != self.generation {
            return Err(ErrorCode::IllegalGeneration);
        }
        Ok(member)
    }

    pub(super) fn sync(&mut self, cx: &mut Context<'_>, ticket: Ticket, request: SyncRequest) {
        let is_other =
            |said: &Option<String>, ours: &str| said.as_ref().is_some_and(|said| said != ours);
        let protocol = self.protocol.clone().unwrap_or_default();
        let is_inconsistent = is_other(&request.protocol_type, &self.protocol_type)
            || is_other(&request.protocol, &protocol);
        let state = self.state;
        let id = match self.check(&request.who) {
            Err(error) => return cx.refuse_sync(ticket, error),
            Ok(_) if is_inconsistent => {
                return cx.refuse_sync(ticket, ErrorCode::InconsistentGroupProtocol);
            }
            Ok(member) => {
                member.touch(cx.now);
                if state == State::Syncing
                    && let Some(older) = member.sync.replace(ticket)
                {
                    cx.refuse_sync(older, ErrorCode::RebalanceInProgress);
                }
                member.id.clone()
            }
        };
        match state {
            State::Empty => cx.refuse_sync(ticket, ErrorCode::UnknownMemberId),
            State::Joining(_) => cx.refuse_sync(ticket, ErrorCode::RebalanceInProgress),
            State::Syncing => {
                self.unsynced.remove(&id);
                if self.leader.as_ref() == Some(&id) {
                    self.assign(cx, request.assignments);
                }
            }
            State::Stable => {
                self.unsynced.remove(&id);
                self.tell_assignment(cx, ticket, &id);
            }
        }
    }

    fn assign(&mut self, cx: &mut Context<'_>, assignments: Vec<(String, Bytes)>) {
        let mut assignments: BTreeMap<_, _> = assignments.into_iter().collect();
        self.state = State::Stable;
        let mut waiting = Vec::new();
        for member in self.members.values_mut() {
            member.assignment = assignments.remove(&member.id).unwrap_or_default();
            if let Some(ticket) = member.sync.take() {
                member.touch(cx.now);
                waiting.push((ticket, member.id.clone()));
            }
        }
        for (ticket, id) in waiting {
            self.tell_assignment(cx, ticket, &id);
        }
    }

    fn tell_assignment(&self, cx: &mut Context<'_>, ticket: Ticket, id: &str) {
        let assignment = self.members.get(id).map(|member| member.assignment.clone());
        let answer = SyncAnswer {
            error: ErrorCode::None,
            protocol_type: Some(self.protocol_type.clone()),
            protocol: self.protocol.clone(),
            assignment: assignment.unwrap_or_default(),
        };
        cx.answers.push((ticket, Answer::Sync(answer)));
    }

    pub(super) fn heartbeat(&mut self, now: Duration, who: &MemberRef) -> ErrorCode {
        let state = self.state;
        match self.check(who) {
            Err(error) => error,
            Ok(member) => {
                member.touch(now);
                match state {
                    State::Empty => ErrorCode::UnknownMemberId,
                    State::Joining(_) => ErrorCode::RebalanceInProgress,
                    State::Syncing | State::Stable => ErrorCode::None,
                }
            }
        }
    }

    /// Whether offsets may be committed.
    pub(super) fn check_commit(&mut self, now: Duration, who: &MemberRef) -> Result<(), ErrorCode> {
        if who.generation < 0 && self.is_empty() {
            return Ok(());
        }
        let state = self.state;
        let member = self.check(who)?;
        member.touch(now);
        match state {
            State::Empty => Err(ErrorCode::UnknownMemberId),
            State::Syncing => Err(ErrorCode::RebalanceInProgress),
            State::Joining(_) | State::Stable => Ok(()),
        }
    }

    // ---- leaving

    pub(super) fn leave(&mut self, cx: &mut Context<'_>, who: &Leaving) -> ErrorCode {
        let id = match &who.instance {
            None => who.member.clone(),
            Some(instance) => match self.statics.get(instance) {
                None => return ErrorCode::UnknownMemberId,
                Some(id) if !who.member.is_empty() && *id != who.member => {
                    return ErrorCode::FencedInstanceId;
                }
                Some(id) => id.clone(),
            },
        };
        let was_pending = self.pending.remove(&id).is_some();
        if !was_pending && !self.members.contains_key(&id) {
            return ErrorCode::UnknownMemberId;
        }
        self.remove(cx, &id);
        ErrorCode::None
    }

    fn remove(&mut self, cx: &mut Context<'_>, id: &str) {
        self.forget(cx, id, ErrorCode::UnknownMemberId);
        match self.state {
            State::Empty => {}
            State::Joining(_) => self.join_when_complete(cx),
            State::Syncing | State::Stable => self.rebalance(cx),
        }
    }

    fn forget(&mut self, cx: &mut Context<'_>, id: &str, error: ErrorCode) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        if let Some(ticket) = member.join {
            cx.refuse_join(ticket, error, id);
        }
        if let Some(ticket) = member.sync {
            cx.refuse_sync(ticket, error);
        }
        if let Some(instance) = &member.instance {
            self.statics.remove(instance);
        }
        self.unsynced.remove(id);
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    // ---- time

    /// When [`Membership::expire`] is to be called.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let members = self.members.values().filter_map(Member::expires);
        let pending = self.pending.values().copied();
        let phase = match self.state {
            State::Joining(phase) => Some(phase.deadline),
            State::Syncing | State::Stable if !self.unsynced.is_empty() => Some(self.sync_deadline),
            State::Empty | State::Syncing | State::Stable => None,
        };
        members.chain(pending).chain(phase).min()
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, cx: &mut Context<'_>) {
        let silent = self.members.values();
        let silent = silent.filter(|member| member.expires().is_some_and(|at| at <= cx.now));
        let silent: Vec<_> = silent.map(|member| member.id.clone()).collect();
        for id in silent {
            self.remove(cx, &id);
        }
        let before = self.pending.len();
        self.pending.retain(|_, until| *until > cx.now);
        if before != self.pending.len() {
            self.join_when_complete(cx);
        }
        match self.state {
            State::Joining(_) => self.join_when_complete(cx),
            State::Syncing | State::Stable
                if !self.unsynced.is_empty() && self.sync_deadline <= cx.now =>
            {
                // they joined and never asked what they got
                for id in std::mem::take(&mut self.unsynced) {
                    self.forget(cx, &id, ErrorCode::UnknownMemberId);
                }
                self.rebalance(cx);
            }
            State::Empty | State::Syncing | State::Stable => {}
        }
    }

    /// What must hold between any two requests.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let is_member = |id: &String| self.members.contains_key(id);
        assert!(self.leader.as_ref().is_none_or(is_member), "{self:?}");
        assert!(self.statics.values().all(is_member), "{self:?}");
        assert!(self.unsynced.iter().all(is_member), "{self:?}");
        assert!(self.pending.keys().all(|id| !is_member(id)), "{self:?}");
        match self.state {
            State::Empty => assert!(self.members.is_empty(), "{self:?}"),
            State::Joining(_) => {
                assert!(
                    self.members.values().all(|it| it.sync.is_none()),
                    "{self:?}"
                );
            }
            State::Syncing | State::Stable => {
                assert!(
                    self.members.values().all(|it| it.join.is_none()),
                    "{self:?}"
                );
                assert!(self.leader.is_some() && self.protocol.is_some(), "{self:?}");
                let protocol = self.protocol.as_deref().unwrap();
                assert!(
                    self.members.values().all(|it| it.knows(protocol)),
                    "{self:?}"
                );
            }
        }
        if self.state == State::Stable {
            assert!(
                self.members.values().all(|it| it.sync.is_none()),
                "{self:?}"
            );
        }
    }
}
