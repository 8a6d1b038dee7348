//! Judges a run: what was acknowledged at the sites against what a `read_committed` consumer finds.
//!
//! The promise: each acknowledged record is there exactly once, unchanged; nothing is there twice, even
//! if it was not acknowledged; nothing is there that nobody wrote; and what one writer wrote to one
//! partition keeps its order, as do the site's offsets.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Result, bail};

use crate::central::Committed;
use crate::record::Numbered;
use crate::writer::Acked;

/// Headers that the hub adds.
pub const SITE_HEADER: &str = "kedge.site";
/// The store's history that the offset belongs to.
pub const INCARNATION_HEADER: &str = "kedge.incarnation";
/// The partition at the site.
pub const PARTITION_HEADER: &str = "kedge.partition";
/// The offset at the site.
pub const OFFSET_HEADER: &str = "kedge.offset";

/// How many examples of each fault a verdict keeps.
const EXAMPLES: usize = 5;

/// The outcome. Clean when every fault's count is 0.
#[derive(Debug, Default, Clone)]
pub struct Verdict {
    /// Records acknowledged to writers.
    pub acked: usize,
    /// Records found at the centre.
    pub found: usize,
    /// Acknowledged and not found.
    pub missing: Fault,
    /// Found more than once, by content or by (site, topic, partition, offset).
    pub duplicated: Fault,
    /// Found after a later one of the same order.
    pub disordered: Fault,
    /// Found with other bytes than were acknowledged.
    pub altered: Fault,
    /// Found although nobody wrote it.
    pub foreign: Fault,
}

/// One kind of fault.
#[derive(Debug, Default, Clone)]
pub struct Fault {
    /// How often.
    pub count: usize,
    /// The first few.
    pub examples: Vec<String>,
}

