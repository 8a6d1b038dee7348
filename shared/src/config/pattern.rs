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
                // a `*` in place of a name is a pattern's: see `covers`
                Some(&byte) if (byte == b'?' && name[in_name] != b'*') || byte == name[in_name] => {
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

impl Pattern {
    /// Whether every name that fits `other` fits this one too. False, now and then, where it does: `?*` and `*?` are
    /// not seen to be one.
    ///
    /// The other's wildcards are read as letters that only such take as stand for as much: its `*` is taken by ours, its
    /// `?` by our `?` or `*`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

/// Rules that are never asked, where the first that matches decides: each with the first before it that takes every name
/// that it matches.
#[must_use]
pub fn shadowed(rules: &[&Pattern]) -> Vec<(usize, usize)> {
    let earlier = |at: usize| rules[..at].iter().position(|rule| rule.covers(rules[at]));
    (0..rules.len())
        .filter_map(|at| Some((at, earlier(at)?)))
        .collect()
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
    fn a_pattern_covers_another_when_every_name_fits() {
        for (wide, narrow, covers) in [
            ("*", "*", true),
            ("*", "a.?", true),
            ("a.*", "a.b.*", true),
            ("a.*", "a.?", true),
            ("a.?", "a.*", false),
            ("a.??", "a.?", false),
            ("a.?", "a.b", true),
            ("a.b", "a.?", false),
            ("*.temp", "a.*.temp", true),
            ("*.temp", "a.*", false),
            ("?", "*", false),
        ] {
            let parse = |text: &str| text.parse::<Pattern>().unwrap();
            let found = parse(wide).covers(&parse(narrow));
            assert_eq!(found, covers, "{wide} over {narrow}");
        }
    }

    #[test]
    fn a_rule_behind_one_that_takes_all_of_it_is_found() {
        let rules: Vec<Pattern> = ["a.b", "a.*", "b", "a.c", "b"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let rules: Vec<&Pattern> = rules.iter().collect();
        assert_eq!(shadowed(&rules), [(3, 1), (4, 2)]);
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
