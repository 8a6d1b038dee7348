//! The command `edge-node`.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_node::cli::main(|_| anyhow::bail!("not wired yet"))
}
