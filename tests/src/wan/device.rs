//! What the laboratory asks of the kernel: TUN devices, namespaces of threads, punctual wake-ups.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Where the kernel hands out TUN devices.
const TUN: &str = "/dev/net/tun";

/// The network namespace of the calling thread becomes this one. For threads that end soon after.
pub(super) fn enter(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    #[expect(unsafe_code, reason = "no safe setns in std")]
    // SAFETY: the descriptor is open; only this thread's namespace changes.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// A TUN device in the calling thread's namespace; IP packets, nothing in front of them, never blocking.
pub(super) fn tun(name: &str) -> Result<File> {
    if name.len() >= libc::IFNAMSIZ {
        bail!("interface name `{name}` is too long");
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
        .with_context(|| format!("open {TUN}: the WAN laboratory needs root and TUN devices"))?;
    #[expect(unsafe_code, reason = "TUNSETIFF is an ioctl")]
    // SAFETY: ifreq is plain data, all zero is a value; the ioctl reads and writes within it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request))
            .with_context(|| format!("make TUN device `{name}`"))?;
    }
    Ok(file)
}

/// Precise timers for this thread and, where the system lets it, precedence over ordinary ones.
pub(super) fn be_punctual() {
    #[expect(unsafe_code, reason = "scheduling is libc's")]
    // SAFETY: both calls concern the calling thread and read their arguments only. Refused, packets may
    // come late, which is counted.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize);
        let priority = libc::sched_param { sched_priority: 1 };
        libc::sched_setscheduler(0, libc::SCHED_RR, &priority);
    }
}

/// Wakes a thread that waits in [`wait`].
#[derive(Debug)]
pub(super) struct Bell(File);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        #[expect(unsafe_code, reason = "eventfd is libc's")]
        // SAFETY: a new descriptor that nobody else owns.
        let file = unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            check(fd)?;
            File::from(OwnedFd::from_raw_fd(fd))
        };
        Ok(Self(file))
    }

    pub(super) fn ring(&self) {
        // it fails when it has been rung four thousand million million million times unheard
        let _rung = (&self.0).write_all(&1_u64.to_ne_bytes());
    }

    fn hush(&self) {
        let _silent = (&self.0).read(&mut [0; 8]);
    }
}

/// Until a device has a packet, the bell rings, or the time is over.
pub(super) fn wait(devices: [&File; 2], bell: &Bell, limit: Option<Duration>) {
    let listen = |file: &File| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut files = [listen(devices[0]), listen(devices[1]), listen(&bell.0)];
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    #[expect(unsafe_code, reason = "ppoll is libc's")]
    // SAFETY: both pointers are to locals that outlive the call; null is no limit.
    unsafe {
        libc::ppoll(files.as_mut_ptr(), 3, limit, std::ptr::null());
    }
    bell.hush();
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
