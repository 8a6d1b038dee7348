//! Puts the parts of a site together and runs them until the process is told to stop.
//!
//! A store that turns out to be damaged stops everything; the next start, in the same process, sets the
//! damage aside and goes on. Any other part that ends takes the node down, and the service manager starts
//! it again: nothing is lost by that.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rand::SeedableRng as _;
use shared::ids::SiteId;
use shared::tasks::Tasks;
use shared::tls::ClientTls;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::access::Access;
use crate::admin::{NoUplink, Node, UplinkView};
use crate::config::Config;
use crate::egress::{Egress, EgressLimits};
use crate::http::{self, HttpStats};
use crate::ingest::{Ingest, IngestLimits, IngestStats};
use crate::kafka::group::Limits;
use crate::kafka::groups::Groups;
use crate::kafka::{self, KafkaStats};
use crate::memory;
use crate::mqtt::{self, MqttStats};
use crate::store::{RocksStore, StartReport, Store, StoreConfig, StoreError};
use crate::tls;
use crate::uplink::{InUse, Keeper, Policies, Uplink, UplinkError, UplinkStats};

/// How often certificates that could not be read are tried again.
const UPLINK_RETRY: Duration = Duration::from_secs(5);

/// How often a store that refuses producers is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// Beyond the configured time to stop, for what does not listen.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Runs a site until it is told to stop.
///
/// # Errors
/// What kept it from starting, or the part that took it down.
pub async fn run(config: Config) -> anyhow::Result<()> {
    loop {
        match run_once(&config).await? {
            End::Stopped => return Ok(()),
            End::Damaged(what) => error!(what, "Store damaged: starting over to set it aside"),
        }
    }
}

enum End {
    Stopped,
    Damaged(String),
}

