//! Templates whose arrays hold objects of one shape, written once.
//!
//! ```text
//! template  [{"sku":"␁","qty":␁},{"sku":"␁","qty":␁},{"sku":"␁","qty":␁}]
//! folded    [{"sku":"␁","qty":␁}␂,{"sku":"␁","qty":␁}␄]     counts  2
//! ```
//! What stands between the marks stands there as often as its count says; folds may hold folds, each turn
//! with counts of its own. So receipts of any length share one folded template.

use super::snapshot::{Reader, Saved, Writer};
use crate::batch::BatchError;
use crate::batch::split::hash_bytes;

const BEGIN: u8 = 2;
const END: u8 = 4;
/// First byte of a JSON template.
const JSON: u8 = b'J';
const MAX_DEPTH: usize = 16;
const MAX_FOLDED: usize = 64;
/// Longest folded template that is kept.
pub(super) const MAX_LEN: usize = 8 << 10;

struct Level {
    is_array: bool,
    /// Where the element that is being copied begins, its comma included, and the counts before it.
    unit: usize,
    counts: usize,
    elements: usize,
    /// The element that is repeated so far, and its place among the counts.
    open: Option<(usize, usize, usize)>,
}

/// Folds a template. False when nothing in it repeats.
pub(super) fn fold(template: &[u8], out: &mut Vec<u8>, counts: &mut Vec<u32>) -> bool {
    out.clear();
    counts.clear();
    if template.first() != Some(&JSON) || template.iter().all(|byte| *byte != b'[') {
        return false;
    }
    let mut levels: Vec<Level> = Vec::new();
    let mut bytes = template.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                out.push(byte);
                levels.push(Level {
                    is_array: byte == b'[',
                    unit: out.len(),
                    counts: counts.len(),
                    elements: 0,
                    open: None,
                });
                continue;
            }
            b'}' | b']' => {
                if let Some(level) = levels.pop().filter(|level| level.is_array) {
                    close(level, out, counts);
                }
            }
            b',' => {
                if let Some(level) = levels.pop() {
                    levels.push(if level.is_array {
                        let level = close(level, out, counts);
                        Level {
                            unit: out.len(),
                            counts: counts.len(),
                            elements: level.elements + 1,
                            ..level
                        }
                    } else {
                        level
                    });
                }
            }
            b'"' => {
                out.push(byte);
                while let Some(inner) = bytes.next() {
                    out.push(inner);
                    match inner {
                        b'"' => break,
                        b'\\' => out.extend(bytes.next()),
                        _ => {}
                    }
                }
                continue;
            }
            _ => {}
        }
        out.push(byte);
    }
    !counts.is_empty()
}

/// An element of an array has ended.
fn close(mut level: Level, out: &mut Vec<u8>, counts: &mut Vec<u32>) -> Level {
    let unit = &out[level.unit..];
    if level.elements == 0 || !unit.contains(&b'{') {
        level.open = None;
        return level;
    }
    match level.open {
        Some((start, end, count)) if out[start..end] == *unit => {
            counts[count] += 1;
            out.truncate(level.unit);
        }
        _ => {
            out.insert(level.unit, BEGIN);
            level.open = Some((level.unit + 1, out.len(), level.counts));
            out.push(END);
            counts.insert(level.counts, 1);
        }
    }
    level
}

/// Writes a folded template in full, at most `limit` bytes; `count` tells how often what begins at this
/// place of it stands there.
///
/// # Errors
/// What `count` says, and [`BatchError::Malformed`].
pub(super) fn expand(
    folded: &[u8],
    limit: usize,
    count: &mut dyn FnMut(usize) -> Result<u32, BatchError>,
) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    expand_part(folded, 0, limit, count, &mut out, 0)?;
    Ok(out)
}

fn expand_part(
    part: &[u8],
    offset: usize,
    limit: usize,
    count: &mut dyn FnMut(usize) -> Result<u32, BatchError>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), BatchError> {
    const BAD: BatchError = BatchError::Malformed("folded template is bad or too large");
    if depth > MAX_DEPTH {
        return Err(BAD);
    }
    let mut at = 0;
    while at < part.len() {
        let literal = part[at..]
            .iter()
            .position(|byte| *byte == BEGIN)
            .unwrap_or(part.len() - at);
        if out.len() + literal > limit {
            return Err(BAD);
        }
        out.extend_from_slice(&part[at..at + literal]);
        at += literal;
        if at == part.len() {
            break;
        }
        let len = unit_len(&part[at + 1..])
            .filter(|len| *len > 0)
            .ok_or(BAD)?;
        let unit = &part[at + 1..at + 1 + len];
        let times = count(offset + at)?;
        for _ in 0..times {
            let before = out.len();
            expand_part(unit, offset + at + 1, limit, count, out, depth + 1)?;
            if out.len() == before {
                return Err(BAD);
            }
        }
        at += len + 2;
    }
    Ok(())
}

