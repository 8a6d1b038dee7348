//! Both halves against each other, without a network.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::class::{Class, ClassRules, PerClass};
use crate::ids::{Incarnation, TopicName, TopicPartition};
use crate::wire::{
    Ack, Anchor, Checkpoint, CheckpointEntry, DataContent, DataHeader, Farewell, Frame, Handle,
    Hello, LogEntry, LogRange, LogReply, MIN_MAX_BATCH_BYTES, RecordsHeader, Restart, SizeClass,
    Welcome,
};

const START: Duration = Duration::from_secs(100);
const KEEP_ALIVE: Duration = Duration::from_secs(10);

fn log(partition: u32) -> TopicPartition {
    TopicPartition {
        topic: TopicName::new("temperatures").unwrap(),
        partition,
        track: crate::ids::Track::First,
    }
}

fn range(start: u64, end: u64) -> LogRange {
    LogRange {
        origin: 0,
        start,
        end,
    }
}

fn sender() -> Sender {
    Sender::new(SenderConfig {
        nonce: 1,
        incarnation: Incarnation(7),
        software: "test".into(),
        codecs: vec![1],
        max_reads: 2,
        max_read_bytes: 1_000,
        classes: ClassRules::default(),
        handshake_timeout: Duration::from_secs(5),
    })
}

fn receiver(window: u64) -> Receiver {
    let config = ReceiverConfig {
        codecs: vec![1],
        max_logs: 3,
        max_batch_bytes: MIN_MAX_BATCH_BYTES,
        window,
        keep_alive: KEEP_ALIVE,
        handshake_timeout: Duration::from_secs(5),
    };
    Receiver::new(config, START)
}

fn outputs(sender: &mut Sender) -> Vec<SenderOutput> {
    std::iter::from_fn(|| sender.poll_output()).collect()
}

fn hub_outputs(receiver: &mut Receiver) -> Vec<ReceiverOutput> {
    std::iter::from_fn(|| receiver.poll_output()).collect()
}

fn hub_frames(receiver: &mut Receiver) -> Vec<Frame> {
    let mut decoder = crate::wire::FrameDecoder::default();
    let mut frames = Vec::new();
    for output in hub_outputs(receiver) {
        if let ReceiverOutput::Control(bytes) = output {
            decoder.feed(&bytes);
            frames.push(decoder.poll().unwrap().unwrap());
        }
    }
    frames
}

fn closed(outputs: &[SenderOutput]) -> Option<&Close> {
    outputs.iter().find_map(|output| {
        let SenderOutput::Close(close) = output else {
            return None;
        };
        Some(close)
    })
}

fn hub_closed(outputs: &[ReceiverOutput]) -> Option<&Close> {
    outputs.iter().find_map(|output| {
        let ReceiverOutput::Close(close) = output else {
            return None;
        };
        Some(close)
    })
}

fn welcome(credit_limit: u64, checkpoints: &[(u32, LogReply)]) -> Bytes {
    let checkpoints = checkpoints
        .iter()
        .map(|&(handle, reply)| CheckpointEntry {
            handle: Handle(handle),
            reply,
            anchor: 0,
        })
        .collect();
    Frame::Welcome(Welcome {
        version: 3,
        codecs: vec![1],
        credit_limit,
        max_batch_bytes: MIN_MAX_BATCH_BYTES,
        keep_alive_ms: 10_000,
        checkpoints,
    })
    .encode()
}

fn at(next_offset: u64, chain: u64) -> LogReply {
    LogReply::At(Checkpoint { next_offset, chain })
}

/// A sender with one log of this range that was welcomed with this reply.
fn welcomed(range: LogRange, reply: LogReply, credit_limit: u64) -> Sender {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range, range.start);
    sender.start(START);
    assert_eq!(outputs(&mut sender).len(), 1);
    sender.handle_control(&welcome(credit_limit, &[(1, reply)]), START);
    sender
}

fn records(base_offset: u64, next_offset: u64, raw_len: u32) -> ReadResult {
    ReadResult::Records {
        base_offset,
        next_offset,
        chain: next_offset * 10,
        is_chain_known: false,
        header: records_header(raw_len),
        payload: Bytes::new(),
    }
}

fn records_header(raw_len: u32) -> RecordsHeader {
    RecordsHeader {
        codec: 0,
        is_fresh: false,
        is_anchor: false,
        size: SizeClass::of(raw_len as usize),
        check: 0,
    }
}

fn header(seq: u8, count: u64, raw_len: u32) -> DataHeader {
    DataHeader {
        handle: Handle(1),
        seq,
        is_restart: false,
        count,
        chain: Some(99),
        content: DataContent::Records(records_header(raw_len)),
    }
}

/// Ten records, or as many as are said, in this place of the log.
fn data(seq: u8, count: u64, raw_len: u32) -> Bytes {
    header(seq, count, raw_len).encode()
}

fn absent() -> LogAnswer {
    answer(LogReply::Absent)
}

fn answer(reply: LogReply) -> LogAnswer {
    LogAnswer { reply, anchor: 0 }
}

fn hello(logs: &[(u32, u32)]) -> Bytes {
    Frame::Hello(Hello {
        min_version: 3,
        max_version: 9,
        nonce: 3,
        incarnation: Incarnation(7),
        software: "test".into(),
        codecs: vec![200, 1],
        logs: entries(logs),
    })
    .encode()
}

