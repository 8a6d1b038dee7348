//! The exactly-once story under every fault at every step, against a model, without a clock, a thread
//! or a network: two hubs that may both believe they own a lane, sites that move between them,
//! a cluster that fails before, in and after each call, and hubs that die in the middle of it.
//!
//! The oracle: read with `read_committed`, each log's records are exactly those from its start to its
//! checkpoint, less the gaps and the dead letters; none missing, none twice, in order. And nothing was
//! acknowledged that is not there. When the faults stop, everything gets through.
//!
//! A failing seed is replayed with `KEDGE_SEED=n cargo test -p hub-node commit::sim`.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shared::ids::{Incarnation, SiteId, TopicName, TopicPartition};
use shared::record::put_record;

use super::counters::Counters;
use super::machine::{Bounds, Machine, Outcome, Output, Ticket, Work};
use super::queue::Cost;
use super::sending::Mapping;
use super::transact::Transactor;
use super::*;
use crate::sink::mapping::PartitionRule;
use crate::sink::memory::{MemoryCluster, MemoryLane, Point};
use crate::sink::{Cluster, Destination, SinkError};

/// More with `KEDGE_SEEDS`.
const SEEDS: u64 = 400;
const STEPS: u32 = 400;
/// Records of a log; the last steps bring all of them in.
const LOG_LEN: u64 = 60;
const DEAD_LETTERS: &str = "dead";
const MAX_VALUE: usize = 100;

#[test]
fn every_record_is_committed_exactly_once_under_any_fault() {
    let seed = std::env::var("KEDGE_SEED").ok();
    let seeds = match seed.map(|seed| seed.parse().expect("a number")) {
        Some(seed) => seed..seed + 1,
        None => {
            let more = std::env::var("KEDGE_SEEDS").ok();
            0..more.map_or(SEEDS, |seeds| seeds.parse().expect("a number"))
        }
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        assert!(run.is_ok(), "failed with KEDGE_SEED={seed}");
    }
}

/// What each log holds: which offsets are gaps, and which records no topic takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Good,
    /// Larger than the topic says.
    TooLarge,
    /// Larger than the topic really takes: only the broker knows.
    Surprise,
}

struct Site {
    id: SiteId,
    incarnation: Incarnation,
    logs: BTreeMap<TopicPartition, Vec<Fate>>,
    /// What the hub acknowledged.
    acked: BTreeMap<TopicPartition, u64>,
    session: Option<Session>,
}

struct Session {
    hub: usize,
    id: SessionId,
    is_attached: bool,
    asked: Option<Ticket>,
    /// Where the next delivery of a log starts; known once asked.
    next: BTreeMap<TopicPartition, u64>,
}

struct Hub {
    machine: Machine,
    transactor: Transactor<MemoryLane>,
}

struct World {
    rng: StdRng,
    cluster: MemoryCluster,
    faults: Arc<Mutex<FaultPlan>>,
    hubs: Vec<Hub>,
    sites: Vec<Site>,
    now: Instant,
    next_id: u64,
}

struct FaultPlan {
    rng: StdRng,
    rate: f64,
    /// The hub whose call is under way died in it.
    has_crashed: bool,
}

impl FaultPlan {
    fn strike(&mut self, _point: Point) -> Option<SinkError> {
        if self.has_crashed {
            return Some(SinkError::Unknown("it is dead".to_owned()));
        }
        if !self.rng.random_bool(self.rate) {
            return None;
        }
        match self.rng.random_range(0..4) {
            0 => Some(SinkError::Abortable("injected".to_owned())),
            1 => {
                self.has_crashed = true;
                Some(SinkError::Unknown("it dies".to_owned()))
            }
            _ => Some(SinkError::Unknown("injected".to_owned())),
        }
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = MemoryCluster::new(
            1,
            Some(Destination {
                partitions: 3,
                max_batch_bytes: 2_000,
                is_compacted: false,
                max_timestamp_behind_ms: None,
                max_age_ms: None,
                max_timestamp_ahead_ms: None,
            }),
        );
        let faults = Arc::new(Mutex::new(FaultPlan {
            rng: StdRng::seed_from_u64(rng.random()),
            rate: [0.0, 0.01, 0.1][rng.random_range(0..3)],
            has_crashed: false,
        }));
        let plan = faults.clone();
        cluster.set_faults(move |point| plan.lock().unwrap().strike(point));
        let sites = (0..3).map(|i| Site::new(i, &mut rng)).collect();
        let mut world = Self {
            rng,
            cluster,
            faults,
            hubs: Vec::new(),
            sites,
            now: Instant::now(),
            next_id: 0,
        };
        world.hubs = (0..2).map(|_| world.new_hub()).collect();
        world
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        self.faults.lock().unwrap().rate = 0.0;
        for _ in 0..10_000 {
            if self.is_done() {
                return self.check();
            }
            self.step();
        }
        panic!("the backlog does not drain");
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(100);
        match self.rng.random_range(0..20) {
            0 => self.shrink(),
            1 => {
                let site = self.rng.random_range(0..self.sites.len());
                self.leave(site);
            }
            2..=8 => {
                let hub = self.rng.random_range(0..self.hubs.len());
                self.work(hub);
            }
            _ => {
                let site = self.rng.random_range(0..self.sites.len());
                self.act(site);
            }
        }
    }

