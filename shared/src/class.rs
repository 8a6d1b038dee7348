//! How urgent a topic is: the word for it, sets of such words, and the share of the link that each has.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a topic's records are to the site, the most urgent first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Alarms: never behind anything else.
    Critical,
    /// What is not said to be anything else.
    #[default]
    Normal,
    /// What has time.
    Bulk,
}

/// Not one of the words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a class; accepted: critical, normal, bulk")]
pub struct UnknownClass(String);

impl Class {
    /// How many there are.
    pub const COUNT: usize = 3;

    /// All of them, the most urgent first.
    #[must_use]
    pub const fn all() -> [Self; Self::COUNT] {
        [Self::Critical, Self::Normal, Self::Bulk]
    }

    /// Its place in [`Class::all`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Critical => 0,
            Self::Normal => 1,
            Self::Bulk => 2,
        }
    }

    /// As it is written in configuration, status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Normal => "normal",
            Self::Bulk => "bulk",
        }
    }

    /// The class of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::all().into_iter().find(|class| class.as_str() == text)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or_else(|| UnknownClass(text.chars().take(32).collect()))
    }
}

/// Some of the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClassSet(u8);

impl ClassSet {
    /// None of them.
    pub const EMPTY: Self = Self(0);
    /// All of them.
    pub const ALL: Self = Self((1 << Class::COUNT) - 1);
    /// What goes when hardly anything may.
    pub const CRITICAL_ONLY: Self = Self::EMPTY.with(Class::Critical);

    const fn bit(class: Class) -> u8 {
        1 << class.index()
    }

    /// With this class in it.
    #[must_use]
    pub const fn with(self, class: Class) -> Self {
        Self(self.0 | Self::bit(class))
    }

    /// Without this class in it.
    #[must_use]
    pub const fn without(self, class: Class) -> Self {
        Self(self.0 & !Self::bit(class))
    }

    /// Whether the class is in it.
    #[must_use]
    pub const fn contains(self, class: Class) -> bool {
        self.0 & Self::bit(class) != 0
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is none in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in it, the most urgent first.
    pub fn iter(self) -> impl Iterator<Item = Class> {
        Class::all()
            .into_iter()
            .filter(move |class| self.contains(*class))
    }
}

impl Default for ClassSet {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<Class> for ClassSet {
    fn from_iter<I: IntoIterator<Item = Class>>(classes: I) -> Self {
        classes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for ClassSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (place, class) in self.iter().enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{class}")?;
        }
        Ok(())
    }
}

/// A value for each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerClass<T>([T; Class::COUNT]);

impl<T> PerClass<T> {
    /// One value for each, the most urgent first.
    #[must_use]
    pub const fn new(values: [T; Class::COUNT]) -> Self {
        Self(values)
    }

    /// One value for each, made from the class.
    #[must_use]
    pub fn from_fn(value: impl FnMut(Class) -> T) -> Self {
        Self(Class::all().map(value))
    }

    /// Each class with its value, the most urgent first.
    pub fn iter(&self) -> impl Iterator<Item = (Class, &T)> {
        Class::all().into_iter().zip(&self.0)
    }

    /// The values of this class and of the more urgent ones.
    pub fn up_to(&self, class: Class) -> impl Iterator<Item = &T> {
        self.0.iter().take(class.index() + 1)
    }
}

impl<T> std::ops::Index<Class> for PerClass<T> {
    type Output = T;

    fn index(&self, class: Class) -> &T {
        &self.0[class.index()]
    }
}

impl<T> std::ops::IndexMut<Class> for PerClass<T> {
    fn index_mut(&mut self, class: Class) -> &mut T {
        &mut self.0[class.index()]
    }
}

/// Thousandths.
const WHOLE: u32 = 1_000;
/// Weights of critical, normal and bulk: an alarm has the link nearly to itself, and what has time takes
/// what the others leave.
const DEFAULT_WEIGHTS: [u32; Class::COUNT] = [16, 4, 1];
/// In percent: a backlog makes way even on a link that is always full.
const DEFAULT_MIN_SHARE: u32 = 5;

/// How the classes share a full link. Each has its weight's part of it, and never less than the minimum.
/// What one leaves over the others take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassShares {
    /// In thousandths of the link; each at least 1.
    parts: PerClass<u32>,
}

