//! Images of firmware through a real site, a real link and a real hub to Kafka, and the same ones once more
//! after both nodes were killed: what of it is on the link.
//!
//! The peer sends each image on its own through zstd's level 3, as a producer does; its headers, requests and
//! packets are not counted, ours are, both ways.

#![allow(clippy::print_stdout, reason = "a bench says how it went")]

use anyhow::Result;
use system_tests::broker::Broker;
use system_tests::firmware;
use system_tests::images::Gallery;

use crate::results::{Goal, Row};

const VERSIONS: usize = 20;
const IMAGE_BYTES: usize = 2_200_000;
const LEVEL: i32 = 3;

/// Measures the rows.
///
/// # Errors
/// When a system does not start, or an image does not arrive as it was.
pub fn rows() -> Result<Vec<Row>> {
    let images = firmware::versions(VERSIONS, IMAGE_BYTES);
    let raw: usize = images.iter().map(Vec::len).sum();
    let mut alone = 0;
    for image in &images {
        alone += zstd::bulk::compress(image, LEVEL)?.len();
    }
    let broker = Broker::start()?;
    let mut gallery = Gallery::open(&broker)?;
    let first = gallery.send(&images)?;
    gallery.kill_both()?;
    let again = gallery.send(&images)?;
    println!("    raw {raw}, zstd on each alone {alone}, first {first}, again {again} bytes");
    let row = |name: &str, bytes: u64, limit: f64| {
        #[expect(clippy::cast_precision_loss, reason = "megabytes")]
        let (ours, peer) = (bytes as f64 / 1e6, alone as f64 / 1e6);
        let peer = Some(("zstd -3 on each image alone", peer));
        Row::new(name, "MB", ours, peer, Goal::AtMost(limit))
    };
    Ok(vec![
        row(
            "44 MB of images, 20 versions with a tenth changed, on the link both ways",
            first,
            0.2,
        ),
        row(
            "the same images again after SIGKILL of both nodes",
            again,
            0.02,
        ),
    ])
}