    /// A topic takes less than it said: what is larger than `MAX_VALUE` surprises.
    fn shrink(&mut self) {
        for topic in self.cluster.topics() {
            if topic != DEAD_LETTERS {
                self.cluster.shrink(&topic, MAX_VALUE);
            }
        }
    }

    /// A site does the next thing.
    fn act(&mut self, index: usize) {
        let Some(session) = &self.sites[index].session else {
            return self.attach(index);
        };
        if !session.is_attached || session.asked.is_some() {
            return;
        }
        let (hub, id) = (session.hub, session.id);
        let logs: Vec<_> = self.sites[index].logs.keys().cloned().collect();
        if session.next.is_empty() {
            let ticket = Ticket(self.new_id());
            self.sites[index].session.as_mut().unwrap().asked = Some(ticket);
            self.hubs[hub].machine.handle_question(ticket, id, logs);
        } else {
            let log = logs[self.rng.random_range(0..logs.len())].clone();
            let site = &mut self.sites[index];
            if let Some(delivery) = site.delivery(&log, &mut self.rng) {
                self.hubs[hub].machine.handle_delivery(id, delivery);
            }
        }
        self.collect(hub);
    }

    fn attach(&mut self, index: usize) {
        let hub = match self.rng.random_bool(0.9) {
            true => 0,
            false => 1,
        };
        let id = SessionId(self.new_id());
        let site = &mut self.sites[index];
        site.session = Some(Session {
            hub,
            id,
            is_attached: false,
            asked: None,
            next: BTreeMap::new(),
        });
        let (name, incarnation) = (site.id.clone(), site.incarnation);
        self.hubs[hub]
            .machine
            .handle_attach(name, incarnation, id, self.now);
        self.collect(hub);
    }

    /// A site's connection breaks; the hub may learn it at once, or only from the next one.
    fn leave(&mut self, index: usize) {
        let Some(session) = self.sites[index].session.take() else {
            return;
        };
        if self.rng.random_bool(0.5) {
            self.hubs[session.hub].machine.handle_detach(session.id);
            self.collect(session.hub);
        }
    }

    /// A hub does its next blocking step.
    fn work(&mut self, index: usize) {
        let hub = &mut self.hubs[index];
        let until = self.now + Duration::from_secs(3);
        match hub.machine.poll_work() {
            None => return,
            Some(Work::Acquire) => match hub.transactor.acquire(0) {
                Ok(restored) => {
                    hub.machine.handle_acquired(restored.logs, restored.damaged);
                }
                Err(SinkError::Fenced) => hub.machine.handle_fenced(until),
                Err(_) => {}
            },
            Some(Work::Commit(transaction)) => match hub.transactor.run(&transaction, 0) {
                Outcome::Fenced => hub.machine.handle_fenced(until),
                outcome
                @ (Outcome::Committed { .. } | Outcome::Unknown | Outcome::Malformed(_)) => {
                    hub.machine.handle_outcome(outcome);
                }
            },
        }
        let has_crashed = std::mem::take(&mut self.faults.lock().unwrap().has_crashed);
        if has_crashed {
            // whatever it knew is gone, and what it wanted to say was never said
            self.hubs[index] = self.new_hub();
            for site in &mut self.sites {
                site.session.take_if(|session| session.hub == index);
            }
        }
        self.collect(index);
        self.check();
    }

