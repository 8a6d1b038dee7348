//! The site's configuration: typed, within its ranges, valid by construction.
//!
//! [`Config::load`] reads a TOML file and the environment over it (see [`shared::config`]) and reports
//! every problem at once. `config/read.rs` holds each key once: name, default and accepted range;
//! `deploy/config/edge.toml` shows them all, and a test compares it with the defaults.
//!
//! Not here: the site's name. It comes from the certificate only.

mod access;
mod classes;
mod mqtt;
mod overrides;
mod policy;
mod read;
#[cfg(test)]
mod tests;
mod topics;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use shared::batch::{
    CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_MODELLED, CODEC_ZSTD, supported_codecs,
};
use shared::config::{AdminConfig, ConfigError, Document, HostPort, LogConfig, Problem};
use shared::units::{ByteSize, Span};

pub use access::{AccessConfig, UserConfig};
pub use classes::{ClassesConfig, LONGEST_DELAY};
pub use mqtt::{MqttConfig, MqttListener};
pub use overrides::{Kind, Overrides, SETTINGS, Setting, SettingError, value_in_force};
pub use topics::{TopicRule, TopicSettings, TopicsConfig};

use crate::quota::Limits;
use crate::tls::ListenerTls;
use crate::uplink::policy::Policy;
use crate::uplink::{FromHub, Rules};