async fn run_once(config: &Config) -> anyhow::Result<End> {
    let store = open_store(config).await?;
    let tasks = Tasks::new();
    tasks.stop_on_signals().context("install signal handlers")?;
    let port: Arc<dyn Store> = store.clone();
    if let Err(error) = start(config, &port, &tasks).await {
        tasks.stop();
        let _stopped = tasks.finish(STOP_GRACE).await;
        close(store).await;
        return Err(error);
    }
    let outcome = tasks
        .finish(config.node.stop_timeout.duration() + STOP_GRACE)
        .await;
    let failure = port.failure().borrow().clone();
    drop(port);
    close(store).await;
    match failure {
        Some(StoreError::Corrupt(what)) => Ok(End::Damaged(what)),
        Some(StoreError::UnknownPartition | StoreError::Io(_)) | None => {
            outcome.map(|()| End::Stopped)
        }
    }
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<RocksStore>> {
    let dir = store_dir(config);
    if RocksStore::is_in_use(&dir) {
        anyhow::bail!(in_use(config));
    }
    let settings = store_settings(config);
    let rng = Box::new(rand::rngs::StdRng::from_rng(&mut rand::rng()));
    let opened =
        tokio::task::spawn_blocking(move || RocksStore::open(&dir, &settings, rng)).await?;
    let (store, report) = opened.context("open the store")?;
    if let Some(salvage) = &report.salvage {
        error!(
            ?salvage,
            "Database was damaged, a new one was made of what could be read"
        );
    }
    for range in &report.damaged {
        error!(?range, "Records lost by the disk, now a gap");
    }
    let StartReport {
        is_new, was_closed, ..
    } = report;
    info!(incarnation = %store.incarnation(), is_new, was_closed, "Store open");
    Ok(store)
}

/// Where the log lies.
pub(crate) fn store_dir(config: &Config) -> PathBuf {
    config.node.data_dir.join("store")
}

/// What to tell when another process has the log.
pub(crate) fn in_use(config: &Config) -> String {
    let dir = config.node.data_dir.display();
    format!("node.data_dir = \"{dir}\" is in use by another edge-node")
}

fn store_settings(config: &Config) -> StoreConfig {
    StoreConfig {
        quota_bytes: Some(config.store.quota.bytes()),
        min_free_bytes: config.store.min_free.bytes(),
        reserve_bytes: config.store.reserve.bytes(),
        append_queue_bytes: config.store.queue.as_usize(),
        default_rules: config.topics.default.rules(),
        ..StoreConfig::default()
    }
}

async fn close(store: Arc<RocksStore>) {
    if let Err(error) = tokio::task::spawn_blocking(move || store.close()).await {
        warn!(%error, "Store did not close in order");
    }
}

async fn start(config: &Config, store: &Arc<dyn Store>, tasks: &Tasks) -> anyhow::Result<()> {
    let limits = IngestLimits {
        // what the door lets in fits the writer's queue
        max_unsynced_bytes: config.store.queue.as_usize(),
        ..IngestLimits::default()
    };
    let ingest = Ingest::new(Arc::clone(store), config.topics.clone(), limits);
    ingest
        .apply_topics()
        .context("apply the topics of the configuration")?;
    let egress = Egress::new(Arc::clone(store), EgressLimits::default());
    let access = open_access(config).await?;
    let kafka = start_kafka(config, store, &ingest, &egress, &access, tasks).await?;
    let doors = http::Doors {
        ingest: ingest.clone(),
        store: Arc::clone(store),
        access: Arc::clone(&access),
        max_decoded: limits.max_uncompressed_bytes,
    };
    let http = start_http(config, doors, tasks).await?;
    let mqtt = start_mqtt(config, store, &ingest, &access, tasks).await?;
    let policies = start_policies(config, tasks).await?;
    let uplink = start_uplink(config, store, limits, policies.clone(), tasks);
    let policies = policies.map(|(policies, _)| policies);
    tasks.core(
        "retention",
        sweep(Arc::clone(store), config.clone(), tasks.clone()),
    );
    tasks.core(
        "space",
        review_space(
            Arc::clone(store),
            Arc::clone(ingest.stats()),
            tasks.stopping(),
        ),
    );
    tasks.core("store", watch(Arc::clone(store), tasks.clone()));
    tasks.core("memory", memory::give_back(tasks.stopping()));
    let (view, site) = match uplink {
        Some((stats, site)) => (stats as Arc<dyn UplinkView>, site),
        None => (Arc::new(NoUplink) as Arc<dyn UplinkView>, None),
    };
    let node = Node {
        site,
        store: Arc::clone(store),
        topics: config.topics.clone(),
        ingest: Arc::clone(ingest.stats()),
        kafka,
        http,
        mqtt,
        uplink: view,
        policies,
        started: shared::time::now(),
    };
    let admin = TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("[admin] listen = \"{}\"", config.admin.listen))?;
    info!(address = %admin.local_addr()?, "Admin listens");
    let provider = Arc::new(node);
    let stop = tasks.stopping();
    tasks.core("admin", async move {
        Ok(shared::admin::serve(admin, provider, stop).await?)
    });
    Ok(())
}

async fn start_kafka(
    config: &Config,
    store: &Arc<dyn Store>,
    ingest: &Ingest,
    egress: &Egress,
    access: &Arc<Access>,
    tasks: &Tasks,
) -> anyhow::Result<Option<Arc<KafkaStats>>> {
    let Some(kafka) = &config.kafka else {
        return Ok(None);
    };
    let stats = Arc::new(KafkaStats::default());
    let limits = Limits::from_file(&kafka.groups);
    let services = kafka::Services {
        ingest: ingest.clone(),
        egress: egress.clone(),
        groups: start_groups(limits, store, &stats, tasks).await?,
        access: Arc::clone(access),
        stats,
    };
    let settings = kafka::KafkaConfig::from_file(kafka, store.incarnation().to_string());
    start_listener("[kafka]", settings.clone(), &services, tasks).await?;
    for (index, listener) in kafka.listeners.iter().enumerate() {
        let place = format!("kafka.listener[{index}]");
        let settings = settings.clone().for_listener(listener);
        let settings = settings.with_context(|| place.clone())?;
        start_listener(&place, settings, &services, tasks).await?;
    }
    Ok(Some(services.stats))
}

