//! What records cost on the link, by codec: the production encoders and decoders over recordings.
//!
//! The recordings are those in the folder that `KEDGE_BENCH_DATA` names, or `../shared/data` from the
//! project, where there is one; otherwise the benchmark makes one of a small plant.

#![allow(clippy::print_stdout, reason = "a benchmark tells how far it is")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use shared::batch::ChainLimits;
use shared::batch::estimate::{
    Estimate, EstimateOptions, RecordingOptions, Sample, estimate, read_recording, unpack,
};

use crate::plot::{Chart, Panel};
use crate::results::{Goal, Row};

/// Most bytes of one recording, unpacked.
const MAX_RECORDING: u64 = 1 << 30;
const DELAYS: [u64; 3] = [1, 10, 60];
const LEVEL: i32 = 3;

/// Records of a site, by a name that can be a topic's.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The file's, without what follows the first dot.
    pub name: String,
    /// In the order of the file.
    pub samples: Vec<Sample>,
}

/// A recording, and what it costs.
struct Set {
    name: String,
    /// By delay.
    estimates: Vec<Vec<Estimate>>,
    raw_bytes: usize,
    records: usize,
    /// `zstd -19 --long=27` over the whole file, as raw records.
    archived: f64,
}

impl Set {
    fn of(&self, delay: usize, codec: &str) -> Option<&Estimate> {
        self.estimates.get(delay)?.iter().find(|e| e.codec == codec)
    }
}

/// The rows; the table by recording and the plot go into the folder.
///
/// # Errors
/// When a recording cannot be read, or a codec does not give back what it was given.
pub fn rows(folder: &Path) -> Result<Vec<Row>> {
    let mut sets = Vec::new();
    for Recording { name, samples } in recordings()? {
        println!("    {name}: {} records", samples.len());
        sets.push(measure(name, &samples)?);
    }
    fs::create_dir_all(folder.join("tables"))?;
    fs::write(folder.join("tables/bytes.md"), table(&sets)?)?;
    fs::create_dir_all(folder.join("plots"))?;
    fs::write(folder.join("plots/bytes.svg"), chart(&sets).svg())?;
    Ok(summarise(&sets))
}

/// All recordings that are there, or the one that is made.
///
/// # Errors
/// When one cannot be read.
pub fn recordings() -> Result<Vec<Recording>> {
    let folder = std::env::var_os("KEDGE_BENCH_DATA")
        .map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".jsonl"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        println!(
            "    no recordings in {}: a made one instead",
            folder.display()
        );
        return Ok(vec![Recording {
            name: "made".to_owned(),
            samples: made(),
        }]);
    }
    let options = RecordingOptions {
        time_field: None,
        key_field: None,
        time_unit: None,
        interval: None,
    };
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default().to_owned();
        let bytes = unpack(fs::read(&path)?, MAX_RECORDING)?;
        let read = read_recording(&bytes, &options).with_context(|| path.display().to_string())?;
        Ok(Recording {
            name,
            samples: read.samples,
        })
    };
    paths.into_iter().map(read).collect()
}

/// Twenty machines that say five values a second each, as JSON.
fn made() -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut state = 1_u64;
    let mut noise = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut levels = [20_000_u64; 20];
    for second in 0..3_000_u64 {
        for (machine, level) in levels.iter_mut().enumerate() {
            *level = (*level + noise(41)).saturating_sub(20);
            let at = 1_750_000_000_000 + second * 1_000 + noise(30);
            let value = format!(
                "{{\"machine\":\"press-{machine:02}\",\"ts\":{at},\"temp\":{}.{:02},\"cycles\":{},\"rpm\":{},\"state\":\"{}\"}}",
                *level / 100,
                *level % 100,
                second / 3,
                1_480 + noise(7),
                if noise(400) == 0 { "idle" } else { "run" },
            );
            samples.push(Sample {
                timestamp_ms: i64::try_from(at).unwrap_or(i64::MAX),
                key: Some(format!("press-{machine:02}").into_bytes()),
                value: Some(value.into_bytes()),
            });
        }
    }
    samples
}

fn measure(name: String, samples: &[Sample]) -> Result<Set> {
    let started = shared::time::now();
    let clock = move || shared::time::now().saturating_sub(started);
    let mut estimates = Vec::new();
    for seconds in DELAYS {
        let options = EstimateOptions {
            delay: Duration::from_secs(seconds),
            level: LEVEL,
            limits: ChainLimits::default(),
            topic_len: name.len(),
        };
        estimates.push(estimate(samples, &options, &clock)?);
    }
    let mut raw = Vec::new();
    for sample in samples {
        raw.extend_from_slice(&sample.timestamp_ms.to_le_bytes());
        raw.extend_from_slice(sample.key.as_deref().unwrap_or_default());
        raw.extend_from_slice(sample.value.as_deref().unwrap_or_default());
    }
    let archived = archive(&raw)?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let archived = archived as f64 / samples.len() as f64;
    let value_bytes = |sample: &Sample| sample.value.as_ref().map_or(0, Vec::len);
    Ok(Set {
        name,
        estimates,
        raw_bytes: samples.iter().map(value_bytes).sum(),
        records: samples.len(),
        archived,
    })
}

