//! What the process keeps of the memory that it has freed.
//!
//! A burst of appends takes some 20 MiB of buffers. glibc keeps freed memory for the next burst, in an
//! arena for each thread, and would never give most of it back; so a site would hold for weeks what it
//! needed for a second. Here all threads share one arena, so that one's buffers serve the others; under
//! load nothing is given back, since pages that are faulted in again cost more than what is written
//! into them; and at intervals everything that is free goes back to the system.
//!
//! With another C library than glibc none of this is done.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Long against a burst, short against what an operator watches.
const TRIM_INTERVAL: Duration = Duration::from_secs(5);
/// Free memory at the end of the heap above which it is given back at once: a burst's worth.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 16 << 20;
/// Only larger buffers are mapped one by one. The largest value that glibc accepts.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: libc::c_int = 32 << 20;

/// Tells the allocator how to work. Call it before there are threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator has no safe interface")]
pub fn set_up() {
    // SAFETY: mallopt only sets parameters of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
    }
}

/// Tells the allocator how to work. Call it before there are threads.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn set_up() {}

/// Gives back what is free, at intervals, until `stop`.
///
/// # Errors
/// When the thread that does it panicked.
pub async fn give_back(stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TRIM_INTERVAL) => {}
            () = stop.cancelled() => return Ok(()),
        }
        // it walks the whole heap
        tokio::task::spawn_blocking(trim).await?;
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator has no safe interface")]
fn trim() {
    // SAFETY: malloc_trim may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_freed_between_things_in_use_goes_back() {
        set_up();
        let mut chunks: Vec<Vec<u8>> = (0..8192).map(|_| vec![1; 8 * 1024]).collect();
        let full = resident_kib();
        // every hundredth stays: the heap cannot shrink from its end
        let mut number = 0;
        chunks.retain(|_| {
            number += 1;
            number % 100 == 0
        });
        trim();
        let trimmed = resident_kib();
        // other tests run beside this one: of 64 MiB freed, most must be gone
        assert!(trimmed + 32 * 1024 < full, "{full} KiB, then {trimmed} KiB");
        assert!(chunks.iter().all(|chunk| chunk[0] == 1));
    }

    fn resident_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap()
    }
}
