//! The hub's configuration: typed, within its ranges, valid by construction.
//!
//! [`Config::load`] reads a TOML file and the environment over it (see [`shared::config`]) and reports
//! every problem at once. `config/read.rs` holds each key once: name, default and accepted range;
//! `deploy/config/hub.toml` shows them all, and a test compares it with the defaults.

mod lanes;
mod read;
mod sites;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use shared::config::{AdminConfig, ConfigError, Document, LogConfig, Problem};
use shared::ids::TopicName;
use shared::tls::TlsFiles;
use shared::units::{ByteSize, Span};

pub use sites::{SiteRule, SitesConfig};
pub use template::TopicTemplate;

use crate::sink::mapping::PartitionRule;

/// Everything that a hub can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[listen]`
    pub listen: ListenConfig,
    /// `[kafka]`
    pub kafka: KafkaConfig,
    /// `[commit]`
    pub commit: CommitConfig,
    /// `[sites]`
    pub sites: SitesConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[log]`
    pub log: LogConfig,
}

impl Config {
    /// Reads a file and the environment.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem found.
    pub fn load(file: Option<&Path>, cluster: Cluster) -> Result<Self, ConfigError> {
        Self::from_document(Document::load(file)?, cluster)
    }

    /// Reads a file and the environment, and tells what is wrong with them beside what could be read: there are defaults
    /// in place of the rest.
    ///
    /// # Errors
    /// [`ConfigError`] of a file that cannot be read or is not TOML.
    pub fn examine(
        file: Option<&Path>,
        cluster: Cluster,
    ) -> Result<(Self, Vec<Problem>), ConfigError> {
        let mut document = Document::load(file)?;
        let config = read::config(&mut document, cluster);
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
    pub fn from_document(mut document: Document, cluster: Cluster) -> Result<Self, ConfigError> {
        let config = read::config(&mut document, cluster);
        document.finish()?;
        Ok(config)
    }
}

/// Which cluster the hub commits to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// The one in `[kafka]`.
    Configured,
    /// A mock inside the process (`--embedded-cluster`): `kafka.bootstrap` may be missing.
    Embedded,
}

/// `[node]`: the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Tells hubs apart for people: in logs and in claims of lanes.
    pub name: String,
    /// How long a stop on SIGTERM may take to commit what is in flight.
    pub stop_timeout: Span,
}

/// `[listen]`: where sites dial in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// UDP address.
    pub address: SocketAddr,
    /// Listen on the same port over TCP too, for sites whose network blocks UDP.
    pub tcp: bool,
    /// The hub's certificate, its key, and the CA of the sites.
    pub tls: TlsFiles,
    /// Open sessions; more are turned away with a delay.
    pub max_sessions: usize,
    /// Handshakes under way; more wait.
    pub max_handshakes: usize,
    /// Sites that are let in a second; more wait, or are told when to come back.
    pub admit_rate: u64,
    /// Bytes of data streams a second, of all sites together.
    pub ingress: Option<ByteSize>,
    /// The same of each site that no rule gives another.
    pub site_ingress: Option<ByteSize>,
    /// From the first packet to the site's whole hello.
    pub handshake_timeout: Span,
    /// How often sites are told to ping; three times as long without a word ends the session. That the link
    /// works is seen sooner, below the session.
    pub keep_alive: Span,
    /// A connection without a packet for so long is forgotten.
    pub idle_timeout: Span,
    /// Bytes of one session that came and are not committed.
    pub session_window: ByteSize,
    /// Bytes of all sessions that came and are not committed; credit stops before.
    pub memory: ByteSize,
    /// Largest batch taken from a site, uncompressed.
    pub max_batch: ByteSize,
    /// Most logs (topic partitions) of one site.
    pub max_logs: usize,
    /// Bytes that the codecs of open sessions may remember, saved states in memory included.
    pub codec_memory: ByteSize,
    /// Where saved states and chunks outlive the process.
    pub codec_dir: Option<PathBuf>,
    /// Bytes of saved states there.
    pub codec_disk: ByteSize,
    /// Bytes of chunks of large values that are kept for one site; 0: none.
    pub site_chunks: ByteSize,
    /// The same for all sites.
    pub chunks: ByteSize,
}

/// `[kafka]`: the central cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port` of brokers, separated by commas.
    pub bootstrap: String,
    /// Passed to librdkafka as they are, over our own settings.
    pub properties: Properties,
    /// Name of the central topic.
    pub topic_template: TopicTemplate,
    /// Whether missing central topics are created.
    pub create_topics: bool,
    /// Partitions of created topics; `None`: the cluster's default.
    pub create_partitions: Option<u32>,
    /// Replication factor of created topics, the checkpoint topic too; `None`: the cluster's default.
    pub replication: Option<u32>,
    /// How a record's partition is chosen.
    pub partition_by: PartitionRule,
    /// Codec towards the cluster, as librdkafka calls it.
    pub compression: &'static str,
    /// Where records go that the cluster refuses for good.
    pub dead_letter_topic: TopicName,
}

/// `[commit]`: lanes and their transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitConfig {
    /// The compacted topic of the checkpoints; it has one partition a lane.
    pub checkpoint_topic: TopicName,
    /// Lanes. Sites are spread over them by name: changing it on a live system moves sites.
    pub lanes: u32,
    /// In front of the lane's number in the transactional id. Hubs of one system share it.
    pub transactional_id_prefix: String,
    /// Bytes of records in one transaction.
    pub max_transaction_bytes: ByteSize,
    /// Records in one transaction.
    pub max_transaction_records: u32,
    /// After this the broker aborts a transaction by itself (`transaction.timeout.ms`).
    pub transaction_timeout: Span,
    /// Bytes that wait for one lane; above it sessions wait.
    pub lane_queue: ByteSize,
    /// How long a lane that another hub took refuses sites, the first time; it doubles.
    pub step_down: Span,
    /// The limit of that doubling.
    pub step_down_max: Span,
}

/// Settings of librdkafka. Values may be secrets: they appear in no log.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Properties(pub BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
