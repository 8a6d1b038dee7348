//! Books that no policy uses at the moment: of an allowance that was taken out of the file, of a path that is
//! not configured, of what the hub withdrew. They wait here, and in the file of counts, so that an allowance
//! that comes back within its period goes on where it stood.
//!
//! Bounded: of too many, the one whose period ends first goes.

use std::collections::BTreeMap;

use crate::uplink::policy::{Book, Entry};

/// Twice the paths of a site; with those in use they fit into the file of counts.
const MAX_IDLE: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Idle(BTreeMap<String, Book>);

impl Idle {
    pub(super) fn put(&mut self, name: String, book: Book) {
        self.0.insert(name, book);
        if self.0.len() > MAX_IDLE {
            let books = self.0.iter();
            let oldest = books.min_by_key(|(_, book)| book.end_ms());
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.0.remove(&name);
            }
        }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Book> {
        self.0.remove(name)
    }

    /// As they are written down.
    pub(super) fn entries(&self) -> BTreeMap<String, Entry> {
        let books = self.0.iter();
        books
            .map(|(name, book)| (name.clone(), book.entry()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::uplink::policy::{Calendar, Clocks, Period, Zone};

    fn book(day: i64) -> Book {
        let calendar = Calendar {
            period: Period::Day,
            zone: Zone::utc(),
        };
        let now = Clocks {
            wall_ms: day * 86_400_000,
            running: Duration::ZERO,
            boot_id: 1,
        };
        Book::new(&calendar, now)
    }

    #[test]
    fn of_too_many_the_oldest_goes() {
        let mut idle = Idle::default();
        for day in (0..40).rev() {
            idle.put(format!("path {day}"), book(day));
        }
        assert_eq!(idle.entries().len(), MAX_IDLE);
        assert!(idle.take("path 7").is_none() && idle.take("path 8").is_some());
    }
}
