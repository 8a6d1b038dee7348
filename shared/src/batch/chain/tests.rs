//! What every codec that remembers promises, as the uplink and the hub use it.

use super::*;
use crate::batch::split::{ihex, mix};
use crate::batch::{
    Block, BlockWriter, Decoders, Incoming, Memories, Memory, OpenError, Outgoing, Packed,
    read_blocks, supported_codecs,
};
use crate::record::put_record;

const LIMITS: ChainLimits = ChainLimits {
    state_bytes: 256 << 10,
};

fn codecs() -> Vec<u8> {
    let codecs = supported_codecs().into_iter();
    let codecs: Vec<u8> = codecs.filter(|codec| remembers(*codec)).collect();
    assert!(codecs.contains(&CODEC_DICTIONARY) && codecs.len() == 3);
    codecs
}

fn chain(codec: u8) -> Box<dyn ChainCodec> {
    new_chain(codec, LIMITS, 3).unwrap()
}

/// Records like those before, now and then something else.
fn payload(n: u64) -> Vec<u8> {
    if n % 17 != 5 {
        return readings(n);
    }
    let len = mix(n, 0) % 700;
    (0..len).map(|at| mix(at, n).to_le_bytes()[1]).collect()
}

/// One to four records.
fn count(n: u64) -> u32 {
    u32::from(mix(n, 0).to_le_bytes()[0] % 4 + 1)
}

fn readings(n: u64) -> Vec<u8> {
    let noise = mix(n, 0);
    let mut records = Vec::new();
    for at in 0..count(n) {
        let value = format!(
            r#"{{"id":"press-{}","ts":{},"t":{}.{},"ok":true}}"#,
            noise % 5,
            n * 1000,
            20 + noise % 7,
            noise % 10
        );
        put_record(
            &mut records,
            at,
            0,
            Some(b"press"),
            Some(value.as_bytes()),
            &[],
        );
    }
    let mut writer = BlockWriter::default();
    let block = Block {
        base_offset: n,
        count: count(n),
        base_timestamp_ms: (n * 1000).cast_signed(),
        is_log_append_time: false,
        records: records.into(),
    };
    writer.push(&block).unwrap();
    writer.finish()
}

#[test]
fn both_ends_hold_the_same_at_every_position_and_go_on_from_it() {
    for codec in codecs() {
        let (mut encoder, mut decoder) = (chain(codec), chain(codec));
        assert_ne!(encoder.position(), 0);
        for n in 0..900 {
            let raw = payload(n);
            let sent = encoder.encode(&raw).unwrap();
            assert_eq!(decoder.decode(&sent, raw.len()).unwrap(), raw, "{codec}");
            assert_eq!(encoder.position(), decoder.position());
            if n % 100 < 3 || n % 90 == 0 {
                let saved = encoder.save();
                assert!(saved == decoder.save(), "codec {codec} at {n}");
                let loaded = load_chain(codec, &saved, LIMITS, 1).unwrap();
                assert_eq!(loaded.position(), encoder.position());
                if n % 200 != 1 {
                    (encoder, decoder) = (load_chain(codec, &saved, LIMITS, 3).unwrap(), loaded);
                }
            }
        }
    }
}

/// One block of records with these values.
fn payload_of(values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut records = Vec::new();
    for (at, value) in (0..).zip(values) {
        put_record(&mut records, at, 0, None, *value, &[]);
    }
    let mut writer = BlockWriter::default();
    let block = Block {
        base_offset: 0,
        count: u32::try_from(values.len()).unwrap(),
        base_timestamp_ms: 0,
        is_log_append_time: false,
        records: records.into(),
    };
    writer.push(&block).unwrap();
    writer.finish()
}

#[test]
fn firmware_in_intel_hex_costs_what_is_new_in_its_bytes() {
    let noise = |from: u64, len: u64| (from..from + len).map(|i| mix(i, 5).to_le_bytes()[3]);
    let old: Vec<u8> = noise(0, 20_000).collect();
    let mut new = old.clone();
    // what follows stands in other lines and at other addresses from here on
    new.splice(3_001..3_001, noise(70_000, 5));
    let old = ihex::tests::text(&old, "\r\n", false);
    let new = ihex::tests::text(&new, "\r\n", true);
    let blob: Vec<u8> = noise(90_000, 3_000).collect();
    let first = payload_of(&[Some(old.as_bytes()), None, Some(&blob), Some(b"")]);
    let second = payload_of(&[Some(new.as_bytes())]);
    for codec in [CODEC_COLUMNAR, CODEC_MODELLED] {
        let (mut encoder, mut decoder) = (chain(codec), chain(codec));
        for (raw, most) in [(&first, 23_300), (&second, 150)] {
            let sent = encoder.encode(raw).unwrap();
            assert!(sent.len() < most, "{codec}: {} bytes", sent.len());
            assert!(chain(codec).decode(&sent, raw.len() - 1).is_err());
            assert_eq!(decoder.decode(&sent, raw.len()).unwrap(), *raw, "{codec}");
        }
    }
}

