//! Round trips with stores that forget, restarts, misses, and garbage.

use bytes::Bytes;
use proptest::prelude::*;

use super::refs::{Part, put_parts, take_parts};
use super::*;
use crate::batch::{Block, BlockWriter};
use crate::record::put_record;
use crate::wire::Reader;

const CONFIG: LongConfig = LongConfig {
    level: 3,
    window_log: 18,
    min_value_bytes: 16 << 10,
};
const PLENTY: u64 = 64 << 20;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn payload(values: &[&[u8]]) -> Vec<u8> {
    let mut records = Vec::new();
    for (delta, value) in (0..).zip(values) {
        let key: &[u8] = b"key";
        put_record(&mut records, delta, 5, Some(key), Some(value), &[]);
    }
    let mut writer = BlockWriter::default();
    let count = u32::try_from(values.len()).unwrap();
    writer
        .push(&Block {
            base_offset: 0,
            count,
            base_timestamp_ms: 1_700_000_000_000,
            is_log_append_time: false,
            records: records.into(),
        })
        .unwrap();
    writer.finish()
}

fn place(next_offset: u64) -> Place {
    Place {
        log: 1,
        next_offset,
    }
}

/// Both ends of one chain.
struct Link {
    encoder: LongEncoder,
    decoder: LongDecoder,
    sent: u64,
    bytes: usize,
    misses: usize,
}

impl Link {
    fn new() -> Self {
        Self {
            encoder: LongEncoder::new(CONFIG).unwrap(),
            decoder: LongDecoder::new(CONFIG).unwrap(),
            sent: 0,
            bytes: 0,
            misses: 0,
        }
    }

