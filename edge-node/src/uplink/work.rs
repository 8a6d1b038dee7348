//! How much of a processor's time the calling thread has had.

use std::time::Duration;

/// Since the thread began; `None` where the system does not say.
#[expect(unsafe_code, reason = "std has no clock of a thread's work")]
pub(super) fn thread_time() -> Option<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec` to `time` and nothing else.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let secs = u64::try_from(time.tv_sec).ok()?;
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    (result == 0).then(|| Duration::new(secs, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_and_waiting_takes_none() {
        let before = thread_time().unwrap();
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        let _timeout = never.recv_timeout(Duration::from_millis(50));
        let waited = thread_time().unwrap();
        assert!(waited - before < Duration::from_millis(40));
        let mut sum = 0_u64;
        while thread_time().unwrap() - waited < Duration::from_millis(1) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
