//! Patterns for topic and site names: `*` stands for any text, `?` for one character.

use std::fmt;
use std::str::FromStr;

/// A name pattern. Bounded in length, matched without backtracking blow-up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Box<str>);

/// Twice the longest topic name.
const MAX_PATTERN_LEN: usize = 512;

impl Pattern {
    /// Matches every name.
    #[must_use]
    pub fn any() -> Self {
        Self("*".into())
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when it has no wildcard: it names one thing.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// Whether the whole name fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut in_name) = (0, 0);
        // Where to go on when the text after the last `*` does not fit: one more byte for the `*`.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at + 1, in_name));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[in_name] => {
                    at += 1;
                    in_name += 1;
                }
                Some(_) | None => {
                    let Some((after_star, taken)) = star else {
                        return false;
                    };
                    star = Some((after_star, taken + 1));
                    (at, in_name) = (after_star, taken + 1);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*' | '?');
        if text.is_empty() || text.len() > MAX_PATTERN_LEN || !text.chars().all(accepted) {
            return Err(
                "not a name pattern; accepted: letters, digits, `.`, `_`, `-`, with `*` for \
                        any text and `?` for one character"
                    .to_owned(),
            );
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("*", "plant.1", true),
            ("plant.*", "plant.1", true),
            ("plant.*", "plant", false),
            ("*.temp", "a.b.temp", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("line-?", "line-1", true),
            ("line-?", "line-12", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), fits, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_costs_no_more_than_its_length_times_the_name() {
        let pattern: Pattern = "a*".repeat(200).parse().unwrap();
        assert!(!pattern.matches(&format!("{}b", "a".repeat(150))));
    }

    #[test]
    fn a_pattern_with_other_characters_is_refused() {
        for bad in ["", "a/b", "a b", "[a]"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
