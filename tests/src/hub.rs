//! A hub process, and the certificates that it makes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::admin::Admin;
use crate::process::{self, Process};
use crate::settings::Settings;
use crate::wan::{self, Place};
use crate::{paths, ports};

/// How long a hub may take until it is ready: its lanes wait for Kafka's coordinators.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A certificate authority with a hub's certificate and sites' certificates, made by `hub-node certs`.
#[derive(Debug)]
pub struct Certs {
    dir: TempDir,
}

/// The files of one identity.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl Certs {
    /// Makes an authority and a hub's certificate for `localhost`.
    ///
    /// # Errors
    /// When `hub-node certs` fails.
    pub fn make() -> Result<Self> {
        let dir = paths::scratch("certs")?;
        let mut command = Command::new(paths::node("hub-node")?);
        command.args(["certs", "init", "--dir"]).arg(dir.path());
        command.args(["--host", "localhost"]);
        process::run("hub-node certs init", command, READY_LIMIT)?;
        Ok(Self { dir })
    }

    /// Makes a site's certificate, or gives the one that it has: a cloned site has no other.
    ///
    /// # Errors
    /// When `hub-node certs` fails.
    pub fn issue(&self, site: &str) -> Result<Identity> {
        let identity = self.identity(&format!("sites/{site}"));
        if identity.certificate.exists() {
            return Ok(identity);
        }
        let mut command = Command::new(paths::node("hub-node")?);
        command
            .args(["certs", "issue", "--dir"])
            .arg(self.dir.path())
            .args(["--site", site]);
        process::run("hub-node certs issue", command, READY_LIMIT)?;
        Ok(identity)
    }

    /// The hub's own.
    #[must_use]
    pub fn hub(&self) -> Identity {
        self.identity("hub")
    }

    fn identity(&self, name: &str) -> Identity {
        let dir = self.dir.path();
        Identity {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}-key.pem")),
            ca: dir.join("ca.pem"),
        }
    }
}

/// A hub process that can be killed and started again on the same port.
#[derive(Debug)]
pub struct Hub {
    dir: TempDir,
    port: u16,
    admin: u16,
    log: PathBuf,
    args: Vec<String>,
    place: Option<Place>,
    process: Option<Process>,
}

impl Hub {
    /// Writes its configuration: names of `run` in Kafka, short timers. Does not start it.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn prepare(
        run: &str,
        bootstrap: &str,
        identity: &Identity,
        over: &Settings,
    ) -> Result<Self> {
        let dir = paths::scratch("hub")?;
        let (port, admin) = (ports::free(), ports::free());
        let settings = Settings::default()
            .with("listen.address", format!("127.0.0.1:{port}"))
            .with("listen.certificate", text(&identity.certificate))
            .with("listen.key", text(&identity.key))
            .with("listen.ca", text(&identity.ca))
            .with("listen.keep_alive", "1s")
            .with("listen.idle_timeout", "5s")
            .with("kafka.bootstrap", bootstrap)
            .with("kafka.create_partitions", 3)
            .with("kafka.replication", 1)
            .with("kafka.dead_letter_topic", dead_letter_topic(run))
            .with("commit.checkpoint_topic", checkpoint_topic(run))
            .with("commit.transactional_id_prefix", format!("kedge-{run}"))
            .with("commit.transaction_timeout", "10s")
            .with("commit.lanes", 2)
            .with("admin.listen", format!("127.0.0.1:{admin}"))
            .over(over);
        settings.write(&dir.path().join("hub.toml"))?;
        let log = paths::log_file("hub")?;
        Ok(Self {
            dir,
            port,
            admin,
            log,
            args: Vec::new(),
            place: None,
            process: None,
        })
    }

    /// Adds arguments to its command line.
    #[must_use]
    pub fn with_args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
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
        let mut command = Command::new(paths::node("hub-node")?);
        command
            .args(["run", "--config"])
            .arg(self.settings_file())
            .args(&self.args);
        let command = wan::at(self.place.as_ref(), command);
        self.process = Some(Process::spawn("hub-node", command, &self.log())?);
        Ok(())
    }

    /// Starts it and waits until it is ready.
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
        let process = self.process.as_mut().context("the hub was not started")?;
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
        self.process.as_mut().context("the hub is not running")
    }

    /// Where sites dial.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The address of its embedded cluster, from its log.
    ///
    /// # Errors
    /// When the log does not tell.
    pub fn embedded_bootstrap(&self) -> Result<String> {
        let log = std::fs::read_to_string(&self.log).context("read the hub's log")?;
        let found = log
            .lines()
            .find_map(|line| line.split_once("bootstrap=")?.1.split(' ').next());
        let bootstrap = found.context("the hub's log names no embedded cluster")?;
        Ok(bootstrap.trim_matches('"').to_owned())
    }

    /// Its admin listener.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.admin)
    }

    /// Its configuration file. Rules for sites hold within seconds when it changes.
    #[must_use]
    pub fn settings_file(&self) -> PathBuf {
        self.dir.path().join("hub.toml")
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.log.clone()
    }
}

/// The checkpoint topic of a run.
#[must_use]
pub fn checkpoint_topic(run: &str) -> String {
    format!("checkpoints-{run}")
}

/// The dead-letter topic of a run.
#[must_use]
pub fn dead_letter_topic(run: &str) -> String {
    format!("dead-letters-{run}")
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}