impl Fault {
    fn note(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

impl Verdict {
    /// Whether the promise held.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.faults().iter().all(|(_, fault)| fault.count == 0)
    }

    /// Fails with all that is wrong.
    ///
    /// # Errors
    /// When the promise was broken.
    pub fn check(&self) -> Result<()> {
        if !self.is_clean() {
            bail!("the promise is broken: {self}");
        }
        Ok(())
    }

    fn faults(&self) -> [(&'static str, &Fault); 5] {
        [
            ("missing", &self.missing),
            ("duplicated", &self.duplicated),
            ("disordered", &self.disordered),
            ("altered", &self.altered),
            ("foreign", &self.foreign),
        ]
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} acknowledged, {} found", self.acked, self.found)?;
        for (name, fault) in self.faults() {
            write!(out, ", {} {name}", fault.count)?;
            if fault.count > 0 {
                write!(out, " (such as {})", fault.examples.join("; "))?;
            }
        }
        Ok(())
    }
}

/// Compares. `topic_at_centre` says where a site's topic goes.
#[must_use]
pub fn judge(
    acked: &[Acked],
    committed: &[Committed],
    topic_at_centre: impl Fn(&str) -> String,
) -> Verdict {
    let mut verdict = Verdict {
        acked: acked.len(),
        found: committed.len(),
        ..Verdict::default()
    };
    let mut found: HashMap<(&str, String, u64), &Committed> = HashMap::new();
    let mut writers: HashMap<(String, Place<'_>), u64> = HashMap::new();
    let mut logs: HashMap<Log<'_>, i64> = HashMap::new();
    let mut places: HashMap<([String; 3], i32, i64), &Committed> = HashMap::new();
    for record in committed {
        let payload = record.payload.as_deref().unwrap_or_default();
        let Some(numbered) = Numbered::decode(payload) else {
            verdict.foreign.note(|| place(record));
            continue;
        };
        let log = Log::of(record);
        if let Some((log, offset)) = &log {
            let names = [
                log.site.clone(),
                log.incarnation.clone(),
                record.topic.clone(),
            ];
            let id = (names, log.partition, *offset);
            if let Some(first) = places.insert(id, record) {
                verdict.duplicated.note(|| {
                    format!(
                        "offset {offset} of partition {} of {} at {} and {}",
                        log.partition,
                        log.site,
                        place(first),
                        place(record)
                    )
                });
            }
            let last = logs.entry(log.clone()).or_insert(-1);
            if *offset <= *last {
                verdict
                    .disordered
                    .note(|| format!("site offset {offset} after {last} at {}", place(record)));
            }
            *last = (*last).max(*offset);
        }
        let source = log.map(|(log, _)| log.partition);
        let order = (
            numbered.writer.clone(),
            (record.topic.as_str(), record.partition, source),
        );
        if let Some(last) = writers.insert(order, numbered.number)
            && last >= numbered.number
        {
            verdict.disordered.note(|| {
                format!(
                    "{} {} after {last} at {}",
                    numbered.writer,
                    numbered.number,
                    place(record)
                )
            });
        }
        let id = (
            record.topic.as_str(),
            numbered.writer.clone(),
            numbered.number,
        );
        if let Some(first) = found.insert(id, record) {
            verdict.duplicated.note(|| {
                format!(
                    "{} {} at {} and {}",
                    numbered.writer,
                    numbered.number,
                    place(first),
                    place(record)
                )
            });
        }
    }
    for record in acked {
        let topic = topic_at_centre(&record.topic);
        let Some(there) = found.get(&(topic.as_str(), record.writer.clone(), record.number)) else {
            verdict.missing.note(|| {
                format!(
                    "{} {} of {} at {:?}",
                    record.writer, record.number, record.topic, record.place
                )
            });
            continue;
        };
        let is_same = crc32c::crc32c(there.payload.as_deref().unwrap_or_default()) == record.hash;
        if !is_same {
            verdict.altered.note(|| place(there));
        }
        if let (Some((partition, offset)), Some((log, there_offset))) =
            (record.place, Log::of(there))
            && (partition, offset) != (log.partition, there_offset)
        {
            verdict.altered.note(|| {
                format!("{} {} was acknowledged at {partition}@{offset} and came from {}@{there_offset}", record.writer, record.number, log.partition)
            });
        }
    }
    verdict
}

type Place<'a> = (&'a str, i32, Option<i32>);

/// Records of one log at the site that went to one central partition keep their order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Log<'a> {
    site: String,
    incarnation: String,
    partition: i32,
    central: (&'a str, i32),
}

impl<'a> Log<'a> {
    fn of(record: &'a Committed) -> Option<(Self, i64)> {
        let log = Self {
            site: record.header(SITE_HEADER)?.to_owned(),
            incarnation: record
                .header(INCARNATION_HEADER)
                .unwrap_or_default()
                .to_owned(),
            partition: record.header(PARTITION_HEADER)?.parse().ok()?,
            central: (&record.topic, record.partition),
        };
        Some((log, record.header(OFFSET_HEADER)?.parse().ok()?))
    }
}

fn place(record: &Committed) -> String {
    format!("{}-{}@{}", record.topic, record.partition, record.offset)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn acked(number: u64) -> Acked {
        let payload = payload(number);
        Acked {
            topic: "t".to_owned(),
            writer: "w".to_owned(),
            number,
            hash: crc32c::crc32c(&payload),
            place: Some((0, i64::try_from(number).unwrap())),
            at: Instant::now(),
        }
    }

    fn payload(number: u64) -> Vec<u8> {
        Numbered {
            writer: "w".to_owned(),
            number,
            pad: String::new(),
        }
        .encode()
    }

    fn committed(offset: i64, number: u64) -> Committed {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        Committed {
            topic: "t".to_owned(),
            partition: 0,
            offset,
            key: None,
            payload: Some(payload(number)),
            headers: vec![
                header(SITE_HEADER, "s"),
                header(PARTITION_HEADER, "0"),
                header(OFFSET_HEADER, &number.to_string()),
            ],
            timestamp_ms: None,
            seen: Instant::now(),
        }
    }

    fn judged(acks: &[u64], numbers: &[u64]) -> Verdict {
        let acks: Vec<_> = acks.iter().map(|number| acked(*number)).collect();
        let records: Vec<_> = (0..)
            .zip(numbers)
            .map(|(at, number)| committed(at, *number))
            .collect();
        judge(&acks, &records, ToOwned::to_owned)
    }

    #[test]
    fn exactly_once_in_order_is_clean_with_or_without_unacknowledged_records() {
        assert!(judged(&[0, 1, 2], &[0, 1, 2]).is_clean());
        assert!(judged(&[0, 2], &[0, 1, 2, 3]).is_clean());
    }

    #[test]
    fn a_missing_record_is_seen() {
        assert_eq!(judged(&[0, 1, 2], &[0, 2]).missing.count, 1);
    }

    #[test]
    fn a_duplicate_is_seen_even_if_it_was_never_acknowledged() {
        assert!(judged(&[0], &[0, 1, 1]).duplicated.count > 0);
        assert!(judged(&[0], &[0, 1, 1]).check().is_err());
    }

    #[test]
    fn a_wrong_order_is_seen() {
        assert!(judged(&[0, 1, 2], &[0, 2, 1]).disordered.count > 0);
    }

    #[test]
    fn altered_and_foreign_records_are_seen() {
        let mut altered = committed(0, 0);
        altered.payload = Some(
            Numbered {
                writer: "w".to_owned(),
                number: 0,
                pad: "x".to_owned(),
            }
            .encode(),
        );
        let mut foreign = committed(1, 1);
        foreign.payload = Some(b"hello".to_vec());
        let verdict = judge(&[acked(0)], &[altered, foreign], ToOwned::to_owned);
        assert_eq!((verdict.altered.count, verdict.foreign.count), (1, 1));
    }
}
