//! The whole product in the WAN laboratory: a real Kafka and `hub-node` at one end of a link that counts IP
//! bytes, `edge-node` at the other, both as delivered; and a librdkafka producer over TLS in its place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use system_tests::broker::{Broker, TlsListener};
use system_tests::hub::{Certs, Hub};
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::wait;
use system_tests::wan::{Conditions, End, Lab, Link, Plan, Way};

const LIMIT: Duration = Duration::from_secs(120);
/// Kafka's listener for producers at the site.
const KAFKA_PORT: u16 = 9_093;

/// Both ends and the link between them.
#[derive(Debug)]
pub struct Field {
    site: Option<Site>,
    hub: Option<Hub>,
    broker: Broker,
    certs: Certs,
    // last: everything above is in its namespaces
    lab: Lab,
}

impl Field {
    /// Kafka at the hub's end of a link, and nobody else.
    ///
    /// # Errors
    /// When the laboratory or Kafka does not start.
    pub fn bare(conditions: Conditions) -> Result<Self> {
        let lab = Lab::start(&[Plan::symmetric(conditions, 1)])?;
        let certs = Certs::make()?;
        let tls = TlsListener {
            address: SocketAddr::from((lab.link(0).address(End::Hub), KAFKA_PORT)),
            identity: certs.hub(),
        };
        let place = lab.place(End::Hub);
        let broker = lab.inside(End::Hub, || Broker::start_at(Some(place), Some(&tls)))??;
        Ok(Self {
            site: None,
            hub: None,
            broker,
            certs,
            lab,
        })
    }

    /// Kafka and `hub-node` at one end of a link, `edge-node` at the other, with these settings on top of the
    /// nodes' defaults.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn open(conditions: Conditions, site: &Settings) -> Result<Self> {
        let mut field = Self::bare(conditions)?;
        let address = field.link().address(End::Hub);
        let bootstrap = field.broker.bootstrap().to_owned();
        // as delivered, where the harness has shorter timers
        let delivered = Settings::default()
            .with("listen.keep_alive", "4m")
            .with("listen.idle_timeout", "15m");
        let hub = field.lab.inside(End::Hub, || {
            let port = system_tests::ports::free();
            let settings = delivered.with("listen.address", format!("{address}:{port}"));
            let mut hub = Hub::prepare("bench", &bootstrap, &field.certs.hub(), &settings)?;
            hub.set_place(field.lab.place(End::Hub));
            hub.start()?;
            anyhow::Ok((hub, SocketAddr::from((address, port))))
        })??;
        let (hub, address) = hub;
        let delivered = Settings::default()
            .with("uplink.idle_timeout", "15m")
            .with("uplink.connect_timeout", "10s")
            .with("uplink.backoff_min", "500ms")
            .with("uplink.backoff_max", "30s")
            .with("topics.default.partitions", 1)
            .over(site);
        let identity = field.certs.issue("site-a")?;
        let site = field.lab.inside(End::Site, || {
            let mut site = Site::prepare(address, &identity, &delivered)?;
            site.set_place(field.lab.place(End::Site));
            site.start()?;
            anyhow::Ok(site)
        })??;
        (field.hub, field.site) = (Some(hub), Some(site));
        field.at_site(|site| {
            wait::until_true("the uplink opens", LIMIT, || {
                let sessions = site.admin().metric("kedge_edge_uplink_sessions_total", "");
                sessions.is_ok_and(|sessions| sessions > 0.0)
            })
        })??;
        Ok(field)
    }

    /// The link.
    #[must_use]
    pub fn link(&self) -> &Link {
        self.lab.link(0)
    }

    /// Whether `edge-node` runs at the site's end.
    #[must_use]
    pub const fn has_site(&self) -> bool {
        self.site.is_some()
    }

    /// IP bytes that the interfaces at both ends sent so far.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        let link = self.link();
        link.counters(Way::Up).sent_bytes + link.counters(Way::Down).sent_bytes
    }

    /// Runs it at the site's end.
    ///
    /// # Errors
    /// When there is no site.
    pub fn at_site<T: Send>(&self, work: impl FnOnce(&Site) -> T + Send) -> Result<T> {
        let site = self.site.as_ref();
        let site = site.ok_or_else(|| anyhow::anyhow!("there is no site"))?;
        self.lab.inside(End::Site, || work(site))
    }

    /// Runs it at the hub's end, where Kafka is at this address.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn at_centre<T: Send>(&self, work: impl FnOnce(&Broker) -> T + Send) -> Result<T> {
        self.lab.inside(End::Hub, || work(&self.broker))
    }

    /// Runs it at the site's end with the settings of a producer that writes to Kafka across the link, over
    /// TLS and with zstd.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn as_peer<T: Send>(&self, work: impl FnOnce(ClientConfig) -> T + Send) -> Result<T> {
        let address = SocketAddr::from((self.link().address(End::Hub), KAFKA_PORT));
        let ca: PathBuf = self.certs.hub().ca;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", address.to_string())
            .set("security.protocol", "ssl")
            .set("ssl.ca.location", ca.display().to_string())
            // the certificate is for localhost
            .set("ssl.endpoint.identification.algorithm", "none")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("compression.type", "zstd");
        self.lab.inside(End::Site, || work(config))
    }
}
