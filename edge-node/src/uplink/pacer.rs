//! TCP under a path's policy: asked before each write, counted by what the kernel says.
//!
//! What is handed to the kernel is counted as it is handed over, in segments of the usual size. What the kernel
//! sends on its own (acknowledgements, repetitions) and what comes in is seen in its counters, and made up for
//! whenever they are read.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::transport::{LinkStats, Pacer};

use super::shaper::{Packets, Shaper, Timer};

/// Payload of a full segment, with time stamps.
const SEGMENT: usize = 1_388;

/// Holds one TCP connection back.
#[derive(Debug)]
pub(super) struct TcpPacer {
    shaper: Arc<Shaper>,
    peer: SocketAddr,
    /// Bytes of IP packets that the shaper was told of.
    sent: AtomicU64,
    received: AtomicU64,
}

impl TcpPacer {
    pub(super) const fn new(shaper: Arc<Shaper>, peer: SocketAddr) -> Self {
        Self {
            shaper,
            peer,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }
}

impl Pacer for TcpPacer {
    fn ready(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let mut timer = Timer::default();
            poll_fn(|context| self.shaper.poll_ready(&mut timer, context)).await;
        })
    }

    fn most(&self) -> usize {
        self.shaper.max_segments().saturating_mul(SEGMENT)
    }

    fn sent(&self, bytes: usize) {
        let segments = bytes.div_ceil(SEGMENT) as u64;
        let packets = Packets::tcp(segments, bytes as u64, self.peer);
        self.sent.fetch_add(packets.bytes, Ordering::Relaxed);
        self.shaper.sent_already(packets);
    }

    fn observe(&self, stats: &LinkStats) {
        let more = |told: &AtomicU64, seen: u64| {
            let before = told.fetch_max(seen, Ordering::Relaxed);
            seen.saturating_sub(before)
        };
        let sent = more(&self.sent, stats.tx_bytes);
        if sent > 0 {
            self.shaper.sent_already(Packets {
                count: 1,
                bytes: sent,
            });
        }
        let received = more(&self.received, stats.rx_bytes);
        if received > 0 {
            self.shaper.received(Packets {
                count: 1,
                bytes: received,
            });
        }
    }
}
