//! Both ends hold the same dictionary whatever goes through, and it pays for itself.

use proptest::prelude::*;

use super::*;
use crate::batch::split::mix;
use crate::batch::{Block, BlockWriter, Encoder, ZstdEncoder};
use crate::record::put_record;

const LIMIT: usize = 4 << 20;

/// A payload of these values, a record each.
fn payload(n: u64, values: &[Vec<u8>]) -> Vec<u8> {
    let mut records = Vec::new();
    for (at, value) in (0..).zip(values) {
        put_record(&mut records, at, 0, Some(b"pump"), Some(value), &[]);
    }
    let mut writer = BlockWriter::default();
    let block = Block {
        base_offset: n,
        count: u32::try_from(values.len()).unwrap(),
        base_timestamp_ms: 1_750_000_000_000 + i64::try_from(n).unwrap() * 1000,
        is_log_append_time: false,
        records: records.into(),
    };
    writer.push(&block).unwrap();
    writer.finish()
}

/// What one device says once.
fn reading(n: u64) -> Vec<u8> {
    let noise = mix(n, 1);
    let value = format!(
        r#"{{"device":"pump-{}","temperature":{}.{:02},"state":"running","seq":{n},"pressure":{}}}"#,
        noise % 7,
        20 + noise % 5,
        noise / 64 % 100,
        noise / 8192 % 1000,
    );
    payload(n, &[value.into_bytes()])
}

/// What other devices say.
fn event(n: u64) -> Vec<u8> {
    let noise = mix(n, 2);
    let level = ["WARNING", "NOTICE", "ERROR"][usize::try_from(noise % 3).unwrap()];
    let value = format!(
        "<{level}> line={} operator=\"{:04x}\" message=\"conveyor stopped, waiting for release\" shift={}",
        noise % 11,
        noise / 64 % 0xffff,
        noise / 8 % 3,
    );
    payload(n, &[value.into_bytes()])
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let words = (0..len as u64).map(|n| mix(n, seed));
    words.map(|word| word.to_le_bytes()[3]).collect()
}

fn carries_dictionary(payload: &[u8]) -> bool {
    payload[0] >> CARRIED_SHIFT & 3 != 0
}

struct Pair {
    encoder: DictionaryCodec,
    decoder: DictionaryCodec,
    zstd: ZstdEncoder,
    /// Bytes sent, of them in payloads that carry a dictionary, and what zstd would have sent.
    sent: usize,
    plain: usize,
    dictionaries: usize,
}

impl Pair {
    fn new() -> Self {
        Self {
            encoder: DictionaryCodec::new(3),
            decoder: DictionaryCodec::new(1),
            zstd: ZstdEncoder::new(3).unwrap(),
            sent: 0,
            plain: 0,
            dictionaries: 0,
        }
    }

    /// Sends a payload through; its length on the way.
    fn send(&mut self, raw: &[u8]) -> usize {
        let payload = self.encoder.encode(raw).unwrap();
        let decoded = self.decoder.decode(&payload, raw.len()).unwrap();
        assert!(decoded == raw, "not what was sent");
        assert_eq!(self.encoder.position(), self.decoder.position());
        assert_eq!(self.encoder.dictionary, self.decoder.dictionary);
        let plain = self.zstd.encode(raw).unwrap().len().min(raw.len() + 1);
        if carries_dictionary(&payload) {
            self.dictionaries += 1;
        } else {
            assert!(payload.len() <= plain, "{} {plain}", payload.len());
        }
        self.sent += payload.len();
        self.plain += plain;
        payload.len()
    }

    /// Both ends stop and go on from what they saved.
    fn restart(&mut self) {
        let saved = self.encoder.save();
        assert_eq!(saved, self.decoder.save());
        let position = self.encoder.position();
        self.encoder = DictionaryCodec::load(&saved, 3).unwrap();
        self.decoder = DictionaryCodec::load(&saved, 1).unwrap();
        assert_eq!(self.encoder.position(), position);
        assert_eq!(self.decoder.position(), position);
    }
}

#[test]
fn small_payloads_cost_less_than_half_of_plain_zstd_dictionaries_included() {
    let mut pair = Pair::new();
    for n in 0..3000 {
        pair.send(&reading(n));
    }
    assert!(pair.dictionaries >= 1);
    assert!(pair.sent * 2 < pair.plain, "{} {}", pair.sent, pair.plain);
}

#[test]
fn a_dictionary_survives_restarts_and_is_not_sent_again() {
    let mut pair = Pair::new();
    for n in 0..1000 {
        pair.send(&reading(n));
    }
    let sent = pair.dictionaries;
    for n in 1000..1100 {
        if n % 10 == 0 {
            pair.restart();
        }
        let len = pair.send(&reading(n));
        assert!(len < 70, "{len}");
    }
    assert_eq!(pair.dictionaries, sent);
}