fn entries(logs: &[(u32, u32)]) -> Vec<LogEntry> {
    logs.iter()
        .map(|&(handle, partition)| LogEntry {
            handle: Handle(handle),
            log: log(partition),
            range: range(0, 100),
            has_other_track: false,
            anchors: Vec::new(),
        })
        .collect()
}

/// A receiver that welcomed a site with log 0 under handle 1, whose checkpoint is 10.
fn open(window: u64) -> Receiver {
    let mut receiver = receiver(window);
    receiver.handle_control(&hello(&[(1, 0)]), START);
    receiver.handle_checkpoints(&[answer(at(10, 5))], START);
    assert_eq!(hub_outputs(&mut receiver).len(), 2);
    receiver
}

fn delivered(outputs: &[ReceiverOutput]) -> Vec<(u64, u64)> {
    outputs
        .iter()
        .filter_map(|output| {
            let ReceiverOutput::Deliver(d) = output else {
                return None;
            };
            Some((d.base_offset, d.next_offset))
        })
        .collect()
}

#[test]
fn a_site_sends_from_the_checkpoint_once_its_history_agrees() {
    let mut sender = welcomed(range(0, 20), at(10, 5), 10_000);
    let out = outputs(&mut sender);
    let SenderOutput::Established { codecs, .. } = &out[0] else {
        panic!("{out:?}");
    };
    assert_eq!(codecs[..], [1]);
    assert_eq!(
        out[1..],
        [SenderOutput::Chain {
            handle: Handle(1),
            offset: 10
        }]
    );
    sender.handle_chain(Handle(1), 10, Some(5));
    assert_eq!(
        outputs(&mut sender),
        [
            SenderOutput::Acked {
                handle: Handle(1),
                next_offset: 10
            },
            SenderOutput::Read {
                handle: Handle(1),
                from: 10,
                max_bytes: 1_000,
                chain: 5,
                begin: Some(Begin::Fresh),
            },
        ]
    );
    sender.handle_read(Handle(1), records(10, 20, 100));
    let out = outputs(&mut sender);
    let [SenderOutput::Data(stream)] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!((stream.base_offset, stream.next_offset), (10, 20));
}

#[test]
fn a_history_that_differs_is_never_sent() {
    for (reply, chain) in [
        (at(21, 5), None),
        (at(10, 5), Some(Some(6))),
        (at(20, 5), Some(None)),
    ] {
        let mut sender = welcomed(range(0, 20), reply, 10_000);
        if let Some(chain) = chain {
            let LogReply::At(checkpoint) = reply else {
                unreachable!()
            };
            assert!(outputs(&mut sender).len() == 2, "opened, and a question");
            sender.handle_chain(Handle(1), checkpoint.next_offset, chain);
        }
        let out = outputs(&mut sender);
        let is_mismatch = |o: &SenderOutput| matches!(o, SenderOutput::HistoryMismatch { .. });
        assert!(out.iter().any(is_mismatch), "{reply:?}: {out:?}");
        assert!(!out.iter().any(|o| matches!(o, SenderOutput::Read { .. })));
    }
}

#[test]
fn what_was_trimmed_below_the_checkpoint_becomes_a_gap() {
    let mut sender = welcomed(range(15, 20), at(10, 5), 10_000);
    let out = outputs(&mut sender);
    let question = SenderOutput::Chain {
        handle: Handle(1),
        offset: 15,
    };
    assert_eq!(out.last(), Some(&question));
    sender.handle_chain(Handle(1), 15, Some(99));
    let out = outputs(&mut sender);
    let Some(SenderOutput::Data(stream)) = out.first() else {
        panic!("{out:?}");
    };
    assert_eq!((stream.base_offset, stream.next_offset), (10, 15));
    assert_eq!(stream.header.chain, Some(99));
    assert_eq!(
        stream.header.content,
        DataContent::Gap {
            reason: crate::wire::GAP_NOT_AT_SITE
        }
    );
}

#[test]
fn a_new_incarnation_waits_for_what_the_hub_holds_of_the_other_logs() {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
    sender.add_log(Handle(2), log(1), Class::Normal, range(0, 20), 0);
    sender.start(START);
    outputs(&mut sender);
    let replies = [(1, at(21, 5)), (2, at(20, 6))];
    sender.handle_control(&welcome(10_000, &replies), START);
    let out = outputs(&mut sender);
    assert!(out.contains(&SenderOutput::HistoryMismatch {
        handle: Handle(1),
        mismatch: Mismatch::BeyondEnd
    }));
    assert!(closed(&out).is_none(), "{out:?}");
    sender.handle_chain(Handle(2), 20, Some(6));
    let out = outputs(&mut sender);
    let told = SenderOutput::Acked {
        handle: Handle(2),
        next_offset: 20,
    };
    assert_eq!(out[0], told, "all of it: it must not come again");
    assert_eq!(closed(&out).unwrap().code, Code::HistoryMismatch);
    assert!(!out.iter().any(|o| matches!(o, SenderOutput::Read { .. })));
}

#[test]
fn a_new_incarnation_does_not_wait_for_ever() {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
    sender.add_log(Handle(2), log(1), Class::Normal, range(0, 20), 0);
    sender.start(START);
    outputs(&mut sender);
    let replies = [(1, at(21, 5)), (2, at(20, 6))];
    sender.handle_control(&welcome(10_000, &replies), START);
    assert!(closed(&outputs(&mut sender)).is_none());
    let deadline = START + Duration::from_secs(5);
    assert_eq!(sender.poll_timeout(), Some(deadline));
    sender.handle_timeout(deadline);
    let out = outputs(&mut sender);
    assert_eq!(closed(&out).unwrap().code, Code::HistoryMismatch);
}

