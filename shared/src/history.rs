//! The history of a log in 64 bits: each batch's checksum and count, one after another.
//!
//! ```text
//! chain(0)    = 0
//! chain(next) = fmix64((rotl(chain, 29) ^ (crc << 32 | count)) * 0x9e3779b97f4a7c15 + 1)
//! ```
//! `fmix64` is MurmurHash3's finaliser; the checksum is the record batch's. Batches that were acknowledged
//! and dropped count like the others, so a drop or a loss never changes the chain of what follows. Values
//! are stored and sent: these functions never change.

use crate::batch::Block;
use crate::record::{Compression, Records};

/// The history after one more batch.
#[must_use]
pub fn after_batch(chain: u64, crc: u32, count: u32) -> u64 {
    let word = u64::from(crc) << 32 | u64::from(count);
    let mut z = (chain.rotate_left(29) ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(1);
    z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 33)
}

/// The history after blocks whose batches were plain: uncompressed, of a producer that is not idempotent.
/// Their checksums follow from what a block says. `None` when the history before is not known, or when a
/// block cannot have come from a plain batch; for one that could have and did not, the result is another
/// than the store's.
#[must_use]
pub fn after_plain(chain: u64, blocks: &[Block]) -> Option<u64> {
    if chain == 0 {
        return None;
    }
    let next = blocks.iter().try_fold(chain, |chain, block| {
        Some(after_batch(chain, plain_crc(block)?, block.count))
    })?;
    Some(next).filter(|next| *next != 0)
}

/// The checksum of the plain batch that holds this block.
fn plain_crc(block: &Block) -> Option<u32> {
    if block.is_log_append_time {
        return None;
    }
    let mut max = block.base_timestamp_ms;
    for (n, record) in Records::new(&block.records, block.count).enumerate() {
        let timestamp = block
            .base_timestamp_ms
            .checked_add(record.ok()?.timestamp_delta_ms)?;
        max = if n == 0 {
            timestamp
        } else {
            max.max(timestamp)
        };
    }
    let count = i32::try_from(block.count).ok()?;
    let mut head = [0; 40];
    head[0..2].copy_from_slice(&Compression::None.attributes().to_be_bytes());
    head[2..6].copy_from_slice(&(count - 1).to_be_bytes());
    head[6..14].copy_from_slice(&block.base_timestamp_ms.to_be_bytes());
    head[14..22].copy_from_slice(&max.to_be_bytes());
    // no producer: id, epoch and base sequence are -1
    head[22..36].fill(0xff);
    head[36..40].copy_from_slice(&count.to_be_bytes());
    Some(crc32c::crc32c_append(crc32c::crc32c(&head), &block.records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchBuilder, BatchHeader, HEADER_LEN, ProducerStamp};

    #[test]
    fn values_stay_as_they_are_for_ever() {
        let one = after_batch(0, 0x1234_5678, 3);
        let two = after_batch(one, 0, 1);
        assert_eq!([one, two], GOLDEN);
    }

    #[test]
    fn order_and_count_matter() {
        let ab = after_batch(after_batch(0, 1, 1), 2, 1);
        let ba = after_batch(after_batch(0, 2, 1), 1, 1);
        assert_ne!(ab, ba);
        assert_ne!(after_batch(0, 1, 1), after_batch(0, 1, 2));
    }

    fn built(producer: Option<ProducerStamp>) -> (Block, BatchHeader) {
        let mut builder = BatchBuilder::default();
        builder.push(1_000, Some(b"k"), Some(b"v"), &[]);
        builder.push(990, None, Some(b"w"), &[]);
        builder.push(1_010, None, None, &[]);
        let batch = builder.build_with(Compression::None, producer).unwrap();
        let header = BatchHeader::parse(&batch).unwrap();
        let block = Block {
            base_offset: 7,
            count: header.count,
            base_timestamp_ms: header.base_timestamp_ms,
            is_log_append_time: false,
            records: batch.slice(HEADER_LEN..),
        };
        (block, header)
    }

    #[test]
    fn the_history_after_plain_batches_follows_from_their_blocks() {
        let (block, header) = built(None);
        let known = after_batch(5, header.crc, header.count);
        assert_eq!(after_plain(5, std::slice::from_ref(&block)), Some(known));
        assert_eq!(after_plain(0, &[block]), None, "nothing is known before");
    }

    #[test]
    fn an_idempotent_producers_history_does_not_follow_from_its_records() {
        let (block, header) = built(Some(ProducerStamp {
            id: 3,
            epoch: 0,
            base_sequence: 9,
        }));
        let known = after_batch(5, header.crc, header.count);
        assert_ne!(after_plain(5, &[block]), Some(known));
    }

    const GOLDEN: [u64; 2] = [3_089_815_396_989_942_888, 1_230_754_960_255_556_489];
}
