//! Which of the two ways to the hub carries which part of a partition's log. Pure.
//!
//! ```text
//!   acked            split                     end
//!     │ main track:     │ other track:             │
//!     │ the backlog    │ what came since         │
//! ────┴────────────────┴────────────────────────►
//! ```
//! Without a split the main track has everything from the cursor on, and the other one rests where it ended.
//! A split is on disk before the first record of the other track is read, so every offset belongs to one track
//! whoever is killed when. Once the hub has the main track up to the split and the other one from there on, the
//! other one is the main track, and the next split may use the one that is free.
//!
//! At the hub the tracks are two logs of the same offsets. What the other one has is a gap in each, told as
//! [`shared::wire::GAP_OTHER_TRACK`].

use shared::ids::{Offset, Track};
use shared::wire;

use super::LogRange;

/// How a partition's log is spread over its tracks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tracks {
    /// The track of the oldest record that is not acknowledged.
    pub main: Track,
    /// Next offset that the hub has not acknowledged of the other track.
    pub other: Offset,
    /// First offset of what the other track has now: the end of the main track's part.
    pub split: Option<Offset>,
}

/// What a track shows at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackView {
    /// Records and gaps of its own, up to the split or the log's end.
    Own,
    /// What the other track has, up to this offset.
    Other(Offset),
    /// Nothing: the rest is the other track's.
    Done,
}

impl Tracks {
    /// The other track is, or was, in use.
    #[must_use]
    pub fn is_used(&self) -> bool {
        *self != Self::default()
    }

    /// What a track shows at `from`.
    #[must_use]
    pub fn view(&self, track: Track, from: Offset) -> TrackView {
        match (self.split, track == self.main) {
            (None, true) => TrackView::Own,
            (None, false) => TrackView::Done,
            (Some(split), true) if from < split => TrackView::Own,
            (Some(_), true) => TrackView::Done,
            (Some(split), false) if from < split => TrackView::Other(split),
            (Some(_), false) => TrackView::Own,
        }
    }
}

impl LogRange {
    /// What the link is told of a track: its range, and the next offset of it that is not acknowledged.
    #[must_use]
    pub fn of_track(&self, track: Track) -> (wire::LogRange, Offset) {
        let Tracks { main, other, split } = self.tracks;
        let (start, end, acked) = match split {
            // what the hub acknowledged may be trimmed at any time: count on nothing below
            _ if track == main => (self.start, split.unwrap_or(self.end), self.acked),
            None => (other, other, other),
            Some(split) => (other.min(split), self.end, other),
        };
        let range = wire::LogRange {
            origin: self.origin,
            start: start.max(self.origin),
            end: end.max(self.origin),
        };
        (range, acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offset_is_shown_by_one_track() {
        let whole = Tracks::default();
        let split = Tracks {
            main: Track::Second,
            other: 3,
            split: Some(10),
        };
        for from in 0..20 {
            for tracks in [whole, split] {
                let views = Track::BOTH.map(|track| tracks.view(track, from));
                let own = |view: &&TrackView| **view == TrackView::Own;
                assert_eq!(views.iter().filter(own).count(), 1, "{from} of {tracks:?}");
            }
        }
        assert_eq!(split.view(Track::First, 3), TrackView::Other(10));
        assert_eq!(split.view(Track::Second, 9), TrackView::Own);
        assert_eq!(split.view(Track::Second, 10), TrackView::Done);
    }

    #[test]
    fn ranges_are_in_order_whatever_the_incarnation() {
        let mut log = LogRange {
            origin: 0,
            start: 5,
            first: 5,
            acked: 8,
            end: 20,
            bytes: 0,
            tracks: Tracks::default(),
        };
        let told = |log: &LogRange, track| {
            let (range, acked) = log.of_track(track);
            assert!(range.is_valid(), "{range:?}");
            (range.start, range.end, acked)
        };
        let [first, second] = Track::BOTH;
        assert_eq!(told(&log, first), (5, 20, 8));
        assert_eq!(told(&log, second), (0, 0, 0));
        log.tracks.split = Some(15);
        assert_eq!(told(&log, first), (5, 15, 8));
        assert_eq!(told(&log, second), (0, 20, 0));
        log.tracks.other = 17;
        assert_eq!(told(&log, second), (15, 20, 17));
        log.tracks = Tracks {
            main: second,
            other: 2,
            split: None,
        };
        (log.origin, log.start) = (6, 3);
        assert_eq!(told(&log, first), (6, 6, 2));
        assert_eq!(told(&log, second), (6, 20, 8));
    }
}
