//! One table of the file: typed values out, problems noted.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of TOML's kinds of value only the wanted one matters"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use toml::Value;

use super::Problem;
use super::document::{Notes, env_variable};
use crate::units::{BitRate, ByteSize, Span};

/// Bytes of a value that are shown with a problem that was found later.
const LONGEST_SHOWN: usize = 128;

/// A table that is being read. Each getter takes its key out; what is left when the section goes is
/// unknown and becomes a problem.
#[derive(Debug)]
pub struct Section {
    /// `store`, `topics.rule[2]`; empty for the top level.
    path: String,
    table: toml::Table,
    /// Keys that were asked for here.
    known: Vec<String>,
    /// What stood there, but for secrets, and the variable that it came from: for problems found later.
    values: BTreeMap<String, (String, Option<String>)>,
    notes: Rc<RefCell<Notes>>,
}

/// A value as found.
struct Found {
    value: Value,
    /// Set when it came from the environment; then text may stand for any type.
    variable: Option<String>,
}

impl Section {
    pub(super) fn new(path: String, table: toml::Table, notes: Rc<RefCell<Notes>>) -> Self {
        Self {
            path,
            table,
            known: Vec::new(),
            values: BTreeMap::new(),
            notes,
        }
    }

    /// A size within a range.
    pub fn size(
        &mut self,
        key: &str,
        default: ByteSize,
        range: RangeInclusive<ByteSize>,
    ) -> ByteSize {
        let accepted = format!("accepted: {} to {}", range.start(), range.end());
        self.get(
            key,
            |found| found.size().and_then(|size| within(size, &range)),
            &accepted,
        )
        .unwrap_or(default)
    }

    /// A size within a range, or `"unlimited"`.
    pub fn size_limit(
        &mut self,
        key: &str,
        default: Option<ByteSize>,
        range: RangeInclusive<ByteSize>,
    ) -> Option<ByteSize> {
        let accepted = format!(
            "accepted: {} to {}, or \"unlimited\"",
            range.start(),
            range.end()
        );
        let read = |found: &Found| {
            if found.is_unlimited() {
                return Ok(None);
            }
            found.size().and_then(|size| within(size, &range)).map(Some)
        };
        self.get(key, read, &accepted).unwrap_or(default)
    }

    /// A duration within a range.
    pub fn span(&mut self, key: &str, default: Span, range: RangeInclusive<Span>) -> Span {
        let accepted = format!("accepted: {} to {}", range.start(), range.end());
        self.get(
            key,
            |found| found.span().and_then(|span| within(span, &range)),
            &accepted,
        )
        .unwrap_or(default)
    }

    /// A duration within a range, or `"unlimited"`.
    pub fn span_limit(
        &mut self,
        key: &str,
        default: Option<Span>,
        range: RangeInclusive<Span>,
    ) -> Option<Span> {
        let accepted = format!(
            "accepted: {} to {}, or \"unlimited\"",
            range.start(),
            range.end()
        );
        let read = |found: &Found| {
            if found.is_unlimited() {
                return Ok(None);
            }
            found.span().and_then(|span| within(span, &range)).map(Some)
        };
        self.get(key, read, &accepted).unwrap_or(default)
    }

    /// A bit rate within a range, or `"unlimited"`.
    pub fn rate_limit(
        &mut self,
        key: &str,
        default: Option<BitRate>,
        range: RangeInclusive<BitRate>,
    ) -> Option<BitRate> {
        let accepted = format!(
            "accepted: {} to {}, or \"unlimited\"",
            range.start(),
            range.end()
        );
        let read = |found: &Found| {
            if found.is_unlimited() {
                return Ok(None);
            }
            let rate = found.text()?.parse::<BitRate>();
            let rate = rate.map_err(|error| error.to_string())?;
            within(rate, &range).map(Some)
        };
        self.get(key, read, &accepted).unwrap_or(default)
    }

