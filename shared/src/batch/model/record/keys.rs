//! Keys: which device speaks next, or what a new one is called.

use super::{FLAG_DEVICE, FLAG_KEY, FLAG_NEW_KEY, FLAG_NULL_KEY, MALFORMED, Scratch};
use crate::batch::BatchError;
use crate::batch::model::coder::Coder;
use crate::batch::model::devices::{MAX_KEY_LEN, key_hash};
use crate::batch::model::history::size_class;
use crate::batch::model::predictor::Contexts;
use crate::batch::model::state::State;
use crate::batch::model::symbols::Domain;
use crate::batch::model::text::{self, Place};
use crate::batch::model::value::Value;
use crate::batch::split::mix;

impl State {
    /// The key and the number of its device, if it has one.
    pub(super) fn key<C: Coder>(
        &mut self,
        coder: &mut C,
        key: Option<Option<&[u8]>>,
        scratch: &mut Scratch,
        limit: usize,
    ) -> Result<(Option<Vec<u8>>, Option<u16>), BatchError> {
        let key = key.flatten();
        let want = if C::ENCODES {
            self.devices.find(key)
        } else {
            None
        };
        let [one, two] = self.recent.keys;
        let situations = [mix(mix(one, two), 41), mix(one, 42)];
        let found = match self.follower(coder, want, &situations) {
            Some(id) => Some(id),
            None => self.named(coder, want)?,
        };
        let (key, id) = match found {
            Some(id) => {
                let device = self.devices.at(id).ok_or(MALFORMED)?;
                (device.key.clone(), Some(id))
            }
            None => self.new_key(coder, key, scratch, limit)?,
        };
        let hash = key_hash(key.as_deref());
        if let Some(id) = id {
            for situation in situations {
                self.memo.put(situation, Value::text(id.into()));
            }
        }
        self.recent.keys = [hash, one];
        Ok((key, id))
    }

    /// One of the devices that followed the last two before.
    fn follower<C: Coder>(
        &mut self,
        coder: &mut C,
        want: Option<u16>,
        situations: &[u64; 2],
    ) -> Option<u16> {
        let mut asked = None;
        for (i, situation) in situations.iter().enumerate() {
            let candidate = self.memo.last(*situation).as_text();
            let candidate = candidate.and_then(|id| u16::try_from(id).ok());
            let Some(candidate) = candidate.filter(|id| self.devices.at(*id).is_some()) else {
                continue;
            };
            if asked == Some(candidate) {
                continue;
            }
            asked = Some(candidate);
            let contexts = Contexts::new(
                0,
                [
                    51 + i as u64,
                    mix(situations[1], 52),
                    mix(situations[0], 53),
                ],
            );
            let is = want == Some(candidate);
            if self.predictor.flag(coder, is, &contexts, FLAG_KEY + i) {
                return Some(candidate);
            }
        }
        None
    }

    /// A device by its rank among those due, or by its number, whichever was cheaper of late.
    fn named<C: Coder>(
        &mut self,
        coder: &mut C,
        want: Option<u16>,
    ) -> Result<Option<u16>, BatchError> {
        let len = self.devices.len();
        let contexts = Contexts::new(0, [54]);
        if len == 0
            || self
                .predictor
                .flag(coder, want.is_none(), &contexts, FLAG_NEW_KEY)
        {
            return Ok(None);
        }
        let log = len.ilog2();
        let by_number = size_class(len as u64) * 15;
        let (id, rank) = if self.recent.rank_cost < by_number {
            let rank = want.map_or(0, |id| self.devices.rank(id));
            let contexts = Contexts::new(1, [56, mix(57, log.into())]);
            let rank = rank as i64;
            let rank = self.predictor.number(coder, rank, &contexts, Domain::Rank);
            let rank = usize::try_from(rank).map_err(|_| MALFORMED)?;
            (self.devices.ranked(rank).ok_or(MALFORMED)?, rank)
        } else {
            let bits = self.devices.id_bits();
            let contexts = Contexts::new(2, [58, mix(self.recent.keys[0], 59)]);
            let id = want.map_or(0, u32::from);
            let id = self.predictor.bits(coder, id, bits, &contexts, FLAG_DEVICE);
            let id = u16::try_from(id).map_err(|_| MALFORMED)?;
            self.devices.at(id).ok_or(MALFORMED)?;
            (id, self.devices.rank(id))
        };
        let cost = (16 + 2 * size_class(rank as u64)) * 16;
        self.recent.rank_cost = (self.recent.rank_cost * 49 + cost) / 50;
        Ok(Some(id))
    }

    fn new_key<C: Coder>(
        &mut self,
        coder: &mut C,
        key: Option<&[u8]>,
        scratch: &mut Scratch,
        limit: usize,
    ) -> Result<(Option<Vec<u8>>, Option<u16>), BatchError> {
        let contexts = Contexts::new(0, [55]);
        let key = if self
            .predictor
            .flag(coder, key.is_none(), &contexts, FLAG_NULL_KEY)
        {
            None
        } else {
            let place = Place {
                column: 4343,
                element: 0,
                previous: 0,
                last: &scratch.key,
                follower: &[],
            };
            let key = key.unwrap_or_default();
            let mut out = Vec::new();
            text::code(
                coder,
                &mut self.predictor,
                &mut self.texts,
                key,
                &place,
                limit,
                &mut out,
            )?;
            Some(if C::ENCODES { key.to_vec() } else { out })
        };
        if key.as_ref().is_some_and(|key| key.len() > MAX_KEY_LEN) {
            return Ok((key, None));
        }
        let id = self.devices.insert(key.as_deref());
        Ok((key, Some(id)))
    }
}
