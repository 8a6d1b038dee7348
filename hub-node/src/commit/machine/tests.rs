use bytes::Bytes;
use shared::ids::TopicName;

use super::*;
use crate::commit::Block;

#[test]
fn a_delivery_that_leaves_a_hole_ends_its_session() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    lane.machine.handle_delivery(SessionId(1), records(6, 8));
    assert_eq!(lane.ended(), [(1, EndReason::OutOfOrder)]);
    lane.commit();
    assert_eq!(lane.held(), 0, "what came before is committed all the same");
    lane.machine
        .handle_attach(site("shop"), INCARNATION, SessionId(2), lane.now);
    lane.commit();
    assert_eq!(lane.checkpoint(2), Some(5));
}

/// A site with a new incarnation keeps its offsets: its logs start in the middle.
#[test]
fn a_log_of_a_new_incarnation_starts_where_the_site_says() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine
        .handle_delivery(SessionId(1), records(1500, 1505));
    let Some(Work::Commit(_)) = lane.machine.poll_work() else {
        panic!("there is work");
    };
    lane.machine.handle_outcome(Outcome::Unknown);
    lane.machine.handle_acquired(HashMap::new(), HashSet::new());
    assert_eq!(
        lane.ended(),
        [],
        "nothing of it was committed: it is sent again"
    );
    lane.commit();
    lane.machine
        .handle_delivery(SessionId(1), records(1505, 1509));
    lane.commit();
    assert_eq!(lane.checkpoint(1), Some(1509));
}

#[test]
fn a_delivery_whose_blocks_do_not_add_up_ends_its_session() {
    for bad in [
        Delivery {
            base_offset: 1,
            ..records(0, 5)
        },
        Delivery {
            next: at(6),
            ..records(0, 5)
        },
        Delivery {
            next: at(0),
            content: Content::Gap { reason: 1 },
            ..records(0, 5)
        },
    ] {
        let mut lane = Lane::serving(&[("shop", 1)]);
        lane.machine.handle_delivery(SessionId(1), bad);
        assert_eq!(lane.ended(), [(1, EndReason::Malformed)]);
    }
}

#[test]
fn the_next_session_waits_for_what_the_one_before_handed_in() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    lane.machine
        .handle_attach(site("shop"), INCARNATION, SessionId(2), lane.now);
    assert_eq!(lane.ended(), [(1, EndReason::Superseded)]);
    lane.machine.handle_delivery(SessionId(1), records(5, 9));
    assert!(lane.attached().is_empty());
    lane.commit();
    assert_eq!(lane.attached(), [(2, Ok(()))]);
    assert_eq!(lane.checkpoint(2), Some(5));
}

#[test]
fn a_session_is_let_in_only_by_a_step_that_began_after_it_came() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    let Some(Work::Commit(under_way)) = lane.machine.poll_work() else {
        panic!("there is work");
    };
    lane.machine
        .handle_attach(site("train"), INCARNATION, SessionId(2), lane.now);
    lane.machine.handle_outcome(committed(&under_way));
    assert!(lane.attached().is_empty());
    lane.commit();
    assert_eq!(lane.attached(), [(2, Ok(()))]);
}

#[test]
fn after_an_unknown_outcome_the_checkpoints_decide() {
    for (is_committed, work_left) in [(true, false), (false, true)] {
        let mut lane = Lane::serving(&[("shop", 1)]);
        lane.machine.handle_delivery(SessionId(1), records(0, 5));
        let Some(Work::Commit(under_way)) = lane.machine.poll_work() else {
            panic!("there is work");
        };
        lane.machine.handle_outcome(Outcome::Unknown);
        assert!(matches!(lane.machine.poll_work(), Some(Work::Acquire)));
        let mut logs = HashMap::new();
        if is_committed {
            logs = after(&under_way);
        }
        lane.machine.handle_acquired(logs, HashSet::new());
        assert_eq!(lane.machine.poll_work().is_some(), work_left);
        assert_eq!(lane.reported() == [(1, 5)], is_committed);
    }
}

