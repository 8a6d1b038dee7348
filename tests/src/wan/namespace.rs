//! Network namespaces that go when their owner goes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};

use super::device;

const FOLDER: &str = "/run/netns";
/// Names begin with this and the process id of their owner.
const PREFIX: &str = "kedge-wan-";
/// Each measurement on its own: what one connection learnt is not told to the next. And windows that are
/// large enough for long fat links.
const SETTINGS: [(&str, &str); 5] = [
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv4/tcp_rmem", "4096 131072 33554432"),
    ("ipv4/tcp_wmem", "4096 131072 33554432"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// A network namespace of this process.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    pub(super) fn add(name: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        ip(&["netns", "add", &name])
            .context("make a network namespace: the WAN laboratory needs root and iproute2")?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        namespace.inside(|| {
            for (setting, value) in SETTINGS {
                // a kernel without IPv6 has not all of them
                let path = Path::new("/proc/sys/net").join(setting);
                if path.exists() {
                    fs::write(&path, value).with_context(|| format!("set {setting}"))?;
                }
            }
            anyhow::Ok(())
        })??;
        Ok(namespace)
    }

    pub(super) fn ip(&self, arguments: &[&str]) -> Result<String> {
        ip(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// Runs it on a thread inside.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                device::enter(&path).with_context(|| format!("enter {}", path.display()))?;
                Ok(work())
            });
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A program that runs inside.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.place().command(program)
    }

    pub(super) fn place(&self) -> Place {
        Place {
            namespace: self.name.clone(),
        }
    }

    fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }
}

/// Where processes are to run.
#[derive(Debug, Clone)]
pub struct Place {
    namespace: String,
}

impl Place {
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace])
            .arg(program);
        command
    }

    /// The same command, with its arguments, environment and folder, there.
    fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = self.command(command.get_program());
        wrapped.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped
    }
}

/// The command as it runs at a place, or here.
#[must_use]
pub fn at(place: Option<&Place>, command: Command) -> Command {
    match place {
        Some(place) => place.wrap(&command),
        None => command,
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = ip(&["netns", "del", &self.name]);
    }
}

/// Removes the namespaces of processes that were killed.
pub(super) fn remove_orphans() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| {
            let (owner, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            owner.parse::<u32>().ok()
        });
        let is_orphan = owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists());
        if let Some(name) = name.to_str().filter(|_| is_orphan) {
            let _gone = ip(&["netns", "del", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("run `ip` of iproute2")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
