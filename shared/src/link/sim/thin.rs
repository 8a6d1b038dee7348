//! A thin and long link that is always full: who gets it, and who waits.
//!
//! No faults here. The transport sends packets, the more urgent streams first, and has a window of one
//! bandwidth-delay product, so that next to nothing queues on the way; the hub commits after a while.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::class::{Class, ClassRules, ClassSet, ClassShares, PerClass};
use crate::ids::{Incarnation, Offset, TopicName, TopicPartition};
use crate::link::mutation::Mutation;
use crate::link::{
    DataStream, LogAnswer, ReadResult, Receiver, ReceiverConfig, ReceiverOutput, Sender,
    SenderConfig, SenderOutput,
};
use crate::wire::{Handle, LogRange, LogReply, MIN_MAX_BATCH_BYTES, RecordsHeader, SizeClass};

/// 256 kbit/s over a satellite.
const RATE: u64 = 32_000;
const ONE_WAY: Duration = Duration::from_millis(300);
/// What the link holds in a round trip and a packet.
const WINDOW: u64 = RATE * 65 / 100;
const PACKET: u64 = 1_200;
/// 0.3 s of the link.
const READ: u32 = 9_600;
const RECORD: u32 = 200;
/// For the transport.
const BUDGET: u64 = WINDOW * 5 / 4 + READ as u64;

/// From the way's length and a few packets before it; the read takes no time here.
const PROMPT: Duration = Duration::from_millis(450);

#[derive(Debug)]
enum Event {
    /// Records of a log come.
    Grow(Handle, u64),
    ToHub(Bytes),
    ToSite(Bytes),
    /// The last packet of a stream arrives, or its acknowledgement.
    Stream(Box<DataStream>),
    Delivered(Class, u64),
    PacketAcked(u64),
    Committed(TopicPartition, Offset),
}

#[derive(Debug)]
struct Log {
    class: Class,
    end: Offset,
    /// When each record came; of those that are timed.
    born: BTreeMap<Offset, Duration>,
    every: Option<Duration>,
    /// Records that come at once.
    together: u64,
}

#[derive(Debug)]
struct Thin {
    now: Duration,
    sender: Sender,
    receiver: Receiver,
    commit_after: Duration,
    logs: Vec<Log>,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    /// With the transport: bytes that are not sent yet of each stream.
    queued: PerClass<VecDeque<(u64, DataStream)>>,
    unacked: u64,
    busy_until: Duration,
    /// Arrived, by class.
    bytes: PerClass<u64>,
    streams: PerClass<u64>,
    worst: PerClass<Duration>,
}

impl Thin {
    fn new(max_delay: PerClass<Duration>, window: u64, mutation: Option<Mutation>) -> Self {
        let mut sender = Sender::new(SenderConfig {
            nonce: 1,
            incarnation: Incarnation(7),
            software: "simulated".into(),
            codecs: vec![1],
            max_reads: 4,
            max_read_bytes: READ,
            classes: ClassRules {
                shares: ClassShares::default(),
                max_delay,
            },
            handshake_timeout: Duration::from_secs(5),
        });
        sender.mutation = mutation;
        sender.set_send_budget(BUDGET, BUDGET);
        let config = ReceiverConfig {
            codecs: vec![1],
            max_logs: 16,
            max_batch_bytes: MIN_MAX_BATCH_BYTES,
            window,
            keep_alive: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
        };
        Self {
            now: Duration::ZERO,
            sender,
            receiver: Receiver::new(config, Duration::ZERO),
            commit_after: Duration::from_millis(50),
            logs: Vec::new(),
            events: BTreeMap::new(),
            next_event: 0,
            queued: PerClass::default(),
            unacked: 0,
            busy_until: Duration::ZERO,
            bytes: PerClass::default(),
            streams: PerClass::default(),
            worst: PerClass::default(),
        }
    }

    fn add(&mut self, class: Class, backlog: u64) -> Handle {
        let handle = Handle(self.logs.len() as u32);
        let range = LogRange {
            origin: 0,
            start: 0,
            end: backlog,
        };
        self.sender.add_log(handle, name(handle), class, range, 0);
        self.logs.push(Log {
            class,
            end: backlog,
            born: BTreeMap::new(),
            every: None,
            together: 1,
        });
        handle
    }

