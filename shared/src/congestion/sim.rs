//! Two QUIC connections over a simulated link in virtual time: the same seed loses the same packets.

mod peer;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::congestion::ControllerFactory;

pub(crate) use wire::Link;
use wire::Wire;

/// How long the first byte may take.
const FIRST: Duration = Duration::from_secs(60);

/// What is simulated.
#[derive(Clone)]
pub(crate) struct Setup {
    /// From the site to the hub; the way back is the same without loss.
    pub(crate) up: Link,
    pub(crate) controller: Arc<dyn ControllerFactory + Send + Sync>,
    /// From the first byte that arrives.
    pub(crate) seconds: u64,
    pub(crate) seed: u64,
    /// Seconds after the start, and how many.
    pub(crate) outage: Option<(u64, u64)>,
    /// At this second the rate becomes this.
    pub(crate) new_rate: Option<(u64, u64)>,
}

impl Setup {
    pub(crate) fn new(
        up: Link,
        controller: impl ControllerFactory + Send + Sync + 'static,
        seconds: u64,
    ) -> Self {
        Self {
            up,
            controller: Arc::new(controller),
            seconds,
            seed: 1,
            outage: None,
            new_rate: None,
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    /// What the application received, by what the first rate could have carried.
    pub(crate) goodput: f64,
    /// Sent again, by what was sent.
    pub(crate) resent: f64,
    /// Mean time in the queue, by the round trip.
    pub(crate) queue: f64,
    /// From the end of the outage to the first new byte.
    pub(crate) back: Option<Duration>,
}

/// The site sends as much as it can.
pub(crate) fn run(setup: &Setup) -> Outcome {
    #[expect(clippy::disallowed_methods, reason = "any instant does")]
    let began = Instant::now();
    let mut now = began;
    let mut up = Wire::new(setup.up, now, setup.seed);
    let back = Link {
        loss: 0,
        ..setup.up
    };
    let mut down = Wire::new(back, now, setup.seed + 1_000);
    let (mut site, mut hub) = peer::pair(setup, now);
    let (mut received, mut first, mut back) = (0, None, None);
    let end = |first: Option<Instant>| {
        first.map_or(began + FIRST, |first| {
            first + Duration::from_secs(setup.seconds)
        })
    };
    while now < end(first) {
        let restored = happen(setup, now - began, [&mut up, &mut down]);
        site.timeout(now);
        hub.timeout(now);
        while let Some(datagram) = up.due(now) {
            hub.handle(now, site.address, &datagram);
        }
        while let Some(datagram) = down.due(now) {
            site.handle(now, hub.address, &datagram);
        }
        site.write();
        let new = hub.read();
        if new > 0 {
            first.get_or_insert(now);
            received += new;
            if let Some(restored) = restored {
                back = back.or_else(|| Some((now - began).saturating_sub(restored)));
            }
        }
        site.transmit(now, &mut up);
        hub.transmit(now, &mut down);
        let times = [site.next(), hub.next(), up.next(), down.next()];
        let Some(next) = times.into_iter().flatten().min() else {
            break;
        };
        now = now.max(next);
    }
    let stats = site.stats();
    let bits = received as f64 * 8.0;
    Outcome {
        goodput: bits / setup.seconds as f64 / setup.up.rate as f64,
        resent: stats.path.lost_bytes as f64 / stats.udp_tx.bytes as f64,
        queue: up.mean_wait().as_secs_f64() / setup.up.delay.as_secs_f64() / 2.0,
        back,
    }
}

/// Outage and change of the rate. When the outage is over: since when.
fn happen(setup: &Setup, time: Duration, wires: [&mut Wire; 2]) -> Option<Duration> {
    let outage = setup.outage.map(|(at, seconds)| {
        let from = Duration::from_secs(at);
        from..from + Duration::from_secs(seconds)
    });
    for wire in wires {
        wire.is_up = !outage.as_ref().is_some_and(|outage| outage.contains(&time));
        if let Some((at, rate)) = setup.new_rate
            && time >= Duration::from_secs(at)
        {
            wire.link.rate = rate;
        }
    }
    let restored = outage?.end;
    (time >= restored).then_some(restored)
}
