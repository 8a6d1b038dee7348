//! Metrics that are read from other parts' counters when somebody asks.
//!
//! A node's `metrics.rs` holds all names, units and labels; it implements one function that writes
//! every family to a [`Scrape`]. Nothing is counted twice and nothing is kept between scrapes.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// What [`encode`] produces.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Series of one family beyond which the rest is left out: a bound on what a scrape costs.
const MAX_SERIES: usize = 10_000;

/// Labels of one series, in order.
pub type Labels = Vec<(&'static str, String)>;

/// Writes families, one after the other.
#[derive(Debug)]
pub struct Scrape<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Scrape<'_> {
    /// A counter family; `_total` is added to the name.
    ///
    /// # Errors
    /// The writer's.
    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series.into_iter().take(MAX_SERIES) {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
            } else {
                let mut one = family.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
            }
        }
        Ok(())
    }

    /// A gauge family.
    ///
    /// # Errors
    /// The writer's.
    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series.into_iter().take(MAX_SERIES) {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// A series without labels.
pub fn single<T>(value: T) -> [(Labels, T); 1] {
    [(Labels::new(), value)]
}

/// A count as a gauge's value; beyond 2^53 it loses its last digits.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float in every exposition format"
)]
pub const fn level(count: u64) -> f64 {
    count as f64
}

/// What the kernel knows of this process.
///
/// # Errors
/// The writer's.
pub fn process(scrape: &mut Scrape<'_>) -> fmt::Result {
    let resident = level(resident_bytes().unwrap_or(0));
    scrape.gauge(
        "process_resident_bytes",
        "Memory in use (resident set)",
        single(resident),
    )?;
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let files = level(files as u64);
    scrape.gauge(
        "process_open_files",
        "Open files and sockets",
        single(files),
    )
}

/// `VmRSS` of `/proc/self/status`, which tells kB.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    kilobytes.checked_mul(1_024)
}

/// All families as OpenMetrics text, every name with the prefix and an underscore in front.
///
/// # Errors
/// The writer's; writing to memory has none.
pub fn encode<F>(prefix: &str, families: F) -> Result<String, fmt::Error>
where
    F: Fn(&mut Scrape<'_>) -> fmt::Result + Send + Sync + 'static,
{
    let mut registry = Registry::with_prefix(prefix);
    registry.register_collector(Box::new(Families(families)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

struct Families<F>(F);

impl<F> fmt::Debug for Families<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Families")
    }
}

impl<F> Collector for Families<F>
where
    F: Fn(&mut Scrape<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Scrape { encoder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_with_prefix_help_and_labels() {
        let text = encode("kedge_edge", |scrape| {
            let topic = |name: &str| vec![("topic", name.to_owned())];
            scrape.counter(
                "records_accepted",
                "Accepted",
                [(topic("a"), 3), (topic("b\"\n"), 4)],
            )?;
            scrape.gauge("uplink_connected", "1 when connected", single(1.0))
        });
        let text = text.unwrap();
        for line in [
            "# HELP kedge_edge_records_accepted Accepted",
            "# TYPE kedge_edge_records_accepted counter",
            "kedge_edge_records_accepted_total{topic=\"a\"} 3",
            "kedge_edge_records_accepted_total{topic=\"b\\\"\\n\"} 4",
            "# TYPE kedge_edge_uplink_connected gauge",
            "kedge_edge_uplink_connected 1",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|found| found.starts_with(line)),
                "{line} in {text}"
            );
        }
    }
}
