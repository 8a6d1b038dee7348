//! The command `hub-node`.

use std::process::ExitCode;

use anyhow::Context as _;

fn main() -> ExitCode {
    hub_node::cli::main(|config, cluster| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(hub_node::app::run(config, cluster))
    })
}