#[test]
fn nothing_is_sent_before_the_hub_was_heard_about_every_log() {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
    sender.add_log(Handle(2), log(1), Class::Normal, range(0, 20), 0);
    sender.start(START);
    outputs(&mut sender);
    let replies = [(1, LogReply::Absent), (2, at(10, 5))];
    sender.handle_control(&welcome(10_000, &replies), START);
    let is_read = |o: &SenderOutput| matches!(o, SenderOutput::Read { .. });
    assert!(!outputs(&mut sender).iter().any(is_read));
    sender.handle_chain(Handle(2), 10, Some(5));
    let reads = outputs(&mut sender).into_iter().filter(is_read).count();
    assert_eq!(reads, 2);
}

/// The checkpoint lies in a gap, above what the store knew to be acknowledged.
#[test]
fn inside_a_gap_only_what_this_process_sent_proves_the_history() {
    let with = |former: Option<u64>| {
        let mut former_session = welcomed(range(0, 20), LogReply::Absent, 10_000);
        outputs(&mut former_session);
        if let Some(chain) = former {
            let mut sent = records(0, 10, 100);
            let ReadResult::Records { chain: of, .. } = &mut sent else {
                unreachable!()
            };
            *of = chain;
            former_session.handle_read(Handle(1), sent);
            outputs(&mut former_session);
        }
        let mut sender = sender();
        sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
        sender.recall(former_session.unsettled());
        sender.start(START);
        outputs(&mut sender);
        sender.handle_control(&welcome(10_000, &[(1, at(10, 5))]), START);
        outputs(&mut sender);
        sender.handle_chain(Handle(1), 10, None);
        outputs(&mut sender)
    };
    let out = with(Some(5));
    assert!(
        matches!(out.last(), Some(SenderOutput::Read { from: 10, .. })),
        "{out:?}"
    );
    for former in [None, Some(6)] {
        let out = with(former);
        assert_eq!(
            out[0],
            SenderOutput::HistoryMismatch {
                handle: Handle(1),
                mismatch: Mismatch::NotABoundary
            }
        );
        assert!(closed(&out).is_some());
    }
}

/// The hub lost its checkpoints, not what it had committed.
#[test]
fn a_log_that_the_hub_knows_nothing_of_goes_on_at_the_stores_cursor() {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range(5, 20), 12);
    sender.start(START);
    let out = outputs(&mut sender);
    let [SenderOutput::Control(bytes)] = &out[..] else {
        panic!("{out:?}");
    };
    let mut receiver = receiver(10_000);
    receiver.handle_control(bytes, START);
    receiver.handle_checkpoints(&[absent()], START);
    for output in hub_outputs(&mut receiver) {
        if let ReceiverOutput::Control(bytes) = output {
            sender.handle_control(&bytes, START);
        }
    }
    let out = outputs(&mut sender);
    assert!(
        matches!(out.last(), Some(SenderOutput::Read { from: 12, .. })),
        "{out:?}"
    );
    receiver.handle_data(&data(0, 8, 100), START);
    assert_eq!(delivered(&hub_outputs(&mut receiver)), [(12, 20)]);
}

#[test]
fn a_denied_log_is_parked_and_the_others_go_on() {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
    sender.add_log(Handle(2), log(1), Class::Normal, range(0, 20), 0);
    sender.start(START);
    outputs(&mut sender);
    let replies = [(1, LogReply::Denied), (2, LogReply::Absent)];
    sender.handle_control(&welcome(10_000, &replies), START);
    let out = outputs(&mut sender);
    assert!(out.contains(&SenderOutput::Denied { handle: Handle(1) }));
    let reads: Vec<_> = out
        .iter()
        .filter(|o| matches!(o, SenderOutput::Read { .. }))
        .collect();
    assert!(matches!(
        reads[..],
        [SenderOutput::Read {
            handle: Handle(2),
            ..
        }]
    ));
}

#[test]
fn a_denied_log_goes_on_when_the_hub_answers_again() {
    let mut sender = sender();
    sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
    sender.add_log(Handle(2), log(1), Class::Normal, range(0, 20), 0);
    sender.start(START);
    outputs(&mut sender);
    let replies = [(1, LogReply::Denied), (2, LogReply::Denied)];
    sender.handle_control(&welcome(10_000, &replies), START);
    outputs(&mut sender);
    sender.log_grew(Handle(1), 30, START);
    let again = |handle, reply| {
        let entry = CheckpointEntry {
            handle: Handle(handle),
            reply,
            anchor: 0,
        };
        Frame::Checkpoints(vec![entry]).encode()
    };
    sender.handle_control(&again(2, LogReply::Denied), START);
    assert!(outputs(&mut sender).is_empty(), "it says the same");
    sender.handle_control(&again(1, LogReply::Absent), START);
    let out = outputs(&mut sender);
    assert_eq!(out[0], SenderOutput::Admitted { handle: Handle(1) });
    let is_read = |out: &SenderOutput| {
        matches!(
            out,
            SenderOutput::Read {
                handle: Handle(1),
                from: 0,
                ..
            }
        )
    };
    assert!(out.iter().any(is_read), "{out:?}");
    assert!(sender.is_resolved());
    sender.handle_control(&again(1, LogReply::Absent), START);
    let out = outputs(&mut sender);
    assert_eq!(closed(&out).unwrap().code, Code::BadFrame, "a second time");
}