#[test]
fn somebody_elses_history_ends_the_session_and_drops_what_follows() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    lane.machine.handle_delivery(SessionId(1), records(5, 9));
    let Some(Work::Commit(under_way)) = lane.machine.poll_work() else {
        panic!("there is work");
    };
    lane.machine.handle_outcome(Outcome::Unknown);
    let mut logs = after(&under_way);
    for stored in logs.values_mut() {
        stored.checkpoint = Checkpoint {
            next_offset: 5,
            chain: 666,
        };
    }
    lane.machine.handle_acquired(logs, HashSet::new());
    assert_eq!(lane.ended(), [(1, EndReason::OutOfOrder)]);
    assert_eq!(lane.held(), 0);
}

#[test]
fn a_cluster_that_went_back_ends_the_session() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    lane.commit();
    lane.machine.handle_delivery(SessionId(1), records(5, 9));
    let Some(Work::Commit(_)) = lane.machine.poll_work() else {
        panic!("there is work");
    };
    lane.machine.handle_outcome(Outcome::Unknown);
    lane.machine.handle_acquired(HashMap::new(), HashSet::new());
    assert_eq!(lane.ended(), [(1, EndReason::OutOfOrder)]);
    assert_eq!(lane.held(), 0);
}

#[test]
fn a_damaged_checkpoint_keeps_its_site_out_and_no_other() {
    let mut lane = Lane::new();
    for (name, id) in [("shop", 1), ("train", 2)] {
        let session = SessionId(id);
        lane.machine
            .handle_attach(site(name), INCARNATION, session, lane.now);
    }
    assert!(matches!(lane.machine.poll_work(), Some(Work::Acquire)));
    let damaged = HashSet::from([key("shop")]);
    lane.machine.handle_acquired(HashMap::new(), damaged);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    lane.machine.handle_delivery(SessionId(2), records(0, 5));
    lane.machine
        .handle_question(Ticket(1), SessionId(2), vec![log()]);
    assert_eq!(lane.ended(), [(1, EndReason::Damaged)]);
    lane.commit();
    assert_eq!(lane.reported(), [(2, 5)]);
}

#[test]
fn a_fenced_lane_forgets_everything_and_refuses_for_a_while() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    lane.machine.handle_delivery(SessionId(1), records(0, 5));
    let until = lane.now + std::time::Duration::from_secs(10);
    lane.machine.handle_fenced(until);
    assert_eq!(lane.ended(), [(1, EndReason::Fenced)]);
    assert_eq!(lane.held(), 0);
    lane.machine
        .handle_attach(site("shop"), INCARNATION, SessionId(2), lane.now);
    assert_eq!(lane.attached(), [(2, Err(EndReason::Fenced))]);
    lane.machine
        .handle_attach(site("shop"), INCARNATION, SessionId(3), until);
    assert!(matches!(lane.machine.poll_work(), Some(Work::Acquire)));
}

#[test]
fn a_full_lane_stops_listening_until_a_transaction_commits() {
    let mut lane = Lane::serving(&[("shop", 1)]);
    for base in 0..10 {
        assert!(lane.machine.has_room());
        lane.machine
            .handle_delivery(SessionId(1), records(base, base + 1));
    }
    assert!(!lane.machine.has_room());
    lane.commit();
    assert!(lane.machine.has_room());
}

const INCARNATION: Incarnation = Incarnation(1);

struct Lane {
    machine: Machine,
    now: Instant,
    events: Vec<Output>,
}

impl Lane {
    fn new() -> Self {
        let bounds = Bounds {
            transaction: Cost {
                bytes: 1000,
                records: 1000,
            },
            queue_bytes: 100,
        };
        Self {
            machine: Machine::new(bounds),
            now: Instant::now(),
            events: Vec::new(),
        }
    }

