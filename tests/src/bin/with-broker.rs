//! Runs a command with a Kafka broker of its own: `with-broker cargo test -p hub-node`. The broker's
//! address is in `KAFKA_BOOTSTRAP`; a cluster that is named there already is used instead.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use system_tests::broker::Broker;
use system_tests::seed;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            seed::say(&format!("with-broker: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut arguments = env::args_os().skip(1);
    let program = arguments
        .next()
        .context("usage: with-broker COMMAND ARGUMENTS...")?;
    let broker = Broker::start()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("KAFKA_BOOTSTRAP", broker.bootstrap());
    Ok(command.status().context("run the command")?.success())
}
