//! The command `hub-node`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tikv_jemallocator::Jemalloc;

/// librdkafka allocates eight times for a record with the hub's headers, in one thread, and frees in
/// another; this also takes the place of its `malloc`, where glibc's costs a third of the hub's work.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// How long what blocks may take once everything has stopped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    hub_node::cli::main(|config, cluster, file| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        let outcome = runtime.block_on(hub_node::app::run(config, cluster, file));
        // a call of librdkafka may block for long when Kafka is down; nothing depends on its end
        runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
        outcome
    })
}
