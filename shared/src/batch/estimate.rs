//! What records would cost on the link: the production encoders and decoders run over a recording.
//!
//! Records are batched by their own timestamps: a batch is open from its first record for the delay, or
//! until it is full. Each batch goes through every codec and back, and every byte is compared. What the
//! first records cost while the codecs learn is told apart: it is paid once. Where no batch comes after them,
//! all are counted: a figure with the learning in it is too high, but one.

mod recording;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use recording::{
    MAX_RECORD_BYTES, Recording, RecordingError, RecordingOptions, TimeUnit, Times, read_recording,
    unpack,
};

use bytes::Bytes;
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_end;
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, compress_bound, get_error_name};

use super::{
    BatchError, Block, BlockWriter, CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_MODELLED, CODEC_NONE,
    CODEC_ZSTD, ChainCodec, ChainLimits, Decoder, Encoder, NoneCodec, ZstdDecoder, ZstdEncoder,
    new_chain,
};
use crate::record::{HEADER_LEN, put_record, record_len};
use crate::wire::{DataContent, DataHeader, Handle, RecordsHeader, SizeClass};

/// One record of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// When it came, ms since the epoch.
    pub timestamp_ms: i64,
    /// Absent when null.
    pub key: Option<Vec<u8>>,
    /// Absent when null.
    pub value: Option<Vec<u8>>,
}

/// How to count.
#[derive(Debug, Clone, Copy)]
pub struct EstimateOptions {
    /// Longest that a record waits for company.
    pub delay: Duration,
    /// zstd's level, ours and the producer's.
    pub level: i32,
    /// Bound of what a codec remembers.
    pub limits: ChainLimits,
    /// Length of the topic's name, for the producer's requests.
    pub topic_len: usize,
}

/// What one way of sending would cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// `kafka-zstd`, `none`, `zstd`, `dictionary`, `columnar`, `modelled`.
    pub codec: &'static str,
    /// Batches that were counted.
    pub batches: u64,
    /// Records that were counted: all but those that were there for learning, or all where no batch begins
    /// after those.
    pub records: u64,
    /// Bytes of their batches, framing included.
    pub bytes: u64,
    /// Bytes of all batches.
    pub all_bytes: u64,
    /// Bytes a record, over those that were counted.
    pub bytes_per_record: f64,
    /// To the same of the Kafka producer.
    pub ratio: f64,
    /// Bytes in 30 days at the recording's own rate; absent when it has no length. Packet headers and
    /// keep-alives come on top.
    pub bytes_per_month: Option<f64>,
    /// What the clock said that encoding and decoding took.
    pub encoding: Duration,
    /// See `encoding`.
    pub decoding: Duration,
}

/// Most raw bytes of a batch.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// One of so many records is there for learning.
const LEARNING_SHARE: usize = 20;

/// A produce request of version 7 with one batch of one partition, without the topic's name: length, header
/// with the client id `rdkafka`, transactional id, acks, timeout, two counts, partition, length of the batch.
const PRODUCE_REQUEST_BYTES: usize = 4 + 8 + 2 + 7 + 2 + 2 + 4 + 4 + 2 + 4 + 4 + 4;

