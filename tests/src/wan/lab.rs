//! The two namespaces and the links between them.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::conditions::Conditions;
use super::device;
use super::direction::Counters;
use super::emulator::{Change, Emulator, Way};
use super::forward::{self, Shared};
use super::namespace::{self, Namespace, Place};

const MTU: &str = "1500";
/// Routing tables of links by source address begin here; below 253 none is the system's.
const FIRST_TABLE: usize = 100;

/// Which end of the links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where `edge-node` runs.
    Site,
    /// Where `hub-node` runs.
    Hub,
}

/// What a link is like when the laboratory opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// From the site to the hub.
    pub up: Conditions,
    /// From the hub to the site.
    pub down: Conditions,
    /// Of all its random choices.
    pub seed: u64,
}

impl Plan {
    /// The same in both directions.
    #[must_use]
    pub fn symmetric(conditions: Conditions, seed: u64) -> Self {
        Self {
            up: conditions.clone(),
            down: conditions,
            seed,
        }
    }
}

/// Two network namespaces with one or more links. Everything goes when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // dropped first: their devices are in the namespaces
    links: Vec<Link>,
    site: Namespace,
    hub: Namespace,
}

impl Lab {
    /// Opens it. Link `n` has the device `wan<n>` and the addresses `10.77.<n>.1` (site) and `.2` (hub).
    ///
    /// # Errors
    /// Without root, `ip` of iproute2 or TUN devices.
    pub fn start(plans: &[Plan]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        namespace::remove_orphans();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self {
            links: Vec::new(),
            site: Namespace::add(&format!("{count}-site"))?,
            hub: Namespace::add(&format!("{count}-hub"))?,
        };
        for (number, plan) in (0_u8..).zip(plans) {
            let link = Link::open(number, plan, &lab.site, &lab.hub)
                .with_context(|| format!("open WAN link {number}"))?;
            lab.links.push(link);
        }
        Ok(lab)
    }

    /// A link, by its number.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn link(&self, number: usize) -> &Link {
        &self.links[number]
    }

    /// A program that will run at this end.
    #[must_use]
    pub fn command(&self, end: End, program: impl AsRef<OsStr>) -> Command {
        self.namespace(end).command(program)
    }

    /// For processes that will run at this end.
    #[must_use]
    pub fn place(&self, end: End) -> Place {
        self.namespace(end).place()
    }

    /// Runs it on a thread at this end: sockets that it opens belong there for good.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, end: End, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace(end).inside(work)
    }

    /// `ip` with these arguments at this end: addresses that come and go, interfaces set down.
    ///
    /// # Errors
    /// When it fails, with what it wrote.
    pub fn ip(&self, end: End, arguments: &[&str]) -> Result<String> {
        self.namespace(end).ip(arguments)
    }

    /// Makes the link a way to the hub's addresses on all links, for what the site sends from its address on this one:
    /// so that a site has several ways to one hub.
    ///
    /// # Errors
    /// When the kernel has no routes by source address.
    pub fn route_by_source(&self, number: usize) -> Result<()> {
        let link = self.link(number);
        let (device, table) = (
            format!("wan{}", link.number),
            (FIRST_TABLE + number).to_string(),
        );
        for other in &self.links {
            let hub = other.address(End::Hub).to_string();
            self.ip(
                End::Site,
                &["route", "add", &hub, "dev", &device, "table", &table],
            )?;
        }
        let from = link.address(End::Site).to_string();
        self.ip(End::Site, &["rule", "add", "from", &from, "table", &table])?;
        Ok(())
    }

    fn namespace(&self, end: End) -> &Namespace {
        match end {
            End::Site => &self.site,
            End::Hub => &self.hub,
        }
    }
}

/// A link that carries packets as long as it lives.
#[derive(Debug)]
pub struct Link {
    number: u8,
    shared: Arc<Shared>,
    carrier: Option<JoinHandle<()>>,
}

impl Link {
    fn open(number: u8, plan: &Plan, site: &Namespace, hub: &Namespace) -> Result<Self> {
        let emulator = Emulator::new(plan.up.clone(), plan.down.clone(), plan.seed);
        let shared = Arc::new(Shared::new(emulator)?);
        let mut link = Self {
            number,
            shared: Arc::clone(&shared),
            carrier: None,
        };
        let devices = [
            open_device(number, site, link.address(End::Site))?,
            open_device(number, hub, link.address(End::Hub))?,
        ];
        let carrier = thread::Builder::new().name(format!("wan{number}"));
        let carrier = carrier.spawn(move || {
            // ends with an error when somebody removes a device: then nothing passes any more
            let _gone = forward::run(&shared, &devices);
        })?;
        link.carrier = Some(carrier);
        Ok(link)
    }

    /// The address of an end on this link.
    #[must_use]
    pub fn address(&self, end: End) -> Ipv4Addr {
        let host = match end {
            End::Site => 1,
            End::Hub => 2,
        };
        Ipv4Addr::new(10, 77, self.number, host)
    }

    /// New conditions in one direction.
    pub fn set(&self, way: Way, conditions: Conditions) {
        self.schedule(Duration::ZERO, Change::Set(way, conditions));
    }

    /// Changes the conditions of both directions.
    pub fn adjust(&self, mut change: impl FnMut(&mut Conditions)) {
        for way in Way::BOTH {
            self.shared.with(|emulator, now| {
                let mut conditions = emulator.way(way).conditions().clone();
                change(&mut conditions);
                emulator.schedule(now, Change::Set(way, conditions));
                emulator.run_due(now);
            });
        }
    }

    /// Nothing passes from here on.
    pub fn cut(&self) {
        self.schedule(Duration::ZERO, Change::Cut);
    }

    /// It is back.
    pub fn restore(&self) {
        self.schedule(Duration::ZERO, Change::Restore);
    }

    /// Cut now, back after `duration`.
    pub fn outage(&self, duration: Duration) {
        self.cut();
        self.schedule(duration, Change::Restore);
    }

    /// A change after some time.
    pub fn schedule(&self, after: Duration, change: Change) {
        self.shared.with(|emulator, now| {
            emulator.schedule(now + after, change);
            emulator.run_due(now);
        });
    }

    /// What went this way so far.
    #[must_use]
    pub fn counters(&self, way: Way) -> Counters {
        self.shared.with(|emulator, _| emulator.way(way).counters())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(carrier) = self.carrier.take() {
            let _ended = carrier.join();
        }
    }
}

fn open_device(number: u8, namespace: &Namespace, address: Ipv4Addr) -> Result<File> {
    let name = format!("wan{number}");
    let device = namespace.inside(|| device::tun(&name))??;
    // no link-local address: its housekeeping would show in the counters
    namespace.ip(&["link", "set", "dev", &name, "addrgenmode", "none"])?;
    let up = [
        "link",
        "set",
        "dev",
        &name,
        "mtu",
        MTU,
        "txqueuelen",
        "10000",
        "up",
    ];
    namespace.ip(&up)?;
    namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", &name])?;
    Ok(device)
}
