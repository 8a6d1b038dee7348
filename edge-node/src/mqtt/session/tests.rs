use proptest::prelude::*;

use super::*;
use crate::ingest::Budget;
use crate::mqtt::packet::RetainHandling;

const P: PartitionId = PartitionId(1);
const LIMITS: SessionLimits = SessionLimits {
    queue_messages: 4,
    queue_bytes: 1 << 20,
    overflow: Overflow::DropNewest,
    subscriptions: 10,
    filter_bytes: 100,
};

fn message(qos: Qos) -> Arc<Message> {
    Arc::new(Message {
        topic: Arc::from("t"),
        payload: bytes::Bytes::new(),
        qos,
        retain: false,
        published_ms: 0,
        properties: None,
        from: None,
    })
}

fn options(qos: Qos) -> Options {
    Options {
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
        identifier: None,
    }
}

fn delivery(offset: Offset, qos: Qos) -> Delivery {
    Delivery {
        message: message(qos),
        qos,
        retain: false,
        identifiers: Vec::new(),
        place: Some(Place {
            partition: P,
            offset,
        }),
        is_retained: false,
        shared: None,
        paid: None,
    }
}

fn online(limits: SessionLimits) -> State {
    let mut state = State::new(Arc::from("c"), limits);
    state.expiry_s = 10;
    state.subscriptions.insert("t", options(Qos::ExactlyOnce));
    state.link = Some(Link::new(1, 10));
    state
}

fn tail(next: Offset) -> Positions {
    Positions::from([(P, next)])
}

#[test]
fn a_wake_is_seen_once_whenever_it_came() {
    let mut state = online(LIMITS);
    let cx = Context::from_waker(Waker::noop());
    let is_woken = |state: &mut State| state.poll_woken(1, &cx).is_ready();
    assert!(!is_woken(&mut state));
    state.wake();
    assert!(is_woken(&mut state));
    assert!(!is_woken(&mut state));
    state.kick(reason::SERVER_BUSY);
    assert!(is_woken(&mut state));
    assert_eq!(state.check(1), Err(reason::SERVER_BUSY));
    state.link = Some(Link::new(2, 10));
    assert!(is_woken(&mut state), "it has lost the session");
}

#[test]
fn a_full_queue_of_qos_1_goes_on_from_the_log() {
    let mut state = online(LIMITS);
    for offset in 0..4 {
        assert_eq!(
            state.offer(
                delivery(offset, Qos::AtLeastOnce),
                &tail(offset),
                &mut Fare::default()
            ),
            Offered::Queued
        );
    }
    assert_eq!(
        state.offer(
            delivery(4, Qos::AtLeastOnce),
            &tail(4),
            &mut Fare::default()
        ),
        Offered::Left
    );
    assert_eq!(
        state.offer(
            delivery(5, Qos::AtLeastOnce),
            &tail(5),
            &mut Fare::default()
        ),
        Offered::Left
    );
    assert_eq!(state.behind(), Some(&tail(4)));
    assert!(!state.try_live(&tail(6)));
    while state.take(0, |_| true).is_some() {}
    state.enqueue(delivery(4, Qos::AtLeastOnce));
    state.enqueue(delivery(5, Qos::AtLeastOnce));
    state.advance(P, 6);
    assert!(state.try_live(&tail(6)));
    assert_eq!(state.place_in_log(&tail(6)), tail(4));
}

#[test]
fn a_full_queue_of_qos_0_does_what_the_configuration_says() {
    for (overflow, first, kicked) in [
        (Overflow::DropNewest, 0, None),
        (Overflow::DropOldest, 1, None),
        (Overflow::Disconnect, 0, Some(reason::QUOTA_EXCEEDED)),
    ] {
        let mut state = online(SessionLimits { overflow, ..LIMITS });
        for offset in 0..5_u64 {
            let numbered = (*message(Qos::AtMostOnce)).clone();
            let message = Arc::new(Message {
                published_ms: offset.cast_signed(),
                ..numbered
            });
            state.offer(
                Delivery {
                    message,
                    ..delivery(offset, Qos::AtMostOnce)
                },
                &tail(offset),
                &mut Fare::default(),
            );
        }
        assert_eq!(state.behind(), None);
        assert_eq!(state.link.as_ref().unwrap().kicked, kicked);
        let (next, _) = state.take(0, |_| true).unwrap();
        assert_eq!(next.message.published_ms, first, "{overflow:?}");
    }
}

