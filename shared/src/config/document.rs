//! The file, the environment over it, and what was found wrong.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

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
        let is_override = |name: &String| {
            name.strip_prefix(ENV_PREFIX)
                .is_some_and(|rest| rest.contains("__"))
        };
        let env = env
            .into_iter()
            .filter(|(name, _)| is_override(name))
            .collect();
        let notes = Rc::new(RefCell::new(Notes {
            env,
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
        let Self { root, file, notes } = self;
        drop(root);
        let mut notes = notes.borrow_mut();
        for (variable, value) in std::mem::take(&mut notes.env) {
            notes.problems.push(Problem {
                key: variable,
                value: Some(format!("{value:?}")),
                variable: None,
                message: "no such key; accepted: KEDGE_<SECTION>__<KEY> of a known key".to_owned(),
            });
        }
        let problems = std::mem::take(&mut notes.problems);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid { file, problems })
        }
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
        problems.retain(|problem| problem.key.starts_with(&inside) || problem.key == section);
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
