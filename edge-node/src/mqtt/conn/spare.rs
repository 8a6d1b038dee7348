//! A buffer of each thread, lent to the connection that it works for.
//!
//! Most of what a connection is sent leaves at once, so a buffer for each would be empty nearly always. A
//! connection that could not send everything keeps what it was lent until it could.

use std::cell::Cell;

use bytes::BytesMut;

use super::HIGH_WATER;

/// Larger ones are not kept.
const MOST: usize = 2 * HIGH_WATER;

thread_local! {
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// This thread's, or one without memory.
pub(super) fn take() -> BytesMut {
    SPARE.take()
}

/// Gives one back, to this thread.
pub(super) fn give(mut buffer: BytesMut) {
    buffer.clear();
    let kept = SPARE.take();
    let is_better = buffer.capacity() <= MOST && buffer.capacity() >= kept.capacity();
    SPARE.set(if is_better { buffer } else { kept });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_is_not_too_large_is_kept() {
        for size in [100, 4_000, 1_000, MOST + 1] {
            give(BytesMut::with_capacity(size));
        }
        let kept = take();
        assert!(kept.is_empty());
        assert_eq!(kept.capacity(), 4_000);
        assert_eq!(take().capacity(), 0);
    }
}
