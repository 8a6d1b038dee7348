//! The one process at a remote site: a durable log, the protocols that local producers speak, and the
//! uplink to the hub.

pub mod access;
pub mod admin;
pub mod app;
pub mod base64;
pub mod bytes;
pub mod cli;
pub mod config;
pub mod egress;
pub mod http;
pub mod ingest;
pub mod kafka;
pub mod memory;
pub mod metrics;
pub mod mqtt;
pub mod quota;
pub mod seldom;
pub mod status;
pub mod store;
pub mod tls;
pub mod uplink;
pub mod waiters;
