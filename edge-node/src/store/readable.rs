//! Reading a damaged database: what can be read, in order, past blocks that cannot.

use rocksdb::{DB, DBRawIterator};

use super::rocks;

/// Shows every value under `prefix` whose u64 suffix is at least `from`, as far as blocks can be read:
/// behind a damaged block it goes on at the first key that can. Ends when `visit` says false.
pub(super) fn each_readable(
    db: &DB,
    family: &str,
    prefix: &[u8],
    from: u64,
    visit: &mut dyn FnMut(u64, &[u8]) -> bool,
) {
    let mut at = from;
    loop {
        let Some(mut iter) = under(db, family, prefix, at) else {
            return;
        };
        while let Some((key, found)) = iter.item() {
            let Some(suffix) = key.get(prefix.len()..).and_then(|tail| tail.first_chunk()) else {
                return;
            };
            let suffix = u64::from_be_bytes(*suffix);
            if !visit(suffix, found) {
                return;
            }
            at = suffix.saturating_add(1);
            iter.next();
        }
        if iter.status().is_ok() {
            return;
        }
        match next_readable(db, family, prefix, at) {
            Some(next) => at = next,
            None => return,
        }
    }
}

/// The first place behind a damaged one: strides that double, then halves back.
pub(super) fn next_readable(db: &DB, family: &str, prefix: &[u8], at: u64) -> Option<u64> {
    let is_readable = |suffix: u64| {
        under(db, family, prefix, suffix).is_some_and(|iter| iter.valid() || iter.status().is_ok())
    };
    let mut stride = 1;
    let mut sound = loop {
        let next = at.checked_add(stride)?;
        if is_readable(next) {
            break next;
        }
        stride = stride.checked_mul(2)?;
    };
    let mut damaged = at + stride / 2;
    while damaged + 1 < sound {
        let middle = damaged + (sound - damaged) / 2;
        if is_readable(middle) {
            sound = middle;
        } else {
            damaged = middle;
        }
    }
    Some(sound)
}

/// The first value under `prefix` whose suffix is at least `from`; `None` without the column family.
pub(super) fn under<'a>(
    db: &'a DB,
    family: &str,
    prefix: &[u8],
    from: u64,
) -> Option<DBRawIterator<'a>> {
    db.cf_handle(family)?;
    let mut first = prefix.to_vec();
    first.extend_from_slice(&from.to_be_bytes());
    let mut last = prefix.to_vec();
    last.extend_from_slice(&[0xff; 9]);
    let mut iter = rocks::bounded(db, family, first.clone(), last);
    iter.seek(first);
    Some(iter)
}