    fn collect(&mut self, hub: usize) {
        while let Some(output) = self.hubs[hub].machine.poll_output() {
            match output {
                Output::Attached(id, answer) => {
                    if let Some(site) = self.site_of(id) {
                        match answer {
                            Ok(()) => site.session.as_mut().unwrap().is_attached = true,
                            Err(_) => site.session = None,
                        }
                    }
                }
                Output::Checkpoints(ticket, answer) => {
                    let asked = |site: &&mut Site| {
                        site.session
                            .as_ref()
                            .is_some_and(|s| s.asked == Some(ticket))
                    };
                    if let Some(site) = self.sites.iter_mut().find(asked) {
                        site.told(answer);
                    }
                }
                Output::Event(id, LaneEvent::Committed(logs)) => {
                    if let Some(site) = self.site_of(id) {
                        site.acked(logs);
                    }
                }
                Output::Event(id, LaneEvent::Ended(reason)) => {
                    assert_ne!(reason, EndReason::OutOfOrder, "sites are in order here");
                    if let Some(site) = self.site_of(id) {
                        site.session = None;
                    }
                }
            }
        }
    }

    fn site_of(&mut self, id: SessionId) -> Option<&mut Site> {
        let is_it = |site: &&mut Site| site.session.as_ref().is_some_and(|s| s.id == id);
        self.sites.iter_mut().find(is_it)
    }

    /// Compares what a reader sees with what each log holds.
    fn check(&self) {
        let seen = self.seen();
        let dead = self.dead();
        for site in &self.sites {
            for (log, fates) in &site.logs {
                let name = format!("{}/{log}", site.id);
                let none = VecDeque::new();
                let offsets = seen.get(&name).unwrap_or(&none);
                let in_order = offsets
                    .iter()
                    .zip(offsets.iter().skip(1))
                    .all(|(a, b)| a < b);
                assert!(in_order, "{name}: {offsets:?}");
                let dead = dead.get(&name).cloned().unwrap_or_default();
                let end = offsets.iter().chain(&dead).max().map_or(0, |last| last + 1);
                let end = end.max(site.acked.get(log).copied().unwrap_or(0));
                for offset in 0..end {
                    let is_there = offsets.contains(&offset);
                    let is_dead = dead.contains(&offset);
                    assert!(!(is_there && is_dead), "{name}-{offset} is there and dead");
                    let may_be_dead = at(fates, offset) != Fate::Good;
                    assert!(
                        !is_dead || may_be_dead,
                        "{name}-{offset} is dead, and was good"
                    );
                    let is_gap = is_gap(offset);
                    assert!(
                        is_there || is_dead || is_gap,
                        "{name}-{offset} is missing below {end}"
                    );
                }
            }
        }
    }

    /// Offsets in the topics, by log, in order per partition: one log is one partition here.
    fn seen(&self) -> HashMap<String, VecDeque<u64>> {
        let mut seen: HashMap<String, VecDeque<u64>> = HashMap::new();
        for topic in self.cluster.topics() {
            if topic == DEAD_LETTERS {
                continue;
            }
            for record in self.cluster.read_committed(&topic).into_iter().flatten() {
                let name = String::from_utf8(record.value.unwrap()).unwrap();
                let (log, offset) = name.trim_end().rsplit_once('#').unwrap();
                seen.entry(log.to_owned())
                    .or_default()
                    .push_back(offset.parse().unwrap());
            }
        }
        seen
    }

    fn dead(&self) -> HashMap<String, HashSet<u64>> {
        let mut dead: HashMap<String, HashSet<u64>> = HashMap::new();
        let records = self.cluster.read_committed(DEAD_LETTERS);
        for record in records.into_iter().flatten() {
            let name = String::from_utf8(record.value.unwrap()).unwrap();
            let (log, offset) = name.trim_end().rsplit_once('#').unwrap();
            let is_new = dead
                .entry(log.to_owned())
                .or_default()
                .insert(offset.parse().unwrap());
            assert!(is_new, "{name} is dead twice");
        }
        dead
    }

    fn is_done(&self) -> bool {
        self.sites.iter().all(|site| {
            let is_acked = |log| site.acked.get(log).copied() == Some(LOG_LEN);
            site.logs.keys().all(is_acked)
        })
    }

