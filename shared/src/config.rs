//! Configuration files: read by hand, so that every problem is reported at once.
//!
//! A node's `config.rs` walks a [`Document`] section by section and gets typed values within their
//! range, or the default. Whatever is wrong (a value out of range, a wrong type, an unknown key, a
//! missing one) is noted with key, value and what is accepted; [`Document::finish`] hands all of it
//! back. serde would stop at the first problem, which on a site far away means one visit a typo; so
//! there is no raw twin of the config struct, the document is the raw form.
//!
//! Every key can be overridden by an environment variable: `KEDGE_<SECTION>__<KEY>`, so `store.quota`
//! is `KEDGE_STORE__QUOTA` and `topics.default.retention` is `KEDGE_TOPICS__DEFAULT__RETENTION`. Text,
//! numbers and switches are written bare (`7d`, `4`, `true`); lists are written as TOML or separated by
//! commas, tables and lists of tables as TOML (`[{ match = "a*", retention = "1d" }]`). One that overrides no key is a
//! problem, and so is one with a single `_` in place of `__`, which would be taken for somebody else's.

mod document;
mod pattern;
mod section;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

pub use document::{Document, env_variable, values};
pub use pattern::{Pattern, shadowed};
pub use section::Section;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The key with its section: `store.quota`.
    pub key: String,
    /// What stands there, when anything does and it is no secret.
    pub value: Option<String>,
    /// The environment variable that it came from, when it did not come from the file.
    pub variable: Option<String>,
    /// What is wrong and what is accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(variable) = &self.variable {
            write!(f, " (from {variable})")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Read {
        file: PathBuf,
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{file} is not valid TOML: {message}")]
    Syntax { file: String, message: String },
    /// Everything that is wrong with it.
    #[error("{}", list(file, problems))]
    Invalid {
        file: String,
        problems: Vec<Problem>,
    },
}

fn list(file: &str, problems: &[Problem]) -> String {
    let count = problems.len();
    let mut text = format!(
        "{count} problem{} in {file}:",
        if count == 1 { "" } else { "s" }
    );
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}

/// A host name or address with a port, as one dials it: `hub.example.com:7443`, `[fd00::1]:7443`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let bare = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'));
            let is_plain = !host.contains(['[', ']', ':', '/', ' ']) && !host.is_empty();
            let host = bare.or_else(|| is_plain.then_some(host))?;
            let port = port.parse::<u16>().ok().filter(|port| *port != 0)?;
            Some(Self {
                host: host.to_owned(),
                port,
            })
        });
        parsed.ok_or_else(|| {
            "not a host and port; accepted: hub.example.com:7443, 192.0.2.1:7443 or [fd00::1]:7443"
                .to_owned()
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `[admin]` of both nodes: health, metrics and status over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it listens. It has no authentication: keep it on loopback or a management network.
    pub listen: SocketAddr,
}

impl AdminConfig {
    /// Reads the section.
    #[must_use]
    pub fn read(mut section: Section, default_listen: SocketAddr) -> Self {
        Self {
            listen: section.parsed("listen", default_listen),
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[log]` of both nodes. Lines go to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or directives of tracing's filter: `info,edge_node::kafka=debug`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl LogConfig {
    /// Reads the section.
    #[must_use]
    pub fn read(mut section: Section) -> Self {
        let level = section.parsed("level", LogLevel("info".to_owned())).0;
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        Self {
            level,
            format: section.choice("format", LogFormat::Text, &formats),
        }
    }
}

/// A filter that tracing accepts.
struct LogLevel(String);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = "accepted: off, error, warn, info, debug, trace, or directives such as \
                        info,edge_node::kafka=debug";
        // a bare word that is no level would be taken for a module, and everything else silenced
        let is_level = |word: &str| {
            word.parse::<tracing_subscriber::filter::LevelFilter>()
                .is_ok()
        };
        let is_clear = text
            .split(',')
            .all(|part| part.contains(['=', '[']) || is_level(part.trim()));
        tracing_subscriber::EnvFilter::try_new(text)
            .ok()
            .filter(|_| is_clear)
            .map(|_| Self(text.to_owned()))
            .ok_or_else(|| format!("not a log filter; {accepted}"))
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_round_trip() {
        for good in ["hub.example.com:7443", "192.0.2.1:1", "[fd00::1]:7443"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "hub",
            "hub:",
            "hub:0",
            "hub:99999",
            ":7443",
            "fd00::1:7443",
            "a b:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }
}