#[test]
fn other_traffic_gets_another_dictionary() {
    let mut pair = Pair::new();
    for n in 0..2000 {
        pair.send(&reading(n));
    }
    let version = pair.encoder.version();
    for n in 0..2000 {
        pair.send(&event(n));
    }
    assert!(pair.encoder.version() > version);
    let (sent, plain) = (pair.sent, pair.plain);
    for n in 2000..2100 {
        pair.send(&event(n));
    }
    assert!((pair.sent - sent) * 2 < pair.plain - plain);
}

#[test]
fn the_same_traffic_gets_few_dictionaries() {
    let mut pair = Pair::new();
    for n in 0..40_000 {
        pair.send(&reading(n));
    }
    assert!(pair.dictionaries <= 8, "{}", pair.dictionaries);
}

#[test]
fn what_has_nothing_in_common_gets_no_dictionary() {
    let mut pair = Pair::new();
    for n in 0..3000 {
        pair.send(&noise(n, 200));
    }
    assert_eq!(pair.dictionaries, 0);
    let grown = pair.sent - 3000 * 200;
    assert!(grown <= 3000, "{grown}");
}

#[test]
fn large_payloads_go_without_a_dictionary() {
    let mut pair = Pair::new();
    for n in 0..40 {
        let values: Vec<_> = (0..400).map(|m| reading(n * 400 + m)).collect();
        let raw = payload(n, &values);
        assert!(raw.len() > LARGE);
        pair.send(&raw);
    }
    assert_eq!(pair.dictionaries, 0);
    assert_eq!(pair.encoder.trainer.memory(), 0);
}

#[test]
fn payloads_of_any_size_survive() {
    let mut pair = Pair::new();
    for n in 0..400 {
        pair.send(&reading(n));
    }
    assert!(pair.dictionaries > 0);
    let sizes = [0, 1, 5, 255, 256, LARGE - 1, LARGE, LARGE + 1, 3_000_000];
    for size in sizes {
        pair.send(&noise(7, size));
        pair.send(&vec![0; size]);
        let readings: Vec<u8> = (0..).flat_map(reading).take(size).collect();
        pair.send(&readings);
    }
    pair.restart();
    pair.send(&reading(1));
}

#[test]
fn memory_is_bounded() {
    let mut pair = Pair::new();
    for n in 1..200 {
        let values: Vec<_> = (0..n * 4).map(|m| reading(n * 1000 + m)).collect();
        pair.send(&payload(n, &values));
        assert!(pair.encoder.trainer.memory() < 600 << 10);
        assert!(pair.encoder.memory() < 2 << 20);
        assert!(pair.decoder.memory() < 512 << 10);
    }
}

#[test]
fn an_end_that_lost_its_state_does_not_guess() {
    let mut pair = Pair::new();
    for n in 0..1000 {
        pair.send(&reading(n));
    }
    let sent = pair.encoder.encode(&reading(1000)).unwrap();
    assert!(DictionaryCodec::new(3).decode(&sent, LIMIT).is_err());
    // both begin anew, as after a Restart
    pair.encoder = DictionaryCodec::new(3);
    pair.decoder = DictionaryCodec::new(3);
    for n in 1000..2000 {
        pair.send(&reading(n));
    }
    assert!(pair.encoder.version() > 0);
}

#[test]
fn the_same_records_with_another_dictionary_stand_elsewhere() {
    let mut through = Pair::new();
    let mut resumed = Pair::new();
    for n in 0..1000 {
        through.send(&reading(n));
        resumed.send(&reading(n));
        if n % 20 == 0 {
            // never has samples enough
            resumed.restart();
        }
    }
    assert_eq!(resumed.encoder.version(), 0);
    assert_ne!(through.encoder.position(), resumed.encoder.position());
}

#[test]
fn saved_state_with_a_flipped_bit_is_refused() {
    let mut pair = Pair::new();
    for n in 0..400 {
        pair.send(&reading(n));
    }
    let saved = pair.encoder.save();
    for at in 0..saved.len() {
        let mut broken = saved.clone();
        broken[at] ^= 4;
        assert!(DictionaryCodec::load(&broken, 3).is_err(), "byte {at}");
    }
    for len in 0..saved.len() {
        assert!(DictionaryCodec::load(&saved[..len], 3).is_err());
    }
}

/// The first payload that carries a dictionary, and those before it.
fn until_dictionary(each: impl Fn(u64) -> Vec<u8>) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut encoder = DictionaryCodec::new(3);
    let mut before = Vec::new();
    for n in 0.. {
        let payload = encoder.encode(&each(n)).unwrap();
        if carries_dictionary(&payload) {
            return (before, payload);
        }
        before.push(payload);
    }
    unreachable!()
}

