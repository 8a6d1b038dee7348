//! The link between a site and a hub: a relay for UDP in user space, with the faults of real links, and
//! one for TCP beside it, which only cuts and delays.

mod tcp;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::{ports, seed};

/// How often a blocked thread looks whether the link is gone.
const LOOK: Duration = Duration::from_millis(100);
/// Larger than any UDP datagram.
const DATAGRAM: usize = 65_536;
/// IPv4 and UDP headers, which the link carries for each datagram.
const HEADERS: u64 = 28;

/// What the link does to datagrams. Both directions alike, but for the cuts.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Nothing passes from the site to the hub.
    pub is_up_cut: bool,
    /// Nothing passes from the hub to the site.
    pub is_down_cut: bool,
    /// Share of datagrams that vanish.
    pub loss: f64,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
    /// Share of datagrams that are held back so that later ones overtake them.
    pub reorder: f64,
    /// One-way delay, and what is added to it at random.
    pub delay: Duration,
    pub jitter: Duration,
    /// Larger datagrams vanish (a black hole for path MTU discovery).
    pub mtu: Option<usize>,
    /// Bytes a second in each direction, headers included.
    pub rate: Option<u64>,
    /// How long a datagram may wait for those before it; one that would wait longer vanishes.
    pub queue: Duration,
    /// A network that lets no UDP pass.
    pub is_udp_blocked: bool,
    /// A network that lets no TCP pass.
    pub is_tcp_blocked: bool,
}

/// A running relay.
#[derive(Debug)]
pub struct Link {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    faults: Mutex<Faults>,
    hub: Mutex<SocketAddr>,
    random: Mutex<StdRng>,
    /// One socket towards the hub for each address that the site sends from.
    flows: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
    site_side: UdpSocket,
    held: Mutex<BinaryHeap<Reverse<Held>>>,
    held_changed: Condvar,
    /// When each direction has sent what it was given so far.
    busy_until: Mutex<[Instant; 2]>,
    order: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    is_gone: AtomicBool,
}

/// A datagram that waits for its time.
#[derive(Debug)]
struct Held {
    due: Instant,
    order: u64,
    datagram: Vec<u8>,
    from: Arc<UdpSocket>,
    to: Option<SocketAddr>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Link {
    /// Starts a relay to the hub's address.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(hub: SocketAddr, run_seed: u64) -> Result<Self> {
        let port = ports::free();
        let site_side = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).context("bind the link")?;
        site_side.set_read_timeout(Some(LOOK))?;
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            hub: Mutex::new(hub),
            random: Mutex::new(seed::generator(run_seed, "link")),
            flows: Mutex::default(),
            site_side,
            held: Mutex::default(),
            held_changed: Condvar::new(),
            busy_until: Mutex::new([Instant::now(); 2]),
            order: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            is_gone: AtomicBool::new(false),
        });
        let relay = Arc::clone(&shared);
        thread::spawn(move || relay.carry_up());
        let relay = Arc::clone(&shared);
        thread::spawn(move || relay.release_held());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("bind the link")?;
        tcp::start(Arc::clone(&shared), listener)?;
        Ok(Self { port, shared })
    }

    /// What the site dials.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Changes the faults.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.shared.faults));
    }

    /// Nothing passes any more; nobody is told.
    pub fn cut(&self) {
        self.set(|faults| (faults.is_up_cut, faults.is_down_cut) = (true, true));
    }

    /// All faults end.
    pub fn heal(&self) {
        self.set(|faults| *faults = Faults::default());
    }

    /// As a NAT that forgot its table: datagrams go on, from another port, and what the hub sends to the
    /// old one is lost.
    pub fn forget(&self) {
        lock(&self.shared.flows).clear();
    }

    /// From here on datagrams go to another hub.
    pub fn redirect(&self, hub: SocketAddr) {
        *lock(&self.shared.hub) = hub;
        self.forget();
    }

    /// Bytes on the wire so far, from the site and to it, IP and UDP headers included.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.shared.bytes_up), read(&self.shared.bytes_down))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.is_gone.store(true, Ordering::Relaxed);
        self.shared.held_changed.notify_all();
    }
}

