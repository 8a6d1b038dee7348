//! All groups of the site: routes requests, keeps bounds, and knows what has to be on disk before it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;

use super::limits::Limits;
use super::member::millis;
use super::membership::{Context, Membership};
use super::messages::{
    Answer, CommitAnswer, CommitEntry, CommitRequest, Described, FetchAnswer, FetchRequest,
    FetchedOffset, GROUP_TYPE, JoinAnswer, JoinRequest, LeaveAnswer, LeaveRequest, ListRequest,
    Listed, MemberRef, Request, SyncAnswer, SyncRequest, Ticket, TopicEntries,
};
use super::offsets::{Committed, Offsets, Room};
use super::stored::{self, Fact};
use crate::kafka::error::ErrorCode;
use crate::store::StateChange;

/// Longest group id, bytes: Kafka has no limit, and nobody needs more.
const MAX_GROUP_ID: usize = 255;

/// Stands for one write until its outcome is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(u64);

/// What is to be done; in this order.
#[derive(Debug)]
pub enum Output {
    /// Tell the client.
    Answer(Ticket, Answer),
    /// Write, all or none, and tell [`Coordinator::written`] in the order of the writes.
    Write(WriteId, Vec<StateChange>),
}

/// All groups. See [`super`].
#[derive(Debug)]
pub struct Coordinator {
    limits: Limits,
    random: StdRng,
    groups: BTreeMap<String, Entry>,
    /// When each group's timers are to be looked at: never later than they are due.
    wakes: BTreeSet<(Duration, String)>,
    offsets: Offsets,
    member_bytes: usize,
    writes: VecDeque<Write>,
    next_write: u64,
    outputs: VecDeque<Output>,
    swept: Duration,
}

#[derive(Debug)]
struct Entry {
    membership: Membership,
    wake: Option<Duration>,
    member_bytes: usize,
    /// For so long it had no members, as far as it was counted.
    idle: Duration,
    /// The disk says that it had none for some time.
    is_idle_stored: bool,
}

/// A write under way: what is true once it is on disk, and who is told then.
#[derive(Debug)]
struct Write {
    id: WriteId,
    effects: Vec<Effect>,
    room: Room,
    answers: Vec<(Ticket, Answer)>,
}

#[derive(Debug)]
enum Effect {
    Put(String, String, i32, Committed),
    Forget(String, String, i32),
    /// How long a group had no members.
    Idle(String, Duration, String),
    ForgetGroup(String),
}

impl Effect {
    fn change(&self) -> StateChange {
        match self {
            Self::Put(group, topic, partition, committed) => {
                stored::put_offset(group, topic, *partition, committed)
            }
            Self::Forget(group, topic, partition) => {
                stored::forget_offset(group, topic, *partition)
            }
            Self::Idle(group, idle, protocol_type) => {
                stored::put_group(group, *idle, protocol_type)
            }
            Self::ForgetGroup(group) => stored::forget_group(group),
        }
    }
}

impl Coordinator {
    /// Groups as the disk has them; also how many of the facts could not be read.
    #[must_use]
    pub fn restore(
        limits: Limits,
        random: StdRng,
        facts: &[(Bytes, Bytes)],
        now: Duration,
    ) -> (Self, usize) {
        let (facts, unreadable) = stored::read_all(facts);
        let mut coordinator = Self {
            limits,
            random,
            groups: BTreeMap::new(),
            wakes: BTreeSet::new(),
            offsets: Offsets::default(),
            member_bytes: 0,
            writes: VecDeque::new(),
            next_write: 0,
            outputs: VecDeque::new(),
            swept: now,
        };
        for fact in facts {
            match fact {
                Fact::Offset(group, topic, partition, committed) => {
                    coordinator
                        .offsets
                        .put(&group, &topic, partition, committed);
                    coordinator
                        .groups
                        .entry(group)
                        .or_insert_with(|| Entry::new(String::new()));
                }
                Fact::Group(group, idle, protocol_type) => {
                    let mut entry = Entry::new(protocol_type);
                    entry.idle = idle;
                    entry.is_idle_stored = true;
                    coordinator.groups.insert(group, entry);
                }
            }
        }
        (coordinator, unreadable)
    }

