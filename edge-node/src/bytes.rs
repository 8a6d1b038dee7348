//! `edge-node bytes`: what a user's own records would cost on the link, told before it is bought.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use shared::batch::ChainLimits;
use shared::batch::estimate::{
    Estimate, EstimateOptions, RecordingOptions, Sample, estimate, read_recording, unpack,
};
use shared::cli::{Output, Table, thousands};
use shared::units::Span;

use crate::config::LONGEST_DELAY;

/// Most bytes of a recording, unpacked: all of it is held in memory.
const MAX_RECORDING_BYTES: u64 = 1 << 30;

/// Length of a topic's name in the producer's requests: an ordinary one.
const TOPIC_LEN: usize = 12;

/// Options of `bytes`.
#[derive(Debug, Clone, clap::Args)]
pub struct BytesArgs {
    /// Recording: JSON lines {"key": ..., "ts": ms, "value": ...}, or lines that are values; may be packed
    /// with zstd. `-` reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How long a record may wait for company; may be given several times
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = delay, allow_hyphen_values = true)]
    delay: Vec<Span>,
    /// Field of a JSON line that holds the time, such as `header.time`
    #[arg(long, value_name = "FIELD")]
    time_field: Option<String>,
    /// Field of a JSON line that holds the key
    #[arg(long, value_name = "FIELD")]
    key_field: Option<String>,
    /// Time between two lines that do not say theirs
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = span, allow_hyphen_values = true)]
    interval: Span,
    /// Level of zstd (1 to 19), in every codec that has it and in the producer
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=19), allow_hyphen_values = true)]
    level: i32,
    /// `text`: a table for people; `json`: a list with one object for each codec and delay
    // the values' own help is about the documents of a node
    #[arg(
        long,
        short,
        value_enum,
        default_value = "text",
        hide_possible_values = true
    )]
    output: Output,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Row {
    codec: &'static str,
    delay_ms: u64,
    records_per_batch: f64,
    bytes_per_record: f64,
    /// To the Kafka producer with zstd.
    ratio: f64,
    /// Absent when all records have the same time.
    bytes_per_month: Option<f64>,
}

/// A duration of the command line, from 0 on.
fn span(text: &str) -> Result<Span, String> {
    text.parse::<Span>().map_err(|error| {
        if text.trim_start().starts_with('-') {
            "it is negative; expected: 0s or more, such as 250ms, 1s or 1m".to_owned()
        } else {
            error.to_string()
        }
    })
}

/// As long as `max_delay` may be.
fn delay(text: &str) -> Result<Span, String> {
    let delay = span(text)?;
    if delay > LONGEST_DELAY {
        return Err(format!(
            "longer than max_delay may be; expected: 0s to {LONGEST_DELAY}"
        ));
    }
    Ok(delay)
}

/// Reads the recording, runs every codec over it and back, and tells what came out.
///
/// # Errors
/// When the recording cannot be read, or a codec does not give it back byte for byte.
pub fn report(args: &BytesArgs) -> anyhow::Result<String> {
    let samples = read(args).with_context(|| args.file.display().to_string())?;
    let mut rows = Vec::new();
    for delay in &args.delay {
        let delay_ms = delay.as_millis();
        let options = EstimateOptions {
            delay: delay.duration(),
            level: args.level,
            limits: ChainLimits::default(),
            topic_len: TOPIC_LEN,
        };
        let start = Instant::now();
        let estimates = estimate(&samples, &options, &|| start.elapsed())?;
        rows.extend(estimates.iter().map(|estimate| row(estimate, delay_ms)));
    }
    Ok(match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&rows)?),
        Output::Text => table(&rows, samples.len()),
    })
}