impl Shared {
    fn carry_up(self: &Arc<Self>) {
        let mut buffer = vec![0; DATAGRAM];
        while !self.is_gone.load(Ordering::Relaxed) {
            let Ok((length, site)) = self.site_side.recv_from(&mut buffer) else {
                continue;
            };
            let Some(hub_side) = self.flow(site) else {
                continue;
            };
            self.pass(Direction::Up, &buffer[..length], &hub_side, None);
        }
    }

    fn carry_down(self: &Arc<Self>, hub_side: &Arc<UdpSocket>, site: SocketAddr) {
        let to_site = Arc::new(self.site_side.try_clone().expect("clone a socket"));
        let mut buffer = vec![0; DATAGRAM];
        let is_current = || {
            lock(&self.flows)
                .get(&site)
                .is_some_and(|flow| Arc::ptr_eq(flow, hub_side))
        };
        while !self.is_gone.load(Ordering::Relaxed) && is_current() {
            let Ok(length) = hub_side.recv(&mut buffer) else {
                continue;
            };
            if is_current() {
                self.pass(Direction::Down, &buffer[..length], &to_site, Some(site));
            }
        }
    }

    fn flow(self: &Arc<Self>, site: SocketAddr) -> Option<Arc<UdpSocket>> {
        let mut flows = lock(&self.flows);
        if let Some(flow) = flows.get(&site) {
            return Some(Arc::clone(flow));
        }
        let flow = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        flow.connect(*lock(&self.hub)).ok()?;
        flow.set_read_timeout(Some(LOOK)).ok()?;
        let flow = Arc::new(flow);
        flows.insert(site, Arc::clone(&flow));
        let (relay, hub_side) = (Arc::clone(self), Arc::clone(&flow));
        thread::spawn(move || relay.carry_down(&hub_side, site));
        Some(flow)
    }

    fn pass(
        &self,
        direction: Direction,
        datagram: &[u8],
        from: &Arc<UdpSocket>,
        to: Option<SocketAddr>,
    ) {
        let faults = lock(&self.faults).clone();
        let counter = match direction {
            Direction::Up => &self.bytes_up,
            Direction::Down => &self.bytes_down,
        };
        let size = u64::try_from(datagram.len()).unwrap_or_default() + HEADERS;
        let is_cut = match direction {
            Direction::Up => faults.is_up_cut,
            Direction::Down => faults.is_down_cut,
        };
        if direction == Direction::Up || !is_cut {
            counter.fetch_add(size, Ordering::Relaxed);
        }
        let (is_lost, copies, delay) = {
            let mut random = lock(&self.random);
            let mut happens = |share: f64| share > 0.0 && random.random_bool(share.min(1.0));
            let is_lost = faults.is_udp_blocked
                || happens(faults.loss)
                || faults.mtu.is_some_and(|mtu| datagram.len() > mtu);
            let copies = if happens(faults.duplicate) { 2 } else { 1 };
            let mut delay = faults.delay;
            if happens(faults.reorder) {
                delay += Duration::from_millis(5) + faults.delay;
            }
            (
                is_lost,
                copies,
                delay + faults.jitter.mul_f64(random.random::<f64>()),
            )
        };
        if is_cut || is_lost {
            return;
        }
        let Some(in_queue) = self.queue(direction, size, &faults) else {
            return;
        };
        let delay = delay + in_queue;
        for _ in 0..copies {
            if delay.is_zero() {
                send(from, datagram, to);
            } else {
                self.hold(delay, datagram, from, to);
            }
        }
    }

    /// How long a datagram takes behind those before it and onto the link; `None` when it does not fit.
    fn queue(&self, direction: Direction, size: u64, faults: &Faults) -> Option<Duration> {
        let Some(rate) = faults.rate.filter(|rate| *rate > 0) else {
            return Some(Duration::ZERO);
        };
        let now = Instant::now();
        let mut busy_until = lock(&self.busy_until);
        let busy_until = &mut busy_until[direction as usize];
        let start = (*busy_until).max(now);
        if start - now > faults.queue {
            return None;
        }
        *busy_until = start + Duration::from_micros(size * 1_000_000 / rate);
        Some(*busy_until - now)
    }

