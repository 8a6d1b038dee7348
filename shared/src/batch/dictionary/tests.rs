//! A dictionary helps with small payloads, and nothing else than one is taken for one.

use super::*;
use crate::batch::{Block, BlockWriter, ZstdEncoder};
use crate::record::put_record;

fn payload(n: u64) -> Vec<u8> {
    let value = format!(
        r#"{{"device":"pump-{}","temperature":{}.5,"state":"running","seq":{n}}}"#,
        n % 7,
        20 + n % 5
    );
    let mut records = Vec::new();
    put_record(
        &mut records,
        0,
        0,
        Some(b"pump"),
        Some(value.as_bytes()),
        &[],
    );
    let mut writer = BlockWriter::default();
    let block = Block {
        base_offset: n,
        count: 1,
        base_timestamp_ms: 1_750_000_000_000 + i64::try_from(n).unwrap(),
        is_log_append_time: false,
        records: records.into(),
    };
    writer.push(&block).unwrap();
    writer.finish()
}

fn trained(from: u64) -> Dictionary {
    let mut trainer = Trainer::new(MIN_DICTIONARY_BYTES);
    for n in from..from + 3000 {
        trainer.sample(&payload(n));
    }
    assert!(trainer.is_ready());
    trainer.train().unwrap()
}

#[test]
fn small_payloads_shrink_and_come_back() {
    let dictionary = trained(0);
    let sent = Dictionary::new(dictionary.bytes().clone()).unwrap();
    assert_eq!(sent.id(), dictionary.id());
    let mut encoder = DictEncoder::new(&dictionary, 3).unwrap();
    let mut decoder = DictDecoder::new(&sent).unwrap();
    for n in 5000..5050 {
        let raw = payload(n);
        let encoded = Bytes::from(encoder.encode(&raw).unwrap());
        let plain = ZstdEncoder::new(3).unwrap().encode(&raw).unwrap();
        assert!(
            encoded.len() * 2 < plain.len(),
            "{} {}",
            encoded.len(),
            plain.len()
        );
        assert_eq!(decoder.decode(&encoded, raw.len()).unwrap(), raw);
        assert!(decoder.decode(&encoded, raw.len() - 1).is_err());
        assert!(decoder.decode(&encoded, raw.len() + 1).is_err());
        for len in 0..encoded.len() {
            assert!(decoder.decode(&encoded.slice(..len), raw.len()).is_err());
        }
    }
}

#[test]
fn what_is_not_a_dictionary_is_refused() {
    let dictionary = trained(0);
    assert!(Dictionary::new(Bytes::from_static(b"anything else")).is_err());
    assert!(Dictionary::new(Bytes::new()).is_err());
    let long = [dictionary.bytes().as_ref(), &vec![0; MAX_DICTIONARY_BYTES]].concat();
    assert!(Dictionary::new(long.into()).is_err());
}

#[test]
fn too_few_samples_make_no_dictionary() {
    let mut trainer = Trainer::new(MAX_DICTIONARY_BYTES);
    assert_eq!(trainer.train(), None);
    trainer.sample(&payload(1));
    assert!(!trainer.is_ready());
    assert_eq!(trainer.train(), None);
}

#[test]
fn samples_are_bounded() {
    let mut trainer = Trainer::new(MIN_DICTIONARY_BYTES);
    for n in 0..100_000 {
        trainer.sample(&payload(n));
    }
    trainer.sample(&vec![7; MAX_SAMPLE_BYTES + 1]);
    let held = trainer.payloads.bytes.len() + trainer.records.bytes.len();
    assert!(held <= MIN_DICTIONARY_BYTES * SAMPLE_FACTOR, "{held}");
}