    /// A whole number within a range.
    pub fn number<T>(&mut self, key: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let accepted = format!(
            "accepted: a whole number from {} to {}",
            range.start(),
            range.end()
        );
        let read = |found: &Found| {
            let number = found.integer().ok_or("not a whole number")?;
            let number = T::try_from(number).map_err(|_| "out of range")?;
            within(number, &range)
        };
        self.get(key, read, &accepted).unwrap_or(default)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let read = |found: &Found| match (&found.value, &found.variable) {
            (Value::Boolean(flag), _) => Ok(*flag),
            (Value::String(text), Some(_)) if text == "true" => Ok(true),
            (Value::String(text), Some(_)) if text == "false" => Ok(false),
            _ => Err("not a switch".to_owned()),
        };
        self.get(key, read, "accepted: true or false")
            .unwrap_or(default)
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, key: &str, default: T, words: &[(&str, T)]) -> T {
        let quoted: Vec<String> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let accepted = format!("accepted: {}", quoted.join(", "));
        let read = |found: &Found| {
            let text = found.text()?;
            let hit = words.iter().find(|(word, _)| *word == text);
            hit.map(|(_, value)| *value)
                .ok_or_else(|| "not one of the words".to_owned())
        };
        self.get(key, read, &accepted).unwrap_or(default)
    }

