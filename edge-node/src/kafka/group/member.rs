//! One member of a group.

use std::time::Duration;

use bytes::Bytes;

use super::messages::{Caller, DescribedMember, JoinRequest, JoinedMember, Leaving, Ticket};

/// Longest part of a member id that is the client's own name.
const MAX_PREFIX: usize = 64;

/// One member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) instance: Option<String>,
    caller: Caller,
    session: Duration,
    pub(super) rebalance: Duration,
    protocols: Vec<(String, Bytes)>,
    pub(super) assignment: Bytes,
    /// A `JoinGroup` that waits for the generation to begin.
    pub(super) join: Option<Ticket>,
    /// A `SyncGroup` that waits for the leader's assignment.
    pub(super) sync: Option<Ticket>,
    /// It was in no generation yet.
    is_new: bool,
    /// When it is out, unless it says something.
    deadline: Duration,
}

impl Member {
    pub(super) fn new(
        id: String,
        request: JoinRequest,
        ticket: Ticket,
        deadline: Duration,
    ) -> Self {
        let mut member = Self {
            id,
            instance: request.who.instance.clone(),
            caller: Caller::default(),
            session: Duration::ZERO,
            rebalance: Duration::ZERO,
            protocols: Vec::new(),
            assignment: Bytes::new(),
            join: Some(ticket),
            sync: None,
            is_new: true,
            deadline,
        };
        member.update(request);
        member
    }

    pub(super) fn update(&mut self, request: JoinRequest) {
        self.session = millis(request.session_ms);
        self.rebalance = millis(request.rebalance_ms);
        self.protocols = request.protocols;
        self.caller = request.caller;
    }

    /// It was heard.
    pub(super) fn touch(&mut self, now: Duration) {
        self.deadline = now + self.session;
    }

    /// A generation began for it.
    pub(super) fn joined(&mut self, now: Duration) {
        self.is_new = false;
        self.touch(now);
    }

    /// When it is out. A member that waits for the group is not expected to say anything.
    pub(super) fn expires(&self) -> Option<Duration> {
        let waits = self.join.is_some() || self.sync.is_some();
        (!waits || self.is_new).then_some(self.deadline)
    }

    pub(super) fn has_protocols(&self, others: &[(String, Bytes)]) -> bool {
        self.protocols == others
    }

    pub(super) fn knows(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    pub(super) fn protocol_names(&self) -> impl Iterator<Item = &str> {
        self.protocols.iter().map(|(name, _)| name.as_str())
    }

    fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }

    pub(super) fn as_joined(&self, protocol: &str) -> JoinedMember {
        JoinedMember {
            member: self.id.clone(),
            instance: self.instance.clone(),
            metadata: self.metadata(protocol),
        }
    }

    pub(super) fn described(&self, protocol: Option<&str>) -> DescribedMember {
        DescribedMember {
            who: Leaving {
                member: self.id.clone(),
                instance: self.instance.clone(),
            },
            caller: self.caller.clone(),
            metadata: protocol
                .map(|protocol| self.metadata(protocol))
                .unwrap_or_default(),
            assignment: self.assignment.clone(),
        }
    }

    /// Bytes that it takes.
    pub(super) fn len(&self) -> usize {
        let protocols = self.protocols.iter();
        let protocols: usize = protocols
            .map(|(name, metadata)| name.len() + metadata.len())
            .sum();
        let instance = self.instance.as_ref().map_or(0, String::len);
        // the group knows the instance by name as well
        protocols
            + self.assignment.len()
            + self.id.len()
            + self.caller.client_id.len()
            + 2 * instance
    }
}

/// A new id: the client's name, so that people recognise it, and what nobody can guess.
pub(super) fn new_id(request: &JoinRequest, random: u128) -> String {
    let prefix = request
        .who
        .instance
        .as_deref()
        .unwrap_or(&request.caller.client_id);
    let prefix: String = prefix.chars().take(MAX_PREFIX).collect();
    format!("{prefix}-{random:032x}")
}

pub(super) fn millis(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
