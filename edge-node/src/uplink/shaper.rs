//! What leaves and enters by one path: counted in bytes of IP packets, let go at the rate of the policy, and
//! held where it says stop.
//!
//! One [`Shaper`] a path, shared by every socket of it: the sessions, the attempts that race them, the
//! handshakes and the TCP fallback. So whatever leaves is counted and paced once, where it leaves.
//!
//! - The *rate* delays: see [`shared::pace`].
//! - The *fence* holds: bytes of both directions up to which datagrams may leave. It lies no further than
//!   what was written to disk beforehand (see [`super::meter`]) and than what an allowance still gives. What
//!   comes in can't be held and moves up to the fence, too.
//!
//! Received bytes are counted as they come. The lock is held for a few lines and never over a wait.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shared::pace::Pace;
use shared::units::BitRate;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// UDP's header.
const UDP_HEADER: u64 = 8;
const IPV4_HEADER: u64 = 20;
const IPV6_HEADER: u64 = 40;
/// TCP's header with the time stamps that every system sends (RFC 7323).
const TCP_HEADER: u64 = 32;
/// Largest packet on a link without jumbo frames.
const PACKET: u64 = 1_500;
/// So near to the fence datagrams leave one by one.
const LAST_STEPS: u64 = 64 << 10;
/// Connections that wait for the fence. They try again by themselves should there be more.
const MAX_WAITING: usize = 64;

/// Bytes that moved, in IP packets with their headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// From the site.
    pub sent: u64,
    /// To the site.
    pub received: u64,
    /// Packets from the site.
    pub sent_packets: u64,
    /// Packets to the site.
    pub received_packets: u64,
}

impl Traffic {
    /// Both ways.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.sent.saturating_add(self.received)
    }
}

/// Shapes and counts the traffic of one path.
#[derive(Debug)]
pub struct Shaper {
    origin: Instant,
    state: Mutex<State>,
    /// Somebody stands at the fence: whoever sets it should look.
    at_fence: Notify,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    traffic: Traffic,
    fence: u64,
    /// Tasks that are held by the fence.
    waiting: Vec<Waker>,
}

impl State {
    /// What may still move before the fence.
    const fn room(&self) -> u64 {
        self.fence.saturating_sub(self.traffic.bytes())
    }

    /// The size of what is to leave isn't asked: whoever was told that it may leave must be able to.
    const fn is_held(&self) -> bool {
        self.room() < PACKET
    }
}

impl Shaper {
    /// Lets everything go until told otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            state: Mutex::new(State {
                pace: Pace::new(None),
                traffic: Traffic::default(),
                fence: u64::MAX,
                waiting: Vec::new(),
            }),
            at_fence: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Changes the rate; holds from the next datagram on.
    pub fn set_rate(&self, rate: Option<BitRate>) {
        let now = self.now();
        let mut state = self.lock();
        if state.pace.rate() != rate {
            state.pace.set_rate(rate, now);
        }
    }

    /// The rate that is set.
    #[must_use]
    pub fn rate(&self) -> Option<BitRate> {
        self.lock().pace.rate()
    }

    /// Moves the fence; what waits behind it goes on.
    pub fn set_fence(&self, fence: u64) {
        let mut state = self.lock();
        state.fence = fence;
        if !state.is_held() {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Ends when somebody is held by the fence.
    pub async fn reached_fence(&self) {
        self.at_fence.notified().await;
    }

    /// What moved since the start.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.lock().traffic
    }

    /// Datagrams that may leave in one call: just before the fence one, so that none passes it.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        let state = self.lock();
        if state.room() < LAST_STEPS {
            1
        } else {
            state.pace.max_segments()
        }
    }

    /// Counts and charges what is about to leave, if it may: false means to wait with [`Shaper::poll_ready`].
    pub fn try_take(&self, packets: Packets) -> bool {
        let now = self.now();
        let mut state = self.lock();
        if state.is_held() || !state.pace.is_ready(now) {
            return false;
        }
        state.pace.sent(packets.bytes, now);
        state.traffic.sent += packets.bytes;
        state.traffic.sent_packets += packets.count;
        true
    }

    /// What was taken did not leave after all. The time that it was given is lost.
    pub fn give_back(&self, packets: Packets) {
        let mut state = self.lock();
        state.traffic.sent = state.traffic.sent.saturating_sub(packets.bytes);
        state.traffic.sent_packets = state.traffic.sent_packets.saturating_sub(packets.count);
    }

    /// Counts what came in.
    pub fn received(&self, packets: Packets) {
        let mut state = self.lock();
        state.traffic.received += packets.bytes;
        state.traffic.received_packets += packets.count;
    }

    /// Counts what the system sent on its own, as TCP's repetitions are; it can't be held any more, but what
    /// follows waits for it.
    pub fn sent_already(&self, packets: Packets) {
        let now = self.now();
        let mut state = self.lock();
        state.pace.sent(packets.bytes, now);
        state.traffic.sent += packets.bytes;
        state.traffic.sent_packets += packets.count;
    }

    /// Whether a datagram may leave, by the rate and the fence; else the task is woken when that may have
    /// changed. `timer` is the task's own.
    pub fn poll_ready(&self, timer: &mut Timer, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = self.now();
            let ready_at = {
                let mut state = self.lock();
                if state.is_held() {
                    let is_known = state
                        .waiting
                        .iter()
                        .any(|waker| waker.will_wake(context.waker()));
                    if !is_known {
                        if state.waiting.len() >= MAX_WAITING {
                            state.waiting.remove(0).wake();
                        }
                        state.waiting.push(context.waker().clone());
                    }
                    self.at_fence.notify_one();
                    return Poll::Pending;
                }
                if state.pace.is_ready(now) {
                    return Poll::Ready(());
                }
                state.pace.ready_at()
            };
            if timer.poll(self.origin + ready_at, context).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Waits until so many packets may leave, and takes them.
    pub async fn admit(&self, packets: Packets) {
        let mut timer = Timer::default();
        loop {
            poll_fn(|context| self.poll_ready(&mut timer, context)).await;
            if self.try_take(packets) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Default for Shaper {
    fn default() -> Self {
        Self::new()
    }
}

/// A timer that is set only while its task waits.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn poll(&mut self, until: Instant, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(context)
    }
}

/// IP packets: how many, and their bytes with all headers from IP's on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Packets {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Packets {
    /// UDP datagrams of one size, the last one shorter, to or from an address.
    #[must_use]
    pub fn udp(len: usize, segment: Option<usize>, peer: SocketAddr) -> Self {
        let count = match segment {
            Some(segment) if segment > 0 => len.div_ceil(segment).max(1),
            Some(_) | None => 1,
        };
        let (count, len) = (count as u64, len as u64);
        Self {
            count,
            bytes: len + count * (ip_header(peer.ip()) + UDP_HEADER),
        }
    }

    /// A TCP connection's segments and the bytes in them.
    #[must_use]
    pub fn tcp(count: u64, payload: u64, peer: SocketAddr) -> Self {
        Self {
            count,
            bytes: payload.saturating_add(count.saturating_mul(ip_header(peer.ip()) + TCP_HEADER)),
        }
    }
}