/// Others have the node's room, and its own queue is empty: nothing that the client does would make it read on.
#[test]
fn who_lacks_room_with_an_empty_queue_reads_on_and_is_not_to_blame() {
    let limits = SessionLimits {
        overflow: Overflow::Disconnect,
        ..LIMITS
    };
    let large = |offset, qos| Delivery {
        message: Arc::new(Message {
            payload: bytes::Bytes::from(vec![7; 20_000]),
            ..Arc::unwrap_or_clone(message(qos))
        }),
        ..delivery(offset, qos)
    };
    let mut state = online(limits);
    let context = Context::from_waker(Waker::noop());
    let _first = state.poll_woken(1, &context);
    assert!(state.poll_woken(1, &context).is_pending());
    let fare = || Fare::default();
    let offered = state.offer(large(0, Qos::AtLeastOnce), &tail(0), &mut fare());
    assert_eq!(offered, Offered::Left);
    assert!(state.poll_woken(1, &context).is_ready());
    let offered = state.offer(large(1, Qos::AtMostOnce), &tail(1), &mut fare());
    assert_eq!(offered, Offered::Dropped);
    assert_eq!(state.link.as_ref().unwrap().kicked, None);
}

#[test]
fn the_window_of_the_client_is_kept() {
    let mut state = online(LIMITS);
    state.link = Some(Link::new(1, 2));
    for offset in 0..3 {
        state.offer(
            delivery(offset, Qos::ExactlyOnce),
            &tail(offset),
            &mut Fare::default(),
        );
    }
    let ids: Vec<u16> = std::iter::from_fn(|| state.take(0, |_| true))
        .map(|(_, id)| id)
        .collect();
    assert_eq!(ids, [1, 2]);
    assert!(state.inflight.received(1));
    assert!(
        state.take(0, |_| true).is_none(),
        "PUBCOMP makes room, not PUBREC"
    );
    assert!(!state.inflight.acknowledged(2), "PUBACK is not for QoS 2");
    assert!(state.inflight.completed(1));
    assert_eq!(state.take(0, |_| true).unwrap().1, 3);
}

#[test]
fn a_client_that_goes_leaves_a_place_in_the_log() {
    let mut state = online(LIMITS);
    state.link = Some(Link::new(1, 1));
    for offset in [3, 5, 7] {
        state.offer(
            delivery(offset, Qos::AtLeastOnce),
            &tail(offset),
            &mut Fare::default(),
        );
    }
    state.take(0, |_| true).unwrap();
    state.go_offline(&tail(9));
    assert_eq!(state.behind(), Some(&tail(5)), "the second was not taken");
    assert!(!state.has_waiting());
    let sent: Vec<_> = state
        .inflight
        .iter()
        .map(|sent| (sent.id, sent.place.unwrap().offset))
        .collect();
    assert_eq!(sent, [(1, 3)]);
}

#[test]
fn what_is_of_a_shared_subscription_is_given_back_and_does_not_hold_the_place() {
    let mut state = online(LIMITS);
    state.link = Some(Link::new(1, 1));
    for offset in [3, 5] {
        let delivery = Delivery {
            shared: Some("$share/g/t".into()),
            ..delivery(offset, Qos::AtLeastOnce)
        };
        state.offer(delivery, &tail(offset), &mut Fare::default());
    }
    state.take(0, |_| true).unwrap();
    let given: Vec<_> = state
        .go_offline(&tail(9))
        .into_iter()
        .map(|(_, place)| place.offset)
        .collect();
    assert_eq!((given, state.behind()), (vec![5], Some(&tail(9))));
}

