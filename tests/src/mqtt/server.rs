//! The MQTT broker that is talked to: a site, or, to see that the scenarios themselves are right, another
//! broker.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::settings::Settings;
use crate::stage::Stage;
use crate::{paths, ports, seed};

/// Keep-alive that a broker gives to clients that ask for more, seconds.
pub const MAX_KEEP_ALIVE_S: u16 = 60;
/// A filter that nobody may subscribe to.
pub const FORBIDDEN: &str = "forbidden/#";

const READY_LIMIT: Duration = Duration::from_secs(30);

/// A broker.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Site(Box<Stage>),
    Mosquitto {
        _dir: TempDir,
        _process: Process,
    },
    /// Somebody else's.
    Foreign,
}

impl Server {
    /// The broker that scenarios share as long as they don't harm it.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start().expect("start the MQTT broker"))
    }

    /// A site without a hub. `KEDGE_MQTT=mosquitto` starts that one instead, `KEDGE_MQTT=host:port` uses what
    /// listens there.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        match env::var("KEDGE_MQTT").ok().as_deref() {
            None => Self::site(&Settings::default()),
            Some("mosquitto") => Self::mosquitto(),
            Some(address) => Ok(Self {
                address: address.parse().with_context(|| address.to_owned())?,
                kind: Kind::Foreign,
            }),
        }
    }

    /// A site without a hub, with settings.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn site(over: &Settings) -> Result<Self> {
        let over = Settings::default()
            .with("mqtt.max_keep_alive", format!("{MAX_KEEP_ALIVE_S}s"))
            .with("mqtt.no_subscribe", vec![FORBIDDEN])
            .over(over);
        let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &over)?;
        stage.site.start()?;
        let address = stage.site.mqtt().parse().context("its MQTT listener")?;
        Ok(Self {
            address,
            kind: Kind::Site(Box::new(stage)),
        })
    }

    fn mosquitto() -> Result<Self> {
        let dir = paths::scratch("mosquitto")?;
        let address = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let config = dir.path().join("mosquitto.conf");
        let text = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nmax_keepalive {MAX_KEEP_ALIVE_S}\nuser root\n",
            address.port()
        );
        fs::write(&config, text).context("write mosquitto's settings")?;
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(&config);
        let log = paths::log_file("mosquitto")?;
        let mut process = Process::spawn("mosquitto", command, &log)?;
        process::wait_ready(&mut process, READY_LIMIT, || {
            std::net::TcpStream::connect(address).is_ok()
        })?;
        Ok(Self {
            address,
            kind: Kind::Mosquitto {
                _dir: dir,
                _process: process,
            },
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The site, if it is one.
    pub fn stage(&mut self) -> Option<&mut Stage> {
        match &mut self.kind {
            Kind::Site(stage) => Some(stage),
            Kind::Mosquitto { .. } | Kind::Foreign => None,
        }
    }
}

/// A name that no other scenario uses, for topics and client identifiers.
#[must_use]
pub fn fresh(name: &str) -> String {
    format!("{name}-{:x}", seed::fresh())
}
