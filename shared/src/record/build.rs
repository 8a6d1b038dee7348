//! Builds a record batch from single records: what HTTP and MQTT messages become.

use bytes::Bytes;

use super::walk::{Header, put_record};
use super::{Compression, HEADER_LEN, LENGTH_PREFIX, ProducerStamp};

/// Gathers records and closes them into one uncompressed batch with base offset 0.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    records: Vec<u8>,
    count: u32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl BatchBuilder {
    /// Adds a record. The first one's timestamp is the batch's base.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) {
        if self.count == 0 {
            self.base_timestamp_ms = timestamp_ms;
            self.max_timestamp_ms = timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        let delta = timestamp_ms.saturating_sub(self.base_timestamp_ms);
        put_record(&mut self.records, self.count, delta, key, value, headers);
        self.count += 1;
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes that the batch will have.
    #[must_use]
    pub fn len(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// True before the first record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The batch; `None` when it would be empty.
    #[must_use]
    pub fn build(self) -> Option<Bytes> {
        self.build_with(Compression::None, None)
    }

    /// The batch as a producer with this codec and stamp would send it; `None` when it would be empty.
    ///
    /// # Panics
    /// When the batch is larger than 2 GiB, or a codec fails on bytes in memory.
    #[must_use]
    pub fn build_with(self, codec: Compression, producer: Option<ProducerStamp>) -> Option<Bytes> {
        if self.count == 0 {
            return None;
        }
        let records = match codec {
            Compression::None => self.records,
            codec @ (Compression::Gzip
            | Compression::Snappy
            | Compression::Lz4
            | Compression::Zstd) => super::compress(codec, &self.records)
                .expect("a codec does not fail on bytes in memory"),
        };
        let total = HEADER_LEN + records.len();
        let length = i32::try_from(total - LENGTH_PREFIX).expect("a batch is at most 2 GiB");
        let count =
            i32::try_from(self.count).expect("a batch of 2 GiB has fewer than 2^31 records");
        let stamp = producer.unwrap_or(ProducerStamp {
            id: -1,
            epoch: -1,
            base_sequence: -1,
        });
        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(&0_i64.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&0_i32.to_be_bytes());
        out.push(2);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&codec.attributes().to_be_bytes());
        out.extend_from_slice(&(count - 1).to_be_bytes());
        out.extend_from_slice(&self.base_timestamp_ms.to_be_bytes());
        out.extend_from_slice(&self.max_timestamp_ms.to_be_bytes());
        out.extend_from_slice(&stamp.id.to_be_bytes());
        out.extend_from_slice(&stamp.epoch.to_be_bytes());
        out.extend_from_slice(&stamp.base_sequence.to_be_bytes());
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&records);
        let crc = crc32c::crc32c(&out[21..]);
        out[17..21].copy_from_slice(&crc.to_be_bytes());
        Some(out.into())
    }
}
