//! Waiting for a state with a deadline: polled, never slept through.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Polls `look` until it answers something.
///
/// # Errors
/// When `limit` passes first; the message says what was waited for.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(STEP);
    }
}

/// Polls `holds` until it is true.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || holds().then_some(()))
}

/// Lets a load or a fault last for a while. This is the length of an experiment, not a wait for a state.
pub fn let_run(time: Duration) {
    thread::sleep(time);
}