const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// Runs all codecs over a recording, by its times: those of the same time stay in the order that they have.
/// `clock` tells the time that was spent, from any start.
///
/// # Errors
/// [`BatchError`]; also when a codec does not give back what it was given.
pub fn estimate(
    samples: &[Sample],
    options: &EstimateOptions,
    clock: &dyn Fn() -> Duration,
) -> Result<Vec<Estimate>, BatchError> {
    let mut samples: Vec<&Sample> = samples.iter().collect();
    samples.sort_by_key(|sample| sample.timestamp_ms);
    let batches = batches(&samples, options.delay);
    let mut ways: Vec<Way> = vec![
        Way::Kafka(kafka_context(options.level)?),
        Way::Stateless(Box::new(NoneCodec), Box::new(NoneCodec)),
        Way::Stateless(
            Box::new(ZstdEncoder::new(options.level)?),
            Box::new(ZstdDecoder::default()),
        ),
    ];
    for codec in [CODEC_DICTIONARY, CODEC_COLUMNAR, CODEC_MODELLED] {
        let chain = || new_chain(codec, options.limits, options.level);
        match (chain(), chain()) {
            (Ok(encoder), Ok(decoder)) => ways.push(Way::Chain(encoder, decoder)),
            (Err(BatchError::UnknownCodec(_)), _) => {}
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    let mut estimates = Vec::new();
    let mut kafka_bytes_per_record = None;
    for way in &mut ways {
        let mut estimate = count(way, &samples, &batches, options, clock)?;
        let kafka = *kafka_bytes_per_record.get_or_insert(estimate.bytes_per_record);
        estimate.ratio = estimate.bytes_per_record / kafka;
        estimates.push(estimate);
    }
    Ok(estimates)
}

enum Way {
    Kafka(CCtx<'static>),
    Stateless(Box<dyn Encoder>, Box<dyn Decoder>),
    Chain(Box<dyn ChainCodec>, Box<dyn ChainCodec>),
}

impl Way {
    fn name(&self) -> &'static str {
        let codec = match self {
            Self::Kafka(_) => return "kafka-zstd",
            Self::Stateless(encoder, _) => encoder.codec(),
            Self::Chain(encoder, _) => encoder.codec(),
        };
        match codec {
            CODEC_NONE => "none",
            CODEC_ZSTD => "zstd",
            CODEC_DICTIONARY => "dictionary",
            CODEC_COLUMNAR => "columnar",
            CODEC_MODELLED => "modelled",
            _ => "unknown",
        }
    }
}

/// Records of a batch: first, and one after the last.
type Range = std::ops::Range<usize>;

fn batches(samples: &[&Sample], delay: Duration) -> Vec<Range> {
    let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    let mut batches = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, sample) in samples.iter().enumerate() {
        let len = record_len(0, 0, sample.key.as_deref(), sample.value.as_deref(), &[]) + 4;
        let opened_ms = samples.get(first).map_or(0, |sample| sample.timestamp_ms);
        let is_over = sample.timestamp_ms.saturating_sub(opened_ms) >= delay_ms;
        if at > first && (is_over || bytes + len > MAX_BATCH_BYTES) {
            batches.push(first..at);
            (first, bytes) = (at, 0);
        }
        bytes += len;
    }
    if first < samples.len() {
        batches.push(first..samples.len());
    }
    batches
}

fn count(
    way: &mut Way,
    samples: &[&Sample],
    batches: &[Range],
    options: &EstimateOptions,
    clock: &dyn Fn() -> Duration,
) -> Result<Estimate, BatchError> {
    let counted_from = counted_from(samples.len(), batches);
    let mut estimate = Estimate {
        codec: way.name(),
        batches: 0,
        records: 0,
        bytes: 0,
        all_bytes: 0,
        bytes_per_record: 0.0,
        ratio: 1.0,
        bytes_per_month: None,
        encoding: Duration::ZERO,
        decoding: Duration::ZERO,
    };
    for range in batches {
        let batch = samples.get(range.clone()).unwrap_or_default();
        let len = match way {
            Way::Kafka(context) => kafka_len(batch, options, context)?,
            Way::Stateless(encoder, decoder) => {
                let raw = raw_payload(batch)?;
                let start = clock();
                let payload = encoder.encode(&raw)?;
                let encoded = clock();
                let payload = if payload.len() < raw.len() || encoder.codec() == CODEC_NONE {
                    let payload = Bytes::from(payload);
                    same(&decoder.decode(&payload, raw.len())?, &raw)?;
                    payload
                } else {
                    raw.into()
                };
                estimate.encoding += encoded.saturating_sub(start);
                estimate.decoding += clock().saturating_sub(encoded);
                payload.len() + framing_len(batch.len(), encoder.codec(), &payload)
            }
            Way::Chain(encoder, decoder) => {
                let raw = raw_payload(batch)?;
                let start = clock();
                let payload = encoder.encode(&raw)?;
                let encoded = clock();
                let decoded = decoder.decode(&payload, raw.len())?;
                estimate.encoding += encoded.saturating_sub(start);
                estimate.decoding += clock().saturating_sub(encoded);
                same(&decoded, &raw)?;
                payload.len() + framing_len(batch.len(), encoder.codec(), &raw)
            }
        };
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        estimate.all_bytes += len;
        if range.start >= counted_from {
            estimate.batches += 1;
            estimate.records += u64::try_from(batch.len()).unwrap_or(0);
            estimate.bytes += len;
        }
    }
    extrapolate(&mut estimate, samples);
    Ok(estimate)
}

/// The first record whose batch may be counted: that after those for learning, if a batch begins there or later.
fn counted_from(records: usize, batches: &[Range]) -> usize {
    let learning = records / LEARNING_SHARE;
    match batches.last() {
        Some(last) if last.start >= learning => learning,
        Some(_) | None => 0,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate: 53 bits of bytes are more than enough"
)]
fn extrapolate(estimate: &mut Estimate, samples: &[&Sample]) {
    estimate.bytes_per_record = estimate.bytes as f64 / (estimate.records.max(1)) as f64;
    let (first, last) = (samples.first(), samples.last());
    let span_ms = first
        .zip(last)
        .map_or(0, |(a, b)| b.timestamp_ms.saturating_sub(a.timestamp_ms));
    if span_ms > 0 {
        let months = MONTH.as_millis() as f64 / span_ms as f64;
        estimate.bytes_per_month = Some(estimate.bytes_per_record * samples.len() as f64 * months);
    }
}

/// The header of the batch's data stream, in the midst of a session.
fn framing_len(count: usize, codec: u8, raw: &[u8]) -> usize {
    let header = DataHeader {
        handle: Handle(1),
        seq: 1,
        is_restart: false,
        count: u64::try_from(count).unwrap_or(u64::MAX),
        chain: None,
        content: DataContent::Records(RecordsHeader {
            codec,
            is_fresh: false,
            is_anchor: false,
            size: SizeClass::of(raw.len()),
            check: 0,
        }),
    };
    header.encode().len()
}

fn same(decoded: &[u8], raw: &[u8]) -> Result<(), BatchError> {
    if decoded == raw {
        return Ok(());
    }
    Err(BatchError::Checksum {
        found: crc32c::crc32c(raw),
        computed: crc32c::crc32c(decoded),
    })
}

fn put_records(batch: &[&Sample], out: &mut Vec<u8>) -> i64 {
    let base_timestamp_ms = batch.first().map_or(0, |sample| sample.timestamp_ms);
    for (at, sample) in (0..).zip(batch) {
        let delta_ms = sample.timestamp_ms.wrapping_sub(base_timestamp_ms);
        put_record(
            out,
            at,
            delta_ms,
            sample.key.as_deref(),
            sample.value.as_deref(),
            &[],
        );
    }
    base_timestamp_ms
}

/// A batch as the site's batcher makes it of a producer that sent it at once.
fn raw_payload(batch: &[&Sample]) -> Result<Vec<u8>, BatchError> {
    let mut records = Vec::new();
    let base_timestamp_ms = put_records(batch, &mut records);
    let mut writer = BlockWriter::default();
    writer.push(&Block {
        base_offset: 0,
        count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
        base_timestamp_ms,
        is_log_append_time: false,
        records: records.into(),
    })?;
    Ok(writer.finish())
}

fn kafka_failed(code: usize) -> BatchError {
    BatchError::Codec {
        codec: CODEC_ZSTD,
        error: get_error_name(code).to_owned(),
    }
}

fn kafka_context(level: i32) -> Result<CCtx<'static>, BatchError> {
    let mut context = CCtx::try_create().ok_or_else(|| kafka_failed(0))?;
    context
        .set_parameter(CParameter::CompressionLevel(level))
        .map_err(kafka_failed)?;
    Ok(context)
}

/// A produce request with the batch, its records in one zstd frame as the clients write it: a stream,
/// without the content's size.
fn kafka_len(
    batch: &[&Sample],
    options: &EstimateOptions,
    context: &mut CCtx<'static>,
) -> Result<usize, BatchError> {
    let mut records = Vec::new();
    put_records(batch, &mut records);
    let mut frame: Vec<u8> = Vec::with_capacity(compress_bound(records.len()) + 64);
    let mut input = InBuffer::around(&records);
    let (head, _) = records.split_at(records.len().min(1));
    let mut first = InBuffer::around(head);
    let mut out = OutBuffer::around(&mut frame);
    // a first piece before the end keeps zstd from knowing the size
    context
        .compress_stream(&mut out, &mut first)
        .map_err(kafka_failed)?;
    input.set_pos(first.pos());
    while context
        .compress_stream2(&mut out, &mut input, ZSTD_e_end)
        .map_err(kafka_failed)?
        > 0
    {}
    let request = PRODUCE_REQUEST_BYTES + options.topic_len;
    Ok(request + HEADER_LEN + frame.len().min(records.len()))
}