/// Everything that a site can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[topics]`
    pub topics: TopicsConfig,
    /// `[access]`
    pub access: AccessConfig,
    /// `[kafka]`; `None` when switched off.
    pub kafka: Option<KafkaConfig>,
    /// `[http]`; `None` when switched off.
    pub http: Option<HttpConfig>,
    /// `[mqtt]`; `None` when switched off.
    pub mqtt: Option<MqttConfig>,
    /// `[policy]`
    pub policy: PolicyConfig,
    /// `[uplink]`; `None` when switched off: records queue until it is on.
    pub uplink: Option<UplinkConfig>,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[log]`
    pub log: LogConfig,
    /// Where it was read from, for what is read again while the node runs.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Reads a file and the environment.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let config = Self::from_document(Document::load(file)?)?;
        Ok(Self {
            file: file.map(Path::to_owned),
            ..config
        })
    }

    /// Reads a file and the environment, and tells what is wrong with them beside what could be read: there are defaults
    /// in place of the rest.
    ///
    /// # Errors
    /// [`ConfigError`] of a file that cannot be read or is not TOML.
    pub fn examine(file: Option<&Path>) -> Result<(Self, Vec<Problem>), ConfigError> {
        let mut document = Document::load(file)?;
        let config = read::config(&mut document);
        Ok((config, document.problems()))
    }

    /// Reads where the admin listener is, and nothing else.
    ///
    /// # Errors
    /// [`ConfigError`] of the file or of that section.
    pub fn load_admin(file: Option<&Path>) -> Result<AdminConfig, ConfigError> {
        let mut document = Document::load(file)?;
        let admin = read::admin(&mut document);
        document.finish_only("admin")?;
        Ok(admin)
    }

    /// Reads a parsed document.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem found.
    pub fn from_document(mut document: Document) -> Result<Self, ConfigError> {
        let config = read::config(&mut document);
        document.finish()?;
        Ok(config)
    }
}

impl Config {
    /// What the link may be used for, on each path.
    #[must_use]
    pub fn rules(&self) -> Rules {
        let paths = self.uplink.iter().flat_map(|uplink| &uplink.paths);
        let mut paths: Vec<_> = paths
            .map(|path| (path.name.clone(), path.policy.clone()))
            .collect();
        if paths.is_empty() {
            paths.push((ONLY_PATH.to_owned(), Policy::default()));
        }
        Rules {
            site: self.policy.policy.clone(),
            from_hub: self.policy.from_hub,
            paths,
        }
    }
}

/// The name of a site's path when none is configured.
pub const ONLY_PATH: &str = "default";

/// `[policy]`: what the link may be used for, over all paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Rates, windows, allowance.
    pub policy: Policy,
    /// What a policy that the hub pushes may do.
    pub from_hub: FromHub,
}

/// `[[uplink.path]]`: one of several ways out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathConfig {
    /// In status, log and metrics.
    pub name: String,
    /// Which way it is.
    pub bind: Bind,
    /// What it may be used for, beside what `[policy]` says.
    pub policy: Policy,
}

/// How packets are made to go a certain way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Bind {
    /// As the system routes them.
    #[default]
    Any,
    /// From this address of the machine.
    Local(IpAddr),
    /// Out of this interface.
    Interface(String),
}

/// `[node]`: the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Where everything that outlives the process is kept.
    pub data_dir: PathBuf,
    /// How long a stop on SIGTERM may take to answer what is in flight.
    pub stop_timeout: Span,
}

/// `[store]`: the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Logical bytes of all topics. At the limit acknowledged records go first, then `on_full` decides.
    pub quota: ByteSize,
    /// Free space of the file system below which appends are refused.
    pub min_free: ByteSize,
    /// Space set aside so that deletion works on a full disk.
    pub reserve: ByteSize,
    /// Bytes of appends that wait for the next sync; above it producers are told to wait.
    pub queue: ByteSize,
    /// How often retention is applied.
    pub sweep_interval: Span,
}

/// `[kafka]`: the listener for Kafka clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Host and port that clients are told; `None`: the address that they connected to.
    pub advertised: Option<HostPort>,
    /// Open connections.
    pub max_connections: usize,
    /// Largest request.
    pub max_request: ByteSize,
    /// Bytes of unanswered requests of one connection.
    pub max_inflight: ByteSize,
    /// A connection without a request for so long is closed.
    pub idle_timeout: Span,
    /// What all clients of this listener together may use.
    pub limits: Limits,
    /// `[[kafka.listener]]`: more of them, each with its own addresses.
    pub listeners: Vec<KafkaListener>,
    /// `[kafka.groups]`
    pub groups: GroupsConfig,
}

/// `[[kafka.listener]]`: another address that Kafka clients connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaListener {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Host and port that its clients are told; `None`: the address that they connected to.
    pub advertised: Option<HostPort>,
    /// Its certificate; `None`: plain text.
    pub tls: Option<ListenerTls>,
    /// Open connections.
    pub max_connections: usize,
    /// What all its clients together may use.
    pub limits: Limits,
}

/// `[kafka.groups]`: consumer groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupsConfig {
    /// Groups.
    pub max_groups: usize,
    /// Members of one.
    pub max_members: usize,
    /// Committed offsets of all.
    pub max_offsets: usize,
    /// How long a group's first members wait for others.
    pub initial_delay: Span,
    /// Shortest session timeout of a member.
    pub min_session: Span,
    /// Longest.
    pub max_session: Span,
    /// Offsets of a group without members for so long are forgotten.
    pub retention: Span,
}

/// `[http]`: the listener for scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Open connections.
    pub max_connections: usize,
    /// Largest body.
    pub max_body: ByteSize,
    /// How long one request may take to arrive and be answered.
    pub request_timeout: Span,
    /// Open tails.
    pub max_tails: usize,
    /// What all its clients together may use.
    pub limits: Limits,
}

/// What decides how much is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// Loss is congestion.
    Cubic,
    /// What the path delivers.
    Measured,
}

/// How batches are written on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// What sends most records, given the link and the processor.
    Auto,
    /// Modelled bit by bit, whatever it costs the processor.
    Modelled,
    /// Columns and zstd with history.
    Columnar,
    /// zstd, with a dictionary where the hub takes one.
    Zstd,
    /// Uncompressed.
    None,
}

impl Codec {
    /// The one that is set for good, whatever the link and the load; the others of [`Codec::offered`] are for hubs that
    /// don't take it, and for logs that its memory is too little for.
    #[must_use]
    pub const fn fixed(self) -> Option<u8> {
        match self {
            Self::Modelled => Some(CODEC_MODELLED),
            Self::Columnar => Some(CODEC_COLUMNAR),
            Self::Auto | Self::Zstd | Self::None => None,
        }
    }

    /// The codecs offered to a hub, best first.
    #[must_use]
    pub fn offered(self) -> Vec<u8> {
        match self {
            Self::Auto => supported_codecs(),
            Self::Modelled => vec![CODEC_MODELLED, CODEC_DICTIONARY, CODEC_ZSTD],
            Self::Columnar => vec![CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_ZSTD],
            Self::Zstd => vec![CODEC_DICTIONARY, CODEC_ZSTD],
            Self::None => Vec::new(),
        }
    }
}

/// `[uplink]`: the way to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Addresses of hubs, tried in turn. At least one.
    pub hubs: Vec<HostPort>,
    /// Ways out, the preferred first; none: as the system routes.
    pub paths: Vec<PathConfig>,
    /// This site's certificate (with intermediates), its key, and the CA of the hub.
    pub tls: shared::tls::TlsFiles,
    /// The name that the hub's certificate must carry; `None`: the host as written in `hubs`.
    pub server_name: Option<String>,
    /// Compression.
    pub codec: Codec,
    /// Bytes that codecs may remember of what they sent.
    pub codec_memory: ByteSize,
    /// Bytes of chunks of large values that the hub is taken to keep for this site; 0: none are referred to.
    pub hub_chunks: ByteSize,
    /// zstd's level.
    pub level: i32,
    /// What decides how much is in flight.
    pub congestion: Congestion,
    /// Bytes of records asked from the log for one stream.
    pub max_read: ByteSize,
    /// Reads under way or waiting for the hub's credit.
    pub max_reads: usize,
    /// How the classes of topics share the link.
    pub classes: ClassesConfig,
    /// For an attempt to dial a hub.
    pub connect_timeout: Span,
    /// A connection without a packet for so long is given up, and a new one dialled. Outages that are shorter
    /// cost no new session.
    pub idle_timeout: Span,
    /// A QUIC connection that was silent for so long says a word, so that NATs on the way do not forget it.
    pub nat_keep_alive: Span,
    /// Most bytes that may be sent in a minute into a link that is down, to find out that it is back.
    pub outage_budget: ByteSize,
    /// Go over TLS over TCP where UDP is blocked.
    pub tcp_fallback: bool,
    /// First upper bound of the wait between attempts, doubled with each.
    pub backoff_min: Span,
    /// Last upper bound of that wait.
    pub backoff_max: Span,
}
