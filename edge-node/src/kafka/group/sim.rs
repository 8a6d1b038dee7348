//! Members that join, die, leave and come back at random, in virtual time.
//!
//! Checked at every step: a generation has one leader and one protocol, gives no partition to two, and nobody
//! is answered twice. When the trouble ends: everybody that lives is in the same generation, every partition is
//! read by exactly one, and every request was answered.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a client looks at the few answers that it knows"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::kafka::error::ErrorCode;

const PARTITIONS: u8 = 12;
const SESSION_MS: i32 = 10_000;
const REBALANCE_MS: i32 = 30_000;
const HEARTBEAT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    Joining(Ticket),
    Syncing(Ticket),
    Running,
}

/// A client as librdkafka and the Java client behave.
#[derive(Debug)]
struct Client {
    index: usize,
    instance: Option<String>,
    phase: Phase,
    member: String,
    generation: i32,
    partitions: Vec<u8>,
    next_heartbeat: Duration,
    heartbeat: Option<Ticket>,
    /// It hangs: says nothing and hears nothing.
    is_stuck: bool,
    knows_required_id: bool,
}

#[derive(Debug)]
struct Generation {
    leader: Option<String>,
    protocol: Option<String>,
    /// Which client reads a partition.
    readers: BTreeMap<u8, usize>,
}

struct World {
    coordinator: Coordinator,
    now: Duration,
    random: StdRng,
    clients: Vec<Client>,
    next_ticket: u64,
    open: BTreeMap<Ticket, usize>,
    mail: Vec<(Ticket, Answer)>,
    generations: BTreeMap<i32, Generation>,
}

impl World {
    fn new(seed: u64, clients: usize) -> Self {
        let limits = Limits::default();
        let random = StdRng::seed_from_u64(seed);
        let (coordinator, _) =
            Coordinator::restore(limits, StdRng::seed_from_u64(seed), &[], Duration::ZERO);
        let client = |index| Client {
            index,
            instance: (index % 3 == 0).then(|| format!("static-{index}")),
            phase: Phase::Down,
            member: String::new(),
            generation: -1,
            partitions: Vec::new(),
            next_heartbeat: Duration::MAX,
            heartbeat: None,
            is_stuck: false,
            knows_required_id: index % 2 == 0,
        };
        Self {
            coordinator,
            now: Duration::ZERO,
            random,
            clients: (0..clients).map(client).collect(),
            next_ticket: 0,
            open: BTreeMap::new(),
            mail: Vec::new(),
            generations: BTreeMap::new(),
        }
    }

