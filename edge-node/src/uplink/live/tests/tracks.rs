//! Each offset reaches the hub exactly once and in the order of its track, whoever is killed when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use shared::class::{ClassRules, PerClass};
use shared::ids::{Incarnation, TopicName};
use shared::link::{
    Delivered, LogAnswer, Receiver, ReceiverConfig, ReceiverOutput, SenderConfig, SenderOutput,
    Unsettled,
};
use shared::record::{BatchHeader, Compression};
use shared::wire::{Checkpoint, Code, DataContent, GAP_NOT_AT_SITE, GAP_OTHER_TRACK, LogReply};

use super::*;
use crate::ingest::tests::{any_topic, batch_of};
use crate::store::{Append, MemoryStore, StoreConfig, TopicRules};
use crate::uplink::worker::{Done, Encoders, Job, WorkerConfig, run};

#[derive(Debug, Clone)]
enum Step {
    /// So many records in one batch.
    Append(u8),
    /// What is new is to pass, if there is a backlog.
    Split,
    /// Something that is on its way arrives; which, is random.
    Move(u8),
    /// The hub commits what was delivered, all of it or its first part.
    Commit(bool),
    /// The connection is gone.
    Lose,
    /// The site is killed: what was acknowledged since its last synced write is not known any more.
    Kill,
    /// A client deletes records before this share of the log, sent or not.
    Delete(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..6_u8).prop_map(Step::Append),
        3 => Just(Step::Split),
        40 => any::<u8>().prop_map(Step::Move),
        6 => any::<bool>().prop_map(Step::Commit),
        2 => Just(Step::Lose),
        2 => Just(Step::Kill),
    ]
}

proptest! {
    #[test]
    fn each_offset_is_committed_once_and_in_order(
        steps in proptest::collection::vec(step(), 1..250),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.drain();
        prop_assert_eq!(world.renewals, 0, "a new incarnation without need");
        let ledger = world.store.ledger()[0].1;
        prop_assert_eq!((ledger.queued, ledger.committed), (0, world.end()));
        prop_assert_eq!(world.central.len() as u64, world.end());
    }

    #[test]
    fn what_is_deleted_on_the_way_is_told_or_there(
        steps in proptest::collection::vec(
            prop_oneof![9 => step(), 1 => any::<u8>().prop_map(Step::Delete)],
            1..250,
        ),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.drain();
        let ledger = world.store.ledger()[0].1;
        prop_assert_eq!(ledger.queued, 0);
        prop_assert_eq!(ledger.committed + ledger.deleted, world.end());
        for offset in 0..world.end() {
            let is_known = world.seen.contains(&offset) || world.lost.contains(&offset);
            prop_assert!(is_known, "{offset} is neither there nor told");
        }
    }
}

#[test]
fn the_tracks_change_their_places() {
    let mut world = World::new();
    for round in 0..4 {
        world.take(&Step::Append(3));
        world.take(&Step::Split);
        world.take(&Step::Append(2));
        let tracks = world.tracks();
        assert!(tracks.split.is_some(), "round {round}: {tracks:?}");
        assert_eq!(tracks.main.number(), round % 2);
        world.drain();
        assert_eq!(world.tracks().split, None);
    }
    assert_eq!(world.central.len() as u64, world.end());
}

#[test]
fn a_site_without_the_setting_drains_both_tracks() {
    let mut world = World::new();
    world.take(&Step::Append(3));
    world.take(&Step::Split);
    world.take(&Step::Append(3));
    world.take(&Step::Lose);
    world.topics.default.live_first = false;
    world.drain();
    assert_eq!((world.tracks().split, world.renewals), (None, 0));
    assert_eq!(world.central.len() as u64, world.end());
}

#[test]
fn a_log_is_split_only_where_the_hub_takes_both_tracks() {
    for is_one_refused in [false, true] {
        let mut world = World::new();
        world.is_one_refused = is_one_refused;
        for _ in 0..4 {
            world.take(&Step::Append(3));
        }
        world.dial();
        let backlogs = Backlogs::default();
        assert!(
            world.to_split(&backlogs).is_empty(),
            "nothing gets through yet"
        );
        let is_moving = |world: &World| {
            let range = world.store.range(world.partition).unwrap();
            range.acked > 0 && range.acked < range.end
        };
        for _ in 0..200 {
            for which in 0..4 {
                world.take(&Step::Move(which));
            }
            world.take(&Step::Commit(false));
            world.sync();
            if is_moving(&world) {
                break;
            }
        }
        assert!(is_moving(&world), "{:?}", world.tracks());
        let expected: &[_] = if is_one_refused {
            &[]
        } else {
            &[world.partition]
        };
        assert_eq!(world.to_split(&backlogs), expected, "{is_one_refused}");
    }
}

