use shared::batch::{
    Block, BlockWriter, CODEC_MODELLED, Incoming, Memories, Memory, supported_codecs,
};
use shared::record::put_record;
use tempfile::TempDir;

use super::*;

const MIB: usize = 1 << 20;

fn open(dir: &TempDir, limit: usize) -> Chains {
    Chains::open(
        dir.path().to_owned(),
        limit,
        3,
        AnchorBook::default(),
        Chunks::open(dir.path().join("chunks.index"), 1 << 24, 3),
        Arc::default(),
    )
}

fn raw(values: &[String]) -> Vec<u8> {
    let mut records = Vec::new();
    for (delta, value) in (0..).zip(values) {
        put_record(
            &mut records,
            delta,
            delta.into(),
            None,
            Some(value.as_bytes()),
            &[],
        );
    }
    let mut writer = BlockWriter::default();
    writer
        .push(&Block {
            base_offset: 0,
            count: u32::try_from(values.len()).unwrap(),
            base_timestamp_ms: 0,
            is_log_append_time: false,
            records: records.into(),
        })
        .unwrap();
    writer.finish()
}

fn readings(log: u32, round: u64) -> Vec<u8> {
    let reading = |n: u64| {
        let level = 700 + round * 3 + n % 7;
        format!(
            r#"{{"pump":"p-{log}","n":{},"level":{level},"state":"run","ok":true}}"#,
            round * 8 + n
        )
    };
    raw(&(0..8).map(reading).collect::<Vec<_>>())
}

fn send(chains: &mut Chains, log: u32, raw: &[u8], records: u64, next: Offset) -> Option<Packed> {
    let mut allowed = supported_codecs();
    allowed.push(CODEC_LONG);
    let handle = Handle(log);
    let codec = chains.choose(
        handle,
        &Wish {
            codec: CODEC_MODELLED,
            allowed: &allowed,
            raw_len: raw.len(),
            records,
        },
    );
    let outgoing = Outgoing {
        raw,
        next_offset: next,
        chain: 0,
    };
    remembers(codec).then(|| chains.pack(handle, codec, &outgoing).unwrap())
}

#[test]
fn more_logs_than_fit_leave_memory_to_some_of_them() {
    const LOGS: u32 = 60;
    let dir = tempfile::tempdir().unwrap();
    let limit = 12 * MIB;
    let mut chains = open(&dir, limit);
    let (mut remembered, mut begun) = (0, 0);
    for round in 0..40 {
        for log in 0..LOGS {
            let sent = send(&mut chains, log, &readings(log, round), 8, (round + 1) * 8);
            assert!(chains.bytes <= limit);
            if round >= 10
                && let Some(packed) = sent
            {
                begun += u32::from(packed.header.is_fresh);
                remembered += u32::from(packed.header.codec == CODEC_MODELLED);
            }
        }
    }
    // memory of dictionaries comes and goes, and a few make room for it; of 1,800 payloads without this, all
    assert!(begun < 18, "memory goes round: {begun}");
    let logs = remembered / 30;
    assert!((2..12).contains(&logs), "{logs} logs with a model");
    let with_any = chains.counted.logs.load(Ordering::Relaxed);
    assert!(with_any > 15, "{with_any} logs remember something");
}

#[test]
fn a_log_that_others_have_left_gets_their_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(&dir, 3 * MIB);
    let mut last = None;
    for round in 0..100 {
        for log in 0..6 {
            send(&mut chains, log, &readings(log, round), 8, (round + 1) * 8);
        }
    }
    for round in 0..300 {
        last = send(&mut chains, 9, &readings(9, round), 8, (round + 1) * 8);
    }
    let header = last.unwrap().header;
    assert_eq!((header.codec, header.is_fresh), (CODEC_MODELLED, false));
}

