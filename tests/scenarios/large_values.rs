//! Images through the whole system: every byte of them, and few bytes the second time.

use anyhow::{Result, ensure};
use system_tests::broker::Broker;
use system_tests::images::Gallery;
use system_tests::{firmware, seed};

const VERSIONS: usize = 4;
const IMAGE_BYTES: usize = 2_000_000;

/// What both ends hold of large values outlives a kill of both.
#[test]
#[ignore = "system test: make test"]
fn images_arrive_byte_exact_and_cost_little_once_more_after_both_ends_were_killed() -> Result<()> {
    let images = firmware::versions(VERSIONS, IMAGE_BYTES);
    let mut gallery = Gallery::open(Broker::shared())?;
    let first = gallery.send(&images)?;
    gallery.kill_both()?;
    let again = gallery.send(&images)?;
    seed::say(&format!("images: {first} bytes, then {again}"));
    ensure!(again * 10 < first, "{first} bytes, then {again}");
    Ok(())
}
