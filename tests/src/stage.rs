//! One hub, one link and one site around a broker: what most scenarios need.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::broker::Broker;
use crate::central::Reader;
use crate::hub::{Certs, Hub};
use crate::link::Link;
use crate::oracle::{self, Verdict};
use crate::settings::Settings;
use crate::site::{Ledger, Site};
use crate::writer::Acked;
use crate::{seed, wait};

/// The whole system in small.
#[derive(Debug)]
pub struct Stage {
    /// Names everything that this run leaves in Kafka.
    pub run: String,
    pub certs: Certs,
    pub hub: Hub,
    pub link: Link,
    pub site: Site,
    bootstrap: String,
}

impl Stage {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(broker: &Broker) -> Result<Self> {
        Self::start_with(broker, &Settings::default(), &Settings::default())
    }

    /// The same with settings of its own for hub and site.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start_with(broker: &Broker, hub: &Settings, site: &Settings) -> Result<Self> {
        let mut stage = Self::prepare(broker.bootstrap(), hub, site)?;
        stage.hub.start()?;
        stage.site.start()?;
        Ok(stage)
    }

    /// Everything but the processes.
    ///
    /// # Errors
    /// When certificates or configurations cannot be made.
    pub fn prepare(bootstrap: &str, hub: &Settings, site: &Settings) -> Result<Self> {
        let run = seed::fresh();
        let certs = Certs::make()?;
        let name = format!("{run}");
        let hub = Hub::prepare(&name, bootstrap, &certs.hub(), hub)?;
        let link = Link::start(hub.address(), run)?;
        let site = Site::prepare(link.address(), &certs.issue("site-a")?, site)?;
        Ok(Self {
            run: name,
            certs,
            hub,
            link,
            site,
            bootstrap: bootstrap.to_owned(),
        })
    }

    /// Reads from another cluster from here on: the hub chose its own.
    pub fn set_bootstrap(&mut self, bootstrap: String) {
        self.bootstrap = bootstrap;
    }

    /// The central cluster.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// A topic's name that no other run uses.
    #[must_use]
    pub fn topic(&self, name: &str) -> String {
        format!("{name}-{}", self.run)
    }

    /// A second hub with the same names in Kafka: the same lanes, from another machine. Not started.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn another_hub(&self, over: &Settings) -> Result<Hub> {
        Hub::prepare(&self.run, &self.bootstrap, &self.certs.hub(), over)
    }

    /// A second site. Not started.
    ///
    /// # Errors
    /// When certificate or configuration cannot be made.
    pub fn another_site(&self, name: &str, over: &Settings) -> Result<Site> {
        Site::prepare(self.link.address(), &self.certs.issue(name)?, over)
    }

    /// Waits until the site has nothing of the topic left to send, and gives its ledger.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub fn wait_drained(&self, topic: &str, limit: Duration) -> Result<Ledger> {
        let mut last = None;
        let drained = wait::until("the site has sent everything", limit, || {
            last = self.site.ledger(topic).ok();
            last.clone()
                .filter(|ledger| ledger.accepted > 0 && ledger.queued == 0)
        });
        drained.with_context(|| format!("the ledger is {last:?}"))
    }

    /// Reads central topics.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn reader(&self, topics: &[&str]) -> Result<Reader> {
        Reader::start(&self.bootstrap, topics)
    }

    /// Reads the topics anew until as many records are there as were acknowledged, and judges. A topic has
    /// the same name at the centre.
    ///
    /// # Errors
    /// When reading fails. A record that is missing or twice is in the verdict.
    pub fn judge(&self, acked: &[Acked], limit: Duration) -> Result<Verdict> {
        let mut topics: Vec<_> = acked.iter().map(|record| record.topic.as_str()).collect();
        topics.sort_unstable();
        topics.dedup();
        let reader = self.reader(&topics)?;
        // A late duplicate must be seen too: a fence record of our own would not be in the same partition,
        // so the reader goes on until nothing has come for a while.
        let _too_few = reader.wait_for(acked.len(), limit);
        reader.wait_quiet(QUIET);
        Ok(oracle::judge(acked, &reader.seen(), ToOwned::to_owned))
    }
}

/// Nothing more comes when nothing came for so long.
const QUIET: Duration = Duration::from_millis(1_500);