    fn hold(
        &self,
        delay: Duration,
        datagram: &[u8],
        from: &Arc<UdpSocket>,
        to: Option<SocketAddr>,
    ) {
        let held = Held {
            due: Instant::now() + delay,
            order: self.order.fetch_add(1, Ordering::Relaxed),
            datagram: datagram.to_vec(),
            from: Arc::clone(from),
            to,
        };
        lock(&self.held).push(Reverse(held));
        self.held_changed.notify_one();
    }

    fn release_held(&self) {
        let mut held = lock(&self.held);
        while !self.is_gone.load(Ordering::Relaxed) {
            let now = Instant::now();
            let wait = match held.peek() {
                Some(Reverse(first)) if first.due <= now => {
                    if let Some(Reverse(first)) = held.pop() {
                        send(&first.from, &first.datagram, first.to);
                    }
                    continue;
                }
                Some(Reverse(first)) => first.due - now,
                None => LOOK,
            };
            held = match self.held_changed.wait_timeout(held, wait.min(LOOK)) {
                Ok((held, _)) => held,
                Err(_) => return,
            };
        }
    }
}

/// A datagram that the far side refuses (nobody listens) is a datagram lost.
fn send(from: &UdpSocket, datagram: &[u8], to: Option<SocketAddr>) {
    let _lost = match to {
        Some(to) => from.send_to(datagram, to),
        None => from.send(datagram),
    };
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo_hub() -> SocketAddr {
        let hub = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = hub.local_addr().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = hub.recv_from(&mut buffer) {
                hub.send_to(&buffer[..length], from).unwrap();
            }
        });
        address
    }

    fn site(link: &Link) -> UdpSocket {
        let site = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        site.connect(link.address()).unwrap();
        site.set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        site
    }

    fn echoes(site: &UdpSocket, count: u16) -> Vec<u16> {
        for number in 0..count {
            site.send(&number.to_be_bytes()).unwrap();
        }
        let mut seen = Vec::new();
        let mut buffer = [0; 16];
        while let Ok(2) = site.recv(&mut buffer) {
            seen.push(u16::from_be_bytes([buffer[0], buffer[1]]));
        }
        seen
    }

    #[test]
    fn a_healthy_link_passes_everything_both_ways_and_counts_it() {
        let link = Link::start(echo_hub(), 1).unwrap();
        let expected: Vec<u16> = (0..50).collect();
        assert_eq!(echoes(&site(&link), 50), expected);
        assert_eq!(link.bytes(), (50 * 30, 50 * 30));
    }

    #[test]
    fn a_cut_link_passes_nothing_until_it_heals() {
        let link = Link::start(echo_hub(), 1).unwrap();
        let site = site(&link);
        link.cut();
        assert!(echoes(&site, 5).is_empty());
        link.heal();
        assert_eq!(echoes(&site, 3), [0, 1, 2]);
    }

    #[test]
    fn a_thin_link_takes_its_time_and_drops_what_its_queue_does_not_hold() {
        let link = Link::start(echo_hub(), 1).unwrap();
        let site = site(&link);
        link.set(|faults| {
            faults.rate = Some(3_000);
            faults.queue = Duration::from_millis(100);
        });
        let began = Instant::now();
        let seen = echoes(&site, 40);
        // 30 bytes each: one in 10 ms, and ten that wait
        assert!(seen.len() >= 10 && seen.len() < 30, "{seen:?}");
        assert!(seen.is_sorted());
        assert!(began.elapsed() > Duration::from_millis(100));
    }

    #[test]
    fn loss_duplication_and_reordering_happen() {
        let link = Link::start(echo_hub(), 7).unwrap();
        let site = site(&link);
        link.set(|faults| faults.loss = 0.5);
        assert!(echoes(&site, 50).len() < 40);
        link.set(|faults| {
            *faults = Faults {
                duplicate: 1.0,
                ..Faults::default()
            }
        });
        assert_eq!(echoes(&site, 5).len(), 20);
        link.set(|faults| {
            *faults = Faults {
                reorder: 0.3,
                ..Faults::default()
            }
        });
        let seen = echoes(&site, 50);
        assert_eq!(seen.len(), 50);
        assert!(!seen.is_sorted());
    }
}
