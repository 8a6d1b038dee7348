//! Which logs' codecs are worth their memory. Pure.
//!
//! Memory that is too small for all is given to the logs that have most records for each byte of it, and
//! stays with them: on logs that take turns, forgetting the one not used for longest would forget each of
//! them just before its turn.

/// Everyone's records count half after all logs together had so many turns each.
const TURNS: u64 = 32;
/// Who takes another's memory must be worth so many times as much: what is alike does not change places.
const ADVANTAGE: u128 = 2;

/// How much one log has had lately.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Worth {
    raw: u64,
    epoch: u64,
}

/// Who holds memory, as it is weighed against others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder<K> {
    pub(super) key: K,
    pub(super) worth: Worth,
    pub(super) bytes: usize,
}

/// Halves everyone's worth now and then.
#[derive(Debug, Default)]
pub(super) struct Scales {
    epoch: u64,
    turns: u64,
}

impl Scales {
    /// A log, of so many, has its turn with so many bytes of records.
    pub(super) fn turn(&mut self, worth: &mut Worth, raw: usize, logs: usize) {
        self.turns += 1;
        if self.turns > (logs as u64).saturating_mul(TURNS) {
            self.turns = 0;
            self.epoch += 1;
        }
        *worth = Worth {
            raw: self.now(*worth).saturating_add(raw as u64),
            epoch: self.epoch,
        };
    }

    fn now(&self, worth: Worth) -> u64 {
        let halved = u32::try_from(self.epoch - worth.epoch).unwrap_or(u32::MAX);
        worth.raw.checked_shr(halved).unwrap_or(0)
    }

    /// Whether the first is worth less for each byte of its memory, the advantage included.
    fn yields(&self, holder: Worth, bytes: usize, to: Worth, need: usize) -> bool {
        let each =
            |worth: Worth, others: usize| u128::from(self.now(worth)) * others.max(1) as u128;
        each(holder, need) * ADVANTAGE < each(to, bytes)
    }

    /// Whether a log that needs so many bytes may have them: `free`, and those of holders that are worth less.
    pub(super) fn admits<K: Copy>(
        &self,
        worth: Worth,
        need: usize,
        free: usize,
        holders: impl Iterator<Item = Holder<K>>,
    ) -> bool {
        let yielding = holders.filter(|it| self.yields(it.worth, it.bytes, worth, need));
        let room: usize = yielding.map(|it| it.bytes).sum();
        free.saturating_add(room) >= need
    }

    /// Of these the one that is worth least for each byte.
    pub(super) fn least<K: Copy>(&self, holders: impl Iterator<Item = Holder<K>>) -> Option<K> {
        // 2^64 bytes of records and of memory: no product is too large
        let less = |a: &Holder<K>, b: &Holder<K>| {
            let each = |of: &Holder<K>, other: &Holder<K>| {
                u128::from(self.now(of.worth)) * other.bytes.max(1) as u128
            };
            each(a, b).cmp(&each(b, a))
        };
        holders.min_by(less).map(|it| it.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(key: u32, worth: Worth) -> Holder<u32> {
        Holder {
            key,
            worth,
            bytes: 1_000,
        }
    }

    /// Everyone has as many turns.
    fn alike(scales: &mut Scales, logs: &mut [Worth], rounds: usize) {
        let count = logs.len();
        for _ in 0..rounds {
            for worth in &mut *logs {
                scales.turn(worth, 100, count);
            }
        }
    }

    #[test]
    fn logs_that_are_alike_do_not_take_each_others_memory() {
        let (mut scales, mut logs) = (Scales::default(), [Worth::default(); 5]);
        for _ in 0..200 {
            alike(&mut scales, &mut logs, 1);
            let held = || {
                (1..)
                    .zip(&logs[1..])
                    .map(|(key, worth)| holder(key, *worth))
            };
            assert!(!scales.admits(logs[0], 1_000, 999, held()));
            assert!(scales.admits(logs[0], 1_000, 1_000, held()));
            // much less memory for as many records
            assert!(scales.admits(logs[0], 400, 0, held()));
        }
    }

    #[test]
    fn a_log_that_has_more_takes_the_place_of_the_one_that_has_least() {
        let (mut scales, mut logs) = (Scales::default(), [Worth::default(); 5]);
        alike(&mut scales, &mut logs, 3);
        scales.turn(&mut logs[2], 1_000, 5);
        scales.turn(&mut logs[0], 50, 5);
        let held = || {
            (0..)
                .zip(&logs[..2])
                .map(|(key, worth)| holder(key, *worth))
        };
        assert!(scales.admits(logs[2], 1_000, 0, held()));
        assert!(!scales.admits(logs[2], 2_001, 0, held()));
        assert_eq!(scales.least(held()), Some(1));
    }

    #[test]
    fn who_falls_silent_makes_room() {
        let (mut scales, mut logs) = (Scales::default(), [Worth::default(); 3]);
        alike(&mut scales, &mut logs, 10);
        let silent = logs[0];
        let held = || std::iter::once(holder(0, silent));
        assert!(!scales.admits(logs[1], 1_000, 0, held()));
        alike(&mut scales, &mut logs[1..], 150);
        assert!(scales.admits(logs[1], 1_000, 0, held()));
        // long after, too
        scales.epoch += 1 << 40;
        assert_eq!(scales.now(silent), 0);
    }
}
