//! TCP under a path's policy: asked before each write, counted by what the kernel says.
//!
//! What is handed to the kernel is counted as it is handed over, in segments of the usual size. What the kernel
//! sends on its own (acknowledgements, repetitions) and what comes in is seen in its counters, and made up for
//! whenever they are read. A connection that doesn't come about has no counters: what it costs is reckoned
//! ([`Knock`]), with a SYN each second, as often as a kernel repeats it at most.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared::transport::{LinkStats, Pacer};

use tokio::time::Instant;

use super::shaper::{Packets, Shaper, Timer};

/// Payload of a full segment, with time stamps; and what is written for each, so that it fits with what TLS puts
/// around it.
const SEGMENT: usize = 1_448;
const PIECE: usize = 1_388;

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
    /// For a connection whose first packet was counted.
    pub(super) fn new(shaper: Arc<Shaper>, peer: SocketAddr) -> Self {
        Self {
            shaper,
            peer,
            sent: AtomicU64::new(Packets::tcp_syn(1, peer).bytes),
            received: AtomicU64::new(0),
        }
    }
}

/// A TCP connection that may come about. When it is dropped, what the kernel repeated is counted.
#[derive(Debug)]
pub(super) struct Knock<'a> {
    shaper: &'a Shaper,
    peer: SocketAddr,
    began: Instant,
    is_open: bool,
}

impl<'a> Knock<'a> {
    /// Waits until the first packet may leave, and counts it.
    pub(super) async fn begin(shaper: &'a Shaper, peer: SocketAddr) -> Self {
        shaper.admit(Packets::tcp_syn(1, peer)).await;
        Self {
            shaper,
            peer,
            began: Instant::now(),
            is_open: false,
        }
    }

    /// The connection is up, and has counters of its own.
    pub(super) fn open(mut self) {
        self.is_open = true;
    }

    /// Nobody listens there.
    pub(super) fn refused(self) {
        self.shaper.received(Packets::tcp_rst(self.peer));
    }
}

impl Drop for Knock<'_> {
    fn drop(&mut self) {
        let repeats = repeats(self.began.elapsed());
        if !self.is_open && repeats > 0 {
            self.shaper
                .sent_already(Packets::tcp_syn(repeats, self.peer));
        }
    }
}

/// SYNs behind the first.
const fn repeats(elapsed: Duration) -> u64 {
    elapsed.as_secs()
}

impl Pacer for TcpPacer {
    fn ready(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let mut timer = Timer::default();
            poll_fn(|context| self.shaper.poll_ready(&mut timer, context)).await;
        })
    }

    fn most(&self) -> usize {
        self.shaper.max_segments().saturating_mul(PIECE)
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

#[cfg(test)]
mod tests {
    use shared::units::BitRate;

    use super::*;

    #[tokio::test]
    async fn what_is_written_at_once_is_counted_as_the_segments_that_it_takes() {
        let peer = "192.0.2.1:7443".parse().unwrap();
        let shaper = Arc::new(Shaper::new());
        shaper.set_rates(Some(BitRate::kbit(256)), None);
        let pacer = TcpPacer::new(Arc::clone(&shaper), peer);
        let tls_record = 22;
        assert_eq!(pacer.most(), PIECE, "one at a slow rate");
        pacer.sent(pacer.most() + tls_record);
        assert_eq!(shaper.traffic().sent, (PIECE + tls_record) as u64 + 52);
    }

    #[tokio::test]
    async fn a_connection_that_does_not_come_about_is_counted() {
        let shaper = Shaper::new();
        let peer = "192.0.2.1:7443".parse().unwrap();
        let mut knock = Knock::begin(&shaper, peer).await;
        assert_eq!(shaper.traffic().sent, 60);
        knock.began -= Duration::from_secs(3);
        drop(knock);
        assert_eq!(shaper.traffic().sent, 4 * 60);
        Knock::begin(&shaper, peer).await.refused();
        assert_eq!(
            (shaper.traffic().sent, shaper.traffic().received),
            (300, 40)
        );
        Knock::begin(&shaper, peer).await.open();
        assert_eq!(shaper.traffic().sent, 360);
        // what the connection's own counters say then includes the first packet
        let pacer = TcpPacer::new(Arc::new(Shaper::new()), peer);
        let stats = LinkStats {
            tx_bytes: 112,
            ..LinkStats::default()
        };
        pacer.observe(&stats);
        assert_eq!(pacer.shaper.traffic().sent, 52);
    }
}
