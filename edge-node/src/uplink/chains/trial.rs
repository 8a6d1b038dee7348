//! Large values: whether references to chunks and a long window make fewer bytes of a log than a codec that
//! knows its fields. Tried on what the log sends, because nothing else tells: of firmware it is the first, of
//! snapshots in JSON the second.
//!
//! ```text
//!  one codec sends, the other makes the same payloads for nothing ─► the better one sends, for ever longer
//! ```

use shared::batch::{BatchError, CODEC_COLUMNAR, CODEC_LONG, CODEC_MODELLED, ChainCodec};

/// Payloads of a trial that are not counted: both codecs learn.
const LEARNS: u32 = 2;
/// Payloads of a trial.
const PAYLOADS: u32 = 8;
/// Raw bytes after which it ends sooner, but not before one payload counted.
const RAW: u64 = 16 << 20;
/// Raw bytes until the next trial, at first; each later one waits for four times as many.
const NEXT_AFTER: u64 = 64 << 20;
const LAST_AFTER: u64 = 4 << 30;
/// The other codec takes over when it makes at most so many tenths.
const ADVANTAGE: u64 = 9;

/// What is known of a log with large values.
#[derive(Debug)]
pub(super) struct Large {
    /// Chunks and window send.
    is_long: bool,
    trial: Option<Trial>,
    /// Raw bytes until the next trial.
    left: u64,
    wait: u64,
}

#[derive(Debug)]
struct Trial {
    /// The codec that sends nothing.
    other: Box<dyn ChainCodec>,
    payloads: u32,
    raw: u64,
    sent: u64,
    made: u64,
}

impl Large {
    /// A log whose values have become large. `in_use` is the codec whose memory it has.
    pub(super) fn new(in_use: Option<u8>) -> Self {
        let is_stream = matches!(in_use, Some(CODEC_COLUMNAR | CODEC_MODELLED));
        Self {
            is_long: !is_stream,
            trial: None,
            left: 0,
            wait: NEXT_AFTER,
        }
    }

    /// Whether chunks and window send.
    pub(super) const fn is_long(&self) -> bool {
        self.is_long
    }

    /// The codec that should be tried beside the one that is about to send, if there is one. `stream` is what the
    /// log would get if its values were small: tried only where the processor has time for it.
    pub(super) fn wants(&self, stream: u8) -> Option<u8> {
        let is_time = self.trial.is_none() && self.left == 0;
        let other = if self.is_long { stream } else { CODEC_LONG };
        (is_time && matches!(stream, CODEC_COLUMNAR | CODEC_MODELLED)).then_some(other)
    }

    /// Begins to try a codec.
    pub(super) fn begin(&mut self, other: Box<dyn ChainCodec>) {
        self.trial = Some(Trial {
            other,
            payloads: 0,
            raw: 0,
            sent: 0,
            made: 0,
        });
    }

    /// What a trial takes.
    pub(super) fn memory(&self) -> usize {
        self.trial.as_ref().map_or(0, |trial| trial.other.memory())
    }

    /// The log begins anew, or another codec than the two was taken: what was tried says nothing.
    pub(super) fn stop(&mut self) {
        self.trial = None;
    }

    /// The log sends something that is no part of a trial: not again before the next one is due.
    pub(super) fn put_off(&mut self) {
        if self.trial.take().is_some() {
            self.left = self.wait;
        }
    }

    /// A payload of so many bytes was made of this, and is sent.
    pub(super) fn sent(&mut self, raw: &[u8], sent: usize) {
        self.left = self.left.saturating_sub(raw.len() as u64);
        let Some(trial) = &mut self.trial else {
            return;
        };
        match trial.step(raw, sent) {
            Ok(false) => return,
            Ok(true) if trial.made.saturating_mul(10) <= trial.sent.saturating_mul(ADVANTAGE) => {
                self.is_long = !self.is_long;
            }
            Ok(true) | Err(_) => {}
        }
        self.trial = None;
        self.left = self.wait;
        self.wait = self.wait.saturating_mul(4).min(LAST_AFTER);
    }
}

