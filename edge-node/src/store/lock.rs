//! Whether another process has a store open.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// RocksDB holds a lock (fcntl) on this file while a database is open.
const LOCK: &str = "LOCK";

/// Whether another process holds the database in `dir`. False when there is none.
#[expect(unsafe_code, reason = "std's locks are of another kind: flock")]
pub(super) fn is_held_elsewhere(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else {
        return false;
    };
    // SAFETY: all-zero bytes are a valid flock, which is made of integers: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = short(libc::F_WRLCK);
    lock.l_whence = short(libc::SEEK_SET);
    // SAFETY: `file` is open and `lock` valid for reads and writes while the call lasts.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    asked == 0 && i32::from(lock.l_type) != libc::F_UNLCK
}

fn short(constant: libc::c_int) -> libc::c_short {
    constant
        .try_into()
        .expect("constants of fcntl fit its own fields")
}
