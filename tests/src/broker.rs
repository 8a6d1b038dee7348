//! The central cluster: a real Apache Kafka (KRaft, one node) from Maven Central's jars, or the cluster
//! that `KAFKA_BOOTSTRAP` names.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tempfile::TempDir;

use crate::hub::Identity;
use crate::process::{self, Process};
use crate::wan::{self, Place};
use crate::{paths, ports, wait};

/// Start, stop and answer limits; generous, since the machine may be busy.
const FORMAT_LIMIT: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(90);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A broker. A local one can be killed, frozen and restarted on the same directory.
#[derive(Debug)]
pub struct Broker {
    bootstrap: String,
    local: Option<Mutex<Local>>,
}

#[derive(Debug)]
struct Local {
    dir: TempDir,
    port: u16,
    log: PathBuf,
    place: Option<Place>,
    process: Option<Process>,
}

/// A listener for clients from elsewhere, over TLS.
#[derive(Debug, Clone)]
pub struct TlsListener {
    /// What clients dial, and are told.
    pub address: SocketAddr,
    /// Certificate chain and key.
    pub identity: Identity,
}

impl Broker {
    /// The broker that scenarios share as long as they don't harm it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().expect("start the shared Kafka broker"))
    }

    /// A broker of one's own, or the cluster of `KAFKA_BOOTSTRAP`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        if let Ok(bootstrap) = env::var("KAFKA_BOOTSTRAP") {
            let broker = Self {
                bootstrap,
                local: None,
            };
            broker.wait_ready(START_LIMIT)?;
            return Ok(broker);
        }
        Self::start_at(None, None)
    }

    /// A broker of one's own that clients are told to reach elsewhere.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_behind(advertised: SocketAddr) -> Result<Self> {
        Self::start_local(None, None, Some(advertised))
    }

    /// A broker of one's own at a place. Whoever talks to it has to be there too, or to use its TLS listener.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_at(place: Option<Place>, tls: Option<&TlsListener>) -> Result<Self> {
        Self::start_local(place, tls, None)
    }

    fn start_local(
        place: Option<Place>,
        tls: Option<&TlsListener>,
        advertised: Option<SocketAddr>,
    ) -> Result<Self> {
        let dir = paths::scratch("kafka")?;
        let port = ports::free();
        let advertised = advertised.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)));
        write_settings(dir.path(), port, ports::free(), advertised, tls)?;
        format(dir.path())?;
        let local = Local {
            dir,
            port,
            log: paths::log_file("kafka")?,
            place,
            process: None,
        };
        let broker = Self {
            bootstrap: format!("127.0.0.1:{port}"),
            local: Some(Mutex::new(local)),
        };
        broker.restart()?;
        Ok(broker)
    }

    /// Its address, as clients want it.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Whether its process is ours to kill.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// What its process has used of the processor; nothing for a cluster that is not ours.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let local = self
            .local
            .as_ref()
            .map(|local| local.lock().expect("no holder panics"));
        let process = local.as_ref().and_then(|local| local.process.as_ref());
        process.map_or(Duration::ZERO, |process| process::cpu_time(process.id()))
    }

    /// SIGKILL. A cluster that is not ours is left alone.
    pub fn kill(&self) {
        self.with_local(|local| local.process = None);
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.with_local(|local| local.process.iter().for_each(Process::freeze));
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.with_local(|local| local.process.iter().for_each(Process::thaw));
    }

    /// Starts it again on the same directory and port and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self) -> Result<()> {
        self.launch()?;
        self.wait_ready(START_LIMIT)
    }

    /// Starts it again without waiting.
    ///
    /// # Errors
    /// When Java cannot be started.
    pub fn launch(&self) -> Result<()> {
        let Some(local) = &self.local else {
            return Ok(());
        };
        let mut local = local.lock().expect("no holder panics");
        let dir = local.dir.path();
        let mut java = java("512m")?;
        java.arg("kafka.Kafka").arg(dir.join("server.properties"));
        let java = wan::at(local.place.as_ref(), java);
        local.process = Some(Process::spawn("kafka", java, &local.log)?);
        Ok(())
    }

    /// Waits until it answers a metadata request.
    ///
    /// # Errors
    /// When it ends or does not answer in time.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        if let Some(local) = &self.local {
            let mut local = local.lock().expect("no holder panics");
            let address = SocketAddr::from(([127, 0, 0, 1], local.port));
            let mut ended = None;
            wait::until_true("Kafka opens its port", limit, || {
                ended = local
                    .process
                    .as_mut()
                    .and_then(|process| process.check_alive().err());
                ended.is_some() || TcpStream::connect_timeout(&address, limit).is_ok()
            })?;
            if let Some(ended) = ended {
                bail!(ended);
            }
        }
        wait::until_true("Kafka answers", limit, || {
            answers(&self.bootstrap, ANSWER_LIMIT)
        })
    }

    /// Creates a topic with settings, and waits until it is there.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()?;
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
        for answer in runtime.block_on(admin.create_topics([&topic], &options))? {
            answer.map_err(|(name, code)| anyhow::anyhow!("create {name}: {code}"))?;
        }
        Ok(())
    }

    /// From here on all producers together write so many bytes a second: a slow cluster.
    ///
    /// # Errors
    /// When Kafka's tool fails.
    pub fn throttle_producers(&self, bytes_per_second: u64) -> Result<()> {
        let mut java = java("128m")?;
        java.args(["kafka.admin.ConfigCommand", "--bootstrap-server"]);
        java.args([&self.bootstrap, "--alter", "--add-config"]);
        java.arg(format!("producer_byte_rate={bytes_per_second}"));
        java.args(["--entity-type", "clients", "--entity-default"]);
        process::run("set a quota", java, FORMAT_LIMIT)?;
        Ok(())
    }

    fn with_local(&self, act: impl FnOnce(&mut Local)) {
        if let Some(local) = &self.local {
            act(&mut local.lock().expect("no holder panics"));
        }
    }
}