    /// A log of records that come one at a time.
    fn add_live(&mut self, class: Class, every: Duration) -> Handle {
        let handle = self.add(class, 0);
        self.logs[handle.0 as usize].every = Some(every);
        self.after(every, Event::Grow(handle, 1));
        handle
    }

    /// The same of many at a time.
    fn add_bursts(&mut self, class: Class, every: Duration, together: u64) {
        let handle = self.add_live(class, every);
        self.logs[handle.0 as usize].together = together;
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.events
            .insert((self.now + delay, self.next_event), event);
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.sender.start(self.now);
        self.pump();
        while self.now < until {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timers = [self.sender.poll_timeout(), self.receiver.poll_timeout()];
            let link = (self.has_packet()).then_some(self.busy_until.max(self.now));
            let next = timers.into_iter().chain([link]).flatten().min();
            match (event, next) {
                (Some(at), next) if next.is_none_or(|next| at <= next) => {
                    self.now = self.now.max(at);
                    let (_, event) = self.events.pop_first().expect("it was seen");
                    self.handle(event);
                }
                (_, Some(at)) => {
                    self.now = self.now.max(at);
                    if link == Some(at) {
                        self.send_packet();
                    }
                    self.sender.handle_timeout(self.now);
                    self.receiver.handle_timeout(self.now);
                }
                (_, None) => panic!("nothing happens any more"),
            }
            self.pump();
        }
    }

    fn has_packet(&self) -> bool {
        self.unacked < WINDOW && self.queued.iter().any(|(_, streams)| !streams.is_empty())
    }

