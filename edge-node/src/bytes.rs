//! `edge-node bytes`: what a user's own records would cost on the link, told before it is bought.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use shared::batch::ChainLimits;
use shared::batch::estimate::{
    Estimate, EstimateOptions, Recording, RecordingOptions, TimeUnit, Times, estimate,
    read_recording, unpack,
};
use shared::cli::{Output, Table, thousands};
use shared::time::utc;
use shared::units::Span;

use crate::config::LONGEST_DELAY;

/// Most bytes of a recording, unpacked: all of it is held in memory.
const MAX_RECORDING_BYTES: u64 = 1 << 30;

/// Length of a topic's name in the producer's requests: an ordinary one.
const TOPIC_LEN: usize = 12;

/// Options of `bytes`.
#[derive(Debug, Clone, clap::Args)]
pub struct BytesArgs {
    /// Recording: JSON lines {"key": ..., "ts": time, "value": ...}, or lines that are values; may be packed
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
    /// Unit of times that are numbers: s, ms, us or ns. Without it the one that most of them look like
    #[arg(long, value_name = "UNIT")]
    time_unit: Option<TimeUnit>,
    /// Time between two lines that do not say theirs. Without it and --rate 1s is assumed
    #[arg(long, value_name = "DURATION", value_parser = interval, allow_hyphen_values = true)]
    interval: Option<Span>,
    /// The same as a rate of lines, such as 10/s, 6/m or 100/h
    #[arg(long, value_name = "N/UNIT", value_parser = rate, conflicts_with = "interval", allow_hyphen_values = true)]
    rate: Option<Duration>,
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
    times: TimesRow,
}

/// Where the records' times are from.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "source", rename_all = "lowercase")]
enum TimesRow {
    /// Nobody said when the records came.
    Assumed { interval_ms: f64 },
    /// The command line did.
    Told { interval_ms: f64 },
    /// The lines did.
    Field {
        field: String,
        /// Of numbers; absent when all are dates.
        unit: Option<&'static str>,
        /// The unit was found out from the numbers' size.
        by_size: bool,
    },
}

/// What the command prints.
#[derive(Debug)]
pub struct Report {
    /// For standard output.
    pub text: String,
    /// For standard error: what was assumed, where the text does not say it.
    pub note: Option<String>,
}

/// Most lines of a `--rate`: records have times in ms.
const MOST_A_SECOND: u64 = 1_000_000;

/// The time between two lines, as a rate of them.
fn rate(text: &str) -> Result<Duration, String> {
    let accepted = "accepted: 1 to 1000000 lines a second, minute, hour or day, such as 10/s, 6/m, 100/h or 5/d";
    let (count, unit) = text.split_once('/').ok_or_else(|| accepted.to_owned())?;
    let count: u64 = count.trim().parse().map_err(|_| accepted.to_owned())?;
    let secs = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(accepted.to_owned()),
    };
    if !(1..=MOST_A_SECOND).contains(&count) {
        return Err(accepted.to_owned());
    }
    Ok(Duration::from_nanos(secs * 1_000_000_000 / count))
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

/// More than nothing: records that all come at once have no rate.
fn interval(text: &str) -> Result<Span, String> {
    let interval = span(text)?;
    if interval.duration().is_zero() {
        return Err("no time at all; expected: 1ms or more, such as 250ms, 1s or 1m".to_owned());
    }
    Ok(interval)
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
pub fn report(args: &BytesArgs) -> anyhow::Result<Report> {
    let Recording { samples, times } =
        read(args).with_context(|| args.file.display().to_string())?;
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
        let row = |estimate| row(estimate, delay_ms, &times);
        rows.extend(estimates.iter().map(row));
    }
    let unused = unused(args, &times).map(str::to_owned);
    let told = in_words(&times);
    let stamps = samples.iter().map(|sample| sample.timestamp_ms);
    let told = match (&times, stamps.clone().min(), stamps.max()) {
        (Times::Field { .. }, Some(first), Some(last)) => {
            format!("{told}: {} to {}", utc(first), utc(last))
        }
        (Times::Field { .. } | Times::Spaced { .. }, _, _) => told,
    };
    Ok(match args.output {
        Output::Json => Report {
            text: format!("{}\n", serde_json::to_string_pretty(&rows)?),
            note: unused.or_else(|| is_guess(&times).then_some(told)),
        },
        Output::Text => Report {
            text: table(&rows, samples.len(), &told),
            note: unused,
        },
    })
}