/// On a socket for both versions an IPv4 address comes as `::ffff:192.0.2.1`; its packets are IPv4's.
fn ip_header(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(_) => IPV4_HEADER,
        IpAddr::V6(_) => IPV6_HEADER,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn packet(bytes: u64) -> Packets {
        Packets { count: 1, bytes }
    }

    #[test]
    fn headers_are_counted_by_version_and_for_each_segment() {
        let v4 = "192.0.2.1:7443".parse().unwrap();
        let mapped = "[::ffff:192.0.2.1]:7443".parse().unwrap();
        let v6 = "[2001:db8::1]:7443".parse().unwrap();
        for (len, segment, peer, count, bytes) in [
            (1_200, None, v4, 1, 1_228),
            (1_200, None, mapped, 1, 1_228),
            (1_200, None, v6, 1, 1_248),
            (3_700, Some(1_200), v4, 4, 3_812),
            (3_600, Some(1_200), v6, 3, 3_744),
            (0, Some(0), v4, 1, 28),
        ] {
            assert_eq!(
                Packets::udp(len, segment, peer),
                Packets { count, bytes },
                "{len}"
            );
        }
        assert_eq!(Packets::tcp(2, 2_000, v4).bytes, 2_104);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_every_ten_seconds() {
        let shaper = Shaper::new();
        shaper.set_rate(Some(BitRate::kbit(100)));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            shaper.admit(packet(1_250)).await;
        }
        let sent = shaper.traffic().sent;
        assert!((122_500..=127_500).contains(&sent), "{sent}");
        assert_eq!(shaper.traffic().sent_packets * 1_250, sent);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_passes_the_fence_until_it_is_moved() {
        let shaper = Arc::new(Shaper::new());
        shaper.set_fence(5_000);
        assert_eq!(shaper.max_segments(), 1);
        shaper.admit(packet(1_500)).await;
        shaper.received(packet(2_500));
        let waiting = tokio::spawn({
            let shaper = Arc::clone(&shaper);
            async move { shaper.admit(packet(1_500)).await }
        });
        shaper.reached_fence().await;
        assert!(!waiting.is_finished());
        assert_eq!(shaper.traffic().bytes(), 4_000);
        shaper.set_fence(60_000);
        waiting.await.unwrap();
        assert_eq!(shaper.traffic().sent, 3_000);
        shaper.received(packet(54_000));
        assert!(!shaper.try_take(packet(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_rate_holds_at_once_for_who_comes_next() {
        let shaper = Shaper::new();
        shaper.set_rate(Some(BitRate::kbit(8)));
        shaper.admit(packet(1_000)).await;
        shaper.set_rate(Some(BitRate::mbit(8)));
        let start = Instant::now();
        shaper.admit(packet(1_000)).await;
        assert!(start.elapsed() < Duration::from_millis(3));
        shaper.set_rate(None);
        assert_eq!(shaper.rate(), None);
        shaper.give_back(packet(1_000));
        assert_eq!(shaper.traffic().sent, 1_000);
    }
}
