//! From where in the log subscriptions hold: a session that reads older records, from its own place on, is not to
//! get what was there before it subscribed. Plain code.

use std::collections::BTreeSet;

use super::{Place, Positions};

/// Moments that are told apart; beyond, a subscription holds from the last of them, which is too early and not too
/// late.
const MAX_MOMENTS: usize = 16;

/// Subscriptions that began at one moment, and where the tail was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Where. Logs that began later are all for them.
    pub from: Positions,
    /// Their filters.
    pub filters: BTreeSet<Box<str>>,
}

/// Those that began further on in the log than the session has read. Others hold from the session's place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Since {
    moments: Vec<Moment>,
}

impl Since {
    /// As they were written.
    #[must_use]
    pub fn restored(moments: Vec<Moment>) -> Self {
        Self { moments }
    }

    /// A subscription begins, with the tail at `tail`.
    pub fn begin(&mut self, filter: &str, tail: &Positions) {
        self.end(filter);
        let is_full = self.moments.len() >= MAX_MOMENTS;
        match self.moments.last_mut() {
            Some(last) if is_full || last.from == *tail => {
                last.filters.insert(filter.into());
            }
            Some(_) | None => self.moments.push(Moment {
                from: tail.clone(),
                filters: BTreeSet::from([filter.into()]),
            }),
        }
    }

    /// A subscription has ended.
    pub fn end(&mut self, filter: &str) {
        self.moments
            .retain_mut(|moment| !moment.filters.remove(filter) || !moment.filters.is_empty());
    }

    /// Whether a subscription holds for a record.
    #[must_use]
    pub fn holds(&self, filter: &str, place: Place) -> bool {
        let moment = self
            .moments
            .iter()
            .find(|moment| moment.filters.contains(filter));
        moment.is_none_or(|moment| {
            let from = moment.from.get(&place.partition);
            from.is_none_or(|from| place.offset >= *from)
        })
    }

    /// Those that matter to a session that goes on from `places`.
    pub fn after<'s>(&'s self, places: &'s Positions) -> impl Iterator<Item = &'s Moment> {
        self.moments.iter().filter(move |moment| {
            let mut from = moment.from.iter();
            from.any(|(id, from)| places.get(id).copied().unwrap_or_default() < *from)
        })
    }

    /// A session goes on from `places`: forgets what does not matter any more.
    pub fn reached(&mut self, places: &Positions) {
        if !self.moments.is_empty() {
            self.moments = self.after(places).cloned().collect();
        }
    }

    /// True when all subscriptions hold from the session's place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moments.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use shared::ids::Offset;

    use super::*;
    use crate::store::PartitionId;

    fn at(offset: Offset) -> Positions {
        Positions::from([(PartitionId(1), offset)])
    }

    fn place(partition: u32, offset: Offset) -> Place {
        Place {
            partition: PartitionId(partition),
            offset,
        }
    }

    #[test]
    fn a_subscription_holds_from_where_the_tail_was() {
        let mut since = Since::default();
        since.begin("b", &at(9));
        assert!(!since.holds("b", place(1, 8)));
        assert!(since.holds("b", place(1, 9)));
        assert!(since.holds("b", place(2, 0)), "a log that began later");
        assert!(since.holds("a", place(1, 8)), "it began before");
        since.reached(&at(8));
        assert!(!since.holds("b", place(1, 8)));
        since.reached(&at(9));
        assert!(since.is_empty());
    }

    #[test]
    fn one_that_begins_again_holds_from_then_on() {
        let mut since = Since::default();
        since.begin("b", &at(5));
        since.end("b");
        assert!(since.is_empty());
        since.begin("b", &at(9));
        assert!(!since.holds("b", place(1, 8)));
    }

    #[test]
    fn moments_are_bounded_and_none_comes_too_late() {
        let mut since = Since::default();
        for number in 0..100 {
            since.begin(&number.to_string(), &at(number));
        }
        assert_eq!(since.moments.len(), MAX_MOMENTS);
        for number in 0..100 {
            assert!(since.holds(&number.to_string(), place(1, number)));
        }
    }
}