/// What was asked for and does nothing here.
fn unused(args: &BytesArgs, times: &Times) -> Option<&'static str> {
    match times {
        Times::Field { .. } if args.rate.is_some() || args.interval.is_some() => Some(
            "--rate and --interval are for lines without times: these have some, which were taken",
        ),
        Times::Spaced { .. } if args.time_unit.is_some() => Some(
            "--time-unit is for lines with times: these have none; --time-field names where they are",
        ),
        Times::Field { .. } | Times::Spaced { .. } => None,
    }
}

/// Whether it may not be what the user thinks. Nobody is surprised by ms, which Kafka has.
fn is_guess(times: &Times) -> bool {
    match times {
        Times::Spaced { is_assumed, .. } => *is_assumed,
        Times::Field {
            unit,
            is_by_size,
            others,
            ..
        } => *is_by_size && (*others > 0 || unit.is_some_and(|unit| unit != TimeUnit::Millis)),
    }
}

fn in_words(times: &Times) -> String {
    match times {
        Times::Spaced {
            interval,
            is_assumed: true,
            candidate,
        } => {
            let found = candidate.as_ref().map_or_else(String::new, |field| {
                format!("; `{field}` of the first line may be one: --time-field {field}")
            });
            let each = Span::millis(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
            format!(
                "times: the lines say none, one record each {each} is assumed; --rate, --interval or --time-field \
                 tell better{found}"
            )
        }
        Times::Spaced { interval, .. } => {
            format!("times: one record each {interval:?}, as told")
        }
        Times::Field {
            field, unit: None, ..
        } => format!("times: dates at `{field}`"),
        Times::Field {
            field,
            unit: Some(unit),
            is_by_size: true,
            others,
        } => {
            let others = match others {
                0 => String::new(),
                others => format!(", {others} are of another size"),
            };
            let unit = unit.name();
            format!(
                "times: `{field}`, taken as {unit} by the size of most{others} (--time-unit tells better)"
            )
        }
        Times::Field {
            field,
            unit: Some(unit),
            ..
        } => format!("times: `{field}` in {}, as told", unit.name()),
    }
}

fn read(args: &BytesArgs) -> anyhow::Result<Recording> {
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
        time_unit: args.time_unit,
        interval: args.interval.map(Span::duration).or(args.rate),
    };
    let text = unpack(bytes, MAX_RECORDING_BYTES)?;
    Ok(read_recording(&text, &options)?)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate: 53 bits are more than enough"
)]
fn row(estimate: &Estimate, delay_ms: u64, times: &Times) -> Row {
    Row {
        codec: estimate.codec,
        delay_ms,
        records_per_batch: estimate.records as f64 / estimate.batches.max(1) as f64,
        bytes_per_record: estimate.bytes_per_record,
        ratio: estimate.ratio,
        bytes_per_month: estimate.bytes_per_month,
        times: times_row(times),
    }
}

fn times_row(times: &Times) -> TimesRow {
    match times {
        Times::Spaced {
            interval,
            is_assumed,
            ..
        } => {
            let interval_ms = interval.as_secs_f64() * 1e3;
            if *is_assumed {
                TimesRow::Assumed { interval_ms }
            } else {
                TimesRow::Told { interval_ms }
            }
        }
        Times::Field {
            field,
            unit,
            is_by_size,
            ..
        } => TimesRow::Field {
            field: field.clone(),
            unit: unit.map(TimeUnit::name),
            by_size: unit.is_some() && *is_by_size,
        },
    }
}

