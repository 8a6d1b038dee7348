//! librdkafka's in-process mock cluster as the central cluster of a demonstration.
//!
//! It knows transactions' calls, but hides no aborted record, fences nobody, creates no topic through the
//! admin API and keeps a few megabytes a partition: it shows the main job without a JVM, and proves
//! nothing.

use std::sync::mpsc;
use std::thread;

use anyhow::Context as _;
use rdkafka::mocking::MockCluster;

/// A running mock cluster. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct EmbeddedCluster {
    bootstrap: String,
    /// The cluster's thread waits for this to go.
    _running: mpsc::Sender<()>,
}

impl EmbeddedCluster {
    /// Starts a cluster of one broker on a port of its choice, with these topics and partitions. The
    /// crate's handle stays on one thread.
    pub(super) fn start(topics: Vec<(String, i32)>) -> anyhow::Result<Self> {
        let (running, stopped) = mpsc::channel::<()>();
        let (started, bootstrap) = mpsc::channel();
        thread::Builder::new()
            .name("embedded-cluster".into())
            .spawn(move || {
                let cluster = MockCluster::new(1).and_then(|cluster| {
                    for (topic, partitions) in &topics {
                        cluster.create_topic(topic, *partitions, 1)?;
                    }
                    Ok(cluster)
                });
                let address = match &cluster {
                    Ok(cluster) => Ok(cluster.bootstrap_servers()),
                    Err(error) => Err(error.to_string()),
                };
                let _gone = started.send(address);
                // returns once the sender is dropped
                let _dropped = stopped.recv();
                drop(cluster);
            })?;
        let bootstrap = bootstrap
            .recv()
            .context("embedded cluster")?
            .map_err(|error| anyhow::anyhow!("embedded cluster: {error}"))?;
        Ok(Self {
            bootstrap,
            _running: running,
        })
    }

    /// `host:port` of its broker.
    pub(super) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }
}
