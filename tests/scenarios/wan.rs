//! The WAN laboratory against `ping` and `iperf3`.

use std::time::Duration;

use anyhow::Result;
use system_tests::wan::{Conditions, End, Lab, PERCENT, Plan, Way, probe};

/// What a UDP packet of iperf3 with 1400 bytes is on the wire.
const PACKET: f64 = 1428.0;
const PAYLOAD: f64 = 1400.0;

#[test]
#[ignore = "system test: make test-links"]
fn the_laboratory_agrees_with_ping_and_iperf3_within_5_percent() -> Result<()> {
    for (rate, round_trip_ms, loss) in [
        (1_000_000, 600, 0),
        (10_000_000, 100, 3),
        (50_000_000, 50, 1),
    ] {
        let round_trip = Duration::from_millis(round_trip_ms);
        let conditions = Conditions {
            loss: loss * PERCENT,
            ..Conditions::path(rate, round_trip, 100)
        };
        let lab = Lab::start(&[Plan::symmetric(conditions, 1)])?;
        let ping = probe::ping(&lab, 300)?;
        assert_within(
            ping.mean_ms,
            round_trip.as_secs_f64() * 1e3,
            "round trip, ms",
        );
        let goodput = probe::udp_goodput(&lab, rate * 3 / 2, 10)?;
        let up = lab.link(0).counters(Way::Up);
        let delivered = 1.0 - f64::from(loss) / 100.0;
        let expected = rate as f64 * delivered * PAYLOAD / PACKET;
        assert_within(goodput, expected, "goodput of UDP, bit/s");
        let lost = up.lost as f64 / up.carried_packets as f64;
        let off = (lost - (1.0 - delivered)).abs();
        assert!(off < 0.01, "{lost} lost of a configured {loss} %");
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test-links"]
fn the_laboratory_counts_the_bytes_that_the_interfaces_count() -> Result<()> {
    let conditions = Conditions::path(10_000_000, Duration::from_millis(40), 100);
    let lab = Lab::start(&[Plan::symmetric(conditions, 1)])?;
    probe::tcp_goodput(&lab, 3)?;
    for (end, way) in [(End::Site, Way::Up), (End::Hub, Way::Down)] {
        let link = lab.ip(end, &["-s", "-j", "link", "show", "dev", "wan0"])?;
        let link: serde_json::Value = serde_json::from_str(&link)?;
        let counted = link
            .pointer("/0/stats64/tx/bytes")
            .and_then(serde_json::Value::as_u64);
        assert_eq!(counted, Some(lab.link(0).counters(way).sent_bytes));
    }
    Ok(())
}

fn assert_within(measured: f64, expected: f64, what: &str) {
    let off = (measured / expected - 1.0).abs();
    assert!(off < 0.05, "{what}: {measured}, expected {expected}");
}
