//! The nodes' configuration files, as the harness writes them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

/// A TOML document that is built key by key.
#[derive(Debug, Clone, Default)]
pub struct Settings(Table);

impl Settings {
    /// Sets `section.key`, replacing what was there.
    ///
    /// # Panics
    /// When a part of the path is not a table.
    #[must_use]
    pub fn with(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut table = &mut self.0;
        let (sections, key) = path.rsplit_once('.').unwrap_or(("", path));
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let entry = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().expect("a section is a table");
        }
        table.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a table to the array of tables at `path`.
    ///
    /// # Panics
    /// When `path` is something else.
    #[must_use]
    pub fn with_rule(mut self, section: &str, rule: Table) -> Self {
        let entry = self
            .0
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        let table = entry.as_table_mut().expect("a section is a table");
        let rules = table
            .entry("rule")
            .or_insert_with(|| Value::Array(Vec::new()));
        rules
            .as_array_mut()
            .expect("rules are an array")
            .push(Value::Table(rule));
        self
    }

    /// Everything of `over` on top.
    #[must_use]
    pub fn over(mut self, over: &Self) -> Self {
        merge(&mut self.0, &over.0);
        self
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.0.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

fn merge(into: &mut Table, over: &Table) {
    for (key, value) in over {
        match (into.get_mut(key), value) {
            (Some(Value::Table(into)), Value::Table(over)) => merge(into, over),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_nest_and_later_ones_win() {
        let base = Settings::default()
            .with("store.quota", "1GiB")
            .with("store.queue", "1MiB");
        let over = Settings::default()
            .with("store.quota", "2GiB")
            .with("log.level", "debug");
        let text = base.over(&over).0.to_string();
        let back: Table = text.parse().unwrap();
        assert_eq!(back["store"]["quota"].as_str(), Some("2GiB"));
        assert_eq!(back["store"]["queue"].as_str(), Some("1MiB"));
        assert_eq!(back["log"]["level"].as_str(), Some("debug"));
    }
}