#[test]
fn a_hub_asks_its_lane_again_about_denied_logs_only() {
    let mut receiver = receiver(1_000);
    receiver.handle_control(&hello(&[(1, 0), (2, 1)]), START);
    hub_outputs(&mut receiver);
    let denied = LogAnswer {
        reply: LogReply::Denied,
        anchor: 0,
    };
    receiver.handle_checkpoints(&[denied, absent()], START);
    hub_outputs(&mut receiver);
    receiver.ask_again(&[Handle(1), Handle(2), Handle(3)]);
    let out = hub_outputs(&mut receiver);
    let [ReceiverOutput::Lookup { logs }] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!((logs.len(), logs[0].handle), (1, Handle(1)));
    receiver.handle_checkpoints(&[absent()], START);
    let frames = hub_frames(&mut receiver);
    let [Frame::Checkpoints(entries)] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(entries[0].reply, LogReply::Absent);
    receiver.ask_again(&[Handle(1)]);
    assert!(hub_outputs(&mut receiver).is_empty(), "it is allowed");
}

#[test]
fn logs_take_turns() {
    let mut sender = sender();
    for handle in 1..=3 {
        sender.add_log(
            Handle(handle),
            log(handle),
            Class::Normal,
            range(0, 1_000),
            0,
        );
    }
    sender.start(START);
    outputs(&mut sender);
    let replies = [1, 2, 3].map(|handle| (handle, LogReply::Absent));
    sender.handle_control(&welcome(1_000_000, &replies), START);
    let mut turns = Vec::new();
    while turns.len() < 9 {
        for output in outputs(&mut sender) {
            if let SenderOutput::Read { handle, from, .. } = output {
                turns.push(handle.0);
                sender.handle_read(handle, records(from, from + 1, 100));
            }
        }
    }
    assert_eq!(turns[..9], [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn nothing_is_sent_beyond_the_credit() {
    let mut sender = welcomed(range(0, 20), LogReply::Absent, 600);
    outputs(&mut sender);
    sender.handle_read(Handle(1), records(0, 10, 400));
    assert_eq!(outputs(&mut sender), [], "416 + 256 is more than 600");
    sender.handle_control(&Frame::Credit(672).encode(), START);
    assert!(matches!(outputs(&mut sender)[..], [SenderOutput::Data(_)]));
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_ends_the_session() {
    for (next, is_wrong) in [(5, true), (10, false), (15, true), (20, true)] {
        let mut sender = welcomed(range(0, 20), LogReply::Absent, 10_000);
        outputs(&mut sender);
        sender.handle_read(Handle(1), records(0, 10, 400));
        outputs(&mut sender);
        let ack = Ack {
            credit_limit: 20_000,
            acked: vec![(Handle(1), next)],
        };
        sender.handle_control(&Frame::Ack(ack).encode(), START);
        let out = outputs(&mut sender);
        assert_eq!(closed(&out).is_some(), is_wrong, "{next}: {out:?}");
    }
}

#[test]
fn a_late_acknowledgement_is_ignored() {
    let mut sender = welcomed(range(0, 20), at(10, 0), 10_000);
    outputs(&mut sender);
    let ack = Ack {
        credit_limit: 0,
        acked: vec![(Handle(1), 3)],
    };
    sender.handle_control(&Frame::Ack(ack).encode(), START);
    assert_eq!(outputs(&mut sender), []);
}

#[test]
fn a_silent_hub_is_pinged_and_then_given_up() {
    let mut sender = welcomed(range(0, 0), LogReply::Absent, 10_000);
    outputs(&mut sender);
    let mut pings = 0;
    let (close, now) = loop {
        let now = sender.poll_timeout().expect("the session has a time limit");
        sender.handle_timeout(now);
        let out = outputs(&mut sender);
        if let Some(close) = closed(&out) {
            break (close.clone(), now);
        }
        pings += out.len();
    };
    assert_eq!((pings, now), (2, START + KEEP_ALIVE * 3));
    assert_eq!(close.code, Code::Timeout);
    assert_eq!(sender.poll_timeout(), None);
}

#[test]
fn a_hub_that_never_welcomes_is_given_up() {
    let mut sender = sender();
    sender.start(START);
    let deadline = sender.poll_timeout().unwrap();
    sender.handle_timeout(deadline);
    let out = outputs(&mut sender);
    assert_eq!(closed(&out).unwrap().code, Code::Timeout);
}

#[test]
fn a_refusal_tells_when_to_come_back() {
    let mut sender = sender();
    sender.start(START);
    let refusal = Farewell {
        code: Code::NotOwner,
        retry_after_ms: 250,
        text: "lane 3 is elsewhere".into(),
    };
    sender.handle_control(&Frame::Refuse(refusal).encode(), START);
    let out = outputs(&mut sender);
    let close = closed(&out).unwrap();
    assert_eq!(close.code, Code::NotOwner);
    assert_eq!(close.retry_after, Some(Duration::from_millis(250)));
    assert!(close.by_peer);
}

#[test]
fn what_waits_for_company_goes_with_the_reads_under_way() {
    let sends = |out: &[SenderOutput]| {
        let is_data = |out: &&SenderOutput| matches!(out, SenderOutput::Data(_));
        out.iter().filter(is_data).count()
    };
    for (delay, first, second) in [(Duration::ZERO, 1, 1), (Duration::from_secs(1), 0, 2)] {
        let mut sender = sender();
        for handle in [1, 2] {
            let log = log(handle);
            sender.add_log(Handle(handle), log, Class::Normal, range(0, 20), 0);
        }
        sender.set_max_delay(PerClass::from_fn(|_| delay));
        sender.start(START);
        outputs(&mut sender);
        let both = [(1, LogReply::Absent), (2, LogReply::Absent)];
        sender.handle_control(&welcome(10_000_000, &both), START);
        let out = outputs(&mut sender);
        let is_read = |out: &&SenderOutput| matches!(out, SenderOutput::Read { .. });
        assert_eq!(out.iter().filter(is_read).count(), 2, "{out:?}");
        sender.handle_read(Handle(1), records(0, 20, 100));
        assert_eq!(sends(&outputs(&mut sender)), first, "{delay:?}");
        sender.handle_read(Handle(2), records(0, 20, 100));
        assert_eq!(sends(&outputs(&mut sender)), second, "{delay:?}");
    }
}

#[test]
fn a_batch_larger_than_the_hub_takes_parks_its_log() {
    let mut sender = welcomed(range(0, 20), LogReply::Absent, 10_000_000);
    outputs(&mut sender);
    sender.handle_read(Handle(1), records(0, 10, MIN_MAX_BATCH_BYTES + 1));
    let out = outputs(&mut sender);
    assert!(
        matches!(out[..], [SenderOutput::TooLarge { .. }]),
        "{out:?}"
    );
}

#[test]
fn many_logs_are_declared_in_frames_that_fit() {
    let mut sender = sender();
    let topic = TopicName::new(&"x".repeat(249)).unwrap();
    for handle in 0..8_000 {
        let log = TopicPartition {
            topic: topic.clone(),
            partition: handle,
            track: crate::ids::Track::First,
        };
        sender.add_log(Handle(handle), log, Class::Normal, range(0, 0), 0);
    }
    sender.start(START);
    let mut decoder = crate::wire::FrameDecoder::default();
    let mut declared = 0;
    let mut welcomed = false;
    loop {
        let out = outputs(&mut sender);
        if out.is_empty() {
            break;
        }
        for output in out {
            let SenderOutput::Control(bytes) = output else {
                continue;
            };
            decoder.feed(&bytes);
            let frame = decoder.poll().unwrap().unwrap();
            if let Frame::Hello(Hello { logs, .. }) | Frame::Declare(logs) = frame {
                declared += logs.len();
            }
        }
        if !welcomed {
            welcomed = true;
            sender.handle_control(&welcome(0, &[]), START);
        }
    }
    assert_eq!(declared, 8_000);
}

#[test]
fn a_hub_puts_streams_in_order_and_drops_repeated_ones() {
    let mut receiver = open(100_000);
    for seq in [1, 255, 3, 0, 0, 3] {
        receiver.handle_data(&data(seq, 10, 100), START);
    }
    let out = hub_outputs(&mut receiver);
    assert_eq!(delivered(&out), [(10, 20), (20, 30)]);
    receiver.handle_data(&data(2, 10, 100), START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(delivered(&out), [(30, 40), (40, 50)]);
    assert_eq!(receiver.held_bytes(), 4 * CHARGE);
}

/// What 100 bytes cost: they are rounded up to 104.
const CHARGE: u64 = 104 + 256;

fn restarts(sender_or_hub: &[Frame]) -> Vec<Restart> {
    let mut restarts = Vec::new();
    for frame in sender_or_hub {
        if let Frame::Restart(restart) = frame {
            restarts.push(*restart);
        }
    }
    restarts
}

#[test]
fn a_log_that_cannot_be_read_on_is_sent_again_from_there() {
    let mut receiver = open(10 * CHARGE);
    for seq in [0, 1, 2, 4] {
        receiver.handle_data(&data(seq, 10, 100), START);
    }
    assert_eq!(hub_outputs(&mut receiver).len(), 3);
    receiver.restart(Handle(1), 20);
    let told = Restart {
        handle: Handle(1),
        next_offset: 20,
    };
    assert_eq!(restarts(&hub_frames(&mut receiver)), [told]);
    // one that was under way, then the second of the new ones, then the first
    receiver.handle_data(&data(3, 10, 100), START);
    receiver.handle_data(&data(6, 3, 100), START);
    assert_eq!(delivered(&hub_outputs(&mut receiver)), []);
    let first = DataHeader {
        is_restart: true,
        ..header(5, 7, 100)
    };
    receiver.handle_data(&first.encode(), START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(delivered(&out), [(20, 27), (27, 30)]);
    assert_eq!(
        receiver.held_bytes(),
        3 * CHARGE,
        "what is void is not held"
    );
    receiver.handle_committed(&log(0), 30, Duration::ZERO);
    let Some(Frame::Ack(ack)) = hub_frames(&mut receiver).pop() else {
        panic!("an acknowledgement");
    };
    assert_eq!(
        ack.credit_limit,
        (10 + 7) * CHARGE,
        "all of it is given back"
    );
}

#[test]
fn a_void_stream_that_comes_late_gives_its_credit_back() {
    let mut receiver = open(10 * CHARGE);
    receiver.handle_data(&data(0, 10, 100), START);
    receiver.restart(Handle(1), 10);
    let first = DataHeader {
        is_restart: true,
        ..header(2, 10, 100)
    };
    receiver.handle_data(&first.encode(), START);
    receiver.handle_data(&data(1, 10, 100), START);
    receiver.handle_data(&data(1, 10, 100), START);
    receiver.handle_data(&data(3, 10, 100), START);
    assert_eq!(delivered(&hub_outputs(&mut receiver)), [(10, 20), (20, 30)]);
    receiver.handle_committed(&log(0), 30, Duration::ZERO);
    let Some(Frame::Ack(ack)) = hub_frames(&mut receiver).pop() else {
        panic!("an acknowledgement");
    };
    assert_eq!(ack.credit_limit, (10 + 4) * CHARGE);
}

#[test]
fn a_restart_that_nobody_asked_for_ends_the_session() {
    let mut receiver = open(10_000);
    let first = DataHeader {
        is_restart: true,
        ..header(0, 10, 100)
    };
    receiver.handle_data(&first.encode(), START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(hub_closed(&out).unwrap().code, Code::BadFrame);
}

#[test]
fn a_site_sends_again_what_the_hub_cannot_read() {
    let mut sender = welcomed(range(0, 40), LogReply::Absent, 100_000);
    for from in [0, 10, 20] {
        outputs(&mut sender);
        sender.handle_read(Handle(1), records(from, from + 10, 100));
    }
    outputs(&mut sender);
    let restart = Restart {
        handle: Handle(1),
        next_offset: 10,
    };
    sender.handle_control(&Frame::Restart(restart).encode(), START);
    assert_eq!(outputs(&mut sender), [], "a read is under way");
    sender.handle_read(Handle(1), records(30, 40, 100));
    let [
        SenderOutput::Read {
            from, chain, begin, ..
        },
    ] = outputs(&mut sender)[..]
    else {
        panic!("what was being read is void");
    };
    assert_eq!((from, chain, begin), (10, 100, Some(Begin::Fresh)));
    sender.handle_read(Handle(1), records(10, 40, 300));
    let out = outputs(&mut sender);
    let [SenderOutput::Data(stream)] = &out[..] else {
        panic!("{out:?}");
    };
    assert_eq!((stream.header.seq, stream.header.is_restart), (3, true));
    assert_eq!((stream.base_offset, stream.next_offset), (10, 40));
    assert_eq!(sender.streams_in_flight(), 2);
}

#[test]
fn a_restart_where_nothing_ended_ends_the_session() {
    for (next_offset, is_wrong) in [(0, false), (10, false), (5, true), (20, true)] {
        let mut sender = welcomed(range(0, 20), LogReply::Absent, 10_000);
        outputs(&mut sender);
        sender.handle_read(Handle(1), records(0, 10, 100));
        outputs(&mut sender);
        let restart = Restart {
            handle: Handle(1),
            next_offset,
        };
        sender.handle_control(&Frame::Restart(restart).encode(), START);
        let is_closed = closed(&outputs(&mut sender)).is_some();
        assert_eq!(is_closed, is_wrong, "{next_offset}");
    }
}

#[test]
fn both_ends_begin_with_the_first_anchor_that_both_have() {
    let anchors = [11, 12].map(|position| Anchor { codec: 4, position });
    let begin_with = |anchor| {
        let mut sender = sender();
        sender.add_log(Handle(1), log(0), Class::Normal, range(0, 20), 0);
        sender.offer_anchors(Handle(1), anchors.to_vec());
        sender.start(START);
        outputs(&mut sender);
        let welcome = Frame::Welcome(Welcome {
            version: 3,
            codecs: vec![1],
            credit_limit: 10_000,
            max_batch_bytes: MIN_MAX_BATCH_BYTES,
            keep_alive_ms: 10_000,
            checkpoints: vec![CheckpointEntry {
                handle: Handle(1),
                reply: LogReply::Absent,
                anchor,
            }],
        });
        sender.handle_control(&welcome.encode(), START);
        outputs(&mut sender).pop()
    };
    for (anchor, expected) in [
        (0, Begin::Fresh),
        (1, Begin::Anchor(anchors[0])),
        (2, Begin::Anchor(anchors[1])),
    ] {
        let Some(SenderOutput::Read { begin, .. }) = begin_with(anchor) else {
            panic!("a read");
        };
        assert_eq!(begin, Some(expected));
    }
    let Some(SenderOutput::Close(close)) = begin_with(3) else {
        panic!("an anchor that was not offered");
    };
    assert_eq!(close.code, Code::BadFrame);
}

#[test]
fn a_log_never_has_more_streams_under_way_than_places() {
    let mut sender = welcomed(range(0, 1_000), LogReply::Absent, u64::MAX);
    let mut sent = 0;
    loop {
        let mut is_waiting = true;
        for output in outputs(&mut sender) {
            if let SenderOutput::Read { from, .. } = output {
                is_waiting = false;
                sender.handle_read(Handle(1), records(from, from + 1, 10));
            }
        }
        if is_waiting {
            break;
        }
        sent += 1;
    }
    assert_eq!(sent, crate::wire::MAX_LOG_STREAMS);
    let ack = Ack {
        credit_limit: u64::MAX,
        acked: vec![(Handle(1), 1)],
    };
    sender.handle_control(&Frame::Ack(ack).encode(), START);
    let is_read = |out: &SenderOutput| matches!(out, SenderOutput::Read { .. });
    assert!(outputs(&mut sender).iter().any(is_read));
}

#[test]
fn only_what_is_committed_is_acknowledged_and_gives_credit_back() {
    let mut receiver = open(1_000);
    receiver.handle_data(&data(0, 10, 100), START);
    receiver.handle_data(&data(1, 10, 100), START);
    assert_eq!(hub_frames(&mut receiver), []);
    receiver.handle_committed(&log(0), 20, Duration::ZERO);
    let ack = Ack {
        credit_limit: 1_000 + CHARGE,
        acked: vec![(Handle(1), 20)],
    };
    assert_eq!(hub_frames(&mut receiver), [Frame::Ack(ack)]);
    receiver.handle_committed(&log(0), 20, Duration::ZERO);
    assert_eq!(hub_frames(&mut receiver), []);
}

#[test]
fn an_acknowledgement_waits_for_what_is_about_to_be_committed_but_not_long() {
    let mut receiver = open(1_000_000);
    for seq in 0..3 {
        receiver.handle_data(&data(seq, 10, 100), START);
    }
    assert_eq!(hub_frames(&mut receiver), []);
    receiver.handle_committed(&log(0), 20, START);
    assert_eq!(hub_frames(&mut receiver), [], "two are under way");
    let due = receiver.poll_timeout().unwrap();
    assert!(due <= START + Duration::from_millis(100));
    receiver.handle_timeout(due);
    let acked = |next, streams| {
        Frame::Ack(Ack {
            credit_limit: 1_000_000 + streams * CHARGE,
            acked: vec![(Handle(1), next)],
        })
    };
    assert_eq!(hub_frames(&mut receiver), [acked(20, 1)]);
    receiver.handle_committed(&log(0), 30, due);
    assert_eq!(hub_frames(&mut receiver), []);
    receiver.handle_committed(&log(0), 40, due);
    assert_eq!(hub_frames(&mut receiver), [acked(40, 3)], "nothing is left");
}

#[test]
fn credit_does_not_wait_with_an_acknowledgement() {
    let mut receiver = open(1_000_000);
    for seq in 0..3 {
        receiver.handle_data(&data(seq, 10, 100), START);
    }
    receiver.handle_committed(&log(0), 20, START);
    assert_eq!(hub_frames(&mut receiver), [], "two are under way");
    receiver.set_window(2_000_000);
    let ack = Ack {
        credit_limit: 2_000_000 + CHARGE,
        acked: vec![(Handle(1), 20)],
    };
    assert_eq!(hub_frames(&mut receiver), [Frame::Ack(ack)]);
}

#[test]
fn data_beyond_the_credit_ends_the_session() {
    let mut receiver = open(600);
    receiver.handle_data(&data(0, 10, 100), START);
    receiver.handle_data(&data(2, 10, 100), START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(hub_closed(&out).unwrap().code, Code::Limit);
}

#[test]
fn a_smaller_window_grants_nothing_until_it_has_room() {
    let mut receiver = open(1_000);
    receiver.set_window(100);
    receiver.handle_data(&data(0, 10, 100), START);
    receiver.handle_committed(&log(0), 20, Duration::ZERO);
    let Frame::Ack(ack) = &hub_frames(&mut receiver)[0] else {
        panic!("an acknowledgement");
    };
    assert_eq!(ack.credit_limit, 1_000);
    receiver.set_window(2_000);
    assert_eq!(hub_frames(&mut receiver), [Frame::Credit(2_000 + CHARGE)]);
}

#[test]
fn too_many_streams_end_the_session() {
    let mut receiver = open(u64::MAX / 2);
    for seq in (0..=64).rev() {
        receiver.handle_data(&data(seq, 1, 0), START);
    }
    let out = hub_outputs(&mut receiver);
    assert_eq!(hub_closed(&out).unwrap().code, Code::Limit);
}

#[test]
fn frames_out_of_place_end_the_session() {
    for frame in [
        Frame::Credit(1),
        Frame::Declare(entries(&[(1, 0)])),
        Frame::Ping(1),
        Frame::Goodbye(Farewell {
            code: Code::Stopping,
            retry_after_ms: 0,
            text: String::new(),
        }),
    ] {
        let mut receiver = receiver(1_000);
        receiver.handle_control(&frame.encode(), START);
        let out = hub_outputs(&mut receiver);
        assert_eq!(hub_closed(&out).unwrap().code, Code::BadFrame, "{frame:?}");
    }
    let mut receiver = receiver(1_000);
    receiver.handle_data(&data(0, 1, 1), START);
    assert!(
        hub_closed(&hub_outputs(&mut receiver)).is_some(),
        "data first"
    );
}

#[test]
fn a_log_that_is_declared_twice_ends_the_session() {
    for logs in [[(1, 0), (1, 1)], [(1, 0), (2, 0)]] {
        let mut receiver = receiver(1_000);
        receiver.handle_control(&hello(&logs), START);
        let out = hub_outputs(&mut receiver);
        assert_eq!(hub_closed(&out).unwrap().code, Code::BadFrame, "{logs:?}");
    }
}

/// One log too many touches none of the others.
#[test]
fn logs_beyond_the_limit_are_denied_and_the_others_go_on() {
    let mut receiver = receiver(1_000);
    receiver.handle_control(&hello(&[(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]), START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(out[0], ReceiverOutput::Excess { logs: 2 });
    let ReceiverOutput::Attach { logs, .. } = &out[1] else {
        panic!("{out:?}");
    };
    assert_eq!(logs.len(), 3, "the lane is asked about those");
    receiver.handle_checkpoints(&[absent(); 3], START);
    let Frame::Welcome(welcome) = &hub_frames(&mut receiver)[0] else {
        panic!("a welcome");
    };
    let denied = |handle| CheckpointEntry {
        handle: Handle(handle),
        reply: LogReply::Denied,
        anchor: 0,
    };
    assert_eq!(welcome.checkpoints[3..], [denied(4), denied(5)]);
    let more = Frame::Declare(entries(&[(6, 5), (7, 6)]));
    receiver.handle_control(&more.encode(), START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(out[0], ReceiverOutput::Excess { logs: 2 });
    assert!(
        !out.iter()
            .any(|out| matches!(out, ReceiverOutput::Lookup { .. })),
        "nothing to ask the lane: {out:?}"
    );
    receiver.handle_data(&data(0, 1, 1), START);
    let out = hub_outputs(&mut receiver);
    assert!(
        matches!(out[..], [ReceiverOutput::Deliver(_)]),
        "the others go on: {out:?}"
    );
}

#[test]
fn the_hub_takes_the_best_version_and_codec_that_both_know() {
    let mut receiver = receiver(1_000);
    receiver.handle_control(&hello(&[]), START);
    receiver.handle_checkpoints(&[], START);
    let Frame::Welcome(welcome) = &hub_frames(&mut receiver)[0] else {
        panic!("a welcome");
    };
    assert_eq!((welcome.version, &welcome.codecs[..]), (3, &[1][..]));
}

#[test]
fn a_site_without_a_common_version_is_refused() {
    let mut bytes = hello(&[]).to_vec();
    let min_version = bytes.iter().position(|b| *b == b'K').unwrap() + 4;
    bytes[min_version..min_version + 4].copy_from_slice(&[0, 7, 0, 9]);
    let mut receiver = receiver(1_000);
    receiver.handle_control(&bytes, START);
    let frames = hub_frames(&mut receiver);
    let [Frame::Refuse(refusal)] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(refusal.code, Code::Version);
}

#[test]
fn a_silent_site_is_given_up() {
    let mut receiver = open(1_000);
    assert_eq!(receiver.poll_timeout(), Some(START + KEEP_ALIVE * 3));
    receiver.handle_control(&Frame::Ping(4).encode(), START + KEEP_ALIVE);
    assert_eq!(hub_frames(&mut receiver), [Frame::Pong(4)]);
    receiver.handle_timeout(START + KEEP_ALIVE * 3);
    assert!(!receiver.is_closed());
    receiver.handle_timeout(START + KEEP_ALIVE * 4);
    let out = hub_outputs(&mut receiver);
    assert_eq!(hub_closed(&out).unwrap().code, Code::Timeout);
}

#[test]
fn nothing_but_the_goodbye_comes_after_a_close() {
    let mut sender = welcomed(range(0, 20), at(10, 0), 10_000);
    sender.close(Code::HistoryMismatch, None, "new incarnation");
    let out = outputs(&mut sender);
    assert!(
        matches!(out[..], [SenderOutput::Control(_), SenderOutput::Close(_)]),
        "{out:?}"
    );
}

#[test]
fn a_garbled_control_stream_ends_both_halves() {
    let mut sender = welcomed(range(0, 20), LogReply::Absent, 10_000);
    sender.handle_control(&[77, 1, 0], START);
    assert_eq!(closed(&outputs(&mut sender)).unwrap().code, Code::BadFrame);
    let mut receiver = open(1_000);
    receiver.handle_control(&[8, 0xff, 0xff, 0xff, 0x7f], START);
    let out = hub_outputs(&mut receiver);
    assert_eq!(hub_closed(&out).unwrap().code, Code::BadFrame);
}

#[test]
fn fuzz_receiver() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut receiver = open(100_000);
        for piece in bytes.chunks(40) {
            let (kind, rest) = piece.split_first().expect("pieces are not empty");
            if kind % 2 == 0 {
                receiver.handle_control(rest, START);
            } else {
                receiver.handle_data(&Bytes::copy_from_slice(rest), START);
            }
            hub_outputs(&mut receiver);
            assert!(receiver.held_bytes() <= 100_000 || receiver.is_closed());
        }
    });
}

#[test]
fn fuzz_sender() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut sender = welcomed(range(0, 20), at(10, 0), 10_000);
        outputs(&mut sender);
        sender.handle_read(Handle(1), records(10, 20, 100));
        for piece in bytes.chunks(40) {
            sender.handle_control(piece, START);
            outputs(&mut sender);
        }
    });
}

#[test]
fn questions_to_the_store_are_asked_a_few_at_a_time() {
    let mut sender = sender();
    for handle in 0..1_000 {
        sender.add_log(Handle(handle), log(handle), Class::Normal, range(0, 20), 10);
    }
    sender.start(START);
    outputs(&mut sender);
    let replies: Vec<_> = (0..1_000).map(|handle| (handle, at(10, 5))).collect();
    sender.handle_control(&welcome(0, &replies), START);
    let mut asked = 0;
    loop {
        let out = outputs(&mut sender);
        assert!(out.len() <= 33, "{} outputs at once", out.len());
        let mut is_asking = false;
        for output in out {
            if let SenderOutput::Chain { handle, offset } = output {
                is_asking = true;
                asked += 1;
                sender.handle_chain(handle, offset, Some(5));
            }
        }
        if !is_asking {
            break;
        }
    }
    assert_eq!(asked, 1_000);
}