    /// A text of a type that parses itself and says what it accepts.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, key: &str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// As [`Section::parsed`]; absent is `None`.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        self.get(
            key,
            |found| {
                found
                    .text()?
                    .parse::<T>()
                    .map_err(|error| with_example(error.to_string()))
            },
            "",
        )
    }

    /// As [`Section::parsed`]; absent is a problem. `None` means that one was noted.
    pub fn required<T: FromStr<Err: Display>>(&mut self, key: &str, example: &str) -> Option<T> {
        if !self.has(key) {
            self.problem(key, format!("missing; for example {key} = {example}"));
        }
        self.optional(key)
    }

    /// A path; an empty one is a problem.
    pub fn path(&mut self, key: &str, default: &str) -> PathBuf {
        let read = |found: &Found| match found.text()? {
            "" => Err("empty".to_owned()),
            text => Ok(PathBuf::from(text)),
        };
        self.get(key, read, "accepted: a path")
            .unwrap_or_else(|| PathBuf::from(default))
    }

    /// A list of texts that parse themselves; every bad item is a problem of its own.
    pub fn list<T: FromStr<Err: Display>>(&mut self, key: &str, default: Vec<T>) -> Vec<T> {
        self.items(key, default, true)
    }

    /// As [`Section::list`] for values that may be secrets: they appear in no message. Their errors must
    /// not name them either.
    pub fn secrets<T: FromStr<Err: Display>>(&mut self, key: &str) -> Vec<T> {
        self.items(key, Vec::new(), false)
    }

    fn items<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        default: Vec<T>,
        is_shown: bool,
    ) -> Vec<T> {
        let Some(found) = self.take(key) else {
            return default;
        };
        if is_shown {
            self.remember(key, &found);
        }
        let Some(items) = found.items() else {
            self.note(
                key,
                is_shown.then_some(&found),
                "not a list; accepted: [\"...\", \"...\"]".to_owned(),
            );
            return default;
        };
        let mut parsed = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let item = Found {
                value: item,
                variable: found.variable.clone(),
            };
            match item_of(&item) {
                Ok(value) => parsed.push(value),
                Err(message) => {
                    let shown = is_shown.then_some(&item);
                    self.note(&format!("{key}[{index}]"), shown, message);
                }
            }
        }
        parsed
    }

    /// As [`Section::list`], with at least one item: absent or empty is a problem.
    pub fn required_list<T: FromStr<Err: Display>>(&mut self, key: &str, example: &str) -> Vec<T> {
        let problems = self.notes.borrow().problems.len();
        let items = self.list(key, Vec::new());
        // Items that were refused have problems of their own.
        if items.is_empty() && self.notes.borrow().problems.len() == problems {
            self.problem(key, format!("missing; for example {key} = {example}"));
        }
        items
    }

    /// A table of texts with free keys (numbers and switches become text). Its values may be secrets:
    /// they appear in no message. In the environment the whole table is `KEDGE_<SECTION>__<KEY>`, and
    /// one entry is `KEDGE_<SECTION>__<KEY>__<NAME>` with `_` for each `.` of its name.
    pub fn map(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        if let Some(found) = self.take(key) {
            match found.table() {
                Some(table) => {
                    for (name, value) in table {
                        match plain_text(&value) {
                            Some(text) => drop(map.insert(name, text)),
                            None => self.note(
                                &format!("{key}.\"{name}\""),
                                None,
                                "not a text; accepted: a text, a number or a switch".to_owned(),
                            ),
                        }
                    }
                }
                None => self.note(
                    key,
                    None,
                    "not a table; accepted: { \"name\" = \"value\" }".to_owned(),
                ),
            }
        }
        self.map_entries_from_env(key, &mut map);
        map
    }

    fn map_entries_from_env(&self, key: &str, map: &mut BTreeMap<String, String>) {
        let Some(prefix) = env_variable(&format!("{}.", self.full(key))) else {
            return;
        };
        let mut notes = self.notes.borrow_mut();
        notes.maps.push(prefix.clone());
        let names: Vec<String> = notes
            .env
            .keys()
            .filter(|name| name.starts_with(&prefix))
            .cloned()
            .collect();
        for name in names {
            let entry = name
                .replacen(&prefix, "", 1)
                .to_ascii_lowercase()
                .replace('_', ".");
            if let Some(value) = notes.env.remove(&name) {
                map.insert(entry, value);
            }
        }
    }

    /// A table inside this one; an absent one is empty.
    pub fn section(&mut self, name: &str) -> Self {
        let path = self.full(name);
        self.known.push(name.to_owned());
        let table = match self.table.remove(name) {
            None => toml::Table::new(),
            Some(Value::Table(table)) => table,
            Some(value) => {
                let found = Found {
                    value,
                    variable: None,
                };
                self.note(
                    name,
                    Some(&found),
                    format!("not a table; accepted: [{path}]"),
                );
                toml::Table::new()
            }
        };
        Self::new(path, table, Rc::clone(&self.notes))
    }

    /// The tables of a list (`[[name]]`).
    pub fn sections(&mut self, name: &str) -> Vec<Self> {
        let Some(found) = self.take(name) else {
            return Vec::new();
        };
        let Some(items) = found.items() else {
            let message = format!("not a list of tables; accepted: [[{}]]", self.full(name));
            self.note(name, Some(&found), message);
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let place = format!("{name}[{index}]");
            match item {
                Value::Table(table) => {
                    sections.push(Self::new(self.full(&place), table, Rc::clone(&self.notes)));
                }
                value => {
                    let found = Found {
                        value,
                        variable: found.variable.clone(),
                    };
                    self.note(&place, Some(&found), "not a table".to_owned());
                }
            }
        }
        sections
    }

    /// Whether the key is given, in the file or in the environment.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        let variable = env_variable(&self.full(key));
        let in_env = variable.is_some_and(|name| self.notes.borrow().env.contains_key(&name));
        in_env || self.table.contains_key(key)
    }

    /// Notes a problem with a key of this section, and what stands there unless it may be a secret.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        let (value, variable) = self.values.get(key).cloned().unzip();
        self.notes.borrow_mut().problems.push(Problem {
            key: self.full(key),
            value,
            variable: variable.flatten(),
            message: message.into(),
        });
    }

    /// Notes what is wrong inside a text that is a configuration of its own, such as a policy for others.
    pub fn nested(&mut self, key: &str, problem: Problem) {
        let key = format!("{}: {}", self.full(key), problem.key);
        let problem = Problem { key, ..problem };
        self.notes.borrow_mut().problems.push(problem);
    }

    fn get<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Found) -> Result<T, String>,
        accepted: &str,
    ) -> Option<T> {
        let found = self.take(key)?;
        self.remember(key, &found);
        match read(&found) {
            Ok(value) => Some(value),
            Err(why) if accepted.is_empty() => {
                self.note(key, Some(&found), why);
                None
            }
            Err(why) => {
                self.note(key, Some(&found), format!("{why}; {accepted}"));
                None
            }
        }
    }

    fn take(&mut self, key: &str) -> Option<Found> {
        let full = self.full(key);
        self.known.push(key.to_owned());
        let in_file = self.table.remove(key);
        let variable = env_variable(&full);
        let mut notes = self.notes.borrow_mut();
        notes.known.insert(without_numbers(&full));
        if let Some(variable) = variable
            && let Some(text) = notes.env.remove(&variable)
        {
            return Some(Found {
                value: Value::String(text),
                variable: Some(variable),
            });
        }
        in_file.map(|value| Found {
            value,
            variable: None,
        })
    }

    /// What is long, such as a text of many lines, is not shown.
    fn remember(&mut self, key: &str, found: &Found) {
        let value = found.value.to_string();
        if value.len() <= LONGEST_SHOWN && !value.contains('\n') {
            let variable = found.variable.clone();
            self.values.insert(key.to_owned(), (value, variable));
        }
    }

    fn note(&self, key: &str, found: Option<&Found>, message: String) {
        self.notes.borrow_mut().problems.push(Problem {
            key: self.full(key),
            value: found.map(|found| found.value.to_string()),
            variable: found.and_then(|found| found.variable.clone()),
            message,
        });
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

impl Drop for Section {
    /// Whatever nobody asked for is unknown.
    fn drop(&mut self) {
        for (key, value) in std::mem::take(&mut self.table) {
            let nearest = self.known.iter().min_by_key(|known| distance(known, &key));
            let message = match nearest.filter(|known| distance(known, &key) <= 1 + key.len() / 4) {
                Some(known) => format!("no such key; did you mean `{known}`?"),
                None if self.known.is_empty() => "no such key".to_owned(),
                None => format!("no such key; accepted: {}", self.known.join(", ")),
            };
            // The value of an unknown key may be a secret under a misspelt name.
            let _: Value = value;
            self.note(&key, None, message);
        }
    }
}

impl Found {
    fn text(&self) -> Result<&str, String> {
        match &self.value {
            Value::String(text) => Ok(text),
            _ => Err("not a text; accepted: a text in quotes".to_owned()),
        }
    }

    fn is_unlimited(&self) -> bool {
        self.value.as_str() == Some("unlimited")
    }

    fn integer(&self) -> Option<i64> {
        match (&self.value, &self.variable) {
            (Value::Integer(number), _) => Some(*number),
            (Value::String(text), Some(_)) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn size(&self) -> Result<ByteSize, String> {
        match &self.value {
            Value::Integer(bytes) => u64::try_from(*bytes)
                .map(ByteSize)
                .map_err(|_| "a size is not negative".to_owned()),
            Value::String(text) => text.parse().map_err(short),
            _ => Err("not a size".to_owned()),
        }
    }

    fn span(&self) -> Result<Span, String> {
        match &self.value {
            Value::String(text) => text.parse().map_err(short),
            _ => Err("not a duration: write it with its unit, such as \"30s\"".to_owned()),
        }
    }

    /// The items of a list; text from the environment is TOML, or items between commas.
    fn items(&self) -> Option<Vec<Value>> {
        match (&self.value, &self.variable) {
            (Value::Array(items), _) => Some(items.clone()),
            (Value::String(text), Some(_)) if text.trim_start().starts_with('[') => {
                as_toml(text)?.as_array().cloned()
            }
            (Value::String(text), Some(_)) => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Value::String(item.to_owned()))
                    .collect(),
            ),
            _ => None,
        }
    }

    fn table(self) -> Option<toml::Table> {
        match (self.value, &self.variable) {
            (Value::Table(table), _) => Some(table),
            (Value::String(text), Some(_)) => as_toml(&text)?.as_table().cloned(),
            _ => None,
        }
    }
}

fn as_toml(text: &str) -> Option<Value> {
    format!("value = {text}")
        .parse::<toml::Table>()
        .ok()?
        .remove("value")
}

fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// An item of a list. One that is no text is told what its type accepts, too.
fn item_of<T: FromStr<Err: Display>>(item: &Found) -> Result<T, String> {
    match item.text() {
        Ok(text) => text.parse().map_err(|error: T::Err| error.to_string()),
        Err(why) => match plain_text(&item.value).map(|text| text.parse::<T>()) {
            Some(Err(error)) => Err(format!("not a text; {error}")),
            Some(Ok(_)) | None => Err(why),
        },
    }
}

/// The unit's own error names the value, which the problem shows anyway.
fn short(error: crate::units::UnitError) -> String {
    match error {
        crate::units::UnitError::Form { what, accepted, .. } => {
            format!("not a {what} ({accepted})")
        }
        crate::units::UnitError::TooLarge { what, .. } => format!("too large for a {what}"),
    }
}

fn within<T: PartialOrd>(value: T, range: &RangeInclusive<T>) -> Result<T, String> {
    if range.contains(&value) {
        Ok(value)
    } else {
        Err("out of range".to_owned())
    }
}

/// `topics.rule[2].match` as `topics.rule[].match`.
fn without_numbers(path: &str) -> String {
    let mut inside = false;
    let keep = |c: &char| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        !inside || *c == '['
    };
    path.chars().filter(keep).collect()
}