    fn serving(sites: &[(&str, u64)]) -> Self {
        let mut lane = Self::new();
        for (name, id) in sites {
            let session = SessionId(*id);
            lane.machine
                .handle_attach(site(name), INCARNATION, session, lane.now);
        }
        assert!(matches!(lane.machine.poll_work(), Some(Work::Acquire)));
        lane.machine.handle_acquired(HashMap::new(), HashSet::new());
        assert_eq!(lane.attached().len(), sites.len());
        lane
    }

    fn commit(&mut self) {
        while let Some(work) = self.machine.poll_work() {
            let Work::Commit(transaction) = work else {
                panic!("the lane is acquired");
            };
            self.machine.handle_outcome(committed(&transaction));
        }
    }

    fn checkpoint(&mut self, session: u64) -> Option<Offset> {
        let session = SessionId(session);
        self.machine
            .handle_question(Ticket(9), session, vec![log()]);
        let answer = self.take(|output| match output {
            Output::Checkpoints(_, answer) => Some(answer.clone()),
            Output::Attached(..) | Output::Event(..) => None,
        });
        answer[0].as_ref().unwrap()[0].map(|checkpoint| checkpoint.next_offset)
    }

    fn ended(&mut self) -> Vec<(u64, EndReason)> {
        self.take(|output| match output {
            Output::Event(id, LaneEvent::Ended(reason)) => Some((id.0, *reason)),
            Output::Event(..) | Output::Attached(..) | Output::Checkpoints(..) => None,
        })
    }

    fn attached(&mut self) -> Vec<(u64, Result<(), EndReason>)> {
        self.take(|output| match output {
            Output::Attached(id, answer) => Some((id.0, *answer)),
            Output::Event(..) | Output::Checkpoints(..) => None,
        })
    }

    fn reported(&mut self) -> Vec<(u64, Offset)> {
        self.take(|output| match output {
            Output::Event(id, LaneEvent::Committed(logs)) => Some((id.0, logs[0].1.next_offset)),
            Output::Event(..) | Output::Attached(..) | Output::Checkpoints(..) => None,
        })
    }

    fn held(&self) -> usize {
        self.machine.held_bytes()
    }

    fn take<T>(&mut self, pick: impl Fn(&Output) -> Option<T>) -> Vec<T> {
        while let Some(output) = self.machine.poll_output() {
            self.events.push(output);
        }
        let picked = self.events.iter().filter_map(&pick).collect();
        self.events.retain(|output| pick(output).is_none());
        picked
    }
}

fn committed(transaction: &Transaction) -> Outcome {
    Outcome::Committed {
        logs: after(transaction),
        reacquire: false,
    }
}

fn after(transaction: &Transaction) -> HashMap<Arc<LogKey>, Stored> {
    let mut logs = transaction.logs.clone();
    for item in &transaction.items {
        if let Some(stored) = logs.get_mut(&item.key) {
            stored.checkpoint = item.delivery.next;
        }
    }
    logs
}

fn site(name: &str) -> SiteId {
    SiteId::new(name).unwrap()
}

fn log() -> TopicPartition {
    TopicPartition {
        topic: TopicName::new("t").unwrap(),
        partition: 0,
        track: shared::ids::Track::First,
    }
}

fn key(name: &str) -> LogKey {
    LogKey {
        site: site(name),
        incarnation: INCARNATION,
        log: log(),
    }
}

fn at(next_offset: Offset) -> Checkpoint {
    Checkpoint {
        next_offset,
        chain: next_offset,
    }
}

fn records(base: Offset, end: Offset) -> Delivery {
    Delivery {
        log: log(),
        base_offset: base,
        next: at(end),
        content: Content::Records(vec![Block {
            base_offset: base,
            count: u32::try_from(end - base).unwrap(),
            base_timestamp_ms: 0,
            is_log_append_time: false,
            records: Bytes::new(),
        }]),
        bytes: 10,
        hold: None,
    }
}