/// A state of the facility: large, and little of it changes.
fn snapshot(round: u64) -> Vec<u8> {
    let mut parts = Vec::new();
    for part in 0..600 {
        let level = (part * 7919 + round * (part % 5)) % 1_000;
        parts.push(format!(
            r#"{{"id":"valve-{part}","level":{level},"at":{}}}"#,
            1_700_000_000 + round
        ));
    }
    raw(&[format!("[{}]", parts.join(","))])
}

#[test]
fn snapshots_are_left_to_the_model_and_images_to_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(&dir, 64 * MIB);
    let mut codecs = Vec::new();
    for round in 0..12 {
        let packed = send(&mut chains, 1, &snapshot(round), 1, round + 1).unwrap();
        codecs.push(packed.header.codec);
    }
    assert_eq!(codecs.first(), Some(&CODEC_LONG));
    assert_eq!(codecs.last(), Some(&CODEC_MODELLED), "{codecs:?}");

    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b' ' + state.to_be_bytes()[0] % 90)
    };
    let image: String = std::iter::repeat_with(&mut noise).take(400_000).collect();
    for round in 0..12 {
        let packed = send(
            &mut chains,
            2,
            &raw(&[format!("{round}{image}")]),
            1,
            round + 1,
        )
        .unwrap();
        assert_eq!(packed.header.codec, CODEC_LONG);
    }
    assert_eq!(chains.logs[&Handle(2)].large.as_ref().unwrap().memory(), 0);
}

/// A hub's end that keeps nothing.
#[derive(Debug)]
struct Plain;

impl Memories for Plain {
    fn fresh(&mut self, codec: u8) -> Option<Box<dyn ChainCodec>> {
        new_chain(codec, ChainLimits::default(), 3).ok()
    }
    fn agreed(&mut self, _codec: u8) -> Option<Box<dyn ChainCodec>> {
        None
    }
    fn keep(&mut self, _codec: &dyn ChainCodec) {}
}

#[test]
fn what_is_sent_with_too_little_memory_decodes() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(&dir, 3 * MIB);
    let mut hub: HashMap<u32, Memory> = HashMap::new();
    let mut decoders = shared::batch::Decoders::default();
    for round in 0..30 {
        for log in 0..9 {
            let raw = readings(log, round);
            let Some(packed) = send(&mut chains, log, &raw, 8, 8) else {
                continue;
            };
            let opened = hub.entry(log).or_default().open(
                &Incoming {
                    header: packed.header,
                    payload: &packed.payload,
                    base_offset: 0,
                    next_offset: 8,
                    chain_before: 0,
                    chain: Some(0),
                    max_raw: MIB,
                },
                &mut decoders,
                &mut Plain,
            );
            let mut writer = BlockWriter::default();
            for block in opened.unwrap().blocks {
                writer.push(&block).unwrap();
            }
            assert_eq!(writer.finish(), raw);
        }
    }
}

#[test]
fn an_acknowledged_state_is_on_disk_and_a_session_goes_on_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut chains = open(&dir, 16 * MIB);
    let handle = Handle(1);
    let mut anchored = None;
    for round in 0..400 {
        let next = (round + 1) * 8;
        let packed = send(&mut chains, 1, &readings(1, round), 8, next).unwrap();
        if packed.header.is_anchor {
            anchored = Some(next);
            break;
        }
    }
    let next = anchored.unwrap();
    let waiting = chains.bytes;
    assert_eq!(chains.saved.bytes(), 0);
    chains.acknowledged(handle, next);
    assert!(chains.saved.bytes() > 0);
    assert!(chains.bytes < waiting, "the state waits no more");
    let anchor = chains.book.of(handle)[0];
    chains.begin(handle, Begin::Anchor(anchor));
    let packed = send(&mut chains, 1, &readings(1, 500), 8, next + 8).unwrap();
    assert!(!packed.header.is_fresh);
    // another process
    let mut chains = open(&dir, 16 * MIB);
    assert_eq!(chains.book.of(handle), [anchor]);
    chains.begin(handle, Begin::Fresh);
    assert!(chains.book.of(handle).is_empty());
    assert_eq!(chains.saved.bytes(), 0);
}
