//! The file, the environment over it, and what was found wrong.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use super::section::distance;
use super::{ConfigError, Problem, Section};

/// In front of every environment variable that overrides a key.
const ENV_PREFIX: &str = "KEDGE_";

/// What sections share while they are read.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) problems: Vec<Problem>,
    /// Every key that was asked for, with its section and in the form `topics.rule[].match`.
    pub(super) known: BTreeSet<String>,
    /// Variables that no key has taken yet.
    pub(super) env: BTreeMap<String, String>,
    /// Others that begin like one of ours.
    strays: BTreeSet<String>,
    /// What variables of tables with free keys begin with.
    pub(super) maps: Vec<String>,
}

/// The values of a configuration file by their keys in the form `uplink.classes.normal.max_delay`, as they would be written;
/// to compare two files. Lists are values. A text that is no TOML has none.
#[must_use]
pub fn values(text: &str) -> BTreeMap<String, String> {
    let table = text.parse::<toml::Table>().unwrap_or_default();
    let mut values = BTreeMap::new();
    flatten("", &table, &mut values);
    values
}

fn flatten(section: &str, table: &toml::Table, values: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let key = if section.is_empty() {
            name.clone()
        } else {
            format!("{section}.{name}")
        };
        match value.as_table() {
            Some(table) => flatten(&key, table, values),
            None => drop(values.insert(key, value.to_string())),
        }
    }
}

/// A parsed configuration file with the environment laid over it.
#[derive(Debug)]
pub struct Document {
    root: Section,
    file: String,
    notes: Rc<RefCell<Notes>>,
}

impl Document {
    /// Reads the file and the process's environment. Without a file only the environment counts.
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Syntax`].
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let env = std::env::vars_os().filter_map(|(name, value)| {
            // what is no text is shown, and refused where the key is read
            Some((
                name.into_string().ok()?,
                value.to_string_lossy().into_owned(),
            ))
        });
        let Some(file) = file else {
            return Self::parse("", "the environment", env);
        };
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError::Read {
            file: file.to_owned(),
            error,
        })?;
        Self::parse(&text, &file.display().to_string(), env)
    }

    /// Parses a text; `file` is its name in messages, `env` the environment.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`].
    pub fn parse(
        text: &str,
        file: &str,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let table = text
            .parse::<toml::Table>()
            .map_err(|error| ConfigError::Syntax {
                file: file.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
        let ours = env
            .into_iter()
            .filter(|(name, _)| name.starts_with(ENV_PREFIX));
        let is_override = |name: &str| name.trim_start_matches(ENV_PREFIX).contains("__");
        let (env, strays): (BTreeMap<_, _>, BTreeMap<_, _>) =
            ours.partition(|(name, _)| is_override(name));
        let notes = Rc::new(RefCell::new(Notes {
            env,
            strays: strays.into_keys().collect(),
            ..Notes::default()
        }));
        let root = Section::new(String::new(), table, Rc::clone(&notes));
        Ok(Self {
            root,
            file: file.to_owned(),
            notes,
        })
    }

    /// A table of the top level; an absent one is empty.
    pub fn section(&mut self, name: &str) -> Section {
        self.root.section(name)
    }

    /// Notes a problem between keys.
    pub fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.root.problem(key, message);
    }

    /// Ends the reading: whatever was not asked for is unknown. All sections must be gone.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all that was found.
    pub fn finish(self) -> Result<(), ConfigError> {
        let file = self.file.clone();
        let problems = self.problems();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid { file, problems })
        }
    }

    /// Ends the reading as [`Document::finish`] does, for who goes on with what could be read.
    #[must_use]
    pub fn problems(self) -> Vec<Problem> {
        let Self { root, notes, .. } = self;
        drop(root);
        let mut notes = notes.borrow_mut();
        let unknown = notes.unknown_variables();
        notes.problems.extend(unknown);
        std::mem::take(&mut notes.problems)
    }

    /// Ends the reading of one section, whatever the rest is like: `status` must work beside a broken
    /// file.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with what was found in the section.
    pub fn finish_only(self, section: &str) -> Result<(), ConfigError> {
        let Err(ConfigError::Invalid { file, mut problems }) = self.finish() else {
            return Ok(());
        };
        let inside = format!("{section}.");
        let variable = format!("{ENV_PREFIX}{}_", section.to_ascii_uppercase());
        problems.retain(|problem| {
            let key = &problem.key;
            key.starts_with(&inside) || key == section || key.starts_with(&variable)
        });
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid { file, problems })
        }
    }

    /// Every key that was asked for so far, such as `store.quota` and `topics.rule[].match`.
    #[must_use]
    pub fn known_keys(&self) -> Vec<String> {
        self.notes.borrow().known.iter().cloned().collect()
    }
}

impl Notes {
    /// Variables that no key took. Of those without `__` only what looks like one of ours misspelt: others may be
    /// somebody else's (`KEDGE_CONFIG`, or what a cluster sets for each of its services). Their values may be secrets.
    fn unknown_variables(&self) -> Vec<Problem> {
        let overrides = self.env.keys().map(|name| {
            let accepted = "accepted: KEDGE_<SECTION>__<KEY> of a known key";
            (name, self.meant(name), Some(accepted))
        });
        let strays = self.strays.iter();
        let strays = strays.map(|name| (name, self.meant(name), None));
        let message = |meant: Option<String>, accepted: Option<&str>| match (meant, accepted) {
            (Some(meant), _) => Some(format!("no such key; did you mean {meant}?")),
            (None, accepted) => accepted.map(|accepted| format!("no such key; {accepted}")),
        };
        let problems = overrides
            .chain(strays)
            .filter_map(|(name, meant, accepted)| {
                Some(Problem {
                    key: name.clone(),
                    value: None,
                    variable: None,
                    message: message(meant, accepted)?,
                })
            });
        problems.collect()
    }

    /// The variable that is meant by one that there is not.
    fn meant(&self, name: &str) -> Option<String> {
        let flat = |name: &str| name.replace("__", "_");
        let wrong = flat(name);
        let in_map = self.maps.iter().find_map(|prefix| {
            let rest = wrong.strip_prefix(&flat(prefix))?;
            (!rest.is_empty()).then(|| format!("{prefix}{rest}"))
        });
        let edits = |known: &String| distance(&flat(known), &wrong);
        let known = self.known.iter().filter_map(|key| env_variable(key));
        let nearest = known.min_by_key(edits);
        let is_near = |known: &String| edits(known) <= 1 + (wrong.len() - ENV_PREFIX.len()) / 8;
        in_map.or_else(|| nearest.filter(is_near))
    }
}

/// The environment variable that overrides a key; `None` for keys inside lists of tables.
#[must_use]
pub fn env_variable(key: &str) -> Option<String> {
    let is_plain = !key.contains('[') && key.contains('.');
    is_plain.then(|| {
        format!(
            "{ENV_PREFIX}{}",
            key.to_ascii_uppercase().replace('.', "__")
        )
    })
}
