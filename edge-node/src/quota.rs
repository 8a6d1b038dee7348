//! How much may be used: connections, bytes a second and topics, by a user, and by all clients of a listener.
//!
//! ```text
//! [[access.user]] ─► Quota ─┐
//!                           ├─► Meter ─► how long a client has to wait, told in its own protocol
//! [kafka], [mqtt], … ─► Quota ─┘
//! ```
//! Bytes are never refused for their number: what came is counted, and whoever is above its rate waits until it
//! is below ([`Bucket`]). Connections and topics beyond their number are refused. A user's quota is for all its
//! connections by all protocols; those who don't say who they are share one.
//!
//! Nothing is kept over a restart but who created a topic, which stands with the topic ([`crate::ingest`]).

mod bucket;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::time::now;
use shared::units::ByteSize;

pub use bucket::Bucket;

/// What may be used at most; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Open connections.
    pub max_connections: Option<u32>,
    /// Bytes a second that are written, by Kafka's name for it.
    pub producer_byte_rate: Option<ByteSize>,
    /// Bytes a second that are read.
    pub consumer_byte_rate: Option<ByteSize>,
    /// Topics created and not deleted again.
    pub max_topics: Option<u32>,
}

/// Who asks for a topic that isn't there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Creator<'a> {
    /// The user; empty for those who don't say who they are.
    pub name: &'a str,
    /// How many topics may be there that it created; `None`: no limit, and it is not noted who did.
    pub most: Option<u32>,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// From producers.
    Produce,
    /// To consumers.
    Consume,
}

/// Limits, and what is used of them. Shared by whoever they are for.
#[derive(Debug)]
pub struct Quota {
    limits: Limits,
    open: AtomicU32,
    produce: Option<Mutex<Bucket>>,
    consume: Option<Mutex<Bucket>>,
}

impl Default for Quota {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl PartialEq for Quota {
    fn eq(&self, other: &Self) -> bool {
        self.limits == other.limits
    }
}

impl Eq for Quota {}

impl Quota {
    /// Nothing is used yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let bucket =
            |rate: Option<ByteSize>| rate.map(|rate| Mutex::new(Bucket::new(rate.bytes())));
        Self {
            limits,
            open: AtomicU32::new(0),
            produce: bucket(limits.producer_byte_rate),
            consume: bucket(limits.consumer_byte_rate),
        }
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for a connection, held until it is dropped; `None`: there are as many as allowed.
    #[must_use]
    pub fn connect(self: &Arc<Self>) -> Option<Place> {
        let place = Place(Arc::clone(self));
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let most = self.limits.max_connections.unwrap_or(u32::MAX);
        (before < most).then_some(place)
    }

    fn bucket(&self, flow: Flow) -> Option<&Mutex<Bucket>> {
        match flow {
            Flow::Produce => self.produce.as_ref(),
            Flow::Consume => self.consume.as_ref(),
        }
    }

    fn with<T>(&self, flow: Flow, act: impl FnOnce(&mut Bucket) -> T) -> Option<T> {
        let bucket = self.bucket(flow)?.lock();
        let mut bucket = bucket.unwrap_or_else(PoisonError::into_inner);
        Some(act(&mut bucket))
    }
}

/// One of the connections of a user or a listener.
#[derive(Debug)]
pub struct Place(Arc<Quota>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts what a client moves, for itself and for its listener.
#[derive(Debug, Clone)]
pub struct Meter {
    quotas: [Arc<Quota>; 2],
}

impl Meter {
    /// For a user's client on a listener.
    #[must_use]
    pub fn new(listener: &Arc<Quota>, user: &Arc<Quota>) -> Self {
        Self {
            quotas: [Arc::clone(listener), Arc::clone(user)],
        }
    }

    /// How long until it may go on; `None`: at once.
    #[must_use]
    pub fn wait(&self, flow: Flow) -> Option<Duration> {
        if self.is_free(flow) {
            return None;
        }
        self.wait_at(flow, now())
    }

    fn is_free(&self, flow: Flow) -> bool {
        let mut quotas = self.quotas.iter();
        quotas.all(|quota| quota.bucket(flow).is_none())
    }

    fn wait_at(&self, flow: Flow, now: Duration) -> Option<Duration> {
        let waits = self.quotas.iter();
        waits
            .filter_map(|quota| quota.with(flow, |bucket| bucket.wait(now))?)
            .max()
    }

    /// Counts bytes, and tells how long until it may go on.
    pub fn count(&self, flow: Flow, bytes: usize) -> Option<Duration> {
        if self.is_free(flow) {
            return None;
        }
        self.count_at(flow, bytes, now())
    }

    fn count_at(&self, flow: Flow, bytes: usize, now: Duration) -> Option<Duration> {
        let amount = u64::try_from(bytes).unwrap_or(u64::MAX);
        for quota in &self.quotas {
            quota.with(flow, |bucket| bucket.take(amount, now));
        }
        self.wait_at(flow, now)
    }

    /// Most bytes that are to be moved at once: what the lowest rate allows in a second.
    #[must_use]
    pub fn at_once(&self, flow: Flow) -> usize {
        let limits = self.quotas.iter().map(|quota| match flow {
            Flow::Produce => quota.limits.producer_byte_rate,
            Flow::Consume => quota.limits.consumer_byte_rate,
        });
        let lowest = limits.flatten().min();
        lowest.map_or(usize::MAX, ByteSize::as_usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(limits: Limits) -> Arc<Quota> {
        Arc::new(Quota::new(limits))
    }

    #[test]
    fn a_place_is_had_again_when_a_connection_has_gone() {
        let quota = quota(Limits {
            max_connections: Some(2),
            ..Limits::default()
        });
        let first = quota.connect().unwrap();
        let second = quota.connect().unwrap();
        assert!(quota.connect().is_none());
        assert!(quota.connect().is_none(), "a refusal takes no place");
        drop(first);
        let third = quota.connect();
        assert!(third.is_some() && quota.connect().is_none());
        drop((second, third));
        assert_eq!(quota.open.load(Ordering::Relaxed), 0);
        let unlimited = Arc::new(Quota::default());
        let many: Vec<_> = (0..1000).map(|_| unlimited.connect().unwrap()).collect();
        assert_eq!(many.len(), 1000);
    }

    #[test]
    fn the_stricter_of_two_quotas_holds_and_others_are_not_slowed() {
        let rate = |kib| Limits {
            producer_byte_rate: Some(ByteSize::kib(kib)),
            ..Limits::default()
        };
        let second = Duration::from_secs;
        let (listener, slow) = (quota(rate(100)), quota(rate(10)));
        let slow = Meter::new(&listener, &slow);
        let free = Meter::new(&listener, &Arc::default());
        let (way, kib, mut now) = (Flow::Produce, 1024, second(1000));
        assert_eq!(slow.at_once(way), 10 * kib);
        assert_eq!(slow.at_once(Flow::Consume), usize::MAX);
        let wait = slow.count_at(way, 10 * kib, now);
        assert_eq!(wait, None, "a second's worth");
        let wait = slow.count_at(way, 30 * kib, now);
        assert_eq!(wait, Some(second(3)));
        assert_eq!(free.wait_at(way, now), None, "another user");
        assert_eq!(slow.wait_at(Flow::Consume, now), None, "the other way");
        now += second(3);
        assert_eq!(slow.wait_at(way, now), None);
        let wait = free.count_at(way, 300 * kib, now);
        assert_eq!(wait, Some(second(2)), "the listener's");
        assert_eq!(slow.wait_at(way, now), wait);
    }
}
