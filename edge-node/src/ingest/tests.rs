use shared::class::Class;
use shared::record::{BatchBuilder, Compression};
use shared::units::ByteSize;

use super::*;
use crate::config::TopicSettings;
use crate::store::OnFull;

pub(crate) mod fake;

use fake::{FakeStore, Mode};

/// A configuration that lets clients create any topic, with 4 partitions.
pub(crate) fn any_topic() -> TopicsConfig {
    TopicsConfig {
        auto_create: true,
        max_topics: 100,
        default: TopicSettings {
            partitions: 4,
            retention: None,
            retention_bytes: None,
            on_full: OnFull::Backpressure,
            max_batch: ByteSize(1_048_588),
            class: Class::Normal,
            live_first: false,
        },
        rules: Vec::new(),
    }
}

fn door(store: &Arc<FakeStore>) -> Ingest {
    Ingest::new(store.clone(), any_topic(), IngestLimits::default())
}

pub(crate) fn batch_of(values: &[&[u8]], codec: Compression) -> Bytes {
    let mut builder = BatchBuilder::default();
    for value in values {
        builder.push(1_700_000_000_000, None, Some(value), &[]);
    }
    builder.build_with(codec, None).unwrap()
}

#[tokio::test]
async fn a_checked_batch_reaches_the_store_verbatim() {
    let store = FakeStore::shared();
    let ingest = door(&store);
    let topic = ingest.topic("t", true).await.unwrap();
    let batch = batch_of(&[b"a", b"b"], Compression::None);
    let appended = ingest.append(&topic, 1, batch.clone()).await.unwrap();
    assert_eq!(appended.synced().await.unwrap().base_offset, 0);
    assert_eq!(store.batches(topic.partitions[1]), [batch]);
    assert_eq!(ingest.stats().records.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn every_codec_passes_the_door_small_and_large() {
    let store = FakeStore::shared();
    let ingest = door(&store);
    let topic = ingest.topic("t", true).await.unwrap();
    let noise: Vec<u8> = (0..200_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    let zeros = vec![0; 2_000_000];
    for codec in [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        for value in [&b"small"[..], &noise, &zeros] {
            let batch = batch_of(&[value], codec);
            let fits = batch.len() <= topic.rules.max_batch_bytes;
            let result = ingest.append(&topic, 0, batch).await;
            match result {
                Ok(pending) => assert!(fits && pending.synced().await.is_ok()),
                Err(Refusal::Record(RecordError::TooLarge { .. })) => assert!(!fits),
                Err(other) => panic!("{codec:?}: {other}"),
            }
        }
    }
}

#[tokio::test]
async fn a_batch_that_decompresses_beyond_the_limit_is_refused() {
    let store = FakeStore::shared();
    let ingest = Ingest::new(
        store.clone(),
        any_topic(),
        IngestLimits {
            max_uncompressed_bytes: 1 << 20,
            ..IngestLimits::default()
        },
    );
    let topic = ingest.topic("t", true).await.unwrap();
    let bomb = vec![0; 8 << 20];
    for codec in [
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        let refused = ingest.append(&topic, 0, batch_of(&[&bomb], codec)).await;
        assert!(
            matches!(refused, Err(Refusal::Record(RecordError::TooLarge { .. }))),
            "{codec:?}"
        );
    }
    assert!(store.batches(topic.partitions[0]).is_empty());
}

#[tokio::test]
async fn a_flipped_bit_never_reaches_the_store() {
    let store = FakeStore::shared();
    let ingest = door(&store);
    let topic = ingest.topic("t", true).await.unwrap();
    let batch = batch_of(&[b"value"], Compression::None);
    // base offset and leader epoch lie outside the checksum
    for at in 17..batch.len() {
        let mut damaged = batch.to_vec();
        damaged[at] ^= 0x10;
        assert!(
            ingest.append(&topic, 0, damaged.into()).await.is_err(),
            "byte {at}"
        );
    }
    assert!(store.batches(topic.partitions[0]).is_empty());
}

#[tokio::test]
async fn a_partition_that_is_not_there_is_refused() {
    let store = FakeStore::shared();
    let ingest = door(&store);
    let topic = ingest.topic("t", true).await.unwrap();
    let batch = batch_of(&[b"v"], Compression::None);
    for partition in [4, u32::MAX] {
        let refused = ingest.append(&topic, partition, batch.clone()).await;
        assert!(matches!(refused, Err(Refusal::UnknownPartition)));
    }
}

#[tokio::test]
async fn topics_beyond_the_limit_are_not_created_even_at_once() {
    let store = FakeStore::shared();
    let policy = TopicsConfig {
        max_topics: 3,
        ..any_topic()
    };
    let ingest = Ingest::new(store, policy, IngestLimits::default());
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..20 {
        let ingest = ingest.clone();
        tasks.spawn(async move { ingest.topic(&format!("t{i}"), true).await.is_ok() });
    }
    let created = tasks.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!((created, ingest.topics().len()), (3, 3));
    assert!(ingest.topic("no such", true).await.is_err(), "a bad name");
}

#[tokio::test]
async fn a_full_queue_is_waited_for_and_keeps_its_order() {
    let store = FakeStore::shared();
    let ingest = door(&store);
    let topic = ingest.topic("t", true).await.unwrap();
    store.set(Mode::Refuse(AppendError::Full("queue"), 3));
    for (value, base) in [(b"a", 0), (b"b", 1)] {
        let batch = batch_of(&[value], Compression::None);
        let pending = ingest.append(&topic, 0, batch).await.unwrap();
        assert_eq!(pending.synced().await.unwrap().base_offset, base);
    }
    assert_eq!(ingest.stats().full.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_site_at_its_quota_says_that_it_is_full() {
    let store = FakeStore::shared();
    let ingest = door(&store);
    let topic = ingest.topic("t", true).await.unwrap();
    let full = AppendError::Full(crate::store::QUOTA_FULL);
    store.set(Mode::Refuse(full, u32::MAX));
    let batch = batch_of(&[b"a"], Compression::None);
    let pending = ingest.append(&topic, 0, batch).await.unwrap();
    pending.synced().await.unwrap_err();
    let (stats, space) = (ingest.stats(), store.space());
    assert_eq!(stats.full_since(), None);
    stats.review(&space, Duration::from_secs(1), 5_000);
    assert_eq!(stats.full_since().unwrap().since_ms, 5_000);
    stats.review(&space, Duration::from_secs(60), 60_000);
    assert_eq!(stats.full_since(), None, "an empty store has room");
}
