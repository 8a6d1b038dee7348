//! The command `hub-node`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hub_node::cli::main(|_, _| anyhow::bail!("not wired yet"))
}