    fn send(&mut self, index: usize, request: Request) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.open.insert(ticket, index);
        self.coordinator.handle(ticket, request, self.now);
        self.collect();
        ticket
    }

    fn collect(&mut self) {
        while let Some(output) = self.coordinator.poll_output() {
            match output {
                Output::Answer(ticket, answer) => {
                    assert!(
                        self.open.remove(&ticket).is_some(),
                        "{ticket:?} answered twice"
                    );
                    self.mail.push((ticket, answer));
                }
                Output::Write(id, _) => self.coordinator.written(id, true),
            }
        }
    }

    fn who(&self, index: usize) -> MemberRef {
        let client = &self.clients[index];
        MemberRef {
            group: "g".to_owned(),
            generation: client.generation,
            member: client.member.clone(),
            instance: client.instance.clone(),
        }
    }

    fn join(&mut self, index: usize) {
        let client = &self.clients[index];
        let mut protocols = vec![("range", 1_u8), ("roundrobin", 2)];
        if index % 2 == 1 {
            protocols.reverse();
        }
        let request = JoinRequest {
            who: self.who(index),
            session_ms: SESSION_MS,
            rebalance_ms: REBALANCE_MS,
            protocol_type: "consumer".to_owned(),
            protocols: protocols
                .into_iter()
                .map(|(name, byte)| (name.to_owned(), Bytes::from(vec![byte])))
                .collect(),
            knows_required_id: client.knows_required_id,
            can_skip_assignment: index.is_multiple_of(6),
            caller: Caller::default(),
        };
        let ticket = self.send(index, Request::Join(request));
        let client = &mut self.clients[index];
        client.partitions.clear();
        client.heartbeat = None;
        client.phase = Phase::Joining(ticket);
    }

    /// Starts over as one that nobody knows.
    fn rejoin_as_new(&mut self, index: usize) {
        self.clients[index].member.clear();
        self.clients[index].generation = -1;
        self.join(index);
    }

    fn deliver(&mut self, ticket: Ticket, answer: Answer) {
        let waits = |client: &&Client| {
            let waiting = match client.phase {
                Phase::Joining(at) | Phase::Syncing(at) => Some(at),
                Phase::Down | Phase::Running => None,
            };
            !client.is_stuck && (waiting == Some(ticket) || client.heartbeat == Some(ticket))
        };
        let Some(index) = self.clients.iter().find(waits).map(|client| client.index) else {
            return; // the one that asked is gone
        };
        match answer {
            Answer::Join(answer) => self.joined(index, answer),
            Answer::Sync(answer) => self.synced(index, answer),
            Answer::Heartbeat(code) => {
                self.clients[index].heartbeat = None;
                match code {
                    ErrorCode::None => {}
                    ErrorCode::RebalanceInProgress => self.join(index),
                    ErrorCode::FencedInstanceId => self.clients[index].phase = Phase::Down,
                    _ => self.rejoin_as_new(index),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn joined(&mut self, index: usize, answer: JoinAnswer) {
        match answer.error {
            ErrorCode::None => {}
            ErrorCode::MemberIdRequired => {
                assert!(self.clients[index].knows_required_id);
                self.clients[index].member = answer.member;
                return self.join(index);
            }
            ErrorCode::RebalanceInProgress => return self.join(index),
            ErrorCode::UnknownMemberId => return self.rejoin_as_new(index),
            ErrorCode::FencedInstanceId => {
                self.clients[index].phase = Phase::Down;
                return;
            }
            other => panic!("{other:?}"),
        }
        let generation = self
            .generations
            .entry(answer.generation)
            .or_insert_with(|| Generation {
                leader: None,
                protocol: answer.protocol.clone(),
                readers: BTreeMap::new(),
            });
        assert_eq!(generation.protocol, answer.protocol);
        let is_leader = answer.leader == answer.member;
        if is_leader && !answer.skips_assignment {
            let leader = generation
                .leader
                .get_or_insert_with(|| answer.member.clone());
            assert_eq!(*leader, answer.member, "one leader in a generation");
        }
        let client = &mut self.clients[index];
        client.member.clone_from(&answer.member);
        client.generation = answer.generation;
        let mut assignments: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        if is_leader && !answer.skips_assignment {
            assert!(!answer.members.is_empty());
            for partition in 0..PARTITIONS {
                let member = &answer.members[usize::from(partition) % answer.members.len()];
                assignments
                    .entry(member.member.clone())
                    .or_default()
                    .push(partition);
            }
        }
        let request = SyncRequest {
            who: self.who(index),
            protocol_type: None,
            protocol: None,
            assignments: assignments
                .into_iter()
                .map(|(id, it)| (id, Bytes::from(it)))
                .collect(),
        };
        let ticket = self.send(index, Request::Sync(request));
        self.clients[index].phase = Phase::Syncing(ticket);
    }

    fn synced(&mut self, index: usize, answer: SyncAnswer) {
        match answer.error {
            ErrorCode::None => {}
            ErrorCode::RebalanceInProgress => return self.join(index),
            ErrorCode::FencedInstanceId => {
                self.clients[index].phase = Phase::Down;
                return;
            }
            _ => return self.rejoin_as_new(index),
        }
        let client = &mut self.clients[index];
        client.phase = Phase::Running;
        client.partitions = answer.assignment.to_vec();
        client.next_heartbeat = self.now + HEARTBEAT;
        let generation = self.generations.get_mut(&client.generation).unwrap();
        for partition in &client.partitions {
            let reader = generation.readers.entry(*partition).or_insert(index);
            assert_eq!(*reader, index, "partition {partition} is read by two");
        }
    }

    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        loop {
            let heartbeats = self.clients.iter().filter(|it| it.phase == Phase::Running);
            let heartbeat = heartbeats
                .filter(|it| !it.is_stuck)
                .map(|it| it.next_heartbeat)
                .min();
            let next = self
                .coordinator
                .next_deadline()
                .min(heartbeat.unwrap_or(Duration::MAX));
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            self.coordinator.handle_timeout(self.now);
            self.collect();
            for index in 0..self.clients.len() {
                let client = &self.clients[index];
                let is_due = client.phase == Phase::Running && client.next_heartbeat <= self.now;
                if is_due && !client.is_stuck {
                    let who = self.who(index);
                    self.clients[index].next_heartbeat = self.now + HEARTBEAT;
                    let ticket = self.send(index, Request::Heartbeat(who));
                    self.clients[index].heartbeat = Some(ticket);
                }
            }
            if !self.mail.is_empty() {
                return;
            }
        }
    }

    fn trouble(&mut self) {
        let index = self.random.random_range(0..self.clients.len());
        let phase = self.clients[index].phase;
        match self.random.random_range(0..10) {
            // dies, or is killed
            0 | 1 => self.stop(index),
            2 => self.clients[index].is_stuck = true,
            3 if std::mem::take(&mut self.clients[index].is_stuck) => {
                // what it waited for went to nobody: its requests time out
                if matches!(phase, Phase::Joining(_) | Phase::Syncing(_)) {
                    self.join(index);
                }
            }
            4 if phase == Phase::Running => {
                let who = self.who(index);
                let leaving = Leaving {
                    member: who.member,
                    instance: None,
                };
                let request = LeaveRequest {
                    group: who.group,
                    members: vec![leaving],
                };
                self.send(index, Request::Leave(request));
                self.stop(index);
            }
            _ if phase == Phase::Down => self.rejoin_as_new(index),
            // metadata changed, or the connection broke
            5 if !self.clients[index].is_stuck => self.join(index),
            _ => {}
        }
    }

    fn stop(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.phase = Phase::Down;
        client.member.clear();
        client.generation = -1;
        client.partitions.clear();
        client.heartbeat = None;
        client.is_stuck = false;
    }

    fn step(&mut self) {
        if !self.mail.is_empty() && self.random.random_bool(0.7) {
            let at = self.random.random_range(0..self.mail.len());
            let (ticket, answer) = self.mail.swap_remove(at);
            self.deliver(ticket, answer);
        } else {
            let by = Duration::from_millis(self.random.random_range(0..2_000));
            self.advance(by);
        }
    }

    fn settle(&mut self) {
        for client in &mut self.clients {
            if std::mem::take(&mut client.is_stuck) && client.phase != Phase::Running {
                // what it waited for went to nobody
                client.phase = Phase::Down;
                client.member.clear();
                client.generation = -1;
            }
        }
        let end = self.now + Duration::from_secs(200);
        while self.now < end {
            match self.mail.pop() {
                Some((ticket, answer)) => self.deliver(ticket, answer),
                None => self.advance(Duration::from_secs(1)),
            }
        }
    }

    fn check_settled(&self) {
        let alive: Vec<_> = self
            .clients
            .iter()
            .filter(|it| it.phase != Phase::Down)
            .collect();
        let generations: BTreeSet<_> = alive.iter().map(|it| it.generation).collect();
        assert!(generations.len() <= 1, "{alive:#?}");
        assert!(
            alive.iter().all(|it| it.phase == Phase::Running),
            "{alive:#?}"
        );
        let mut read: Vec<_> = alive
            .iter()
            .flat_map(|it| &it.partitions)
            .copied()
            .collect();
        read.sort_unstable();
        let all: Vec<u8> = if alive.is_empty() {
            Vec::new()
        } else {
            (0..PARTITIONS).collect()
        };
        assert_eq!(read, all, "{alive:#?}");
        assert!(self.open.is_empty(), "never answered: {:?}", self.open);
    }
}

fn run(seed: u64, clients: usize, steps: usize) {
    let mut world = World::new(seed, clients);
    for _ in 0..steps {
        if world.random.random_bool(0.2) {
            world.trouble();
        }
        world.step();
    }
    world.settle();
    world.check_settled();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_partition_has_one_reader_when_the_trouble_ends(
        seed: u64,
        clients in 1_usize..8,
        steps in 0_usize..400,
    ) {
        run(seed, clients, steps);
    }
}
