//! System tests: real processes, real clients, a real broker. They are slow and share the machine, so a
//! plain `cargo test` leaves them out; `make test` runs them serially with
//! `cargo test -p system-tests --test scenarios -- --ignored --test-threads=1`.

#![allow(
    clippy::unwrap_in_result,
    clippy::panic_in_result_fn,
    reason = "a scenario asserts and returns errors, whichever reads better"
)]

mod bare_broker;
mod chaos;
mod classes;
mod clocks;
mod commands;
mod crowds;
mod disk;
mod hostile;
mod http;
mod identity;
mod ingress;
mod kafka_clients;
mod kafka_tools;
mod kills;
mod large_values;
mod links;
mod live_first;
mod main_path;
mod mqtt_both;
mod mqtt_v3;
mod mqtt_v5;
mod policy;
mod quotas;
mod secured;
mod transport;
mod wan;