    /// The most urgent stream's next packet.
    fn send_packet(&mut self) {
        let most_urgent = Class::all()
            .into_iter()
            .find(|c| !self.queued[*c].is_empty());
        let Some(class) = most_urgent else {
            return;
        };
        let (left, _) = self.queued[class].front_mut().expect("it is not empty");
        let bytes = PACKET.min(*left);
        *left -= bytes;
        let is_last = *left == 0;
        self.sender.handle_carried(bytes);
        self.unacked += bytes;
        self.busy_until = self.now + Duration::from_micros(bytes * 1_000_000 / RATE);
        let arrives = self.busy_until - self.now + ONE_WAY;
        if is_last {
            let (_, stream) = self.queued[class].pop_front().expect("it is not empty");
            self.after(arrives + ONE_WAY, Event::Delivered(class, stream.len()));
            self.after(arrives, Event::Stream(Box::new(stream)));
        }
        self.after(arrives + ONE_WAY, Event::PacketAcked(bytes));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Grow(handle, records) => self.grow(handle, records),
            Event::ToHub(bytes) => self.receiver.handle_control(&bytes, self.now),
            Event::ToSite(bytes) => self.sender.handle_control(&bytes, self.now),
            Event::Stream(stream) => {
                let bytes = [stream.head, stream.payload].concat().into();
                self.receiver.handle_data(&bytes, self.now);
            }
            Event::Delivered(class, bytes) => self.sender.handle_delivered(class, bytes),
            Event::PacketAcked(bytes) => self.unacked -= bytes,
            Event::Committed(log, next) => self.receiver.handle_committed(&log, next, self.now),
        }
    }

    fn grow(&mut self, handle: Handle, records: u64) {
        let log = &mut self.logs[handle.0 as usize];
        if let Some(every) = log.every {
            log.born.insert(log.end + records - 1, self.now);
            let together = log.together;
            self.after(every, Event::Grow(handle, together));
        }
        let log = &mut self.logs[handle.0 as usize];
        log.end += records;
        self.sender.log_grew(handle, log.end, self.now);
    }

    fn pump(&mut self) {
        while let Some(output) = self.sender.poll_output() {
            match output {
                SenderOutput::Control(bytes) => self.after(ONE_WAY, Event::ToHub(bytes)),
                SenderOutput::Data(stream) => {
                    let class = stream.class;
                    self.queued[class].push_back((stream.len(), stream));
                }
                SenderOutput::Read {
                    handle,
                    from,
                    max_bytes,
                    ..
                } => {
                    let result = self.read(handle, from, max_bytes);
                    self.sender.handle_read(handle, result);
                }
                SenderOutput::Established { .. }
                | SenderOutput::Acked { .. }
                | SenderOutput::Policy(_)
                | SenderOutput::Missing(_)
                | SenderOutput::Window(_) => {}
                SenderOutput::Chain { .. }
                | SenderOutput::HistoryMismatch { .. }
                | SenderOutput::Denied { .. }
                | SenderOutput::Admitted { .. }
                | SenderOutput::TooLarge { .. }
                | SenderOutput::Close(_) => panic!("{output:?}"),
            }
        }
        while let Some(output) = self.receiver.poll_output() {
            match output {
                ReceiverOutput::Control(bytes) => self.after(ONE_WAY, Event::ToSite(bytes)),
                ReceiverOutput::Attach { logs, .. } | ReceiverOutput::Lookup { logs } => {
                    let answer = LogAnswer {
                        reply: LogReply::Absent,
                        anchor: 0,
                    };
                    let answers = vec![answer; logs.len()];
                    self.receiver.handle_checkpoints(&answers, self.now);
                }
                ReceiverOutput::Deliver(delivered) => {
                    let next = delivered.next_offset;
                    self.arrived(
                        delivered.header.handle,
                        next,
                        delivered.payload.len() as u64,
                    );
                    self.after(self.commit_after, Event::Committed(delivered.log, next));
                }
                ReceiverOutput::Excess { .. } | ReceiverOutput::Close(_) => panic!("{output:?}"),
            }
        }
    }

    fn read(&self, handle: Handle, from: Offset, max_bytes: u32) -> ReadResult {
        let end = self.logs[handle.0 as usize].end;
        let most = u64::from((max_bytes / RECORD).max(1));
        let next_offset = end.min(from + most);
        let raw_len = (next_offset - from) as u32 * RECORD;
        ReadResult::Records {
            base_offset: from,
            next_offset,
            chain: next_offset,
            is_chain_known: false,
            header: RecordsHeader {
                codec: 0,
                is_fresh: false,
                is_anchor: false,
                size: SizeClass::of(raw_len as usize),
                check: 0,
            },
            payload: vec![0; raw_len as usize].into(),
        }
    }

    fn arrived(&mut self, handle: Handle, next: Offset, bytes: u64) {
        let log = &mut self.logs[handle.0 as usize];
        self.bytes[log.class] += bytes;
        self.streams[log.class] += 1;
        let later = log.born.split_off(&next);
        for born in std::mem::replace(&mut log.born, later).into_values() {
            let age = self.now - born;
            self.worst[log.class] = self.worst[log.class].max(age);
        }
    }

    /// In percent of what the link could have carried.
    fn share(&self, class: Class, time: Duration) -> u64 {
        self.bytes[class] * 100 / (RATE * time.as_secs())
    }
}

fn name(handle: Handle) -> TopicPartition {
    TopicPartition {
        topic: TopicName::new(&format!("t{handle:?}").replace(['(', ')'], "-"))
            .expect("a good name"),
        partition: 0,
        track: crate::ids::Track::First,
    }
}

const MINUTES: Duration = Duration::from_secs(300);
const PLENTY: u64 = 1 << 40;

fn alarms_behind_a_backlog(window: u64, commit_ms: u64, mutation: Option<Mutation>) -> Thin {
    let mut thin = Thin::new(PerClass::default(), window, mutation);
    thin.commit_after = Duration::from_millis(commit_ms);
    thin.add(Class::Bulk, PLENTY);
    thin.add_live(Class::Critical, Duration::from_millis(1_700));
    thin.run_for(MINUTES);
    thin
}

