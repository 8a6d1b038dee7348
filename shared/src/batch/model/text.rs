//! Text byte by byte: what came before in it, what stood here before, and the longest match in all text.
//!
//! Symbol 0 ends a text; symbol 1 is followed by one of the bytes 0 and 1, two higher.
#![expect(
    clippy::cast_possible_truncation,
    reason = "bytes, and lengths cut to a few bits"
)]

use super::coder::Coder;
use super::predictor::{Contexts, Predictor};
use super::texts::Texts;
use crate::batch::BatchError;
use crate::batch::split::mix;

/// Where a text stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) column: u64,
    pub(super) element: u64,
    /// What stood before it in the record.
    pub(super) previous: u64,
    /// The text that stood here last.
    pub(super) last: &'a [u8],
    /// The text that stood here last after the same value.
    pub(super) follower: &'a [u8],
}

const END: u8 = 0;
const ESCAPE: u8 = 1;

/// The longest match is believed up to this many bytes of it.
const MAX_TRUSTED: u32 = 24;

/// Codes `text`, or decodes a text of at most `limit` bytes, which it appends to `out`. Returns where it
/// begins among the texts.
///
/// # Errors
/// [`BatchError::Malformed`] when it would be longer.
pub(super) fn code<C: Coder>(
    coder: &mut C,
    predictor: &mut Predictor,
    texts: &mut Texts,
    text: &[u8],
    place: &Place<'_>,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<u32, BatchError> {
    let start = texts.head();
    let mut cursor = Cursor::new(place);
    let mut input = text.iter();
    let mut escaped = None;
    let mut len = 0;
    let mut is_escaping = false;
    loop {
        let symbol = match escaped.take() {
            Some(symbol) => symbol,
            None => match input.next() {
                None => END,
                Some(byte) if *byte < 2 => {
                    escaped = Some(byte + 2);
                    ESCAPE
                }
                Some(byte) => *byte,
            },
        };
        let symbol = cursor.code(coder, predictor, texts, symbol);
        match (is_escaping, symbol) {
            (false, END) => return Ok(start),
            (false, ESCAPE) => is_escaping = true,
            _ => {
                len += 1;
                if len > limit {
                    return Err(BatchError::Malformed("text is longer than announced"));
                }
                if !C::ENCODES {
                    out.push(if is_escaping {
                        symbol.wrapping_sub(2)
                    } else {
                        symbol
                    });
                }
                is_escaping = false;
            }
        }
    }
}

/// What is known between two bytes.
struct Cursor<'a> {
    place: &'a Place<'a>,
    /// The last eight bytes, the last one lowest.
    before: u64,
    /// Hash of all bytes.
    prefix: u64,
    len: usize,
    /// Where the match goes on and how long it is.
    matched: Option<(u32, u32)>,
    /// Whether the byte at the same place of the texts to compare with was right.
    was_last: bool,
    was_follower: bool,
}

impl<'a> Cursor<'a> {
    fn new(place: &'a Place<'a>) -> Self {
        Self {
            place,
            before: 0,
            prefix: 0,
            len: 0,
            matched: None,
            was_last: true,
            was_follower: true,
        }
    }

    fn code<C: Coder>(
        &mut self,
        coder: &mut C,
        predictor: &mut Predictor,
        texts: &mut Texts,
        symbol: u8,
    ) -> u8 {
        let place = self.place;
        let at = |text: &[u8], at: usize| u64::from(text.get(at).copied().unwrap_or(0));
        let last = at(place.last, self.len);
        let follower = at(place.follower, self.len);
        let trust = self
            .matched
            .map_or(0, |(_, len)| 64 * (len.min(MAX_TRUSTED) as i16) + 128);
        let guess = self.matched.map(|(at, _)| texts.byte(at));
        let contexts = self.contexts(last, at(place.last, self.len + 1), follower);
        let matched = self.matched.map_or(0, |(_, len)| 1 + len.min(14) as usize);
        let set = matched * 4 + usize::from(self.was_last) * 2 + usize::from(self.was_follower);
        let single = match guess {
            Some(guess) => guess,
            None if self.was_last => last as u8,
            None => follower as u8,
        };
        let gate = set | (mix(place.column, 5) as usize & 3) << 6;
        let byte = if texts.gates.is_open(gate) {
            let is = predictor.is_byte(coder, symbol == single, &contexts, single, trust, set);
            texts.gates.learn(gate, is);
            if is {
                single
            } else {
                let guess = guess.map(|guess| (guess, -256));
                predictor.byte(coder, symbol, &contexts, guess, set)
            }
        } else {
            let guess = guess.map(|guess| (guess, trust));
            let byte = predictor.byte(coder, symbol, &contexts, guess, set);
            texts.gates.learn(gate, byte == single);
            byte
        };
        self.was_last = last == u64::from(byte);
        self.was_follower = follower == u64::from(byte);
        self.advance(texts, byte);
        byte
    }

    fn contexts(&self, last: u64, next: u64, follower: u64) -> Contexts {
        let Place {
            column,
            element,
            previous,
            ..
        } = *self.place;
        let b = self.before;
        let len = self.len.min(255) as u64;
        let here = mix(column, previous);
        Contexts::new(
            column,
            [
                mix(column, 101),
                mix(column, (b & 0xff) << 8 | 102),
                mix(b & 0xffff, 103),
                mix(b & 0xff_ffff, 104),
                mix(b & 0xffff_ffff, 105),
                mix(b & 0xffff_ffff_ffff, 106),
                mix(mix(column, self.prefix), 107),
                mix(
                    mix(column, last | next << 8 | u64::from(self.was_last) << 16),
                    108 + (len << 8),
                ),
                mix(mix(here, follower | u64::from(self.was_follower) << 8), 109),
                mix(mix(here, len << 8), mix(self.prefix, 110)),
                mix(mix(column, element), mix(len, follower << 8 | b & 0xff)),
            ],
        )
    }

    fn advance(&mut self, texts: &mut Texts, byte: u8) {
        self.matched = match self.matched {
            Some((at, len)) if texts.byte(at) == byte => Some((at.wrapping_add(1), len + 1)),
            _ => None,
        };
        texts.push(byte);
        self.before = self.before << 8 | u64::from(byte);
        self.prefix = mix(self.prefix, u64::from(byte) + 1);
        self.len += 1;
        if self.len >= 5 {
            let found = texts.follow(mix(self.before & 0xff_ffff_ffff, 8));
            if self.matched.is_none() {
                self.matched = found.map(|at| (at, 1));
            }
        }
    }
}
