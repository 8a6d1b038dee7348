//! Whole systems against their peers, in the same run on the same machine.
//!
//! `make bench` runs [`rows`](crate::results::Row) one after the other and writes
//! `benches/results.json` and the table of `benches/README.md`. What counts is the ratio: both sides ran
//! under the same conditions. A row that misses its goal says so.

pub mod alarm;
pub mod append;
pub mod bytes;
pub mod crowd;
pub mod drain;
pub mod fetch;
pub mod field;
pub mod fleet;
pub mod hub;
pub mod images;
pub mod latency;
pub mod load;
pub mod memory;
pub mod mirror;
pub mod mqtt;
pub mod outage;
pub mod plot;
pub mod rates;
pub mod results;
pub mod streams;
pub mod wan;
pub mod wire;