fn table(rows: &[Row], records: usize, times: &str) -> String {
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
        "{records} records; every byte was decoded again and compared\n{times}\n{table}\
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
            time_unit: None,
            interval: Some(Span::millis(250)),
            rate: None,
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
        let json = report(&args(file.clone(), Output::Json)).unwrap().text;
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        let of = |codec: &str, delay_ms: u64| {
            rows.iter()
                .find(|row| row["codec"] == codec && row["delay_ms"] == delay_ms)
                .and_then(|row| row["bytes_per_record"].as_f64())
                .unwrap()
        };
        assert!(of("columnar", 1000) < of("kafka-zstd", 1000));
        assert!(of("columnar", 10_000) < of("columnar", 1000));
        let text = report(&args(file, Output::Text)).unwrap().text;
        let is_row = |line: &str| line.starts_with("columnar ") && line.contains(" 10s ");
        assert!(text.lines().any(is_row), "{text}");
    }

    #[test]
    fn a_month_is_told_without_packets_and_only_where_time_passes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("at-once.jsonl");
        std::fs::write(&file, "{\"ts\":5,\"value\":\"ok\"}\n".repeat(40)).unwrap();
        let json = report(&args(file.clone(), Output::Json)).unwrap().text;
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
        for row in rows {
            assert!(row["bytes_per_month"].is_null(), "{row}");
            assert!(row["ratio"].as_f64().unwrap() > 0.0, "{row}");
        }
        let text = report(&args(file, Output::Text)).unwrap().text;
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
            ("--interval", "0s", "1ms or more"),
            ("--level", "-3", "1..=19"),
            ("--rate", "0/s", "1 to 1000000 lines"),
            ("--rate", "10", "such as 10/s"),
            ("--time-unit", "min", "s, ms, us, ns"),
        ] {
            let error = Line::try_parse_from(["bytes", "lines.txt", option, value]).unwrap_err();
            let error = error.to_string();
            for part in [option, &format!("'{value}'"), range] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }

    #[test]
    fn an_option_that_does_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lines");
        let note = |lines: &str, change: &dyn Fn(&mut BytesArgs)| {
            std::fs::write(&file, lines).unwrap();
            let mut args = args(file.clone(), Output::Text);
            args.interval = None;
            change(&mut args);
            report(&args).unwrap().note.unwrap_or_default()
        };
        let timed = "{\"ts\":1750000000000,\"value\":\"a\"}\n".repeat(2);
        assert_eq!(note(&timed, &|_| ()), "");
        let found = note(&timed, &|args| args.rate = rate("10/s").ok());
        assert!(found.contains("--rate"), "{found}");
        let found = note("a\nb\n", &|args| args.time_unit = Some(TimeUnit::Millis));
        assert!(found.contains("--time-unit"), "{found}");
    }

    #[test]
    fn what_is_assumed_of_times_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let told = |lines: &str, change: &dyn Fn(&mut BytesArgs)| {
            let file = dir.path().join("lines");
            std::fs::write(&file, lines).unwrap();
            let mut args = args(file, Output::Json);
            (args.interval, args.delay) = (None, vec![Span::secs(1)]);
            change(&mut args);
            let json = report(&args).unwrap();
            args.output = Output::Text;
            let text = report(&args).unwrap();
            assert_eq!(text.note, None);
            let rows: Vec<serde_json::Value> = serde_json::from_str(&json.text).unwrap();
            let line = text.text.lines().find(|line| line.starts_with("times: "));
            (
                rows[0]["times"].clone(),
                json.note,
                line.unwrap().to_owned(),
            )
        };
        let seconds = "{\"at\":1750000000,\"n\":1}\n{\"at\":1750000060,\"n\":2}\n";
        let (json, note, text) = told(seconds, &|_| ());
        assert_eq!(
            json,
            serde_json::json!({"source": "assumed", "interval_ms": 1000.0})
        );
        assert_eq!(note.as_ref(), Some(&text));
        for part in ["each 1s is assumed", "--rate", "--time-field at"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let (json, note, text) = told(seconds, &|args| args.rate = rate("10/s").ok());
        assert_eq!(
            (json["source"].as_str(), json["interval_ms"].as_f64()),
            (Some("told"), Some(100.0))
        );
        assert_eq!(note, None);
        assert!(text.contains("each 100ms, as told"), "{text}");
        let by_field = |args: &mut BytesArgs| args.time_field = Some("at".to_owned());
        let (json, note, text) = told(seconds, &by_field);
        assert_eq!(
            json,
            serde_json::json!({"source": "field", "field": "at", "unit": "s", "by_size": true})
        );
        assert_eq!(note.as_ref(), Some(&text));
        let range = "2025-06-15 15:06:40 UTC to 2025-06-15 15:07:40 UTC";
        assert!(
            text.contains("taken as s") && text.contains(range),
            "{text}"
        );
        let (json, note, _) = told(seconds, &|args| {
            by_field(args);
            args.time_unit = Some(TimeUnit::Millis);
        });
        assert_eq!((json["unit"].as_str(), note), (Some("ms"), None));
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
