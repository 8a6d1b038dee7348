//! The admin listener that both nodes have.

use std::time::Duration;

use anyhow::{Context, Result};

/// A node's admin listener.
#[derive(Debug, Clone, Copy)]
pub struct Admin {
    port: u16,
}

impl Admin {
    /// Talks to the listener on a loopback port.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    /// `host:port`.
    #[must_use]
    pub fn address(self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether `/readyz` says yes.
    #[must_use]
    pub fn is_ready(self) -> bool {
        self.fetch("/readyz").is_ok()
    }

    /// `/status` as JSON.
    ///
    /// # Errors
    /// When it does not answer with JSON.
    pub fn status(self) -> Result<serde_json::Value> {
        let text = self.fetch("/status")?;
        serde_json::from_str(&text).context("read /status")
    }

    /// `/metrics` as text.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(self) -> Result<String> {
        self.fetch("/metrics")
    }

    /// Sum over all series of one metric whose labels contain `labels`.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub fn metric(self, name: &str, labels: &str) -> Result<f64> {
        let text = self.metrics()?;
        let lines = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(labels)
        });
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    fn fetch(self, path: &str) -> Result<String> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(3)))
            .build();
        let agent = ureq::Agent::from(config);
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut answer = agent
            .get(&url)
            .call()
            .with_context(|| format!("GET {path}"))?;
        Ok(answer.body_mut().read_to_string()?)
    }
}
