//! What the site's `edge-node` and the data centre's `hub-node` have in common.
//!
//! The core is plain code: it takes bytes, `now` and a random generator as arguments and returns
//! values. It has no async, no clock, no socket and no lock, and it builds without tokio. What needs
//! a runtime (tasks, config files, telemetry, TLS) stands behind the feature `runtime`; the core never
//! uses that half.

pub mod batch;
pub mod class;
pub mod dedup;
pub mod history;
pub mod ids;
pub mod link;
pub mod pace;
pub mod partitioner;
pub mod record;
pub mod retry;
pub mod units;
pub mod wire;

#[cfg(feature = "runtime")]
pub mod admin;
#[cfg(feature = "runtime")]
pub mod cli;
#[cfg(feature = "runtime")]
pub mod config;
#[cfg(feature = "runtime")]
pub mod congestion;
#[cfg(feature = "runtime")]
pub mod crashsafe;
#[cfg(feature = "runtime")]
pub mod metrics;
#[cfg(feature = "runtime")]
pub mod policy;
#[cfg(feature = "runtime")]
pub mod tasks;
#[cfg(feature = "runtime")]
pub mod telemetry;
#[cfg(feature = "runtime")]
pub mod time;
#[cfg(feature = "runtime")]
pub mod tls;
#[cfg(feature = "runtime")]
pub mod transport;