async fn start_listener(
    place: &str,
    settings: kafka::KafkaConfig,
    services: &kafka::Services,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let (at, tls) = (settings.bind, settings.tls.clone());
    let is_tls = tls.is_some();
    let listener = kafka::Listener::bind(settings, services.clone())
        .await
        .with_context(|| format!("{place} listen = \"{at}\""))?;
    info!(address = %listener.address()?, is_tls, "Kafka listens");
    let stop = tasks.stopping();
    tasks.core("kafka", async move {
        listener.run(stop).await;
        Ok(())
    });
    if let Some(acceptor) = tls {
        let stop = tasks.stopping();
        tasks.core("certificates", async move {
            tls::keep_fresh(acceptor, stop).await;
            Ok(())
        });
    }
    Ok(())
}

async fn start_groups(
    limits: Limits,
    store: &Arc<dyn Store>,
    stats: &Arc<KafkaStats>,
    tasks: &Tasks,
) -> anyhow::Result<Groups> {
    let (store, stats) = (Arc::clone(store), Arc::clone(stats));
    let opened = tokio::task::spawn_blocking(move || Groups::open(store, limits, stats)).await?;
    let (groups, task) = opened.context("read the consumer groups")?;
    let stop = tasks.stopping();
    tasks.core("groups", async move {
        task.run(stop).await;
        Ok(())
    });
    Ok(groups)
}

/// Users and their rules.
async fn open_access(config: &Config) -> anyhow::Result<Arc<Access>> {
    let config = config.access.clone();
    // reads files, and derives credentials from passwords
    let access = tokio::task::spawn_blocking(move || Access::new(&config)).await??;
    Ok(Arc::new(access))
}

async fn start_http(
    config: &Config,
    doors: http::Doors,
    tasks: &Tasks,
) -> anyhow::Result<Option<Arc<HttpStats>>> {
    let Some(http) = &config.http else {
        return Ok(None);
    };
    let settings = http::HttpConfig::from_file(http);
    let stats = Arc::new(HttpStats::default());
    let stop = tasks.stopping();
    let router = http::router(doors, settings.clone(), Arc::clone(&stats), stop.clone());
    let listener = http::Listener::bind(settings, Arc::clone(&stats))
        .await
        .with_context(|| format!("[http] listen = \"{}\"", http.listen))?;
    info!(address = %listener.address()?, "HTTP listens");
    tasks.core("http", async move {
        listener.run(router, stop).await;
        Ok(())
    });
    Ok(Some(stats))
}

async fn start_mqtt(
    config: &Config,
    store: &Arc<dyn Store>,
    ingest: &Ingest,
    access: &Arc<Access>,
    tasks: &Tasks,
) -> anyhow::Result<Option<Arc<MqttStats>>> {
    let Some(mqtt) = &config.mqtt else {
        return Ok(None);
    };
    let file = mqtt.clone();
    let settings =
        tokio::task::spawn_blocking(move || mqtt::MqttConfig::from_file(&file)).await??;
    let stats = Arc::new(MqttStats::default());
    let services = mqtt::Services {
        store: Arc::clone(store),
        ingest: ingest.clone(),
        access: Arc::clone(access),
        stats: Arc::clone(&stats),
    };
    let listener = mqtt::Listener::bind(settings, mqtt.map.clone(), services)
        .await
        .with_context(|| format!("[mqtt] listen = \"{}\"", mqtt.listen))?;
    info!(addresses = ?listener.addresses()?, "MQTT listens");
    let stop = tasks.stopping();
    tasks.core("mqtt", async move {
        listener.run(stop).await;
        Ok(())
    });
    Ok(Some(stats))
}