/// The disk stalls, the connection ends, and the client sends the same again.
#[test]
fn a_message_of_qos_2_that_may_be_stored_is_not_stored_again() {
    let mut state = online(LIMITS);
    assert!(matches!(state.incoming(7), Incoming::New));
    assert!(matches!(state.incoming(7), Incoming::Known));
    let (done, synced) = tokio::sync::oneshot::channel();
    state.unsettled.insert(7, synced);
    let Incoming::Unsettled(synced) = state.incoming(7) else {
        panic!("nobody knows");
    };
    state.unsettled.insert(7, synced);
    done.send(Ok(())).unwrap();
    assert!(matches!(state.incoming(7), Incoming::Known));
    let (done, synced) = tokio::sync::oneshot::channel();
    state.unsettled.insert(7, synced);
    done.send(Err(crate::ingest::Refusal::UnknownPartition))
        .unwrap();
    assert!(
        matches!(state.incoming(7), Incoming::New),
        "it is not stored"
    );
}

/// A client that returns reads the log from its place on, and subscribes to more meanwhile.
#[test]
fn a_subscription_gets_nothing_from_before_it() {
    let mut state = online(LIMITS);
    state.go_offline(&tail(3));
    state.link = Some(Link::new(2, 10));
    assert!(!state.try_live(&tail(9)));
    state.subscriptions.remove("t");
    assert!(state.subscribe("+", options(Qos::AtLeastOnce), &tail(9)));
    let place = |offset| Place {
        partition: P,
        offset,
    };
    let wants = |state: &State, offset| {
        state
            .wants(&message(Qos::AtLeastOnce), place(offset))
            .is_some()
    };
    assert!(!wants(&state, 8) && wants(&state, 9));
    let change = crate::mqtt::saved::progress(&state, &tail(9));
    let saved = crate::mqtt::saved::read_progress(&change.value.unwrap()).unwrap();
    let mut restored = State::restored(Arc::from("c"), LIMITS, saved);
    restored.subscriptions = state.subscriptions.clone();
    assert!(!wants(&restored, 8) && wants(&restored, 9));
    state.advance(P, 9);
    assert!(state.try_live(&tail(9)));
    state.go_offline(&tail(9));
    assert!(state.since.is_empty(), "the session has come so far");
}

fn large(offset: Offset) -> Delivery {
    let mut message = (*message(Qos::AtLeastOnce)).clone();
    message.payload = bytes::Bytes::from(vec![0; FREE_QUEUE]);
    Delivery {
        message: Arc::new(message),
        ..delivery(offset, Qos::AtLeastOnce)
    }
}

#[test]
fn of_what_is_on_its_way_only_the_place_is_kept() {
    let mut state = online(LIMITS);
    state.enqueue(large(3));
    let own = Delivery {
        place: None,
        ..delivery(0, Qos::AtLeastOnce)
    };
    state.enqueue(own);
    let (taken, _) = state.take(0, |_| true).unwrap();
    assert_eq!(Arc::strong_count(&taken.message), 1);
    state.take(0, |_| true).unwrap();
    let kept: Vec<bool> = state
        .inflight
        .iter()
        .map(|s| s.delivery.is_some())
        .collect();
    assert_eq!(
        kept,
        [false, true],
        "what is not in the log can't be read again"
    );
}

/// Two clients, and room for one message.
#[test]
fn without_room_a_message_waits_in_the_log_and_what_stalls_makes_room() {
    let budget = Budget::new(FREE_QUEUE * 3 / 2);
    let (mut stalled, mut other) = (online(LIMITS), online(LIMITS));
    let offer = |state: &mut State, offset| {
        let mut fare = Fare::new(&budget, None);
        state.offer(large(offset), &tail(offset), &mut fare)
    };
    assert_eq!(offer(&mut stalled, 3), Offered::Queued);
    assert_eq!(offer(&mut other, 3), Offered::Left);
    assert_eq!(other.behind(), Some(&tail(3)));
    let small = delivery(4, Qos::AtLeastOnce);
    stalled.offer(small, &tail(4), &mut Fare::default());
    stalled.take(0, |_| false);
    assert_eq!(stalled.spill(&tail(5)), 0, "it has its chance");
    assert!(stalled.has_waiting());
    stalled.spill(&tail(5));
    assert!(!stalled.has_waiting());
    assert_eq!(stalled.behind(), Some(&tail(3)));
    assert_eq!(budget.used(), 0);
    let mut fare = Fare::new(&budget, None);
    let mut again = large(3);
    assert!(other.pays(&mut again, &mut fare));
}

