//! Topic filters: whether one matches a topic, and a tree that finds all that do. Plain code.
//!
//! `+` stands for one level, `#` for all that are left, also none; neither stands for a first level that
//! begins with `$` (MQTT 3.1.1 and 5, section 4.7). The tree is as deep as topics have levels, which is
//! bounded where packets come in.

use std::collections::HashMap;

/// Whether a topic or a filter is one of the node's own, `$SYS` and all below it.
#[must_use]
pub fn is_system(text: &str) -> bool {
    text.strip_prefix("$SYS")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether `filter` matches `topic`; both are valid.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for part in filter.split('/') {
        match (part, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (part, Some(level)) if part == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether all that `narrow` matches is matched by `wide` too.
#[must_use]
pub fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let mut rest = narrow.split('/');
    for part in wide.split('/') {
        match (part, rest.next()) {
            ("#", _) => return true,
            ("+", Some(level)) if level != "#" => {}
            (part, Some(level)) if part == level => {}
            _ => return false,
        }
    }
    rest.next().is_none()
}

/// Whether some topic is matched by both.
#[must_use]
pub fn overlap(a: &str, b: &str) -> bool {
    let is_dollar = |filter: &str| filter.starts_with('$');
    let is_wild = |filter: &str| filter.starts_with(['+', '#']);
    if (is_dollar(a) && is_wild(b)) || (is_dollar(b) && is_wild(a)) {
        return false;
    }
    let (mut left, mut right) = (a.split('/'), b.split('/'));
    loop {
        match (left.next(), right.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

/// What each wildcard of `filter` stands for in `topic`, which it matches.
#[must_use]
pub fn captures<'t>(filter: &str, topic: &'t str) -> Vec<&'t str> {
    let mut found = Vec::new();
    let mut rest = Some(topic);
    for part in filter.split('/') {
        if part == "#" {
            found.push(rest.unwrap_or_default());
            break;
        }
        let Some(text) = rest else { break };
        let (level, after) = match text.split_once('/') {
            Some((level, after)) => (level, Some(after)),
            None => (text, None),
        };
        if part == "+" {
            found.push(level);
        }
        rest = after;
    }
    found
}

/// Values by filter.
#[derive(Debug)]
pub struct Filters<V> {
    root: Node<V>,
    len: usize,
}

/// There are as many as subscriptions, and most are the end of one: what others need is kept apart.
#[derive(Debug)]
struct Node<V> {
    /// Of the filter that ends here.
    here: Vec<V>,
    deeper: Option<Box<Deeper<V>>>,
}

#[derive(Debug)]
struct Deeper<V> {
    levels: HashMap<Box<str>, Node<V>>,
    any_level: Option<Node<V>>,
    /// Of the filter that ends in `#` here.
    rest: Vec<V>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self {
            here: Vec::new(),
            deeper: None,
        }
    }
}

impl<V> Default for Deeper<V> {
    fn default() -> Self {
        Self {
            levels: HashMap::new(),
            any_level: None,
            rest: Vec::new(),
        }
    }
}

impl<V> Default for Filters<V> {
    fn default() -> Self {
        Self {
            root: Node::default(),
            len: 0,
        }
    }
}

impl<V> Filters<V> {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value, or puts it in the place of the one that `is_same` as it.
    pub fn insert(&mut self, filter: &str, value: V, is_same: impl Fn(&V) -> bool) {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            let deeper = node.deeper.get_or_insert_default();
            node = match level {
                "#" => {
                    self.len += usize::from(put(&mut deeper.rest, value, is_same));
                    return;
                }
                "+" => deeper.any_level.get_or_insert_default(),
                level => deeper.levels.entry(level.into()).or_default(),
            };
        }
        self.len += usize::from(put(&mut node.here, value, is_same));
    }

    /// Takes out the value of a filter that `is_same`.
    pub fn remove(&mut self, filter: &str, is_same: impl Fn(&V) -> bool) -> Option<V> {
        let levels: Vec<&str> = filter.split('/').collect();
        let removed = self.root.remove(&levels, &is_same);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Calls `found` with every value whose filter matches.
    pub fn find<'f>(&'f self, topic: &str, mut found: impl FnMut(&'f V)) {
        let levels: Vec<&str> = topic.split('/').collect();
        let is_dollar = topic.starts_with('$');
        self.root.find(&levels, is_dollar, &mut found);
    }

    /// Calls `found` with every value.
    pub fn for_each<'f>(&'f self, mut found: impl FnMut(&'f V)) {
        self.root.for_each(&mut found);
    }

    /// The values of exactly this filter.
    pub fn at(&self, filter: &str) -> &[V] {
        let mut node = &self.root;
        for level in filter.split('/') {
            let Some(deeper) = &node.deeper else {
                return &[];
            };
            let next = match level {
                "#" => return &deeper.rest,
                "+" => deeper.any_level.as_ref(),
                level => deeper.levels.get(level),
            };
            match next {
                Some(next) => node = next,
                None => return &[],
            }
        }
        &node.here
    }
}

/// True when it is one more.
fn put<V>(values: &mut Vec<V>, value: V, is_same: impl Fn(&V) -> bool) -> bool {
    match values.iter_mut().find(|old| is_same(old)) {
        Some(old) => {
            *old = value;
            false
        }
        None => {
            if values.is_empty() {
                // mostly it stays the only one
                values.reserve_exact(1);
            }
            values.push(value);
            true
        }
    }
}

fn take<V>(values: &mut Vec<V>, is_same: impl Fn(&V) -> bool) -> Option<V> {
    let at = values.iter().position(is_same)?;
    let value = values.swap_remove(at);
    values.shrink_to_fit();
    Some(value)
}

impl<V> Node<V> {
    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.deeper.is_none()
    }

    fn for_each<'f>(&'f self, found: &mut impl FnMut(&'f V)) {
        self.here.iter().for_each(&mut *found);
        if let Some(deeper) = &self.deeper {
            deeper.rest.iter().for_each(&mut *found);
            let nodes = deeper.levels.values().chain(&deeper.any_level);
            nodes.for_each(|node| node.for_each(found));
        }
    }

    fn remove(&mut self, levels: &[&str], is_same: &impl Fn(&V) -> bool) -> Option<V> {
        let Some((level, rest)) = levels.split_first() else {
            return take(&mut self.here, is_same);
        };
        let deeper = self.deeper.as_mut()?;
        let removed = deeper.remove(level, rest, is_same);
        if deeper.is_empty() {
            self.deeper = None;
        }
        removed
    }

    fn find<'f>(&'f self, levels: &[&str], no_wildcards: bool, found: &mut impl FnMut(&'f V)) {
        let deeper = self.deeper.as_deref();
        if let Some(deeper) = deeper.filter(|_| !no_wildcards) {
            deeper.rest.iter().for_each(&mut *found);
        }
        let Some((level, rest)) = levels.split_first() else {
            self.here.iter().for_each(found);
            return;
        };
        let Some(deeper) = deeper else { return };
        if let Some(node) = deeper.levels.get(*level) {
            node.find(rest, false, found);
        }
        if let Some(node) = deeper.any_level.as_ref().filter(|_| !no_wildcards) {
            node.find(rest, false, found);
        }
    }
}

impl<V> Deeper<V> {
    fn is_empty(&self) -> bool {
        self.levels.is_empty() && self.any_level.is_none() && self.rest.is_empty()
    }

    fn remove(&mut self, level: &str, rest: &[&str], is_same: &impl Fn(&V) -> bool) -> Option<V> {
        match level {
            "#" => take(&mut self.rest, is_same),
            "+" => {
                let node = self.any_level.as_mut()?;
                let removed = node.remove(rest, is_same);
                if node.is_empty() {
                    self.any_level = None;
                }
                removed
            }
            level => {
                let node = self.levels.get_mut(level)?;
                let removed = node.remove(rest, is_same);
                if node.is_empty() {
                    self.levels.remove(level);
                }
                removed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_match_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/#", "sport/tennis", true),
            ("sport/tennis/#", "sport/tennis/a/b", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
            ("$SYS/+", "$SYS/a", true),
            ("a/b", "a/b", true),
            ("a/b", "a/B", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn wildcards_are_captured() {
        assert_eq!(captures("plant/+/temp/#", "plant/a/temp/b/c"), ["a", "b/c"]);
        assert_eq!(captures("plant/+/#", "plant/a"), ["a", ""]);
        assert_eq!(captures("a/b", "a/b"), [""; 0]);
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            Just("a".to_owned()),
            Just("b".to_owned()),
            Just("$x".to_owned())
        ]
    }

    fn topic() -> impl Strategy<Value = String> {
        let levels = prop::collection::vec(level(), 1..4);
        levels
            .prop_map(|levels| levels.join("/"))
            .prop_filter("not empty", |t| !t.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let part = prop_oneof![3 => level(), 1 => Just("+".to_owned())];
        (prop::collection::vec(part, 1..4), any::<bool>())
            .prop_map(|(mut parts, has_rest)| {
                if has_rest {
                    parts.push("#".to_owned());
                }
                parts.join("/")
            })
            .prop_filter("not empty", |t| !t.is_empty())
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_matches(
            changes in prop::collection::vec((filter(), 0_u8..3, any::<bool>()), 0..40),
            topics in prop::collection::vec(topic(), 1..10),
        ) {
            let mut tree = Filters::default();
            let mut naive: Vec<(String, u8)> = Vec::new();
            for (filter, who, is_added) in changes {
                let at = naive.iter().position(|pair| *pair == (filter.clone(), who));
                if is_added {
                    tree.insert(&filter, (filter.clone(), who), |old| old.1 == who);
                    if at.is_none() {
                        naive.push((filter, who));
                    }
                } else {
                    let removed = tree.remove(&filter, |old| old.1 == who);
                    prop_assert_eq!(removed.is_some(), at.is_some());
                    at.map(|at| naive.swap_remove(at));
                }
                prop_assert_eq!(tree.len(), naive.len());
            }
            for topic in topics {
                let mut found = Vec::new();
                tree.find(&topic, |value: &(String, u8)| found.push(value.clone()));
                let mut expected: Vec<_> = naive.iter().filter(|(f, _)| matches(f, &topic)).cloned().collect();
                found.sort();
                expected.sort();
                prop_assert_eq!(found, expected);
            }
            for (filter, who) in naive {
                tree.remove(&filter, |old| old.1 == who);
            }
            prop_assert!(tree.root.is_empty(), "nothing is left behind");
        }

        #[test]
        fn covering_and_overlapping_agree_with_matching(a in filter(), b in filter(), topic in topic()) {
            let both = matches(&a, &topic) && matches(&b, &topic);
            prop_assert!(!both || overlap(&a, &b));
            if covers(&a, &b) && matches(&b, &topic) {
                prop_assert!(matches(&a, &topic), "{} covers {} but not {}", a, b, topic);
            }
        }
    }
}
