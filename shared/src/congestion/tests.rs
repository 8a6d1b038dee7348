//! Promises of the controller, on simulated links.

use std::time::{Duration, Instant};

use quinn_proto::congestion::CubicConfig;

use super::sim::{Link, Outcome, Setup, run};
use super::{MeasuredConfig, RateLimit};

const MBIT: u64 = 1_000_000;
/// In millionths.
const PERCENT: u64 = 10_000;

/// Any instant.
pub(super) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any instant does")]
    Instant::now()
}

fn ours(link: Link, seconds: u64) -> Setup {
    Setup::new(link, MeasuredConfig::default(), seconds)
}

#[test]
fn lost_packets_cost_themselves_and_little_else() {
    for (rate, round_trip_ms) in [(MBIT, 600), (10 * MBIT, 100)] {
        for queue_percent in [25, 100] {
            let link = Link::path(rate, round_trip_ms, PERCENT, queue_percent);
            let outcome = run(&ours(link, 20));
            assert!(outcome.goodput > 0.86, "{link:?}: {outcome:?}");
            assert!(outcome.resent < 0.05, "{link:?}: {outcome:?}");
        }
    }
    let link = Link::path(10 * MBIT, 100, PERCENT, 100);
    let cubic = run(&Setup::new(link, CubicConfig::default(), 20));
    assert!(cubic.goodput < 0.4, "nothing to win here: {cubic:?}");
}

#[test]
fn a_short_queue_is_not_flooded_and_a_long_one_stays_short() {
    let short = run(&ours(Link::path(10 * MBIT, 100, 0, 25), 10));
    assert!(short.goodput > 0.88 && short.resent < 0.03, "{short:?}");
    let long = run(&ours(Link::path(10 * MBIT, 100, 0, 400), 10));
    assert!(long.goodput > 0.88 && long.resent < 0.01, "{long:?}");
    assert!(long.queue < 0.25, "{long:?}");
}

#[test]
fn start_up_neither_floods_a_long_fat_path_nor_stops_at_half_of_it() {
    for (queue_percent, resent) in [(25, 0.02), (100, 0.002)] {
        let outcome = run(&ours(Link::path(50 * MBIT, 200, 0, queue_percent), 10));
        assert!(outcome.goodput > 0.88, "{outcome:?}");
        assert!(outcome.resent < resent, "{outcome:?}");
    }
}

#[test]
fn on_a_link_that_holds_two_packets_loss_is_congestion_too() {
    let outcome = run(&ours(Link::path(64_000, 200, 0, 100), 100));
    assert!(outcome.goodput > 0.85, "{outcome:?}");
    assert!(outcome.resent < 0.25, "{outcome:?}");
}

#[test]
fn a_path_that_changes_is_followed() {
    let mut slower = ours(Link::path(10 * MBIT, 100, 0, 100), 20);
    let thinner = Link {
        rate: 2 * MBIT,
        ..slower.up
    };
    slower.change = Some((10, thinner));
    let outcome = run(&slower);
    assert!(
        outcome.goodput > 0.53,
        "of 0.6 that it carries: {outcome:?}"
    );
    assert!(outcome.resent < 0.05, "{outcome:?}");
    let mut faster = ours(Link::path(2 * MBIT, 40, 0, 400), 20);
    let wider = Link {
        rate: 20 * MBIT,
        ..faster.up
    };
    faster.change = Some((10, wider));
    let outcome = run(&faster);
    assert!(outcome.goodput > 4.4, "of 5.5 that it carries: {outcome:?}");
}

#[test]
fn a_path_that_becomes_longer_is_filled_again() {
    for (loss, queue_percent) in [(0, 100), (PERCENT, 25)] {
        let mut setup = ours(Link::path(10 * MBIT, 30, 0, 100), 20);
        setup.change = Some((10, Link::path(10 * MBIT, 600, loss, queue_percent)));
        setup.from = 15;
        let outcome = run(&setup);
        assert!(outcome.share > 0.8, "{outcome:?}");
    }
}