#[test]
fn without_room_the_oldest_goes_for_the_newest() {
    let budget = Budget::new(FREE_QUEUE * 3 / 2);
    let mut state = online(SessionLimits {
        overflow: Overflow::DropOldest,
        ..LIMITS
    });
    for identifier in [7, 8] {
        let newest = Delivery {
            qos: Qos::AtMostOnce,
            identifiers: vec![identifier],
            ..large(0)
        };
        state.offer(newest, &tail(0), &mut Fare::new(&budget, None));
    }
    assert!(budget.take_missed() && !budget.take_missed());
    let (kept, _) = state.take(0, |_| true).unwrap();
    assert_eq!(kept.identifiers, [8]);
    assert!(!state.has_waiting());
}

#[test]
fn what_stalls_of_a_shared_subscription_stays_with_its_member() {
    let budget = Budget::new(FREE_QUEUE * 2);
    let mut state = online(LIMITS);
    let shared = Delivery {
        shared: Some("$share/g/t".into()),
        ..large(3)
    };
    state.offer(shared, &tail(3), &mut Fare::new(&budget, None));
    let of_qos_0 = Delivery {
        qos: Qos::AtMostOnce,
        ..large(4)
    };
    state.offer(of_qos_0, &tail(4), &mut Fare::default());
    assert_eq!(state.spill(&tail(5)), 0);
    state.spill(&tail(5));
    let owed: Vec<_> = state.owed.iter().map(|(_, place)| place.offset).collect();
    assert_eq!((owed, budget.used()), (vec![3], 0));
    assert_eq!(state.behind(), Some(&tail(5)));
}

/// Nobody else has it: after a crash it is the member's still.
#[test]
fn what_a_member_was_given_is_saved_with_its_session() {
    let mut state = online(LIMITS);
    state.link = Some(Link::new(1, 1));
    for offset in [3, 5, 6] {
        let delivery = Delivery {
            shared: Some("$share/g/t".into()),
            ..delivery(offset, Qos::AtLeastOnce)
        };
        state.offer(delivery, &tail(offset), &mut Fare::default());
    }
    assert!(state.is_dirty);
    state.take(0, |_| true).unwrap();
    let change = crate::mqtt::saved::progress(&state, &tail(9));
    let saved = crate::mqtt::saved::read_progress(&change.value.unwrap()).unwrap();
    let sent: Vec<_> = saved.sent.iter().map(|s| s.place.unwrap().offset).collect();
    let owed: Vec<_> = saved.owed.iter().map(|(_, place)| place.offset).collect();
    assert_eq!((sent, owed), (vec![3], vec![5, 6]));
}

/// MQTT 5, [MQTT-4.8.2-5].
#[test]
fn what_was_sent_as_qos_2_is_given_to_no_other_client() {
    for (qos, given) in [(Qos::AtLeastOnce, vec![3]), (Qos::ExactlyOnce, vec![])] {
        let mut state = online(LIMITS);
        state.link = Some(Link::new(1, 1));
        state.expiry_s = 0;
        let shared = Delivery {
            shared: Some("$share/g/t".into()),
            ..delivery(3, qos)
        };
        state.offer(shared, &tail(3), &mut Fare::default());
        state.take(0, |_| true).unwrap();
        let back = state.go_offline(&tail(9)).into_iter();
        let back: Vec<_> = back.map(|(_, place)| place.offset).collect();
        assert_eq!(back, given, "{qos:?}");
    }
}

