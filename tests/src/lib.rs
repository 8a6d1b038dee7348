//! The harness of the system tests: real processes, real clients, a real Kafka broker.
//!
//! A scenario starts a [`broker::Broker`], a [`hub::Hub`] and one or more [`site::Site`]s with a
//! [`link::Link`] between them, lets [`writer`]s write numbered records and keep what was acknowledged,
//! injects faults, and asks the [`oracle`] whether the central topics hold each acknowledged record
//! exactly once and in order. The ledger is kept here, outside the product.
//!
//! Nothing sleeps to wait for a state: [`wait`] polls with a deadline. Every random run prints its seed;
//! `KEDGE_SEED` replays it.

#![allow(
    clippy::unwrap_in_result,
    clippy::panic_in_result_fn,
    reason = "a harness may panic: a failed run is its result"
)]

pub mod admin;
pub mod broker;
pub mod central;
pub mod chaos;
pub mod clients;
pub mod clock;
pub mod cutter;
pub mod dialog;
pub mod firmware;
pub mod flock;
pub mod hub;
pub mod images;
#[cfg(test)]
mod installed;
pub mod kafka_node;
pub mod link;
pub mod matrix;
pub mod mqtt;
pub mod oracle;
pub mod paths;
pub mod ports;
pub mod power;
pub mod process;
pub mod raw;
pub mod record;
pub mod rogue;
pub mod seed;
pub mod settings;
pub mod site;
pub mod stage;
pub mod users;
pub mod volume;
pub mod wait;
pub mod wan;
pub mod writer;
