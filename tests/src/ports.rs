//! Ports for processes that must come back on the same port after a kill.
//!
//! They lie below 32768: a port of the ephemeral range can be taken by somebody's outgoing connection
//! while its owner is down, and then the restart can't bind.

use std::collections::HashSet;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, OnceLock};

use rand::RngExt as _;

/// A port that was free for TCP and UDP a moment ago and that this process has not given out before.
///
/// # Panics
/// When the machine has no free port left.
#[must_use]
pub fn free() -> u16 {
    static GIVEN: OnceLock<Mutex<HashSet<u16>>> = OnceLock::new();
    let given = GIVEN.get_or_init(Mutex::default);
    for _ in 0..10_000 {
        let port = rand::rng().random_range(20_000..32_000);
        let is_free = TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if is_free && given.lock().expect("no holder panics").insert(port) {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}