#[test]
fn a_policy_is_not_exceeded_by_much_before_anybody_shapes() {
    let limit = RateLimit::default();
    limit.set(MBIT / 8);
    let link = Link::path(10 * MBIT, 100, 0, 100);
    let outcome = run(&Setup::new(link, MeasuredConfig::new(limit), 5));
    assert!((0.08..0.2).contains(&outcome.goodput), "{outcome:?}");
}

#[test]
fn a_probe_that_a_policy_held_back_tells_nothing_of_more() {
    let limit = RateLimit::default();
    limit.set(MBIT / 8);
    let link = Link::path(10 * MBIT, 100, 0, 100);
    let mut setup = Setup::new(link, MeasuredConfig::new(limit.clone()), 30);
    setup.lift = Some((20, limit));
    setup.from = 20;
    let outcome = run(&setup);
    assert!(outcome.share > 0.7, "{outcome:?}");
    assert!(outcome.resent < 0.02, "{outcome:?}");
}

#[test]
fn after_an_outage_the_rate_comes_back() {
    let mut setup = ours(Link::path(10 * MBIT, 100, PERCENT, 100), 30);
    setup.outage = Some((5, 3));
    let outcome = run(&setup);
    // QUIC's own timers decide when the first packet is tried
    assert!(
        outcome
            .back
            .is_some_and(|back| back < Duration::from_secs(5)),
        "{outcome:?}"
    );
    assert!(outcome.goodput > 0.65, "{outcome:?}");
}

#[test]
fn delay_that_varies_and_a_receiver_that_stalls_are_not_congestion() {
    let mut link = Link::path(10 * MBIT, 100, 0, 100);
    link.jitter = Duration::from_millis(10);
    let outcome = run(&ours(link, 10));
    assert!(
        outcome.goodput > 0.7 && outcome.resent < 0.03,
        "{outcome:?}"
    );
    link.jitter = Duration::ZERO;
    link.stall = (Duration::from_millis(50), Duration::from_millis(317));
    let outcome = run(&ours(link, 10));
    assert!(
        outcome.goodput > 0.7 && outcome.resent < 0.05,
        "{outcome:?}"
    );
}

#[test]
fn an_alarm_is_not_late_on_a_thin_link_that_bulk_fills() {
    for (loss, share) in [(0, 0.89), (PERCENT, 0.88)] {
        let mut setup = ours(Link::path(256_000, 600, loss, 100), 200);
        setup.in_pieces = true;
        setup.from = 20;
        let outcome = run(&setup);
        assert!(outcome.share > share, "{outcome:?}");
        assert!(outcome.resent < 0.02, "{outcome:?}");
        assert!(
            outcome.alarm(99) < Duration::from_millis(1_000),
            "{outcome:?}"
        );
    }
}

/// What becomes of a link under a connection, and after how many seconds there is bulk to send.
fn becomes(before: Link, after: Link, idle: u64) -> Outcome {
    let mut setup = ours(before, 120);
    setup.change = Some((5, after));
    setup.idle = idle;
    setup.from = 25;
    run(&setup)
}

#[test]
fn an_alarm_is_not_late_when_the_link_becomes_thin() {
    const THIN: u64 = 256_000;
    let wire = Link::path(200 * MBIT, 2, 0, 1_000);
    let cellular = Link::path(20 * MBIT, 50, 0, 400);
    for before in [wire, cellular] {
        for (round_trip_ms, loss, queue_percent) in [
            (600, 0, 100),
            (600, PERCENT, 100),
            (600, 0, 800),
            (100, 0, 4_000),
        ] {
            let after = Link::path(THIN, round_trip_ms, loss, queue_percent);
            // with bulk under way when it happens, and with bulk that comes later
            for idle in [2, 7] {
                let outcome = becomes(before, after, idle);
                let [p50, p90, p99] = [50, 90, 99].map(|percent| outcome.alarm(percent));
                let limit = |more| Duration::from_millis(round_trip_ms + more);
                let what = format!("{before:?}, {after:?}: {outcome:?}");
                assert!(p50 < limit(150), "{what}");
                assert!(p90 < limit(400), "{what}");
                assert!(p99 < limit(1_200), "{what}");
                assert!(outcome.share > 0.88, "{what}");
            }
        }
    }
}
