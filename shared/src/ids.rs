//! Newtypes for what must not be mixed up.
//!
//! A [`SiteId`] and a [`TopicName`] are valid by construction: whoever holds one need not check it
//! again. Offsets and partition numbers are Kafka's, unchanged.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest topic name that Kafka accepts (`Topic.MAX_NAME_LENGTH`).
pub const MAX_TOPIC_NAME_LEN: usize = 249;

/// Longest site name: a DNS label, so that it fits a certificate's subject alternative name.
pub const MAX_SITE_NAME_LEN: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or longer than the limit.
    #[error("`{name}` has {len} characters; accepted: 1 to {max}")]
    Length {
        name: String,
        len: usize,
        max: usize,
    },
    /// A character outside the accepted set.
    #[error("`{name}` contains `{found}`; accepted: {accepted}")]
    Character {
        name: String,
        found: char,
        accepted: &'static str,
    },
    /// `.` and `..` are directories in Kafka's log folder.
    #[error("`{name}` is reserved; accepted: any name but `.` and `..`")]
    Reserved { name: String },
}

fn check_name(
    name: &str,
    max: usize,
    accepted: &'static str,
    is_accepted: fn(char) -> bool,
) -> Result<(), NameError> {
    if name.is_empty() || name.len() > max {
        let shown = name.chars().take(80).collect();
        return Err(NameError::Length {
            name: shown,
            len: name.len(),
            max,
        });
    }
    if let Some(found) = name.chars().find(|c| !is_accepted(*c)) {
        return Err(NameError::Character {
            name: name.to_owned(),
            found,
            accepted,
        });
    }
    if name == "." || name == ".." {
        return Err(NameError::Reserved {
            name: name.to_owned(),
        });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $max:expr, $accepted:expr, $is_accepted:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks and wraps a name.
            ///
            /// # Errors
            /// [`NameError`] names the value and what is accepted.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name(name, $max, $accepted, $is_accepted)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// A site's name: what its client certificate says. One edge-node with one identity.
    SiteId,
    MAX_SITE_NAME_LEN,
    "letters, digits, `.`, `_` and `-`",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);

name_type!(
    /// A Kafka topic name.
    TopicName,
    MAX_TOPIC_NAME_LEN,
    "letters, digits, `.`, `_` and `-`",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
);

/// A random id minted when a site's store is created, or found to have gone back in time. Offsets of
/// two incarnations are never compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Incarnation {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// One of the two ways that a partition's records take to the hub. Each offset goes by one of them, and each
/// keeps its order. Without `live_first` all go by the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// The one that every partition has.
    #[default]
    First,
    /// The one beside it.
    Second,
}

impl Track {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// The one beside this one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    /// The track of that number.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::First),
            1 => Some(Self::Second),
            _ => None,
        }
    }
}

/// A topic, the number of one of its partitions, and the track: a log of a site, as the hub knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name at the site.
    pub topic: TopicName,
    /// The partition's number at the site, from 0.
    pub partition: u32,
    /// Which of the partition's records.
    pub track: Track,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)?;
        match self.track {
            Track::First => Ok(()),
            Track::Second => f.write_str(" (second track)"),
        }
    }
}

/// A record's place in its log: contiguous from 0.
pub type Offset = u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_kafkas_rule() {
        for good in ["a", "plant.1_temp-x", &"x".repeat(249)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ü", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refused_name_says_what_is_accepted() {
        let text = TopicName::new("a/b").unwrap_err().to_string();
        assert!(text.contains("`a/b`") && text.contains("`/`") && text.contains("accepted"));
    }

    #[test]
    fn an_incarnation_survives_its_text_form() {
        let id = Incarnation(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(id.to_string().parse::<Incarnation>().unwrap(), id);
    }
}
