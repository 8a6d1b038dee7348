//! Beside the central Kafka cluster: takes what the sites send and commits it exactly once.

pub mod admin;
pub mod app;
pub mod certs;
pub mod chunks;
pub mod cli;
pub mod commit;
pub mod config;
pub mod intake;
pub mod metrics;
pub mod reloads;
pub mod sink;
pub mod sites;
pub mod status;
