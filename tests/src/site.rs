//! A site: an edge-node process with its data directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::hub::{Certs, Identity, text};
use crate::process::{self, Process};
use crate::settings::Settings;
use crate::wan::{self, Place};
use crate::{paths, ports};

/// How long a site may take until it accepts records.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// The delivery ledger of a topic as `/status` tells it, in records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ledger {
    pub accepted: u64,
    pub committed: u64,
    pub queued: u64,
    pub expired: u64,
    pub dropped_oldest: u64,
    pub dropped_newest: u64,
    pub damaged: u64,
    pub deleted: u64,
}

impl Ledger {
    /// Everything that will never arrive.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.expired + self.dropped_oldest + self.dropped_newest + self.damaged + self.deleted
    }
}

/// A site's process. It can be killed and comes back on the same data directory and ports.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    data_dir: PathBuf,
    kafka: u16,
    http: u16,
    mqtt: u16,
    admin: u16,
    log: PathBuf,
    environment: Vec<(String, String)>,
    place: Option<Place>,
    process: Option<Process>,
}

impl Site {
    /// Writes its configuration, with short timers. Does not start it.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn prepare(hub: SocketAddr, identity: &Identity, over: &Settings) -> Result<Self> {
        let dir = paths::scratch("site")?;
        let data_dir = dir.path().join("data");
        Self::prepare_in(dir, data_dir, hub, identity, over)
    }

    /// Starts one that has no hub.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn alone(certs: &Certs, over: &Settings) -> Result<Self> {
        let nowhere = ([127, 0, 0, 1], ports::free()).into();
        let over = Settings::default().with("uplink.enabled", false).over(over);
        let mut site = Self::prepare(nowhere, &certs.issue("site-a")?, &over)?;
        site.start()?;
        Ok(site)
    }

    /// The same with a data directory elsewhere.
    ///
    /// # Errors
    /// As [`Site::prepare`].
    pub fn prepare_at(
        data_dir: &Path,
        hub: SocketAddr,
        identity: &Identity,
        over: &Settings,
    ) -> Result<Self> {
        let dir = paths::scratch("site")?;
        Self::prepare_in(dir, data_dir.to_owned(), hub, identity, over)
    }

    fn prepare_in(
        dir: TempDir,
        data_dir: PathBuf,
        hub: SocketAddr,
        identity: &Identity,
        over: &Settings,
    ) -> Result<Self> {
        let (kafka, http, admin) = (ports::free(), ports::free(), ports::free());
        let mqtt = ports::free();
        let settings = Settings::default()
            .with("node.data_dir", text(&data_dir))
            .with("topics.default.partitions", 2)
            .with("kafka.listen", format!("127.0.0.1:{kafka}"))
            .with("http.listen", format!("127.0.0.1:{http}"))
            .with("mqtt.listen", format!("127.0.0.1:{mqtt}"))
            .with("uplink.hubs", vec![hub.to_string()])
            .with("uplink.certificate", text(&identity.certificate))
            .with("uplink.key", text(&identity.key))
            .with("uplink.ca", text(&identity.ca))
            .with("uplink.server_name", "localhost")
            .with("uplink.idle_timeout", "5s")
            .with("uplink.connect_timeout", "2s")
            .with("uplink.backoff_min", "100ms")
            .with("uplink.backoff_max", "2s")
            .with("admin.listen", format!("127.0.0.1:{admin}"))
            .over(over);
        settings.write(&dir.path().join("edge.toml"))?;
        let log = paths::log_file("edge")?;
        let environment = Vec::new();
        Ok(Self {
            dir,
            data_dir,
            kafka,
            http,
            mqtt,
            admin,
            log,
            environment,
            place: None,
            process: None,
        })
    }

    /// Sets an environment variable for the next start.
    pub fn set_environment(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(key, _)| key != name);
        self.environment.push((name.to_owned(), value.into()));
    }

    /// Where it runs from its next start on; whoever talks to it has to be there too.
    pub fn set_place(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// When the binary is not there.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(paths::node("edge-node")?);
        command
            .args(["run", "--config"])
            .arg(self.dir.path().join("edge.toml"));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let command = wan::at(self.place.as_ref(), command);
        self.process = Some(Process::spawn("edge-node", command, &self.log())?);
        Ok(())
    }

    /// Starts it and waits until it accepts records.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let admin = self.admin();
        let process = self.process.as_mut().context("the site was not started")?;
        process::wait_ready(process, READY_LIMIT, || admin.is_ready())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// The process, while there is one.
    ///
    /// # Errors
    /// When it is not running.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the site is not running")
    }

    /// Its Kafka listener.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.kafka)
    }

    /// Its HTTP listener.
    #[must_use]
    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Its MQTT listener.
    #[must_use]
    pub fn mqtt(&self) -> String {
        format!("127.0.0.1:{}", self.mqtt)
    }

    /// Its admin listener.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.admin)
    }

    /// Its delivery ledger of a topic, from `/status`.
    ///
    /// # Errors
    /// When the site does not answer or does not know the topic.
    pub fn ledger(&self, topic: &str) -> Result<Ledger> {
        let status = self.admin().status()?;
        let topics = status["topics"]
            .as_array()
            .context("/status has no topics")?;
        let found = topics
            .iter()
            .find(|entry| entry["name"] == topic)
            .context("no such topic")?;
        let text = found["ledger"].clone();
        serde_json::from_value(text).with_context(|| format!("read the ledger in {found}"))
    }

    /// Its configuration file.
    #[must_use]
    pub fn settings_file(&self) -> PathBuf {
        self.dir.path().join("edge.toml")
    }

    /// Where it keeps its records.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.log.clone()
    }
}