/// Edits between two short words.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, from) in left.chars().enumerate() {
        let mut before = row[0];
        row[0] = at + 1;
        for (index, to) in right.iter().enumerate() {
            let change = before + usize::from(from != *to);
            before = row[index + 1];
            row[index + 1] = change.min(before + 1).min(row[index] + 1);
        }
    }
    row[right.len()]
}

/// The standard library's error about an address tells nothing of what is expected.
fn with_example(error: String) -> String {
    if error == "invalid socket address syntax" {
        return "not an address and a port; for example \"127.0.0.1:9092\"".to_owned();
    }
    error
}

#[cfg(test)]
mod tests {
    use crate::config::{ConfigError, Document, Pattern};
    use crate::units::{BitRate, ByteSize, Span};

    fn document(text: &str, env: &[(&str, &str)]) -> Document {
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Document::parse(text, "test.toml", env).unwrap()
    }

    fn sizes() -> std::ops::RangeInclusive<ByteSize> {
        ByteSize::mib(64)..=ByteSize::gib(1)
    }

    fn problems(document: Document) -> Vec<String> {
        match document.finish() {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => panic!("expected problems, got {other:?}"),
        }
    }

    #[test]
    fn every_problem_is_reported_at_once_with_key_value_and_range() {
        let mut document = document(
            "[store]\nquota = \"5 apples\"\nmin_free = 7\nsweep = 30\nlanes = 99\nretension = \"7d\"\n\
             on = 1\nmode = \"sometimes\"\nmatch = \"a/b\"\n[sotre]\n",
            &[],
        );
        {
            let mut store = document.section("store");
            store.size("quota", ByteSize::mib(64), sizes());
            store.size("min_free", ByteSize::mib(64), sizes());
            store.span("sweep", Span::secs(1), Span::secs(1)..=Span::hours(1));
            store.number("lanes", 4_u32, 1..=64);
            store.span("retention", Span::days(7), Span::secs(1)..=Span::days(9));
            store.flag("on", true);
            store.choice("mode", 0, &[("always", 0), ("never", 1)]);
            store.parsed("match", Pattern::any());
            store.required::<Pattern>("needed", "\"x\"");
        }
        let found = problems(document);
        for (key, parts) in [
            (
                "store.quota = \"5 apples\": ",
                ["not a size", "accepted: 64MiB to 1GiB"],
            ),
            (
                "store.min_free = 7: ",
                ["out of range", "accepted: 64MiB to 1GiB"],
            ),
            ("store.sweep = 30: ", ["unit", "accepted: 1s to 1h"]),
            ("store.lanes = 99: ", ["out of range", "from 1 to 64"]),
            (
                "store.retension: ",
                ["no such key", "did you mean `retention`"],
            ),
            ("store.on = 1: ", ["not a switch", "true or false"]),
            (
                "store.mode = \"sometimes\": ",
                ["not one of", "\"always\", \"never\""],
            ),
            (
                "store.match = \"a/b\": ",
                ["not a name pattern", "accepted: letters"],
            ),
            ("store.needed: ", ["missing", "for example needed = \"x\""]),
            ("sotre: ", ["no such key", "did you mean `store`"]),
        ] {
            let line = found.iter().find(|line| line.starts_with(key));
            let line = line.unwrap_or_else(|| panic!("{key} in {found:#?}"));
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        }
        assert_eq!(found.len(), 10, "{found:#?}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let mut document = document(
            "[store]\nquota = \"nonsense that is never looked at\"\n",
            &[
                ("KEDGE_STORE__QUOTA", "512MiB"),
                ("KEDGE_STORE__LANES", "7"),
                ("KEDGE_STORE__ON", "false"),
                ("KEDGE_STORE__HUBS", "a, b"),
                ("KEDGE_STORE__MORE_HUBS", "[\"c\", \"d\"]"),
                ("KEDGE_STORE__RULE", "[{ match = \"x*\" }]"),
                ("KEDGE_STORE__PROPERTIES__SASL_PASSWORD", "s3cret"),
                ("KEDGE_CONFIG", "not an override"),
                ("PATH", "/bin"),
            ],
        );
        {
            let mut store = document.section("store");
            assert_eq!(
                store.size("quota", ByteSize::mib(64), sizes()),
                ByteSize::mib(512)
            );
            assert_eq!(store.number("lanes", 1_u32, 1..=9), 7);
            assert!(!store.flag("on", true));
            assert_eq!(store.list::<String>("hubs", vec![]), ["a", "b"]);
            assert_eq!(store.list::<String>("more_hubs", vec![]), ["c", "d"]);
            let mut rules = store.sections("rule");
            assert_eq!(rules[0].parsed("match", Pattern::any()).as_str(), "x*");
            let properties = store.map("properties");
            assert_eq!(
                properties.get("sasl.password").map(String::as_str),
                Some("s3cret")
            );
        }
        document.finish().unwrap();
    }