fn decoder_after(payloads: &[Vec<u8>]) -> DictionaryCodec {
    let mut decoder = DictionaryCodec::new(3);
    for payload in payloads {
        decoder.decode(payload, LIMIT).unwrap();
    }
    decoder
}

#[test]
fn a_broken_dictionary_never_panics() {
    let (before, carrier) = until_dictionary(reading);
    for at in 0..carrier.len() {
        let mut broken = carrier.clone();
        broken[at] ^= 1 << (at % 8);
        let raw = decoder_after(&[]).decode(&broken, 1000);
        assert!(raw.is_err() || raw.is_ok_and(|raw| raw.len() <= 1000));
        let cut = decoder_after(&[]).decode(&carrier[..at], 1000);
        assert!(cut.is_err(), "{at}");
    }
    assert!(decoder_after(&before).decode(&carrier, LIMIT).is_ok());
}

#[test]
fn what_is_not_a_dictionary_is_refused() {
    let decode = |how: u8, version: u32, bytes: &[u8]| {
        let mut payload = vec![STORED | how << CARRIED_SHIFT];
        put_varint(&mut payload, version.into());
        put_varint(&mut payload, bytes.len() as u64);
        payload.extend_from_slice(bytes);
        payload.extend_from_slice(b"raw");
        DictionaryCodec::new(3).decode(&payload, LIMIT)
    };
    let samples: Vec<u8> = (0..1000).flat_map(reading).collect();
    let lens: Vec<usize> = (0..1000).map(|n| reading(n).len()).collect();
    let good = zstd::dict::from_continuous(&samples, &lens, 2048).unwrap();
    assert_eq!(decode(1, 1, &good).unwrap(), "raw");
    assert_eq!(decode(2, 1, &plain(&good, 3).unwrap()).unwrap(), "raw");
    // out of turn
    assert!(decode(1, 0, &good).is_err());
    assert!(decode(1, 2, &good).is_err());
    // there is none before it
    assert!(decode(3, 1, &plain(&good, 3).unwrap()).is_err());
    assert!(decode(1, 1, b"anything else").is_err());
    assert!(decode(1, 1, b"").is_err());
    assert!(decode(1, 1, &good[..64]).is_err());
    let long = [good.as_slice(), &vec![0; trained::MAX_BYTES]].concat();
    assert!(decode(1, 1, &long).is_err());
    assert!(decode(2, 1, &plain(&long, 3).unwrap()).is_err());
    let bomb = plain(&vec![0; 16 << 20], 3).unwrap();
    assert!(decode(2, 1, &bomb).is_err());
}

#[test]
fn a_payload_larger_than_allowed_is_refused() {
    let mut encoder = DictionaryCodec::new(3);
    let bomb = encoder.encode(&vec![0; 32 << 20]).unwrap();
    assert!(bomb.len() < 10_000);
    let decode = |payload: &[u8], limit| DictionaryCodec::new(3).decode(payload, limit);
    assert!(decode(&bomb, 1 << 20).is_err());
    let raw = reading(1);
    let small = encoder.encode(&raw).unwrap();
    assert!(decode(&small, raw.len() - 1).is_err());
    assert_eq!(decode(&small, raw.len()).unwrap(), raw);
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0_u64..1 << 40).prop_map(reading),
        2 => (0_u64..1 << 40).prop_map(event),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
        1 => (any::<u8>(), 0_usize..100_000).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn anything_survives(
        payloads in proptest::collection::vec(any_payload(), 1..400),
        restart in 0_usize..400,
    ) {
        let mut pair = Pair::new();
        for (at, raw) in payloads.iter().enumerate() {
            if at == restart {
                pair.restart();
            }
            pair.send(raw);
        }
    }

    #[test]
    fn a_broken_payload_is_an_error_or_another_payload(
        raw in any_payload(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
    ) {
        let (before, carrier) = until_dictionary(reading);
        let mut decoder = decoder_after(&before);
        decoder.decode(&carrier, LIMIT).unwrap();
        let mut encoder = DictionaryCodec::load(&decoder.save(), 3).unwrap();
        let mut broken = encoder.encode(&raw).unwrap();
        for (at, flip) in flips {
            let at = at.index(broken.len());
            broken[at] ^= flip;
        }
        if let Ok(decoded) = decoder.decode(&broken, 100_000) {
            prop_assert!(decoded.len() <= 100_000);
        }
    }
}

#[test]
fn fuzz_payloads() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut decoder = DictionaryCodec::new(3);
        let raw = decoder.decode(bytes, 10_000);
        assert!(raw.is_err() || raw.is_ok_and(|raw| raw.len() <= 10_000));
        assert!(decoder.memory() < 1 << 20);
        let _refused = DictionaryCodec::load(bytes, 3);
    });
}