fn read(args: &BytesArgs) -> anyhow::Result<Vec<Sample>> {
    let mut bytes = Vec::new();
    let most = MAX_RECORDING_BYTES + 1;
    if args.file.as_os_str() == "-" {
        std::io::stdin().take(most).read_to_end(&mut bytes)?;
    } else {
        File::open(&args.file)?.take(most).read_to_end(&mut bytes)?;
    }
    let options = RecordingOptions {
        time_field: args.time_field.clone(),
        key_field: args.key_field.clone(),
        interval: args.interval.duration(),
    };
    let text = unpack(bytes, MAX_RECORDING_BYTES)?;
    Ok(read_recording(&text, &options)?)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate: 53 bits are more than enough"
)]
fn row(estimate: &Estimate, delay_ms: u64) -> Row {
    Row {
        codec: estimate.codec,
        delay_ms,
        records_per_batch: estimate.records as f64 / estimate.batches.max(1) as f64,
        bytes_per_record: estimate.bytes_per_record,
        ratio: estimate.ratio,
        bytes_per_month: estimate.bytes_per_month,
    }
}

fn table(rows: &[Row], records: usize) -> String {
    let mut table = Table::new(&[
        "codec",
        "delay",
        "records/batch",
        "bytes/record",
        "ratio",
        "MB/month",
    ]);
    for row in rows {
        table.row([
            row.codec.to_owned(),
            Span::millis(row.delay_ms).to_string(),
            format!("{:.1}", row.records_per_batch),
            format!("{:.2}", row.bytes_per_record),
            format!("{:.3}", row.ratio),
            row.bytes_per_month
                .map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes / 1e6)),
        ]);
    }
    let records = thousands(u64::try_from(records).unwrap_or(u64::MAX));
    format!(
        "{records} records; every byte was decoded again and compared\n{table}\
         ratio: to a Kafka producer with zstd that sends the same batches\n\
         MB/month: at the recording's rate, without packet headers and keep-alives (IP, UDP, QUIC, TCP, TLS), \
         which can be more than the records: one batch a second costs about 230 bytes of packets both ways\n"
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn args(file: PathBuf, output: Output) -> BytesArgs {
        BytesArgs {
            file,
            delay: vec![Span::secs(1), Span::secs(10)],
            time_field: None,
            key_field: None,
            interval: Span::millis(250),
            level: 3,
            output,
        }
    }

    #[test]
    fn plain_lines_are_estimated_for_each_delay() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lines.txt");
        let lines: String = (0..500).map(|n| format!("pump {n} ok\n")).collect();
        std::fs::write(&file, lines).unwrap();
        let json = report(&args(file.clone(), Output::Json)).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        let of = |codec: &str, delay_ms: u64| {
            rows.iter()
                .find(|row| row["codec"] == codec && row["delay_ms"] == delay_ms)
                .and_then(|row| row["bytes_per_record"].as_f64())
                .unwrap()
        };
        assert!(of("columnar", 1000) < of("kafka-zstd", 1000));
        assert!(of("columnar", 10_000) < of("columnar", 1000));
        let text = report(&args(file, Output::Text)).unwrap();
        let is_row = |line: &str| line.starts_with("columnar ") && line.contains(" 10s ");
        assert!(text.lines().any(is_row), "{text}");
    }

    #[test]
    fn a_month_is_told_without_packets_and_only_where_time_passes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("at-once.jsonl");
        std::fs::write(&file, "{\"ts\":5,\"value\":\"ok\"}\n".repeat(40)).unwrap();
        let json = report(&args(file.clone(), Output::Json)).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        for row in rows {
            assert!(row["bytes_per_month"].is_null(), "{row}");
            assert!(row["ratio"].as_f64().unwrap() > 0.0, "{row}");
        }
        let text = report(&args(file, Output::Text)).unwrap();
        let is_dash = |line: &str| line.starts_with("modelled ") && line.trim_end().ends_with(" -");
        assert!(text.lines().any(is_dash), "{text}");
        assert!(text.contains("without packet headers"), "{text}");
    }

    #[test]
    fn a_negative_option_is_told_with_its_name_its_value_and_its_range() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            _args: BytesArgs,
        }
        for (option, value, range) in [
            ("--delay", "-1s", "0s or more"),
            ("--delay", "100000d", "0s to 10m"),
            ("--interval", "-5ms", "0s or more"),
            ("--level", "-3", "1..=19"),
        ] {
            let error = Line::try_parse_from(["bytes", "lines.txt", option, value]).unwrap_err();
            let error = error.to_string();
            for part in [option, &format!("'{value}'"), range] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = report(&args("no-such-recording".into(), Output::Text)).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("no-such-recording: "),
            "{error:#}"
        );
    }
}
