//! What the encoder keeps of what went through, and when it makes a dictionary of it.
//!
//! A first dictionary comes after 16 KiB, small as the samples are few; after that the wait is four times as
//! long with each dictionary and each one that was not worth its bytes, up to 16 MiB. When the ratio became
//! clearly worse than it was when the dictionary began, what came before says little of what comes: samples
//! begin anew, and a 16th of the wait is enough.
//!
//! A dictionary is made of all samples but the last, and tried on those. What it saves there, a byte, times
//! the bytes since the last dictionary, must be more than what sending it costs: as much is expected to come as
//! has come.

use std::collections::VecDeque;

use super::super::BatchError;
use super::LARGE;
use super::frames::Packer;
use super::trained::{Carried, Dictionary, next_version};

/// Raw bytes before the first dictionary: it then saves what it costs within about as many.
const FIRST_WAIT: u64 = 16 << 10;
/// The wait grows fourfold so many times at most.
const MAX_GROWTH: u32 = 5;
/// Part of the wait when the ratio became worse.
const WORSE_SHIFT: u32 = 4;

/// Samples that are kept. Training on them takes some 100 ms of a processor and some 10 MB.
const MAX_SAMPLES: usize = 192 << 10;

/// On which a dictionary is tried, at most.
const MAX_TESTS: usize = 32 << 10;

/// Fewest payloads that say anything.
const MIN_PAYLOADS: usize = 8;

/// What zstd takes for one sample: a larger payload is cut, because it counts how many samples have something
/// in common.
const PIECE: usize = 4 << 10;

/// A dictionary is made of so many times its size: zstd asks for about 100, and does with less.
const SAMPLES_OF_ONE: usize = 8;

/// Smallest and largest dictionary that is made.
const SIZES: std::ops::RangeInclusive<usize> = (1 << 10)..=(16 << 10);

/// From here on one of a quarter of the size is tried as well.
const LARGE_SIZE: usize = 4 << 10;

/// Over which a ratio is looked at.
const RATIO_BYTES: u64 = 32 << 10;

/// Encoded bytes of raw ones.
#[derive(Debug, Clone, Copy, Default)]
struct Ratio {
    raw: u64,
    encoded: u64,
}

impl Ratio {
    fn add(&mut self, raw: usize, encoded: usize) {
        self.raw += raw as u64;
        self.encoded += encoded as u64;
    }

    /// Worse than the other by a quarter.
    fn is_clearly_worse(self, than: Self) -> bool {
        let (this, other) = (
            u128::from(self.encoded) * u128::from(than.raw),
            u128::from(than.encoded) * u128::from(self.raw),
        );
        this * 4 > other * 5
    }
}

/// Samples, and when to train.
#[derive(Debug, Default)]
pub(super) struct Trainer {
    bytes: Vec<u8>,
    lens: VecDeque<usize>,
    /// Raw bytes since the last dictionary, or since this end began.
    since_dictionary: u64,
    since_attempt: u64,
    /// Dictionaries in a row that were not worth it.
    refused: u32,
    lately: Ratio,
    /// Of the dictionary in use, as it was when it began.
    normal: Option<Ratio>,
    is_worse: bool,
}

impl Trainer {
    /// A payload became so many bytes.
    pub(super) fn saw(&mut self, raw: &[u8], encoded: usize) {
        self.since_dictionary += raw.len() as u64;
        self.since_attempt += raw.len() as u64;
        self.watch(raw.len(), encoded);
        if raw.is_empty() {
            return;
        }
        if self.bytes.len() + raw.len() > MAX_SAMPLES {
            self.drop_oldest();
        }
        self.bytes.extend_from_slice(raw);
        self.lens.push_back(raw.len());
    }

    fn watch(&mut self, raw: usize, encoded: usize) {
        self.lately.add(raw, encoded);
        if self.lately.raw < RATIO_BYTES {
            return;
        }
        let lately = std::mem::take(&mut self.lately);
        let normal = *self.normal.get_or_insert(lately);
        if !self.is_worse && lately.is_clearly_worse(normal) {
            self.is_worse = true;
            self.bytes.clear();
            self.lens.clear();
        }
    }

    /// Several at once, so that it does not happen with each payload.
    fn drop_oldest(&mut self) {
        let mut gone = 0;
        while self.bytes.len() - gone > MAX_SAMPLES - LARGE {
            let Some(len) = self.lens.pop_front() else {
                break;
            };
            gone += len;
        }
        self.bytes.drain(..gone);
    }