impl ClassShares {
    /// Largest minimum share in percent: three of them leave room for the weights.
    pub const LARGEST_MIN_SHARE: u32 = 30;

    /// Shares by weight, with a minimum in percent. A weight of 0 counts as 1, and a minimum above the
    /// largest as that.
    #[must_use]
    pub fn new(weights: PerClass<u32>, min_share_percent: u32) -> Self {
        let least = min_share_percent.min(Self::LARGEST_MIN_SHARE) * (WHOLE / 100);
        let weight = |class| u64::from(weights[class].max(1));
        let total: u64 = Class::all().into_iter().map(weight).sum();
        // what the minima leave is shared by weight among those above theirs
        let by_weight = |class| part(weight(class), total, WHOLE);
        let is_raised = |class: Class| by_weight(class) < least;
        let raised = Class::all().into_iter().filter(|class| is_raised(*class));
        let left = WHOLE.saturating_sub(least.saturating_mul(count(raised)));
        let others = Class::all().into_iter().filter(|class| !is_raised(*class));
        let total_of_others: u64 = others.map(weight).sum();
        Self {
            parts: PerClass::from_fn(|class| {
                if is_raised(class) {
                    least
                } else {
                    part(weight(class), total_of_others, left).max(least)
                }
                .max(1)
            }),
        }
    }

    /// What [`ClassShares::per_mille`] told of others.
    #[must_use]
    pub fn from_per_mille(parts: PerClass<u32>) -> Self {
        Self {
            parts: PerClass::from_fn(|class| parts[class].clamp(1, WHOLE)),
        }
    }

    /// Of a thousand bytes on a link that all classes fill, how many are this class's.
    #[must_use]
    pub fn per_mille(&self, class: Class) -> u32 {
        self.parts[class]
    }
}

fn part(weight: u64, total: u64, of: u32) -> u32 {
    u32::try_from(weight * u64::from(of) / total.max(1)).unwrap_or(of)
}

fn count(classes: impl Iterator<Item = Class>) -> u32 {
    classes.fold(0, |count, _| count + 1)
}

impl Default for ClassShares {
    fn default() -> Self {
        Self::new(PerClass::new(DEFAULT_WEIGHTS), DEFAULT_MIN_SHARE)
    }
}

/// What holds for the classes of one site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClassRules {
    /// How they share a full link.
    pub shares: ClassShares,
    /// How long a record may wait for others to share its batch.
    pub max_delay: PerClass<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_reads_what_it_prints() {
        for class in Class::all() {
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(Class::all()[class.index()], class);
        }
        assert!("Critical".parse::<Class>().is_err());
        assert!(Class::Critical < Class::Normal && Class::Normal < Class::Bulk);
        assert_eq!(Class::default(), Class::Normal);
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set: ClassSet = [Class::Bulk, Class::Critical].into_iter().collect();
        assert_eq!(set.to_string(), "critical, bulk");
        assert!(!set.contains(Class::Normal));
        assert_eq!(set.without(Class::Bulk), ClassSet::CRITICAL_ONLY);
        assert_eq!(
            set.intersection(ClassSet::CRITICAL_ONLY),
            ClassSet::CRITICAL_ONLY
        );
        assert_eq!(
            set.union(ClassSet::EMPTY.with(Class::Normal)),
            ClassSet::ALL
        );
        assert_eq!(ClassSet::EMPTY.to_string(), "none");
        assert!(ClassSet::EMPTY.is_empty() && !ClassSet::default().is_empty());
    }

    #[test]
    fn shares_follow_the_weights_and_keep_the_minimum() {
        for (weights, least, parts) in [
            ([16, 4, 1], 0, [761, 190, 47]),
            ([16, 4, 1], 5, [760, 190, 50]),
            ([1, 1, 1], 5, [333, 333, 333]),
            ([1_000, 1, 1], 10, [800, 100, 100]),
            ([0, 0, 0], 90, [333, 333, 333]),
            ([u32::MAX, 0, 0], 0, [999, 1, 1]),
            ([u32::MAX, 0, 0], 30, [400, 300, 300]),
        ] {
            let shares = ClassShares::new(PerClass::new(weights), least);
            let found = Class::all().map(|class| shares.per_mille(class));
            assert_eq!(found, parts, "{weights:?} and {least} %");
        }
    }
}
