//! Where a site's record goes: which partition of its central topic, with which headers. The topic's name
//! comes from the configured template. Partition, by rule:
//!
//! | rule | record with a key | record without |
//! | --- | --- | --- |
//! | `hash` | `murmur2(key) & 0x7fffffff mod n`, as Java's default partitioner | `(murmur2(site) & 0x7fffffff + site partition) mod n` |
//! | `preserve` | site partition mod n | site partition mod n |
//!
//! Records without a key stay with their log, so that one site log's order is one central partition's
//! order; the site's hash spreads the many sites that have one partition only. Records with a key keep
//! their order per key, as with a producer that writes to the cluster directly.
//!
//! Headers that the hub adds after a record's own, as text; a record's own headers are kept as they are, even
//! of these names, so a reader takes the last of a name:
//!
//! | name | value |
//! | --- | --- |
//! | `kedge.site` | the site's name, from its certificate |
//! | `kedge.incarnation` | 32 hex digits |
//! | `kedge.partition` | the site's partition |
//! | `kedge.offset` | the record's offset in the site's log |
//! | `kedge.ts` | the record's timestamp at the site, ms since the epoch |
//! | `kedge.topic` | the site's topic; only where the template is not `{topic}`, and in dead letters |

use std::fmt::Write as _;

use shared::ids::SiteId;
use shared::partitioner::{murmur2, partition_for_key};
use shared::record::Header;

use crate::commit::LogKey;

/// How a record's partition is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PartitionRule {
    /// By the key's hash; without a key, by the log.
    #[default]
    Hash,
    /// The site's partition, modulo what the central topic has.
    Preserve,
}

/// The partitions of one site log's records: everything that does not change from record to record.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    rule: PartitionRule,
    keyless: u32,
    partitions: u32,
}

impl Placement {
    /// For a log whose topic has `partitions` centrally.
    #[must_use]
    pub fn new(rule: PartitionRule, log: &LogKey, partitions: u32) -> Self {
        let start = match rule {
            PartitionRule::Hash => positive(murmur2(log.site.as_str().as_bytes())),
            PartitionRule::Preserve => 0,
        };
        let keyless = (u64::from(start) + u64::from(log.log.partition)) % u64::from(partitions);
        Self {
            rule,
            keyless: u32::try_from(keyless).expect("a remainder is smaller than its divisor"),
            partitions,
        }
    }

    /// The partition of a record.
    #[must_use]
    pub fn partition(&self, key: Option<&[u8]>) -> u32 {
        match (self.rule, key) {
            (PartitionRule::Hash, Some(key)) => partition_for_key(key, self.partitions),
            (PartitionRule::Hash | PartitionRule::Preserve, _) => self.keyless,
        }
    }
}

/// The lane of a site: pinned, for its checkpoints are in that partition.
#[must_use]
pub fn lane_of(site: &SiteId, lanes: u32) -> u32 {
    partition_for_key(site.as_str().as_bytes(), lanes)
}

fn positive(hash: i32) -> u32 {
    hash.cast_unsigned() & 0x7fff_ffff
}

/// The hub's headers of one log's records; only the numbers change from record to record.
#[derive(Debug)]
pub struct Marks {
    site: String,
    incarnation: String,
    partition: String,
    topic: Option<String>,
    offset: String,
    timestamp_ms: i64,
    timestamp: String,
}

impl Marks {
    /// For a log; `with_topic` where the central topic's name does not tell it.
    #[must_use]
    pub fn new(log: &LogKey, with_topic: bool) -> Self {
        Self {
            site: log.site.as_str().to_owned(),
            incarnation: log.incarnation.to_string(),
            partition: log.log.partition.to_string(),
            topic: with_topic.then(|| log.log.topic.as_str().to_owned()),
            offset: String::new(),
            timestamp_ms: 0,
            timestamp: String::new(),
        }
    }

    /// Sets the numbers of the next record.
    pub fn set(&mut self, offset: u64, timestamp_ms: i64) {
        self.timestamp_ms = timestamp_ms;
        self.offset.clear();
        self.timestamp.clear();
        write!(self.offset, "{offset}").expect("writing to a string does not fail");
        write!(self.timestamp, "{timestamp_ms}").expect("writing to a string does not fail");
    }

    /// The timestamp of the record that was set last.
    #[must_use]
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// The headers; the last is only there when the topic is to be told.
    #[must_use]
    pub fn headers(&self) -> ([Header<'_>; 6], usize) {
        let header = |name: &'static str, value| Header {
            name: name.as_bytes(),
            value,
        };
        let topic = self.topic.as_deref();
        let headers = [
            header("kedge.site", Some(self.site.as_bytes())),
            header("kedge.incarnation", Some(self.incarnation.as_bytes())),
            header("kedge.partition", Some(self.partition.as_bytes())),
            header("kedge.offset", Some(self.offset.as_bytes())),
            header("kedge.ts", Some(self.timestamp.as_bytes())),
            header("kedge.topic", topic.map(str::as_bytes)),
        ];
        let count = headers.len() - usize::from(topic.is_none());
        (headers, count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::ids::{Incarnation, TopicName, TopicPartition};

    use super::*;

    #[test]
    fn a_site_stays_in_its_lane() {
        // pinned: checkpoints lie in these partitions
        let lanes: Vec<_> = ["shop-1", "shop-2", "train-17", "a"]
            .map(|name| lane_of(&SiteId::new(name).unwrap(), 4))
            .into();
        assert_eq!(lanes, [2, 1, 0, 0]);
    }

    #[test]
    fn the_topic_is_told_where_the_name_does_not_tell_it() {
        let log = log("shop-1", "orders", 3);
        let mut marks = Marks::new(&log, true);
        marks.set(17, -1);
        let (headers, count) = marks.headers();
        let text: Vec<_> = headers[..count]
            .iter()
            .map(|h| {
                String::from_utf8_lossy(h.name).into_owned()
                    + "="
                    + &String::from_utf8_lossy(h.value.unwrap())
            })
            .collect();
        let incarnation = format!("kedge.incarnation={:032x}", 7);
        assert_eq!(
            text,
            [
                "kedge.site=shop-1",
                incarnation.as_str(),
                "kedge.partition=3",
                "kedge.offset=17",
                "kedge.ts=-1",
                "kedge.topic=orders"
            ]
        );
        assert_eq!(Marks::new(&log, false).headers().1, 5);
    }

    proptest! {
        #[test]
        fn one_logs_records_without_a_key_share_a_partition(
            site in "[a-z]{1,10}", partition in 0_u32..1000, partitions in 1_u32..200,
        ) {
            let log = log(&site, "t", partition);
            for rule in [PartitionRule::Hash, PartitionRule::Preserve] {
                let placement = Placement::new(rule, &log, partitions);
                prop_assert!(placement.partition(None) < partitions);
                prop_assert_eq!(placement.partition(None), placement.partition(None));
            }
            let hash = Placement::new(PartitionRule::Hash, &log, partitions);
            prop_assert_eq!(hash.partition(Some(b"k")), partition_for_key(b"k", partitions));
            let preserve = Placement::new(PartitionRule::Preserve, &log, partitions);
            prop_assert_eq!(preserve.partition(Some(b"k")), partition % partitions);
        }
    }

    fn log(site: &str, topic: &str, partition: u32) -> LogKey {
        LogKey {
            site: SiteId::new(site).unwrap(),
            incarnation: Incarnation(7),
            log: TopicPartition {
                topic: TopicName::new(topic).unwrap(),
                partition,
                track: shared::ids::Track::First,
            },
        }
    }
}
