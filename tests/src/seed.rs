//! One number that decides everything random in a run.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// The seed of this run: `KEDGE_SEED`, or one from the clock. Printed, so that a failure can be replayed.
#[must_use]
pub fn announce(scenario: &str) -> u64 {
    let seed = asked().unwrap_or_else(fresh);
    say(&format!(
        "{scenario}: seed {seed} (replay with KEDGE_SEED={seed})"
    ));
    seed
}

/// `KEDGE_SEED`, when it is set.
#[must_use]
pub fn asked() -> Option<u64> {
    env::var("KEDGE_SEED").ok()?.parse().ok()
}

/// A generator for one use within a run: the same seed and name give the same numbers.
#[must_use]
pub fn generator(seed: u64, name: &str) -> StdRng {
    StdRng::seed_from_u64(seed ^ u64::from(crc32c::crc32c(name.as_bytes())))
}

/// A number that differs from run to run, for names that must not collide in a lasting cluster.
#[must_use]
pub fn fresh() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos() % 1_000_000_000_000).unwrap_or_default()
}

/// Prints one line for the person who watches the run.
#[expect(clippy::print_stdout, reason = "the harness talks to a person")]
pub fn say(line: &str) {
    println!("{line}");
}