/// Bytes of `zstd -19 --long=27`.
fn archive(raw: &[u8]) -> Result<usize> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 19)?;
    encoder.long_distance_matching(true)?;
    encoder.window_log(27)?;
    std::io::Write::write_all(&mut encoder, raw)?;
    Ok(encoder.finish()?.len())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    sum / f64::max(count, 1.0)
}

fn summarise(sets: &[Set]) -> Vec<Row> {
    let bytes = |delay: usize, codec: &'static str| {
        move |set: &Set| {
            set.of(delay, codec)
                .map_or(f64::NAN, |e| e.bytes_per_record)
        }
    };
    let ratio = |delay: usize, codec: &'static str| {
        move |set: &Set| set.of(delay, codec).map_or(f64::NAN, |e| e.ratio)
    };
    let to_archive = |set: &Set| bytes(2, "modelled")(set) / set.archived;
    let worst = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let row = |name: &str, ours: f64, limit: f64| {
        Row::new(name, "of the peer's", ours, None, Goal::Below(limit))
    };
    let mut rows = vec![
        row(
            "bytes a record, 1 s batches, modelled, mean of the sets, of a zstd Kafka producer's",
            mean(sets.iter().map(ratio(0, "modelled"))),
            0.12,
        ),
        row(
            "the same, the worst set",
            worst(&mut sets.iter().map(ratio(0, "modelled"))),
            0.25,
        ),
        row(
            "bytes a record, 1 s batches, columnar, mean of the sets, of a zstd Kafka producer's",
            mean(sets.iter().map(ratio(0, "columnar"))),
            0.24,
        ),
        row(
            "bytes a record, 60 s batches, modelled, mean of the sets, of zstd -19 --long=27 over the file",
            mean(sets.iter().map(to_archive)),
            0.6,
        ),
        row(
            "the same of zstd, the worst set",
            worst(&mut sets.iter().map(to_archive)),
            1.0,
        ),
    ];
    for (codec, goal) in [("columnar", 40.0), ("modelled", 6.0)] {
        let speed = |read: fn(&Estimate) -> Duration| {
            mean(sets.iter().filter_map(|set| {
                let spent = read(set.of(1, codec)?);
                #[expect(clippy::cast_precision_loss, reason = "a speed")]
                let megabytes = set.raw_bytes as f64 / 1e6;
                Some(megabytes / spent.as_secs_f64())
            }))
        };
        rows.push(Row::new(
            &format!("{codec} encoding, values in, one core, 10 s batches, mean of the sets"),
            "MB/s",
            speed(|e| e.encoding),
            None,
            Goal::Above(goal),
        ));
        rows.push(Row::new(
            &format!("{codec} decoding, values out, one core, 10 s batches, mean of the sets"),
            "MB/s",
            speed(|e| e.decoding),
            None,
            Goal::Above(goal),
        ));
    }
    rows
}

fn table(sets: &[Set]) -> Result<String> {
    let mut out = "## Bytes a record, by recording\n\nFraming included, IP and QUIC headers not; over all but the first \
        twentieth of each recording. Every batch was decoded and compared. A batch is closed after 1 s, 60 s.\n\n\
        | recording | records | raw value | Kafka zstd 1 s | columnar 1 s | modelled 1 s | modelled ÷ Kafka | \
        columnar ÷ Kafka | Kafka zstd 60 s | columnar 60 s | modelled 60 s | zstd -19 --long=27, file |\n\
        | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for set in sets {
        let bytes = |delay, codec| {
            set.of(delay, codec)
                .map_or(f64::NAN, |e| e.bytes_per_record)
        };
        let ratio = |codec| set.of(0, codec).map_or(f64::NAN, |e| e.ratio);
        writeln!(
            out,
            "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.3} | {:.3} | {:.1} | {:.1} | {:.1} | {:.1} |",
            set.name,
            set.records,
            set.raw_bytes / set.records.max(1),
            bytes(0, "kafka-zstd"),
            bytes(0, "columnar"),
            bytes(0, "modelled"),
            ratio("modelled"),
            ratio("columnar"),
            bytes(2, "kafka-zstd"),
            bytes(2, "columnar"),
            bytes(2, "modelled"),
            set.archived,
        )?;
    }
    out.push_str("\n![Bytes over batch delay](plots/bytes.svg)\n");
    Ok(out)
}

fn chart(sets: &[Set]) -> Chart {
    let line = |codec: &'static str| {
        let points = (0..DELAYS.len()).map(|delay| {
            let of_raw = |set: &Set| {
                #[expect(clippy::cast_precision_loss, reason = "a plot")]
                let raw = set.raw_bytes as f64 / set.records.max(1) as f64;
                Some(set.of(delay, codec)?.bytes_per_record / raw)
            };
            Some(mean(sets.iter().filter_map(of_raw)))
        });
        (codec.to_owned(), points.collect())
    };
    Chart {
        title: "Bytes on the link for each byte of a value".to_owned(),
        x: "batch delay".to_owned(),
        y: "of the raw value".to_owned(),
        top: 1.0,
        panels: vec![Panel {
            title: "mean of the recordings".to_owned(),
            places: DELAYS.iter().map(|delay| format!("{delay} s")).collect(),
            lines: ["kafka-zstd", "zstd", "columnar", "modelled"]
                .into_iter()
                .map(line)
                .collect(),
        }],
    }
}
