//! How full each partition's batch is, as far as the hub handed records in.
//!
//! librdkafka has one batch of a partition under way at a time (of an idempotent producer), and while
//! another one stands behind it whose time has come, its thread asks again and again whether it may go:
//! a quarter of the hub's processor time. So a lane never hands in more than one batch a partition
//! without waiting for the answers; other lanes work meanwhile.

use crate::sink::OutRecord;

/// Upper bound of a record's lengths, flags and deltas in a batch, and of a header's lengths.
const RECORD_OVERHEAD: usize = 40;
const HEADER_OVERHEAD: usize = 10;

/// Bytes and records handed in since the last flush.
#[derive(Debug)]
pub(super) struct Fill {
    limit: Load,
    topics: Vec<(String, Vec<Load>)>,
    /// The topic of the record before: mostly that of the next one, too.
    current: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    bytes: usize,
    records: usize,
}

impl Fill {
    /// For batches of so many bytes and records at most.
    pub(super) fn new(bytes: usize, records: usize) -> Self {
        Self {
            limit: Load { bytes, records },
            topics: Vec::new(),
            current: 0,
        }
    }

    /// Counts a record in; false when it does not fit its partition's batch any more, and is not counted.
    pub(super) fn add(&mut self, record: &OutRecord<'_>) -> bool {
        let bytes = size(record);
        let limit = self.limit;
        let load = self.load(record.topic, record.partition);
        let is_full = load.bytes + bytes > limit.bytes || load.records >= limit.records;
        if is_full && load.records > 0 {
            return false;
        }
        load.bytes += bytes;
        load.records += 1;
        true
    }

    /// All batches are answered for.
    pub(super) fn clear(&mut self) {
        self.topics.clear();
    }

    fn load(&mut self, topic: &str, partition: u32) -> &mut Load {
        let is_current = |(name, _): &(String, Vec<Load>)| name == topic;
        if !self.topics.get(self.current).is_some_and(is_current) {
            self.current = match self.topics.iter().position(is_current) {
                Some(known) => known,
                None => {
                    self.topics.push((topic.to_owned(), Vec::new()));
                    self.topics.len() - 1
                }
            };
        }
        let partitions = &mut self.topics[self.current].1;
        let partition = usize::try_from(partition).unwrap_or(usize::MAX);
        if partitions.len() <= partition {
            partitions.resize(partition + 1, Load::default());
        }
        &mut partitions[partition]
    }
}

fn size(record: &OutRecord<'_>) -> usize {
    let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let own = record.headers.clone().into_iter().flatten();
    let headers = own.chain(record.marks.iter().copied());
    let headers = headers.map(|header| header.name.len() + len(header.value) + HEADER_OVERHEAD);
    RECORD_OVERHEAD + len(record.key) + len(record.value) + headers.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_takes_one_batch_between_flushes() {
        let mut fill = Fill::new(1000, 3);
        for _ in 0..3 {
            assert!(fill.add(&record("t", 1, 10)));
        }
        assert!(!fill.add(&record("t", 1, 10)), "as many records as fit");
        assert!(fill.add(&record("t", 0, 800)) && fill.add(&record("u", 1, 800)));
        assert!(!fill.add(&record("t", 0, 200)), "as many bytes as fit");
        fill.clear();
        assert!(fill.add(&record("t", 1, 10)));
    }

    #[test]
    fn a_record_larger_than_a_batch_goes_alone() {
        let mut fill = Fill::new(1000, 3);
        assert!(fill.add(&record("t", 0, 5000)));
        assert!(!fill.add(&record("t", 0, 1)));
    }

    fn record(topic: &str, partition: u32, len: usize) -> OutRecord<'_> {
        const ZEROS: [u8; 5000] = [0; 5000];
        OutRecord {
            topic,
            partition,
            key: None,
            value: Some(&ZEROS[..len]),
            timestamp_ms: 1,
            headers: None,
            marks: &[],
        }
    }
}
