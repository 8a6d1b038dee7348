//! Keys of the three column families. Numbers are big endian, so that keys sort as they count.
//!
//! ```text
//! log   partition u32 │ base offset u64            one record batch
//! idx   partition u32 │ base offset u64            sparse time index
//! meta  0x01                                       the store: incarnation, ids, age
//!       0x02 │ partition u32                       a partition's books
//!       0x03 │ partition u32 │ from offset u64     a gap
//!       0x04 │ partition u32 │ producer id i64     an idempotent producer
//!       0x05 │ space u8 │ key                      a fact of a protocol
//! ```

use shared::ids::Offset;

use super::PartitionId;
use super::producers::ProducerKey;
use super::state::StateSpace;

pub(super) const STORE: &[u8] = &[1];
pub(super) const PARTITION: u8 = 2;
pub(super) const GAP: u8 = 3;
pub(super) const PRODUCER: u8 = 4;
pub(super) const STATE: u8 = 5;
/// Bytes before a fact's own key.
pub(super) const STATE_PREFIX: usize = 2;

/// Key in `log` and `idx`.
pub(super) fn item(partition: PartitionId, offset: Offset) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.0.to_be_bytes());
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The offset in a key of `log` or `idx`; `None` when it is none of this partition.
pub(super) fn offset_of(partition: PartitionId, key: &[u8]) -> Option<Offset> {
    let (found, offset) = split_item(key)?;
    (found == partition).then_some(offset)
}

/// The parts of a key of `log` or `idx`.
pub(super) fn split_item(key: &[u8]) -> Option<(PartitionId, Offset)> {
    let (partition, offset) = key.split_first_chunk::<4>()?;
    let partition = PartitionId(u32::from_be_bytes(*partition));
    Some((partition, u64::from_be_bytes(offset.try_into().ok()?)))
}

pub(super) fn partition(partition: PartitionId) -> [u8; 5] {
    let mut key = [PARTITION; 5];
    key[1..].copy_from_slice(&partition.0.to_be_bytes());
    key
}

pub(super) fn gap(partition: PartitionId, from: Offset) -> [u8; 13] {
    let mut key = [GAP; 13];
    key[1..].copy_from_slice(&item(partition, from));
    key
}

pub(super) fn producer(of: ProducerKey) -> [u8; 13] {
    let mut key = [PRODUCER; 13];
    key[1..5].copy_from_slice(&of.partition.0.to_be_bytes());
    key[5..].copy_from_slice(&of.id.to_be_bytes());
    key
}

/// A fact's key, or the beginning of several.
pub(super) fn state(space: StateSpace, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(STATE_PREFIX + key.len());
    full.extend([STATE, space as u8]);
    full.extend(key);
    full
}

pub(super) fn split_producer(key: &[u8]) -> Option<ProducerKey> {
    let (partition, id) = split_item(key.strip_prefix(&[PRODUCER])?)?;
    Some(ProducerKey {
        partition,
        id: id.cast_signed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_they_count() {
        let p = PartitionId;
        let sorted = [
            item(p(1), 2),
            item(p(1), 256),
            item(p(1), u64::MAX),
            item(p(2), 0),
        ];
        assert!(sorted.is_sorted());
        assert_eq!(offset_of(p(1), &sorted[1]), Some(256));
        assert_eq!(offset_of(p(2), &sorted[1]), None);
        assert_eq!(split_item(&sorted[1][..11]), None);
    }

    #[test]
    fn a_producers_key_comes_apart_again() {
        let key = ProducerKey {
            partition: PartitionId(7),
            id: 1 << 40,
        };
        assert_eq!(split_producer(&producer(key)), Some(key));
    }
}
