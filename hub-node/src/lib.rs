//! Beside the central Kafka cluster: takes what the sites send and commits it exactly once.

pub mod commit;
pub mod config;
pub mod sink;
