//! Where the bytes of a run went: by topic and codec, and what packets took around them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result};
use system_tests::wan::{Counters, Way};

use crate::field::Field;

/// What was counted at one moment.
#[derive(Debug)]
pub(super) struct Look {
    up: Counters,
    down: Counters,
    /// By topic and codec: streams, raw bytes, encoded bytes. Empty where there is no site.
    sent: BTreeMap<(String, String), [u64; 3]>,
}

impl Look {
    /// Looks.
    ///
    /// # Errors
    /// When a site does not say what it sent.
    pub(super) fn now(field: &Field) -> Result<Self> {
        let link = field.link();
        Ok(Self {
            up: link.counters(Way::Up),
            down: link.counters(Way::Down),
            sent: if field.has_site() {
                sent(field)?
            } else {
                BTreeMap::new()
            },
        })
    }

    /// IP bytes of both directions.
    #[must_use]
    pub(super) fn bytes(&self) -> u64 {
        self.up.sent_bytes + self.down.sent_bytes
    }
}

fn sent(field: &Field) -> Result<BTreeMap<(String, String), [u64; 3]>> {
    let status = field.at_site(|site| site.admin().status())??;
    let traffic = status["uplink"]["traffic"].as_array();
    let mut sent = BTreeMap::new();
    for one in traffic.context("a site that does not say what it sent")? {
        let word = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let count = |name: &str| one[name].as_u64().unwrap_or_default();
        sent.insert(
            (word("topic"), word("codec")),
            [count("streams"), count("raw_bytes"), count("sent_bytes")],
        );
    }
    Ok(sent)
}

/// What lies between two looks.
#[derive(Debug)]
pub(super) struct Trace<'a> {
    /// The earlier.
    pub(super) from: &'a Look,
    /// The later.
    pub(super) to: &'a Look,
    /// Records meanwhile, by topic.
    pub(super) records: &'a BTreeMap<String, u64>,
}

impl fmt::Display for Trace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records: u64 = self.records.values().sum();
        let each = |bytes: u64| bytes as f64 / records.max(1) as f64;
        let mut all = [0; 3];
        for (key, now) in &self.to.sent {
            let before = self.from.sent.get(key).copied().unwrap_or_default();
            let (topic, codec) = key;
            let [streams, raw, sent] = [0, 1, 2].map(|at| now[at] - before[at]);
            for (sum, one) in all.iter_mut().zip([streams, raw, sent]) {
                *sum += one;
            }
            if streams > 0 {
                let own = self.records.get(topic).copied().unwrap_or_default().max(1);
                writeln!(
                    f,
                    "    {topic:10} {codec:10} {own:7} records {streams:5} streams {raw:10} -> {sent:8} bytes, {:8.2} a \
                     record, {:.3} of all records",
                    sent as f64 / own as f64,
                    each(sent),
                )?;
            }
        }
        let [streams, raw, sent] = all;
        writeln!(
            f,
            "    streams: {streams}, {raw} -> {sent} bytes, {:.3} a record",
            each(sent)
        )?;
        let (from, to) = (self.from, self.to);
        for (name, from, to) in [("up", from.up, to.up), ("down", from.down, to.down)] {
            let bytes = to.sent_bytes - from.sent_bytes;
            writeln!(
                f,
                "    {name}: {} packets, {bytes} bytes, {:.3} a record",
                to.sent_packets - from.sent_packets,
                each(bytes),
            )?;
        }
        Ok(())
    }
}
