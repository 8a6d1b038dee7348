//! What deduplication brings: 44 MB of firmware-like images, 20 versions with a tenth changed each time, and
//! the same again after a restart of both ends, against zstd 3 on each alone.
//!
//! ```sh
//! cargo run --release -p shared --example firmware [-- WINDOW_LOG LEVEL]
//! ```
#![allow(clippy::print_stdout, reason = "an example tells its figures")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::time::Instant;

use shared::batch::{Block, BlockWriter, Encoder, ZstdEncoder};
use shared::dedup::{ChunkIndex, LongConfig, LongDecoder, LongEncoder, MemoryChunks, Place};
use shared::record::BatchBuilder;
use shared::record::{BatchHeader, HEADER_LEN};

const VERSIONS: u64 = 20;
const IMAGE_BYTES: usize = 2_200_000;
/// Places that change in one version; together a tenth of the image.
const PLACES: usize = 60;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }
}

/// Machine code as zstd sees it: words of four bytes, a few of them often, their operands at random. zstd 3
/// makes about two thirds of it.
fn code(random: &mut Random, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 4);
    while out.len() < len {
        let word = random.next().to_le_bytes();
        let common = random.below(100) < 45;
        let opcode = if common { word[0] % 12 } else { word[0] % 64 };
        let register = word[1] & 0x1f;
        let operand = if common {
            [word[2] & 3, 0]
        } else {
            [word[2], word[3]]
        };
        out.extend_from_slice(&[operand[0], operand[1], register, opcode << 2 | 0xe0]);
    }
    out.truncate(len);
    out
}

/// Rewrites a tenth: each place is replaced by code of its own length, or nearly, so that all behind it moves.
fn next_version(image: &[u8], random: &mut Random) -> Vec<u8> {
    let mut cuts: Vec<usize> = (0..PLACES).map(|_| random.below(image.len())).collect();
    cuts.sort_unstable();
    let mut out = Vec::with_capacity(image.len());
    let mut at = 0;
    let mut budget = image.len() / 10;
    for (n, cut) in cuts.iter().enumerate() {
        if *cut < at {
            continue;
        }
        out.extend_from_slice(&image[at..*cut]);
        let share = budget / (PLACES - n);
        let len = (share / 2 + random.below(share))
            .min(budget)
            .min(image.len() - cut);
        budget -= len;
        let shift = random.below(33);
        let replaced = code(random, len + shift);
        out.extend_from_slice(&replaced);
        at = cut + len;
    }
    out.extend_from_slice(&image[at..]);
    out
}

fn payload(image: &[u8], offset: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    builder.push(1_700_000_000_000, Some(b"model-7"), Some(image), &[]);
    let Some(batch) = builder.build() else {
        return Vec::new();
    };
    let Ok(header) = BatchHeader::parse(&batch) else {
        return Vec::new();
    };
    let mut writer = BlockWriter::default();
    let pushed = writer.push(&Block {
        base_offset: offset,
        count: 1,
        base_timestamp_ms: header.base_timestamp_ms,
        is_log_append_time: false,
        records: batch.slice(HEADER_LEN..),
    });
    pushed.map(|()| writer.finish()).unwrap_or_default()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut config = LongConfig::default();
    if let Some(window_log) = args.next() {
        config.window_log = window_log.parse()?;
    }
    if let Some(level) = args.next() {
        config.level = level.parse()?;
    }
    let mut random = Random(0x6b65_6467_6531);
    let mut image = code(&mut random, IMAGE_BYTES);
    let mut images = Vec::new();
    for version in 0..VERSIONS {
        images.push(payload(&image, version));
        image = next_version(&image, &mut random);
    }
    let total: usize = images.iter().map(Vec::len).sum();
    let mut zstd = ZstdEncoder::new(3)?;
    let mut alone = 0;
    for raw in &images {
        alone += zstd.encode(raw)?.len();
    }
    println!("raw {total}, zstd 3 on each alone {alone}");

    let mut index = ChunkIndex::new(256 << 20);
    let mut store = MemoryChunks::new(256 << 20);
    let mut next_offset = 0;
    for run in ["first", "again after a restart of both"] {
        let mut encoder = LongEncoder::new(config)?;
        let mut decoder = LongDecoder::new(config)?;
        let (mut sent, mut encoding, mut decoding) = (0, 0.0, 0.0);
        for raw in &images {
            next_offset += 1;
            let place = Place {
                log: 1,
                next_offset,
            };
            let start = Instant::now();
            let payload = encoder.encode(raw, &mut index, place)?;
            encoding += start.elapsed().as_secs_f64();
            sent += payload.len();
            let start = Instant::now();
            let decoded = decoder.decode(&payload, raw.len(), &mut store)?;
            decoding += start.elapsed().as_secs_f64();
            if decoded != raw || encoder.position() != decoder.position() {
                return Err("decoded to something else".into());
            }
            index.handle_acknowledged(place);
        }
        index = ChunkIndex::restore(&index.save(), 256 << 20)?;
        let megabytes = |seconds: f64| f64::from(u32::try_from(total).unwrap_or(0)) / 1e6 / seconds;
        println!(
            "{run}: {sent} bytes, {:.4} of zstd 3 alone; encoder {:.0} MB/s, {} KiB; decoder {:.0} MB/s, {} KiB",
            f64::from(u32::try_from(sent)?) / f64::from(u32::try_from(alone)?),
            megabytes(encoding),
            encoder.memory() >> 10,
            megabytes(decoding),
            decoder.memory() >> 10,
        );
    }
    println!(
        "index {} chunks, {} bytes saved",
        index.len(),
        index.save().len()
    );
    Ok(())
}
