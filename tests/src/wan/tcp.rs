//! What std does not tell of a TCP connection.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

/// `struct tcp_info` of Linux: where these two counters stand, and how much of it is read.
const BYTES_SENT: usize = 200;
const BYTES_RESENT: usize = 208;
const INFO_BYTES: usize = 216;

/// Bytes of payload that a connection has sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// All, those sent again too.
    pub bytes: u64,
    /// Those sent again.
    pub resent: u64,
}

/// The kernel's controller of this name from here on.
///
/// # Errors
/// When the kernel does not have it.
pub fn control(stream: &TcpStream, name: &str) -> io::Result<()> {
    let length = libc::socklen_t::try_from(name.len()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "TCP_CONGESTION is not in std")]
    // SAFETY: the option is read from a slice of that length; the descriptor is open.
    let code = unsafe {
        let value = name.as_ptr().cast();
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            value,
            length,
        )
    };
    check(code)
}

/// What a connection has sent so far.
///
/// # Errors
/// When the kernel is older than 4.19 and does not count it.
pub fn sent(stream: &TcpStream) -> io::Result<Sent> {
    let mut info = [0_u8; INFO_BYTES];
    let mut length = libc::socklen_t::try_from(INFO_BYTES).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "TCP_INFO is not in std")]
    // SAFETY: the kernel writes at most `length` bytes into the array.
    let code = unsafe {
        let value = info.as_mut_ptr().cast();
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            value,
            &mut length,
        )
    };
    check(code)?;
    if usize::try_from(length).unwrap_or(0) < INFO_BYTES {
        return Err(io::Error::other(
            "the kernel does not count bytes sent again",
        ));
    }
    let counter = |at: usize| {
        let bytes = info.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    };
    Ok(Sent {
        bytes: counter(BYTES_SENT),
        resent: counter(BYTES_RESENT),
    })
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
