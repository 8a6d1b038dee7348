//! Round trips, refusals and garbage.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::record::put_record;
use crate::wire::{RecordsHeader, SizeClass};

const LIMIT: usize = 1 << 20;

fn block(base_offset: u64, values: &[&[u8]]) -> Block {
    let mut records = Vec::new();
    for (delta, value) in (0..).zip(values) {
        put_record(
            &mut records,
            delta,
            i64::from(delta),
            None,
            Some(value),
            &[],
        );
    }
    Block {
        base_offset,
        count: u32::try_from(values.len()).unwrap(),
        base_timestamp_ms: 1_700_000_000_000 + i64::try_from(base_offset).unwrap(),
        is_log_append_time: base_offset.is_multiple_of(2),
        records: records.into(),
    }
}

fn blocks() -> Vec<Block> {
    vec![
        block(100, &[b"a", b"bb", &[7; 300]]),
        block(103, &[b"", &[9; 50]]),
        block(105, &[b"the last one"]),
    ]
}

fn raw(blocks: &[Block]) -> Vec<u8> {
    let mut writer = BlockWriter::default();
    for block in blocks {
        writer.push(block).unwrap();
    }
    writer.finish()
}

/// Packs these blocks; the history after them is 9.
fn pack(blocks: &[Block], encoder: &mut dyn Encoder) -> Packed {
    let outgoing = Outgoing {
        raw: &raw(blocks),
        next_offset: blocks.last().unwrap().next_offset(),
        chain: 9,
    };
    outgoing.pack(encoder).unwrap()
}

/// No codec that remembers.
struct Nothing;

impl Memories for Nothing {
    fn fresh(&mut self, _codec: u8) -> Option<Box<dyn ChainCodec>> {
        None
    }

    fn agreed(&mut self, _codec: u8) -> Option<Box<dyn ChainCodec>> {
        None
    }

    fn keep(&mut self, _codec: &dyn ChainCodec) {}
}

fn open_at(packed: &Packed, base_offset: u64, next_offset: u64) -> Result<Vec<Block>, OpenError> {
    let incoming = Incoming {
        header: packed.header,
        payload: &packed.payload,
        base_offset,
        next_offset,
        chain_before: 0,
        chain: Some(9),
        max_raw: LIMIT,
    };
    let opened = Memory::default().open(&incoming, &mut Decoders::default(), &mut Nothing);
    opened.map(|opened| opened.blocks)
}

fn unpack(packed: &Packed) -> Result<Vec<Block>, OpenError> {
    open_at(packed, 100, 106)
}

fn records_of(codec: u8, size: usize) -> RecordsHeader {
    RecordsHeader {
        codec,
        is_fresh: false,
        is_anchor: false,
        size: SizeClass::of(size),
        check: 0,
    }
}

fn encoders() -> Vec<Box<dyn Encoder>> {
    vec![
        Box::new(NoneCodec),
        Box::new(ZstdEncoder::new(1).unwrap()),
        Box::new(ZstdEncoder::new(9).unwrap()),
    ]
}

#[test]
fn blocks_survive_every_codec() {
    for mut encoder in encoders() {
        for _ in 0..3 {
            let packed = pack(&blocks(), &mut *encoder);
            assert_eq!(packed.header.codec, encoder.codec());
            assert_eq!(unpack(&packed), Ok(blocks()));
        }
    }
}

#[test]
fn what_does_not_shrink_is_sent_as_it_is() {
    let blocks = [block(0, &[b"x"])];
    let packed = pack(&blocks, &mut ZstdEncoder::new(3).unwrap());
    assert_eq!(packed.header.codec, CODEC_NONE);
    assert_eq!(packed.payload, raw(&blocks));
}

#[test]
fn right_records_in_the_wrong_place_are_refused() {
    let packed = pack(&blocks(), &mut NoneCodec);
    assert_eq!(unpack(&packed), Ok(blocks()));
    assert!(matches!(
        open_at(&packed, 101, 107),
        Err(OpenError::Broken(BatchError::Checksum { .. }))
    ));
}

#[test]
fn a_writer_refuses_blocks_that_do_not_follow() {
    let mut writer = BlockWriter::default();
    writer.push(&block(100, &[b"a"])).unwrap();
    assert!(writer.push(&block(102, &[b"a"])).is_err());
    assert!(writer.push(&block(101, &[])).is_err());
    writer.push(&block(101, &[b"a"])).unwrap();
    assert_eq!(writer.range(), Some((100, 102)));
}