/// Bytes up to the mark that ends a unit.
fn unit_len(rest: &[u8]) -> Option<usize> {
    let mut depth = 0;
    rest.iter().position(|byte| {
        match *byte {
            BEGIN => depth += 1,
            END if depth == 0 => return true,
            END => depth -= 1,
            _ => {}
        }
        false
    })
}

#[derive(Debug, Clone)]
struct Folded {
    bytes: Vec<u8>,
    hash: u64,
    used: u32,
}

/// Folded templates that were seen.
#[derive(Debug, Clone)]
pub(super) struct Folds {
    known: Vec<Folded>,
    bytes: usize,
    max_bytes: usize,
    uses: u32,
}

impl Folds {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            known: Vec::new(),
            bytes: 0,
            max_bytes: max_bytes.max(2 * MAX_LEN),
            uses: 0,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes + self.known.len() * size_of::<Folded>()
    }

    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let hash = hash_bytes(bytes);
        let at = self
            .known
            .iter()
            .position(|folded| folded.hash == hash && folded.bytes == bytes)?;
        u32::try_from(at).ok()
    }

    pub(super) fn at(&self, id: u32) -> Option<&[u8]> {
        self.known
            .get(id as usize)
            .map(|folded| folded.bytes.as_slice())
    }

    /// All numbers have six bits.
    pub(super) const ID_BITS: u32 = MAX_FOLDED.ilog2();

    /// The one that came last.
    pub(super) fn latest(&self) -> u32 {
        u32::try_from(self.known.len()).map_or(0, |len| len.saturating_sub(1))
    }

    pub(super) fn touch(&mut self, id: u32) {
        self.uses = self.uses.wrapping_add(1);
        if let Some(folded) = self.known.get_mut(id as usize) {
            folded.used = self.uses;
        }
    }

    /// Gives a number to a folded template of at most [`MAX_LEN`] bytes; numbers move down when others
    /// are forgotten.
    pub(super) fn insert(&mut self, bytes: &[u8]) -> u32 {
        while self.known.len() >= MAX_FOLDED || self.bytes + bytes.len() > self.max_bytes {
            let uses = self.uses;
            let oldest =
                (0..self.known.len()).max_by_key(|at| uses.wrapping_sub(self.known[*at].used));
            let Some(oldest) = oldest else {
                break;
            };
            self.bytes -= self.known.remove(oldest).bytes.len();
        }
        self.uses = self.uses.wrapping_add(1);
        self.bytes += bytes.len();
        self.known.push(Folded {
            hash: hash_bytes(bytes),
            bytes: bytes.to_vec(),
            used: self.uses,
        });
        u32::try_from(self.known.len() - 1).unwrap_or(0)
    }
}

impl Saved for Folds {
    fn save(&self, to: &mut Writer) {
        to.u32(self.uses);
        to.len(self.known.len());
        for folded in &self.known {
            to.bytes(&folded.bytes);
            to.u32(folded.used);
        }
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        self.uses = from.u32()?;
        for _ in 0..from.len(MAX_FOLDED)? {
            let bytes = from.bytes(MAX_LEN)?.to_vec();
            self.bytes += bytes.len();
            self.known.push(Folded {
                hash: hash_bytes(&bytes),
                bytes,
                used: from.u32()?,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unfold(folded: &[u8], counts: &[u32]) -> Vec<u8> {
        let mut counts = counts.iter().copied();
        let mut next = |_| Ok(counts.next().unwrap());
        expand(folded, 1 << 20, &mut next).unwrap()
    }

    #[test]
    fn receipts_of_any_length_share_a_template() {
        let mut shapes = Vec::new();
        for lines in 2..5 {
            let template = format!(
                "J{{\"a\":[{}]}}",
                vec!["{\"q\":\u{1},\"x\":[{\"b\":1},{\"b\":1}]}"; lines].join(", ")
            );
            let (mut folded, mut counts) = (Vec::new(), Vec::new());
            assert!(fold(template.as_bytes(), &mut folded, &mut counts));
            assert_eq!(unfold(&folded, &counts), template.as_bytes());
            shapes.push(folded);
        }
        assert!(shapes.iter().all(|shape| *shape == shapes[0]));
    }

    proptest! {
        #[test]
        fn what_is_folded_unfolds(body in "J([\\[\\]{},\u{1}a]|\"[a\\\\,\\[\"]{0,3}\"|, ?\\{a\\}){0,60}") {
            let (mut folded, mut counts) = (Vec::new(), Vec::new());
            fold(body.as_bytes(), &mut folded, &mut counts);
            if body.starts_with('J') && body.contains('[') {
                prop_assert_eq!(unfold(&folded, &counts), body.as_bytes());
            }
        }

        #[test]
        fn hostile_folds_end(folded in prop::collection::vec(0_u8..6, 0..40), turns in 0_u32..1000) {
            let mut left = 10_000_u32;
            let mut next = |_| {
                left = left.checked_sub(1).ok_or(BatchError::Malformed("enough"))?;
                Ok(turns)
            };
            let _any = expand(&folded, 1000, &mut next);
        }
    }
}
