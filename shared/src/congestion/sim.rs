//! Two QUIC connections over a simulated link in virtual time: the same seed loses the same packets.

mod peer;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::StreamId;
use quinn_proto::congestion::ControllerFactory;

use super::RateLimit;
pub(crate) use wire::Link;
use wire::Wire;

/// How long the first byte may take.
const FIRST: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

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
    /// At this second the link becomes this.
    pub(crate) change: Option<(u64, Link)>,
    /// At this second the policy's limit is lifted.
    pub(crate) lift: Option<(u64, RateLimit)>,
    /// The site begins to send as much as it can at this second; an alarm each second it has all the time.
    pub(crate) idle: u64,
    /// What is asked of alarms and of the link's use counts from this second on.
    pub(crate) from: u64,
    /// The site hands over what the uplink would, not all it has.
    pub(crate) in_pieces: bool,
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
            change: None,
            lift: None,
            idle: 0,
            from: 0,
            in_pieces: false,
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// What the application received, by what the first rate could have carried.
    pub(crate) goodput: f64,
    /// Sent again, by what was sent.
    pub(crate) resent: f64,
    /// Mean time in the queue, by the round trip.
    pub(crate) queue: f64,
    /// From the end of the outage to the first new byte.
    pub(crate) back: Option<Duration>,
    /// From an alarm handed to the transport to the hub's application; ascending.
    pub(crate) alarms: Vec<Duration>,
    /// What the application received since then, by what the last rate could have carried.
    pub(crate) share: f64,
}

impl Outcome {
    /// So many percent of the alarms took no longer.
    pub(crate) fn alarm(&self, percent: usize) -> Duration {
        let last = self.alarms.len().saturating_sub(1);
        self.alarms[last * percent / 100]
    }
}

/// The site sends as much as it can, and an alarm each second.
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
    let mut tally = Tally::new(setup, began);
    while now < tally.end() {
        let restored = happen(setup, now - began, [&mut up, &mut down]);
        site.timeout(now);
        hub.timeout(now);
        while let Some(datagram) = up.due(now) {
            hub.handle(now, site.address, &datagram);
        }
        while let Some(datagram) = down.due(now) {
            site.handle(now, hub.address, &datagram);
        }
        if tally.alarms_due(now) {
            let id = site.alarm();
            tally.sent.extend(id.map(|id| (id, now)));
        }
        if now - began >= Duration::from_secs(setup.idle) {
            if setup.in_pieces {
                site.write_pieces();
            } else {
                site.write(tally.received);
            }
        }
        let (bytes, ended) = hub.read();
        tally.add(now, bytes, &ended, restored);
        site.transmit(now, &mut up);
        hub.transmit(now, &mut down);
        let times = [site.next(), hub.next(), up.next(), down.next()];
        let Some(next) = times.into_iter().flatten().min() else {
            break;
        };
        now = now.max(next.min(tally.next_alarm));
    }
    let stats = site.stats();
    Outcome {
        resent: stats.path.lost_bytes as f64 / stats.udp_tx.bytes as f64,
        queue: up.mean_wait().as_secs_f64() / setup.up.delay.as_secs_f64() / 2.0,
        ..tally.outcome(setup)
    }
}

/// What is counted on the way.
struct Tally {
    began: Instant,
    seconds: Duration,
    from: Instant,
    first: Option<Instant>,
    received: u64,
    received_from: u64,
    back: Option<Duration>,
    next_alarm: Instant,
    sent: HashMap<StreamId, Instant>,
    alarms: Vec<Duration>,
}

impl Tally {
    fn new(setup: &Setup, began: Instant) -> Self {
        Self {
            began,
            seconds: Duration::from_secs(setup.seconds),
            from: began + Duration::from_secs(setup.from),
            first: None,
            received: 0,
            received_from: 0,
            back: None,
            next_alarm: began + SECOND,
            sent: HashMap::new(),
            alarms: Vec::new(),
        }
    }

    fn end(&self) -> Instant {
        let first = self.first.map(|first| first + self.seconds);
        first.unwrap_or(self.began + FIRST)
    }

    fn alarms_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next_alarm;
        if is_due {
            self.next_alarm += SECOND;
        }
        is_due
    }

    fn add(&mut self, now: Instant, bytes: u64, ended: &[StreamId], restored: Option<Duration>) {
        for sent in ended.iter().filter_map(|id| self.sent.remove(id)) {
            if sent >= self.from {
                self.alarms.push(now - sent);
            }
        }
        if bytes == 0 {
            return;
        }
        self.first.get_or_insert(now);
        self.received += bytes;
        if now >= self.from {
            self.received_from += bytes;
        }
        if let Some(restored) = restored {
            let back = (now - self.began).saturating_sub(restored);
            self.back.get_or_insert(back);
        }
    }

    fn outcome(self, setup: &Setup) -> Outcome {
        let counted = self.end() - self.from.max(self.first.unwrap_or(self.from));
        let last = setup.change.map_or(setup.up, |(_, link)| link);
        let mut alarms = self.alarms;
        alarms.sort_unstable();
        Outcome {
            goodput: self.received as f64 * 8.0 / setup.seconds as f64 / setup.up.rate as f64,
            share: self.received_from as f64 * 8.0 / counted.as_secs_f64() / last.rate as f64,
            back: self.back,
            alarms,
            ..Outcome::default()
        }
    }
}

/// Outage and change of the link. When the outage is over: since when.
fn happen(setup: &Setup, time: Duration, wires: [&mut Wire; 2]) -> Option<Duration> {
    let outage = setup.outage.map(|(at, seconds)| {
        let from = Duration::from_secs(at);
        from..from + Duration::from_secs(seconds)
    });
    for (is_up, wire) in [true, false].into_iter().zip(wires) {
        if let Some((at, limit)) = &setup.lift
            && time >= Duration::from_secs(*at)
        {
            limit.set(u64::MAX);
        }
        wire.is_up = !outage.as_ref().is_some_and(|outage| outage.contains(&time));
        if let Some((at, link)) = setup.change
            && time >= Duration::from_secs(at)
        {
            let loss = if is_up { link.loss } else { 0 };
            wire.link = Link { loss, ..link };
        }
    }
    let restored = outage?.end;
    (time >= restored).then_some(restored)
}
