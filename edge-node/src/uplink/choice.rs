//! Which codec the next payload gets: the processor is spent only while the link is what holds records up.
//! Pure.
//!
//! Of a backlog, a codec sends `min(speed, link / ratio)` raw bytes a second: what it can encode, and what
//! the link carries of what it makes. The codec that sends most is taken. Records that come no faster than
//! they are sent get the codec that makes least of them, as long as that takes a processor a small part of its
//! time: the hub, which decodes for many sites, spends as much. Speeds and ratios are what was measured here; of a
//! codec that is not in use, what was measured once fades, or a moment at which the processor was busy with
//! something else would keep the codec out for good. What a codec takes of a processor is told by the thread's own
//! time: a processor that others use as well makes records wait and does not make a codec dearer.
//! Plain zstd is for hubs that take no dictionary: with one it is never better by more than a byte.

use std::time::Duration;

use shared::batch::{CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_MODELLED, CODEC_NONE, CODEC_ZSTD};

/// A codec has to send so much more than the one in use before it replaces it: its memory begins empty.
const ADVANTAGE: f64 = 1.3;
/// Weight of a new measurement, by raw bytes: after so many, half of what is known comes from them.
const MEMORY_BYTES: f64 = 256.0 * 1024.0;

/// A codec may have this part of a processor's time while nothing waits for it, and this part more once it has
/// been taken.
const LOAD: f64 = 0.35;
const LOAD_SLACK: f64 = 0.15;
/// What was measured of a codec that is not in use counts half after this.
const FADES: Duration = Duration::from_secs(300);
/// Over which the load is looked at.
const LOAD_SPAN: Duration = Duration::from_secs(2);

/// What is known of one codec.
#[derive(Debug, Clone, Copy)]
struct Known {
    codec: u8,
    /// Raw bytes a second.
    speed: f64,
    /// Raw bytes a second of a processor's time.
    work: f64,
    /// Encoded bytes for each raw byte.
    ratio: f64,
}

/// The choice of a codec, and what it rests on.
#[derive(Debug)]
pub(super) struct Choice {
    /// Taken by whatever hub takes it.
    fixed: Option<u8>,
    /// Best ratio first.
    known: [Known; 5],
    /// What is taken to hold of a codec that was not used yet, or not for long.
    usual: [Known; 5],
    last: u8,
    /// Raw bytes that came, fading over [`LOAD_SPAN`], as of a time.
    came: f64,
    as_of: Duration,
}

impl Choice {
    /// `fixed`: the codec that is not to be chosen. What is known at first is what telemetry in JSON came to on a small
    /// processor.
    pub(super) fn new(fixed: Option<u8>) -> Self {
        let known = |codec, speed, ratio| Known {
            codec,
            speed,
            work: speed,
            ratio,
        };
        let known = [
            known(CODEC_MODELLED, 5e6, 0.1),
            known(CODEC_COLUMNAR, 40e6, 0.15),
            known(CODEC_DICTIONARY, 180e6, 0.33),
            known(CODEC_ZSTD, 200e6, 0.35),
            known(CODEC_NONE, 4e9, 1.0),
        ];
        Self {
            fixed,
            known,
            usual: known,
            last: CODEC_MODELLED,
            came: 0.0,
            as_of: Duration::ZERO,
        }
    }

    /// The codec for the next payload, of those that are `allowed` (codec 0 always is). `link` is what the
    /// link carries, in bytes a second, if it is known; `raw` the bytes that have come.
    pub(super) fn pick(
        &mut self,
        allowed: &[u8],
        raw: usize,
        is_backlog: bool,
        link: Option<u64>,
        now: Duration,
    ) -> u8 {
        self.arrive(raw, now);
        if let Some(fixed) = self.fixed.filter(|codec| allowed.contains(codec)) {
            self.last = fixed;
            return fixed;
        }
        let has_dictionary = allowed.contains(&CODEC_DICTIONARY);
        // zstd that was set for good is not left
        let is_free = allowed.is_empty() || allowed.contains(&CODEC_COLUMNAR);
        let is_allowed = |known: &&Known| match known.codec {
            CODEC_NONE => is_free,
            CODEC_ZSTD if has_dictionary => false,
            codec => allowed.contains(&codec),
        };
        let usable = || self.known.iter().filter(is_allowed);
        let Some(link) = link.filter(|_| is_backlog) else {
            let rate = self.came / LOAD_SPAN.as_secs_f64();
            let is_light = |known: &&Known| {
                let slack = f64::from(known.codec == self.last) * LOAD_SLACK;
                rate <= known.work * (LOAD + slack)
            };
            let light = usable().find(is_light).or_else(|| usable().next_back());
            self.last = light.map_or(CODEC_NONE, |known| known.codec);
            return self.last;
        };
        let best = usable().next().map_or(CODEC_NONE, |known| known.codec);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let link = link.max(1) as f64;
        let sends = |known: &Known| known.speed.min(link / known.ratio);
        let fastest = usable().max_by(|a, b| sends(a).total_cmp(&sends(b)));
        let current = usable().find(|known| known.codec == self.last);
        self.last = match (fastest, current) {
            (Some(fastest), Some(current)) if sends(fastest) < ADVANTAGE * sends(current) => {
                current.codec
            }
            (Some(fastest), _) => fastest.codec,
            (None, _) => best,
        };
        self.last
    }