    #[test]
    fn a_bad_or_unknown_variable_is_named() {
        let mut document = document(
            "",
            &[
                ("KEDGE_STORE__QUOTA", "much"),
                ("KEDGE_STORE__QOUTA", "1GiB"),
                ("KEDGE_AMQP__LISTEN", "1"),
            ],
        );
        document
            .section("store")
            .size("quota", ByteSize::mib(64), sizes());
        let found = problems(document).join("\n");
        for part in [
            "store.quota = \"much\" (from KEDGE_STORE__QUOTA): not a size",
            "KEDGE_STORE__QOUTA: no such key; did you mean KEDGE_STORE__QUOTA?",
            "KEDGE_AMQP__LISTEN: no such key; accepted: KEDGE_<SECTION>__<KEY> of a known key",
        ] {
            assert!(found.contains(part), "{part} in {found}");
        }
    }

    #[test]
    fn a_variable_with_one_underscore_is_not_ignored() {
        let env = [
            ("KEDGE_STORE_QUOTA", "1GiB"),
            ("KEDGE_STORE_MIN_FEE", "1GiB"),
            ("KEDGE_STORE_PROPERTIES_SASL_PASSWORD", "hunter2"),
            // others' own
            ("KEDGE_CONFIG", "/etc/kedge.toml"),
            ("KEDGE_CACHE", "/tmp"),
            ("KEDGE_SEED", "1"),
            ("KEDGE_STORE_SERVICE_HOST", "192.0.2.1"),
        ];
        let mut document = document("", &env);
        {
            let mut store = document.section("store");
            store.size("quota", ByteSize::mib(64), sizes());
            store.size("min_free", ByteSize::mib(64), sizes());
            store.map("properties");
        }
        let found = problems(document);
        let expected = [
            "KEDGE_STORE_MIN_FEE: no such key; did you mean KEDGE_STORE__MIN_FREE?",
            "KEDGE_STORE_PROPERTIES_SASL_PASSWORD: no such key; \
             did you mean KEDGE_STORE__PROPERTIES__SASL_PASSWORD?",
            "KEDGE_STORE_QUOTA: no such key; did you mean KEDGE_STORE__QUOTA?",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_problem_between_keys_tells_what_stands_there_but_no_secret() {
        let text = "[store]\nfrom = \"x\"\nto = [\"a\"]\ntokens = [\"hunter2\"]\n";
        let mut document = document(text, &[("KEDGE_STORE__QUOTA", "512MiB")]);
        {
            let mut store = document.section("store");
            store.size("quota", ByteSize::mib(64), sizes());
            store.optional::<String>("from");
            store.list::<String>("to", Vec::new());
            store.secrets::<String>("tokens");
            for key in ["quota", "from", "to", "tokens", "absent"] {
                store.problem(key, "does not fit");
            }
        }
        let expected = [
            "store.quota = \"512MiB\" (from KEDGE_STORE__QUOTA): does not fit",
            "store.from = \"x\": does not fit",
            "store.to = [\"a\"]: does not fit",
            "store.tokens: does not fit",
            "store.absent: does not fit",
        ];
        assert_eq!(problems(document), expected);
    }

    #[test]
    fn secrets_of_a_map_stay_out_of_messages() {
        let mut document = document(
            "[kafka.properties]\n\"sasl.password\" = [\"hunter2\"]\n\"a.b\" = 3\n[kafka]\npasswort = \"hunter2\"\n",
            &[],
        );
        {
            let mut kafka = document.section("kafka");
            assert_eq!(
                kafka.map("properties").get("a.b").map(String::as_str),
                Some("3")
            );
        }
        let found = problems(document).join("\n");
        assert!(
            found.contains("kafka.properties.\"sasl.password\": not a text"),
            "{found}"
        );
        assert!(!found.contains("hunter2"), "{found}");
    }

    #[test]
    fn limits_can_be_lifted() {
        let mut document = document(
            "[t]\na = \"unlimited\"\nb = \"unlimited\"\nc = \"2s\"\ne = \"unlimited\"\nf = \"256kbit\"\n",
            &[],
        );
        {
            let mut t = document.section("t");
            let spans = Span::secs(1)..=Span::days(1);
            assert_eq!(t.size_limit("a", Some(ByteSize(1)), sizes()), None);
            assert_eq!(t.span_limit("b", Some(Span::secs(1)), spans.clone()), None);
            assert_eq!(t.span_limit("c", None, spans.clone()), Some(Span::secs(2)));
            assert_eq!(t.span_limit("d", None, spans), None);
            let rates = BitRate::kbit(8)..=BitRate::mbit(1);
            assert_eq!(t.rate_limit("e", Some(BitRate(1)), rates.clone()), None);
            let rate = t.rate_limit("f", None, rates.clone());
            assert_eq!(rate, Some(BitRate::kbit(256)));
            assert_eq!(t.rate_limit("g", rate, rates), rate);
        }
        document.finish().unwrap();
    }

    #[test]
    fn a_syntax_error_says_where() {
        let error = Document::parse("[store\n", "test.toml", [])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("test.toml") && error.contains("line 1"),
            "{error}"
        );
    }
}