/// Whether a cluster answers a metadata request in time.
#[must_use]
pub fn answers(bootstrap: &str, limit: Duration) -> bool {
    let consumer: Result<BaseConsumer, _> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create();
    let metadata = consumer.and_then(|consumer| consumer.fetch_metadata(None, limit));
    metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
}

/// A Java command with the Kafka jars.
///
/// # Errors
/// When the jars are not there.
pub fn java(heap: &str) -> Result<Command> {
    let mut java = Command::new("java");
    java.arg(format!("-Xmx{heap}")).arg("-XX:+UseSerialGC");
    java.arg("-XX:TieredStopAtLevel=4")
        .arg("-cp")
        .arg(paths::kafka_class_path()?);
    Ok(java)
}

fn format(dir: &Path) -> Result<()> {
    let mut java = java("128m")?;
    java.args(["kafka.tools.StorageTool", "format", "--standalone", "-t"]);
    java.arg("a2VkZ2UtdGVzdC1jbHN0cg")
        .arg("-c")
        .arg(dir.join("server.properties"));
    process::run("format Kafka's storage", java, FORMAT_LIMIT)?;
    Ok(())
}

/// A quota is kept over two seconds and not over eleven, or a slow cluster would stand still for so long.
/// Retention is enforced all the time, so that a test which depends on records it has outlived fails always.
fn write_settings(
    dir: &Path,
    port: u16,
    controller_port: u16,
    advertised: SocketAddr,
    tls: Option<&TlsListener>,
) -> Result<PathBuf> {
    let path = dir.join("server.properties");
    let logs = dir.join("logs");
    let (also, tls) = match tls {
        Some(tls) => tls_settings(dir, tls)?,
        None => (String::new(), String::new()),
    };
    let text = format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{also}\n\
         advertised.listeners=PLAINTEXT://{advertised},CONTROLLER://127.0.0.1:{controller_port}{also}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,REMOTE:SSL\n\
         inter.broker.listener.name=PLAINTEXT\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         num.partitions=3\n\
         num.network.threads=2\n\
         num.io.threads=2\n\
         background.threads=2\n\
         quota.window.num=2\n\
         log.cleaner.dedupe.buffer.size=16777216\n\
         log.initial.task.delay.ms=100\n\
         log.retention.check.interval.ms=100\n\
         {tls}",
        logs.display()
    );
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The listener, and what else it needs.
fn tls_settings(dir: &Path, tls: &TlsListener) -> Result<(String, String)> {
    let store = dir.join("remote.pem");
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let pem = read(&tls.identity.key)? + &read(&tls.identity.certificate)?;
    fs::write(&store, pem).context("write Kafka's certificate")?;
    let settings = format!(
        "listener.name.remote.ssl.keystore.type=PEM\n\
         listener.name.remote.ssl.keystore.location={}\n\
         listener.name.remote.ssl.client.auth=none\n",
        store.display()
    );
    Ok((format!(",REMOTE://{}", tls.address), settings))
}