#[test]
fn what_is_known_of_a_log_goes_with_it() {
    let mut world = World::new();
    let rules = TopicRules {
        retention_ms: None,
        retention_bytes: None,
        on_full: crate::store::OnFull::Backpressure,
        max_batch_bytes: 1 << 20,
    };
    let other = TopicName::new("other").unwrap();
    world.store.ensure_topic(&other, 2, rules).unwrap();
    world.dial();
    let backlogs = Backlogs::default();
    world.to_split(&backlogs);
    assert_eq!(backlogs.lock().len(), 3);
    world.store.delete_topic("other").unwrap();
    world.to_split(&backlogs);
    assert!(backlogs.lock().keys().eq([&world.partition]));
}

enum Packet {
    ToHub(Bytes),
    Data(Bytes),
    ToSite(Bytes),
    Job(Job),
}

struct Session {
    sender: Sender,
    receiver: Receiver,
    control: VecDeque<Packet>,
    replies: VecDeque<Packet>,
    data: Vec<Packet>,
    jobs: VecDeque<Packet>,
    delivered: VecDeque<Delivered>,
    is_over: Option<Code>,
}

struct World {
    store: MemoryStore,
    topics: TopicsConfig,
    /// The hub does not take second tracks.
    is_one_refused: bool,
    partition: PartitionId,
    config: WorkerConfig,
    encoders: Encoders,
    book: AnchorBook,
    session: Option<Session>,
    unsettled: Unsettled,
    /// Acknowledgements that are not on disk.
    unsynced: Vec<Job>,
    now: Duration,
    checkpoints: BTreeMap<(Incarnation, TopicPartition), Checkpoint>,
    /// What Kafka holds.
    central: BTreeSet<(Incarnation, Offset)>,
    seen: BTreeSet<Offset>,
    lost: BTreeSet<Offset>,
    renewals: u32,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::new(&StoreConfig::default(), Incarnation(1));
        let rules = TopicRules {
            retention_ms: None,
            retention_bytes: None,
            on_full: crate::store::OnFull::Backpressure,
            max_batch_bytes: 1 << 20,
        };
        let topic = TopicName::new("t").unwrap();
        let partition = store.ensure_topic(&topic, 1, rules).unwrap().partitions[0];
        let directory = tempfile::tempdir().unwrap();
        let config = WorkerConfig {
            fixed_codec: None,
            codec_directory: directory.path().to_owned(),
            codec_memory: 1 << 20,
            counted: Arc::default(),
            chunk_bytes: 1 << 20,
            zstd_level: 1,
            max_uncompressed_bytes: 1 << 20,
        };
        let book = AnchorBook::default();
        let mut topics = any_topic();
        topics.default.live_first = true;
        Self {
            store,
            topics,
            is_one_refused: false,
            partition,
            encoders: Encoders::open(&config, book.clone()).unwrap(),
            config,
            book,
            session: None,
            unsettled: Unsettled::default(),
            unsynced: Vec::new(),
            now: Duration::from_secs(1),
            checkpoints: BTreeMap::new(),
            central: BTreeSet::new(),
            seen: BTreeSet::new(),
            lost: BTreeSet::new(),
            renewals: 0,
            _directory: directory,
        }
    }

    /// What is to be split now; without a session the hub takes nothing.
    fn to_split(&self, backlogs: &Backlogs) -> Vec<PartitionId> {
        let session = self.session.as_ref();
        session.map_or_else(Vec::new, |session| {
            let (sender, store, topics) = (&session.sender, &self.store, &self.topics);
            to_split(sender, store, topics, backlogs, self.now)
        })
    }

    fn end(&self) -> Offset {
        self.store.range(self.partition).unwrap().end
    }

    fn tracks(&self) -> crate::store::Tracks {
        self.store.range(self.partition).unwrap().tracks
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append(records) => {
                self.sync();
                let values: Vec<&[u8]> = (0..*records).map(|_| &b"value"[..]).collect();
                let batch = batch_of(&values, Compression::None);
                let append = Append {
                    partition: self.partition,
                    header: BatchHeader::parse(&batch).unwrap(),
                    batch,
                    state: Vec::new(),
                };
                self.store.append(append).blocking_recv().unwrap().unwrap();
            }
            Step::Split => {
                self.sync();
                self.run(Job::Split {
                    partition: self.partition,
                });
            }
            Step::Move(which) => self.step(*which),
            Step::Commit(is_all) => self.commit(*is_all),
            Step::Lose => self.hang_up(),
            Step::Kill => {
                self.hang_up();
                self.unsettled = Unsettled::default();
                self.unsynced.clear();
            }
            Step::Delete(share) => {
                self.sync();
                let before = self.end() * u64::from(*share) / 255;
                self.store.delete_records(self.partition, before).unwrap();
            }
        }
        self.tell();
        self.carry_out();
    }

    /// A synced write takes along what was written before.
    fn sync(&mut self) {
        for job in std::mem::take(&mut self.unsynced) {
            self.run(job);
        }
    }

    fn run(&mut self, job: Job) -> Option<Done> {
        run(job, &self.store, &self.config, &mut self.encoders).unwrap()
    }

    fn tell(&mut self) {
        if let Some(session) = &mut self.session {
            let sender = &mut session.sender;
            tell_logs(sender, &self.store, &self.topics, &self.book, self.now);
        }
    }

    fn dial(&mut self) {
        let mut sender = Sender::new(SenderConfig {
            nonce: 1,
            incarnation: self.store.incarnation(),
            software: "test".into(),
            codecs: Vec::new(),
            max_reads: 3,
            max_read_bytes: 30,
            classes: ClassRules {
                shares: shared::class::ClassShares::default(),
                max_delay: PerClass::default(),
            },
            handshake_timeout: Duration::from_secs(1_000),
        });
        sender.recall(self.unsettled.clone());
        tell_logs(&mut sender, &self.store, &self.topics, &self.book, self.now);
        sender.start(self.now);
        let config = ReceiverConfig {
            codecs: Vec::new(),
            max_logs: 10,
            max_batch_bytes: 4 << 20,
            window: 16 << 20,
            keep_alive: Duration::from_secs(1_000),
            handshake_timeout: Duration::from_secs(1_000),
        };
        self.session = Some(Session {
            sender,
            receiver: Receiver::new(config, self.now),
            control: VecDeque::new(),
            replies: VecDeque::new(),
            data: Vec::new(),
            jobs: VecDeque::new(),
            delivered: VecDeque::new(),
            is_over: None,
        });
        self.carry_out();
    }

    fn hang_up(&mut self) {
        if let Some(session) = self.session.take() {
            self.unsettled = session.sender.unsettled();
        }
    }

    /// One of the things that are on their way.
    fn step(&mut self, which: u8) {
        let Some(session) = &mut self.session else {
            return self.dial();
        };
        let data = session.data.len();
        let packet = match which % 4 {
            0 => session.control.pop_front(),
            1 => session.replies.pop_front(),
            2 => session.jobs.pop_front(),
            _ if data > 0 => Some(session.data.remove(usize::from(which / 4) % data)),
            _ => None,
        };
        match packet {
            Some(Packet::ToHub(bytes)) => session.receiver.handle_control(&bytes, self.now),
            Some(Packet::Data(bytes)) => session.receiver.handle_data(&bytes, self.now),
            Some(Packet::ToSite(bytes)) => session.sender.handle_control(&bytes, self.now),
            Some(Packet::Job(job)) => {
                let done = self.run(job);
                if let (Some(session), Some(done)) = (&mut self.session, done) {
                    match done {
                        Done::Read { handle, result } => session.sender.handle_read(handle, result),
                        Done::Chain {
                            handle,
                            offset,
                            chain,
                        } => session.sender.handle_chain(handle, offset, chain),
                        Done::Settled => {}
                        Done::Failed(error) => panic!("{error}"),
                    }
                }
            }
            None => {}
        }
    }

    fn carry_out(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        while let Some(output) = session.sender.poll_output() {
            match output {
                SenderOutput::Control(bytes) => session.control.push_back(Packet::ToHub(bytes)),
                SenderOutput::Data(stream) => {
                    session.sender.handle_delivered(stream.class, stream.len());
                    let bytes = [stream.head, stream.payload].concat().into();
                    session.data.push(Packet::Data(bytes));
                }
                SenderOutput::Read {
                    handle,
                    from,
                    max_bytes,
                    chain,
                    begin,
                } => session.jobs.push_back(Packet::Job(Job::Read {
                    handle,
                    from,
                    max_bytes: max_bytes as usize,
                    chain,
                    begin,
                    link: None,
                    codecs: Arc::default(),
                })),
                SenderOutput::Chain { handle, offset } => {
                    session
                        .jobs
                        .push_back(Packet::Job(Job::Chain { handle, offset }));
                }
                SenderOutput::Acked {
                    handle,
                    next_offset,
                } => {
                    let cursors = vec![(handle, next_offset)];
                    self.unsynced.push(Job::Acknowledge { cursors });
                }
                SenderOutput::Close(close) => session.is_over = Some(close.code),
                SenderOutput::Established { .. } | SenderOutput::HistoryMismatch { .. } => {}
                SenderOutput::Denied { .. } if self.is_one_refused => {}
                SenderOutput::Policy(_)
                | SenderOutput::Missing(_)
                | SenderOutput::Window(_)
                | SenderOutput::Denied { .. }
                | SenderOutput::Admitted { .. }
                | SenderOutput::TooLarge { .. } => panic!("{output:?}"),
            }
        }
        while let Some(output) = session.receiver.poll_output() {
            match output {
                ReceiverOutput::Control(bytes) => session.replies.push_back(Packet::ToSite(bytes)),
                ReceiverOutput::Attach {
                    incarnation, logs, ..
                } => {
                    let answer = |entry: &shared::wire::LogEntry| {
                        let key = (incarnation, entry.log.clone());
                        let held = self.checkpoints.get(&key);
                        let is_refused = self.is_one_refused && entry.log.track == Track::Second;
                        let reply = held.map_or(LogReply::Absent, |held| LogReply::At(*held));
                        LogAnswer {
                            reply: if is_refused { LogReply::Denied } else { reply },
                            anchor: 0,
                        }
                    };
                    let answers: Vec<_> = logs.iter().map(answer).collect();
                    session.receiver.handle_checkpoints(&answers, self.now);
                }
                ReceiverOutput::Deliver(delivered) => session.delivered.push_back(delivered),
                ReceiverOutput::Close(close) => {
                    assert!(close.by_peer, "{close:?}");
                }
                ReceiverOutput::Lookup { .. } | ReceiverOutput::Excess { .. } => {
                    panic!("{output:?}")
                }
            }
        }
        match session.is_over {
            Some(Code::HistoryMismatch) => {
                self.hang_up();
                self.sync();
                self.store.renew_incarnation().unwrap();
                self.renewals += 1;
            }
            Some(code) => panic!("the session ended: {code:?}"),
            None => {}
        }
    }

    fn commit(&mut self, is_all: bool) {
        let incarnation = self.store.incarnation();
        let Some(session) = &mut self.session else {
            return;
        };
        let count = session.delivered.len();
        let most = if is_all { count } else { count.div_ceil(2) };
        for delivered in session.delivered.drain(..most) {
            let Delivered {
                log,
                base_offset,
                next_offset,
                header,
                ..
            } = delivered;
            let key = (incarnation, log.clone());
            let before = self.checkpoints.get(&key).map(|held| held.next_offset);
            assert!(
                before.is_none_or(|before| before == base_offset),
                "{base_offset} of {log} follows on {before:?}"
            );
            let chain = self.store.chain_at(self.partition, next_offset).unwrap();
            let range = base_offset..next_offset;
            match header.content {
                DataContent::Records(_) => {
                    for offset in range {
                        let is_new = self.central.insert((incarnation, offset));
                        assert!(is_new, "{offset} of {log} came twice");
                        self.seen.insert(offset);
                    }
                }
                DataContent::Gap {
                    reason: GAP_OTHER_TRACK,
                } => {}
                DataContent::Gap { reason } => {
                    assert_ne!(reason, GAP_NOT_AT_SITE, "{range:?} of {log}");
                    self.lost.extend(range);
                }
            }
            let checkpoint = Checkpoint {
                next_offset,
                chain: header.chain.or(chain).unwrap_or(0),
            };
            self.checkpoints.insert(key, checkpoint);
            session
                .receiver
                .handle_committed(&log, next_offset, self.now);
        }
        self.now += Duration::from_millis(200);
        session.receiver.handle_timeout(self.now);
    }

    /// Nothing goes wrong any more until the hub has everything and the site knows.
    fn drain(&mut self) {
        for round in 0..20_000_u32 {
            for which in 0..4 {
                self.take(&Step::Move(which));
            }
            self.take(&Step::Commit(true));
            self.sync();
            let range = self.store.range(self.partition).unwrap();
            let is_even = range.acked == range.end && range.tracks.split.is_none();
            if is_even && self.session.is_some() && round > 4 {
                return;
            }
        }
        panic!("not drained: {:?}", self.store.range(self.partition));
    }
}