#[test]
fn a_critical_record_never_waits_behind_bulk_backlog() {
    let thin = alarms_behind_a_backlog(4 << 20, 50, None);
    let worst = thin.worst[Class::Critical];
    assert!(worst < PROMPT && worst > ONE_WAY, "{worst:?}");
    let bulk = thin.share(Class::Bulk, MINUTES);
    assert!(bulk >= 95, "bulk has {bulk} % of the link");
}

/// The hub commits so slowly that the backlog uses up all credit that it may.
#[test]
fn a_critical_record_does_not_wait_for_credit_that_bulk_used_up() {
    let thin = alarms_behind_a_backlog(64 << 10, 4_000, None);
    let worst = thin.worst[Class::Critical];
    assert!(worst < PROMPT, "{worst:?}");
    let bulk = thin.share(Class::Bulk, MINUTES);
    assert!(
        (20..=45).contains(&bulk),
        "the window allows 38 %: {bulk} %"
    );
}

#[test]
fn without_classes_an_alarm_waits() {
    let thin = alarms_behind_a_backlog(4 << 20, 50, Some(Mutation::ForgetClass));
    let worst = thin.worst[Class::Critical];
    assert!(worst > PROMPT * 2, "{worst:?}");
}

#[test]
fn bulk_gets_its_minimum_share() {
    let mut thin = Thin::new(PerClass::default(), 4 << 20, None);
    for class in Class::all() {
        thin.add(class, PLENTY);
    }
    thin.run_for(MINUTES);
    let shares = Class::all().map(|class| thin.share(class, MINUTES));
    let [critical, normal, bulk] = shares;
    // what is read while the link is full comes a moment later than its turn
    assert!((70..=76).contains(&critical), "{shares:?}");
    assert!((17..=20).contains(&normal), "{shares:?}");
    assert!((5..=8).contains(&bulk), "{shares:?}");
}

#[test]
fn a_flood_of_alarms_leaves_their_share_to_large_batches() {
    let mut thin = Thin::new(PerClass::default(), 4 << 20, None);
    thin.sender.set_max_read_bytes(300_000);
    thin.add(Class::Critical, PLENTY);
    thin.add(Class::Normal, PLENTY);
    let time = MINUTES * 2;
    thin.run_for(time);
    let shares = [Class::Critical, Class::Normal].map(|class| thin.share(class, time));
    assert!(shares[1] >= 15 && shares[0] >= 70, "{shares:?}");
}

/// What the transport was given while the link was faster takes half a minute now.
fn become_thin(bulk: Option<u64>, budget: u64) -> Thin {
    let mut thin = Thin::new(PerClass::default(), 4 << 20, None);
    thin.sender.set_max_read_bytes(1_000_000);
    thin.sender.set_send_budget(1_000_000, 1_000_000);
    thin.add(Class::Normal, PLENTY);
    thin.run_for(Duration::from_secs(2));
    thin.sender.set_max_read_bytes(READ);
    thin.sender.set_send_budget(budget, BUDGET);
    let alarm = 20_000 / u64::from(RECORD);
    thin.add_bursts(Class::Critical, Duration::from_secs(2), alarm);
    if let Some(backlog) = bulk {
        let handle = thin.add(Class::Bulk, 0);
        thin.after(Duration::ZERO, Event::Grow(handle, backlog));
    }
    thin.run_for(Duration::from_secs(118));
    thin
}

#[test]
fn large_alarms_do_not_wait_for_the_turn_of_a_batch_that_is_on_its_way() {
    // a budget has room for two of the largest streams of late
    let budgets = [BUDGET, WINDOW * 5 / 4 + 2_000_000];
    let bulks = [None, Some(500), Some(PLENTY)];
    for (bulk, budget) in bulks
        .into_iter()
        .flat_map(|bulk| budgets.map(|it| (bulk, it)))
    {
        let thin = become_thin(bulk, budget);
        let worst = thin.worst[Class::Critical];
        // two of the third that the link carries, and the others' turns
        assert!(
            worst < Duration::from_secs(3),
            "{bulk:?}, {budget}: {worst:?}"
        );
        let shares = Class::all().map(|class| thin.share(class, Duration::from_secs(120)));
        assert!(
            (28..=33).contains(&shares[0]),
            "{bulk:?}, {budget}: {shares:?}"
        );
        assert!(
            shares[1] >= 30 && shares.iter().sum::<u64>() >= 85,
            "{bulk:?}, {budget}: {shares:?}"
        );
    }
}