#[test]
fn filters_that_overlap_give_one_message_with_the_highest_qos_and_all_identifiers() {
    let low = Options {
        identifier: Some(1),
        ..options(Qos::AtMostOnce)
    };
    let high = Options {
        identifier: Some(2),
        ..options(Qos::ExactlyOnce)
    };
    let merged = merge(
        &message(Qos::AtLeastOnce),
        [&low, &high].into_iter(),
        "c",
        None,
    )
    .unwrap();
    assert_eq!(
        (merged.qos, &merged.identifiers[..]),
        (Qos::AtLeastOnce, &[1, 2][..])
    );
}

#[test]
fn what_a_client_published_does_not_come_back_when_it_asked_so() {
    let own = Options {
        no_local: true,
        ..options(Qos::AtLeastOnce)
    };
    let mut published = (*message(Qos::AtLeastOnce)).clone();
    published.from = Some("c".into());
    let published = Arc::new(published);
    assert!(merge(&published, std::iter::once(&own), "c", None).is_none());
    assert!(merge(&published, std::iter::once(&own), "d", None).is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Publish,
    Take,
    Ack,
    Leave,
    Return,
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Publish),
        3 => Just(Step::Take),
        3 => Just(Step::Ack),
        1 => Just(Step::Leave),
        1 => Just(Step::Return),
        3 => Just(Step::Read),
    ]
}

proptest! {
    /// However a client comes and goes, every record reaches it, each once but for what is sent again.
    #[test]
    fn every_record_is_taken_once_and_in_order(steps in prop::collection::vec(step(), 0..200)) {
        let mut state = online(LIMITS);
        let (mut end, mut taken, mut number): (Offset, Vec<Offset>, u64) = (0, Vec::new(), 1);
        let read = |state: &mut State, end: Offset| {
            if let Some(positions) = state.behind().cloned() {
                let mut next = positions.get(&P).copied().unwrap_or_default();
                while next < end && state.has_room() {
                    let place = Place { partition: P, offset: next };
                    let wanted = state.wants(&message(Qos::AtLeastOnce), place).unwrap();
                    state.enqueue(wanted);
                    next += 1;
                    state.advance(P, next);
                }
                state.try_live(&tail(end));
            }
        };
        let steps = steps.into_iter().chain([Step::Return]);
        for step in steps {
            match step {
                Step::Publish => {
                    state.offer(delivery(end, Qos::AtLeastOnce), &tail(end), &mut Fare::default());
                    end += 1;
                }
                Step::Take => taken.extend(state.take(0, |_| true).map(|(delivery, _)| delivery.place.unwrap().offset)),
                Step::Ack => {
                    let first = state.inflight.iter().next().map(|sent| sent.id);
                    if let Some(id) = first {
                        prop_assert!(state.inflight.acknowledged(id));
                    }
                }
                Step::Leave => drop(state.go_offline(&tail(end))),
                Step::Return if state.link.is_none() => {
                    number += 1;
                    state.link = Some(Link::new(number, 10));
                }
                Step::Return => {}
                Step::Read if state.link.is_some() => read(&mut state, end),
                Step::Read => {}
            }
        }
        for _ in 0..=2 * end {
            read(&mut state, end);
            while let Some((delivery, id)) = state.take(0, |_| true) {
                taken.push(delivery.place.unwrap().offset);
                state.inflight.acknowledged(id);
            }
            let ids: Vec<u16> = state.inflight.iter().map(|sent| sent.id).collect();
            for id in ids {
                state.inflight.acknowledged(id);
            }
        }
        prop_assert_eq!(taken, (0..end).collect::<Vec<_>>());
        prop_assert_eq!(state.behind(), None);
    }
}

#[test]
fn filters_are_bounded_in_number_and_bytes() {
    let mut state = online(LIMITS);
    let options = options(Qos::AtLeastOnce);
    let long = "x".repeat(LIMITS.filter_bytes - 1);
    assert!(state.may_subscribe(&long) && !state.may_subscribe(&format!("{long}y")));
    state.subscribe(&long, options, &tail(1));
    assert!(!state.may_subscribe("a"));
    assert!(state.may_subscribe("t"), "its options may be changed");
    state.unsubscribe(&long);
    assert!(state.may_subscribe("a"));
}