    /// Whether it is time to train, with a dictionary of this version in use.
    pub(super) fn is_due(&self, version: u32) -> bool {
        let growth = version.saturating_add(self.refused).min(MAX_GROWTH);
        let wait = FIRST_WAIT << (2 * growth);
        let wait = if self.is_worse {
            (wait >> WORSE_SHIFT).max(FIRST_WAIT)
        } else {
            wait
        };
        let has_enough = self.bytes.len() as u64 >= FIRST_WAIT && self.lens.len() >= MIN_PAYLOADS;
        has_enough && self.since_attempt >= wait
    }

    /// Trains; `None` when nothing comes out that pays for itself. `packer` makes frames as they are made without
    /// it.
    pub(super) fn train(
        &mut self,
        old: Option<&Dictionary>,
        packer: &mut Packer,
        level: i32,
    ) -> Result<Option<(Dictionary, Carried)>, BatchError> {
        let (known, tests) = self.split();
        let before = tried(packer, &tests)?;
        let mut best: Option<Trial> = None;
        let most = known.bytes.len() / SAMPLES_OF_ONE;
        let most = most.clamp(*SIZES.start(), *SIZES.end());
        let less = (most >= LARGE_SIZE).then_some(most / 4);
        for size in [most].into_iter().chain(less) {
            let Some(dictionary) = known.dictionary_of(size, next_version(old)?) else {
                continue;
            };
            // what zstd does not take to encode is none either
            let Ok(mut trial) = Trial::of(dictionary, old, &tests, level) else {
                continue;
            };
            let saved = before.encoded.saturating_sub(trial.after.encoded);
            let saved = saved.saturating_mul(self.since_dictionary) / before.raw.max(1);
            trial.gain = saved.saturating_sub(trial.carried.len() as u64);
            if trial.gain > best.as_ref().map_or(0, |best| best.gain) {
                best = Some(trial);
            }
        }
        self.since_attempt = 0;
        self.is_worse = false;
        self.lately = Ratio::default();
        let Some(best) = best else {
            self.refused += 1;
            self.normal = Some(before);
            return Ok(None);
        };
        self.since_dictionary = 0;
        self.refused = 0;
        self.normal = Some(best.after);
        Ok(Some((best.dictionary, best.carried)))
    }

    /// What a dictionary is made of, and the payloads on which it is tried: the last, a quarter at most.
    fn split(&self) -> (Known<'_>, Vec<&[u8]>) {
        let most = self.bytes.len() - (self.bytes.len() / 4).min(MAX_TESTS);
        let (mut known_len, mut pieces, mut tests) = (0, Vec::new(), Vec::new());
        let mut rest = self.bytes.as_slice();
        for len in &self.lens {
            let (payload, after) = rest.split_at(rest.len().min(*len));
            rest = after;
            if tests.is_empty() && known_len + payload.len() <= most {
                known_len += payload.len();
                pieces.extend(payload.chunks(PIECE).map(<[u8]>::len));
            } else {
                tests.push(payload);
            }
        }
        let (bytes, _) = self.bytes.split_at(known_len);
        (Known { bytes, pieces }, tests)
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.lens.capacity() * size_of::<usize>()
    }
}

/// A dictionary that was tried.
struct Trial {
    dictionary: Dictionary,
    carried: Carried,
    after: Ratio,
    /// Bytes that it is expected to save beyond what it costs.
    gain: u64,
}

impl Trial {
    fn of(
        dictionary: Dictionary,
        old: Option<&Dictionary>,
        tests: &[&[u8]],
        level: i32,
    ) -> Result<Self, BatchError> {
        Ok(Self {
            carried: Carried::new(&dictionary, old)?,
            after: tried(&mut Packer::new(Some(&dictionary), level)?, tests)?,
            dictionary,
            gain: 0,
        })
    }
}

/// What a dictionary is made of.
struct Known<'a> {
    bytes: &'a [u8],
    pieces: Vec<usize>,
}

impl Known<'_> {
    /// `None` when there is too little, or nothing that repeats.
    fn dictionary_of(&self, size: usize, version: u32) -> Option<Dictionary> {
        let bytes = zstd::dict::from_continuous(self.bytes, &self.pieces, size).ok()?;
        Dictionary::new(version, bytes.into()).ok()
    }
}

/// What these payloads become.
fn tried(packer: &mut Packer, payloads: &[&[u8]]) -> Result<Ratio, BatchError> {
    let mut ratio = Ratio::default();
    for payload in payloads {
        let len = packer.shortest(payload)?.frame.len().min(payload.len());
        ratio.add(payload.len(), len);
    }
    Ok(ratio)
}
