//! What leaves and enters by one path: counted in bytes of IP packets, let go at the rate of the policy, and
//! held where it says stop.
//!
//! One [`Shaper`] a path, shared by every socket of it: the sessions, the attempts that race them, the
//! handshakes and the TCP fallback. So whatever leaves is counted and paced once, where it leaves.
//!
//! - The *rate* up delays: see [`shared::pace`].
//! - The *rate* down does so too: what comes in answers what left, so that a site that sends more slowly is
//!   answered more slowly. Whatever came is made up for, up to [`MOST_OWED`].
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

use shared::congestion::RateLimit;
use shared::pace::Pace;
use shared::units::BitRate;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::load::Load;

/// UDP's header.
const UDP_HEADER: u64 = 8;
const IPV4_HEADER: u64 = 20;
const IPV6_HEADER: u64 = 40;
/// TCP's header with the time stamps that every system sends (RFC 7323).
const TCP_HEADER: u64 = 32;
/// A SYN with its options, and a RST without any: the header.
const TCP_SYN: u64 = 40;
const TCP_RST: u64 = 20;
/// Largest packet on a link without jumbo frames.
const PACKET: u64 = 1_500;
/// What came in beyond the rate down is made up for so long at the most, and meanwhile something leaves so often at
/// the least: acknowledgements are among it.
const MOST_OWED: Duration = Duration::from_secs(10);
const LONGEST_HOLD: Duration = Duration::from_secs(1);
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
    /// The rate again, for controllers: they need not probe for more.
    limit: RateLimit,
}

#[derive(Debug)]
struct State {
    gate: Gate,
    load: Load,
    /// Tasks that are held by the fence.
    waiting: Vec<Waker>,
}

impl State {
    fn wait(&mut self, waker: &Waker) {
        if self.waiting.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.remove(0).wake();
        }
        self.waiting.push(waker.clone());
    }
}

/// What a datagram may do that wants to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Go.
    Now,
    /// Ask again at this time.
    At(Duration),
    /// Wait until the fence is moved.
    Held,
}

/// Counts, rate and fence: plain code.
#[derive(Debug)]
struct Gate {
    pace: Pace,
    down: Pace,
    left_at: Duration,
    traffic: Traffic,
    fence: u64,
    /// Half the way to the fence: whoever moves it is told, so that nobody has to stand at it.
    early: u64,
}

impl Gate {
    fn set_fence(&mut self, fence: u64) {
        if fence != self.fence {
            self.fence = fence;
            self.early = self.traffic.bytes().saturating_add(self.room() / 2);
        }
    }

    /// True once on the way to a fence.
    const fn passed_early(&mut self) -> bool {
        let has_passed = self.traffic.bytes() >= self.early;
        if has_passed {
            self.early = u64::MAX;
        }
        has_passed
    }

    /// What may still move before the fence.
    const fn room(&self) -> u64 {
        self.fence.saturating_sub(self.traffic.bytes())
    }

    /// The size of what is to leave isn't asked: whoever was told that it may leave must be able to.
    fn may_leave(&self, now: Duration) -> Leave {
        if self.room() < PACKET {
            Leave::Held
        } else {
            let answered = self.down.ready_at().min(self.left_at + LONGEST_HOLD);
            match self.pace.ready_at().max(answered) {
                at if at > now => Leave::At(at),
                _ => Leave::Now,
            }
        }
    }

    fn take(&mut self, packets: Packets, now: Duration) -> bool {
        let may = self.may_leave(now) == Leave::Now;
        if may {
            self.sent(packets, now);
        }
        may
    }

    fn sent(&mut self, packets: Packets, now: Duration) {
        self.pace.sent(packets.bytes, now);
        self.left_at = now;
        self.traffic.sent = self.traffic.sent.saturating_add(packets.bytes);
        self.traffic.sent_packets = self.traffic.sent_packets.saturating_add(packets.count);
    }

    fn received(&mut self, packets: Packets, now: Duration) {
        if self.down.ready_at() < now.saturating_add(MOST_OWED) {
            self.down.sent(packets.bytes, now);
        }
        self.traffic.received = self.traffic.received.saturating_add(packets.bytes);
        self.traffic.received_packets = self.traffic.received_packets.saturating_add(packets.count);
    }

    /// Just before the fence one, so that none passes it.
    fn max_segments(&self) -> usize {
        if self.room() < LAST_STEPS {
            1
        } else {
            self.pace.max_segments()
        }
    }
}

