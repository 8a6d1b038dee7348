//! MirrorMaker 2 between two brokers, as it comes.

use std::fs;

use anyhow::Result;
use system_tests::broker::{Broker, java};
use system_tests::paths;
use system_tests::process::Process;
use tempfile::TempDir;

/// A running MirrorMaker 2 that copies topics named `bench.*` from one cluster to the other.
#[derive(Debug)]
pub struct Mirror {
    _process: Process,
    _dir: TempDir,
}

impl Mirror {
    /// Starts it.
    ///
    /// # Errors
    /// When its jars are missing.
    pub fn start(from: &Broker, to: &Broker) -> Result<Self> {
        let dir = paths::scratch("mirror")?;
        let path = dir.path().join("mirror.properties");
        let text = format!(
            "clusters = site, centre\n\
             site.bootstrap.servers = {}\n\
             centre.bootstrap.servers = {}\n\
             site->centre.enabled = true\n\
             centre->site.enabled = false\n\
             site->centre.topics = bench.*\n\
             replication.factor = 1\n\
             checkpoints.topic.replication.factor = 1\n\
             heartbeats.topic.replication.factor = 1\n\
             offset-syncs.topic.replication.factor = 1\n\
             offset.storage.replication.factor = 1\n\
             status.storage.replication.factor = 1\n\
             config.storage.replication.factor = 1\n\
             tasks.max = 4\n\
             dedicated.mode.enable.internal.rest = false\n",
            from.bootstrap(),
            to.bootstrap()
        );
        fs::write(&path, text)?;
        let mut command = java("1g")?;
        command
            .arg("org.apache.kafka.connect.mirror.MirrorMaker")
            .arg(&path);
        let process = Process::spawn("mirror", command, &paths::log_file("mirror")?)?;
        Ok(Self {
            _process: process,
            _dir: dir,
        })
    }
}
