//! A relay between Kafka clients and a broker that can cut a connection at the worst moment: when a request
//! has been carried out and its answer is on the way.

use std::collections::HashSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use anyhow::{Context as _, Result};

/// The API key of Produce.
pub const PRODUCE: i16 = 0;

/// Longest frame that is carried.
const FRAME_LIMIT: u32 = 64 << 20;

/// The relay. It keeps its address while the broker behind it comes and goes.
#[derive(Debug)]
pub struct Cutter {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    target: Mutex<Option<SocketAddr>>,
    plan: Mutex<Plan>,
    is_gone: AtomicBool,
}

/// Which answers are lost.
#[derive(Debug, Default)]
struct Plan {
    api: i16,
    every: u32,
    left: u32,
    seen: u32,
    cuts: u32,
}

impl Plan {
    /// Whether the answer to this request is to be lost.
    fn dooms(&mut self, api: i16) -> bool {
        if api != self.api || self.left == 0 {
            return false;
        }
        self.seen += 1;
        let is_doomed = self.seen.is_multiple_of(self.every);
        self.left -= u32::from(is_doomed);
        is_doomed
    }
}

impl Cutter {
    /// Starts it, with nothing behind it.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", crate::ports::free())).context("bind")?;
        let address = listener.local_addr().context("ask for the address")?;
        let shared = Arc::new(Shared::default());
        let relay = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if relay.is_gone.load(Ordering::Relaxed) {
                    return;
                }
                relay.carry(client);
            }
        });
        Ok(Self { address, shared })
    }

    /// Where clients connect, and what the broker has to advertise.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts a broker behind it.
    ///
    /// # Errors
    /// When that is no address.
    pub fn aim(&self, broker: &str) -> Result<()> {
        let broker = broker.parse().with_context(|| broker.to_owned())?;
        *lock(&self.shared.target) = Some(broker);
        Ok(())
    }

    /// From here on the connection is closed instead of giving the answer to each `every`th request of an
    /// API, `times` times.
    pub fn lose_answers(&self, api: i16, every: u32, times: u32) {
        *lock(&self.shared.plan) = Plan {
            api,
            every,
            left: times,
            ..Plan::default()
        };
    }

    /// How many answers were lost since then.
    #[must_use]
    pub fn cuts(&self) -> u32 {
        lock(&self.shared.plan).cuts
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.shared.is_gone.store(true, Ordering::Relaxed);
        let _woken = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn carry(self: &Arc<Self>, client: TcpStream) {
        let target = *lock(&self.target);
        let Some(Ok(broker)) = target.map(TcpStream::connect) else {
            return;
        };
        let (Ok(to_client), Ok(to_broker)) = (client.try_clone(), broker.try_clone()) else {
            return;
        };
        let _best_effort = (client.set_nodelay(true), broker.set_nodelay(true));
        let doomed = Arc::new(Mutex::new(HashSet::new()));
        let (shared, marks) = (Arc::clone(self), Arc::clone(&doomed));
        thread::spawn(move || {
            let _ended = shared.carry_requests(&client, &broker, &marks);
            close(&client, &broker);
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let _ended = shared.carry_answers(&to_broker, &to_client, &doomed);
            close(&to_broker, &to_client);
        });
    }

    /// A request is its length, API key, version, correlation id, and the rest.
    fn carry_requests(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        doomed: &Mutex<HashSet<[u8; 4]>>,
    ) -> io::Result<()> {
        loop {
            let frame = read_frame(&mut from)?;
            if let Some((&[a, b, _, _, c, d, e, f], _)) = frame[4..].split_first_chunk::<8>()
                && lock(&self.plan).dooms(i16::from_be_bytes([a, b]))
            {
                lock(doomed).insert([c, d, e, f]);
            }
            to.write_all(&frame)?;
        }
    }

    /// An answer is its length, the request's correlation id, and the rest.
    fn carry_answers(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        doomed: &Mutex<HashSet<[u8; 4]>>,
    ) -> io::Result<()> {
        loop {
            let frame = read_frame(&mut from)?;
            let correlation = frame[4..].first_chunk::<4>();
            if correlation.is_some_and(|correlation| lock(doomed).contains(correlation)) {
                lock(&self.plan).cuts += 1;
                return Ok(());
            }
            to.write_all(&frame)?;
        }
    }
}

/// A frame with its length in front.
fn read_frame(from: &mut &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let bytes = u32::from_be_bytes(length);
    if bytes > FRAME_LIMIT {
        return Err(io::Error::other("a frame beyond all bounds"));
    }
    let mut frame = length.to_vec();
    frame.resize(4 + usize::try_from(bytes).map_err(io::Error::other)?, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}

fn close(one: &TcpStream, other: &TcpStream) {
    let _closed = (one.shutdown(Shutdown::Both), other.shutdown(Shutdown::Both));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_third_answer_of_one_api_is_lost_so_many_times() {
        let mut plan = Plan {
            every: 3,
            left: 2,
            ..Plan::default()
        };
        let doomed: Vec<_> = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
            .into_iter()
            .map(|api| plan.dooms(api))
            .collect();
        let lost = [
            false, false, false, true, false, false, true, false, false, false,
        ];
        assert_eq!(doomed, lost);
    }
}