#[test]
fn records_that_do_not_add_up_are_refused() {
    let raw = Bytes::from(raw(&blocks()));
    assert!(read_blocks(&raw, 100, 106).is_ok());
    assert!(read_blocks(&raw, 100, 105).is_err());
    assert!(read_blocks(&raw, 100, 107).is_err());
    for len in 1..raw.len() {
        assert!(read_blocks(&raw.slice(..len), 100, 106).is_err(), "{len}");
    }
}

#[test]
fn a_flipped_bit_is_found() {
    for mut encoder in encoders() {
        let packed = pack(&blocks(), &mut *encoder);
        for at in 0..packed.payload.len() {
            let mut payload = packed.payload.to_vec();
            payload[at] ^= 0x10;
            let opened = unpack(&Packed {
                header: packed.header,
                payload: payload.into(),
            });
            // a codec may have bits that mean nothing
            assert!(opened.is_err() || opened == Ok(blocks()), "byte {at}");
            assert!(
                opened.is_err() || encoder.codec() != CODEC_NONE,
                "byte {at}"
            );
        }
    }
}

#[test]
fn a_bomb_is_refused_before_and_while_it_is_decoded() {
    let zeros = vec![0; 64 << 20];
    let bomb = Bytes::from(ZstdEncoder::new(1).unwrap().encode(&zeros).unwrap());
    assert!(bomb.len() < 10_000);
    for (size, is_too_large) in [(64 << 20, true), (u32::MAX as usize, true), (1_000, false)] {
        let refused = unpack(&Packed {
            header: records_of(CODEC_ZSTD, size),
            payload: bomb.clone(),
        });
        let by_size = matches!(refused, Err(OpenError::Broken(BatchError::TooLarge { .. })));
        assert!(refused.is_err());
        assert_eq!(by_size, is_too_large, "{refused:?}");
    }
}

#[test]
fn a_codec_whose_memory_nobody_has_is_lost_and_one_that_nobody_has_is_refused() {
    let payload = Bytes::from_static(b"0123456789");
    let mut packed = Packed {
        header: records_of(6, 10),
        payload,
    };
    assert!(matches!(unpack(&packed), Err(OpenError::Lost(_))));
    packed.header.is_fresh = true;
    let refused = OpenError::Broken(BatchError::UnknownCodec(6));
    assert_eq!(unpack(&packed), Err(refused));
}

#[test]
fn a_count_larger_than_the_bytes_is_refused() {
    let mut raw = Vec::new();
    crate::wire::put_varint(&mut raw, u32::MAX.into());
    raw.extend_from_slice(&[0, 0, 3, 1, 2, 3]);
    assert!(read_blocks(&raw.into(), 0, u32::MAX.into()).is_err());
}

proptest! {
    #[test]
    fn batches_survive(
        sizes in proptest::collection::vec(
            proptest::collection::vec(0_usize..200, 1..10), 1..10),
        base in 0_u64..1 << 60,
        level in 1..4,
    ) {
        let mut next = base;
        let mut blocks = Vec::new();
        for sizes in sizes {
            let values: Vec<Vec<u8>> = sizes.iter().map(|len| vec![7; *len]).collect();
            let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            blocks.push(block(next, &values));
            next += values.len() as u64;
        }
        let packed = pack(&blocks, &mut ZstdEncoder::new(level).unwrap());
        prop_assert_eq!(open_at(&packed, base, next), Ok(blocks));
    }
}

#[test]
fn fuzz_blocks() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let raw = Bytes::copy_from_slice(bytes);
        for next in 1..4 {
            if let Ok(blocks) = read_blocks(&raw, 0, next) {
                let records: u64 = blocks.iter().map(|b| u64::from(b.count)).sum();
                assert_eq!(records, next);
            }
        }
    });
}

#[test]
fn fuzz_payloads() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut decoder = ZstdDecoder::default();
        for max_raw in [0, 1, 100, 10_000] {
            if let Ok(raw) = decoder.decode(&Bytes::copy_from_slice(bytes), max_raw) {
                assert!(raw.len() <= max_raw);
            }
        }
    });
}