#[test]
fn a_flood_does_not_hold_back_the_little_that_others_send() {
    for (flood, victim) in [
        (Class::Critical, Class::Normal),
        (Class::Critical, Class::Bulk),
        (Class::Normal, Class::Bulk),
    ] {
        let mut thin = Thin::new(PerClass::default(), 4 << 20, None);
        thin.add(flood, PLENTY);
        thin.add_live(victim, Duration::from_secs(3));
        thin.run_for(MINUTES);
        let worst = thin.worst[victim];
        assert!(
            worst < Duration::from_secs(15),
            "{flood}, {victim}: {worst:?}"
        );
        let streams = thin.streams[victim];
        assert!(streams >= 20, "{flood}, {victim}: {streams}");
        let share = thin.share(flood, MINUTES);
        assert!(share >= 85, "{flood}, {victim}: {share} %");
    }
}

#[test]
fn what_may_not_be_sent_waits_and_goes_on() {
    let mut thin = Thin::new(PerClass::default(), 4 << 20, None);
    thin.add(Class::Bulk, PLENTY);
    thin.add(Class::Normal, PLENTY);
    thin.add_live(Class::Critical, Duration::from_millis(700));
    thin.run_for(MINUTES);
    thin.sender.set_classes_allowed(ClassSet::CRITICAL_ONLY);
    // what the transport has already
    thin.run_for(Duration::from_secs(5));
    let before = thin.bytes;
    thin.run_for(MINUTES);
    assert_eq!(thin.bytes[Class::Bulk], before[Class::Bulk]);
    assert_eq!(thin.bytes[Class::Normal], before[Class::Normal]);
    assert!(thin.worst[Class::Critical] < PROMPT, "{:?}", thin.worst);
    assert!(thin.bytes[Class::Critical] > before[Class::Critical] * 3 / 2);
    thin.sender.set_classes_allowed(ClassSet::ALL);
    thin.run_for(MINUTES);
    assert!(thin.bytes[Class::Bulk] > before[Class::Bulk] * 3 / 2);
}

#[test]
fn records_wait_for_company_no_longer_than_they_may() {
    let second = Duration::from_secs(1);
    let delay = PerClass::new([Duration::ZERO, second, second * 5]);
    let mut thin = Thin::new(delay, 4 << 20, None);
    thin.add_live(Class::Critical, second * 2);
    thin.add_live(Class::Normal, Duration::from_millis(100));
    thin.add_live(Class::Bulk, Duration::from_millis(200));
    thin.run_for(MINUTES);
    let streams = Class::all().map(|class| thin.streams[class]);
    assert!((148..=150).contains(&streams[0]), "{streams:?}");
    assert!((250..=300).contains(&streams[1]), "{streams:?}");
    assert!((50..=60).contains(&streams[2]), "{streams:?}");
    assert!(thin.worst[Class::Critical] < PROMPT);
    // a batch takes its time on the link too
    assert!(thin.worst[Class::Normal] < second + PROMPT * 2);
    assert!(thin.worst[Class::Bulk] < second * 5 + PROMPT * 2);
}

/// Nobody knows before the first read how large the records of a log are.
#[test]
fn what_makes_a_whole_batch_in_a_new_log_does_not_wait() {
    let delay = PerClass::new([Duration::from_secs(60); 3]);
    let mut thin = Thin::new(delay, 4 << 20, None);
    let handle = thin.add(Class::Normal, 0);
    let records = u64::from(READ / RECORD) * 4;
    thin.after(Duration::from_secs(2), Event::Grow(handle, records));
    // they take 1.2 s of the link, and one that comes alone waits for others
    thin.after(Duration::from_secs(8), Event::Grow(handle, 1));
    thin.run_for(Duration::from_secs(10));
    assert_eq!(thin.bytes[Class::Normal], records * u64::from(RECORD));
}