#[test]
fn a_saved_state_is_for_its_codec_alone() {
    for codec in codecs() {
        let saved = chain(codec).save();
        for other in codecs() {
            assert_eq!(load_chain(other, &saved, LIMITS, 3).is_ok(), other == codec);
        }
    }
}

#[test]
fn positions_of_two_codecs_differ() {
    let mut positions: Vec<u64> = codecs().into_iter().map(|c| chain(c).position()).collect();
    positions.sort_unstable();
    positions.dedup();
    assert_eq!(positions.len(), codecs().len());
}

#[test]
fn garbage_is_an_error_or_some_payload_within_the_limit() {
    for codec in codecs() {
        for n in 0..300 {
            let mut bytes: Vec<u8> = (0..n).map(|at| mix(at, n).to_le_bytes()[2]).collect();
            if let Some(head) = bytes.first_mut() {
                *head = n.to_le_bytes()[0];
            }
            let raw = chain(codec).decode(&bytes, 10_000);
            assert!(raw.is_err() || raw.is_ok_and(|raw| raw.len() <= 10_000));
            assert!(load_chain(codec, &bytes, LIMITS, 3).is_err());
        }
    }
}

/// The state that was kept last.
#[derive(Default)]
struct Shelf(Option<Vec<u8>>);

impl Memories for Shelf {
    fn fresh(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>> {
        new_chain(codec, LIMITS, 3).ok()
    }

    fn agreed(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>> {
        load_chain(codec, &self.0.take()?, LIMITS, 3).ok()
    }

    fn keep(&mut self, codec: &dyn ChainCodec) {
        self.0 = Some(codec.save());
    }
}

const HISTORY: u64 = 9;

fn pack(n: u64, encoder: &mut dyn ChainCodec, is_fresh: bool) -> Packed {
    let raw = readings(n);
    let outgoing = Outgoing {
        raw: &raw,
        next_offset: n + u64::from(count(n)),
        chain: HISTORY,
    };
    outgoing.pack_chain(encoder, is_fresh).unwrap()
}

fn open(
    n: u64,
    packed: &Packed,
    memory: &mut Memory,
    shelf: &mut Shelf,
) -> Result<Vec<Block>, OpenError> {
    let incoming = Incoming {
        header: packed.header,
        payload: &packed.payload,
        base_offset: n,
        next_offset: n + u64::from(count(n)),
        chain_before: 0,
        chain: Some(HISTORY),
        max_raw: 4 << 20,
    };
    let opened = memory.open(&incoming, &mut Decoders::default(), shelf)?;
    Ok(opened.blocks)
}

fn blocks(n: u64) -> Vec<Block> {
    read_blocks(&readings(n).into(), n, n + u64::from(count(n))).unwrap()
}

#[test]
fn a_lost_state_is_told_and_both_go_on_from_an_anchor_or_anew() {
    for codec in codecs() {
        let (mut encoder, mut memory) = (chain(codec), Memory::default());
        let mut shelf = Shelf::default();
        for n in 0..400 {
            let mut packed = pack(n, encoder.as_mut(), n == 0);
            packed.header.is_anchor = n == 399;
            assert_eq!(
                open(n, &packed, &mut memory, &mut shelf).unwrap(),
                blocks(n)
            );
        }
        let anchor = encoder.save();
        // the session ends, and with it what went on the way
        pack(400, encoder.as_mut(), false);
        memory = Memory::default();
        encoder = load_chain(codec, &anchor, LIMITS, 3).unwrap();
        for n in 400..410 {
            let packed = pack(n, encoder.as_mut(), false);
            assert_eq!(
                open(n, &packed, &mut memory, &mut shelf).unwrap(),
                blocks(n)
            );
        }
        memory.forget();
        let packed = pack(410, encoder.as_mut(), false);
        let lost = open(410, &packed, &mut memory, &mut shelf);
        assert!(matches!(lost, Err(OpenError::Lost(_))), "{lost:?}");
        encoder = chain(codec);
        for n in 410..800 {
            let packed = pack(n, encoder.as_mut(), n == 410);
            assert_eq!(
                open(n, &packed, &mut memory, &mut shelf).unwrap(),
                blocks(n)
            );
        }
    }
}
