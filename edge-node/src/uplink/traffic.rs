//! What each topic put on the link, by codec: for who wants to know where the bytes go.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::batch::codec_name;
use shared::ids::TopicName;
use shared::link::DataStream;
use shared::wire::DataContent;

use crate::status::TopicTraffic;

/// Topics that are told apart; those that come later are counted together.
const MAX_TOPICS: usize = 1_000;
/// No topic can have this name.
const OTHER_TOPICS: &str = "*";

/// Sums of data streams.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    streams: u64,
    raw: u64,
    sent: u64,
}

/// The sums by topic, then by codec; a gap has none.
#[derive(Debug, Default)]
pub(super) struct Traffic(Mutex<BTreeMap<String, BTreeMap<&'static str, Sums>>>);

impl Traffic {
    /// A stream was handed to the transport.
    pub(super) fn sent(&self, topic: &TopicName, stream: &DataStream) {
        let (codec, raw) = match &stream.header.content {
            DataContent::Records(records) => (codec_name(records.codec), records.size.bytes()),
            DataContent::Gap { .. } => ("gap", 0),
        };
        let mut topics = self.lock();
        let is_named = topics.len() < MAX_TOPICS || topics.contains_key(topic.as_str());
        let name = if is_named {
            topic.as_str()
        } else {
            OTHER_TOPICS
        };
        if !topics.contains_key(name) {
            topics.insert(name.to_owned(), BTreeMap::new());
        }
        if let Some(codecs) = topics.get_mut(name) {
            let sums = codecs.entry(codec).or_default();
            sums.streams += 1;
            sums.raw += u64::from(raw);
            sums.sent += stream.len();
        }
    }

    /// All of them, by topic.
    pub(super) fn read(&self) -> Vec<TopicTraffic> {
        let topics = self.lock();
        let each = topics.iter().flat_map(|(topic, codecs)| {
            codecs.iter().map(|(codec, sums)| TopicTraffic {
                topic: topic.clone(),
                codec: (*codec).to_owned(),
                streams: sums.streams,
                raw_bytes: sums.raw,
                sent_bytes: sums.sent,
            })
        });
        each.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeMap<&'static str, Sums>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use shared::batch::{CODEC_MODELLED, CODEC_ZSTD};
    use shared::class::Class;
    use shared::wire::{DataHeader, Handle, RecordsHeader, SizeClass};

    use super::*;

    fn stream(codec: u8, len: usize) -> DataStream {
        let header = DataHeader {
            handle: Handle(1),
            seq: 0,
            is_restart: false,
            count: 1,
            chain: None,
            content: DataContent::Records(RecordsHeader {
                codec,
                is_fresh: false,
                is_anchor: false,
                size: SizeClass::of(64),
                check: 0,
            }),
        };
        DataStream {
            class: Class::Normal,
            base_offset: 0,
            next_offset: 1,
            header,
            head: Bytes::from_static(b"head"),
            payload: vec![0; len].into(),
        }
    }

    fn topic(name: &str) -> TopicName {
        name.parse().unwrap()
    }

    #[test]
    fn streams_are_counted_by_topic_and_codec() {
        let traffic = Traffic::default();
        for (codec, len) in [(CODEC_MODELLED, 6), (CODEC_MODELLED, 10), (CODEC_ZSTD, 1)] {
            traffic.sent(&topic("a"), &stream(codec, len));
        }
        let read = traffic.read();
        assert_eq!(read.len(), 2);
        let modelled = &read[0];
        assert_eq!(
            (modelled.topic.as_str(), &*modelled.codec),
            ("a", "modelled")
        );
        let sums = (modelled.streams, modelled.raw_bytes, modelled.sent_bytes);
        assert_eq!(sums, (2, 128, 24));
        assert_eq!((&*read[1].codec, read[1].sent_bytes), ("zstd", 5));
    }

    #[test]
    fn topics_beyond_the_bound_are_counted_together() {
        let traffic = Traffic::default();
        for number in 0..MAX_TOPICS + 9 {
            traffic.sent(&topic(&format!("t{number}")), &stream(CODEC_ZSTD, 6));
        }
        let read = traffic.read();
        assert_eq!(read.len(), MAX_TOPICS + 1);
        let rest = read.iter().find(|it| it.topic == OTHER_TOPICS).unwrap();
        assert_eq!((rest.streams, rest.sent_bytes), (9, 90));
    }
}
