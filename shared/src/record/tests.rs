use super::*;
use proptest::prelude::*;

const LIMITS: BatchLimits = BatchLimits {
    max_batch_bytes: 1 << 20,
    max_uncompressed_bytes: 1 << 20,
};
const CODECS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

type Plain = (
    i64,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

fn build(records: &[Plain], codec: Compression) -> Bytes {
    let mut builder = BatchBuilder::default();
    for (timestamp, key, value, headers) in records {
        let headers: Vec<Header<'_>> = headers
            .iter()
            .map(|(n, v)| Header {
                name: n,
                value: v.as_deref(),
            })
            .collect();
        builder.push(*timestamp, key.as_deref(), value.as_deref(), &headers);
    }
    builder.build_with(codec, None).unwrap()
}

fn plain(batch: &CheckedBatch) -> Vec<Plain> {
    Records::new(&batch.records, batch.header.count)
        .map(|record| {
            let record = record.unwrap();
            (
                batch.header.base_timestamp_ms + record.timestamp_delta_ms,
                record.key.map(<[u8]>::to_vec),
                record.value.map(<[u8]>::to_vec),
                record
                    .headers()
                    .map(|h| (h.name.to_vec(), h.value.map(<[u8]>::to_vec)))
                    .collect(),
            )
        })
        .collect()
}

fn any_record() -> impl Strategy<Value = Plain> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    let header = (bytes(), proptest::option::of(bytes()));
    (
        0_i64..1 << 45,
        proptest::option::of(bytes()),
        proptest::option::of(bytes()),
        proptest::collection::vec(header, 0..4),
    )
}

proptest! {
    #[test]
    fn a_built_batch_reads_back_as_it_went_in(
        records in proptest::collection::vec(any_record(), 1..30),
        codec in proptest::sample::select(CODECS.to_vec()),
    ) {
        let checked = check(&build(&records, codec), &LIMITS).unwrap();
        prop_assert_eq!(plain(&checked), records);
    }

    #[test]
    fn a_flipped_bit_is_refused_unless_it_lies_outside_the_checksum(bit in 0_usize..8 * 120) {
        let record = (5, Some(b"key".to_vec()), Some(vec![7; 60]), vec![]);
        let mut bytes = build(&[record], Compression::None).to_vec();
        prop_assume!(bit / 8 < bytes.len());
        // base offset and leader epoch are patched by every broker
        prop_assume!(!(0..8).contains(&(bit / 8)) && !(12..16).contains(&(bit / 8)));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(check(&bytes.into(), &LIMITS).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(check(&bytes.into(), &LIMITS));
    }
}

#[test]
fn a_bomb_is_refused_at_the_limit_by_every_codec() {
    let record = (0, None, Some(vec![0; 64 << 20]), vec![]);
    for codec in &CODECS[1..] {
        let bomb = build(std::slice::from_ref(&record), *codec);
        let limits = BatchLimits {
            max_batch_bytes: 64 << 20,
            max_uncompressed_bytes: 1 << 20,
        };
        let refused = check(&bomb, &limits).unwrap_err();
        assert!(
            matches!(refused, RecordError::TooLarge { .. }),
            "{codec:?}: {refused}"
        );
    }
}

#[test]
fn patching_keeps_the_checksum_true() {
    let mut bytes = build(&[(1, None, Some(vec![1]), vec![])], Compression::None).to_vec();
    patch(&mut bytes, 4711, 3);
    let checked = check(&bytes.into(), &LIMITS).unwrap();
    assert_eq!(checked.header.base_offset, 4711);
    assert_eq!(checked.header.next_offset(), 4712);
}

#[test]
fn xerial_framing_is_understood() {
    let raw = snap::raw::Encoder::new()
        .compress_vec(b"hello hello hello")
        .unwrap();
    let mut framed = vec![
        0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1,
    ];
    for _ in 0..2 {
        framed.extend_from_slice(&u32::try_from(raw.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&raw);
    }
    let out = decompress(Compression::Snappy, framed.into(), 1000).unwrap();
    assert_eq!(&out[..], b"hello hello hellohello hello hello");
}

#[test]
fn old_message_formats_are_refused_by_name() {
    let mut bytes = build(&[(1, None, None, vec![])], Compression::None).to_vec();
    bytes[16] = 1;
    assert_eq!(
        check(&bytes.into(), &LIMITS).unwrap_err(),
        RecordError::Magic(1)
    );
}
