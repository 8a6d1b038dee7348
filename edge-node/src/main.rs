//! The command `edge-node`.

use std::process::ExitCode;

use anyhow::Context as _;

fn main() -> ExitCode {
    edge_node::memory::set_up();
    edge_node::cli::main(|config| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(edge_node::app::run(config))
    })
}