impl Trial {
    /// True at the end.
    fn step(&mut self, raw: &[u8], sent: usize) -> Result<bool, BatchError> {
        let made = self.other.encode(raw)?.len();
        self.payloads += 1;
        if self.payloads > LEARNS {
            self.raw += raw.len() as u64;
            self.sent += sent as u64;
            self.made += made as u64;
        }
        Ok(self.payloads >= PAYLOADS || self.raw >= RAW)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Makes so many bytes of anything.
    #[derive(Debug)]
    struct Makes(usize);

    impl ChainCodec for Makes {
        fn codec(&self) -> u8 {
            CODEC_MODELLED
        }
        fn encode(&mut self, _raw: &[u8]) -> Result<Vec<u8>, BatchError> {
            Ok(vec![0; self.0])
        }
        fn decode(&mut self, _: &[u8], _: usize) -> Result<Bytes, BatchError> {
            Err(BatchError::Malformed("not here"))
        }
        fn position(&self) -> u64 {
            1
        }
        fn save(&self) -> Vec<u8> {
            Vec::new()
        }
        fn memory(&self) -> usize {
            5
        }
    }

    fn run(large: &mut Large, made: usize, payloads: u32) {
        assert!(large.wants(CODEC_MODELLED).is_some());
        large.begin(Box::new(Makes(made)));
        for payload in 0..payloads {
            assert_eq!(large.memory(), 5, "over after {payload}");
            large.sent(&[0; 1_000], if payload < LEARNS { 1 } else { 100 });
        }
    }

    #[test]
    fn the_codec_that_makes_less_takes_over() {
        let mut large = Large::new(None);
        assert_eq!(large.wants(CODEC_COLUMNAR), Some(CODEC_COLUMNAR));
        run(&mut large, 90, PAYLOADS);
        assert!(!large.is_long());
        assert_eq!((large.memory(), large.wants(CODEC_MODELLED)), (0, None));
        large.left = 0;
        assert_eq!(large.wants(CODEC_MODELLED), Some(CODEC_LONG));
        run(&mut large, 91, PAYLOADS);
        assert!(!large.is_long(), "a little better is not enough");
        large.left = 0;
        run(&mut large, 90, PAYLOADS);
        assert!(large.is_long());
    }

    #[test]
    fn nothing_is_tried_that_the_processor_has_no_time_for() {
        let large = Large::new(None);
        for codec in [0, 1, 2] {
            assert_eq!(large.wants(codec), None);
        }
    }

    #[test]
    fn trials_become_seldom() {
        let mut large = Large::new(Some(CODEC_MODELLED));
        assert!(!large.is_long());
        run(&mut large, 200, PAYLOADS);
        assert_eq!(large.left, NEXT_AFTER);
        large.sent(&[0; 1_000], 1);
        assert_eq!(large.left, NEXT_AFTER - 1_000);
        large.left = 0;
        run(&mut large, 200, PAYLOADS);
        assert_eq!(large.left, 4 * NEXT_AFTER);
    }

    #[test]
    fn a_log_of_mixed_sizes_is_not_tried_without_end() {
        let mut large = Large::new(None);
        run(&mut large, 1, 1);
        large.put_off();
        assert_eq!((large.memory(), large.left), (0, NEXT_AFTER));
        assert_eq!(large.wants(CODEC_MODELLED), None);
        large.left = 0;
        assert!(large.wants(CODEC_MODELLED).is_some());
    }

    #[test]
    fn a_log_that_begins_anew_is_tried_again() {
        let mut large = Large::new(None);
        run(&mut large, 1, PAYLOADS - 1);
        large.stop();
        assert!(large.is_long() && large.wants(CODEC_MODELLED).is_some());
    }
}
