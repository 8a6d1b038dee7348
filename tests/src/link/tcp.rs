//! The relay for TCP. What is cut stands still: neither end hears of it, as on a link that went away.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::Result;

use super::{Direction, LOOK, Shared, lock};

/// Bytes carried at a time.
const CHUNK: usize = 16 << 10;
/// IPv4 and TCP headers with timestamps, for each chunk: an estimate.
const HEADERS: u64 = 52;

pub(super) fn start(shared: Arc<Shared>, listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        while !shared.is_gone.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((site, _)) => {
                    let relay = Arc::clone(&shared);
                    thread::spawn(move || relay.carry_tcp(site));
                }
                Err(_) => thread::sleep(LOOK / 10),
            }
        }
    });
    Ok(())
}

impl Shared {
    fn is_tcp_cut(&self, direction: Direction) -> bool {
        let faults = lock(&self.faults);
        let is_cut = match direction {
            Direction::Up => faults.is_up_cut,
            Direction::Down => faults.is_down_cut,
        };
        is_cut || faults.is_tcp_blocked
    }

    /// Returns too when the link is gone; the ends then close.
    fn wait_for_tcp(&self, direction: Direction) {
        while self.is_tcp_cut(direction) && !self.is_gone.load(Ordering::Relaxed) {
            thread::sleep(LOOK / 10);
        }
    }

    fn carry_tcp(self: &Arc<Self>, site: TcpStream) {
        self.wait_for_tcp(Direction::Up);
        let hub_address = *lock(&self.hub);
        let Ok(hub) = TcpStream::connect(hub_address) else {
            return;
        };
        for stream in [&site, &hub] {
            let ready = (
                stream.set_nonblocking(false),
                stream.set_nodelay(true),
                stream.set_read_timeout(Some(LOOK)),
            );
            if !matches!(ready, (Ok(()), Ok(()), Ok(()))) {
                return;
            }
        }
        let (Ok(site_read), Ok(hub_read)) = (site.try_clone(), hub.try_clone()) else {
            return;
        };
        let relay = Arc::clone(self);
        thread::spawn(move || relay.copy(site_read, hub, Direction::Up));
        self.copy(hub_read, site, Direction::Down);
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, direction: Direction) {
        let counter = match direction {
            Direction::Up => &self.bytes_up,
            Direction::Down => &self.bytes_down,
        };
        let mut buffer = vec![0; CHUNK];
        while !self.is_gone.load(Ordering::Relaxed) {
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    continue;
                }
                Err(_) => break,
            };
            self.wait_for_tcp(direction);
            let size = u64::try_from(length).unwrap_or_default() + HEADERS;
            counter.fetch_add(size, Ordering::Relaxed);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        for stream in [&from, &to] {
            let _gone = stream.shutdown(Shutdown::Both);
        }
    }
}
