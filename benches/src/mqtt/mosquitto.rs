//! Debian's mosquitto with its persistence on. It keeps what it was sent in memory and writes a file now and
//! then; it does not sync.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use system_tests::process::Process;
use system_tests::{paths, ports, wait};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A broker on a port of its own; ends when dropped.
#[derive(Debug)]
pub(super) struct Mosquitto {
    address: SocketAddr,
    process: Process,
    _dir: TempDir,
}

impl Mosquitto {
    pub(super) fn start() -> Result<Self> {
        let dir = paths::scratch("mosquitto")?;
        let port = ports::free();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let settings = dir.path().join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
             persistence_location {}/\nset_tcp_nodelay true\nlog_type error\nuser root\n",
            dir.path().display()
        );
        fs::write(&settings, text)?;
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(&settings);
        command.env("PATH", "/usr/sbin:/usr/bin:/bin");
        let process = Process::spawn("mosquitto", command, &paths::log_file("mosquitto")?)?;
        wait::until_true("mosquitto listens", START_LIMIT, || {
            TcpStream::connect(address).is_ok()
        })?;
        Ok(Self {
            address,
            process,
            _dir: dir,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }
}