    /// One payload all the way; after a miss both begin anew and it is sent again.
    fn send(&mut self, raw: &[u8], index: &mut ChunkIndex, store: &mut dyn ChunkStore) -> Bytes {
        self.sent += 1;
        for _ in 0..10 {
            let payload = self.encoder.encode(raw, index, place(self.sent)).unwrap();
            self.bytes += payload.len();
            match self.decoder.decode(&payload, raw.len(), store) {
                Ok(raw) => {
                    assert_eq!(self.encoder.position(), self.decoder.position());
                    return raw;
                }
                Err(BatchError::Missing(ids)) => {
                    self.misses += 1;
                    index.handle_missing(&ids);
                    index.handle_restart(1);
                    self.encoder = LongEncoder::new(CONFIG).unwrap();
                    self.decoder = LongDecoder::new(CONFIG).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("misses without end");
    }
}

#[test]
fn the_same_value_gives_the_same_chunks_wherever_it_stands() {
    let value = noise(1, 200_000);
    let ids = |raw: &[u8]| -> Vec<ChunkId> {
        cut(raw, CONFIG.min_value_bytes)
            .iter()
            .filter_map(|piece| match piece {
                Piece::Chunk(_, id) => Some(*id),
                Piece::Plain(_) => None,
            })
            .collect()
    };
    let alone = ids(&payload(&[&value]));
    assert!(alone.len() > 10, "{}", alone.len());
    let among_others = ids(&payload(&[b"small", &noise(2, 3_000), &value, b"x"]));
    assert_eq!(among_others, alone);
    assert_eq!(
        ids(&payload(&[&value, &value])),
        [alone.clone(), alone].concat()
    );
}

#[test]
fn pieces_cover_every_byte_once() {
    let raw = payload(&[b"a", &noise(1, 50_000), b"b", &noise(2, 20_000)]);
    for raw in [&raw[..], &raw[..30_000], b"no block at all", b""] {
        let mut next = 0;
        for piece in cut(raw, CONFIG.min_value_bytes) {
            let (Piece::Plain(range) | Piece::Chunk(range, _)) = piece;
            assert_eq!(range.start, next);
            assert!(range.end > next);
            next = range.end;
        }
        assert_eq!(next, raw.len());
    }
}

#[test]
fn what_the_hub_holds_is_named_instead_of_sent() {
    let raw = payload(&[&noise(7, 1 << 20)]);
    let (mut index, mut store) = (ChunkIndex::new(PLENTY), MemoryChunks::new(PLENTY));
    let mut link = Link::new();
    assert_eq!(link.send(&raw, &mut index, &mut store), raw);
    let first = link.bytes;
    assert!(first >= raw.len());
    // a megabyte later: far behind the window of 256 KiB
    assert_eq!(link.send(&raw, &mut index, &mut store), raw);
    assert!(
        link.bytes - first < raw.len() / 300,
        "{}",
        link.bytes - first
    );
    assert_eq!(link.misses, 0);
}

#[test]
fn what_changed_a_little_is_found_in_the_window() {
    let image = noise(7, 100_000);
    let mut changed = image.clone();
    for at in (0..changed.len()).step_by(1_000) {
        changed[at] ^= 1;
    }
    let (mut index, mut store) = (ChunkIndex::new(PLENTY), MemoryChunks::new(PLENTY));
    let mut link = Link::new();
    link.send(&payload(&[&image]), &mut index, &mut store);
    let first = link.bytes;
    let raw = payload(&[&changed]);
    assert_eq!(link.send(&raw, &mut index, &mut store), raw);
    assert!(link.bytes - first < 10_000, "{}", link.bytes - first);
}

#[test]
fn both_ends_go_on_from_what_they_saved() {
    let (mut index, mut store) = (ChunkIndex::new(PLENTY), MemoryChunks::new(0));
    let mut link = Link::new();
    let image = noise(7, 200_000);
    link.send(&payload(&[&image]), &mut index, &mut store);
    let saved = (link.encoder.save().unwrap(), link.decoder.save().unwrap());
    assert_eq!(saved.0, saved.1);
    link.encoder = LongEncoder::restore(&saved.0, CONFIG).unwrap();
    link.decoder = LongDecoder::restore(&saved.1, CONFIG).unwrap();
    assert_eq!(link.encoder.position(), link.decoder.position());
    index.clear();
    let before = link.bytes;
    for _ in 0..5 {
        let raw = payload(&[&image[..150_000], &noise(8, 3_000)]);
        assert_eq!(link.send(&raw, &mut index, &mut store), raw);
        index.clear();
    }
    assert!(
        link.bytes - before < 15_000 + 5 * 1_000,
        "{}",
        link.bytes - before
    );
    for damage in 0..saved.0.len().min(300) {
        let mut broken = saved.0.clone();
        broken[damage] ^= 0x20;
        let restored = LongDecoder::restore(&broken, CONFIG);
        // the position is compared by whoever asks both ends for it
        assert!(restored.is_err() || (5..13).contains(&damage), "{damage}");
    }
}

#[test]
fn a_restart_of_both_ends_costs_references_only() {
    let images: Vec<Vec<u8>> = (0..5).map(|n| payload(&[&noise(n, 400_000)])).collect();
    let (mut index, mut store) = (ChunkIndex::new(PLENTY), MemoryChunks::new(PLENTY));
    let mut link = Link::new();
    for image in &images {
        link.send(image, &mut index, &mut store);
    }
    index.handle_acknowledged(place(link.sent));
    let mut index = ChunkIndex::restore(&index.save(), PLENTY).unwrap();
    let mut link = Link::new();
    for image in &images {
        assert_eq!(link.send(image, &mut index, &mut store), *image);
    }
    assert_eq!(link.misses, 0);
    assert!(link.bytes < 5 * 400_000 / 300, "{}", link.bytes);
}

#[test]
fn a_hub_that_lost_its_store_asks_once_and_the_site_believes_nothing_after() {
    let raw = payload(&[&noise(1, 1 << 20)]);
    let other = payload(&[&noise(2, 1 << 20)]);
    let (mut index, mut store) = (ChunkIndex::new(PLENTY), MemoryChunks::new(PLENTY));
    let mut link = Link::new();
    link.send(&raw, &mut index, &mut store);
    link.send(&other, &mut index, &mut store);
    store.clear();
    assert_eq!(link.send(&raw, &mut index, &mut store), raw);
    assert_eq!(link.send(&other, &mut index, &mut store), other);
    assert_eq!(link.misses, 1);
}

#[test]
fn another_log_refers_to_a_chunk_only_once_it_is_acknowledged() {
    let raw = payload(&[&noise(1, 100_000)]);
    let mut index = ChunkIndex::new(PLENTY);
    let encode = |log: u32, index: &mut ChunkIndex| {
        let place = Place {
            log,
            next_offset: 10,
        };
        let mut encoder = LongEncoder::new(CONFIG).unwrap();
        encoder.encode(&raw, index, place).unwrap().len() > raw.len() / 2
    };
    assert!(encode(1, &mut index));
    assert!(!encode(1, &mut index), "the same log, in order");
    assert!(encode(2, &mut index), "may come before the first one");
    index.handle_acknowledged(Place {
        log: 2,
        next_offset: 9,
    });
    assert!(encode(3, &mut index), "not acknowledged as far as that");
    index.handle_acknowledged(Place {
        log: 3,
        next_offset: 10,
    });
    assert!(!encode(4, &mut index));
    (1..=4).for_each(|log| index.handle_restart(log));
    assert!(!encode(4, &mut index), "what was acknowledged stays");
}

#[test]
fn what_was_not_acknowledged_is_forgotten_with_the_session() {
    let raw = payload(&[&noise(1, 100_000)]);
    let mut index = ChunkIndex::new(PLENTY);
    let mut encoder = LongEncoder::new(CONFIG).unwrap();
    encoder.encode(&raw, &mut index, place(1)).unwrap();
    assert!(
        ChunkIndex::restore(&index.save(), PLENTY)
            .unwrap()
            .is_empty()
    );
    assert!(!index.is_empty());
    (1..=4).for_each(|log| index.handle_restart(log));
    assert!(index.is_empty());
}

#[test]
fn a_damaged_index_is_refused() {
    let raw = payload(&[&noise(1, 100_000)]);
    let mut index = ChunkIndex::new(PLENTY);
    LongEncoder::new(CONFIG)
        .unwrap()
        .encode(&raw, &mut index, place(1))
        .unwrap();
    index.handle_acknowledged(place(1));
    assert!(index.take_changed() && !index.take_changed());
    let saved = index.save();
    assert_eq!(
        ChunkIndex::restore(&saved, PLENTY).unwrap().len(),
        index.len()
    );
    let few = ChunkIndex::restore(&saved, 50_000).unwrap();
    assert!(few.len() < index.len() && !few.is_empty());
    for at in 0..saved.len() {
        let mut broken = saved.clone();
        broken[at] ^= 4;
        assert!(ChunkIndex::restore(&broken, PLENTY).is_err(), "{at}");
        assert!(ChunkIndex::restore(&saved[..at], PLENTY).is_err(), "{at}");
    }
}

#[test]
fn a_store_keeps_what_was_used_last_within_its_bytes() {
    let mut store = MemoryChunks::new(30_000);
    let chunks: Vec<Vec<u8>> = (0..4).map(|n| noise(n, 10_000)).collect();
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ChunkId::of(chunk)).collect();
    for (id, chunk) in ids.iter().zip(&chunks).take(3) {
        store.insert(*id, chunk);
    }
    assert!(store.chunk(&ids[0]).is_some());
    store.insert(ids[3], &chunks[3]);
    assert_eq!(store.bytes(), 30_000);
    assert!(store.chunk(&ids[1]).is_none());
    for kept in [0, 2, 3] {
        assert_eq!(store.chunk(&ids[kept]).unwrap(), chunks[kept]);
    }
}

#[test]
fn parts_are_bounded_before_anything_is_done_about_them() {
    let id = ChunkId([3; 16]);
    let take = |parts: &[Part], max_raw: usize| {
        let mut bytes = Vec::new();
        put_parts(&mut bytes, parts);
        take_parts(&mut Reader::new(&bytes), max_raw)
    };
    let parts = [
        Part::Plain(10),
        Part::Chunk(2_000),
        Part::Reference(5_000, id),
    ];
    let found = take(&parts, 7_010).unwrap();
    assert_eq!((found.raw_len, found.literal_len), (7_010, 2_010));
    assert_eq!(found.parts, parts);
    assert!(take(&parts, 7_009).is_err());
    assert!(take(&[Part::Plain(0)], 0).is_err());
    assert!(take(&[Part::Reference(100_000, id)], 100_000).is_err());
    assert!(take(&[Part::Plain(usize::MAX >> 2)], 10).is_err());
    let many = vec![Part::Reference(1, id); MAX_REFERENCES + 1];
    assert!(take(&many, many.len()).is_err());
    assert!(take(&many[1..], many.len() - 1).is_ok());
}

#[test]
fn the_longest_list_of_missing_chunks_fits_a_frame() {
    let ids = vec![ChunkId([0xfe; 16]); MAX_REFERENCES];
    let mut bytes = Vec::new();
    put_missing(&mut bytes, &ids);
    assert!(bytes.len() < crate::wire::MAX_FRAME_LEN);
    assert_eq!(take_missing(&mut Reader::new(&bytes)).unwrap(), ids);
    assert!(take_missing(&mut Reader::new(&bytes[..bytes.len() - 1])).is_err());
    assert!(take_missing(&mut Reader::new(&[0])).is_err());
}

#[test]
fn a_window_larger_than_the_hubs_is_refused() {
    let large = LongConfig {
        window_log: 20,
        ..CONFIG
    };
    let raw = payload(&[&noise(1, 100_000)]);
    let mut index = ChunkIndex::new(PLENTY);
    let mut encoder = LongEncoder::new(large).unwrap();
    let payload = encoder.encode(&raw, &mut index, place(1)).unwrap();
    let mut store = MemoryChunks::new(PLENTY);
    let mut decoder = LongDecoder::new(CONFIG).unwrap();
    assert!(decoder.decode(&payload, raw.len(), &mut store).is_err());
    for window_log in [0, 17, 28, u32::MAX] {
        let config = LongConfig {
            window_log,
            ..CONFIG
        };
        assert!(LongDecoder::new(config).is_err());
    }
    assert_eq!(LongConfig::window_log_within(8 << 20), 23);
    assert_eq!(LongConfig::window_log_within((8 << 20) - 1), 22);
    assert_eq!(LongConfig::window_log_within(0), 18);
    assert_eq!(LongConfig::window_log_within(u32::MAX), 27);
}

/// What happens between two payloads.
#[derive(Debug, Clone)]
enum Event {
    Send {
        value: u64,
        len: usize,
        edit: usize,
    },
    HubForgets(usize),
    HubForgetsAll,
    SiteForgetsAll,
    Acknowledged,
    /// Both begin new chains; the site's index comes from its file.
    Restart,
    /// Both go on from what they saved.
    Saved,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_u64..4, 1_usize..90_000, 0_usize..100_000)
            .prop_map(|(value, len, edit)| Event::Send { value, len, edit }),
        1 => (0_usize..50).prop_map(Event::HubForgets),
        1 => Just(Event::HubForgetsAll),
        1 => Just(Event::SiteForgetsAll),
        2 => Just(Event::Acknowledged),
        1 => Just(Event::Restart),
        1 => Just(Event::Saved),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_either_end_forgets_the_bytes_are_exact(
        events in proptest::collection::vec(event(), 1..30),
        index_bytes in 0_u64..300_000,
        store_bytes in 0_u64..300_000,
    ) {
        let mut index = ChunkIndex::new(index_bytes);
        let mut store = MemoryChunks::new(store_bytes);
        let mut link = Link::new();
        let mut all = Vec::new();
        for event in events {
            match event {
                Event::Send { value, len, edit } => {
                    let mut bytes = noise(value, len);
                    if let Some(byte) = bytes.get_mut(edit) {
                        *byte ^= 1;
                    }
                    all.extend(cut(&payload(&[&bytes]), 1).into_iter().filter_map(
                        |piece| match piece {
                            Piece::Chunk(_, id) => Some(id),
                            Piece::Plain(_) => None,
                        },
                    ));
                    let raw = payload(&[b"small", &bytes, b"", &bytes[..len / 2]]);
                    prop_assert_eq!(link.send(&raw, &mut index, &mut store), raw);
                }
                Event::HubForgets(at) => {
                    if let Some(id) = all.get(at) {
                        store.remove(id);
                    }
                }
                Event::HubForgetsAll => store.clear(),
                Event::SiteForgetsAll => index.clear(),
                Event::Acknowledged => index.handle_acknowledged(place(link.sent)),
                Event::Restart => {
                    index = ChunkIndex::restore(&index.save(), index_bytes).unwrap();
                    link = Link { sent: link.sent, ..Link::new() };
                }
                Event::Saved => {
                    let saved = link.encoder.save().unwrap();
                    link.encoder = LongEncoder::restore(&saved, CONFIG).unwrap();
                    let saved = link.decoder.save().unwrap();
                    link.decoder = LongDecoder::restore(&saved, CONFIG).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_damaged_payload_never_gives_more_than_announced(
        at in 0_usize..20_000,
        bit in 0_u8..8,
        raw_len in 0_usize..100_000,
    ) {
        let raw = payload(&[&noise(1, 20_000), &[7; 40_000]]);
        let mut index = ChunkIndex::new(PLENTY);
        let mut encoder = LongEncoder::new(CONFIG).unwrap();
        let mut payload = encoder.encode(&raw, &mut index, place(1)).unwrap();
        if let Some(byte) = payload.get_mut(at) {
            *byte ^= 1 << bit;
        }
        let mut decoder = LongDecoder::new(CONFIG).unwrap();
        let mut store = MemoryChunks::new(PLENTY);
        let raw_len = if raw_len.is_multiple_of(2) { raw.len() } else { raw_len };
        if let Ok(found) = decoder.decode(&payload, raw_len, &mut store) {
            prop_assert!(found.len() <= raw_len);
        }
    }
}

#[test]
fn fuzz_decoder() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut store = MemoryChunks::new(1 << 20);
        for raw_len in [0, 1, 1_000, 70_000] {
            let mut decoder = LongDecoder::new(CONFIG).unwrap();
            match decoder.decode(bytes, raw_len, &mut store) {
                Ok(raw) => assert!(raw.len() <= raw_len),
                Err(BatchError::Missing(ids)) => {
                    assert!(!ids.is_empty() && ids.len() <= MAX_REFERENCES);
                }
                Err(_) => {}
            }
        }
    });
}

#[test]
fn fuzz_frames_and_saved_states() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(ids) = take_missing(&mut Reader::new(bytes)) {
            assert!(!ids.is_empty() && ids.len() <= MAX_REFERENCES);
        }
        drop(ChunkIndex::restore(bytes, 1 << 20));
        drop(LongDecoder::restore(bytes, CONFIG));
        let covered: usize = cut(bytes, 4)
            .into_iter()
            .map(|piece| match piece {
                Piece::Plain(range) | Piece::Chunk(range, _) => range.len(),
            })
            .sum();
        assert_eq!(covered, bytes.len());
    });
}