    fn new_hub(&mut self) -> Hub {
        let mapping = Mapping {
            template: "{topic}".parse().unwrap(),
            rule: PartitionRule::Hash,
            dead_letter_topic: DEAD_LETTERS.to_owned(),
            checkpoint_topic: "checkpoints".to_owned(),
        };
        let bounds = Bounds {
            transaction: Cost {
                bytes: 2_000,
                records: 20,
            },
            queue_bytes: 10_000,
        };
        let counters = Arc::new(Counters::default());
        let sink = self.cluster.lane(0);
        Hub {
            machine: Machine::new(bounds),
            transactor: Transactor::new(sink, mapping, "sim".to_owned(), 1, counters),
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Site {
    fn new(index: u32, rng: &mut StdRng) -> Self {
        let mut fates = |_| {
            let fate = |_| match rng.random_range(0..30) {
                0 => Fate::TooLarge,
                1 => Fate::Surprise,
                _ => Fate::Good,
            };
            (0..LOG_LEN).map(fate).collect::<Vec<_>>()
        };
        let logs = (0..2).map(|partition| {
            let topic = TopicName::new("t").unwrap();
            let log = TopicPartition {
                topic,
                partition,
                track: shared::ids::Track::First,
            };
            (log, fates(partition))
        });
        Self {
            id: SiteId::new(&format!("site-{index}")).unwrap(),
            incarnation: Incarnation(index.into()),
            logs: logs.collect(),
            acked: BTreeMap::new(),
            session: None,
        }
    }

    /// The next step of a log; sometimes it reaches back over what was sent before.
    fn delivery(&mut self, log: &TopicPartition, rng: &mut StdRng) -> Option<Delivery> {
        let next = *self.session.as_ref()?.next.get(log)?;
        if next >= LOG_LEN {
            return None;
        }
        let overlap = match rng.random_range(0..10) {
            0 => rng.random_range(0..4),
            _ => 0,
        };
        let base = next.saturating_sub(overlap);
        let end = if is_gap(base) {
            (base..LOG_LEN).find(|at| !is_gap(*at))?
        } else {
            let wanted = (base + overlap + rng.random_range(1..8)).min(LOG_LEN);
            let gap = (base..wanted).find(|at| is_gap(*at));
            gap.unwrap_or(wanted)
        };
        let content = match is_gap(base) {
            true => Content::Gap { reason: 1 },
            false => Content::Records(self.blocks(log, base, end)),
        };
        let tail = self.session.as_mut()?.next.get_mut(log)?;
        *tail = end.max(next);
        Some(Delivery {
            log: log.clone(),
            base_offset: base,
            next: Checkpoint {
                next_offset: end,
                chain: end * 31,
            },
            content,
            bytes: 100,
            hold: None,
        })
    }

    fn blocks(&self, log: &TopicPartition, base: u64, end: u64) -> Vec<Block> {
        let middle = base + (end - base) / 2;
        [(base, middle), (middle, end)]
            .into_iter()
            .filter(|(base, end)| base < end)
            .map(|(base, end)| {
                let mut records = Vec::new();
                for (i, offset) in (0..).zip(base..end) {
                    let mut value = format!("{}/{log}#{offset}", self.id);
                    let len = match at(&self.logs[log], offset) {
                        Fate::Good => 0,
                        Fate::TooLarge => 2_000,
                        Fate::Surprise => MAX_VALUE + 1,
                    };
                    value.extend(std::iter::repeat_n(' ', len));
                    put_record(&mut records, i, 0, None, Some(value.as_bytes()), &[]);
                }
                Block {
                    base_offset: base,
                    count: u32::try_from(end - base).unwrap(),
                    base_timestamp_ms: 0,
                    is_log_append_time: false,
                    records: records.into(),
                }
            })
            .collect()
    }

    fn told(&mut self, answer: Result<Vec<Option<Checkpoint>>, EndReason>) {
        let Ok(checkpoints) = answer else {
            self.session = None;
            return;
        };
        let session = self.session.as_mut().unwrap();
        session.asked = None;
        for (log, checkpoint) in self.logs.keys().zip(checkpoints) {
            let next = checkpoint.map_or(0, |checkpoint| checkpoint.next_offset);
            let acked = self.acked.get(log).copied().unwrap_or(0);
            assert!(
                next >= acked,
                "{log}: acknowledged {acked}, and the hub has {next}"
            );
            session.next.insert(log.clone(), next);
        }
        let logs = self
            .logs
            .keys()
            .cloned()
            .zip(session.next.values().copied());
        self.acked.extend(logs.collect::<Vec<_>>());
    }

    fn acked(&mut self, logs: Vec<(TopicPartition, Checkpoint)>) {
        for (log, checkpoint) in logs {
            let acked = self.acked.entry(log).or_default();
            *acked = (*acked).max(checkpoint.next_offset);
        }
    }
}

/// The same range in every session: what was dropped stays dropped.
fn is_gap(offset: u64) -> bool {
    (20..25).contains(&offset)
}

fn at(fates: &[Fate], offset: u64) -> Fate {
    fates[usize::try_from(offset).unwrap()]
}