/// What the link may be used for; nothing leaves before it is known.
async fn start_policies(
    config: &Config,
    tasks: &Tasks,
) -> anyhow::Result<Option<(Policies, InUse)>> {
    if config.uplink.is_none() {
        return Ok(None);
    }
    let config = config.clone();
    let made = tokio::task::spawn_blocking(move || Keeper::new(&config)).await?;
    let (keeper, policies, in_use) = made;
    let stop = tasks.stopping();
    tasks.core("policy", async move {
        keeper.run(stop).await;
        Ok(())
    });
    Ok(Some((policies, in_use)))
}

fn start_uplink(
    config: &Config,
    store: &Arc<dyn Store>,
    limits: IngestLimits,
    policies: Option<(Policies, InUse)>,
    tasks: &Tasks,
) -> Option<(Arc<UplinkStats>, Option<SiteId>)> {
    let uplink = config.uplink.clone()?;
    let (policies, in_use) = policies?;
    let site = ClientTls::load(uplink.tls.clone())
        .ok()
        .and_then(|tls| tls.site().ok());
    let topics = config.topics.clone();
    let stats = Arc::new(UplinkStats::default());
    let data_dir = config.node.data_dir.clone();
    let (store, told, stop) = (Arc::clone(store), Arc::clone(&stats), tasks.stopping());
    tasks.core("uplink", async move {
        let most = limits.max_uncompressed_bytes;
        let make = || Uplink::new(&uplink, &topics, &store, &told, &policies, most, &data_dir);
        if let Some(uplink) = until_possible(make, &told, &stop).await {
            // the state of a session is large, and there is one
            Box::pin(uplink.run(stop)).await;
        }
        drop(in_use);
        Ok(())
    });
    Some((stats, site))
}

/// A site whose certificate is missing takes records all the same. `None` when told to stop.
async fn until_possible(
    make: impl Fn() -> Result<Uplink, UplinkError>,
    stats: &UplinkStats,
    stop: &CancellationToken,
) -> Option<Uplink> {
    let mut is_told = false;
    loop {
        match make() {
            Ok(uplink) => return Some(uplink),
            Err(error) if is_told => stats.closed(&error.to_string()),
            Err(error) => {
                is_told = true;
                stats.closed(&error.to_string());
                error!(%error, "No uplink until this is mended; records are taken");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(UPLINK_RETRY) => {}
            () = stop.cancelled() => return None,
        }
    }
}

/// Retention by age and bytes, at intervals.
async fn sweep(store: Arc<dyn Store>, config: Config, tasks: Tasks) -> anyhow::Result<()> {
    let stop = tasks.stopping();
    loop {
        tokio::select! {
            () = tokio::time::sleep(config.store.sweep_interval.duration()) => {}
            () = stop.cancelled() => return Ok(()),
        }
        let store = Arc::clone(&store);
        let swept = tokio::task::spawn_blocking(move || store.sweep(shared::time::wall_ms()));
        if let Err(error) = swept.await? {
            // a store that has failed for good says so itself
            warn!(%error, "Retention failed, will be tried again");
        }
    }
}

/// Notes when the site becomes full, and when it has room again.
async fn review_space(
    store: Arc<dyn Store>,
    stats: Arc<IngestStats>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SPACE_INTERVAL) => {}
            () = stop.cancelled() => return Ok(()),
        }
        let (store, stats) = (Arc::clone(&store), Arc::clone(&stats));
        tokio::task::spawn_blocking(move || {
            stats.review(&store.space(), shared::time::now(), shared::time::wall_ms());
        })
        .await?;
    }
}

/// Takes the node down when the store can acknowledge nothing more.
async fn watch(store: Arc<dyn Store>, tasks: Tasks) -> anyhow::Result<()> {
    let mut failure = store.failure();
    let stop = tasks.stopping();
    let failed = tokio::select! {
        failed = failure.wait_for(Option::is_some) => failed.ok().and_then(|error| error.clone()),
        () = stop.cancelled() => return Ok(()),
    };
    match failed {
        Some(error) => Err(error).context("the store failed"),
        None => Ok(()),
    }
}
