//! The kernel's side of a TCP connection: options that suit a link, and its counters.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::SockRef;

use crate::transport::LinkStats;

/// Bytes that the kernel holds beyond what it has sent: what is handed over later waits behind them.
const NOT_SENT: u32 = 8 << 10;
/// A link that comes back is tried at least this often (Linux 6.15 and later; elsewhere the kernel doubles
/// its waits up to two minutes).
const LONGEST_REPEAT: Duration = Duration::from_secs(2);
/// Not in libc yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;
/// Fills a lossy link where CUBIC starves; used when the kernel has it.
const CONTROLLER: &[u8] = b"bbr";

const IPV4: u64 = 20;
const IPV6: u64 = 40;
const TCP: u64 = 20;
const TIMESTAMPS: u64 = 12;
/// `TCPI_OPT_TIMESTAMPS`.
const HAS_TIMESTAMPS: u8 = 1;

/// Sets what suits a link that comes and goes. What a kernel does not know is left as it is.
pub fn tune<S: AsRawFd + std::os::fd::AsFd>(socket: &S, idle_timeout: Duration) {
    let options = SockRef::from(socket);
    for (option, outcome) in [
        ("TCP_NODELAY", options.set_tcp_nodelay(true)),
        (
            "TCP_USER_TIMEOUT",
            options.set_tcp_user_timeout(Some(idle_timeout)),
        ),
        ("TCP_NOTSENT_LOWAT", options.set_tcp_notsent_lowat(NOT_SENT)),
        ("TCP_CONGESTION", options.set_tcp_congestion(CONTROLLER)),
        ("TCP_RTO_MAX_MS", set_longest_repeat(socket)),
    ] {
        if let Err(error) = outcome {
            tracing::debug!(option, %error, "TCP option is not to be had");
        }
    }
}

#[expect(unsafe_code, reason = "neither std nor socket2 has this option")]
fn set_longest_repeat(socket: &impl AsRawFd) -> std::io::Result<()> {
    let millis = libc::c_int::try_from(LONGEST_REPEAT.as_millis()).unwrap_or(libc::c_int::MAX);
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open for as long as `socket` is borrowed; `millis` and its size fit.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const millis).cast(),
            len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// The kernel's counters as [`LinkStats`]; all zero when it has none.
pub(super) fn stats(socket: BorrowedFd<'_>, remote: IpAddr) -> LinkStats {
    let Some(info) = info(socket) else {
        return LinkStats::default();
    };
    let is_v4 = remote.to_canonical().is_ipv4();
    let stamps = if info.tcpi_options & HAS_TIMESTAMPS == 0 {
        0
    } else {
        TIMESTAMPS
    };
    let headers = TCP + stamps + if is_v4 { IPV4 } else { IPV6 };
    let micros = |micros: u32| Duration::from_micros(micros.into());
    LinkStats {
        tx_bytes: info.tcpi_bytes_sent + headers * u64::from(info.tcpi_segs_out),
        rx_bytes: info.tcpi_bytes_received + headers * u64::from(info.tcpi_segs_in),
        tx_packets: info.tcpi_segs_out.into(),
        asked: info.tcpi_data_segs_out.into(),
        heard: info.tcpi_segs_in.into(),
        rtt: micros(info.tcpi_rtt),
        // the kernel says "never" with the largest number
        min_rtt: micros(info.tcpi_min_rtt.min(info.tcpi_rtt)),
        window: u64::from(info.tcpi_snd_cwnd) * u64::from(info.tcpi_snd_mss),
        unsent: 0,
        lost: info.tcpi_total_retrans.into(),
        mtu: u16::try_from(info.tcpi_pmtu).unwrap_or(u16::MAX),
    }
}

#[expect(unsafe_code, reason = "neither std nor socket2 reads TCP_INFO")]
fn info(socket: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    // SAFETY: all fields are numbers, for which zero bytes are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `len` bytes
    // to `info`. An older kernel writes fewer, and the rest stays zero.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(info)
}
