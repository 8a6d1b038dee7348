//! Bytes per record of the modelled codec on JSON lines of `key`, `ts`, `value`; checks every byte.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a probe"
)]

use std::time::Duration;

use bytes::Bytes;
use shared::batch::{Block, BlockWriter, ChainCodec, ChainLimits, ModelChain};
use shared::record::put_record;

struct Record {
    key: Option<Vec<u8>>,
    ts: i64,
    value: Vec<u8>,
}

fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn load(path: &str, most: usize) -> Vec<Record> {
    let text = std::fs::read(path).unwrap();
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .take(most)
        .map(|line| {
            let line: serde_json::Value = serde_json::from_slice(line).unwrap();
            Record {
                key: line["key"].as_str().map(|k| k.as_bytes().to_vec()),
                ts: line["ts"].as_i64().unwrap(),
                value: line["value"].as_str().unwrap().as_bytes().to_vec(),
            }
        })
        .collect()
}

fn by_time(records: &[Record], ms: i64) -> Vec<(usize, usize)> {
    let (mut out, mut a, mut size) = (vec![], 0, 0);
    for i in 0..records.len() {
        let s = records[i].value.len() + records[i].key.as_ref().map_or(0, Vec::len) + 16;
        if i > a && (records[i].ts - records[a].ts >= ms || size + s > 1 << 20) {
            out.push((a, i));
            a = i;
            size = 0;
        }
        size += s;
    }
    if a < records.len() {
        out.push((a, records.len()));
    }
    out
}

fn kafka_records(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, r) in records.iter().enumerate() {
        put_record(
            &mut out,
            i as u32,
            r.ts - records[0].ts,
            r.key.as_deref(),
            Some(&r.value),
            &[],
        );
    }
    out
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let most = std::env::var("N").map_or(usize::MAX, |n| n.parse().unwrap());
    let state = std::env::var("STATE").map_or(1 << 20, |n| n.parse().unwrap());
    let single = std::env::var("SINGLE").is_ok();
    let ms: i64 = args[1].parse().unwrap();
    println!(
        "set        n  batches   raw/rec     B/rec   payload     kafka   ratio  file19   ratio  enc MB/s dec MB/s  memory saved"
    );
    for path in &args[2..] {
        let name = std::path::Path::new(path)
            .file_stem()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let records = load(path, most);
        let limits = ChainLimits { state_bytes: state };
        let (mut enc, mut dec) = (ModelChain::new(limits), ModelChain::new(limits));
        let (mut raw, mut bytes, mut framed, mut kafka) = (0, 0, 0, 0);
        let (mut t_enc, mut t_dec) = (Duration::ZERO, Duration::ZERO);
        let (mut n, mut base) = (0, 0);
        let skip = records.len() / 20;
        let mut batches = 0;
        let mut all_raw = 0;
        for (a, b) in by_time(&records, ms) {
            let mut writer = BlockWriter::default();
            if single {
                for r in &records[a..b] {
                    let r = Record {
                        key: r.key.clone(),
                        ts: r.ts,
                        value: r.value.clone(),
                    };
                    let ts = r.ts;
                    let block = Block {
                        base_offset: base,
                        count: 1,
                        base_timestamp_ms: ts,
                        is_log_append_time: false,
                        records: kafka_records(&[r]).into(),
                    };
                    base += 1;
                    writer.push(&block).unwrap();
                }
            } else {
                let block = Block {
                    base_offset: base,
                    count: (b - a) as u32,
                    base_timestamp_ms: records[a].ts,
                    is_log_append_time: false,
                    records: kafka_records(&records[a..b]).into(),
                };
                base += (b - a) as u64;
                writer.push(&block).unwrap();
            }
            let payload = writer.finish();
            let t = cpu();
            let z = enc.encode(&payload).unwrap();
            let t1 = cpu();
            let back = if std::env::var("NODEC").is_ok() {
                Bytes::from(payload.clone())
            } else {
                dec.decode(&z, payload.len()).unwrap()
            };
            t_dec += cpu() - t1;
            t_enc += t1 - t;
            assert_eq!(back, Bytes::from(payload.clone()), "{name} {a}..{b}");
            all_raw += payload.len();
            if a >= skip {
                batches += 1;
                n += b - a;
                raw += payload.len();
                bytes += z.len();
                framed += z.len() + 8;
                if std::env::var("NOKAFKA").is_err() {
                    kafka += 61
                        + zstd::encode_all(&kafka_records(&records[a..b])[..], 3)
                            .unwrap()
                            .len();
                }
            }
        }
        let file = if ms >= 60_000 && std::env::var("NOKAFKA").is_err() {
            let text: Vec<u8> = records[skip..]
                .iter()
                .flat_map(|r| {
                    let mut v = r.key.clone().unwrap_or_default();
                    v.push(b'\t');
                    v.extend_from_slice(r.ts.to_string().as_bytes());
                    v.push(b'\t');
                    v.extend_from_slice(&r.value);
                    v.push(b'\n');
                    v
                })
                .collect();
            let mut e = zstd::stream::Encoder::new(Vec::new(), 19).unwrap();
            e.long_distance_matching(true).unwrap();
            e.window_log(27).unwrap();
            std::io::Write::write_all(&mut e, &text).unwrap();
            e.finish().unwrap().len()
        } else {
            0
        };
        let per = |x: usize| x as f64 / n as f64;
        let saved = enc.save();
        println!(
            "{name:9} {n:6} {batches:6} {:9.1} {:9.3} {:9.3} {:9.2} {:7.4} {:8.2} {:6.3} {:8.2} {:8.2} {:8} {:7}",
            per(raw),
            per(framed),
            per(bytes),
            per(kafka),
            framed as f64 / kafka as f64,
            per(file),
            framed as f64 / file as f64,
            all_raw as f64 / 1e6 / t_enc.as_secs_f64(),
            all_raw as f64 / 1e6 / t_dec.as_secs_f64().max(1e-9),
            enc.memory(),
            saved.len()
        );
        #[cfg(feature = "model-cost")]
        println!("   {}", enc.costs(records.len()));
    }
}
