//! Round trips, refusals and garbage.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::record::put_record;
use crate::wire::{DataContent, DataHeader, Handle, RecordsHeader};

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

fn header(records: RecordsHeader, base_offset: u64, next_offset: u64) -> DataHeader {
    DataHeader {
        handle: Handle(1),
        base_offset,
        next_offset,
        chain: 1,
        content: DataContent::Records(records),
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
    let mut decoders = Decoders::default();
    for mut encoder in encoders() {
        for _ in 0..3 {
            let encoded = encode(raw(&blocks()), &mut *encoder).unwrap();
            assert_eq!(encoded.header.codec, encoder.codec());
            let header = header(encoded.header, 100, 106);
            let found = open(&header, &encoded.payload, LIMIT, &mut decoders).unwrap();
            assert_eq!(found, blocks());
        }
    }
}

#[test]
fn what_does_not_shrink_is_sent_as_it_is() {
    let raw = raw(&[block(0, &[b"x"])]);
    let encoded = encode(raw.clone(), &mut ZstdEncoder::new(3).unwrap()).unwrap();
    assert_eq!(encoded.header.codec, CODEC_NONE);
    assert_eq!(encoded.payload, raw);
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
        let encoded = encode(raw(&blocks()), &mut *encoder).unwrap();
        let header = header(encoded.header, 100, 106);
        for at in 0..encoded.payload.len() {
            let mut payload = encoded.payload.to_vec();
            payload[at] ^= 0x10;
            let opened = open(&header, &payload.into(), LIMIT, &mut Decoders::default());
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
    let mut decoders = Decoders::default();
    for (raw_len, is_too_large) in [(64 << 20, true), (u32::MAX, true), (1_000, false)] {
        let records = RecordsHeader {
            codec: CODEC_ZSTD,
            raw_len,
            crc: 0,
        };
        let refused = open(&header(records, 0, 1), &bomb, LIMIT, &mut decoders).unwrap_err();
        let by_size = matches!(refused, BatchError::TooLarge { .. });
        assert_eq!(by_size, is_too_large, "{refused}");
    }
}

#[test]
fn a_codec_that_nobody_has_is_refused() {
    let records = RecordsHeader {
        codec: 99,
        raw_len: 10,
        crc: 0,
    };
    let opened = open(
        &header(records, 0, 1),
        &Bytes::from_static(b"0123456789"),
        LIMIT,
        &mut Decoders::default(),
    );
    assert_eq!(opened, Err(BatchError::UnknownCodec(99)));
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
        let encoded = encode(raw(&blocks), &mut ZstdEncoder::new(level).unwrap()).unwrap();
        let header = header(encoded.header, base, next);
        let found = open(&header, &encoded.payload, LIMIT, &mut Decoders::default()).unwrap();
        prop_assert_eq!(found, blocks);
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
        for raw_len in [0, 1, 100, 10_000] {
            if let Ok(raw) = decoder.decode(&Bytes::copy_from_slice(bytes), raw_len) {
                assert_eq!(raw.len(), raw_len);
            }
        }
    });
}
