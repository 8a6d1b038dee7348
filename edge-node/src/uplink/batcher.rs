//! Turns stored items into what travels on one data stream. Pure.
//!
//! One stream carries whole stored batches only, so that a checkpoint always lies on a batch boundary,
//! where the store knows the log's history (see `Store::chain_at`). A gap travels alone.

use bytes::Bytes;
use shared::batch::{BatchError, Block, BlockWriter};
use shared::history;
use shared::ids::Offset;
use shared::link::ReadResult;
use shared::record::{self, BatchHeader, RecordError};

use crate::store::Item;

/// Why stored items could not be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum AssembleError {
    /// A stored batch does not open, although it was checked when it came in.
    #[error("stored batch at offset {offset}: {error}")]
    Stored { offset: Offset, error: RecordError },
    /// Stored batches do not follow on each other, or a codec failed.
    #[error(transparent)]
    Codec(#[from] BatchError),
}

/// What goes on one data stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assembled {
    /// Consecutive records.
    Records {
        /// The raw payload.
        raw: Vec<u8>,
        /// First offset.
        base_offset: Offset,
        /// Offset after the last.
        next_offset: Offset,
        /// The store's chain at `next_offset`.
        chain: u64,
        /// The hub computes the chain by itself.
        is_chain_known: bool,
        /// There was more than fits.
        is_backlog: bool,
    },
    /// A range that the store dropped, or nothing.
    Other(ReadResult),
}

/// Gathers as many of the leading `items` as fit `max_raw` decoded bytes (always at least one) for one
/// stream. `known` is the chain before them as the hub will know it; 0: it will not.
pub(super) fn assemble(
    items: Vec<Item>,
    max_raw: usize,
    max_stored_uncompressed: usize,
    known: u64,
) -> Result<Assembled, AssembleError> {
    let mut writer = BlockWriter::default();
    let mut last = None;
    let mut followed = Some(known);
    let mut is_backlog = false;
    for item in items {
        match item {
            Item::Gap {
                from,
                to,
                reason,
                chain,
            } if last.is_none() => {
                return Ok(Assembled::Other(ReadResult::Gap {
                    from,
                    to,
                    reason: reason as u8,
                    chain,
                }));
            }
            Item::Gap { .. } => break,
            Item::Batch {
                batch,
                base_offset,
                next_offset,
                chain,
            } => {
                let block = open_block(&batch, base_offset, max_stored_uncompressed)?;
                if last.is_some() && writer.raw_len() + block.records.len() > max_raw {
                    is_backlog = true;
                    break;
                }
                writer.push(&block)?;
                followed = followed.and_then(|before| history::after_plain(before, &[block]));
                last = Some((next_offset, chain));
            }
        }
    }
    let (Some((next_offset, chain)), Some((base_offset, _))) = (last, writer.range()) else {
        return Ok(Assembled::Other(ReadResult::Nothing));
    };
    Ok(Assembled::Records {
        is_backlog: is_backlog || writer.raw_len() >= max_raw,
        raw: writer.finish(),
        base_offset,
        next_offset,
        chain,
        is_chain_known: followed == Some(chain),
    })
}

fn open_block(stored: &Bytes, base_offset: Offset, limit: usize) -> Result<Block, AssembleError> {
    let refused = |error| AssembleError::Stored {
        offset: base_offset,
        error,
    };
    let header = BatchHeader::parse(stored).map_err(refused)?;
    let records = record::open(stored, &header, limit).map_err(refused)?;
    let is_append_time = header.is_log_append_time;
    let base = if is_append_time {
        header.max_timestamp_ms
    } else {
        header.base_timestamp_ms
    };
    Ok(Block {
        base_offset,
        count: header.count,
        base_timestamp_ms: base,
        is_log_append_time: is_append_time,
        records,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::GapReason;
    use shared::record::BatchBuilder;

    fn stored(base_offset: Offset, value_len: usize) -> Item {
        let mut builder = BatchBuilder::default();
        builder.push(7, None, Some(&vec![1; value_len]), &[]);
        let batch = builder.build().unwrap();
        Item::Batch {
            batch,
            base_offset,
            next_offset: base_offset + 1,
            chain: base_offset + 100,
        }
    }

    fn pack(items: Vec<Item>, max_raw: usize) -> Assembled {
        assemble(items, max_raw, 1 << 20, 0).unwrap()
    }

    fn records(result: &Assembled) -> (Offset, Offset, u64) {
        match result {
            Assembled::Records {
                base_offset,
                next_offset,
                chain,
                ..
            } => (*base_offset, *next_offset, *chain),
            other @ Assembled::Other(_) => panic!("{other:?}"),
        }
    }

    #[test]
    fn batches_share_a_stream_up_to_the_limit() {
        let out = pack(vec![stored(5, 400), stored(6, 400), stored(7, 400)], 1000);
        assert_eq!(records(&out), (5, 7, 106));
    }

    #[test]
    fn a_batch_larger_than_the_limit_travels_alone() {
        assert_eq!(
            records(&pack(vec![stored(5, 4000), stored(6, 10)], 1000)),
            (5, 6, 105)
        );
    }

    #[test]
    fn a_gap_travels_alone_and_in_its_place() {
        let gap = Item::Gap {
            from: 6,
            to: 9,
            reason: GapReason::Expired,
            chain: 3,
        };
        let out = pack(vec![stored(5, 10), gap.clone(), stored(9, 10)], 1000);
        assert_eq!(records(&out), (5, 6, 105));
        let out = pack(vec![gap, stored(9, 10)], 1000);
        assert_eq!(
            out,
            Assembled::Other(ReadResult::Gap {
                from: 6,
                to: 9,
                reason: 1,
                chain: 3
            })
        );
    }

    #[test]
    fn nothing_stored_is_nothing_to_send() {
        let nothing = Assembled::Other(ReadResult::Nothing);
        assert_eq!(pack(vec![], 1000), nothing);
    }
}
