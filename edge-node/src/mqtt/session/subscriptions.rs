//! The subscriptions of one session: a sorted list, because most sessions have one or two. Plain code.

use crate::mqtt::packet::Options;

/// By filter as it came, `$share/...` included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscriptions {
    list: Vec<(Box<str>, Options)>,
    bytes: usize,
}

impl Subscriptions {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes of their filters.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order of their filters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Options)> {
        self.list
            .iter()
            .map(|(filter, options)| (&**filter, options))
    }

    /// Whether this filter is subscribed to.
    #[must_use]
    pub fn contains(&self, filter: &str) -> bool {
        self.find(filter).is_ok()
    }

    /// How this filter is subscribed to.
    #[must_use]
    pub fn get(&self, filter: &str) -> Option<&Options> {
        let at = self.find(filter).ok()?;
        Some(&self.list[at].1)
    }

    /// Adds or changes one; true when it is a new one.
    pub fn insert(&mut self, filter: &str, options: Options) -> bool {
        match self.find(filter) {
            Ok(at) => {
                self.list[at].1 = options;
                false
            }
            Err(at) => {
                if self.list.len() == self.list.capacity() {
                    // as much again, without the least that a list takes otherwise
                    self.list.reserve_exact(self.list.len().max(1));
                }
                self.bytes += filter.len();
                self.list.insert(at, (filter.into(), options));
                true
            }
        }
    }

    /// True when it was there.
    pub fn remove(&mut self, filter: &str) -> bool {
        let found = self.find(filter);
        if let Ok(at) = found {
            self.list.remove(at);
            self.bytes -= filter.len();
            if self.list.len() < self.list.capacity() / 4 {
                self.list.shrink_to_fit();
            }
        }
        found.is_ok()
    }

    fn find(&self, filter: &str) -> Result<usize, usize> {
        self.list
            .binary_search_by(|(other, _)| (**other).cmp(filter))
    }
}

impl FromIterator<(Box<str>, Options)> for Subscriptions {
    fn from_iter<I: IntoIterator<Item = (Box<str>, Options)>>(all: I) -> Self {
        let mut made = Self::default();
        for (filter, options) in all {
            made.insert(&filter, options);
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::mqtt::packet::{Qos, RetainHandling};

    fn options(identifier: u32) -> Options {
        Options {
            qos: Qos::AtLeastOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Always,
            identifier: Some(identifier),
        }
    }

    proptest! {
        #[test]
        fn it_is_a_map(changes in prop::collection::vec(("[ab]{1,3}", prop::option::of(0_u32..9)), 0..60)) {
            let (mut list, mut map) = (Subscriptions::default(), BTreeMap::new());
            for (filter, change) in changes {
                match change {
                    Some(number) => {
                        let is_new = map.insert(filter.clone(), options(number)).is_none();
                        prop_assert_eq!(list.insert(&filter, options(number)), is_new);
                    }
                    None => prop_assert_eq!(list.remove(&filter), map.remove(&filter).is_some()),
                }
                prop_assert!(list.iter().eq(map.iter().map(|(filter, options)| (filter.as_str(), options))));
                prop_assert_eq!((list.len(), list.is_empty()), (map.len(), map.is_empty()));
                prop_assert_eq!(list.contains("ab"), map.contains_key("ab"));
                prop_assert_eq!(list.bytes(), map.keys().map(String::len).sum::<usize>());
            }
        }
    }
}
