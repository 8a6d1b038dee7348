//! When a log is behind; and both tracks over a real store, both halves of the link and a model of the hub.

mod tracks;

use super::*;

const fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_log_that_keeps_up_is_never_behind() {
    let mut log = Backlog::default();
    assert!(!log.observe(0, 0, at(0)));
    for second in 1..100 {
        // always five seconds late
        let acked = second.max(5) * 10 - 50;
        assert!(!log.observe(acked, second * 10, at(second)), "{second}");
    }
}

#[test]
fn records_that_wait_are_a_backlog() {
    let mut log = Backlog::default();
    log.observe(7, 7, at(1));
    assert!(!log.observe(7, 19, at(2)));
    assert!(!log.observe(7, 19, at(9)));
    assert!(!log.observe(8, 30, at(10)));
    assert!(log.observe(9, 30, at(11)));
    assert!(!log.observe(19, 30, at(12)), "those are younger");
    assert!(!log.observe(30, 30, at(13)));
}

/// All that comes while the link is away is passed, and not its first seconds only.
#[test]
fn a_backlog_ends_when_records_get_through_again() {
    let mut log = Backlog::default();
    log.observe(7, 7, at(1));
    for second in 2..100 {
        assert!(!log.observe(7, 10 * second, at(second)), "{second}");
    }
    assert!(log.observe(8, 1_000, at(100)));
}

/// Whether somebody looked meanwhile or not, and also when the first of it is through in a moment.
#[test]
fn the_whole_of_an_outage_is_a_backlog() {
    for looks in [vec![], vec![3, 4, 5], (2..60).collect()] {
        let mut log = Backlog::default();
        log.observe(7, 7, at(1));
        for second in looks {
            assert!(!log.observe(7, 7 + second, at(second)));
        }
        assert!(!log.observe(7, 2_000, at(60)), "nothing is through");
        assert!(log.observe(45, 2_010, at(61)));
    }
}

#[test]
fn what_came_while_nobody_looked_counts_from_the_last_look() {
    let mut log = Backlog::default();
    log.observe(7, 7, at(1));
    assert!(log.observe(8, 500, at(60)));
}

/// Another process may have left hours of it, and what came since is of this one.
#[test]
fn what_another_process_left_is_a_backlog_until_the_hub_has_it() {
    let mut log = Backlog::default();
    assert!(!log.observe(0, 10, at(0)), "nothing gets through yet");
    assert!(log.observe(9, 20, at(1)));
    for second in 2..100 {
        // never even, as under steady traffic
        let acked = second * 10;
        assert!(!log.observe(acked, acked + 10, at(second)), "{second}");
    }
}