    fn arrive(&mut self, raw: usize, now: Duration) {
        let passed = now.saturating_sub(self.as_of);
        self.as_of = now;
        self.fade(passed);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let raw = raw as f64;
        self.came = self.came * (-passed.as_secs_f64() / LOAD_SPAN.as_secs_f64()).exp() + raw;
    }

    fn fade(&mut self, passed: Duration) {
        let kept = (-passed.as_secs_f64() / FADES.as_secs_f64()).exp2();
        for (known, usual) in self.known.iter_mut().zip(&self.usual) {
            if known.codec != self.last {
                known.speed = usual.speed + kept * (known.speed - usual.speed);
                known.work = usual.work + kept * (known.work - usual.work);
                known.ratio = usual.ratio + kept * (known.ratio - usual.ratio);
            }
        }
    }

    /// A payload of `raw` bytes became `encoded` bytes in this time, of which the thread worked for so long.
    pub(super) fn observe(
        &mut self,
        codec: u8,
        raw: usize,
        encoded: usize,
        spent: Duration,
        worked: Duration,
    ) {
        let Some(known) = self.known.iter_mut().find(|known| known.codec == codec) else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let (raw, encoded) = (raw as f64, encoded as f64);
        let weight = raw / (raw + MEMORY_BYTES);
        let each = |spent: Duration| raw / spent.as_secs_f64().max(1e-6);
        known.speed += weight * (each(spent) - known.speed);
        known.work += weight * (each(worked) - known.work);
        known.ratio += weight * (encoded / raw.max(1.0) - known.ratio);
        known.ratio = known.ratio.clamp(0.001, 2.0);
        known.speed = known.speed.max(1e3);
        known.work = known.work.max(1e3);
    }
}

#[cfg(test)]
mod tests {
    use shared::batch::CODEC_LONG;

    use super::*;

    const NOW: Duration = Duration::from_secs(9);
    const ALL: [u8; 4] = [CODEC_MODELLED, CODEC_COLUMNAR, CODEC_DICTIONARY, CODEC_ZSTD];

    #[test]
    fn a_thin_link_gets_the_least_bytes_and_a_fat_one_the_least_work() {
        for (link, codec) in [
            (4_000, CODEC_MODELLED),
            (200_000, CODEC_MODELLED),
            (2_000_000, CODEC_COLUMNAR),
            (50_000_000, CODEC_DICTIONARY),
            (10_000_000_000, CODEC_NONE),
        ] {
            assert_eq!(
                Choice::new(None).pick(&ALL, 100_000, true, Some(link), NOW),
                codec,
                "{link}"
            );
        }
    }

    #[test]
    fn records_that_come_slowly_get_the_least_bytes_on_any_link() {
        let mut choice = Choice::new(None);
        let mut pick =
            |allowed: &[u8], is_backlog, link| choice.pick(allowed, 1_000, is_backlog, link, NOW);
        assert_eq!(pick(&ALL, false, Some(1 << 40)), CODEC_MODELLED);
        assert_eq!(pick(&ALL, true, None), CODEC_MODELLED);
        assert_eq!(pick(&[CODEC_ZSTD], false, None), CODEC_ZSTD);
        assert_eq!(pick(&[], true, Some(1)), CODEC_NONE);
    }