    /// What is to be done, one thing at a time.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Coordinator::handle_timeout`] is to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        let sweep = self.swept + self.limits.sweep_interval();
        self.wakes
            .first()
            .map_or(sweep, |(wake, _)| sweep.min(*wake))
    }

    /// Groups, and committed offsets.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.groups.len(), self.offsets.size().0)
    }

    /// Takes a request. Its answer comes out of [`Coordinator::poll_output`] sooner or later.
    pub fn handle(&mut self, ticket: Ticket, request: Request, now: Duration) {
        match request {
            Request::Join(request) => self.join(ticket, request, now),
            Request::Sync(request) => self.sync(ticket, request, now),
            Request::Heartbeat(who) => self.heartbeat(ticket, &who, now),
            Request::Leave(request) => self.leave(ticket, request, now),
            Request::Commit(request) => self.commit(ticket, request, now),
            Request::Fetch(request) => {
                let answer = self.fetch(request);
                self.answer(ticket, Answer::Fetch(answer));
            }
            Request::Describe(groups) => {
                let described = groups
                    .into_iter()
                    .map(|group| self.describe(group))
                    .collect();
                self.answer(ticket, Answer::Describe(described));
            }
            Request::List(request) => {
                let listed = self.list(&request);
                self.answer(ticket, Answer::List(listed));
            }
            Request::Delete(groups) => self.delete(ticket, groups),
            Request::DeleteOffsets(group, topics) => self.delete_offsets(ticket, &group, topics),
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.outputs.push_back(Output::Answer(ticket, answer));
    }

    // ---- members

    fn join(&mut self, ticket: Ticket, request: JoinRequest, now: Duration) {
        let session = millis(request.session_ms);
        let is_known =
            request.who.member.is_empty() || self.groups.contains_key(&request.who.group);
        let refusal = if !is_group_id(&request.who.group) {
            Some(ErrorCode::InvalidGroupId)
        } else if !(self.limits.min_session..=self.limits.max_session).contains(&session) {
            Some(ErrorCode::InvalidSessionTimeout)
        } else if request.protocol_type.len() > MAX_GROUP_ID {
            Some(ErrorCode::InconsistentGroupProtocol)
        } else if !is_known {
            Some(ErrorCode::UnknownMemberId)
        } else if self.member_bytes + request.len() > self.limits.max_member_bytes
            || !self.has_room_for(&request.who.group)
        {
            Some(ErrorCode::GroupMaxSizeReached)
        } else {
            None
        };
        if let Some(error) = refusal {
            let answer = JoinAnswer::refused(error, &request.who.member);
            return self.answer(ticket, Answer::Join(answer));
        }
        let group = request.who.group.clone();
        if !self.groups.contains_key(&group) {
            let entry = Entry::new(request.protocol_type.clone());
            self.groups.insert(group.clone(), entry);
        }
        self.with_members(&group, now, |membership, cx| {
            membership.join(cx, ticket, request)
        });
    }

    fn sync(&mut self, ticket: Ticket, request: SyncRequest, now: Duration) {
        let assigned: usize = request
            .assignments
            .iter()
            .map(|(_, bytes)| bytes.len())
            .sum();
        let refusal = if !is_group_id(&request.who.group) {
            Some(ErrorCode::InvalidGroupId)
        } else if !self.groups.contains_key(&request.who.group) {
            Some(ErrorCode::UnknownMemberId)
        } else if self.member_bytes + assigned > self.limits.max_member_bytes {
            Some(ErrorCode::GroupMaxSizeReached)
        } else {
            None
        };
        if let Some(error) = refusal {
            return self.answer(ticket, Answer::Sync(SyncAnswer::refused(error)));
        }
        let group = request.who.group.clone();
        self.with_members(&group, now, |membership, cx| {
            membership.sync(cx, ticket, request)
        });
    }

    fn heartbeat(&mut self, ticket: Ticket, who: &MemberRef, now: Duration) {
        let error = if is_group_id(&who.group) {
            // only moves a deadline away: timers are looked at when the old one is due
            let entry = self.groups.get_mut(&who.group);
            entry.map_or(ErrorCode::UnknownMemberId, |it| {
                it.membership.heartbeat(now, who)
            })
        } else {
            ErrorCode::InvalidGroupId
        };
        self.answer(ticket, Answer::Heartbeat(error));
    }

    fn leave(&mut self, ticket: Ticket, request: LeaveRequest, now: Duration) {
        let LeaveRequest { group, members } = request;
        let mut answer = LeaveAnswer {
            error: ErrorCode::None,
            members: Vec::with_capacity(members.len()),
        };
        if !is_group_id(&group) {
            answer.error = ErrorCode::InvalidGroupId;
        } else if self.groups.contains_key(&group) {
            let left = &mut answer.members;
            self.with_members(&group, now, |membership, cx| {
                for who in members {
                    let error = membership.leave(cx, &who);
                    left.push((who, error));
                }
            });
        } else {
            let members = members.into_iter();
            answer.members = members
                .map(|who| (who, ErrorCode::UnknownMemberId))
                .collect();
        }
        self.answer(ticket, Answer::Leave(answer));
    }

    /// Lets a group's members change, then brings what hangs on them up to date.
    fn with_members(
        &mut self,
        group: &str,
        now: Duration,
        change: impl FnOnce(&mut Membership, &mut Context<'_>),
    ) {
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        let mut answers = Vec::new();
        let mut cx = Context {
            now,
            limits: &self.limits,
            random: &mut self.random,
            answers: &mut answers,
        };
        change(&mut entry.membership, &mut cx);
        #[cfg(test)]
        entry.membership.check_invariants();
        let answers = answers.into_iter();
        self.outputs
            .extend(answers.map(|(ticket, answer)| Output::Answer(ticket, answer)));
        let bytes = entry.membership.len();
        self.member_bytes = self.member_bytes - entry.member_bytes + bytes;
        entry.member_bytes = bytes;
        let wake = entry.membership.next_deadline();
        if wake != entry.wake {
            if let Some(old) = std::mem::replace(&mut entry.wake, wake) {
                self.wakes.remove(&(old, group.to_owned()));
            }
            if let Some(wake) = wake {
                self.wakes.insert((wake, group.to_owned()));
            }
        }
        if !entry.membership.is_empty() {
            self.is_used(group);
        }
    }

    /// A group has members, or commits: the time that it had none begins anew.
    fn is_used(&mut self, group: &str) {
        let Some(entry) = self.groups.get_mut(group) else {
            return;
        };
        entry.idle = Duration::ZERO;
        if std::mem::take(&mut entry.is_idle_stored) {
            let protocol_type = entry.membership.protocol_type().to_owned();
            let effect = Effect::Idle(group.to_owned(), Duration::ZERO, protocol_type);
            self.write(vec![effect], Room::default(), Vec::new());
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some((wake, _)) = self.wakes.first()
            && *wake <= now
        {
            let Some((_, group)) = self.wakes.pop_first() else {
                break;
            };
            if let Some(entry) = self.groups.get_mut(&group) {
                entry.wake = None;
            }
            self.with_members(&group, now, |membership, cx| membership.expire(cx));
            if let Some(entry) = self.groups.get_mut(&group)
                && entry.wake.is_some_and(|wake| wake <= now)
            {
                // what is due and was not done would be due for ever
                self.wakes.remove(&(wake_of(entry), group.clone()));
                let later = now + Duration::from_millis(1);
                entry.wake = Some(later);
                self.wakes.insert((later, group));
            }
        }
        if now >= self.swept + self.limits.sweep_interval() {
            self.sweep(now);
        }
    }

    // ---- bounds and age

    fn has_room_for(&mut self, group: &str) -> bool {
        if self.groups.contains_key(group) || self.groups.len() < self.limits.max_groups {
            return true;
        }
        self.drop_unused();
        self.groups.len() < self.limits.max_groups
    }

    /// Groups of which nothing is known but their name.
    fn drop_unused(&mut self) {
        let offsets = &self.offsets;
        let writes = &self.writes;
        let is_written = |group: &String| {
            writes
                .iter()
                .any(|write| write.effects.iter().any(|effect| effect.group() == group))
        };
        let mut dropped = Vec::new();
        self.groups.retain(|group, entry| {
            let is_kept = !entry.membership.is_unused() || offsets.has(group) || is_written(group);
            if !is_kept && entry.is_idle_stored {
                dropped.push(Effect::ForgetGroup(group.clone()));
            }
            is_kept
        });
        if !dropped.is_empty() {
            self.write(dropped, Room::default(), Vec::new());
        }
    }

    /// Counts the time that groups are without members, and forgets those that were long enough.
    fn sweep(&mut self, now: Duration) {
        // the clock goes on while the machine sleeps: that is not time in which anybody could have joined
        let passed = now
            .saturating_sub(self.swept)
            .min(self.limits.sweep_interval());
        self.swept = now;
        self.drop_unused();
        let mut effects = Vec::new();
        for (group, entry) in &mut self.groups {
            if !entry.membership.is_unused() || !self.offsets.has(group) {
                continue;
            }
            entry.idle += passed;
            if entry.idle >= self.limits.retention {
                effects.extend(forget_all(&self.offsets, group));
            } else {
                entry.is_idle_stored = true;
                let protocol_type = entry.membership.protocol_type().to_owned();
                effects.push(Effect::Idle(group.clone(), entry.idle, protocol_type));
            }
        }
        if !effects.is_empty() {
            self.write(effects, Room::default(), Vec::new());
        }
    }

    /// Topics that there are offsets in.
    #[must_use]
    pub fn topics(&self) -> BTreeSet<String> {
        self.offsets.topics()
    }

    /// A topic is no more: nor are offsets in it.
    pub fn forget_topic(&mut self, topic: &str) {
        let found = self.offsets.of_topic(topic).into_iter();
        let effects: Vec<_> = found
            .map(|(group, partition)| Effect::Forget(group, topic.to_owned(), partition))
            .collect();
        if !effects.is_empty() {
            self.write(effects, Room::default(), Vec::new());
        }
    }

    // ---- offsets

    fn commit(&mut self, ticket: Ticket, request: CommitRequest, now: Duration) {
        let CommitRequest { who, topics } = request;
        if let Err(error) = self.check_commit(&who, now) {
            let topics = topics.into_iter();
            let topics = topics.map(|(topic, entries)| {
                let entries = entries.into_iter();
                let code = |entry: CommitEntry| (entry.partition, entry.refused.unwrap_or(error));
                (topic, entries.map(code).collect())
            });
            let answer = CommitAnswer {
                topics: topics.collect(),
            };
            return self.answer(ticket, Answer::Commit(answer));
        }
        let (mut room, mut effects) = (Room::default(), Vec::new());
        let mut answered: TopicEntries<(i32, ErrorCode)> = Vec::with_capacity(topics.len());
        for (topic, entries) in topics {
            let mut codes = Vec::with_capacity(entries.len());
            for entry in entries {
                let partition = entry.partition;
                let code = match self.admit(&who.group, &topic, entry) {
                    Err(error) => error,
                    Ok((needed, committed)) => {
                        room = room.plus(needed);
                        let (group, topic) = (who.group.clone(), topic.clone());
                        effects.push(Effect::Put(group, topic, partition, committed));
                        ErrorCode::None
                    }
                };
                codes.push((partition, code));
            }
            answered.push((topic, codes));
        }
        let answer = Answer::Commit(CommitAnswer { topics: answered });
        if effects.is_empty() {
            return self.answer(ticket, answer);
        }
        if !self.groups.contains_key(&who.group) {
            self.groups
                .insert(who.group.clone(), Entry::new(String::new()));
        }
        self.is_used(&who.group);
        // told when it is on disk
        self.write(effects, room, vec![(ticket, answer)]);
    }

    fn check_commit(&mut self, who: &MemberRef, now: Duration) -> Result<(), ErrorCode> {
        // the empty id is what programs without a group use
        if who.group.len() > MAX_GROUP_ID {
            return Err(ErrorCode::InvalidGroupId);
        }
        if let Some(entry) = self.groups.get_mut(&who.group) {
            return entry.membership.check_commit(now, who);
        }
        if who.generation >= 0 {
            return Err(ErrorCode::IllegalGeneration);
        }
        if self.has_room_for(&who.group) {
            Ok(())
        } else {
            Err(ErrorCode::GroupMaxSizeReached)
        }
    }

    fn admit(
        &mut self,
        group: &str,
        topic: &str,
        entry: CommitEntry,
    ) -> Result<(Room, Committed), ErrorCode> {
        if let Some(error) = entry.refused {
            return Err(error);
        }
        if entry.metadata.len() > self.limits.max_metadata {
            return Err(ErrorCode::OffsetMetadataTooLarge);
        }
        let metadata = entry.metadata.len();
        let room = self
            .offsets
            .reserve(&self.limits, group, topic, entry.partition, metadata);
        let committed = Committed {
            offset: entry.offset,
            leader_epoch: entry.leader_epoch,
            metadata: entry.metadata,
        };
        room.map(|room| (room, committed))
            .ok_or(ErrorCode::InvalidCommitOffsetSize)
    }

    fn fetch(&self, request: FetchRequest) -> FetchAnswer {
        let groups = request.groups.into_iter();
        let groups = groups.map(|(group, topics)| {
            let found = match topics {
                None => self.all_offsets(&group),
                Some(topics) => topics
                    .into_iter()
                    .map(|(topic, partitions)| {
                        let found = partitions.into_iter();
                        let found = found.map(|partition| {
                            fetched(partition, self.offsets.get(&group, &topic, partition))
                        });
                        let found = found.collect();
                        (topic, found)
                    })
                    .collect(),
            };
            (group, ErrorCode::None, found)
        });
        FetchAnswer {
            groups: groups.collect(),
        }
    }

    fn all_offsets(&self, group: &str) -> TopicEntries<FetchedOffset> {
        let topics = self.offsets.of(group).into_iter().flatten();
        topics
            .map(|(topic, partitions)| {
                let found = partitions
                    .iter()
                    .map(|(index, it)| fetched(*index, Some(it)));
                (topic.clone(), found.collect())
            })
            .collect()
    }

    // ---- administration

    fn describe(&self, group: String) -> Described {
        let entry = self.groups.get(&group);
        Described {
            error: ErrorCode::None,
            // what brokers call a group that there isn't
            state: entry.map_or("Dead", |entry| entry.membership.state_name()),
            protocol_type: entry
                .map(|entry| entry.membership.protocol_type().to_owned())
                .unwrap_or_default(),
            protocol: entry
                .and_then(|entry| entry.membership.protocol())
                .unwrap_or_default()
                .to_owned(),
            members: entry
                .map(|entry| entry.membership.described())
                .unwrap_or_default(),
            group,
        }
    }

    fn list(&self, request: &ListRequest) -> Vec<Listed> {
        let is_asked = |words: &[String], word: &str| {
            words.is_empty() || words.iter().any(|it| it.eq_ignore_ascii_case(word))
        };
        if !is_asked(&request.types, GROUP_TYPE) {
            return Vec::new();
        }
        let listed = self.groups.iter().map(|(group, entry)| Listed {
            group: group.clone(),
            protocol_type: entry.membership.protocol_type().to_owned(),
            state: entry.membership.state_name(),
        });
        listed
            .filter(|it| is_asked(&request.states, it.state))
            .collect()
    }

    fn delete(&mut self, ticket: Ticket, groups: Vec<String>) {
        let mut effects = Vec::new();
        let mut outcomes = Vec::with_capacity(groups.len());
        for group in groups {
            let code = match self.groups.get(&group) {
                None => ErrorCode::GroupIdNotFound,
                Some(entry) if !entry.membership.is_empty() => ErrorCode::NonEmptyGroup,
                Some(_) => {
                    effects.extend(forget_all(&self.offsets, &group));
                    ErrorCode::None
                }
            };
            outcomes.push((group, code));
        }
        self.write_or_answer(effects, ticket, Answer::Delete(outcomes));
    }

    fn delete_offsets(&mut self, ticket: Ticket, group: &str, topics: Vec<(String, Vec<i32>)>) {
        let error = match self.groups.get(group) {
            None => ErrorCode::GroupIdNotFound,
            Some(entry) if !entry.membership.is_empty() => ErrorCode::NonEmptyGroup,
            Some(_) => ErrorCode::None,
        };
        if error != ErrorCode::None {
            return self.answer(ticket, Answer::DeleteOffsets(error, Vec::new()));
        }
        let mut effects = Vec::new();
        let topics = topics.into_iter();
        let outcomes = topics.map(|(topic, partitions)| {
            for partition in &partitions {
                effects.push(Effect::Forget(group.to_owned(), topic.clone(), *partition));
            }
            let partitions = partitions.into_iter();
            (
                topic,
                partitions
                    .map(|partition| (partition, ErrorCode::None))
                    .collect(),
            )
        });
        let answer = Answer::DeleteOffsets(ErrorCode::None, outcomes.collect());
        self.write_or_answer(effects, ticket, answer);
    }

    // ---- writes

    fn write_or_answer(&mut self, effects: Vec<Effect>, ticket: Ticket, answer: Answer) {
        if effects.is_empty() {
            self.answer(ticket, answer);
        } else {
            self.write(effects, Room::default(), vec![(ticket, answer)]);
        }
    }

    fn write(&mut self, effects: Vec<Effect>, room: Room, answers: Vec<(Ticket, Answer)>) {
        self.next_write += 1;
        let id = WriteId(self.next_write);
        let changes = effects.iter().map(Effect::change).collect();
        self.writes.push_back(Write {
            id,
            effects,
            room,
            answers,
        });
        self.outputs.push_back(Output::Write(id, changes));
    }

    /// The outcome of a write, in the order of the writes. What it was about is true from now on, and told.
    pub fn written(&mut self, id: WriteId, is_stored: bool) {
        let oldest = self.writes.pop_front();
        let Some(write) = oldest else { return };
        if write.id != id {
            debug_assert!(false, "{id:?} is not the oldest write");
            self.writes.push_front(write);
            return;
        }
        self.offsets.release(write.room);
        if is_stored {
            for effect in write.effects {
                self.apply(effect);
            }
        }
        for (ticket, answer) in write.answers {
            let answer = if is_stored { answer } else { failed(answer) };
            self.answer(ticket, answer);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Put(group, topic, partition, committed) => {
                self.offsets.put(&group, &topic, partition, committed);
                // the group may have been deleted by a write between
                self.groups
                    .entry(group)
                    .or_insert_with(|| Entry::new(String::new()));
            }
            Effect::Forget(group, topic, partition) => {
                self.offsets.forget(&group, &topic, partition);
            }
            Effect::Idle(..) => {}
            Effect::ForgetGroup(group) => {
                let is_unused = |entry: &Entry| entry.membership.is_empty();
                if self.groups.get(&group).is_some_and(is_unused)
                    && !self.offsets.has(&group)
                    && let Some(entry) = self.groups.remove(&group)
                {
                    self.member_bytes -= entry.member_bytes;
                    if let Some(wake) = entry.wake {
                        self.wakes.remove(&(wake, group));
                    }
                }
            }
        }
    }
}

impl Effect {
    fn group(&self) -> &String {
        match self {
            Self::Put(group, ..)
            | Self::Forget(group, ..)
            | Self::Idle(group, ..)
            | Self::ForgetGroup(group) => group,
        }
    }
}

impl Entry {
    fn new(protocol_type: String) -> Self {
        Self {
            membership: Membership::new(protocol_type),
            wake: None,
            member_bytes: 0,
            idle: Duration::ZERO,
            is_idle_stored: false,
        }
    }
}

fn wake_of(entry: &Entry) -> Duration {
    entry.wake.unwrap_or_default()
}

fn is_group_id(group: &str) -> bool {
    (1..=MAX_GROUP_ID).contains(&group.len())
}

fn fetched(partition: i32, committed: Option<&Committed>) -> FetchedOffset {
    FetchedOffset {
        partition,
        offset: committed.map_or(-1, |it| it.offset),
        leader_epoch: committed.map_or(-1, |it| it.leader_epoch),
        metadata: committed.map(|it| it.metadata.clone()).unwrap_or_default(),
        error: ErrorCode::None,
    }
}

/// Everything that is known of a group, to be forgotten.
fn forget_all(offsets: &Offsets, group: &str) -> Vec<Effect> {
    let topics = offsets.of(group).into_iter().flatten();
    let mut effects: Vec<_> = topics
        .flat_map(|(topic, partitions)| {
            partitions
                .keys()
                .map(|index| Effect::Forget(group.to_owned(), topic.clone(), *index))
        })
        .collect();
    effects.push(Effect::ForgetGroup(group.to_owned()));
    effects
}

/// The answer when the disk refused: clients try again.
fn failed(answer: Answer) -> Answer {
    let fail = |code: &mut ErrorCode| {
        if *code == ErrorCode::None {
            *code = ErrorCode::CoordinatorNotAvailable;
        }
    };
    match answer {
        Answer::Commit(mut answer) => {
            let topics = answer.topics.iter_mut();
            topics
                .flat_map(|(_, codes)| codes)
                .for_each(|(_, code)| fail(code));
            Answer::Commit(answer)
        }
        Answer::Delete(mut outcomes) => {
            outcomes.iter_mut().for_each(|(_, code)| fail(code));
            Answer::Delete(outcomes)
        }
        Answer::DeleteOffsets(..) => {
            Answer::DeleteOffsets(ErrorCode::CoordinatorNotAvailable, Vec::new())
        }
        // their answers don't wait for writes
        Answer::Join(_)
        | Answer::Sync(_)
        | Answer::Heartbeat(_)
        | Answer::Leave(_)
        | Answer::Fetch(_)
        | Answer::Describe(_)
        | Answer::List(_) => answer,
    }
}