impl Shaper {
    /// Lets everything go until told otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            state: Mutex::new(State {
                gate: Gate {
                    pace: Pace::new(None),
                    down: Pace::new(None),
                    left_at: Duration::ZERO,
                    traffic: Traffic::default(),
                    fence: u64::MAX,
                    early: u64::MAX,
                },
                load: Load::default(),
                waiting: Vec::new(),
            }),
            at_fence: Notify::new(),
            limit: RateLimit::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Changes the rates up and down; hold from the next datagram on.
    pub fn set_rates(&self, up: Option<BitRate>, down: Option<BitRate>) {
        self.limit.set(up.map_or(u64::MAX, BitRate::bytes_per_sec));
        let now = self.now();
        let gate = &mut self.lock().gate;
        for (pace, rate) in [(&mut gate.pace, up), (&mut gate.down, down)] {
            if pace.rate() != rate {
                pace.set_rate(rate, now);
            }
        }
    }

    /// The rate up as it changes, for the congestion controllers of this path.
    #[must_use]
    pub fn limit(&self) -> RateLimit {
        self.limit.clone()
    }

    /// The rate up that is set.
    #[must_use]
    pub fn rate(&self) -> Option<BitRate> {
        self.lock().gate.pace.rate()
    }

    /// Moves the fence; what waits behind it goes on.
    pub fn set_fence(&self, fence: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.gate.set_fence(fence);
        if state.gate.may_leave(now) != Leave::Held {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Ends when somebody is held by the fence, or will be soon.
    pub async fn reached_fence(&self) {
        self.at_fence.notified().await;
    }

    /// What moved since the start.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.lock().gate.traffic
    }

    /// Whether the transport has as much to send as the path holds: then what it sends is what the link
    /// carries.
    pub fn set_full(&self, is_full: bool) {
        let now = self.now();
        self.lock().load.set(is_full, now);
    }

    /// How long it had, since the start.
    #[must_use]
    pub fn full_time(&self) -> Duration {
        let now = self.now();
        self.lock().load.full(now)
    }

    /// Datagrams that may leave in one call.
    #[must_use]
    pub fn max_segments(&self) -> usize {
        self.lock().gate.max_segments()
    }

    /// Counts and charges what is about to leave, if it may: false means to wait with [`Shaper::poll_ready`].
    pub fn try_take(&self, packets: Packets) -> bool {
        let now = self.now();
        let mut state = self.lock();
        let is_taken = state.gate.take(packets, now);
        if is_taken && state.gate.passed_early() {
            self.at_fence.notify_one();
        }
        is_taken
    }

    /// What was taken did not leave after all. The time that it was given is lost.
    pub fn give_back(&self, packets: Packets) {
        let traffic = &mut self.lock().gate.traffic;
        traffic.sent = traffic.sent.saturating_sub(packets.bytes);
        traffic.sent_packets = traffic.sent_packets.saturating_sub(packets.count);
    }

    /// Counts what came in.
    pub fn received(&self, packets: Packets) {
        let now = self.now();
        self.lock().gate.received(packets, now);
    }

    /// Counts what the system sent on its own, as TCP's repetitions are; it can't be held any more, but what
    /// follows waits for it.
    pub fn sent_already(&self, packets: Packets) {
        let now = self.now();
        self.lock().gate.sent(packets, now);
    }

    /// Whether a datagram may leave, by the rate and the fence; else the task is woken when that may have
    /// changed. `timer` is the task's own.
    pub fn poll_ready(&self, timer: &mut Timer, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = self.now();
            let mut state = self.lock();
            let ready_at = match state.gate.may_leave(now) {
                Leave::Now => return Poll::Ready(()),
                Leave::At(ready_at) => ready_at,
                Leave::Held => {
                    state.wait(context.waker());
                    self.at_fence.notify_one();
                    return Poll::Pending;
                }
            };
            drop(state);
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

    /// The first packets of TCP connections: with all options.
    #[must_use]
    pub fn tcp_syn(count: u64, peer: SocketAddr) -> Self {
        Self {
            count,
            bytes: count.saturating_mul(ip_header(peer.ip()) + TCP_SYN),
        }
    }

    /// The answer of a port at which nobody listens.
    #[must_use]
    pub fn tcp_rst(peer: SocketAddr) -> Self {
        Self {
            count: 1,
            bytes: ip_header(peer.ip()) + TCP_RST,
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
        assert_eq!(Packets::tcp_syn(2, v4).bytes, 120);
        assert_eq!(Packets::tcp_rst(v6).bytes, 60);
    }

    fn gate(rate: Option<BitRate>, fence: u64) -> Gate {
        Gate {
            pace: Pace::new(rate),
            down: Pace::new(None),
            left_at: Duration::ZERO,
            traffic: Traffic::default(),
            fence,
            early: u64::MAX,
        }
    }

    #[test]
    fn the_rate_holds_over_ten_seconds_and_is_reached() {
        let mut gate = gate(Some(BitRate::kbit(100)), u64::MAX);
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(10) {
            match gate.may_leave(now) {
                Leave::Now => assert!(gate.take(packet(1_250), now)),
                Leave::At(at) => now = at,
                Leave::Held => panic!("no fence"),
            }
        }
        let sent = gate.traffic.sent;
        assert!((122_500..=127_500).contains(&sent), "{sent}");
        assert_eq!(gate.traffic.sent_packets * 1_250, sent);
    }

    fn answered(rate_down: BitRate) -> Gate {
        let mut gate = gate(None, u64::MAX);
        gate.down.set_rate(Some(rate_down), Duration::ZERO);
        gate
    }

    #[test]
    fn what_leaves_waits_for_what_its_answers_take() {
        let mut gate = answered(BitRate::kbit(100));
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(100) {
            match gate.may_leave(now) {
                Leave::Now => {
                    assert!(gate.take(packet(1_250), now));
                    gate.received(packet(125), now);
                }
                Leave::At(at) => now = at,
                Leave::Held => panic!("no fence"),
            }
        }
        let received = gate.traffic.received;
        assert!((1_240_000..=1_275_000).contains(&received), "{received}");
    }

    #[test]
    fn what_nobody_asked_for_does_not_shut_the_path() {
        let mut gate = answered(BitRate::kbit(10));
        for _ in 0..10_000 {
            gate.received(packet(1_250), Duration::ZERO);
        }
        let (mut now, mut left) = (Duration::ZERO, 0);
        while gate.down.ready_at() > now {
            match gate.may_leave(now) {
                Leave::Now => left += u32::from(gate.take(packet(60), now)),
                Leave::At(at) => now = at,
                Leave::Held => panic!("no fence"),
            }
        }
        assert!(now < Duration::from_secs(13), "{now:?}");
        assert!(left >= 9, "{left}");
    }

    #[test]
    fn what_comes_in_moves_up_to_the_fence_too() {
        let mut gate = gate(None, 5_000);
        assert_eq!(gate.max_segments(), 1);
        assert!(gate.take(packet(1_500), Duration::ZERO));
        gate.received(packet(2_500), Duration::ZERO);
        assert_eq!(gate.may_leave(Duration::ZERO), Leave::Held);
        assert!(!gate.take(packet(60), Duration::ZERO));
        assert_eq!(gate.traffic.bytes(), 4_000);
        gate.set_fence(200_000);
        assert!(gate.take(packet(60), Duration::ZERO) && gate.max_segments() > 1);
    }

    #[test]
    fn half_way_to_the_fence_is_told_once() {
        let mut gate = gate(None, 0);
        gate.set_fence(10_000);
        let passed: Vec<bool> = (0..6)
            .map(|_| gate.take(packet(1_500), Duration::ZERO) && gate.passed_early())
            .collect();
        assert_eq!(passed, [false, false, false, true, false, false]);
        // the same again is no news
        gate.set_fence(10_000);
        assert!(!gate.passed_early());
    }

    #[tokio::test]
    async fn who_is_held_goes_on_when_the_fence_is_moved() {
        let shaper = Arc::new(Shaper::new());
        shaper.set_fence(0);
        let mut waiting = tokio::task::JoinSet::new();
        waiting.spawn({
            let shaper = Arc::clone(&shaper);
            async move { shaper.admit(packet(1_500)).await }
        });
        shaper.reached_fence().await;
        assert_eq!(shaper.traffic().bytes(), 0);
        shaper.set_fence(60_000);
        waiting.join_next().await.unwrap().unwrap();
        assert_eq!(shaper.traffic().sent, 1_500);
        shaper.give_back(packet(1_500));
        assert_eq!(shaper.traffic(), Traffic::default());
    }

    #[tokio::test]
    async fn a_rate_is_waited_for() {
        let shaper = Shaper::new();
        shaper.set_rates(Some(BitRate::mbit(1)), None);
        for _ in 0..8 {
            shaper.admit(packet(1_250)).await;
        }
        // 10,000 bytes, of which the last and the tolerance need not be waited for
        assert!(
            shaper.now() >= Duration::from_millis(15),
            "{:?}",
            shaper.now()
        );
        assert_eq!(shaper.rate(), Some(BitRate::mbit(1)));
    }
}