    #[test]
    fn plain_zstd_is_for_hubs_that_take_no_dictionary() {
        let both = [CODEC_DICTIONARY, CODEC_ZSTD];
        for (link, is_backlog) in [(Some(1_000), true), (Some(50_000_000), true), (None, false)] {
            let pick =
                |allowed: &[u8]| Choice::new(None).pick(allowed, 1_000, is_backlog, link, NOW);
            assert_eq!(pick(&both), CODEC_DICTIONARY);
            assert_eq!(pick(&[CODEC_ZSTD]), CODEC_ZSTD);
        }
    }

    #[test]
    fn records_that_come_fast_get_the_codec_that_has_time_for_them() {
        for (bytes_a_second, codec) in [
            (100_000, CODEC_MODELLED),
            (500_000, CODEC_MODELLED),
            (3_000_000, CODEC_COLUMNAR),
            (20_000_000, CODEC_DICTIONARY),
        ] {
            let mut choice = Choice::new(None);
            let mut picked = 0;
            for tenth in 0..200 {
                let now = NOW + Duration::from_millis(100 * tenth);
                picked = choice.pick(&ALL, bytes_a_second / 10, false, Some(1 << 30), now);
            }
            assert_eq!(picked, codec, "{bytes_a_second}");
        }
    }

    #[test]
    fn a_codec_that_is_set_stays() {
        let zstd = [CODEC_DICTIONARY, CODEC_ZSTD];
        for (fixed, allowed, expected) in [
            (Some(CODEC_MODELLED), &ALL[..], CODEC_MODELLED),
            (
                Some(CODEC_COLUMNAR),
                &[CODEC_COLUMNAR, CODEC_LONG],
                CODEC_COLUMNAR,
            ),
            (None, &zstd, CODEC_DICTIONARY),
            // a hub that does not take it
            (Some(CODEC_MODELLED), &zstd, CODEC_DICTIONARY),
            (Some(CODEC_COLUMNAR), &[CODEC_ZSTD], CODEC_ZSTD),
        ] {
            for (is_backlog, link) in [(false, None), (true, Some(1 << 40))] {
                let mut choice = Choice::new(fixed);
                for second in 0..9 {
                    let now = Duration::from_secs(second);
                    let picked = choice.pick(allowed, 500_000_000, is_backlog, link, now);
                    assert_eq!(picked, expected, "{fixed:?} {allowed:?}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_worked_on() {
        let mut choice = Choice::new(None);
        for codec in ALL {
            for _ in 0..200 {
                let spent = Duration::from_millis(20);
                choice.observe(codec, 100_000, 100_020, spent, spent);
            }
        }
        assert_eq!(
            choice.pick(&ALL, 100_000, true, Some(20_000_000), NOW),
            CODEC_NONE
        );
    }

    fn observe(choice: &mut Choice, codec: u8, spent_ms: u64, worked_ms: u64) {
        let (spent, worked) = (
            Duration::from_millis(spent_ms),
            Duration::from_millis(worked_ms),
        );
        for _ in 0..200 {
            choice.observe(codec, 100_000, 10_000, spent, worked);
        }
    }

    #[test]
    fn a_busy_processor_does_not_make_a_codec_dearer() {
        let mut choice = Choice::new(None);
        observe(&mut choice, CODEC_MODELLED, 400, 20);
        assert_eq!(choice.pick(&ALL, 100_000, false, None, NOW), CODEC_MODELLED);
        observe(&mut choice, CODEC_MODELLED, 400, 400);
        assert_eq!(
            choice.pick(&ALL, 1_000_000, false, None, NOW),
            CODEC_COLUMNAR
        );
    }

    #[test]
    fn a_codec_that_was_slow_once_comes_back() {
        let mut choice = Choice::new(None);
        observe(&mut choice, CODEC_MODELLED, 400, 400);
        let mut at = |seconds: u64| {
            let now = NOW + Duration::from_secs(seconds);
            choice.pick(&ALL, 300_000, false, None, now)
        };
        assert_eq!(at(0), CODEC_COLUMNAR);
        assert_eq!(at(10), CODEC_COLUMNAR);
        assert_eq!(at(900), CODEC_MODELLED);
    }

    #[test]
    fn a_choice_near_the_border_does_not_swing() {
        let mut choice = Choice::new(None);
        let mut changes = 0;
        let mut last = choice.pick(&ALL, 100_000, true, Some(500_000), NOW);
        for n in 0..100 {
            let link = if n % 2 == 0 { 480_000 } else { 560_000 };
            let codec = choice.pick(&ALL, 100_000, true, Some(link), NOW);
            changes += u32::from(codec != last);
            last = codec;
        }
        assert!(changes <= 1, "{changes} changes");
    }
}
